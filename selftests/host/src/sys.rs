// SPDX-License-Identifier: GPL-2.0

//! Of the wrappers, the plain logic that they rest on.

#[path = "../../../rust/sys/area.rs"]
pub(crate) mod area;
#[path = "../../../rust/sys/extent.rs"]
pub(crate) mod extent;
#[path = "../../../rust/sys/free_list.rs"]
pub(crate) mod free_list;
#[path = "../../../rust/sys/run.rs"]
pub(crate) mod run;
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
    use super::{
        free_list::FreeIov,
        run::{End, Run},
        token::Held,
    };

    /// The index of a net_iov that goes to a page pool.
    pub(crate) fn index(iov: FreeIov) -> u32 {
        iov.into_raw()
    }

    /// Where something ends: at `offset` of the buffer with number `buffer` of `buffers` of that `size`.
    pub(crate) fn end(buffer: usize, offset: u32, size: u32, buffers: usize) -> End {
        End {
            last: netmem(buffer),
            offset,
            size,
            after: (buffers - buffer - 1) as u32,
        }
    }

    /// Whether a buffer follows those that a token stands for, in an area that begins with `start`.
    pub(crate) fn is_before(held: Held, buffer: usize, start: usize) -> bool {
        held.is_before(netmem(buffer), buffer - start)
    }

    /// What the token of a run stands for.
    pub(crate) fn held(run: &Run) -> Held {
        run.held()
    }

    /// The `netmem_ref` of a buffer.
    pub(crate) fn netmem(buffer: usize) -> usize {
        ((buffer + 1) * super::run::STRIDE) | 1
    }

    /// Whether `len` bytes at `offset` of a buffer follow.
    pub(crate) fn follow(end: &mut End, buffer: usize, offset: u32, len: u32) -> bool {
        end.follow(netmem(buffer), offset, len)
    }

    /// A net_iov that was handed out, and comes back.
    pub(crate) fn came_back(index: u32) -> FreeIov {
        FreeIov::from_raw(index)
    }
}
