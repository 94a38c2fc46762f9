// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Receiving: `IORING_OP_RECVMSG`, and tokens returned by `SOCKET_URING_OP_SETSOCKOPT`.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::time::Duration;

use io_uring::cqueue;
use io_uring::opcode;
use io_uring::types::BufRingEntry;
use io_uring::types::Fd;
use io_uring::types::RecvMsgOut;
use log::warn;

use super::memory::Memory;
use super::ring::Member;
use super::ring::Ring;
use crate::cmsg;
use crate::message;
use crate::poll;
use crate::recv::MSG_SOCK_DEVMEM;
use crate::recv::Receive;
use crate::recv::Received;
use crate::recv::check_flags;
use crate::socket::Socket;
use crate::token::Collector;
use crate::token::Ranges;
use crate::token::SO_DEVMEM_DONTNEED;
use crate::token::dontneed;

const DATA: usize = 1 << 20;
const FRAGS: usize = 512;
/// Buffers of a multishot receiver; a power of two, as the kernel wants it.
const BUFFERS: u16 = 8;

const ENTRIES: u32 = 32;
/// As long as the pages of any architecture.
const PAGE: usize = 64 << 10;
/// Size of `struct io_uring_recvmsg_out`, with which a buffer of a multishot request begins.
const HEADER: usize = 16;

/// `user_data` of receive requests; returns of tokens have their slot instead.
const RECEIVE: u64 = 1 << 32;

/// Receives from a TCP socket by io_uring.
///
/// It borrows the socket or owns a part of it, see [`Socket`], and so do its tokens, which cannot outlive it. A token that is dropped, or given to a
/// [`TokenBatch`](crate::TokenBatch), goes back to the NIC with the next call of
/// [`recv`](Self::recv) or [`finish`](Self::finish). While this waits, or has nothing on a [`Ring`] that others use, tokens
/// that are dropped meanwhile go back by themselves: there may be no more to receive before that.
///
/// The socket's own timeout (`SO_RCVTIMEO`) does not apply to io_uring: see
/// [`recv_timeout`](Self::recv_timeout).
#[derive(Debug)]
pub struct Receiver<'s> {
    socket: Socket<'s>,
    collector: Arc<Collector>,
    /// `None` once it was leaked, or freed.
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: Member,
    /// Whether the ring is nobody else's, so that nobody else enters it.
    alone: bool,
    /// The socket, for as long as there are requests: its own number may be another file's before that.
    fd: OwnedFd,
    buffers: Buffers,
    /// Completions of receive requests which nobody asked for yet.
    ready: VecDeque<Completion>,
    returns: Returns,
}

/// A completed receive.
#[derive(Clone, Copy, Debug)]
struct Completion {
    /// What was received, or a negative error number.
    result: i32,
    /// The buffer that it is in, of a multishot request.
    buffer: Option<u16>,
}

/// Tokens on their way back.
#[derive(Debug, Default)]
struct Returns {
    in_flight: Vec<Option<Box<Ranges>>>,
    returned: u64,
    /// The first that failed.
    failure: Option<io::Error>,
}

/// What receive requests write to.
#[derive(Debug)]
struct Buffers {
    memory: Memory,
    layout: Layout,
    /// The group of the buffers that the kernel knows, of a multishot receiver.
    group: Option<u16>,
    /// Whether a receive request is in flight.
    armed: bool,
    /// The buffer that was lent last, of a multishot request.
    lent: Option<u16>,
    /// Buffers given to the kernel in all, which is where its ring of them ends.
    tail: u16,
}

/// Where things are in the memory. A receiver of single shots has one buffer, and no ring.
#[derive(Clone, Copy, Debug)]
struct Layout {
    data: usize,
    control: usize,
    stride: usize,
    /// Bytes of a buffer with everything in it, as the kernel is told.
    length: u32,
    buffers: u16,
}

const MSGHDR: usize = 0;
const IOVEC: usize = size_of::<libc::msghdr>();
const BUF_RING: usize = PAGE;

