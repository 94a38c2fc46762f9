// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A lane of an endpoint: its socket.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use devmem::Extent;
use devmem::Piece;
use devmem::Source;
use devmem::uring::Receiver;
use devmem::uring::Ring;
use devmem::uring::Sender;
use devmem::uring::Writer;
use log::debug;
use log::warn;

use crate::memory::Landing;
use crate::memory::Reading;
use crate::place::Data;
use crate::place::Landed;
use crate::protocol::End;
use crate::protocol::Outgoing;

/// What is read from a lane at once, if it is not in device memory, and how many pieces.
const DATA: usize = 256 << 10;
const FRAGS: usize = 256;
/// What the CPU copies into a lane at once.
const COPIED: usize = 256 << 10;

/// A lane: its socket.
pub(super) struct Wire {
    socket: Arc<TcpStream>,
    /// Until the connection is over.
    rx: Option<Receiver<'static>>,
    copies: Option<Writer>,
    pub(super) tx: Sender<'static, Part>,
    /// What has landed, and nobody knows yet where it belongs.
    pub(super) held: VecDeque<Landed>,
    /// Bytes that are free again, and for how many of these there was credit.
    pub(super) released: Arc<AtomicU64>,
    pub(super) credited: u64,
    /// Bytes that have been handed out.
    pub(super) out: u64,
    /// What was announced, and is not in the socket yet.
    rest: Option<Sending>,
    /// Whether there is no room in the socket, as far as is known.
    full: bool,
    /// Whether the peer has closed it.
    pub(super) closed: bool,
    /// Whether the connection is over.
    left: bool,
}

/// What is left of a segment on its way into a socket.
enum Sending {
    /// The NIC reads it.
    Nic(Reading, Extent),
    /// The CPU has.
    Copied(Vec<u8>),
}

/// What came of a first try to send something.
pub(super) enum Begun {
    /// All of it goes by the lane, as short as it is now.
    Goes,
    /// There is no room for any of it.
    Waits,
    /// The memory cannot be read.
    Unreadable,
}

/// A part of a memory that the NIC reads, which keeps the memory.
#[derive(Debug)]
pub(super) struct Part {
    extent: Extent,
    _memory: Reading,
}

impl Source for Part {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        [self.extent].into_iter()
    }
}

impl Wire {
    pub(super) fn new(ring: &Ring, socket: Arc<TcpStream>) -> io::Result<Self> {
        Ok(Self {
            rx: Some(Receiver::multishot_on(
                ring,
                Arc::clone(&socket),
                DATA,
                FRAGS,
            )?),
            copies: Some(Writer::on(ring, Arc::clone(&socket), COPIED)?),
            tx: Sender::on(ring, Arc::clone(&socket))?,
            socket,
            held: VecDeque::new(),
            released: Arc::default(),
            credited: 0,
            out: 0,
            rest: None,
            full: false,
            closed: false,
            left: false,
        })
    }

    pub(super) fn socket(&self) -> &Arc<TcpStream> {
        &self.socket
    }

    /// Tokens that are dropped do not go back one by one.
    pub(super) fn collect(&mut self) {
        if let Some(rx) = &mut self.rx {
            rx.collect();
        }
    }

    /// Takes some of what has come, and tells how many bytes it was.
    pub(super) fn take(
        &mut self,
        landing: Option<&Arc<Landing>>,
        bytes: &mut u64,
    ) -> io::Result<()> {
        let Some(rx) = self.rx.as_mut().filter(|_| !self.closed) else {
            return Ok(());
        };
        let Some(received) = rx.try_recv()? else {
            return Ok(());
        };
        if received.is_eof() {
            self.closed = true;
            return Ok(());
        }
        for piece in received {
            let (data, len) = match piece {
                Piece::Frag(frag) => match landing {
                    Some(landing) if landing.id() == frag.dmabuf_id => {
                        let data = Data::Frag {
                            landing: Arc::clone(landing),
                            offset: frag.offset,
                            _token: frag.token,
                        };
                        (data, u64::from(frag.size))
                    }
                    _ => {
                        return Err(io::Error::other(
                            "a lane is steered to device memory of another binding",
                        ));
                    }
                },
                Piece::Plain(part) | Piece::Linear(part) => {
                    let len = part.len() as u64;
                    // However little of it comes at once.
                    if self.held.back_mut().is_some_and(|last| last.append(part)) {
                        *bytes += len;
                        continue;
                    }
                    (Data::Host(part.to_vec()), len)
                }
            };
            *bytes += len;
            self.held.push_back(Landed::new(data, len, &self.released));
        }
        Ok(())
    }

    /// The connection is over: nothing comes that anybody wants, and nothing is to be sent. What was sent comes back.
    pub(super) fn leave(&mut self, end: End) {
        if !std::mem::replace(&mut self.left, true) {
            self.rx = None;
            self.copies = None;
            self.held.clear();
            self.rest = None;
            // If both are done the peer has all of it.
            if end != End::Orderly {
                self.abort();
            }
        }
        self.take_back();
    }

    /// Has nothing more be sent, nor read of memory.
    pub(super) fn abort(&mut self) {
        if let Err(err) = self.tx.abort() {
            debug!("a lane cannot be aborted: {err}");
        }
    }

    /// What was sent comes back, from a connection that is over.
    fn take_back(&mut self) {
        // How it ended is told once, and is no news.
        let mut told = false;
        loop {
            match self.tx.completed() {
                Ok(Some(_)) => (),
                Err(_) if !told => told = true,
                Ok(None) | Err(_) => break,
            }
        }
    }

