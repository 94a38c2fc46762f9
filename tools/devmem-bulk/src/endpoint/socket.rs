// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How the sockets of an endpoint tell that the peer is gone.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

/// After that long without an answer of its kernel a peer is gone.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// After so many seconds without a word its kernel is asked.
const PROBE: u32 = 5;

/// Has a socket tell that its peer is gone, if that does not say so: also one that takes nothing of what has come for it
/// for so long.
pub(crate) fn hear_of_death(socket: &TcpStream, stall: Option<Duration>) -> io::Result<()> {
    if let Some(stall) = stall {
        let stall = u32::try_from(stall.as_millis()).unwrap_or(u32::MAX);
        setsockopt(socket, sockopt::TcpUserTimeout, &stall)?;
    }
    // Who waits for the peer sends nothing that would be acknowledged, but for this.
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &PROBE)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &PROBE)?;
    Ok(())
}

/// Whether an error of a socket says that the peer is gone.
pub(super) fn is_gone(err: &io::Error) -> bool {
    // A socket whose time is over tells what a router has said last, if one did.
    matches!(
        err.raw_os_error(),
        Some(
            libc::ECONNRESET
                | libc::EPIPE
                | libc::ETIMEDOUT
                | libc::EHOSTUNREACH
                | libc::EHOSTDOWN
                | libc::ENETUNREACH
                | libc::ENETDOWN
                | libc::ENONET
                | libc::ECONNREFUSED
        )
    )
}
