// SPDX-License-Identifier: GPL-2.0

//! Two netdevsim devices joined by a cable, each in a network namespace of its own; or a NIC that was given, and its
//! other end.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process;
use std::process::Command;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use devmem::BindRx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::Error;
use devmem::errno_of;
use devmem::ethtool::Ethtool;
use devmem::ethtool::Rings;
use devmem::netdev::Netdev;
use devmem::netdev::Queue;
use devmem::netlink::Attrs;
use devmem::netns::Netns;
use nix::ifaddrs::getifaddrs;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::net::if_::if_nameindex;
use nix::net::if_::if_nametoindex;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use nix::sys::socket::SockaddrStorage;

use crate::hardware;
pub use crate::hardware::Ip;
use crate::hardware::Nic;
use crate::hardware::Way;
pub use crate::ifctl::Feature;
use crate::ifctl::Flow;
use crate::ifctl::Interface;
use crate::ifctl::Rss;
use crate::keeper;
use crate::netkit_link;
use crate::netlink;
use crate::provider;
use crate::report;
use crate::report::reason_to_skip;
use crate::sockopt;
use crate::wait;

const BUS: &str = "/sys/bus/netdevsim";
const PAGE: usize = 4096;
/// How many queues a new device has.
pub const QUEUES: u32 = 8;
/// How many of a NIC that was given tests use, the first one included.
const QUEUES_NEEDED: u32 = 3;
/// What is noted when a NIC was put back.
const RESTORED: &str = "restored";
/// How a NIC that was given is called in what is noted, and its other end.
const GIVEN: &str = "given";
const OTHER: &str = "other";
/// How long a NIC may take to have its link again.
const LINK: Duration = Duration::from_secs(20);
/// Nothing in a test takes a socket longer than this.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);

/// Bus ids of the devices that this process made.
static DEVICES: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Deletes whatever devices are left, for when the process has to end at once.
pub(crate) fn delete_all() {
    let ids = std::mem::take(&mut *DEVICES.lock().unwrap_or_else(PoisonError::into_inner));
    for id in ids {
        // Some may be gone already.
        let _ = bus("del_device", &id.to_string());
    }
}

/// Has a NIC that was given, and its other end, put back as they are now, whatever ends this program.
pub(crate) fn keep() -> io::Result<()> {
    match hardware::given()? {
        Some(nic) => keeper::start(|| Ok([End::given(nic)?, End::other(nic)?]), learn),
        None => Ok(()),
    }
}

