// SPDX-License-Identifier: GPL-2.0

//! The tracepoints of device memory: what happens to bindings, and why a sender is refused.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use nix::mount::MsFlags;
use nix::mount::mount;

use crate::report::diag;

const TRACEFS: &str = "/sys/kernel/tracing";
/// Why a call of `sendmsg()` was refused.
pub const REFUSED: &str = "net_devmem_tx_refused";

/// What some tracepoints have told since this was made, in a buffer of its own.
#[derive(Debug)]
pub struct Trace {
    instance: PathBuf,
    events: &'static [&'static str],
}

impl Trace {
    /// Has them tell from now on.
    pub fn watch(events: &'static [&'static str]) -> io::Result<Self> {
        if !Path::new(TRACEFS).join("instances").exists() {
            mount(
                Some("tracefs"),
                TRACEFS,
                Some("tracefs"),
                MsFlags::empty(),
                None::<&str>,
            )?;
        }
        let instance = Path::new(TRACEFS).join("instances/devmem_test");
        fs::create_dir(&instance)?;
        let this = Self { instance, events };
        this.enable("1")?;
        Ok(this)
    }

    fn enable(&self, on: &str) -> io::Result<()> {
        for event in self.events {
            let event = self.instance.join("events/net_devmem").join(event);
            fs::write(event.join("enable"), on)?;
        }
        Ok(())
    }

    /// What they told, in its order: `net_devmem_tx_refused: dmabuf_id=...`, for all bindings of the machine.
    pub fn told(&self) -> io::Result<Vec<String>> {
        let text = fs::read_to_string(self.instance.join("trace"))?;
        let told = text.lines().filter_map(|line| self.told_by(line));
        Ok(told.collect())
    }

    fn told_by(&self, line: &str) -> Option<String> {
        self.events.iter().find_map(|event| {
            let (_, fields) = line.split_once(&format!(" {event}: "))?;
            Some(format!("{event}: {fields}"))
        })
    }

    /// What they told of one binding.
    pub fn told_of(&self, id: u32) -> io::Result<Vec<String>> {
        let id = format!("dmabuf_id={id} ");
        let mut told = self.told()?;
        told.retain(|line| line.contains(&id));
        Ok(told)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let gone = self
            .enable("0")
            .and_then(|()| fs::remove_dir(&self.instance));
        if let Err(err) = gone {
            diag(format_args!("tracing goes on: {err}"));
        }
    }
}
