// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::{
    sequences::{bound, each},
    sys::{
        free_list::{Batch, FreeIov, FreeList, Supply, BATCH},
        share::Account,
        wrapper,
    },
};

fn list(size: usize) -> FreeList<Vec<u32>, Vec<Account>> {
    // What is in the storage does not matter.
    FreeList::full(vec![u32::MAX; size], vec![])
}

/// What a page pool gets that asks at `now`, and whether there is none for the first time.
fn take_at(
    list: &mut FreeList<Vec<u32>, Vec<Account>>,
    most: usize,
    now: u64,
) -> (Vec<FreeIov>, bool) {
    let mut batch = Batch::new();
    let exhausted = list.take(&mut batch, most, None, || now);
    let indices = batch.take_raw().iter();
    let got = indices.map(|&index| wrapper::came_back(index)).collect();
    (got, exhausted)
}

fn take(list: &mut FreeList<Vec<u32>, Vec<Account>>, most: usize) -> Vec<FreeIov> {
    take_at(list, most, 0).0
}

#[test]
fn hands_out_in_order() {
    let mut list = list(1024);
    let ids: Vec<u32> = take(&mut list, BATCH)
        .into_iter()
        .map(wrapper::index)
        .collect();

    assert_eq!(ids, (0..BATCH as u32).collect::<Vec<_>>());
    assert_eq!(list.in_use(), BATCH);
    assert_eq!(list.capacity(), 1024);
}

#[test]
fn what_came_back_in_order_is_handed_out_in_order() {
    let mut list = list(1024);
    let all: Vec<_> = (0..32).flat_map(|_| take(&mut list, 16)).collect();
    let _ = list.put(all, Some(0), || 0);

    for _ in 0..10 {
        let ids = take(&mut list, 24).into_iter().map(wrapper::index);
        let ids: Vec<_> = ids.collect();
        assert!(ids.is_sorted_by(|one, next| one + 1 == *next), "{ids:?}");
    }
}

#[test]
fn empty_list() {
    let mut list = list(0);

    assert!(take(&mut list, BATCH).is_empty());
    assert_eq!(list.in_use(), 0);
}

#[test]
fn one_by_one_in_the_end() {
    let mut list = list(1);

    assert_eq!(take(&mut list, BATCH).len(), 1);
    assert!(take(&mut list, BATCH).is_empty());
}

#[test]
fn nobody_takes_all() {
    let mut list = list(32);

    // Two queues share a binding of 32 buffers, and one of them is first.
    assert!(take(&mut list, BATCH).len() <= 32 / 8);
}

#[test]
fn takes_no_more_than_asked_for() {
    assert_eq!(take(&mut list(1024), 4).len(), 4);
    assert_eq!(take(&mut list(1024), usize::MAX).len(), BATCH);
    assert!(take(&mut list(1024), 0).is_empty());
}

/// What a page pool may get of `free` net_iovs, of `size`, if it asks for `most`.
fn share(size: usize, free: usize, most: usize) -> usize {
    let least = free.min(16).min(size / 16);
    free.div_ceil(8).max(least).min(most).min(64)
}

#[test]
fn a_share_of_what_is_left() {
    for size in 0..700 {
        for most in [0, 1, 4, 63, 64, 65, usize::MAX] {
            let mut list = list(size);

            assert_eq!(take(&mut list, most).len(), share(size, size, most));
            assert_eq!(list.in_use(), share(size, size, most));
        }
    }
}

#[test]
fn exhaustion_is_told_once() {
    let mut list = list(8);
    let mut held = Vec::new();
    while list.in_use() < 8 {
        let (got, exhausted) = take_at(&mut list, 1, 1);
        assert!(!exhausted, "the last one is one");
        held.extend(got);
    }
    assert_eq!(list.supply(|| 1).exhausted, 0);

    assert_eq!(take_at(&mut list, 1, 10), (vec![], true));
    assert_eq!(take_at(&mut list, 1, 11), (vec![], false));
    // Less than a quarter comes and goes.
    assert!(!list.put(held.pop(), None, || 12));
    assert!(!take_at(&mut list, 1, 13).1);
    assert_eq!(take_at(&mut list, 1, 14), (vec![], false));
    let lasts = Supply {
        taken: 9,
        returned: 1,
        is_exhausted: true,
        exhausted: 1,
        exhausted_for: 5,
    };
    assert_eq!(list.supply(|| 15), lasts);

    assert!(!list.put(held.pop(), None, || 16));
    assert!(list.put(held.pop(), None, || 25));
    assert!(!list.put(held.pop(), None, || 26));
    let over = Supply {
        taken: 9,
        returned: 4,
        is_exhausted: false,
        exhausted: 1,
        exhausted_for: 15,
    };
    assert_eq!(list.supply(|| 99), over);

    while list.in_use() < 8 {
        let _ = take(&mut list, 1);
    }
    assert_eq!(take_at(&mut list, 1, 100), (vec![], true));
    assert_eq!(list.supply(|| 101).exhausted_for, 16);
    assert_eq!(list.supply(|| 101).exhausted, 2);
}

