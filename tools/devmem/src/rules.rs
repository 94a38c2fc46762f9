// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Rules by which a NIC gives flows to queues, by the ioctl that `ethtool -N` uses. Generic netlink has none for them.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt;
use std::fmt::Write;
use std::io;
use std::mem;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use nix::net::if_::if_indextoname;

const SIOCETHTOOL: libc::Ioctl = 0x8946;

const ETHTOOL_GRXCLSRLCNT: u32 = 0x2e;
const ETHTOOL_GRXCLSRULE: u32 = 0x2f;
const ETHTOOL_GRXCLSRLALL: u32 = 0x30;
const ETHTOOL_SRXCLSRLDEL: u32 = 0x31;
const ETHTOOL_SRXCLSRLINS: u32 = 0x32;
/// The driver chooses the place, and says that it does.
const RX_CLS_LOC_ANY: u32 = u32::MAX;
const RX_CLS_LOC_SPECIAL: u64 = 1 << 31;

/// How often the list of rules is asked for, if others make some meanwhile.
const TRIES: usize = 10;

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Version {
    /// The number of TCP flows' type, and where such a flow has its destination port.
    fn layout(self) -> (u32, usize) {
        match self {
            Self::V4 => (1, 10),
            Self::V6 => (5, 34),
        }
    }
}

/// The flows to a TCP port by one version of IP, and the queue that is to receive them. It is shown as
/// `tcp4 port 5201 to queue 4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// By which they come.
    pub version: Version,
    /// Where they go.
    pub port: u16,
    /// Who receives them.
    pub queue: u32,
}

impl Flow {
    /// Those by which connections to this address of a socket come: by IPv4, by IPv6, or by both for `[::]`.
    pub fn to(address: SocketAddr, queue: u32) -> impl Iterator<Item = Self> {
        let versions: &[Version] = match address.ip() {
            IpAddr::V4(_) => &[Version::V4],
            // An address of IPv4, in the notation of a socket of IPv6.
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => &[Version::V4],
            // All of this machine, of IPv4 too.
            IpAddr::V6(ip) if ip.is_unspecified() => &[Version::V6, Version::V4],
            IpAddr::V6(_) => &[Version::V6],
        };
        versions.iter().map(move |&version| Self {
            version,
            port: address.port(),
            queue,
        })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = match self.version {
            Version::V4 => 4,
            Version::V6 => 6,
        };
        write!(f, "tcp{version} port {} to queue {}", self.port, self.queue)
    }
}

/// `struct ethtool_rx_flow_spec`, the fields of the flow as bytes.
#[derive(Clone)]
#[repr(C)]
struct Spec {
    flow_type: u32,
    fields: [u8; 52],
    more_fields: [u8; 20],
    masks: [u8; 52],
    more_masks: [u8; 20],
    ring: u64,
    location: u32,
}

impl Spec {
    /// Any rule, at a place.
    fn at(location: u32) -> Self {
        Self {
            flow_type: 0,
            fields: [0; 52],
            more_fields: [0; 20],
            masks: [0; 52],
            more_masks: [0; 20],
            ring: 0,
            location,
        }
    }

    fn of(flow: Flow, location: u32) -> Self {
        let (flow_type, at) = flow.version.layout();
        let mut spec = Self {
            flow_type,
            ring: flow.queue.into(),
            ..Self::at(location)
        };
        spec.fields[at..at + 2].copy_from_slice(&flow.port.to_be_bytes());
        spec.masks[at..at + 2].fill(0xff);
        spec
    }

    /// The flow, if it is one by its port only.
    fn flow(&self) -> Option<Flow> {
        let queue = u32::try_from(self.ring).ok()?;
        [Version::V4, Version::V6].into_iter().find_map(|version| {
            let (flow_type, at) = version.layout();
            let port = u16::from_be_bytes([self.fields[at], self.fields[at + 1]]);
            let flow = Flow {
                version,
                port,
                queue,
            };
            let same = Self::of(flow, self.location);
            // What is masked out does not matter.
            (self.flow_type == flow_type
                && self.masks == same.masks
                && self.more_masks == same.more_masks)
                .then_some(flow)
        })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(flow) = self.flow() {
            return flow.fmt(f);
        }
        let hex = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut text, byte| {
                // Writing to a string cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        write!(
            f,
            "type {:#x} fields {}{} masks {}{} action {:#x}",
            self.flow_type,
            hex(&self.fields),
            hex(&self.more_fields),
            hex(&self.masks),
            hex(&self.more_masks),
            self.ring
        )
    }
}

/// `struct ethtool_rxnfc`.
#[repr(C)]
struct Request {
    cmd: u32,
    unused: u32,
    data: u64,
    spec: Spec,
    count: u32,
}

// As C lays it out, on machines that align numbers of 64 bits, and on those that do not.
const _: () = assert!(
    mem::offset_of!(Request, count)
        == match align_of::<u64>() {
            8 => 184,
            _ => 176,
        }
);

