// SPDX-License-Identifier: GPL-2.0

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

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
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
use crate::recv::Frag;
use crate::socket::Socket;
use crate::tcp;
use crate::tcp::TxSocket;
use crate::tcp::check_flags;

/// Most extents that the kernel takes in one call (`UIO_MAXIOV`).
pub const MAX_EXTENTS: usize = 1024;

/// How long to wait before another look at the error queue of a socket that is closed already.
pub(crate) const CLOSED: Duration = Duration::from_millis(2);

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
/// never comes back (tokens return when their socket is closed): wait for it if that matters.
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
    ///   `EFAULT` for what lies outside of the dma-buf; `ENODEV` if the connection goes through another device;
    ///   `EPIPE` and `ECONNRESET`; [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room, on a socket that does
    ///   not wait, or waits only for a while (`SO_SNDTIMEO`);
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

    /// Waits until a call that failed is worth another try; fails if it never will be.
    fn before_retry(&mut self, err: io::Error, flags: i32) -> io::Result<()> {
        match err.raw_os_error() {
            Some(libc::EINTR) => Ok(()),
            // The limit is on calls that are not completed, or whose completion has not been read.
            Some(libc::ENOBUFS) if self.reap()? > 0 => Ok(()),
            Some(libc::ENOBUFS) if self.in_flight() > 0 && flags & libc::MSG_DONTWAIT == 0 => {
                self.wait_until_reaped(None)
            }
            _ => Err(err),
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
        self.wait_until(Some(Instant::now() + timeout))
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

    /// Takes what is on the error queue; returns how many messages that were.
    fn reap(&mut self) -> io::Result<usize> {
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
            wait_for_error_queue(self.socket.fd(), deadline)?;
            if self.reap()? > 0 {
                return Ok(());
            }
            // Not the error queue, but the connection's own error, or its end.
            match getsockopt(&self.socket.fd(), sockopt::SocketError)? {
                0 => std::thread::sleep(CLOSED),
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
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
        flags: i32,
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
        flags: i32,
    ) -> io::Result<Option<u64>> {
        match send_dmabuf(&self.socket, dmabuf_id, extents, flags) {
            Ok(bytes) => Ok(Some(bytes as u64)),
            Err(err) => self.before_retry(err, flags).map(|()| None),
        }
    }
}

/// Sends all of a source, which lies in the dma-buf of a binding, with as many calls as that takes.
pub(crate) fn send_all<T: Source>(
    sender: &mut impl Calls<T>,
    dmabuf_id: NonZero<u32>,
    source: T,
    flags: i32,
) -> Result<(), SendError<T>> {
    if let Err(error) = sender.flight().check() {
        return Err(SendError {
            error,
            sent: 0,
            source: Some(source),
        });
    }
    let mut extents: Vec<_> = source.extents().filter(|extent| extent.len > 0).collect();
    let key = sender.flight().open(source);
    let result = send_extents(sender, key, dmabuf_id, &mut extents, flags);
    let source = sender.flight().close(key);
    result.map_err(|(sent, error)| SendError {
        error,
        sent,
        source,
    })
}

/// Sends `extents`, which it shortens by what was sent. If it fails it tells how much that was.
fn send_extents<T>(
    sender: &mut impl Calls<T>,
    key: Key,
    dmabuf_id: NonZero<u32>,
    extents: &mut [Extent],
    flags: i32,
) -> Result<(), (u64, io::Error)> {
    let mut rest = extents;
    let mut sent = 0;
    while !rest.is_empty() {
        let now = rest.len().min(MAX_EXTENTS);
        let more = if now < rest.len() { libc::MSG_MORE } else { 0 };
        let result = sender.call(dmabuf_id, &rest[..now], flags | more);
        if let Some(bytes) = result.map_err(|error| (sent, error))? {
            if bytes == 0 {
                // The kernel does not count such a call, and would not come to an end.
                return Err((sent, io::ErrorKind::WriteZero.into()));
            }
            sender.flight().add_call(key, bytes);
            sent += bytes;
            rest = advance(rest, bytes);
        }
    }
    Ok(())
}

/// What sends over a socket: the [`Sender`] here, and that of [`uring`](crate::uring).
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
}

impl<T: Source> Transmit<T> for Sender<'_, T> {
    fn send(&mut self, binding: &TxBinding, source: T) -> Result<(), SendError<T>> {
        Sender::send(self, binding, source)
    }

    fn wait(&mut self) -> io::Result<Option<Sent<T>>> {
        Sender::wait(self)
    }
}

impl<T> Drop for Sender<'_, T> {
    fn drop(&mut self) {
        self.flight.forget();
    }
}

/// Waits until there may be something on the error queue.
fn wait_for_error_queue(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                // Rounded up: a poll that ends early would be repeated at once.
                let left = left + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        // Errors are told without being asked for.
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::Error::EINTR) => (),
            Ok(_) => return Ok(()),
            Err(err) => return Err(err.into()),
        }
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
                Ok(None) => std::thread::sleep(CLOSED),
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
