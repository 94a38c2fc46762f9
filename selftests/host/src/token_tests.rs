// SPDX-License-Identifier: GPL-2.0

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};

use crate::{
    sequences::{bound, each},
    token::{Range, Reserved, Table, BATCH, MAX_DONTNEED_FRAGS},
};

/// The token table of a socket as the kernel has it: the lowest free number, from 1.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u32, Option<u64>>,
    limit: usize,
    /// References to each frag.
    references: BTreeMap<u64, usize>,
    sections: usize,
}

impl Model {
    fn with_room_for(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    fn lock(&mut self) -> &mut Self {
        self.sections += 1;
        self
    }

    fn take(&mut self, token: u32) -> Option<u64> {
        let frag = (*self.entries.get(&token)?)?;
        self.entries.remove(&token);
        *self.references.get_mut(&frag).unwrap() -= 1;
        Some(frag)
    }

    fn committed(&self) -> Vec<(u32, u64)> {
        self.entries
            .iter()
            .filter_map(|(&token, &frag)| Some((token, frag?)))
            .collect()
    }
}

impl Table<u64> for Model {
    type Error = &'static str;

    fn reserve(&mut self) -> Result<u32, &'static str> {
        if self.entries.len() == self.limit {
            return Err("full");
        }
        let token = (1..)
            .find(|token| !self.entries.contains_key(token))
            .unwrap();
        self.entries.insert(token, None);
        Ok(token)
    }

    fn commit(&mut self, token: u32, frag: u64) {
        let slot = self.entries.get_mut(&token).expect("was reserved");
        assert_eq!(
            slot.replace(frag),
            None,
            "token {token} stood for something"
        );
        *self.references.entry(frag).or_default() += 1;
    }

    fn cancel(&mut self, token: u32) {
        assert_eq!(
            self.entries.remove(&token),
            Some(None),
            "token {token} was not reserved"
        );
    }
}

#[test]
fn used_tokens_stay_and_others_go() {
    let mut table = Model::with_room_for(100);
    let mut reserved = Reserved::new();

    reserved.refill(table.lock(), 3).unwrap();
    let first = reserved.peek().unwrap();
    reserved.bind(70);
    let second = reserved.peek().unwrap();
    reserved.bind(71);
    reserved.settle(table.lock());

    assert!(reserved.is_empty());
    assert_eq!(table.committed(), [(first, 70), (second, 71)]);
    assert_eq!(table.entries.len(), 2);
    assert_eq!(table.sections, 2);
}

#[test]
fn a_token_is_there_until_it_is_bound() {
    let mut table = Model::with_room_for(100);
    let mut reserved = Reserved::<u64>::new();

    assert_eq!(reserved.peek(), None);
    reserved.refill(&mut table, 1).unwrap();
    assert_eq!(reserved.peek(), reserved.peek());
    assert!(reserved.peek().is_some());
    reserved.bind(1);
    assert_eq!(reserved.peek(), None);
    reserved.settle(&mut table);
}

#[test]
fn not_more_than_a_batch() {
    let mut table = Model::with_room_for(1000);
    let mut reserved = Reserved::<u64>::new();

    reserved.refill(&mut table, 1000).unwrap();
    assert_eq!(table.entries.len(), BATCH);
    reserved.settle(&mut table);
    assert!(table.entries.is_empty());
}

#[test]
fn fewer_than_wanted_will_do() {
    let mut table = Model::with_room_for(2);
    let mut reserved = Reserved::new();

    reserved.refill(&mut table, 5).unwrap();
    reserved.bind(7);
    reserved.bind(8);
    assert_eq!(reserved.peek(), None);
    // What was used stays, so there is no room now.
    assert_eq!(reserved.refill(&mut table, 1), Err("full"));
    assert_eq!(table.committed().len(), 2);
    assert!(reserved.is_empty());
}

#[test]
fn a_reserved_token_cannot_be_given_back() {
    let mut table = Model::with_room_for(10);
    let mut reserved = Reserved::new();

    reserved.refill(&mut table, 1).unwrap();
    let token = reserved.peek().unwrap();
    assert_eq!(table.take(token), None);
    reserved.bind(5);
    assert_eq!(table.take(token), None);
    reserved.settle(&mut table);
    assert_eq!(table.take(token), Some(5));
    assert_eq!(table.take(token), None);
}

#[test]
fn ranges_that_wrap() {
    let wraps = |start, count| Range { start, count }.wraps();

    assert!(!wraps(0, 0));
    assert!(!wraps(u32::MAX, 0));
    assert!(!wraps(u32::MAX, 1));
    assert!(!wraps(0, u32::MAX));
    assert!(!wraps(1, u32::MAX));
    assert!(wraps(2, u32::MAX));
    assert!(wraps(u32::MAX, 2));
    assert!(wraps(u32::MAX, u32::MAX));
}

#[test]
fn ranges_give_their_tokens_in_order() {
    let ranges = [(5, 2), (1, 0), (u32::MAX, 1), (5, 1)];
    let ranges = ranges.map(|(start, count)| Range { start, count });

    let tokens: Vec<_> = Range::tokens(ranges.into_iter()).collect();
    assert_eq!(tokens, [5, 6, u32::MAX, 5]);
}

