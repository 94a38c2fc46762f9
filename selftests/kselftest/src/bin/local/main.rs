// SPDX-License-Identifier: GPL-2.0

//! Device memory between processes of one machine: what is sent from local bindings, by lo, netkit and veth, and by channels,
//! which need none.

mod copied;
mod passed;

use std::io;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Extent;
use devmem::Receiver;
use devmem::diag;
use devmem::diag::Held;
use devmem::diag::Holder;
use devmem::dmabuf::Mapping;
use devmem::netdev::Netdev;
use devmem::netns::Netns;
use devmem::recv::take_runs;
use devmem::send::enable_zerocopy;
use devmem::status::State;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Sending;
use devmem_testlib::netkit::Netkit;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Got;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::received;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::tcp_info;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::pump::reset_on_close;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::extent;
use devmem_testlib::tx::fails;
use devmem_testlib::xdp;
use nix::errno::Errno;

const PAGE: u64 = 4096;
/// More than what a call may bring.
const ALL: usize = 1 << 20;
/// Bytes of a net_iov of a local binding.
const EDGE: u64 = 1 << 31;

/// The parts of the dma-buf that a call told of, and their tokens.
fn parts(got: &Got) -> (Vec<Extent>, Vec<u32>) {
    let part = |frag: &devmem::cmsg::DmabufCmsg| extent(frag.frag_offset, frag.frag_size.into());
    (
        got.frags().map(part).collect(),
        got.frags().map(|frag| frag.frag_token).collect(),
    )
}

/// Joins parts that follow each other.
fn joined(parts: &[Extent]) -> Vec<Extent> {
    let mut all: Vec<Extent> = Vec::new();
    for part in parts {
        match all.last_mut() {
            Some(last) if last.offset + last.len == part.offset => last.len += part.len,
            _ => all.push(*part),
        }
    }
    all
}

/// Receives so many bytes, all in device memory of this binding.
#[track_caller]
fn told(id: u32, probe: &mut Probe<'_>, bytes: u64) -> (Vec<Extent>, Vec<u32>) {
    let (mut all, mut tokens) = (Vec::new(), Vec::new());
    while tx::total(&all) < bytes {
        let got = probe.call(&Call::new(ALL));
        assert!(!got.is_empty(), "the stream ended");
        assert_eq!(got.frags().count(), got.pieces.len(), "{got:?}");
        assert!(got.frags().all(|frag| frag.dmabuf_id == id), "{got:?}");
        let (parts, told) = parts(&got);
        all.extend(parts);
        tokens.extend(told);
    }
    (joined(&all), tokens)
}

#[track_caller]
fn returns(socket: &TcpStream, tokens: &[u32]) -> io::Result<()> {
    for &start in tokens {
        assert_eq!(dontneed(socket, &[TokenRange { start, count: 1 }])?, 1);
    }
    Ok(())
}

/// Waits until nothing of what was sent is the sender's TCP's any more.
fn acknowledged(socket: &TcpStream) -> io::Result<()> {
    soon("all to be acknowledged", || {
        Ok(traffic::unacknowledged(socket)? == 0)
    });
    // Who is about to free it has the socket locked.
    tcp_info(socket).map(drop)
}

/// Checks that a sender waits for its completions: readers have what it has sent, and nobody else.
#[track_caller]
fn nothing_completes(socket: &TcpStream, completions: &mut Completions) -> io::Result<()> {
    acknowledged(socket)?;
    completions.read(socket)?;
    assert_eq!(completions.done, [], "completions");
    Ok(())
}

/// A probe of the receiving end.
fn probe<'b>(bench: &'b Sending, map: &'b Mapping) -> Probe<'b> {
    Probe::new(&bench.connection.rx, &[(bench.binding.id(), map)]).quiet()
}

/// Memory of nothing, of so many net_iovs. As large a segment has no room in a scatterlist.
fn nothing_of(niovs: u64) -> io::Result<OddDmaBuf> {
    let segment = |n| Segment {
        addr: n * EDGE,
        len: EDGE,
    };
    Shape::new(&(0..niovs).map(segment).collect::<Vec<_>>()).of_nothing()
}

/// What stands for the memory of nothing where it is not looked at.
fn unseen() -> io::Result<Mapping> {
    DmaBuf::udmabuf(PAGE as usize)?.map()
}

