// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Offsets over an AF_UNIX socket, and what was read going back.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
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
use super::share::Share;
use super::wire;
use super::wire::LEN;
use super::wire::Record;
use super::wire::wrong;
use crate::cmsg::DmabufCmsg;
use crate::completion::Completion;
use crate::completion::InFlight;
use crate::completion::Sent;
use crate::dmabuf::DmaBuf;
use crate::dmabuf::Extent;
use crate::netdev::TxBinding;
use crate::poll;
use crate::recv::Receive;
use crate::recv::Received;
use crate::send;
use crate::send::Calls;
use crate::send::How;
use crate::send::Rest;
use crate::send::SendError;
use crate::send::Source;
use crate::send::Transmit;
use crate::socket::Socket;

/// How many parts of an end's memory the other one may have, read or not. The next waits until one has come back.
pub const WINDOW: u32 = 64;
/// How many parts may have come back behind one that has not: what an end has to keep in mind.
const SPAN: usize = 1 << 16;
/// How many memories an end may share.
const MEMORIES: usize = 16;
/// What is longer goes as several parts.
const LONGEST: u32 = 1 << 31;
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
/// A socket that does not wait makes no difference to what waits here: see [`recv_timeout`](Self::recv_timeout).
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
    /// for a peer that reads nothing, if there is no room for a message.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if there are 16 already; those of
    /// [`send`](Self::send) and of [`Share::send`].
    pub fn share(&mut self, memory: &DmaBuf) -> io::Result<TxBinding> {
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
                    poll::ready(socket, PollFlags::POLLOUT, None)?;
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

    /// Writes what is to be written, and waits for something from the peer, which it takes in.
    fn hear(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.check()?;
        match self.try_hear(deadline) {
            Err(err) if err.kind() != io::ErrorKind::TimedOut => {
                self.give_up(&err);
                Err(err)
            }
            result => result,
        }
    }

    fn try_hear(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            let socket = self.socket.as_fd();
            // A peer that is gone may have said something before that.
            let reads = self.outbox.flush(socket).is_ok();
            let waits = reads && deadline.is_none() && !self.outbox.is_waiting();
            match wire::receive(socket, &mut self.buffer[..], waits) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((len, descriptors)) => return self.take_in(len, descriptors),
                Err(err) if err.kind() != io::ErrorKind::WouldBlock => return Err(err),
                Err(_) if !reads => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_) => self.ready(deadline)?,
            }
        }
    }

    fn ready(&self, deadline: Option<Instant>) -> io::Result<()> {
        let mut what = PollFlags::POLLIN;
        what.set(PollFlags::POLLOUT, self.outbox.is_waiting());
        poll::ready(self.socket.as_fd(), what, deadline).map(drop)
    }

    /// Goes through bytes that came, and descriptors with them.
    fn take_in(&mut self, len: usize, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let mut input = mem::take(&mut self.input);
        input.extend(self.buffer.get(..len).unwrap_or_default());
        let mut rest = &input[..];
        let mut descriptors = descriptors.into_iter();
        while let Some((record, others)) = rest.split_first_chunk() {
            rest = others;
            match Record::decode(record)? {
                Record::Memory { id, size } => {
                    let came = descriptors.next().into_iter().collect();
                    self.add_memory(Share::new(id, size, came, self.open)?)?;
                }
                Record::Part {
                    number,
                    id,
                    offset,
                    len,
                } => self.add_part(number, id, offset, len)?,
                Record::Back { first, count } => self.came_back(first, count)?,
                Record::End if self.peer_finished => return Err(wrong("a second end")),
                Record::End => self.peer_finished = true,
            }
        }
        if descriptors.next().is_some() {
            return Err(wrong("a descriptor that nothing was said of"));
        }
        self.input = rest.to_vec();
        Ok(())
    }

    fn add_memory(&mut self, share: Share) -> io::Result<()> {
        if self.memories.len() == MEMORIES {
            return Err(wrong("too many memories"));
        }
        self.memories
            .add(share)
            .map_err(|err| wrong(err.to_string()))
    }

    fn add_part(&mut self, number: u32, id: u32, offset: u64, len: u32) -> io::Result<()> {
        let memory = self.memories.get(id).map(DmaBuf::size);
        let size = memory.ok_or_else(|| wrong(format!("a part of memory {id}, which is none")))?;
        if len == 0 || !is_within(offset, len.into(), size as u64) {
            return Err(wrong(format!(
                "a part of {len} bytes at {offset} of {size}"
            )));
        }
        if self.peer_finished || number != self.expected {
            return Err(wrong("a part that does not follow the last one"));
        }
        if self.outbox.borrow() > WINDOW {
            return Err(wrong("more parts than may be lent"));
        }
        self.expected = number.wrapping_add(1);
        self.inbox.push_back(DmabufCmsg {
            frag_offset: offset,
            frag_size: len,
            frag_token: number,
            dmabuf_id: id,
            flags: 0,
        });
        Ok(())
    }

    fn came_back(&mut self, first: u32, count: u32) -> io::Result<()> {
        let left = self.lent.checked_sub(count).filter(|_| count > 0);
        self.lent = left.ok_or_else(|| wrong("more came back than was lent"))?;
        let completion = Completion {
            first,
            count: count.into(),
            copied: false,
        };
        self.flight.try_complete(completion)
    }

    /// Whether the peer may have one more.
    fn has_room(&self) -> bool {
        self.lent < WINDOW && self.flight.calls() < SPAN
    }
}

