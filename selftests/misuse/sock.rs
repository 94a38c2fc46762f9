// SPDX-License-Identifier: GPL-2.0

//! Only who has locked a socket makes its array of tokens larger.

use crate::sys::sock::{
    LockedSock,
    Sock, //
};

fn unlocked(sk: &Sock<'_>) {
    sk.reader_tokens(0); //~ E0599
}

fn lock<'a>(sk: Sock<'a>) -> LockedSock<'a> {
    LockedSock(sk) //~ E0423
}
