// SPDX-License-Identifier: GPL-2.0

//! Inputs that each reach what none before it did.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::input::Input;
use crate::input::Malformed;

/// The corpus beside the fuzzer.
pub const COMMITTED: &str = include_str!("../corpus.txt");

/// An input, and what it reaches.
#[derive(Clone, Debug)]
struct Entry {
    input: Input,
    reached: BTreeSet<u64>,
}

/// The inputs, and what they reach together.
#[derive(Debug, Default)]
pub struct Corpus {
    entries: Vec<Entry>,
    reached: BTreeSet<u64>,
}

impl Corpus {
    /// The inputs of a file: one a line, but for comments.
    pub fn parse(text: &str) -> Result<Vec<Input>, Malformed> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::parse)
            .collect()
    }

    /// Takes an input in, if it reaches something new.
    pub fn offer(&mut self, input: &Input, reached: BTreeSet<u64>) -> bool {
        let known = self.reached.len();
        self.reached.extend(&reached);
        let new = self.reached.len() > known;
        if new {
            self.entries.push(Entry {
                input: input.clone(),
                reached,
            });
        }
        new
    }

    /// What of `reached` is new.
    pub fn new_in(&self, reached: &BTreeSet<u64>) -> BTreeSet<u64> {
        reached.difference(&self.reached).copied().collect()
    }

    /// Any of the inputs.
    pub fn pick(&self, rng: &mut fastrand::Rng) -> Option<&Input> {
        rng.choice(&self.entries).map(|entry| &entry.input)
    }

    /// How many inputs there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// What all inputs together reach.
    pub fn reached(&self) -> &BTreeSet<u64> {
        &self.reached
    }

    /// Few of the inputs, which reach as much: always the one that adds most, the shorter one of two.
    fn minimised(&self) -> Vec<&Input> {
        let mut missing = self.reached.clone();
        let mut left: Vec<_> = self.entries.iter().collect();
        let mut chosen = Vec::new();
        while !missing.is_empty() {
            let gain = |entry: &Entry| entry.reached.intersection(&missing).count();
            let length = |entry: &Entry| entry.input.ops.iter().map(Vec::len).sum::<usize>();
            let Some(best) = (0..left.len())
                .max_by_key(|&at| (gain(left[at]), std::cmp::Reverse(length(left[at]))))
            else {
                break;
            };
            let entry = left.swap_remove(best);
            missing.retain(|pc| !entry.reached.contains(pc));
            chosen.push(&entry.input);
        }
        chosen
    }

    /// Writes the minimised corpus.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut text = String::from(
            "# SPDX-License-Identifier: GPL-2.0\n\
             #\n\
             # Inputs of fuzz_netlink, one a line, which together reach all that was ever reached.\n",
        );
        for input in self.minimised() {
            text += &format!("{input}\n");
        }
        fs::write(path, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(line: &str) -> Input {
        line.parse().unwrap()
    }

    #[test]
    fn what_reaches_nothing_new_is_not_taken() {
        let mut corpus = Corpus::default();
        assert!(corpus.offer(&input("x00"), [1, 2].into()));
        assert!(!corpus.offer(&input("x01"), [2].into()));
        assert!(corpus.offer(&input("x02"), [2, 3].into()));
        assert_eq!((corpus.len(), corpus.reached().len()), (2, 3));
    }

    #[test]
    fn what_others_reach_is_left_out() {
        let mut corpus = Corpus::default();
        corpus.offer(&input("x00"), [1].into());
        corpus.offer(&input("x01"), [1, 2].into());
        corpus.offer(&input("x02"), [1, 2, 3].into());
        assert_eq!(corpus.minimised(), [&input("x02")]);
    }

    #[test]
    fn the_committed_corpus_is_well_formed() {
        let inputs = Corpus::parse(COMMITTED).unwrap();
        assert!(!inputs.is_empty());
    }
}
