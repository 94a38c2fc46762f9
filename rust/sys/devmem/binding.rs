// SPDX-License-Identifier: GPL-2.0

//! A binding, from its making until the core frees it.

use core::{
    cell::Cell,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    error::to_result,
    prelude::*,
    types::Opaque, //
};

use super::{
    super::{
        bindings,
        dma_buf::Direction,
        genetlink::{
            BindRequest,
            RxBindRequest,
            TxBindRequest, //
        },
        net_device::{
            device_ptr,
            LockedNetDevice,
            TxDevice, //
        },
    },
    memory::Memory,
    Provider,
    RxMemory,
    TxMemory, //
};

/// A binding: what the core keeps for it, and its memory.
///
/// # Invariants
///
/// Once it is in an [`Initialised`], `base` is initialised. Its ops are those of a [`Provider`] `P`. `M`
/// is [`RxMemory`] if its direction is `DMA_FROM_DEVICE`, and [`TxMemory`] if it is `DMA_TO_DEVICE`.
#[pin_data]
#[repr(C)]
pub(super) struct Binding<M> {
    #[pin]
    base: Opaque<bindings::net_devmem_binding>,
    #[pin]
    pub(super) memory: M,
}

/// A binding that is received into.
pub(super) type RxBinding = Binding<RxMemory>;

/// A binding that is sent from.
pub(super) type TxBinding = Binding<TxMemory>;

impl<M> Binding<M> {
    /// The binding whose part for the core is `base`.
    ///
    /// # Safety
    ///
    /// `base` has to be in a `Binding<M>` that lives for `'a`.
    pub(super) unsafe fn from_base<'a>(base: *mut bindings::net_devmem_binding) -> &'a Self {
        // SAFETY: By the requirements of this function, and since `base` comes first.
        unsafe { &*base.cast::<Self>() }
    }

    /// Frees a binding.
    ///
    /// # Safety
    ///
    /// `base` has to be in a `Binding<M>` that was [published](Draft::publish), and that nobody uses
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
struct Initialised<M>(Pin<KBox<Binding<M>>>);

impl<M> Initialised<M> {
    fn into_inner(self) -> Pin<KBox<Binding<M>>> {
        let this = ManuallyDrop::new(self);

        // SAFETY: `this` is not dropped, so its box is moved out of it once.
        unsafe { core::ptr::read(&raw const this.0) }
    }
}

impl<M> Drop for Initialised<M> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the binding is initialised and not published. The mapping has a
        // reference to the DMA device of its own.
        unsafe { bindings::net_devmem_binding_uninit(self.0.base.get()) }
    }
}

/// A binding that has an id and an owner.
///
/// # Invariants
///
/// The binding is published, and neither unbound nor left to the core yet.
struct Published<M>(NonNull<Binding<M>>);

impl<M> Published<M> {
    fn as_ref(&self) -> &Binding<M> {
        // SAFETY: By the type invariant the binding is alive: the owner's reference is there.
        unsafe { self.0.as_ref() }
    }

    fn base(&self) -> *mut bindings::net_devmem_binding {
        self.as_ref().base.get()
    }
}

impl<M> Drop for Published<M> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the binding is published. It is in a `Bound`, which has the
        // locks of netlink socket and device.
        unsafe { bindings::net_devmem_unbind(self.base()) }
    }
}

/// A binding that nobody knows of yet, for a device that stays locked until there is none.
pub(crate) struct Draft<'a, M: Memory> {
    // Comes first, to be dropped under the lock.
    binding: Initialised<M>,
    dev: M::Device<'a>,
}

impl<'a> Draft<'a, RxMemory> {
    /// Makes a binding for receive queues of `dev`, which `request` asks for.
    pub(crate) fn receive<P: Provider>(
        dev: LockedNetDevice<'a>,
        memory: impl PinInit<RxMemory, Error>,
        request: &RxBindRequest<'_>,
    ) -> Result<Self> {
        let raw = dev.as_ptr();

        // SAFETY: The device is locked, and there is no other. The memory is as the type
        // invariants of `Binding` have them. It is a bind-rx request. That a queue's DMA is done by the
        // device that the memory is mapped for is seen to when it is opened.
        unsafe { Self::new::<P>(dev, raw, core::ptr::null_mut(), memory, request) }
    }
}

impl<'a> Draft<'a, TxMemory> {
    /// Makes a binding for frags that `dev` transmits, which `request` asks for. It is the current
    /// task's: the core sees to who may send from it, and to how many a user has (`ENOSPC`). `EINVAL` if
    /// the DMA of `dev` is not done by the device that the memory is mapped for.
    pub(crate) fn transmit<P: Provider>(
        dev: TxDevice<'a>,
        memory: impl PinInit<TxMemory, Error>,
        request: &TxBindRequest<'_>,
    ) -> Result<Self> {
        let (raw, vdev) = (dev.as_ptr(), dev.virtual_device().cast());
        // SAFETY: The devices are locked. The memory is as the type invariants of `Binding` have
        // them. It is a bind-tx request.
        let draft = unsafe { Self::new::<P>(dev, raw, vdev, memory, request)? };

        if !draft.binding.0.memory.is_mapped_for(draft.dev.dma_device()) {
            return Err(EINVAL);
        }
        Ok(draft)
    }
}

