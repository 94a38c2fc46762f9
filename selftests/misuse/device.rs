// SPDX-License-Identifier: GPL-2.0

//! A binding is made for the device that its memory is mapped for, and put on queues of the one that it was
//! made for.

use kernel::{
    device::{
        Bound,
        Device, //
    },
    prelude::*, //
};

use crate::{
    sys::{
        devmem::{
            Draft,
            RxBound, //
        },
        dma_buf::Mapping,
        genetlink::RxBindRequest,
        memory::RxMemory,
        net_device::LockedNetDevice, //
    },
    DmabufProvider, //
};

fn mapped_for_another(
    dev: LockedNetDevice<'_>,
    dma_dev: &Device<Bound>,
    memory: impl PinInit<RxMemory<Mapping>, Error>,
    request: &RxBindRequest<'_>,
) {
    let _ = Draft::receive::<DmabufProvider>(dev, memory, request, dma_dev); //~ E0061
}

fn queue_of_another(bound: &RxBound<'_>, dev: &LockedNetDevice<'_>, request: &RxBindRequest<'_>) {
    let _ = bound.open_rxq(dev, 0, request); //~ E0061
}

fn longer_than_the_lock<'a>(dev: LockedNetDevice<'a>) -> Option<&'a Device<Bound>> {
    dev.dma_device(0) //~ E0515
}
