// SPDX-License-Identifier: GPL-2.0

//! A binding that has an id and an owner, while the request for it is served.

use core::{
    cell::Cell,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::super::{
    bindings,
    genetlink::RxBindRequest,
    net_device::{
        device_ptr,
        LocalDevice,
        LockedNetDevice,
        TxDevice, //
    }, //
};

/// A binding that is the core's to free.
///
/// # Invariants
///
/// The pointer is to a binding that is published, and neither unbound nor left to the core yet.
struct Published(NonNull<bindings::net_devmem_binding>);

impl Drop for Published {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the binding is published. It is in a `Bound`, which has the
        // locks of netlink socket and device.
        unsafe { bindings::net_devmem_unbind(self.0.as_ptr()) }
    }
}

/// A binding that has an id and an owner, while its request is served and its device is locked.
///
/// Unbound when dropped. The core frees it once nobody has a reference any more.
///
/// # Invariants
///
/// `dev` is the lock of the binding's device. As long as there is this, that of the netlink socket is held,
/// too.
pub(crate) struct Bound<D> {
    // Comes first, to be dropped under the lock.
    binding: Published,
    /// Whether a queue was opened.
    has_queue: Cell<bool>,
    dev: D,
}

/// A binding of receive queues.
pub(crate) type RxBound<'a> = Bound<LockedNetDevice<'a>>;

/// A binding to be sent from: by a device that does DMA, or to readers on this machine.
pub(crate) enum TxBound<'a> {
    /// Mapped for the device that sends.
    Mapped(Bound<TxDevice<'a>>),
    /// Mapped for nobody.
    Local(Bound<LocalDevice<'a>>),
}

impl<D> Bound<D> {
    /// # Safety
    ///
    /// `base` has to be a binding that was published right before, and whose device `dev` has locked. The
    /// netlink socket has to stay locked for as long as there is the result, if that is not left to the core.
    pub(super) unsafe fn from_published(
        base: NonNull<bindings::net_devmem_binding>,
        dev: D,
    ) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            binding: Published(base),
            has_queue: Cell::new(false),
            dev,
        }
    }

    fn leave(self) -> *mut bindings::net_devmem_binding {
        // In this order, so that the binding is dropped under the lock.
        let Self { dev, binding, .. } = self;
        let base = ManuallyDrop::new(binding).0.as_ptr();

        drop(dev);
        base
    }
}

impl TxBound<'_> {
    /// Leaves the binding to the core.
    pub(super) fn into_base(self) -> *mut bindings::net_devmem_binding {
        match self {
            Self::Mapped(bound) => bound.leave(),
            Self::Local(bound) => bound.leave(),
        }
    }
}

impl Bound<LockedNetDevice<'_>> {
    /// Leaves the binding to the core. `EINVAL` for one that is on no queue: by its queues it hears that its
    /// device goes, and it would keep a pointer to that.
    pub(super) fn into_base(self) -> Result<*mut bindings::net_devmem_binding> {
        if !self.has_queue.get() {
            return Err(EINVAL);
        }
        Ok(self.leave())
    }

    /// Lets a receive queue of the device take its buffers from the binding. Restarts the queue.
    ///
    /// `EINVAL` if its DMA is not done by the device that the memory is mapped for. Other errors are those
    /// of `netif_mp_open_rxq()`, which tells the reason in the extended ack.
    pub(crate) fn open_rxq(&self, rxq: u32, request: &RxBindRequest<'_>) -> Result {
        let base = self.binding.0.as_ptr();
        // SAFETY: By the type invariants the binding is alive. Its memory is mapped for this device at least
        // as long as it is bound and the lock is held.
        let mapped_for = unsafe { (*base).dma_dev };

        if self.dev.dma_device(rxq).map(|dev| device_ptr(dev)) != Some(mapped_for) {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariants the binding is published, and its device locked.
        to_result(unsafe { bindings::net_devmem_binding_open_rxq(base, rxq, request.extack()) })?;
        self.has_queue.set(true);
        Ok(())
    }
}
