// SPDX-License-Identifier: GPL-2.0

//! Kernel modules: the tests' own, the providers, and those of the kernel that tests load and unload.
//!
//! A module is where an environment variable says, in `modules/` beside the program, or where modprobe
//! knows it.

use std::env;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::io::ErrorKind;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use nix::errno::Errno;
use nix::kmod::ModuleInitFlags;
use nix::kmod::finit_module;

/// The module in Rust.
pub const PROVIDER: &str = "devmem_provider";
/// The sample of a provider.
pub const SAMPLE: &str = "host_provider";
/// The tests' own.
pub const TEST: &str = "devmem_test";

/// Whether it is there now, by itself or built in.
pub fn is_there(name: &str) -> bool {
    Path::new("/sys/module").join(name).exists()
}

/// Where the environment says that a module is.
fn by_environment(name: &str) -> Option<PathBuf> {
    let variable = match name {
        PROVIDER => "DEVMEM_MODULE",
        SAMPLE => "DEVMEM_HOST_MODULE",
        TEST => "DEVMEM_TEST_MODULE",
        _ => {
            let dir = env::var_os("NETDEVSIM_DIR")?;
            return Some(Path::new(&dir).join(format!("{name}.ko")));
        }
    };
    env::var_os(variable).map(PathBuf::from)
}

/// Where it is, if not where modprobe knows it.
fn by_path(name: &str) -> Option<PathBuf> {
    by_environment(name).or_else(|| {
        let path = env::current_exe().ok()?;
        let path = path.with_file_name("modules").join(format!("{name}.ko"));
        path.exists().then_some(path)
    })
}

/// What a program of module-init-tools prints on its standard output.
fn told_by(program: &str, args: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(args).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::new(
        ErrorKind::NotFound,
        format!("{program} {}: {}", args.join(" "), said.trim()),
    ))
}

/// The file that has a module.
pub fn file(name: &str) -> io::Result<PathBuf> {
    match by_path(name) {
        Some(path) => Ok(path),
        None => told_by("modinfo", &["-F", "filename", name]).map(PathBuf::from),
    }
}

/// Loads a module with parameters. `EEXIST` if it is loaded.
pub fn insert(name: &str, parameters: &CStr) -> io::Result<()> {
    let path = file(name)?;
    let module = File::open(&path)
        .map_err(|err| io::Error::new(err.kind(), format!("{}: {err}", path.display())))?;
    Ok(finit_module(&module, parameters, ModuleInitFlags::empty())?)
}

/// Loads a module, unless it is loaded.
pub fn load(name: &str) -> io::Result<()> {
    match insert(name, c"") {
        Err(err) if err.raw_os_error() == Some(Errno::EEXIST as i32) => Ok(()),
        done => done,
    }
}

/// Loads modules of the kernel, unless they are loaded, each of which needs those before it.
pub fn load_in_order(names: &[&str]) -> io::Result<()> {
    match names.last() {
        Some(last) if by_path(last).is_none() => told_by("modprobe", &[last]).map(drop),
        _ => names.iter().try_for_each(|name| load(name)),
    }
}
