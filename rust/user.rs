// SPDX-License-Identifier: GPL-2.0

//! Users of transmit bindings: who may send from one, and how many a user may have.
//!
//! Everybody may make transmit bindings, and ids of bindings are small numbers in one space for the
//! whole machine. So knowing an id gives no right to send, and how many there are is limited.

#![deny(unsafe_code)]

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    prelude::*,
    rbtree::RBTree,
    sync::global_lock,
    task::Kuid, //
};

use crate::sys::cred::{
    self,
    Process, //
};

global_lock! {
    // SAFETY: `DevmemProvider::init` initialises it, before there are bindings to count.
    pub(crate) unsafe(uninit) static COUNTS: Mutex<Option<RBTree<u32, u32>>> = None;
}

/// Who made a transmit binding.
pub(crate) struct Owner {
    user: Kuid,
    process: Process,
    _charge: Charge,
}

impl Owner {
    /// Makes the current task the owner of another transmit binding.
    ///
    /// `ENOSPC` if its user has `limit` of them already and is not network administrator, `ENOMEM`
    /// if there is no memory to count it. Process context.
    pub(crate) fn current(limit: u32) -> Result<Self> {
        Ok(Self {
            user: Kuid::current_euid(),
            process: Process::current()?,
            _charge: Charge::new(cred::accountable_user(), limit)?,
        })
    }

    /// Whether the current task may act for the owner: it is of the process that made the binding,
    /// whatever user that has become since, or has the same effective user.
    pub(crate) fn is_current(&self) -> bool {
        self.process.is_current() || self.user == Kuid::current_euid()
    }
}

/// A transmit binding in the count of a user, until this is dropped.
///
/// # Invariants
///
/// `COUNTS` has an entry for the user, which is the number of charges there are for it.
struct Charge(u32);

impl Charge {
    fn new(user: u32, limit: u32) -> Result<Self> {
        let mut counts = COUNTS.lock();
        let counts = counts.get_or_insert_with(RBTree::new);

        match counts.get_mut(&user) {
            Some(count) if *count < limit || cred::is_net_admin() => {
                *count = count.checked_add(1).ok_or(ENOSPC)?;
            }
            None if limit > 0 || cred::is_net_admin() => {
                counts.try_create_and_insert(user, 1, GFP_KERNEL_ACCOUNT)?;
            }
            _ => return Err(ENOSPC),
        }
        // INVARIANT: Counted right above.
        Ok(Self(user))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut counts = COUNTS.lock();

        if let Some(mut entry) = counts.as_mut().and_then(|counts| counts.find_mut(&self.0)) {
            match *entry.get() {
                // The last of a user leaves nothing: all memory is back before the module goes.
                1 => drop(entry.remove_node()),
                _ => *entry.get_mut() -= 1,
            }
        }
    }
}
