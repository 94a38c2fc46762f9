// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::{
    sequences::{bound, each},
    sys::area::{Layout, LayoutError, Segment},
};

const PAGE: u64 = 4096;
const SHIFT: u32 = 12;

fn segment(addr: u64, len: u64) -> Segment {
    Segment { addr, len }
}

fn layout(segments: &[Segment]) -> Result<Layout, LayoutError> {
    Layout::of(segments.iter().copied(), SHIFT)
}

#[test]
fn one_segment() {
    let segments = [segment(0x10_0000, 3 * PAGE)];
    let layout = layout(&segments).unwrap();

    assert_eq!(layout.niovs(), 3);
    let addresses: Vec<_> = layout.addresses(segments.into_iter()).collect();
    assert_eq!(addresses, [0x10_0000, 0x10_1000, 0x10_2000]);
}

#[test]
fn address_zero_is_an_address() {
    let segments = [segment(0, PAGE)];
    let layout = layout(&segments).unwrap();

    assert_eq!(
        layout.addresses(segments.into_iter()).collect::<Vec<_>>(),
        [0]
    );
}

#[test]
fn segments_without_length_do_not_count() {
    let segments = [
        segment(PAGE, 0),
        segment(2 * PAGE, PAGE),
        segment(u64::MAX - (PAGE - 1), 0),
    ];
    let layout = layout(&segments).unwrap();

    assert_eq!(layout.niovs(), 1);
    assert_eq!(
        layout.addresses(segments.into_iter()).collect::<Vec<_>>(),
        [2 * PAGE]
    );
}

#[test]
fn nothing() {
    assert_eq!(layout(&[]), Err(LayoutError::Empty));
    assert_eq!(layout(&[segment(PAGE, 0)]), Err(LayoutError::Empty));
}

#[test]
fn misaligned() {
    for bad in [
        segment(PAGE + 1, PAGE),
        segment(PAGE, PAGE + 1),
        segment(PAGE, PAGE / 2),
    ] {
        assert_eq!(
            layout(&[segment(0, PAGE), bad]),
            Err(LayoutError::Misaligned(bad))
        );
    }
}

#[test]
fn last_page_of_the_address_space() {
    let last = segment(u64::MAX - (PAGE - 1), PAGE);
    assert_eq!(layout(&[last]).map(|layout| layout.niovs()), Ok(1));

    let past = segment(u64::MAX - (PAGE - 1), 2 * PAGE);
    assert_eq!(layout(&[past]), Err(LayoutError::Wraps(past)));
}

#[test]
fn more_than_an_index_can_tell() {
    let most = segment(0, u64::from(u32::MAX) << SHIFT);
    assert_eq!(
        layout(&[most]).map(|layout| layout.niovs()),
        Ok(u32::MAX as usize)
    );
    assert_eq!(layout(&[most, segment(0, PAGE)]), Err(LayoutError::TooMany));
    assert_eq!(
        layout(&[segment(0, 1 << (32 + SHIFT))]),
        Err(LayoutError::TooMany)
    );
}

/// What is wrong with `segments`, or how many net_iovs they make; in numbers that do not overflow.
fn expected(segments: &[Segment], shift: u32) -> Result<usize, LayoutError> {
    let mut niovs = 0;
    for &segment in segments {
        let (addr, len, size) = (
            u128::from(segment.addr),
            u128::from(segment.len),
            1 << shift,
        );
        if addr % size != 0 || len % size != 0 {
            return Err(LayoutError::Misaligned(segment));
        }
        if len != 0 && addr + len > 1 << 64 {
            return Err(LayoutError::Wraps(segment));
        }
        niovs += len / size;
        if niovs > u128::from(u32::MAX) {
            return Err(LayoutError::TooMany);
        }
    }
    match niovs {
        0 => Err(LayoutError::Empty),
        niovs => Ok(niovs as usize),
    }
}

/// Whatever the number of net_iovs: the first are where they should be.
fn check(segments: &[Segment], shift: u32) {
    let layout = Layout::of(segments.iter().copied(), shift);
    assert_eq!(
        layout.map(|layout| layout.niovs()),
        expected(segments, shift),
        "{segments:x?} by {shift}"
    );

    let Ok(layout) = layout else { return };
    let first = segments.iter().find(|segment| segment.len != 0).unwrap();
    let within = (first.len >> shift).min(5) as usize;
    let addresses: Vec<u64> = layout
        .addresses(segments.iter().copied())
        .take(within)
        .collect();
    let expected: Vec<u64> = (0..within as u64)
        .map(|i| first.addr + (i << shift))
        .collect();
    assert_eq!(addresses, expected);
}

