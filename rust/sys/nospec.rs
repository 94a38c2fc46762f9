// SPDX-License-Identifier: GPL-2.0

//! Indices that user space chooses, for CPUs that speculate.
//!
//! C header: [`include/linux/nospec.h`](srctree/include/linux/nospec.h)

use core::arch::asm;

/// All bits set if `index` is less than `size`, and else none: `array_index_mask_nospec()` of x86.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn mask(index: usize, size: usize) -> usize {
    let mask: usize;

    // SAFETY: This changes a register and flags.
    unsafe {
        asm!(
            "cmp {index}, {size}",
            "sbb {mask}, {mask}",
            index = in(reg) index,
            size = in(reg) size,
            mask = lateout(reg) mask,
            options(pure, nomem, nostack)
        );
    }
    mask
}

/// All bits set if `index` is less than `size`, and else none: the generic `array_index_mask_nospec()`.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn mask(index: usize, size: usize) -> usize {
    let mut index = index;

    // The compiler would foretell it, too.
    // SAFETY: This does nothing.
    unsafe {
        asm!(
            "/* {0} */",
            inout(reg) index,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    // CAST: To a number with a sign, which all bits get by the shift, and back.
    (!(index | size.wrapping_sub(1).wrapping_sub(index)) as isize >> (usize::BITS - 1)) as usize
}

/// Returns `index` if it is less than `size`, and else 0, without a branch that a CPU could foretell.
///
/// To be called where a check has found `index` to be less than `size`: while the CPU only guesses that, the
/// slot behind it must not be read. Mirrors `array_index_nospec()`, but without a call.
/// `size` is in slots, up to [`isize::MAX`]; may be called from any context.
#[inline(always)]
pub(super) fn array_index(index: usize, size: usize) -> usize {
    index & mask(index, size)
}
