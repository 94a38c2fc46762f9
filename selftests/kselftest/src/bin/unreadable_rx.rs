// SPDX-License-Identifier: GPL-2.0

//! What the rest of the stack does with packets that were received into device memory, which it cannot read:
//! routers and the errors they send, firewalls, checksums, signatures, raw sockets, samples, and parsers of
//! messages.

use std::fs;
use std::io;
use std::io::ErrorKind;
use std::io::IoSlice;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::netlink::attributes;
use devmem_testlib::Outcome;
use devmem_testlib::bpf;
use devmem_testlib::bpf::Outputs;
use devmem_testlib::bpf::SockMap;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::frames;
use devmem_testlib::frames::ETHERNET;
use devmem_testlib::frames::Host;
use devmem_testlib::frames::IPV4;
use devmem_testlib::frames::IPV6;
use devmem_testlib::frames::Offloaded;
use devmem_testlib::frames::TCP;
use devmem_testlib::iptfs;
use devmem_testlib::keys;
use devmem_testlib::keys::Signature;
use devmem_testlib::multicast::Group;
use devmem_testlib::nfqueue::Nfqueue;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Feature;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::address;
use devmem_testlib::peer::Peer;
use devmem_testlib::peer::segment;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::received;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::pump::reset_on_close;
use devmem_testlib::rds;
use devmem_testlib::report::Stop;
use devmem_testlib::report::diag;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::tls;
use devmem_testlib::tls::Way;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::wait;
use devmem_testlib::xtables;
use nix::errno::Errno;
use nix::sys::socket::Backlog;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::sendmsg;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

const QUEUE: u32 = Receiving::QUEUE;
const PLAIN_QUEUE: u32 = Receiving::PLAIN_QUEUE;
const PAGE: usize = 4096;
const IPPROTO_MPTCP: i32 = 262;
/// The port that the tests steer; the connection that comes with the memory has another.
const PORT: u16 = Receiving::PORT + 1;
/// Room for everything that a test sends.
const ALL: usize = 1 << 16;
/// A link that is too narrow for what comes, and somebody behind it.
const NARROW: &str = "d0";
const NARROW_MTU: u32 = 1280;
const BEHIND_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const BEHIND_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
/// More than fits through the link, less than fits into a frame.
const WIDE: usize = 1400;

/// Devices, a bound queue, and a port that is received by a queue of choice.
struct Bench(Receiving);

impl Bench {
    fn new(queue: u32) -> Result<Self, Stop> {
        let bench = Self(Receiving::new()?);
        // The rules number 0 are those of the connection.
        bench.0.pair.steer_nth(1, PORT, queue)?;
        Ok(bench)
    }

    fn steer(&self, queue: u32) -> io::Result<()> {
        self.0.pair.steer_nth(1, PORT, queue)
    }

    /// A connection by hand to the port.
    fn peer(&self) -> io::Result<(Peer, TcpStream)> {
        Peer::connect(&self.0.pair, &self.0.pair.listen(Ip::V4, PORT)?)
    }

    /// A counter of the receiving end's stack.
    fn count(&self, group: &str, name: &str) -> io::Result<u64> {
        self.0.pair.rx.snmp(group, name)
    }

    /// A counter of the bound queue.
    fn queue(&self, name: &str) -> io::Result<u64> {
        self.0.pair.rx.counter(&format!("rx{QUEUE}_{name}"))
    }

    /// Has the receiving end forward to a narrow link.
    fn forward(&self) -> io::Result<()> {
        let rx = &self.0.pair.rx;
        rx.sysctl("ipv4/ip_forward", "1")?;
        rx.sysctl("ipv6/conf/all/forwarding", "1")?;
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
        rx.add_dummy(NARROW, NARROW_MTU, Ipv4Addr::new(198, 51, 100, 1), v6)
    }
}

/// What follows the header of Ethernet in a frame.
fn packet(frame: &[u8]) -> &[u8] {
    &frame[ETHERNET..]
}

/// A router does not put into fragments what it cannot read.
fn fragmented() -> Outcome {
    const COUNTERS: [&str; 3] = ["FragFails", "FragOKs", "FragCreates"];
    let bench = Bench::new(PLAIN_QUEUE)?;
    bench.forward()?;
    let host = Host::beside(&bench.0.pair, Ip::V4)?;
    let to = SocketAddr::from((BEHIND_V4, PORT));
    let frame = host.segment(to, true, traffic::bytes(0, WIDE))?;
    let counts = || -> io::Result<Vec<u64>> {
        COUNTERS
            .iter()
            .map(|name| bench.count("Ip", name))
            .collect()
    };
    for (queue, expected) in [(PLAIN_QUEUE, [0, 1, 2]), (QUEUE, [1, 0, 0])] {
        bench.steer(queue)?;
        let split = bench.queue("hds_packets")?;
        let before = counts()?;
        host.send(&frame)?;
        soon("the packet to be fragmented, or not", || {
            let now = counts()?;
            Ok(now[..2] != before[..2])
        });
        let more: Vec<_> = counts()?.iter().zip(before).map(|(n, b)| n - b).collect();
        observe(format_args!("queue {queue}: {COUNTERS:?} {more:?}"));
        assert_eq!(more, expected, "queue {queue}: {COUNTERS:?}");
        let split = bench.queue("hds_packets")? - split;
        assert_eq!(split, u64::from(queue == QUEUE), "in device memory");
    }
    Ok(())
}

/// A router that may not put a packet into fragments says so, and quotes what it can read of it.
fn fragmentation_needed() -> Outcome {
    const UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;
    let bench = Bench::new(PLAIN_QUEUE)?;
    bench.forward()?;
    let to = SocketAddr::from((BEHIND_V4, PORT));
    answered(&bench, to, UNREACHABLE, |head| {
        assert_eq!(head[1], FRAGMENTATION_NEEDED, "the code");
        let mtu = u16::from_be_bytes([head[6], head[7]]);
        assert_eq!(u32::from(mtu), NARROW_MTU);
    })
}

