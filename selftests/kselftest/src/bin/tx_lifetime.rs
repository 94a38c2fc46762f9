// SPDX-License-Identifier: GPL-2.0

//! Bindings, sockets, processes, routes and devices that end while memory is being sent.

use std::env;
use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Extent;
use devmem::netdev::Netdev;
use devmem::netns::Netns;
use devmem::send::enable_zerocopy;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::child::Reaper;
use devmem_testlib::fixture::Sending;
use devmem_testlib::machine;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::address;
use devmem_testlib::provider;
use devmem_testlib::pump::reset_on_close;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::Call;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::extent;
use devmem_testlib::tx::fails;
use devmem_testlib::tx::outcome;
use devmem_testlib::wait;
use nix::errno::Errno;

const PAGE: u64 = 4096;
const MEMORY: u64 = Sending::MEMORY;
const PORT: u16 = Sending::PORT;
/// What the tests have in flight: less than TCP sends before it hears from the peer for the first time.
const PART: Extent = Extent {
    offset: 1234,
    len: 10_000,
};
/// Tells a program of ours that it is the sender which gets killed: the number of its device.
const VICTIM: &str = "DEVMEM_KSELFTEST_VICTIM";

/// A connection whose sender has memory bound.
/// Closes both, the binding first: it lives until the data is gone with the connection.
fn ends_with_data_in_flight(bench: Sending) -> Outcome {
    let id = bench.binding.id();
    drop(bench.binding);
    lives(id)?;
    reset_on_close(&bench.connection.tx)?;
    drop(bench.connection);
    provider::all_buffers_back(id);
    Ok(())
}

/// From now on what is sent stays in a queue of the sender until that goes, however long the test takes to look.
fn hold_back(bench: &Sending) -> io::Result<()> {
    bench.pair.tx.queueing("netem delay 200s")
}

#[track_caller]
fn sends(call: &Call, socket: &TcpStream) {
    let len: u64 = call.iov.iter().map(|&(_, len)| len).sum();
    assert_eq!(outcome(&call.send(socket)), len.to_string());
}

/// Checks that a binding lives on, since frags of it are on their way.
#[track_caller]
fn lives(id: u32) -> io::Result<()> {
    assert!(provider::binding(id)?.is_some(), "binding {id} is gone");
    Ok(())
}

fn binding_closed_with_data_in_flight() -> Outcome {
    let bench = Sending::new()?;
    bench.pair.tx.cut()?;
    let call = bench.call(&[PART]);
    bench.sends(&call);
    let id = bench.binding.id();
    drop(bench.binding);
    lives(id)?;
    fails(call.send(&bench.connection.tx), Errno::EINVAL);
    bench.pair.tx.mend()?;
    tx::expect(&bench.connection.rx, &[PART])?;
    Completions::default().wait(&bench.connection.tx, 1)?;
    provider::all_buffers_back(id);
    Ok(())
}

/// Data that TCP has not even tried to send, and that another binding's follow.
fn binding_closed_with_data_pending() -> Outcome {
    let bench = Sending::new()?;
    let more = bench
        .call(&[PART])
        .flags(libc::MSG_ZEROCOPY | libc::MSG_MORE);
    let small = [extent(77, 100)];
    let pending = Call {
        iov: vec![(77, 100)],
        ..more
    };
    // TCP tries after a while, also where nothing follows.
    bench.pair.tx.cut()?;
    bench.sends(&pending);
    let id = bench.binding.id();
    let second = bench.pair.tx.bind_tx(&bench.memory)?;
    drop(bench.binding);
    lives(id)?;
    bench.pair.tx.mend()?;
    sends(&Call::new(second.id(), &[PART]), &bench.connection.tx);
    tx::expect(&bench.connection.rx, &[small[0], PART])?;
    Completions::default().wait(&bench.connection.tx, 2)?;
    provider::all_buffers_back(id);
    Ok(())
}

fn dmabuf_closed_right_after_bind() -> Outcome {
    let Sending {
        pair: _pair,
        memory,
        binding,
        connection,
        ..
    } = Sending::new()?;
    drop(memory);
    let all = [extent(0, PAGE), extent(MEMORY - 5 * PAGE, 5 * PAGE)];
    sends(&Call::new(binding.id(), &all), &connection.tx);
    drop(binding);
    tx::expect(&connection.rx, &all)?;
    Completions::default().wait(&connection.tx, 1)?;
    Ok(())
}

