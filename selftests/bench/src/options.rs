// SPDX-License-Identifier: GPL-2.0

//! What the command line says about measuring.

use crate::clock::Clock;

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
    pub fn cases<'c, T>(&self, all: &'c [T]) -> &'c [T] {
        if self.endless { &all[..1] } else { all }
    }

    /// Tells who looks on where they are, once the rounds that warm up are over.
    pub fn tell_round(&self, round: u32, warm_up: u32) {
        if self.endless && round >= warm_up {
            eprintln!("round {round}");
        }
    }
}
