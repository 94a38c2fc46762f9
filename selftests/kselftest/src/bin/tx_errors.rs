// SPDX-License-Identifier: GPL-2.0

//! Sending from a dma-buf with bad input: the error, that nothing was sent, and that the connection goes on.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Error;
use devmem::Extent;
use devmem::Sender;
use devmem::cmsg;
use devmem::netdev::Netdev;
use devmem::netdev::dmabuf;
use devmem::netlink::Attrs;
use devmem::send::enable_zerocopy;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::fixture::Sending;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report::Stop;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::state::State;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::Call;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::extent;
use devmem_testlib::tx::fails;
use devmem_testlib::tx::outcome;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

const PAGE: u64 = 4096;
const MEMORY: u64 = Sending::MEMORY;
const PORT: u16 = Sending::PORT;
const MAX_SKB_FRAGS: u64 = 17;
/// The kernel counts a page for each piece, however short.
const SEND_BUFFER: usize = 16 << 20;
/// No binding has it.
const NO_ID: u32 = 0x7fff_fff0;
/// No device has it.
const NO_IFINDEX: u32 = 0x7fff_fff0;
const NOBODY: libc::uid_t = 65534;

/// A connection, and memory to send over it.
/// A connection with room for everything that a test sends, so that it need not be read at the same time.
fn without_zerocopy() -> Result<Sending, Stop> {
    let bench = Sending::connected_by(|pair| pair.connect_to_queue(Ip::V4, PORT, 0))?;
    setsockopt(&bench.connection.tx, sockopt::SndBufForce, &SEND_BUFFER)?;
    Ok(bench)
}

fn sending() -> Result<Sending, Stop> {
    let bench = without_zerocopy()?;
    enable_zerocopy(&bench.connection.tx)?;
    Ok(bench)
}

/// Checks that the connection is as good as before, and has carried just what was received; that
/// all calls which sent something complete, and no others.
#[track_caller]
fn goes_on(bench: Sending) -> Outcome {
    let parts = [extent(5, 3 * PAGE), extent(MEMORY - 1, 1)];
    bench.sends(&bench.call(&parts));
    bench.expect(&parts)?;
    bench.completes()?;
    bench.connection.tx.shutdown(std::net::Shutdown::Write)?;
    tx::expect_end(&bench.connection.rx)?;
    Ok(())
}

fn no_such_id() -> Outcome {
    let bench = sending()?;
    for id in [NO_ID, u32::MAX] {
        bench.refused(&Call::new(id, &[extent(0, 100)]), Errno::EINVAL);
    }
    // 0 is as good as no message: what was an offset is an address, where nothing is.
    bench.refused(&Call::new(0, &[extent(0, 100)]), Errno::EFAULT);
    goes_on(bench)
}

fn id_of_a_receive_binding() -> Outcome {
    let bench = sending()?;
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    let receive = bench.pair.bind(&[1], &memory)?;
    bench.refused(&Call::new(receive.id(), &[extent(0, 100)]), Errno::EINVAL);
    goes_on(bench)
}

fn id_of_a_closed_binding() -> Outcome {
    let bench = sending()?;
    let other = bench.pair.tx.bind_tx(&bench.memory)?;
    let id = other.id();
    let call = Call::new(id, &[extent(0, 100)]);
    bench.sends(&call);
    bench.expect(&[extent(0, 100)])?;
    drop(other);
    bench.refused(&call, Errno::EINVAL);
    bench.completes()?;
    provider::all_buffers_back(id);
    goes_on(bench)
}

fn no_so_zerocopy() -> Outcome {
    let bench = without_zerocopy()?;
    bench.refused(&bench.call(&[extent(0, 100)]), Errno::EINVAL);
    enable_zerocopy(&bench.connection.tx)?;
    goes_on(bench)
}

fn no_msg_zerocopy() -> Outcome {
    let bench = sending()?;
    bench.refused(&bench.call(&[extent(0, 100)]).flags(0), Errno::EINVAL);
    goes_on(bench)
}

fn zero_length() -> Outcome {
    let bench = sending()?;
    for extents in [&[][..], &[extent(0, 0)], &[extent(0, 0), extent(PAGE, 0)]] {
        bench.refused(&bench.call(extents), Errno::EINVAL);
    }
    goes_on(bench)
}

