// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What an endpoint is made of.

use std::sync::Arc;

use crate::memory::Landing;
use crate::protocol::Limits;
use crate::protocol::wire::MAX_LANES;
use crate::registry::Registry;

/// What an endpoint is made of, beside its sockets.
#[derive(Debug)]
pub struct Options {
    /// How much it takes upon itself. How many lanes there are follows from the sockets.
    pub limits: Limits,
    /// How many lanes there may be: it is the end that connects that chooses.
    pub lanes: u16,
    /// How many bytes all lanes together may have in hand, in equal parts. If it is not said, each of them has the window
    /// of `limits`.
    pub window: Option<u64>,
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
            lanes: MAX_LANES,
            window: None,
            registry,
            landing: None,
        }
    }

    /// Payload lands here. All of its window is this endpoint's, in equal parts for its lanes, of which there are no more
    /// than `lanes`.
    pub fn landing(mut self, landing: Arc<Landing>, lanes: u16) -> Self {
        self.window = Some(landing.window());
        self.lanes = lanes;
        self.landing = Some(landing);
        self
    }

    /// Payload lands here for good: see [`InPlace`](crate::InPlace). The peer has credit for all of it.
    pub fn target(mut self, landing: Arc<Landing>, lanes: u16) -> Self {
        self.window = Some(landing.whole());
        self.lanes = lanes;
        self.landing = Some(landing);
        self
    }
}
