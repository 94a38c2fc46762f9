// SPDX-License-Identifier: GPL-2.0

//! Device memory and host memory, or memory of two bindings, on one connection.

use std::fs;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use devmem::DmaBuf;
use devmem_testlib::Outcome;
use devmem_testlib::fixture::Mixed;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::Area;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::ETOOSMALL;
use devmem_testlib::probe::Got;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::errno;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::wait;
use nix::errno::Errno;

/// Room for everything that a test sends.
const ALL: usize = 1 << 16;

fn to_device_memory(bench: &Receiving) -> io::Result<()> {
    bench.steer(Receiving::QUEUE)
}

fn to_host_memory(bench: &Receiving) -> io::Result<()> {
    bench.steer(Receiving::PLAIN_QUEUE)
}

/// A call brings one kind of memory, whatever more there is.
fn the_flow_moves_both_ways() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[100, 200])?;
    to_host_memory(&bench)?;
    bench.send(&[300, 400])?;
    to_device_memory(&bench)?;
    bench.send(&[500])?;
    let call = Call::new(ALL);
    probe.receive(&call).assert_frags(&[100, 200]);
    probe.receive(&call).assert_plain(300, 700);
    probe.receive(&call).assert_frags(&[500]);
    probe.give_back();
    Ok(())
}

fn segments_in_turn() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    for _ in 0..8 {
        to_host_memory(&bench)?;
        bench.send(&[70])?;
        to_device_memory(&bench)?;
        bench.send(&[30])?;
    }
    for round in 0..8 {
        probe.receive(&Call::new(ALL)).assert_plain(100 * round, 70);
        probe.receive(&Call::new(ALL)).assert_frags(&[30]);
    }
    probe.give_back();
    Ok(())
}

/// What the device takes for too little to split stays in host memory.
fn small_packets_stay_in_host_memory() -> Outcome {
    let bench = Receiving::new()?;
    let rx = &bench.pair.rx;
    let mut probe = bench.probe();
    assert_eq!(rx.rx_copybreak()?, 0, "it is on");
    rx.set_rx_copybreak(200)?;
    bench.send(&[200, 201, 1, 300])?;
    assert_eq!(errno(rx.set_rx_copybreak(4097)), Errno::ERANGE);
    assert_eq!(rx.rx_copybreak()?, 200);
    bench.send(&[200])?;
    rx.set_rx_copybreak(0)?;
    bench.send(&[1])?;
    let call = Call::new(ALL);
    probe.receive(&call).assert_plain(0, 200);
    probe.receive(&call).assert_frags(&[201]);
    probe.receive(&call).assert_plain(401, 1);
    probe.receive(&call).assert_frags(&[300]);
    probe.receive(&call).assert_plain(702, 200);
    probe.receive(&call).assert_frags(&[1]);
    probe.give_back();
    Ok(())
}

/// MSG_WAITALL does not bring both kinds with a call either.
fn waitall_across_the_border() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[100])?;
    to_host_memory(&bench)?;
    bench.send(&[300])?;
    let call = Call::new(400).flags(libc::MSG_WAITALL);
    probe.receive(&call).assert_frags(&[100]);
    to_device_memory(&bench)?;
    bench.send(&[100])?;
    probe.receive(&call).assert_plain(100, 300);
    probe
        .receive(&Call::new(100).flags(libc::MSG_WAITALL))
        .assert_frags(&[100]);
    probe.give_back();
    Ok(())
}

fn peek_across_the_border() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    to_host_memory(&bench)?;
    bench.send(&[100])?;
    to_device_memory(&bench)?;
    bench.send(&[300])?;
    let call = Call::new(ALL).flags(libc::MSG_PEEK);
    probe.receive(&call).assert_plain(0, 100);
    sockopt::set(
        &bench.connection.rx,
        libc::SOL_SOCKET,
        libc::SO_PEEK_OFF,
        100,
    )?;
    let got = probe.call(&call);
    got.assert_frags(&[300]);
    probe.compare(100, &got);
    probe.receive(&Call::new(ALL)).assert_plain(0, 100);
    probe.receive(&Call::new(ALL)).assert_frags(&[300]);
    probe.give_back();
    Ok(())
}

