// SPDX-License-Identifier: GPL-2.0 OR MIT

//! PCI devices that are in the hands of VFIO: what memory they have, to be made a dma-buf of.
//!
//! The driver of the device has to be vfio-pci, which exports memory if the kernel has `CONFIG_VFIO_PCI_DMABUF`, as Linux
//! 7.3 does: that of an FPGA, say, or of whatever has no driver which exports it. A NIC on PCI can have it if the kernel
//! knows that the two reach each other: below one switch, for example.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use devmem::{BindRx, DmaBuf, Extent, vfio};
//!
//! let device = vfio::Device::open("0000:04:00.0")?;
//! let all = Extent { offset: 0, len: device.region(2)?.size };
//! let memory = DmaBuf::vfio(&device, 2, all)?;
//! let ifindex = nix::net::if_::if_nametoindex("eth0")?;
//! let binding = BindRx::new(ifindex).queue(4).bind(&memory)?;
//! # Ok(())
//! # }
//! ```
//!
//! The structures are those of [`include/uapi/linux/vfio.h`].
//!
//! [`include/uapi/linux/vfio.h`]: https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/include/uapi/linux/vfio.h

use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::dmabuf::Extent;

/// `VFIO_TYPE1v2_IOMMU`: DMA goes by an IOMMU.
const TYPE1_IOMMU: i32 = 3;
/// `VFIO_NOIOMMU_IOMMU`: there is none.
const NO_IOMMU: i32 = 8;
/// `VFIO_PCI_CONFIG_REGION_INDEX`.
const CONFIG_REGION: u32 = 7;
/// `VFIO_REGION_INFO_FLAG_MMAP`.
const REGION_MMAP: u32 = 1 << 2;
/// `VFIO_DEVICE_FEATURE_GET`.
const FEATURE_GET: u32 = 1 << 16;
/// `VFIO_DEVICE_FEATURE_DMA_BUF`.
const FEATURE_DMA_BUF: u32 = 11;
/// Where the command register is in the configuration space.
const PCI_COMMAND: u64 = 4;
/// In that register: the device answers to accesses to its memory.
const PCI_COMMAND_MEMORY: u16 = 1 << 1;
/// What the group of a device without an IOMMU is called, which VFIO has made for it.
const NO_IOMMU_GROUP: &str = "vfio-noiommu";

/// `struct vfio_device_bind_iommufd`, without what some devices want a token by.
#[repr(C)]
struct BindIommufd {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    out_devid: u32,
}

/// `struct vfio_region_info`.
#[repr(C)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

/// `struct vfio_device_feature`, with a `struct vfio_device_feature_dma_buf` of one range.
#[repr(C)]
struct DmaBufFeature {
    argsz: u32,
    feature_flags: u32,
    region_index: u32,
    open_flags: u32,
    flags: u32,
    nr_ranges: u32,
    offset: u64,
    length: u64,
}

mod ioctls {
    use super::BindIommufd;
    use super::DmaBufFeature;
    use super::RegionInfo;

    /// `VFIO_TYPE` and `VFIO_BASE`: none of its numbers tells how much is read and written.
    macro_rules! number {
        ($nr:expr) => {
            nix::request_code_none!(b';', 100 + $nr)
        };
    }
    #[cfg(test)]
    pub(super) use number;

    nix::ioctl_write_int_bad!(vfio_set_iommu, number!(2));
    nix::ioctl_write_ptr_bad!(vfio_group_set_container, number!(4), i32);
    nix::ioctl_write_ptr_bad!(vfio_group_get_device_fd, number!(6), libc::c_char);
    nix::ioctl_readwrite_bad!(vfio_device_get_region_info, number!(8), RegionInfo);
    nix::ioctl_none_bad!(vfio_device_reset, number!(11));
    nix::ioctl_write_ptr_bad!(vfio_device_feature_dma_buf, number!(17), DmaBufFeature);
    nix::ioctl_readwrite_bad!(vfio_device_bind_iommufd, number!(18), BindIommufd);
}

/// `argsz` of a structure, by which the kernel knows how much of it there is.
#[expect(clippy::cast_possible_truncation, reason = "it is less than 256")]
const fn argsz<T>() -> u32 {
    let size = size_of::<T>();
    assert!(size < 256);
    size as u32
}

/// A PCI device that VFIO has, opened.
///
/// It is open, and its memory can be accessed, until this, all [dma-bufs](crate::DmaBuf::vfio) made of it, and all that
/// these are mapped by, are dropped. Then whoever has such a dma-buf loses the memory, as when the device is
/// [reset](Self::reset): what is bound is [revoked](crate::status::EventKind::Revoked).
#[derive(Clone, Debug)]
pub struct Device {
    files: Arc<Files>,
}

