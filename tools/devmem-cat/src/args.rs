// SPDX-License-Identifier: GPL-2.0

//! The command line of each command.

use std::fmt;
use std::fmt::Display;
use std::fmt::Formatter;
use std::path::PathBuf;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use clap::value_parser;

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
    /// Lets others put bytes into a dma-buf, and get them from there, until a signal ends it
    ///
    /// On standard output it tells the key that they need, in hex. One of them is served at a time: others wait until that is
    /// done, or has put and got nothing for 30 s.
    Serve(ServeArgs),
    /// Puts a file into the memory of a peer that serves, and ends when it is there
    Put(PutArgs),
    /// Gets a file from the memory of a peer that serves
    Get(GetArgs),
    /// Removes what receivers that were killed have left on an interface: rules, and header split
    Cleanup(CleanupArgs),
    /// Lists the dma-bufs that are bound, whoever has bound them, who holds their memory, and what happens to them
    ///
    /// They are those of the network namespace. Of each, PAGE is the size of a buffer, IN USE how many are not free of how
    /// many there are, and EMPTY how often there was none left; - is what is not counted, or not told. With CAP_NET_ADMIN
    /// the sockets that hold any of their memory follow: TOKENS and HELD are what the user has not returned, QUEUED is what
    /// was not read, with a + if there is more.
    Status(StatusArgs),
    /// Gets the memory of a binding back that is stuck: aborts the connections that hold it
    ///
    /// It takes CAP_NET_ADMIN in the network namespace of the device. Programs that had the connections get the error
    /// ECONNABORTED. The binding stays, and its queues go on. Sockets whose connection is over keep what they have: the
    /// number that is still out tells.
    Flush(FlushArgs),
}

/// How the connection is made, and what of the machine it uses.
#[derive(Args)]
pub struct CommonArgs {
    /// Wait for a connection to this address or name, and port
    #[arg(
        short,
        long,
        value_name = "HOST:PORT",
        required_unless_present = "connect",
        conflicts_with = "connect",
        value_parser = host_and_port
    )]
    pub listen: Option<String>,
    /// Connect to this address or name, and port
    #[arg(short, long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub connect: Option<String>,
    /// How many connections there are, all at the same time
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub connections: u32,
    /// The interface that the connection goes through; with --share a sender takes lo
    #[arg(short, long, value_name = "NAME", required_unless_present = "share")]
    interface: Option<String>,
    /// Size of the dma-buf in MiB
    #[arg(short, long, value_name = "MIB", default_value_t = 64)]
    pub memory: usize,
    /// Where the dma-buf comes from
    #[arg(long, value_enum, default_value_t = MemoryKind::Udmabuf)]
    pub kind: MemoryKind,
    /// Take the first --memory MiB of a PCI device that vfio-pci has: its address and the number of a BAR, 0000:04:00.0/2
    #[arg(long, value_name = "ADDRESS/BAR", conflicts_with = "kind", value_parser = Bar::parse)]
    pub vfio: Option<Bar>,
    /// How system calls are made
    #[arg(short, long, value_enum, default_value_t = Backend::Blocking)]
    pub backend: Backend,
    /// Tell the SHA-256 of what was transferred
    #[arg(long)]
    pub sha256: bool,
    /// Tell every second how far it is, on a terminal in one line
    #[arg(short, long)]
    pub progress: bool,
    /// Tell of each connection by a line of JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// Tell errors only
    #[arg(long, conflicts_with_all = ["progress", "sha256"])]
    pub quiet: bool,
}

#[derive(Args)]
pub struct ReceiveArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// A queue to bind the dma-buf to; may be given several times
    #[arg(
        short,
        long = "queue",
        value_name = "QUEUE",
        required_unless_present = "share"
    )]
    pub queues: Vec<u32>,
    /// Take the dma-buf of a sender on this machine, and no interface or queues: the sender passes it by a socket of this name
    ///
    /// The socket is made here, with the rights that umask leaves, and removed when the dma-buf has come. Whoever may write to
    /// it can pass one.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["queues", "interface", "rx_page_size", "steer", "keep_open", "kind", "vfio", "memory"])]
    pub share: Option<PathBuf>,
    /// Size of the buffers that the NIC is given, in bytes: a power of two, not below a page
    #[arg(long, value_name = "BYTES")]
    pub rx_page_size: Option<u32>,
    /// Have the first queue receive the connection's port, by an ntuple rule of ethtool's
    #[arg(short, long)]
    pub steer: bool,
    /// Write to this file; of several connections each has its own, FILE.1 and so on
    #[arg(short, long, value_name = "FILE", conflicts_with = "discard")]
    pub output: Option<PathBuf>,
    /// Write nothing: leave it in the dma-buf
    #[arg(long)]
    pub discard: bool,
    /// Leave all of it in the dma-buf, and write to this file where it is: the offset and the length of each piece, a line each
    ///
    /// It is for who sees that memory from elsewhere. No buffer is used twice, so the dma-buf has to have room for all. It
    /// fails if bytes come in host memory. There is nothing in the file before all has come.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "discard", "connections", "keep_open", "share"])]
    pub pieces: Option<PathBuf>,
    /// Fail unless so many bytes come, by each connection
    #[arg(long, value_name = "BYTES")]
    pub size: Option<u64>,
    /// Go on taking connections until a signal ends it
    #[arg(short, long, conflicts_with_all = ["connect", "connections"])]
    pub keep_open: bool,
}

