// SPDX-License-Identifier: GPL-2.0

//! Memory that its exporter takes back.
//!
//! Whoever has memory mapped which is somebody else's has a [`Claim`]: what there is to be done when that one wants it
//! back. That is nothing as long as it is not mapped, and the binding's end once there is one.

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_spinlock,
        SpinLock, //
    }, //
};

use super::bindings;

/// Whether memory was ever taken back: set before the binding that it belongs to is revoked, and never unset. So that
/// who reads packets need not ask each frag before.
static EVER_TAKEN_BACK: Atomic<bool> = Atomic::new(false);

/// Whether there may be frags in memory that was taken back from a binding of this module.
#[inline]
pub(crate) fn may_be_revoked() -> bool {
    EVER_TAKEN_BACK.load(Relaxed)
}

/// A binding, for the source of its memory, which somebody may take back.
///
/// # Invariants
///
/// The pointer is to a binding that was published, and is not freed before its source is dropped.
pub(super) struct Owner(NonNull<bindings::net_devmem_binding>);

// SAFETY: All that is done with it may be done by any thread.
unsafe impl Send for Owner {}

impl Owner {
    /// # Safety
    ///
    /// `binding` has to be one that was published. Nobody but the source of its memory gets the result.
    pub(super) unsafe fn new(binding: NonNull<bindings::net_devmem_binding>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(binding)
    }

    /// Has the core take the memory from devices, and the source be dropped, soon. Any context.
    fn revoke(self) {
        EVER_TAKEN_BACK.store(true, Relaxed);
        // SAFETY: By the type invariant.
        unsafe { bindings::net_devmem_revoke(self.0.as_ptr()) }
    }
}

/// The memory went back before there was somebody to be told.
pub(super) struct TakenBack;

enum State {
    /// Nobody has anything to do with the memory. Exporters say that it goes when they move it, which they may do to
    /// pin it for us.
    Unmapped,
    /// It is mapped, and belongs to nobody yet.
    Mapped,
    /// It belongs to a binding.
    Owned(Owner),
    /// It went back, or is about to.
    TakenBack,
}

/// What there is to be done when memory is taken back.
#[pin_data]
pub(crate) struct Claim {
    #[pin]
    state: SpinLock<State>,
}

impl Claim {
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_spinlock!(State::Unmapped, "devmem_claim"),
        })
    }

    /// The memory is mapped from now on.
    pub(super) fn mapped(&self) {
        *self.state.lock() = State::Mapped;
    }

    /// It is not any more.
    pub(super) fn unmapped(&self) {
        *self.state.lock() = State::Unmapped;
    }

    /// From now on `owner` is revoked if the memory is taken back.
    pub(super) fn set_owner(&self, owner: Owner) -> Result<(), TakenBack> {
        let mut state = self.state.lock();

        match *state {
            State::TakenBack => Err(TakenBack),
            _ => {
                *state = State::Owned(owner);
                Ok(())
            }
        }
    }

    /// The exporter takes the memory back, once and for all: rings of NICs are full of its addresses, and so nobody
    /// follows it where it goes. To be called with what keeps the memory mapped meanwhile.
    pub(super) fn take_back(&self) {
        let mut state = self.state.lock();

        if !matches!(*state, State::Unmapped) {
            if let State::Owned(owner) = core::mem::replace(&mut *state, State::TakenBack) {
                owner.revoke();
            }
        }
    }
}
