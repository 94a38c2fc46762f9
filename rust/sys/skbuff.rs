// SPDX-License-Identifier: GPL-2.0

//! Socket buffers: what was received, and what is to be sent.
//!
//! C header: [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h)

use core::{
    cell::Cell,
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    error::{
        code::{
            EFAULT,
            EMSGSIZE, //
        },
        Result, //
    },
    ffi::{
        c_int,
        c_uint, //
    },
    page::PAGE_SIZE,
    types::Opaque, //
};

use super::{
    bindings,
    iov_iter::OffsetRanges,
    memory::TxExtents,
    netmem::{
        DevmemIov,
        Loan, //
    },
    run::{
        End,
        STRIDE, //
    },
    token::{
        self,
        Held, //
    },
    window::Part, //
};

/// A `struct sk_buff` that nobody changes while it is borrowed.
///
/// # Invariants
///
/// The skb is valid, and holds references to its frags and to the skbs of its frag list.
#[repr(transparent)]
struct SkBuff(Opaque<bindings::sk_buff>);

impl SkBuff {
    /// # Safety
    ///
    /// `ptr` has to be to a valid skb that does not change for `'a`.
    unsafe fn from_raw<'a>(ptr: *const bindings::sk_buff) -> &'a Self {
        // SAFETY: By the requirements of this function; the type is transparent.
        unsafe { &*ptr.cast() }
    }

    /// The linear part, in host memory.
    fn linear(&self) -> &[u8] {
        // SAFETY: By the type invariants the skb is valid, so there are `skb_headlen()` bytes at
        // its `data`.
        unsafe {
            let skb = self.0.get();
            let len = bindings::skb_headlen(skb) as usize;
            core::slice::from_raw_parts((*skb).data, len)
        }
    }

    /// Whether the CPU can read the frags.
    fn has_readable_frags(&self) -> bool {
        // SAFETY: By the type invariants the skb is valid.
        unsafe { bindings::skb_frags_readable(self.0.get()) }
    }

    /// The frags, without those of the frag list.
    fn frags(&self) -> &[Frag] {
        // SAFETY: By the type invariants the skb is valid, so the first `nr_frags` of the array are
        // there. `Frag` is transparent.
        unsafe {
            let shinfo = bindings::skb_shinfo(self.0.get());
            let len = usize::from((*shinfo).nr_frags);
            core::slice::from_raw_parts((&raw const (*shinfo).frags).cast(), len)
        }
    }

    /// The skb itself, and then those of its frag list.
    fn parts(&self) -> impl Iterator<Item = &SkBuff> {
        // SAFETY: By the type invariants the skb is valid.
        let list = unsafe { (*bindings::skb_shinfo(self.0.get())).frag_list };
        let members = core::iter::successors(core::ptr::NonNull::new(list), |skb| {
            // SAFETY: Members of a frag list are valid and chained by `next`.
            core::ptr::NonNull::new(unsafe { skb_next(skb.as_ptr()) })
        })
        // SAFETY: By the type invariants they are as valid as the skb itself.
        .map(|skb| unsafe { SkBuff::from_raw(skb.as_ptr()) });

        core::iter::once(self).chain(members)
    }
}

/// # Safety
///
/// `skb` has to be valid.
unsafe fn skb_next(skb: *const bindings::sk_buff) -> *mut bindings::sk_buff {
    // SAFETY: By the requirements of this function.
    unsafe { (*skb).__bindgen_anon_1.__bindgen_anon_1.next }
}

/// An skb that is passed to its reader.
///
/// # Invariants
///
/// The pointer is to a valid skb that nobody else uses for `'a`, and whose frags nobody changes. Without a `loan`
/// those that are device memory have a page pool. With `eat`, it has `pp_ref_count` references to them and no frag
/// list, and it is thrown away after `'a` if all its bytes are passed.
pub(crate) struct RxSkBuff<'a> {
    skb: NonNull<bindings::sk_buff>,
    eat: bool,
    loan: Option<Loan<'a>>,
    lost_frags: Cell<bool>,
    _skb: PhantomData<&'a mut ()>,
}