/// The sockets at the receiving end that hold something.
fn holders(ns: &Netns) -> io::Result<Vec<Holder>> {
    let mut all = ns.run(|| Ok(diag::holders()?))?;
    all.retain(|holder| holder.local.port() == Sending::PORT);
    Ok(all)
}

/// Checks that there is one, and what it holds of this binding: tokens, and bytes that are not read. Tokens stand for
/// no buffers.
#[track_caller]
fn assert_holds(ns: &Netns, id: u32, tokens: u32, queued: u64) -> io::Result<()> {
    let all = holders(ns)?;
    let [holder] = all.as_slice() else {
        panic!("one socket was expected: {all:?}");
    };
    let numbers = |held: &Held| (held.id, held.tokens, held.bytes, held.queued);
    let told: Vec<_> = holder.held.iter().map(numbers).collect();
    assert_eq!(told, [(Some(id), tokens, 0, queued)]);
    Ok(())
}

/// What is told of an abort, once.
#[track_caller]
fn assert_aborted(socket: &TcpStream) -> io::Result<()> {
    let error = socket.take_error()?.map(|err| err.raw_os_error());
    assert_eq!(error, Some(Some(libc::ECONNABORTED)));
    Ok(())
}

/// A reader is told where it is, and the sender is told when the reader has given it back.
fn told_where_it_is() -> Outcome {
    for joint in Joint::ALL {
        let bench = Sending::local(joint)?;
        let map = bench.memory.map()?;
        let mut probe = probe(&bench, &map);
        let sent = [extent(7, 5000), extent(3 * PAGE, 40_000), extent(100, 1)];
        bench.sends(&bench.call(&sent));
        let (parts, tokens) = told(bench.binding.id(), &mut probe, tx::total(&sent));
        assert_eq!(parts, sent, "{joint:?}");

        let mut completions = Completions::default();
        nothing_completes(&bench.connection.tx, &mut completions)?;
        let (last, others) = tokens.split_last().expect("tokens");
        returns(&bench.connection.rx, others)?;
        nothing_completes(&bench.connection.tx, &mut completions)?;
        returns(&bench.connection.rx, &[*last])?;
        bench.completes()?;
    }
    Ok(())
}

/// Both families, and many calls: each byte is where the reader is told that it is.
fn a_stream() -> Outcome {
    let ways = Joint::ALL
        .into_iter()
        .flat_map(|joint| [(joint, Ip::V4), (joint, Ip::V6)]);
    for (joint, ip) in ways {
        let memory = DmaBuf::udmabuf(1 << 20)?;
        tx::fill(&memory)?;
        let pair = Pair::local(joint)?;
        let binding = pair.tx.bind_tx(&memory)?;
        let connection = pair.connect(&pair.listen(ip, Sending::PORT)?)?;
        enable_zerocopy(&connection.tx)?;
        let map = memory.map()?;
        let parts: Vec<_> = (0..64).map(|n| extent(n * 16_000, 9000 + n)).collect();

        thread::scope(|scope| -> Outcome {
            let sender = scope.spawn(|| -> io::Result<()> {
                for &part in &parts {
                    let call = tx::Call::new(binding.id(), &[part]);
                    assert_eq!(call.send(&connection.tx)? as u64, part.len);
                }
                Ok(())
            });
            let mut receiver = Receiver::new(&connection.rx);
            let copied = tx::expect_in_device_memory(&mut receiver, &map, &parts)?;
            assert_eq!(copied, 0, "bytes in host memory");
            drop(receiver);
            sender.join().expect("a thread that sends")?;
            let mut completions = Completions::default();
            completions.wait(&connection.tx, parts.len() as u32)?;
            assert!(!completions.copied);
            Ok(())
        })?;
    }
    Ok(())
}

/// A peek is told, too, and has to be given back.
fn peeked() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let map = bench.memory.map()?;
    let mut probe = probe(&bench, &map);
    bench.sends(&bench.call(&[extent(0, 100)]));
    wait_received(&bench.connection.rx, 100);
    let got = probe.call(&Call::new(ALL).flags(libc::MSG_PEEK));
    got.assert_frags(&[100]);
    let (_, peeked) = parts(&got);
    let (_, tokens) = told(bench.binding.id(), &mut probe, 100);
    assert_ne!(peeked, tokens);
    returns(&bench.connection.rx, &tokens)?;
    nothing_completes(&bench.connection.tx, &mut Completions::default())?;
    returns(&bench.connection.rx, &peeked)?;
    bench.completes()
}

