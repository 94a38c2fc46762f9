// SPDX-License-Identifier: GPL-2.0

//! net_iovs: descriptors of buffers without `struct page`.
//!
//! C header: [`include/net/netmem.h`](srctree/include/net/netmem.h)

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    alloc::{
        flags::{
            __GFP_NOWARN,
            GFP_KERNEL_ACCOUNT, //
        },
        AllocError, //
    },
    prelude::*,
    static_assert,
    types::Opaque, //
};

use super::{
    bindings,
    free_list::FreeIov,
    run::STRIDE,
    token::{
        Held,
        RETURN_BATCH, //
    }, //
};

// A net_iov has room for any DMA address, as on all machines of 64 bits.
static_assert!(size_of::<bindings::dma_addr_t>() <= size_of::<usize>());

static_assert!(size_of::<bindings::net_iov>() == STRIDE);

/// Marks a `netmem_ref` that is a `struct net_iov`, and not a page.
const NET_IOV: usize = 1;

/// Whether it is a loan that a token stands for, and no net_iov: it is aligned to more than the bits that mark others.
fn is_loan(token: bindings::netmem_ref) -> bool {
    token & NET_IOV == 0
}

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
    /// Makes net_iovs of device memory for buffers at `addresses`, of which there are `count`.
    ///
    /// The memory for them is charged to the current task's memory cgroup.
    pub(super) fn new(
        count: usize,
        mut addresses: impl Iterator<Item = u64>,
    ) -> Result<Self, AllocError> {
        let area = KBox::new(Opaque::zeroed(), GFP_KERNEL_ACCOUNT)?;
        // How many there are is up to an exporter. That there may be too many is no bug in here.
        let mut niovs = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;

        // Not a `for` loop, which takes several times as long: the iterator is nested.
        addresses.try_for_each(|addr| {
            let mut niov = bindings::net_iov {
                type_: bindings::net_iov_type_NET_IOV_DMABUF,
                owner: area.get(),
                ..Default::default()
            };
            // CAST: See the assertion above.
            niov.desc.dma_addr = addr as usize;
            niovs
                .push_within_capacity(Opaque::new(niov))
                .map_err(|_| AllocError)
        })?;

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

    /// The binding that the net_iovs belong to, null if there is none yet.
    pub(super) fn binding(&self) -> *mut bindings::net_devmem_binding {
        // SAFETY: The area is alive by the type invariants. It is attached before anybody uses the net_iovs.
        unsafe { (*self.area.get()).binding }
    }

    /// How many net_iovs there are.
    pub(super) fn len(&self) -> usize {
        self.niovs.len()
    }

    /// The net_iovs, in the order of their indices.
    pub(super) fn as_ptr(&self) -> *mut bindings::net_iov {
        self.niovs.as_ptr().cast_mut().cast()
    }

    /// The `netmem_ref` of the net_iov with index `index`, if there is one, without a reference.
    pub(super) fn netmem(&self, index: u32) -> Option<bindings::netmem_ref> {
        let niov = NonNull::new(self.niovs.get(index as usize)?.get())?;

        Some(net_iov_to_netmem(niov))
    }

    /// The DMA address of the net_iov with index `index`, if there is one.
    pub(super) fn address(&self, index: usize) -> Option<u64> {
        let niov = self.niovs.get(index)?.get();

        // SAFETY: By the type invariants the net_iov is alive. Nobody changes its address.
        Some(unsafe { (*niov).desc.dma_addr } as u64)
    }

    /// The right to use a net_iov that comes back.
    ///
    /// # Safety
    ///
    /// `niov` is a member of this area. Whoever had it gives it up, and had it from a [`FreeIov`].
    pub(super) unsafe fn reclaim(&self, niov: NonNull<bindings::net_iov>) -> FreeIov {
        // SAFETY: Both are in the same allocation by the requirements of this function.
        let index = unsafe { niov.as_ptr().offset_from(self.niovs.as_ptr().cast()) };

        debug_assert!((0..self.niovs.len() as isize).contains(&index));
        // CAST: Indices of net_iovs fit into a `u32`, see `Layout`.
        FreeIov::from_raw(index as u32)
    }
}

