// SPDX-License-Identifier: GPL-2.0

//! All inputs, or nearly: the same code with `u16` for `u64` and `u8` for `u32`, see `build.rs`.
//!
//! Overflow checks are on, so each of these also shows that nothing overflows.

use std::cell::RefCell;

use crate::sequences::each;

#[expect(
    dead_code,
    reason = "what a reader is told does not depend on how wide tokens are"
)]
mod token {
    include!(concat!(env!("OUT_DIR"), "/token.rs"));
}
#[expect(
    dead_code,
    reason = "runs have tests of their own, with frags as they are"
)]
mod run {
    include!(concat!(env!("OUT_DIR"), "/run.rs"));
}
mod area {
    include!(concat!(env!("OUT_DIR"), "/area.rs"));
}
mod extent {
    include!(concat!(env!("OUT_DIR"), "/extent.rs"));
}
mod free_list {
    include!(concat!(env!("OUT_DIR"), "/free_list.rs"));
}

mod share {
    include!(concat!(env!("OUT_DIR"), "/share.rs"));
}

use area::{Layout, LayoutError, Segment};

/// Numbers next to where bits change, of `u16`.
fn boundaries() -> Vec<u16> {
    let mut values: Vec<u16> = (0..16u32)
        .flat_map(|bit| {
            let power = 1u16 << bit;
            [power - 1, power, power + 1, power.wrapping_neg(), !power]
        })
        .chain([3 << 7, 3 << 8, 3 << 14, (255 << 7) + 1, u16::MAX])
        .collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// Why `segments` do not make net_iovs, or how many they make, in the order in which it shows.
fn expected_layout(segments: &[Segment], shift: u8) -> Result<usize, LayoutError> {
    let mut niovs = 0;
    for &segment in segments {
        let (addr, len, size) = (
            u64::from(segment.addr),
            u64::from(segment.len),
            1u64 << shift,
        );
        if addr % size != 0 || len % size != 0 {
            return Err(LayoutError::Misaligned(segment));
        }
        if len != 0 && addr + len > 1 << 16 {
            return Err(LayoutError::Wraps(segment));
        }
        niovs += len / size;
        if niovs > 255 {
            return Err(LayoutError::TooMany);
        }
    }
    match niovs {
        0 => Err(LayoutError::Empty),
        niovs => Ok(niovs as usize),
    }
}

fn check_layout(segments: &[Segment], shift: u8) {
    let layout = Layout::of(segments.iter().copied(), shift);
    let expected = expected_layout(segments, shift);

    assert_eq!(
        layout.as_ref().map(Layout::niovs).map_err(|&e| e),
        expected,
        "{segments:?} by {shift}"
    );
    let Ok(layout) = layout else { return };

    let mut addresses = layout.addresses(segments.iter().copied());
    for segment in segments {
        for offset in (0..segment.len).step_by(1 << shift) {
            assert_eq!(addresses.next(), Some(segment.addr + offset));
        }
    }
    assert_eq!(addresses.next(), None);
}

#[test]
fn layout_of_any_segment() {
    let lens = boundaries();
    for shift in 0..16 {
        for addr in 0..=u16::MAX {
            for &len in &lens {
                check_layout(&[Segment { addr, len }], shift);
            }
        }
        for len in 0..=u16::MAX {
            for addr in [0, 1 << shift, (1 << shift) ^ u16::MAX, 1 << 15] {
                check_layout(&[Segment { addr, len }], shift);
            }
        }
    }
}

/// One after the other, none of them empty, and none past the next multiple.
fn check_cut(segment: Segment, shift: u8) {
    let size = 1u64 << shift;
    let end = u64::from(segment.addr) + u64::from(segment.len);
    let mut at = u64::from(segment.addr);

    for piece in segment.cut(shift) {
        assert_eq!(u64::from(piece.addr), at, "{segment:?} by {shift}");
        let next = at + u64::from(piece.len);
        assert_eq!(
            next,
            end.min((at / size + 1) * size),
            "{segment:?} by {shift}"
        );
        at = next;
    }
    assert_eq!(at, end, "{segment:?} by {shift}");
}

#[test]
fn cut_of_boundary_segments() {
    let values = boundaries();

    // Below that there are too many pieces.
    for shift in 8..16 {
        for &addr in &values {
            for &len in &values {
                if u32::from(addr) + u32::from(len) <= 1 << 16 {
                    check_cut(Segment { addr, len }, shift);
                }
            }
        }
    }
}

#[test]
fn layout_of_boundary_segments() {
    for shift in [0, 1, 7, 8, 15] {
        let size = 1u16 << shift;
        let values = [0, size, size.wrapping_neg(), 127 << shift, 255 << shift, 1];
        let segments: Vec<_> = values
            .iter()
            .flat_map(|&addr| values.map(|len| Segment { addr, len }))
            .collect();
        each(&segments, 3, |segments| check_layout(segments, shift));
    }
}

/// Extents of sound segments, by a byte at a time.
fn expected_extents(segments: &[Segment]) -> Vec<Segment> {
    let mut extents: Vec<Segment> = Vec::new();
    for segment in segments {
        for addr in segment.addr..=segment.addr + (segment.len.max(1) - 1) {
            if segment.len == 0 {
                break;
            }
            match extents.last_mut() {
                Some(last) if last.len < 128 && last.addr.checked_add(last.len) == Some(addr) => {
                    last.len += 1;
                }
                _ => extents.push(Segment { addr, len: 1 }),
            }
        }
    }
    extents
}

fn check_extents(segments: &[Segment]) {
    let counted = extent::count(segments.iter().copied());
    let mut bytes = 0;
    for &segment in segments {
        if segment.len != 0 && u64::from(segment.addr) + u64::from(segment.len) > 1 << 16 {
            assert_eq!(counted, Err(LayoutError::Wraps(segment)));
            return;
        }
        bytes += u64::from(segment.len);
        if bytes > 1 << 12 {
            assert_eq!(counted, Err(LayoutError::TooMany));
            return;
        }
    }
    if bytes == 0 {
        assert_eq!(counted, Err(LayoutError::Empty));
        return;
    }

    let expected = expected_extents(segments);
    let extents: Vec<_> = extent::extents(segments.iter().copied()).collect();
    assert_eq!(extents, expected, "{segments:?}");
    assert_eq!(counted, Ok(expected.len()));
}

#[test]
fn extents_of_any_segment() {
    let lens: Vec<u16> = boundaries()
        .into_iter()
        .filter(|&len| len <= 4097 || len > 60000)
        .collect();
    for addr in (0..=u16::MAX).step_by(7) {
        for &len in &lens {
            check_extents(&[Segment { addr, len }]);
        }
    }
}

#[test]
fn extents_of_boundary_segments() {
    let addrs = [0, 1, 127, 128, 129, 65408, u16::MAX];
    let lens = [0, 1, 127, 128, 129, 3968, u16::MAX];
    let segments: Vec<_> = addrs
        .iter()
        .flat_map(|&addr| lens.map(|len| Segment { addr, len }))
        .collect();
    each(&segments, 3, check_extents);
}

fn check_map(ends: &[u16], size: u16) {
    let sound = !ends.is_empty()
        && ends
            .iter()
            .zip([0].iter().chain(ends))
            .all(|(end, start)| end > start && end - start <= 128);
    let slots = extent::slots(ends).map_or(0, |(_, slots)| slots);
    let Some(map) = extent::ExtentMap::new(ends, vec![255; slots], size) else {
        assert!(!sound, "{ends:?}");
        return;
    };
    assert!(sound, "{ends:?}");
    let size = size.min(*ends.last().unwrap());
    assert_eq!(map.size(), size);

    for offset in 0..=size {
        let index = ends.iter().filter(|&&end| end <= offset).count();
        let start = if index == 0 { 0 } else { ends[index - 1] };
        let expected = (offset < size).then(|| extent::Place {
            extent: index as u8,
            offset: (offset - start) as u8,
            left: usize::from(ends[index].min(size) - offset),
        });
        assert_eq!(map.locate(offset), expected, "{ends:?} {size}");
    }
    assert_eq!(map.locate(u16::MAX), None);
    for (extent, &end) in (0..=254).zip(ends) {
        assert_eq!(map.after(extent), map.locate(end), "{ends:?} {size}");
    }
    assert_eq!(map.after(255), None);
}

#[test]
fn extent_map_of_boundary_ends() {
    let ends = [0, 1, 2, 127, 128, 129, 255, 256, 257, 384];
    each(&ends, 4, |ends| {
        for size in [0, 1, 128, 250, u16::MAX] {
            check_map(ends, size);
        }
    });
}

#[test]
fn extent_map_of_as_many_as_there_may_be() {
    // Not more extents than a `u8` can tell apart: `count` sees to it.
    let ends: Vec<_> = (1..=u16::from(u8::MAX)).map(|i| i * 128).collect();
    for size in [u16::MAX, 255 * 128, 254 * 128 + 1] {
        check_map(&ends, size);
    }
}

/// More extents than a `u8` can count, though not too many bytes.
#[test]
fn extents_that_an_index_cannot_tell_apart() {
    let apart = |count: u16| {
        (0..count).map(|i| Segment {
            addr: 2 * i,
            len: 1,
        })
    };

    assert_eq!(extent::count(apart(255)), Ok(255));
    assert_eq!(extent::count(apart(256)), Err(LayoutError::TooMany));
}

#[test]
fn free_list_as_long_as_an_index_goes() {
    for size in 0..=usize::from(u8::MAX) {
        let mut list = free_list::FreeList::full(vec![0; size], vec![]);
        let mut seen = vec![false; size];

        while list.in_use() < size {
            let mut batch = free_list::Batch::new();
            let _ = list.take(&mut batch, usize::MAX, None, || 0);
            for &index in batch.take_raw() {
                assert!(!std::mem::replace(&mut seen[usize::from(index)], true));
            }
        }
        for index in 0..size {
            let _ = list.put([free_list::FreeIov::from_raw(index as u8)], None, || 0);
        }
        assert_eq!((list.capacity(), list.in_use()), (size, 0));
        let all_back = free_list::Supply {
            taken: size as u16,
            returned: size as u16,
            is_exhausted: false,
            exhausted: 0,
            exhausted_for: 0,
        };
        assert_eq!(list.supply(|| 0), all_back);
    }
}

/// Queues fill one after the other, and nothing is lost on the way.
#[test]
fn shares_as_long_as_an_index_goes() {
    for size in 0..=usize::from(u8::MAX) {
        for queues in 2..6 {
            let accounts = vec![share::Account::default(); queues];
            let mut list = free_list::FreeList::full(vec![0; size], accounts);
            let mut held = vec![vec![]; queues];

            for (queue, held) in held.iter_mut().enumerate() {
                loop {
                    let mut batch = free_list::Batch::new();
                    let _ = list.take(&mut batch, usize::MAX, Some(queue), || 0);
                    if batch.is_empty() {
                        break;
                    }
                    held.extend_from_slice(batch.take_raw());
                }
                let rest = size % queues;
                let most = size / queues + if size < queues { 1 } else { rest };
                assert!((size / queues..=most).contains(&held.len()));
            }
            for (queue, held) in held.into_iter().enumerate() {
                let back = held.into_iter().map(free_list::FreeIov::from_raw);
                let _ = list.put(back, Some(queue), || 0);
                list.starts(Some(queue));
                assert_eq!(list.gives_back(queue), size < queues);
                assert!(list.lasting_room(Some(queue)) <= size - list.in_use());
                let _ = list.gives_up(queue, || 0);
                let _ = list.stops(queue, false, || 0);
            }
            assert_eq!(list.in_use(), 0);
            assert!(size == 0 || !list.has_waiting() || list.wake().is_some());
            assert_eq!(share::probe(7, queues).count(), queues);
        }
    }
}

/// A table that has no token, or all, and knows which ones were looked up.
struct Seen<'a>(&'a RefCell<Vec<u8>>, bool);

