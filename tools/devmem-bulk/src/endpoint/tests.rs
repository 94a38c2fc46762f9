// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An endpoint and a peer that does what it likes.

use super::*;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;

use devmem::HostMemory;
use nix::sys::socket::getsockopt;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::protocol::Fault;
use crate::protocol::Limits;
use crate::protocol::machine::LEAST;
use crate::protocol::wire::Frame;

const LONG: Duration = Duration::from_secs(60);

/// The other end takes little that it does not read.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    setsockopt(&listener, sockopt::RcvBuf, &1).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// An end with one lane, and the sockets of its peer; `None` on a machine that does not allow io_uring.
fn endpoint() -> Option<(Endpoint, TcpStream, TcpStream)> {
    let ((control, there), (lane, lane_there)) = (connection(), connection());
    let options = Options::new(Registry::new().unwrap());
    let endpoint = or_skip(Endpoint::new(control, vec![lane], options))?;
    Some((endpoint, there, lane_there))
}

fn or_skip(made: io::Result<Endpoint>) -> Option<Endpoint> {
    match made {
        Ok(endpoint) => Some(endpoint),
        Err(err)
            if matches!(err.raw_os_error(), Some(libc::EPERM | libc::ENOSYS))
                && std::env::var_os("DEVMEM_NO_SKIPS").is_none() =>
        {
            eprintln!("SKIP: no io_uring here: {err}");
            None
        }
        Err(err) => panic!("no endpoint: {err}"),
    }
}

#[test]
fn an_endpoint_has_as_many_lanes_as_the_protocol_knows() {
    let (control, _there) = connection();
    for count in [0, 65] {
        let lanes = (0..count).map(|_| control.try_clone().unwrap()).collect();
        let options = Options::new(Registry::new().unwrap());
        let err = Endpoint::new(control.try_clone().unwrap(), lanes, options).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidInput, "{count}");
    }
}

/// However many there are, it is for all of them together: it follows from the memory that there is.
#[test]
fn lanes_share_a_window() {
    let least = 2 * u64::from(LEAST);
    for (window, each) in [(3 * least, Some(least)), (3 * least - 1, None)] {
        let (control, mut there) = connection();
        let lanes: Vec<_> = (0..3).map(|_| connection()).collect();
        let (here, _there): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
        let mut options = Options::new(Registry::new().unwrap());
        options.window = Some(window);
        let endpoint = match Endpoint::new(control, here, options) {
            Err(err) if err.kind() == io::ErrorKind::InvalidInput => {
                assert_eq!(each, None);
                continue;
            }
            other => or_skip(other),
        };
        let Some(mut endpoint) = endpoint else { return };
        let lanes = 3;
        let hello = Machine::new(Limits {
            lanes,
            ..Limits::default()
        });
        there.write_all(hello.output()).unwrap();
        endpoint.wait_open(LONG).unwrap();
        let mut said = vec![0; hello.output().len() + 3 * 16];
        there.read_exact(&mut said).unwrap();
        let mut limits = Vec::new();
        let mut at = 0;
        while let Some((frame, len)) = Frame::decode(&said[at..]).unwrap() {
            at += len;
            if let Frame::Credit { limit, .. } = frame {
                limits.push(limit);
            }
        }
        assert_eq!(Some(limits), each.map(|each| vec![each; 3]));
    }
}

/// As it is when memory is recalled that goes by it, by whatever thread.
#[test]
fn a_lane_that_is_reset_here_ends_the_connection() {
    let Some((mut endpoint, mut there, _lane_there)) = endpoint() else {
        return;
    };
    let hello = Machine::new(Limits {
        lanes: 1,
        ..Limits::default()
    });
    there.write_all(hello.output()).unwrap();
    endpoint.wait_open(LONG).unwrap();
    devmem::tcp::abort(endpoint.lanes[0].socket()).unwrap();
    let told = endpoint.wait(Some(LONG)).unwrap();
    assert!(matches!(told, Some(Event::Over(End::Gone))), "{told:?}");
    assert!(endpoint.lanes.is_empty());
}

