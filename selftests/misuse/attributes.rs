// SPDX-License-Identifier: GPL-2.0

//! A request has no attributes beyond those that its array has a place for, and the core is not made to look
//! for them.

use kernel::prelude::*;

use crate::{
    sys::{
        devmem::Draft,
        dma_buf::Mapping,
        genetlink::{
            BindRequest,
            DmabufAttr,
            RxBindRequest, //
        },
        memory::TxMemory,
        net_device::TxDevice, //
    },
    DmabufProvider, //
};

fn rx_page_size(request: &BindRequest<'_>) {
    request.rx_page_size(); //~ E0599
}

fn attribute(request: &BindRequest<'_>) {
    request.attr(DmabufAttr::RxPageSize); //~ E0599
}

fn queues(request: &BindRequest<'_>) {
    request.queues(); //~ E0599
}

fn shared(
    dev: TxDevice<'_>,
    memory: impl PinInit<TxMemory<Mapping>, Error>,
    request: &RxBindRequest<'_>,
) {
    let _ = Draft::transmit::<DmabufProvider>(dev, memory, request); //~ E0308
}
