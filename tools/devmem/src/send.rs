// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Sending from a dma-buf: `sendmsg(MSG_ZEROCOPY)`, and when its memory is free again.

use std::error;
use std::fmt;
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::time::Duration;
use std::time::Instant;

use nix::poll::PollFlags;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt;

use crate::cmsg;
use crate::completion;
use crate::completion::InFlight;
use crate::completion::Key;
use crate::completion::Sent;
use crate::dmabuf::Extent;
use crate::dmabuf::Filled;
use crate::dmabuf::Region;
use crate::message;
use crate::netdev::TxBinding;
use crate::netlink::errno_of;
use crate::poll;
use crate::recv::Frag;
use crate::socket::Socket;
use crate::tcp;
use crate::tcp::TxSocket;
use crate::tcp::check_flags;

/// Most extents that the kernel takes in one call (`UIO_MAXIOV`).
pub const MAX_EXTENTS: usize = 1024;

/// What of a dma-buf is to be sent, and whatever has to be kept until it was.
///
/// A [`Sender`] owns it from [`send`](Sender::send) until the kernel no longer needs the memory.
pub trait Source {
    /// The bytes to send, in this order.
    fn extents(&self) -> impl Iterator<Item = Extent>;
}

impl Source for Region {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        [self.extent()].into_iter()
    }
}

impl Source for Filled {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        let Extent { offset, len } = self.region.extent();
        let len = len.min(self.len);
        [Extent { offset, len }].into_iter()
    }
}

/// A part of a dma-buf that nobody keeps from being overwritten.
impl Source for Extent {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        [*self].into_iter()
    }
}

/// What was received into a dma-buf is sent on from there, and returned to the NIC after that.
///
/// The dma-buf has to be bound for sending as well.
impl Source for Frag<'_> {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        let extent = Extent {
            offset: self.offset,
            len: self.size.into(),
        };
        [extent].into_iter()
    }
}

impl<T: Source> Source for Vec<T> {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        self.iter().flat_map(Source::extents)
    }
}

/// Lets `socket` send with `MSG_ZEROCOPY`.
///
/// # Errors
///
/// Those of `setsockopt(SO_ZEROCOPY)`.
pub fn enable_zerocopy(socket: impl AsFd) -> io::Result<()> {
    tcp::set_number(socket.as_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)
}

/// What the kernel is told of an extent. Fails if that is more than an iovec of this machine can say.
pub(crate) fn iovec(extent: &Extent) -> io::Result<libc::iovec> {
    match (usize::try_from(extent.offset), usize::try_from(extent.len)) {
        (Ok(offset), Ok(len)) => Ok(libc::iovec {
            // An offset, never dereferenced.
            iov_base: ptr::without_provenance_mut(offset),
            iov_len: len,
        }),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{extent:?} is beyond what this machine can address"),
        )),
    }
}

/// Sends parts of the dma-buf of a transmit binding with one call: [`TxSocket::send`].
pub(crate) fn send_dmabuf(
    socket: &TxSocket<'_>,
    dmabuf_id: NonZero<u32>,
    extents: &[Extent],
    flags: i32,
) -> io::Result<usize> {
    check_flags(flags)?;
    let mut iov: Vec<_> = extents.iter().map(iovec).collect::<io::Result<_>>()?;
    let mut control = cmsg::tx_control(dmabuf_id.get());
    let msg = message::header(
        (iov.as_mut_ptr(), iov.len()),
        (control.as_mut_ptr(), control.len()),
    )?;
    // SAFETY: `msg` points to iovecs and a control buffer, both readable for the lengths given. What the
    // iovecs hold are offsets into a dma-buf, which the kernel takes for addresses never: the socket is one
    // of TCP and connected, the number is not 0, and the flags do not change that. A kernel that does not
    // know the control message refuses the call.
    let ret = unsafe {
        libc::sendmsg(
            socket.fd().as_raw_fd(),
            &msg,
            flags | libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(ret).map_err(|_| io::Error::last_os_error())
}

/// Why a source was not sent, or not all of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct SendError<T> {
    /// What `sendmsg()` said.
    pub error: io::Error,
    /// Bytes that were sent before that.
    pub sent: u64,
    /// The source, if nothing was sent. Otherwise it comes back as all others, if any do: see [`Sender`].
    pub source: Option<T>,
    /// What was not sent of it, to go on with, if a part was.
    pub rest: Option<Rest>,
}

/// What is left of a source of which a part was sent.
///
/// [`Sender::resume`] goes on with it, as long as the source has not come back. Who drops it leaves it at what was
/// sent: the source comes back in any case, and [`Sent::bytes`] tells how much that is.
#[derive(Debug)]
pub struct Rest {
    /// What the sender has in flight.
    flight: u64,
    key: Key,
    dmabuf_id: NonZero<u32>,
    extents: Vec<Extent>,
}

impl Rest {
    /// How many bytes are left.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sent {
            0 => self.error.fmt(f),
            sent => write!(f, "{} (after {sent} bytes)", self.error),
        }
    }
}

