// SPDX-License-Identifier: GPL-2.0

//! Of the wrappers, the plain logic that they rest on.

#[path = "../../../rust/sys/area.rs"]
pub(crate) mod area;
#[path = "../../../rust/sys/extent.rs"]
pub(crate) mod extent;
#[path = "../../../rust/sys/free_list.rs"]
pub(crate) mod free_list;
#[path = "../../../rust/sys/token.rs"]
pub(crate) mod token;
