// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Ends that connect to a group, without anybody who waits for one of them.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;

use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::Backlog;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::bind;
use nix::sys::socket::listen;
use nix::sys::socket::recv;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;

use super::family;
use crate::accept::accept_one;
use crate::connect::MAGIC;

use crate::protocol::wire::MAX_LANES;
use crate::stash::Stash;

/// How long all that a connecting end says first may take, and its lanes.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Control connections that have not said all of that: the oldest one has to go when there are more.
const CALLERS: usize = 64;
/// The magic, and how many lanes there are.
const HEAD: usize = MAGIC.len() + 2;

/// What a peer has made: its control connection, and its lanes.
pub(super) type Made = (TcpStream, Vec<TcpStream>);

/// Two sockets that listen, and who has connected to them.
#[derive(Debug)]
pub(super) struct Server {
    control: TcpListener,
    data: TcpListener,
    callers: VecDeque<Caller>,
    stash: Stash,
    /// What events of all of them say.
    token: u64,
}

/// A control connection.
#[derive(Debug)]
struct Caller {
    socket: TcpStream,
    peer: IpAddr,
    said: Vec<u8>,
    since: Instant,
}

impl Server {
    /// Listens at an address, for lanes at a port of it that may be steered. Nobody else can listen there.
    pub(super) fn new(epoll: &Epoll, token: u64, at: IpAddr, lane_port: u16) -> io::Result<Self> {
        let lanes = Backlog::new(i32::from(MAX_LANES))?;
        let server = Self {
            control: listener(SocketAddr::new(at, 0), Backlog::MAXCONN)?,
            // What they send lands before anybody knows whose they are.
            data: listener(SocketAddr::new(at, lane_port), lanes)?,
            callers: VecDeque::new(),
            stash: Stash::default(),
            token,
        };
        for socket in [&server.control, &server.data] {
            epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
        Ok(server)
    }

    /// The ports: for control connections, and for lanes.
    pub(super) fn ports(&self) -> io::Result<(u16, u16)> {
        Ok((
            self.control.local_addr()?.port(),
            self.data.local_addr()?.port(),
        ))
    }

    /// Somebody has connected, or has said something. Those of whom all is there by now.
    pub(super) fn go_on(&mut self, epoll: &Epoll) -> Vec<Made> {
        self.accept(epoll);
        let mut made = Vec::new();
        for _ in 0..self.callers.len() {
            let Some(mut caller) = self.callers.pop_front() else {
                break;
            };
            let heard = match caller.hear() {
                Ok(Some(ports)) => self.lanes(caller.peer, &ports),
                Ok(None) => Ok(None),
                Err(err) => Err(err),
            };
            match heard {
                Ok(Some(lanes)) if epoll.delete(&caller.socket).is_ok() => {
                    made.push((caller.socket, lanes));
                }
                Ok(None) => self.callers.push_back(caller),
                // Whatever it is, it is no end of a connection.
                Ok(Some(_)) | Err(_) => (),
            }
        }
        self.forget(PATIENCE);
        made
    }

    fn accept(&mut self, epoll: &Epoll) {
        while let Some((socket, from)) = self.taken(|server| &server.data) {
            // One that cannot be shut is none.
            drop(self.stash.add(from, socket));
        }
        while let Some((socket, from)) = self.taken(|server| &server.control) {
            // Once for each time that something comes: what is not read here is for the endpoint.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            if epoll
                .add(&socket, EpollEvent::new(flags, self.token))
                .is_err()
            {
                continue;
            }
            self.callers.push_back(Caller {
                socket,
                peer: from.ip(),
                said: Vec::new(),
                since: Instant::now(),
            });
            if self.callers.len() > CALLERS {
                self.callers.pop_front();
            }
        }
    }

    fn taken(
        &mut self,
        listener: impl Fn(&Self) -> &TcpListener,
    ) -> Option<(TcpStream, SocketAddr)> {
        match accept_one(listener(self)) {
            Ok(taken) => taken,
            Err(err) => {
                if matches!(err.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                    // There would be news of it for as long as there is no room.
                    self.forget(Duration::ZERO);
                }
                None
            }
        }
    }

    /// The lanes that come from these ports of the peer, if all are there.
    fn lanes(&mut self, peer: IpAddr, ports: &[u16]) -> io::Result<Option<Vec<TcpStream>>> {
        let from = |port: &u16| SocketAddr::new(peer, *port);
        if !ports.iter().all(|port| self.stash.has(from(port))) {
            return Ok(None);
        }
        let lanes = ports.iter().map(|port| self.stash.take(from(port)));
        lanes.collect()
    }

    /// Whether somebody is about to be served.
    pub(super) fn is_asked(&self) -> bool {
        !self.callers.is_empty()
    }

    /// How many control connections, and lanes, wait for something.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.callers.len(), self.stash.len())
    }

    /// Lets go of those who have been here for that long.
    pub(super) fn forget(&mut self, age: Duration) {
        self.callers.retain(|caller| caller.since.elapsed() < age);
        self.stash.close_after(age);
    }
}

impl Caller {
    /// The ports that its lanes come from, once it has said all of them.
    fn hear(&mut self) -> io::Result<Option<Vec<u16>>> {
        loop {
            let want = match self.said.get(..HEAD) {
                None => HEAD,
                Some(head) => {
                    let count = u16::from_le_bytes([head[HEAD - 2], head[HEAD - 1]]);
                    if head[..MAGIC.len()] != MAGIC || !(1..=MAX_LANES).contains(&count) {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    HEAD + 2 * usize::from(count)
                }
            };
            if self.said.len() == want {
                break;
            }
            let mut more = vec![0; want - self.said.len()];
            match recv(self.socket.as_raw_fd(), &mut more, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => self.said.extend(&more[..got]),
                Err(nix::Error::EAGAIN) => return Ok(None),
                Err(nix::Error::EINTR) => (),
                Err(err) => return Err(err.into()),
            }
        }
        let ports = self.said[HEAD..].chunks_exact(2);
        let ports: Vec<_> = ports
            .map(|port| u16::from_le_bytes([port[0], port[1]]))
            .collect();
        // No connection is two lanes.
        let different: HashSet<_> = ports.iter().collect();
        match different.len() == ports.len() {
            true => Ok(Some(ports)),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A socket that listens there, and does not block.
fn listener(at: SocketAddr, backlog: Backlog) -> io::Result<TcpListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(family(at.ip()), SockType::Stream, flags, None)?;
    // Connections that are over do not keep the port.
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(at))?;
    // Those that are made from it may. Had it been said before, others could listen there, too, and get some of the lanes.
    setsockopt(&listener, sockopt::ReusePort, &true)?;
    listen(&listener, backlog)?;
    Ok(listener.into())
}
