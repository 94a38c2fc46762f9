// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Receiving: `recvmsg(MSG_SOCK_DEVMEM)` and the pieces that it tells of.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
#[cfg(feature = "tokio")]
use std::os::fd::BorrowedFd;
use std::slice;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;

use crate::cmsg;
use crate::cmsg::DevmemCmsg;
use crate::cmsg::DevmemCmsgs;
use crate::cmsg::DmabufCmsg;
use crate::local::Outbox;
use crate::message;
use crate::poll;
use crate::socket::Socket;
use crate::token::Collector;
use crate::token::Token;
use crate::token::Way;

/// `MSG_SOCK_DEVMEM`.
pub const MSG_SOCK_DEVMEM: i32 = 0x200_0000;
/// `TCP_DEVMEM_RUNS`, an option of level `IPPROTO_TCP`.
pub const TCP_DEVMEM_RUNS: i32 = 0x4445_4d01;

const DATA: usize = 1 << 20;
const FRAGS: usize = 512;

/// Has a TCP socket tell of all that follows each other in the dma-buf by one piece, with one token, instead of by one for
/// each buffer that it was received into. Returns whether it will.
///
/// With small buffers that is most of what receiving costs. A piece may be longer than a buffer then, and all of it is
/// taken until its token is back. It is the socket's, whoever else has it, and of those that a listening one accepts from
/// then on.
///
/// Kernels without the option, and providers that do not know it, go on with a piece for each buffer: that is no error.
///
/// # Errors
///
/// Those of `setsockopt()`.
pub fn take_runs(socket: impl AsFd) -> io::Result<bool> {
    let on: libc::c_int = 1;
    // SAFETY: `on` is readable for the length given.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_DEVMEM_RUNS,
            (&raw const on).cast(),
            libc::c_int::BITS / 8,
        )
    };
    if ret == 0 {
        return Ok(true);
    }
    let err = io::Error::last_os_error();
    match err.raw_os_error() {
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) => Ok(false),
        _ => Err(err),
    }
}

/// Receives from a TCP socket, with buffers that are allocated once.
///
/// It borrows the socket or owns a part of it, see [`Socket`], and so do its tokens, which cannot outlive it.
#[derive(Debug)]
pub struct Receiver<'s> {
    socket: Socket<'s>,
    data: Vec<u8>,
    control: Vec<u8>,
}

impl<'s> Receiver<'s> {
    /// Takes up to 1 MiB and 512 pieces with a call.
    pub fn new(socket: impl Into<Socket<'s>>) -> Self {
        Self::with_capacity(socket, DATA, FRAGS)
    }

    /// Takes up to `data` bytes and `frags` pieces with a call.
    pub fn with_capacity(socket: impl Into<Socket<'s>>, data: usize, frags: usize) -> Self {
        Self {
            socket: socket.into(),
            data: vec![0; data],
            control: vec![0; frags * cmsg::SPACE],
        }
    }

    /// Waits for data, and tells where it lies.
    ///
    /// # Errors
    ///
    /// Those of `recvmsg()`. `EFAULT` and error 525 (`ETOOSMALL`) are about buffers that are too small: see
    /// [`with_capacity`](Self::with_capacity). [`WouldBlock`](io::ErrorKind::WouldBlock) if nothing has come, on a
    /// socket that does not wait, or waits only for a while (`SO_RCVTIMEO`). `ENOBUFS` if the socket has as many tokens as
    /// it may: see [`BindRx::max_tokens`](crate::BindRx::max_tokens). Nothing is lost by any of them.
    ///
    /// Something is lost if it is `EIO`, again and again: the exporter took the memory back that the next bytes were in;
    /// or `ECONNABORTED`: an operator [flushed](crate::netdev::Netdev::flush) the binding, or aborted the connection.
    pub fn recv(&mut self) -> io::Result<Received<'_, 's>> {
        self.recv_flags(0)
    }

