// SPDX-License-Identifier: GPL-2.0

//! Providers of device memory, and their bindings.
//!
//! C header: [`include/net/devmem.h`](srctree/include/net/devmem.h)
//!
//! A provider implements [`MemoryProvider`] and [`DevmemProvider`], and [registers](Registration) itself. A
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
    draft::Draft,
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
pub(crate) struct Registration<P>(&'static bindings::net_devmem_ops, PhantomData<fn(P)>);

// SAFETY: Nobody changes the ops, and all that is done with them may be done by any thread.
unsafe impl<P> Send for Registration<P> {}

// SAFETY: As above.
unsafe impl<P> Sync for Registration<P> {}

impl<P: DevmemProvider> Registration<P> {
    /// Registers provider `P`. From now on it serves new bindings.
    ///
    /// `EEXIST` if there is a provider of that name, or `ENOMEM`. Process context.
    pub(crate) fn new() -> Result<Self> {
        let ops = ops::vtable::<P>();

        // SAFETY: The ops live as long as the module, and `drop` withdraws them before it goes.
        to_result(unsafe { bindings::net_devmem_register(ops) })?;
        // INVARIANT: Registered right above.
        Ok(Self(ops, PhantomData))
    }
}

impl<P> Drop for Registration<P> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the ops are registered. There are no bindings: they hold
        // the module, which is being unloaded.
        unsafe { bindings::net_devmem_unregister(self.0) }
    }
}
