// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Endpoints of programs that have a loop of their own, and poll.

use std::os::fd::AsRawFd;
use std::os::fd::RawFd;

use super::Endpoint;

/// To be polled: there is something to read when something has happened. [`Endpoint::try_event`] finds out what.
impl AsRawFd for Endpoint {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Endpoint {
    /// Whether there is more to do, or to tell, without anything that can be polled for: then whoever polls asks for
    /// [events](Self::try_event) first. So he does after he has made requests, whatever this says.
    pub fn is_busy(&self) -> bool {
        self.more || self.machine.has_events() || self.ring.has_completions()
    }
}
