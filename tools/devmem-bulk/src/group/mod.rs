// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Ends of connections that are looked at together, for programs with a loop of their own.
//!
//! A [`Group`] listens at an address, and serves whoever connects to it; by ends that it [connects](Group::connect) itself
//! the program puts and gets. One descriptor tells that something is to be done, and nothing but [`Group::wait`] and
//! [`Group::close`] waits.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (key, there) = (devmem_bulk::Key([0; 16]), "192.0.2.1".parse()?);
//! use std::time::Duration;
//!
//! use devmem_bulk::group::{Address, Group, Parts, What};
//! use devmem_bulk::Registry;
//!
//! let parts = Parts { registry: Registry::new()?, landing: None };
//! let mut group = Group::new("192.0.2.2".parse()?, 0, parts)?;
//! let end = group.connect(Address { ip: there, control: 5201, lanes: 5202 }, 1)?;
//! while let Some(happened) = group.wait(None)? {
//!     match happened.what {
//!         What::Open => group.put_bytes(end, b"hello", (key, 0), "greeting").map_err(|why| format!("{why:?}"))?,
//!         What::Done(done) => println!("{}: {:?}", done.token, done.result),
//!         What::Over(why) => return Err(format!("{why:?}").into()),
//!     }
//!     if !group.has_requests() {
//!         break;
//!     }
//! }
//! group.close(Duration::from_secs(1));
//! # Ok(())
//! # }
//! ```

mod connecting;
mod member;
mod requests;
mod server;
mod terms;
#[cfg(test)]
mod tests;

pub use terms::Address;
pub use terms::Done;
pub use terms::EndId;
pub use terms::Happened;
pub use terms::Parts;
pub use terms::What;
pub use terms::Why;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::time::Duration;
use std::time::Instant;

use log::debug;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::epoll::EpollTimeout;
use nix::sys::socket::AddressFamily;

use self::connecting::Connecting;
use self::member::Member;
use self::member::Owner;
use self::server::CALLER;
use self::server::Left;
use self::server::Made;
use self::server::SERVER;
use self::server::Server;
use crate::endpoint::Endpoint;
use crate::protocol::wire::MAX_LANES;

/// Events of the system that are taken at once.
const BATCH: usize = 64;
/// How long ends that are to end may take.
const FAREWELL: Duration = Duration::from_secs(10);

/// Ends of connections, and whoever connects. `T` is what the program knows a request by.
pub struct Group<T> {
    address: Address,
    parts: Parts,
    /// Until the group is to end.
    server: Option<Server>,
    members: HashMap<u64, Place<T>>,
    next: u64,
    /// Those that have something to do that nobody else tells.
    ready: VecDeque<u64>,
    /// Those that are to go, which have some time for it.
    leaving: Vec<(u64, Instant)>,
    events: VecDeque<Happened<T>>,
    epoll: Epoll,
}

/// What there is of an end.
#[derive(Debug)]
enum Place<T> {
    Connecting(Connecting),
    Made(Box<Member<T>>),
}

impl<T> fmt::Debug for Group<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("address", &self.address)
            .field("ends", &self.members.len())
            .finish_non_exhaustive()
    }
}

