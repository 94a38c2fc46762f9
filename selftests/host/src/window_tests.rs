// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::window::{Part, Window};

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

proptest! {
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
