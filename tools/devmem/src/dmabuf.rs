// SPDX-License-Identifier: GPL-2.0 OR MIT

//! dma-bufs: where they come from, and how the CPU reads and writes them.

use std::error::Error;
use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::path::Path;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;

use nix::fcntl::FcntlArg;
use nix::fcntl::SealFlag;
use nix::fcntl::fcntl;
use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap;
use nix::sys::mman::munmap;
use nix::sys::statfs::FsType;
use nix::sys::statfs::fstatfs;
use nix::unistd::Whence;
use nix::unistd::lseek;

use crate::vfio;
use crate::volatile;

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

/// Of what kernel-internal file system dma-bufs are files (`DMA_BUF_MAGIC`).
const DMA_BUF_FS: FsType = FsType(0x444d_4142);

const UDMABUF: &str = "/dev/udmabuf";
const UDMABUF_FLAGS_CLOEXEC: u32 = 1;
const SYNC_READ: u64 = 1;
const SYNC_WRITE: u64 = 2;
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
    /// What its regions are parts of, as long as there are some.
    regions: Mutex<Weak<Mapping>>,
    /// What the CPU maps it by, if not by itself.
    seen_by: Option<SeenBy>,
}

/// Where a dma-buf that cannot be mapped by itself is in the device whose memory it is.
#[derive(Debug)]
struct SeenBy {
    device: vfio::Device,
    offset: u64,
}

impl DmaBuf {
    fn new(fd: OwnedFd, size: usize) -> Self {
        Self {
            fd,
            size,
            regions: Mutex::default(),
            seen_by: None,
        }
    }