fn packet_too_big() -> Outcome {
    const PACKET_TOO_BIG: u8 = 2;
    let bench = Bench::new(PLAIN_QUEUE)?;
    bench.forward()?;
    let to = SocketAddr::from((BEHIND_V6, PORT));
    answered(&bench, to, PACKET_TOO_BIG, |head| {
        let mtu = [head[4], head[5], head[6], head[7]];
        assert_eq!(u32::from_be_bytes(mtu), NARROW_MTU);
    })
}

/// Sends a packet through host memory, and then through device memory. Each is answered by an error of this kind,
/// of which `check` gets the head, and which quotes the packet.
fn answered(bench: &Bench, to: SocketAddr, kind: u8, check: impl Fn(&[u8])) -> Outcome {
    const HEAD: usize = 8;
    let (ip, headers) = match to {
        SocketAddr::V4(_) => (Ip::V4, IPV4 + TCP),
        SocketAddr::V6(_) => (Ip::V6, IPV6 + TCP),
    };
    let host = Host::beside(&bench.0.pair, ip)?;
    let frame = host.segment(to, false, traffic::bytes(0, WIDE))?;
    for queue in [PLAIN_QUEUE, QUEUE] {
        bench.steer(queue)?;
        host.send(&frame)?;
        let message = host.icmp(ip, kind)?;
        let (head, quote) = message.split_at(HEAD);
        check(head);
        quotes(quote, packet(&frame), queue, headers);
    }
    Ok(())
}

/// Checks that an error quotes the packet's beginning: its headers, and of what is in host memory, more.
#[track_caller]
fn quotes(quote: &[u8], packet: &[u8], queue: u32, headers: usize) {
    observe(format_args!("queue {queue}: {} bytes quoted", quote.len()));
    assert!(packet.starts_with(quote), "not of the packet: {quote:02x?}");
    match queue {
        QUEUE => assert_eq!(quote.len(), headers, "bytes quoted"),
        _ => assert!(quote.len() > headers, "{} bytes quoted", quote.len()),
    }
}

/// A firewall tells that it rejects a packet, and quotes its headers.
fn rejected() -> Outcome {
    const UNREACHABLE: u8 = 3;
    const PORT_UNREACHABLE: u8 = 3;
    let bench = Bench::new(PLAIN_QUEUE)?;
    let rx = &bench.0.pair.rx;
    let device = &rx.ifname;
    rx.nft(&format!(
        "add table netdev f ; \
         add chain netdev f in {{ type filter hook ingress device {device} priority 0 ; }} ; \
         add rule netdev f in tcp dport {PORT} reject with icmp type port-unreachable"
    ))?;
    answered(&bench, address(Ip::V4, PORT), UNREACHABLE, |head| {
        assert_eq!(head[1], PORT_UNREACHABLE, "the code");
    })
}

/// A redirect quotes the packet that has taken a detour, and no memory that nobody wrote.
fn redirected() -> Outcome {
    const REDIRECT: u8 = 137;
    const REDIRECTED_HEADER: u8 = 4;
    /// Of the message, before its options: head, target and destination.
    const HEAD: usize = 8 + 16 + 16;
    /// Of the option, before the packet.
    const OPTION_HEAD: usize = 8;
    const NEXT_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
    const PAYLOAD: [u8; 1200] = [0xa7; 1200];
    let bench = Bench::new(QUEUE)?;
    let rx = &bench.0.pair.rx;
    rx.sysctl("ipv6/conf/all/forwarding", "1")?;
    let host = Host::beside(&bench.0.pair, Ip::V6)?;
    frames::add_neighbour_v6(rx, NEXT_HOP, [2, 0, 0, 0, 0, 0x99])?;
    let device = &rx.ifname;
    rx.ip(&format!(
        "-6 route add 2001:db8:1::/64 via {NEXT_HOP} dev {device}"
    ))?;
    let far = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    let frame = host.segment(SocketAddr::from((far, PORT)), false, &PAYLOAD)?;
    let split = bench.queue("hds_packets")?;
    host.send(&frame)?;
    let message = host.icmp(Ip::V6, REDIRECT)?;
    assert_eq!(bench.queue("hds_packets")? - split, 1, "in device memory");
    assert_eq!(message[8..24], NEXT_HOP.octets(), "the target");
    assert_eq!(message[24..HEAD], far.octets(), "the destination");

    let mut options = &message[HEAD..];
    let mut quoted = None;
    while let [kind, length, ..] = options {
        assert_ne!(*length, 0, "an option without length");
        let (option, rest) = options.split_at(usize::from(*length) * 8);
        if *kind == REDIRECTED_HEADER {
            quoted = Some(&option[OPTION_HEAD..]);
        }
        options = rest;
    }
    let quoted = quoted.expect("an option with the packet");
    observe(format_args!("{} bytes quoted", quoted.len()));
    assert!(
        packet(&frame).starts_with(quoted),
        "not of the packet: {quoted:02x?}"
    );
    // The option has whole words of 8 bytes.
    let readable = OPTION_HEAD + IPV6 + TCP;
    assert_eq!(quoted.len(), readable / 8 * 8 - OPTION_HEAD);
    Ok(())
}

