// SPDX-License-Identifier: GPL-2.0

//! What inputs run against: a connection that receives in device memory, with all around it.

use std::io;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::TxBinding;
use devmem::dmabuf::Mapping;
use devmem::netlink::GenericSocket;
use devmem::netns::Netns;
use devmem::recv::take_runs;
use devmem::send;
use devmem::token::MAX_RANGES;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Pair;
use devmem_testlib::pair;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::soon;
use devmem_testlib::provider;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::tx;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::socket;

use crate::input::Netlink;
use crate::input::Number;
use crate::input::Socket;

const MEMORY: usize = 4 << 20;
const TX_MEMORY: usize = 1 << 20;
/// The bound queue, and the port that it receives.
const QUEUE: u32 = 1;
const PORT: u16 = 5001;
/// One that is only bound to see whether that works.
const OTHER_QUEUE: u32 = 3;
const OTHER_PORT: u16 = 5003;
/// Bytes of a transfer which has to work.
const TRANSFER: u64 = 64 << 10;
const NETLINKS: [Netlink; 4] = [
    Netlink::Rx,
    Netlink::Tx,
    Netlink::Empty,
    Netlink::Unprivileged,
];

/// A live binding, and everything that an input can name.
#[derive(Debug)]
pub struct World {
    /// Number of the `netdev` family.
    pub family: u16,
    /// Tokens that the receiver has got.
    pub held: Vec<u32>,
    netlinks: Vec<OwnedFd>,
    /// `None` only while others take their place.
    sockets: Option<Sockets>,
    binding: Binding,
    tx_binding: TxBinding,
    memory: DmaBuf,
    map: Mapping,
    tx_memory: DmaBuf,
    read_only: DmaBuf,
    empty: Netns,
    pair: Pair,
}

/// Sockets that are no netlink sockets.
#[derive(Debug)]
struct Sockets {
    connection: Connection,
    listener: TcpListener,
    unconnected: OwnedFd,
    udp: UdpSocket,
    unix: UnixStream,
    _unix_peer: UnixStream,
}

impl Sockets {
    fn new(pair: &Pair) -> io::Result<Self> {
        /// One of two is told of runs of frags, where the provider does that.
        static TAKES_RUNS: AtomicBool = AtomicBool::new(true);
        let listener = pair.listen(Ip::V4, PORT)?;
        let connection = pair.connect(&listener)?;
        if TAKES_RUNS.fetch_xor(true, Ordering::Relaxed) {
            take_runs(&connection.rx)?;
        }
        listener.set_nonblocking(true)?;
        send::enable_zerocopy(&connection.tx)?;
        let unconnected = pair.rx.ns.run(|| tcp_socket().map_err(Into::into))?;
        let udp = pair
            .rx
            .ns
            .run(|| UdpSocket::bind(pair::address(Ip::V4, 0)))?;
        let (unix, unix_peer) = UnixStream::pair()?;
        for result in [
            connection.rx.set_nonblocking(true),
            connection.tx.set_nonblocking(true),
            udp.set_nonblocking(true),
            unix.set_nonblocking(true),
        ] {
            result?;
        }
        Ok(Self {
            connection,
            listener,
            unconnected,
            udp,
            unix,
            _unix_peer: unix_peer,
        })
    }
}

fn tcp_socket() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )
}

fn netlink_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkGeneric;
    Ok(socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        protocol,
    )?)
}

/// Like [`netlink_socket`], of a user who may do nothing.
fn unprivileged_netlink_socket() -> io::Result<OwnedFd> {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: The raw system call changes the credentials of this thread alone, and takes no pointers.
    match unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) } {
        0 => netlink_socket(),
        _ => Err(io::Error::last_os_error()),
    }
}

