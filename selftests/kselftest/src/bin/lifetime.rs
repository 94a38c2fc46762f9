// SPDX-License-Identifier: GPL-2.0

//! Sockets, bindings, processes and devices that end while others still use what is theirs.

use std::env;
use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::BindRx;
use devmem::BindTx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::Frag;
use devmem::Piece;
use devmem::Receiver;
use devmem::token;
use devmem::token::TokenRange;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::aftermath;
use devmem_testlib::child::Child;
use devmem_testlib::child::Reaper;
use devmem_testlib::dmabufs;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::address;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::storm;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::tx;
use devmem_testlib::wait;

const PAGE: usize = 4096;
const MEMORY: usize = 1024 * PAGE;
const QUEUE: u32 = Receiving::QUEUE;
const PORT: u16 = Receiving::PORT;
/// How long a driver may take to go.
const UNLOADED: Duration = Duration::from_secs(5);
/// How long the memory of somebody who was killed may take to be free.
const RELEASED: Duration = Duration::from_secs(1);
/// Tells a program of ours that it is the reader which gets killed: the number of its device.
const VICTIM: &str = "DEVMEM_KSELFTEST_VICTIM";

/// Sends a part of the stream, and takes it with its tokens.
fn take<'s>(connection: &'s Connection, position: u64, len: u64) -> io::Result<Vec<Frag<'s>>> {
    traffic::send(&connection.tx, position, len, len as usize)?;
    let mut receiver = Receiver::new(&connection.rx);
    let mut frags: Vec<Frag<'s>> = Vec::new();
    while frags.iter().map(|frag| u64::from(frag.size)).sum::<u64>() < len {
        let received = receiver.recv()?;
        assert!(!received.is_eof(), "the stream ended");
        for piece in received {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}")
            };
            frags.push(frag);
        }
    }
    Ok(frags)
}

/// Checks that frags hold the stream from a position on.
#[track_caller]
fn check(memory: &DmaBuf, mut position: u64, frags: &[Frag<'_>]) -> io::Result<()> {
    let map = memory.map()?;
    let cpu = map.begin_read()?;
    for frag in frags {
        let mut bytes = vec![0; frag.size as usize];
        cpu.copy_out(frag.offset, &mut bytes)?;
        traffic::compare(position, &bytes);
        position += u64::from(frag.size);
    }
    Ok(())
}

/// A binding needs the dma-buf, but no descriptor of it: the only one may be given to the request.
fn the_only_descriptor_given_away() -> Outcome {
    const LEN: u64 = 20_000;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let request = pair.request(&[QUEUE]);
    let binding = pair.rx.ns.run(|| Ok(request.bind(memory)))??;
    let mut reader = Reader::new(&connection.rx, &map, binding.id());
    traffic::send(&connection.tx, 0, LEN, LEN as usize)?;
    reader.read_until(LEN)?;
    reader.assert_all_device_memory();

    let source = DmaBuf::udmabuf(MEMORY)?;
    tx::fill(&source)?;
    let request = BindTx::new(pair.tx.ifindex);
    let binding = pair.tx.ns.run(|| Ok(request.bind(source)))??;
    sockopt::set(&connection.tx, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1_i32)?;
    let part = [tx::extent(LEN, LEN)];
    let sent = tx::Call::new(binding.id(), &part).send(&connection.tx)?;
    assert_eq!(sent as u64, LEN);
    reader.read_until(2 * LEN)?;
    Ok(())
}

fn unbound_with_tokens_held() -> Outcome {
    const LEN: u64 = 20_000;
    let bench = Receiving::new()?;
    let frags = take(&bench.connection, 0, LEN)?;
    let id = bench.binding.id();
    drop(bench.binding);

    // The queue is ordinary again, and what it receives now does not overwrite what is held.
    traffic::send(&bench.connection.tx, LEN, LEN, LEN as usize)?;
    let mut reader = Reader::new(&bench.connection.rx, &bench.map, id);
    reader.position = LEN;
    reader.read_until(2 * LEN)?;
    assert_eq!(
        (reader.frags, reader.copied),
        (0, LEN),
        "device memory after the unbinding"
    );
    check(&bench.memory, 0, &frags)?;
    if provider::bindings()?.is_some() {
        assert!(
            provider::binding(id)?.is_some(),
            "the binding is gone, tokens are held"
        );
    }
    drop(frags);
    provider::all_buffers_back(id);
    Ok(())
}

/// How often each CPU has looked for packets so far, by `/proc/softirqs`.
fn looks_for_packets() -> io::Result<Vec<u64>> {
    let text = fs::read_to_string("/proc/softirqs")?;
    let counts = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("NET_RX:"))
        .ok_or(io::ErrorKind::NotFound)?
        .split_whitespace();
    Ok(counts.filter_map(|count| count.parse().ok()).collect())
}

