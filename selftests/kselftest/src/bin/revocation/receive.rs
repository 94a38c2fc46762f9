// SPDX-License-Identifier: GPL-2.0

//! What is received into: the flow goes on in host memory, and nobody reads what was in the other.

use std::cell::Cell;
use std::io;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::Error;
use devmem::Piece;
use devmem::Receiver;
use devmem::netdev::Netdev;
use devmem::status::EventKind;
use devmem::status::Events;
use devmem::status::State;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::storm;
use devmem_testlib::taken;
use devmem_testlib::trace::Trace;
use devmem_testlib::traffic;
use devmem_testlib::wait;
use nix::errno::Errno;

use crate::memory::LEN;
use crate::memory::assert_gone;
use crate::memory::memory;
use crate::memory::revoke;
use crate::memory::shape;
use crate::memory::tell_times;
use crate::memory::wait_gone;

const PAGE: u64 = 4096;
const QUEUE: u32 = 1;
const PLAIN_QUEUE: u32 = 0;
const PORT: u16 = 5001;
const ROUNDS: usize = 20;
/// What does not happen would have happened sooner.
const A_WHILE: Duration = Duration::from_millis(300);
/// What happens has happened by then.
const SOON: Duration = Duration::from_secs(5);

fn bind_to(pair: &Pair, queues: &[u32], memory: &OddDmaBuf) -> io::Result<Result<Netdev, Error>> {
    pair.rx.ns.run(|| {
        let mut netdev = Netdev::open()?;
        let bound = netdev.bind_rx(&pair.request(queues).attrs(memory));
        Ok(bound.map(|_| netdev))
    })
}

/// Memory that nobody has taken back.
fn fresh() -> io::Result<OddDmaBuf> {
    memory(&shape())
}

fn bind(pair: &Pair, memory: &OddDmaBuf) -> io::Result<Netdev> {
    Ok(bind_to(pair, &[QUEUE], memory)?.expect("to bind"))
}

/// A connection that is sent the stream.
struct Flow {
    pair: Pair,
    connection: Connection,
    position: Cell<u64>,
}

impl Flow {
    fn new() -> io::Result<Self> {
        let pair = Pair::new()?;
        let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
        Ok(Self {
            pair,
            connection,
            position: Cell::new(0),
        })
    }

    /// Sends and receives so many bytes, and compares those in host memory. Returns how many of them were in device
    /// memory.
    fn pass(&self, bytes: u64) -> io::Result<u64> {
        let from = self.position.get();
        let (mut got, mut in_frags) = (from, 0);
        let mut receiver = Receiver::new(&self.connection.rx);
        thread::scope(|scope| {
            let sender = traffic::send_in(scope, &self.connection.tx, from, bytes, 1 << 16);
            while got < from + bytes {
                let received = receiver.recv()?;
                assert!(!received.is_eof(), "the stream ended at {got}");
                for piece in received {
                    got += match piece {
                        Piece::Frag(frag) => {
                            in_frags += u64::from(frag.size);
                            u64::from(frag.size)
                        }
                        Piece::Linear(data) | Piece::Plain(data) => {
                            traffic::compare(got, data);
                            data.len() as u64
                        }
                    };
                }
            }
            sender.join().expect("a thread that sends")
        })?;
        self.position.set(got);
        Ok(in_frags)
    }

    /// Passes some by device memory.
    fn pass_in_frags(&self) -> Outcome {
        assert_eq!(self.pass(LEN)?, LEN);
        Ok(())
    }

    /// Passes some by host memory.
    fn pass_in_pages(&self) -> Outcome {
        assert_eq!(self.pass(LEN)?, 0, "in memory that is not there any more");
        Ok(())
    }

    /// Sends a part that is received by this queue, and does not read it.
    fn leave_unread(&self, queue: u32, len: u64) -> Outcome {
        let Connection { rx, tx } = &self.connection;
        self.pair.steer_again(PORT, queue)?;
        let from = self.position.get();
        traffic::send(tx, from, len, len as usize)?;
        self.position.set(from + len);
        wait_received(rx, from + len);
        Ok(())
    }
}

