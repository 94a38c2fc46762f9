// SPDX-License-Identifier: GPL-2.0

//! netcat for device memory: what arrives lies in a dma-buf, what is sent comes from one.

mod connection;
mod receive;
mod send;
mod stats;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use devmem::DmaBuf;
use nix::net::if_::if_nametoindex;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receives into a dma-buf, and writes it to standard output
    Receive(ReceiveArgs),
    /// Sends standard input from a dma-buf
    Send(SendArgs),
}

/// How the connection is made, and what of the machine it uses.
#[derive(Args)]
struct CommonArgs {
    /// Wait for a connection to this address and port
    #[arg(
        short,
        long,
        value_name = "ADDR:PORT",
        required_unless_present = "connect",
        conflicts_with = "connect"
    )]
    listen: Option<SocketAddr>,
    /// Connect to this address and port
    #[arg(short, long, value_name = "ADDR:PORT")]
    connect: Option<SocketAddr>,
    /// The interface that the connection goes through
    #[arg(short, long, value_name = "NAME")]
    interface: String,
    /// Size of the dma-buf in MiB
    #[arg(short, long, value_name = "MIB", default_value_t = 64)]
    memory: usize,
    /// Where the dma-buf comes from
    #[arg(long, value_enum, default_value_t = MemoryKind::Udmabuf)]
    kind: MemoryKind,
    /// How system calls are made
    #[arg(short, long, value_enum, default_value_t = Backend::Blocking)]
    backend: Backend,
    /// Tell the SHA-256 of what was transferred
    #[arg(long)]
    sha256: bool,
    /// Tell every second how far it is
    #[arg(short, long)]
    progress: bool,
    /// Tell errors only
    #[arg(long, conflicts_with_all = ["progress", "sha256"])]
    quiet: bool,
}

#[derive(Args)]
struct ReceiveArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// A queue to bind the dma-buf to; may be given several times
    #[arg(short, long = "queue", value_name = "QUEUE", required = true)]
    queues: Vec<u32>,
    /// Size of the buffers that the NIC is given, in bytes: a power of two, not below a page
    #[arg(long, value_name = "BYTES")]
    rx_page_size: Option<u32>,
    /// Have the first queue receive the connection's port, by an ntuple rule of ethtool's
    #[arg(short, long)]
    steer: bool,
    /// Write to this file
    #[arg(short, long, value_name = "FILE", conflicts_with = "discard")]
    output: Option<PathBuf>,
    /// Write nothing: leave it in the dma-buf
    #[arg(long)]
    discard: bool,
}

#[derive(Args)]
struct SendArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Send this file
    #[arg(short = 'f', long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// What is sent with one call, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 256)]
    chunk: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum MemoryKind {
    /// Pages of a memfd
    Udmabuf,
    /// Huge pages of a memfd, as many as vm.nr_hugepages has
    Huge,
    /// The system heap, /dev/dma_heap/system
    System,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    /// recvmsg(), sendmsg() and setsockopt()
    Blocking,
    /// io_uring, a request for each call
    Uring,
    /// io_uring, one request that receives again and again
    UringMultishot,
}

impl CommonArgs {
    fn dmabuf(&self) -> Result<DmaBuf, String> {
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

    fn ifindex(&self) -> Result<u32, String> {
        if_nametoindex(self.interface.as_str())
            .map_err(|err| format!("interface {}: {err}", self.interface))
    }
}

/// A refused bind request, and what an operator can do about it.
fn bind_error(what: &str, interface: &str, err: &devmem::Error) -> String {
    let hint = match (err, err.errno()) {
        (devmem::Error::NoFamily(_), _) => "the kernel needs CONFIG_NET_DEVMEM",
        (_, Some(errno)) => match nix::errno::Errno::from_raw(errno) {
            nix::errno::Errno::EPERM => "run it as root, or with CAP_NET_ADMIN",
            nix::errno::Errno::EEXIST => "another binding or an XDP program has it",
            nix::errno::Errno::EOPNOTSUPP => "this NIC or its driver does not do that",
            nix::errno::Errno::ENOMEM => "there is not enough memory",
            _ => "",
        },
        _ => "",
    };
    match hint {
        "" => format!("{what} {interface}: {err}"),
        hint => format!("{what} {interface}: {err}\nHint: {hint}."),
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Receive(args) => receive::run(&args),
        Command::Send(args) => send::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if connection::interrupted() => {
            eprintln!("devmem-cat: interrupted ({err})");
            ExitCode::from(130)
        }
        Err(err) => {
            eprintln!("devmem-cat: {err}");
            ExitCode::FAILURE
        }
    }
}

/// Adds what was being done to an error.
fn context<'a, E: Into<Box<dyn Error>>>(
    what: impl Into<String> + 'a,
) -> impl FnOnce(E) -> Box<dyn Error> + 'a {
    move |err| format!("{}: {}", what.into(), err.into()).into()
}

/// What a transfer that was interrupted ends with.
fn check_interrupted() -> io::Result<()> {
    match connection::interrupted() {
        true => Err(io::ErrorKind::Interrupted.into()),
        false => Ok(()),
    }
}
