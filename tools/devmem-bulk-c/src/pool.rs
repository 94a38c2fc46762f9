// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Memory of programs that do not know dma-bufs: allocated here, or theirs.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;

use devmem::BindRx;
use devmem::BindTx;
use devmem::DmaBuf;
use devmem::HostMemory;
use devmem::uring::Ring;
use devmem_bulk as bulk;
use devmem_bulk::Rights;

use crate::Key;
use crate::Landing;
use crate::array;
use crate::errno;
use crate::give;
use crate::take_back;

/// How long a device may take to be done with what is not to be sent any more.
const PATIENCE: Duration = Duration::from_secs(5);

/// Memory for transfers by a device, and the keys to it.
pub struct Pool {
    pub(crate) registry: bulk::Registry,
    ifindex: u32,
    allocated: Mutex<Vec<Weak<Region>>>,
}

/// A part of what was allocated, or of ordinary memory.
pub struct Part {
    pub(crate) region: Arc<Region>,
    address: usize,
    len: u64,
    key: Mutex<Option<bulk::Key>>,
}

/// What a part is of.
pub(crate) struct Region {
    pub(crate) memory: Arc<bulk::Memory>,
    address: usize,
    len: usize,
    /// Whether it was mapped here.
    is_allocated: bool,
}

impl Part {
    /// Where bytes at an address are in the memory; an offset that is outside of it if the address is.
    pub(crate) fn offset(&self, address: u64) -> u64 {
        address.wrapping_sub(self.region.address as u64)
    }

    fn revoke(&self, pool: &Pool) {
        if let Some(key) = lock(&self.key).take() {
            pool.registry.revoke(key);
        }
    }

    /// Others may send other parts of the same memory all the time.
    fn recall(&self, patience: Duration) -> bool {
        let offset = self.offset(self.address as u64);
        self.region.memory.recall(offset, self.len, patience)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // So that nobody accesses it from here on.
        self.memory.close();
        if self.is_allocated {
            // SAFETY: That is what was mapped, and no part of it is left.
            unsafe { libc::munmap(self.address as *mut c_void, self.len) };
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here leaves things half done.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Maps pages of a memfd, and makes a memory of them: bound to the device if that is possible.
    fn alloc(&self, len: usize) -> io::Result<Region> {
        let memfd = memfd(len)?;
        let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: A new mapping.
        let address = unsafe { libc::mmap(null_mut(), len, rights, flags, memfd.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let bound = match self.ifindex {
            0 => Err(io::ErrorKind::Unsupported.into()),
            ifindex => DmaBuf::udmabuf_of(&memfd, 0, len)
                .and_then(|dmabuf| bulk::Memory::bound(&dmabuf, ifindex)),
        };
        let memory = match bound {
            Ok(memory) => memory,
            Err(_) => {
                let start = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
                // SAFETY: It is there until the region has closed it; who has it in C sees to it what it writes when.
                bulk::Memory::host(unsafe { HostMemory::new(start, len) })
            }
        };
        Ok(Region {
            memory,
            address: address as usize,
            len,
            is_allocated: true,
        })
    }

    /// What was allocated here and has all of these bytes.
    fn allocated(&self, address: usize, len: usize) -> Option<Arc<Region>> {
        let has = |region: &Arc<Region>| {
            address
                .checked_sub(region.address)
                .and_then(|offset| region.len.checked_sub(offset))
                .is_some_and(|left| len <= left)
        };
        lock(&self.allocated)
            .iter()
            .filter_map(Weak::upgrade)
            .find(has)
    }
}

fn memfd(len: usize) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: The name ends with a zero.
    let fd = unsafe { libc::memfd_create(c"devmem".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: It is new, and nobody else's.
    let memfd = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: They touch no memory.
    let failed = unsafe {
        libc::ftruncate(fd, size) < 0 || libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) < 0
    };
    match failed {
        true => Err(io::Error::last_os_error()),
        false => Ok(memfd),
    }
}

/// Makes a pool for a device, by its number, without any memory. Without a device,
/// 0, the CPU copies.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_pool_new(ifindex: u32, out: *mut *mut Pool) -> i32 {
    let made = bulk::Registry::new().map(|registry| Pool {
        registry,
        ifindex,
        allocated: Mutex::default(),
    });
    // SAFETY: As the caller guarantees.
    unsafe { give(made, out) }
}

/// Lets go of a pool, of which there are no parts any more.
///
/// # Safety
///
/// See the head of the header. May be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_pool_free(pool: *mut Pool) {
    // SAFETY: As the caller guarantees.
    unsafe { take_back(pool) }
}

/// Allocates memory, in whole pages, and gives the part that is all of it. It is
/// a dma-buf that is bound to the device, if udmabuf makes one of that size and the
/// device sends from it; if not, the CPU copies. A child of fork() shares its bytes.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_pool_alloc(
    pool: *const Pool,
    len: *mut usize,
    address: *mut *mut c_void,
    out: *mut *mut Part,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let (pool, wanted) = unsafe { (&*pool, *len) };
    let Some(pages) = wanted.max(1).checked_next_multiple_of(page()) else {
        return -libc::ENOMEM;
    };
    let made = pool.alloc(pages).map(|region| {
        let region = Arc::new(region);
        let mut allocated = lock(&pool.allocated);
        allocated.retain(|region| region.strong_count() > 0);
        allocated.push(Arc::downgrade(&region));
        // SAFETY: As the caller guarantees.
        unsafe {
            len.write(pages);
            address.write(region.address as *mut c_void);
        }
        Part {
            address: region.address,
            len: pages as u64,
            region,
            key: Mutex::default(),
        }
    });
    // SAFETY: As the caller guarantees.
    unsafe { give(made, out) }
}

/// Makes a part of bytes of the program's: of what was allocated here, or of
/// ordinary memory, from and to which the CPU copies. They have to be there until
/// dmb_part_free() has returned.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_pool_part(
    pool: *const Pool,
    address: *mut c_void,
    len: usize,
    out: *mut *mut Part,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let pool = unsafe { &*pool };
    let Some(start) = NonNull::new(address.cast()) else {
        return -libc::EINVAL;
    };
    let address = address as usize;
    let region = pool.allocated(address, len).unwrap_or_else(|| {
        // SAFETY: As the caller guarantees: the region closes it before the last part of it is gone.
        let memory = bulk::Memory::host(unsafe { HostMemory::new(start, len) });
        Arc::new(Region {
            memory,
            address,
            len,
            is_allocated: false,
        })
    });
    let part = Part {
        region,
        address,
        len: len as u64,
        key: Mutex::default(),
    };
    // SAFETY: As the caller guarantees.
    unsafe { give(Ok(part), out) }
}

