// SPDX-License-Identifier: GPL-2.0

//! What a reader is told of a packet, and when it ends.
//!
//! Linear bytes are copied, and a control message tells how many. For a frag there is a control
//! message that tells where in which dma-buf its bytes are, with a [token](crate::sys::token). A packet,
//! its reader and the reader's tokens are what the caller says they are: nothing here knows of skbs.

#![deny(unsafe_code)]

use crate::sys::{
    token::{
        Frags,
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

    /// Whether the memory that it is in was taken back.
    fn is_revoked(&self) -> bool;
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
pub(crate) struct Part<'a, F> {
    /// Whether the CPU can read the frags.
    pub(crate) readable: bool,
    /// Whether memory of any frags was ever taken back: then they are asked.
    pub(crate) may_be_revoked: bool,
    /// The linear bytes.
    pub(crate) linear: &'a [u8],
    /// The frags.
    pub(crate) frags: F,
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
    /// A frag is in memory that was taken back.
    Revoked,
    /// The packet ends before the window does.
    EndOfPacket,
}

/// Passes what of a packet is in `window` to `reader`, one part after the other. Returns how many bytes.
///
/// What stopped it is told only if not a byte was passed. The reader has been told of the tokens that
/// stand for something when this returns, and of no others.
pub(crate) fn pass<'a, F, R, T>(
    parts: impl Iterator<Item = Part<'a, F>>,
    window: Window,
    reader: &mut R,
    tokens: &mut T,
) -> Result<usize, R::Error>
where
    F: Frags,
    F::Frag: Frag,
    R: Reader,
    T: Tokens<F, Error = R::Error>,
{
    let mut walk = Walk {
        reader,
        tokens,
        window,
        passed: 0,
    };
    let result = walk.parts(parts);

    match walk.passed {
        0 => result.map(|()| 0),
        passed => Ok(passed),
    }
}

struct Walk<'r, R, T> {
    reader: &'r mut R,
    tokens: &'r mut T,
    window: Window,
    /// How many bytes were passed.
    passed: usize,
}

impl<R: Reader, T> Walk<'_, R, T> {
    fn parts<'a, F>(&mut self, parts: impl Iterator<Item = Part<'a, F>>) -> Result<(), R::Error>
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        for part in parts {
            if part.readable {
                return Err(Stop::NotDeviceMemory.into());
            }
            self.linear(part.linear)?;
            self.frags(part.frags, part.may_be_revoked)?;
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
            self.passed += part.len;
        }
        Ok(())
    }

    fn frags<F>(&mut self, frags: F, may_be_revoked: bool) -> Result<(), R::Error>
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        let all = frags.as_slice().len();
        let mut rest = frags.as_slice();

        while let Some((frag, after)) = rest.split_first() {
            if self.window.is_empty() {
                break;
            }
            if !self.window.meets(frag.size()) {
                self.window.cut(frag.size());
                rest = after;
                continue;
            }
            let there = match may_be_revoked {
                true => still_there(rest),
                false => rest,
            };
            if there.is_empty() {
                return Err(Stop::Revoked.into());
            }
            let mut tokens = [0; BATCH];
            let (told, result) = self.batch::<F>(there, &mut tokens);
            if told == all {
                self.tokens.commit_all(&tokens[..told], frags);
                return result;
            }
            let (told, after) = rest.split_at(told);
            if !told.is_empty() {
                self.tokens.commit(&tokens[..told.len()], told);
            }
            result?;
            rest = after;
        }
        Ok(())
    }

    /// Tells the reader of the first of `frags`, which are in the window, with tokens that are still to be
    /// committed. Returns how many frags that was, and why not more.
    fn batch<F>(
        &mut self,
        frags: &[F::Frag],
        tokens: &mut [u32; BATCH],
    ) -> (usize, Result<(), R::Error>)
    where
        F: Frags,
        F::Frag: Frag,
        T: Tokens<F, Error = R::Error>,
    {
        let most = match self.tokens.peek(&mut tokens[..frags.len().min(BATCH)]) {
            Ok(most) => most.get(),
            Err(error) => return (0, Err(error)),
        };
        let mut messages = [R::Message::default(); BATCH];
        let start = self.window;
        let (count, found) = self.describe(frags, &tokens[..most], &mut messages);
        let (told, put) = match self.reader.put_frags(&messages[..count]) {
            Ok(()) => (count, Ok(())),
            Err((told, error)) => (told, Err(error)),
        };

        self.passed += match told == count {
            true => start.len() - self.window.len(),
            false => bytes(start, &frags[..told]),
        };
        (told, put.and(found))
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

/// Those before the first one whose memory was taken back. A packet may have frags of several bindings.
#[cold]
fn still_there<F: Frag>(frags: &[F]) -> &[F] {
    let gone = frags.iter().position(Frag::is_revoked);

    &frags[..gone.unwrap_or(frags.len())]
}

/// How many bytes of `frags` are in `window`.
fn bytes<F: Frag>(mut window: Window, frags: &[F]) -> usize {
    frags
        .iter()
        .filter_map(|frag| window.cut(frag.size()))
        .map(|part| part.len)
        .sum()
}
