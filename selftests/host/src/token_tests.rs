// SPDX-License-Identifier: GPL-2.0

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};

use proptest::{collection::vec, prelude::*};

use crate::{
    sequences::{bound, each},
    slot_array::SlotArray,
    sys::token::{
        take_back, Held, Range, Take, Taken, BASE, BATCH, MAX_DONTNEED_FRAGS, RETURN_BATCH, RUN_MAX,
    },
};

/// A token table as it is meant: what each token stands for, if it is used.
#[derive(Clone, Default)]
struct Model(Vec<Option<Held>>);

impl Model {
    /// The free tokens, lowest first.
    fn free(&self) -> Vec<u32> {
        let slots = self.0.iter().zip(BASE..);
        slots
            .filter_map(|(used, token)| used.is_none().then_some(token))
            .collect()
    }

    fn take(&mut self, token: u32) -> Option<Held> {
        let slot = token.checked_sub(BASE)?;
        self.0.get_mut(slot as usize)?.take()
    }

    fn used(&self) -> u32 {
        self.0.iter().flatten().map(|held| held.count).sum()
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A reader learns tokens that are free. It may commit some of them, later.
    Peek,
    Commit,
    /// The same for several net_iovs.
    CommitRun(u32),
    /// It goes on with what a slot stands for.
    Add(u32, u32),
    /// User space gives a slot's token back, be it one that it was told or one that it guesses.
    Take(u32),
    /// The same, and the core looks after it.
    TakeInC(u32),
    Grow,
}

/// The array, the model, and the tokens that a reader knows but has not committed.
#[derive(Clone, Default)]
struct Run {
    array: SlotArray,
    model: Model,
    peeked: VecDeque<u32>,
    netmems: usize,
}

impl Run {
    fn of_size(size: usize) -> Self {
        Self {
            array: SlotArray::of_size(size),
            model: Model(vec![None; size]),
            ..Self::default()
        }
    }

    /// One in which only some slots are free.
    fn with_free(size: usize, free: &[u32]) -> Self {
        let mut run = Self::of_size(size);

        for _ in 0..size {
            run.step(Step::Commit);
        }
        for &slot in free {
            run.step(Step::Take(slot));
        }
        run
    }

    /// The next ones that are free, up to `most`.
    fn peek(&mut self, most: usize) -> Vec<u32> {
        let mut tokens = vec![0; most];
        let count = self.array.locked().peek(&mut tokens);

        assert!(tokens[count..].iter().all(|&token| token == 0));
        tokens.truncate(count);
        tokens
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Peek => self.peeked = self.peek(BATCH).into(),
            Step::Commit => self.commit(1),
            Step::CommitRun(count) => self.commit(count),
            Step::Add(slot, count) => self.add(slot, count),
            Step::Take(slot) => {
                let token = BASE + slot;
                let taken = self.array.locked().take(token);
                assert_eq!(taken, self.model.take(token));
            }
            Step::TakeInC(slot) => {
                let token = BASE + slot;
                let taken = self.array.take_in_c(token);
                assert_eq!(taken, self.model.take(token));
            }
            Step::Grow => {
                self.array.grow();
                self.model.0.resize(self.array.slots.len(), None);
            }
        }
    }

    /// Whatever came back, or was added, since the reader looked: its tokens are free.
    fn commit(&mut self, count: u32) {
        let next = self.peeked.pop_front();
        let Some(token) = next.or_else(|| self.peek(1).first().copied()) else {
            return;
        };
        self.netmems += 1;
        let netmem = self.netmems << 2 | 1;
        let held = Held { netmem, count };

        let mut slots = self.array.locked();
        let committed = match count {
            1 => slots.commit(token, netmem),
            _ => slots.commit_run(token, held),
        };
        assert!(committed, "{token} is not free");
        let old = self.model.0[(token - BASE) as usize].replace(held);
        assert_eq!(old, None, "{token} stood for something");
    }

    /// What a slot stands for becomes more, unless that is nothing, or would be too much.
    fn add(&mut self, slot: u32, count: u32) {
        let model = self.model.0.get_mut(slot as usize).and_then(Option::as_mut);
        let more = model.filter(|held| held.count + count <= RUN_MAX);
        let added = self.array.locked().add(BASE + slot, count);

        assert_eq!(added, more.is_some());
        if let Some(held) = more {
            held.count += count;
        }
    }

