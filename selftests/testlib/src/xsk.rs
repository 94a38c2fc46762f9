// SPDX-License-Identifier: GPL-2.0

//! AF_XDP sockets without copies: what a driver's own way of sending and receiving by them is tested with.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use libc::c_int;
use libc::xdp_desc;

use crate::sockopt;

/// Of each ring, and of the memory: one for each entry.
const FRAMES: u32 = 64;
const FRAME_SIZE: u32 = 4096;

/// Memory that is shared with the kernel.
#[derive(Debug)]
struct Shared {
    address: *mut u8,
    len: usize,
}

impl Shared {
    fn new(len: usize, flags: c_int, fd: c_int, offset: libc::off_t) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: A new mapping, at a place of the kernel's choice.
        let address = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd, offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            address: address.cast(),
            len,
        })
    }

    /// What is there, as a `T`.
    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.len, "past the end");
        // SAFETY: That is within the mapping, as was just checked.
        unsafe { self.address.add(offset).cast() }
    }
}

// SAFETY: The mapping belongs to the process, and to no thread of it.
unsafe impl Send for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: The mapping is this one's, and nobody refers to it any more.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

/// A ring, of addresses or of descriptors.
#[derive(Debug)]
struct Ring {
    shared: Shared,
    offsets: libc::xdp_ring_offset,
}

impl Ring {
    fn new<T>(
        fd: &OwnedFd,
        option: c_int,
        offsets: libc::xdp_ring_offset,
        place: u64,
    ) -> io::Result<Self> {
        sockopt::set(fd, libc::SOL_XDP, option, FRAMES)?;
        let len = offsets.desc as usize + FRAMES as usize * size_of::<T>();
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        Ok(Self {
            shared: Shared::new(len, flags, fd.as_raw_fd(), place as libc::off_t)?,
            offsets,
        })
    }

    fn counter(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: The kernel has a counter there, which both sides use atomically only.
        unsafe { AtomicU32::from_ptr(self.shared.at(offset as usize)) }
    }

    fn entry<T>(&self, at: u32) -> *mut T {
        let index = (at % FRAMES) as usize;
        self.shared
            .at(self.offsets.desc as usize + index * size_of::<T>())
    }

    /// Gives an entry to the kernel, which always has room: there are no more frames than entries.
    fn put<T>(&self, value: T) {
        let producer = self.counter(self.offsets.producer);
        let at = producer.load(Ordering::Relaxed);
        // SAFETY: The kernel does not read the entry before the counter says that it is there.
        unsafe { self.entry::<T>(at).write(value) };
        producer.store(at.wrapping_add(1), Ordering::Release);
    }

    /// Takes the next entry from the kernel, if there is one.
    fn take<T: Copy>(&self) -> Option<T> {
        let consumer = self.counter(self.offsets.consumer);
        let at = consumer.load(Ordering::Relaxed);
        if self.counter(self.offsets.producer).load(Ordering::Acquire) == at {
            return None;
        }
        // SAFETY: The kernel has written the entry, and leaves it alone until it is taken.
        let value = unsafe { self.entry::<T>(at).read() };
        consumer.store(at.wrapping_add(1), Ordering::Release);
        Some(value)
    }
}

