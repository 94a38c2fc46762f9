// SPDX-License-Identifier: GPL-2.0

//! What user space passes to `sendmsg()`.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use crate::bindings;

/// The iovecs of a `sendmsg()` from a dma-buf, which are not pointers but offsets into it.
///
/// # Invariants
///
/// The pointer is to an `ITER_IOVEC` or `ITER_UBUF` iterator that is nobody else's for `'a`.
pub(crate) struct OffsetRanges<'a>(NonNull<bindings::iov_iter>, PhantomData<&'a mut ()>);

/// A range of a dma-buf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetRange {
    /// Where it begins in the dma-buf, in bytes.
    pub(crate) start: u64,
    /// How long it is, in bytes. Never 0.
    pub(crate) len: usize,
}

impl OffsetRanges<'_> {
    /// None if the iterator is not over iovecs of user space, but over memory of the kernel.
    ///
    /// # Safety
    ///
    /// `ptr` has to be to a valid iterator, which is nobody else's for the lifetime of the result.
    pub(super) unsafe fn from_raw(ptr: NonNull<bindings::iov_iter>) -> Option<Self> {
        // SAFETY: By the requirements of this function.
        let user_backed = unsafe { bindings::user_backed_iter(ptr.as_ptr()) };

        // INVARIANT: Checked above; the rest by the requirements of this function.
        user_backed.then_some(Self(ptr, PhantomData))
    }

    /// What is left of the first range that is not empty.
    pub(crate) fn first(&mut self) -> Option<OffsetRange> {
        // SAFETY: By the type invariants the iterator is valid. An iovec is looked at only while
        // there are bytes left, so that there is one.
        unsafe {
            let iter = self.0.as_ptr();
            let count = bindings::iov_iter_count(iter);
            if count == 0 {
                return None;
            }
            if bindings::iter_iov_len(iter) == 0 {
                // Moves on to the next one that is not empty.
                bindings::iov_iter_advance(iter, 0);
            }
            Some(OffsetRange {
                start: bindings::iter_iov_addr(iter) as u64,
                len: bindings::iter_iov_len(iter).min(count),
            })
        }
    }

    /// Moves on by `len` bytes.
    pub(crate) fn advance(&mut self, len: usize) {
        // SAFETY: By the type invariants the iterator is valid. It does not move past its end.
        unsafe { bindings::iov_iter_advance(self.0.as_ptr(), len) }
    }
}
