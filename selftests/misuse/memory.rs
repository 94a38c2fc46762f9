// SPDX-License-Identifier: GPL-2.0

//! The device does DMA to where its mapping says, and nowhere else.

use kernel::prelude::*;

use crate::sys::{
    devmem::{
        RxMemory,
        TxMemory, //
    },
    dma_buf::Mapping,
    netmem::NetIovArea,
    skbuff::TxSkBuff, //
};

fn any_address() {
    let _ = NetIovArea::new(1, core::iter::once(0x1000)); //~ E0624
}

fn hand_out(memory: &RxMemory) {
    memory.put(core::iter::empty()); //~ E0624
}

fn look_into(memory: &TxMemory) {
    memory.locate(0); //~ E0624
}

fn another_area(memory: &mut TxMemory, area: NetIovArea) {
    memory.area = area; //~ E0616
}

fn more_than_there_is_room_for(skb: &mut TxSkBuff<'_>) {
    skb.room = usize::MAX; //~ E0616
}

fn a_net_iov_of_another_binding(skb: &mut TxSkBuff<'_>) {
    skb.append_part(1, 0, 4096); //~ E0624
}

fn whatever_the_length(mapping: Mapping) -> Result {
    let _ = RxMemory::new(mapping, 12, 100); //~ E0061
    Ok(())
}