/// The device, and what it was opened by.
#[derive(Debug)]
struct Files {
    device: File,
    _before: Vec<File>,
}

/// What a device has at one of its BARs, or its configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Region {
    /// Its size in bytes; 0 if there is no such BAR.
    pub size: u64,
    /// Whether it can be mapped.
    pub can_be_mapped: bool,
    /// Where it begins in the file that is the device.
    offset: u64,
}

impl Device {
    /// Opens a device by its address, `0000:04:00.0` say: [by its own file](Self::open_by_iommufd) if there is one that may
    /// be opened, else [by its group](Self::open_by_group).
    ///
    /// # Errors
    ///
    /// Those of the two.
    pub fn open(address: &str) -> io::Result<Self> {
        let has_file = own_file(address).is_ok_and(|file| file.exists());
        if !has_file || !Path::new("/dev/iommu").exists() {
            return Self::open_by_group(address);
        }
        match Self::open_by_iommufd(address) {
            // Rules for users are about groups, mostly.
            Err(err) if err.kind() == ErrorKind::PermissionDenied => Self::open_by_group(address),
            opened => opened,
        }
    }

    /// Opens a device by its file in `/dev/vfio/devices`, and makes it that of an iommufd, which it does no DMA by.
    ///
    /// Without an IOMMU it takes the module parameter `enable_unsafe_noiommu_mode` of vfio, since before its driver came to
    /// the device, and `CAP_SYS_RAWIO`.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if the driver of the device is not vfio-pci, or the kernel lacks
    /// `CONFIG_VFIO_DEVICE_CDEV`; [`PermissionDenied`](ErrorKind::PermissionDenied) if the files are somebody else's; those
    /// of `VFIO_DEVICE_BIND_IOMMUFD`, of which `EBUSY` says that somebody has the group of the device, or drives another
    /// device of that, and `EINVAL` that it is open already.
    pub fn open_by_iommufd(address: &str) -> io::Result<Self> {
        let iommufd = open(Path::new("/dev/iommu"))?;
        let device = open(&own_file(address)?)?;
        let mut arg = BindIommufd {
            argsz: argsz::<BindIommufd>(),
            flags: 0,
            iommufd: iommufd.as_raw_fd(),
            out_devid: 0,
        };
        // SAFETY: `arg` is the argument of this ioctl, which reads and writes no more than `argsz` says.
        unsafe { ioctls::vfio_device_bind_iommufd(device.as_raw_fd(), &mut arg) }?;
        Ok(Self::new(device, vec![iommufd]))
    }

