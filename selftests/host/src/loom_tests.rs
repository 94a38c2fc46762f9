// SPDX-License-Identifier: GPL-2.0

//! The module's own code under [loom], which goes through all interleavings of threads.
//!
//! What threads share is behind locks here as it is there, and references are counted as page pools
//! count them.

use std::{cell::Cell, num::NonZero};

use loom::{
    model::Builder,
    sync::{
        atomic::{AtomicIsize, Ordering::Relaxed},
        Arc, Mutex, MutexGuard,
    },
    thread,
};

use crate::{
    cmsg::{self, Frag, FragInfo, Part, Place, Reader, Stop},
    slot_array::SlotArray,
    sys::{
        free_list::{Batch, FreeList},
        run::{End, Run},
        share::Account,
        token::{self, take_back, Frags, Range, Take, Taken, Tokens, BASE},
        window::{self, Window},
        wrapper,
    },
};

/// All interleavings in which threads are preempted up to three times, or `LOOM_MAX_PREEMPTIONS`
/// times.
pub(crate) fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(model);
}

/// Buffers, by how many references there are to each: one of the packet that they are in, and those
/// of tokens.
struct Buffers(Vec<AtomicIsize>);

impl Buffers {
    fn get(&self, buffer: usize) {
        let old = self.0[buffer].fetch_add(1, Relaxed);
        assert!(old > 0, "a reference to a buffer that nobody has");
    }

    fn put(&self, buffer: usize) {
        let old = self.0[buffer].fetch_sub(1, Relaxed);
        assert!(old > 0, "a reference given back twice");
    }

    /// Somebody relies on the buffer.
    fn touch(&self, buffer: usize) {
        let count = self.0[buffer].load(Relaxed);
        assert!(count > 0, "the buffer is somebody else's by now");
    }

    fn counts(&self) -> Vec<isize> {
        self.0.iter().map(|count| count.load(Relaxed)).collect()
    }
}

/// A socket: its tokens, and what user space remembers of them.
struct Socket {
    buffers: Arc<Buffers>,
    tokens: Mutex<SlotArray>,
    told: Mutex<Vec<u32>>,
}

impl Socket {
    /// One with `slots` for tokens, until there have to be more.
    fn new(buffers: usize, slots: usize) -> Arc<Self> {
        let buffers = (0..buffers).map(|_| AtomicIsize::new(1)).collect();
        Arc::new(Self {
            buffers: Arc::new(Buffers(buffers)),
            tokens: Mutex::new(SlotArray::of_size(slots)),
            told: Mutex::new(Vec::new()),
        })
    }

    fn lock(&self) -> Locked<'_> {
        Locked {
            tokens: self.tokens.lock().unwrap(),
            buffers: &self.buffers,
        }
    }

    /// `recvmsg()` of an skb whose frags are `buffers`, until the reader's memory ends after
    /// `room` control messages. Returns how many there were.
    fn recvmsg(&self, buffers: std::ops::Range<usize>, room: usize) -> usize {
        self.pass(buffers, room, None)
    }

    /// The same of an skb that is thrown away if all of it is passed.
    fn recvmsg_and_eat(&self, buffers: std::ops::Range<usize>, room: usize) -> usize {
        let moved = Cell::new(false);
        let bytes = self.pass(buffers.clone(), room, Some(&moved));

        if bytes == buffers.len() && !moved.get() {
            buffers.for_each(|buffer| self.buffers.put(buffer));
        }
        bytes
    }

    fn pass(
        &self,
        buffers: std::ops::Range<usize>,
        room: usize,
        moved: Option<&Cell<bool>>,
    ) -> usize {
        let frags: Vec<_> = buffers
            .map(|buffer| TestFrag {
                buffers: &self.buffers,
                buffer,
            })
            .collect();
        let part = Part {
            readable: false,
            may_be_revoked: false,
            linear: &[],
            frags: TestFrags {
                frags: &frags,
                moved,
            },
        };
        let mut reader = User { socket: self, room };
        let window = Window::new(0, frags.len());

        cmsg::pass([part].into_iter(), window, &mut reader, &mut { self }).unwrap_or(0)
    }

    fn commit_with(&self, tokens: &[u32], frags: &[TestFrag<'_>], get: impl Fn(&TestFrag<'_>)) {
        let mut locked = self.lock();

        for (&token, frag) in tokens.iter().zip(frags) {
            get(frag);
            let free = locked.tokens.locked().commit(token, netmem_of(frag.buffer));
            assert!(free, "somebody else has the token");
        }
    }

    /// Takes back what user space has, or says it has: so many tokens from that of a slot on.
    fn dontneed(&self, slot: u32, count: u32) -> usize {
        let start = BASE + slot;
        take_back([Range { start, count }].into_iter(), || self.lock())
    }
}

