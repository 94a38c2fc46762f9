// SPDX-License-Identifier: GPL-2.0

//! Setting up network devices by ioctl().
//!
//! The programs `ip` and `ethtool` do the same, but starting one takes the emulated guest a third of a
//! second, and the tests need some hundreds.

use std::fmt;
use std::fs;
use std::io;
use std::io::ErrorKind;
use std::mem;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::str::FromStr;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const SIOCSARP: libc::Ioctl = 0x8955;
const ATF_COM: i32 = 2;
const ATF_PERM: i32 = 4;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_SRINGPARAM: u32 = 0x11;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_SSG: u32 = 0x19;
const ETHTOOL_TEST: u32 = 0x1a;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGSO: u32 = 0x24;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
const ETHTOOL_GTUNABLE: u32 = 0x48;
const ETHTOOL_STUNABLE: u32 = 0x49;
const ETHTOOL_RX_COPYBREAK: u32 = 1;
const ETHTOOL_TUNABLE_U32: u32 = 3;
const ETHTOOL_SRXCLSRLDEL: u32 = 0x31;
const ETHTOOL_SRXCLSRLINS: u32 = 0x32;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GRXFHINDIR: u32 = 0x38;
const ETHTOOL_SRXFHINDIR: u32 = 0x39;
const ETHTOOL_GRSSH: u32 = 0x46;
const ETHTOOL_SRSSH: u32 = 0x47;
const ETH_SS_STATS: u32 = 1;
const ETH_GSTRING_LEN: usize = 32;
const RX_CLS_LOC_ANY: u32 = u32::MAX;

/// `struct in6_ifreq`.
#[repr(C)]
struct In6Ifreq {
    address: [u8; 16],
    prefix_len: u32,
    ifindex: u32,
}

/// `struct ethtool_rxnfc`, the flow's fields as bytes.
#[repr(C)]
struct RxFlow {
    cmd: u32,
    unused: u32,
    data: u64,
    flow_type: u32,
    fields: [u8; 52],
    more_fields: [u8; 20],
    masks: [u8; 52],
    more_masks: [u8; 20],
    ring: u64,
    location: u32,
    padding: u32,
    rule_count: u32,
}

impl RxFlow {
    fn new(cmd: u32, location: u32) -> Self {
        Self {
            cmd,
            unused: 0,
            data: 0,
            flow_type: 0,
            fields: [0; 52],
            more_fields: [0; 20],
            masks: [0; 52],
            more_masks: [0; 20],
            ring: 0,
            location,
            padding: 0,
            rule_count: 0,
        }
    }
}

/// How a device spreads flows by itself: `struct ethtool_rxfh`, which has six words, its table, and its key.
#[derive(Clone, Debug)]
pub(crate) struct Rss(Vec<u32>);

impl Rss {
    const HEAD: usize = 6;
    /// The index into the table has so many bits, of that end of the hash.
    const INDEX_BITS: u32 = 7;

    /// Bits of the key, by which the last bits of a TCP packet's hash are those of its destination port, in reverse:
    /// over IPv4, and over IPv6 from an address that has zeros before its last seven bits. The hash of all else is 0.
    const KEY_BITS: [usize; 2] = [120, 312];

    fn entries(&self) -> usize {
        self.0[2] as usize
    }

    fn key(&mut self) -> &mut [u32] {
        let at = Self::HEAD + self.entries();
        &mut self.0[at..]
    }

    fn entry_of(port: u16) -> usize {
        let bits = port % (1 << Self::INDEX_BITS);
        (bits.reverse_bits() >> (u16::BITS - Self::INDEX_BITS)).into()
    }

    /// Has a queue receive a port, and 127 others, and the first one all that nobody has steered. That is for NICs which
    /// have no rules for ports.
    pub(crate) fn steer(&mut self, port: u16, queue: u32) {
        let mut key = [0; 40];
        for bit in Self::KEY_BITS {
            key[bit / 8] |= 0x80 >> (bit % 8);
        }
        let key: Vec<u32> = key
            .chunks_exact(4)
            .map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
            .collect();
        if *self.key() != key {
            self.key().copy_from_slice(&key);
            let end = Self::HEAD + self.entries();
            self.0[Self::HEAD..end].fill(0);
        }
        self.0[Self::HEAD + Self::entry_of(port)] = queue;
    }
}