impl<T: fmt::Debug> error::Error for SendError<T> {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.error)
    }
}

impl<T> SendError<T> {
    /// The error number, if there is one.
    pub fn errno(&self) -> Option<i32> {
        errno_of(&self.error)
    }
}

impl<T> From<SendError<T>> for io::Error {
    fn from(err: SendError<T>) -> Self {
        err.error
    }
}

/// Sends from dma-bufs over a TCP socket.
///
/// The kernel reads the memory later, for as long as the peer may ask for it again. So a sender owns
/// each [`Source`] that it sends, and gives it back by [`wait`](Self::wait) or
/// [`completed`](Self::completed) when its memory is free. What is in flight when the sender is dropped
/// never comes back (tokens return when their socket is closed): wait for it if that matters, after
/// [`abort`](Self::abort) if it shall not take long.
///
/// The kernel counts zero-copy calls from the first one of a socket on. So a socket has one sender, once and
/// for all, and nothing else may send with `MSG_ZEROCOPY` there beside it. Other calls, `write()` say, may
/// be mixed in.
///
/// Should that happen nevertheless, or should a call fail so that nobody knows whether the kernel made it
/// (which only io_uring's can), then nothing tells any more what the kernel still reads. From then on a sender
/// gives back what it knew to be free, and nothing else, ever: calls fail with
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe).
#[derive(Debug)]
pub struct Sender<'s, T> {
    socket: TxSocket<'s>,
    flight: InFlight<T>,
}

impl<'s, T: Source> Sender<'s, T> {
    /// Makes a socket ready for sending from dma-bufs. It has to be connected, by TCP, and `SO_ZEROCOPY` has
    /// to be off.
    ///
    /// # Errors
    ///
    /// Those of [`TxSocket::new`].
    pub fn new(socket: impl Into<Socket<'s>>) -> io::Result<Self> {
        Ok(Self {
            socket: TxSocket::new(socket)?,
            flight: InFlight::new(),
        })
    }

