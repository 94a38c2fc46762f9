// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An end of a connection: sockets, a ring, and the state machine that says what to do with them.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use devmem::Extent;
use devmem::Piece;
use devmem::Source;
use devmem::recv::take_runs;
use devmem::uring::Receiver;
use devmem::uring::Ring;
use devmem::uring::Sender;
use devmem::uring::Writer;
use log::debug;
use log::warn;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::memory::Landing;
use crate::memory::Memory;
use crate::memory::Reading;
use crate::memory::Registry;
use crate::place::Data;
use crate::place::HostCopy;
use crate::place::Job;
use crate::place::Landed;
use crate::place::Place;
use crate::protocol;
use crate::protocol::End;
use crate::protocol::Event;
use crate::protocol::Failure;
use crate::protocol::Key;
use crate::protocol::Limits;
use crate::protocol::Machine;
use crate::protocol::Outgoing;
use crate::protocol::Refused;
use crate::protocol::Target;
use crate::protocol::wire::MAX_LANES;
use crate::protocol::wire::NOTE;

/// Requests that the ring has room for at once.
const ENTRIES: u32 = 256;
/// What is written to, and read from, the control connection at once.
const CONTROL: usize = 64 << 10;
/// What is read from a lane at once, if it is not in device memory, and how many pieces.
const DATA: usize = 256 << 10;
const FRAGS: usize = 256;
/// What the CPU copies into a lane at once.
const COPIED: usize = 256 << 10;
/// Pieces that are placed at once, before anything else is looked at.
const BATCH: usize = 256;
/// How often a socket is read before others have their turn.
const TURN: usize = 16;
/// After that long without an answer of its kernel a peer is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// After so many seconds without a word its kernel is asked.
const PROBE: u32 = 5;
/// How long the peer may take to hear that a connection has ended.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often to look whether others are done with what they were handed out.
const HANDED_OUT: Duration = Duration::from_millis(5);

/// What an endpoint is made of, beside its sockets.
#[derive(Debug)]
pub struct Options {
    /// How much it takes upon itself. How many lanes there are follows from the sockets.
    pub limits: Limits,
    /// The keys that its peer may use.
    pub registry: Registry,
    /// Where payload lands, if it lands in device memory.
    pub landing: Option<Arc<Landing>>,
}

impl Options {
    /// Payload comes in host memory.
    pub fn new(registry: Registry) -> Self {
        Self {
            limits: Limits::default(),
            registry,
            landing: None,
        }
    }

    /// Payload lands here. All of its window is this endpoint's, in equal parts for its lanes.
    pub fn landing(mut self, landing: Arc<Landing>, lanes: u16) -> Self {
        self.limits.window = landing.window() / u64::from(lanes.max(1));
        self.landing = Some(landing);
        self
    }

    /// Payload lands here for good: see [`InPlace`](crate::InPlace). The peer has credit for all of it.
    pub fn target(mut self, landing: Arc<Landing>, lanes: u16) -> Self {
        self.limits.window = landing.whole() / u64::from(lanes.max(1));
        self.landing = Some(landing);
        self
    }
}

/// One end of a connection.
///
/// It does nothing by itself: whoever has it [waits](Self::wait) for events, or [serves](Self::serve) the peer, in a
/// thread of its own say, so that whoever has the memory may sleep.
///
/// In the steady state, `io_uring_enter()` is its only system call; that the CPU reads or writes a dma-buf takes an
/// `ioctl(DMA_BUF_IOCTL_SYNC)`, for which io_uring has no request.
pub struct Endpoint {
    machine: Machine,
    registry: Registry,
    landing: Option<Arc<Landing>>,
    place: Box<dyn Place + Send>,
    /// What its requests are about.
    own: HashMap<u64, (Arc<Memory>, u64)>,
    lanes: Vec<Wire>,
    control: Arc<TcpStream>,
    control_rx: Receiver<'static>,
    control_tx: Writer,
    /// Until when the peer may hear that, and close its end, once the connection is over.
    farewell: Option<Instant>,
    /// Whether it has closed it.
    hung_up: bool,
    /// Whether this end has nothing to say any more.
    silent: bool,
    /// Whether some socket had more when its turn was over: then nobody tells.
    more: bool,
    /// Why this end could not go on.
    trouble: Option<io::Error>,
    ring: Ring,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("lanes", &self.lanes.len())
            .field("end", &self.machine.end())
            .finish_non_exhaustive()
    }
}

