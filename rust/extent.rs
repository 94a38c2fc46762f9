// SPDX-License-Identifier: GPL-2.0

//! Where the bytes of a dma-buf are that is sent from: its DMA segments as few, long extents.
//!
//! A transmit frag may begin at any byte and be of any length, as long as the device sees it
//! contiguous. So there is one net_iov for each extent, and not one for each page: a send from
//! contiguous memory needs one frag, and neither size nor alignment of a segment matters.

#![deny(unsafe_code)]

use core::{
    num::NonZero,
    ops::{
        Deref,
        Range, //
    }, //
};

use crate::area::{
    LayoutError,
    Segment, //
};

/// Longest extent in bytes. A frag tells where it begins and how long it is in 32 bits each.
const MAX_LEN: u64 = 1 << 31;

/// Most bytes of a dma-buf: more than any machine has, so that a bad length is not taken for an
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

/// Where a segment ends in the dma-buf, if it begins at `start`.
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

/// Which extent an offset into the dma-buf is in.
///
/// `S` is where the extents end, as offsets, for all extents in their order.
///
/// # Invariants
///
/// The ends are strictly ascending, and there is at least one of them.
pub(crate) struct ExtentMap<S> {
    ends: S,
    /// Length of an average extent in bytes.
    typical: NonZero<u64>,
    /// Offsets from here on are not to be used, even if there are extents.
    size: u64,
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

impl<S: Deref<Target = [u64]>> ExtentMap<S> {
    /// The map of extents that end at `ends`, for a dma-buf of `size` bytes.
    ///
    /// None if `ends` is empty or not strictly ascending, or if an extent is too long.
    pub(crate) fn new(ends: S, size: u64) -> Option<Self> {
        let mut start = 0;
        for &end in ends.iter() {
            if end <= start || end - start > MAX_LEN {
                return None;
            }
            start = end;
        }

        let typical = NonZero::new(start.checked_div(ends.len() as u64)?)?;
        // INVARIANT: Both were just checked.
        Some(Self {
            ends,
            typical,
            size: size.min(start),
        })
    }

    /// Bytes that can be sent.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Finds `offset`, if it is in the dma-buf.
    ///
    /// Looks at extent `hint` first, then where `offset` is if all extents are of the same length,
    /// as those of a dma-buf of pages are; and searches if it is neither.
    pub(crate) fn locate(&self, offset: u64, hint: u32) -> Option<Place> {
        if offset >= self.size {
            return None;
        }

        let guess = (offset / self.typical) as usize;
        let index = [hint as usize, guess]
            .into_iter()
            .find(|&index| {
                self.range(index)
                    .is_some_and(|range| range.contains(&offset))
            })
            .unwrap_or_else(|| self.ends.partition_point(|&end| end <= offset));
        let range = self.range(index)?;

        // CAST: No extent is longer than `MAX_LEN`, and there are not more of them than that.
        Some(Place {
            extent: index as u32,
            offset: (offset - range.start) as u32,
            left: (range.end.min(self.size) - offset) as usize,
        })
    }

    /// Finds `offset`, as [`locate`](Self::locate) does, and then the extents that follow it.
    pub(crate) fn walk(&self, offset: u64, hint: u32) -> impl Iterator<Item = Place> + '_ {
        let first = self.locate(offset, hint);
        let next = first.map_or(0, |place| place.extent + 1);
        let ends = self.ends.get(next as usize..).unwrap_or(&[]);
        let mut start = match first {
            Some(place) => offset + place.left as u64,
            None => self.size,
        };
        let rest = (next..).zip(ends).map_while(move |(extent, &end)| {
            let left = end.min(self.size).checked_sub(start)?;

            start = end;
            (left != 0).then_some(Place {
                extent,
                offset: 0,
                left: left as usize,
            })
        });

        first.into_iter().chain(rest)
    }

    fn range(&self, index: usize) -> Option<Range<u64>> {
        let start = match index.checked_sub(1) {
            Some(previous) => *self.ends.get(previous)?,
            None => 0,
        };
        Some(start..*self.ends.get(index)?)
    }
}