#[test]
fn the_clock_is_looked_at_only_then() {
    let mut list = list(4);
    let never = || -> u64 { panic!("what time it is does not matter") };
    let mut batch = Batch::new();

    assert!(!list.take(&mut batch, 1, None, never));
    let index = batch.take_raw()[0];
    assert!(!list.put([wrapper::came_back(index)], None, never));
    assert!(!list.supply(never).is_exhausted);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take(usize),
    PutFirst,
    PutLast,
}

/// A stack of indices that came back, those that nobody had yet, and those that somebody has, in the order in
/// which they were given out.
fn check_steps(size: usize, steps: &[Step]) {
    let mut list = list(size);
    let mut back: Vec<u32> = Vec::new();
    let mut fresh = 0..size as u32;
    let mut held: Vec<u32> = Vec::new();
    let mut supply = Supply {
        taken: 0,
        returned: 0,
        is_exhausted: false,
        exhausted: 0,
        exhausted_for: 0,
    };

    for (now, &step) in (0u64..).zip(steps) {
        // Each step takes as long.
        supply.exhausted_for += u64::from(supply.is_exhausted);
        let returned = match step {
            Step::Take(most) => {
                let free = back.len() + fresh.len();
                let count = share(size, free, most);
                let old = back.len() - count.min(back.len());
                let mut expected = back.split_off(old);
                expected.extend(fresh.by_ref().take(count - expected.len()));
                let none = free == 0;
                let first = none && !supply.is_exhausted;
                let (got, exhausted) = take_at(&mut list, most, now);
                let got: Vec<u32> = got.into_iter().map(wrapper::index).collect();
                assert_eq!((&got, exhausted), (&expected, first), "{steps:?}");
                supply.taken += got.len() as u64;
                supply.exhausted += u64::from(first);
                supply.is_exhausted |= first;
                held.extend(got);
                None
            }
            Step::PutFirst if held.is_empty() => None,
            Step::PutFirst => Some(held.remove(0)),
            Step::PutLast => held.pop(),
        };
        if let Some(index) = returned {
            back.push(index);
            let enough = (back.len() + fresh.len()) * 4 >= size;
            let over = list.put([wrapper::came_back(index)], None, || now);
            assert_eq!(over, supply.is_exhausted && enough, "{steps:?}");
            supply.returned += 1;
            supply.is_exhausted &= !enough;
        }
        assert_eq!(list.supply(|| now), supply, "{steps:?}");
        assert_eq!(list.in_use(), held.len(), "{steps:?}");
        assert_eq!(list.capacity(), size);
    }
}

#[test]
fn all_short_sequences() {
    let steps = [
        Step::Take(0),
        Step::Take(1),
        Step::Take(2),
        Step::Take(usize::MAX),
        Step::PutFirst,
        Step::PutLast,
    ];
    for size in [0, 1, 2, 3, 9, 17] {
        each(&steps, bound(7, 3), |steps| check_steps(size, steps));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Take(usize),
    Put(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (1..=BATCH).prop_map(Op::Take),
        any::<usize>().prop_map(Op::Put)
    ]
}

proptest! {
    /// No net_iov is ever handed out twice or lost, and there is one as long as there is any.
    #[test]
    fn never_twice_never_lost(size in 1usize..300, ops in vec(op(), 1..400)) {
        let mut list = list(size);
        let mut held: Vec<FreeIov> = Vec::new();

        for op in ops {
            match op {
                Op::Take(most) => {
                    let left = size - held.len();
                    let got = take(&mut list, most);
                    prop_assert!(got.len() <= most);
                    prop_assert_eq!(got.is_empty(), left == 0);
                    for id in got {
                        prop_assert!(!held.contains(&id));
                        held.push(id);
                    }
                }
                Op::Put(_) if held.is_empty() => {}
                Op::Put(which) => {
                    let id = held.swap_remove(which % held.len());
                    let _ = list.put([id], None, || 0);
                }
            }
            prop_assert_eq!(list.in_use(), held.len());
        }

        for id in held.drain(..) {
            let _ = list.put([id], None, || 0);
        }
        let mut seen = vec![false; size];
        loop {
            let got = take(&mut list, BATCH);
            if got.is_empty() {
                break;
            }
            for id in got {
                prop_assert!(!std::mem::replace(&mut seen[wrapper::index(id) as usize], true));
            }
        }
        prop_assert!(seen.into_iter().all(|seen| seen));
    }
}
