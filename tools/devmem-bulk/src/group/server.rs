// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Ends that connect to a group, without anybody who waits for one of them.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;

use log::warn;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
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
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::ClockId;
use nix::sys::timerfd::Expiration;
use nix::sys::timerfd::TimerFd;
use nix::sys::timerfd::TimerFlags;
use nix::sys::timerfd::TimerSetTimeFlags;

use super::family;
use crate::accept::accept_one;
use crate::connect::MAGIC;
use crate::endpoint::SILENCE;
use crate::endpoint::hear_of_death;
use crate::protocol::wire::MAX_LANES;
use crate::stash::Stash;
use crate::stash::first_of_most;

/// How long lanes may be here without any control connection from there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often lanes are looked at.
const OFTEN: Duration = Duration::from_secs(1);
/// Peers that have not gone on, and lanes: when there are more one has to go.
const MOST: usize = 4096;
/// When it is tried again if there was no room.
const AGAIN: Duration = Duration::from_millis(50);
/// Descriptors that the program keeps for other things.
const SPARE: usize = 8;
/// Connections that are taken before others have their turn.
const TURN: usize = 64;
/// What events of the listening sockets say, and from where on those of control connections do.
pub(super) const SERVER: u64 = 0;
pub(super) const CALLER: u64 = 1 << 63;
/// The magic, and how many lanes there are.
const HEAD: usize = MAGIC.len() + 2;

/// What a peer has made: its control connection, and its lanes.
pub(super) type Made = (TcpStream, Vec<TcpStream>);

/// Two sockets that listen, and who has connected to them.
///
/// A peer says what it has to when its program makes progress, and that may be computing: so it has time, for as long as
/// its kernel answers, and there is room.
#[derive(Debug)]
pub(super) struct Server {
    control: TcpListener,
    data: TcpListener,
    /// By what their events say; the oldest comes first.
    callers: BTreeMap<u64, Caller>,
    next: u64,
    /// How many of those there may be.
    most: usize,
    /// How many, with lanes, if others wait for descriptors.
    share: usize,
    patience: Duration,
    stash: Stash,
    swept: Instant,
    left: Left,
    /// Tells that it is to be tried again.
    timer: TimerFd,
}

/// Those who have connected, and of whom the listening sockets do not tell again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    Nobody,
    /// There may be some.
    Some,
    /// There are some, and no descriptors for them, or no memory.
    NoRoom,
}

/// A control connection.
#[derive(Debug)]
struct Caller {
    socket: TcpStream,
    peer: IpAddr,
    said: Vec<u8>,
    /// Where its lanes come from, once it has said that.
    ports: Option<Vec<u16>>,
}

