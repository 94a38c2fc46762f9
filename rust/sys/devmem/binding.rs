// SPDX-License-Identifier: GPL-2.0

//! A binding, from its making until the core frees it.

use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    error::to_result,
    prelude::*,
    types::Opaque, //
};

use super::super::bindings;
use super::{
    super::{
        genetlink::BindRequest,
        net_device::{
            DmaDevice,
            LockedNetDevice,
            TxDevice, //
        },
    },
    Data,
    Direction,
    Provider,
    Receive,
    Transmit, //
};

/// A binding: what the core keeps for it, and what the provider does.
///
/// # Invariants
///
/// Once it is in a [`Draft`], `base` is initialised. Its ops are those of a [`Provider`] `P`, and `T`
/// is `P::Rx` if its direction is `DMA_FROM_DEVICE`, and `P::Tx` if it is `DMA_TO_DEVICE`.
#[pin_data]
#[repr(C)]
pub(super) struct Binding<T> {
    #[pin]
    base: Opaque<bindings::net_devmem_binding>,
    #[pin]
    data: T,
}

impl<T> Binding<T> {
    /// The provider's part of a binding.
    ///
    /// # Safety
    ///
    /// `base` has to be in a `Binding<T>` that lives for `'a`.
    pub(super) unsafe fn data<'a>(base: *mut bindings::net_devmem_binding) -> &'a T {
        // SAFETY: By the requirements of this function, and since `base` comes first.
        unsafe { &(*base.cast::<Self>()).data }
    }

    /// Frees a binding.
    ///
    /// # Safety
    ///
    /// `base` has to be in a `Binding<T>` that was [published](Draft::publish), and that nobody uses
    /// any more.
    pub(super) unsafe fn free(base: *mut bindings::net_devmem_binding) {
        // SAFETY: By the requirements of this function: publishing took it out of its box, in which
        // it was pinned.
        drop(unsafe { Pin::new_unchecked(KBox::from_raw(base.cast::<Self>())) });
    }
}

/// A binding that nobody knows of yet.
///
/// # Invariants
///
/// The core's part is initialised, and not published.
pub(crate) struct Draft<T: Data>(Pin<KBox<Binding<T>>>);

impl<T: Receive> Draft<T> {
    /// Makes a binding for receive queues of `dev`, which `request` asks for.
    ///
    /// `dma_dev`, for which `data` is mapped, stays alive until after `data` is dropped.
    pub(crate) fn receive<P: Provider<Rx = T>>(
        dev: &LockedNetDevice<'_>,
        dma_dev: DmaDevice<'_>,
        data: impl PinInit<T, Error>,
        request: &BindRequest<'_>,
    ) -> Result<Self> {
        let base = bindings::net_devmem_binding {
            ops: P::ops().as_ptr(),
            direction: Direction::FromDevice.as_raw(),
            ..Default::default()
        };

        // SAFETY: The device is locked. `T` is what `P` has for this direction.
        unsafe { Self::new(base, dev.as_ptr(), dma_dev, data, request) }
    }
}

impl<T: Transmit> Draft<T> {
    /// Makes a binding for frags that `dev` transmits, which `request` asks for. It is the current
    /// task's: the core sees to who may send from it, and to how many a user has (`ENOSPC`).
    ///
    /// `dma_dev`, for which `data` is mapped, stays alive until after `data` is dropped.
    pub(crate) fn transmit<P: Provider<Tx = T>>(
        dev: &TxDevice<'_>,
        dma_dev: DmaDevice<'_>,
        data: impl PinInit<T, Error>,
        request: &BindRequest<'_>,
    ) -> Result<Self> {
        let base = bindings::net_devmem_binding {
            ops: P::ops().as_ptr(),
            direction: Direction::ToDevice.as_raw(),
            vdev: dev.virtual_device().cast(),
            ..Default::default()
        };

        // SAFETY: The device is locked. `T` is what `P` has for this direction.
        unsafe { Self::new(base, dev.as_ptr(), dma_dev, data, request) }
    }
}

