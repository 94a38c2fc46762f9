// SPDX-License-Identifier: GPL-2.0

//! What the library in `tools/devmem` does beyond the calls that the other programs make by it.

mod futures;
mod ring;
mod watch;

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::Frag;
use devmem::Piece;
use devmem::Receive;
use devmem::Receiver;
use devmem::Region;
use devmem::Sender;
use devmem::Transmit;
use devmem::TxBinding;
use devmem::uring;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::fixture::Sending;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report::Stop;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::tx;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 4 * MIB;
const PORT: u16 = 5001;
const QUEUE: u32 = 1;
/// Completions come when the peer has acknowledged, after a retransmission or two.
const COMPLETED: Duration = Duration::from_secs(30);
/// What is not long, but enough for what waits for nobody.
const SHORT: Duration = Duration::from_millis(100);
/// Nothing that works takes longer.
const LONG: Duration = Duration::from_secs(20);

/// What an exporter has given is received into, and sent from.
fn memory_by_its_descriptor() -> Outcome {
    const LEN: usize = 100_000;
    let exported = OwnedFd::from(DmaBuf::system_heap(MEMORY as usize)?);
    let memory = DmaBuf::from_fd(exported)?;
    assert_eq!(memory.size(), MEMORY as usize);
    let bench = Receiving::into_memory(memory)?;
    bench.start_sending(LEN)?;
    let mut reader = Reader::new(&bench.connection.rx, &bench.map, bench.binding.id());
    reader.read_until(LEN as u64)?;
    reader.assert_all_device_memory();

    // Other memory: the heap syncs all that is mapped for the way that the CPU asks for, and the NIC's is mapped for
    // the other one.
    let memory = DmaBuf::from_fd(DmaBuf::system_heap(MEMORY as usize)?.into())?;
    tx::fill(&memory)?;
    let binding = bench.pair.rx.bind_tx(&memory)?;
    let part = extent(4095, 10_000);
    let mut sender = Sender::new(&bench.connection.rx)?;
    sender.send(&binding, part)?;
    tx::expect(&bench.connection.tx, &[part])?;
    while sender.wait_timeout(wait::patience(COMPLETED))?.is_some() {}
    Ok(())
}

/// Until the last descriptor of the socket that bound it is closed.
fn a_duplicate_keeps_it_bound() -> Outcome {
    const LEN: u64 = 100_000;
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let id = binding.id();
    let duplicate = binding.as_fd().try_clone_to_owned()?;
    drop(binding);
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    traffic::send(&connection.tx, 0, LEN, LEN as usize)?;
    let mut reader = Reader::new(&connection.rx, &map, id);
    reader.read_until(LEN)?;
    reader.assert_all_device_memory();
    drop(reader);
    drop((duplicate, connection));
    provider::all_buffers_back(id);
    Ok(())
}

/// The same, of one to send from.
fn a_duplicate_keeps_it_bound_for_sending() -> Outcome {
    let bench = Sending::new()?;
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    tx::fill(&memory)?;
    let binding = bench.pair.tx.bind_tx(&memory)?;
    let id = binding.id();
    let duplicate = binding.socket().map(|fd| fd.try_clone_to_owned());
    let duplicate = duplicate.expect("it was bound here")?;
    drop(binding);
    let part = extent(0, 5000);
    bench.sends(&tx::Call::new(id, &[part]));
    bench.expect(&[part])?;
    bench.completes()?;
    let number = std::num::NonZero::new(id).expect("a number");
    assert!(TxBinding::of_another(number).socket().is_none());
    drop(duplicate);
    provider::all_buffers_back(id);
    Ok(())
}

/// Through less memory than that takes, so that another thread has to return it.
fn pieces_for_another_thread() -> Outcome {
    const LEN: u64 = 3 * MEMORY;
    let bench = Receiving::new()?;
    let socket: Arc<TcpStream> = Arc::new(bench.connection.rx.try_clone()?);
    let mut rx = Receiver::new(Arc::clone(&socket));
    let (to, frags) = mpsc::channel::<Frag<'static>>();
    let other = thread::spawn(move || frags.into_iter().map(|frag| u64::from(frag.size)).sum());
    drop(socket);
    thread::scope(|scope| -> Outcome {
        let sender = traffic::send_in(scope, &bench.connection.tx, 0, LEN, MIB as usize);
        let mut at = 0;
        while at < LEN {
            let received = rx.recv()?;
            assert!(!received.is_eof(), "the stream ended at {at}");
            at += received.total() as u64;
            for piece in received {
                let Piece::Frag(frag) = piece else {
                    panic!("not in device memory: {piece:?}")
                };
                to.send(frag).expect("the other thread");
            }
        }
        sender.join().expect("the sender's thread")?;
        Ok(())
    })?;
    drop((rx, to));
    let sum: u64 = other.join().expect("the other thread");
    assert_eq!(sum, LEN);
    Ok(())
}