fn zero_length_among_others() -> Outcome {
    let bench = sending()?;
    let parts = [
        extent(0, 0),
        extent(7, 0),
        extent(7, 1000),
        extent(PAGE, 0),
        extent(9 * PAGE + 5, 5000),
        extent(0, 0),
    ];
    for _ in 0..3 {
        bench.sends(&bench.call(&parts));
        bench.expect(&parts)?;
    }
    goes_on(bench)
}

/// One of no length may even be outside of the memory, unless it is the first.
fn zero_length_outside() -> Outcome {
    let bench = sending()?;
    let parts = [extent(7, 1000), extent(MEMORY, 0), extent(3, 3)];
    bench.sends(&bench.call(&parts));
    bench.expect(&parts)?;
    goes_on(bench)
}

fn outside_of_the_memory() -> Outcome {
    let bench = sending()?;
    for (offset, len) in [
        (MEMORY, 1),
        (MEMORY, MEMORY),
        (MEMORY - 1, 2),
        (MEMORY - PAGE, PAGE + 1),
        (1 << 32, 1),
        (1 << 46, 1),
        // No address of user space: refused before anybody asks what it is meant for.
        (1 << 63, 1),
        (u64::MAX, 1),
        (u64::MAX - 99, 100),
    ] {
        bench.refused(&bench.call(&[extent(offset, len)]), Errno::EFAULT);
    }
    goes_on(bench)
}

fn lengths_that_are_none() -> Outcome {
    let bench = sending()?;
    // Beyond the largest possible transfer: cut down to that, if it is the only one.
    for parts in [
        &[extent(0, u64::MAX)][..],
        &[extent(0, 100), extent(0, u64::MAX)],
        &[extent(0, 1 << 63), extent(0, 1)],
    ] {
        let result = bench.send(
            &bench
                .call(parts)
                .flags(libc::MSG_ZEROCOPY | libc::MSG_DONTWAIT),
        );
        observe(outcome(&result));
        result.expect_err("no such length");
    }
    goes_on(bench)
}

/// What comes before the bad part is sent as far as it is in skbs of its own.
fn partly_outside_of_the_memory() -> Outcome {
    let bench = sending()?;
    let pages = |count: u64| {
        (0..count)
            .map(|i| extent(i * PAGE, PAGE))
            .collect::<Vec<_>>()
    };
    for (good, bad) in [
        (pages(1), extent(MEMORY, 1)),
        (pages(MAX_SKB_FRAGS), extent(MEMORY, PAGE)),
        (pages(2 * MAX_SKB_FRAGS), extent(1 << 40, PAGE)),
        (vec![extent(0, MEMORY - 10)], extent(MEMORY - 10, 11)),
        (
            vec![extent(1, 1); 2 * MAX_SKB_FRAGS as usize],
            extent(MEMORY, 1),
        ),
    ] {
        let parts = [&good[..], &[bad], &good[..]].concat();
        let result = bench.send(&bench.call(&parts));
        // How much goes into an skb is TCP's affair.
        observe(format_args!("anything: {}", result.is_ok()));
        if let Err(err) = &result {
            assert_eq!(err.raw_os_error(), Some(libc::EFAULT));
        }
        let sent = result.unwrap_or(0) as u64;
        assert!(sent <= tx::total(&good) + bad.len, "{sent} bytes");
        bench.expect(&first_bytes(&parts, sent))?;
    }
    goes_on(bench)
}

/// So many bytes of these parts.
fn first_bytes(parts: &[Extent], mut len: u64) -> Vec<Extent> {
    parts
        .iter()
        .map(|part| {
            let now = part.len.min(len);
            len -= now;
            extent(part.offset, now)
        })
        .collect()
}

/// A bad call takes nothing of what waits in the same skb.
fn outside_with_data_pending() -> Outcome {
    let bench = sending()?;
    let more = libc::MSG_ZEROCOPY | libc::MSG_MORE;
    bench.sends(&bench.call(&[extent(100, 200)]).flags(more));
    for bad in [extent(MEMORY, 1), extent(MEMORY - 1, 2)] {
        bench.refused(
            &bench.call(&[extent(0, 50), bad]).flags(more),
            Errno::EFAULT,
        );
    }
    bench.sends(&bench.call(&[extent(5000, 10)]));
    bench.expect(&[extent(100, 200), extent(5000, 10)])?;
    goes_on(bench)
}

fn wrong_device() -> Outcome {
    let bench = sending()?;
    let other = Pair::new()?;
    let elsewhere = other.tx.bind_tx(&bench.memory)?;
    bench.refused(&Call::new(elsewhere.id(), &[extent(0, 100)]), Errno::ENODEV);
    goes_on(bench)
}