/// The exporter has its memory back, and can give it to nobody any more.
pub fn between_packets() -> Outcome {
    let flow = Flow::new()?;
    for round in 0..ROUNDS {
        // One that can move is unpinned, too.
        let shape = if round % 2 == 0 {
            shape()
        } else {
            shape().moves()
        };
        let memory = memory(&shape.demands_peer().demands_revocable())?;
        let bound = bind(&flow.pair, &memory)?;
        flow.pass_in_frags()?;
        revoke(&memory)?;
        flow.pass_in_pages()?;
        assert_gone(&memory)?;

        let refused = bind_to(&flow.pair, &[QUEUE], &memory)?.err();
        let Some(Error::Refused { errno, .. }) = refused else {
            panic!("not refused: {refused:?}");
        };
        assert_eq!(Errno::from_raw(errno), Errno::ENODEV);
        // The queue is free for another one, whatever becomes of the first.
        drop(bind(&flow.pair, &fresh()?)?);
        drop(bound);
    }
    Ok(())
}

/// The same, again and again with everything in motion: what is in memory that is gone is lost to its reader, who is
/// told, and others go on.
pub fn under_traffic() -> Outcome {
    let pair = Pair::new()?;
    pair.steer(PORT, QUEUE)?;
    let listener = pair.listen(Ip::V4, PORT)?;
    let (mut times, mut lost) = (Vec::new(), 0);
    let rounds = ROUNDS * storm::scale("STORM_ROUNDS", 1) as usize;
    for _ in 0..rounds {
        let connection = pair.connect(&listener)?;
        let memory = memory(&shape())?;
        let bound = bind(&pair, &memory)?;
        let (time, end) = taken::while_received(&connection, || Ok(memory.revoke()?))?;
        times.push(time);
        match end {
            Ok(()) => (),
            Err(Errno::EIO) => lost += 1,
            Err(errno) => panic!("{errno}"),
        }
        wait_gone(&memory)?;
        drop((bound, connection));
    }
    tell_times(
        times,
        format_args!("{lost} of {rounds} readers lost something"),
    );
    Ok(())
}

/// What is before data in memory that was taken back is read, those and what is behind them are not. Tokens come back
/// as ever, and with the last one the binding goes.
pub fn unread() -> Outcome {
    const PART: u64 = 1000;
    let flow = Flow::new()?;
    let memory = memory(&shape())?;
    let bound = bind(&flow.pair, &memory)?;
    flow.leave_unread(QUEUE, PART)?;
    let mut receiver = Receiver::with_capacity(&flow.connection.rx, PART as usize, 16);
    let mut held: Vec<_> = receiver
        .recv()?
        .filter_map(|piece| match piece {
            Piece::Frag(frag) => Some(frag.token),
            _ => None,
        })
        .collect();
    assert!(!held.is_empty(), "not in device memory");
    flow.leave_unread(PLAIN_QUEUE, PART)?;
    flow.leave_unread(QUEUE, PART)?;
    revoke(&memory)?;
    flow.leave_unread(QUEUE, PART)?;

    let before = receiver.recv()?.total();
    let errors = [(); 2].map(|()| {
        let error = receiver.recv().map(|received| received.total());
        error.map_err(|err| err.raw_os_error())
    });
    assert_eq!((before, errors), (PART as usize, [Err(Some(libc::EIO)); 2]));
    drop(bound);
    assert_eq!(provider::bindings()?.map(|list| list.len()), Some(1));
    held.clear();
    Ok(())
}