/// All of the memory in small parts, for which it is prepared once.
fn many_regions_written_at_once() -> Outcome {
    const PART: u64 = 1001;
    let memory = DmaBuf::udmabuf(64 << 10)?;
    let pair = Pair::new()?;
    let binding = pair.tx.bind_tx(&memory)?;
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    let mut regions = memory.region()?.split(PART);
    let mut cpu = Region::begin_write_all(&mut regions)?;
    for (i, at) in (0..64 << 10).step_by(PART as usize).enumerate() {
        let len = PART.min((64 << 10) - at);
        cpu.copy_in(i, 0, traffic::bytes(at, len as usize))?;
    }
    drop(cpu);
    let all = Extent {
        offset: 0,
        len: 64 << 10,
    };
    let mut sender = Sender::new(&connection.tx)?;
    sender.send(&binding, regions)?;
    tx::expect(&connection.rx, &[all])?;
    let sent = sender.wait_timeout(wait::patience(COMPLETED))?;
    assert_eq!(sent.map(|sent| sent.bytes), Some(all.len));
    Ok(())
}

/// A receiver waits for as long as it says, and goes on.
fn receive_within<'s>(bench: &'s Receiving, mut rx: impl Receive<'s>) -> Outcome {
    const LEN: usize = 5000;
    let mut at = 0;
    for _ in 0..3 {
        let err = rx.recv_timeout(SHORT).map(|received| received.total());
        assert_eq!(
            err.expect_err("nothing was sent").kind(),
            io::ErrorKind::TimedOut
        );
        bench.start_sending(LEN)?;
        let end = at + LEN as u64;
        while at < end {
            let received = rx.recv_timeout(wait::patience(LONG))?;
            assert!(!received.is_eof(), "the stream ended at {at}");
            for frag in compared(bench, received, at)? {
                at += u64::from(frag.size);
            }
        }
    }
    Ok(())
}

/// What was received, all of which has to be in device memory, and the bytes of the stream from `at` on.
fn compared<'r, 's: 'r>(
    bench: &Receiving,
    received: impl Iterator<Item = Piece<'r, 's>>,
    at: u64,
) -> io::Result<Vec<Frag<'s>>> {
    let cpu = bench.map.begin_read()?;
    let mut at = at;
    received
        .map(|piece| {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}")
            };
            let mut got = vec![0; frag.size as usize];
            cpu.copy_out(frag.offset, &mut got)?;
            traffic::compare(at, &got);
            at += u64::from(frag.size);
            Ok(frag)
        })
        .collect()
}

fn a_receive_that_takes_too_long() -> Outcome {
    let bench = Receiving::new()?;
    receive_within(&bench, Receiver::new(&bench.connection.rx))
}

fn a_receive_that_takes_too_long_by_uring() -> Outcome {
    let bench = Receiving::new()?;
    receive_within(&bench, uring::Receiver::new(&bench.connection.rx)?)
}

/// More than fits into the buffers of both ends, so that sending stops before the peer reads.
fn more_than_fits() -> Vec<Extent> {
    (0..8).map(|i| extent(i, MEMORY - 8)).collect()
}

/// A call that stopped goes on until all is sent, each byte once, and the source comes back once.
fn send_in_parts(
    connection: &Connection,
    binding: &TxBinding,
    tx: &mut impl Transmit<Vec<Extent>>,
) -> Outcome {
    let parts = more_than_fits();
    let all = tx::total(&parts);
    let Err(err) = tx.send_timeout(binding, parts.clone(), SHORT) else {
        panic!("the peer has not read, and all was sent");
    };
    assert_eq!(err.error.kind(), io::ErrorKind::TimedOut, "{err}");
    assert!(err.sent > 0 && err.source.is_none(), "{err:?}");
    let mut sent = err.sent;
    let mut rest = err.rest;
    thread::scope(|scope| -> Outcome {
        let reader = scope.spawn(|| tx::expect(&connection.rx, &parts));
        let start = Instant::now();
        while let Some(left) = rest {
            assert_eq!(left.bytes() + sent, all);
            assert!(wait::may_take(start.elapsed(), LONG), "{left:?}");
            rest = match tx.resume_timeout(binding, left, SHORT) {
                Ok(()) => None,
                Err(err) => {
                    assert_eq!(err.error.kind(), io::ErrorKind::TimedOut, "{err}");
                    sent += err.sent;
                    Some(err.rest.expect("a rest"))
                }
            };
        }
        reader.join().expect("the reader's thread")?;
        Ok(())
    })?;
    let done = tx.wait_timeout(wait::patience(COMPLETED))?;
    assert_eq!(done.map(|sent| sent.bytes), Some(all));
    assert!(tx.wait_timeout(SHORT)?.is_none());
    Ok(())
}

