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

use devmem::DmaBuf;
use nix::errno::Errno;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::delete_module;

use crate::modules;

const DEVICE: &str = "/dev/devmem_test";
const MEMORY: u32 = 1;
const PEER: u32 = 2;
const REVOCABLE: u32 = 4;
const HOST: u32 = 8;
const MOVES: u32 = 16;
const FENCE: u32 = 32;
const NO_ROOM: u32 = 64;
const MOVES_TO_PIN: u32 = 128;
const CPU: u32 = 256;

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
    pin_error: i32,
    reserved: u32,
}

/// What is with a dma-buf, `struct devmem_test_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DmaBufState {
    fd: i32,
    /// How many devices are attached.
    pub attached: u32,
    /// How many have it pinned.
    pub pinned: u32,
    /// How many have it mapped.
    pub mapped: u32,
    /// How many of those that are attached do peer-to-peer.
    pub peers: u32,
    /// How many of those that are attached can be told that it goes.
    pub revocable: u32,
    /// How often it moved.
    pub moves: u32,
    /// Whether somebody wrote to the memory after the last one unmapped it.
    pub written: u32,
    /// How often the CPU may look at it at the moment.
    pub cpu_accesses: u32,
    /// How often the CPU has it mapped at the moment.
    pub cpu_mappings: u32,
    /// How often that was done.
    pub cpu_mapped: u32,
    /// Whether it was taken back.
    pub revoked: u32,
}

mod ioctls {
    use super::DmaBufState;
    use super::Request;

    nix::ioctl_write_ptr!(dmabuf, b'D', 0x40, Request);
    nix::ioctl_readwrite!(state, b'D', 0x46, DmaBufState);
    nix::ioctl_write_ptr!(signal, b'D', 0x47, i32);
    nix::ioctl_write_ptr!(r#move, b'D', 0x48, i32);
    nix::ioctl_write_ptr!(revoke, b'D', 0x49, i32);
    nix::ioctl_none!(family, b'D', 0x4a);
    nix::ioctl_write_ptr!(go_on, b'D', 0x4c, i32);
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

/// Registers a family of generic netlink, and unregisters it. Each time all requests are waited for that are being
/// served, whatever family they are about.
pub fn come_and_go_family() -> io::Result<()> {
    // SAFETY: This ioctl has no argument.
    unsafe { ioctls::family(device()?.as_raw_fd()) }?;
    Ok(())
}

/// What a dma-buf is to be like.
#[derive(Clone, Debug)]
pub struct Shape {
    segments: Vec<Segment>,
    size: u64,
    flags: u32,
    attach_error: i32,
    map_error: i32,
    pin_error: i32,
}

impl Shape {
    /// One with these segments, and of their size.
    pub fn new(segments: &[Segment]) -> Self {
        let size = segments.iter().map(|segment| segment.len).sum();
        Self {
            segments: segments.to_vec(),
            size,
            flags: 0,
            attach_error: 0,
            map_error: 0,
            pin_error: 0,
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

    fn flag(self, flag: u32) -> Self {
        let flags = self.flags | flag;
        Self { flags, ..self }
    }

    /// Only who does peer-to-peer can attach.
    pub fn demands_peer(self) -> Self {
        self.flag(PEER)
    }

    /// Only who can be told that the memory goes can attach.
    pub fn demands_revocable(self) -> Self {
        self.flag(REVOCABLE)
    }

    /// It falls back to host memory.
    pub fn in_host_memory(self) -> Self {
        self.flag(HOST)
    }

    /// It can move, unless it is pinned.
    pub fn moves(self) -> Self {
        self.flag(MOVES)
    }

    /// It can move, and does before it is pinned.
    pub fn moves_to_pin(self) -> Self {
        self.moves().flag(MOVES_TO_PIN)
    }

    /// It can move, and cannot be pinned.
    pub fn pin_error(self, pin_error: i32) -> Self {
        Self {
            pin_error,
            ..self.moves()
        }
    }

    /// There is no room for it where peers would reach it.
    pub fn no_room_for_peers(self) -> Self {
        self.pin_error(libc::ENOMEM).flag(NO_ROOM)
    }

    /// The kernel has something to do with the memory, until [`OddDmaBuf::signal`].
    pub fn with_fence(self) -> Self {
        self.flag(FENCE)
    }

    /// The CPU can look at it, which is memory of one segment.
    pub fn for_the_cpu(self) -> Self {
        self.flag(CPU)
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
            flags: self.flags | flags,
            data: bytes.as_ptr().expose_provenance() as u64,
            attach_error: self.attach_error,
            map_error: self.map_error,
            pin_error: self.pin_error,
            reserved: 0,
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

impl OddDmaBuf {
    /// The same as any other one. It can be mapped if it is memory, of whole pages.
    pub fn as_any(&self) -> io::Result<DmaBuf> {
        DmaBuf::from_fd(self.0.try_clone()?)
    }

    /// What is with it.
    pub fn state(&self) -> io::Result<DmaBufState> {
        let mut state = DmaBufState {
            fd: self.0.as_raw_fd(),
            ..DmaBufState::default()
        };
        // SAFETY: The argument of this ioctl.
        unsafe { ioctls::state(device()?.as_raw_fd(), &raw mut state) }?;
        Ok(DmaBufState { fd: 0, ..state })
    }

    /// The kernel is done with what it had to do with the memory. `EINVAL` if there was nothing.
    pub fn signal(&self) -> io::Result<()> {
        // SAFETY: The argument of this ioctl, which reads it only.
        unsafe { ioctls::signal(device()?.as_raw_fd(), &self.0.as_raw_fd()) }?;
        Ok(())
    }

    /// The kernel has something else to do with the memory, until [`OddDmaBuf::signal`], and is done with what it had
    /// to do before.
    pub fn go_on(&self) -> io::Result<()> {
        // SAFETY: The argument of this ioctl, which reads it only.
        unsafe { ioctls::go_on(device()?.as_raw_fd(), &self.0.as_raw_fd()) }?;
        Ok(())
    }

    /// Moves the memory. `EINVAL` if it does not move, `EBUSY` if it is pinned.
    pub fn relocate(&self) -> nix::Result<()> {
        let device = device().expect("the module's device");
        // SAFETY: The argument of this ioctl, which reads it only.
        unsafe { ioctls::r#move(device.as_raw_fd(), &self.0.as_raw_fd()) }?;
        Ok(())
    }

    /// Takes the memory back for good, and waits until nobody has it mapped. `ETIME` if somebody has after five
    /// seconds.
    pub fn revoke(&self) -> nix::Result<()> {
        let device = device().expect("the module's device");
        // SAFETY: The argument of this ioctl, which reads it only.
        unsafe { ioctls::revoke(device.as_raw_fd(), &self.0.as_raw_fd()) }?;
        Ok(())
    }
}

impl AsFd for OddDmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
