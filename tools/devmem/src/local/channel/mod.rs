// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Offsets over an AF_UNIX socket, and what was read going back.

mod hear;
mod lend;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::socket::Shutdown;
use nix::sys::socket::shutdown;
use rustix::net::AddressFamily;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_domain;
use rustix::net::sockopt::socket_type;

use super::outbox::Outbox;
use super::share::Memories;
use super::share::Open;
use super::wire::LEN;
use super::wire::Record;
use crate::cmsg::DmabufCmsg;
use crate::completion::InFlight;
use crate::completion::Sent;
use crate::dmabuf::DmaBuf;
use crate::dmabuf::Extent;
use crate::netdev::TxBinding;
use crate::poll;
use crate::recv::Received;
use crate::send;
use crate::send::How;
use crate::send::Rest;
use crate::send::SendError;
use crate::send::Source;
use crate::socket::Socket;

/// How many parts of an end's memory the other one may have, read or not. The next waits until one has come back.
pub const WINDOW: u32 = 64;
/// How many parts may have come back behind one that has not: what an end has to keep in mind.
const SPAN: usize = 1 << 16;
/// How many memories an end may share.
const MEMORIES: usize = 16;
/// Records that are received at once.
const AT_ONCE: usize = 128;

/// Parts of dma-bufs for the process at the other end of an AF_UNIX socket, and parts of its own from there.
///
/// It is used as a [`Sender`](crate::Sender) and a [`Receiver`](crate::Receiver) of TCP are, by the same traits, but that
/// each part that is sent arrives as one [`Piece::Frag`](crate::Piece::Frag), and is not joined with others. Nothing
/// but offsets and lengths goes through the socket. The kernel has no part in it: any kernel will do, and any exporter. What
/// is longer than 2 GiB arrives as several.
///
/// - [`share`](Self::share) passes a dma-buf and gives the binding to send from; the peer finds it by
///   [`memory`](Self::memory);
/// - a source that was sent comes back when the peer has returned the tokens of all its parts, and is not read before that,
///   if the peer is honest: it has the memory, and nobody can keep it from reading. What is in flight when the channel is
///   dropped never comes back, as that of a sender;
/// - a peer has up to [`WINDOW`] parts, however long they are. Who holds tokens makes the other end wait;
/// - each end [finishes](Self::finish) by itself. An end that goes without that is an error for the other one.
///
/// A socket that does not wait makes no difference to what waits here: see [`recv_timeout`](Self::recv_timeout). A peer that
/// has a file system of its own (FUSE) can pass a file of that, and have whatever is called here wait for it when that
/// is looked at or closed, however short the timeout.
///
/// # What ends it
///
/// A peer that goes, or says what cannot be: parts that are not in the memory that they are said to be in, or come out of
/// order; more of them than it may lend; that something came back that it was not lent. From then on receiving and sending
/// fail. What was lent to it comes back as [`Sent`], as nobody is there who would return it. Parts that it had sent can be
/// read as long as their memory is there.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::os::unix::net::UnixStream;
///
/// use devmem::local::Channel;
/// use devmem::{DmaBuf, Piece, Region};
///
/// let (here, there) = UnixStream::pair()?;
/// // One process:
/// let memory = DmaBuf::udmabuf(4 << 20)?;
/// let mut tx = Channel::<Region>::new(here)?;
/// let binding = tx.share(&memory)?;
/// for mut region in memory.region()?.split(1 << 20) {
///     region.begin_write()?.copy_in(0, b"something")?;
///     tx.send(&binding, region)?;
/// }
/// tx.finish()?;
///
/// // Another one:
/// let mut rx: Channel = Channel::new(there)?;
/// loop {
///     let received = rx.recv()?;
///     if received.is_eof() {
///         break;
///     }
///     for piece in received {
///         if let Piece::Frag(frag) = piece {
///             println!("{} bytes at {} of {}", frag.size, frag.offset, frag.dmabuf_id);
///         }
///     }
/// }
/// while tx.wait()?.is_some() {}
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Channel<'s, T = Extent> {
    socket: Socket<'s>,
    outbox: Arc<Outbox>,
    /// What was sent and has not come back.
    flight: InFlight<T>,
    /// Parts that the peer has.
    lent: u32,
    /// Number of the next part to send.
    next: u32,
    /// Sizes of the memories that this end shares.
    shared: BTreeMap<NonZero<u32>, u64>,
    /// Memories that the peer shares.
    memories: Memories,
    /// Bytes that are not a whole record yet.
    input: Vec<u8>,
    buffer: Box<[u8; AT_ONCE * LEN]>,
    /// Parts that have come, and those of them that the last call told of.
    inbox: VecDeque<DmabufCmsg>,
    told: Vec<DmabufCmsg>,
    /// Number of the next part that comes.
    expected: u32,
    /// Whether this end, and the peer, have said that there are no more parts.
    finished: bool,
    peer_finished: bool,
    /// Why there is nothing more to be heard.
    broken: Option<(io::ErrorKind, String)>,
    open: Open,
}

