// SPDX-License-Identifier: GPL-2.0

//! Memory that is sent from is accounted before it is pinned, and until it is not any more.

use kernel::{
    device::{
        Bound,
        Device, //
    },
    prelude::*, //
};

use crate::{
    sys::{
        devmem::Draft,
        dma_buf::{
            DmaBuf,
            Mapping, //
        },
        genetlink::TxBindRequest,
        locked_memory::LockedMemory,
        memory::TxMemory,
        net_device::TxDevice,
        source::{
            Direction,
            Source, //
        }, //
    },
    DmabufProvider, //
};

fn account_more(locked: &mut LockedMemory) {
    locked.size = 1 << 30; //~ E0616
}

fn account_for_good(locked: LockedMemory) {
    let _ = locked.into_raw(); //~ E0624
}

fn pin_unaccounted(buf: DmaBuf, dma_dev: &Device<Bound>) {
    let _ = Mapping::for_transmit(buf, dma_dev); //~ E0061
}

fn pin_and_see(buf: DmaBuf, dma_dev: &Device<Bound>, request: &TxBindRequest<'_>) -> Result {
    let size = buf.size();
    let _mapping = Mapping::new(buf, dma_dev, Direction::ToDevice); //~ E0624
    let _too_late = LockedMemory::new(request, size)?;
    Ok(())
}

fn stop_accounting(mapping: &mut Mapping) {
    mapping.locked = None; //~ E0616
}

fn account_another(
    dev: TxDevice<'_>,
    memory: impl PinInit<TxMemory<Mapping>, Error>,
    locked: LockedMemory,
    request: &TxBindRequest<'_>,
) {
    let _ = Draft::transmit::<DmabufProvider>(dev, memory, locked, request); //~ E0061
}
