// SPDX-License-Identifier: GPL-2.0

//! The free list of a binding: which of its net_iovs nobody has.
//!
//! A stack of indices. Taking and putting back cost the same whatever the size of the source and
//! however many scatterlist entries it has, a page pool's whole refill is one copy, and a new list costs
//! nothing.

#![deny(unsafe_code)]

use core::ops::DerefMut;

use super::share::{
    Account,
    Shares, //
};

/// Most net_iovs that one [`take`](FreeList::take) hands out: the refill of a page pool with 4 KiB
/// pages. With larger pages, page pools have room for less.
pub(crate) const BATCH: usize = 64;

/// No page pool takes more than this fraction of what is left in one go. Queues that share a small
/// binding, and want more than their [share](Shares), would otherwise leave nothing to each other.
const SHARE: usize = 8;

/// Unless that is less than this fraction of all, or than [`LEAST`]: to take a few at a time costs more
/// for each.
const LEAST_SHARE: usize = 16;

/// What a page pool may take in one go from any binding that is not tiny.
const LEAST: usize = 16;

/// Once there were none, this fraction of all has to be free before there are some again. What comes and goes
/// one by one is not worth telling.
const AVAILABLE: usize = 4;

/// A net_iov of a binding that nobody uses, by its index.
///
/// # Invariants
///
/// There is at most one for each index of a free list, and none while the index is on the list.
/// Only [`FreeList`] hands out indices; what came back may be made one of these once, by the wrapper that
/// took it back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping it loses the net_iov until the binding is freed"]
pub(crate) struct FreeIov(u32);

impl FreeIov {
    /// The index, with the right to it left to the caller.
    pub(super) fn into_raw(self) -> u32 {
        self.0
    }

    /// One that came back.
    pub(super) fn from_raw(index: u32) -> Self {
        Self(index)
    }
}

/// Net_iovs on their way from a free list to a page pool.
pub(crate) struct Batch {
    ids: [u32; BATCH],
    len: usize,
}

impl Batch {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        Self {
            ids: [0; BATCH],
            len: 0,
        }
    }
}

impl Batch {
    /// Whether nothing was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The indices, with the right to them left to the caller.
    pub(crate) fn take_raw(&mut self) -> &[u32] {
        let len = core::mem::take(&mut self.len);
        &self.ids[..len]
    }
}

/// What was handed out so far, and when there was nothing left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Supply {
    /// How many net_iovs were handed out.
    pub(crate) taken: u64,
    /// How many of them came back.
    pub(crate) returned: u64,
    /// A queue got none, and there were not enough since.
    pub(crate) is_exhausted: bool,
    /// How often that became so.
    pub(crate) exhausted: u64,
    /// For how long it was, in all, by the clock that the list is told.
    pub(crate) exhausted_for: u64,
}

/// Free net_iovs over preallocated storage: a stack of those that came back, and those from `fresh` on,
/// which nobody had yet.
///
/// It is told the time only when there is nothing left, and when there is enough again.
///
/// # Invariants
///
/// `slots[..returned]` are distinct indices below `fresh`, which is at most `slots.len()`.
pub(crate) struct FreeList<S, A> {
    slots: S,
    shares: Shares<A>,
    returned: usize,
    fresh: usize,
    taken: u64,
    /// When a queue got none, if there were not enough since.
    exhausted_since: Option<u64>,
    exhausted: u64,
    /// How long it was before that.
    exhausted_for: u64,
}

