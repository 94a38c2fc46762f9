// SPDX-License-Identifier: GPL-2.0

//! Sending: what the sender's system calls cost for a MiB, completions included.
//!
//! A queueing discipline holds the packets back until all calls are made. So the figures have TCP's way down to
//! the device in them, but neither the simulated DMA nor the receiver. Completions are read once all is
//! acknowledged, by `recvmsg()`.

use std::fs;
use std::io;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::ptr;
use std::thread;
use std::time::Duration;

use devmem::TxBinding;
use devmem::cmsg;
use devmem::completion;
use devmem::dmabuf::HUGE_PAGE;
use devmem::send::enable_zerocopy;
use devmem_testlib::pair::Connection;
use devmem_testlib::probe::received;

use crate::calls::Cost;
use crate::clock::Clock;
use crate::link::Link;
use crate::link::PROVIDERS;
use crate::link::Segments;
use crate::link::select;
use crate::link::wait_received;
use crate::memory::Memory;
use crate::message::Message;
use crate::options::Options;
use crate::record::Case;
use crate::record::Samples;
use crate::ring::ENTRIES;
use crate::ring::Ring;

const MIB: usize = 1 << 20;
const MEMORY: usize = HUGE_PAGE;
/// For so long packets are held back: longer than all calls take.
const HELD: Duration = Duration::from_millis(200);
/// The first rounds open the congestion window.
const WARM_UP: u32 = 3;

/// How it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A system call for each message.
    Sendmsg,
    /// A request for each, and a system call for as many as there is room for.
    Uring,
}

impl Way {
    /// What the records call it.
    fn name(self) -> &'static str {
        match self {
            Self::Sendmsg => "sendmsg",
            Self::Uring => "io_uring",
        }
    }
}

/// From where it is sent.
#[derive(Debug)]
enum Source {
    /// A dma-buf.
    Bound(TxBinding),
    /// Memory of the process, which the kernel copies.
    Copied,
    /// Memory of the process, which the kernel refers to.
    Zerocopy,
}

#[derive(Debug)]
struct Lane {
    subject: &'static str,
    source: Source,
    connection: Connection,
    data: Vec<u8>,
    ring: Ring<Message>,
    send: Cost,
    completions: Cost,
}

/// Measures.
pub fn run(options: &Options, samples: &mut Samples) -> io::Result<()> {
    let sizes: &[_] = if options.quick {
        &[(65_536, Way::Sendmsg), (65_536, Way::Uring)]
    } else {
        &[
            (4096, Way::Sendmsg),
            (4096, Way::Uring),
            (65_536, Way::Sendmsg),
            (65_536, Way::Uring),
            (MIB, Way::Sendmsg),
        ]
    };
    for (layout, memory) in [
        ("pages", Memory::pages(MEMORY)?),
        ("contiguous", Memory::huge(MEMORY)?),
    ] {
        let link = Link::new(Segments {
            mss: 4096,
            offload: true,
        })?;
        let mut lanes = lanes(&link, &memory)?;
        for &(size, way) in options.cases(sizes) {
            let case = Case::new()
                .with("layout", layout)
                .with("call", size)
                .with("by", way.name());
            for round in 0..options.rounds + WARM_UP {
                options.tell_round(round, WARM_UP);
                // Nobody is always first, or follows the same one.
                lanes.rotate_left(1);
                lanes.reverse();
                for lane in &mut lanes {
                    select(lane.subject)?;
                    lane.round(options.clock, size, way)?;
                    if round >= WARM_UP {
                        lane.hand_in(options.clock, &case, samples);
                    }
                }
            }
        }
    }
    Ok(())
}

/// A lane for each subject, behind a queueing discipline.
fn lanes(link: &Link, memory: &Memory) -> io::Result<Vec<Lane>> {
    let tx = &link.pair.tx;
    tx.tc(&format!(
        "qdisc add dev {} root netem delay {}ms limit 100000",
        tx.ifname,
        HELD.as_millis()
    ))?;
    tx.ns.run(|| {
        let set = |name: &str, value: &str| fs::write(format!("/proc/sys/net/{name}"), value);
        // Full segments and an open window, in spite of the round trips that this makes.
        set("ipv4/tcp_min_tso_segs", "16")?;
        set("ipv4/tcp_slow_start_after_idle", "0")?;
        set("ipv4/tcp_congestion_control", "reno")?;
        // Room for the notifications of all calls of a round.
        set("core/optmem_max", "4194304")
    })?;
    let mut sources = Vec::new();
    for by in PROVIDERS {
        sources.push((by.name(), Source::Bound(link.bind_tx(by, memory)?)));
    }
    sources.push(("send", Source::Copied));
    sources.push(("MSG_ZEROCOPY", Source::Zerocopy));
    sources
        .into_iter()
        .map(|(subject, source)| {
            let connection = link.connect(0)?;
            if !matches!(source, Source::Copied) {
                enable_zerocopy(&connection.tx)?;
            }
            Ok(Lane {
                subject,
                source,
                connection,
                data: vec![1; MIB],
                ring: Ring::new()?,
                send: Cost::default(),
                completions: Cost::default(),
            })
        })
        .collect()
}

