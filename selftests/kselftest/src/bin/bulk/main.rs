// SPDX-License-Identifier: GPL-2.0

//! The library of bulk transfer: puts and gets between dma-bufs of two namespaces, by lanes that land in device memory.

mod bench;
mod ends;
mod in_place;
mod memory;
mod storm;

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use devmem::DmaBuf;
use devmem_bulk::End;
use devmem_bulk::Event;
use devmem_bulk::Failure;
use devmem_bulk::Lane;
use devmem_bulk::Memory;
use devmem_bulk::Place;
use devmem_bulk::Rights;
use devmem_bulk::Status;
use devmem_bulk::place::Job;
use devmem_bulk::protocol::wire::NOTE;
use devmem_testlib::Outcome;
use devmem_testlib::report;
use devmem_testlib::report::Stop;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::wait;
use fastrand::Rng;

use bench::Bench;
use bench::MEMORY;
use bench::failed;
use bench::flush;

const MIB: u64 = 1 << 20;
/// Nothing that works takes longer.
const LONG: Duration = Duration::from_secs(60);

/// The next event of a request.
fn done(bench: &mut Bench) -> Result<Result<(), Failure>, Stop> {
    loop {
        match bench.client.wait(Some(wait::patience(LONG)))? {
            Some(Event::Done { result, .. }) => return Ok(result),
            Some(_) => (),
            None => panic!("a request does not end"),
        }
    }
}

/// A file's worth there and back, all of it by the NIC and into device memory.
fn there_and_back() -> Outcome {
    const LEN: u64 = MEMORY / 2;
    let mut bench = Bench::new(2)?;
    assert_eq!(bench.memory.lane(), Lane::Nic);
    bench.memory.write(0, traffic::bytes(0, MIB as usize))?;
    bench.memory.write(MIB, traffic::bytes(MIB, MIB as usize))?;
    bench.put(0, LEN, 0)?;
    flush(&mut bench.client)??;
    bench.get(LEN, LEN, 0)?;
    flush(&mut bench.client)??;
    let mut got = vec![0; LEN as usize];
    bench.server_memory.read(0, &mut got)?;
    traffic::compare(0, &got[..MIB as usize]);
    bench.memory.read(LEN, &mut got)?;
    traffic::compare(0, &got[..MIB as usize]);
    traffic::compare(MIB, &got[MIB as usize..]);
    let (device, host) = bench.close()?;
    assert_eq!((device, host), (LEN, 0), "where it landed");
    Ok(())
}

/// Memory that no NIC sends from is copied into the lane.
fn from_memory_that_is_not_bound() -> Outcome {
    let mut bench = Bench::new(1)?;
    let memory = Memory::new(&DmaBuf::udmabuf(MIB as usize)?)?;
    assert_eq!(memory.lane(), Lane::Copied);
    memory.write(0, traffic::bytes(0, MIB as usize))?;
    // In between what the NIC reads, in the order of the stream.
    bench.memory.write(0, traffic::bytes(7, MIB as usize))?;
    for at in 0..4 {
        let part = MIB / 4;
        bench
            .client
            .put(&memory, at * part, part, bench.key, at * part)
            .map_err(failed)?;
        bench.put(at * part, part, MIB + at * part)?;
    }
    flush(&mut bench.client)??;
    let mut got = vec![0; MIB as usize];
    bench.server_memory.read(0, &mut got)?;
    traffic::compare(0, &got);
    bench.server_memory.read(MIB, &mut got)?;
    traffic::compare(7, &got);
    bench.close()?;
    Ok(())
}

/// Puts and gets at random, compared with a model.
fn at_random(bench: &mut Bench, requests: usize) -> Outcome {
    let mut rng = Rng::with_seed(devmem_testlib::storm::seed());
    let half = MEMORY / 2;
    let mut model = vec![0; MEMORY as usize];
    bench.server_memory.read(0, &mut model)?;
    let mut left = requests;
    while left > 0 {
        // Puts that are under way together do not overlap, neither here nor there.
        let slots = 1 << rng.u32(0..4);
        let slot = half / slots;
        let mut gets = Vec::new();
        for i in 0..slots {
            let len = 1 + rng.u64(0..slot.min(200_000));
            let (at, here) = (
                half * rng.u64(0..2) + i * slot + rng.u64(0..=slot - len),
                i * slot + rng.u64(0..=slot - len),
            );
            if rng.bool() {
                let bytes = traffic::bytes(rng.u64(0..10_000), len as usize);
                bench.memory.write(here, bytes)?;
                model[at as usize..][..len as usize].copy_from_slice(bytes);
                bench.put(here, len, at)?;
            } else {
                gets.push((half + here, at, len));
            }
        }
        flush(&mut bench.client)??;
        for &(here, at, len) in &gets {
            bench.get(here, len, at)?;
        }
        flush(&mut bench.client)??;
        for (here, at, len) in gets {
            let mut got = vec![0; len as usize];
            bench.memory.read(here, &mut got)?;
            assert!(got == model[at as usize..][..len as usize], "{len} at {at}");
        }
        left = left.saturating_sub(slots as usize);
    }
    let mut there = vec![0; MEMORY as usize];
    bench.server_memory.read(0, &mut there)?;
    assert!(there == model, "the peer's memory is not the model's");
    Ok(())
}

