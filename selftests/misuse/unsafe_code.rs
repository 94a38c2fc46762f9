// SPDX-License-Identifier: GPL-2.0

//! Nothing but the wrappers has unsafe code.

fn read(ptr: *const u32) -> u32 {
    // SAFETY: There is nothing to argue: this must not compile.
    unsafe { *ptr } //~ unsafe_code
}
