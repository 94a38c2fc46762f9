// SPDX-License-Identifier: GPL-2.0

//! Memory that is being read, is taken back by its exporter, or is written by several ends.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use devmem_bulk::End;
use devmem_bulk::Endpoint;
use devmem_bulk::Event;
use devmem_bulk::Failure;
use devmem_bulk::HostCopy;
use devmem_bulk::Landing;
use devmem_bulk::Memory;
use devmem_bulk::Options;
use devmem_bulk::Place;
use devmem_bulk::Registry;
use devmem_bulk::Rights;
use devmem_bulk::Status;
use devmem_bulk::place::Job;
use devmem_bulk::protocol::Fault;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::storm;
use devmem_testlib::traffic;
use devmem_testlib::wait;
use fastrand::Rng;

use crate::LONG;
use crate::MIB;
use crate::at_random;
use crate::bench;
use crate::bench::Bench;
use crate::bench::MEMORY;
use crate::bench::Sockets;
use crate::bench::endpoint;
use crate::bench::failed;
use crate::bench::flush;
use crate::done;

const MOMENT: Duration = Duration::from_millis(1);
/// Who has to wait does so for longer.
const A_WHILE: Duration = Duration::from_millis(300);
const ROUNDS: u32 = 6;

/// Waits while the client goes on.
fn until(
    bench: &mut Bench,
    what: &str,
    mut condition: impl FnMut(&Bench) -> bool,
) -> io::Result<()> {
    wait::until(what, LONG, || {
        bench.client.wait(Some(MOMENT))?;
        Ok(condition(bench))
    })
    .map(drop)
}

/// From when bytes are on their way until the peer's kernel has them, at either end, and whatever happens to the key.
pub fn memory_tells_that_it_is_being_read() -> Outcome {
    const LEN: u64 = 64 << 10;
    let mut bench = Bench::new(1)?;
    for end in [&bench.pair().tx, &bench.pair().rx] {
        end.queueing("netem delay 150ms")?;
    }
    assert!(!bench.memory.is_being_read() && !bench.server_memory.is_being_read());
    bench.put(0, LEN, 0)?;
    until(&mut bench, "bytes of a put on their way", |bench| {
        bench.memory.is_being_read()
    })?;
    flush(&mut bench.client)??;
    until(&mut bench, "bytes of a put to arrive", |bench| {
        !bench.memory.is_being_read()
    })?;
    bench.get(0, LEN, 0)?;
    until(&mut bench, "bytes of a get on their way", |bench| {
        bench.server_memory.is_being_read()
    })?;
    assert!(bench.registry.revoke(bench.key));
    until(&mut bench, "bytes of a get to arrive", |bench| {
        !bench.server_memory.is_being_read()
    })?;
    // For good.
    for _ in 0..100 {
        bench.client.wait(Some(MOMENT))?;
        assert!(!bench.server_memory.is_being_read());
    }
    bench.close()?;
    Ok(())
}

/// The C code cannot be told that memory goes.
fn may_not_go() -> bool {
    provider::under_test() == Provider::Builtin
}

/// Memory that holds the stream, and that its exporter can take back.
fn revocable() -> io::Result<OddDmaBuf> {
    let segment = Segment {
        addr: 0,
        len: MIB / 4,
    };
    let shape = Shape::new(&[segment; 4]).demands_peer().demands_revocable();
    shape.of_memory(traffic::bytes(0, MIB as usize))
}

fn bound(end: &pair::End, memory: &OddDmaBuf) -> io::Result<Arc<Memory>> {
    let memory = memory.as_any()?;
    end.ns.run(|| Memory::bound(&memory, end.ifindex))
}

/// Others, also those of the same connection, go on.
pub fn memory_that_is_gone_ends_its_requests() -> Outcome {
    if may_not_go() {
        return Ok(());
    }
    let mut bench = Bench::new(1)?;
    let there = revocable()?;
    let memory = bound(&bench.pair().rx, &there)?;
    let key = bench
        .registry
        .register(&memory, 0, MIB, Rights::Read, None)?;
    let get = |bench: &mut Bench| {
        let to = &bench.memory;
        bench.client.get(to, 0, MIB, key, 0).map_err(failed)
    };
    get(&mut bench)?;
    flush(&mut bench.client)??;
    let mut got = vec![0; MIB as usize];
    bench.memory.read(0, &mut got)?;
    traffic::compare(0, &got);
    until(&mut bench, "bytes to arrive", |_| !memory.is_being_read())?;
    assert_eq!(there.revoke(), Ok(()));
    get(&mut bench)?;
    assert_eq!(done(&mut bench)?, Err(Failure::Status(Status::Memory)));
    at_random(&mut bench, 20)?;

    let here = revocable()?;
    let memory = bound(&bench.pair().tx, &here)?;
    let put = |bench: &mut Bench| {
        let key = bench.key;
        bench.client.put(&memory, 0, MIB, key, 0).map_err(failed)
    };
    put(&mut bench)?;
    flush(&mut bench.client)??;
    bench.server_memory.read(0, &mut got)?;
    traffic::compare(0, &got);
    until(&mut bench, "bytes to arrive", |_| !memory.is_being_read())?;
    assert_eq!(here.revoke(), Ok(()));
    put(&mut bench)?;
    assert_eq!(done(&mut bench)?, Err(Failure::Status(Status::Memory)));
    at_random(&mut bench, 20)?;
    bench.close()?;
    Ok(())
}

