// SPDX-License-Identifier: GPL-2.0

//! Page pools, as their memory provider sees them.
//!
//! C headers: [`include/net/page_pool/types.h`](srctree/include/net/page_pool/types.h),
//! [`include/net/page_pool/memory_provider.h`](srctree/include/net/page_pool/memory_provider.h)

use core::ptr::NonNull;

use kernel::{
    static_assert,
    sync::atomic::Atomic, //
};

use super::{
    bindings,
    free_list::{
        Batch,
        BATCH, //
    },
    netmem::NetIovArea,
    waiters::Asker, //
};

/// A page pool that is being created for a queue with a memory provider.
///
/// # Invariants
///
/// The pointer is to a page pool that nobody uses yet.
pub(super) struct NewPagePool(NonNull<bindings::page_pool>);

impl NewPagePool {
    /// # Safety
    ///
    /// `pool` has to be valid, in its `->init()`.
    pub(super) unsafe fn from_raw(pool: NonNull<bindings::page_pool>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(pool)
    }

    /// log2 of the size of the pool's buffers, in pages.
    pub(super) fn order(&self) -> u32 {
        // SAFETY: By the type invariant the pool is alive, and it is ours for now.
        unsafe { bindings::page_pool_order(self.0.as_ptr()) }
    }

    /// Which queue of its device the pool is for.
    pub(super) fn queue(&self) -> u32 {
        // SAFETY: By the type invariant the pool is alive.
        unsafe { bindings::page_pool_queue_idx(self.0.as_ptr()) }
    }

    /// Has the pool keep nothing of what comes back, as long as `wants_back` says so.
    ///
    /// # Safety
    ///
    /// `wants_back` has to be there until the pool's `->destroy()`.
    pub(super) unsafe fn set_wants_back(&mut self, wants_back: &Atomic<bool>) {
        // SAFETY: By the type invariant the pool is alive, and it is ours for now. It only reads the flag, once at a
        // time (`READ_ONCE()`), and not after that, by the requirements of this function.
        unsafe { bindings::page_pool_set_wants_back(self.0.as_ptr(), wants_back.as_ptr()) }
    }

    /// Keeps the pool from syncing buffers for device or CPU: that is for the source to do.
    pub(super) fn disable_dma_sync(&mut self) {
        // SAFETY: By the type invariant the pool is alive, and it is ours for now.
        unsafe { bindings::page_pool_disable_dma_sync(self.0.as_ptr()) }
    }
}

/// Where the flag is that a page pool was given by [`NewPagePool::set_wants_back`], if it was.
///
/// # Safety
///
/// `pool` has to be valid.
#[inline]
pub(super) unsafe fn wants_back(pool: NonNull<bindings::page_pool>) -> *const bool {
    // SAFETY: By the requirements of this function. It does not change once the pool is used.
    unsafe { bindings::page_pool_wants_back(pool.as_ptr()) }
}

/// A page pool that asks for buffers, and may be told of some if it gets none.
///
/// # Invariants
///
/// The pointer is to a page pool that is not freed before this is gone. If it has a NAPI, that was added.
#[derive(PartialEq)]
pub(super) struct Waiting(NonNull<bindings::page_pool>);

// SAFETY: All that is done with it may be done by any thread.
unsafe impl Send for Waiting {}

impl Waiting {
    /// # Safety
    ///
    /// `pool` has to be valid, and to be so until the result is dropped. It has asked for buffers: drivers add a NAPI
    /// before they take some from a page pool that has it.
    pub(super) unsafe fn new(pool: NonNull<bindings::page_pool>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(pool)
    }

    /// Whether it is this page pool.
    pub(super) fn is(&self, pool: NonNull<bindings::page_pool>) -> bool {
        self.0 == pool
    }
}

impl Asker for Waiting {
    /// Not in hard interrupts.
    fn poll(&self) -> bool {
        // SAFETY: By the type invariant the page pool is there, and its NAPI was added, if it has one. It is freed only
        // after `page_pool_disable_direct_recycling()` took it from the pool, or after `page_pool_destroy()`, whoever
        // took it: some drivers do by themselves. The former waits for this, and in the latter `page_pool_release()`
        // does, both by the lock that is held here.
        unsafe { bindings::net_mp_schedule_napi(self.0.as_ptr()) }
    }
}

/// Gives the net_iovs of `batch` to a page pool. Returns what `->alloc_netmems()` has to return.
///
/// # Safety
///
/// `pool` has to be valid and in its `->alloc_netmems()`, with `area` that of its provider, of which
/// `batch` are free net_iovs.
pub(super) unsafe fn refill(
    pool: NonNull<bindings::page_pool>,
    area: &NetIovArea,
    batch: &mut Batch,
) -> bindings::netmem_ref {
    let ids = batch.take_raw();

    // SAFETY: By the requirements of this function. The cache is empty, and has room for a batch. The
    // net_iovs have no page pool: there is only one right to each, which was just given up, and net_iovs
    // leave their pool before theirs is made again.
    // CAST: No more than `BATCH`.
    unsafe {
        bindings::net_mp_refill_cache(pool.as_ptr(), area.as_ptr(), ids.as_ptr(), ids.len() as u32)
    }
}

static_assert!(BATCH <= bindings::PP_ALLOC_CACHE_REFILL as usize);