/// The kernel goes on sending what a closed socket has left.
fn socket_closed_with_data_in_flight() -> Outcome {
    let bench = Sending::new()?;
    bench.pair.tx.cut()?;
    bench.sends(&bench.call(&[PART]));
    let id = bench.binding.id();
    let Connection { rx, tx } = bench.connection;
    drop((tx, bench.binding));
    lives(id)?;
    bench.pair.tx.mend()?;
    tx::expect(&rx, &[PART])?;
    tx::expect_end(&rx)?;
    provider::all_buffers_back(id);
    Ok(())
}

fn socket_reset_with_data_in_flight() -> Outcome {
    for in_queue in [true, false] {
        let bench = Sending::new()?;
        if in_queue {
            hold_back(&bench)?;
        } else {
            bench.pair.rx.set_up(false)?;
        }
        bench.sends(&bench.call(&[PART]));
        let id = bench.binding.id();
        reset_on_close(&bench.connection.tx)?;
        drop(bench.connection);
        drop(bench.binding);
        if in_queue {
            lives(id)?;
            bench.pair.tx.mend()?;
        }
        provider::all_buffers_back(id);
    }
    Ok(())
}

/// Sends until there is no more room.
fn fill_up(call: &Call, socket: &TcpStream) -> io::Result<Vec<u64>> {
    let flags = libc::MSG_ZEROCOPY | libc::MSG_DONTWAIT;
    let call = call.clone().flags(flags);
    let mut sent = Vec::new();
    loop {
        match call.send(socket) {
            Ok(bytes) => sent.push(bytes as u64),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(sent),
            Err(err) => return Err(err),
        }
    }
}

/// The peer never acknowledges anything: what was sent is never free, until the socket is reset.
fn peer_that_never_acknowledges() -> Outcome {
    let bench = Sending::new()?;
    bench.pair.tx.cut()?;
    let sent = fill_up(&bench.call(&[PART]), &bench.connection.tx)?;
    assert!(sent.len() > 1, "no room for two");
    thread::sleep(Duration::from_millis(500));
    let mut completions = Completions::default();
    completions.read(&bench.connection.tx)?;
    assert_eq!(completions.done, [], "not acknowledged, but completed");
    ends_with_data_in_flight(bench)
}

/// The same, but the peer is back after the sender has gone.
fn peer_that_acknowledges_late() -> Outcome {
    let bench = Sending::new()?;
    bench.pair.rx.set_up(false)?;
    let sent = fill_up(&bench.call(&[PART]), &bench.connection.tx)?;
    let id = bench.binding.id();
    let Connection { rx, tx } = bench.connection;
    drop((tx, bench.binding));
    thread::sleep(Duration::from_millis(300));
    lives(id)?;
    bench.pair.rx.set_up(true)?;
    for bytes in sent {
        tx::expect(&rx, &[extent(PART.offset, bytes)])?;
    }
    tx::expect_end(&rx)?;
    provider::all_buffers_back(id);
    Ok(())
}

fn peer_closed_without_reading() -> Outcome {
    let bench = Sending::new()?;
    let sent = fill_up(&bench.call(&[PART]), &bench.connection.tx)?;
    let Connection { rx, tx } = bench.connection;
    drop(rx);
    // The reset ends all of it at once.
    Completions::default().wait(&tx, sent.len() as u32)?;
    let id = bench.binding.id();
    drop((tx, bench.binding));
    provider::all_buffers_back(id);
    Ok(())
}

fn route_to_a_device_without_device_memory() -> Outcome {
    let bench = Sending::new()?;
    let call = bench.call(&[PART]);
    // In flight, and not acknowledged: TCP tries again by the route of the moment.
    bench.pair.tx.cut()?;
    bench.sends(&call);
    bench.pair.tx.ip("link add dummy0 type dummy")?;
    bench.pair.tx.ip("link set dummy0 up")?;
    bench.pair.tx.ip("route add 192.0.2.1/32 dev dummy0")?;
    another_try(&bench.connection)?;
    let result = call.send(&bench.connection.tx);
    observe(outcome(&result));
    fails(result, Errno::ENODEV);
    let mut completions = Completions::default();
    completions.read(&bench.connection.tx)?;
    assert_eq!(completions.done, [], "not acknowledged, but completed");

    bench.pair.tx.ip("route del 192.0.2.1/32 dev dummy0")?;
    bench.pair.tx.mend()?;
    tx::expect(&bench.connection.rx, &[PART])?;
    bench.sends(&call);
    tx::expect(&bench.connection.rx, &[PART])?;
    completions.wait(&bench.connection.tx, 2)?;
    Ok(())
}

