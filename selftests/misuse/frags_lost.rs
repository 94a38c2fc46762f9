// SPDX-License-Identifier: GPL-2.0

//! References of frags go to tokens, or stay where they are.

use crate::sys::skbuff::{
    Frags,
    RxSkBuff, //
};

fn lose(skb: &RxSkBuff<'_>) {
    skb.lose_frags(); //~ E0624
}

fn leak(frags: Frags<'_>) {
    frags.into_netmems(); //~ E0624
}

fn copy(frags: &Frags<'_>) {
    Frags::clone(frags); //~ E0277
}
