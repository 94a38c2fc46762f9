// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The protocol: frames, keys and the state machine of an end, without any I/O.
//!
//! Two ends have a control connection, over which [frames](wire) go, and lanes, over which nothing but payload goes: on a
//! queue that is bound to a dma-buf it would be headers that landed in device memory. Frames say what the next bytes of
//! each lane are. `Documentation/bulk.rst` has all of it.
//!
//! The peer is not trusted: an end believes nothing of what it says about lengths, keys and ranges.

#[cfg(test)]
mod explore;
pub mod keys;
pub mod machine;
#[cfg(test)]
mod properties;
pub mod wire;

pub use keys::Key;
pub use keys::Keys;
pub use keys::NoKey;
pub use keys::Rights;
pub use machine::End;
pub use machine::Event;
pub use machine::Failure;
pub use machine::Limits;
pub use machine::Machine;
pub use machine::Outgoing;
pub use machine::Placement;
pub use machine::Refused;
pub use machine::Source;
pub use machine::Target;
pub use wire::Fault;
pub use wire::Status;
