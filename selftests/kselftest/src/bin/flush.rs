// SPDX-License-Identifier: GPL-2.0

//! Readers that give nothing back: how many tokens they may have, and how an operator gets the memory of a binding
//! back from them, and from who has to send from it.

use std::io;
use std::net::Shutdown;
use std::net::TcpStream;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use devmem::BindRx;
use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Error;
use devmem::dmabuf::Mapping;
use devmem::netdev::Netdev;
use devmem::netdev::cmd;
use devmem::netdev::dmabuf;
use devmem::netlink::Attrs;
use devmem::netns::Netns;
use devmem::send::enable_zerocopy;
use devmem::status::EventKind;
use devmem::status::Events;
use devmem::status::Flushed;
use devmem::status::State;
use devmem::token::MAX_RANGES;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::child::Child;
use devmem_testlib::child::become_user;
use devmem_testlib::child::enter;
use devmem_testlib::child::enter_user;
use devmem_testlib::child::let_root_in;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::fixture::Sending;
use devmem_testlib::netkit::Netkit;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::peer::Peer;
use devmem_testlib::peer::segment;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::pump::reset_on_close;
use devmem_testlib::runner;
use devmem_testlib::skip;
use devmem_testlib::sockopt;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::tx;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::setresuid;

const PAGE: usize = 4096;
const MEMORY: usize = 1024 * PAGE;
const PORT: u16 = 5001;
const QUEUE: u32 = 1;
const NOBODY: u32 = 65534;
/// More than what a call may bring.
const ALL: usize = 1 << 16;
/// An event that is to come.
const SOON: Duration = Duration::from_secs(5);
/// What does not come by then is kept from coming.
const A_WHILE: Duration = Duration::from_millis(300);

fn try_flush(ns: &Netns, id: u32) -> io::Result<Result<Flushed, Error>> {
    ns.run(|| Ok(Netdev::open()?.flush(id)))
}

fn flush(ns: &Netns, id: u32) -> io::Result<Flushed> {
    Ok(try_flush(ns, id)??)
}

fn errno(error: &Error) -> Option<Errno> {
    error.errno().map(Errno::from_raw)
}

#[track_caller]
fn assert_refused(result: Result<Flushed, Error>, expected: Errno) -> Error {
    let err = result.expect_err("a request that has to be refused");
    assert_eq!(errno(&err), Some(expected), "{err}");
    err
}

fn skip_without_flush() -> Outcome {
    match Netdev::open()?.flush(u32::MAX) {
        Err(err) if errno(&err) == Some(Errno::EOPNOTSUPP) => {
            skip("this kernel flushes no bindings")
        }
        result => {
            assert_refused(result, Errno::ENOENT);
            Ok(())
        }
    }
}

/// What is told of an abort, once.
#[track_caller]
fn assert_aborted(socket: &TcpStream) -> Outcome {
    let error = socket.take_error()?.map(|err| err.raw_os_error());
    assert_eq!(error, Some(Some(libc::ECONNABORTED)));
    Ok(())
}

/// Returns tokens one by one; how many of them there were.
fn give_back(socket: &TcpStream, tokens: &[u32]) -> io::Result<u32> {
    let ranges: Vec<_> = tokens
        .iter()
        .map(|&start| TokenRange { start, count: 1 })
        .collect();
    ranges
        .chunks(MAX_RANGES)
        .map(|ranges| dontneed(socket, ranges))
        .sum()
}

/// A reader has all buffers of a queue, and its neighbour on that queue gets none.
fn a_stuck_reader() -> Outcome {
    const BUFFERS: u64 = 512;
    const LEN: u64 = 100_000;
    const REST: u64 = 10_000;
    skip_without_flush()?;
    let bench = Receiving::into_memory(DmaBuf::udmabuf(BUFFERS as usize * PAGE)?)?;
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    let neighbour = bench.pair.connect_to_queue(Ip::V4, PORT + 1, QUEUE)?;
    let mut probe = bench.probe().quiet();
    for _ in 0..BUFFERS {
        bench.start_sending(1)?;
        probe.receive(&Call::new(1)).assert_frags(&[1]);
    }

    thread::scope(|scope| -> Outcome {
        let sender = traffic::send_in(scope, &neighbour.tx, 0, LEN, LEN as usize);
        thread::sleep(A_WHILE);
        assert_eq!(traffic::unread(&neighbour.rx)?, 0, "a buffer was left");

        let flushed = flush(ns, id)?;
        assert_eq!(flushed.aborted, 1);
        assert_eq!(
            (flushed.returned, flushed.outstanding),
            (Some(BUFFERS), Some(0))
        );
        let mut reader = Reader::new(&neighbour.rx, &bench.map, id);
        reader.read_until(LEN)?;
        sender.join().expect("a thread that sends")?;

        // Who holds nothing goes on.
        assert_eq!(flush(ns, id)?.aborted, 0);
        traffic::send(&neighbour.tx, LEN, REST, REST as usize)?;
        reader.read_until(LEN + REST)?;
        reader.assert_all_device_memory();
        Ok(())
    })?;

    probe
        .call(&Call::new(1))
        .assert_fails(Errno::ECONNABORTED as i32);
    let held = probe.take_held();
    assert_eq!(held.len() as u64, BUFFERS);
    assert_eq!(give_back(&bench.connection.rx, &held)?, 0);
    Ok(())
}

