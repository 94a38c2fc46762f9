// SPDX-License-Identifier: GPL-2.0

//! Every byte that is sent arrives in device memory, in order.

use std::io;
use std::process::ExitCode;
use std::thread;

use devmem::DmaBuf;
use devmem::Piece;
use devmem::Receiver;
use devmem::dmabuf::HUGE_PAGE;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::hardware;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::runner;
use devmem_testlib::skip;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
const PORT: u16 = 5001;
const MTUS: [u32; 3] = [1500, 4096, 9000];
/// The longest single send().
const CHUNK: usize = MIB;

/// Sends `len` bytes over one connection and checks each, in device memory alone.
fn transfer(pair: &Pair, memory: &DmaBuf, id: u32, ip: Ip, len: u64, chunk: usize) -> Outcome {
    let map = memory.map()?;
    let connection = pair.connect(&pair.listen(ip, PORT)?)?;
    thread::scope(|scope| {
        let sender = traffic::send_in(scope, &connection.tx, 0, len, chunk);
        let mut reader = Reader::new(&connection.rx, &map, id);
        reader.read_until(len)?;
        reader.assert_all_device_memory();
        sender.join().expect("the sender's thread")?;
        Ok(())
    })
}

fn payload_sizes() -> Outcome {
    const SIZES: [usize; 7] = [1, 8, 64, 512, 1024, 4096, 8192];
    let memory = DmaBuf::udmabuf(4 * MIB)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    pair.steer(PORT, 1)?;
    for mtu in MTUS {
        pair.set_mtu(mtu)?;
        let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        for size in SIZES {
            // Each one by itself, then a few in a row.
            for _ in 0..2 {
                let end = reader.position + size as u64;
                traffic::send(&connection.tx, reader.position, size as u64, size)?;
                reader.read_until(end)?;
            }
            let end = reader.position + 5 * size as u64;
            traffic::send(&connection.tx, reader.position, 5 * size as u64, size)?;
            reader.read_until(end)?;
        }
        reader.assert_all_device_memory();
    }
    Ok(())
}

/// 64 MiB through 4 MiB of memory, so that every buffer is used many times.
fn large(mtu: u32, offload: bool) -> Outcome {
    const LEN: u64 = 64 << 20;
    /// Without offload each packet costs the emulated guest as much as 64 KiB do with it.
    const LEN_WITHOUT_OFFLOAD: u64 = 8 << 20;
    let memory = DmaBuf::udmabuf(4 * MIB)?;
    let pair = Pair::new()?;
    pair.set_mtu(mtu)?;
    if !offload {
        pair.tx.set_offload(false)?;
    }
    let binding = pair.bind(&[1], &memory)?;
    pair.steer(PORT, 1)?;
    let len = if offload { LEN } else { LEN_WITHOUT_OFFLOAD };
    transfer(&pair, &memory, binding.id(), Ip::V4, len, CHUNK)
}

fn large_mtu_1500() -> Outcome {
    large(1500, true)
}

fn large_mtu_4096() -> Outcome {
    large(4096, true)
}

fn large_mtu_9000() -> Outcome {
    large(9000, true)
}

fn packets_of_mtu_1500() -> Outcome {
    large(1500, false)
}

fn packets_of_mtu_4096() -> Outcome {
    large(4096, false)
}

fn packets_of_mtu_9000() -> Outcome {
    large(9000, false)
}

fn ipv6() -> Outcome {
    let memory = DmaBuf::udmabuf(4 * MIB)?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    pair.steer(PORT, 1)?;
    for (len, chunk) in [(1, 1), (4096, 64), (16 << 20, CHUNK)] {
        transfer(&pair, &memory, binding.id(), Ip::V6, len, chunk)?;
    }
    Ok(())
}