    /// Memory that something else exports, a GPU's driver for example, by the descriptor that it gave.
    ///
    /// Regions are accounted for here, and not in another `DmaBuf` of the same memory: see
    /// [`region`](Self::region). Not every exporter lets the CPU [`map`](Self::map) its memory; to be bound it need
    /// not be mapped.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no dma-buf; those of `fstatfs()` and `lseek()`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if fstatfs(&fd)?.filesystem_type() != DMA_BUF_FS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is not that of a dma-buf",
            ));
        }
        let size = lseek(&fd, 0, Whence::SeekEnd)?;
        let size = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Self::new(fd, size))
    }

    /// A udmabuf of `size` bytes of ordinary pages; `size` is a multiple of the page size.
    ///
    /// # Errors
    ///
    /// Those of [`udmabuf_of`](Self::udmabuf_of), and of `memfd_create()`, `ftruncate()` and `fcntl()`.
    pub fn udmabuf(size: usize) -> io::Result<Self> {
        let memfd = memfd(size, MFdFlags::empty())?;
        Self::udmabuf_of(&memfd, 0, size)
    }

    /// A udmabuf of `size` bytes of 2 MiB pages; `size` is a multiple of [`HUGE_PAGE`].
    ///
    /// The pages come from the system's pool (`vm.nr_hugepages`).
    ///
    /// # Errors
    ///
    /// Those of [`udmabuf`](Self::udmabuf). `ENOMEM` if the pool has not that many.
    pub fn udmabuf_huge(size: usize) -> io::Result<Self> {
        let memfd = memfd(size, MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB)?;
        Self::udmabuf_of(&memfd, 0, size)
    }

    /// A udmabuf of a part of a memfd, which has to be sealed against shrinking. `offset` and `size` are in bytes.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) on a kernel without `CONFIG_UDMABUF`, or if `/dev` does not show it;
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied) for users who may not open `/dev/udmabuf`. Then those
    /// of `UDMABUF_CREATE`: `EINVAL` if offset or size are not of whole pages, if there is more than the module's
    /// limits `size_limit_mb` and `list_limit` allow, or if seals are missing; `EBADFD` if it is no memfd.
    pub fn udmabuf_of(memfd: &impl AsFd, offset: u64, size: usize) -> io::Result<Self> {
        let device = open(Path::new(UDMABUF), File::options().read(true).write(true))?;
        let arg = UdmabufCreate {
            memfd: u32::try_from(memfd.as_fd().as_raw_fd())
                .map_err(|_| io::ErrorKind::InvalidInput)?,
            flags: UDMABUF_FLAGS_CLOEXEC,
            offset,
            size: size as u64,
        };
        // SAFETY: `arg` is the argument of this ioctl, which only reads it.
        let fd = unsafe { ioctls::udmabuf_create(device.as_raw_fd(), &arg) }?;
        // SAFETY: The ioctl returned a file descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self::new(fd, size))
    }

    /// `size` bytes of the system heap, `/dev/dma_heap/system`.
    ///
    /// # Errors
    ///
    /// Those of [`heap`](Self::heap).
    pub fn system_heap(size: usize) -> io::Result<Self> {
        Self::heap(Path::new("/dev/dma_heap/system"), size, libc::O_RDWR)
    }

    /// `size` bytes of a heap, their file descriptor opened with `access` (`O_RDWR`, `O_RDONLY`).
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) and [`PermissionDenied`](io::ErrorKind::PermissionDenied) if there is no
    /// such heap, or not for this user; those of `DMA_HEAP_IOCTL_ALLOC`, of which `EINVAL` is about `access` and
    /// `ENOMEM` about the size; [`InvalidData`](io::ErrorKind::InvalidData) if what answers is no heap.
    pub fn heap(heap: &Path, size: usize, access: i32) -> io::Result<Self> {
        let device = open(heap, File::options().read(true))?;
        let mut arg = HeapAllocation {
            len: size as u64,
            // The kernel refuses anything else.
            fd: 0,
            fd_flags: u32::try_from(access | libc::O_CLOEXEC)
                .map_err(|_| io::ErrorKind::InvalidInput)?,
            heap_flags: 0,
        };
        // SAFETY: `arg` is the argument of this ioctl, which reads and writes it.
        unsafe { ioctls::dma_heap_alloc(device.as_raw_fd(), &mut arg) }?;
        let fd = allocated(arg.fd)?;
        // SAFETY: The ioctl wrote a file descriptor, as `allocated()` has checked, and what a heap writes
        // there is new: nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self::new(fd, size))
    }

    /// A part of the memory of a PCI device that VFIO has: of one of its BARs, the number of which is `region`. Offset and
    /// length are in bytes, and of whole pages.
    ///
    /// It can be bound to NICs on PCI. The kernel refuses those that it does not know to reach the device, by `EINVAL`.
    ///
    /// The CPU sees it by the device, which stays open as long as there is this dma-buf, or something that
    /// [maps](Self::map) it. When its memory is not there, after
    /// [`enable_memory(false)`](vfio::Device::enable_memory) say, whoever touches such a mapping gets a `SIGBUS`.
    ///
    /// # Errors
    ///
    /// `ENOTTY` if vfio-pci of this kernel does not export memory ([`VFIO_DEVICE_FEATURE_DMA_BUF`]), and
    /// `EOPNOTSUPP` if it does not do so for this device; `ENODEV` if the device has no such BAR, or somebody else has taken it;
    /// `EINVAL` if offset and length are not of whole pages, or not in the BAR, if there can be no BAR of that number, or if
    /// its memory cannot be reached by others; `EOVERFLOW` for an offset that no BAR can have.
    ///
    /// [`VFIO_DEVICE_FEATURE_DMA_BUF`]: https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/include/uapi/linux/vfio.h
    pub fn vfio(device: &vfio::Device, region: u32, part: Extent) -> io::Result<Self> {
        let (fd, offset) = device.export(region, part)?;
        let size = usize::try_from(part.len).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(Self {
            seen_by: Some(SeenBy {
                device: device.clone(),
                offset,
            }),
            ..Self::new(fd, size)
        })
    }

    /// A memfd in its place: it can be mapped, but knows no `DMA_BUF_IOCTL_SYNC`, and no device takes it.
    #[cfg(test)]
    pub(crate) fn of_memfd(fd: OwnedFd) -> io::Result<Self> {
        let size = lseek(&fd, 0, Whence::SeekEnd)?;
        Ok(Self::new(fd, usize::try_from(size).unwrap()))
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Maps it for the CPU to read.
    ///
    /// # Errors
    ///
    /// Those of `mmap()`: not every exporter lets its memory be mapped.
    pub fn map(&self) -> io::Result<Mapping> {
        self.map_as(ProtFlags::PROT_READ)
    }

    /// Maps it for the CPU to write, as the one [`Region`] of which all others are parts.
    ///
    /// There are no others as long as any of its parts is there, be it in a sender: two owners of the same
    /// bytes would overwrite what is being sent. So parts that a sender never gives back keep it from being
    /// asked for again. Of memory that several dma-bufs share nobody keeps account.
    ///
    /// # Errors
    ///
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if there are regions of it; those of `mmap()`.
    pub fn region(&self) -> io::Result<Region> {
        // Nothing here leaves things half done.
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        if regions.strong_count() > 0 {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "there are regions of this dma-buf already",
            ));
        }
        let mapping = self.map_as(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let mapping = Arc::new(mapping);
        *regions = Arc::downgrade(&mapping);
        Ok(Region {
            mapping,
            extent: Extent {
                offset: 0,
                len: self.size as u64,
            },
        })
    }

    fn map_as(&self, access: ProtFlags) -> io::Result<Mapping> {
        let len = NonZeroUsize::new(self.size).ok_or(io::ErrorKind::InvalidInput)?;
        let (file, offset) = match &self.seen_by {
            Some(SeenBy { device, offset }) => (device.as_fd(), *offset),
            None => (self.fd.as_fd(), 0),
        };
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let fd = self.fd.try_clone()?;
        // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
        let address = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, file, offset) }?;
        Ok(Mapping {
            fd,
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

/// The device of [`DmaBuf::vfio`] is not kept open by that: with its last [`vfio::Device`], `DmaBuf` and mapping it is
/// closed, and the descriptor is that of memory which was taken back (`ENODEV`).
impl From<DmaBuf> for OwnedFd {
    fn from(dmabuf: DmaBuf) -> Self {
        dmabuf.fd
    }
}

/// Which device could not be opened: who asked for memory has named none.
#[derive(Debug)]
struct NotOpened {
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for NotOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.source)
    }
}

