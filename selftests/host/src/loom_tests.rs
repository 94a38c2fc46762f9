// SPDX-License-Identifier: GPL-2.0

//! The module's own code under [loom], which goes through all interleavings of threads.
//!
//! What threads share is behind locks here as it is there, and references are counted as page pools
//! count them.

use std::collections::BTreeMap;

use loom::{
    model::Builder,
    sync::{
        atomic::{AtomicIsize, Ordering::Relaxed},
        Arc, Mutex, MutexGuard,
    },
    thread,
};

use crate::{
    cmsg::{self, Frag, Part, Place, Reader, Stop},
    free_list::{Batch, FreeList, NiovId},
    token::{take_back, Range, Table, Take},
    window::Window,
};

/// All interleavings in which threads are preempted up to three times, or `LOOM_MAX_PREEMPTIONS`
/// times.
pub(crate) fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(3);
    builder.check(model);
}

/// Buffers, by how many references there are to each.
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

    fn counts(&self) -> Vec<isize> {
        self.0.iter().map(|count| count.load(Relaxed)).collect()
    }
}

/// A socket: its tokens, and what user space remembers of them.
struct Socket {
    buffers: Arc<Buffers>,
    tokens: Mutex<BTreeMap<u32, Option<usize>>>,
    told: Mutex<Vec<u32>>,
}

impl Socket {
    fn new(buffers: usize) -> Arc<Self> {
        let buffers = (0..buffers).map(|_| AtomicIsize::new(1)).collect();
        Arc::new(Self {
            buffers: Arc::new(Buffers(buffers)),
            tokens: Mutex::new(BTreeMap::new()),
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
    /// `room` control messages.
    fn recvmsg(&self, buffers: std::ops::Range<usize>, room: usize) -> usize {
        let frags: Vec<_> = buffers.map(TestFrag).collect();
        let part = Part {
            readable: false,
            linear: &[],
            frags: &frags,
        };
        let mut reader = User { socket: self, room };
        let window = Window::new(0, frags.len());

        cmsg::pass([part].into_iter(), window, &mut reader, || self.lock()).unwrap_or(0)
    }

    fn dontneed(&self, start: u32, count: u32) -> usize {
        let range = Range { start, count };
        take_back(Range::tokens([range].into_iter()), || self.lock())
    }
}

struct Locked<'a> {
    tokens: MutexGuard<'a, BTreeMap<u32, Option<usize>>>,
    buffers: &'a Arc<Buffers>,
}

impl Table<usize> for Locked<'_> {
    type Error = ();

    fn reserve(&mut self) -> Result<u32, ()> {
        let token = (0..)
            .find(|token| !self.tokens.contains_key(token))
            .unwrap();
        self.tokens.insert(token, None);
        Ok(token)
    }

    fn commit(&mut self, token: u32, buffer: usize) {
        self.buffers.get(buffer);
        let old = self.tokens.insert(token, Some(buffer));
        assert_eq!(old, Some(None), "the token was not reserved any more");
    }

    fn cancel(&mut self, token: u32) {
        let old = self.tokens.remove(&token);
        assert_eq!(old, Some(None), "the token was not reserved any more");
    }
}

/// A reference that a token stood for.
struct Counted(Arc<Buffers>, usize);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.put(self.1);
    }
}

impl Take for Locked<'_> {
    type Counted = Counted;

    fn take(&mut self, token: u32) -> Option<Counted> {
        let buffer = (*self.tokens.get(&token)?)?;
        self.tokens.remove(&token);
        Some(Counted(self.buffers.clone(), buffer))
    }
}

/// A frag of one byte, in a buffer of its own.
struct TestFrag(usize);

impl Frag for TestFrag {
    type Iov<'a> = usize;

    fn size(&self) -> usize {
        1
    }

    fn place(&self) -> Option<Place<usize>> {
        Some(Place {
            iov: self.0,
            dmabuf_id: 1,
            offset: 0,
        })
    }
}

struct User<'a> {
    socket: &'a Socket,
    room: usize,
}

impl From<Stop> for () {
    fn from(_: Stop) {}
}

impl Reader for User<'_> {
    type Error = ();

    fn copy(&mut self, _data: &[u8]) -> Result<(), ()> {
        unreachable!("there are no linear bytes")
    }

    fn put_linear(&mut self, _len: usize) -> Result<(), ()> {
        unreachable!("there are no linear bytes")
    }

    fn put_frag(&mut self, _id: u32, _offset: u64, _len: usize, token: u32) -> Result<(), ()> {
        self.room = self.room.checked_sub(1).ok_or(())?;
        self.socket.told.lock().unwrap().push(token);
        Ok(())
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
    let rest: usize = told.iter().map(|&token| socket.dontneed(token, 1)).sum();

    assert_eq!(already + rest, told.len(), "one return for each token told");
    assert!(socket.tokens.lock().unwrap().is_empty(), "no token is left");
    for count in socket.buffers.counts() {
        assert_eq!(count, references);
    }
}

/// Another thread guesses tokens before they are committed, or told.
#[test]
fn tokens_returned_while_they_are_handed_out() {
    for room in 0..=2 {
        explore(move || {
            let socket = Socket::new(2);
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

/// The skb is gone once `recvmsg()` has returned: only tokens hold the buffers then.
#[test]
fn tokens_outlive_the_skb() {
    explore(|| {
        let socket = Socket::new(1);
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
        let socket = Socket::new(3);
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
        let socket = Socket::new(18);
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

/// Two calls of `recvmsg()`, one after the other as the socket lock has it, and who returns.
#[test]
fn tokens_are_used_again() {
    explore(|| {
        let socket = Socket::new(2);
        let (passed, returned) = both(
            &socket,
            |socket| socket.recvmsg(0..1, 1) + socket.recvmsg(1..2, 1),
            |socket| socket.dontneed(0, 1) + socket.dontneed(0, 2),
        );

        assert_eq!(passed, 2);
        return_all(&socket, returned, 1);
    });
}

/// Net_iovs by who has them: two page pools that take and give back.
#[test]
fn no_net_iov_is_in_two_pools() {
    const NIOVS: usize = 3;
    struct Binding {
        free: Mutex<FreeList<Vec<u32>>>,
        owners: [AtomicIsize; NIOVS],
    }

    fn pool(binding: &Binding, name: isize) {
        for _ in 0..2 {
            let mut batch = Batch::new();
            binding.free.lock().unwrap().take(&mut batch, 2);

            for id in batch {
                let index = id.into_raw();
                let owner = &binding.owners[index as usize];
                assert_eq!(owner.swap(name, Relaxed), 0, "somebody has it");
                assert_eq!(owner.swap(0, Relaxed), name, "somebody took it");
                binding.free.lock().unwrap().put(NiovId::from_raw(index));
            }
        }
    }

    explore(|| {
        let binding = Arc::new(Binding {
            free: Mutex::new(FreeList::full(vec![0; NIOVS])),
            owners: std::array::from_fn(|_| AtomicIsize::new(0)),
        });
        let other = {
            let binding = binding.clone();
            thread::spawn(move || pool(&binding, 2))
        };
        pool(&binding, 1);
        other.join().unwrap();
        assert_eq!(binding.free.lock().unwrap().in_use(), 0);
    });
}
