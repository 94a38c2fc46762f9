// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What an endpoint is made of.

use std::sync::Arc;
use std::time::Duration;

use super::socket::SILENCE;
use crate::memory::Landing;
use crate::protocol::Limits;
use crate::protocol::machine::LEAST;
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
    /// How long the peer may take nothing of what has come for it by a lane: then it is gone. 30 s if nothing else is said.
    /// `None` has it take as long as it likes, for as long as its kernel answers by the control connection: for peers that
    /// may be computing meanwhile.
    pub stall: Option<Duration>,
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
            stall: Some(SILENCE),
        }
    }

    /// Payload lands here. All of its window is this endpoint's, in equal parts for its lanes, of which there are no more
    /// than `lanes`, nor than it is large enough for.
    pub fn landing(self, landing: Arc<Landing>, lanes: u16) -> Self {
        let window = landing.window();
        self.within(window, landing, lanes)
    }

    /// Payload lands here for good: see [`InPlace`](crate::InPlace). The peer has credit for all of it.
    pub fn target(self, landing: Arc<Landing>, lanes: u16) -> Self {
        let window = landing.whole();
        self.within(window, landing, lanes)
    }

    fn within(mut self, window: u64, landing: Arc<Landing>, lanes: u16) -> Self {
        self.window = Some(window);
        self.lanes = lanes.min(lanes_of(window));
        self.landing = Some(landing);
        self
    }
}

/// For how many lanes a window is large enough.
pub(super) fn lanes_of(window: u64) -> u16 {
    u16::try_from(window / (2 * u64::from(LEAST))).unwrap_or(u16::MAX)
}