    fn check(&mut self) {
        let free = self.model.free();

        self.array.check();
        assert_eq!(self.array.used, self.model.used());
        assert_eq!(self.array.slots.len(), self.model.0.len(), "slots are lost");
        for (token, &held) in (BASE..).zip(&self.model.0) {
            assert_eq!(self.array.locked().held(token), held, "{token}");
        }
        for most in [0, 1, 2, BATCH, free.len(), free.len() + 1] {
            let told = &free[..most.min(free.len())];
            assert_eq!(self.peek(most), told, "up to {most}");
        }
        self.check_guesses(&free);
    }

    /// Who returns what he does not have changes nothing; nor does who commits what is not free.
    fn check_guesses(&mut self, free: &[u32]) {
        let before = self.array.clone();
        let end = BASE + self.model.0.len() as u32;
        let others = [0, 1, BASE - 1, end, end + 1, end + 63, end + 64, u32::MAX];

        for token in free.iter().copied().take(70).chain(others) {
            assert_eq!(self.array.locked().take(token), None, "{token}");
            assert_eq!(self.array.take_in_c(token), None, "{token}");
            assert_eq!(self.array.locked().held(token), None, "{token}");
            assert!(!self.array.locked().add(token, 1), "{token}");
        }
        let used = (BASE..end).filter(|token| !free.contains(token)).take(70);
        for token in used.chain([end, end + 1, end + 63, end + 64, u32::MAX]) {
            assert!(!self.array.locked().commit(token, 1), "{token}");
        }
        assert_eq!(self.array, before);
    }

    /// Each used token comes back with what it stands for, once; then all are free.
    fn return_all(&mut self) {
        for (slot, token) in (0..self.model.0.len()).zip(BASE..) {
            let held = self.model.0[slot].take();
            assert_eq!(self.array.locked().take(token), held);
            assert_eq!(self.array.locked().take(token), None);
        }
        self.check();
        assert_eq!(self.array.used, 0);
    }

    /// What holds between the steps is checked by shorter sequences.
    fn check_steps(mut self, steps: &[Step]) {
        for &step in steps {
            self.step(step);
        }
        self.check();
        self.return_all();
    }
}

#[test]
fn all_short_sequences() {
    let steps = [
        Step::Peek,
        Step::Commit,
        Step::Take(0),
        Step::Take(1),
        Step::TakeInC(2),
    ];
    for size in 0..4 {
        let run = Run::of_size(size);
        each(&steps, bound(6, 3), |steps| run.clone().check_steps(steps));
    }
}

/// Tokens that stand for several net_iovs, or come to.
#[test]
fn all_short_sequences_with_runs() {
    let steps = [
        Step::Commit,
        Step::CommitRun(2),
        Step::CommitRun(RUN_MAX),
        Step::Add(0, 1),
        Step::Add(1, RUN_MAX - 2),
        Step::Take(0),
        Step::TakeInC(1),
        Step::Grow,
    ];
    each(&steps, bound(5, 2), |steps| {
        Run::of_size(2).check_steps(steps)
    });
}

#[test]
fn a_token_stands_for_no_more_than_it_may() {
    for count in 1..=RUN_MAX {
        let mut run = Run::of_size(1);
        run.step(Step::CommitRun(count));
        for more in [0, RUN_MAX - count, RUN_MAX - count + 1, u32::MAX - RUN_MAX] {
            run.clone().check_steps(&[Step::Add(0, more)]);
        }
    }
    // More than there can be are none.
    let mut run = Run::of_size(1);
    let held = Held {
        netmem: 1,
        count: RUN_MAX + 1,
    };
    assert!(!run.array.locked().commit_run(BASE, held));
}

/// Where the array is replaced by a larger one in between, as the core does it.
#[test]
fn all_short_sequences_with_growth() {
    let steps = [
        Step::Peek,
        Step::Commit,
        Step::Take(0),
        Step::TakeInC(1),
        Step::Grow,
    ];
    for start in [
        Run::default(),
        Run::with_free(48, &[]),
        Run::with_free(2, &[1]),
    ] {
        each(&steps, bound(4, 2), |steps| {
            start.clone().check_steps(steps)
        });
    }
}

/// Slots to either side of where words end, and words of words. All others are in use.
#[test]
fn all_short_sequences_across_words() {
    let steps = [
        Step::Peek,
        Step::Commit,
        Step::Take(63),
        Step::TakeInC(64),
        Step::Take(4095),
        Step::TakeInC(4096),
    ];
    for free in [&[][..], &[64], &[63, 4096], &[4095, 4096]] {
        let run = Run::with_free(bound(4097, 130), &free[..bound(free.len(), 0)]);
        each(&steps, bound(3, 1), |steps| run.clone().check_steps(steps));
    }
}

