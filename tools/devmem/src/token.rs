// SPDX-License-Identifier: GPL-2.0

//! Tokens: the right to use a piece of device memory, and how it goes back to the NIC.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

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
/// [`uring::Receiver`](crate::uring::Receiver) costs none: it goes with the next call of that.
#[derive(Debug)]
#[must_use = "a token which is dropped gives its memory back to the NIC"]
pub struct Token<'s> {
    socket: BorrowedFd<'s>,
    id: u32,
    collector: Option<Arc<Collector>>,
}

impl<'s> Token<'s> {
    /// A token that goes back by itself, or to a ring which collects them.
    pub(crate) fn new(socket: BorrowedFd<'s>, id: u32, collector: Option<&Arc<Collector>>) -> Self {
        Self {
            socket,
            id,
            collector: collector.cloned(),
        }
    }

    /// Its number, valid on its socket only.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Gives up the token without returning it: the memory stays taken until the number is passed
    /// to [`dontneed`] or the socket is closed.
    pub fn into_id(mut self) -> u32 {
        drop(self.collector.take());
        let id = self.id;
        mem::forget(self);
        id
    }
}

impl Drop for Token<'_> {
    fn drop(&mut self) {
        if self.collector.take().is_some_and(|ring| ring.push(self.id)) {
            return;
        }
        // Nobody to tell: the socket is open, and the token is the caller's own, so this cannot
        // fail but for want of memory, and closing the socket returns the token then.
        let _ = dontneed(
            self.socket,
            &[TokenRange {
                start: self.id,
                count: 1,
            }],
        );
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
    /// Calls to make, the last of which takes more tokens.
    calls: VecDeque<Box<Ranges>>,
    /// Calls that were made, to be used again.
    #[expect(clippy::vec_box, reason = "requests in flight refer to them")]
    spare: Vec<Box<Ranges>>,
}

/// Calls for which there is room from the start.
const SPARE: usize = 16;

impl Collector {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Collected {
            open: true,
            calls: VecDeque::with_capacity(SPARE),
            spare: (0..SPARE).map(|_| Box::new(Ranges::new())).collect(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Collected> {
        // Nothing here leaves things half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a token over, unless nobody would return it any more.
    fn push(&self, id: u32) -> bool {
        let mut collected = self.lock();
        if !collected.open {
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

    /// From now on tokens return themselves.
    pub(crate) fn close(&self) {
        self.lock().open = false;
    }
}

/// Tokens of one socket on their way back to the NIC.
///
/// Consecutive tokens are joined, and a call is made whenever one is full, at [`flush`] and when this
/// is dropped.
///
/// [`flush`]: TokenBatch::flush
#[derive(Debug)]
pub struct TokenBatch<'s> {
    socket: BorrowedFd<'s>,
    ranges: Ranges,
    returned: u64,
}

impl<'s> TokenBatch<'s> {
    /// An empty batch for tokens of `socket`.
    pub fn new(socket: &'s impl AsFd) -> Self {
        Self {
            socket: socket.as_fd(),
            ranges: Ranges::new(),
            returned: 0,
        }
    }

    /// Adds a token. One of another socket, or of a ring, returns itself there instead.
    pub fn push(&mut self, token: Token<'s>) -> io::Result<()> {
        if token.socket.as_raw_fd() != self.socket.as_raw_fd() || token.collector.is_some() {
            return Ok(());
        }
        let id = token.into_id();
        if !self.ranges.push(id) {
            self.flush()?;
            self.ranges.push(id);
        }
        Ok(())
    }

    /// Returns what has been added so far.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.ranges.len == 0 {
            return Ok(());
        }
        let returned = dontneed(self.socket, self.ranges.as_slice())?;
        self.returned += u64::from(returned);
        let result = self.ranges.check(returned);
        self.ranges.clear();
        result
    }

    /// How many tokens this batch has returned in all.
    pub fn returned(&self) -> u64 {
        self.returned
    }
}

impl Drop for TokenBatch<'_> {
    fn drop(&mut self) {
        // As for a token: closing the socket returns what this could not.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
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
