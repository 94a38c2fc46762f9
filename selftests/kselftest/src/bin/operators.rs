// SPDX-License-Identifier: GPL-2.0

//! What an operator is told of bindings, asked for or not, by the `netdev` family.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Error;
use devmem::Piece;
use devmem::Receiver;
use devmem::netdev::Netdev;
use devmem::netdev::cmd;
use devmem::netdev::dmabuf;
use devmem::netlink::Attrs;
use devmem::netns::Netns;
use devmem::status::BindingStatus;
use devmem::status::Counters;
use devmem::status::Event;
use devmem::status::EventKind;
use devmem::status::Events;
use devmem::status::State;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::events;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::fixture::Sending;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::provider;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

const PAGE: usize = 4096;
/// A DMA address behind which there is nothing.
const NOWHERE: u64 = 1 << 40;
/// More than two rings, and what their page pools keep beside.
const MEMORY: usize = 1024 * PAGE;
/// An event that is to come.
const SOON: Duration = Duration::from_secs(5);
/// One that is not to come would have come sooner.
const A_WHILE: Duration = Duration::from_millis(300);

fn bindings(ns: &Netns) -> io::Result<Vec<BindingStatus>> {
    ns.run(|| Ok(Netdev::open()?.bindings()?))
}

fn ids(bindings: &[BindingStatus]) -> Vec<u32> {
    bindings.iter().map(|binding| binding.id).collect()
}

