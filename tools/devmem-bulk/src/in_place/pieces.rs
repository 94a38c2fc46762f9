// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Where bytes of a region are, before they are in place.

use std::io;
use std::sync::Arc;

use crate::memory::Memory;

/// What is saved in one piece, about.
pub(super) const LONG: u64 = 1 << 20;

/// A memory that bytes are moved in.
pub trait Bytes {
    /// Copies the bytes at `offset` into `to`.
    ///
    /// # Errors
    ///
    /// Why they cannot be read.
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;

    /// Copies `from` to `offset`.
    ///
    /// # Errors
    ///
    /// Why they cannot be written.
    fn write(&mut self, offset: u64, from: &[u8]) -> io::Result<()>;
}

impl Bytes for &Memory {
    fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        Memory::read(self, offset, to)
    }

    fn write(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        Memory::write(self, offset, from)
    }
}

/// Where the bytes of a piece are.
#[derive(Debug)]
pub(super) enum Spot<K> {
    /// In the target, for as long as that is kept.
    Landed { at: u64, keep: Arc<K> },
    /// Here, from this byte on.
    Saved { bytes: Arc<Vec<u8>>, from: u64 },
}

impl<K> Clone for Spot<K> {
    fn clone(&self) -> Self {
        self.skip(0)
    }
}

impl<K> Spot<K> {
    /// The same, without the first bytes.
    pub(super) fn skip(&self, len: u64) -> Self {
        match self {
            Self::Landed { at, keep } => Self::Landed {
                at: at + len,
                keep: Arc::clone(keep),
            },
            Self::Saved { bytes, from } => Self::Saved {
                bytes: Arc::clone(bytes),
                from: from + len,
            },
        }
    }
}

/// Bytes of the region.
#[derive(Debug)]
pub(super) struct Piece<K> {
    pub(super) len: u64,
    pub(super) spot: Spot<K>,
}

/// Bytes that follow each other, as they are saved.
#[derive(Default)]
pub(super) struct Run {
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

impl Run {
    /// Whether a piece belongs behind these.
    pub(super) fn takes(&self, offset: u64, len: u64) -> bool {
        let now = self.bytes.len() as u64;
        now == 0 || (self.offset + now == offset && now + len <= LONG)
    }

    pub(super) fn add<K>(
        &mut self,
        offset: u64,
        piece: &Piece<K>,
        memory: &impl Bytes,
    ) -> io::Result<()> {
        let before = self.bytes.len();
        if before == 0 {
            self.offset = offset;
        }
        let len = usize::try_from(piece.len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        match &piece.spot {
            Spot::Landed { at, .. } => {
                self.bytes.resize(before + len, 0);
                let read = memory.read(*at, &mut self.bytes[before..]);
                if read.is_err() {
                    self.bytes.truncate(before);
                }
                read
            }
            Spot::Saved { bytes, from } => {
                self.bytes.extend_from_slice(part(bytes, *from, len));
                Ok(())
            }
        }
    }
}

/// The bytes of a piece that is saved.
pub(super) fn part(bytes: &[u8], from: u64, len: usize) -> &[u8] {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let bytes = bytes.get(from..).unwrap_or_default();
    &bytes[..len.min(bytes.len())]
}

pub(super) fn save<K>(memory: &impl Bytes, at: u64, len: u64) -> io::Result<Spot<K>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = vec![0; len];
    memory.read(at, &mut bytes)?;
    let bytes = Arc::new(bytes);
    Ok(Spot::Saved { bytes, from: 0 })
}

/// Moves bytes towards the beginning.
pub(super) fn shift(
    memory: &mut impl Bytes,
    from: u64,
    to: u64,
    len: u64,
    scratch: &mut [u8],
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let step =
            usize::try_from(len - done).map_or(scratch.len(), |left| left.min(scratch.len()));
        let scratch = &mut scratch[..step];
        memory.read(from + done, scratch)?;
        memory.write(to + done, scratch)?;
        done += step as u64;
    }
    Ok(())
}
