// SPDX-License-Identifier: GPL-2.0

//! A NIC to run on in place of netdevsim, as the tests in `drivers/net/hw` of the kernel's selftests are told of one.
//!
//! `NETIF` is the device under test, which is up and has the addresses `LOCAL_V4` and `LOCAL_V6`. At
//! `REMOTE_V4` and `REMOTE_V6` there is somebody to talk with: in a namespace of this machine, whose name is
//! `REMOTE_ARGS` if `REMOTE_TYPE` is `netns`, or on another machine, which `ssh` with `REMOTE_ARGS` leads to. The
//! environment says so, or a file `net.config` beside the program.
//!
//! `selftests/hardware` has the tests that run there. Over ssh these are the ones that do no more with
//! the other end than have it send a stream.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::LazyLock;

use crate::report::reason_to_skip;

const TESTS: &str = include_str!("../../hardware");
/// Marks the tests for which the other end only has to send a stream.
const STREAM: &str = "stream";

/// IP version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How to get to the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is in this namespace.
    Netns(String),
    /// It is where `ssh` with these arguments leads to.
    Ssh(Vec<String>),
}

/// A NIC, and its other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The interface, in the namespace of this process.
    pub ifname: String,
    /// How to get to the other end.
    pub way: Way,
    local: [Option<IpAddr>; 2],
    remote: [Option<IpAddr>; 2],
}

impl Nic {
    fn parse(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let Some(ifname) = get("NETIF") else {
            return Ok(None);
        };
        let address = |name: &str| {
            let parsed = get(name).map(|text| text.parse().map_err(|_| format!("{name}: {text}")));
            parsed.transpose()
        };
        let args = get("REMOTE_ARGS").ok_or("NETIF is set, and REMOTE_ARGS is not")?;
        let way = match get("REMOTE_TYPE").as_deref() {
            Some("netns") => Way::Netns(args),
            Some("ssh") => Way::Ssh(args.split_whitespace().map(str::to_owned).collect()),
            other => return Err(format!("REMOTE_TYPE is netns or ssh, not {other:?}")),
        };
        Ok(Some(Self {
            ifname,
            way,
            local: [address("LOCAL_V4")?, address("LOCAL_V6")?],
            remote: [address("REMOTE_V4")?, address("REMOTE_V6")?],
        }))
    }

    /// The address of the NIC.
    pub fn local(&self, ip: Ip) -> io::Result<IpAddr> {
        given_or(self.local[ip as usize], "LOCAL", ip)
    }

    /// The address of the other end.
    pub fn remote(&self, ip: Ip) -> io::Result<IpAddr> {
        given_or(self.remote[ip as usize], "REMOTE", ip)
    }
}

fn given_or(address: Option<IpAddr>, whose: &str, ip: Ip) -> io::Result<IpAddr> {
    address.ok_or_else(|| reason_to_skip(format!("{whose}_{ip:?} is not set")))
}

/// The values in `net.config` beside the program: names and values, as a shell has them.
fn parse_config(text: &str) -> HashMap<String, String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| {
            let value = value.trim().trim_matches(['"', '\'']);
            (name.trim().to_owned(), value.to_owned())
        })
        .collect()
}

static GIVEN: LazyLock<Result<Option<Nic>, String>> = LazyLock::new(|| {
    let config = env::current_exe()
        .and_then(|path| fs::read_to_string(path.with_file_name("net.config")))
        .unwrap_or_default();
    let config = parse_config(&config);
    Nic::parse(|name| config.get(name).cloned().or_else(|| env::var(name).ok()))
});

/// The NIC to run on, if there is one.
pub fn given() -> io::Result<Option<&'static Nic>> {
    match &*GIVEN {
        Ok(nic) => Ok(nic.as_ref()),
        Err(what) => Err(io::Error::other(what.clone())),
    }
}

/// Whether the other end is a device of this machine, which can be set up as the NIC is.
pub(crate) fn has_both_ends() -> bool {
    matches!(given(), Ok(Some(nic)) if matches!(nic.way, Way::Netns(_)))
}

/// What the list says of a test: a word, or nothing. `None` if it is not in the list.
fn listed(program: &str, test: &str) -> Option<&'static str> {
    TESTS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
            (name.split_once('/') == Some((program, test))).then_some(rest.trim())
        })
        .next()
}

/// Why a test does not run on the NIC that was given.
pub(crate) fn refuses(program: &str, test: &str) -> Option<String> {
    let nic = given().ok().flatten()?;
    match (listed(program, test), &nic.way) {
        (None, _) => Some("this takes netdevsim, and NETIF is set".to_owned()),
        (Some(STREAM), _) | (_, Way::Netns(_)) => None,
        _ => Some("this takes an other end in a namespace, and REMOTE_TYPE is ssh".to_owned()),
    }
}