/// Learns of what another process has noted of a NIC and its other end.
fn learn([given, other]: &[End; 2], change: &str) -> io::Result<()> {
    match change.split_once(' ') {
        Some((GIVEN, change)) => given.learn(change),
        Some((OTHER, change)) => other.learn(change),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

/// Whether devices can have device memory. Who says by the environment where modules are knows that.
pub(crate) fn has_device_memory() -> io::Result<bool> {
    if env::var_os("NETDEVSIM_DIR").is_some() {
        return Ok(true);
    }
    let memory = DmaBuf::udmabuf(PAGE)?;
    let pair = match Pair::new() {
        // The driver splits no headers, or has no rings at all.
        Err(err) if errno_of(&err) == Some(libc::EOPNOTSUPP) => return Ok(false),
        pair => pair?,
    };
    match pair.rx.ns.run(|| Ok(pair.request(&[1]).bind(&memory)))? {
        Err(err) if err.errno() == Some(libc::EOPNOTSUPP) => Ok(false),
        // Whatever else is wrong is for the tests to tell.
        _ => Ok(true),
    }
}

/// Where other processes find a namespace.
pub(crate) fn path_of(ns: &Netns) -> String {
    format!("/proc/{}/fd/{}", process::id(), ns.as_fd().as_raw_fd())
}

fn bus(file: &str, text: &str) -> io::Result<()> {
    fs::write(format!("{BUS}/{file}"), text)
        .map_err(|err| io::Error::new(err.kind(), format!("{text:?} to {file}: {err}")))
}

/// What was done to a NIC that was not made for the test, but to its rings.
#[derive(Debug, Default)]
struct Changes {
    /// Where rules were made.
    rules: BTreeSet<u32>,
    /// What flows were spread by before.
    rss: Option<Rss>,
}

/// What such a NIC was like, and what has changed since.
#[derive(Debug)]
struct Before {
    rings: Rings,
    mtu: u32,
    /// How long its rings were, and how many there were. `None` where a device tells nothing of that.
    ring_sizes: Option<(u32, u32)>,
    channels: Option<u32>,
    changes: Mutex<Changes>,
}

impl Before {
    fn of(ns: &Netns, ifindex: u32, ifname: &str) -> io::Result<Self> {
        ns.run(|| {
            let interface = Interface::new(ifname)?;
            Ok(Self {
                rings: Ethtool::open()?.rings(ifindex)?,
                mtu: interface.mtu()?,
                ring_sizes: interface.ring_sizes().ok(),
                channels: interface.channels().ok(),
                changes: Mutex::default(),
            })
        })
    }

    /// Makes the device as long and as wide as it was, where it is not. What fails is no reason to leave the rest.
    fn reshape(&self, interface: &Interface) -> io::Result<()> {
        let mtu = match interface.mtu() {
            Ok(mtu) if mtu != self.mtu => interface.set_mtu(self.mtu),
            mtu => mtu.map(drop),
        };
        let ring_sizes =
            self.ring_sizes
                .map_or(Ok(()), |sizes| match interface.ring_sizes()? == sizes {
                    true => Ok(()),
                    false => interface.set_ring_sizes(sizes.0, sizes.1),
                });
        let channels = self
            .channels
            .map_or(Ok(()), |count| match interface.channels()? == count {
                true => Ok(()),
                false => interface.set_channels(count),
            });
        mtu.and(ring_sizes).and(channels)
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an end is.
#[derive(Debug)]
enum Device {
    /// One that was made, by its number on the bus.
    Simulated(u32),
    /// A NIC that was given. It is put back as it was: its rings, and without these changes.
    Given(Before),
    /// The other end of such a NIC. If it is of this machine it is put back, too.
    Other(Option<Before>),
    /// One that does no DMA. It goes with its namespace.
    Local,
}

impl Device {
    fn before(&self) -> Option<&Before> {
        match self {
            Self::Simulated(_) | Self::Local => None,
            Self::Given(before) => Some(before),
            Self::Other(before) => before.as_ref(),
        }
    }
}

/// What joins two ends on one machine without a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joint {
    /// The loopback device of one namespace.
    Lo,
    /// A pair of netkit devices between two namespaces.
    Netkit,
    /// A pair of veth devices.
    Veth,
}

impl Joint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Lo, Self::Netkit, Self::Veth];
}

/// What a NIC that was given cannot do.
fn only_simulated(what: &str) -> io::Error {
    reason_to_skip(format!("{what} takes netdevsim, and NETIF is set"))
}

/// A device, in a namespace of its own if it was made.
#[derive(Debug)]
pub struct End {
    /// The namespace.
    pub ns: Netns,
    /// Number of the device there.
    pub ifindex: u32,
    /// Its name there.
    pub ifname: String,
    device: Device,
}

impl End {
    fn new(host: u8) -> io::Result<Self> {
        Self::in_namespace(Netns::new()?, host)
    }

    /// A device beside those that a namespace has already.
    fn in_namespace(ns: Netns, host: u8) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        const PER_PROCESS: u32 = 1 << 14;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        assert!(count < PER_PROCESS, "too many devices");
        let id = (process::id() * PER_PROCESS + count) & i32::MAX as u32;

        let interfaces = || -> io::Result<Vec<_>> {
            Ok(if_nameindex()?
                .iter()
                .filter_map(|i| Some((i.index(), i.name().to_str().ok()?.to_owned())))
                .collect())
        };
        let before = ns.run(interfaces)?;
        ns.run(|| bus("new_device", &format!("{id} 1 {QUEUES}")))?;
        DEVICES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(id);
        let mut end = Self {
            ns,
            ifindex: 0,
            ifname: String::new(),
            device: Device::Simulated(id),
        };

        (end.ifindex, end.ifname) = end.ns.run(|| {
            interfaces()?
                .into_iter()
                .find(|interface| !before.contains(interface))
                .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "the device has no interface"))
        })?;
        end.interface(|interface| {
            interface.set_ipv4(Ipv4Addr::new(192, 0, 2, host))?;
            interface.set_ipv6(end.ifindex, ipv6_of(host))?;
            interface.set_up(true)
        })?;
        Ok(end)
    }

    /// The NIC that was given.
    fn given(nic: &Nic) -> io::Result<Self> {
        let (ns, ifname) = (Netns::current()?, nic.ifname.clone());
        let ifindex = ns
            .ifindex(&ifname)
            .map_err(|err| io::Error::new(err.kind(), format!("NETIF is {ifname}: {err}")))?;
        Ok(Self {
            device: Device::Given(Before::of(&ns, ifindex, &ifname)?),
            ns,
            ifindex,
            ifname,
        })
    }

    /// Its other end.
    fn other(nic: &Nic) -> io::Result<Self> {
        let (ns, ifname) = match &nic.way {
            Way::Netns(name) => {
                let ns = Netns::named(name)?;
                let ifname = ns.run(|| device_of(nic))?;
                (ns, ifname)
            }
            // It has nothing here but its name, by which nobody is to call it.
            Way::Ssh(_) => (Netns::current()?, "lo".to_owned()),
        };
        let ifindex = ns.ifindex(&ifname)?;
        let before = match &nic.way {
            Way::Netns(_) => Some(Before::of(&ns, ifindex, &ifname)?),
            Way::Ssh(_) => None,
        };
        Ok(Self {
            ifindex,
            ns,
            ifname,
            device: Device::Other(before),
        })
    }

    /// A device that does no DMA, and that is there. It gets another address, too.
    fn local(ns: Netns, name: &str, addresses: (Ipv4Addr, Ipv6Addr)) -> io::Result<Self> {
        let end = Self {
            ifindex: ns.ifindex(name)?,
            ns,
            ifname: name.to_owned(),
            device: Device::Local,
        };
        end.interface(|interface| {
            interface.set_ipv4(addresses.0)?;
            interface.set_ipv6(end.ifindex, addresses.1)?;
            interface.set_up(true)
        })?;
        Ok(end)
    }

    /// Makes a namespace whose way out is through this one, where it may send by this device. Returns its end.
    pub fn container(&self, joint: Joint) -> io::Result<Self> {
        // That forwards from now on, and has a device and a route more.
        self.on_the_bus("a way out for others")?;
        let inside = Netns::new()?;
        let (here, there) = join(joint, &self.ns, &inside)?;
        let address = |host: u8| {
            (
                Ipv4Addr::new(198, 51, 100, host),
                Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, host.into()),
            )
        };
        Self::local(self.ns.run(Netns::current)?, here, address(1))?;
        let container = Self::local(inside, there, address(2))?;
        container.ip(&format!("route add default via {}", address(1).0))?;
        self.sysctl("ipv4/ip_forward", "1")?;
        Ok(container)
    }

    fn interface<T: Send>(
        &self,
        f: impl FnOnce(&Interface) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        self.ns.run(|| f(&Interface::new(&self.ifname)?))
    }

    /// Whether it does no DMA: what it sends stays on this machine.
    pub fn is_local(&self) -> bool {
        matches!(self.device, Device::Local)
    }

    /// Its number on the bus.
    fn on_the_bus(&self, what: &str) -> io::Result<u32> {
        match self.device {
            Device::Simulated(id) => Ok(id),
            _ => Err(only_simulated(what)),
        }
    }

    /// How the bus calls it.
    fn on_bus(&self) -> String {
        format!("{}:{}", self.ns.as_fd().as_raw_fd(), self.ifindex)
    }

    /// A counter of the device, as `ethtool -S` shows it.
    pub fn counter(&self, name: &str) -> io::Result<u64> {
        self.interface(|interface| interface.counter(name))
    }

    /// Whether the interface is switched on.
    pub fn is_up(&self) -> io::Result<bool> {
        self.interface(|interface| interface.is_up())
    }

    /// Switches the interface on or off.
    pub fn set_up(&self, up: bool) -> io::Result<()> {
        self.interface(|interface| interface.set_up(up))
    }

    /// Waits until there is a link, which a NIC loses when it is reset.
    pub fn wait_for_link(&self) -> io::Result<()> {
        wait::until(&format!("the link of {}", self.ifname), LINK, || {
            self.interface(|interface| interface.has_link())
        })
        .map(drop)
    }

    /// Sets the MTU. That of a NIC which was given is not changed if its other end is another machine.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        self.interface(|interface| match self.device {
            Device::Simulated(_) => interface.set_mtu(mtu),
            _ if interface.mtu()? == mtu => Ok(()),
            _ if hardware::has_both_ends() => interface.set_mtu(mtu),
            _ => Err(reason_to_skip(format!(
                "{} has another MTU than {mtu}",
                self.ifname
            ))),
        })
    }

    /// Sets the number of queues, of which there were 8 at first.
    pub fn set_channels(&self, count: u32) -> io::Result<()> {
        self.interface(|interface| interface.set_channels(count))
    }

    /// Says up to how many bytes of payload stay in host memory although headers are split. 0 at first.
    pub fn set_rx_copybreak(&self, bytes: u32) -> io::Result<()> {
        self.interface(|interface| interface.set_rx_copybreak(bytes))
    }

    /// Tells up to how many bytes that is.
    pub fn rx_copybreak(&self) -> io::Result<u32> {
        self.interface(|interface| interface.rx_copybreak())
    }

    /// Restarts a receive queue, in one of netdevsim's ways to do that (0 to 3).
    pub fn reset_queue(&self, queue: u32, mode: u32) -> io::Result<()> {
        let id = self.on_the_bus("restarting a queue")?;
        let dir = format!("/sys/kernel/debug/netdevsim/netdevsim{id}/ports/0");
        fs::write(format!("{dir}/queue_reset"), format!("{queue} {mode}"))
    }

    /// Switches segmentation offload.
    pub fn set_offload(&self, on: bool) -> io::Result<()> {
        self.interface(|interface| interface.set_offload(on))
    }

    /// Switches segmentation by the device; that by the stack stays on.
    pub fn set_tso(&self, on: bool) -> io::Result<()> {
        self.interface(|interface| interface.set_tso(on))
    }

    /// Switches a feature of the device.
    pub fn set_feature(&self, feature: Feature, on: bool) -> io::Result<()> {
        self.interface(|interface| interface.set_feature(feature, on))
    }

    /// Makes another device in the namespace, behind which there is nothing, with an address in a network of
    /// 24 bits and one in a network of 64.
    pub fn add_dummy(&self, name: &str, mtu: u32, v4: Ipv4Addr, v6: Ipv6Addr) -> io::Result<()> {
        self.ip(&format!("link add {name} type dummy"))?;
        self.ns.run(|| {
            let interface = Interface::new(name)?;
            interface.set_mtu(mtu)?;
            interface.set_ipv4(v4)?;
            interface.set_ipv6(if_nametoindex(name)?, v6)?;
            interface.set_up(true)
        })
    }

    /// Makes a pair of devices without device memory, one here and one at another end.
    pub fn add_veth(&self, name: &str, other: &Self, there: &str) -> io::Result<()> {
        let ns = path_of(&other.ns);
        self.ip(&format!(
            "link add {name} up type veth peer name {there} netns {ns}"
        ))?;
        other.ns.run(|| Interface::new(there)?.set_up(true))
    }

    /// Has a queue receive all flows that nothing else steers.
    pub fn receive_by_queue(&self, queue: u32) -> io::Result<()> {
        self.interface(|interface| interface.receive_by_queue(queue))
    }

    /// Writes a setting of the namespace, by its path below `/proc/sys/net`.
    pub fn sysctl(&self, path: &str, value: &str) -> io::Result<()> {
        self.ns
            .run(|| fs::write(Path::new("/proc/sys/net").join(path), value))
            .map_err(|err| io::Error::new(err.kind(), format!("{path}: {err}")))
    }

    /// A TCP socket in the namespace, or one of another protocol that passes for it.
    pub fn stream_socket(&self, ip: Ip, protocol: i32) -> io::Result<OwnedFd> {
        let family = match ip {
            Ip::V4 => libc::AF_INET,
            Ip::V6 => libc::AF_INET6,
        };
        self.ns.run(|| {
            // SAFETY: Takes no pointers.
            let fd =
                unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol) };
            match fd {
                // SAFETY: The kernel just made this file descriptor for us.
                0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }

    /// Has GRO wait for more segments, for so many nanoseconds.
    pub fn set_gro_flush_timeout(&self, timeout: u64) -> io::Result<()> {
        const NONE: Option<&str> = None;
        // A sysfs shows the devices of the namespace that mounts it.
        self.ns.run(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
            mount(NONE, "/sys", Some("sysfs"), MsFlags::empty(), NONE)?;
            let attribute = format!("/sys/class/net/{}/gro_flush_timeout", self.ifname);
            fs::write(attribute, timeout.to_string())
        })
    }

    /// Lets TCP make packets of so many bytes, if that is more than IP can say: BIG TCP, by both versions.
    pub fn set_big_tcp(&self, bytes: u32) -> io::Result<()> {
        const RTM_NEWLINK: u16 = 16;
        const IFLA_GSO_MAX_SIZE: u16 = 41;
        const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
        let mut ifinfomsg = [0; 16];
        ifinfomsg[4..8].copy_from_slice(&self.ifindex.to_ne_bytes());
        let attrs = Attrs::new()
            .u32(IFLA_GSO_MAX_SIZE, bytes)
            .u32(IFLA_GSO_IPV4_MAX_SIZE, bytes);
        let flags = netlink::REQUEST | netlink::ACK;
        let request = netlink::message(RTM_NEWLINK, flags, &ifinfomsg, attrs.as_bytes());
        self.ns
            .run(|| netlink::Socket::open(netlink::ROUTE)?.request(&request))
    }

    /// The address of the device.
    pub fn mac(&self) -> io::Result<[u8; 6]> {
        let addresses = self.ns.run(|| Ok(getifaddrs()?.collect::<Vec<_>>()))?;
        addresses
            .iter()
            .filter(|address| address.interface_name == self.ifname)
            .find_map(|address| address.address.as_ref()?.as_link_addr()?.addr())
            .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "the device has no address"))
    }

    /// Tells where this neighbour is to be reached.
    pub fn add_neighbour(&self, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
        self.interface(|interface| interface.add_neighbour(address, mac))
    }

    /// Sets header split.
    pub fn set_rings(&self, rings: Rings) -> io::Result<()> {
        self.ns
            .run(|| Ok(Ethtool::open()?.set_rings(self.ifindex, rings)?))
    }

    /// Moves the device to another namespace and back, where it is up again, with this address.
    pub fn move_and_back(&self, there: &Netns, address: Ipv4Addr) -> io::Result<()> {
        let link = |to| format!("link set dev {} netns {}", self.ifname, path_of(to));
        let back = link(&self.ns);

        self.ip(&link(there))?;
        let moved = there.run(|| Command::new("ip").args(back.split(' ')).status())?;
        if !moved.success() {
            return Err(io::Error::other(format!("ip {back}: {moved}")));
        }
        self.interface(|interface| {
            interface.set_ipv4(address)?;
            interface.set_up(true)
        })
    }

    /// Deletes the device, whether or not that was tried before.
    pub fn delete_again(&self) -> io::Result<()> {
        let id = self.on_the_bus("deleting the device")?;
        bus("del_device", &id.to_string())
    }

    /// Deletes the device.
    pub fn delete(&self) -> io::Result<()> {
        let id = self.on_the_bus("deleting the device")?;
        let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = devices.iter().position(|&device| device == id) else {
            return Ok(());
        };
        devices.swap_remove(at);
        drop(devices);
        bus("del_device", &id.to_string())
    }

    /// Has a queue receive a port by the rule at a location, or at any. A NIC that was given may have no such rules,
    /// but a key that flows are spread by.
    fn steer_at(&self, location: Option<u32>, flow: Flow, port: u16, queue: u32) -> io::Result<()> {
        self.interface(|interface| {
            let rule = match location {
                Some(location) => interface.steer_at(location, flow, port, queue),
                None => interface.steer(flow, port, queue),
            };
            match (self.device.before(), rule) {
                (Some(_), Err(err)) if err.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    let mut rss = interface.rss()?;
                    self.note(&format!("rss {rss}"))?;
                    rss.steer(port, queue);
                    interface.set_rss(&rss)
                }
                (Some(_), Ok(location)) => self.note(&format!("rule {location}")),
                (_, rule) => rule.map(drop),
            }
        })
    }

    /// Notes what is done to a NIC that was not made for the test, here and with who puts it back if this program does
    /// not.
    fn note(&self, change: &str) -> io::Result<()> {
        self.learn(change)?;
        match self.device {
            Device::Simulated(_) | Device::Local => Ok(()),
            Device::Given(_) => keeper::note(format!("{GIVEN} {change}")),
            Device::Other(_) => keeper::note(format!("{OTHER} {change}")),
        }
    }

    /// Learns of a rule, of what flows were spread by until now, or that all was put back.
    fn learn(&self, change: &str) -> io::Result<()> {
        if let Some(before) = self.device.before() {
            let mut changes = before.changes();
            match change.split_once(' ') {
                Some(("rule", rule)) => {
                    changes
                        .rules
                        .insert(rule.parse().map_err(io::Error::other)?);
                }
                // Later ones are of the test's own making.
                Some(("rss", _)) if changes.rss.is_some() => (),
                Some(("rss", rss)) => changes.rss = Some(rss.parse()?),
                None if change == RESTORED => *changes = Changes::default(),
                _ => return Err(ErrorKind::InvalidData.into()),
            }
        }
        Ok(())
    }

    /// Has a NIC that was not made for the test do what device memory asks of it.
    fn split_headers(&self) -> io::Result<()> {
        self.device
            .before()
            .map_or(Ok(()), |before| self.set_rings(before.rings.for_devmem()))
    }

    /// Puts a NIC back as it was. What fails is no reason to leave the rest.
    fn restore(&self, before: &Before) -> io::Result<()> {
        // Its driver may have made it anew.
        let now = self.ns.ifindex(&self.ifname)?;
        let rings = || Ok(Ethtool::open()?.set_rings(now, before.rings)?);
        // With the number of queues the driver changes what flows are spread by.
        self.interface(|interface| before.reshape(interface))
            .and(self.restore_steering(before))
            .and(self.ns.run(rings))
            .and_then(|()| self.note(RESTORED))
    }

    fn restore_steering(&self, before: &Before) -> io::Result<()> {
        let changes = before.changes();
        let rss = changes.rss.as_ref();
        // What nobody has touched may be beyond the device at the other end.
        if matches!(self.device, Device::Other(_)) && changes.rules.is_empty() && rss.is_none() {
            return Ok(());
        }
        self.interface(|interface| {
            changes
                .rules
                .iter()
                .map(|&location| interface.unsteer(location))
                .fold(Ok(()), io::Result::and)
                .and(rss.map_or(Ok(()), |rss| interface.set_rss(rss)))
                .and(interface.receive_by_default())
        })
    }
}

