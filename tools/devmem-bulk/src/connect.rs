// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How two ends find each other: the control connection, and which of the others are its lanes.

use std::collections::VecDeque;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use std::os::fd::AsFd;

use crate::endpoint::Endpoint;
use crate::endpoint::Options;
use crate::protocol::wire::MAX_LANES;

/// What a control connection begins with, before any frame, from the end that connected: this, how many lanes there are,
/// and the ports that they come from.
const MAGIC: [u8; 4] = *b"DMBL";
/// Lanes that came, and whose control connection did not yet.
const STASH: usize = 4 * MAX_LANES as usize;

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(1 << 31);

/// Connects to an [`Acceptor`]: to where it listens for control connections, and to where it listens for lanes, which is
/// steered to bound queues there.
///
/// Answers on the lanes are received on the ports that this end chose; to have these steered, it binds sockets itself, and
/// uses [`over`].
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
    let count = u16::try_from(lanes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut preamble = MAGIC.to_vec();
    preamble.extend(count.to_le_bytes());
    for lane in &lanes {
        preamble.extend(lane.local_addr()?.port().to_le_bytes());
    }
    (&control).write_all(&preamble)?;
    let mut endpoint = Endpoint::new(control, lanes, options)?;
    endpoint.wait_open(timeout)?;
    Ok(endpoint)
}

/// Listens for ends that connect.
#[derive(Debug)]
pub struct Acceptor {
    control: TcpListener,
    data: TcpListener,
    stash: VecDeque<(SocketAddr, TcpStream)>,
}

impl Acceptor {
    /// Of two sockets that listen: one for control connections, whose port must not be steered, and one for lanes.
    pub fn new(control: TcpListener, data: TcpListener) -> Self {
        Self {
            control,
            data,
            stash: VecDeque::new(),
        }
    }

    /// Waits for an end that connects, and for its lanes no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) for one that says something else;
    /// [`TimedOut`](io::ErrorKind::TimedOut) and [`WouldBlock`](io::ErrorKind::WouldBlock) for one that does not go on;
    /// those of `accept()` and `read()`, and of [`Endpoint::new`] and [`Endpoint::wait_open`]. The next call waits for the
    /// next end.
    ///
    /// One end is served at a time: one that says nothing has all others wait for `timeout`.
    pub fn accept(&mut self, options: Options, timeout: Duration) -> io::Result<Endpoint> {
        self.accept_any(timeout, |_| options)
    }

    /// The same, with options that depend on how many lanes there are.
    ///
    /// # Errors
    ///
    /// Those of [`accept`](Self::accept).
    pub fn accept_any(
        &mut self,
        timeout: Duration,
        options: impl FnOnce(u16) -> Options,
    ) -> io::Result<Endpoint> {
        let (control, peer) = self.control.accept()?;
        let deadline = deadline_in(timeout);
        let ports = ports_from(&control, deadline)?;
        let lanes = ports
            .into_iter()
            .map(|port| self.lane(peer.ip(), port, deadline))
            .collect::<io::Result<Vec<_>>>()?;
        let options = options(u16::try_from(lanes.len()).unwrap_or(MAX_LANES));
        let mut endpoint = Endpoint::new(control, lanes, options)?;
        endpoint.wait_open(deadline.saturating_duration_since(Instant::now()))?;
        Ok(endpoint)
    }

    /// The lane that comes from there.
    fn lane(&mut self, peer: IpAddr, port: u16, deadline: Instant) -> io::Result<TcpStream> {
        let from = SocketAddr::new(peer, port);
        loop {
            let at = self.stash.iter().position(|(other, _)| same(*other, from));
            if let Some((_, socket)) = at.and_then(|at| self.stash.remove(at)) {
                return Ok(socket);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.data.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, left) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(Errno::EINTR) => continue,
                ready => ready?,
            };
            let (socket, other) = self.data.accept()?;
            // Who had the port before has it no more.
            self.stash.retain(|(earlier, _)| !same(*earlier, other));
            self.stash.push_back((other, socket));
            if self.stash.len() > STASH {
                // Those that wait for longest.
                self.stash.pop_front();
            }
        }
    }
}

/// That long from now on.
fn deadline_in(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now + FOR_EVER)
}

/// Whether these are the same end of a connection, apart from scopes.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

fn ports_from(control: &TcpStream, deadline: Instant) -> io::Result<Vec<u16>> {
    let mut begin = [0; 6];
    read_by(deadline, control, &mut begin)?;
    let [magic @ .., low, high] = begin;
    let count = u16::from_le_bytes([low, high]);
    if magic != MAGIC || count == 0 || count > MAX_LANES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this is no end of a bulk connection",
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
        let err = ports_from(&control, deadline).unwrap_err();
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
        let ports = ports_from(&control, Instant::now() + LONG).unwrap();
        assert_eq!(ports, [0x302]);
        assert_eq!(control.read_timeout().unwrap(), None);
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
        let local = IpAddr::from(Ipv4Addr::LOCALHOST);
        let other = third.local_addr().unwrap().port();
        acceptor.lane(local, other, Instant::now() + LONG).unwrap();
        let mut lane = acceptor.lane(local, port, Instant::now() + LONG).unwrap();
        second.write_all(b"here").unwrap();
        let mut got = [0; 4];
        lane.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"here");
        // Nor is there anything left of the first.
        assert!(acceptor.stash.is_empty());
    }
}