/// A pair whose one end sends from memory that is filled.
fn filled_source() -> Result<(Pair, DmaBuf, TxBinding, Connection), Stop> {
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    tx::fill(&memory)?;
    let pair = Pair::new()?;
    let binding = pair.tx.bind_tx(&memory)?;
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    Ok((pair, memory, binding, connection))
}

fn a_send_that_takes_too_long_goes_on() -> Outcome {
    let (_pair, _memory, binding, connection) = filled_source()?;
    send_in_parts(&connection, &binding, &mut Sender::new(&connection.tx)?)
}

fn a_send_that_takes_too_long_goes_on_by_uring() -> Outcome {
    let (_pair, _memory, binding, connection) = filled_source()?;
    let mut tx = uring::Sender::new(&connection.tx)?;
    send_in_parts(&connection, &binding, &mut tx)
}

/// Regions come back although the peer acknowledges none of them, and there is none left out.
fn abort(
    connection: &Connection,
    memory: &DmaBuf,
    binding: &TxBinding,
    tx: &mut impl Transmit<Region>,
) -> Outcome {
    const PART: u64 = 64 << 10;
    let mut free = memory.region()?.split(PART);
    let mut back = 0;
    while let Some(region) = free.pop() {
        match tx.send_timeout(binding, region, SHORT) {
            Ok(()) => (),
            Err(err) => {
                assert_eq!(err.error.kind(), io::ErrorKind::TimedOut, "{err}");
                back += u64::from(err.source.is_some());
                break;
            }
        }
    }
    back += free.len() as u64;
    drop(free);
    let waited = tx
        .wait_timeout(SHORT)
        .map(|sent| sent.map(|sent| sent.bytes));
    assert_eq!(
        waited.expect_err("nothing was acknowledged").kind(),
        io::ErrorKind::TimedOut
    );
    tx.abort()?;
    while let Some(sent) = tx.wait_timeout(wait::patience(COMPLETED))? {
        assert!(sent.bytes > 0);
        back += 1;
        drop(sent);
    }
    assert_eq!(back, MEMORY / PART, "regions that came back");
    memory.region()?;
    let err = read_all(&connection.rx).expect_err("the end of a stream that was cut");
    assert_eq!(err.kind(), io::ErrorKind::ConnectionReset);
    Ok(())
}

fn read_all(mut socket: &TcpStream) -> io::Result<u64> {
    io::copy(&mut socket, &mut io::sink())
}

fn an_aborted_connection_gives_the_memory_back() -> Outcome {
    let (pair, memory, binding, connection) = filled_source()?;
    pair.rx.cut()?;
    let mut tx = Sender::new(&connection.tx)?;
    abort(&connection, &memory, &binding, &mut tx)
}

fn an_aborted_connection_gives_the_memory_back_by_uring() -> Outcome {
    let (pair, memory, binding, connection) = filled_source()?;
    pair.rx.cut()?;
    let mut tx = uring::Sender::new(&connection.tx)?;
    abort(&connection, &memory, &binding, &mut tx)
}

fn main() -> ExitCode {
    runner::run(tests![
        memory_by_its_descriptor,
        a_duplicate_keeps_it_bound,
        a_duplicate_keeps_it_bound_for_sending,
        pieces_for_another_thread,
        many_regions_written_at_once,
        a_receive_that_takes_too_long,
        a_receive_that_takes_too_long_by_uring,
        a_send_that_takes_too_long_goes_on,
        a_send_that_takes_too_long_goes_on_by_uring,
        an_aborted_connection_gives_the_memory_back,
        an_aborted_connection_gives_the_memory_back_by_uring,
        futures::two_connections_in_one_thread,
        futures::a_receive_that_is_dropped_loses_nothing,
        futures::a_send_that_is_dropped_goes_on,
        futures::completions_wake_who_waits,
        ring::everything_by_one_ring,
        watch::what_happened_before_somebody_asked,
        watch::exhausted_and_available,
        watch::what_the_kernel_has_no_room_for,
        watch::without_rights,
        watch::as_a_future,
    ])
}
