// SPDX-License-Identifier: GPL-2.0

//! Measures what the seam costs on this kernel, and prints that as lines of JSON. To be run in the guest, as
//! root, with `DEVMEM_PROVIDER=builtin`.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use devmem_bench::clock::Clock;
use devmem_bench::options::Options;
use devmem_bench::record::Samples;
use devmem_bench::seam;
use devmem_testlib::Provider;
use devmem_testlib::provider;

/// Measures the kernel's own provider, and who uses none.
#[derive(Debug, Parser)]
struct Args {
    /// How often to measure each case
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("bench-seam: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    if provider::prepare()? != Provider::Builtin {
        return Err(io::Error::other(
            "only the kernel's own provider is on both sides of the seam",
        ));
    }
    let options = Options {
        rounds: args.rounds,
        endless: false,
        quick: false,
        clock: Clock::new(),
    };
    let mut samples = Samples::new("seam");
    seam::run(&options, &mut samples)?;
    samples.print()
}
