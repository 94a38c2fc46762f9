// SPDX-License-Identifier: GPL-2.0

//! The free list of a binding: which of its net_iovs nobody has.
//!
//! A stack of indices. Taking and putting back cost the same whatever the size of the dma-buf and
//! however many scatterlist entries it has, and a page pool's whole refill is one copy.

#![deny(unsafe_code)]

use core::ops::DerefMut;

/// Most net_iovs that one [`take`](FreeList::take) hands out: the refill of a page pool with 4 KiB
/// pages. With larger pages, page pools have room for less.
pub(crate) const BATCH: usize = 64;

/// No page pool takes more than this fraction of what is left in one go. Queues that share a small
/// binding would otherwise leave nothing to each other.
const SHARE: usize = 8;

/// The right to use one net_iov of a binding, by its index.
///
/// # Invariants
///
/// There is at most one for each index of a free list, and none while the index is on the list.
/// Only [`FreeList`] makes new ones; what [`into_raw`](Self::into_raw) took apart may be put
/// together again once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping it loses the net_iov until the binding is freed"]
pub(crate) struct NiovId(u32);

impl NiovId {
    /// The index, with the right to it left to the caller.
    pub(crate) fn into_raw(self) -> u32 {
        self.0
    }

    /// Puts together again what [`into_raw`](Self::into_raw) took apart.
    pub(crate) fn from_raw(index: u32) -> Self {
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

impl Iterator for Batch {
    type Item = NiovId;

    fn next(&mut self) -> Option<NiovId> {
        self.len = self.len.checked_sub(1)?;
        Some(NiovId(self.ids[self.len]))
    }
}

/// A stack of free net_iovs over preallocated storage.
///
/// # Invariants
///
/// `slots[..free]` are distinct indices below `slots.len()`.
pub(crate) struct FreeList<S> {
    slots: S,
    free: usize,
}

impl<S: DerefMut<Target = [u32]>> FreeList<S> {
    /// A list on which all of `slots.len()` net_iovs are free. What is in `slots` does not matter.
    ///
    /// Net_iovs that nobody had yet are handed out in ascending order.
    pub(crate) fn full(mut slots: S) -> Self {
        let free = slots.len();
        // In this order no index is made that there is no slot for.
        for (slot, index) in slots.iter_mut().rev().zip(0..) {
            *slot = index;
        }
        // INVARIANT: `slots` are the indices from 0 to its length, each once.
        Self { slots, free }
    }

    /// Moves up to `most` and [`BATCH`] net_iovs to `batch`, which has to be empty: one at least if
    /// there is any, and not more than a fair share of what is left.
    pub(crate) fn take(&mut self, batch: &mut Batch, most: usize) {
        let count = self.free.div_ceil(SHARE).min(most).min(BATCH);
        let rest = self.free - count;

        batch.ids[..count].copy_from_slice(&self.slots[rest..self.free]);
        batch.len = count;
        // INVARIANT: What stays is a prefix of what was there.
        self.free = rest;
    }

    /// Takes a net_iov back.
    pub(crate) fn put(&mut self, id: NiovId) {
        // INVARIANT: By the invariant of `NiovId` its index is not on the list, so the list is not
        // full, and its indices stay distinct.
        self.slots[self.free] = id.into_raw();
        self.free += 1;
    }

    /// Number of net_iovs, free or not.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Number of net_iovs that are handed out.
    pub(crate) fn in_use(&self) -> usize {
        self.slots.len() - self.free
    }
}