/// The device of the calling thread's namespace that has an address of the other end.
fn device_of(nic: &Nic) -> io::Result<String> {
    let wanted: Vec<_> = [Ip::V4, Ip::V6]
        .iter()
        .filter_map(|&ip| nic.remote(ip).ok())
        .collect();
    let has_one = |address: &SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
        let v6 = address.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip()));
        v4.or(v6).is_some_and(|at| wanted.contains(&at))
    };
    getifaddrs()?
        .find(|interface| interface.address.as_ref().is_some_and(has_one))
        .map(|interface| interface.interface_name)
        .ok_or_else(|| io::Error::other(format!("no device has an address of {wanted:?}")))
}

impl Drop for End {
    fn drop(&mut self) {
        let done = match &self.device {
            Device::Simulated(_) => self.delete(),
            Device::Given(before) | Device::Other(Some(before)) => self.restore(before),
            Device::Other(None) | Device::Local => Ok(()),
        };
        if let Err(err) = done {
            report::diag(format_args!("putting {} away: {err}", self.ifname));
        }
    }
}

/// The pair: what is sent at `tx` arrives at `rx`, which is ready for device memory.
#[derive(Debug)]
pub struct Pair {
    /// The receiving end.
    pub rx: End,
    /// The sending end.
    pub tx: End,
}