/// A program that is asked about packets by netfilter, and takes no GSO packets, gets those only that are
/// whole: whose checksum is there, and which need not be cut up. The others are lost, and sent again; nothing
/// is made up.
fn nfqueue_without_gso() -> Outcome {
    const FIRST: u64 = 1000;
    const LEN: u64 = 512 << 10;
    const HEADERS: usize = 20 + 60;
    /// One for each timeout, at the least: this is enough to look at.
    const RESENT: u64 = 3;
    const QUEUED: Duration = Duration::from_secs(20);
    const REST: Duration = Duration::from_secs(30);
    let bench = Receiving::new()?;
    let (rx, tx) = (&bench.pair.rx, &bench.pair.tx);
    // All of it is sent at once, and nobody waits for room.
    setsockopt(
        &bench.connection.tx,
        sockopt::SndBufForce,
        &(4 * LEN as usize),
    )?;
    let mut queue = rx.ns.run(|| Nfqueue::new(128))?;
    let port = Receiving::PORT;
    rx.nft(&format!(
        "add table ip f ; \
         add chain ip f in {{ type filter hook input priority 0 ; }} ; \
         add rule ip f in tcp dport {port} queue num 0"
    ))?;
    let timeout = Some(Duration::from_millis(1));
    bench.connection.rx.set_read_timeout(timeout)?;
    let mut reader = Reader::new(&bench.connection.rx, &bench.map, bench.binding.id());
    let resent = || tx.snmp("Tcp", "RetransSegs");
    let mut read_up_to = |position: u64, mut queue: Option<&mut Nfqueue>, enough: u64, limit| {
        wait::up_to(limit, || {
            if let Some(queue) = &mut queue {
                queue.accept()?;
            }
            match reader.read_some() {
                Ok(more) => assert!(more, "the stream ended"),
                Err(err) if err.kind() == ErrorKind::WouldBlock => (),
                Err(err) => return Err(err),
            }
            Ok(reader.position >= position || resent()? >= enough)
        })
        .map(|waited| (waited, reader.position, reader.copied))
    };

    // netdevsim hands on what the sender left to the device: checksums, and cutting.
    tx.set_feature(Feature::Checksums, false)?;
    bench.start_sending(FIRST as usize)?;
    let (waited, position, _) = read_up_to(FIRST, Some(&mut queue), u64::MAX, QUEUED)?;
    assert_eq!(position, FIRST, "one segment did not come: {waited:?}");
    tx.set_feature(Feature::Checksums, true)?;
    let before = resent()?;
    bench.start_sending((LEN - FIRST) as usize)?;
    let (_, position, copied) = read_up_to(LEN, Some(&mut queue), before + RESENT, QUEUED)?;
    let resent = resent()? - before;
    diag(format_args!(
        "{position} of {LEN} bytes by {} packets through the queue, {resent} segments sent again",
        queue.packets
    ));
    assert!(queue.packets > 0, "the queue saw no packets");
    assert_eq!(
        position, FIRST,
        "bytes came whose checksum nobody could make"
    );
    assert!(queue.longest <= HEADERS, "{} bytes shown", queue.longest);
    assert_eq!(copied, 0, "bytes in host memory");
    assert!(resent >= RESENT, "{resent} segments sent again");

    rx.nft("delete table ip f")?;
    drop(queue);
    let (waited, position, copied) = read_up_to(LEN, None, u64::MAX, REST)?;
    assert!(waited.came, "{position} of {LEN} bytes: {waited:?}");
    assert_eq!((position, copied), (LEN, 0));
    reset_on_close(&bench.connection.tx)?;
    Ok(())
}

/// A rule that writes payload leaves device memory alone, and the checksum too.
fn payload_rewritten() -> Outcome {
    const WRITTEN: [u8; 4] = [1, 2, 3, 4];
    const LEN: usize = 100;
    let bench = Bench::new(PLAIN_QUEUE)?;
    let (peer, socket) = bench.peer()?;
    let mut probe = bench.0.probe_of(&socket);
    // Both are the first bytes behind a header without options; checksums are updated for the latter.
    for (rule, place) in [("@th,160,32", "TCP"), ("@ih,0,32", "payload")] {
        bench.0.pair.rx.nft(&format!(
            "add table ip f ; \
             add chain ip f in {{ type filter hook input priority 0 ; }} ; \
             add rule ip f in tcp dport {PORT} {rule} set 0x01020304"
        ))?;
        // Whether the rule does something at all.
        if place == "payload" {
            bench.steer(PLAIN_QUEUE)?;
            peer.send(segment(probe.position, LEN))?;
            wait_received(&socket, probe.position + LEN as u64);
            let got = probe.call(&Call::new(ALL));
            assert_eq!((got.len(), &got.data[..4]), (LEN, &WRITTEN[..]));
            traffic::compare(probe.position + 4, &got.data[4..LEN]);
            probe.position += LEN as u64;
        }
        bench.steer(QUEUE)?;
        peer.send(segment(probe.position, LEN))?;
        wait_received(&socket, probe.position + LEN as u64);
        probe.receive(&Call::new(ALL)).assert_frags(&[LEN as u32]);
        bench.0.pair.rx.nft("delete table ip f")?;
    }
    probe.give_back();
    Ok(())
}

/// A checksum that nobody has looked at cannot be looked at any more.
fn checksum_unknown() -> Outcome {
    let bench = Bench::new(QUEUE)?;
    let rx = &bench.0.pair.rx;
    rx.set_feature(Feature::Gro, false)?;
    let (peer, socket) = bench.peer()?;
    let mut probe = bench.0.probe_of(&socket);
    // Up to 76 bytes are summed up early.
    for len in [40, 1000] {
        let program = rx.ns.run(|| bpf::forget_checksums(rx.ifindex))?;
        let wrong = bench.count("Tcp", "InCsumErrors")?;
        let split = bench.queue("hds_packets")?;
        peer.send(segment(probe.position, len))?;
        soon("the segment to be dropped", || {
            Ok(bench.count("Tcp", "InCsumErrors")? > wrong)
        });
        assert_eq!(bench.count("Tcp", "InCsumErrors")? - wrong, 1);
        assert_eq!(bench.queue("hds_packets")? - split, 1, "in device memory");
        assert_eq!(received(&socket)?, probe.position, "bytes received");

        drop(program);
        let position = probe.position;
        peer.send_and_wait(segment(position, len), position + len as u64)?;
        probe.receive(&Call::new(ALL)).assert_frags(&[len as u32]);
    }
    probe.give_back();
    Ok(())
}

