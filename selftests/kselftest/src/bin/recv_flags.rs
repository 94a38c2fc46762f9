// SPDX-License-Identifier: GPL-2.0

//! Flags of recvmsg() and socket options that change what it does.

use std::io;
use std::io::IoSliceMut;
use std::net::Shutdown;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem_testlib::Outcome;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::address;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::soon;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::tests;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recvmsg;

/// Room for everything that a test sends.
const ALL: usize = 1 << 16;
/// How long a reader waits for what does not come.
const SHORT: Duration = Duration::from_millis(200);

fn events(socket: &impl AsFd) -> io::Result<i16> {
    let events = sockopt::poll(socket)?;
    observe(format_args!("poll: {events:#x}"));
    Ok(events)
}

fn peek() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    for _ in 0..3 {
        let got = probe.receive(&Call::new(ALL).flags(libc::MSG_PEEK));
        got.assert_frags(&[500, 700]);
    }
    // A peek into the middle of a frag.
    let got = probe.receive(&Call::new(600).flags(libc::MSG_PEEK));
    got.assert_frags(&[500, 100]);
    probe.receive(&Call::new(ALL)).assert_frags(&[500, 700]);
    // Each call has given tokens of its own, and every one of them holds its frag.
    assert_eq!(probe.held().len(), 10);
    probe.give_back();
    Ok(())
}

/// Giving back what a peek brought takes nothing from the stream.
fn peek_then_give_back() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    for _ in 0..4 {
        probe
            .receive(&Call::new(ALL).flags(libc::MSG_PEEK))
            .assert_frags(&[500, 700]);
        probe.give_back();
    }
    probe.receive(&Call::new(ALL)).assert_frags(&[500, 700]);
    probe.give_back();
    Ok(())
}

fn peek_waits_for_no_more_than_there_is() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    probe
        .call(&Call::new(ALL).flags(libc::MSG_PEEK | libc::MSG_DONTWAIT))
        .assert_fails(libc::EAGAIN);
    bench.send(&[500])?;
    bench.connection.tx.shutdown(Shutdown::Write)?;
    for _ in 0..2 {
        let call = Call::new(ALL).flags(libc::MSG_PEEK | libc::MSG_WAITALL);
        probe.receive(&call).assert_frags(&[500]);
    }
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    assert!(probe.receive(&Call::new(ALL)).is_empty());
    probe.give_back();
    Ok(())
}

fn peek_offset() -> Outcome {
    let bench = Receiving::new()?;
    let rx = &bench.connection.rx;
    let offset = || -> io::Result<i32> {
        let offset = sockopt::get(rx, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
        observe(format_args!("SO_PEEK_OFF {offset}"));
        Ok(offset)
    };
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    sockopt::set(rx, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 300)?;
    // A peek moves the offset on, ...
    let got = probe.call(&Call::new(400).flags(libc::MSG_PEEK));
    got.assert_frags(&[200, 200]);
    probe.compare(300, &got);
    assert_eq!(offset()?, 700);
    let got = probe.call(&Call::new(100).flags(libc::MSG_PEEK));
    got.assert_frags(&[100]);
    probe.compare(700, &got);
    assert_eq!(offset()?, 800);
    // ... and receiving moves it back.
    probe.receive(&Call::new(600)).assert_frags(&[500, 100]);
    assert_eq!(offset()?, 200);
    let got = probe.call(&Call::new(ALL).flags(libc::MSG_PEEK));
    got.assert_frags(&[400]);
    probe.compare(800, &got);
    assert_eq!(offset()?, 600);
    // Nothing is there to be peeked at, although something is there to be received.
    probe
        .call(&Call::new(ALL).flags(libc::MSG_PEEK | libc::MSG_DONTWAIT))
        .assert_fails(libc::EAGAIN);
    probe.receive(&Call::new(ALL)).assert_frags(&[600]);
    assert_eq!(offset()?, 0);
    probe.give_back();
    Ok(())
}

/// MSG_TRUNC of TCP: the bytes are passed over, and no token is given.
fn trunc() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700, 300])?;
    let got = probe.call(&Call::new(600).flags(libc::MSG_TRUNC | libc::MSG_PEEK));
    assert_eq!((got.len(), got.pieces.len()), (600, 0));
    let got = probe.call(&Call::new(600).flags(libc::MSG_TRUNC));
    assert_eq!((got.len(), got.pieces.len()), (600, 0));
    probe.position = 600;
    probe.receive(&Call::new(100)).assert_frags(&[100]);
    // It needs no MSG_SOCK_DEVMEM, since nothing is to be looked at.
    let got = probe.call(&Call::ordinary(100).flags(libc::MSG_TRUNC));
    assert_eq!((got.len(), got.pieces.len()), (100, 0));
    probe.position = 800;
    probe.receive(&Call::new(ALL)).assert_frags(&[400, 300]);
    probe.give_back();
    Ok(())
}

