// SPDX-License-Identifier: GPL-2.0

//! What the library in `tools/devmem` does beyond the calls that the other programs make by it.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::Frag;
use devmem::Piece;
use devmem::Receiver;
use devmem::Region;
use devmem::Sender;
use devmem::TxBinding;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::fixture::Sending;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
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

fn main() -> ExitCode {
    runner::run(tests![
        memory_by_its_descriptor,
        a_duplicate_keeps_it_bound,
        a_duplicate_keeps_it_bound_for_sending,
        pieces_for_another_thread,
        many_regions_written_at_once,
    ])
}