/// Arrays as large as they are, and such as end near a boundary.
#[test]
fn all_of_an_array_of_any_size() {
    let sizes = [0, 1, 47, 48, 63, 64, 65, 96, 127, 128, 129, 192, 384];
    let large = [4095, 4096, 4097, 6144, 8192, 8193];

    for size in sizes.into_iter().chain(large.into_iter().take(bound(6, 0))) {
        let mut run = Run::of_size(size);

        run.check();
        assert_eq!(run.peek(size + 1), run.model.free());
        for token in (BASE..).take(size) {
            assert_eq!(run.peek(1), [token]);
            run.step(Step::Commit);
        }
        assert_eq!(run.peek(1), []);
        let groups = run.array.groups.len();
        assert_eq!(run.array.hint as usize, groups, "looks where there is none");
        run.check();
        run.return_all();
    }
}

#[test]
fn growth_keeps_what_is_used() {
    let mut run = Run::default();

    for size in [40, 80, 160, 320, 640, 1280, 2560, 5120]
        .into_iter()
        .take(bound(8, 3))
    {
        run.step(Step::Grow);
        assert_eq!(run.array.slots.len(), size);
        run.check();
        for _ in run.array.used..size as u32 {
            run.step(Step::Commit);
        }
        assert_eq!(run.peek(1), [], "more than there are");
        run.step(Step::Take(size as u32 / 3));
        run.step(Step::TakeInC(size as u32 - 1));
        run.check();
    }
    run.return_all();
}

/// Whatever comes back while tokens are copied, and whenever: it is as if it had come back before.
#[test]
fn tokens_taken_while_the_array_grows() {
    const SIZE: u32 = 10;

    for (used, taken) in
        (0u32..1 << SIZE).flat_map(|used| [(used, 0), (used, 0x155), (used, 0x3ff)])
    {
        for when in 0..4 {
            let mut array = SlotArray::of_size(SIZE as usize);
            for slot in (0..SIZE).filter(|slot| used >> slot & 1 != 0) {
                let netmem = 0x1001 + ((slot as usize) << 2);
                let held = Held {
                    netmem,
                    count: slot % 3 + 1,
                };
                assert!(array.locked().commit_run(BASE + slot, held));
            }
            let takes = || (0..SIZE).filter(|slot| taken >> slot & 1 != 0);

            let mut expected = array.clone();
            for slot in takes() {
                expected.take_in_c(BASE + slot);
            }
            expected.grow();

            let mut batch = 0;
            array.grow_in_batches(3, |growing| {
                for slot in takes().filter(|_| batch == when) {
                    let there = used >> slot & 1 != 0;
                    assert_eq!(growing.take_in_c(BASE + slot).is_some(), there);
                    assert_eq!(growing.take_in_c(BASE + slot), None);
                }
                batch += 1;
            });
            assert_eq!(batch, 4);
            array.check();
            assert_eq!(array, expected);
        }
    }
}

#[test]
fn the_lowest_token_comes_first() {
    let mut run = Run::with_free(8, &[6, 2, 7]);

    assert_eq!(run.peek(8), [BASE + 2, BASE + 6, BASE + 7]);
    run.step(Step::Take(0));
    assert_eq!(run.peek(2), [BASE, BASE + 2]);
}

/// Arrays that nobody made: no panic, and nothing of a slot is told or given that is not there.
#[test]
fn arrays_that_are_broken() {
    let words = [0, 1, 6, usize::MAX];
    let mut arrays = Vec::new();

    each(&words, 2, |groups| {
        each(&words, 2, |free| {
            for size in [0, 1, 3, 64, 65, 200] {
                let array = SlotArray {
                    used: 1,
                    hint: 0,
                    groups: groups.to_vec(),
                    free: free.to_vec(),
                    slots: (0..size).map(|slot| slot % 2).collect(),
                    more: vec![0; size],
                };
                arrays.push(array);
            }
        });
    });
    for array in arrays.into_iter().step_by(bound(1, 20)) {
        for hint in [0, 1, 2, 3, u32::MAX] {
            check_broken(&SlotArray {
                hint,
                ..array.clone()
            });
        }
    }
}

