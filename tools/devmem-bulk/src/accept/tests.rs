// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An acceptor, and ends and others that do as they like.

use super::*;
use std::io::Read;
use std::io::Write;
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

use crate::protocol::Limits;
use crate::protocol::Machine;
use crate::registry::Registry;

const LONG: Duration = Duration::from_secs(60);

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn acceptor() -> Acceptor {
    let acceptor = Acceptor::new(listener(), listener());
    acceptor.listen().unwrap();
    acceptor
}

/// A control connection, and its other end.
fn control(acceptor: &mut Acceptor) -> (TcpStream, TcpStream) {
    let peer = TcpStream::connect(acceptor.control.local_addr().unwrap()).unwrap();
    (acceptor.control(LONG).unwrap().0, peer)
}

fn patience(timeout: Duration) -> Patience {
    Patience {
        deadline: Instant::now() + timeout,
        age: LONG,
    }
}

#[test]
fn who_says_little_at_once_does_not_take_longer() {
    let mut acceptor = acceptor();
    let (control, mut slow) = control(&mut acceptor);
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
    let patience = patience(Duration::from_millis(250));
    let err = acceptor.ports_from(&control, 1, patience).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::TimedOut, "{err}");
    drop(control);
    writer.join().unwrap();
}

#[test]
fn a_preamble_is_read_up_to_its_end() {
    let mut acceptor = acceptor();
    let (mut control, mut quick) = control(&mut acceptor);
    quick.write_all(&MAGIC).unwrap();
    quick.write_all(&[1, 0, 2, 3, 4]).unwrap();
    let ports = acceptor.ports_from(&control, 1, patience(LONG)).unwrap();
    assert_eq!(ports, [0x302]);
    let mut next = [0];
    control.read_exact(&mut next).unwrap();
    assert_eq!(next, [4]);
}

#[test]
fn who_wants_many_lanes_gets_none() {
    for (most, lanes) in [(1, 2), (MAX_LANES, 65), (u16::MAX, 65), (1, 0)] {
        let mut acceptor = acceptor();
        let (control, mut peer) = control(&mut acceptor);
        peer.write_all(&[&MAGIC[..], &[lanes, 0], &[0; 130]].concat())
            .unwrap();
        let err = acceptor
            .ports_from(&control, most, patience(LONG))
            .unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidData, "{most} {lanes}");
    }
}

/// Whatever an end that is served is waited for: others fill the queue of the port meanwhile, and it is not done yet.
#[test]
fn others_are_taken_in_whatever_is_waited_for() {
    let mut acceptor = Acceptor::new(listener(), listener());
    let control = acceptor.control.local_addr().unwrap();
    let data = acceptor.data.local_addr().unwrap();
    let options = Options::new(Registry::new().unwrap());
    let hello = Machine::new(Limits {
        lanes: 1,
        ..Limits::default()
    });
    let accepting = thread::spawn(move || acceptor.accept(options, LONG).map(drop));
    let mut control = TcpStream::connect(control).unwrap();
    // Who is not answered tries again, for longer than that.
    let connect = || TcpStream::connect_timeout(&data, LONG / 4).expect("a place in the queue");
    let mut others = Vec::new();
    let mut many = || others.extend((0..70).map(|_| connect()));
    many();
    let lane = connect();
    let [low, high] = lane.local_addr().unwrap().port().to_le_bytes();
    let preamble = [&MAGIC[..], &[1, 0, low, high]].concat();
    control.write_all(&preamble[..5]).unwrap();
    many();
    control.write_all(&preamble[5..]).unwrap();
    // It says hello without being asked: there is no io_uring, if it does not.
    if control.read(&mut [0; 4096]).is_ok_and(|said| said > 0) {
        many();
        control.write_all(hello.output()).unwrap();
    }
    skip_unless_uring(accepting.join().unwrap());
}

fn skip_unless_uring(result: io::Result<()>) {
    match result {
        Err(err)
            if matches!(err.raw_os_error(), Some(libc::EPERM | libc::ENOSYS))
                && std::env::var_os("DEVMEM_NO_SKIPS").is_none() =>
        {
            eprintln!("SKIP: no io_uring here: {err}");
        }
        other => other.unwrap(),
    }
}

/// Else nobody would be served for as long as connections of nobody's are kept.
#[test]
fn where_there_are_no_descriptors_left_somebody_has_to_go() {
    let full = || io::Error::from_raw_os_error(libc::EMFILE);
    let mut acceptor = acceptor();
    let to = acceptor.data.local_addr().unwrap();
    let others: Vec<_> = (0..3).map(|_| TcpStream::connect(to).unwrap()).collect();
    acceptor.collect(LONG).unwrap();
    let mut errors = vec![full(), full()];
    let made = make_room(&mut acceptor.stash, || {
        errors.pop().map_or(Ok(Some(())), Err)
    });
    assert_eq!(made.unwrap(), Some(()));
    // The oldest ones went first.
    let here = others.iter().map(|other| other.local_addr().unwrap());
    let here: Vec<_> = here
        .map(|from| acceptor.stash.take(from).unwrap().is_some())
        .collect();
    assert_eq!(here, [false, false, true]);
    let err = make_room::<()>(&mut acceptor.stash, || Err(full())).unwrap_err();
    assert_eq!(err.raw_os_error(), Some(libc::EMFILE));
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
    let mut acceptor = acceptor();
    let to = acceptor.data.local_addr().unwrap();
    let first = lane_from(0, to);
    let port = first.local_addr().unwrap().port();
    drop(first);
    let mut second = lane_from(port, to);
    // After those two.
    let third = lane_from(0, to);
    let mut lane = |from| acceptor.lane(from, patience(LONG)).unwrap();
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
