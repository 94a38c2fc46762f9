// SPDX-License-Identifier: GPL-2.0

//! Tokens that go back by io_uring: an entry for each, and a system call for as many as there is room for.

use std::fmt;
use std::io;
use std::os::fd::RawFd;

use devmem::token::SO_DEVMEM_DONTNEED;
use devmem::token::TokenRange;
use io_uring::IoUring;
use io_uring::opcode;
use io_uring::types::Fd;

/// Entries of a ring.
pub const ENTRIES: usize = 128;

/// A ring, and what its entries refer to.
pub struct Ring {
    ring: IoUring,
    ranges: Vec<TokenRange>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring that has nothing to do.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(ENTRIES as u32)?,
            ranges: Vec::with_capacity(ENTRIES),
        })
    }

    /// Puts requests to return these ranges into the ring, one for each: at most [`ENTRIES`].
    pub fn prepare(&mut self, socket: RawFd, ranges: &[TokenRange]) -> io::Result<()> {
        assert!(ranges.len() <= ENTRIES, "too many for the ring");
        self.ranges.clear();
        self.ranges.extend_from_slice(ranges);
        for range in &self.ranges {
            let entry = opcode::SetSockOpt::new(
                Fd(socket),
                libc::SOL_SOCKET as u32,
                SO_DEVMEM_DONTNEED as u32,
                (&raw const *range).cast(),
                size_of_val(range) as u32,
            )
            .build();
            // SAFETY: The vector never grows beyond what it was made for, so that its members stay where they
            // are for as long as the ring. They are only read.
            unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The system call: has the kernel do all of it.
    pub fn enter(&self, requests: usize) -> io::Result<usize> {
        self.ring.submit_and_wait(requests)
    }

    /// How many tokens were returned.
    pub fn finish(&mut self) -> io::Result<u32> {
        let mut returned = 0;
        for entry in self.ring.completion() {
            returned += u32::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()))?;
        }
        Ok(returned)
    }
}
