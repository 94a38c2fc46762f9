// SPDX-License-Identifier: GPL-2.0

//! How long the kernel takes for a grace period of RCU.
//!
//! Queues are reset with several of them, and most of the time of a binding's life is waiting for these. In
//! a hurry many times as many bindings fit; at the usual pace readers have longer to be in the way. A test that
//! wants many does both.

use std::fs;
use std::io;

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// The kernel's pace, which is put back when this is dropped.
#[derive(Debug)]
pub struct Pace {
    before: String,
}

impl Pace {
    /// What it is now.
    pub fn current() -> io::Result<Self> {
        Ok(Self {
            before: fs::read_to_string(EXPEDITED)?,
        })
    }

    /// Has grace periods be short, or not.
    pub fn hurry(&mut self, hurry: bool) -> io::Result<()> {
        fs::write(EXPEDITED, if hurry { "1" } else { "0" })
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        // It was written to before. Nobody is left to be told.
        drop(fs::write(EXPEDITED, &self.before));
    }
}
