// SPDX-License-Identifier: GPL-2.0

//! Memory of a PCI device, which vfio-pci has: `PCI_MEMORY` names it, its address and the number of a BAR,
//! `0000:04:00.0/2`.

use std::env;
use std::io;

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
}
