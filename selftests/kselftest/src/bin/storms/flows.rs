// SPDX-License-Identifier: GPL-2.0

//! Connections on which data flows for as long as a storm lasts.

use std::io;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use devmem_testlib::Outcome;
use devmem_testlib::pair::Connection;
use devmem_testlib::pump;
use devmem_testlib::pump::Pump;
use devmem_testlib::pump::reset_on_close;
use devmem_testlib::taker::Taker;
use devmem_testlib::traffic;
use fastrand::Rng;

/// Most tokens that a reader holds.
const APPETITE: usize = 100;
/// Between two calls of a sender: the storm itself wants a share of the CPUs.
const PAUSE: Duration = Duration::from_millis(1);

/// Where what is sent comes from.
#[derive(Clone, Copy, Debug)]
pub enum From {
    /// Host memory.
    Host,
    /// The memory of this binding, which [`pump::memory`] made.
    Device(u32),
}

type Worker = JoinHandle<io::Result<u64>>;

/// Senders and readers in threads of their own.
#[derive(Debug)]
pub struct Flows {
    over: Arc<AtomicBool>,
    sockets: Vec<TcpStream>,
    workers: Vec<(Worker, Worker)>,
}

impl Flows {
    /// No flows yet.
    pub fn new() -> Self {
        Self {
            over: Arc::new(AtomicBool::new(false)),
            sockets: Vec::new(),
            workers: Vec::new(),
        }
    }

    /// Starts one; what it receives, and when it returns tokens, the seed decides.
    pub fn start(
        &mut self,
        connection: Connection,
        from: From,
        memories: &[(u32, Arc<devmem::dmabuf::Mapping>)],
        seed: u64,
    ) -> io::Result<()> {
        let Connection { rx, tx } = connection;
        reset_on_close(&tx)?;
        self.sockets.push(rx.try_clone()?);
        self.sockets.push(tx.try_clone()?);
        let taker = Taker::new(rx, memories);
        let over = self.over.clone();
        let sender = match from {
            From::Host => thread::spawn(move || send(tx, &over)),
            From::Device(id) => thread::spawn(move || pump(Pump::new(tx)?, id, &over, seed)),
        };
        let reader = thread::spawn(move || read(taker, seed));
        self.workers.push((sender, reader));
        Ok(())
    }

    /// Ends all of them properly: every byte that was sent has to arrive. Returns how many that were.
    pub fn finish(mut self) -> Result<u64, io::Error> {
        self.over.store(true, Ordering::Relaxed);
        let mut total = 0;
        for (sender, reader) in self.workers.drain(..) {
            let (sent, received) = (join(sender)?, join(reader)?);
            assert_eq!(sent, received, "bytes sent, and received");
            total += sent;
        }
        Ok(total)
    }

    /// Cuts them off. What was received by then was right.
    pub fn abort(mut self) -> Outcome {
        self.over.store(true, Ordering::Relaxed);
        for socket in self.sockets.drain(..) {
            // It may be closed by its peer already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for (sender, reader) in self.workers.drain(..) {
            // How far they got, and why not further, does not matter.
            let _ = (join(sender), join(reader));
        }
        Ok(())
    }
}

/// If a test fails, its threads shall not go on.
impl Drop for Flows {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// What a worker returned; a panic of it is one of the test.
fn join(worker: Worker) -> io::Result<u64> {
    worker
        .join()
        .unwrap_or_else(|err| panic::resume_unwind(err))
}

fn send(mut socket: TcpStream, over: &AtomicBool) -> io::Result<u64> {
    const CHUNK: usize = 20_000;
    let mut position = 0;
    while !over.load(Ordering::Relaxed) {
        socket.write_all(traffic::bytes(position, CHUNK))?;
        position += CHUNK as u64;
        thread::sleep(PAUSE);
    }
    socket.shutdown(Shutdown::Write)?;
    Ok(position)
}

fn pump(mut pump: Pump, binding: u32, over: &AtomicBool, seed: u64) -> io::Result<u64> {
    let mut rng = Rng::with_seed(seed);
    while !over.load(Ordering::Relaxed) {
        match pump.send(binding, rng.u64(1..=pump::MOST)) {
            Ok(()) => (),
            // There is no route while the device is down, or no room for notifications.
            Err(err) if may_pass(&err) => (),
            Err(err) => return Err(err),
        }
        thread::sleep(PAUSE);
    }
    pump.socket.shutdown(Shutdown::Write)?;
    // What it sent is the memory's: it has to stay bound until all has arrived, which the reader tells.
    Ok(pump.position)
}

fn may_pass(err: &io::Error) -> bool {
    const PASSING: [i32; 6] = [
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::ENODEV,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EAGAIN,
    ];
    err.raw_os_error()
        .is_some_and(|errno| PASSING.contains(&errno))
}

fn read(mut taker: Taker, seed: u64) -> io::Result<u64> {
    let mut rng = Rng::with_seed(seed);
    while taker.take(0)? {
        if taker.held() > rng.usize(0..APPETITE) {
            let count = rng.usize(0..=taker.held());
            taker.give_back(&mut rng, count)?;
        }
        while taker.held() > APPETITE {
            taker.give_back(&mut rng, APPETITE)?;
        }
    }
    taker.check()?;
    Ok(taker.position)
}
