// SPDX-License-Identifier: GPL-2.0

//! Devices that are disturbed, or taken away, while data flows through them both ways.

use std::io;
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::TxBinding;
use devmem::netns::Netns;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::aftermath;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::pump;
use devmem_testlib::storm;
use devmem_testlib::storm::Storm;

use crate::flows::Flows;
use crate::flows::From;

const MEMORY: usize = 8 << 20;
const QUEUES: u32 = 8;
const PORT: u16 = 5000;
/// The queue that is bound. Flows go to no queue beyond it.
const BOUND: u32 = 2;
/// A queue that is not.
const ORDINARY: u32 = 1;
/// The least number of queues with the bound one among them.
const NEXT: u32 = BOUND + 1;

/// A pair that is bound both ways.
struct Ends {
    pair: Pair,
    rx: Binding,
    tx: TxBinding,
}

impl Ends {
    /// Binds, and has data flow: from either kind of memory, to either kind of queue.
    fn new(storm: &mut Storm) -> io::Result<(Self, Flows)> {
        let pair = Pair::new()?;
        let memory = DmaBuf::udmabuf(MEMORY)?;
        let rx = pair.bind(&[BOUND], &memory)?;
        let tx = pair.tx.bind_tx(&pump::memory()?)?;
        let memories = [(rx.id(), Arc::new(memory.map()?))];
        let mut flows = Flows::new();
        for (port, queue, from) in [
            (PORT, BOUND, From::Host),
            (PORT + 1, BOUND, From::Device(tx.id())),
            (PORT + 2, ORDINARY, From::Device(tx.id())),
        ] {
            let connection = pair.connect_to_queue(Ip::V4, port, queue)?;
            flows.start(connection, from, &memories, storm.rng.u64(..))?;
        }
        Ok((Self { pair, rx, tx }, flows))
    }
}

/// What happens to devices in their life.
#[derive(Debug)]
enum Disturbance {
    /// The receiver's interface goes down for a while, or the sender's.
    Down {
        rx: bool,
        time: Duration,
    },
    /// The cable is pulled for a while.
    Unplugged(Duration),
    Mtu(u32),
    /// The receiver's queues get fewer or more.
    Channels(u32),
    /// A queue is restarted, in one of netdevsim's ways.
    Reset {
        queue: u32,
        mode: u32,
    },
    /// Segmentation offload at the sender.
    Offload(bool),
    /// Flows to the first port move to this queue.
    Steer(u32),
}

impl Disturbance {
    fn draw(storm: &mut Storm) -> Self {
        const TIME: u32 = 40;
        match storm.rng.u8(0..8) {
            0 => Self::Down {
                rx: storm.rng.bool(),
                time: storm.instant(TIME),
            },
            1 => Self::Unplugged(storm.instant(TIME)),
            2 => Self::Mtu(storm.rng.u32(576..=9000)),
            3 => Self::Channels(storm.rng.u32(1..=QUEUES)),
            4 => Self::Offload(storm.rng.bool()),
            5 => Self::Steer(storm.rng.u32(0..=BOUND)),
            _ => Self::Reset {
                queue: storm.rng.u32(0..QUEUES),
                mode: storm.rng.u32(0..=3),
            },
        }
    }

    fn happen(&self, pair: &Pair) -> io::Result<()> {
        match *self {
            Self::Down { rx, time } => {
                let end = if rx { &pair.rx } else { &pair.tx };
                end.set_up(false)?;
                thread::sleep(time);
                end.set_up(true)
            }
            Self::Unplugged(time) => {
                pair.unplug()?;
                thread::sleep(time);
                pair.plug()
            }
            Self::Mtu(mtu) => pair.set_mtu(mtu),
            Self::Channels(count) => {
                let set = pair.rx.set_channels(count);
                match count {
                    // What is bound, or has flows, cannot be taken away.
                    ..=BOUND => assert!(set.is_err(), "{count} queues"),
                    // The kernel may ask for one queue more than there have to be.
                    NEXT => (),
                    _ => set?,
                }
                // The other flows want theirs back.
                pair.rx.set_channels(QUEUES)
            }
            Self::Reset { queue, mode } => pair.rx.reset_queue(queue, mode),
            Self::Offload(on) => pair.tx.set_offload(on),
            Self::Steer(queue) => pair.steer_again(PORT, queue),
        }
    }
}

