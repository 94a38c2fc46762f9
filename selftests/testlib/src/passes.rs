// SPDX-License-Identifier: GPL-2.0

//! What has to pass through a NIC, whatever memory it is received into or sent from.

use std::io;
use std::net::TcpStream;
use std::thread;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::Receiver;
use devmem::send::enable_zerocopy;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;

use crate::pair::Connection;
use crate::pair::Ip;
use crate::pair::Pair;
use crate::report::Outcome;
use crate::traffic;
use crate::traffic::Reader;
use crate::tx;
use crate::tx::Call;
use crate::tx::Completions;
use crate::tx::extent;

const PAGE: usize = 4096;
const PORT: u16 = 5001;
const QUEUE: u32 = 1;
const MTUS: [u32; 2] = [1500, 9000];
/// The longest single send().
const CHUNK: usize = 1 << 20;

/// Sizes of payload at which something begins or ends: packets, buffers of the NIC, what it splits off.
fn sizes(socket: &TcpStream) -> io::Result<Vec<usize>> {
    /// A NIC may have room for so much in front of what it splits.
    const HEADERS: usize = 256;
    let segment = getsockopt(socket, TcpMaxSeg)? as usize;
    let around = |size: usize| size - 4..=size + 4;
    let short = (1..=80).chain(HEADERS - 80..=HEADERS + 4);
    let edges = [
        512,
        segment,
        2 * segment,
        3 * segment,
        PAGE,
        2 * PAGE,
        16 * PAGE,
    ];
    Ok(short.chain(edges.into_iter().flat_map(around)).collect())
}

/// Payloads of all these sizes arrive in the memory, by themselves, and more of them than there is memory.
pub fn received(memory: &DmaBuf, rx_page_size: Option<u32>) -> Outcome {
    let pair = Pair::new()?;
    for mtu in MTUS {
        pair.set_mtu(mtu)?;
        let mut request = pair.request(&[QUEUE]);
        if let Some(size) = rx_page_size {
            request = request.rx_page_size(size);
        }
        let binding = pair.bind_with(&request, memory)?;
        let map = memory.map()?;
        pair.steer(PORT, QUEUE)?;
        for ip in [Ip::V4, Ip::V6] {
            let connection = pair.connect(&pair.listen(ip, PORT)?)?;
            let mut reader = Reader::new(&connection.rx, &map, binding.id());
            receive(&connection.tx, &mut reader, memory.size())?;
            // What is longer than a page has a buffer of its own, if there are such.
            let segment = getsockopt(&connection.tx, TcpMaxSeg)?;
            let longest = segment.min(rx_page_size.unwrap_or(PAGE as u32));
            assert!(reader.longest >= longest, "none of {longest} bytes");
        }
    }
    Ok(())
}

fn receive(tx: &TcpStream, reader: &mut Reader<'_>, all: usize) -> Outcome {
    for size in sizes(tx)? {
        let end = reader.position + size as u64;
        traffic::send(tx, reader.position, size as u64, size)?;
        reader.read_until(end)?;
    }
    let (from, len) = (reader.position, all as u64 + 12_345);
    thread::scope(|scope| {
        let sender = traffic::send_in(scope, tx, from, len, CHUNK);
        reader.read_until(from + len)?;
        sender.join().expect("the sender's thread")
    })?;
    reader.assert_all_device_memory();
    Ok(())
}

/// Where what is sent lies: all of the sizes, at the beginning of a page, within one, and at the end of the memory.
fn places(memory: &DmaBuf, socket: &TcpStream) -> io::Result<Vec<Extent>> {
    let end = memory.size() as u64;
    let mut places = vec![extent(0, end), extent(1, end - 1)];
    for size in sizes(socket)? {
        let size = size as u64;
        places.extend([0, 1, PAGE as u64 - 1, end - size].map(|at| extent(at, size)));
    }
    Ok(places)
}

/// Sends all of it from the memory while `receive` compares, and each send completes.
fn send(
    pair: &Pair,
    memory: &DmaBuf,
    connection: &Connection,
    receive: impl FnOnce(&[Extent]) -> io::Result<()>,
) -> Outcome {
    tx::fill(memory)?;
    let binding = pair.tx.bind_tx(memory)?;
    enable_zerocopy(&connection.tx)?;
    let places = places(memory, &connection.tx)?;
    thread::scope(|scope| -> io::Result<()> {
        let sender = scope.spawn(|| {
            places.iter().try_for_each(|&place| {
                let sent = Call::new(binding.id(), &[place]).send(&connection.tx)?;
                assert_eq!(sent as u64, place.len);
                Ok(())
            })
        });
        receive(&places)?;
        sender.join().expect("the sender's thread")
    })?;
    let mut completions = Completions::default();
    completions.wait(&connection.tx, places.len() as u32)?;
    assert!(!completions.copied, "the kernel copied device memory");
    Ok(())
}

/// What is sent from the memory arrives in the host's.
pub fn sent(memory: &DmaBuf) -> Outcome {
    let pair = Pair::sending()?;
    for (ip, mtu) in [Ip::V4, Ip::V6].into_iter().zip(MTUS) {
        pair.set_mtu(mtu)?;
        let connection = pair.connect(&pair.listen(ip, PORT)?)?;
        send(&pair, memory, &connection, |places| {
            tx::expect(&connection.rx, places)
        })?;
    }
    Ok(())
}

/// What is sent from one memory arrives in the other, and nowhere else.
pub fn sent_and_received(from: &DmaBuf, to: &DmaBuf) -> Outcome {
    let pair = Pair::new()?;
    let binding = pair.bind(&[QUEUE], to)?;
    let map = to.map()?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    send(&pair, from, &connection, |places| {
        let mut receiver = Receiver::new(&connection.rx);
        let copied = tx::expect_in_device_memory(&mut receiver, &map, places)?;
        assert_eq!(copied, 0, "bytes in host memory");
        Ok(())
    })?;
    drop(binding);
    Ok(())
}
