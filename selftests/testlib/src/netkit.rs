// SPDX-License-Identifier: GPL-2.0

//! Virtual devices that lease a queue of another one: netkit.

use std::io;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use devmem::netdev::Netdev;
use devmem::netdev::queue;
use devmem::netlink::Attrs;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recv;
use nix::sys::socket::send;

use crate::pair::End;

const NETDEV_CMD_QUEUE_CREATE: u8 = 16;
const QUEUE_LEASE: u16 = 8;
const LEASE_IFINDEX: u16 = 1;
const LEASE_QUEUE: u16 = 2;

const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_NETKIT_PAIRING: u16 = 10;
const NETKIT_DEVICE_SINGLE: u32 = 1;

/// Bytes of a `struct nlmsghdr`, and of the `struct ifinfomsg` behind it.
const NETLINK: usize = 16;
const HEADERS: usize = NETLINK + 16;
const NAME: &str = "netkit0";

impl End {
    /// Makes a netkit device which leases a queue of this one, and tells its number. It goes with this one.
    pub fn lease(&self, queue: u32) -> io::Result<u32> {
        self.ns.run(|| {
            new_netkit()?;
            let ifindex = if_nametoindex(NAME)?;
            let leased = Attrs::new()
                .u32(queue::TYPE, queue::TYPE_RX)
                .u32(queue::ID, queue);
            let lease = Attrs::new()
                .u32(LEASE_IFINDEX, self.ifindex)
                .nested(LEASE_QUEUE, &leased);
            let request = Attrs::new()
                .u32(queue::IFINDEX, ifindex)
                .u32(queue::TYPE, queue::TYPE_RX)
                .nested(QUEUE_LEASE, &lease);
            Netdev::open()?.request(NETDEV_CMD_QUEUE_CREATE, &request)?;
            Ok(ifindex)
        })
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = (4 + value.len()) as u16;
    let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Makes a device without a peer, with room for a queue beside its own. `ip` is too old for that.
fn new_netkit() -> io::Result<()> {
    let pairing = attribute(IFLA_NETKIT_PAIRING, &NETKIT_DEVICE_SINGLE.to_ne_bytes());
    let info = [
        attribute(IFLA_INFO_KIND, b"netkit"),
        attribute(IFLA_INFO_DATA, &pairing),
    ];
    let attributes = [
        attribute(IFLA_IFNAME, NAME.as_bytes()),
        attribute(IFLA_NUM_RX_QUEUES, &2_u32.to_ne_bytes()),
        attribute(IFLA_LINKINFO, &info.concat()),
    ];
    let attributes = attributes.concat();
    let mut message = Vec::new();
    message.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).to_ne_bytes());
    // Sequence number and port, then nothing that the kernel does not choose.
    message.resize(HEADERS, 0);
    message.extend(attributes);

    // SAFETY: Takes no pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The kernel just made this file descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let bytes = answer[..len].get(NETLINK..NETLINK + 4);
    match bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
    {
        Some(0) => Ok(()),
        Some(errno @ ..0) => Err(io::Error::from_raw_os_error(-errno)),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}
