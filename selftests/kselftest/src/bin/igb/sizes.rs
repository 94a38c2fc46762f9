// SPDX-License-Identifier: GPL-2.0

//! Payloads of every length that could be special: next to none, as a frame is padded; as long as the buffer for
//! headers, or as a buffer for payload; and as a packet may be.

use std::ops::RangeInclusive;

use devmem::DmaBuf;
use devmem::dmabuf::HUGE_PAGE;
use devmem_testlib::Outcome;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;

use crate::MIB;
use crate::PORT;
use crate::QUEUE;
use crate::pair;

const SHORT: [RangeInclusive<u64>; 3] = [1..=80, 180..=264, 1420..=1456];
const LONG: [RangeInclusive<u64>; 3] = [4080..=4112, 8180..=8200, 8920..=8960];

fn each_by_itself(
    memory: &DmaBuf,
    rx_page_size: Option<u32>,
    mtu: u32,
    sizes: &[RangeInclusive<u64>],
) -> Outcome {
    let map = memory.map()?;
    let pair = pair()?;
    pair.set_mtu(mtu)?;
    let mut request = pair.request(&[QUEUE]);
    if let Some(size) = rx_page_size {
        request = request.rx_page_size(size);
    }
    let binding = pair.bind_with(&request, memory)?;
    pair.steer(PORT, QUEUE)?;
    for ip in [Ip::V4, Ip::V6] {
        let connection = pair.connect(&pair.listen(ip, PORT)?)?;
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        for size in sizes.iter().cloned().flatten() {
            let end = reader.position + size;
            traffic::send(&connection.tx, reader.position, size, MIB)?;
            reader.read_until(end)?;
        }
        reader.assert_all_device_memory();
    }
    Ok(())
}

pub fn buffers_of_a_page() -> Outcome {
    let memory = crate::memory()?;
    each_by_itself(&memory, None, 1500, &SHORT)?;
    each_by_itself(&memory, None, 9000, &LONG)
}

pub fn buffers_of_64_kib() -> Outcome {
    provider::huge_pages(16)?;
    let memory = DmaBuf::udmabuf_huge(16 * HUGE_PAGE)?;
    each_by_itself(&memory, Some(64 << 10), 9000, &LONG)
}
