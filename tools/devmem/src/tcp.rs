// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a TCP socket has to be for the kernel to take offsets into a dma-buf for what they are; and how a
//! connection ends so that the peer knows that it was cut.
//!
//! In a call that sends from a dma-buf, what else is an address is an offset. Only the `sendmsg()` of TCP
//! knows that. Other protocols pass over the control message, take the offset for an address, and send what
//! the process happens to have there. So a socket is looked at before the first call, and what was seen is
//! a [`TxSocket`].

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::PoisonError;

use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::getpeername;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::dmabuf::Extent;
use crate::netdev::TxBinding;
use crate::send::enable_zerocopy;
use crate::send::send_dmabuf;
use crate::socket::Socket;

/// Flags of `sendmsg()` that leave what it reads, and how often it counts, as they are.
///
/// `MSG_FASTOPEN` is not among them: what goes with the SYN was read from the offset as if it were an
/// address. Nor is `MSG_WAITALL`, with which io_uring makes several calls of one, each of which the kernel
/// numbers.
const FLAGS: i32 = libc::MSG_MORE
    | libc::MSG_DONTWAIT
    | libc::MSG_NOSIGNAL
    | libc::MSG_ZEROCOPY
    | libc::MSG_EOR
    | libc::MSG_OOB
    | libc::MSG_CONFIRM
    | libc::MSG_DONTROUTE;

/// Whoever looks whether a socket is somebody's already, until it is his.
static LOOKING: Mutex<()> = Mutex::new(());

/// Name of what was put on top of TCP, with room for any.
const ULP_NAME: usize = 16;

/// A connected TCP socket that is ready for sending from dma-bufs, and from which nothing else has sent with
/// `MSG_ZEROCOPY`.
///
/// There is one of a socket, whether a [`Sender`](crate::Sender) has it or who made it: another could not
/// tell its own completions. Of processes that share a socket only one may make it.
///
/// It borrows the socket, or owns a part of it: see [`Socket`]. What is done to that meanwhile by other means is beyond it, since the kernel tells
/// nobody: a descriptor that `dup2()` replaces by another socket's (which only unsafe code can do),
/// `connect(AF_UNSPEC)` followed by a connection with `TCP_FASTOPEN_CONNECT`, `TCP_REPAIR`, `TCP_ULP`, and
/// BPF programs of a sockmap, which administrators may put between any socket and TCP.
///
/// The socket stays open for as long as this is there:
///
/// ```compile_fail,E0505
/// # fn main() -> std::io::Result<()> {
/// let stream = std::net::TcpStream::connect("192.0.2.1:5201")?;
/// let socket = devmem::TxSocket::new(&stream)?;
/// drop(stream);
/// drop(socket);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TxSocket<'s> {
    socket: Socket<'s>,
}

impl<'s> TxSocket<'s> {
    /// Makes a socket ready for sending from dma-bufs.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput): it is not a TCP socket. Multipath TCP is none: it
    ///   copies from where the offset points. Nor is TCP with another protocol on top (`TCP_ULP`), or in
    ///   `TCP_REPAIR`;
    /// - [`NotConnected`](io::ErrorKind::NotConnected): it is not connected, not yet or not any more;
    /// - [`ResourceBusy`](io::ErrorKind::ResourceBusy): `SO_ZEROCOPY` is on already, so that somebody sends
    ///   with `MSG_ZEROCOPY` or has done so, and the kernel may have counted calls;
    /// - those of `getsockopt()` and `setsockopt()`.
    pub fn new(socket: impl Into<Socket<'s>>) -> io::Result<Self> {
        let socket = socket.into();
        let fd = socket.as_fd();
        check(fd)?;
        let _alone = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
        if number(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY)? != 0 {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "something else sends with MSG_ZEROCOPY over this socket, or has done so",
            ));
        }
        enable_zerocopy(fd)?;
        Ok(Self { socket })
    }

    /// Sends parts of the dma-buf of `binding` with one call, as they are; returns how many bytes.
    ///
    /// `flags` are more flags of `sendmsg()`, see [`Sender::send_flags`](crate::Sender::send_flags). The
    /// socket's error queue tells when the memory is free again, see [`completion`](crate::completion).
    /// Those who send want a [`Sender`](crate::Sender), which keeps the kernel's limits and counts for them.
    ///
    /// # Errors
    ///
    /// Those of `sendmsg()`; [`InvalidInput`](io::ErrorKind::InvalidInput) for a flag that is not allowed,
    /// and for an extent beyond what this machine can address. Nothing was sent then.
    pub fn send(&self, binding: &TxBinding, extents: &[Extent], flags: i32) -> io::Result<usize> {
        send_dmabuf(self, binding.number(), extents, flags)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Fails if there is a flag among these that changes what is read, or how calls are counted.
pub(crate) fn check_flags(flags: i32) -> io::Result<()> {
    match flags & !FLAGS {
        0 => Ok(()),
        others => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("flags {others:#x} are not for sending from a dma-buf"),
        )),
    }
}

