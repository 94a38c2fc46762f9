// SPDX-License-Identifier: GPL-2.0

//! Control groups, and the memory that is charged to them.

use std::fs;
use std::io;
use std::io::ErrorKind;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use nix::mount::MsFlags;
use nix::mount::mount;

use crate::report::diag;
use crate::wait;

const ROOT: &str = "/sys/fs/cgroup";
/// How long a process may take to leave its group.
const LEFT: Duration = Duration::from_secs(2);

/// A control group, deleted when this is dropped.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one that accounts for memory.
    pub fn new(name: &str) -> io::Result<Self> {
        if !Path::new(ROOT).join("cgroup.controllers").exists() {
            let none = None::<&str>;
            mount(
                Some("cgroup2"),
                ROOT,
                Some("cgroup2"),
                MsFlags::empty(),
                none,
            )?;
        }
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+memory")?;
        let path = Path::new(ROOT).join(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Moves a process in. What it used before stays where it was charged.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }

    /// Limits memory to so many bytes more than are used now.
    pub fn leave(&self, bytes: u64) -> io::Result<()> {
        let limit = self.usage()? + bytes;
        fs::write(self.0.join("memory.max"), limit.to_string())
    }

    /// Bytes that are charged to it, some of them in advance. That is exact at once, other than the parts
    /// that `memory.stat` tells.
    pub fn usage(&self) -> io::Result<u64> {
        self.read("memory.current")?
            .trim()
            .parse()
            .map_err(|_| ErrorKind::InvalidData.into())
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(file))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process leaves its group only some time after it was waited for.
        let waited = wait::up_to(LEFT, || match fs::remove_dir(&self.0) {
            Err(err) if err.kind() == ErrorKind::ResourceBusy => Ok(false),
            done => done.map(|()| true),
        });
        match waited {
            Err(err) => diag(format_args!("deleting {}: {err}", self.0.display())),
            Ok(waited) if !waited.came => diag(format_args!("{} stays busy", self.0.display())),
            Ok(_) => (),
        }
    }
}
