// SPDX-License-Identifier: GPL-2.0

//! What the kernel says of itself: its log, and its symbols.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::OpenOptionsExt;

use devmem_testlib::Provider;

/// What a sound kernel never says.
const COMPLAINTS: [&str; 14] = [
    "WARNING:",
    "BUG:",
    "KASAN:",
    "UBSAN:",
    "KCSAN:",
    "ODEBUG:",
    "DMA-API:",
    "refcount_t:",
    "rust_kernel: panicked",
    "Call Trace:",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "scheduling while atomic",
];

/// The kernel's log, from when it was opened.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Opens it at its end.
    pub fn open() -> io::Result<Self> {
        let mut file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// The first complaint since the last call.
    pub fn complaint(&mut self) -> io::Result<Option<String>> {
        let mut buffer = [0; 8192];
        let mut first = None;
        loop {
            let len = match self.0.read(&mut buffer) {
                Ok(len) => len,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(first),
                // Messages were lost: reading goes on at the oldest there is.
                Err(err) if err.raw_os_error() == Some(libc::EPIPE) => continue,
                Err(err) => return Err(err),
            };
            let message = String::from_utf8_lossy(&buffer[..len]);
            if first.is_none() && COMPLAINTS.iter().any(|what| message.contains(what)) {
                first = Some(message.trim_end().to_owned());
            }
        }
    }
}

/// How many functions of a provider these instructions lie in.
pub fn functions_of(provider: Provider, instructions: &BTreeSet<u64>) -> io::Result<usize> {
    let text = fs::read_to_string("/proc/kallsyms")?;
    let mut symbols: Vec<_> = text.lines().filter_map(symbol).collect();
    symbols.sort_unstable();
    let reached: BTreeSet<_> = instructions
        .iter()
        .filter_map(|&pc| {
            let after = symbols.partition_point(|&(address, _, _)| address <= pc);
            let &(address, name, module) = symbols.get(after.checked_sub(1)?)?;
            let own = match provider {
                Provider::Module => module == "[devmem_provider]",
                Provider::Builtin => module.is_empty() && name.contains("net_devmem_"),
            };
            own.then_some(address)
        })
        .collect();
    Ok(reached.len())
}

/// The address, the name and the module of a function.
fn symbol(line: &str) -> Option<(u64, &str, &str)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    if !matches!(words.next()?, "t" | "T") {
        return None;
    }
    Some((address, words.next()?, words.next().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_told_from_data() {
        let line = "ffffffffc0000000 t bind\t[devmem_provider]";
        assert_eq!(
            symbol(line),
            Some((0xffff_ffff_c000_0000, "bind", "[devmem_provider]"))
        );
        assert_eq!(
            symbol("ffffffff81000000 T _text"),
            Some((0xffff_ffff_8100_0000, "_text", ""))
        );
        assert_eq!(symbol("ffffffff82000000 D data"), None);
    }
}