    /// Whether something may be sent, as far as is known.
    pub(super) fn has_room(&self) -> bool {
        !self.closed && !self.full && self.rest.is_none() && self.copies.is_some()
    }

    /// Begins to send from `offset` of a memory on, if there is room. The segment becomes as long as what goes now: nothing
    /// is promised that may turn out not to be there.
    pub(super) fn begin<M>(
        &mut self,
        memory: Reading,
        offset: u64,
        segment: &mut Outgoing<M>,
    ) -> io::Result<Begun> {
        let Some(copies) = &mut self.copies else {
            self.full = true;
            return Ok(Begun::Waits);
        };
        if !copies.is_idle()? {
            self.full = true;
            return Ok(Begun::Waits);
        }
        if memory.tx().is_none() {
            segment.shorten(u32::try_from(COPIED).unwrap_or(u32::MAX));
            let mut bytes = vec![0; usize::try_from(segment.len).unwrap_or(COPIED)];
            if let Err(err) = memory.read(offset, &mut bytes) {
                warn!("memory cannot be read: {err}");
                return Ok(Begun::Unreadable);
            }
            self.rest = Some(Sending::Copied(bytes));
            self.send_rest()?;
            return Ok(Begun::Goes);
        }
        let extent = Extent {
            offset,
            len: segment.len.into(),
        };
        let flags = if segment.more { libc::MSG_MORE } else { 0 };
        match self.send_part(&memory, extent, flags) {
            Ok(None) => {
                self.full = true;
                Ok(Begun::Waits)
            }
            Ok(Some(sent)) => {
                segment.shorten(u32::try_from(sent).unwrap_or(u32::MAX));
                let left = Extent {
                    offset: offset + sent,
                    len: u64::from(segment.len) - sent,
                };
                if left.len > 0 {
                    self.rest = Some(Sending::Nic(memory, left));
                    self.send_rest()?;
                }
                Ok(Begun::Goes)
            }
            // Its exporter has taken it back.
            Err(err) if err.raw_os_error() == Some(libc::ENODEV) => {
                warn!("memory is gone: {err}");
                Ok(Begun::Unreadable)
            }
            Err(err) => Err(err),
        }
    }

    /// Has the NIC send some of an extent; says how much, if there was room for any.
    fn send_part(
        &mut self,
        memory: &Reading,
        extent: Extent,
        flags: i32,
    ) -> io::Result<Option<u64>> {
        let Some(binding) = memory.tx() else {
            return Err(io::Error::other("memory that is not bound"));
        };
        loop {
            let part = Part {
                extent,
                _memory: memory.clone(),
            };
            let err = match self
                .tx
                .send_flags(binding, part, flags | libc::MSG_DONTWAIT)
            {
                Ok(()) => return Ok(Some(extent.len)),
                Err(err) => err,
            };
            // What was not sent is sent as another part.
            if err.sent > 0 {
                return Ok(Some(err.sent));
            }
            match err.errno() {
                Some(libc::EAGAIN) if self.tx.tell_room()? => (),
                Some(libc::EAGAIN) => return Ok(None),
                // There is, when some have completed.
                Some(libc::ENOBUFS) if self.tx.in_flight() > 0 => return Ok(None),
                _ => return Err(err.error),
            }
        }
    }

    /// Sends what was announced, and for which there was no room.
    fn send_rest(&mut self) -> io::Result<()> {
        while let Some(rest) = self.rest.take() {
            let left = match rest {
                Sending::Nic(memory, extent) => {
                    match self.send_part(&memory, extent, 0).map_err(taken_back)? {
                        Some(sent) if sent == extent.len => continue,
                        sent => {
                            let sent_now = sent.unwrap_or(0);
                            self.full = sent.is_none();
                            let extent = Extent {
                                offset: extent.offset + sent_now,
                                len: extent.len - sent_now,
                            };
                            Sending::Nic(memory, extent)
                        }
                    }
                }
                Sending::Copied(mut bytes) => {
                    let Some(copies) = &mut self.copies else {
                        return Ok(());
                    };
                    let taken = copies.write(&bytes)?;
                    if taken == bytes.len() {
                        continue;
                    }
                    self.full = taken == 0;
                    bytes.drain(..taken);
                    Sending::Copied(bytes)
                }
            };
            self.rest = Some(left);
            if self.full {
                break;
            }
        }
        Ok(())
    }

    /// Sends what was left, if there is room again.
    pub(super) fn send(&mut self) -> io::Result<()> {
        if self.closed {
            // Nobody takes what completes there, and the ring would not wait.
            self.rx = None;
            self.copies = None;
            self.take_back();
            return Ok(());
        }
        self.full = false;
        // What the kernel is done with is nobody's any more.
        while self.tx.completed()?.is_some() {}
        let Some(copies) = &mut self.copies else {
            return Ok(());
        };
        if copies.is_idle()? {
            self.send_rest()?;
        }
        Ok(())
    }
}

/// Says what was wrong with memory that is gone after some of it was sent.
fn taken_back(err: io::Error) -> io::Error {
    match err.raw_os_error() {
        Some(libc::ENODEV) => io::Error::new(
            err.kind(),
            format!("memory was taken back of which the peer was told that it comes: {err}"),
        ),
        _ => err,
    }
}