/// What nobody reads is as stuck.
fn unread() -> Outcome {
    skip_without_flush()?;
    let bench = Receiving::new()?;
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    bench.send(&[20_000])?;
    let flushed = flush(ns, id)?;
    assert_eq!((flushed.aborted, flushed.outstanding), (1, Some(0)));
    assert!(flushed.returned >= Some(5), "{flushed:?}");
    assert_aborted(&bench.connection.rx)?;
    assert_eq!(traffic::unread(&bench.connection.rx)?, 0, "to be read");
    Ok(())
}

/// And so is what nobody can read yet.
fn out_of_order() -> Outcome {
    skip_without_flush()?;
    let bench = Receiving::new()?;
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    bench.pair.steer(PORT + 1, QUEUE)?;
    let listener = bench.pair.listen(Ip::V4, PORT + 1)?;
    let (peer, socket) = Peer::connect(&bench.pair, &listener)?;
    provider::wait_for("the segment to be there, and to be given back", || {
        // What arrives while the queue is restarted is lost.
        peer.send(segment(1000, 500))?;
        thread::sleep(Duration::from_millis(20));
        Ok(flush(ns, id)?.aborted == 1)
    });
    assert_aborted(&socket)?;
    // The other connection has nothing.
    bench.send(&[100])?;
    let mut probe = bench.probe().quiet();
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);
    probe.give_back();
    Ok(())
}

/// Only those go that hold the memory of this binding.
fn of_another_binding() -> Outcome {
    const OTHER_QUEUE: u32 = 2;
    skip_without_flush()?;
    let bench = Receiving::new()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let other = bench.pair.bind(&[OTHER_QUEUE], &memory)?;
    let connection = bench.pair.connect_to_queue(Ip::V4, PORT + 1, OTHER_QUEUE)?;
    traffic::send(&connection.tx, 0, 100, 100)?;
    let mut others = Probe::new(&connection.rx, &[(other.id(), &map)]).quiet();
    others.receive(&Call::new(ALL)).assert_frags(&[100]);
    let mut probe = bench.probe().quiet();
    bench.send(&[100])?;
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);

    let flushed = flush(&bench.pair.rx.ns, bench.binding.id())?;
    assert_eq!(
        (flushed.aborted, flushed.returned, flushed.outstanding),
        (1, Some(1), Some(0))
    );
    assert_aborted(&bench.connection.rx)?;
    traffic::send(&connection.tx, 100, 200, 200)?;
    others.receive(&Call::new(ALL)).assert_frags(&[200]);
    others.give_back();
    Ok(())
}

/// What is left of a binding goes at last.
fn unbound() -> Outcome {
    skip_without_flush()?;
    let bench = Receiving::new()?;
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    bench.send(&[100])?;
    let mut probe = Probe::new(&bench.connection.rx, &[(id, &bench.map)]).quiet();
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);
    let mut events = ns.run(|| Ok(Events::open()?))?;
    drop(bench.binding);

    let flushed = flush(ns, id)?;
    assert_eq!(
        (flushed.aborted, flushed.returned, flushed.outstanding),
        (1, Some(1), Some(0))
    );
    for kind in [EventKind::Unbound, EventKind::Deleted] {
        let event = events.next_timeout(wait::patience(SOON))?;
        let event = event.unwrap_or_else(|| panic!("not told: {kind:?}"));
        assert_eq!((event.kind, event.binding.id), (kind, id));
    }
    provider::all_buffers_back(id);
    assert_refused(try_flush(ns, id)?, Errno::ENOENT);
    Ok(())
}

