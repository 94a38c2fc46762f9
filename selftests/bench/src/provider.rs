// SPDX-License-Identifier: GPL-2.0

//! What a buffer costs: taken from a provider and given back, without any packet.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use devmem_testlib::Pair;
use devmem_testlib::Provider;

use crate::clock::Unit;
use crate::layout::Bound;
use crate::layout::Layout;
use crate::layout::idle_device;
use crate::layout::subjects;
use crate::layout::test_device;
use crate::layout::unfreed;
use crate::layout::wait_until_freed;
use crate::options::Options;
use crate::record;
use crate::record::Samples;
use crate::record::median;

/// Buffers in a sample: a refill of a page pool.
const BATCH: u32 = 64;
/// More buffers than cache and ring of a page pool hold, which are 128 and 256.
const BURST: u32 = 2048;
/// Buffers left when most are taken.
const LEFT: u32 = 2 * BATCH;
/// Samples of which the median is taken: the timer interrupts some, and a pool's first is not like the
/// others.
const SAMPLES: usize = 9;
/// The same of a [`BURST`], which takes the C provider long.
const LONG_SAMPLES: usize = 3;
/// Buffers that are held of dma-bufs of which no larger part can be, see [`is_affordable`].
const SOME: u32 = 4096;
/// Queues that share a binding.
const SHARED: u32 = 8;

/// `struct devmem_test_bench`.
#[repr(C)]
struct Request {
    ifindex: u32,
    queue: u32,
    num_queues: u32,
    op: u32,
    clock: u32,
    reserved: u32,
    held: u32,
    stride: u32,
    count: u32,
    num_samples: u32,
    samples: u64,
}

/// `struct devmem_test_sample`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    take: u64,
    give: u64,
    buffers: u32,
    reserved: u32,
}

mod ioctls {
    use super::Request;

    nix::ioctl_write_ptr!(bench, b'D', 0x44, Request);
}

/// How buffers are taken and given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Op {
    /// By the provider's callbacks.
    Direct = 0,
    /// Through a page pool.
    Pool = 1,
    /// By the callbacks, given back several at a time if the provider offers that.
    DirectBulk = 2,
    /// Through a page pool, given back several at a time as returned tokens are.
    PoolBulk = 3,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pool => "pool",
            Self::DirectBulk => "direct, bulk",
            Self::PoolBulk => "pool, bulk",
        }
    }
}

/// How many buffers are held aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fill {
    Empty,
    /// So many, and no gap between them.
    Some,
    /// Half of them, the first ones that the provider gives out.
    Half,
    /// Each other one, of all.
    Scattered,
    /// All but a few.
    Full,
}

impl Fill {
    fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Some => "4096 held",
            Self::Half => "half",
            Self::Scattered => "every other",
            Self::Full => "nearly full",
        }
    }

    /// How many buffers to hold of a row that is so many times as long.
    fn held(self, layout: Layout) -> (u32, u32) {
        // A dma-buf has fewer buffers than a page has addresses.
        let buffers = layout.buffers as u32;
        match self {
            Self::Empty => (0, 1),
            Self::Some => (SOME, 1),
            Self::Half => (buffers / 2, 1),
            Self::Scattered => (buffers / 2, 2),
            Self::Full => (buffers - LEFT, 1),
        }
    }
}

/// What is measured of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    layout: Layout,
    op: Op,
    fill: Fill,
    queues: u32,
    count: u32,
}

impl Case {
    /// All cases of a dma-buf.
    fn all(layout: Layout) -> Vec<Self> {
        let case = |op, fill, queues, count| Self {
            layout,
            op,
            fill,
            queues,
            count,
        };
        let mut all = vec![
            case(Op::Direct, Fill::Empty, 1, BATCH),
            case(Op::Direct, Fill::Half, 1, BATCH),
            case(Op::Direct, Fill::Scattered, 1, BATCH),
            case(Op::Direct, Fill::Full, 1, BATCH),
            case(Op::DirectBulk, Fill::Empty, 1, BATCH),
            case(Op::DirectBulk, Fill::Half, 1, BATCH),
            case(Op::Pool, Fill::Empty, 1, BATCH),
            case(Op::PoolBulk, Fill::Empty, 1, BATCH),
        ];
        if layout.buffers > 2 * u64::from(BURST) {
            all.push(case(Op::Direct, Fill::Some, 1, BATCH));
        }
        if layout.buffers >= 2 * u64::from(BURST) {
            all.push(case(Op::Pool, Fill::Empty, 1, BURST));
            all.push(case(Op::Pool, Fill::Half, 1, BURST));
            all.push(case(Op::PoolBulk, Fill::Empty, 1, BURST));
            all.push(case(Op::PoolBulk, Fill::Half, 1, BURST));
            all.push(case(Op::Pool, Fill::Empty, SHARED, BATCH));
            all.push(case(Op::Direct, Fill::Empty, SHARED, BATCH));
        }
        all
    }

