// SPDX-License-Identifier: GPL-2.0

//! Runs random sequences of operations on both providers of device memory, and compares what they see.
//!
//! First come the sequences of the corpus, which are what was found before. A sequence that fails is
//! shrunk and saved. The report is KTAP: a test for each sequence of the corpus, and for each block of
//! random ones. To be run in the guest, as root, once: it chooses the provider by itself.

mod arena;
mod compare;
mod corpus;
mod flow;
mod fuzz;
mod generate;
mod intended;
mod leftovers;
mod op;
mod receive;
mod saw;
mod session;
mod shrink;
mod stats;
mod world;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use devmem_kselftest::grace::Pace;
use devmem_kselftest::ktap;
use devmem_kselftest::ktap::diag;
use devmem_kselftest::provider;

use crate::fuzz::Extent;
use crate::fuzz::Fuzzer;

/// How many tests the random sequences are.
const BLOCKS: u32 = 10;

/// Differential fuzzer of the providers of device memory.
#[derive(Debug, Parser)]
struct Args {
    /// What random sequences begin with
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many operations, on each provider; 50 000 if it is not given, or 5000 where all is slow
    #[arg(long)]
    ops: Option<u64>,
    /// For so many seconds instead
    #[arg(long, value_name = "SECONDS")]
    duration: Option<u64>,
    /// Sequences to run first
    #[arg(long, default_value = "selftests/fuzz/corpus")]
    corpus: PathBuf,
    /// Where to save what is found
    #[arg(long, default_value = ".")]
    save: PathBuf,
    /// Run only this sequence, and tell what it sees
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    precise_sleep();
    let all_well = match args.replay.clone() {
        Some(path) => replay(&path),
        None => run(&args),
    };
    match all_well {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            println!("Bail out! {err}");
            ExitCode::FAILURE
        }
    }
}

/// Has short sleeps be short: by default they may be 50 us longer.
fn precise_sleep() {
    // SAFETY: Takes no pointers.
    let ret = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    // It refuses no slack.
    assert_eq!(ret, 0, "PR_SET_TIMERSLACK");
}

fn replay(path: &std::path::Path) -> io::Result<bool> {
    let case = corpus::load_one(path)?;
    provider::prepare()?;
    Fuzzer::new(None)?.tell(&case.ops)
}

fn run(args: &Args) -> io::Result<bool> {
    let cases = corpus::load(&args.corpus)?;
    println!("KTAP version 1");
    println!("1..{}", cases.len() + BLOCKS as usize);
    provider::prepare()?;
    let mut fuzzer = Fuzzer::new(Some(args.save.clone()))?;

    let mut number = 0;
    let mut failed = 0;
    let mut verdict = |name: &str, good: bool| {
        number += 1;
        failed += u32::from(!good);
        println!("{}ok {number} {name}", if good { "" } else { "not " });
    };
    for case in &cases {
        let good = fuzzer.case(case)?;
        verdict(&format!("corpus_{}", case.name), good);
    }
    let extent = match args.duration {
        Some(seconds) => Extent::Time(Duration::from_secs(seconds) / BLOCKS),
        None => {
            let usual = if ktap::is_slow() { 5_000 } else { 50_000 };
            Extent::Ops(args.ops.unwrap_or(usual).div_ceil(BLOCKS.into()))
        }
    };
    let mut pace = Pace::current()?;
    for block in 0..BLOCKS {
        pace.hurry(block % 2 == 1)?;
        let seed = args.seed.wrapping_add(block.into());
        diag(format_args!("seed {seed}"));
        let good = fuzzer.block(seed, extent)?;
        verdict(&format!("random_{block}"), good);
    }
    diag(&fuzzer.stats);
    diag(format_args!("{failed} of {number} failed"));
    Ok(failed == 0)
}
