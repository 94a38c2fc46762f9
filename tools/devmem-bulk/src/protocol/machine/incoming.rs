// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What comes by the lanes, and where it belongs.

use std::collections::VecDeque;

use super::End;
use super::Limits;
use super::Machine;
use super::own::Get;
use super::own::Own;
use super::peer::Peer;
use crate::protocol::keys::Keys;
use crate::protocol::keys::Rights;
use crate::protocol::wire::Fault;
use crate::protocol::wire::Frame;
use crate::protocol::wire::Status;

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
pub(super) enum Owner {
    /// A get of this end.
    Own(u64),
    /// A put of the peer.
    Peer(u64),
    /// One that is over.
    Nobody,
}

/// Bytes of a lane, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Segment {
    pub(super) owner: Owner,
    /// Which byte of the request is the first.
    pub(super) at: u64,
    pub(super) len: u64,
}

/// What comes by a lane, in bytes since the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Incoming {
    /// Up to which the peer may send.
    pub(super) limit: u64,
    pub(super) announced: u64,
    pub(super) landed: u64,
    pub(super) assigned: u64,
    pub(super) released: u64,
    pub(super) segments: VecDeque<Segment>,
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

impl Machine {
    /// Checks what a data frame says of a lane and a request, of which `left` bytes were not announced.
    pub(super) fn expect(
        &mut self,
        lane: u16,
        len: u32,
        left: u64,
        segment: Segment,
    ) -> Result<(), Fault> {
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
}

#[cfg(test)]
impl<M: Clone> Placement<M> {
    /// The same, in another world.
    pub(in crate::protocol) fn copied(&self) -> Self {
        Self {
            len: self.len,
            target: self.target.clone(),
            owner: self.owner,
        }
    }
}