fn route_over_loopback() -> Outcome {
    let bench = sending()?;
    bench.pair.tx.ip("link set lo up")?;
    for host in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 0, 2, 2)] {
        let (tx, rx) = bench.pair.tx.ns.run(|| {
            let listener = TcpListener::bind((host, PORT))?;
            let tx = TcpStream::connect((host, PORT))?;
            Ok((tx, listener.accept()?.0))
        })?;
        enable_zerocopy(&tx)?;
        let result = bench.call(&[extent(0, 100)]).send(&tx);
        observe(outcome(&result));
        fails(result, Errno::ENODEV);
        drop(tx);
        tx::expect_end(&rx)?;
    }
    goes_on(bench)
}

fn malformed_control() -> Outcome {
    let bench = sending()?;
    let id = bench.binding.id().to_ne_bytes();
    let good = cmsg::tx_control(bench.binding.id()).to_vec();
    let encode = |data: &[u8]| cmsg::encode(libc::SOL_SOCKET, cmsg::SCM_DEVMEM_DMABUF, data);
    let with_len = |len: usize| {
        let mut control = good.clone();
        control[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
        control
    };
    for control in [
        // Too little and too much for a number.
        encode(&[]),
        encode(&id[..3]),
        encode(&[id, id].concat()),
        // Lengths that are less than a header, or go past the buffer.
        with_len(0),
        with_len(15),
        with_len(good.len() + 1),
        with_len(usize::MAX),
        // Something that only comes back from recvmsg().
        cmsg::encode(libc::SOL_SOCKET, cmsg::SCM_DEVMEM_LINEAR, &id),
        // Good, but followed by what is not.
        [good.clone(), encode(&id[..3])].concat(),
        [good.clone(), cmsg::tx_control(NO_ID).to_vec()].concat(),
    ] {
        let call = bench.call(&[extent(0, 100)]).control(control);
        bench.refused(&call, Errno::EINVAL);
    }
    // Without a message, or with one of another level, the offset is an address, where nothing is.
    for control in [
        Vec::new(),
        good[..8].to_vec(),
        cmsg::encode(libc::IPPROTO_TCP, cmsg::SCM_DEVMEM_DMABUF, &id),
    ] {
        let call = bench.call(&[extent(0, 100)]).control(control);
        bench.refused(&call, Errno::EFAULT);
    }
    goes_on(bench)
}

fn several_control_messages() -> Outcome {
    let bench = sending()?;
    let good = cmsg::tx_control(bench.binding.id()).to_vec();
    let part = [extent(77, 5000)];
    // The last counts.
    let twice = [cmsg::tx_control(NO_ID).to_vec(), good.clone()].concat();
    bench.sends(&bench.call(&part).control(twice));
    bench.expect(&part)?;
    // Others do not matter.
    let mark = cmsg::encode(libc::SOL_SOCKET, libc::SO_MARK, &5u32.to_ne_bytes());
    let foreign = cmsg::encode(libc::IPPROTO_TCP, 1, &[1; 30]);
    for control in [[&mark[..], &good].concat(), [&good[..], &foreign].concat()] {
        bench.sends(&bench.call(&part).control(control));
        bench.expect(&part)?;
    }
    goes_on(bench)
}

fn iovec_counts() -> Outcome {
    const UIO_MAXIOV: u64 = 1024;
    let bench = sending()?;
    for count in [
        1,
        MAX_SKB_FRAGS - 1,
        MAX_SKB_FRAGS,
        MAX_SKB_FRAGS + 1,
        UIO_MAXIOV,
    ] {
        // Never adjacent, so that none can be joined; each within a page, and over the edge of two.
        for (step, len) in [(200, 100), (2 * PAGE - 10, 50)] {
            let parts: Vec<_> = (0..count)
                .map(|i| extent(i * step % (MEMORY - len), len))
                .collect();
            bench.sends(&bench.call(&parts));
            bench.expect(&parts)?;
        }
    }
    let too_many = vec![extent(0, 1); UIO_MAXIOV as usize + 1];
    bench.refused(&bench.call(&too_many), Errno::EMSGSIZE);
    goes_on(bench)
}

/// Adjacent pieces of one page, more than an skb has frags.
fn adjacent_iovecs() -> Outcome {
    let bench = sending()?;
    let parts: Vec<_> = (0..600).map(|i| extent(PAGE + i * 3, 3)).collect();
    bench.sends(&bench.call(&parts));
    bench.expect(&parts)?;
    goes_on(bench)
}

fn msg_more() -> Outcome {
    let bench = sending()?;
    let more = libc::MSG_ZEROCOPY | libc::MSG_MORE;
    let parts: Vec<_> = (0..100)
        .map(|i| extent(i * 333, 333 * (i % 3 + 1)))
        .collect();
    for (i, part) in parts.iter().enumerate() {
        let flags = if i + 1 < parts.len() {
            more
        } else {
            libc::MSG_ZEROCOPY
        };
        bench.sends(&bench.call(&[*part]).flags(flags));
    }
    bench.expect(&parts)?;

    // What is held back goes when nothing follows, and at the end of the stream.
    bench.sends(&bench.call(&[extent(9, 99)]).flags(more));
    bench.expect(&[extent(9, 99)])?;
    bench.sends(&bench.call(&[extent(0, 11)]).flags(more));
    bench.connection.tx.shutdown(std::net::Shutdown::Write)?;
    bench.expect(&[extent(0, 11)])?;
    tx::expect_end(&bench.connection.rx)?;
    bench.completes()
}

/// TCP holds back what does not fill a segment, for some time.
fn corked() -> Outcome {
    let bench = sending()?;
    let cork = |on: i32| {
        let socket = &bench.connection.tx;
        devmem_testlib::sockopt::set(socket, libc::IPPROTO_TCP, libc::TCP_CORK, on)
    };
    let parts = [
        extent(100, 50),
        extent(150, 70),
        extent(9 * PAGE - 1, 2),
        extent(0, 20_000),
        extent(20_000, 3),
    ];
    for _ in 0..3 {
        cork(1)?;
        for part in parts {
            bench.sends(&bench.call(&[part]));
        }
        cork(0)?;
        bench.expect(&parts)?;
    }
    goes_on(bench)
}

fn other_flags() -> Outcome {
    let bench = sending()?;
    let parts = [extent(3, 20_000)];
    for flags in [
        libc::MSG_DONTWAIT,
        libc::MSG_EOR,
        libc::MSG_DONTROUTE,
        libc::MSG_CONFIRM,
    ] {
        bench.sends(&bench.call(&parts).flags(libc::MSG_ZEROCOPY | flags));
        bench.expect(&parts)?;
    }
    goes_on(bench)
}

/// The last byte is urgent: the receiver gets it aside.
fn urgent_data() -> Outcome {
    let bench = sending()?;
    bench.sends(
        &bench
            .call(&[extent(10, 50)])
            .flags(libc::MSG_ZEROCOPY | libc::MSG_OOB),
    );
    bench.expect(&[extent(10, 49)])?;
    let mut byte = [0u8; 1];
    // SAFETY: `byte` is writable for the length given.
    let ret = unsafe {
        libc::recv(
            bench.connection.rx.as_raw_fd(),
            byte.as_mut_ptr().cast(),
            1,
            libc::MSG_OOB,
        )
    };
    observe(format_args!("urgent bytes: {ret}"));
    assert_eq!(ret, 1, "{}", io::Error::last_os_error());
    traffic::compare(59, &byte);
    goes_on(bench)
}

/// Not connected, so there is no device that the binding could be for.
fn fast_open() -> Outcome {
    let bench = sending()?;
    let listener = bench.pair.listen(Ip::V4, PORT + 1)?;
    bench
        .pair
        .tx
        .ns
        .run(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", "5"))?;
    let socket = unconnected(&bench)?;
    enable_zerocopy(&socket)?;
    let mut call = bench
        .call(&[extent(0, 100)])
        .flags(libc::MSG_ZEROCOPY | libc::MSG_FASTOPEN);
    call.to = Some(listener.local_addr()?);
    let result = call.send(&socket);
    observe(outcome(&result));
    result.expect_err("sent without a device");
    drop(socket);

    // A connection does not mind.
    let call = bench.call(&[extent(0, 100)]);
    bench.sends(&call.flags(libc::MSG_ZEROCOPY | libc::MSG_FASTOPEN));
    bench.expect(&[extent(0, 100)])?;
    goes_on(bench)
}

/// A connection that is not opened before there is something to send: its first bytes go with the SYN.
fn fast_open_connect() -> Outcome {
    const ADDRESS: u64 = 32 * PAGE;
    // Clients may, servers may, and nobody needs a cookie.
    const WITHOUT_COOKIE: &str = "1543";
    let bench = sending()?;
    for end in [&bench.pair.tx, &bench.pair.rx] {
        end.ns
            .run(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", WITHOUT_COOKIE))?;
    }
    // Ordinary memory where the offset points to, if it were an address.
    let decoy = tx::Decoy::at(ADDRESS, PAGE)?;
    for parts in [
        [extent(ADDRESS, 100)],
        [extent(ADDRESS, 3 * PAGE)],
        [extent(0, 100)],
    ] {
        let listener = bench.pair.listen(Ip::V4, PORT + 1)?;
        let socket = unconnected(&bench)?;
        enable_zerocopy(&socket)?;
        setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
        let to = nix::sys::socket::SockaddrStorage::from(listener.local_addr()?);
        nix::sys::socket::connect(socket.as_raw_fd(), &to)?;
        let result = bench.call(&parts).send(&socket);
        observe(outcome(&result));
        let socket = TcpStream::from(socket);
        let (rx, _) = listener.accept()?;
        rx.set_read_timeout(Some(wait::patience(Duration::from_secs(10))))?;
        let sent = result.unwrap_or(0) as u64;
        tx::expect(&rx, &first_bytes(&parts, sent))?;
        drop(socket);
        tx::expect_end(&rx)?;
    }
    drop(decoy);
    goes_on(bench)
}

/// A TCP socket at the sending end.
fn unconnected(bench: &Sending) -> io::Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::AddressFamily;
    use nix::sys::socket::SockFlag;
    use nix::sys::socket::SockType;
    use nix::sys::socket::socket;
    bench.pair.tx.ns.run(|| {
        Ok(socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?)
    })
}

fn not_connected() -> Outcome {
    let bench = sending()?;
    let call = bench.call(&[extent(0, 100)]);
    let nobody = Call::new(NO_ID, &[extent(0, 100)]);
    let socket = unconnected(&bench)?;
    enable_zerocopy(&socket)?;
    for call in [&call, &nobody] {
        let result = call.send(&socket);
        observe(outcome(&result));
        result.expect_err("sent without a peer");
    }
    let listener = bench.pair.tx.ns.run(|| TcpListener::bind("0.0.0.0:0"))?;
    enable_zerocopy(&listener)?;
    let result = call.send(&listener);
    observe(outcome(&result));
    result.expect_err("sent by a listener");
    goes_on(bench)
}

fn after_shutdown() -> Outcome {
    let bench = sending()?;
    bench.sends(&bench.call(&[extent(0, 100)]));
    bench.connection.tx.shutdown(std::net::Shutdown::Write)?;
    bench.refused(&bench.call(&[extent(0, 100)]), Errno::EPIPE);
    bench.expect(&[extent(0, 100)])?;
    tx::expect_end(&bench.connection.rx)?;
    bench.completes()
}

fn after_reset() -> Outcome {
    let Sending {
        pair,
        memory,
        binding,
        connection: Connection { rx, tx },
        ..
    } = sending()?;
    let call = Call::new(binding.id(), &[extent(0, 100)]);
    assert_eq!(outcome(&call.send(&tx)), "100");
    provider::wait_for("the data to be queued", || {
        Ok(traffic::unacknowledged(&tx)? == 0)
    });
    // Data that nobody has read: the peer answers with a reset.
    drop(rx);
    provider::wait_for("the reset", || {
        let error = getsockopt(&tx, sockopt::SocketError)?;
        Ok(error == libc::ECONNRESET)
    });
    for _ in 0..2 {
        let result = call.send(&tx);
        observe(outcome(&result));
        fails(result, Errno::EPIPE);
    }
    let mut completions = Completions::default();
    completions.wait(&tx, 1)?;
    drop((pair, memory));
    Ok(())
}

fn other_sockets() -> Outcome {
    let bench = sending()?;
    let call = bench.call(&[extent(0, 100)]);
    // They refuse the message.
    let udp = bench.pair.tx.ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), PORT))?;
        Ok(socket)
    })?;
    enable_zerocopy(&udp)?;
    let (unix, _peer) = UnixStream::pair()?;
    for socket in [udp.as_fd(), unix.as_fd()] {
        for flags in [libc::MSG_ZEROCOPY, 0] {
            let result = call.clone().flags(flags).send(socket);
            observe(outcome(&result));
            result.expect_err("sent by a socket of another kind");
        }
    }
    goes_on(bench)
}

