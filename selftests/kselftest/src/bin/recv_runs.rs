// SPDX-License-Identifier: GPL-2.0

//! TCP_DEVMEM_RUNS: one message, with one token, for frags that follow each other.

use std::io;
use std::net::UdpSocket;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use devmem::DmaBuf;
use devmem::diag;
use devmem::netdev::Netdev;
use devmem::recv::TCP_DEVMEM_RUNS;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::Provider;
use devmem_testlib::fixture::Mixed;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::modules;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::errno;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::report::Stop;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use nix::errno::Errno;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::delete_module;

/// Room for everything that a test sends.
const ALL: usize = 1 << 20;
/// A buffer.
const PAGE: usize = 4096;
/// Most buffers of a run.
const MOST: usize = 64;

/// A connection into memory of which nobody has had a buffer: they come in the order of their addresses.
fn receiving() -> Result<Receiving, Stop> {
    let bench = Receiving::in_full_buffers(DmaBuf::udmabuf(2048 * PAGE)?)?;
    ask(&bench.connection.rx)?;
    Ok(bench)
}

fn ask(socket: &impl AsFd) -> io::Result<()> {
    sockopt::set(socket, libc::IPPROTO_TCP, TCP_DEVMEM_RUNS, 1)
}

fn give_back(bench: &Receiving, tokens: &[u32]) -> io::Result<u32> {
    let ranges: Vec<_> = tokens
        .iter()
        .map(|&start| TokenRange { start, count: 1 })
        .collect();
    dontneed(&bench.connection.rx, &ranges)
}

/// How many buffers a socket holds, by sock_diag.
fn held(bench: &Receiving) -> io::Result<u32> {
    let sockets = bench.pair.rx.ns.run(|| Ok(diag::holders()?))?;
    let held = sockets.iter().flat_map(|socket| &socket.held);
    Ok(held.map(|held| held.tokens).sum())
}

fn the_option() -> Outcome {
    let bench = Receiving::new()?;
    let socket = &bench.connection.rx;
    let get = || sockopt::get(socket, libc::IPPROTO_TCP, TCP_DEVMEM_RUNS);
    let set = |value| sockopt::set(socket, libc::IPPROTO_TCP, TCP_DEVMEM_RUNS, value);
    assert_eq!(get()?, 0);
    for value in [2, -1, i32::MAX] {
        assert_eq!(errno(set(value)), Errno::EINVAL);
    }
    set(1)?;
    assert_eq!(get()?, 1);
    set(0)?;
    assert_eq!(get()?, 0);
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    assert_eq!(errno(ask(&udp)), Errno::ENOPROTOOPT);
    Ok(())
}

/// The provider that serves new bindings may not know it.
fn a_provider_without() -> Outcome {
    let bench = Receiving::new()?;
    let socket = &bench.connection.rx;
    devmem::provider::select(Provider::Builtin.name())?;
    let refused = ask(socket);
    let off = sockopt::set(socket, libc::IPPROTO_TCP, TCP_DEVMEM_RUNS, 0);
    devmem::provider::select(Provider::Module.name())?;
    assert_eq!(errno(refused), Errno::EOPNOTSUPP);
    off?;
    ask(socket)?;
    Ok(())
}

/// Who does not ask gets a message for each buffer.
fn not_asked_for() -> Outcome {
    let bench = Receiving::in_full_buffers(DmaBuf::udmabuf(2048 * PAGE)?)?;
    let mut probe = bench.probe();
    bench.send(&[3 * PAGE])?;
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[PAGE as u32; 3]);
    probe.give_back();
    Ok(())
}

fn one_message() -> Outcome {
    let bench = receiving()?;
    let mut probe = bench.probe();
    bench.send(&[5 * PAGE + 100])?;
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[(5 * PAGE + 100) as u32]);
    assert_eq!(probe.held().len(), 1);
    assert_eq!(held(&bench)?, 6);
    let tokens = probe.take_held();
    assert_eq!(give_back(&bench, &tokens)?, 1);
    assert_eq!(give_back(&bench, &tokens)?, 0, "returned again");
    assert_eq!(held(&bench)?, 0);
    Ok(())
}

/// More than an skb has frags: the message is made longer.
fn across_packets() -> Outcome {
    let bench = receiving()?;
    let mut probe = bench.probe();
    bench.send(&[8 * PAGE; 6])?;
    // With room for one message there is room for all of it.
    probe
        .receive(&Call::new(ALL).room(1))
        .assert_frags(&[(48 * PAGE) as u32]);
    probe.give_back();
    Ok(())
}

fn no_longer_than_the_longest() -> Outcome {
    let bench = receiving()?;
    let mut probe = bench.probe();
    bench.send(&[15 * PAGE; 9])?;
    let rest = 9 * 15 - 2 * MOST;
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[MOST * PAGE, MOST * PAGE, rest * PAGE].map(|len| len as u32));
    probe.give_back();
    Ok(())
}