impl Layout {
    fn new(data: usize, frags: usize, buffers: u16) -> io::Result<Self> {
        let too_much = || io::Error::from(io::ErrorKind::InvalidInput);
        let control = frags.checked_mul(cmsg::SPACE).ok_or_else(too_much)?;
        let size = HEADER
            .checked_add(control)
            .and_then(|size| size.checked_add(data))
            .ok_or_else(too_much)?;
        let layout = Self {
            data,
            control,
            stride: size.checked_next_multiple_of(PAGE).ok_or_else(too_much)?,
            length: size.try_into().map_err(|_| too_much())?,
            buffers,
        };
        // All of it together has a size, too.
        layout
            .stride
            .checked_mul(buffers.into())
            .and_then(|size| size.checked_add(BUF_RING + PAGE))
            .ok_or_else(too_much)?;
        Ok(layout)
    }

    /// Size of all together.
    fn size(&self) -> usize {
        self.buffer(self.buffers)
    }

    fn buffer(&self, id: u16) -> usize {
        BUF_RING + PAGE + usize::from(id) * self.stride
    }

    /// Size of a buffer with everything in it.
    fn buffer_size(&self) -> usize {
        HEADER + self.control + self.data
    }

    fn control(&self, id: u16) -> usize {
        self.buffer(id) + HEADER
    }

    fn data(&self, id: u16) -> usize {
        self.control(id) + self.control
    }
}

impl<'s> Receiver<'s> {
    /// Takes up to 1 MiB and 512 pieces with a call, one request for each.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_setup()`, `EPERM` where `kernel.io_uring_disabled` says so, of `mmap()`, and of `dup()`:
    /// `EMFILE`.
    pub fn new(socket: impl Into<Socket<'s>>) -> io::Result<Self> {
        Self::with_capacity(socket, DATA, FRAGS)
    }

    /// Takes up to `data` bytes and `frags` pieces with a call.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new); [`InvalidInput`](io::ErrorKind::InvalidInput) if that is more than a request can
    /// say.
    pub fn with_capacity(
        socket: impl Into<Socket<'s>>,
        data: usize,
        frags: usize,
    ) -> io::Result<Self> {
        let layout = Layout::new(data, frags, 1)?;
        Self::with_layout(socket.into(), layout, false, None)
    }

    /// Like [`new`](Self::new), with one request that receives again and again.
    ///
    /// The kernel fills up to 8 buffers while the program is busy.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new), and of `io_uring_register(IORING_REGISTER_PBUF_RING)`.
    pub fn multishot(socket: impl Into<Socket<'s>>) -> io::Result<Self> {
        Self::multishot_with_capacity(socket, DATA, FRAGS)
    }

    /// Like [`multishot`](Self::multishot), with buffers for `data` bytes and `frags` pieces.
    ///
    /// # Errors
    ///
    /// Those of [`multishot`](Self::multishot); [`InvalidInput`](io::ErrorKind::InvalidInput) if that is more than a
    /// request can say.
    pub fn multishot_with_capacity(
        socket: impl Into<Socket<'s>>,
        data: usize,
        frags: usize,
    ) -> io::Result<Self> {
        let layout = Layout::new(data, frags, BUFFERS)?;
        Self::with_layout(socket.into(), layout, true, None)
    }

    /// Like [`with_capacity`](Self::with_capacity), on a ring that others use, too.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `data` and `frags` are more than a request can say; those of
    /// `mmap()`, and of `dup()`: `EMFILE`.
    pub fn on(
        ring: &Ring,
        socket: impl Into<Socket<'s>>,
        data: usize,
        frags: usize,
    ) -> io::Result<Self> {
        let layout = Layout::new(data, frags, 1)?;
        Self::with_layout(socket.into(), layout, false, Some(ring))
    }

    /// Like [`multishot_with_capacity`](Self::multishot_with_capacity), on a ring that others use, too.
    ///
    /// # Errors
    ///
    /// Those of [`on`](Self::on), and of `io_uring_register(IORING_REGISTER_PBUF_RING)`.
    pub fn multishot_on(
        ring: &Ring,
        socket: impl Into<Socket<'s>>,
        data: usize,
        frags: usize,
    ) -> io::Result<Self> {
        let layout = Layout::new(data, frags, BUFFERS)?;
        Self::with_layout(socket.into(), layout, true, Some(ring))
    }

