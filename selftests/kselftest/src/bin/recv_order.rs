// SPDX-License-Identifier: GPL-2.0

//! Segments that come in any order, more than once, or with the end of the connection.

use std::io;
use std::net::TcpStream;
use std::process::Command;
use std::process::ExitCode;

use devmem::DmaBuf;
use devmem_testlib::Outcome;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Ip;
use devmem_testlib::peer::Peer;
use devmem_testlib::peer::Segment;
use devmem_testlib::peer::segment;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::wait_received;
use devmem_testlib::report::Stop;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::tests;

const PAGE: usize = 4096;
/// Room for everything that a test sends.
const ALL: usize = 1 << 16;
const PORT: u16 = Receiving::PORT + 1;

/// A connection from a peer made by hand into the bound queue.
fn connect(bench: &Receiving) -> io::Result<(Peer, TcpStream)> {
    bench.pair.steer(PORT, Receiving::QUEUE)?;
    Peer::connect(&bench.pair, &bench.pair.listen(Ip::V4, PORT)?)
}

fn in_order() -> Outcome {
    let bench = Receiving::new()?;
    let (peer, socket) = connect(&bench)?;
    let mut probe = bench.probe_of(&socket);
    // Past the wrap of the sequence numbers, too.
    for position in (0..1000).step_by(100) {
        peer.send(segment(position, 100))?;
        wait_received(&socket, position + 100);
    }
    probe.receive(&Call::new(ALL)).assert_frags(&[100; 10]);
    probe.give_back();
    Ok(())
}

fn out_of_order() -> Outcome {
    let bench = Receiving::new()?;
    let (peer, socket) = connect(&bench)?;
    let mut probe = bench.probe_of(&socket);
    peer.send(segment(0, 100))?;
    wait_received(&socket, 100);
    peer.send_and_wait(segment(200, 50), 100)?;
    peer.send_and_wait(segment(250, 70), 100)?;
    let call = Call::new(ALL).flags(libc::MSG_DONTWAIT);
    probe.receive(&call).assert_frags(&[100]);
    probe.call(&call).assert_fails(libc::EAGAIN);
    peer.send(segment(100, 100))?;
    wait_received(&socket, 320);
    probe.receive(&call).assert_frags(&[100, 50, 70]);
    probe.give_back();
    Ok(())
}

fn the_wrong_way_round() -> Outcome {
    const SEGMENTS: u64 = 20;
    let bench = Receiving::new()?;
    let (peer, socket) = connect(&bench)?;
    let mut probe = bench.probe_of(&socket);
    for i in (1..SEGMENTS).rev() {
        peer.send_and_wait(segment(50 * i, 50), 0)?;
    }
    peer.send(segment(0, 50))?;
    wait_received(&socket, 50 * SEGMENTS);
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[50; SEGMENTS as usize]);
    probe.give_back();
    Ok(())
}

/// A segment that begins with what is there already is read from the middle.
fn overlapping() -> Outcome {
    let bench = Receiving::new()?;
    let (peer, socket) = connect(&bench)?;
    let mut probe = bench.probe_of(&socket);
    peer.send(segment(0, 100))?;
    wait_received(&socket, 100);
    peer.send(segment(50, 100))?;
    wait_received(&socket, 150);
    probe.receive(&Call::new(120)).assert_frags(&[100, 20]);
    peer.send(segment(0, 400))?;
    wait_received(&socket, 400);
    probe.receive(&Call::new(ALL)).assert_frags(&[30, 250]);
    probe.give_back();
    Ok(())
}

fn overlapping_out_of_order() -> Outcome {
    let bench = Receiving::new()?;
    let (peer, socket) = connect(&bench)?;
    let mut probe = bench.probe_of(&socket);
    peer.send_and_wait(segment(100, 100), 0)?;
    peer.send_and_wait(segment(150, 100), 0)?;
    // Covers one that is there, ...
    peer.send_and_wait(segment(400, 100), 0)?;
    peer.send_and_wait(segment(380, 200), 0)?;
    // ... is covered by one, ...
    peer.send_and_wait(segment(420, 50), 0)?;
    // ... and fills a hole and more.
    peer.send_and_wait(segment(230, 160), 0)?;
    peer.send(segment(0, 120))?;
    wait_received(&socket, 580);
    let got = probe.receive(&Call::new(ALL));
    assert_eq!(got.len(), 580);
    assert_eq!(got.frags().count(), got.pieces.len());
    probe.give_back();
    Ok(())
}