/// Its words, for another process.
impl fmt::Display for Rss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&words.join(" "))
    }
}

impl FromStr for Rss {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let words: Result<Vec<_>, _> = text.split(' ').map(str::parse).collect();
        Ok(Self(words.map_err(io::Error::other)?))
    }
}

/// Flows by the destination port of TCP.
#[derive(Clone, Copy, Debug)]
pub enum Flow {
    /// Over IPv4.
    Tcp4,
    /// Over IPv6.
    Tcp6,
}

impl Flow {
    /// The number of the flow's type, and where it has its destination port.
    fn layout(self) -> (u32, usize) {
        match self {
            Self::Tcp4 => (1, 10),
            Self::Tcp6 => (5, 34),
        }
    }
}

/// What a device does, or the stack for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Checksums of what is sent, by the device.
    Checksums,
    /// Packets to be sent may lie in several places.
    ScatterGather,
    /// Received segments are merged.
    Gro,
}

/// A device of the calling thread's network namespace.
pub(crate) struct Interface {
    socket: UdpSocket,
    name: String,
}

impl Interface {
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        // Any socket will do; one that is bound to nothing in particular always can be had.
        Ok(Self {
            socket: UdpSocket::bind("0.0.0.0:0")?,
            name: name.to_owned(),
        })
    }

    fn ifreq(&self) -> libc::ifreq {
        // SAFETY: All-zero is a valid ifreq: an empty name and null pointers.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request
            .ifr_name
            .iter_mut()
            .take(libc::IFNAMSIZ - 1)
            .zip(self.name.bytes())
        {
            *to = from as libc::c_char;
        }
        request
    }

    fn ioctl(&self, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        ioctl(&self.socket, number, request)
    }

    fn ethtool<T>(&self, command: &mut T) -> io::Result<()> {
        let mut request = self.ifreq();
        request.ifr_ifru.ifru_data = (&raw mut *command).cast();
        self.ioctl(SIOCETHTOOL, &mut request)
    }

    /// Like [`ethtool`](Self::ethtool), for a command of words that an array follows.
    fn ethtool_words<T>(&self, words: &mut [T]) -> io::Result<()> {
        let mut request = self.ifreq();
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        self.ioctl(SIOCETHTOOL, &mut request)
    }

    fn flags(&self) -> io::Result<libc::c_short> {
        let mut request = self.ifreq();
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS has just set this field.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    pub(crate) fn is_up(&self) -> io::Result<bool> {
        Ok(self.flags()? & libc::IFF_UP as libc::c_short != 0)
    }

    /// Whether the device is up and has a link.
    pub(crate) fn has_link(&self) -> io::Result<bool> {
        Ok(self.flags()? & libc::IFF_RUNNING as libc::c_short != 0)
    }

    pub(crate) fn set_up(&self, up: bool) -> io::Result<()> {
        let mut request = self.ifreq();
        let flags = self.flags()?;
        let bit = libc::IFF_UP as libc::c_short;
        request.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    pub(crate) fn mtu(&self) -> io::Result<u32> {
        let mut request = self.ifreq();
        self.ioctl(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: SIOCGIFMTU has just set this field.
        Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
    }

    pub(crate) fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        let mut request = self.ifreq();
        request.ifr_ifru.ifru_mtu = mtu as i32;
        self.ioctl(libc::SIOCSIFMTU, &mut request)
    }

    /// Gives the device an address in a network of 24 bits.
    pub(crate) fn set_ipv4(&self, address: Ipv4Addr) -> io::Result<()> {
        for (number, address) in [
            (libc::SIOCSIFADDR, address),
            (libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0)),
        ] {
            let mut request = self.ifreq();
            // Family, port, address: the head of a sockaddr_in.
            let data = &mut request.ifr_ifru;
            // SAFETY: A sockaddr is plain bytes, and the zeroes it was made of are a valid one.
            let sockaddr = unsafe { &mut data.ifru_addr };
            sockaddr.sa_family = libc::AF_INET as libc::sa_family_t;
            for (to, from) in sockaddr.sa_data[2..].iter_mut().zip(address.octets()) {
                *to = from as libc::c_char;
            }
            self.ioctl(number, &mut request)?;
        }
        Ok(())
    }

    /// Gives the device an address in a network of 64 bits, to be used at once.
    pub(crate) fn set_ipv6(&self, ifindex: u32, address: Ipv6Addr) -> io::Result<()> {
        fs::write(
            format!("/proc/sys/net/ipv6/conf/{}/accept_dad", self.name),
            "0",
        )?;
        let socket = UdpSocket::bind("[::]:0")?;
        let mut request = In6Ifreq {
            address: address.octets(),
            prefix_len: 64,
            ifindex,
        };
        ioctl(&socket, libc::SIOCSIFADDR, &mut request)
    }

    /// Makes a permanent entry of the neighbour table.
    pub(crate) fn add_neighbour(&self, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
        // SAFETY: All-zero is a valid arpreq.
        let mut request: libc::arpreq = unsafe { mem::zeroed() };
        let bytes = |to: &mut [libc::c_char], from: &[u8]| {
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from as libc::c_char;
            }
        };
        request.arp_pa.sa_family = libc::AF_INET as libc::sa_family_t;
        bytes(&mut request.arp_pa.sa_data[2..], &address.octets());
        request.arp_ha.sa_family = libc::ARPHRD_ETHER;
        bytes(&mut request.arp_ha.sa_data, &mac);
        request.arp_flags = ATF_COM | ATF_PERM;
        bytes(&mut request.arp_dev, self.name.as_bytes());
        ioctl(&self.socket, SIOCSARP, &mut request)
    }

    /// Switches segmentation offload.
    pub(crate) fn set_offload(&self, on: bool) -> io::Result<()> {
        self.set_tso(on)?;
        self.ethtool(&mut [ETHTOOL_SGSO, on.into()])
    }

    /// How many queues there are that receive and transmit.
    pub(crate) fn channels(&self) -> io::Result<u32> {
        Ok(self.channel_parameters()?[8])
    }

    /// Sets the number of queues, which receive and transmit.
    pub(crate) fn set_channels(&self, count: u32) -> io::Result<()> {
        let mut channels = self.channel_parameters()?;
        (channels[0], channels[8]) = (ETHTOOL_SCHANNELS, count);
        self.ethtool(&mut channels)
    }

    /// `struct ethtool_channels`: the command, four limits, and four counts, the last of which is of those that do both.
    fn channel_parameters(&self) -> io::Result<[u32; 9]> {
        let mut channels = [0; 9];
        channels[0] = ETHTOOL_GCHANNELS;
        self.ethtool(&mut channels)?;
        Ok(channels)
    }

    /// How many descriptors the receive and transmit rings have.
    pub(crate) fn ring_sizes(&self) -> io::Result<(u32, u32)> {
        let rings = self.ring_parameters()?;
        Ok((rings[5], rings[8]))
    }

    /// Has them have so many.
    pub(crate) fn set_ring_sizes(&self, rx: u32, tx: u32) -> io::Result<()> {
        let mut rings = self.ring_parameters()?;
        (rings[0], rings[5], rings[8]) = (ETHTOOL_SRINGPARAM, rx, tx);
        self.ethtool(&mut rings)
    }

    /// `struct ethtool_ringparam`: the command, four limits, and four sizes.
    fn ring_parameters(&self) -> io::Result<[u32; 9]> {
        let mut rings = [0; 9];
        rings[0] = ETHTOOL_GRINGPARAM;
        self.ethtool(&mut rings)?;
        Ok(rings)
    }

    /// Has the device test itself, for which it leaves the network. Tells whether it is well.
    pub(crate) fn test_itself(&self) -> io::Result<bool> {
        const OFFLINE: u32 = 1;
        const FAILED: u32 = 2;
        const SET: u64 = 0;
        // struct ethtool_sset_info, whose mask is of 64 bits: how many results there are, which the kernel does not ask.
        let mut info = [ETHTOOL_GSSET_INFO.into(), 1 << SET, 0];
        self.ethtool_words::<u64>(&mut info)?;
        let results = (info[2] & u64::from(u32::MAX)) as usize;
        // struct ethtool_test, and a result of 64 bits for each.
        let mut test = vec![0; 4 + 2 * results];
        (test[0], test[1]) = (ETHTOOL_TEST, OFFLINE);
        self.ethtool_words(&mut test)?;
        Ok(test[1] & FAILED == 0)
    }

    /// Switches a feature.
    pub(crate) fn set_feature(&self, feature: Feature, on: bool) -> io::Result<()> {
        let command = match feature {
            Feature::Checksums => ETHTOOL_STXCSUM,
            Feature::ScatterGather => ETHTOOL_SSG,
            Feature::Gro => ETHTOOL_SGRO,
        };
        self.ethtool(&mut [command, on.into()])
    }

    /// Switches segmentation by the device.
    pub(crate) fn set_tso(&self, on: bool) -> io::Result<()> {
        self.ethtool(&mut [ETHTOOL_STSO, on.into()])
    }

    /// Says up to how many bytes of payload stay in host memory although headers are split.
    pub(crate) fn set_rx_copybreak(&self, bytes: u32) -> io::Result<()> {
        self.rx_copybreak_tunable(ETHTOOL_STUNABLE, bytes).map(drop)
    }

    /// Tells up to how many bytes that is.
    pub(crate) fn rx_copybreak(&self) -> io::Result<u32> {
        self.rx_copybreak_tunable(ETHTOOL_GTUNABLE, u32::MAX)
    }

    fn rx_copybreak_tunable(&self, command: u32, value: u32) -> io::Result<u32> {
        // struct ethtool_tunable: the command, which one it is, its type and size. The value follows.
        let id = ETHTOOL_RX_COPYBREAK;
        let mut tunable = [command, id, ETHTOOL_TUNABLE_U32, 4, value];
        self.ethtool(&mut tunable)?;
        Ok(tunable[4])
    }

    /// Has a queue receive all flows that nothing else steers.
    pub(crate) fn receive_by_queue(&self, queue: u32) -> io::Result<()> {
        // struct ethtool_rxfh_indir: the command, the size of the table, and the table.
        let mut size = [ETHTOOL_GRXFHINDIR, 0];
        self.ethtool(&mut size)?;
        let mut table = vec![queue; 2 + size[1] as usize];
        table[0] = ETHTOOL_SRXFHINDIR;
        table[1] = size[1];
        self.ethtool_words(&mut table)
    }

    /// Spreads flows that nothing else steers as the driver does by itself.
    pub(crate) fn receive_by_default(&self) -> io::Result<()> {
        self.ethtool(&mut [ETHTOOL_SRXFHINDIR, 0])
    }

    /// Has a queue receive all flows to a port. Returns where that rule is.
    pub(crate) fn steer(&self, flow: Flow, port: u16, queue: u32) -> io::Result<u32> {
        self.steer_at(RX_CLS_LOC_ANY, flow, port, queue)
    }

    /// The same by the rule at a location, which replaces the one there.
    pub(crate) fn steer_at(
        &self,
        location: u32,
        flow: Flow,
        port: u16,
        queue: u32,
    ) -> io::Result<u32> {
        let (flow_type, at) = flow.layout();
        let mut rule = RxFlow {
            flow_type,
            ring: queue.into(),
            ..RxFlow::new(ETHTOOL_SRXCLSRLINS, location)
        };
        rule.fields[at..at + 2].copy_from_slice(&port.to_be_bytes());
        rule.masks[at..at + 2].copy_from_slice(&[0xff; 2]);
        self.ethtool(&mut rule)?;
        Ok(rule.location)
    }

    /// How flows are spread that nothing else steers.
    pub(crate) fn rss(&self) -> io::Result<Rss> {
        let mut head = [ETHTOOL_GRSSH, 0, 0, 0, 0, 0];
        self.ethtool(&mut head)?;
        let (entries, key) = (head[2], head[3]);
        if (entries, key) != (1 << Rss::INDEX_BITS, 40) {
            return Err(io::Error::other(format!(
                "an RSS table of {entries}, and a key of {key} bytes"
            )));
        }
        let mut words = vec![0; Rss::HEAD + entries as usize + key as usize / 4];
        words[..4].copy_from_slice(&[ETHTOOL_GRSSH, 0, entries, key]);
        self.ethtool_words(&mut words)?;
        Ok(Rss(words))
    }

    /// Has them spread like that.
    pub(crate) fn set_rss(&self, rss: &Rss) -> io::Result<()> {
        let mut words = rss.0.clone();
        words[0] = ETHTOOL_SRSSH;
        // The function stays what it is.
        words[4] = 0;
        self.ethtool_words(&mut words)
    }

    /// Removes the rule at a location.
    pub(crate) fn unsteer(&self, location: u32) -> io::Result<()> {
        self.ethtool(&mut RxFlow::new(ETHTOOL_SRXCLSRLDEL, location))
    }

    /// A counter as `ethtool -S` shows it.
    pub(crate) fn counter(&self, name: &str) -> io::Result<u64> {
        let head = |command: u32, second: u32| u64::from(command) | u64::from(second) << 32;

        // struct ethtool_sset_info: the mask of sets, then how many strings each has.
        let mut info = [head(ETHTOOL_GSSET_INFO, 0), 1 << ETH_SS_STATS, 0];
        self.ethtool_words(&mut info)?;
        let count = info[2] as u32 as usize;

        // struct ethtool_gstrings, 12 bytes of it before the strings.
        let mut strings = vec![0; 2 + count * ETH_GSTRING_LEN / 8];
        strings[0] = head(ETHTOOL_GSTRINGS, ETH_SS_STATS);
        strings[1] = count as u64;
        self.ethtool_words(&mut strings)?;
        let bytes: Vec<u8> = strings.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let index = bytes[12..]
            .chunks_exact(ETH_GSTRING_LEN)
            .position(|string| string.split(|&byte| byte == 0).next() == Some(name.as_bytes()))
            .ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("no counter {name}")))?;

        // struct ethtool_stats, 8 bytes of it before the numbers.
        let mut stats = vec![0; 1 + count];
        stats[0] = head(ETHTOOL_GSTATS, count as u32);
        self.ethtool_words(&mut stats)?;
        Ok(stats[1 + index])
    }
}

