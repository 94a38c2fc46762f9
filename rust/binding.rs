// SPDX-License-Identifier: GPL-2.0

//! A dma-buf bound to receive queues: its mapping, its net_iovs, and which of them are free.

#![deny(unsafe_code)]

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    page::PAGE_SHIFT,
    prelude::*, //
};

use crate::{
    area::Layout,
    free_list::{
        Batch,
        FreeList,
        NiovId, //
    },
    netlink,
    skb_frag,
    sys::{
        devmem::{
            Bound,
            DevmemOps,
            Provider,
            Stats, //
        },
        dma_buf::Mapping,
        genetlink::BindRequest,
        netmem::NetIovArea,
        page_pool::{
            NewPagePool,
            Refill, //
        },
        skbuff::SkBuff,
        sock::{
            Message,
            Sock, //
        },
        spinlock_bh::{
            new_spinlock_bh,
            SpinLockBh, //
        },
    },
    token::Range, //
};

/// What this provider keeps for a binding.
#[pin_data]
pub(crate) struct DmaBufBinding {
    #[pin]
    free: SpinLockBh<FreeList<KVVec<u32>>>,
    area: NetIovArea,
    niov_shift: u32,
    /// Unmapped when the binding is freed: when no page pool is left, no device can write to it any
    /// more.
    _mapping: Mapping,
}

impl DmaBufBinding {
    /// A binding with all its net_iovs free. `layout` is that of `mapping`, for net_iovs of
    /// `1 << niov_shift` bytes.
    ///
    /// `ENOMEM` if there is no memory for net_iovs and free list: 68 bytes for each net_iov, charged
    /// to the current task's memory cgroup.
    pub(crate) fn new(
        mapping: Mapping,
        layout: Layout,
        niov_shift: u32,
    ) -> Result<impl PinInit<Self, Error>> {
        let niovs = layout.niovs();
        let area = NetIovArea::new(niovs, layout.addresses(mapping.segments()))?;
        let free = FreeList::full(KVVec::from_elem(0, niovs, GFP_KERNEL_ACCOUNT)?);

        Ok(try_pin_init!(Self {
            free <- new_spinlock_bh!(free, "devmem_provider_free_list"),
            area,
            niov_shift,
            _mapping: mapping,
        }? Error))
    }
}

impl Provider for DmaBufBinding {
    fn ops() -> &'static DevmemOps<Self> {
        &crate::DEVMEM_OPS
    }

    fn area(&self) -> &NetIovArea {
        &self.area
    }

    fn bind_rx(request: &BindRequest<'_>) -> Result<Bound<Self>> {
        netlink::bind_rx(request)
    }

    fn recvmsg(
        sk: &Sock<'_>,
        skb: &SkBuff,
        offset: usize,
        msg: &mut Message<'_>,
        len: usize,
    ) -> Result<usize> {
        skb_frag::recvmsg(sk, skb, offset, msg, len)
    }

    fn dontneed(sk: &Sock<'_>, ranges: impl Iterator<Item = Range> + Clone) -> Result<usize> {
        skb_frag::dontneed(sk, ranges)
    }

    fn stats(&self) -> Stats {
        let free = self.free.lock();

        Stats {
            buffers: free.capacity(),
            in_use: free.in_use(),
        }
    }

    fn init_pool(&self, pool: &mut NewPagePool) -> Result {
        pool.disable_dma_sync();

        if pool.order() + PAGE_SHIFT as u32 != self.niov_shift {
            return Err(E2BIG);
        }
        Ok(())
    }

    fn alloc(&self, refill: &mut Refill<'_>) {
        let mut batch = Batch::new();

        self.free.lock().take(&mut batch, refill.room());
        for id in batch {
            refill.give(id);
        }
    }

    fn release(&self, id: NiovId) {
        self.free.lock().put(id);
    }
}