impl<'a> Tokens<TestFrags<'a>> for &'a Socket {
    type Error = ();

    fn peek(&mut self, tokens: &mut [u32]) -> Result<NonZero<usize>, ()> {
        let free = |tokens: &mut [u32]| NonZero::new(self.lock().tokens.locked().peek(tokens));

        if let Some(count) = free(tokens) {
            return Ok(count);
        }
        // Memory is allocated without the lock. Meanwhile some may have come back.
        let size = self.lock().tokens.slots.len();
        let mut locked = self.lock();
        *locked.tokens = locked.tokens.grown_to(2 * size);
        drop(locked);
        free(tokens).ok_or(())
    }

    fn commit(&mut self, tokens: &[u32], frags: &[TestFrag<'a>]) {
        self.commit_with(tokens, frags, |frag| self.buffers.get(frag.buffer));
    }

    fn commit_all(&mut self, tokens: &[u32], frags: TestFrags<'a>) {
        match frags.moved {
            Some(moved) => {
                moved.set(true);
                self.commit_with(tokens, frags.frags, |_| ());
            }
            None => self.commit(tokens, frags.frags),
        }
    }

    fn peek_for_runs(&mut self, _tokens: &mut [u32]) -> Result<(NonZero<usize>, usize), ()> {
        unreachable!("the reader takes no runs")
    }

    fn room(&mut self, _run: &Run) -> usize {
        unreachable!("the reader takes no runs")
    }

    fn commit_runs(&mut self, _runs: &[token::Told], _frags: &[TestFrag<'a>]) {
        unreachable!("the reader takes no runs")
    }

    fn commit_all_runs(&mut self, _runs: &[token::Told], _frags: TestFrags<'a>) {
        unreachable!("the reader takes no runs")
    }
}

fn netmem_of(buffer: usize) -> usize {
    buffer << 2 | 1
}

struct Locked<'a> {
    tokens: MutexGuard<'a, SlotArray>,
    buffers: &'a Arc<Buffers>,
}

/// References that tokens stood for.
#[derive(Default)]
struct Counted(Vec<(Arc<Buffers>, usize)>);

impl Drop for Counted {
    fn drop(&mut self) {
        for (buffers, buffer) in &self.0 {
            buffers.put(*buffer);
        }
    }
}

impl Take for Locked<'_> {
    type Returned = Counted;

    fn take(&mut self, token: u32, returned: &mut Counted) -> Taken {
        let held = self.tokens.locked().take(token);
        let counted = held.map(|held| (self.buffers.clone(), held.netmem >> 2));

        returned.0.extend(counted);
        match held {
            Some(_) => Taken::One,
            None => Taken::Nothing,
        }
    }
}

/// The frags of an skb, and who is told that they have lost their references, if they may.
struct TestFrags<'a> {
    frags: &'a [TestFrag<'a>],
    moved: Option<&'a Cell<bool>>,
}

impl<'a> Frags for TestFrags<'a> {
    type Frag = TestFrag<'a>;

    fn as_slice(&self) -> &[TestFrag<'a>] {
        self.frags
    }
}

/// A frag of one byte, in a buffer of its own. Not looked at once that is back.
struct TestFrag<'a> {
    buffers: &'a Buffers,
    buffer: usize,
}

impl Frag for TestFrag<'_> {
    fn size(&self) -> usize {
        self.buffers.touch(self.buffer);
        1
    }

    fn place(&self) -> Option<Place> {
        self.buffers.touch(self.buffer);
        Some(Place {
            dmabuf_id: 1,
            offset: 0,
        })
    }

    fn is_revoked(&self) -> bool {
        false
    }

    fn end(&self, _part: window::Part) -> Option<End> {
        unreachable!("the reader takes no runs")
    }

    fn follows(&self, _part: window::Part, _end: &mut End) -> bool {
        unreachable!("the reader takes no runs")
    }
}

struct User<'a> {
    socket: &'a Socket,
    room: usize,
}

/// The token that a user is told.
#[derive(Clone, Copy, Default)]
struct Told(u32);

impl From<FragInfo> for Told {
    fn from(frag: FragInfo) -> Self {
        Self(frag.token)
    }
}

impl From<Stop> for () {
    fn from(_: Stop) {}
}

