// SPDX-License-Identifier: GPL-2.0

//! Where the buffers of a source are: its DMA segments cut into net_iovs.
//!
//! All net_iovs of a binding are in one array, in the order of the source, so that a net_iov's
//! index times its size is its offset. Segments matter only here, when the net_iovs get their DMA
//! addresses: nothing later depends on how many there were.

#![deny(unsafe_code)]

/// A contiguous range of DMA addresses, one entry of a scatterlist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First DMA address.
    pub(crate) addr: u64,
    /// Length in bytes.
    pub(crate) len: u64,
}

impl Segment {
    /// Cuts it at the multiples of `1 << shift` bytes (`shift` below 64).
    pub(crate) fn cut(self, shift: u32) -> impl Iterator<Item = Segment> {
        let mask: u64 = (1 << shift) - 1;
        let mut rest = self;

        core::iter::from_fn(move || {
            if rest.len == 0 {
                return None;
            }
            let len = (mask - (rest.addr & mask) + 1).min(rest.len);
            let piece = Segment {
                addr: rest.addr,
                len,
            };

            // After the last piece it may wrap.
            rest.addr = rest.addr.wrapping_add(len);
            rest.len -= len;
            Some(piece)
        })
    }
}

/// Why segments cannot be cut into net_iovs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayoutError {
    /// There is not a single buffer.
    Empty,
    /// The segment does not begin or end at a multiple of the net_iov size.
    Misaligned(Segment),
    /// The segment goes past the end of the address space.
    Wraps(Segment),
    /// More net_iovs than an index can tell apart.
    TooMany,
}

/// How segments are cut into net_iovs.
///
/// # Invariants
///
/// `shift` is below 64, and the segments that [`Layout::of`] saw make up exactly `niovs` net_iovs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    shift: u32,
    niovs: u32,
}

impl Layout {
    /// Checks that `segments` can be cut into net_iovs of `1 << shift` bytes (`shift` below 64).
    pub(crate) fn of(
        segments: impl Iterator<Item = Segment>,
        shift: u32,
    ) -> Result<Self, LayoutError> {
        let mut niovs: u32 = 0;
        for segment in segments {
            let count = Self::niovs_in(segment, shift)?;
            niovs = u32::try_from(count)
                .ok()
                .and_then(|count| niovs.checked_add(count))
                .ok_or(LayoutError::TooMany)?;
        }

        if niovs == 0 {
            return Err(LayoutError::Empty);
        }
        // INVARIANT: `niovs` is the sum over all segments.
        Ok(Self { shift, niovs })
    }

    fn niovs_in(segment: Segment, shift: u32) -> Result<u64, LayoutError> {
        let mask: u64 = (1 << shift) - 1;

        if (segment.addr | segment.len) & mask != 0 {
            return Err(LayoutError::Misaligned(segment));
        }
        // The last byte may be the last one of the address space.
        if segment.len != 0 && segment.addr.checked_add(segment.len - 1).is_none() {
            return Err(LayoutError::Wraps(segment));
        }
        Ok(segment.len >> shift)
    }

    /// Number of net_iovs.
    pub(crate) fn niovs(&self) -> usize {
        self.niovs as usize
    }

    /// The DMA addresses of the net_iovs, in the order of the source.
    ///
    /// `segments` are those that the layout was made of.
    pub(crate) fn addresses(
        self,
        segments: impl Iterator<Item = Segment>,
    ) -> impl Iterator<Item = u64> {
        segments.flat_map(move |segment| {
            (0..segment.len >> self.shift).map(move |i| segment.addr + (i << self.shift))
        })
    }
}
