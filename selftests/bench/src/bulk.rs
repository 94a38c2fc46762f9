// SPDX-License-Identifier: GPL-2.0

//! Puts of the bulk library, against what it is made of, and TCP that copies.
//!
//! One message is under way at a time. Of a put, the time is that until the end that has asked knows that it is in place;
//! of the others, until the last byte has arrived. What is `handed out` goes back at once, and nobody looks at it: so does
//! the raw receiver. What is `copied` the CPU puts into another dma-buf, or `recv()` into memory of the process.
//!
//! Where instructions are counted there is one CPU, which always has something to do: then time is the number of
//! instructions of both ends and all between them.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::Piece;
use devmem::Receiver;
use devmem::TokenBatch;
use devmem::TxBinding;
use devmem::uring::Sender;
use devmem_bulk::End;
use devmem_bulk::Endpoint;
use devmem_bulk::HostCopy;
use devmem_bulk::Key;
use devmem_bulk::Landing;
use devmem_bulk::Options as EndpointOptions;
use devmem_bulk::Place;
use devmem_bulk::Registry;
use devmem_bulk::Rights;
use devmem_bulk::place::Job;
use devmem_testlib::Provider;

use crate::clock::Unit;
use crate::link::Link;
use crate::link::Segments;
use crate::link::select;
use crate::memory::Memory;
use crate::options::Options;
use crate::record::Case;
use crate::record::Samples;

const KIB: usize = 1 << 10;
const SIZES: &[usize] = &[
    4 * KIB,
    64 * KIB,
    256 * KIB,
    1024 * KIB,
    4096 * KIB,
    16384 * KIB,
    65536 * KIB,
];
const QUICK: &[usize] = &[4 * KIB, 256 * KIB];
const LARGEST: usize = 65536 * KIB;
const LANDING: usize = 32 << 20;
/// Bytes of a round, unless that is too many or too few messages.
const BYTES: usize = 32 << 20;
const MOST: usize = 512;
const LEAST: usize = 4;
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes what has landed, and does nothing with it.
struct Discard;

impl Place for Discard {
    fn place(&mut self, jobs: &mut [Job]) {
        for job in jobs {
            job.landed = None;
            job.placed = true;
        }
    }
}

/// A way to move messages.
enum Lane {
    Bulk(Box<Bulk>),
    Raw(Box<Sender<'static, Vec<Extent>>>, TcpStream),
    Tcp(TcpStream, TcpStream),
}

/// A client of the library, and a server in another thread.
struct Bulk {
    client: Endpoint,
    memory: Arc<devmem_bulk::Memory>,
    key: Key,
    server: JoinHandle<io::Result<End>>,
}

/// What is sent from.
struct Sending<'a> {
    message: &'a [u8],
    binding: &'a TxBinding,
}

/// Measures.
pub fn run(options: &Options, samples: &mut Samples) -> io::Result<()> {
    let sizes = if options.quick { QUICK } else { SIZES };
    let link = Link::new(Segments {
        mss: 4096,
        offload: true,
    })?;
    let by = Provider::Module;
    select(by.name())?;
    let (from, to) = (Memory::pages(LARGEST)?, Memory::pages(LARGEST)?);
    let landing = Memory::pages(LANDING)?;
    let raw_landing = Memory::pages(LANDING)?;
    let binding = link.bind_tx(by, &from)?;
    let landing = Landing::new(link.bind(by, 1, &landing, None)?, &any(&landing)?)?;
    let _raw = link.bind(by, 2, &raw_landing, None)?;
    let message = vec![1; LARGEST];
    let sending = Sending {
        message: &message,
        binding: &binding,
    };
    let mut lanes = Vec::new();
    for (place, name) in [(false, "handed out"), (true, "copied")] {
        let bulk = Bulk::new(&link, &from, &to, &landing, place)?;
        lanes.push((name, by.name(), Lane::Bulk(Box::new(bulk))));
    }
    let raw = link.connect(2)?;
    let sender = Box::new(Sender::new(Arc::new(raw.tx))?);
    lanes.push(("handed out", "raw", Lane::Raw(sender, raw.rx)));
    let tcp = link.connect(0)?;
    lanes.push(("copied", "tcp", Lane::Tcp(tcp.tx, tcp.rx)));
    for &size in options.cases(sizes) {
        eprintln!("bulk: {} KiB", size / KIB);
        // The first round warms up.
        for round in 0..=options.rounds {
            // Nobody is always first, or follows the same one.
            lanes.rotate_left(1);
            lanes.reverse();
            for (place, subject, lane) in &mut lanes {
                let count = (BYTES / size).clamp(LEAST, MOST);
                let start = Instant::now();
                let mut times = lane.transfer(&sending, size, count)?;
                let elapsed = start.elapsed();
                if round > 0 {
                    times.sort_unstable();
                    let case = Case::new().with("place", *place).with("kib", size / KIB);
                    let unit = options.clock.unit();
                    hand_in((&case, subject), unit, elapsed, (size, &times), samples);
                }
            }
        }
    }
    for (_, _, lane) in lanes {
        if let Lane::Bulk(bulk) = lane {
            bulk.close()?;
        }
    }
    Ok(())
}

fn any(memory: &Memory) -> io::Result<DmaBuf> {
    DmaBuf::from_fd(memory.as_fd().try_clone_to_owned()?)
}