    /// Opens a device by its group in `/dev/vfio`, and makes that one of a container of its own. Those of the device's
    /// group do no DMA by it.
    ///
    /// Without an IOMMU it takes what it does [by its own file](Self::open_by_iommufd).
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound) if the device has no group, or the driver of the device is not vfio-pci;
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) if the files are somebody else's, or an IOMMU is missing;
    /// `EBUSY` if somebody has the group already; those of `VFIO_GROUP_SET_CONTAINER`, of which `EBUSY` says that
    /// other devices of the group have drivers, those of `VFIO_SET_IOMMU` and `VFIO_GROUP_GET_DEVICE_FD`.
    pub fn open_by_group(address: &str) -> io::Result<Self> {
        let name = CString::new(address)?;
        let group = Group::of(address)?;
        let file = open(&group.file())?;
        let container = open(Path::new("/dev/vfio/vfio"))?;
        // SAFETY: The argument of this ioctl is an int, which it only reads.
        unsafe { ioctls::vfio_group_set_container(file.as_raw_fd(), &container.as_raw_fd()) }?;
        let iommu = match group.without_iommu {
            true => NO_IOMMU,
            false => TYPE1_IOMMU,
        };
        // SAFETY: Takes no pointers.
        unsafe { ioctls::vfio_set_iommu(container.as_raw_fd(), iommu) }?;
        // SAFETY: The argument of this ioctl is a string, which it only reads.
        let fd = unsafe { ioctls::vfio_group_get_device_fd(file.as_raw_fd(), name.as_ptr()) }?;
        // SAFETY: The ioctl returned a file descriptor that nobody else owns.
        let device = unsafe { File::from_raw_fd(fd) };
        Ok(Self::new(device, vec![file, container]))
    }

    fn new(device: File, before: Vec<File>) -> Self {
        let files = Files {
            device,
            _before: before,
        };
        Self {
            files: Arc::new(files),
        }
    }

    /// What there is at a BAR (0 to 5), or in the configuration space (7).
    ///
    /// # Errors
    ///
    /// Those of `VFIO_DEVICE_GET_REGION_INFO`: `EINVAL` if there is no such region with any device.
    pub fn region(&self, index: u32) -> io::Result<Region> {
        let mut arg = RegionInfo {
            argsz: argsz::<RegionInfo>(),
            flags: 0,
            index,
            cap_offset: 0,
            size: 0,
            offset: 0,
        };
        // SAFETY: `arg` is the argument of this ioctl, which reads and writes no more than `argsz` says.
        unsafe { ioctls::vfio_device_get_region_info(self.as_fd().as_raw_fd(), &mut arg) }?;
        Ok(Region {
            size: arg.size,
            can_be_mapped: arg.flags & REGION_MMAP != 0,
            offset: arg.offset,
        })
    }

    /// Has the device answer to accesses to its memory, or not. It does when it was opened.
    ///
    /// If it does not, what was mapped is not there any more, and whoever touches that gets a `SIGBUS`; and dma-bufs of it are
    /// taken back from those who have them mapped for other devices: it is waited until these have stopped. When it answers again,
    /// the same dma-bufs can be bound anew.
    ///
    /// # Errors
    ///
    /// Those of reading and writing the configuration space.
    pub fn enable_memory(&self, on: bool) -> io::Result<()> {
        let at = self.region(CONFIG_REGION)?.offset + PCI_COMMAND;
        let mut bytes = [0; 2];
        self.files.device.read_exact_at(&mut bytes, at)?;
        // Of PCI, whatever the machine is.
        let command = u16::from_le_bytes(bytes);
        let command = match on {
            true => command | PCI_COMMAND_MEMORY,
            false => command & !PCI_COMMAND_MEMORY,
        };
        self.files.device.write_all_at(&command.to_le_bytes(), at)
    }

    /// Resets the device. Dma-bufs of it are taken back as by [`enable_memory`](Self::enable_memory), and it
    /// answers afterwards if it did before.
    ///
    /// # Errors
    ///
    /// Those of `VFIO_DEVICE_RESET`: `EINVAL` if the device cannot be reset by itself, `EAGAIN` if the kernel is at work
    /// on it.
    pub fn reset(&self) -> io::Result<()> {
        // SAFETY: Takes no argument.
        unsafe { ioctls::vfio_device_reset(self.as_fd().as_raw_fd()) }?;
        Ok(())
    }

    /// A dma-buf of a part of a region, and where that begins in the file that is the device.
    pub(crate) fn export(&self, index: u32, part: Extent) -> io::Result<(OwnedFd, u64)> {
        let region = self.region(index)?;
        let arg = DmaBufFeature {
            argsz: argsz::<DmaBufFeature>(),
            feature_flags: FEATURE_GET | FEATURE_DMA_BUF,
            region_index: index,
            open_flags: u32::try_from(libc::O_RDWR | libc::O_CLOEXEC)
                .map_err(|_| ErrorKind::InvalidInput)?,
            flags: 0,
            nr_ranges: 1,
            offset: part.offset,
            length: part.len,
        };
        // SAFETY: `arg` is the argument of this ioctl, of which it reads no more than `argsz` says, and one range.
        let fd = unsafe { ioctls::vfio_device_feature_dma_buf(self.as_fd().as_raw_fd(), &arg) }?;
        // SAFETY: The ioctl returned a file descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // It does not overflow: the kernel has found the part in the region.
        Ok((fd, region.offset + part.offset))
    }
}

/// The device's descriptor, for what else VFIO has.
impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.files.device.as_fd()
    }
}

/// Opens one of VFIO's files, whose name is told if that fails.
fn open(path: &Path) -> io::Result<File> {
    let opened = File::options().read(true).write(true).open(path);
    opened.map_err(|err| match err.kind() {
        // The number tells more than a name: EBUSY.
        ErrorKind::ResourceBusy => err,
        kind => io::Error::new(kind, format!("{}: {err}", path.display())),
    })
}

fn not_found(what: String) -> io::Error {
    io::Error::new(ErrorKind::NotFound, what)
}

/// What sysfs tells of the device, which there is.
fn device(address: &str) -> io::Result<PathBuf> {
    let dir = Path::new("/sys/bus/pci/devices").join(address);
    match dir.try_exists()? {
        true => Ok(dir),
        false => Err(not_found(format!(
            "{address}: there is no such device on PCI"
        ))),
    }
}

