// SPDX-License-Identifier: GPL-2.0

//! What a sequence saw: the part of it that has to be the same on both providers.

use std::fmt;
use std::time::Duration;

use nix::errno::Errno;

/// An errno.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Failed(pub i32);

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            devmem_testlib::probe::ETOOSMALL => f.write_str("ETOOSMALL"),
            errno => write!(f, "{:?}", Errno::from_raw(errno)),
        }
    }
}

/// What an operation saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saw {
    /// There was nothing to do it with.
    Nothing,
    /// A call without a result, or with a count.
    Call(Result<u64, Failed>),
    /// `recvmsg()` or `read()`.
    Received(Received),
    /// How many calls that sent were completed, and whether the kernel copied.
    Completed {
        /// How many.
        calls: u32,
        /// Whether the kernel copied.
        copied: bool,
    },
}

/// What a call that receives brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes.
    pub result: Result<u64, Failed>,
    /// `msg_flags`.
    pub flags: i32,
    /// What it told about device memory.
    pub pieces: Vec<Piece>,
    /// Other control messages: level, type and content, if that does not depend on time.
    pub others: Vec<(i32, i32, Vec<u8>)>,
    /// Bytes that can be received still, as `SIOCINQ` has it.
    pub left: Result<u64, Failed>,
}

/// A piece of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes in host memory.
    Linear(u32),
    /// Bytes in device memory.
    Frag {
        /// Which binding of the sequence, in the order in which they were made.
        binding: Option<usize>,
        /// Which buffer: that of another token that is held, by connection and token, or one of
        /// which there is none.
        same_as: Option<(u8, u32)>,
        /// Where in the buffer.
        at: u64,
        /// How many bytes.
        size: u32,
        /// The token.
        token: u32,
    },
}

/// What a sequence saw on one provider.
#[derive(Clone, Debug, Default)]
pub struct Transcript {
    /// What each operation saw.
    pub steps: Vec<Saw>,
    /// What must not be, on any provider: by the number of the operation, the number of operations for
    /// what was found after them.
    pub faults: Vec<(usize, String)>,
    /// How long each operation took, and last what was to be done after them.
    pub spent: Vec<Duration>,
}
