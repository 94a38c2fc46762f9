// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::area::{Layout, LayoutError, Segment};

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

proptest! {
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