fn check_broken(broken: &SlotArray) {
    let mut tokens = [0; 200];
    let count = broken.clone().locked().peek(&mut tokens);
    assert!(tokens[..count].is_sorted_by(|one, other| one < other));

    for slot in [0, 1, 2, 63, 64, 65, 199, 200, 5000, BASE - 1] {
        let (token, index) = (BASE + slot, slot as usize);
        let is_free = broken
            .free
            .get(index / 64)
            .is_some_and(|word| word >> (index % 64) & 1 != 0);
        let before = broken.slots.get(index);

        let mut array = broken.clone();
        let committed = array.locked().commit(token, 0x1001);
        assert_eq!(committed, is_free && before.is_some());
        assert_eq!(
            changed(broken, &array),
            Vec::from_iter(committed.then_some(index))
        );

        let mut array = broken.clone();
        let taken = array.locked().take(token);
        assert!(taken.is_none() || taken.map(|held| held.netmem).as_ref() == before);
        assert!(changed(broken, &array).iter().all(|&slot| slot == index));
    }
}

/// The slots that are not the same.
fn changed(one: &SlotArray, other: &SlotArray) -> Vec<usize> {
    assert_eq!(one.slots.len(), other.slots.len());
    (0..one.slots.len())
        .filter(|&slot| one.slots[slot] != other.slots[slot])
        .collect()
}

/// All fit into an `int`, as those of the C code do.
#[test]
fn tokens_are_no_negative_numbers() {
    // `NET_DEVMEM_TOKENS_MAX`
    let most = 48u32 << 22;
    assert!(i32::try_from(BASE + (most - 1)).is_ok());
}

#[test]
fn ranges_that_wrap() {
    for there in [true, false] {
        check_take_back(&[(u32::MAX, 2), (7, 1)], |_| there);
        check_take_back(&[(u32::MAX - 3, 40)], |_| there);
        check_take_back(&[(u32::MAX, u32::MAX)], |_| there);
        check_take_back(&[(2, u32::MAX)], |_| there);
    }
    check_take_back(&[(u32::MAX - 1, 5)], |token| token == 1);
}

/// What happens while tokens are taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Lock,
    LookUp(u32),
    Unlock,
    /// So many references.
    GiveUp(usize),
}

/// A table that has the tokens that `there` tells, and writes down what is done with it.
struct Witness<F> {
    there: F,
    events: RefCell<Vec<Event>>,
    locked: Cell<bool>,
}

impl<F: Fn(u32) -> Taken> Witness<F> {
    fn new(there: F) -> Self {
        Self {
            there,
            events: RefCell::new(Vec::new()),
            locked: Cell::new(false),
        }
    }

    fn push(&self, event: Event) {
        self.events.borrow_mut().push(event);
    }

    fn lock(&self) -> Locked<'_, F> {
        assert!(!self.locked.replace(true), "locked twice");
        self.push(Event::Lock);
        Locked(self)
    }
}

struct Locked<'a, F: Fn(u32) -> Taken>(&'a Witness<F>);

impl<'a, F: Fn(u32) -> Taken> Take for Locked<'a, F> {
    type Returned = Returned<'a, F>;

    fn take(&mut self, token: u32, returned: &mut Returned<'a, F>) -> Taken {
        let taken = (self.0.there)(token);

        self.0.push(Event::LookUp(token));
        returned.0.get_or_insert((self.0, 0)).1 += usize::from(taken != Taken::Nothing);
        taken
    }
}

impl<F: Fn(u32) -> Taken> Drop for Locked<'_, F> {
    fn drop(&mut self) {
        assert!(self.0.locked.replace(false));
        self.0.push(Event::Unlock);
    }
}

/// References, with the table that they come from.
struct Returned<'a, F: Fn(u32) -> Taken>(Option<(&'a Witness<F>, usize)>);

impl<F: Fn(u32) -> Taken> Default for Returned<'_, F> {
    fn default() -> Self {
        Self(None)
    }
}

impl<F: Fn(u32) -> Taken> Drop for Returned<'_, F> {
    fn drop(&mut self) {
        let (table, count) = self.0.expect("nothing was looked up under the lock");

        // Page pools may not meet the lock.
        assert!(!table.locked.get(), "given up under the lock");
        table.push(Event::GiveUp(count));
    }
}

/// What has to happen when `ranges` come back: taken from the tokens one by one.
fn expected_events(ranges: &[Range], there: impl Fn(u32) -> Taken) -> (usize, Vec<Event>) {
    let mut tokens = ranges
        .iter()
        .flat_map(|range| (0..range.count).map(|i| range.start.wrapping_add(i)))
        .take(MAX_DONTNEED_FRAGS as usize)
        .peekable();
    let (mut total, mut events) = (0, Vec::new());

    while tokens.peek().is_some() {
        let mut taken = 0;

        events.push(Event::Lock);
        while taken < RETURN_BATCH {
            let Some(token) = tokens.next() else { break };
            events.push(Event::LookUp(token));
            taken += usize::from(there(token) != Taken::Nothing);
            // Its net_iovs are given up before others are looked for.
            if there(token) == Taken::Run {
                break;
            }
        }
        events.extend([Event::Unlock, Event::GiveUp(taken)]);
        total += taken;
    }
    (total, events)
}