fn waitall() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500])?;
    thread::scope(|scope| -> Outcome {
        let later = scope.spawn(|| {
            thread::sleep(SHORT);
            bench.send(&[700, 300])
        });
        let got = probe.receive(&Call::new(1200).flags(libc::MSG_WAITALL));
        got.assert_frags(&[500, 700]);
        later.join().expect("the sender's thread")?;
        Ok(())
    })?;
    probe.receive(&Call::new(ALL)).assert_frags(&[300]);
    probe.give_back();
    Ok(())
}

fn waitall_ends_early() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    // Room for one piece: there is no use in waiting.
    let all = Call::new(2000).flags(libc::MSG_WAITALL);
    probe.receive(&all.clone().room(1)).assert_frags(&[500]);
    // Not without waiting.
    probe
        .receive(&Call::new(100).flags(libc::MSG_WAITALL | libc::MSG_DONTWAIT))
        .assert_frags(&[100]);
    // Time is up.
    bench.connection.rx.set_read_timeout(Some(SHORT))?;
    let start = Instant::now();
    probe.receive(&all).assert_frags(&[600]);
    assert!(start.elapsed() > SHORT / 2, "it did not wait");
    // The stream is over.
    bench.connection.rx.set_read_timeout(None)?;
    bench.send(&[300])?;
    bench.connection.tx.shutdown(Shutdown::Write)?;
    probe.receive(&all).assert_frags(&[300]);
    assert!(probe.receive(&all).is_empty());
    probe.give_back();
    Ok(())
}

fn dontwait() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    let call = Call::new(ALL).flags(libc::MSG_DONTWAIT);
    probe.call(&call).assert_fails(libc::EAGAIN);
    bench.send(&[500])?;
    probe.receive(&call).assert_frags(&[500]);
    probe.call(&call).assert_fails(libc::EAGAIN);
    // The same by the file's flag.
    bench.connection.rx.set_nonblocking(true)?;
    probe.call(&Call::new(ALL)).assert_fails(libc::EAGAIN);
    bench.send(&[700])?;
    probe.receive(&Call::new(ALL)).assert_frags(&[700]);
    probe.give_back();
    Ok(())
}

fn timeout() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.connection.rx.set_read_timeout(Some(SHORT))?;
    let start = Instant::now();
    probe.call(&Call::new(ALL)).assert_fails(libc::EAGAIN);
    assert!(start.elapsed() > SHORT / 2, "it did not wait");
    bench.send(&[500])?;
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    probe.give_back();
    Ok(())
}

fn low_water_mark() -> Outcome {
    let bench = Receiving::new()?;
    let rx = &bench.connection.rx;
    let mut probe = bench.probe();
    sockopt::set(rx, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1000)?;
    bench.send(&[500])?;
    assert_eq!(events(rx)?, 0);
    // A call waits for as many, but takes what there is if it is not to wait any longer.
    rx.set_read_timeout(Some(SHORT))?;
    let start = Instant::now();
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    assert!(start.elapsed() > SHORT / 2, "it did not wait");
    rx.set_read_timeout(None)?;

    thread::scope(|scope| -> Outcome {
        let later = scope.spawn(|| {
            thread::sleep(SHORT);
            bench.send(&[500, 700])
        });
        probe.receive(&Call::new(ALL)).assert_frags(&[500, 700]);
        later.join().expect("the sender's thread")?;
        Ok(())
    })?;
    bench.send(&[999])?;
    assert_eq!(events(rx)?, 0);
    bench.send(&[1])?;
    assert_eq!(events(rx)?, libc::POLLIN);
    probe
        .receive(&Call::new(ALL).flags(libc::MSG_DONTWAIT))
        .assert_frags(&[999, 1]);
    probe.give_back();
    Ok(())
}

/// There is nothing on the error queue, and device memory does not go there.
fn error_queue() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500])?;
    probe
        .call(&Call::new(ALL).flags(libc::MSG_ERRQUEUE))
        .assert_fails(libc::EAGAIN);
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    probe.give_back();
    Ok(())
}

/// Without an urgent byte.
fn out_of_band() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500])?;
    probe
        .call(&Call::new(ALL).flags(libc::MSG_OOB))
        .assert_fails(libc::EINVAL);
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    probe.give_back();
    Ok(())
}

/// Flags that mean nothing to TCP, or to a socket that passes no files.
fn flags_without_meaning() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    for flag in [
        libc::MSG_CMSG_CLOEXEC,
        libc::MSG_NOSIGNAL,
        libc::MSG_MORE,
        libc::MSG_EOR,
        libc::MSG_ZEROCOPY,
        libc::MSG_DONTROUTE,
    ] {
        bench.send(&[300])?;
        probe
            .receive(&Call::new(ALL).flags(flag))
            .assert_frags(&[300]);
    }
    probe.give_back();
    Ok(())
}

