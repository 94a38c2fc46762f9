// SPDX-License-Identifier: GPL-2.0

//! `recvmsg()` with any buffers and flags, and everything that it answers.
//!
//! A [`Probe`] makes the calls of one socket, tells of each what came of it by [`observe`], and holds the
//! tokens until it is told to give them back.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::mem;
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::time::Duration;

use devmem::cmsg;
use devmem::cmsg::DevmemCmsg;
use devmem::cmsg::DevmemCmsgs;
use devmem::cmsg::DmabufCmsg;
use devmem::dmabuf::Mapping;
use devmem::recv::MSG_SOCK_DEVMEM;
use devmem::token::MAX_RANGES;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use nix::errno::Errno;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::sys::mman::mprotect;
use nix::sys::mman::munmap;

use crate::compat;
use crate::report::observe;
use crate::traffic;
use crate::wait;

const PAGE: usize = 4096;
/// Room for so many pieces, unless a call is to have less.
const ROOM: usize = 64;
/// How long bytes may take from one socket to the other.
const ARRIVAL: Duration = Duration::from_secs(10);

/// The errno of a call that has to fail; fails the test if it does not.
#[track_caller]
pub fn errno<T: fmt::Debug>(result: io::Result<T>) -> Errno {
    match result {
        Err(err) => Errno::from_raw(err.raw_os_error().unwrap_or(0)),
        Ok(value) => panic!("an error was expected, not {value:?}"),
    }
}

/// `ETOOSMALL`, which has no number in user space: no room for a control message.
pub const ETOOSMALL: i32 = 525;

/// Memory to be handed to the kernel, of which the rear part may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    good: usize,
    len: usize,
}

impl Area {
    /// `len` bytes. Writing past them faults.
    pub const fn good(len: usize) -> Self {
        Self { good: len, len }
    }

    /// Claims `len` bytes, but only the first `good` of them are there.
    pub const fn faulty(good: usize, len: usize) -> Self {
        assert!(good <= len);
        Self { good, len }
    }
}

/// An [`Area`] that has its memory.
struct Fenced {
    base: NonNull<c_void>,
    mapped: usize,
    front: usize,
    area: Area,
}

impl Fenced {
    /// Memory anywhere, or where `place` has it.
    fn new(area: Area, place: MapFlags) -> io::Result<Self> {
        let front = area.good.next_multiple_of(PAGE);
        let fence = (area.len - area.good).next_multiple_of(PAGE) + PAGE;
        let mapped = front + fence;
        let len = NonZeroUsize::new(mapped).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
        let base = unsafe { mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE | place) }?;
        let fenced = Self {
            base,
            mapped,
            front,
            area,
        };
        // SAFETY: The rear of the mapping made above, which nothing refers to.
        unsafe { mprotect(base.byte_add(front), fence, ProtFlags::PROT_NONE) }?;
        Ok(fenced)
    }

    fn start(&self) -> *mut u8 {
        let start = self.front - self.area.good;
        // SAFETY: The front is part of the mapping.
        unsafe { self.base.byte_add(start) }.cast().as_ptr()
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: The good bytes are mapped and initialised, and only the kernel writes them, during
        // calls.
        unsafe { std::slice::from_raw_parts(self.start(), self.area.good) }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: The mapping is this struct's own, and no reference into it is left.
        let _ = unsafe { munmap(self.base, self.mapped) };
    }
}

/// A call of `recvmsg()`.
#[derive(Clone, Debug)]
pub struct Call {
    flags: i32,
    data: Vec<Area>,
    control: Area,
    compat: bool,
}

impl Call {
    /// With `MSG_SOCK_DEVMEM`, for up to `len` bytes and 64 pieces.
    pub fn new(len: usize) -> Self {
        Self {
            flags: MSG_SOCK_DEVMEM,
            data: vec![Area::good(len)],
            control: Area::good(ROOM * cmsg::SPACE),
            compat: false,
        }
    }

    /// An ordinary call, without `MSG_SOCK_DEVMEM`.
    pub fn ordinary(len: usize) -> Self {
        Self {
            flags: 0,
            ..Self::new(len)
        }
    }

    /// With these flags, too.
    pub fn flags(mut self, flags: i32) -> Self {
        self.flags |= flags;
        self
    }

    /// As a program of 32 bits makes it.
    pub fn compat(mut self) -> Self {
        self.compat = true;
        self
    }

    /// With these data buffers.
    pub fn data(mut self, areas: &[Area]) -> Self {
        self.data = areas.to_vec();
        self
    }

