// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Tokens: the right to use a piece of device memory, and how it goes back to the NIC.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use log::warn;

use crate::local::Outbox;
use crate::socket::Socket;

/// `SO_DEVMEM_DONTNEED`.
pub const SO_DEVMEM_DONTNEED: i32 = 80;
/// Most ranges that the kernel takes in one call.
pub const MAX_RANGES: usize = 128;
/// Most tokens that the kernel takes in one call.
pub const MAX_TOKENS: u32 = 1024;

/// `struct dmabuf_token` of `<linux/uio.h>`: consecutive tokens of one socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRange {
    /// The first token.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// Gives `ranges` back to the NIC with one call, as they are; returns how many tokens were returned.
///
/// The kernel passes over tokens that the socket does not hold. Receivers want [`Token`] or
/// [`TokenBatch`], which keep the kernel's limits and count for them.
///
/// # Errors
///
/// Those of `setsockopt(SO_DEVMEM_DONTNEED)`: `EINVAL` for more than [`MAX_RANGES`], `EBADF` if it is no TCP
/// socket, `ENOMEM`. A kernel that knows nothing of device memory says `ENOPROTOOPT`.
pub fn dontneed(socket: impl AsFd, ranges: &[TokenRange]) -> io::Result<u32> {
    let len = libc::socklen_t::try_from(size_of_val(ranges))
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `ranges` is readable for `len` bytes, and the kernel only reads it.
    let returned = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_DEVMEM_DONTNEED,
            ranges.as_ptr().cast(),
            len,
        )
    };
    u32::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// The right to use one piece of device memory, which goes back to the NIC when this is dropped.
///
/// Dropping costs a system call for each token; a [`TokenBatch`] returns many with one. A token of a
/// [`uring::Receiver`](crate::uring::Receiver) costs none, unless that is waiting: it goes with the next call of that.
///
/// A drop cannot say that it failed, which takes a kernel without memory for a few bytes, but in the log; the piece
/// comes back when the socket is closed then. A [`TokenBatch`] says so, and tries again.
#[derive(Debug)]
#[must_use = "a token which is dropped gives its memory back to the NIC"]
pub struct Token<'s> {
    socket: Socket<'s>,
    id: u32,
    way: Option<Way>,
}

/// How tokens go back that do not do so by a call of their own.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// By a ring, which collects them.
    Ring(Arc<Collector>),
    /// To the other end of a [`Channel`](crate::local::Channel).
    Peer(Arc<Outbox>),
}

impl<'s> Token<'s> {
    /// A token that goes back by a call of its own, or in another way.
    pub(crate) fn new(socket: Socket<'s>, id: u32, way: Option<&Way>) -> Self {
        Self {
            socket,
            id,
            way: way.cloned(),
        }
    }

    /// Its number, valid on its socket only.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Gives up the token without returning it: the memory stays taken until the number is passed
    /// to [`dontneed`] or the socket is closed.
    pub fn into_id(self) -> u32 {
        // All but the return of the token.
        let mut token = ManuallyDrop::new(self);
        drop(token.way.take());
        token.socket.let_go();
        token.id
    }

    /// Gives it back, and tells if that failed: then the token is still there, to be given back later.
    fn give_back(mut self) -> Result<(), (Self, io::Error)> {
        match self.try_return() {
            Ok(()) => {
                self.into_id();
                Ok(())
            }
            Err(err) => Err((self, err)),
        }
    }

    fn try_return(&mut self) -> io::Result<()> {
        let range = TokenRange {
            start: self.id,
            count: 1,
        };
        let peer = match &self.way {
            Some(Way::Ring(ring)) if ring.push(self.id) => return Ok(()),
            Some(Way::Peer(peer)) => Some(peer),
            _ => None,
        };
        give_back(&self.socket, peer, &[range]).map(drop)
    }
}

impl Drop for Token<'_> {
    fn drop(&mut self) {
        // The socket is open, and the token is the caller's own, so this cannot fail but for want of memory, and
        // closing the socket returns the token then.
        if let Err(err) = self.try_return() {
            warn!("token {} has not gone back: {err}", self.id);
        }
    }
}