/// The socket is found no more, and what it has is told.
fn a_connection_that_is_over() -> Outcome {
    skip_without_flush()?;
    let bench = Receiving::new()?;
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    bench.send(&[100])?;
    let rx = &bench.connection.rx;
    let mut probe = Probe::new(rx, &[(id, &bench.map)]).quiet();
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);
    reset_on_close(&bench.connection.tx)?;
    drop(bench.connection.tx);
    provider::wait_for("the reset", || Ok(sockopt::poll(rx)? & libc::POLLHUP != 0));

    let flushed = flush(ns, id)?;
    assert_eq!(
        (flushed.aborted, flushed.returned, flushed.outstanding),
        (0, Some(0), Some(1))
    );
    // So its user has it still.
    probe.give_back();
    let flushed = flush(ns, id)?;
    assert_eq!((flushed.aborted, flushed.outstanding), (0, Some(0)));
    Ok(())
}

/// Who has to send from a binding is aborted, and the binding goes on.
fn to_be_sent() -> Outcome {
    let part = [extent(100, 3 * PAGE as u64)];
    skip_without_flush()?;
    let sending = Sending::new()?;
    let (end, id) = (&sending.pair.tx, sending.binding.id());
    end.cut()?;
    sending.sends(&sending.call(&part));

    let flushed = flush(&end.ns, id)?;
    assert_eq!(
        (flushed.aborted, flushed.returned, flushed.outstanding),
        (1, None, None)
    );
    assert_aborted(&sending.connection.tx)?;
    end.mend()?;

    let status = end.ns.run(|| Ok(Netdev::open()?.binding(id)?))?;
    assert_eq!(status.state, State::Bound);
    let pair = &sending.pair;
    let another = pair.connect(&pair.listen(Ip::V4, PORT + 1)?)?;
    enable_zerocopy(&another.tx)?;
    let sent = sending.call(&part).send(&another.tx)?;
    assert_eq!(sent as u64, tx::total(&part));
    tx::expect(&another.rx, &part)?;
    provider::wait_for("the acknowledgement", || {
        Ok(traffic::unacknowledged(&another.tx)? == 0)
    });
    assert_eq!(flush(&end.ns, id)?.aborted, 0);
    Ok(())
}

/// Nothing comes of what is refused.
fn refusals() -> Outcome {
    skip_without_flush()?;
    let bench = Receiving::new()?;
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    bench.send(&[100])?;
    let mut probe = bench.probe().quiet();
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);

    assert_refused(try_flush(ns, id + 1000)?, Errno::ENOENT);
    assert_refused(try_flush(&bench.pair.tx.ns, id)?, Errno::ENOENT);
    for (attrs, expected) in [
        (Attrs::new(), Errno::EINVAL),
        (Attrs::new().u32(dmabuf::ID, 0), Errno::ERANGE),
    ] {
        let request = ns.run(|| Ok(Netdev::open()?.request(cmd::DMABUF_FLUSH, &attrs)))?;
        let err = request.expect_err("a malformed request");
        assert_eq!(errno(&err), Some(expected), "{err}");
    }
    let mut child = Child::start(|talk| {
        enter(ns)?;
        become_user(NOBODY)?;
        let refused = Netdev::open()?.flush(id).err();
        talk.tell(refused.and_then(|err| err.errno()).unwrap_or(0))?;
        talk.wait_for_the_end()
    })?;
    assert_eq!(child.talk().hear_number()?, Errno::EPERM as u32);
    child.end()?;

    probe.give_back();
    bench.send(&[200])?;
    probe.receive(&Call::new(ALL)).assert_frags(&[200]);
    probe.give_back();
    Ok(())
}

/// Who sees a binding by a netkit of theirs has not to abort what others send from it.
fn seen_by_a_container() -> Outcome {
    skip_without_flush()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::sending()?;
    let netkit = Netkit::new(&pair.tx, QUEUE)?;
    let request = BindTx::new(netkit.ifindex);
    let binding = pair.tx.ns.run(|| Ok(request.bind(&memory)?))?;
    let id = binding.id();
    let container = Netns::new()?;

    let refused = netkit.lend(&container, || {
        let seen = container.run(|| Ok(Netdev::open()?.binding(id)?))?;
        assert_eq!((seen.id, seen.rx), (id, false));
        try_flush(&container, id)
    })?;
    let err = assert_refused(refused, Errno::EPERM);
    let why = "device of the binding is in another network namespace";
    assert!(err.to_string().contains(why), "{err}");
    assert_eq!(flush(&pair.tx.ns, id)?.aborted, 0);
    Ok(())
}