/// Also if nothing is under way, so that there is nothing to be acknowledged.
#[test]
fn silence_is_noticed_soon() {
    let (socket, _there) = connection();
    hear_of_death(&socket, Some(SILENCE)).unwrap();
    let idle = getsockopt(&socket, sockopt::TcpKeepIdle).unwrap();
    let interval = getsockopt(&socket, sockopt::TcpKeepInterval).unwrap();
    let most = getsockopt(&socket, sockopt::TcpUserTimeout).unwrap();
    assert!(getsockopt(&socket, sockopt::KeepAlive).unwrap());
    assert_eq!(u128::from(most), SILENCE.as_millis());
    assert!(idle + 2 * interval <= most / 1000, "{idle} s, {interval} s");
}

/// It is told how the connection ended, and nothing that it says after that matters.
#[test]
fn a_peer_that_goes_on_talking_is_left() {
    let Some((mut endpoint, mut there, _lane)) = endpoint() else {
        return;
    };
    let mut listening = there.try_clone().unwrap();
    thread::spawn(move || while listening.read(&mut [0; 4096]).is_ok_and(|len| len > 0) {});
    let talking = thread::spawn(move || while there.write_all(&[0; 1 << 20]).is_ok() {});
    let (to, left) = mpsc::channel();
    thread::spawn(move || {
        let end = endpoint.serve(drop).unwrap();
        drop(endpoint);
        to.send(end)
    });
    let end = left.recv_timeout(LONG).expect("it is still there");
    assert_eq!(end, End::Broken(Fault::Malformed));
    talking.join().unwrap();
}

/// However slowly it does.
#[test]
fn a_peer_that_does_not_listen_is_left() {
    let Some((mut endpoint, mut there, _lane)) = endpoint() else {
        return;
    };
    setsockopt(&endpoint.control, sockopt::SndBuf, &1).unwrap();
    let mut hello = Machine::new(Limits::default()).output().to_vec();
    let key = Key([0; 16]);
    let (offset, len) = (0, 1);
    for id in 0..200_000 {
        Frame::Get {
            id,
            key,
            offset,
            len,
        }
        .encode(&mut hello);
    }
    let asking = thread::spawn(move || {
        let _ = there.write_all(&hello);
        there
    });
    let start = Instant::now();
    while endpoint.wait(Some(LONG)).unwrap().is_some() {}
    assert!(start.elapsed() < 3 * FAREWELL, "{:?}", start.elapsed());
    assert_eq!(endpoint.end(), Some(End::Broken(Fault::Requests)));
    drop(endpoint);
    drop(asking.join());
}

/// An end that has heard a hello, and the sockets of its peer.
fn open() -> Option<(Endpoint, TcpStream, TcpStream)> {
    let (mut endpoint, mut there, lane) = endpoint()?;
    let lanes = 1;
    let hello = Machine::new(Limits {
        lanes,
        ..Limits::default()
    });
    there.write_all(hello.output()).unwrap();
    endpoint.wait_open(LONG).unwrap();
    Some((endpoint, there, lane))
}

/// A lane that tells so at once.
fn breaks(lane: TcpStream) {
    let reset = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&lane, sockopt::Linger, &reset).unwrap();
}

/// How long is waited.
const WAIT: Duration = Duration::from_millis(400);
/// Who looks more often in that time does not wait.
const FEW: u64 = 50;

/// The control connection tells how the peer went. Meanwhile there is nothing to do, and the lane does not say again and
/// again that it is broken.
#[test]
fn a_lane_that_breaks_after_bye_keeps_nobody_busy() {
    for resets in [false, true] {
        let Some((mut endpoint, mut there, lane)) = open() else {
            return;
        };
        endpoint.close();
        if resets {
            breaks(lane);
        } else {
            drop(lane);
        }
        let before = endpoint.turns;
        assert_eq!(endpoint.wait(Some(WAIT)).unwrap(), None);
        let turns = endpoint.turns - before;
        assert!(turns < FEW, "{turns}, {resets}");
        assert_eq!(endpoint.end(), None, "{resets}");
        let mut bye = Vec::new();
        Frame::Bye.encode(&mut bye);
        there.write_all(&bye).unwrap();
        while endpoint.end().is_none() {
            endpoint.wait(Some(LONG)).unwrap();
        }
        assert_eq!(endpoint.end(), Some(End::Orderly), "{resets}");
    }
}

