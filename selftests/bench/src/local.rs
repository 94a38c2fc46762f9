// SPDX-License-Identifier: GPL-2.0

//! From one process to another of the same machine: local bindings, offsets over AF_UNIX, and what copies.
//!
//! Each subject has one flow. A *stream* sends message after message, as many as its memory or its buffers have room for; a
//! *message* is sent when the one before it has arrived. Nobody writes or reads the bytes themselves: where they are copied it
//! is the kernel that does. Buffers of sockets are as large as the kernel makes them, but by netdevsim.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::BindTx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::Error;
use devmem::Extent;
use devmem::Piece;
use devmem::Receive;
use devmem::Receiver;
use devmem::Sender;
use devmem::TokenBatch;
use devmem::Transmit;
use devmem::TxBinding;
use devmem::local::Channel;
use devmem::netlink::Attrs;
use devmem::netlink::GenericSocket;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::pair::address;
use nix::sys::socket::Backlog;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::bind;
use nix::sys::socket::connect;
use nix::sys::socket::listen;

use crate::clock::Unit;
use crate::link::Link;
use crate::link::PROVIDERS;
use crate::link::Segments;
use crate::link::check;
use crate::link::select;
use crate::memory::Memory;
use crate::options::Options;
use crate::record::Case;
use crate::record::Samples;

/// Bytes of a message.
const SIZES: [usize; 5] = [100, 4 << 10, 64 << 10, 512 << 10, 4 << 20];
/// What TCP may put into a packet where it is BIG TCP: as much as the devices let it.
const BIG: u32 = 524_280;
const MEMORY: usize = 16 << 20;
/// Bytes of a stream, if it does not come to too many messages.
const STREAM: usize = 32 << 20;
const MOST_OF_A_STREAM: usize = 2048;
/// Messages one after the other, at least two of them slower than the p99.
const MESSAGES: usize = 256;
/// Messages of a stream that have not come back.
const DEPTH: usize = 32;
/// Bytes, and pieces, that a call receives.
const DATA: usize = 1 << 20;
const FRAGS: usize = 256;

const LO: &str = "lo";
const LO_BIG: &str = "lo, BIG TCP";
const NETKIT: &str = "netkit";
const NETDEVSIM: &str = "netdevsim";
/// The port of the first lane.
const PORT: u16 = 5300;
const IPPROTO_SMC: i32 = 256;

/// What a sender sends by.
enum Tap {
    Bytes(Box<dyn Write + Send>),
    Device(Box<dyn Transmit<Extent> + Send>, TxBinding),
}

/// What a receiver reads from.
enum Sink {
    Bytes(Box<dyn Read + Send>),
    Device(Box<dyn Receive<'static> + Send>, Box<TokenBatch<'static>>),
}

/// The flow of a subject.
struct Lane {
    /// The cases that it is part of, by what joins the ends there, and what it is called in each.
    noted: Vec<(&'static str, &'static str)>,
    tap: Tap,
    sink: Sink,
}

/// Measures.
pub fn run(options: &Options, samples: &mut Samples) -> io::Result<()> {
    // Nothing of it has been recorded yet to be compared with.
    if options.quick {
        return Ok(());
    }
    let pairs = [
        (LO, Pair::local(Joint::Lo)?),
        (LO_BIG, Pair::local(Joint::Lo)?),
        (NETKIT, Pair::local(Joint::Netkit)?),
    ];
    for end in [&pairs[1].1.rx, &pairs[1].1.tx] {
        end.set_big_tcp(BIG)?;
    }
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let link = Link::new(Segments {
        mss: 4096,
        offload: true,
    })?;
    // Room for all that is on the way.
    let landings = [Memory::pages(2 * MEMORY)?, Memory::pages(2 * MEMORY)?];
    let mut bindings: Vec<Binding> = Vec::new();
    for ((queue, by), landing) in (1..).zip(PROVIDERS).zip(&landings) {
        bindings.push(link.bind(by, queue, landing, None)?);
    }
    let mut lanes = lanes(&pairs, &memory)?;
    for (queue, by) in (1..).zip(PROVIDERS) {
        lanes.push(Lane::by_devices(&link, by, queue)?);
    }
    for size in SIZES {
        eprintln!("local: {size}");
        // The first round warms up.
        for round in 0..=options.rounds {
            // Nobody is always first, or follows the same one.
            lanes.rotate_left(1);
            lanes.reverse();
            for lane in &mut lanes {
                lane.select()?;
                let unit = options.clock.unit();
                lane.measure(size, (round > 0).then_some((unit, &mut *samples)))?;
            }
        }
    }
    Ok(())
}

