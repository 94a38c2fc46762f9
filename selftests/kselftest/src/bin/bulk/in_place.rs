// SPDX-License-Identifier: GPL-2.0

//! A target that is landed in: nothing is copied of what is in place.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::sync::mpsc::TryRecvError;
use std::thread;
use std::time::Duration;

use devmem::DmaBuf;
use devmem_bulk::End;
use devmem_bulk::Endpoint;
use devmem_bulk::Event;
use devmem_bulk::Failure;
use devmem_bulk::InPlace;
use devmem_bulk::Key;
use devmem_bulk::Landing;
use devmem_bulk::Memory;
use devmem_bulk::Options;
use devmem_bulk::Registry;
use devmem_bulk::Rights;
use devmem_bulk::Status;
use devmem_bulk::in_place::Report;
use devmem_bulk::in_place::Target;
use devmem_bulk::protocol::wire::NOTE;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::report;
use devmem_testlib::report::Stop;
use devmem_testlib::storm;
use devmem_testlib::traffic;
use devmem_testlib::wait;

use crate::LONG;
use crate::MIB;
use crate::bench::Sockets;
use crate::bench::endpoint;
use crate::bench::failed;
use crate::bench::flush;

/// MiB of the target, unless `BULK_TARGET_MIB` says how many.
const TARGET: u32 = 8;
/// How many a udmabuf may have, and where that is said.
const LIMIT: u64 = 64;
const LIMIT_FILE: &str = "/sys/module/udmabuf/parameters/size_limit_mb";
/// Headers of IPv4 and TCP, with time stamps.
const HEADERS: u32 = 52;

/// A target, and two ends, of which one puts there.
struct Ends {
    server: Endpoint,
    client: Endpoint,
    registry: Registry,
    server_memory: Arc<Memory>,
    target: Target,
    /// For all that can be put to the target.
    key: Key,
}

impl Ends {
    fn new(pair: &Pair, size: u64, lanes: u16) -> Result<Self, Stop> {
        let target = DmaBuf::udmabuf(size as usize)?;
        let landing = Landing::new(pair.bind(&[1], &target)?, &target)?;
        let server_memory = Memory::new(&target)?;
        let (in_place, target) = InPlace::new(&landing, &server_memory, 1)?;
        let registry = Registry::new()?;
        let key = registry.register(&server_memory, 0, landing.whole(), Rights::Write, None)?;
        let (server, client) = Sockets::new(pair, lanes)?.split();
        let options = Options::new(registry.clone()).target(landing, lanes);
        Ok(Self {
            server: endpoint(server, options)?.place_by(in_place),
            client: endpoint(client, Options::new(Registry::new()?))?,
            registry,
            server_memory,
            target,
            key,
        })
    }
}

/// Memory of the end that puts, with the stream's bytes in it.
fn source(pair: &Pair, len: u64) -> Result<Arc<Memory>, Stop> {
    let memory = DmaBuf::udmabuf(len as usize)?;
    let memory = pair.tx.ns.run(|| Memory::bound(&memory, pair.tx.ifindex))?;
    for at in (0..len).step_by(MIB as usize) {
        memory.write(at, traffic::bytes(at, MIB as usize))?;
    }
    Ok(memory)
}

/// Puts a file's worth, and tells what came of it. What is put after it was finished is copied.
fn put(mtu: u32, lanes: u16, discipline: Option<&str>) -> Result<Report, Stop> {
    let size = MIB * u64::from(storm::scale("BULK_TARGET_MIB", TARGET));
    // The NIC needs some of it, too.
    let len = size / 5 * 4 / MIB * MIB;
    let pair = Pair::new()?;
    pair.set_mtu(mtu)?;
    if let Some(discipline) = discipline {
        pair.tx.queueing(discipline)?;
    }
    if size > LIMIT * MIB {
        fs::write(LIMIT_FILE, (size / MIB).to_string())?;
    }
    let Ends {
        mut server,
        mut client,
        registry,
        server_memory,
        target,
        key,
    } = Ends::new(&pair, size, lanes)?;
    let (to, notes) = mpsc::channel();
    let server = thread::spawn(move || {
        server.serve(|event| {
            if let Event::Note(_) = event {
                // Nobody may want to know.
                let _ = to.send(());
            }
        })
    });
    let memory = source(&pair, len)?;
    client.wait_open(wait::patience(LONG))?;
    client.put(&memory, 0, len, key, 0).map_err(failed)?;
    client.notify([0; NOTE]).map_err(failed)?;
    flush(&mut client)??;
    notes.recv_timeout(wait::patience(LONG)).map_err(failed)?;
    let report = target.finish()?;
    let mut got = vec![0; MIB as usize];
    for at in (0..len).step_by(MIB as usize) {
        server_memory.read(report.base + at, &mut got)?;
        traffic::compare(at, &got);
    }
    assert_eq!(report.in_place + report.moved, len);
    // What is put by a key is where that says, wherever the region is.
    let region = registry.register(&server_memory, report.base, len, Rights::Write, None)?;
    for (key, at) in [(region, report.base), (key, 0)] {
        client.put(&memory, 0, MIB, key, MIB).map_err(failed)?;
        flush(&mut client)??;
        server_memory.read(at + MIB, &mut got)?;
        traffic::compare(0, &got);
        client.put(&memory, MIB, MIB, key, MIB).map_err(failed)?;
        flush(&mut client)??;
    }
    client.close();
    while client.wait(Some(wait::patience(LONG)))?.is_some() {}
    assert_eq!(server.join().expect("the server's thread")?, End::Orderly);
    Ok(report)
}