/// A packet has what came by two queues, from memory of two bindings: that of one of them is still there.
pub fn behind_what_is_still_there() -> Outcome {
    const PART: u64 = 1000;
    for first_goes in [false, true] {
        let flow = Flow::new()?;
        let memories = [memory(&shape())?, memory(&shape())?];
        let mut owners = Vec::new();
        for (queue, memory) in [QUEUE, QUEUE + 1].into_iter().zip(&memories) {
            owners.push(bind_to(&flow.pair, &[queue], memory)?.expect("to bind"));
        }
        for queue in [QUEUE, QUEUE + 1] {
            flow.leave_unread(queue, PART)?;
        }
        revoke(&memories[usize::from(!first_goes)])?;
        let mut receiver = Receiver::new(&flow.connection.rx);
        if !first_goes {
            assert_eq!(receiver.recv()?.total(), PART as usize);
        }
        let error = receiver.recv().map(|received| received.total());
        let errno = error.map_err(|err| err.raw_os_error());
        assert_eq!(errno, Err(Some(libc::EIO)), "first_goes: {first_goes}");
    }
    Ok(())
}

/// Somebody else's request waits for the exporter: there is no binding yet, of which to take the memory.
pub fn while_it_is_waited_for() -> Outcome {
    let pair = Pair::new()?;
    is_refused_then(|memory| bind_to(&pair, &[QUEUE], memory))?;
    is_refused_then(|memory| {
        pair.tx.ns.run(|| {
            let mut netdev = Netdev::open()?;
            let bound = netdev.bind_tx(&BindTx::new(pair.tx.ifindex).attrs(memory));
            Ok(bound.map(|_| netdev))
        })
    })
}

fn is_refused_then(
    bind: impl Fn(&OddDmaBuf) -> io::Result<Result<Netdev, Error>> + Sync,
) -> Outcome {
    let memory = memory(&shape().with_fence())?;
    let (bound, revoked) = thread::scope(|scope| {
        let request = scope.spawn(|| bind(&memory));
        provider::wait_for("the mapping", || Ok(memory.state()?.mapped == 1));
        let revoked = scope.spawn(|| memory.revoke());
        thread::sleep(wait::stretched(A_WHILE));
        let signalled = memory.signal();
        let bound = request.join().expect("a thread that binds")?;
        signalled?;
        Ok::<_, io::Error>((bound, revoked.join().expect("a thread that revokes")))
    })?;
    let refused = bound.err();
    let Some(Error::Refused { errno, ack }) = refused else {
        panic!("not refused: {refused:?}");
    };
    assert_eq!(
        (Errno::from_raw(errno), ack.message.as_deref()),
        (
            Errno::ENODEV,
            Some("dma-buf was taken back by its exporter")
        )
    );
    assert_eq!(revoked, Ok(()));
    wait_gone(&memory)
}

/// What moves to be pinned where it is to stay is not taken back.
pub fn moves_to_be_pinned() -> Outcome {
    let flow = Flow::new()?;
    let memory = memory(&shape().moves_to_pin())?;
    let bound = bind(&flow.pair, &memory)?;
    thread::sleep(wait::stretched(A_WHILE));
    assert_eq!(memory.state()?.mapped, 1);
    flow.pass_in_frags()?;
    drop(bound);
    Ok(())
}

/// All queues of a binding go on, and nobody cares how often they are told.
pub fn several_queues_by_several() -> Outcome {
    let flow = Flow::new()?;
    let memory = memory(&shape())?;
    let bound = bind_to(&flow.pair, &[1, 2, 3], &memory)?.expect("to bind");
    flow.pass_in_frags()?;
    thread::scope(|scope| {
        let all = [(); 4].map(|()| scope.spawn(|| memory.revoke()));
        for one in all {
            assert_eq!(one.join().expect("a thread that revokes"), Ok(()));
        }
    });
    wait_gone(&memory)?;
    flow.pass_in_pages()?;
    let others = bind_to(&flow.pair, &[1, 2, 3], &fresh()?)?;
    drop(others.expect("to bind anew"));
    drop(bound);
    Ok(())
}

/// One of two bindings of a device: the other one does not notice.
pub fn beside_another() -> Outcome {
    let flow = Flow::new()?;
    let other = Shape::new(&[Segment {
        addr: 1 << 40,
        len: 4 * PAGE,
    }])
    .of_nothing()?;
    let memory = memory(&shape())?;
    let others = bind_to(&flow.pair, &[QUEUE + 1], &other)?.expect("to bind");
    let bound = bind(&flow.pair, &memory)?;
    flow.pass_in_frags()?;
    revoke(&other)?;
    flow.pass_in_frags()?;
    drop((others, bound));
    Ok(())
}

