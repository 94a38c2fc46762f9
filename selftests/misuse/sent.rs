// SPDX-License-Identifier: GPL-2.0

//! What is sent gets longer by what is taken off the iovecs, and by nothing else.

use crate::sys::{
    iov_iter::OffsetRanges,
    skbuff::TxSkBuff, //
};

fn advance_alone(ranges: &mut OffsetRanges<'_>) {
    ranges.advance(1); //~ E0624
}

fn append_alone(skb: &mut TxSkBuff<'_>) {
    let _ = skb.append(0, 4096); //~ E0061
}

fn append_nothing(skb: &mut TxSkBuff<'_>, ranges: &mut OffsetRanges<'_>) {
    let _ = skb.append(ranges, 0); //~ E0061
}
