// SPDX-License-Identifier: GPL-2.0

//! The tracepoint that tells why a sender is refused.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use nix::mount::MsFlags;
use nix::mount::mount;

use crate::report::diag;

const TRACEFS: &str = "/sys/kernel/tracing";
const EVENT: &str = "net_devmem_tx_refused";

/// What the tracepoint has told since this was made, in a buffer of its own.
#[derive(Debug)]
pub struct Refusals(PathBuf);

impl Refusals {
    /// Has it tell from now on.
    pub fn watch() -> io::Result<Self> {
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
        let this = Self(instance);
        this.enable("1")?;
        Ok(this)
    }

    fn enable(&self, on: &str) -> io::Result<()> {
        let event = self.0.join("events/net_devmem").join(EVENT);
        fs::write(event.join("enable"), on)
    }

    /// What it told: `dmabuf_id=... reason=... user=... owner=...`, one for each call that was refused.
    pub fn told(&self) -> io::Result<Vec<String>> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        let told = text
            .lines()
            .filter_map(|line| Some(line.split_once(&format!("{EVENT}: "))?.1.to_owned()));
        Ok(told.collect())
    }
}

impl Drop for Refusals {
    fn drop(&mut self) {
        let gone = self.enable("0").and_then(|()| fs::remove_dir(&self.0));
        if let Err(err) = gone {
            diag(format_args!("tracing goes on: {err}"));
        }
    }
}
