// SPDX-License-Identifier: GPL-2.0

//! What page pools get and give back is theirs for one call, and comes back once.

use crate::sys::{
    devmem::MemoryProvider,
    dma_buf::Mapping,
    memory::{
        Iovs,
        Refill,
        Returned, //
    },
};

fn twice(returned: Returned<'_, impl Iovs>) {
    returned.put();
    returned.put(); //~ E0382
}

fn twice_as_much(refill: Refill<'_>) {
    refill.take_free(64);
    refill.take_free(64); //~ E0382
}

struct Hoarder;

impl MemoryProvider for Hoarder {
    type Source = Mapping;

    fn alloc_netmems(_for_another_pool: Refill<'static>) {} //~ E0308

    fn release_netmems(_for_later: Returned<'static, impl Iovs>) {} //~ E0308
}