    /// Sends all of a source, which lies in the dma-buf of `binding`.
    ///
    /// Waits for room in the socket, and if the kernel has no memory for more calls in flight
    /// (`ENOBUFS`), for some to complete.
    ///
    /// # Errors
    ///
    /// - those of `sendmsg()`: `EINVAL` if this process may not send from the binding, or there is none;
    ///   `EFAULT` for what lies outside of the dma-buf; `ENODEV` if the connection goes through another device, or the
    ///   exporter of the dma-buf took the memory back; `EIO` if it did so before all was acknowledged that was sent from
    ///   there, by which the connection is over; `ECONNABORTED` if the binding was
    ///   [flushed](crate::netdev::Netdev::flush) by then; `EPIPE` and `ECONNRESET`;
    ///   [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room, on a socket that does not wait, or waits only for
    ///   a while (`SO_SNDTIMEO`);
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput) for an extent beyond what this machine can address;
    /// - [`BrokenPipe`](io::ErrorKind::BrokenPipe) from a sender that lost track, see above.
    ///
    /// [`SendError`] tells how much was sent before that.
    pub fn send(&mut self, binding: &TxBinding, source: T) -> Result<(), SendError<T>> {
        self.send_flags(binding, source, 0)
    }

    /// Like [`send`](Self::send), with more flags of `sendmsg()`: `MSG_MORE`, `MSG_DONTWAIT`, `MSG_OOB`,
    /// `MSG_EOR`, `MSG_CONFIRM`, `MSG_DONTROUTE`.
    ///
    /// # Errors
    ///
    /// As there; [`InvalidInput`](io::ErrorKind::InvalidInput) for any other flag.
    pub fn send_flags(
        &mut self,
        binding: &TxBinding,
        source: T,
        flags: i32,
    ) -> Result<(), SendError<T>> {
        send_all(self, binding.number(), source, flags)
    }

    /// Like [`send`](Self::send), but no longer than a while, whatever the socket's own timeout is.
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
        send_all(self, binding.number(), source, How::within(timeout))
    }

    /// Sends what an earlier call has left, from the same binding.
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send), with what is left then; [`SendError::source`] is always `None`.
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the rest is of another sender or another binding, or if the
    /// source was given back meanwhile.
    pub fn resume(&mut self, binding: &TxBinding, rest: Rest) -> Result<(), SendError<T>> {
        self.resume_flags(binding, rest, 0)
    }

    /// Like [`resume`](Self::resume), with the flags of [`send_flags`](Self::send_flags).
    ///
    /// # Errors
    ///
    /// Those of both.
    pub fn resume_flags(
        &mut self,
        binding: &TxBinding,
        rest: Rest,
        flags: i32,
    ) -> Result<(), SendError<T>> {
        resume(self, binding.number(), rest, flags)
    }

    /// Like [`resume`](Self::resume), but no longer than a while.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn resume_timeout(
        &mut self,
        binding: &TxBinding,
        rest: Rest,
        timeout: Duration,
    ) -> Result<(), SendError<T>> {
        resume(self, binding.number(), rest, How::within(timeout))
    }

    /// Ends the connection at once: the peer gets a reset, and what it has not acknowledged is never sent.
    ///
    /// So what is in flight comes back soon, however slow the peer is, as [`wait`](Self::wait) says. From here on calls
    /// that send fail with [`NotConnected`](io::ErrorKind::NotConnected).
    ///
    /// # Errors
    ///
    /// Those of [`tcp::abort`]: on some kernels `EBUSY` while another thread waits for something on this socket.
    /// Nothing has changed then.
    pub fn abort(&mut self) -> io::Result<()> {
        abort(&mut self.flight, self.socket.fd())
    }

    /// Waits until a call that failed is worth another try; fails if it never will be.
    fn before_retry(&mut self, err: io::Error, how: How) -> io::Result<()> {
        match err.raw_os_error() {
            Some(libc::EINTR) => Ok(()),
            Some(libc::EAGAIN) if how.deadline.is_some() => self.wait_for_room(how.deadline),
            // The limit is on calls that are not completed, or whose completion has not been read.
            Some(libc::ENOBUFS) if self.reap()? > 0 => Ok(()),
            Some(libc::ENOBUFS) if self.in_flight() > 0 && how.waits() => {
                self.wait_until_reaped(how.deadline)
            }
            _ => Err(err),
        }
    }

    /// Waits until another call may send something.
    fn wait_for_room(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            let ready = poll::ready(self.socket.fd(), PollFlags::POLLOUT, deadline)?;
            // A completion is told as an error is.
            let reaped = self.reap()?;
            if ready.contains(PollFlags::POLLOUT) {
                return Ok(());
            }
            if reaped == 0 {
                // Another error, or the end of the connection: the call tells.
                std::thread::sleep(poll::PAUSE);
                return Ok(());
            }
        }
    }

    /// A source whose memory is free again, if there is one by now.
    ///
    /// # Errors
    ///
    /// Those of `recvmsg(MSG_ERRQUEUE)`; [`InvalidData`](io::ErrorKind::InvalidData) when the sender lost track, and
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) from then on.
    pub fn completed(&mut self) -> io::Result<Option<Sent<T>>> {
        if self.flight.check().is_ok() {
            self.reap()?;
        }
        self.flight.done_or_lost()
    }

    /// Waits for a source whose memory is free again: `None` if there is nothing to wait for.
    ///
    /// If the connection breaks, the error is told once. What is in flight completes nevertheless, so
    /// go on waiting for it.
    ///
    /// # Errors
    ///
    /// Those of [`completed`](Self::completed), and of the connection.
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
            if let Some(sent) = self.completed()? {
                return Ok(Some(sent));
            }
            if self.in_flight() == 0 {
                return Ok(None);
            }
            self.wait_until_reaped(deadline)?;
        }
    }

    /// Calls of `sendmsg()` that are not known to be completed.
    pub fn in_flight(&self) -> usize {
        self.flight.calls()
    }

    /// The socket.
    #[cfg(feature = "tokio")]
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// Takes what is on the error queue; returns how many messages that were.
    pub(crate) fn reap(&mut self) -> io::Result<usize> {
        let mut messages = 0;
        while let Some(completions) = completion::read(self.socket.fd())? {
            messages += 1;
            for completion in completions {
                self.flight.complete(completion)?;
            }
        }
        Ok(messages)
    }

    fn wait_until_reaped(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            poll::ready(self.socket.fd(), PollFlags::empty(), deadline)?;
            if self.reap()? > 0 {
                return Ok(());
            }
            // Not the error queue, but the connection's own error, or its end.
            match getsockopt(&self.socket.fd(), sockopt::SocketError)? {
                0 => std::thread::sleep(poll::PAUSE),
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

/// How calls are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// More flags of `sendmsg()`.
    pub(crate) flags: i32,
    /// Until when they may wait, if that is not the socket's affair.
    pub(crate) deadline: Option<Instant>,
}

impl How {
    pub(crate) fn within(timeout: Duration) -> Self {
        Self {
            flags: 0,
            deadline: poll::end_of(timeout),
        }
    }

    /// Whether they may wait at all.
    pub(crate) fn waits(self) -> bool {
        self.flags & libc::MSG_DONTWAIT == 0
    }
}

impl From<i32> for How {
    fn from(flags: i32) -> Self {
        Self {
            flags,
            deadline: None,
        }
    }
}

/// Ends the connection of what is in flight: what `abort()` of a sender does.
pub(crate) fn abort<T>(flight: &mut InFlight<T>, socket: BorrowedFd<'_>) -> io::Result<()> {
    tcp::abort(socket)?;
    flight.end();
    // That it was reset is no news to who waits for completions.
    getsockopt(&socket, sockopt::SocketError)?;
    Ok(())
}

/// Calls of `sendmsg()`, however they are made: what the senders differ in.
pub(crate) trait Calls<T> {
    /// The calls that are not completed, and their sources.
    fn flight(&mut self) -> &mut InFlight<T>;

    /// Sends from the front of `extents` with one call; returns how many bytes, or `None` if it is worth
    /// another try.
    fn call(
        &mut self,
        dmabuf_id: NonZero<u32>,
        extents: &[Extent],
        how: How,
    ) -> io::Result<Option<u64>>;
}

impl<T: Source> Calls<T> for Sender<'_, T> {
    fn flight(&mut self) -> &mut InFlight<T> {
        &mut self.flight
    }

    fn call(
        &mut self,
        dmabuf_id: NonZero<u32>,
        extents: &[Extent],
        how: How,
    ) -> io::Result<Option<u64>> {
        // The waiting is done here then.
        let dont_wait = how.deadline.map_or(0, |_| libc::MSG_DONTWAIT);
        match send_dmabuf(&self.socket, dmabuf_id, extents, how.flags | dont_wait) {
            Ok(bytes) => Ok(Some(bytes as u64)),
            Err(err) => self.before_retry(err, how).map(|()| None),
        }
    }
}

