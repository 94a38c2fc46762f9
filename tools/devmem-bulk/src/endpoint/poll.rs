// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Endpoints of programs that have a loop of their own, and poll.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;

use super::Endpoint;
use super::lane::Wire;

/// To be polled: there is something to read when something has happened. [`Endpoint::try_event`] finds out what.
impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Endpoint {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Endpoint {
    /// Whether there is more to do, or to tell, without anything that can be polled for: then whoever polls asks for
    /// [events](Self::try_event) first. So he does after he has made requests, whatever this says.
    pub fn is_busy(&self) -> bool {
        self.more || self.machine.has_events() || self.ring.has_completions()
    }

    /// Whether the peer has said hello, so that requests can be made.
    pub fn is_open(&self) -> bool {
        self.machine.is_open()
    }

    /// Whether one request more could be made now.
    pub fn has_room(&self) -> bool {
        self.machine.has_room()
    }

    /// Ends the connection, if it has not ended, without a word. Events tell what was under way. What is still being sent
    /// is not: its memory comes back at once.
    pub fn abort(&mut self) {
        self.machine.gone();
        self.lanes.iter_mut().for_each(Wire::abort);
    }

    /// Whether the connection is over, the peer knows it or does not listen, and no memory is being sent from: to drop
    /// the endpoint takes no time then. Until that it is asked for [events](Self::try_event).
    pub fn is_finished(&mut self) -> bool {
        self.is_over() && self.lanes.is_empty()
    }
}
