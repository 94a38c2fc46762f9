// SPDX-License-Identifier: GPL-2.0

//! Memory that is taken back while data are in motion.

use std::io;
use std::io::Read;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::Piece;
use devmem::Receiver;
use nix::errno::Errno;

use crate::pair::Connection;
use crate::probe::tcp_info;
use crate::provider;
use crate::report::Outcome;
use crate::traffic;
use crate::tx::Call;
use crate::tx::extent;

/// The flow goes on in host memory for so long: longer than what the rings had before.
const GOES_ON: u64 = 512 << 10;
/// A reader that is not told by then may never be.
const TOLD: Duration = Duration::from_secs(3);
/// `TCP_CLOSE`
const CLOSE: u8 = 7;
/// So much was received of what is sent before that is taken back.
const IN_MOTION: u64 = 256 << 10;

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Has memory taken back while it is received into. Tells how long that took, and what became of the reader: that has read
/// for a while what comes in host memory then, or got an error.
pub fn while_received(
    connection: &Connection,
    take: impl FnOnce() -> io::Result<()>,
) -> io::Result<(Duration, Result<(), Errno>)> {
    let moving = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // It ends when the reader does.
            let mut position = 0;
            while traffic::send(&connection.tx, position, 1 << 16, 1 << 16).is_ok() {
                position += 1 << 16;
            }
        });
        let reader = scope.spawn(|| read_until_in_pages(connection, &moving));
        provider::wait_for("the flow to be in motion", || {
            Ok(moving.load(Ordering::Relaxed))
        });
        let start = Instant::now();
        let taken = take();
        let time = start.elapsed();
        let end = reader.join().expect("a thread that reads");
        // Whoever sends has nobody to send to.
        connection.rx.shutdown(Shutdown::Both)?;
        let _ = connection.tx.shutdown(Shutdown::Both);
        taken?;
        Ok((time, end))
    })
}

/// Reads until the flow was long enough in host memory.
fn read_until_in_pages(connection: &Connection, moving: &AtomicBool) -> Result<(), Errno> {
    let mut receiver = Receiver::new(&connection.rx);
    let (mut position, mut in_pages) = (0, 0);
    while in_pages < GOES_ON {
        let received = receiver.recv().map_err(|err| errno(&err))?;
        assert!(!received.is_eof(), "the stream ended at {position}");
        for piece in received {
            match piece {
                Piece::Frag(frag) => {
                    moving.store(true, Ordering::Relaxed);
                    position += u64::from(frag.size);
                    in_pages = 0;
                }
                Piece::Linear(data) | Piece::Plain(data) => {
                    traffic::compare(position, data);
                    position += data.len() as u64;
                    in_pages += data.len() as u64;
                }
            }
        }
    }
    Ok(())
}

/// The connection is aborted, and its user told why.
pub fn assert_aborted(connection: &Connection) -> Outcome {
    let mut told = None;
    provider::wait_for("the connection to be aborted", || {
        told = connection.tx.take_error()?;
        Ok(told.is_some())
    });
    assert_eq!(told.as_ref().map(errno), Some(Errno::EIO));
    Ok(())
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As ever.
    Eof,
    /// The connection is reset.
    Reset,
    /// It is over for the sender, and the reader was not told: a NIC may lose the reset, of which there is only one.
    Lost,
}

/// Compares a part of the stream that repeats its first `len` bytes.
fn compare(mut position: u64, len: u64, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let offset = position % len;
        let step = bytes.len().min((len - offset) as usize);
        let (now, rest) = bytes.split_at(step);
        traffic::compare(offset, now);
        (position, bytes) = (position + step as u64, rest);
    }
}

/// Reads what repeats the first `len` bytes of the stream until that ends. `position` is how much there was so far.
fn read_to_the_end(mut socket: &TcpStream, len: u64, position: &AtomicU64) -> io::Result<End> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match socket.read(&mut bytes) {
            Ok(0) => return Ok(End::Eof),
            Ok(got) => {
                let from = position.fetch_add(got as u64, Ordering::Relaxed);
                compare(from, len, &bytes[..got]);
            }
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return Ok(End::Reset),
            Err(err) => return Err(err),
        }
    }
}

/// Reads it until the connection is reset. Returns how much there was.
pub fn read_until_reset(socket: &TcpStream, len: u64) -> io::Result<u64> {
    let position = AtomicU64::new(0);
    let end = read_to_the_end(socket, len, &position)?;
    let position = position.into_inner();
    assert_eq!(end, End::Reset, "at {position}");
    Ok(position)
}

/// Has memory taken back while its first `len` bytes are sent again and again. Tells how long that took, what the sender was
/// told, and how the stream ended. Every byte of that was what had been there.
pub fn while_sent(
    connection: &Connection,
    id: u32,
    len: u64,
    take: impl FnOnce() -> io::Result<()>,
) -> io::Result<(Duration, Errno, End)> {
    let Connection { rx, tx } = connection;
    let position = AtomicU64::new(0);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            let err = loop {
                let offset = sent % len;
                match Call::new(id, &[extent(offset, len - offset)]).send(tx) {
                    Ok(now) => sent += now as u64,
                    Err(err) => break err,
                }
            };
            // Its reader has to come to an end, too, if nothing was in flight.
            let _ = tx.shutdown(Shutdown::Both);
            errno(&err)
        });
        let reader = scope.spawn(|| read_to_the_end(rx, len, &position));
        provider::wait_for("the flow to be in motion", || {
            Ok(position.load(Ordering::Relaxed) > IN_MOTION)
        });
        let start = Instant::now();
        let taken = take();
        let time = start.elapsed();
        if taken.is_err() {
            // Else nobody ends.
            let _ = tx.shutdown(Shutdown::Both);
        }
        let told = sender.join().expect("a thread that sends");
        let start = Instant::now();
        while !reader.is_finished() && start.elapsed() < TOLD {
            thread::sleep(Duration::from_millis(10));
        }
        // If the sender is not at its end, the reader gives up, which is an error.
        let is_lost = !reader.is_finished() && tcp_info(tx)?.0 == CLOSE;
        if is_lost {
            rx.shutdown(Shutdown::Read)?;
        }
        let end = reader.join().expect("a thread that reads")?;
        taken?;
        let end = if is_lost { End::Lost } else { end };
        Ok((time, told, end))
    })
}
