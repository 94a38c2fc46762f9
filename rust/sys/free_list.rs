// SPDX-License-Identifier: GPL-2.0

//! The free list of a binding: which of its net_iovs nobody has.
//!
//! A stack of indices. Taking and putting back cost the same whatever the size of the source and
//! however many scatterlist entries it has, a page pool's whole refill is one copy, and a new list costs
//! nothing.

#![deny(unsafe_code)]

use core::ops::DerefMut;

/// Most net_iovs that one [`take`](FreeList::take) hands out: the refill of a page pool with 4 KiB
/// pages. With larger pages, page pools have room for less.
pub(crate) const BATCH: usize = 64;

/// No page pool takes more than this fraction of what is left in one go. Queues that share a small
/// binding would otherwise leave nothing to each other.
const SHARE: usize = 8;

/// Unless that is less than this fraction of all, or than [`LEAST`]: to take a few at a time costs more
/// for each.
const LEAST_SHARE: usize = 16;

/// What a page pool may take in one go from any binding that is not tiny.
const LEAST: usize = 16;

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
    /// The indices, with the right to them left to the caller.
    pub(crate) fn take_raw(&mut self) -> &[u32] {
        let len = core::mem::take(&mut self.len);
        &self.ids[..len]
    }
}

/// Free net_iovs over preallocated storage: a stack of those that came back, and those from `fresh` on,
/// which nobody had yet.
///
/// # Invariants
///
/// `slots[..returned]` are distinct indices below `fresh`, which is at most `slots.len()`.
pub(crate) struct FreeList<S> {
    slots: S,
    returned: usize,
    fresh: usize,
}

impl<S: DerefMut<Target = [u32]>> FreeList<S> {
    /// A list on which all of `slots.len()` net_iovs are free. What is in `slots` does not matter.
    pub(crate) fn full(slots: S) -> Self {
        // INVARIANT: Nobody had any, so none came back.
        Self {
            slots,
            returned: 0,
            fresh: 0,
        }
    }

    /// Moves up to `most` and [`BATCH`] net_iovs to `batch`, which has to be empty: one at least if
    /// there is any, and not more than a fair share of what is left.
    ///
    /// Those that nobody had yet come last, in such an order that page pools, which use the last of a
    /// batch first, hand them out in ascending order.
    pub(crate) fn take(&mut self, batch: &mut Batch, most: usize) {
        let free = self.capacity() - self.in_use();
        let least = LEAST.min(self.capacity() / LEAST_SHARE);
        let share = free.div_ceil(SHARE).max(least);
        let count = share.min(free).min(most).min(BATCH);
        let returned = count.min(self.returned);
        let rest = self.returned - returned;
        let (new, old) = batch.ids[..count].split_at_mut(count - returned);

        old.copy_from_slice(&self.slots[rest..self.returned]);
        // CAST: There are no more net_iovs than a `u32` can count, see `Layout`.
        for (id, index) in new.iter_mut().rev().zip(self.fresh as u32..) {
            *id = index;
        }
        // INVARIANT: What stays is a part of what was there.
        self.fresh += new.len();
        self.returned = rest;
        batch.len = count;
    }

    /// Takes net_iovs back.
    pub(crate) fn put(&mut self, ids: impl IntoIterator<Item = FreeIov>) {
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
    }

    /// Number of net_iovs, free or not.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Number of net_iovs that are handed out.
    pub(crate) fn in_use(&self) -> usize {
        // See `put`.
        self.fresh.saturating_sub(self.returned)
    }
}