/// What nobody reads is the sender's again when its reader is gone, and so is what he keeps.
fn the_reader_goes() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let map = bench.memory.map()?;
    bench.sends(&bench.call(&[extent(0, 3000)]));
    wait_received(&bench.connection.rx, 3000);
    bench.sends(&bench.call(&[extent(0, 4000)]));
    wait_received(&bench.connection.rx, 7000);
    let mut probe = probe(&bench, &map);
    let got = probe.call(&Call::new(3000));
    assert_eq!(got.len(), 3000);
    let mut completions = Completions::default();
    nothing_completes(&bench.connection.tx, &mut completions)?;
    drop(probe);
    let Sending {
        pair,
        memory: _memory,
        binding: _binding,
        connection,
        ..
    } = bench;
    drop(connection.rx);
    completions.wait(&connection.tx, 2)?;
    assert!(!completions.copied);
    drop(pair);
    Ok(())
}

/// Any exporter's memory can be sent: no device is attached, and the CPU does not have to get at it.
fn any_exporter() -> Outcome {
    let odd = Shape::new(&[Segment {
        addr: 0x123,
        len: 3 * PAGE + 5,
    }])
    .attach_error(libc::EPERM)
    .of_nothing()?;
    let bench = Sending::local_from(Joint::Netkit, odd.as_any()?)?;
    assert_eq!(odd.state()?.attached, 0);
    let sent = [extent(1, 2 * PAGE), extent(3 * PAGE + 4, 1)];
    bench.sends(&bench.call(&sent));
    bench.refused(&bench.call(&[extent(3 * PAGE + 5, 1)]), Errno::EFAULT);
    let unseen = unseen()?;
    let mut probe = probe(&bench, &unseen);
    let (got, tokens) = told(bench.binding.id(), &mut probe, tx::total(&sent));
    assert_eq!(got, sent);
    returns(&bench.connection.rx, &tokens)?;
    bench.completes()?;
    assert_eq!(odd.state()?.attached, 0);
    Ok(())
}

/// Offsets beyond what 32 bits can say, and across the end of a net_iov.
fn far_into_the_memory() -> Outcome {
    let bench = Sending::local_from(Joint::Lo, nothing_of(5)?.as_any()?)?;
    let sent = [
        extent(EDGE - 10, 20),
        extent(3 * EDGE - 1, 50_000),
        extent(5 * EDGE - 1, 1),
    ];
    bench.sends(&bench.call(&sent));
    wait_received(&bench.connection.rx, tx::total(&sent));
    let unseen = unseen()?;
    let mut probe = probe(&bench, &unseen);
    let (got, tokens) = told(bench.binding.id(), &mut probe, tx::total(&sent));
    assert_eq!(got, sent);
    returns(&bench.connection.rx, &tokens)?;
    bench.refused(&bench.call(&[extent(5 * EDGE, 1)]), Errno::EFAULT);
    bench.completes()
}

/// A reader who takes runs gets no token for two packets, though what is in them follows: each is the sender's again by
/// itself. What is in one packet has one.
fn runs() -> Outcome {
    let bench = Sending::local_from(Joint::Lo, nothing_of(2)?.as_any()?)?;
    let (tx, rx) = (&bench.connection.tx, &bench.connection.rx);
    // Not all providers know of runs.
    let takes_runs = take_runs(rx)?;
    let unseen = unseen()?;
    let mut held = probe(&bench, &unseen);
    for (offset, received) in [(EDGE - 100, 100), (EDGE, 200)] {
        bench.sends(&bench.call(&[extent(offset, 100)]));
        wait_received(rx, received);
    }
    let (got, tokens) = told(bench.binding.id(), &mut held, 200);
    assert_eq!((got, tokens.len()), (vec![extent(EDGE - 100, 200)], 2));
    let mut completions = Completions::default();
    nothing_completes(tx, &mut completions)?;
    returns(rx, &tokens[1..])?;
    soon("the second call to be completed", || {
        completions.read(tx)?;
        Ok(completions.done == [1])
    });
    returns(rx, &tokens[..1])?;
    completions.wait(tx, 2)?;

    let mut held = probe(&bench, &unseen);
    bench.sends(&bench.call(&[extent(EDGE - 10, 20)]));
    let (got, tokens) = told(bench.binding.id(), &mut held, 20);
    assert_eq!(got, [extent(EDGE - 10, 20)]);
    assert_eq!(tokens.len(), if takes_runs { 1 } else { 2 });
    returns(rx, &tokens)?;
    completions.wait(tx, 3)?;
    assert!(!completions.copied);
    Ok(())
}