#[derive(Args)]
pub struct SendArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Send this file, over each of several connections
    #[arg(short = 'f', long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Send to a reader of device memory on this machine, by lo, veth or netkit: it has to have the memory, too
    #[arg(long)]
    pub local: bool,
    /// The same, and pass the dma-buf to a receiver that has made a socket of this name
    #[arg(long, value_name = "PATH")]
    pub share: Option<PathBuf>,
    /// What is sent with one call, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 256, value_parser = value_parser!(u64).range(1..))]
    pub chunk: u64,
    /// Do not wait until the peer ends the connection, which tells that it has dealt with everything
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Args)]
pub struct ServeArgs {
    /// Wait for peers at this address, and port; the connections of their data come to the port after that
    #[arg(short, long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub listen: String,
    /// The interface that the connections go through
    #[arg(short, long, value_name = "NAME")]
    pub interface: String,
    /// Size of the dma-buf that is served, in MiB
    #[arg(short, long, value_name = "MIB", default_value_t = 64, value_parser = value_parser!(u32).range(1..))]
    pub memory: u32,
    /// A queue to bind another dma-buf to, in which data land
    #[arg(short, long, value_name = "QUEUE")]
    pub queue: Option<u32>,
    /// Size of that, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, requires = "queue", value_parser = value_parser!(u32).range(1..))]
    pub landing: u32,
    /// Have that queue receive the connections of data, and another one the others, by ntuple rules of ethtool's
    #[arg(short, long, requires = "queue")]
    pub steer: bool,
}

/// Where the memory is that is put to, or got from.
#[derive(Args)]
pub struct PeerArgs {
    /// Where the peer listens
    #[arg(short, long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub connect: String,
    /// The interface that the connections go through
    #[arg(short, long, value_name = "NAME")]
    pub interface: String,
    /// The file that has the peer's key, in hex
    #[arg(short, long, value_name = "FILE")]
    pub key: PathBuf,
    /// From which byte on of the peer's memory
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub offset: u64,
    /// How many connections carry the data
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1, value_parser = value_parser!(u16).range(1..=64))]
    pub connections: u16,
}

#[derive(Args)]
pub struct PutArgs {
    #[command(flatten)]
    pub peer: PeerArgs,
    /// Put this file instead of standard input
    #[arg(short = 'f', long, value_name = "FILE")]
    pub input: Option<PathBuf>,
}

#[derive(Args)]
pub struct GetArgs {
    #[command(flatten)]
    pub peer: PeerArgs,
    /// How much to get
    #[arg(long, value_name = "BYTES", value_parser = value_parser!(u64).range(1..))]
    pub size: u64,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Args)]
pub struct CleanupArgs {
    /// The interface
    #[arg(short, long, value_name = "NAME")]
    pub interface: String,
}

#[derive(Args)]
pub struct StatusArgs {
    /// Only those of this interface
    #[arg(short, long, value_name = "NAME")]
    pub interface: Option<String>,
    /// Go on with what happens until a signal ends it
    #[arg(short, long)]
    pub follow: bool,
    /// Tell of each by a line of JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct FlushArgs {
    /// The number of the binding, as the command status tells it
    #[arg(value_parser = value_parser!(u32).range(1..))]
    pub id: u32,
    /// Tell what came of it by a line of JSON
    #[arg(long)]
    pub json: bool,
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

/// A BAR of a PCI device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Of the device.
    pub address: String,
    /// Of the BAR.
    pub number: u32,
}

impl Bar {
    fn parse(text: &str) -> Result<Self, String> {
        let (address, number) = text.rsplit_once('/').ok_or("there is no BAR")?;
        let number = number.parse().ok().filter(|&number| number < 6);
        match number {
            Some(number) if !address.is_empty() => Ok(Self {
                address: address.into(),
                number,
            }),
            Some(_) => Err("there is no address".into()),
            None => Err("BARs have the numbers 0 to 5".into()),
        }
    }
}

impl Display for Bar {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.number)
    }
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