fn check_take_back(ranges: &[(u32, u32)], there: impl Fn(u32) -> bool) {
    check_taken_back(ranges, |token| match there(token) {
        false => Taken::Nothing,
        true => Taken::One,
    });
    check_taken_back(ranges, |token| match there(token) {
        false => Taken::Nothing,
        true if token % 5 == 0 => Taken::Run,
        true => Taken::One,
    });
}

fn check_taken_back(ranges: &[(u32, u32)], there: impl Fn(u32) -> Taken) {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|&(start, count)| Range { start, count })
        .collect();
    let (total, events) = expected_events(&ranges, &there);
    let table = Witness::new(there);
    let returned = take_back(ranges.iter().copied(), || table.lock());

    assert_eq!(returned, total, "{ranges:?}");
    assert_eq!(table.events.into_inner(), events, "{ranges:?}");
}

#[test]
fn references_are_given_up_in_batches_after_the_lock() {
    for count in [0, 1, 15, 16, 17, 31, 32, 33, 100] {
        check_take_back(&[(0, count)], |_| true);
        check_take_back(&[(0, count)], |_| false);
        check_take_back(&[(0, count)], |token| token % 3 == 0);
        check_take_back(&[(0, 5), (70, count), (90, 3)], |token| token != 71);
    }
}

#[test]
fn tokens_are_taken_in_the_order_in_which_they_are_named() {
    for there in [true, false] {
        check_take_back(&[(5, 2), (1, 0), (u32::MAX, 1), (5, 1)], |_| there);
        check_take_back(&[], |_| there);
        check_take_back(&[(0, 0)], |_| there);
        check_take_back(&[(u32::MAX, 0), (0, 0), (7, 0)], |_| there);
        check_take_back(&[(0, 0), (3, 1), (0, 0)], |_| there);
    }
}

/// The last token there can be, by itself and after others.
#[test]
fn tokens_at_the_end_of_the_numbers() {
    for there in [true, false] {
        for count in [1, 2, 15, 16, 17, 40, 1024, 2000] {
            check_take_back(&[(u32::MAX - (count - 1), count)], |_| there);
            check_take_back(&[(u32::MAX - (count - 1), count), (3, 1)], |_| there);
        }
    }
}

#[test]
fn lookups_end_at_the_limit() {
    let most = MAX_DONTNEED_FRAGS;

    for there in [true, false] {
        for count in [most - 1, most, most + 1, u32::MAX] {
            check_take_back(&[(0, count)], |_| there);
        }
        check_take_back(&[(1, 1000), (5000, 24), (9000, 1)], |_| there);
        check_take_back(&[(1, 1000), (5000, u32::MAX - 5000)], |_| there);
        check_take_back(&[(0, 1); 1030], |_| there);
    }
}

/// Of those that could be looked up next none is.
#[test]
fn nobody_looks_past_the_limit() {
    let endless = std::iter::repeat(Range { start: 7, count: 1 });
    let table = Witness::new(|_| Taken::One);

    let returned = take_back(endless, || table.lock());
    assert_eq!(returned, MAX_DONTNEED_FRAGS as usize);
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Peek),
        8 => Just(Step::Commit),
        2 => (2..=RUN_MAX).prop_map(Step::CommitRun),
        2 => (0u32..200, 1..RUN_MAX).prop_map(|(slot, count)| Step::Add(slot, count)),
        3 => (0u32..200).prop_map(Step::Take),
        3 => (0u32..200).prop_map(Step::TakeInC),
        1 => Just(Step::Grow),
    ]
}

proptest! {
    #[test]
    fn any_steps(size in 1usize..150, steps in vec(step(), 0..bound(100, 20))) {
        let mut run = Run::of_size(size);
        for step in steps {
            // Larger ones have tests of their own.
            if !(matches!(step, Step::Grow) && run.array.slots.len() > 150) {
                run.step(step);
                run.check();
            }
        }
        run.return_all();
    }

    #[test]
    fn any_ranges(
        ranges in vec((any::<u32>(), any::<u32>(), 0u32..32), 0..10),
        every in 1u32..5,
    ) {
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(start, count, shift)| (start, count >> shift))
            .collect();
        check_take_back(&ranges, |token| token % every == 0);
    }
}
