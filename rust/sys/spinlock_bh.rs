// SPDX-License-Identifier: GPL-2.0

//! A spinlock that keeps softirqs of this CPU out.
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use kernel::sync::lock::{
    Backend,
    Lock, //
};

use super::bindings;

/// A [`Lock`] that may be taken in process and in softirq context, but not in hard interrupts.
pub(crate) type SpinLockBh<T> = Lock<T, SpinLockBhBackend>;

/// `spin_lock_bh()` and `spin_unlock_bh()` as a lock [`Backend`].
pub(crate) struct SpinLockBhBackend;

// SAFETY: A `spinlock_t` ensures mutual exclusion, also against softirqs of the CPU that holds it,
// since these are off while it is held. `relock` is the default implementation.
unsafe impl Backend for SpinLockBhBackend {
    type State = bindings::spinlock_t;
    type GuardState = ();

    #[inline]
    unsafe fn init(
        ptr: *mut Self::State,
        name: *const kernel::ffi::c_char,
        key: *mut bindings::lock_class_key,
    ) {
        // SAFETY: By the requirements of this function `ptr` is valid for writes, and `name` and
        // `key` are valid for reads from now on.
        unsafe { bindings::__spin_lock_init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: By the requirements of this function `ptr` is an initialised `spinlock_t`.
        unsafe { bindings::spin_lock_bh(ptr) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        // SAFETY: By the requirements of this function `ptr` is an initialised `spinlock_t`.
        (unsafe { bindings::spin_trylock_bh(ptr) } != 0).then_some(())
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, _guard_state: &Self::GuardState) {
        // SAFETY: By the requirements of this function the caller holds the lock at `ptr`.
        unsafe { bindings::spin_unlock_bh(ptr) }
    }

    #[inline]
    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // Without lockdep this does nothing, but by a call.
        if cfg!(CONFIG_LOCKDEP) {
            // SAFETY: By the requirements of this function `ptr` is an initialised `spinlock_t`.
            unsafe { bindings::spin_assert_is_held(ptr) }
        }
    }
}

/// Creates a [`SpinLockBh`] initialiser with the given value and name, and a lock class of its own.
macro_rules! new_spinlock_bh {
    ($inner:expr, $name:literal) => {
        $crate::sys::spinlock_bh::SpinLockBh::new(
            $inner,
            kernel::optional_name!($name),
            kernel::static_lock_class!(),
        )
    };
}
pub(crate) use new_spinlock_bh;
