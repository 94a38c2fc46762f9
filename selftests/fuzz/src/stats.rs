// SPDX-License-Identifier: GPL-2.0

//! Counts what was done.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use std::time::Instant;

use crate::compare::Verdict;
use crate::op::Op;
use crate::saw::Saw;
use crate::saw::Transcript;

/// Operations of a kind, on one provider.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: u64,
    /// Those that had nothing to do.
    nothing: u64,
    /// Those that failed.
    failed: u64,
    spent: Duration,
}

/// What was done so far.
#[derive(Debug)]
pub struct Stats {
    start: Instant,
    sequences: u64,
    differences: u64,
    /// What was spent on putting things back.
    ends: Duration,
    kinds: BTreeMap<&'static str, Count>,
    intended: BTreeMap<&'static str, u64>,
}

impl Stats {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            sequences: 0,
            differences: 0,
            ends: Duration::ZERO,
            kinds: BTreeMap::new(),
            intended: BTreeMap::new(),
        }
    }

    /// Counts a sequence.
    pub fn add(&mut self, ops: &[Op], transcript: &Transcript, verdict: &Verdict) {
        self.sequences += 1;
        self.ends += transcript.spent.last().copied().unwrap_or_default();
        let steps = transcript.steps.iter().zip(&transcript.spent);
        for (op, (saw, &spent)) in ops.iter().zip(steps) {
            let count = self.kinds.entry(op.kind()).or_default();
            let result = match saw {
                Saw::Call(result) => result.is_err(),
                Saw::Received(received) => received.result.is_err(),
                Saw::Nothing | Saw::Completed { .. } => false,
            };
            count.all += 1;
            count.spent += spent;
            count.nothing += u64::from(*saw == Saw::Nothing);
            count.failed += u64::from(result);
        }
        match verdict {
            Verdict::Same => (),
            Verdict::Intended(rule) => *self.intended.entry(rule.name).or_insert(0) += 1,
            Verdict::Different(_) => self.differences += 1,
        }
    }

    /// Operations on each provider.
    pub fn ops(&self) -> u64 {
        self.kinds.values().map(|count| count.all).sum()
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.start.elapsed().as_secs_f64();
        writeln!(
            f,
            "{} operations on each provider in {} sequences, {seconds:.0} s, {:.0} operations a second",
            self.ops(),
            self.sequences,
            2.0 * self.ops() as f64 / seconds
        )?;
        writeln!(f, "{} sequences differ", self.differences)?;
        for (rule, count) in &self.intended {
            writeln!(f, "{count} sequences end at the intended difference {rule}")?;
        }
        writeln!(
            f,
            "{:20} {:>9} {:>9} {:>9} {:>9}",
            "", "all", "failed", "no effect", "us each"
        )?;
        for (kind, count) in &self.kinds {
            writeln!(
                f,
                "{kind:20} {:9} {:9} {:9} {:9}",
                count.all,
                count.failed,
                count.nothing,
                count.spent.as_micros() / u128::from(count.all)
            )?;
        }
        let each = self.ends.as_micros() / u128::from(self.sequences.max(1));
        writeln!(
            f,
            "{:20} {:9} {:>9} {:>9} {each:9}",
            "(end)", self.sequences, "", ""
        )
    }
}