fn two_bindings_on_two_queues() -> Outcome {
    const LEN: u64 = 8 << 20;
    let memory = [DmaBuf::udmabuf(4 * MIB)?, DmaBuf::udmabuf(4 * MIB)?];
    let pair = Pair::new()?;
    let a = (pair.bind(&[1], &memory[0])?, memory[0].map()?);
    let b = (pair.bind(&[2], &memory[1])?, memory[1].map()?);
    let to_a = pair.connect_to_queue(Ip::V4, PORT, 1)?;
    let to_b = pair.connect_to_queue(Ip::V4, PORT + 1, 2)?;
    // Streams that differ, so that the memory of one cannot pass for that of the other.
    let flows = [(&a, &to_a, 0), (&b, &to_b, 777)];
    run_flows(
        &flows.map(|((binding, map), connection, start)| (binding.id(), map, connection, start)),
        LEN,
    )
}

fn several_queues_on_one_binding() -> Outcome {
    const LEN: u64 = 4 << 20;
    let memory = DmaBuf::udmabuf(8 * MIB)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1, 2, 5], &memory)?;
    let mut connections = Vec::new();
    for queue in [1, 2, 5] {
        connections.push(pair.connect_to_queue(Ip::V4, PORT + queue as u16, queue)?);
    }
    let flows: Vec<_> = (1..)
        .zip(&connections)
        .map(|(i, c)| (binding.id(), &map, c, i * 1001))
        .collect();
    run_flows(&flows, LEN)?;
    for queue in [1, 2, 5] {
        let split = pair.rx.counter(&format!("rx{queue}_hds_bytes"))?;
        assert!(split >= LEN, "only {split} bytes came by queue {queue}");
    }
    Ok(())
}

fn several_flows_into_one_queue() -> Outcome {
    const LEN: u64 = 2 << 20;
    let memory = DmaBuf::udmabuf(8 * MIB)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    pair.steer(PORT, 1)?;
    let mut connections = Vec::new();
    for ip in [Ip::V4, Ip::V4, Ip::V6, Ip::V6] {
        // One listener after the other on the same port: the flows differ in the sender's.
        connections.push(pair.connect(&pair.listen(ip, PORT)?)?);
    }
    let flows: Vec<_> = (1..)
        .zip(&connections)
        .map(|(i, c)| (binding.id(), &map, c, i * 1001))
        .collect();
    run_flows(&flows, LEN)
}

type Flow<'a> = (
    u32,
    &'a devmem::dmabuf::Mapping,
    &'a devmem_testlib::pair::Connection,
    u64,
);

/// Runs flows at the same time, each from its own position of the stream on.
fn run_flows(flows: &[Flow<'_>], len: u64) -> Outcome {
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for &(id, map, connection, start) in flows {
            threads.push(traffic::send_in(scope, &connection.tx, start, len, CHUNK));
            threads.push(scope.spawn(move || {
                let mut reader = Reader::new(&connection.rx, map, id);
                reader.position = start;
                reader.read_until(start + len)?;
                reader.assert_all_device_memory();
                Ok(())
            }));
        }
        for thread in threads {
            thread.join().expect("a flow's thread")?;
        }
        Ok(())
    })
}

fn reads_smaller_than_a_frag() -> Outcome {
    const LEN: usize = 20_000;
    let memory = DmaBuf::udmabuf(MIB)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    pair.steer(PORT, 1)?;
    for limit in [1000, 100, 4095] {
        let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
        traffic::send(&connection.tx, 0, LEN as u64, LEN)?;
        let mut reader = Reader::with_limit(&connection.rx, &map, binding.id(), limit);
        reader.read_until(LEN as u64)?;
        reader.assert_all_device_memory();
        assert!(
            reader.longest as usize <= limit,
            "a piece of {} bytes",
            reader.longest
        );
        assert!(
            reader.frags as usize >= LEN.div_ceil(limit),
            "{} pieces",
            reader.frags
        );
    }
    Ok(())
}