/// The key by which peers read and write a part, and the address at which that
/// begins. There is one from the first time on that it is asked for.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_part_key(
    pool: *const Pool,
    part: *const Part,
    key: *mut Key,
    address: *mut u64,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let (pool, part) = unsafe { (&*pool, &*part) };
    let mut there = lock(&part.key);
    let made = match *there {
        Some(made) => made,
        None => {
            let (memory, offset) = (&part.region.memory, part.offset(part.address as u64));
            let both = Rights::ReadWrite;
            match pool.registry.register(memory, offset, part.len, both, None) {
                Ok(made) => *there.insert(made),
                Err(err) => return errno(&err),
            }
        }
    };
    // SAFETY: As the caller guarantees.
    unsafe {
        key.write(Key { bytes: made.0 });
        address.write(part.address as u64);
    }
    0
}

/// Takes the key of a part back, and lets go of it: nothing is written there by
/// peers any more once this returns. What is allocated goes with its last part. What
/// peers were told is coming may still be sent.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_part_free(pool: *const Pool, part: *mut Part) {
    // SAFETY: As the caller guarantees.
    let (pool, part) = unsafe { (&*pool, Box::from_raw(part)) };
    part.revoke(pool);
}

/// Lets go of a part as dmb_part_free() does, and has nothing of it be sent any more:
/// peers that get some of it, and have not got all, are reset. Waits for the device
/// to be done with it: -ETIMEDOUT if that takes more than 5 s. No put of this end may
/// be about it.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_part_recall(pool: *const Pool, part: *mut Part) -> i32 {
    // SAFETY: As the caller guarantees.
    let (pool, part) = unsafe { (&*pool, Box::from_raw(part)) };
    // Nobody begins to read it from here on.
    part.revoke(pool);
    match part.recall(PATIENCE) {
        true => 0,
        false => -libc::ETIMEDOUT,
    }
}

/// Whether ends of connections can be made here: 0; or why not: -EPERM or -ENOSYS
/// where io_uring is not allowed.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_can_connect() -> i32 {
    match Ring::new(1) {
        Ok(_) => 0,
        Err(err) => errno(&err),
    }
}

/// Whether a device can send from device memory, by its number: 0; or why not:
/// -ENOENT if there is no udmabuf, -EOPNOTSUPP if the device cannot.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_can_send(ifindex: u32) -> i32 {
    let dmabuf = match DmaBuf::udmabuf(page()) {
        Ok(dmabuf) => dmabuf,
        Err(err) => return errno(&err),
    };
    match BindTx::new(ifindex).bind(&dmabuf) {
        Ok(_) => 0,
        Err(err) => err.errno().map_or(-libc::EIO, |errno| -errno),
    }
}

/// How many bytes at most are allocated as a dma-buf at once.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_udmabuf_limit() -> usize {
    let limit = fs::read_to_string("/sys/module/udmabuf/parameters/size_limit_mb");
    let limit = limit.ok().and_then(|text| text.trim().parse().ok());
    limit.unwrap_or(64_usize).saturating_mul(1 << 20)
}

/// Allocates memory and binds it to receive queues of a device, as
/// dmb_landing_new() does with a dma-buf.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_landing_alloc(
    len: usize,
    ifindex: u32,
    queues: *const u32,
    count: usize,
    endpoints: u32,
    out: *mut *mut Landing,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let queues = unsafe { array(queues, count) };
    let len = len.max(1).checked_next_multiple_of(page());
    let made = len
        .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
        .and_then(DmaBuf::udmabuf)
        .and_then(|dmabuf| Landing::bound(&dmabuf, ifindex, queues, endpoints));
    // SAFETY: As the caller guarantees.
    unsafe { give(made, out) }
}

impl Landing {
    /// Binds a dma-buf to these queues.
    pub(crate) fn bound(
        dmabuf: &DmaBuf,
        ifindex: u32,
        queues: &[u32],
        endpoints: u32,
    ) -> io::Result<Self> {
        let request = BindRx::new(ifindex);
        let request = queues.iter().fold(request, |all, &queue| all.queue(queue));
        Ok(Self {
            landing: bulk::Landing::new(request.bind(dmabuf)?, dmabuf)?,
            endpoints: endpoints.max(1),
        })
    }
}

fn page() -> usize {
    // SAFETY: It touches nothing.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}
