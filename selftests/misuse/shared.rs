// SPDX-License-Identifier: GPL-2.0

//! Mapping and memory are of one binding alone.

use kernel::prelude::*;

use crate::{
    sys::{
        devmem::{
            Draft,
            RxMemory, //
        },
        dma_buf::Mapping,
        genetlink::RxBindRequest,
        net_device::LockedNetDevice, //
    },
    DevmemProvider, //
};

fn two_memories(mapping: Mapping) {
    let _ = RxMemory::new(mapping, 12);
    let _ = RxMemory::new(mapping, 12); //~ E0382
}

fn two_bindings(
    one: LockedNetDevice<'_>,
    other: LockedNetDevice<'_>,
    memory: impl PinInit<RxMemory, Error>,
    request: &RxBindRequest<'_>,
) {
    let _ = Draft::receive::<DevmemProvider>(one, memory, request);
    let _ = Draft::receive::<DevmemProvider>(other, memory, request); //~ E0382
}

fn unmap(mapping: Mapping) {
    let memory = RxMemory::new(mapping, 12);

    drop(mapping); //~ E0382
    drop(memory);
}