/// Nor does one that the peer closes while it is not done with the control connection.
#[test]
fn a_farewell_keeps_nobody_busy() {
    let Some((mut endpoint, mut there, lane)) = open() else {
        return;
    };
    endpoint.close();
    let mut bye = Vec::new();
    Frame::Bye.encode(&mut bye);
    there.write_all(&bye).unwrap();
    while endpoint.end().is_none() {
        endpoint.wait(Some(LONG)).unwrap();
    }
    breaks(lane);
    assert!(!endpoint.hung_up);
    let before = endpoint.turns;
    while endpoint.wait(Some(WAIT)).unwrap().is_some() {}
    let turns = endpoint.turns - before;
    assert!(turns < FEW, "{turns}");
    // It was not over before this.
    drop(there);
    assert_eq!(endpoint.wait(Some(LONG)).unwrap(), None);
    assert!(endpoint.hung_up);
}

/// Also if this end had no time to say the same.
#[test]
fn who_has_said_bye_may_hang_up() {
    for says in [true, false] {
        let Some((mut endpoint, mut there, lane)) = open() else {
            return;
        };
        let mut bye = Vec::new();
        Frame::Bye.encode(&mut bye);
        if says {
            there.write_all(&bye).unwrap();
        }
        drop((there, lane));
        // Until it hears of both at once.
        thread::sleep(Duration::from_millis(50));
        while endpoint.end().is_none() {
            endpoint.wait(Some(LONG)).unwrap();
        }
        let expected = if says { End::Orderly } else { End::Gone };
        assert_eq!(endpoint.end(), Some(expected));
    }
}

/// A program may be computing, for longer than it may be gone.
#[test]
fn a_lane_may_be_full_for_as_long_as_is_said() {
    let second = Duration::from_secs(1);
    for stall in [Some(second), None] {
        let ((control, mut there), (lane, _lane_there)) = (connection(), connection());
        let mut options = Options::new(Registry::new().unwrap());
        options.stall = stall;
        let Some(mut endpoint) = or_skip(Endpoint::new(control, vec![lane], options)) else {
            return;
        };
        let limits = Limits {
            lanes: 1,
            ..Limits::default()
        };
        let mut said = Machine::new(limits).output().to_vec();
        let (lane, limit) = (0, 16 << 20);
        Frame::Credit { lane, limit }.encode(&mut said);
        there.write_all(&said).unwrap();
        endpoint.wait_open(LONG).unwrap();
        let memory = Memory::host(HostMemory::owned(vec![0; 16 << 20].into()));
        endpoint.put(&memory, 0, limit, Key([0; 16]), 0).unwrap();
        // The kernel looks at it now and then only.
        while endpoint.wait(Some(6 * second)).unwrap().is_some() {}
        let end = stall.map(|_| End::Gone);
        assert_eq!(endpoint.end(), end, "{stall:?}");
    }
}

/// Whatever was said last.
#[test]
fn a_router_may_tell_that_a_peer_is_gone() {
    let is = |errno| socket::is_gone(&io::Error::from_raw_os_error(errno));
    let gone = [
        libc::ETIMEDOUT,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::ECONNREFUSED,
    ];
    assert!(gone.into_iter().all(is));
    assert!(
        ![libc::ENOMEM, libc::EFAULT, libc::ENODEV]
            .into_iter()
            .any(is)
    );
}

/// The end that connects is told that its lanes are too many.
#[test]
fn a_window_has_room_for_so_many_lanes() {
    let least = 2 * u64::from(LEAST);
    let lanes = [0, least - 1, least, 3 * least - 1, u64::MAX].map(options::lanes_of);
    assert_eq!(lanes, [0, 0, 1, 2, u16::MAX]);
}
