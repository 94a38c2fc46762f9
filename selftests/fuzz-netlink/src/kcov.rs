// SPDX-License-Identifier: GPL-2.0

//! Which instructions of the kernel's instrumented objects a thread runs (KCOV).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap;
use nix::sys::mman::munmap;

/// Words of the buffer: the first counts those that follow.
const WORDS: usize = 1 << 16;
const KCOV_TRACE_PC: libc::c_ulong = 0;

nix::ioctl_write_int_bad!(kcov_init_trace, nix::request_code_read!(b'c', 1, WORD));
nix::ioctl_write_int_bad!(kcov_enable, nix::request_code_none!(b'c', 100));
nix::ioctl_write_int_bad!(kcov_disable, nix::request_code_none!(b'c', 101));

const WORD: usize = size_of::<libc::c_ulong>();

/// The trace of the thread that made it.
#[derive(Debug)]
pub struct Kcov {
    file: File,
    buffer: NonNull<AtomicU64>,
}

impl Kcov {
    /// Traces this thread from now on.
    pub fn start() -> io::Result<Self> {
        let path = "/sys/kernel/debug/kcov";
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|err| io::Error::new(err.kind(), format!("{path}: {err}")))?;
        // SAFETY: The argument is a number.
        unsafe { kcov_init_trace(file.as_raw_fd(), WORDS as i32) }?;
        let len = NonZeroUsize::new(WORDS * WORD).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
        let buffer = unsafe { mmap(None, len, prot, MapFlags::MAP_SHARED, &file, 0) }?;
        let kcov = Self {
            file,
            buffer: buffer.cast(),
        };
        // SAFETY: The argument is a number.
        unsafe { kcov_enable(kcov.file.as_raw_fd(), KCOV_TRACE_PC as i32) }?;
        Ok(kcov)
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < WORDS, "word {index} of the trace");
        // SAFETY: The mapping has `WORDS` words, lives as long as `self`, and is accessed by atomic
        // operations only.
        unsafe { self.buffer.add(index).as_ref() }
    }

    /// Forgets what was traced.
    pub fn reset(&self) {
        self.word(0).store(0, Ordering::Relaxed);
    }

    /// The instructions since the last [`reset`](Self::reset).
    pub fn trace(&self) -> BTreeSet<u64> {
        let count = self.word(0).load(Ordering::Relaxed) as usize;
        (1..=count.min(WORDS - 1))
            .map(|index| self.word(index).load(Ordering::Relaxed))
            .collect()
    }
}

impl Drop for Kcov {
    fn drop(&mut self) {
        // Nobody to tell. The thread ends soon, which disables it as well.
        //
        // SAFETY: The argument is a number.
        let _ = unsafe { kcov_disable(self.file.as_raw_fd(), 0) };
        // SAFETY: The mapping is this struct's own, and no reference into it is left.
        let _ = unsafe { munmap(self.buffer.cast(), WORDS * WORD) };
    }
}