/// An ordinary reader gets what is in host memory, and then an error.
fn ordinary_reader() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    to_host_memory(&bench)?;
    bench.send(&[100])?;
    to_device_memory(&bench)?;
    bench.send(&[300])?;
    to_host_memory(&bench)?;
    bench.send(&[200])?;
    let call = Call::ordinary(ALL);
    probe.receive(&call).assert_plain(0, 100);
    for _ in 0..2 {
        probe.call(&call).assert_fails(libc::EFAULT);
        probe
            .call(&call.clone().flags(libc::MSG_PEEK))
            .assert_fails(libc::EFAULT);
    }
    probe.receive(&Call::new(ALL)).assert_frags(&[300]);
    probe.receive(&call).assert_plain(400, 200);
    probe.give_back();
    Ok(())
}

/// No control buffer for device memory, no data buffer for host memory: each of them ends the call.
fn bad_buffers_at_the_border() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    to_host_memory(&bench)?;
    bench.send(&[100])?;
    to_device_memory(&bench)?;
    bench.send(&[300])?;
    let missing = Call::new(0).data(&[Area::faulty(0, ALL)]);
    probe.call(&missing).assert_fails(libc::EFAULT);
    // Half of it is there.
    let half = Call::new(0).data(&[Area::faulty(50, ALL)]);
    probe.call(&half).assert_fails(libc::EFAULT);
    probe.receive(&Call::new(ALL).room(0)).assert_plain(0, 100);
    probe.receive(&missing).assert_frags(&[300]);
    probe.give_back();
    Ok(())
}

/// The flow moves to a queue with another binding: the frags of both can come with one call.
fn two_bindings() -> Outcome {
    const OTHER: u32 = 3;
    let bench = Receiving::new()?;
    let memory = DmaBuf::udmabuf(1 << 20)?;
    let map = memory.map()?;
    let other = bench.pair.bind(&[OTHER], &memory)?;
    let known = [(bench.binding.id(), &bench.map), (other.id(), &map)];
    let mut probe = Probe::new(&bench.connection.rx, &known);
    bench.send(&[100, 200])?;
    bench.steer(OTHER)?;
    bench.send(&[300, 400])?;
    to_device_memory(&bench)?;
    bench.send(&[500])?;
    let got = probe.receive(&Call::new(ALL));
    got.assert_frags(&[100, 200, 300, 400, 500]);
    let (ours, theirs) = (bench.binding.id(), other.id());
    let ids: Vec<_> = got.frags().map(|frag| frag.dmabuf_id).collect();
    assert_eq!(ids, [ours, ours, theirs, theirs, ours]);
    probe.give_back();
    Ok(())
}

/// What a binding brought can be received when it is gone, after what its successor brought was queued.
fn the_queue_is_bound_again() -> Outcome {
    let bench = Receiving::new()?;
    let Receiving {
        connection,
        binding,
        map,
        pair,
        ..
    } = bench;
    let again = DmaBuf::udmabuf(1 << 20)?;
    let map_again = again.map()?;

    traffic::send(&connection.tx, 0, 300, 300)?;
    wait_received(&connection.rx, 300);
    let first = binding.id();
    drop(binding);
    provider::wait_for("the queue to be unbound", || {
        Ok(pair.queues()?.iter().all(|queue| queue.dmabuf.is_none()))
    });
    let second = pair.bind(&[Receiving::QUEUE], &again)?;
    traffic::send(&connection.tx, 300, 400, 400)?;
    wait_received(&connection.rx, 700);

    let known = [(first, &map), (second.id(), &map_again)];
    let mut probe = Probe::new(&connection.rx, &known);
    let got = probe.receive(&Call::new(ALL));
    got.assert_frags(&[300, 400]);
    let ids: Vec<_> = got.frags().map(|frag| frag.dmabuf_id).collect();
    assert_eq!(ids, [first, second.id()]);
    probe.give_back();
    provider::all_buffers_back(first);
    Ok(())
}

