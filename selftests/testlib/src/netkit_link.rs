// SPDX-License-Identifier: GPL-2.0

//! Requests for netkit devices: the program `ip` may be too old to know of them.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use devmem::netlink::Attrs;
use devmem::netns::Netns;

use crate::netlink;

const RTM_NEWLINK: u16 = 16;
const NEW: u16 = netlink::REQUEST | netlink::ACK | netlink::CREATE | netlink::EXCLUSIVE;
const IFINFOMSG: [u8; 16] = [0; 16];
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_NETKIT_PEER_INFO: u16 = 1;
const IFLA_NETKIT_PAIRING: u16 = 10;
const NETKIT_DEVICE_SINGLE: u32 = 1;

/// Makes a pair of devices that lead from one namespace to another, by their names there.
pub(crate) fn make_pair(one: (&Netns, &str), other: (&Netns, &str)) -> io::Result<()> {
    let at_other = Attrs::new()
        .string(IFLA_IFNAME, other.1)
        .u32(IFLA_NET_NS_FD, other.0.as_fd().as_raw_fd() as u32);
    let peer = [&IFINFOMSG, at_other.as_bytes()].concat();
    let data = Attrs::new().bytes(IFLA_NETKIT_PEER_INFO, &peer);

    one.0
        .run(|| make(Attrs::new().string(IFLA_IFNAME, one.1), &data))
}

/// Makes a device without a peer, with so many receive queues.
pub(crate) fn make_single(name: &str, rxqs: u32) -> io::Result<()> {
    let data = Attrs::new().u32(IFLA_NETKIT_PAIRING, NETKIT_DEVICE_SINGLE);

    make(
        Attrs::new()
            .string(IFLA_IFNAME, name)
            .u32(IFLA_NUM_RX_QUEUES, rxqs),
        &data,
    )
}

fn make(attrs: Attrs, data: &Attrs) -> io::Result<()> {
    let info = Attrs::new()
        .string(IFLA_INFO_KIND, "netkit")
        .nested(IFLA_INFO_DATA, data);
    let attrs = attrs.nested(IFLA_LINKINFO, &info);
    let request = netlink::message(RTM_NEWLINK, NEW, &IFINFOMSG, attrs.as_bytes());

    netlink::Socket::open(netlink::ROUTE)?
        .request(&request)
        .map(drop)
}
