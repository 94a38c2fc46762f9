// SPDX-License-Identifier: GPL-2.0

//! Flows from end to end: how fast they are together, and how long a message takes to its last byte.
//!
//! Each flow has a message under way, and sends the next when that has arrived. The memory of the receiver is
//! given back at once. AF_UNIX and TCP over loopback are there to compare with.
//!
//! Where instructions are counted there is one CPU, which always has something to do: then time is the number of
//! instructions of both ends and all between them.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::Binding;
use devmem::Piece;
use devmem::Receiver;
use devmem::TokenBatch;

use crate::clock::Unit;
use crate::link::Link;
use crate::link::PROVIDERS;
use crate::link::Segments;
use crate::link::select;
use crate::memory::Memory;
use crate::options::Options;
use crate::record::Case;
use crate::record::Samples;

/// Bytes of a message.
const MESSAGE: usize = 64 << 10;
/// Messages of all flows together, in a round: at least two of them are slower than its p99.9.
const MESSAGES: usize = 2048;
const MEMORY: usize = 32 << 20;
const COUNTS: &[usize] = &[1, 8, 64];
/// Times differ much from round to round, by how the scheduler happens to place so many threads.
const TIMED_ROUNDS: u32 = 5;

/// What the receiver reads from.
#[derive(Debug)]
enum Sink {
    Devmem(TcpStream),
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What the sender writes to.
#[derive(Debug)]
enum Tap {
    Tcp(TcpStream),
    Unix(UnixStream),
}

type Flow = (Tap, Sink);

/// The flows of one subject.
#[derive(Debug)]
struct Lane {
    subject: &'static str,
    flows: Vec<Flow>,
}

/// Measures.
pub fn run(options: &Options, samples: &mut Samples) -> io::Result<()> {
    let counts = if options.quick { &COUNTS[1..2] } else { COUNTS };
    let rounds = match options.clock.unit() {
        Unit::Instructions => options.rounds,
        Unit::Nanoseconds => options.rounds * TIMED_ROUNDS,
    };
    let link = Link::new(Segments {
        mss: 4096,
        offload: true,
    })?;
    let memories = [Memory::pages(MEMORY)?, Memory::pages(MEMORY)?];
    let mut bindings: Vec<Binding> = Vec::new();
    for ((queue, by), memory) in (1..).zip(PROVIDERS).zip(&memories) {
        bindings.push(link.bind(by, queue, memory, None)?);
    }
    for &count in counts {
        eprintln!("flows: {count}");
        let mut lanes = lanes(&link, count)?;
        // The first round warms up.
        for round in 0..=rounds {
            // Nobody is always first, or follows the same one.
            lanes.rotate_left(1);
            lanes.reverse();
            for lane in &lanes {
                select(lane.subject)?;
                let start = Instant::now();
                let mut times = lane.transfer(MESSAGES / count)?;
                let elapsed = start.elapsed();
                if round > 0 {
                    times.sort_unstable();
                    lane.hand_in(options.clock.unit(), elapsed, &times, samples);
                }
            }
        }
    }
    Ok(())
}

fn lanes(link: &Link, count: usize) -> io::Result<Vec<Lane>> {
    let tcp = |queue| link.connect_many(queue, count);
    let mut lanes = Vec::new();
    for (queue, by) in (1..).zip(PROVIDERS) {
        let flows = tcp(queue)?.into_iter();
        lanes.push(Lane {
            subject: by.name(),
            flows: flows
                .map(|c| (Tap::Tcp(c.tx), Sink::Devmem(c.rx)))
                .collect(),
        });
    }
    let flows = tcp(0)?.into_iter();
    lanes.push(Lane {
        subject: "tcp",
        flows: flows.map(|c| (Tap::Tcp(c.tx), Sink::Tcp(c.rx))).collect(),
    });
    let flows = (0..count).map(|_| {
        let (tx, rx) = UnixStream::pair()?;
        Ok((Tap::Unix(tx), Sink::Unix(rx)))
    });
    lanes.push(Lane {
        subject: "unix",
        flows: flows.collect::<io::Result<_>>()?,
    });
    lanes.push(Lane {
        subject: "loopback",
        flows: loopback(link, count)?,
    });
    Ok(lanes)
}

fn loopback(link: &Link, count: usize) -> io::Result<Vec<Flow>> {
    link.pair.rx.ip("link set lo up")?;
    link.pair.rx.ns.run(|| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        (0..count)
            .map(|_| {
                let tx = TcpStream::connect(listener.local_addr()?)?;
                tx.set_nodelay(true)?;
                Ok((Tap::Tcp(tx), Sink::Tcp(listener.accept()?.0)))
            })
            .collect()
    })
}

