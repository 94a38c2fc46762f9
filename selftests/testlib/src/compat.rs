// SPDX-License-Identifier: GPL-2.0

//! System calls as a program of 32 bits makes them, with the structures of one.
//!
//! Any program may: by the gate for such programs, which takes just 32 bits of each argument. So what
//! the kernel is handed has to lie low (`Low`).

use std::arch::asm;
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::ptr;
use std::ptr::NonNull;

use devmem::Extent;
use devmem::cmsg;
use devmem::token::SO_DEVMEM_DONTNEED;
use devmem::token::TokenRange;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::sys::mman::munmap;

/// Size of `struct compat_cmsghdr`.
const HEADER: usize = 12;
/// Room in a control buffer for one devmem message.
pub const SPACE: usize = HEADER + 24;

/// Numbers of system calls, which are not those of 64 bits.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Number {
    Setsockopt = 366,
    Sendmsg = 370,
    Recvmsg = 372,
}

/// `struct compat_msghdr`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct MsgHdr {
    name: u32,
    namelen: i32,
    iov: u32,
    iovlen: u32,
    control: u32,
    controllen: u32,
    flags: u32,
}

/// `struct compat_iovec`, the offset of which may be an address.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct IoVec {
    base: u32,
    len: u32,
}

/// Memory where 32 bits are enough for an address.
#[derive(Debug)]
struct Low {
    base: NonNull<c_void>,
    len: usize,
}

impl Low {
    /// Memory that holds these values.
    fn new<T: Copy>(values: &[T]) -> io::Result<Self> {
        let len = NonZeroUsize::new(size_of_val(values).max(1)).expect("not 0");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT;
        // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
        let base = unsafe { mmap_anonymous(None, len, prot, flags) }?;
        // SAFETY: The mapping is long enough for the values, aligned as a page is, and nobody else's.
        unsafe {
            ptr::copy_nonoverlapping(values.as_ptr(), base.cast().as_ptr(), values.len());
        }
        Ok(Self {
            base,
            len: len.get(),
        })
    }

    fn address(&self) -> u32 {
        low(self.base.as_ptr())
    }
}

impl Drop for Low {
    fn drop(&mut self) {
        // SAFETY: The mapping is this struct's own, and no reference into it is ever made.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}

/// An address of memory that lies low.
fn low<T>(address: *mut T) -> u32 {
    u32::try_from(address.expose_provenance()).expect("memory that lies low")
}

/// Makes a system call.
///
/// # Safety
///
/// The kernel may do with the memory that the arguments name what the call is for.
unsafe fn call(number: Number, args: [u32; 5]) -> io::Result<usize> {
    let result: u64;
    // SAFETY: By this function's requirements. The compiler keeps rbx to itself, which comes back as
    // it was.
    unsafe {
        asm!(
            "xchg rbx, {first:r}",
            "int 0x80",
            "xchg rbx, {first:r}",
            first = inout(reg) u64::from(args[0]) => _,
            inlateout("rax") u64::from(number as u32) => result,
            in("rcx") u64::from(args[1]),
            in("rdx") u64::from(args[2]),
            in("rsi") u64::from(args[3]),
            in("rdi") u64::from(args[4]),
            lateout("r8") _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    match result as i32 {
        err @ ..0 => Err(io::Error::from_raw_os_error(-err)),
        value => Ok(value as usize),
    }
}

/// Calls `recvmsg()` with buffers that lie low, as `msg` has them; what the kernel answers goes there.
///
/// # Safety
///
/// The buffers are writable, or not mapped at all, and nothing refers to them.
pub unsafe fn recvmsg(socket: &impl AsFd, msg: &mut libc::msghdr, flags: i32) -> io::Result<usize> {
    let iovecs: Vec<_> = (0..msg.msg_iovlen)
        .map(|i| {
            // SAFETY: So many iovecs there are.
            let iovec = unsafe { *msg.msg_iov.add(i) };
            IoVec {
                base: low(iovec.iov_base),
                len: iovec.iov_len as u32,
            }
        })
        .collect();
    let iovecs = Low::new(&iovecs)?;
    let header = Low::new(&[MsgHdr {
        iov: iovecs.address(),
        iovlen: msg.msg_iovlen as u32,
        control: low(msg.msg_control),
        controllen: msg.msg_controllen as u32,
        ..Default::default()
    }])?;
    let fd = socket.as_fd().as_raw_fd() as u32;
    let args = [fd, header.address(), flags as u32, 0, 0];
    // SAFETY: The kernel writes the header and the buffers.
    let result = unsafe { call(Number::Recvmsg, args) };
    // SAFETY: There is a header, which the kernel may have written.
    let header: MsgHdr = unsafe { header.base.cast().read_volatile() };
    msg.msg_controllen = header.controllen as usize;
    msg.msg_flags = header.flags as i32;
    result
}

/// Sends these parts of the dma-buf of a transmit binding, by a control message of this level and type.
pub fn send(
    socket: &impl AsFd,
    message: (i32, i32),
    dmabuf_id: u32,
    extents: &[Extent],
) -> io::Result<usize> {
    let iovecs: Vec<_> = extents
        .iter()
        .map(|extent| IoVec {
            base: u32::try_from(extent.offset).expect("an offset of 32 bits"),
            len: u32::try_from(extent.len).expect("a length of 32 bits"),
        })
        .collect();
    let iovecs = Low::new(&iovecs)?;
    let (level, kind) = message;
    let len = HEADER + size_of_val(&dmabuf_id);
    let control = Low::new(&[len as u32, level as u32, kind as u32, dmabuf_id])?;
    let header = Low::new(&[MsgHdr {
        iov: iovecs.address(),
        iovlen: extents.len() as u32,
        control: control.address(),
        controllen: len as u32,
        ..Default::default()
    }])?;
    let fd = socket.as_fd().as_raw_fd() as u32;
    let flags = libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL;
    let args = [fd, header.address(), flags as u32, 0, 0];
    // SAFETY: The kernel reads the header and what that names.
    unsafe { call(Number::Sendmsg, args) }
}

/// Gives tokens back; tells how many were.
pub fn dontneed(socket: &impl AsFd, ranges: &[TokenRange]) -> io::Result<usize> {
    let value = Low::new(ranges)?;
    let args = [
        socket.as_fd().as_raw_fd() as u32,
        libc::SOL_SOCKET as u32,
        SO_DEVMEM_DONTNEED as u32,
        value.address(),
        size_of_val(ranges) as u32,
    ];
    // SAFETY: The kernel reads the ranges.
    unsafe { call(Number::Setsockopt, args) }
}

/// The control messages of a program of 32 bits as one of 64 bits has them, up to the first that is not
/// all there.
pub fn widen(mut control: &[u8]) -> Vec<u8> {
    let mut wide = Vec::new();
    while let Some((header, _)) = control.split_first_chunk::<HEADER>() {
        let word = |at: usize| i32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let len = word(0) as usize;
        let Some(data) = control.get(HEADER..len) else {
            break;
        };
        wide.extend(cmsg::encode(word(4), word(8), data));
        control = control.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    wide
}
