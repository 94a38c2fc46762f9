// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Sending: `IORING_OP_SENDMSG`, and completions from the error queue by `IORING_OP_RECVMSG`, when
//! `IORING_OP_POLL_ADD` tells of some.

use std::io;
use std::mem;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::ptr;
use std::time::Duration;
use std::time::Instant;

use io_uring::cqueue;
use io_uring::opcode;
use io_uring::types::Fd;
use log::warn;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt;

use super::memory::Memory;
use super::ring::Member;
use super::ring::Ring;
use crate::cmsg;
use crate::completion;
use crate::completion::Completion;
use crate::completion::InFlight;
use crate::completion::Sent;
use crate::dmabuf::Extent;
use crate::message;
use crate::netdev::TxBinding;
use crate::poll;
use crate::send;
use crate::send::Calls;
use crate::send::How;
use crate::send::MAX_EXTENTS;
use crate::send::Rest;
use crate::send::SendError;
use crate::send::Source;
use crate::send::Transmit;
use crate::send::iovec;
use crate::send::resume;
use crate::send::send_all;
use crate::socket::Socket;
use crate::tcp::TxSocket;
use crate::tcp::check_flags;

const ENTRIES: u32 = 8;
/// `MSG_ERRQUEUE`, as io_uring takes it.
const ERRQUEUE: u32 = 0x2000;
const _: () = assert!(ERRQUEUE as i64 == libc::MSG_ERRQUEUE as i64);

/// `user_data` of requests to send.
const SEND: u64 = 1;
/// `user_data` of requests to read the error queue.
const REAP: u64 = 2;
/// `user_data` of requests to be told of errors.
const WATCH: u64 = 3;
/// `user_data` of requests to be told of room.
const ROOM: u64 = 4;

/// Messages of the error queue for which there is room from the start.
const TOLD: usize = 64;

// Where things are in the memory that is shared with the kernel.
const SEND_HEADER: usize = 0;
const REAP_HEADER: usize = 256;
const SEND_CONTROL: usize = 512;
const REAP_CONTROL: usize = 1024;
const CONTROL: usize = 256;
const IOVECS: usize = 4096;
const SIZE: usize = IOVECS + MAX_EXTENTS * size_of::<libc::iovec>();

/// Sends from dma-bufs over a TCP socket by io_uring.
///
/// It does what [`crate::Sender`] does, and what is said there holds here.
#[derive(Debug)]
pub struct Sender<'s, T> {
    socket: TxSocket<'s>,
    flight: InFlight<T>,
    /// `None` once it was leaked, or freed.
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: Member,
    /// The socket, for as long as there are requests: its own number may be another file's before that.
    fd: OwnedFd,
    memory: Memory,
    /// Whether others wait for the ring.
    shared: bool,
    /// Whether there ever was a request that tells of errors.
    asked: bool,
    /// Whether a request that tells of errors is in flight.
    watching: bool,
    /// How that failed.
    unwatched: Option<i32>,
    /// Whether that has told of the end of the connection.
    over: bool,
    /// Whether the error queue was empty since that told of one.
    dry: bool,
    /// Whether a request that tells of room in the socket is in flight.
    waits_for_room: bool,
    /// Whether one has told of some.
    room: bool,
    /// Whether a request that reads the error queue is in flight.
    reaping: bool,
    /// Whether there was an error since that was added.
    told_while_reaping: bool,
    /// How the last request to send ended.
    sent: Option<i32>,
    /// How the last request that read the error queue ended.
    reaped: Option<i32>,
    /// What the error queue told. A call may be completed there before its own request is.
    told: Vec<Completion>,
}

impl<'s, T: Source> Sender<'s, T> {
    /// Makes a socket ready for sending from dma-bufs, as [`crate::Sender::new`] does.
    ///
    /// # Errors
    ///
    /// Those of [`TxSocket::new`]; those of `io_uring_setup()`, `EPERM` where `kernel.io_uring_disabled` says so, of
    /// `mmap()`, and of `dup()`: `EMFILE`.
    pub fn new(socket: impl Into<Socket<'s>>) -> io::Result<Self> {
        Self::with_ring(&Ring::new(ENTRIES)?, socket.into(), false)
    }

