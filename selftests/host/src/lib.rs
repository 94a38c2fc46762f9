// SPDX-License-Identifier: GPL-2.0

//! The module's plain logic, compiled for the host.
//!
//! The files are those of the kernel module, none of which needs a kernel. They are compiled in the
//! edition that the kernel uses, and tested by the modules beside them.

// Not `cfg(test)`: mutation testing would pass over what is there for tests only.
#![cfg_attr(not(test), allow(dead_code))]

#[path = "../../../rust/cmsg.rs"]
mod cmsg;
mod sys;

#[cfg(test)]
mod area_tests;
#[cfg(test)]
mod cmsg_tests;
#[cfg(test)]
mod extent_tests;
#[cfg(test)]
mod free_list_tests;
// loom switches stacks, which Miri cannot follow.
#[cfg(all(test, not(miri)))]
mod loom_models;
#[cfg(all(test, not(miri)))]
mod loom_tests;
// The same code, and too much of it for Miri.
#[cfg(all(test, not(miri)))]
mod narrow_tests;
#[cfg(test)]
mod run_tests;
#[cfg(test)]
mod sequences;
#[cfg(test)]
mod share_tests;
#[cfg(test)]
mod slot_array;
#[cfg(test)]
mod token_tests;
#[cfg(test)]
mod waiters_tests;
#[cfg(test)]
mod window_tests;
