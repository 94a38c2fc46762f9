// SPDX-License-Identifier: GPL-2.0

//! Providers of device memory, and their bindings.
//!
//! C header: [`include/net/devmem.h`](srctree/include/net/devmem.h)
//!
//! A provider implements [`MemoryProvider`] and [`DevmemProvider`], and its module is a [`ProviderModule`]. A
//! binding is made in steps, each a type: memory and a locked device become a [`Draft`], which is
//! [published](Draft::publish) and gets its [queues](RxBound::open_rxq), and is then left to the core as
//! the result of [`DevmemProvider::bind_rx`] or [`DevmemProvider::bind_tx`]. Dropped at any step, it takes back
//! what the steps so far did.
//!
//! What page pools ask of a binding is answered in here: net_iovs and free list are the binding's own,
//! and no provider sees them.

use core::marker::PhantomData;

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::bindings;

mod binding;
mod bound;
mod copy;
mod draft;
mod memory_provider;
mod ops;
mod provider;

pub(crate) use self::{
    bound::{
        RxBound,
        TxBound, //
    },
    draft::{
        Draft,
        PublishError, //
    },
    provider::{
        DevmemProvider,
        MemoryProvider, //
    }, //
};

#[allow(
    unused_imports,
    reason = "not every provider has memory that the CPU reads"
)]
pub(crate) use self::copy::copy;

/// A provider that is registered, until this is dropped.
///
/// # Invariants
///
/// The ops are registered. They are those of `P`.
struct Registration<P>(&'static bindings::net_devmem_ops, PhantomData<fn(P)>);

// SAFETY: Nobody changes the ops, and all that is done with them may be done by any thread.
unsafe impl<P> Send for Registration<P> {}

// SAFETY: As above.
unsafe impl<P> Sync for Registration<P> {}

impl<P: DevmemProvider> Registration<P> {
    /// Registers provider `P`. From now on it serves new bindings.
    ///
    /// `EEXIST` if there is a provider of that name, or `ENOMEM`. Process context.
    ///
    /// # Safety
    ///
    /// The module must not go before this is dropped, and not fail to load from here on.
    unsafe fn new() -> Result<Self> {
        let ops = ops::vtable::<P>();

        // SAFETY: The ops live as long as the module, and `drop` withdraws them before it goes, by the
        // requirements of this function.
        to_result(unsafe { bindings::net_devmem_register(ops) })?;
        // INVARIANT: Registered right above.
        Ok(Self(ops, PhantomData))
    }
}

impl<P> Drop for Registration<P> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the ops are registered. If there are bindings they hold the module,
        // which outlives this, and its ops.
        unsafe { bindings::net_devmem_unregister(self.0) }
    }
}

/// The module of provider `P`, which serves new bindings from the time it is loaded until it is unloaded. For
/// `module!`.
///
/// The module is nothing else. Otherwise it could fail to load after it has served somebody, whose binding would
/// be left with callbacks that are gone.
pub(crate) struct ProviderModule<P>(#[allow(dead_code, reason = "dropped")] Registration<P>);

impl<P: DevmemProvider<OwnerModule = Self>> kernel::Module for ProviderModule<P> {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: `P` says that the module is of this type, so what this returns is its object, which is dropped
        // when it goes; and it fails to load only if this fails.
        unsafe { Registration::new() }.map(Self)
    }
}
