// SPDX-License-Identifier: GPL-2.0

//! Nobody but the wrappers makes the right to use a net_iov, or says where in a dma-buf something is.

use crate::sys::bindings::net_iov; //~ E0603

use crate::sys::extent::Place; //~ E0603

use crate::sys::free_list::FreeIov; //~ E0603
