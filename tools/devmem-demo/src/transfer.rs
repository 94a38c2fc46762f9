// SPDX-License-Identifier: GPL-2.0

//! One transfer of the file, into device memory or by a plain recv().

use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::Extent;
use devmem::Piece;
use devmem::Receive;
use devmem::Receiver;
use devmem::TokenBatch;
use devmem::dmabuf::Mapping;
use devmem::netns::Netns;
use nix::sys::resource::UsageWho;
use nix::sys::resource::getrusage;
use nix::sys::time::TimeValLike;
use sha2::Digest;
use sha2::Sha256;

use crate::sender::Sender;

/// Nothing that works takes longer, not even in an emulated guest.
pub const TIMEOUT: Duration = Duration::from_secs(60);
const BUFFER: usize = 1 << 20;

/// What a transfer came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Bytes received.
    pub bytes: u64,
    /// Their SHA-256, if they were read.
    pub sha256: Option<[u8; 32]>,
    /// Pieces in device memory.
    pub frags: u64,
    /// Bytes that came in host memory.
    pub copied: u64,
    /// Tokens returned.
    pub returned: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// CPU time of the receiver's thread.
    pub cpu: Duration,
}

/// Where a stream was received, in its order.
#[derive(Debug, Default)]
pub struct Kept {
    /// Bytes received.
    pub bytes: u64,
    /// What of the device memory they are.
    pub pieces: Vec<Extent>,
    /// Bytes that came in host memory.
    pub copied: u64,
}

/// A connection with a sender at its other end.
pub struct Transfer {
    stream: TcpStream,
    sender: Sender,
}

/// Starts a sender, and accepts its connection.
pub fn accept(rx: &Netns, tx: &Netns, file: &Path, to: SocketAddr) -> io::Result<Transfer> {
    let listener = rx.run(|| TcpListener::bind(to))?;
    listener.set_nonblocking(true)?;
    let mut sender = Sender::start(tx, file, to)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                return Ok(Transfer { stream, sender });
            }
            Err(err) if err.kind() != ErrorKind::WouldBlock => return Err(err),
            Err(_) if start.elapsed() > TIMEOUT => return Err(ErrorKind::TimedOut.into()),
            Err(_) => {
                sender.check()?;
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Transfer {
    /// Receives into device memory; reads what arrives if there is a mapping to read it from.
    pub fn into_device_memory(self, mapping: Option<&Mapping>) -> io::Result<Outcome> {
        let mut batch = TokenBatch::new(&self.stream);
        let mut hasher = Sha256::new();
        let mut update = |bytes: &[u8]| hasher.update(bytes);
        let check = mapping.map(|mapping| (mapping, &mut update as &mut dyn FnMut(&[u8])));
        let mut outcome = receive(&mut Receiver::new(&self.stream), &mut batch, check)?;
        outcome.returned = batch.returned();
        outcome.sha256 = mapping.is_some().then(|| hasher.finalize().into());
        self.sender.wait()?;
        Ok(outcome)
    }

    /// Receives into device memory, of which nothing is given back before the end.
    pub fn kept(self) -> io::Result<Kept> {
        let mut kept = Kept::default();
        let mut tokens = Vec::new();
        let mut receiver = Receiver::new(&self.stream);
        loop {
            let received = receiver.recv()?;
            if received.is_eof() {
                break;
            }
            kept.bytes += received.total() as u64;
            for piece in received {
                match piece {
                    Piece::Frag(frag) => {
                        kept.pieces.push(Extent {
                            offset: frag.offset,
                            len: frag.size.into(),
                        });
                        tokens.push(frag.token);
                    }
                    Piece::Linear(bytes) | Piece::Plain(bytes) => {
                        kept.copied += bytes.len() as u64;
                    }
                }
            }
        }
        drop(tokens);
        self.sender.wait()?;
        Ok(kept)
    }

    /// Receives as any program does.
    pub fn into_host_memory(mut self) -> io::Result<Outcome> {
        let clock = Clock::start()?;
        let mut outcome = Outcome::default();
        let mut buffer = vec![0; BUFFER];
        loop {
            match self.stream.read(&mut buffer)? {
                0 => break,
                len => outcome.bytes += len as u64,
            }
        }
        outcome.copied = outcome.bytes;
        clock.stop(&mut outcome)?;
        self.sender.wait()?;
        Ok(outcome)
    }
}

/// What reads the bytes that arrive, and the mapping to read them from.
pub type Check<'c> = Option<(&'c Mapping, &'c mut dyn FnMut(&[u8]))>;

/// Receives a stream into device memory, to its end.
pub fn receive<'s>(
    receiver: &mut impl Receive<'s>,
    batch: &mut TokenBatch<'s>,
    mut check: Check<'_>,
) -> io::Result<Outcome> {
    let clock = Clock::start()?;
    let mut outcome = Outcome::default();
    let mut gathered = Vec::new();
    loop {
        let received = receiver.recv()?;
        if received.is_eof() {
            break;
        }
        outcome.bytes += received.total() as u64;
        let mut cpu = match &mut check {
            Some((mapping, check)) => Some((mapping.begin_read()?, check)),
            None => None,
        };
        for piece in received {
            match piece {
                Piece::Frag(frag) => {
                    outcome.frags += 1;
                    if let Some((cpu, check)) = &mut cpu {
                        gathered.resize(frag.size as usize, 0);
                        cpu.copy_out(frag.offset, &mut gathered)?;
                        check(&gathered);
                    }
                    batch.push(frag.token)?;
                }
                Piece::Linear(bytes) | Piece::Plain(bytes) => {
                    outcome.copied += bytes.len() as u64;
                    if let Some((_, check)) = &mut cpu {
                        check(bytes);
                    }
                }
            }
        }
        batch.flush()?;
    }
    clock.stop(&mut outcome)?;
    Ok(outcome)
}

/// Wall time, and CPU time of this thread.
struct Clock {
    wall: Instant,
    cpu: Duration,
}

impl Clock {
    fn start() -> io::Result<Self> {
        Ok(Self {
            wall: Instant::now(),
            cpu: Self::cpu()?,
        })
    }

    fn stop(self, outcome: &mut Outcome) -> io::Result<()> {
        outcome.elapsed = self.wall.elapsed();
        outcome.cpu = Self::cpu()?.saturating_sub(self.cpu);
        Ok(())
    }

    fn cpu() -> io::Result<Duration> {
        let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
        let micros = |time: nix::sys::time::TimeVal| {
            Duration::from_micros(time.num_microseconds().unsigned_abs())
        };
        Ok(micros(usage.user_time()) + micros(usage.system_time()))
    }
}
