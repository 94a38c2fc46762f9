// SPDX-License-Identifier: GPL-2.0 OR MIT

use super::*;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;

use devmem::HostMemory;

use crate::memory::Memory;
use crate::protocol::End;
use crate::protocol::Failure;
use crate::protocol::Key;
use crate::protocol::Refused;
use crate::protocol::Rights;
use crate::protocol::Status;
use crate::registry::Registry;

pub(super) const LONG: Duration = Duration::from_secs(60);
pub(super) const SHORT: Duration = Duration::from_millis(1);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// `None` on a machine that does not allow io_uring.
fn group_at(ip: IpAddr) -> Option<Group<u32>> {
    if let Err(err) = devmem::uring::Ring::new(1) {
        assert!(std::env::var_os("DEVMEM_NO_SKIPS").is_none(), "{err}");
        eprintln!("SKIP: no io_uring here: {err}");
        return None;
    }
    let parts = Parts {
        registry: Registry::new().unwrap(),
        landing: None,
    };
    Some(Group::new(ip, 0, parts).unwrap())
}

pub(super) fn group() -> Option<Group<u32>> {
    group_at(LOCAL)
}

fn memory(bytes: &[u8]) -> Arc<Memory> {
    Memory::host(HostMemory::owned(bytes.into()))
}

/// What happens next to one of them, while the other one goes on, too.
pub(super) fn next(group: &mut Group<u32>, other: &mut Group<u32>) -> Happened<u32> {
    let start = Instant::now();
    while start.elapsed() < LONG {
        assert!(other.wait(Some(Duration::ZERO)).unwrap().is_none());
        if let Some(event) = group.wait(Some(SHORT)).unwrap() {
            return event;
        }
    }
    panic!("nothing happens");
}

fn done(happened: Happened<u32>) -> Done<u32> {
    match happened.what {
        What::Done(done) => done,
        other => panic!("{other:?}"),
    }
}

/// An end of the first one, by which it can ask.
fn connected(here: &mut Group<u32>, there: &mut Group<u32>) -> EndId {
    let end = here.connect(there.address(), 2).unwrap();
    assert!(!here.has_room(end));
    let opened = next(here, there);
    assert!(matches!(opened.what, What::Open), "{opened:?}");
    assert!(here.has_room(end));
    end
}

#[test]
fn memory_and_bytes_are_put_and_got() {
    for ip in [LOCAL, IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let (Some(mut here), Some(mut there)) = (group_at(ip), group_at(ip)) else {
            return;
        };
        let end = connected(&mut here, &mut there);
        let target = memory(&[0; 100_000]);
        let registry = &there.parts.registry;
        let key = registry
            .register(&target, 0, 100_000, Rights::ReadWrite, None)
            .unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        let source = memory(&bytes);
        here.put(end, (&source, 1), 99_999, (key, 1), 1).unwrap();
        assert_eq!(done(next(&mut here, &mut there)).token, 1);
        here.put_bytes(end, b"abc", (key, 0), 2).unwrap();
        assert_eq!(done(next(&mut here, &mut there)).token, 2);
        here.get_bytes(end, 5, (key, 0), 3).unwrap();
        let got = done(next(&mut here, &mut there));
        assert_eq!(got.bytes.as_deref(), Some(&[97, 98, 99, 3, 4][..]));
        here.get(end, (&source, 0), 10, (key, 0), 4).unwrap();
        assert!(here.has_requests());
        assert_eq!(done(next(&mut here, &mut there)).result, Ok(()));
        assert!(!here.has_requests());
        let mut got = [0; 4];
        source.read(0, &mut got).unwrap();
        assert_eq!(&got, b"abc\x03");
    }
}