impl Request {
    /// Numbers before the list of places, which begins right after `count`.
    const HEAD: usize = mem::offset_of!(Request, count) / size_of::<u32>() + 1;
    /// All of them.
    const WORDS: usize = size_of::<Self>() / size_of::<u32>();

    fn new(cmd: u32, spec: Spec) -> Self {
        Self {
            cmd,
            unused: 0,
            data: 0,
            spec,
            count: 0,
        }
    }
}

/// The rules of a device of the calling thread's network namespace.
pub(crate) struct Rules {
    socket: UnixDatagram,
    ifindex: u32,
}

impl Rules {
    pub(crate) fn of(ifindex: u32) -> io::Result<Self> {
        // Any socket will do.
        let socket = UnixDatagram::unbound()?;
        Ok(Self { socket, ifindex })
    }

    /// All of them by their places, as they are shown.
    pub(crate) fn list(&self) -> io::Result<BTreeMap<u32, String>> {
        let mut rules = BTreeMap::new();
        for place in self.places()?.1 {
            match self.shown(place) {
                Ok(text) => drop(rules.insert(place, text)),
                // Somebody has removed it meanwhile.
                Err(err) if is_missing(&err) => (),
                Err(err) => return Err(err),
            }
        }
        Ok(rules)
    }

    /// How the rule at a place is shown.
    fn shown(&self, place: u32) -> io::Result<String> {
        let mut request = Request::new(ETHTOOL_GRXCLSRULE, Spec::at(place));
        self.ethtool(&mut request)?;
        Ok(request.spec.to_string())
    }

    /// Makes one; returns its place.
    pub(crate) fn add(&self, flow: Flow) -> io::Result<u32> {
        let (counted, _) = self.counted()?;
        let place = match counted & RX_CLS_LOC_SPECIAL {
            0 => self.free_place()?,
            _ => RX_CLS_LOC_ANY,
        };
        let mut request = Request::new(ETHTOOL_SRXCLSRLINS, Spec::of(flow, place));
        self.ethtool(&mut request)?;
        Ok(request.spec.location)
    }

    /// Removes the one at a place.
    pub(crate) fn remove(&self, place: u32) -> io::Result<()> {
        self.ethtool(&mut Request::new(ETHTOOL_SRXCLSRLDEL, Spec::at(place)))
    }

    /// The last place that is free: where there are several rules for a packet the first counts.
    fn free_place(&self) -> io::Result<u32> {
        let (size, taken) = self.places()?;
        (0..size)
            .rev()
            .find(|place| !taken.contains(place))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))
    }

    /// What the driver says besides of its rules, and how many there are.
    fn counted(&self) -> io::Result<(u64, usize)> {
        let mut request = Request::new(ETHTOOL_GRXCLSRLCNT, Spec::at(0));
        self.ethtool(&mut request)?;
        Ok((request.data, request.count as usize))
    }

    /// How many rules there is room for, and the places of those that there are.
    fn places(&self) -> io::Result<(u32, Vec<u32>)> {
        settled(|| Ok(self.counted()?.1), |count| self.listed(count))
    }

    /// The same, of the first `count`.
    fn listed(&self, count: usize) -> io::Result<(u32, Vec<u32>)> {
        // No less than what the kernel reads and writes of it in any case.
        let size = (Request::HEAD + count).max(Request::WORDS);
        let mut words = vec![0; size];
        words[0] = ETHTOOL_GRXCLSRLALL;
        // `count` was a number of 32 bits.
        words[Request::HEAD - 1] = u32::try_from(count).map_err(io::Error::other)?;
        self.ethtool_words(&mut words)?;
        let data = mem::offset_of!(Request, data) / size_of::<u32>();
        let [low, high] = [words[data], words[data + 1]].map(u64::from);
        let room = if cfg!(target_endian = "little") {
            low | high << 32
        } else {
            low << 32 | high
        };
        let room = u32::try_from(room & !RX_CLS_LOC_SPECIAL).unwrap_or(u32::MAX);
        let found = (words[Request::HEAD - 1] as usize).min(count);
        Ok((room, words[Request::HEAD..][..found].to_vec()))
    }

    fn ethtool(&self, request: &mut Request) -> io::Result<()> {
        assert_ne!(request.cmd, ETHTOOL_GRXCLSRLALL);
        // SAFETY: It is all that the commands read and write, but for that of a list, which this is not.
        unsafe { self.ioctl((&raw mut *request).cast()) }
    }

    /// Like [`ethtool`](Self::ethtool), for a request that a list follows.
    fn ethtool_words(&self, words: &mut [u32]) -> io::Result<()> {
        let listed = Request::HEAD + words[Request::HEAD - 1] as usize;
        assert!(words.len() >= listed.max(Request::WORDS));
        // SAFETY: It is as long as a request, and as the list that it asks for.
        unsafe { self.ioctl(words.as_mut_ptr().cast()) }
    }

    /// # Safety
    ///
    /// `command` has to be a command of `ethtool`, with all the memory that this reads and writes.
    unsafe fn ioctl(&self, command: *mut libc::c_char) -> io::Result<()> {
        let name = if_indextoname(self.ifindex)?;
        let mut request = request_of(&name);
        request.ifr_ifru.ifru_data = command;
        // SAFETY: The request is valid, and by our contract so is what it points to.
        match unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// A list that did not change while it was made, `counted` before and after it. One that did has something else at its
/// end, or not all: drivers stop at the count, differ in how they tell that there is more, and some take it for an
/// error that there is less.
fn settled<T>(
    counted: impl Fn() -> io::Result<usize>,
    listed: impl Fn(usize) -> io::Result<(T, Vec<u32>)>,
) -> io::Result<(T, Vec<u32>)> {
    let mut last = io::Error::from_raw_os_error(libc::EAGAIN);
    for _ in 0..TRIES {
        let count = counted()?;
        match listed(count) {
            Ok(list) if list.1.len() == count && counted()? == count => return Ok(list),
            Ok(_) => {}
            Err(err) if matches!(err.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL)) => {
                last = err;
            }
            Err(err) => return Err(err),
        }
    }
    Err(last)
}