/// Looks whether it can be what is asked for. Names are looked up when they are needed.
fn host_and_port(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("there is no port")?;
    port.parse::<u16>()
        .map_err(|err| format!("port {port:?}: {err}"))?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    match host {
        "" => Err("there is no address; 0.0.0.0 and [::] are all of this machine".into()),
        host if host.contains(':') && !bracketed => {
            Err("an address of IPv6 goes into brackets: [::1]:5201".into())
        }
        _ => Ok(text.into()),
    }
}

impl CommonArgs {
    /// The name of the interface.
    pub fn interface(&self) -> &str {
        self.interface.as_deref().unwrap_or("lo")
    }
}

impl ReceiveArgs {
    /// Whether there may be more than one connection.
    pub fn is_several(&self) -> bool {
        self.keep_open || self.common.connections > 1
    }

    fn writes_to_stdout(&self) -> bool {
        self.output.is_none() && !self.discard && self.pieces.is_none()
    }
}

impl Command {
    /// Refuses what does not go together.
    pub fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Receive(args) if args.writes_to_stdout() => {
                match (args.is_several(), args.common.json) {
                    (true, _) => Err("several connections want --output or --discard"),
                    (_, true) => {
                        Err("--json is for standard output: with --output, --discard or --pieces")
                    }
                    _ => Ok(()),
                }
            }
            Self::Send(args) if args.input.is_none() && args.common.connections > 1 => {
                Err("several connections want --input")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn what_clap_wants_of_it() {
        Cli::command().debug_assert();
    }

    #[test]
    fn where_a_connection_is_made() {
        for good in [
            "192.0.2.1:5201",
            "[::]:1",
            "[::1%lo]:1",
            "host.example:65535",
            "eth0:0",
        ] {
            assert_eq!(host_and_port(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "host",
            ":5201",
            "::1",
            "::1:5201",
            "host:",
            "host:65536",
            "host:http",
        ] {
            host_and_port(bad).unwrap_err();
        }
    }

    #[test]
    fn which_bar_of_which_device() {
        let bar = Bar::parse("0000:04:00.0/2").unwrap();
        assert_eq!((bar.address.as_str(), bar.number), ("0000:04:00.0", 2));
        assert_eq!(bar.to_string(), "0000:04:00.0/2");
        for bad in ["", "/", "/2", "0000:04:00.0", "a/", "a/6", "a/-1", "a/b"] {
            Bar::parse(bad).unwrap_err();
        }
    }

    #[test]
    fn what_does_not_go_together() {
        const RECEIVE: &str = "receive -l h:1 -i eth0 -q 1";
        const SEND: &str = "send -c h:1 -i eth0";
        let check = |line: &str| {
            let words = format!("devmem-cat {line}");
            let cli = Cli::try_parse_from(words.split(' ')).map_err(drop)?;
            cli.command.check().map_err(drop)
        };
        for (command, options, good) in [
            (RECEIVE, "", true),
            (RECEIVE, " --json", false),
            (RECEIVE, " --json --discard", true),
            (RECEIVE, " --json -o file", true),
            (RECEIVE, " --json --pieces file", true),
            (RECEIVE, " --pieces file -o file", false),
            (RECEIVE, " --pieces file --discard", false),
            (RECEIVE, " --pieces file -n 2", false),
            (RECEIVE, " --pieces file -k", false),
            (RECEIVE, " -n 2", false),
            (RECEIVE, " -n 2 -o file", true),
            (RECEIVE, " -k", false),
            (RECEIVE, " -k --discard", true),
            (RECEIVE, " -k -n 2 --discard", false),
            (RECEIVE, " -n 0 --discard", false),
            (RECEIVE, " -c h:1", false),
            ("flush", "", false),
            ("flush", " 0", false),
            ("flush", " 1", true),
            ("flush", " --json 1", true),
            ("flush", " 1 2", false),
            (RECEIVE, " --kind huge", true),
            (RECEIVE, " --vfio a/2", true),
            (RECEIVE, " --vfio a", false),
            (RECEIVE, " --vfio a/2 --kind huge", false),
            ("receive -l h:1", "", false),
            ("receive -l h:1", " --share a", true),
            ("receive -c h:1", " --share a -n 2 --discard", true),
            (RECEIVE, " --share a", false),
            ("receive -l h:1 -q 1", " --share a", false),
            ("receive -l h:1", " --share a --memory 1", false),
            ("receive -l h:1", " --share a -k --discard", false),
            ("send -c h:1", "", false),
            ("send -c h:1", " --local", false),
            ("send -c h:1", " --share a", true),
            (SEND, " --local", true),
            (SEND, " --share a", true),
            (SEND, "", true),
            (SEND, " --json", true),
            (SEND, " -n 2", false),
            (SEND, " -n 2 -f file", true),
        ] {
            let line = format!("{command}{options}");
            assert_eq!(check(&line).is_ok(), good, "{line}");
        }
    }
}
