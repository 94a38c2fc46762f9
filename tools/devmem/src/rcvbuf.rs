// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How much of what nobody reads the kernel takes for a socket.
//!
//! What comes by a connection to a steered port lands in the bound memory, whoever sent it, and stays there until it is
//! read, or the connection is closed. A program that does not know yet whether it wants a connection can [`shut`] it.

use std::io;
use std::os::fd::AsFd;

use crate::tcp;

/// The receive buffer of a socket that was [`shut`]: what it was before.
#[derive(Debug)]
#[must_use = "the connection stays shut"]
pub struct Shut {
    size: i32,
    locked: i32,
}

/// Has the kernel take next to nothing more for a TCP socket that nobody reads: a packet, or two. Whoever sends more has it
/// dropped, and sends it again.
///
/// # Errors
///
/// Those of `getsockopt()` and `setsockopt()`: `ENOPROTOOPT` by a kernel before 5.15, which could not undo it.
pub fn shut(socket: impl AsFd) -> io::Result<Shut> {
    let before = Shut {
        size: number(&socket, libc::SO_RCVBUF)?,
        locked: number(&socket, libc::SO_BUF_LOCK)?,
    };
    // It becomes the least that there is.
    set(&socket, libc::SO_RCVBUF, 0)?;
    Ok(before)
}

impl Shut {
    /// Has the kernel take as much as before, and choose how much that is if it did.
    ///
    /// # Errors
    ///
    /// Those of `setsockopt()`.
    pub fn reopen(self, socket: impl AsFd) -> io::Result<()> {
        // The kernel doubles what it is told.
        set(&socket, libc::SO_RCVBUF, self.size / 2)?;
        set(&socket, libc::SO_BUF_LOCK, self.locked)
    }
}

fn number(socket: impl AsFd, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    tcp::option(socket.as_fd(), libc::SOL_SOCKET, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

fn set(socket: impl AsFd, name: i32, value: i32) -> io::Result<()> {
    tcp::set_number(socket.as_fd(), libc::SOL_SOCKET, name, value)
}

// Miri does not know these system calls.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::net::TcpListener;
    use std::net::TcpStream;

    fn state(socket: &TcpStream) -> (i32, i32) {
        (
            number(socket, libc::SO_RCVBUF).unwrap(),
            number(socket, libc::SO_BUF_LOCK).unwrap(),
        )
    }

    #[test]
    fn a_socket_that_was_shut_becomes_what_it_was() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for size in [None, Some(50_000)] {
            if let Some(size) = size {
                set(&socket, libc::SO_RCVBUF, size).unwrap();
            }
            let before = state(&socket);
            let shut = shut(&socket).unwrap();
            assert!(state(&socket).0 < 8192, "{:?}", state(&socket));
            shut.reopen(&socket).unwrap();
            assert_eq!(state(&socket), before);
        }
    }
}
