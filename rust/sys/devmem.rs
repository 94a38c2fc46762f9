// SPDX-License-Identifier: GPL-2.0

//! Providers of device memory, and their bindings.
//!
//! C header: [`include/net/devmem.h`](srctree/include/net/devmem.h)
//!
//! A provider implements [`Provider`], and [`Receive`] and [`Transmit`] for what it keeps for each
//! binding. Its crate root makes the tables that the core calls it through, [`MemoryProviderOps`] and
//! [`DevmemOps`], and registers them. A binding is made in steps, each a type: the provider's data
//! become a [`Draft`], which is [published](Draft::publish) and gets its [queues](Bound::open_rxq),
//! and is then left to the core as the result of [`Provider::bind_rx`] or [`Provider::bind_tx`].
//! Dropped at any step, it takes back what the steps so far did.

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::{
    bindings,
    free_list::{
        Batch,
        NiovId, //
    },
    genetlink::BindRequest,
    iov_iter::OffsetRanges,
    netmem::NetIovArea,
    page_pool::NewPagePool,
    skbuff::{
        RxSkBuff,
        TxSkBuff, //
    },
    sock::{
        Message,
        Sock, //
    },
    token::Range, //
};

mod binding;
mod memory_provider;
mod ops;

pub(crate) use self::{
    binding::{
        Bound,
        Draft, //
    },
    memory_provider::MemoryProviderOps,
    ops::DevmemOps, //
};
pub(crate) use super::dma_buf::Direction;

/// How many net_iovs a binding has, and how many of them are not free.
pub(crate) struct Stats {
    /// All of them.
    pub(crate) buffers: usize,
    /// Those that somebody has: page pools, devices, the stack, users.
    pub(crate) in_use: usize,
}

/// A provider of device memory.
pub(crate) trait Provider: Sized + 'static {
    /// What it keeps for a binding of receive queues.
    type Rx: Receive;

    /// What it keeps for a binding that is sent from.
    type Tx: Transmit;

    /// The table for this provider.
    fn ops() -> &'static DevmemOps<Self>;

    /// Serves a bind-rx request. Process context, lock of the netlink socket held.
    fn bind_rx(request: &BindRequest<'_>) -> Result<Bound<Self::Rx>>;

    /// Serves a bind-tx request. Process context, lock of the netlink socket held.
    fn bind_tx(request: &BindRequest<'_>) -> Result<Bound<Self::Tx>>;

    /// See [`skb_frag::recvmsg`](crate::skb_frag::recvmsg).
    fn recvmsg(
        sk: &Sock<'_>,
        skb: &mut RxSkBuff<'_>,
        offset: usize,
        msg: &mut Message<'_>,
        len: usize,
    ) -> Result<usize>;

    /// See [`skb_frag::dontneed`](crate::skb_frag::dontneed).
    fn dontneed(sk: &Sock<'_>, ranges: impl Iterator<Item = Range>) -> usize;
}

/// What a provider keeps for a binding.
///
/// Callbacks run while somebody holds a reference to the binding.
pub(crate) trait Data: Send + Sync + Sized + 'static {
    /// The net_iovs of the binding.
    fn area(&self) -> &NetIovArea;

    /// log2 of the size of a buffer, in bytes.
    fn niov_shift(&self) -> u32;

    /// Tells the state of the buffers. Process context.
    fn stats(&self) -> Stats;

    /// Undoes the mapping: no device uses it any more, but there may be net_iovs in use. Process
    /// context, RTNL or the instance lock of the device may be held.
    fn unmap(&self);
}

/// Data of a binding of receive queues, the memory provider of their page pools.
pub(crate) trait Receive: Data {
    /// Whether the binding can serve a new page pool. Process context, instance lock of the device
    /// held.
    fn init_pool(&self, pool: &mut NewPagePool) -> Result;

    /// Moves free net_iovs, if there are any, to a batch that is empty. Softirq or process context.
    fn alloc(&self, batch: &mut Batch);

    /// Takes net_iovs back from a page pool. Softirq or process context.
    fn release(&self, ids: impl Iterator<Item = NiovId>);
}

/// Data of a binding that is sent from.
pub(crate) trait Transmit: Data {
    /// See [`skb_frag::fill`](crate::skb_frag::fill).
    fn fill(&self, skb: &mut TxSkBuff<'_>, ranges: &mut OffsetRanges<'_>, len: usize) -> Result;
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
