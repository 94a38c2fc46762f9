// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Waiting for a socket, and no longer than a while.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use std::time::Instant;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;

/// How long to wait before another look at a socket that keeps telling of something else.
pub(crate) const PAUSE: Duration = Duration::from_millis(2);

/// The end of a while that begins now: `None` if it is so long that it has none.
pub(crate) fn end_of(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// How long it is until then.
pub(crate) fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Waits until a socket is ready for `what`, or has an error to tell, which nobody needs to ask for; returns what
/// of that it is. Fails with [`TimedOut`](io::ErrorKind::TimedOut) at the deadline.
pub(crate) fn ready(
    socket: BorrowedFd<'_>,
    what: PollFlags,
    deadline: Option<Instant>,
) -> io::Result<PollFlags> {
    loop {
        let timeout = match deadline.map(left_until) {
            None => PollTimeout::NONE,
            Some(Duration::ZERO) => return Err(io::ErrorKind::TimedOut.into()),
            // Rounded up: a poll that ends early would be repeated at once.
            Some(left) => PollTimeout::try_from(left.saturating_add(Duration::from_millis(1)))
                .unwrap_or(PollTimeout::MAX),
        };
        let mut fds = [PollFd::new(socket, what)];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::Error::EINTR) => (),
            Ok(_) => return Ok(fds[0].revents().unwrap_or(PollFlags::empty())),
            Err(err) => return Err(err.into()),
        }
    }
}

/// What `source` tells next, or `None` if it tells nothing in that time. `try_next` does not wait.
pub(crate) fn next<S: AsFd, T, E: From<io::Error>>(
    source: &mut S,
    timeout: Duration,
    mut try_next: impl FnMut(&mut S) -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let deadline = end_of(timeout);
    loop {
        if let Some(next) = try_next(source)? {
            return Ok(Some(next));
        }
        match ready(source.as_fd(), PollFlags::POLLIN, deadline) {
            Ok(_) => (),
            Err(err) if err.kind() == io::ErrorKind::TimedOut => return Ok(None),
            Err(err) => return Err(err.into()),
        }
    }
}