    /// Like [`recv`](Self::recv), with more flags of `recvmsg()`.
    ///
    /// # Errors
    ///
    /// As there; [`InvalidInput`](io::ErrorKind::InvalidInput) for `MSG_TRUNC` and `MSG_ERRQUEUE`: what a call with
    /// these tells is no piece of the stream, nor its end.
    pub fn recv_flags(&mut self, flags: i32) -> io::Result<Received<'_, 's>> {
        let (len, header) = self.call(flags)?;
        Ok(self.received(len, &header))
    }

    /// Like [`recv`](Self::recv), but no longer than a while, whatever the socket's own timeout is.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn recv_timeout(&mut self, timeout: Duration) -> io::Result<Received<'_, 's>> {
        let deadline = poll::end_of(timeout);
        loop {
            match self.call(libc::MSG_DONTWAIT) {
                Ok((len, header)) => return Ok(self.received(len, &header)),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => (),
                Err(err) => return Err(err),
            }
            let ready = poll::ready(self.socket.as_fd(), PollFlags::POLLIN, deadline)?;
            if !ready.contains(PollFlags::POLLIN) {
                // An error, which the next call tells; but a sender's completions are none for this one.
                thread::sleep(poll::PAUSE);
            }
        }
    }

    /// The socket.
    #[cfg(feature = "tokio")]
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Makes one call.
    pub(crate) fn call(&mut self, flags: i32) -> io::Result<(usize, libc::msghdr)> {
        check_flags(flags)?;
        let mut iov = libc::iovec {
            iov_base: self.data.as_mut_ptr().cast(),
            iov_len: self.data.len(),
        };
        let control = (self.control.as_mut_ptr(), self.control.len());
        let mut msg = message::header((&mut iov, 1), control)?;

        loop {
            // SAFETY: `msg` points to one iovec and a control buffer, both writable for the lengths
            // given, and nothing else refers to them during the call.
            let ret = unsafe {
                libc::recvmsg(self.socket.as_raw_fd(), &mut msg, flags | MSG_SOCK_DEVMEM)
            };
            if let Ok(len) = usize::try_from(ret) {
                return Ok((len, msg));
            }
            let err = io::Error::last_os_error();
            if err.kind() != io::ErrorKind::Interrupted {
                return Err(err);
            }
        }
    }

    /// What that call received.
    pub(crate) fn received(&self, len: usize, header: &libc::msghdr) -> Received<'_, 's> {
        let control = message::control(header, &self.control);
        Received::new(&self.socket, &self.data, control, len, None)
    }
}

/// Fails if there is a flag among these with which a call leaves the buffers alone and tells of bytes nevertheless.
pub(crate) fn check_flags(flags: i32) -> io::Result<()> {
    match flags & (libc::MSG_TRUNC | libc::MSG_ERRQUEUE) {
        0 => Ok(()),
        others => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("flags {others:#x} are not for receiving pieces"),
        )),
    }
}

/// What receives from a socket: the [`Receiver`] here, that of [`uring`](crate::uring), and a
/// [`Channel`](crate::local::Channel).
pub trait Receive<'s> {
    /// Waits for data, and tells where it lies.
    ///
    /// # Errors
    ///
    /// Those of [`Receiver::recv`] and of [`uring::Receiver::recv`](crate::uring::Receiver::recv).
    fn recv(&mut self) -> io::Result<Received<'_, 's>>;

    /// The same, but no longer than a while.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](io::ErrorKind::TimedOut).
    fn recv_timeout(&mut self, timeout: Duration) -> io::Result<Received<'_, 's>>;
}

impl<'s> Receive<'s> for Receiver<'s> {
    fn recv(&mut self) -> io::Result<Received<'_, 's>> {
        Receiver::recv(self)
    }

    fn recv_timeout(&mut self, timeout: Duration) -> io::Result<Received<'_, 's>> {
        Receiver::recv_timeout(self, timeout)
    }
}

/// What one call received: an iterator over its pieces in stream order.
///
/// Tokens of pieces that were not asked for go back to the NIC when this is dropped.
#[derive(Debug)]
#[must_use = "the next part of the stream is in here"]
pub struct Received<'r, 's> {
    socket: &'r Socket<'s>,
    data: &'r [u8],
    told: Told<'r>,
    way: Option<Way>,
    len: usize,
    plain: bool,
}

