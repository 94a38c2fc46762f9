// SPDX-License-Identifier: GPL-2.0

//! What an operator can learn of device memory beside the list of bindings and their events: which sockets hold it, what
//! the tracepoints tell, and what a bind request is warned of.

use std::io;
use std::process::ExitCode;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::diag;
use devmem::diag::Held;
use devmem::diag::Holder;
use devmem::netdev::Netdev;
use devmem::netns::Netns;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::child;
use devmem_testlib::child::Child;
use devmem_testlib::events;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::fixture::Sending;
use devmem_testlib::pair::Ip;
use devmem_testlib::peer::Peer;
use devmem_testlib::peer::segment;
use devmem_testlib::probe::Call as Receive;
use devmem_testlib::probe::Probe;
use devmem_testlib::provider;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::tests;
use devmem_testlib::trace;
use devmem_testlib::trace::Trace;
use devmem_testlib::tx::Call as Send;
use devmem_testlib::tx::extent;
use devmem_testlib::tx::fails;
use nix::errno::Errno;

const PAGE: usize = 4096;
/// Buffers that the ring of a queue has room for, in netdevsim.
const RING: usize = 256;
/// Somebody who may do nothing.
const NOBODY: u32 = 65534;

fn holders(ns: &Netns) -> io::Result<Vec<Holder>> {
    ns.run(|| Ok(diag::holders()?))
}

/// The only one that there is.
#[track_caller]
fn holder(ns: &Netns) -> io::Result<Holder> {
    let mut all = holders(ns)?;
    assert_eq!(all.len(), 1, "{all:?}");
    Ok(all.remove(0))
}

/// Binding, tokens, bytes of their buffers, bytes that wait.
fn numbers(held: &Held) -> (Option<u32>, u32, u64, u64) {
    (held.id, held.tokens, held.bytes, held.queued)
}

/// Takes bytes as they come, one by one, each in a buffer of its own.
fn take(bench: &Receiving, probe: &mut Probe<'_>, count: usize) -> io::Result<()> {
    for _ in 0..count {
        bench.start_sending(1)?;
        probe.receive(&Receive::new(1)).assert_frags(&[1]);
    }
    Ok(())
}

/// From the receive queue to the user, and back to the provider.
fn what_a_socket_holds() -> Outcome {
    const SENT: usize = 3;
    events::skip_without()?;
    let bench = Receiving::new()?;
    let (ns, id) = (&bench.pair.rx.ns, Some(bench.binding.id()));
    let mut probe = bench.probe();
    assert_eq!(holders(ns)?, []);

    bench.send(&[100; SENT])?;
    let queued = holder(ns)?;
    assert_eq!(queued.local, bench.connection.rx.local_addr()?);
    assert_eq!(queued.remote, bench.connection.rx.peer_addr()?);
    assert_eq!((queued.unread, queued.uid), (300, 0));
    assert!(queued.inode != 0 && !queued.partial, "{queued:?}");
    let told: Vec<_> = queued.held.iter().map(numbers).collect();
    assert_eq!(told, [(id, 0, 0, 300)]);

    let bytes = |tokens| (tokens * PAGE) as u64;
    for tokens in 1..=SENT {
        probe.receive(&Receive::new(100)).assert_frags(&[100]);
        let told: Vec<_> = holder(ns)?.held.iter().map(numbers).collect();
        let left = 100 * (SENT - tokens) as u64;
        assert_eq!(told, [(id, tokens as u32, bytes(tokens), left)]);
    }
    probe.give_back();
    assert_eq!(holders(ns)?, []);

    // Those of the other end, where nothing is received, and of another namespace.
    assert_eq!(holders(&bench.pair.tx.ns)?, []);
    Ok(())
}

