// SPDX-License-Identifier: GPL-2.0

//! Readers that know nothing of device memory: what is sent from a local binding is copied for them.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::ptr;
use std::thread;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::Receiver;
use devmem::completion;
use devmem::netdev::Netdev;
use devmem::send::enable_zerocopy;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Sending;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::errno;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::pump::reset_on_close;
use devmem_testlib::report::Stop;
use devmem_testlib::sockopt;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::extent;
use nix::errno::Errno;

use super::ALL;
use super::acknowledged;
use super::assert_aborted;
use super::nothing_completes;
use super::probe;
use super::returns;
use super::told;
use super::unseen;

/// Bytes of a dma-buf of the tests' own exporter.
const SIZE: usize = 128 << 10;
/// How long to look for what does not come.
pub const SHORT: Duration = Duration::from_millis(200);

/// A dma-buf that holds the stream, as one that the CPU can look at.
pub fn shape() -> Shape {
    let all = Segment {
        addr: 0,
        len: SIZE as u64,
    };
    Shape::new(&[all]).for_the_cpu()
}

/// A connection that sends from such a one.
pub fn sending(joint: Joint, shape: &Shape) -> Result<(Sending, OddDmaBuf), Stop> {
    let memory = shape.of_memory(traffic::bytes(0, SIZE))?;
    let bench = Sending::local_from(joint, memory.as_any()?)?;
    Ok((bench, memory))
}

/// Waits for the completions of so many calls, which say that it was copied.
#[track_caller]
fn completes_copied(socket: &TcpStream, calls: u32) -> io::Result<()> {
    let mut completions = Completions::default();
    completions.wait(socket, calls)?;
    assert!(completions.copied, "that it was copied is not told");
    Ok(())
}

/// Nobody has the memory mapped any more.
#[track_caller]
pub fn left_alone(memory: &OddDmaBuf) -> io::Result<()> {
    let state = memory.state()?;
    assert_eq!((state.cpu_accesses, state.cpu_mappings), (0, 0));
    assert_eq!(state.attached, 0);
    Ok(())
}

fn is_readable(socket: &TcpStream) -> io::Result<bool> {
    Ok(sockopt::poll(socket)? & (libc::POLLIN | libc::POLLRDHUP | libc::POLLHUP) != 0)
}

/// Receives so many bytes of the stream, from a position on.
#[track_caller]
pub fn reads(mut socket: &TcpStream, position: u64, len: usize) -> io::Result<()> {
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes)?;
    traffic::compare(position, &bytes);
    Ok(())
}

/// What is in host memory and what is not come in one stream, by any way, and the sender is told that it was copied.
pub fn an_ordinary_reader() -> Outcome {
    const HEAD: usize = 1000;
    const BODY: usize = 70_000;
    for joint in Joint::ALL {
        let bench = Sending::local(joint)?;
        let Connection { rx, tx } = &bench.connection;
        let tail = (HEAD + BODY) as u64;
        (&mut &*tx).write_all(traffic::bytes(0, HEAD))?;
        bench.sends(&bench.call(&[extent(HEAD as u64, BODY as u64)]));
        (&mut &*tx).write_all(traffic::bytes(tail, HEAD))?;
        wait_received(rx, tail + HEAD as u64);

        let all = HEAD + BODY + HEAD;
        let mut probe = Probe::new(rx, &[]).quiet();
        let whole = Call::ordinary(all).flags(libc::MSG_WAITALL);
        for flags in [libc::MSG_PEEK, 0] {
            let got = probe.call(&whole.clone().flags(flags));
            got.assert_plain(0, all);
        }
        completes_copied(tx, 1)?;
        (&mut &*tx).write_all(traffic::bytes(0, 1))?;
        reads(rx, 0, 1)?;
    }
    Ok(())
}

