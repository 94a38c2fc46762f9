// SPDX-License-Identifier: GPL-2.0

//! The devices, connections and bindings that the series of traffic share.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::BindTx;
use devmem::Binding;
use devmem::TxBinding;
use devmem::provider;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::received;
use devmem_testlib::sockopt;
use devmem_testlib::traffic;

use crate::memory::Memory;

/// Both providers.
pub const PROVIDERS: [Provider; 2] = [Provider::Module, Provider::Builtin];
/// What IPv4 and TCP put before the payload of a packet: addresses, ports, time stamps.
pub const HEADERS: u32 = 52;
/// The port of queue 0; the others follow.
const PORT: u16 = 5200;
/// More than is ever queued, its overhead included.
const BUFFER: i32 = 1 << 30;
/// Nothing takes longer to arrive.
const ARRIVAL: Duration = Duration::from_secs(60);

/// How the sender's bytes become frags at the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// The most payload that a packet has on the wire.
    pub mss: u32,
    /// Whether the device gets up to 64 KiB at once and splits that into buffers; otherwise each packet is
    /// one of its own, which GRO leaves alone.
    pub offload: bool,
}

/// A pair of devices, ready for measuring.
#[derive(Debug)]
pub struct Link {
    /// The devices.
    pub pair: Pair,
}

impl Link {
    /// Makes a pair that sends segments like this.
    pub fn new(segments: Segments) -> io::Result<Self> {
        let pair = Pair::new()?;
        pair.set_mtu(segments.mss + HEADERS)?;
        if !segments.offload {
            pair.tx.set_offload(false)?;
            ethtool(&pair.rx, "gro")?;
        }
        for end in [&pair.rx, &pair.tx] {
            end.ns.run(large_windows)?;
        }
        Ok(Self { pair })
    }

    /// Connects to a queue, with buffers that all of a measurement fits in.
    pub fn connect(&self, queue: u32) -> io::Result<Connection> {
        let listener = self.listen(queue)?;
        connect_large(&self.pair, &listener)
    }

    /// Connects to a queue several times.
    pub fn connect_many(&self, queue: u32, count: usize) -> io::Result<Vec<Connection>> {
        let listener = self.listen(queue)?;
        (0..count)
            .map(|_| connect_large(&self.pair, &listener))
            .collect()
    }

    fn listen(&self, queue: u32) -> io::Result<TcpListener> {
        let port = PORT + queue as u16;
        self.pair.steer_nth(queue, port, queue)?;
        self.pair.listen(Ip::V4, port)
    }

    /// Binds a queue to memory, by this provider.
    pub fn bind(
        &self,
        by: Provider,
        queue: u32,
        memory: &Memory,
        rx_page_size: Option<u32>,
    ) -> io::Result<Binding> {
        provider::select(by.name())?;
        let mut request = self.pair.request(&[queue]);
        if let Some(size) = rx_page_size {
            request = request.rx_page_size(size);
        }
        let binding = self.pair.rx.ns.run(|| Ok(request.bind(memory)))??;
        check(&binding.stats()?, by)?;
        Ok(binding)
    }

    /// Binds memory for the sending end, by this provider.
    pub fn bind_tx(&self, by: Provider, memory: &Memory) -> io::Result<TxBinding> {
        provider::select(by.name())?;
        let end = &self.pair.tx;
        let binding = end.ns.run(|| Ok(BindTx::new(end.ifindex).bind(memory)))??;
        check(&binding.stats()?, by)?;
        Ok(binding)
    }
}

/// Has a subject that is a provider be the one that sockets turn to.
///
/// Some kernels ask the provider that is selected now, and not the one whose tokens they are.
pub fn select(subject: &str) -> io::Result<()> {
    match PROVIDERS.iter().any(|by| by.name() == subject) {
        true => provider::select(subject),
        false => Ok(()),
    }
}

/// A ratio of a provider against itself would look very well.
pub fn check(info: &provider::BindingInfo, by: Provider) -> io::Result<()> {
    match info.provider == by.name() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "bound by {} instead of {}",
            info.provider,
            by.name()
        ))),
    }
}

fn large_windows() -> io::Result<()> {
    for file in ["tcp_rmem", "tcp_wmem"] {
        fs::write(
            format!("/proc/sys/net/ipv4/{file}"),
            format!("4096 {BUFFER} {BUFFER}"),
        )?;
    }
    // Sharing a socket's memory out again while it is measured would be noise.
    fs::write("/proc/sys/net/ipv4/tcp_moderate_rcvbuf", "0")?;
    // What an earlier connection has learned is not to be for this one.
    fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1")
}

fn ethtool(end: &End, feature: &str) -> io::Result<()> {
    let output = end.ns.run(|| {
        Command::new("ethtool")
            .args(["-K", &end.ifname, feature, "off"])
            .output()
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "ethtool -K {feature} off: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

fn connect_large(pair: &Pair, listener: &TcpListener) -> io::Result<Connection> {
    sockopt::set(listener, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER / 2)?;
    let connection = pair.connect(listener)?;
    sockopt::set(
        &connection.tx,
        libc::SOL_SOCKET,
        libc::SO_SNDBUFFORCE,
        BUFFER / 2,
    )?;
    Ok(connection)
}

/// Sends bytes, a call for each `chunk`, and waits until they are all in the receiver's queue.
pub fn queue_up(connection: &Connection, bytes: u64, chunk: usize) -> io::Result<()> {
    let end = received(&connection.rx)? + bytes;
    traffic::send(&connection.tx, 0, bytes, chunk)?;
    wait_received(&connection.rx, end)
}

/// Waits until so many bytes in all have arrived.
pub fn wait_received(socket: &TcpStream, end: u64) -> io::Result<()> {
    let start = Instant::now();
    loop {
        let now = received(socket)?;
        if now == end {
            return Ok(());
        }
        if start.elapsed() > ARRIVAL {
            return Err(io::Error::other(format!("{now} of {end} bytes arrived")));
        }
        thread::sleep(Duration::from_millis(1));
    }
}
