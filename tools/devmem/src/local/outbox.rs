// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What is to be written to the other end of a channel, by the channel and by tokens, wherever these are.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::wire;
use super::wire::Record;
use crate::token::TokenRange;

/// Records on their way.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Mutex<Pending>);

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// How many bytes have been written before these.
    written: u64,
    /// How many of the peer's parts are here, read or not, or were given back, and it has not been told yet.
    borrowed: u32,
    /// The ends of records that give parts back, counted as `written` is, and how many parts each gives.
    returns: VecDeque<(u64, u32)>,
    /// Whether nobody is there to read any of it.
    gone: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Nothing here leaves things half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record.
    pub(crate) fn push(&self, record: Record) {
        self.lock().bytes.extend(record.encode());
    }

    /// Writes what there is room for. Fails if the peer is gone.
    pub(crate) fn flush(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.lock().flush(socket)
    }

    /// Writes a record with a descriptor, if there is room for it and for all before it.
    pub(crate) fn send_with(
        &self,
        socket: BorrowedFd<'_>,
        record: Record,
        descriptor: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut pending = self.lock();
        pending.flush(socket)?;
        if !pending.bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = record.encode();
        let sent = wire::send(socket, &bytes, Some(descriptor))?;
        pending.written += sent as u64;
        pending.bytes.extend(&bytes[sent..]);
        Ok(())
    }

    /// Whether there is something that there was no room for.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.lock().bytes.is_empty()
    }

    /// Counts a part of the peer's that has come; returns how many there are.
    pub(crate) fn borrow(&self) -> u32 {
        let mut pending = self.lock();
        pending.borrowed += 1;
        pending.borrowed
    }

    /// Gives parts back, which is no more than to say so; returns how many. What there is no room for goes with the next
    /// call of the channel. A peer that is gone wants none of them.
    pub(crate) fn give_back(
        &self,
        socket: BorrowedFd<'_>,
        ranges: &[TokenRange],
    ) -> io::Result<u32> {
        let mut pending = self.lock();
        let mut all = 0;
        for range in ranges {
            let record = Record::Back {
                first: range.start,
                count: range.count,
            };
            pending.bytes.extend(record.encode());
            let end = pending.written + pending.bytes.len() as u64;
            pending.returns.push_back((end, range.count));
            all += range.count;
        }
        match pending.flush(socket) {
            Err(_) if pending.gone => Ok(all),
            result => result.map(|()| all),
        }
    }
}

impl Pending {
    fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        if self.gone {
            self.clear();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        while !self.bytes.is_empty() {
            match wire::send(socket, &self.bytes, None) {
                Ok(sent) => self.wrote(sent),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(err) => {
                    self.gone = true;
                    self.clear();
                    return Err(err);
                }
            }
        }
        Ok(())
    }

    /// Nobody gets any of it.
    fn clear(&mut self) {
        self.bytes.clear();
        self.returns.clear();
    }

    /// So many bytes are gone. Only now the peer can know which parts it has again, and may lend others: who reads nothing
    /// gets no room by that.
    fn wrote(&mut self, sent: usize) {
        self.bytes.drain(..sent);
        self.written += sent as u64;
        while let Some(&(end, count)) = self.returns.front() {
            if end > self.written {
                break;
            }
            self.borrowed = self.borrowed.saturating_sub(count);
            self.returns.pop_front();
        }
    }
}
