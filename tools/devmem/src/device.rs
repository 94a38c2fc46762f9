// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A device made ready for device memory, and put back as it was: header split, and steering.

use std::collections::BTreeMap;
use std::error;
use std::fmt;
use std::io;
use std::mem;
use std::net::SocketAddr;

use crate::ethtool::Ethtool;
use crate::ethtool::Rings;
use crate::netlink::errno_of;
use crate::netns::Netns;
use crate::rules;
pub use crate::rules::Flow;
pub use crate::rules::Version;
use log::warn;
use nix::net::if_::if_nametoindex;

/// Why a device could not be made ready: what was tried, and what came of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeviceError {
    /// What was tried.
    pub what: String,
    /// How that failed.
    pub error: io::Error,
}

impl DeviceError {
    fn new(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |error| Self { what, error }
    }

    /// The error number, if there is one.
    pub fn errno(&self) -> Option<i32> {
        errno_of(&self.error)
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.error)
    }
}

impl error::Error for DeviceError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.error)
    }
}

/// A device with header split on, until this is dropped; or [as it is](Self::as_it_is).
#[derive(Debug)]
#[must_use = "header split is as it was once this is dropped"]
pub struct Device<'n> {
    netns: &'n Netns,
    name: String,
    ifindex: u32,
    /// What its rings were before, until they are that again.
    before: Option<Rings>,
}

impl<'n> Device<'n> {
    /// Switches header split on. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    ///
    /// `ENODEV` if there is no such device, those of [`Ethtool`] and of [`Netns::run`].
    pub fn prepare(netns: &'n Netns, name: &str) -> Result<Self, DeviceError> {
        let (ifindex, before) = netns
            .run(|| {
                let ifindex = if_nametoindex(name)?;
                let mut ethtool = Ethtool::open()?;
                let before = ethtool.rings(ifindex)?;
                ethtool.set_rings(ifindex, before.for_devmem())?;
                Ok((ifindex, before))
            })
            .map_err(DeviceError::new(format!(
                "switching on header split of {name}"
            )))?;
        Ok(Self {
            netns,
            name: name.to_owned(),
            ifindex,
            before: Some(before),
        })
    }

    /// A device that somebody else makes ready, and puts back: for [rules](Self::steer) only.
    ///
    /// # Errors
    ///
    /// `ENODEV` if there is no such device, those of [`Netns::run`].
    pub fn as_it_is(netns: &'n Netns, name: &str) -> Result<Self, DeviceError> {
        let ifindex = netns
            .ifindex(name)
            .map_err(DeviceError::new(format!("interface {name}")))?;
        Ok(Self {
            netns,
            name: name.to_owned(),
            ifindex,
            before: None,
        })
    }

    /// Switches header split back to what it was, as dropping does, and tells if that failed. A failure of a drop
    /// goes to the log.
    ///
    /// # Errors
    ///
    /// As of [`prepare`](Self::prepare).
    pub fn restore(mut self) -> Result<(), DeviceError> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), DeviceError> {
        let Some(before) = self.before.take() else {
            return Ok(());
        };
        let ifindex = self.ifindex;
        self.netns
            .run(|| Ok(Ethtool::open()?.set_rings(ifindex, before)?))
            .map_err(DeviceError::new(format!(
                "restoring the rings of {}",
                self.name
            )))
    }

    /// Its number.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Has a queue receive the flows to the port of an address, until the rules are dropped: IPv4, IPv6, or
    /// both for `[::]`. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    ///
    /// Those of [`add_rule`](Self::add_rule). No rule is left then.
    pub fn steer(&self, to: SocketAddr, queue: u32) -> Result<Rule<'_>, DeviceError> {
        let mut rule = Rule {
            device: self,
            places: Vec::new(),
        };
        for flow in Flow::to(to, queue) {
            rule.places.push(self.add_rule(flow)?);
        }
        Ok(rule)
    }

    /// Makes a rule that stays; returns its place, by which it is known to the device and to `ethtool -n`. Needs
    /// CAP_NET_ADMIN.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if the device has no such rules, `ENOSPC` if it has no place for another one, `EPERM`, `ENODEV` or
    /// `ENXIO` if it has gone, whatever its driver says, and those of [`Netns::run`].
    pub fn add_rule(&self, flow: Flow) -> Result<u32, DeviceError> {
        self.rules(|rules| rules.add(flow))
            .map_err(DeviceError::new(format!(
                "steering {flow} of {}",
                self.name
            )))
    }

    /// The rules that there are by their places, each in one line. A rule for a [`Flow`] is shown as that.
    ///
    /// # Errors
    ///
    /// As of [`add_rule`](Self::add_rule), but for `ENOSPC` and `EPERM`.
    pub fn all_rules(&self) -> Result<BTreeMap<u32, String>, DeviceError> {
        self.rules(rules::Rules::list)
            .map_err(DeviceError::new(format!("the rules of {}", self.name)))
    }

    /// Removes the rule at a place, whoever made it.
    ///
    /// # Errors
    ///
    /// As of [`add_rule`](Self::add_rule); if there is none, mostly `ENOENT`.
    pub fn remove_rule(&self, place: u32) -> Result<(), DeviceError> {
        self.rules(|rules| rules.remove(place))
            .map_err(DeviceError::new(format!(
                "removing rule {place} of {}",
                self.name
            )))
    }

    fn rules<T: Send>(
        &self,
        what: impl FnOnce(&rules::Rules) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let ifindex = self.ifindex;
        self.netns.run(|| what(&rules::Rules::of(ifindex)?))
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        if let Err(err) = self.put_back() {
            warn!("{err}");
        }
    }
}

/// A steering rule, or one for each version of IP, until this is dropped.
#[derive(Debug)]
#[must_use = "a rule is removed once this is dropped"]
pub struct Rule<'d> {
    device: &'d Device<'d>,
    places: Vec<u32>,
}

impl Rule<'_> {
    /// Removes it, as dropping does, and tells if that failed. A failure of a drop goes to the log.
    ///
    /// # Errors
    ///
    /// The first one, as of [`Device::steer`]. All of it was tried.
    pub fn remove(mut self) -> Result<(), DeviceError> {
        self.take_away()
    }

    fn take_away(&mut self) -> Result<(), DeviceError> {
        let mut result = Ok(());
        for place in mem::take(&mut self.places) {
            result = result.and(self.device.remove_rule(place));
        }
        result
    }
}

impl Drop for Rule<'_> {
    fn drop(&mut self) {
        if let Err(err) = self.take_away() {
            warn!("{err}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_tried_and_keeps_its_number() {
        use std::error::Error as _;

        let refused = io::Error::from(crate::Error::Refused {
            errno: libc::EOPNOTSUPP,
            ack: Box::default(),
        });
        let err = DeviceError::new("trying")(refused);
        assert_eq!(err.errno(), Some(libc::EOPNOTSUPP));
        assert!(err.to_string().starts_with("trying: "));
        assert!(err.source().is_some());
    }
}
