// SPDX-License-Identifier: GPL-2.0

//! Providers of device memory, and their bindings.
//!
//! C header: [`include/net/devmem.h`](srctree/include/net/devmem.h)
//!
//! A provider implements [`Provider`]. Its crate root makes the tables that the core calls it
//! through, [`MemoryProviderOps`] and [`DevmemOps`], and registers them. A binding is made in four
//! steps, each a type: the provider's data become a [`Draft`], which is [published](Draft::publish)
//! and gets its [queues](Bound::open_rxq), and is then left to the core as the result of
//! [`Provider::bind_rx`]. Dropped at any step, it takes back what the steps so far did.

use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    types::Opaque, //
};

use super::{
    genetlink::BindRequest,
    net_device::{
        DmaDevice,
        LockedNetDevice, //
    },
    netmem::{
        netmem_to_net_iov,
        NetIovArea, //
    },
    page_pool::{
        NewPagePool,
        Refill, //
    },
    skbuff::SkBuff,
    sock::{
        Message,
        Sock, //
    },
};
use crate::{
    bindings,
    free_list::NiovId,
    token::Range, //
};

/// How many net_iovs a binding has, and how many of them are not free.
pub(crate) struct Stats {
    /// All of them.
    pub(crate) buffers: usize,
    /// Those that somebody has: page pools, devices, the stack, users.
    pub(crate) in_use: usize,
}