impl Server {
    /// Listens at an address, for lanes at a port of it, which may be steered to where they land.
    pub(super) fn new(epoll: &Epoll, at: IpAddr, lane_port: u16, lands: bool) -> io::Result<Self> {
        let lanes = match lands {
            // What they send lands before anybody knows whose they are. Those for whom there is no room try again.
            true => Backlog::new(i32::from(MAX_LANES))?,
            false => Backlog::MAXCONN,
        };
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let server = Self {
            control: listener(SocketAddr::new(at, 0), Backlog::MAXCONN)?,
            data: listener(SocketAddr::new(at, lane_port), lanes)?,
            callers: BTreeMap::new(),
            next: CALLER,
            most: MOST,
            share: usize::try_from(limit / 2).unwrap_or(usize::MAX),
            patience: PATIENCE,
            stash: Stash::of(MOST),
            swept: Instant::now(),
            left: Left::Nobody,
            timer: TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
            )?,
        };
        // Once for each that comes: those for whom there is no room would be news for ever.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        for socket in [&server.control, &server.data] {
            epoll.add(socket, EpollEvent::new(flags, SERVER))?;
        }
        epoll.add(&server.timer, EpollEvent::new(flags, SERVER))?;
        Ok(server)
    }

    /// The ports: for control connections, and for lanes.
    pub(super) fn ports(&self) -> io::Result<(u16, u16)> {
        Ok((
            self.control.local_addr()?.port(),
            self.data.local_addr()?.port(),
        ))
    }

    /// Whether somebody is to be taken without being told of.
    pub(super) fn left(&self) -> Left {
        self.left
    }

    /// Takes those who have connected, as many as it is their turn. What there is of those of whom that is all.
    pub(super) fn accept(&mut self, epoll: &Epoll) -> Vec<Made> {
        self.left = Left::Nobody;
        let mut taken = 0;
        while let Some((socket, from)) = self.taken(&mut taken, |server| &server.data) {
            // One that cannot be shut is none.
            drop(hear_of_death(&socket, None).and_then(|()| self.stash.add(from, socket)));
        }
        // Somebody may have waited for these.
        let callers: Vec<_> = self.callers.keys().copied().collect();
        let complete = callers.into_iter().map(|id| self.complete(epoll, id));
        let mut made: Vec<_> = complete.flatten().collect();
        let mut taken = 0;
        while let Some((socket, from)) = self.taken(&mut taken, |server| &server.control) {
            made.extend(self.called(epoll, socket, from.ip()));
        }
        made
    }

    /// Takes a connection, if there is one, and it is its turn, and there is room for it.
    fn taken(
        &mut self,
        taken: &mut usize,
        listener: impl Fn(&Self) -> &TcpListener,
    ) -> Option<(TcpStream, SocketAddr)> {
        if *taken == TURN {
            self.left = Left::Some;
            return None;
        }
        *taken += 1;
        match self
            .has_descriptors(SPARE)
            .and_then(|()| accept_one(listener(self)))
        {
            Ok(taken) => taken,
            Err(_) => {
                self.no_room();
                self.make_room();
                None
            }
        }
    }

    /// Whether so many more can be had now.
    fn has_descriptors(&self, count: usize) -> io::Result<()> {
        let some = (0..count).map(|_| self.control.as_fd().try_clone_to_owned());
        some.collect::<io::Result<Vec<_>>>().map(drop)
    }

    /// Those who are here, or come, wait.
    fn no_room(&mut self) {
        self.left = Left::NoRoom;
        let again = Expiration::OneShot(TimeSpec::from_duration(AGAIN));
        if let Err(err) = self.timer.set(again, TimerSetTimeFlags::empty()) {
            warn!("those for whom there is no room wait for others: {err}");
        }
    }

    /// Those who do not go on may be computing, so that they stay: but if they have more than their share of the
    /// descriptors one of them goes.
    fn make_room(&mut self) {
        if self.callers.len() + self.stash.len() <= self.share {
            return;
        }
        if self.stash.len() > self.callers.len() {
            self.stash.close_one();
            return;
        }
        self.close_one();
    }

    /// Closes the oldest one of the network that has the most callers.
    fn close_one(&mut self) {
        let all = self.callers.iter().map(|(&id, caller)| (id, caller.peer));
        first_of_most(all).and_then(|id| self.callers.remove(&id));
    }

    /// Somebody has connected, and may have said by now what there is to say.
    fn called(&mut self, epoll: &Epoll, socket: TcpStream, peer: IpAddr) -> Option<Made> {
        hear_of_death(&socket, Some(SILENCE)).ok()?;
        let id = self.next;
        // Once for each time that something comes: what is not read here is for the endpoint.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(&socket, EpollEvent::new(flags, id)).ok()?;
        self.next += 1;
        let caller = Caller {
            socket,
            peer,
            said: Vec::new(),
            ports: None,
        };
        self.callers.insert(id, caller);
        let made = self.heard(epoll, id, EpollFlags::empty());
        if self.callers.len() > self.most {
            self.close_one();
        }
        made
    }

    /// Something has happened to a control connection. What there is of its end, if that is all.
    pub(super) fn heard(&mut self, epoll: &Epoll, id: u64, flags: EpollFlags) -> Option<Made> {
        let gone = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let stays = self.callers.get_mut(&id)?.hear().is_ok() && !flags.intersects(gone);
        let made = self.complete(epoll, id);
        if !stays {
            self.callers.remove(&id);
        }
        made
    }

    /// What there is of an end, if that is all.
    fn complete(&mut self, epoll: &Epoll, id: u64) -> Option<Made> {
        let caller = self.callers.get(&id)?;
        let from = |port: &u16| SocketAddr::new(caller.peer, *port);
        let ports = caller.ports.as_ref()?;
        if !ports.iter().all(|port| self.stash.has(from(port))) {
            return None;
        }
        // For the ring, and two more of each socket: else the end could not be made, and its peer took that for the end.
        if self.has_descriptors(3 * (1 + ports.len())).is_err() {
            self.no_room();
            return None;
        }
        let Caller {
            socket,
            peer,
            ports,
            ..
        } = self.callers.remove(&id)?;
        let lanes = ports.iter().flatten().filter_map(|&port| {
            let from = SocketAddr::new(peer, port);
            self.stash.take(from).transpose()
        });
        let lanes = lanes.collect::<io::Result<_>>();
        epoll.delete(&socket).ok()?;
        Some((socket, lanes.ok()?))
    }

    /// Whether somebody is about to be served.
    pub(super) fn is_asked(&self) -> bool {
        !self.callers.is_empty() || self.left != Left::Nobody
    }

    /// How many control connections, and lanes, wait for something.
    #[cfg(test)]
    fn waiting(&self) -> (usize, usize) {
        (self.callers.len(), self.stash.len())
    }

    /// Now and then, lets go of lanes that nobody will name: who connects makes its control connection first.
    pub(super) fn sweep(&mut self) {
        if self.stash.is_empty() || self.swept.elapsed() < OFTEN.min(self.patience) {
            return;
        }
        self.swept = Instant::now();
        let peers: HashSet<_> = self.callers.values().map(|caller| caller.peer).collect();
        self.stash
            .close_after_unless(self.patience, |ip| peers.contains(&ip));
    }
}

impl Caller {
    /// Takes what its end has said, up to the last one of the ports that its lanes come from.
    fn hear(&mut self) -> io::Result<()> {
        while self.ports.is_none() {
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
                self.ports = Some(ports(&self.said[HEAD..])?);
                break;
            }
            let mut more = vec![0; want - self.said.len()];
            match recv(self.socket.as_raw_fd(), &mut more, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => self.said.extend(&more[..got]),
                Err(nix::Error::EAGAIN) => break,
                Err(nix::Error::EINTR) => (),
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }
}

/// The ports that these bytes are.
fn ports(said: &[u8]) -> io::Result<Vec<u16>> {
    let ports = said.chunks_exact(2);
    let ports: Vec<_> = ports
        .map(|port| u16::from_le_bytes([port[0], port[1]]))
        .collect();
    // No connection is two lanes.
    let different: HashSet<_> = ports.iter().collect();
    match different.len() == ports.len() {
        true => Ok(ports),
        false => Err(io::ErrorKind::InvalidData.into()),
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
