// SPDX-License-Identifier: GPL-2.0

//! recvmsg() with data and control buffers that are too small, missing or bad.

use std::process::ExitCode;

use devmem::cmsg;
use devmem_testlib::Outcome;
use devmem_testlib::Provider;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::probe::Area;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::ETOOSMALL;
use devmem_testlib::provider;
use devmem_testlib::runner;
use devmem_testlib::tests;

/// Room for everything that a test sends.
const ALL: usize = 1 << 16;
/// What is enough for the kernel to put a message there: without its padding.
const LEAST: usize = cmsg::SPACE;

fn no_room_for_a_message() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    for control in [0, 1, 8, 16, 24, LEAST - 1] {
        probe
            .call(&Call::new(ALL).control(Area::good(control)))
            .assert_fails(ETOOSMALL);
    }
    probe.receive(&Call::new(ALL)).assert_frags(&[500, 700]);
    probe.give_back();
    Ok(())
}

fn room_for_some_messages() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[100, 200, 300, 400, 500, 600])?;
    probe.receive(&Call::new(ALL).room(1)).assert_frags(&[100]);
    probe
        .receive(&Call::new(ALL).room(2))
        .assert_frags(&[200, 300]);
    // One byte short of two.
    let short = Area::good(2 * LEAST - 1);
    probe
        .receive(&Call::new(ALL).control(short))
        .assert_frags(&[400]);
    probe
        .receive(&Call::new(ALL).room(2).flags(libc::MSG_PEEK))
        .assert_frags(&[500, 600]);
    probe
        .receive(&Call::new(ALL).room(2))
        .assert_frags(&[500, 600]);
    probe.give_back();
    Ok(())
}

/// A frag that is read in parts has a token for each, and is held until all are back.
fn less_than_a_frag() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[1000])?;
    for size in [1, 499, 250, 249, 1] {
        probe.receive(&Call::new(size)).assert_frags(&[size as u32]);
    }
    probe
        .call(&Call::new(ALL).flags(libc::MSG_DONTWAIT))
        .assert_fails(libc::EAGAIN);
    probe.give_back();
    Ok(())
}

fn across_frags() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[300, 300, 300, 300])?;
    probe.receive(&Call::new(450)).assert_frags(&[300, 150]);
    probe.receive(&Call::new(150)).assert_frags(&[150]);
    probe.receive(&Call::new(301)).assert_frags(&[300, 1]);
    probe.receive(&Call::new(ALL)).assert_frags(&[299]);
    probe.give_back();
    Ok(())
}

/// Intended difference: the C code gives a token for no bytes.
fn no_bytes() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500])?;
    for call in [Call::new(0), Call::new(0).data(&[])] {
        let got = probe.call(&call);
        assert!(got.is_empty());
        match provider::under_test() {
            Provider::Module => assert_eq!(got.sizes(), []),
            Provider::Builtin => assert_eq!(got.sizes(), [0]),
        }
    }
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    probe.give_back();
    Ok(())
}

/// Device memory takes none of the data buffer, so it does not matter whether that is there.
fn no_data_buffer() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    let missing = Call::new(0).data(&[Area::faulty(0, 600)]);
    probe.receive(&missing).assert_frags(&[500, 100]);
    let partly = Call::new(0).data(&[Area::faulty(10, 600)]);
    probe.receive(&partly).assert_frags(&[600]);
    probe.give_back();
    Ok(())
}

fn many_data_buffers() -> Outcome {
    const MOST: usize = 1024;
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[700, 700])?;
    let ones = vec![Area::good(1); MOST];
    probe
        .receive(&Call::new(0).data(&ones))
        .assert_frags(&[700, 324]);
    let more = vec![Area::good(1); MOST + 1];
    probe
        .call(&Call::new(0).data(&more))
        .assert_fails(libc::EMSGSIZE);
    // Empty ones among them.
    let sparse = [
        Area::good(0),
        Area::good(100),
        Area::good(0),
        Area::good(50),
    ];
    probe
        .receive(&Call::new(0).data(&sparse))
        .assert_frags(&[150]);
    probe.receive(&Call::new(ALL)).assert_frags(&[226]);
    probe.give_back();
    Ok(())
}

fn control_buffer_missing() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    for good in [0, 8, LEAST - 1] {
        let call = Call::new(ALL).control(Area::faulty(good, 10 * LEAST));
        probe.call(&call).assert_fails(libc::EFAULT);
    }
    // There for the first message only: the call ends there, and the second is not lost.
    let first = Area::faulty(LEAST, 10 * LEAST);
    probe
        .receive(&Call::new(ALL).control(first))
        .assert_frags(&[500]);
    probe.receive(&Call::new(ALL)).assert_frags(&[700]);
    probe.give_back();
    Ok(())
}

/// Failed calls take no tokens from the socket: the next ones have the next numbers.
fn failures_take_no_tokens() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    probe.receive(&Call::new(100)).assert_frags(&[100]);
    for _ in 0..10 {
        probe.call(&Call::new(ALL).room(0)).assert_fails(ETOOSMALL);
        probe
            .call(&Call::new(ALL).control(Area::faulty(0, 10 * LEAST)))
            .assert_fails(libc::EFAULT);
    }
    probe.receive(&Call::new(ALL)).assert_frags(&[400, 700]);
    let held = probe.held().to_vec();
    assert!(
        held.iter().zip(held[0]..).all(|(&a, b)| a == b),
        "consecutive tokens: {held:?}"
    );
    probe.give_back();
    Ok(())
}

/// More pieces in the queue than tokens are reserved at a time.
fn many_pieces() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[10; 60])?;
    probe
        .receive(&Call::new(ALL).room(20))
        .assert_frags(&[10; 20]);
    probe.receive(&Call::new(ALL)).assert_frags(&[10; 40]);
    probe.give_back();
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        no_room_for_a_message,
        room_for_some_messages,
        less_than_a_frag,
        across_frags,
        no_bytes,
        no_data_buffer,
        many_data_buffers,
        control_buffer_missing,
        failures_take_no_tokens,
        many_pieces,
    ])
}
