// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How two ends find each other: the control connection, and which of the others are its lanes.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::socket::Backlog;
use nix::sys::socket::listen;

use crate::endpoint::Endpoint;
use crate::endpoint::Options;
use crate::protocol::wire::MAX_LANES;
use crate::stash::Stash;

/// What a control connection begins with, before any frame, from the end that connected: this, how many lanes there are,
/// and the ports that they come from.
pub(crate) const MAGIC: [u8; 4] = *b"DMBL";
/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(1 << 31);

/// Connects to an [`Acceptor`]: to where it listens for control connections, and to where it listens for lanes, which is
/// steered to bound queues there.
///
/// Answers on the lanes are received on the ports that this end chose; to have these steered, it binds sockets itself, and
/// uses [`over`].
///
/// Each of the connections may take `timeout`, and so may the peer's hello.
///
/// # Errors
///
/// Those of `connect()`; those of [`Endpoint::new`] and [`Endpoint::wait_open`].
pub fn connect(
    control: SocketAddr,
    data: SocketAddr,
    lanes: u16,
    options: Options,
    timeout: Duration,
) -> io::Result<Endpoint> {
    let control = TcpStream::connect_timeout(&control, timeout)?;
    let lanes = (0..lanes)
        .map(|_| TcpStream::connect_timeout(&data, timeout))
        .collect::<io::Result<_>>()?;
    over(control, lanes, options, timeout)
}

/// The same, over connections that are made already.
///
/// # Errors
///
/// Those of [`Endpoint::new`] and [`Endpoint::wait_open`]; those of `write()`.
pub fn over(
    control: TcpStream,
    lanes: Vec<TcpStream>,
    options: Options,
    timeout: Duration,
) -> io::Result<Endpoint> {
    (&control).write_all(&preamble(&lanes)?)?;
    let mut endpoint = Endpoint::new(control, lanes, options)?;
    endpoint.wait_open(timeout)?;
    Ok(endpoint)
}

/// What the control connection of these lanes begins with.
pub(crate) fn preamble(lanes: &[TcpStream]) -> io::Result<Vec<u8>> {
    let count = u16::try_from(lanes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut preamble = MAGIC.to_vec();
    preamble.extend(count.to_le_bytes());
    for lane in lanes {
        preamble.extend(lane.local_addr()?.port().to_le_bytes());
    }
    Ok(preamble)
}

/// Listens for ends that connect.
#[derive(Debug)]
pub struct Acceptor {
    control: TcpListener,
    data: TcpListener,
    stash: Stash,
}

impl Acceptor {
    /// Of two sockets that listen: one for control connections, whose port must not be steered, and one for lanes. From
    /// then on neither waits in `accept()`, whoever else has it.
    pub fn new(control: TcpListener, data: TcpListener) -> Self {
        Self {
            control,
            data,
            stash: Stash::default(),
        }
    }

    /// Waits for an end that connects, and for its lanes no longer than `timeout`.
    ///
    /// One end is served at a time: one that says nothing has all others wait for `timeout`.
    ///
    /// Connections to the port of lanes that belong to no end are closed while this waits, after four times as long, and
    /// next to nothing lands by them. But before this is called they may be in the queue of the listening socket, and each
    /// lands as much as its receive buffer takes. There are no more than 64 of these.
    ///
    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) for one that says something else, or wants more lanes than
    /// [`Options::lanes`]; [`TimedOut`](io::ErrorKind::TimedOut) and [`WouldBlock`](io::ErrorKind::WouldBlock) for one that
    /// does not go on; those of `accept()`, `read()` and [`rcvbuf::shut`](devmem::rcvbuf::shut), and of [`Endpoint::new`]
    /// and [`Endpoint::wait_open`]. The next call waits for the next end.
    pub fn accept(&mut self, options: Options, timeout: Duration) -> io::Result<Endpoint> {
        self.control.set_nonblocking(true)?;
        self.data.set_nonblocking(true)?;
        listen(&self.data, Backlog::new(i32::from(MAX_LANES))?)?;
        let age = timeout.saturating_mul(4);
        let (control, peer) = self.control(age)?;
        let deadline = deadline_in(timeout);
        let ports = ports_from(&control, options.lanes, deadline)?;
        let lanes = ports
            .into_iter()
            .map(|port| self.lane(SocketAddr::new(peer.ip(), port), age, deadline))
            .collect::<io::Result<Vec<_>>>()?;
        let mut endpoint = Endpoint::new(control, lanes, options)?;
        endpoint.wait_open(deadline.saturating_duration_since(Instant::now()))?;
        Ok(endpoint)
    }

    /// The next control connection.
    fn control(&mut self, age: Duration) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let next = self.collect(age)?;
            if let Some(accepted) = accept_one(&self.control)? {
                return Ok(accepted);
            }
            wait_for(&[self.control.as_fd(), self.data.as_fd()], next)?;
        }
    }

    /// The lane that comes from there.
    fn lane(
        &mut self,
        from: SocketAddr,
        age: Duration,
        deadline: Instant,
    ) -> io::Result<TcpStream> {
        loop {
            self.collect(age)?;
            if let Some(socket) = self.stash.take(from)? {
                return Ok(socket);
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            wait_for(&[self.data.as_fd()], Some(deadline))?;
        }
    }

    /// Takes in the lanes that have come, and closes those that nobody has asked for. Tells when that is the case of the
    /// next one.
    fn collect(&mut self, age: Duration) -> io::Result<Option<Instant>> {
        // However fast others come, somebody waits for this.
        for _ in 0..MAX_LANES {
            let Some((socket, from)) = accept_one(&self.data)? else {
                break;
            };
            self.stash.add(from, socket)?;
        }
        Ok(self.stash.close_after(age))
    }
}

