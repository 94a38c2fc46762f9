// SPDX-License-Identifier: GPL-2.0

//! A netkit device that has leased a queue, as containers have them; and pairs that have leased none.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
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
use crate::netlink;
use crate::pair::End;
use crate::pair::path_of;
use crate::report::diag;

const NAME: &str = "nktest";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// There is nobody who has it.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

const RTM_NEWLINK: u16 = 16;
const NEW: u16 = netlink::REQUEST | netlink::ACK | netlink::CREATE | netlink::EXCLUSIVE;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_NETKIT_PEER_INFO: u16 = 1;
const IFLA_NETKIT_PAIRING: u16 = 10;
const NETKIT_DEVICE_SINGLE: u32 = 1;

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

/// Makes a pair of devices that lead from one namespace to another, by their names there.
pub(crate) fn make_pair(one: (&Netns, &str), other: (&Netns, &str)) -> io::Result<()> {
    const IFINFOMSG: [u8; 16] = [0; 16];
    let at_other = Attrs::new()
        .string(IFLA_IFNAME, other.1)
        .u32(IFLA_NET_NS_FD, other.0.as_fd().as_raw_fd() as u32);
    let peer = [&IFINFOMSG, at_other.as_bytes()].concat();
    let data = Attrs::new().bytes(IFLA_NETKIT_PEER_INFO, &peer);
    let info = Attrs::new()
        .string(IFLA_INFO_KIND, "netkit")
        .nested(IFLA_INFO_DATA, &data);
    let attrs = Attrs::new()
        .string(IFLA_IFNAME, one.1)
        .nested(IFLA_LINKINFO, &info);

    let request = netlink::message(RTM_NEWLINK, NEW, &IFINFOMSG, attrs.as_bytes());
    one.0
        .run(|| netlink::Socket::open(netlink::ROUTE)?.request(&request))?;
    Ok(())
}

/// Makes the device, and tells its number.
///
/// The program `ip` may be too old to know of such devices.
fn make() -> io::Result<u32> {
    const IFINFOMSG: [u8; 16] = [0; 16];
    let data = Attrs::new().u32(IFLA_NETKIT_PAIRING, NETKIT_DEVICE_SINGLE);
    let info = Attrs::new()
        .string(IFLA_INFO_KIND, "netkit")
        .nested(IFLA_INFO_DATA, &data);
    let attrs = Attrs::new()
        .string(IFLA_IFNAME, NAME)
        .u32(IFLA_NUM_RX_QUEUES, 2)
        .nested(IFLA_LINKINFO, &info);

    let request = netlink::message(RTM_NEWLINK, NEW, &IFINFOMSG, attrs.as_bytes());
    netlink::Socket::open(netlink::ROUTE)?.request(&request)?;
    Ok(if_nametoindex(NAME)?)
}
