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

use core::mem::size_of;
pub(crate) use kernel::bindings::*;
use kernel::{
    ffi,
    static_assert, //
};

type __kernel_size_t = usize;
type __kernel_ssize_t = isize;
type __kernel_ptrdiff_t = isize;

include!(env!("DEVMEM_PROVIDER_BINDINGS"));

// What bindgen makes has the like of this for the types that are ours. The others are as in C, too.
static_assert!(size_of::<dma_buf>() == SIZEOF_DMA_BUF);
static_assert!(size_of::<dma_buf_attach_ops>() == SIZEOF_DMA_BUF_ATTACH_OPS);
static_assert!(size_of::<dma_buf_attachment>() == SIZEOF_DMA_BUF_ATTACHMENT);
static_assert!(size_of::<file>() == SIZEOF_FILE);
static_assert!(size_of::<genl_info>() == SIZEOF_GENL_INFO);
static_assert!(size_of::<iov_iter>() == SIZEOF_IOV_ITER);
static_assert!(size_of::<msghdr>() == SIZEOF_MSGHDR);
static_assert!(size_of::<netlink_ext_ack>() == SIZEOF_NETLINK_EXT_ACK);
static_assert!(size_of::<netmem_desc>() == SIZEOF_NETMEM_DESC);
static_assert!(size_of::<nlattr>() == SIZEOF_NLATTR);
static_assert!(size_of::<percpu_ref>() == SIZEOF_PERCPU_REF);
static_assert!(size_of::<sk_buff>() == SIZEOF_SK_BUFF);
static_assert!(size_of::<skb_frag_t>() == SIZEOF_SKB_FRAG);
static_assert!(size_of::<skb_shared_info>() == SIZEOF_SKB_SHARED_INFO);
static_assert!(size_of::<spinlock_t>() == SIZEOF_SPINLOCK);
