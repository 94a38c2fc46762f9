// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An end of a group, and its requests.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use devmem::HostMemory;
use log::warn;
use nix::sys::epoll::Epoll;

use super::Done;
use super::What;
use super::Why;
use crate::endpoint::Endpoint;
use crate::memory::Memory;
use crate::protocol::End;
use crate::protocol::Event;
use crate::protocol::Failure;
use crate::protocol::Key;
use crate::protocol::Refused;

/// Events that are taken before it is another's turn.
const TURN: usize = 64;

/// Whose an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The program's, which has connected it.
    Program,
    /// The peer's, which has, and is served.
    Peer,
    /// Nobody's any more.
    Nobody,
}

/// An end whose connections are made.
#[derive(Debug)]
pub(super) struct Member<T> {
    endpoint: Endpoint,
    owner: Owner,
    is_open: bool,
    is_over: bool,
    is_fenced: bool,
    /// Whether it is among those that are looked at next.
    is_ready: bool,
    /// By their numbers.
    requests: BTreeMap<u64, Request<T>>,
    flushes: VecDeque<Flush<T>>,
}

#[derive(Debug)]
struct Request<T> {
    token: T,
    /// What bytes are got to.
    bytes: Option<Arc<Memory>>,
}

/// Somebody who waits for all requests with smaller numbers.
#[derive(Debug)]
struct Flush<T> {
    before: u64,
    result: Result<(), Failure>,
    token: T,
}

impl<T> Member<T> {
    pub(super) fn new(endpoint: Endpoint, owner: Owner) -> Self {
        Self {
            endpoint,
            owner,
            is_open: false,
            is_over: false,
            is_fenced: false,
            is_ready: true,
            requests: BTreeMap::new(),
            flushes: VecDeque::new(),
        }
    }

    pub(super) fn put(
        &mut self,
        (memory, from): (&Arc<Memory>, u64),
        len: u64,
        (key, to): (Key, u64),
        token: T,
    ) -> Result<(), Refused> {
        self.may_ask()?;
        let id = self.endpoint.put(memory, from, len, key, to)?;
        self.requests.insert(id, Request { token, bytes: None });
        Ok(())
    }

    pub(super) fn get(
        &mut self,
        (memory, to): (&Arc<Memory>, u64),
        len: u64,
        (key, from): (Key, u64),
        token: T,
    ) -> Result<(), Refused> {
        self.may_ask()?;
        let id = self.endpoint.get(memory, to, len, key, from)?;
        self.requests.insert(id, Request { token, bytes: None });
        Ok(())
    }

    pub(super) fn put_bytes(
        &mut self,
        bytes: &[u8],
        to: (Key, u64),
        token: T,
    ) -> Result<(), Refused> {
        self.may_ask()?;
        let memory = Memory::host(HostMemory::owned(bytes.into()));
        self.put((&memory, 0), bytes.len() as u64, to, token)
    }

    pub(super) fn get_bytes(
        &mut self,
        len: usize,
        (key, from): (Key, u64),
        token: T,
    ) -> Result<(), Refused> {
        self.may_ask()?;
        let memory = Memory::host(HostMemory::owned(vec![0; len].into()));
        let id = self.endpoint.get(&memory, 0, len as u64, key, from)?;
        let bytes = Some(memory);
        self.requests.insert(id, Request { token, bytes });
        Ok(())
    }

    fn may_ask(&self) -> Result<(), Refused> {
        match (self.endpoint.end(), self.has_room()) {
            (Some(end), _) => Err(Refused::Over(end)),
            (None, _) if self.is_over => Err(Refused::Over(End::Local)),
            (None, true) => Ok(()),
            (None, false) => Err(Refused::Busy),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.is_fenced && self.endpoint.has_room()
    }

    pub(super) fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Has somebody wait for what is under way. `result` is that of what is over already.
    pub(super) fn flush(&mut self, result: Result<(), Failure>, token: T) -> Result<(), T> {
        let Some((last, _)) = self.requests.last_key_value() else {
            return Err(token);
        };
        self.flushes.push_back(Flush {
            before: last + 1,
            result,
            token,
        });
        Ok(())
    }

    pub(super) fn fence(&mut self) {
        self.is_fenced = self.has_requests();
    }

    /// Gives something that is under way, which it ends with the connection.
    pub(super) fn cancel(&mut self) -> Option<Done<T>> {
        let request = self.requests.pop_first().map(|(_, request)| request.token);
        let token = request.or_else(|| self.flushes.pop_front().map(|flush| flush.token))?;
        if self.endpoint.end().is_none() {
            self.endpoint.abort();
        }
        let end = self.endpoint.end().unwrap_or(End::Gone);
        Some(Done {
            token,
            result: Err(Failure::Over(end)),
            bytes: None,
        })
    }

    /// Nobody wants anything of it any more; says whether somebody did.
    pub(super) fn leave(&mut self) -> bool {
        self.endpoint.close();
        self.requests.clear();
        self.flushes.clear();
        std::mem::replace(&mut self.owner, Owner::Nobody) != Owner::Nobody
    }

    #[cfg(test)]
    pub(super) fn ring(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.endpoint)
    }

