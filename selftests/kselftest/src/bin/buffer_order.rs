// SPDX-License-Identifier: GPL-2.0

//! In which order buffers come: how many frags follow the one before, in a fresh binding and after a while.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::process::ExitCode;
use std::thread;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::Piece;
use devmem::Receiver;
use devmem::Token;
use devmem::TokenBatch;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::machine;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::report::Stop;
use devmem_testlib::report::diag;
use devmem_testlib::runner;
use devmem_testlib::storm;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use fastrand::Rng;

const MIB: u64 = 1 << 20;
const MEMORY: usize = 16 << 20;
const QUEUE: u32 = Receiving::QUEUE;

/// MiB until the order is what it stays.
fn long_enough() -> u64 {
    let otherwise = if machine::is_slow() { 32 } else { 256 };
    storm::scale("ORDER_MIB", otherwise).into()
}

/// How frags lie to each other.
#[derive(Debug, Default)]
struct Order {
    end: Option<u64>,
    start: u64,
    run: usize,
    frags: u64,
    follow: u64,
    precede: u64,
    /// How many runs have up to 1, 2, 4 and so on frags.
    lengths: [u64; 12],
}

impl Order {
    /// The next frag of a connection.
    fn add(&mut self, offset: u64, size: u64) {
        self.frags += 1;
        match self.end {
            Some(end) if end == offset => {
                self.follow += 1;
                self.run += 1;
            }
            Some(_) => {
                self.precede += u64::from(offset + size == self.start);
                self.finish();
                self.run = 1;
            }
            None => self.run = 1,
        }
        (self.start, self.end) = (offset, Some(offset + size));
    }

    fn finish(&mut self) {
        let class = self.run.next_power_of_two().trailing_zeros() as usize;
        self.lengths[class.min(self.lengths.len() - 1)] += 1;
        self.run = 0;
    }

    /// Prints it; returns how many of a hundred frags follow the one before.
    fn tell(mut self, what: &str) -> Told {
        self.finish();
        let percent = |count: u64| 100 * count / self.frags.max(1);
        let runs: u64 = self.lengths.iter().sum();
        let lengths: Vec<_> = self
            .lengths
            .iter()
            .enumerate()
            .filter(|&(_, &count)| count > 0)
            .map(|(class, count)| format!("to {}: {count}", 1 << class))
            .collect();
        diag(format_args!(
            "{what}: of {} frags {} % follow, {} % precede the one before; {} runs of {:.1}; {}",
            self.frags,
            percent(self.follow),
            percent(self.precede),
            runs,
            self.frags as f64 / runs as f64,
            lengths.join(", ")
        ));
        Told {
            follow: percent(self.follow),
            precede: percent(self.precede),
        }
    }
}

/// What a reader does with its tokens.
#[derive(Clone, Copy, Debug)]
enum Keep {
    /// They go back after each call.
    Nothing,
    /// So many are kept, and the oldest goes back first.
    Oldest(usize),
    /// So many are kept, and any goes back.
    Any(usize),
}

/// A bound queue.
struct Bench {
    _binding: Binding,
    _memory: DmaBuf,
    pair: Pair,
}

impl Bench {
    fn new() -> Result<Self, Stop> {
        let memory = DmaBuf::udmabuf(MEMORY)?;
        let pair = Pair::new()?;
        pair.set_mtu(Receiving::MTU_OF_A_BUFFER)?;
        let binding = pair.bind(&[QUEUE], &memory)?;
        Ok(Self {
            _binding: binding,
            _memory: memory,
            pair,
        })
    }

    fn connect(&self, port: u16) -> io::Result<Connection> {
        self.pair.connect_to_queue(Ip::V4, port, QUEUE)
    }
}

/// Receives so many bytes, and looks how they lie.
fn receive(socket: &TcpStream, len: u64, keep: Keep) -> io::Result<Order> {
    let mut rng = Rng::with_seed(1);
    let mut rx = Receiver::new(socket);
    let mut batch = TokenBatch::new(socket);
    let mut kept: VecDeque<Token<'_>> = VecDeque::new();
    let mut order = Order::default();
    let mut left = len;
    while left > 0 {
        for piece in rx.recv()? {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}");
            };
            order.add(frag.offset, frag.size.into());
            left -= u64::from(frag.size);
            kept.push_back(frag.token);
        }
        let most = match keep {
            Keep::Nothing => 0,
            Keep::Oldest(most) | Keep::Any(most) => most,
        };
        while kept.len() > most {
            if matches!(keep, Keep::Any(_)) {
                let any = rng.usize(..kept.len());
                kept.swap(0, any);
            }
            batch.push(kept.pop_front().expect("there are some"))?;
        }
        batch.flush()?;
    }
    Ok(order)
}

/// Sends so many MiB by each connection, and receives them.
fn run(connections: &[Connection], mib: u64, keep: Keep) -> io::Result<Vec<Order>> {
    thread::scope(|scope| {
        let receivers: Vec<_> = connections
            .iter()
            .map(|connection| {
                traffic::send_in(scope, &connection.tx, 0, mib * MIB, MIB as usize);
                scope.spawn(move || receive(&connection.rx, mib * MIB, keep))
            })
            .collect();
        receivers
            .into_iter()
            .map(|receiver| receiver.join().expect("a receiver's thread"))
            .collect()
    })
}

/// How many of a hundred frags lie next to the one before.
struct Told {
    follow: u64,
    precede: u64,
}

impl Told {
    /// How many follow depends on how busy the machine is. But no batch is used from its end.
    #[track_caller]
    fn assert_not_turned(&self) {
        assert!(self.precede < 10, "{} % precede", self.precede);
    }
}

/// The first of memory, and then what came back.
fn settled(keep: Keep, what: &str) -> Result<Told, Stop> {
    let bench = Bench::new()?;
    let connections = [bench.connect(Receiving::PORT)?];
    for order in run(&connections, 1, Keep::Nothing)? {
        order.tell("the first MiB");
    }
    let _ = run(&connections, long_enough(), keep)?;
    let mut orders = run(&connections, 16, keep)?;
    Ok(orders.remove(0).tell(what))
}

fn fresh() -> Outcome {
    let bench = Bench::new()?;
    let connections = [bench.connect(Receiving::PORT)?];
    let mut orders = run(&connections, 1, Keep::Nothing)?;
    let told = orders.remove(0).tell("a fresh binding");
    // From one batch to the next, at the least.
    assert!(told.follow >= 90, "only {} %", told.follow);
    Ok(())
}

fn returned_at_once() -> Outcome {
    settled(Keep::Nothing, "returned at once")?.assert_not_turned();
    Ok(())
}

fn returned_late() -> Outcome {
    for most in [64, 512] {
        settled(Keep::Oldest(most), &format!("{most} kept"))?.assert_not_turned();
    }
    Ok(())
}

/// There is not much left of the order then. Nothing is lost, either.
fn returned_in_any_order() -> Outcome {
    for most in [64, 512] {
        settled(Keep::Any(most), &format!("any of {most}"))?;
    }
    Ok(())
}

fn several_flows() -> Outcome {
    let bench = Bench::new()?;
    let connections: Vec<_> = (0..4)
        .map(|nth| bench.connect(Receiving::PORT + nth))
        .collect::<io::Result<_>>()?;
    let _ = run(&connections, long_enough() / 4, Keep::Nothing)?;
    for order in run(&connections, 8, Keep::Nothing)? {
        order.tell("one of four flows").assert_not_turned();
    }
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        fresh,
        returned_at_once,
        returned_late,
        returned_in_any_order,
        several_flows,
    ])
}