impl Pair {
    /// Makes a pair with 8 queues. What is not steered is received by the first. A NIC that was given receives.
    pub fn new() -> io::Result<Self> {
        match hardware::given()? {
            None => Self::of(End::new(1)?, End::new(2)?),
            Some(nic) => Self::receiving(nic),
        }
    }

    /// The same, for tests of sending: a NIC that was given sends.
    pub fn sending() -> io::Result<Self> {
        match hardware::given()? {
            None => Self::new(),
            Some(nic) if matches!(nic.way, Way::Ssh(_)) => Err(reason_to_skip(
                "sending takes an other end in a namespace, and REMOTE_TYPE is ssh",
            )),
            Some(nic) => {
                let pair = Self {
                    rx: End::other(nic)?,
                    tx: End::given(nic)?,
                };
                // What it cannot do it need not: most tests read what arrives in host memory.
                let _ = pair.rx.split_headers();
                pair.wait_for_link()?;
                Ok(pair)
            }
        }
    }

    fn receiving(nic: &Nic) -> io::Result<Self> {
        let pair = Self {
            rx: End::given(nic)?,
            tx: End::other(nic)?,
        };
        let queues = pair.queues()?.len() as u32;
        if queues < QUEUES_NEEDED {
            return Err(reason_to_skip(format!(
                "{} has {queues} receive queues of {QUEUES_NEEDED} that are needed",
                nic.ifname
            )));
        }
        pair.rx.split_headers()?;
        pair.rx.receive_by_queue(0)?;
        pair.wait_for_link()?;
        Ok(pair)
    }

