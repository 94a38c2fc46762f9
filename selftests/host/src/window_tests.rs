// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::{
    sequences::{bound, each},
    window::{Part, Window},
};

#[test]
fn parts_of_one_piece() {
    let part = |skip, len, size| Window::new(skip, len).part(size);

    assert_eq!(part(0, 10, 10), Some(Part { offset: 0, len: 10 }));
    assert_eq!(part(3, 10, 10), Some(Part { offset: 3, len: 7 }));
    assert_eq!(part(3, 2, 10), Some(Part { offset: 3, len: 2 }));
    assert_eq!(part(9, 1, 10), Some(Part { offset: 9, len: 1 }));
    assert_eq!(part(10, 1, 10), None);
    assert_eq!(part(0, 0, 10), None);
    assert_eq!(part(0, 1, 0), None);
}

/// Where pieces and window meet, in numbers that do not overflow.
fn check(skip: usize, len: usize, sizes: &[usize]) {
    let mut window = Window::new(skip, len);
    let (from, to) = (skip as u128, skip as u128 + len as u128);
    let mut base = 0;
    let mut parts = 0;

    assert_eq!(window.is_empty(), len == 0);
    for &size in sizes {
        let end = base + size as u128;
        let (start, stop) = (from.max(base), to.min(end));
        let expected = (start < stop).then(|| Part {
            offset: (start - base) as usize,
            len: (stop - start) as usize,
        });

        assert_eq!(window.part(size), expected, "{skip} {len} {sizes:?}");
        window.advance(size);
        parts += usize::from(expected.is_some());
        base = end;
        assert_eq!(window.is_empty(), from == to || base >= to);
    }
    assert_eq!(Window::new(skip, len).count(sizes.iter().copied()), parts);
}

#[test]
fn all_small_windows() {
    let limits = [usize::MAX, usize::MAX - 1];
    each(&[0, 1, 2, 5, limits[0], limits[1]], bound(5, 2), |sizes| {
        for skip in (0..8).chain(limits) {
            for len in (0..8).chain(limits) {
                check(skip, len, sizes);
            }
        }
    });
}

/// A reader that has got all does not look at the pieces that are left.
#[test]
fn counting_ends_with_the_window() {
    let endless = std::iter::repeat(3);

    assert_eq!(Window::new(1, 5).count(endless.clone()), 2);
    assert_eq!(Window::new(1, 0).count(endless), 0);
}

proptest! {
    #[test]
    fn any_window(
        skip: usize,
        len: usize,
        sizes in vec((any::<usize>(), 0u32..64), 0..6),
        shift in 0u32..64,
    ) {
        let sizes: Vec<_> = sizes.into_iter().map(|(size, shift)| size >> shift).collect();
        check(skip >> shift, len >> shift, &sizes);
    }

    /// The parts of all pieces, one after the other, are the bytes of the window.
    #[test]
    fn parts_make_up_the_window(
        skip in 0usize..200,
        len in 0usize..200,
        sizes in vec(0usize..50, 0..12),
    ) {
        let total: usize = sizes.iter().sum();
        let mut window = Window::new(skip, len);
        let count = window.count(sizes.iter().copied());
        let mut bytes = Vec::new();
        let mut parts = 0;
        let mut base = 0;

        for &size in &sizes {
            if let Some(part) = window.part(size) {
                prop_assert!(part.len > 0 && part.offset + part.len <= size);
                bytes.extend(base + part.offset..base + part.offset + part.len);
                parts += 1;
            }
            window.advance(size);
            base += size;
        }

        prop_assert_eq!(bytes, (skip..(skip + len).min(total)).collect::<Vec<_>>());
        prop_assert_eq!(parts, count);
        prop_assert_eq!(window.is_empty(), len == 0 || skip + len <= total);
    }
}
