// SPDX-License-Identifier: GPL-2.0

//! Nobody but a page pool gives a buffer back.

use crate::sys::memory::{
    Returned,
    RxBuffers, //
};

fn free_what_is_in_use(buffers: &RxBuffers) {
    let iovs = core::iter::once(7);
    let account = None;
    let _ = Returned { buffers, account, iovs }; //~ E0451
}
