// SPDX-License-Identifier: GPL-2.0

//! The command line of each command.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use clap::value_parser;
use devmem::DmaBuf;
use nix::net::if_::if_nametoindex;

/// All of it. The manual pages and completions are made of this, by `examples/pages.rs`.
#[derive(Parser)]
#[command(version, about, long_about = None)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What it is to do.
#[derive(Subcommand)]
pub enum Command {
    /// Receives into a dma-buf, and writes it to standard output
    Receive(ReceiveArgs),
    /// Sends standard input from a dma-buf
    Send(SendArgs),
}

/// How the connection is made, and what of the machine it uses.
#[derive(Args)]
pub struct CommonArgs {
    /// Wait for a connection to this address and port
    #[arg(
        short,
        long,
        value_name = "ADDR:PORT",
        required_unless_present = "connect",
        conflicts_with = "connect"
    )]
    pub listen: Option<SocketAddr>,
    /// Connect to this address and port
    #[arg(short, long, value_name = "ADDR:PORT")]
    pub connect: Option<SocketAddr>,
    /// The interface that the connection goes through
    #[arg(short, long, value_name = "NAME")]
    pub interface: String,
    /// Size of the dma-buf in MiB
    #[arg(short, long, value_name = "MIB", default_value_t = 64)]
    pub memory: usize,
    /// Where the dma-buf comes from
    #[arg(long, value_enum, default_value_t = MemoryKind::Udmabuf)]
    pub kind: MemoryKind,
    /// How system calls are made
    #[arg(short, long, value_enum, default_value_t = Backend::Blocking)]
    pub backend: Backend,
    /// Tell the SHA-256 of what was transferred
    #[arg(long)]
    pub sha256: bool,
    /// Tell every second how far it is
    #[arg(short, long)]
    pub progress: bool,
    /// Tell errors only
    #[arg(long, conflicts_with_all = ["progress", "sha256"])]
    pub quiet: bool,
}

#[derive(Args)]
pub struct ReceiveArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// A queue to bind the dma-buf to; may be given several times
    #[arg(short, long = "queue", value_name = "QUEUE", required = true)]
    pub queues: Vec<u32>,
    /// Size of the buffers that the NIC is given, in bytes: a power of two, not below a page
    #[arg(long, value_name = "BYTES")]
    pub rx_page_size: Option<u32>,
    /// Have the first queue receive the connection's port, by an ntuple rule of ethtool's
    #[arg(short, long)]
    pub steer: bool,
    /// Write to this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "discard")]
    pub output: Option<PathBuf>,
    /// Write nothing: leave it in the dma-buf
    #[arg(long)]
    pub discard: bool,
    /// Fail unless so many bytes come
    #[arg(long, value_name = "BYTES")]
    pub size: Option<u64>,
}

#[derive(Args)]
pub struct SendArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Send this file
    #[arg(short = 'f', long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// What is sent with one call, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 256, value_parser = value_parser!(u64).range(1..))]
    pub chunk: u64,
    /// Do not wait until the peer ends the connection, which tells that it has dealt with everything
    #[arg(long)]
    pub no_wait: bool,
}

/// Where a dma-buf comes from.
#[derive(Clone, Copy, ValueEnum)]
pub enum MemoryKind {
    /// Pages of a memfd
    Udmabuf,
    /// Huge pages of a memfd, as many as vm.nr_hugepages has
    Huge,
    /// The system heap, /dev/dma_heap/system
    System,
}

/// How system calls are made.
#[derive(Clone, Copy, ValueEnum)]
pub enum Backend {
    /// recvmsg(), sendmsg() and setsockopt()
    Blocking,
    /// io_uring, a request for each call
    Uring,
    /// io_uring, one request that receives again and again
    UringMultishot,
}

impl CommonArgs {
    /// The dma-buf that it asks for.
    pub fn dmabuf(&self) -> Result<DmaBuf, String> {
        let size = self
            .memory
            .checked_mul(1 << 20)
            .ok_or("--memory is too large")?;
        let (made, device, hint) = match self.kind {
            MemoryKind::Udmabuf => (
                DmaBuf::udmabuf(size),
                "/dev/udmabuf",
                "its limit is in /sys/module/udmabuf/parameters/size_limit_mb",
            ),
            MemoryKind::Huge => (
                DmaBuf::udmabuf_huge(size),
                "/dev/udmabuf",
                "it takes whole huge pages of 2 MiB, see vm.nr_hugepages and size_limit_mb of udmabuf",
            ),
            MemoryKind::System => (
                DmaBuf::system_heap(size),
                "/dev/dma_heap/system",
                "the kernel needs CONFIG_DMABUF_HEAPS_SYSTEM",
            ),
        };
        made.map_err(|err| format!("{} MiB from {device}: {err} ({hint})", self.memory))
    }

    /// The interface's number.
    pub fn ifindex(&self) -> Result<u32, String> {
        if_nametoindex(self.interface.as_str())
            .map_err(|err| format!("interface {}: {err}", self.interface))
    }
}