/// The binding of this number, or none.
fn binding(ns: &Netns, id: u32) -> io::Result<Option<BindingStatus>> {
    match ns.run(|| Ok(Netdev::open()?.binding(id)))? {
        Err(err) if err.errno() == Some(Errno::ENOENT as i32) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// Events, each of which is asked for.
struct Told(Events);

impl Told {
    fn of(ns: &Netns) -> io::Result<Self> {
        Ok(Self(ns.run(|| Ok(Events::open()?))?))
    }

    #[track_caller]
    fn next(&mut self, kind: EventKind, id: u32) -> BindingStatus {
        let event = self.0.next_timeout(wait::patience(SOON));
        let event: Option<Event> = event.expect("to be told");
        let event = event.unwrap_or_else(|| panic!("not told: {kind:?}"));
        assert_eq!((event.kind, event.binding.id), (kind, id), "{event:?}");
        event.binding
    }

    #[track_caller]
    fn nothing(&mut self) {
        let event = self.0.next_timeout(A_WHILE).expect("to be told");
        assert_eq!(event, None);
    }
}

fn a_receive_binding() -> Outcome {
    events::skip_without()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let bound = pair.bind(&[1, 3], &memory)?;
    let ns = &pair.rx.ns;

    let status = binding(ns, bound.id())?.expect("the binding");
    assert_eq!(status.id, bound.id());
    assert_eq!((status.rx, status.state), (true, State::Bound));
    assert_eq!(status.provider, provider::under_test().name());
    assert_eq!(status.ifindex, Some(pair.rx.ifindex));
    assert_eq!(status.queues, [1, 3]);
    assert_eq!(status.rx_page_size, Some(PAGE as u32));
    assert!(!status.shared);
    // It has nothing to do with peers, and so does not say that it is not one.
    assert_eq!(status.peer_to_peer, Some(true));
    assert_eq!(status.buffers, Some((MEMORY / PAGE) as u64));
    let in_use = status.in_use.expect("a count");
    assert!(in_use > 0 && in_use < 1024, "{status:?}");

    let counters = status.counters;
    assert_eq!(counters.exhausted, Some(0));
    assert_eq!(counters.exhausted_time, Some(Duration::ZERO));
    assert_eq!(counters.tx_bytes, None);
    match provider::under_test() {
        Provider::Module => {
            let handed_out = counters.alloc.zip(counters.recycle);
            assert_eq!(
                handed_out.map(|(alloc, recycle)| alloc - recycle),
                Some(in_use)
            );
        }
        Provider::Builtin => assert_eq!((counters.alloc, counters.recycle), (None, None)),
    }

    assert_eq!(bindings(ns)?, [status]);
    let of_device = |ifindex| ns.run(move || Ok(Netdev::open()?.bindings_of(ifindex)?));
    assert_eq!(ids(&of_device(pair.rx.ifindex)?), [bound.id()]);
    assert_eq!(of_device(pair.rx.ifindex + 1000)?, []);

    let elsewhere = &pair.tx.ns;
    assert_eq!(bindings(elsewhere)?, []);
    assert_eq!(binding(elsewhere, bound.id())?, None);
    Ok(())
}

fn a_transmit_binding() -> Outcome {
    events::skip_without()?;
    let sending = Sending::new()?;
    let ns = &sending.pair.tx.ns;
    let sent = |bytes| (provider::under_test() == Provider::Module).then_some(bytes);

    let status = binding(ns, sending.binding.id())?.expect("the binding");
    assert_eq!((status.rx, status.state), (false, State::Bound));
    assert_eq!(status.provider, provider::under_test().name());
    assert_eq!(status.ifindex, Some(sending.pair.tx.ifindex));
    assert_eq!(
        (status.queues.as_slice(), status.rx_page_size),
        (&[][..], None)
    );
    assert_eq!(status.peer_to_peer, Some(true));
    let pages = Sending::MEMORY / PAGE as u64;
    assert_eq!((status.buffers, status.in_use), (Some(pages), Some(0)));
    assert_eq!(status.counters.exhausted, None);
    assert_eq!(status.counters.tx_bytes, sent(0));

    let part = [extent(100, 3 * PAGE as u64)];
    sending.sends(&sending.call(&part));
    sending.expect(&part)?;
    sending.completes()?;
    let status = binding(ns, sending.binding.id())?.expect("the binding");
    assert_eq!(status.counters.tx_bytes, sent(3 * PAGE as u64));
    // The page before it is taken back.
    let end = extent(Sending::MEMORY - PAGE as u64, 2 * PAGE as u64);
    sending.refused(&sending.call(&[end]), Errno::EFAULT);
    let status = binding(ns, sending.binding.id())?.expect("the binding");
    assert_eq!(status.counters.tx_bytes, sent(3 * PAGE as u64));

    let shared = BindTx::new(sending.pair.tx.ifindex).shared();
    let shared = ns.run(|| Ok(shared.bind(&sending.memory)?))?;
    assert!(binding(ns, shared.id())?.expect("the binding").shared);
    Ok(())
}

/// What is left of a binding can be seen until its last token is back.
fn unbound_with_tokens() -> Outcome {
    events::skip_without()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let bound = pair.bind(&[1], &memory)?;
    let id = bound.id();
    let connection = pair.connect_to_queue(Ip::V4, 5001, 1)?;
    traffic::send(&connection.tx, 0, 1, 1)?;
    let mut receiver = Receiver::new(&connection.rx);
    let Some(Piece::Frag(held)) = receiver.recv()?.next() else {
        panic!("not in device memory");
    };

    let mut told = Told::of(&pair.rx.ns)?;
    drop(bound);
    told.next(EventKind::Unbound, id);
    provider::wait_for("only the held buffer to be in use", || {
        let status = binding(&pair.rx.ns, id)?;
        Ok(status.is_some_and(|status| status.in_use == Some(1)))
    });
    let status = binding(&pair.rx.ns, id)?.expect("what is left");
    assert_eq!(status.state, State::Unbound);
    assert_eq!((status.ifindex, status.queues.as_slice()), (None, &[][..]));
    told.nothing();

    drop(held);
    told.next(EventKind::Deleted, id);
    assert_eq!(binding(&pair.rx.ns, id)?, None);
    Ok(())
}

fn events_of_bindings() -> Outcome {
    events::skip_without()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::sending()?;
    let (mut at_rx, mut at_tx) = (Told::of(&pair.rx.ns)?, Told::of(&pair.tx.ns)?);

    let rx = pair.bind(&[1], &memory)?;
    let status = at_rx.next(EventKind::Added, rx.id());
    assert_eq!(
        (status.state, status.ifindex),
        (State::Bound, Some(pair.rx.ifindex))
    );
    assert_eq!(
        (status.queues.as_slice(), status.buffers),
        (&[1][..], Some(1024))
    );

    // One that comes to nothing, after the first of its queues was opened.
    assert!(pair.bind(&[0, 1], &memory).is_err());
    at_rx.nothing();

    let tx = pair.tx.bind_tx(&memory)?;
    let status = at_tx.next(EventKind::Added, tx.id());
    assert_eq!((status.rx, status.ifindex), (false, Some(pair.tx.ifindex)));
    // There may be others who listen.
    assert_eq!(
        (status.buffers, status.in_use, status.peer_to_peer),
        (None, None, None)
    );
    assert_eq!(status.counters, Counters::default());

    let id = rx.id();
    drop(rx);
    let status = at_rx.next(EventKind::Unbound, id);
    assert_eq!(
        (status.state, status.ifindex),
        (State::Unbound, Some(pair.rx.ifindex))
    );
    at_rx.next(EventKind::Deleted, id);
    at_rx.nothing();
    let id = tx.id();
    drop(tx);
    assert_eq!(at_tx.next(EventKind::Unbound, id).state, State::Unbound);
    at_tx.next(EventKind::Deleted, id);
    at_tx.nothing();
    Ok(())
}

/// The owner is left with a binding of nothing.
fn the_device_goes() -> Outcome {
    events::skip_without()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::sending()?;
    let (mut at_rx, mut at_tx) = (Told::of(&pair.rx.ns)?, Told::of(&pair.tx.ns)?);
    let (rx, tx) = (pair.bind(&[1, 2], &memory)?, pair.tx.bind_tx(&memory)?);
    at_rx.next(EventKind::Added, rx.id());
    at_tx.next(EventKind::Added, tx.id());

    pair.rx.delete()?;
    assert_eq!(
        at_rx.next(EventKind::Unbound, rx.id()).state,
        State::Unbound
    );
    pair.tx.delete()?;
    assert_eq!(
        at_tx.next(EventKind::Unbound, tx.id()).state,
        State::Unbound
    );
    for (ns, id) in [(&pair.rx.ns, rx.id()), (&pair.tx.ns, tx.id())] {
        let status = binding(ns, id)?.expect("what is left");
        assert_eq!((status.state, status.ifindex), (State::Unbound, None));
    }

    let (rx_id, tx_id) = (rx.id(), tx.id());
    drop((rx, tx));
    at_rx.next(EventKind::Deleted, rx_id);
    at_tx.next(EventKind::Deleted, tx_id);
    at_rx.nothing();
    at_tx.nothing();
    Ok(())
}

/// Takes all buffers, a byte in each.
fn take_all(bench: &Receiving, probe: &mut Probe<'_>, buffers: u64) -> io::Result<()> {
    for _ in 0..buffers {
        bench.start_sending(1)?;
        probe.receive(&Call::new(1)).assert_frags(&[1]);
    }
    Ok(())
}

/// A reader that returns nothing is told of once, however many packets are dropped for it, and so is that it is over.
fn exhaustion() -> Outcome {
    /// More than a ring and what a page pool keeps beside, by more than a quarter of all.
    const BUFFERS: u64 = 512;
    events::skip_without()?;
    let bench = Receiving::into_memory(DmaBuf::udmabuf(BUFFERS as usize * PAGE)?)?;
    let mut probe = bench.probe().quiet();
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    let mut told = Told::of(ns)?;

    for times in 1..=2 {
        take_all(&bench, &mut probe, BUFFERS)?;
        let status = told.next(EventKind::Exhausted, id);
        assert_eq!(status.counters.exhausted, Some(times), "{status:?}");
        told.nothing();
        let status = binding(ns, id)?.expect("the binding");
        assert_eq!(
            (status.in_use, status.buffers),
            (Some(BUFFERS), Some(BUFFERS))
        );
        assert!(
            status.counters.exhausted_time >= Some(A_WHILE),
            "{status:?}"
        );

        probe.give_back();
        let status = told.next(EventKind::Available, id);
        assert!(status.in_use <= Some(BUFFERS - BUFFERS / 4), "{status:?}");
        let lasted = status.counters.exhausted_time;
        told.nothing();
        let status = binding(ns, id)?.expect("the binding");
        assert_eq!(status.counters.exhausted, Some(times));
        assert_eq!(status.counters.exhausted_time, lasted, "it is over");
    }
    Ok(())
}

/// The ring of the queue takes all there is, and wants more: told after there is a binding, and never over.
fn less_memory_than_the_ring() -> Outcome {
    events::skip_without()?;
    let memory = DmaBuf::udmabuf(16 * PAGE)?;
    let pair = Pair::new()?;
    let mut told = Told::of(&pair.rx.ns)?;
    let bound = pair.bind(&[1], &memory)?;
    let id = bound.id();
    told.next(EventKind::Added, id);
    told.next(EventKind::Exhausted, id);
    told.nothing();
    drop(bound);
    told.next(EventKind::Unbound, id);
    told.next(EventKind::Deleted, id);
    told.nothing();
    Ok(())
}

/// Whether the device reaches it where it is, as the exporter says: both ways, of each binding.
fn where_the_memory_is() -> Outcome {
    events::skip_without()?;
    let shape = Shape::new(&[Segment {
        addr: NOWHERE,
        len: 4 * PAGE as u64,
    }]);
    for (shape, expected) in [
        (shape.clone().demands_peer(), true),
        (shape.clone().in_host_memory(), false),
        (shape.no_room_for_peers(), false),
    ] {
        let pair = Pair::new()?;
        let told = |ns: &Netns, id| -> io::Result<_> {
            Ok(binding(ns, id)?.expect("the binding").peer_to_peer)
        };
        let rx = pair.request(&[1]);
        let rx = pair.rx.ns.run(|| Ok(rx.bind(shape.of_nothing()?)?))?;
        assert_eq!(told(&pair.rx.ns, rx.id())?, Some(expected), "{shape:?}");
        let tx = BindTx::new(pair.tx.ifindex);
        let tx = pair.tx.ns.run(|| Ok(tx.bind(shape.of_nothing()?)?))?;
        assert_eq!(told(&pair.tx.ns, tx.id())?, Some(expected), "{shape:?}");
    }
    Ok(())
}

/// There is no binding of number 0, nor a device.
fn malformed_requests() -> Outcome {
    events::skip_without()?;
    let mut netdev = Netdev::open()?;
    match netdev.request(cmd::DMABUF_GET, &Attrs::new()) {
        Err(Error::Refused { errno, ack }) => {
            assert_eq!(Errno::from_raw(errno), Errno::EINVAL);
            assert_eq!(ack.missing, Some(dmabuf::ID.into()));
        }
        other => panic!("not refused: {other:?}"),
    }
    let errno = |refused: Option<Error>| refused.and_then(|err| err.errno()).map(Errno::from_raw);
    assert_eq!(errno(netdev.binding(0).err()), Some(Errno::ERANGE));
    assert_eq!(errno(netdev.bindings_of(0).err()), Some(Errno::ERANGE));
    Ok(())
}

/// More than there is room for in one message, each once, and in their order.
fn a_list_of_many() -> Outcome {
    const MANY: usize = 100;
    events::skip_without()?;
    let memory = DmaBuf::udmabuf(PAGE)?;
    let pair = Pair::sending()?;
    let request = BindTx::new(pair.tx.ifindex);
    let (netdev, made) = pair.tx.ns.run(|| {
        let mut netdev = Netdev::open()?;
        let made = (0..MANY).map(|_| netdev.bind_tx(&request.attrs(&memory)));
        let made = made.collect::<Result<Vec<_>, _>>()?;
        Ok((netdev, made))
    })?;
    assert_eq!(ids(&bindings(&pair.tx.ns)?), made);
    drop(netdev);
    Ok(())
}

/// Who does not listen for too long is told that.
fn events_that_are_lost() -> Outcome {
    events::skip_without()?;
    let memory = DmaBuf::udmabuf(PAGE)?;
    let pair = Pair::sending()?;
    let mut told = Told::of(&pair.tx.ns)?;
    setsockopt(&told.0, sockopt::RcvBuf, &0)?;
    for _ in 0..20 {
        drop(pair.tx.bind_tx(&memory)?);
    }
    let (mut events, mut lost) = (0, 0);
    loop {
        match told.0.try_next() {
            Ok(Some(_)) => events += 1,
            Ok(None) => break,
            Err(Error::Lost) => lost += 1,
            Err(err) => return Err(err.into()),
        }
    }
    assert!(
        lost > 0 && events < 60,
        "{events} events, {lost} times lost"
    );

    provider::wait_for("the last of them to be gone", || {
        Ok(bindings(&pair.tx.ns)?.is_empty())
    });
    loop {
        match told.0.next_timeout(A_WHILE) {
            Ok(Some(_)) | Err(Error::Lost) => (),
            Ok(None) => break,
            Err(err) => return Err(err.into()),
        }
    }
    let bound = pair.tx.bind_tx(&memory)?;
    told.next(EventKind::Added, bound.id());
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        a_receive_binding,
        a_transmit_binding,
        unbound_with_tokens,
        events_of_bindings,
        the_device_goes,
        exhaustion,
        less_memory_than_the_ring,
        where_the_memory_is,
        malformed_requests,
        a_list_of_many,
        events_that_are_lost,
    ])
}
