// SPDX-License-Identifier: GPL-2.0

//! Tokens: the names under which user space holds net_iovs.
//!
//! A token stands for one reference to a net_iov, or to what stands for those that the same machine has sent,
//! handed out by `recvmsg()` and given up by `setsockopt(SO_DEVMEM_DONTNEED)` or with the socket. It is an index
//! into the socket's [`Slots`].
//! `recvmsg()` has to tell a token before it stands for anything, since telling it may fault. No
//! reservation is needed for that: nobody else uses the slots that are free while the socket is locked.
//!
//! C header: [`include/net/devmem.h`](srctree/include/net/devmem.h)

#![deny(unsafe_code)]

use core::num::NonZero;

/// The token of slot 0, see `NET_DEVMEM_TOKEN_BASE`. Those below are the built-in provider's. As many
/// slots as that fit below what an `int` cannot hold.
pub(crate) const BASE: u32 = 1 << 30;

/// Most tokens that a reader is told at a time: one for each frag of an skb.
pub(crate) const BATCH: usize = 17;

/// Most frags that one `SO_DEVMEM_DONTNEED` looks up.
pub(crate) const MAX_DONTNEED_FRAGS: u32 = 1024;

/// How many returned frags wait for the lock to be dropped. A page pool takes no more at a time.
pub(crate) const RETURN_BATCH: usize = 16;

const BITS: usize = usize::BITS as usize;

/// What the tokens of a socket stand for: `struct net_devmem_tokens`, locked.
///
/// # Invariants
///
/// A slot is 0 exactly if its bit in `free` is set. A word of `free` is 0 exactly if its bit in
/// `groups` is not set. The words of `groups` before `hint` are 0. `used` slots are not 0.
pub(crate) struct Slots<'a> {
    pub(crate) used: &'a mut u32,
    pub(crate) hint: &'a mut u32,
    pub(crate) groups: &'a mut [usize],
    pub(crate) free: &'a mut [usize],
    pub(crate) slots: &'a mut [usize],
}

/// The bits that are set in a word, from the lowest on.
struct Bits(usize);

impl Iterator for Bits {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let bit = self.0.trailing_zeros() as usize;

        self.0 &= self.0.checked_sub(1)?;
        Some(bit)
    }
}

impl Slots<'_> {
    /// Tells the lowest tokens that are free: up to as many as there is room for in `tokens`. Returns
    /// how many.
    pub(crate) fn peek(&self, tokens: &mut [u32]) -> usize {
        let most = tokens.len();
        let mut tokens = tokens.iter_mut();
        let groups = self.groups.iter().enumerate();

        for (group, &words) in groups.skip(*self.hint as usize) {
            for word in Bits(words).map(|bit| group * BITS + bit) {
                let bits = self.free.get(word).copied().unwrap_or(0);

                for (bit, token) in Bits(bits).zip(&mut tokens) {
                    // CAST: An index of a slot, of which there are less than `BASE`.
                    *token = BASE | (word * BITS + bit) as u32;
                }
                if tokens.len() == 0 {
                    return most;
                }
            }
        }
        most - tokens.len()
    }

    /// Lets a token, if it is free, stand for `netmem`, that of a net_iov, or a loan, with a reference.
    ///
    /// Returns whether it is.
    #[inline]
    pub(crate) fn commit(&mut self, token: u32, netmem: usize) -> bool {
        let slot = (token & !BASE) as usize;
        let word = slot / BITS;
        let (Some(place), Some(free)) = (self.slots.get_mut(slot), self.free.get_mut(word)) else {
            return false;
        };
        let bit = 1 << (slot % BITS);
        if *free & bit == 0 {
            return false;
        }

        // INVARIANT: The slot becomes used, and may be the last of its word.
        *place = netmem;
        *free &= !bit;
        *self.used += 1;
        if *free == 0 {
            self.word_is_used(word);
        }
        true
    }

    fn word_is_used(&mut self, word: usize) {
        if let Some(group) = self.groups.get_mut(word / BITS) {
            *group &= !(1 << (word % BITS));
        }
        // INVARIANT: Only words that are 0 are passed.
        while self.groups.get(*self.hint as usize) == Some(&0) {
            *self.hint += 1;
        }
    }

    /// Takes a token back. Returns what it stood for, with the reference. None if there is no such
    /// token.
    pub(crate) fn take(&mut self, token: u32) -> Option<usize> {
        let slot = token.checked_sub(BASE)? as usize;
        let netmem = core::mem::take(self.slots.get_mut(slot)?);
        if netmem == 0 {
            return None;
        }

        // INVARIANT: The slot becomes free.
        let word = slot / BITS;
        let group = word / BITS;
        *self.free.get_mut(word)? |= 1 << (slot % BITS);
        *self.groups.get_mut(group)? |= 1 << (word % BITS);
        // CAST: There are less groups than slots.
        *self.hint = (*self.hint).min(group as u32);
        *self.used -= 1;
        Some(netmem)
    }
}

