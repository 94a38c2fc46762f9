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
    has_no_napi: Cell<bool>,
    /// How often it was polled.
    polls: Cell<usize>,
}

impl Asker for Pool {
    fn poll(&self) -> bool {
        let has_napi = !self.0.has_no_napi.get();

        self.0.polls.set(self.0.polls.get() + usize::from(has_napi));
        has_napi
    }
}

impl PartialEq for Pool {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Pool {
    /// How often it was polled since this was asked last.
    fn polls(&self) -> usize {
        self.0.polls.take()
    }
}

type Known = Free<Vec<u32>, Vec<Account>, Vec<Waiters<Pool>>>;

/// A binding of two queues, and what these have of it.
struct Binding {
    free: Known,
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

    /// As `RxBuffers::with_free()`. Returns whether somebody is to be told.
    fn with_free(&mut self, queue: usize, change: impl FnOnce(&mut Known) -> bool) -> bool {
        let mut changed = change(&mut self.free);

        self.gives_back[queue] = self.free.list().gives_back(queue);
        if self.free.has_waiting() {
            let told = &mut self.gives_back;
            changed |= (self.free).wake(|| 0, |queue, gives_back| told[queue] = gives_back);
        }
        changed
    }

    fn is_exhausted(&self) -> bool {
        self.free.list().supply(|| 0).is_exhausted
    }

    /// A page pool that is made for a queue.
    fn starts(&mut self, queue: usize) -> Pool {
        self.with_free(queue, |free| {
            free.starts(Some(queue));
            false
        });
        Pool(Rc::default())
    }