/// Device memory and ordinary data on one connection, with and without some that is still pending.
fn mixed_with_ordinary_data() -> Outcome {
    let bench = sending()?;
    let mut expected = Vec::new();
    for round in 0..40u64 {
        let (offset, len) = (round * 1111, 1 + round * 97 % 5000);
        let part = extent(offset, len);
        let pending = if round % 4 < 2 { libc::MSG_MORE } else { 0 };
        // Two of the one, two of the other; by write() and by zero-copy from ordinary memory.
        if round % 2 == 0 {
            bench.sends(&bench.call(&[part]).flags(libc::MSG_ZEROCOPY | pending));
        } else {
            let bytes = traffic::bytes(offset, len as usize);
            let mut call = Call::default().flags(pending);
            call.iov = vec![(bytes.as_ptr().expose_provenance() as u64, len)];
            if round % 3 == 0 {
                call.flags |= libc::MSG_ZEROCOPY;
            }
            bench.sends(&call);
        }
        expected.push(part);
        if round % 7 == 6 {
            (&bench.connection.tx).write_all(&[])?;
        }
    }
    bench.expect(&expected)?;
    bench.completes_with_host_memory()?;
    goes_on(bench)
}

/// Leaves sockets memory for some calls in flight.
fn limit_option_memory(bench: &Sending) -> io::Result<()> {
    bench
        .pair
        .tx
        .ns
        .run(|| fs::write("/proc/sys/net/core/optmem_max", "8192"))
}

