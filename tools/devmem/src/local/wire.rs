// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the ends tell each other: records of one length, and the descriptors that come with some.

use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::num::NonZero;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use rustix::cmsg_space;
use rustix::io::retry_on_intr;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::ReturnFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::recvmsg;
use rustix::net::sendmsg;

/// Bytes of a record. As few are sent as a whole, or not at all.
pub(crate) const LEN: usize = 32;
/// What each begins with. The last byte is the version.
const MAGIC: [u8; 4] = *b"DvL\x01";

/// What an end tells the other one. Numbers are in the machine's own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The number stands for the dma-buf that comes with this.
    Memory { id: NonZero<u32>, size: u64 },
    /// A part of a dma-buf is lent.
    Part {
        number: u32,
        id: u32,
        offset: u64,
        len: u32,
    },
    /// Parts go back, from this number on.
    Back { first: u32, count: u32 },
    /// There are no more parts.
    End,
}

/// An error about what a peer said.
pub(crate) fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Record {
    pub(crate) fn encode(self) -> [u8; LEN] {
        let (kind, number, id, offset, len) = match self {
            Self::Memory { id, size } => (1_u32, 0, id.get(), 0, size),
            Self::Part {
                number,
                id,
                offset,
                len,
            } => (2, number, id, offset, u64::from(len)),
            Self::Back { first, count } => (3, first, 0, 0, count.into()),
            Self::End => (4, 0, 0, 0, 0),
        };
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&kind.to_ne_bytes());
        bytes[8..12].copy_from_slice(&number.to_ne_bytes());
        bytes[12..16].copy_from_slice(&id.to_ne_bytes());
        bytes[16..24].copy_from_slice(&offset.to_ne_bytes());
        bytes[24..].copy_from_slice(&len.to_ne_bytes());
        bytes
    }

    /// Fails unless it is what [`encode`](Self::encode) makes.
    pub(crate) fn decode(bytes: &[u8; LEN]) -> io::Result<Self> {
        let [magic @ .., version] = MAGIC;
        if bytes[..3] != magic {
            return Err(wrong("the peer speaks of something else"));
        }
        if bytes[3] != version {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the peer has version {}, not {version}", bytes[3]),
            ));
        }
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| {
            let mut long = [0; 8];
            long.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(long)
        };
        let (number, id, offset, len) = (word(8), word(12), long(16), long(24));
        let short = u32::try_from(len).ok();
        let record = match (word(4), NonZero::new(id), short) {
            (1, Some(id), _) => Some(Self::Memory { id, size: len }),
            (2, _, Some(len)) => Some(Self::Part {
                number,
                id,
                offset,
                len,
            }),
            (3, _, Some(count)) => Some(Self::Back {
                first: number,
                count,
            }),
            (4, ..) => Some(Self::End),
            _ => None,
        };
        record
            .filter(|record| record.encode() == *bytes)
            .ok_or_else(|| wrong("a record that is none"))
    }
}

/// Sends bytes as far as there is room for them, and a descriptor with the first of them.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags))?;
    Ok(sent)
}

/// Receives bytes, and what descriptors come with them; 0 bytes are the end.
///
/// Fails if there are more descriptors than one message of an honest peer has. All that came are closed then.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    to: &mut [u8],
    waits: bool,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = match waits {
        true => RecvFlags::CMSG_CLOEXEC,
        false => RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    };
    let received =
        retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(to)], &mut control, flags))?;
    let descriptors: Vec<_> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    // Those for which there was no room were never this process's.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(wrong("not all that came with a message could be taken"));
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(wrong("a message that is longer than a record"));
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            any::<(NonZero<u32>, u64)>().prop_map(|(id, size)| Record::Memory { id, size }),
            any::<(u32, u32, u64, u32)>().prop_map(|(number, id, offset, len)| Record::Part {
                number,
                id,
                offset,
                len,
            }),
            any::<(u32, u32)>().prop_map(|(first, count)| Record::Back { first, count }),
            Just(Record::End),
        ]
    }

    #[test]
    fn another_version_is_told() {
        let mut bytes = Record::End.encode();
        bytes[3] += 1;
        let err = Record::decode(&bytes).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::Unsupported);
        bytes[0] = 0;
        let err = Record::decode(&bytes).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in record()) {
            prop_assert_eq!(Record::decode(&record.encode()).unwrap(), record);
        }

        /// There is one way to say something.
        #[test]
        fn what_is_read_is_what_would_be_written(
            record in record(), at in 4..LEN, byte: u8, any: [u8; LEN]
        ) {
            let mut bytes = record.encode();
            bytes[at] = byte;
            for bytes in [bytes, any] {
                if let Ok(read) = Record::decode(&bytes) {
                    prop_assert_eq!(read.encode(), bytes);
                }
            }
        }
    }
}