/// A packet, and so a frag and its token, is as large as the device lets TCP make it.
fn larger_packets() -> Outcome {
    const ALL_OF_IT: u64 = 900_000;
    let memory = DmaBuf::udmabuf(1 << 20)?;
    tx::fill(&memory)?;
    let pair = Pair::local(Joint::Lo)?;
    pair.rx.sysctl("ipv4/tcp_rmem", "4096 4194304 6291456")?;
    pair.tx.set_big_tcp(524_280)?;
    let binding = pair.tx.bind_tx(&memory)?;
    let connection = pair.connect(&pair.listen(Ip::V4, Sending::PORT)?)?;
    enable_zerocopy(&connection.tx)?;
    let call = tx::Call::new(binding.id(), &[extent(0, ALL_OF_IT)]);
    assert_eq!(call.send(&connection.tx)? as u64, ALL_OF_IT);
    wait_received(&connection.rx, ALL_OF_IT);
    let map = memory.map()?;
    let mut probe = Probe::new(&connection.rx, &[(binding.id(), &map)]).quiet();
    let mut sizes = Vec::new();
    while sizes.iter().sum::<u32>() < ALL_OF_IT as u32 {
        let got = probe.call(&Call::new(ALL));
        assert!(!got.is_empty(), "the stream ended");
        sizes.extend(got.sizes());
    }
    assert!(sizes.iter().any(|&size| size > 1 << 16), "{sizes:?}");
    probe.give_back();
    Completions::default().wait(&connection.tx, 1)?;
    Ok(())
}

/// What is sent is read although the owner is gone. The binding stays for as long as somebody has something of it,
/// unread or as tokens, and so who has can be found.
fn the_owner_goes() -> Outcome {
    let bench = Sending::local(Joint::Veth)?;
    let map = bench.memory.map()?;
    bench.sends(&bench.call(&[extent(0, 3000)]));
    wait_received(&bench.connection.rx, 3000);
    bench.sends(&bench.call(&[extent(9000, 10_000)]));
    wait_received(&bench.connection.rx, 13_000);
    let Sending {
        pair,
        binding,
        connection,
        memory,
        ..
    } = bench;
    let id = binding.id();
    let mut probe = Probe::new(&connection.rx, &[(id, &map)]).quiet();
    let got = probe.call(&Call::new(3000));
    let (parts, kept) = parts(&got);
    assert_eq!(joined(&parts), [extent(0, 3000)]);

    drop(binding);
    drop(memory);
    fails(
        tx::Call::new(id, &[extent(0, 1)]).send(&connection.tx),
        Errno::EINVAL,
    );
    assert_holds(&pair.rx.ns, id, kept.len() as u32, 10_000)?;
    let (parts, tokens) = told(id, &mut probe, 10_000);
    assert_eq!(parts, [extent(9000, 10_000)]);
    returns(&connection.rx, &tokens)?;
    let mut completions = Completions::default();
    soon("the second call to be completed", || {
        completions.read(&connection.tx)?;
        Ok(completions.done == [1])
    });

    assert_holds(&pair.rx.ns, id, kept.len() as u32, 0)?;
    let status = pair.tx.ns.run(|| Ok(Netdev::open()?.binding(id)?))?;
    assert_eq!(status.state, State::Unbound);
    returns(&connection.rx, &kept)?;
    completions.wait(&connection.tx, 2)?;
    provider::all_buffers_back(id);
    Ok(())
}