impl Lane {
    /// Sends a MiB in messages of `size` bytes, and takes it off at the other end.
    fn round(&mut self, clock: Clock, size: usize, way: Way) -> io::Result<()> {
        self.send = Cost::default();
        self.completions = Cost::default();
        let end = received(&self.connection.rx)? + MIB as u64;
        let sent = match way {
            Way::Sendmsg => self.send_by_calls(clock, size)?,
            Way::Uring => self.send_by_ring(clock, size)?,
        };
        if sent != MIB as u64 {
            return Err(io::Error::other("the socket has no room"));
        }
        wait_received(&self.connection.rx, end)?;
        sink(&self.connection.rx)?;
        // The last acknowledgement is held back, too.
        thread::sleep(2 * HELD);
        if matches!(self.source, Source::Copied) {
            return Ok(());
        }
        let mut completed = 0;
        while completed < (MIB / size) as u64 {
            let (read, ticks) = clock.measure(|| completion::read(&self.connection.tx));
            self.completions.add(ticks);
            let list = read?.ok_or_else(|| io::Error::other("completions are missing"))?;
            completed += list.iter().map(|completion| completion.count).sum::<u64>();
        }
        Ok(())
    }

    fn send_by_calls(&mut self, clock: Clock, size: usize) -> io::Result<u64> {
        let mut sent = 0;
        for at in (0..MIB).step_by(size) {
            let mut message = self.message(at, size);
            let fd = self.connection.tx.as_raw_fd();
            let (ret, ticks) = clock.measure(|| message.send(fd));
            self.send.add(ticks);
            sent += ret?;
        }
        Ok(sent)
    }

    fn send_by_ring(&mut self, clock: Clock, size: usize) -> io::Result<u64> {
        let mut sent = 0;
        let starts: Vec<_> = (0..MIB).step_by(size).collect();
        for starts in starts.chunks(ENTRIES) {
            let messages: Vec<_> = starts.iter().map(|&at| self.message(at, size)).collect();
            self.ring
                .prepare(self.connection.tx.as_raw_fd(), messages)?;
            let (entered, ticks) = clock.measure(|| self.ring.enter());
            self.send.add(ticks);
            entered?;
            sent += self.ring.finish()?;
        }
        Ok(sent)
    }

    /// The message of the bytes from `at`.
    fn message(&self, at: usize, size: usize) -> Message {
        let process = self.data[at..at + size].as_ptr().cast_mut().cast();
        let (base, control, flags) = match &self.source {
            Source::Bound(binding) => (
                // An offset, never dereferenced.
                ptr::without_provenance_mut(at),
                Some(cmsg::tx_control(binding.id())),
                libc::MSG_ZEROCOPY,
            ),
            Source::Copied => (process, None, 0),
            Source::Zerocopy => (process, None, libc::MSG_ZEROCOPY),
        };
        let iov = libc::iovec {
            iov_base: base,
            iov_len: size,
        };
        Message::new(iov, control, flags | libc::MSG_DONTWAIT)
    }

    fn hand_in(&self, clock: Clock, case: &Case, samples: &mut Samples) {
        let all = Cost {
            ticks: self.send.ticks + self.completions.ticks,
            calls: self.send.calls + self.completions.calls,
        };
        let unit = clock.unit().name();
        for (phase, cost) in [
            ("all", all),
            ("send", self.send),
            ("completions", self.completions),
        ] {
            if phase == "completions" && matches!(self.source, Source::Copied) {
                continue;
            }
            let case = case.clone().with("phase", phase);
            samples.add(&case, self.subject, unit, "MiB", cost.ticks as f64);
            samples.add(&case, self.subject, "calls", "MiB", cost.calls as f64);
        }
    }
}

/// Throws a MiB away.
fn sink(mut socket: &TcpStream) -> io::Result<()> {
    socket.read_exact(&mut vec![0; MIB])
}