impl<'a> RxSkBuff<'a> {
    /// # Safety
    ///
    /// `skb` has to be to a valid skb that nobody else uses for the lifetime of the result, and that was received
    /// by TCP; others may have its frags, as long as they do not change them. Without `loan` those that are device
    /// memory have to have a page pool: those that are sent from have none, and get here by a local binding only,
    /// with a loan. With `eat`, the rest of the type invariants have to hold, and there is no loan. If
    /// [`Self::has_lost_frags`] in the end, it has to be thrown away.
    pub(super) unsafe fn from_raw(
        skb: NonNull<bindings::sk_buff>,
        eat: bool,
        loan: Option<Loan<'a>>,
    ) -> Self {
        // INVARIANT: By the requirements of this function.
        Self {
            skb,
            eat,
            loan,
            lost_frags: Cell::new(false),
            _skb: PhantomData,
        }
    }

    /// The skb itself, and then those of its frag list.
    pub(crate) fn parts(&mut self) -> impl Iterator<Item = RxPart<'_>> {
        let this = &*self;
        // SAFETY: By the type invariants the skb is valid. While this is borrowed it does not change, but
        // for the number of its frags, when there is no other way to these than `Frags` any more.
        let skb = unsafe { SkBuff::from_raw(this.skb.as_ptr()) };
        let eaten = this.eat.then_some(this);

        skb.parts().map(move |skb| RxPart { skb, eaten })
    }

    /// How many tokens a socket may hold to get one for this: the smallest number that a binding of its frags
    /// allows.
    #[inline]
    pub(crate) fn max_tokens(&self) -> u32 {
        // SAFETY: By the type invariants the skb is valid, with its frag list, and holds its frags.
        unsafe { bindings::net_devmem_max_tokens(self.skb.as_ptr()) }
    }

    /// What tokens for its frags stand for, if it is not these.
    pub(super) fn loan(&self) -> Option<Loan<'a>> {
        self.loan
    }

    /// Whether its frags' references are somebody else's, and so it has to be thrown away.
    pub(super) fn has_lost_frags(&self) -> bool {
        self.lost_frags.get()
    }

    /// Leaves the references that the frags hold to the caller.
    fn lose_frags(&self) {
        // SAFETY: By the type invariants the skb is valid, and ours. It is thrown away, so that it
        // does not matter that its length is more than it has.
        unsafe { (*bindings::skb_shinfo(self.skb.as_ptr())).nr_frags = 0 };
        self.lost_frags.set(true);
    }
}

/// A part of an [`RxSkBuff`].
///
/// # Invariants
///
/// It is the only way to the frags of this part. If it is of an skb that is `eaten`, it is the only part.
pub(crate) struct RxPart<'a> {
    skb: &'a SkBuff,
    eaten: Option<&'a RxSkBuff<'a>>,
}

impl<'a> RxPart<'a> {
    /// The linear part, in host memory.
    pub(crate) fn linear(&self) -> &'a [u8] {
        self.skb.linear()
    }

    /// Whether the CPU can read the frags.
    pub(crate) fn has_readable_frags(&self) -> bool {
        self.skb.has_readable_frags()
    }

    /// The frags, without those of the frag list.
    pub(crate) fn take_frags(self) -> Frags<'a> {
        Frags {
            frags: self.skb.frags(),
            eaten: self.eaten,
        }
    }
}

/// The frags of a part of an skb: whoever has this is the only one who has them.
///
/// # Invariants
///
/// `frags` are those of `eaten`, if that is one.
pub(crate) struct Frags<'a> {
    frags: &'a [Frag],
    eaten: Option<&'a RxSkBuff<'a>>,
}

impl<'a> Frags<'a> {
    /// Whether the skb is thrown away, so that their references can be moved.
    pub(super) fn are_eaten(&self) -> bool {
        self.eaten.is_some()
    }

    /// The `netmem_ref`s of what is device memory. If the skb is thrown away, the frags' references come with them, and if
    /// not, none do.
    pub(super) fn into_netmems(self) -> impl Iterator<Item = bindings::netmem_ref> + 'a {
        self.leave_references()
            .iter()
            .filter_map(Frag::devmem_iov)
            .map(|iov| iov.as_netmem())
    }
}