/// A page pool that waits for a reader does not have other CPUs look for what that has.
fn idle_cpus_left_alone() -> Outcome {
    /// A pool looks at least once a second whether all is back.
    const LOOK: Duration = Duration::from_secs(2);
    let bench = Receiving::new()?;
    let frags = take(&bench.connection, 0, 1)?;
    let id = bench.binding.id();
    drop(bench.binding);
    wait::until(
        "the pool to look twice, and no CPU for packets",
        10 * LOOK,
        || {
            let before = looks_for_packets()?;
            thread::sleep(LOOK);
            Ok(looks_for_packets()? == before)
        },
    )?;
    assert!(provider::binding(id)?.is_some(), "nothing to wait for");
    drop(frags);
    provider::all_buffers_back(id);
    Ok(())
}

fn unbound_with_data_queued() -> Outcome {
    const LEN: u64 = 50_000;
    let bench = Receiving::new()?;
    traffic::send(&bench.connection.tx, 0, LEN, LEN as usize)?;
    // Acknowledged means that it lies in the receiver's queue.
    provider::wait_for("the data to be queued", || {
        Ok(traffic::unacknowledged(&bench.connection.tx)? == 0)
    });
    let id = bench.binding.id();
    drop(bench.binding);
    let mut reader = Reader::new(&bench.connection.rx, &bench.map, id);
    reader.read_until(LEN)?;
    reader.assert_all_device_memory();
    drop(reader);
    provider::all_buffers_back(id);
    Ok(())
}

fn tcp_socket_closed_with_tokens_held() -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let posted =
        || -> io::Result<_> { Ok(provider::binding(binding.id())?.map(|info| info.in_use)) };
    let idle: Option<u64> = posted()?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    // Some tokens taken and given up, some data never read.
    let frags = take(&connection, 0, 100_000)?;
    for frag in frags {
        frag.token.into_id();
    }
    traffic::send(&connection.tx, 100_000, 50_000, 50_000)?;
    drop(connection);

    // Whatever a queue's pool keeps for itself, the memory serves a whole new transfer.
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    let map = memory.map()?;
    thread::scope(|scope| -> Outcome {
        let sender = traffic::send_in(scope, &connection.tx, 0, 8 << 20, 1 << 20);
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        reader.read_until(8 << 20)?;
        sender.join().expect("the sender's thread")?;
        Ok(())
    })?;
    assert!(posted()? >= idle, "buffers posted to the queue are in use");
    let id = binding.id();
    drop((connection, binding));
    provider::all_buffers_back(id);
    Ok(())
}

fn both_sockets_closed_with_tokens_held() -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    for binding_first in [true, false] {
        let pair = Pair::new()?;
        let binding = pair.bind(&[QUEUE], &memory)?;
        let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
        for frag in take(&connection, 0, 100_000)? {
            frag.token.into_id();
        }
        let id = binding.id();
        if binding_first {
            drop(binding);
            drop(connection);
        } else {
            drop(connection);
            drop(binding);
        }
        provider::all_buffers_back(id);
    }
    Ok(())
}

fn dmabuf_closed_right_after_bind() -> Outcome {
    const LEN: u64 = 4 << 20;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    drop(memory);
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    thread::scope(|scope| -> Outcome {
        let sender = traffic::send_in(scope, &connection.tx, 0, LEN, 1 << 20);
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        reader.read_until(LEN)?;
        reader.assert_all_device_memory();
        sender.join().expect("the sender's thread")?;
        Ok(())
    })
}

