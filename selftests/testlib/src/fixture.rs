// SPDX-License-Identifier: GPL-2.0

//! What most tests begin with: devices, memory that is bound, and a connection.

use std::cell::Cell;
use std::cell::RefCell;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::Extent;
use devmem::TxBinding;
use devmem::dmabuf::Mapping;
use devmem::send::enable_zerocopy;
use nix::errno::Errno;

use crate::bpf;
use crate::pair::Connection;
use crate::pair::Ip;
use crate::pair::Joint;
use crate::pair::Pair;
use crate::peer::Peer;
use crate::peer::Segment;
use crate::peer::segment;
use crate::probe::Probe;
use crate::probe::wait_received;
use crate::report::Outcome;
use crate::report::Stop;
use crate::report::observe;
use crate::traffic;
use crate::tx;
use crate::tx::Call;
use crate::tx::Completions;
use crate::tx::fails;
use crate::tx::outcome;

const PAGE: usize = 4096;

/// A connection into a bound queue.
#[derive(Debug)]
pub struct Receiving {
    /// The connection.
    pub connection: Connection,
    /// The binding of the queue.
    pub binding: Binding,
    /// The memory, to be read.
    pub map: Mapping,
    /// The memory.
    pub memory: DmaBuf,
    /// The devices.
    pub pair: Pair,
    sent: AtomicU64,
}

impl Receiving {
    /// The port of the connection.
    pub const PORT: u16 = 5001;
    /// The bound queue.
    pub const QUEUE: u32 = 1;
    /// A queue that is not bound.
    pub const PLAIN_QUEUE: u32 = 2;
    /// Room for 4096 bytes after the headers of IPv4 and TCP, and time stamps.
    pub const MTU_OF_A_BUFFER: u32 = 4096 + 52;

    /// A connection over IPv4 into 4 MiB of pages.
    pub fn new() -> Result<Self, Stop> {
        Self::into_memory(DmaBuf::udmabuf(1024 * PAGE)?)
    }

    /// The same into this memory.
    pub fn into_memory(memory: DmaBuf) -> Result<Self, Stop> {
        Self::between(Pair::new()?, memory)
    }

    /// The same by an MTU with which segments have a multiple of 4096 bytes, unless they are the last of what is
    /// sent: each but the last of their buffers is full.
    pub fn in_full_buffers(memory: DmaBuf) -> Result<Self, Stop> {
        Self::between(Self::pair_for_full_buffers()?, memory)
    }

    /// Devices between which each packet fills buffers, and room for what is sent before somebody reads.
    pub fn pair_for_full_buffers() -> Result<Pair, Stop> {
        let pair = Pair::new()?;
        pair.set_mtu(Self::MTU_OF_A_BUFFER)?;
        pair.rx.sysctl("ipv4/tcp_rmem", "4096 4194304 6291456")?;
        // What is sent again, as the receiver is slow, takes buffers, and the next does not follow the last then.
        pair.tx.sysctl("ipv4/tcp_rto_min_us", "10000000")?;
        pair.tx.sysctl("ipv4/tcp_early_retrans", "0")?;
        Ok(pair)
    }

    fn between(pair: Pair, memory: DmaBuf) -> Result<Self, Stop> {
        let map = memory.map()?;
        let binding = pair.bind(&[Self::QUEUE], &memory)?;
        let connection = pair.connect_to_queue(Ip::V4, Self::PORT, Self::QUEUE)?;
        Ok(Self {
            connection,
            binding,
            map,
            memory,
            pair,
            sent: AtomicU64::new(0),
        })
    }

