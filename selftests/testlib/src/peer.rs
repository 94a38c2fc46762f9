// SPDX-License-Identifier: GPL-2.0

//! A TCP peer that sends just the segments that it is told to.

use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use etherparse::PacketBuilder;
use etherparse::PacketBuilderStep;
use etherparse::SlicedPacket;
use etherparse::TcpHeader;
use etherparse::TcpSlice;
use etherparse::TransportSlice;

use crate::pair::End;
use crate::pair::Pair;
use crate::traffic;
use crate::wait;

/// The peer's address, which no device has: no kernel answers in its place.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// Another one, of a sender whose packets are forwarded to us.
const SENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 4);
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const PORT: u16 = 40_000;
/// Sequence number of the SYN: the stream is past the wrap soon.
const FIRST: u32 = u32::MAX - 300;
const WINDOW: u16 = 0xffff;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A segment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Where in the stream it begins.
    pub position: u64,
    /// Bytes of payload.
    pub len: usize,
    /// Whether the stream ends with it.
    pub fin: bool,
    /// Whether the connection ends with it.
    pub rst: bool,
    /// So many bytes from its beginning on are urgent.
    pub urgent: Option<u16>,
    /// So many of the bytes are where options would be: a multiple of 4, up to 40.
    pub in_options: usize,
}

/// A segment with this part of the stream.
pub fn segment(position: u64, len: usize) -> Segment {
    Segment {
        position,
        len,
        ..Default::default()
    }
}

/// A connection made by hand.
#[derive(Debug)]
pub struct Peer {
    socket: OwnedFd,
    mac: [u8; 6],
    to: SocketAddrV4,
    /// What it acknowledges.
    next: u32,
}

impl Peer {
    /// Connects from the sending end to a listener at the receiving end.
    pub fn connect(pair: &Pair, listener: &TcpListener) -> io::Result<(Self, TcpStream)> {
        pair.rx.add_neighbour(ADDRESS, MAC)?;
        let to = match listener.local_addr()? {
            std::net::SocketAddr::V4(to) => to,
            std::net::SocketAddr::V6(to) => panic!("{to} is not of IPv4"),
        };
        let mut peer = Self {
            socket: packet_socket(&pair.tx)?,
            mac: pair.rx.mac()?,
            to,
            next: 0,
        };
        peer.put(
            TcpHeader {
                syn: true,
                sequence_number: FIRST,
                ..Default::default()
            },
            &[],
        )?;
        let answer = peer.answer(|header| header.syn && header.ack)?;
        assert_eq!(answer.acknowledgment_number, FIRST.wrapping_add(1));
        peer.next = answer.sequence_number.wrapping_add(1);
        peer.put(peer.header(0), &[])?;
        let (socket, _) = listener.accept()?;
        socket.set_read_timeout(Some(wait::patience(ANSWER)))?;
        Ok((peer, socket))
    }

    /// Sends a segment.
    pub fn send(&self, segment: Segment) -> io::Result<()> {
        self.send_frame(&self.frame(segment)?)
    }

    /// The frame of a segment, headers of Ethernet, IPv4 and TCP with good checksums before its payload.
    pub fn frame(&self, segment: Segment) -> io::Result<Vec<u8>> {
        let bytes = traffic::bytes(segment.position, segment.len);
        let (options, payload) = bytes.split_at(segment.in_options);
        let mut header = TcpHeader {
            psh: true,
            fin: segment.fin,
            rst: segment.rst,
            urg: segment.urgent.is_some(),
            urgent_pointer: segment.urgent.unwrap_or(0),
            ..self.header(segment.position)
        };
        header
            .set_options_raw(options)
            .expect("options of a good length");
        self.build(header, payload)
    }

    /// Sends a segment, and waits until the receiver has acknowledged the stream up to a position, no more.
    pub fn send_and_wait(&self, segment: Segment, acknowledged: u64) -> io::Result<()> {
        self.drain();
        self.send(segment)?;
        let number = sequence(acknowledged);
        let answer = self.answer(|header| header.ack && header.acknowledgment_number == number)?;
        assert!(!answer.rst, "the receiver resets the connection");
        Ok(())
    }