/// Sends all of a source, which lies in the dma-buf of a binding, with as many calls as that takes.
pub(crate) fn send_all<T: Source>(
    sender: &mut impl Calls<T>,
    dmabuf_id: NonZero<u32>,
    source: T,
    how: impl Into<How>,
) -> Result<(), SendError<T>> {
    let rest = open(sender, dmabuf_id, source)?;
    send_rest(sender, rest, how.into())
}

/// Takes over a source of which nothing has been sent: all of it is left.
pub(crate) fn open<T: Source>(
    sender: &mut impl Calls<T>,
    dmabuf_id: NonZero<u32>,
    source: T,
) -> Result<Rest, SendError<T>> {
    if let Err(error) = sender.flight().check_open() {
        return Err(SendError {
            error,
            sent: 0,
            source: Some(source),
            rest: None,
        });
    }
    let extents = source.extents().filter(|extent| extent.len > 0).collect();
    Ok(Rest {
        flight: sender.flight().id(),
        key: sender.flight().open(source),
        dmabuf_id,
        extents,
    })
}

/// Sends what is left of a source: see [`Sender::resume`].
pub(crate) fn resume<T>(
    sender: &mut impl Calls<T>,
    dmabuf_id: NonZero<u32>,
    rest: Rest,
    how: impl Into<How>,
) -> Result<(), SendError<T>> {
    let rest = reopen(sender, dmabuf_id, rest)?;
    send_rest(sender, rest, how.into())
}

