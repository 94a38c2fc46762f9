// SPDX-License-Identifier: GPL-2.0

//! A page pool without a provider, by the kernel's own benchmark of it: a module
//! (tools/testing/selftests/net/bench/page_pool) that measures while it is loaded, and tells in the kernel's log.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::OpenOptionsExt;

use devmem_testlib::provider::path_from_env;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::ModuleInitFlags;
use nix::kmod::delete_module;
use nix::kmod::finit_module;

use super::Results;
use crate::clock::Unit;
use crate::options::Options;

/// All but what has nothing to do with page pools.
const PARAMETERS: &std::ffi::CStr = c"loops=100000 run_flags=14";
/// What the module calls its ways, and what they are: by the pool's cache, by its ring, and by the page
/// allocator.
const WAYS: [(&str, &str); 3] = [
    ("page_pool01", "page_pool, cache"),
    ("page_pool02", "page_pool, ring"),
    ("page_pool03", "page_pool, pages"),
];

/// Loads the module once, and reads what it says.
pub(super) fn run(options: &Options, results: &mut Results) -> io::Result<()> {
    let module = File::open(path_from_env("BENCH_PAGE_POOL")?)?;
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    log.seek(SeekFrom::End(0))?;
    finit_module(&module, PARAMETERS, ModuleInitFlags::empty())?;
    let said = new_records(&mut log);
    delete_module(c"bench_page_pool", DeleteModuleFlags::empty())?;

    let said = said?;
    for (way, op) in WAYS {
        let cost = cost(&said, way, options.clock.unit())
            .ok_or_else(|| io::Error::other(format!("nothing about {way} in {said:?}")))?;
        results.add(op, "buffer", cost);
    }
    Ok(())
}

/// What the kernel has logged since, a record with each read.
fn new_records(log: &mut File) -> io::Result<String> {
    let mut all = String::new();
    let mut record = vec![0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(len) => all += &String::from_utf8_lossy(&record[..len]),
            Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(all),
            Err(err) => return Err(err),
        }
    }
}

/// What a turn of this way has cost.
fn cost(said: &str, way: &str, unit: Unit) -> Option<f64> {
    let line = said
        .lines()
        .find(|line| line.contains(way) && line.contains("Per elem"))?;
    let number = |name: &str| -> Option<f64> {
        let (_, rest) = line.split_once(name)?;
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        rest[..end].parse().ok()
    };
    let all = match unit {
        Unit::Instructions => number(" tsc_interval:"),
        Unit::Nanoseconds => number("time_interval:"),
    }?;
    Some(all / number("invoke count:")?)
}