/// A socket that is closed cannot say so to a peer that is gone, but its tokens come back all the same.
fn peer_gone_with_tokens_held() -> Outcome {
    const LEN: u64 = 20_000;
    let bench = Receiving::new()?;
    for frag in take(&bench.connection, 0, LEN)? {
        frag.token.into_id();
    }
    bench.pair.tx.delete()?;
    let id = bench.binding.id();
    drop((bench.connection, bench.binding));
    provider::all_buffers_back(id);
    Ok(())
}

fn device_deleted_after_unbind() -> Outcome {
    device_deleted_with_tokens_held(|_binding| None)
}

fn device_deleted_while_bound() -> Outcome {
    device_deleted_with_tokens_held(Some)
}

/// Deletes the device while there are tokens, with what `keep` leaves of the binding.
fn device_deleted_with_tokens_held(keep: fn(Binding) -> Option<Binding>) -> Outcome {
    const LEN: u64 = 20_000;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let id = binding.id();
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let frags = take(&connection, 0, LEN)?;
    let binding = keep(binding);
    pair.rx.delete()?;

    let info = provider::binding(id)?.expect("the binding lives while tokens are held");
    assert_eq!(info.ifname, None, "the device is gone: {info:?}");
    assert_eq!(provider::attachments()?, 0, "mapped for no device");
    check(&memory, 0, &frags)?;
    drop(frags);
    drop(connection);
    provider::wait_for("all buffers to be free", || {
        Ok(provider::binding(id)?.is_none_or(|info| info.in_use == 0))
    });
    drop(binding);
    provider::all_buffers_back(id);
    Ok(())
}

/// A reader that gives nothing back, and reads nothing, has the memory for as long as it likes, unless an administrator
/// aborts its connection.
fn aborted_with_tokens_held() -> Outcome {
    const LEN: u64 = 20_000;
    let bench = Receiving::new()?;
    let id = bench.binding.id();
    let frags = take(&bench.connection, 0, LEN)?;
    traffic::send(&bench.connection.tx, LEN, LEN, LEN as usize)?;
    wait_received(&bench.connection.rx, 2 * LEN);
    drop(bench.binding);
    let held = provider::binding(id)?.is_some_and(|info| info.in_use > 0);
    assert!(held, "nothing is held");

    bench.pair.rx.abort_connections(PORT)?;
    provider::all_buffers_back(id);
    let error = bench
        .connection
        .rx
        .take_error()?
        .map(|err| err.raw_os_error());
    assert_eq!(error, Some(Some(libc::ECONNABORTED)));
    let received = Receiver::new(&bench.connection.rx).recv()?.total();
    assert_eq!(received, 0, "what was aborted is read");
    let tokens = frags.into_iter().map(|frag| frag.token.into_id());
    let ranges: Vec<_> = tokens.map(|start| TokenRange { start, count: 1 }).collect();
    assert_eq!(token::dontneed(&bench.connection.rx, &ranges)?, 0);
    Ok(())
}

/// The sender is done, and its end of the stream has arrived: what is left is not taken for all of it.
fn aborted_after_the_end() -> Outcome {
    let bench = Receiving::new()?;
    let rx = &bench.connection.rx;
    bench.send(&[20_000])?;
    bench.connection.tx.shutdown(Shutdown::Write)?;
    wait::until("the end of the stream", UNLOADED, || {
        Ok(sockopt::poll(rx)? & libc::POLLRDHUP != 0)
    })?;
    bench.pair.rx.abort_connections(PORT)?;
    assert_eq!(traffic::unread(rx)?, 0, "to be read");
    let error = Receiver::new(rx).recv().map(|received| received.total());
    let errno = error.map_err(|err| err.raw_os_error());
    assert_eq!(errno, Err(Some(libc::ECONNABORTED)));
    Ok(())
}

/// The same, while it gives back what it has.
fn aborted_while_tokens_come_back() -> Outcome {
    const PART: u64 = 1 << 16;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    for _ in 0..8 {
        let binding = pair.bind(&[QUEUE], &memory)?;
        let id = binding.id();
        let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
        let parts = (0..8).map(|part| take(&connection, part * PART, PART));
        let frags = parts.collect::<io::Result<Vec<_>>>()?;
        thread::scope(|scope| {
            let returned = scope.spawn(|| drop(frags));
            pair.rx.abort_connections(PORT)?;
            returned.join().expect("a thread that returns tokens");
            Ok::<_, io::Error>(())
        })?;
        drop(binding);
        provider::all_buffers_back(id);
    }
    Ok(())
}

