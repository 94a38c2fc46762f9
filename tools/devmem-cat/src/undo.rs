// SPDX-License-Identifier: GPL-2.0

//! What has to be undone on the device before this process ends: kept here, where the thread that a signal ends it
//! by finds it, whatever the others wait for.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use devmem::Binding;
use devmem::device::Device;
use devmem::ethtool::Ethtool;
use devmem::ethtool::Rings;
use devmem::netns::Netns;

use crate::claim;
use crate::claim::Claim;
use crate::claim::Nic;
use crate::error::Fallible;

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
struct Interface(Device<'static>);

impl Interface {
    fn new(name: &str) -> Fallible<Self> {
        // Once, and to the end of the process.
        let netns = Box::leak(Box::new(Netns::current()?));
        Ok(Self(Device::as_it_is(netns, name)?))
    }

    /// Its folder. Numbers of devices are those of a network namespace, and so is its number.
    fn folder(&self) -> Fallible<PathBuf> {
        let netns = fs::metadata("/proc/self/ns/net")?.ino();
        let name = format!("net-{netns}-{}", self.0.ifindex());
        Ok(PathBuf::from(FOLDERS).join(name))
    }
}

impl Nic for Interface {
    fn rings(&self) -> Result<Rings, String> {
        Ethtool::open()
            .and_then(|mut ethtool| ethtool.rings(self.0.ifindex()))
            .map_err(|err| err.to_string())
    }

    fn set_rings(&self, rings: Rings) -> Result<(), String> {
        Ethtool::open()
            .and_then(|mut ethtool| ethtool.set_rings(self.0.ifindex(), rings))
            .map_err(|err| err.to_string())
    }

    fn rule(&self, id: &str) -> Result<String, String> {
        self.0.rule_text(id).map_err(|err| err.to_string())
    }

    fn remove_rule(&self, id: &str) -> Result<(), String> {
        self.0.remove_rule(id).map_err(|err| err.to_string())
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
    let (ifindex, folder) = (interface.0.ifindex(), interface.folder()?);
    held.claim = Some(Claim::new(interface, &folder).map_err(|err| format!("{name}: {err}"))?);
    Ok(ifindex)
}

/// Removes what was left on a device by processes that are gone.
pub fn clean_up(name: &str) -> Fallible<()> {
    let interface = Interface::new(name)?;
    let folder = interface.folder()?;
    Ok(claim::clean_up(&interface, &folder).map_err(|err| format!("{name}: {err}"))?)
}

/// Keeps a binding: header split cannot be restored before that is gone.
pub fn keep(binding: Binding) -> Fallible<()> {
    held()?.binding = Some(binding);
    Ok(())
}

/// Has a queue receive what comes to an address.
pub fn steer(to: SocketAddr, queue: u32) -> Fallible<()> {
    let mut held = held()?;
    let claim = held.claim.as_mut().ok_or("no device was made ready")?;
    for id in claim.nic().0.steer_for_good(to, queue)? {
        claim.take_rule(&id);
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
