// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Connections to the port of lanes, of which nobody knows yet whose they are.
//!
//! They are steered to a bound queue, so what comes by them lands in memory that others need. An honest end sends nothing
//! before it was greeted: until then they are shut.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use devmem::rcvbuf;
use devmem::rcvbuf::Shut;

use crate::protocol::wire::MAX_LANES;

/// How many there may be, if nothing else is said.
const MOST: usize = 4 * MAX_LANES as usize;

#[derive(Debug)]
struct Waiting {
    from: SocketAddr,
    socket: TcpStream,
    shut: Shut,
    since: Instant,
}

/// Those.
#[derive(Debug)]
pub(crate) struct Stash {
    /// The oldest first.
    waiting: VecDeque<Waiting>,
    /// Whose control connection there is.
    served: Option<IpAddr>,
    /// How many there may be.
    most: usize,
}

impl Default for Stash {
    fn default() -> Self {
        Self::of(MOST)
    }
}

impl Stash {
    /// With room for so many.
    pub(crate) fn of(most: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            served: None,
            most,
        }
    }

    /// The end that is served is at this address: its lanes are not among those of which there are too many.
    pub(crate) fn serve(&mut self, address: Option<IpAddr>) {
        self.served = address.map(|ip| ip.to_canonical());
    }

    /// Keeps one, if nothing has come by it, and closes another if there are too many.
    pub(crate) fn add(&mut self, from: SocketAddr, socket: TcpStream) -> io::Result<()> {
        // Who had the port before has it no more.
        self.waiting.retain(|other| !same(other.from, from));
        let shut = rcvbuf::shut(&socket)?;
        // Only now, as next to nothing more can come.
        if !is_silent(&socket) {
            return Ok(());
        }
        self.waiting.push_back(Waiting {
            from,
            shut,
            socket,
            since: Instant::now(),
        });
        if self.waiting.len() > self.most {
            self.close_one();
        }
        Ok(())
    }

    /// Closes the oldest one of the network that has the most of them, if there is one. Others cannot bring that about for
    /// the end that is served.
    pub(crate) fn close_one(&mut self) -> bool {
        let all = self.waiting.iter().map(|waiting| waiting.from.ip());
        let others = all
            .enumerate()
            .filter(|(_, ip)| Some(ip.to_canonical()) != self.served);
        let at = first_of_most(others);
        // All of them may be of that end.
        self.waiting.remove(at.unwrap_or(0)).is_some()
    }

    /// Closes all.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether one that comes from there is here.
    pub(crate) fn has(&self, from: SocketAddr) -> bool {
        self.waiting.iter().any(|other| same(other.from, from))
    }

    /// The one that comes from there, if it is here.
    pub(crate) fn take(&mut self, from: SocketAddr) -> io::Result<Option<TcpStream>> {
        let at = self.waiting.iter().position(|other| same(other.from, from));
        let Some(Waiting { socket, shut, .. }) = at.and_then(|at| self.waiting.remove(at)) else {
            return Ok(None);
        };
        shut.reopen(&socket)?;
        Ok(Some(socket))
    }

    /// Closes those that have been here for that long, and those by which something has come. Tells when the next one will
    /// have been.
    pub(crate) fn close_after(&mut self, age: Duration) -> Option<Instant> {
        self.close_after_unless(age, |_| false);
        self.waiting.front()?.since.checked_add(age)
    }

    /// The same, but those stay, however long they have been here, that come from an address of which that is so.
    pub(crate) fn close_after_unless(&mut self, age: Duration, stays: impl Fn(IpAddr) -> bool) {
        self.waiting.retain(|waiting| {
            let has_time = waiting.since.elapsed() < age || stays(waiting.from.ip());
            has_time && is_silent(&waiting.socket)
        });
    }
}

/// Whether these are the same end of a connection, apart from scopes. One of IPv4 is another one to a socket of IPv6.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip().to_canonical() == b.ip().to_canonical() && a.port() == b.port()
}

/// The first one of the network that has the most of these.
pub(crate) fn first_of_most<T>(all: impl Iterator<Item = (T, IpAddr)> + Clone) -> Option<T> {
    let mut counts = BTreeMap::<Ipv6Addr, usize>::new();
    for (_, ip) in all.clone() {
        *counts.entry(network(ip)).or_default() += 1;
    }
    let most = counts.values().max();
    let mut all = all;
    let found = all.find(|(_, ip)| counts.get(&network(*ip)) == most);
    found.map(|(what, _)| what)
}

/// The network of an address, of whose addresses whoever has one may have all: of IPv6 the upper half.
fn network(ip: IpAddr) -> Ipv6Addr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            [a, b, c, d, 0, 0, 0, 0].into()
        }
    }
}

