// SPDX-License-Identifier: GPL-2.0

use proptest::{collection::vec, prelude::*};

use crate::{
    sequences::{bound, each},
    sys::{
        area::{LayoutError, Segment},
        extent::{count, extents, slots, ExtentMap, Place},
    },
};

const GIB: u64 = 1 << 30;

fn segment(addr: u64, len: u64) -> Segment {
    Segment { addr, len }
}

fn join(segments: &[Segment]) -> Vec<Segment> {
    extents(segments.iter().copied()).collect()
}

/// The map of extents that end there; what is in `firsts` at first does not matter.
fn map_of(ends: Vec<u64>, size: u64) -> Option<ExtentMap<Vec<u64>, Vec<u32>>> {
    let slots = slots(&ends).map_or(0, |(_, slots)| slots);
    // Not many more of them than extents.
    assert!(slots <= ends.len() + 2, "{slots} {}", ends.len());
    ExtentMap::new(ends, vec![u32::MAX; slots], size)
}

fn map(segments: &[Segment], size: u64) -> ExtentMap<Vec<u64>, Vec<u32>> {
    let mut end = 0;
    let ends = extents(segments.iter().copied())
        .map(|extent| {
            end += extent.len;
            end
        })
        .collect();
    map_of(ends, size).unwrap()
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
fn the_first_unsound_segment_is_told() {
    let wraps = segment(u64::MAX - 9, 11);
    let endless = segment(0, u64::MAX);
    let other = segment(u64::MAX, 2);

    let told = |segments: [Segment; 4]| count(segments.into_iter());
    let sound = segment(0, 1);
    assert_eq!(
        told([sound, wraps, other, endless]),
        Err(LayoutError::Wraps(wraps))
    );
    assert_eq!(
        told([sound, endless, wraps, sound]),
        Err(LayoutError::TooMany)
    );
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
    assert_eq!(map.locate(0x1800), Some(last));
    assert_eq!(map.locate(0x1801), None);
    assert_eq!(map.locate(u64::MAX), None);
}

#[test]
fn a_size_beyond_the_segments_is_cut() {
    let map = map(&[segment(0x1000, 0x1000)], 0x8000);

    assert_eq!(map.size(), 0x1000);
    assert_eq!(map.locate(0x1000), None);
}

#[test]
fn bad_ends_make_no_map() {
    for ends in [vec![], vec![0], vec![5, 5], vec![5, 4], vec![3 * GIB]] {
        assert!(map_of(ends, 1).is_none());
    }
}

/// Runs of bytes that follow each other, as long as they get, where they begin and end.
fn runs(segments: &[Segment]) -> Vec<(u128, u128)> {
    let mut runs: Vec<(u128, u128)> = Vec::new();
    for segment in segments.iter().filter(|segment| segment.len != 0) {
        let start = u128::from(segment.addr);
        let end = start + u128::from(segment.len);
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => runs.push((start, end)),
        }
    }
    runs
}

/// What is wrong with the first segment that is not sound.
fn fault(segments: &[Segment]) -> Option<LayoutError> {
    let mut bytes = 0;
    for &segment in segments {
        let (addr, len) = (u128::from(segment.addr), u128::from(segment.len));
        if len != 0 && addr + len > 1 << 64 {
            return Some(LayoutError::Wraps(segment));
        }
        bytes += len;
        if bytes > 1 << 50 {
            return Some(LayoutError::TooMany);
        }
    }
    (bytes == 0).then_some(LayoutError::Empty)
}

fn check(segments: &[Segment]) {
    let counted = count(segments.iter().copied());
    if let Some(fault) = fault(segments) {
        assert_eq!(counted, Err(fault), "{segments:x?}");
        return;
    }

    // The same bytes, in as few extents as their longest allows: all but the last of a run are
    // that long.
    let joined = join(segments);
    let few: u128 = runs(segments)
        .iter()
        .map(|(start, end)| (end - start).div_ceil(2 * u128::from(GIB)))
        .sum();
    assert_eq!(runs(&joined), runs(segments), "{segments:x?}");
    assert!(joined
        .iter()
        .all(|extent| (1..=2 * GIB).contains(&extent.len)));
    assert_eq!(joined.len() as u128, few);
    assert_eq!(counted, Ok(joined.len()));
}

