// SPDX-License-Identifier: GPL-2.0

//! Memory both ways is taken back in the middle of everything else that ends.

use std::io;
use std::io::Write;
use std::mem;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::Piece;
use devmem::Receiver;
use devmem::netdev::Netdev;
use devmem::netns::Netns;
use devmem::send::enable_zerocopy;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::aftermath;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::pump::reset_on_close;
use devmem_testlib::storm;
use devmem_testlib::storm::Storm;
use devmem_testlib::traffic;
use devmem_testlib::tx::Call;
use devmem_testlib::tx::extent;

use crate::memory::LEN;
use crate::memory::memory;
use crate::memory::shape;
use crate::memory::wait_gone;

const PORT: u16 = 5000;
const QUEUES: [u32; 2] = [1, 2];
const STEPS: u32 = 32;

/// What happens at the same time.
#[derive(Debug)]
enum Also {
    /// The owners unbind.
    Unbound,
    /// The sockets are closed.
    Closed,
    /// The receiver's device goes, or the sender's.
    Deleted { rx: bool },
    /// The sender's device moves to another namespace, and back.
    Moved,
    /// One of the two goes down for a while.
    Down { rx: bool, time: Duration },
    /// A bound queue is restarted.
    Reset { queue: u32, mode: u32 },
    /// The driver goes, with all devices.
    Unloaded,
    /// Nothing.
    Nothing,
}

#[derive(Debug)]
struct Plan {
    /// How long data flows before.
    before: Duration,
    also: Also,
    /// When each of the three begins: taking what is received into, what is sent from, and the other thing.
    delays: [Duration; 3],
    /// Whether the memory can move.
    moves: bool,
}

impl Plan {
    fn draw(storm: &mut Storm) -> Self {
        let also = match storm.rng.u8(0..9) {
            0 => Also::Unbound,
            1 => Also::Closed,
            2 | 3 => Also::Deleted {
                rx: storm.rng.bool(),
            },
            4 => Also::Moved,
            5 => Also::Down {
                rx: storm.rng.bool(),
                time: storm.instant(20),
            },
            6 => Also::Reset {
                queue: QUEUES[storm.rng.usize(0..2)],
                mode: storm.rng.u32(0..=3),
            },
            7 => Also::Unloaded,
            _ => Also::Nothing,
        };
        Self {
            before: storm.instant(50),
            also,
            delays: [(); 3].map(|()| storm.instant(20)),
            moves: storm.rng.bool(),
        }
    }
}

/// Sends until it cannot.
fn send(socket: &TcpStream, from: Option<u32>) {
    let mut position = 0;
    loop {
        let sent = match from {
            Some(id) => Call::new(id, &[extent(0, LEN)]).send(socket),
            None => (&mut &*socket).write(traffic::bytes(position, 1 << 16)),
        };
        match sent {
            Ok(now) => position += now as u64,
            Err(_) => return,
        }
    }
}

/// Receives until there is nothing more. What is in host memory is compared if it is the stream.
fn receive(socket: &TcpStream, is_stream: bool) {
    let mut receiver = Receiver::new(socket);
    let mut position = 0;
    loop {
        let Ok(received) = receiver.recv() else {
            return;
        };
        if received.is_eof() {
            return;
        }
        for piece in received {
            position += match piece {
                Piece::Frag(frag) => u64::from(frag.size),
                Piece::Linear(data) | Piece::Plain(data) => {
                    if is_stream {
                        traffic::compare(position, data);
                    }
                    data.len() as u64
                }
            };
        }
    }
}

/// Everything that can be taken, or go.
struct Stage {
    pair: Pair,
    received: OddDmaBuf,
    sent: OddDmaBuf,
    id: u32,
    owners: [Netdev; 2],
    connections: [Connection; 2],
}