    /// Like [`new`](Self::new), on a ring that others use, too.
    ///
    /// What [`completed`](Self::completed) gives is a completion that [`Ring::wait`] waits for, from the first call of it
    /// on, also if a call that sends or waits has come by it before. With `MSG_DONTWAIT` [`send_flags`](Self::send_flags) and
    /// [`resume_flags`](Self::resume_flags) do not wait; when there is room again [`tell_room`](Self::tell_room) tells.
    ///
    /// # Errors
    ///
    /// Those of [`TxSocket::new`], of `mmap()`, and of `dup()`: `EMFILE`.
    pub fn on(ring: &Ring, socket: impl Into<Socket<'s>>) -> io::Result<Self> {
        Self::with_ring(ring, socket.into(), true)
    }

    fn with_ring(ring: &Ring, socket: Socket<'s>, shared: bool) -> io::Result<Self> {
        // What may fail comes before the socket, of which there is no second one to be had.
        let (ring, memory) = (ring.join()?, Memory::new(SIZE)?);
        let fd = socket.as_fd().try_clone_to_owned()?;
        Ok(Self {
            socket: TxSocket::new(socket)?,
            flight: InFlight::new(),
            inner: Some(Inner {
                ring,
                fd,
                memory,
                shared,
                asked: false,
                watching: false,
                unwatched: None,
                over: false,
                dry: false,
                waits_for_room: false,
                room: false,
                reaping: false,
                told_while_reaping: false,
                sent: None,
                reaped: None,
                told: Vec::with_capacity(TOLD),
            }),
        })
    }

    /// Sends all of a source, which lies in the dma-buf of `binding`.
    ///
    /// Waits for room in the socket, and if the kernel has no memory for more calls in flight
    /// (`ENOBUFS`), for some to complete.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Sender::send`]. If `io_uring_enter()` fails nobody knows whether the kernel reads the memory, and
    /// the source never comes back.
    pub fn send(&mut self, binding: &TxBinding, source: T) -> Result<(), SendError<T>> {
        self.send_flags(binding, source, 0)
    }