    /// With this control buffer.
    pub fn control(mut self, area: Area) -> Self {
        self.control = area;
        self
    }

    /// With a control buffer for so many pieces.
    pub fn room(self, pieces: usize) -> Self {
        self.control(Area::good(pieces * cmsg::SPACE))
    }

    fn peeks(&self) -> bool {
        self.flags & libc::MSG_PEEK != 0
    }

    fn make(&self, socket: BorrowedFd<'_>) -> io::Result<Got> {
        let place = match self.compat {
            true => MapFlags::MAP_32BIT,
            false => MapFlags::empty(),
        };
        let data: Vec<_> = self
            .data
            .iter()
            .map(|&area| Fenced::new(area, place))
            .collect::<io::Result<_>>()?;
        let control = Fenced::new(self.control, place)?;
        let mut iovecs: Vec<_> = data
            .iter()
            .map(|fenced| libc::iovec {
                iov_base: fenced.start().cast(),
                iov_len: fenced.area.len,
            })
            .collect();
        // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
        let mut msg: libc::msghdr = unsafe { mem::zeroed() };
        msg.msg_iov = iovecs.as_mut_ptr();
        msg.msg_iovlen = iovecs.len();
        msg.msg_control = control.start().cast();
        msg.msg_controllen = control.area.len;

        let result = loop {
            // SAFETY: `msg` points to buffers that are writable, or known to the kernel as not mapped,
            // and nothing else refers to them during the call.
            match unsafe { self.recvmsg(socket, &mut msg) } {
                Err(libc::EINTR) => (),
                result => break result,
            }
        };
        let (written, flags) = match result {
            Ok(_) => (msg.msg_controllen.min(control.area.good), msg.msg_flags),
            Err(_) => (0, 0),
        };
        let told = match (&control.bytes()[..written], self.compat) {
            (told, true) => &compat::widen(told),
            (told, false) => told,
        };
        Ok(Got {
            result,
            flags,
            pieces: DevmemCmsgs::new(told).collect(),
            others: others(told),
            data: data.iter().flat_map(Fenced::bytes).copied().collect(),
        })
    }

    /// # Safety
    ///
    /// The buffers of `msg` are writable, or not mapped at all, and nothing refers to them.
    unsafe fn recvmsg(&self, socket: BorrowedFd<'_>, msg: &mut libc::msghdr) -> Result<usize, i32> {
        if self.compat {
            // SAFETY: By this function's requirements.
            return unsafe { compat::recvmsg(&socket, msg, self.flags) }
                .map_err(|err| err.raw_os_error().unwrap_or(0));
        }
        // SAFETY: By this function's requirements.
        let ret = unsafe { libc::recvmsg(socket.as_raw_fd(), msg, self.flags) };
        usize::try_from(ret).map_err(|_| Errno::last_raw())
    }
}

/// A control message that is not of device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its level.
    pub level: i32,
    /// Its type.
    pub kind: i32,
    /// What it says.
    pub data: Vec<u8>,
}