/// A provider of device memory. Implemented by what it keeps for each binding.
///
/// Callbacks with a binding run while somebody holds a reference to that binding.
pub(crate) trait Provider: Send + Sync + Sized + 'static {
    /// The tables for this provider.
    fn ops() -> &'static DevmemOps<Self>;

    /// The net_iovs of the binding.
    fn area(&self) -> &NetIovArea;

    /// Serves a bind-rx request. Process context, lock of the netlink socket held.
    fn bind_rx(request: &BindRequest<'_>) -> Result<Bound<Self>>;

    /// See [`skb_frag::recvmsg`](crate::skb_frag::recvmsg).
    fn recvmsg(
        sk: &Sock<'_>,
        skb: &SkBuff,
        offset: usize,
        msg: &mut Message<'_>,
        len: usize,
    ) -> Result<usize>;

    /// See [`skb_frag::dontneed`](crate::skb_frag::dontneed).
    fn dontneed(sk: &Sock<'_>, ranges: impl Iterator<Item = Range> + Clone) -> Result<usize>;

    /// Tells the state of the buffers. Process context.
    fn stats(&self) -> Stats;

    /// Whether the binding can serve a new page pool. Process context, instance lock of the device
    /// held.
    fn init_pool(&self, pool: &mut NewPagePool) -> Result;

    /// Gives free net_iovs to a page pool, if there are any. Softirq or process context, one call
    /// at a time for a pool.
    fn alloc(&self, refill: &mut Refill<'_>);

    /// Takes a net_iov back from a page pool. Softirq or process context.
    fn release(&self, id: NiovId);
}

/// A binding: what the core keeps for it, and what the provider does.
///
/// # Invariants
///
/// From [`Draft::new`] on, `base` is initialised, with the [`DevmemOps`] of `T` as its ops.
#[pin_data]
#[repr(C)]
pub(crate) struct Binding<T> {
    #[pin]
    base: Opaque<bindings::net_devmem_binding>,
    #[pin]
    data: T,
}

impl<T: Provider> Binding<T> {
    /// The provider's part of a binding.
    ///
    /// # Safety
    ///
    /// `base` has to be in a `Binding<T>` that lives for `'a`.
    unsafe fn data<'a>(base: *mut bindings::net_devmem_binding) -> &'a T {
        // SAFETY: By the requirements of this function, and since `base` comes first.
        unsafe { &(*base.cast::<Self>()).data }
    }
}

/// A binding that nobody knows of yet.
///
/// # Invariants
///
/// The core's part is initialised, and not published.
pub(crate) struct Draft<T: Provider>(Pin<KBox<Binding<T>>>);

impl<T: Provider> Draft<T> {
    /// Makes a binding for receive of net_iovs of `1 << niov_shift` bytes.
    ///
    /// `dma_dev`, for which `data` is mapped, stays alive until after `data` is dropped.
    pub(crate) fn new(
        dev: &LockedNetDevice<'_>,
        dma_dev: DmaDevice<'_>,
        niov_shift: u32,
        data: impl PinInit<T, Error>,
    ) -> Result<Self> {
        let binding = KBox::try_pin_init(
            try_pin_init!(Binding {
                base: Opaque::zeroed(),
                data <- data,
            }? Error),
            GFP_KERNEL_ACCOUNT,
        )?;
        let base = binding.base.get();

        // SAFETY: `base` is zeroed and ours. Both devices are alive. We are in `->bind_rx()` of the
        // ops, which the core made sure of before it called us.
        unsafe {
            (*base).ops = &raw const T::ops().0;
            (*base).direction = bindings::dma_data_direction::DMA_FROM_DEVICE;
            (*base).niov_shift = niov_shift;
            to_result(bindings::net_devmem_binding_init(
                base,
                dev.as_ptr(),
                dma_dev.as_ptr(),
            ))?;
        }
        // SAFETY: The binding lives longer than its net_iovs are in use: page pools hold it. Nobody
        // has them yet.
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

impl<T: Provider> Drop for Draft<T> {
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
pub(crate) struct Bound<T: Provider>(NonNull<Binding<T>>);

impl<T: Provider> Bound<T> {
    fn base(&self) -> *mut bindings::net_devmem_binding {
        // SAFETY: By the type invariants the binding is alive: the owner's reference is there.
        unsafe { (*self.0.as_ptr()).base.get() }
    }

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

    fn into_base(self) -> *mut bindings::net_devmem_binding {
        ManuallyDrop::new(self).base()
    }
}

impl<T: Provider> Drop for Bound<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the binding is published. It does not outlive the request
        // that it serves, which has the locks of netlink socket and device.
        unsafe { bindings::net_devmem_unbind(self.base()) }
    }
}

/// The page pool callbacks of provider `T`. Has to be in a `static`.
#[repr(transparent)]
pub(crate) struct MemoryProviderOps<T>(bindings::memory_provider_ops, PhantomData<fn(T)>);

// SAFETY: The table is not changed.
unsafe impl<T> Sync for MemoryProviderOps<T> {}

impl<T: Provider> MemoryProviderOps<T> {
    /// The table, for a provider in module `owner`.
    pub(crate) const fn new(owner: &ThisModule) -> Self {
        Self(
            bindings::memory_provider_ops {
                owner: owner.as_ptr(),
                alloc_netmems: Some(Self::alloc_netmems),
                release_netmem: Some(Self::release_netmem),
                init: Some(Self::init),
                destroy: Some(Self::destroy),
                nl_fill: Some(bindings::net_devmem_mp_nl_fill),
                uninstall: Some(bindings::net_devmem_mp_uninstall),
            },
            PhantomData,
        )
    }

    /// # Safety
    ///
    /// `pool` has to be a valid page pool whose provider is a binding of `T`.
    unsafe fn binding(pool: NonNull<bindings::page_pool>) -> *mut bindings::net_devmem_binding {
        // SAFETY: By the requirements of this function the pool is valid. The core installs us
        // with the binding as private data.
        unsafe { bindings::page_pool_mp_priv(pool.as_ptr()).cast() }
    }

    /// # Safety
    ///
    /// `pool` has to be a page pool that is being created, and whose provider is a binding of `T`.
    unsafe extern "C" fn init(pool: *mut bindings::page_pool) -> c_int {
        from_result(|| {
            let pool = NonNull::new(pool).ok_or(EINVAL)?;
            // SAFETY: By the requirements of this function.
            let base = unsafe { Self::binding(pool) };
            // SAFETY: By the requirements of this function nobody uses the pool yet.
            let mut new_pool = unsafe { NewPagePool::from_raw(pool) };
            // SAFETY: The owner's reference is there: only bindings that are not unbound are
            // installed on queues, for which pools are created.
            unsafe { Binding::<T>::data(base) }.init_pool(&mut new_pool)?;

            // SAFETY: As above.
            if !unsafe { bindings::net_devmem_binding_get(base) } {
                return Err(ENODEV);
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `pool` has to be a page pool that [`Self::init`] saw, and that has no netmem left.
    unsafe extern "C" fn destroy(pool: *mut bindings::page_pool) {
        if let Some(pool) = NonNull::new(pool) {
            // SAFETY: By the requirements of this function there is the reference that `init` took.
            unsafe { bindings::net_devmem_binding_put(Self::binding(pool)) }
        }
    }

    /// # Safety
    ///
    /// `pool` has to be a page pool that [`Self::init`] saw, with an empty cache that is the
    /// caller's.
    unsafe extern "C" fn alloc_netmems(
        pool: *mut bindings::page_pool,
        _gfp: bindings::gfp_t,
    ) -> bindings::netmem_ref {
        let Some(pool) = NonNull::new(pool) else {
            return 0;
        };
        // SAFETY: The pool has a reference to the binding since `init`.
        let data = unsafe { Binding::<T>::data(Self::binding(pool)) };
        // SAFETY: By the requirements of this function, and the area is that of the binding.
        let mut refill = unsafe { Refill::new(pool, data.area()) };

        data.alloc(&mut refill);
        refill.finish()
    }

    /// # Safety
    ///
    /// `pool` has to be a page pool that [`Self::init`] saw, and `netmem` one that it gave out.
    unsafe extern "C" fn release_netmem(
        pool: *mut bindings::page_pool,
        netmem: bindings::netmem_ref,
    ) -> bool {
        let (Some(pool), Some(niov)) = (NonNull::new(pool), netmem_to_net_iov(netmem)) else {
            return false;
        };
        // SAFETY: The pool has a reference to the binding since `init`.
        let data = unsafe { Binding::<T>::data(Self::binding(pool)) };

        // SAFETY: The net_iov is alive with the binding. That a page pool lets go of a net_iov
        // which somebody else still uses would be a bug there; the net_iov is better lost than
        // given to two users.
        unsafe {
            if kernel::warn_on!(bindings::net_iov_pp_ref_count(niov.as_ptr()) != 1) {
                return false;
            }
            bindings::net_mp_niov_clear_page_pool(niov.as_ptr());
        }

        // SAFETY: By the requirements of this function the pool had it from `alloc_netmems`, and
        // gives it up.
        data.release(unsafe { data.area().reclaim(niov) });
        // There is no page to put.
        false
    }
}

/// What the core asks of provider `T`. Has to be in a `static`.
#[repr(transparent)]
pub(crate) struct DevmemOps<T>(bindings::net_devmem_ops, PhantomData<fn(T)>);

// SAFETY: The table is not changed.
unsafe impl<T> Sync for DevmemOps<T> {}

impl<T: Provider> DevmemOps<T> {
    /// The table, for a provider called `name` in module `owner`.
    pub(crate) const fn new(
        name: &'static CStr,
        owner: &ThisModule,
        mp_ops: &'static MemoryProviderOps<T>,
    ) -> Self {
        Self(
            bindings::net_devmem_ops {
                name: name.to_bytes_with_nul().as_ptr(),
                owner: owner.as_ptr(),
                mp_ops: &raw const mp_ops.0,
                bind_rx: Some(Self::bind_rx),
                bind_tx: None,
                recvmsg: Some(Self::recvmsg),
                dontneed: Some(Self::dontneed),
                fill_skb: None,
                stats: Some(Self::stats),
                free: Some(Self::free),
            },
            PhantomData,
        )
    }

    /// # Safety
    ///
    /// Both pointers have to be valid, the lock of the netlink socket held, and the request checked
    /// against policy and for mandatory attributes.
    unsafe extern "C" fn bind_rx(
        owner: *mut bindings::netdev_nl_sock,
        info: *mut bindings::genl_info,
    ) -> *mut bindings::net_devmem_binding {
        let (Some(owner), Some(info)) = (NonNull::new(owner), NonNull::new(info)) else {
            return EINVAL.to_ptr();
        };
        // SAFETY: By the requirements of this function.
        let request = unsafe { BindRequest::from_raw(owner, info) };

        match T::bind_rx(&request) {
            Ok(bound) => bound.into_base(),
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// All pointers have to be valid, the socket locked and `skb` in its receive queue.
    unsafe extern "C" fn recvmsg(
        sk: *mut bindings::sock,
        skb: *const bindings::sk_buff,
        offset: c_uint,
        msg: *mut bindings::msghdr,
        len: c_int,
    ) -> c_int {
        let (Some(sk), Some(msg)) = (NonNull::new(sk), NonNull::new(msg)) else {
            return EINVAL.to_errno();
        };
        // SAFETY: By the requirements of this function. While the socket is locked nobody changes
        // what is in its receive queue.
        let (sk, skb, mut msg) = unsafe {
            (
                Sock::from_raw(sk),
                SkBuff::from_raw(skb),
                Message::from_raw(msg),
            )
        };

        from_result(|| {
            let len = usize::try_from(len)?;
            let passed = T::recvmsg(&sk, skb, offset as usize, &mut msg, len)?;
            Ok(passed.try_into()?)
        })
    }

    /// # Safety
    ///
    /// `sk` has to be valid, and there have to be `num_tokens` ranges at `tokens`.
    unsafe extern "C" fn dontneed(
        sk: *mut bindings::sock,
        tokens: *const bindings::dmabuf_token,
        num_tokens: c_uint,
    ) -> c_int {
        let Some(sk) = NonNull::new(sk) else {
            return EINVAL.to_errno();
        };
        // SAFETY: By the requirements of this function.
        let (sk, tokens) = unsafe {
            (
                Sock::from_raw(sk),
                core::slice::from_raw_parts(tokens, num_tokens as usize),
            )
        };
        let ranges = tokens.iter().map(|token| Range {
            start: token.token_start,
            count: token.token_count,
        });

        from_result(|| Ok(T::dontneed(&sk, ranges)?.try_into()?))
    }

    /// # Safety
    ///
    /// `base` has to be a binding of `T` that is alive, and `stats` valid.
    unsafe extern "C" fn stats(
        base: *mut bindings::net_devmem_binding,
        stats: *mut bindings::net_devmem_stats,
    ) {
        // SAFETY: By the requirements of this function.
        let Stats { buffers, in_use } = unsafe { Binding::<T>::data(base) }.stats();

        // SAFETY: By the requirements of this function.
        unsafe { *stats = bindings::net_devmem_stats { buffers, in_use } };
    }

    /// # Safety
    ///
    /// `base` has to be a binding of `T` that was published, and to which there are no references.
    unsafe extern "C" fn free(base: *mut bindings::net_devmem_binding) {
        // SAFETY: `Draft::publish` left the box to the core, which by the requirements of this
        // function is done with it. It was pinned then.
        drop(unsafe { Pin::new_unchecked(KBox::from_raw(base.cast::<Binding<T>>())) });
    }
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
        to_result(unsafe { bindings::net_devmem_register(&raw const ops.0) })?;
        // INVARIANT: Registered right above.
        Ok(Self(ops))
    }
}

impl<T: Provider> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the ops are registered. There are no bindings: they hold
        // the module, which is being unloaded.
        unsafe { bindings::net_devmem_unregister(&raw const self.0 .0) }
    }
}
