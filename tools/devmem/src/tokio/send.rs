// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Sending: calls that do not wait, made when the runtime says that there is room, and completions.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;
use ::tokio::runtime::Handle;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt;

use super::register;
use crate::completion::Sent;
use crate::netdev::TxBinding;
use crate::send;
use crate::send::Rest;
use crate::send::SendError;
use crate::send::Source;
use crate::socket::Socket;

/// Sends from dma-bufs over a TCP socket.
///
/// It does what [`crate::Sender`] does, and what is said there holds here.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// use std::time::Duration;
///
/// use devmem::tokio::Sender;
/// use devmem::{BindTx, DmaBuf};
/// use tokio::time::timeout;
///
/// let ifindex = devmem::netns::Netns::current()?.ifindex("eth0")?;
/// let memory = DmaBuf::udmabuf(4 << 20)?;
/// let binding = BindTx::new(ifindex).bind(&memory)?;
/// let stream = tokio::net::TcpStream::connect("192.0.2.1:5201").await?;
/// let mut tx = Sender::new(&stream)?;
///
/// match timeout(Duration::from_secs(1), tx.send(&binding, memory.region()?)).await {
///     Ok(sent) => sent?,
///     Err(_) => {
///         // As much as there was room for. What is left goes on later.
///         if let Some(rest) = tx.rest() {
///             eprintln!("{} bytes are left", rest.bytes());
///             tx.resume(&binding, rest).await?;
///         }
///     }
/// }
/// // The region, when the peer has all of it.
/// let sent = tx.wait().await?;
/// # drop(sent);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # })
/// # }
/// ```
#[derive(Debug)]
pub struct Sender<'s, T> {
    inner: send::Sender<'s, T>,
    /// Completions come by the error queue.
    errors: AsyncFd<OwnedFd>,
    /// The runtime that this was made in: wherever it is polled, it is that one that wakes.
    runtime: Handle,
    /// What a future has left that was dropped.
    rest: Option<Rest>,
    /// What other futures were to go on with that were dropped, and would have failed.
    refused: Vec<Rest>,
}

impl<'s, T: Source> Sender<'s, T> {
    /// Makes a socket ready for sending from dma-bufs, as [`crate::Sender::new`] does.
    ///
    /// # Errors
    ///
    /// Those of [`TxSocket::new`](crate::TxSocket::new), of `dup()` and of `epoll_ctl()`: `EMFILE`, `ENOSPC`, `ENOMEM`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime that has I/O enabled.
    pub fn new(socket: impl Into<Socket<'s>>) -> io::Result<Self> {
        let socket = socket.into();
        // What may fail comes before the socket, of which there is no second one to be had.
        let errors = register(socket.as_fd(), Interest::ERROR)?;
        Ok(Self {
            inner: send::Sender::new(socket)?,
            errors,
            runtime: Handle::current(),
            rest: None,
            refused: Vec::new(),
        })
    }

