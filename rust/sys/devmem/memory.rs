// SPDX-License-Identifier: GPL-2.0

//! The memory of a binding: the mapping of its dma-buf, its net_iovs, and which of them are free.
//!
//! All of it is made of the mapping here, and belongs to the binding alone: no DMA address and no
//! index comes from anywhere else.

use kernel::{
    alloc::{
        flags::GFP_KERNEL_ACCOUNT,
        AllocError, //
    },
    device::Device,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        new_mutex,
        Mutex, //
    }, //
};

use super::{
    super::{
        area::{
            Layout,
            LayoutError, //
        },
        bindings,
        dma_buf::{
            Direction,
            Mapping, //
        },
        extent::{
            self,
            ExtentMap,
            Place, //
        },
        free_list::{
            Batch,
            FreeIov,
            FreeList,
            BATCH, //
        },
        net_device::{
            DmaDevice,
            LockedNetDevice,
            TxDevice, //
        },
        netmem::NetIovArea,
        spinlock_bh::{
            new_spinlock_bh,
            SpinLockBh, //
        },
    },
    Stats, //
};

/// Why there is no memory for a binding.
pub(crate) enum MemoryError {
    /// The dma-buf is mapped for the other direction.
    Direction,
    /// The segments of the dma-buf do not make net_iovs.
    Layout(LayoutError),
    /// There is no memory to describe it.
    NoMemory,
}

impl From<LayoutError> for MemoryError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

impl From<AllocError> for MemoryError {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

/// What a binding of either direction has.
pub(crate) trait Memory: Sized + Send + Sync + 'static {
    /// The locked device that a binding is made for.
    type Device<'a>;

    /// Which way the DMA goes.
    const DIRECTION: Direction;

    /// The net_iovs.
    fn area(&self) -> &NetIovArea;

    /// What the dma-buf is mapped with.
    fn mapping(&self) -> &Mutex<Option<Mapping>>;

    /// log2 of the size of a buffer, in bytes.
    fn niov_shift(&self) -> u32;

    /// Tells the state of the buffers.
    fn stats(&self) -> Stats;

    /// The device that the memory is mapped for, as long as it is.
    fn device(&self) -> Option<ARef<Device>> {
        self.mapping().lock().as_ref().map(Mapping::device)
    }

    /// Whether the memory is mapped for `dev`.
    fn is_mapped_for(&self, dev: Option<DmaDevice<'_>>) -> bool {
        let mapping = self.mapping().lock();

        match (mapping.as_ref(), dev) {
            (Some(mapping), Some(dev)) => mapping.is_for(dev),
            _ => false,
        }
    }

    /// Undoes the mapping, if that has not been done.
    fn unmap(&self) {
        // A statement of its own: the lock is not to be held meanwhile.
        let mapping = self.mapping().lock().take();

        drop(mapping);
    }
}

/// Memory that is received into: net_iovs of one size, and which of them are free.
#[pin_data]
pub(crate) struct RxMemory {
    #[pin]
    free: SpinLockBh<FreeList<KVVec<u32>>>,
    area: NetIovArea,
    niov_shift: u32,
    /// Until no device can write to it any more: that is when it is off its queues, if not before.
    #[pin]
    mapping: Mutex<Option<Mapping>>,
}

impl RxMemory {
    /// Cuts a dma-buf that devices write to into net_iovs of `1 << niov_shift` bytes (`niov_shift` below
    /// 64), all of them free.
    ///
    /// `NoMemory` if there is none for net_iovs and free list: 68 bytes for each net_iov, charged to
    /// the current task's memory cgroup.
    pub(crate) fn new(
        mapping: Mapping,
        niov_shift: u32,
    ) -> Result<impl PinInit<Self, Error>, MemoryError> {
        if mapping.direction() != Self::DIRECTION {
            return Err(MemoryError::Direction);
        }
        let layout = Layout::of(mapping.segments(), niov_shift)?;
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

    /// Moves free net_iovs, if there are any, to a batch that is empty.
    pub(super) fn take(&self, batch: &mut Batch) {
        self.free.lock().take(batch, BATCH);
    }

    /// Takes net_iovs back.
    pub(super) fn put(&self, iovs: impl Iterator<Item = FreeIov>) {
        self.free.lock().put(iovs);
    }
}

impl Memory for RxMemory {
    type Device<'a> = LockedNetDevice<'a>;

    const DIRECTION: Direction = Direction::FromDevice;

    fn area(&self) -> &NetIovArea {
        &self.area
    }

    fn mapping(&self) -> &Mutex<Option<Mapping>> {
        &self.mapping
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
}

/// Memory that is sent from.
///
/// It has a net_iov for each of its [extents](extent). They are never handed out: each frag in
/// flight holds the binding.
///
/// # Invariants
///
/// `area` has a net_iov for each extent of `extents`, in their order, which is as long as that.
#[pin_data]
pub(crate) struct TxMemory {
    extents: ExtentMap<KVVec<u64>, KVVec<u32>>,
    area: NetIovArea,
    /// Until no device can read it any more: no frag is left, or the device is gone.
    #[pin]
    mapping: Mutex<Option<Mapping>>,
}

impl TxMemory {
    /// Cuts a dma-buf that devices read into extents.
    ///
    /// `NoMemory` if there is none for 76 bytes for each extent, charged to the current task's memory
    /// cgroup.
    pub(crate) fn new(mapping: Mapping) -> Result<impl PinInit<Self, Error>, MemoryError> {
        if mapping.direction() != Self::DIRECTION {
            return Err(MemoryError::Direction);
        }
        let count = extent::count(mapping.segments())?;
        let mut ends = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        let mut end = 0;
        for extent in extent::extents(mapping.segments()).take(count) {
            end += extent.len;
            ends.push_within_capacity(end).map_err(|_| AllocError)?;
        }

        let (_, slots) = extent::slots(&ends).ok_or(LayoutError::Empty)?;
        let firsts = KVVec::from_elem(0, slots, GFP_KERNEL_ACCOUNT)?;

        let addresses = extent::extents(mapping.segments()).map(|extent| extent.addr);
        let area = NetIovArea::new(count, addresses)?;
        let extents = ExtentMap::new(ends, firsts, mapping.size()).ok_or(LayoutError::TooMany)?;

        // INVARIANT: Both are of the same extents.
        Ok(try_pin_init!(Self {
            extents,
            area,
            mapping <- new_mutex!(Some(mapping), "devmem_provider_mapping"),
        }? Error))
    }

    /// The memory at `offset` bytes into the dma-buf, if it is there, and its net_iov.
    #[inline]
    pub(in crate::sys) fn locate(&self, offset: u64) -> Option<(bindings::netmem_ref, Place)> {
        self.with_netmem(self.extents.locate(offset)?)
    }

    /// The memory that follows an extent, if there is more.
    pub(in crate::sys) fn after(&self, extent: u32) -> Option<(bindings::netmem_ref, Place)> {
        self.with_netmem(self.extents.after(extent)?)
    }

    fn with_netmem(&self, place: Place) -> Option<(bindings::netmem_ref, Place)> {
        Some((self.area.netmem(place.extent)?, place))
    }
}

impl Memory for TxMemory {
    type Device<'a> = TxDevice<'a>;

    const DIRECTION: Direction = Direction::ToDevice;

    fn area(&self) -> &NetIovArea {
        &self.area
    }

    fn mapping(&self) -> &Mutex<Option<Mapping>> {
        &self.mapping
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
}