/// Gives ranges back to the kernel, or to a peer; returns how many tokens were returned.
fn give_back(
    socket: &Socket<'_>,
    peer: Option<&Arc<Outbox>>,
    ranges: &[TokenRange],
) -> io::Result<u32> {
    match peer {
        Some(peer) => peer.give_back(socket.as_fd(), ranges),
        None => dontneed(socket, ranges),
    }
}

/// Tokens collected as the ranges that one call takes.
#[derive(Debug)]
pub(crate) struct Ranges {
    ranges: [TokenRange; MAX_RANGES],
    len: usize,
    tokens: u32,
}

impl Ranges {
    pub(crate) fn new() -> Self {
        Self {
            ranges: [TokenRange { start: 0, count: 0 }; MAX_RANGES],
            len: 0,
            tokens: 0,
        }
    }

    pub(crate) fn as_slice(&self) -> &[TokenRange] {
        &self.ranges[..self.len]
    }

    /// Adds a token, unless that would pass a limit of the kernel's.
    fn push(&mut self, id: u32) -> bool {
        if self.tokens == MAX_TOKENS {
            return false;
        }
        match self.ranges[..self.len].last_mut() {
            Some(last) if last.start.checked_add(last.count) == Some(id) => last.count += 1,
            _ if self.len == MAX_RANGES => return false,
            _ => {
                self.ranges[self.len] = TokenRange {
                    start: id,
                    count: 1,
                };
                self.len += 1;
            }
        }
        self.tokens += 1;
        true
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.tokens = 0;
    }

    /// What the kernel's answer to a call with these means: fails unless it took all.
    pub(crate) fn check(&self, returned: u32) -> io::Result<()> {
        match returned == self.tokens {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "the kernel knew only {returned} of {} tokens",
                self.tokens
            ))),
        }
    }
}

/// Where a ring collects the tokens that it is to return.
#[derive(Debug)]
pub(crate) struct Collector(Mutex<Collected>);

#[derive(Debug)]
struct Collected {
    /// Whether the ring is there to return them.
    open: bool,
    /// Whether whoever would have the ring do so waits.
    waiting: bool,
    /// Calls to make, the last of which takes more tokens.
    calls: VecDeque<Box<Ranges>>,
    /// Calls that were made, to be used again.
    #[expect(clippy::vec_box, reason = "requests in flight refer to them")]
    spare: Vec<Box<Ranges>>,
}

/// Calls for which there is room from the start.
const SPARE: usize = 16;

#[cfg_attr(
    not(feature = "uring"),
    expect(dead_code, reason = "there are no rings")
)]
impl Collector {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Collected {
            open: true,
            waiting: false,
            calls: VecDeque::with_capacity(SPARE),
            spare: (0..SPARE).map(|_| Box::new(Ranges::new())).collect(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        // Nothing here leaves things half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a token over, unless nobody would return it any more.
    pub(crate) fn push(&self, id: u32) -> bool {
        let mut collected = self.lock();
        if !collected.open || collected.waiting {
            return false;
        }
        if !collected.calls.back_mut().is_some_and(|call| call.push(id)) {
            let spare = collected.spare.pop();
            let mut call = spare.unwrap_or_else(|| Box::new(Ranges::new()));
            call.push(id);
            collected.calls.push_back(call);
        }
        true
    }

    /// The next call to make.
    pub(crate) fn take(&self) -> Option<Box<Ranges>> {
        self.lock().calls.pop_front()
    }

    /// Puts back a call that could not be made.
    pub(crate) fn put_back(&self, call: Box<Ranges>) {
        self.lock().calls.push_front(call);
    }

    /// Gives back a call that was made.
    pub(crate) fn recycle(&self, mut call: Box<Ranges>) {
        call.clear();
        self.lock().spare.push(call);
    }

    /// Whether tokens return themselves for now: what is waited for may not come before the NIC has their memory.
    pub(crate) fn set_waiting(&self, waiting: bool) {
        self.lock().waiting = waiting;
    }

    /// Whether they do.
    #[cfg(all(test, feature = "uring"))]
    pub(crate) fn is_waiting(&self) -> bool {
        self.lock().waiting
    }

    /// From now on tokens return themselves.
    pub(crate) fn close(&self) {
        self.lock().open = false;
    }
}

/// Tokens of one socket on their way back to the NIC.
///
/// Consecutive tokens are joined, and a call is made whenever one is full, at [`flush`] and when this
/// is dropped. If a call fails its tokens stay here, and go with the next.
///
/// [`flush`]: TokenBatch::flush
#[derive(Debug)]
pub struct TokenBatch<'s> {
    socket: Socket<'s>,
    /// Who gets them, if that is not the kernel.
    peer: Option<Arc<Outbox>>,
    queue: Queue,
    /// Tokens of other sockets and of rings that could not go back.
    others: Vec<Token<'s>>,
}

/// Calls that are to be made. None is forgotten before the kernel has heard of it.
#[derive(Debug)]
struct Queue {
    /// Those that are full.
    full: Vec<Ranges>,
    /// The one that takes more tokens.
    last: Ranges,
    /// Tokens returned in all.
    returned: u64,
}

impl Queue {
    fn new() -> Self {
        Self {
            full: Vec::new(),
            last: Ranges::new(),
            returned: 0,
        }
    }

