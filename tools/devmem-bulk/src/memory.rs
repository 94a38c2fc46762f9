// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Memory: what is transferred, and what it lands in.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use devmem::BindTx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::HostMemory;
use devmem::Region;
use devmem::TxBinding;
use devmem::dmabuf::CpuWrite;
use devmem::dmabuf::Mapping;

/// How bytes of a memory leave this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The NIC reads them.
    Nic,
    /// The CPU copies them into the socket.
    Copied,
}

/// What puts and gets are about, at either end: a dma-buf, or ordinary memory.
pub struct Memory {
    bytes: Bytes,
    size: u64,
    readings: Mutex<Readings>,
}

enum Bytes {
    DmaBuf {
        map: Mapping,
        /// All of it, for the CPU to write.
        region: Mutex<Region>,
        tx: Option<TxBinding>,
    },
    Host(HostMemory),
}

/// A memory that the CPU may write.
pub(crate) enum Writing<'m> {
    DmaBuf(CpuWrite<'m>),
    Host(&'m HostMemory),
}

impl Writing<'_> {
    pub(crate) fn copy_in(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        match self {
            Self::DmaBuf(cpu) => cpu.copy_in(offset, from),
            Self::Host(host) => host.copy_in(offset, from),
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("size", &self.size)
            .field("lane", &self.lane())
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// A memory that is bound to the device through which the peer is reached, if that can send from it. Whatever else
    /// is bound, the CPU copies: see [`lane`](Self::lane).
    ///
    /// Binds in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// Those of [`Memory::new`]; those of [`BindTx::bind`], but for `EOPNOTSUPP`, of a device that cannot do it.
    pub fn bound(dmabuf: &DmaBuf, ifindex: u32) -> io::Result<Arc<Self>> {
        let tx = match BindTx::new(ifindex).bind(dmabuf) {
            Ok(tx) => Some(tx),
            Err(err) if err.errno() == Some(libc::EOPNOTSUPP) => None,
            Err(err) => return Err(err.into()),
        };
        Self::with(dmabuf, tx)
    }

    /// A memory from which the CPU copies what is sent.
    ///
    /// # Errors
    ///
    /// Those of [`DmaBuf::map`] and [`DmaBuf::region`].
    pub fn new(dmabuf: &DmaBuf) -> io::Result<Arc<Self>> {
        Self::with(dmabuf, None)
    }

    /// A memory that is sent from by this binding, if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new).
    pub fn with(dmabuf: &DmaBuf, tx: Option<TxBinding>) -> io::Result<Arc<Self>> {
        let bytes = Bytes::DmaBuf {
            map: dmabuf.map()?,
            region: Mutex::new(dmabuf.region()?),
            tx,
        };
        Ok(Self::of(bytes, dmabuf.size()))
    }

    /// Ordinary memory, from and to which the CPU copies.
    pub fn host(memory: HostMemory) -> Arc<Self> {
        let size = memory.len();
        Self::of(Bytes::Host(memory), size)
    }

    fn of(bytes: Bytes, size: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            size: size as u64,
            readings: Mutex::new(Readings::new()),
        })
    }

    /// Gives ordinary memory back: none of it is accessed any more once this has returned. A connection by which it
    /// was still to be sent fails. A dma-buf stays as it is.
    pub fn close(&self) {
        if let Bytes::Host(memory) = &self.bytes {
            memory.close();
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How its bytes leave this machine.
    pub fn lane(&self) -> Lane {
        match self.tx() {
            Some(_) => Lane::Nic,
            None => Lane::Copied,
        }
    }

    /// Whether bytes of it are on their way to a peer: then what is written to it now may be what is sent.
    ///
    /// A peer that is not trusted may say that it has all of a put before it has, and what it was told is coming is sent
    /// though the key was taken back. So memory that is to hold what such a peer must not know is not used for that
    /// before this says no, which it does for good once nobody can put from it and all keys that named it, expired ones
    /// too, were [taken back](crate::Registry::revoke). Endpoints let go of what was sent as they are
    /// [waited](crate::Endpoint::wait) for, and of all when they are dropped: but for what a peer's kernel does not
    /// acknowledge within 5 s of that, which is lost, so that this says yes for ever.
    pub fn is_being_read(&self) -> bool {
        let mut readings = self.readings();
        let now = readings.mark();
        readings.were_before(now)
    }

    /// Tells those who read it by now from those who come later: [`is_read_since`](Self::is_read_since) does then.
    pub fn mark(&self) -> Mark {
        Mark(self.readings().mark())
    }

    /// Whether bytes are still on their way that were at a [mark](Self::mark), as
    /// [`is_being_read`](Self::is_being_read) tells of any. Others may use other parts of it all the time.
    pub fn is_read_since(&self, mark: Mark) -> bool {
        self.readings().were_before(mark.0)
    }

    fn readings(&self) -> MutexGuard<'_, Readings> {
        // Nothing there is left half done.
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the bytes at `offset` into `to`.
    ///
    /// # Errors
    ///
    /// Those of [`Mapping::begin_read`] and [`copy_out`](devmem::dmabuf::CpuRead::copy_out), or of
    /// [`HostMemory::copy_out`].
    pub fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        match &self.bytes {
            Bytes::DmaBuf { map, .. } => map.begin_read()?.copy_out(offset, to),
            Bytes::Host(host) => host.copy_out(offset, to),
        }
    }

    /// Copies `from` to `offset`.
    ///
    /// # Errors
    ///
    /// Those of [`Region::begin_write`] and [`copy_in`](devmem::dmabuf::CpuWrite::copy_in), or of
    /// [`HostMemory::copy_in`].
    pub fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.write_by(|cpu| cpu.copy_in(offset, from))
    }

    /// Has several parts written, and tells the exporter once.
    pub(crate) fn write_by(
        &self,
        write: impl FnOnce(&mut Writing<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        match &self.bytes {
            Bytes::DmaBuf { region, .. } => {
                // Nothing here leaves things half done but the bytes themselves.
                let mut region = region.lock().unwrap_or_else(PoisonError::into_inner);
                write(&mut Writing::DmaBuf(region.begin_write()?))
            }
            Bytes::Host(host) => write(&mut Writing::Host(host)),
        }
    }

    pub(crate) fn tx(&self) -> Option<&TxBinding> {
        match &self.bytes {
            Bytes::DmaBuf { tx, .. } => tx.as_ref(),
            Bytes::Host(_) => None,
        }
    }
}

/// A moment, to a memory.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// Who reads a memory.
#[derive(Debug)]
struct Readings {
    /// The marks that nobody asks for any more.
    over: u64,
    /// What those have who have begun to read before the next mark, and between each two: the last one is of those who
    /// begin now.
    between: VecDeque<Arc<()>>,
}

impl Readings {
    fn new() -> Self {
        Self {
            over: 0,
            between: [Arc::new(())].into(),
        }
    }

    fn begin(&self) -> Option<Arc<()>> {
        self.between.back().cloned()
    }

    fn mark(&mut self) -> u64 {
        self.between.push_back(Arc::new(()));
        self.tidy();
        self.over + self.between.len() as u64 - 1
    }

    /// Whether somebody still reads who had begun before that mark.
    fn were_before(&mut self, mark: u64) -> bool {
        self.tidy();
        self.over < mark
    }

    /// Nobody comes to a time that is over.
    fn tidy(&mut self) {
        while self.between.len() > 1 && self.between.front().map(Arc::strong_count) == Some(1) {
            self.between.pop_front();
            self.over += 1;
        }
    }
}

/// A memory of which bytes are on their way to a peer.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    memory: Arc<Memory>,
    _begun: Option<Arc<()>>,
}