    /// Sends all of a source, which lies in the dma-buf of `binding`.
    ///
    /// Waits for room in the socket, and if the kernel has no memory for more calls in flight
    /// (`ENOBUFS`), for some to complete.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Sender::send`], but for those of a socket that does not wait: this one waits in any case, by
    /// another descriptor for that time, and so may fail with `EMFILE`, `ENOSPC` and `ENOMEM` as [`new`](Self::new) does.
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) while there is a [`rest`](Self::rest): what is sent now would be in
    /// its place.
    ///
    /// # Cancel safety
    ///
    /// The sender has the source from here on, whether the future is polled or not. If it is dropped before its end
    /// [`rest`](Self::rest) gives what has not been sent, and the source comes back by [`wait`](Self::wait) when the
    /// kernel does not read it: at once, if nothing was sent, or if this would have failed.
    pub fn send(
        &mut self,
        binding: &TxBinding,
        source: T,
    ) -> impl Future<Output = Result<(), SendError<T>>> {
        self.send_flags(binding, source, 0)
    }

    /// Like [`send`](Self::send), with more flags of `sendmsg()`: those of [`crate::Sender::send_flags`]. With
    /// `MSG_DONTWAIT` it does not.
    ///
    /// # Errors
    ///
    /// Those of both; [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room, with `MSG_DONTWAIT`.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub fn send_flags(
        &mut self,
        binding: &TxBinding,
        source: T,
        flags: i32,
    ) -> impl Future<Output = Result<(), SendError<T>>> {
        self.begin(binding.number(), source, flags)
    }

    fn begin(
        &mut self,
        dmabuf_id: NonZero<u32>,
        source: T,
        flags: i32,
    ) -> impl Future<Output = Result<(), SendError<T>>> {
        let opened = match self.is_cut() {
            false => send::open(&mut self.inner, dmabuf_id, source),
            true => Err(SendError {
                source: Some(source),
                ..busy()
            }),
        };
        self.start(opened, flags)
    }

    /// Sends what an earlier call has left, or a future that was dropped, from the same binding.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Sender::resume`] and of [`send`](Self::send).
    ///
    /// # Cancel safety
    ///
    /// As there. [`rest`](Self::rest) gives what this would have refused as well, unless it is of another sender.
    pub fn resume(
        &mut self,
        binding: &TxBinding,
        rest: Rest,
    ) -> impl Future<Output = Result<(), SendError<T>>> {
        self.resume_flags(binding, rest, 0)
    }

    /// Like [`resume`](Self::resume), with the flags of [`send_flags`](Self::send_flags).
    ///
    /// # Errors
    ///
    /// Those of both.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub fn resume_flags(
        &mut self,
        binding: &TxBinding,
        rest: Rest,
        flags: i32,
    ) -> impl Future<Output = Result<(), SendError<T>>> {
        self.go_on(binding.number(), rest, flags)
    }

    fn go_on(
        &mut self,
        dmabuf_id: NonZero<u32>,
        rest: Rest,
        flags: i32,
    ) -> impl Future<Output = Result<(), SendError<T>>> {
        let opened = match self.is_cut() {
            false => send::reopen(&mut self.inner, dmabuf_id, rest),
            true => Err(SendError {
                rest: Some(rest),
                ..busy()
            }),
        };
        self.start(opened, flags)
    }

    /// What a future has left that was dropped, to go on with by [`resume`](Self::resume): `None` if there is nothing, or
    /// if its source was given back. There may be several, of futures that would have failed.
    ///
    /// Who does not go on with it leaves the source at what was sent of it, which [`Sent::bytes`] tells.
    pub fn rest(&mut self) -> Option<Rest> {
        let cut = self.rest.take();
        let mut rests = cut.into_iter().chain(self.refused.drain(..));
        let rest = rests.find(|rest| self.inner.has(rest));
        let others: Vec<_> = rests.collect();
        self.refused = others;
        rest
    }

    /// Whether there is something in between, before which nothing else is to be sent.
    fn is_cut(&mut self) -> bool {
        self.rest = self.rest.take().filter(|rest| self.inner.has(rest));
        self.rest.is_some()
    }

    /// The future of a call, which has an open source from the start.
    fn start(
        &mut self,
        opened: Result<Rest, SendError<T>>,
        flags: i32,
    ) -> impl Future<Output = Result<(), SendError<T>>> {
        let (rest, refused) = match opened {
            Ok(rest) => (Some(rest), None),
            Err(err) => (None, Some(err)),
        };
        let sending = Sending {
            sender: self,
            rest,
            refused,
        };
        sending.run(flags)
    }

    /// A source whose memory is free again, if there is one by now.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Sender::completed`].
    pub fn completed(&mut self) -> io::Result<Option<Sent<T>>> {
        self.inner.completed()
    }

    /// Waits for a source whose memory is free again: `None` if there is nothing to wait for.
    ///
    /// If the connection breaks, the error is told once. What is in flight completes nevertheless, so
    /// go on waiting for it.
    ///
    /// # Errors
    ///
    /// Those of [`completed`](Self::completed), and of the connection.
    ///
    /// # Cancel safety
    ///
    /// A future that was dropped has given nothing back.
    pub async fn wait(&mut self) -> io::Result<Option<Sent<T>>> {
        loop {
            if let Some(sent) = self.inner.completed()? {
                return Ok(Some(sent));
            }
            if self.in_flight() == 0 {
                return Ok(None);
            }
            self.reaped().await?;
        }
    }

    /// Calls of `sendmsg()` that are not known to be completed.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    /// Ends the connection at once, as [`crate::Sender::abort`] does, so that everything comes back.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn abort(&mut self) -> io::Result<()> {
        self.inner.abort()
    }

    /// Waits until there was something on the error queue.
    async fn reaped(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.errors.ready(Interest::ERROR).await?;
            if self.inner.reap()? > 0 {
                return Ok(());
            }
            // Not the error queue, but the connection's own error, or what has been taken from there.
            match getsockopt(&self.inner.fd(), sockopt::SocketError)? {
                0 => ready.clear_ready(),
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }

    /// Waits until another call may send something.
    async fn room(&mut self) -> io::Result<()> {
        // A completion is told as an error is, which who waits for room is woken by, too.
        self.inner.reap()?;
        // For this time only: what is told together with an error the runtime takes for the end of the connection,
        // and from then on for room.
        let room = {
            let _runtime = self.runtime.enter();
            register(self.inner.fd(), Interest::WRITABLE)?
        };
        room.ready(Interest::WRITABLE).await.map(drop)
    }
}