/// What tells of pieces.
#[derive(Debug)]
enum Told<'r> {
    /// Control messages of the kernel.
    Kernel(DevmemCmsgs<'r>),
    /// The other end of a channel.
    Peer(slice::Iter<'r, DmabufCmsg>),
}

impl Iterator for Told<'_> {
    type Item = DevmemCmsg;

    fn next(&mut self) -> Option<DevmemCmsg> {
        match self {
            Self::Kernel(cmsgs) => cmsgs.next(),
            Self::Peer(parts) => parts.next().copied().map(DevmemCmsg::Dmabuf),
        }
    }
}

impl<'r, 's> Received<'r, 's> {
    /// What a call with these buffers received, which returned `len`.
    pub(crate) fn new(
        socket: &'r Socket<'s>,
        data: &'r [u8],
        control: &'r [u8],
        len: usize,
        collector: Option<&'r Arc<Collector>>,
    ) -> Self {
        Self {
            socket,
            data,
            told: Told::Kernel(DevmemCmsgs::new(control)),
            way: collector.map(|ring| Way::Ring(Arc::clone(ring))),
            len,
            // A call takes either device memory or ordinary segments, never both.
            plain: len > 0 && DevmemCmsgs::new(control).next().is_none(),
        }
    }

    /// What the other end of a channel has told of.
    pub(crate) fn from_peer(
        socket: &'r Socket<'s>,
        parts: &'r [DmabufCmsg],
        outbox: &Arc<Outbox>,
    ) -> Self {
        Self {
            socket,
            data: &[],
            told: Told::Peer(parts.iter()),
            way: Some(Way::Peer(Arc::clone(outbox))),
            len: parts.iter().fold(0, |len: usize, part| {
                len.saturating_add(part.frag_size as usize)
            }),
            plain: false,
        }
    }
}

impl Received<'_, '_> {
    /// Bytes of all pieces together.
    pub fn total(&self) -> usize {
        self.len
    }

    /// Whether the peer has sent everything (or the buffer has no room).
    pub fn is_eof(&self) -> bool {
        self.len == 0
    }
}