/// A frag taken by several reads gives several tokens, and its buffer is free when all are back.
fn a_frag_with_several_tokens() -> Outcome {
    let memory = DmaBuf::udmabuf(MIB)?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, 1)?;
    traffic::send(&connection.tx, 0, 1000, 1000)?;
    let mut receiver = Receiver::with_capacity(&connection.rx, 400, 16);
    let mut pieces = Vec::new();
    for _ in 0..3 {
        for piece in receiver.recv()? {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}")
            };
            pieces.push(frag);
        }
    }
    let sizes: Vec<_> = pieces.iter().map(|frag| frag.size).collect();
    assert_eq!(sizes, [400, 400, 200]);
    assert_eq!(pieces[1].offset, pieces[0].offset + 400);
    assert_eq!(pieces[2].offset, pieces[1].offset + 400);
    let id = binding.id();
    drop((binding, pieces.remove(0), pieces.remove(0)));
    let in_use = || -> io::Result<_> { Ok(provider::binding(id)?.map(|info| info.in_use)) };
    if provider::bindings()?.is_some() {
        provider::wait_for("one buffer to be in use", || Ok(in_use()? == Some(1)));
    }
    drop(pieces);
    provider::all_buffers_back(id);
    Ok(())
}

/// Transfers with memory from somewhere else than single pages of a memfd.
fn other_memory(memory: &DmaBuf, rx_page_size: Option<u32>) -> Outcome {
    const LEN: u64 = 8 << 20;
    let pair = Pair::new()?;
    pair.set_mtu(9000)?;
    let mut request = pair.request(&[1]);
    if let Some(size) = rx_page_size {
        request = request.rx_page_size(size);
    }
    let binding = match pair.bind_with(&request, memory) {
        Err(err)
            if rx_page_size.is_some()
                && err.errno() == Some(libc::EOPNOTSUPP)
                && hardware::given()?.is_some() =>
        {
            return skip("the NIC has buffers of one size only");
        }
        binding => binding?,
    };
    if let Some(info) = provider::binding(binding.id())? {
        let size = u64::from(rx_page_size.unwrap_or(PAGE as u32));
        assert_eq!(
            (info.buffer_size, info.buffers),
            (size, memory.size() as u64 / size)
        );
        assert_eq!(binding.stats()?.id, info.id);
    }
    pair.steer(PORT, 1)?;
    let map = memory.map()?;
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    thread::scope(|scope| {
        let sender = traffic::send_in(scope, &connection.tx, 0, LEN, CHUNK);
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        reader.read_until(LEN)?;
        reader.assert_all_device_memory();
        if let Some(size) = rx_page_size {
            assert!(
                reader.longest > PAGE as u32,
                "no piece is longer than {}",
                reader.longest
            );
            assert!(
                reader.longest <= size,
                "a piece of {} bytes",
                reader.longest
            );
        }
        sender.join().expect("the sender's thread")?;
        Ok(())
    })
}

fn huge_pages(count: usize) -> io::Result<DmaBuf> {
    provider::huge_pages(count)?;
    DmaBuf::udmabuf_huge(count * HUGE_PAGE)
}

fn memory_of_huge_pages() -> Outcome {
    other_memory(&huge_pages(2)?, None)
}

fn memory_of_the_system_heap() -> Outcome {
    other_memory(&DmaBuf::system_heap(4 * MIB)?, None)
}

fn rx_page_size_16k() -> Outcome {
    other_memory(&huge_pages(4)?, Some(16 << 10))
}

fn rx_page_size_64k() -> Outcome {
    other_memory(&huge_pages(16)?, Some(64 << 10))
}

fn main() -> ExitCode {
    runner::run(tests![
        payload_sizes,
        large_mtu_1500,
        large_mtu_4096,
        large_mtu_9000,
        packets_of_mtu_1500,
        packets_of_mtu_4096,
        packets_of_mtu_9000,
        ipv6,
        two_bindings_on_two_queues,
        several_queues_on_one_binding,
        several_flows_into_one_queue,
        reads_smaller_than_a_frag,
        a_frag_with_several_tokens,
        memory_of_huge_pages,
        memory_of_the_system_heap,
        rx_page_size_16k,
        rx_page_size_64k,
    ])
}
