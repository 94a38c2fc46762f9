// SPDX-License-Identifier: GPL-2.0

//! What a test tells: how it ended, what it saw, and diagnostics.

use std::env;
use std::error::Error;
use std::fmt;
use std::panic::Location;
use std::sync::LazyLock;

use crate::needs;

/// How a test ended.
pub type Outcome = Result<(), Stop>;

/// Why a test ended early.
#[derive(Debug)]
pub enum Stop {
    /// It does not apply here, for this reason.
    Skip(String),
    /// It failed with this error, at this place.
    Fail(String, &'static Location<'static>),
}

/// Ends a test which does not apply.
pub fn skip(reason: impl fmt::Display) -> Outcome {
    Err(Stop::Skip(reason.to_string()))
}

impl<E: Error> From<E> for Stop {
    #[track_caller]
    fn from(err: E) -> Self {
        Self::Fail(err.to_string(), Location::caller())
    }
}

/// Prints a line of diagnostics.
pub fn diag(what: impl fmt::Display) {
    for line in what.to_string().lines() {
        println!("# {line}");
    }
}

/// Tells what the test saw: each provider has to show the same.
///
/// The host compares these lines, test by test, between the runs on the two providers. They must
/// not depend on time or chance: numbers of the kernel's own choice (ports, tokens, offsets, ids) have
/// to be left out or renumbered.
pub fn observe(what: impl fmt::Display) {
    for line in what.to_string().lines() {
        println!("# saw: {line}");
    }
}

/// Whether the kernel is one that looks for bugs, and takes its time: `GUEST` names it, or its configuration
/// tells.
pub fn is_slow() -> bool {
    static BY_OPTIONS: LazyLock<bool> = LazyLock::new(|| {
        ["KASAN", "KCSAN", "PROVE_LOCKING"]
            .iter()
            .any(|option| needs::option(option) == Some(true))
    });
    match env::var("GUEST") {
        Ok(guest) => guest != "fast",
        Err(_) => *BY_OPTIONS,
    }
}
