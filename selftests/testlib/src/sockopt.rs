// SPDX-License-Identifier: GPL-2.0

//! Options of sockets, and what poll() says of them.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::time::Duration;

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
    let events = libc::POLLIN | libc::POLLRDHUP | libc::POLLPRI;
    poll_for(socket, events, Duration::ZERO)
}

/// Waits until one of these has happened to a socket, or `POLLERR` or `POLLHUP`. 0 if none has in time.
pub fn poll_for(socket: &impl AsFd, events: i16, timeout: Duration) -> io::Result<i16> {
    let mut fd = libc::pollfd {
        fd: socket.as_fd().as_raw_fd(),
        events,
        revents: 0,
    };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `fd` is one pollfd, which the kernel may write.
    match unsafe { libc::poll(&raw mut fd, 1, timeout) } {
        0 | 1 => Ok(fd.revents),
        _ => Err(io::Error::last_os_error()),
    }
}