/// A request for the device of this name.
fn request_of(name: &CStr) -> libc::ifreq {
    // SAFETY: All-zero is a valid ifreq: an empty name and null pointers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last one stays 0.
    let room = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
    for (to, from) in room.zip(name.to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request
}

/// Whether there is no such rule: drivers differ in how they say that.
pub(crate) fn is_missing(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::ENOENT | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cell::RefCell;

    use super::*;

    fn flows(to: &str) -> Vec<String> {
        Flow::to(to.parse().unwrap(), 4)
            .map(|flow| flow.to_string())
            .collect()
    }

    #[test]
    fn both_versions_of_ip_come_to_a_socket_that_takes_both() {
        let (v4, v6) = ("tcp4 port 5201 to queue 4", "tcp6 port 5201 to queue 4");
        for (to, expected) in [
            ("192.0.2.1", &[v4][..]),
            ("0.0.0.0", &[v4]),
            ("[::ffff:192.0.2.1]", &[v4]),
            ("[::ffff:0.0.0.0]", &[v4]),
            ("[2001:db8::1]", &[v6]),
            ("[::1]", &[v6]),
            ("[::]", &[v6, v4]),
        ] {
            assert_eq!(flows(&format!("{to}:5201")), expected, "{to}");
        }
    }

    #[test]
    fn a_rule_is_shown_as_the_flow_that_it_is_for() {
        for version in [Version::V4, Version::V6] {
            let flow = Flow {
                version,
                port: 0x1234,
                queue: 7,
            };
            let mut spec = Spec::of(flow, 3);
            assert_eq!(spec.flow(), Some(flow));
            // What is masked out.
            spec.fields[0] = 192;
            assert_eq!(spec.to_string(), flow.to_string());

            let changes: [fn(&mut Spec); 5] = [
                |spec| spec.masks[0] = 0xff,
                |spec| spec.more_masks[19] = 1,
                |spec| spec.masks[..36].fill(0),
                |spec| spec.flow_type |= 1 << 31,
                |spec| spec.ring = u64::MAX,
            ];
            for change in changes {
                let mut other = spec.clone();
                change(&mut other);
                assert_eq!(other.flow(), None);
                assert_ne!(other.to_string(), spec.to_string());
            }
        }
    }

    /// The places by a driver that lists from the first one on, and whose rules change when it is asked for the nth time.
    fn places(changes: &dyn Fn(usize, &mut Vec<u32>)) -> io::Result<Vec<u32>> {
        let asked = Cell::new(0);
        let rules = RefCell::new(vec![1023]);
        let ask = || {
            let mut rules = rules.borrow_mut();
            changes(asked.replace(asked.get() + 1), &mut rules);
            rules.clone()
        };
        let listed = |count: usize| match ask().get(..count) {
            Some(first) => Ok(((), first.to_vec())),
            None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        settled(|| Ok(ask().len()), listed).map(|((), places)| places)
    }

    #[test]
    fn a_rule_that_somebody_makes_or_removes_meanwhile_hides_none() {
        assert_eq!(places(&|_, _| ()).unwrap(), [1023]);
        for when in 1..=2 {
            let made = |asked: usize, rules: &mut Vec<u32>| {
                if asked == when {
                    rules.insert(0, 1022);
                }
            };
            assert_eq!(places(&made).unwrap(), [1022, 1023], "{when}");
            let removed = |asked: usize, rules: &mut Vec<u32>| {
                if asked == when {
                    rules.clear();
                }
            };
            assert_eq!(places(&removed).unwrap(), [0; 0], "{when}");
        }
        // Who never comes to an end has to say so.
        let always = |_, rules: &mut Vec<u32>| rules.push(7);
        let err = places(&always).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::EAGAIN));
    }

    #[test]
    fn a_device_that_is_not_there_has_no_rules() {
        let rules = Rules::of(u32::MAX >> 1).unwrap();
        let err = rules.list().unwrap_err();
        let errno = err.raw_os_error();
        assert!(matches!(errno, Some(libc::ENODEV | libc::ENXIO)), "{err}");
    }
}