/// A connection, if there is one now.
pub(crate) fn accept_one(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        match listener.accept() {
            Ok(accepted) => return Ok(Some(accepted)),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // Nor does one that is over before it is accepted matter.
            Err(err) if err.raw_os_error() == Some(libc::ECONNABORTED) => (),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => (),
            Err(err) => return Err(err),
        }
    }
}

/// Waits until one of these may have something, until then, or until a signal comes.
fn wait_for(sockets: &[BorrowedFd<'_>], until: Option<Instant>) -> io::Result<()> {
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        // Rounded up: else the last millisecond was spent asking.
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    let mut fds: Vec<_> = sockets
        .iter()
        .map(|&socket| PollFd::new(socket, PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// That long from now on.
fn deadline_in(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now + FOR_EVER)
}

/// The ports that the lanes come from.
fn ports_from(control: &TcpStream, most: u16, deadline: Instant) -> io::Result<Vec<u16>> {
    let mut begin = [0; 6];
    read_by(deadline, control, &mut begin)?;
    let [magic @ .., low, high] = begin;
    let count = u16::from_le_bytes([low, high]);
    if magic != MAGIC || count == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this is no end of a bulk connection",
        ));
    }
    if count > most.min(MAX_LANES) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{count} lanes are too many"),
        ));
    }
    let mut ports = vec![0; 2 * usize::from(count)];
    read_by(deadline, control, &mut ports)?;
    let ports = ports.chunks_exact(2);
    Ok(ports
        .map(|port| u16::from_le_bytes([port[0], port[1]]))
        .collect())
}

