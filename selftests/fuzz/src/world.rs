// SPDX-License-Identifier: GPL-2.0

//! What all sequences share: the devices, the listening sockets, and the memory.

use std::fs;
use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use devmem::DmaBuf;
use devmem::dmabuf::Mapping;
use devmem::netns::Netns;
use devmem_testlib::Pair;
use devmem_testlib::pair;
use devmem_testlib::sockopt;
use devmem_testlib::tx;
use nix::sched::CloneFlags;
use nix::sched::setns;

use crate::op::Device;
use crate::op::FLOWS;
use crate::op::Ip;
use crate::op::Memory;

const MIB: usize = 1 << 20;
/// So that every call which sends makes one segment.
const MTU: u32 = 16_384;
/// More than all buffers of a binding together.
const RECEIVE_BUFFER: i32 = 16 << 20;
/// An interface that is not there.
const NO_IFINDEX: u32 = 99_999;

/// How many memories of pages there are.
pub const PAGES: u8 = 4;
/// How many memories there are to send from.
pub const SOURCES: u8 = 2;
/// The longest segment over either IP version.
pub const SEGMENT: u32 = MTU - 100;

/// A dma-buf, and where the CPU sees it.
#[derive(Debug)]
pub struct Lent {
    /// The dma-buf.
    pub memory: DmaBuf,
    /// Its memory.
    pub map: Mapping,
}

impl Lent {
    fn new(memory: DmaBuf) -> io::Result<Self> {
        let map = memory.map()?;
        Ok(Self { memory, map })
    }
}

/// What there is.
#[derive(Debug)]
pub struct World {
    pair: Pair,
    /// The namespace of this process, where the provider is chosen.
    home: Netns,
    listeners: Vec<[TcpListener; 2]>,
    lent: Vec<Lent>,
    read_only: DmaBuf,
    file: File,
    /// Has the kernel take the time of every packet: it begins only some time after it was asked to.
    _stamped: UdpSocket,
}

impl World {
    /// Makes it.
    pub fn new() -> io::Result<Self> {
        let pair = Pair::new()?;
        pair.set_mtu(MTU)?;
        for end in [&pair.rx, &pair.tx] {
            calm(end)?;
        }

        let mut lent: Vec<_> = (0..PAGES)
            .map(|_| DmaBuf::udmabuf(4 * MIB))
            .collect::<io::Result<_>>()?;
        lent.push(DmaBuf::udmabuf_huge(16 * MIB)?);
        lent.push(DmaBuf::system_heap(4 * MIB)?);
        for _ in 0..SOURCES {
            let source = DmaBuf::udmabuf(MIB)?;
            tx::fill(&source)?;
            lent.push(source);
        }
        Ok(Self {
            listeners: (0..FLOWS)
                .map(|flow| Ok([listen(&pair, flow, Ip::V4)?, listen(&pair, flow, Ip::V6)?]))
                .collect::<io::Result<_>>()?,
            lent: lent.into_iter().map(Lent::new).collect::<io::Result<_>>()?,
            read_only: DmaBuf::heap("/dev/dma_heap/system".as_ref(), MIB / 16, libc::O_RDONLY)?,
            file: File::open("/dev/null")?,
            _stamped: stamped()?,
            home: Netns::current()?,
            pair,
        })
    }

    /// The number of a device.
    pub fn ifindex(&self, device: Device) -> u32 {
        match device {
            Device::Receiver => self.pair.rx.ifindex,
            Device::Sender => self.pair.tx.ifindex,
            Device::Missing => NO_IFINDEX,
        }
    }

    /// Which of the memories this is, if it is one that can be read.
    pub fn place(&self, memory: Memory) -> Option<usize> {
        let pages = usize::from(PAGES);
        match memory {
            Memory::Pages(number) => Some(usize::from(number % PAGES)),
            Memory::Huge => Some(pages),
            Memory::Heap => Some(pages + 1),
            Memory::Source(number) => Some(pages + 2 + usize::from(number % SOURCES)),
            Memory::ReadOnly | Memory::File | Memory::Nothing => None,
        }
    }

    /// The memory at a [`place`](Self::place).
    pub fn lent(&self, place: usize) -> &Lent {
        &self.lent[place]
    }

    /// The file descriptor of a memory.
    pub fn fd(&self, memory: Memory) -> i32 {
        match (self.place(memory), memory) {
            (Some(place), _) => self.lent[place].memory.as_fd().as_raw_fd(),
            (None, Memory::ReadOnly) => self.read_only.as_fd().as_raw_fd(),
            (None, Memory::File) => self.file.as_raw_fd(),
            (None, _) => -1,
        }
    }

    /// Does something in the namespace of a device.
    pub fn beside<T>(&self, device: Device, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        enter(match device {
            Device::Sender => &self.pair.tx.ns,
            Device::Receiver | Device::Missing => &self.pair.rx.ns,
        })?;
        let result = f();
        enter(&self.home)?;
        result
    }

    /// Has a queue receive a connection.
    pub fn steer(&self, flow: u8, queue: u32) -> io::Result<()> {
        self.pair.steer_nth(flow.into(), port(flow), queue)
    }

    /// Connects, and returns the receiver's socket and the sender's.
    pub fn connect(&self, flow: u8, ip: Ip) -> io::Result<(TcpStream, TcpStream)> {
        let to = pair::address(version(ip), port(flow));
        let tx = self.beside(Device::Sender, || TcpStream::connect(to))?;
        let (rx, _) = self.listeners[usize::from(flow)][ip as usize].accept()?;
        Ok((rx, tx))
    }
}

fn version(ip: Ip) -> pair::Ip {
    match ip {
        Ip::V4 => pair::Ip::V4,
        Ip::V6 => pair::Ip::V6,
    }
}

fn port(flow: u8) -> u16 {
    5000 + u16::from(flow)
}

fn listen(pair: &Pair, flow: u8, ip: Ip) -> io::Result<TcpListener> {
    let listener = pair.listen(version(ip), port(flow))?;
    sockopt::set(
        &listener,
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        RECEIVE_BUFFER,
    )?;
    Ok(listener)
}

/// A socket that wants to know when packets came.
fn stamped() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    sockopt::set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMP, 1)?;
    Ok(socket)
}

fn enter(netns: &Netns) -> io::Result<()> {
    Ok(setns(netns, CloneFlags::CLONE_NEWNET)?)
}

/// Keeps time and history out of what TCP does at one end.
fn calm(end: &pair::End) -> io::Result<()> {
    end.ns.run(|| {
        for (name, value) in [
            // A connection leaves nothing for the next.
            ("tcp_no_metrics_save", "1"),
            ("tcp_autocorking", "0"),
        ] {
            fs::write(format!("/proc/sys/net/ipv4/{name}"), value)?;
        }
        Ok(())
    })?;
    // Each segment is acknowledged at once, so that the next can be sent.
    let device = &end.ifname;
    end.ip(&format!(
        "-4 route add 192.0.2.0/25 dev {device} quickack 1"
    ))?;
    end.ip(&format!(
        "-6 route add 2001:db8::/65 dev {device} quickack 1"
    ))
}