/// With the option memory of a socket used up by calls that are not completed.
fn no_memory_for_more_calls() -> Outcome {
    let bench = sending()?;
    limit_option_memory(&bench)?;
    // No call completes meanwhile: with the one before, it would need memory once only.
    bench.pair.tx.cut()?;
    let mut expected = Vec::new();
    // Host memory in between, so that each call needs a notification of its own.
    let mut refused = None;
    for i in 0..100 {
        let part = extent(i * 10, 10);
        match bench.send(&bench.call(&[part])) {
            Ok(_) => expected.push(part),
            Err(err) => {
                refused = Some(err);
                break;
            }
        }
        (&bench.connection.tx).write_all(traffic::bytes(i * 10, 10))?;
        expected.push(part);
    }
    let refused = Err(refused.expect("all of it was sent"));
    observe(outcome(&refused));
    fails(refused, Errno::ENOBUFS);
    bench.pair.tx.mend()?;
    bench.expect(&expected)?;
    bench.completes()?;
    // Those who take their completions may go on.
    goes_on(bench)
}

/// The library waits, and loses nothing.
fn sender_without_memory_for_more_calls() -> Outcome {
    let bench = without_zerocopy()?;
    limit_option_memory(&bench)?;
    let parts: Vec<_> = (0..200).map(|i| extent(i * 10, 10)).collect();
    thread::scope(|scope| -> Outcome {
        let rx = &bench.connection.rx;
        let parts = &parts;
        let receiver = scope.spawn(move || {
            let mixed: Vec<_> = parts.iter().flat_map(|part| [*part; 2]).collect();
            tx::expect(rx, &mixed)
        });
        let mut sender = Sender::new(&bench.connection.tx)?;
        for part in parts {
            sender.send(&bench.binding, *part)?;
            (&bench.connection.tx).write_all(traffic::bytes(part.offset, 10))?;
        }
        let mut done = Vec::new();
        while let Some(sent) = sender.wait_timeout(wait::patience(Duration::from_secs(20)))? {
            assert_eq!(sent.bytes, 10);
            done.push(sent.source);
        }
        done.sort_unstable_by_key(|part| part.offset);
        assert_eq!(&done, parts);
        receiver.join().expect("the receiver's thread")?;
        Ok(())
    })
}

