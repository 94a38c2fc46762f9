// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What goes by the lanes, and whose turn it is.

use super::FULL;
use super::Machine;
use super::own::Own;
use super::peer::Peer;
use crate::protocol::keys::Keys;
use crate::protocol::keys::Rights;
use crate::protocol::wire::Fault;
use crate::protocol::wire::Frame;
use crate::protocol::wire::Status;

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

/// What goes by a lane, in bytes since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sent {
    pub(super) limit: u64,
    pub(super) announced: u64,
}

/// Who is to send something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Turn {
    Own(u64),
    Peer(u64),
}

impl Machine {
    pub(super) fn credited(&mut self, lane: u16, limit: u64) -> Result<(), Fault> {
        let sent = self.outgoing.get_mut(usize::from(lane));
        let sent = sent.ok_or(Fault::Lanes)?;
        if limit <= sent.limit {
            return Err(Fault::Unexpected);
        }
        sent.limit = limit;
        Ok(())
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
                // It may be gone already, with the request that it was of.
                None => self.turns.retain(|&other| other != turn),
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
}

#[cfg(test)]
impl Machine {
    /// Whether there is a request of which something may have to be sent.
    pub(in crate::protocol) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }
}