/// To be polled: there is something to read when there is something for [`Group::wait`].
impl<T> AsFd for Group<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl<T> AsRawFd for Group<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl<T> Group<T> {
    /// Listens at an address: for lanes at a port that may be steered, or at any if that is 0; for control connections at
    /// any.
    ///
    /// # Errors
    ///
    /// Those of `epoll_create()`, `bind()` and `listen()`: [`AddrInUse`](io::ErrorKind::AddrInUse) if another one listens
    /// for lanes there.
    pub fn new(ip: IpAddr, lane_port: u16, parts: Parts) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let server = Server::new(&epoll, ip, lane_port, parts.landing.is_some())?;
        let (control, lanes) = server.ports()?;
        Ok(Self {
            address: Address { ip, control, lanes },
            parts,
            server: Some(server),
            members: HashMap::new(),
            next: SERVER + 1,
            ready: VecDeque::new(),
            leaving: Vec::new(),
            events: VecDeque::new(),
            epoll,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Connects to another group, by so many lanes. [`What::Open`] tells when requests can be made, [`What::Over`] that
    /// there is no such group.
    ///
    /// If payload lands in device memory, what is got does, too, for one of two that connect to each other: its lanes come
    /// from the port that is steered. If those of both did, TCP could take two connections for one (RFC 9293, 3.5).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for no lanes, or more than [`MAX_LANES`].
    pub fn connect(&mut self, to: Address, lanes: u16) -> io::Result<EndId> {
        if !(1..=MAX_LANES).contains(&lanes) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (here, there) = ((self.address.ip, self.address.lanes), (to.ip, to.lanes));
        let is_steered = self.parts.landing.is_some() && here < there;
        let from = SocketAddr::new(here.0, if is_steered { here.1 } else { 0 });
        let id = self.next;
        self.next += 1;
        match Connecting::new(&self.epoll, id, from, to, lanes) {
            Ok(connecting) => {
                self.members.insert(id, Place::Connecting(connecting));
                self.ready.push_back(id);
            }
            Err(err) => self.unreachable(id, err),
        }
        Ok(EndId(id))
    }

    /// Whether anybody who has connected is served, or is about to be.
    pub fn is_serving(&self) -> bool {
        let is_served = |place: &Place<T>| match place {
            Place::Made(member) => member.is_served(),
            Place::Connecting(_) => false,
        };
        self.members.values().any(is_served) || self.server.as_ref().is_some_and(Server::is_asked)
    }

    /// Ends a connection: at once if something is under way. Gives that, one by one, also what is over and was not told of.
    /// After the last one there is nothing more of this end.
    pub fn cancel(&mut self, end: EndId) -> Option<Done<T>> {
        let told = |event: &Happened<T>| event.end == end;
        while let Some(at) = self.events.iter().position(told) {
            if let Some(What::Done(done)) = self.events.remove(at).map(|event| event.what) {
                return Some(done);
            }
        }
        let left = match self.members.get_mut(&end.0) {
            Some(Place::Made(member)) => member.cancel(),
            _ => None,
        };
        if left.is_none() {
            self.leave(end);
        }
        left
    }

    /// Lets go of an end. The peer is told that there will be no more requests; what is under way goes on, and nobody hears of
    /// it.
    pub fn leave(&mut self, end: EndId) {
        self.events.retain(|event| event.end != end);
        let is_left = match self.members.get_mut(&end.0) {
            Some(Place::Made(member)) => member.leave(),
            Some(Place::Connecting(_)) => {
                self.members.remove(&end.0);
                false
            }
            None => false,
        };
        if is_left {
            self.leaving.push((end.0, Instant::now() + FAREWELL));
            self.ready.push_back(end.0);
        }
    }

    /// Whether there is more to do, or to tell, without anything that can be polled for: then whoever polls
    /// [waits](Self::wait) first, for no time.
    pub fn is_busy(&self) -> bool {
        !self.ready.is_empty() || !self.events.is_empty()
    }

    /// Waits until something has happened: `None` if nothing has for so long.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait()`.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<Happened<T>>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            self.go_on(left)?;
            if self.events.is_empty() && left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
        }
    }

