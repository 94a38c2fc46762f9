// SPDX-License-Identifier: GPL-2.0

use std::{cell::Cell, rc::Rc};

use crate::sys::{
    free_list::{Batch, FreeList},
    share::Account,
    waiters::{Asker, Free, Waiters},
    wrapper,
};

/// A page pool, as its binding knows it.
#[derive(Clone)]
struct Pool(Rc<State>);

#[derive(Default)]
struct State {
    /// How often it was polled.
    polls: Cell<usize>,
}

impl Asker for Pool {
    fn poll(&self) {
        self.0.polls.set(self.0.polls.get() + 1);
    }
}

impl Pool {
    fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// How often it was polled since this was asked last.
    fn polls(&self) -> usize {
        self.0.polls.take()
    }
}

/// A binding of two queues, and what these have of it.
struct Binding {
    free: Free<Vec<u32>, Vec<Account>, Vec<Waiters<Pool>>>,
    held: [Vec<u32>; 2],
    /// What the page pools of each are told.
    gives_back: [bool; 2],
}

impl Binding {
    /// Both queues have filled their rings, and then the first one has three quarters of 256 net_iovs, and the second
    /// one a quarter, which wants more.
    fn dry() -> (Self, Pool, Pool) {
        let list = FreeList::full(vec![0; 256], vec![Account::default(); 2]);
        let waiters = (0..2).map(|_| Waiters::new()).collect();
        let mut this = Self {
            free: Free::new(list, waiters),
            held: [vec![], vec![]],
            gives_back: [false; 2],
        };
        let (first, second) = (this.starts(0), this.starts(1));

        this.fill(0, &first, 16);
        this.fill(1, &second, 16);
        this.fill(0, &first, 256);
        this.fill(1, &second, 256);
        assert_eq!(this.held.each_ref().map(Vec::len), [192, 64]);
        (this, first, second)
    }

    /// As `RxBuffers::with_free()`.
    fn with_free<R>(
        &mut self,
        queue: usize,
        change: impl FnOnce(&mut Free<Vec<u32>, Vec<Account>, Vec<Waiters<Pool>>>) -> R,
    ) -> R {
        let result = change(&mut self.free);

        self.gives_back[queue] = self.free.list().gives_back(queue);
        if self.free.has_waiting() {
            self.free.wake();
        }
        result
    }

    /// A page pool that is made for a queue.
    fn starts(&mut self, queue: usize) -> Pool {
        self.with_free(queue, |free| free.starts(Some(queue)));
        Pool(Rc::default())
    }

    /// How many a page pool gets that asks for up to `most`.
    fn ask(&mut self, queue: usize, pool: &Pool, most: usize) -> usize {
        let mut batch = Batch::new();
        let _ = self.with_free(queue, |free| {
            free.take(&mut batch, most, Some(queue), pool.clone(), || 0)
        });
        let got = batch.take_raw();

        self.held[queue].extend(got);
        got.len()
    }

    fn fill(&mut self, queue: usize, pool: &Pool, ring: usize) {
        while self.held[queue].len() < ring {
            if self.ask(queue, pool, ring - self.held[queue].len()) == 0 {
                break;
            }
        }
    }

    fn give(&mut self, queue: usize, count: usize) {
        let back: Vec<_> = self.held[queue]
            .drain(..count)
            .map(wrapper::came_back)
            .collect();
        let _ = self.with_free(queue, |free| free.put(back, Some(queue), || 0));
    }

    fn stops(&mut self, queue: usize, pool: &Pool) {
        let _ = self.with_free(queue, |free| {
            free.stops(queue, |known| known.is(pool), || 0)
        });
    }
}

#[test]
fn who_asked_in_vain_is_polled_once() {
    let (mut binding, first, second) = Binding::dry();

    assert_eq!(binding.gives_back, [true, true]);
    assert_eq!(second.polls(), 0, "there is none");
    assert!(binding.free.has_waiting());
    binding.give(0, 1);
    assert!(!binding.free.has_waiting());
    assert_eq!(second.polls(), 1);
    binding.give(0, 1);
    assert_eq!(second.polls(), 0, "it has not asked since");
    assert_eq!(binding.ask(1, &second, 1), 1);
    assert_eq!(binding.gives_back, [true, false]);
    assert_eq!(binding.ask(1, &second, 2), 1);
    assert_eq!(binding.ask(1, &second, 1), 0);
    binding.give(0, 1);
    assert_eq!(second.polls(), 1);
    assert_eq!(first.polls(), 0, "it has more than its share");
}

#[test]
fn who_is_gone_is_not_polled() {
    let (mut binding, _, second) = Binding::dry();

    binding.stops(1, &second);
    binding.give(0, 64);
    assert_eq!(second.polls(), 0);
}

/// Its queue goes on with the page pool that waits.
#[test]
fn a_restart_that_fails_leaves_who_waits() {
    let (mut binding, _, second) = Binding::dry();

    let new = binding.starts(1);
    binding.stops(1, &new);
    binding.give(0, 16);
    assert_eq!(second.polls(), 1);
    assert_eq!(new.polls(), 0);
}
