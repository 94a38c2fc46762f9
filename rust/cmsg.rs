// SPDX-License-Identifier: GPL-2.0

//! What a reader is told of a packet, and when it ends.
//!
//! Linear bytes are copied, and a control message tells how many. For a frag there is a control
//! message that tells where in which dma-buf its bytes are, with a [token](crate::sys::token). A packet,
//! its reader and the reader's tokens are what the caller says they are: nothing here knows of skbs.

#![deny(unsafe_code)]

use crate::{
    sys::token::{
        References,
        Tokens,
        BATCH, //
    },
    window::Window, //
};

/// A frag of a packet.
pub(crate) trait Frag {
    /// Size in bytes.
    fn size(&self) -> usize;

    /// Where it is. None if that is not in device memory.
    fn place(&self) -> Option<Place>;
}

/// Where a frag is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Id of the binding.
    pub(crate) dmabuf_id: u32,
    /// Where in the dma-buf the frag begins, in bytes.
    pub(crate) offset: u64,
}

/// What a reader is told of a frag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FragInfo {
    /// Id of the binding.
    pub(crate) dmabuf_id: u32,
    /// Where in the dma-buf its bytes begin.
    pub(crate) offset: u64,
    /// How many bytes they are.
    pub(crate) len: usize,
    /// The token for them.
    pub(crate) token: u32,
}

/// A part of a packet: linear bytes, and then frags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a, F> {
    /// Whether the CPU can read the frags.
    pub(crate) readable: bool,
    /// The linear bytes.
    pub(crate) linear: &'a [u8],
    /// The frags.
    pub(crate) frags: &'a [F],
}

/// Who gets data and control messages.
pub(crate) trait Reader {
    /// Why it does not.
    type Error: From<Stop>;

    /// A control message about a frag, as the reader gets it.
    type Message: Copy + Default + From<FragInfo>;

    /// Copies bytes to it.
    fn copy(&mut self, data: &[u8]) -> Result<(), Self::Error>;

    /// Adds a control message about `len` bytes that were copied.
    fn put_linear(&mut self, len: usize) -> Result<(), Self::Error>;

    /// Adds control messages about frags, in their order. If one cannot be added, tells how many were,
    /// and why that one was not.
    fn put_frags(&mut self, messages: &[Self::Message]) -> Result<(), (usize, Self::Error)>;
}

/// Why nothing more can be passed, if it is not for the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A frag is not in device memory.
    NotDeviceMemory,
    /// The packet ends before the window does.
    EndOfPacket,
}

/// What was passed of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// How many bytes.
    pub(crate) bytes: usize,
    /// Whether its frags' references are moved: it does not have them any more.
    pub(crate) moved: bool,
}

/// Passes what of a packet is in `window` to `reader`, one part after the other.
///
/// What stopped it is told only if not a byte was passed. The reader has been told of the tokens that
/// stand for something when this returns, and of no others. With `eat`, the window is all of a packet
/// of one part, which is not needed any more when all is passed: then references may be moved.
pub(crate) fn pass<'a, F, R, T>(
    parts: impl Iterator<Item = Part<'a, F>>,
    window: Window,
    reader: &mut R,
    tokens: &mut T,
    eat: bool,
) -> Result<Passed, R::Error>
where
    F: Frag + 'a,
    R: Reader,
    T: Tokens<F, Error = R::Error>,
{
    let mut walk = Walk {
        reader,
        tokens,
        window,
        eat,
        passed: Passed {
            bytes: 0,
            moved: false,
        },
    };
    let result = walk.parts(parts);

    match walk.passed {
        passed if passed.bytes != 0 => Ok(passed),
        passed => result.map(|()| passed),
    }
}

struct Walk<'r, R, T> {
    reader: &'r mut R,
    tokens: &'r mut T,
    window: Window,
    eat: bool,
    passed: Passed,
}

impl<R: Reader, T> Walk<'_, R, T> {
    fn parts<'a, F>(&mut self, parts: impl Iterator<Item = Part<'a, F>>) -> Result<(), R::Error>
    where
        F: Frag + 'a,
        T: Tokens<F, Error = R::Error>,
    {
        for part in parts {
            if part.readable {
                return Err(Stop::NotDeviceMemory.into());
            }
            self.linear(part.linear)?;
            self.frags(part.frags)?;
            if self.window.is_empty() {
                return Ok(());
            }
        }
        Err(Stop::EndOfPacket.into())
    }

    fn linear(&mut self, linear: &[u8]) -> Result<(), R::Error> {
        if let Some(part) = self.window.cut(linear.len()) {
            self.reader.copy(&linear[part.offset..][..part.len])?;
            self.reader.put_linear(part.len)?;
            self.passed.bytes += part.len;
        }
        Ok(())
    }

    fn frags<F>(&mut self, all: &[F]) -> Result<(), R::Error>
    where
        F: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        let mut frags = all;

        while let Some((frag, rest)) = frags.split_first() {
            if self.window.is_empty() {
                break;
            }
            if !self.window.meets(frag.size()) {
                self.window.cut(frag.size());
                frags = rest;
                continue;
            }
            let told = self.batch(frags, all.len())?;
            frags = &frags[told..];
        }
        Ok(())
    }

    /// Tells the reader of the first of `frags`, which are in the window, and commits their tokens.
    /// Returns how many frags that was. The part has `all` frags.
    fn batch<F>(&mut self, frags: &[F], all: usize) -> Result<usize, R::Error>
    where
        F: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        let mut tokens = [0; BATCH];
        let most = self
            .tokens
            .peek(&mut tokens[..frags.len().min(BATCH)])?
            .get();
        let mut messages = [R::Message::default(); BATCH];
        let start = self.window;
        let (count, found) = self.describe(frags, &tokens[..most], &mut messages);
        let (told, put) = match self.reader.put_frags(&messages[..count]) {
            Ok(()) => (count, Ok(())),
            Err((told, error)) => (told, Err(error)),
        };

        if told != 0 {
            let references = self.references(told == all);
            self.tokens
                .commit(&tokens[..told], &frags[..told], references);
        }
        self.passed.bytes += match told == count {
            true => start.len() - self.window.len(),
            false => bytes(start, &frags[..told]),
        };
        put?;
        found?;
        Ok(told)
    }

    /// Where the references of a batch come from, which is all of the packet or not.
    fn references(&mut self, all: bool) -> References {
        if self.eat && all {
            self.passed.moved = true;
            return References::Moved;
        }
        References::Taken
    }

    /// Makes messages about the first of `frags`, as long as they are in the window. Returns how many,
    /// and whether the next one is not to be told of.
    fn describe<F: Frag>(
        &mut self,
        frags: &[F],
        tokens: &[u32],
        messages: &mut [R::Message],
    ) -> (usize, Result<(), R::Error>) {
        let mut count = 0;

        for ((frag, &token), message) in frags.iter().zip(tokens).zip(messages) {
            if !self.window.meets(frag.size()) {
                break;
            }
            let Some(place) = frag.place() else {
                return (count, Err(Stop::NotDeviceMemory.into()));
            };
            if let Some(part) = self.window.cut(frag.size()) {
                *message = R::Message::from(FragInfo {
                    dmabuf_id: place.dmabuf_id,
                    offset: place.offset + part.offset as u64,
                    len: part.len,
                    token,
                });
            }
            count += 1;
        }
        (count, Ok(()))
    }
}

/// How many bytes of `frags` are in `window`.
fn bytes<F: Frag>(mut window: Window, frags: &[F]) -> usize {
    frags
        .iter()
        .filter_map(|frag| window.cut(frag.size()))
        .map(|part| part.len)
        .sum()
}
