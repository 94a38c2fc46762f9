// SPDX-License-Identifier: GPL-2.0

//! A target that is landed in: nothing is copied of what is in place.

use std::fs;
use std::sync::mpsc;
use std::thread;

use devmem::DmaBuf;
use devmem_bulk::End;
use devmem_bulk::Event;
use devmem_bulk::InPlace;
use devmem_bulk::Landing;
use devmem_bulk::Memory;
use devmem_bulk::Options;
use devmem_bulk::Registry;
use devmem_bulk::Rights;
use devmem_bulk::in_place::Report;
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
    let target = DmaBuf::udmabuf(size as usize)?;
    let landing = Landing::new(pair.bind(&[1], &target)?, &target)?;
    let server_memory = Memory::new(&target)?;
    let (in_place, target) = InPlace::new(&landing, &server_memory, 1)?;
    let registry = Registry::new()?;
    let key = registry.register(&server_memory, 0, landing.whole(), Rights::Write, None)?;
    let (server, client) = Sockets::new(&pair, lanes)?.split();
    let options = Options::new(registry.clone()).target(landing, lanes);
    let mut server = endpoint(server, options)?.place_by(in_place);
    let (to, notes) = mpsc::channel();
    let server = thread::spawn(move || {
        server.serve(|event| {
            if let Event::Note(_) = event {
                // Nobody may want to know.
                let _ = to.send(());
            }
        })
    });
    let memory = DmaBuf::udmabuf(len as usize)?;
    let memory = pair.tx.ns.run(|| Memory::bound(&memory, pair.tx.ifindex))?;
    for at in (0..len).step_by(MIB as usize) {
        memory.write(at, traffic::bytes(at, MIB as usize))?;
    }
    let mut client = endpoint(client, Options::new(Registry::new()?))?;
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
