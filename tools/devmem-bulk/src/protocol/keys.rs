// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Keys: by what name the peer gets at which memory, what for, and until when.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::wire::Status;

/// The name of a part of an end's memory. Who knows it may use it, over connections whose end has it.
///
/// It is random, and nobody guesses one. Who passes it on passes on what it is good for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 16]);

/// Not the key, which logs would tell to whoever reads them.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The key as 32 digits in hex, for whoever is to have it: a file, say. It is read by [`FromStr`].
    #[must_use]
    pub fn to_hex(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

/// What is not 32 digits in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoKey;

impl fmt::Display for NoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key is 32 digits in hex")
    }
}

impl Error for NoKey {}

impl FromStr for Key {
    type Err = NoKey;

    /// Reads what [`to_hex`](Self::to_hex) has written; capitals are read, too.
    ///
    /// # Errors
    ///
    /// [`NoKey`] if it is anything else.
    fn from_str(text: &str) -> Result<Self, NoKey> {
        let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).map_err(|_| NoKey)?;
        digits.then(|| Self(number.to_be_bytes())).ok_or(NoKey)
    }
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rights {
    /// Gets.
    Read,
    /// Puts.
    Write,
    /// Both.
    ReadWrite,
}

impl Rights {
    fn allow(self, wanted: Self) -> bool {
        self == wanted || self == Self::ReadWrite
    }
}

/// What a key names: a part of the memory `M`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant<M> {
    /// The memory.
    pub memory: M,
    /// Where in it the part begins.
    pub offset: u64,
    /// How long the part is.
    pub len: u64,
    /// What for.
    pub rights: Rights,
    /// Until when, on the clock of [`Keys::set_now`]: for ever if `None`.
    pub expiry: Option<Duration>,
}

impl<M> Grant<M> {
    fn has_expired(&self, now: Duration) -> bool {
        self.expiry.is_some_and(|end| now >= end)
    }
}

/// The keys of an end, or of several that share them.
///
/// A key that was taken back, or has expired, is as if it had never been.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keys<M> {
    grants: BTreeMap<Key, Grant<M>>,
    now: Duration,
    /// When the next one expires.
    next: Option<Duration>,
}

impl<M> Default for Keys<M> {
    fn default() -> Self {
        Self {
            grants: BTreeMap::new(),
            now: Duration::ZERO,
            next: None,
        }
    }
}

impl<M> Keys<M> {
    /// None at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key, which has to be random.
    ///
    /// # Errors
    ///
    /// Gives the grant back if the key is there already, or if its part does not end before 2^64.
    pub fn add(&mut self, key: Key, grant: Grant<M>) -> Result<(), Grant<M>> {
        if self.has(key) || grant.offset.checked_add(grant.len).is_none() {
            return Err(grant);
        }
        self.next = self.next.into_iter().chain(grant.expiry).min();
        self.grants.insert(key, grant);
        Ok(())
    }

    /// Takes a key back: from now on it is good for nothing. What it named, if it was there.
    pub fn revoke(&mut self, key: Key) -> Option<Grant<M>> {
        self.grants.remove(&key)
    }

    /// Whether there is one with an expiry, so that somebody has to know the time.
    pub fn is_timed(&self) -> bool {
        self.next.is_some()
    }

    /// What time it is, on a clock that does not go back. Keys that expire are gone; what they named is returned.
    pub fn set_now(&mut self, now: Duration) -> Vec<Grant<M>> {
        self.now = self.now.max(now);
        let now = self.now;
        if self.next.is_none_or(|next| now < next) {
            return Vec::new();
        }
        let expired: Vec<_> = self
            .grants
            .iter()
            .filter(|(_, grant)| grant.has_expired(now))
            .map(|(&key, _)| key)
            .collect();
        let expired = expired.iter().filter_map(|key| self.grants.remove(key));
        let expired = expired.collect();
        self.next = self.grants.values().filter_map(|grant| grant.expiry).min();
        expired
    }