impl Reader for User<'_> {
    type Error = ();
    type Message = Told;

    fn copy(&mut self, _data: &[u8]) -> Result<(), ()> {
        unreachable!("there are no linear bytes")
    }

    fn put_linear(&mut self, _len: usize) -> Result<(), ()> {
        unreachable!("there are no linear bytes")
    }

    fn put_frags(&mut self, messages: &[Told]) -> Result<(), (usize, ())> {
        let told = messages.len().min(self.room);
        let tokens = messages[..told].iter().map(|message| message.0);

        self.room -= told;
        self.socket.told.lock().unwrap().extend(tokens);
        match told == messages.len() {
            true => Ok(()),
            false => Err((told, ())),
        }
    }

    fn takes_runs(&self) -> bool {
        false
    }

    fn last_run(&self) -> Option<Run> {
        unreachable!("it takes no runs")
    }

    fn set_last_run(&mut self, _run: Option<Run>) {
        unreachable!("it takes no runs")
    }

    fn set_last_len(&mut self, _len: u32) -> Result<(), ()> {
        unreachable!("it takes no runs")
    }
}

/// Runs `one` and `other` at the same time.
fn both<T: 'static>(
    socket: &Arc<Socket>,
    one: impl FnOnce(&Socket) -> T,
    other: impl FnOnce(&Socket) -> T + 'static,
) -> (T, T) {
    let theirs = {
        let socket = socket.clone();
        thread::spawn(move || other(&socket))
    };
    let ours = one(socket);
    (ours, theirs.join().unwrap())
}

/// User space returns what it was told: now all is as it was before.
fn return_all(socket: &Socket, already: usize, references: isize) {
    let told = std::mem::take(&mut *socket.told.lock().unwrap());
    let rest: usize = told
        .iter()
        .map(|&token| socket.dontneed(token - BASE, 1))
        .sum();

    assert_eq!(already + rest, told.len(), "one return for each token told");
    let tokens = socket.tokens.lock().unwrap();
    tokens.check();
    assert_eq!(tokens.used, 0, "no token is left");
    for count in socket.buffers.counts() {
        assert_eq!(count, references);
    }
}

/// Another thread guesses tokens before they are committed, or told.
#[test]
fn tokens_returned_while_they_are_handed_out() {
    for room in 0..=2 {
        explore(move || {
            let socket = Socket::new(2, 2);
            let (passed, returned) = both(
                &socket,
                |socket| socket.recvmsg(0..2, room),
                |socket| socket.dontneed(0, 2) + socket.dontneed(0, 1),
            );

            assert_eq!(passed, room);
            return_all(&socket, returned, 1);
        });
    }
}

/// The same with a packet that nobody needs any more: no buffer comes back before the packet is done
/// with it, nor is one that the packet still has, because it was not passed to the end.
#[test]
fn buffers_returned_while_their_references_move() {
    for room in 0..=2 {
        explore(move || {
            let socket = Socket::new(2, 2);
            let (passed, returned) = both(
                &socket,
                |socket| socket.recvmsg_and_eat(0..2, room),
                |socket| socket.dontneed(0, 2) + socket.dontneed(0, 1),
            );

            assert_eq!(passed, room);
            return_all(&socket, returned, isize::from(room < 2));
        });
    }
}

/// There are not enough tokens for all frags at first: two batches, of which none is all.
#[test]
fn tokens_returned_while_there_are_made_more() {
    for slots in 1..=2 {
        explore(move || {
            let socket = Socket::new(3, slots);
            let (passed, returned) = both(
                &socket,
                |socket| socket.recvmsg_and_eat(0..3, 3),
                |socket| socket.dontneed(0, 1) + socket.dontneed(0, 2),
            );

            assert_eq!(passed, 3);
            return_all(&socket, returned, 0);
        });
    }
}

/// The skb is gone once `recvmsg()` has returned: only tokens hold the buffers then.
#[test]
fn tokens_outlive_the_skb() {
    explore(|| {
        let socket = Socket::new(1, 1);
        let (_, returned) = both(
            &socket,
            |socket| {
                socket.recvmsg(0..1, 1);
                socket.buffers.put(0);
                0
            },
            |socket| socket.dontneed(0, 1),
        );

        return_all(&socket, returned, 0);
    });
}

/// Two threads return the same tokens.
#[test]
fn tokens_returned_twice() {
    explore(|| {
        let socket = Socket::new(3, 3);
        socket.recvmsg(0..3, 3);
        let (ours, theirs) = both(
            &socket,
            |socket| socket.dontneed(0, 3),
            |socket| socket.dontneed(1, 2),
        );

        assert_eq!(ours + theirs, 3);
        return_all(&socket, ours + theirs, 1);
    });
}

/// More of them than one critical section takes.
#[test]
fn batches_of_tokens_returned_twice() {
    explore(|| {
        let socket = Socket::new(18, 18);
        socket.recvmsg(0..18, 18);
        let (ours, theirs) = both(
            &socket,
            |socket| socket.dontneed(0, 18),
            |socket| socket.dontneed(14, 4),
        );

        assert_eq!(ours + theirs, 18);
        return_all(&socket, ours + theirs, 1);
    });
}

