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
    pub fn accept(&mut self, options: Options, timeout: Duration) -> io::Result<Endpoint> {
        let (control, peer) = self.control.accept()?;
        let deadline = Instant::now() + timeout;
        control.set_read_timeout(Some(timeout))?;
        let ports = ports_from(&control)?;
        let lanes = ports
            .into_iter()
            .map(|port| self.lane(peer.ip(), port, deadline))
            .collect::<io::Result<_>>()?;
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
            if poll(&mut fds, left)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let (socket, other) = self.data.accept()?;
            self.stash.push_back((other, socket));
            if self.stash.len() > STASH {
                // Those that wait for longest.
                self.stash.pop_front();
            }
        }
    }
}

/// Whether these are the same end of a connection, apart from scopes.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

fn ports_from(mut control: &TcpStream) -> io::Result<Vec<u16>> {
    let mut begin = [0; 6];
    control.read_exact(&mut begin)?;
    let [magic @ .., low, high] = begin;
    let count = u16::from_le_bytes([low, high]);
    if magic != MAGIC || count == 0 || count > MAX_LANES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this is no end of a bulk connection",
        ));
    }
    let mut ports = vec![0; 2 * usize::from(count)];
    control.read_exact(&mut ports)?;
    let ports = ports.chunks_exact(2);
    Ok(ports
        .map(|port| u16::from_le_bytes([port[0], port[1]]))
        .collect())
}