/// What frags are in: buffers that follow each other in their area, one for each. And how many buffers come before
/// these there.
///
/// None if they are not that, or there is none.
pub(super) fn run_of(frags: &[Frag]) -> Option<(Held, usize)> {
    let first = frags.first()?;
    let (_, before, after) = first.devmem_iov()?.neighbours();
    let expected = (first.0.netmem..).step_by(STRIDE);
    let follow = expected
        .zip(frags)
        .all(|(netmem, frag)| netmem == frag.0.netmem);

    let held = Held {
        netmem: first.0.netmem,
        // CAST: An skb has `MAX_SKB_FRAGS` of them.
        count: frags.len() as u32,
    };
    (follow && frags.len() - 1 <= after).then_some((held, before))
}

impl<'a> Frags<'a> {
    /// The frags, whose references are left to the caller if the skb is thrown away.
    pub(super) fn leave_references(self) -> &'a [Frag] {
        if let Some(skb) = self.eaten {
            skb.lose_frags();
        }
        self.frags
    }
}

impl token::Frags for Frags<'_> {
    type Frag = Frag;

    fn as_slice(&self) -> &[Frag] {
        self.frags
    }
}

/// An skb that is filled with what is to be sent.
///
/// # Invariants
///
/// `skb` is a valid skb that is nobody else's for `'a`, and `shinfo` its shared info. `extents` are those of
/// `binding`. All its frags are net_iovs of `binding`, to which there is a reference for `'a`, and for each
/// frag but the last `added`.
pub(crate) struct TxSkBuff<'a> {
    skb: NonNull<bindings::sk_buff>,
    shinfo: NonNull<bindings::skb_shared_info>,
    binding: NonNull<bindings::net_devmem_binding>,
    extents: &'a TxExtents,
    added: usize,
    room: usize,
    _skb: PhantomData<&'a mut ()>,
}

impl<'a> TxSkBuff<'a> {
    /// None if there is no shared info, which does not happen.
    ///
    /// # Safety
    ///
    /// `skb` has to be to a valid skb that is nobody else's for the lifetime of the result, with no
    /// frags but net_iovs of `binding`, to which there has to be a reference as long, and whose extents
    /// `extents` have to be. Another `room` bytes must not be too much for it, or for an `int`.
    pub(super) unsafe fn from_raw(
        skb: NonNull<bindings::sk_buff>,
        binding: NonNull<bindings::net_devmem_binding>,
        extents: &'a TxExtents,
        room: usize,
    ) -> Option<Self> {
        // INVARIANT: By the requirements of this function.
        Some(Self {
            skb,
            // SAFETY: By the requirements of this function the skb is valid.
            shinfo: NonNull::new(unsafe { bindings::skb_shinfo(skb.as_ptr()) })?,
            binding,
            extents,
            added: 0,
            room,
            _skb: PhantomData,
        })
    }

    /// How many bytes more it may get.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// Whether it has as many frags as there can be.
    pub(super) fn is_full(&self) -> bool {
        self.frags().len() >= bindings::MAX_SKB_FRAGS as usize
    }

    /// Appends what the first of `ranges` says, or as much of it as the caller wants, and moves `ranges` on by
    /// what was appended: TCP moves them back by that much if it has to.
    ///
    /// False if the caller has all that it wants, or if there is no range. What follows the last frag in memory
    /// makes that one longer. `EMSGSIZE` if there is no room for another frag, `EFAULT` if the bytes are not in
    /// the memory of the binding; what comes before is appended then.
    #[inline]
    pub(crate) fn append(&mut self, ranges: &mut OffsetRanges<'_>) -> Result<bool> {
        if self.room == 0 {
            return Ok(false);
        }
        let Some(range) = ranges.first() else {
            return Ok(false);
        };
        let (netmem, place) = self.extents.locate(range.start).ok_or(EFAULT)?;
        let len = range.len.min(self.room);
        let part = place.left.min(len);

        let (appended, result) = match self.append_part(netmem, place.offset, part) {
            Ok(()) if part < len => {
                let (rest, result) = self.append_after(place.extent, len - part);
                (part + rest, result)
            }
            Ok(()) => (len, Ok(())),
            Err(error) => (0, Err(error)),
        };
        // INVARIANT: That was no more than there is room for.
        self.room = self.room.saturating_sub(appended);
        ranges.advance(appended);
        result.map(|()| true)
    }