/// Whether nothing has come by it, as nothing does by that of an honest end.
fn is_silent(socket: &TcpStream) -> bool {
    rcvbuf::held(socket).is_ok_and(|bytes| bytes == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::net::TcpListener;

    use nix::sys::socket::getsockopt;
    use nix::sys::socket::sockopt;

    const LONG: Duration = Duration::from_secs(60);

    fn address(host: u8, port: usize) -> SocketAddr {
        let port = u16::try_from(port).unwrap();
        (Ipv4Addr::new(192, 0, 2, host), port).into()
    }

    /// A connection, and its other end.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (socket, listener.accept().unwrap().0)
    }

    /// One connection counts as that of all of these.
    fn add(stash: &mut Stash, socket: &TcpStream, all: impl IntoIterator<Item = SocketAddr>) {
        for from in all {
            stash.add(from, socket.try_clone().unwrap()).unwrap();
        }
    }

    fn has(stash: &mut Stash, from: SocketAddr) -> bool {
        stash.take(from).unwrap().is_some()
    }

    #[test]
    fn next_to_nothing_lands_by_what_waits() {
        let room = |socket: &TcpStream| getsockopt(socket, sockopt::RcvBuf).unwrap();
        let (socket, _peer) = connection();
        let before = room(&socket);
        let mut stash = Stash::default();
        add(&mut stash, &socket, [address(1, 1)]);
        assert!(room(&socket) < 8192, "{}", room(&socket));
        let taken = stash.take(address(1, 1)).unwrap().unwrap();
        assert_eq!(room(&taken), before);
        assert!(!has(&mut stash, address(1, 1)));
    }

    /// What has landed stays there for as long as the connection is open.
    #[test]
    fn who_sends_before_it_is_asked_is_closed() {
        let (socket, mut peer) = connection();
        let mut stash = Stash::default();
        let [early, late] = [address(1, 1), address(1, 2)];
        add(&mut stash, &socket, [late]);
        peer.write_all(b"x").unwrap();
        add(&mut stash, &socket, [early]);
        assert!(!has(&mut stash, early));
        assert_eq!(stash.waiting.len(), 1);
        assert_eq!(stash.close_after(LONG), None);
        assert!(!has(&mut stash, late));
    }

    /// Whoever makes very many pushes out its own.
    #[test]
    fn many_of_one_do_not_push_out_another() {
        let mut stash = Stash::default();
        let (socket, _peer) = connection();
        add(&mut stash, &socket, (1..=2).map(|port| address(1, port)));
        let many = (1..=2 * MOST).map(|port| address(2, port));
        add(&mut stash, &socket, many);
        assert_eq!(stash.waiting.len(), MOST);
        for port in 1..=2 {
            assert!(has(&mut stash, address(1, port)), "{port}");
        }
        assert!(!has(&mut stash, address(2, 1)));
        assert!(has(&mut stash, address(2, 2 * MOST)));
    }

    /// Who has one address of IPv6 has very many, and makes one from each.
    #[test]
    fn many_of_one_network_do_not_push_out_another() {
        let mut stash = Stash::default();
        let (socket, _peer) = connection();
        let of = |network: u16, host: usize| {
            let host = u16::try_from(host).unwrap();
            SocketAddr::from(([0x2001, 0xdb8, 0, network, 0, 0, 0, host], 1))
        };
        add(&mut stash, &socket, (1..=2).map(|host| of(1, host)));
        add(&mut stash, &socket, (1..=2 * MOST).map(|host| of(2, host)));
        for host in 1..=2 {
            assert!(has(&mut stash, of(1, host)), "{host}");
        }
    }

    /// Even if each of the others makes fewer.
    #[test]
    fn many_others_do_not_push_out_the_end_that_is_served() {
        let mut stash = Stash::default();
        let (socket, _peer) = connection();
        let [served, other] = [address(1, 1).ip(), address(2, 1).ip()];
        let of = |ip, ports: u16| (1..=ports).map(move |port| SocketAddr::new(ip, port));
        for (who, stays) in [(served, true), (other, false)] {
            stash.serve(Some(served));
            add(&mut stash, &socket, of(who, 3));
            for host in 0..2 * MOST {
                let [high, low] = u16::try_from(host).unwrap().to_be_bytes();
                let from = SocketAddr::from(([198, 51, high, low], 1));
                add(&mut stash, &socket, [from]);
            }
            let left = of(who, 3).filter(|&from| has(&mut stash, from)).count();
            assert_eq!(left == 3, stays, "{left}");
            stash.clear();
        }
        // But nothing keeps more than there may be.
        add(&mut stash, &socket, of(served, 2 * MAX_LANES * 4));
        assert_eq!(stash.waiting.len(), MOST);
    }

    /// A socket of IPv6 may tell of IPv4 in its own way.
    #[test]
    fn an_address_is_the_same_in_either_family() {
        let mut stash = Stash::default();
        let (socket, _peer) = connection();
        let from = address(1, 1);
        let IpAddr::V4(ip) = from.ip() else {
            unreachable!()
        };
        let mapped = SocketAddr::new(ip.to_ipv6_mapped().into(), from.port());
        add(&mut stash, &socket, [from]);
        assert!(has(&mut stash, mapped));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut stash = Stash::default();
        let (socket, _peer) = connection();
        add(&mut stash, &socket, [address(1, 1)]);
        assert!(stash.close_after(LONG).unwrap() > Instant::now());
        assert_eq!(stash.close_after(Duration::ZERO), None);
        assert!(!has(&mut stash, address(1, 1)));
    }
}