/// A lane: its socket.
struct Wire {
    /// Until the connection is over.
    rx: Option<Receiver<'static>>,
    copies: Option<Writer>,
    tx: Sender<'static, Part>,
    /// What has landed, and nobody knows yet where it belongs.
    held: VecDeque<Landed>,
    /// Bytes that are free again, and for how many of these there was credit.
    released: Arc<AtomicU64>,
    credited: u64,
    /// Bytes that have been handed out.
    out: u64,
    /// What was announced, and is not in the socket yet.
    rest: Option<Sending>,
    /// Whether there is no room in the socket, as far as is known.
    full: bool,
    /// Whether the peer has closed it.
    closed: bool,
}

/// What is left of a segment on its way into a socket.
enum Sending {
    /// The NIC reads it.
    Nic(Reading, Extent),
    /// The CPU has.
    Copied(Vec<u8>),
}

/// What came of a first try to send something.
enum Begun {
    /// All of it goes by the lane, as short as it is now.
    Goes,
    /// There is no room for any of it.
    Waits,
    /// The memory cannot be read.
    Unreadable,
}

/// A part of a memory that the NIC reads, which keeps the memory.
#[derive(Debug)]
struct Part {
    extent: Extent,
    _memory: Reading,
}

impl Source for Part {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        [self.extent].into_iter()
    }
}

impl Endpoint {
    /// An end of these sockets: the control connection, and the lanes in the same order as at the other end. Both have
    /// to be made; see [`connect`](crate::connect::connect) and [`Acceptor`](crate::connect::Acceptor).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for no lanes, or more than [`MAX_LANES`]; those of [`Ring::new`],
    /// [`Receiver::multishot_on`], [`Sender::on`] and [`take_runs`].
    pub fn new(control: TcpStream, lanes: Vec<TcpStream>, options: Options) -> io::Result<Self> {
        let count = u16::try_from(lanes.len()).ok();
        let count = count.filter(|count| (1..=MAX_LANES).contains(count));
        let mut limits = options.limits;
        limits.lanes = count.ok_or(io::ErrorKind::InvalidInput)?;
        let ring = Ring::new(ENTRIES)?;
        control.set_nodelay(true)?;
        for socket in std::iter::once(&control).chain(&lanes) {
            hear_of_death(socket)?;
        }
        let control = Arc::new(control);
        let lanes = lanes
            .into_iter()
            .map(|socket| {
                // Fewer pieces, and tokens, than the NIC has filled buffers.
                if options.landing.is_some() {
                    take_runs(&socket)?;
                }
                Wire::new(&ring, Arc::new(socket))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            machine: Machine::new(limits),
            registry: options.registry,
            landing: options.landing,
            place: Box::new(HostCopy::new()),
            own: HashMap::new(),
            lanes,
            control_rx: Receiver::multishot_on(&ring, Arc::clone(&control), CONTROL, 1)?,
            control_tx: Writer::on(&ring, Arc::clone(&control), CONTROL)?,
            control,
            farewell: None,
            hung_up: false,
            silent: false,
            more: false,
            trouble: None,
            ring,
        })
    }

    /// Puts what lands in place by other means than the CPU.
    pub fn place_by(mut self, place: impl Place + Send + 'static) -> Self {
        self.place = Box::new(place);
        self
    }