fn lanes(pairs: &[(&'static str, Pair)], memory: &DmaBuf) -> io::Result<Vec<Lane>> {
    // These are the same whatever the others are joined by.
    let everywhere = |subject| [LO, LO_BIG, NETKIT].map(|by| (by, subject)).to_vec();
    let mut lanes = Vec::new();
    let mut port = PORT;
    for (by, pair) in pairs {
        for provider in PROVIDERS {
            port += 1;
            lanes.push(Lane::device(pair, provider, memory, by, port)?);
        }
        port += 1;
        let connection = pair.connect(&pair.listen(Ip::V4, port)?)?;
        let mut noted = vec![(*by, "tcp")];
        if *by == LO {
            noted.extend([(LO_BIG, "loopback"), (NETKIT, "loopback")]);
        }
        lanes.push(Lane::bytes(noted, connection.tx, connection.rx));
    }
    let (tx, rx) = UnixStream::pair()?;
    lanes.push(Lane::bytes(everywhere("unix"), tx, rx));
    lanes.push(Lane::offsets(everywhere("offsets"), memory)?);
    if let Some((tx, rx)) = smc(&pairs[0].1, port + 1)? {
        lanes.push(Lane::bytes(everywhere("smc"), tx, rx));
    }
    Ok(lanes)
}

impl Lane {
    fn bytes(
        noted: Vec<(&'static str, &'static str)>,
        tx: impl Write + Send + 'static,
        rx: impl Read + Send + 'static,
    ) -> Self {
        Self {
            noted,
            tap: Tap::Bytes(Box::new(tx)),
            sink: Sink::Bytes(Box::new(rx)),
        }
    }

    /// Of parts of a binding's memory.
    fn of_parts(
        noted: Vec<(&'static str, &'static str)>,
        binding: TxBinding,
        connection: Connection,
    ) -> io::Result<Self> {
        let rx = Arc::new(connection.rx);
        let receiver = Receiver::with_capacity(Arc::clone(&rx), DATA, FRAGS);
        Ok(Self {
            noted,
            tap: Tap::Device(Box::new(Sender::new(connection.tx)?), binding),
            sink: Sink::Device(Box::new(receiver), Box::new(TokenBatch::new(rx))),
        })
    }

    /// From a local binding.
    fn device(
        pair: &Pair,
        by: Provider,
        memory: &DmaBuf,
        joined_by: &'static str,
        port: u16,
    ) -> io::Result<Self> {
        select(by.name())?;
        let request = BindTx::new(pair.tx.ifindex).local();
        let binding = pair.tx.ns.run(|| Ok(request.bind(memory)))??;
        check(&binding.stats()?, by)?;
        let connection = pair.connect(&pair.listen(Ip::V4, port)?)?;
        Self::of_parts(vec![(joined_by, by.name())], binding, connection)
    }

    /// From the memory of one netdevsim device into that of another, which copies as a NIC's DMA does.
    fn by_devices(link: &Link, by: Provider, queue: u32) -> io::Result<Self> {
        let binding = link.bind_tx(by, &Memory::pages(MEMORY)?)?;
        let connection = link.connect(queue)?;
        Self::of_parts(vec![(NETDEVSIM, by.name())], binding, connection)
    }

    /// By a channel.
    fn offsets(noted: Vec<(&'static str, &'static str)>, memory: &DmaBuf) -> io::Result<Self> {
        let (tx, rx) = UnixStream::pair()?;
        let rx = Arc::new(rx);
        let mut tx = Channel::<Extent>::new(tx)?;
        let binding = tx.share(memory)?;
        let receiver = Channel::<Extent>::new(Arc::clone(&rx))?;
        Ok(Self {
            noted,
            tap: Tap::Device(Box::new(tx), binding),
            sink: Sink::Device(Box::new(receiver), Box::new(TokenBatch::new(rx))),
        })
    }

    fn select(&self) -> io::Result<()> {
        self.noted
            .iter()
            .try_for_each(|(_, subject)| select(subject))
    }

    /// Sends a stream, and messages; notes what that took if it is to be.
    fn measure(&mut self, size: usize, note: Option<(Unit, &mut Samples)>) -> io::Result<()> {
        let count = (STREAM / size).clamp(DEPTH, MOST_OF_A_STREAM);
        let start = Instant::now();
        self.transfer(size, count, None)?;
        let elapsed = start.elapsed();
        let mut times = Vec::new();
        self.transfer(size, MESSAGES, Some(&mut times))?;
        let Some((unit, samples)) = note else {
            return Ok(());
        };
        times.sort_unstable();
        let mib = (size * count) as f64 / f64::from(1 << 20);
        for &(by, subject) in &self.noted {
            let case = Case::new().with("by", by).with("message", size);
            match unit {
                Unit::Instructions => {
                    let cost = elapsed.as_nanos() as f64 / mib;
                    samples.add(&case, subject, unit.name(), "MiB", cost);
                }
                Unit::Nanoseconds => {
                    let rate = mib / elapsed.as_secs_f64();
                    samples.add(&case, subject, "MiB/s", "stream", rate);
                }
            }
            for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
                let at = ((times.len() as f64 * quantile).ceil() as usize).clamp(1, times.len());
                let case = case.clone().with("quantile", name);
                let time = times[at - 1].as_nanos() as f64;
                samples.add(&case, subject, unit.name(), "message", time);
            }
        }
        Ok(())
    }

    /// Sends so many messages; if their times are wanted, each when the one before it has arrived.
    fn transfer(
        &mut self,
        size: usize,
        count: usize,
        times: Option<&mut Vec<Duration>>,
    ) -> io::Result<()> {
        let (tap, sink) = (&mut self.tap, &mut self.sink);
        let (arrived, arrival) = mpsc::channel();
        let arrived = times.is_some().then_some(arrived);
        thread::scope(|scope| {
            let receiver = scope.spawn(move || sink.take(size, count, arrived));
            let sent = match times {
                None => tap.stream(size, count),
                Some(times) => tap.one_by_one(size, count, &arrival, times),
            };
            receiver.join().expect("a receiver's thread").and(sent)
        })
    }
}

impl Tap {
    /// Sends messages, and waits until their memory can be written again.
    fn stream(&mut self, size: usize, count: usize) -> io::Result<()> {
        match self {
            Self::Bytes(socket) => {
                let message = vec![1; size];
                (0..count).try_for_each(|_| socket.write_all(&message))
            }
            Self::Device(tx, binding) => {
                let depth = DEPTH.min(MEMORY / size);
                for n in 0..count {
                    if n >= depth {
                        tx.wait()?;
                    }
                    tx.send(binding, part(n, size))?;
                }
                while tx.wait()?.is_some() {}
                Ok(())
            }
        }
    }

    fn one_by_one(
        &mut self,
        size: usize,
        count: usize,
        arrival: &mpsc::Receiver<Instant>,
        times: &mut Vec<Duration>,
    ) -> io::Result<()> {
        let message = vec![1; size];
        for n in 0..count {
            let start = Instant::now();
            match self {
                Self::Bytes(socket) => socket.write_all(&message)?,
                Self::Device(tx, binding) => tx.send(binding, part(n, size))?,
            }
            let end = arrival
                .recv()
                .map_err(|_| io::Error::other("the receiver is gone"))?;
            times.push(end - start);
            if let Self::Device(tx, _) = self {
                tx.wait()?;
            }
        }
        Ok(())
    }
}

/// Where a message lies, one behind the other.
fn part(n: usize, size: usize) -> Extent {
    Extent {
        offset: (n % (MEMORY / size) * size) as u64,
        len: size as u64,
    }
}

impl Sink {
    /// Takes messages, gives their memory back, and tells when each was complete if somebody wants to know.
    fn take(
        &mut self,
        size: usize,
        count: usize,
        arrived: Option<mpsc::Sender<Instant>>,
    ) -> io::Result<()> {
        let all = size * count;
        let mut buffer = vec![1; size.min(DATA)];
        let mut taken = 0;
        let mut told = 0;
        while taken < all {
            let room = all - taken;
            taken += match self {
                Self::Bytes(socket) => {
                    let room = room.min(buffer.len());
                    match socket.read(&mut buffer[..room])? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        len => len,
                    }
                }
                Self::Device(rx, batch) => take_parts(&mut **rx, batch)?,
            };
            while told < taken / size {
                told += 1;
                if let Some(arrived) = &arrived {
                    arrived
                        .send(Instant::now())
                        .map_err(|_| io::Error::other("the sender is gone"))?;
                }
            }
        }
        Ok(())
    }
}

