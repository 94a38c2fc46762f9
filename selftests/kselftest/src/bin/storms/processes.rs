// SPDX-License-Identifier: GPL-2.0

//! Processes that are killed at random instants, in whatever call they are.

use std::env;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use devmem::BindRx;
use devmem::BindTx;
use devmem::DmaBuf;
use devmem::token;
use devmem::token::TokenRange;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::aftermath;
use devmem_testlib::child::Reaper;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::address;
use devmem_testlib::pump;
use devmem_testlib::pump::Pump;
use devmem_testlib::storm;
use devmem_testlib::storm::Storm;
use devmem_testlib::storm::at_once;
use devmem_testlib::taker::Taker;
use devmem_testlib::traffic;
use devmem_testlib::wait;
use fastrand::Rng;

/// Tells a program of ours that it is to be killed: who it is.
const VICTIM: &str = "DEVMEM_KSELFTEST_STORM_VICTIM";
const PORT: u16 = 5000;
const QUEUES: u32 = 4;
const MEMORY: usize = 2 << 20;
/// How long a victim may keep its peer waiting.
const TIMEOUT: Duration = Duration::from_secs(20);
/// For how long a victim may live on once it is known to have come so far.
const LIFE: u32 = 60;

/// When a victim's time begins to run.
#[derive(Clone, Copy, Debug)]
enum Since {
    /// It was started, and may not even have bound.
    Started,
    /// It has bound.
    Bound,
    /// Its connection stands.
    Connected,
}

/// What becomes of a victim.
#[derive(Debug)]
struct Fate {
    queue: u32,
    since: Since,
    life: Duration,
    seed: u64,
}

/// Draws victims for some of the queues.
fn draw(storm: &mut Storm) -> Vec<Fate> {
    let count = storm.rng.usize(1..=QUEUES as usize);
    let queues = storm.rng.choose_multiple(1..=QUEUES, count);
    queues
        .into_iter()
        .map(|queue| Fate {
            queue,
            since: match storm.rng.u8(0..6) {
                0 => Since::Started,
                1 => Since::Bound,
                _ => Since::Connected,
            },
            life: storm.instant(LIFE),
            seed: storm.rng.u64(..),
        })
        .collect()
}

/// A victim that runs.
struct Victim {
    child: Reaper,
    says: BufReader<ChildStdout>,
}

impl Victim {
    fn start(end: &End, kind: &str, fate: &Fate) -> io::Result<Self> {
        let Fate { queue, seed, .. } = fate;
        let mut command = Command::new(env::current_exe()?);
        command
            .env(VICTIM, format!("{kind} {} {queue} {seed}", end.ifindex))
            .stdout(Stdio::piped());
        let mut child = Reaper(end.ns.run(|| command.spawn())?);
        let says = BufReader::new(child.0.stdout.take().expect("a pipe"));
        Ok(Self { child, says })
    }

    /// Waits until it says something.
    #[track_caller]
    fn expect(&mut self, what: &str) -> io::Result<()> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        assert_eq!(line.trim(), what, "what the victim says");
        Ok(())
    }

    /// Kills it. It must have had nothing to complain about, as that it received the wrong bytes.
    #[track_caller]
    fn kill(mut self) -> io::Result<()> {
        self.child.0.kill()?;
        let status = self.child.0.wait()?;
        let mut said = String::new();
        self.says.read_to_string(&mut said)?;
        assert_eq!(
            status.signal(),
            Some(libc::SIGKILL),
            "{status}, it said: {said}"
        );
        Ok(())
    }
}

fn say(what: &str) -> io::Result<()> {
    println!("{what}");
    io::stdout().flush()
}

/// What this process is if it is a victim: runs that, and returns true should it end.
pub fn victim() -> bool {
    let Ok(text) = env::var(VICTIM) else {
        return false;
    };
    let mut words = text.split(' ');
    let kind = words.next();
    let ifindex = parse(words.next());
    let port = PORT + parse::<u16>(words.next());
    let rng = Rng::with_seed(parse(words.next()));
    let outcome = match kind {
        Some("receiver") => receiver(ifindex, port, rng),
        Some("sender") => sender(ifindex, port, rng),
        other => panic!("no victim is called {other:?}"),
    };
    println!("ended: {outcome:?}");
    true
}

fn parse<T: FromStr>(word: Option<&str>) -> T {
    let number = word.and_then(|word| word.parse().ok());
    number.expect("a number")
}

/// Binds its queue, and receives, holds and returns tokens, valid ones and others, until it is killed.
fn receiver(ifindex: u32, port: u16, mut rng: Rng) -> io::Result<()> {
    let queue = u32::from(port - PORT);
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = Arc::new(memory.map()?);
    let listener = TcpListener::bind(address(Ip::V4, port))?;
    let binding = BindRx::new(ifindex).queue(queue).bind(&memory)?;
    say("bound")?;
    let (socket, _) = listener.accept()?;
    say("connected")?;
    let mut taker = Taker::new(socket, &[(binding.id(), map)]);
    loop {
        match rng.u8(0..10) {
            0..6 => match taker.take(libc::MSG_DONTWAIT) {
                Ok(true) => (),
                Ok(false) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(err) if err.kind() == ErrorKind::WouldBlock => {
                    taker.give_back(&mut rng, usize::MAX)?;
                }
                Err(err) => return Err(err),
            },
            6..9 => {
                let count = rng.usize(0..=taker.held());
                taker.give_back(&mut rng, count)?;
            }
            _ => {
                // Tokens that are none.
                let start = rng.u32(1 << 31..u32::MAX);
                let none = token::dontneed(&taker.socket, &[TokenRange { start, count: 100 }])?;
                assert_eq!(none, 0, "tokens returned that nobody had");
            }
        }
    }
}