/// The device that memory was mapped for does not have to stay until the last token is back.
fn driver_unloaded_with_tokens_held() -> Outcome {
    let bench = Receiving::new()?;
    let id = bench.binding.id();
    let frags = take(&bench.connection, 0, 1 << 16)?;
    drop(bench.binding);
    let unloaded = thread::scope(|scope| {
        let unloader = scope.spawn(aftermath::unload_netdevsim);
        let unloaded = wait::up_to(UNLOADED, || Ok(unloader.is_finished()));
        // Before anything fails: it would wait for ever.
        check(&bench.memory, 0, &frags)?;
        drop(frags);
        unloader.join().expect("a thread that unloads")?;
        unloaded
    })?;
    provider::all_buffers_back(id);
    for end in [&bench.pair.rx, &bench.pair.tx] {
        end.delete().expect_err("the device went with its driver");
    }
    provider::load_netdevsim()?;
    assert!(unloaded.came, "it waits for the tokens");
    Ok(())
}

fn interface_down_and_up() -> Outcome {
    const LEN: u64 = 1 << 20;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    pair.steer(PORT, QUEUE)?;
    let map = memory.map()?;
    for _ in 0..3 {
        let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        thread::scope(|scope| -> Outcome {
            let sender = traffic::send_in(scope, &connection.tx, 0, LEN, LEN as usize);
            reader.read_until(LEN)?;
            reader.assert_all_device_memory();
            sender.join().expect("the sender's thread")?;
            Ok(())
        })?;
        // The kernel lists no queues of an interface that is down.
        pair.rx.set_up(false)?;
        pair.rx.set_up(true)?;
        let queues = pair.queues()?;
        let bound = queues
            .iter()
            .any(|queue| queue.dmabuf == Some(binding.id()));
        assert!(bound, "the binding did not survive: {queues:?}");
    }
    Ok(())
}

/// Binding and unbinding over and over, with the flow of one connection going on.
fn rebinding_under_traffic() -> Outcome {
    const ROUNDS: usize = 6;
    const STEP: u64 = 400_000;
    const LEN: u64 = (ROUNDS as u64 + 1) * STEP;
    // Memory for each round: what one binding received is not yet read when the next is made.
    let mut memories = Vec::new();
    for _ in 0..ROUNDS {
        let memory = DmaBuf::udmabuf(MEMORY)?;
        let map = memory.map()?;
        memories.push((memory, map));
    }
    let pair = Pair::new()?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    thread::scope(|scope| -> Outcome {
        let sender = traffic::send_in(scope, &connection.tx, 0, LEN, 1 << 20);
        let mut reader = Reader::of_nothing(&connection.rx);
        for (memory, map) in &memories {
            let binding = pair.bind(&[QUEUE], memory)?;
            reader.add_binding(binding.id(), map);
            let end = reader.position + STEP;
            while reader.position < end && reader.position < LEN {
                assert!(
                    reader.read_some()?,
                    "the stream ended at {}",
                    reader.position
                );
            }
        }
        reader.read_until(LEN)?;
        assert!(reader.frags > 0, "nothing came in device memory");
        sender.join().expect("the sender's thread")?;
        Ok(())
    })
}

/// The reader that gets killed: binds, says so, and takes data without returning a token.
fn victim(ifindex: u32) -> io::Result<()> {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let binding = BindRx::new(ifindex).queue(QUEUE).bind(&memory)?;
    let listener = TcpListener::bind(address(Ip::V4, PORT))?;
    println!("{}", binding.id());
    io::stdout().flush()?;
    let (stream, _) = listener.accept()?;
    let mut receiver = Receiver::new(&stream);
    let mut bytes = 0;
    while bytes < MEMORY / 8 {
        let received = receiver.recv()?;
        bytes += received.total();
        for piece in received {
            if let Piece::Frag(frag) = piece {
                frag.token.into_id();
            }
        }
    }
    println!("holding");
    io::stdout().flush()?;
    loop {
        thread::park();
    }
}