/// Whoever comes first, the owner or the exporter: both have what they want.
pub fn while_it_is_unbound() -> Outcome {
    let pair = Pair::new()?;
    for round in 0..ROUNDS as u64 {
        let memory = memory(&shape())?;
        let bound = bind(&pair, &memory)?;
        thread::scope(|scope| {
            let revoked = scope.spawn(|| memory.revoke());
            // Sooner or later within what it takes.
            thread::sleep(Duration::from_millis(round));
            drop(bound);
            assert_eq!(revoked.join().expect("a thread that revokes"), Ok(()));
        });
        wait_gone(&memory)?;
    }
    Ok(())
}

/// The same for the device.
pub fn while_the_device_goes() -> Outcome {
    for round in 0..8 {
        let pair = Pair::new()?;
        let memory = memory(&shape())?;
        let bound = bind(&pair, &memory)?;
        thread::scope(|scope| -> Outcome {
            let revoked = scope.spawn(|| memory.revoke());
            thread::sleep(Duration::from_millis(4 * round));
            pair.rx.delete()?;
            assert_eq!(revoked.join().expect("a thread that revokes"), Ok(()));
            Ok(())
        })?;
        wait_gone(&memory)?;
        drop(bound);
    }
    Ok(())
}

/// A device that is down has no page pools. When it is set up again it has nothing of the memory.
pub fn of_a_device_that_is_down() -> Outcome {
    let pair = Pair::new()?;
    let memory = memory(&shape())?;
    let bound = bind(&pair, &memory)?;
    pair.rx.set_up(false)?;
    revoke(&memory)?;
    pair.rx.set_up(true)?;
    drop(bind(&pair, &fresh()?)?);
    assert_gone(&memory)?;
    drop(bound);
    Ok(())
}

/// Who listens hears of it once the queue can be bound anew, and what is left can be seen until its owner lets go.
pub fn is_told() -> Outcome {
    let pair = Pair::new()?;
    let mut events = pair.rx.ns.run(|| Ok(Events::open()?))?;
    let mut next = || -> io::Result<_> {
        loop {
            let event = events.next_timeout(wait::patience(SOON))?;
            match event.map(|event| (event.kind, event.binding.id, event.binding.state)) {
                // The memory is as large as the ring.
                Some((EventKind::Exhausted | EventKind::Available, ..)) => (),
                event => return Ok(event),
            }
        }
    };
    let memory = memory(&shape().demands_peer().demands_revocable())?;
    let (id, bound) = pair.rx.ns.run(|| {
        let mut netdev = Netdev::open()?;
        let id = netdev.bind_rx(&pair.request(&[QUEUE]).attrs(&memory))?;
        Ok((id, netdev))
    })?;
    assert_eq!(next()?, Some((EventKind::Added, id, State::Bound)));

    let trace = Trace::watch(&["net_devmem_revoke", "net_devmem_unbind"])?;
    revoke(&memory)?;
    assert_eq!(next()?, Some((EventKind::Revoked, id, State::Revoked)));
    // From when the exporter asked until it is off its queue.
    let told = trace.told_of(id)?;
    let names = told.iter().filter_map(|line| line.split(':').next());
    let names: Vec<_> = names.collect();
    assert_eq!(
        names,
        ["net_devmem_revoke", "net_devmem_unbind"],
        "{told:?}"
    );
    let other = bind(&pair, &fresh()?)?;
    assert_eq!(next()?.map(|event| event.0), Some(EventKind::Added));
    let status = pair.rx.ns.run(|| Ok(Netdev::open()?.binding(id)?))?;
    assert_eq!((status.state, status.ifindex), (State::Revoked, None));
    assert_eq!(status.peer_to_peer, Some(true));

    drop(bound);
    assert_eq!(next()?, Some((EventKind::Deleted, id, State::Revoked)));
    drop(other);
    Ok(())
}
