// SPDX-License-Identifier: GPL-2.0

//! Frags that the CPU cannot read, and user space: `recvmsg(MSG_SOCK_DEVMEM)`, `SO_DEVMEM_DONTNEED`
//! and `sendmsg()` with `SCM_DEVMEM_DMABUF`.
//!
//! A reader gets linear bytes copied, as from any socket. For a frag it gets a control message that
//! tells where in which dma-buf the bytes are, and a [token](crate::sys::token) for it. A writer passes
//! offsets into a dma-buf, which become frags. A reader who takes that gets one control message, with one token, for frags
//! that follow each other.

#![deny(unsafe_code)]

use kernel::prelude::*;

use crate::{
    cmsg,
    module_parameters,
    sys::{
        claim::may_be_revoked,
        iov_iter::OffsetRanges,
        run::{
            End,
            Run, //
        },
        skbuff::{
            Frag,
            RxSkBuff,
            TxSkBuff, //
        },
        sock::{
            cond_resched,
            FragMessage,
            LockedSock,
            Message,
            Sock, //
        },
        token::{
            self,
            Range, //
        },
        window::{
            Part,
            Window, //
        }, //
    }, //
};

/// Passes up to `len` bytes of `skb`, starting at `offset`, to the reader of `msg`.
///
/// Returns how many bytes were passed; what the reader did not get is still there for its next
/// call. Fails only if not a byte was passed:
///
/// - `ETOOSMALL`: no room for a control message.
/// - `EFAULT`: the reader's memory is not there.
/// - `ENODEV`: the frags are readable, or not of device memory.
/// - `EIO`: the frags are in memory that was taken back.
/// - `ENOMEM`: no memory for tokens.
/// - `ENOBUFS`: the socket has as many tokens as `max_tokens` allows, or a binding of the frags.
///
/// The frags may be of any binding and provider. Can sleep.
///
/// Mirrors `tcp_recvmsg_dmabuf()` in [`net/ipv4/tcp.c`](srctree/net/ipv4/tcp.c).
pub(crate) fn recvmsg(
    sk: &LockedSock<'_>,
    skb: &mut RxSkBuff<'_>,
    offset: usize,
    msg: &mut Message<'_>,
    len: usize,
) -> Result<usize> {
    let mut tokens = sk.reader_tokens(skb, max_tokens(skb));
    let parts = skb.parts().map(|part| cmsg::Part {
        readable: part.has_readable_frags(),
        may_be_revoked: may_be_revoked(),
        linear: part.linear(),
        frags: part.take_frags(),
    });
    let window = Window::new(offset, len);

    cmsg::pass(parts, window, msg, &mut tokens)
}

/// How many tokens a socket may hold in all to get one for `skb`.
fn max_tokens(skb: &RxSkBuff<'_>) -> u32 {
    match module_parameters::max_tokens.value() {
        0 => skb.max_tokens(),
        most => skb.max_tokens().min(most),
    }
}

impl cmsg::Frag for Frag {
    fn size(&self) -> usize {
        Frag::size(self)
    }

    fn place(&self) -> Option<cmsg::Place> {
        let (dmabuf_id, base) = self.devmem_iov()?.location();

        Some(cmsg::Place {
            dmabuf_id,
            offset: base + self.offset(),
        })
    }

    fn is_revoked(&self) -> bool {
        self.devmem_iov().is_some_and(|iov| iov.is_revoked())
    }

    fn end(&self, part: Part) -> Option<End> {
        Frag::end(self, part)
    }

    #[inline]
    fn follows(&self, part: Part, end: &mut End) -> bool {
        Frag::follows(self, part, end)
    }
}

impl cmsg::Reader for Message<'_> {
    type Error = Error;
    type Message = FragMessage;

    fn copy(&mut self, data: &[u8]) -> Result {
        Message::copy(self, data)
    }

    fn put_linear(&mut self, len: usize) -> Result {
        Message::put_linear(self, len)
    }

    fn put_frags(&mut self, messages: &[FragMessage]) -> Result<(), (usize, Error)> {
        Message::put_frags(self, messages)
    }

    fn takes_runs(&self) -> bool {
        Message::takes_runs(self)
    }

    fn last_run(&self) -> Option<Run> {
        Message::last_run(self)
    }

    fn set_last_run(&mut self, run: Option<Run>) {
        Message::set_last_run(self, run);
    }

    fn set_last_len(&mut self, len: u32) -> Result {
        Message::set_last_len(self, len)
    }
}

impl From<cmsg::FragInfo> for FragMessage {
    fn from(frag: cmsg::FragInfo) -> Self {
        Self::new(frag.dmabuf_id, frag.offset, frag.len, frag.token)
    }
}

impl From<cmsg::Stop> for Error {
    fn from(stop: cmsg::Stop) -> Self {
        match stop {
            cmsg::Stop::NotDeviceMemory => ENODEV,
            cmsg::Stop::Revoked => EIO,
            cmsg::Stop::EndOfPacket => EFAULT,
        }
    }
}

/// Takes the tokens in `ranges` back from the user.
///
/// Returns how many tokens there were. Those that the socket does not have do not count, and
/// do no harm, but are looked up; after [`MAX_DONTNEED_FRAGS`](crate::sys::token::MAX_DONTNEED_FRAGS) of
/// them it ends.
///
/// Process context.
///
/// Mirrors `sock_devmem_put_tokens()` in [`net/core/sock.c`](srctree/net/core/sock.c).
pub(crate) fn dontneed(sk: &Sock<'_>, ranges: impl Iterator<Item = Range>) -> usize {
    token::take_back(ranges, || {
        // Of tokens that stand for many net_iovs each there may be many.
        cond_resched();
        sk.tokens()
    })
}

/// Appends bytes of a dma-buf to `skb`, as many as are wanted: those at the first of `ranges`.
///
/// - `EMSGSIZE`: the skb has no room for more frags. What was appended before counts.
/// - `EFAULT`: a range is not in the dma-buf. The caller takes back what was appended before.
///
/// Called with the socket locked.
///
/// Mirrors `zerocopy_fill_skb_from_devmem()` in
/// [`net/core/datagram.c`](srctree/net/core/datagram.c).
#[inline]
pub(crate) fn fill(skb: &mut TxSkBuff<'_>, ranges: &mut OffsetRanges<'_>) -> Result {
    while skb.append(ranges)? {}
    Ok(())
}
