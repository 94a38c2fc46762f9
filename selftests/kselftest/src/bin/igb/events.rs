// SPDX-License-Identifier: GPL-2.0

//! What happens to the NIC while memory is bound to a queue of it.

use std::panic;
use std::panic::AssertUnwindSafe;

use devmem_testlib::Outcome;
use devmem_testlib::nic::Event;
use devmem_testlib::nic::Unbound;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::report::skip;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;

use crate::PORT;
use crate::QUEUE;
use crate::memory;
use crate::pair;
use crate::plain_traffic;
use crate::read_into_device;
use crate::under_traffic;

/// The queue is made anew, with the memory that is bound to it, and the stream goes on there.
fn goes_on_after(events: &[Event]) -> Outcome {
    let memory = memory()?;
    let map = memory.map()?;
    let pair = pair()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let reader = Reader::new(&connection.rx, &map, binding.id());
    let read = |received: &_| read_into_device(reader, received);
    under_traffic(&connection, read, |goes_on| {
        for _ in 0..2 {
            goes_on()?;
            for &event in events {
                pair.rx.meets(event)?;
            }
            goes_on()?;
        }
        Ok(())
    })
}

pub fn suspended() -> Outcome {
    goes_on_after(&[Event::Suspend, Event::Resume])
}

pub fn recovered_from_an_error() -> Outcome {
    goes_on_after(&[Event::Error])
}

/// With them the NIC has other queues. So there are none while one is bound, and they stay.
pub fn virtual_functions() -> Outcome {
    const VFS: u32 = 2;
    let memory = memory()?;
    let pair = pair()?;
    if !pair.rx.has_vfs()? {
        return skip("this NIC has no virtual functions");
    }
    let channels = pair.queues()?.len() as u32;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let refused = pair
        .rx
        .set_vfs(VFS)
        .expect_err("queues that are bound went");
    assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
    drop(binding);

    pair.rx.set_vfs(VFS)?;
    let with_vfs = || -> Outcome {
        pair.wait_for_link()?;
        plain_traffic(&pair, Ip::V4, 1 << 20)?;
        let binding = pair.bind(&[QUEUE], &memory)?;
        let refused = pair.rx.set_vfs(0).expect_err("queues that are bound went");
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
        drop(binding);
        Ok(())
    };
    let outcome = panic::catch_unwind(AssertUnwindSafe(with_vfs));
    pair.rx.set_vfs(0)?;
    pair.rx.set_channels(channels)?;
    pair.wait_for_link()?;
    outcome.unwrap_or_else(|cause| panic::resume_unwind(cause))?;
    plain_traffic(&pair, Ip::V4, 1 << 20)
}

/// Bytes that were received stay, and the NIC that the driver makes later on can be bound.
pub fn taken_from_its_driver() -> Outcome {
    const LEN: u64 = 20_000;
    let memory = memory()?;
    let map = memory.map()?;
    {
        let pair = pair()?;
        let channels = pair.queues()?.len() as u32;
        let binding = pair.bind(&[QUEUE], &memory)?;
        let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
        traffic::send(&connection.tx, 0, LEN, LEN as usize)?;
        wait_received(&connection.rx, LEN);
        let unbound = Unbound::new(pair.rx.on_pci()?, channels)?;
        if let Some(info) = provider::binding(binding.id())? {
            assert_eq!(info.ifname, None, "the device is gone: {info:?}");
        }
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        let outcome = reader.read_until(LEN);
        unbound.bind()?;
        outcome?;
    }
    let pair = pair()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    traffic::send(&connection.tx, 0, LEN, LEN as usize)?;
    let mut reader = Reader::new(&connection.rx, &map, binding.id());
    reader.read_until(LEN)?;
    reader.assert_all_device_memory();
    Ok(())
}
