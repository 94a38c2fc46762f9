// SPDX-License-Identifier: GPL-2.0

//! dma-bufs: where they come from, and how the CPU reads them.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::ptr::NonNull;

use nix::fcntl::FcntlArg;
use nix::fcntl::SealFlag;
use nix::fcntl::fcntl;
use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap;
use nix::sys::mman::munmap;

/// Size of the huge pages of [`DmaBuf::udmabuf_huge`].
pub const HUGE_PAGE: usize = 2 << 20;

#[repr(C)]
struct UdmabufCreate {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

#[repr(C)]
struct HeapAllocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

#[repr(C)]
struct Sync {
    flags: u64,
}

const UDMABUF_FLAGS_CLOEXEC: u32 = 1;
const SYNC_READ: u64 = 1;
const SYNC_START: u64 = 0;
const SYNC_END: u64 = 4;

mod ioctls {
    use super::HeapAllocation;
    use super::Sync;
    use super::UdmabufCreate;

    nix::ioctl_write_ptr!(udmabuf_create, b'u', 0x42, UdmabufCreate);
    nix::ioctl_readwrite!(dma_heap_alloc, b'H', 0, HeapAllocation);
    nix::ioctl_write_ptr!(dma_buf_sync, b'b', 0, Sync);
}

/// A dma-buf: memory that a device can be given.
#[derive(Debug)]
pub struct DmaBuf {
    fd: OwnedFd,
    size: usize,
}

impl DmaBuf {
    /// A udmabuf of `size` bytes of ordinary pages; `size` is a multiple of the page size.
    pub fn udmabuf(size: usize) -> io::Result<Self> {
        let memfd = memfd(size, MFdFlags::empty())?;
        Self::udmabuf_of(&memfd, 0, size)
    }

    /// A udmabuf of `size` bytes of 2 MiB pages; `size` is a multiple of [`HUGE_PAGE`].
    ///
    /// The pages come from the system's pool (`vm.nr_hugepages`).
    pub fn udmabuf_huge(size: usize) -> io::Result<Self> {
        let memfd = memfd(size, MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB)?;
        Self::udmabuf_of(&memfd, 0, size)
    }

    /// A udmabuf of a part of a memfd, which has to be sealed against shrinking.
    pub fn udmabuf_of(memfd: &impl AsFd, offset: u64, size: usize) -> io::Result<Self> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/udmabuf")?;
        let arg = UdmabufCreate {
            memfd: memfd.as_fd().as_raw_fd() as u32,
            flags: UDMABUF_FLAGS_CLOEXEC,
            offset,
            size: size as u64,
        };
        // SAFETY: `arg` is the argument of this ioctl, which only reads it.
        let fd = unsafe { ioctls::udmabuf_create(device.as_raw_fd(), &arg) }?;
        // SAFETY: The ioctl returned a file descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, size })
    }

    /// Memory of the system heap, `/dev/dma_heap/system`.
    pub fn system_heap(size: usize) -> io::Result<Self> {
        Self::heap(Path::new("/dev/dma_heap/system"), size, libc::O_RDWR)
    }

    /// Memory of a heap, its file descriptor opened with `access` (`O_RDWR`, `O_RDONLY`).
    pub fn heap(heap: &Path, size: usize, access: i32) -> io::Result<Self> {
        let device = File::open(heap)?;
        let mut arg = HeapAllocation {
            len: size as u64,
            fd: 0,
            fd_flags: (access | libc::O_CLOEXEC) as u32,
            heap_flags: 0,
        };
        // SAFETY: `arg` is the argument of this ioctl, which reads and writes it.
        unsafe { ioctls::dma_heap_alloc(device.as_raw_fd(), &mut arg) }?;
        // SAFETY: The ioctl returned a file descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(arg.fd as i32) };
        Ok(Self { fd, size })
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Maps it for the CPU to read.
    pub fn map(&self) -> io::Result<Mapping> {
        let len = NonZeroUsize::new(self.size).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
        let address = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                &self.fd,
                0,
            )
        }?;
        Ok(Mapping {
            fd: self.fd.try_clone()?,
            address,
            size: self.size,
        })
    }
}

impl AsFd for DmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A memfd that udmabuf accepts: of its final size, and sealed against shrinking.
fn memfd(size: usize, flags: MFdFlags) -> io::Result<OwnedFd> {
    let fd = memfd_create(
        c"devmem",
        flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    let size = libc::off_t::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    nix::unistd::ftruncate(&fd, size)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    Ok(fd)
}

/// A dma-buf in the memory of this process, to be read only.
#[derive(Debug)]
pub struct Mapping {
    fd: OwnedFd,
    address: NonNull<c_void>,
    size: usize,
}

// SAFETY: The mapping belongs to the process, not to a thread, and is only read.
unsafe impl Send for Mapping {}
// SAFETY: As above; reading from several threads is no conflict.
unsafe impl std::marker::Sync for Mapping {}

impl Mapping {
    /// Makes what the device wrote visible to the CPU, until the guard is dropped.
    pub fn begin_read(&self) -> io::Result<CpuRead<'_>> {
        self.sync(SYNC_START)?;
        Ok(CpuRead { mapping: self })
    }

    fn sync(&self, phase: u64) -> io::Result<()> {
        let arg = Sync {
            flags: SYNC_READ | phase,
        };
        loop {
            // SAFETY: `arg` is the argument of this ioctl, which only reads it.
            match unsafe { ioctls::dma_buf_sync(self.fd.as_raw_fd(), &arg) } {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR | nix::Error::EAGAIN) => (),
                Err(err) => return Err(err.into()),
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is this struct's own, and no reference into it is ever made.
        let _ = unsafe { munmap(self.address, self.size) };
    }
}

/// A dma-buf that the CPU may read: `DMA_BUF_IOCTL_SYNC` has started, and ends with this.
#[derive(Debug)]
pub struct CpuRead<'m> {
    mapping: &'m Mapping,
}

impl CpuRead<'_> {
    /// Copies the bytes at `offset` into `to`.
    ///
    /// They are copied instead of lent because a device, or another process with the same dma-buf,
    /// may write them at any time.
    pub fn copy_out(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        if offset
            .checked_add(to.len())
            .is_none_or(|end| end > self.mapping.size)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} bytes at {offset} are outside of the dma-buf", to.len()),
            ));
        }
        // SAFETY: The range was checked to lie in the mapping, which `to` cannot overlap since no
        // reference into it exists. The memory is not Rust's: a concurrent write by the device
        // yields unspecified bytes, and nothing else.
        unsafe {
            let from = self.mapping.address.as_ptr().cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
        }
        Ok(())
    }
}

impl Drop for CpuRead<'_> {
    fn drop(&mut self) {
        // Only cache maintenance, of which nothing can be retried or undone.
        let _ = self.mapping.sync(SYNC_END);
    }
}
