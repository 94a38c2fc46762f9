// SPDX-License-Identifier: GPL-2.0

//! A bind-tx request has no attributes beyond those that its array has a place for.

use crate::sys::genetlink::{
    BindRequest,
    DmabufAttr, //
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
