// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Completions: how the kernel tells that it no longer needs memory which was sent.
//!
//! The kernel numbers the calls of `sendmsg(MSG_ZEROCOPY)` of a socket from 0 on, those that sent
//! something, and puts ranges of numbers on the socket's error queue when it is done with them.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use log::warn;

use crate::cmsg::Cmsgs;
use crate::message;

const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;
/// Size of `struct sock_extended_err`. The offender's address may follow.
const EXTENDED_ERR: usize = 16;
const CONTROL: usize = 256;

/// Calls of `sendmsg()` whose memory the kernel no longer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Completion {
    /// Number of the first call.
    pub first: u32,
    /// How many there are. Numbers wrap.
    pub count: u64,
    /// Whether the kernel copied the data (of the first of them, at least) after all.
    pub copied: bool,
}

impl Completion {
    /// Reads a `struct sock_extended_err`; `None` if it is about something else.
    fn parse(data: &[u8]) -> Option<Self> {
        let data: &[u8; EXTENDED_ERR] = data.first_chunk()?;
        let word = |at: usize| {
            let bytes = [data[at], data[at + 1], data[at + 2], data[at + 3]];
            u32::from_ne_bytes(bytes)
        };
        let (errno, origin, code) = (word(0), data[4], data[6]);
        let (first, last) = (word(8), word(12));
        (errno == 0 && origin == SO_EE_ORIGIN_ZEROCOPY).then_some(Self {
            first,
            count: u64::from(last.wrapping_sub(first)) + 1,
            copied: code & SO_EE_CODE_ZEROCOPY_COPIED != 0,
        })
    }
}

/// The completions in the control data of a message from an error queue.
pub fn parse(control: &[u8]) -> impl Iterator<Item = Completion> + '_ {
    Cmsgs::new(control)
        .filter(|cmsg| {
            matches!(
                (cmsg.level, cmsg.kind),
                (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
            )
        })
        .filter_map(|cmsg| Completion::parse(cmsg.data))
}

/// Takes the next message off a socket's error queue, without waiting: `None` if it is empty.
///
/// A message that is not about completions gives an empty list.
///
/// # Errors
///
/// Those of `recvmsg(MSG_ERRQUEUE)`.
pub fn read(socket: impl AsFd) -> io::Result<Option<Vec<Completion>>> {
    let mut control = [0u8; CONTROL];
    loop {
        let buffer = (control.as_mut_ptr(), control.len());
        let mut msg = message::header((ptr::null_mut(), 0), buffer)?;
        // SAFETY: `msg` points to a control buffer which is writable for its length, and to nothing else.
        let ret = unsafe {
            libc::recvmsg(
                socket.as_fd().as_raw_fd(),
                &mut msg,
                libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT,
            )
        };
        if ret >= 0 {
            return Ok(Some(parse(message::control(&msg, &control)).collect()));
        }
        let err = io::Error::last_os_error();
        match err.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::Interrupted => (),
            _ => return Err(err),
        }
    }
}

/// A source whose memory is free again.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the memory that was sent, or what kept it, is in here"]
#[non_exhaustive]
pub struct Sent<T> {
    /// What was given to [`Sender::send`](crate::Sender::send).
    pub source: T,
    /// Bytes of it that were sent: all, unless sending failed in between.
    pub bytes: u64,
    /// Whether the kernel copied some after all.
    pub copied: bool,
}

/// Which source a call of `sendmsg()` was for.
pub(crate) type Key = u64;

/// A source that is being sent, or waits for its completions.
#[derive(Debug)]
struct Pending<T> {
    sent: Sent<T>,
    /// Calls that are not completed.
    calls: u64,
    /// Whether there are no more calls to come.
    closed: bool,
}

/// What a socket sends: its sources, and the calls that the kernel has not completed yet.
#[derive(Debug)]
pub(crate) struct InFlight<T> {
    /// What tells it from those of other sockets.
    id: u64,
    /// Number of the oldest call in `calls`.
    first: u32,
    /// The source of each call, `None` if completed before an older one.
    calls: VecDeque<Option<Key>>,
    next_key: Key,
    pending: BTreeMap<Key, Pending<T>>,
    done: VecDeque<(Key, Sent<T>)>,
    /// Why nobody can tell any more what the kernel reads.
    lost: Option<String>,
    /// Whether the connection was ended here, so that there are no more calls.
    ended: bool,
}

