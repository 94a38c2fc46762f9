// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How what has landed gets where it belongs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use devmem::Token;
use devmem::dmabuf::CpuRead;
use log::warn;

use crate::memory::Landing;
use crate::memory::Memory;
use crate::memory::Writing;

/// Bytes in host memory that are one piece.
const MOST: usize = 64 << 10;

/// Bytes of a lane that have landed somewhere, in one piece. What that is goes back to the NIC, and the peer is given
/// credit for it, when this is dropped.
#[derive(Debug)]
pub struct Landed {
    data: Arc<Data>,
    from: u64,
    len: u64,
    released: Arc<AtomicU64>,
}

#[derive(Debug)]
pub(crate) enum Data {
    /// In device memory.
    Frag {
        landing: Arc<Landing>,
        offset: u64,
        _token: Token<'static>,
    },
    /// In host memory, to which the kernel has copied it.
    Host(Vec<u8>),
}

impl Landed {
    pub(crate) fn new(data: Data, len: u64, released: &Arc<AtomicU64>) -> Self {
        Self {
            data: Arc::new(data),
            from: 0,
            len,
            released: Arc::clone(released),
        }
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether that is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where in a landing the bytes are, if they are in one.
    pub fn device(&self) -> Option<(&Arc<Landing>, u64)> {
        match &*self.data {
            Data::Frag {
                landing, offset, ..
            } => Some((landing, offset + self.from)),
            Data::Host(_) => None,
        }
    }

    /// The bytes, if they are in host memory.
    pub fn host(&self) -> Option<&[u8]> {
        match &*self.data {
            Data::Frag { .. } => None,
            Data::Host(bytes) => {
                let from = usize::try_from(self.from).ok()?;
                bytes.get(from..from.checked_add(usize::try_from(self.len).ok()?)?)
            }
        }
    }

    /// Adds bytes that have landed behind these, if there is room for that.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> bool {
        let Some(Data::Host(all)) = Arc::get_mut(&mut self.data) else {
            return false;
        };
        // Not if these are not the last ones.
        let last = self.from + self.len == all.len() as u64;
        if !last || bytes.len() > MOST.saturating_sub(all.len()) {
            return false;
        }
        all.extend_from_slice(bytes);
        self.len += bytes.len() as u64;
        true
    }

    /// Cuts off the first `len` bytes, of which there are more.
    pub(crate) fn split(&mut self, len: u64) -> Self {
        let len = len.min(self.len);
        let first = Self {
            data: Arc::clone(&self.data),
            from: self.from,
            len,
            released: Arc::clone(&self.released),
        };
        self.from += len;
        self.len -= len;
        first
    }
}

impl Drop for Landed {
    fn drop(&mut self) {
        self.released.fetch_add(self.len, Ordering::Release);
    }
}

/// Something that has landed, and where it belongs.
#[derive(Debug)]
pub struct Job {
    /// What has landed. Whoever takes it out keeps what it landed in for as long as it keeps that.
    pub landed: Option<Landed>,
    /// The memory that it belongs into.
    pub memory: Arc<Memory>,
    /// Where there.
    pub offset: u64,
    /// Whether it is there. Not, unless somebody says so.
    pub placed: bool,
}

/// What puts in place what has landed.
pub trait Place {
    /// Puts these in place, or makes that known to who has it done: for the peer they are in place then. There is one at
    /// least.
    ///
    /// Meanwhile nobody takes back the keys by which these are put there: who calls
    /// [`Registry::revoke`](crate::Registry::revoke) in here waits for ever.
    fn place(&mut self, jobs: &mut [Job]);
}

/// The CPU copies.
#[derive(Debug)]
pub struct HostCopy {
    scratch: Vec<u8>,
}

/// What is copied at once: so much fits into a CPU's nearer caches.
pub(crate) const STEP: usize = 64 << 10;

impl Default for HostCopy {
    fn default() -> Self {
        Self {
            scratch: vec![0; STEP],
        }
    }
}

impl HostCopy {
    /// One that has its memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Copies jobs of one memory. Exporters are told once, and not for each.
    fn copy(&mut self, jobs: &mut [Job]) -> io::Result<()> {
        let Some(memory) = jobs.first().map(|job| Arc::clone(&job.memory)) else {
            return Ok(());
        };
        let mut landings = jobs.iter().filter_map(|job| job.landed.as_ref()?.device());
        let landing = landings.next().map(|(landing, _)| Arc::clone(landing));
        let cpu = landing.as_ref().map(|landing| landing.map().begin_read());
        let cpu = cpu.transpose()?;
        memory.write_by(|to| {
            for job in jobs {
                let Some(landed) = job.landed.take() else {
                    continue;
                };
                if let Some(bytes) = landed.host() {
                    to.copy_in(job.offset, bytes)?;
                } else if let (Some((_, from)), Some(cpu)) = (landed.device(), &cpu) {
                    self.copy_out_of(cpu, from, landed.len(), to, job.offset)?;
                }
                job.placed = true;
            }
            Ok(())
        })
    }