#[test]
fn a_flush_ends_after_all_before_it_and_says_what_failed() {
    let (Some(mut here), Some(mut there)) = (group(), group()) else {
        return;
    };
    let end = connected(&mut here, &mut there);
    assert_eq!(here.flush(end, 7), Err(7));
    let target = memory(&[0; 8]);
    let registry = there.parts.registry.clone();
    let key = registry
        .register(&target, 0, 8, Rights::Write, None)
        .unwrap();
    here.put_bytes(end, b"ab", (key, 0), 1).unwrap();
    here.flush(end, 2).unwrap();
    // That key is of nobody.
    here.put_bytes(end, b"ab", (Key([1; 16]), 0), 3).unwrap();
    here.flush(end, 4).unwrap();
    here.put_bytes(end, b"ab", (key, 2), 5).unwrap();
    let mut told: Vec<_> = (0..5).map(|_| done(next(&mut here, &mut there))).collect();
    let at = |told: &[Done<u32>], token| told.iter().position(|done| done.token == token).unwrap();
    assert!(at(&told, 1) < at(&told, 2));
    assert!(at(&told, 2) < at(&told, 4) && at(&told, 3) < at(&told, 4));
    told.sort_by_key(|done| done.token);
    let refused = Err(Failure::Status(Status::Key));
    let results: Vec<_> = told.iter().map(|done| done.result).collect();
    assert_eq!(results, [Ok(()), Ok(()), refused, refused, Ok(())]);
}

/// Who flushes may let go then of what was put, so it is told before.
#[test]
fn a_flush_comes_after_what_was_not_told() {
    let (Some(mut here), Some(mut there)) = (group(), group()) else {
        return;
    };
    let end = connected(&mut here, &mut there);
    // That key is of nobody.
    here.put_bytes(end, b"ab", (Key([1; 16]), 0), 1).unwrap();
    let start = Instant::now();
    while here.events.is_empty() && start.elapsed() < LONG {
        here.go_on(Some(SHORT)).unwrap();
        there.wait(Some(Duration::ZERO)).unwrap();
    }
    assert!(here.is_asking(end));
    here.flush(end, 2).unwrap();
    let refused = Err(Failure::Status(Status::Key));
    for token in [1, 2] {
        let told = done(here.wait(Some(Duration::ZERO)).unwrap().unwrap());
        assert_eq!((told.token, told.result), (token, refused));
    }
    assert!(!here.is_asking(end));
    assert_eq!(here.flush(end, 3), Err(3));
}

/// The same as of what is known later.
#[test]
fn what_cannot_be_reached_is_told_as_an_event() {
    let Some(mut here) = group() else {
        return;
    };
    let mut to = here.address();
    to.ip = Ipv6Addr::LOCALHOST.into();
    let end = here.connect(to, 1).unwrap();
    assert!(here.is_busy());
    let over = here.wait(Some(Duration::ZERO)).unwrap().unwrap();
    assert_eq!(over.end, end);
    assert!(matches!(over.what, What::Over(Why::Unreachable(_))));
}

/// A child that was made by fork() has all of them.
#[test]
fn an_end_whose_ring_somebody_has_is_not_polled() {
    let (Some(mut here), Some(mut there)) = (group(), group()) else {
        return;
    };
    let end = connected(&mut here, &mut there);
    let Some(Place::Made(member)) = here.members.get(&end.0) else {
        panic!("no end");
    };
    let _ring = member.ring().try_clone_to_owned().unwrap();
    here.put_bytes(end, b"ab", (Key([1; 16]), 0), 1).unwrap();
    while here.cancel(end).is_some() {}
    while !here.members.is_empty() || !there.members.is_empty() {
        here.wait(Some(SHORT)).unwrap();
        there.wait(Some(SHORT)).unwrap();
    }
    // Those at which it listens, and its timer.
    let polled = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", here.as_raw_fd()));
    let polled = polled.unwrap();
    assert_eq!(polled.matches("tfd:").count(), 3, "{polled}");
}

/// However many it says: nobody would get to do anything else.
#[test]
fn notes_of_peers_are_nobodys() {
    let Some(mut group) = group() else {
        return;
    };
    let to = group.address();
    let peer = std::thread::spawn(move || {
        let at = |port| SocketAddr::new(to.ip, port);
        let options = crate::Options::new(Registry::new().unwrap());
        let connected = crate::connect::connect(at(to.control), at(to.lanes), 1, options, LONG);
        let mut endpoint = connected.unwrap();
        for _ in 0..10 {
            endpoint.notify([1; crate::protocol::wire::NOTE]).unwrap();
            endpoint.flush(drop).unwrap().unwrap();
        }
    });
    while !peer.is_finished() {
        assert!(group.wait(Some(SHORT)).unwrap().is_none());
    }
    peer.join().unwrap();
}