    /// Like [`send`](Self::send), with more flags of `sendmsg()`: those of [`crate::Sender::send_flags`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_flags(
        &mut self,
        binding: &TxBinding,
        source: T,
        flags: i32,
    ) -> Result<(), SendError<T>> {
        let result = send_all(self, binding.number(), source, flags);
        self.pass_on();
        result
    }

    /// Like [`send`](Self::send), but no longer than a while. The request is cancelled then.
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
        let result = send_all(self, binding.number(), source, How::within(timeout));
        self.pass_on();
        result
    }

    /// Sends what an earlier call has left, from the same binding.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Sender::resume`], and of [`send`](Self::send).
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
        let result = resume(self, binding.number(), rest, flags);
        self.pass_on();
        result
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
        let result = resume(self, binding.number(), rest, How::within(timeout));
        self.pass_on();
        result
    }

    /// Has [`Ring::wait`] return when there is room in the socket for another call, or the connection is over: for who
    /// does not wait. Says whether there is by now, as far as that is known.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_enter()`.
    pub fn tell_room(&mut self) -> io::Result<bool> {
        let inner = self.inner.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        inner.take_completions();
        if mem::take(&mut inner.room) {
            return Ok(true);
        }
        inner.request_room()?;
        Ok(false)
    }

    /// Ends the connection at once, as [`crate::Sender::abort`] does, so that everything comes back.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn abort(&mut self) -> io::Result<()> {
        send::abort(&mut self.flight, self.socket.fd())
    }

    /// Has the ring tell once more of what a call that waits has taken from it: who waits for the ring next would wait
    /// for something that has come already.
    fn pass_on(&mut self) {
        if self.flight.check().is_err() {
            return;
        }
        let done = self.flight.has_done();
        if let Some(inner) = &mut self.inner {
            inner.pass_on(done);
        }
    }

    /// Makes one request, and waits for its result.
    fn send_once(
        &mut self,
        dmabuf_id: NonZero<u32>,
        extents: &[Extent],
        how: How,
    ) -> io::Result<i32> {
        let inner = self.inner.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        inner.request_send(dmabuf_id, extents, how.flags)?;
        let mut deadline = how.deadline;
        loop {
            match inner.sent.take() {
                Some(result) if result == -libc::ECANCELED && deadline != how.deadline => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Some(result) => return Ok(result),
                None => (),
            }
            let entered = match inner.ring.enter(1, deadline.map(poll::left_until)) {
                Err(err) if err.kind() == io::ErrorKind::TimedOut => {
                    // It ends soon, and tells how.
                    deadline = None;
                    inner.ring.cancel(SEND)
                }
                other => other,
            };
            if let Err(err) = entered {
                // The request is in the ring, or in flight, or through: nobody knows whether the kernel will
                // read all this, and what it writes and counts. So it stays as it is, and there is no other.
                self.flight.lose(&err);
                return Err(err);
            }
            inner.take_completions();
        }
    }

    /// Waits until a request that failed is worth another try; fails if it never will be.
    fn before_retry(&mut self, err: io::Error, how: How) -> io::Result<()> {
        match err.raw_os_error() {
            Some(libc::EINTR) => Ok(()),
            // The limit is on calls that are not completed, or whose completion has not been read.
            Some(libc::ENOBUFS) if self.reap(false, None)? => Ok(()),
            Some(libc::ENOBUFS) if self.in_flight() > 0 && how.waits() => {
                self.reap(true, how.deadline).map(drop)
            }
            _ => Err(err),
        }
    }

    /// A source whose memory is free again, if there is one by now.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Sender::completed`], and of `io_uring_enter()`.
    pub fn completed(&mut self) -> io::Result<Option<Sent<T>>> {
        if self.flight.check().is_ok() {
            self.reap(false, None)?;
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
        let result = self.next_sent(deadline);
        self.pass_on();
        result
    }

    fn next_sent(&mut self, deadline: Option<Instant>) -> io::Result<Option<Sent<T>>> {
        loop {
            if let Some(sent) = self.flight.done_or_lost()? {
                return Ok(Some(sent));
            }
            if self.in_flight() == 0 {
                return Ok(None);
            }
            self.reap(true, deadline)?;
        }
    }

    /// Calls of `sendmsg()` that are not known to be completed.
    pub fn in_flight(&self) -> usize {
        self.flight.calls()
    }

    /// Takes what is on the error queue, and waits for something there if told to; says whether there
    /// was something.
    fn reap(&mut self, wait: bool, deadline: Option<Instant>) -> io::Result<bool> {
        let inner = self.inner.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let (mut found, mut looked) = (false, false);
        loop {
            // No request to send is in flight, so all calls are known.
            found |= !inner.told.is_empty();
            for completion in inner.told.drain(..) {
                self.flight.complete(completion)?;
            }
            if let Some(errno) = inner.unwatched.take() {
                return Err(io::Error::from_raw_os_error(errno));
            }
            let result = inner.reaped.take();
            match result.map(i32::wrapping_neg) {
                // A thread that ends takes its requests along.
                None | Some(libc::EINTR | libc::ECANCELED) => (),
                // There may be the error that has ended the connection. Another one (`IP_RECVERR`) the next send tells.
                Some(libc::EAGAIN) if !inner.over => (),
                Some(libc::EAGAIN) => match getsockopt(&self.socket.fd(), sockopt::SocketError)? {
                    0 => (),
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                },
                Some(errno) if errno > 0 => return Err(io::Error::from_raw_os_error(errno)),
                Some(_) => found = true,
            }
            // What a kernel thread has not read yet tells of itself.
            if looked && inner.watching && (inner.dry || inner.reaping) && (found || !wait) {
                return Ok(found);
            }
            inner.request_reap()?;
            let waits = wait && !found;
            let left = deadline.filter(|_| waits).map(poll::left_until);
            inner.ring.enter(usize::from(waits), left)?;
            inner.take_completions();
            looked = true;
        }
    }
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
        let result = self.send_once(dmabuf_id, extents, how)?;
        match u64::try_from(result) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => self
                .before_retry(io::Error::from_raw_os_error(-result), how)
                .map(|()| None),
        }
    }
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

impl Inner {
    /// Adds a request to send.
    fn request_send(
        &mut self,
        dmabuf_id: NonZero<u32>,
        extents: &[Extent],
        flags: i32,
    ) -> io::Result<()> {
        check_flags(flags)?;
        let control = cmsg::tx_control(dmabuf_id.get());
        let flags = u32::try_from(flags | libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL)
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let header = self.memory.at::<libc::msghdr>(SEND_HEADER, REAP_HEADER);
        let control_at = self.memory.at::<u8>(SEND_CONTROL, control.len());
        let iovecs = self.memory.at::<libc::iovec>(IOVECS, size_of_val(extents));
        // SAFETY: All of it is in the memory, where no request to send is in flight: there is one at a
        // time, and it is waited for. There are no more extents than there is room for.
        unsafe {
            for (i, extent) in extents.iter().enumerate() {
                iovecs.add(i).write(iovec(extent)?);
            }
            ptr::copy_nonoverlapping(control.as_ptr(), control_at, control.len());
            header.write(message::header(
                (iovecs, extents.len()),
                (control_at, control.len()),
            )?);
        }
        let entry = opcode::SendMsg::new(Fd(self.fd.as_raw_fd()), header)
            .flags(flags)
            .build()
            .user_data(SEND);
        // SAFETY: What it refers to is in the memory, which outlives the request. What the iovecs hold are
        // offsets into a dma-buf, which the kernel takes for addresses never, as in `send_dmabuf()`.
        unsafe { self.ring.push(entry) }
    }

