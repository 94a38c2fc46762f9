// SPDX-License-Identifier: GPL-2.0

//! Memory that is accounted to a user for as long as it is pinned.
//!
//! C headers: [`include/net/devmem.h`](srctree/include/net/devmem.h),
//! [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h)

use core::mem::ManuallyDrop;

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::{
    bindings,
    genetlink::TxBindRequest, //
};

/// Memory that is to be sent from, accounted to who asks for that, until this is dropped.
///
/// # Invariants
///
/// `pinned` is as the core has set it for `size` bytes, and nothing else will undo that.
pub(crate) struct LockedMemory {
    pinned: bindings::ubuf_info_msgzc_mmpin,
    size: u64,
}

// SAFETY: mm_unaccount_pinned_pages() may be called by any thread: it changes an atomic counter of a user, and puts that.
unsafe impl Send for LockedMemory {}

// SAFETY: `&LockedMemory` gives a number, and nothing else.
unsafe impl Sync for LockedMemory {}

impl LockedMemory {
    /// Accounts memory that is going to be pinned. `ENOBUFS` if the user has too much then, as the extended ack says.
    pub(crate) fn new(request: &TxBindRequest<'_>, size: u64) -> Result<Self> {
        let mut pinned = bindings::ubuf_info_msgzc_mmpin::default();

        // SAFETY: What is set is ours, and zeroed. The request is valid by its type invariants.
        to_result(unsafe {
            bindings::net_devmem_account_pinned(&mut pinned, size as usize, request.info())
        })?;
        // INVARIANT: Set right above.
        Ok(Self { pinned, size })
    }

    /// How many bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Leaves it to a binding, whose core undoes it when the memory is unmapped. Lost, it is never undone.
    pub(super) fn into_raw(self) -> bindings::ubuf_info_msgzc_mmpin {
        ManuallyDrop::new(self).pinned
    }
}

impl Drop for LockedMemory {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is as the core has set it, and this is its one and only end.
        unsafe { bindings::mm_unaccount_pinned_pages(&mut self.pinned) }
    }
}