    /// Waits until a NIC that was given, and its other end, can be used: they may have been reset.
    pub fn wait_for_link(&self) -> io::Result<()> {
        [&self.rx, &self.tx]
            .iter()
            .filter(|end| end.device.before().is_some())
            .try_for_each(|end| end.wait_for_link())
    }

    /// Makes a pair whose receiving end is in this namespace.
    pub fn into_namespace(rx: Netns) -> io::Result<Self> {
        if hardware::given()?.is_some() {
            return Err(only_simulated("a device in a namespace of choice"));
        }
        Self::of(End::in_namespace(rx, 1)?, End::new(2)?)
    }

    /// Makes two ends without a NIC.
    pub fn local(joint: Joint) -> io::Result<Self> {
        let rx = Netns::new()?;
        let tx = match joint {
            Joint::Lo => rx.run(Netns::current)?,
            _ => Netns::new()?,
        };
        let (here, there) = join(joint, &rx, &tx)?;
        Ok(Self {
            rx: End::local(rx, here, address_of(1))?,
            tx: End::local(tx, there, address_of(2))?,
        })
    }

    /// Makes another pair between the namespaces of this one; its ends have addresses of their own,
    /// in the same network.
    pub fn beside(&self) -> io::Result<Self> {
        self.rx.on_the_bus("another pair")?;
        let end = |other: &End, host| End::in_namespace(other.ns.run(Netns::current)?, host);
        Self::of(end(&self.rx, 11)?, end(&self.tx, 12)?)
    }

