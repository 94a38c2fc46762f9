// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What happens to a binding, told when the runtime says that the kernel has something to tell.

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;

use super::register;
use crate::Error;
use crate::status::Event;
use crate::watch;

/// That events were lost is an error, and may be all there is.
const READ: Interest = Interest::READABLE.add(Interest::ERROR);

/// Tells what happens to one binding, as [`crate::Watch`] does.
#[derive(Debug)]
pub struct Watch {
    inner: watch::Watch,
    readiness: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches the binding of this number, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Watch::of`]; [`Error::Io`]: those of `dup()` and `epoll_ctl()`.
    ///
    /// # Panics
    ///
    /// Outside of a runtime that has I/O enabled.
    pub fn of(id: u32) -> Result<Self, Error> {
        let inner = watch::Watch::of(id)?;
        Ok(Self {
            readiness: register(inner.as_fd(), READ)?,
            inner,
        })
    }

    /// Waits for what happens next. Then it asks the kernel how the binding is, which takes a system call or a few.
    ///
    /// # Errors
    ///
    /// Those of [`crate::Watch::try_next`].
    ///
    /// # Cancel safety
    ///
    /// What a future that was dropped would have told, the next one tells.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.inner.try_next()? {
                return Ok(event);
            }
            // What came since then is still to be read, whatever the runtime is told here.
            self.readiness.ready(READ).await?.clear_ready();
        }
    }
}