/// A connection of MPTCP to the port.
fn listen_mptcp(bench: &Bench) -> Result<TcpListener, Stop> {
    let listener = bench.0.pair.rx.stream_socket(Ip::V4, IPPROTO_MPTCP)?;
    let here = SockaddrStorage::from(address(Ip::V4, PORT));
    nix::sys::socket::bind(listener.as_raw_fd(), &here)?;
    nix::sys::socket::listen(&listener, Backlog::new(1)?)?;
    Ok(listener.into())
}

fn connect_mptcp(bench: &Bench) -> Result<Connection, Stop> {
    let pair = &bench.0.pair;
    let listener = listen_mptcp(bench)?;
    let socket = pair.tx.stream_socket(Ip::V4, IPPROTO_MPTCP)?;
    let connection = pair.connect_by(socket, &listener)?;
    let active = bench.count("MPTcpExt", "MPCapableSYNRX")?;
    assert_eq!(active, 1, "the connection is not one of MPTCP");
    Ok(connection)
}

/// MPTCP has checksums of its own, over the payload.
fn mptcp_checksums() -> Outcome {
    const LEN: usize = 64 << 10;
    let bench = Bench::new(QUEUE)?;
    let pair = &bench.0.pair;
    for end in [&pair.rx, &pair.tx] {
        end.sysctl("mptcp/checksum_enabled", "1")?;
    }
    let connection = connect_mptcp(&bench)?;
    let patience = wait::stretched(Duration::from_secs(2));
    connection.tx.set_write_timeout(Some(patience))?;
    connection.rx.set_read_timeout(Some(patience))?;
    // It may be reset before all of it is sent.
    let sent = (&connection.tx).write(traffic::bytes(0, LEN))?;
    assert!(sent > 0, "nothing was sent");
    soon("a checksum that is wrong", || {
        Ok(bench.count("MPTcpExt", "DataCsumErr")? > 0)
    });
    // Nobody gets what cannot be read, whether it goes on as TCP or not.
    let mut buffer = vec![0; LEN];
    let result = (&connection.rx).read(&mut buffer);
    diag(format_args!("recv: {result:?}"));
    assert!(!matches!(result, Ok(1..)), "received: {result:?}");
    assert!(buffer.iter().all(|&byte| byte == 0), "bytes were copied");
    reset_on_close(&connection.tx)?;
    reset_on_close(&connection.rx)?;
    Ok(())
}

/// MPTCP does not know `MSG_SOCK_DEVMEM`: who sends into device memory is told so, and nobody waits.
fn mptcp() -> Outcome {
    let bench = Bench::new(QUEUE)?;
    let connection = connect_mptcp(&bench)?;
    let reset = || bench.count("MPTcpExt", "MPRstTx");
    assert_eq!(reset()?, 0, "before there is anything");
    (&connection.tx).write_all(traffic::bytes(0, 1000))?;
    soon("the subflow to be reset", || Ok(reset()? > 0));
    assert!(bench.queue("hds_packets")? > 0, "none in device memory");
    reset_on_close(&connection.tx)?;
    reset_on_close(&connection.rx)?;
    Ok(())
}

/// With Fast Open data come before MPTCP looks at them: they are not taken, and come again, by plain TCP.
fn mptcp_fast_open() -> Outcome {
    const LEN: usize = 1000;
    let bench = Bench::new(QUEUE)?;
    let pair = &bench.0.pair;
    // Without cookies; the server on all sockets.
    pair.rx.sysctl("ipv4/tcp_fastopen", "1538")?;
    pair.tx.sysctl("ipv4/tcp_fastopen", "5")?;
    let listener = listen_mptcp(&bench)?;
    let sender = pair.tx.stream_socket(Ip::V4, IPPROTO_MPTCP)?;
    let to = SockaddrStorage::from(address(Ip::V4, PORT));
    let data = [IoSlice::new(traffic::bytes(0, LEN))];
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let sent = sendmsg(sender.as_raw_fd(), &data, &[], flags, Some(&to))?;
    assert_eq!(sent, LEN, "bytes sent");
    let (receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(wait::patience(Duration::from_secs(10))))?;
    let mut probe = bench.0.probe_of(&receiver);
    probe.receive(&Call::new(ALL)).assert_frags(&[LEN as u32]);
    probe.give_back();
    Ok(())
}

/// A signature that covers device memory cannot be checked, which is as if it were wrong.
fn signed(ip: Ip, signature: Signature) -> Outcome {
    const LEN: usize = 5000;
    let bench = Bench::new(PLAIN_QUEUE)?;
    let pair = &bench.0.pair;
    let connection = keys::connect(pair, ip, PORT, signature)?;
    let failures = || bench.count("TcpExt", signature.failures());
    assert_eq!(failures()?, 0, "before there is anything");
    let resets = bench.count("Tcp", "OutRsts")?;
    bench.steer(QUEUE)?;
    (&connection.tx).write_all(traffic::bytes(0, LEN))?;
    soon("a segment to be dropped", || Ok(failures()? > 0));
    assert!(bench.queue("hds_packets")? > 0, "none in device memory");
    assert_eq!(received(&connection.rx)?, 0, "bytes received");

    bench.steer(PLAIN_QUEUE)?;
    let mut buffer = [0; LEN];
    (&connection.rx).read_exact(&mut buffer)?;
    traffic::compare(0, &buffer);
    assert_eq!(bench.count("Tcp", "OutRsts")?, resets, "resets");
    Ok(())
}

fn md5_over_ipv4() -> Outcome {
    signed(Ip::V4, Signature::Md5)
}

fn md5_over_ipv6() -> Outcome {
    signed(Ip::V6, Signature::Md5)
}

