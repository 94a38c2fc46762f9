// SPDX-License-Identifier: GPL-2.0

//! net_iovs: descriptors of buffers without `struct page`.
//!
//! C header: [`include/net/netmem.h`](srctree/include/net/netmem.h)

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    alloc::flags::{
        __GFP_NOWARN,
        GFP_KERNEL_ACCOUNT, //
    },
    prelude::*,
    types::Opaque, //
};

use crate::{
    bindings,
    free_list::NiovId, //
};

/// Marks a `netmem_ref` that is a `struct net_iov`, and not a page.
const NET_IOV: usize = 1;

/// The `netmem_ref` of a net_iov.
pub(super) fn net_iov_to_netmem(niov: NonNull<bindings::net_iov>) -> bindings::netmem_ref {
    niov.as_ptr() as usize | NET_IOV
}

/// The net_iov behind a `netmem_ref`, if it is one.
pub(super) fn netmem_to_net_iov(
    netmem: bindings::netmem_ref,
) -> Option<NonNull<bindings::net_iov>> {
    if netmem & NET_IOV == 0 {
        return None;
    }
    NonNull::new((netmem & !NET_IOV) as *mut bindings::net_iov)
}

/// All net_iovs of a binding, in one area.
///
/// # Invariants
///
/// `area` describes `niovs`, whose members all name it as their owner.
pub(crate) struct NetIovArea {
    niovs: KVVec<Opaque<bindings::net_iov>>,
    area: KBox<Opaque<bindings::net_iov_area>>,
}

// SAFETY: The net_iovs and their area are plain memory. What the page pool does with them it does
// by its own rules of synchronisation.
unsafe impl Send for NetIovArea {}

// SAFETY: `&NetIovArea` gives out pointers only.
unsafe impl Sync for NetIovArea {}

impl NetIovArea {
    /// Makes `count` net_iovs of device memory for buffers at `addresses`.
    ///
    /// `ENOMEM` if there is no memory for them (charged to the current task's memory cgroup),
    /// `EFAULT` if the stack has no room for one of the addresses.
    pub(crate) fn new(count: usize, addresses: impl Iterator<Item = u64>) -> Result<Self> {
        let area = KBox::new(Opaque::zeroed(), GFP_KERNEL_ACCOUNT)?;
        // How many there are is up to an exporter. That there may be too many is no bug in here.
        let mut niovs = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;

        for addr in addresses.take(count) {
            let niov = Opaque::new(bindings::net_iov {
                type_: bindings::net_iov_type_NET_IOV_DMABUF,
                owner: area.get(),
                ..Default::default()
            });
            // SAFETY: It is a net_iov that nobody else knows of.
            if unsafe { bindings::net_mp_niov_set_dma_addr(niov.get(), addr) } {
                return Err(EFAULT);
            }
            niovs.push_within_capacity(niov).map_err(|_| ENOMEM)?;
        }

        // SAFETY: Nobody else knows of the area yet.
        unsafe {
            *area.get() = bindings::net_iov_area {
                niovs: niovs.as_mut_ptr().cast(),
                num_niovs: niovs.len(),
                base_virtual: 0,
                binding: core::ptr::null_mut(),
            }
        };
        // INVARIANT: Just set up that way; a move of the vector does not move its members.
        Ok(Self { niovs, area })
    }

    /// Tells which binding the net_iovs belong to.
    ///
    /// # Safety
    ///
    /// `binding` has to live as long as anybody uses the net_iovs, and nobody may do so yet.
    pub(super) unsafe fn attach(&self, binding: *mut bindings::net_devmem_binding) {
        // SAFETY: The area is alive by the type invariants, and nobody looks at it yet by the
        // requirements of this function.
        unsafe { (*self.area.get()).binding = binding };
    }

    /// The net_iov with index `index`, if there is one.
    pub(super) fn get(&self, index: u32) -> Option<NonNull<bindings::net_iov>> {
        NonNull::new(self.niovs.get(index as usize)?.get())
    }

