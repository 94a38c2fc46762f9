// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Bytes of the program's own on their way into a socket: `IORING_OP_SEND`.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use io_uring::opcode;
use io_uring::types::Fd;
use log::warn;

use super::memory::Memory;
use super::ring::Member;
use super::ring::Ring;
use crate::socket::Socket;

/// `user_data` of the one request that there is at a time.
const SEND: u64 = 0;

/// Writes to a socket by io_uring what programs say beside device memory, and never waits: for one on a [`Ring`] that
/// is waited for anyway.
///
/// What it writes is copied, which is meant for little: what has to go with a lot goes from a dma-buf.
#[derive(Debug)]
pub struct Writer {
    /// `None` once it was leaked, or freed.
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: Member,
    /// The socket, for as long as there is a request: its own number may be another file's before that.
    fd: OwnedFd,
    memory: Memory,
    size: usize,
    /// What of the memory is still to be sent.
    left: std::ops::Range<usize>,
    sending: bool,
}

impl Writer {
    /// A writer that takes up to `size` bytes at once.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for 0 bytes, or more than a request can say; those of `mmap()`, and
    /// of `dup()`: `EMFILE`.
    pub fn on<'s>(ring: &Ring, socket: impl Into<Socket<'s>>, size: usize) -> io::Result<Self> {
        if u32::try_from(size).is_err() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let memory = Memory::new(size)?;
        let fd = socket.into().as_fd().try_clone_to_owned()?;
        Ok(Self {
            inner: Some(Inner {
                ring: ring.join()?,
                fd,
                memory,
                size,
                left: 0..0,
                sending: false,
            }),
        })
    }

    /// Takes from the front of these bytes what it has room for, and returns how many: none, if it is not done with what
    /// it took before. [`Ring::wait`] waits for that, too.
    ///
    /// # Errors
    ///
    /// Those of `send()` of what it took before, `EPIPE` and `ECONNRESET` say. None of these bytes were taken then.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inner = self.inner.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        inner.take_completions()?;
        if !inner.left.is_empty() || bytes.is_empty() {
            return Ok(0);
        }
        let len = bytes.len().min(inner.size);
        // SAFETY: The memory has room for as many, and no request reads it: there is none.
        unsafe {
            let to = inner.memory.at::<u8>(0, len);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len);
        }
        inner.left = 0..len;
        inner.request()?;
        Ok(len)
    }

    /// Whether the kernel has all that it took.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write).
    pub fn is_idle(&mut self) -> io::Result<bool> {
        let inner = self.inner.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        inner.take_completions()?;
        Ok(inner.left.is_empty())
    }
}

impl Inner {
    /// Adds a request to send what is left.
    fn request(&mut self) -> io::Result<()> {
        let len = self.left.len();
        let from = self.memory.at::<u8>(self.left.start, len);
        // It was checked that it is no more than that.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(Fd(self.fd.as_raw_fd()), from, len)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(SEND);
        // SAFETY: The bytes are in the memory, which outlives the request, and is not written before it has completed.
        unsafe { self.ring.push(entry) }?;
        self.sending = true;
        Ok(())
    }

    fn take_completions(&mut self) -> io::Result<()> {
        while let Some(entry) = self.ring.next() {
            self.sending = false;
            match entry.result() {
                // A signal; or a thread that ends takes its requests along.
                result if matches!(-result, libc::EINTR | libc::ECANCELED | libc::EAGAIN) => (),
                result => match usize::try_from(result) {
                    Ok(sent) => self.left.start += sent.min(self.left.len()),
                    Err(_) => {
                        self.left = 0..0;
                        return Err(io::Error::from_raw_os_error(-result));
                    }
                },
            }
        }
        if !self.sending && !self.left.is_empty() {
            self.request()?;
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        if let Err(err) = inner.ring.cancel_all(drop) {
            warn!("cancelling requests: {err}");
        }
        // As long as there is a request in flight, its memory must not be freed.
        if inner.ring.in_flight() > 0 {
            let Inner { fd, memory, .. } = inner;
            mem::forget((fd, memory));
        }
    }
}

// Miri does not know these system calls.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::Ipv4Addr;
    use std::net::Shutdown;
    use std::thread;
    use std::time::Duration;

    use crate::testing::connection;
    use crate::uring::ring::testing::ring;

    const LONG: Duration = Duration::from_secs(60);

    /// More than the socket takes at once, in parts of any size.
    #[test]
    fn all_of_it_arrives_in_order() {
        const LEN: usize = 8 << 20;
        let Some(ring) = ring(8) else { return };
        let (a, mut b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            b.read_to_end(&mut got).unwrap();
            got
        });
        let mut writer = Writer::on(&ring, &a, 300_000).unwrap();
        let mut left = &bytes[..];
        while !left.is_empty() {
            let part = left.len().min(1 + left.len() % 500_000);
            let taken = writer.write(&left[..part]).unwrap();
            assert!(taken <= 300_000);
            left = &left[taken..];
            if taken == 0 {
                ring.wait(Some(LONG)).unwrap();
            }
        }
        while !writer.is_idle().unwrap() {
            ring.wait(Some(LONG)).unwrap();
        }
        a.shutdown(Shutdown::Write).unwrap();
        assert!(reader.join().unwrap() == bytes);
    }

    #[test]
    fn a_peer_that_is_gone_is_told() {
        let Some(ring) = ring(8) else { return };
        let (a, b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut writer = Writer::on(&ring, &a, 1000).unwrap();
        drop(b);
        let err = loop {
            match writer.write(&[0; 1000]) {
                Ok(0) => ring.wait(Some(LONG)).unwrap(),
                Ok(_) => (),
                Err(err) => break err,
            }
        };
        let errno = err.raw_os_error();
        assert!(
            [Some(libc::EPIPE), Some(libc::ECONNRESET)].contains(&errno),
            "{err}"
        );
    }

    /// A peer that does not read, so that there is a request in flight for as long as this is there.
    #[test]
    fn who_goes_leaves_nothing_in_flight() {
        let Some(ring) = ring(8) else { return };
        let (a, _b) = connection(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut writer = Writer::on(&ring, &a, 64 << 20).unwrap();
        writer.write(&vec![0; 64 << 20]).unwrap();
        ring.submit().unwrap();
        assert!(!writer.is_idle().unwrap());
        drop(writer);
        ring.submit().unwrap();
        let err = ring.wait(Some(Duration::from_millis(1))).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
    }
}
