// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::{
    sequences::{bound, each},
    sys::{
        free_list::{Batch, FreeList, BATCH},
        share::{probe, Account},
        wrapper,
    },
};

/// A binding, its queues, and what these have of it.
struct Binding {
    list: FreeList<Vec<u32>, Vec<Account>>,
    held: Vec<Vec<u32>>,
}

impl Binding {
    fn new(buffers: usize, queues: usize) -> Self {
        // What is in the storage does not matter.
        let mut used = FreeList::full(vec![0; buffers], vec![Account::default(); queues]);
        let _ = used.take(&mut Batch::new(), 1, Some(0), || 0);
        Self {
            list: FreeList::full(vec![0; buffers], vec![Account::default(); queues]),
            held: vec![Vec::new(); queues],
        }
    }

    /// Of two queues the first has more than its share, and the second asked for more in vain.
    fn with_one_that_starves() -> Self {
        let mut binding = Self::new(256, 2);
        binding.list.starts(Some(0));
        binding.list.starts(Some(1));
        binding.fill(0, 16);
        binding.fill(1, 16);
        binding.fill(0, 256);
        binding.fill(1, 64);
        assert_eq!(binding.ask(1, 1).0, 0);
        binding
    }

    /// How many a queue gets that asks for as many, and whether somebody is to be told that there was none.
    fn ask(&mut self, queue: usize, most: usize) -> (usize, bool) {
        let mut batch = Batch::new();
        let exhausted = self.list.take(&mut batch, most, Some(queue), || 0);
        let is_empty = batch.is_empty();
        let got = batch.take_raw();

        assert_eq!(got.is_empty(), is_empty);
        self.held[queue].extend(got);
        (got.len(), exhausted)
    }

    /// Asks as a driver does that fills a ring. Returns how many the queue has then.
    fn fill(&mut self, queue: usize, ring: usize) -> usize {
        while self.held[queue].len() < ring {
            if self.ask(queue, ring - self.held[queue].len()).0 == 0 {
                break;
            }
        }
        self.held[queue].len()
    }

    /// A queue gives up to `count` back. Returns whether somebody is to be told that there are enough again.
    fn give(&mut self, queue: usize, count: usize) -> bool {
        let held = &mut self.held[queue];
        let count = count.min(held.len());
        let back: Vec<_> = held.drain(..count).map(wrapper::came_back).collect();

        self.list.put(back, Some(queue), || 0)
    }

    /// A page pool of a queue is gone. Returns whether somebody is to be told that there are enough again.
    fn stops(&mut self, queue: usize, others_wait: bool) -> bool {
        self.list.stops(queue, others_wait, || 0)
    }

    fn woken(&mut self) -> Vec<usize> {
        std::iter::from_fn(|| self.list.wake()).collect()
    }
}

#[test]
fn the_first_queue_leaves_the_others_theirs() {
    for queues in 2..9 {
        let mut binding = Binding::new(256, queues);

        for queue in 0..queues {
            assert_eq!(binding.fill(queue, 256 / queues), 256 / queues);
        }
        for queue in 0..queues {
            let (more, _) = binding.ask(queue, 1);
            assert_eq!(
                more,
                usize::from(queue < 256 % queues),
                "what does not divide"
            );
        }
        assert!(binding.woken().is_empty(), "it has its share");
    }
}

#[test]
fn a_ring_as_large_as_the_binding() {
    let mut binding = Binding::new(256, 2);

    assert_eq!(binding.fill(0, 256), 128);
    assert_eq!(binding.fill(1, 256), 128);
    assert!(!binding.list.gives_back(0));
    assert!(!binding.list.gives_back(1));
}

#[test]
fn one_queue_has_all() {
    let mut list: FreeList<Vec<u32>, Vec<Account>> = FreeList::full(vec![0; 256], vec![]);
    let mut held = 0;

    loop {
        let mut batch = Batch::new();
        let exhausted = list.take(&mut batch, BATCH, None, || 0);
        let got = batch.take_raw().len();
        if got == 0 {
            assert!(exhausted);
            break;
        }
        held += got;
    }
    assert_eq!(held, 256);
    assert!(!list.gives_back(0));
    assert!(!list.has_waiting());
}