/// By its tokens a reader holds what an owner who is gone has left, and that its network namespace. Both go when the
/// reader is made to give them back: by the binding, from that namespace, or where the reader is.
fn the_namespace_goes() -> Outcome {
    for by_the_binding in [true, false] {
        let bench = Sending::local(Joint::Veth)?;
        let map = bench.memory.map()?;
        bench.sends(&bench.call(&[extent(0, 100)]));
        wait_received(&bench.connection.rx, 100);
        let Sending {
            pair: Pair { rx, tx },
            memory,
            binding,
            connection:
                Connection {
                    rx: reader,
                    tx: sender,
                },
            ..
        } = bench;
        let id = binding.id();
        let mut probe = Probe::new(&reader, &[(id, &map)]).quiet();
        let (_, tokens) = told(id, &mut probe, 100);
        acknowledged(&sender)?;
        let left = tx.ns.run(Netns::current)?;
        drop((binding, memory, sender, tx));

        assert_holds(&rx.ns, id, 1, 0)?;
        if by_the_binding {
            let flushed = left.run(|| Ok(Netdev::open()?.flush(id)?))?;
            assert_eq!(flushed.aborted, 1, "{flushed:?}");
        }
        drop(left);
        if !by_the_binding {
            rx.abort_connections(Sending::PORT)?;
        }
        assert_aborted(&reader)?;
        let range = TokenRange {
            start: tokens[0],
            count: 1,
        };
        assert_eq!(dontneed(&reader, &[range])?, 0);
        provider::all_buffers_back(id);
        provider::wait_for("the other end of the pair to go", || {
            let here = rx.ns.ifindex(&rx.ifname);
            Ok(here.is_err_and(|err| err.raw_os_error() == Some(libc::ENODEV)))
        });
    }
    Ok(())
}

/// The same if it is the device that goes.
fn the_device_goes() -> Outcome {
    let bench = Sending::local(Joint::Netkit)?;
    let map = bench.memory.map()?;
    bench.sends(&bench.call(&[extent(5, 6000)]));
    wait_received(&bench.connection.rx, 6000);
    bench.pair.tx.ip("link del there")?;
    fails(
        bench.call(&[extent(0, 1)]).send(&bench.connection.tx),
        Errno::EHOSTUNREACH,
    );
    let status = bench
        .pair
        .tx
        .ns
        .run(|| Ok(Netdev::open()?.binding(bench.binding.id())?))?;
    assert_eq!(status.state, State::Unbound);
    let mut probe = probe(&bench, &map);
    let (parts, tokens) = told(bench.binding.id(), &mut probe, 6000);
    assert_eq!(parts, [extent(5, 6000)]);
    returns(&bench.connection.rx, &tokens)?;
    Ok(())
}

/// Nothing gets to a device that does DMA: it is dropped there, and counted.
fn forwarded_to_a_nic() -> Outcome {
    for joint in [Joint::Veth, Joint::Netkit] {
        let nic = Pair::new()?;
        let container = nic.tx.container(joint)?;
        nic.rx.ip("route add 198.51.100.0/24 via 192.0.2.2")?;
        let listener = nic.listen(Ip::V4, Sending::PORT)?;
        let to = listener.local_addr()?;
        let mut tx = container.ns.run(|| TcpStream::connect(to))?;
        let (rx, _) = listener.accept()?;
        // What is in host memory gets through.
        tx.write_all(&[1])?;
        wait_received(&rx, 1);

        let memory = DmaBuf::udmabuf(PAGE as usize)?;
        let binding = container.bind_tx(&memory)?;
        enable_zerocopy(&tx)?;
        let before = nic.tx.tx_dropped()?;
        let sent = tx::Call::new(binding.id(), &[extent(0, 100)]).send(&tx)?;
        assert_eq!(sent, 100);
        soon("a packet to be dropped", || {
            Ok(nic.tx.tx_dropped()? > before)
        });
        soon("it to be sent again", || Ok(tx::tries_again(&tx)? > 0));
        assert_eq!(received(&rx)?, 1, "{joint:?}");
        reset_on_close(&tx)?;
    }
    Ok(())
}

/// A program of XDP at the other end of a veth has packets copied for it: what cannot be is dropped.
fn before_xdp() -> Outcome {
    let bench = Sending::local(Joint::Veth)?;
    let (tx, there) = (&bench.connection.tx, &bench.pair.rx);
    let program = there.ns.run(|| xdp::attach_to_driver(there.ifindex))?;
    bench.sends(&bench.call(&[extent(0, 100)]));
    soon("it to be sent again", || Ok(tx::tries_again(tx)? > 0));
    assert_eq!(received(&bench.connection.rx)?, 0);
    drop(program);
    wait_received(&bench.connection.rx, 100);
    Ok(())
}

