// SPDX-License-Identifier: GPL-2.0

//! Tokens: the names under which user space holds net_iovs.
//!
//! A token stands for one reference to a net_iov, taken by `recvmsg()` and given up by
//! `setsockopt(SO_DEVMEM_DONTNEED)` or with the socket. `recvmsg()` has to know a token before it
//! writes the cmsg, and writing may fault; so tokens are reserved first, and get their net_iov only
//! when the cmsg is out. Both happen in batches, each in one critical section of the socket's
//! [`Table`].

#![deny(unsafe_code)]

/// Most tokens reserved at a time: one for each frag of an skb.
pub(crate) const BATCH: usize = 17;

/// Most frags that one `SO_DEVMEM_DONTNEED` looks up.
pub(crate) const MAX_DONTNEED_FRAGS: u32 = 1024;

/// How many returned frags wait for the table's lock to be dropped.
const RETURN_BATCH: usize = 16;

/// The tokens of a socket, locked, to which those of frags `F` can be added.
pub(crate) trait Table<F> {
    /// Why there is no token to be had.
    type Error;

    /// Reserves a token that stands for nothing yet.
    ///
    /// User space sees it before it is committed, and another thread of it may be fast, or guess,
    /// and give it back: then it stays reserved.
    fn reserve(&mut self) -> Result<u32, Self::Error>;

    /// Lets a reserved token stand for `frag`, of which it takes a reference.
    fn commit(&mut self, token: u32, frag: F);

    /// Gives a reserved token up.
    fn cancel(&mut self, token: u32);
}

/// The tokens of a socket, locked, from which they are taken back.
pub(crate) trait Take {
    /// The reference that a token stands for.
    type Counted;

    /// Takes a token back, with its reference. None if there is no such token, or if it is only
    /// reserved, which it stays.
    fn take(&mut self, token: u32) -> Option<Self::Counted>;
}

/// Takes `tokens` back, and gives up their references. Returns how many there were.
///
/// What [`Take::Counted`] does when it is dropped it does without the lock that `lock` takes.
pub(crate) fn take_back<T: Take>(
    mut tokens: impl Iterator<Item = u32>,
    lock: impl Fn() -> T,
) -> usize {
    let mut returned = 0;

    loop {
        // Dropped last, after the lock.
        let mut batch: [Option<T::Counted>; RETURN_BATCH] = [const { None }; RETURN_BATCH];
        let mut table = lock();
        let mut found = tokens.by_ref().filter_map(|token| table.take(token));
        let count = batch
            .iter_mut()
            .map_while(|slot| Some(slot.insert(found.next()?)))
            .count();

        returned += count;
        if count < RETURN_BATCH {
            return returned;
        }
    }
}

/// Tokens of one `recvmsg()`, between their reservation and their commit.
///
/// Has to be [settled](Self::settle) before it is dropped.
pub(crate) struct Reserved<F> {
    tokens: [u32; BATCH],
    frags: [Option<F>; BATCH],
    used: usize,
    len: usize,
}

impl<F: Copy> Reserved<F> {
    /// No tokens.
    pub(crate) fn new() -> Self {
        Self {
            tokens: [0; BATCH],
            frags: [None; BATCH],
            used: 0,
            len: 0,
        }
    }

    /// Commits what was used, gives the rest up, and reserves up to `want` new tokens, in one
    /// critical section of `table`. Fails if there is not one to be had.
    pub(crate) fn refill<T: Table<F>>(
        &mut self,
        table: &mut T,
        want: usize,
    ) -> Result<(), T::Error> {
        self.settle(table);
        while self.len < want.min(BATCH) {
            match table.reserve() {
                Ok(token) => self.tokens[self.len] = token,
                Err(error) if self.len == 0 => return Err(error),
                Err(_) => break,
            }
            self.len += 1;
        }
        Ok(())
    }

    /// Commits what was used and gives the rest up.
    pub(crate) fn settle<T: Table<F>>(&mut self, table: &mut T) {
        for (token, frag) in self.tokens.iter().zip(&mut self.frags).take(self.len) {
            match frag.take() {
                Some(frag) => table.commit(*token, frag),
                None => table.cancel(*token),
            }
        }
        self.used = 0;
        self.len = 0;
    }

    /// True if there is nothing to settle.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next reserved token, if there is one left. Still up for use: see [`Self::bind`].
    pub(crate) fn peek(&self) -> Option<u32> {
        (self.used < self.len).then(|| self.tokens[self.used])
    }

    /// Uses the token that [`Self::peek`] told for `frag`.
    pub(crate) fn bind(&mut self, frag: F) {
        if let Some(slot) = self.frags[..self.len].get_mut(self.used) {
            *slot = Some(frag);
            self.used += 1;
        }
    }
}

/// A range of tokens as user space gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first token.
    pub(crate) start: u32,
    /// How many there are.
    pub(crate) count: u32,
}

impl Range {
    /// True if the range goes past the last possible token.
    pub(crate) fn wraps(&self) -> bool {
        self.count != 0 && self.start.checked_add(self.count - 1).is_none()
    }

    /// The tokens of `ranges`, none of which wraps, up to [`MAX_DONTNEED_FRAGS`] of them.
    pub(crate) fn tokens(ranges: impl Iterator<Item = Range>) -> impl Iterator<Item = u32> {
        ranges
            .flat_map(|range| (0..range.count).map(move |i| range.start + i))
            .take(MAX_DONTNEED_FRAGS as usize)
    }
}
