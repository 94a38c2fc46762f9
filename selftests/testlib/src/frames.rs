// SPDX-License-Identifier: GPL-2.0

//! Frames of a host that is none: what it sends, and what routers and firewalls answer.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use etherparse::IpHeaders;
use etherparse::IpNumber;
use etherparse::Ipv4Header;
use etherparse::PacketBuilder;
use etherparse::TcpHeader;

use crate::pair::End;
use crate::pair::Ip;
use crate::pair::Pair;
use crate::peer::built;
use crate::peer::packet_socket;
use crate::peer::put_frame;
use crate::peer::take_frame;
use crate::sockopt;
use crate::wait;

/// Bytes of the header of Ethernet, and those of IP and TCP without options.
pub const ETHERNET: usize = 14;
/// Of IPv4.
pub const IPV4: usize = 20;
/// Of IPv6.
pub const IPV6: usize = 40;
/// Of TCP.
pub const TCP: usize = 20;

const ICMPV4: u8 = 1;
const ICMPV6: u8 = 58;
/// Frames have at least so many bytes on a wire, without the checksum at their end.
const SHORTEST: usize = 60;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Sums up bytes, in which a checksum is, as IP and all above do: `0xffff` if it is right.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for word in part.chunks(2) {
            let low = word.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([word[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Makes a frame as long as it has to be on a wire, by bytes that are not zero.
pub fn pad(mut frame: Vec<u8>) -> Vec<u8> {
    if frame.len() < SHORTEST {
        frame.resize(SHORTEST, 0x5a);
    }
    frame
}

/// A host beside the sending end, for which no kernel answers.
#[derive(Debug)]
pub struct Host {
    socket: OwnedFd,
    router: [u8; 6],
}

impl Host {
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 4];
    const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 4);
    const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 4);
    const PORT: u16 = 40_001;

    /// Tells the receiving end of a pair where the host is to be reached, by this IP version.
    pub fn beside(pair: &Pair, ip: Ip) -> io::Result<Self> {
        match ip {
            Ip::V4 => pair.rx.add_neighbour(Self::V4, Self::MAC)?,
            Ip::V6 => add_neighbour_v6(&pair.rx, Self::V6, Self::MAC)?,
        }
        Ok(Self {
            socket: packet_socket(&pair.tx)?,
            router: pair.rx.mac()?,
        })
    }

    /// A segment from the host to somebody at or behind the receiving end, which may be cut into fragments
    /// if it is of IPv4. All checksums are good.
    pub fn segment(&self, to: SocketAddr, fragments: bool, payload: &[u8]) -> io::Result<Vec<u8>> {
        let header = TcpHeader {
            acknowledgment_number: 1,
            ack: true,
            ..Self::header(to)
        };
        self.frame(to, fragments, header, payload)
    }

    /// A SYN from the host, with payload, which takes no Fast Open.
    pub fn syn(&self, to: SocketAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
        let header = TcpHeader {
            syn: true,
            ..Self::header(to)
        };
        self.frame(to, false, header, payload)
    }

    fn header(to: SocketAddr) -> TcpHeader {
        TcpHeader {
            source_port: Self::PORT,
            destination_port: to.port(),
            sequence_number: 1,
            window_size: u16::MAX,
            ..Default::default()
        }
    }

    fn frame(
        &self,
        to: SocketAddr,
        fragments: bool,
        header: TcpHeader,
        payload: &[u8],
    ) -> io::Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2(Self::MAC, self.router);
        let builder = match to.ip() {
            IpAddr::V4(address) => {
                // The builder sets the length and the checksum.
                let mut ip =
                    Ipv4Header::new(0, 64, IpNumber::TCP, Self::V4.octets(), address.octets())
                        .map_err(io::Error::other)?;
                ip.dont_fragment = !fragments;
                let ip = IpHeaders::Ipv4(ip, Default::default());
                ethernet.ip(ip).tcp_header(header)
            }
            IpAddr::V6(address) => ethernet
                .ipv6(Self::V6.octets(), address.octets(), 64)
                .tcp_header(header),
        };
        built(builder, payload)
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        put_frame(&self.socket, frame)
    }

    /// Waits for an ICMP message of this type to the host. Fails the test if the message or its IP header has
    /// a wrong length or checksum.
    #[track_caller]
    pub fn icmp(&self, ip: Ip, kind: u8) -> io::Result<Vec<u8>> {
        let mut buffer = [0; 2048];
        let mut message = None;
        let what = format!("an ICMP message of type {kind}");
        wait::until(&what, ANSWER, || {
            while let Some(len) = take_frame(&self.socket, &mut buffer) {
                let found = match ip {
                    Ip::V4 => icmpv4(&buffer[..len]),
                    Ip::V6 => icmpv6(&buffer[..len]),
                };
                message = found.filter(|message| message[0] == kind);
                if message.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        Ok(message.unwrap_or_default())
    }
}

/// The IP packet of a frame to the host, if it has this type of Ethernet.
fn packet(frame: &[u8], ethertype: [u8; 2]) -> Option<&[u8]> {
    const ETHERTYPE: Range<usize> = 12..ETHERNET;
    (frame.starts_with(&Host::MAC) && frame.get(ETHERTYPE) == Some(&ethertype[..]))
        .then(|| &frame[ETHERNET..])
}

#[track_caller]
fn icmpv4(frame: &[u8]) -> Option<Vec<u8>> {
    let packet = packet(frame, [0x08, 0x00])?;
    let (header, message) = packet.split_at_checked(IPV4)?;
    if header[9] != ICMPV4 {
        return None;
    }
    assert_eq!(header[0], 0x45, "an IP header with options");
    let len = u16::from_be_bytes([header[2], header[3]]);
    assert_eq!(usize::from(len), packet.len(), "the packet's length");
    assert_eq!(sum(&[header]), 0xffff, "the checksum of IP");
    assert_eq!(sum(&[message]), 0xffff, "the checksum of ICMP");
    Some(message.to_vec())
}

#[track_caller]
fn icmpv6(frame: &[u8]) -> Option<Vec<u8>> {
    let packet = packet(frame, [0x86, 0xdd])?;
    let (header, message) = packet.split_at_checked(IPV6)?;
    if header[6] != ICMPV6 {
        return None;
    }
    let len = u16::from_be_bytes([header[4], header[5]]);
    assert_eq!(usize::from(len), message.len(), "the packet's length");
    let addresses = &header[8..];
    let sum = sum(&[addresses, &len.to_be_bytes(), &[0, ICMPV6], message]);
    assert_eq!(sum, 0xffff, "the checksum of ICMP");
    Some(message.to_vec())
}

/// Makes a permanent entry of the neighbour table.
pub fn add_neighbour_v6(end: &End, address: Ipv6Addr, mac: [u8; 6]) -> io::Result<()> {
    let device = &end.ifname;
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    end.ip(&format!(
        "-6 neigh replace {address} lladdr {mac} dev {device} nud permanent"
    ))
}

/// Sends frames of TCP over IPv4, the checksum of which a device has yet to make: whoever receives them
/// trusts it.
#[derive(Debug)]
pub struct Offloaded(OwnedFd);

impl Offloaded {
    /// Sends by the device of this end.
    pub fn at(end: &End) -> io::Result<Self> {
        const PACKET_VNET_HDR: i32 = 15;
        let socket = packet_socket(end)?;
        sockopt::set(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
        Ok(Self(socket))
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        const NEEDS_CSUM: u8 = 1;
        const CSUM_OFFSET: u16 = 16;
        // struct virtio_net_hdr: flags, GSO type, lengths of the header and of segments, where the sum
        // begins and where it belongs.
        let mut bytes = vec![NEEDS_CSUM, 0, 0, 0, 0, 0];
        bytes.extend(((ETHERNET + IPV4) as u16).to_ne_bytes());
        bytes.extend(CSUM_OFFSET.to_ne_bytes());
        bytes.extend(frame);
        put_frame(&self.0, &bytes)
    }
}
