// SPDX-License-Identifier: GPL-2.0

//! What devices, providers and system calls cost, measured side by side in one boot of the guest.
//!
//! Each module is a series of measurements. All subjects of a series take their turn in each round, so
//! that whatever disturbs one disturbs the others. The host makes medians, ratios, tables and plots of what this
//! prints (`scripts/bench.py`).

pub mod bind;
pub mod calls;
pub mod clock;
pub mod flows;
pub mod layout;
pub mod link;
pub mod memory;
pub mod message;
pub mod provider;
pub mod receive;
pub mod record;
pub mod ring;
pub mod seam;
pub mod transmit;

use std::io;

use clock::Clock;
use record::Samples;

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often each case is measured.
    pub rounds: u32,
    /// Whether to leave out cases that a quick look does without.
    pub quick: bool,
    /// Whether the first case is all, until somebody ends the process.
    pub endless: bool,
    /// What to measure with.
    pub clock: Clock,
}

impl Options {
    /// Of these, the cases to measure.
    fn cases<'c, T>(&self, all: &'c [T]) -> &'c [T] {
        if self.endless { &all[..1] } else { all }
    }

    /// Tells who looks on where they are, once the rounds that warm up are over.
    fn tell_round(&self, round: u32, warm_up: u32) {
        if self.endless && round >= warm_up {
            eprintln!("round {round}");
        }
    }
}

/// A series: measures its cases, in rounds, and hands in what came of it.
pub type Series = fn(&Options, &mut Samples) -> io::Result<()>;

/// All series, by name.
pub const SERIES: &[(&str, Series)] = &[
    ("provider", provider::run),
    ("bind", bind::run),
    ("receive", receive::run),
    ("transmit", transmit::run),
    ("flows", flows::run),
];