impl World {
    /// Makes it.
    pub fn new() -> io::Result<Self> {
        // Of few entries: the C code takes long to find buffers among many.
        let memory = DmaBuf::system_heap(MEMORY)?;
        let tx_memory = DmaBuf::udmabuf(TX_MEMORY)?;
        tx::fill(&tx_memory)?;
        let read_only = DmaBuf::heap(Path::new("/dev/dma_heap/system"), TX_MEMORY, libc::O_RDONLY)?;
        let pair = Pair::new()?;
        let binding = pair.bind(&[QUEUE], &memory).map_err(io::Error::from)?;
        let tx_binding = pair.tx.bind_tx(&tx_memory).map_err(io::Error::from)?;
        pair.steer(PORT, QUEUE)?;
        let mut world = Self {
            family: GenericSocket::open()?.family("netdev")?,
            held: Vec::new(),
            netlinks: Vec::new(),
            sockets: Some(Sockets::new(&pair)?),
            binding,
            tx_binding,
            map: memory.map()?,
            memory,
            tx_memory,
            read_only,
            empty: Netns::new()?,
            pair,
        };
        for netlink in NETLINKS {
            let socket = world.open(netlink)?;
            world.netlinks.push(socket);
        }
        Ok(world)
    }

    fn open(&self, netlink: Netlink) -> io::Result<OwnedFd> {
        match netlink {
            Netlink::Rx => self.pair.rx.ns.run(netlink_socket),
            Netlink::Tx => self.pair.tx.ns.run(netlink_socket),
            Netlink::Empty => self.empty.run(netlink_socket),
            Netlink::Unprivileged => self.pair.rx.ns.run(unprivileged_netlink_socket),
        }
    }

    fn index(netlink: Netlink) -> usize {
        NETLINKS
            .iter()
            .position(|&other| other == netlink)
            .expect("one of all")
    }

