// SPDX-License-Identifier: GPL-2.0

//! Receiving: what the receiver's system calls cost for a MiB, everything being in its queue before.
//!
//! So neither the sender nor the simulated DMA of the devices is in the figures. A queue each is bound by one of
//! the providers, and another by none: the same bytes in the same segments are read from there by plain
//! `recv()`, which copies them.

use std::io;
use std::thread;
use std::time::Duration;

use devmem::Binding;
use devmem::recv::TCP_DEVMEM_RUNS;
use devmem::recv::take_runs;
use devmem_testlib::Provider;
use devmem_testlib::pair::Connection;
use devmem_testlib::sockopt;
use libc::ENOPROTOOPT;
use libc::IPPROTO_TCP;

use crate::calls::Caller;
use crate::calls::Cost;
use crate::calls::Tokens;
use crate::link::Link;
use crate::link::PROVIDERS;
use crate::link::Segments;
use crate::link::queue_up;
use crate::link::select;
use crate::memory::Memory;
use crate::options::Options;
use crate::record::Case;
use crate::record::Samples;

const MIB: usize = 1 << 20;
const KIB: u32 = 1 << 10;
/// After this no acknowledgement is due any more, which the next call would send.
const DELAYED_ACK: Duration = Duration::from_millis(250);
/// Memory of a binding: what is queued, and what the ring and the page pool hold.
const MEMORY: usize = 16 * MIB;
/// The same for the largest buffers.
const MEMORY_LARGE: usize = 64 * MIB;

/// How the bytes come.
#[derive(Clone, Copy, Debug)]
struct Layout {
    segments: Segments,
    /// Size of the buffers.
    buffer: u32,
}

/// How they are received.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// Most bytes of a call.
    data: usize,
    /// Most control messages of a call.
    cmsgs: usize,
    tokens: Tokens,
    /// Tokens that the socket has out all the time.
    outstanding: usize,
}

/// The usual way.
const WAY: Way = Way {
    data: MIB,
    cmsgs: 1024,
    tokens: Tokens::Merged,
    outstanding: 0,
};

/// A segment of 64 KiB in buffers of 4 KiB, each of them full.
const PAGES: Layout = Layout {
    segments: Segments {
        mss: 4 * KIB,
        offload: true,
    },
    buffer: 4 * KIB,
};

/// All layouts of memory and segments.
fn layouts() -> Vec<Layout> {
    let layout = |mss, offload, buffer| Layout {
        segments: Segments { mss, offload },
        buffer,
    };
    vec![
        PAGES,
        // What a MTU of 1500 leaves.
        layout(1448, false, 4 * KIB),
        layout(4 * KIB, false, 4 * KIB),
        layout(4 * KIB, false, 16 * KIB),
        layout(16 * KIB, true, 16 * KIB),
        layout(4 * KIB, true, 64 * KIB),
    ]
}

/// The ways to receive with pages, the case that all targets are about.
fn ways(quick: bool) -> Vec<Way> {
    let mut ways = vec![WAY];
    for tokens in [Tokens::OneByOne, Tokens::Ranges, Tokens::Uring] {
        ways.push(Way { tokens, ..WAY });
    }
    ways.push(Way { cmsgs: 16, ..WAY });
    for outstanding in [1, 1000, 100_000] {
        ways.push(Way { outstanding, ..WAY });
    }
    if !quick {
        ways.push(Way {
            tokens: Tokens::Runs,
            ..WAY
        });
        for data in [512, 4096, 65_536] {
            ways.push(Way { data, ..WAY });
        }
    }
    ways
}

/// Measures.
pub fn run(options: &Options, samples: &mut Samples) -> io::Result<()> {
    for (index, &layout) in options.cases(&layouts()).iter().enumerate() {
        let (main, most) = (index == 0, index < 2);
        if options.quick && !most {
            continue;
        }
        let ways = if main { ways(options.quick) } else { vec![WAY] };
        let lab = Lab::new(layout)?;
        for &way in options.cases(&ways) {
            lab.measure(options, way, samples)?;
        }
    }
    Ok(())
}

/// The flow of one subject.
#[derive(Debug)]
struct Lane {
    connection: Connection,
    /// What serves it; plain TCP otherwise.
    bound: Option<(Provider, Binding, Memory)>,
}

impl Lane {
    fn subject(&self) -> &'static str {
        match &self.bound {
            Some((provider, ..)) => provider.name(),
            None => "tcp",
        }
    }
}

/// One layout, and a flow for each subject.
#[derive(Debug)]
struct Lab {
    layout: Layout,
    lanes: Vec<Lane>,
    _link: Link,
}

impl Lab {
    fn new(layout: Layout) -> io::Result<Self> {
        let link = Link::new(layout.segments)?;
        let mut lanes = Vec::new();
        for (queue, by) in (1..).zip(PROVIDERS) {
            let memory = memory(layout.buffer)?;
            let size = (layout.buffer != 4 * KIB).then_some(layout.buffer);
            let binding = link.bind(by, queue, &memory, size)?;
            lanes.push(Lane {
                connection: link.connect(queue)?,
                bound: Some((by, binding, memory)),
            });
        }
        lanes.push(Lane {
            connection: link.connect(0)?,
            bound: None,
        });
        Ok(Self {
            layout,
            lanes,
            _link: link,
        })
    }

