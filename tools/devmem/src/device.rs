// SPDX-License-Identifier: GPL-2.0

//! A device made ready for device memory, and put back as it was: header split, and steering.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::process::Command;

use crate::ethtool::Ethtool;
use crate::ethtool::Rings;
use crate::netns::Netns;
use nix::net::if_::if_nametoindex;

/// A device with header split on, until this is dropped.
#[derive(Debug)]
pub struct Device<'n> {
    netns: &'n Netns,
    name: String,
    ifindex: u32,
    before: Rings,
}

impl<'n> Device<'n> {
    /// Switches header split on.
    pub fn prepare(netns: &'n Netns, name: &str) -> Result<Self, Box<dyn Error>> {
        let (ifindex, before) = netns
            .run(|| {
                let ifindex = if_nametoindex(name)?;
                let mut ethtool = Ethtool::open()?;
                let before = ethtool.rings(ifindex)?;
                ethtool.set_rings(ifindex, Rings::DEVMEM)?;
                Ok((ifindex, before))
            })
            .map_err(|err| format!("switching on header split of {name}: {err}"))?;
        Ok(Self {
            netns,
            name: name.to_owned(),
            ifindex,
            before,
        })
    }

    /// Its number.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Has a queue receive the flows to the port of an address, until the rule is dropped.
    ///
    /// By the program `ethtool`, which chooses a place for the rule.
    pub fn steer(&self, to: SocketAddr, queue: u32) -> Result<Rule<'_>, Box<dyn Error>> {
        let flow = if to.is_ipv4() { "tcp4" } else { "tcp6" };
        let (port, queue) = (to.port().to_string(), queue.to_string());
        let text = self.ethtool(&["flow-type", flow, "dst-port", &port, "action", &queue])?;
        let id = text
            .rsplit_once("ID ")
            .map(|(_, id)| id.trim().to_owned())
            .ok_or_else(|| format!("ethtool -N does not tell the rule's number: {text:?}"))?;
        Ok(Rule { device: self, id })
    }

    fn ethtool(&self, args: &[&str]) -> Result<String, Box<dyn Error>> {
        let mut command = Command::new("ethtool");
        command.arg("-N").arg(&self.name).args(args);
        let output = self
            .netns
            .run(|| command.output())
            .map_err(|err| format!("starting ethtool: {err}"))?;
        // Some versions complain about a refused rule and still exit with 0.
        if !output.status.success() || !output.stderr.is_empty() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{command:?}: {}", stderr.trim()).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Device<'_> {
    fn drop(&mut self) {
        let restore =
            || -> io::Result<()> { Ok(Ethtool::open()?.set_rings(self.ifindex, self.before)?) };
        if let Err(err) = self.netns.run(restore) {
            eprintln!("restoring the rings of {}: {err}", self.name);
        }
    }
}

/// A steering rule, until this is dropped.
#[derive(Debug)]
pub struct Rule<'d> {
    device: &'d Device<'d>,
    id: String,
}

impl Drop for Rule<'_> {
    fn drop(&mut self) {
        if let Err(err) = self.device.ethtool(&["delete", &self.id]) {
            eprintln!("{err}");
        }
    }
}