/// The errors of the library: the source comes back if nothing of it was sent.
fn sender_gives_back_what_it_cannot_send() -> Outcome {
    let bench = without_zerocopy()?;
    let mut sender = Sender::new(&bench.connection.tx)?;
    let bad = extent(MEMORY, 1);
    let err = sender.send(&bench.binding, vec![bad]).expect_err("outside");
    assert_eq!((err.source, err.sent), (Some(vec![bad]), 0));
    assert_eq!(err.error.raw_os_error(), Some(libc::EFAULT));

    // More than one call can take, then something bad: what was sent is in flight.
    let mut parts = vec![extent(0, 1); devmem::send::MAX_EXTENTS];
    parts.push(bad);
    let err = sender
        .send(&bench.binding, parts.clone())
        .expect_err("outside");
    assert_eq!(
        (err.source, err.sent),
        (None, devmem::send::MAX_EXTENTS as u64)
    );
    bench.expect(&parts[..devmem::send::MAX_EXTENTS])?;
    let sent = sender.wait()?.expect("it was sent");
    assert_eq!(
        (sent.source, sent.bytes, sent.copied),
        (parts, err.sent, false)
    );
    assert!(sender.wait()?.is_none(), "nothing else was sent");
    Ok(())
}

fn number(answer: &Result<u32, Error>) -> String {
    match answer {
        Ok(_) => "bound".to_owned(),
        Err(err) => err.errno().map_or_else(
            || err.to_string(),
            |errno| format!("{:?}", Errno::from_raw(errno)),
        ),
    }
}