    /// Whether there is this one.
    pub fn has(&self, key: Key) -> bool {
        self.grants.contains_key(&key)
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// The memory that this key names, and where in it the byte at `offset` is, if the key is good for `len` bytes from
    /// there on.
    ///
    /// # Errors
    ///
    /// [`Status::Key`], [`Status::Rights`] or [`Status::Range`].
    pub fn resolve(
        &self,
        key: Key,
        wanted: Rights,
        offset: u64,
        len: u64,
    ) -> Result<(&M, u64), Status> {
        let grant = self.grants.get(&key).ok_or(Status::Key)?;
        if grant.has_expired(self.now) {
            return Err(Status::Key);
        }
        if !grant.rights.allow(wanted) {
            return Err(Status::Rights);
        }
        let end = offset.checked_add(len).ok_or(Status::Range)?;
        if end > grant.len {
            return Err(Status::Range);
        }
        let at = grant.offset.checked_add(offset).ok_or(Status::Range)?;
        Ok((&grant.memory, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key([7; 16]);

    #[test]
    fn a_key_is_read_as_it_was_told() {
        let text = "00112233445566778899aabbccddeeff";
        let key = Key([
            0, 17, 34, 51, 68, 85, 102, 119, 136, 153, 170, 187, 204, 221, 238, 255,
        ]);
        assert_eq!(key.to_hex(), text);
        assert_eq!(text.parse(), Ok(key));
        assert_eq!(text.to_uppercase().parse(), Ok(key));
        for bad in [
            "",
            "0",
            &text[1..],
            &format!("{text}0"),
            &format!("+{}", &text[1..]),
        ] {
            assert_eq!(bad.parse::<Key>(), Err(NoKey), "{bad}");
        }
    }

    fn keys(rights: Rights, expiry: Option<Duration>) -> Keys<char> {
        let mut keys = Keys::new();
        let grant = Grant {
            memory: 'm',
            offset: 100,
            len: 10,
            rights,
            expiry,
        };
        keys.add(KEY, grant).unwrap();
        keys
    }

    #[test]
    fn a_key_is_good_for_its_range() {
        let keys = keys(Rights::Read, None);
        for (offset, len, at) in [
            (0, 10, Ok(100)),
            (0, 0, Ok(100)),
            (10, 0, Ok(110)),
            (9, 1, Ok(109)),
            (9, 2, Err(Status::Range)),
            (11, 0, Err(Status::Range)),
            (0, u64::MAX, Err(Status::Range)),
            (1, u64::MAX, Err(Status::Range)),
            (u64::MAX, 1, Err(Status::Range)),
        ] {
            let got = keys.resolve(KEY, Rights::Read, offset, len);
            assert_eq!(got, at.map(|at| (&'m', at)), "{offset} {len}");
        }
    }

    #[test]
    fn a_key_is_good_for_its_rights() {
        use Rights::*;
        for (has, wants, ok) in [
            (Read, Read, true),
            (Read, Write, false),
            (Write, Read, false),
            (Write, Write, true),
            (ReadWrite, Read, true),
            (ReadWrite, Write, true),
        ] {
            let got = keys(has, None).resolve(KEY, wants, 0, 1).map(|_| ());
            let expected = if ok { Ok(()) } else { Err(Status::Rights) };
            assert_eq!(got, expected, "{has:?} {wants:?}");
        }
    }

    #[test]
    fn a_key_is_good_until_it_is_not() {
        let mut keys = keys(Rights::Read, Some(Duration::from_secs(2)));
        let good = |keys: &Keys<char>| keys.resolve(KEY, Rights::Read, 0, 1).is_ok();
        keys.set_now(Duration::from_millis(1999));
        assert!(good(&keys));
        keys.set_now(Duration::from_secs(2));
        assert!(!good(&keys));
        // That clock does not go back.
        keys.set_now(Duration::ZERO);
        assert!(!good(&keys));
    }

    /// Else it kept the memory of all keys that there ever were.
    #[test]
    fn nothing_is_kept_of_a_key_that_has_expired() {
        let mut keys = keys(Rights::Read, Some(Duration::from_secs(2)));
        for (number, expiry) in [(1, Some(3)), (2, None)] {
            let grant = Grant {
                memory: 'n',
                offset: 0,
                len: 1,
                rights: Rights::Read,
                expiry: expiry.map(Duration::from_secs),
            };
            keys.add(Key([number; 16]), grant).unwrap();
        }
        keys.set_now(Duration::from_secs(2));
        assert!(keys.revoke(KEY).is_none() && keys.is_timed());
        keys.set_now(Duration::from_secs(3));
        assert!(keys.revoke(Key([1; 16])).is_none() && !keys.is_timed());
        assert!(keys.revoke(Key([2; 16])).is_some() && keys.is_empty());
    }

    #[test]
    fn a_key_that_was_taken_back_never_was() {
        let mut keys = keys(Rights::Read, None);
        assert_eq!(
            keys.resolve(Key([8; 16]), Rights::Read, 0, 1),
            Err(Status::Key)
        );
        assert!(keys.revoke(KEY).is_some());
        assert!(keys.revoke(KEY).is_none() && keys.is_empty());
        assert_eq!(keys.resolve(KEY, Rights::Read, 0, 1), Err(Status::Key));
    }

    #[test]
    fn a_grant_that_wraps_is_none_and_a_key_names_one() {
        let mut keys = keys(Rights::Read, None);
        let grant = Grant {
            memory: 'n',
            offset: u64::MAX,
            len: 1,
            rights: Rights::Read,
            expiry: None,
        };
        assert!(keys.add(Key([9; 16]), grant.clone()).is_err());
        let grant = Grant { offset: 0, ..grant };
        assert!(keys.add(KEY, grant.clone()).is_err());
        assert!(keys.add(Key([9; 16]), grant).is_ok());
    }

    #[test]
    fn logs_do_not_tell_keys() {
        assert_eq!(format!("{KEY:?}"), "Key(..)");
    }
}
