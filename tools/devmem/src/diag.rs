// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Which TCP sockets hold device memory, and how much of which binding.
//!
//! What is in the hands of a socket's user, by tokens, and what waits in its receive queue nobody else gets. [`holders`]
//! tells of it to who has CAP_NET_ADMIN. It takes a kernel with the series of this project:
//!
//! ```no_run
//! # fn main() -> Result<(), devmem::Error> {
//! for holder in devmem::diag::holders()? {
//!     for held in &holder.held {
//!         println!("{} has {} tokens of {:?}", holder.remote, held.tokens, held.id);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netdev::number;
use crate::netlink::Attrs;
use crate::netlink::Channel;
use crate::netlink::Error;
use crate::netlink::attributes;

const SOCK_DIAG_BY_FAMILY: u16 = 20;

const INET_DIAG_REQ_DEVMEM: u16 = 4;
const INET_DIAG_DEVMEM: u16 = 23;
const DEVMEM_BINDING: u16 = 1;
const DEVMEM_PARTIAL: u16 = 2;
const BINDING_ID: u16 = 1;
const BINDING_TOKENS: u16 = 2;
const BINDING_BYTES: u16 = 3;
const BINDING_QUEUED: u16 = 4;

/// `struct inet_diag_sockid`, and where in it there is what.
const SOCKID: usize = 48;
const REMOTE_PORT: usize = 2;
const LOCAL_ADDR: usize = 4;
const REMOTE_ADDR: usize = 20;

/// `struct inet_diag_msg`: the family and more, this, and five numbers.
const MESSAGE: usize = 4 + SOCKID + 5 * 4;
const UNREAD: usize = 4 + SOCKID + 4;
const UID: usize = UNREAD + 8;
const INODE: usize = UID + 4;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// All states in which a socket can hold something: those of connections that were established, and that of sockets
/// that are closed but have their port.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 13;

/// What a socket holds of one binding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// The binding, or `None` for all further ones together: no more than eight are told one by one.
    pub id: Option<u32>,
    /// Tokens in the hands of its user.
    pub tokens: u32,
    /// Bytes of the buffers that these tokens stand for. One for which there are several is counted for each.
    pub bytes: u64,
    /// Bytes in device memory that are in the receive queue, in order or not.
    pub queued: u64,
}

impl Held {
    fn parse(attrs: &[u8]) -> Option<Self> {
        let small = |kind| number(attrs, kind).map(u32::try_from)?.ok();
        Some(Self {
            id: small(BINDING_ID),
            tokens: small(BINDING_TOKENS)?,
            bytes: number(attrs, BINDING_BYTES)?,
            queued: number(attrs, BINDING_QUEUED)?,
        })
    }
}

/// A socket that holds device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Its own address.
    pub local: SocketAddr,
    /// That of its peer; port 0 if it has none any more.
    pub remote: SocketAddr,
    /// Bytes that its user has not read, wherever they are.
    pub unread: u32,
    /// The user that made it, as who asks calls that one.
    pub uid: u32,
    /// The inode, by which it is found in `/proc`: `socket:[...]`. 0 if nobody has it any more.
    pub inode: u32,
    /// What it holds, by binding.
    pub held: Vec<Held>,
    /// There is more in its receive queue than was counted: the kernel looks at so many packets only.
    pub partial: bool,
}

impl Holder {
    /// Reads a message of the kernel's: `None` if the socket holds nothing.
    fn parse(message: &[u8]) -> Result<Option<Self>, Error> {
        let attrs = message.get(MESSAGE..).unwrap_or(&[]);
        let Some((_, devmem)) = attributes(attrs).find(|(kind, _)| *kind == INET_DIAG_DEVMEM)
        else {
            return Ok(None);
        };
        let bindings = attributes(devmem).filter(|(kind, _)| *kind == DEVMEM_BINDING);

        let holder = || {
            let family = *message.first()?;
            let id = message.get(4..4 + SOCKID)?;
            Some(Self {
                local: address(family, id, LOCAL_ADDR, 0)?,
                remote: address(family, id, REMOTE_ADDR, REMOTE_PORT)?,
                unread: u32_at(message, UNREAD)?,
                uid: u32_at(message, UID)?,
                inode: u32_at(message, INODE)?,
                held: bindings
                    .map(|(_, nest)| Held::parse(nest))
                    .collect::<Option<_>>()?,
                partial: attributes(devmem).any(|(kind, _)| kind == DEVMEM_PARTIAL),
            })
        };
        match holder() {
            Some(holder) => Ok(Some(holder)),
            None => Err(Error::Answer("a malformed message about a socket")),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// IPv4 by an IPv6 socket is IPv4.
fn address(family: u8, id: &[u8], addr: usize, port: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*id.get(port..)?.first_chunk()?);
    let addr = id.get(addr..)?;
    let addr = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::from(*addr.first_chunk::<4>()?)),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(*addr.first_chunk::<16>()?)),
        _ => return None,
    };
    Some(SocketAddr::new(addr.to_canonical(), port))
}