    /// A netlink socket.
    pub fn netlink(&self, netlink: Netlink) -> BorrowedFd<'_> {
        self.netlinks[Self::index(netlink)].as_fd()
    }

    /// Closes a netlink socket, and opens another one.
    pub fn reopen(&mut self, netlink: Netlink) -> io::Result<()> {
        let new = self.open(netlink)?;
        self.netlinks[Self::index(netlink)] = new;
        Ok(())
    }

    fn sockets(&self) -> &Sockets {
        self.sockets.as_ref().expect("sockets")
    }

    /// Makes the sockets anew: the port is free only once the old ones are closed.
    fn renew_sockets(&mut self) -> io::Result<()> {
        self.sockets = None;
        self.sockets = Some(Sockets::new(&self.pair)?);
        Ok(())
    }

    /// A socket.
    pub fn socket(&self, socket: Socket) -> BorrowedFd<'_> {
        let sockets = self.sockets();
        match socket {
            Socket::Rx => sockets.connection.rx.as_fd(),
            Socket::Tx => sockets.connection.tx.as_fd(),
            Socket::Listener => sockets.listener.as_fd(),
            Socket::Unconnected => sockets.unconnected.as_fd(),
            Socket::Udp => sockets.udp.as_fd(),
            Socket::Unix => sockets.unix.as_fd(),
        }
    }

    /// What a number stands for.
    pub fn number(&self, number: Number) -> u32 {
        let fd = |fd: BorrowedFd<'_>| fd.as_raw_fd() as u32;
        match number {
            Number::Small(n) => n.into(),
            Number::Any(n) => n,
            Number::Power(exponent) => 1 << (exponent % 32),
            // The largest of all is one of them.
            Number::BelowPower(exponent) => u32::MAX >> (exponent % 32),
            Number::RxDevice => self.pair.rx.ifindex,
            Number::TxDevice => self.pair.tx.ifindex,
            Number::RxMemory => fd(self.memory.as_fd()),
            Number::TxMemory => fd(self.tx_memory.as_fd()),
            Number::ReadOnlyMemory => fd(self.read_only.as_fd()),
            Number::Socket(socket) => fd(self.socket(socket)),
            Number::RxBinding => self.binding.id(),
            Number::TxBinding => self.tx_binding.id(),
            Number::Token(index) => {
                let index = usize::from(index).checked_rem(self.held.len());
                index.map_or(0, |index| self.held[index])
            }
        }
    }

    /// Has the peer send; what does not fit stays behind.
    pub fn feed(&self, len: u16) {
        let bytes = traffic::bytes(0, len.into());
        // SAFETY: `bytes` is readable for its length.
        unsafe {
            libc::send(
                self.socket(Socket::Tx).as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_NOSIGNAL,
            )
        };
    }

    /// Takes back everything that an input may have left on the sockets.
    pub fn settle(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let Connection { rx, tx } = &self.sockets().connection;
        let ranges: Vec<_> = held
            .iter()
            .map(|&start| TokenRange { start, count: 1 })
            .collect();
        for ranges in ranges.chunks(MAX_RANGES) {
            dontneed(rx, ranges)?;
        }
        for socket in [rx, tx] {
            discard(socket);
            discard_errors(socket);
        }
        if !(established(rx)? && established(tx)? && unread(rx)? == 0) {
            self.renew_sockets()?;
        }
        Ok(())
    }

    /// Fails where the world is not as it was made: just its two bindings, transfers, and a new binding.
    pub fn check(&mut self) -> io::Result<()> {
        self.settle()?;
        for netlink in NETLINKS {
            self.reopen(netlink)?;
        }
        let own = [self.binding.id(), self.tx_binding.id()];
        soon("only the world's own bindings to be left", || {
            let bindings = provider::bindings()?.unwrap_or_default();
            let mut ids: Vec<_> = bindings.iter().map(|binding| binding.id).collect();
            ids.sort_unstable();
            Ok(ids == own)
        });

        self.renew_sockets()?;
        let Connection { rx, tx } = &self.sockets().connection;
        rx.set_nonblocking(false)?;
        tx.set_nonblocking(false)?;
        transfer(tx, &mut Reader::new(rx, &self.map, self.binding.id()))?;

        let sent = tx::Call::new(self.tx_binding.id(), &[tx::extent(0, TRANSFER)]).send(tx)?;
        let mut reader = Reader::new(rx, &self.map, self.binding.id());
        reader.read_until(sent as u64)?;
        reader.assert_all_device_memory();

        let other = self
            .pair
            .bind(&[OTHER_QUEUE], &self.memory)
            .map_err(io::Error::from)?;
        let connection = self
            .pair
            .connect_to_queue(Ip::V4, OTHER_PORT, OTHER_QUEUE)?;
        let mut reader = Reader::new(&connection.rx, &self.map, other.id());
        transfer(&connection.tx, &mut reader)
    }
}

fn transfer(tx: &TcpStream, reader: &mut Reader<'_>) -> io::Result<()> {
    traffic::send(tx, 0, TRANSFER, TRANSFER as usize)?;
    reader.read_until(TRANSFER)?;
    reader.assert_all_device_memory();
    Ok(())
}

/// Passes over everything that was received.
fn discard(socket: &impl AsRawFd) {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: With `MSG_TRUNC`, the kernel writes nothing.
    while unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), MEMORY, flags) } > 0 {}
}

/// Takes everything from the error queue, where messages have no bytes.
fn discard_errors(socket: &impl AsRawFd) {
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: No bytes are to be written.
    while unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), 0, flags) } >= 0 {}
}

/// Bytes that can still be received. Some cannot be passed over, such as urgent ones.
fn unread(socket: &TcpStream) -> io::Result<i32> {
    let mut bytes = 0;
    // SAFETY: `bytes` is the argument of this ioctl, which only writes it.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } {
        0 => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}

fn established(socket: &TcpStream) -> io::Result<bool> {
    const ESTABLISHED: u8 = 1;
    let mut state = 0_u8;
    let mut len = 1;
    // SAFETY: `state` is writable for `len` bytes; it is what `struct tcp_info` starts with.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &mut len,
        )
    };
    match ret {
        0 => Ok(state == ESTABLISHED),
        _ => Err(io::Error::last_os_error()),
    }
}