fn others(mut control: &[u8]) -> Vec<Other> {
    const HEADER: usize = 16;
    let mut others = Vec::new();
    while let Some((header, _)) = control.split_at_checked(HEADER) {
        let word = |at: usize| i32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let len = word(0) as usize;
        let (level, kind) = (word(8), word(12));
        let Some(data) = control.get(HEADER..len) else {
            break;
        };
        let devmem = [cmsg::SCM_DEVMEM_LINEAR, cmsg::SCM_DEVMEM_DMABUF];
        if level != libc::SOL_SOCKET || !devmem.contains(&kind) {
            others.push(Other {
                level,
                kind,
                data: data.to_vec(),
            });
        }
        control = control.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    others
}

/// What a call answered.
#[derive(Clone, Debug)]
pub struct Got {
    /// Bytes, or an errno.
    pub result: Result<usize, i32>,
    /// `msg_flags`.
    pub flags: i32,
    /// What it told about device memory.
    pub pieces: Vec<DevmemCmsg>,
    /// Other control messages.
    pub others: Vec<Other>,
    /// What is in the data buffers now, one after the other.
    pub data: Vec<u8>,
}

impl Got {
    /// The frags among the pieces.
    pub fn frags(&self) -> impl Iterator<Item = &DmabufCmsg> {
        self.pieces.iter().filter_map(|piece| match piece {
            DevmemCmsg::Dmabuf(frag) => Some(frag),
            DevmemCmsg::Linear(_) => None,
        })
    }

    /// Sizes of the pieces.
    pub fn sizes(&self) -> Vec<u32> {
        self.pieces
            .iter()
            .map(|piece| match piece {
                DevmemCmsg::Dmabuf(frag) => frag.frag_size,
                DevmemCmsg::Linear(size) => *size,
            })
            .collect()
    }

    /// The number of bytes; fails the test if the call failed.
    #[track_caller]
    pub fn len(&self) -> usize {
        match self.result {
            Ok(len) => len,
            Err(errno) => panic!("recvmsg: {:?} ({errno})", Errno::from_raw(errno)),
        }
    }

    /// Whether it is the end of the stream.
    #[track_caller]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that the call failed, with this errno, and wrote nothing.
    #[track_caller]
    pub fn assert_fails(&self, errno: i32) {
        assert_eq!(self.result, Err(errno), "{self:?}");
    }

    /// Checks that there are just these frags, by their sizes, and nothing in host memory.
    #[track_caller]
    pub fn assert_frags(&self, sizes: &[u32]) {
        assert_eq!(self.len(), sizes.iter().sum::<u32>() as usize, "{self:?}");
        assert_eq!(self.sizes(), sizes);
        assert_eq!(self.frags().count(), sizes.len(), "frags: {self:?}");
        assert!(self.data.iter().all(|&byte| byte == 0), "bytes were copied");
    }

    /// Checks that these are ordinary bytes of the stream, from a position on, and no device memory.
    #[track_caller]
    pub fn assert_plain(&self, position: u64, len: usize) {
        assert_eq!(self.result, Ok(len), "{self:?}");
        assert_eq!(self.pieces, [], "device memory");
        traffic::compare(position, &self.data[..len]);
    }
}

/// Calls `recvmsg()` of a socket, and keeps the tokens.
#[derive(Debug)]
pub struct Probe<'b> {
    socket: BorrowedFd<'b>,
    bindings: Vec<(u32, &'b Mapping)>,
    held: Vec<u32>,
    tokens: BTreeMap<u32, usize>,
    buffers: BTreeMap<(u32, u64), usize>,
    quiet: bool,
    /// Position in the stream.
    pub position: u64,
}

impl<'b> Probe<'b> {
    /// Receives from a socket. Its flow may come in the memory of these bindings.
    pub fn new(socket: &'b impl AsFd, bindings: &[(u32, &'b Mapping)]) -> Self {
        Self {
            socket: socket.as_fd(),
            bindings: bindings.to_vec(),
            held: Vec::new(),
            tokens: BTreeMap::new(),
            buffers: BTreeMap::new(),
            quiet: false,
            position: 0,
        }
    }

    /// Tells nothing of its calls, for streams that the sender cuts up as it likes.
    pub fn quiet(self) -> Self {
        Self {
            quiet: true,
            ..self
        }
    }

    /// The tokens that it holds.
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// Takes the tokens out of its hands.
    pub fn take_held(&mut self) -> Vec<u32> {
        mem::take(&mut self.held)
    }

    /// Makes a call, and takes the tokens that it gives.
    #[track_caller]
    pub fn call(&mut self, call: &Call) -> Got {
        let got = call.make(self.socket).expect("memory for the call");
        for frag in got.frags() {
            assert_eq!(frag.flags, 0, "reserved: {frag:?}");
            assert!(
                !self.held.contains(&frag.frag_token),
                "the token is held already: {frag:?}"
            );
            assert!(
                self.bindings.iter().any(|(id, _)| *id == frag.dmabuf_id),
                "an unknown binding: {frag:?}"
            );
        }
        self.held.extend(got.frags().map(|frag| frag.frag_token));
        if !self.quiet {
            self.tell(call, &got);
        }
        got
    }

    /// Makes a call, which has to bring the next bytes of the stream, and compares them. A call that
    /// peeks does not move on.
    #[track_caller]
    pub fn receive(&mut self, call: &Call) -> Got {
        let got = self.call(call);
        let len = got.len();
        self.compare(self.position, &got);
        if !call.peeks() {
            self.position += len as u64;
        }
        got
    }

    /// Fails the test where a call did not bring the stream from a position on.
    #[track_caller]
    pub fn compare(&self, mut position: u64, got: &Got) {
        let len = got.len();
        let mut linear = got.data.as_slice();
        if got.pieces.is_empty() {
            traffic::compare(position, &linear[..len]);
            return;
        }
        let start = position;
        for piece in &got.pieces {
            let bytes = match piece {
                DevmemCmsg::Linear(size) => {
                    let (bytes, rest) = linear.split_at(*size as usize);
                    linear = rest;
                    bytes.to_vec()
                }
                DevmemCmsg::Dmabuf(frag) => self.bytes_of(frag),
            };
            traffic::compare(position, &bytes);
            position += bytes.len() as u64;
        }
        assert_eq!(position - start, len as u64, "the pieces of one call");
    }

    /// What lies where a frag is said to be.
    #[track_caller]
    pub fn bytes_of(&self, frag: &DmabufCmsg) -> Vec<u8> {
        let (_, mapping) = self
            .bindings
            .iter()
            .find(|(id, _)| *id == frag.dmabuf_id)
            .expect("a known binding");
        let mut bytes = vec![0; frag.frag_size as usize];
        let cpu = mapping.begin_read().expect("DMA_BUF_IOCTL_SYNC");
        cpu.copy_out(frag.frag_offset, &mut bytes)
            .expect("a place in the dma-buf");
        bytes
    }

    /// Gives all tokens back; each has to be known to the socket.
    #[track_caller]
    pub fn give_back(&mut self) {
        let held = self.take_held();
        let ranges: Vec<_> = held
            .iter()
            .map(|&start| TokenRange { start, count: 1 })
            .collect();
        let returned: u32 = ranges
            .chunks(MAX_RANGES)
            .map(|ranges| dontneed(self.socket, ranges).expect("DONTNEED"))
            .sum();
        if !self.quiet {
            observe(format_args!("{returned} tokens returned"));
        }
        assert_eq!(returned as usize, held.len(), "tokens returned");
        // What comes next may be the same tokens and buffers, or others.
        self.tokens.clear();
        self.buffers.clear();
    }

    /// Tells of a call, in the order of appearance where the kernel chose a number.
    fn tell(&mut self, call: &Call, got: &Got) {
        let mut line = format!("recvmsg({:#x})", call.flags & !MSG_SOCK_DEVMEM);
        match got.result {
            Ok(len) => line += &format!(" = {len}, flags {:#x}:", got.flags & !MSG_SOCK_DEVMEM),
            Err(errno) => line += &format!(" = {:?} ({errno})", Errno::from_raw(errno)),
        }
        for piece in &got.pieces {
            line += &match piece {
                DevmemCmsg::Linear(size) => format!(" linear {size};"),
                DevmemCmsg::Dmabuf(frag) => {
                    let names = self.tokens.len();
                    let token = self.tokens.entry(frag.frag_token).or_insert(names);
                    let page = frag.frag_offset / PAGE as u64;
                    let names = self.buffers.len();
                    let buffer = self.buffers.entry((frag.dmabuf_id, page)).or_insert(names);
                    format!(
                        " {} bytes in buffer {buffer} at {}, token {token};",
                        frag.frag_size,
                        frag.frag_offset % PAGE as u64
                    )
                }
            };
        }
        for other in &got.others {
            line += &format!(
                " {}/{} of {} bytes;",
                other.level,
                other.kind,
                other.data.len()
            );
        }
        observe(line);
    }
}

