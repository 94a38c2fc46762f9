// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers of what the `kernel` crate lacks: all unsafe code of this module lives here.
//!
//! A file wraps one concept of the kernel, under the name that it has there, and offers what a
//! device memory provider needs of it. Nothing in here knows how net_iovs are kept: that is the
//! business of [`Provider`](devmem::Provider)s.

pub(crate) mod devmem;
pub(crate) mod dma_buf;
pub(crate) mod genetlink;
pub(crate) mod iov_iter;
pub(crate) mod net_device;
pub(crate) mod netmem;
mod nospec;
pub(crate) mod page_pool;
pub(crate) mod skbuff;
pub(crate) mod sock;
pub(crate) mod spinlock_bh;
