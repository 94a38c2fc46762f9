// SPDX-License-Identifier: GPL-2.0

//! Bindings, sockets and dma-bufs that one process closes, in any order.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::TxBinding;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::aftermath;
use devmem_testlib::grace::Pace;
use devmem_testlib::machine;
use devmem_testlib::pair::Ip;
use devmem_testlib::pump;
use devmem_testlib::pump::Pump;
use devmem_testlib::pump::reset_on_close;
use devmem_testlib::storm;
use devmem_testlib::storm::Storm;
use devmem_testlib::storm::at_once;
use devmem_testlib::taker::Taker;
use devmem_testlib::traffic;
use fastrand::Rng;

use crate::flows::Flows;
use crate::flows::From;

/// More than the rings of a few queues take.
const MEMORY: usize = 8 << 20;
const PORT: u16 = 5000;
/// The queues that are bound here; flows to `PORT` and a queue's number go there.
const QUEUES: u32 = 4;

/// What a step closes.
enum Closing {
    Binding(Binding),
    TxBinding(TxBinding),
    Memory(DmaBuf),
    Reader(Taker),
    Socket(TcpStream),
}

impl Closing {
    /// Closes it, the tokens that a reader holds first looked at, and perhaps some of them returned.
    fn close(self, returned: usize) -> Outcome {
        match self {
            Self::Reader(mut taker) => {
                taker.check()?;
                taker.give_back(&mut Rng::with_seed(returned as u64), returned)?;
            }
            Self::Binding(binding) => drop(binding),
            Self::TxBinding(binding) => drop(binding),
            Self::Memory(memory) => drop(memory),
            Self::Socket(socket) => drop(socket),
        }
        Ok(())
    }
}

/// What a step does.
#[derive(Debug)]
struct Plan {
    queues: Vec<u32>,
    /// Bytes sent to each connection, and how many of them are taken.
    flows: Vec<(u32, u64, u64)>,
    /// Whether the other direction is bound and sends, too.
    transmit: Option<u64>,
    /// Whether all is closed at the same instant, by threads.
    at_once: bool,
    order: u64,
}

impl Plan {
    fn draw(rng: &mut Rng) -> Self {
        let mut queues: Vec<u32> = (1..=QUEUES).collect();
        rng.shuffle(&mut queues);
        queues.truncate(rng.usize(1..=3));
        let flows = (0..rng.usize(1..=3))
            .map(|_| {
                let queue = queues[rng.usize(0..queues.len())];
                let sent = rng.u64(1..=100_000);
                (queue, sent, rng.u64(0..=sent))
            })
            .collect();
        Self {
            queues,
            flows,
            transmit: rng.bool().then(|| rng.u64(1..=pump::MOST)),
            at_once: rng.bool(),
            order: rng.u64(..),
        }
    }
}

/// Closes in the plan's order, or has as many threads do it at the same instant.
fn close(mut things: Vec<Closing>, plan: &Plan) -> Outcome {
    let mut rng = Rng::with_seed(plan.order);
    rng.shuffle(&mut things);
    let returned: Vec<_> = things.iter().map(|_| rng.usize(0..50)).collect();
    let things = things.into_iter().zip(returned);
    if !plan.at_once {
        for (thing, returned) in things {
            thing.close(returned)?;
        }
        return Ok(());
    }
    at_once(things.map(|(thing, returned)| move || thing.close(returned)))
}

fn step(pair: &Pair, plan: &Plan) -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = Arc::new(memory.map()?);
    let binding = pair.bind(&plan.queues, &memory)?;
    let memories = [(binding.id(), map)];
    let mut things = vec![Closing::Binding(binding), Closing::Memory(memory)];
    for &(queue, sent, taken) in &plan.flows {
        let connection = pair.connect(&pair.listen(Ip::V4, PORT + queue as u16)?)?;
        traffic::send(&connection.tx, 0, sent, sent as usize)?;
        let mut taker = Taker::new(connection.rx, &memories);
        taker.take_until(taken)?;
        things.push(Closing::Reader(taker));
        things.push(Closing::Socket(connection.tx));
    }
    if let Some(len) = plan.transmit {
        let memory = pump::memory()?;
        let binding = pair.tx.bind_tx(&memory)?;
        let queue = plan.queues[0] as u16;
        let connection = pair.connect(&pair.listen(Ip::V4, PORT + queue)?)?;
        reset_on_close(&connection.tx)?;
        let mut pump = Pump::new(connection.tx)?;
        pump.send(binding.id(), len)?;
        things.extend([
            Closing::TxBinding(binding),
            Closing::Memory(memory),
            Closing::Reader(Taker::new(connection.rx, &memories)),
            Closing::Socket(pump.socket),
        ]);
    }
    close(things, plan)
}

fn steer(pair: &Pair) -> io::Result<()> {
    (1..=QUEUES).try_for_each(|queue| pair.steer(PORT + queue as u16, queue))
}

