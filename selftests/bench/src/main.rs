// SPDX-License-Identifier: GPL-2.0

//! Measures series of cases, and prints what came of them as lines of JSON. To be run in the guest, as root.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use devmem_bench::SERIES;
use devmem_bench::clock::Clock;
use devmem_bench::options::Options;
use devmem_bench::record::Samples;
use devmem_testlib::provider;

/// Rounds that nobody sees the end of.
const ENDLESS: u32 = 1_000_000;

/// Measures the providers of device memory side by side.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure
    #[arg(required_unless_present = "list", value_parser = PossibleValuesParser::new(SERIES.iter().map(|(name, _)| *name)))]
    series: Vec<String>,
    /// How often to measure each case
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Only the cases that matter most
    #[arg(long)]
    quick: bool,
    /// Only the first case of receive or transmit, again and again, for those who look on
    #[arg(long)]
    endless: bool,
    /// Only tell what series there are
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("devmem-bench: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    if args.list {
        SERIES.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    provider::prepare()?;
    let options = Options {
        rounds: if args.endless { ENDLESS } else { args.rounds },
        endless: args.endless,
        quick: args.quick,
        clock: Clock::new(),
    };
    for (name, series) in SERIES {
        if !args.series.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("{name}: counting {}", options.clock.unit().name());
        let mut samples = Samples::new(name);
        let result = series(&options, &mut samples);
        // What was measured before something went wrong is still of use.
        samples.print()?;
        result.map_err(|err| io::Error::new(err.kind(), format!("{name}: {err}")))?;
    }
    Ok(())
}