    /// The net_iov with index `index`, to be sent from.
    pub(crate) fn transmit(&self, index: u32) -> Option<TxIov<'_>> {
        // INVARIANT: The net_iovs live as long as the area.
        self.get(index).map(|niov| TxIov(niov, PhantomData))
    }

    /// The right to use a net_iov that comes back.
    ///
    /// # Safety
    ///
    /// `niov` is a member of this area. Whoever had it gives it up, and had it from a
    /// [`NiovId::into_raw`].
    pub(super) unsafe fn reclaim(&self, niov: NonNull<bindings::net_iov>) -> NiovId {
        // SAFETY: Both are in the same allocation by the requirements of this function.
        let index = unsafe { niov.as_ptr().offset_from(self.niovs.as_ptr().cast()) };

        // CAST: Indices of net_iovs fit into a `u32`, see `Layout`.
        NiovId::from_raw(index as u32)
    }
}

/// A net_iov to be sent from.
///
/// # Invariants
///
/// The pointer is to a net_iov of type `NET_IOV_DMABUF`, which is there for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct TxIov<'a>(NonNull<bindings::net_iov>, PhantomData<&'a ()>);

impl TxIov<'_> {
    /// Its `netmem_ref`, without a reference.
    pub(super) fn as_netmem(&self) -> bindings::netmem_ref {
        net_iov_to_netmem(self.0)
    }
}

/// A net_iov of device memory, of whatever binding and provider, that is in use.
///
/// # Invariants
///
/// The pointer is to a net_iov of type `NET_IOV_DMABUF`. Somebody holds a reference to it for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct DevmemIov<'a>(NonNull<bindings::net_iov>, PhantomData<&'a ()>);

impl DevmemIov<'_> {
    /// The net_iov behind a `netmem_ref`, if it is one of device memory.
    ///
    /// # Safety
    ///
    /// A reference to `netmem` has to be held for the lifetime of the result.
    pub(super) unsafe fn from_netmem(netmem: bindings::netmem_ref) -> Option<Self> {
        let niov = netmem_to_net_iov(netmem)?;

        // SAFETY: By the requirements of this function the net_iov is alive, and its type does not
        // change.
        let kind = unsafe { (*niov.as_ptr()).type_ };
        // INVARIANT: The type is checked, and the caller sees to the reference.
        (kind == bindings::net_iov_type_NET_IOV_DMABUF).then_some(Self(niov, PhantomData))
    }

    /// Id of the binding, and where the buffer begins in its dma-buf, in bytes.
    pub(crate) fn location(&self) -> (u32, u64) {
        // SAFETY: By the type invariants there is a reference to the net_iov, which keeps its area
        // and its binding alive. What is read here does not change while the binding is in use.
        unsafe {
            let niov = self.0.as_ptr();
            let area = (*niov).owner;
            let binding = (*area).binding;
            let index = niov.offset_from((*area).niovs) as u64;

            (
                (*binding).id,
                (*area).base_virtual as u64 + (index << (*binding).niov_shift),
            )
        }
    }

    /// Takes another reference.
    pub(crate) fn to_counted(self) -> CountedIov {
        // SAFETY: By the type invariants the net_iov is alive.
        unsafe { bindings::net_iov_pp_ref_inc(self.0.as_ptr()) };
        // INVARIANT: There is a new reference.
        CountedIov(self.0)
    }
}

/// A reference to a net_iov that came out of a page pool, given back when this is dropped.
///
/// # Invariants
///
/// The pointer is to a net_iov of which this owns a `pp_ref_count` reference.
pub(crate) struct CountedIov(NonNull<bindings::net_iov>);

impl CountedIov {
    /// Leaves the reference to the caller.
    pub(super) fn into_netmem(self) -> bindings::netmem_ref {
        net_iov_to_netmem(core::mem::ManuallyDrop::new(self).0)
    }

    /// Takes the reference that [`into_netmem`](Self::into_netmem) left.
    ///
    /// # Safety
    ///
    /// `netmem` has to come from there, once.
    pub(super) unsafe fn from_netmem(netmem: bindings::netmem_ref) -> Option<Self> {
        // INVARIANT: By the requirements of this function.
        netmem_to_net_iov(netmem).map(Self)
    }
}

impl Drop for CountedIov {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference, and the net_iov has a page pool.
        unsafe { bindings::napi_pp_put_page(net_iov_to_netmem(self.0)) };
    }
}