fn ring_offsets(fd: &OwnedFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: All-zero is valid: it has numbers only.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { mem::zeroed() };
    let mut len = size_of_val(&offsets) as libc::socklen_t;
    // SAFETY: `offsets` is writable, for as long as is said.
    let ret = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            (&raw mut offsets).cast(),
            &raw mut len,
        )
    };
    match ret {
        0 => Ok(offsets),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A socket of a queue, without copies.
///
/// Dropped in this order: the kernel is done with the memory first.
#[derive(Debug)]
pub struct Xsk {
    fd: OwnedFd,
    fill: Ring,
    completion: Ring,
    rx: Ring,
    tx: Ring,
    memory: Shared,
}

impl Xsk {
    /// A socket of a queue of a device of the calling thread's namespace.
    pub fn new(ifindex: u32, queue: u32) -> io::Result<Self> {
        let len = (FRAMES * FRAME_SIZE) as usize;
        let memory = Shared::new(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        // SAFETY: This makes a socket.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: The kernel has just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: All-zero is valid: it has numbers only.
        let mut umem: libc::xdp_umem_reg = unsafe { mem::zeroed() };
        umem.addr = memory.address as u64;
        umem.len = len as u64;
        umem.chunk_size = FRAME_SIZE;
        sockopt::set(&fd, libc::SOL_XDP, libc::XDP_UMEM_REG, umem)?;

        let at = ring_offsets(&fd)?;
        let rx_place = libc::XDP_PGOFF_RX_RING as u64;
        let tx_place = libc::XDP_PGOFF_TX_RING as u64;
        let fill_place = libc::XDP_UMEM_PGOFF_FILL_RING;
        let completion_place = libc::XDP_UMEM_PGOFF_COMPLETION_RING;
        let xsk = Self {
            fill: Ring::new::<u64>(&fd, libc::XDP_UMEM_FILL_RING, at.fr, fill_place)?,
            completion: Ring::new::<u64>(
                &fd,
                libc::XDP_UMEM_COMPLETION_RING,
                at.cr,
                completion_place,
            )?,
            rx: Ring::new::<xdp_desc>(&fd, libc::XDP_RX_RING, at.rx, rx_place)?,
            tx: Ring::new::<xdp_desc>(&fd, libc::XDP_TX_RING, at.tx, tx_place)?,
            memory,
            fd,
        };
        for frame in 0..FRAMES {
            xsk.fill.put(u64::from(frame * FRAME_SIZE));
        }

        // SAFETY: All-zero is valid: it has numbers only.
        let mut address: libc::sockaddr_xdp = unsafe { mem::zeroed() };
        address.sxdp_family = libc::AF_XDP as u16;
        address.sxdp_flags = libc::XDP_ZEROCOPY;
        address.sxdp_ifindex = ifindex;
        address.sxdp_queue_id = queue;
        // SAFETY: `address` is readable, for as long as is said.
        let ret = unsafe {
            libc::bind(
                xsk.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        match ret {
            0 => Ok(xsk),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// A frame that was received, if there is one, and where it lies.
    pub fn receive(&self) -> Option<(Vec<u8>, u64)> {
        let got: xdp_desc = self.rx.take()?;
        let mut frame = vec![0; got.len as usize];
        let end = got.addr as usize + frame.len();
        assert!(end <= self.memory.len, "a frame past the end of the memory");
        // SAFETY: That is within the memory, and the kernel does not write there before it is given back.
        unsafe {
            ptr::copy_nonoverlapping(
                self.memory.address.add(got.addr as usize),
                frame.as_mut_ptr(),
                frame.len(),
            );
        }
        Some((frame, got.addr))
    }

    /// Sends what lies there.
    pub fn send(&self, addr: u64, len: usize) -> io::Result<()> {
        self.tx.put(xdp_desc {
            addr,
            len: len as u32,
            options: 0,
        });
        // SAFETY: There is no data, and no address.
        let ret = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                ptr::null(),
                0,
            )
        };
        match ret {
            0.. => Ok(()),
            _ => match io::Error::last_os_error() {
                // The driver is at it.
                err if err.raw_os_error() == Some(libc::EBUSY) => Ok(()),
                err if err.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
                err => Err(err),
            },
        }
    }

    /// Has what was received there received into again.
    pub fn give_back(&self, addr: u64) {
        self.fill.put(addr - addr % u64::from(FRAME_SIZE));
    }

    /// Has the next frame that was sent received into again. Whether there was one.
    pub fn reuse(&self) -> bool {
        let sent = self.completion.take::<u64>();
        if let Some(addr) = sent {
            self.give_back(addr);
        }
        sent.is_some()
    }
}

impl AsFd for Xsk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