/// Fails unless it is plain TCP, and connected.
fn check(fd: BorrowedFd<'_>) -> io::Result<()> {
    let not_tcp = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    let domain = number(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?;
    let kind = number(fd, libc::SOL_SOCKET, libc::SO_TYPE)?;
    let protocol = number(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)?;
    if !matches!(domain, libc::AF_INET | libc::AF_INET6)
        || (kind, protocol) != (libc::SOCK_STREAM, libc::IPPROTO_TCP)
    {
        return not_tcp(match protocol {
            libc::IPPROTO_MPTCP => "a Multipath TCP socket cannot send from a dma-buf",
            _ => "only a TCP socket can send from a dma-buf",
        });
    }
    if has_ulp(fd)? {
        return not_tcp("there is another protocol on top of TCP (TCP_ULP)");
    }
    if number(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR)? != 0 {
        return not_tcp("the socket is being repaired (TCP_REPAIR)");
    }
    // Also one that connects with its first data (TCP_FASTOPEN_CONNECT) has no peer yet.
    getpeername::<SockaddrStorage>(fd.as_raw_fd())?;
    Ok(())
}

fn has_ulp(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut name = [0; ULP_NAME];
    let len = option(fd, libc::IPPROTO_TCP, libc::TCP_ULP, &mut name)?;
    Ok(name[..len].iter().any(|&byte| byte != 0))
}

/// A socket option that is a number.
fn number(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; size_of::<i32>()];
    match option(fd, level, name, &mut value)? {
        len if len == value.len() => Ok(i32::from_ne_bytes(value)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Has a connection end by a reset, or in good order, when its last descriptor is closed: by this process, or
/// by the kernel for one that is no more, whatever ended it.
///
/// A program that is killed ends its connections in good order, so that the peer takes a part of a stream for
/// all of it. One that switches this on at the start, and off when everything is done, tells the peer: its
/// calls fail with [`ConnectionReset`](io::ErrorKind::ConnectionReset), once it has received what had arrived
/// by then.
///
/// # Errors
///
/// Those of `setsockopt(SO_LINGER)`.
pub fn reset_on_close(socket: impl AsFd, reset: bool) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: reset.into(),
        l_linger: 0,
    };
    Ok(setsockopt(&socket, sockopt::Linger, &linger)?)
}

/// Ends a connection at once: the peer gets a reset, and calls that wait for something there fail, those of
/// other threads, too. The socket stays open, and so do its tokens stay valid.
///
/// `shutdown()` wakes the same calls, but tells the peer that all is well.
///
/// # Errors
///
/// Those of `connect(AF_UNSPEC)`.
pub fn abort(socket: impl AsFd) -> io::Result<()> {
    // SAFETY: All-zero is a valid sockaddr, of family AF_UNSPEC.
    let nobody: libc::sockaddr = unsafe { mem::zeroed() };
    let len = libc::socklen_t::try_from(size_of_val(&nobody))
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: `nobody` is readable for `len` bytes, and the kernel only reads it.
    match unsafe { libc::connect(socket.as_fd().as_raw_fd(), &nobody, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How much the kernel has to send by a socket, in bytes of its own memory: what the peer has not acknowledged, and what a
/// device has not said that it is done with. Of that the connection may know no more, as after [`abort`].
///
/// Some drivers, and queueing disciplines, say so before they are.
///
/// # Errors
///
/// Those of `getsockopt()`.
pub fn unsent(socket: impl AsFd) -> io::Result<u64> {
    // Up to `SK_MEMINFO_WMEM_QUEUED`, which is the connection's; devices have what is in `SK_MEMINFO_WMEM_ALLOC`.
    let mut values = [0; 6 * 4];
    option(
        socket.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_MEMINFO,
        &mut values,
    )?;
    let [wmem_alloc, wmem_queued] = [2, 5].map(|at: usize| {
        let value = values.chunks_exact(4).nth(at).map(<[u8; 4]>::try_from);
        u64::from(u32::from_ne_bytes(
            value.and_then(Result::ok).unwrap_or_default(),
        ))
    });
    Ok(wmem_alloc + wmem_queued)
}

/// Reads a socket option; returns how many bytes it has.
pub(crate) fn option(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(value.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: `value` is writable for `len` bytes, and the kernel writes no more than that.
    let ret = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &mut len,
        )
    };
    match ret {
        0 => Ok(value.len().min(len as usize)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets a socket option that is a number.
pub(crate) fn set_number(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    let value = value.to_ne_bytes();
    let len = libc::socklen_t::try_from(value.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: `value` is readable for `len` bytes, and the kernel only reads it.
    let ret = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    match ret {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

// Miri does not know these system calls.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::io::Read;
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::net::Ipv6Addr;
    use std::net::Shutdown;
    use std::net::TcpListener;
    use std::net::TcpStream;
    use std::net::UdpSocket;
    use std::num::NonZero;
    use std::os::fd::FromRawFd;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;
    use std::thread;
    use std::time::Duration;

    use crate::Sender;
    use crate::testing::connection;
    #[cfg(feature = "uring")]
    use crate::uring;

    /// A binding that nobody has.
    const NOBODY: NonZero<u32> = NonZero::new(0x7fff_fff0).unwrap();

    /// How many ways there are to get a sender.
    const WAYS: usize = if cfg!(feature = "uring") { 3 } else { 2 };

    /// Why each of the ways to get a sender is refused.
    fn refusals(socket: &impl AsFd) -> Vec<io::ErrorKind> {
        vec![
            TxSocket::new(socket).unwrap_err().kind(),
            Sender::<Extent>::new(socket).unwrap_err().kind(),
            #[cfg(feature = "uring")]
            uring::Sender::<Extent>::new(socket).unwrap_err().kind(),
        ]
    }

    fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
        // SAFETY: No memory is involved.
        let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
        match fd {
            // SAFETY: The call returned a descriptor that nobody else owns.
            0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    #[test]
    fn only_tcp_sends_from_a_dmabuf() {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        udp.connect(udp.local_addr().unwrap()).unwrap();
        assert_eq!(refusals(&udp), [io::ErrorKind::InvalidInput; WAYS]);
        // It would take all of it: this is what is asked for.
        enable_zerocopy(&udp).unwrap();
        assert_eq!(refusals(&udp), [io::ErrorKind::InvalidInput; WAYS]);

        let (unix, _peer) = UnixStream::pair().unwrap();
        assert_eq!(refusals(&unix), [io::ErrorKind::InvalidInput; WAYS]);
        let (unix, _peer) = UnixDatagram::pair().unwrap();
        assert_eq!(refusals(&unix), [io::ErrorKind::InvalidInput; WAYS]);
    }

    #[test]
    fn sockets_of_other_protocols() {
        for (domain, kind, protocol) in [
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
            (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
            (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        ] {
            // Not every kernel has all of them.
            let Ok(socket) = socket(domain, kind, protocol) else {
                continue;
            };
            assert_eq!(
                refusals(&socket),
                [io::ErrorKind::InvalidInput; WAYS],
                "{domain} {kind} {protocol}"
            );
        }
    }

    #[test]
    fn one_of_two_at_once() {
        let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        for _ in 0..2_000 {
            set_number(a.as_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, 0).unwrap();
            let here = AtomicU32::new(0);
            let made = thread::scope(|scope| {
                let make = || {
                    here.fetch_add(1, Ordering::SeqCst);
                    // To sleep until then would have one of them come late.
                    while here.load(Ordering::SeqCst) < 2 {
                        std::hint::spin_loop();
                    }
                    TxSocket::new(&a).is_ok()
                };
                [scope.spawn(make), scope.spawn(make)].map(|thread| thread.join().unwrap())
            });
            assert_ne!(made[0], made[1]);
        }
    }

    #[test]
    fn what_is_no_socket() {
        let file = std::fs::File::open("/dev/zero").unwrap();
        let err = TxSocket::new(&file).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn a_socket_without_a_peer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert_eq!(refusals(&listener), [io::ErrorKind::NotConnected; WAYS]);

        let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        assert_eq!(refusals(&socket), [io::ErrorKind::NotConnected; WAYS]);
        // It will say that it is connected, and send its first bytes with the SYN. Not every machine allows it.
        for option in [libc::TCP_FASTOPEN_NO_COOKIE, libc::TCP_FASTOPEN_CONNECT] {
            if set_number(socket.as_fd(), libc::IPPROTO_TCP, option, 1).is_err() {
                return;
            }
        }
        let to = SockaddrStorage::from(listener.local_addr().unwrap());
        nix::sys::socket::connect(socket.as_raw_fd(), &to).unwrap();
        assert_eq!(refusals(&socket), [io::ErrorKind::NotConnected; WAYS]);
    }

    #[test]
    fn one_of_a_socket() {
        for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let Ok((a, b)) = connection(ip) else {
                continue;
            };
            TxSocket::new(&a).unwrap();
            assert_eq!(refusals(&a), [io::ErrorKind::ResourceBusy; WAYS]);
            let _sender = Sender::<Extent>::new(&b).unwrap();
            assert_eq!(refusals(&b), [io::ErrorKind::ResourceBusy; WAYS]);
        }
    }

    #[test]
    #[cfg(feature = "uring")]
    fn one_by_io_uring() {
        let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        match uring::Sender::<Extent>::new(&a) {
            Ok(_sender) => assert_eq!(refusals(&a), [io::ErrorKind::ResourceBusy; WAYS]),
            // Not every machine allows io_uring.
            Err(err) => assert_ne!(err.kind(), io::ErrorKind::ResourceBusy, "{err}"),
        }
    }

    /// What is at an address of this process does not go out when it is named as an offset.
    #[test]
    fn an_offset_is_no_address() {
        let secret = [0x5a_u8; 64];
        let (a, mut b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let socket = TxSocket::new(&a).unwrap();
        let extent = Extent {
            offset: secret.as_ptr().expose_provenance() as u64,
            len: secret.len() as u64,
        };
        for flags in [0, libc::MSG_MORE, libc::MSG_DONTWAIT] {
            send_dmabuf(&socket, NOBODY, &[extent], flags).unwrap_err();
        }
        for flags in [libc::MSG_FASTOPEN, libc::MSG_WAITALL, libc::MSG_PEEK, -1] {
            let err = send_dmabuf(&socket, NOBODY, &[extent], flags).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput, "{flags:#x}");
        }
        (&a).write_all(b"!").unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        let mut arrived = Vec::new();
        b.read_to_end(&mut arrived).unwrap();
        assert_eq!(arrived, b"!");
    }

    /// Reads to the end, whatever that is.
    fn read_to_end(mut socket: &TcpStream) -> (Vec<u8>, Option<io::ErrorKind>) {
        let mut read = Vec::new();
        let end = socket.read_to_end(&mut read);
        (read, end.err().map(|err| err.kind()))
    }

    #[test]
    fn a_process_that_is_killed_resets_its_connections() {
        for reset in [true, false] {
            let (a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
            reset_on_close(&a, true).unwrap();
            reset_on_close(&a, reset).unwrap();
            (&a).write_all(b"a part").unwrap();
            let mut child = Command::new("sleep")
                .arg("1000")
                .stdin(OwnedFd::from(a))
                .spawn()
                .unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
            let end = reset.then_some(io::ErrorKind::ConnectionReset);
            assert_eq!(read_to_end(&b), (b"a part".to_vec(), end));
        }
    }

    /// Also when the end of the stream was announced, but the peer has not read it.
    #[test]
    fn a_receiver_that_is_killed_is_not_one_that_has_it_all() {
        let (a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        reset_on_close(&b, true).unwrap();
        (&a).write_all(b"all").unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&b), (b"all".to_vec(), None));
        drop(b);
        let end = Some(io::ErrorKind::ConnectionReset);
        assert_eq!(read_to_end(&a), (vec![], end));
    }

    #[test]
    fn an_abort_wakes_who_waits_and_resets() {
        let (a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        thread::scope(|scope| {
            let reader = scope.spawn(|| read_to_end(&a));
            // Whether it waits by then or not.
            thread::sleep(Duration::from_millis(20));
            abort(&a).unwrap();
            assert!(reader.join().unwrap().1.is_some());
        });
        let end = Some(io::ErrorKind::ConnectionReset);
        assert_eq!(read_to_end(&b), (vec![], end));
    }

    #[test]
    fn a_connection_that_was_reset() {
        let (a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        (&a).write_all(b"unread").unwrap();
        let mut read = [0];
        TcpStream::peek(&b, &mut read).unwrap();
        // With data unread, this is a reset.
        drop(b);
        let end = Some(io::ErrorKind::ConnectionReset);
        assert_eq!(read_to_end(&a), (vec![], end));
        assert_eq!(refusals(&a), [io::ErrorKind::NotConnected; WAYS]);
    }
}
