// SPDX-License-Identifier: GPL-2.0

//! What it costs to bind a dma-buf, to unbind it, and to keep it bound.
//!
//! The dma-bufs are of nothing, and their scatterlist is made before: neither pages nor their mapping are
//! in the figures. Neither is the restart of a queue, since the device is down. What any request costs is what it
//! costs to bind a single buffer, and is taken off where the figure is for a buffer.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::odd::OddDmaBuf;

use crate::clock::Unit;
use crate::layout::BUFFER;
use crate::layout::Bound;
use crate::layout::Layout;
use crate::layout::freeing_cost;
use crate::layout::idle_device;
use crate::layout::subjects;
use crate::layout::unfreed;
use crate::layout::wait_until_freed;
use crate::options::Options;
use crate::record::Samples;
use crate::record::median;

/// Bindings at once, of small dma-bufs, whose memory is told apart from what else goes on by their number.
const AT_ONCE: u32 = 8;
/// Bindings of one buffer of which the middle is taken.
const FIXED: u32 = 3;
/// Up to here dma-bufs are small. The C provider takes more than the 16 MiB themselves for each binding of
/// 16 MiB in single pages.
const SMALL: u64 = 16 << 20;
/// After this, what was freed is free: memory that was mapped is kept until there is more of it.
const SETTLED: Duration = Duration::from_millis(500);

/// What a binding costs.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    bind: f64,
    unbind: f64,
    /// `None` where times are measured: it is the same there, and to wait for it is what takes longest.
    memory: Option<f64>,
}

impl Cost {
    /// Its parts, their units, and what the records call them.
    fn parts(
        &self,
        ticks: &'static str,
    ) -> impl Iterator<Item = (&'static str, &'static str, f64)> {
        let memory = self.memory.map(|bytes| ("memory", "bytes", bytes));
        [("bind", ticks, self.bind), ("unbind", ticks, self.unbind)]
            .into_iter()
            .chain(memory)
    }

    /// The same for each of so many buffers, without what `one` buffer costs.
    fn per_buffer(&self, one: &Self, buffers: u64) -> Self {
        let rate = |all: f64, one: f64| (all - one) / (buffers - 1) as f64;
        Self {
            bind: rate(self.bind, one.bind),
            unbind: rate(self.unbind, one.unbind),
            memory: self.memory.zip(one.memory).map(|(all, one)| rate(all, one)),
        }
    }
}

/// Measures.
pub fn run(options: &Options, samples: &mut Samples) -> io::Result<()> {
    let pair = idle_device()?;
    let one = Layout::ONE.make()?;
    // What is allocated only once is no part of the first binding.
    for subject in subjects(0) {
        measure(options, &pair, subject, Layout::ONE, &one)?;
    }

    for layout in Layout::all(options.quick) {
        let dmabuf = layout.make()?;
        for round in 0..options.rounds {
            for subject in subjects(round) {
                let fixed = fixed(options, &pair, subject, &one)?;
                let all = measure(options, &pair, subject, layout, &dmabuf)?;
                hand_in(options, samples, subject, layout, &fixed, &all);
            }
        }
    }
    Ok(())
}

/// The middle of some bindings of one buffer: one that was disturbed would spoil the rates of the round.
fn fixed(
    options: &Options,
    pair: &Pair,
    subject: Provider,
    dmabuf: &OddDmaBuf,
) -> io::Result<Cost> {
    let costs = (0..FIXED)
        .map(|_| measure(options, pair, subject, Layout::ONE, dmabuf))
        .collect::<io::Result<Vec<_>>>()?;
    let middle = |part: fn(&Cost) -> f64| median(costs.iter().map(part).collect());
    Ok(Cost {
        bind: middle(|cost| cost.bind),
        unbind: middle(|cost| cost.unbind),
        memory: costs
            .iter()
            .map(|cost| cost.memory)
            .collect::<Option<Vec<_>>>()
            .map(median),
    })
}

fn hand_in(
    options: &Options,
    samples: &mut Samples,
    subject: Provider,
    layout: Layout,
    fixed: &Cost,
    all: &Cost,
) {
    let ticks = options.clock.unit().name();
    let rate = all.per_buffer(fixed, layout.buffers);
    for (layout, cost, per) in [
        (Layout::ONE, fixed, "binding"),
        (layout, all, "binding"),
        (layout, &rate, "buffer"),
    ] {
        for (op, unit, value) in cost.parts(ticks) {
            let case = layout.params().with("op", op);
            samples.add(&case, subject.name(), unit, per, value);
        }
    }
}

fn measure(
    options: &Options,
    pair: &Pair,
    subject: Provider,
    layout: Layout,
    dmabuf: &OddDmaBuf,
) -> io::Result<Cost> {
    let clock = &options.clock;
    let before = unfreed()?;
    let bind = |queue| Bound::new(pair, subject, [queue], dmabuf, clock);

    let (bound, cost) = bind(0)?;
    let ((), closed) = clock.measure(|| drop(bound));
    let unbind = closed + freeing_cost(before, clock)?;

    let memory = match clock.unit() {
        Unit::Instructions => Some(memory(layout, bind)?),
        Unit::Nanoseconds => None,
    };
    Ok(Cost {
        bind: cost as f64,
        unbind: unbind as f64,
        memory,
    })
}

/// Bytes that a binding keeps.
fn memory(layout: Layout, bind: impl FnMut(u32) -> io::Result<(Bound, u64)>) -> io::Result<f64> {
    let before = unfreed()?;
    let at_once = if layout.bytes() > SMALL { 1 } else { AT_ONCE };
    let free = free_memory()?;
    let bindings = (0..at_once).map(bind).collect::<io::Result<Vec<_>>>()?;
    let taken = free - free_memory()?;
    drop(bindings);
    wait_until_freed(before)?;
    Ok(taken / f64::from(at_once))
}

/// Bytes that are free: in the zones, and kept by CPUs for what they allocate next.
fn free_memory() -> io::Result<f64> {
    thread::sleep(SETTLED);
    let text = fs::read_to_string("/proc/zoneinfo")?;
    let pages: u64 = text
        .lines()
        .filter_map(|line| {
            let line = line.trim_start();
            let count = line
                .strip_prefix("nr_free_pages")
                .or_else(|| line.strip_prefix("count:"))?;
            count.trim().parse::<u64>().ok()
        })
        .sum();
    Ok((pages * BUFFER) as f64)
}
