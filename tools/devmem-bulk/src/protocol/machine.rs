// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An end of a connection, as a state machine: bytes, requests and what was done go in, bytes, orders and events come out.
//!
//! Whoever drives it has the sockets and the memory, and
//!
//! - passes on what comes by the control connection ([`Machine::input`]), and sends what it [has to say](Machine::output);
//! - tells how many bytes came by each lane ([`Machine::landed`]), asks where they belong ([`Machine::assign`]), and tells
//!   when they are there ([`Machine::placed`]) and when what they landed in is free again ([`Machine::released`]);
//! - asks what to send next ([`Machine::next_segment`]), sends that, and says so ([`Machine::announce`]), in this order;
//! - tells the program what happened ([`Machine::event`]).

use std::collections::BTreeMap;
use std::collections::VecDeque;

use super::keys::Key;
use super::keys::Keys;
use super::keys::Rights;
use super::wire::Fault;
use super::wire::Frame;
use super::wire::Hello;
use super::wire::MAX_LANES;
use super::wire::NOTE;
use super::wire::Status;
use super::wire::VERSION;

/// The least bytes of a segment that is not the last one of its request. It bounds how many there can be.
pub const LEAST: u32 = 4096;
/// While there is more to say than this, no segments are added.
const FULL: usize = 16 << 10;

/// What an end takes upon itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// How many lanes there are, which both ends have to say.
    pub lanes: u16,
    /// How many bytes of each lane it may have in hand: as much as there is memory for.
    pub window: u64,
    /// How many requests of the peer it takes at once, and has of its own.
    pub requests: u32,
    /// How many bytes it sends for a request before it is another's turn.
    pub segment: u32,
    /// Which machine it is on, if the peer is to know.
    pub host: [u8; 16],
}

impl Default for Limits {
    /// One lane with a window of 1 MiB, 64 requests, segments of 256 KiB.
    fn default() -> Self {
        Self {
            lanes: 1,
            window: 1 << 20,
            requests: 64,
            segment: 256 << 10,
            host: [0; 16],
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Both had said that they were done.
    Orderly,
    /// The peer was gone, or one of its sockets.
    Gone,
    /// The peer did not keep to the protocol.
    Broken(Fault),
    /// The peer said so.
    Told(Fault),
    /// This end could not go on.
    Local,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// It was refused, or could not be done to the end. The connection goes on.
    Status(Status),
    /// The connection is over.
    Over(End),
}

/// Why there is no such request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// As many as may be are under way.
    Busy,
    /// It is about no bytes, or about more than there can be.
    Length,
    /// This end has said that there will be no more.
    Closing,
    /// The connection is over.
    Over(End),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A request of this end is over. Of a put, the bytes are in the peer's memory; of a get, in this end's.
    Done {
        /// The number that it was given.
        id: u64,
        /// Whether it went well.
        result: Result<(), Failure>,
    },
    /// The peer tells something, and all that it put before that, after the note before, is in place.
    Note([u8; NOTE]),
    /// The peer has no more requests, and waits until this end says the same.
    Closing,
    /// The connection is over; there are no more events.
    Over(End),
}

/// Bytes that are to be sent, next on their lane. To be given back by [`Machine::announce`] or [`Machine::unreadable`], or
/// to be asked for anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outgoing<M> {
    /// By which lane.
    pub lane: u16,
    /// How many.
    pub len: u32,
    /// Which.
    pub source: Source<M>,
    /// Whether others follow at once, so that the last of them may wait for these to fill a segment of TCP.
    pub more: bool,
    turn: Turn,
    least: u32,
}

impl<M> Outgoing<M> {
    /// Has no more than these bytes sent now, or a few that have to go together.
    pub fn shorten(&mut self, len: u32) {
        self.len = self.len.min(len.max(self.least));
    }
}

/// Where bytes are that are to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source<M> {
    /// In what a put of this end is about.
    Own {
        /// Its number.
        id: u64,
        /// Which byte of it is the first.
        at: u64,
    },
    /// In memory that a key of the peer's named.
    Memory {
        /// The memory.
        memory: M,
        /// Where in it.
        offset: u64,
    },
}

/// Where bytes belong that have come by a lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target<M> {
    /// To a get of this end.
    Own {
        /// Its number.
        id: u64,
        /// Which byte of it is the first.
        at: u64,
    },
    /// Into memory that a key of the peer's named.
    Memory {
        /// The memory.
        memory: M,
        /// Where in it.
        offset: u64,
    },
    /// Nowhere: nobody wants them any more.
    Nowhere,
}

/// The next bytes of a lane, to be put where they belong. To be given back by [`Machine::placed`].
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "the request that it is of waits for it"]
pub struct Placement<M> {
    /// How many bytes.
    pub len: u64,
    /// Where to.
    pub target: Target<M>,
    owner: Owner,
}

/// Which request bytes are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    /// A get of this end.
    Own(u64),
    /// A put of the peer.
    Peer(u64),
    /// One that is over.
    Nobody,
}

