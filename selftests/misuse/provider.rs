// SPDX-License-Identifier: GPL-2.0

//! A provider gets what is its own, and nothing else.

use kernel::prelude::*;

use crate::{
    sys::{
        devmem::{
            self,
            Draft, //
        },
        dma_buf::Mapping,
        genetlink::{
            RxBindRequest,
            TxBindRequest, //
        },
        host_pages::HostPages,
        memory::{
            RxMemory,
            TxMemory, //
        },
        net_device::{
            LockedNetDevice,
            TxDevice, //
        },
        skbuff::RxSkBuff,
        sock::Message, //
    },
    DmabufProvider, //
};

fn memory_of_another(
    dev: LockedNetDevice<'_>,
    memory: impl PinInit<RxMemory<HostPages>, Error>,
    request: &RxBindRequest<'_>,
) {
    let _ = Draft::receive::<DmabufProvider>(dev, memory, request); //~ E0277
}

fn send_from_what_is_received(
    dev: TxDevice<'_>,
    memory: impl PinInit<RxMemory<Mapping>, Error>,
    request: &TxBindRequest<'_>,
) {
    let _ = Draft::<'_, TxMemory<Mapping>>::transmit::<DmabufProvider>(dev, memory, request); //~ E0277
}

fn read_what_the_cpu_cannot(skb: &mut RxSkBuff<'_>, msg: &mut Message<'_>) {
    let _ = devmem::copy::<DmabufProvider>(skb, 0, msg, 1); //~ E0277
}

fn read_any_memory(msg: &mut Message<'_>) {
    let _ = msg.copy_raw(core::ptr::null(), 1); //~ E0624
}
