// SPDX-License-Identifier: GPL-2.0

//! A dma-buf bound to a device: its mapping, its net_iovs, and which of them are free.

#![deny(unsafe_code)]

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        new_mutex,
        Mutex, //
    }, //
};

use crate::{
    skb_frag,
    sys::{
        area::Layout,
        devmem::{
            Data,
            Receive,
            Stats,
            Transmit, //
        },
        dma_buf::Mapping,
        extent::{
            self,
            ExtentMap,
            Place, //
        },
        free_list::{
            self,
            Batch,
            FreeList,
            NiovId, //
        },
        iov_iter::OffsetRanges,
        netmem::{
            NetIovArea,
            TxIov, //
        },
        page_pool::NewPagePool,
        skbuff::TxSkBuff,
        spinlock_bh::{
            new_spinlock_bh,
            SpinLockBh, //
        },
    }, //
};

/// A dma-buf bound to receive queues.
#[pin_data]
pub(crate) struct RxBinding {
    #[pin]
    free: SpinLockBh<FreeList<KVVec<u32>>>,
    area: NetIovArea,
    niov_shift: u32,
    /// Until no device can write to it any more: that is when it is off its queues, if not before.
    #[pin]
    mapping: Mutex<Option<Mapping>>,
}

impl RxBinding {
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
            mapping <- new_mutex!(Some(mapping), "devmem_provider_mapping"),
        }? Error))
    }
}

impl Data for RxBinding {
    fn area(&self) -> &NetIovArea {
        &self.area
    }

    fn niov_shift(&self) -> u32 {
        self.niov_shift
    }

    fn stats(&self) -> Stats {
        let free = self.free.lock();

        Stats {
            buffers: free.capacity(),
            in_use: free.in_use(),
        }
    }

    fn unmap(&self) {
        unmap(&self.mapping);
    }
}

impl Receive for RxBinding {
    fn init_pool(&self, pool: &mut NewPagePool) -> Result {
        pool.disable_dma_sync();

        if pool.order() + PAGE_SHIFT as u32 != self.niov_shift {
            return Err(E2BIG);
        }
        Ok(())
    }

    fn alloc(&self, batch: &mut Batch) {
        self.free.lock().take(batch, free_list::BATCH);
    }

    fn release(&self, ids: impl Iterator<Item = NiovId>) {
        self.free.lock().put(ids);
    }
}

/// A dma-buf that is sent from.
///
/// It has a net_iov for each of its [extents](extent). They are never handed out: each frag in
/// flight holds the binding.
#[pin_data]
pub(crate) struct TxBinding {
    extents: ExtentMap<KVVec<u64>, KVVec<u32>>,
    area: NetIovArea,
    /// Until no device can read it any more: no frag is left, or the device is gone.
    #[pin]
    mapping: Mutex<Option<Mapping>>,
}

impl TxBinding {
    /// A binding of `count` extents, as [`extent::count`] counts those of `mapping`.
    ///
    /// `ENOMEM` if there is no memory for 76 bytes for each extent, charged to the current task's
    /// memory cgroup.
    pub(crate) fn new(mapping: Mapping, count: usize) -> Result<impl PinInit<Self, Error>> {
        let mut ends = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        let mut end = 0;
        for extent in extent::extents(mapping.segments()).take(count) {
            end += extent.len;
            ends.push_within_capacity(end).map_err(|_| ENOMEM)?;
        }

        let (_, slots) = extent::slots(&ends).ok_or(EINVAL)?;
        let firsts = KVVec::from_elem(0, slots, GFP_KERNEL_ACCOUNT)?;

        let addresses = extent::extents(mapping.segments()).map(|extent| extent.addr);
        let area = NetIovArea::new(count, addresses)?;
        let extents = ExtentMap::new(ends, firsts, mapping.size()).ok_or(EINVAL)?;

        Ok(try_pin_init!(Self {
            extents,
            area,
            mapping <- new_mutex!(Some(mapping), "devmem_provider_mapping"),
        }? Error))
    }

    /// The memory at `offset` bytes into the dma-buf, if it is there.
    pub(crate) fn locate(&self, offset: u64) -> Option<(TxIov<'_>, Place)> {
        self.with_iov(self.extents.locate(offset)?)
    }

    /// The memory that follows an extent, if there is more.
    pub(crate) fn after(&self, extent: u32) -> Option<(TxIov<'_>, Place)> {
        self.with_iov(self.extents.after(extent)?)
    }

    fn with_iov(&self, place: Place) -> Option<(TxIov<'_>, Place)> {
        Some((self.area.transmit(place.extent)?, place))
    }
}

impl Data for TxBinding {
    fn area(&self) -> &NetIovArea {
        &self.area
    }

    fn niov_shift(&self) -> u32 {
        PAGE_SHIFT as u32
    }

    /// In pages, and none in use: nobody has to bring them back.
    fn stats(&self) -> Stats {
        Stats {
            buffers: self.extents.size().div_ceil(PAGE_SIZE as u64) as usize,
            in_use: 0,
        }
    }

    fn unmap(&self) {
        unmap(&self.mapping);
    }
}

impl Transmit for TxBinding {
    #[inline]
    fn fill(&self, skb: &mut TxSkBuff<'_>, ranges: &mut OffsetRanges<'_>, len: usize) -> Result {
        skb_frag::fill(skb, ranges, len, self)
    }
}

/// Undoes the mapping of a binding, if that has not been done.
fn unmap(mapping: &Mutex<Option<Mapping>>) {
    // A statement of its own: the lock is not to be held meanwhile.
    let mapping = mapping.lock().take();

    drop(mapping);
}