/// Waits until the socket has tried again what is not acknowledged or could not be sent, by the route that there is now.
fn another_try(connection: &Connection) -> io::Result<()> {
    let before = tx::tries_again(&connection.tx)?;
    provider::wait_for("another try", || {
        Ok(tx::tries_again(&connection.tx)? > before)
    });
    Ok(())
}

/// Has the socket notice a new route, which it does when it sends: a byte of host memory.
fn follow_the_route(connection: &Connection) -> io::Result<()> {
    (&connection.tx).write_all(traffic::bytes(0, 1))?;
    tx::expect(&connection.rx, &[extent(0, 1)])
}

/// A socket that has not sent anything since looks for the route when it is asked to.
fn route_moved_just_before_a_send() -> Outcome {
    let bench = Sending::new()?;
    let call = bench.call(&[PART]);
    bench.pair.tx.ip("link add dummy0 type dummy")?;
    bench.pair.tx.ip("link set dummy0 up")?;
    bench.pair.tx.ip("route add 192.0.2.1/32 dev dummy0")?;
    fails(call.send(&bench.connection.tx), Errno::ENODEV);
    bench.pair.tx.ip("route del 192.0.2.1/32 dev dummy0")?;
    bench.sends(&call);
    tx::expect(&bench.connection.rx, &[PART])?;
    Completions::default().wait(&bench.connection.tx, 1)?;
    Ok(())
}

/// The other device has a binding of its own, and the connection goes on there.
fn route_to_another_device() -> Outcome {
    let bench = Sending::new()?;
    let call = bench.call(&[PART]);
    let beside = bench.pair.beside()?;
    let there = beside.tx.bind_tx(&bench.memory)?;
    let call_there = Call::new(there.id(), &[PART]);
    let route = format!("192.0.2.1/32 dev {} src 192.0.2.2", beside.tx.ifname);

    bench.sends(&call);
    tx::expect(&bench.connection.rx, &[PART])?;
    fails(call_there.send(&bench.connection.tx), Errno::ENODEV);
    let mut completions = Completions::default();
    completions.wait(&bench.connection.tx, 1)?;

    bench.pair.tx.ip(&format!("route add {route}"))?;
    follow_the_route(&bench.connection)?;
    let result = call.send(&bench.connection.tx);
    observe(outcome(&result));
    fails(result, Errno::ENODEV);
    for _ in 0..3 {
        sends(&call_there, &bench.connection.tx);
        tx::expect(&bench.connection.rx, &[PART])?;
    }
    completions.wait(&bench.connection.tx, 4)?;

    bench.pair.tx.ip(&format!("route del {route}"))?;
    follow_the_route(&bench.connection)?;
    fails(call_there.send(&bench.connection.tx), Errno::ENODEV);
    bench.sends(&call);
    tx::expect(&bench.connection.rx, &[PART])?;
    completions.wait(&bench.connection.tx, 5)?;
    Ok(())
}

/// What waits for an acknowledgement is not read by the other device: it stays until the route is back.
fn route_to_another_device_with_data_in_flight() -> Outcome {
    let bench = Sending::new()?;
    let call = bench.call(&[PART]);
    let beside = bench.pair.beside()?;
    let there = beside.tx.bind_tx(&bench.memory)?;
    let call_there = Call::new(there.id(), &[extent(99, 500)]);
    let route = format!("192.0.2.1/32 dev {} src 192.0.2.2", beside.tx.ifname);
    let pending = [extent(7777, 300)];

    // Without loss probes, what is pending stays pending.
    bench
        .pair
        .tx
        .ns
        .run(|| fs::write("/proc/sys/net/ipv4/tcp_early_retrans", "0"))?;
    bench.pair.tx.cut()?;
    let more = libc::MSG_ZEROCOPY | libc::MSG_MORE;
    bench.sends(&call);
    bench.sends(&Call::new(bench.binding.id(), &pending).flags(more));
    bench.pair.tx.ip(&format!("route add {route}"))?;
    another_try(&bench.connection)?;
    let counted: u64 = (0..8)
        .map(|queue| beside.tx.counter(&format!("tx{queue}_netmem_bytes")))
        .sum::<io::Result<u64>>()?;
    assert_eq!(counted, 0, "bytes of the first device read by the other");
    // Behind, and perhaps beside, what is for the first device.
    sends(&call_there.clone().flags(more), &bench.connection.tx);
    sends(&call_there, &bench.connection.tx);
    let mut completions = Completions::default();
    completions.read(&bench.connection.tx)?;
    assert_eq!(completions.done, [], "not acknowledged, but completed");

    bench.pair.tx.mend()?;
    bench.pair.tx.ip(&format!("route del {route}"))?;
    tx::expect(&bench.connection.rx, &[PART, pending[0]])?;
    // And the other way round: what is for the other device waits for it.
    bench.pair.tx.ip(&format!("route add {route}"))?;
    tx::expect(&bench.connection.rx, &[extent(99, 500); 2])?;
    completions.wait(&bench.connection.tx, 4)?;
    Ok(())
}

