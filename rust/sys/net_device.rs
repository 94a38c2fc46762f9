// SPDX-License-Identifier: GPL-2.0

//! Network devices, under their instance lock.
//!
//! C header: [`include/linux/netdevice.h`](srctree/include/linux/netdevice.h)

use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ops::Deref,
    ptr::NonNull, //
};

use kernel::device::{
    Bound,
    Device, //
};

use super::{
    bindings,
    genetlink::BindRequest, //
};

/// A registered `struct net_device` whose instance lock is held, until this is dropped.
///
/// # Invariants
///
/// The pointer is to a registered net_device, whose lock the current thread holds.
pub(crate) struct LockedNetDevice<'a>(NonNull<bindings::net_device>, PhantomData<&'a ()>);

impl<'a> LockedNetDevice<'a> {
    /// Looks up a device in the network namespace of `request` and locks it. Can sleep.
    pub(crate) fn lock(request: &'a BindRequest<'_>, ifindex: u32) -> Option<Self> {
        // SAFETY: The namespace is alive for as long as the request. An index is not more than a
        // number to look for, which the C code takes for an `int`, too.
        let ptr = unsafe { bindings::netdev_get_by_index_lock(request.net(), ifindex as i32) };

        // INVARIANT: What was found is registered, and locked.
        NonNull::new(ptr).map(|ptr| Self(ptr, PhantomData))
    }

    /// Whether the hardware is there.
    pub(crate) fn is_present(&self) -> bool {
        // SAFETY: By the type invariant the device is alive.
        unsafe { bindings::netif_device_present(self.0.as_ptr()) }
    }

    /// Whether the instance lock covers what the driver does, without which its queues cannot be
    /// configured one by one.
    pub(crate) fn has_ops_lock(&self) -> bool {
        // SAFETY: By the type invariant the device is alive.
        unsafe { bindings::netdev_need_ops_lock(self.0.as_ptr()) }
    }

    /// Number of receive queues in use. Cannot change under the lock.
    pub(crate) fn rx_queues(&self) -> u32 {
        // SAFETY: By the type invariant the device is alive, and changes take its lock.
        unsafe { bindings::real_num_rx_queues(self.0.as_ptr()) }
    }

    /// Whether the device lets frags pass that the CPU cannot read, when they are sent, other than those of local
    /// bindings.
    pub(crate) fn transmits_netmem(&self) -> bool {
        // SAFETY: By the type invariant the device is alive.
        let mode = unsafe { bindings::netmem_tx(self.0.as_ptr()) };

        mode != bindings::netmem_tx_mode_NETMEM_TX_NONE
            && mode != bindings::netmem_tx_mode_NETMEM_TX_LOCAL
    }

    /// The device by which frags are sent that are for who reads them on this machine: this one. None if it does
    /// not pass them on.
    pub(crate) fn into_local_device(self) -> Option<LocalDevice<'a>> {
        // SAFETY: By the type invariant the device is alive and locked.
        let takes = unsafe { bindings::net_devmem_takes_local(self.0.as_ptr()) };

        // INVARIANT: It was just looked at, and stays what it is.
        takes.then_some(LocalDevice(self))
    }

    /// The device that does the DMA for frags that are sent through this one, which need not be
    /// physical: it is locked, too. None if there is no such device. Can sleep.
    pub(crate) fn into_tx_device(self) -> Option<TxDevice<'a>> {
        // SAFETY: By the type invariant the device is alive and locked.
        let ptr = unsafe { bindings::netdev_lock_netmem_tx_dev(self.0.as_ptr()) };
        let found = NonNull::new(ptr)?;

        // INVARIANT: One that is not the device itself was locked, and then found to be registered.
        let physical = (found != self.0).then(|| Self(found, PhantomData));
        Some(TxDevice {
            physical,
            named: self,
        })
    }

    /// The device that does the DMA of a receive queue. None if there is no such queue, or if it
    /// does not do DMA.
    pub(crate) fn dma_device(&self, rxq: u32) -> Option<&Device<Bound>> {
        if rxq >= self.rx_queues() {
            return None;
        }
        self.queue_dma_device(rxq, bindings::netdev_queue_type_NETDEV_QUEUE_TYPE_RX)
    }

    /// The same device, to be used when the lock is not held any more.
    pub(crate) fn hold_dma_device(&self, rxq: u32) -> Option<DmaDevice> {
        let dma_dev = self.dma_device(rxq)?;
        // SAFETY: By the type invariant the device is alive and locked. It has the queue.
        let netdev = unsafe { bindings::rx_queue_hw_dev(self.0.as_ptr(), rxq) };

        // SAFETY: That of a queue which is leased does the DMA. It takes the lock of who leased it before it can
        // be gone, as above.
        NonNull::new(netdev).map(|netdev| unsafe { DmaDevice::hold(netdev, dma_dev) })
    }

    fn queue_dma_device(
        &self,
        queue: u32,
        kind: bindings::netdev_queue_type,
    ) -> Option<&Device<Bound>> {
        // SAFETY: By the type invariant the device is alive and locked. Callers ask for queues that
        // it has.
        let ptr = unsafe { bindings::netdev_queue_get_dma_dev(self.0.as_ptr(), queue, kind) };
        // SAFETY: The device cannot be unregistered under the lock, and so its DMA device is
        // not unbound from its driver. That of a queue which is leased is another device's; but to be
        // unregistered that one takes the lock of who leased it (netkit_check_lease_unregister()).
        NonNull::new(ptr).map(|ptr| unsafe { Device::from_raw(ptr.as_ptr()) })
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::net_device {
        self.0.as_ptr()
    }
}

