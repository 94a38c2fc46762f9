// SPDX-License-Identifier: GPL-2.0

//! Tokens: the names under which user space holds net_iovs.
//!
//! A token stands for a reference to a net_iov, to each of several that follow each other, or to what stands for those
//! that the same machine has sent. It is handed out by `recvmsg()` and given up by `setsockopt(SO_DEVMEM_DONTNEED)` or
//! with the socket. It is an index into the socket's [`Slots`].
//! `recvmsg()` has to tell a token before it stands for anything, since telling it may fault. No
//! reservation is needed for that: nobody else uses the slots that are free while the socket is locked.
//!
//! C header: [`include/net/devmem.h`](srctree/include/net/devmem.h)

#![deny(unsafe_code)]

use core::num::NonZero;

use super::run::{
    Run,
    STRIDE, //
};

/// The token of slot 0, see `NET_DEVMEM_TOKEN_BASE`. Those below are the built-in provider's. As many
/// slots as that fit below what an `int` cannot hold.
pub(crate) const BASE: u32 = 1 << 30;

/// Most tokens that a reader is told at a time: one for each frag of an skb, unless the kernel is built for more of these.
pub(crate) const BATCH: usize = 17;

/// Most frags that one `SO_DEVMEM_DONTNEED` looks up.
pub(crate) const MAX_DONTNEED_FRAGS: u32 = 1024;

/// How many returned frags wait for the lock to be dropped. A page pool takes no more at a time.
pub(crate) const RETURN_BATCH: usize = 16;

/// Most net_iovs that a token stands for, see `NET_DEVMEM_RUN_MAX`.
pub(crate) const RUN_MAX: u32 = 64;

/// Set in a slot that stands for several net_iovs, see `NET_DEVMEM_RUN`.
pub(super) const RUN: usize = 1 << 1;

const BITS: usize = usize::BITS as usize;

/// What a token stands for: net_iovs that follow each other in their area, with a reference to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The `netmem_ref` of the first.
    pub(crate) netmem: usize,
    /// How many there are. Never 0.
    pub(crate) count: u32,
}

impl Held {
    /// Whether `netmem`, which has as many `before` it in its area, is the one that follows them there.
    pub(super) fn is_before(&self, netmem: usize, before: usize) -> bool {
        let count = self.count as usize;

        count <= before && self.netmem.checked_add(count * STRIDE) == Some(netmem)
    }
}