/// A request of this end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Own {
    Put {
        len: u64,
        announced: u64,
        /// Why no more of it is announced.
        failed: Option<Status>,
    },
    Get(Get),
    Note {
        cancelled: bool,
    },
}

/// A get of this end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Get {
    len: u64,
    /// Bytes that the peer has said are coming.
    announced: u64,
    /// Bytes of these that are in place, or nowhere.
    settled: u64,
    /// Why it will not be whole.
    failed: Option<Status>,
    cancelled: bool,
    /// Whether the peer has said that no more are coming.
    over: bool,
}

/// A request of the peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Peer {
    Put(Put),
    Get {
        key: Key,
        offset: u64,
        len: u64,
        announced: u64,
    },
    Note {
        note: [u8; NOTE],
        /// The one before it.
        after: Option<u64>,
        /// Whether it is among the events.
        told: bool,
    },
}

/// A put of the peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Put {
    key: Key,
    offset: u64,
    len: u64,
    announced: u64,
    /// Bytes that are being put in place.
    placing: u64,
    /// Bytes that are.
    placed: u64,
    failed: Option<Status>,
    /// Whether the peer was told how it ended.
    told: bool,
    cancelled: bool,
}

/// Bytes of a lane, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Segment {
    owner: Owner,
    /// Which byte of the request is the first.
    at: u64,
    len: u64,
}

/// What comes by a lane, in bytes since the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Incoming {
    /// Up to which the peer may send.
    limit: u64,
    announced: u64,
    landed: u64,
    assigned: u64,
    released: u64,
    segments: VecDeque<Segment>,
}

/// What goes by a lane, in bytes since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Sent {
    limit: u64,
    announced: u64,
}

/// Who is to send something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Turn {
    Own(u64),
    Peer(u64),
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    limits: Limits,
    /// [`LEAST`], but where all that can happen is looked at.
    least: u32,
    /// How many requests the peer takes, once it has said so.
    peer_takes: Option<u32>,
    over: Option<End>,
    closing: bool,
    said_bye: bool,
    heard_bye: bool,
    next_id: u64,
    own: BTreeMap<u64, Own>,
    next_peer_id: u64,
    peer: BTreeMap<u64, Peer>,
    /// The last note of the peer's, and whether a put after it has failed.
    last_note: Option<u64>,
    failed_since: bool,
    turns: VecDeque<Turn>,
    incoming: Vec<Incoming>,
    outgoing: Vec<Sent>,
    events: VecDeque<(Event, Option<u64>)>,
    output: Vec<u8>,
    partial: Vec<u8>,
}

impl Machine {
    /// A new one, which says hello. Limits that make no sense become the next ones that do.
    pub fn new(limits: Limits) -> Self {
        Self::with_least(limits, LEAST)
    }

    pub(super) fn with_least(limits: Limits, least: u32) -> Self {
        let limits = Limits {
            lanes: limits.lanes.clamp(1, MAX_LANES),
            // Half of it is given at least when all of it is free, and that has to do for a segment.
            window: limits.window.max(2 * u64::from(least)),
            requests: limits.requests.max(1),
            segment: limits.segment.max(least),
            ..limits
        };
        let lanes = usize::from(limits.lanes);
        let mut machine = Self {
            least,
            peer_takes: None,
            over: None,
            closing: false,
            said_bye: false,
            heard_bye: false,
            next_id: 0,
            own: BTreeMap::new(),
            next_peer_id: 0,
            peer: BTreeMap::new(),
            last_note: None,
            failed_since: false,
            turns: VecDeque::new(),
            incoming: vec![Incoming::default(); lanes],
            outgoing: vec![Sent::default(); lanes],
            events: VecDeque::new(),
            output: Vec::new(),
            partial: Vec::new(),
            limits,
        };
        machine.say(&Frame::Hello(Hello {
            lowest: VERSION,
            highest: VERSION,
            lanes: machine.limits.lanes,
            requests: machine.limits.requests,
            host: machine.limits.host,
        }));
        machine
    }

    /// How many things it keeps, bytes of frames, requests, segments and events alike: whatever the peer does, that
    /// has a limit.
    pub fn weight(&self) -> usize {
        let segments: usize = self.incoming.iter().map(|lane| lane.segments.len()).sum();
        let requests = self.own.len() + self.peer.len() + self.turns.len();
        segments + requests + self.events.len() + self.output.len() + self.partial.len()
    }

    /// Whether the peer has said hello.
    pub fn is_open(&self) -> bool {
        self.peer_takes.is_some() && self.over.is_none()
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.over
    }