    /// Puts `len` bytes from `from` of a memory on to `to` of what `key` names. The number of the request, which ends with
    /// [`Event::Done`]; until then whatever is written to these bytes may be what is sent.
    ///
    /// # Errors
    ///
    /// Why it cannot be tried: [`Refused::Busy`] if it can be later.
    pub fn put(
        &mut self,
        memory: &Arc<Memory>,
        from: u64,
        len: u64,
        key: Key,
        to: u64,
    ) -> Result<u64, Refused> {
        self.check(memory, from, len)?;
        let id = self.machine.put(key, to, len)?;
        self.own.insert(id, (Arc::clone(memory), from));
        Ok(id)
    }

    /// Gets `len` bytes from `from` on of what `key` names to `to` of a memory. The number of the request, which ends with
    /// [`Event::Done`].
    ///
    /// # Errors
    ///
    /// As of [`put`](Self::put).
    pub fn get(
        &mut self,
        memory: &Arc<Memory>,
        to: u64,
        len: u64,
        key: Key,
        from: u64,
    ) -> Result<u64, Refused> {
        self.check(memory, to, len)?;
        let id = self.machine.get(key, from, len)?;
        self.own.insert(id, (Arc::clone(memory), to));
        Ok(id)
    }

    /// Tells the peer's program something once all that was put before is in place. The number of the request, which ends
    /// with [`Event::Done`] when the program has taken it.
    ///
    /// # Errors
    ///
    /// As of [`put`](Self::put).
    pub fn notify(&mut self, note: [u8; NOTE]) -> Result<u64, Refused> {
        self.machine.notify(note)
    }

    /// Gives up a request, which ends soon, one way or another.
    pub fn cancel(&mut self, id: u64) {
        self.machine.cancel(id);
    }

    /// There will be no more requests of this end. The connection is over when the peer says the same.
    pub fn close(&mut self) {
        self.machine.close();
    }

    fn check(&self, memory: &Memory, offset: u64, len: u64) -> Result<(), Refused> {
        match offset.checked_add(len) {
            Some(end) if end <= memory.size() => Ok(()),
            _ => Err(Refused::Length),
        }
    }

