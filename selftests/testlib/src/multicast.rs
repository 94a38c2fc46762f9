// SPDX-License-Identifier: GPL-2.0

//! What generic netlink tells whoever listens.

use std::io;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use devmem::netlink::Attrs;
use devmem::netlink::GenericSocket;
use devmem::netlink::attributes;
use nix::sys::socket::NetlinkAddr;

use crate::netlink;
use crate::netlink::Socket;
use crate::sockopt;

/// One who listens to a group.
#[derive(Debug)]
pub struct Group(Socket);

impl Group {
    /// Listens to this group of a family, in the calling thread's namespace.
    pub fn join(family: &str, group: &str) -> io::Result<Self> {
        const NETLINK_ADD_MEMBERSHIP: i32 = 1;
        let number = number(family, group)?;
        let socket = Socket::open(libc::NETLINK_GENERIC)?;
        // Without a number of its own it passes for the kernel, which does not talk to itself.
        nix::sys::socket::bind(socket.as_fd().as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        sockopt::set(&socket, libc::SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, number)?;
        Ok(Self(socket))
    }

    /// The next message that is there, if any: its attributes.
    pub fn next(&self) -> io::Result<Option<Vec<u8>>> {
        /// What comes before them.
        const HEADERS: usize = netlink::HEADER + 4;
        let mut buffer = vec![0; 1 << 16];
        match self.0.recv(&mut buffer, libc::MSG_DONTWAIT) {
            Ok(len) => Ok(buffer[..len].get(HEADERS..).map(<[u8]>::to_vec)),
            Err(err) if err.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(err) => Err(err),
        }
    }
}

/// The number of a group.
fn number(family: &str, group: &str) -> io::Result<u32> {
    const CONTROL: u16 = 16;
    const GET_FAMILY: u8 = 3;
    const FAMILY_NAME: u16 = 2;
    const GROUPS: u16 = 7;
    const GROUP_NAME: u16 = 1;
    const GROUP_ID: u16 = 2;
    let attrs = Attrs::new().string(FAMILY_NAME, family);
    let answer = GenericSocket::open()?.request(CONTROL, GET_FAMILY, &attrs)?;
    let value = |attrs, wanted| {
        attributes(attrs)
            .find(|&(kind, _)| kind == wanted)
            .map(|(_, value)| value)
    };
    answer
        .iter()
        .filter_map(|attrs| value(attrs, GROUPS))
        .flat_map(attributes)
        .find(|(_, of)| {
            value(of, GROUP_NAME).is_some_and(|name| name.starts_with(group.as_bytes()))
        })
        .and_then(|(_, of)| value(of, GROUP_ID)?.try_into().ok())
        .map(u32::from_ne_bytes)
        .ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("no group {family}/{group}")))
}
