// SPDX-License-Identifier: GPL-2.0

//! Frags that the CPU cannot read, and user space: `recvmsg(MSG_SOCK_DEVMEM)`, `SO_DEVMEM_DONTNEED`
//! and `sendmsg()` with `SCM_DEVMEM_DMABUF`.
//!
//! A reader gets linear bytes copied, as from any socket. For a frag it gets a control message that
//! tells where in which dma-buf the bytes are, and a [token](crate::token) for it. A writer passes
//! offsets into a dma-buf, which become frags.

#![deny(unsafe_code)]

use kernel::prelude::*;

use crate::{
    binding::TxBinding,
    module_parameters,
    sys::{
        iov_iter::OffsetRanges,
        netmem::{
            CountedIov,
            DevmemIov, //
        },
        skbuff::{
            Frag,
            SkBuff,
            TxSkBuff, //
        },
        sock::{
            Message,
            Sock, //
        },
    },
    token::{
        Range,
        Reserved, //
    },
    window::Window, //
};

/// How many returned frags wait for the token table's lock to be dropped.
const RETURN_BATCH: usize = 16;

/// Passes up to `len` bytes of `skb`, starting at `offset`, to the reader of `msg`.
///
/// Returns how many bytes were passed; what the reader did not get is still there for its next
/// call. Fails only if not a byte was passed:
///
/// - `ETOOSMALL`: no room for a control message.
/// - `EFAULT`: the reader's memory is not there.
/// - `ENODEV`: the frags are readable, or not of device memory.
/// - `ENOMEM`: no memory for tokens.
/// - `ENOBUFS`: the socket has as many tokens as `max_tokens` allows.
///
/// The frags may be of any binding and provider. Called with the socket locked. Can sleep.
///
/// Mirrors `tcp_recvmsg_dmabuf()` in [`net/ipv4/tcp.c`](srctree/net/ipv4/tcp.c).
pub(crate) fn recvmsg(
    sk: &Sock<'_>,
    skb: &SkBuff,
    offset: usize,
    msg: &mut Message<'_>,
    len: usize,
) -> Result<usize> {
    let mut walk = Walk {
        sk,
        msg,
        window: Window::new(offset, len),
        tokens: Reserved::new(),
        passed: 0,
    };
    let result = walk.skb(skb);

    match walk.finish() {
        0 => result.map(|()| 0),
        passed => Ok(passed),
    }
}

struct Walk<'a, 'm> {
    sk: &'a Sock<'a>,
    msg: &'a mut Message<'m>,
    window: Window,
    tokens: Reserved<DevmemIov<'a>>,
    passed: usize,
}

impl<'a> Walk<'a, '_> {
    fn skb(&mut self, skb: &'a SkBuff) -> Result {
        for part in skb.parts() {
            if part.has_readable_frags() {
                return Err(ENODEV);
            }
            self.linear(part.linear())?;
            self.frags(part.frags())?;
            if self.window.is_empty() {
                return Ok(());
            }
        }
        Err(EFAULT)
    }

    fn linear(&mut self, linear: &[u8]) -> Result {
        if let Some(part) = self.window.part(linear.len()) {
            self.msg.copy(&linear[part.offset..][..part.len])?;
            self.msg.put_linear(part.len)?;
            self.passed += part.len;
        }
        self.window.advance(linear.len());
        Ok(())
    }

    fn frags(&mut self, mut frags: &'a [Frag]) -> Result {
        while let Some((frag, rest)) = frags.split_first() {
            if self.window.is_empty() {
                break;
            }
            if let Some(part) = self.window.part(frag.size()) {
                let iov = frag.devmem_iov().ok_or(ENODEV)?;
                let (dmabuf_id, base) = iov.location();
                let offset = base + frag.offset() + part.offset as u64;
                let token = self.token(frags)?;

                self.msg.put_frag(dmabuf_id, offset, part.len, token)?;
                self.tokens.bind(iov);
                self.passed += part.len;
            }
            self.window.advance(frag.size());
            frags = rest;
        }
        Ok(())
    }

    /// A reserved token. If there is none left, reserves as many as the coming `frags` take.
    fn token(&mut self, frags: &[Frag]) -> Result<u32> {
        if self.tokens.peek().is_none() {
            let want = self.window.count(frags.iter().map(Frag::size));
            let mut table = self.sk.tokens();
            if let limit @ 1.. = module_parameters::max_tokens.value() {
                table.limit_to(limit);
            }
            self.tokens.refill(&mut table, want)?;
        }
        self.tokens.peek().ok_or(ENOMEM)
    }

    fn finish(mut self) -> usize {
        if !self.tokens.is_empty() {
            self.tokens.settle(&mut self.sk.tokens());
        }
        self.passed
    }
}

/// Takes the tokens in `ranges` back from the user.
///
/// Returns how many frags were given back. Tokens that the socket does not have do not count, and
/// do no harm, but are looked up; after [`MAX_DONTNEED_FRAGS`](crate::token::MAX_DONTNEED_FRAGS) of
/// them it ends. `EINVAL` if a range goes past the last possible token: then nothing is given back.
///
/// Process context.
///
/// Mirrors `sock_devmem_put_tokens()` in [`net/core/sock.c`](srctree/net/core/sock.c).
pub(crate) fn dontneed(
    sk: &Sock<'_>,
    ranges: impl Iterator<Item = Range> + Clone,
) -> Result<usize> {
    if ranges.clone().any(|range| range.wraps()) {
        return Err(EINVAL);
    }

    let mut tokens = Range::tokens(ranges);
    let mut returned = 0;
    loop {
        // Frags go back to their page pools when this is dropped, after the lock.
        let mut batch: [Option<CountedIov>; RETURN_BATCH] = [const { None }; RETURN_BATCH];
        let mut table = sk.tokens();
        let mut found = tokens.by_ref().filter_map(|token| table.take(token));
        let count = batch
            .iter_mut()
            .map_while(|slot| Some(slot.insert(found.next()?)))
            .count();

        returned += count;
        if count < RETURN_BATCH {
            return Ok(returned);
        }
    }
}

/// Appends up to `len` bytes of a dma-buf to `skb`: those at the first of `ranges`.
///
/// - `EMSGSIZE`: the skb has no room for more frags. What was appended before counts.
/// - `EFAULT`: a range is not in the dma-buf. The caller takes back what was appended before.
///
/// Called with the socket locked.
///
/// Mirrors `zerocopy_fill_skb_from_devmem()` in
/// [`net/core/datagram.c`](srctree/net/core/datagram.c).
pub(crate) fn fill(
    skb: &mut TxSkBuff<'_>,
    ranges: &mut OffsetRanges<'_>,
    mut len: usize,
    binding: &TxBinding,
) -> Result {
    let mut next = 0;

    while len != 0 {
        let Some(range) = ranges.first() else {
            break;
        };
        let (iov, place) = binding.locate(range.start, next).ok_or(EFAULT)?;
        let part = place.left.min(range.len).min(len);

        skb.append(iov, place.offset, part)?;
        ranges.advance(part);
        len -= part;
        next = place.extent + 1;
    }
    Ok(())
}