    /// How the connection ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.machine.end()
    }

    /// Why this end could not go on, if it [ended](Self::end) so.
    pub fn trouble(&self) -> Option<&io::Error> {
        self.trouble.as_ref()
    }

    /// The next event, if there is one by now.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_enter()`.
    pub fn try_event(&mut self) -> io::Result<Option<Event>> {
        self.go_on()?;
        Ok(self.event())
    }

    /// Waits for an event: `None` if there was none for so long, or if the connection is over and all events were told.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_enter()`.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Option<Event>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.go_on()?;
            if let Some(event) = self.event() {
                return Ok(Some(event));
            }
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if self.is_over() || left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            if self.more {
                continue;
            }
            let out = self.lanes.iter().any(|lane| lane.out > 0);
            let farewell = self
                .farewell
                .map(|end| end.saturating_duration_since(Instant::now()));
            let left = [left, farewell, out.then_some(HANDED_OUT)]
                .into_iter()
                .flatten()
                .min();
            match self.ring.wait(left) {
                Err(err) if err.kind() == io::ErrorKind::TimedOut => (),
                other => other?,
            }
        }
    }

    /// Waits until the peer has said hello, and requests can be made.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait); [`TimedOut`](io::ErrorKind::TimedOut);
    /// [`ConnectionAborted`](io::ErrorKind::ConnectionAborted) if the connection is over before that.
    pub fn wait_open(&mut self, timeout: Duration) -> io::Result<()> {
        let start = Instant::now();
        loop {
            self.go_on()?;
            if let Some(end) = self.machine.end() {
                let what = format!("{end:?}");
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, what));
            }
            if self.machine.is_open() {
                return Ok(());
            }
            if self.more {
                continue;
            }
            self.ring
                .wait(Some(timeout.saturating_sub(start.elapsed())))?;
        }
    }

    /// Waits until all requests made so far are over, and tells what the first one that failed failed for. Notes of the
    /// peer, and what is told of other requests, go to `others`.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait).
    pub fn flush(&mut self, mut others: impl FnMut(Event)) -> io::Result<Result<(), Failure>> {
        let first_new = self.machine.next_id();
        let mut result = Ok(());
        while self.machine.oldest().is_some_and(|id| id < first_new) {
            match self.wait(None)? {
                Some(Event::Done { id, result: ended }) if id < first_new => {
                    result = result.and(ended);
                }
                Some(event) => others(event),
                None => break,
            }
        }
        Ok(result)
    }

    /// Serves the peer until it says that it is done, or is gone: its puts and gets need nothing else. To end that,
    /// shut its control connection down.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait).
    pub fn serve(&mut self, mut each: impl FnMut(Event)) -> io::Result<End> {
        loop {
            match self.wait(None)? {
                Some(Event::Closing) => self.machine.close(),
                Some(event) => each(event),
                None => return Ok(self.machine.end().unwrap_or(End::Local)),
            }
        }
    }

    fn event(&mut self) -> Option<Event> {
        let event = self.machine.event()?;
        if let Event::Done { id, .. } = event {
            self.own.remove(&id);
        }
        Some(event)
    }

    /// Whether the connection is over, and the peer knows it, or does not listen.
    fn is_over(&mut self) -> bool {
        if self.machine.end().is_none() {
            return false;
        }
        let farewell = self
            .farewell
            .get_or_insert_with(|| Instant::now() + FAREWELL);
        if Instant::now() >= *farewell {
            return true;
        }
        // A peer that is gone does not matter.
        if !self.machine.output().is_empty() || !self.control_tx.is_idle().unwrap_or(true) {
            return false;
        }
        if !std::mem::replace(&mut self.silent, true) {
            self.hung_up |= self.control.shutdown(Shutdown::Write).is_err();
        }
        self.hung_up && self.lanes.is_empty()
    }

    /// Does whatever can be done without waiting.
    fn go_on(&mut self) -> io::Result<()> {
        self.more = false;
        if self.machine.end().is_none() {
            // What is dropped from here on goes back with what is waited for next.
            self.lanes.iter_mut().for_each(Wire::collect);
            let result = self
                .hear()
                .and_then(|()| self.receive())
                .and_then(|()| self.send());
            if let Err(err) = result {
                // A socket says how its peer went, or what was wrong with the memory here.
                match is_gone(&err) {
                    true => self.machine.gone(),
                    false => self.machine.fail(),
                }
                self.trouble.get_or_insert(err);
            }
        }
        if let Some(end) = self.machine.end() {
            self.say_farewell(end);
        }
        match self.control_tx.write(self.machine.output()) {
            Ok(said) => self.machine.said(said),
            Err(_) => {
                self.machine.gone();
                let left = self.machine.output().len();
                self.machine.said(left);
            }
        }
        self.ring.submit()
    }

    /// Lets go of what is not needed any more once the connection is over.
    fn say_farewell(&mut self, end: End) {
        // A lane stays until nobody reads any more what it sent: memory that the NIC reads never comes back else.
        for wire in &mut self.lanes {
            wire.leave(end);
        }
        self.lanes.retain(|wire| wire.tx.in_flight() > 0);
        // What the peer still says about requests that are over is read: else it may not get to read what it was told.
        self.more = true;
        for _ in 0..TURN {
            match self.control_rx.try_recv() {
                Ok(Some(received)) if !received.is_eof() => continue,
                Ok(None) => (),
                Ok(Some(_)) | Err(_) => self.hung_up = true,
            }
            self.more = false;
            break;
        }
        self.hung_up |= end != End::Orderly;
    }

    /// What came of a lane; an error if that ends the connection. Once this end has said that it is done it is the control
    /// connection that tells how the peer went.
    fn unless_bye(&mut self, lane: usize, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(err) if is_gone(&err) && self.machine.has_said_bye() => {
                self.lanes[lane].closed = true;
                Ok(())
            }
            other => other,
        }
    }

    /// Takes what came by the control connection.
    fn hear(&mut self) -> io::Result<()> {
        for _ in 0..TURN {
            let Some(received) = self.control_rx.try_recv()? else {
                return Ok(());
            };
            if received.is_eof() {
                self.machine.gone();
                return Ok(());
            }
            for piece in received {
                match piece {
                    Piece::Plain(bytes) | Piece::Linear(bytes) => {
                        self.machine.input(bytes, &self.registry.lock());
                    }
                    Piece::Frag(_) => {
                        return Err(io::Error::other(
                            "the control connection is steered to device memory",
                        ));
                    }
                }
            }
        }
        self.more = true;
        Ok(())
    }

    /// Takes what came by the lanes, and puts in place what is known to belong somewhere.
    fn receive(&mut self) -> io::Result<()> {
        for lane in 0..self.machine.lanes() {
            let at = usize::from(lane);
            // What was there before somebody said where it belongs.
            while self.place(lane) {}
            let mut turns = 0;
            loop {
                let mut landed = 0;
                let taken = self.lanes[at].take(self.landing.as_ref(), &mut landed);
                // Before anything else comes: there is only so much that may.
                self.machine.landed(lane, landed);
                if landed == 0 || taken.is_err() {
                    self.unless_bye(at, taken)?;
                    break;
                }
                while self.place(lane) {}
                turns += 1;
                if turns == TURN {
                    self.more = true;
                    break;
                }
            }
            self.release(lane);
            if self.lanes[at].closed && !self.machine.has_said_bye() {
                self.machine.gone();
            }
        }
        Ok(())
    }

    /// Puts some pieces of a lane in place; says whether there may be more.
    fn place(&mut self, lane: u16) -> bool {
        let wire = &mut self.lanes[usize::from(lane)];
        // Who takes one back waits for those by which something was assigned. Nobody waits for what is written meanwhile.
        let keys = self.registry.lock();
        let mut jobs = Vec::new();
        let mut placements = Vec::new();
        while let Some(piece) = wire.held.front_mut() {
            if jobs.len() == BATCH {
                break;
            }
            let Some(placement) = self.machine.assign(lane, piece.len(), &keys) else {
                break;
            };
            let landed = match placement.len == piece.len() {
                true => wire.held.pop_front(),
                false => Some(piece.split(placement.len)),
            };
            wire.out += placement.len;
            let to = match &placement.target {
                Target::Memory { memory, offset } => Some((Arc::clone(&memory.memory), *offset)),
                Target::Own { id, at } => self
                    .own
                    .get(id)
                    .map(|(memory, offset)| (Arc::clone(memory), offset + at)),
                Target::Nowhere => None,
            };
            match to {
                Some((memory, offset)) => {
                    jobs.push(Job {
                        landed,
                        memory,
                        offset,
                        placed: false,
                    });
                    placements.push(placement);
                }
                None => self.machine.placed(placement, true),
            }
        }
        drop(keys);
        let more = jobs.len() == BATCH;
        if !jobs.is_empty() {
            self.place.place(&mut jobs);
        }
        for (job, placement) in jobs.into_iter().zip(placements) {
            self.machine.placed(placement, job.placed);
        }
        more
    }

    /// Gives credit for what is free again.
    fn release(&mut self, lane: u16) {
        let wire = &mut self.lanes[usize::from(lane)];
        let released = wire.released.load(Ordering::Acquire);
        let new = released - wire.credited;
        if new > 0 {
            wire.credited = released;
            wire.out = wire.out.saturating_sub(new);
            self.machine.released(lane, new);
        }
    }

    /// Sends what there is credit and room for.
    fn send(&mut self) -> io::Result<()> {
        for lane in 0..self.lanes.len() {
            let sent = self.lanes[lane].send();
            self.unless_bye(lane, sent)?;
        }
        loop {
            let lanes = &self.lanes;
            let ready = |lane: u16| lanes.get(usize::from(lane)).is_some_and(Wire::has_room);
            // Who takes a key back sees then who reads by it.
            let keys = self.registry.lock();
            let Some(mut segment) = self.machine.next_segment(ready, &keys) else {
                return Ok(());
            };
            let (memory, offset) = match &segment.source {
                protocol::Source::Memory { memory, offset } => {
                    (Arc::clone(&memory.memory), *offset)
                }
                protocol::Source::Own { id, at } => match self.own.get(id) {
                    Some((memory, offset)) => (Arc::clone(memory), offset + at),
                    None => return Err(io::Error::other("a request that there is not")),
                },
            };
            let memory = Reading::new(memory);
            drop(keys);
            let lane = usize::from(segment.lane);
            match self.lanes[lane].begin(memory, offset, &mut segment) {
                Ok(Begun::Goes) => self.machine.announce(segment),
                Ok(Begun::Waits) => (),
                Ok(Begun::Unreadable) => self.machine.unreadable(segment),
                Err(err) => self.unless_bye(lane, Err(err))?,
            }
        }
    }
}

