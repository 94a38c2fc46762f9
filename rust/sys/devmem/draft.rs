// SPDX-License-Identifier: GPL-2.0

//! A binding that is being made.

use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    error::to_result,
    prelude::*, //
};

use super::{
    super::{
        bindings,
        claim::{
            Owner,
            TakenBack, //
        },
        genetlink::{
            BindRequest,
            RxBindRequest,
            TxBindRequest, //
        },
        memory::{
            LocalMemory,
            Memory,
            RxMemory,
            TxMemory, //
        },
        net_device::{
            device_ptr,
            LocalDevice,
            LockedNetDevice,
            TxDevice, //
        },
        source::Source, //
    },
    binding::Binding,
    bound::Bound,
    ops,
    provider::DevmemProvider, //
};

/// A binding that nobody knows of yet.
///
/// # Invariants
///
/// The core's part is initialised, and not published.
struct Initialised<M: Memory>(Pin<KBox<Binding<M>>>);

impl<M: Memory> Initialised<M> {
    fn into_inner(self) -> Pin<KBox<Binding<M>>> {
        let this = ManuallyDrop::new(self);

        // SAFETY: `this` is not dropped, so its box is moved out of it once.
        unsafe { core::ptr::read(&raw const this.0) }
    }
}

impl<M: Memory> Drop for Initialised<M> {
    fn drop(&mut self) {
        // What is accounted ends below, and so after what it is for.
        self.0.memory.mapped().unmap();
        // SAFETY: By the type invariant the binding is initialised and not published. The mapping, if there is
        // one, has a reference to the DMA device of its own.
        unsafe { bindings::net_devmem_binding_uninit(self.0.base().as_ptr()) }
    }
}

/// A binding that nobody knows of yet, for a device that stays locked until there is none.
pub(crate) struct Draft<'a, M: Memory> {
    // Comes first, to be dropped under the lock.
    binding: Initialised<M>,
    dev: M::Device<'a>,
}

impl<'a, S: Source> Draft<'a, RxMemory<S>> {
    /// Makes a binding of `P` for receive queues of `dev`, which `request` asks for.
    pub(crate) fn receive<P: DevmemProvider<Source = S>>(
        dev: LockedNetDevice<'a>,
        memory: impl PinInit<RxMemory<S>, Error>,
        request: &RxBindRequest<'_>,
    ) -> Result<Self> {
        let raw = dev.as_ptr();

        // SAFETY: The device is locked, and there is no other. The memory is as the type
        // invariants of `Binding` have them. It is a bind-rx request. That a queue's DMA is done by the
        // device that the memory is mapped for is seen to when it is opened.
        unsafe { Self::new::<P>(dev, raw, core::ptr::null_mut(), memory, request) }
    }
}

impl<'a, S: Source> Draft<'a, TxMemory<S>> {
    /// Makes a binding of `P` for frags that `dev` transmits, which `request` asks for. It is the current
    /// task's: the core sees to who may send from it, and to how many a user has (`ENOSPC`). `EINVAL` if
    /// the DMA of `dev` is not done by the device that the memory is mapped for, or if that is not accounted,
    /// `EOPNOTSUPP` if `P` has no [`fill`](DevmemProvider::fill), or if a local binding is asked for.
    pub(crate) fn transmit<P: DevmemProvider<Source = S>>(
        dev: TxDevice<'a>,
        memory: impl PinInit<TxMemory<S>, Error>,
        request: &TxBindRequest<'_>,
    ) -> Result<Self> {
        if !P::HAS_FILL || request.local().is_some() {
            return Err(EOPNOTSUPP);
        }
        let (raw, vdev) = (dev.as_ptr(), dev.virtual_device().cast());
        // SAFETY: The devices are locked. The memory is as the type invariants of `Binding` have
        // them. It is a bind-tx request.
        let draft = unsafe { Self::new::<P>(dev, raw, vdev, memory, request)? };

        let mapped = draft.binding.0.memory.mapped();
        let is_for = |dma_dev| mapped.is_for(dma_dev);
        if !draft.dev.dma_device().is_some_and(is_for) {
            return Err(EINVAL);
        }
        draft.account()?;
        Ok(draft)
    }
}

impl<'a> Draft<'a, LocalMemory> {
    /// Makes a binding of `P` that is mapped for no device, which `request` asks for: what is sent from it by `dev`
    /// is for readers on this machine. Whose it is, and how many there are, is as with [`transmit`](Self::transmit).
    /// `EINVAL` if the memory is not accounted, or if no local binding is asked for; `EOPNOTSUPP` if `P` has no
    /// [`fill`](DevmemProvider::fill).
    pub(crate) fn local<P: DevmemProvider>(
        dev: LocalDevice<'a>,
        memory: impl PinInit<LocalMemory, Error>,
        request: &TxBindRequest<'_>,
    ) -> Result<Self> {
        if !P::HAS_FILL {
            return Err(EOPNOTSUPP);
        }
        if request.local().is_none() {
            return Err(EINVAL);
        }
        let raw = dev.as_ptr();

        // SAFETY: The device is locked. The memory is as the type invariants of `Binding` have it. It is a
        // bind-tx request.
        let draft = unsafe { Self::new::<P>(dev, raw, core::ptr::null_mut(), memory, request)? };

        draft.account()?;
        Ok(draft)
    }
}