fn puts_and_gets_at_random() -> Outcome {
    let mut bench = Bench::new(3)?;
    at_random(&mut bench, 300)?;
    bench.close()?;
    Ok(())
}

fn puts_and_gets_with_losses() -> Outcome {
    let mut bench = Bench::new(2)?;
    bench.pair().tx.queueing("netem loss 1%")?;
    bench.pair().rx.queueing("netem loss 1%")?;
    at_random(&mut bench, 60)?;
    bench.close()?;
    Ok(())
}

/// A note comes when what was put before is there.
fn notes_come_after_what_was_put() -> Outcome {
    let mut bench = Bench::new(2)?;
    for round in 0..20_u8 {
        bench.memory.write(0, &vec![round; MIB as usize])?;
        bench.put(0, MIB, 0)?;
        bench.client.notify([round; NOTE]).map_err(failed)?;
        flush(&mut bench.client)??;
        let (note, last) = bench.next_note()?;
        assert_eq!((note, last), ([round; NOTE], round));
    }
    bench.close()?;
    Ok(())
}

/// What a key is not good for is refused, and changes nothing.
fn keys_are_good_for_what_they_are() -> Outcome {
    let mut bench = Bench::new(1)?;
    let part = |rights| {
        bench
            .registry
            .register(&bench.server_memory, 4096, 8192, rights, None)
    };
    let (read, write) = (part(Rights::Read)?, part(Rights::Write)?);
    let short = Some(Duration::ZERO);
    let expired =
        bench
            .registry
            .register(&bench.server_memory, 0, 4096, Rights::ReadWrite, short)?;
    bench.memory.write(0, &[7; 16384])?;
    let mut wrong = bench.key;
    wrong.0[0] ^= 1;
    for (key, from, len, status) in [
        (read, 0, 1, Status::Rights),
        (write, 8192, 1, Status::Range),
        (write, 0, 8193, Status::Range),
        (write, u64::MAX - 1, 1, Status::Range),
        (wrong, 0, 5000, Status::Key),
        (expired, 0, 1, Status::Key),
    ] {
        bench
            .client
            .put(&bench.memory, 0, len, key, from)
            .map_err(failed)?;
        assert_eq!(done(&mut bench)?, Err(Failure::Status(status)));
    }
    bench
        .client
        .get(&bench.memory, 0, 1, write, 0)
        .map_err(failed)?;
    assert_eq!(done(&mut bench)?, Err(Failure::Status(Status::Rights)));
    let mut got = vec![1; MEMORY as usize];
    bench.server_memory.read(0, &mut got)?;
    assert!(got.iter().all(|&byte| byte == 0));
    // It goes on, and a part begins where it does.
    bench
        .client
        .put(&bench.memory, 0, 8192, write, 0)
        .map_err(failed)?;
    flush(&mut bench.client)??;
    bench.server_memory.read(0, &mut got)?;
    assert!(
        got[..16384]
            .iter()
            .eq([[0; 4096], [7; 4096], [7; 4096], [0; 4096]]
                .iter()
                .flatten())
    );
    bench.close()?;
    Ok(())
}

/// From the moment that it was taken back.
fn a_key_taken_back_in_mid_transfer() -> Outcome {
    let mut bench = Bench::new(2)?;
    for round in 1..15_u8 {
        let key =
            bench
                .registry
                .register(&bench.server_memory, 0, MEMORY, Rights::ReadWrite, None)?;
        bench.memory.write(0, &vec![round; MEMORY as usize])?;
        bench
            .client
            .put(&bench.memory, 0, MEMORY, key, 0)
            .map_err(failed)?;
        // Until some of it is there; or all of it.
        let (mut first, mut ended) = ([0; 1], None);
        while first[0] != round && ended.is_none() {
            ended = bench.client.wait(Some(Duration::from_millis(1)))?;
            bench.server_memory.read(0, &mut first)?;
        }
        assert!(bench.registry.revoke(key));
        let mut before = vec![0; MEMORY as usize];
        bench.server_memory.read(0, &mut before)?;
        let result = match ended {
            Some(Event::Done { result, .. }) => result,
            _ => done(&mut bench)?,
        };
        let mut after = vec![0; MEMORY as usize];
        bench.server_memory.read(0, &mut after)?;
        assert!(before == after, "written by a key that was taken back");
        match result {
            Ok(()) => assert!(after.iter().all(|&byte| byte == round)),
            other => assert_eq!(other, Err(Failure::Status(Status::Key))),
        }
    }
    // The lanes are in step.
    at_random(&mut bench, 20)?;
    bench.close()?;
    Ok(())
}