impl Drop for LockedNetDevice<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current thread holds the lock. After that the pointer
        // is not used any more.
        unsafe { bindings::netdev_unlock(self.0.as_ptr()) }
    }
}

/// The device that transmits frags which the CPU cannot read.
pub(crate) struct TxDevice<'a> {
    /// If it is not the one that was named. Unlocked first.
    physical: Option<LockedNetDevice<'a>>,
    named: LockedNetDevice<'a>,
}

impl TxDevice<'_> {
    fn physical(&self) -> &LockedNetDevice<'_> {
        self.physical.as_ref().unwrap_or(&self.named)
    }

    /// The device that does its DMA. None if it does none.
    pub(crate) fn dma_device(&self) -> Option<&Device<Bound>> {
        self.physical()
            .queue_dma_device(0, bindings::netdev_queue_type_NETDEV_QUEUE_TYPE_TX)
    }

    /// The same device, to be used when the lock is not held any more.
    pub(crate) fn hold_dma_device(&self) -> Option<DmaDevice> {
        let dma_dev = self.dma_device()?;

        // SAFETY: It is locked, and so is still registered.
        Some(unsafe { DmaDevice::hold(self.physical().0, dma_dev) })
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::net_device {
        self.physical().as_ptr()
    }

    /// The device that was named, if it is another one, or null.
    pub(super) fn virtual_device(&self) -> *mut bindings::net_device {
        match self.physical {
            Some(_) => self.named.as_ptr(),
            None => core::ptr::null_mut(),
        }
    }
}

/// A device that passes on what is sent from [local bindings](super::devmem::Draft::local), and does no DMA.
///
/// # Invariants
///
/// It [takes such bindings](LockedNetDevice::into_local_device).
pub(crate) struct LocalDevice<'a>(LockedNetDevice<'a>);

impl LocalDevice<'_> {
    pub(super) fn as_ptr(&self) -> *mut bindings::net_device {
        self.0.as_ptr()
    }
}

/// A device that does DMA for a net_device, and stays bound to its driver until this is dropped.
///
/// Whoever unregisters the net_device waits for that. No lock is held meanwhile.
///
/// # Invariants
///
/// `dma_dev` does the DMA of `netdev`, to which this owns a reference with `tracker`, and which was registered when
/// that was taken.
pub(crate) struct DmaDevice {
    netdev: NonNull<bindings::net_device>,
    tracker: MaybeUninit<bindings::netdevice_tracker>,
    dma_dev: NonNull<Device<Bound>>,
}

impl DmaDevice {
    /// # Safety
    ///
    /// `netdev` has to be valid, one that cannot be unregistered yet, and `dma_dev` has to do its DMA.
    unsafe fn hold(netdev: NonNull<bindings::net_device>, dma_dev: &Device<Bound>) -> Self {
        let mut tracker = MaybeUninit::uninit();
        // SAFETY: By the requirements of this function. The tracker is set if it is to be used.
        unsafe { bindings::netdev_hold(netdev.as_ptr(), tracker.as_mut_ptr()) };

        // INVARIANT: By the requirements of this function.
        Self {
            netdev,
            tracker,
            dma_dev: dma_dev.into(),
        }
    }
}

impl Deref for DmaDevice {
    type Target = Device<Bound>;

    fn deref(&self) -> &Device<Bound> {
        // SAFETY: By the type invariants. A driver unregisters its net_devices before it leaves the device, which
        // does not end as long as there is a reference.
        unsafe { self.dma_dev.as_ref() }
    }
}

impl Drop for DmaDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariants there is a reference to give up, with this tracker.
        unsafe { bindings::netdev_put(self.netdev.as_ptr(), self.tracker.as_mut_ptr()) }
    }
}

/// The `struct device` that is `dev`, which has no other content.
pub(super) fn device_ptr(dev: &Device) -> *mut bindings::device {
    core::ptr::from_ref(dev).cast_mut().cast()
}