impl Error for NotOpened {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Opens a device that makes dma-bufs.
fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    options.open(path).map_err(|source| {
        let path = path.to_owned();
        io::Error::new(source.kind(), NotOpened { path, source })
    })
}

/// A memfd that udmabuf accepts: of its final size, and sealed against shrinking.
pub(crate) fn memfd(size: usize, flags: MFdFlags) -> io::Result<OwnedFd> {
    let fd = memfd_create(
        c"devmem",
        flags | MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    let size = libc::off_t::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
    nix::unistd::ftruncate(&fd, size)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    Ok(fd)
}

/// The descriptor that an allocation from a heap was answered with, in a field that was 0 before.
///
/// 0 is none: a driver that takes the ioctl for one of its own, or for none at all, may say that all is well
/// and leave the field alone. A heap has no reason to give 0, which is standard input, or else the heap
/// itself, that was opened just now.
fn allocated(fd: u32) -> io::Result<RawFd> {
    RawFd::try_from(fd)
        .ok()
        .filter(|&fd| fd > 0)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it gave no file descriptor"))
}

/// A part of a dma-buf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
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
// SAFETY: As above; reading from several threads is no conflict, and writing takes a Region by `&mut`.
unsafe impl std::marker::Sync for Mapping {}

impl Mapping {
    /// Makes what the device wrote visible to the CPU, until the guard is dropped.
    ///
    /// # Errors
    ///
    /// Those of `DMA_BUF_IOCTL_SYNC`, which are the exporter's.
    pub fn begin_read(&self) -> io::Result<CpuRead<'_>> {
        self.sync(SYNC_READ | SYNC_START)?;
        Ok(CpuRead { mapping: self })
    }

    fn end_write(&self) {
        // Only cache maintenance, of which nothing can be retried or undone.
        let _ = self.sync(SYNC_WRITE | SYNC_END);
    }

    fn sync(&self, flags: u64) -> io::Result<()> {
        let arg = Sync { flags };
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

/// The dma-buf's descriptor.
impl AsFd for Mapping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
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
#[must_use = "what a device writes is not to be read any more once this is dropped"]
pub struct CpuRead<'m> {
    mapping: &'m Mapping,
}

impl CpuRead<'_> {
    /// Copies the bytes at `offset` into `to`.
    ///
    /// They are copied instead of lent because a device, or another process with the same dma-buf,
    /// may write them at any time.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if they are not all in the dma-buf. Nothing was copied then.
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
        // SAFETY: The range was checked to lie in the mapping.
        unsafe {
            let from = self.mapping.address.as_ptr().cast::<u8>().add(offset);
            volatile::copy_out(from, to);
        }
        Ok(())
    }
}

impl Drop for CpuRead<'_> {
    fn drop(&mut self) {
        // Only cache maintenance, of which nothing can be retried or undone.
        let _ = self.mapping.sync(SYNC_READ | SYNC_END);
    }
}

