// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The requests of the peer.

use super::Event;
use super::Machine;
use super::incoming::Owner;
use super::incoming::Segment;
use super::outgoing::Turn;
use crate::protocol::keys::Key;
use crate::protocol::keys::Keys;
use crate::protocol::keys::Rights;
use crate::protocol::wire::Fault;
use crate::protocol::wire::Frame;
use crate::protocol::wire::NOTE;
use crate::protocol::wire::Status;

/// A request of the peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
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
pub(super) struct Put {
    pub(super) key: Key,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) announced: u64,
    /// Bytes that are being put in place.
    pub(super) placing: u64,
    /// Bytes that are.
    pub(super) placed: u64,
    pub(super) failed: Option<Status>,
    /// Whether the peer was told how it ended.
    pub(super) told: bool,
    pub(super) cancelled: bool,
}

impl Machine {
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

    pub(super) fn peer_puts<M>(
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

    pub(super) fn peer_gets<M>(
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

    pub(super) fn peer_notes(&mut self, id: u64, note: [u8; NOTE]) -> Result<(), Fault> {
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

    pub(super) fn peer_announces(&mut self, id: u64, lane: u16, len: u32) -> Result<(), Fault> {
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

    pub(super) fn peer_cancels(&mut self, id: u64) -> Result<(), Fault> {
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

    /// Tells the peer how a request of its ended.
    pub(super) fn end_peer(&mut self, id: u64, status: Status) {
        self.peer.remove(&id);
        self.turns.retain(|&turn| turn != Turn::Peer(id));
        self.say(&Frame::Done { id, status });
    }

    /// Has a put of the peer end, if nothing is missing for that.
    pub(super) fn settle_put(&mut self, id: u64) {
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
}
