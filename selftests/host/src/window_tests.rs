// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::{
    sequences::{bound, each},
    sys::window::{Part, Window},
};

#[test]
fn parts_of_one_piece() {
    let cut = |skip, len, size| Window::new(skip, len).cut(size);

    assert_eq!(cut(0, 10, 10), Some(Part { offset: 0, len: 10 }));
    assert_eq!(cut(3, 10, 10), Some(Part { offset: 3, len: 7 }));
    assert_eq!(cut(3, 2, 10), Some(Part { offset: 3, len: 2 }));
    assert_eq!(cut(9, 1, 10), Some(Part { offset: 9, len: 1 }));
    assert_eq!(cut(10, 1, 10), None);
    assert_eq!(cut(0, 0, 10), None);
    assert_eq!(cut(0, 1, 0), None);
}

/// Where pieces and window meet, in numbers that do not overflow.
fn check(skip: usize, len: usize, sizes: &[usize]) {
    let mut window = Window::new(skip, len);
    let (from, to) = (skip as u128, skip as u128 + len as u128);
    let mut base = 0;

    assert_eq!(window.is_empty(), len == 0);
    assert_eq!(window.len(), len);
    for &size in sizes {
        let end = base + size as u128;
        let (start, stop) = (from.max(base), to.min(end));
        let expected = (start < stop).then(|| Part {
            offset: (start - base) as usize,
            len: (stop - start) as usize,
        });

        assert_eq!(
            window.meets(size),
            expected.is_some(),
            "{skip} {len} {sizes:?}"
        );
        assert_eq!(window.cut(size), expected, "{skip} {len} {sizes:?}");
        base = end;
        let left = to - from.max(base).min(to);
        assert_eq!(window.len() as u128, left, "{skip} {len} {sizes:?}");
        assert_eq!(window.is_empty(), left == 0);
    }
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
        let mut bytes = Vec::new();
        let mut base = 0;

        for &size in &sizes {
            let meets = window.meets(size);
            let part = window.cut(size);

            prop_assert_eq!(meets, part.is_some());
            if let Some(part) = part {
                prop_assert!(part.len > 0 && part.offset + part.len <= size);
                bytes.extend(base + part.offset..base + part.offset + part.len);
            }
            base += size;
        }

        prop_assert_eq!(window.len(), len - bytes.len());
        prop_assert_eq!(window.is_empty(), len == 0 || skip + len <= total);
        prop_assert_eq!(bytes, (skip..(skip + len).min(total)).collect::<Vec<_>>());
    }
}