/// Why nothing is sent in the place of what a dropped future has left.
fn busy<T>() -> SendError<T> {
    SendError {
        error: io::Error::new(
            io::ErrorKind::ResourceBusy,
            "a call was cancelled in between: go on with its rest, or give that up",
        ),
        sent: 0,
        source: None,
        rest: None,
    }
}

/// A source that is being sent, until this is dropped.
struct Sending<'t, 's, T> {
    sender: &'t mut Sender<'s, T>,
    /// What is left of it, until that is known to be the end.
    rest: Option<Rest>,
    /// Why nothing of it is sent, with what was to be, until that is told.
    refused: Option<SendError<T>>,
}

impl<T: Source> Sending<'_, '_, T> {
    async fn run(mut self, flags: i32) -> Result<(), SendError<T>> {
        if let Some(err) = self.refused.take() {
            return Err(err);
        }
        let mut sent = 0;
        let result = loop {
            let Some(rest) = &mut self.rest else {
                return Ok(());
            };
            // The waiting is done here.
            let how = (flags | libc::MSG_DONTWAIT).into();
            let (now, result) = send::send_some(&mut self.sender.inner, rest, how);
            sent += now;
            let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
            let waited = match errno {
                _ if flags & libc::MSG_DONTWAIT != 0 => break result,
                Some(libc::EAGAIN) => self.sender.room().await,
                Some(libc::ENOBUFS) if self.sender.in_flight() > 0 => self.sender.reaped().await,
                _ => break result,
            };
            if waited.is_err() {
                break waited;
            }
        };
        match self.rest.take() {
            Some(rest) => send::close(&mut self.sender.inner, rest, sent, result),
            None => Ok(()),
        }
    }
}

impl<T> Drop for Sending<'_, '_, T> {
    fn drop(&mut self) {
        if let Some(rest) = self.rest.take() {
            self.sender.inner.set_aside(&rest);
            self.sender.rest = Some(rest);
        }
        // Nobody was told of this, or was given what is in it.
        if let Some(SendError { source, rest, .. }) = self.refused.take() {
            if let Some(source) = source {
                self.sender.inner.give_back(source);
            }
            self.sender.refused.extend(rest);
        }
    }
}

// Miri does not know these system calls.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::pin::pin;
    use std::task::Context;
    use std::task::Waker;

    use ::tokio::runtime::Builder;

    use crate::dmabuf::Extent;
    use crate::testing::connection;

    /// Bindings that nobody has.
    const NOBODY: NonZero<u32> = NonZero::new(0x7fff_fff0).unwrap();
    const OTHER: NonZero<u32> = NonZero::new(0x7fff_fff1).unwrap();

    /// It is made in a runtime, and polled by whoever likes to.
    #[test]
    fn room_is_waited_for_outside_of_the_runtime() {
        let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let mut tx = {
            let _runtime = runtime.enter();
            Sender::<Extent>::new(&a).unwrap()
        };
        let mut room = pin!(tx.room());
        let mut nobody = Context::from_waker(Waker::noop());
        assert!(room.as_mut().poll(&mut nobody).is_pending());
        runtime.block_on(room).unwrap();
    }

    #[test]
    fn what_was_refused_is_given_back_also_if_nobody_asks() {
        let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let [one, other] = [10, 20].map(|len| Extent { offset: 0, len });
            let mut tx = Sender::new(&a).unwrap();
            drop(tx.begin(NOBODY, one, 0));
            // Refused, as there is a rest, which this leaves alone.
            drop(tx.begin(NOBODY, other, 0));
            let mut rest = tx.rest().expect("the rest");
            // Refused, as it is of another binding.
            for _ in 0..2 {
                assert_eq!(rest.bytes(), one.len);
                drop(tx.go_on(OTHER, rest, 0));
                rest = tx.rest().expect("what was refused");
            }
            assert!(tx.rest().is_none());
            for source in [one, other] {
                let back = tx.wait().await.unwrap().expect("a source");
                assert_eq!((back.source, back.bytes), (source, 0));
            }
            assert_eq!(tx.wait().await.unwrap(), None);
            // Nothing to send is sent at once, and comes back as all else.
            let nothing = Extent { offset: 0, len: 0 };
            tx.begin(NOBODY, nothing, 0).await.unwrap();
            let back = tx.wait().await.unwrap().expect("a source");
            assert_eq!((back.source, back.bytes), (nothing, 0));
        });
    }
}
