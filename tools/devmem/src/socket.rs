// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Sockets: borrowed from their owner, or owned together with others.

use std::fmt;
use std::marker::PhantomData;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A socket that stays open for as long as this is there, or a clone of it.
///
/// It is made of
///
/// - a reference to anything that has a descriptor: a `&TcpStream`, say;
/// - an [`Arc`] of it. Then what is made of the socket, down to each [`Token`](crate::Token), borrows nothing and
///   can go to other threads and tasks. The socket is closed when the last of all that is gone;
/// - a [`TcpStream`], a [`UnixStream`] or an [`OwnedFd`] that is given away.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::net::TcpStream;
/// use std::sync::Arc;
///
/// use devmem::Piece;
/// use devmem::Receiver;
///
/// let stream = Arc::new(TcpStream::connect("192.0.2.1:5201")?);
/// let mut rx = Receiver::new(Arc::clone(&stream));
/// let (to, frags) = std::sync::mpsc::channel();
/// std::thread::spawn(move || {
///     for frag in frags {
///         // Uses the memory, which goes back with this.
///         let frag: devmem::Frag<'static> = frag;
///     }
/// });
/// for piece in rx.recv()? {
///     if let Piece::Frag(frag) = piece {
///         to.send(frag)?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// What is borrowed is borrowed for all that time:
///
/// ```compile_fail,E0597
/// # fn main() -> std::io::Result<()> {
/// let socket: devmem::Socket<'_> = {
///     let stream = std::net::TcpStream::connect("192.0.2.1:5201")?;
///     (&stream).into()
/// };
/// drop(socket);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Socket<'s> {
    fd: RawFd,
    /// Who keeps it open, unless that is somebody from whom it is borrowed.
    owner: Option<Arc<dyn Send + Sync + 's>>,
    borrowed: PhantomData<BorrowedFd<'s>>,
}

impl Socket<'_> {
    /// Lets go of it, before this is forgotten. The descriptor is not to be used after that.
    pub(crate) fn let_go(&mut self) {
        self.owner = None;
    }
}

impl<'s> From<BorrowedFd<'s>> for Socket<'s> {
    fn from(fd: BorrowedFd<'s>) -> Self {
        Self {
            fd: fd.as_raw_fd(),
            owner: None,
            borrowed: PhantomData,
        }
    }
}

impl<'s, T: AsFd + ?Sized> From<&'s T> for Socket<'s> {
    fn from(socket: &'s T) -> Self {
        socket.as_fd().into()
    }
}

impl<'s, T: AsFd + Send + Sync + 's> From<Arc<T>> for Socket<'s> {
    fn from(owner: Arc<T>) -> Self {
        Self {
            fd: owner.as_fd().as_raw_fd(),
            owner: Some(owner),
            borrowed: PhantomData,
        }
    }
}

impl From<OwnedFd> for Socket<'_> {
    fn from(fd: OwnedFd) -> Self {
        Arc::new(fd).into()
    }
}

impl From<TcpStream> for Socket<'_> {
    fn from(stream: TcpStream) -> Self {
        OwnedFd::from(stream).into()
    }
}

impl From<UnixStream> for Socket<'_> {
    fn from(stream: UnixStream) -> Self {
        OwnedFd::from(stream).into()
    }
}

impl AsFd for Socket<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: It is open: either it was borrowed for as long as this lives; or the owner lent it for as long as
        // there is a shared reference to the owner, as which the `Arc` counts that is kept here.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl AsRawFd for Socket<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl fmt::Debug for Socket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("fd", &self.fd)
            .field("owned", &self.owner.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::io::Read;
    use std::io::Write;
    use std::net::Ipv4Addr;

    use crate::Receiver;
    use crate::Sender;
    use crate::TokenBatch;
    use crate::dmabuf::Extent;
    use crate::testing::connection;
    use crate::token::Token;

    #[test]
    fn it_is_open_until_the_last_of_all_is_gone() {
        let (null, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let owner = Arc::new(null);
        let one = Socket::from(Arc::clone(&owner));
        let other = one.clone();
        assert_eq!(Arc::strong_count(&owner), 3);
        drop(one);
        let token = Token::new(other, 7, None);
        assert_eq!(Arc::strong_count(&owner), 2);
        // Nothing of it stays behind.
        assert_eq!(token.into_id(), 7);
        assert_eq!(Arc::strong_count(&owner), 1);
        drop(Socket::from(&owner));
        drop(Socket::from(&*owner));
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn whoever_has_it_last_closes_it() {
        let (a, mut b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let owner = Arc::new(a);
        let sender = Sender::<Extent>::new(Arc::clone(&owner)).unwrap();
        let batch = TokenBatch::new(Arc::clone(&owner));
        drop((owner, batch));
        b.set_nonblocking(true).unwrap();
        let open = b.read(&mut [0]).unwrap_err();
        assert_eq!(open.kind(), io::ErrorKind::WouldBlock);
        b.set_nonblocking(false).unwrap();
        drop(sender);
        assert_eq!(b.read(&mut [0]).unwrap(), 0);
    }

    /// All of it borrows nothing.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_is_made_of_it_goes_to_other_threads() {
        let (mut a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut rx = Receiver::new(b);
        let thread = std::thread::spawn(move || rx.recv().map(|received| received.total()));
        a.write_all(b"some").unwrap();
        assert_eq!(thread.join().unwrap().unwrap(), 4);
    }
}
