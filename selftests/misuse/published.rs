// SPDX-License-Identifier: GPL-2.0

//! A binding is published once, by the wrapper, and what is published is not for others to unbind.

use kernel::prelude::*;

use crate::sys::{
    devmem::{
        binding::Binding, //~ E0603
        bound::Published, //~ E0603
        Draft,
        RxBound, //
    },
    dma_buf::Mapping,
    memory::RxMemory, //
};

fn binding_of<'a>(draft: &'a Draft<'_, RxMemory<Mapping>>) -> &'a Binding<RxMemory<Mapping>> {
    &draft.binding.0 //~ E0616
}

fn unbind(bound: RxBound<'_>) {
    drop(bound.binding); //~ E0616
}

fn leave(bound: RxBound<'_>) {
    let _ = bound.into_base(); //~ E0624
}