    /// Ends all connections, as their peers expect it, and takes no new ones. Those who do not say the same are left after
    /// a while.
    pub fn close(&mut self, patience: Duration) {
        self.server = None;
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.leave(EndId(id));
        }
        let deadline = Instant::now() + patience;
        while !self.members.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.go_on(Some(left)).is_err() {
                break;
            }
        }
        for (_, place) in self.members.drain() {
            if let Place::Made(member) = place {
                member.drop_from(&self.epoll);
            }
        }
        self.events.clear();
        self.ready.clear();
        self.leaving.clear();
    }

    /// Does what can be done, or waits until there is something.
    fn go_on(&mut self, left: Option<Duration>) -> io::Result<()> {
        let soonest = self.leaving.iter().map(|(_, end)| *end).min();
        let soonest = soonest.map(|end| end.saturating_duration_since(Instant::now()));
        let left = [left, soonest].into_iter().flatten().min();
        let timeout = match (self.ready.is_empty(), left) {
            (false, _) => EpollTimeout::ZERO,
            (true, None) => EpollTimeout::NONE,
            // Not before it.
            (true, Some(left)) => {
                let left = u32::try_from(left.as_nanos().div_ceil(1_000_000));
                left.ok()
                    .and_then(|left| EpollTimeout::try_from(left).ok())
                    .unwrap_or(EpollTimeout::MAX)
            }
        };
        let mut happened = [EpollEvent::empty(); BATCH];
        let count = match self.epoll.wait(&mut happened, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(err) => return Err(err.into()),
        };
        // Those that become ready meanwhile have their turn next time.
        let ready = std::mem::take(&mut self.ready);
        let told = happened[..count].iter();
        let ready = ready.into_iter().map(|id| (id, EpollFlags::empty()));
        for (id, flags) in ready.chain(told.map(|event| (event.data(), event.events()))) {
            match id {
                SERVER | CALLER.. => self.answer(id, flags),
                _ => self.look_at(id),
            }
        }
        self.let_go();
        Ok(())
    }

    /// Takes those who have connected, and said what there is to say.
    fn answer(&mut self, id: u64, flags: EpollFlags) {
        let Some(server) = &mut self.server else {
            return;
        };
        let made = match id {
            SERVER => server.accept(&self.epoll),
            _ => Vec::from_iter(server.heard(&self.epoll, id, flags)),
        };
        if server.left() == Left::Some && !self.ready.contains(&SERVER) {
            self.ready.push_back(SERVER);
        }
        for made in made {
            let id = self.next;
            self.next += 1;
            match self.made(id, made, Owner::Peer) {
                Ok(member) => {
                    self.members.insert(id, Place::Made(member));
                    self.ready.push_back(id);
                }
                Err(err) => debug!("no end for whoever connects: {err}"),
            }
        }
    }

    fn made(&self, id: u64, (control, lanes): Made, owner: Owner) -> io::Result<Box<Member<T>>> {
        let options = self.parts.options(lanes.len());
        let endpoint = Endpoint::new(control, lanes, options)?;
        self.epoll
            .add(&endpoint, EpollEvent::new(EpollFlags::EPOLLIN, id))?;
        Ok(Box::new(Member::new(endpoint, owner)))
    }

    /// Something may have happened to an end.
    fn look_at(&mut self, id: u64) {
        let end = EndId(id);
        match self.members.get_mut(&id) {
            Some(Place::Made(member)) => {
                let events = &mut self.events;
                if member.look(|what| events.push_back(Happened { end, what })) {
                    self.leaving.push((id, Instant::now() + FAREWELL));
                }
                if member.is_busy() && member.is_to_be_looked_at() {
                    self.ready.push_back(id);
                }
            }
            Some(Place::Connecting(connecting)) => match connecting.is_made() {
                Ok(false) => (),
                Ok(true) => self.connected(id),
                Err(err) => self.unreachable(id, err),
            },
            None => (),
        }
    }

    fn connected(&mut self, id: u64) {
        let Some(Place::Connecting(connecting)) = self.members.remove(&id) else {
            return;
        };
        let made = connecting
            .take(&self.epoll)
            .and_then(|made| self.made(id, made, Owner::Program));
        match made {
            Ok(member) => {
                self.members.insert(id, Place::Made(member));
                self.ready.push_back(id);
            }
            Err(err) => self.unreachable(id, err),
        }
    }

    fn unreachable(&mut self, id: u64, err: io::Error) {
        self.members.remove(&id);
        self.events.push_back(Happened {
            end: EndId(id),
            what: What::Over(Why::Unreachable(err)),
        });
    }

    /// Lets go of whoever has gone, or has taken too long for it.
    fn let_go(&mut self) {
        let now = Instant::now();
        if let Some(server) = &mut self.server {
            server.sweep();
        }
        let (members, ready, epoll) = (&mut self.members, &mut self.ready, &self.epoll);
        self.leaving
            .retain(|&(id, deadline)| match members.get_mut(&id) {
                Some(Place::Made(member)) => {
                    let stays = !member.is_gone() && now < deadline;
                    if !stays {
                        if let Some(Place::Made(member)) = members.remove(&id) {
                            member.drop_from(epoll);
                        }
                    } else if member.is_busy() && member.is_to_be_looked_at() {
                        ready.push_back(id);
                    }
                    stays
                }
                _ => false,
            });
    }
}

/// The family of an address.
fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