/// What comes again is dropped, before and after it was read.
fn retransmitted() -> Outcome {
    let bench = Receiving::new()?;
    let (peer, socket) = connect(&bench)?;
    let mut probe = bench.probe_of(&socket);
    peer.send(segment(0, 100))?;
    wait_received(&socket, 100);
    for _ in 0..5 {
        peer.send_and_wait(segment(0, 100), 100)?;
        peer.send_and_wait(segment(20, 50), 100)?;
    }
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);
    for _ in 0..5 {
        peer.send_and_wait(segment(0, 100), 100)?;
    }
    probe
        .call(&Call::new(ALL).flags(libc::MSG_DONTWAIT))
        .assert_fails(libc::EAGAIN);
    peer.send(segment(100, 100))?;
    wait_received(&socket, 200);
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);
    probe.give_back();
    Ok(())
}

fn end_of_stream_with_data() -> Outcome {
    let bench = Receiving::new()?;
    let (peer, socket) = connect(&bench)?;
    let mut probe = bench.probe_of(&socket);
    let last = Segment {
        fin: true,
        ..segment(100, 200)
    };
    // The end comes before what is before it.
    peer.send_and_wait(last, 0)?;
    assert_eq!(sockopt::poll(&socket)?, 0);
    peer.send_and_wait(segment(0, 100), 301)?;
    probe.receive(&Call::new(150)).assert_frags(&[100, 50]);
    probe.receive(&Call::new(ALL)).assert_frags(&[150]);
    for _ in 0..2 {
        assert!(probe.receive(&Call::new(ALL)).is_empty());
    }
    probe.give_back();
    Ok(())
}

/// What is queued survives a reset, what was out of order does not.
fn reset_with_data() -> Outcome {
    let bench = Receiving::new()?;
    let (peer, socket) = connect(&bench)?;
    let mut probe = bench.probe_of(&socket);
    peer.send(segment(0, 100))?;
    wait_received(&socket, 100);
    peer.send_and_wait(segment(200, 100), 100)?;
    peer.send(Segment {
        rst: true,
        ..segment(100, 0)
    })?;
    soon("the reset", || {
        Ok(sockopt::poll(&socket)? & libc::POLLHUP != 0)
    });
    probe.receive(&Call::new(40)).assert_frags(&[40]);
    probe.receive(&Call::new(ALL)).assert_frags(&[60]);
    probe.call(&Call::new(ALL)).assert_fails(libc::ECONNRESET);
    assert!(probe.receive(&Call::new(ALL)).is_empty());
    probe.give_back();
    Ok(())
}

/// Whatever is queued, in order or not, comes back when the socket is closed.
fn closed_with_data() -> Outcome {
    let bench = Receiving::new()?;
    let (peer, socket) = connect(&bench)?;
    let mut probe = bench.probe_of(&socket);
    peer.send(segment(0, 100))?;
    wait_received(&socket, 100);
    probe.receive(&Call::new(50)).assert_frags(&[50]);
    for i in 2..10 {
        peer.send_and_wait(segment(100 * i, 90), 100)?;
    }
    drop(socket);
    // To a socket that is closed.
    peer.send(segment(100, 100))?;
    Ok(())
}

/// More out of order than the receiver has room for: it drops some, and asks for them again.
fn too_much_out_of_order() -> Outcome {
    const SEGMENTS: u64 = 100;
    const LEN: usize = 100;
    let bench = Receiving::new()?;
    bench.pair.steer(PORT, Receiving::QUEUE)?;
    let listener = bench.pair.listen(Ip::V4, PORT)?;
    sockopt::set(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, 32 << 10)?;
    let (peer, socket) = Peer::connect(&bench.pair, &listener)?;
    let mut probe = bench.probe_of(&socket).quiet();
    for i in (0..SEGMENTS / 2).rev().map(|i| 2 * i + 1) {
        peer.send(segment(i * LEN as u64, LEN))?;
    }
    for i in 0..SEGMENTS {
        let position = i * LEN as u64;
        while probe.position < position + LEN as u64 {
            peer.send(segment(position, LEN))?;
            soon("the segment", || Ok(sockopt::poll(&socket)? != 0));
            let call = Call::new(ALL).flags(libc::MSG_DONTWAIT);
            probe.receive(&call);
            probe.give_back();
        }
    }
    assert_eq!(probe.position, SEGMENTS * LEN as u64);
    Ok(())
}

