// SPDX-License-Identifier: GPL-2.0

//! Programs of 32 bits: control messages have another layout for them.

use std::io;
use std::process::ExitCode;

use devmem::DmaBuf;
use devmem::cmsg::SCM_DEVMEM_DMABUF;
use devmem::recv::take_runs;
use devmem::send::enable_zerocopy;
use devmem::token::TokenRange;
use devmem_testlib::Outcome;
use devmem_testlib::compat;
use devmem_testlib::fixture::Mixed;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::Area;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::ETOOSMALL;
use devmem_testlib::probe::Probe;
use devmem_testlib::provider;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::tx;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::extent;
use nix::errno::Errno;

/// Room for everything that a test sends.
const ALL: usize = 1 << 16;

/// A call of such a program, with room for everything.
fn call(len: usize) -> Call {
    Call::new(len).compat()
}

/// Gives tokens back, as such a program does, and each only once.
#[track_caller]
fn give_back(bench: &Receiving, probe: &mut Probe<'_>) -> Outcome {
    let held = probe.take_held();
    let ranges: Vec<_> = held
        .iter()
        .map(|&start| TokenRange { start, count: 1 })
        .collect();
    let socket = &bench.connection.rx;
    assert_eq!(compat::dontneed(socket, &ranges)?, held.len());
    assert_eq!(compat::dontneed(socket, &ranges)?, 0, "returned again");
    Ok(())
}

fn receive() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[100, 200, 300])?;
    probe.receive(&call(50)).assert_frags(&[50]);
    probe.receive(&call(150)).assert_frags(&[50, 100]);
    let peek = call(ALL).flags(libc::MSG_PEEK);
    probe.receive(&peek).assert_frags(&[100, 300]);
    probe.receive(&call(ALL)).assert_frags(&[100, 300]);
    give_back(&bench, &mut probe)?;
    // Between two calls of one, the other's.
    bench.send(&[400, 500])?;
    probe.receive(&Call::new(100)).assert_frags(&[100]);
    probe.receive(&call(400)).assert_frags(&[300, 100]);
    probe.receive(&Call::new(ALL)).assert_frags(&[400]);
    give_back(&bench, &mut probe)
}

/// One message for a run, which becomes longer in the layout of such a program, too.
fn runs() -> Outcome {
    const PAGE: usize = 4096;
    let bench = Receiving::in_full_buffers(DmaBuf::udmabuf(1024 * PAGE)?)?;
    let takes_runs = take_runs(&bench.connection.rx)?;
    let mut probe = bench.probe();
    // More frags than an skb has, and less than the socket has room for.
    bench.send(&[4 * PAGE; 5])?;
    let got = probe.receive(&call(20 * PAGE));
    match takes_runs {
        true => got.assert_frags(&[20 * PAGE as u32]),
        false => got.assert_frags(&[PAGE as u32; 20]),
    }
    give_back(&bench, &mut probe)
}

fn too_little_room() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[100, 200, 300, 400])?;
    for control in [0, 1, 12, 16, compat::SPACE - 1] {
        probe
            .call(&call(ALL).control(Area::good(control)))
            .assert_fails(ETOOSMALL);
    }
    // A message takes less than what the kernel wants to see room for.
    for len in [compat::SPACE, compat::SPACE + 3] {
        let tight = call(ALL).control(Area::good(len));
        probe.call(&tight).assert_fails(ETOOSMALL);
    }
    let one = call(ALL).control(Area::good(compat::SPACE + 4));
    probe.receive(&one).assert_frags(&[100]);
    let two = call(ALL).control(Area::good(2 * compat::SPACE + 4));
    probe.receive(&two).assert_frags(&[200, 300]);
    probe.receive(&call(ALL)).assert_frags(&[400]);
    give_back(&bench, &mut probe)
}

