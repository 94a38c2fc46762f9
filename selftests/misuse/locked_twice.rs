// SPDX-License-Identifier: GPL-2.0

//! What is accounted is so for one mapping alone, and as long as that is there.

use kernel::device::{
    Bound,
    Device, //
};

use crate::sys::{
    dma_buf::{
        DmaBuf,
        Mapping, //
    },
    locked_memory::LockedMemory, //
};

fn twice(one: DmaBuf, other: DmaBuf, dma_dev: &Device<Bound>, locked: LockedMemory) {
    let _ = Mapping::for_transmit(one, dma_dev, locked);
    let _ = Mapping::for_transmit(other, dma_dev, locked); //~ E0382
}

fn too_short(buf: DmaBuf, dma_dev: &Device<Bound>, locked: LockedMemory) {
    let _mapping = Mapping::for_transmit(buf, dma_dev, locked);
    drop(locked); //~ E0382
}
