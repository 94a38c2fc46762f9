// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Which implementation in the kernel serves bindings, and what each binding has in use.

use std::fs;
use std::io;

const SERVING: &str = "/proc/sys/net/core/devmem_provider";
const AVAILABLE: &str = "/proc/sys/net/core/devmem_available_providers";
const BINDINGS: &str = "/sys/kernel/debug/net_devmem/bindings";

/// The provider that serves new bindings.
///
/// # Errors
///
/// [`NotFound`](io::ErrorKind::NotFound) on a kernel that has only its own.
pub fn serving() -> io::Result<String> {
    Ok(fs::read_to_string(SERVING)?.trim().to_owned())
}

/// Chooses the provider that serves new bindings.
///
/// # Errors
///
/// [`NotFound`](io::ErrorKind::NotFound) on a kernel that has only its own;
/// [`PermissionDenied`](io::ErrorKind::PermissionDenied) for others than root; `ENOENT` if there is none of this
/// name.
pub fn select(name: &str) -> io::Result<()> {
    fs::write(SERVING, name)
}

/// The providers there are.
///
/// # Errors
///
/// As of [`serving`].
pub fn available() -> io::Result<Vec<String>> {
    Ok(fs::read_to_string(AVAILABLE)?
        .split_whitespace()
        .map(str::to_owned)
        .collect())
}

/// A live binding, from the kernel's list in debugfs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BindingInfo {
    /// Its number.
    pub id: u32,
    /// The provider that serves it.
    pub provider: String,
    /// Its interface, unless that is gone.
    pub ifname: Option<String>,
    /// `rx` or `tx`.
    pub direction: String,
    /// Bytes of one buffer.
    pub buffer_size: u64,
    /// Buffers in all.
    pub buffers: u64,
    /// Buffers that are not on the provider's free list.
    pub in_use: u64,
}

impl BindingInfo {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut next = || words.next();
        let info = Self {
            id: next()?.parse().ok()?,
            provider: next()?.to_owned(),
            ifname: Some(next()?.to_owned()).filter(|name| name != "-"),
            direction: next()?.to_owned(),
            buffer_size: next()?.parse().ok()?,
            buffers: next()?.parse().ok()?,
            in_use: next()?.parse().ok()?,
        };
        next().is_none().then_some(info)
    }
}

/// All live bindings. The list is for root.
///
/// # Errors
///
/// [`NotFound`](io::ErrorKind::NotFound) on a kernel without the list, or if debugfs is not mounted;
/// [`PermissionDenied`](io::ErrorKind::PermissionDenied) for others than root;
/// [`InvalidData`](io::ErrorKind::InvalidData) if the list looks otherwise.
pub fn bindings() -> io::Result<Vec<BindingInfo>> {
    parse_bindings(&fs::read_to_string(BINDINGS)?)
}

/// The live binding of this number.
///
/// # Errors
///
/// Those of [`bindings`]; [`NotFound`](io::ErrorKind::NotFound) also if there is none.
pub fn binding(id: u32) -> io::Result<BindingInfo> {
    bindings()?
        .into_iter()
        .find(|binding| binding.id == id)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no binding {id}")))
}

fn parse_bindings(text: &str) -> io::Result<Vec<BindingInfo>> {
    text.lines()
        .skip(1)
        .map(|line| {
            BindingInfo::parse(line).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{BINDINGS}: {line:?}"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "id provider ifname direction buffer_size buffers in_use\n";

    #[test]
    fn a_line_for_each_binding() {
        let text = format!("{HEADER}3 builtin eth0 rx 4096 256 17\n4 rust - tx 16384 8 0\n");
        let bindings = parse_bindings(&text).unwrap();
        assert_eq!(bindings.len(), 2);
        assert_eq!(bindings[0].ifname.as_deref(), Some("eth0"));
        assert_eq!(
            (bindings[0].id, bindings[0].buffers, bindings[0].in_use),
            (3, 256, 17)
        );
        assert_eq!(bindings[1].ifname, None);
        assert_eq!(
            (bindings[1].provider.as_str(), bindings[1].buffer_size),
            ("rust", 16384)
        );
    }

    #[test]
    fn no_bindings() {
        assert_eq!(parse_bindings(HEADER).unwrap(), []);
    }

    #[test]
    fn a_line_of_another_shape_is_an_error() {
        for line in [
            "1",
            "1 builtin eth0 rx 4096 256",
            "x builtin eth0 rx 1 2 3",
            "1 b e rx 1 2 3 4",
        ] {
            assert!(
                parse_bindings(&format!("{HEADER}{line}\n")).is_err(),
                "{line}"
            );
        }
    }
}