    fn copy_out_of(
        &mut self,
        cpu: &CpuRead<'_>,
        from: u64,
        len: u64,
        to: &mut Writing<'_>,
        offset: u64,
    ) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            let step = usize::try_from(len - at).map_or(STEP, |left| left.min(STEP));
            let scratch = &mut self.scratch[..step];
            cpu.copy_out(from + at, scratch)?;
            to.copy_in(offset + at, scratch)?;
            at += step as u64;
        }
        Ok(())
    }
}

/// Whether two jobs are of the same memories.
fn together(a: &Job, b: &Job) -> bool {
    let landing = |job: &Job| {
        let (landing, _) = job.landed.as_ref()?.device()?;
        Some(landing.id())
    };
    Arc::ptr_eq(&a.memory, &b.memory) && landing(a) == landing(b)
}

impl HostCopy {
    /// Copies those that nobody else has taken.
    pub(crate) fn place_rest(&mut self, jobs: &mut [Job]) {
        for jobs in jobs.chunk_by_mut(|a, b| a.landed.is_some() == b.landed.is_some()) {
            if jobs.first().is_some_and(|job| job.landed.is_some()) {
                self.place(jobs);
            }
        }
    }
}

impl Place for HostCopy {
    fn place(&mut self, jobs: &mut [Job]) {
        for jobs in jobs.chunk_by_mut(together) {
            if let Err(err) = self.copy(jobs) {
                warn!("bytes that have landed cannot be copied: {err}");
            }
        }
    }
}

/// Nobody copies: the program gets what has landed, where it has landed, and is told where it would belong.
///
/// The peer is given credit when the pieces are dropped, which the endpoint looks for every 5 ms as it is
/// [waited](crate::Endpoint::wait) for.
#[derive(Debug)]
pub struct HandOut(mpsc::Sender<Piece>);

/// What has landed, for a program that uses it there.
#[derive(Debug)]
pub struct Piece {
    /// The bytes. Of a piece that was cut all of what it landed in is kept for as long as any of it is: a buffer, a run of
    /// them, or 64 KiB of host memory.
    pub landed: Landed,
    /// The memory that the key named, or that a get was for.
    pub memory: Arc<Memory>,
    /// Where in it they would belong.
    pub offset: u64,
}

impl HandOut {
    /// One, and where what it hands out comes out. If nobody wants that, requests fail as if memory could not be written.
    pub fn new() -> (Self, mpsc::Receiver<Piece>) {
        let (to, from) = mpsc::channel();
        (Self(to), from)
    }
}

impl Place for HandOut {
    fn place(&mut self, jobs: &mut [Job]) {
        for job in jobs {
            let Some(landed) = job.landed.take() else {
                continue;
            };
            let piece = Piece {
                landed,
                memory: Arc::clone(&job.memory),
                offset: job.offset,
            };
            job.placed = self.0.send(piece).is_ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(bytes: &[u8], released: &Arc<AtomicU64>) -> Landed {
        Landed::new(Data::Host(bytes.to_vec()), bytes.len() as u64, released)
    }

    /// A peer may send them one by one.
    #[test]
    fn single_bytes_become_few_pieces() {
        let released = Arc::default();
        let mut pieces = vec![host(&[0], &released)];
        let all: Vec<u8> = (0..200_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        for byte in &all[1..] {
            let last = pieces.last_mut().unwrap();
            if !last.append(&[*byte]) {
                pieces.push(host(&[*byte], &released));
            }
        }
        let got: Vec<u8> = pieces
            .iter()
            .filter_map(Landed::host)
            .flatten()
            .copied()
            .collect();
        assert!(got == all);
        assert!(pieces.len() < 10, "{} pieces", pieces.len());
        drop(pieces);
        assert_eq!(released.load(Ordering::Relaxed), all.len() as u64);
    }

    /// Somebody may be looking at it.
    #[test]
    fn nothing_is_added_to_what_is_shared() {
        let released = Arc::default();
        let mut piece = host(b"abc", &released);
        let first = piece.split(1);
        assert!(!piece.append(b"d"));
        assert_eq!(
            (first.host(), piece.host()),
            (Some(&b"a"[..]), Some(&b"bc"[..]))
        );
        drop(first);
        assert!(piece.append(b"d"));
        assert_eq!(piece.host(), Some(&b"bcd"[..]));
        drop(piece);
        assert_eq!(released.load(Ordering::Relaxed), 4);
    }
}
