// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Receiving: calls that do not wait, made when the runtime says that there is something.

use std::io;
use std::os::fd::OwnedFd;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;

use super::register;
use crate::recv;
use crate::recv::Received;
use crate::socket::Socket;

/// The end of a connection, by whatever error, is something to read. Errors by themselves are those of the error queue,
/// where a sender of the same socket has completions.
const READ: Interest = Interest::READABLE;

/// Receives from a TCP socket, with buffers that are allocated once.
///
/// It borrows the socket or owns a part of it, see [`Socket`], and so do its tokens, which cannot outlive it.
#[derive(Debug)]
pub struct Receiver<'s> {
    inner: recv::Receiver<'s>,
    readiness: AsyncFd<OwnedFd>,
}

impl<'s> Receiver<'s> {
    /// Takes up to 1 MiB and 512 pieces with a call.
    ///
    /// # Errors
    ///
    /// Those of `dup()` and `epoll_ctl()`: `EMFILE`, `ENOSPC`, `ENOMEM`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime that has I/O enabled.
    pub fn new(socket: impl Into<Socket<'s>>) -> io::Result<Self> {
        Self::of(recv::Receiver::new(socket))
    }

    /// Takes up to `data` bytes and `frags` pieces with a call.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    ///
    /// # Panics
    ///
    /// As there.
    pub fn with_capacity(
        socket: impl Into<Socket<'s>>,
        data: usize,
        frags: usize,
    ) -> io::Result<Self> {
        Self::of(recv::Receiver::with_capacity(socket, data, frags))
    }

    fn of(inner: recv::Receiver<'s>) -> io::Result<Self> {
        Ok(Self {
            readiness: register(inner.fd(), READ)?,
            inner,
        })
    }

    /// Waits for data, and tells where it lies.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Receiver::recv`], but for those of a socket that does not wait: this one waits in any case.
    ///
    /// # Cancel safety
    ///
    /// The call that receives is the last thing that this does. A future that was dropped has received nothing.
    pub async fn recv(&mut self) -> io::Result<Received<'_, 's>> {
        self.recv_flags(0).await
    }

    /// Like [`recv`](Self::recv), with more flags of `recvmsg()`.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn recv_flags(&mut self, flags: i32) -> io::Result<Received<'_, 's>> {
        loop {
            let mut ready = self.readiness.ready(READ).await?;
            // Nothing may be awaited between a call that goes well and the end.
            match self.inner.call(flags | libc::MSG_DONTWAIT) {
                Ok((len, header)) => return Ok(self.inner.received(len, &header)),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(err) => return Err(err),
            }
        }
    }
}

// Miri does not know these system calls.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::future::Future;
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::net::Shutdown;
    use std::os::fd::AsFd;
    use std::os::fd::AsRawFd;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;
    use std::task::Context;
    use std::task::Wake;
    use std::task::Waker;
    use std::time::Duration;

    use ::tokio::runtime::Builder;
    use nix::sys::socket::MsgFlags;
    use nix::sys::socket::send;

    use crate::testing::connection;

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(future)
    }

    /// Nothing that works takes longer.
    const LONG: Duration = Duration::from_secs(60);

    /// How many bytes come, within a while.
    async fn within(timeout: Duration, rx: &mut Receiver<'_>, flags: i32) -> Option<usize> {
        let received = ::tokio::time::timeout(timeout, rx.recv_flags(flags)).await;
        received.ok().map(|received| received.unwrap().total())
    }

    #[test]
    fn a_receive_that_is_dropped_has_received_nothing() {
        const SHORT: Duration = Duration::from_millis(20);
        let (mut a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        run(async {
            let mut rx = Receiver::new(&b).unwrap();
            for text in ["some", "more"] {
                assert_eq!(within(SHORT, &mut rx, 0).await, None);
                a.write_all(text.as_bytes()).unwrap();
                // It has not heard of that yet.
                let mut nobody = Context::from_waker(Waker::noop());
                assert!(pin!(rx.recv()).poll(&mut nobody).is_pending());
                assert_eq!(within(LONG, &mut rx, libc::MSG_PEEK).await, Some(4));
                assert_eq!(within(LONG, &mut rx, 0).await, Some(4));
            }
            a.shutdown(Shutdown::Write).unwrap();
            for _ in 0..2 {
                assert_eq!(within(LONG, &mut rx, 0).await, Some(0));
            }
        });
    }

    /// Two of one socket, and that is one of tokio's.
    #[test]
    fn a_socket_may_be_in_use_already() {
        let (a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        b.set_nonblocking(true).unwrap();
        run(async {
            let b = Arc::new(::tokio::net::TcpStream::from_std(b).unwrap());
            let mut one = Receiver::new(Arc::clone(&b)).unwrap();
            let mut other = Receiver::with_capacity(b, 2, 1).unwrap();
            let task = ::tokio::spawn(async move {
                let first = other.recv().await?.total();
                Ok::<_, io::Error>((first, one.recv().await?.total()))
            });
            (&a).write_all(b"some").unwrap();
            let sizes = ::tokio::time::timeout(LONG, task).await.unwrap();
            assert_eq!(sizes.unwrap().unwrap(), (2, 2));
        });
    }

    #[test]
    fn the_end_of_a_connection_is_told() {
        let (a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        run(async {
            let mut rx = Receiver::new(&b).unwrap();
            assert_eq!(within(Duration::ZERO, &mut rx, 0).await, None);
            crate::tcp::abort(&a).unwrap();
            let end = ::tokio::time::timeout(LONG, rx.recv()).await.unwrap();
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        });
    }
    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn completions_of_a_sender_do_not_wake_it() {
        let (a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let _tx = crate::TxSocket::new(&b).unwrap();
        run(async {
            let mut rx = Receiver::new(&b).unwrap();
            let errors = register(b.as_fd(), Interest::ERROR).unwrap();
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let mut receiving = pin!(rx.recv());
            let first = receiving.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(first.is_pending());

            let flags = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
            send(b.as_raw_fd(), b"some", flags).unwrap();
            let told = ::tokio::time::timeout(LONG, errors.ready(Interest::ERROR)).await;
            drop(told.expect("a completion").unwrap());
            // The runtime hears of both at once, or nearly so.
            for _ in 0..10 {
                ::tokio::task::yield_now().await;
            }
            assert_eq!(woken.0.load(Ordering::Relaxed), 0);

            (&a).write_all(b"others").unwrap();
            let received = ::tokio::time::timeout(LONG, receiving).await.unwrap();
            assert_eq!(received.unwrap().total(), 6);
        });
    }
}