    /// Adds requests to be told of errors, and to read the error queue unless there is nothing. What comes after that
    /// was read is told: so whoever waits for the ring does not miss it.
    fn request_reap(&mut self) -> io::Result<()> {
        self.asked = true;
        if !self.watching {
            // What came before that nobody was told of.
            self.dry = false;
            let entry = opcode::PollAdd::new(Fd(self.fd.as_raw_fd()), libc::POLLERR as u32)
                .multi(true)
                .build()
                .user_data(WATCH);
            // SAFETY: The entry refers to no memory.
            unsafe { self.ring.push(entry) }?;
            self.watching = true;
        }
        if self.dry || self.reaping {
            return Ok(());
        }
        let header = self.memory.at::<libc::msghdr>(REAP_HEADER, REAP_HEADER);
        // SAFETY: Header and control buffer are in the memory, and no request that uses them is in
        // flight.
        unsafe {
            let control = (self.memory.at(REAP_CONTROL, CONTROL), CONTROL);
            header.write(message::header((ptr::null_mut(), 0), control)?);
        }
        let entry = opcode::RecvMsg::new(Fd(self.fd.as_raw_fd()), header)
            .flags(ERRQUEUE | libc::MSG_DONTWAIT as u32)
            .build()
            .user_data(REAP);
        // SAFETY: What it refers to is in the memory, of which that part is not touched before the
        // request has completed, and which outlives it.
        unsafe { self.ring.push(entry) }?;
        self.reaping = true;
        Ok(())
    }

    /// Adds a request to be told of room.
    fn request_room(&mut self) -> io::Result<()> {
        if self.waits_for_room {
            return Ok(());
        }
        let entry = opcode::PollAdd::new(Fd(self.fd.as_raw_fd()), libc::POLLOUT as u32)
            .build()
            .user_data(ROOM);
        // SAFETY: The entry refers to no memory.
        unsafe { self.ring.push(entry) }?;
        self.waits_for_room = true;
        Ok(())
    }

    /// Adds requests that tell who waits for the ring, if there is something to be told: that some are `done`, say.
    fn pass_on(&mut self, done: bool) {
        if !self.shared || !self.asked {
            return;
        }
        if done || !self.told.is_empty() || !self.watching {
            self.dry = false;
        }
        // If this fails so does who waits for the ring.
        let _ = self.request_reap();
    }

    fn take_completions(&mut self) {
        while let Some(entry) = self.ring.next() {
            match entry.user_data() {
                SEND => self.sent = Some(entry.result()),
                ROOM => {
                    self.waits_for_room = false;
                    self.room = true;
                }
                WATCH => {
                    self.watching = cqueue::more(entry.flags());
                    self.dry = false;
                    self.over |=
                        entry.result() > 0 && entry.result() & i32::from(libc::POLLHUP) != 0;
                    if entry.result() < 0 && entry.result() != -libc::ECANCELED {
                        self.unwatched = Some(-entry.result());
                    }
                    self.told_while_reaping = self.reaping;
                }
                _ => {
                    self.reaping = false;
                    // Nobody knows what came first.
                    self.dry = entry.result() == -libc::EAGAIN && !self.told_while_reaping;
                    self.told_while_reaping = false;
                    self.reaped = Some(entry.result());
                    if entry.result() >= 0 {
                        self.note_completions();
                    }
                }
            }
        }
    }

    /// Notes what was read from the error queue.
    fn note_completions(&mut self) {
        // SAFETY: The request has completed, and there is no other before this returns. It has
        // written the header.
        let (control, header) = unsafe {
            let header = self.memory.at::<libc::msghdr>(REAP_HEADER, REAP_HEADER);
            (self.memory.bytes(REAP_CONTROL, CONTROL), ptr::read(header))
        };
        self.told
            .extend(completion::parse(message::control(&header, control)));
    }
}