/// Sends from memory that it binds, and binds again, until it is killed.
fn sender(ifindex: u32, port: u16, mut rng: Rng) -> io::Result<()> {
    let memory = pump::memory()?;
    let mut binding = BindTx::new(ifindex).bind(&memory)?;
    say("bound")?;
    let mut pump = Pump::new(TcpStream::connect(address(Ip::V4, port))?)?;
    say("connected")?;
    loop {
        pump.send(binding.id(), rng.u64(1..=pump::MOST))?;
        if rng.u8(0..8) == 0 {
            binding = BindTx::new(ifindex).bind(&memory)?;
        }
    }
}

/// Sends until the connection ends.
fn feed(mut socket: TcpStream) -> JoinHandle<()> {
    const CHUNK: usize = 10_000;
    thread::spawn(move || {
        let mut position = 0;
        while socket.write_all(traffic::bytes(position, CHUNK)).is_ok() {
            position += CHUNK as u64;
        }
    })
}

/// The other end of a victim's connection.
struct Peer {
    socket: TcpStream,
    worker: JoinHandle<()>,
}

impl Peer {
    /// Nobody is there any more.
    #[track_caller]
    fn end(self) {
        // It may be closed by then.
        let _ = self.socket.shutdown(Shutdown::Both);
        self.worker.join().expect("the peer of a victim");
    }
}

/// Starts a receiver, and sends to it if it is to live so long.
fn start_receiver(pair: &Pair, fate: &Fate) -> io::Result<(Victim, Option<Peer>)> {
    let mut victim = Victim::start(&pair.rx, "receiver", fate)?;
    if matches!(fate.since, Since::Started) {
        return Ok((victim, None));
    }
    victim.expect("bound")?;
    let to = address(Ip::V4, PORT + fate.queue as u16);
    let socket = pair.tx.ns.run(|| TcpStream::connect(to))?;
    socket.set_write_timeout(Some(wait::patience(TIMEOUT)))?;
    let worker = feed(socket.try_clone()?);
    if matches!(fate.since, Since::Connected) {
        victim.expect("connected")?;
    }
    Ok((victim, Some(Peer { socket, worker })))
}

/// Reads what a victim sent, which is right as far as it goes.
fn drain(listener: TcpListener) -> io::Result<()> {
    let (mut socket, _) = listener.accept()?;
    socket.set_read_timeout(Some(wait::patience(TIMEOUT)))?;
    let mut buffer = vec![0; 1 << 16];
    let mut position = 0;
    loop {
        let len = socket.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        traffic::compare(position, &buffer[..len]);
        position += len as u64;
    }
}

fn life_of_a_receiver(pair: &Pair, fate: &Fate) -> Outcome {
    let (victim, peer) = start_receiver(pair, fate)?;
    thread::sleep(fate.life);
    victim.kill()?;
    peer.into_iter().for_each(Peer::end);
    Ok(())
}

pub fn receivers_killed() -> Outcome {
    storm::run(|storm| {
        const STEPS: u32 = 15;
        let pair = Pair::new()?;
        (1..=QUEUES).try_for_each(|queue| pair.steer(PORT + queue as u16, queue))?;
        for _ in 0..storm.steps(STEPS) {
            let fates = draw(storm);
            storm.step(&fates);
            at_once(fates.iter().map(|fate| || life_of_a_receiver(&pair, fate)))?;
            storm.count("processes killed", fates.len() as u64);
        }
        aftermath::on(&pair, 1)
    })
}

/// Starts a sender, which lives for as long as it is meant to, and receives all that it has sent.
fn life_of_a_sender(pair: &Pair, fate: &Fate) -> Outcome {
    // An unbound queue: host memory.
    let listener = pair.listen(Ip::V4, PORT + fate.queue as u16)?;
    let reader = {
        let listener = listener.try_clone()?;
        thread::spawn(move || drain(listener))
    };
    let mut victim = Victim::start(&pair.tx, "sender", fate)?;
    match fate.since {
        Since::Started => (),
        Since::Bound => victim.expect("bound")?,
        Since::Connected => {
            victim.expect("bound")?;
            victim.expect("connected")?;
        }
    }
    thread::sleep(fate.life);
    victim.kill()?;
    // If it never came so far, the reader still waits for it: in its place comes somebody who says nothing.
    let to = listener.local_addr()?;
    drop(pair.tx.ns.run(|| TcpStream::connect(to))?);
    match reader.join().expect("the reader of a victim") {
        // Closed with notifications unread, as a process that is killed does.
        Err(err) if err.kind() != ErrorKind::ConnectionReset => Err(err.into()),
        _ => Ok(()),
    }
}

pub fn senders_killed() -> Outcome {
    storm::run(|storm| {
        const STEPS: u32 = 15;
        let pair = Pair::new()?;
        for _ in 0..storm.steps(STEPS) {
            let fates = draw(storm);
            storm.step(&fates);
            at_once(fates.iter().map(|fate| || life_of_a_sender(&pair, fate)))?;
            storm.count("processes killed", fates.len() as u64);
        }
        aftermath::on(&pair, 1)
    })
}
