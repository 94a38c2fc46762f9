// SPDX-License-Identifier: GPL-2.0

//! Of the wrappers, the plain logic that they rest on.

#[path = "../../../rust/sys/area.rs"]
pub(crate) mod area;
#[path = "../../../rust/sys/extent.rs"]
pub(crate) mod extent;
#[path = "../../../rust/sys/free_list.rs"]
pub(crate) mod free_list;
#[path = "../../../rust/sys/share.rs"]
pub(crate) mod share;
#[path = "../../../rust/sys/token.rs"]
pub(crate) mod token;
#[path = "../../../rust/sys/waiters.rs"]
pub(crate) mod waiters;
#[path = "../../../rust/sys/window.rs"]
pub(crate) mod window;

/// What of it only the wrappers may do: these are they, to the tests.
#[cfg(test)]
pub(crate) mod wrapper {
    use super::free_list::FreeIov;

    /// The index of a net_iov that goes to a page pool.
    pub(crate) fn index(iov: FreeIov) -> u32 {
        iov.into_raw()
    }

    /// A net_iov that was handed out, and comes back.
    pub(crate) fn came_back(index: u32) -> FreeIov {
        FreeIov::from_raw(index)
    }
}
