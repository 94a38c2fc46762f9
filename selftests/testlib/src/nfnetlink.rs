// SPDX-License-Identifier: GPL-2.0

//! Messages to netfilter.

use std::io;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

const NETLINK_NETFILTER: i32 = 12;
const NLMSG_ERROR: u16 = 2;
/// Bytes of a `struct nlmsghdr`, and of the `struct nfgenmsg` behind it.
const NETLINK: usize = 16;
pub(crate) const HEADERS: usize = NETLINK + 4;

/// Of a message: it is a request.
pub(crate) const NLM_F_REQUEST: u16 = 1;
/// Of a message: it is to be answered.
pub(crate) const NLM_F_ACK: u16 = 4;

/// A message with these attributes, about a family of addresses.
pub(crate) fn message(kind: u16, flags: u16, family: u8, resource: u16, attrs: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((HEADERS + attrs.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port.
    bytes.extend([0; 8]);
    // The family, the version, and what the message is about.
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attrs);
    bytes
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

/// A socket of netfilter.
#[derive(Debug)]
pub(crate) struct Nfnetlink(OwnedFd);

impl Nfnetlink {
    /// Opens one in the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: Takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                NETLINK_NETFILTER,
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
        let bytes = answer[..len].get(NETLINK..NETLINK + 4);
        let number = bytes.and_then(|bytes| bytes.try_into().ok());
        match number.map(i32::from_ne_bytes) {
            Some(0) if kind_of(&answer) == NLMSG_ERROR => Ok(()),
            Some(errno @ ..0) => Err(io::Error::from_raw_os_error(-errno)),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}
