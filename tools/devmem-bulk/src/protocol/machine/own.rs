// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The requests of this end.

use super::Event;
use super::Failure;
use super::Machine;
use super::Refused;
use super::incoming::Owner;
use super::incoming::Segment;
use super::outgoing::Turn;
use crate::protocol::keys::Key;
use crate::protocol::wire::Fault;
use crate::protocol::wire::Frame;
use crate::protocol::wire::NOTE;
use crate::protocol::wire::Status;

/// A request of this end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Own {
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
pub(super) struct Get {
    pub(super) len: u64,
    /// Bytes that the peer has said are coming.
    pub(super) announced: u64,
    /// Bytes of these that are in place, or nowhere.
    pub(super) settled: u64,
    /// Why it will not be whole.
    pub(super) failed: Option<Status>,
    pub(super) cancelled: bool,
    /// Whether the peer has said that no more are coming.
    pub(super) over: bool,
}

impl Get {
    /// Whether the peer has to be told that no more of it is wanted.
    pub(super) fn give_up(&mut self) -> bool {
        let some_left = self.announced < self.len && !self.over;
        some_left && !std::mem::replace(&mut self.cancelled, true)
    }
}

impl Machine {
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

    /// Whether one more request may be made, as many as are under way.
    pub fn has_room(&self) -> bool {
        let most = self.peer_takes.unwrap_or(0).min(self.limits.requests);
        u32::try_from(self.own.len()).is_ok_and(|now| now < most)
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
        if !self.has_room() {
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

    pub(super) fn give_up(&mut self, id: u64, status: Status) {
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

    pub(super) fn own_announced(&mut self, id: u64, lane: u16, len: u32) -> Result<(), Fault> {
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

    pub(super) fn own_done(&mut self, id: u64, status: Status) -> Result<(), Fault> {
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

    /// Has a get of this end end, if nothing is missing for that.
    pub(super) fn settle_get(&mut self, id: u64) {
        let Some(Own::Get(get)) = self.own.get(&id) else {
            return;
        };
        let all = get.announced == get.len || get.over;
        if all && get.settled == get.announced {
            let result = get.failed.map_or(Ok(()), |s| Err(Failure::Status(s)));
            self.complete(id, result);
        }
    }

    pub(super) fn complete(&mut self, id: u64, result: Result<(), Failure>) {
        self.own.remove(&id);
        self.turns.retain(|&turn| turn != Turn::Own(id));
        self.events.push_back((Event::Done { id, result }, None));
        self.say_bye();
    }
}