    fn of(rx: End, tx: End) -> io::Result<Self> {
        let pair = Self { rx, tx };
        pair.rx.set_rings(Rings::DEVMEM)?;
        // Else a queue with device memory gets flows that are not meant for it, now and then.
        pair.rx.receive_by_queue(0)?;
        pair.plug()?;
        Ok(pair)
    }

    /// Plugs the cable in.
    pub fn plug(&self) -> io::Result<()> {
        self.rx.on_the_bus("plugging in")?;
        let (rx, tx) = (self.rx.on_bus(), self.tx.on_bus());
        bus("link_device", &format!("{rx} {tx}"))
    }

    /// Pulls the cable out.
    pub fn unplug(&self) -> io::Result<()> {
        self.rx.on_the_bus("unplugging")?;
        bus("unlink_device", &self.rx.on_bus())
    }

    /// Sets the MTU of both ends.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        self.rx.set_mtu(mtu)?;
        self.tx.set_mtu(mtu)?;
        self.wait_for_link()
    }

    /// Has flows to this TCP port received by this queue.
    pub fn steer(&self, port: u16, queue: u32) -> io::Result<()> {
        for flow in [Flow::Tcp4, Flow::Tcp6] {
            self.rx.steer_at(None, flow, port, queue)?;
        }
        Ok(())
    }

    /// Has another queue receive the port that [`steer`](Self::steer) was first called for.
    pub fn steer_again(&self, port: u16, queue: u32) -> io::Result<()> {
        self.steer_nth(0, port, queue)
    }

    /// Has a queue receive a port by the rules of this number, which replaces those there.
    pub fn steer_nth(&self, number: u32, port: u16, queue: u32) -> io::Result<()> {
        for (location, flow) in (2 * number..).zip([Flow::Tcp4, Flow::Tcp6]) {
            self.rx.steer_at(Some(location), flow, port, queue)?;
        }
        Ok(())
    }

    /// The request to bind queues of the receiving end.
    pub fn request(&self, queues: &[u32]) -> BindRx {
        queues
            .iter()
            .fold(BindRx::new(self.rx.ifindex), |request, &queue| {
                request.queue(queue)
            })
    }

    /// Binds queues of the receiving end.
    pub fn bind(&self, queues: &[u32], memory: &DmaBuf) -> Result<Binding, Error> {
        self.bind_with(&self.request(queues), memory)
    }

    /// Binds by this request, and has a look which provider serves.
    pub fn bind_with(&self, request: &BindRx, memory: &DmaBuf) -> Result<Binding, Error> {
        let binding = self.rx.ns.run(|| Ok(request.bind(memory)))??;
        if let Some(list) = provider::bindings()? {
            let info = list.iter().find(|info| info.id == binding.id());
            let name = info.map(|info| info.provider.as_str());
            assert_eq!(
                name,
                Some(provider::under_test().name()),
                "the provider of the new binding"
            );
        }
        Ok(binding)
    }

    /// The receiving queues of the receiving end.
    pub fn queues(&self) -> io::Result<Vec<Queue>> {
        let all = self
            .rx
            .ns
            .run(|| Ok(Netdev::open()?.queues(self.rx.ifindex)?))?;
        Ok(all.into_iter().filter(|queue| queue.rx).collect())
    }

    /// Where the receiving end listens.
    fn address(&self, ip: Ip, port: u16) -> io::Result<SocketAddr> {
        let address = match (&self.rx.device, hardware::given()?) {
            (Device::Given { .. }, Some(nic)) => nic.local(ip)?,
            (Device::Other(_), Some(nic)) => nic.remote(ip)?,
            _ => return Ok(address(ip, port)),
        };
        Ok(SocketAddr::new(address, port))
    }

    /// Listens at the receiving end.
    pub fn listen(&self, ip: Ip, port: u16) -> io::Result<TcpListener> {
        let at = self.address(ip, port)?;
        self.rx.ns.run(|| TcpListener::bind(at))
    }

    /// Connects to the receiving end; both sockets give up after a while.
    pub fn connect(&self, listener: &TcpListener) -> io::Result<Connection> {
        let to = listener.local_addr()?;
        let timeout = wait::patience(SOCKET_TIMEOUT);
        let tx = match hardware::given()? {
            Some(Nic {
                way: Way::Ssh(args),
                ..
            }) => {
                let tx = connect_by_ssh(args, to)?;
                wait::until("the other machine to connect", SOCKET_TIMEOUT, || {
                    Ok(sockopt::poll(listener)? != 0)
                })?;
                tx
            }
            _ => self
                .tx
                .ns
                .run(|| TcpStream::connect_timeout(&to, timeout))?,
        };
        accepted(listener, tx)
    }

    /// The same by a socket of the sending end that is ready to be connected.
    pub fn connect_by(&self, socket: OwnedFd, listener: &TcpListener) -> io::Result<Connection> {
        let tx = TcpStream::from(socket);
        // It goes for connect(), too.
        tx.set_write_timeout(Some(wait::patience(SOCKET_TIMEOUT)))?;
        let to = SockaddrStorage::from(listener.local_addr()?);
        nix::sys::socket::connect(tx.as_raw_fd(), &to)?;
        accepted(listener, tx)
    }

    /// Has a queue receive a port, and connects to that.
    pub fn connect_to_queue(&self, ip: Ip, port: u16, queue: u32) -> io::Result<Connection> {
        self.steer(port, queue)?;
        self.connect(&self.listen(ip, port)?)
    }
}