    /// Adds a token, and makes the calls that are full.
    fn push(
        &mut self,
        id: u32,
        call: impl FnMut(&[TokenRange]) -> io::Result<u32>,
    ) -> io::Result<()> {
        if self.last.push(id) {
            return Ok(());
        }
        self.full.push(mem::replace(&mut self.last, Ranges::new()));
        self.last.push(id);
        self.flush_full(call)
    }

    /// Makes all calls. Those that fail stay, for the next time; the first error is told.
    fn flush(&mut self, mut call: impl FnMut(&[TokenRange]) -> io::Result<u32>) -> io::Result<()> {
        let mut result = self.flush_full(&mut call);
        if self.last.len > 0 {
            match call(self.last.as_slice()) {
                Ok(returned) => {
                    self.returned += u64::from(returned);
                    result = result.and(self.last.check(returned));
                    self.last.clear();
                }
                Err(err) => result = result.and(Err(err)),
            }
        }
        result
    }

    fn flush_full(
        &mut self,
        mut call: impl FnMut(&[TokenRange]) -> io::Result<u32>,
    ) -> io::Result<()> {
        let mut first = None;
        self.full.retain(|ranges| {
            let (outcome, stays) = match call(ranges.as_slice()) {
                Ok(returned) => {
                    self.returned += u64::from(returned);
                    (ranges.check(returned), false)
                }
                Err(err) => (Err(err), true),
            };
            first = first.take().or(outcome.err());
            stays
        });
        first.map_or(Ok(()), Err)
    }

    /// Tokens that have not gone back.
    fn len(&self) -> u64 {
        let full: u64 = self
            .full
            .iter()
            .map(|ranges| u64::from(ranges.tokens))
            .sum();
        full + u64::from(self.last.tokens)
    }
}

impl<'s> TokenBatch<'s> {
    /// An empty batch for tokens of `socket`.
    pub fn new(socket: impl Into<Socket<'s>>) -> Self {
        Self {
            socket: socket.into(),
            peer: None,
            queue: Queue::new(),
            others: Vec::new(),
        }
    }

    /// Adds a token. One of another socket, or of a ring, returns itself there instead.
    ///
    /// # Errors
    ///
    /// Those of [`flush`](Self::flush). The token was added, whatever went wrong.
    pub fn push(&mut self, token: Token<'s>) -> io::Result<()> {
        if token.socket.as_raw_fd() != self.socket.as_raw_fd() {
            return self.return_other(token);
        }
        match &token.way {
            Some(Way::Ring(_)) => return self.return_other(token),
            Some(Way::Peer(peer)) => self.peer = Some(Arc::clone(peer)),
            None => (),
        }
        let (socket, peer) = (&self.socket, self.peer.as_ref());
        self.queue
            .push(token.into_id(), |ranges| give_back(socket, peer, ranges))
    }

    /// Returns what has been added so far.
    ///
    /// # Errors
    ///
    /// The first one of `setsockopt(SO_DEVMEM_DONTNEED)`. The tokens that it was about are still here, and
    /// go with the next call. An error of kind [`Other`](io::ErrorKind::Other) says that the kernel did not
    /// know all of the tokens: these are gone.
    pub fn flush(&mut self) -> io::Result<()> {
        let (socket, peer) = (&self.socket, self.peer.as_ref());
        let result = self.queue.flush(|ranges| give_back(socket, peer, ranges));
        mem::take(&mut self.others)
            .into_iter()
            .fold(result, |result, token| result.and(self.return_other(token)))
    }

