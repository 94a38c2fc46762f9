// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a program asks the ends of a group for.

use std::sync::Arc;

use super::Done;
use super::EndId;
use super::Group;
use super::Happened;
use super::Place;
use super::What;
use super::member::Member;
use crate::memory::Memory;
use crate::protocol::End;
use crate::protocol::Failure;
use crate::protocol::Key;
use crate::protocol::Refused;

impl<T> Group<T> {
    /// Puts `len` bytes from `from` of a memory on to `to` of what `key` names. [`What::Done`] has the token when that is
    /// over.
    ///
    /// # Errors
    ///
    /// Why it cannot be tried: [`Refused::Busy`] if it can be later.
    pub fn put(
        &mut self,
        end: EndId,
        (memory, from): (&Arc<Memory>, u64),
        len: u64,
        (key, to): (Key, u64),
        token: T,
    ) -> Result<(), Refused> {
        self.request(end, |member| {
            member.put((memory, from), len, (key, to), token)
        })
    }

    /// Gets `len` bytes from `from` on of what `key` names to `to` of a memory. [`What::Done`] has the token when that is
    /// over.
    ///
    /// # Errors
    ///
    /// As of [`put`](Self::put).
    pub fn get(
        &mut self,
        end: EndId,
        (memory, to): (&Arc<Memory>, u64),
        len: u64,
        (key, from): (Key, u64),
        token: T,
    ) -> Result<(), Refused> {
        self.request(end, |member| {
            member.get((memory, to), len, (key, from), token)
        })
    }

    /// Puts bytes that are copied at once.
    ///
    /// # Errors
    ///
    /// As of [`put`](Self::put).
    pub fn put_bytes(
        &mut self,
        end: EndId,
        bytes: &[u8],
        (key, to): (Key, u64),
        token: T,
    ) -> Result<(), Refused> {
        self.request(end, |member| member.put_bytes(bytes, (key, to), token))
    }

    /// Gets `len` bytes, which [`Done::bytes`](super::Done::bytes) has then.
    ///
    /// # Errors
    ///
    /// As of [`put`](Self::put).
    pub fn get_bytes(
        &mut self,
        end: EndId,
        len: usize,
        (key, from): (Key, u64),
        token: T,
    ) -> Result<(), Refused> {
        self.request(end, |member| member.get_bytes(len, (key, from), token))
    }

    /// Whether one request more could be made now.
    pub fn has_room(&self, end: EndId) -> bool {
        self.member(end).is_some_and(Member::has_room)
    }

    /// Has [`What::Done`] tell when all that was asked for before is over, and was told. Gives the token back if it is.
    ///
    /// # Errors
    ///
    /// That token.
    pub fn flush(&mut self, end: EndId, token: T) -> Result<(), T> {
        let untold = self.untold(end);
        let left = match self.members.get_mut(&end.0) {
            Some(Place::Made(member)) => member.flush(untold.unwrap_or(Ok(())), token),
            _ => Err(token),
        };
        match (left, untold) {
            (Err(token), Some(result)) => {
                let what = What::Done(Done {
                    token,
                    result,
                    bytes: None,
                });
                self.events.push_back(Happened { end, what });
                Ok(())
            }
            (left, _) => left,
        }
    }

    /// What came of requests of which it was not told yet: the first failure, if there is one. `None` if there are none.
    fn untold(&self, end: EndId) -> Option<Result<(), Failure>> {
        let of_end = self.events.iter().filter(|event| event.end == end);
        let results = of_end.filter_map(|event| match &event.what {
            What::Done(done) => Some(done.result),
            _ => None,
        });
        results.reduce(Result::and)
    }

    /// Has requests wait, for [room](Self::has_room), until all that was asked for before is over.
    pub fn fence(&mut self, end: EndId) {
        if let Some(Place::Made(member)) = self.members.get_mut(&end.0) {
            member.fence();
        }
    }

    /// Whether requests of this end are under way, or not all was told of them.
    pub fn is_asking(&self, end: EndId) -> bool {
        self.member(end).is_some_and(Member::has_requests) || self.untold(end).is_some()
    }

    /// Whether any request of this side is under way, or not all was told of it.
    pub fn has_requests(&self) -> bool {
        let of_ends = self.members.values().any(|place| match place {
            Place::Made(member) => member.has_requests(),
            Place::Connecting(_) => false,
        });
        let is_done = |event: &Happened<T>| matches!(event.what, What::Done(_));
        of_ends || self.events.iter().any(is_done)
    }

    fn member(&self, end: EndId) -> Option<&Member<T>> {
        match self.members.get(&end.0) {
            Some(Place::Made(member)) => Some(member),
            _ => None,
        }
    }

    /// Makes a request of an end, and has it looked at.
    fn request(
        &mut self,
        end: EndId,
        ask: impl FnOnce(&mut Member<T>) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        match self.members.get_mut(&end.0) {
            Some(Place::Made(member)) => {
                ask(member)?;
                if member.is_to_be_looked_at() {
                    self.ready.push_back(end.0);
                }
                Ok(())
            }
            Some(Place::Connecting(_)) => Err(Refused::Busy),
            None => Err(Refused::Over(End::Gone)),
        }
    }
}
