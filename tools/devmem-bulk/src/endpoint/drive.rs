// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What an endpoint does by itself, without waiting.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use devmem::Piece;
use devmem::uring::Receiver;

use super::Endpoint;
use super::lane::Begun;
use super::lane::Wire;
use super::socket::is_gone;
use crate::memory::Reading;
use crate::place::Job;
use crate::protocol;
use crate::protocol::End;
use crate::protocol::Target;

/// Pieces that are placed at once, before anything else is looked at.
const BATCH: usize = 256;
/// How often a socket is read before others have their turn.
const TURN: usize = 16;

impl Endpoint {
    /// Does whatever can be done without waiting.
    pub(super) fn go_on(&mut self) -> io::Result<()> {
        #[cfg(test)]
        {
            self.turns += 1;
        }
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
                    true => self.machine.hung_up(),
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
    pub(super) fn say_farewell(&mut self, end: End) {
        // A lane stays until nobody reads any more what it sent: memory that the NIC reads never comes back else.
        for wire in &mut self.lanes {
            wire.leave(end);
        }
        self.lanes.retain(|wire| wire.tx.in_flight() > 0);
        // What the peer still says about requests that are over is read: else it may not get to read what it was told.
        self.more = true;
        for _ in 0..TURN {
            let closed = match self.control_rx.as_mut().map(Receiver::try_recv) {
                Some(Ok(Some(received))) if !received.is_eof() => continue,
                None | Some(Ok(None)) => false,
                Some(Ok(Some(_)) | Err(_)) => true,
            };
            if closed {
                self.hung_up = true;
                // It would say so again at once, and nobody would wait.
                self.control_rx = None;
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
            let Some(control) = &mut self.control_rx else {
                return Ok(());
            };
            let Some(received) = control.try_recv()? else {
                return Ok(());
            };
            if received.is_eof() {
                self.machine.hung_up();
                return Ok(());
            }
            for piece in received {
                match piece {
                    Piece::Plain(bytes) | Piece::Linear(bytes) => {
                        self.machine.input(bytes, &self.registry.lock().keys);
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
                self.machine.hung_up();
            }
        }
        Ok(())
    }

    /// Puts some pieces of a lane in place; says whether there may be more.
    fn place(&mut self, lane: u16) -> bool {
        let wire = &mut self.lanes[usize::from(lane)];
        // Who takes one back waits for those by which something was assigned. Nobody waits for what is written meanwhile.
        let state = self.registry.lock();
        let mut jobs = Vec::new();
        let mut placements = Vec::new();
        while let Some(piece) = wire.held.front_mut() {
            if jobs.len() == BATCH {
                break;
            }
            let Some(placement) = self.machine.assign(lane, piece.len(), &state.keys) else {
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
        drop(state);
        let more = jobs.len() == BATCH;
        if !jobs.is_empty() {
            self.place.place(&mut jobs);
        }
        for (job, placement) in jobs.into_iter().zip(placements) {
            self.moved += if job.placed { placement.len } else { 0 };
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
            let state = self.registry.lock();
            let Some(mut segment) = self.machine.next_segment(ready, &state.keys) else {
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
            let lane = usize::from(segment.lane);
            let len = u64::from(segment.len);
            let memory = Reading::new(memory, offset, len, self.lanes[lane].socket());
            drop(state);
            match self.lanes[lane].begin(memory, offset, &mut segment) {
                Ok(Begun::Goes) => {
                    self.moved += u64::from(segment.len);
                    self.machine.announce(segment);
                }
                Ok(Begun::Waits) => (),
                Ok(Begun::Unreadable) => self.machine.unreadable(segment),
                Err(err) => self.unless_bye(lane, Err(err))?,
            }
        }
    }
}
