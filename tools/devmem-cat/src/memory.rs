// SPDX-License-Identifier: GPL-2.0

//! The dma-buf, and what to do if there is none of that size.

use std::fs;
use std::io;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::vfio::Device;
use nix::errno::Errno;

use crate::args::Bar;
use crate::args::CommonArgs;
use crate::args::MemoryKind;

/// The limit of a udmabuf, in MiB.
const LIMIT: &str = "/sys/module/udmabuf/parameters/size_limit_mb";
const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

/// What the options ask for.
pub fn dmabuf(args: &CommonArgs) -> Result<DmaBuf, String> {
    let size = args
        .memory
        .checked_mul(MIB)
        .filter(|&size| size > 0)
        .ok_or("--memory: there is no dma-buf of that size")?;
    if let Some(bar) = &args.vfio {
        return of_device(bar, size);
    }
    let made = match args.kind {
        MemoryKind::Udmabuf => there_is(args.memory).and_then(|()| DmaBuf::udmabuf(size)),
        // The kernel looks at its pool of them by itself.
        MemoryKind::Huge => DmaBuf::udmabuf_huge(size),
        MemoryKind::System => there_is(args.memory).and_then(|()| DmaBuf::system_heap(size)),
    };
    made.map_err(|err| failed(args.kind, args.memory, &err))
}

/// One of so many bytes, which are pages of a memfd.
pub fn udmabuf(bytes: u64) -> Result<DmaBuf, String> {
    let whole = usize::try_from(bytes)
        .ok()
        .and_then(|bytes| bytes.max(1).checked_next_multiple_of(PAGE))
        .ok_or_else(|| format!("there is no dma-buf of {bytes} bytes"))?;
    let mib = whole.div_ceil(MIB);
    there_is(mib)
        .and_then(|()| DmaBuf::udmabuf(whole))
        .map_err(|err| failed(MemoryKind::Udmabuf, mib, &err))
}

fn failed(kind: MemoryKind, mib: usize, err: &io::Error) -> String {
    let limit = fs::read_to_string(LIMIT).unwrap_or_default();
    let hint = hint(kind, mib, err, limit.trim().parse().ok());
    format!("a dma-buf of {mib} MiB: {err}{hint}")
}

/// The first bytes of a BAR.
fn of_device(bar: &Bar, size: usize) -> Result<DmaBuf, String> {
    let all = Extent {
        offset: 0,
        len: size as u64,
    };
    let made = Device::open(&bar.address).and_then(|device| {
        let has = device.region(bar.number)?.size;
        match all.len > has {
            true => Err(io::Error::other(format!("it has {} MiB", has / MIB as u64))),
            false => DmaBuf::vfio(&device, bar.number, all),
        }
    });
    made.map_err(|err| {
        let hint = hint_for_device(&err);
        format!("{} MiB from {bar}: {err}{hint}", size / MIB)
    })
}

/// What can be done about an error of VFIO's.
fn hint_for_device(err: &io::Error) -> String {
    let text = match (err.kind(), err.raw_os_error().map(Errno::from_raw)) {
        (io::ErrorKind::NotFound, _) => {
            "vfio-pci has to be the driver of the device: see the user guide"
        }
        (_, Some(Errno::EPERM)) => {
            "other devices of its IOMMU group have drivers, or the machine does not remap interrupts \
             (allow_unsafe_interrupts of iommufd and vfio_iommu_type1)"
        }
        (io::ErrorKind::PermissionDenied, _) => {
            "it is for root; without an IOMMU, vfio wants enable_unsafe_noiommu_mode"
        }
        (_, Some(Errno::EBUSY)) => "somebody has the device, or its IOMMU group",
        (_, Some(Errno::ENOTTY)) => "the kernel needs CONFIG_VFIO_PCI_DMABUF",
        _ => return String::new(),
    };
    format!("\nHint: {text}.")
}

/// Fails if the machine has less: to take the last of it would have the kernel kill processes.
fn there_is(mib: usize) -> io::Result<()> {
    let Some(available) = available(&fs::read_to_string("/proc/meminfo")?) else {
        return Ok(());
    };
    match mib > available {
        true => Err(io::Error::other(format!(
            "only {available} MiB of memory are available"
        ))),
        false => Ok(()),
    }
}

