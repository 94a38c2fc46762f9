// SPDX-License-Identifier: GPL-2.0

//! Where the bytes of a source are that is sent from: its DMA segments as few, long extents.
//!
//! A transmit frag may begin at any byte and be of any length, as long as the device sees it
//! contiguous. So there is one net_iov for each extent, and not one for each page: a send from
//! contiguous memory needs one frag, and neither size nor alignment of a segment matters.

#![deny(unsafe_code)]

use core::ops::{
    Deref,
    DerefMut,
    Range, //
};

use super::area::{
    LayoutError,
    Segment, //
};

/// Longest extent in bytes. A frag tells where it begins and how long it is in 32 bits each.
pub(crate) const MAX_LEN: u64 = 1 << 31;

/// Most bytes of a source: more than any machine has, so that a bad length is not taken for an
/// endless number of extents.
const MAX_BYTES: u64 = 1 << 50;

/// Joins segments that follow each other, and cuts those that are too long for an extent.
///
/// Segments without bytes are left out.
pub(crate) fn extents(segments: impl Iterator<Item = Segment>) -> impl Iterator<Item = Segment> {
    // Asked again after its end, and `count` stops where a segment is not sound.
    let mut segments = segments.filter(|segment| segment.len != 0).fuse();
    let mut rest = None;

    core::iter::from_fn(move || {
        let mut extent = rest.take().or_else(|| segments.next())?;

        while extent.len < MAX_LEN {
            match segments.next() {
                Some(next) if extent.addr.checked_add(extent.len) == Some(next.addr) => {
                    extent.len = extent.len.saturating_add(next.len);
                }
                other => {
                    rest = other;
                    return Some(extent);
                }
            }
        }
        if extent.len > MAX_LEN {
            rest = Some(Segment {
                addr: extent.addr + MAX_LEN,
                len: extent.len - MAX_LEN,
            });
            extent.len = MAX_LEN;
        }
        Some(extent)
    })
}

/// Counts the extents of `segments`.
///
/// `Wraps` for a segment past the end of the address space, `TooMany` if there are more extents than
/// an index can tell apart or more than 1 PiB, `Empty` if there is not a byte.
pub(crate) fn count(segments: impl Iterator<Item = Segment>) -> Result<usize, LayoutError> {
    let mut bytes = 0;
    let mut fault = None;
    let sound = segments.map_while(|segment| match end(segment, bytes) {
        Ok(end) => {
            bytes = end;
            Some(segment)
        }
        Err(error) => {
            fault = Some(error);
            None
        }
    });

    let count = extents(sound).count();
    match (fault, u32::try_from(count)) {
        (Some(error), _) => Err(error),
        (None, Ok(0)) => Err(LayoutError::Empty),
        (None, Ok(_)) => Ok(count),
        (None, Err(_)) => Err(LayoutError::TooMany),
    }
}

/// Where a segment ends in the source, if it begins at `start`.
fn end(segment: Segment, start: u64) -> Result<u64, LayoutError> {
    // The last byte may be the last one of the address space.
    if segment.len != 0 && segment.addr.checked_add(segment.len - 1).is_none() {
        return Err(LayoutError::Wraps(segment));
    }
    start
        .checked_add(segment.len)
        .filter(|&end| end <= MAX_BYTES)
        .ok_or(LayoutError::TooMany)
}

/// Which extent an offset into a source is in.
///
/// `E` is where the extents end, as offsets, for all extents in their order. `F` says where to look for
/// them: the source is cut into slots, which are about as long as an average extent, so that few
/// extents are in most of them.
///
/// # Invariants
///
/// - The ends are strictly ascending, and there is at least one of them.
/// - For each slot with an offset below the last end, `firsts` has the extent of its first byte, in
///   ascending order, and after them at least once the last extent.
pub(crate) struct ExtentMap<E, F> {
    ends: E,
    firsts: F,
    /// Length of a slot, as a power of two.
    slot_shift: u8,
    /// Offsets from here on are not to be used, even if there are extents.
    size: u64,
}

/// The length of slots for extents that end at `ends`, as a power of two; and how many slots
/// [`ExtentMap::new`] is to be given.
///
/// None if `ends` is empty, or ends before its first byte.
pub(crate) fn slots(ends: &[u64]) -> Option<(u8, usize)> {
    let end = *ends.last()?;
    let average = end.div_ceil(ends.len() as u64);
    // CAST: A `u64` has 64 bits.
    let slot_shift = average.checked_next_power_of_two()?.trailing_zeros() as u8;

    Some((slot_shift, (end.checked_sub(1)? >> slot_shift) as usize + 2))
}

/// A place in an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the extent.
    pub(crate) extent: u32,
    /// Where in the extent that is, in bytes.
    pub(crate) offset: u32,
    /// Bytes from there to the end of the extent, never 0.
    pub(crate) left: usize,
}

impl<E, F> ExtentMap<E, F>
where
    E: Deref<Target = [u64]>,
    F: DerefMut<Target = [u32]>,
{
    /// The map of extents that end at `ends`, for a source of `size` bytes. `firsts` has as many
    /// elements as [`slots`] says, of any value.
    ///
    /// None if `ends` is empty or not strictly ascending, if an extent is too long, or if there are not
    /// enough `firsts`.
    pub(crate) fn new(ends: E, mut firsts: F, size: u64) -> Option<Self> {
        let mut start = 0;
        for &end in ends.iter() {
            if end <= start || end - start > MAX_LEN {
                return None;
            }
            start = end;
        }

        let (slot_shift, slots) = slots(&ends)?;
        let last = ends.len() - 1;
        let mut extent = 0;
        for (slot, first) in firsts.get_mut(..slots)?.iter_mut().enumerate() {
            let start = (slot as u64).checked_mul(1 << slot_shift);

            while extent < last && start.is_none_or(|start| ends[extent] <= start) {
                extent += 1;
            }
            // CAST: The caller has not more of them than that.
            *first = extent as u32;
        }

        // INVARIANT: The ends were checked, and the last slot begins where the last extent has ended.
        Some(Self {
            size: size.min(start),
            ends,
            firsts,
            slot_shift,
        })
    }

    /// Bytes that can be sent.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Finds `offset`, if it is in the source.
    pub(crate) fn locate(&self, offset: u64) -> Option<Place> {
        if offset >= self.size {
            return None;
        }

        let slot = (offset >> self.slot_shift) as usize;
        let first = *self.firsts.get(slot)? as usize;
        let last = *self.firsts.get(slot + 1)? as usize;
        // Of the extent in which the next slot begins, the end need not be looked at.
        let index = first
            + self
                .ends
                .get(first..last)?
                .partition_point(|&end| end <= offset);
        let range = self.range(index)?;

        // CAST: No extent is longer than `MAX_LEN`, and there are not more of them than that.
        Some(Place {
            extent: index as u32,
            offset: (offset - range.start) as u32,
            left: (range.end.min(self.size) - offset) as usize,
        })
    }

    /// The beginning of the extent that follows this one, if that is in the source.
    pub(crate) fn after(&self, extent: u32) -> Option<Place> {
        let extent = extent.checked_add(1)?;
        let range = self.range(extent as usize)?;
        let left = range.end.min(self.size).checked_sub(range.start)?;

        (left != 0).then_some(Place {
            extent,
            offset: 0,
            left: left as usize,
        })
    }

    fn range(&self, index: usize) -> Option<Range<u64>> {
        let start = match index.checked_sub(1) {
            Some(previous) => *self.ends.get(previous)?,
            None => 0,
        };
        Some(start..*self.ends.get(index)?)
    }
}
