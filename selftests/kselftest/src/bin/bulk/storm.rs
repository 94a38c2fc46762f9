// SPDX-License-Identifier: GPL-2.0

//! Connections one after the other, whose puts and gets are compared with a model, and that end in all ways.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem_bulk::End;
use devmem_bulk::Endpoint;
use devmem_bulk::Event;
use devmem_bulk::Failure;
use devmem_bulk::Key;
use devmem_bulk::Landing;
use devmem_bulk::Memory;
use devmem_bulk::Options;
use devmem_bulk::Refused;
use devmem_bulk::Registry;
use devmem_bulk::Rights;
use devmem_bulk::Status;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::child::Child;
use devmem_testlib::storm;
use devmem_testlib::storm::Storm;
use devmem_testlib::traffic;
use devmem_testlib::wait;

use crate::LONG;
use crate::bench;
use crate::bench::MEMORY;
use crate::bench::Sockets;
use crate::bench::endpoint;
use crate::bench::failed;

const STEPS: u32 = 24;
const HALF: u64 = MEMORY / 2;
/// The longest request.
const LONGEST: u64 = 200_000;
/// Within what a connection may be disturbed.
const SOON: u32 = 60;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Orderly,
    /// The key is taken back after a while.
    Revoked(Duration),
    ClientKilled(Duration),
    ServerKilled(Duration),
}

/// A put, or a get: no two of a connection overlap anywhere.
#[derive(Clone, Copy, Debug)]
struct Request {
    put: bool,
    here: u64,
    there: u64,
    len: u64,
    /// Where in the stream its bytes are, if it is a put.
    stream: u64,
}

impl Request {
    fn bytes(&self) -> &'static [u8] {
        traffic::bytes(self.stream, self.len as usize)
    }

    fn ask(&self, client: &mut Endpoint, memory: &Arc<Memory>, key: Key) -> Result<u64, Refused> {
        match self.put {
            true => client.put(memory, self.here, self.len, key, self.there),
            false => client.get(memory, self.here, self.len, key, self.there),
        }
    }
}

#[derive(Debug)]
struct Plan {
    lanes: u16,
    loss: bool,
    way: Way,
    requests: Vec<Request>,
}

impl Plan {
    fn new(storm: &mut Storm) -> Self {
        let after = storm.instant(SOON);
        let rng = &mut storm.rng;
        let way = match rng.u32(0..6) {
            0 => Way::Revoked(after),
            1 => Way::ClientKilled(after),
            2 => Way::ServerKilled(after),
            _ => Way::Orderly,
        };
        let slots = 1 << rng.u32(0..6);
        let slot = HALF / slots;
        let requests = (0..slots).map(|i| {
            let len = 1 + rng.u64(0..slot.min(LONGEST));
            let put = rng.bool();
            Request {
                put,
                here: i * slot + rng.u64(0..=slot - len) + if put { 0 } else { HALF },
                there: HALF * rng.u64(0..2) + i * slot + rng.u64(0..=slot - len),
                len,
                stream: rng.u64(0..10_000),
            }
        });
        let requests = requests.collect();
        Self {
            lanes: rng.u16(1..4),
            loss: rng.u32(0..4) == 0,
            way,
            requests,
        }
    }
}

/// What both ends have for all connections.
struct World {
    pair: Pair,
    landing: Arc<Landing>,
    memory: Arc<Memory>,
    server_memory: Arc<Memory>,
    /// The bytes of that.
    model: Vec<u8>,
}

/// How requests have ended, by their place in the plan.
type Results = BTreeMap<usize, Result<(), Failure>>;

