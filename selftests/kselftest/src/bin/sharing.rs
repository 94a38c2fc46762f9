// SPDX-License-Identifier: GPL-2.0

//! Queues that share a binding: each has its share, however much another one takes.

use std::io;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::Piece;
use devmem::Receiver;
use devmem::Token;
use devmem::dmabuf::Mapping;
use devmem::netdev::Netdev;
use devmem::status::BindingStatus;
use devmem::status::EventKind;
use devmem::status::Events;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::wait;

const PAGE: usize = 4096;
/// No more than a ring of netdevsim.
const BUFFERS: usize = 256;
const QUEUES: [u32; 2] = [1, 2];
const PORT: u16 = 5001;
const LEN: u64 = 4 << 20;
const STEP: u64 = 64 << 10;
/// How long there is nothing to be read before it is asked whether something was dropped.
const LOOK: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(5);

/// Devices, memory, and a connection to each of the queues that it is bound to.
struct Sharing {
    flows: Vec<Connection>,
    queues: Vec<u32>,
    binding: Binding,
    map: Mapping,
    pair: Pair,
}

impl Sharing {
    fn new(queues: &[u32], buffers: usize) -> io::Result<Self> {
        let memory = DmaBuf::udmabuf(buffers * PAGE)?;
        let pair = Pair::new()?;
        let binding = pair.bind(queues, &memory)?;
        let flow = |&queue| pair.connect_to_queue(Ip::V4, PORT + queue as u16, queue);
        Ok(Self {
            flows: queues.iter().map(flow).collect::<io::Result<_>>()?,
            queues: queues.to_vec(),
            binding,
            map: memory.map()?,
            pair,
        })
    }

    fn dropped(&self, which: usize) -> io::Result<u64> {
        let queue = self.queues[which];
        self.pair.rx.counter(&format!("rx{queue}_no_buffer"))
    }

    /// How many buffers the ring of a queue has.
    fn posted(&self, which: usize) -> io::Result<u64> {
        let queue = self.queues[which];
        self.pair.rx.counter(&format!("rx{queue}_posted"))
    }

    fn status(&self) -> io::Result<BindingStatus> {
        let ns = &self.pair.rx.ns;
        ns.run(|| Ok(Netdev::open()?.binding(self.binding.id())?))
    }

    fn holder(&self, which: usize) -> io::Result<Holder<'_>> {
        let socket = &self.flows[which].rx;
        socket.set_read_timeout(Some(LOOK))?;
        Ok(Holder {
            sharing: self,
            which,
            receiver: Receiver::new(socket),
            sent: 0,
            tokens: Vec::new(),
        })
    }

    /// Sends and receives many times what there is, and compares it. No more is under way than there are buffers for:
    /// segments behind one that was dropped would keep them from that.
    fn goes_on(&self, which: usize) -> Outcome {
        let flow = &self.flows[which];
        let mut reader = Reader::new(&flow.rx, &self.map, self.binding.id());
        for position in (0..LEN).step_by(STEP as usize) {
            traffic::send(&flow.tx, position, STEP, STEP as usize)?;
            reader.read_until(position + STEP)?;
        }
        reader.assert_all_device_memory();
        Ok(())
    }
}

/// A reader that keeps what it gets, a byte in each buffer.
struct Holder<'s> {
    sharing: &'s Sharing,
    which: usize,
    receiver: Receiver<'s>,
    sent: u64,
    tokens: Vec<Token<'s>>,
}

impl<'s> Holder<'s> {
    /// Has bytes sent, each in a packet of its own, until one of them is dropped since there is no buffer, or there
    /// are as many as `most`.
    fn hold(&mut self, most: usize) -> io::Result<usize> {
        let before = self.sharing.dropped(self.which)?;
        self.hold_while(most, |dropped| dropped == before)
    }