fn interface_down_and_up() -> Outcome {
    let bench = Sending::new()?;
    let call = bench.call(&[PART]);
    let mut calls = 0;
    for _ in 0..2 {
        hold_back(&bench)?;
        bench.sends(&call);
        bench.pair.tx.set_up(false)?;
        // Whether it is refused, and why, depends on whether the socket has noticed.
        let sent = match call.send(&bench.connection.tx) {
            Ok(_) => 2,
            Err(_) => 1,
        };
        bench.pair.tx.mend()?;
        bench.pair.tx.set_up(true)?;
        tx::expect(&bench.connection.rx, &vec![PART; sent])?;
        calls += sent as u32;
    }
    bench.sends(&call);
    tx::expect(&bench.connection.rx, &[PART])?;
    Completions::default().wait(&bench.connection.tx, calls + 1)?;
    Ok(())
}

/// A socket that has found no route looks for one when it is asked to send.
fn first_send_after_the_interface_was_down() -> Outcome {
    let bench = Sending::new()?;
    hold_back(&bench)?;
    let call = bench.call(&[PART]);
    bench.sends(&call);
    bench.pair.tx.set_up(false)?;
    bench.pair.tx.mend()?;
    // It sends again what was lost, and then knows that there is no route.
    another_try(&bench.connection)?;
    fails(call.send(&bench.connection.tx), Errno::EHOSTUNREACH);
    bench.pair.tx.set_up(true)?;
    bench.sends(&call);
    tx::expect(&bench.connection.rx, &[PART, PART])?;
    Completions::default().wait(&bench.connection.tx, 2)?;
    Ok(())
}

/// Moves the sender's device to another namespace while data is in flight, and back.
/// It stays the same device, and its bindings stay. What is not acknowledged is sent when it is back.
fn device_moved_with_data_in_flight() -> Outcome {
    let bench = Sending::new()?;
    let call = bench.call(&[PART]);
    bench.sends(&call);
    tx::expect(&bench.connection.rx, &[PART])?;

    hold_back(&bench)?;
    bench.sends(&call);
    let there = Netns::new()?;
    bench
        .pair
        .tx
        .move_and_back(&there, Ipv4Addr::new(192, 0, 2, 2))?;
    let info = provider::binding(bench.binding.id())?.expect("the binding has an owner");
    assert_eq!(info.ifname.as_ref(), Some(&bench.pair.tx.ifname));
    tx::expect(&bench.connection.rx, &[PART])?;

    bench.sends(&call);
    tx::expect(&bench.connection.rx, &[PART])?;
    Completions::default().wait(&bench.connection.tx, 3)?;
    Ok(())
}

/// Deletes the sender's device while frags are in a queue of it, or wait to be sent again.
fn device_deleted(in_queue: bool) -> Outcome {
    let bench = Sending::new()?;
    if in_queue {
        hold_back(&bench)?;
    } else {
        bench.pair.tx.cut()?;
    }
    let call = bench.call(&[PART]);
    bench.sends(&call);
    bench.pair.tx.delete()?;

    let id = bench.binding.id();
    let info = provider::binding(id)?.expect("the binding has an owner");
    assert_eq!(info.ifname, None, "the device is gone: {info:?}");
    assert_eq!(provider::attachments()?, 0, "mapped for no device");
    // Why depends on what the socket knows of its route by then.
    call.send(&bench.connection.tx)
        .expect_err("sent without a device");
    ends_with_data_in_flight(bench)
}

