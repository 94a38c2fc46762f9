// SPDX-License-Identifier: GPL-2.0

//! Page pools of memory providers as no module should have them, from the module `devmem_test`.

use std::io;
use std::os::fd::AsRawFd;

use crate::odd;

/// `struct devmem_test_ops`.
#[repr(C)]
struct Request {
    ifindex: u32,
    queue: u32,
    kind: u32,
}

mod ioctls {
    use super::Request;

    nix::ioctl_write_ptr!(ops, b'D', 0x45, Request);
}

/// Where ops lie, and what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Ops {
    /// In the read-only data of the module that they name.
    Good,
    /// There, too, but they name none.
    OfNobody,
    /// On the heap.
    Writable,
    /// On the heap, and the module that they name is there, too, and says that it has them in its read-only
    /// data.
    Forged,
}

/// Makes a page pool with such ops, for a queue that is not bound, of a device of the calling thread's namespace; and
/// ends it.
pub fn create_pool(ifindex: u32, queue: u32, ops: Ops) -> io::Result<()> {
    let request = Request {
        ifindex,
        queue,
        kind: ops as u32,
    };
    // SAFETY: The argument of this ioctl, which only reads it.
    unsafe { ioctls::ops(odd::device()?.as_raw_fd(), &request) }?;
    Ok(())
}
