// SPDX-License-Identifier: GPL-2.0

//! What holds of the module's arithmetic for all inputs, to be shown by `check.py`.
//!
//! Each function takes numbers of any value, and has to return true, or nothing that it calls
//! panics, for all of them. The files are those of the kernel module. Overflow panics here.

#![no_std]
#![allow(dead_code)]

#[path = "../../../rust/area.rs"]
mod area;
#[path = "../../../rust/extent.rs"]
mod extent;
#[path = "../../../rust/token.rs"]
mod token;
#[path = "../../../rust/window.rs"]
mod window;

use area::{Layout, LayoutError, Segment};
use window::{Part, Window};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    property_panics()
}

/// Where all panics end.
#[no_mangle]
#[inline(never)]
pub extern "C" fn property_panics() -> ! {
    #[allow(clippy::empty_loop, reason = "nobody runs it")]
    loop {}
}

/// Whether a segment goes past the end of the address space.
fn wraps(segment: Segment) -> bool {
    u128::from(segment.addr) + u128::from(segment.len) > 1 << 64 && segment.len != 0
}

/// What [`Layout::of`] has to say of `segments`, in numbers that do not overflow.
fn expected_niovs(segments: [Segment; 2], shift: u32) -> Result<usize, LayoutError> {
    let mut niovs = 0u128;
    for segment in segments {
        if (segment.addr | segment.len) << (63 - shift) << 1 != 0 {
            return Err(LayoutError::Misaligned(segment));
        }
        if wraps(segment) {
            return Err(LayoutError::Wraps(segment));
        }
        niovs += u128::from(segment.len >> shift);
        if niovs > u128::from(u32::MAX) {
            return Err(LayoutError::TooMany);
        }
    }
    match niovs {
        0 => Err(LayoutError::Empty),
        niovs => Ok(niovs as usize),
    }
}

/// Two segments of any kind, and net_iovs of any size.
#[no_mangle]
pub extern "C" fn layout(addr0: u64, len0: u64, addr1: u64, len1: u64, shift: u64) -> bool {
    let segments = [(addr0, len0), (addr1, len1)].map(|(addr, len)| Segment { addr, len });
    let shift = (shift % 64) as u32;

    let layout = Layout::of(segments.into_iter(), shift).map(|layout| layout.niovs());
    layout == expected_niovs(segments, shift)
}

/// The address of any net_iov of a sound segment is in the segment, all of it, and at its index.
#[no_mangle]
pub extern "C" fn address(addr: u64, len: u64, shift: u64) -> bool {
    let segment = Segment { addr, len };
    let shift = (shift % 64) as u32;
    let Ok(layout) = Layout::of([segment].into_iter(), shift) else {
        return true;
    };

    let mut addresses = layout.addresses([segment].into_iter());
    let first = addresses.next() == Some(addr);
    let second = match addresses.next() {
        Some(address) => layout.niovs() > 1 && address == addr + (1 << shift),
        None => layout.niovs() == 1,
    };
    first && second
}

/// Two segments, each any but so short that there are few extents: the same bytes, each once.
#[no_mangle]
pub extern "C" fn extents(addr0: u64, len0: u64, addr1: u64, len1: u64) -> bool {
    let segments = [(addr0, len0), (addr1, len1)].map(|(addr, len)| Segment { addr, len });
    let total = u128::from(len0) + u128::from(len1);
    if segments.iter().any(|&s| wraps(s)) || total > 1 << 32 {
        return true;
    }

    let mut done = 0;
    let mut count = 0;
    for extent in extent::extents(segments.into_iter()) {
        let at = if done < len0 {
            addr0 + done
        } else {
            addr1 + (done - len0)
        };
        // Past the end of the first segment only if the second is next to it.
        let joined = done < len0 && done + extent.len > len0;
        if extent.len == 0
            || extent.len > 1 << 31
            || extent.addr != at
            || joined && addr0.checked_add(len0) != Some(addr1)
        {
            return false;
        }
        done += extent.len;
        count += 1;
    }

    let counted = match count {
        0 => Err(LayoutError::Empty),
        count => Ok(count),
    };
    u128::from(done) == total && extent::count(segments.into_iter()) == counted
}

/// What is wrong with two segments, if anything is.
#[no_mangle]
pub extern "C" fn unsound(addr0: u64, len0: u64, addr1: u64, len1: u64) -> bool {
    let segments = [(addr0, len0), (addr1, len1)].map(|(addr, len)| Segment { addr, len });
    let fault = if wraps(segments[0]) {
        LayoutError::Wraps(segments[0])
    } else if len0 > 1 << 50 {
        LayoutError::TooMany
    } else if len0 > 1 << 32 {
        // Counting them takes long, and is not what this is about.
        return true;
    } else if wraps(segments[1]) {
        LayoutError::Wraps(segments[1])
    } else if u128::from(len0) + u128::from(len1) > 1 << 50 {
        LayoutError::TooMany
    } else {
        return true;
    };
    extent::count(segments.into_iter()) == Err(fault)
}

/// Two pieces of any size, and any window over them.
#[no_mangle]
pub extern "C" fn window(skip: usize, len: usize, size0: usize, size1: usize) -> bool {
    let (from, to) = (skip as u128, skip as u128 + len as u128);
    let mut window = Window::new(skip, len);
    let mut count = 0;
    let mut base = 0;
    let mut good = Window::new(skip, len).count([size0, size1].into_iter());

    for size in [size0, size1] {
        let end = base + size as u128;
        let start = if from > base { from } else { base };
        let stop = if to < end { to } else { end };
        let expected = (start < stop).then(|| Part {
            offset: (start - base) as usize,
            len: (stop - start) as usize,
        });
        if window.part(size) != expected {
            return false;
        }
        window.advance(size);
        count += usize::from(expected.is_some());
        base = end;
        if window.is_empty() != (len == 0 || base >= to) {
            return false;
        }
    }
    good -= count;
    good == 0
}

/// A range of tokens.
#[no_mangle]
pub extern "C" fn tokens(start: u32, count: u32) -> bool {
    let range = token::Range { start, count };
    if range.wraps() {
        return u64::from(start) + u64::from(count) > 1 << 32;
    }

    let mut tokens = token::Range::tokens([range].into_iter());
    let first = tokens.next() == (count > 0).then_some(start);
    let second = count < 1 || tokens.next() == (count > 1).then(|| start + 1);
    first && second && u64::from(start) + u64::from(count) <= 1 << 32
}

/// False for one argument in 2^64, and an overflow for one. Both have to be found.
#[no_mangle]
pub extern "C" fn planted_false(argument: u64) -> bool {
    argument.rotate_left(13) ^ 0x0123_4567_89ab_cdef != 0xfeed_beef_dead_cafe
}

#[no_mangle]
pub extern "C" fn planted_overflow(argument: u64) -> bool {
    (argument ^ 0x0123_4567_89ab_cdef) + 1 > 0
}