/// A piece of the stream.
///
/// There will be no others: who does not know what a piece is loses a part of the stream.
#[derive(Debug)]
pub enum Piece<'r, 's> {
    /// It lies in device memory.
    Frag(Frag<'s>),
    /// It arrived in host memory together with device memory, and was copied.
    Linear(&'r [u8]),
    /// It arrived on a queue without device memory, and was copied.
    Plain(&'r [u8]),
}

/// A piece that lies in device memory.
#[derive(Debug)]
#[non_exhaustive]
pub struct Frag<'s> {
    /// Where it starts in the dma-buf.
    pub offset: u64,
    /// Its length. More than a buffer's only if [`take_runs`] was called.
    pub size: u32,
    /// The binding that it belongs to: [`Binding::id`](crate::Binding::id), or [`TxBinding::id`](crate::TxBinding::id) of
    /// a sender on this machine.
    pub dmabuf_id: u32,
    /// While this lives, the device does not write here.
    pub token: Token<'s>,
}

impl<'r, 's> Iterator for Received<'r, 's> {
    type Item = Piece<'r, 's>;

    fn next(&mut self) -> Option<Piece<'r, 's>> {
        if mem::take(&mut self.plain) {
            return self.data.get(..self.len).map(Piece::Plain);
        }
        match self.told.next()? {
            DevmemCmsg::Linear(size) => {
                let (piece, rest) = self.data.split_at_checked(size as usize)?;
                self.data = rest;
                Some(Piece::Linear(piece))
            }
            DevmemCmsg::Dmabuf(cmsg) => Some(Piece::Frag(Frag {
                offset: cmsg.frag_offset,
                size: cmsg.frag_size,
                dmabuf_id: cmsg.dmabuf_id,
                token: Token::new(self.socket.clone(), cmsg.frag_token, self.way.as_ref()),
            })),
        }
    }
}

impl Drop for Received<'_, '_> {
    fn drop(&mut self) {
        // Not by way of next(), which ends where a piece is not what it should be.
        for cmsg in &mut self.told {
            if let DevmemCmsg::Dmabuf(cmsg) = cmsg {
                drop(Token::new(
                    self.socket.clone(),
                    cmsg.frag_token,
                    self.way.as_ref(),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::net::Shutdown;
    use std::time::Instant;

    use crate::testing::connection;

    fn message(kind: i32, size: u32, token: u32) -> Vec<u8> {
        let mut data = 4096_u64.to_ne_bytes().to_vec();
        for word in [size, token, 1, 0] {
            data.extend(word.to_ne_bytes());
        }
        cmsg::encode(libc::SOL_SOCKET, kind, &data)
    }

    fn frag(token: u32) -> Vec<u8> {
        message(cmsg::SCM_DEVMEM_DMABUF, 10, token)
    }

    /// The tokens that come back to a ring.
    fn returned(ring: &Collector) -> Vec<u32> {
        std::iter::from_fn(|| ring.take())
            .flat_map(|call| call.as_slice().to_vec())
            .flat_map(|range| range.start..range.start + range.count)
            .collect()
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn nobody_waits_for_longer_than_he_says() {
        const SHORT: Duration = Duration::from_millis(20);
        let (a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut rx = Receiver::new(&b);
        let start = Instant::now();
        for timeout in [SHORT, Duration::ZERO] {
            let err = rx.recv_timeout(timeout).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        }
        assert!(start.elapsed() >= SHORT);
        let total = |rx: &mut Receiver<'_>, timeout| rx.recv_timeout(timeout).unwrap().total();
        (&a).write_all(b"some").unwrap();
        assert_eq!(total(&mut rx, Duration::MAX), 4);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(SHORT);
                (&a).write_all(b"more").unwrap();
                a.shutdown(Shutdown::Write).unwrap();
            });
            assert_eq!(total(&mut rx, Duration::from_secs(60)), 4);
        });
        assert_eq!(total(&mut rx, Duration::ZERO), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn runs_are_asked_of_tcp_sockets_only() {
        let (_a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        // Whatever the kernel is.
        take_runs(&b).unwrap();
        let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!take_runs(&udp).unwrap());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(
            take_runs(&file).unwrap_err().raw_os_error(),
            Some(libc::ENOTSOCK)
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_is_no_piece_is_not_asked_for() {
        let (mut a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        a.write_all(b"some").unwrap();
        let mut rx = Receiver::new(&b);
        for flags in [libc::MSG_TRUNC, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT] {
            let err = rx.recv_flags(flags).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        }
        let mut received = rx.recv().unwrap();
        assert!(matches!(received.next(), Some(Piece::Plain(b"some"))));
    }

    #[test]
    fn what_was_not_asked_for_goes_back() {
        // No token returns itself here, so any descriptor will do.
        let stdin = io::stdin();
        let socket = Socket::from(&stdin);
        let ring = Arc::new(Collector::new());
        let linear = message(cmsg::SCM_DEVMEM_LINEAR, 3, 0);
        let control = [frag(7), linear, frag(9), frag(10)].concat();
        let mut received = Received::new(&socket, b"abcd", &control, 33, Some(&ring));
        let kept = received.next();
        assert!(matches!(&kept, Some(Piece::Frag(frag)) if (frag.offset, frag.size) == (4096, 10)));
        assert!(matches!(received.next(), Some(Piece::Linear(b"abc"))));
        drop(received);
        assert_eq!(returned(&ring), [9, 10]);
        drop(kept);
        assert_eq!(returned(&ring), [7]);
    }

    #[test]
    fn a_piece_that_is_none_loses_no_token() {
        // No token returns itself here, so any descriptor will do.
        let stdin = io::stdin();
        let socket = Socket::from(&stdin);
        let ring = Arc::new(Collector::new());
        // More linear bytes than there are.
        let linear = message(cmsg::SCM_DEVMEM_LINEAR, 5, 0);
        let control = [frag(1), linear.clone(), frag(2), linear, frag(3)].concat();
        drop(Received::new(&socket, b"abcd", &control, 40, Some(&ring)));
        assert_eq!(returned(&ring), [1, 2, 3]);
    }
}
