// SPDX-License-Identifier: GPL-2.0

//! The callbacks of page pools.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    error::from_result,
    module::this_module,
    page::PAGE_SHIFT,
    prelude::*, //
};

use super::{
    super::{
        bindings,
        memory::RxBuffers,
        netmem::{
            is_revoked,
            netmem_to_net_iov, //
        },
        page_pool::NewPagePool, //
    },
    binding::RxBinding,
    provider::DevmemProvider, //
};

/// The page pool callbacks of provider `P`.
pub(super) const fn vtable<P: DevmemProvider>() -> &'static bindings::memory_provider_ops {
    &MemoryProviderVTable::<P>::VTABLE
}

/// What page pools ask of bindings of provider `P`.
struct MemoryProviderVTable<P>(PhantomData<P>);

impl<P: DevmemProvider> MemoryProviderVTable<P> {
    const VTABLE: bindings::memory_provider_ops = bindings::memory_provider_ops {
        owner: this_module::<P::OwnerModule>().as_ptr(),
        alloc_netmems: Some(Self::alloc_netmems),
        release_netmem: Some(Self::release_netmem),
        release_netmems: Some(Self::release_netmems),
        init: Some(Self::init),
        destroy: Some(Self::destroy),
        nl_fill: Some(bindings::net_devmem_mp_nl_fill),
        uninstall: Some(bindings::net_devmem_mp_uninstall),
        count_free: Some(Self::count_free),
    };

    /// # Safety
    ///
    /// `pool` has to be a valid page pool whose provider is a receive binding.
    unsafe fn binding(pool: NonNull<bindings::page_pool>) -> *mut bindings::net_devmem_binding {
        // SAFETY: By the requirements of this function the pool is valid. The core installs us
        // with the binding as private data.
        unsafe { bindings::page_pool_mp_priv(pool.as_ptr()).cast() }
    }

    /// # Safety
    ///
    /// `base` has to be a receive binding of `P` that lives for `'a`.
    unsafe fn buffers<'a>(base: *mut bindings::net_devmem_binding) -> &'a RxBuffers {
        // SAFETY: By the requirements of this function.
        &unsafe { RxBinding::<P>::from_base(base) }.memory.buffers
    }

    /// # Safety
    ///
    /// `pool` has to be a page pool that is being created, and whose provider is a receive binding.
    unsafe extern "C" fn init(pool: *mut bindings::page_pool) -> c_int {
        from_result(|| {
            let pool = NonNull::new(pool).ok_or(EINVAL)?;
            // SAFETY: By the requirements of this function.
            let base = unsafe { Self::binding(pool) };
            // SAFETY: By the requirements of this function nobody uses the pool yet.
            let mut new_pool = unsafe { NewPagePool::from_raw(pool) };
            // SAFETY: The owner's reference is there: only bindings that are not unbound are
            // installed on queues, for which pools are created.
            let buffers = unsafe { Self::buffers(base) };

            new_pool.disable_dma_sync();
            if new_pool.order() + PAGE_SHIFT as u32 != buffers.niov_shift() {
                return Err(E2BIG);
            }
            // SAFETY: As above.
            if !unsafe { bindings::net_devmem_binding_get(base) } {
                return Err(ENODEV);
            }
            // SAFETY: `destroy` is called before the pool is freed, now that this does not fail, and until then it
            // holds the binding.
            unsafe { buffers.pool_comes(&mut new_pool) };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `pool` has to be a page pool that [`Self::init`] saw, and that has no netmem left.
    unsafe extern "C" fn destroy(pool: *mut bindings::page_pool) {
        if let Some(pool) = NonNull::new(pool) {
            // SAFETY: By the requirements of this function there is the reference that `init` took.
            unsafe {
                let base = Self::binding(pool);
                Self::buffers(base).pool_goes(pool);
                bindings::net_devmem_binding_put(base);
            }
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
        // SAFETY: By the requirements of this function.
        let base = unsafe { Self::binding(pool) };
        // SAFETY: The pool has a reference to the binding since `init`.
        if unsafe { is_revoked(base) } {
            return 0;
        }
        // SAFETY: As above.
        let buffers = unsafe { Self::buffers(base) };

        // SAFETY: By the requirements of this function, and the buffers are those of the binding.
        unsafe { buffers.refill(pool, P::alloc_netmems) }
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
        let buffers = unsafe { Self::buffers(Self::binding(pool)) };

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
        P::release_netmems(unsafe { buffers.returned(pool, niov) });
        // There is no page to put.
        false
    }

    /// # Safety
    ///
    /// `pool` has to be a page pool that [`Self::init`] saw, and `netmems` the first of `count` that it
    /// gave out. Nobody uses them any more.
    unsafe extern "C" fn release_netmems(
        pool: *mut bindings::page_pool,
        netmems: *const bindings::netmem_ref,
        count: u32,
    ) {
        let Some(pool) = NonNull::new(pool) else {
            return;
        };
        // SAFETY: The pool has a reference to the binding since `init`.
        let buffers = unsafe { Self::buffers(Self::binding(pool)) };
        // SAFETY: By the requirements of this function.
        let netmems = unsafe { core::slice::from_raw_parts(netmems, count as usize) };

        // SAFETY: By the requirements of this function the pool had them from `alloc_netmems`, and
        // gives them up.
        P::release_netmems(unsafe { buffers.all_returned(pool, netmems) });
    }

    /// # Safety
    ///
    /// `pool` has to be a page pool that [`Self::init`] saw, and that is not destroyed meanwhile.
    unsafe extern "C" fn count_free(pool: *const bindings::page_pool) -> c_uint {
        let Some(pool) = NonNull::new(pool.cast_mut()) else {
            return 0;
        };
        // SAFETY: By the requirements of this function.
        let base = unsafe { Self::binding(pool) };
        // SAFETY: The pool has a reference to the binding since `init`.
        if unsafe { is_revoked(base) } {
            return 0;
        }
        // SAFETY: As above.
        let buffers = unsafe { Self::buffers(base) };

        // SAFETY: By the requirements of this function.
        let count = unsafe { buffers.count_free(pool) };
        // CAST: There are no more net_iovs than a `u32` can count, see `Layout`.
        count as c_uint
    }
}