impl<'a, M: Memory> Draft<'a, M> {
    /// Leaves to the core what the memory is accounted as. `EINVAL` if it is not.
    fn account(&self) -> Result {
        let account = self.binding.0.memory.mapped().take_account();
        let account = account.ok_or(EINVAL)?;

        // SAFETY: The binding is initialised, and ours. Nothing is accounted for it yet: there is one account for the
        // memory, and that was just taken.
        unsafe { (*self.binding.0.base().as_ptr()).pinned = account };
        Ok(())
    }

    /// # Safety
    ///
    /// `raw` has to be the device for which `dev` has a lock. `M` has to be as the type
    /// invariants of [`Binding`] tell for `P`, [`M::DIRECTION`](Memory::DIRECTION) and whether it is
    /// [local](Memory::local), and `request` one for that direction: the core looks at its attributes.
    unsafe fn new<P: DevmemProvider>(
        dev: M::Device<'a>,
        raw: *mut bindings::net_device,
        vdev: *mut c_void,
        memory: impl PinInit<M, Error>,
        request: &BindRequest<'_>,
    ) -> Result<Self> {
        let base = bindings::net_devmem_binding {
            ops: ops::vtable::<P>(),
            direction: M::DIRECTION.as_raw(),
            vdev,
            ..Default::default()
        };
        // SAFETY: By the requirements of this function.
        let binding = unsafe { Binding::new::<P>(base, memory) };
        let binding = KBox::pin_init(binding, GFP_KERNEL_ACCOUNT)?;
        let base = binding.base().as_ptr();
        let local = binding.memory.local();
        let dma_dev = match local {
            Some(_) => None,
            None => Some(binding.memory.mapped().device().ok_or(ENODEV)?),
        };

        // SAFETY: `base` is ours, and zeroed but for what the core wants filled in. By the
        // requirements of this function `raw` is alive and the ops are in use; `dma_dev` is alive,
        // if there is one, and `request` is valid by its type invariants. The memory keeps what is local until
        // the core has it unmapped.
        unsafe {
            (*base).local = local.map_or(core::ptr::null_mut(), NonNull::as_ptr);
            (*base).niov_shift = binding.memory.niov_shift();
            (*base).peer = match binding.memory.mapped().is_peer_to_peer() {
                None => bindings::net_devmem_peer_NET_DEVMEM_PEER_UNKNOWN,
                Some(false) => bindings::net_devmem_peer_NET_DEVMEM_PEER_NO,
                Some(true) => bindings::net_devmem_peer_NET_DEVMEM_PEER_YES,
            };
            to_result(bindings::net_devmem_binding_init(
                base,
                raw,
                dma_dev.as_deref().map_or(core::ptr::null_mut(), device_ptr),
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
    ///
    /// [`TakenBack`](PublishError::TakenBack) if the memory was, meanwhile.
    pub(crate) fn publish(
        self,
        request: &'a BindRequest<'_>,
    ) -> Result<Bound<M::Device<'a>>, PublishError> {
        // In this order, so that the binding is dropped under the lock.
        let Self { dev, binding } = self;

        // SAFETY: By the type invariants the binding is initialised and not published, and its device
        // locked. `request` has the lock of its netlink socket.
        to_result(unsafe {
            bindings::net_devmem_binding_publish(binding.0.base().as_ptr(), request.owner())
        })
        .map_err(PublishError::Core)?;
        // SAFETY: The binding is not moved until it is freed.
        let ptr = KBox::into_raw(unsafe { Pin::into_inner_unchecked(binding.into_inner()) });
        // SAFETY: A box is never null.
        let base = unsafe { NonNull::new_unchecked(ptr.cast()) };
        // SAFETY: It was published, and the core's part comes first. `dev` is its device's lock; the request, which
        // has that of the netlink socket, lives as long.
        let bound = unsafe { Bound::from_published(base, dev) };

        // SAFETY: It was published, and is unmapped before it is freed. It is there: its owner, the netlink socket, is
        // locked.
        unsafe { (*ptr).memory.mapped().set_owner(Owner::new(base)) }
            .map_err(|TakenBack| PublishError::TakenBack)?;
        Ok(bound)
    }
}

/// Why there is no binding.
pub(crate) enum PublishError {
    /// The core does not want one.
    Core(Error),
    /// The memory was taken back.
    TakenBack,
}

impl From<PublishError> for Error {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Core(error) => error,
            PublishError::TakenBack => ENODEV,
        }
    }
}