fn ao_over_ipv4() -> Outcome {
    signed(Ip::V4, Signature::Ao)
}

fn ao_over_ipv6() -> Outcome {
    signed(Ip::V6, Signature::Ao)
}

/// Takes packets to [`PORT`] from a raw socket until there is one. Returns what there is of it, and how long
/// it was.
#[track_caller]
fn take_raw(socket: &OwnedFd, port_at: usize) -> (Vec<u8>, usize) {
    let mut buffer = vec![0; 4096];
    let mut len = 0;
    soon("the packet", || {
        buffer.fill(0);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        len = match nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, flags) {
            Ok(len) => len,
            Err(Errno::EAGAIN) => return Ok(false),
            Err(err) => return Err(err.into()),
        };
        Ok(buffer[port_at..port_at + 2] == PORT.to_be_bytes())
    });
    (buffer, len)
}

/// A socket of the receiving end's namespace.
fn socket(bench: &Bench, family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    bench.0.pair.rx.ns.run(|| {
        // SAFETY: Takes no pointers.
        let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
        match fd {
            // SAFETY: The kernel just made this file descriptor for us.
            0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

/// A raw socket gets the headers, and learns how long the packet was.
fn raw_socket(ip: Ip) -> Outcome {
    const PAYLOAD: [u8; 500] = [0xa7; 500];
    let bench = Bench::new(PLAIN_QUEUE)?;
    let family = match ip {
        Ip::V4 => libc::AF_INET,
        Ip::V6 => libc::AF_INET6,
    };
    // That of IPv6 gives no header of IPv6.
    let (skipped, port_at, headers) = match ip {
        Ip::V4 => (0, IPV4 + 2, IPV4 + TCP),
        Ip::V6 => (IPV6, 2, TCP),
    };
    let socket = socket(&bench, family, libc::SOCK_RAW, libc::IPPROTO_TCP)?;
    let host = Host::beside(&bench.0.pair, ip)?;
    let frame = host.segment(address(ip, PORT), false, &PAYLOAD)?;
    let whole = &packet(&frame)[skipped..];
    for (queue, readable) in [(PLAIN_QUEUE, whole.len()), (QUEUE, headers)] {
        bench.steer(queue)?;
        host.send(&frame)?;
        let (got, len) = take_raw(&socket, port_at);
        assert_eq!(len, whole.len(), "the length, queue {queue}");
        assert_eq!(got[..readable], whole[..readable], "queue {queue}");
        assert!(got[readable..].iter().all(|&byte| byte == 0), "more");
    }
    Ok(())
}

fn raw_socket_over_ipv4() -> Outcome {
    raw_socket(Ip::V4)
}

fn raw_socket_over_ipv6() -> Outcome {
    raw_socket(Ip::V6)
}

/// A tunnel in which packets share others takes none that it cannot read: those that would have shared with it leave.
fn through_iptfs() -> Outcome {
    const OTHER: u16 = PORT + 1;
    const PAYLOAD: [u8; 500] = [0xa7; 500];
    const HERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
    /// For both packets to come.
    const DELAY: Duration = Duration::from_millis(500);
    /// Where a frame has the protocol.
    const PROTOCOL: usize = ETHERNET + 9;
    let bench = Bench::new(QUEUE)?;
    bench.forward()?;
    bench.0.pair.steer_nth(2, OTHER, PLAIN_QUEUE)?;
    bench
        .0
        .pair
        .rx
        .ns
        .run(|| iptfs::send_through(BEHIND_V4, HERE, THERE, wait::patience(DELAY)))?;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let capture = socket(&bench, libc::AF_PACKET, libc::SOCK_RAW, protocol.into())?;
    let host = Host::beside(&bench.0.pair, Ip::V4)?;
    let readable = host.segment(SocketAddr::from((BEHIND_V4, OTHER)), false, &PAYLOAD)?;
    let unreadable = host.segment(SocketAddr::from((BEHIND_V4, PORT)), false, &PAYLOAD)?;

    let split = bench.queue("hds_packets")?;
    let mut lengths = Vec::new();
    for frames in [&[&readable][..], &[&readable, &unreadable]] {
        frames.iter().try_for_each(|frame| host.send(frame))?;
        let mut buffer = [0; 4096];
        soon("a packet of the tunnel", || {
            let flags = MsgFlags::MSG_DONTWAIT;
            match nix::sys::socket::recv(capture.as_raw_fd(), &mut buffer, flags) {
                Ok(len) if len > PROTOCOL && buffer[12..ETHERNET] == [8, 0] => {
                    let found = i32::from(buffer[PROTOCOL]) == libc::IPPROTO_ESP;
                    lengths.extend(found.then_some(len));
                    Ok(found)
                }
                Ok(_) | Err(Errno::EAGAIN) => Ok(false),
                Err(err) => Err(err.into()),
            }
        });
    }
    observe(format_args!("packets of the tunnel: {lengths:?}"));
    assert!(lengths[0] > readable.len(), "nothing is in it");
    assert_eq!(lengths[0], lengths[1], "what is in it");
    assert_eq!(bench.queue("hds_packets")? - split, 1, "in device memory");
    Ok(())
}

/// A socket of the kind that captures were made by before there were others gets the headers, too.
fn old_packet_socket() -> Outcome {
    const SOCK_PACKET: i32 = 10;
    const PAYLOAD: [u8; 500] = [0xa7; 500];
    let bench = Bench::new(PLAIN_QUEUE)?;
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let socket = socket(&bench, libc::AF_PACKET, SOCK_PACKET, protocol.into())?;
    let host = Host::beside(&bench.0.pair, Ip::V4)?;
    let frame = host.segment(address(Ip::V4, PORT), false, &PAYLOAD)?;
    for (queue, readable) in [(PLAIN_QUEUE, frame.len()), (QUEUE, ETHERNET + IPV4 + TCP)] {
        bench.steer(queue)?;
        host.send(&frame)?;
        let (got, len) = take_raw(&socket, ETHERNET + IPV4 + 2);
        assert_eq!(len, readable, "the length, queue {queue}");
        assert_eq!(got[..len], frame[..len], "queue {queue}");
    }
    Ok(())
}

/// A rule that drops what has a string in it drops what it cannot search.
fn string_searched() -> Outcome {
    const LEN: usize = 100;
    /// Where in the stream the string is.
    const STRING: u64 = 150;
    let bench = Bench::new(PLAIN_QUEUE)?;
    let (peer, socket) = bench.peer()?;
    let mut probe = bench.0.probe_of(&socket);
    let rx = &bench.0.pair.rx;
    rx.nft("add table ip f ; add chain ip f in { type filter hook input priority 0 ; }")?;
    rx.ns
        .run(|| xtables::drop_string("f", "in", traffic::bytes(STRING, 16)))?;

    peer.send(segment(0, LEN))?;
    wait_received(&socket, LEN as u64);
    probe.receive(&Call::new(ALL));
    // With the string in it, and a segment that ends before it.
    for (queue, len) in [(PLAIN_QUEUE, LEN), (QUEUE, LEN), (QUEUE, 40)] {
        bench.steer(queue)?;
        let split = bench.queue("hds_packets")?;
        peer.send(segment(probe.position, len))?;
        send_cut_off(&bench, &peer, probe.position)?;
        let came = received(&socket)? - probe.position;
        observe(format_args!("queue {queue}, {len} bytes: {came} came"));
        assert_eq!(came, 0, "bytes that came, queue {queue}");
        let split = bench.queue("hds_packets")? - split;
        assert_eq!(split, u64::from(queue == QUEUE), "in device memory");
    }

    rx.nft("delete table ip f")?;
    peer.send(segment(probe.position, LEN))?;
    wait_received(&socket, 2 * LEN as u64);
    probe.receive(&Call::new(ALL)).assert_frags(&[LEN as u32]);
    probe.give_back();
    Ok(())
}

/// A sample of a packet has its headers, and says how long it was.
fn sampled() -> Outcome {
    const PAYLOAD: [u8; 500] = [0xa7; 500];
    const ORIGINAL_SIZE: u16 = 2;
    const DATA: u16 = 6;
    let bench = Bench::new(PLAIN_QUEUE)?;
    let rx = &bench.0.pair.rx;
    let device = &rx.ifname;
    let samples = rx.ns.run(|| Group::join("psample", "packets"))?;
    rx.tc(&format!("qdisc add dev {device} clsact"))?;
    rx.tc(&format!(
        "filter add dev {device} ingress protocol ip flower ip_proto tcp dst_port {PORT} \
         action sample rate 1 group 1 trunc 1500"
    ))?;
    let host = Host::beside(&bench.0.pair, Ip::V4)?;
    let frame = host.segment(address(Ip::V4, PORT), false, &PAYLOAD)?;
    for (queue, readable) in [(PLAIN_QUEUE, frame.len()), (QUEUE, ETHERNET + IPV4 + TCP)] {
        bench.steer(queue)?;
        host.send(&frame)?;
        let mut sample = Vec::new();
        soon(&format!("a sample, queue {queue}"), || {
            sample = samples.next()?.unwrap_or_default();
            Ok(!sample.is_empty())
        });
        let value = |wanted| {
            attributes(&sample)
                .find(|&(kind, _)| kind == wanted)
                .map(|(_, value)| value)
        };
        let data = value(DATA).expect("data of the packet");
        assert_eq!(data, &frame[..readable], "queue {queue}");
        let len = (frame.len() as u32).to_ne_bytes();
        assert_eq!(value(ORIGINAL_SIZE), Some(&len[..]), "the length");
    }
    Ok(())
}

/// A program that outputs more of a packet than can be read is told so, and outputs nothing: not what was in
/// the buffer before.
fn event_output() -> Outcome {
    const PAYLOAD: [u8; 500] = [0xa7; 500];
    const FAULT: i64 = -(libc::EFAULT as i64);
    let bench = Bench::new(PLAIN_QUEUE)?;
    let rx = &bench.0.pair.rx;
    let host = Host::beside(&bench.0.pair, Ip::V4)?;
    let frame = host.segment(address(Ip::V4, PORT), false, &PAYLOAD)?;
    // The headers, a byte more, all of it, and a byte more.
    let headers = ETHERNET + IPV4 + TCP;
    let sizes = [headers, headers + 1, frame.len(), frame.len() + 1];
    let outputs = rx
        .ns
        .run(|| Outputs::of_packets(rx.ifindex, frame.len(), &sizes))?;
    for (queue, expected) in [
        (PLAIN_QUEUE, [false, false, false, true]),
        (QUEUE, [false, true, true, true]),
    ] {
        bench.steer(queue)?;
        outputs.forget()?;
        host.send(&frame)?;
        let mut answers = Vec::new();
        soon("the program to run", || {
            answers = outputs.answers()?;
            Ok(answers.iter().all(|&answer| answer != Outputs::NONE))
        });
        // What else it is told depends on whether the kernel has such events at all: nobody listens.
        diag(format_args!("queue {queue}: {answers:?}"));
        let faults: Vec<_> = answers.iter().map(|&answer| answer == FAULT).collect();
        observe(format_args!("queue {queue}, {sizes:?}: EFAULT {faults:?}"));
        assert_eq!(faults, expected, "EFAULT, queue {queue}");
    }
    Ok(())
}

/// Sends a message to a socket, the head of it into host memory and the rest into device memory.
fn send_half(bench: &Receiving, head: &[u8], rest: usize) -> io::Result<()> {
    bench.steer(PLAIN_QUEUE)?;
    (&bench.connection.tx).write_all(head)?;
    wait_received(&bench.connection.rx, head.len() as u64);
    bench.steer(QUEUE)?;
    bench.start_sending(rest)
}

/// Waits until the socket has this error.
fn soon_has(socket: &TcpStream, expected: Errno) {
    soon("an error", || {
        match devmem_testlib::sockopt::get(socket, libc::SOL_SOCKET, libc::SO_ERROR)? {
            0 => Ok(false),
            error => {
                assert_eq!(Errno::from_raw(error), expected);
                Ok(true)
            }
        }
    });
}

/// A record that is longer than the receive buffer is copied while it comes.
fn tls_with_a_small_buffer() -> Outcome {
    let bench = Receiving::new()?;
    let socket = &bench.connection.rx;
    tls::start(socket, Way::Rx)?;
    // The least there is.
    setsockopt(socket, sockopt::RcvBuf, &1)?;
    send_half(&bench, &tls::record(16_000), 1000)?;
    soon_has(socket, Errno::EFAULT);
    Ok(())
}

/// Messages for a sockmap are put together of segments, all of which have to be readable.
fn parsed_half_in_device_memory() -> Outcome {
    const MESSAGE: i32 = 100;
    const HEAD: usize = 10;
    let bench = Receiving::new()?;
    let socket = &bench.connection.rx;
    let map = SockMap::of_messages(MESSAGE)?;
    map.add(socket)?;
    send_half(&bench, &[0; HEAD], MESSAGE as usize - HEAD)?;
    soon_has(socket, Errno::EFAULT);
    drop(map);
    Ok(())
}

/// A map of congested ports the header of which can be read.
fn rds_congestion_map() -> Outcome {
    /// Connections are from the smaller address to the larger one.
    const LARGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
    let _modules = rds::Loaded::new()?;
    let bench = Bench::new(QUEUE)?;
    let (rx, tx) = (&bench.0.pair.rx, &bench.0.pair.tx);
    rx.ip(&format!("address add {LARGER}/24 dev {}", rx.ifname))?;
    let steer = |queue| bench.0.pair.steer_nth(1, rds::PORT, queue);
    steer(PLAIN_QUEUE)?;
    let to = SocketAddr::from((LARGER, rds::PORT));
    let mut socket = tx.ns.run(|| TcpStream::connect(to))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(wait::patience(Duration::from_secs(30))))?;
    socket.write_all(&rds::map_header())?;
    soon("the header to be acknowledged", || {
        Ok(traffic::unacknowledged(&socket)? == 0)
    });

    steer(QUEUE)?;
    let split = bench.queue("hds_packets")?;
    socket.write_all(&[0; rds::MAP])?;
    // It has something to say, too, and a map of its own.
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => (),
            Err(err) if err.kind() == ErrorKind::ConnectionReset => break,
            Err(err) => return Err(err.into()),
        }
    }
    assert!(bench.queue("hds_packets")? > split, "none in device memory");
    Ok(())
}

/// What the bound queue has put into device memory, and what of that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    packets: u64,
    bytes: u64,
    in_use: Option<u64>,
}