/// A TCP connection between the ends of a pair.
#[derive(Debug)]
pub struct Connection {
    /// The socket at the receiving end.
    pub rx: TcpStream,
    /// The socket at the sending end.
    pub tx: TcpStream,
}

/// The connection of this socket and the one that a listener has for it.
fn accepted(listener: &TcpListener, tx: TcpStream) -> io::Result<Connection> {
    let timeout = wait::patience(SOCKET_TIMEOUT);
    let (rx, _) = listener.accept()?;
    for socket in [&tx, &rx] {
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
    }
    tx.set_nodelay(true)?;
    Ok(Connection { rx, tx })
}

/// Has another machine connect to an address. What is written to the result is sent from there, as it comes.
fn connect_by_ssh(args: &[String], to: SocketAddr) -> io::Result<TcpStream> {
    let version = if to.is_ipv4() { 4 } else { 6 };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let here = TcpStream::connect(listener.local_addr()?)?;
    let (there, _) = listener.accept()?;
    let mut ssh = Command::new("ssh")
        .args(args)
        .arg(format!("socat - TCP{version}:{to}"))
        .stdin(OwnedFd::from(there.try_clone()?))
        .stdout(OwnedFd::from(there))
        .spawn()?;
    // It ends with the connection, and its end tells no more than that.
    thread::spawn(move || ssh.wait());
    Ok(here)
}

