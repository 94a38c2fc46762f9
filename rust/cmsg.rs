// SPDX-License-Identifier: GPL-2.0

//! What a reader is told of a packet, and when it ends.
//!
//! Linear bytes are copied, and a control message tells how many. For a frag there is a control
//! message that tells where in which dma-buf its bytes are, with a [token](crate::token). A packet,
//! its reader and the reader's tokens are what the caller says they are: nothing here knows of skbs.

#![deny(unsafe_code)]

use crate::{
    token::{
        Reserved,
        Table, //
    },
    window::Window, //
};

/// A frag of a packet.
pub(crate) trait Frag {
    /// The buffer that the frag is in.
    type Iov<'a>: Copy
    where
        Self: 'a;

    /// Size in bytes.
    fn size(&self) -> usize;

    /// Where it is. None if that is not in device memory.
    fn place(&self) -> Option<Place<Self::Iov<'_>>>;
}

/// Where a frag is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<I> {
    /// The buffer, of which a token takes a reference.
    pub(crate) iov: I,
    /// Id of the binding.
    pub(crate) dmabuf_id: u32,
    /// Where in the dma-buf the frag begins, in bytes.
    pub(crate) offset: u64,
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

    /// Copies bytes to it.
    fn copy(&mut self, data: &[u8]) -> Result<(), Self::Error>;

    /// Adds a control message about `len` bytes that were copied.
    fn put_linear(&mut self, len: usize) -> Result<(), Self::Error>;

    /// Adds a control message about `len` bytes at `offset` of a dma-buf, and the token for them.
    fn put_frag(
        &mut self,
        dmabuf_id: u32,
        offset: u64,
        len: usize,
        token: u32,
    ) -> Result<(), Self::Error>;
}

/// Why nothing more can be passed, if it is not for the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A frag is not in device memory.
    NotDeviceMemory,
    /// The packet ends before the window does.
    EndOfPacket,
    /// There is no token, though the table has given some.
    NoToken,
}

/// Passes what of a packet is in `window` to `reader`, one part after the other.
///
/// Returns how many bytes were passed. What stopped it is told only if not a byte was. `lock` locks
/// the tokens of the reader; those that it was told of are committed when this returns, and no
/// others.
pub(crate) fn pass<'a, F, R, T>(
    parts: impl Iterator<Item = Part<'a, F>>,
    window: Window,
    reader: &mut R,
    lock: impl Fn() -> T,
) -> Result<usize, R::Error>
where
    F: Frag + 'a,
    R: Reader,
    T: Table<F::Iov<'a>, Error = R::Error>,
{
    let mut walk = Walk {
        reader,
        lock,
        window,
        tokens: Reserved::new(),
        passed: 0,
    };
    let result = walk.parts(parts);

    match walk.finish() {
        0 => result.map(|()| 0),
        passed => Ok(passed),
    }
}

struct Walk<'r, R, L, I> {
    reader: &'r mut R,
    lock: L,
    window: Window,
    tokens: Reserved<I>,
    passed: usize,
}

impl<R, L, T, I> Walk<'_, R, L, I>
where
    R: Reader,
    L: Fn() -> T,
    T: Table<I, Error = R::Error>,
    I: Copy,
{
    fn parts<'a, F>(&mut self, parts: impl Iterator<Item = Part<'a, F>>) -> Result<(), R::Error>
    where
        F: Frag<Iov<'a> = I> + 'a,
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
        if let Some(part) = self.window.part(linear.len()) {
            self.reader.copy(&linear[part.offset..][..part.len])?;
            self.reader.put_linear(part.len)?;
            self.passed += part.len;
        }
        self.window.advance(linear.len());
        Ok(())
    }

    fn frags<'a, F>(&mut self, mut frags: &'a [F]) -> Result<(), R::Error>
    where
        F: Frag<Iov<'a> = I>,
    {
        while let Some((frag, rest)) = frags.split_first() {
            if self.window.is_empty() {
                break;
            }
            if let Some(part) = self.window.part(frag.size()) {
                let place = frag.place().ok_or(Stop::NotDeviceMemory)?;
                let offset = place.offset + part.offset as u64;
                let token = self.token(frags)?;

                self.reader
                    .put_frag(place.dmabuf_id, offset, part.len, token)?;
                self.tokens.bind(place.iov);
                self.passed += part.len;
            }
            self.window.advance(frag.size());
            frags = rest;
        }
        Ok(())
    }

    /// A reserved token. If there is none left, reserves as many as the coming `frags` take.
    fn token<F: Frag>(&mut self, frags: &[F]) -> Result<u32, R::Error> {
        if self.tokens.peek().is_none() {
            let want = self.window.count(frags.iter().map(Frag::size));
            self.tokens.refill(&mut (self.lock)(), want)?;
        }
        Ok(self.tokens.peek().ok_or(Stop::NoToken)?)
    }

    fn finish(mut self) -> usize {
        if !self.tokens.is_empty() {
            self.tokens.settle(&mut (self.lock)());
        }
        self.passed
    }
}