/// One large segment: many frags in an skb.
fn a_large_segment() -> Outcome {
    const LEN: usize = 60_000;
    let bench = Receiving::new()?;
    let mut probe = bench.probe().quiet();
    bench.start_sending(LEN)?;
    wait_received(&bench.connection.rx, LEN as u64);
    // How it was cut up is the sender's affair, so nothing of it is compared.
    for len in [1, 5000, 10_000] {
        let got = probe.receive(&Call::new(len));
        assert_eq!(got.len(), len);
    }
    probe.receive(&Call::new(ALL));
    assert_eq!(probe.position, LEN as u64);
    probe.give_back();
    Ok(())
}

/// How many segments the receiver's namespace has merged in receive queues.
fn merged_in_queues(bench: &Receiving) -> io::Result<u64> {
    bench.pair.rx.snmp("TcpExt", "TCPRcvCoalesce")
}

/// Segments that come one after the other are merged in the receive queue.
fn merged_in_the_receive_queue() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    let before = merged_in_queues(&bench)?;
    bench.send(&[50; 10])?;
    assert_eq!(merged_in_queues(&bench)? - before, 9);
    probe.receive(&Call::new(120)).assert_frags(&[50, 50, 20]);
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[30, 50, 50, 50, 50, 50, 50, 50]);
    probe.give_back();
    Ok(())
}

/// Has TCP hand as much to the device at once as there is, however slow the machine is: it makes shorter
/// segments of many, the longer the round trips are, and starts anew with a small window after a pause.
fn send_in_one_go() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/tcp_min_tso_segs", "64")?;
    fs::write("/proc/sys/net/ipv4/tcp_slow_start_after_idle", "0")
}

/// Segments that come at once are merged by GRO, more of them than an skb has frags.
fn merged_by_gro() -> Outcome {
    const SEGMENTS: usize = 30;
    const GATHERING: Duration = Duration::from_millis(200);
    let bench = Receiving::new()?;
    // The sender's stack cuts one large segment up, at the device and in one go.
    bench.pair.tx.set_tso(false)?;
    bench.pair.tx.ns.run(send_in_one_go)?;
    bench.pair.steer(Receiving::PORT + 1, Receiving::QUEUE)?;
    let listener = bench.pair.listen(Ip::V4, Receiving::PORT + 1)?;
    sockopt::set(&listener, libc::IPPROTO_TCP, libc::TCP_MAXSEG, 536)?;
    let connection = bench.pair.connect(&listener)?;
    let mss = sockopt::get(&connection.tx, libc::IPPROTO_TCP, libc::TCP_MAXSEG)? as usize;
    let mut probe = bench.probe_of(&connection.rx).quiet();
    // The congestion window opens.
    for _ in 0..10 {
        let position = probe.position;
        let len = (20 * mss) as u64;
        traffic::send(&connection.tx, position, len, 20 * mss)?;
        wait_received(&connection.rx, position + len);
        probe.receive(&Call::new(ALL));
        probe.give_back();
    }

    // NAPI may poll before all of them are there.
    let gathering = wait::stretched(GATHERING).as_nanos() as u64;
    bench.pair.rx.set_gro_flush_timeout(gathering)?;
    let len = SEGMENTS * mss;
    let mut attempts = 1;
    loop {
        let before = merged_in_queues(&bench)?;
        let end = probe.position + len as u64;
        traffic::send(&connection.tx, probe.position, len as u64, len)?;
        wait_received(&connection.rx, end);
        let merged = merged_in_queues(&bench)? - before;
        report::diag(format_args!("merged in the receive queue: {merged}"));
        if merged < SEGMENTS as u64 / 3 {
            break;
        }
        // A busy machine may have kept the sender from sending all of it at once.
        assert!(
            attempts < 3,
            "GRO left {merged} segments to the receive queue"
        );
        attempts += 1;
        probe.receive(&Call::new(ALL));
        probe.give_back();
    }
    let sizes = |from: usize, to: usize| -> Vec<u32> {
        // Segments between two positions, the first and last maybe in part.
        (0..SEGMENTS)
            .map(|i| (i * mss).max(from)..((i + 1) * mss).min(to))
            .filter(|range| !range.is_empty())
            .map(|range| range.len() as u32)
            .collect()
    };
    let mut at = 0;
    for end in [1, 700, 18 * mss + 5, 20 * mss, len] {
        let got = probe.receive(&Call::new(end - at));
        assert_eq!(got.sizes(), sizes(at, end));
        at = end;
    }
    probe.give_back();
    Ok(())
}

