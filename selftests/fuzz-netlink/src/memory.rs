// SPDX-License-Identifier: GPL-2.0

//! Memory for calls, some of which is not there.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr;
use std::ptr::NonNull;

use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::sys::mman::mprotect;
use nix::sys::mman::munmap;

use crate::input::Place;

/// Bytes that are there: more than an input can have sent.
const GOOD: usize = 1 << 20;
const PAGE: usize = 4096;
/// Where the kernel has all memory on x86-64.
const KERNEL: usize = 0xffff_8880_0000_0000;

/// Memory that is there, then memory that can only be read, then none.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<c_void>,
}

impl Memory {
    const MAPPED: usize = GOOD + 2 * PAGE;

    /// Maps it.
    pub fn new() -> io::Result<Self> {
        let len = NonZeroUsize::new(Self::MAPPED).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
        let base = unsafe { mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE) }?;
        let memory = Self { base };
        // SAFETY: The rear of the mapping made above, which nothing refers to.
        unsafe {
            mprotect(memory.at(GOOD), PAGE, ProtFlags::PROT_READ)?;
            mprotect(memory.at(GOOD + PAGE), PAGE, ProtFlags::PROT_NONE)?;
        }
        Ok(memory)
    }

    fn at(&self, offset: usize) -> NonNull<c_void> {
        assert!(offset < Self::MAPPED);
        // SAFETY: The offset is in the mapping.
        unsafe { self.base.byte_add(offset) }
    }

    /// A place, and how many bytes are there to be written.
    fn place(&self, place: Place) -> (*mut c_void, usize) {
        match place {
            Place::Good => (self.base.as_ptr(), GOOD),
            Place::Short(len) => (self.at(GOOD - usize::from(len)).as_ptr(), len.into()),
            Place::Null => (ptr::null_mut(), 0),
            Place::Unmapped => (self.at(GOOD + PAGE).as_ptr(), 0),
            Place::Kernel => (ptr::without_provenance_mut(KERNEL), 0),
            Place::ReadOnly => (self.at(GOOD).as_ptr(), 0),
        }
    }

    /// The address of a place, for the kernel to write to.
    pub fn address(&self, place: Place) -> *mut c_void {
        self.place(place).0
    }

    /// The address of a place, where these bytes are now as far as they fit.
    pub fn filled(&mut self, place: Place, bytes: &[u8]) -> *mut c_void {
        let (address, len) = self.place(place);
        let len = len.min(bytes.len());
        if len > 0 {
            // SAFETY: So many bytes of the mapping can be written, and `self` is borrowed mutably: no
            // reference into it is left.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address.cast(), len) };
        }
        address
    }

    /// What is at the place that is good.
    pub fn bytes(&self, len: usize) -> &[u8] {
        // SAFETY: So many bytes of the mapping can be read, and only the kernel writes them, during calls.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), len.min(GOOD)) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: The mapping is this struct's own, and no reference into it is left.
        let _ = unsafe { munmap(self.base, Self::MAPPED) };
    }
}
