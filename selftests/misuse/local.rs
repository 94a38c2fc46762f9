// SPDX-License-Identifier: GPL-2.0

//! What is mapped for nobody is for readers on this machine, by devices that do no DMA.

use kernel::prelude::*;

use crate::sys::{
    devmem::{
        DevmemProvider,
        Draft, //
    },
    dma_buf::Unmapped,
    genetlink::{
        RxBindRequest,
        TxBindRequest, //
    },
    memory::LocalMemory,
    net_device::{
        LocalDevice,
        LockedNetDevice,
        TxDevice, //
    },
    skbuff::RxSkBuff, //
};

fn any_device<'a>(dev: LockedNetDevice<'a>) -> LocalDevice<'a> {
    LocalDevice(dev) //~ E0423
}

fn by_one_that_does_dma<P: DevmemProvider>(
    dev: TxDevice<'_>,
    memory: impl PinInit<LocalMemory, Error>,
    request: &TxBindRequest<'_>,
) {
    let _ = Draft::local::<P>(dev, memory, request); //~ E0308
}

fn to_receive<P: DevmemProvider>(
    dev: LocalDevice<'_>,
    memory: impl PinInit<LocalMemory, Error>,
    request: &RxBindRequest<'_>,
) {
    let _ = Draft::local::<P>(dev, memory, request); //~ E0308
}

fn unaccounted(unmapped: &mut Unmapped) {
    unmapped.locked = None; //~ E0616
}

fn memory_of(memory: &LocalMemory) {
    let _ = &memory.buf; //~ E0616
}

fn no_loan(skb: &mut RxSkBuff<'_>) {
    skb.loan = None; //~ E0616
}