impl<T: Data> Draft<T> {
    /// # Safety
    ///
    /// `base` has to have ops and direction as the type invariants of [`Binding`] tell, and `dev` to
    /// be a registered device that is locked. The core has to be in one of the bind callbacks of
    /// these ops.
    unsafe fn new<E>(
        base: bindings::net_devmem_binding,
        dev: *mut bindings::net_device,
        dma_dev: DmaDevice<'_>,
        data: impl PinInit<T, E>,
        request: &BindRequest<'_>,
    ) -> Result<Self>
    where
        Error: From<E>,
    {
        let binding = KBox::try_pin_init(
            try_pin_init!(Binding {
                base: Opaque::new(base),
                data <- data,
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )?;
        let base = binding.base.get();

        // SAFETY: `base` is ours, and zeroed but for what the core wants filled in. By the
        // requirements of this function `dev` is alive and the ops are in use; `dma_dev` and
        // `request` are valid by their type invariants.
        unsafe {
            (*base).niov_shift = binding.data.niov_shift();
            to_result(bindings::net_devmem_binding_init(
                base,
                dev,
                dma_dev.as_ptr(),
                request.info(),
            ))?;
        }
        // SAFETY: The binding lives longer than its net_iovs are in use: page pools hold it, and so
        // does each frag in flight. Nobody has the net_iovs yet.
        unsafe { binding.data.area().attach(base) };

        // INVARIANT: Initialised above.
        Ok(Self(binding))
    }

    /// Gives the binding its id, and to the netlink socket of `request`.
    pub(crate) fn publish(self, request: &BindRequest<'_>) -> Result<Bound<T>> {
        // SAFETY: By the type invariants the binding is initialised and not published. `request`
        // has the lock of its netlink socket.
        to_result(unsafe {
            bindings::net_devmem_binding_publish(self.0.base.get(), request.owner())
        })?;

        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so its box is moved out of it once.
        let binding = unsafe { core::ptr::read(&raw const this.0) };
        // SAFETY: The binding is not moved until it is freed.
        let ptr = KBox::into_raw(unsafe { Pin::into_inner_unchecked(binding) });
        // INVARIANT: It was published.
        // SAFETY: A box is never null.
        Ok(Bound(unsafe { NonNull::new_unchecked(ptr) }))
    }
}

impl<T: Data> Drop for Draft<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the binding is initialised and not published. That the
        // DMA device is put before the memory is unmapped does no harm: drafts do not outlive the
        // request that they serve, during which the device is locked, and so there.
        unsafe { bindings::net_devmem_binding_uninit(self.0.base.get()) }
    }
}

/// A binding that has an id and an owner, while its request is served.
///
/// Unbound when dropped. The core frees it once nobody has a reference any more.
///
/// # Invariants
///
/// The binding is published, and neither unbound nor left to the core yet.
pub(crate) struct Bound<T: Data>(NonNull<Binding<T>>);

impl<T: Data> Bound<T> {
    fn base(&self) -> *mut bindings::net_devmem_binding {
        // SAFETY: By the type invariants the binding is alive: the owner's reference is there.
        unsafe { (*self.0.as_ptr()).base.get() }
    }

    pub(super) fn into_base(self) -> *mut bindings::net_devmem_binding {
        ManuallyDrop::new(self).base()
    }
}

impl<T: Receive> Bound<T> {
    /// Lets a receive queue take its buffers from the binding. Restarts the queue.
    ///
    /// Errors are those of `netif_mp_open_rxq()`, which tells the reason in the extended ack.
    pub(crate) fn open_rxq(
        &self,
        _dev: &LockedNetDevice<'_>,
        rxq: u32,
        request: &BindRequest<'_>,
    ) -> Result {
        // SAFETY: By the type invariants the binding is published. `_dev` is the lock.
        to_result(unsafe {
            bindings::net_devmem_binding_open_rxq(self.base(), rxq, request.extack())
        })
    }
}

impl<T: Data> Drop for Bound<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the binding is published. It does not outlive the request
        // that it serves, which has the locks of netlink socket and device.
        unsafe { bindings::net_devmem_unbind(self.base()) }
    }
}
