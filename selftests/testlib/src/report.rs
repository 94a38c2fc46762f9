// SPDX-License-Identifier: GPL-2.0

//! What a test tells: how it ended, what it saw, and diagnostics.

use std::error::Error;
use std::fmt;
use std::io;
use std::io::ErrorKind;
use std::panic::Location;

use devmem::errno_of;

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

/// A test ends early with most errors, and is skipped with some, see `reason_to_skip()`.
impl<E: Error + 'static> From<E> for Stop {
    #[track_caller]
    fn from(err: E) -> Self {
        let any: &dyn Error = &err;
        match any.downcast_ref::<io::Error>() {
            Some(err) if is_reason_to_skip(err) => Self::Skip(err.to_string()),
            _ => Self::Fail(err.to_string(), Location::caller()),
        }
    }
}

/// An error that is a reason to skip.
pub(crate) fn reason_to_skip(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::Unsupported, what.into())
}

/// Whether an error is one. What the kernel does not support has a number, and is an error like any other.
pub(crate) fn is_reason_to_skip(err: &io::Error) -> bool {
    err.kind() == ErrorKind::Unsupported && errno_of(err).is_none()
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