impl Reading {
    pub(crate) fn new(memory: Arc<Memory>) -> Self {
        let _begun = memory.readings().begin();
        Self { memory, _begun }
    }
}

impl Deref for Reading {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

/// The dma-buf that payload lands in: bound to the queues to which the lanes are steered.
pub struct Landing {
    id: u32,
    /// Until it is not to be landed in any more.
    binding: Mutex<Option<Binding>>,
    map: Mapping,
    size: u64,
}

impl fmt::Debug for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Landing")
            .field("binding", &self.id)
            .finish_non_exhaustive()
    }
}

impl Landing {
    /// The memory of a binding.
    ///
    /// # Errors
    ///
    /// Those of [`DmaBuf::map`].
    pub fn new(binding: Binding, dmabuf: &DmaBuf) -> io::Result<Arc<Self>> {
        Self::with(binding.id(), Some(binding), dmabuf)
    }

    /// The same of a binding that somebody else keeps, of which this is the number.
    ///
    /// # Errors
    ///
    /// As of [`new`](Self::new).
    pub fn of(id: u32, dmabuf: &DmaBuf) -> io::Result<Arc<Self>> {
        Self::with(id, None, dmabuf)
    }

    fn with(id: u32, binding: Option<Binding>, dmabuf: &DmaBuf) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            id,
            binding: Mutex::new(binding),
            map: dmabuf.map()?,
            size: dmabuf.size() as u64,
        }))
    }

    /// The number of the binding, by which frags tell that they are in here.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether it has a binding of its own.
    pub(crate) fn is_bound(&self) -> bool {
        let binding = self.binding.lock();
        binding.unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Has nothing land there any more. What has is still there.
    pub(crate) fn unbind(&self) {
        let binding = self.binding.lock();
        drop(binding.unwrap_or_else(PoisonError::into_inner).take());
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// How many bytes can land in place here, if it is a [target](crate::in_place::Target): four fifths of the memory, so
    /// that there are buffers left for the NIC, and for gaps.
    pub fn whole(&self) -> u64 {
        self.size - self.size / 5
    }

    /// How many bytes the peers may have under way to it. A short segment takes a whole buffer, so it is a quarter of the
    /// memory, for all lanes of all endpoints together.
    pub fn window(&self) -> u64 {
        self.size / 4
    }

    pub(crate) fn map(&self) -> &Mapping {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those who come later do not keep who waits for the others.
    #[test]
    fn those_who_read_at_a_mark_are_told_from_others() {
        let memory = Memory::host(HostMemory::owned(vec![0; 8].into()));
        assert!(!memory.is_being_read());
        let first = Reading::new(Arc::clone(&memory));
        let before = memory.mark();
        let second = Reading::new(Arc::clone(&memory));
        let both = memory.mark();
        let third = Reading::new(Arc::clone(&memory));
        let again = first.clone();
        drop(first);
        assert!(memory.is_read_since(before));
        drop(again);
        assert!(!memory.is_read_since(before));
        assert!(memory.is_read_since(both));
        drop(second);
        assert!(!memory.is_read_since(both));
        assert!(memory.is_being_read());
        drop(third);
        assert!(!memory.is_being_read());
    }
}
