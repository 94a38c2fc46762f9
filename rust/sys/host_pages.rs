// SPDX-License-Identifier: GPL-2.0

//! Pages of the kernel that a device writes to, and the CPU reads.
//!
//! C headers: [`include/linux/vmalloc.h`](srctree/include/linux/vmalloc.h),
//! [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use core::{
    convert::Infallible,
    ptr::NonNull, //
};

use kernel::{
    alloc::{
        allocator::VmallocPageIter,
        flags::{
            __GFP_NOWARN,
            __GFP_ZERO,
            GFP_KERNEL_ACCOUNT, //
        }, //
    },
    device::{
        Bound,
        Device, //
    },
    devres::Devres,
    dma::DataDirection,
    page::{
        AsPageIter,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    scatterlist::{
        Owned,
        SGTable, //
    },
    sync::Arc, //
};

use super::{
    area::Segment,
    bindings,
    net_device::device_ptr,
    source::{
        CpuSource,
        Direction,
        Source, //
    }, //
};

/// Most bytes of [`HostPages`]. Pointers to that many pages of 4 KiB take 4 MiB, as much as an allocation may.
const MAX_SIZE: usize = 2 << 30;

/// Pages that follow each other for the CPU.
///
/// # Invariants
///
/// The memory is `size` bytes long, which are whole pages. There are no references to what is in it, but
/// that of the vector, which is empty.
struct Pages {
    memory: VVec<u8>,
    size: usize,
}

impl Pages {
    fn start(&self) -> *const u8 {
        self.memory.as_ptr()
    }
}

/// Pages that somebody holds: who reads them, or the device that they are mapped for.
#[derive(Clone)]
pub(crate) struct SharedPages(Arc<Pages>);

impl AsPageIter for SharedPages {
    type Iter<'a> = VmallocPageIter<'a>;

    fn page_iter(&mut self) -> VmallocPageIter<'_> {
        // SAFETY: By the type invariants it is the start of an allocation of `size` bytes by vmalloc(), which
        // is there for as long as this. A vector's pointer is not null.
        unsafe {
            let start = NonNull::new_unchecked(self.0.start().cast_mut());
            VmallocPageIter::new(start, self.0.size)
        }
    }
}

/// Pages that are mapped for a device to write to.
///
/// # Invariants
///
/// `table` is of `pages`, and mapped for the device of `bound` as long as that can be accessed.
pub(crate) struct HostPages {
    table: Pin<KBox<SGTable<Owned<SharedPages>>>>,
    /// Gone before the mapping is, if that is undone since the device's driver goes.
    bound: Devres<()>,
    pages: SharedPages,
}

impl HostPages {
    /// Takes `size` bytes of memory, in which there are zeros, and maps them for `dev` to write to.
    ///
    /// `EINVAL` if these are not whole pages, or none, or more than 2 GiB: the table is made from an array of
    /// pointers to the pages, which is one allocation. `ENOMEM` if there is no memory, which is charged to the
    /// current task's memory cgroup. Other errors are those of `dma_map_sgtable()`. Keeps `dev`. Can
    /// sleep.
    pub(crate) fn new(dev: &Device<Bound>, size: usize) -> Result<Self> {
        if size == 0 || size % PAGE_SIZE != 0 || size > MAX_SIZE {
            return Err(EINVAL);
        }
        // How much there is to be is up to the provider, or its user. That it may be too much is no bug in here.
        let flags = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
        let memory = VVec::with_capacity(size, flags | __GFP_ZERO)?;
        // INVARIANT: It has room for as many bytes, and nothing in it.
        let pages = SharedPages(Arc::new(Pages { memory, size }, GFP_KERNEL_ACCOUNT)?);

        let table = SGTable::new(dev, pages.clone(), DataDirection::FromDevice, flags);
        // INVARIANT: What was added to the device later goes earlier.
        Ok(Self {
            table: KBox::pin_init(table, GFP_KERNEL_ACCOUNT)?,
            bound: Devres::new::<Infallible>(dev, ())?,
            pages,
        })
    }

    /// Has each page of `bytes` synced for the device, if they are mapped for it, and not undone meanwhile.
    ///
    /// What follows each other for the device does not for the CPU, by whose addresses a sync goes from the
    /// first byte on.
    fn sync(&self, bytes: Segment, sync: impl Fn(*mut bindings::device, Segment)) {
        self.bound.try_access_with(|()| {
            let dev = device_ptr(self.bound.device());

            bytes
                .cut(PAGE_SHIFT as u32)
                .for_each(|page| sync(dev, page));
        });
    }
}

// SAFETY: By the type invariants the pages are mapped for the device to write to for as long as this says which
// it is. The table does not change. Nobody has a reference to what is in the pages.
unsafe impl Source for HostPages {
    type Backing = SharedPages;

    fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        self.table.iter().map(|entry| Segment {
            addr: entry.dma_address(),
            len: entry.dma_len(),
        })
    }

    fn size(&self) -> u64 {
        self.pages.0.size as u64
    }

    fn device(&self) -> Option<&Device> {
        self.bound.try_access_with(|()| self.bound.device())
    }

    fn direction(&self) -> Direction {
        Direction::FromDevice
    }

    fn is_peer_to_peer(&self) -> Option<bool> {
        Some(false)
    }

    fn backing(&self) -> SharedPages {
        self.pages.clone()
    }
}

// SAFETY: The bytes are those of the pages.
unsafe impl CpuSource for HostPages {
    fn bytes(pages: &SharedPages, offset: u64, len: u64) -> Option<*const u8> {
        if offset.checked_add(len)? > pages.0.size as u64 {
            return None;
        }
        // CAST: Less than the size.
        Some(pages.0.start().wrapping_add(offset as usize))
    }

    unsafe fn sync_for_cpu(&self, bytes: Segment) {
        self.sync(bytes, |dev, page| {
            // SAFETY: The pages are mapped for now. The bytes are in them, by the requirements of this function,
            // and in one of them.
            unsafe {
                bindings::dma_sync_single_for_cpu(
                    dev,
                    page.addr,
                    page.len as usize,
                    Direction::FromDevice.as_raw(),
                )
            }
        });
    }

    unsafe fn sync_for_device(&self, bytes: Segment) {
        self.sync(bytes, |dev, page| {
            // SAFETY: The pages are mapped for now. The bytes are in them, by the requirements of this function,
            // and in one of them.
            unsafe {
                bindings::dma_sync_single_for_device(
                    dev,
                    page.addr,
                    page.len as usize,
                    Direction::FromDevice.as_raw(),
                )
            }
        });
    }
}
