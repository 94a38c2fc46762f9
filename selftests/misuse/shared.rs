// SPDX-License-Identifier: GPL-2.0

//! Mapping and memory are of one binding alone.

use kernel::prelude::*;

use crate::{
    sys::{
        devmem::Draft,
        dma_buf::Mapping,
        genetlink::RxBindRequest,
        memory::RxMemory,
        net_device::LockedNetDevice, //
    },
    DmabufProvider, //
};

fn two_memories(mapping: Mapping) {
    let _ = RxMemory::new(mapping, 12, 1);
    let _ = RxMemory::new(mapping, 12, 1); //~ E0382
}

fn two_bindings(
    one: LockedNetDevice<'_>,
    other: LockedNetDevice<'_>,
    mapping: Mapping,
    request: &RxBindRequest<'_>,
) -> Result {
    let memory = RxMemory::new(mapping, 12, 1)?;

    let _ = Draft::receive::<DmabufProvider>(one, memory, request);
    let _ = Draft::receive::<DmabufProvider>(other, memory, request); //~ E0382
    Ok(())
}

fn unmap(mapping: Mapping) {
    let memory = RxMemory::new(mapping, 12, 1);

    drop(mapping); //~ E0382
    drop(memory);
}
