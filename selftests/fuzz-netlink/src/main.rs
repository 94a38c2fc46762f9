// SPDX-License-Identifier: GPL-2.0

//! Malformed netlink requests, control messages, iovecs and socket options, against a live binding with
//! traffic outstanding.
//!
//! The fuzzer is guided by KCOV: inputs that reach instructions which none before them did are what new
//! ones are made of. It starts with the corpus beside it. Every round has a world of its own; when it
//! ends, transfers and binding have to work, and everything has to come back.
//!
//! Environment: `DEVMEM_SEED` (a number), `DURATION` (seconds, instead of a fixed number of inputs),
//! `DEVMEM_CORPUS` (a file that the minimised corpus is written to at the end).

mod corpus;
mod exec;
mod input;
mod kcov;
mod kernel;
mod memory;
mod mutate;
mod request;
mod world;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use devmem_testlib::Outcome;
use devmem_testlib::Provider;
use devmem_testlib::Test;
use devmem_testlib::provider;
use devmem_testlib::report::diag;
use devmem_testlib::runner;
use devmem_testlib::tests;

use crate::corpus::Corpus;
use crate::exec::Executor;
use crate::input::Input;
use crate::kcov::Kcov;
use crate::kernel::Log;
use crate::world::World;

/// Rounds, unless `DURATION` says how long to go on, and inputs of each.
const ROUNDS: usize = 5;
const INPUTS: usize = 50;
/// How long a round takes with `DURATION`.
const ROUND: Duration = Duration::from_secs(30);
/// Of so many inputs, one is made from nothing.
const FRESH: usize = 16;

static FUZZER: LazyLock<Mutex<Fuzzer>> = LazyLock::new(|| Mutex::new(Fuzzer::new()));

/// What lasts from round to round.
struct Fuzzer {
    rng: fastrand::Rng,
    corpus: Corpus,
    inputs: usize,
    log: Option<Log>,
}

impl Fuzzer {
    fn new() -> Self {
        Self {
            rng: fastrand::Rng::with_seed(number_from_env("DEVMEM_SEED").unwrap_or(1)),
            corpus: Corpus::default(),
            inputs: 0,
            log: None,
        }
    }

    /// Of the only thread that runs tests; one that failed leaves it as it is.
    fn get() -> MutexGuard<'static, Self> {
        FUZZER.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the inputs of the corpus, which new ones are made of.
    fn begin(&mut self, round: &mut Round) -> Outcome {
        for input in Corpus::parse(corpus::COMMITTED)? {
            self.try_out(&input, round)?;
        }
        Ok(())
    }

    fn next(&mut self) -> Input {
        let rng = &mut self.rng;
        let pair = (self.corpus.pick(rng), self.corpus.pick(rng));
        match pair {
            (Some(input), Some(other)) if rng.usize(..FRESH) > 0 => {
                mutate::mutate(input, other, rng)
            }
            _ => mutate::random(rng),
        }
    }

    /// Runs an input; returns what it reached. Fails if the kernel complains.
    fn run(&mut self, input: &Input, round: &mut Round) -> io::Result<BTreeSet<u64>> {
        self.inputs += 1;
        remember(input)?;
        let reached = round.executor.run(input, &mut round.world, &round.kcov)?;
        let log = match &mut self.log {
            Some(log) => log,
            none => none.insert(Log::open()?),
        };
        if let Some(complaint) = log.complaint()? {
            diag(format_args!("input {}: {input}", self.inputs));
            for op in input.decode() {
                diag(format_args!("{op:?}"));
            }
            panic!("the kernel says: {complaint}");
        }
        Ok(reached)
    }

    /// Runs an input, and takes it into the corpus if it reaches something new.
    fn try_out(&mut self, input: &Input, round: &mut Round) -> io::Result<()> {
        let reached = self.run(input, round)?;
        let new = self.corpus.new_in(&reached);
        if new.is_empty() {
            return Ok(());
        }
        if corpus_file().is_none() {
            self.corpus.offer(input, reached);
            return Ok(());
        }
        // What is kept for long is worth a few more runs.
        let (input, reached) = self.without_idle_ops(input.clone(), reached, &new, round)?;
        self.corpus.offer(&input, reached);
        Ok(())
    }