/// Ends the connection, if it has not ended, without a word. What the NIC reads of memory comes back first, if it does
/// within a while.
impl Drop for Endpoint {
    fn drop(&mut self) {
        self.machine.gone();
        let end = self.machine.end().unwrap_or(End::Gone);
        let deadline = Instant::now() + FAREWELL;
        loop {
            self.say_farewell(end);
            let left = deadline.saturating_duration_since(Instant::now());
            if self.lanes.is_empty() || left.is_zero() || self.ring.wait(Some(left)).is_err() {
                break;
            }
        }
        if !self.lanes.is_empty() {
            warn!("memory that was being sent from stays bound");
        }
    }
}

impl Wire {
    fn new(ring: &Ring, socket: Arc<TcpStream>) -> io::Result<Self> {
        Ok(Self {
            rx: Some(Receiver::multishot_on(
                ring,
                Arc::clone(&socket),
                DATA,
                FRAGS,
            )?),
            copies: Some(Writer::on(ring, Arc::clone(&socket), COPIED)?),
            tx: Sender::on(ring, socket)?,
            held: VecDeque::new(),
            released: Arc::default(),
            credited: 0,
            out: 0,
            rest: None,
            full: false,
            closed: false,
        })
    }

    /// Tokens that are dropped do not go back one by one.
    fn collect(&mut self) {
        if let Some(rx) = &mut self.rx {
            rx.collect();
        }
    }

