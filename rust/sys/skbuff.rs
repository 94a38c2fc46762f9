// SPDX-License-Identifier: GPL-2.0

//! Socket buffers, for reading.
//!
//! C header: [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h)

use kernel::types::Opaque;

use super::netmem::DevmemIov;
use crate::bindings;

/// A `struct sk_buff` that nobody changes while it is borrowed.
///
/// # Invariants
///
/// The skb is valid, and holds references to its frags and to the skbs of its frag list.
#[repr(transparent)]
pub(crate) struct SkBuff(Opaque<bindings::sk_buff>);

impl SkBuff {
    /// # Safety
    ///
    /// `ptr` has to be to a valid skb that does not change for `'a`.
    pub(super) unsafe fn from_raw<'a>(ptr: *const bindings::sk_buff) -> &'a Self {
        // SAFETY: By the requirements of this function; the type is transparent.
        unsafe { &*ptr.cast() }
    }

    /// The linear part, in host memory.
    pub(crate) fn linear(&self) -> &[u8] {
        // SAFETY: By the type invariants the skb is valid, so there are `skb_headlen()` bytes at
        // its `data`.
        unsafe {
            let skb = self.0.get();
            let len = bindings::skb_headlen(skb) as usize;
            core::slice::from_raw_parts((*skb).data, len)
        }
    }

    /// Whether the CPU can read the frags.
    pub(crate) fn has_readable_frags(&self) -> bool {
        // SAFETY: By the type invariants the skb is valid.
        unsafe { bindings::skb_frags_readable(self.0.get()) }
    }

    /// The frags, without those of the frag list.
    pub(crate) fn frags(&self) -> &[Frag] {
        // SAFETY: By the type invariants the skb is valid, so the first `nr_frags` of the array are
        // there. `Frag` is transparent.
        unsafe {
            let shinfo = bindings::skb_shinfo(self.0.get());
            let len = usize::from((*shinfo).nr_frags);
            core::slice::from_raw_parts((&raw const (*shinfo).frags).cast(), len)
        }
    }

    /// The skb itself, and then those of its frag list.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &SkBuff> {
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

    /// The buffer, if it is device memory.
    pub(crate) fn devmem_iov(&self) -> Option<DevmemIov<'_>> {
        // SAFETY: By the type invariants there is a reference to the memory for as long as the
        // borrow.
        unsafe { DevmemIov::from_netmem(self.0.netmem) }
    }
}