/// Whether so many bytes from there on are in a memory.
fn is_within(offset: u64, len: u64, size: u64) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= size)
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

/// An honest peer may still read what it has.
impl<T> Drop for Channel<'_, T> {
    fn drop(&mut self) {
        self.flight.forget();
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::unix::net::UnixDatagram;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use nix::sys::memfd::MFdFlags;

    use crate::dmabuf::memfd;
    use crate::recv::Frag;
    use crate::recv::Piece;
    use crate::token::TokenBatch;

    const SIZE: u64 = 1 << 16;
    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    fn memory() -> DmaBuf {
        DmaBuf::of_memfd(memfd(1 << 16, MFdFlags::empty()).unwrap()).unwrap()
    }

    fn end(socket: UnixStream) -> Channel<'static> {
        Channel::opening(socket.into(), DmaBuf::of_memfd).unwrap()
    }

    fn channel() -> (Channel<'static>, Channel<'static>) {
        let (a, b) = UnixStream::pair().unwrap();
        (end(a), end(b))
    }

    fn extent(offset: u64, len: u64) -> Extent {
        Extent { offset, len }
    }

    fn frags<'s>(rx: &mut impl Receive<'s>) -> Vec<Frag<'s>> {
        let pieces = rx.recv_timeout(LONG).unwrap();
        pieces
            .map(|piece| match piece {
                Piece::Frag(frag) => frag,
                _ => panic!("bytes in host memory"),
            })
            .collect()
    }

    fn extents(frags: &[Frag<'_>]) -> Vec<Extent> {
        let extent = |frag: &Frag<'_>| extent(frag.offset, frag.size.into());
        frags.iter().map(extent).collect()
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn only_streams_of_af_unix() {
        let (datagrams, _other) = UnixDatagram::pair().unwrap();
        let (tcp, _other) = crate::testing::connection([127, 0, 0, 1].into()).unwrap();
        let datagrams = Channel::<Extent>::new(&datagrams);
        for result in [datagrams, Channel::new(&tcp)] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    /// Sends by the trait, and receives by the trait.
    fn pass<'s>(
        tx: &mut impl Transmit<Vec<Extent>>,
        rx: &mut impl Receive<'s>,
        binding: &TxBinding,
    ) {
        let parts = vec![extent(7, 5), extent(0, SIZE), extent(SIZE - 1, 1)];
        tx.send(binding, parts.clone()).unwrap();
        let got = frags(rx);
        assert_eq!(extents(&got), parts);
        assert!(got.iter().all(|frag| frag.dmabuf_id == binding.id()));
        let err = tx.wait_timeout(SHORT).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        drop(got);
        let sent = tx.wait_timeout(LONG).unwrap().unwrap();
        assert_eq!((sent.source, sent.bytes), (parts, SIZE + 6));
        assert!(tx.wait().unwrap().is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn parts_arrive_and_come_back_both_ways() {
        let (a, b) = UnixStream::pair().unwrap();
        let open = |socket: UnixStream| {
            Channel::<Vec<Extent>>::opening(socket.into(), DmaBuf::of_memfd).unwrap()
        };
        let (mut a, mut b) = (open(a), open(b));
        let (one, other) = (memory(), memory());
        let first = a.share(&one).unwrap();
        let second = a.share(&other).unwrap();
        pass(&mut a, &mut b, &first);
        pass(&mut a, &mut b, &second);
        let back = b.share(&other).unwrap();
        pass(&mut b, &mut a, &back);
        rustix::io::pwrite(&other, b"seen", 0).unwrap();
        let map = b.memory(second.id()).unwrap().map().unwrap();
        drop((one, other));
        let mut bytes = [0; 4];
        rustix::io::pread(map.as_fd(), &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"seen");
        assert!(b.memory(3).is_none());
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_is_not_shared_is_not_sent() {
        let (mut a, _b) = channel();
        let memory = memory();
        let binding = a.share(&memory).unwrap();
        let nobody = TxBinding::of_another(NonZero::new(2).unwrap());
        for (binding, part, errno) in [
            (&binding, extent(SIZE, 1), libc::EFAULT),
            (&binding, extent(1, u64::MAX), libc::EFAULT),
            (&nobody, extent(0, 1), libc::EINVAL),
        ] {
            let err = a.send(binding, part).unwrap_err();
            assert_eq!((err.errno(), err.source), (Some(errno), Some(part)));
        }
        for _ in 1..MEMORIES {
            let _ = a.share(&memory).unwrap();
        }
        let err = a.share(&memory).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn who_holds_parts_makes_the_other_end_wait() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut a: Channel<'_, Vec<Extent>> = Channel::opening(a.into(), DmaBuf::of_memfd).unwrap();
        let mut b = end(b);
        let memory = memory();
        let binding = a.share(&memory).unwrap();
        let parts: Vec<_> = (0..u64::from(WINDOW) + 3).map(|n| extent(n, 1)).collect();
        let err = a.send_timeout(&binding, parts.clone(), SHORT).unwrap_err();
        assert_eq!(err.error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(err.sent, WINDOW.into());
        let mut held = frags(&mut b);
        assert_eq!(held.len(), WINDOW as usize);
        // Any of them.
        held.drain(10..12);
        let err = a
            .resume_timeout(&binding, err.rest.unwrap(), SHORT)
            .unwrap_err();
        assert_eq!(err.sent, 2);
        held.pop();
        a.resume_timeout(&binding, err.rest.unwrap(), LONG).unwrap();
        held.extend(frags(&mut b));
        let mut batch = TokenBatch::new(&b);
        drop(held.drain(..5));
        let count = held.len() as u64;
        for frag in held {
            batch.push(frag.token).unwrap();
        }
        batch.flush().unwrap();
        assert_eq!((batch.returned(), batch.held()), (count, 0));
        assert_eq!(a.wait().unwrap().unwrap().source, parts);
    }

    /// Which two threads are needed for: none of it has a system call of its own.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn a_stream_with_batches() {
        const COUNT: u64 = 10_000;
        let (a, b) = UnixStream::pair().unwrap();
        let mut a = end(a);
        let memory = memory();
        let binding = a.share(&memory).unwrap();
        let reader = thread::spawn(move || {
            let mut rx = Channel::<Extent>::opening((&b).into(), DmaBuf::of_memfd).unwrap();
            let mut batch = TokenBatch::new(&b);
            let mut next = 0;
            loop {
                let received = rx.recv_timeout(LONG).unwrap();
                if received.is_eof() {
                    return (next, batch.returned());
                }
                for piece in received {
                    let Piece::Frag(frag) = piece else {
                        panic!("bytes in host memory");
                    };
                    assert_eq!((frag.offset, frag.size), (next % SIZE, 1));
                    next += 1;
                    batch.push(frag.token).unwrap();
                }
                batch.flush().unwrap();
            }
        });
        for n in 0..COUNT {
            a.send_timeout(&binding, extent(n % SIZE, 1), LONG).unwrap();
        }
        a.finish().unwrap();
        let mut back = 0;
        while let Some(sent) = a.wait_timeout(LONG).unwrap() {
            assert_eq!(sent.source, extent(back % SIZE, 1));
            back += 1;
        }
        assert_eq!(back, COUNT);
        assert_eq!(reader.join().unwrap(), (COUNT, COUNT));
        let err = a.send(&binding, extent(0, 1)).unwrap_err();
        assert_eq!(err.error.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn a_reader_that_goes_returns_everything() {
        let (mut a, mut b) = channel();
        let binding = a.share(&memory()).unwrap();
        for n in 0..3 {
            a.send(&binding, extent(n, 1)).unwrap();
        }
        let held = frags(&mut b);
        drop(b);
        // Its tokens have the socket, too.
        let err = a.wait_timeout(SHORT).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        for frag in held {
            frag.token.into_id();
        }
        a.wait_timeout(LONG).unwrap_err();
        for n in 0..3 {
            assert_eq!(a.wait().unwrap().unwrap().source, extent(n, 1));
        }
        assert!(a.wait().unwrap().is_none());
        let err = a.send(&binding, extent(0, 1)).unwrap_err();
        assert_eq!(err.source, Some(extent(0, 1)));
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn an_end_that_goes_is_told_from_one_that_is_finished() {
        for finished in [false, true] {
            let (mut a, mut b) = channel();
            let binding = a.share(&memory()).unwrap();
            a.send(&binding, extent(1, 2)).unwrap();
            if finished {
                a.finish().unwrap();
            }
            drop(a);
            // It was heard of its end before anybody asked for parts.
            let answer = b.share(&memory()).map(drop);
            assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            let got = frags(&mut b);
            assert_eq!(extents(&got), [extent(1, 2)]);
            assert!(b.memory(1).is_some());
            drop(got);
            for _ in 0..2 {
                match b.recv() {
                    Ok(received) => assert!(finished && received.is_eof()),
                    Err(err) => {
                        assert!(!finished);
                        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
                    }
                }
            }
        }
    }

    /// Something that is to be kept.
    #[derive(Debug)]
    struct Kept(Arc<()>);

    impl Source for Kept {
        fn extents(&self) -> impl Iterator<Item = Extent> {
            [extent(0, 1)].into_iter()
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_is_lent_is_kept_when_the_channel_is_dropped() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut a = Channel::<Kept>::opening(a.into(), DmaBuf::of_memfd).unwrap();
        let mut b = end(b);
        let binding = a.share(&memory()).unwrap();
        let kept = Arc::new(());
        a.send(&binding, Kept(Arc::clone(&kept))).unwrap();
        frags(&mut b);
        assert!(Arc::ptr_eq(&a.wait().unwrap().unwrap().source.0, &kept));
        a.send(&binding, Kept(Arc::clone(&kept))).unwrap();
        let held = frags(&mut b);
        drop(a);
        assert_eq!(Arc::strong_count(&kept), 2, "it may still be read");
        drop(held);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn aborted() {
        let (mut a, mut b) = channel();
        let binding = a.share(&memory()).unwrap();
        a.send(&binding, extent(1, 2)).unwrap();
        a.abort().unwrap();
        assert_eq!(a.wait().unwrap().unwrap().source, extent(1, 2));
        for kind in [
            a.send(&binding, extent(1, 2)).unwrap_err().error.kind(),
            a.recv().unwrap_err().kind(),
        ] {
            assert_eq!(kind, io::ErrorKind::NotConnected);
        }
        frags(&mut b);
        assert_eq!(b.recv().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// What a receiver says of these records, after a memory and a part of it.
    fn heard(records: &[Record]) -> io::Error {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut b = end(b);
        let mut honest = end(a.try_clone().unwrap());
        let binding = honest.share(&memory()).unwrap();
        honest.send(&binding, extent(0, 1)).unwrap();
        let bytes: Vec<_> = records.iter().flat_map(|record| record.encode()).collect();
        a.write_all(&bytes).unwrap();
        let held = frags(&mut b);
        let err = loop {
            match b.recv_timeout(SHORT) {
                Ok(received) if received.is_eof() => panic!("an end"),
                Ok(received) => drop(received),
                Err(err) => break err,
            }
        };
        drop(held);
        err
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn parts_that_cannot_be() {
        let part = |number, id, offset, len| Record::Part {
            number,
            id,
            offset,
            len,
        };
        assert_eq!(
            heard(&[part(1, 1, SIZE - 1, 1)]).kind(),
            io::ErrorKind::TimedOut
        );
        let id = NonZero::new(2).unwrap();
        for record in [
            part(1, 1, SIZE, 1),
            part(1, 1, 0, u32::MAX),
            part(1, 1, u64::MAX, 1),
            part(1, 1, 5, 0),
            part(1, 2, 0, 1),
            part(1, 0, 0, 1),
            part(0, 1, 0, 1),
            part(2, 1, 0, 1),
            // Without a descriptor.
            Record::Memory { id, size: 0 },
            // Nothing was lent to it.
            Record::Back { first: 0, count: 1 },
            Record::Back {
                first: 0,
                count: u32::MAX,
            },
            Record::Back { first: 0, count: 0 },
        ] {
            assert_eq!(
                heard(&[record]).kind(),
                io::ErrorKind::InvalidData,
                "{record:?}"
            );
        }
        let after_the_end = [Record::End, Record::End];
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&after_the_end.map(Record::encode).concat())
            .unwrap();
        assert_eq!(
            end(b).recv().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            .unwrap();
        assert_eq!(
            end(b).recv().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    /// A peer that says what it likes, and has passed a memory.
    fn with_a_memory() -> (UnixStream, Channel<'static>) {
        let (a, b) = UnixStream::pair().unwrap();
        let b = end(b);
        let _ = end(a.try_clone().unwrap()).share(&memory()).unwrap();
        (a, b)
    }

    /// The record of the first byte of that, as the part of this number.
    fn byte(number: u32) -> Vec<u8> {
        let part = Record::Part {
            number,
            id: 1,
            offset: 0,
            len: 1,
        };
        part.encode().to_vec()
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn more_parts_than_may_be_lent() {
        let (mut a, mut b) = with_a_memory();
        let mut held = Vec::new();
        for number in 0..=WINDOW {
            a.write_all(&byte(number)).unwrap();
            match b.recv() {
                Ok(received) => held.extend(received.map(|piece| match piece {
                    Piece::Frag(frag) => frag,
                    _ => panic!("bytes in host memory"),
                })),
                Err(err) => {
                    assert_eq!((err.kind(), number), (io::ErrorKind::InvalidData, WINDOW));
                }
            }
        }
        assert_eq!(held.len(), WINDOW as usize);
    }

    /// Who does not read that it has parts again may not lend others: what it is to be told would pile up here.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn who_reads_nothing_lends_no_more() {
        /// More than there is room for in two sockets of this kind.
        const MANY: u32 = 1 << 16;
        let (mut a, mut b) = with_a_memory();
        let ended = (0..MANY).find_map(|number| {
            a.write_all(&byte(number)).unwrap();
            // Each part is given back at once.
            b.recv().err()
        });
        assert_eq!(ended.unwrap().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_was_not_lent_does_not_come_back() {
        for lies in [
            &[(2, 1)][..],
            &[(0, 3)],
            &[(0, 1), (0, 1)],
            &[(u32::MAX, 1)],
            &[(0, u32::MAX)],
            &[(1, 1), (0, 2)],
        ] {
            let (a, mut b) = UnixStream::pair().unwrap();
            let mut a = end(a);
            let binding = a.share(&memory()).unwrap();
            for n in 0..2 {
                a.send(&binding, extent(n, 1)).unwrap();
            }
            let mut left = vec![extent(0, 1), extent(1, 1)];
            for &(first, count) in lies {
                b.write_all(&Record::Back { first, count }.encode())
                    .unwrap();
            }
            let mut told = 0;
            while !left.is_empty() {
                match a.wait_timeout(LONG) {
                    Ok(sent) => left.retain(|part| *part != sent.as_ref().unwrap().source),
                    Err(err) => {
                        assert_eq!(err.kind(), io::ErrorKind::InvalidData, "{lies:?}");
                        told += 1;
                    }
                }
            }
            assert_eq!(told, 1, "{lies:?}");
            assert!(a.wait().unwrap().is_none());
            let err = a.send(&binding, extent(0, 1)).unwrap_err();
            assert_eq!(err.error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn records_may_come_in_bits() {
        let (mut a, mut b) = with_a_memory();
        let record = Record::Part {
            number: 0,
            id: 1,
            offset: 3,
            len: 4,
        };
        for byte in record.encode() {
            let err = b.recv_timeout(Duration::ZERO).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::TimedOut);
            a.write_all(&[byte]).unwrap();
        }
        assert_eq!(extents(&frags(&mut b)), [extent(3, 4)]);
    }

    #[test]
    fn what_is_in_a_memory() {
        for (offset, len, size, is) in [
            (0, 1, 1, true),
            (1, 0, 1, true),
            (1, 1, 1, false),
            (u64::MAX, 1, u64::MAX, false),
            (u64::MAX - 1, 1, u64::MAX, true),
        ] {
            assert_eq!(is_within(offset, len, size), is, "{offset} {len} {size}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// In whatever order parts are returned, sources come back once all of theirs are.
        #[test]
        #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
        fn sources_come_back_with_their_last_part(
            sources in proptest::collection::vec(1..6_usize, 1..12),
            order in proptest::collection::vec(any::<proptest::sample::Index>(), 66)
        ) {
            let (a, b) = UnixStream::pair().unwrap();
            let mut a = Channel::<Vec<Extent>>::opening(a.into(), DmaBuf::of_memfd).unwrap();
            let mut b = end(b);
            let binding = a.share(&memory()).unwrap();
            let mut left = sources.clone();
            let mut held = Vec::new();
            for (which, &count) in sources.iter().enumerate() {
                let source = vec![extent(which as u64, 1); count];
                a.send(&binding, source).unwrap();
                held.extend(frags(&mut b));
            }
            for index in order {
                if held.is_empty() {
                    break;
                }
                let frag = held.swap_remove(index.index(held.len()));
                let which = usize::try_from(frag.offset).unwrap();
                drop(frag);
                left[which] -= 1;
                match a.wait_timeout(Duration::ZERO) {
                    Ok(Some(sent)) => {
                        prop_assert_eq!(left[which], 0);
                        prop_assert_eq!(sent.source, vec![extent(which as u64, 1); sources[which]]);
                    }
                    Ok(None) => prop_assert!(false, "nothing was in flight"),
                    Err(err) => {
                        prop_assert_eq!(err.kind(), io::ErrorKind::TimedOut);
                        prop_assert!(left[which] > 0);
                    }
                }
            }
            prop_assert!(held.is_empty() && a.wait().unwrap().is_none());
        }
    }
}