impl Stage {
    fn new(plan: &Plan) -> io::Result<Self> {
        let shape = shape().demands_peer().demands_revocable();
        let shape = if plan.moves { shape.moves() } else { shape };
        let (received, sent) = (memory(&shape)?, memory(&shape)?);
        let pair = Pair::new()?;
        let rx = pair.rx.ns.run(|| {
            let mut netdev = Netdev::open()?;
            netdev.bind_rx(&pair.request(&QUEUES).attrs(&received))?;
            Ok(netdev)
        })?;
        let (tx, id) = pair.tx.ns.run(|| {
            let mut netdev = Netdev::open()?;
            let id = netdev.bind_tx(&BindTx::new(pair.tx.ifindex).attrs(&sent))?;
            Ok((netdev, id))
        })?;
        let connections =
            [0, 1].map(|nth| pair.connect_to_queue(Ip::V4, PORT + nth as u16, QUEUES[nth]));
        let [first, second] = connections;
        let connections = [first?, second?];
        for connection in &connections {
            enable_zerocopy(&connection.tx)?;
            reset_on_close(&connection.tx)?;
        }
        Ok(Self {
            pair,
            received,
            sent,
            id,
            owners: [rx, tx],
            connections,
        })
    }

    fn shut_down(connections: &[Connection; 2]) {
        for socket in connections.iter().flat_map(|one| [&one.rx, &one.tx]) {
            // It may have been aborted.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn happen(pair: &Pair, also: &Also, owners: &mut Option<[Netdev; 2]>) -> Outcome {
        match *also {
            Also::Unbound => *owners = None,
            Also::Deleted { rx: true } => pair.rx.delete()?,
            Also::Deleted { rx: false } => pair.tx.delete()?,
            Also::Moved => {
                let address = Ipv4Addr::new(192, 0, 2, 2);
                pair.tx.move_and_back(&Netns::new()?, address)?;
            }
            Also::Down { rx, time } => {
                let end = if rx { &pair.rx } else { &pair.tx };
                end.set_up(false)?;
                thread::sleep(time);
                end.set_up(true)?;
            }
            Also::Reset { queue, mode } => pair.rx.reset_queue(queue, mode)?,
            Also::Unloaded => aftermath::unload_netdevsim()?,
            Also::Closed | Also::Nothing => (),
        }
        Ok(())
    }

    fn run(self, plan: &Plan) -> Outcome {
        let Self {
            pair,
            received,
            sent,
            id,
            owners,
            connections,
        } = self;
        let mut owners = Some(owners);
        let after = |nth: usize| thread::sleep(plan.delays[nth]);
        thread::scope(|scope| -> Outcome {
            for (connection, from) in connections.iter().zip([None, Some(id)]) {
                scope.spawn(move || send(&connection.tx, from));
                scope.spawn(move || receive(&connection.rx, from.is_none()));
            }
            thread::sleep(plan.before);
            let takers = [(0, &received), (1, &sent)].map(|(nth, memory)| {
                scope.spawn(move || {
                    after(nth);
                    memory.revoke()
                })
            });
            after(2);
            if matches!(plan.also, Also::Closed) {
                Self::shut_down(&connections);
            }
            let happened = Self::happen(&pair, &plan.also, &mut owners);
            let taken = takers.map(|taker| taker.join().expect("a thread that takes memory"));
            Self::shut_down(&connections);
            assert_eq!(taken, [Ok(()); 2]);
            happened
        })?;
        for memory in [&received, &sent] {
            wait_gone(memory)?;
        }
        drop(mem::take(&mut owners));
        drop(connections);
        if matches!(plan.also, Also::Unloaded) {
            for end in [&pair.rx, &pair.tx] {
                end.delete().expect_err("the device went with its driver");
            }
            provider::load_netdevsim()?;
        }
        Ok(())
    }
}

pub fn everything_at_once() -> Outcome {
    storm::run(|storm| {
        for _ in 0..storm.steps(STEPS) {
            let plan = Plan::draw(storm);
            storm.step(&plan);
            Stage::new(&plan)?.run(&plan)?;
            aftermath::no_bindings()?;
        }
        aftermath::transfer(&Pair::new()?, QUEUES[0])
    })
}
