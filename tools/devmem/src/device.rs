// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A device made ready for device memory, and put back as it was: header split, and steering.

use std::error;
use std::fmt;
use std::io;
use std::mem;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::process::Command;

use crate::ethtool::Ethtool;
use crate::ethtool::Rings;
use crate::netlink::errno_of;
use crate::netns::Netns;
use log::warn;
use nix::net::if_::if_nametoindex;

/// Why a device could not be made ready: what was tried, and what came of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeviceError {
    /// What was tried.
    pub what: String,
    /// How that failed. An error of kind [`Other`](io::ErrorKind::Other) has what `ethtool` said.
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
    /// both for `[::]`.
    ///
    /// By the program `ethtool`, which chooses places for the rules.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) if there is no such program; [`Other`](io::ErrorKind::Other) for what it
    /// said; [`InvalidData`](io::ErrorKind::InvalidData) if it does not tell the number of a rule; those of
    /// [`Netns::run`].
    pub fn steer(&self, to: SocketAddr, queue: u32) -> Result<Rule<'_>, DeviceError> {
        let (port, queue) = (to.port().to_string(), queue.to_string());
        let mut rule = Rule {
            device: self,
            ids: Vec::new(),
        };
        for flow in flow_types(to.ip()) {
            let words = ["flow-type", flow, "dst-port", &port, "action", &queue];
            let text = self.ethtool("-N", &words)?;
            let id = text
                .rsplit_once("ID ")
                .map(|(_, id)| id.trim().to_owned())
                .ok_or_else(|| {
                    let said = io::Error::new(io::ErrorKind::InvalidData, format!("{text:?}"));
                    DeviceError::new("ethtool -N does not tell the rule's number")(said)
                })?;
            rule.ids.push(id);
        }
        Ok(rule)
    }

    /// Like [`steer`](Self::steer), but the rules stay: returns their numbers, one for each version of IP.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn steer_for_good(&self, to: SocketAddr, queue: u32) -> Result<Vec<String>, DeviceError> {
        let mut rule = self.steer(to, queue)?;
        Ok(mem::take(&mut rule.ids))
    }

    /// What `ethtool` says of the rule of this number, in one line. By that a program can tell whether it is still
    /// the rule that it was.
    ///
    /// # Errors
    ///
    /// As of [`steer`](Self::steer): [`Other`](io::ErrorKind::Other) if there is no such rule.
    pub fn rule_text(&self, id: &str) -> Result<String, DeviceError> {
        let text = self.ethtool("-n", &["rule", id])?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Removes the rule of this number, whoever made it.
    ///
    /// # Errors
    ///
    /// As of [`steer`](Self::steer).
    pub fn remove_rule(&self, id: &str) -> Result<(), DeviceError> {
        self.ethtool("-N", &["delete", id]).map(drop)
    }

    fn ethtool(&self, option: &str, args: &[&str]) -> Result<String, DeviceError> {
        let mut command = Command::new("ethtool");
        command.arg(option).arg(&self.name).args(args);
        let output = self
            .netns
            .run(|| command.output())
            .map_err(DeviceError::new("starting ethtool"))?;
        // Some versions complain about a refused rule and still exit with 0.
        if !output.status.success() || !output.stderr.is_empty() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let said = io::Error::other(stderr.trim().to_owned());
            return Err(DeviceError::new(format!("{command:?}"))(said));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        if let Err(err) = self.put_back() {
            warn!("{err}");
        }
    }
}

/// By which protocols a connection to this address of a socket may come, as `ethtool` calls them.
fn flow_types(to: IpAddr) -> &'static [&'static str] {
    match to {
        IpAddr::V4(_) => &["tcp4"],
        // An address of IPv4, in the notation of a socket of IPv6.
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => &["tcp4"],
        // All of this machine, of IPv4 too.
        IpAddr::V6(ip) if ip.is_unspecified() => &["tcp6", "tcp4"],
        IpAddr::V6(_) => &["tcp6"],
    }
}

/// A steering rule, or one for each version of IP, until this is dropped.
#[derive(Debug)]
#[must_use = "a rule is removed once this is dropped"]
pub struct Rule<'d> {
    device: &'d Device<'d>,
    ids: Vec<String>,
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
        for id in mem::take(&mut self.ids) {
            result = result.and(self.device.remove_rule(&id));
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

    #[test]
    fn both_versions_of_ip_come_to_a_socket_that_takes_both() {
        for (to, expected) in [
            ("192.0.2.1", &["tcp4"][..]),
            ("0.0.0.0", &["tcp4"]),
            ("::ffff:192.0.2.1", &["tcp4"]),
            ("::ffff:0.0.0.0", &["tcp4"]),
            ("2001:db8::1", &["tcp6"]),
            ("::1", &["tcp6"]),
            ("::", &["tcp6", "tcp4"]),
        ] {
            assert_eq!(flow_types(to.parse().unwrap()), expected, "{to}");
        }
    }
}