/// Sends a bind-tx request at the sending end of a pair.
fn bind(pair: &Pair, attrs: &Attrs) -> io::Result<Result<u32, Error>> {
    pair.tx.ns.run(|| Ok(Netdev::open()?.bind_tx(attrs)))
}

fn bind_requests() -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    let pair = Pair::new()?;
    pair.tx.ip("link add dummy0 type dummy")?;
    pair.tx.ip("link add veth0 type veth peer name veth1")?;
    let index = |name: &str| {
        pair.tx
            .ns
            .run(|| nix::net::if_::if_nametoindex(name).map_err(io::Error::from))
    };
    let (dummy, veth) = (index("dummy0")?, index("veth0")?);
    let fd = memory.as_fd().as_raw_fd() as u32;
    let zero = File::open("/dev/zero")?;
    let not_a_dmabuf = zero.as_raw_fd() as u32;
    let ifindex = |index: u32| Attrs::new().u32(dmabuf::IFINDEX, index);
    let good = || ifindex(pair.tx.ifindex).u32(dmabuf::FD, fd);
    let requests = [
        ("no ifindex", Attrs::new().u32(dmabuf::FD, fd), "EINVAL"),
        ("no fd", ifindex(pair.tx.ifindex), "EINVAL"),
        ("ifindex 0", ifindex(0).u32(dmabuf::FD, fd), "ERANGE"),
        (
            "no such ifindex",
            ifindex(NO_IFINDEX).u32(dmabuf::FD, fd),
            "ENODEV",
        ),
        ("lo", ifindex(1).u32(dmabuf::FD, fd), "EOPNOTSUPP"),
        ("dummy", ifindex(dummy).u32(dmabuf::FD, fd), "EOPNOTSUPP"),
        ("veth", ifindex(veth).u32(dmabuf::FD, fd), "EOPNOTSUPP"),
        (
            "no such fd",
            ifindex(pair.tx.ifindex).u32(dmabuf::FD, 4000),
            "EBADF",
        ),
        (
            "fd -1",
            ifindex(pair.tx.ifindex).u32(dmabuf::FD, u32::MAX),
            "EBADF",
        ),
        (
            "not a dma-buf",
            ifindex(pair.tx.ifindex).u32(dmabuf::FD, not_a_dmabuf),
            "EINVAL",
        ),
        (
            "short fd",
            ifindex(pair.tx.ifindex).bytes(dmabuf::FD, &[1, 2]),
            "EINVAL",
        ),
        ("id", good().u32(dmabuf::ID, 1), "EINVAL"),
        (
            "rx-page-size",
            good().u32(dmabuf::RX_PAGE_SIZE, 4096),
            "EINVAL",
        ),
        ("shared, a number", good().u32(dmabuf::SHARED, 1), "ERANGE"),
        ("local, a number", good().u32(dmabuf::LOCAL, 1), "ERANGE"),
        ("unknown attribute", good().u32(77, 1), "EINVAL"),
    ];
    let before = State::of(&pair)?;
    for (name, attrs, expected) in &requests {
        let answer = bind(&pair, attrs)?;
        observe(format_args!("{name}: {}", number(&answer)));
        assert_eq!(number(&answer), *expected, "{name}: {answer:?}");
        before.wait_until_back(&pair);
    }
    bind(&pair, &good())??;
    Ok(())
}

/// Receive queues mean nothing here.
fn bind_with_queues() -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    let pair = Pair::new()?;
    let request = devmem::BindRx::new(pair.tx.ifindex).queue(1);
    let answer = bind(&pair, &request.attrs(&memory))?;
    observe(number(&answer));
    Ok(())
}