impl<'s, T: Source> Channel<'s, T> {
    /// Makes an end of a channel of an end of a connection by AF_UNIX that nothing else is sent by.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is another kind of socket; those of `getsockopt()`.
    pub fn new(socket: impl Into<Socket<'s>>) -> io::Result<Self> {
        Self::opening(socket.into(), DmaBuf::from_fd)
    }

    fn opening(socket: Socket<'s>, open: Open) -> io::Result<Self> {
        let kind = (socket_domain(&socket)?, socket_type(&socket)?);
        if kind != (AddressFamily::UNIX, SocketType::STREAM) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the socket is no stream of AF_UNIX",
            ));
        }
        Ok(Self {
            socket,
            outbox: Arc::default(),
            flight: InFlight::new(),
            lent: 0,
            next: 0,
            shared: BTreeMap::new(),
            memories: Memories::new(),
            input: Vec::new(),
            buffer: Box::new([0; AT_ONCE * LEN]),
            inbox: VecDeque::new(),
            told: Vec::new(),
            expected: 0,
            finished: false,
            peer_finished: false,
            broken: None,
            open,
        })
    }

    /// Passes a memory to the peer, for as long as the channel is there, and gives what stands for it. Waits, without an end,
    /// for a peer that reads nothing, if there is no room for a message, and takes in nothing meanwhile.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if there are 16 already; those of
    /// [`send`](Self::send) and of [`Share::send`](super::Share::send).
    pub fn share(&mut self, memory: &DmaBuf) -> io::Result<TxBinding> {
        self.share_until(memory, None)
    }

    /// Like [`share`](Self::share), but no longer than a while.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn share_timeout(&mut self, memory: &DmaBuf, timeout: Duration) -> io::Result<TxBinding> {
        self.share_until(memory, poll::end_of(timeout))
    }

    fn share_until(&mut self, memory: &DmaBuf, deadline: Option<Instant>) -> io::Result<TxBinding> {
        self.check()?;
        let id = u32::try_from(self.shared.len() + 1).ok();
        let Some(id) = id
            .and_then(NonZero::new)
            .filter(|_| self.shared.len() < MEMORIES)
        else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "too many memories for a channel",
            ));
        };
        let size = memory.size() as u64;
        let record = Record::Memory { id, size };
        loop {
            let socket = self.socket.as_fd();
            match self.outbox.send_with(socket, record, memory.as_fd()) {
                Ok(()) => break,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    poll::ready(socket, PollFlags::POLLOUT, deadline)?;
                }
                Err(err) => return Err(err),
            }
        }
        self.shared.insert(id, size);
        Ok(TxBinding::of_another(id))
    }

    /// A memory that the peer has shared, by [`Frag::dmabuf_id`](crate::Frag::dmabuf_id). It is known when a part of it is.
    pub fn memory(&self, id: u32) -> Option<&DmaBuf> {
        self.memories.get(id)
    }

    /// Lends all of a source to the peer, which lies in a memory that was [shared](Self::share) here.
    ///
    /// Waits until the peer may have more, and takes in meanwhile what it sends.
    ///
    /// # Errors
    ///
    /// `EINVAL` if no memory was shared by this number, and `EFAULT` for what lies outside of it;
    /// [`NotConnected`](io::ErrorKind::NotConnected) after [`finish`](Self::finish) or [`abort`](Self::abort);
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the peer is gone, and [`InvalidData`](io::ErrorKind::InvalidData) if it
    /// said what cannot be. [`SendError`] tells how much was sent before that.
    pub fn send(&mut self, binding: &TxBinding, source: T) -> Result<(), SendError<T>> {
        send::send_all(self, binding.number(), source, 0)
    }

    /// Like [`send`](Self::send), but no longer than a while.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn send_timeout(
        &mut self,
        binding: &TxBinding,
        source: T,
        timeout: Duration,
    ) -> Result<(), SendError<T>> {
        send::send_all(self, binding.number(), source, How::within(timeout))
    }

    /// Sends what an earlier call has left, for no longer than a while.
    ///
    /// # Errors
    ///
    /// Those of [`send_timeout`](Self::send_timeout) and of [`Sender::resume`](crate::Sender::resume).
    pub fn resume_timeout(
        &mut self,
        binding: &TxBinding,
        rest: Rest,
        timeout: Duration,
    ) -> Result<(), SendError<T>> {
        send::resume(self, binding.number(), rest, How::within(timeout))
    }

    /// Waits for a source that the peer has returned: `None` if there is nothing to wait for.
    ///
    /// # Errors
    ///
    /// Why the channel is over, once; what was in flight then comes by the next calls.
    pub fn wait(&mut self) -> io::Result<Option<Sent<T>>> {
        self.wait_until(None)
    }

    /// Like [`wait`](Self::wait), but no longer than a while.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<Sent<T>>> {
        self.wait_until(poll::end_of(timeout))
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> io::Result<Option<Sent<T>>> {
        loop {
            if let Some(sent) = self.flight.take_done() {
                return Ok(Some(sent));
            }
            if self.flight.calls() == 0 {
                return Ok(None);
            }
            self.hear(deadline)?;
        }
    }

    /// Waits for parts, and tells where they lie. Those that have come are told before any error.
    ///
    /// # Errors
    ///
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the peer went without [`finish`](Self::finish);
    /// [`InvalidData`](io::ErrorKind::InvalidData) if it said what cannot be, and
    /// [`Unsupported`](io::ErrorKind::Unsupported) if it did so by another version of the protocol; those of `recvmsg()`.
    /// It is the same one from then on.
    pub fn recv(&mut self) -> io::Result<Received<'_, 's>> {
        self.recv_until(None)
    }

    /// Like [`recv`](Self::recv), but no longer than a while.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn recv_timeout(&mut self, timeout: Duration) -> io::Result<Received<'_, 's>> {
        self.recv_until(poll::end_of(timeout))
    }

    fn recv_until(&mut self, deadline: Option<Instant>) -> io::Result<Received<'_, 's>> {
        while self.inbox.is_empty() && !self.peer_finished {
            let heard = self.hear(deadline);
            // Something may have come before what was wrong: the next call tells of that.
            if self.inbox.is_empty() {
                heard?;
            }
        }
        self.told.clear();
        self.told.extend(self.inbox.drain(..));
        Ok(Received::from_peer(&self.socket, &self.told, &self.outbox))
    }

    /// Tells the peer that there are no more parts. What it sends is still received, and what it has comes back.
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) if the peer is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        self.check()?;
        if !mem::replace(&mut self.finished, true) {
            self.outbox.push(Record::End);
        }
        self.outbox.flush(self.socket.as_fd())
    }

    /// Ends the channel at once: for the peer this end is gone, and what it has comes back by [`wait`](Self::wait),
    /// though the peer may go on reading it.
    ///
    /// # Errors
    ///
    /// Those of `shutdown()`.
    pub fn abort(&mut self) -> io::Result<()> {
        shutdown(self.socket.as_raw_fd(), Shutdown::Both)?;
        let why = io::Error::new(io::ErrorKind::NotConnected, "the channel was aborted");
        self.give_up(&why);
        Ok(())
    }

    /// Fails if there is nothing more to be heard.
    fn check(&self) -> io::Result<()> {
        match &self.broken {
            None => Ok(()),
            Some((kind, why)) => Err(io::Error::new(*kind, why.clone())),
        }
    }

    /// There is nothing more to be heard.
    fn give_up(&mut self, why: &io::Error) {
        self.broken = Some((why.kind(), why.to_string()));
        self.lent = 0;
        self.flight.recall();
    }
}

/// Whether so many bytes from there on are in a memory.
fn is_within(offset: u64, len: u64, size: u64) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= size)
}

/// An honest peer may still read what it has.
impl<T> Drop for Channel<'_, T> {
    fn drop(&mut self) {
        self.flight.forget();
    }
}
