// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a group is made of, and what it tells.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use crate::endpoint::Options;
use crate::memory::Landing;
use crate::protocol;
use crate::protocol::Failure;
use crate::protocol::wire::MAX_LANES;
use crate::registry::Registry;

/// Where a group listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its address.
    pub ip: IpAddr,
    /// The port for control connections.
    pub control: u16,
    /// The port for lanes.
    pub lanes: u16,
}

/// Which end of a group. There is never another one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndId(pub u64);

/// What has happened, and to which end.
#[derive(Debug)]
pub struct Happened<T> {
    /// The end.
    pub end: EndId,
    /// What.
    pub what: What<T>,
}

/// What has happened to an end that the program has connected. Of those that peers have connected nothing is told; notes
/// of peers are nobody's.
#[derive(Debug)]
pub enum What<T> {
    /// The peer has said hello: there is room for requests.
    Open,
    /// A request is over, or all that a [flush](super::Group::flush) is about.
    Done(Done<T>),
    /// The connection is over, and so was all that was under way before. There is nothing more of this end.
    Over(Why),
}

/// A request that is over.
#[derive(Debug)]
pub struct Done<T> {
    /// What it was made with.
    pub token: T,
    /// Whether it went well; of a flush, what the first one failed for that did.
    pub result: Result<(), Failure>,
    /// What was got, if it was [got as bytes](super::Group::get_bytes).
    pub bytes: Option<Vec<u8>>,
}

/// Why a connection is over.
#[derive(Debug)]
pub enum Why {
    /// It was made, and ended.
    Ended(protocol::End),
    /// It could not be made.
    Unreachable(io::Error),
}

/// What the ends of a group are made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The keys that peers may use.
    pub registry: Registry,
    /// Where payload lands, if it lands in device memory, and how many ends that is divided among.
    pub landing: Option<(Arc<Landing>, u32)>,
}

impl Parts {
    pub(super) fn options(&self, lanes: usize) -> Options {
        let mut options = Options::new(self.registry.clone());
        // Programs with a loop of their own do other things, too.
        options.stall = None;
        if let Some((landing, sharers)) = &self.landing {
            let lanes = u16::try_from(lanes).unwrap_or(MAX_LANES);
            options = options.landing(Arc::clone(landing), lanes);
            let part = |window| window / u64::from((*sharers).max(1));
            options.window = options.window.map(part);
        }
        options
    }
}
