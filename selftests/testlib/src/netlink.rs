// SPDX-License-Identifier: GPL-2.0

//! Netlink: of devices, of netfilter and of IPsec, and sockets of any kind.

use std::io;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

/// Devices, addresses and routes.
pub(crate) const ROUTE: i32 = 0;
/// Netfilter.
pub(crate) const NETFILTER: i32 = 12;
/// IPsec.
pub(crate) const XFRM: i32 = 6;

const NLMSG_ERROR: u16 = 2;
/// Bytes of a `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

/// Of a message: it is a request.
pub(crate) const REQUEST: u16 = 1;
/// Of a message: it is to be answered.
pub(crate) const ACK: u16 = 4;
/// Of a message: what it is about must not be there yet.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// Of a message: what it is about is to be made.
pub(crate) const CREATE: u16 = 0x400;
/// Of a message: what is made belongs behind all others.
pub(crate) const APPEND: u16 = 0x800;

/// A message: a structure of the protocol's own, and attributes.
pub(crate) fn message(kind: u16, flags: u16, head: &[u8], attrs: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((HEADER + head.len() + attrs.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port.
    bytes.extend([0; 8]);
    bytes.extend(head);
    bytes.extend(attrs);
    bytes
}

/// What messages to netfilter begin with, `struct nfgenmsg`: the family, and what the message is about.
pub(crate) fn netfilter(family: i32, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family as u8, 0, high, low]
}

/// An attribute.
pub(crate) fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut bytes = Vec::new();
    bytes.extend((len as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

/// The type of a message.
pub(crate) fn kind_of(message: &[u8]) -> u16 {
    u16::from_ne_bytes([message[4], message[5]])
}

/// A netlink socket.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    /// Opens one of a protocol in the calling thread's namespace.
    pub(crate) fn open(protocol: i32) -> io::Result<Self> {
        // SAFETY: Takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                protocol,
            )
        };
        match fd {
            // SAFETY: The kernel just made this file descriptor for us.
            0.. => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends messages.
    pub(crate) fn send(&self, messages: &[u8]) -> io::Result<()> {
        // SAFETY: `messages` is readable for its length.
        let sent = unsafe {
            libc::send(
                self.0.as_raw_fd(),
                messages.as_ptr().cast(),
                messages.len(),
                0,
            )
        };
        match sent {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Receives a message.
    pub(crate) fn recv(&self, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
        // SAFETY: `buffer` is writable for its length.
        let len = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                flags,
            )
        };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Sends messages, one of which is to be answered, and waits for the answer.
    pub(crate) fn request(&self, messages: &[u8]) -> io::Result<()> {
        self.send(messages)?;
        let mut answer = [0; 1024];
        let len = self.recv(&mut answer, 0)?;
        let bytes = answer[..len].get(HEADER..HEADER + 4);
        let number = bytes.and_then(|bytes| bytes.try_into().ok());
        match number.map(i32::from_ne_bytes) {
            Some(0) if kind_of(&answer) == NLMSG_ERROR => Ok(()),
            Some(errno @ ..0) => Err(io::Error::from_raw_os_error(-errno)),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}
