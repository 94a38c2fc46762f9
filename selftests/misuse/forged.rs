// SPDX-License-Identifier: GPL-2.0

//! Nobody but a page pool gets a buffer or gives one back, and what is accounted is what the core has accounted.

use crate::sys::{
    locked_memory::LockedMemory,
    memory::{
        Refill,
        Returned,
        RxBuffers, //
    }, //
};

fn free_what_is_in_use(buffers: &RxBuffers) {
    let iovs = core::iter::once(7);
    let account = None;
    let _ = Returned { buffers, account, iovs }; //~ E0451
}

fn take_what_is_free(buffers: &RxBuffers) {
    let (pool, batch) = (core::ptr::NonNull::dangling(), loop {});
    let account = Some(0);
    let _ = Refill { buffers, pool, account, batch }; //~ E0451
}

fn account_nothing() {
    let pinned = loop {};
    let size = 1 << 30;
    let _ = LockedMemory { pinned, size }; //~ E0451
}
