// SPDX-License-Identifier: GPL-2.0

//! Every byte is where it is said to be.

use std::env;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::Piece;
use devmem::Receiver;
use devmem::send::enable_zerocopy;
use devmem::vfio::Device;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::bar::Bar;
use devmem_testlib::pair::Ip;
use devmem_testlib::passes;
use devmem_testlib::provider;
use devmem_testlib::report::diag;
use devmem_testlib::skip;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::tx;
use devmem_testlib::tx::Call;

const MIB: u64 = 1 << 20;
const QUEUE: u32 = 1;
const PORT: u16 = 5001;
/// What is received into, unless it has to be more.
const RECEIVED: Extent = Extent {
    offset: MIB,
    len: 4 * MIB,
};
/// What is sent from.
const SENT: Extent = Extent {
    offset: 30 * MIB,
    len: MIB,
};

fn pages() -> io::Result<DmaBuf> {
    DmaBuf::udmabuf(RECEIVED.len as usize)
}

/// By its own file or by its group, it is the same memory.
pub fn opened_in_two_ways() -> Outcome {
    const LEN: usize = 10_000;
    let ways: [fn(&str) -> io::Result<Device>; 2] =
        [Device::open_by_iommufd, Device::open_by_group];
    for (position, [writes, reads]) in [(0, ways), (1000, [ways[1], ways[0]])] {
        let bar = Bar::open_by(writes)?;
        let part = bar.part(SENT)?;
        let mut region = part.region()?;
        region
            .begin_write()?
            .copy_in(0, traffic::bytes(position, LEN))?;
        drop((region, part, bar));

        let bar = Bar::open_by(reads)?;
        let part = bar.part(SENT)?;
        let mut seen = vec![0; LEN];
        part.map()?.begin_read()?.copy_out(0, &mut seen)?;
        traffic::compare(position, &seen);
        let pair = Pair::new()?;
        drop(pair.bind(&[QUEUE], &part)?);
    }
    Ok(())
}

pub fn received() -> Outcome {
    passes::received(&Bar::open()?.part(RECEIVED)?, None)
}

pub fn received_into_buffers_of_64k() -> Outcome {
    // More than a ring takes.
    let part = Extent {
        offset: 0,
        len: 24 * MIB,
    };
    passes::received(&Bar::open()?.part(part)?, Some(64 << 10))
}

pub fn sent() -> Outcome {
    passes::sent(&Bar::open()?.part(SENT)?)
}

/// From one NIC to the other: no byte is in the host's memory on its way.
pub fn from_device_to_device() -> Outcome {
    let bar = Bar::open()?;
    passes::sent_and_received(&bar.part(SENT)?, &bar.part(RECEIVED)?)
}

pub fn from_pages_to_device() -> Outcome {
    passes::sent_and_received(&pages()?, &Bar::open()?.part(RECEIVED)?)
}

pub fn from_device_to_pages() -> Outcome {
    passes::sent_and_received(&Bar::open()?.part(SENT)?, &pages()?)
}

/// One queue receives into the device, another one into pages, at the same time.
pub fn beside_pages() -> Outcome {
    const LEN: u64 = 8 * MIB;
    let memories = [Bar::open()?.part(RECEIVED)?, pages()?];
    let pair = Pair::new()?;
    let mut flows = Vec::new();
    for (queue, memory) in (QUEUE..).zip(&memories) {
        let binding = pair.bind(&[queue], memory)?;
        let connection = pair.connect_to_queue(Ip::V4, PORT + queue as u16, queue)?;
        flows.push((binding, memory.map()?, connection));
    }
    thread::scope(|scope| -> Outcome {
        let mut threads = Vec::new();
        for (start, (binding, map, connection)) in (0..).step_by(777).zip(&flows) {
            threads.push(traffic::send_in(scope, &connection.tx, start, LEN, 1 << 20));
            threads.push(scope.spawn(move || {
                let mut reader = Reader::new(&connection.rx, map, binding.id());
                reader.position = start;
                reader.read_until(start + LEN)?;
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

/// What the machine has available, in bytes.
fn available() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?
                .split_whitespace()
                .next()
        })
        .and_then(|kib| Some(kib.parse::<u64>().ok()? << 10))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A mapping that is undone leaves nothing.
pub fn bound_many_times() -> Outcome {
    const TIMES: u64 = 256;
    const PAGE: u64 = 4096;
    /// Of an entry of a scatterlist.
    const ENTRY: u64 = 32;
    const PART: Extent = Extent {
        offset: 0,
        len: 32 * MIB,
    };
    // A descriptor of the dma-buf does not keep the device open.
    let bar = Bar::open()?;
    let memory = bar.in_pages(PART)?;
    let pair = Pair::new()?;
    let bind = || -> Outcome {
        let id = pair.tx.bind_tx(&memory)?.id();
        provider::all_buffers_back(id);
        Ok(())
    };
    // What is made for the first one stays.
    bind()?;
    let before = available()?;
    for _ in 0..TIMES {
        bind()?;
    }
    let lost = before.saturating_sub(available()?);
    let scatterlists = TIMES * PART.len / PAGE * ENTRY;
    diag(format_args!(
        "{lost} bytes less, {scatterlists} in scatterlists"
    ));
    assert!(lost < scatterlists / 2, "{lost} bytes less than before");
    Ok(())
}

/// Leaves a stream in the device, that was sent from there by one NIC and received by the other, and says where the pieces of it
/// are. The host has the device's memory in a file, and looks: scripts/check-bar.
pub fn for_the_host() -> Outcome {
    // What the other tests leave alone.
    const FROM: Extent = Extent {
        offset: 32 * MIB,
        len: 4 * MIB,
    };
    const TO: Extent = Extent {
        offset: 36 * MIB,
        len: 28 * MIB,
    };
    let Some(work) = env::var_os("WORK") else {
        return skip("this is for a host that has the memory in a file");
    };
    let bar = Bar::open()?;
    let (from, to) = (bar.part(FROM)?, bar.part(TO)?);
    tx::fill(&from)?;
    let pair = Pair::new()?;
    let bound = (pair.bind(&[QUEUE], &to)?, pair.tx.bind_tx(&from)?);
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    enable_zerocopy(&connection.tx)?;

    let (mut held, mut pieces, mut got) = (Vec::new(), String::new(), 0);
    let whole = Extent { offset: 0, ..FROM };
    let mut receiver = Receiver::new(&connection.rx);
    thread::scope(|scope| -> Outcome {
        let sender = scope.spawn(|| Call::new(bound.1.id(), &[whole]).send(&connection.tx));
        while got < whole.len {
            let received = receiver.recv()?;
            assert!(!received.is_eof(), "the stream ended at {got}");
            for piece in received {
                let Piece::Frag(frag) = piece else {
                    panic!("not in device memory: {piece:?}");
                };
                got += u64::from(frag.size);
                writeln!(pieces, "{} {}", TO.offset + frag.offset, frag.size)?;
                // Each buffer is used once.
                held.push(frag.token);
            }
        }
        assert_eq!(
            sender.join().expect("the sender's thread")? as u64,
            whole.len
        );
        Ok(())
    })?;
    let stream: Vec<_> = (0..FROM.len)
        .step_by(1 << 20)
        .flat_map(|at| traffic::bytes(at, 1 << 20))
        .copied()
        .collect();
    let work = Path::new(&work);
    fs::write(work.join("stream"), stream)?;
    fs::write(work.join("pieces"), pieces)?;
    drop((held, bound));
    Ok(())
}
