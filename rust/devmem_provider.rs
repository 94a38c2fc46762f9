// SPDX-License-Identifier: GPL-2.0

//! Device-memory TCP: a memory provider that receives into dma-bufs, and sends from them.
//!
//! Registers with the core of device memory, which from then on has new bindings served from here:
//!
//! - [`netlink`]: bind-rx and bind-tx requests,
//! - [`skb_frag`]: what user space receives, gives back, and sends.
//!
//! Beneath these is plain logic that also compiles without a kernel, for its tests: [`cmsg`], and
//! what [`sys`] rests on. All that is unsafe is in [`sys`], which wraps the C side. The
//! compiler sees to that.
//!
//! C header: [`include/net/devmem.h`](srctree/include/net/devmem.h)

#![deny(unsafe_code)]

use kernel::prelude::*;

use crate::sys::{
    devmem::{
        DevmemProvider,
        MemoryProvider,
        ProviderModule,
        RxBound,
        TxBound, //
    },
    dma_buf::Mapping,
    genetlink::{
        RxBindRequest,
        TxBindRequest, //
    },
    iov_iter::OffsetRanges,
    skbuff::{
        RxSkBuff,
        TxSkBuff, //
    },
    sock::{
        LockedSock,
        Message,
        Sock, //
    },
    token::Range, //
};

mod cmsg;
mod netlink;
mod skb_frag;
#[expect(unsafe_code)]
mod sys;

module! {
    type: ProviderModule<DmabufProvider>,
    name: "devmem_provider",
    authors: ["devmem_provider developers"],
    description: "Device memory provider for device-memory TCP",
    license: "GPL",
    imports_ns: ["DMA_BUF", "NETDEV_INTERNAL"],
    params: {
        max_tokens: u32 {
            default: 0,
            description: "Most tokens of a socket, 0 for no limit (0)",
        },
    },
}

/// The provider: memory is that of a dma-buf, and page pools get it as they ask.
struct DmabufProvider;

impl MemoryProvider for DmabufProvider {
    type Source = Mapping;
}

#[vtable]
impl DevmemProvider for DmabufProvider {
    const NAME: &'static CStr = c"devmem_provider";
    const RUNS: bool = true;

    fn bind_rx<'a>(request: &'a RxBindRequest<'_>) -> Result<RxBound<'a>> {
        netlink::bind_rx::<Self>(request)
    }

    fn bind_tx<'a>(request: &'a TxBindRequest<'_>) -> Result<TxBound<'a>> {
        netlink::bind_tx::<Self>(request)
    }

    fn recvmsg(
        sk: &LockedSock<'_>,
        skb: &mut RxSkBuff<'_>,
        offset: usize,
        msg: &mut Message<'_>,
        len: usize,
    ) -> Result<usize> {
        skb_frag::recvmsg(sk, skb, offset, msg, len)
    }

    fn dontneed(sk: &Sock<'_>, ranges: impl Iterator<Item = Range>) -> usize {
        skb_frag::dontneed(sk, ranges)
    }

    fn fill(skb: &mut TxSkBuff<'_>, ranges: &mut OffsetRanges<'_>) -> Result {
        skb_frag::fill(skb, ranges)
    }
}