fn device_deleted_with_data_queued() -> Outcome {
    device_deleted(true)
}

fn device_deleted_with_data_unacknowledged() -> Outcome {
    device_deleted(false)
}

/// Binds by way of a leased queue, until that is gone. The socket has the last bindings, of these ids.
fn bind_until_gone(
    end: &End,
    netkit: u32,
    memory: &DmaBuf,
    bound: &AtomicU32,
) -> io::Result<(Netdev, Vec<u32>)> {
    /// Fewer than a user may have.
    const MOST: usize = 32;
    let attrs = BindTx::new(netkit).attrs(memory);
    let (mut netdev, mut ids) = (end.ns.run(|| Ok(Netdev::open()?))?, Vec::new());
    loop {
        match netdev.bind_tx(&attrs) {
            Ok(id) => ids.push(id),
            Err(err) => {
                // The netkit device has gone, or its queue leads to a device that is going.
                let errno = err.errno();
                assert!(
                    [Some(libc::ENODEV), Some(libc::EOPNOTSUPP)].contains(&errno),
                    "{err}"
                );
                return Ok((netdev, ids));
            }
        }
        bound.fetch_add(1, Ordering::Relaxed);
        if ids.len() == MOST {
            netdev = end.ns.run(|| Ok(Netdev::open()?))?;
            ids.clear();
        }
    }
}

/// A device goes while its memory is being bound by way of a queue that another one leases: no binding keeps
/// it.
fn leased_device_deleted_while_binding() -> Outcome {
    let rounds = if machine::is_slow() { 8.0 } else { 36.0 };
    let rounds = (rounds / machine::slowness()) as u32;
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    for _ in 0..rounds {
        let pair = Pair::new()?;
        let netkit = pair.tx.lease(1)?;
        let bound = AtomicU32::new(0);
        let (netdev, ids) = thread::scope(|scope| -> io::Result<_> {
            let binder = scope.spawn(|| bind_until_gone(&pair.tx, netkit, &memory, &bound));
            provider::wait_for("some bindings", || {
                Ok(bound.load(Ordering::Relaxed) > 2 || binder.is_finished())
            });
            pair.tx.delete()?;
            binder.join().expect("the thread that binds")
        })?;
        assert!(bound.into_inner() > 2, "never bound");
        for id in ids {
            let info = provider::binding(id)?.expect("the binding has an owner");
            assert_eq!(info.ifname, None, "the device is gone: {info:?}");
        }
        drop(netdev);
    }
    Ok(())
}

fn device_deleted_after_unbind() -> Outcome {
    let bench = Sending::new()?;
    bench.pair.tx.cut()?;
    bench.sends(&bench.call(&[PART]));
    let id = bench.binding.id();
    drop(bench.binding);
    bench.pair.tx.delete()?;
    let info = provider::binding(id)?.expect("frags of it are on their way");
    assert_eq!(info.ifname, None, "the device is gone: {info:?}");
    assert_eq!(provider::attachments()?, 0, "mapped for no device");
    reset_on_close(&bench.connection.tx)?;
    drop(bench.connection);
    provider::all_buffers_back(id);
    Ok(())
}

/// Both devices and namespaces go first.
fn everything_deleted_with_data_in_flight() -> Outcome {
    let bench = Sending::new()?;
    hold_back(&bench)?;
    bench.sends(&bench.call(&[PART]));
    let id = bench.binding.id();
    drop(bench.pair);
    reset_on_close(&bench.connection.tx)?;
    drop(bench.connection);
    drop(bench.binding);
    provider::all_buffers_back(id);
    Ok(())
}

/// The device of the receiver goes, and with it what device memory it has.
fn receiver_deleted_with_data_in_flight() -> Outcome {
    let bench = Sending::new()?;
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    let receive = bench.pair.bind(&[1], &memory)?;
    let connection = bench.pair.connect_to_queue(Ip::V4, PORT + 1, 1)?;
    enable_zerocopy(&connection.tx)?;
    let sent = fill_up(&bench.call(&[PART]), &connection.tx)?;
    assert!(sent.len() > 1, "no room for two");
    bench.pair.rx.delete()?;
    let (id, receive_id) = (bench.binding.id(), receive.id());
    drop((receive, bench.binding));
    reset_on_close(&connection.tx)?;
    drop(connection);
    provider::all_buffers_back(id);
    provider::all_buffers_back(receive_id);
    Ok(())
}

