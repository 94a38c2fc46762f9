// SPDX-License-Identifier: GPL-2.0

//! Runs: frags that follow each other in a dma-buf, of which a reader is told at once.
//!
//! Each frag of a run is in a buffer of its own, and fills that to its end, or is the last one; so there is a reference to
//! each of the buffers, and no more.

#![deny(unsafe_code)]

use super::token::Held;

/// How far the net_iovs of an area are from each other, in bytes: the size of `struct net_iov`.
pub(super) const STRIDE: usize = 64;

/// Where something ends that was received, and what would follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The `netmem_ref` of the buffer that it ends in.
    pub(super) last: usize,
    /// Where in there, in bytes.
    pub(super) offset: u32,
    /// Size of a buffer.
    pub(super) size: u32,
    /// How many buffers come after that one in its area.
    pub(super) after: u32,
}

impl End {
    /// Whether `len` bytes at `offset` of another buffer follow, in the next buffer. Then it is where these end.
    #[inline]
    pub(super) fn follow(&mut self, netmem: usize, offset: u32, len: u32) -> bool {
        let follows = self.after != 0
            && self.offset == self.size
            && offset == 0
            && self.last.checked_add(STRIDE) == Some(netmem);

        if follows {
            self.last = netmem;
            self.offset = len;
            self.after -= 1;
        }
        follows
    }
}

/// A run that a reader was told of, and that may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Its token.
    pub(crate) token: u32,
    /// How many frags, that is buffers, it has. Never 0.
    pub(crate) count: u32,
    /// How many bytes.
    pub(crate) len: u32,
    /// Where it ends.
    pub(crate) end: End,
}

impl Run {
    /// What its token stands for.
    pub(super) fn held(&self) -> Held {
        let before = (self.count as usize).saturating_sub(1) * STRIDE;

        Held {
            netmem: self.end.last.wrapping_sub(before),
            count: self.count,
        }
    }
}