    fn measure(&self, options: &Options, way: Way, samples: &mut Samples) -> io::Result<()> {
        // Plain TCP has no control messages and no tokens, and one way is enough.
        let copies = way.tokens == WAY.tokens && way.cmsgs == WAY.cmsgs && way.outstanding == 0;
        let lanes = || {
            self.lanes
                .iter()
                .filter(|lane| copies || lane.bound.is_some())
        };
        let mut callers: Vec<_> = lanes()
            .map(|lane| {
                let socket = &lane.connection.rx;
                (
                    lane,
                    Caller::new(options.clock, socket, way.data, way.cmsgs),
                )
            })
            .collect();
        for (lane, caller) in &mut callers {
            if lane.bound.is_some() {
                select(lane.subject())?;
                if way.tokens == Tokens::Runs {
                    // The C code does not, and goes on as it does.
                    take_runs(&lane.connection.rx)?;
                }
                hold(lane, caller, way.outstanding)?;
            }
        }
        // The first round warms up.
        for round in 0..=options.rounds {
            options.tell_round(round, 1);
            for (lane, caller) in &mut callers {
                queue_up(&lane.connection, MIB as u64, MIB)?;
                thread::sleep(DELAYED_ACK);
                caller.reset();
                select(lane.subject())?;
                match lane.bound {
                    Some(_) => drain(caller, way)?,
                    None => drain_copy(caller)?,
                }
                if round > 0 {
                    self.hand_in(options, way, lane, caller, samples);
                }
            }
        }
        for (lane, caller) in &mut callers {
            if lane.bound.is_some() {
                select(lane.subject())?;
                caller.give_back(Tokens::Merged, 0)?;
                if way.tokens == Tokens::Runs {
                    let off = sockopt::set(&lane.connection.rx, IPPROTO_TCP, TCP_DEVMEM_RUNS, 0);
                    // Kernels that do not know it have nothing to be switched off.
                    off.or_else(|err| match err.raw_os_error() {
                        Some(ENOPROTOOPT) => Ok(()),
                        _ => Err(err),
                    })?;
                }
            }
        }
        Ok(())
    }

    fn hand_in(
        &self,
        options: &Options,
        way: Way,
        lane: &Lane,
        caller: &Caller<'_>,
        samples: &mut Samples,
    ) {
        let case = Case::new()
            .with("mss", self.layout.segments.mss)
            .with(
                "offload",
                if self.layout.segments.offload {
                    "on"
                } else {
                    "off"
                },
            )
            .with("buffer", self.layout.buffer)
            .with("read", way.data)
            .with("cmsgs", way.cmsgs)
            .with("tokens", way.tokens.name())
            .with("outstanding", way.outstanding);
        let subject = lane.subject();
        let (recv, dontneed) = (caller.recv, caller.dontneed);
        let all = Cost {
            ticks: recv.ticks + dontneed.ticks,
            calls: recv.calls + dontneed.calls,
        };
        let unit = options.clock.unit().name();
        for (phase, cost) in [("all", all), ("recvmsg", recv), ("dontneed", dontneed)] {
            if phase != "all" && lane.bound.is_none() {
                continue;
            }
            let case = case.clone().with("phase", phase);
            samples.add(&case, subject, unit, "MiB", cost.ticks as f64);
            samples.add(&case, subject, "calls", "MiB", cost.calls as f64);
        }
        if lane.bound.is_some() {
            let bytes = caller.frag_bytes as f64 / caller.frags as f64;
            samples.add(&case, subject, "bytes", "frag", bytes);
            let token = (recv.ticks + dontneed.ticks) as f64 / caller.frags as f64;
            samples.add(&case, subject, unit, "token", token);
        }
    }
}

/// Memory for buffers of this size.
fn memory(buffer: u32) -> io::Result<Memory> {
    if buffer == 4 * KIB {
        return Memory::pages(MEMORY);
    }
    Memory::huge(if buffer > 16 * KIB {
        MEMORY_LARGE
    } else {
        MEMORY
    })
}

/// Has the socket hold tokens: peeking gives new ones for the same bytes.
fn hold(lane: &Lane, caller: &mut Caller<'_>, count: usize) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    queue_up(&lane.connection, MIB as u64, MIB)?;
    while caller.tokens.len() < count {
        caller.recv_devmem(libc::MSG_PEEK)?;
    }
    let start = caller.tokens.len();
    let mut left = MIB as u64;
    while left > 0 {
        left -= caller.recv_devmem(0)?;
    }
    caller.give_back(Tokens::Merged, start.min(count))
}

/// Receives a MiB, and gives the tokens back after each call.
fn drain(caller: &mut Caller<'_>, way: Way) -> io::Result<()> {
    let kept = caller.tokens.len();
    let mut left = MIB as u64;
    while left > 0 {
        left -= caller.recv_devmem(0)?;
        caller.give_back(way.tokens, kept)?;
    }
    Ok(())
}

fn drain_copy(caller: &mut Caller<'_>) -> io::Result<()> {
    let mut left = MIB as u64;
    while left > 0 {
        left -= caller.recv_copy()?;
    }
    Ok(())
}
