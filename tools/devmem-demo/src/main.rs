// SPDX-License-Identifier: GPL-2.0

//! Shows device-memory TCP at work: an ordinary sender's file arrives in a dma-buf and is checked.

// A number that does not fit is an error, never cut.
#![warn(clippy::cast_possible_truncation)]
#![warn(clippy::cast_possible_wrap)]
#![warn(clippy::cast_sign_loss)]

mod args;
mod binding;
mod copy;
mod keep;
mod log;
mod report;
mod sender;
mod transfer;

use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;

use clap::Parser;
use clap::Subcommand;
use devmem::DmaBuf;
use devmem::device::Device;
use devmem::provider;

use crate::args::CopyArgs;
use crate::args::KeepArgs;
use crate::args::RunArgs;
use crate::binding::in_use_at_the_end;
use crate::binding::provider_of;
use crate::report::Report;
use crate::sender::FileDigest;

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
    /// Receives a file into the memory of a PCI device, leaves it there, and says where it is
    Keep(KeepArgs),
    /// Lists the providers and the live bindings
    Bindings,
}

fn main() -> ExitCode {
    log::to_stderr();
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Copy(args) => copy::run(&args),
        Command::Keep(args) => keep::run(&args),
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
    if args.ends.queue == args.plain_queue {
        return Err("--plain-queue has to be another queue than --queue".into());
    }
    let (rx, tx) = args.ends.namespaces()?;
    let file = args.ends.file.clone();
    let digest = thread::spawn(move || FileDigest::of(&file));

    let to = SocketAddr::new(args.ends.addr, args.port);
    let plain_to = SocketAddr::new(args.ends.addr, plain_port);
    let memory = DmaBuf::udmabuf(args::mib(args.ends.memory)?)?;
    let mapping = memory.map()?;

    let device = Device::prepare(&rx, &args.ends.rx_if)?;
    let _rule = device.steer(to, args.ends.queue)?;
    let _plain_rule = device.steer(plain_to, args.plain_queue)?;
    let binding = binding::bind(&rx, &device, &args.ends, &memory)?;
    let provider = provider_of(binding.id())?;

    let sent = digest
        .join()
        .map_err(|_| "the thread that reads the file panicked")??;
    let send = |to| transfer::accept(&rx, &tx, &args.ends.file, to);
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
