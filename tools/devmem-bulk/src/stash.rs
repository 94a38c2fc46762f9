// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Connections to the port of lanes, of which nobody knows yet whose they are.
//!
//! They are steered to a bound queue, so what comes by them lands in memory that others need. An honest end sends nothing
//! before it was greeted: until then they are shut.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use devmem::rcvbuf;
use devmem::rcvbuf::Shut;

use crate::protocol::wire::MAX_LANES;

/// How many there may be.
const MOST: usize = 4 * MAX_LANES as usize;

#[derive(Debug)]
struct Waiting {
    from: SocketAddr,
    socket: TcpStream,
    shut: Shut,
    since: Instant,
}

/// Those, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Stash(VecDeque<Waiting>);

impl Stash {
    /// Keeps one, and closes another if there are too many.
    pub(crate) fn add(&mut self, from: SocketAddr, socket: TcpStream) -> io::Result<()> {
        // Who had the port before has it no more.
        self.0.retain(|other| !same(other.from, from));
        self.0.push_back(Waiting {
            from,
            shut: rcvbuf::shut(&socket)?,
            socket,
            since: Instant::now(),
        });
        if self.0.len() > MOST {
            self.close_one();
        }
        Ok(())
    }

    /// Closes the oldest one of whoever has the most, which nobody else can bring about.
    fn close_one(&mut self) {
        let mut counts = BTreeMap::<IpAddr, usize>::new();
        for waiting in &self.0 {
            *counts.entry(waiting.from.ip()).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        let at = self
            .0
            .iter()
            .position(|waiting| Some(waiting.from.ip()) == most.map(|(ip, _)| ip));
        if let Some(at) = at {
            self.0.remove(at);
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether one that comes from there is here.
    pub(crate) fn has(&self, from: SocketAddr) -> bool {
        self.0.iter().any(|other| same(other.from, from))
    }

    /// The one that comes from there, if it is here.
    pub(crate) fn take(&mut self, from: SocketAddr) -> io::Result<Option<TcpStream>> {
        let at = self.0.iter().position(|other| same(other.from, from));
        let Some(Waiting { socket, shut, .. }) = at.and_then(|at| self.0.remove(at)) else {
            return Ok(None);
        };
        shut.reopen(&socket)?;
        Ok(Some(socket))
    }

    /// Closes those that have been here for that long. Tells when the next one will have.
    pub(crate) fn close_after(&mut self, age: Duration) -> Option<Instant> {
        self.0.retain(|waiting| waiting.since.elapsed() < age);
        self.0.front()?.since.checked_add(age)
    }
}

/// Whether these are the same end of a connection, apart from scopes.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.ip() == b.ip() && a.port() == b.port()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::net::TcpListener;

    use nix::sys::socket::getsockopt;
    use nix::sys::socket::sockopt;

    fn address(host: u8, port: usize) -> SocketAddr {
        let port = u16::try_from(port).unwrap();
        (Ipv4Addr::new(192, 0, 2, host), port).into()
    }

    fn socket() -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn next_to_nothing_lands_by_what_waits() {
        let room = |socket: &TcpStream| getsockopt(socket, sockopt::RcvBuf).unwrap();
        let socket = socket();
        let before = room(&socket);
        let mut stash = Stash::default();
        stash
            .add(address(1, 1), socket.try_clone().unwrap())
            .unwrap();
        assert!(room(&socket) < 8192, "{}", room(&socket));
        let taken = stash.take(address(1, 1)).unwrap().unwrap();
        assert_eq!(room(&taken), before);
        assert!(stash.take(address(1, 1)).unwrap().is_none());
    }

    /// Whoever makes very many pushes out its own.
    #[test]
    fn many_of_one_do_not_push_out_another() {
        let mut stash = Stash::default();
        let socket = socket();
        for port in 1..=2 {
            stash
                .add(address(1, port), socket.try_clone().unwrap())
                .unwrap();
        }
        for port in 1..=2 * MOST {
            stash
                .add(address(2, port), socket.try_clone().unwrap())
                .unwrap();
        }
        assert_eq!(stash.0.len(), MOST);
        for port in 1..=2 {
            assert!(stash.take(address(1, port)).unwrap().is_some(), "{port}");
        }
        assert!(stash.take(address(2, 1)).unwrap().is_none());
        assert!(stash.take(address(2, 2 * MOST)).unwrap().is_some());
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut stash = Stash::default();
        stash.add(address(1, 1), socket()).unwrap();
        let long = Duration::from_secs(60);
        assert!(stash.close_after(long).unwrap() > Instant::now());
        assert_eq!(stash.close_after(Duration::ZERO), None);
        assert!(stash.take(address(1, 1)).unwrap().is_none());
    }
}