/// How a connection may end whose peer has lost what it sends from, or lands in.
fn assert_lost(end: End) {
    assert!(
        matches!(end, End::Gone | End::Told(Fault::Local)),
        "{end:?}"
    );
}

/// How the next request of a client ends that has no other.
fn next_done(client: &mut Endpoint) -> io::Result<Result<(), Failure>> {
    loop {
        match client.wait(Some(wait::patience(LONG)))? {
            Some(Event::Done { result, .. }) => return Ok(result),
            Some(_) => (),
            None => return Err(failed("a request does not end")),
        }
    }
}

/// Whenever that is: what came before is right, the rest fails, and the connection goes on if nothing was under way.
pub fn a_region_revoked_in_mid_transfer() -> Outcome {
    if may_not_go() {
        return Ok(());
    }
    let mut rng = Rng::with_seed(storm::seed());
    let pair = Pair::new()?;
    let landing = bench::landing(&pair)?;
    let [memory, server_memory] = bench::memories(&pair)?;
    let (mut went_on, mut got) = (0, vec![0; MIB as usize]);
    let rounds = ROUNDS * storm::scale("STORM_ROUNDS", 1);
    for _ in 0..rounds {
        let odd = revocable()?;
        let going = bound(&pair.rx, &odd)?;
        let registry = Registry::new()?;
        let key = registry.register(&going, 0, MIB, Rights::Read, None)?;
        let other = registry.register(&server_memory, 0, MEMORY, Rights::Read, None)?;
        let (server, client) = Sockets::new(&pair, 2)?.split();
        let options = Options::new(registry).landing(landing.clone(), 2);
        let mut server = endpoint(server, options)?;
        let server = thread::spawn(move || server.serve(drop));
        let mut client = endpoint(client, Options::new(Registry::new()?))?;
        client.wait_open(wait::patience(LONG))?;
        let after = Duration::from_millis(rng.u64(0..60));
        let revoker = thread::spawn(move || {
            thread::sleep(after);
            odd.revoke()
        });
        let failure = loop {
            memory.write(0, &vec![0; MIB as usize])?;
            client.get(&memory, 0, MIB, key, 0).map_err(failed)?;
            match next_done(&mut client)? {
                Ok(()) => {
                    memory.read(0, &mut got)?;
                    traffic::compare(0, &got);
                }
                Err(failure) => break failure,
            }
        };
        assert_eq!(revoker.join().expect("the thread that revokes"), Ok(()));
        match failure {
            Failure::Status(status) => {
                assert_eq!(status, Status::Memory);
                went_on += 1;
                client.get(&memory, 0, MIB, other, 0).map_err(failed)?;
                flush(&mut client)??;
            }
            Failure::Over(end) => assert_lost(end),
        }
        client.close();
        while client.wait(Some(wait::patience(LONG)))?.is_some() {}
        drop(client);
        server.join().expect("the server's thread")?;
    }
    report::diag(format_args!("{went_on} of {rounds} connections went on"));
    Ok(())
}

