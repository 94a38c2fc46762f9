// SPDX-License-Identifier: GPL-2.0

//! Providers of device memory, and their bindings.
//!
//! C header: [`include/net/devmem.h`](srctree/include/net/devmem.h)
//!
//! A provider implements [`Provider`]. Its crate root makes the tables that the core calls it through,
//! [`MemoryProviderOps`] and [`DevmemOps`], and registers them. A binding is made in steps, each a type:
//! [`RxMemory`] or [`TxMemory`] and a locked device become a [`Draft`], which is
//! [published](Draft::publish) and gets its [queues](Bound::open_rxq), and is then left to the core as
//! the result of [`Provider::bind_rx`] or [`Provider::bind_tx`]. Dropped at any step, it takes back what the
//! steps so far did.
//!
//! What page pools ask of a binding is answered in here: net_iovs and free list are the binding's own,
//! and no provider sees them.

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::{
    bindings,
    genetlink::{
        RxBindRequest,
        TxBindRequest, //
    },
    iov_iter::OffsetRanges,
    skbuff::{
        RxSkBuff,
        TxSkBuff, //
    },
    sock::{
        LockedSock,
        Message,
        Sock, //
    },
    token::Range, //
};

mod binding;
mod memory;
mod memory_provider;
mod ops;

pub(crate) use self::{
    binding::{
        Bound,
        Draft, //
    },
    memory::{
        MemoryError,
        RxMemory,
        TxMemory, //
    },
    memory_provider::MemoryProviderOps,
    ops::DevmemOps, //
};
pub(crate) use super::dma_buf::Direction;

/// A binding of receive queues, as [`Provider::bind_rx`] leaves it.
pub(crate) type RxBound<'a> = Bound<'a, RxMemory>;

/// A binding to be sent from, as [`Provider::bind_tx`] leaves it.
pub(crate) type TxBound<'a> = Bound<'a, TxMemory>;

/// How many net_iovs a binding has, and how many of them are not free.
pub(crate) struct Stats {
    /// All of them.
    pub(crate) buffers: usize,
    /// Those that somebody has: page pools, devices, the stack, users.
    pub(crate) in_use: usize,
}

/// A provider of device memory.
pub(crate) trait Provider: Sized + 'static {
    /// The table for this provider.
    fn ops() -> &'static DevmemOps<Self>;

    /// Serves a bind-rx request. A binding that is on no queue is refused (`EINVAL`). Process context, lock
    /// of the netlink socket held.
    fn bind_rx<'a>(request: &'a RxBindRequest<'_>) -> Result<RxBound<'a>>;

    /// Serves a bind-tx request. Process context, lock of the netlink socket held.
    fn bind_tx<'a>(request: &'a TxBindRequest<'_>) -> Result<TxBound<'a>>;

    /// Passes up to `len` bytes of `skb`, starting at `offset`, to the reader of `msg`. Returns how many.
    /// Fails only if there were none. Process context, socket locked.
    fn recvmsg(
        sk: &LockedSock<'_>,
        skb: &mut RxSkBuff<'_>,
        offset: usize,
        msg: &mut Message<'_>,
        len: usize,
    ) -> Result<usize>;

    /// Takes the tokens in `ranges` back from the user. Returns how many there were. Process context.
    fn dontneed(sk: &Sock<'_>, ranges: impl Iterator<Item = Range>) -> usize;

    /// Appends what `ranges` say to `skb`, as long as it has [room](TxSkBuff::room). `EMSGSIZE` if the
    /// skb is full. Process context, socket locked.
    fn fill(skb: &mut TxSkBuff<'_>, ranges: &mut OffsetRanges<'_>) -> Result;
}

/// A provider that is registered, until this is dropped.
///
/// # Invariants
///
/// The ops are registered.
pub(crate) struct Registration<T: Provider>(&'static DevmemOps<T>);

impl<T: Provider> Registration<T> {
    /// Registers provider `T`. From now on it serves new bindings.
    ///
    /// `EEXIST` if there is a provider of that name, or `ENOMEM`. Process context.
    pub(crate) fn new() -> Result<Self> {
        let ops = T::ops();

        // SAFETY: The ops live as long as the module, and `drop` withdraws them before it goes.
        to_result(unsafe { bindings::net_devmem_register(ops.as_ptr()) })?;
        // INVARIANT: Registered right above.
        Ok(Self(ops))
    }
}

impl<T: Provider> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the ops are registered. There are no bindings: they hold
        // the module, which is being unloaded.
        unsafe { bindings::net_devmem_unregister(self.0.as_ptr()) }
    }
}
