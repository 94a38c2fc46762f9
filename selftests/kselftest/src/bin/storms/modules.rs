// SPDX-License-Identifier: GPL-2.0

//! The module is unloaded, and loaded again, whenever that is possible: in the middle of a bind request,
//! between two packets, and while the stack still holds packets in memory of the module's.

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::token;
use devmem::token::MAX_TOKENS;
use devmem::token::TokenRange;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::aftermath;
use devmem_testlib::machine;
use devmem_testlib::modules;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::report::Stop;
use devmem_testlib::storm;
use devmem_testlib::storm::Storm;
use devmem_testlib::taker::Taker;
use devmem_testlib::traffic;
use fastrand::Rng;
use nix::errno::Errno;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::delete_module;

use crate::flows::Flows;
use crate::flows::From;

const MEMORY: usize = 4 << 20;
const PORT: u16 = 5000;
const QUEUE: u32 = 1;
/// The queue of a binding that is there all the time.
const STEADY: u32 = 2;

/// Loads the module, and has the provider under test serve.
fn load() -> io::Result<()> {
    modules::load(modules::PROVIDER)?;
    devmem::provider::select(provider::under_test().name())
}

/// One who unloads the module as often as possible.
#[derive(Default)]
struct Unloader {
    over: AtomicBool,
    unloaded: AtomicU64,
    refused: AtomicU64,
}

impl Unloader {
    /// Was the module unloaded, and was it in use? It never is while another provider serves.
    fn met_both(&self) -> bool {
        let refused = self.refused.load(Ordering::Relaxed) > 0;
        self.unloaded.load(Ordering::Relaxed) > 0
            && (refused || provider::under_test() != Provider::Module)
    }

    fn run(&self, mut rng: Rng) -> io::Result<()> {
        let longer = if machine::is_slow() { 20 } else { 1 };
        while !self.over.load(Ordering::Relaxed) {
            match delete_module(c"devmem_provider", DeleteModuleFlags::O_NONBLOCK) {
                Ok(()) => {
                    self.unloaded.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(rng.u64(0..5000)));
                    load()?;
                    // Binding takes a slow kernel as many times longer as loading: without a pause
                    // it would hardly ever find the module there.
                    thread::sleep(Duration::from_micros(rng.u64(0..5000)) * longer);
                }
                Err(Errno::EAGAIN) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(rng.u64(0..5000)));
                }
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }
}

/// Does something while another thread unloads the module as often as possible. The module is there again after
/// that. Returns how often it was unloaded, and how often it was in use.
fn while_unloading(
    storm: &mut Storm,
    act: impl FnOnce(&mut Storm, &Unloader) -> Outcome,
) -> Result<(u64, u64), Stop> {
    let unloader = Unloader::default();
    let rng = storm.rng.fork();
    thread::scope(|scope| -> Outcome {
        let thread = scope.spawn(|| unloader.run(rng));
        let outcome = act(storm, &unloader);
        unloader.over.store(true, Ordering::Relaxed);
        thread.join().expect("the thread that unloads")?;
        outcome
    })?;
    load()?;
    Ok((
        unloader.unloaded.into_inner(),
        unloader.refused.into_inner(),
    ))
}

/// Has whoever serves just now bind some memory.
fn bind_now(pair: &Pair, queue: u32, memory: &DmaBuf) -> Result<Binding, Stop> {
    let bind = || Ok(pair.request(&[queue]).bind(memory));
    Ok(pair.rx.ns.run(bind)??)
}

/// What is done with a binding.
#[derive(Debug)]
struct Plan {
    sent: u64,
    /// How much is taken, and its tokens held, before the unbinding. The rest waits in the socket.
    taken: u64,
    bound: Duration,
    unbound: Duration,
}

impl Plan {
    fn draw(storm: &mut Storm) -> Self {
        let sent = storm.rng.u64(1..=60_000);
        Self {
            sent,
            taken: storm.rng.u64(0..=sent),
            bound: storm.instant(10),
            unbound: storm.instant(20),
        }
    }

    fn run(&self, pair: &Pair) -> Outcome {
        let memory = DmaBuf::udmabuf(MEMORY)?;
        let map = Arc::new(memory.map()?);
        let binding = bind_now(pair, QUEUE, &memory)?;
        let id = binding.id();
        let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
        traffic::send(&connection.tx, 0, self.sent, self.sent as usize)?;
        let mut taker = Taker::new(connection.rx, &[(id, map)]);
        taker.take_until(self.taken)?;
        thread::sleep(self.bound);
        drop(binding);
        thread::sleep(self.unbound);
        if taker.held() > 0 {
            is_served(id)?;
        }
        taker.take_until(self.sent)?;
        is_served(id)?;
        Ok(taker.check()?)
    }
}

