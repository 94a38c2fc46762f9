// SPDX-License-Identifier: GPL-2.0

//! Small cases, all of them.

/// Calls `check` with each sequence of up to `longest` members of `values`, the empty one first.
pub(crate) fn each<T: Copy>(values: &[T], longest: usize, mut check: impl FnMut(&[T])) {
    let mut sequence = Vec::new();
    extend(values, longest, &mut sequence, &mut check);
}

fn extend<T: Copy>(values: &[T], left: usize, sequence: &mut Vec<T>, check: &mut impl FnMut(&[T])) {
    check(sequence);
    if left == 0 {
        return;
    }
    for &value in values {
        sequence.push(value);
        extend(values, left - 1, sequence, check);
        sequence.pop();
    }
}

/// A bound that Miri, which is a thousand times slower, can reach as well.
pub(crate) const fn bound(native: usize, miri: usize) -> usize {
    if cfg!(miri) {
        miri
    } else {
        native
    }
}

#[test]
fn each_sequence_once() {
    let mut seen = Vec::new();
    each(&[1, 2], 2, |sequence| seen.push(sequence.to_vec()));

    let expected: [&[i32]; 7] = [&[], &[1], &[1, 1], &[1, 2], &[2], &[2, 1], &[2, 2]];
    assert_eq!(seen, expected);
}
