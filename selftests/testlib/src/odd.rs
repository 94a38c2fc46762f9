// SPDX-License-Identifier: GPL-2.0

//! dma-bufs as no exporter in the kernel makes them, from the module `devmem_test`; and that module.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::delete_module;

use crate::modules;

const DEVICE: &str = "/dev/devmem_test";
const MEMORY: u32 = 1;

/// An entry of a scatterlist.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its DMA address; for memory, where it begins in its first page.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// `struct devmem_test_dmabuf`.
#[repr(C)]
struct Request {
    size: u64,
    segments: u64,
    num_segments: u32,
    flags: u32,
    data: u64,
    attach_error: i32,
    map_error: i32,
}

mod ioctls {
    use super::Request;

    nix::ioctl_write_ptr!(dmabuf, b'D', 0x40, Request);
}

/// Opens the device of the module, which it loads if need be.
pub(crate) fn device() -> io::Result<File> {
    if !Path::new(DEVICE).exists() {
        modules::load(modules::TEST)?;
    }
    File::open(DEVICE)
}

/// Unloads the module, if it is loaded. Nobody may have the device open.
pub fn unload() -> io::Result<()> {
    match delete_module(c"devmem_test", DeleteModuleFlags::O_NONBLOCK) {
        Err(Errno::ENOENT) => Ok(()),
        done => Ok(done?),
    }
}

/// What a dma-buf is to be like.
#[derive(Clone, Debug)]
pub struct Shape {
    segments: Vec<Segment>,
    size: u64,
    attach_error: i32,
    map_error: i32,
}

impl Shape {
    /// One with these segments, and of their size.
    pub fn new(segments: &[Segment]) -> Self {
        let size = segments.iter().map(|segment| segment.len).sum();
        Self {
            segments: segments.to_vec(),
            size,
            attach_error: 0,
            map_error: 0,
        }
    }

    /// It claims to have this size.
    pub fn size(self, size: u64) -> Self {
        Self { size, ..self }
    }

    /// No device can be attached.
    pub fn attach_error(self, attach_error: i32) -> Self {
        Self {
            attach_error,
            ..self
        }
    }

    /// It cannot be mapped.
    pub fn map_error(self, map_error: i32) -> Self {
        Self { map_error, ..self }
    }

    /// Makes it of nothing: no device may touch it.
    pub fn of_nothing(&self) -> io::Result<OddDmaBuf> {
        self.make(0, &[])
    }

    /// Makes it of memory that holds these bytes.
    pub fn of_memory(&self, bytes: &[u8]) -> io::Result<OddDmaBuf> {
        let len: u64 = self.segments.iter().map(|segment| segment.len).sum();
        assert_eq!(len, bytes.len() as u64, "bytes for all segments");
        self.make(MEMORY, bytes)
    }

    fn make(&self, flags: u32, bytes: &[u8]) -> io::Result<OddDmaBuf> {
        let request = Request {
            size: self.size,
            segments: self.segments.as_ptr().expose_provenance() as u64,
            num_segments: self.segments.len() as u32,
            flags,
            data: bytes.as_ptr().expose_provenance() as u64,
            attach_error: self.attach_error,
            map_error: self.map_error,
        };
        // SAFETY: The argument of this ioctl, which refers to arrays of the lengths that it tells, and
        // reads them only.
        let fd = unsafe { ioctls::dmabuf(device()?.as_raw_fd(), &request) }?;
        // SAFETY: The ioctl returned a file descriptor that nobody else owns.
        Ok(OddDmaBuf(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// An odd dma-buf.
#[derive(Debug)]
pub struct OddDmaBuf(OwnedFd);

impl AsFd for OddDmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