    fn with_layout(
        socket: Socket<'s>,
        layout: Layout,
        multishot: bool,
        shared: Option<&Ring>,
    ) -> io::Result<Self> {
        let mut buffers = Buffers {
            memory: Memory::new(layout.size())?,
            layout,
            group: None,
            armed: false,
            lent: None,
            tail: 0,
        };
        let fd = socket.as_fd().try_clone_to_owned()?;
        let ring = match shared {
            Some(ring) => ring.join()?,
            None => Ring::new(ENTRIES)?.join()?,
        };
        if multishot {
            buffers.register(&ring)?;
        }
        Ok(Self {
            socket,
            collector: Arc::new(Collector::new()),
            inner: Some(Inner {
                ring,
                alone: shared.is_none(),
                fd,
                buffers,
                ready: VecDeque::with_capacity(BUFFERS.into()),
                returns: Returns::default(),
            }),
        })
    }

    /// Waits for data, and tells where it lies. Returns the tokens collected so far.
    ///
    /// # Errors
    ///
    /// Those of `recvmsg()`, see [`crate::Receiver::recv`], and of `io_uring_enter()`. Those of returning tokens:
    /// these go with the next call, but for those that the kernel does not know, of which an error of kind
    /// [`Other`](io::ErrorKind::Other) tells. Of what was received nothing is lost by any of them.
    pub fn recv(&mut self) -> io::Result<Received<'_, 's>> {
        self.recv_until(0, None)
    }

    /// Like [`recv`](Self::recv), with more flags of `recvmsg()`. A request that runs already, a multishot one or that
    /// of [`try_recv`](Self::try_recv), keeps those that it was made with.
    ///
    /// # Errors
    ///
    /// As there; [`InvalidInput`](io::ErrorKind::InvalidInput) as of [`crate::Receiver::recv_flags`].
    pub fn recv_flags(&mut self, flags: i32) -> io::Result<Received<'_, 's>> {
        self.recv_until(flags, None)
    }

    /// Like [`recv`](Self::recv), but no longer than a while.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](io::ErrorKind::TimedOut). Nothing is lost then: the request is cancelled.
    pub fn recv_timeout(&mut self, timeout: Duration) -> io::Result<Received<'_, 's>> {
        self.recv_until(0, Some(timeout))
    }

    /// What has been received by now, if anything: for those who wait for a [`Ring`], and not for this.
    ///
    /// Adds the requests to receive, and to return the tokens collected so far, which are made with the next
    /// [`Ring::wait`] or [`Ring::submit`]. So there will be no completion before the first call of this, and no other
    /// one while there is something that this gives. A receiver with a ring of its own makes them at once.
    ///
    /// # Errors
    ///
    /// Those of [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> io::Result<Option<Received<'_, 's>>> {
        let Some(inner) = &mut self.inner else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let Some(completion) = inner.receive_now(&self.collector)? else {
            return Ok(None);
        };
        let (data, control, len) = inner.buffers.lend(completion)?;
        Ok(Some(Received::new(
            &self.socket,
            data,
            control,
            len,
            Some(&self.collector),
        )))
    }

    /// Has tokens that are dropped from now on go back with the requests of the next call of [`try_recv`](Self::try_recv),
    /// even if there was nothing at the last one: for who has waited for a [`Ring`] and makes that call before it waits
    /// again.
    pub fn collect(&mut self) {
        self.collector.set_waiting(false);
    }

    fn recv_until(
        &mut self,
        flags: i32,
        timeout: Option<Duration>,
    ) -> io::Result<Received<'_, 's>> {
        check_flags(flags)?;
        let Some(inner) = &mut self.inner else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let completion = inner.receive(&self.collector, flags, timeout)?;
        let (data, control, len) = inner.buffers.lend(completion)?;
        Ok(Received::new(
            &self.socket,
            data,
            control,
            len,
            Some(&self.collector),
        ))
    }

    /// Where its memory is.
    #[cfg(test)]
    pub(super) fn address(&self) -> usize {
        let inner = self.inner.as_ref().unwrap();
        inner.buffers.memory.at::<u8>(0, 1).addr()
    }

    /// How many tokens went back by this receiver.
    pub fn returned(&self) -> u64 {
        self.inner
            .as_ref()
            .map_or(0, |inner| inner.returns.returned)
    }

    /// Returns the tokens collected so far, and waits until they are back.
    ///
    /// # Errors
    ///
    /// Those of [`recv`](Self::recv) that are about tokens, and of `io_uring_enter()`.
    pub fn finish(&mut self) -> io::Result<()> {
        match &mut self.inner {
            Some(inner) => inner.finish_returns(&self.collector),
            None => Ok(()),
        }
    }
}

