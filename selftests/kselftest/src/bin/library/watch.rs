// SPDX-License-Identifier: GPL-2.0

//! Who waits for what happens to a binding hears all of it, whenever he begins, and whatever the kernel has no room for.

use std::io;
use std::time::Duration;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::Error;
use devmem::Watch;
use devmem::netdev::Netdev;
use devmem::netns::Netns;
use devmem::status::BindingStatus;
use devmem::status::EventKind;
use devmem::status::Events;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::events;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::probe::Call;
use devmem_testlib::provider;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;
use nix::unistd::Uid;
use nix::unistd::seteuid;
use tokio::runtime::Builder;
use tokio::time::timeout;

use crate::QUEUE;

const PAGE: usize = 4096;
const NOBODY: u32 = 65534;
/// An event that is to come.
const SOON: Duration = Duration::from_secs(5);
/// One that is not to come would have come sooner.
const A_WHILE: Duration = Duration::from_millis(300);

fn watch(ns: &Netns, id: u32) -> io::Result<Watch> {
    ns.run(|| Ok(Watch::of(id)?))
}

fn status(ns: &Netns, id: u32) -> io::Result<BindingStatus> {
    ns.run(|| Ok(Netdev::open()?.binding(id)?))
}

#[track_caller]
fn next(watch: &mut Watch) -> Option<EventKind> {
    let event = watch.next_timeout(wait::patience(SOON));
    event.expect("to be told").map(|event| event.kind)
}

#[track_caller]
fn nothing(watch: &mut Watch) {
    assert_eq!(watch.next_timeout(A_WHILE).expect("to be told"), None);
}

/// Less than the ring takes: it is exhausted as soon as it is bound.
fn bind_too_little(pair: &Pair) -> Result<Binding, devmem_testlib::report::Stop> {
    let binding = pair.bind(&[QUEUE], &DmaBuf::udmabuf(16 * PAGE)?)?;
    let id = binding.id();
    provider::wait_for("the ring to want more", || {
        Ok(status(&pair.rx.ns, id)?.counters.exhausted == Some(1))
    });
    Ok(binding)
}

pub fn what_happened_before_somebody_asked() -> Outcome {
    events::skip_without()?;
    let pair = Pair::new()?;
    let ns = &pair.rx.ns;
    let mut binding = bind_too_little(&pair)?;
    let id = binding.id();
    let mut wait_event = |timeout| {
        let event = ns.run(|| Ok(binding.wait_event(timeout)?))?;
        Ok::<_, io::Error>(event.map(|event| event.kind))
    };
    assert_eq!(wait_event(Duration::ZERO)?, Some(EventKind::Exhausted));
    assert_eq!(wait_event(A_WHILE)?, None);
    pair.rx.delete()?;
    assert_eq!(wait_event(wait::patience(SOON))?, Some(EventKind::Unbound));

    let mut later = watch(ns, id)?;
    assert_eq!(next(&mut later), Some(EventKind::Unbound));
    nothing(&mut later);
    drop(binding);
    assert_eq!(next(&mut later), Some(EventKind::Deleted));
    let err = later.try_next().expect_err("it is gone");
    assert_eq!(err.errno(), Some(Errno::ENOENT as i32));
    Ok(())
}

/// Each time once, in a binding that is there from the beginning, and one that is looked at when all is over.
pub fn exhausted_and_available() -> Outcome {
    const BUFFERS: u64 = 512;
    events::skip_without()?;
    let bench = Receiving::into_memory(DmaBuf::udmabuf(BUFFERS as usize * PAGE)?)?;
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    let mut probe = bench.probe().quiet();
    let mut early = watch(ns, id)?;
    nothing(&mut early);
    for times in 1..=2 {
        for _ in 0..BUFFERS {
            bench.start_sending(1)?;
            probe.receive(&Call::new(1)).assert_frags(&[1]);
        }
        let event = early.next_timeout(wait::patience(SOON))?.expect("an event");
        assert_eq!(event.kind, EventKind::Exhausted);
        assert_eq!(event.binding.counters.exhausted, Some(times));
        nothing(&mut early);
        probe.give_back();
        assert_eq!(next(&mut early), Some(EventKind::Available));
        nothing(&mut early);
    }
    let mut late = watch(ns, id)?;
    for kind in [EventKind::Exhausted, EventKind::Available] {
        assert_eq!(next(&mut late), Some(kind));
    }
    nothing(&mut late);
    Ok(())
}

/// The kernel had no room for it, and has told nothing since, as long as there was something to be read.
pub fn what_the_kernel_has_no_room_for() -> Outcome {
    events::skip_without()?;
    let pair = Pair::new()?;
    let ns = &pair.rx.ns;
    let memory = DmaBuf::udmabuf(1024 * PAGE)?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let mut watch = watch(ns, binding.id())?;
    let mut events = ns.run(|| Ok(Events::open()?))?;
    nothing(&mut watch);
    setsockopt(&watch, sockopt::RcvBuf, &0)?;
    setsockopt(&events, sockopt::RcvBuf, &0)?;
    for _ in 0..10 {
        drop(pair.bind(&[QUEUE + 1], &memory)?);
    }
    let id = binding.id();
    drop(binding);
    provider::wait_for("the binding to be gone", || {
        Ok(ns.run(|| Ok(Netdev::open()?.bindings()?))?.is_empty())
    });

    let mut lost = 0;
    loop {
        match events.try_next() {
            Ok(Some(event)) => assert_ne!(event.binding.id, id, "there was room for it"),
            Ok(None) => break,
            Err(Error::Lost) => lost += 1,
            Err(err) => return Err(err.into()),
        }
    }
    assert_eq!(lost, 1);
    assert_eq!(next(&mut watch), Some(EventKind::Deleted));
    Ok(())
}

/// Nobody in particular may, where the binding is.
pub fn without_rights() -> Outcome {
    events::skip_without()?;
    let pair = Pair::new()?;
    let binding = bind_too_little(&pair)?;
    let id = binding.id();
    let told = pair.rx.ns.run(|| {
        seteuid(Uid::from_raw(NOBODY))?;
        let told = Watch::of(id).and_then(|mut watch| watch.next_timeout(wait::patience(SOON)));
        seteuid(Uid::from_raw(0))?;
        Ok(told?)
    })?;
    assert_eq!(told.map(|event| event.kind), Some(EventKind::Exhausted));
    let elsewhere = pair.tx.ns.run(|| Ok(Watch::of(id).map(drop)))?;
    let err = elsewhere.expect_err("it is not seen there");
    assert_eq!(err.errno(), Some(Errno::ENOENT as i32));
    Ok(())
}

/// As a future, one of which is dropped before.
pub fn as_a_future() -> Outcome {
    events::skip_without()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[QUEUE], &DmaBuf::udmabuf(1024 * PAGE)?)?;
    let id = binding.id();
    let (before, after) = pair.rx.ns.run(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut watch = devmem::tokio::Watch::of(id)?;
            let before = timeout(A_WHILE, watch.next()).await;
            drop(binding);
            let mut after = Vec::new();
            // One event or two, as the kernel is faster or not.
            while after.last() != Some(&EventKind::Deleted) {
                let event = timeout(wait::patience(SOON), watch.next()).await;
                after.push(event.map_err(|_| io::ErrorKind::TimedOut)??.kind);
            }
            Ok((before.is_ok(), after))
        })
    })?;
    assert!(!before, "nothing had happened");
    assert!(after.len() <= 2, "{after:?}");
    Ok(())
}