#[test]
fn a_fence_is_passed_when_all_before_it_is_over() {
    let (Some(mut here), Some(mut there)) = (group(), group()) else {
        return;
    };
    let end = connected(&mut here, &mut there);
    here.fence(end);
    assert!(here.has_room(end));
    here.put_bytes(end, b"ab", (Key([1; 16]), 0), 1).unwrap();
    assert!(here.has_room(end));
    here.fence(end);
    assert!(!here.has_room(end));
    let refused = here.put_bytes(end, b"ab", (Key([1; 16]), 0), 2);
    assert_eq!(refused, Err(Refused::Busy));
    done(next(&mut here, &mut there));
    assert!(here.has_room(end));
}

/// Nor does anything come of it after that.
#[test]
fn what_is_cancelled_is_given_back_with_those_who_wait_for_it() {
    let (Some(mut here), Some(mut there)) = (group(), group()) else {
        return;
    };
    let end = connected(&mut here, &mut there);
    for token in 0..3 {
        here.put_bytes(end, b"ab", (Key([1; 16]), 0), token)
            .unwrap();
    }
    here.flush(end, 3).unwrap();
    for token in 0..4 {
        let left = here.cancel(end).unwrap();
        assert_eq!(left.token, token);
        assert!(matches!(left.result, Err(Failure::Over(_))));
    }
    assert!(here.cancel(end).is_none());
    assert!(!here.has_requests());
    let refused = here.put_bytes(end, b"ab", (Key([1; 16]), 0), 4);
    assert!(matches!(refused, Err(Refused::Over(_))));
    while !here.members.is_empty() || !there.members.is_empty() {
        assert!(here.wait(Some(SHORT)).unwrap().is_none());
        assert!(there.wait(Some(SHORT)).unwrap().is_none());
    }
}

#[test]
fn the_peer_hears_that_a_group_is_closed() {
    let (Some(mut here), Some(mut there)) = (group(), group()) else {
        return;
    };
    let end = connected(&mut here, &mut there);
    let address = there.address();
    let closing = std::thread::spawn(move || {
        there.close(LONG);
        assert!(there.members.is_empty());
    });
    let over = here.wait(Some(LONG)).unwrap().unwrap();
    assert_eq!(over.end, end);
    assert!(matches!(over.what, What::Over(Why::Ended(End::Orderly))));
    // Until it has hung up.
    while !here.members.is_empty() {
        here.wait(Some(SHORT)).unwrap();
    }
    closing.join().unwrap();
    here.connect(address, 1).unwrap();
    let over = here.wait(Some(LONG)).unwrap().unwrap();
    assert!(matches!(over.what, What::Over(Why::Unreachable(_))));
}

/// At once, also if what cannot be reached does not say so.
#[test]
fn to_connect_takes_no_time() {
    let Some(mut here) = group() else {
        return;
    };
    // It takes nobody, and its backlog is full.
    let full = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = full.local_addr().unwrap().port();
    nix::sys::socket::listen(&full, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _first = TcpStream::connect((LOCAL, port)).unwrap();
    let start = Instant::now();
    let to = Address {
        ip: LOCAL,
        control: port,
        lanes: port,
    };
    let end = here.connect(to, 1).unwrap();
    assert!(here.wait(Some(SHORT)).unwrap().is_none());
    assert!(start.elapsed() < Duration::from_millis(900));
    let refused = here.put_bytes(end, b"ab", (Key([1; 16]), 0), 4);
    assert_eq!(refused, Err(Refused::Busy));
    assert!(here.cancel(end).is_none());
    assert!(here.members.is_empty());
}

#[test]
fn a_port_for_lanes_is_one_groups() {
    let Some(group) = group() else {
        return;
    };
    let parts = group.parts.clone();
    let port = group.address().lanes;
    let err = Group::<u32>::new(LOCAL, port, parts.clone()).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::AddrInUse);
    drop(group);
    Group::<u32>::new(LOCAL, port, parts).unwrap();
}
