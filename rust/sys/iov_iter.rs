// SPDX-License-Identifier: GPL-2.0

//! What user space passes to `sendmsg()`.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use super::bindings;

/// The iovecs of a `sendmsg()` from a binding, which are not pointers but offsets into its memory. They are
/// [appended](super::skbuff::TxSkBuff::append) to an skb.
///
/// # Invariants
///
/// `iter` is an `ITER_IOVEC` or `ITER_UBUF` iterator that is nobody else's for `'a`, over `count` bytes.
pub(crate) struct OffsetRanges<'a> {
    iter: NonNull<bindings::iov_iter>,
    count: usize,
    _iter: PhantomData<&'a mut ()>,
}

/// A range of the memory of a binding.
pub(super) struct OffsetRange {
    /// Where it begins in the memory, in bytes.
    pub(super) start: u64,
    /// How long it is, in bytes. Never 0.
    pub(super) len: usize,
}

impl OffsetRanges<'_> {
    /// None if the iterator is not over iovecs of user space, but over memory of the kernel.
    ///
    /// # Safety
    ///
    /// `ptr` has to be to a valid iterator, which is nobody else's for the lifetime of the result.
    pub(super) unsafe fn from_raw(iter: NonNull<bindings::iov_iter>) -> Option<Self> {
        // SAFETY: By the requirements of this function.
        let kind = unsafe { (*iter.as_ptr()).iter_type };
        let user_backed = matches!(
            bindings::iter_type::from(kind),
            bindings::iter_type_ITER_UBUF | bindings::iter_type_ITER_IOVEC
        );

        // INVARIANT: Checked above; the rest by the requirements of this function.
        user_backed.then(|| Self {
            iter,
            // SAFETY: By the requirements of this function.
            count: unsafe { bindings::iov_iter_count(iter.as_ptr()) },
            _iter: PhantomData,
        })
    }

    /// What is left of the first range that is not empty.
    pub(super) fn first(&mut self) -> Option<OffsetRange> {
        if self.count == 0 {
            return None;
        }
        let iter = self.iter.as_ptr();
        // SAFETY: By the type invariants the iterator is valid. There are bytes left, so that there
        // is an iovec.
        let mut len = unsafe { bindings::iter_iov_len(iter) };
        if len == 0 {
            // SAFETY: As above. Moves on to the next one that is not empty.
            len = unsafe {
                bindings::iov_iter_advance(iter, 0);
                bindings::iter_iov_len(iter)
            };
        }
        Some(OffsetRange {
            // SAFETY: As above.
            start: unsafe { bindings::iter_iov_addr(iter) } as u64,
            len: len.min(self.count),
        })
    }

    /// Moves on by `len` bytes, or to the end.
    ///
    /// TCP takes it that the iterator moves by as much as the skb gets longer.
    pub(super) fn advance(&mut self, len: usize) {
        let len = len.min(self.count);

        // INVARIANT: The iterator moves as far.
        self.count -= len;
        // SAFETY: By the type invariants the iterator is valid. It does not move past its end.
        unsafe { bindings::iov_iter_advance(self.iter.as_ptr(), len) }
    }
}