fn tell(what: &str, report: Report) {
    let percent = 100.0 * report.fraction();
    report::diag(format_args!("{what}: {percent:.1} % in place, {report:?}"));
}

/// Segments that fill buffers.
pub fn a_target_is_landed_in() -> Outcome {
    let report = put(4096 + HEADERS, 1, None)?;
    tell("segments of a buffer", report);
    assert!(report.in_place > 0);
    Ok(())
}

/// Segments that do not, more of them than there are buffers.
pub fn a_target_with_gaps_is_repaired() -> Outcome {
    tell("an MTU of 1500", put(1500, 1, None)?);
    Ok(())
}

pub fn a_target_of_two_flows_is_repaired() -> Outcome {
    tell("two flows", put(4096 + HEADERS, 2, None)?);
    Ok(())
}

pub fn a_target_with_losses_is_repaired() -> Outcome {
    let report = put(4096 + HEADERS, 1, Some("netem loss 1%"))?;
    tell("a loss of 1 %", report);
    let report = put(4096 + HEADERS, 1, Some("netem delay 2ms reorder 99%"))?;
    tell("1 % out of order", report);
    Ok(())
}

/// What comes by another key lands in the target, too: it is not taken from there once the region was moved over it.
pub fn a_target_is_finished_while_others_land_there() -> Outcome {
    let size = MIB * u64::from(TARGET);
    let len = size / 5 * 4 / MIB * MIB;
    let other = MIB / 32;
    let pair = Pair::new()?;
    // There are gaps, so that nothing is in place.
    pair.set_mtu(1500)?;
    let Ends {
        mut server,
        mut client,
        registry,
        server_memory: _,
        target,
        key,
    } = Ends::new(&pair, size, 1)?;
    let elsewhere = Memory::new(&DmaBuf::udmabuf(other as usize)?)?;
    let other_key = registry.register(&elsewhere, 0, other, Rights::Write, None)?;
    let (to, noted) = mpsc::channel();
    let (tell, landed) = mpsc::channel();
    let server = thread::spawn(move || -> io::Result<End> {
        let mut finished = Ok(());
        let end = server.serve(|event| {
            if let Event::Note(_) = event {
                registry.revoke(key);
                // The other one lands, and is not looked at. Who has nothing of these has failed.
                let _ = to.send(());
                let _ = landed.recv_timeout(wait::patience(LONG));
                finished = target.finish().map(drop);
            }
        })?;
        finished.map(|()| end)
    });
    let (memory, other_memory) = (source(&pair, len)?, source(&pair, MIB)?);
    client.wait_open(wait::patience(LONG))?;
    client.put(&memory, 0, len, key, 0).map_err(failed)?;
    client.notify([0; NOTE]).map_err(failed)?;
    while noted.try_recv() == Err(TryRecvError::Empty) {
        client.wait(Some(Duration::from_millis(10)))?;
    }
    let id = client
        .put(&other_memory, 0, other, other_key, 0)
        .map_err(failed)?;
    while client.moved() < len + other || other_memory.is_being_read() {
        client.wait(Some(Duration::from_millis(10)))?;
    }
    tell.send(()).map_err(failed)?;
    let result = loop {
        match client.wait(Some(wait::patience(LONG)))? {
            Some(Event::Done { id: done, result }) if done == id => break result,
            Some(_) => (),
            None => return Err(failed("it is not done").into()),
        }
    };
    assert_eq!(result, Err(Failure::Status(Status::Memory)));
    client.close();
    while client.wait(Some(wait::patience(LONG)))?.is_some() {}
    assert_eq!(server.join().expect("the server's thread")?, End::Orderly);
    Ok(())
}
