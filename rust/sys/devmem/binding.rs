// SPDX-License-Identifier: GPL-2.0

//! A binding: what the core keeps for it, and its memory.

use core::{
    any::TypeId,
    ptr::NonNull, //
};

use kernel::{
    module::this_module,
    prelude::*,
    types::Opaque, //
};

use super::{
    super::{
        bindings,
        memory::{
            RxMemory,
            TxMemory, //
        },
        source::Direction, //
    },
    provider::{
        DevmemProvider,
        MemoryProvider, //
    }, //
};

/// A binding.
///
/// # Invariants
///
/// `provider` is that of a [`DevmemProvider`] `P`. Once `base` is initialised, its ops are those of `P`. `M` is
/// the [`RxBinding`]'s of `P` if its direction is `DMA_FROM_DEVICE`, and the [`TxBinding`]'s if it is
/// `DMA_TO_DEVICE`.
#[pin_data]
#[repr(C)]
pub(super) struct Binding<M> {
    #[pin]
    base: Opaque<bindings::net_devmem_binding>,
    provider: TypeId,
    #[pin]
    pub(super) memory: M,
}

/// A binding of `P` that is received into.
pub(super) type RxBinding<P> = Binding<RxMemory<<P as MemoryProvider>::Source>>;

/// A binding of `P` that is sent from.
pub(super) type TxBinding<P> = Binding<TxMemory<<P as MemoryProvider>::Source>>;

impl<M> Binding<M> {
    /// A binding of `P`, whose part for the core is to be initialised.
    ///
    /// # Safety
    ///
    /// `base` has to have the ops of `P`, and to be as the type invariants have it.
    pub(super) unsafe fn new<P: DevmemProvider>(
        base: bindings::net_devmem_binding,
        memory: impl PinInit<M, Error>,
    ) -> impl PinInit<Self, Error> {
        // INVARIANT: By the requirements of this function.
        try_pin_init!(Self {
            base: Opaque::new(base),
            provider: TypeId::of::<P>(),
            memory <- memory,
        }? Error)
    }

    /// The core's part.
    pub(super) fn base(&self) -> NonNull<bindings::net_devmem_binding> {
        NonNull::from(&self.base).cast()
    }

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
    /// `base` has to be in a `Binding<M>` that was published, and that nobody uses any more.
    pub(super) unsafe fn free(base: *mut bindings::net_devmem_binding) {
        // SAFETY: By the requirements of this function: publishing took it out of its box, in which
        // it was pinned.
        drop(unsafe { Pin::new_unchecked(KBox::from_raw(base.cast::<Self>())) });
    }
}

/// The binding that this is, if it is one of `P` that is received into.
///
/// # Safety
///
/// `base` has to be a published binding of whatever provider that lives for `'a`.
pub(super) unsafe fn received_by<'a, P: DevmemProvider>(
    base: NonNull<bindings::net_devmem_binding>,
) -> Option<&'a RxBinding<P>> {
    let module = this_module::<P::OwnerModule>().as_ptr();
    // SAFETY: By the requirements of this function. The ops of a binding are there for as long as it is.
    let (owner, direction) = unsafe {
        let base = base.as_ptr();
        ((*(*base).ops).owner, (*base).direction)
    };

    // What is built in has no owner, so that there is no telling whose it is.
    if owner.is_null() || owner != module || Direction::from_raw(direction) != Direction::FromDevice
    {
        return None;
    }
    // SAFETY: All bindings of this module are made here, and begin the same.
    let provider = unsafe { Binding::<()>::from_base(base.as_ptr()) }.provider;
    // SAFETY: By the type invariants, it being that provider and direction.
    (provider == TypeId::of::<P>()).then(|| unsafe { Binding::from_base(base.as_ptr()) })
}