/// Many calls, by IPv4 and IPv6, of more than is copied at a time, and in larger packets.
pub fn a_copied_stream() -> Outcome {
    const CALLS: u64 = 40;
    for (ip, packets) in [(Ip::V4, 65_536), (Ip::V6, 65_536), (Ip::V4, 524_280)] {
        let memory = DmaBuf::udmabuf(1 << 20)?;
        tx::fill(&memory)?;
        let pair = Pair::local(Joint::Lo)?;
        pair.rx.sysctl("ipv4/tcp_rmem", "4096 4194304 6291456")?;
        pair.tx.set_big_tcp(packets)?;
        let binding = pair.tx.bind_tx(&memory)?;
        let connection = pair.connect(&pair.listen(ip, Sending::PORT)?)?;
        enable_zerocopy(&connection.tx)?;
        let parts: Vec<_> = (0..CALLS)
            .map(|n| extent(n * 1000 + 1, 99 + n * n * 500))
            .collect();
        thread::scope(|scope| -> Outcome {
            let sender = scope.spawn(|| -> io::Result<()> {
                for &part in &parts {
                    let call = tx::Call::new(binding.id(), &[part]);
                    assert_eq!(call.send(&connection.tx)? as u64, part.len);
                }
                Ok(())
            });
            tx::expect(&connection.rx, &parts)?;
            sender.join().expect("a thread that sends")?;
            completes_copied(&connection.tx, parts.len() as u32)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Until a device is done with the memory the data have not come: what is before them is delivered, and the reader is told
/// when there is more. Neither is the end of the stream there before them.
pub fn before_the_fence() -> Outcome {
    for joint in Joint::ALL {
        let (bench, memory) = sending(joint, &shape().with_fence())?;
        let Connection { rx, tx } = &bench.connection;
        (&mut &*tx).write_all(traffic::bytes(0, 10))?;
        bench.sends(&bench.call(&[extent(10, 9990)]));
        tx.shutdown(Shutdown::Write)?;
        // The end of the stream counts as a byte.
        wait_received(rx, 10_001);
        soon("data to read", || is_readable(rx));

        let mut probe = Probe::new(rx, &[]).quiet();
        // Not even who would wait for more.
        probe.call(&Call::ordinary(ALL)).assert_plain(0, 10);
        for flags in [libc::MSG_DONTWAIT, libc::MSG_DONTWAIT | libc::MSG_PEEK] {
            let got = probe.call(&Call::ordinary(ALL).flags(flags));
            got.assert_fails(Errno::EAGAIN as i32);
        }
        thread::sleep(SHORT);
        assert!(!is_readable(rx)?, "{joint:?}");
        rx.set_read_timeout(Some(SHORT))?;
        let got = probe.call(&Call::ordinary(ALL));
        got.assert_fails(Errno::EAGAIN as i32);
        rx.set_read_timeout(None)?;
        nothing_completes(tx, &mut Completions::default())?;
        assert_eq!(memory.state()?.cpu_mapped, 0);

        memory.signal()?;
        soon("data to read", || is_readable(rx));
        let got = probe.call(&Call::ordinary(ALL).flags(libc::MSG_DONTWAIT));
        got.assert_plain(10, 9990);
        assert!(probe.call(&Call::ordinary(ALL)).is_empty());
        completes_copied(tx, 1)?;
        left_alone(&memory)?;
    }
    Ok(())
}

/// A reader that sleeps is woken, and nobody has to wait for its socket meanwhile. So is one that is told of edges only.
pub fn woken_by_the_fence() -> Outcome {
    let (bench, memory) = sending(Joint::Lo, &shape().with_fence())?;
    let Connection { rx, tx } = &bench.connection;
    bench.sends(&bench.call(&[extent(0, 5000)]));
    wait_received(rx, 5000);
    thread::scope(|scope| -> Outcome {
        let reader = scope.spawn(|| reads(rx, 0, 5000));
        thread::sleep(SHORT);
        // Both take the lock of the socket.
        (&mut &*rx).write_all(&[1])?;
        wait_received(rx, 5000);
        assert!(!reader.is_finished());
        memory.signal()?;
        reader.join().expect("a thread that reads")?;
        Ok(())
    })?;
    completes_copied(tx, 1)?;

    let (bench, memory) = sending(Joint::Lo, &shape().with_fence())?;
    let rx = bench.connection.rx.try_clone()?;
    bench.sends(&bench.call(&[extent(0, 5000)]));
    wait_received(&rx, 5000);
    rx.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpStream::from_std(rx)?;
        let read = edge_triggered(&socket, 5000);
        tokio::pin!(read);
        let early = tokio::time::timeout(SHORT, &mut read).await;
        assert!(early.is_err(), "{early:?}");
        memory.signal()?;
        let got = tokio::time::timeout(Duration::from_secs(10), read).await;
        let bytes = got.expect("an edge")?;
        assert_eq!(bytes.len(), 5000);
        traffic::compare(0, &bytes);
        Ok(())
    })
}

/// Reads up to so many bytes, and waits for the next edge when it is told to come back.
async fn edge_triggered(socket: &tokio::net::TcpStream, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    loop {
        socket.readable().await?;
        match socket.try_read(&mut bytes) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => (),
            done => break done.map(|len| bytes[..len].to_vec()),
        }
    }
}

/// A reader that asks for device memory gets it meanwhile, and what others have begun is for nothing.
pub fn told_meanwhile() -> Outcome {
    let (bench, memory) = sending(Joint::Lo, &shape().with_fence())?;
    let Connection { rx, tx } = &bench.connection;
    bench.sends(&bench.call(&[extent(0, 5000)]));
    wait_received(rx, 5000);
    let unseen = unseen()?;
    let mut probe = probe(&bench, &unseen);
    let now = Call::ordinary(ALL).flags(libc::MSG_DONTWAIT);
    probe.call(&now).assert_fails(Errno::EAGAIN as i32);
    let (got, tokens) = told(bench.binding.id(), &mut probe, 5000);
    assert_eq!(got, [extent(0, 5000)]);
    returns(rx, &tokens)?;

    let mut completions = Completions::default();
    completions.wait(tx, 1)?;
    assert!(!completions.copied);

    // What comes then is neither held up nor mixed up.
    (&mut &*tx).write_all(traffic::bytes(5000, 10))?;
    wait_received(rx, 5010);
    assert!(is_readable(rx)?);
    probe.call(&now).assert_plain(5000, 10);
    bench.sends(&bench.call(&[extent(7000, 100)]));
    wait_received(rx, 5110);
    probe.call(&now).assert_fails(Errno::EAGAIN as i32);
    memory.signal()?;
    reads(rx, 7000, 100)?;
    completions.wait(tx, 2)?;
    assert!(completions.copied);
    left_alone(&memory)?;
    Ok(())
}

/// Completions that the sender reads late are told apart by whether it was copied.
pub fn told_apart() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let Connection { rx, tx } = &bench.connection;
    let map = bench.memory.map()?;
    let mut probe = probe(&bench, &map);
    for call in 0..4 {
        bench.sends(&bench.call(&[extent(call * 100, 100)]));
        wait_received(rx, (call + 1) * 100);
        if call % 2 == 0 {
            reads(rx, call * 100, 100)?;
        } else {
            told(bench.binding.id(), &mut probe, 100);
            probe.give_back();
        }
        acknowledged(tx)?;
    }
    let mut told = Vec::new();
    soon("four completions", || {
        while let Some(list) = completion::read(tx)? {
            told.extend(list.iter().map(|one| (one.first, one.count, one.copied)));
        }
        Ok(told.len() >= 4)
    });
    assert_eq!(
        told,
        [(0, 1, true), (1, 1, false), (2, 1, true), (3, 1, false)]
    );
    Ok(())
}

