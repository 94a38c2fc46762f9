// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers of what the `kernel` crate lacks: all unsafe code of this module lives here.
//!
//! A file wraps one concept of the kernel, under the name that it has there, and offers what a
//! device memory provider needs of it. Safe code cannot misuse what is in here, whatever it does: that
//! is what `selftests/misuse/` tries. So the plain logic that this rests on is in here, too: how memory is cut up
//! ([`area`], [`extent`]), which of it is free ([`free_list`]), whose it may be ([`share`]) and who waits for it
//! ([`waiters`]), what a [`token`] stands for, which frags make a [`run`], which part of a packet a reader wants
//! ([`window`]). It has no unsafe code, and compiles without a kernel, for its tests.
//!
//! Imports nothing from outside this directory but the `kernel` crate.

// Sizes and addresses of memory are taken for those of the machine's, in many places.
#[cfg(not(CONFIG_64BIT))]
compile_error!("64 bits are needed");

pub(crate) mod area;
mod bindings;
pub(crate) mod claim;
pub(crate) mod devmem;
pub(crate) mod dma_buf;
mod extent;
mod free_list;
pub(crate) mod genetlink;
#[allow(dead_code, reason = "not every provider has memory that the CPU reads")]
pub(crate) mod host_pages;
pub(crate) mod iov_iter;
pub(crate) mod locked_memory;
pub(crate) mod memory;
pub(crate) mod net_device;
pub(crate) mod netmem;
mod nospec;
pub(crate) mod page_pool;
pub(crate) mod run;
mod share;
pub(crate) mod skbuff;
pub(crate) mod sock;
pub(crate) mod source;
pub(crate) mod spinlock_bh;
pub(crate) mod token;
mod waiters;
pub(crate) mod window;
