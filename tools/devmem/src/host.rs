// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Ordinary memory of this process, beside dma-bufs: somebody else's, or its own.

use std::io;
use std::ptr::NonNull;
use std::sync::PoisonError;
use std::sync::RwLock;

use crate::volatile;

/// Memory of this process for the CPU to copy from and to: of a program in another language, say.
#[derive(Debug)]
pub struct HostMemory {
    /// Until it is closed.
    at: RwLock<Option<NonNull<u8>>>,
    len: usize,
    /// Whether it is this one's own, which came of a box.
    is_owned: bool,
}

// SAFETY: The memory belongs to the process, not to a thread.
unsafe impl Send for HostMemory {}
// SAFETY: As above; who writes is alone.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// `len` bytes at an address.
    ///
    /// # Safety
    ///
    /// They can be read and written until [`close`](Self::close) has returned, or this is dropped, and until then there
    /// are no references into them. Bytes that others write while they are copied are unspecified.
    pub unsafe fn new(at: NonNull<u8>, len: usize) -> Self {
        Self {
            at: RwLock::new(Some(at)),
            len,
            is_owned: false,
        }
    }

    /// Bytes that are nobody else's.
    pub fn owned(bytes: Box<[u8]>) -> Self {
        let len = bytes.len();
        Self {
            at: RwLock::new(NonNull::new(Box::into_raw(bytes).cast())),
            len,
            is_owned: true,
        }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether that is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Gives the memory back: none of it is accessed any more once this has returned.
    pub fn close(&self) {
        let mut at = self.at.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = at.take().filter(|_| self.is_owned) {
            let bytes = std::ptr::slice_from_raw_parts_mut(at.as_ptr(), self.len);
            // SAFETY: That is what the box was, and nobody finds it any more.
            drop(unsafe { Box::from_raw(bytes) });
        }
    }

    /// Where `len` bytes at `offset` are.
    fn part(&self, at: Option<NonNull<u8>>, offset: u64, len: usize) -> io::Result<NonNull<u8>> {
        let at = at.ok_or_else(|| io::Error::other("the memory was given back"))?;
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset} are outside of the memory"),
            ));
        }
        // SAFETY: That is in the memory.
        Ok(unsafe { at.add(offset) })
    }

    /// Copies the bytes at `offset` into `to`.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if they are not all in the memory; another one if it is closed.
    pub fn copy_out(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let at = self.at.read().unwrap_or_else(PoisonError::into_inner);
        let from = self.part(*at, offset, to.len())?;
        // SAFETY: The range was checked; the memory is there, as it is not closed, and there are no references into it.
        unsafe { volatile::copy_out(from.as_ptr(), to) };
        Ok(())
    }

    /// Copies `from` to `offset`.
    ///
    /// # Errors
    ///
    /// As of [`copy_out`](Self::copy_out).
    pub fn copy_in(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let at = self.at.write().unwrap_or_else(PoisonError::into_inner);
        let to = self.part(*at, offset, from.len())?;
        // SAFETY: As above, and nobody else writes.
        unsafe { volatile::copy_in(from, to.as_ptr()) };
        Ok(())
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_left_alone() {
        let mut bytes = *b"abcdef";
        // SAFETY: They are there until the end, and used by nothing else until it is closed.
        let memory = unsafe { HostMemory::new(NonNull::from(&mut bytes).cast(), 6) };
        assert_eq!((memory.len(), memory.is_empty()), (6, false));
        let mut to = [0; 3];
        memory.copy_out(3, &mut to).unwrap();
        assert_eq!(&to, b"def");
        memory.copy_in(1, b"xy").unwrap();
        for offset in [4, u64::MAX] {
            let err = memory.copy_in(offset, b"123").unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
            assert!(memory.copy_out(offset, &mut to).is_err());
        }
        memory.close();
        assert!(memory.copy_in(0, b"z").is_err());
        assert!(memory.copy_out(0, &mut to).is_err());
        assert_eq!(&bytes, b"axydef");
    }

    /// Miri sees that they are freed, and once.
    #[test]
    fn what_is_its_own_is_freed() {
        let memory = HostMemory::owned(Box::from(*b"abc"));
        memory.copy_in(1, b"x").unwrap();
        let mut to = [0; 3];
        memory.copy_out(0, &mut to).unwrap();
        assert_eq!(&to, b"axc");
        memory.close();
        assert!(memory.copy_out(0, &mut to).is_err());
        drop(HostMemory::owned(Box::from([])));
    }
}
