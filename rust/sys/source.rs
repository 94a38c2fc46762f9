// SPDX-License-Identifier: GPL-2.0

//! Where the memory of a binding comes from.
//!
//! A [`Source`] is memory that is mapped for a device: that of a [dma-buf](super::dma_buf), or [pages of
//! the kernel](super::host_pages).

use kernel::device::{
    Bound,
    Device, //
};

use super::{
    area::Segment,
    bindings,
    claim::Claim,
    net_device::device_ptr, //
};

/// Which way the DMA goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device writes.
    FromDevice,
    /// The device reads.
    ToDevice,
}

impl Direction {
    pub(super) fn as_raw(self) -> bindings::dma_data_direction {
        match self {
            Self::FromDevice => bindings::dma_data_direction::DMA_FROM_DEVICE,
            Self::ToDevice => bindings::dma_data_direction::DMA_TO_DEVICE,
        }
    }

    /// The direction of a binding, which is one of the two.
    pub(super) fn from_raw(direction: bindings::dma_data_direction) -> Self {
        if direction == bindings::dma_data_direction::DMA_TO_DEVICE {
            Self::ToDevice
        } else {
            Self::FromDevice
        }
    }
}

/// Memory that is mapped for a device, until this is dropped or the device's driver goes.
///
/// # Safety
///
/// - For as long as it is mapped, [`device`](Self::device) is the device that it is mapped for, always the same
///   one. It is None after that, at the latest when the device has another driver.
/// - For as long as it is mapped, that device may do DMA in [`direction`](Self::direction), always the same one,
///   to what is at the [`segments`](Self::segments), and that is nobody else's memory. They are the same
///   whenever they are asked for, mapped or not.
/// - Nowhere is there a reference to what is in the memory, if a device writes to it.
/// - When this is dropped nobody calls its [`claim`](Self::claim) any more.
/// - What [`take_account`](Self::take_account) returns is as the core has set it, and nothing else will undo that.
pub(crate) unsafe trait Source: Sized + Send + Sync + Unpin + 'static {
    /// What is to stay when the memory is not mapped any more, until nobody has a net_iov of it.
    type Backing: Send + Sync;

    /// The DMA segments, in the order of offsets into the memory.
    fn segments(&self) -> impl Iterator<Item = Segment> + '_;

    /// Size of the memory in bytes. What the segments have beyond is not sent from; whether it is received
    /// into goes by the segments alone.
    fn size(&self) -> u64;

    /// The device, which this keeps. None if the memory is not mapped any more.
    fn device(&self) -> Option<&Device>;

    /// Which way the DMA goes.
    fn direction(&self) -> Direction;

    /// What is to stay.
    fn backing(&self) -> Self::Backing;

    /// What there is to be done when somebody takes the memory back, who then waits until this is dropped. None if
    /// nobody does.
    fn claim(&self) -> Option<&Claim> {
        None
    }

    /// What it was accounted as before it was pinned, all of it, to be sent from: the binding's from now on, whose core
    /// undoes it when the memory is unmapped. None if nothing is accounted, or that was taken: then no binding is made.
    fn take_account(&mut self) -> Option<bindings::ubuf_info_msgzc_mmpin> {
        None
    }

    /// Whether the device reaches the memory where that is: if not, it is host memory, or was moved there. None if
    /// nobody knows.
    fn is_peer_to_peer(&self) -> Option<bool> {
        None
    }

    /// Whether it is mapped for `dev`.
    fn is_for(&self, dev: &Device<Bound>) -> bool {
        self.device()
            .is_some_and(|device| device_ptr(device) == device_ptr(dev))
    }
}

/// A source that the CPU can read, too.
///
/// # Safety
///
/// What [`bytes`](Self::bytes) returns are the bytes which the device has at that offset into the segments. They
/// stay readable for as long as the backing is there.
pub(crate) unsafe trait CpuSource: Source {
    /// Where the CPU finds `len` bytes from `offset` on, if the memory has so many.
    ///
    /// A device may write to them at any time: there must be no reference to them.
    fn bytes(backing: &Self::Backing, offset: u64, len: u64) -> Option<*const u8>;

    /// Lets the CPU look at bytes that a device wrote.
    ///
    /// # Safety
    ///
    /// They have to be a part of one of the segments. If the memory is not mapped any more, nothing happens.
    unsafe fn sync_for_cpu(&self, bytes: Segment);

    /// Lets the device write to them again.
    ///
    /// # Safety
    ///
    /// As for [`sync_for_cpu`](Self::sync_for_cpu).
    unsafe fn sync_for_device(&self, bytes: Segment);
}