/// The state of a TCP socket, and the bytes that it has received, in order, since it was connected.
pub fn tcp_info(socket: &impl AsFd) -> io::Result<(u8, u64)> {
    /// Where `struct tcp_info` has `tcpi_bytes_received`.
    const BYTES_RECEIVED: usize = 128;
    let mut info = [0_u8; BYTES_RECEIVED + 8];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: `info` is writable for `len` bytes.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut len,
        )
    };
    match (ret, info.last_chunk()) {
        (0, Some(bytes)) if len as usize == info.len() => Ok((info[0], u64::from_ne_bytes(*bytes))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes that a socket has received, in order, since it was connected.
pub fn received(socket: &impl AsFd) -> io::Result<u64> {
    Ok(tcp_info(socket)?.1)
}

/// Waits until a socket has received so many bytes in all.
#[track_caller]
pub fn wait_received(socket: &TcpStream, bytes: u64) {
    soon(&format!("{bytes} bytes to arrive"), || {
        Ok(received(socket)? >= bytes)
    });
    assert_eq!(received(socket).expect("TCP_INFO"), bytes, "bytes received");
}

/// Waits for what should take no time at all.
#[track_caller]
pub fn soon(what: &str, condition: impl FnMut() -> io::Result<bool>) {
    wait::until(what, ARRIVAL, condition).expect(what);
}
