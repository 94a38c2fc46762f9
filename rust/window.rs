// SPDX-License-Identifier: GPL-2.0

//! The window of a stream that a reader asks for, moved over the pieces that hold the stream.

#![deny(unsafe_code)]

/// What of the pieces that are still to come the reader wants: `skip` bytes less at the front, then
/// up to `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    skip: usize,
    len: usize,
}

/// The part of a piece that is in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where it begins in the piece, in bytes.
    pub(crate) offset: usize,
    /// How long it is, in bytes. Never 0.
    pub(crate) len: usize,
}

impl Window {
    /// The window of `len` bytes after the first `skip`.
    pub(crate) fn new(skip: usize, len: usize) -> Self {
        Self { skip, len }
    }

    /// True if the reader has got all that it asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part of a piece of `size` bytes that is in the window, if any. Does not move on.
    pub(crate) fn part(&self, size: usize) -> Option<Part> {
        let len = size.saturating_sub(self.skip).min(self.len);

        (len != 0).then_some(Part {
            offset: self.skip,
            len,
        })
    }

    /// Moves on past a piece of `size` bytes.
    pub(crate) fn advance(&mut self, size: usize) {
        self.len -= self.part(size).map_or(0, |part| part.len);
        self.skip = self.skip.saturating_sub(size);
    }

    /// How many of the next pieces, of `sizes` bytes each, have a part in the window.
    pub(crate) fn count(mut self, sizes: impl Iterator<Item = usize>) -> usize {
        let mut count = 0;
        for size in sizes {
            if self.is_empty() {
                break;
            }
            count += usize::from(self.part(size).is_some());
            self.advance(size);
        }
        count
    }
}
