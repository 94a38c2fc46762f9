// SPDX-License-Identifier: GPL-2.0

//! Sockets of KCM, which send and receive messages by TCP.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use crate::bpf;

/// `struct kcm_attach`.
#[repr(C)]
struct Attach {
    fd: i32,
    bpf_fd: i32,
}

/// Opens one that has a TCP connection for itself, where messages are so long.
pub fn over(socket: &impl AsFd, len: i32) -> io::Result<OwnedFd> {
    const AF_KCM: i32 = 41;
    const SIOCKCMATTACH: libc::Ioctl = 0x89e0;
    // SAFETY: Takes no pointers.
    let fd = unsafe { libc::socket(AF_KCM, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The kernel just made this file descriptor for us.
    let kcm = unsafe { OwnedFd::from_raw_fd(fd) };
    let program = bpf::message_length(len)?;
    let mut attach = Attach {
        fd: socket.as_fd().as_raw_fd(),
        bpf_fd: program.as_raw_fd(),
    };
    // SAFETY: `attach` is the argument of this ioctl.
    match unsafe { libc::ioctl(kcm.as_raw_fd(), SIOCKCMATTACH, &raw mut attach) } {
        0 => Ok(kcm),
        _ => Err(io::Error::last_os_error()),
    }
}