impl<'s> Receive<'s> for Receiver<'s> {
    fn recv(&mut self) -> io::Result<Received<'_, 's>> {
        Receiver::recv(self)
    }

    fn recv_timeout(&mut self, timeout: Duration) -> io::Result<Received<'_, 's>> {
        Receiver::recv_timeout(self, timeout)
    }
}

impl Inner {
    /// Waits for a completed receive.
    fn receive(
        &mut self,
        collector: &Collector,
        flags: i32,
        timeout: Option<Duration>,
    ) -> io::Result<Completion> {
        let deadline = timeout.and_then(poll::end_of);
        collector.set_waiting(false);
        self.buffers.recycle();
        self.push_returns(collector)?;
        loop {
            self.take_completions(collector);
            self.returns.check()?;
            if let Some(completion) = self.next_ready()? {
                let entered = match self.ring.has_new() {
                    true => self.ring.enter(0, None),
                    false => Ok(()),
                };
                // If that failed, what was received is there for the next call.
                return match entered {
                    Ok(()) => Ok(completion),
                    Err(err) => {
                        self.ready.push_front(completion);
                        Err(err)
                    }
                };
            }
            if !self.buffers.armed {
                self.buffers.arm(&self.ring, self.fd.as_fd(), flags)?;
            }
            let left = deadline.map(poll::left_until);
            // Before the last look at what was collected, so that nothing is left there.
            collector.set_waiting(true);
            let entered = self
                .push_returns(collector)
                .and_then(|()| self.ring.enter(1, left));
            collector.set_waiting(false);
            match entered {
                Err(err) if err.kind() == io::ErrorKind::TimedOut => {
                    self.stop(collector)?;
                    if self.ready.is_empty() {
                        return Err(err);
                    }
                }
                other => other?,
            }
        }
    }

    /// A completed receive, if there is one by now. If not, there will be.
    fn receive_now(&mut self, collector: &Collector) -> io::Result<Option<Completion>> {
        collector.set_waiting(false);
        self.buffers.recycle();
        self.push_returns(collector)?;
        for last in [false, true] {
            self.take_completions(collector);
            self.returns.check()?;
            if let Some(completion) = self.next_ready()? {
                return Ok(Some(completion));
            }
            if last {
                break;
            }
            if !self.buffers.armed {
                self.buffers.arm(&self.ring, self.fd.as_fd(), 0)?;
            }
            if !self.alone {
                // Who waits for the ring waits for this, too.
                collector.set_waiting(true);
                self.push_returns(collector)?;
                break;
            }
            self.ring.enter(0, None)?;
        }
        Ok(None)
    }

    /// The next completed receive that is of any interest; fails if it did.
    fn next_ready(&mut self) -> io::Result<Option<Completion>> {
        while let Some(completion) = self.ready.pop_front() {
            match completion.result {
                // A signal; or the thread that made the request has ended, or it was cancelled in vain; or
                // there was no buffer left, which there is now.
                result
                    if matches!(-result, libc::EINTR | libc::ECANCELED)
                        || self.buffers.ran_out(result) => {}
                result if result < 0 => return Err(io::Error::from_raw_os_error(-result)),
                _ => return Ok(Some(completion)),
            }
        }
        Ok(None)
    }

    /// Cancels the receive request. What it received until then is ready after that.
    fn stop(&mut self, collector: &Collector) -> io::Result<()> {
        if self.buffers.armed {
            self.ring.cancel(RECEIVE)?;
        }
        while self.buffers.armed {
            self.ring.enter(1, None)?;
            self.take_completions(collector);
        }
        self.ready
            .retain(|completion| completion.result != -libc::ECANCELED);
        Ok(())
    }

    /// Adds requests that return what was collected.
    fn push_returns(&mut self, collector: &Collector) -> io::Result<()> {
        while let Some(call) = collector.take() {
            let ranges = call.as_slice();
            let slot = self.returns.slot();
            // At most MAX_RANGES of 8 bytes each.
            let len = u32::try_from(size_of_val(ranges)).unwrap_or(u32::MAX);
            let entry = opcode::SetSockOpt::new(
                Fd(self.fd.as_raw_fd()),
                libc::SOL_SOCKET as u32,
                SO_DEVMEM_DONTNEED as u32,
                ranges.as_ptr().cast(),
                len,
            )
            .build()
            .user_data(slot as u64);
            // SAFETY: The ranges are on the heap. They stay in `in_flight`, which does not touch them,
            // until the request has completed.
            match unsafe { self.ring.push(entry) } {
                Ok(()) => self.returns.in_flight[slot] = Some(call),
                Err(err) => {
                    collector.put_back(call);
                    return Err(err);
                }
            }
        }
        Ok(())
    }

