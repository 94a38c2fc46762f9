// SPDX-License-Identifier: GPL-2.0

//! dma-bufs of any size and scatterlist, made of nothing, and bound.

use std::fmt;
use std::fs::File;
use std::io;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::netdev::Netdev;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::provider;

use crate::clock::Clock;
use crate::clock::Unit;
use crate::record::Case;

/// Bytes of a buffer.
pub const BUFFER: u64 = 4096;
const MIB: u64 = 1 << 20;
/// A DMA address behind which there is nothing.
const NOWHERE: u64 = 1 << 40;
/// How long a binding may take to go. The C provider frees 1 GiB of single pages in half a minute.
const GONE: Duration = Duration::from_secs(120);
/// How often to look whether a binding is gone.
const POLL: Duration = Duration::from_millis(10);

/// What a dma-buf looks like to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layout {
    /// Buffers in all.
    pub buffers: u64,
    /// Scatterlist entries, all of the same length, none next to another.
    pub entries: u64,
}

impl Layout {
    /// A single buffer: what a binding costs that has next to nothing.
    pub const ONE: Self = Self {
        buffers: 1,
        entries: 1,
    };

    /// One entry.
    pub const fn contiguous(mib: u64) -> Self {
        Self::of_entries(mib, 1)
    }

    /// An entry for each buffer, which is what a udmabuf of ordinary pages has.
    pub const fn pages(mib: u64) -> Self {
        Self::of_entries(mib, mib * MIB / BUFFER)
    }

    /// So many entries.
    pub const fn of_entries(mib: u64, entries: u64) -> Self {
        Self {
            buffers: mib * MIB / BUFFER,
            entries,
        }
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> u64 {
        self.buffers * BUFFER
    }

    /// All that are measured, or with `quick` a few small ones.
    pub fn all(quick: bool) -> Vec<Self> {
        let sizes: &[u64] = if quick { &[1, 16] } else { &[1, 16, 256, 1024] };
        let mut all: Vec<_> = sizes
            .iter()
            .flat_map(|&mib| [Self::contiguous(mib), Self::pages(mib)])
            .collect();
        if !quick {
            all.extend([16, 256].map(|entries| Self::of_entries(16, entries)));
        }
        all
    }

    /// What the records call it.
    pub fn params(&self) -> Case {
        let layout = match self.entries {
            1 => "contiguous",
            entries if entries == self.buffers => "pages",
            _ => "pieces",
        };
        Case::new()
            .with("size_mib", self.bytes() / MIB)
            .with("layout", layout)
            .with("entries", self.entries)
    }

    /// Makes the dma-buf.
    pub fn make(&self) -> io::Result<OddDmaBuf> {
        let len = self.bytes() / self.entries;
        let segments: Vec<_> = (0..self.entries)
            .map(|i| Segment {
                addr: NOWHERE + 2 * i * len,
                len,
            })
            .collect();
        Shape::new(&segments).of_nothing()
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} KiB in {} entries", self.bytes() / 1024, self.entries)
    }
}

/// Both providers, in an order that changes from round to round.
pub fn subjects(round: u32) -> [Provider; 2] {
    match round % 2 {
        0 => [Provider::Module, Provider::Builtin],
        _ => [Provider::Builtin, Provider::Module],
    }
}

/// A device that has no page pools and no buffers of its own, being down.
///
/// Queues can be bound all the same, and the tests' module makes its page pools on them.
pub fn idle_device() -> io::Result<Pair> {
    let pair = Pair::new()?;
    pair.rx.set_up(false)?;
    Ok(pair)
}

/// A dma-buf bound to queues, until this is dropped.
#[derive(Debug)]
pub struct Bound {
    /// The number of the binding.
    pub id: u32,
    _netdev: Netdev,
}

impl Bound {
    /// Has this provider bind a dma-buf to queues of the receiving end, and tells what the request took.
    pub fn new(
        pair: &Pair,
        provider: Provider,
        queues: impl IntoIterator<Item = u32>,
        dmabuf: &OddDmaBuf,
        clock: &Clock,
    ) -> io::Result<(Self, u64)> {
        let queues: Vec<_> = queues.into_iter().collect();
        devmem::provider::select(provider.name())?;
        let mut netdev = pair.rx.ns.run(|| Ok(Netdev::open()?))?;
        let attrs = pair.request(&queues).attrs(dmabuf);
        let (id, cost) = clock.measure(|| netdev.bind_rx(&attrs));
        let bound = Self {
            id: id?,
            _netdev: netdev,
        };

        let served_by = devmem::provider::binding(bound.id)?.provider;
        if served_by != provider.name() {
            return Err(io::Error::other(format!(
                "{served_by} serves the binding, not {}",
                provider.name()
            )));
        }
        Ok((bound, cost))
    }
}

/// How many bindings have not been freed: those that the kernel lists, and devices that are attached to dma-bufs, of
/// a kernel without that list. The mapping goes first, often as soon as a binding is unbound.
pub fn unfreed() -> io::Result<u64> {
    let listed = provider::bindings()?.map_or(0, |list| list.len() as u64);
    Ok(provider::attachments()?.max(listed))
}

/// Waits until there are no more bindings than before.
pub fn wait_until_freed(others: u64) -> io::Result<()> {
    let start = Instant::now();
    while unfreed()? > others {
        if start.elapsed() > GONE {
            return Err(io::Error::other("a binding is not freed"));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Like [`wait_until_freed`], and tells what this CPU did meanwhile: it is kept from being idle, and what
/// takes it away is counted. On more than one CPU that is not all, so it is the time until then there.
pub fn freeing_cost(others: u64, clock: &Clock) -> io::Result<u64> {
    /// Turns between two looks.
    const TURNS: u32 = 10_000;
    /// A turn takes less than this, whatever takes the CPU away takes more.
    const GAP: u64 = 300;

    if clock.unit() == Unit::Nanoseconds {
        let (freed, cost) = clock.measure(|| wait_until_freed(others));
        return freed.map(|()| cost);
    }
    let mut looks = Vec::new();
    let mut cost = 0;
    loop {
        let mut last = clock.now();
        for _ in 0..TURNS {
            let now = clock.now();
            cost += Some(now - last).filter(|&gap| gap > GAP).unwrap_or(0);
            last = now;
        }
        let (left, look) = clock.measure(unfreed);
        looks.push(look);
        if left? <= others {
            // What took longer for a look than it takes did something else.
            let least = looks.iter().min().copied().unwrap_or(0);
            return Ok(cost + looks.iter().map(|look| look - least).sum::<u64>());
        }
    }
}

/// The device of the tests' module, which [`Layout::make`] loads.
pub fn test_device() -> io::Result<File> {
    File::open("/dev/devmem_test")
}