/// Bytes in host memory before those in device memory, in one segment: both come with a call.
fn linear_bytes_before_frags() -> Outcome {
    let bench = Receiving::new()?;
    let mixed = Mixed::new(&bench)?;
    let mut probe = bench.probe_of(&mixed.socket);
    let sizes = |got: &Got| {
        assert_eq!(got.len(), got.sizes().iter().sum::<u32>() as usize);
        got.sizes()
    };

    mixed.send(0, 40, 100)?;
    assert_eq!(sizes(&probe.receive(&Call::new(ALL))), [40, 100]);
    // Less than what is in host memory, more than that, and from the middle of the frag.
    mixed.send(140, 40, 100)?;
    let peek = Call::new(ALL).flags(libc::MSG_PEEK);
    assert_eq!(sizes(&probe.receive(&peek)), [40, 100]);
    assert_eq!(sizes(&probe.receive(&Call::new(30))), [30]);
    assert_eq!(sizes(&probe.receive(&Call::new(30))), [10, 20]);
    assert_eq!(sizes(&probe.receive(&Call::new(ALL))), [80]);
    // No room: for a message, for the second one, for the bytes.
    mixed.send(280, 40, 100)?;
    probe.call(&Call::new(ALL).room(0)).assert_fails(ETOOSMALL);
    assert_eq!(sizes(&probe.receive(&Call::new(ALL).room(1))), [40]);
    assert_eq!(sizes(&probe.receive(&Call::new(ALL).room(1))), [100]);
    mixed.send(420, 40, 100)?;
    for good in [0, 20] {
        let call = Call::new(0).data(&[Area::faulty(good, ALL)]);
        probe.call(&call).assert_fails(libc::EFAULT);
    }
    probe
        .call(&Call::new(ALL).control(Area::faulty(0, 1000)))
        .assert_fails(libc::EFAULT);
    // An ordinary reader gets nothing of such a segment, not even what can be read.
    for len in [40, ALL] {
        probe.call(&Call::ordinary(len)).assert_fails(libc::EFAULT);
    }
    assert_eq!(sizes(&probe.receive(&Call::new(ALL))), [40, 100]);
    probe.give_back();
    Ok(())
}

/// Several such segments, one behind the other.
fn linear_bytes_between_frags() -> Outcome {
    let bench = Receiving::new()?;
    let mixed = Mixed::new(&bench)?;
    let mut probe = bench.probe_of(&mixed.socket);
    for i in 0..3 {
        mixed.send(140 * i, 40, 100)?;
    }
    let got = probe.receive(&Call::new(ALL));
    assert_eq!(got.sizes(), [40, 100, 40, 100, 40, 100]);
    assert_eq!(got.frags().count(), 3);
    probe.give_back();
    Ok(())
}

/// No memory for the bytes of a later segment: the call ends before them, and tells nothing of them.
fn later_linear_bytes_fault() -> Outcome {
    let bench = Receiving::new()?;
    let mixed = Mixed::new(&bench)?;
    let mut probe = bench.probe_of(&mixed.socket);
    // There for the first segment, and for none or half of what is in host memory of the second.
    for (good, position) in [(40, 0), (60, 280)] {
        mixed.send(position, 40, 100)?;
        mixed.send(position + 140, 40, 100)?;
        let call = Call::new(0).data(&[Area::faulty(good, ALL)]);
        let got = probe.receive(&call);
        assert_eq!((got.len(), got.sizes()), (140, vec![40, 100]));
        let got = probe.receive(&Call::new(ALL));
        assert_eq!((got.len(), got.sizes()), (140, vec![40, 100]));
    }
    probe.give_back();
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        the_flow_moves_both_ways,
        segments_in_turn,
        small_packets_stay_in_host_memory,
        waitall_across_the_border,
        peek_across_the_border,
        ordinary_reader,
        bad_buffers_at_the_border,
        two_bindings,
        the_queue_is_bound_again,
        a_large_segment,
        merged_in_the_receive_queue,
        merged_by_gro,
        linear_bytes_before_frags,
        linear_bytes_between_frags,
        later_linear_bytes_fault,
    ])
}
