// SPDX-License-Identifier: GPL-2.0

//! Nobody but the wrappers makes the right to use a net_iov, says where in a dma-buf something is, whose net_iovs may
//! be, or which page pool waits for some.

use crate::sys::bindings::net_iov; //~ E0603

use crate::sys::extent::Place; //~ E0603

use crate::sys::free_list::FreeIov; //~ E0603

use crate::sys::page_pool::Waiting; //~ E0603

use crate::sys::share::Account; //~ E0603

use crate::sys::waiters::Waiters; //~ E0603