    fn finish_returns(&mut self, collector: &Collector) -> io::Result<()> {
        self.push_returns(collector)?;
        while self.returns.in_flight.iter().any(Option::is_some) {
            self.ring.enter(1, None)?;
            self.take_completions(collector);
        }
        self.returns.check()
    }

    fn take_completions(&mut self, collector: &Collector) {
        while let Some(entry) = self.ring.next() {
            self.complete(&entry, collector);
        }
    }

    fn complete(&mut self, entry: &cqueue::Entry, collector: &Collector) {
        if entry.user_data() == RECEIVE {
            self.buffers.armed = cqueue::more(entry.flags());
            self.ready.push_back(Completion {
                result: entry.result(),
                buffer: cqueue::buffer_select(entry.flags()),
            });
        } else {
            self.returns
                .complete(entry.user_data(), entry.result(), collector);
        }
    }

    /// Takes the buffers from the kernel; says whether that went well.
    fn unregister(&self) -> bool {
        let Some(group) = self.buffers.group else {
            return true;
        };
        self.ring
            .unregister_buffers(group)
            .inspect_err(|err| warn!("the kernel has kept buffers: {err}"))
            .is_ok()
    }

    /// Ends all requests. What was received and not asked for goes back to the NIC, and what could not go
    /// back by the ring.
    fn shut_down(&mut self, collector: &Arc<Collector>, socket: &Socket<'_>) {
        // Whatever fails, the rest has to be tried. Closing the socket returns all tokens.
        if let Err(err) = self.finish_returns(collector) {
            warn!("tokens have not gone back: {err}");
        }
        let mut entries = Vec::new();
        if let Err(err) = self.ring.cancel_all(|entry| entries.push(entry)) {
            warn!("cancelling requests: {err}");
        }
        for entry in &entries {
            self.complete(entry, collector);
        }
        while let Some(completion) = self.ready.pop_front() {
            if completion.result <= 0 {
                continue;
            }
            if let Ok((data, control, len)) = self.buffers.lend(completion) {
                drop(Received::new(socket, data, control, len, None));
            }
        }
        // Requests of which nobody knows whether the kernel has made them are not among these: by now their
        // tokens may be those of other pieces.
        while let Some(call) = collector.take() {
            if let Err(err) = dontneed(socket, call.as_slice()) {
                warn!("tokens have not gone back: {err}");
            }
        }
    }
}