fn memory_missing() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    for good in [0, 8, compat::SPACE - 1] {
        let faulty = Area::faulty(good, 10 * compat::SPACE);
        probe
            .call(&call(ALL).control(faulty))
            .assert_fails(libc::EFAULT);
    }
    let first = Area::faulty(compat::SPACE, 10 * compat::SPACE);
    probe
        .receive(&call(ALL).control(first))
        .assert_frags(&[500]);
    probe.receive(&call(ALL)).assert_frags(&[700]);
    give_back(&bench, &mut probe)
}

fn linear_bytes_before_frags() -> Outcome {
    let bench = Receiving::new()?;
    let mixed = Mixed::new(&bench)?;
    let mut probe = bench.probe_of(&mixed.socket);
    mixed.send(0, 40, 100)?;
    mixed.send(140, 40, 100)?;
    assert_eq!(probe.receive(&call(30)).sizes(), [30]);
    assert_eq!(probe.receive(&call(ALL)).sizes(), [10, 100, 40, 100]);
    mixed.send(280, 40, 100)?;
    let tight = call(ALL).control(Area::good(0));
    probe.call(&tight).assert_fails(ETOOSMALL);
    let faulty = call(ALL).control(Area::faulty(0, 1000));
    probe.call(&faulty).assert_fails(libc::EFAULT);
    assert_eq!(probe.receive(&call(ALL)).sizes(), [40, 100]);
    probe.give_back();
    Ok(())
}

fn tokens_not_held() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[100, 200])?;
    probe.receive(&call(ALL)).assert_frags(&[100, 200]);
    let next = probe.held().last().expect("two tokens") + 1;
    let range = |count| TokenRange { start: next, count };
    let none: [&[TokenRange]; 4] = [&[], &[range(9)], &[range(u32::MAX)], &[range(1); 129]];
    for ranges in none {
        match compat::dontneed(&bench.connection.rx, ranges) {
            Ok(returned) => observe(format_args!("{returned} tokens returned")),
            Err(err) => observe(Errno::from_raw(err.raw_os_error().unwrap_or(0))),
        }
    }
    give_back(&bench, &mut probe)
}

fn send() -> Outcome {
    const MEMORY: u64 = 1 << 18;
    const MESSAGE: (i32, i32) = (libc::SOL_SOCKET, SCM_DEVMEM_DMABUF);
    /// No binding has it.
    const NO_ID: u32 = 0x7fff_fff0;
    let bench = Receiving::new()?;
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    tx::fill(&memory)?;
    let binding = bench.pair.tx.bind_tx(&memory)?;
    // To be read as usual, so not into the bound queue, as RSS has one connection in eight.
    let connection =
        bench
            .pair
            .connect_to_queue(Ip::V4, Receiving::PORT + 1, Receiving::PLAIN_QUEUE)?;
    let socket = &connection.tx;
    enable_zerocopy(socket)?;

    let parts = [extent(5, 9000), extent(MEMORY - 1, 1), extent(0, 4096)];
    let sent = compat::send(socket, MESSAGE, binding.id(), &parts)?;
    assert_eq!(sent as u64, tx::total(&parts));
    tx::expect(&connection.rx, &parts)?;
    let refused = [
        (binding.id(), extent(MEMORY, 1), Errno::EFAULT),
        (NO_ID, extent(0, 100), Errno::EINVAL),
    ];
    for (id, part, errno) in refused {
        tx::fails(compat::send(socket, MESSAGE, id, &[part]), errno);
    }
    let unknown = (libc::SOL_SOCKET, SCM_DEVMEM_DMABUF + 1000);
    let result: io::Result<usize> = compat::send(socket, unknown, binding.id(), &[extent(0, 1)]);
    tx::fails(result, Errno::EINVAL);

    let mut completions = Completions::default();
    completions.wait(socket, 1)?;
    assert!(!completions.copied, "the kernel copied device memory");
    let id = binding.id();
    drop(binding);
    provider::all_buffers_back(id);
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        receive,
        runs,
        too_little_room,
        memory_missing,
        linear_bytes_before_frags,
        tokens_not_held,
        send,
    ])
}