/// A part of a dma-buf that only its owner writes to, so that it can be sent.
///
/// To send, a [`Sender`](crate::Sender) takes it, and gives it back when nobody reads the memory any
/// more: what is in flight cannot be overwritten.
#[derive(Debug)]
pub struct Region {
    mapping: Arc<Mapping>,
    extent: Extent,
}

impl Region {
    /// Where it lies in the dma-buf.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Cuts it in two, the first of `len` bytes.
    ///
    /// # Errors
    ///
    /// Gives it back whole if it has not that many.
    pub fn split_at(self, len: u64) -> Result<(Self, Self), Self> {
        let Some(rest) = self.extent.len.checked_sub(len) else {
            return Err(self);
        };
        let second = Self {
            mapping: Arc::clone(&self.mapping),
            extent: Extent {
                offset: self.extent.offset + len,
                len: rest,
            },
        };
        let first = Self {
            mapping: self.mapping,
            extent: Extent { len, ..self.extent },
        };
        Ok((first, second))
    }

    /// Cuts it into parts of `len` bytes, of which the last may be shorter.
    pub fn split(self, len: u64) -> Vec<Self> {
        let Extent { offset, len: all } = self.extent;
        let step = len.max(1);
        (0..all.div_ceil(step))
            .map(|i| Self {
                mapping: Arc::clone(&self.mapping),
                extent: Extent {
                    offset: offset + i * step,
                    len: step.min(all - i * step),
                },
            })
            .collect()
    }

    /// Lets the CPU write to it, until the guard is dropped.
    ///
    /// What that takes is told to the exporter for all of the dma-buf: the kernel knows no part of one. So those
    /// who fill many small regions do it with [`begin_write_all`](Self::begin_write_all).
    ///
    /// # Errors
    ///
    /// Those of `DMA_BUF_IOCTL_SYNC`, which are the exporter's.
    pub fn begin_write(&mut self) -> io::Result<CpuWrite<'_>> {
        self.mapping.sync(SYNC_WRITE | SYNC_START)?;
        Ok(CpuWrite { region: self })
    }

    /// Lets the CPU write to several regions of one dma-buf, until the guard is dropped.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if they are not all of one dma-buf; those of
    /// [`begin_write`](Self::begin_write).
    pub fn begin_write_all(regions: &mut [Self]) -> io::Result<CpuWriteAll<'_>> {
        if let Some((first, others)) = regions.split_first() {
            let same = |other: &Self| Arc::ptr_eq(&first.mapping, &other.mapping);
            if !others.iter().all(same) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the regions are not all of one dma-buf",
                ));
            }
            first.mapping.sync(SYNC_WRITE | SYNC_START)?;
        }
        Ok(CpuWriteAll { regions })
    }

    fn copy_in(&mut self, at: u64, from: &[u8]) -> io::Result<()> {
        let Extent { offset, len } = self.extent;
        if at
            .checked_add(from.len() as u64)
            .is_none_or(|end| end > len)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} bytes at {at} are outside of the region", from.len()),
            ));
        }
        // It does: a region lies in its mapping.
        let offset = usize::try_from(offset + at).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: The range was checked to lie in the region, and so in the mapping, which is writable, as
        // every one with regions. Of this mapping nobody else accesses the bytes of the region.
        unsafe {
            let to = self.mapping.address.as_ptr().cast::<u8>().add(offset);
            volatile::copy_in(from, to);
        }
        Ok(())
    }
}

/// The dma-buf's descriptor.
impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mapping.as_fd()
    }
}

/// A region of which the first bytes are to be sent.
#[derive(Debug)]
pub struct Filled {
    /// The region.
    pub region: Region,
    /// How many bytes. More than the region has are as many as it has.
    pub len: u64,
}

/// A region that the CPU may write: `DMA_BUF_IOCTL_SYNC` has started, and ends with this.
#[derive(Debug)]
#[must_use = "the memory is not to be written any more once this is dropped"]
pub struct CpuWrite<'r> {
    region: &'r mut Region,
}

impl CpuWrite<'_> {
    /// Copies `from` to `at` of the region.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if that is not all in the region. Nothing was copied then.
    pub fn copy_in(&mut self, at: u64, from: &[u8]) -> io::Result<()> {
        self.region.copy_in(at, from)
    }
}

impl Drop for CpuWrite<'_> {
    fn drop(&mut self) {
        self.region.mapping.end_write();
    }
}

/// Several regions of one dma-buf that the CPU may write, as a [`CpuWrite`] is of one.
#[derive(Debug)]
#[must_use = "the memory is not to be written any more once this is dropped"]
pub struct CpuWriteAll<'r> {
    regions: &'r mut [Region],
}