    fn measure(&self, ifindex: u32, unit: Unit) -> io::Result<Vec<Sample>> {
        let count = if self.count == BURST {
            LONG_SAMPLES
        } else {
            SAMPLES
        };
        let mut samples = vec![Sample::default(); count];
        let (held, stride) = self.fill.held(self.layout);
        let request = Request {
            ifindex,
            queue: 0,
            num_queues: self.queues,
            op: self.op as u32,
            clock: match unit {
                Unit::Instructions => 0,
                Unit::Nanoseconds => 1,
            },
            reserved: 0,
            held,
            stride,
            count: self.count,
            num_samples: count as u32,
            samples: samples.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: The argument of this ioctl, which writes as many samples as it is told to an array
        // that is ours.
        unsafe { ioctls::bench(test_device()?.as_raw_fd(), &request) }
            .map_err(|err| io::Error::other(format!("{self}: {err}")))?;
        Ok(samples)
    }

    fn params(&self) -> record::Case {
        self.layout
            .params()
            .with("op", self.op.name())
            .with("fill", self.fill.name())
            .with("queues", self.queues)
            .with("at_once", self.count)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            layout,
            op,
            fill,
            queues,
            count,
        } = self;
        let fill = fill.name();
        write!(
            f,
            "{layout}, {op:?}, {fill}, {queues} queues, {count} at once"
        )
    }
}

/// Which part of a buffer's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Take,
    Give,
    Both,
}

impl Part {
    const ALL: [Self; 3] = [Self::Take, Self::Give, Self::Both];

    fn name(self) -> &'static str {
        match self {
            Self::Take => "alloc",
            Self::Give => "release",
            Self::Both => "alloc + release",
        }
    }

    fn of(self, sample: &Sample) -> f64 {
        let cost = match self {
            Self::Take => sample.take,
            Self::Give => sample.give,
            Self::Both => sample.take + sample.give,
        };
        cost as f64 / f64::from(sample.buffers)
    }
}

/// Whether there is time to measure a case.
///
/// The C provider looks at all entries of which nothing is left before it finds a free one, so holding
/// many of a dma-buf of single pages takes it the square of their number.
fn is_affordable(subject: Provider, case: &Case) -> bool {
    const MOST: u64 = 100_000_000;
    if subject == Provider::Module {
        return true;
    }
    let (held, stride) = case.fill.held(case.layout);
    let taken = u64::from(held) * u64::from(stride) * case.layout.entries / case.layout.buffers;
    taken * taken / 2 <= MOST
}

/// Measures.
pub fn run(options: &Options, samples: &mut Samples) -> io::Result<()> {
    let pair = idle_device()?;
    let before = unfreed()?;

    for layout in Layout::all(options.quick) {
        let dmabuf = layout.make()?;
        for round in 0..options.rounds {
            for subject in subjects(round) {
                // Who shares a binding pays for that.
                for cases in Case::all(layout).chunk_by(|one, other| one.queues == other.queues) {
                    let queues = 0..cases[0].queues;
                    let (bound, _) = Bound::new(&pair, subject, queues, &dmabuf, &options.clock)?;
                    for case in cases {
                        if is_affordable(subject, case) {
                            measure(options, &pair, subject, case, samples)?;
                        } else if round == 0 {
                            eprintln!("{}: not measured, too slow: {case}", subject.name());
                        }
                    }
                    drop(bound);
                    wait_until_freed(before)?;
                }
            }
        }
    }
    Ok(())
}

fn measure(
    options: &Options,
    pair: &Pair,
    subject: Provider,
    case: &Case,
    samples: &mut Samples,
) -> io::Result<()> {
    let unit = options.clock.unit();
    let measured = pair.rx.ns.run(|| case.measure(pair.rx.ifindex, unit))?;
    for part in Part::ALL {
        let cost = median(measured.iter().map(|sample| part.of(sample)).collect());
        let params = case.params().with("part", part.name());
        samples.add(&params, subject.name(), unit.name(), "buffer", cost);
    }
    Ok(())
}
