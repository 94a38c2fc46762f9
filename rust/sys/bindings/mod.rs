// SPDX-License-Identifier: GPL-2.0

//! What bindgen makes of `bindings_helper.h`, on top of the `kernel` crate's bindings.
//!
//! Private to [`sys`](crate::sys). Types that are in both come from the `kernel` crate, see
//! `Kbuild`; the names below shadow those of the glob.

#![allow(
    dead_code,
    improper_ctypes,
    non_camel_case_types,
    non_upper_case_globals,
    unnameable_types,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    missing_docs
)]

pub(crate) use kernel::bindings::*;
use kernel::ffi;

type __kernel_size_t = usize;
type __kernel_ssize_t = isize;
type __kernel_ptrdiff_t = isize;

include!(env!("DEVMEM_PROVIDER_BINDINGS"));