/// Asks for all of it, and waits for all of it to end, or until then.
fn go(
    client: &mut Endpoint,
    memory: &Arc<Memory>,
    key: Key,
    (requests, numbers): (&[Request], &mut BTreeMap<u64, usize>),
    results: &mut Results,
    until: Option<Instant>,
) -> io::Result<()> {
    let patience = wait::patience(LONG);
    while results.len() < requests.len() {
        while let Some(request) = requests.get(numbers.len()) {
            match request.ask(client, memory, key) {
                Ok(id) => drop(numbers.insert(id, numbers.len())),
                Err(Refused::Busy) => break,
                Err(Refused::Over(end)) => {
                    results.insert(numbers.len(), Err(Failure::Over(end)));
                    // A number that no request has.
                    let number = u64::MAX - numbers.len() as u64;
                    numbers.insert(number, numbers.len());
                }
                Err(refused) => return Err(failed(refused)),
            }
        }
        if results.len() == requests.len() {
            break;
        }
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        match client.wait(Some(left.unwrap_or(patience)))? {
            Some(Event::Done { id, result }) => drop(results.insert(numbers[&id], result)),
            Some(_) => (),
            None if left.is_some_and(|left| left < patience) => break,
            None => return Err(failed("a request does not end")),
        }
    }
    Ok(())
}

impl World {
    fn new() -> Result<Self, devmem_testlib::report::Stop> {
        let pair = Pair::new()?;
        let landing = bench::landing(&pair)?;
        let [memory, server_memory] = bench::memories(&pair)?;
        Ok(Self {
            pair,
            landing,
            memory,
            server_memory,
            model: vec![0; MEMORY as usize],
        })
    }

    fn there(&self) -> io::Result<Vec<u8>> {
        let mut there = vec![0; MEMORY as usize];
        self.server_memory.read(0, &mut there)?;
        Ok(there)
    }

    /// Compares what there is with what there was. What has been put is there, of what was not put to the end each byte may
    /// be, and all others are what they were.
    fn compare(&mut self, plan: &Plan, results: &Results) -> io::Result<()> {
        let there = self.there()?;
        for (number, request) in plan.requests.iter().enumerate() {
            let ended = results.get(&number).copied();
            let part = request.there as usize..(request.there + request.len) as usize;
            match (request.put, ended) {
                (true, Some(Ok(()))) => {
                    assert!(there[part.clone()] == *request.bytes(), "{request:?}");
                    self.model[part].copy_from_slice(request.bytes());
                }
                (true, _) => {
                    let old = &mut self.model[part.clone()];
                    for ((old, &new), &now) in old.iter_mut().zip(request.bytes()).zip(&there[part])
                    {
                        assert!(now == *old || now == new, "{request:?}");
                        *old = now;
                    }
                }
                (false, Some(Ok(()))) => {
                    let mut got = vec![0; request.len as usize];
                    self.memory.read(request.here, &mut got)?;
                    assert!(got == self.model[part], "{request:?}");
                }
                (false, _) => (),
            }
        }
        assert!(there == self.model, "bytes that nobody has put");
        Ok(())
    }

    fn connection(&mut self, storm: &mut Storm) -> Outcome {
        let plan = Plan::new(storm);
        storm.step(&plan);
        for end in [&self.pair.tx, &self.pair.rx] {
            end.queueing(if plan.loss { "netem loss 1%" } else { "pfifo" })?;
        }
        for request in plan.requests.iter().filter(|request| request.put) {
            self.memory.write(request.here, request.bytes())?;
        }
        let registry = Registry::new()?;
        let key = registry.register(&self.server_memory, 0, MEMORY, Rights::ReadWrite, None)?;
        let (server, client) = Sockets::new(&self.pair, plan.lanes)?.split();
        let options = Options::new(registry.clone()).landing(Arc::clone(&self.landing), plan.lanes);
        let results = match plan.way {
            Way::ClientKilled(after) => {
                self.client_killed(&plan, after, key, (server, options), client)?
            }
            Way::ServerKilled(after) => {
                self.server_killed(&plan, after, key, (server, options), client)?
            }
            Way::Orderly | Way::Revoked(_) => {
                self.served(&plan, &registry, key, (server, options), client)?
            }
        };
        self.compare(&plan, &results)?;
        let well = results.values().filter(|result| result.is_ok()).count();
        storm.count("requests", plan.requests.len() as u64);
        storm.count("done", well as u64);
        storm.count("with losses", plan.loss.into());
        storm.count("disturbed", (plan.way != Way::Orderly).into());
        Ok(())
    }

