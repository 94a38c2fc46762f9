// SPDX-License-Identifier: GPL-2.0

//! How the kernel that runs was configured: what is where `KERNEL_CONFIG` says, or where kernels have it.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use nix::sys::utsname::uname;

/// Options of the kernel that runs, or `None` where there is nothing that tells.
static OPTIONS: LazyLock<Option<HashMap<String, String>>> =
    LazyLock::new(|| Some(parse(&configuration()?)));

/// The options that are set in a configuration, without `CONFIG_`.
fn parse(configuration: &str) -> HashMap<String, String> {
    configuration
        .lines()
        .filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn configuration() -> Option<String> {
    const PACKED: &str = "/proc/config.gz";
    if let Some(path) = env::var_os("KERNEL_CONFIG") {
        return fs::read_to_string(path).ok();
    }
    if Path::new(PACKED).exists() {
        let output = Command::new("zcat").arg(PACKED).output().ok()?;
        return String::from_utf8(output.stdout).ok();
    }
    let release = uname().ok()?.release().to_str()?.to_owned();
    [
        format!("/boot/config-{release}"),
        format!("/lib/modules/{release}/config"),
        format!("/lib/modules/{release}/build/.config"),
    ]
    .iter()
    .find_map(|path| fs::read_to_string(path).ok())
}

/// The options that are set, and to what. `None` if nobody knows.
pub(crate) fn options() -> Option<&'static HashMap<String, String>> {
    OPTIONS.as_ref()
}

/// Whether an option is set, to y or m. `None` if nobody knows.
pub(crate) fn option(name: &str) -> Option<bool> {
    Some(options()?.contains_key(name))
}
