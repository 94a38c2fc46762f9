// SPDX-License-Identifier: GPL-2.0

//! Requests as the kernel takes them, malformed ones too.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use devmem::cmsg;
use devmem::recv::MSG_SOCK_DEVMEM;
use devmem::token::SO_DEVMEM_DONTNEED;
use devmem_testlib::wait;
use io_uring::IoUring;
use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::squeue::Flags;
use io_uring::types::Fd;
use io_uring::types::SubmitArgs;
use io_uring::types::Timespec;

/// Nothing that works takes longer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A ring whose requests refer to memory that is never freed.
pub struct Raw {
    ring: IoUring,
}

/// Header, control and data buffer of a message.
#[repr(C)]
pub struct Message {
    pub header: libc::msghdr,
    pub iovec: libc::iovec,
    pub control: Vec<u8>,
    pub data: Vec<u8>,
}

impl Message {
    /// Never freed, so that requests may refer to it for as long as they like.
    pub fn leaked(data: usize, control: usize) -> *mut Self {
        let message = Box::leak(Box::new(Self {
            // SAFETY: All-zero is a valid msghdr and a valid iovec.
            header: unsafe { mem::zeroed() },
            // SAFETY: As above.
            iovec: unsafe { mem::zeroed() },
            control: vec![0; control],
            data: vec![0; data],
        }));
        message.iovec.iov_base = message.data.as_mut_ptr().cast();
        message.iovec.iov_len = data;
        message.header.msg_iov = &raw mut message.iovec;
        message.header.msg_iovlen = 1;
        message.header.msg_control = message.control.as_mut_ptr().cast();
        message.header.msg_controllen = control;
        message
    }

    /// Sends `len` bytes at `offset` of the dma-buf of a binding.
    pub fn to_send(dmabuf_id: u32, offset: usize, len: usize) -> *mut Self {
        let control = cmsg::tx_control(dmabuf_id);
        let message = Self::leaked(0, control.len());
        // SAFETY: It is leaked, and nobody else knows of it yet.
        let filled = unsafe { &mut *message };
        filled.control.copy_from_slice(&control);
        filled.iovec.iov_base = ptr::without_provenance_mut(offset);
        filled.iovec.iov_len = len;
        message
    }
}

impl Raw {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(16)?,
        })
    }

    /// Makes a request; what it refers to has to live forever.
    pub fn request(&mut self, entry: squeue::Entry, user_data: u64) -> io::Result<()> {
        // SAFETY: What the tests here pass is leaked or static.
        unsafe { self.ring.submission().push(&entry.user_data(user_data)) }
            .map_err(io::Error::other)?;
        Ok(())
    }

    /// Submits, and returns the completions that come until there are `count`.
    pub fn complete(&mut self, count: usize) -> io::Result<Vec<(u64, i32)>> {
        self.complete_all(count)
            .map(|all| all.iter().map(|e| (e.user_data(), e.result())).collect())
    }

    pub fn complete_all(&mut self, count: usize) -> io::Result<Vec<cqueue::Entry>> {
        let mut done = Vec::new();
        while done.len() < count {
            let timespec = Timespec::from(wait::patience(TIMEOUT));
            let args = SubmitArgs::new().timespec(&timespec);
            self.ring.submitter().submit_with_args(1, &args)?;
            done.extend(self.ring.completion());
        }
        Ok(done)
    }

    /// Submits, and returns the completions that are there already.
    pub fn submit(&mut self) -> io::Result<Vec<(u64, i32)>> {
        self.ring.submit()?;
        Ok(self
            .ring
            .completion()
            .map(|e| (e.user_data(), e.result()))
            .collect())
    }
}

/// A request to receive into device memory.
pub fn receive(socket: impl AsFd, message: *mut Message, flags: i32) -> squeue::Entry {
    receive_with(socket, message, flags | MSG_SOCK_DEVMEM)
}

/// A request to receive as any program does.
pub fn receive_plain(socket: impl AsFd, message: *mut Message) -> squeue::Entry {
    receive_with(socket, message, 0)
}

/// A request to wait until there is something to read.
pub fn poll_in(file: impl AsFd) -> squeue::Entry {
    opcode::PollAdd::new(Fd(file.as_fd().as_raw_fd()), libc::POLLIN as u32).build()
}

/// A request to receive data without control messages.
pub fn receive_data(socket: impl AsFd, len: usize, flags: i32) -> squeue::Entry {
    let data = vec![0u8; len].leak();
    opcode::Recv::new(
        Fd(socket.as_fd().as_raw_fd()),
        data.as_mut_ptr(),
        len as u32,
    )
    .flags(flags)
    .build()
}

fn receive_with(socket: impl AsFd, message: *mut Message, flags: i32) -> squeue::Entry {
    // SAFETY: The message is leaked, and only its address is taken.
    let header = unsafe { &raw mut (*message).header };
    opcode::RecvMsg::new(Fd(socket.as_fd().as_raw_fd()), header)
        .flags(flags as u32)
        .build()
}

/// A request to return tokens: `words` of leaked memory, as so many bytes.
pub fn dontneed(socket: impl AsFd, words: &[u32], bytes: u32) -> squeue::Entry {
    let words = words.to_vec().leak();
    dontneed_at(socket, words.as_ptr().cast(), bytes)
}

/// As above, with a pointer that may be bad.
pub fn dontneed_at(socket: impl AsFd, at: *const libc::c_void, bytes: u32) -> squeue::Entry {
    opcode::SetSockOpt::new(
        Fd(socket.as_fd().as_raw_fd()),
        libc::SOL_SOCKET as u32,
        SO_DEVMEM_DONTNEED as u32,
        at,
        bytes,
    )
    .build()
}

/// Has the next request wait for this one.
pub fn linked(entry: squeue::Entry) -> squeue::Entry {
    entry.flags(Flags::IO_LINK)
}

/// A request to send.
pub fn send(socket: impl AsFd, message: *mut Message, flags: i32) -> squeue::Entry {
    // SAFETY: The message is leaked, and only its address is taken.
    let header = unsafe { &raw const (*message).header };
    opcode::SendMsg::new(Fd(socket.as_fd().as_raw_fd()), header)
        .flags(flags as u32)
        .build()
}

/// A request to send without a copy, as io_uring does that.
pub fn send_zc(socket: impl AsFd, message: *mut Message) -> squeue::Entry {
    // SAFETY: The message is leaked, and only its address is taken.
    let header = unsafe { &raw const (*message).header };
    opcode::SendMsgZc::new(Fd(socket.as_fd().as_raw_fd()), header).build()
}
