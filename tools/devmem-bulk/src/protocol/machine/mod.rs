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

mod incoming;
mod outgoing;
mod own;
mod peer;
mod terms;

pub use incoming::Placement;
pub use incoming::Target;
pub use outgoing::Outgoing;
pub use outgoing::Source;
pub use terms::End;
pub use terms::Event;
pub use terms::Failure;
pub use terms::Limits;
pub use terms::Refused;

use std::collections::BTreeMap;
use std::collections::VecDeque;

use self::incoming::Incoming;
use self::outgoing::Sent;
use self::outgoing::Turn;
use self::own::Own;
use self::peer::Peer;
use super::keys::Keys;
use super::wire::Fault;
use super::wire::Frame;
use super::wire::Hello;
use super::wire::MAX_LANES;
use super::wire::Status;
use super::wire::VERSION;

/// The least bytes of a segment that is not the last one of its request. It bounds how many there can be.
pub const LEAST: u32 = 4096;

/// While there is more to say than this, no segments are added.
const FULL: usize = 16 << 10;

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

    /// There will be no more requests of this end. The connection ends when all are done, and the peer has said the same.
    pub fn close(&mut self) {
        self.closing = true;
        self.say_bye();
    }

    /// A socket says that the peer is gone.
    pub fn gone(&mut self) {
        self.finish(End::Gone);
    }

    /// The peer has closed a socket. That is what it does once it has said that it is done, if nothing is left to be done
    /// for this end.
    pub fn hung_up(&mut self) {
        match self.heard_bye && self.own.is_empty() {
            true => self.finish(End::Orderly),
            false => self.gone(),
        }
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

    /// Whether there are events that were not told.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
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
mod tests {
    use super::*;
    use crate::protocol::keys::Key;

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