impl token::Take for Seen<'_> {
    type Returned = ();

    fn take(&mut self, token: u8, (): &mut ()) -> token::Taken {
        self.0.borrow_mut().push(token);
        match self.1 {
            true => token::Taken::One,
            false => token::Taken::Nothing,
        }
    }
}

#[test]
fn token_ranges() {
    for start in 0..=u8::MAX {
        for count in 0..=u8::MAX {
            let range = token::Range { start, count };

            check_lookups(range, true);
            check_lookups(range, false);
        }
    }
}

fn check_lookups(range: token::Range, there: bool) {
    let past = u32::from(range.start) + u32::from(range.count);
    let expected = (u32::from(range.start)..past)
        .take(200)
        .map(|token| token as u8);
    let seen = RefCell::new(Vec::new());

    let taken = token::take_back([range].into_iter(), || Seen(&seen, there));
    let seen = seen.into_inner();
    assert_eq!(taken, if there { seen.len() } else { 0 });
    assert!(seen.into_iter().eq(expected), "{range:?}");
}

/// As many slots as there are tokens, and each token there is.
#[test]
fn slots_as_many_as_tokens() {
    for size in 0..=64usize {
        let (mut used, mut hint) = (0, 0);
        let mut free = [usize::MAX
            .checked_shr(64 - size as core::ffi::c_uint)
            .unwrap_or(0)];
        let mut groups = [usize::from(free[0] != 0)];
        let mut slots = vec![0; size];
        let mut more = vec![0; size];
        let mut table = token::Slots {
            used: &mut used,
            hint: &mut hint,
            groups: &mut groups,
            free: &mut free,
            slots: &mut slots,
            more: &mut more,
        };

        for round in 0..2 {
            check_slots(&mut table, size, 0x100 * (round + 1) + 1);
        }
    }
}

/// Uses all slots, and takes all tokens there could be.
fn check_slots(table: &mut token::Slots<'_>, size: usize, netmem: usize) {
    for slot in 0..size {
        let mut tokens = [0; 65];
        assert_eq!(table.peek(&mut tokens), size - slot);
        assert!(tokens[..size - slot]
            .iter()
            .copied()
            .eq(64 + slot as u8..=63 + size as u8));
        assert!(table.commit(tokens[0], netmem + (slot << 2)));
    }
    assert_eq!(usize::from(*table.used), size);
    assert_eq!(table.peek(&mut [0; 65]), 0);
    for token in 0..=u8::MAX {
        let slot = usize::from(token).checked_sub(64);
        let expected = slot.filter(|&slot| slot < size).map(|slot| token::Held {
            netmem: netmem + (slot << 2),
            count: 1,
        });
        assert_eq!(table.take(token), expected);
        assert_eq!(table.take(token), None);
    }
    assert_eq!(*table.used, 0);
}