    fn return_other(&mut self, token: Token<'s>) -> io::Result<()> {
        token.give_back().map_err(|(token, err)| {
            self.others.push(token);
            err
        })
    }

    /// How many tokens this batch has returned in all.
    pub fn returned(&self) -> u64 {
        self.queue.returned
    }

    /// How many tokens this batch has, and has not returned.
    pub fn held(&self) -> u64 {
        self.queue.len() + self.others.len() as u64
    }
}

impl Drop for TokenBatch<'_> {
    fn drop(&mut self) {
        // As for a token: closing the socket returns what this could not.
        if let Err(err) = self.flush() {
            warn!("{} tokens have not gone back: {err}", self.held());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;
    use std::net::UdpSocket;
    use std::panic::AssertUnwindSafe;
    use std::panic::catch_unwind;

    /// Splits `ids` into calls the way a batch does.
    fn calls(ids: &[u32]) -> Vec<Vec<TokenRange>> {
        let mut calls = Vec::new();
        let mut ranges = Ranges::new();
        for &id in ids {
            if !ranges.push(id) {
                calls.push(ranges.as_slice().to_vec());
                ranges.clear();
                assert!(ranges.push(id));
            }
        }
        calls.push(ranges.as_slice().to_vec());
        calls
    }

    /// Runs of consecutive tokens, some long enough for the limit on tokens.
    fn ids() -> impl Strategy<Value = Vec<u32>> {
        let run = (any::<u32>(), prop_oneof![4 => 1..4u32, 1 => 1..3000u32])
            .prop_map(|(start, len)| (0..len).filter_map(move |i| start.checked_add(i)));
        proptest::collection::vec(run, 0..300).prop_map(|runs| runs.into_iter().flatten().collect())
    }

    #[test]
    fn consecutive_tokens_become_one_range() {
        assert_eq!(
            calls(&[7, 8, 9, 11]),
            [[
                TokenRange { start: 7, count: 3 },
                TokenRange {
                    start: 11,
                    count: 1
                }
            ]]
        );
    }

    #[test]
    fn the_last_token_does_not_wrap_into_the_first() {
        assert_eq!(
            calls(&[u32::MAX, 0]),
            [[
                TokenRange {
                    start: u32::MAX,
                    count: 1
                },
                TokenRange { start: 0, count: 1 }
            ]]
        );
    }

    /// A kernel that has some tokens out, and fails some calls.
    #[derive(Default)]
    struct Kernel {
        out: BTreeSet<u32>,
        /// Which of the calls to come fail.
        failures: VecDeque<bool>,
    }

    impl Kernel {
        fn dontneed(&mut self, ranges: &[TokenRange]) -> io::Result<u32> {
            if self.failures.pop_front() == Some(true) {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            let ids = ranges
                .iter()
                .flat_map(|r| r.start..=r.start + (r.count - 1));
            Ok(ids.map(|id| u32::from(self.out.remove(&id))).sum())
        }
    }

    /// More than a call takes, none of them neighbours.
    const SCATTERED: u32 = 3 * 128 + 7;

    #[test]
    fn a_token_whose_call_failed_goes_with_the_next() {
        let mut kernel = Kernel {
            out: (0..SCATTERED).map(|i| 2 * i).collect(),
            failures: [true, true, false].into(),
        };
        let mut queue = Queue::new();
        let mut failed = 0;
        for i in 0..SCATTERED {
            let result = queue.push(2 * i, |ranges| kernel.dontneed(ranges));
            failed += u32::from(result.is_err());
        }
        assert_eq!(failed, 2);
        assert_eq!(queue.len() + queue.returned, u64::from(SCATTERED));
        kernel.failures = [true].into();
        queue.flush(|ranges| kernel.dontneed(ranges)).unwrap_err();
        assert!(queue.len() > 0);
        queue.flush(|ranges| kernel.dontneed(ranges)).unwrap();
        assert_eq!((queue.len(), queue.returned), (0, SCATTERED.into()));
        assert!(kernel.out.is_empty());
    }

    #[test]
    fn a_call_that_panics_loses_nothing() {
        let mut queue = Queue::new();
        let push = |queue: &mut Queue, id| {
            let push = AssertUnwindSafe(|| queue.push(id, |_| panic!("meant")));
            drop(catch_unwind(push));
        };
        for i in 0..SCATTERED {
            push(&mut queue, 2 * i);
        }
        assert_eq!(queue.len(), SCATTERED.into());
    }

    #[test]
    fn what_the_kernel_does_not_know_is_told_and_gone() {
        let mut kernel = Kernel::default();
        let mut queue = Queue::new();
        queue.push(7, |ranges| kernel.dontneed(ranges)).unwrap();
        let err = queue.flush(|ranges| kernel.dontneed(ranges)).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::Other);
        assert_eq!((queue.len(), queue.returned), (0, 0));
        queue.flush(|ranges| kernel.dontneed(ranges)).unwrap();
    }

    /// A socket without device memory: the kernel knows none of the tokens; UDP knows no tokens at all.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn a_batch_keeps_what_it_could_not_return() {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut batch = TokenBatch::new(&udp);
        batch.push(Token::new((&udp).into(), 5, None)).unwrap();
        batch
            .push(Token::new((&other).into(), 6, None))
            .unwrap_err();
        for _ in 0..2 {
            batch.flush().unwrap_err();
            assert_eq!((batch.held(), batch.returned()), (2, 0));
        }

        let ring = Arc::new(Collector::new());
        batch
            .push(Token::new(
                (&other).into(),
                7,
                Some(&Way::Ring(Arc::clone(&ring))),
            ))
            .unwrap();
        assert_eq!(batch.held(), 2);
        assert_eq!(
            ring.take().unwrap().as_slice(),
            [TokenRange { start: 7, count: 1 }]
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn a_drop_that_fails_is_logged() {
        testing::start_log();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        drop(Token::new((&udp).into(), 31_415_926, None));
        assert!(testing::was_logged("token 31415926 has not gone back"));
        let mut batch = TokenBatch::new(&udp);
        for id in 0..53 {
            batch.push(Token::new((&udp).into(), id, None)).unwrap();
        }
        drop(batch);
        assert!(testing::was_logged("53 tokens have not gone back"));
    }

    #[test]
    fn a_call_that_was_put_back_takes_more_tokens() {
        let ring = Collector::new();
        assert!(ring.push(1));
        let call = ring.take().unwrap();
        ring.put_back(call);
        assert!(ring.push(2));
        let call = ring.take().unwrap();
        assert_eq!(call.as_slice(), [TokenRange { start: 1, count: 2 }]);
        ring.close();
        assert!(!ring.push(3), "nobody would return it");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        #[cfg_attr(miri, ignore = "takes long there, and there is no unsafe code in it")]
        fn no_failure_loses_a_token(
            ids in ids(), failures in proptest::collection::vec(any::<bool>(), 0..40)
        ) {
            let mut kernel = Kernel { out: ids.iter().copied().collect(), failures: failures.into() };
            let all = kernel.out.len() as u64;
            let mut queue = Queue::new();
            for &id in &kernel.out.clone() {
                let _ = queue.push(id, |ranges| kernel.dontneed(ranges));
                prop_assert_eq!(queue.returned + kernel.out.len() as u64, all);
            }
            while !kernel.failures.is_empty() {
                let _ = queue.flush(|ranges| kernel.dontneed(ranges));
                if queue.len() == 0 {
                    break;
                }
            }
            queue.flush(|ranges| kernel.dontneed(ranges)).unwrap();
            prop_assert_eq!((queue.returned, queue.len()), (all, 0));
            prop_assert!(kernel.out.is_empty());
        }

        #[test]
        fn every_token_goes_back_once_and_in_order(ids in ids()) {
            let back: Vec<u32> = calls(&ids)
                .iter()
                .flatten()
                .flat_map(|r| (0..r.count).map(|i| r.start + i))
                .collect();
            prop_assert_eq!(back, ids);
        }

        #[test]
        fn calls_keep_the_limits(ids in ids()) {
            for call in calls(&ids) {
                prop_assert!(call.len() <= MAX_RANGES);
                prop_assert!(call.iter().map(|r| r.count).sum::<u32>() <= MAX_TOKENS);
            }
        }
    }
}