fn bind_without_rights() -> Outcome {
    let bench = sending()?;
    // A thread of its own gives up its rights, the others keep theirs.
    let binding = bench.pair.tx.ns.run(|| {
        // SAFETY: The raw system call changes the credentials of this thread alone, and takes no
        // pointers.
        let ret = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        if ret != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(BindTx::new(bench.pair.tx.ifindex).bind(&bench.memory))
    })??;
    bench.sends(&Call::new(binding.id(), &[extent(1, 2 * PAGE)]));
    bench.expect(&[extent(1, 2 * PAGE)])?;
    goes_on(bench)
}

/// Sending does not write, so it may be read-only.
fn bind_read_only() -> Outcome {
    const LEN: u64 = 5 * PAGE;
    let pair = Pair::new()?;
    let heap = Path::new("/dev/dma_heap/system");
    let memory = DmaBuf::heap(heap, MEMORY as usize, libc::O_RDONLY)?;
    let binding = pair.tx.bind_tx(&memory)?;
    let Connection { rx, tx } = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    enable_zerocopy(&tx)?;
    let call = Call::new(binding.id(), &[extent(MEMORY - LEN, LEN)]);
    assert_eq!(outcome(&call.send(&tx)), LEN.to_string());
    // Memory of the heap is zeroed.
    let mut bytes = vec![1; LEN as usize];
    io::Read::read_exact(&mut &rx, &mut bytes)?;
    assert!(
        bytes.iter().all(|&byte| byte == 0),
        "not what is in the memory"
    );
    Completions::default().wait(&tx, 1)?;
    Ok(())
}

/// Sending reads, which the file descriptor has to allow.
fn bind_write_only() -> Outcome {
    let pair = Pair::new()?;
    let heap = Path::new("/dev/dma_heap/system");
    let memory = DmaBuf::heap(heap, MEMORY as usize, libc::O_WRONLY)?;
    let request = Attrs::new()
        .u32(dmabuf::IFINDEX, pair.tx.ifindex)
        .u32(dmabuf::FD, memory.as_fd().as_raw_fd() as u32);
    let answer = bind(&pair, &request)?;
    observe(number(&answer));
    if provider::under_test() == Provider::Module {
        let err = answer.expect_err("bound");
        assert_eq!(err.errno(), Some(libc::EINVAL), "{err}");
        assert!(err.to_string().contains("write-only"), "{err}");
    }
    Ok(())
}

/// The same memory bound for two devices, twice for one of them, and for receiving as well.
fn several_bindings_of_one_memory() -> Outcome {
    let bench = sending()?;
    let again = bench.pair.tx.bind_tx(&bench.memory)?;
    let peer = bench.pair.rx.bind_tx(&bench.memory)?;
    let receive = bench.pair.bind(&[1], &bench.memory)?;
    assert_ne!(again.id(), bench.binding.id(), "two bindings of one number");
    let parts = [extent(99, 3000)];
    for id in [bench.binding.id(), again.id(), bench.binding.id()] {
        bench.sends(&Call::new(id, &parts));
    }
    bench.expect(&[parts[0]; 3])?;
    let back = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), PORT));
    let result = Call {
        to: Some(back),
        ..Call::new(peer.id(), &parts)
    }
    .send(&bench.connection.tx);
    observe(outcome(&result));
    fails(result, Errno::ENODEV);
    drop((again, peer, receive));
    goes_on(bench)
}

fn main() -> ExitCode {
    runner::run(tests![
        no_such_id,
        id_of_a_receive_binding,
        id_of_a_closed_binding,
        no_so_zerocopy,
        no_msg_zerocopy,
        zero_length,
        zero_length_among_others,
        zero_length_outside,
        outside_of_the_memory,
        lengths_that_are_none,
        partly_outside_of_the_memory,
        outside_with_data_pending,
        wrong_device,
        route_over_loopback,
        malformed_control,
        several_control_messages,
        iovec_counts,
        adjacent_iovecs,
        msg_more,
        corked,
        other_flags,
        urgent_data,
        fast_open,
        fast_open_connect,
        not_connected,
        after_shutdown,
        after_reset,
        other_sockets,
        mixed_with_ordinary_data,
        no_memory_for_more_calls,
        sender_without_memory_for_more_calls,
        sender_gives_back_what_it_cannot_send,
        bind_requests,
        bind_with_queues,
        bind_without_rights,
        bind_read_only,
        bind_write_only,
        several_bindings_of_one_memory,
    ])
}