#[test]
fn what_others_do_not_use_is_lent() {
    let mut binding = Binding::new(256, 2);

    // Both have filled their rings.
    assert_eq!(binding.fill(0, 16), 16);
    assert_eq!(binding.fill(1, 16), 16);
    // Half of the other one's share is kept, of which that has 16.
    assert_eq!(binding.fill(0, 256), 256 - 64);
    assert!(binding.list.gives_back(0), "what is beyond its share");
    // It has as much at once.
    assert_eq!(binding.fill(1, 64), 64);
    assert_eq!(binding.woken(), []);
}

/// With a ring that is smaller than what is always kept.
#[test]
fn a_queue_that_is_idle_lends_though_it_gave_some_back() {
    let mut binding = Binding::new(256, 2);

    assert_eq!(binding.fill(0, 16), 16);
    assert_eq!(binding.fill(1, 16), 16);
    let _ = binding.give(1, 1);
    assert_eq!(binding.fill(0, 256), 256 - 64);
}

#[test]
fn nothing_is_kept_for_a_queue_without_page_pools() {
    let mut binding = Binding::new(256, 2);
    binding.list.starts(Some(0));
    binding.list.starts(Some(1));
    binding.fill(0, 16);
    binding.fill(1, 128);

    // It is started anew: that the old page pool goes does not matter.
    binding.list.starts(Some(1));
    let _ = binding.give(1, 128);
    let _ = binding.stops(1, false);
    assert_eq!(binding.fill(0, 256), 128);

    let _ = binding.stops(1, false);
    assert_eq!(binding.fill(0, 256), 256);

    // If it comes back all the same, it gets what the other one gives back.
    binding.list.starts(Some(1));
    assert_eq!(binding.ask(1, 64).0, 0);
    let _ = binding.give(0, 16);
    assert_eq!(binding.ask(0, 64).0, 0);
    assert_eq!(binding.woken(), [1]);
    assert_eq!(binding.fill(1, 16), 16);
}

/// Who asked, and is gone, is not who buffers are kept for.
#[test]
fn nobody_waits_for_who_is_gone() {
    for has_another in [false, true] {
        let mut binding = Binding::new(2, 3);
        for queue in 0..3 {
            binding.list.starts(Some(queue));
        }
        assert_eq!(binding.fill(0, 1), 1);
        assert_eq!(binding.fill(1, 1), 1);
        assert_eq!(binding.ask(2, 1).0, 0);
        let _ = binding.give(0, 1);
        assert_eq!(binding.woken(), [2]);
        assert_eq!(binding.ask(0, 1).0, 0, "it is for the one that was woken");
        let _ = binding.give(1, 1);
        assert_eq!(binding.woken(), [0]);

        if has_another {
            // That has not asked so far.
            binding.list.starts(Some(2));
        }
        let _ = binding.stops(2, false);
        assert_eq!(binding.fill(0, 1), 1);
        assert_eq!(binding.fill(1, 1), 1);
    }
}

/// Who is woken, but not polled, does not ask.
#[test]
fn nobody_waits_for_who_is_given_up() {
    let mut binding = Binding::new(2, 3);
    assert_eq!(binding.fill(0, 1), 1);
    assert_eq!(binding.fill(1, 1), 1);
    assert_eq!(binding.ask(2, 1).0, 0);
    let _ = binding.give(0, 1);
    assert_eq!(binding.woken(), [2]);
    assert_eq!(binding.ask(0, 1).0, 0);

    let _ = binding.list.gives_up(2, || 0);
    assert_eq!(binding.woken(), [0]);
    assert_eq!(binding.fill(0, 1), 1);
}

/// Its queue goes on with the page pool that waits.
#[test]
fn a_restart_that_fails_leaves_who_waits() {
    let mut binding = Binding::with_one_that_starves();

    binding.list.starts(Some(1));
    let _ = binding.stops(1, true);
    assert!(binding.list.gives_back(1));
    let _ = binding.give(0, 16);
    assert_eq!(binding.woken(), [1]);
    assert_eq!(binding.ask(1, 64).0, 16);

    // It was woken, but asks only now.
    assert_eq!(binding.ask(1, 1).0, 0);
    let _ = binding.give(0, 16);
    assert_eq!(binding.woken(), [1]);
    binding.list.starts(Some(1));
    let _ = binding.stops(1, true);
    assert_eq!(
        binding.woken(),
        [1],
        "it may have been the one that is gone"
    );
}

