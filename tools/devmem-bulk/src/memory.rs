// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Memory: what is transferred, and what it lands in.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::TcpStream;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::BindTx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::HostMemory;
use devmem::Region;
use devmem::TxBinding;
use devmem::dmabuf::CpuWrite;
use devmem::dmabuf::Mapping;
use devmem::tcp;
use log::warn;

/// How often to look whether a device is done.
const MOMENT: Duration = Duration::from_millis(1);

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
            readings: Mutex::default(),
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
        !self.readings().by.is_empty()
    }

    /// Has these bytes be sent no more: who gets some of them, and has not got all, is reset. Returns when no device
    /// reads them for a connection, but for those that say that they are done before they are. Says whether that is so
    /// within `patience`: if not, connections could not be reset, or a device stands still.
    ///
    /// It may be called from any thread, and waits for none. To be used when the keys that name them were [taken
    /// back](crate::Registry::revoke), and no put of this end is about them: else they may be sent again at once.
    /// [`is_being_read`](Self::is_being_read) says no when the endpoints have looked, too.
    pub fn recall(&self, offset: u64, len: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let sockets = self.readings().of(offset, len);
        for socket in &sockets {
            if let Err(err) = tcp::abort(socket) {
                warn!("a connection that reads memory cannot be reset: {err}");
            }
        }
        are_done(&sockets, deadline)
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

/// Waits until these have nothing to send any more.
fn are_done(sockets: &[Arc<TcpStream>], deadline: Instant) -> bool {
    let is_sending = |socket: &Arc<TcpStream>| tcp::unsent(socket).is_ok_and(|left| left > 0);
    while sockets.iter().any(is_sending) {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(MOMENT);
    }
    true
}

/// Who reads a memory.
#[derive(Debug, Default)]
struct Readings {
    next: u64,
    by: HashMap<u64, Reader>,
}

/// Which bytes of it somebody reads, and by which connection they go.
#[derive(Debug)]
struct Reader {
    offset: u64,
    len: u64,
    socket: Weak<TcpStream>,
}

impl Readings {
    fn begin(&mut self, reader: Reader) -> u64 {
        let id = self.next;
        self.next += 1;
        self.by.insert(id, reader);
        id
    }

    /// The connections by which some of these bytes go.
    fn of(&self, offset: u64, len: u64) -> Vec<Arc<TcpStream>> {
        let end = offset.saturating_add(len);
        let reads = |reader: &&Reader| {
            let its_end = reader.offset.saturating_add(reader.len);
            offset.max(reader.offset) < end.min(its_end)
        };
        let sockets = self.by.values().filter(reads);
        let mut sockets: Vec<_> = sockets
            .filter_map(|reader| reader.socket.upgrade())
            .collect();
        sockets.sort_by_key(Arc::as_ptr);
        sockets.dedup_by_key(|socket| Arc::as_ptr(socket));
        sockets
    }
}

/// A memory of which bytes are on their way to a peer.
#[derive(Clone, Debug)]
pub(crate) struct Reading(Arc<Begun>);

#[derive(Debug)]
struct Begun {
    memory: Arc<Memory>,
    id: u64,
}

impl Reading {
    /// These bytes are to go by a connection.
    pub(crate) fn new(memory: Arc<Memory>, offset: u64, len: u64, by: &Arc<TcpStream>) -> Self {
        let socket = Arc::downgrade(by);
        let id = memory.readings().begin(Reader {
            offset,
            len,
            socket,
        });
        Self(Arc::new(Begun { memory, id }))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.memory.readings().by.remove(&self.id);
    }
}

impl Deref for Reading {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.0.memory
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
    use std::io::Read;
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::net::TcpListener;

    use super::*;

    /// A connection that has more to send than its peer takes.
    fn full() -> (Arc<TcpStream>, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        while (&near).write(&[7; 1 << 16]).is_ok() {}
        (Arc::new(near), far)
    }

    #[test]
    fn who_reads_what_is_recalled_is_reset_and_others_go_on() {
        const LONG: Duration = Duration::from_secs(60);
        let memory = Memory::host(HostMemory::owned(vec![0; 8].into()));
        let ((first, mut gets_first), (second, _far)) = (full(), full());
        let of = |offset, len, by| Reading::new(Arc::clone(&memory), offset, len, by);
        let (reads_first, reads_second) = (of(0, 4, &first), of(4, 4, &second));
        let (again, closed) = (reads_first.clone(), of(0, 8, &full().0));
        assert!(tcp::unsent(&first).unwrap() > 0);
        // Nobody reads none.
        assert!(memory.recall(2, 0, LONG) && memory.recall(8, 1, LONG));
        assert!(first.peer_addr().is_ok());

        assert!(memory.recall(3, 1, LONG));
        assert_eq!(tcp::unsent(&first).unwrap(), 0);
        assert!(first.peer_addr().is_err() && second.peer_addr().is_ok());
        let mut got = Vec::new();
        let err = gets_first.read_to_end(&mut got).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ConnectionReset);

        // Those who were reset do not know it yet.
        drop((reads_first, closed));
        assert!(memory.is_being_read());
        assert!(tcp::unsent(&second).unwrap() > 0);
        drop((again, reads_second));
        assert!(!memory.is_being_read());
    }

    #[test]
    fn what_cannot_be_recalled_is_told() {
        let memory = Memory::host(HostMemory::owned(vec![0; 8].into()));
        let (socket, _far) = full();
        let reading = Reading::new(Arc::clone(&memory), 0, 8, &socket);
        // Nothing was reset: it is the wait that is asked.
        let sockets = memory.readings().of(0, 8);
        assert!(!are_done(&sockets, Instant::now()));
        drop(reading);
        assert!(are_done(&memory.readings().of(0, 8), Instant::now()));
    }
}
