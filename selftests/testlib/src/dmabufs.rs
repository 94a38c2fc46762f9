// SPDX-License-Identifier: GPL-2.0

//! Which dma-bufs there are on the machine, and for how long.

use std::fs;
use std::io;
use std::time::Duration;

use crate::Outcome;
use crate::report::diag;
use crate::report::skip;

/// What debugfs tells.
const LIST: &str = "/sys/kernel/debug/dma_buf/bufinfo";

/// Skips the test where nobody tells which there are.
pub fn skip_without() -> Outcome {
    match fs::exists(LIST)? {
        true => Ok(()),
        false => skip("debugfs does not tell of dma-bufs"),
    }
}

/// Whether there is one of this size: when it goes, so does its memory.
pub fn has(size: usize) -> io::Result<bool> {
    let size = format!("{size:08}");
    let found = fs::read_to_string(LIST)?;
    Ok(found
        .lines()
        .any(|line| line.split_whitespace().next() == Some(&size)))
}

/// Tells how long it took until they were gone.
pub fn tell_times(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    diag(format_args!(
        "{what}: {} times, half of them within {:?}, the longest {:?}",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1]
    ));
}