    /// A probe of the connection.
    pub fn probe(&self) -> Probe<'_> {
        self.probe_of(&self.connection.rx)
    }

    /// A probe of another socket into the same memory.
    pub fn probe_of<'b>(&'b self, socket: &'b impl AsFd) -> Probe<'b> {
        Probe::new(socket, &[(self.binding.id(), &self.map)])
    }

    /// Has another queue receive the connection from now on.
    pub fn steer(&self, queue: u32) -> io::Result<()> {
        self.pair.steer_again(Self::PORT, queue)
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends the next bytes of the stream, each count of them with a call of its own, and waits until they
    /// are in the receive queue. What fits in a segment becomes one.
    pub fn send(&self, counts: &[usize]) -> io::Result<()> {
        for &count in counts {
            self.start_sending(count)?;
            wait_received(&self.connection.rx, self.sent());
        }
        Ok(())
    }

    /// Sends the next bytes of the stream, and does not wait.
    pub fn start_sending(&self, count: usize) -> io::Result<()> {
        traffic::send(&self.connection.tx, self.sent(), count as u64, count)?;
        self.sent.fetch_add(count as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// A connection each segment of which has bytes in host memory before those in device memory.
#[derive(Debug)]
pub struct Mixed {
    /// The receiver.
    pub socket: TcpStream,
    peer: Peer,
    _program: OwnedFd,
}

impl Mixed {
    const PORT: u16 = Receiving::PORT + 1;

    /// A connection into the bound queue of another one.
    pub fn new(other: &Receiving) -> Result<Self, Stop> {
        let rx = &other.pair.rx;
        let program = rx.ns.run(|| bpf::options_to_payload(rx.ifindex))?;
        other.pair.steer(Self::PORT, Receiving::QUEUE)?;
        let listener = other.pair.listen(Ip::V4, Self::PORT)?;
        let (peer, socket) = Peer::connect(&other.pair, &listener)?;
        Ok(Self {
            socket,
            peer,
            _program: program,
        })
    }

    /// Sends the stream from a position on, up to 40 bytes to host memory (a multiple of 4) and `frag`
    /// bytes to device memory, and waits until they are in the receive queue.
    pub fn send(&self, position: u64, linear: usize, frag: usize) -> io::Result<()> {
        self.peer.send(Segment {
            in_options: linear,
            ..segment(position, linear + frag)
        })?;
        wait_received(&self.socket, position + (linear + frag) as u64);
        Ok(())
    }
}

/// A connection, and memory that holds the stream of [`traffic`] bound to its sending end.
///
/// Dropped in this order: the devices go first.
#[derive(Debug)]
pub struct Sending {
    /// The devices.
    pub pair: Pair,
    /// The memory.
    pub memory: DmaBuf,
    /// Its binding.
    pub binding: TxBinding,
    /// The connection.
    pub connection: Connection,
    /// Zero-copy calls so far that sent something.
    calls: Cell<u32>,
    completions: RefCell<Completions>,
}

impl Sending {
    /// The port of the connection.
    pub const PORT: u16 = 5001;
    /// Bytes of the memory.
    pub const MEMORY: u64 = 64 * PAGE as u64;

    /// A connection over IPv4 that may send from the memory.
    pub fn new() -> Result<Self, Stop> {
        let sending = Self::connected_by(|pair| pair.connect(&pair.listen(Ip::V4, Self::PORT)?))?;
        enable_zerocopy(&sending.connection.tx)?;
        Ok(sending)
    }

    /// A connection over IPv4 between two ends without a NIC, that may send from the memory.
    pub fn local(joint: Joint) -> Result<Self, Stop> {
        Self::local_from(joint, Self::memory()?)
    }

    /// The same from this memory.
    pub fn local_from(joint: Joint, memory: DmaBuf) -> Result<Self, Stop> {
        let sending = Self::over(Pair::local(joint)?, memory, |pair| {
            pair.connect(&pair.listen(Ip::V4, Self::PORT)?)
        })?;
        enable_zerocopy(&sending.connection.tx)?;
        Ok(sending)
    }

    fn memory() -> io::Result<DmaBuf> {
        let memory = DmaBuf::udmabuf(Self::MEMORY as usize)?;
        tx::fill(&memory)?;
        Ok(memory)
    }

    /// A connection made in a way of its own, which may not send from the memory before `SO_ZEROCOPY` is
    /// set.
    pub fn connected_by(
        connect: impl FnOnce(&Pair) -> io::Result<Connection>,
    ) -> Result<Self, Stop> {
        Self::over(Pair::sending()?, Self::memory()?, connect)
    }

    fn over(
        pair: Pair,
        memory: DmaBuf,
        connect: impl FnOnce(&Pair) -> io::Result<Connection>,
    ) -> Result<Self, Stop> {
        let binding = pair.tx.bind_tx(&memory)?;
        let connection = connect(&pair)?;
        Ok(Self {
            pair,
            memory,
            binding,
            connection,
            calls: Cell::new(0),
            completions: RefCell::default(),
        })
    }

    /// A call that sends these parts of the memory.
    pub fn call(&self, extents: &[Extent]) -> Call {
        Call::new(self.binding.id(), extents)
    }

    /// Makes a call.
    pub fn send(&self, call: &Call) -> io::Result<usize> {
        let result = call.send(&self.connection.tx);
        if result.is_ok() && call.flags & libc::MSG_ZEROCOPY != 0 {
            self.calls.set(self.calls.get() + 1);
        }
        result
    }

    /// Makes a call that sends everything.
    #[track_caller]
    pub fn sends(&self, call: &Call) {
        let len: u64 = call.iov.iter().map(|&(_, len)| len).sum();
        let result = self.send(call);
        assert_eq!(outcome(&result), len.to_string());
    }

    /// Makes a call that is refused as a whole.
    #[track_caller]
    pub fn refused(&self, call: &Call, errno: Errno) {
        let result = self.send(call);
        observe(format_args!("refused: {}", outcome(&result)));
        fails(result, errno);
    }

    /// Receives these parts of the memory, and compares every byte.
    #[track_caller]
    pub fn expect(&self, extents: &[Extent]) -> io::Result<()> {
        tx::expect(&self.connection.rx, extents)
    }

    /// Checks that all calls which sent something complete, and no others.
    #[track_caller]
    pub fn completes(&self) -> Outcome {
        let mut completions = self.completions.borrow_mut();
        completions.wait(&self.connection.tx, self.calls.get())?;
        observe(format_args!("copied: {}", completions.copied));
        assert!(!completions.copied, "the kernel copied device memory");
        Ok(())
    }

    /// The same if memory of the host was sent by zero-copy, too, which is copied where it arrives on this machine.
    pub fn completes_with_host_memory(&self) -> Outcome {
        let mut completions = self.completions.borrow_mut();
        completions.wait(&self.connection.tx, self.calls.get())?;
        completions.copied = false;
        Ok(())
    }
}
