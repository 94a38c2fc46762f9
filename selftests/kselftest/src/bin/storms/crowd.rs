// SPDX-License-Identifier: GPL-2.0

//! Many bindings, and many connections.

use std::io;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::dmabuf::Mapping;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::aftermath;
use devmem_testlib::machine;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::storm;
use devmem_testlib::storm::at_once;
use devmem_testlib::taker::Taker;
use devmem_testlib::traffic;
use fastrand::Rng;
use nix::sys::resource::Resource;
use nix::sys::resource::setrlimit;

const PORT: u16 = 5000;

/// A binding with a connection to its queue.
struct Guest {
    binding: Binding,
    sender: TcpStream,
    taker: Taker,
    sent: u64,
}

impl Guest {
    fn new(pair: &Pair, queue: u32) -> io::Result<Self> {
        const MEMORY: usize = 2 << 20;
        let memory = DmaBuf::udmabuf(MEMORY)?;
        let binding = pair.bind(&[queue], &memory)?;
        let Connection { rx, tx } = pair.connect_to_queue(Ip::V4, PORT + queue as u16, queue)?;
        let taker = Taker::new(rx, &[(binding.id(), Arc::new(memory.map()?))]);
        Ok(Self {
            binding,
            sender: tx,
            taker,
            sent: 0,
        })
    }

    /// Sends, receives, and perhaps returns tokens.
    fn transfer(&mut self, rng: &mut Rng) -> io::Result<()> {
        let len = rng.u64(1..=20_000);
        traffic::send(&self.sender, self.sent, len, len as usize)?;
        self.sent += len;
        self.taker.take_until(self.sent)?;
        let count = rng.usize(0..100);
        self.taker.give_back(rng, count)
    }
}

/// 64 bindings at once: all queues of eight devices, which go in any order.
pub fn many_bindings() -> Outcome {
    storm::run(|storm| {
        const PAIRS: u32 = 8;
        const QUEUES: u32 = 8;
        /// Between two that leave.
        const TRANSFERS: u32 = 2;
        let pairs: Vec<_> = (0..PAIRS).map(|_| Pair::new()).collect::<io::Result<_>>()?;
        let places = pairs
            .iter()
            .flat_map(|pair| (0..QUEUES).map(move |queue| (pair, queue)));
        let mut guests: Vec<_> = places
            .map(|(pair, queue)| Guest::new(pair, queue))
            .collect::<io::Result<_>>()?;
        let bound = provider::bindings()?.map_or(guests.len(), |list| list.len());
        assert_eq!(bound as u32, PAIRS * QUEUES, "bindings");
        for left in (1..=guests.len()).rev() {
            for _ in 0..storm.steps(TRANSFERS) {
                let at = storm.rng.usize(0..left);
                storm.step((left, at));
                guests[at].transfer(&mut storm.rng)?;
            }
            let at = storm.rng.usize(0..left);
            let mut guest = guests.swap_remove(at);
            assert!(
                guest.taker.frags > 0 || guest.sent == 0,
                "nothing in device memory"
            );
            guest.transfer(&mut storm.rng)?;
            drop(guest.binding);
            guest.taker.check()?;
        }
        storm.count("bindings", bound as u64);
        pairs.iter().try_for_each(|pair| aftermath::on(pair, 1))
    })
}

/// Where the many connections are received.
struct Door<'p> {
    pair: &'p Pair,
    listener: TcpListener,
    /// Connections, the tokens of which are held.
    inside: Vec<(Taker, TcpStream)>,
}

impl Door<'_> {
    /// So many come in, say something short, and stay.
    fn enter(&mut self, memories: &[(u32, Arc<Mapping>)], count: usize, rng: &mut Rng) -> Outcome {
        const MOST: u64 = 1000;
        let to = self.listener.local_addr()?;
        // In the sender's namespace, all of them.
        self.pair.tx.ns.run(|| {
            for _ in 0..count {
                let len = rng.u64(1..=MOST);
                let mut tx = TcpStream::connect(to)?;
                let (rx, _) = self.listener.accept()?;
                tx.write_all(traffic::bytes(0, len as usize))?;
                let mut taker = Taker::new(rx, memories);
                taker.take_until(len)?;
                assert!(taker.held() > 0, "nothing in device memory");
                self.inside.push((taker, tx));
            }
            Ok(())
        })?;
        Ok(())
    }

    /// All leave, in any order: with their tokens returned or not.
    fn leave(&mut self, rng: &mut Rng) -> Outcome {
        rng.shuffle(&mut self.inside);
        for (mut taker, tx) in self.inside.drain(..) {
            taker.check()?;
            if rng.bool() {
                taker.give_back(rng, usize::MAX)?;
            }
            drop(tx);
        }
        Ok(())
    }
}

/// 10 000 connections to one binding, each with a token held, and so many sockets of one process.
pub fn many_connections() -> Outcome {
    storm::run(|storm| {
        const QUEUES: u32 = 4;
        /// Rings, and what pools keep to themselves.
        const SPARE: usize = 4 << 20;
        // Ten times as many take as many times longer.
        let count = if machine::is_slow() { 1000 } else { 10_000 };
        let count = storm::scale("STORM_CONNECTIONS", count) as usize;
        let descriptors = 2 * count as u64 + 1000;
        setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors)?;

        let pair = Pair::new()?;
        let memory = DmaBuf::system_heap(count * 4096 + SPARE)?;
        let queues: Vec<_> = (1..=QUEUES).collect();
        let binding = pair.bind(&queues, &memory)?;
        let memories = [(binding.id(), Arc::new(memory.map()?))];
        let mut doors: Vec<_> = queues
            .iter()
            .map(|&queue| {
                let port = PORT + queue as u16;
                pair.steer(port, queue)?;
                Ok(Door {
                    pair: &pair,
                    listener: pair.listen(Ip::V4, port)?,
                    inside: Vec::new(),
                })
            })
            .collect::<io::Result<_>>()?;
        let seeds: Vec<_> = doors.iter().map(|_| storm.rng.u64(..)).collect();
        storm.step(&seeds);
        at_once(doors.iter_mut().zip(&seeds).map(|(door, &seed)| {
            let memories = &memories;
            move || {
                let mut rng = Rng::with_seed(seed);
                door.enter(memories, count / QUEUES as usize, &mut rng)
            }
        }))?;
        let inside: usize = doors.iter().map(|door| door.inside.len()).sum();
        if let Some(info) = provider::binding(binding.id())? {
            assert!(
                info.in_use >= inside as u64,
                "{inside} tokens are held: {info:?}"
            );
        }
        storm.count("connections at once", inside as u64);
        storm.step("all leave");
        at_once(
            doors
                .iter_mut()
                .zip(&seeds)
                .map(|(door, &seed)| move || door.leave(&mut Rng::with_seed(seed))),
        )?;
        drop((doors, binding, memories));
        aftermath::on(&pair, 1)
    })
}
