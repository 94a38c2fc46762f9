// SPDX-License-Identifier: GPL-2.0

//! The sockets that hold device memory: a row for each binding of each, of no more than 80 columns, or a line of JSON for
//! each socket.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use devmem::diag::Held;
use devmem::diag::Holder;
use serde_json::Value;
use serde_json::json;

/// The width of a terminal.
const COLUMNS: usize = 80;

pub const HEADER: &str = "    ID  TOKENS    HELD  QUEUED PROCESS            CONNECTION";
/// And where it does if it is in lines of its own.
const INDENT: usize = 7;

/// Who has a socket: the first process that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    command: String,
}

/// Those of these bindings, with what they hold of them.
pub fn of_bindings(mut holders: Vec<Holder>, ids: &BTreeSet<u32>) -> Vec<Holder> {
    let of_them = |held: &Held| held.id.is_none_or(|id| ids.contains(&id));
    for holder in &mut holders {
        holder.held.retain(of_them);
    }
    holders.retain(|holder| holder.held.iter().any(|held| held.id.is_some()));
    holders
}

/// Looks for the processes of sockets, as far as it is allowed to see them.
pub fn processes(holders: &[Holder]) -> BTreeMap<u32, Process> {
    let mut wanted: BTreeSet<u32> = holders.iter().map(|holder| holder.inode).collect();
    // What nobody has.
    wanted.remove(&0);
    let mut found = BTreeMap::new();
    // Processes come and go meanwhile.
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if wanted.is_empty() {
            break;
        }
        let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse().ok()) else {
            continue;
        };
        for inode in sockets(&entry.path()) {
            if wanted.remove(&inode) {
                // Cut by the kernel, maybe within a character.
                let command = fs::read(entry.path().join("comm")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command);
                let command = printable(command.trim_end_matches('\n'));
                found.insert(inode, Process { pid, command });
            }
        }
    }
    found
}

/// The inodes of the sockets that a process has.
fn sockets(process: &Path) -> Vec<u32> {
    let fds = fs::read_dir(process.join("fd")).into_iter().flatten();
    let links = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links.filter_map(|link| inode_of(link.to_str()?)).collect()
}

fn inode_of(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// Processes and interfaces get any names. Beyond these characters there are some that do something to a terminal, and
/// others that take no column there, or two.
pub fn printable(name: &str) -> String {
    let is_plain = |c: char| c == ' ' || c.is_ascii_graphic();
    let shown = |c| if is_plain(c) { c } else { '?' };
    name.chars().map(shown).collect()
}

/// Rows of the table, one for each binding, and lines for connections that do not fit into them.
pub fn text(holder: &Holder, process: Option<&Process>) -> Vec<String> {
    let process = process.map_or("-".into(), |p| format!("{} {}", p.pid, p.command));
    let (local, remote) = (holder.local.to_string(), holder.remote.to_string());
    let mut lines = Vec::new();
    for held in &holder.held {
        let id = held.id.map_or("others".into(), |id| id.to_string());
        let more = if holder.partial { "+" } else { "" };
        let row = format!(
            "{id:>6} {:>7} {:>7} {:>7} {process:<18.18}",
            held.tokens,
            size(held.bytes),
            size(held.queued) + more,
        );
        lines.extend(with_connection(&row, &local, &remote));
    }
    lines
}

/// A row, and the connection at its end or, if it is too long for that, below. Numbers that do not fit into their columns
/// make it longer.
fn with_connection(row: &str, local: &str, remote: &str) -> Vec<String> {
    let len = local.len() + 1 + remote.len();
    let below = |text: &str| format!("{:INDENT$}{text}", "");
    if row.len() + 1 + len <= COLUMNS {
        return vec![format!("{row} {local} {remote}")];
    }
    let mut lines = vec![row.trim_end().to_owned()];
    match INDENT + len <= COLUMNS {
        true => lines.push(below(&format!("{local} {remote}"))),
        false => lines.extend([below(local), below(remote)]),
    }
    lines
}

/// Bytes, in at most six characters.
fn size(bytes: u64) -> String {
    let mut units = ["K", "M", "G", "T", "P", "E"].into_iter();
    let mut unit = "";
    let mut left = bytes;
    // The part of the unit above that is not shown is cut off.
    while left >= 10_000 {
        left >>= 10;
        unit = units.next().unwrap_or(unit);
    }
    format!("{left}{unit}")
}

/// All that is known of a socket.
pub fn json(holder: &Holder, process: Option<&Process>) -> Value {
    let held = holder.held.iter().map(|held| {
        json!({
            "id": held.id,
            "tokens": held.tokens,
            "bytes": held.bytes,
            "queued": held.queued,
        })
    });
    let mut line = json!({
        "local": holder.local.to_string(),
        "remote": holder.remote.to_string(),
        "unread": holder.unread,
        "uid": holder.uid,
        "partial": holder.partial,
        "held": held.collect::<Vec<_>>(),
    });
    if let Some(process) = process {
        line["pid"] = process.pid.into();
        line["command"] = process.command.as_str().into();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_above_its_columns() {
        for (name, end) in [("ID", 6), ("TOKENS", 14), ("HELD", 22), ("QUEUED", 30)] {
            assert_eq!(HEADER.find(name).map(|at| at + name.len()), Some(end));
        }
        assert_eq!(HEADER.find("PROCESS"), Some(31));
        let row = format!("{:>6} {:>7} {:>7} {:>7} {:<18}", 1, 2, 3, 4, "5 a");
        assert_eq!(HEADER.find("CONNECTION"), Some(row.len() + 1));
    }

    #[test]
    fn sizes_in_six_characters() {
        assert_eq!(size(0), "0");
        assert_eq!(size(9999), "9999");
        assert_eq!(size(10_240), "10K");
        assert_eq!(size(64 << 20), "64M");
        assert_eq!(size(9_999 << 10), "9999K");
        assert_eq!(size(u64::MAX), "15E");
        assert!((0..64).all(|bit| size(1 << bit).len() <= 6));
    }

    #[test]
    fn connections_of_any_length() {
        let row = format!("{:>6} {:>7} {:>7} {:>7} {:<18}", 1, 2, 3, 4, "5 a");
        let lines = |local, remote| with_connection(&row, local, remote);
        let short = lines("192.0.2.1:5001", "192.0.2.2:40000");
        assert_eq!((short.len(), short[0].len()), (1, 80));
        assert_eq!(short[0].find("192"), HEADER.find("CONNECTION"));
        // A binding of number 1 000 000.
        let wide = with_connection(&format!("1{row}"), "192.0.2.1:5001", "192.0.2.2:40000");
        assert_eq!(wide.len(), 2);
        let longer = lines("192.0.2.1:50001", "192.0.2.2:40000");
        assert_eq!(longer[0], row.trim_end());
        assert_eq!(longer[1], "       192.0.2.1:50001 192.0.2.2:40000");
        let longest = format!("[{}]:65535", ["ffff"; 8].join(":"));
        let longest = lines(&longest, &longest);
        assert_eq!(longest.len(), 3);
        assert!(longest.iter().all(|line| line.len() <= COLUMNS));
    }

    #[test]
    fn links_of_sockets() {
        assert_eq!(inode_of("socket:[4242]"), Some(4242));
        assert_eq!(inode_of("pipe:[4242]"), None);
        assert_eq!(inode_of("/tmp/socket:[4242]"), None);
        assert_eq!(printable("a\x1b[2J b"), "a?[2J b");
        assert_eq!(printable("\u{202e}\u{9b}\u{4e16}\u{fffd}"), "????");
    }
}