    /// By a thread, until both are done.
    fn served(
        &self,
        plan: &Plan,
        registry: &Registry,
        key: Key,
        (server, options): (Vec<std::net::TcpStream>, Options),
        client: Vec<std::net::TcpStream>,
    ) -> io::Result<Results> {
        let mut server = endpoint(server, options)?;
        let server = thread::spawn(move || server.serve(drop));
        let mut client = endpoint(client, Options::new(Registry::new()?))?;
        client.wait_open(wait::patience(LONG))?;
        let (mut numbers, mut results) = (BTreeMap::new(), Results::new());
        let mut go_until = |client: &mut Endpoint, until| {
            let requests = (&plan.requests[..], &mut numbers);
            go(client, &self.memory, key, requests, &mut results, until)
        };
        let mut revoked = None;
        if let Way::Revoked(after) = plan.way {
            go_until(&mut client, Some(Instant::now() + after))?;
            assert!(registry.revoke(key));
            revoked = Some(self.there()?);
        }
        go_until(&mut client, None)?;
        client.close();
        while client.wait(Some(wait::patience(LONG)))?.is_some() {}
        assert_eq!(client.end(), Some(End::Orderly));
        assert_eq!(server.join().expect("the server's thread")?, End::Orderly);
        let by_key = Err(Failure::Status(Status::Key));
        let expected =
            |result: &Result<_, _>| result.is_ok() || (revoked.is_some() && *result == by_key);
        assert!(results.values().all(expected), "{results:?}");
        if let Some(revoked) = revoked {
            assert!(
                revoked == self.there()?,
                "written by a key that was taken back"
            );
        }
        Ok(results)
    }

    /// The client asks for all of it again and again until then.
    fn client_killed(
        &self,
        plan: &Plan,
        after: Duration,
        key: Key,
        (server, options): (Vec<std::net::TcpStream>, Options),
        mut client: Vec<std::net::TcpStream>,
    ) -> io::Result<Results> {
        let child = {
            let (client, memory) = (&mut client, &self.memory);
            Child::start(move |_| {
                let mut client = endpoint(std::mem::take(client), Options::new(Registry::new()?))?;
                client.wait_open(wait::patience(LONG))?;
                loop {
                    let mut numbers = BTreeMap::new();
                    let requests = (&plan.requests[..], &mut numbers);
                    go(
                        &mut client,
                        memory,
                        key,
                        requests,
                        &mut Results::new(),
                        None,
                    )?;
                }
            })?
        };
        drop(client);
        let mut server = endpoint(server, options)?;
        let server = thread::spawn(move || server.serve(drop));
        thread::sleep(after);
        drop(child);
        assert_eq!(server.join().expect("the server's thread")?, End::Gone);
        Ok(Results::new())
    }

    fn server_killed(
        &self,
        plan: &Plan,
        after: Duration,
        key: Key,
        (mut server, options): (Vec<std::net::TcpStream>, Options),
        client: Vec<std::net::TcpStream>,
    ) -> io::Result<Results> {
        let mut options = Some(options);
        let child = {
            let (server, options) = (&mut server, &mut options);
            Child::start(move |_| {
                let options = options.take().expect("options");
                endpoint(std::mem::take(server), options)?.serve(drop)?;
                Ok(())
            })?
        };
        drop(server);
        let mut client = endpoint(client, Options::new(Registry::new()?))?;
        client.wait_open(wait::patience(LONG))?;
        let killer = thread::spawn(move || {
            thread::sleep(after);
            drop(child);
        });
        let (mut numbers, mut results) = (BTreeMap::new(), Results::new());
        let requests = (&plan.requests[..], &mut numbers);
        go(&mut client, &self.memory, key, requests, &mut results, None)?;
        let gone = Err(Failure::Over(End::Gone));
        let expected = |result: &Result<_, _>| result.is_ok() || *result == gone;
        assert!(results.values().all(expected), "{results:?}");
        killer.join().expect("the thread that kills");
        Ok(results)
    }
}

pub fn all_at_random() -> Outcome {
    storm::run(|storm| {
        let mut world = World::new()?;
        for _ in 0..storm.steps(STEPS) {
            world.connection(storm)?;
        }
        Ok(())
    })
}
