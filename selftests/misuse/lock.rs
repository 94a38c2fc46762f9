// SPDX-License-Identifier: GPL-2.0

//! What is not a binding yet is gone before its device is unlocked, and its request served.

use kernel::prelude::*;

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

fn unlock(
    dev: LockedNetDevice<'_>,
    memory: impl PinInit<RxMemory<Mapping>, Error>,
    request: &RxBindRequest<'_>,
) -> Result {
    let draft = Draft::receive::<DmabufProvider>(dev, memory, request)?;

    drop(dev); //~ E0382
    drop(draft);
    Ok(())
}

fn keep_beyond_the_lock(
    dev: LockedNetDevice<'_>,
    memory: impl PinInit<RxMemory<Mapping>, Error>,
    request: &'static RxBindRequest<'static>,
) -> Result {
    for_ever(Draft::receive::<DmabufProvider>(dev, memory, request)?.publish(request)?); //~ E0521
    Ok(())
}

fn keep_beyond_the_request(
    dev: LockedNetDevice<'static>,
    memory: impl PinInit<RxMemory<Mapping>, Error>,
    request: &RxBindRequest<'static>,
) -> Result {
    for_ever(Draft::receive::<DmabufProvider>(dev, memory, request)?.publish(request)?); //~ E0521
    Ok(())
}

fn for_ever(_: RxBound<'static>) {}

fn serve_twice(
    dev: LockedNetDevice<'_>,
    memory: impl PinInit<RxMemory<Mapping>, Error>,
    request: &RxBindRequest<'_>,
) -> Result {
    let draft = Draft::receive::<DmabufProvider>(dev, memory, request)?;

    drop(draft.publish(request)?);
    drop(draft.publish(request)?); //~ E0382
    Ok(())
}
