// SPDX-License-Identifier: GPL-2.0

//! The module's plain logic, compiled for the host.
//!
//! The files are those of the kernel module, none of which needs a kernel. They are compiled in the
//! edition that the kernel uses, and tested by the modules beside them.

#[cfg(test)]
#[path = "../../../rust/area.rs"]
mod area;
#[cfg(test)]
#[path = "../../../rust/extent.rs"]
mod extent;
#[cfg(test)]
#[path = "../../../rust/free_list.rs"]
#[expect(dead_code, reason = "ids are put together again by the wrappers only")]
mod free_list;
#[cfg(test)]
#[path = "../../../rust/token.rs"]
mod token;
#[cfg(test)]
#[path = "../../../rust/window.rs"]
mod window;

#[cfg(test)]
mod area_tests;
#[cfg(test)]
mod extent_tests;
#[cfg(test)]
mod free_list_tests;
#[cfg(test)]
mod token_tests;
#[cfg(test)]
mod window_tests;