    /// How many a page pool gets that asks for up to `most`.
    fn ask(&mut self, queue: usize, pool: &Pool, most: usize) -> usize {
        let mut batch = Batch::new();
        self.with_free(queue, |free| {
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

    fn give(&mut self, queue: usize, count: usize) -> bool {
        let back: Vec<_> = self.held[queue]
            .drain(..count)
            .map(wrapper::came_back)
            .collect();
        self.with_free(queue, |free| free.put(back, Some(queue), || 0))
    }

    fn stops(&mut self, queue: usize, pool: &Pool) -> bool {
        self.with_free(queue, |free| free.stops(queue, |known| known == pool, || 0))
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

/// Its queue goes on with the page pool that waits, whatever the new one did.
#[test]
fn a_restart_that_fails_leaves_who_waits() {
    for asks in [0, 1, 2] {
        let (mut binding, _, second) = Binding::dry();

        let new = binding.starts(1);
        for _ in 0..asks {
            assert_eq!(binding.ask(1, &new, 1), 0);
        }
        binding.stops(1, &new);
        assert_eq!(binding.gives_back, [true, true]);
        binding.give(0, 16);
        assert_eq!(second.polls(), 1);
        assert_eq!(new.polls(), 0);
        assert_eq!(binding.ask(1, &second, 16), 16);
        assert_eq!(binding.gives_back, [true, false]);
    }
}

#[test]
fn a_restart_that_fails_leaves_who_waits_though_there_were_some() {
    let (mut binding, first, second) = Binding::dry();

    let new = binding.starts(1);
    binding.give(0, 1);
    assert_eq!(second.polls(), 1);
    assert_eq!(binding.ask(1, &new, 1), 1);
    assert_eq!(binding.ask(1, &second, 1), 0);
    binding.give(0, 1);
    assert_eq!(binding.ask(1, &new, 1), 1);
    second.polls();

    // It gives back what it got, and is destroyed.
    binding.give(1, 2);
    assert_eq!(second.polls(), 0);
    binding.stops(1, &new);
    assert_eq!(second.polls(), 1, "there are some for it");
    assert_eq!(binding.ask(0, &first, 1), 0);
    assert_eq!(binding.ask(1, &second, 2), 2);
}

/// What a page pool got it does not wait for any more.
#[test]
fn who_got_something_does_not_wait() {
    let (mut binding, _, second) = Binding::dry();

    binding.give(0, 1);
    second.polls();
    assert_eq!(binding.ask(1, &second, 1), 1);
    let new = binding.starts(1);
    binding.stops(1, &new);
    assert_eq!(binding.gives_back, [true, false]);
    binding.give(0, 1);
    assert_eq!(second.polls(), 0);
}

#[test]
fn both_page_pools_of_a_queue_are_polled() {
    let (mut binding, _, second) = Binding::dry();

    let new = binding.starts(1);
    assert_eq!(binding.ask(1, &new, 1), 0);
    binding.give(0, 1);
    assert_eq!((second.polls(), new.polls()), (1, 1));

    // The queue is started with the new one.
    binding.stops(1, &second);
    assert_eq!(new.polls(), 1, "the other one's ring may have been polled");
    assert_eq!(binding.ask(1, &new, 2), 1);
    assert_eq!(binding.ask(1, &new, 1), 0);
    binding.give(0, 1);
    assert_eq!((second.polls(), new.polls()), (0, 1));
}

/// All page pools of a queue have a NAPI in common, which polls the ring that is there: while a queue is restarted
/// that of the page pool which goes.
#[test]
fn a_page_pool_is_polled_when_its_ring_is_there() {
    let (mut binding, _, second) = Binding::dry();

    binding.give(0, 1);
    second.polls();
    assert_eq!(binding.ask(1, &second, 1), 1);
    let new = binding.starts(1);
    assert_eq!(binding.ask(1, &new, 1), 0);
    binding.give(0, 1);
    assert_eq!(new.polls(), 1);

    binding.stops(1, &second);
    assert_eq!(new.polls(), 1);
    assert_eq!(binding.ask(1, &new, 1), 1);
}

/// A page pool that nobody uses any more is there as long as somebody has what it gave out.
#[test]
fn who_is_left_over_makes_room() {
    for is_latest in [false, true] {
        let (mut binding, _, left_over) = Binding::dry();

        if is_latest {
            binding.give(0, 1);
            assert_eq!(binding.ask(1, &left_over, 1), 1);
        }
        let running = binding.starts(1);
        assert_eq!(binding.ask(1, &running, 1), 0);
        assert_eq!(binding.ask(1, &left_over, 1), 0);
        left_over.0.has_no_napi.set(true);

        let new = binding.starts(1);
        assert_eq!(binding.ask(1, &new, 1), 0);
        binding.stops(1, &new);
        running.polls();
        binding.give(0, 1);
        assert_eq!(running.polls(), 1);
        binding.stops(1, &left_over);
        assert_eq!(
            running.polls(),
            1,
            "the one that is gone may have been polled"
        );
        binding.give(0, 1);
        assert_eq!(running.polls(), 0, "it was woken before");
        assert_eq!(binding.ask(1, &running, 1), 1);
    }
}

/// Some drivers tell a page pool its NAPI later than they fill the ring.
#[test]
fn nothing_is_kept_for_who_is_not_polled() {
    let (mut binding, first, second) = Binding::dry();

    second.0.has_no_napi.set(true);
    assert!(!binding.give(0, 1));
    assert_eq!(binding.gives_back, [true, false]);
    assert_eq!(binding.ask(0, &first, 1), 1);
    assert!(binding.give(0, 64), "nobody needs them");
    assert!(!binding.is_exhausted());
    binding.fill(0, &first, 256);
    assert_eq!(binding.held[0].len(), 192);

    // It asks by itself, and is as any other.
    second.0.has_no_napi.set(false);
    assert_eq!(binding.ask(1, &second, 1), 0);
    assert_eq!(binding.gives_back, [true, true]);
    binding.give(0, 1);
    assert_eq!(second.polls(), 1);
    assert_eq!(binding.ask(0, &first, 1), 0);
    assert_eq!(binding.ask(1, &second, 1), 1);
}

/// That nobody polls a queue shows when there is something for it, which is what others wait for.
#[test]
fn there_are_enough_once_nobody_needs_them() {
    let (mut binding, _, second) = Binding::dry();

    second.0.has_no_napi.set(true);
    assert!(binding.is_exhausted());
    assert!(binding.give(0, 64));
    assert!(!binding.is_exhausted());
}

/// It is yet to fill its ring, but does not ask any more.
#[test]
fn nothing_is_kept_for_who_was_started_and_is_not_polled() {
    let (mut binding, first, second) = Binding::dry();

    let new = binding.starts(1);
    new.0.has_no_napi.set(true);
    assert_eq!(binding.ask(1, &new, 1), 0);
    binding.stops(1, &second);
    binding.give(0, 1);
    assert_eq!(binding.ask(0, &first, 1), 1);
}