/// MSG_SOCK_DEVMEM on a connection without device memory.
fn devmem_without_device_memory() -> Outcome {
    let bench = Receiving::new()?;
    bench.steer(Receiving::PLAIN_QUEUE)?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    probe
        .receive(&Call::new(600).flags(libc::MSG_PEEK))
        .assert_plain(0, 600);
    probe.receive(&Call::new(600)).assert_plain(0, 600);
    probe
        .receive(&Call::new(ALL).room(0))
        .assert_plain(600, 600);
    probe
        .call(&Call::new(ALL).flags(libc::MSG_DONTWAIT))
        .assert_fails(libc::EAGAIN);
    Ok(())
}

/// What poll() tells, with data in device memory and at the end.
fn poll_events() -> Outcome {
    let bench = Receiving::new()?;
    let rx = &bench.connection.rx;
    let mut probe = bench.probe();
    assert_eq!(events(rx)?, 0);
    bench.send(&[500])?;
    assert_eq!(events(rx)?, libc::POLLIN);
    probe.receive(&Call::new(100));
    assert_eq!(events(rx)?, libc::POLLIN);
    probe.receive(&Call::new(ALL));
    assert_eq!(events(rx)?, 0);
    bench.connection.tx.shutdown(Shutdown::Write)?;
    soon("the end of the stream", || Ok(sockopt::poll(rx)? != 0));
    assert_eq!(events(rx)?, libc::POLLIN | libc::POLLRDHUP);
    assert!(probe.receive(&Call::new(ALL)).is_empty());
    probe.give_back();
    Ok(())
}

/// TCP_INQ tells how much is left, beside the pieces.
fn bytes_left() -> Outcome {
    const TCP_INQ: i32 = 36;
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    sockopt::set(&bench.connection.rx, libc::IPPROTO_TCP, TCP_INQ, 1)?;
    bench.send(&[500, 700])?;
    for (len, left) in [(100, 1100), (400, 700), (700, 0)] {
        let got = probe.receive(&Call::new(len));
        assert_eq!(got.len(), len);
        let told: Vec<_> = got
            .others
            .iter()
            .filter(|other| (other.level, other.kind) == (libc::IPPROTO_TCP, TCP_INQ))
            .map(|other| other.data.clone())
            .collect();
        assert_eq!(told, [i32::to_ne_bytes(left).to_vec()]);
    }
    // Pieces take the room first. What does not fit is cut off, and said to be.
    bench.send(&[500])?;
    let got = probe.receive(&Call::new(ALL).room(1));
    got.assert_frags(&[500]);
    assert_eq!(got.others, []);
    assert_ne!(got.flags & libc::MSG_CTRUNC, 0, "{got:?}");
    probe.give_back();
    Ok(())
}

/// Time stamps, beside the pieces.
fn want_time_stamps(socket: &impl AsFd) -> io::Result<()> {
    let flags = libc::SOF_TIMESTAMPING_RX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
    sockopt::set(
        socket,
        libc::SOL_SOCKET,
        libc::SO_TIMESTAMPING,
        flags as i32,
    )
}

/// Do packets get time stamps? The kernel leaves that to a work item when the first socket
/// asks for them.
fn packets_are_stamped(bench: &Receiving) -> io::Result<bool> {
    let address = address(Ip::V4, Receiving::PORT);
    let (rx, tx) = (&bench.pair.rx.ns, &bench.pair.tx.ns);
    let receiver = rx.run(|| UdpSocket::bind(address))?;
    want_time_stamps(&receiver)?;
    tx.run(|| UdpSocket::bind("0.0.0.0:0"))?
        .send_to(b"stamp", address)?;
    let mut control = nix::cmsg_space!([libc::timespec; 3]);
    let mut data = [0; 5];
    let mut iov = [IoSliceMut::new(&mut data)];
    let message = recvmsg::<()>(
        receiver.as_raw_fd(),
        &mut iov,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let stamped = message.cmsgs()?.next().is_some();
    Ok(stamped)
}

fn time_stamps() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    want_time_stamps(&bench.connection.rx)?;
    soon("packets to be stamped", || packets_are_stamped(&bench));
    bench.send(&[500, 700])?;
    for len in [100, 1100] {
        let got = probe.receive(&Call::new(len));
        assert_eq!(got.len(), len);
        let stamps = got
            .others
            .iter()
            .filter(|other| other.level == libc::SOL_SOCKET)
            .filter(|other| other.kind == libc::SCM_TIMESTAMPING)
            .filter(|other| other.data.iter().any(|&byte| byte != 0))
            .count();
        assert_eq!(stamps, 1, "{got:?}");
    }
    probe.give_back();
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        peek,
        peek_then_give_back,
        peek_waits_for_no_more_than_there_is,
        peek_offset,
        trunc,
        waitall,
        waitall_ends_early,
        dontwait,
        timeout,
        low_water_mark,
        error_queue,
        out_of_band,
        flags_without_meaning,
        devmem_without_device_memory,
        poll_events,
        bytes_left,
        time_stamps,
    ])
}
