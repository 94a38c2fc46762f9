// SPDX-License-Identifier: GPL-2.0

//! A binding is made for the device that its memory is mapped for, and put on queues of the one that it was
//! made for.

use kernel::prelude::*;

use crate::{
    sys::{
        devmem::{
            Draft,
            RxBound,
            RxMemory, //
        },
        genetlink::RxBindRequest,
        net_device::{
            DmaDevice,
            LockedNetDevice, //
        },
    },
    DevmemProvider, //
};

fn mapped_for_another(
    dev: LockedNetDevice<'_>,
    dma_dev: DmaDevice<'_>,
    memory: impl PinInit<RxMemory, Error>,
    request: &RxBindRequest<'_>,
) {
    let _ = Draft::receive::<DevmemProvider>(dev, memory, request, dma_dev); //~ E0061
}

fn queue_of_another(bound: &RxBound<'_>, dev: &LockedNetDevice<'_>, request: &RxBindRequest<'_>) {
    let _ = bound.open_rxq(dev, 0, request); //~ E0061
}
