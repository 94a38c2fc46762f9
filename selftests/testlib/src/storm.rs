// SPDX-License-Identifier: GPL-2.0

//! Storms: long sequences of random actions, which a seed repeats.
//!
//! `STORM_SEED` is a number, or `random`; without it the seed is the same each time. `STORM_ROUNDS`
//! multiplies the steps of each storm. All that is random about the actions of a step is drawn before
//! the step begins, so the sequence depends on nothing but the seed; how the kernel interleaves them
//! is its own affair.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::mem;
use std::panic;
use std::sync::Barrier;
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use fastrand::Rng;

use crate::aftermath;
use crate::machine;
use crate::report::Outcome;
use crate::report::diag;

/// How long a storm of one round may take.
const TIMEOUT: Duration = Duration::from_secs(240);
const DEFAULT_SEED: u64 = 1;

/// The seed, and by how much storms are longer than usual.
static SETTINGS: LazyLock<(u64, u32)> = LazyLock::new(|| {
    let seed = match env::var("STORM_SEED").as_deref() {
        Err(_) => DEFAULT_SEED,
        Ok("random") => fastrand::u64(..),
        Ok(number) => number.parse().expect("STORM_SEED: a number, or `random`"),
    };
    (seed, scale("STORM_ROUNDS", 1))
});

/// What everything is chosen by that is chosen at random.
pub fn seed() -> u64 {
    SETTINGS.0
}

/// The number that an environment variable holds, or what it is otherwise.
pub fn scale(variable: &str, otherwise: u32) -> u32 {
    env::var(variable).map_or(otherwise, |number| {
        number
            .parse()
            .unwrap_or_else(|_| panic!("{variable}: not a number"))
    })
}

/// The step that is being done, and its number.
static NOW: Mutex<(u32, String)> = Mutex::new((0, String::new()));

/// Tells what the seed is, and in which step of the storm a test fails.
pub(crate) fn tell() {
    let (step, plan) = &*NOW.lock().unwrap_or_else(PoisonError::into_inner);
    if *step > 0 {
        let (seed, rounds) = *SETTINGS;
        diag(format_args!(
            "STORM_SEED={seed} STORM_ROUNDS={rounds}: failed in step {step}: {plan}"
        ));
    }
}

/// How long a storm may take.
pub fn timeout() -> Duration {
    TIMEOUT * SETTINGS.1
}

/// A storm that goes on.
#[derive(Debug)]
pub struct Storm {
    /// What everything random is drawn from.
    pub rng: Rng,
    counts: BTreeMap<&'static str, u64>,
    start: Instant,
}

impl Storm {
    /// How many steps a storm has, by how many it usually has. A slow kernel does an eighth of them.
    pub fn steps(&self, usually: u32) -> u32 {
        (usually * SETTINGS.1).div_ceil(if machine::is_slow() { 8 } else { 1 })
    }

    /// Begins the next step, which is this.
    pub fn step(&mut self, plan: impl fmt::Debug) {
        let mut now = NOW.lock().unwrap_or_else(PoisonError::into_inner);
        *now = (now.0 + 1, format!("{plan:?}"));
    }

    /// Adds to a figure that is shown when the storm is over.
    pub fn count(&mut self, what: &'static str, number: u64) {
        *self.counts.entry(what).or_default() += number;
    }

    /// Shows what the storm was.
    fn figures(&self) {
        let mut now = NOW.lock().unwrap_or_else(PoisonError::into_inner);
        let (step, _) = mem::take(&mut *now);
        let mut figures = format!("{step} steps");
        for (what, number) in &self.counts {
            figures += &format!(", {number} {what}");
        }
        let (seed, rounds) = *SETTINGS;
        let seconds = self.start.elapsed().as_secs_f64();
        diag(format_args!(
            "STORM_SEED={seed} STORM_ROUNDS={rounds}: {figures}, {seconds:.1} s"
        ));
    }

    /// A duration of up to so many milliseconds, short ones more often than long ones.
    pub fn instant(&mut self, milliseconds: u32) -> Duration {
        let most = self.rng.u32(1..=milliseconds * 1000);
        Duration::from_micros(self.rng.u32(0..most).into())
    }
}

/// Runs a storm, and has a look at what it leaves, which has to be nothing.
pub fn run(body: impl FnOnce(&mut Storm) -> Outcome) -> Outcome {
    let mut storm = Storm {
        rng: Rng::with_seed(SETTINGS.0),
        counts: BTreeMap::new(),
        start: Instant::now(),
    };
    *NOW.lock().unwrap_or_else(PoisonError::into_inner) = (0, String::new());
    body(&mut storm)?;
    aftermath::nothing_left()?;
    storm.figures();
    Ok(())
}

/// Does several things at the same instant, each in a thread of its own.
pub fn at_once<F: FnOnce() -> Outcome + Send>(things: impl ExactSizeIterator<Item = F>) -> Outcome {
    let start = Barrier::new(things.len());
    thread::scope(|scope| {
        let threads: Vec<_> = things
            .map(|thing| {
                scope.spawn(|| {
                    start.wait();
                    thing()
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|err| panic::resume_unwind(err))
        })
    })
}
