// SPDX-License-Identifier: GPL-2.0

//! Sending from a dma-buf that holds the stream of [`traffic`], by calls that may be malformed.

use std::ffi::c_void;
use std::io;
use std::io::Read;
use std::mem;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::ptr;
use std::ptr::NonNull;
use std::time::Duration;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Error;
use devmem::Extent;
use devmem::Piece;
use devmem::Receiver;
use devmem::TxBinding;
use devmem::completion;
use devmem::dmabuf::Mapping;
use nix::errno::Errno;
use nix::fcntl::FcntlArg;
use nix::fcntl::SealFlag;
use nix::fcntl::fcntl;
use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::sys::mman::munmap;
use nix::sys::socket::SockaddrLike;
use nix::sys::socket::SockaddrStorage;

use crate::pair::End;
use crate::provider;
use crate::traffic;
use crate::wait;

/// How long completions may take: the peer may have to be asked again.
const COMPLETED: Duration = Duration::from_secs(20);

/// Writes the stream into a dma-buf, so that byte `n` of one is byte `n` of the other.
pub fn fill(memory: &DmaBuf) -> io::Result<()> {
    const STEP: usize = 1 << 20;
    let mut region = memory.region()?;
    let mut write = region.begin_write()?;
    for at in (0..memory.size()).step_by(STEP) {
        let len = STEP.min(memory.size() - at);
        write.copy_in(at as u64, traffic::bytes(at as u64, len))?;
    }
    Ok(())
}

/// A udmabuf of some pages in the middle of a file.
pub fn part_of_a_file(offset: u64, size: u64) -> io::Result<DmaBuf> {
    let memfd = memfd_create(c"part", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::ftruncate(&memfd, (2 * offset + size) as libc::off_t)?;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    DmaBuf::udmabuf_of(&memfd, offset, size as usize)
}

/// A part of a dma-buf.
pub fn extent(offset: u64, len: u64) -> Extent {
    Extent { offset, len }
}

/// Bytes of these parts together.
pub fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.len).sum()
}

impl End {
    /// The request to bind memory for this end to send.
    pub fn request_tx(&self) -> BindTx {
        let request = BindTx::new(self.ifindex);
        match self.is_local() {
            true => request.local(),
            false => request,
        }
    }

    /// Binds memory for this end to send, and has a look which provider serves.
    pub fn bind_tx(&self, memory: &DmaBuf) -> Result<TxBinding, Error> {
        let binding = self.ns.run(|| Ok(self.request_tx().bind(memory)))??;
        if provider::bindings()?.is_some() {
            let info = provider::binding(binding.id())?.expect("the new binding");
            assert_eq!(
                (info.provider.as_str(), info.direction.as_str()),
                (provider::under_test().name(), "tx"),
                "the new binding"
            );
        }
        Ok(binding)
    }

    /// Runs `tc` at this end.
    pub fn tc(&self, args: &str) -> io::Result<()> {
        self.command("tc", args)
    }

    /// From now on what is sent gets lost.
    pub fn cut(&self) -> io::Result<()> {
        self.queueing("netem loss 100%")
    }

    /// From now on it does not.
    pub fn mend(&self) -> io::Result<()> {
        self.queueing("pfifo")
    }

    /// Queues what is sent by this discipline.
    pub fn queueing(&self, discipline: &str) -> io::Result<()> {
        let device = &self.ifname;
        self.tc(&format!("qdisc replace dev {device} root {discipline}"))
    }

    /// Aborts the connections of this port, as an administrator does.
    pub fn abort_connections(&self, port: u16) -> io::Result<()> {
        self.command("ss", &format!("-K -t -n sport = :{port}"))
    }

    /// Runs `ip` at this end.
    pub fn ip(&self, args: &str) -> io::Result<()> {
        self.command("ip", args)
    }

    /// Runs `nft` at this end: commands of its language, separated by semicolons.
    pub fn nft(&self, commands: &str) -> io::Result<()> {
        self.command("nft", commands)
    }

