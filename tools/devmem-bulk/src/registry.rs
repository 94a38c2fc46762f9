// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Which key names what, and who is writing by it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::io::Read;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use crate::memory::Memory;
use crate::protocol::Key;
use crate::protocol::Keys;
use crate::protocol::Rights;
use crate::protocol::keys::Grant;

/// What a key names. Who has a clone of it may be writing there.
#[derive(Clone, Debug)]
pub(crate) struct Named<M = Arc<Memory>> {
    pub(crate) memory: M,
    /// Nothing is sent: that the last one is gone is what is heard.
    _user: mpsc::Sender<()>,
}

/// Who waits for those who write by a key. Several may.
#[derive(Clone, Debug)]
struct Users(Arc<Mutex<mpsc::Receiver<()>>>);

impl Users {
    fn new() -> (mpsc::Sender<()>, Self) {
        let (user, users) = mpsc::channel();
        (user, Self(Arc::new(Mutex::new(users))))
    }

    fn wait(&self) {
        // It is an error that says that there are none any more.
        let users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = users.recv();
    }

    fn is_empty(&self) -> bool {
        // Who has it locked waits for some.
        self.0
            .try_lock()
            .is_ok_and(|users| users.try_recv() == Err(mpsc::TryRecvError::Disconnected))
    }
}

/// Keys, and who uses them, for memories `M`.
#[derive(Debug)]
struct Table<M> {
    state: Mutex<State<M>>,
    start: Instant,
}

#[derive(Debug)]
pub(crate) struct State<M = Arc<Memory>> {
    pub(crate) keys: Keys<Named<M>>,
    /// Of all keys, and of those that are gone, but may still be written by.
    users: BTreeMap<Key, Users>,
}

impl<M> Table<M> {
    fn new() -> Self {
        Self {
            state: Mutex::new(State {
                keys: Keys::new(),
                users: BTreeMap::new(),
            }),
            start: Instant::now(),
        }
    }

    fn add(
        &self,
        key: Key,
        memory: M,
        (offset, len): (u64, u64),
        rights: Rights,
        lifetime: Option<Duration>,
    ) -> io::Result<()> {
        let (_user, users) = Users::new();
        let grant = Grant {
            memory: Named { memory, _user },
            offset,
            len,
            rights,
            expiry: lifetime.map(|lifetime| self.start.elapsed().saturating_add(lifetime)),
        };
        let mut state = self.lock();
        state
            .keys
            .add(key, grant)
            .map_err(|_| io::Error::other("a key that there is already"))?;
        state.users.insert(key, users);
        Ok(())
    }

    fn revoke(&self, key: Key) -> bool {
        let mut state = self.lock();
        let revoked = state.keys.revoke(key);
        let users = state.users.get(&key).cloned();
        drop(state);
        let there = revoked.is_some();
        // It is one of the users.
        drop(revoked);
        if let Some(users) = users {
            users.wait();
            self.lock().users.remove(&key);
        }
        there
    }

    /// The keys, on which the time is now.
    fn lock(&self) -> MutexGuard<'_, State<M>> {
        loop {
            // Nothing here leaves things half done.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.keys.is_timed() {
                return state;
            }
            let expired = state.keys.set_now(self.start.elapsed());
            if expired.is_empty() {
                return state;
            }
            drop(state);
            // Nobody waits while memory is unmapped.
            drop(expired);
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let State { keys, users } = &mut *state;
            users.retain(|&key, users| keys.has(key) || !users.is_empty());
        }
    }
}

/// The keys of some endpoints, and what they name. Clones are the same one.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    table: Table<Arc<Memory>>,
    random: File,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// Without any keys.
    ///
    /// # Errors
    ///
    /// Those of `open()` of what makes keys, `/dev/urandom`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            table: Table::new(),
            random: File::open("/dev/urandom")?,
        })))
    }

    /// Lets whoever has the key that this returns do as `rights` say with a part of a memory, no longer than a while if
    /// that is said. What is being written when that is over is written still: [`revoke`](Self::revoke) waits for it.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the part is not all in the memory; those of `read()` of
    /// `/dev/urandom`.
    pub fn register(
        &self,
        memory: &Arc<Memory>,
        offset: u64,
        len: u64,
        rights: Rights,
        lifetime: Option<Duration>,
    ) -> io::Result<Key> {
        if offset
            .checked_add(len)
            .is_none_or(|end| end > memory.size())
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the part is not all in the memory",
            ));
        }
        let mut key = Key([0; 16]);
        (&self.0.random).read_exact(&mut key.0)?;
        let memory = Arc::clone(memory);
        self.0
            .table
            .add(key, memory, (offset, len), rights, lifetime)?;
        Ok(key)
    }

    /// Takes a key back; says whether there was such a key. Nothing is written by it any more once this returns, whatever
    /// it says: it waits until what is being written by it is, also if the key has expired, or if another thread has
    /// taken it back. What the peer was already told is coming to it is sent nevertheless: see
    /// [`Memory::is_being_read`]. And in a [target](crate::in_place::Target) bytes land until that is finished.
    pub fn revoke(&self, key: Key) -> bool {
        self.0.table.revoke(key)
    }

    /// The keys, on which the time is now.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.table.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const KEY: Key = Key([7; 16]);
    /// Who does not wait is done within that.
    const A_WHILE: Duration = Duration::from_millis(100);

    fn table(lifetime: Option<Duration>) -> Arc<Table<()>> {
        let table = Table::new();
        table.add(KEY, (), (0, 1), Rights::Write, lifetime).unwrap();
        Arc::new(table)
    }

    /// Somebody begins to write by the key.
    fn begin(table: &Table<()>) -> Named<()> {
        let state = table.lock();
        let (named, _) = state.keys.resolve(KEY, Rights::Write, 0, 1).unwrap();
        named.clone()
    }

    /// What a thread that takes the key back says, when it is done.
    fn revokes(table: &Arc<Table<()>>) -> mpsc::Receiver<bool> {
        let (to, said) = mpsc::channel();
        let table = Arc::clone(table);
        thread::spawn(move || to.send(table.revoke(KEY)));
        said
    }

    #[test]
    fn all_who_take_a_key_back_wait_for_what_is_being_written() {
        let table = table(None);
        let writes = begin(&table);
        let first = revokes(&table);
        while table.lock().keys.has(KEY) {
            thread::yield_now();
        }
        let second = revokes(&table);
        for said in [&first, &second] {
            let early = said.recv_timeout(A_WHILE);
            assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
        }
        drop(writes);
        assert_eq!((first.recv(), second.recv()), (Ok(true), Ok(false)));
        assert!(table.lock().users.is_empty());
    }

    #[test]
    fn what_is_being_written_by_a_key_that_expires_is_waited_for() {
        let table = table(Some(A_WHILE));
        let writes = begin(&table);
        while table.lock().keys.has(KEY) {
            thread::yield_now();
        }
        let said = revokes(&table);
        assert_eq!(
            said.recv_timeout(A_WHILE),
            Err(mpsc::RecvTimeoutError::Timeout)
        );
        drop(writes);
        assert_eq!(said.recv(), Ok(false));
    }

    /// Also if nobody ever takes them back.
    #[test]
    fn nothing_is_kept_of_keys_that_have_expired() {
        let table = table(Some(Duration::ZERO));
        assert!(table.lock().users.is_empty());
        assert!(!table.revoke(KEY));
    }
}
