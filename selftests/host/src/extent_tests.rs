// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::{
    area::{LayoutError, Segment},
    extent::{count, extents, ExtentMap, Place},
};

const GIB: u64 = 1 << 30;

fn segment(addr: u64, len: u64) -> Segment {
    Segment { addr, len }
}

fn join(segments: &[Segment]) -> Vec<Segment> {
    extents(segments.iter().copied()).collect()
}

fn map(segments: &[Segment], size: u64) -> ExtentMap<Vec<u64>> {
    let mut end = 0;
    let ends = extents(segments.iter().copied())
        .map(|extent| {
            end += extent.len;
            end
        })
        .collect();
    ExtentMap::new(ends, size).unwrap()
}

#[test]
fn adjacent_segments_are_joined() {
    let segments = [segment(0x1000, 10), segment(0x100a, 20), segment(0x101f, 1)];

    assert_eq!(join(&segments), [segment(0x1000, 30), segment(0x101f, 1)]);
}

#[test]
fn a_segment_before_the_last_one_is_not_joined() {
    let segments = [segment(0x2000, 0x1000), segment(0x1000, 0x1000)];

    assert_eq!(join(&segments), segments);
}

#[test]
fn segments_without_length_are_left_out() {
    let segments = [segment(7, 0), segment(8, 1), segment(100, 0), segment(9, 1)];

    assert_eq!(join(&segments), [segment(8, 2)]);
    assert_eq!(join(&[segment(7, 0)]), []);
}

#[test]
fn long_segments_are_cut() {
    let segments = [segment(0, 5 * GIB)];
    let expected = [
        segment(0, 2 * GIB),
        segment(2 * GIB, 2 * GIB),
        segment(4 * GIB, GIB),
    ];

    assert_eq!(join(&segments), expected);
}

#[test]
fn the_end_of_the_address_space_is_not_next_to_its_start() {
    let segments = [segment(u64::MAX - 9, 10), segment(0, 10)];

    assert_eq!(join(&segments), segments);
    assert_eq!(count(segments.into_iter()), Ok(2));
}

#[test]
fn unsound_segments_are_refused() {
    let wraps = segment(u64::MAX - 9, 11);
    let wrapping = [segment(0, 1), wraps, segment(5, 1)];
    assert_eq!(count(wrapping.into_iter()), Err(LayoutError::Wraps(wraps)));

    let endless = [segment(0, (1 << 50) - 1), segment(0, 2)];
    assert_eq!(count(endless[..1].iter().copied()), Ok(1 << 19));
    assert_eq!(count(endless.into_iter()), Err(LayoutError::TooMany));

    assert_eq!(count([].into_iter()), Err(LayoutError::Empty));
    assert_eq!(count([segment(1, 0)].into_iter()), Err(LayoutError::Empty));
}

#[test]
fn offsets_from_the_size_on_are_not_there() {
    let map = map(&[segment(0x1000, 0x2000)], 0x1801);
    let last = Place {
        extent: 0,
        offset: 0x1800,
        left: 1,
    };

    assert_eq!(map.size(), 0x1801);
    assert_eq!(map.locate(0x1800, 0), Some(last));
    assert_eq!(map.locate(0x1801, 0), None);
    assert_eq!(map.locate(u64::MAX, 0), None);
}

#[test]
fn a_size_beyond_the_segments_is_cut() {
    let map = map(&[segment(0x1000, 0x1000)], 0x8000);

    assert_eq!(map.size(), 0x1000);
    assert_eq!(map.locate(0x1000, 0), None);
}

#[test]
fn bad_ends_make_no_map() {
    for ends in [vec![], vec![0], vec![5, 5], vec![5, 4], vec![3 * GIB]] {
        assert!(ExtentMap::new(ends, 1).is_none());
    }
}

/// Segments of all lengths, next to each other now and then.
fn segments() -> impl Strategy<Value = Vec<Segment>> {
    vec((any::<bool>(), 0..5000u64, 1..1000u64), 1..40).prop_map(|parts| {
        let mut addr = 0;
        parts
            .into_iter()
            .map(|(adjacent, len, gap)| {
                let start = if adjacent { addr } else { addr + gap };
                addr = start + len;
                segment(start, len)
            })
            .collect()
    })
}

/// The DMA address of each byte.
fn bytes(segments: &[Segment]) -> Vec<u64> {
    segments
        .iter()
        .flat_map(|segment| segment.addr..segment.addr + segment.len)
        .collect()
}

proptest! {
    #[test]
    fn extents_are_the_same_bytes(segments in segments()) {
        let joined = join(&segments);

        prop_assert_eq!(bytes(&joined), bytes(&segments));
        prop_assert!(joined.iter().all(|extent| extent.len != 0));
        prop_assert!(joined.windows(2).all(|w| w[0].addr + w[0].len != w[1].addr));
    }

    #[test]
    fn each_byte_is_found(
        segments in segments(),
        hint in 0..50u32,
        cut in 0..200u64,
    ) {
        let bytes = bytes(&segments);
        prop_assume!(!bytes.is_empty());
        let joined = join(&segments);
        let size = (bytes.len() as u64).saturating_sub(cut);
        let map = map(&segments, size);

        for (offset, &addr) in bytes.iter().enumerate() {
            let place = map.locate(offset as u64, hint);
            if offset as u64 >= size {
                prop_assert_eq!(place, None);
                continue;
            }
            let place = place.unwrap();
            let extent = joined[place.extent as usize];
            prop_assert_eq!(extent.addr + u64::from(place.offset), addr);
            let to_end = extent.len - u64::from(place.offset);
            prop_assert_eq!(place.left as u64, to_end.min(size - offset as u64));
        }
    }
}