    /// Leaves out the operations that `wanted` is not due to.
    fn without_idle_ops(
        &mut self,
        mut input: Input,
        mut reached: BTreeSet<u64>,
        wanted: &BTreeSet<u64>,
        round: &mut Round,
    ) -> io::Result<(Input, BTreeSet<u64>)> {
        for at in (0..input.ops.len()).rev() {
            let mut shorter = input.clone();
            shorter.ops.remove(at);
            let now = self.run(&shorter, round)?;
            if wanted.is_subset(&now) {
                (input, reached) = (shorter, now);
            }
        }
        Ok((input, reached))
    }
}

/// A world, and what is needed to run inputs against it.
struct Round {
    executor: Executor,
    kcov: Kcov,
    world: World,
}

impl Round {
    fn new() -> io::Result<Self> {
        Ok(Self {
            executor: Executor::new()?,
            world: World::new()?,
            kcov: Kcov::start()?,
        })
    }
}

/// Functions of a provider which the corpus reaches at least. The builtin one has few that do not lie
/// in those of the stack.
fn least_functions(provider: Provider) -> usize {
    match provider {
        Provider::Builtin => 4,
        Provider::Module => 40,
    }
}

fn number_from_env(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name} is not a number: {text}"),
    }
}

fn corpus_file() -> Option<PathBuf> {
    env::var_os("DEVMEM_CORPUS").map(Into::into)
}

/// Leaves the input where it can be found if the kernel does not survive it.
fn remember(input: &Input) -> io::Result<()> {
    match env::var_os("WORK") {
        Some(work) => fs::write(
            PathBuf::from(work).join("fuzz_netlink.input"),
            input.to_string(),
        ),
        None => Ok(()),
    }
}

/// Every input of the corpus, before anything else.
fn the_corpus() -> Outcome {
    let mut fuzzer = Fuzzer::get();
    let mut round = Round::new()?;
    fuzzer.begin(&mut round)?;
    let reached = fuzzer.corpus.reached();
    let functions = kernel::functions_of(provider::under_test(), reached)?;
    diag(format_args!(
        "the corpus reaches {} PCs, in {functions} functions of the provider among others",
        reached.len()
    ));
    assert!(
        functions >= least_functions(provider::under_test()),
        "it misses the provider"
    );
    round.world.check()?;
    Ok(())
}

fn new_inputs() -> Outcome {
    let mut fuzzer = Fuzzer::get();
    let mut round = Round::new()?;
    if fuzzer.corpus.len() == 0 {
        // Run alone, without the test that goes before.
        fuzzer.begin(&mut round)?;
    }
    let start = Instant::now();
    let timed = env::var_os("DURATION").is_some();
    let mut count = 0;
    while if timed {
        start.elapsed() < ROUND
    } else {
        count < INPUTS
    } {
        let input = fuzzer.next();
        fuzzer.try_out(&input, &mut round)?;
        count += 1;
    }
    round.world.check()?;
    Ok(())
}

fn main() -> ExitCode {
    let rounds = match number_from_env("DURATION") {
        Some(seconds) => seconds.div_ceil(ROUND.as_secs()) as usize,
        None => ROUNDS,
    };
    let mut tests = tests![the_corpus].to_vec();
    tests.extend((1..=rounds).map(|number| Test {
        name: Box::leak(format!("new_inputs_{number}").into_boxed_str()),
        run: new_inputs,
    }));
    let code = runner::run(&tests);

    let fuzzer = Fuzzer::get();
    diag(format_args!(
        "seed: {}",
        number_from_env("DEVMEM_SEED").unwrap_or(1)
    ));
    diag(format_args!("inputs: {}", fuzzer.inputs));
    diag(format_args!("PCs: {}", fuzzer.corpus.reached().len()));
    diag(format_args!("corpus: {} inputs", fuzzer.corpus.len()));
    // If no test ran there is nothing to save, and what is in the file is kept.
    if let Some(path) = corpus_file().filter(|_| fuzzer.corpus.len() > 0) {
        if let Err(err) = fuzzer.corpus.save(&path) {
            diag(format_args!("{}: {err}", path.display()));
            return ExitCode::FAILURE;
        }
    }
    code
}
