// SPDX-License-Identifier: GPL-2.0

//! Memory that is taken back while data are in motion.

use std::io;
use std::io::Read;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::Piece;
use devmem::Receiver;
use nix::errno::Errno;

use crate::pair::Connection;
use crate::provider;
use crate::report::Outcome;
use crate::traffic;

/// The flow goes on in host memory for so long: longer than what the rings had before.
const GOES_ON: u64 = 512 << 10;

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

/// Reads what repeats the first `len` bytes of the stream until the connection is reset. `progress` is told how much there
/// was, and so is the caller.
pub fn read_until_reset(
    mut socket: &TcpStream,
    len: u64,
    progress: impl Fn(u64),
) -> io::Result<u64> {
    let mut bytes = vec![0; 1 << 16];
    let mut position = 0;
    loop {
        match socket.read(&mut bytes) {
            Ok(0) => panic!("the stream ended at {position}"),
            Ok(got) => {
                let mut rest = &bytes[..got];
                while !rest.is_empty() {
                    let at = position % len;
                    let step = rest.len().min((len - at) as usize);
                    let (now, later) = rest.split_at(step);
                    traffic::compare(at, now);
                    (rest, position) = (later, position + step as u64);
                }
                progress(position);
            }
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return Ok(position),
            Err(err) => return Err(err),
        }
    }
}
