// SPDX-License-Identifier: GPL-2.0

//! A message to send, by a system call or by a request to io_uring.

use std::io;
use std::mem;
use std::os::fd::RawFd;

use devmem::cmsg;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::Fd;

use crate::ring::Request;

/// Bytes in one piece, of the process or of a dma-buf.
pub struct Message {
    header: libc::msghdr,
    iov: libc::iovec,
    control: Option<[u8; cmsg::TX_SPACE]>,
    flags: i32,
}

impl Message {
    /// Of `iov`: memory of the process, or an offset in the dma-buf that `control` tells.
    pub fn new(iov: libc::iovec, control: Option<[u8; cmsg::TX_SPACE]>, flags: i32) -> Self {
        Self {
            // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
            header: unsafe { mem::zeroed() },
            iov,
            control,
            flags,
        }
    }

    /// The system call; returns how many bytes were sent.
    pub fn send(&mut self, socket: RawFd) -> io::Result<u64> {
        let flags = self.flags;
        // SAFETY: The header points to an iovec and a control buffer, readable for the lengths given. The memory of
        // the process that the iovec tells is only read.
        let ret = unsafe { libc::sendmsg(socket, self.header(), flags) };
        u64::try_from(ret).map_err(|_| io::Error::last_os_error())
    }

    fn header(&mut self) -> &libc::msghdr {
        self.header.msg_iov = &mut self.iov;
        self.header.msg_iovlen = 1;
        if let Some(control) = &mut self.control {
            self.header.msg_control = control.as_mut_ptr().cast();
            self.header.msg_controllen = control.len();
        }
        &self.header
    }
}

impl Request for Message {
    fn entry(&mut self, socket: Fd) -> squeue::Entry {
        let flags = self.flags as u32;
        opcode::SendMsg::new(socket, self.header())
            .flags(flags)
            .build()
    }
}