/// The binding is a netkit's, and the queue that of the device behind it.
fn by_a_leased_queue() -> Outcome {
    /// What the netkit calls the queue.
    const LEASED: u32 = 1;
    skip_without_flush()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let netkit = Netkit::new(&pair.rx, QUEUE)?;
    let request = BindRx::new(netkit.ifindex).queue(LEASED);
    let binding = pair.rx.ns.run(|| Ok(request.bind(&memory)?))?;
    let id = binding.id();
    // And once more: the binding is as good as before.
    for port in [PORT, PORT + 1] {
        let connection = pair.connect_to_queue(Ip::V4, port, QUEUE)?;
        traffic::send(&connection.tx, 0, 100, 100)?;
        let mut probe = Probe::new(&connection.rx, &[(id, &map)]).quiet();
        probe.receive(&Call::new(ALL)).assert_frags(&[100]);
        let flushed = flush(&pair.rx.ns, id)?;
        assert_eq!(
            (flushed.aborted, flushed.returned, flushed.outstanding),
            (1, Some(1), Some(0))
        );
        assert_aborted(&connection.rx)?;
    }
    Ok(())
}

/// What came of it for the root of a container, as it tells others.
fn told(result: &Result<Flushed, Error>) -> String {
    match result {
        Ok(flushed) => format!("{} aborted", flushed.aborted),
        Err(err) => errno(err).map_or_else(|| err.to_string(), |errno| format!("{errno:?}")),
    }
}

/// A reader that has a frag of the binding.
fn probe_one<'a>(connection: &'a Connection, id: u32, map: &'a Mapping) -> io::Result<Probe<'a>> {
    let mut probe = Probe::new(&connection.rx, &[(id, map)]).quiet();
    traffic::send(&connection.tx, 0, 100, 100)?;
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);
    Ok(probe)
}

/// It flushes what it has bound to the queue that it was given. Not what others have: by another queue of the device, or
/// to send from by its netkit.
fn by_the_root_of_a_container() -> Outcome {
    /// What the netkit calls the queue.
    const LEASED: u32 = 1;
    const OTHER_QUEUE: u32 = 2;
    skip_without_flush()?;
    let [memory, other_memory] = [DmaBuf::udmabuf(MEMORY)?, DmaBuf::udmabuf(MEMORY)?];
    let [map, other_map] = [memory.map()?, other_memory.map()?];
    let pair = Pair::new()?;
    let netkit = Netkit::new(&pair.rx, QUEUE)?;
    let others = pair.bind(&[OTHER_QUEUE], &other_memory)?;
    let connect = |port, queue| pair.connect_to_queue(Ip::V4, port, queue);
    let (by_its_queue, by_another) = (connect(PORT, QUEUE)?, connect(PORT + 1, OTHER_QUEUE)?);

    let mut root = Child::start(|talk| {
        become_user(NOBODY)?;
        enter_user(talk, CloneFlags::CLONE_NEWNET)?;
        let ifindex = talk.hear_number()?;
        setresuid(0.into(), 0.into(), 0.into())?;
        let binding = BindRx::new(ifindex).queue(LEASED).bind(&memory)?;
        talk.tell(binding.id())?;
        while let Ok(id) = talk.hear_number() {
            talk.tell(told(&Netdev::open()?.flush(id)))?;
        }
        Ok(())
    })?;
    let_root_in(&mut root, NOBODY)?;
    let container = Netns::of_process(root.pid())?;

    let mut probe = netkit.lend(&container, || {
        let ifindex = container.run(|| netkit.find())?;
        root.talk().tell(ifindex)?;
        let its = root.talk().hear_number()?;
        let by_netkit = container.run(|| Ok(BindTx::new(ifindex).bind(&memory)?))?;
        let mut its_probe = probe_one(&by_its_queue, its, &map)?;
        let others_probe = probe_one(&by_another, others.id(), &other_map)?;
        let mut flush = |id: u32| {
            root.talk().tell(id)?;
            root.talk().hear()
        };
        assert_eq!(flush(others.id())?, "ENOENT");
        assert_eq!(flush(by_netkit.id())?, "EPERM");
        assert_eq!(flush(its)?, "1 aborted");
        its_probe.take_held();
        root.end()?;
        Ok(others_probe)
    })?;
    assert_aborted(&by_its_queue.rx)?;
    // Who has the other binding did not notice.
    traffic::send(&by_another.tx, 100, 200, 200)?;
    probe.receive(&Call::new(ALL)).assert_frags(&[200]);
    probe.give_back();
    Ok(())
}