/// The frags of a packet, or of a part of it, which nobody else has.
pub(crate) trait Frags {
    /// One of them.
    type Frag;

    /// All of them, in their order.
    fn as_slice(&self) -> &[Self::Frag];
}

/// The tokens of a socket, for frags `F`, to who reads from it.
pub(crate) trait Tokens<F: Frags> {
    /// Why there is no token to be had.
    type Error;

    /// Tells tokens that are free: one at least, and up to as many as there is room for in `tokens`.
    /// Returns how many.
    ///
    /// They stand for nothing yet, and nobody else uses them before they are
    /// [committed](Self::commit). A user who returns one all the same returns nothing.
    fn peek(&mut self, tokens: &mut [u32]) -> Result<NonZero<usize>, Self::Error>;

    /// Lets tokens that [`peek`](Self::peek) told stand for frags, one for each. The packet has its own
    /// references.
    fn commit(&mut self, tokens: &[u32], frags: &[F::Frag]);

    /// The same for all frags of a part of a packet. If the packet does not need them any more, its
    /// references move.
    fn commit_all(&mut self, tokens: &[u32], frags: F);
}

/// The tokens of a socket, locked, from which they are taken back.
pub(crate) trait Take {
    /// References of up to [`RETURN_BATCH`] tokens, given up when dropped.
    type Returned: Default;

    /// Takes a token back, with its reference. False if there is no such token.
    fn take(&mut self, token: u32, returned: &mut Self::Returned) -> bool;
}

/// Takes tokens back, and gives up their references. Returns how many there were.
///
/// A range that goes past the last number goes on with 0, as in the C code. Ends after
/// [`MAX_DONTNEED_FRAGS`] tokens, whether they are there or not. What [`Take::Returned`] does when it is dropped it does without the lock that `lock` takes.
pub(crate) fn take_back<T: Take>(
    ranges: impl Iterator<Item = Range>,
    lock: impl Fn() -> T,
) -> usize {
    let mut ranges = ranges.filter(|range| range.count != 0);
    let mut current = ranges.next();
    let mut left = MAX_DONTNEED_FRAGS;
    let mut total = 0;

    while current.is_some() && left != 0 {
        // Dropped last, after the lock.
        let mut returned = T::Returned::default();
        let mut table = lock();
        let mut room = RETURN_BATCH;

        while let Some(range) = &mut current {
            let taken = table.take(range.start, &mut returned);

            left -= 1;
            room -= usize::from(taken);
            range.count -= 1;
            if range.count == 0 {
                current = ranges.next();
            } else {
                range.start = range.start.wrapping_add(1);
            }
            if left == 0 || room == 0 {
                break;
            }
        }
        total += RETURN_BATCH - room;
    }
    total
}

/// A range of tokens as user space gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first token.
    pub(crate) start: u32,
    /// How many there are.
    pub(crate) count: u32,
}