    /// Sends bytes to the receiver which it is to forward to us, at another port.
    pub fn send_through(&self, port: u16, len: usize) -> io::Result<()> {
        let header = TcpHeader {
            destination_port: port,
            ..self.header(0)
        };
        let builder = PacketBuilder::ethernet2(MAC, self.mac)
            .ipv4(SENDER.octets(), ADDRESS.octets(), 64)
            .tcp_header(header);
        self.send_frame(&built(builder, traffic::bytes(0, len))?)
    }

    /// The payload of a frame for this port of ours that has come, if any.
    pub fn came_through(&self, port: u16) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        while let Some(len) = self.next(&mut buffer) {
            let frame = &buffer[..len];
            let segment = segment_to(port, frame).filter(|_| frame.starts_with(&MAC));
            if let Some(tcp) = segment {
                return Some(tcp.payload().to_vec());
            }
        }
        None
    }

    fn header(&self, position: u64) -> TcpHeader {
        TcpHeader {
            sequence_number: sequence(position),
            acknowledgment_number: self.next,
            ack: true,
            ..Default::default()
        }
    }

    fn put(&self, header: TcpHeader, payload: &[u8]) -> io::Result<()> {
        self.send_frame(&self.build(header, payload)?)
    }

    fn build(&self, header: TcpHeader, payload: &[u8]) -> io::Result<Vec<u8>> {
        let header = TcpHeader {
            source_port: PORT,
            destination_port: self.to.port(),
            window_size: WINDOW,
            ..header
        };
        let builder = PacketBuilder::ethernet2(MAC, self.mac)
            .ipv4(ADDRESS.octets(), self.to.ip().octets(), 64)
            .tcp_header(header);
        built(builder, payload)
    }

    /// Sends a frame as it is.
    pub fn send_frame(&self, frame: &[u8]) -> io::Result<()> {
        put_frame(&self.socket, frame)
    }

    /// A frame that has come.
    fn next(&self, buffer: &mut [u8]) -> Option<usize> {
        take_frame(&self.socket, buffer)
    }

    fn drain(&self) {
        while self.next(&mut [0; 128]).is_some() {}
    }

    /// Waits for a segment of the receiver.
    fn answer(&self, wanted: impl Fn(&TcpHeader) -> bool) -> io::Result<TcpHeader> {
        let mut buffer = [0; 2048];
        let mut answer = None;
        let waited = wait::up_to(ANSWER, || {
            while let Some(len) = self.next(&mut buffer) {
                answer = segment_to(PORT, &buffer[..len])
                    .map(|tcp| tcp.to_header())
                    .filter(&wanted);
                if answer.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        answer.ok_or_else(|| {
            let what = format!("no answer of the receiver within {:?}", waited.time);
            io::Error::new(io::ErrorKind::TimedOut, what)
        })
    }
}

/// The bytes of a frame.
pub(crate) fn built(builder: PacketBuilderStep<TcpHeader>, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder
        .write(&mut frame, payload)
        .map_err(io::Error::other)?;
    Ok(frame)
}

/// Sends a frame.
pub(crate) fn put_frame(socket: &OwnedFd, frame: &[u8]) -> io::Result<()> {
    // SAFETY: `frame` is readable for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a frame that has come, and tells how long it is.
pub(crate) fn take_frame(socket: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    // SAFETY: `buffer` is writable for its length.
    let len = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(len).ok()
}

/// The sequence number of a position in the stream.
fn sequence(position: u64) -> u32 {
    FIRST.wrapping_add(1).wrapping_add(position as u32)
}

/// A socket that sees and sends all frames of a device.
pub fn packet_socket(end: &End) -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    end.ns.run(|| {
        // SAFETY: Takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                protocol.into(),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: The kernel just made this file descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: All-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = end.ifindex as i32;
        // SAFETY: `address` is a sockaddr_ll of the length given.
        let ret = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        match ret {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

/// What a frame has of a segment of TCP to this port.
fn segment_to(port: u16, frame: &[u8]) -> Option<TcpSlice<'_>> {
    match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Tcp(tcp) if tcp.destination_port() == port => Some(tcp),
        _ => None,
    }
}