/// Goes on with the source of a rest.
pub(crate) fn reopen<T>(
    sender: &mut impl Calls<T>,
    dmabuf_id: NonZero<u32>,
    rest: Rest,
) -> Result<Rest, SendError<T>> {
    let flight = sender.flight();
    let other = match (rest.flight == flight.id(), rest.dmabuf_id == dmabuf_id) {
        (false, _) => Err("the rest is of another sender"),
        (true, false) => Err("the rest is of another binding"),
        (true, true) => Ok(()),
    };
    let open = other
        .map_err(|what| io::Error::new(io::ErrorKind::InvalidInput, what))
        .and_then(|()| flight.check_open());
    let (error, rest) = match open {
        Err(error) => (error, Some(rest)),
        Ok(()) => match flight.reopen(rest.key) {
            Ok(()) => return Ok(rest),
            // It is nobody's any more.
            Err(error) => (error, None),
        },
    };
    Err(SendError {
        error,
        sent: 0,
        source: None,
        rest,
    })
}

/// Sends the rest of an open source, which may be all of it, and closes it.
fn send_rest<T>(sender: &mut impl Calls<T>, mut rest: Rest, how: How) -> Result<(), SendError<T>> {
    let (sent, result) = send_some(sender, &mut rest, how);
    close(sender, rest, sent, result)
}

/// Sends what it can of the rest of an open source, which it shortens by that; returns how many bytes it was, and
/// why it was not all.
pub(crate) fn send_some<T>(
    sender: &mut impl Calls<T>,
    rest: &mut Rest,
    how: How,
) -> (u64, io::Result<()>) {
    let (key, dmabuf_id) = (rest.key, rest.dmabuf_id);
    match send_extents(sender, key, dmabuf_id, &mut rest.extents, how) {
        Ok(sent) => {
            rest.extents.clear();
            (sent, Ok(()))
        }
        Err((sent, left, error)) => {
            rest.extents.drain(..rest.extents.len() - left);
            (sent, Err(error))
        }
    }
}

/// Closes the source of a rest, after so many bytes and with this result of sending them.
pub(crate) fn close<T>(
    sender: &mut impl Calls<T>,
    rest: Rest,
    sent: u64,
    result: io::Result<()>,
) -> Result<(), SendError<T>> {
    let flight = sender.flight();
    let source = flight.close(rest.key);
    match result {
        Ok(()) => {
            // There was nothing to send.
            if let Some(source) = source {
                flight.give_back(source);
            }
            Ok(())
        }
        Err(error) => Err(SendError {
            error,
            sent,
            rest: flight.has(rest.key).then_some(rest),
            source,
        }),
    }
}

/// Sends `extents`, which it shortens by what was sent; returns how much that was. If it fails it tells that, too, and
/// how many of the extents are left.
fn send_extents<T>(
    sender: &mut impl Calls<T>,
    key: Key,
    dmabuf_id: NonZero<u32>,
    extents: &mut [Extent],
    how: How,
) -> Result<u64, (u64, usize, io::Error)> {
    let mut rest = extents;
    let mut sent = 0;
    while !rest.is_empty() {
        let now = rest.len().min(MAX_EXTENTS);
        let more = if now < rest.len() { libc::MSG_MORE } else { 0 };
        let flags = how.flags | more;
        let result = sender.call(dmabuf_id, &rest[..now], How { flags, ..how });
        if let Some(bytes) = result.map_err(|error| (sent, rest.len(), error))? {
            if bytes == 0 {
                // The kernel does not count such a call, and would not come to an end.
                return Err((sent, rest.len(), io::ErrorKind::WriteZero.into()));
            }
            sender.flight().add_call(key, bytes);
            sent += bytes;
            rest = advance(rest, bytes);
        }
    }
    Ok(sent)
}

/// What sends over a socket: the [`Sender`] here, that of [`uring`](crate::uring), and a
/// [`Channel`](crate::local::Channel).
pub trait Transmit<T> {
    /// Sends all of a source, which lies in the dma-buf of `binding`.
    ///
    /// # Errors
    ///
    /// Those of [`Sender::send`].
    fn send(&mut self, binding: &TxBinding, source: T) -> Result<(), SendError<T>>;

    /// Waits for a source whose memory is free again: `None` if there is nothing to wait for.
    ///
    /// # Errors
    ///
    /// Those of [`Sender::wait`].
    fn wait(&mut self) -> io::Result<Option<Sent<T>>>;

    /// Like [`send`](Self::send), but no longer than a while.
    ///
    /// # Errors
    ///
    /// Those of [`Sender::send_timeout`].
    fn send_timeout(
        &mut self,
        binding: &TxBinding,
        source: T,
        timeout: Duration,
    ) -> Result<(), SendError<T>>;

    /// Sends what an earlier call has left, for no longer than a while.
    ///
    /// # Errors
    ///
    /// Those of [`Sender::resume_timeout`].
    fn resume_timeout(
        &mut self,
        binding: &TxBinding,
        rest: Rest,
        timeout: Duration,
    ) -> Result<(), SendError<T>>;

