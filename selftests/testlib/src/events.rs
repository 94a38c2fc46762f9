// SPDX-License-Identifier: GPL-2.0

//! What a kernel tells of bindings.

use devmem::Error;
use devmem::status::Events;

use crate::report::Outcome;
use crate::report::skip;

/// Skips the test on a kernel that tells nothing. What else is asked of bindings came with that.
pub fn skip_without() -> Outcome {
    match Events::open() {
        Err(Error::NoGroup(_)) => skip("this kernel tells nothing of bindings"),
        other => {
            other?;
            Ok(())
        }
    }
}