impl<'a, M: Memory> Draft<'a, M> {
    /// # Safety
    ///
    /// `raw` has to be the device for which `dev` has a lock. `M` has to be as the type
    /// invariants of [`Binding`] tell for `P` and [`M::DIRECTION`](Memory::DIRECTION), and `request` one for
    /// that direction: the core looks at its attributes.
    unsafe fn new<P: Provider>(
        dev: M::Device<'a>,
        raw: *mut bindings::net_device,
        vdev: *mut c_void,
        memory: impl PinInit<M, Error>,
        request: &BindRequest<'_>,
    ) -> Result<Self> {
        let base = bindings::net_devmem_binding {
            ops: P::ops().as_ptr(),
            direction: M::DIRECTION.as_raw(),
            vdev,
            ..Default::default()
        };
        let binding = KBox::try_pin_init(
            try_pin_init!(Binding {
                base: Opaque::new(base),
                memory <- memory,
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )?;
        let base = binding.base.get();
        let dma_dev = binding.memory.device().ok_or(ENODEV)?;

        // SAFETY: `base` is ours, and zeroed but for what the core wants filled in. By the
        // requirements of this function `raw` is alive and the ops are in use; `dma_dev` is alive,
        // and `request` is valid by its type invariants.
        unsafe {
            (*base).niov_shift = binding.memory.niov_shift();
            to_result(bindings::net_devmem_binding_init(
                base,
                raw,
                device_ptr(&dma_dev),
                request.info(),
            ))?;
        }
        // SAFETY: The binding lives longer than its net_iovs are in use: page pools hold it, and so
        // does each frag in flight. Nobody has the net_iovs yet: nobody but the binding has its memory.
        unsafe { binding.memory.area().attach(base) };

        Ok(Self {
            // INVARIANT: Initialised above.
            binding: Initialised(binding),
            dev,
        })
    }

    /// Gives the binding its id, and to the netlink socket of `request`.
    pub(crate) fn publish(self, request: &'a BindRequest<'_>) -> Result<Bound<'a, M>> {
        // In this order, so that the binding is dropped under the lock.
        let Self { dev, binding } = self;

        // SAFETY: By the type invariants the binding is initialised and not published, and its device
        // locked. `request` has the lock of its netlink socket.
        to_result(unsafe {
            bindings::net_devmem_binding_publish(binding.0.base.get(), request.owner())
        })?;
        // SAFETY: The binding is not moved until it is freed.
        let ptr = KBox::into_raw(unsafe { Pin::into_inner_unchecked(binding.into_inner()) });

        Ok(Bound {
            // INVARIANT: It was published.
            // SAFETY: A box is never null.
            binding: Published(unsafe { NonNull::new_unchecked(ptr) }),
            has_queue: Cell::new(false),
            dev,
        })
    }
}

/// A binding that has an id and an owner, while its request is served and its device is locked.
///
/// Unbound when dropped. The core frees it once nobody has a reference any more.
pub(crate) struct Bound<'a, M: Memory> {
    // Comes first, to be dropped under the lock.
    binding: Published<M>,
    /// Whether a queue was opened.
    has_queue: Cell<bool>,
    dev: M::Device<'a>,
}

impl<M: Memory> Bound<'_, M> {
    /// Leaves the binding to the core. `EINVAL` for one that is received into, but is on no queue: by its
    /// queues it hears that its device goes, and it would keep a pointer to that.
    pub(super) fn into_base(self) -> Result<*mut bindings::net_devmem_binding> {
        // In this order, so that the binding is dropped under the lock.
        let Self {
            dev,
            has_queue,
            binding,
        } = self;

        if M::DIRECTION == Direction::FromDevice && !has_queue.get() {
            return Err(EINVAL);
        }
        let base = ManuallyDrop::new(binding).base();

        drop(dev);
        Ok(base)
    }
}

impl Bound<'_, RxMemory> {
    /// Lets a receive queue of the device take its buffers from the binding. Restarts the queue.
    ///
    /// `EINVAL` if its DMA is not done by the device that the memory is mapped for. Other errors are those
    /// of `netif_mp_open_rxq()`, which tells the reason in the extended ack.
    pub(crate) fn open_rxq(&self, rxq: u32, request: &RxBindRequest<'_>) -> Result {
        let memory = &self.binding.as_ref().memory;

        if !memory.is_mapped_for(self.dev.dma_device(rxq)) {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariants the binding is published, and its device locked.
        to_result(unsafe {
            bindings::net_devmem_binding_open_rxq(self.binding.base(), rxq, request.extack())
        })?;
        self.has_queue.set(true);
        Ok(())
    }
}