/// `struct inet_diag_req_v2`, and the question.
fn request(family: u8) -> Vec<u8> {
    let mut body = vec![family, IPPROTO_TCP, 0, 0];
    body.extend(STATES.to_ne_bytes());
    body.extend([0; SOCKID]);
    body.extend(Attrs::new().flag(INET_DIAG_REQ_DEVMEM).as_bytes());
    body
}

/// The TCP sockets of the thread's network namespace that hold device memory.
///
/// Without CAP_NET_ADMIN there, and by kernels that do not tell, the list is empty. A socket whose connection the peer
/// has reset is not found, unless it was bound to its port.
///
/// # Errors
///
/// [`Error::Refused`] with `ENOENT` if the kernel was built without `CONFIG_INET_TCP_DIAG`; [`Error::Io`]: those of
/// `socket()`, `send()` and `recv()`; [`Error::Answer`] if the answer is malformed.
pub fn holders() -> Result<Vec<Holder>, Error> {
    let mut channel = Channel::open(NETLINK_SOCK_DIAG)?;
    let mut holders = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for message in channel.dump(SOCK_DIAG_BY_FAMILY, &request(family))? {
            holders.extend(Holder::parse(&message)?);
        }
    }
    Ok(holders)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn binding(id: Option<u32>, tokens: u32, bytes: u64, queued: u32) -> Attrs<'static> {
        let attrs = match id {
            Some(id) => Attrs::new().u32(BINDING_ID, id),
            None => Attrs::new(),
        };
        attrs
            .u32(BINDING_TOKENS, tokens)
            .bytes(BINDING_BYTES, &bytes.to_ne_bytes())
            .u32(BINDING_QUEUED, queued)
    }

    /// 192.0.2.1:5001 with 192.0.2.2:40000, as IPv4 or as IPv6 has it.
    fn message(family: u8, attrs: &Attrs<'_>) -> Vec<u8> {
        let addr = |host| match family {
            AF_INET => [&[192, 0, 2, host][..], &[0; 12]].concat(),
            _ => [&[0; 10][..], &[0xff, 0xff, 192, 0, 2, host]].concat(),
        };
        let mut message = vec![family, 1, 0, 0];
        message.extend(5001u16.to_be_bytes());
        message.extend(40000u16.to_be_bytes());
        message.extend(addr(1));
        message.extend(addr(2));
        message.extend([0; 12]);
        for number in [0u32, 77, 0, 1000, 4242] {
            message.extend(number.to_ne_bytes());
        }
        message.extend(attrs.as_bytes());
        message
    }

    #[test]
    fn all_of_a_holder() {
        let devmem = Attrs::new()
            .nested(DEVMEM_BINDING, &binding(Some(3), 2, 8192, 100))
            .nested(DEVMEM_BINDING, &binding(None, 1, 1 << 40, 0))
            .flag(DEVMEM_PARTIAL);
        let attrs = Attrs::new().u8(9, 0).nested(INET_DIAG_DEVMEM, &devmem);
        for family in [AF_INET, AF_INET6] {
            let holder = Holder::parse(&message(family, &attrs)).unwrap().unwrap();
            assert_eq!(
                holder,
                Holder {
                    local: "192.0.2.1:5001".parse().unwrap(),
                    remote: "192.0.2.2:40000".parse().unwrap(),
                    unread: 77,
                    uid: 1000,
                    inode: 4242,
                    held: vec![
                        Held {
                            id: Some(3),
                            tokens: 2,
                            bytes: 8192,
                            queued: 100,
                        },
                        Held {
                            id: None,
                            tokens: 1,
                            bytes: 1 << 40,
                            queued: 0,
                        },
                    ],
                    partial: true,
                }
            );
        }
    }

    #[test]
    fn who_holds_nothing_is_none() {
        let message = message(AF_INET, &Attrs::new().u8(9, 0));
        assert_eq!(Holder::parse(&message).unwrap(), None);
        assert_eq!(Holder::parse(&[]).unwrap(), None);
    }

    #[test]
    fn what_has_to_be_there() {
        let held = Attrs::new().u32(BINDING_ID, 3).u32(BINDING_TOKENS, 1);
        let devmem = Attrs::new().nested(DEVMEM_BINDING, &held);
        let attrs = Attrs::new().nested(INET_DIAG_DEVMEM, &devmem);
        let err = Holder::parse(&message(AF_INET, &attrs)).unwrap_err();
        assert!(matches!(err, Error::Answer(_)), "{err}");

        let attrs = Attrs::new().nested(INET_DIAG_DEVMEM, &Attrs::new());
        let err = Holder::parse(&message(77, &attrs)).unwrap_err();
        assert!(matches!(err, Error::Answer(_)), "{err}");
    }

    #[test]
    fn the_request_is_as_the_kernel_has_it() {
        let request = request(AF_INET6);
        assert_eq!(request.len(), 56 + 4);
        assert_eq!(request[..4], [10, 6, 0, 0]);
        assert_eq!(STATES & 1 << 10, 0, "those that listen");
    }

    proptest! {
        #[test]
        fn any_message_is_survived(bytes: Vec<u8>) {
            let _ = Holder::parse(&bytes);
            let mut long = message(AF_INET, &Attrs::new());
            long.extend(&bytes);
            let _ = Holder::parse(&long);
        }
    }
}