/// How many there have been.
static SOCKETS: AtomicU64 = AtomicU64::new(0);

impl<T> InFlight<T> {
    pub(crate) fn new() -> Self {
        Self {
            id: SOCKETS.fetch_add(1, Ordering::Relaxed),
            first: 0,
            calls: VecDeque::new(),
            next_key: 0,
            pending: BTreeMap::new(),
            done: VecDeque::new(),
            lost: None,
            ended: false,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// There are no more calls from now on.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Fails unless there may be calls.
    pub(crate) fn check_open(&self) -> io::Result<()> {
        self.check()?;
        match self.ended {
            false => Ok(()),
            true => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the connection was aborted",
            )),
        }
    }

    /// From now on nobody can tell what the kernel still reads. What is in flight never comes back.
    pub(crate) fn lose(&mut self, why: &io::Error) {
        self.lost.get_or_insert_with(|| why.to_string());
        self.forget();
    }

    /// Fails if it has come to that.
    pub(crate) fn check(&self) -> io::Result<()> {
        match &self.lost {
            None => Ok(()),
            Some(why) => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                format!("the sender lost track of what the kernel reads: {why}"),
            )),
        }
    }

    /// Takes a source over.
    pub(crate) fn open(&mut self, source: T) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        let sent = Sent {
            source,
            bytes: 0,
            copied: false,
        };
        let pending = Pending {
            sent,
            calls: 0,
            closed: false,
        };
        self.pending.insert(key, pending);
        key
    }

    /// Counts a call that sent so many bytes of an open source.
    pub(crate) fn add_call(&mut self, key: Key, bytes: u64) {
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.sent.bytes += bytes;
            pending.calls += 1;
            self.calls.push_back(Some(key));
        }
    }

    /// There are no more calls to come for an open source. Gives it back if there were none at all.
    pub(crate) fn close(&mut self, key: Key) -> Option<T> {
        let pending = self.pending.get_mut(&key)?;
        pending.closed = true;
        if pending.calls > 0 {
            return None;
        }
        let sent = self.pending.remove(&key)?.sent;
        if sent.bytes == 0 {
            return Some(sent.source);
        }
        self.done.push_back((key, sent));
        None
    }

    /// There are no more calls to come for an open source for now. It comes back as all others do, even if
    /// there were none at all.
    #[cfg(feature = "tokio")]
    pub(crate) fn set_aside(&mut self, key: Key) {
        if let Some(source) = self.close(key) {
            self.push_done(key, source);
        }
    }

    /// Takes over a source of which nothing was sent, nor will be. It comes back as all others do.
    pub(crate) fn give_back(&mut self, source: T) {
        let key = self.next_key;
        self.next_key += 1;
        self.push_done(key, source);
    }

    fn push_done(&mut self, key: Key, source: T) {
        let sent = Sent {
            source,
            bytes: 0,
            copied: false,
        };
        self.done.push_back((key, sent));
    }

    /// Whether it has a source, and has not given it back.
    pub(crate) fn has(&self, key: Key) -> bool {
        self.pending.contains_key(&key) || self.done.iter().any(|(done, _)| *done == key)
    }

    /// There are more calls to come for a source that was closed. Fails if it was given back meanwhile.
    pub(crate) fn reopen(&mut self, key: Key) -> io::Result<()> {
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.closed = false;
            return Ok(());
        }
        let at = self.done.iter().position(|(done, _)| *done == key);
        let Some((_, sent)) = at.and_then(|at| self.done.remove(at)) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the source of this rest was given back",
            ));
        };
        let pending = Pending {
            sent,
            calls: 0,
            closed: false,
        };
        self.pending.insert(key, pending);
        Ok(())
    }

    /// Notes a completion. Fails if it tells of calls that are not there: then somebody else makes some, so
    /// that nothing can be told from any number, and [`lose`](Self::lose) was called.
    pub(crate) fn complete(&mut self, completion: Completion) -> io::Result<()> {
        self.check()?;
        self.try_complete(completion)
            .inspect_err(|err| self.lose(err))
    }

    /// The same, but goes on after numbers that make no sense.
    pub(crate) fn try_complete(&mut self, completion: Completion) -> io::Result<()> {
        let start = usize::try_from(completion.first.wrapping_sub(self.first)).ok();
        let count = usize::try_from(completion.count).ok();
        let range = start
            .zip(count)
            .and_then(|(start, count)| Some(start..start.checked_add(count)?))
            .filter(|range| range.end <= self.calls.len())
            .filter(|range| self.calls.range(range.clone()).all(Option::is_some))
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{completion:?} is not in flight ({} calls from {} on are)",
                        self.calls.len(),
                        self.first
                    ),
                )
            })?;

        self.note(range, completion.copied);
        Ok(())
    }

    /// Notes that these calls are completed, as far as they were not.
    fn note(&mut self, range: Range<usize>, copied: bool) {
        for call in self.calls.range_mut(range) {
            let Some(key) = call.take() else { continue };
            let Some(pending) = self.pending.get_mut(&key) else {
                continue;
            };
            pending.calls -= 1;
            pending.sent.copied |= copied;
            if pending.calls == 0 && pending.closed {
                self.done
                    .extend(self.pending.remove(&key).map(|pending| (key, pending.sent)));
            }
        }
        while let Some(None) = self.calls.front() {
            self.calls.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    /// Gives everything back: nobody is owed it any more.
    pub(crate) fn recall(&mut self) {
        self.note(0..self.calls.len(), false);
    }

    /// The next source whose memory is free again, if there is one. Fails if there never will be.
    pub(crate) fn done_or_lost(&mut self) -> io::Result<Option<Sent<T>>> {
        match self.take_done() {
            None => self.check().map(|()| None),
            done => Ok(done),
        }
    }

    /// The next source whose memory is free again.
    pub(crate) fn take_done(&mut self) -> Option<Sent<T>> {
        self.done.pop_front().map(|(_, sent)| sent)
    }

    /// Whether there are sources whose memory is free again.
    #[cfg(feature = "uring")]
    pub(crate) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// Calls that the kernel has not completed, or has completed before an older one.
    pub(crate) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Leaves the sources which are in flight alone for good: nobody is told when they no longer are.
    pub(crate) fn forget(&mut self) {
        if !self.pending.is_empty() {
            let sources = self.pending.len();
            warn!(
                "the kernel or a peer may still read {sources} sources: their memory never comes back"
            );
        }
        mem::forget(mem::take(&mut self.pending));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmsg;
    use crate::testing;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn extended_err(errno: u32, origin: u8, code: u8, info: u32, data: u32) -> Vec<u8> {
        let mut out = errno.to_ne_bytes().to_vec();
        out.extend([origin, 0, code, 0]);
        out.extend(info.to_ne_bytes());
        out.extend(data.to_ne_bytes());
        out
    }

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<Completion> {
        parse(&cmsg::encode(level, kind, data)).collect()
    }

    const V4: (i32, i32) = (libc::SOL_IP, libc::IP_RECVERR);
    const V6: (i32, i32) = (libc::SOL_IPV6, libc::IPV6_RECVERR);

    #[test]
    fn completions_of_both_ip_versions() {
        for (level, kind) in [V4, V6] {
            let mut data = extended_err(0, 5, 0, 3, 7);
            // The offender's address, as the kernel appends it.
            data.extend([0; 16]);
            let expected = Completion {
                first: 3,
                count: 5,
                copied: false,
            };
            assert_eq!(message(level, kind, &data), [expected]);
        }
    }

    #[test]
    fn a_range_may_wrap_and_be_copied() {
        let expected = Completion {
            first: u32::MAX,
            count: 3,
            copied: true,
        };
        let data = extended_err(0, 5, 1, u32::MAX, 1);
        assert_eq!(message(V4.0, V4.1, &data), [expected]);
    }

    #[test]
    fn other_messages_are_none() {
        let icmp = extended_err(113, 2, 1, 0, 0);
        let timestamp = extended_err(42, 4, 0, 0, 0);
        for data in [&icmp[..], &timestamp, &icmp[..15], &[]] {
            assert_eq!(message(V4.0, V4.1, data), []);
        }
        let good = extended_err(0, 5, 0, 0, 0);
        assert_eq!(message(libc::SOL_SOCKET, V4.1, &good), []);
    }

    fn completion(first: u32, count: u64) -> Completion {
        Completion {
            first,
            count,
            copied: false,
        }
    }

    #[test]
    #[cfg(feature = "tokio")]
    fn a_source_that_was_set_aside_goes_on_or_comes_back() {
        let mut flight = InFlight::new();
        let nothing = flight.open("nothing");
        let some = flight.open("some");
        flight.add_call(some, 10);
        for key in [some, nothing] {
            flight.set_aside(key);
            assert!(flight.has(key));
            flight.reopen(key).unwrap();
            assert_eq!(flight.take_done(), None);
            flight.set_aside(key);
        }
        assert_eq!(
            flight.take_done().map(|sent| (sent.source, sent.bytes)),
            Some(("nothing", 0))
        );
        assert!(!flight.has(nothing));
        assert_eq!(flight.take_done(), None);
        flight.try_complete(completion(0, 1)).unwrap();
        assert_eq!(
            flight.take_done().map(|sent| (sent.source, sent.bytes)),
            Some(("some", 10))
        );
    }

    #[test]
    fn a_source_that_sent_nothing_comes_back_at_once() {
        let mut flight = InFlight::new();
        let key = flight.open("source");
        assert_eq!(flight.close(key), Some("source"));
        assert_eq!(flight.take_done(), None);
    }

    #[test]
    fn a_source_is_not_done_while_it_is_open() {
        let mut flight = InFlight::new();
        let key = flight.open("source");
        flight.add_call(key, 10);
        flight.complete(completion(0, 1)).unwrap();
        assert_eq!(flight.take_done(), None);
        assert_eq!(flight.close(key), None);
        let sent = flight.take_done().unwrap();
        assert_eq!((sent.source, sent.bytes), ("source", 10));
    }

    #[test]
    fn a_source_goes_on_until_it_was_given_back() {
        let mut flight = InFlight::new();
        let key = flight.open("source");
        flight.add_call(key, 1);
        assert_eq!(flight.close(key), None);
        // In flight.
        flight.reopen(key).unwrap();
        flight.complete(completion(0, 1)).unwrap();
        assert_eq!(flight.take_done(), None);
        assert_eq!(flight.close(key), None);
        // Free, but nobody has asked for it.
        assert!(flight.has(key));
        flight.reopen(key).unwrap();
        assert_eq!(flight.take_done(), None);
        flight.add_call(key, 2);
        assert_eq!(flight.close(key), None);
        assert_eq!(flight.take_done(), None);
        flight.complete(completion(1, 1)).unwrap();
        let sent = flight.take_done().unwrap();
        assert_eq!((sent.source, sent.bytes), ("source", 3));
        assert!(!flight.has(key));
        let err = flight.reopen(key).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn what_is_not_in_flight_cannot_complete() {
        let mut flight = InFlight::new();
        for source in ["a", "b"] {
            let key = flight.open(source);
            flight.add_call(key, 1);
            flight.close(key);
        }
        assert!(flight.try_complete(completion(2, 1)).is_err());
        assert!(flight.try_complete(completion(1, 2)).is_err());
        assert!(flight.try_complete(completion(u32::MAX, 1)).is_err());
        assert!(
            flight
                .try_complete(completion(0, u64::from(u32::MAX) + 1))
                .is_err()
        );
        flight.complete(completion(1, 1)).unwrap();
        assert!(flight.try_complete(completion(1, 1)).is_err(), "twice");
        assert!(
            flight.try_complete(completion(0, 2)).is_err(),
            "one of two twice"
        );
        assert_eq!(flight.take_done().map(|sent| sent.source), Some("b"));
        assert_eq!(flight.take_done(), None);
        flight.complete(completion(0, 1)).unwrap();
        assert!(flight.try_complete(completion(0, 1)).is_err(), "twice");
        assert_eq!(flight.take_done().map(|sent| sent.source), Some("a"));
        assert_eq!(flight.calls(), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "what is lost is leaked")]
    fn nothing_comes_back_once_a_number_made_no_sense() {
        let kept = Arc::new(());
        let mut flight = InFlight::new();
        for _ in 0..3 {
            let key = flight.open(Arc::clone(&kept));
            flight.add_call(key, 1);
            flight.close(key);
        }
        flight.complete(completion(0, 1)).unwrap();
        let open = flight.open(Arc::clone(&kept));
        let err = flight.complete(completion(7, 1)).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidData);

        // What was done before that is, the rest never will be.
        assert!(flight.take_done().is_some());
        for _ in 0..2 {
            let err = flight.complete(completion(1, 1)).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::BrokenPipe);
            assert_eq!(flight.take_done(), None);
        }
        assert_eq!(flight.close(open), None);
        drop(flight);
        assert_eq!(Arc::strong_count(&kept), 1 + 3, "nobody may have them");
    }

    #[test]
    #[cfg_attr(miri, ignore = "what is forgotten is leaked")]
    fn what_is_forgotten_is_logged() {
        testing::start_log();
        let mut flight = InFlight::new();
        for _ in 0..47 {
            let key = flight.open(());
            flight.add_call(key, 1);
            flight.close(key);
        }
        flight.forget();
        assert!(testing::was_logged("may still read 47 sources"));
    }

    /// Sources of some calls each, the number of the first, and an order to complete the calls in.
    fn runs() -> impl Strategy<Value = (Vec<usize>, u32, Vec<(usize, usize)>)> {
        let sources = proptest::collection::vec(1..5usize, 1..30);
        let first = prop_oneof![Just(0), any::<u32>(), u32::MAX - 40..=u32::MAX];
        (sources, first).prop_flat_map(|(sources, first)| {
            let calls: usize = sources.iter().sum();
            let cuts = proptest::collection::btree_set(1..=calls, 0..=calls);
            let ranges = cuts.prop_map(move |cuts| {
                let ends: Vec<_> = cuts.into_iter().chain([calls]).collect();
                let mut start = 0;
                let mut ranges = Vec::new();
                for end in ends {
                    if end > start {
                        ranges.push((start, end));
                    }
                    start = end;
                }
                ranges
            });
            (Just(sources), Just(first), ranges.prop_shuffle())
        })
    }

    proptest! {
        #[test]
        fn each_source_is_done_with_its_last_call((sources, first, ranges) in runs()) {
            let mut flight = InFlight::new();
            flight.first = first;
            let mut owner = Vec::new();
            for (source, &calls) in sources.iter().enumerate() {
                let key = flight.open(source);
                for _ in 0..calls {
                    flight.add_call(key, 2);
                    owner.push(source);
                }
                prop_assert_eq!(flight.close(key), None);
            }
            let mut left = sources.clone();
            for (start, end) in ranges {
                let number = first.wrapping_add(u32::try_from(start).unwrap());
                flight.complete(completion(number, (end - start) as u64)).unwrap();
                let mut expected = Vec::new();
                for &source in &owner[start..end] {
                    left[source] -= 1;
                    if left[source] == 0 {
                        expected.push((source, 2 * sources[source] as u64));
                    }
                }
                let done: Vec<_> = std::iter::from_fn(|| flight.take_done())
                    .map(|sent| (sent.source, sent.bytes))
                    .collect();
                prop_assert_eq!(done, expected);
            }
            prop_assert_eq!(flight.calls(), 0);
            prop_assert!(flight.pending.is_empty());
        }

        #[test]
        fn any_completion_is_survived(first: u32, count: u64, calls in 0..5u64) {
            let mut flight = InFlight::new();
            let key = flight.open(());
            for _ in 0..calls {
                flight.add_call(key, 1);
            }
            let known = u64::from(first).checked_add(count).is_some_and(|end| end <= calls);
            prop_assert_eq!(flight.try_complete(completion(first, count)).is_ok(), known);
        }
    }
}