/// What leaves a part of its buffer empty is the last of a run.
fn gaps() -> Outcome {
    let bench = receiving()?;
    let mut probe = bench.probe();
    bench.send(&[5000, 3000, 2 * PAGE, 1, PAGE])?;
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[5000, 3000, 2 * PAGE as u32 + 1, PAGE as u32]);
    probe.give_back();
    Ok(())
}

fn parts_of_frags() -> Outcome {
    let bench = receiving()?;
    let mut probe = bench.probe();
    bench.send(&[8 * PAGE; 3])?;
    for size in [1, PAGE - 2, 1, 2 * PAGE, 3 * PAGE + 7, 9 * PAGE] {
        probe.receive(&Call::new(size)).assert_frags(&[size as u32]);
    }
    let rest = (24 - 15) * PAGE - 7;
    probe.receive(&Call::new(ALL)).assert_frags(&[rest as u32]);
    probe.give_back();
    Ok(())
}

fn peek() -> Outcome {
    let bench = receiving()?;
    let mut probe = bench.probe();
    bench.send(&[8 * PAGE; 3])?;
    let peek = Call::new(ALL).flags(libc::MSG_PEEK);
    for _ in 0..2 {
        probe.receive(&peek).assert_frags(&[24 * PAGE as u32]);
    }
    assert_eq!(held(&bench)?, 48);
    probe.give_back();
    probe.receive(&peek).assert_frags(&[24 * PAGE as u32]);
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[24 * PAGE as u32]);
    probe.give_back();
    Ok(())
}

/// Buffers of which others are in use in between.
fn no_room_for_more_messages() -> Outcome {
    let bench = receiving()?;
    let mut probe = bench.probe();
    bench.send(&[2 * PAGE + 5, 4 * PAGE, 3 * PAGE + 1, PAGE])?;
    let one = Call::new(ALL).room(1);
    for size in [2 * PAGE + 5, 7 * PAGE + 1, PAGE] {
        probe.receive(&one).assert_frags(&[size as u32]);
    }
    probe.give_back();
    Ok(())
}

/// A run is no way around the limit of a socket's tokens: it counts as many as it has buffers.
fn max_tokens() -> Outcome {
    const TOKENS: u32 = 20;
    let memory = DmaBuf::udmabuf(2048 * PAGE)?;
    let map = memory.map()?;
    let pair = Receiving::pair_for_full_buffers()?;
    let limit = NonZero::new(TOKENS).expect("a number");
    let request = pair.request(&[Receiving::QUEUE]).max_tokens(limit);
    let binding = pair.bind_with(&request, &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, Receiving::PORT, Receiving::QUEUE)?;
    ask(&connection.rx)?;
    let mut probe = Probe::new(&connection.rx, &[(binding.id(), &map)]);
    let mut sent = 0;
    for _ in 0..4 {
        traffic::send(&connection.tx, sent, 8 * PAGE as u64, 8 * PAGE)?;
        sent += 8 * PAGE as u64;
        wait_received(&connection.rx, sent);
    }
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[TOKENS * PAGE as u32]);
    probe.call(&Call::new(ALL)).assert_fails(libc::ENOBUFS);
    probe.give_back();
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[(32 - TOKENS) * PAGE as u32]);
    probe.give_back();
    Ok(())
}

/// Bytes in host memory have a message of their own, and what comes after it begins anew.
fn linear_bytes() -> Outcome {
    let bench = receiving()?;
    let mixed = Mixed::new(&bench)?;
    ask(&mixed.socket)?;
    let mut probe = bench.probe_of(&mixed.socket);
    mixed.send(0, 40, 100)?;
    mixed.send(140, 40, 100)?;
    let got = probe.receive(&Call::new(ALL));
    assert_eq!(got.sizes(), [40, 100, 40, 100]);
    probe.give_back();
    Ok(())
}

/// A socket that a listening one accepts takes runs if that one does.
fn accepted() -> Outcome {
    let memory = DmaBuf::udmabuf(2048 * PAGE)?;
    let map = memory.map()?;
    let pair = Receiving::pair_for_full_buffers()?;
    let binding = pair.bind(&[Receiving::QUEUE], &memory)?;
    pair.steer(Receiving::PORT, Receiving::QUEUE)?;
    let listener = pair.listen(Ip::V4, Receiving::PORT)?;
    ask(&listener)?;
    let connection = pair.connect(&listener)?;
    let mut probe = Probe::new(&connection.rx, &[(binding.id(), &map)]);
    traffic::send(&connection.tx, 0, 4 * PAGE as u64, 4 * PAGE)?;
    wait_received(&connection.rx, 4 * PAGE as u64);
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[4 * PAGE as u32]);
    probe.give_back();
    Ok(())
}

