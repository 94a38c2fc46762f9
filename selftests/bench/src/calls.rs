// SPDX-License-Identifier: GPL-2.0

//! System calls and nothing else, measured one by one.

use std::io;
use std::mem;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use devmem::cmsg;
use devmem::cmsg::DevmemCmsg;
use devmem::cmsg::DevmemCmsgs;
use devmem::recv::MSG_SOCK_DEVMEM;
use devmem::token::MAX_RANGES;
use devmem::token::MAX_TOKENS;
use devmem::token::TokenRange;
use devmem::token::dontneed;

use crate::clock::Clock;
use crate::ring::ENTRIES;
use crate::ring::Ring;

/// What calls of one kind have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// By the clock.
    pub ticks: u64,
    /// How many calls there were.
    pub calls: u64,
}

impl Cost {
    /// Adds a call.
    pub fn add(&mut self, ticks: u64) {
        self.ticks += ticks;
        self.calls += 1;
    }
}

/// How tokens go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// Each with a call of its own.
    OneByOne,
    /// As many ranges in a call as the kernel takes, of one token each.
    Ranges,
    /// Consecutive tokens as one range.
    Merged,
    /// The same, and there is one token for all frags that follow each other, if the provider does that.
    Runs,
    /// Each with a request of its own, but not a system call: by io_uring.
    Uring,
}

impl Tokens {
    /// What the records call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneByOne => "one by one",
            Self::Ranges => "128 ranges",
            Self::Merged => "merged",
            Self::Runs => "runs",
            Self::Uring => "io_uring",
        }
    }
}

/// Receives from one socket.
#[derive(Debug)]
pub struct Caller<'s> {
    clock: Clock,
    socket: &'s TcpStream,
    data: Vec<u8>,
    control: Vec<u8>,
    ring: Option<Ring<TokenRange>>,
    /// Tokens that were received and are not given back yet.
    pub tokens: Vec<u32>,
    /// Pieces of device memory so far.
    pub frags: u64,
    /// Bytes in them.
    pub frag_bytes: u64,
    /// What receiving has cost.
    pub recv: Cost,
    /// What giving tokens back has cost.
    pub dontneed: Cost,
}

impl<'s> Caller<'s> {
    /// Takes up to `data` bytes and `frags` pieces with a call.
    pub fn new(clock: Clock, socket: &'s TcpStream, data: usize, frags: usize) -> Self {
        Self {
            clock,
            socket,
            // Written to, so that there is memory behind it.
            data: vec![1; data],
            control: vec![1; frags * cmsg::SPACE],
            ring: None,
            tokens: Vec::with_capacity(1 << 17),
            frags: 0,
            frag_bytes: 0,
            recv: Cost::default(),
            dontneed: Cost::default(),
        }
    }

    /// Forgets what was measured so far.
    pub fn reset(&mut self) {
        self.recv = Cost::default();
        self.dontneed = Cost::default();
        self.frags = 0;
        self.frag_bytes = 0;
    }

    /// Receives once into ordinary memory; returns how many bytes.
    pub fn recv_copy(&mut self) -> io::Result<u64> {
        let (fd, data) = (self.socket.as_raw_fd(), &mut self.data);
        let (ret, ticks) = self.clock.measure(|| {
            // SAFETY: `data` is writable for its length.
            unsafe { libc::recv(fd, data.as_mut_ptr().cast(), data.len(), libc::MSG_DONTWAIT) }
        });
        let len = u64::try_from(ret).map_err(|_| io::Error::last_os_error())?;
        self.recv.add(ticks);
        Ok(len)
    }

    /// Receives once in device memory; returns how many bytes.
    pub fn recv_devmem(&mut self, flags: i32) -> io::Result<u64> {
        let mut iov = libc::iovec {
            iov_base: self.data.as_mut_ptr().cast(),
            iov_len: self.data.len(),
        };
        // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
        let mut msg: libc::msghdr = unsafe { mem::zeroed() };
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = self.control.as_mut_ptr().cast();
        msg.msg_controllen = self.control.len();
        let flags = flags | MSG_SOCK_DEVMEM | libc::MSG_DONTWAIT;
        let fd = self.socket.as_raw_fd();
        let (ret, ticks) = self.clock.measure(|| {
            // SAFETY: `msg` points to one iovec and a control buffer, both writable for their lengths.
            unsafe { libc::recvmsg(fd, &mut msg, flags) }
        });
        let len = u64::try_from(ret).map_err(|_| io::Error::last_os_error())?;
        self.recv.add(ticks);
        self.take_tokens(msg.msg_controllen, len)?;
        Ok(len)
    }

    fn take_tokens(&mut self, control: usize, len: u64) -> io::Result<()> {
        let mut bytes = 0;
        for cmsg in DevmemCmsgs::new(&self.control[..control]) {
            if let DevmemCmsg::Dmabuf(frag) = cmsg {
                self.tokens.push(frag.frag_token);
                self.frags += 1;
                bytes += u64::from(frag.frag_size);
            }
        }
        self.frag_bytes += bytes;
        match bytes == len {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "only {bytes} of {len} bytes are in device memory"
            ))),
        }
    }

    /// Gives back the tokens received since there were `kept` of them.
    pub fn give_back(&mut self, how: Tokens, kept: usize) -> io::Result<()> {
        let ranges = ranges(&self.tokens[kept..], how);
        let count = self.tokens.len() - kept;
        let per_call = match how {
            Tokens::OneByOne => 1,
            Tokens::Ranges | Tokens::Merged | Tokens::Runs => MAX_RANGES,
            Tokens::Uring => ENTRIES,
        };
        let mut returned = 0;
        let mut rest = &ranges[..];
        while !rest.is_empty() {
            let now = call_of(rest, per_call);
            let (ret, ticks) = match how {
                Tokens::Uring => self.by_ring(&rest[..now])?,
                _ => {
                    let (ret, ticks) = self.clock.measure(|| dontneed(self.socket, &rest[..now]));
                    (ret.map(u64::from), ticks)
                }
            };
            returned += ret?;
            self.dontneed.add(ticks);
            rest = &rest[now..];
        }
        self.tokens.truncate(kept);
        match returned == count as u64 {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "the kernel knew only {returned} of {count} tokens"
            ))),
        }
    }

    /// Returns these ranges by the ring, and what its system call has cost.
    fn by_ring(&mut self, ranges: &[TokenRange]) -> io::Result<(io::Result<u64>, u64)> {
        let ring = match &mut self.ring {
            Some(ring) => ring,
            none => none.insert(Ring::new()?),
        };
        ring.prepare(self.socket.as_raw_fd(), ranges.iter().copied())?;
        let (entered, ticks) = self.clock.measure(|| ring.enter());
        entered?;
        Ok((ring.finish(), ticks))
    }
}

/// How many of these ranges a call takes.
fn call_of(ranges: &[TokenRange], most: usize) -> usize {
    let mut tokens = 0;
    ranges
        .iter()
        .take(most)
        .take_while(|range| {
            tokens += range.count;
            tokens <= MAX_TOKENS
        })
        .count()
}

fn ranges(tokens: &[u32], how: Tokens) -> Vec<TokenRange> {
    let mut ranges: Vec<TokenRange> = Vec::with_capacity(tokens.len());
    for &token in tokens {
        match ranges.last_mut() {
            Some(last)
                if matches!(how, Tokens::Merged | Tokens::Runs)
                    && last.count < MAX_TOKENS
                    && last.start.checked_add(last.count) == Some(token) =>
            {
                last.count += 1;
            }
            _ => ranges.push(TokenRange {
                start: token,
                count: 1,
            }),
        }
    }
    ranges
}
