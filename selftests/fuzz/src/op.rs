// SPDX-License-Identifier: GPL-2.0

//! Operations: what a sequence is made of, and what a corpus file holds.
//!
//! They name things by small numbers, and one that names what is not there does nothing. So any part
//! of a sequence is a sequence, which is what shrinking needs.

use serde::Deserialize;
use serde::Serialize;

/// How many connections a sequence can have.
pub const FLOWS: u8 = 6;
/// How many owners of bindings there can be.
pub const OWNERS: u8 = 3;

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// bind-rx by the netlink socket of an owner.
    BindRx {
        /// The owner.
        owner: u8,
        /// The device.
        device: Device,
        /// Its queues.
        queues: Vec<u32>,
        /// What is bound.
        memory: Memory,
        /// The size of a buffer, if it is asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        page_size: Option<u32>,
    },
    /// bind-tx by the netlink socket of an owner.
    BindTx {
        /// The owner.
        owner: u8,
        /// The device.
        device: Device,
        /// What is bound.
        memory: Memory,
    },
    /// Closes an owner's netlink sockets.
    Unbind {
        /// The owner.
        owner: u8,
    },
    /// Connects.
    Connect {
        /// The connection to be.
        flow: u8,
        /// The IP version.
        ip: Ip,
        /// The queue that receives it.
        queue: u32,
    },
    /// Has another queue receive a connection.
    Steer {
        /// The connection.
        flow: u8,
        /// The queue.
        queue: u32,
    },
    /// The peer sends the next bytes of the stream.
    Send {
        /// The connection.
        flow: u8,
        /// How many bytes.
        bytes: u32,
    },
    /// The peer sends from a dma-buf.
    SendMemory {
        /// The connection.
        flow: u8,
        /// What the control message names.
        binding: BindingRef,
        /// The iovecs: offset and length.
        ranges: Vec<(u64, u64)>,
        /// Flags.
        flags: Vec<Flag>,
    },
    /// Reads the peer's error queue until every call that sent from a dma-buf is completed.
    Completions {
        /// The connection.
        flow: u8,
    },
    /// `recvmsg()`.
    Receive {
        /// The connection.
        flow: u8,
        /// Flags.
        flags: Vec<Flag>,
        /// The iovecs.
        data: Vec<Buffer>,
        /// The control buffer.
        control: Buffer,
    },
    /// `read()`.
    Read {
        /// The connection.
        flow: u8,
        /// The length of the buffer.
        bytes: u32,
    },
    /// `SO_DEVMEM_DONTNEED`.
    Return {
        /// The connection.
        flow: u8,
        /// What is returned.
        ranges: Vec<Range>,
    },
    /// `setsockopt()`.
    Set {
        /// The connection.
        flow: u8,
        /// The option.
        option: Choice,
        /// Its value.
        value: i32,
    },
    /// `shutdown()`.
    Shutdown {
        /// The connection.
        flow: u8,
        /// Whose socket.
        end: End,
        /// Which direction.
        how: How,
    },
    /// Closes the peer's socket, or with the receiver's both.
    Close {
        /// The connection.
        flow: u8,
        /// Whose socket.
        end: End,
    },
    /// Resets the connection from the peer's side.
    Reset {
        /// The connection.
        flow: u8,
    },
    /// Has another process hold all sockets that there are, too.
    Fork,
    /// Kills it.
    Kill,
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    /// The receiving one.
    Receiver,
    /// The sending one, which does not split headers.
    Sender,
    /// None has this number.
    Missing,
}

/// What a bind request names as its dma-buf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Memory {
    /// One of those made of pages, 4 MiB each.
    Pages(u8),
    /// 16 MiB of huge pages.
    Huge,
    /// 4 MiB from the system heap.
    Heap,
    /// 1 MiB filled with the stream's bytes, to be sent.
    Source(u8),
    /// 64 KiB that its file descriptor does not let write to.
    ReadOnly,
    /// A file that is no dma-buf.
    File,
    /// No file descriptor.
    Nothing,
}