/// Whether the memory of a binding went back, or is about to.
///
/// # Safety
///
/// `base` has to be a binding that is alive.
#[inline]
pub(super) unsafe fn is_revoked(base: *const bindings::net_devmem_binding) -> bool {
    // SAFETY: By the requirements of this function. It may be set meanwhile.
    unsafe { (&raw const (*base).revoked).read_volatile() }
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

    /// The binding.
    pub(super) fn binding(&self) -> NonNull<bindings::net_devmem_binding> {
        // SAFETY: By the type invariants there is a reference to the net_iov, which keeps its area
        // and its binding alive. Neither changes while the binding is in use, or is null.
        unsafe { NonNull::new_unchecked((*(*self.0.as_ptr()).owner).binding) }
    }

    /// Whether its memory went back, or is about to: what was received into it is nobody's any more.
    pub(crate) fn is_revoked(&self) -> bool {
        // SAFETY: By the type invariants there is a reference to the net_iov, which keeps its binding alive.
        unsafe { is_revoked(self.binding().as_ptr()) }
    }

    /// Which of the net_iovs of its area it is.
    pub(super) fn index(&self) -> usize {
        // SAFETY: By the type invariants the net_iov is alive, and so is its area, of which it is a part.
        // CAST: It is not before the first.
        unsafe {
            self.0
                .offset_from(NonNull::new_unchecked((*(*self.0.as_ptr()).owner).niovs))
                as usize
        }
    }

    /// Id of the binding, and where the buffer begins in its memory, in bytes.
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

    /// Size of the buffer, as a power of two, and how many buffers come before it in its area, and after it.
    pub(super) fn neighbours(&self) -> (u32, usize, usize) {
        let before = self.index();

        // SAFETY: By the type invariants there is a reference to the net_iov, which keeps its area
        // and its binding alive. What is read here does not change while the binding is in use.
        unsafe {
            let area = (*self.0.as_ptr()).owner;

            (
                (*self.binding().as_ptr()).niov_shift,
                before,
                (*area).num_niovs.saturating_sub(before + 1),
            )
        }
    }

    /// Takes another reference, and leaves it to the caller. Returns the `netmem_ref`.
    ///
    /// # Safety
    ///
    /// The net_iov has to have a page pool: its references are given back to that.
    #[inline]
    pub(super) unsafe fn take_reference(&self) -> bindings::netmem_ref {
        // SAFETY: By the type invariants the net_iov is alive.
        unsafe { bindings::net_iov_pp_ref_inc(self.0.as_ptr()) };
        self.as_netmem()
    }

    /// Its `netmem_ref`, without a reference.
    pub(super) fn as_netmem(&self) -> bindings::netmem_ref {
        net_iov_to_netmem(self.0)
    }
}

/// What tokens stand for whose frags were sent from a local binding: they have no page pool.
///
/// # Invariants
///
/// The pointer is to a loan that somebody holds for `'a`.
#[derive(Clone, Copy)]
pub(super) struct Loan<'a>(NonNull<bindings::net_devmem_loan>, PhantomData<&'a ()>);

impl Loan<'_> {
    /// None if `loan` is null.
    ///
    /// # Safety
    ///
    /// Otherwise a reference to it has to be held for the lifetime of the result.
    pub(super) unsafe fn from_raw(loan: *mut bindings::net_devmem_loan) -> Option<Self> {
        // INVARIANT: By the requirements of this function.
        NonNull::new(loan).map(|loan| Self(loan, PhantomData))
    }

    /// Takes another reference, and leaves it to the caller. Returns what a token for it stands for, which is no
    /// net_iov.
    pub(super) fn take_reference(&self) -> bindings::netmem_ref {
        // SAFETY: By the type invariant there is a reference.
        unsafe { bindings::net_devmem_loan_token(self.0.as_ptr()) }
    }
}

/// References that tokens had, given back together when this is dropped: to net_iovs that came out of page pools, and
/// to loans.
///
/// # Invariants
///
/// The first `len` are what tokens stood for, of which this owns a reference each. Those that are net_iovs have page
/// pools. `has_loans` is set if others are among them. `run` has no others: they follow each other in one area, and
/// this owns a `pp_ref_count` reference to each.
#[derive(Default)]
pub(crate) struct CountedIovs {
    netmems: [bindings::netmem_ref; RETURN_BATCH],
    len: usize,
    has_loans: bool,
    run: Option<Held>,
}

// The page pool has no room for more.
static_assert!(RETURN_BATCH <= bindings::XDP_BULK_QUEUE_SIZE as usize);

impl CountedIovs {
    /// Adds a reference. If there are [`RETURN_BATCH`] already, it is lost.
    ///
    /// # Safety
    ///
    /// The caller gives up the reference of a token that stood for `netmem`.
    pub(super) unsafe fn push(&mut self, netmem: bindings::netmem_ref) {
        let len = self.len;

        if let Some(slot) = self.netmems.get_mut(len) {
            *slot = netmem;
            // INVARIANT: By the requirements of this function.
            self.len = len + 1;
            self.has_loans |= is_loan(netmem);
        }
    }

    /// Gives loans back, and keeps the rest.
    #[cold]
    fn put_loans(&mut self) {
        let all = core::mem::take(&mut self.len);

        for at in 0..all {
            let Some(&netmem) = self.netmems.get(at) else {
                return;
            };

            if is_loan(netmem) {
                // SAFETY: By the type invariants there is a reference to give up.
                unsafe { bindings::net_devmem_put_token(netmem) };
            } else if let Some(slot) = self.netmems.get_mut(self.len) {
                *slot = netmem;
                self.len += 1;
            }
        }
    }

    /// Adds those of a run. If there is one already, its references are lost.
    ///
    /// # Safety
    ///
    /// The caller gives up a `pp_ref_count` reference to each net_iov of `run`, and they follow each other in one
    /// area.
    pub(super) unsafe fn push_run(&mut self, run: Held) {
        // INVARIANT: By the requirements of this function.
        self.run = Some(run);
    }

    /// Gives the first back.
    fn put(&mut self) {
        let len = core::mem::take(&mut self.len);

        if len != 0 {
            // SAFETY: By the type invariants there is a reference to each, and they have page pools.
            // CAST: No more than `RETURN_BATCH`.
            unsafe { bindings::page_pool_put_netmem_bulk(self.netmems.as_mut_ptr(), len as u32) };
        }
    }
}

impl Drop for CountedIovs {
    fn drop(&mut self) {
        if self.has_loans {
            self.put_loans();
        }
        self.put();
        let Some(run) = self.run else { return };

        for index in 0..run.count as usize {
            // SAFETY: By the type invariants there is a reference to it, which is given up.
            unsafe { self.push(run.netmem + index * STRIDE) };
            if self.len == RETURN_BATCH {
                self.put();
            }
        }
        self.put();
    }
}