#[test]
fn ranges_end_at_the_limit() {
    let ranges = [
        Range {
            start: 1,
            count: 1000,
        },
        Range {
            start: 5000,
            count: u32::MAX - 5000,
        },
    ];

    let tokens: Vec<_> = Range::tokens(ranges.into_iter()).collect();
    assert_eq!(tokens.len(), MAX_DONTNEED_FRAGS as usize);
    assert_eq!(tokens[1000], 5000);
    assert_eq!(tokens.last(), Some(&5023));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Refill(usize),
    Bind,
    Settle,
    /// User space gives a token back that it was told, or that it guesses.
    Take(u32),
    /// A new `recvmsg()`, after the last one has settled.
    Call,
}

/// What the table has to hold: tokens that were bound are told, and stand for their frag once they
/// are settled.
fn check_steps(limit: usize, steps: &[Step]) {
    let mut table = Model::with_room_for(limit);
    let mut reserved = Reserved::new();
    let mut bound: Vec<(u32, u64)> = Vec::new();
    let mut committed = BTreeMap::new();
    let mut frag = 0;

    for &step in steps {
        match step {
            Step::Refill(want) => {
                committed.extend(bound.drain(..));
                let room = limit - committed.len();
                let result = reserved.refill(&mut table, want);
                // No token is reserved that was not asked for, nor refused if there is one.
                assert_eq!(result.is_err(), want != 0 && room == 0, "{steps:?}");
                let count = want.min(BATCH).min(room);
                assert_eq!(table.entries.len(), committed.len() + count, "{steps:?}");
                assert_eq!(reserved.is_empty(), count == 0);
            }
            Step::Bind => {
                let token = reserved.peek();
                reserved.bind(frag);
                bound.extend(token.map(|token| (token, frag)));
                frag += 1;
            }
            Step::Settle | Step::Call => {
                reserved.settle(&mut table);
                committed.extend(bound.drain(..));
                assert!(reserved.is_empty());
                assert_eq!(table.entries.len(), committed.len(), "{steps:?}");
                if matches!(step, Step::Call) {
                    reserved = Reserved::new();
                }
            }
            Step::Take(token) => assert_eq!(table.take(token), committed.remove(&token)),
        }
        assert!(table
            .committed()
            .into_iter()
            .eq(committed.iter().map(|(&t, &f)| (t, f))));
    }
    reserved.settle(&mut table);
}

#[test]
fn all_short_sequences() {
    let steps = [
        Step::Refill(1),
        Step::Refill(3),
        Step::Bind,
        Step::Settle,
        Step::Take(1),
        Step::Take(2),
        Step::Call,
    ];
    for limit in [0, 1, 2, 5] {
        each(&steps, bound(6, 3), |steps| check_steps(limit, steps));
    }
}

/// A batch can be used to its end, and not further.
#[test]
fn all_of_a_batch() {
    for used in 0..=BATCH + 2 {
        let mut table = Model::with_room_for(100);
        let mut reserved = Reserved::new();

        reserved.refill(&mut table, usize::MAX).unwrap();
        for frag in 0..used as u64 {
            assert_eq!(reserved.peek().is_some(), frag < BATCH as u64);
            reserved.bind(frag);
        }
        reserved.settle(&mut table);
        assert_eq!(table.committed().len(), used.min(BATCH));
        assert_eq!(table.entries.len(), used.min(BATCH));
    }
}

proptest! {
    #[test]
    fn any_ranges(ranges in vec((any::<u32>(), any::<u32>(), 0u32..32), 0..10)) {
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(start, count, shift)| Range { start, count: count >> shift })
            .collect();
        for range in &ranges {
            let past = u64::from(range.start) + u64::from(range.count);
            prop_assert_eq!(range.wraps(), past > 1 << 32);
        }

        let sound: Vec<_> = ranges.into_iter().filter(|range| !range.wraps()).collect();
        let expected = sound
            .iter()
            .flat_map(|range| (0..range.count).map(move |i| range.start.wrapping_add(i)))
            .take(1024);
        prop_assert!(Range::tokens(sound.iter().copied()).eq(expected));
    }

    /// Readers that fail anywhere leave exactly the tokens whose cmsgs they got, with a reference
    /// each.
    #[test]
    fn nothing_leaks(
        limit in 0usize..60,
        calls in vec(vec((1usize..20, 0usize..20), 0..5), 0..8),
    ) {
        let mut table = Model::with_room_for(limit);
        let mut told = Vec::new();
        let mut frag = 0;

        for refills in calls {
            let mut reserved = Reserved::new();
            for (want, used) in refills {
                if reserved.refill(&mut table, want).is_err() {
                    prop_assert_eq!(table.entries.len(), limit);
                    break;
                }
                for _ in 0..used {
                    let Some(token) = reserved.peek() else { break };
                    reserved.bind(frag);
                    told.push((token, frag));
                    frag += 1;
                }
            }
            reserved.settle(&mut table);
        }

        told.sort_unstable();
        prop_assert_eq!(table.committed(), told.clone());
        prop_assert_eq!(table.entries.len(), told.len());
        for (token, frag) in told {
            prop_assert_eq!(table.take(token), Some(frag));
        }
        prop_assert!(table.references.values().all(|&count| count == 0));
    }
}