/// The sender that gets killed: binds, connects, sends when it is told to, says so, and waits.
fn victim(ifindex: u32) -> io::Result<()> {
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    tx::fill(&memory)?;
    let binding = BindTx::new(ifindex).bind(&memory)?;
    let socket = TcpStream::connect(address(Ip::V4, PORT))?;
    socket.set_nodelay(true)?;
    enable_zerocopy(&socket)?;
    println!("{}", binding.id());
    io::stdin().read_line(&mut String::new())?;
    let sent = fill_up(&Call::new(binding.id(), &[PART]), &socket)?;
    println!("{}", sent.iter().sum::<u64>());
    io::stdout().flush()?;
    loop {
        thread::park();
    }
}

fn sender_killed() -> Outcome {
    let pair = Pair::new()?;
    let listener: TcpListener = pair.listen(Ip::V4, PORT)?;
    let mut child = Command::new(env::current_exe()?);
    child
        .env(VICTIM, pair.tx.ifindex.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = Reaper(pair.tx.ns.run(|| child.spawn())?);
    let mut hears = child.0.stdin.take().expect("a pipe");
    let mut says = BufReader::new(child.0.stdout.take().expect("a pipe")).lines();
    let mut next = || says.next().expect("the victim ended early");
    let id: u32 = next()?.parse()?;
    let (mut rx, _) = listener.accept()?;
    rx.set_read_timeout(Some(wait::patience(Duration::from_secs(30))))?;
    // Nothing is acknowledged until the sender is dead.
    pair.tx.cut()?;
    hears.write_all(b"send\n")?;
    let sent: u64 = next()?.parse()?;
    assert!(sent > PART.len, "only {sent} bytes");
    child.0.kill()?;
    let status = child.0.wait()?;
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
    lives(id)?;
    pair.tx.mend()?;

    // What it had sent, nobody takes back.
    let mut left = sent;
    while left > 0 {
        let len = left.min(PART.len);
        let mut buffer = vec![0; len as usize];
        rx.read_exact(&mut buffer)?;
        traffic::compare(PART.offset, &buffer);
        left -= len;
    }
    tx::expect_end(&rx)?;
    provider::all_buffers_back(id);
    Ok(())
}

/// Binding and unbinding over and over, while other bindings' data are on their way.
fn rebinding_under_traffic() -> Outcome {
    const ROUNDS: u32 = 40;
    let bench = Sending::new()?;
    thread::scope(|scope| -> Outcome {
        let receiver = scope.spawn(|| tx::expect(&bench.connection.rx, &[PART; ROUNDS as usize]));
        for _ in 0..ROUNDS {
            let binding = bench.pair.tx.bind_tx(&bench.memory)?;
            sends(&Call::new(binding.id(), &[PART]), &bench.connection.tx);
        }
        receiver.join().expect("the receiver's thread")?;
        Ok(())
    })?;
    Completions::default().wait(&bench.connection.tx, ROUNDS)?;
    bench.connection.tx.shutdown(Shutdown::Write)?;
    tx::expect_end(&bench.connection.rx)?;
    Ok(())
}

fn main() -> ExitCode {
    if let Ok(ifindex) = env::var(VICTIM) {
        let ifindex = ifindex.parse().expect("a number of a device");
        victim(ifindex).expect("to be killed");
        return ExitCode::FAILURE;
    }
    runner::run(tests![
        binding_closed_with_data_in_flight,
        binding_closed_with_data_pending,
        dmabuf_closed_right_after_bind,
        socket_closed_with_data_in_flight,
        socket_reset_with_data_in_flight,
        peer_that_never_acknowledges,
        peer_that_acknowledges_late,
        peer_closed_without_reading,
        route_to_a_device_without_device_memory,
        route_moved_just_before_a_send,
        route_to_another_device,
        route_to_another_device_with_data_in_flight,
        interface_down_and_up,
        first_send_after_the_interface_was_down,
        device_moved_with_data_in_flight,
        device_deleted_with_data_queued,
        device_deleted_with_data_unacknowledged,
        device_deleted_after_unbind,
        leased_device_deleted_while_binding,
        everything_deleted_with_data_in_flight,
        receiver_deleted_with_data_in_flight,
        sender_killed,
        rebinding_under_traffic,
    ])
}
