// SPDX-License-Identifier: GPL-2.0 OR MIT

use super::*;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;

use nix::sys::resource::setrlimit;

use crate::group::Address;
use crate::group::Group;
use crate::group::What;
use crate::group::tests::LONG;
use crate::group::tests::SHORT;
use crate::group::tests::group;
use crate::group::tests::next;

/// Whoever connects without the library.
fn hello(to: Address, ports: &[u16]) -> TcpStream {
    let mut control = TcpStream::connect((to.ip, to.control)).unwrap();
    let mut said = MAGIC.to_vec();
    said.extend(u16::try_from(ports.len()).unwrap().to_le_bytes());
    said.extend(ports.iter().flat_map(|port| port.to_le_bytes()));
    control.write_all(&said).unwrap();
    control
}

/// What it hears: nothing if it is left.
fn answer(mut control: TcpStream, group: &mut Group<u32>) -> usize {
    control.set_nonblocking(true).unwrap();
    let start = Instant::now();
    while start.elapsed() < LONG {
        group.wait(Some(SHORT)).unwrap();
        match control.read(&mut [0; 64]) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => (),
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return 0,
            read => return read.unwrap(),
        }
    }
    panic!("nothing is said");
}

#[test]
fn a_lane_is_one_lane() {
    let Some(mut group) = group() else {
        return;
    };
    let to = group.address();
    let lanes = [0, 1].map(|_| TcpStream::connect((to.ip, to.lanes)).unwrap());
    let ports = lanes.map(|lane| (lane.local_addr().unwrap().port(), lane));
    let (first, second) = (ports[0].0, ports[1].0);
    assert_eq!(answer(hello(to, &[first, second, first]), &mut group), 0);
    assert!(answer(hello(to, &[second, first]), &mut group) > 0);
}

fn waiting(group: &Group<u32>) -> (usize, usize) {
    group.server.as_ref().unwrap().waiting()
}

/// Goes on until so many control connections, and lanes, wait.
fn until_waiting(group: &mut Group<u32>, expected: (usize, usize)) {
    let start = Instant::now();
    while waiting(group) != expected {
        assert!(group.wait(Some(SHORT)).unwrap().is_none());
        assert!(start.elapsed() < LONG, "{:?}", waiting(group));
    }
}

/// Neither those who say nothing nor those who say a part of it keep anybody busy.
#[test]
fn who_has_connected_and_does_not_go_on_keeps_nobody_busy() {
    let Some(mut group) = group() else {
        return;
    };
    let to = group.address();
    let _lane = TcpStream::connect((to.ip, to.lanes)).unwrap();
    let silent = TcpStream::connect((to.ip, to.control)).unwrap();
    let mut no_lane = hello(to, &[1]);
    no_lane.write_all(b"and what is for the endpoint").unwrap();
    until_waiting(&mut group, (2, 1));
    // What they have said is no news a second time.
    assert!(group.wait(Some(Duration::ZERO)).unwrap().is_none());
    assert!(!group.is_busy());
    assert!(!polled_for(&group, Duration::ZERO));
    drop(silent);
    until_waiting(&mut group, (1, 1));
    drop(no_lane);
    until_waiting(&mut group, (0, 1));
    // Nobody will name that one.
    group.server.as_mut().unwrap().patience = SHORT;
    until_waiting(&mut group, (0, 0));
}

/// Its program is computing between two calls: it has connected, and says nothing until it makes progress.
#[test]
fn who_connects_and_computes_has_its_connection_then() {
    let (Some(mut here), Some(mut there)) = (group(), group()) else {
        return;
    };
    let patience = Duration::from_millis(20);
    there.server.as_mut().unwrap().patience = patience;
    let end = here.connect(there.address(), 2).unwrap();
    until_waiting(&mut there, (1, 2));
    let start = Instant::now();
    while start.elapsed() < 5 * patience {
        assert!(there.wait(Some(SHORT)).unwrap().is_none());
    }
    let opened = next(&mut here, &mut there);
    assert_eq!(opened.end, end);
    assert!(matches!(opened.what, What::Open), "{opened:?}");
}

/// They have said all there is to say while this end was computing.
#[test]
fn many_may_connect_at_the_same_time() {
    const MANY: usize = 70;
    let Some(mut group) = group() else {
        return;
    };
    let to = group.address();
    let connected = |port| {
        let to = SocketAddr::new(to.ip, port);
        TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap()
    };
    let lanes: Vec<_> = (0..MANY).map(|_| connected(to.lanes)).collect();
    let ports = lanes.iter().map(|lane| lane.local_addr().unwrap().port());
    let callers: Vec<_> = ports.map(|port| hello(to, &[port])).collect();
    for caller in callers {
        assert!(answer(caller, &mut group) > 0);
    }
}

