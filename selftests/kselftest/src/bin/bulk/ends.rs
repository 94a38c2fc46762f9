// SPDX-License-Identifier: GPL-2.0

//! How connections begin, and all the ways in which they end.

use std::env;
use std::io;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use devmem_bulk::Acceptor;
use devmem_bulk::End;
use devmem_bulk::Endpoint;
use devmem_bulk::Event;
use devmem_bulk::Failure;
use devmem_bulk::Key;
use devmem_bulk::Memory;
use devmem_bulk::Options;
use devmem_bulk::Registry;
use devmem_bulk::Rights;
use devmem_bulk::connect;
use devmem_bulk::protocol::Fault;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::child::Child;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::address;
use devmem_testlib::skip;
use devmem_testlib::storm;
use devmem_testlib::wait;
use fastrand::Rng;

use crate::LONG;
use crate::bench;
use crate::bench::CONTROL;
use crate::bench::LANES;
use crate::bench::MEMORY;
use crate::bench::Sockets;
use crate::bench::endpoint;
use crate::bench::failed;
use crate::bench::flush;

const ROUNDS: u64 = 5;

/// Two clients, the lanes of which come in between those of the other.
pub fn they_find_each_other() -> Outcome {
    let pair = Pair::new()?;
    let landing = bench::landing(&pair)?;
    let [memory, server_memory] = bench::memories(&pair)?;
    let registry = Registry::new()?;
    let key = registry.register(&server_memory, 0, MEMORY, Rights::ReadWrite, None)?;
    pair.steer(LANES, 1)?;
    let mut acceptor = Acceptor::new(pair.listen(Ip::V4, CONTROL)?, pair.listen(Ip::V4, LANES)?);
    let (control, lanes): (SocketAddr, SocketAddr) =
        (address(Ip::V4, CONTROL), address(Ip::V4, LANES));
    let patience = wait::patience(LONG);
    thread::scope(|scope| -> Outcome {
        let clients: Vec<_> = (0..2_u64)
            .map(|i| {
                let (memory, pair) = (&memory, &pair);
                scope.spawn(move || -> io::Result<()> {
                    let options = Options::new(Registry::new()?);
                    let mut client = pair
                        .tx
                        .ns
                        .run(|| connect::connect(control, lanes, 3, options, patience))?;
                    let half = MEMORY / 2;
                    client
                        .put(memory, i * half, half, key, i * half)
                        .map_err(failed)?;
                    flush(&mut client)??;
                    client.close();
                    while client.wait(Some(patience))?.is_some() {}
                    Ok(())
                })
            })
            .collect();
        let mut servers = Vec::new();
        for _ in 0..2 {
            let options = Options::new(registry.clone()).landing(landing.clone(), 6);
            let mut server = acceptor.accept(options, patience)?;
            servers.push(scope.spawn(move || server.serve(drop)));
        }
        for client in clients {
            client.join().expect("a client's thread")?;
        }
        for server in servers {
            let end = server.join().expect("a server's thread")?;
            assert_eq!(end, End::Orderly);
        }
        Ok(())
    })
}

/// The example of the library for C: its bytes go there and back.
pub fn a_program_in_c() -> Outcome {
    let program = env::current_exe()?.with_file_name("bulk_c");
    if !program.exists() {
        return skip(format_args!("{} was not built", program.display()));
    }
    let pair = Pair::new()?;
    let landing = bench::landing(&pair)?;
    let [_, server_memory] = bench::memories(&pair)?;
    let registry = Registry::new()?;
    let key = registry.register(&server_memory, 0, MEMORY, Rights::ReadWrite, None)?;
    pair.steer(LANES, 1)?;
    let mut acceptor = Acceptor::new(pair.listen(Ip::V4, CONTROL)?, pair.listen(Ip::V4, LANES)?);
    let serving = thread::spawn(move || {
        let options = Options::new(registry).landing(landing, 1);
        acceptor.accept(options, wait::patience(LONG))?.serve(drop)
    });
    let hex: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut line = Command::new(program);
    line.arg("192.0.2.1")
        .args([CONTROL.to_string(), LANES.to_string(), hex])
        .arg(&pair.tx.ifname);
    let output = pair.tx.ns.run(|| line.output())?;
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "1048576 bytes there and back\n");
    let end = serving.join().expect("the server's thread")?;
    assert_eq!(end, End::Orderly);
    let mut first = [0; 251];
    server_memory.read(0, &mut first)?;
    assert!(first.iter().enumerate().all(|(i, &byte)| i == byte.into()));
    Ok(())
}