#[test]
fn all_short_scatterlists() {
    for shift in [0, 12, 16, 31, 32, 63] {
        let size = 1u64 << shift;
        let last = size.wrapping_neg();
        let most = u64::from(u32::MAX).checked_mul(size).unwrap_or(last);
        let values = [
            (0, 0),
            (0, size),
            (size, 1),
            (1, size),
            (last, size),
            (last, 0),
            (last, last),
            (0, last),
            (0, most),
            (size, most.wrapping_sub(size)),
            (0, most.wrapping_add(size)),
            (u64::MAX, u64::MAX),
        ];
        let segments = values.map(|(addr, len)| segment(addr, len));
        each(&segments, bound(4, 2), |segments| check(segments, shift));
    }
}

/// 1 PiB, in buffers of all sizes that can count as much. Index, offset and address name the same.
#[test]
fn a_pebibyte() {
    for shift in 19..=32 {
        let half = 1u64 << 49;
        let segments = [segment(half, half), segment(0, half)];
        let layout = Layout::of(segments.into_iter(), shift).unwrap();

        assert_eq!(layout.niovs() as u64, (1 << 50) >> shift);
        for index in [0, 1, 2, 100] {
            let address = layout.addresses(segments.into_iter()).nth(index);
            assert_eq!(address, Some(half + ((index as u64) << shift)));
        }
    }
    assert_eq!(
        Layout::of([segment(0, 1 << 50)].into_iter(), 18),
        Err(LayoutError::TooMany)
    );
}

proptest! {
    /// Up to four of whatever an exporter comes up with, more often than not nearly sound.
    #[test]
    fn any_scatterlist(
        shift in 0u32..64,
        parts in vec((any::<u64>(), any::<u64>(), any::<bool>(), 0u32..64), 0..5),
    ) {
        let segments: Vec<_> = parts
            .into_iter()
            .map(|(addr, len, aligned, short)| {
                let (addr, len) = (addr, len >> short);
                if aligned {
                    segment(addr >> shift << shift, len >> shift << shift)
                } else {
                    segment(addr, len)
                }
            })
            .collect();
        check(&segments, shift);
    }

    /// The net_iovs cover each segment without gap or overlap, in order.
    #[test]
    fn covers_segments(shift in 12u32..17, pages in vec((0u64..1 << 20, 0u64..40), 1..20)) {
        let segments: Vec<_> =
            pages.iter().map(|&(at, count)| segment(at << shift, count << shift)).collect();
        let expected: Vec<u64> = segments
            .iter()
            .flat_map(|s| (s.addr..s.addr + s.len).step_by(1 << shift))
            .collect();

        match Layout::of(segments.iter().copied(), shift) {
            Ok(layout) => {
                prop_assert_eq!(layout.niovs(), expected.len());
                let addresses: Vec<_> = layout.addresses(segments.into_iter()).collect();
                prop_assert_eq!(addresses, expected);
            }
            Err(error) => {
                prop_assert_eq!(error, LayoutError::Empty);
                prop_assert!(expected.is_empty());
            }
        }
    }

    /// Whatever an exporter comes up with, it is refused or makes net_iovs that end where the
    /// address space does.
    #[test]
    fn survives_any_segment(addr: u64, len: u64, shift in 12u32..32) {
        let bad = segment(addr, len);
        if let Ok(layout) = Layout::of([bad].into_iter(), shift) {
            prop_assert_eq!(layout.niovs() as u64, len >> shift);
            prop_assert!(addr.checked_add(len - 1).is_some());
            prop_assert_eq!(addr % (1 << shift), 0);
        }
    }
}

fn cut(addr: u64, len: u64) -> Vec<(u64, u64)> {
    segment(addr, len)
        .cut(SHIFT)
        .map(|piece| (piece.addr, piece.len))
        .collect()
}

#[test]
fn cut_at_pages() {
    assert_eq!(cut(0x1000, 0), []);
    assert_eq!(cut(0x1000, PAGE), [(0x1000, PAGE)]);
    assert_eq!(cut(0x1234, 5), [(0x1234, 5)]);
    assert_eq!(
        cut(0x1ff0, 0x1020),
        [(0x1ff0, 0x10), (0x2000, PAGE), (0x3000, 0x10)]
    );
}

#[test]
fn cut_up_to_the_last_byte_of_the_address_space() {
    let last = u64::MAX - PAGE + 1;

    assert_eq!(cut(last - 1, PAGE + 1), [(last - 1, 1), (last, PAGE)]);
}
