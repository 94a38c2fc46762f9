// SPDX-License-Identifier: GPL-2.0

//! Bindings that are left when they should be gone.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::time::Duration;

use devmem::provider;
use devmem::provider::BindingInfo;
use devmem_testlib::wait;

/// Knows which bindings are lost, so that each is told of once.
#[derive(Debug)]
pub struct Leftovers {
    lost: BTreeSet<u32>,
    /// Those that were there before the sequence.
    before: BTreeSet<u32>,
    /// How long buffers and bindings may take to come back.
    pub patience: Duration,
}

impl Leftovers {
    /// Nothing is lost yet.
    pub fn new(patience: Duration) -> Self {
        Self {
            lost: BTreeSet::new(),
            before: BTreeSet::new(),
            patience,
        }
    }

    /// A sequence begins: what is there is not of its making.
    pub fn begin(&mut self) -> io::Result<()> {
        self.before = provider::bindings()?.iter().map(|b| b.id).collect();
        Ok(())
    }

    /// Waits until no buffer of the sequence is in use; tells of what is left.
    ///
    /// A binding that had buffers out is gone only when its page pools have had a look, which may be
    /// long after they are back.
    pub fn wait_no_buffers(&mut self) -> io::Result<Option<String>> {
        let before = mem::take(&mut self.before);
        self.wait(|binding| binding.in_use != 0 && !before.contains(&binding.id))
    }

    /// Waits until there is no binding; tells of what is left.
    pub fn wait_no_bindings(&mut self) -> io::Result<Option<String>> {
        self.wait(|_| true)
    }

    fn wait(&mut self, counts: impl Fn(&BindingInfo) -> bool) -> io::Result<Option<String>> {
        let mut left = Vec::new();
        let waited = wait::up_to(self.patience, || {
            left = provider::bindings()?;
            left.retain(|binding| counts(binding) && !self.lost.contains(&binding.id));
            Ok(left.is_empty())
        })?;
        if waited.came {
            return Ok(None);
        }
        self.lost.extend(left.iter().map(|binding| binding.id));
        Ok(Some(format!("left after {:?}: {left:?}", waited.time)))
    }
}