/// Connections come and go, and the binding with them.
fn under_traffic() -> Outcome {
    const ROUNDS: u64 = 12;
    const LEN: u64 = 64 << 20;
    skip_without_flush()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    pair.steer(PORT, QUEUE)?;
    let mut aborted = 0;
    for round in 0..ROUNDS {
        let binding = pair.bind(&[QUEUE], &memory)?;
        let id = binding.id();
        let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
        let (rx, tx) = (&connection.rx, &connection.tx);
        aborted += thread::scope(|scope| -> io::Result<u64> {
            // It fails if the connection is aborted, and ends if it is not.
            scope.spawn(|| traffic::send(tx, 0, LEN, 1 << 16));
            // One in two leaves alone what comes, and so is there to be aborted.
            match round % 2 {
                0 => {
                    scope.spawn(|| {
                        let mut reader = Reader::new(rx, &map, id);
                        while let Ok(true) = reader.read_some() {}
                    });
                }
                _ => provider::wait_for("something unread", || Ok(traffic::unread(rx)? > 0)),
            }
            let mut aborted = 0;
            for _ in 0..2 {
                thread::sleep(Duration::from_millis(round));
                aborted += flush(&pair.rx.ns, id)?.aborted;
            }
            let last = scope.spawn(|| try_flush(&pair.rx.ns, id));
            drop(binding);
            let result = last.join().expect("a thread that flushes")?;
            for socket in [rx, tx] {
                // It may have been aborted.
                let _ = socket.shutdown(Shutdown::Both);
            }
            match result {
                Ok(flushed) => Ok(aborted + flushed.aborted),
                Err(err) if errno(&err) == Some(Errno::ENOENT) => Ok(aborted),
                Err(err) => Err(err.into()),
            }
        })?;
        drop(connection);
        provider::all_buffers_back(id);
    }
    assert!(
        (ROUNDS / 2..=ROUNDS).contains(&aborted),
        "{aborted} were aborted"
    );
    Ok(())
}

/// Who binds says how many tokens a socket may have, and each socket may have as many.
fn max_tokens() -> Outcome {
    const TOKENS: u32 = 20;
    const SEGMENTS: u32 = 30;
    skip_without_flush()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let request = pair.request(&[QUEUE]);
    let none = request.attrs(&memory).u32(dmabuf::MAX_TOKENS, 0);
    let refused = pair.rx.ns.run(|| Ok(Netdev::open()?.bind_rx(&none)))?;
    let err = refused.expect_err("no tokens at all");
    assert_eq!(errno(&err), Some(Errno::ERANGE), "{err}");

    let request = request.max_tokens(TOKENS.try_into().expect("a number"));
    let binding = pair.bind_with(&request, &memory)?;
    let id = binding.id();
    let status = pair.rx.ns.run(|| Ok(Netdev::open()?.binding(id)?))?;
    assert_eq!(status.max_tokens, Some(TOKENS));

    for port in [PORT, PORT + 1] {
        let connection = pair.connect_to_queue(Ip::V4, port, QUEUE)?;
        let mut probe = Probe::new(&connection.rx, &[(id, &map)]).quiet();
        for nth in 0..SEGMENTS {
            traffic::send(&connection.tx, u64::from(nth) * 100, 100, 100)?;
            wait_received(&connection.rx, u64::from(nth + 1) * 100);
        }
        let mut first = 0;
        while first < TOKENS as usize {
            first += probe.receive(&Call::new(ALL)).frags().count();
        }
        assert_eq!(first, TOKENS as usize);
        let no_more = Errno::ENOBUFS as i32;
        probe.call(&Call::new(ALL)).assert_fails(no_more);
        // A peek takes one, too.
        let peek = Call::new(ALL).flags(libc::MSG_PEEK);
        probe.call(&peek).assert_fails(no_more);
        let mut held = probe.take_held();
        assert_eq!(give_back(&connection.rx, &[held.swap_remove(7)])?, 1);
        probe.receive(&Call::new(ALL)).assert_frags(&[100]);
        probe.call(&Call::new(ALL)).assert_fails(no_more);

        assert_eq!(give_back(&connection.rx, &held)?, TOKENS - 1);
        let rest = [100; (SEGMENTS - TOKENS - 1) as usize];
        probe.receive(&Call::new(ALL)).assert_frags(&rest);
        probe.give_back();
    }
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        a_stuck_reader,
        unread,
        out_of_order,
        of_another_binding,
        unbound,
        a_connection_that_is_over,
        to_be_sent,
        refusals,
        seen_by_a_container,
        by_a_leased_queue,
        by_the_root_of_a_container,
        under_traffic,
        max_tokens,
    ])
}