/// Where the CPU does not get at the memory, and where that fails, it is an error, and the data stay for a reader that
/// asks for device memory.
pub fn that_cannot_be_copied() -> Outcome {
    let no_way = Shape::new(&[Segment {
        addr: 0,
        len: SIZE as u64,
    }]);
    let cases = [
        (no_way, Errno::EFAULT),
        (shape().map_error(libc::EPERM), Errno::EIO),
        (shape().map_error(libc::ENOMEM), Errno::ENOMEM),
    ];
    for (shape, error) in cases {
        let (bench, memory) = sending(Joint::Netkit, &shape)?;
        let rx = &bench.connection.rx;
        bench.sends(&bench.call(&[extent(3, 5000)]));
        wait_received(rx, 5000);
        let unseen = unseen()?;
        let mut probe = probe(&bench, &unseen);
        for flags in [0, libc::MSG_PEEK, libc::MSG_WAITALL] {
            let got = probe.call(&Call::ordinary(ALL).flags(flags));
            got.assert_fails(error as i32);
        }
        let (got, tokens) = told(bench.binding.id(), &mut probe, 5000);
        assert_eq!(got, [extent(3, 5000)]);
        returns(rx, &tokens)?;
        bench.completes()?;
        left_alone(&memory)?;
    }
    Ok(())
}

/// What was taken back meanwhile is not read.
pub fn revoked_meanwhile() -> Outcome {
    let (bench, memory) = sending(Joint::Veth, &shape().with_fence())?;
    let rx = &bench.connection.rx;
    bench.sends(&bench.call(&[extent(0, 5000)]));
    wait_received(rx, 5000);
    let mut probe = Probe::new(rx, &[]).quiet();
    let now = Call::ordinary(ALL).flags(libc::MSG_DONTWAIT);
    probe.call(&now).assert_fails(Errno::EAGAIN as i32);
    thread::scope(|scope| -> Outcome {
        // That waits for the fence, with the memory locked.
        let revoker = scope.spawn(|| memory.revoke());
        soon("the memory to be taken back", || {
            Ok(memory.state()?.revoked != 0)
        });
        memory.signal()?;
        revoker.join().expect("a thread that revokes")?;
        Ok(())
    })?;
    soon("the error", || is_readable(rx));
    probe.call(&now).assert_fails(Errno::EIO as i32);
    assert_eq!(memory.state()?.cpu_mapped, 0);
    left_alone(&memory)?;
    Ok(())
}

