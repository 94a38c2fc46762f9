// SPDX-License-Identifier: GPL-2.0

//! What a provider is.

use kernel::{
    error::VTABLE_DEFAULT_ERROR,
    prelude::*, //
};

use super::{
    super::{
        free_list::BATCH,
        genetlink::{
            RxBindRequest,
            TxBindRequest, //
        },
        iov_iter::OffsetRanges,
        memory::{
            Iovs,
            Refill,
            Returned, //
        },
        skbuff::{
            RxSkBuff,
            TxSkBuff, //
        },
        sock::{
            LockedSock,
            Message,
            Sock, //
        },
        source::Source,
        token::Range, //
    },
    bound::{
        RxBound,
        TxBound, //
    }, //
};

/// What page pools are given buffers of.
///
/// What has to be right for the device not to write elsewhere is not asked of a provider, but done for it:
/// a page pool of another buffer size is refused (`E2BIG`), each holds its binding until its last buffer came
/// back, and nobody but a device and its driver sees the buffers.
pub(crate) trait MemoryProvider: Sized + 'static {
    /// Where the memory of its bindings comes from.
    type Source: Source;

    /// A page pool has run dry. What it does not get it asks for again.
    ///
    /// Usually softirq context, and often called: must not sleep.
    #[inline]
    fn alloc_netmems(refill: Refill<'_>) {
        refill.take_free(BATCH);
    }

    /// A page pool has given up buffers. Process or softirq context: must not sleep.
    #[inline]
    fn release_netmems(returned: Returned<'_, impl Iovs>) {
        returned.put();
    }
}

/// A provider of device memory.
///
/// What it does not implement the core does by itself: it has the built-in provider serve bind-tx, which
/// needs [`fill`](Self::fill); it tells readers where frags are; and it takes back tokens.
#[vtable]
pub(crate) trait DevmemProvider: MemoryProvider {
    /// What the `net.core.devmem_provider` sysctl calls it.
    const NAME: &'static CStr;

    /// Whether [`recvmsg`](Self::recvmsg) tells readers [that take it](Message::takes_runs) of runs of frags.
    const RUNS: bool = false;

    /// Serves a bind-rx request. A binding that is on no queue is refused (`EINVAL`). Process context, lock
    /// of the netlink socket held.
    fn bind_rx<'a>(request: &'a RxBindRequest<'_>) -> Result<RxBound<'a>>;

    /// Serves a bind-tx request. Process context, lock of the netlink socket held.
    fn bind_tx<'a>(_request: &'a TxBindRequest<'_>) -> Result<TxBound<'a>> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Passes up to `len` bytes of `skb`, starting at `offset`, to the reader of `msg`. Returns how many.
    /// Fails only if there were none, and then has to (`EFAULT` if it does not). Process context, socket locked.
    ///
    /// The first frag is of a binding of this provider, the others may be of any. Who hands out tokens has the socket
    /// hold no more than [`RxSkBuff::max_tokens`].
    fn recvmsg(
        _sk: &LockedSock<'_>,
        _skb: &mut RxSkBuff<'_>,
        _offset: usize,
        _msg: &mut Message<'_>,
        _len: usize,
    ) -> Result<usize> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Takes the tokens in `ranges` back from the user, whichever provider's they are. Returns how many
    /// there were. Process context.
    fn dontneed(_sk: &Sock<'_>, _ranges: impl Iterator<Item = Range>) -> usize {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// [Appends](TxSkBuff::append) what `ranges` say to `skb`, as long as that wants more. `EMSGSIZE` if the
    /// skb is full. After `EFAULT` the caller takes back what was appended, and `sendmsg()` fails. After any other
    /// error, or none, it goes on from what was appended: if that is nothing, `sendmsg()` fails (`EFAULT`). Process
    /// context, socket locked.
    fn fill(_skb: &mut TxSkBuff<'_>, _ranges: &mut OffsetRanges<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}