#[test]
fn a_queue_that_starves_is_told_and_comes_first() {
    let mut binding = Binding::new(256, 2);
    binding.fill(0, 16);
    binding.fill(1, 16);
    binding.fill(0, 256);
    assert_eq!(binding.fill(1, 64), 64);

    assert_eq!(
        binding.list.supply(|| 0).exhausted,
        1,
        "it was told of the first one"
    );
    assert_eq!(binding.ask(0, 1), (0, false), "it has more than its share");
    assert_eq!(binding.woken(), []);
    assert_eq!(binding.ask(1, 1), (0, false), "told already");
    assert!(binding.list.has_waiting());
    assert!(binding.list.gives_back(1));
    assert_eq!(binding.woken(), [], "there are none");

    let _ = binding.give(0, 16);
    assert_eq!(binding.ask(0, 1).0, 0, "they are for the other one");
    assert_eq!(binding.woken(), [1]);
    assert_eq!(binding.woken(), [], "once");
    assert!(!binding.list.has_waiting());
    assert_eq!(binding.ask(1, 64).0, 16);
    assert!(!binding.list.gives_back(1));

    // Up to its share.
    while binding.held[1].len() < 128 {
        assert_eq!(binding.ask(1, 64).0, 0);
        let _ = binding.give(0, 16);
        assert_eq!(binding.woken(), [1]);
        assert_eq!(binding.ask(0, 64).0, 0);
        assert_eq!(binding.ask(1, 64).0, 16);
    }
    assert!(!binding.list.gives_back(0));
    assert_eq!(binding.ask(1, 64).0, 0);
    assert_eq!(binding.woken(), []);
}

#[test]
fn woken_again_if_it_asks_again() {
    let mut binding = Binding::new(4, 2);
    binding.fill(0, 1);
    binding.fill(1, 1);
    assert_eq!(binding.fill(0, 4), 3);

    for _ in 0..3 {
        assert_eq!(binding.ask(1, 1).0, 0);
        let _ = binding.give(0, 1);
        assert_eq!(binding.woken(), [1]);
        let mut batch = Batch::new();
        // Somebody without an account gets what nobody needs.
        let _ = binding.list.take(&mut batch, 1, None, || 0);
        assert_eq!(batch.take_raw().len(), 0);
        binding.give(1, 1);
        assert_eq!(binding.fill(1, 1), 1);
        assert_eq!(binding.fill(0, 4), 3);
    }
}

#[test]
fn a_queue_that_is_stopped_is_kept_its_share() {
    let mut binding = Binding::new(256, 2);
    binding.fill(0, 16);
    binding.fill(1, 128);

    // As if the device had been down.
    let _ = binding.give(0, 16);
    let _ = binding.give(1, 128);
    assert_eq!(binding.fill(0, 256), 128);
    // It is started, and takes its time.
    binding.list.starts(Some(1));
    assert_eq!(binding.ask(0, 1).0, 0);
    assert_eq!(binding.fill(1, 256), 128);

    // One that is started anew while its old page pool still has buffers.
    binding.list.starts(Some(1));
    assert_eq!(binding.ask(1, 64).0, 0);
    let _ = binding.give(1, 64);
    assert_eq!(binding.ask(0, 64).0, 0);
    assert_eq!(binding.fill(1, 256), 128);
}