    /// The same, until there are as many as `most`, whatever is dropped before.
    fn hold_on(&mut self, most: usize) -> io::Result<usize> {
        let begin = Instant::now();
        self.hold_while(most, |_| begin.elapsed() < wait::patience(SOON))
    }

    fn hold_while(&mut self, most: usize, goes_on: impl Fn(u64) -> bool) -> io::Result<usize> {
        while self.tokens.len() < most {
            if self.sent == self.tokens.len() as u64 {
                let flow = &self.sharing.flows[self.which];
                traffic::send(&flow.tx, self.sent, 1, 1)?;
                self.sent += 1;
            }
            match self.receiver.recv() {
                Ok(received) => {
                    let pieces = received.into_iter().collect();
                    keep(&self.sharing.map, pieces, &mut self.tokens)?;
                }
                Err(err) if err.kind() != ErrorKind::WouldBlock => return Err(err),
                Err(_) if goes_on(self.sharing.dropped(self.which)?) => (),
                Err(_) => break,
            }
        }
        Ok(self.tokens.len())
    }
}

/// Compares a byte in each of the buffers, and keeps these.
fn keep<'s>(
    map: &Mapping,
    pieces: Vec<Piece<'_, 's>>,
    tokens: &mut Vec<Token<'s>>,
) -> io::Result<()> {
    let cpu = map.begin_read()?;
    for piece in pieces {
        let Piece::Frag(frag) = piece else {
            panic!("not in device memory: {piece:?}")
        };
        assert_eq!(frag.size, 1, "a packet of its own");
        let mut byte = [0];
        cpu.copy_out(frag.offset, &mut byte)?;
        traffic::compare(tokens.len() as u64, &byte);
        tokens.push(frag.token);
    }
    Ok(())
}

fn has_shares() -> bool {
    let has = provider::under_test() == Provider::Module;
    if !has {
        report::observe("not tried: the C code has no shares");
    }
    has
}

/// A reader that keeps all it gets takes nothing from the next queue.
fn each_queue_has_its_share() -> Outcome {
    let sharing = Sharing::new(&QUEUES, BUFFERS)?;
    let mut holder = sharing.holder(0)?;
    let held = holder.hold(usize::MAX)?;

    match provider::under_test() {
        Provider::Module => {
            assert_eq!(held, BUFFERS / 2);
            sharing.goes_on(1)
        }
        Provider::Builtin => {
            assert!(held >= BUFFERS / 2, "{held}");
            assert_eq!(sharing.holder(1)?.hold(1)?, 0, "the first ring took all");
            Ok(())
        }
    }
}

/// With nobody to share with it is as it was.
fn one_queue_has_all() -> Outcome {
    let sharing = Sharing::new(&QUEUES[..1], BUFFERS)?;
    assert_eq!(sharing.holder(0)?.hold(usize::MAX)?, BUFFERS);
    Ok(())
}

/// What a queue has beyond its share comes back to one that has less, and wants it, as soon as its reader is done
/// with it; and that it got none is told, once.
fn a_queue_that_starves_gets_what_comes_back() -> Outcome {
    /// More than two rings, and what page pools keep beside.
    const BUFFERS: usize = 1024;
    if !has_shares() {
        return Ok(());
    }
    let sharing = Sharing::new(&QUEUES, BUFFERS)?;
    let ns = &sharing.pair.rx.ns;
    let mut events = ns.run(|| Ok(Events::open()?))?;
    let mut next = |kind| -> io::Result<()> {
        let event = events.next_timeout(wait::patience(SOON))?;
        assert_eq!(event.map(|event| event.kind), Some(kind));
        Ok(())
    };

    let mut busy = sharing.holder(0)?;
    let lent = busy.hold(usize::MAX)?;
    assert!(lent > BUFFERS / 2, "{lent}: what nobody uses is lent");
    next(EventKind::Exhausted)?;

    let mut late = sharing.holder(1)?;
    let kept = late.hold(usize::MAX)?;
    assert!(
        (BUFFERS / 4..BUFFERS / 2).contains(&kept),
        "{kept}: half of a share is kept"
    );
    assert_eq!(sharing.status()?.counters.exhausted, Some(1));

    busy.tokens.clear();
    let enough = BUFFERS / 2 - 1;
    assert_eq!(late.hold_on(enough)?, enough);
    Ok(())
}