    /// Appends `len` bytes from the beginning of the next extent on. Tells how many it did, and why not all.
    #[inline(never)]
    fn append_after(&mut self, mut extent: u32, len: usize) -> (usize, Result) {
        let mut left = len;

        while left != 0 {
            let Some((netmem, place)) = self.extents.after(extent) else {
                return (len - left, Err(EFAULT));
            };
            let part = place.left.min(left);
            if let Err(error) = self.append_part(netmem, place.offset, part) {
                return (len - left, Err(error));
            }
            left -= part;
            extent = place.extent;
        }
        (len, Ok(()))
    }

    fn frags(&self) -> &[Frag] {
        // SAFETY: By the type invariants that is the skb's, and the first `nr_frags` of the array are
        // there. `Frag` is transparent.
        unsafe {
            let shinfo = self.shinfo.as_ptr();
            let count = usize::from((*shinfo).nr_frags);
            core::slice::from_raw_parts((&raw const (*shinfo).frags).cast(), count)
        }
    }

    /// Appends a part of an extent, no longer than that and than there is room for. Not without bytes.
    fn append_part(&mut self, netmem: bindings::netmem_ref, offset: u32, len: usize) -> Result {
        let skb = self.skb.as_ptr();
        let frags = self.frags();
        let count = frags.len();

        if frags
            .last()
            .is_some_and(|last| last.ends_at(netmem, offset))
        {
            // SAFETY: By the type invariants the skb is valid, and ours. It has that frag.
            unsafe {
                bindings::skb_coalesce_rx_frag(skb, count as c_int - 1, len as c_int, len as c_uint)
            };
            return Ok(());
        }
        if count >= bindings::MAX_SKB_FRAGS as usize {
            return Err(EMSGSIZE);
        }

        // INVARIANT: A frag without a reference yet.
        self.added += 1;
        // SAFETY: By the type invariants the skb is valid, ours, and has room for a frag.
        unsafe {
            bindings::skb_add_rx_frag_netmem(
                skb,
                count as c_int,
                netmem,
                offset as c_int,
                len as c_int,
                len.next_multiple_of(PAGE_SIZE) as c_uint,
            );
        }
        Ok(())
    }
}

impl Drop for TxSkBuff<'_> {
    /// Takes the references of the frags that were added, all at once.
    fn drop(&mut self) {
        // SAFETY: By the type invariants there is a reference to the binding.
        unsafe {
            bindings::percpu_ref_get_many(&raw mut (*self.binding.as_ptr()).ref_, self.added)
        };
    }
}

/// A frag of an skb.
///
/// # Invariants
///
/// It is in a valid skb, which holds a reference to the frag's memory.
#[repr(transparent)]
pub(crate) struct Frag(bindings::skb_frag_t);

impl Frag {
    /// Size in bytes.
    pub(crate) fn size(&self) -> usize {
        self.0.len as usize
    }

    /// Where the frag begins in its buffer, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.0.offset)
    }

    /// Where a part of it ends, if it is device memory.
    pub(crate) fn end(&self, part: Part) -> Option<End> {
        let (shift, _, after) = self.devmem_iov()?.neighbours();

        Some(End {
            last: self.0.netmem,
            // CAST: A part of the frag.
            offset: self.0.offset.checked_add((part.offset + part.len) as u32)?,
            size: 1u32.checked_shl(shift)?,
            after: u32::try_from(after).unwrap_or(u32::MAX),
        })
    }

    /// Whether a part of it follows `end`, in the next buffer: then that is where this one ends.
    #[inline]
    pub(crate) fn follows(&self, part: Part, end: &mut End) -> bool {
        // CAST: A part of the frag.
        let (offset, len) = (part.offset as u32, part.len as u32);

        self.0
            .offset
            .checked_add(offset)
            .is_some_and(|offset| end.follow(self.0.netmem, offset, len))
    }

    /// Whether what begins at `offset` of `netmem` follows this frag.
    fn ends_at(&self, netmem: bindings::netmem_ref, offset: u32) -> bool {
        self.0.netmem == netmem && self.0.offset.checked_add(self.0.len) == Some(offset)
    }

    /// The buffer, if it is device memory.
    #[inline]
    pub(crate) fn devmem_iov(&self) -> Option<DevmemIov<'_>> {
        // SAFETY: By the type invariants there is a reference to the memory for as long as the
        // borrow.
        unsafe { DevmemIov::from_netmem(self.0.netmem) }
    }
}
