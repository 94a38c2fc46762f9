// SPDX-License-Identifier: GPL-2.0

//! Memory for the buffers of calls, mapped once. What is behind a buffer faults.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::sys::mman::mprotect;
use nix::sys::mman::munmap;

use crate::op::Buffer;

/// What a buffer holds before a call.
pub const UNTOUCHED: u8 = 0xa5;
/// The longest buffer there can be.
pub const ROOM: usize = 64 << 10;
/// The most iovecs there can be.
pub const IOVECS: usize = 3;

/// Room for one buffer at a time.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<c_void>,
    room: usize,
}

impl Arena {
    /// Room for buffers of up to `room` bytes, a multiple of the page size.
    pub fn new(room: usize) -> io::Result<Self> {
        let len = NonZeroUsize::new(2 * room).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
        let base = unsafe { mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE) }?;
        let arena = Self { base, room };
        // SAFETY: The rear of the mapping made above, which nothing refers to.
        unsafe { mprotect(base.byte_add(room), room, ProtFlags::PROT_NONE) }?;
        Ok(arena)
    }

    /// Makes a buffer ready for a call, and returns where it is.
    pub fn prepare(&mut self, buffer: Buffer) -> *mut c_void {
        self.good(buffer).fill(UNTOUCHED);
        self.start(buffer).cast()
    }

    /// The good part of the buffer that was made ready last.
    pub fn good(&mut self, buffer: Buffer) -> &mut [u8] {
        // SAFETY: `start` is so many bytes before the end of the front, which is mapped for reading and
        // writing. The kernel writes there, but only during calls.
        unsafe { std::slice::from_raw_parts_mut(self.start(buffer), buffer.good as usize) }
    }

    fn start(&self, buffer: Buffer) -> *mut u8 {
        assert!(buffer.good as usize <= self.room && buffer.missing as usize <= self.room);
        // SAFETY: The front is part of the mapping.
        unsafe { self.base.byte_add(self.room - buffer.good as usize) }
            .cast()
            .as_ptr()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: The mapping is this struct's own, and no reference into it is left.
        let _ = unsafe { munmap(self.base, 2 * self.room) };
    }
}

/// Memory for the buffers of a call.
#[derive(Debug)]
pub struct Arenas {
    /// For each iovec.
    pub data: [Arena; IOVECS],
    /// For control messages.
    pub control: Arena,
    /// For what is read beside the call.
    pub scratch: Vec<u8>,
}

impl Arenas {
    /// Maps it.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            data: [Arena::new(ROOM)?, Arena::new(ROOM)?, Arena::new(ROOM)?],
            control: Arena::new(ROOM)?,
            scratch: vec![0; ROOM],
        })
    }

    /// Makes buffers ready for a call, and returns where they are.
    pub fn iovecs(&mut self, buffers: &[Buffer]) -> Vec<libc::iovec> {
        self.data
            .iter_mut()
            .zip(buffers)
            .map(|(arena, &buffer)| libc::iovec {
                iov_base: arena.prepare(buffer),
                iov_len: buffer.len(),
            })
            .collect()
    }

    /// What is in the data buffers, up to where the first one is missing.
    pub fn data(&mut self, buffers: &[Buffer]) -> Vec<u8> {
        let whole = buffers.iter().take_while(|buffer| buffer.missing == 0);
        let count = (whole.count() + 1).min(buffers.len());
        self.data
            .iter_mut()
            .zip(&buffers[..count])
            .flat_map(|(arena, &buffer)| &*arena.good(buffer))
            .copied()
            .collect()
    }
}