fn hand_in(
    (case, subject): (&Case, &str),
    unit: Unit,
    elapsed: Duration,
    (size, times): (usize, &[Duration]),
    samples: &mut Samples,
) {
    let mib = (times.len() * size) as f64 / f64::from(1 << 20);
    match unit {
        Unit::Instructions => {
            let cost = elapsed.as_nanos() as f64 / mib;
            samples.add(case, subject, unit.name(), "MiB", cost);
        }
        Unit::Nanoseconds => {
            let rate = mib / elapsed.as_secs_f64();
            samples.add(case, subject, "MiB/s", "message after message", rate);
        }
    }
    for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
        let at = ((times.len() as f64 * quantile).ceil() as usize).clamp(1, times.len());
        let case = case.clone().with("quantile", name);
        let time = times[at - 1].as_nanos() as f64;
        samples.add(&case, subject, unit.name(), "message", time);
    }
}

fn failed(why: impl std::fmt::Debug) -> io::Error {
    io::Error::other(format!("{why:?}"))
}

impl Bulk {
    fn new(
        link: &Link,
        from: &Memory,
        to: &Memory,
        landing: &Arc<Landing>,
        copy: bool,
    ) -> io::Result<Self> {
        let tx = link.bind_tx(Provider::Module, from)?;
        let memory = devmem_bulk::Memory::with(&any(from)?, Some(tx))?;
        let target = devmem_bulk::Memory::new(&any(to)?)?;
        let registry = Registry::new()?;
        let key = registry.register(&target, 0, target.size(), Rights::Write, None)?;
        let (control, lane) = (link.connect(0)?, link.connect(1)?);
        // Both ends have a half of it.
        let options = EndpointOptions::new(registry).landing(Arc::clone(landing), 2);
        let server = Endpoint::new(control.rx, vec![lane.rx], options)?;
        let mut server = match copy {
            true => server.place_by(HostCopy::new()),
            false => server.place_by(Discard),
        };
        let server = thread::spawn(move || server.serve(drop));
        let options = EndpointOptions::new(Registry::new()?);
        let mut client = Endpoint::new(control.tx, vec![lane.tx], options)?;
        client.wait_open(PATIENCE)?;
        Ok(Self {
            client,
            memory,
            key,
            server,
        })
    }

    fn put(&mut self, size: usize) -> io::Result<Duration> {
        let start = Instant::now();
        let asked = self.client.put(&self.memory, 0, size as u64, self.key, 0);
        asked.map_err(failed)?;
        self.client.flush(drop)?.map_err(failed)?;
        Ok(start.elapsed())
    }

    fn close(mut self) -> io::Result<()> {
        self.client.close();
        while self.client.wait(Some(PATIENCE))?.is_some() {}
        self.server.join().expect("the server's thread").map(drop)
    }
}

impl Lane {
    /// Moves so many messages of a size; tells how long each took.
    fn transfer(
        &mut self,
        sending: &Sending<'_>,
        size: usize,
        count: usize,
    ) -> io::Result<Vec<Duration>> {
        match self {
            Self::Bulk(bulk) => (0..count).map(|_| bulk.put(size)).collect(),
            Self::Raw(sender, rx) => {
                let extent = Extent {
                    offset: 0,
                    len: size as u64,
                };
                let send = || -> io::Result<()> {
                    let sent = sender.send(sending.binding, vec![extent]);
                    sent.map_err(|err| err.error)?;
                    while sender.completed()?.is_some() {}
                    Ok(())
                };
                one_by_one(count, send, |arrived| take_raw(rx, size, count, arrived))
            }
            Self::Tcp(tx, rx) => {
                let send = || (&*tx).write_all(&sending.message[..size]);
                one_by_one(count, send, |arrived| take_copies(rx, size, count, arrived))
            }
        }
    }
}

/// Sends messages, each when the one before has arrived.
fn one_by_one(
    count: usize,
    mut send: impl FnMut() -> io::Result<()>,
    receive: impl FnOnce(&mpsc::Sender<Instant>) -> io::Result<()> + Send,
) -> io::Result<Vec<Duration>> {
    thread::scope(|scope| {
        let (arrived, arrival) = mpsc::channel();
        let receiver = scope.spawn(move || receive(&arrived));
        let times = (0..count).map(|_| {
            let start = Instant::now();
            send()?;
            let end = arrival
                .recv()
                .map_err(|_| io::Error::other("the receiver is gone"))?;
            Ok(end - start)
        });
        let times = times.collect::<io::Result<_>>()?;
        receiver.join().expect("a receiver's thread")?;
        Ok(times)
    })
}

fn tell(arrived: &mpsc::Sender<Instant>) -> io::Result<()> {
    arrived
        .send(Instant::now())
        .map_err(|_| io::Error::other("the sender is gone"))
}

fn take_copies(
    mut socket: &TcpStream,
    size: usize,
    count: usize,
    arrived: &mpsc::Sender<Instant>,
) -> io::Result<()> {
    let mut buffer = vec![1; size];
    for _ in 0..count {
        socket.read_exact(&mut buffer)?;
        tell(arrived)?;
    }
    Ok(())
}

fn take_raw(
    socket: &TcpStream,
    size: usize,
    count: usize,
    arrived: &mpsc::Sender<Instant>,
) -> io::Result<()> {
    /// What the library reads at once.
    const READ: usize = 256 * KIB;
    let mut receiver = Receiver::with_capacity(socket, READ, READ / KIB);
    let mut batch = TokenBatch::new(socket);
    for _ in 0..count {
        let mut left = size;
        while left > 0 {
            let received = receiver.recv()?;
            if received.is_eof() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left = left
                .checked_sub(received.total())
                .ok_or_else(|| io::Error::other("bytes of a message that is not sent yet"))?;
            for piece in received {
                match piece {
                    Piece::Frag(frag) => batch.push(frag.token)?,
                    Piece::Linear(_) | Piece::Plain(_) => {
                        return Err(io::Error::other("bytes outside of device memory"));
                    }
                }
            }
            batch.flush()?;
        }
        tell(arrived)?;
    }
    Ok(())
}
