// SPDX-License-Identifier: GPL-2.0

//! Device memory between processes of one machine: what is sent from local bindings, by lo, netkit and veth.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Extent;
use devmem::diag;
use devmem::netdev::Netdev;
use devmem::recv::take_runs;
use devmem::send::enable_zerocopy;
use devmem::status::State;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Sending;
use devmem_testlib::netkit::Netkit;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Got;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::errno;
use devmem_testlib::probe::received;
use devmem_testlib::probe::soon;
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
use nix::errno::Errno;

const PAGE: u64 = 4096;
/// More than what a call may bring.
const ALL: usize = 1 << 20;
/// What does not come by then is kept from coming.
const A_WHILE: Duration = Duration::from_millis(300);

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
fn told(bench: &Sending, probe: &mut Probe<'_>, bytes: u64) -> (Vec<Extent>, Vec<u32>) {
    let (mut all, mut tokens) = (Vec::new(), Vec::new());
    while tx::total(&all) < bytes {
        let got = probe.call(&Call::new(ALL));
        assert!(!got.is_empty(), "the stream ended");
        assert_eq!(got.frags().count(), got.pieces.len(), "{got:?}");
        assert!(
            got.frags().all(|frag| frag.dmabuf_id == bench.binding.id()),
            "{got:?}"
        );
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

/// Checks that a sender waits for its completions.
#[track_caller]
fn nothing_completes(socket: &TcpStream, completions: &mut Completions) -> io::Result<()> {
    thread::sleep(A_WHILE);
    completions.read(socket)?;
    assert_eq!(completions.done, [], "completions");
    Ok(())
}

/// A probe of the receiving end.
fn probe<'b>(bench: &'b Sending, map: &'b devmem::dmabuf::Mapping) -> Probe<'b> {
    Probe::new(&bench.connection.rx, &[(bench.binding.id(), map)]).quiet()
}

/// A reader is told where it is, and the sender is told when the reader has given it back.
fn told_where_it_is() -> Outcome {
    for joint in Joint::ALL {
        let bench = Sending::local(joint)?;
        let map = bench.memory.map()?;
        let mut probe = probe(&bench, &map);
        let sent = [extent(7, 5000), extent(3 * PAGE, 40_000), extent(100, 1)];
        bench.sends(&bench.call(&sent));
        let (parts, tokens) = told(&bench, &mut probe, tx::total(&sent));
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

/// Both families, and many calls.
fn a_stream() -> Outcome {
    for (joint, ip) in [
        (Joint::Lo, Ip::V6),
        (Joint::Netkit, Ip::V6),
        (Joint::Lo, Ip::V4),
    ] {
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
            let mut receiver = devmem::Receiver::new(&connection.rx);
            let mut left = tx::total(&parts);
            let mut expected = parts.iter().copied();
            let mut now = extent(0, 0);
            let mut batch = devmem::TokenBatch::new(&connection.rx);
            while left > 0 {
                let received = receiver.recv()?;
                assert!(!received.is_eof(), "{left} bytes are missing");
                let cpu = map.begin_read()?;
                for piece in received {
                    let devmem::Piece::Frag(frag) = piece else {
                        panic!("bytes in host memory");
                    };
                    let mut bytes = vec![0; frag.size as usize];
                    cpu.copy_out(frag.offset, &mut bytes)?;
                    traffic::compare(frag.offset, &bytes);
                    let (mut at, end) = (frag.offset, frag.offset + u64::from(frag.size));
                    left -= u64::from(frag.size);
                    while at < end {
                        if now.len == 0 {
                            now = expected.next().expect("a byte too many");
                        }
                        assert_eq!(at, now.offset, "the order of the stream");
                        let step = now.len.min(end - at);
                        now = extent(now.offset + step, now.len - step);
                        at += step;
                    }
                    batch.push(frag.token)?;
                }
                batch.flush()?;
            }
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
    let (_, tokens) = told(&bench, &mut probe, 100);
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

/// A reader that knows nothing of device memory gets a copy, and the sender is told of that.
fn an_ordinary_reader() -> Outcome {
    for joint in Joint::ALL {
        let bench = Sending::local(joint)?;
        let sent = [extent(1, 70_000), extent(2 * PAGE, 1), extent(5, 3 * PAGE)];
        bench.sends(&bench.call(&sent));
        bench.expect(&sent)?;
        let mut completions = Completions::default();
        completions.wait(&bench.connection.tx, 1)?;
        assert!(completions.copied, "nothing said that it was copied");
    }
    Ok(())
}

/// It gets what is in host memory and what is not by one call, may peek, and may read a part.
fn both_kinds_at_once() -> Outcome {
    const HEAD: usize = 1000;
    const BODY: usize = 5000;
    let bench = Sending::local(Joint::Lo)?;
    let mut tx = &bench.connection.tx;
    tx.write_all(traffic::bytes(0, HEAD))?;
    bench.sends(&bench.call(&[extent(HEAD as u64, BODY as u64)]));
    tx.write_all(traffic::bytes((HEAD + BODY) as u64, HEAD))?;
    let all = HEAD + BODY + HEAD;
    wait_received(&bench.connection.rx, all as u64);

    let mut probe = Probe::new(&bench.connection.rx, &[]);
    probe
        .call(&Call::ordinary(ALL).flags(libc::MSG_PEEK))
        .assert_plain(0, all);
    probe
        .call(&Call::ordinary(HEAD + 10))
        .assert_plain(0, HEAD + 10);
    probe
        .call(&Call::ordinary(ALL).flags(libc::MSG_WAITALL))
        .assert_plain((HEAD + 10) as u64, all - HEAD - 10);
    Completions::default().wait(tx, 1)?;
    Ok(())
}

/// A reader's buffer that is not there costs nothing: the data stay.
fn a_faulty_buffer() -> Outcome {
    use devmem_testlib::probe::Area;
    const LEN: usize = 5000;
    let bench = Sending::local(Joint::Lo)?;
    bench.sends(&bench.call(&[extent(0, LEN as u64)]));
    wait_received(&bench.connection.rx, LEN as u64);
    let mut probe = Probe::new(&bench.connection.rx, &[]);
    probe
        .call(&Call::ordinary(LEN).data(&[Area::faulty(100, LEN)]))
        .assert_fails(Errno::EFAULT as i32);
    probe.call(&Call::ordinary(ALL)).assert_plain(0, LEN);
    Ok(())
}

/// Any exporter's memory can be sent: no device is attached. Where the CPU cannot read it there are no copies.
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
    wait_received(&bench.connection.rx, tx::total(&sent));
    let mut byte = [0];
    for _ in 0..2 {
        assert_eq!(errno((&bench.connection.rx).read(&mut byte)), Errno::EFAULT);
    }
    let nothing = DmaBuf::udmabuf(PAGE as usize)?.map()?;
    let mut probe = probe(&bench, &nothing);
    let (got, tokens) = told(&bench, &mut probe, tx::total(&sent));
    assert_eq!(got, sent);
    returns(&bench.connection.rx, &tokens)?;
    bench.completes()?;
    assert_eq!(odd.state()?.attached, 0);
    Ok(())
}

/// Offsets beyond what 32 bits can say, and across the end of a net_iov.
fn far_into_the_memory() -> Outcome {
    const EDGE: u64 = 1 << 31;
    let shape = Shape::new(&[Segment {
        addr: 0,
        len: 5 * EDGE,
    }]);
    let bench = Sending::local_from(Joint::Lo, shape.of_nothing()?.as_any()?)?;
    let sent = [
        extent(EDGE - 10, 20),
        extent(3 * EDGE - 1, 50_000),
        extent(5 * EDGE - 1, 1),
    ];
    bench.sends(&bench.call(&sent));
    wait_received(&bench.connection.rx, tx::total(&sent));
    let nothing = DmaBuf::udmabuf(PAGE as usize)?.map()?;
    let mut probe = probe(&bench, &nothing);
    let (got, tokens) = told(&bench, &mut probe, tx::total(&sent));
    assert_eq!(got, sent);
    returns(&bench.connection.rx, &tokens)?;
    bench.refused(&bench.call(&[extent(5 * EDGE, 1)]), Errno::EFAULT);
    bench.completes()
}

/// A reader who takes runs gets no token for two packets, though what is in them follows: each is the sender's again by
/// itself. What is in one packet has one.
fn runs() -> Outcome {
    const EDGE: u64 = 1 << 31;
    let shape = Shape::new(&[Segment {
        addr: 0,
        len: 2 * EDGE,
    }]);
    let bench = Sending::local_from(Joint::Lo, shape.of_nothing()?.as_any()?)?;
    let (tx, rx) = (&bench.connection.tx, &bench.connection.rx);
    // Not all providers know of runs.
    let takes_runs = take_runs(rx)?;
    let nothing = DmaBuf::udmabuf(PAGE as usize)?.map()?;
    let mut probe = probe(&bench, &nothing);
    for (offset, received) in [(EDGE - 100, 100), (EDGE, 200)] {
        bench.sends(&bench.call(&[extent(offset, 100)]));
        wait_received(rx, received);
    }
    let (got, tokens) = told(&bench, &mut probe, 200);
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

    bench.sends(&bench.call(&[extent(EDGE - 10, 20)]));
    let (got, tokens) = told(&bench, &mut probe, 20);
    assert_eq!(got, [extent(EDGE - 10, 20)]);
    assert_eq!(tokens.len(), if takes_runs { 1 } else { 2 });
    returns(rx, &tokens)?;
    completions.wait(tx, 3)?;
    assert!(!completions.copied);
    Ok(())
}

/// What is sent is read although the binding is gone, and tokens hold neither that nor the memory.
fn the_owner_goes() -> Outcome {
    let bench = Sending::local(Joint::Veth)?;
    let map = bench.memory.map()?;
    bench.sends(&bench.call(&[extent(0, 3000)]));
    wait_received(&bench.connection.rx, 3000);
    bench.sends(&bench.call(&[extent(9000, 10_000)]));
    wait_received(&bench.connection.rx, 13_000);
    let mut held = probe(&bench, &map);
    let got = held.call(&Call::new(3000));
    assert_eq!(got.len(), 3000);
    let (_, tokens) = parts(&got);
    drop(held);

    let Sending {
        pair: _pair,
        binding,
        connection,
        memory,
        ..
    } = bench;
    let id = binding.id();
    drop(binding);
    drop(memory);
    fails(
        tx::Call::new(id, &[extent(0, 1)]).send(&connection.tx),
        Errno::EINVAL,
    );
    assert!(
        provider::bindings()?.is_none_or(|list| list.iter().any(|binding| binding.id == id)),
        "it was not read"
    );
    tx::expect(&connection.rx, &[extent(9000, 10_000)])?;
    provider::all_buffers_back(id);

    let mut completions = Completions::default();
    soon("the second call to be completed", || {
        completions.read(&connection.tx)?;
        Ok(completions.done == [1])
    });
    returns(&connection.rx, &tokens)?;
    completions.wait(&connection.tx, 2)?;
    Ok(())
}

/// The same if it is the device that goes.
fn the_device_goes() -> Outcome {
    let bench = Sending::local(Joint::Netkit)?;
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
    tx::expect(&bench.connection.rx, &[extent(5, 6000)])?;
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

/// The binding of a NIC is not one by which to send to this machine, nor a local one by which to send by a NIC.
fn of_the_other_kind() -> Outcome {
    let nic = Sending::new()?;
    let rx = &nic.pair.tx;
    rx.ip("link set lo up")?;
    let (listener, connected) = rx.ns.run(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let connected = TcpStream::connect(listener.local_addr()?)?;
        Ok((listener, connected))
    })?;
    enable_zerocopy(&connected)?;
    fails(nic.call(&[extent(0, 1)]).send(&connected), Errno::ENODEV);

    let lo = rx.ns.ifindex("lo")?;
    let local = rx
        .ns
        .run(|| Ok(BindTx::new(lo).local().bind(&nic.memory)))??;
    let call = tx::Call::new(local.id(), &[extent(0, 1)]);
    fails(call.send(&nic.connection.tx), Errno::ENODEV);
    assert_eq!(call.send(&connected)?, 1);
    let (mut socket, _) = listener.accept()?;
    let mut byte = [0];
    socket.read_exact(&mut byte)?;
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
    let map = bench.memory.map()?;
    let mut probe = probe(&bench, &map);
    let (_, tokens) = told(&bench, &mut probe, sent as u64);
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

/// An operator gets the memory back from both ends.
fn flushed() -> Outcome {
    for read in [false, true] {
        let bench = Sending::local(Joint::Netkit)?;
        let map = bench.memory.map()?;
        bench.sends(&bench.call(&[extent(0, 9000)]));
        wait_received(&bench.connection.rx, 9000);
        let mut probe = probe(&bench, &map);
        if read {
            told(&bench, &mut probe, 9000);
        }
        let ns = &bench.pair.tx.ns;
        let flushed = ns.run(|| Ok(Netdev::open()?.flush(bench.binding.id())?))?;
        // The sender has its acknowledgement, but for one that is delayed.
        assert!((1..=2).contains(&flushed.aborted), "{flushed:?}");
        assert_eq!((flushed.returned, flushed.outstanding), (None, None));
        let error = bench.connection.rx.take_error()?;
        assert_eq!(
            error.and_then(|err| err.raw_os_error()),
            Some(libc::ECONNABORTED)
        );
        let held = probe.take_held();
        for start in held {
            assert_eq!(
                dontneed(&bench.connection.rx, &[TokenRange { start, count: 1 }])?,
                0
            );
        }
        Completions::default().wait(&bench.connection.tx, 1)?;
    }
    Ok(())
}

/// What a reader holds is told, by the id of the sender's binding.
fn what_a_reader_holds() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let map = bench.memory.map()?;
    bench.sends(&bench.call(&[extent(0, 100), extent(PAGE, 100)]));
    wait_received(&bench.connection.rx, 200);
    let holders = || {
        bench.pair.rx.ns.run(|| {
            Ok(diag::holders()?
                .into_iter()
                .filter(|holder| holder.local.port() == Sending::PORT)
                .collect::<Vec<_>>())
        })
    };
    let unread = holders()?;
    observe(format_args!("{} holders", unread.len()));
    let mut probe = probe(&bench, &map);
    let (_, tokens) = told(&bench, &mut probe, 200);
    assert_eq!(tokens.len(), 2);
    let held = holders()?;
    assert_eq!((unread.len(), held.len()), (1, 1));
    probe.give_back();
    assert_eq!(holders()?.len(), 0);
    Ok(())
}

/// Requests that are refused, and what is told of a binding.
fn bindings() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    pair.tx.ip("link add dummy0 type dummy")?;
    let memory = DmaBuf::udmabuf(3 * PAGE as usize)?;
    let empty = Shape::new(&[]).of_nothing()?;
    let nic = Pair::new()?;
    let refused = |end: &End, request: BindTx, memory: BorrowedFd<'_>, errno: i32, why: &str| {
        let answer = end.ns.run(|| Ok(request.bind(memory)))?;
        let err = answer.expect_err("a request that is refused");
        assert_eq!(err.errno(), Some(errno), "{err}");
        assert!(err.to_string().contains(why), "{err}");
        io::Result::Ok(())
    };
    let (end, lo) = (&pair.tx, BindTx::new(pair.tx.ifindex));
    let no_memory = "dmabuf has no memory";
    refused(
        end,
        lo.clone().local(),
        empty.as_fd(),
        libc::EINVAL,
        no_memory,
    )?;
    // Nobody gets a local binding who did not ask for it.
    let none = "Driver does not support netmem TX";
    refused(end, lo, memory.as_fd(), libc::EOPNOTSUPP, none)?;
    let dummy = BindTx::new(end.ns.ifindex("dummy0")?).local();
    let no_local = "Device takes no local bindings";
    refused(end, dummy, memory.as_fd(), libc::EOPNOTSUPP, no_local)?;
    let dma = BindTx::new(nic.tx.ifindex).local();
    refused(&nic.tx, dma, memory.as_fd(), libc::EOPNOTSUPP, no_local)?;

    // One that leads to a NIC has both kinds.
    let netkit = Netkit::new(&nic.rx, 1)?;
    let ask = BindTx::new(netkit.ifindex).local();
    let by_leased = nic.rx.ns.run(|| Ok(ask.bind(&memory)))??;
    drop(by_leased);

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
    let request = BindTx::new(pair.tx.ifindex).local();
    let answer = pair.tx.ns.run(|| Ok(request.bind(&memory)))?;
    let err = answer.expect_err("a request that is refused");
    assert_eq!(err.errno(), Some(libc::EINVAL), "{err}");
    assert!(err.to_string().contains("dma-buf is write-only"), "{err}");
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        told_where_it_is,
        a_stream,
        peeked,
        the_reader_goes,
        an_ordinary_reader,
        both_kinds_at_once,
        a_faulty_buffer,
        any_exporter,
        far_into_the_memory,
        runs,
        the_owner_goes,
        the_device_goes,
        forwarded_to_a_nic,
        of_the_other_kind,
        bounded,
        flushed,
        what_a_reader_holds,
        bindings,
        write_only,
    ])
}