/// Who no longer wants it holds nothing, though nobody is done with the memory.
pub fn ended_before_the_fence() -> Outcome {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum End {
        Closed,
        Flushed,
        Killed,
        ResetByThePeer,
    }
    for end in [End::Closed, End::Flushed, End::Killed, End::ResetByThePeer] {
        let (bench, memory) = sending(Joint::Veth, &shape().with_fence())?;
        bench.sends(&bench.call(&[extent(0, 5000)]));
        wait_received(&bench.connection.rx, 5000);
        let mut probe = Probe::new(&bench.connection.rx, &[]).quiet();
        let now = Call::ordinary(ALL).flags(libc::MSG_DONTWAIT);
        probe.call(&now).assert_fails(Errno::EAGAIN as i32);
        nothing_completes(&bench.connection.tx, &mut Completions::default())?;
        let Sending {
            pair,
            binding,
            connection: Connection { rx, tx },
            ..
        } = bench;
        let id = binding.id();
        match end {
            End::Closed => drop(rx),
            End::Flushed => {
                let flushed = pair.tx.ns.run(|| Ok(Netdev::open()?.flush(id)?))?;
                assert_eq!(flushed.aborted, 1);
                assert_aborted(&rx)?;
            }
            End::Killed => {
                pair.rx.abort_connections(Sending::PORT)?;
                assert_aborted(&rx)?;
            }
            End::ResetByThePeer => {
                reset_on_close(&tx)?;
                drop(tx);
                soon("the reset", || Ok(sockopt::poll(&rx)? & libc::POLLERR != 0));
                let got = Probe::new(&rx, &[]).quiet().call(&now);
                got.assert_fails(Errno::ECONNRESET as i32);
                // What came before can still be read, or not.
                drop((rx, binding));
                provider::all_buffers_back(id);
                left_alone(&memory)?;
                continue;
            }
        }
        let mut completions = Completions::default();
        completions.wait(&tx, 1)?;
        assert!(!completions.copied, "{end:?}");
        drop(binding);
        provider::all_buffers_back(id);
        assert_eq!(memory.state()?.cpu_mapped, 0);
    }
    Ok(())
}

/// Only `recvmsg()` has it copied, and its like. Whatever reads in other ways fails as at a NIC's packets, but at what was
/// copied before.
pub fn spliced() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let rx = &bench.connection.rx;
    bench.sends(&bench.call(&[extent(0, 5000)]));
    wait_received(rx, 5000);
    let (out, pipe) = nix::unistd::pipe()?;
    let splice = || {
        // SAFETY: Takes no pointers but null.
        let ret = unsafe {
            libc::splice(
                rx.as_raw_fd(),
                ptr::null_mut(),
                pipe.as_raw_fd(),
                ptr::null_mut(),
                ALL,
                libc::SPLICE_F_NONBLOCK,
            )
        };
        usize::try_from(ret).map_err(|_| io::Error::last_os_error())
    };
    assert_eq!(errno(splice()), Errno::EFAULT);
    let mut probe = Probe::new(rx, &[]).quiet();
    let peek = Call::ordinary(5000).flags(libc::MSG_PEEK | libc::MSG_WAITALL);
    probe.call(&peek).assert_plain(0, 5000);
    assert_eq!(splice()?, 5000);
    let mut bytes = [0; 5000];
    File::from(out).read_exact(&mut bytes)?;
    traffic::compare(0, &bytes);
    completes_copied(&bench.connection.tx, 1)?;
    Ok(())
}

/// One that takes part of a copy leaves the rest to those that ask for device memory: that is in host memory now.
pub fn half_by_another() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let rx = &bench.connection.rx;
    bench.sends(&bench.call(&[extent(0, 5000)]));
    wait_received(rx, 5000);
    reads(rx, 0, 2000)?;
    let map = bench.memory.map()?;
    let mut receiver = Receiver::new(rx);
    let copied = tx::expect_in_device_memory(&mut receiver, &map, &[extent(2000, 3000)])?;
    assert_eq!(copied, 3000);
    drop(receiver);
    completes_copied(&bench.connection.tx, 1)?;
    Ok(())
}
