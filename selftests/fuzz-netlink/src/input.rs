// SPDX-License-Identifier: GPL-2.0

//! Inputs: sequences of operations, each made of bytes that can be mutated.
//!
//! An operation is decoded from its bytes so that any bytes are one, and that no bytes at all are a
//! well-formed one: what follows are edits, which spoil it.

use std::fmt;
use std::str::FromStr;

use arbitrary::Arbitrary;
use arbitrary::Unstructured;

/// Operations of an input, at most.
pub const MAX_OPS: usize = 12;
/// Bytes of an operation, at most.
pub const MAX_BYTES: usize = 160;

/// A sequence of operations, as their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// The bytes of each.
    pub ops: Vec<Vec<u8>>,
}

impl Input {
    /// The operations.
    pub fn decode(&self) -> impl Iterator<Item = Op> {
        self.ops
            .iter()
            .filter_map(|bytes| Unstructured::new(bytes).arbitrary().ok())
    }
}

/// As a line of the corpus: hexadecimal numbers, one for each operation.
impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bytes) in self.ops.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            // Keeps an operation without bytes visible.
            f.write_str("x")?;
            for byte in bytes {
                write!(f, "{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Not a line of the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a line of the corpus")
    }
}

impl std::error::Error for Malformed {}

impl FromStr for Input {
    type Err = Malformed;

    fn from_str(line: &str) -> Result<Self, Malformed> {
        let operation = |word: &str| {
            let digits = word.strip_prefix('x').ok_or(Malformed)?;
            if digits.len() % 2 != 0 || !digits.is_ascii() {
                return Err(Malformed);
            }
            (0..digits.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| Malformed))
                .collect()
        };
        let ops = line.split_ascii_whitespace().map(operation);
        Ok(Self {
            ops: ops.collect::<Result<_, _>>()?,
        })
    }
}

/// An operation.
#[derive(Arbitrary, Clone, Debug)]
pub enum Op {
    /// The peer sends so many bytes, which arrive in device memory.
    Feed(u16),
    /// A netlink request.
    Request(Request),
    /// `recvmsg()`.
    Receive(Receive),
    /// `sendmsg()`.
    Send(Send),
    /// `SO_DEVMEM_DONTNEED`, set.
    Return(Return),
    /// `SO_DEVMEM_DONTNEED`, asked for.
    Ask(Place, Socket),
    /// A netlink socket is closed, with what it has bound, and opened anew.
    Reopen(Netlink),
    /// Half of the connection is closed: that of the receiver or of the sender.
    Shutdown(Socket, u8),
}

/// A number which the kernel is told, and may take for something that exists.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Number {
    /// A small one.
    Small(u8),
    /// Any.
    Any(u32),
    /// A power of two.
    Power(u8),
    /// One less.
    BelowPower(u8),
    /// Number of the device that receives.
    RxDevice,
    /// Number of the device that sends.
    TxDevice,
    /// File descriptor of the dma-buf for receiving.
    RxMemory,
    /// File descriptor of the dma-buf for sending.
    TxMemory,
    /// File descriptor of a dma-buf that may not be written.
    ReadOnlyMemory,
    /// File descriptor of something else.
    Socket(Socket),
    /// The binding for receiving.
    RxBinding,
    /// The binding for sending.
    TxBinding,
    /// One of the tokens that are held.
    Token(u8),
}

/// A socket.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// The connected one that receives in device memory.
    Rx,
    /// Its peer.
    Tx,
    /// One that listens.
    Listener,
    /// One of TCP that is not connected.
    Unconnected,
    /// One of UDP.
    Udp,
    /// One of UNIX.
    Unix,
}

/// A netlink socket.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netlink {
    /// In the receiver's network namespace.
    Rx,
    /// In the sender's network namespace.
    Tx,
    /// In a network namespace without devices.
    Empty,
    /// In the receiver's network namespace, of somebody without capabilities.
    Unprivileged,
}

/// A netlink request: a well-formed one, and how it is spoilt.
#[derive(Arbitrary, Clone, Debug)]
pub struct Request {
    /// What it asks for.
    pub base: Base,
    /// Of whom.
    pub socket: Netlink,
    /// What is wrong with it.
    pub edits: Vec<Edit>,
}

/// What a request asks for.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// To bind a queue.
    BindRx,
    /// To bind for sending.
    BindTx,
    /// A queue.
    Queue,
    /// All queues of a device.
    Queues,
    /// A page pool.
    PagePool,
    /// All page pools.
    PagePools,
    /// What a page pool has counted.
    PagePoolStats,
    /// A device.
    Device,
    /// All NAPIs of a device.
    Napis,
    /// What the queues of a device have counted.
    QueueStats,
    /// To bind a queue, with a limit of tokens.
    BindLimited,
    /// To bind for sending by everybody.
    BindShared,
    /// A binding.
    Binding,
    /// All bindings of a device.
    Bindings,
    /// That the memory of a binding comes back.
    Flush,
}