/// A child that puts, or gets, for ever.
fn busy(mut client: Endpoint, memory: &Arc<Memory>, key: Key) -> io::Result<()> {
    client.wait_open(wait::patience(LONG))?;
    loop {
        client.put(memory, 0, MEMORY / 2, key, 0).map_err(failed)?;
        client
            .get(memory, MEMORY / 2, MEMORY / 2, key, 0)
            .map_err(failed)?;
        flush(&mut client)??;
    }
}

/// Whenever that is, the server hears of it, and has its buffers back.
pub fn a_client_that_is_killed() -> Outcome {
    let mut rng = Rng::with_seed(storm::seed());
    let pair = Pair::new()?;
    let landing = bench::landing(&pair)?;
    let [memory, server_memory] = bench::memories(&pair)?;
    for _ in 0..ROUNDS {
        let registry = Registry::new()?;
        let key = registry.register(&server_memory, 0, MEMORY, Rights::ReadWrite, None)?;
        let (server, mut client) = Sockets::new(&pair, 2)?.split();
        let options = Options::new(registry).landing(landing.clone(), 2);
        let child = {
            let client = &mut client;
            let memory = &memory;
            Child::start(move |_| {
                let options = Options::new(Registry::new()?);
                busy(endpoint(std::mem::take(client), options)?, memory, key)
            })?
        };
        // Those of the child are all that there are.
        drop(client);
        let mut server = endpoint(server, options)?;
        let serving = thread::spawn(move || server.serve(drop));
        thread::sleep(Duration::from_millis(rng.u64(0..200)));
        drop(child);
        assert_eq!(serving.join().expect("the server's thread")?, End::Gone);
    }
    Ok(())
}

/// Whenever that is, all requests end, and tell why.
pub fn a_server_that_is_killed() -> Outcome {
    let mut rng = Rng::with_seed(storm::seed());
    let pair = Pair::new()?;
    let landing = bench::landing(&pair)?;
    let [memory, server_memory] = bench::memories(&pair)?;
    for _ in 0..ROUNDS {
        let registry = Registry::new()?;
        let key = registry.register(&server_memory, 0, MEMORY, Rights::ReadWrite, None)?;
        let (mut server, client) = Sockets::new(&pair, 2)?.split();
        let mut options = Some(Options::new(registry).landing(landing.clone(), 2));
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
        let killer = {
            let after = Duration::from_millis(rng.u64(0..200));
            thread::spawn(move || {
                thread::sleep(after);
                drop(child);
            })
        };
        let mut asked = 0;
        let mut ended = 0;
        let over = loop {
            while client.put(&memory, 0, MEMORY, key, 0).is_ok() {
                asked += 1;
            }
            match client.wait(Some(wait::patience(LONG)))? {
                Some(Event::Done { result, .. }) => {
                    ended += 1;
                    assert!(
                        matches!(result, Ok(()) | Err(Failure::Over(End::Gone))),
                        "{result:?}"
                    );
                }
                Some(Event::Over(end)) => break end,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((over, ended), (End::Gone, asked));
        killer.join().expect("the thread that kills");
    }
    Ok(())
}

/// It is told what was wrong, and that is all that it gets.
pub fn a_peer_that_talks_nonsense() -> Outcome {
    let pair = Pair::new()?;
    let landing = bench::landing(&pair)?;
    let frame_of_no_kind = [12, 0, 8, 0, 0, 0, 0, 0];
    let credit_before_hello = [2, 0, 16, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let cases: [(&[u8], u64, Fault); 3] = [
        (&frame_of_no_kind, 0, Fault::Malformed),
        (&credit_before_hello, 0, Fault::Unexpected),
        (&[], 1, Fault::Overrun),
    ];
    for (says, sends, fault) in cases {
        let (server, client) = Sockets::new(&pair, 1)?.split();
        let options = Options::new(Registry::new()?).landing(landing.clone(), 1);
        let mut server = endpoint(server, options)?;
        let serving = thread::spawn(move || server.serve(drop));
        (&client[0]).write_all(says)?;
        // Nothing was credited, as it has said no hello.
        (&client[1]).write_all(&vec![0; sends as usize])?;
        let end = serving.join().expect("the server's thread")?;
        assert_eq!(end, End::Broken(fault));
    }
    Ok(())
}

/// Also if the control connection is there.
pub fn a_lane_that_breaks() -> Outcome {
    let pair = Pair::new()?;
    let landing = bench::landing(&pair)?;
    let (server, client) = Sockets::new(&pair, 2)?.split();
    let options = Options::new(Registry::new()?).landing(landing, 2);
    let mut server = endpoint(server, options)?;
    let serving = thread::spawn(move || server.serve(drop));
    client[2].shutdown(Shutdown::Both)?;
    assert_eq!(serving.join().expect("the server's thread")?, End::Gone);
    Ok(())
}