/// Fills `to` from a socket, and takes no longer, however little comes at once.
fn read_by(deadline: Instant, mut socket: &TcpStream, mut to: &mut [u8]) -> io::Result<()> {
    while !to.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(to) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => to = &mut to[read..],
            Err(err) if err.kind() == io::ErrorKind::Interrupted => (),
            Err(err) => return Err(err),
        }
    }
    // It is the endpoint's from here on, which waits in its own way.
    socket.set_read_timeout(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::thread;

    use nix::libc::linger;
    use nix::sys::socket::AddressFamily;
    use nix::sys::socket::SockFlag;
    use nix::sys::socket::SockType;
    use nix::sys::socket::SockaddrStorage;
    use nix::sys::socket::bind;
    use nix::sys::socket::connect;
    use nix::sys::socket::setsockopt;
    use nix::sys::socket::socket;
    use nix::sys::socket::sockopt;

    use crate::registry::Registry;

    const LONG: Duration = Duration::from_secs(60);

    fn listener() -> TcpListener {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    #[test]
    fn who_says_little_at_once_does_not_take_longer() {
        let listener = listener();
        let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (control, _) = listener.accept().unwrap();
        let writer = thread::spawn(move || {
            // Until the other end is closed.
            let bytes = MAGIC.iter().chain(&[1, 0, 2, 3]);
            for &byte in bytes {
                if slow.write_all(&[byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        let deadline = Instant::now() + Duration::from_millis(250);
        let err = ports_from(&control, 1, deadline).unwrap_err();
        assert!(
            [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&err.kind()),
            "{err}"
        );
        drop(control);
        writer.join().unwrap();
    }

    #[test]
    fn what_is_read_later_may_take_longer() {
        let listener = listener();
        let mut quick = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (control, _) = listener.accept().unwrap();
        quick.write_all(&MAGIC).unwrap();
        quick.write_all(&[1, 0, 2, 3]).unwrap();
        let ports = ports_from(&control, 1, Instant::now() + LONG).unwrap();
        assert_eq!(ports, [0x302]);
        assert_eq!(control.read_timeout().unwrap(), None);
    }

    #[test]
    fn who_wants_many_lanes_gets_none() {
        for (most, lanes) in [(1, 2), (MAX_LANES, 65), (u16::MAX, 65), (1, 0)] {
            let listener = listener();
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (control, _) = listener.accept().unwrap();
            peer.write_all(&[&MAGIC[..], &[lanes, 0], &[0; 130]].concat())
                .unwrap();
            let err = ports_from(&control, most, Instant::now() + LONG).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::InvalidData, "{most} {lanes}");
        }
    }

    #[test]
    fn there_is_no_deadline_that_is_too_late() {
        assert!(deadline_in(Duration::MAX) > Instant::now() + LONG);
    }

    /// A connection from this port, which may be used again at once.
    fn lane_from(port: u16, to: SocketAddr) -> TcpStream {
        let flags = SockFlag::SOCK_CLOEXEC;
        let lane = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        setsockopt(&lane, sockopt::ReuseAddr, &true).unwrap();
        let reset = linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&lane, sockopt::Linger, &reset).unwrap();
        let storage = |address| SockaddrStorage::from(address);
        let from = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        bind(std::os::fd::AsRawFd::as_raw_fd(&lane), &storage(from)).unwrap();
        connect(std::os::fd::AsRawFd::as_raw_fd(&lane), &storage(to)).unwrap();
        lane.into()
    }

    /// Whoever had the port before leaves a connection that is over.
    #[test]
    fn a_lane_is_the_last_one_that_came_from_there() {
        let mut acceptor = Acceptor::new(listener(), listener());
        let to = acceptor.data.local_addr().unwrap();
        let first = lane_from(0, to);
        let port = first.local_addr().unwrap().port();
        drop(first);
        let mut second = lane_from(port, to);
        // After those two.
        let third = lane_from(0, to);
        acceptor.data.set_nonblocking(true).unwrap();
        let mut lane = |from| acceptor.lane(from, LONG, Instant::now() + LONG).unwrap();
        lane(third.local_addr().unwrap());
        let mut lane = lane(second.local_addr().unwrap());
        second.write_all(b"here").unwrap();
        let mut got = [0; 4];
        lane.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"here");
        // Nor is there anything left of the first.
        assert_eq!(acceptor.stash.close_after(LONG), None);
    }

    /// Who makes lanes, and no control connection, does not keep them: others would land nothing. Who makes none has its
    /// connection nevertheless.
    #[test]
    fn lanes_of_nobody_are_closed_while_nobody_comes() {
        let mut acceptor = Acceptor::new(listener(), listener());
        let control = acceptor.control.local_addr().unwrap();
        let to = acceptor.data.local_addr().unwrap();
        let waiting = thread::spawn(move || {
            let options = Options::new(Registry::new().unwrap());
            acceptor
                .accept(options, Duration::from_millis(20))
                .map(drop)
        });
        for _ in 0..3 {
            let mut lane = TcpStream::connect(to).unwrap();
            lane.set_read_timeout(Some(LONG)).unwrap();
            match lane.read(&mut [0]) {
                Ok(0) => (),
                Err(err) if err.kind() == io::ErrorKind::ConnectionReset => (),
                other => panic!("{other:?}"),
            }
        }
        drop(TcpStream::connect(control).unwrap());
        let err = waiting.join().unwrap().unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof, "{err}");
    }
}
