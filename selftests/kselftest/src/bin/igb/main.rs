// SPDX-License-Identifier: GPL-2.0

//! igb: the NIC on PCI that the tests are given. With headers split, and without; and what else happens to such a NIC
//! while memory is bound to its queues.

use std::io;
use std::io::Read;
use std::net::Shutdown;
use std::net::TcpStream;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::ethtool::DataSplit;
use devmem::ethtool::Rings;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::nic;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Ip;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::wait;

mod bound;
mod events;
mod modes;

const MIB: usize = 1 << 20;
const PORT: u16 = 5001;
/// TCP waits some seconds after losses, and longer each time.
const PATIENCE: Duration = Duration::from_secs(20);
/// The bound queue.
const QUEUE: u32 = 1;

fn pair() -> io::Result<Pair> {
    nic::driven_by("igb")
}

fn memory() -> io::Result<DmaBuf> {
    DmaBuf::udmabuf(4 * MIB)
}

/// Has headers split, or not.
fn split(end: &End, on: bool) -> io::Result<()> {
    end.set_rings(Rings {
        data_split: Some(if on { DataSplit::On } else { DataSplit::Off }),
        ..Rings::default()
    })
}

/// Sends so many bytes to host memory.
fn plain_traffic(pair: &Pair, ip: Ip, len: u64) -> Outcome {
    let connection = pair.connect(&pair.listen(ip, PORT)?)?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            traffic::send(&connection.tx, 0, len, MIB)?;
            connection.tx.shutdown(Shutdown::Write)
        });
        let received = AtomicU64::new(0);
        read_to_the_end(&connection.rx, &received)?;
        sender.join().expect("the sender's thread")?;
        assert_eq!(received.into_inner(), len, "bytes received");
        Ok(())
    })
}

/// Has a connection carry the stream while something else happens. `read` receives all of it, and tells how far it is;
/// what happens can wait by the function that it is given until the stream has gone on.
fn under_traffic(
    connection: &Connection,
    read: impl FnOnce(&AtomicU64) -> io::Result<()> + Send,
    happens: impl FnOnce(&dyn Fn() -> io::Result<()>) -> Outcome,
) -> Outcome {
    const CHUNK: usize = 1 << 16;
    let (done, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let send = || -> io::Result<u64> {
        let mut position = 0;
        while !done.load(Ordering::Acquire) {
            traffic::send(&connection.tx, position, CHUNK as u64, CHUNK)?;
            position += CHUNK as u64;
        }
        connection.tx.shutdown(Shutdown::Write)?;
        Ok(position)
    };
    let goes_on = || {
        let enough = received.load(Ordering::Relaxed) + 4 * CHUNK as u64;
        wait::until("the stream to go on", PATIENCE, || {
            Ok(received.load(Ordering::Relaxed) >= enough)
        })
        .map(drop)
    };
    thread::scope(|scope| {
        let sender = scope.spawn(send);
        let reader = scope.spawn(|| read(&received));
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| happens(&goes_on)));
        done.store(true, Ordering::Release);
        let sent = sender.join().expect("the sender's thread");
        let all = reader.join().expect("the reader's thread");
        outcome.unwrap_or_else(|cause| panic::resume_unwind(cause))?;
        all?;
        assert_eq!(received.load(Ordering::Relaxed), sent?, "bytes received");
        Ok(())
    })
}

/// Reads all of the stream by ordinary reads.
fn read_to_the_end(mut socket: &TcpStream, received: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let at = received.load(Ordering::Relaxed);
        match socket.read(&mut buffer)? {
            0 => return Ok(()),
            got => {
                traffic::compare(at, &buffer[..got]);
                received.store(at + got as u64, Ordering::Relaxed);
            }
        }
    }
}

/// Reads all of the stream, every byte of which is in device memory.
fn read_into_device(mut reader: Reader<'_>, received: &AtomicU64) -> io::Result<()> {
    while reader.read_some()? {
        received.store(reader.position, Ordering::Relaxed);
    }
    reader.assert_all_device_memory();
    Ok(())
}

/// A frame for everybody, of a protocol for experiments.
fn frame(round: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x52, 0x54, 0, 0, 0, 0x99, 0x88, 0xb5]);
    frame.extend((0..1000).map(|i| (i as u8).wrapping_mul(31) ^ round));
    frame
}

fn main() -> ExitCode {
    runner::run(tests![
        modes::ordinary_traffic,
        modes::changed_under_traffic,
        modes::xdp,
        modes::af_xdp,
        modes::tests_itself,
        bound::counted_by_queue,
        bound::not_split,
        bound::longer_rings,
        bound::fewer_queues,
        bound::split_stays_on,
        events::suspended,
        events::recovered_from_an_error,
        events::virtual_functions,
        events::taken_from_its_driver,
    ])
}
