// SPDX-License-Identifier: GPL-2.0

//! RDS over TCP: the modules, and what a peer sends.

use std::io;

use nix::kmod::DeleteModuleFlags;
use nix::kmod::delete_module;

use crate::modules;
use crate::report;

/// Where each namespace listens.
pub const PORT: u16 = 16385;
/// Bytes of a congestion map.
pub const MAP: usize = 65536 / 8;

/// The modules, which are unloaded when this is dropped. Nobody else here uses them.
#[derive(Debug)]
pub struct Loaded(());

impl Loaded {
    /// Loads them.
    pub fn new() -> io::Result<Self> {
        let loaded = Self(());
        modules::load_in_order(&["rds", "rds_tcp"])?;
        Ok(loaded)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for name in [c"rds_tcp", c"rds"] {
            if let Err(err) = delete_module(name, DeleteModuleFlags::empty()) {
                report::diag(format_args!("unloading {name:?}: {err}"));
            }
        }
    }
}

/// The header of a message that has a congestion map: `struct rds_header`.
pub fn map_header() -> [u8; 48] {
    const LEN: usize = 16;
    const FLAGS: usize = 24;
    const CONGESTION_MAP: u8 = 1;
    let mut header = [0; 48];
    header[LEN..LEN + 4].copy_from_slice(&(MAP as u32).to_be_bytes());
    header[FLAGS] = CONGESTION_MAP;
    header
}