/// Who makes very many that say nothing loses its own.
#[test]
fn of_too_many_those_go_of_whom_there_are_the_most() {
    let Some(mut group) = group() else {
        return;
    };
    let to = group.address();
    group.server.as_mut().unwrap().most = 4;
    let from = |host: u8| {
        let flags = nix::sys::socket::SockFlag::SOCK_CLOEXEC;
        let kind = nix::sys::socket::SockType::Stream;
        let socket =
            nix::sys::socket::socket(nix::sys::socket::AddressFamily::Inet, kind, flags, None)
                .unwrap();
        let at =
            |ip: IpAddr, port| nix::sys::socket::SockaddrStorage::from(SocketAddr::new(ip, port));
        let here = Ipv4Addr::new(127, 0, 0, host).into();
        nix::sys::socket::bind(socket.as_raw_fd(), &at(here, 0)).unwrap();
        nix::sys::socket::connect(socket.as_raw_fd(), &at(to.ip, to.control)).unwrap();
        TcpStream::from(socket)
    };
    let mut one = from(2);
    let mut many: Vec<_> = (0..5).map(|_| from(3)).collect();
    until_waiting(&mut group, (4, 0));
    assert_eq!(answer(many.remove(0), &mut group), 0);
    let lane = TcpStream::connect((to.ip, to.lanes)).unwrap();
    one.write_all(b"DMBL\x01\x00").unwrap();
    let port = lane.local_addr().unwrap().port();
    one.write_all(&port.to_le_bytes()).unwrap();
    // The lane comes from elsewhere, so it is none of that one.
    until_waiting(&mut group, (4, 1));
}

/// It waits where it is until there is room, and keeps nobody busy.
#[test]
fn for_whom_there_is_no_room_waits() {
    let Some(mut group) = group() else {
        return;
    };
    let to = group.address();
    let lane = TcpStream::connect((to.ip, to.lanes)).unwrap();
    let caller = hello(to, &[lane.local_addr().unwrap().port()]);
    // It can accept nobody, whatever the reason.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let none = socket(family(to.ip), SockType::Stream, flags, None).unwrap();
    let server = group.server.as_mut().unwrap();
    let listener = std::mem::replace(&mut server.control, none.into());
    until_waiting(&mut group, (0, 1));
    assert!(group.wait(Some(SHORT)).unwrap().is_none());
    // There is nothing to be done at once, but there will be, and whoever polls is told.
    assert!(!group.is_busy());
    assert!(group.is_serving());
    group.server.as_mut().unwrap().control = listener;
    assert!(polled_for(&group, LONG));
    assert!(answer(caller, &mut group) > 0);
}

fn polled_for(group: &Group<u32>, timeout: Duration) -> bool {
    let mut polled = [nix::poll::PollFd::new(
        group.as_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    let timeout = nix::poll::PollTimeout::try_from(timeout).unwrap();
    nix::poll::poll(&mut polled, timeout) == Ok(1)
}

/// Those who do not go on may do so for as long as they like, but not for all of the descriptors.
#[test]
fn if_there_is_no_room_those_go_who_have_more_than_their_share() {
    let Some(mut group) = group() else {
        return;
    };
    let to = group.address();
    let connect = |_| TcpStream::connect((to.ip, to.control)).unwrap();
    let mut callers: Vec<_> = (0..5).map(connect).collect();
    until_waiting(&mut group, (5, 0));
    let server = group.server.as_mut().unwrap();
    server.patience = Duration::ZERO;
    server.share = 3;
    let none = socket(family(to.ip), SockType::Stream, SockFlag::empty(), None).unwrap();
    server.control = none.into();
    let _next = TcpStream::connect((to.ip, to.lanes)).unwrap();
    until_waiting(&mut group, (2, 1));
    assert_eq!(answer(callers.remove(0), &mut group), 0);
    let start = Instant::now();
    while start.elapsed() < 4 * AGAIN {
        group.wait(Some(SHORT)).unwrap();
    }
    assert_eq!(waiting(&group).0, 2);
}

/// Also if it has been accepted, and there is no room for its end. The process that has few descriptors is one of its own.
#[test]
fn for_whose_end_there_is_no_room_waits() {
    const HERE: &str = "group::server::tests::for_whose_end_there_is_no_room_waits";
    const FEW: &str = "DEVMEM_FEW_DESCRIPTORS";
    const MANY: usize = 8;
    if std::env::var_os(FEW).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", HERE]).env(FEW, "1");
        assert!(child.status().unwrap().success());
        return;
    }
    let Some(mut group) = group() else {
        return;
    };
    let to = group.address();
    let connect = |port| TcpStream::connect((to.ip, port)).unwrap();
    let lanes: Vec<_> = (0..MANY).map(|_| connect(to.lanes)).collect();
    let mut callers: Vec<_> = (0..MANY).map(|_| connect(to.control)).collect();
    until_waiting(&mut group, (MANY, MANY));
    // For the ends of two of them, and a half.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let next = group.as_fd().try_clone_to_owned().unwrap().as_raw_fd();
    let limit = |limit| setrlimit(Resource::RLIMIT_NOFILE, limit, most).unwrap();
    limit(u64::try_from(next).unwrap() + 15);
    for (caller, lane) in callers.iter_mut().zip(&lanes) {
        let port = lane.local_addr().unwrap().port();
        let said = [&MAGIC[..], &1_u16.to_le_bytes(), &port.to_le_bytes()].concat();
        caller.write_all(&said).unwrap();
    }
    until_waiting(&mut group, (MANY - 2, MANY - 2));
    assert!(!group.is_busy());
    let start = Instant::now();
    while start.elapsed() < 4 * AGAIN {
        group.wait(Some(SHORT)).unwrap();
    }
    assert_eq!(waiting(&group), (MANY - 2, MANY - 2));
    limit(most);
    for caller in callers {
        assert!(answer(caller, &mut group) > 0);
    }
}