/// Checks that a binding lives, and with it the module, if that serves it.
#[track_caller]
fn is_served(id: u32) -> Outcome {
    let info = provider::binding(id)?.expect("the binding lives while there are tokens");
    let loaded = Path::new("/sys/module/devmem_provider").exists();
    assert!(
        loaded || info.provider == Provider::Builtin.name(),
        "unloaded: {info:?}"
    );
    Ok(())
}

pub fn unloaded_and_loaded() -> Outcome {
    storm::run(|storm| {
        const STEPS: u32 = 40;
        /// Times as many steps at most, until the module was found in use, and not in use.
        const MOST: u32 = 10;
        let pair = Pair::new()?;
        pair.steer(PORT, QUEUE)?;
        let memory = DmaBuf::udmabuf(MEMORY)?;
        devmem::provider::select(Provider::Builtin.name())?;
        let steady = bind_now(&pair, STEADY, &memory)?;
        load()?;
        let memories = [(steady.id(), Arc::new(memory.map()?))];
        let mut flows = Flows::new();
        let connection = pair.connect_to_queue(Ip::V4, PORT + 1, STEADY)?;
        flows.start(connection, From::Host, &memories, storm.rng.u64(..))?;

        let (unloaded, refused) = while_unloading(storm, |storm, unloader| {
            let steps = storm.steps(STEPS);
            // On a slow machine the module is hardly ever there when a few steps begin.
            for step in 0..MOST * steps {
                if step >= steps && unloader.met_both() {
                    break;
                }
                let plan = Plan::draw(storm);
                storm.step(&plan);
                plan.run(&pair)?;
            }
            Ok(())
        })?;
        storm.count("bytes of a flow meanwhile", flows.finish()?);
        storm.count("times unloaded", unloaded);
        storm.count("times refused", refused);
        assert!(unloaded > 0, "the module was never unloaded");
        if provider::under_test() == Provider::Module {
            assert!(refused > 0, "the module was never in use");
        }
        drop((steady, memories, memory));
        aftermath::on(&pair, QUEUE)
    })
}

/// Returns all tokens of a socket that there are, whoever they were handed to.
fn steal(socket: &TcpStream) -> io::Result<u32> {
    let tokens = |provider: Provider| TokenRange {
        start: provider.first_token(),
        count: MAX_TOKENS,
    };
    let ours = token::dontneed(socket, &[tokens(Provider::Module)])?;
    Ok(ours + token::dontneed(socket, &[tokens(Provider::Builtin)])?)
}

/// One who reads what is left of a binding, while another thread returns the tokens as they come: nothing holds the
/// binding at last but the call of the reader.
fn robbed(pair: &Pair, sent: u64) -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = Arc::new(memory.map()?);
    let binding = bind_now(pair, QUEUE, &memory)?;
    let id = binding.id();
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    let thief = connection.rx.try_clone()?;
    traffic::send(&connection.tx, 0, sent, sent as usize)?;
    wait_received(&connection.rx, sent);
    drop(binding);

    let mut taker = Taker::new(connection.rx, &[(id, map)]);
    let stolen = thread::scope(|scope| -> io::Result<_> {
        let reader = scope.spawn(|| taker.take_until(sent));
        let mut stolen = 0;
        while !reader.is_finished() {
            stolen += steal(&thief)?;
        }
        reader.join().expect("the thread that reads")?;
        Ok(stolen + steal(&thief)?)
    })?;
    assert_eq!(stolen as usize, taker.held(), "tokens returned");
    // Nobody has written there since.
    Ok(taker.check()?)
}

pub fn unloaded_under_a_reader() -> Outcome {
    storm::run(|storm| {
        const STEPS: u32 = 60;
        let pair = Pair::new()?;
        pair.steer(PORT, QUEUE)?;
        let (unloaded, refused) = while_unloading(storm, |storm, _| {
            for _ in 0..storm.steps(STEPS) {
                // Up to what is one packet for the reader.
                let sent = storm.rng.u64(1..=20_000);
                storm.step(sent);
                robbed(&pair, sent)?;
            }
            Ok(())
        })?;
        storm.count("times unloaded", unloaded);
        storm.count("times refused", refused);
        aftermath::on(&pair, QUEUE)
    })
}
