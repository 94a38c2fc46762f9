// SPDX-License-Identifier: GPL-2.0

//! A netkit device that has leased a queue, as containers have them.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::process::Command;

use devmem::netdev::Netdev;
use devmem::netdev::queue;
use devmem::netlink::Attrs;
use devmem::netns::Netns;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::connect;
use nix::sys::socket::socket;

use crate::ifctl::Interface;
use crate::netkit_link;
use crate::pair::End;
use crate::pair::path_of;
use crate::report::diag;

const NAME: &str = "nktest";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// There is nobody who has it.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

const NETDEV_CMD_QUEUE_CREATE: u8 = 16;
const NETDEV_A_QUEUE_LEASE: u16 = 8;
const NETDEV_A_LEASE_IFINDEX: u16 = 1;
const NETDEV_A_LEASE_QUEUE: u16 = 2;

/// The device, in the namespace of the physical one. It has no peer, and an address.
#[derive(Debug)]
pub struct Netkit<'a> {
    /// Its number.
    pub ifindex: u32,
    physical: &'a End,
}

impl<'a> Netkit<'a> {
    /// Makes one that leases a receive queue.
    pub fn new(physical: &'a End, rxq: u32) -> io::Result<Self> {
        let ifindex = physical.ns.run(make)?;
        let this = Self { ifindex, physical };
        this.physical.ns.run(|| {
            let interface = Interface::new(NAME)?;
            interface.set_ipv4(ADDRESS)?;
            interface.set_up(true)?;
            lease(physical, rxq, ifindex)
        })?;
        Ok(this)
    }

    /// A TCP socket whose connection leaves by the device, in the namespace of the calling thread. Nobody
    /// answers, and it does not wait for that: what may be sent otherwise gets `EAGAIN`.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let [a, b, c, d] = NEIGHBOUR.octets();
        match connect(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 5001)) {
            Err(Errno::EINPROGRESS) => Ok(fd),
            Err(err) => Err(err.into()),
            Ok(()) => Err(io::Error::other("somebody answers")),
        }
    }
}

impl Netkit<'_> {
    /// What its number is in the namespace of the calling thread, if it was moved there.
    pub fn find(&self) -> io::Result<u32> {
        Ok(if_nametoindex(NAME)?)
    }

    /// Does something while the device is in another namespace. Afterwards it is here again.
    pub fn lend<T>(&self, there: &Netns, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let here = &self.physical.ns;
        move_between(here, there)?;
        let result = f();
        move_between(there, here)?;
        result
    }
}

fn move_between(from: &Netns, to: &Netns) -> io::Result<()> {
    let to = path_of(to);
    let status = from.run(|| {
        let mut ip = Command::new("ip");
        ip.args(["link", "set", "dev", NAME, "netns", &to]).status()
    })?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("moving {NAME}: {status}"))),
    }
}

impl Drop for Netkit<'_> {
    fn drop(&mut self) {
        if let Err(err) = self.physical.ip(&format!("link del {NAME}")) {
            diag(format_args!("deleting {NAME}: {err}"));
        }
    }
}

impl End {
    /// Makes a netkit device which leases a receive queue of this one, and tells its number. It goes with
    /// this one.
    pub fn lease(&self, rxq: u32) -> io::Result<u32> {
        self.ns.run(|| {
            let ifindex = make()?;
            lease(self, rxq, ifindex)?;
            Ok(ifindex)
        })
    }
}

fn lease(physical: &End, rxq: u32, ifindex: u32) -> io::Result<()> {
    let leased = Attrs::new()
        .u32(queue::ID, rxq)
        .u32(queue::TYPE, queue::TYPE_RX);
    let lease = Attrs::new()
        .u32(NETDEV_A_LEASE_IFINDEX, physical.ifindex)
        .nested(NETDEV_A_LEASE_QUEUE, &leased);
    let attrs = Attrs::new()
        .u32(queue::IFINDEX, ifindex)
        .u32(queue::TYPE, queue::TYPE_RX)
        .nested(NETDEV_A_QUEUE_LEASE, &lease);
    Netdev::open()?.request(NETDEV_CMD_QUEUE_CREATE, &attrs)?;
    Ok(())
}

/// Makes the device, and tells its number.
fn make() -> io::Result<u32> {
    netkit_link::make_single(NAME, 2)?;
    Ok(if_nametoindex(NAME)?)
}
