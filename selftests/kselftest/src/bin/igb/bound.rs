// SPDX-License-Identifier: GPL-2.0

//! What the NIC is told, and counts, while memory is bound to a queue.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use devmem::errno_of;
use devmem_testlib::Outcome;
use devmem_testlib::pair::Ip;
use devmem_testlib::peer::packet_socket;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::wait;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::send;

use crate::MIB;
use crate::PATIENCE;
use crate::PORT;
use crate::QUEUE;
use crate::frame;
use crate::memory;
use crate::pair;
use crate::read_into_device;
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
    let grown: Vec<_> = counters()?
        .iter()
        .zip(before)
        .map(|(now, before)| now - before)
        .collect();
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
    let socket = packet_socket(&pair.tx)?;
    send(socket.as_raw_fd(), &frame(0), MsgFlags::empty())?;
    wait::until("the frame to be dropped", PATIENCE, || {
        Ok(dropped()? > before)
    })?;
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
    let reader = Reader::new(&connection.rx, &map, binding.id());
    let read = |received: &_| read_into_device(reader, received);
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

/// Queues go, but for the one that is bound. It goes on, and cannot go.
pub fn fewer_queues() -> Outcome {
    let memory = memory()?;
    let map = memory.map()?;
    let pair = pair()?;
    let all = pair.queues()?.len() as u32;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let frags = AtomicU64::new(0);
    let mut reader = Reader::new(&connection.rx, &map, binding.id());
    // Some of it may come by queues without device memory.
    let read = |received: &AtomicU64| {
        while reader.read_some()? {
            received.store(reader.position, Ordering::Relaxed);
            frags.store(reader.frags, Ordering::Relaxed);
        }
        Ok(())
    };
    under_traffic(&connection, read, |goes_on| {
        for count in [2, all] {
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
    let refused = pair
        .bind(&[QUEUE], &memory)
        .expect_err("headers are not split");
    assert_eq!(refused.errno(), Some(libc::EINVAL));
    Ok(())
}
