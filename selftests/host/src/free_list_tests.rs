// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::free_list::{Batch, FreeList, NiovId, BATCH};

fn list(size: usize) -> FreeList<Vec<u32>> {
    // What is in the storage does not matter.
    FreeList::full(vec![u32::MAX; size])
}

fn take(list: &mut FreeList<Vec<u32>>, most: usize) -> Vec<NiovId> {
    let mut batch = Batch::new();
    list.take(&mut batch, most);
    batch.collect()
}

#[test]
fn hands_out_in_order() {
    let mut list = list(1024);
    let ids: Vec<u32> = take(&mut list, BATCH)
        .into_iter()
        .map(NiovId::into_raw)
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
        let mut held: Vec<NiovId> = Vec::new();

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
                    list.put(id);
                }
            }
            prop_assert_eq!(list.in_use(), held.len());
        }

        for id in held.drain(..) {
            list.put(id);
        }
        let mut seen = vec![false; size];
        loop {
            let got = take(&mut list, BATCH);
            if got.is_empty() {
                break;
            }
            for id in got {
                prop_assert!(!std::mem::replace(&mut seen[id.into_raw() as usize], true));
            }
        }
        prop_assert!(seen.into_iter().all(|seen| seen));
    }
}
