// SPDX-License-Identifier: GPL-2.0

//! Shows device-memory TCP at work: an ordinary sender's file arrives in a dma-buf and is checked.

mod copy;
mod report;
mod sender;
mod transfer;

use std::error::Error;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use devmem::BindRx;
use devmem::DmaBuf;
use devmem::device::Device;
use devmem::netns::Netns;
use devmem::provider;

use crate::report::Report;
use crate::sender::FileDigest;

/// How long the kernel may take to free a binding once everything is closed.
const RELEASE: Duration = Duration::from_secs(5);

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receives a file in device memory, checks it, and compares with a plain recv()
    Run(RunArgs),
    /// Sends a file from one dma-buf into another and checks it, by both backends of the library
    Copy(CopyArgs),
    /// Lists the providers and the live bindings
    Bindings,
}

#[derive(Args)]
struct RunArgs {
    /// The file to send
    #[arg(long)]
    file: PathBuf,
    /// Network namespace of the receiver
    #[arg(long, default_value = "rx")]
    rx_netns: String,
    /// The receiver's interface
    #[arg(long)]
    rx_if: String,
    /// Network namespace of the sender
    #[arg(long, default_value = "tx")]
    tx_netns: String,
    /// The receiver's address
    #[arg(long, default_value = "192.0.2.1")]
    addr: IpAddr,
    /// The receiver's port; the plain transfer uses the next one
    #[arg(long, default_value_t = 5201)]
    port: u16,
    /// The queue to bind to device memory
    #[arg(long)]
    queue: u32,
    /// The queue for the plain transfer
    #[arg(long, default_value_t = 1)]
    plain_queue: u32,
    /// Size of the dma-buf in MiB
    #[arg(long, default_value_t = 16)]
    memory: usize,
}

#[derive(Args)]
struct CopyArgs {
    /// The file to send
    #[arg(long)]
    file: PathBuf,
    /// Network namespace of the receiver
    #[arg(long, default_value = "rx")]
    rx_netns: String,
    /// The receiver's interface
    #[arg(long)]
    rx_if: String,
    /// Network namespace of the sender
    #[arg(long, default_value = "tx")]
    tx_netns: String,
    /// The sender's interface
    #[arg(long)]
    tx_if: String,
    /// The receiver's address
    #[arg(long, default_value = "192.0.2.1")]
    addr: IpAddr,
    /// The receiver's port
    #[arg(long, default_value_t = 5203)]
    port: u16,
    /// The receiver's queue to bind to device memory
    #[arg(long)]
    queue: u32,
    /// Size of each dma-buf in MiB
    #[arg(long, default_value_t = 16)]
    memory: usize,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Copy(args) => copy::run(&args),
        Command::Bindings => bindings(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("devmem-demo: {err}");
            ExitCode::FAILURE
        }
    }
}

fn bindings() -> Result<(), Box<dyn Error>> {
    println!("serving:   {}", provider::serving()?);
    println!("available: {}", provider::available()?.join(" "));
    for binding in provider::bindings()? {
        println!(
            "binding {}: {} {} {}, {} of {} buffers of {} bytes in use",
            binding.id,
            binding.provider,
            binding.ifname.as_deref().unwrap_or("(device gone)"),
            binding.direction,
            binding.in_use,
            binding.buffers,
            binding.buffer_size,
        );
    }
    Ok(())
}

fn run(args: &RunArgs) -> Result<(), Box<dyn Error>> {
    let plain_port = args
        .port
        .checked_add(1)
        .ok_or("there is no port after --port")?;
    if args.queue == args.plain_queue {
        return Err("--plain-queue has to be another queue than --queue".into());
    }
    let rx = Netns::named(&args.rx_netns)
        .map_err(|err| format!("network namespace {}: {err}", args.rx_netns))?;
    let tx = Netns::named(&args.tx_netns)
        .map_err(|err| format!("network namespace {}: {err}", args.tx_netns))?;
    let file = args.file.clone();
    let digest = thread::spawn(move || FileDigest::of(&file));

    let to = SocketAddr::new(args.addr, args.port);
    let plain_to = SocketAddr::new(args.addr, plain_port);
    let memory = DmaBuf::udmabuf(args.memory << 20)?;
    let mapping = memory.map()?;

    let device = Device::prepare(&rx, &args.rx_if)?;
    let _rule = device.steer(to, args.queue)?;
    let _plain_rule = device.steer(plain_to, args.plain_queue)?;
    let binding = rx
        .run(|| {
            Ok(BindRx::new(device.ifindex())
                .queue(args.queue)
                .bind(&memory))
        })?
        .map_err(|err| format!("binding queue {} of {}: {err}", args.queue, args.rx_if))?;
    let provider = provider_of(binding.id())?;

    let sent = digest
        .join()
        .map_err(|_| "the thread that reads the file panicked")??;
    let send = |to| transfer::accept(&rx, &tx, &args.file, to);
    let checked = send(to)?.into_device_memory(Some(&mapping))?;
    let timed = send(to)?.into_device_memory(None)?;
    let plain = send(plain_to)?.into_host_memory()?;

    let id = binding.id();
    drop((binding, mapping, memory));
    let report = Report {
        provider,
        sent,
        checked,
        timed,
        plain,
        in_use: in_use_at_the_end(id)?,
    };
    println!("{report}");
    report.verdict()
}

/// The provider that serves a binding.
fn provider_of(id: u32) -> Result<String, Box<dyn Error>> {
    provider::bindings()?
        .into_iter()
        .find(|binding| binding.id == id)
        .map(|binding| binding.provider)
        .ok_or_else(|| format!("the kernel does not list binding {id}").into())
}

/// Buffers of an unbound binding that nobody has returned after a while; none if the kernel freed it.
fn in_use_at_the_end(id: u32) -> Result<Option<u64>, Box<dyn Error>> {
    let start = Instant::now();
    loop {
        let left = provider::bindings()?
            .into_iter()
            .find(|binding| binding.id == id);
        match left {
            None => return Ok(None),
            Some(binding) if start.elapsed() > RELEASE => return Ok(Some(binding.in_use)),
            Some(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