impl Split {
    fn of(bench: &Bench) -> io::Result<Self> {
        Ok(Self {
            packets: bench.queue("hds_packets")?,
            bytes: bench.queue("hds_bytes")?,
            in_use: provider::binding(bench.0.binding.id())?.map(|binding| binding.in_use),
        })
    }
}

/// Sends a segment that is shorter than its IP header says, and waits until that was found out. It goes to
/// host memory, and what was sent to the same queue before has been received, too.
#[track_caller]
fn send_cut_off(bench: &Bench, peer: &Peer, position: u64) -> io::Result<()> {
    let truncated = || bench.count("IpExt", "InTruncatedPkts");
    let before = truncated()?;
    let frame = peer.frame(segment(position, 100))?;
    peer.send_frame(&frame[..frame.len() - 50])?;
    soon("the packet to be dropped", || Ok(truncated()? > before));
    assert_eq!(truncated()? - before, 1, "packets that were cut off");
    Ok(())
}

/// Where what comes in is redirected to, for somebody to shape it.
struct Ifb<'b>(&'b End);

impl<'b> Ifb<'b> {
    const NAME: &'static str = "i0";

    /// Has all of IPv4 redirected that comes in at this end.
    fn of(end: &'b End) -> io::Result<Self> {
        let (ifb, device) = (Self::NAME, &end.ifname);
        end.ip(&format!("link add {ifb} type ifb"))?;
        end.ip(&format!("link set {ifb} up"))?;
        end.tc(&format!("qdisc add dev {device} ingress"))?;
        end.tc(&format!(
            "filter add dev {device} parent ffff: protocol ip u32 match u32 0 0 \
             action mirred egress redirect dev {ifb}"
        ))?;
        Ok(Self(end))
    }