/// What has landed is lost, or all goes on in host memory.
pub fn a_landing_revoked_in_mid_transfer() -> Outcome {
    const LEN: u64 = MEMORY / 2;
    if may_not_go() {
        return Ok(());
    }
    let mut rng = Rng::with_seed(storm::seed());
    let pair = Pair::new()?;
    let [memory, server_memory] = bench::memories(&pair)?;
    let (mut went_on, mut there) = (0, vec![0; LEN as usize]);
    let rounds = ROUNDS * storm::scale("STORM_ROUNDS", 1);
    for round in 0..rounds {
        let odd = revocable()?;
        let any = odd.as_any()?;
        let landing = Landing::new(pair.bind(&[1], &any)?, &any)?;
        let registry = Registry::new()?;
        let key = registry.register(&server_memory, 0, MEMORY, Rights::ReadWrite, None)?;
        let (server, client) = Sockets::new(&pair, 1)?.split();
        let mut server = endpoint(server, Options::new(registry).landing(landing, 1))?;
        let server = thread::spawn(move || server.serve(drop));
        let mut client = endpoint(client, Options::new(Registry::new()?))?;
        client.wait_open(wait::patience(LONG))?;
        let after = Duration::from_millis(rng.u64(0..60));
        let revoker = thread::spawn(move || {
            thread::sleep(after);
            odd.revoke()
        });
        let bytes = vec![1 + round as u8; LEN as usize];
        memory.write(0, &bytes)?;
        // Some of them are after that.
        let mut after_it = 0;
        let failure = loop {
            if revoker.is_finished() {
                after_it += 1;
            }
            client.put(&memory, 0, LEN, key, 0).map_err(failed)?;
            match next_done(&mut client)? {
                Ok(()) if after_it == 3 => break None,
                Ok(()) => {
                    server_memory.read(0, &mut there)?;
                    assert!(there == bytes, "not what was put");
                }
                Err(failure) => break Some(failure),
            }
        };
        assert_eq!(revoker.join().expect("the thread that revokes"), Ok(()));
        match failure {
            None => went_on += 1,
            Some(Failure::Over(end)) => assert_lost(end),
            Some(Failure::Status(status)) => panic!("{status:?}"),
        }
        client.close();
        while client.wait(Some(wait::patience(LONG)))?.is_some() {}
        drop(client);
        server.join().expect("the server's thread")?;
    }
    report::diag(format_args!("{went_on} of {rounds} connections went on"));
    Ok(())
}

/// The CPU copies, when it is told to.
struct Held {
    copy: HostCopy,
    began: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
}

impl Place for Held {
    fn place(&mut self, jobs: &mut [Job]) {
        // Nobody may want to know, and nobody hold it up.
        let _ = self.began.send(());
        let _ = self.go_on.recv();
        self.copy.place(jobs);
    }
}

/// An end that is being written to keeps neither another from being so, nor a key from being taken back, but for its own.
pub fn ends_do_not_wait_for_each_other() -> Outcome {
    const LEN: u64 = 4096;
    let pair = Pair::new()?;
    let landing = bench::landing(&pair)?;
    let [memory, server_memory] = bench::memories(&pair)?;
    let registry = Registry::new()?;
    let key = || registry.register(&server_memory, 0, MEMORY, Rights::Write, None);
    let (held_key, other_key, third_key) = (key()?, key()?, key()?);
    let (began, has_begun) = mpsc::channel();
    let (go_on, to_go_on) = mpsc::channel();
    let mut held = Some(Held {
        copy: HostCopy::new(),
        began,
        go_on: to_go_on,
    });
    let mut ends = Vec::new();
    for _ in 0..2 {
        let (server, client) = Sockets::new(&pair, 1)?.split();
        let options = Options::new(registry.clone()).landing(landing.clone(), 2);
        let mut server = endpoint(server, options)?;
        if let Some(held) = held.take() {
            server = server.place_by(held);
        }
        let server = thread::spawn(move || server.serve(drop));
        let mut client = endpoint(client, Options::new(Registry::new()?))?;
        client.wait_open(wait::patience(LONG))?;
        ends.push((client, server));
    }
    memory.write(0, &[7; LEN as usize])?;
    ends[0]
        .0
        .put(&memory, 0, LEN, held_key, 0)
        .map_err(failed)?;
    let patience = wait::patience(LONG);
    wait::until("what was put to be placed", LONG, || {
        assert_eq!(ends[0].0.wait(Some(MOMENT))?, None);
        Ok(has_begun.try_recv().is_ok())
    })?;

    ends[1]
        .0
        .put(&memory, 0, LEN, other_key, LEN)
        .map_err(failed)?;
    flush(&mut ends[1].0)??;
    assert!(registry.revoke(third_key));
    let (revoked, is_revoked) = mpsc::channel();
    let revoker = {
        let registry = registry.clone();
        thread::spawn(move || revoked.send(registry.revoke(held_key)))
    };
    assert!(is_revoked.recv_timeout(A_WHILE).is_err(), "revoked at once");
    drop(go_on);
    let was_there = is_revoked
        .recv_timeout(patience)
        .map_err(io::Error::other)?;
    assert!(was_there);
    let mut got = vec![0; LEN as usize];
    server_memory.read(0, &mut got)?;
    assert!(got == [7; LEN as usize], "not written when it was revoked");
    drop(revoker.join());
    flush(&mut ends[0].0)??;
    for (mut client, server) in ends {
        client.close();
        while client.wait(Some(patience))?.is_some() {}
        assert_eq!(server.join().expect("a server's thread")?, End::Orderly);
    }
    Ok(())
}
