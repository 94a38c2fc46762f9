// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An io_uring instance, and the count of what it has in flight.

use std::fmt;
use std::io;
use std::time::Duration;

use io_uring::IoUring;
use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::CancelBuilder;
use io_uring::types::SubmitArgs;
use io_uring::types::Timespec;

/// `user_data` of a request to cancel others.
const CANCEL: u64 = u64::MAX;
/// After this long, whatever is left is cancelled once more.
const CANCEL_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct Ring {
    uring: IoUring,
    /// Requests made and not completed.
    in_flight: usize,
    /// How the next calls of `enter()` fail, without the requests being made or with.
    #[cfg(test)]
    pub(super) failures: std::collections::VecDeque<(i32, bool)>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Ring {
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        // A request that is malformed shall not hold up those behind it.
        let uring = IoUring::builder()
            .dontfork()
            .setup_submit_all()
            .build(entries)?;
        Ok(Self {
            uring,
            in_flight: 0,
            #[cfg(test)]
            failures: Default::default(),
        })
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.uring.submitter()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Adds a request, which is made with the next [`enter`](Self::enter).
    ///
    /// # Safety
    ///
    /// What the entry refers to has to stay where it is, and to be touched by nobody, until the last
    /// completion of the request.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.uring.submission().is_full() {
            self.enter(0, None)?;
        }
        // SAFETY: As the caller guarantees.
        unsafe { self.uring.submission().push(entry) }.map_err(io::Error::other)?;
        self.in_flight += 1;
        Ok(())
    }

    /// Makes the requests added, and waits for `want` completions: no longer than `timeout`, after
    /// which it fails with [`TimedOut`](io::ErrorKind::TimedOut).
    pub(super) fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        #[cfg(test)]
        if let Some((errno, made)) = self.failures.pop_front() {
            if made {
                self.uring.submit_and_wait(want)?;
            }
            return Err(io::Error::from_raw_os_error(errno));
        }
        let result = match timeout {
            None => self.uring.submit_and_wait(want),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timespec);
                self.uring.submitter().submit_with_args(want, &args)
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(err) => match err.raw_os_error() {
                // Completions have to be taken first, or a signal came: the caller tries again.
                Some(libc::EBUSY | libc::EAGAIN | libc::EINTR) => Ok(()),
                Some(libc::ETIME) => Err(io::ErrorKind::TimedOut.into()),
                _ => Err(err),
            },
        }
    }

    /// Whether there are requests that no [`enter`](Self::enter) has made yet.
    pub(super) fn has_new(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// The next completion, if there is one.
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        loop {
            let entry = self.uring.completion().next()?;
            if !cqueue::more(entry.flags()) {
                self.in_flight -= 1;
            }
            if entry.user_data() != CANCEL {
                return Some(entry);
            }
        }
    }

    /// Cancels the requests with this `user_data`, without waiting for that.
    pub(super) fn cancel(&mut self, user_data: u64) -> io::Result<()> {
        self.push_cancel(CancelBuilder::user_data(user_data).all())
    }

    fn push_cancel(&mut self, which: CancelBuilder) -> io::Result<()> {
        let entry = opcode::AsyncCancel2::new(which).build().user_data(CANCEL);
        // SAFETY: The entry refers to no memory.
        unsafe { self.push(&entry) }
    }

    /// Cancels everything in flight and waits until that has completed. After it nothing that this ring
    /// was given is used any more.
    pub(super) fn cancel_all(&mut self, mut each: impl FnMut(cqueue::Entry)) -> io::Result<()> {
        while self.in_flight > 0 {
            self.push_cancel(CancelBuilder::any())?;
            match self.enter(self.in_flight, Some(CANCEL_AGAIN)) {
                Err(err) if err.kind() != io::ErrorKind::TimedOut => return Err(err),
                _ => (),
            }
            while let Some(entry) = self.next() {
                each(entry);
            }
        }
        Ok(())
    }
}