/// What the tokens of a socket stand for: `struct net_devmem_tokens`, locked.
///
/// # Invariants
///
/// A slot is 0 exactly if its bit in `free` is set. A word of `free` is 0 exactly if its bit in
/// `groups` is not set. The words of `groups` before `hint` are 0. The slots stand for `used` net_iovs: one
/// each, or with [`RUN`] as many more as `more` has.
pub(crate) struct Slots<'a> {
    pub(crate) used: &'a mut u32,
    pub(crate) hint: &'a mut u32,
    pub(crate) groups: &'a mut [usize],
    pub(crate) free: &'a mut [usize],
    pub(crate) slots: &'a mut [usize],
    pub(crate) more: &'a mut [u8],
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

    /// The same for up to [`RUN_MAX`] net_iovs, with a reference to each.
    pub(crate) fn commit_run(&mut self, token: u32, run: Held) -> bool {
        (1..=RUN_MAX).contains(&run.count)
            && self.commit(token, run.netmem)
            && self.add(token, run.count - 1)
    }

    /// Lets a token stand for `count` net_iovs more, which follow those that it stands for. A reference to each comes
    /// with them.
    ///
    /// Returns whether it does: not if it stands for nothing, or these would be too many.
    pub(crate) fn add(&mut self, token: u32, count: u32) -> bool {
        let slot = (token & !BASE) as usize;
        let (Some(held), Some(place), Some(more)) = (
            self.held(token),
            self.slots.get_mut(slot),
            self.more.get_mut(slot),
        ) else {
            return false;
        };
        if count == 0 {
            return true;
        }
        if count > RUN_MAX.saturating_sub(held.count) {
            return false;
        }

        *place |= RUN;
        // CAST: Less than `RUN_MAX`.
        #[allow(clippy::unnecessary_cast, reason = "numbers are narrower in tests")]
        let total = (held.count - 1 + count) as u8;
        *more = total;
        *self.used += count;
        true
    }

    /// What a token stands for, if it does.
    pub(crate) fn held(&self, token: u32) -> Option<Held> {
        let slot = token.checked_sub(BASE)? as usize;
        let word = *self.slots.get(slot)?;

        (word != 0).then(|| self.held_by(slot, word))
    }

    /// What `word`, that of a slot which is used, stands for.
    fn held_by(&self, slot: usize, word: usize) -> Held {
        let more = match word & RUN {
            0 => 0,
            _ => self.more.get(slot).copied().unwrap_or(0),
        };

        Held {
            netmem: word & !RUN,
            count: u32::from(more) + 1,
        }
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

    /// Takes a token back. Returns what it stood for, with the references. None if there is no such
    /// token.
    #[inline]
    pub(crate) fn take(&mut self, token: u32) -> Option<Held> {
        let slot = token.checked_sub(BASE)? as usize;
        let word = core::mem::take(self.slots.get_mut(slot)?);
        if word == 0 {
            return None;
        }
        let held = self.held_by(slot, word);

        // INVARIANT: The slot becomes free.
        let word = slot / BITS;
        let group = word / BITS;
        *self.free.get_mut(word)? |= 1 << (slot % BITS);
        *self.groups.get_mut(group)? |= 1 << (word % BITS);
        // CAST: There are less groups than slots.
        *self.hint = (*self.hint).min(group as u32);
        *self.used -= held.count;
        Some(held)
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

    /// As [`peek`](Self::peek), for tokens that are to stand for runs. Returns how many it told, and how many frags the
    /// socket may hold more.
    fn peek_for_runs(&mut self, tokens: &mut [u32])
        -> Result<(NonZero<usize>, usize), Self::Error>;

    /// How many frags may be added to a run: 0 if its token was returned meanwhile.
    fn room(&mut self, run: &Run) -> usize;

    /// Lets tokens stand for runs of frags, as [`commit`](Self::commit) does for frags.
    fn commit_runs(&mut self, runs: &[Told], frags: &[F::Frag]);

    /// The same for all frags of a part of a packet, as [`commit_all`](Self::commit_all).
    fn commit_all_runs(&mut self, runs: &[Told], frags: F);
}

/// Frags of which a reader was told by one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The token: one that [`Tokens::peek`] told or, if the run [goes on](Self::goes_on), one that has been committed.
    pub(crate) token: u32,
    /// How many frags they are.
    pub(crate) frags: usize,
    /// Whether the token stands for those before these already.
    pub(crate) goes_on: bool,
}

/// The tokens of a socket, locked, from which they are taken back.
pub(crate) trait Take {
    /// References of up to [`RETURN_BATCH`] tokens, and of one that stands for several net_iovs, given up when dropped.
    type Returned: Default;

    /// Takes a token back, with its references.
    fn take(&mut self, token: u32, returned: &mut Self::Returned) -> Taken;
}

/// What came of taking a token back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// There is no such token.
    Nothing,
    /// It stood for a net_iov.
    One,
    /// It stood for several.
    Run,
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
        let mut run = false;

        while let Some(range) = &mut current {
            let taken = table.take(range.start, &mut returned);

            left -= 1;
            room -= usize::from(taken == Taken::One);
            run = taken == Taken::Run;
            range.count -= 1;
            if range.count == 0 {
                current = ranges.next();
            } else {
                range.start = range.start.wrapping_add(1);
            }
            if left == 0 || room == 0 || run {
                break;
            }
        }
        total += RETURN_BATCH - room + usize::from(run);
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