/// Nobody asks but who gets a packet, or is woken: rings are not looked at otherwise.
#[test]
fn fewer_buffers_than_queues_go_round() {
    const QUEUES: usize = 5;
    for buffers in 1..QUEUES {
        let mut binding = Binding::new(buffers, QUEUES);
        let mut served: Vec<_> = (0..QUEUES).map(|queue| binding.ask(queue, 16).0).collect();

        assert_eq!(served.iter().sum::<usize>(), buffers);
        for _ in 0..20 {
            for queue in 0..QUEUES {
                if binding.held[queue].is_empty() {
                    continue;
                }
                // The packet is passed on, the ring filled again, and then the buffer comes back.
                assert_eq!(binding.ask(queue, 16).0, 0);
                assert!(
                    binding.list.gives_back(queue),
                    "nothing stays with a page pool"
                );
                binding.give(queue, 1);
                let woken = binding.woken();
                assert_eq!(woken.len(), 1, "there is one");
                assert_eq!(binding.ask(woken[0], 16).0, 1);
                served[woken[0]] += 1;
            }
        }
        let (least, most) = (served.iter().min(), served.iter().max());
        assert!(most.unwrap() - least.unwrap() <= 2, "{served:?}");
    }
}

#[test]
fn told_when_there_are_enough_that_nobody_needs() {
    let mut binding = Binding::new(8, 2);
    binding.fill(0, 8);
    assert_eq!(binding.held[0].len(), 4);
    binding.fill(1, 2);
    assert_eq!(binding.fill(0, 8), 6);
    assert_eq!(
        binding.ask(1, 1),
        (0, false),
        "told when the first one got no more"
    );

    // All that comes back is needed by the one that starves.
    assert!(!binding.give(0, 2));
    assert_eq!(binding.fill(1, 4), 4);
    assert!(!binding.give(0, 1));
    assert!(binding.give(0, 1));
}

/// Who was refused leaves, and nobody gives anything back after that.
#[test]
fn told_when_who_needs_some_is_gone() {
    let mut binding = Binding::with_one_that_starves();

    assert!(!binding.give(0, 64), "it needs them");
    assert!(!binding.give(1, 64), "and these when it is started again");
    assert!(binding.list.supply(|| 0).is_exhausted);
    assert!(binding.stops(1, false));
    assert!(!binding.list.supply(|| 0).is_exhausted);
    assert!(!binding.stops(0, false), "told already");
}

/// It wanted its share, and is content with less.
#[test]
fn told_when_who_starved_got_something() {
    let mut binding = Binding::new(256, 2);
    binding.fill(0, 16);
    binding.fill(1, 16);
    binding.fill(0, 256);
    binding.fill(1, 64);
    assert_eq!(binding.ask(1, 1).0, 0);

    // Half of its share is what it lacks.
    assert!(!binding.give(0, 64 + 63));
    assert!(binding.list.supply(|| 0).is_exhausted);
    assert_eq!(binding.ask(1, 1), (1, true));
    assert!(!binding.list.supply(|| 0).is_exhausted);
}

/// What is known of a queue by what it did.
#[derive(Clone, Copy, Default)]
struct Known {
    is_filled: bool,
    is_starving: bool,
    pools: usize,
    is_gone: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take(usize, usize),
    Give(usize, usize),
    Starts(usize),
    Stops(usize, bool),
    GivesUp(usize),
}