/// The option can be changed at any time; tokens are what they were.
fn switched_on_and_off() -> Outcome {
    let bench = receiving()?;
    let socket = &bench.connection.rx;
    let mut probe = bench.probe();
    bench.send(&[8 * PAGE])?;
    probe
        .receive(&Call::new(3 * PAGE))
        .assert_frags(&[3 * PAGE as u32]);
    sockopt::set(socket, libc::IPPROTO_TCP, TCP_DEVMEM_RUNS, 0)?;
    probe
        .receive(&Call::new(2 * PAGE))
        .assert_frags(&[PAGE as u32; 2]);
    ask(socket)?;
    probe
        .receive(&Call::new(ALL))
        .assert_frags(&[3 * PAGE as u32]);
    assert_eq!(probe.held().len(), 4);
    assert_eq!(held(&bench)?, 8);
    probe.give_back();
    Ok(())
}

/// Closing the socket gives back all of each run, and so does a connection that is aborted.
fn closed_with_tokens() -> Outcome {
    for abort in [false, true] {
        let bench = receiving()?;
        let id = bench.binding.id();
        let mut probe = bench.probe();
        bench.send(&[15 * PAGE; 8])?;
        probe.receive(&Call::new(40 * PAGE)).len();
        probe.receive(&Call::new(50 * PAGE)).len();
        assert_eq!(held(&bench)?, 90);
        if abort {
            let flushed = bench.pair.rx.ns.run(|| Ok(Netdev::open()?.flush(id)?))?;
            assert_eq!(flushed.aborted, 1);
            assert_eq!(flushed.outstanding, Some(0));
        }
        drop(probe);
        drop((bench.connection, bench.binding));
        provider::all_buffers_back(id);
    }
    Ok(())
}

/// Another provider is the one whose code takes tokens back.
fn returned_by_another_provider() -> Outcome {
    let bench = receiving()?;
    let mut probe = bench.probe();
    bench.send(&[8 * PAGE; 4])?;
    for _ in 0..2 {
        probe.receive(&Call::new(12 * PAGE)).len();
    }
    modules::insert(modules::SAMPLE, c"")?;
    let tokens = probe.take_held();
    let returned = give_back(&bench, &tokens[..1]);
    let left = held(&bench);
    delete_module(c"host_provider", DeleteModuleFlags::O_NONBLOCK).map_err(io::Error::from)?;
    assert_eq!(returned?, 1);
    assert_eq!(left?, 12);
    assert_eq!(give_back(&bench, &tokens)?, 1);
    assert_eq!(held(&bench)?, 0);
    Ok(())
}

/// Another thread returns every token there could be, while runs are told, and made longer.
fn returned_while_they_are_told() -> Outcome {
    const ROUNDS: u64 = 200;
    const SEGMENTS: u64 = 4;
    const LEN: u64 = 8 * PAGE as u64;
    let bench = receiving()?;
    let id = bench.binding.id();
    let (rx, tx) = (&bench.connection.rx, &bench.connection.tx);
    let done = AtomicBool::new(false);
    let base = Provider::Module.first_token();
    thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            let range = TokenRange {
                start: base,
                count: 8,
            };
            while !done.load(Ordering::Relaxed) {
                dontneed(rx, &[range]).expect("DONTNEED");
            }
        });
        let mut sent = 0;
        let mut received = || -> Outcome {
            for _ in 0..ROUNDS {
                for _ in 0..SEGMENTS {
                    traffic::send(tx, sent, LEN, LEN as usize)?;
                    sent += LEN;
                }
                wait_received(rx, sent);
                let mut left = SEGMENTS * LEN;
                while left > 0 {
                    // What is there may be somebody else's by now.
                    let mut probe = bench.probe().quiet();
                    left -= probe.call(&Call::new(ALL)).len() as u64;
                    probe.take_held();
                }
            }
            Ok(())
        };
        let result = received();
        done.store(true, Ordering::Relaxed);
        result
    })?;
    // What came back too early has its token still, or none.
    drop((bench.connection, bench.binding));
    provider::all_buffers_back(id);
    Ok(())
}

/// Tokens that do not fit into the array that there is.
fn many() -> Outcome {
    let bench = receiving()?;
    let mut probe = bench.probe();
    // Single bytes in between keep buffers from following each other.
    for _ in 0..100 {
        bench.send(&[2 * PAGE + 1])?;
    }
    let mut left = 100 * (2 * PAGE + 1);
    while left > 0 {
        left -= probe.receive(&Call::new(ALL)).len();
    }
    assert_eq!(probe.held().len(), 100);
    assert_eq!(held(&bench)?, 300);
    let tokens = probe.take_held();
    let all = TokenRange {
        start: *tokens.iter().min().expect("there are some"),
        count: 100,
    };
    assert_eq!(dontneed(&bench.connection.rx, &[all])?, 100);
    assert_eq!(held(&bench)?, 0);
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        the_option,
        a_provider_without,
        not_asked_for,
        one_message,
        across_packets,
        no_longer_than_the_longest,
        gaps,
        parts_of_frags,
        peek,
        no_room_for_more_messages,
        max_tokens,
        linear_bytes,
        accepted,
        switched_on_and_off,
        closed_with_tokens,
        returned_by_another_provider,
        returned_while_they_are_told,
        many,
    ])
}
