// SPDX-License-Identifier: GPL-2.0

//! io_uring's own zero-copy receive: a NIC queue that writes to this process's memory.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::ptr;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use devmem::DmaBuf;
use devmem_testlib::wait;
use io_uring::IoUring;
use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::Fd;
use io_uring::types::SubmitArgs;
use io_uring::types::Timespec;
use io_uring::types::io_uring_region_desc;
use io_uring::types::io_uring_zcrx_area_reg;
use io_uring::types::io_uring_zcrx_ifq_reg;
use io_uring::types::io_uring_zcrx_rqe;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::sys::mman::munmap;

const PAGE: usize = 4096;
const MEM_REGION_TYPE_USER: u32 = 1;
/// `IORING_ZCRX_AREA_DMABUF`
const AREA_DMABUF: u32 = 1;
const AREA_SHIFT: u32 = 48;
const AREA_MASK: u64 = !((1 << AREA_SHIFT) - 1);
const REFILLS: u32 = 512;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Anonymous memory.
struct Pages(NonNull<c_void>, usize);

impl Pages {
    fn new(len: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
        let start = unsafe {
            mmap_anonymous(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE,
            )
        }?;
        Ok(Self(start, len))
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= self.1, "outside of the memory");
        // SAFETY: The offset lies in the mapping.
        unsafe { self.0.as_ptr().byte_add(offset) }.cast()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: The mapping is this struct's own. The ring, which the kernel uses it for, is gone.
        let _ = unsafe { munmap(self.0, self.1) };
    }
}

/// A queue whose packets come into some memory.
pub struct Queue {
    // Dropped first: the kernel uses the rest until then.
    ring: IoUring<squeue::Entry, cqueue::Entry32>,
    refill: Pages,
    reg: io_uring_zcrx_ifq_reg,
}

impl Queue {
    /// Takes a queue of a device of the calling thread's namespace, for packets to come into a dma-buf.
    pub fn into_dmabuf(ifindex: u32, queue: u32, memory: &DmaBuf) -> io::Result<Self> {
        let mut area = io_uring_zcrx_area_reg {
            len: memory.size() as u64,
            flags: AREA_DMABUF,
            dmabuf_fd: memory.as_fd().as_raw_fd() as u32,
            ..Default::default()
        };
        Self::take(ifindex, queue, &mut area)
    }

    fn take(ifindex: u32, queue: u32, area: &mut io_uring_zcrx_area_reg) -> io::Result<Self> {
        let ring = IoUring::<squeue::Entry, cqueue::Entry32>::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .build(64)?;
        let refill_len = REFILLS as usize * size_of::<io_uring_zcrx_rqe>() + PAGE;
        let refill = Pages::new(refill_len)?;

        let mut region = io_uring_region_desc {
            size: refill_len as u64,
            user_addr: refill.0.as_ptr() as u64,
            flags: MEM_REGION_TYPE_USER,
            ..Default::default()
        };
        let reg = UnsafeCell::new(io_uring_zcrx_ifq_reg {
            if_idx: ifindex,
            if_rxq: queue,
            rq_entries: REFILLS,
            area_ptr: &raw mut *area as u64,
            region_ptr: &raw mut region as u64,
            ..Default::default()
        });
        // SAFETY: Nobody else refers to it. The kernel writes it during the call, behind the back of the
        // reference, so it is read again afterwards.
        let reg = unsafe {
            ring.submitter().register_ifq(&*reg.get())?;
            ptr::read_volatile(reg.get())
        };
        Ok(Self { ring, refill, reg })
    }
}

/// A queue whose packets come into an area of this process.
pub struct Zcrx {
    // Dropped first: the kernel uses the rest until then.
    ring: IoUring<squeue::Entry, cqueue::Entry32>,
    area: Pages,
    refill: Pages,
    area_token: u64,
    rqes: usize,
    head_at: usize,
    tail_at: usize,
    tail: u32,
    // What there was no room for.
    back: VecDeque<io_uring_zcrx_rqe>,
}

impl Zcrx {
    /// Takes a queue of a device of the calling thread's namespace. The thread has to keep to itself.
    pub fn new(ifindex: u32, queue: u32, area_len: usize) -> io::Result<Self> {
        let area = Pages::new(area_len)?;
        let mut area_reg = io_uring_zcrx_area_reg {
            addr: area.0.as_ptr() as u64,
            len: area_len as u64,
            ..Default::default()
        };
        let Queue { ring, refill, reg } = Queue::take(ifindex, queue, &mut area_reg)?;
        Ok(Self {
            ring,
            area,
            refill,
            area_token: area_reg.rq_area_token,
            rqes: reg.offsets.rqes as usize,
            head_at: reg.offsets.head as usize,
            tail_at: reg.offsets.tail as usize,
            tail: 0,
            back: VecDeque::new(),
        })
    }

    /// Receives until the end of the stream; `each` gets every piece.
    pub fn receive(
        &mut self,
        socket: &impl AsRawFd,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let entry = opcode::RecvZc::new(Fd(socket.as_raw_fd()), 0).build();
        let mut armed = false;
        loop {
            if !armed {
                // SAFETY: The request refers to no memory but the area.
                unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
                armed = true;
            }
            let timespec = Timespec::from(wait::patience(TIMEOUT));
            let args = SubmitArgs::new().timespec(&timespec);
            self.ring.submitter().submit_with_args(1, &args)?;
            let entries: Vec<_> = self.ring.completion().collect();
            for entry in entries {
                let len = match usize::try_from(entry.result()) {
                    Ok(0) if !cqueue::more(entry.flags()) => return Ok(()),
                    Ok(len) => len,
                    // More completions than the ring holds: again.
                    Err(_) if entry.result() == -libc::ENOSPC => 0,
                    Err(_) => return Err(io::Error::from_raw_os_error(-entry.result())),
                };
                armed = cqueue::more(entry.flags());
                if len > 0 {
                    let offset = entry.big_cqe()[0];
                    let at = (offset & !AREA_MASK) as usize;
                    assert!(at + len <= self.area.1, "outside of the area");
                    // SAFETY: The kernel has handed these bytes over, and takes them back by `give()`.
                    each(unsafe { slice::from_raw_parts(self.area.at(at), len) });
                    self.give(offset, len);
                }
            }
        }
    }

    /// Gives a buffer back, now or when the kernel has taken others.
    ///
    /// It takes them when it needs some: with more buffers than entries they may be too many.
    fn give(&mut self, offset: u64, len: usize) {
        self.back.push_back(io_uring_zcrx_rqe {
            off: (offset & !AREA_MASK) | self.area_token,
            len: len as u32,
            ..Default::default()
        });
        while self.has_room() {
            let Some(entry) = self.back.pop_front() else {
                break;
            };
            self.push(entry);
        }
    }

    fn has_room(&self) -> bool {
        // SAFETY: It lies in the refill ring, and only the kernel writes it.
        let head = unsafe { AtomicU32::from_ptr(self.refill.at(self.head_at)) };
        self.tail.wrapping_sub(head.load(Ordering::Acquire)) < REFILLS
    }

    fn push(&mut self, entry: io_uring_zcrx_rqe) {
        let index = (self.tail % REFILLS) as usize;
        let at = self.rqes + index * size_of::<io_uring_zcrx_rqe>();
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: Both lie in the refill ring; the kernel reads the entry after the tail has moved on.
        unsafe {
            self.refill.at::<io_uring_zcrx_rqe>(at).write(entry);
            AtomicU32::from_ptr(self.refill.at(self.tail_at)).store(self.tail, Ordering::Release);
        }
    }
}
