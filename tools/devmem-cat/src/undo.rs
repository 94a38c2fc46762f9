// SPDX-License-Identifier: GPL-2.0

//! What has to be undone on the device before this process ends: kept here, where the thread that a signal ends it
//! by finds it, whatever the others wait for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use devmem::Binding;
use devmem::device::Device;
use devmem::device::Flow;
use devmem::ethtool::Ethtool;
use devmem::ethtool::Rings;
use devmem::netns::Netns;

use crate::claim;
use crate::claim::Claim;
use crate::claim::Nic;
use crate::error::Fallible;
use crate::error::context;

/// Where folders of devices are.
const FOLDERS: &str = "/run/devmem-cat";

static HELD: Mutex<Held> = Mutex::new(Held {
    over: false,
    binding: None,
    claim: None,
});

/// What is held.
struct Held {
    /// Nothing more is to be done.
    over: bool,
    binding: Option<Binding>,
    claim: Option<Claim<Interface>>,
}

/// A device of this network namespace.
struct Interface {
    device: Device<'static>,
    netns: &'static Netns,
}

impl Interface {
    fn new(name: &str) -> Fallible<Self> {
        // Once, and to the end of the process.
        let netns: &'static Netns = Box::leak(Box::new(Netns::current()?));
        let device = Device::as_it_is(netns, name)?;
        Ok(Self { device, netns })
    }

    /// Its folder. Numbers of devices are those of a network namespace, and neither number is given a second time.
    fn folder(&self) -> Fallible<PathBuf> {
        let netns = self.netns.cookie().map_err(context("SO_NETNS_COOKIE"))?;
        let name = format!("net-{netns}-{}", self.device.ifindex());
        Ok(PathBuf::from(FOLDERS).join(name))
    }
}

/// Why the length of rings, and with it header split, is not to be learned.
fn no_rings(err: &devmem::Error) -> String {
    match err.errno() {
        // So it is for lo, veth and netkit.
        Some(nix::libc::EOPNOTSUPP) => format!(
            "it has no header split: {err}\nHint: device memory takes a NIC whose driver does that; \
             for a sender on this machine see --share."
        ),
        _ => format!("looking for header split: {err}"),
    }
}

impl Nic for Interface {
    fn rings(&self) -> Result<Rings, String> {
        Ethtool::open()
            .and_then(|mut ethtool| ethtool.rings(self.device.ifindex()))
            .map_err(|err| no_rings(&err))
    }

    fn set_rings(&self, rings: Rings) -> Result<(), String> {
        Ethtool::open()
            .and_then(|mut ethtool| ethtool.set_rings(self.device.ifindex(), rings))
            .map_err(|err| err.to_string())
    }

    fn rules(&self) -> Result<BTreeMap<u32, String>, String> {
        self.device.all_rules().map_err(|err| err.to_string())
    }

    fn add_rule(&self, flow: Flow) -> Result<u32, String> {
        self.device.add_rule(flow).map_err(|err| err.to_string())
    }

    fn remove_rule(&self, place: u32) -> Result<(), String> {
        self.device
            .remove_rule(place)
            .map_err(|err| err.to_string())
    }
}

fn held() -> Fallible<MutexGuard<'static, Held>> {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    match held.over {
        true => Err("it is over".into()),
        false => Ok(held),
    }
}

/// Makes a device ready for device memory; returns its number.
pub fn prepare(name: &str) -> Fallible<u32> {
    let mut held = held()?;
    let interface = Interface::new(name)?;
    let (ifindex, folder) = (interface.device.ifindex(), interface.folder()?);
    held.claim = Some(Claim::new(interface, &folder).map_err(|err| format!("{name}: {err}"))?);
    Ok(ifindex)
}

/// Removes what was left on a device by processes that are gone.
pub fn clean_up(name: &str) -> Fallible<()> {
    let interface = Interface::new(name)?;
    let folder = interface.folder()?;
    Ok(claim::clean_up(&interface, &folder).map_err(|err| format!("{name}: {err}"))?)
}

/// Binds, and keeps the binding; returns its number. Header split cannot be restored before that is gone, so nothing is
/// undone while it is being made.
pub fn bind(make: impl FnOnce() -> Fallible<Binding>) -> Fallible<u32> {
    let mut held = held()?;
    let binding = make()?;
    let id = binding.id();
    held.binding = Some(binding);
    Ok(id)
}

/// Has a queue receive what comes to an address.
pub fn steer(to: SocketAddr, queue: u32) -> Fallible<()> {
    let mut held = held()?;
    let claim = held.claim.as_mut().ok_or("no device was made ready")?;
    for flow in Flow::to(to, queue) {
        claim.steer(flow)?;
    }
    Ok(())
}

/// Undoes it. From then on nothing more can be done to the device.
pub fn all() {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.over = true;
    drop(held.binding.take());
    if let Some(claim) = held.claim.take() {
        claim.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_header_split() {
        let refused = |errno| {
            no_rings(&devmem::Error::Refused {
                errno,
                ack: Box::default(),
            })
        };
        assert!(refused(nix::libc::EOPNOTSUPP).contains("--share"));
        assert!(!refused(nix::libc::EPERM).contains("Hint"));
    }
}
