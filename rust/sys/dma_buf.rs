// SPDX-License-Identifier: GPL-2.0

//! dma-bufs, and their mapping for a device.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use core::ptr::NonNull;

use kernel::{
    device::{
        Bound,
        Device, //
    },
    error::from_err_ptr,
    prelude::*,
    scatterlist::SGTable,
    sync::aref::ARef, //
};

use super::{
    area::Segment,
    bindings,
    net_device::device_ptr,
    source::{
        Direction,
        Source, //
    }, //
};

/// A reference to a `struct dma_buf`.
///
/// # Invariants
///
/// The pointer is to a dma-buf of which this owns a reference.
pub(crate) struct DmaBuf(NonNull<bindings::dma_buf>);

// SAFETY: References to a dma-buf may be dropped from any thread.
unsafe impl Send for DmaBuf {}

// SAFETY: Only immutable properties of the dma-buf can be reached through `&DmaBuf`.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// The dma-buf behind a file descriptor of the current process.
    ///
    /// `EBADF` if there is no such file descriptor, `EINVAL` if it is not of a dma-buf.
    pub(crate) fn get(fd: u32) -> Result<Self> {
        // SAFETY: Any number may be looked up. The C code takes it for an `int`, too.
        let ptr = from_err_ptr(unsafe { bindings::dma_buf_get(fd as i32) })?;

        // INVARIANT: `dma_buf_get()` returned a reference.
        NonNull::new(ptr).map(Self).ok_or(EINVAL)
    }

    /// Whether the file descriptors of the dma-buf allow what the device does: to write to it, or to
    /// read it.
    fn allows(&self, direction: Direction) -> bool {
        // SAFETY: By the type invariant the dma-buf is alive, and so is its file, whose mode does
        // not change.
        let mode = unsafe { (*(*self.0.as_ptr()).file).f_mode };

        let needed = match direction {
            Direction::FromDevice => bindings::FMODE_WRITE,
            Direction::ToDevice => bindings::FMODE_READ,
        };
        mode & needed != 0
    }

    fn size(&self) -> u64 {
        // SAFETY: By the type invariant the dma-buf is alive, and its size does not change.
        unsafe { (*self.0.as_ptr()).size as u64 }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to give up.
        unsafe { bindings::dma_buf_put(self.0.as_ptr()) }
    }
}

/// The attachment of a device to a dma-buf.
///
/// # Invariants
///
/// The pointer is to an attachment to `buf`, and nothing else will detach it.
struct Attachment {
    ptr: NonNull<bindings::dma_buf_attachment>,
    buf: DmaBuf,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is the attachment's one and only end.
        unsafe { bindings::dma_buf_detach(self.buf.0.as_ptr(), self.ptr.as_ptr()) }
    }
}

/// Why a dma-buf could not be mapped.
pub(crate) enum MapError {
    /// The file descriptors of the dma-buf do not allow what the device would do.
    Direction,
    /// The exporter does not let the device attach.
    Attach(Error),
    /// The exporter does not map the memory for the device.
    Map(Error),
}

/// A dma-buf that is mapped for a device.
///
/// # Invariants
///
/// `sgt` is the mapping of `attachment`, which is one of `dev`, for `direction`, and nothing else will undo
/// it.
pub(crate) struct Mapping {
    sgt: NonNull<bindings::sg_table>,
    direction: Direction,
    attachment: Attachment,
    // Dropped after what is attached to it.
    dev: ARef<Device>,
}

// SAFETY: A mapping may be undone by any thread.
unsafe impl Send for Mapping {}

// SAFETY: `&Mapping` gives read access to the scatterlist only, which nobody changes while the
// mapping is there.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `buf` for `dev` to do DMA in one direction.
    ///
    /// Keeps `dev` alive. Can sleep.
    pub(crate) fn new(
        buf: DmaBuf,
        dev: &Device<Bound>,
        direction: Direction,
    ) -> Result<Self, MapError> {
        if !buf.allows(direction) {
            return Err(MapError::Direction);
        }
        // SAFETY: Both are alive, the dma-buf by its type invariant.
        let ptr = unsafe { bindings::dma_buf_attach(buf.0.as_ptr(), device_ptr(dev)) };
        let ptr = non_null(ptr).map_err(MapError::Attach)?;
        // INVARIANT: It was just attached.
        let attachment = Attachment { ptr, buf };

        // SAFETY: The attachment is there by its type invariant, and its reservation object is not
        // locked by us.
        let sgt = unsafe {
            bindings::dma_buf_map_attachment_unlocked(attachment.ptr.as_ptr(), direction.as_raw())
        };
        let sgt = non_null(sgt).map_err(MapError::Map)?;
        // INVARIANT: It was just mapped.
        Ok(Self {
            sgt,
            direction,
            attachment,
            dev: dev.into(),
        })
    }
}

// SAFETY: By the type invariants the dma-buf is mapped for the device in that direction, and exporters
// may not change the table while it is.
unsafe impl Source for Mapping {
    type Backing = ();

    fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        // SAFETY: By the type invariants the table is valid for as long as `self`, and exporters
        // may not change it while it is mapped.
        let table = unsafe { SGTable::from_raw(self.sgt.as_ptr()) };

        table.iter().map(|entry| Segment {
            addr: entry.dma_address(),
            len: entry.dma_len(),
        })
    }

    fn size(&self) -> u64 {
        self.attachment.buf.size()
    }

    fn device(&self) -> Option<&Device> {
        Some(&self.dev)
    }

    fn direction(&self) -> Direction {
        self.direction
    }

    /// Who wants to read the memory has the dma-buf.
    fn backing(&self) {}
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is the mapping's one and only end. The attachment is
        // still there: fields are dropped after this.
        unsafe {
            bindings::dma_buf_unmap_attachment_unlocked(
                self.attachment.ptr.as_ptr(),
                self.sgt.as_ptr(),
                self.direction.as_raw(),
            )
        }
    }
}

fn non_null<T>(ptr: *mut T) -> Result<NonNull<T>> {
    NonNull::new(from_err_ptr(ptr)?).ok_or(ENOMEM)
}