    /// Takes some of what has come, and tells how many bytes it was.
    fn take(&mut self, landing: Option<&Arc<Landing>>, bytes: &mut u64) -> io::Result<()> {
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
    fn leave(&mut self, end: End) {
        if self.rx.take().is_some() {
            self.copies = None;
            self.held.clear();
            self.rest = None;
            // If both are done the peer has all of it.
            if end != End::Orderly {
                if let Err(err) = self.tx.abort() {
                    debug!("a lane cannot be aborted: {err}");
                }
            }
        }
        self.take_back();
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
    fn has_room(&self) -> bool {
        !self.closed && !self.full && self.rest.is_none() && self.copies.is_some()
    }

    /// Begins to send from `offset` of a memory on, if there is room. The segment becomes as long as what goes now: nothing
    /// is promised that may turn out not to be there.
    fn begin<M>(
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
                Sending::Nic(memory, extent) => match self.send_part(&memory, extent, 0)? {
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
                },
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
    fn send(&mut self) -> io::Result<()> {
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

/// Has a socket tell that its peer is gone, if that does not say so.
fn hear_of_death(socket: &TcpStream) -> io::Result<()> {
    let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    setsockopt(socket, sockopt::TcpUserTimeout, &silence)?;
    // Who waits for the peer sends nothing that would be acknowledged, but for this.
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &PROBE)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &PROBE)?;
    Ok(())
}

/// Whether an error of a socket says that the peer is gone.
fn is_gone(err: &io::Error) -> bool {
    matches!(
        err.raw_os_error(),
        Some(libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT | libc::EHOSTUNREACH)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::io::Write;
    use std::net::Ipv4Addr;
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::thread;

    use nix::sys::socket::getsockopt;

    use crate::protocol::Fault;
    use crate::protocol::wire::Frame;

    const LONG: Duration = Duration::from_secs(60);

    /// The other end takes little that it does not read.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        setsockopt(&listener, sockopt::RcvBuf, &1).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    /// An end with one lane, and the sockets of its peer; `None` on a machine that does not allow io_uring.
    fn endpoint() -> Option<(Endpoint, TcpStream, TcpStream)> {
        let ((control, there), (lane, lane_there)) = (connection(), connection());
        let options = Options::new(Registry::new().unwrap());
        match Endpoint::new(control, vec![lane], options) {
            Ok(endpoint) => Some((endpoint, there, lane_there)),
            Err(err)
                if matches!(err.raw_os_error(), Some(libc::EPERM | libc::ENOSYS))
                    && std::env::var_os("DEVMEM_NO_SKIPS").is_none() =>
            {
                eprintln!("SKIP: no io_uring here: {err}");
                None
            }
            Err(err) => panic!("no endpoint: {err}"),
        }
    }

    #[test]
    fn an_endpoint_has_as_many_lanes_as_the_protocol_knows() {
        let (control, _there) = connection();
        for count in [0, 65] {
            let lanes = (0..count).map(|_| control.try_clone().unwrap()).collect();
            let options = Options::new(Registry::new().unwrap());
            let err = Endpoint::new(control.try_clone().unwrap(), lanes, options).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput, "{count}");
        }
    }

    /// Also if nothing is under way, so that there is nothing to be acknowledged.
    #[test]
    fn silence_is_noticed_soon() {
        let (socket, _there) = connection();
        hear_of_death(&socket).unwrap();
        let idle = getsockopt(&socket, sockopt::TcpKeepIdle).unwrap();
        let interval = getsockopt(&socket, sockopt::TcpKeepInterval).unwrap();
        let most = getsockopt(&socket, sockopt::TcpUserTimeout).unwrap();
        assert!(getsockopt(&socket, sockopt::KeepAlive).unwrap());
        assert_eq!(u128::from(most), SILENCE.as_millis());
        assert!(idle + 2 * interval <= most / 1000, "{idle} s, {interval} s");
    }

    /// It is told how the connection ended, and nothing that it says after that matters.
    #[test]
    fn a_peer_that_goes_on_talking_is_left() {
        let Some((mut endpoint, mut there, _lane)) = endpoint() else {
            return;
        };
        let mut listening = there.try_clone().unwrap();
        thread::spawn(move || while listening.read(&mut [0; 4096]).is_ok_and(|len| len > 0) {});
        let talking = thread::spawn(move || while there.write_all(&[0; 1 << 20]).is_ok() {});
        let (to, left) = mpsc::channel();
        thread::spawn(move || {
            let end = endpoint.serve(drop).unwrap();
            drop(endpoint);
            to.send(end)
        });
        let end = left.recv_timeout(LONG).expect("it is still there");
        assert_eq!(end, End::Broken(Fault::Malformed));
        talking.join().unwrap();
    }

    /// However slowly it does.
    #[test]
    fn a_peer_that_does_not_listen_is_left() {
        let Some((mut endpoint, mut there, _lane)) = endpoint() else {
            return;
        };
        setsockopt(&endpoint.control, sockopt::SndBuf, &1).unwrap();
        let mut hello = Machine::new(Limits::default()).output().to_vec();
        let key = Key([0; 16]);
        let (offset, len) = (0, 1);
        for id in 0..200_000 {
            Frame::Get {
                id,
                key,
                offset,
                len,
            }
            .encode(&mut hello);
        }
        let asking = thread::spawn(move || {
            let _ = there.write_all(&hello);
            there
        });
        let start = Instant::now();
        while endpoint.wait(Some(LONG)).unwrap().is_some() {}
        assert!(start.elapsed() < 3 * FAREWELL, "{:?}", start.elapsed());
        assert_eq!(endpoint.end(), Some(End::Broken(Fault::Requests)));
        drop(endpoint);
        drop(asking.join());
    }
}