/// Two calls of `recvmsg()`, one after the other as the socket lock has it, and who returns. The
/// second one gets the token that came back, if it did in time.
#[test]
fn tokens_are_used_again() {
    explore(|| {
        let socket = Socket::new(2, 1);
        let (passed, returned) = both(
            &socket,
            |socket| socket.recvmsg_and_eat(0..1, 1) + socket.recvmsg_and_eat(1..2, 1),
            |socket| socket.dontneed(0, 1) + socket.dontneed(0, 2),
        );

        assert_eq!(passed, 2);
        return_all(&socket, returned, 0);
    });
}

/// Net_iovs by who has them: two page pools that take and give back. Each time that one gets none is told once, and
/// once that it is over.
#[test]
fn no_net_iov_is_in_two_pools() {
    const NIOVS: usize = 3;
    struct Binding {
        free: Mutex<FreeList<Vec<u32>, Vec<Account>>>,
        owners: [AtomicIsize; NIOVS],
        exhausted: AtomicIsize,
        available: AtomicIsize,
    }

    fn pool(binding: &Binding, name: isize) {
        for _ in 0..2 {
            let mut batch = Batch::new();
            if binding.free.lock().unwrap().take(&mut batch, 2, None, || 0) {
                binding.exhausted.fetch_add(1, Relaxed);
            }

            for &index in batch.take_raw() {
                let owner = &binding.owners[index as usize];
                assert_eq!(owner.swap(name, Relaxed), 0, "somebody has it");
                assert_eq!(owner.swap(0, Relaxed), name, "somebody took it");
                let back = [wrapper::came_back(index)];
                if binding.free.lock().unwrap().put(back, None, || 0) {
                    binding.available.fetch_add(1, Relaxed);
                }
            }
        }
    }

    explore(|| {
        let binding = Arc::new(Binding {
            free: Mutex::new(FreeList::full(vec![0; NIOVS], vec![])),
            owners: std::array::from_fn(|_| AtomicIsize::new(0)),
            exhausted: AtomicIsize::new(0),
            available: AtomicIsize::new(0),
        });
        let other = {
            let binding = binding.clone();
            thread::spawn(move || pool(&binding, 2))
        };
        pool(&binding, 1);
        other.join().unwrap();
        let supply = binding.free.lock().unwrap().supply(|| 0);
        let exhausted = binding.exhausted.load(Relaxed);
        assert_eq!(supply.taken, supply.returned);
        assert!(!supply.is_exhausted);
        assert_eq!(supply.exhausted, exhausted as u64);
        assert_eq!(binding.available.load(Relaxed), exhausted);
    });
}

/// Two queues that share a binding. One asks while the other one gives back what is more than its share, and asks again:
/// either gets it, or the first one is woken, and there is one for it.
#[test]
fn whoever_asks_in_vain_is_woken() {
    struct Binding {
        free: Mutex<FreeList<Vec<u32>, Vec<Account>>>,
        /// How often each queue is to look.
        polls: [AtomicIsize; 2],
    }

    impl Binding {
        fn locked<R>(&self, change: impl FnOnce(&mut FreeList<Vec<u32>, Vec<Account>>) -> R) -> R {
            let mut list = self.free.lock().unwrap();
            let result = change(&mut list);

            while let Some(queue) = list.wake() {
                self.polls[queue].fetch_add(1, Relaxed);
            }
            result
        }

        fn take(&self, queue: usize) -> Option<u32> {
            let mut batch = Batch::new();
            let _ = self.locked(|list| list.take(&mut batch, 1, Some(queue), || 0));
            batch.take_raw().first().copied()
        }
    }

    explore(|| {
        let list = FreeList::full(vec![0; 4], vec![Account::default(); 2]);
        let binding = Arc::new(Binding {
            free: Mutex::new(list),
            polls: std::array::from_fn(|_| AtomicIsize::new(0)),
        });
        // Both have started, and then one has three of four.
        let taken = [0, 1, 0, 0].map(|queue| binding.take(queue).unwrap());
        let other = {
            let binding = binding.clone();
            thread::spawn(move || {
                let back = [wrapper::came_back(taken[3])];
                let _ = binding.locked(|list| list.put(back, Some(0), || 0));
                binding.take(0)
            })
        };
        let got = binding.take(1);
        let kept = other.join().unwrap();
        let polls = binding.polls.each_ref().map(|polls| polls.load(Relaxed));

        match (got, kept) {
            (Some(_), None) => assert_eq!(polls, [0, 0]),
            // It was lent again before somebody wanted it.
            (None, Some(_)) => assert_eq!(polls, [0, 0]),
            (None, None) => {
                assert_eq!(polls, [0, 1]);
                assert!(binding.take(1).is_some());
            }
            (Some(_), Some(_)) => panic!("there is one"),
        }
    });
}
