// SPDX-License-Identifier: GPL-2.0

//! What happens to a NIC that was given, besides packets.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use devmem::ethtool::Ethtool;
use devmem::ethtool::Rings;
use devmem::netns::Netns;

use crate::hardware;
use crate::hardware::Ip;
use crate::hardware::Nic;
use crate::ifctl::Interface;
use crate::odd;
use crate::pair::End;
use crate::pair::Pair;
use crate::report::diag;
use crate::report::reason_to_skip;
use crate::wait;

/// How long it may take until a NIC that was made anew is there.
const THERE: Duration = Duration::from_secs(20);

/// What the module `devmem_test` has happen to a NIC on PCI.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Event {
    /// It is suspended.
    Suspend,
    /// It is resumed.
    Resume,
    /// Its driver is told of an error, and recovers.
    Error,
}

/// `struct devmem_test_pci`.
#[repr(C)]
struct Request {
    ifindex: u32,
    what: u32,
}

mod ioctls {
    use super::Request;

    nix::ioctl_write_ptr!(pci, b'D', 0x4b, Request);
}

/// A pair whose receiving end is a NIC of this driver; else a reason to skip.
pub fn driven_by(driver: &str) -> io::Result<Pair> {
    let nic = given()?;
    let link = format!("/sys/class/net/{}/device/driver", nic.ifname);
    match fs::read_link(link) {
        Ok(path) if path.ends_with(driver) => Pair::new(),
        _ => Err(reason_to_skip(format!(
            "this takes {driver}, and {} is another NIC",
            nic.ifname
        ))),
    }
}

fn given() -> io::Result<&'static Nic> {
    hardware::given()?.ok_or_else(|| reason_to_skip("this takes a NIC, and NETIF is not set"))
}

impl End {
    fn control<T: Send>(
        &self,
        f: impl FnOnce(&Interface) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        self.ns.run(|| f(&Interface::new(&self.ifname)?))
    }

    /// How many descriptors the receive and transmit rings have.
    pub fn ring_sizes(&self) -> io::Result<(u32, u32)> {
        self.control(|interface| interface.ring_sizes())
    }

    /// Has them have so many.
    pub fn set_ring_sizes(&self, rx: u32, tx: u32) -> io::Result<()> {
        self.control(|interface| interface.set_ring_sizes(rx, tx))
    }

    /// Has the NIC test itself. Tells whether it is well.
    pub fn test_itself(&self) -> io::Result<bool> {
        self.control(|interface| interface.test_itself())
    }

    /// Has this happen to a NIC on PCI.
    pub fn meets(&self, event: Event) -> io::Result<()> {
        let request = Request {
            ifindex: self.ifindex,
            what: event as u32,
        };
        let device = odd::device()?;
        self.ns.run(|| {
            // SAFETY: The argument of this ioctl, which only reads it.
            unsafe { ioctls::pci(device.as_raw_fd(), &request) }?;
            Ok(())
        })
    }

    /// Where sysfs has the device of the NIC. Its namespace has to be that of this process.
    pub fn on_pci(&self) -> io::Result<PathBuf> {
        fs::canonicalize(format!("/sys/class/net/{}/device", self.ifname))
    }

    /// Whether it can have virtual functions.
    pub fn has_vfs(&self) -> io::Result<bool> {
        self.on_pci()?.join("sriov_numvfs").try_exists()
    }

    /// Has the device have so many virtual functions.
    pub fn set_vfs(&self, count: u32) -> io::Result<()> {
        fs::write(self.on_pci()?.join("sriov_numvfs"), count.to_string())
    }
}

/// A driver without one of its devices.
#[derive(Debug)]
pub struct Unbound {
    device: PathBuf,
    driver: PathBuf,
    channels: u32,
    is_back: bool,
}

impl Unbound {
    /// Takes a device, which has so many queues, from its driver.
    pub fn new(device: PathBuf, channels: u32) -> io::Result<Self> {
        let driver = fs::canonicalize(device.join("driver"))?;
        fs::write(driver.join("unbind"), slot(&device)?)?;
        Ok(Self {
            device,
            driver,
            channels,
            is_back: false,
        })
    }

    /// Gives it back. The NIC that was given is made anew, and set up as that was, with headers split.
    pub fn bind(mut self) -> io::Result<()> {
        self.give_back()
    }

    fn give_back(&mut self) -> io::Result<()> {
        self.is_back = true;
        let nic = given()?;
        fs::write(self.driver.join("bind"), slot(&self.device)?)?;
        let ifname = &nic.ifname;
        // Where udev runs, it may give it another name meanwhile.
        wait::until("the NIC to have its name", THERE, || {
            let name = fs::read_dir(self.device.join("net"))?
                .next()
                .ok_or_else(|| io::Error::other("the driver makes no NIC"))??
                .file_name();
            Ok(name == ifname.as_str()
                || ip(&format!(
                    "link set dev {} name {ifname}",
                    name.to_string_lossy()
                ))
                .is_ok())
        })?;
        Interface::new(ifname)?.set_channels(self.channels)?;
        for (address, option) in [
            (format!("{}/24", nic.local(Ip::V4)?), ""),
            (format!("{}/64", nic.local(Ip::V6)?), " nodad"),
        ] {
            ip(&format!("addr add {address} dev {ifname}{option}"))?;
        }
        let ifindex = Netns::current()?.ifindex(ifname)?;
        Ethtool::open()?.set_rings(ifindex, Rings::default().for_devmem())?;
        Interface::new(ifname)?.set_up(true)
    }
}

/// A test that ends early is not to leave others without the NIC.
impl Drop for Unbound {
    fn drop(&mut self) {
        if self.is_back {
            return;
        }
        if let Err(err) = self.give_back() {
            diag(format_args!("giving the NIC back to its driver: {err}"));
        }
    }
}

fn slot(device: &Path) -> io::Result<&str> {
    device
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| io::Error::other("a device without a name"))
}

fn ip(args: &str) -> io::Result<()> {
    let status = Command::new("ip").args(args.split(' ')).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("ip {args}: {status}"))),
    }
}