fn reader_killed() -> Outcome {
    const LEN: u64 = 2 << 20;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    pair.steer(PORT, QUEUE)?;
    for _ in 0..2 {
        let mut child = Command::new(env::current_exe()?);
        child
            .env(VICTIM, pair.rx.ifindex.to_string())
            .stdout(Stdio::piped());
        let mut child = Reaper(pair.rx.ns.run(|| child.spawn())?);
        let mut says = BufReader::new(child.0.stdout.take().expect("a pipe")).lines();
        let mut next = || says.next().expect("the victim ended early");
        let id: u32 = next()?.parse()?;
        let mut sender = pair
            .tx
            .ns
            .run(|| std::net::TcpStream::connect(address(Ip::V4, PORT)))?;
        let writer = sender.try_clone()?;
        let pump = thread::spawn(move || {
            // Ends with an error: the connection is reset, or shut down.
            while sender.write_all(traffic::bytes(0, 100_000)).is_ok() {}
        });
        assert_eq!(next()?, "holding");
        child.0.kill()?;
        let status = child.0.wait()?;
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");

        // At once: with the sender still sending, and whatever the dead one held not yet back.
        let binding = pair.bind(&[QUEUE], &memory)?;
        let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
        thread::scope(|scope| -> Outcome {
            let sender = traffic::send_in(scope, &connection.tx, 0, LEN, 1 << 20);
            let mut reader = Reader::new(&connection.rx, &map, binding.id());
            reader.read_until(LEN)?;
            reader.assert_all_device_memory();
            sender.join().expect("the sender's thread")?;
            Ok(())
        })?;
        // It may have been reset before.
        let _ = writer.shutdown(Shutdown::Both);
        pump.join().expect("the pump's thread");
        provider::all_buffers_back(id);
    }
    Ok(())
}

/// The memory of an owner who is killed is free soon, though another process keeps tokens of it. How long it takes is
/// told.
fn kill_to_release() -> Outcome {
    const MEMORY: usize = 8192 * PAGE;
    const LEN: u64 = 100_000;
    dmabufs::skip_without()?;
    let mut took = Vec::new();

    for _ in 0..storm::scale("STORM_ROUNDS", 1) {
        let pair = Pair::new()?;
        let mut owner = Child::start(|talk| {
            let memory = DmaBuf::udmabuf(MEMORY)?;
            let binding = pair.bind(&[QUEUE], &memory)?;
            talk.tell(binding.id())?;
            loop {
                thread::park();
            }
        })?;
        let id = owner.talk().hear_number()?;
        let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
        let held = take(&connection, 0, LEN)?;
        assert!(dmabufs::has(MEMORY)?, "the memory is there");

        let killed = Instant::now();
        drop(owner);
        let released = wait::up_to(RELEASED, || Ok(!dmabufs::has(MEMORY)?))?;
        assert!(
            released.came,
            "the memory is there after {:?}",
            released.time
        );
        took.push(killed.elapsed());
        drop(held);
        drop(connection);
        provider::all_buffers_back(id);
    }
    dmabufs::tell_times("kill_to_release", took);
    Ok(())
}

fn main() -> ExitCode {
    if let Ok(ifindex) = env::var(VICTIM) {
        let ifindex = ifindex.parse().expect("a number of a device");
        victim(ifindex).expect("to be killed");
        return ExitCode::FAILURE;
    }
    runner::run(tests![
        the_only_descriptor_given_away,
        unbound_with_tokens_held,
        idle_cpus_left_alone,
        unbound_with_data_queued,
        tcp_socket_closed_with_tokens_held,
        both_sockets_closed_with_tokens_held,
        dmabuf_closed_right_after_bind,
        aborted_with_tokens_held,
        aborted_after_the_end,
        aborted_while_tokens_come_back,
        driver_unloaded_with_tokens_held,
        interface_down_and_up,
        rebinding_under_traffic,
        reader_killed,
        kill_to_release,
        peer_gone_with_tokens_held,
        device_deleted_after_unbind,
        device_deleted_while_bound,
    ])
}
