// SPDX-License-Identifier: GPL-2.0

//! What most tests begin with: devices, memory that is bound, and a connection.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::dmabuf::Mapping;

use crate::bpf;
use crate::pair::Connection;
use crate::pair::Ip;
use crate::pair::Pair;
use crate::peer::Peer;
use crate::peer::Segment;
use crate::peer::segment;
use crate::probe::Probe;
use crate::probe::wait_received;
use crate::report::Stop;
use crate::traffic;

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

    /// A connection over IPv4 into 4 MiB of pages.
    pub fn new() -> Result<Self, Stop> {
        Self::into_memory(DmaBuf::udmabuf(1024 * PAGE)?)
    }

    /// The same into this memory.
    pub fn into_memory(memory: DmaBuf) -> Result<Self, Stop> {
        let map = memory.map()?;
        let pair = Pair::new()?;
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