impl<T> Drop for Sender<'_, T> {
    fn drop(&mut self) {
        self.flight.forget();
        let Some(inner) = self.inner.take() else {
            return;
        };
        // Completions that come now have nobody to be told to. As long as there are requests in flight,
        // their memory must not be freed.
        if let Err(err) = inner.ring.cancel_all(drop) {
            warn!("cancelling requests: {err}");
        }
        if inner.ring.in_flight() > 0 {
            // But it is no longer one of those that the ring tells of.
            let Inner { fd, memory, .. } = inner;
            mem::forget((fd, memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::connection;
    use crate::uring::ring::testing::ring;
    use std::io::Read;
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::net::Shutdown;
    use std::net::TcpStream;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::thread;

    use io_uring::IoUring;
    use io_uring::register::Restriction;
    use nix::poll::PollFlags;

    /// A binding that nobody has.
    const NOBODY: NonZero<u32> = NonZero::new(0x7fff_fff0).unwrap();

    /// A source that can be seen to be kept.
    #[derive(Debug)]
    struct Kept(#[expect(dead_code, reason = "it is only counted")] Arc<()>);

    impl Source for Kept {
        fn extents(&self) -> impl Iterator<Item = Extent> {
            [Extent { offset: 0, len: 1 }].into_iter()
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_was_not_sent_comes_back() {
        let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let Some(ring) = ring(ENTRIES) else { return };
        let mut sender = Sender::on(&ring, &a).unwrap();
        let kept = Arc::new(());
        for flags in [0, libc::MSG_DONTWAIT, libc::MSG_FASTOPEN] {
            let err = send_all(&mut sender, NOBODY, Kept(Arc::clone(&kept)), flags).unwrap_err();
            assert_eq!((err.source.is_some(), err.sent), (true, 0));
            assert_eq!(err.error.kind(), io::ErrorKind::InvalidInput);
            assert!(sender.wait().unwrap().is_none());
        }
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    /// Waits for a ring until there is nothing more, or nothing but errors.
    fn settle(ring: &Ring, sender: &mut Sender<'_, Kept>) {
        const LITTLE: Duration = Duration::from_millis(10);
        for _ in 0..100 {
            assert!(sender.completed().unwrap().is_none());
            match ring.wait(Some(LITTLE)) {
                Err(err) if err.kind() == io::ErrorKind::TimedOut => return,
                other => other.unwrap(),
            }
        }
        panic!("it is told of something again and again");
    }

    /// Whatever else there is on the socket.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn who_waits_for_the_ring_hears_of_completions() {
        const LONG: Duration = Duration::from_secs(60);
        let Some(ring) = ring(ENTRIES) else { return };
        for (unread, end) in [(false, false), (true, false), (false, true), (true, true)] {
            let (a, mut b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
            let mut sender = Sender::<Kept>::on(&ring, &a).unwrap();
            settle(&ring, &mut sender);
            if unread {
                b.write_all(b"some").unwrap();
            }
            if end {
                b.shutdown(Shutdown::Write).unwrap();
            }
            for _ in 0..2 {
                settle(&ring, &mut sender);
            }
            send_past_the_sender(&a, &mut b);
            let start = Instant::now();
            let err = loop {
                ring.wait(Some(LONG)).unwrap();
                assert!(start.elapsed() < LONG);
                if let Err(err) = sender.completed() {
                    break err;
                }
            };
            assert_eq!(err.kind(), io::ErrorKind::InvalidData, "{err}");
        }
    }

    /// A call that is not the sender's, of which it can be told.
    fn send_past_the_sender(from: &TcpStream, to: &mut TcpStream) {
        // SAFETY: The text is readable for its length, and is there for good.
        let sent = unsafe {
            libc::send(
                from.as_raw_fd(),
                b"text".as_ptr().cast(),
                4,
                libc::MSG_ZEROCOPY,
            )
        };
        assert_eq!(sent, 4);
        to.read_exact(&mut [0; 4]).unwrap();
    }

    /// A call that found no room is made again when there is some.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn who_waits_for_the_ring_hears_of_room() {
        const LONG: Duration = Duration::from_secs(60);
        let Some(ring) = ring(ENTRIES) else { return };
        let (a, mut b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        a.set_nonblocking(true).unwrap();
        while (&a).write(&[0; 1 << 16]).is_ok() {}
        let mut sender = Sender::<Kept>::on(&ring, &a).unwrap();
        settle(&ring, &mut sender);
        assert!(!sender.tell_room().unwrap());
        settle(&ring, &mut sender);
        assert!(!sender.tell_room().unwrap(), "nobody has read");
        let reader = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while b.read(&mut buffer).unwrap() > 0 {}
        });
        while !sender.tell_room().unwrap() {
            ring.wait(Some(LONG)).unwrap();
        }
        drop(sender);
        a.shutdown(Shutdown::Write).unwrap();
        reader.join().unwrap();
    }

    /// Also if a call that sends was made meanwhile, which takes what there is off the ring.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn who_sends_in_between_hears_of_completions() {
        const LONG: Duration = Duration::from_secs(60);
        let Some(ring) = ring(ENTRIES) else { return };
        let (a, mut b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut sender = Sender::<Kept>::on(&ring, &a).unwrap();
        settle(&ring, &mut sender);
        send_past_the_sender(&a, &mut b);
        poll::ready(a.as_fd(), PollFlags::empty(), poll::end_of(LONG)).unwrap();
        let nobodys = TxBinding::of_another(NOBODY);
        let err = sender
            .send(&nobodys, Kept(Arc::new(())))
            .expect_err("there is no such binding");
        assert_eq!(err.error.kind(), io::ErrorKind::InvalidInput);
        ring.wait(Some(LONG)).unwrap();
        let err = sender.completed().unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidData, "{err}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn a_ring_that_tells_of_no_errors_is_one() {
        const LONG: Duration = Duration::from_secs(60);
        if ring(ENTRIES).is_none() {
            return;
        }
        let mut builder = IoUring::builder();
        builder.setup_submit_all().setup_r_disabled();
        let ring = Ring::build(&builder, ENTRIES).unwrap();
        let mut allowed = [
            opcode::SendMsg::CODE,
            opcode::RecvMsg::CODE,
            opcode::AsyncCancel::CODE,
        ]
        .map(Restriction::sqe_op);
        // SAFETY: It has registered nothing, and nothing is in flight.
        unsafe {
            ring.with_submitter(|submitter| {
                submitter.register_restrictions(&mut allowed).unwrap();
                submitter.register_enable_rings().unwrap();
            });
        }
        let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut sender = Sender::<Kept>::on(&ring, a).unwrap();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || tell.send(sender.completed().map(drop)));
        let result = told.recv_timeout(LONG).expect("it does not end");
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn a_request_of_which_nobody_knows_ends_a_sender() {
        for made in [false, true] {
            let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
            let Some(ring) = ring(ENTRIES) else { return };
            let mut sender = Sender::on(&ring, &a).unwrap();
            let inner = sender.inner.as_mut().unwrap();
            inner.ring.fail_next(libc::ENOMEM, made);
            let kept = Arc::new(());
            let err = send_all(&mut sender, NOBODY, Kept(Arc::clone(&kept)), 0).unwrap_err();
            assert_eq!((err.source.is_none(), err.sent), (true, 0));
            assert_eq!(err.error.raw_os_error(), Some(libc::ENOMEM));

            // The request is still there, and what it refers to is what it was.
            let inner = sender.inner.as_ref().unwrap();
            assert_eq!(inner.ring.in_flight(), 1);
            let header = inner.memory.at::<libc::msghdr>(SEND_HEADER, REAP_HEADER);
            let iovecs = |sender: &Sender<'_, Kept>| {
                let memory = &sender.inner.as_ref().unwrap().memory;
                // SAFETY: The kernel reads this, and writes none of it.
                unsafe { memory.bytes(IOVECS, SIZE - IOVECS) }.to_vec()
            };
            let before = iovecs(&sender);
            for _ in 0..2 {
                let other = Kept(Arc::clone(&kept));
                let err = send_all(&mut sender, NOBODY, other, 0).unwrap_err();
                assert_eq!((err.source.is_some(), err.sent), (true, 0));
                for err in [
                    err.error,
                    sender.completed().unwrap_err(),
                    sender.wait().unwrap_err(),
                ] {
                    assert_eq!(err.kind(), io::ErrorKind::BrokenPipe);
                }
            }
            assert_eq!(before, iovecs(&sender));
            // SAFETY: As above.
            assert_eq!(unsafe { (*header).msg_iovlen }, 1);
            drop(sender);
            assert_eq!(Arc::strong_count(&kept), 2, "nobody may have it");
        }
    }
}
