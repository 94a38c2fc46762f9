// SPDX-License-Identifier: GPL-2.0

//! What holds of the module's arithmetic for all inputs, to be shown by `check.py`.
//!
//! Each function takes numbers of any value, and has to return true, or nothing that it calls
//! panics, for all of them. The files are those of the kernel module. Overflow panics here.

#![no_std]
#![allow(dead_code)]

#[path = "../../../rust/sys/area.rs"]
mod area;
#[path = "../../../rust/sys/extent.rs"]
mod extent;
#[path = "../../../rust/sys/run.rs"]
mod run;
#[path = "../../../rust/sys/token.rs"]
mod token;
#[path = "../../../rust/sys/window.rs"]
mod window;

use core::cell::Cell;

use area::{Layout, LayoutError, Segment};
use token::{Held, Range, Slots, Take, Taken};
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
    let mut base = 0;

    for size in [size0, size1] {
        let end = base + size as u128;
        let start = if from > base { from } else { base };
        let stop = if to < end { to } else { end };
        let expected = (start < stop).then(|| Part {
            offset: (start - base) as usize,
            len: (stop - start) as usize,
        });
        if window.meets(size) != expected.is_some() || window.cut(size) != expected {
            return false;
        }
        base = end;
        let next = if from > base { from } else { base };
        let left = if to > next { to - next } else { 0 };
        if window.len() as u128 != left || window.is_empty() != (left == 0) {
            return false;
        }
    }
    true
}

/// Tokens are there or not, as the bits of a number tell, one after the other.
struct Bits<'a> {
    there: u32,
    next: &'a Cell<u32>,
    lookups: &'a Cell<u32>,
    found: &'a Cell<u32>,
}

impl Take for Bits<'_> {
    type Returned = ();

    fn take(&mut self, token: u32, (): &mut ()) -> Taken {
        let nth = self.lookups.get();
        let there = self.there >> (nth % 32) & 1 != 0;

        // The first one is the first of the range, and each other one the next.
        if nth == 0 || token.wrapping_sub(self.next.get()) == 1 {
            self.lookups.set(nth + 1);
        }
        self.next.set(token);
        self.found.set(self.found.get() + u32::from(there));
        // Every other one stands for several net_iovs.
        match (there, nth % 2) {
            (false, _) => Taken::Nothing,
            (true, 0) => Taken::One,
            (true, _) => Taken::Run,
        }
    }
}

/// A short range, wherever it begins: each token is looked up once, and those that are there count.
#[no_mangle]
pub extern "C" fn tokens(start: u32, count: u32, there: u32) -> bool {
    let range = Range {
        start,
        count: count % 4,
    };
    let (next, lookups, found) = (Cell::new(start), Cell::new(0), Cell::new(0));
    let total = token::take_back([range].into_iter(), || Bits {
        there,
        next: &next,
        lookups: &lookups,
        found: &found,
    });

    let last = if range.count == 0 {
        start
    } else {
        start.wrapping_add(range.count - 1)
    };
    next.get() == last && lookups.get() == range.count && total as u64 == u64::from(found.get())
}

/// How many slots there are. The solver would write to one place only if there were more.
const SIZE: usize = 16;

/// The slots that can be used or free. All others are used.
const SLOTS: [usize; 3] = [0, 7, SIZE - 1];

/// An array that is as it has to be.
struct Array {
    used: u32,
    hint: u32,
    groups: [usize; 1],
    free: [usize; 1],
    slots: [usize; SIZE],
    more: [u16; SIZE],
}

/// How many net_iovs a word in a slot stands for.
fn count(word: usize, more: u16) -> u32 {
    match word & token::RUN {
        0 => 1,
        _ => u32::from(more) + 1,
    }
}

impl Array {
    /// One whose slots stand for `word`, with as many `more`, if they are used.
    fn new(used: u64, word: usize, more: u16) -> Self {
        let count = count(word, more);
        let mut array = Self {
            used: SIZE as u32 * count,
            hint: 0,
            groups: [0],
            free: [0],
            slots: [word; SIZE],
            more: [more; SIZE],
        };
        for (bit, slot) in SLOTS.into_iter().enumerate() {
            if used >> bit & 1 == 0 {
                array.used -= count;
                array.slots[slot] = 0;
                array.free[0] |= 1 << slot;
                array.groups[0] = 1;
            }
        }
        // All words are passed if none is free.
        array.hint = u32::from(array.free[0] == 0);
        array
    }

    fn is_free(&self, slot: usize) -> bool {
        slot < SIZE && self.free[0] >> slot & 1 != 0
    }

    /// Whether the bits and the hint are as they have to be, with so many in use.
    fn is_sound(&self, used: u32) -> bool {
        let any = self.free[0] != 0;
        self.used == used && self.groups[0] == usize::from(any) && (self.hint == 0 || !any)
    }

    fn locked(&mut self) -> Slots<'_> {
        Slots {
            used: &mut self.used,
            hint: &mut self.hint,
            groups: &mut self.groups,
            free: &mut self.free,
            slots: &mut self.slots,
            more: &mut self.more,
        }
    }
}

/// Any token is taken if it is one, and used, with all that it stands for. Then it is free, and there is as much less.
#[no_mangle]
pub extern "C" fn take(token: u32, used: u64, word: u64, more: u64) -> bool {
    let (word, more) = (word as usize, (more % u64::from(token::RUN_MAX)) as u16);
    if word == 0 {
        return true;
    }
    let mut array = Array::new(used, word, more);
    let before = array.used;
    let slot = u64::from(token).wrapping_sub(token::BASE.into()) as usize;
    let expected = slot < SIZE && !array.is_free(slot);

    match array.locked().take(token) {
        Some(Held { netmem, count: held }) => {
            expected
                && netmem == word & !token::RUN
                && held == count(word, more)
                && array.slots[slot] == 0
                && array.is_free(slot)
                && array.is_sound(before - held)
        }
        None => !expected && array.is_sound(before),
    }
}

/// Any token is committed if it is one, and free. Then it is used, and there is one more.
#[no_mangle]
pub extern "C" fn commit(token: u32, used: u64, netmem: u64) -> bool {
    if token < token::BASE || token >= 2 * token::BASE || netmem == 0 {
        return true;
    }
    let mut array = Array::new(used, 1, 0);
    let before = array.used;
    let slot = (token - token::BASE) as usize;
    let expected = array.is_free(slot);

    if !array.locked().commit(token, netmem as usize) {
        return !expected && array.is_sound(before);
    }
    expected
        && array.slots[slot] as u64 == netmem
        && !array.is_free(slot)
        && array.is_sound(before + 1)
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