impl Returns {
    /// A free slot.
    fn slot(&mut self) -> usize {
        let free = self.in_flight.iter().position(Option::is_none);
        free.unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        })
    }

    /// Notes how a request ended. If it failed its tokens are collected once more.
    fn complete(&mut self, slot: u64, result: i32, collector: &Collector) {
        let slot = usize::try_from(slot).ok();
        let slot = slot.and_then(|slot| self.in_flight.get_mut(slot));
        let Some(call) = slot.and_then(Option::take) else {
            return;
        };
        let outcome = match u32::try_from(result) {
            Ok(returned) => {
                self.returned += u64::from(returned);
                let outcome = call.check(returned);
                collector.recycle(call);
                outcome
            }
            Err(_) => {
                collector.put_back(call);
                Err(io::Error::from_raw_os_error(-result))
            }
        };
        if let Err(err) = outcome {
            self.failure.get_or_insert(err);
        }
    }

    /// Fails if a return has failed since the last time.
    fn check(&mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl Buffers {
    /// Tells the kernel of the ring of buffers, and gives it all.
    fn register(&mut self, ring: &Member) -> io::Result<()> {
        let at = self.memory.at::<BufRingEntry>(BUF_RING, PAGE);
        // SAFETY: The ring of buffers and they are in the memory, which is written only as the kernel expects it,
        // and not freed before they were unregistered.
        let group = unsafe { ring.register_buffers(at, self.layout.buffers) }?;
        self.group = Some(group);
        for id in 0..self.layout.buffers {
            self.give(id);
        }
        Ok(())
    }

    /// Gives a buffer to the kernel.
    fn give(&mut self, id: u16) {
        let layout = &self.layout;
        let index = usize::from(self.tail % layout.buffers);
        let start = self.memory.at::<u8>(layout.buffer(id), layout.stride);
        let entries = self.memory.at::<BufRingEntry>(BUF_RING, PAGE);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: The entry is in the memory and the kernel does not read it before the tail moves on,
        // which orders it. Nobody has a reference to the entries.
        unsafe {
            let entry = &mut *entries.add(index);
            entry.set_addr(start as u64);
            entry.set_len(layout.length);
            entry.set_bid(id);
            let tail = BufRingEntry::tail(entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// Takes back the buffer that was lent last.
    fn recycle(&mut self) {
        if let Some(id) = self.lent.take() {
            self.give(id);
        }
    }

    /// Whether this result only says that there was no buffer left.
    fn ran_out(&self, result: i32) -> bool {
        self.group.is_some() && result == -libc::ENOBUFS
    }

    /// What the kernel is told of the buffers.
    fn msghdr(&self) -> io::Result<libc::msghdr> {
        let len = self.layout.control;
        match self.group.is_some() {
            // What they have room for is all that is said: the kernel chooses the buffer.
            true => message::header((ptr::null_mut(), 0), (ptr::null_mut(), len)),
            false => message::header(
                (self.memory.at(IOVEC, size_of::<libc::iovec>()), 1),
                (self.memory.at(self.layout.control(0), len), len),
            ),
        }
    }

    /// Adds a receive request.
    fn arm(&mut self, ring: &Member, fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
        let fd = Fd(fd.as_raw_fd());
        let flags =
            u32::try_from(flags | MSG_SOCK_DEVMEM).map_err(|_| io::ErrorKind::InvalidInput)?;
        let iovec = libc::iovec {
            iov_base: self.memory.at(self.layout.data(0), self.layout.data),
            iov_len: self.layout.data,
        };
        let header = self.msghdr()?;
        let msg = self.memory.at::<libc::msghdr>(MSGHDR, PAGE);
        // SAFETY: Both are in the first page of the memory, and no request that uses them is in flight.
        unsafe {
            ptr::write(msg, header);
            ptr::write(self.memory.at(IOVEC, size_of_val(&iovec)), iovec);
        }
        let entry = match self.group {
            Some(group) => opcode::RecvMsgMulti::new(fd, msg, group)
                .flags(flags)
                .build(),
            None => opcode::RecvMsg::new(fd, msg).flags(flags).build(),
        };
        // SAFETY: Message header and buffers are in the memory, of which nothing is touched while the
        // request is in flight, but buffers that the kernel has handed over. The memory outlives it.
        unsafe { ring.push(entry.user_data(RECEIVE)) }?;
        self.armed = true;
        Ok(())
    }

    /// Data and control messages of a receive that went well, and how many bytes it was.
    fn lend(&mut self, completion: Completion) -> io::Result<(&[u8], &[u8], usize)> {
        let layout = self.layout;
        if self.group.is_none() {
            let len = usize::try_from(completion.result)
                .map_err(|_| io::Error::from_raw_os_error(-completion.result))?;
            // SAFETY: The request has completed, and there is no other before the receiver is used
            // again. It has written the message header.
            let (data, control, header) = unsafe {
                (
                    self.memory.bytes(layout.data(0), layout.data),
                    self.memory.bytes(layout.control(0), layout.control),
                    ptr::read(self.memory.at::<libc::msghdr>(MSGHDR, PAGE)),
                )
            };
            return Ok((data, message::control(&header, control), len));
        }

        let garbled = || io::Error::new(io::ErrorKind::InvalidData, "no buffer with what it has");
        let id = completion
            .buffer
            .filter(|&id| id < layout.buffers)
            .ok_or_else(garbled)?;
        self.lent = Some(id);
        // SAFETY: The kernel has handed this buffer over, and gets it back with `recycle()`, which
        // needs the receiver for itself.
        let buffer = unsafe { self.memory.bytes(layout.buffer(id), layout.buffer_size()) };
        let msg = self.msghdr()?;
        let out = RecvMsgOut::parse(buffer, &msg).map_err(|()| garbled())?;
        let (len, used) = (
            out.incoming_payload_len() as usize,
            out.incoming_control_len() as usize,
        );
        let (control, data) = buffer[HEADER..].split_at(layout.control);
        Ok((data, control.get(..used).unwrap_or(control), len))
    }
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        // From here on tokens return themselves; what was collected goes by the ring.
        self.collector.close();
        let Some(mut inner) = self.inner.take() else {
            return;
        };
        inner.shut_down(&self.collector, &self.socket);
        // As long as there are requests in flight, or the kernel knows the buffers, the memory must not be freed.
        if inner.ring.in_flight() > 0 || !inner.unregister() {
            // But it is no longer one of those that the ring tells of.
            let Inner {
                fd,
                buffers,
                returns,
                ..
            } = inner;
            mem::forget((fd, buffers, returns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::connection;
    use crate::token::TokenRange;
    use crate::uring::ring::testing::ring;
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::thread;
    use std::time::Instant;

    const ONE: [TokenRange; 1] = [TokenRange { start: 7, count: 1 }];

    /// A request in flight that returns one token.
    fn in_flight() -> (Returns, Collector) {
        let collector = Collector::new();
        assert!(collector.push(7));
        let mut returns = Returns::default();
        let slot = returns.slot();
        returns.in_flight[slot] = collector.take();
        (returns, collector)
    }

    #[test]
    fn a_token_whose_request_failed_goes_with_the_next() {
        for errno in [libc::ENOMEM, libc::ECANCELED, libc::EINTR] {
            let (mut returns, collector) = in_flight();
            returns.complete(0, -errno, &collector);
            let err = returns.check().unwrap_err();
            assert_eq!(err.raw_os_error(), Some(errno));
            assert_eq!(collector.take().expect("the call").as_slice(), ONE);
            returns.check().unwrap();
        }
    }

    #[test]
    fn a_token_that_went_back_is_gone() {
        let (mut returns, collector) = in_flight();
        for _ in 0..2 {
            returns.complete(0, 1, &collector);
            returns.complete(u64::MAX, 1, &collector);
            returns.check().unwrap();
            assert!(collector.take().is_none());
            assert_eq!(returns.returned, 1);
        }

        let (mut returns, collector) = in_flight();
        returns.complete(0, 0, &collector);
        returns.check().unwrap_err();
        assert!(collector.take().is_none(), "the kernel did not know it");
    }

    /// Whoever waits does not return what others drop, which the NIC may have to have for anything to come.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn tokens_return_themselves_while_it_waits() {
        const LONG: Duration = Duration::from_secs(60);
        let Some(ring) = ring(ENTRIES) else { return };
        let (mut a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut rx = Receiver::on(&ring, b, 4096, 4).unwrap();
        let collector = Arc::clone(&rx.collector);
        assert!(rx.try_recv().unwrap().is_none());
        assert!(!collector.push(7), "who waits for the ring");
        a.write_all(b"some").unwrap();
        ring.wait(Some(LONG)).unwrap();
        assert!(collector.is_waiting());
        rx.collect();
        assert!(collector.push(8), "who is about to make the next call");
        assert!(collector.take().is_some());
        assert_eq!(rx.try_recv().unwrap().unwrap().total(), 4);
        assert!(!collector.is_waiting());

        let start = Instant::now();
        let receiver = thread::spawn(move || {
            let total = rx.recv().map(|received| received.total());
            (total, rx)
        });
        while !collector.is_waiting() {
            assert!(start.elapsed() < LONG);
            thread::sleep(poll::PAUSE);
        }
        assert!(!collector.push(7), "who waits for this one");
        a.write_all(b"more").unwrap();
        let (total, rx) = receiver.join().unwrap();
        assert_eq!(total.unwrap(), 4);
        assert!(!collector.is_waiting());
        drop(rx);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        for (data, frags) in [
            (usize::MAX, 1),
            (1, usize::MAX),
            (1, usize::MAX / cmsg::SPACE),
            (usize::MAX - PAGE, 1),
            (u32::MAX as usize, 1),
        ] {
            assert!(Layout::new(data, frags, 8).is_err(), "{data} {frags}");
        }
        let layout = Layout::new(1000, 2, 8).unwrap();
        assert!(layout.data(7) + layout.data <= layout.size());
        assert_eq!(layout.length as usize, layout.buffer_size());
    }
}
