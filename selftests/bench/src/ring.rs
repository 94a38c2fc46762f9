// SPDX-License-Identifier: GPL-2.0

//! Requests by io_uring: an entry for each, and a system call for as many as there is room for.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use devmem::token::SO_DEVMEM_DONTNEED;
use devmem::token::TokenRange;
use io_uring::IoUring;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::Fd;

/// Entries of a ring.
pub const ENTRIES: usize = 128;

/// What an entry asks for, and refers to.
pub trait Request {
    /// The entry. It may point to `self`, which stays where it is until the kernel is done.
    fn entry(&mut self, socket: Fd) -> squeue::Entry;
}

/// Tokens to return.
impl Request for TokenRange {
    fn entry(&mut self, socket: Fd) -> squeue::Entry {
        opcode::SetSockOpt::new(
            socket,
            libc::SOL_SOCKET as u32,
            SO_DEVMEM_DONTNEED as u32,
            (&raw const *self).cast(),
            size_of_val(self) as u32,
        )
        .build()
    }
}

/// A ring, and what its entries refer to.
pub struct Ring<T> {
    ring: IoUring,
    requests: Vec<T>,
}

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("requests", &self.requests.len())
            .finish_non_exhaustive()
    }
}

impl<T: Request> Ring<T> {
    /// A ring that has nothing to do.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(ENTRIES as u32)?,
            requests: Vec::with_capacity(ENTRIES),
        })
    }

    /// Puts requests into the ring: at most [`ENTRIES`].
    pub fn prepare(
        &mut self,
        socket: RawFd,
        requests: impl IntoIterator<Item = T>,
    ) -> io::Result<()> {
        self.requests.clear();
        for request in requests {
            assert!(self.requests.len() < ENTRIES, "too many for the ring");
            self.requests.push(request);
        }
        for request in &mut self.requests {
            let entry = request.entry(Fd(socket));
            // SAFETY: The vector never grows beyond what it was made for, so that its members stay where they
            // are for as long as the ring. They are next written to when the kernel is done with them.
            unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The system call: has the kernel do all of it.
    pub fn enter(&self) -> io::Result<usize> {
        self.ring.submit_and_wait(self.requests.len())
    }

    /// The sum of what the requests returned.
    pub fn finish(&mut self) -> io::Result<u64> {
        self.ring
            .completion()
            .map(|entry| {
                u64::try_from(entry.result())
                    .map_err(|_| io::Error::from_raw_os_error(-entry.result()))
            })
            .sum()
    }
}