/// A number of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BindingRef {
    /// That of a binding that was made before, whether it is still there or not.
    Made(u8),
    /// Just this number.
    Number(u32),
}

/// A flag of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Flag {
    /// `MSG_SOCK_DEVMEM`.
    Devmem,
    /// `MSG_PEEK`.
    Peek,
    /// `MSG_TRUNC`.
    Trunc,
    /// `MSG_DONTWAIT`.
    DontWait,
    /// `MSG_WAITALL`.
    WaitAll,
    /// `MSG_OOB`.
    Oob,
    /// `MSG_ERRQUEUE`.
    ErrQueue,
    /// `MSG_CMSG_CLOEXEC`.
    CloExec,
    /// `MSG_ZEROCOPY`.
    ZeroCopy,
}

impl Flag {
    /// The bits of flags together.
    pub fn bits(flags: &[Self]) -> i32 {
        flags.iter().fold(0, |bits, flag| bits | flag.bit())
    }

    fn bit(self) -> i32 {
        match self {
            Self::Devmem => devmem::recv::MSG_SOCK_DEVMEM,
            Self::Peek => libc::MSG_PEEK,
            Self::Trunc => libc::MSG_TRUNC,
            Self::DontWait => libc::MSG_DONTWAIT,
            Self::WaitAll => libc::MSG_WAITALL,
            Self::Oob => libc::MSG_OOB,
            Self::ErrQueue => libc::MSG_ERRQUEUE,
            Self::CloExec => libc::MSG_CMSG_CLOEXEC,
            Self::ZeroCopy => libc::MSG_ZEROCOPY,
        }
    }
}

/// A buffer, of which the rear part may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Bytes that are there.
    pub good: u32,
    /// Bytes after these that are claimed to be there.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u32,
}

impl Buffer {
    /// A buffer that is there.
    pub const fn new(good: u32) -> Self {
        Self { good, missing: 0 }
    }

    /// Its length, as the kernel is told.
    pub fn len(self) -> usize {
        self.good as usize + self.missing as usize
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A range of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first.
    pub token: TokenRef,
    /// How many.
    pub count: u32,
}

/// A token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenRef {
    /// One of those that the connection has.
    Held(u8),
    /// One of those that it had.
    Returned(u8),
    /// One of those that another connection has.
    Foreign(u8),
    /// Just this number.
    Number(u32),
}

/// An option of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// `SO_RCVLOWAT`.
    RcvLowat,
    /// `SO_RCVBUF`.
    RcvBuf,
    /// `SO_PEEK_OFF`.
    PeekOff,
    /// `TCP_INQ`.
    Inq,
    /// `SO_TIMESTAMPING`, of received segments.
    Timestamps,
    /// `SO_ZEROCOPY` of the peer.
    ZeroCopy,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The one that receives.
    Receiver,
    /// Its peer.
    Peer,
}

/// What `shutdown()` shuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// `SHUT_RD`.
    Read,
    /// `SHUT_WR`.
    Write,
    /// `SHUT_RDWR`.
    Both,
}

impl Op {
    /// What it is called in statistics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::BindRx { .. } => "bind-rx",
            Self::BindTx { .. } => "bind-tx",
            Self::Unbind { .. } => "unbind",
            Self::Connect { .. } => "connect",
            Self::Steer { .. } => "steer",
            Self::Send { .. } => "send",
            Self::SendMemory { .. } => "send from dma-buf",
            Self::Completions { .. } => "completions",
            Self::Receive { flags, .. } if flags.contains(&Flag::Peek) => "peek",
            Self::Receive { .. } => "recvmsg",
            Self::Read { .. } => "read",
            Self::Return { .. } => "dontneed",
            Self::Set { .. } => "setsockopt",
            Self::Shutdown { .. } => "shutdown",
            Self::Close { .. } => "close",
            Self::Reset { .. } => "reset",
            Self::Fork => "fork",
            Self::Kill => "kill",
        }
    }
}