impl Lane {
    /// Sends so many messages by each flow; tells how long each took.
    fn transfer(&self, messages: usize) -> io::Result<Vec<Duration>> {
        let message = vec![1; MESSAGE];
        thread::scope(|scope| {
            let mut senders = Vec::new();
            let mut receivers = Vec::new();
            for (tap, sink) in &self.flows {
                let (arrived, arrival) = mpsc::channel();
                receivers.push(scope.spawn(move || sink.take(messages, &arrived)));
                let message = &message[..];
                senders.push(scope.spawn(move || tap.send(messages, message, &arrival)));
            }
            let mut times = Vec::new();
            for sender in senders {
                times.append(&mut sender.join().expect("a sender's thread")?);
            }
            for receiver in receivers {
                receiver.join().expect("a receiver's thread")?;
            }
            Ok(times)
        })
    }

    fn hand_in(&self, unit: Unit, elapsed: Duration, times: &[Duration], samples: &mut Samples) {
        let case = Case::new().with("flows", self.flows.len());
        let mib = (times.len() * MESSAGE) as f64 / f64::from(1 << 20);
        match unit {
            Unit::Instructions => {
                let cost = elapsed.as_nanos() as f64 / mib;
                samples.add(&case, self.subject, unit.name(), "MiB", cost);
            }
            Unit::Nanoseconds => {
                let rate = mib / elapsed.as_secs_f64();
                samples.add(&case, self.subject, "MiB/s", "all flows", rate);
            }
        }
        for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let at = ((times.len() as f64 * quantile).ceil() as usize).clamp(1, times.len());
            let case = case.clone().with("quantile", name);
            let time = times[at - 1].as_nanos() as f64;
            samples.add(&case, self.subject, unit.name(), "message", time);
        }
    }
}

impl Tap {
    fn send(
        &self,
        messages: usize,
        message: &[u8],
        arrival: &mpsc::Receiver<Instant>,
    ) -> io::Result<Vec<Duration>> {
        (0..messages)
            .map(|_| {
                let start = Instant::now();
                match self {
                    Self::Tcp(socket) => (&*socket).write_all(message)?,
                    Self::Unix(socket) => (&*socket).write_all(message)?,
                }
                let end = arrival
                    .recv()
                    .map_err(|_| io::Error::other("the receiver is gone"))?;
                Ok(end - start)
            })
            .collect()
    }
}

impl Sink {
    /// Takes messages, and tells when each was complete.
    fn take(&self, messages: usize, arrived: &mpsc::Sender<Instant>) -> io::Result<()> {
        let done = || {
            arrived
                .send(Instant::now())
                .map_err(|_| io::Error::other("the sender is gone"))
        };
        match self {
            Self::Devmem(socket) => take_devmem(socket, messages, done),
            Self::Tcp(socket) => take_copies(socket, messages, done),
            Self::Unix(socket) => take_copies(socket, messages, done),
        }
    }
}

fn take_copies<'s, S>(
    socket: &'s S,
    messages: usize,
    done: impl Fn() -> io::Result<()>,
) -> io::Result<()>
where
    &'s S: Read,
{
    let mut socket = socket;
    let mut buffer = vec![1; MESSAGE];
    for _ in 0..messages {
        socket.read_exact(&mut buffer)?;
        done()?;
    }
    Ok(())
}

fn take_devmem(
    socket: &TcpStream,
    messages: usize,
    done: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let mut receiver = Receiver::with_capacity(socket, MESSAGE, MESSAGE / 1024);
    let mut batch = TokenBatch::new(socket);
    for _ in 0..messages {
        let mut left = MESSAGE;
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
        done()?;
    }
    Ok(())
}
