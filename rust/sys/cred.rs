// SPDX-License-Identifier: GPL-2.0

//! Who a system call is made by: its process, its user, and what that one may do.
//!
//! C headers: [`include/linux/cred.h`](srctree/include/linux/cred.h),
//! [`include/linux/pid.h`](srctree/include/linux/pid.h),
//! [`include/linux/capability.h`](srctree/include/linux/capability.h)

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    task::{
        Kuid,
        Task, //
    }, //
};

use crate::bindings;

/// A process: all threads of it, and nobody who gets its number when it is gone.
///
/// # Invariants
///
/// The pointer is to a `struct pid` of which this owns a reference.
pub(crate) struct Process(NonNull<bindings::pid>);

// SAFETY: References to a `struct pid` may be dropped from any thread.
unsafe impl Send for Process {}

// SAFETY: `&Process` gives access to the address only.
unsafe impl Sync for Process {}

impl Process {
    /// The process of the current task.
    pub(crate) fn current() -> Result<Self> {
        // SAFETY: The current task has a process, which gets a reference here.
        let ptr = unsafe { bindings::get_pid(bindings::task_tgid(Task::current_raw())) };

        // INVARIANT: `get_pid()` returned a reference.
        NonNull::new(ptr).map(Self).ok_or(ESRCH)
    }

    /// Whether the current task is of this process.
    pub(crate) fn is_current(&self) -> bool {
        // SAFETY: The current task has a process. By the type invariant ours is alive, so that no
        // other one can be at its address.
        unsafe { bindings::task_tgid(Task::current_raw()) == self.0.as_ptr() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to give up.
        unsafe { bindings::put_pid(self.0.as_ptr()) }
    }
}

/// The user that answers for what the current task uses up, as a kuid.
///
/// That is its effective user, unless an unprivileged user made the user namespace, or one of those
/// around it: then it is that one, whatever uids there are inside. The uids in a namespace that root
/// made are what root has handed out, and answer for themselves.
pub(crate) fn accountable_user() -> u32 {
    let mut user = Kuid::current_euid().into_raw().val;
    // SAFETY: Getting the namespace of the current task is always safe.
    let mut ns = unsafe { bindings::current_user_ns() };

    loop {
        // SAFETY: The current task keeps its namespace alive, and each namespace its parent.
        let (parent, owner) = unsafe { ((*ns).parent, (*ns).owner.val) };

        // Only the initial namespace has no parent.
        if parent.is_null() {
            return user;
        }
        if owner != 0 {
            user = owner;
        }
        ns = parent;
    }
}

/// Whether the current task is network administrator of the whole machine: has `CAP_NET_ADMIN` in the
/// initial user namespace.
pub(crate) fn is_net_admin() -> bool {
    // SAFETY: Capabilities of the current task may be asked for in any process context.
    unsafe { bindings::capable(bindings::CAP_NET_ADMIN as c_int) }
}
