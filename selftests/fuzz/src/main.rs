// SPDX-License-Identifier: GPL-2.0

//! Runs random sequences of operations on both providers of device memory, and compares what they see.
//!
//! First come the sequences of the corpus, which are what was found before. A sequence that fails is
//! shrunk and saved. The report is KTAP: a test for each sequence of the corpus, and for each block of
//! random ones, or those of them that the command line names. To be run in the guest, as root, once: it
//! chooses the provider by itself.

mod arena;
mod compare;
mod corpus;
mod flow;
mod fuzz;
mod generate;
mod intended;
mod leftovers;
mod op;
mod saw;
mod session;
mod shrink;
mod stats;
mod world;

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use clap::Parser;
use devmem_testlib::grace::Pace;
use devmem_testlib::machine;
use devmem_testlib::provider;
use devmem_testlib::report::diag;

use crate::corpus::Case;
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
    /// Where to save what is found; the directory WORK of a guest if it is not given, or this one
    #[arg(long)]
    save: Option<PathBuf>,
    /// Run only this sequence, and tell what it sees
    #[arg(long, value_name = "FILE", conflicts_with = "tests")]
    replay: Option<PathBuf>,
    /// Tests to run, such as corpus_NAME or random_3; all of them if none is named
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
}

impl Args {
    /// Where to save what is found.
    fn directory(&self) -> PathBuf {
        let work = || env::var_os("WORK").map(PathBuf::from);
        self.save
            .clone()
            .or_else(work)
            .unwrap_or_else(|| ".".into())
    }

    /// How long each block of random sequences is.
    fn extent(&self) -> Extent {
        match self.duration {
            Some(seconds) => Extent::Time(Duration::from_secs(seconds) / BLOCKS),
            None => {
                let usual = if machine::is_slow() { 5_000 } else { 50_000 };
                Extent::Ops(self.ops.unwrap_or(usual).div_ceil(BLOCKS.into()))
            }
        }
    }
}

/// A test.
#[derive(Clone, Copy, Debug)]
enum Test<'c> {
    /// A sequence of the corpus.
    Corpus(&'c Case),
    /// A block of random sequences, by its number.
    Random(u32),
}

impl Test<'_> {
    fn name(self) -> String {
        match self {
            Self::Corpus(case) => format!("corpus_{}", case.name),
            Self::Random(block) => format!("random_{block}"),
        }
    }

    /// Whether grace periods are short: for every second block.
    fn hurries(self) -> bool {
        match self {
            Self::Corpus(_) => false,
            Self::Random(block) => block % 2 == 1,
        }
    }

    /// Runs it; false if it fails. A block takes the same course whatever ran before it.
    fn run(self, fuzzer: &mut Fuzzer, args: &Args) -> io::Result<bool> {
        match self {
            Self::Corpus(case) => fuzzer.case(case),
            Self::Random(block) => {
                let seed = args.seed.wrapping_add(block.into());
                diag(format_args!("seed {seed}"));
                fuzzer.block(seed, args.extent())
            }
        }
    }
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

/// The tests that the command line names, or all of them.
fn chosen<'c>(all: &[Test<'c>], names: &[String]) -> io::Result<Vec<Test<'c>>> {
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    names
        .iter()
        .map(|name| {
            let test = all.iter().find(|test| test.name() == *name);
            test.copied()
                .ok_or_else(|| io::Error::other(format!("no test {name}")))
        })
        .collect()
}

fn run(args: &Args) -> io::Result<bool> {
    println!("KTAP version 1");
    let cases = corpus::load(&args.corpus)?;
    let all: Vec<_> = cases
        .iter()
        .map(Test::Corpus)
        .chain((0..BLOCKS).map(Test::Random))
        .collect();
    let tests = chosen(&all, &args.tests)?;
    println!("1..{}", tests.len());
    provider::prepare()?;
    let mut fuzzer = Fuzzer::new(Some(args.directory()))?;
    let mut pace = Pace::current()?;

    let mut failed = 0;
    for (index, test) in tests.iter().enumerate() {
        let start = Instant::now();
        pace.hurry(test.hurries())?;
        let good = test.run(&mut fuzzer, args)?;
        failed += u32::from(!good);
        diag(format_args!("took {} ms", start.elapsed().as_millis()));
        let verdict = if good { "ok" } else { "not ok" };
        println!("{verdict} {} {}", index + 1, test.name());
    }
    diag(&fuzzer.stats);
    diag(format_args!("{failed} of {} failed", tests.len()));
    Ok(failed == 0)
}