/// The binding of a NIC is not one by which to send to this machine, nor a local one by which to send by a NIC.
fn of_the_other_kind() -> Outcome {
    let nic = Sending::new()?;
    let here = &nic.pair.tx;
    here.ip("link set lo up")?;
    let (listener, connected) = here.ns.run(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let connected = TcpStream::connect(listener.local_addr()?)?;
        Ok((listener, connected))
    })?;
    enable_zerocopy(&connected)?;
    fails(nic.call(&[extent(0, 1)]).send(&connected), Errno::ENODEV);

    let lo = here.ns.ifindex("lo")?;
    let local = here
        .ns
        .run(|| Ok(BindTx::new(lo).local().bind(&nic.memory)))??;
    let call = tx::Call::new(local.id(), &[extent(0, 1)]);
    fails(call.send(&nic.connection.tx), Errno::ENODEV);
    assert_eq!(call.send(&connected)?, 1);
    let (socket, _) = listener.accept()?;
    let map = nic.memory.map()?;
    let mut probe = Probe::new(&socket, &[(local.id(), &map)]).quiet();
    let (parts, _) = told(local.id(), &mut probe, 1);
    assert_eq!(parts, [extent(0, 1)]);
    Ok(())
}

/// A reader that gives nothing back stops the sender, and nobody else.
fn bounded() -> Outcome {
    const MOST: usize = 100_000;
    let bench = Sending::local(Joint::Lo)?;
    bench.connection.tx.set_nonblocking(true)?;
    let mut sent = 0;
    let refused = loop {
        match bench
            .call(&[extent(sent as u64, 1)])
            .send(&bench.connection.tx)
        {
            Ok(_) => sent += 1,
            Err(err) => break err,
        }
        // What is not sent yet shares a notification.
        wait_received(&bench.connection.rx, sent as u64);
        assert!(sent < MOST, "no end");
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENOBUFS));
    observe(format_args!("refused in the end"));
    let others = &bench.pair;
    let another = others.connect(&others.listen(Ip::V4, Sending::PORT + 1)?)?;
    enable_zerocopy(&another.tx)?;
    assert_eq!(bench.call(&[extent(0, 1)]).send(&another.tx)?, 1);
    let map = bench.memory.map()?;
    let mut probe = probe(&bench, &map);
    let (_, tokens) = told(bench.binding.id(), &mut probe, sent as u64);
    fails(
        bench.call(&[extent(0, 1)]).send(&bench.connection.tx),
        Errno::ENOBUFS,
    );
    returns(&bench.connection.rx, &tokens)?;
    let mut completions = Completions::default();
    completions.wait(&bench.connection.tx, sent as u32)?;
    assert_eq!(bench.call(&[extent(0, 1)]).send(&bench.connection.tx)?, 1);
    Ok(())
}

/// An operator gets the memory back from both ends: from who has not read it, who has tokens, and who has to send it.
fn flushed() -> Outcome {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Where {
        Unread,
        Tokens,
        Lost,
    }
    for place in [Where::Unread, Where::Tokens, Where::Lost] {
        let bench = Sending::local(Joint::Veth)?;
        let map = bench.memory.map()?;
        let Connection { rx, tx } = &bench.connection;
        if place == Where::Lost {
            bench.pair.tx.cut()?;
        }
        bench.sends(&bench.call(&[extent(0, 9000)]));
        let mut probe = probe(&bench, &map);
        if place != Where::Lost {
            wait_received(rx, 9000);
            acknowledged(tx)?;
        }
        if place == Where::Tokens {
            told(bench.binding.id(), &mut probe, 9000);
        }
        let ns = &bench.pair.tx.ns;
        let flushed = ns.run(|| Ok(Netdev::open()?.flush(bench.binding.id())?))?;
        assert_eq!(flushed.aborted, 1, "{place:?}");
        assert_eq!((flushed.returned, flushed.outstanding), (None, None));
        assert_aborted(if place == Where::Lost { tx } else { rx })?;
        for start in probe.take_held() {
            assert_eq!(dontneed(rx, &[TokenRange { start, count: 1 }])?, 0);
        }
        Completions::default().wait(tx, 1)?;
    }
    Ok(())
}

/// What a reader holds is told, by the id of the sender's binding.
fn what_a_reader_holds() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let map = bench.memory.map()?;
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    bench.sends(&bench.call(&[extent(0, 100), extent(PAGE, 100)]));
    wait_received(&bench.connection.rx, 200);
    assert_holds(ns, id, 0, 200)?;
    assert_eq!(holders(ns)?[0].unread, 200);
    let mut probe = probe(&bench, &map);
    told(id, &mut probe, 200);
    assert_holds(ns, id, 2, 0)?;
    probe.give_back();
    assert_eq!(holders(ns)?, []);
    Ok(())
}