/// A request that is given up ends, and others go on.
fn requests_given_up() -> Outcome {
    let mut bench = Bench::new(2)?;
    for get in [false, true] {
        for _ in 0..5 {
            let id = match get {
                true => bench.client.get(&bench.memory, 0, MEMORY, bench.key, 0),
                false => bench.client.put(&bench.memory, 0, MEMORY, bench.key, 0),
            }
            .map_err(failed)?;
            bench.client.wait(Some(Duration::from_millis(1)))?;
            bench.client.cancel(id);
            match done(&mut bench)? {
                Ok(()) => (),
                other => assert_eq!(other, Err(Failure::Status(Status::Cancelled))),
            }
        }
    }
    at_random(&mut bench, 20)?;
    bench.close()?;
    Ok(())
}

/// Takes what has landed, and does nothing with it.
struct Discard;

impl Place for Discard {
    fn place(&mut self, jobs: &mut [Job]) {
        for job in jobs {
            job.landed = None;
            job.placed = true;
        }
    }
}

/// `io_uring_enter()` is all that is called while puts are sent, and while gets are received in device memory and handed
/// out.
fn no_other_system_call() -> Outcome {
    for get in [false, true] {
        let calls = Bench::traced(get, |bench, section| {
            let once = |bench: &mut Bench| -> io::Result<()> {
                let asked = match get {
                    true => bench.client.get(&bench.memory, 0, MEMORY, bench.key, 0),
                    false => bench.client.put(&bench.memory, 0, MEMORY, bench.key, 0),
                };
                asked.map_err(failed)?;
                flush(&mut bench.client)?
            };
            // Whatever is allocated at first, or read for the first time.
            once(bench)?;
            section.begin();
            for _ in 0..4 {
                once(bench)?;
            }
            section.end();
            Ok(())
        })?;
        let numbers: BTreeSet<_> = calls.keys().copied().collect();
        let enter = BTreeSet::from([libc::SYS_io_uring_enter as u64]);
        assert_eq!(numbers, enter, "system calls, get: {get}");
        report::diag(format_args!("get: {get}: {calls:?} calls"));
    }
    Ok(())
}

/// Closed by both, with all done.
fn an_orderly_end() -> Outcome {
    let mut bench = Bench::new(1)?;
    bench.put(0, MIB, 0)?;
    bench.client.close();
    let refused = bench
        .client
        .put(&bench.memory, 0, 1, bench.key, 0)
        .map_err(failed);
    assert!(refused.is_err());
    assert_eq!(done(&mut bench)?, Ok(()));
    while bench.client.wait(Some(wait::patience(LONG)))?.is_some() {}
    assert_eq!(bench.client.end(), Some(End::Orderly));
    bench.close()?;
    Ok(())
}

fn main() -> ExitCode {
    runner::run_within(
        devmem_testlib::storm::timeout(),
        tests![
            there_and_back,
            from_memory_that_is_not_bound,
            puts_and_gets_at_random,
            puts_and_gets_with_losses,
            notes_come_after_what_was_put,
            keys_are_good_for_what_they_are,
            a_key_taken_back_in_mid_transfer,
            requests_given_up,
            no_other_system_call,
            an_orderly_end,
            ends::they_find_each_other,
            ends::a_client_that_is_killed,
            ends::a_server_that_is_killed,
            ends::a_peer_that_talks_nonsense,
            ends::a_lane_that_breaks,
            ends::a_program_in_c,
            memory::memory_tells_that_it_is_being_read,
            memory::memory_that_is_gone_ends_its_requests,
            memory::a_region_revoked_in_mid_transfer,
            memory::a_landing_revoked_in_mid_transfer,
            memory::ends_do_not_wait_for_each_other,
            in_place::a_target_is_landed_in,
            in_place::a_target_with_gaps_is_repaired,
            in_place::a_target_of_two_flows_is_repaired,
            in_place::a_target_with_losses_is_repaired,
            storm::all_at_random,
        ],
    )
}