    /// Packets so far.
    fn packets(&self) -> io::Result<u64> {
        let devices = self
            .0
            .ns
            .run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        let count = devices
            .lines()
            .filter_map(|line| line.trim_start().split_once(':'))
            .find(|(name, _)| *name == Self::NAME)
            .and_then(|(_, counts)| counts.split_whitespace().nth(1)?.parse().ok());
        Ok(count.expect("an ifb has counters"))
    }
}

/// Who shapes what comes in has it redirected to an ifb, which reads nothing of it.
fn through_an_ifb() -> Outcome {
    const LEN: u32 = 1000;
    let bench = Bench::new(QUEUE)?;
    let (peer, socket) = bench.peer()?;
    let mut probe = bench.0.probe_of(&socket);
    let ifb = Ifb::of(&bench.0.pair.rx)?;
    peer.send_and_wait(segment(0, LEN as usize), u64::from(LEN))?;
    probe.receive(&Call::new(ALL)).assert_frags(&[LEN]);
    probe.give_back();
    let taken = ifb.packets()?;
    assert!(taken > 0, "packets through the ifb: {taken}");
    Ok(())
}

/// A shaper may cut a large packet into segments, which have its memory together: the device gets that again
/// when the last of them is read, and not before.
fn cut_by_a_shaper() -> Outcome {
    /// Twice what the packets take: a slow machine makes TCP send again.
    const BUFFERS: usize = 2048;
    /// More than the device has posted and the page pool has in store: then they come to what was given back.
    const PACKETS: usize = 600;
    const MSS: usize = 1448;
    /// A packet for the device, in one buffer, and two segments: however slow its path, TCP cuts it no smaller.
    const LEN: usize = 2 * MSS;
    let bench = Receiving::into_memory(DmaBuf::udmabuf(BUFFERS * PAGE)?)?;
    let rx = &bench.pair.rx;
    let ifb = Ifb::of(rx)?;
    rx.tc(&format!(
        "qdisc add dev {} root tbf rate 1gbit burst 3000 limit 1000000",
        Ifb::NAME
    ))?;
    setsockopt(&bench.connection.rx, sockopt::RcvBufForce, &(16 << 20))?;
    let before = ifb.packets()?;
    for _ in 0..PACKETS {
        bench.send(&[LEN])?;
    }
    let taken = ifb.packets()? - before;
    assert!(
        taken >= (PACKETS * LEN / MSS) as u64,
        "the shaper has cut nothing: {taken} packets"
    );
    let mut reader = Reader::new(&bench.connection.rx, &bench.map, bench.binding.id());
    reader.read_until(bench.sent())?;
    reader.assert_all_device_memory();
    Ok(())
}