/// More than are counted with one look, with gaps in between.
fn many_tokens() -> Outcome {
    const TOKENS: usize = 600;
    events::skip_without()?;
    let bench = Receiving::new()?;
    let mut probe = bench.probe().quiet();
    take(&bench, &mut probe, TOKENS)?;
    let held = holder(&bench.pair.rx.ns)?.held;
    let id = Some(bench.binding.id());
    let all = (id, TOKENS as u32, (TOKENS * PAGE) as u64, 0);
    assert_eq!(held.iter().map(numbers).collect::<Vec<_>>(), [all]);

    let tokens = probe.take_held();
    let (odd, even): (Vec<u32>, Vec<u32>) = tokens.into_iter().partition(|token| token % 2 == 1);
    return_tokens(&bench, &odd)?;
    let held = holder(&bench.pair.rx.ns)?.held;
    assert_eq!(
        held.iter().map(|held| held.tokens as usize).sum::<usize>(),
        even.len()
    );
    return_tokens(&bench, &even)?;
    assert_eq!(holders(&bench.pair.rx.ns)?, []);
    Ok(())
}

fn return_tokens(bench: &Receiving, tokens: &[u32]) -> io::Result<()> {
    for &token in tokens {
        let ranges = [TokenRange {
            start: token,
            count: 1,
        }];
        assert_eq!(dontneed(&bench.connection.rx, &ranges)?, 1, "{token}");
    }
    Ok(())
}

/// A flow that is steered from queue to queue has memory of many bindings. Of so many only the first are told one by one.
fn of_many_bindings() -> Outcome {
    const BINDINGS: usize = 11;
    const TOLD: usize = 8;
    const OTHER: u32 = 3;
    events::skip_without()?;
    let bench = Receiving::new()?;
    let ns = &bench.pair.rx.ns;
    bench.steer(OTHER)?;
    let mut probes = Vec::new();
    let mut bound = Vec::new();
    let memory = DmaBuf::udmabuf(2 * RING * PAGE)?;
    let map = memory.map()?;
    for number in 0..BINDINGS {
        let binding = bench.pair.bind(&[OTHER], &memory)?;
        bench.send(&[1])?;
        let id = binding.id();
        let mut probe = Probe::new(&bench.connection.rx, &[(id, &map)]);
        probe.call(&Receive::new(1)).assert_frags(&[1]);
        probes.push(probe);
        bound.push(id);

        let held = holder(ns)?.held;
        assert_eq!(held.len(), (number + 1).min(TOLD + 1), "{held:?}");
        let tokens: u32 = held.iter().map(|held| held.tokens).sum();
        assert_eq!(tokens as usize, number + 1);
    }

    let held = holder(ns)?.held;
    let mut told: Vec<_> = held.iter().filter_map(|held| held.id).collect();
    told.sort_unstable();
    told.retain(|id| bound.contains(id));
    told.dedup();
    assert_eq!(told.len(), TOLD);
    let others: Vec<_> = held.iter().filter(|held| held.id.is_none()).collect();
    let rest = BINDINGS - TOLD;
    let all = (None, rest as u32, (rest * PAGE) as u64, 0);
    assert_eq!(others.into_iter().map(numbers).collect::<Vec<_>>(), [all]);

    for probe in &mut probes {
        probe.give_back();
    }
    assert_eq!(holders(ns)?, []);
    Ok(())
}