#[test]
fn all_short_scatterlists() {
    let values = [
        (0, 0),
        (0, 1),
        (1, 2 * GIB - 1),
        (1, 2 * GIB),
        (2 * GIB, 2 * GIB),
        (2 * GIB, 2 * GIB + 1),
        (4 * GIB, 1),
        (4 * GIB + 1, 6 * GIB),
        (u64::MAX, 0),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 2 * GIB, 2 * GIB),
        (u64::MAX - 2 * GIB, 2 * GIB + 1),
        (u64::MAX - 2 * GIB, 2 * GIB + 2),
        (0, u64::MAX),
        (0, (1 << 50) + 1),
    ];
    let segments = values.map(|(addr, len)| segment(addr, len));
    each(&segments, bound(4, 2), check);
}

#[test]
fn a_pebibyte() {
    let pebibyte = [segment(7, 1 << 49), segment(7 + (1 << 49), 1 << 49)];
    if !cfg!(miri) {
        check(&pebibyte);
        check(&[pebibyte[1], pebibyte[0]]);
    }

    let extents = bound(1 << 19, 1 << 6) as u64;
    let size = extents << 31;
    let ends: Vec<u64> = (1..=extents).map(|i| i << 31).collect();
    let map = map_of(ends, u64::MAX).unwrap();
    assert_eq!(map.size(), size);
    for offset in [0, (1 << 31) - 1, 1 << 31, size / 2 + 5, size - 1] {
        let expected = Place {
            extent: (offset >> 31) as u32,
            offset: (offset % (1 << 31)) as u32,
            left: (2 * GIB - offset % (1 << 31)) as usize,
        };
        assert_eq!(map.locate(offset), Some(expected));
    }
    assert_eq!(map.locate(size), None);
}

/// Most extents are in one slot.
#[test]
fn a_long_extent_among_short_ones() {
    for long in [0, 1, 50, 99] {
        let mut end = 0;
        let ends: Vec<u64> = (0..100)
            .map(|i| {
                end += if i == long { GIB } else { 3 };
                end
            })
            .collect();
        let map = map_of(ends.clone(), u64::MAX).unwrap();

        for (i, &end) in ends.iter().enumerate() {
            assert_eq!(
                map.locate(end - 1).map(|place| place.extent),
                Some(i as u32)
            );
            assert_eq!(
                map.locate(end).map(|place| place.offset),
                (i < 99).then_some(0)
            );
        }
    }
}

/// All ends up to 10, all sizes, all offsets, and all extents that follow others.
#[test]
fn all_small_maps() {
    for set in (1u32..1 << bound(10, 4)).step_by(bound(1, 3)) {
        let ends: Vec<u64> = (1..=10).filter(|end| set & (1 << (end - 1)) != 0).collect();
        let end = *ends.last().unwrap();

        for size in 0..=end + 1 {
            let map = map_of(ends.clone(), size).unwrap();
            assert_eq!(map.size(), size.min(end));
            for offset in 0..=end + 1 {
                let index = ends.partition_point(|&end| end <= offset);
                let expected = (offset < size.min(end)).then(|| Place {
                    extent: index as u32,
                    offset: (offset - if index == 0 { 0 } else { ends[index - 1] }) as u32,
                    left: (ends[index].min(size) - offset) as usize,
                });
                assert_eq!(map.locate(offset), expected, "{ends:?} {size}");
            }
            for (extent, &end) in (0..).zip(&ends) {
                assert_eq!(map.after(extent), map.locate(end), "{ends:?} {size}");
            }
            for extent in [ends.len() as u32, u32::MAX - 1, u32::MAX] {
                assert_eq!(map.after(extent), None);
            }
        }
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

/// Segments of all sizes anywhere, now and then where the last one ends or would have to wrap.
fn wild_segments() -> impl Strategy<Value = Vec<Segment>> {
    vec((any::<u64>(), any::<u64>(), 16u32..64, 0..4u8), 0..12).prop_map(|parts| {
        let mut next = 0u64;
        parts
            .into_iter()
            .map(|(addr, len, shift, kind)| {
                let len = len >> shift;
                let addr = match kind {
                    0 => addr,
                    1 => len.wrapping_neg(),
                    _ => next,
                };
                next = addr.wrapping_add(len);
                segment(addr, len)
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn any_scatterlist(segments in wild_segments()) {
        check(&segments);
    }

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
        cut in 0..200u64,
    ) {
        let bytes = bytes(&segments);
        prop_assume!(!bytes.is_empty());
        let joined = join(&segments);
        let size = (bytes.len() as u64).saturating_sub(cut);
        let map = map(&segments, size);

        for (offset, &addr) in bytes.iter().enumerate() {
            let place = map.locate(offset as u64);
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