    /// Whether it has said that it has no more requests.
    pub fn has_said_bye(&self) -> bool {
        self.said_bye
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> u16 {
        self.limits.lanes
    }

    /// The first request of this end that is under way, or of which the program has not been told how it ended.
    pub fn oldest(&self) -> Option<u64> {
        let ended = self.events.iter().filter_map(|(event, _)| match event {
            Event::Done { id, .. } => Some(*id),
            _ => None,
        });
        self.own
            .keys()
            .next()
            .copied()
            .into_iter()
            .chain(ended)
            .min()
    }

    /// The number that the next request gets.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Wants `len` bytes to be put where `key` says, from `offset` there on. Its number.
    ///
    /// # Errors
    ///
    /// Why it cannot be tried.
    pub fn put(&mut self, key: Key, offset: u64, len: u64) -> Result<u64, Refused> {
        let put = Own::Put {
            len,
            announced: 0,
            failed: None,
        };
        let id = self.request(offset, len, put)?;
        self.say(&Frame::Put {
            id,
            key,
            offset,
            len,
        });
        self.turns.push_back(Turn::Own(id));
        Ok(id)
    }

    /// Wants the `len` bytes from `offset` on of what `key` names. Its number.
    ///
    /// # Errors
    ///
    /// Why it cannot be tried.
    pub fn get(&mut self, key: Key, offset: u64, len: u64) -> Result<u64, Refused> {
        let get = Own::Get(Get {
            len,
            announced: 0,
            settled: 0,
            failed: None,
            cancelled: false,
            over: false,
        });
        let id = self.request(offset, len, get)?;
        self.say(&Frame::Get {
            id,
            key,
            offset,
            len,
        });
        Ok(id)
    }

    /// Tells the peer's program something, once all that was put before is in place; unless a put since the last
    /// note failed. It is done when the program has taken it. Its number.
    ///
    /// # Errors
    ///
    /// Why it cannot be tried.
    pub fn notify(&mut self, note: [u8; NOTE]) -> Result<u64, Refused> {
        let id = self.request(0, 1, Own::Note { cancelled: false })?;
        self.say(&Frame::Notify { id, note });
        Ok(id)
    }

    fn request(&mut self, offset: u64, len: u64, own: Own) -> Result<u64, Refused> {
        if let Some(end) = self.over {
            return Err(Refused::Over(end));
        }
        if self.closing {
            return Err(Refused::Closing);
        }
        if len == 0 || offset.checked_add(len).is_none() {
            return Err(Refused::Length);
        }
        let most = self.peer_takes.unwrap_or(0).min(self.limits.requests);
        if u32::try_from(self.own.len()).is_ok_and(|now| now >= most) {
            return Err(Refused::Busy);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.own.insert(id, own);
        Ok(id)
    }

    /// Gives up a request of this end. It ends with [`Status::Cancelled`], or as it would have.
    pub fn cancel(&mut self, id: u64) {
        self.give_up(id, Status::Cancelled);
    }

    fn give_up(&mut self, id: u64, status: Status) {
        let tell = match self.own.get_mut(&id) {
            Some(Own::Put { failed, .. }) => {
                let tell = failed.is_none();
                failed.get_or_insert(status);
                tell
            }
            Some(Own::Note { cancelled }) => !std::mem::replace(cancelled, true),
            Some(Own::Get(get)) => {
                get.failed.get_or_insert(status);
                get.give_up()
            }
            None => false,
        };
        if tell {
            self.say(&Frame::Cancel { id });
        }
    }

    /// There will be no more requests of this end. The connection ends when all are done, and the peer has said the same.
    pub fn close(&mut self) {
        self.closing = true;
        self.say_bye();
    }

    /// A socket says that the peer is gone.
    pub fn gone(&mut self) {
        self.finish(End::Gone);
    }

    /// This end cannot go on.
    pub fn fail(&mut self) {
        self.finish(End::Local);
    }

    /// What is to be sent over the control connection. What was is taken off by [`said`](Self::said).
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// So many bytes of [`output`](Self::output) were sent.
    pub fn said(&mut self, bytes: usize) {
        self.output.drain(..bytes.min(self.output.len()));
    }

    /// The next event.
    pub fn event(&mut self) -> Option<Event> {
        let (event, note) = self.events.pop_front()?;
        if let Some(id) = note {
            // The program has it now.
            if self.peer.remove(&id).is_some() {
                self.say(&Frame::Done {
                    id,
                    status: Status::Placed,
                });
            }
        }
        Some(event)
    }

    /// Bytes came by the control connection. Whatever is wrong with them ends the connection.
    pub fn input<M>(&mut self, bytes: &[u8], keys: &Keys<M>) {
        if self.over.is_some() {
            return;
        }
        self.partial.extend_from_slice(bytes);
        let mut from = 0;
        while self.over.is_none() {
            let taken = match Frame::decode(&self.partial[from..]) {
                Ok(None) => break,
                Ok(Some((frame, len))) => self.hear(frame, keys).map(|()| len),
                Err(fault) => Err(fault),
            };
            match taken {
                Ok(len) => from += len,
                Err(fault) => self.finish(End::Broken(fault)),
            }
        }
        self.partial.drain(..from);
        // Whoever says much and listens to nothing.
        let requests = usize::try_from(self.limits.requests).unwrap_or(usize::MAX);
        let most = requests.saturating_mul(256).saturating_add(4 * FULL);
        if self.over.is_none() && self.output.len() > most {
            self.finish(End::Broken(Fault::Requests));
        }
    }

    fn hear<M>(&mut self, frame: Frame, keys: &Keys<M>) -> Result<(), Fault> {
        let greeted = self.peer_takes.is_some();
        match frame {
            Frame::Hello(hello) if !greeted => self.greeted(&hello),
            Frame::Error(fault) => {
                self.finish(End::Told(fault));
                Ok(())
            }
            _ if !greeted => Err(Fault::Unexpected),
            Frame::Hello(_) => Err(Fault::Unexpected),
            Frame::Credit { lane, limit } => self.credited(lane, limit),
            Frame::Put {
                id,
                key,
                offset,
                len,
            } => self.peer_puts(id, key, offset, len, keys),
            Frame::Get {
                id,
                key,
                offset,
                len,
            } => self.peer_gets(id, key, offset, len, keys),
            Frame::Notify { id, note } => self.peer_notes(id, note),
            Frame::PutData { id, lane, len } => self.peer_announces(id, lane, len),
            Frame::GetData { id, lane, len } => self.own_announced(id, lane, len),
            Frame::Cancel { id } => self.peer_cancels(id),
            Frame::Done { id, status } => self.own_done(id, status),
            Frame::Bye => self.heard_bye(),
        }
    }

    fn greeted(&mut self, hello: &Hello) -> Result<(), Fault> {
        if !(hello.lowest..=hello.highest).contains(&VERSION) {
            return Err(Fault::Version);
        }
        if hello.lanes != self.limits.lanes {
            return Err(Fault::Lanes);
        }
        if hello.requests == 0 {
            return Err(Fault::Requests);
        }
        self.peer_takes = Some(hello.requests);
        for lane in 0..self.limits.lanes {
            let limit = self.limits.window;
            self.incoming[usize::from(lane)].limit = limit;
            self.say(&Frame::Credit { lane, limit });
        }
        Ok(())
    }

    fn credited(&mut self, lane: u16, limit: u64) -> Result<(), Fault> {
        let sent = self.outgoing.get_mut(usize::from(lane));
        let sent = sent.ok_or(Fault::Lanes)?;
        if limit <= sent.limit {
            return Err(Fault::Unexpected);
        }
        sent.limit = limit;
        Ok(())
    }

    /// Whether the peer may have one more request, of this number.
    fn peer_requests(&mut self, id: u64) -> Result<(), Fault> {
        if self.heard_bye {
            return Err(Fault::Unexpected);
        }
        if id != self.next_peer_id {
            return Err(Fault::Unknown);
        }
        if u32::try_from(self.peer.len()).is_ok_and(|now| now >= self.limits.requests) {
            return Err(Fault::Requests);
        }
        self.next_peer_id += 1;
        Ok(())
    }

    fn peer_puts<M>(
        &mut self,
        id: u64,
        key: Key,
        offset: u64,
        len: u64,
        keys: &Keys<M>,
    ) -> Result<(), Fault> {
        self.peer_requests(id)?;
        if len == 0 {
            return Err(Fault::Length);
        }
        let put = Put {
            key,
            offset,
            len,
            announced: 0,
            placing: 0,
            placed: 0,
            failed: keys.resolve(key, Rights::Write, offset, len).err(),
            told: false,
            cancelled: false,
        };
        self.peer.insert(id, Peer::Put(put));
        self.settle_put(id);
        Ok(())
    }

    fn peer_gets<M>(
        &mut self,
        id: u64,
        key: Key,
        offset: u64,
        len: u64,
        keys: &Keys<M>,
    ) -> Result<(), Fault> {
        self.peer_requests(id)?;
        if len == 0 {
            return Err(Fault::Length);
        }
        if let Err(status) = keys.resolve(key, Rights::Read, offset, len) {
            self.say(&Frame::Done { id, status });
            return Ok(());
        }
        let get = Peer::Get {
            key,
            offset,
            len,
            announced: 0,
        };
        self.peer.insert(id, get);
        self.turns.push_back(Turn::Peer(id));
        Ok(())
    }

    fn peer_notes(&mut self, id: u64, note: [u8; NOTE]) -> Result<(), Fault> {
        self.peer_requests(id)?;
        let after = self.last_note.replace(id);
        if std::mem::take(&mut self.failed_since) {
            self.say(&Frame::Done {
                id,
                status: Status::Fenced,
            });
            return Ok(());
        }
        let note = Peer::Note {
            note,
            after,
            told: false,
        };
        self.peer.insert(id, note);
        self.tell_notes();
        Ok(())
    }

    /// Checks what a data frame says of a lane and a request, of which `left` bytes were not announced.
    fn expect(&mut self, lane: u16, len: u32, left: u64, segment: Segment) -> Result<(), Fault> {
        let whole = u64::from(len);
        if len == 0 || whole > left || (len < self.least && whole < left) {
            return Err(Fault::Length);
        }
        let Limits {
            window, requests, ..
        } = self.limits;
        let incoming = self.incoming.get_mut(usize::from(lane));
        let incoming = incoming.ok_or(Fault::Lanes)?;
        // Neither is more than the window from the other.
        if incoming.limit - incoming.announced < whole {
            return Err(Fault::Overrun);
        }
        incoming.announced += whole;
        incoming.segments.push_back(segment);
        // Short ones are the last of their request. Those of requests that are over are made one.
        let most = 4 * (window / u64::from(self.least) + u64::from(requests) + 1);
        if usize::try_from(most).is_ok_and(|most| incoming.segments.len() > most) {
            let (own, peer) = (&self.own, &self.peer);
            incoming.compact(|owner| match owner {
                Owner::Own(id) => own.contains_key(&id),
                Owner::Peer(id) => peer.contains_key(&id),
                Owner::Nobody => false,
            });
        }
        Ok(())
    }

    fn peer_announces(&mut self, id: u64, lane: u16, len: u32) -> Result<(), Fault> {
        let Some(Peer::Put(put)) = self.peer.get(&id) else {
            return Err(Fault::Unknown);
        };
        let (left, at) = (put.len - put.announced, put.announced);
        let segment = Segment {
            owner: Owner::Peer(id),
            at,
            len: len.into(),
        };
        self.expect(lane, len, left, segment)?;
        if let Some(Peer::Put(put)) = self.peer.get_mut(&id) {
            put.announced += u64::from(len);
        }
        self.settle_put(id);
        Ok(())
    }

    fn own_announced(&mut self, id: u64, lane: u16, len: u32) -> Result<(), Fault> {
        let Some(Own::Get(get)) = self.own.get(&id) else {
            return Err(Fault::Unknown);
        };
        if get.over {
            return Err(Fault::Unexpected);
        }
        let (left, at) = (get.len - get.announced, get.announced);
        let segment = Segment {
            owner: Owner::Own(id),
            at,
            len: len.into(),
        };
        self.expect(lane, len, left, segment)?;
        if let Some(Own::Get(get)) = self.own.get_mut(&id) {
            get.announced += u64::from(len);
        }
        Ok(())
    }

    fn peer_cancels(&mut self, id: u64) -> Result<(), Fault> {
        if id >= self.next_peer_id {
            return Err(Fault::Unknown);
        }
        match self.peer.get_mut(&id) {
            Some(Peer::Put(put)) => {
                put.cancelled = true;
                // All of it is coming: it ends as it does.
                if put.announced < put.len {
                    put.failed.get_or_insert(Status::Cancelled);
                }
                self.settle_put(id);
            }
            Some(Peer::Get { .. }) => self.end_peer(id, Status::Cancelled),
            Some(Peer::Note { told: false, .. }) => self.end_peer(id, Status::Cancelled),
            // The program is about to take it; or it was over before the peer knew.
            Some(Peer::Note { .. }) | None => (),
        }
        Ok(())
    }

    fn own_done(&mut self, id: u64, status: Status) -> Result<(), Fault> {
        let result = match status {
            Status::Placed => Ok(()),
            _ => Err(Failure::Status(status)),
        };
        match self.own.get_mut(&id).ok_or(Fault::Unknown)? {
            &mut Own::Put {
                len,
                announced,
                failed,
            } => {
                let some_left = announced < len;
                if some_left && result.is_ok() {
                    return Err(Fault::Unexpected);
                }
                if some_left && failed.is_none() {
                    self.say(&Frame::Cancel { id });
                }
                // The peer knows that it was given up, and this end why.
                let result = match (status, failed) {
                    (Status::Cancelled, Some(why)) => Err(Failure::Status(why)),
                    _ => result,
                };
                self.complete(id, result);
            }
            Own::Get(get) => {
                if result.is_ok() || get.over || get.announced == get.len {
                    return Err(Fault::Unexpected);
                }
                get.over = true;
                get.failed.get_or_insert(status);
                self.settle_get(id);
            }
            Own::Note { .. } => self.complete(id, result),
        }
        Ok(())
    }

    fn heard_bye(&mut self) -> Result<(), Fault> {
        if self.heard_bye || !self.peer.is_empty() {
            return Err(Fault::Unexpected);
        }
        self.heard_bye = true;
        self.events.push_back((Event::Closing, None));
        if self.said_bye {
            self.finish(End::Orderly);
        }
        Ok(())
    }

    /// So many bytes have come by a lane. More than there was credit for end the connection.
    pub fn landed(&mut self, lane: u16, bytes: u64) {
        let Some(incoming) = self.incoming.get_mut(usize::from(lane)) else {
            return;
        };
        match incoming.landed.checked_add(bytes) {
            Some(landed) if landed <= incoming.limit => incoming.landed = landed,
            _ => self.finish(End::Broken(Fault::Overrun)),
        }
    }

    /// How many bytes have come by a lane that were not assigned.
    pub fn held(&self, lane: u16) -> u64 {
        let incoming = self.incoming.get(usize::from(lane));
        incoming.map_or(0, |lane| lane.landed - lane.assigned)
    }

    /// Where the next bytes of a lane belong, no more than `most`: `None` if none have come of which that is known.
    ///
    /// Who takes a key back waits until the placements are given back that it was good for, or has the keys locked meanwhile:
    /// then nothing is written by a key that was taken back. The memory is cloned for each of them, and can keep count.
    pub fn assign<M: Clone>(
        &mut self,
        lane: u16,
        most: u64,
        keys: &Keys<M>,
    ) -> Option<Placement<M>> {
        let incoming = self.incoming.get_mut(usize::from(lane))?;
        let segment = incoming.segments.front_mut()?;
        let len = segment
            .len
            .min(most)
            .min(incoming.landed - incoming.assigned);
        if len == 0 {
            return None;
        }
        let (owner, at) = (segment.owner, segment.at);
        incoming.assigned += len;
        segment.at += len;
        segment.len -= len;
        if segment.len == 0 {
            incoming.segments.pop_front();
        }
        let target = match owner {
            Owner::Own(id) => match self.own.get(&id) {
                Some(Own::Get(Get { failed: None, .. })) => Target::Own { id, at },
                _ => Target::Nowhere,
            },
            Owner::Peer(id) => self.target_of_put(id, at, len, keys),
            Owner::Nobody => Target::Nowhere,
        };
        Some(Placement { len, target, owner })
    }

    fn target_of_put<M: Clone>(&mut self, id: u64, at: u64, len: u64, keys: &Keys<M>) -> Target<M> {
        let Some(Peer::Put(put)) = self.peer.get_mut(&id) else {
            return Target::Nowhere;
        };
        if put.failed.is_some() {
            return Target::Nowhere;
        }
        // It was good when the request came. That `offset` and `at` add up was seen then, too.
        match keys.resolve(put.key, Rights::Write, put.offset + at, len) {
            Ok((memory, offset)) => {
                put.placing += len;
                Target::Memory {
                    memory: memory.clone(),
                    offset,
                }
            }
            Err(status) => {
                put.failed = Some(status);
                self.settle_put(id);
                Target::Nowhere
            }
        }
    }

    /// What was [assigned](Self::assign) is where it belongs, or could not be put there.
    pub fn placed<M>(&mut self, placement: Placement<M>, well: bool) {
        let Placement { len, target, owner } = placement;
        match owner {
            Owner::Own(id) => {
                if let Some(Own::Get(get)) = self.own.get_mut(&id) {
                    get.settled += len;
                    let tell = !well && {
                        get.failed.get_or_insert(Status::Memory);
                        get.give_up()
                    };
                    if tell {
                        self.say(&Frame::Cancel { id });
                    }
                    self.settle_get(id);
                }
            }
            Owner::Peer(id) => {
                if let (Some(Peer::Put(put)), Target::Memory { .. }) =
                    (self.peer.get_mut(&id), target)
                {
                    put.placing -= len;
                    match well {
                        true => put.placed += len,
                        false => {
                            put.failed.get_or_insert(Status::Memory);
                        }
                    }
                    self.settle_put(id);
                }
            }
            Owner::Nobody => (),
        }
    }

    /// What so many assigned bytes of a lane had landed in is free for others.
    pub fn released(&mut self, lane: u16, bytes: u64) {
        let window = self.limits.window;
        let Some(incoming) = self.incoming.get_mut(usize::from(lane)) else {
            return;
        };
        let released = incoming.released.saturating_add(bytes);
        incoming.released = released.min(incoming.assigned);
        let limit = incoming.released.saturating_add(window);
        // A frame for each half of it.
        let open = self.peer_takes.is_some() && self.over.is_none();
        if open && limit - incoming.limit >= window / 2 {
            incoming.limit = limit;
            self.say(&Frame::Credit { lane, limit });
        }
    }

    /// What to send next, on one of the lanes that are `ready`.
    ///
    /// Nobody counts on it before that is [announced](Self::announce). Who is asked again without that says the same.
    pub fn next_segment<M: Clone>(
        &mut self,
        ready: impl Fn(u16) -> bool,
        keys: &Keys<M>,
    ) -> Option<Outgoing<M>> {
        while self.output.len() < FULL {
            let turn = *self.turns.front()?;
            // Whoever is first waits for credit, else the small ones kept it from a large one for ever.
            match self.left_of(turn, keys) {
                None => {
                    self.turns.pop_front();
                }
                Some((left, source)) => return self.segment(turn, left, source, ready),
            }
        }
        None
    }

    /// How many bytes there are left to be announced, and where: `None` if there is nothing.
    fn left_of<M: Clone>(&mut self, turn: Turn, keys: &Keys<M>) -> Option<(u64, Source<M>)> {
        match turn {
            Turn::Own(id) => match self.own.get(&id) {
                Some(&Own::Put {
                    len,
                    announced: at,
                    failed: None,
                }) if at < len => Some((len - at, Source::Own { id, at })),
                _ => None,
            },
            Turn::Peer(id) => {
                let Some(&Peer::Get {
                    key,
                    offset,
                    len,
                    announced,
                }) = self.peer.get(&id)
                else {
                    return None;
                };
                let left = len - announced;
                match keys.resolve(key, Rights::Read, offset + announced, left) {
                    Ok((memory, offset)) => {
                        let memory = memory.clone();
                        Some((left, Source::Memory { memory, offset }))
                    }
                    Err(status) => {
                        self.end_peer(id, status);
                        None
                    }
                }
            }
        }
    }

    fn segment<M>(
        &self,
        turn: Turn,
        left: u64,
        source: Source<M>,
        ready: impl Fn(u16) -> bool,
    ) -> Option<Outgoing<M>> {
        let (lane, credit) = (0..self.limits.lanes)
            .zip(&self.outgoing)
            .filter(|(lane, _)| ready(*lane))
            .map(|(lane, sent)| (lane, sent.limit - sent.announced))
            .max_by_key(|(lane, credit)| (*credit, u16::MAX - lane))?;
        let bytes = left.min(credit).min(self.limits.segment.into());
        if bytes == 0 || (bytes < left && bytes < self.least.into()) {
            return None;
        }
        Some(Outgoing {
            lane,
            len: u32::try_from(bytes).ok()?,
            source,
            // By another lane these would wait for nothing.
            more: self.limits.lanes == 1 && bytes < left && credit - bytes >= u64::from(self.least),
            turn,
            least: self.least,
        })
    }

    /// This has been sent, or certainly will be: the peer is told. Nothing else may have been asked of the machine since it
    /// said that this is [next](Self::next_segment).
    pub fn announce<M>(&mut self, segment: Outgoing<M>) {
        let Outgoing {
            lane, len, turn, ..
        } = segment;
        let bytes = u64::from(len);
        let left = match turn {
            Turn::Own(id) => match self.own.get_mut(&id) {
                Some(Own::Put {
                    len: all,
                    announced,
                    ..
                }) => {
                    *announced += bytes;
                    let left = *all - *announced;
                    self.say(&Frame::PutData { id, lane, len });
                    left
                }
                _ => return,
            },
            Turn::Peer(id) => match self.peer.get_mut(&id) {
                Some(Peer::Get {
                    len: all,
                    announced,
                    ..
                }) => {
                    *announced += bytes;
                    let left = *all - *announced;
                    self.say(&Frame::GetData { id, lane, len });
                    if left == 0 {
                        self.peer.remove(&id);
                    }
                    left
                }
                _ => return,
            },
        };
        if let Some(sent) = self.outgoing.get_mut(usize::from(lane)) {
            sent.announced += bytes;
        }
        self.turns.retain(|&other| other != turn);
        if left > 0 {
            self.turns.push_back(turn);
        }
    }

    /// This cannot be sent, as its memory cannot be read: the request that it is of ends, and nothing else does.
    pub fn unreadable<M>(&mut self, segment: Outgoing<M>) {
        match segment.turn {
            Turn::Own(id) => self.give_up(id, Status::Memory),
            Turn::Peer(id) => self.end_peer(id, Status::Memory),
        }
    }

    /// Tells the peer how a request of its ended.
    fn end_peer(&mut self, id: u64, status: Status) {
        self.peer.remove(&id);
        self.turns.retain(|&turn| turn != Turn::Peer(id));
        self.say(&Frame::Done { id, status });
    }

    /// Has a put of the peer end, if nothing is missing for that.
    fn settle_put(&mut self, id: u64) {
        let Some(Peer::Put(put)) = self.peer.get_mut(&id) else {
            return;
        };
        match put.failed {
            None if put.placed == put.len => {
                self.end_peer(id, Status::Placed);
                self.tell_notes();
            }
            None => (),
            Some(status) => {
                // What is being written is, before the peer hears that nothing is any more.
                let tell = put.placing == 0 && !std::mem::replace(&mut put.told, put.placing == 0);
                let all = put.announced == put.len || put.cancelled;
                if put.told && all {
                    self.peer.remove(&id);
                }
                if tell {
                    self.say(&Frame::Done { id, status });
                    self.fence(id);
                }
            }
        }
    }

    /// The note after a put that failed is not told.
    fn fence(&mut self, put: u64) {
        if self.last_note.is_none_or(|last| last < put) {
            self.failed_since = true;
            return;
        }
        let next = self.peer.range(put..).find_map(|(&id, peer)| match peer {
            Peer::Note { after, .. } => Some((id, *after)),
            _ => None,
        });
        // If that is gone already, the next one is about other puts.
        if let Some((id, after)) = next {
            if after.is_none_or(|after| after < put) {
                self.end_peer(id, Status::Fenced);
            }
        }
        self.tell_notes();
    }

    /// Tells the program the notes that wait for no put any more.
    fn tell_notes(&mut self) {
        for (&id, peer) in &mut self.peer {
            match peer {
                // A failed one keeps back its own note only, which is gone.
                Peer::Put(Put { told: false, .. }) => return,
                Peer::Note { note, told, .. } if !*told => {
                    *told = true;
                    self.events.push_back((Event::Note(*note), Some(id)));
                }
                _ => (),
            }
        }
    }

    /// Has a get of this end end, if nothing is missing for that.
    fn settle_get(&mut self, id: u64) {
        let Some(Own::Get(get)) = self.own.get(&id) else {
            return;
        };
        let all = get.announced == get.len || get.over;
        if all && get.settled == get.announced {
            let result = get.failed.map_or(Ok(()), |s| Err(Failure::Status(s)));
            self.complete(id, result);
        }
    }

    fn complete(&mut self, id: u64, result: Result<(), Failure>) {
        self.own.remove(&id);
        self.turns.retain(|&turn| turn != Turn::Own(id));
        self.events.push_back((Event::Done { id, result }, None));
        self.say_bye();
    }

    fn say_bye(&mut self) {
        if !self.closing || self.said_bye || !self.own.is_empty() || self.over.is_some() {
            return;
        }
        self.said_bye = true;
        self.say(&Frame::Bye);
        if self.heard_bye {
            self.finish(End::Orderly);
        }
    }

    /// The connection is over, and so are all requests.
    fn finish(&mut self, end: End) {
        if self.over.is_some() {
            return;
        }
        match end {
            End::Broken(fault) => self.say(&Frame::Error(fault)),
            End::Local => self.say(&Frame::Error(Fault::Local)),
            End::Orderly | End::Gone | End::Told(_) => (),
        }
        self.over = Some(end);
        for id in std::mem::take(&mut self.own).into_keys() {
            let result = Err(Failure::Over(end));
            self.events.push_back((Event::Done { id, result }, None));
        }
        self.events.push_back((Event::Over(end), None));
        self.peer.clear();
        self.turns.clear();
        for incoming in &mut self.incoming {
            incoming.segments.clear();
        }
    }

    fn say(&mut self, frame: &Frame) {
        // Nobody listens any more.
        if self.over.is_none() {
            frame.encode(&mut self.output);
        }
    }
}

#[cfg(test)]
impl Machine {
    /// Whether there is a request of which something may have to be sent.
    pub(super) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }
}

#[cfg(test)]
impl<M: Clone> Placement<M> {
    /// The same, in another world.
    pub(super) fn copied(&self) -> Self {
        Self {
            len: self.len,
            target: self.target.clone(),
            owner: self.owner,
        }
    }
}

impl Get {
    /// Whether the peer has to be told that no more of it is wanted.
    fn give_up(&mut self) -> bool {
        let some_left = self.announced < self.len && !self.over;
        some_left && !std::mem::replace(&mut self.cancelled, true)
    }
}

impl Incoming {
    /// Makes neighbours one that nobody waits for.
    fn compact(&mut self, waits: impl Fn(Owner) -> bool) {
        let mut segments: VecDeque<Segment> = VecDeque::with_capacity(self.segments.len());
        for mut segment in self.segments.drain(..) {
            if !waits(segment.owner) {
                segment.owner = Owner::Nobody;
            }
            match segments.back_mut() {
                Some(last) if last.owner == Owner::Nobody && segment.owner == Owner::Nobody => {
                    last.len += segment.len;
                }
                _ => segments.push_back(segment),
            }
        }
        self.segments = segments;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that has heard a hello.
    fn open(limits: Limits) -> Machine {
        let mut machine = Machine::new(limits.clone());
        let hello = Machine::new(limits).output().to_vec();
        machine.input::<()>(&hello, &Keys::new());
        machine
    }

    fn hear(machine: &mut Machine, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        machine.input::<()>(&bytes, &Keys::new());
    }

    /// Who waits until there is none any more has heard of all.
    #[test]
    fn a_request_is_there_until_the_program_knows_how_it_ended() {
        let mut machine = open(Limits::default());
        for _ in 0..2 {
            machine.get(Key([0; 16]), 0, 1).unwrap();
        }
        for id in 0..2 {
            let status = Status::Key;
            hear(&mut machine, &Frame::Done { id, status });
        }
        for id in 0..2 {
            assert_eq!(machine.oldest(), Some(id));
            let result = Err(Failure::Status(Status::Key));
            assert_eq!(machine.event(), Some(Event::Done { id, result }));
        }
        assert_eq!(machine.oldest(), None);
    }

    #[test]
    fn limits_that_are_as_large_as_can_be_are_some() {
        let mut machine = open(Limits {
            lanes: u16::MAX,
            window: u64::MAX,
            requests: u32::MAX,
            segment: u32::MAX,
            ..Limits::default()
        });
        let id = machine.get(Key([0; 16]), 0, u64::MAX).unwrap();
        let len = u32::MAX;
        hear(&mut machine, &Frame::GetData { id, lane: 63, len });
        machine.landed(63, len.into());
        let placement = machine.assign::<()>(63, u64::MAX, &Keys::new()).unwrap();
        assert_eq!(placement.len, len.into());
        machine.placed(placement, true);
        machine.released(63, len.into());
        assert!(machine.is_open());
    }
}
