// SPDX-License-Identifier: GPL-2.0

//! A connection, and what is known of it: its stream, and the tokens that are held.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::time::Duration;

use devmem_testlib::probe::tcp_info;
use devmem_testlib::sockopt;
use devmem_testlib::traffic;
use devmem_testlib::wait;

/// How long what should take no time at all may take.
const SOON: Duration = Duration::from_secs(5);
/// How long to wait at first before another look. netdevsim passes packets on by a timer: waiting lets that have
/// the CPU, which an emulated machine may have only one of.
const LOOK: Duration = Duration::from_micros(10);
/// `TCP_CLOSE`.
const CLOSED: u8 = 7;
/// States in which an end waits for its own FIN to be acknowledged: `TCP_FIN_WAIT1`, `TCP_LAST_ACK`,
/// `TCP_CLOSING`.
const ENDING: [u8; 3] = [4, 9, 11];
/// States with the peer's FIN: `TCP_TIME_WAIT`, `TCP_CLOSE`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK`,
/// `TCP_CLOSING`.
const ENDED: [u8; 5] = [6, CLOSED, 8, 9, 11];

/// A piece of the stream in device memory, for which there is a token.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Which of the bindings.
    pub binding: usize,
    /// Where in its memory.
    pub offset: u64,
    /// How many bytes.
    pub size: u32,
    /// Where in the stream.
    pub position: u64,
}

/// A connection.
#[derive(Debug)]
pub struct Flow {
    /// The receiver's socket.
    pub rx: TcpStream,
    /// The peer's, unless it is closed.
    pub tx: Option<TcpStream>,
    /// The tokens that are held.
    pub held: BTreeMap<u32, Held>,
    /// Tokens that were held.
    pub returned: Vec<u32>,
    /// Bytes that have been received.
    pub read: u64,
    /// Bytes that have been sent.
    pub sent: u64,
    /// Buffers that are in the receive queue, at the most.
    pub queued: u32,
    /// Whether the receive buffer has been made smaller.
    pub small: bool,
    /// Whether another process has the sockets, too.
    pub shared: bool,
    /// Calls that sent from a dma-buf.
    pub calls: u32,
    /// Of these, the ones that are completed.
    pub completed: u32,
    /// Where in the stream parts begin, and where each is in [`traffic`].
    parts: Vec<(u64, u64)>,
}

impl Flow {
    /// A new connection.
    pub fn new(rx: TcpStream, tx: TcpStream) -> io::Result<Self> {
        // As short as the kernel can: a call that waits in vain is part of the game.
        rx.set_read_timeout(Some(Duration::from_millis(1)))?;
        tx.set_nodelay(true)?;
        sockopt::set(&tx, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
        Ok(Self {
            rx,
            tx: Some(tx),
            held: BTreeMap::new(),
            returned: Vec::new(),
            read: 0,
            sent: 0,
            queued: 0,
            small: false,
            shared: false,
            calls: 0,
            completed: 0,
            parts: Vec::new(),
        })
    }

    /// Notes that so many bytes were sent, which are in [`traffic`] from `pattern` on.
    pub fn add(&mut self, bytes: u64, pattern: u64) {
        self.parts.push((self.sent, pattern));
        self.sent += bytes;
    }

    /// Tells whether these bytes are those of the stream at a position.
    pub fn matches(&self, mut position: u64, mut bytes: &[u8]) -> bool {
        if !bytes.is_empty() && position + bytes.len() as u64 > self.sent {
            return false;
        }
        while !bytes.is_empty() {
            let next = self.parts.partition_point(|part| part.0 <= position);
            let (start, pattern) = self.parts[next - 1];
            let end = self.parts.get(next).map_or(self.sent, |part| part.0);
            let (now, rest) = bytes.split_at(bytes.len().min((end - position) as usize));
            if now != traffic::bytes(pattern + position - start, now.len()) {
                return false;
            }
            position += now.len() as u64;
            bytes = rest;
        }
        true
    }

    /// Waits until what was sent has arrived, or both ends know that the receiver wants no more. False if
    /// it does neither.
    pub fn wait_arrival(&self) -> io::Result<bool> {
        soon(|| {
            let (state, received) = tcp_info(&self.rx)?;
            Ok(received >= self.sent || state == CLOSED && self.peer_state()? == CLOSED)
        })
    }

    /// Waits until the receiver knows that the stream has ended. False if it does not get to know.
    pub fn wait_end(&self) -> io::Result<bool> {
        soon(|| Ok(ENDED.contains(&tcp_info(&self.rx)?.0)))
    }

    /// Waits until the receiver knows that the connection is gone. False if it does not get to know.
    pub fn wait_reset(&self) -> io::Result<bool> {
        soon(|| Ok(tcp_info(&self.rx)?.0 == CLOSED))
    }

    fn peer_state(&self) -> io::Result<u8> {
        match &self.tx {
            Some(tx) => Ok(tcp_info(tx)?.0),
            None => Ok(CLOSED),
        }
    }

    /// Has the peer's socket reset the connection when it is closed.
    pub fn reset_at_close(&self) -> io::Result<()> {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        match &self.tx {
            Some(tx) => sockopt::set(tx, libc::SOL_SOCKET, libc::SO_LINGER, linger),
            None => Ok(()),
        }
    }
}

/// Waits until the other end has acknowledged that this one sends no more. False if it does not.
pub fn acknowledged(socket: &TcpStream) -> io::Result<bool> {
    soon(|| Ok(!ENDING.contains(&tcp_info(socket)?.0)))
}

/// Waits for a condition; false if it does not come true.
pub fn soon(condition: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    Ok(wait::up_to_from(LOOK, SOON, condition)?.came)
}
