// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A channel as what sends and receives: the same traits as those of sockets.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::Channel;
use super::SPAN;
use super::WINDOW;
use super::is_within;
use crate::completion::InFlight;
use crate::completion::Sent;
use crate::dmabuf::Extent;
use crate::local::wire::Record;
use crate::netdev::TxBinding;
use crate::recv::Receive;
use crate::recv::Received;
use crate::send::Calls;
use crate::send::How;
use crate::send::Rest;
use crate::send::SendError;
use crate::send::Source;
use crate::send::Transmit;

/// What is longer goes as several parts.
const LONGEST: u32 = 1 << 31;

impl<T: Source> Channel<'_, T> {
    /// Whether the peer may have one more.
    fn has_room(&self) -> bool {
        self.lent < WINDOW && self.flight.calls() < SPAN
    }
}

impl<T: Source> Calls<T> for Channel<'_, T> {
    fn flight(&mut self) -> &mut InFlight<T> {
        &mut self.flight
    }

    /// Lends the first of the extents. It is written with the last one, or when the peer is waited for.
    fn call(
        &mut self,
        dmabuf_id: NonZero<u32>,
        extents: &[Extent],
        how: How,
    ) -> io::Result<Option<u64>> {
        self.check()?;
        if self.finished {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the channel was finished",
            ));
        }
        let Some(&Extent { offset, len }) = extents.first() else {
            return Ok(Some(0));
        };
        let Some(&size) = self.shared.get(&dmabuf_id) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        if !is_within(offset, len, size) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        if !self.has_room() {
            return self.hear(how.deadline).map(|()| None);
        }
        let part = u32::try_from(len).unwrap_or(LONGEST).min(LONGEST);
        self.outbox.push(Record::Part {
            number: self.next,
            id: dmabuf_id.get(),
            offset,
            len: part,
        });
        let is_last = extents.len() == 1 && how.flags & libc::MSG_MORE == 0;
        if is_last && u64::from(part) == len {
            self.outbox.flush(self.socket.as_fd())?;
        }
        self.next = self.next.wrapping_add(1);
        self.lent += 1;
        Ok(Some(part.into()))
    }
}

impl<'s, T: Source> Receive<'s> for Channel<'s, T> {
    fn recv(&mut self) -> io::Result<Received<'_, 's>> {
        Channel::recv(self)
    }

    fn recv_timeout(&mut self, timeout: Duration) -> io::Result<Received<'_, 's>> {
        Channel::recv_timeout(self, timeout)
    }
}

impl<T: Source> Transmit<T> for Channel<'_, T> {
    fn send(&mut self, binding: &TxBinding, source: T) -> Result<(), SendError<T>> {
        Channel::send(self, binding, source)
    }

    fn wait(&mut self) -> io::Result<Option<Sent<T>>> {
        Channel::wait(self)
    }

    fn send_timeout(
        &mut self,
        binding: &TxBinding,
        source: T,
        timeout: Duration,
    ) -> Result<(), SendError<T>> {
        Channel::send_timeout(self, binding, source, timeout)
    }

    fn resume_timeout(
        &mut self,
        binding: &TxBinding,
        rest: Rest,
        timeout: Duration,
    ) -> Result<(), SendError<T>> {
        Channel::resume_timeout(self, binding, rest, timeout)
    }

    fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<Sent<T>>> {
        Channel::wait_timeout(self, timeout)
    }

    fn abort(&mut self) -> io::Result<()> {
        Channel::abort(self)
    }
}

/// The socket, to wait for whatever the peer says.
impl<T> AsFd for Channel<'_, T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
