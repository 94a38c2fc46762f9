// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An end of a connection: sockets, a ring, and the state machine that says what to do with them.

mod drive;
mod lane;
mod options;
mod poll;
mod socket;
#[cfg(test)]
mod tests;

pub use options::Options;
pub(crate) use socket::SILENCE;
pub(crate) use socket::hear_of_death;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use devmem::recv::take_runs;
use devmem::uring::Receiver;
use devmem::uring::Ring;
use devmem::uring::Writer;
use log::warn;

use self::lane::Wire;
use crate::memory::Landing;
use crate::memory::Memory;
use crate::place::HostCopy;
use crate::place::Place;
use crate::protocol::End;
use crate::protocol::Event;
use crate::protocol::Failure;
use crate::protocol::Key;
use crate::protocol::Machine;
use crate::protocol::Refused;
use crate::protocol::machine::LEAST;
use crate::protocol::wire::MAX_LANES;
use crate::protocol::wire::NOTE;
use crate::registry::Registry;

/// Requests that the ring has room for at once.
const ENTRIES: u32 = 256;
/// What is written to, and read from, the control connection at once.
const CONTROL: usize = 64 << 10;
/// How long the peer may take to hear that a connection has ended.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often to look whether others are done with what they were handed out.
const HANDED_OUT: Duration = Duration::from_millis(5);

/// One end of a connection.
///
/// It does nothing by itself: whoever has it [waits](Self::wait) for events, or [serves](Self::serve) the peer, in a
/// thread of its own say, so that whoever has the memory may sleep. Who does neither for as long as [`Options::stall`] of
/// the peer, while that has sent more than the sockets take, loses the connection.
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
    /// Until the peer has closed it.
    control_rx: Option<Receiver<'static>>,
    control_tx: Writer,
    /// Until when the peer may hear that, and close its end, once the connection is over.
    farewell: Option<Instant>,
    /// Whether it has closed it.
    hung_up: bool,
    /// Whether this end has nothing to say any more.
    silent: bool,
    /// Whether some socket had more when its turn was over: then nobody tells.
    more: bool,
    /// Bytes that were put in place, and that were sent.
    moved: u64,
    /// Why this end could not go on.
    trouble: Option<io::Error>,
    ring: Ring,
    /// How often it has looked at all of this.
    #[cfg(test)]
    turns: u64,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("lanes", &self.lanes.len())
            .field("end", &self.machine.end())
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// An end of these sockets: the control connection, and the lanes in the same order as at the other end. Both have
    /// to be made; see [`connect`](crate::connect::connect) and [`Acceptor`](crate::Acceptor).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for no lanes, for more than [`MAX_LANES`] or [`Options::lanes`], and
    /// if there is not room for two of the [shortest segments](LEAST) for each of them; those of [`Ring::new`],
    /// [`Receiver::multishot_on`], [`Sender::on`](devmem::uring::Sender::on) and [`take_runs`].
    pub fn new(control: TcpStream, lanes: Vec<TcpStream>, options: Options) -> io::Result<Self> {
        let count = u16::try_from(lanes.len()).ok();
        let most = options.lanes.min(MAX_LANES);
        let count = count.filter(|count| (1..=most).contains(count));
        let mut limits = options.limits;
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        limits.lanes = count.ok_or_else(|| invalid("no lanes, or too many"))?;
        if let Some(window) = options.window {
            limits.window = window / u64::from(limits.lanes);
            if limits.window < 2 * u64::from(LEAST) {
                return Err(invalid("too many lanes for the window"));
            }
        }
        let ring = Ring::new(ENTRIES)?;
        control.set_nodelay(true)?;
        hear_of_death(&control, Some(SILENCE))?;
        for lane in &lanes {
            hear_of_death(lane, options.stall)?;
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
            control_rx: Some(Receiver::multishot_on(
                &ring,
                Arc::clone(&control),
                CONTROL,
                1,
            )?),
            control_tx: Writer::on(&ring, Arc::clone(&control), CONTROL)?,
            control,
            farewell: None,
            hung_up: false,
            silent: false,
            more: false,
            moved: 0,
            trouble: None,
            ring,
            #[cfg(test)]
            turns: 0,
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

    /// Gives up a request. It ends when the peer answers, one way or another, and nothing is written for a get meanwhile.
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

    /// Where its peer is, as the control connection tells.
    ///
    /// # Errors
    ///
    /// Those of `getpeername()`: the peer may be gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.control.peer_addr()
    }

    /// How many bytes were put in place here, and announced to the peer. A peer that has no key that is good for something has
    /// none of the requests of its own count here: so who serves others, too, can give up one by which this does not grow.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// The next event, if there is one by now.
    ///
    /// Nothing tells when what a [`Place`] has kept is dropped, and the peer can be given credit for it: who only calls this
    /// calls it every few milliseconds then. After [`Event::Over`] it is [`wait`](Self::wait) that sees to it that the peer
    /// hears how the connection ended: until that returns `None`, or the endpoint is dropped, and that may be lost.
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
        match self.opens_within(timeout)? {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The same, where it is no error if that takes longer.
    pub(crate) fn opens_within(&mut self, timeout: Duration) -> io::Result<bool> {
        let start = Instant::now();
        loop {
            self.go_on()?;
            if let Some(end) = self.machine.end() {
                let what = end.to_string();
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, what));
            }
            if self.machine.is_open() {
                return Ok(true);
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            if self.more {
                continue;
            }
            match self.ring.wait(Some(left)) {
                Err(err) if err.kind() == io::ErrorKind::TimedOut => (),
                other => other?,
            }
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
}

/// Ends the connection, if it has not ended, without a word. What the NIC reads of memory comes back first, if it does
/// within 5 s.
impl Drop for Endpoint {
    fn drop(&mut self) {
        self.machine.gone();
        let end = self.machine.end().unwrap_or(End::Gone);
        let deadline = Instant::now() + FAREWELL;
        loop {
            self.say_farewell(end);
            // Else the ring does not wait for the lanes.
            let _ = self.control_tx.is_idle();
            let left = deadline.saturating_duration_since(Instant::now());
            if self.lanes.is_empty() || left.is_zero() || self.ring.wait(Some(left)).is_err() {
                break;
            }
        }
        // Somebody else may have it, too.
        let _ = self.control.shutdown(Shutdown::Both);
        if !self.lanes.is_empty() {
            warn!("memory that was being sent from stays bound");
        }
    }
}