/// Takes what there is, and gives it back.
fn take_parts(rx: &mut dyn Receive<'static>, batch: &mut TokenBatch<'static>) -> io::Result<usize> {
    let received = rx.recv()?;
    let total = received.total();
    if received.is_eof() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    for piece in received {
        match piece {
            Piece::Frag(frag) => batch.push(frag.token)?,
            Piece::Linear(_) | Piece::Plain(_) => {
                return Err(io::Error::other("bytes outside of device memory"));
            }
        }
    }
    batch.flush()?;
    Ok(total)
}

/// A connection by SMC over its loopback device, if the kernel has one.
fn smc(pair: &Pair, port: u16) -> io::Result<Option<(TcpStream, TcpStream)>> {
    let listener = match pair.rx.stream_socket(Ip::V4, IPPROTO_SMC) {
        Ok(socket) => socket,
        Err(err) => {
            eprintln!("local: no SMC: {err}");
            return Ok(None);
        }
    };
    pair.rx.ns.run(have_an_id)?;
    let to = SockaddrStorage::from(address(Ip::V4, port));
    bind(listener.as_raw_fd(), &to)?;
    listen(&listener, Backlog::new(1)?)?;
    let tx = pair.tx.stream_socket(Ip::V4, IPPROTO_SMC)?;
    connect(tx.as_raw_fd(), &to)?;
    let (rx, _) = TcpListener::from(listener).accept()?;
    // What it cannot do it leaves to TCP, and does not say so.
    if !pair.rx.ns.run(has_groups)? {
        eprintln!("local: SMC is TCP here");
        return Ok(None);
    }
    Ok(Some((tx.into(), rx)))
}

const SMC_FAMILY: &str = "SMC_GEN_NETLINK";

/// Gives SMC's second version a name for this machine, which it does not do without.
fn have_an_id() -> io::Result<()> {
    const ADD_UEID: u8 = 10;
    const ENTRY: u16 = 1;
    let id = format!("{:<32}", "DEVMEM-BENCH");
    let mut socket = GenericSocket::open()?;
    let family = socket.family(SMC_FAMILY)?;
    match socket.request(family, ADD_UEID, &Attrs::new().string(ENTRY, &id)) {
        Err(Error::Refused { errno, .. }) if errno == libc::EEXIST => Ok(()),
        result => Ok(result.map(drop)?),
    }
}

/// Whether there are connections by its devices.
fn has_groups() -> io::Result<bool> {
    const GET_LGR_SMCD: u8 = 4;
    let mut socket = GenericSocket::open()?;
    let family = socket.family(SMC_FAMILY)?;
    Ok(!socket.dump(family, GET_LGR_SMCD, &Attrs::new())?.is_empty())
}