/// What /proc/meminfo says is available, in MiB.
fn available(meminfo: &str) -> Option<usize> {
    let (_, rest) = meminfo.split_once("MemAvailable:")?;
    let kib: usize = rest.split_whitespace().next()?.parse().ok()?;
    Some(kib >> 10)
}

/// What can be done about an error. `limit` is that of a udmabuf, in MiB.
fn hint(kind: MemoryKind, mib: usize, err: &io::Error, limit: Option<usize>) -> String {
    let udmabuf = !matches!(kind, MemoryKind::System);
    let text = match err.kind() {
        io::ErrorKind::NotFound if udmabuf => {
            "the kernel needs CONFIG_UDMABUF; as a module, it is there after modprobe udmabuf"
                .into()
        }
        io::ErrorKind::NotFound => "the kernel needs CONFIG_DMABUF_HEAPS_SYSTEM".into(),
        io::ErrorKind::PermissionDenied if udmabuf => {
            "it is for root, and with Debian for the group kvm".into()
        }
        io::ErrorKind::InvalidInput => match (kind, limit) {
            (MemoryKind::Udmabuf | MemoryKind::Huge, Some(limit)) if mib > limit => {
                format!("its limit is {limit} MiB, in {LIMIT}")
            }
            (MemoryKind::Huge, _) => "huge pages have 2 MiB: --memory has to be even".into(),
            _ => return String::new(),
        },
        io::ErrorKind::OutOfMemory if matches!(kind, MemoryKind::Huge) => {
            "there are as many huge pages as vm.nr_hugepages says".into()
        }
        _ => return String::new(),
    };
    format!("\nHint: {text}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use io::ErrorKind::InvalidInput;
    use io::ErrorKind::NotFound;
    use io::ErrorKind::OutOfMemory;
    use io::ErrorKind::PermissionDenied;

    #[test]
    fn a_hint_is_about_what_happened() {
        use MemoryKind::Huge;
        use MemoryKind::System;
        use MemoryKind::Udmabuf;
        for (kind, mib, error, limit, expected) in [
            (Udmabuf, 65, InvalidInput, Some(64), "limit is 64"),
            (Huge, 66, InvalidInput, Some(64), "limit is 64"),
            (Udmabuf, 64, InvalidInput, Some(64), ""),
            (Udmabuf, 65, InvalidInput, None, ""),
            (System, 65, InvalidInput, Some(64), ""),
            (Huge, 3, InvalidInput, Some(64), "even"),
            (Udmabuf, 1, NotFound, None, "CONFIG_UDMABUF"),
            (System, 1, NotFound, None, "HEAPS"),
            (Udmabuf, 65, PermissionDenied, Some(64), "kvm"),
            (Udmabuf, 65, OutOfMemory, Some(64), ""),
            (Huge, 2, OutOfMemory, Some(64), "nr_hugepages"),
        ] {
            let said = hint(kind, mib, &error.into(), limit);
            assert!(said.contains(expected), "{expected}: {said}");
            assert_eq!(said.is_empty(), expected.is_empty(), "{said}");
        }
    }

    #[test]
    fn a_hint_about_a_device() {
        let errno = |errno: Errno| io::Error::from(errno);
        for (err, expected) in [
            (NotFound.into(), "driver"),
            (PermissionDenied.into(), "enable_unsafe_noiommu_mode"),
            (errno(Errno::EBUSY), "group"),
            (errno(Errno::ENOTTY), "CONFIG_VFIO_PCI_DMABUF"),
            (errno(Errno::EINVAL), ""),
        ] {
            let said = hint_for_device(&err);
            assert!(said.contains(expected), "{expected}: {said}");
            assert_eq!(said.is_empty(), expected.is_empty(), "{said}");
        }
    }

    #[test]
    fn no_more_than_there_is() {
        let text = "MemTotal:  8000000 kB\nMemAvailable:    2097152 kB\nBuffers: 1 kB\n";
        assert_eq!(available(text), Some(2048));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        there_is(1).unwrap();
        there_is(usize::MAX >> 20).unwrap_err();
        for bytes in [u64::MAX, u64::MAX >> 1] {
            let said = udmabuf(bytes).map(drop).unwrap_err();
            let none = bytes == u64::MAX;
            let expected = if none { "no dma-buf" } else { "are available" };
            assert!(said.contains(expected), "{said}");
        }
    }
}