/// A socket that is asked for flow labels keeps the last packet for its headers, and not its payload.
fn kept_for_its_headers() -> Outcome {
    const LEN: u64 = 1000;
    let Bench(bench) = Bench::new(QUEUE)?;
    let connection = bench.pair.connect(&bench.pair.listen(Ip::V6, PORT)?)?;
    devmem_testlib::sockopt::set(
        &connection.rx,
        libc::IPPROTO_IPV6,
        libc::IPV6_FLOWINFO,
        1_i32,
    )?;
    let id = bench.binding.id();
    traffic::send(&connection.tx, 0, LEN, LEN as usize)?;
    let mut reader = Reader::new(&connection.rx, &bench.map, id);
    reader.read_until(LEN)?;
    reader.assert_all_device_memory();
    drop(bench.binding);
    provider::all_buffers_back(id);
    Ok(())
}

/// What makes a frame long enough is no payload, and takes no device memory.
fn padded() -> Outcome {
    let bench = Bench::new(QUEUE)?;
    let (peer, socket) = bench.peer()?;
    let mut probe = bench.0.probe_of(&socket);
    let offloaded = Offloaded::at(&bench.0.pair.tx)?;
    // The checksum is for the device to make, or it is there.
    for offload in [true, false] {
        let send = |len| {
            let frame = frames::pad(peer.frame(segment(probe.position, len))?);
            match offload {
                true => offloaded.send(&frame),
                false => peer.send_frame(&frame),
            }
        };
        let before = Split::of(&bench)?;
        send(0)?;
        send_cut_off(&bench, &peer, probe.position)?;
        assert_eq!(Split::of(&bench)?, before, "an ACK, offload: {offload}");

        send(1)?;
        wait_received(&socket, probe.position + 1);
        let now = Split::of(&bench)?;
        let more = (now.packets - before.packets, now.bytes - before.bytes);
        observe(format_args!("offload {offload}: {more:?} packets, bytes"));
        assert_eq!(more, (1, 1), "a byte, offload: {offload}");
        probe.receive(&Call::new(ALL)).assert_frags(&[1]);
        probe.give_back();
    }
    Ok(())
}

/// What is cut off stays in host memory.
fn cut_off() -> Outcome {
    let bench = Bench::new(QUEUE)?;
    let (peer, socket) = bench.peer()?;
    let mut probe = bench.0.probe_of(&socket);
    let before = Split::of(&bench)?;
    send_cut_off(&bench, &peer, 0)?;
    assert_eq!(Split::of(&bench)?, before);
    assert_eq!(received(&socket)?, 0, "bytes received");
    peer.send_and_wait(segment(0, 100), 100)?;
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);
    probe.give_back();
    Ok(())
}

/// So is a SYN until the handshake is over, or given up, and it may have a payload.
fn syn_kept_for_its_headers() -> Outcome {
    let bench = Bench::new(QUEUE)?;
    let pair = &bench.0.pair;
    let listener = pair.listen(Ip::V6, PORT)?;
    devmem_testlib::sockopt::set(
        &listener,
        libc::IPPROTO_IPV6,
        libc::IPV6_RECVHOPLIMIT,
        1_i32,
    )?;
    let host = Host::beside(pair, Ip::V6)?;
    host.send(&host.syn(address(Ip::V6, PORT), traffic::bytes(0, 1000))?)?;
    soon("the SYN to come", || Ok(bench.queue("hds_packets")? > 0));
    let id = bench.0.binding.id();
    drop(bench.0.binding);
    provider::all_buffers_back(id);
    drop(listener);
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        fragmented,
        fragmentation_needed,
        packet_too_big,
        redirected,
        rejected,
        nfqueue_without_gso,
        payload_rewritten,
        checksum_unknown,
        mptcp_checksums,
        mptcp,
        mptcp_fast_open,
        through_an_ifb,
        cut_by_a_shaper,
        kept_for_its_headers,
        syn_kept_for_its_headers,
        md5_over_ipv4,
        md5_over_ipv6,
        ao_over_ipv4,
        ao_over_ipv6,
        raw_socket_over_ipv4,
        raw_socket_over_ipv6,
        old_packet_socket,
        through_iptfs,
        string_searched,
        sampled,
        event_output,
        tls_with_a_small_buffer,
        parsed_half_in_device_memory,
        rds_congestion_map,
        padded,
        cut_off,
    ])
}
