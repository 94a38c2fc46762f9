// SPDX-License-Identifier: GPL-2.0

//! The device does DMA to where its mapping says, and nowhere else.

use kernel::prelude::*;

use crate::sys::{
    dma_buf::Mapping,
    host_pages::HostPages,
    memory::{
        RxBuffers,
        RxMemory,
        TxExtents,
        TxMemory, //
    },
    netmem::NetIovArea,
    skbuff::TxSkBuff, //
};

fn any_address() {
    let _ = NetIovArea::new(1, core::iter::once(0x1000)); //~ E0624
}

fn hand_out(buffers: &RxBuffers) {
    buffers.refill(core::ptr::NonNull::dangling(), |_| ()); //~ E0624
}

fn free_list_of(memory: &RxMemory<Mapping>) -> &RxBuffers {
    &memory.buffers //~ E0616
}

fn look_into(extents: &TxExtents) {
    extents.locate(0); //~ E0624
}

fn extents_of(memory: &TxMemory<Mapping>) -> &TxExtents {
    &memory.extents //~ E0616
}

fn another_area(extents: &mut TxExtents, area: NetIovArea) {
    extents.area = area; //~ E0616
}

fn read_what_is_not_there(memory: &RxMemory<HostPages>) {
    memory.look_at(0, 0, 1 << 20, |_| ()); //~ E0624
}

fn more_than_there_is_room_for(skb: &mut TxSkBuff<'_>) {
    skb.room = usize::MAX; //~ E0616
}

fn a_net_iov_of_another_binding(skb: &mut TxSkBuff<'_>) {
    skb.append_part(1, 0, 4096); //~ E0624
}

fn whatever_the_length(mapping: Mapping) -> Result {
    let _ = RxMemory::new(mapping, 12, 1, 100); //~ E0061
    Ok(())
}