impl CpuWriteAll<'_> {
    /// Copies `from` to `at` of the region with this index.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if there is none, or that is not all in it. Nothing was copied
    /// then.
    pub fn copy_in(&mut self, index: usize, at: u64, from: &[u8]) -> io::Result<()> {
        match self.regions.get_mut(index) {
            Some(region) => region.copy_in(at, from),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{index} is none of {} regions", self.regions.len()),
            )),
        }
    }
}

impl Drop for CpuWriteAll<'_> {
    fn drop(&mut self) {
        if let Some(region) = self.regions.first() {
            region.mapping.end_write();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_descriptor_is_none() {
        for fd in [0, u32::MAX, 1 << 31] {
            assert_eq!(
                allocated(fd).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
        assert_eq!(allocated(3).unwrap(), 3);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn a_device_that_is_missing_is_named() {
        let err = DmaBuf::heap(Path::new("/dev/null/heap"), 4096, libc::O_RDWR).unwrap_err();
        assert!(err.to_string().contains("/dev/null/heap"), "{err}");
        assert_eq!(err.kind(), io::ErrorKind::NotADirectory);
        assert_eq!(crate::errno_of(&err), Some(libc::ENOTDIR));
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn nobody_else_has_the_bytes_of_a_region() {
        let memory = memory_of_no_device();
        let busy = || memory.region().unwrap_err().kind();
        let region = memory.region().unwrap();
        assert_eq!(busy(), io::ErrorKind::ResourceBusy);
        let mut parts = region.split(1 << 12);
        let mut at = 0;
        for part in &parts {
            assert_eq!(part.extent().offset, at);
            at += part.extent().len;
        }
        assert_eq!(at, 1 << 16);
        while parts.pop().is_some_and(|_| !parts.is_empty()) {
            assert_eq!(busy(), io::ErrorKind::ResourceBusy);
        }
        let region = memory.region().unwrap();
        let (first, second) = region.split_at(7).unwrap();
        drop(first);
        assert_eq!(busy(), io::ErrorKind::ResourceBusy);
        drop(second);
        memory.region().unwrap();
    }

    fn memory_of_no_device() -> DmaBuf {
        DmaBuf::of_memfd(memfd(1 << 16, MFdFlags::empty()).unwrap()).unwrap()
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn a_region_is_written_within_its_bounds() {
        let memory = memory_of_no_device();
        let map = memory.map().unwrap();
        let cpu = CpuRead { mapping: &map };
        let mut parts = memory.region().unwrap().split(100);
        let mut all = CpuWriteAll {
            regions: &mut parts[3..5],
        };
        all.copy_in(0, 0, &[3; 100]).unwrap();
        all.copy_in(1, 1, &[4; 98]).unwrap();
        for (index, at, len) in [(0, 1, 100), (1, 100, 1), (1, u64::MAX, 1), (2, 0, 0)] {
            let err = all.copy_in(index, at, &vec![5; len]).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        }
        let mut seen = [1; 300];
        cpu.copy_out(250, &mut seen).unwrap();
        let expected = [&[0; 50][..], &[3; 100], &[0], &[4; 98], &[0; 51]].concat();
        assert_eq!(seen[..], expected);
        for (offset, len) in [((1 << 16) - 1, 2), (u64::MAX, 1), (1 << 16, 1)] {
            let err = cpu.copy_out(offset, &mut vec![0; len]).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn regions_of_several_dmabufs_are_not_written_together() {
        let (one, other) = (memory_of_no_device(), memory_of_no_device());
        let mut regions = [one.region().unwrap(), other.region().unwrap()];
        let err = Region::begin_write_all(&mut regions).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        // It comes to the exporter, which this has not.
        let err = Region::begin_write_all(&mut regions[..1]).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ENOTTY));
        drop(Region::begin_write_all(&mut []).unwrap());
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_is_no_dmabuf_is_not_taken_for_one() {
        let memfd = memfd(1 << 16, MFdFlags::empty()).unwrap();
        let zero = File::open("/dev/zero").unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        for fd in [memfd, zero.into(), socket.into()] {
            let err = DmaBuf::from_fd(fd).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_is_no_heap_gives_no_memory() {
        DmaBuf::heap(Path::new("/dev/null"), 4096, libc::O_RDWR).unwrap_err();
        DmaBuf::heap(Path::new("/dev/zero"), 4096, -1).unwrap_err();
    }
}