/// Its page pool is another one then, which netdevsim makes before or after it adds its NAPI. What comes back gets into
/// its ring, though no packet comes for it.
fn a_queue_that_starves_is_restarted() -> Outcome {
    const BUFFERS: usize = 1024;
    const LATE: usize = 1;
    if !has_shares() {
        return Ok(());
    }
    let sharing = Sharing::new(&QUEUES, BUFFERS)?;
    let mut busy = sharing.holder(0)?;
    busy.hold(usize::MAX)?;
    let mut late = sharing.holder(LATE)?;

    for mode in 0..4 {
        wait::until("a queue that starves", SOON, || {
            while sharing.posted(LATE)? > 0 {
                late.hold(late.tokens.len() + 1)?;
            }
            Ok(sharing.status()?.in_use == Some(BUFFERS as u64))
        })?;
        sharing.pair.rx.reset_queue(QUEUES[LATE], mode)?;
        assert_eq!(sharing.posted(LATE)?, 0, "mode {mode}");

        let rest = busy.tokens.len() - 16;
        busy.tokens.truncate(rest);
        wait::until("buffers for a ring", SOON, || {
            Ok(sharing.posted(LATE)? == 16)
        })?;
    }
    Ok(())
}

/// After the device was down its queues are filled anew, one after the other.
fn a_share_each_after_the_device_was_down() -> Outcome {
    if !has_shares() {
        return Ok(());
    }
    let sharing = Sharing::new(&QUEUES, BUFFERS)?;
    sharing.pair.rx.set_up(false)?;
    sharing.pair.rx.set_up(true)?;
    assert_eq!(sharing.holder(0)?.hold(usize::MAX)?, BUFFERS / 2);
    sharing.goes_on(1)
}

/// Nobody has a share then, but all have their turn, as long as there are packets for all: a ring keeps what it has.
fn fewer_buffers_than_queues() -> Outcome {
    const TURNS: u64 = 4;
    if !has_shares() {
        return Ok(());
    }
    let sharing = Sharing::new(&[1, 2, 3], 2)?;
    let left = AtomicUsize::new(sharing.flows.len());

    let flow_goes_on = |flow: &Connection| -> io::Result<()> {
        let mut reader = Reader::new(&flow.rx, &sharing.map, sharing.binding.id());
        flow.rx.set_read_timeout(Some(LOOK))?;
        let mut sent = 0;
        while left.load(Ordering::Relaxed) > 0 {
            if sent == reader.position {
                traffic::send(&flow.tx, sent, 1, 1)?;
                sent += 1;
            }
            match reader.read_until(sent) {
                Ok(()) if sent == TURNS => _ = left.fetch_sub(1, Ordering::Relaxed),
                Ok(()) => (),
                Err(err) if err.kind() == ErrorKind::WouldBlock => (),
                Err(err) => return Err(err),
            }
        }
        reader.assert_all_device_memory();
        Ok(())
    };
    thread::scope(|scope| {
        let flows = sharing.flows.iter();
        let threads: Vec<_> = flows
            .map(|flow| scope.spawn(|| flow_goes_on(flow)))
            .collect();
        for thread in threads {
            thread.join().expect("a flow's thread")?;
        }
        Ok(())
    })
}

fn main() -> ExitCode {
    runner::run(tests![
        each_queue_has_its_share,
        one_queue_has_all,
        a_queue_that_starves_gets_what_comes_back,
        a_queue_that_starves_is_restarted,
        a_share_each_after_the_device_was_down,
        fewer_buffers_than_queues,
    ])
}