/// No more than 256 packets are looked at while the reader waits, whether they are in order or not.
fn long_queues() -> Outcome {
    const SEGMENTS: u64 = 300;
    const COUNTED: u64 = 256;
    const PORT: u16 = Receiving::PORT + 1;
    events::skip_without()?;
    let bench = Receiving::new()?;
    let ns = &bench.pair.rx.ns;
    bench.pair.steer(PORT, Receiving::QUEUE)?;
    let listener = bench.pair.listen(Ip::V4, PORT)?;
    sockopt::set(&listener, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
    let (peer, socket) = Peer::connect(&bench.pair, &listener)?;
    // With gaps, so that none is appended to another.
    for number in 0..SEGMENTS {
        peer.send(segment(2 * number + 1, 1))?;
        let sent = number + 1;
        // Nor is a ring to run over.
        if sent % 50 == 0 && sent <= COUNTED {
            provider::wait_for("all packets so far to be queued", || {
                let all = holders(ns)?;
                let counted = |holder: &Holder| holder.held[0].queued == sent && !holder.partial;
                Ok(all.iter().any(counted))
            });
        }
    }
    provider::wait_for("more packets than are counted", || {
        Ok(holders(ns)?.iter().any(|holder| holder.partial))
    });
    let told = holder(ns)?;
    assert_eq!(told.local.port(), PORT);
    let id = Some(bench.binding.id());
    let held: Vec<_> = told.held.iter().map(numbers).collect();
    assert_eq!(held, [(id, 0, 0, COUNTED)]);
    drop(socket);
    provider::wait_for(
        "the socket to give all back",
        || Ok(holders(ns)?.is_empty()),
    );
    Ok(())
}

/// It is for administrators of the network namespace.
fn not_for_everybody() -> Outcome {
    events::skip_without()?;
    let bench = Receiving::new()?;
    bench.send(&[100])?;
    let ns = &bench.pair.rx.ns;
    let ask_as = |become_it: fn() -> io::Result<()>| -> io::Result<u32> {
        let mut asker = Child::start(|talk| {
            child::enter(ns)?;
            become_it()?;
            talk.tell(diag::holders()?.len())
        })?;
        let told = asker.talk().hear_number()?;
        asker.end()?;
        Ok(told)
    };
    let (root, nobody) = (ask_as(|| Ok(()))?, ask_as(|| child::become_user(NOBODY))?);
    observe(format_args!("root: {root}, nobody: {nobody}"));
    assert_eq!((root, nobody), (1, 0));
    Ok(())
}

/// A small memory is bound, and who binds it is told how much the rings want.
fn small_memory_is_warned_of() -> Outcome {
    events::skip_without()?;
    let pair = Pair::new()?;
    // What is bound a moment after another is unbound has queues of its own.
    for (buffers, queues, wanted) in [
        (16, &[0][..], Some(RING)),
        (RING - 1, &[1], Some(RING)),
        (RING, &[2], None),
        (RING, &[3, 4], Some(2 * RING)),
        (2 * RING, &[5, 6], None),
    ] {
        let memory = DmaBuf::udmabuf(buffers * PAGE)?;
        let request = pair.request(queues);
        let warning = pair.rx.ns.run(|| {
            let mut netdev = Netdev::open()?;
            netdev.bind_rx(&request.attrs(&memory))?;
            Ok(netdev.warning().map(str::to_owned))
        })?;
        let expected =
            wanted.map(|wanted| format!("dma-buf has {buffers} buffers, the rings want {wanted}"));
        assert_eq!(warning, expected, "{buffers} buffers");
        observe(format_args!("{buffers} buffers: {warning:?}"));
    }
    // To send from there is no ring.
    let pair = Pair::sending()?;
    let memory = DmaBuf::udmabuf(PAGE)?;
    let request = BindTx::new(pair.tx.ifindex);
    let warning = pair.tx.ns.run(|| {
        let mut netdev = Netdev::open()?;
        netdev.bind_tx(&request.attrs(&memory))?;
        Ok(netdev.warning().map(str::to_owned))
    })?;
    assert_eq!(warning, None);
    Ok(())
}

const BINDINGS: &[&str] = &["net_devmem_bind", "net_devmem_unbind", "net_devmem_revoke"];
const SUPPLY: &[&str] = &["net_devmem_exhausted", "net_devmem_available"];

/// What the tracepoints of bindings tell.
fn traced(event: &str, id: u32, ifindex: u32, direction: &str, buffers: usize) -> String {
    let provider = provider::under_test().name();
    format!(
        "{event}: dmabuf_id={id} ifindex={ifindex} direction={direction} provider={provider} \
         buffers={buffers} buffer_size={PAGE}"
    )
}

#[track_caller]
fn wait_told(trace: &Trace, id: u32, expected: &[String]) -> io::Result<()> {
    provider::wait_for("the tracepoints to tell it", || {
        Ok(trace.told_of(id)?.len() >= expected.len())
    });
    assert_eq!(trace.told_of(id)?, expected);
    Ok(())
}

fn bindings_are_traced() -> Outcome {
    const BUFFERS: usize = 2 * RING;
    events::skip_without()?;
    let memory = DmaBuf::udmabuf(BUFFERS * PAGE)?;
    let pair = Pair::sending()?;
    let trace = Trace::watch(BINDINGS)?;
    let (rx, tx) = (pair.bind(&[1], &memory)?, pair.tx.bind_tx(&memory)?);
    // One that comes to nothing, after the first of its queues was opened.
    assert!(pair.bind(&[0, 1], &memory).is_err());
    // The bindings of another test may be unbound only now.
    let mut told = trace.told()?;
    told.retain(|line| line.starts_with("net_devmem_bind: "));
    assert_eq!(told.len(), 2, "{told:?}");

    for (id, ifindex, direction, unbind) in [
        (
            rx.id(),
            pair.rx.ifindex,
            "rx",
            Box::new(move || drop(rx)) as Box<dyn FnOnce()>,
        ),
        (tx.id(), pair.tx.ifindex, "tx", Box::new(move || drop(tx))),
    ] {
        let event = |name| traced(name, id, ifindex, direction, BUFFERS);
        wait_told(&trace, id, &[event("net_devmem_bind")])?;
        unbind();
        wait_told(
            &trace,
            id,
            &[event("net_devmem_bind"), event("net_devmem_unbind")],
        )?;
    }
    Ok(())
}

/// Once for each time, as the events.
fn exhaustion_is_traced() -> Outcome {
    /// More than a ring and what a page pool keeps beside, by more than a quarter of all.
    const BUFFERS: usize = 2 * RING;
    events::skip_without()?;
    let bench = Receiving::into_memory(DmaBuf::udmabuf(BUFFERS * PAGE)?)?;
    let mut probe = bench.probe().quiet();
    let trace = Trace::watch(SUPPLY)?;
    let (id, ifindex) = (bench.binding.id(), bench.pair.rx.ifindex);
    let event = |name| traced(name, id, ifindex, "rx", BUFFERS);

    take(&bench, &mut probe, BUFFERS)?;
    wait_told(&trace, id, &[event("net_devmem_exhausted")])?;
    probe.give_back();
    let both = [event("net_devmem_exhausted"), event("net_devmem_available")];
    wait_told(&trace, id, &both)?;
    Ok(())
}

/// Errors that have several reasons.
fn reasons_not_to_send_are_traced() -> Outcome {
    events::skip_without()?;
    let bench = Sending::new()?;
    let other = Pair::sending()?;
    let elsewhere = other.tx.bind_tx(&bench.memory)?;
    let trace = Trace::watch(&[trace::REFUSED])?;
    let part = [extent(0, 100)];

    let call = Send::new(elsewhere.id(), &part);
    fails(call.send(&bench.connection.tx), Errno::ENODEV);
    let id = elsewhere.id();
    let reason = |id, reason| {
        format!(
            "{}: dmabuf_id={id} reason={reason} user=0 owner=0",
            trace::REFUSED
        )
    };
    assert_eq!(trace.told_of(id)?, [reason(id, "other_device")]);

    bench.sends(&bench.call(&part));
    bench.expect(&part)?;
    let id = bench.binding.id();
    assert_eq!(trace.told_of(id)?, <[String; 0]>::default());
    bench.pair.tx.set_up(false)?;
    fails(
        bench.call(&part).send(&bench.connection.tx),
        Errno::EHOSTUNREACH,
    );
    assert_eq!(trace.told_of(id)?, [reason(id, "no_route")]);
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        what_a_socket_holds,
        many_tokens,
        of_many_bindings,
        long_queues,
        not_for_everybody,
        small_memory_is_warned_of,
        bindings_are_traced,
        exhaustion_is_traced,
        reasons_not_to_send_are_traced,
    ])
}