/// All that was sent arrives in the end, and as it was.
pub fn disturbed() -> Outcome {
    storm::run(|storm| {
        const STEPS: u32 = 60;
        let (Ends { pair, rx, tx }, flows) = Ends::new(storm)?;
        for _ in 0..storm.steps(STEPS) {
            let disturbance = Disturbance::draw(storm);
            let pause = storm.instant(20);
            storm.step((&disturbance, pause));
            disturbance.happen(&pair)?;
            thread::sleep(pause);
        }
        let bound = pair
            .queues()?
            .iter()
            .any(|queue| queue.dmabuf == Some(rx.id()));
        assert!(bound, "the binding did not survive");
        storm.count("bytes", flows.finish()?);
        drop((rx, tx));
        aftermath::on(&pair, BOUND)
    })
}

/// What goes first.
#[derive(Debug)]
enum Loss {
    Receiver,
    Sender,
    Both,
    /// Both network namespaces, which the devices leave for the first.
    Namespaces,
    /// The netdevsim module, with all devices.
    Driver,
}

/// One who loses a device.
#[derive(Debug)]
struct Plan {
    loss: Loss,
    after: Duration,
    /// Whether it is unbound before.
    unbound: bool,
    /// Whether the sockets are closed before.
    closed: bool,
}

impl Plan {
    fn draw(storm: &mut Storm) -> Self {
        Self {
            loss: match storm.rng.u8(0..6) {
                0 | 1 => Loss::Receiver,
                2 => Loss::Sender,
                3 => Loss::Both,
                4 => Loss::Namespaces,
                _ => Loss::Driver,
            },
            after: storm.instant(100),
            unbound: storm.rng.bool(),
            closed: storm.rng.bool(),
        }
    }

    fn run(&self, bench: Ends, flows: Flows) -> Outcome {
        let Ends { mut pair, rx, tx } = bench;
        let mut bindings = Some((rx, tx));
        let mut flows = Some(flows);
        thread::sleep(self.after);
        if self.unbound {
            bindings = None;
        }
        // A namespace goes with the last socket of it.
        let namespaces = matches!(self.loss, Loss::Namespaces);
        if self.closed || namespaces {
            flows.take().map_or(Ok(()), Flows::abort)?;
        }
        match self.loss {
            Loss::Receiver => pair.rx.delete()?,
            Loss::Sender => pair.tx.delete()?,
            Loss::Both => {
                pair.rx.delete()?;
                pair.tx.delete()?;
            }
            Loss::Namespaces => {
                bindings = None;
                for end in [&mut pair.rx, &mut pair.tx] {
                    drop(mem::replace(&mut end.ns, Netns::current()?));
                }
            }
            Loss::Driver => return unloaded(&pair, bindings, flows),
        }
        flows.map_or(Ok(()), Flows::abort)?;
        drop(bindings);
        Ok(())
    }
}

/// Unloads the driver under its devices. It waits until nobody holds a piece of memory that was mapped for
/// one of them; then it is gone at once.
fn unloaded(pair: &Pair, bindings: Option<(Binding, TxBinding)>, flows: Option<Flows>) -> Outcome {
    thread::scope(|scope| -> Outcome {
        let unloader = scope.spawn(aftermath::unload_netdevsim);
        aftermath::gone(&pair.rx)?;
        flows.map_or(Ok(()), Flows::abort)?;
        drop(bindings);
        aftermath::no_bindings()?;
        unloader.join().expect("the thread that unloads")?;
        Ok(())
    })?;
    for end in [&pair.rx, &pair.tx] {
        end.delete().expect_err("the device went with its driver");
    }
    Ok(provider::load_netdevsim()?)
}

pub fn taken_away() -> Outcome {
    storm::run(|storm| {
        const STEPS: u32 = 16;
        for _ in 0..storm.steps(STEPS) {
            let plan = Plan::draw(storm);
            storm.step(&plan);
            let (bench, flows) = Ends::new(storm)?;
            plan.run(bench, flows)?;
            aftermath::no_bindings()?;
        }
        aftermath::transfer(&Pair::new()?, BOUND)
    })
}