/// The file that is a device of VFIO's.
fn own_file(address: &str) -> io::Result<PathBuf> {
    let device = device(address)?;
    let entry = match fs::read_dir(device.join("vfio-dev")) {
        Ok(mut entries) => entries.next().transpose()?,
        Err(err) if err.kind() == ErrorKind::NotFound => None,
        Err(err) => return Err(err),
    };
    let name = entry
        .ok_or_else(|| {
            not_found(format!(
                "{address}: the driver of the device is not vfio-pci"
            ))
        })?
        .file_name();
    Ok(Path::new("/dev/vfio/devices").join(name))
}

/// A group of devices, which an IOMMU cannot tell apart.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    number: String,
    without_iommu: bool,
}

impl Group {
    fn of(address: &str) -> io::Result<Self> {
        let dir = device(address)?.join("iommu_group");
        let no_group = || {
            not_found(format!(
                "{address}: the device has no group: there is no IOMMU, and vfio did not make one"
            ))
        };
        let path = match fs::canonicalize(&dir) {
            Err(err) if err.kind() == ErrorKind::NotFound => return Err(no_group()),
            path => path?,
        };
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(no_group)?
            .to_owned();
        // Other groups have no name, or another one.
        let name = match fs::read_to_string(dir.join("name")) {
            Err(err) if err.kind() == ErrorKind::NotFound => String::new(),
            name => name?,
        };
        Ok(Self {
            number,
            without_iommu: name.trim_end() == NO_IOMMU_GROUP,
        })
    }

    fn file(&self) -> PathBuf {
        let prefix = match self.without_iommu {
            true => "noiommu-",
            false => "",
        };
        Path::new("/dev/vfio").join(format!("{prefix}{}", self.number))
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// As a program in C has them that includes `linux/vfio.h`, on machines of 64 and of 32 bits.
    #[test]
    fn what_the_kernel_is_given() {
        assert_eq!(size_of::<BindIommufd>(), 16);
        assert_eq!(offset_of!(BindIommufd, iommufd), 8);
        assert_eq!(offset_of!(BindIommufd, out_devid), 12);

        assert_eq!(size_of::<RegionInfo>(), 32);
        assert_eq!(offset_of!(RegionInfo, index), 8);
        assert_eq!(offset_of!(RegionInfo, size), 16);
        assert_eq!(offset_of!(RegionInfo, offset), 24);

        // The head of a feature has 8 bytes, that of a dma-buf 16, and a range 16.
        assert_eq!(size_of::<DmaBufFeature>(), 40);
        assert_eq!(offset_of!(DmaBufFeature, region_index), 8);
        assert_eq!(offset_of!(DmaBufFeature, open_flags), 12);
        assert_eq!(offset_of!(DmaBufFeature, flags), 16);
        assert_eq!(offset_of!(DmaBufFeature, nr_ranges), 20);
        assert_eq!(offset_of!(DmaBufFeature, offset), 24);
        assert_eq!(offset_of!(DmaBufFeature, length), 32);
    }

    #[test]
    fn what_the_kernel_is_asked() {
        let numbers = [2, 4, 6, 8, 11, 17, 18].map(|nr| ioctls::number!(nr));
        let expected = [0x3b66, 0x3b68, 0x3b6a, 0x3b6c, 0x3b6f, 0x3b75, 0x3b76];
        assert_eq!(numbers.map(|number| number & 0xffff), expected);
        assert_eq!(FEATURE_GET | FEATURE_DMA_BUF, 0x1_000b);
    }

    #[test]
    fn where_a_group_is() {
        for (without_iommu, expected) in [(false, "/dev/vfio/12"), (true, "/dev/vfio/noiommu-12")] {
            let group = Group {
                number: "12".into(),
                without_iommu,
            };
            assert_eq!(group.file(), Path::new(expected));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_is_no_device_is_not_found() {
        for address in ["ffff:ff:1f.7", "", "no device"] {
            let opened = [
                Device::open(address),
                Device::open_by_group(address),
                own_file(address)
                    .and_then(|file| open(&file).map(|file| Device::new(file, vec![]))),
            ];
            for result in opened {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound, "{address}");
            }
        }
        let err = Device::open_by_group("a\0b").unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidInput);
    }

    /// A file that knows none of VFIO's ioctls.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_is_no_vfio_gives_no_memory() {
        let device = Device::new(File::open("/dev/null").unwrap(), vec![]);
        let whole = Extent { offset: 0, len: 1 };
        let errors = [
            device.region(2).map(drop),
            device.export(2, whole).map(drop),
            device.enable_memory(true),
            device.reset(),
        ];
        for error in errors {
            assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
    }
}