    /// Like [`wait`](Self::wait), but no longer than a while.
    ///
    /// # Errors
    ///
    /// Those of [`Sender::wait_timeout`].
    fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<Sent<T>>>;

    /// Ends the connection at once, so that everything comes back.
    ///
    /// # Errors
    ///
    /// Those of [`Sender::abort`].
    fn abort(&mut self) -> io::Result<()>;
}

impl<T: Source> Transmit<T> for Sender<'_, T> {
    fn send(&mut self, binding: &TxBinding, source: T) -> Result<(), SendError<T>> {
        Sender::send(self, binding, source)
    }

    fn wait(&mut self) -> io::Result<Option<Sent<T>>> {
        Sender::wait(self)
    }

    fn send_timeout(
        &mut self,
        binding: &TxBinding,
        source: T,
        timeout: Duration,
    ) -> Result<(), SendError<T>> {
        Sender::send_timeout(self, binding, source, timeout)
    }

    fn resume_timeout(
        &mut self,
        binding: &TxBinding,
        rest: Rest,
        timeout: Duration,
    ) -> Result<(), SendError<T>> {
        Sender::resume_timeout(self, binding, rest, timeout)
    }

    fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<Sent<T>>> {
        Sender::wait_timeout(self, timeout)
    }

    fn abort(&mut self) -> io::Result<()> {
        Sender::abort(self)
    }
}

#[cfg(feature = "tokio")]
impl<T> Sender<'_, T> {
    /// Leaves an open source at what was sent of it, for now.
    pub(crate) fn set_aside(&mut self, rest: &Rest) {
        self.flight.set_aside(rest.key);
    }

    /// Whether a rest is of this sender, and its source has not come back.
    pub(crate) fn has(&self, rest: &Rest) -> bool {
        rest.flight == self.flight.id() && self.flight.has(rest.key)
    }

    /// Gives back a source of which nothing was sent.
    pub(crate) fn give_back(&mut self, source: T) {
        self.flight.give_back(source);
    }
}

impl<T> Drop for Sender<'_, T> {
    fn drop(&mut self) {
        self.flight.forget();
    }
}