/// An ioctl() on a network device. The type has to be the one that `number` asks for.
fn ioctl<T>(socket: &UdpSocket, number: libc::Ioctl, request: &mut T) -> io::Result<()> {
    // SAFETY: `request` is valid for reading and writing, and so is what it points to: the callers in
    // this file set it to a command of their own, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw mut *request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

// As C lays out struct ethtool_rxnfc.
const _: () = assert!(size_of::<RxFlow>() == 192);
const _: () = assert!(mem::offset_of!(RxFlow, ring) == 168);

#[cfg(test)]
mod tests {
    use super::*;

    /// Toeplitz's hash, as NICs have it.
    fn hash(key: &[u32], input: &[u8]) -> u32 {
        let key: Vec<u8> = key.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1 == 1;
        (0..input.len() * 8)
            .filter(|&at| bit(input, at))
            .map(|at| (at..at + 32).fold(0, |window, at| window << 1 | u32::from(bit(&key, at))))
            .fold(0, |hash, window| hash ^ window)
    }

    #[test]
    fn ports_reach_their_queues_by_the_key() {
        let mut rss = Rss(vec![3; Rss::HEAD + 128 + 10]);
        rss.0[2] = 128;
        rss.steer(5001, 1);
        rss.steer(5002, 2);
        let mut queue = |addresses: &[u8], port: u16| {
            let mut input = addresses.to_vec();
            input.extend(40000_u16.to_be_bytes());
            input.extend(port.to_be_bytes());
            let at = hash(rss.key(), &input) % 128;
            rss.0[Rss::HEAD + at as usize]
        };
        let v4 = [192, 0, 2, 2, 192, 0, 2, 1];
        let v6 = |host: &str| host.parse::<Ipv6Addr>().expect("an address").octets();
        let v6 = [v6("2001:db8:1::2"), v6("2001:db8:1::1")].concat();
        for addresses in [&v4[..], &v6] {
            assert_eq!(queue(addresses, 5001), 1);
            assert_eq!(queue(addresses, 5002), 2);
            assert_eq!(queue(addresses, 5003), 0);
            assert_eq!(queue(addresses, 5001 + 128), 1);
        }
        assert_eq!(hash(rss.key(), &v4), 0);
    }

    #[test]
    fn another_process_learns_of_it() {
        let rss = Rss((0..Rss::HEAD as u32 + 138).collect());
        let learnt: Rss = rss.to_string().parse().expect("what was told");
        assert_eq!(learnt.0, rss.0);
        assert!("1 2 x".parse::<Rss>().is_err());
    }
}
