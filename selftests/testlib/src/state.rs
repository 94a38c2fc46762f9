// SPDX-License-Identifier: GPL-2.0

//! What a refused request, or a call that fails, leaves as it was.

use std::fs;
use std::io;
use std::time::Duration;

use devmem::netdev::Queue;

use crate::pair::Pair;
use crate::provider;
use crate::wait;

/// What was made before a request failed may be freed a little later.
const BACK: Duration = Duration::from_secs(5);

/// The receiver's queues, all bindings, attached devices and the module's references.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    queues: Vec<Queue>,
    bindings: Option<Vec<u32>>,
    attachments: u64,
    module: Option<String>,
}

impl State {
    /// As it is now.
    pub fn of(pair: &Pair) -> io::Result<Self> {
        let bindings = provider::bindings()?;
        Ok(Self {
            queues: pair.queues()?,
            bindings: bindings.map(|list| list.into_iter().map(|info| info.id).collect()),
            attachments: provider::attachments()?,
            module: fs::read_to_string("/sys/module/devmem_provider/refcnt").ok(),
        })
    }

    /// Waits until it is so again; fails the test if it does not become so, and shows both.
    #[track_caller]
    pub fn wait_until_back(&self, pair: &Pair) {
        let mut now = None;
        let waited = wait::up_to(BACK, || {
            let state = now.insert(Self::of(pair)?);
            Ok(state == self)
        })
        .expect("to look");
        assert!(
            waited.came,
            "not as before after {:?}: {now:?}, before: {self:?}",
            waited.time
        );
    }
}
