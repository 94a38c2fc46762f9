// SPDX-License-Identifier: GPL-2.0

//! A request has no attributes beyond those that its array has a place for, and the core is not made to look
//! for them.

use kernel::prelude::*;

use crate::{
    sys::{
        devmem::{
            Draft,
            TxMemory, //
        },
        genetlink::{
            BindRequest,
            DmabufAttr,
            RxBindRequest, //
        },
        net_device::TxDevice, //
    },
    DevmemProvider, //
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

fn shared(dev: TxDevice<'_>, memory: impl PinInit<TxMemory, Error>, request: &RxBindRequest<'_>) {
    let _ = Draft::transmit::<DevmemProvider>(dev, memory, request); //~ E0308
}
