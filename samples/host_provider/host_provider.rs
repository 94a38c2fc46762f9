// SPDX-License-Identifier: GPL-2.0

//! A provider whose memory is the kernel's own: the smallest that moves bytes.
//!
//! Receive buffers are pages of the kernel, which no dma-buf is behind and no user sees. So a reader cannot be
//! told where its bytes are: it gets them copied, and no token has to come back.
//! `Documentation/provider-guide.rst` goes through this file line by line.

#![deny(unsafe_code)]

use kernel::{
    fmt,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};

use crate::sys::{
    devmem::{
        self,
        DevmemProvider,
        Draft,
        MemoryProvider,
        ProviderModule,
        RxBound, //
    },
    genetlink::{
        DmabufAttr,
        QueueIdAttr,
        RxBindRequest,
        QUEUE_TYPE_RX, //
    },
    host_pages::HostPages,
    memory::RxMemory,
    net_device::LockedNetDevice,
    skbuff::RxSkBuff,
    sock::{
        LockedSock,
        Message, //
    }, //
};

#[expect(unsafe_code)]
#[allow(dead_code, unused_imports, reason = "not all of it is needed")]
#[path = "../../rust/sys/mod.rs"]
mod sys;

module! {
    type: ProviderModule<HostProvider>,
    name: "host_provider",
    authors: ["devmem_provider developers"],
    description: "Sample of a device memory provider: pages of the kernel",
    license: "GPL",
    imports_ns: ["DMA_BUF", "NETDEV_INTERNAL"],
    params: {
        size_mib: u32 {
            default: 16,
            description: "Memory of a binding in MiB, at most 2048 (16)",
        },
    },
}

/// The provider.
struct HostProvider;

impl MemoryProvider for HostProvider {
    type Source = HostPages;
}

#[vtable]
impl DevmemProvider for HostProvider {
    const NAME: &'static CStr = c"host_provider";

    fn bind_rx<'a>(request: &'a RxBindRequest<'_>) -> Result<RxBound<'a>> {
        let refuse = |error, why: fmt::Arguments<'_>| Err(request.refuse(error, None, why));

        if request
            .rx_page_size()
            .is_some_and(|size| size.u32() as usize != PAGE_SIZE)
        {
            return refuse(EOPNOTSUPP, fmt!("buffers are single pages"));
        }
        let ifindex = request.attr(DmabufAttr::Ifindex).ok_or(EINVAL)?.u32();
        let Some(dev) = LockedNetDevice::lock(request, ifindex) else {
            return refuse(ENODEV, fmt!("no interface with index {ifindex}"));
        };
        if !dev.is_present() || !dev.has_ops_lock() {
            return refuse(EOPNOTSUPP, fmt!("device does not support memory providers"));
        }
        // It is mapped for the device behind the first queue: that of another one is refused.
        let first = queues(request).next().ok_or(EINVAL)??;
        let Some(dma_dev) = dev.dma_device(first) else {
            return refuse(EOPNOTSUPP, fmt!("no receive queue {first} that does DMA"));
        };

        let size = (module_parameters::size_mib.value() as usize) << 20;
        let pages = HostPages::new(dma_dev, size)?;
        let memory = RxMemory::new(pages, PAGE_SHIFT as u32, request.queues().count())?;

        let bound = Draft::receive::<Self>(dev, memory, request)?.publish(request)?;
        for rxq in queues(request) {
            bound.open_rxq(rxq?, request)?;
        }
        Ok(bound)
    }

    fn recvmsg(
        _sk: &LockedSock<'_>,
        skb: &mut RxSkBuff<'_>,
        offset: usize,
        msg: &mut Message<'_>,
        len: usize,
    ) -> Result<usize> {
        let copied = devmem::copy::<Self>(skb, offset, msg, len)?;

        msg.put_linear(copied)?;
        Ok(copied)
    }
}

/// The receive queues that a request names.
fn queues<'a>(request: &'a RxBindRequest<'a>) -> impl Iterator<Item = Result<u32>> + 'a {
    request.queues().map(move |queue| {
        let attr = |kind| {
            queue
                .queue_id(kind)
                .ok_or_else(|| request.refuse_missing(queue, kind))
        };
        let id = attr(QueueIdAttr::Id)?;

        if attr(QueueIdAttr::Type)?.u32() != QUEUE_TYPE_RX {
            return Err(request.refuse(EINVAL, Some(id), fmt!("only receive queues can be bound")));
        }
        Ok(id.u32())
    })
}