    fn command(&self, program: &str, args: &str) -> io::Result<()> {
        let output = self
            .ns
            .run(|| Command::new(program).args(args.split(' ')).output())?;
        if !output.status.success() {
            return Err(io::Error::other(format!(
                "{program} {args}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )));
        }
        Ok(())
    }
}

/// A call of `sendmsg()`, every part of which may be wrong.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// The iovecs: offset (or address) and length.
    pub iov: Vec<(u64, u64)>,
    /// The control buffer.
    pub control: Vec<u8>,
    /// Flags.
    pub flags: i32,
    /// Where to, if not where the socket is connected to.
    pub to: Option<SocketAddr>,
}

impl Call {
    /// A proper call.
    pub fn new(dmabuf_id: u32, extents: &[Extent]) -> Self {
        Self {
            iov: extents.iter().map(|part| (part.offset, part.len)).collect(),
            control: devmem::cmsg::tx_control(dmabuf_id).to_vec(),
            flags: libc::MSG_ZEROCOPY,
            to: None,
        }
    }

    /// Replaces the control buffer.
    pub fn control(mut self, control: Vec<u8>) -> Self {
        self.control = control;
        self
    }

    /// Replaces the flags.
    pub fn flags(mut self, flags: i32) -> Self {
        self.flags = flags;
        self
    }

    /// Makes the call.
    pub fn send(&self, socket: impl AsFd) -> io::Result<usize> {
        let mut iov: Vec<_> = self
            .iov
            .iter()
            .map(|&(base, len)| libc::iovec {
                iov_base: ptr::with_exposed_provenance_mut(base as usize),
                iov_len: len as usize,
            })
            .collect();
        let mut control = self.control.clone();
        let to = self.to.map(SockaddrStorage::from);
        // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
        let mut msg: libc::msghdr = unsafe { mem::zeroed() };
        if let Some(to) = &to {
            msg.msg_name = to.as_ptr().cast_mut().cast();
            msg.msg_namelen = to.len();
        }
        msg.msg_iov = iov.as_mut_ptr();
        msg.msg_iovlen = iov.len();
        if !control.is_empty() {
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = control.len();
        }
        // SAFETY: What `msg` points to is readable for the lengths given. The iovecs are offsets; where
        // the kernel takes them for addresses it only reads, or refuses.
        let ret = unsafe {
            libc::sendmsg(
                socket.as_fd().as_raw_fd(),
                &msg,
                self.flags | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(ret).map_err(|_| io::Error::last_os_error())
    }
}

/// Memory of the process at an address that is an offset into a dma-buf as well: if it is what gets sent,
/// the kernel has taken the one for the other.
#[derive(Debug)]
pub struct Decoy {
    address: NonNull<c_void>,
    len: usize,
}

impl Decoy {
    /// Memory of zeroes at this address, where nothing else may be.
    pub fn at(address: u64, len: u64) -> io::Result<Self> {
        Self::filled(address, len, 0)
    }

    /// Memory of this byte at this address.
    pub fn filled(address: u64, len: u64, byte: u8) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let hint = NonZeroUsize::new(address as usize).ok_or_else(invalid)?;
        let size = NonZeroUsize::new(len as usize).ok_or_else(invalid)?;
        // SAFETY: A new mapping, which replaces no other.
        let address = unsafe {
            mmap_anonymous(
                Some(hint),
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE,
            )
        }?;
        // SAFETY: The mapping made above, which nothing refers to.
        unsafe { address.cast::<u8>().write_bytes(byte, size.get()) };
        Ok(Self {
            address,
            len: size.get(),
        })
    }
}

impl Drop for Decoy {
    fn drop(&mut self) {
        // SAFETY: The mapping is this struct's own, and no reference into it is ever made.
        let _ = unsafe { munmap(self.address, self.len) };
    }
}

/// What a call gave, for [`observe`](crate::report::observe).
pub fn outcome(result: &io::Result<usize>) -> String {
    match result {
        Ok(bytes) => format!("{bytes}"),
        Err(err) => err.raw_os_error().map_or_else(
            || err.to_string(),
            |errno| format!("{:?}", Errno::from_raw(errno)),
        ),
    }
}

/// Checks that a call failed with this errno.
#[track_caller]
pub fn fails(result: io::Result<usize>, errno: Errno) {
    assert_eq!(outcome(&result), format!("{errno:?}"));
}

/// Receives these parts of a filled dma-buf by plain `recv()`, and compares every byte.
#[track_caller]
pub fn expect(mut socket: &TcpStream, extents: &[Extent]) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for part in extents {
        let mut at = part.offset;
        let end = part.offset + part.len;
        while at < end {
            let step = (end - at).min(buffer.len() as u64) as usize;
            socket.read_exact(&mut buffer[..step])?;
            traffic::compare(at, &buffer[..step]);
            at += step as u64;
        }
    }
    Ok(())
}

/// Checks that the peer has sent nothing else, and is done.
#[track_caller]
pub fn expect_end(mut socket: &TcpStream) -> io::Result<()> {
    let mut byte = [0];
    assert_eq!(socket.read(&mut byte)?, 0, "a byte too many: {byte:?}");
    Ok(())
}

/// Receives these parts of a filled dma-buf in device memory, and compares every byte.
///
/// Returns how many bytes came otherwise.
#[track_caller]
pub fn expect_in_device_memory(
    receiver: &mut Receiver<'_>,
    memory: &Mapping,
    extents: &[Extent],
) -> io::Result<u64> {
    let mut parts = extents.iter().copied().filter(|part| part.len > 0);
    let mut now = extent(0, 0);
    let mut buffer = vec![0; 1 << 20];
    let mut check = |mut bytes: &[u8]| {
        while !bytes.is_empty() {
            if now.len == 0 {
                now = parts.next().expect("a byte too many");
            }
            let step = bytes.len().min(now.len as usize);
            let (first, rest) = bytes.split_at(step);
            traffic::compare(now.offset, first);
            now = extent(now.offset + step as u64, now.len - step as u64);
            bytes = rest;
        }
    };
    let (mut left, mut copied) = (total(extents), 0);
    while left > 0 {
        let received = receiver.recv()?;
        assert!(
            !received.is_eof(),
            "the stream ended, {left} bytes are missing"
        );
        let cpu = memory.begin_read()?;
        for piece in received {
            let len = match piece {
                Piece::Frag(frag) => {
                    let to = &mut buffer[..frag.size as usize];
                    cpu.copy_out(frag.offset, to)?;
                    check(to);
                    u64::from(frag.size)
                }
                Piece::Linear(bytes) | Piece::Plain(bytes) => {
                    check(bytes);
                    copied += bytes.len() as u64;
                    bytes.len() as u64
                }
            };
            left = left.checked_sub(len).expect("bytes too many");
        }
    }
    Ok(copied)
}

/// How often TCP has sent again what it got no acknowledgement for, or tried again what it could not send.
pub fn tries_again(socket: &TcpStream) -> io::Result<u8> {
    // SAFETY: All-zero is a valid tcp_info, which has only numbers.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is writable for the length given.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut len,
        )
    };
    match ret {
        0 => Ok(info.tcpi_retransmits.saturating_add(info.tcpi_probes)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Completions of a socket, each of which must come once.
#[derive(Debug, Default)]
pub struct Completions {
    /// Calls that are completed.
    pub done: Vec<u32>,
    /// Whether the kernel said that it copied.
    pub copied: bool,
}

impl Completions {
    /// Takes what is there.
    #[track_caller]
    pub fn read(&mut self, socket: &TcpStream) -> io::Result<()> {
        while let Some(list) = completion::read(socket)? {
            for completion in list {
                self.copied |= completion.copied;
                for i in 0..completion.count {
                    let number = completion.first.wrapping_add(i as u32);
                    assert!(!self.done.contains(&number), "{number} completed twice");
                    self.done.push(number);
                }
            }
        }
        Ok(())
    }

    /// Waits until just the first `calls` calls are completed.
    #[track_caller]
    pub fn wait(&mut self, socket: &TcpStream, calls: u32) -> io::Result<()> {
        let waited = wait::up_to(COMPLETED, || {
            self.read(socket)?;
            Ok(self.done.len() as u64 >= u64::from(calls))
        })?;
        assert!(
            waited.came,
            "waited {:?} for {calls} completions, got {:?}",
            waited.time, self.done
        );
        let mut sorted = self.done.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..calls), "{:?}", self.done);
        Ok(())
    }
}
