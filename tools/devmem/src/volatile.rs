// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Copies from and to memory that others access at the same time: a device, or another process.
//!
//! What an ordinary copy of such memory does is undefined. By volatile words, those who read what is being written
//! get unspecified bytes, and that is all.

const WORD: usize = size_of::<usize>();

/// Copies out of a mapping.
///
/// # Safety
///
/// `from` has to be readable for the length of `to`, in a mapping into which there are no references.
pub(crate) unsafe fn copy_out(from: *const u8, to: &mut [u8]) {
    // SAFETY: There is that much to read, as the caller guarantees.
    let byte = |at: usize| unsafe { from.add(at).read_volatile() };
    let head = from.align_offset(WORD).min(to.len());
    let (first, rest) = to.split_at_mut(head);
    for (at, to) in first.iter_mut().enumerate() {
        *to = byte(at);
    }
    let mut at = head;
    let mut words = rest.chunks_exact_mut(WORD);
    for to in &mut words {
        // SAFETY: As above. It is aligned: what comes before took that much.
        let word = unsafe { from.add(at).cast::<usize>().read_volatile() };
        to.copy_from_slice(&word.to_ne_bytes());
        at += WORD;
    }
    for to in words.into_remainder() {
        *to = byte(at);
        at += 1;
    }
}

/// Copies into a mapping.
///
/// # Safety
///
/// `to` has to be writable for the length of `from`, in a mapping into which there are no references, and in which
/// no other thread accesses these bytes.
pub(crate) unsafe fn copy_in(from: &[u8], to: *mut u8) {
    // SAFETY: There is that much room, as the caller guarantees.
    let put = |at: usize, byte: u8| unsafe { to.add(at).write_volatile(byte) };
    let head = to.align_offset(WORD).min(from.len());
    let (first, rest) = from.split_at(head);
    for (at, &byte) in first.iter().enumerate() {
        put(at, byte);
    }
    let mut at = head;
    let words = rest.chunks_exact(WORD);
    let last = words.remainder();
    for from in words {
        let mut word = [0; WORD];
        word.copy_from_slice(from);
        // SAFETY: As above. It is aligned: what comes before took that much.
        unsafe {
            let to = to.add(at).cast::<usize>();
            to.write_volatile(usize::from_ne_bytes(word));
        }
        at += WORD;
    }
    for &byte in last {
        put(at, byte);
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 4 * WORD;

    /// Every place and length, at either side.
    fn ranges() -> impl Iterator<Item = (usize, usize, usize)> {
        (0..WORD)
            .flat_map(|a| (0..WORD).map(move |b| (a, b)))
            .flat_map(|(a, b)| (0..=SIZE - WORD).map(move |len| (a, b, len)))
    }

    /// Bytes that differ from their neighbours, at an address that is a word's.
    #[repr(C)]
    struct Area([usize; 0], [u8; SIZE]);

    fn area() -> Area {
        Area([], std::array::from_fn(|i| u8::try_from(i + 1).unwrap()))
    }

    #[test]
    fn what_is_there_comes_out() {
        let from = area();
        for (at, to_at, len) in ranges() {
            let mut to = [0; SIZE];
            // SAFETY: It is that long, and only read.
            unsafe { copy_out(from.1[at..].as_ptr(), &mut to[to_at..to_at + len]) };
            assert_eq!(to[to_at..to_at + len], from.1[at..at + len]);
            assert!(
                to[..to_at]
                    .iter()
                    .chain(&to[to_at + len..])
                    .all(|&b| b == 0)
            );
        }
    }

    #[test]
    fn what_is_given_goes_in_and_nothing_else_changes() {
        let from = area().1;
        for (at, from_at, len) in ranges() {
            let mut to = Area([], [0; SIZE]);
            // SAFETY: It is that long, and this function's own.
            unsafe { copy_in(&from[from_at..from_at + len], to.1[at..].as_mut_ptr()) };
            assert_eq!(to.1[at..at + len], from[from_at..from_at + len]);
            assert!(to.1[..at].iter().chain(&to.1[at + len..]).all(|&b| b == 0));
        }
    }
}
