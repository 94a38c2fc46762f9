// SPDX-License-Identifier: GPL-2.0

//! Receivers that hear of it, and go on: the library's example among them.

#[path = "../../../../../tools/devmem/examples/survivor/receiver.rs"]
mod receiver;

use std::io;
use std::net::Shutdown;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use devmem::Watch;
use devmem::netdev::Netdev;
use devmem::status::EventKind;
use devmem::status::Events;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::traffic;
use devmem_testlib::wait;

use crate::memory::LEN;
use crate::memory::revoke;
use receiver::End;
use receiver::Survivor;

const QUEUE: u32 = 1;
const PORT: u16 = 5001;
/// Of so many segments of [`LEN`] bytes, so that there are some beside what is in the ring.
const SEGMENTS: usize = 8;
/// What does not happen would have happened sooner.
const A_WHILE: Duration = Duration::from_millis(300);
/// What happens has happened by then.
const SOON: Duration = Duration::from_secs(5);

fn memory() -> io::Result<OddDmaBuf> {
    let shape = Shape::new(&[Segment { addr: 0, len: LEN }; SEGMENTS]);
    shape
        .demands_revocable()
        .of_memory(&vec![0; SEGMENTS * LEN as usize])
}

/// The first call tells what happened since the binding was made, and so does the one after some were lost.
pub fn what_happened_before_is_told() -> Outcome {
    let pair = Pair::new()?;
    let ns = &pair.rx.ns;
    let memory = memory()?;
    let mut binding = pair.bind(&[QUEUE], &memory.as_any()?)?;
    let id = binding.id();
    let mut watch = ns.run(|| Ok(Watch::of(id)?))?;
    assert_eq!(watch.next_timeout(A_WHILE)?, None);
    revoke(&memory)?;
    let expected = Some((EventKind::Revoked, id));
    for (timeout, expected) in [(wait::patience(SOON), expected), (A_WHILE, None)] {
        let event = ns.run(|| Ok(binding.wait_event(timeout)?))?;
        for event in [event, watch.next_timeout(timeout)?] {
            assert_eq!(event.map(|event| (event.kind, event.binding.id)), expected);
        }
    }
    let again = pair.bind(&[QUEUE], &self::memory()?.as_any()?)?;
    drop((again, binding));
    let event = watch.next_timeout(wait::patience(SOON))?;
    assert_eq!(event.map(|event| event.kind), Some(EventKind::Deleted));
    Ok(())
}

/// What comes of one connection, the bytes of which are compared.
fn receive<M: FnMut() -> io::Result<devmem::DmaBuf>>(
    survivor: &mut Survivor<M>,
    stream: &std::net::TcpStream,
    got: &AtomicU64,
    mut pause: impl FnMut() -> io::Result<()>,
) -> io::Result<End> {
    let end = survivor.receive(stream, |bytes| {
        let at = got.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        traffic::compare(at, bytes);
        pause()
    });
    end.map_err(io::Error::other)
}

fn wait_got(got: &AtomicU64, len: u64) {
    provider::wait_for("the bytes to be read", || {
        Ok(got.load(Ordering::Relaxed) == len)
    });
}

/// A connection all of which was read goes on in other memory. One that has something to read there ends, its token of what
/// is gone comes back, and the next one goes on.
pub fn goes_on() -> Outcome {
    const PART: u64 = 1000;
    let pair = Pair::new()?;
    let ns = &pair.rx.ns;
    pair.steer(PORT, QUEUE)?;
    let listener = pair.listen(Ip::V4, PORT)?;
    let memories = [memory()?, memory()?, memory()?];
    let mut more = memories.iter();
    let request = pair.request(&[QUEUE]);
    let mut events = ns.run(|| Ok(Events::open()?))?;
    let mut wait_bound = || -> Outcome {
        loop {
            let event = events.next_timeout(wait::patience(SOON))?;
            let kind = event.expect("to be bound").kind;
            if kind == EventKind::Added {
                return Ok(());
            }
        }
    };
    let mut survivor = ns.run(|| {
        let more = || more.next().expect("other memory").as_any();
        Survivor::new(request, more).map_err(io::Error::other)
    })?;
    wait_bound()?;

    let (first, got) = (pair.connect(&listener)?, AtomicU64::new(0));
    thread::scope(|scope| -> Outcome {
        let reader = scope.spawn(|| ns.run(|| receive(&mut survivor, &first.rx, &got, || Ok(()))));
        traffic::send(&first.tx, 0, LEN, 1 << 16)?;
        wait_got(&got, LEN);
        revoke(&memories[0])?;
        wait_bound()?;
        traffic::send(&first.tx, LEN, LEN, 1 << 16)?;
        first.tx.shutdown(Shutdown::Write)?;
        let end = reader.join().expect("a thread that reads")?;
        assert_eq!((end, got.load(Ordering::Relaxed)), (End::Whole, 2 * LEN));
        Ok(())
    })?;
    assert_eq!(survivor.in_device_memory(), 2 * LEN);

    let (second, got) = (pair.connect(&listener)?, AtomicU64::new(0));
    thread::scope(|scope| -> Outcome {
        let (reads, is_reading) = mpsc::channel();
        let (goes_on, is_to_go_on) = mpsc::channel();
        let (survivor, second, got) = (&mut survivor, &second, &got);
        let reader = scope.spawn(move || {
            let pause = move || {
                reads.send(()).map_err(io::Error::other)?;
                is_to_go_on.recv().map_err(io::Error::other)
            };
            ns.run(|| receive(survivor, &second.rx, got, pause))
        });
        traffic::send(&second.tx, 0, PART, PART as usize)?;
        is_reading.recv().expect("a thread that reads");
        traffic::send(&second.tx, PART, PART, PART as usize)?;
        wait_received(&second.rx, 2 * PART);
        revoke(&memories[1])?;
        goes_on.send(()).expect("a thread that reads");
        let end = reader.join().expect("a thread that reads")?;
        assert_eq!((end, got.load(Ordering::Relaxed)), (End::Lost, PART));
        Ok(())
    })?;
    drop(second);
    wait_bound()?;

    let (third, got) = (pair.connect(&listener)?, AtomicU64::new(0));
    thread::scope(|scope| -> Outcome {
        let reader = scope.spawn(|| ns.run(|| receive(&mut survivor, &third.rx, &got, || Ok(()))));
        traffic::send(&third.tx, 0, LEN, 1 << 16)?;
        third.tx.shutdown(Shutdown::Write)?;
        let end = reader.join().expect("a thread that reads")?;
        assert_eq!((end, got.load(Ordering::Relaxed)), (End::Whole, LEN));
        Ok(())
    })?;
    assert_eq!(
        (survivor.revoked(), survivor.in_device_memory()),
        (2, 3 * LEN + PART)
    );

    // The connections that had tokens are still there.
    drop(survivor);
    provider::wait_for("all tokens to be back", || {
        ns.run(|| Ok(Netdev::open()?.bindings()?.is_empty()))
    });
    drop((first, third));
    Ok(())
}
