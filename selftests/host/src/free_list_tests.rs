// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::{
    sequences::{bound, each},
    sys::{
        free_list::{Batch, FreeIov, FreeList, BATCH},
        wrapper,
    },
};

fn list(size: usize) -> FreeList<Vec<u32>> {
    // What is in the storage does not matter.
    FreeList::full(vec![u32::MAX; size])
}

fn take(list: &mut FreeList<Vec<u32>>, most: usize) -> Vec<FreeIov> {
    let mut batch = Batch::new();
    list.take(&mut batch, most);
    // Page pools use the last first.
    let indices = batch.take_raw().iter().rev();
    indices.map(|&index| wrapper::came_back(index)).collect()
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

#[derive(Clone, Copy, Debug)]
enum Step {
    Take(usize),
    PutFirst,
    PutLast,
}

/// A stack of indices, and those that somebody has, in the order in which they were given out.
fn check_steps(size: usize, steps: &[Step]) {
    let mut list = list(size);
    let mut free: Vec<u32> = (0..size as u32).rev().collect();
    let mut held: Vec<u32> = Vec::new();

    for &step in steps {
        let returned = match step {
            Step::Take(most) => {
                let count = share(size, free.len(), most);
                let expected: Vec<u32> = free.drain(free.len() - count..).rev().collect();
                let got: Vec<u32> = take(&mut list, most)
                    .into_iter()
                    .map(wrapper::index)
                    .collect();
                assert_eq!(got, expected, "{steps:?}");
                held.extend(got);
                None
            }
            Step::PutFirst if held.is_empty() => None,
            Step::PutFirst => Some(held.remove(0)),
            Step::PutLast => held.pop(),
        };
        if let Some(index) = returned {
            list.put([wrapper::came_back(index)]);
            free.push(index);
        }
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
                    list.put([id]);
                }
            }
            prop_assert_eq!(list.in_use(), held.len());
        }

        for id in held.drain(..) {
            list.put([id]);
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