    pub(super) fn is_served(&self) -> bool {
        self.owner == Owner::Peer
    }

    /// Whether it was not among those that are looked at next, where it belongs now.
    pub(super) fn is_to_be_looked_at(&mut self) -> bool {
        !std::mem::replace(&mut self.is_ready, true)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.endpoint.is_busy()
    }

    /// Lets go of it, without waiting for anything that its peer does. A child of this process may have its ring, too,
    /// and it is not to tell of it.
    pub(super) fn drop_from(mut self, epoll: &Epoll) {
        if let Err(err) = epoll.delete(&self.endpoint) {
            warn!("an end stays in a group: {err}");
        }
        if !self.is_gone() {
            self.endpoint.abort();
        }
    }

    /// Whether nothing is left to be done for it.
    pub(super) fn is_gone(&mut self) -> bool {
        self.is_over && self.endpoint.is_finished()
    }

    /// Looks at what has happened, and tells the program what it is to know. Says whether the connection has ended now.
    pub(super) fn look(&mut self, mut tell: impl FnMut(What<T>)) -> bool {
        let was_over = self.is_over;
        self.is_ready = false;
        for _ in 0..TURN {
            let event = match self.endpoint.try_event() {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(err) => {
                    warn!("an end cannot go on: {err}");
                    self.end(End::Local, &mut tell);
                    self.endpoint.abort();
                    break;
                }
            };
            match event {
                Event::Done { id, result } => self.done(id, result, &mut tell),
                Event::Note(_) => (),
                Event::Closing => self.endpoint.close(),
                Event::Over(end) => self.end(end, &mut tell),
            }
        }
        if self.owner == Owner::Program && !self.is_open && self.endpoint.is_open() {
            self.is_open = true;
            tell(What::Open);
        }
        self.is_over && !was_over
    }

    /// A request is over, and so may be what others wait for.
    fn done(&mut self, id: u64, result: Result<(), Failure>, tell: &mut impl FnMut(What<T>)) {
        let Some(request) = self.requests.remove(&id) else {
            return;
        };
        let bytes = request.bytes.filter(|_| result.is_ok()).and_then(|memory| {
            let mut bytes = vec![0; usize::try_from(memory.size()).ok()?];
            memory.read(0, &mut bytes).ok()?;
            Some(bytes)
        });
        tell(What::Done(Done {
            token: request.token,
            result,
            bytes,
        }));
        for flush in self.flushes.iter_mut().filter(|flush| id < flush.before) {
            flush.result = flush.result.and(result);
        }
        let oldest = self.requests.first_key_value().map(|(id, _)| *id);
        self.is_fenced &= oldest.is_some();
        let waits = |flush: &Flush<T>| oldest.is_some_and(|oldest| oldest < flush.before);
        while let Some(flush) = self.flushes.pop_front() {
            if waits(&flush) {
                self.flushes.push_front(flush);
                break;
            }
            tell(What::Done(Done {
                token: flush.token,
                result: flush.result,
                bytes: None,
            }));
        }
    }

    /// The connection is over, and so is whatever is under way.
    fn end(&mut self, end: End, tell: &mut impl FnMut(What<T>)) {
        while let Some((&id, _)) = self.requests.first_key_value() {
            self.done(id, Err(Failure::Over(end)), tell);
        }
        if self.owner == Owner::Program && !self.is_over {
            tell(What::Over(Why::Ended(end)));
        }
        self.is_over = true;
    }
}