/// Takes `bytes` from the front of `extents`.
fn advance(extents: &mut [Extent], mut bytes: u64) -> &mut [Extent] {
    let whole = extents
        .iter()
        .take_while(|extent| {
            let all_of_it = extent.len <= bytes;
            if all_of_it {
                bytes -= extent.len;
            }
            all_of_it
        })
        .count();
    let rest = &mut extents[whole..];
    if let Some(first) = rest.first_mut() {
        first.offset += bytes;
        first.len -= bytes;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::connection;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::io::Read;
    use std::io::Write;
    use std::net::Ipv4Addr;

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        let extent = (0..1u64 << 40, 1..40u64).prop_map(|(offset, len)| Extent { offset, len });
        proptest::collection::vec(extent, 0..20)
    }

    fn bytes(extents: &[Extent]) -> Vec<u64> {
        extents
            .iter()
            .flat_map(|extent| extent.offset..extent.offset + extent.len)
            .collect()
    }

    const NOBODY: NonZero<u32> = NonZero::new(0x7fff_fff0).unwrap();

    /// Somebody else sends with `MSG_ZEROCOPY` beside a sender.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn completions_of_others_end_a_sender() {
        let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut sender = Sender::new(&a).unwrap();
        assert!(sender.wait().unwrap().is_none());
        // SAFETY: The kernel only reads the bytes, which are there for good.
        let sent =
            unsafe { libc::send(a.as_raw_fd(), b"x".as_ptr().cast(), 1, libc::MSG_ZEROCOPY) };
        assert_eq!(sent, 1);
        let err = loop {
            match sender.completed() {
                Ok(None) => std::thread::sleep(poll::PAUSE),
                Ok(Some(_)) => panic!("nothing was sent"),
                Err(err) => break err,
            }
        };
        assert_eq!(err.kind(), io::ErrorKind::InvalidData);
        assert_lost(&mut sender);
    }

    fn assert_lost(sender: &mut Sender<'_, Extent>) {
        let extent = Extent { offset: 0, len: 1 };
        for _ in 0..2 {
            let err = send_all(sender, NOBODY, extent, 0).unwrap_err();
            assert_eq!((err.source, err.sent), (Some(extent), 0));
            for err in [
                err.error,
                sender.completed().unwrap_err(),
                sender.wait().unwrap_err(),
                sender.wait_timeout(Duration::ZERO).unwrap_err(),
            ] {
                assert_eq!(err.kind(), io::ErrorKind::BrokenPipe);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_was_not_sent_comes_back() {
        let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut sender = Sender::new(&a).unwrap();
        for (offset, flags) in [
            (0, 0),
            (0, libc::MSG_WAITALL),
            (u64::MAX, libc::MSG_FASTOPEN),
        ] {
            let extent = Extent { offset, len: 1 };
            let err = send_all(&mut sender, NOBODY, extent, flags).unwrap_err();
            assert_eq!((err.source, err.sent), (Some(extent), 0));
            assert_eq!(sender.in_flight(), 0);
            assert!(sender.wait().unwrap().is_none());
        }
    }

    /// A connection through which some of what is called for goes.
    struct Script {
        flight: InFlight<Vec<Extent>>,
        calls: VecDeque<Result<u64, i32>>,
        gone: Vec<u64>,
    }

    impl Calls<Vec<Extent>> for Script {
        fn flight(&mut self) -> &mut InFlight<Vec<Extent>> {
            &mut self.flight
        }

        fn call(&mut self, _: NonZero<u32>, extents: &[Extent], _: How) -> io::Result<Option<u64>> {
            match self.calls.pop_front() {
                Some(Err(errno)) => Err(io::Error::from_raw_os_error(errno)),
                at_most => {
                    let mut left = bytes(extents);
                    if let Some(Ok(at_most)) = at_most {
                        left.truncate(usize::try_from(at_most).unwrap().max(1));
                    }
                    self.gone.extend(&left);
                    Ok(Some(left.len() as u64))
                }
            }
        }
    }

    impl Script {
        fn new(calls: impl IntoIterator<Item = Result<u64, i32>>) -> Self {
            Self {
                flight: InFlight::new(),
                calls: calls.into_iter().collect(),
                gone: Vec::new(),
            }
        }
    }

    const OTHER: NonZero<u32> = NonZero::new(7).unwrap();

    #[test]
    fn a_rest_is_of_one_sender_and_one_binding() {
        let source = vec![Extent { offset: 10, len: 5 }];
        let mut sender = Script::new([Ok(2), Err(libc::EAGAIN)]);
        let err = send_all(&mut sender, NOBODY, source.clone(), 0).unwrap_err();
        assert_eq!((err.sent, err.errno()), (2, Some(libc::EAGAIN)));
        let rest = err.rest.unwrap();
        assert_eq!(rest.bytes(), 3);

        let err = resume(&mut Script::new([]), NOBODY, rest, 0).unwrap_err();
        assert_eq!(err.error.kind(), io::ErrorKind::InvalidInput);
        let err = resume(&mut sender, OTHER, err.rest.unwrap(), 0).unwrap_err();
        assert_eq!(err.error.kind(), io::ErrorKind::InvalidInput);
        sender.flight.end();
        let err = resume(&mut sender, NOBODY, err.rest.unwrap(), 0).unwrap_err();
        assert_eq!(err.error.kind(), io::ErrorKind::NotConnected);
        assert!(err.rest.is_some());
        assert_eq!(sender.gone, [10, 11]);

        // All or nothing leaves no rest.
        let mut sender = Script::new([Err(libc::EAGAIN), Ok(5)]);
        let err = send_all(&mut sender, NOBODY, source.clone(), 0).unwrap_err();
        assert_eq!(
            (err.rest.is_none(), err.source),
            (true, Some(source.clone()))
        );
        send_all(&mut sender, NOBODY, source, 0).unwrap();
    }

    #[test]
    fn what_was_given_back_does_not_go_on() {
        let mut sender = Script::new([Ok(1), Err(libc::EAGAIN)]);
        let source = vec![Extent { offset: 0, len: 5 }];
        let err = send_all(&mut sender, NOBODY, source, 0).unwrap_err();
        let completion = completion::Completion {
            first: 0,
            count: 1,
            copied: false,
        };
        sender.flight.complete(completion).unwrap();
        assert_eq!(sender.flight.take_done().map(|sent| sent.bytes), Some(1));
        let err = resume(&mut sender, NOBODY, err.rest.unwrap(), 0).unwrap_err();
        assert_eq!(err.error.kind(), io::ErrorKind::InvalidInput);
        assert!(err.rest.is_none() && err.source.is_none());
        assert_eq!(sender.gone, [0]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "what is lost is leaked")]
    fn nothing_goes_on_when_nobody_knows_what_is_read() {
        let mut sender = Script::new([Ok(1), Err(libc::EAGAIN)]);
        let source = vec![Extent { offset: 0, len: 5 }];
        let err = send_all(&mut sender, NOBODY, source, 0).unwrap_err();
        sender.flight.lose(&io::Error::other("meant"));
        let err = resume(&mut sender, NOBODY, err.rest.unwrap(), 0).unwrap_err();
        assert_eq!(err.error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(sender.gone, [0]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn room_is_waited_for_and_for_no_longer_than_that() {
        const SHORT: Duration = Duration::from_millis(20);
        let (mut a, mut b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        a.set_nonblocking(true).unwrap();
        let filler = a.try_clone().unwrap();
        let mut sender = Sender::<Extent>::new(&filler).unwrap();
        sender.wait_for_room(poll::end_of(SHORT)).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut filled = 0;
        // There may be some again when what is on the way arrives, or is acknowledged.
        let (err, waited) = loop {
            let before = filled;
            while let Ok(len) = a.write(&buffer) {
                filled += len;
            }
            assert!(filled > before, "what was waited for is no room");
            let start = Instant::now();
            if let Err(err) = sender.wait_for_room(poll::end_of(SHORT)) {
                break (err, start.elapsed());
            }
        };
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        assert!(waited >= SHORT);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while filled > 0 {
                    filled -= b.read(&mut buffer).unwrap();
                }
            });
            let deadline = poll::end_of(Duration::from_secs(60));
            sender.wait_for_room(deadline).unwrap();
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn an_aborted_connection_is_no_error_and_sends_nothing() {
        let (a, mut b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut sender = Sender::new(&a).unwrap();
        sender.abort().unwrap();
        assert!(sender.wait().unwrap().is_none());
        assert!(sender.completed().unwrap().is_none());
        let extent = Extent { offset: 0, len: 1 };
        let err = send_all(&mut sender, NOBODY, extent, 0).unwrap_err();
        assert_eq!(err.error.kind(), io::ErrorKind::NotConnected);
        assert_eq!(err.source, Some(extent));
        let err = b.read(&mut [0]).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn an_iovec_says_all_of_an_extent_or_there_is_none() {
        for (offset, len) in [
            (0, 1),
            (1 << 31, 7),
            (1 << 32, 1),
            (1, 1 << 32),
            (u64::MAX, 2),
        ] {
            let extent = Extent { offset, len };
            match iovec(&extent) {
                Ok(iovec) => {
                    let said = (iovec.iov_base.addr() as u64, iovec.iov_len as u64);
                    assert_eq!(said, (offset, len));
                }
                Err(err) => {
                    assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
                    assert!(offset.max(len) > usize::MAX as u64, "{extent:?}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_byte_goes_once_and_in_order(
            extents in extents(),
            calls in proptest::collection::vec(
                prop_oneof![2 => (1..50u64).prop_map(Ok), 1 => Just(Err(libc::EAGAIN))], 0..40)
        ) {
            let all = bytes(&extents);
            let mut sender = Script::new(calls);
            let mut sent = 0;
            let mut source = Some(extents);
            let mut rest = None;
            loop {
                let result = match (source.take(), rest.take()) {
                    (Some(source), _) => send_all(&mut sender, NOBODY, source, 0),
                    (None, Some(rest)) => resume(&mut sender, NOBODY, rest, 0),
                    (None, None) => panic!("neither the source nor a rest"),
                };
                let Err(err) = result else { break };
                sent += err.sent;
                prop_assert_eq!(&sender.gone, &all[..usize::try_from(sent).unwrap()]);
                if let Some(rest) = &err.rest {
                    prop_assert_eq!(rest.bytes() + sent, all.len() as u64);
                }
                (source, rest) = (err.source, err.rest);
            }
            prop_assert_eq!(sender.gone, all);
        }

        #[test]
        fn advancing_takes_bytes_from_the_front(
            mut extents in extents(), steps in proptest::collection::vec(0..60u64, 0..20)
        ) {
            let all = bytes(&extents);
            let mut at = 0;
            let mut rest = &mut extents[..];
            for step in steps {
                let step = step.min((all.len() - at) as u64);
                at += usize::try_from(step).unwrap();
                rest = advance(rest, step);
                prop_assert_eq!(&bytes(rest), &all[at..]);
                prop_assert!(rest.iter().all(|extent| extent.len > 0));
            }
        }
    }
}
