// SPDX-License-Identifier: GPL-2.0

//! What page pools get and give back is theirs for one call, and comes back once.

use crate::sys::memory::{
    Iovs,
    Refill,
    Returned, //
};

fn twice(returned: Returned<'_, impl Iovs>) {
    returned.put();
    returned.put(); //~ E0382
}

fn later(returned: Returned<'_, impl Iovs>) {
    fn keep(_: Returned<'static, impl Iovs>) {}

    keep(returned); //~ E0521
}

fn twice_as_much(refill: Refill<'_>) {
    refill.take_free(64);
    refill.take_free(64); //~ E0382
}

fn another_pool(refill: Refill<'_>) {
    fn keep(_: Refill<'static>) {}

    keep(refill); //~ E0521
}