/// Segments wait for a first one, which is lost, and would have all buffers: the socket has room for more. They must not,
/// or there is none for the one that they wait for.
fn wait_with_all_buffers(buffers: usize) -> Outcome {
    const LEN: usize = 16;
    let bench = Receiving::into_memory(DmaBuf::udmabuf(buffers * PAGE)?)?;
    bench.pair.steer(PORT, Receiving::QUEUE)?;
    let listener = bench.pair.listen(Ip::V4, PORT)?;
    sockopt::set(&listener, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
    let (peer, socket) = Peer::connect(&bench.pair, &listener)?;
    let mut probe = bench.probe_of(&socket).quiet();
    let at = |i: usize| segment((i * LEN) as u64, LEN);
    let drops = || bench.pair.rx.snmp("TcpExt", "TCPOFODrop");
    let before = drops()?;
    for i in 1..buffers + buffers / 4 {
        peer.send(at(i))?;
    }
    soon("segments that are not let in", || Ok(drops()? > before));

    let end = (buffers + buffers / 4) * LEN;
    while probe.position < end as u64 {
        let next = at(probe.position as usize / LEN);
        soon("the segment that is missing", || {
            peer.send(next)?;
            Ok(sockopt::poll(&socket)? != 0)
        });
        let call = Call::new(ALL).flags(libc::MSG_DONTWAIT);
        probe.receive(&call);
        probe.give_back();
    }
    assert_eq!(probe.position, end as u64);
    Ok(())
}

fn more_out_of_order_than_there_are_buffers() -> Outcome {
    wait_with_all_buffers(1024)
}

/// And no more than the NIC's ring takes.
fn more_out_of_order_than_a_few_buffers() -> Outcome {
    wait_with_all_buffers(48)
}

/// A connection has a hole, and another one takes what buffers were left for it, and is not read. The kernel gives up
/// what waits, so that what is missing gets through.
fn a_hole_beside_unread_data() -> Outcome {
    const BUFFERS: u64 = 1024;
    const WAITING: u64 = 8;
    const LEN: usize = 16;
    let bench = Receiving::into_memory(DmaBuf::udmabuf(BUFFERS as usize * PAGE)?)?;
    let pair = &bench.pair;
    let connect = |nth: u32| -> Result<(Peer, TcpStream), Stop> {
        let port = PORT + nth as u16;
        pair.steer_nth(nth + 1, port, Receiving::QUEUE)?;
        let listener = pair.listen(Ip::V4, port)?;
        sockopt::set(&listener, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
        Ok(Peer::connect(pair, &listener)?)
    };
    let ((waits, waiting), (fills, unread)) = (connect(0)?, connect(1)?);
    let at = |i: u64| segment(i * LEN as u64, LEN);
    let pruned = || pair.rx.snmp("TcpExt", "OfoPruned");
    let before = pruned()?;
    for i in 1..=WAITING {
        waits.send(at(i))?;
    }
    for i in 0..BUFFERS - WAITING {
        fills.send(at(i))?;
    }
    wait_received(&unread, (BUFFERS - WAITING) * LEN as u64);

    soon("what is missing", || {
        waits.send(at(0))?;
        Ok(sockopt::poll(&waiting)? != 0)
    });
    assert!(pruned()? > before);
    Ok(())
}

/// Bytes that the buffers of an orphan at this port take.
fn orphan_memory(bench: &Receiving, port: u16) -> io::Result<u64> {
    let filter = format!("-tmn state fin-wait-1 sport = :{port}");
    let output = bench
        .pair
        .rx
        .ns
        .run(|| Command::new("ss").args(filter.split(' ')).output())?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_once("skmem:(r")
        .and_then(|(_, rest)| rest.split(',').next()?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("ss: {text}")))
}

/// What is out of order when a socket is closed goes back if it is in device memory, and otherwise stays, as ever.
fn closed_out_of_order() -> Outcome {
    let bench = Receiving::new()?;
    for (port, queue) in [(PORT, Receiving::QUEUE), (PORT + 1, Receiving::PLAIN_QUEUE)] {
        bench.pair.steer(port, queue)?;
        let listener = bench.pair.listen(Ip::V4, port)?;
        let (peer, socket) = Peer::connect(&bench.pair, &listener)?;
        peer.send_and_wait(segment(200, 100), 0)?;
        drop(socket);
        let stays = orphan_memory(&bench, port)? > 0;
        assert_eq!(stays, queue == Receiving::PLAIN_QUEUE, "queue {queue}");
    }
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        in_order,
        out_of_order,
        the_wrong_way_round,
        overlapping,
        overlapping_out_of_order,
        retransmitted,
        end_of_stream_with_data,
        reset_with_data,
        closed_with_data,
        too_much_out_of_order,
        more_out_of_order_than_there_are_buffers,
        more_out_of_order_than_a_few_buffers,
        a_hole_beside_unread_data,
        closed_out_of_order,
    ])
}
