// SPDX-License-Identifier: GPL-2.0

//! Memory of a PCI device, which vfio-pci has: `PCI_MEMORY` names it, its address and the number of a BAR,
//! `0000:04:00.0/2`.

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::vfio::Device;

use crate::report::reason_to_skip;

/// The BAR, of a device that is open.
#[derive(Debug)]
pub struct Bar {
    /// The device.
    pub device: Device,
    /// The number of the BAR.
    pub number: u32,
}

impl Bar {
    /// Opens it in the way that is the best here.
    pub fn open() -> io::Result<Self> {
        Self::open_by(Device::open)
    }

    /// Opens it.
    pub fn open_by(open: impl FnOnce(&str) -> io::Result<Device>) -> io::Result<Self> {
        let name = env::var("PCI_MEMORY")
            .map_err(|_| reason_to_skip("this takes memory on PCI, and PCI_MEMORY is not set"))?;
        let parsed = name
            .rsplit_once('/')
            .and_then(|(address, number)| Some((address, number.parse().ok()?)));
        let (address, number) =
            parsed.ok_or_else(|| io::Error::other(format!("PCI_MEMORY: {name}")))?;
        let device = open(address)
            .map_err(|err| io::Error::other(format!("PCI_MEMORY is {name}: {err}")))?;
        Ok(Self { device, number })
    }

    /// A part of it.
    pub fn part(&self, part: Extent) -> io::Result<DmaBuf> {
        DmaBuf::vfio(&self.device, self.number, part)
    }

    /// The same as [`part`](Self::part), of so many pieces as it has pages: a scatterlist may have an entry for each.
    pub fn in_pages(&self, part: Extent) -> io::Result<DmaBuf> {
        const VFIO_DEVICE_FEATURE: libc::Ioctl = 0x3b75;
        const GET_DMA_BUF: u32 = 1 << 16 | 11;
        const PAGE: usize = 4096;
        let ranges: Vec<_> = (0..part.len)
            .step_by(PAGE)
            .flat_map(|at| [part.offset + at, PAGE as u64])
            .collect();
        // The size of all, what is asked for; BAR, flags of the descriptor, no flags, and how many ranges.
        let head = [
            (24 + size_of_val(&*ranges)) as u32,
            GET_DMA_BUF,
            self.number,
            (libc::O_RDWR | libc::O_CLOEXEC) as u32,
            0,
            ranges.len() as u32 / 2,
        ];
        let mut arg: Vec<u64> = head
            .chunks(2)
            .map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32)
            .collect();
        arg.extend(ranges);
        // SAFETY: `arg` is the argument of this ioctl, which reads as much of it as it says at its beginning.
        let fd = unsafe {
            libc::ioctl(
                self.device.as_fd().as_raw_fd(),
                VFIO_DEVICE_FEATURE,
                arg.as_ptr(),
            )
        };
        match fd {
            // SAFETY: The kernel just made this file descriptor for us.
            0.. => DmaBuf::from_fd(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
