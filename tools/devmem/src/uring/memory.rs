// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Memory that is shared with the kernel.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;

use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::sys::mman::munmap;

/// Zeroed pages, of which only those cost memory that are used.
///
/// They are always accessed by raw pointers, since requests in flight may write them.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: The pages belong to the process, not to a thread.
unsafe impl Send for Memory {}

impl Memory {
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
        let start = unsafe {
            mmap_anonymous(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        }?;
        Ok(Self { start, len })
    }

    /// Where `size` bytes at `offset` are.
    #[track_caller]
    pub(super) fn at<T>(&self, offset: usize, size: usize) -> *mut T {
        let end = offset.checked_add(size);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "outside of the memory"
        );
        assert_eq!(offset % align_of::<T>(), 0, "not aligned");
        // SAFETY: The offset was checked to lie in the mapping.
        unsafe { self.start.as_ptr().byte_add(offset) }.cast()
    }

    /// The bytes there.
    ///
    /// # Safety
    ///
    /// No request that may write them is in flight, or gets in flight while the slice lives.
    pub(super) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: `at()` checked the range; the pages are initialized, and nobody writes them.
        unsafe { slice::from_raw_parts(self.at(offset, len), len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: The mapping is this struct's own; slices of it cannot outlive it.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}