/// Netlink sockets before, with and after TCP sockets, with tokens outstanding and data queued.
pub fn closed_in_any_order() -> Outcome {
    storm::run(|storm| {
        const STEPS: u32 = 60;
        let pair = Pair::new()?;
        steer(&pair)?;
        for _ in 0..storm.steps(STEPS) {
            let plan = Plan::draw(&mut storm.rng);
            storm.step(&plan);
            step(&pair, &plan)?;
            storm.count("connections", plan.flows.len() as u64);
        }
        aftermath::on(&pair, 1)
    })
}

/// One of the requests of [`bound_and_unbound`].
#[derive(Debug)]
struct Cycle {
    queues: Vec<u32>,
    /// Pages of the dma-buf.
    pages: usize,
    heap: bool,
    close_memory_first: bool,
    transmit: bool,
}

impl Cycle {
    fn draw(rng: &mut Rng) -> Self {
        // A queue takes its time to restart.
        let count = if rng.u8(0..4) == 0 {
            rng.usize(1..=QUEUES as usize)
        } else {
            1
        };
        Self {
            queues: rng.choose_multiple(1..=QUEUES, count),
            pages: 1 << rng.u32(0..=8),
            heap: rng.bool(),
            close_memory_first: rng.bool(),
            transmit: rng.u8(0..3) == 0,
        }
    }

    fn run(&self, pair: &Pair) -> Outcome {
        let size = self.pages * 4096;
        let memory = match self.heap {
            true => DmaBuf::system_heap(size)?,
            false => DmaBuf::udmabuf(size)?,
        };
        let bound = match self.transmit {
            true => Closing::TxBinding(pair.tx.bind_tx(&memory)?),
            false => Closing::Binding(pair.bind(&self.queues, &memory)?),
        };
        match self.close_memory_first {
            true => Closing::Memory(memory).close(0)?,
            // Refused: the queues are taken.
            false if !self.transmit => {
                let again = pair
                    .rx
                    .ns
                    .run(|| Ok(pair.request(&self.queues).bind(&memory)))?;
                let err = again.expect_err("bound twice");
                assert_eq!(err.errno(), Some(libc::EEXIST), "{err}");
            }
            false => (),
        }
        bound.close(0)?;
        Ok(())
    }
}

/// Bytes of kernel memory in use, as far as a cycle may take any.
///
/// Without slabs where KASAN is: it keeps what was freed there, and so much of it that nothing can be
/// told from how it grows. There kmemleak looks for what was lost.
fn kernel_memory() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let names = ["VmallocUsed:", "Shmem:", "SUnreclaim:"];
    let told = if machine::is_slow() { 2 } else { 3 };
    let kilobytes: Option<u64> = names[..told].iter().map(|name| field(name)).sum();
    Ok(kilobytes.expect("fields of /proc/meminfo") << 10)
}

/// Thousands of bindings, one after the other, on several devices at once and beside a flow that goes on.
pub fn bound_and_unbound() -> Outcome {
    /// Devices, on each of which a step binds once.
    const PAIRS: usize = 4;
    /// Before the first look at the kernel's memory: by then its caches have what they keep.
    const WARM: u32 = 25;
    const STEPS: u32 = 600;
    /// One of so many steps is at the usual pace.
    const USUAL: u32 = 4;
    /// Far less than what even the smallest structure of a binding would take, were it lost each time.
    const GROWTH: u64 = 4 << 20;
    storm::run(|storm| {
        let pairs: Vec<Pair> = (0..PAIRS).map(|_| Pair::new()).collect::<Result<_, _>>()?;
        let memory = DmaBuf::udmabuf(MEMORY)?;
        let binding = pairs[0].bind(&[QUEUES + 1], &memory)?;
        let memories = [(binding.id(), Arc::new(memory.map()?))];
        let connection = pairs[0].connect_to_queue(Ip::V4, PORT, QUEUES + 1)?;
        let mut flows = Flows::new();
        flows.start(connection, From::Host, &memories, storm.rng.u64(..))?;

        let mut pace = Pace::current()?;
        let mut steps = |storm: &mut Storm, count| -> Outcome {
            for step in 0..count {
                pace.hurry(step % USUAL != 0)?;
                let cycles: Vec<_> = pairs.iter().map(|_| Cycle::draw(&mut storm.rng)).collect();
                storm.step(&cycles);
                at_once(
                    pairs
                        .iter()
                        .zip(&cycles)
                        .map(|(pair, cycle)| || cycle.run(pair)),
                )?;
                storm.count("cycles", cycles.len() as u64);
            }
            Ok(())
        };
        steps(storm, WARM)?;
        let before = kernel_memory()?;
        let count = storm.steps(STEPS);
        steps(storm, count)?;
        let growth = kernel_memory()?.saturating_sub(before);
        drop(pace);
        storm.count("bytes received meanwhile", flows.finish()?);
        storm.count("bytes of kernel memory more", growth);
        assert!(growth < GROWTH, "kernel memory grew by {growth} bytes");
        drop((binding, memories));
        pairs.iter().try_for_each(|pair| aftermath::on(pair, 1))
    })
}
