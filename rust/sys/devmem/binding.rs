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
            LocalMemory,
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
/// `provider` is that of a [`DevmemProvider`] `P`. Once `base` is initialised, its ops are those of `P`. `M` goes with
/// its [`Kind`]: it is that of [`RxBinding`] or [`TxBinding`] of `P`, or of [`LocalBinding`].
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

/// A binding that is sent from to readers on this machine.
pub(super) type LocalBinding = Binding<LocalMemory>;

/// What a binding is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Receive,
    Transmit,
    Local,
}

impl Kind {
    /// # Safety
    ///
    /// `base` has to be a binding that is initialised, and alive.
    pub(super) unsafe fn of(base: *const bindings::net_devmem_binding) -> Self {
        // SAFETY: By the requirements of this function. Neither changes: what is local may be gone by now, but it is only
        // asked whether there was something.
        let (direction, local) = unsafe { ((*base).direction, (*base).local) };

        match Direction::from_raw(direction) {
            Direction::FromDevice => Self::Receive,
            Direction::ToDevice if local.is_null() => Self::Transmit,
            Direction::ToDevice => Self::Local,
        }
    }
}

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
    let (owner, kind) = unsafe {
        let base = base.as_ptr();
        ((*(*base).ops).owner, Kind::of(base))
    };

    // What is built in has no owner, so that there is no telling whose it is.
    if owner.is_null() || owner != module || kind != Kind::Receive {
        return None;
    }
    // SAFETY: All bindings of this module are made here, and begin the same.
    let provider = unsafe { Binding::<()>::from_base(base.as_ptr()) }.provider;
    // SAFETY: By the type invariants, it being that provider and kind.
    (provider == TypeId::of::<P>()).then(|| unsafe { Binding::from_base(base.as_ptr()) })
}
