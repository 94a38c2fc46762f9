// SPDX-License-Identifier: GPL-2.0

//! Page pools, as their memory provider sees them.
//!
//! C headers: [`include/net/page_pool/types.h`](srctree/include/net/page_pool/types.h),
//! [`include/net/page_pool/memory_provider.h`](srctree/include/net/page_pool/memory_provider.h)

use core::ptr::NonNull;

use super::netmem::{
    net_iov_to_netmem,
    NetIovArea, //
};
use crate::{
    bindings,
    free_list::NiovId, //
};

/// A page pool that is being created for a queue with a memory provider.
///
/// # Invariants
///
/// The pointer is to a page pool that nobody uses yet.
pub(crate) struct NewPagePool(NonNull<bindings::page_pool>);

impl NewPagePool {
    /// # Safety
    ///
    /// `pool` has to be valid, in its `->init()`.
    pub(super) unsafe fn from_raw(pool: NonNull<bindings::page_pool>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(pool)
    }

    /// log2 of the size of the pool's buffers, in pages.
    pub(crate) fn order(&self) -> u32 {
        // SAFETY: By the type invariant the pool is alive, and it is ours for now.
        unsafe { bindings::page_pool_order(self.0.as_ptr()) }
    }

    /// Keeps the pool from syncing buffers for device or CPU: dma-bufs have their own ways.
    pub(crate) fn disable_dma_sync(&mut self) {
        // SAFETY: By the type invariant the pool is alive, and it is ours for now.
        unsafe { bindings::page_pool_disable_dma_sync(self.0.as_ptr()) }
    }
}

/// The empty cache of a page pool, to be filled.
///
/// # Invariants
///
/// `pool` is in its `->alloc_netmems()`, and had an empty cache then. `area` is of the binding that
/// is its provider. `first` is 0, or an accounted netmem that is not in the cache. The cache has
/// room for `room` more.
pub(crate) struct Refill<'a> {
    pool: NonNull<bindings::page_pool>,
    area: &'a NetIovArea,
    first: bindings::netmem_ref,
    room: usize,
}

impl<'a> Refill<'a> {
    /// # Safety
    ///
    /// `pool` has to be valid and in its `->alloc_netmems()`, with `area` that of its provider.
    pub(super) unsafe fn new(pool: NonNull<bindings::page_pool>, area: &'a NetIovArea) -> Self {
        // INVARIANT: By the requirements of this function; page pools call `->alloc_netmems()` only
        // when their cache is empty, which then has room for more than a refill.
        Self {
            pool,
            area,
            first: 0,
            room: bindings::PP_ALLOC_CACHE_REFILL as usize,
        }
    }

    /// How many more net_iovs the pool takes.
    pub(crate) fn room(&self) -> usize {
        self.room
    }

    /// Gives a net_iov to the pool. If there is no [`room`](Self::room), it is lost.
    pub(crate) fn give(&mut self, id: NiovId) {
        let Some(niov) = self.area.get(id.into_raw()) else {
            return;
        };
        let Some(room) = self.room.checked_sub(1) else {
            return;
        };
        self.room = room;

        // SAFETY: By the type invariants we are in `->alloc_netmems()` of the pool. The net_iov has
        // no page pool: there is only one `NiovId` of it, which was just given up, and net_iovs
        // leave their pool before theirs is made again.
        unsafe { bindings::net_mp_niov_set_page_pool(self.pool.as_ptr(), niov.as_ptr()) };

        let netmem = net_iov_to_netmem(niov);
        if self.first == 0 {
            // INVARIANT: It is accounted, and not in the cache.
            self.first = netmem;
            return;
        }

        // SAFETY: The cache is ours during `->alloc_netmems()`, and by the type invariants it has
        // room.
        unsafe { bindings::net_mp_netmem_place_in_cache(self.pool.as_ptr(), netmem) };
    }

    /// What `->alloc_netmems()` has to return.
    pub(super) fn finish(self) -> bindings::netmem_ref {
        self.first
    }
}
