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

    /// How many bytes are still to come.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// True if a piece of `size` bytes, if that is the next one, has a part in the window.
    pub(crate) fn meets(&self, size: usize) -> bool {
        self.len != 0 && self.skip < size
    }

    /// Moves on past a piece of `size` bytes. Returns the part of it that was in the window, if any.
    pub(crate) fn cut(&mut self, size: usize) -> Option<Part> {
        let offset = self.skip.min(size);
        let len = (size - offset).min(self.len);

        self.skip -= offset;
        self.len -= len;
        (len != 0).then_some(Part { offset, len })
    }
}