#[track_caller]
fn assert_refused(end: &End, request: &BindTx, memory: BorrowedFd<'_>, errno: Errno, why: &str) {
    let answer = end.ns.run(|| Ok(request.bind(memory)));
    let err = answer
        .expect("the namespace")
        .expect_err("a request that is refused");
    assert_eq!(err.errno(), Some(errno as i32), "{err}");
    assert!(err.to_string().contains(why), "{err}");
}

/// Requests that are refused.
fn bindings() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    let memory = DmaBuf::udmabuf(PAGE as usize)?;
    let empty = Shape::new(&[]).of_nothing()?;
    let end = &pair.tx;
    let lo = BindTx::new(end.ifindex);
    assert_refused(
        end,
        &lo.clone().local(),
        empty.as_fd(),
        Errno::EINVAL,
        "dmabuf has no memory",
    );
    // Nobody gets a local binding who did not ask for it.
    let none = "Driver does not support netmem TX";
    assert_refused(end, &lo, memory.as_fd(), Errno::EOPNOTSUPP, none);

    let no_local = "Device takes no local bindings";
    end.ip("link add dummy0 type dummy")?;
    let dummy = BindTx::new(end.ns.ifindex("dummy0")?).local();
    assert_refused(end, &dummy, memory.as_fd(), Errno::EOPNOTSUPP, no_local);
    let nic = Pair::new()?;
    let dma = BindTx::new(nic.rx.ifindex).local();
    assert_refused(&nic.rx, &dma, memory.as_fd(), Errno::EOPNOTSUPP, no_local);
    Ok(())
}

/// An ifb takes them, as all that passes on what the CPU cannot read.
fn by_an_ifb() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    pair.tx.ip("link add ifb0 type ifb")?;
    let memory = DmaBuf::udmabuf(PAGE as usize)?;
    let ask = BindTx::new(pair.tx.ns.ifindex("ifb0")?).local();
    drop(pair.tx.ns.run(|| Ok(ask.bind(&memory)))??);
    Ok(())
}

/// A netkit that leads to a NIC takes both kinds.
fn by_a_leased_queue() -> Outcome {
    let nic = Pair::new()?;
    let netkit = Netkit::new(&nic.rx, 1)?;
    let memory = DmaBuf::udmabuf(PAGE as usize)?;
    let ask = BindTx::new(netkit.ifindex);
    for ask in [ask.clone(), ask.local()] {
        drop(nic.rx.ns.run(|| Ok(ask.bind(&memory)))??);
    }
    Ok(())
}

/// What is told of a binding.
fn told_of() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    let memory = DmaBuf::udmabuf(3 * PAGE as usize)?;
    let binding = pair.tx.bind_tx(&memory)?;
    let status = pair
        .tx
        .ns
        .run(|| Ok(Netdev::open()?.binding(binding.id())?))?;
    assert!(status.local && !status.rx && !status.shared);
    assert_eq!(status.state, State::Bound);
    assert_eq!(status.ifindex, Some(pair.tx.ifindex));
    assert_eq!(status.peer_to_peer, None);
    assert_eq!(status.buffers, Some(3));
    Ok(())
}

/// To send is to read.
fn write_only() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    let heap = Path::new("/dev/dma_heap/system");
    let memory = DmaBuf::heap(heap, PAGE as usize, libc::O_WRONLY)?;
    assert_refused(
        &pair.tx,
        &pair.tx.request_tx(),
        memory.as_fd(),
        Errno::EINVAL,
        "dma-buf is write-only",
    );
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        told_where_it_is,
        a_stream,
        peeked,
        the_reader_goes,
        any_exporter,
        far_into_the_memory,
        runs,
        larger_packets,
        the_owner_goes,
        the_namespace_goes,
        the_device_goes,
        forwarded_to_a_nic,
        before_xdp,
        of_the_other_kind,
        bounded,
        flushed,
        what_a_reader_holds,
        bindings,
        by_an_ifb,
        by_a_leased_queue,
        told_of,
        write_only,
        copied::an_ordinary_reader,
        copied::a_copied_stream,
        copied::before_the_fence,
        copied::woken_by_the_fence,
        copied::told_meanwhile,
        copied::told_apart,
        copied::that_cannot_be_copied,
        copied::revoked_meanwhile,
        copied::ended_before_the_fence,
        copied::spliced,
        copied::half_by_another,
        passed::shared_with_another_process,
        passed::a_channel,
        passed::a_channel_in_any_memory,
        passed::a_channel_whose_reader_is_killed,
    ])
}