impl<S, A> FreeList<S, A>
where
    S: DerefMut<Target = [u32]>,
    A: DerefMut<Target = [Account]>,
{
    /// A list on which all of `slots.len()` net_iovs are free. What is in `slots` does not matter. If several queues
    /// share them, `accounts` are theirs.
    pub(crate) fn full(slots: S, accounts: A) -> Self {
        let shares = Shares::new(accounts, slots.len());

        // INVARIANT: Nobody had any, so none came back.
        Self {
            slots,
            shares,
            returned: 0,
            fresh: 0,
            taken: 0,
            exhausted_since: None,
            exhausted: 0,
            exhausted_for: 0,
        }
    }

    /// Moves up to `most` and [`BATCH`] net_iovs to `batch`, which has to be empty: one at least if
    /// there is any that `queue` may have, and not more than a fair share of what is left. `queue` is which of the
    /// accounts, if there are some.
    ///
    /// First come those that came back, in the order in which they did, and then those that nobody had yet, in
    /// ascending order: page pools use the first of a batch first.
    ///
    /// Returns whether this is the first time that there was none, since there were enough; or whether there are
    /// enough again, since the queue needs fewer.
    #[must_use = "somebody may want to know"]
    pub(crate) fn take(
        &mut self,
        batch: &mut Batch,
        most: usize,
        queue: Option<usize>,
        now: impl FnOnce() -> u64,
    ) -> bool {
        let free = self.free();
        let room = self.shares.room(queue, free);
        let least = LEAST.min(self.capacity() / LEAST_SHARE);
        let share = free.div_ceil(SHARE).max(least);
        let count = share.min(room).min(most).min(BATCH);
        let returned = count.min(self.returned);
        let rest = self.returned - returned;
        let (old, new) = batch.ids[..count].split_at_mut(returned);

        old.copy_from_slice(&self.slots[rest..self.returned]);
        // CAST: There are no more net_iovs than a `u32` can count, see `Layout`.
        for (id, index) in new.iter_mut().zip(self.fresh as u32..) {
            *id = index;
        }
        // INVARIANT: What stays is a part of what was there.
        self.fresh += new.len();
        self.returned = rest;
        self.taken += count as u64;
        batch.len = count;

        if let (Some(queue), true) = (queue, count != 0) {
            self.shares.took(queue, count);
            return self.recovered(now);
        }
        room == 0 && self.exhaust(queue, now)
    }

    /// How many net_iovs `queue` may have now, and keep: without those that it would have to give back to others.
    pub(crate) fn lasting_room(&self, queue: Option<usize>) -> usize {
        self.shares.lasting_room(queue, self.free())
    }

    #[cold]
    fn exhaust(&mut self, queue: Option<usize>, now: impl FnOnce() -> u64) -> bool {
        self.shares.refused(queue);
        if self.exhausted_since.is_some() {
            return false;
        }
        self.exhausted_since = Some(now());
        self.exhausted += 1;
        true
    }

    /// Takes net_iovs back, which `queue` had.
    ///
    /// Returns whether there are enough again, after there was none.
    #[must_use = "somebody may want to know"]
    pub(crate) fn put(
        &mut self,
        ids: impl IntoIterator<Item = FreeIov>,
        queue: Option<usize>,
        now: impl FnOnce() -> u64,
    ) -> bool {
        let before = self.returned;

        for id in ids {
            // By the invariant of `FreeIov` its index was handed out, and is not on the list. So the stack
            // is not full; but if somebody gives one back twice all the same, that is not to be a panic
            // under a lock.
            if let Some(slot) = self.slots.get_mut(self.returned) {
                // INVARIANT: Since it was handed out, the index is below `fresh`, and not on the stack.
                *slot = id.into_raw();
                self.returned += 1;
            }
        }

        self.shares.gave_back(queue, self.returned - before);
        self.recovered(now)
    }

    /// Whether there are enough again, after there was none. Looked at whenever more are free or fewer needed.
    #[inline]
    fn recovered(&mut self, now: impl FnOnce() -> u64) -> bool {
        match self.exhausted_since {
            Some(since) if self.is_available() => {
                self.exhausted_since = None;
                self.exhausted_for += now().saturating_sub(since);
                true
            }
            _ => false,
        }
    }

    /// Whether there are enough that nobody needs.
    fn is_available(&self) -> bool {
        let spare = self.free().saturating_sub(self.shares.needed());

        spare >= self.capacity().div_ceil(AVAILABLE)
    }

    /// A page pool was made for a queue, which is about to be started.
    pub(crate) fn starts(&mut self, queue: Option<usize>) {
        self.shares.starts(queue);
    }

    /// A page pool of a queue is gone. Another one may wait, which asked in vain when it asked last.
    ///
    /// Returns whether there are enough again, after there was none.
    #[must_use = "somebody may want to know"]
    pub(crate) fn stops(
        &mut self,
        queue: usize,
        others_wait: bool,
        now: impl FnOnce() -> u64,
    ) -> bool {
        self.shares.stops(queue, others_wait);
        self.recovered(now)
    }

    /// Whether the page pools of a queue are to keep nothing of what comes back.
    pub(crate) fn gives_back(&self, queue: usize) -> bool {
        self.shares.gives_back(queue)
    }

    /// Whether there are queues that had less than their share, asked, got none, and were not woken since.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.shares.has_waiting()
    }

    /// Next of the queues that asked in vain, and would get some now. It is woken by the caller: that is once, until
    /// it asks again.
    pub(crate) fn wake(&mut self) -> Option<usize> {
        let free = self.free();

        self.shares.wake(free)
    }

    /// A queue was to be woken, but there is nobody to poll it.
    ///
    /// Returns whether there are enough again, after there was none.
    #[must_use = "somebody may want to know"]
    pub(crate) fn gives_up(&mut self, queue: usize, now: impl FnOnce() -> u64) -> bool {
        self.shares.gives_up(queue);
        self.recovered(now)
    }

    /// What was handed out so far, and when there was nothing left.
    pub(crate) fn supply(&self, now: impl FnOnce() -> u64) -> Supply {
        let lasting = |since| now().saturating_sub(since);

        Supply {
            taken: self.taken,
            returned: self.taken - self.in_use() as u64,
            is_exhausted: self.exhausted_since.is_some(),
            exhausted: self.exhausted,
            exhausted_for: self.exhausted_for + self.exhausted_since.map_or(0, lasting),
        }
    }

    /// Number of net_iovs, free or not.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn free(&self) -> usize {
        self.capacity() - self.in_use()
    }

    /// Number of net_iovs that are handed out.
    pub(crate) fn in_use(&self) -> usize {
        // See `put`.
        self.fresh.saturating_sub(self.returned)
    }
}
