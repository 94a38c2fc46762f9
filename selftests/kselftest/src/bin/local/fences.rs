// SPDX-License-Identifier: GPL-2.0

//! Readers that wait for a copy, while the sender's devices, and others who read, do what they like.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem_testlib::Outcome;
use devmem_testlib::fixture::Sending;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Joint;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::sockopt;
use devmem_testlib::traffic;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recv;

use super::ALL;
use super::copied::SHORT;
use super::copied::left_alone;
use super::copied::reads;
use super::copied::sending;
use super::copied::shape;
use super::nothing_completes;
use super::probe;
use super::returns;
use super::told;
use super::unseen;

/// A call of a reader that does not wait.
fn now() -> Call {
    Call::ordinary(ALL).flags(libc::MSG_DONTWAIT)
}

/// A device has something to do with the memory again and again, until the kernel lets the CPU wait for it: a few times
/// nobody sleeps for that.
fn has_the_cpu_wait(memory: &OddDmaBuf) -> Outcome {
    const TIMES: u32 = 32;
    for _ in 0..TIMES {
        memory.go_on()?;
        let start = Instant::now();
        while start.elapsed() < wait::patience(SHORT) {
            if memory.state()?.cpu_accesses == 1 {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    panic!("the CPU does not wait for the memory");
}

/// When a copy was to be made, a device has something to do with the memory again. That keeps nothing from the sender of
/// what nobody wants copied any more, and none of the reader's memory, as what is its own. Who wants a copy after that
/// gets one.
pub fn another_fence() -> Outcome {
    for closed in [false, true] {
        let (bench, memory) = sending(Joint::Lo, &shape().with_fence())?;
        bench.sends(&bench.call(&[extent(0, 5000)]));
        wait_received(&bench.connection.rx, 5000);
        let unseen = unseen()?;
        let mut probe = probe(&bench, &unseen);
        probe.call(&now()).assert_fails(Errno::EAGAIN as i32);
        has_the_cpu_wait(&memory)?;
        let mut completions = Completions::default();
        nothing_completes(&bench.connection.tx, &mut completions)?;

        if closed {
            let Sending {
                binding,
                connection: Connection { rx, tx },
                ..
            } = bench;
            drop(rx);
            completions.wait(&tx, 1)?;
            assert!(!completions.copied);
            memory.signal()?;
            let id = binding.id();
            drop(binding);
            provider::all_buffers_back(id);
        } else {
            let Connection { rx, tx } = &bench.connection;
            let (got, tokens) = told(bench.binding.id(), &mut probe, 5000);
            assert_eq!(got, [extent(0, 5000)]);
            returns(rx, &tokens)?;
            completions.wait(tx, 1)?;
            assert!(!completions.copied);

            bench.sends(&bench.call(&[extent(7000, 100)]));
            wait_received(rx, 5100);
            probe.call(&now()).assert_fails(Errno::EAGAIN as i32);
            thread::sleep(SHORT);
            probe.call(&now()).assert_fails(Errno::EAGAIN as i32);
            memory.signal()?;
            reads(rx, 7000, 100)?;
            completions.wait(tx, 2)?;
            assert!(completions.copied);
        }
        left_alone(&memory)?;
    }
    Ok(())
}

/// Who waits for no more than the end of the stream is told of that when what comes before it is there.
pub fn only_the_end() -> Outcome {
    for both_ways in [false, true] {
        let (bench, memory) = sending(Joint::Lo, &shape().with_fence())?;
        let Connection { rx, tx } = &bench.connection;
        bench.sends(&bench.call(&[extent(0, 5000)]));
        wait_received(rx, 5000);
        let mut probe = Probe::new(rx, &[]).quiet();
        probe.call(&now()).assert_fails(Errno::EAGAIN as i32);
        tx.shutdown(Shutdown::Write)?;
        // The end of the stream counts as a byte.
        wait_received(rx, 5001);
        let (events, end) = match both_ways {
            false => (libc::POLLRDHUP, libc::POLLRDHUP),
            true => (0, libc::POLLHUP),
        };
        if both_ways {
            rx.shutdown(Shutdown::Write)?;
        }
        thread::scope(|scope| -> Outcome {
            let waiter = scope.spawn(|| sockopt::poll_for(rx, events, Duration::from_secs(10)));
            thread::sleep(SHORT);
            assert!(!waiter.is_finished(), "told before the data");
            memory.signal()?;
            let told = waiter.join().expect("a thread that polls")?;
            assert_eq!(told & end, end, "both ways: {both_ways}");
            Ok(())
        })?;
        probe.call(&now()).assert_plain(0, 5000);
        assert!(probe.call(&now()).is_empty());
    }
    Ok(())
}

/// A reader that waits for a copy gets what follows when another one has taken what was to be copied, or thrown it away.
pub fn taken_by_another() -> Outcome {
    for thrown_away in [false, true] {
        let (bench, memory) = sending(Joint::Lo, &shape().with_fence())?;
        let Connection { rx, tx } = &bench.connection;
        bench.sends(&bench.call(&[extent(0, 5000)]));
        (&mut &*tx).write_all(traffic::bytes(5000, 10))?;
        wait_received(rx, 5010);
        let unseen = unseen()?;
        let mut probe = probe(&bench, &unseen);
        thread::scope(|scope| -> Outcome {
            let reader = scope.spawn(|| reads(rx, 5000, 10));
            thread::sleep(SHORT);
            assert!(!reader.is_finished());
            if thrown_away {
                let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
                assert_eq!(recv(rx.as_raw_fd(), &mut [0; 5000], flags)?, 5000);
            } else {
                let (_, tokens) = told(bench.binding.id(), &mut probe, 5000);
                returns(rx, &tokens)?;
            }
            soon("what follows", || Ok(reader.is_finished()));
            reader.join().expect("a thread that reads")?;
            Ok(())
        })?;
        let mut completions = Completions::default();
        completions.wait(tx, 1)?;
        assert!(!completions.copied);
        assert_eq!(memory.state()?.cpu_mapped, 0);
    }
    Ok(())
}

/// Who has shut down his own end does not wait for a copy any more, and is told. What has come by then can be read once it
/// is there.
pub fn shut_down_by_the_reader() -> Outcome {
    let (bench, memory) = sending(Joint::Lo, &shape().with_fence())?;
    let rx = &bench.connection.rx;
    bench.sends(&bench.call(&[extent(0, 5000)]));
    wait_received(rx, 5000);
    thread::scope(|scope| -> Outcome {
        let reader = scope.spawn(|| (&mut &*rx).read(&mut [0; 10]));
        thread::sleep(SHORT);
        assert!(!reader.is_finished());
        rx.shutdown(Shutdown::Read)?;
        soon("the reader to be told", || Ok(reader.is_finished()));
        assert_eq!(reader.join().expect("a thread that reads")?, 0);
        Ok(())
    })?;
    let told = sockopt::poll_for(rx, libc::POLLIN | libc::POLLRDHUP, SHORT)?;
    assert_eq!(told, libc::POLLIN | libc::POLLRDHUP);

    memory.signal()?;
    soon("the copy", || {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        Ok(recv(rx.as_raw_fd(), &mut [0; 10], flags)? == 10)
    });
    Ok(reads(rx, 0, 5000)?)
}
