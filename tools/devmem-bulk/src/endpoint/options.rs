// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What an endpoint is made of.

use std::sync::Arc;

use crate::memory::Landing;
use crate::registry::Registry;
use crate::protocol::Limits;

/// What an endpoint is made of, beside its sockets.
#[derive(Debug)]
pub struct Options {
    /// How much it takes upon itself. How many lanes there are follows from the sockets.
    pub limits: Limits,
    /// The keys that its peer may use.
    pub registry: Registry,
    /// Where payload lands, if it lands in device memory.
    pub landing: Option<Arc<Landing>>,
}

impl Options {
    /// Payload comes in host memory.
    pub fn new(registry: Registry) -> Self {
        Self {
            limits: Limits::default(),
            registry,
            landing: None,
        }
    }

    /// Payload lands here. All of its window is this endpoint's, in equal parts for its lanes.
    pub fn landing(mut self, landing: Arc<Landing>, lanes: u16) -> Self {
        self.limits.window = landing.window() / u64::from(lanes.max(1));
        self.landing = Some(landing);
        self
    }

    /// Payload lands here for good: see [`InPlace`](crate::InPlace). The peer has credit for all of it.
    pub fn target(mut self, landing: Arc<Landing>, lanes: u16) -> Self {
        self.limits.window = landing.whole() / u64::from(lanes.max(1));
        self.landing = Some(landing);
        self
    }
}