/// A change of a request. Attributes are counted from 0, in all nests together, and from the start again
/// after the last.
#[derive(Arbitrary, Clone, Debug)]
pub enum Edit {
    /// Takes an attribute out.
    Remove(u8),
    /// Has an attribute twice.
    Repeat(u8),
    /// Gives an attribute another type, and flags.
    Kind(u8, SmallKind, KindFlags),
    /// Has the header of an attribute claim another length.
    Length(u8, i8),
    /// Gives an attribute another content.
    Value(u8, Value),
    /// Puts an attribute into a nest of this type.
    Nest(u8, SmallKind),
    /// Adds an attribute, before another one.
    Insert(u8, SmallKind, Value),
    /// Changes the command.
    Command(u8),
    /// Changes the flags.
    Flags(u16),
    /// Changes the version.
    Version(u8),
    /// Goes to another family.
    Family(Family),
    /// Has the netlink header claim another length.
    TotalLength(i8),
    /// Sends only so many bytes.
    Cut(u8),
    /// Adds bytes behind the end.
    Tail(Vec<u8>),
}

/// A type of attribute that means something.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum SmallKind {
    /// 1: the device, or number of a queue, or of a pool.
    One,
    /// 2: a queue, or the device of a queue.
    Two,
    /// 3: the dma-buf, or the type of a queue.
    Three,
    /// 4.
    Four,
    /// 5: the size of buffers.
    Five,
    /// Any.
    Any(u16),
}

/// The flags in the type of an attribute.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum KindFlags {
    /// As they were.
    Same,
    /// None.
    None,
    /// It is a nest.
    Nested,
    /// It is in network byte order.
    NetByteOrder,
}

/// The content of an attribute.
#[derive(Arbitrary, Clone, Debug)]
pub enum Value {
    /// A number of 4 bytes.
    U32(Number),
    /// A number of 8 bytes.
    U64(Number),
    /// A number of 1 byte.
    U8(u8),
    /// Anything.
    Bytes(Vec<u8>),
    /// Nothing.
    Empty,
    /// The nest of a queue.
    Queue(Number, Number),
}

/// To whom a request goes.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Family {
    /// The family of families.
    Control,
    /// One of the types below the families.
    Reserved(u8),
    /// One that does not exist.
    Unknown,
}

/// Memory that the kernel is pointed to.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Place {
    /// It is there.
    Good,
    /// It ends after so many bytes.
    Short(u8),
    /// NULL.
    Null,
    /// Nothing is there.
    Unmapped,
    /// It is the kernel's.
    Kernel,
    /// It may only be read.
    ReadOnly,
}

/// A call of `recvmsg()`.
#[derive(Arbitrary, Clone, Debug)]
pub struct Receive {
    /// Of whom.
    pub socket: Socket,
    /// Flags that are not as they should be.
    pub flags: u32,
    /// Where the control messages go.
    pub control: Place,
    /// Room for control messages, in bytes: less than the usual by so much.
    pub less_control: u16,
    /// Data buffers, in addition to the usual one.
    pub data: Vec<(Place, Number)>,
    /// The place of the usual data buffer.
    pub first: Place,
    /// Its length: less than the usual by so much.
    pub less_data: u16,
}

/// A call of `sendmsg()`.
#[derive(Arbitrary, Clone, Debug)]
pub struct Send {
    /// Less than the usual length by so much.
    pub less: u8,
    /// Where in the memory.
    pub offset: Number,
    /// Parts in addition to the usual one: offset and length.
    pub parts: Vec<(Number, Number)>,
    /// What is done to the flags.
    pub flags: u32,
    /// By whom.
    pub socket: SendSocket,
    /// What is wrong with the control message.
    pub edits: Vec<CmsgEdit>,
    /// Where the control message lies.
    pub control: Place,
}

/// Who sends.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum SendSocket {
    /// The connected sender.
    Usual,
    /// Another one.
    Other(Socket),
}

/// A change of a control message.
#[derive(Arbitrary, Clone, Debug)]
pub enum CmsgEdit {
    /// Another level.
    Level(u8),
    /// Another type.
    Kind(u8),
    /// Another binding.
    Binding(Number),
    /// The header claims another length.
    Length(i8),
    /// The header claims this length.
    LongLength(u64),
    /// Another content.
    Data(Vec<u8>),
    /// Another control message in front.
    Before(u8, u8, Vec<u8>),
    /// Another control message behind.
    After(u8, u8, Vec<u8>),
    /// The buffer is shorter by so much.
    Cut(u8),
    /// None at all.
    None,
}

/// A call of `setsockopt(SO_DEVMEM_DONTNEED)`.
#[derive(Arbitrary, Clone, Debug)]
pub struct Return {
    /// The ranges: first token and count.
    pub ranges: Vec<(Number, Number)>,
    /// Of whom.
    pub socket: Socket,
    /// The length is not that of the ranges.
    pub length: Option<Number>,
    /// Where the ranges lie.
    pub place: Place,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back() {
        for line in ["", "x", "x00ff x x0102"] {
            assert_eq!(line.parse::<Input>().unwrap().to_string(), line);
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in ["00", "x0", "xgg", "x00 1", "xé"] {
            assert_eq!(line.parse::<Input>(), Err(Malformed), "{line}");
        }
    }

    #[test]
    fn any_bytes_are_an_operation() {
        let mut rng = fastrand::Rng::with_seed(1);
        for len in 0..MAX_BYTES {
            let bytes: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
            assert!(
                Unstructured::new(&bytes).arbitrary::<Op>().is_ok(),
                "{bytes:?}"
            );
        }
    }
}
