// SPDX-License-Identifier: GPL-2.0

//! What the NIC is told, and counts, while memory is bound to a queue.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use devmem::errno_of;
use devmem_testlib::Outcome;
use devmem_testlib::pair::Ip;
use devmem_testlib::peer::packet_socket;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::wait;

use crate::MIB;
use crate::PATIENCE;
use crate::PORT;
use crate::QUEUE;
use crate::memory;
use crate::pair;
use crate::split;
use crate::under_traffic;

pub fn counted_by_queue() -> Outcome {
    const SIZES: [u64; 4] = [1, 6, 1000, 1400];
    let memory = memory()?;
    let map = memory.map()?;
    let pair = pair()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let counters = || -> io::Result<[u64; 4]> {
        let names = ["hds_packets", "hds_bytes", "hds_no_buffer", "hds_not_split"];
        let mut counters = [0; 4];
        for (counter, name) in counters.iter_mut().zip(names) {
            *counter = pair.rx.counter(&format!("rx_queue_{QUEUE}_{name}"))?;
        }
        Ok(counters)
    };
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let before = counters()?;
    let mut reader = Reader::new(&connection.rx, &map, binding.id());
    for size in SIZES {
        let end = reader.position + size;
        traffic::send(&connection.tx, reader.position, size, MIB)?;
        reader.read_until(end)?;
    }
    let grown: Vec<_> = counters()?.iter().zip(before).map(|(now, before)| now - before).collect();
    assert_eq!(grown, [SIZES.len() as u64, SIZES.iter().sum(), 0, 0]);
    Ok(())
}

/// A frame without a header of TCP or UDP lies in the queue's memory, where nobody could read it.
pub fn not_split() -> Outcome {
    let memory = memory()?;
    let pair = pair()?;
    let _binding = pair.bind(&[0], &memory)?;
    pair.wait_for_link()?;
    let dropped = || pair.rx.counter("rx_queue_0_hds_not_split");
    let before = dropped()?;
    let mut frame = vec![0xff; 6];
    frame.extend([0x52, 0x54, 0, 0, 0, 0x99, 0x88, 0xb5]);
    frame.resize(200, 0);
    let socket = packet_socket(&pair.tx)?;
    nix::sys::socket::send(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &frame,
        nix::sys::socket::MsgFlags::empty(),
    )?;
    wait::until("the frame to be dropped", PATIENCE, || Ok(dropped()? > before))?;
    Ok(())
}

/// Reads all of the stream, of which some may come by queues without device memory.
fn read_all(mut reader: Reader<'_>, received: &AtomicU64, frags: &AtomicU64) -> io::Result<()> {
    while reader.read_some()? {
        received.store(reader.position, Ordering::Relaxed);
        frags.store(reader.frags, Ordering::Relaxed);
    }
    Ok(())
}

/// The ring is made anew, and with it its page pool.
pub fn longer_rings() -> Outcome {
    let memory = memory()?;
    let map = memory.map()?;
    let pair = pair()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let sizes = pair.rx.ring_sizes()?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let frags = AtomicU64::new(0);
    let reader = Reader::new(&connection.rx, &map, binding.id());
    let read = |received: &_| {
        let mut reader = reader;
        while reader.read_some()? {
            received_so_far(received, &reader);
        }
        reader.assert_all_device_memory();
        frags.store(reader.frags, Ordering::Relaxed);
        Ok(())
    };
    let outcome = under_traffic(&connection, read, |goes_on| {
        for size in [80, 512, 256] {
            pair.rx.set_ring_sizes(size, size)?;
            goes_on()?;
        }
        Ok(())
    });
    pair.rx.set_ring_sizes(sizes.0, sizes.1)?;
    outcome
}

fn received_so_far(received: &AtomicU64, reader: &Reader<'_>) {
    received.store(reader.position, Ordering::Relaxed);
}

/// Queues go, but for the one that is bound. It goes on, and cannot go.
pub fn fewer_queues() -> Outcome {
    let memory = memory()?;
    let map = memory.map()?;
    let pair = pair()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let frags = AtomicU64::new(0);
    let reader = Reader::new(&connection.rx, &map, binding.id());
    let read = |received: &_| read_all(reader, received, &frags);
    under_traffic(&connection, read, |goes_on| {
        for count in [2, 8] {
            pair.rx.set_channels(count)?;
            // The driver spreads flows anew.
            pair.steer(PORT, QUEUE)?;
            goes_on()?;
            let before = frags.load(Ordering::Relaxed);
            goes_on()?;
            assert!(frags.load(Ordering::Relaxed) > before, "no device memory");
        }
        let refused = pair.rx.set_channels(1).expect_err("the bound queue went");
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        goes_on()?;
        Ok(())
    })
}

pub fn split_stays_on() -> Outcome {
    let memory = memory()?;
    let pair = pair()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let refused = split(&pair.rx, false).expect_err("the memory has no queue any more");
    assert_eq!(errno_of(&refused), Some(libc::EINVAL));
    drop(binding);
    split(&pair.rx, false)?;
    let refused = pair.bind(&[QUEUE], &memory).expect_err("headers are not split");
    assert_eq!(refused.errno(), Some(libc::EINVAL));
    Ok(())
}
