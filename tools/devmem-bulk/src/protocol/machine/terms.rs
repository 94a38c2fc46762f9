// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What an end of a connection is told to be, and what it tells.

use crate::protocol::wire::Fault;
use crate::protocol::wire::NOTE;
use crate::protocol::wire::Status;

/// What an end takes upon itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// How many lanes there are, which both ends have to say.
    pub lanes: u16,
    /// How many bytes of each lane it may have in hand: as much as there is memory for.
    pub window: u64,
    /// How many requests of the peer it takes at once, and has of its own.
    pub requests: u32,
    /// How many bytes it sends for a request before it is another's turn.
    pub segment: u32,
    /// Which machine it is on, if the peer is to know.
    pub host: [u8; 16],
}

impl Default for Limits {
    /// One lane with a window of 1 MiB, 64 requests, segments of 256 KiB.
    fn default() -> Self {
        Self {
            lanes: 1,
            window: 1 << 20,
            requests: 64,
            segment: 256 << 10,
            host: [0; 16],
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Both had said that they were done.
    Orderly,
    /// The peer was gone, or one of its sockets.
    Gone,
    /// The peer did not keep to the protocol.
    Broken(Fault),
    /// The peer said so.
    Told(Fault),
    /// This end could not go on.
    Local,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// It was refused, or could not be done to the end. The connection goes on.
    Status(Status),
    /// The connection is over.
    Over(End),
}

/// Why there is no such request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// As many as may be are under way.
    Busy,
    /// It is about no bytes, or about more than there can be.
    Length,
    /// This end has said that there will be no more.
    Closing,
    /// The connection is over.
    Over(End),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A request of this end is over. Of a put, the bytes are in the peer's memory; of a get, in this end's.
    Done {
        /// The number that it was given.
        id: u64,
        /// Whether it went well.
        result: Result<(), Failure>,
    },
    /// The peer tells something, and all that it put before that, after the note before, is in place.
    Note([u8; NOTE]),
    /// The peer has no more requests, and waits until this end says the same.
    Closing,
    /// The connection is over; there are no more events.
    Over(End),
}
