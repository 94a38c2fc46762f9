// SPDX-License-Identifier: GPL-2.0

//! What the references of frags were moved from is gone, and there is nothing else that has them.

use crate::sys::{
    skbuff::{
        Frags,
        RxSkBuff, //
    },
    sock::ReaderTokens,
    token::{
        Frags as _,
        Tokens, //
    },
};

fn twice(tokens: &mut ReaderTokens<'_>, frags: Frags<'_>) {
    tokens.commit_all(&[], frags);
    tokens.commit_all(&[], frags); //~ E0382
}

fn afterwards(tokens: &mut ReaderTokens<'_>, frags: Frags<'_>) {
    let first = &frags.as_slice()[0];

    tokens.commit_all(&[], frags); //~ E0505
    first.size();
}

fn twice_as_runs(tokens: &mut ReaderTokens<'_>, frags: Frags<'_>) {
    tokens.commit_all_runs(&[], frags);
    tokens.commit_all(&[], frags); //~ E0382
}

fn two_ways(skb: &mut RxSkBuff<'_>) {
    let one = skb.parts();
    let other = skb.parts(); //~ E0499

    drop((one, other));
}

fn from_a_part_twice(skb: &mut RxSkBuff<'_>) {
    for part in skb.parts() {
        part.take_frags();
        part.take_frags(); //~ E0382
    }
}
