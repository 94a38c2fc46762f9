// SPDX-License-Identifier: GPL-2.0

//! The command line of each command.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use devmem::netns::Netns;

/// What goes from where to where, for each command.
#[derive(Args)]
pub struct Ends {
    /// The file to send
    #[arg(long)]
    pub file: PathBuf,
    /// Network namespace of the receiver
    #[arg(long, default_value = "rx")]
    pub rx_netns: String,
    /// The receiver's interface
    #[arg(long)]
    pub rx_if: String,
    /// Network namespace of the sender
    #[arg(long, default_value = "tx")]
    pub tx_netns: String,
    /// The receiver's address
    #[arg(long, default_value = "192.0.2.1")]
    pub addr: IpAddr,
    /// The receiver's queue to bind to device memory
    #[arg(long)]
    pub queue: u32,
    /// Size of each dma-buf in MiB
    #[arg(long, default_value_t = 16)]
    pub memory: usize,
}

impl Ends {
    /// The namespaces of receiver and sender.
    pub fn namespaces(&self) -> Result<(Netns, Netns), String> {
        let named = |name: &str| {
            Netns::named(name).map_err(|err| format!("network namespace {name}: {err}"))
        };
        Ok((named(&self.rx_netns)?, named(&self.tx_netns)?))
    }
}

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub ends: Ends,
    /// The receiver's port; the plain transfer uses the next one
    #[arg(long, default_value_t = 5201)]
    pub port: u16,
    /// The queue for the plain transfer
    #[arg(long, default_value_t = 1)]
    pub plain_queue: u32,
}

#[derive(Args)]
pub struct CopyArgs {
    #[command(flatten)]
    pub ends: Ends,
    /// The sender's interface
    #[arg(long)]
    pub tx_if: String,
    /// The receiver's port
    #[arg(long, default_value_t = 5203)]
    pub port: u16,
}

#[derive(Args)]
pub struct KeepArgs {
    #[command(flatten)]
    pub ends: Ends,
    /// The receiver's port, which the queue receives already
    #[arg(long, default_value_t = 5201)]
    pub port: u16,
    /// The PCI device and the BAR that is its memory, 0000:04:00.0/2, which vfio-pci has
    #[arg(long)]
    pub device: String,
    /// Where to write which pieces of the memory are the file
    #[arg(long)]
    pub pieces: PathBuf,
}

/// So many MiB in bytes.
pub fn mib(number: usize) -> Result<usize, String> {
    number
        .checked_mul(1 << 20)
        .ok_or_else(|| format!("{number} MiB are more than this machine can address"))
}
