// SPDX-License-Identifier: GPL-2.0

//! Options of sockets, and what poll() says of them.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

/// Sets an option, of type `int` or whatever it takes.
pub fn set<T: Copy>(socket: &impl AsFd, level: i32, name: i32, value: T) -> io::Result<()> {
    // SAFETY: `value` is readable for the length given.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match ret {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An option of type `int`.
pub fn get(socket: &impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0;
    let mut len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is writable for `len` bytes.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &mut len,
        )
    };
    match ret {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What has happened to a socket: `POLLIN`, `POLLRDHUP`, `POLLPRI`, `POLLERR`, `POLLHUP`.
pub fn poll(socket: &impl AsFd) -> io::Result<i16> {
    let mut fd = libc::pollfd {
        fd: socket.as_fd().as_raw_fd(),
        events: libc::POLLIN | libc::POLLRDHUP | libc::POLLPRI,
        revents: 0,
    };
    // SAFETY: `fd` is one pollfd, which the kernel may write.
    match unsafe { libc::poll(&raw mut fd, 1, 0) } {
        0 | 1 => Ok(fd.revents),
        _ => Err(io::Error::last_os_error()),
    }
}