/// What has to be so, whatever was before.
fn check_steps(buffers: usize, queues: usize, steps: &[Step]) {
    let mut binding = Binding::new(buffers, queues);
    let mut known = vec![Known::default(); queues];
    let share = (buffers / queues).max(1);
    let least = share.div_ceil(2);
    let kept = |known: &Known| match known.is_filled && !known.is_starving {
        _ if known.is_gone => 0,
        true => least,
        false => share,
    };

    for &step in steps {
        let taken: Vec<usize> = binding.held.iter().map(Vec::len).collect();
        let free = buffers - taken.iter().sum::<usize>();
        let needs = |of: usize| kept(&known[of]).saturating_sub(taken[of]);
        match step {
            Step::Take(queue, most) => {
                let lasting = binding.list.lasting_room(Some(queue));
                let (got, _) = binding.ask(queue, most);
                let others: usize = (0..queues).filter(|&of| of != queue).map(needs).sum();
                let has = taken[queue] + got;

                assert!(
                    has <= share || got <= free.saturating_sub(others),
                    "{steps:?}"
                );
                let left = share.saturating_sub(taken[queue]).min(free);
                let wanted = (0..queues).any(|of| of != queue && known[of].is_starving);
                assert!(!wanted || lasting <= left, "it is not borrowed: {steps:?}");
                assert!(wanted || got <= lasting, "it is there: {steps:?}");
                assert!(
                    lasting == 0 || most == 0 || got > 0,
                    "it is there: {steps:?}"
                );
                if free > 0 && buffers >= queues {
                    assert!(got > 0 || taken[queue] >= least, "{steps:?}");
                    assert!(got > 0 || free <= others, "{steps:?}");
                }
                if got > 0 {
                    known[queue].is_filled = true;
                    known[queue].is_starving = false;
                } else {
                    known[queue].is_starving = taken[queue] < share || buffers < queues;
                }
            }
            Step::Give(queue, count) => {
                binding.give(queue, count);
                known[queue].is_filled &= !binding.held[queue].is_empty();
            }
            Step::Starts(queue) => {
                binding.list.starts(Some(queue));
                known[queue].pools += 1;
                known[queue].is_filled = false;
                known[queue].is_gone = false;
            }
            Step::Stops(queue, others_wait) => {
                binding.stops(queue, others_wait);
                let known = &mut known[queue];
                known.pools = known.pools.saturating_sub(1);
                known.is_gone = known.pools == 0;
                let starves = taken[queue] < share || buffers < queues;
                known.is_starving = known.pools > 0 && others_wait && starves;
            }
            Step::GivesUp(queue) => {
                let _ = binding.list.gives_up(queue, || 0);
                known[queue].is_filled = true;
                known[queue].is_starving = false;
            }
        }

        for (queue, known) in known.iter().enumerate() {
            let has = binding.held[queue].len();
            let gives_back = buffers < queues || known.is_starving || has > share;
            assert_eq!(binding.list.gives_back(queue), gives_back, "{steps:?}");
        }
        let held: usize = binding.held.iter().map(Vec::len).sum();
        assert_eq!(binding.list.in_use(), held);
        let needed: usize = (0..queues)
            .map(|of| kept(&known[of]).saturating_sub(binding.held[of].len()))
            .sum();
        let spare = (buffers - held).saturating_sub(needed);
        assert!(
            !binding.list.supply(|| 0).is_exhausted || spare < buffers.div_ceil(4),
            "nobody was told that there are enough again: {steps:?}"
        );
        for woken in binding.woken() {
            assert!(known[woken].is_starving && held < buffers, "{steps:?}");
        }
    }
}

#[test]
fn all_short_sequences() {
    let steps = [
        Step::Take(0, 1),
        Step::Take(0, 64),
        Step::Take(1, 64),
        Step::Give(0, 1),
        Step::Give(0, 64),
        Step::Give(1, 2),
        Step::Starts(1),
        Step::Stops(1, true),
    ];
    for (buffers, queues) in [(1, 2), (2, 2), (3, 2), (5, 2), (9, 2), (2, 3), (4, 3)] {
        each(&steps, bound(6, 3), |steps| {
            check_steps(buffers, queues, steps)
        });
    }
}

fn step(queues: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..queues, 1..=BATCH).prop_map(|(queue, most)| Step::Take(queue, most)),
        4 => (0..queues, 0..100usize).prop_map(|(queue, count)| Step::Give(queue, count)),
        1 => (0..queues).prop_map(Step::Starts),
        1 => (0..queues, any::<bool>()).prop_map(|(queue, others_wait)| Step::Stops(queue, others_wait)),
        1 => (0..queues).prop_map(Step::GivesUp),
    ]
}

proptest! {
    #[test]
    fn never_more_than_may_be_lent(
        buffers in 1usize..300,
        steps in vec(step(4), 1..300),
    ) {
        check_steps(buffers, 4, &steps);
    }
}

#[test]
fn each_queue_finds_an_account() {
    for accounts in 1..20 {
        for queue in [0, 1, 7, 19, 20, 1000, u32::MAX] {
            let mut found: Vec<usize> = probe(queue, accounts).collect();
            assert_eq!(found[0], queue as usize % accounts);
            found.sort_unstable();
            assert_eq!(found, (0..accounts).collect::<Vec<_>>());
        }
    }
    assert_eq!(probe(3, 0).count(), 0);
}