/// Where the receiving end of a pair that was made listens.
pub fn address(ip: Ip, port: u16) -> SocketAddr {
    let address = match ip {
        Ip::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        Ip::V6 => IpAddr::V6(ipv6_of(1)),
    };
    SocketAddr::new(address, port)
}

/// The sending end's address, if it was made.
pub fn sender(ip: Ip) -> IpAddr {
    match ip {
        Ip::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        Ip::V6 => IpAddr::V6(ipv6_of(2)),
    }
}

/// Joins two namespaces. Returns what the devices are called there.
fn join(joint: Joint, one: &Netns, other: &Netns) -> io::Result<(&'static str, &'static str)> {
    const HERE: &str = "here";
    const THERE: &str = "there";
    match joint {
        Joint::Lo => return Ok(("lo", "lo")),
        Joint::Netkit => netkit_link::make_pair((one, HERE), (other, THERE))?,
        Joint::Veth => {
            let ns = path_of(other);
            let args = format!("link add {HERE} type veth peer name {THERE} netns {ns}");
            let made = one.run(|| Command::new("ip").args(args.split(' ')).status())?;
            if !made.success() {
                return Err(io::Error::other(format!("ip {args}: {made}")));
            }
        }
    }
    Ok((HERE, THERE))
}

fn address_of(host: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(192, 0, 2, host), ipv6_of(host))
}

fn ipv6_of(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into())
}
