// SPDX-License-Identifier: GPL-2.0

//! Memory of a binding that is stuck in connections, whose users do not read, or do not go on.

use std::io;
use std::io::Write;

use devmem::Error;
use devmem::netdev::Netdev;
use devmem::status::Flushed;
use nix::errno::Errno;
use serde_json::Value;
use serde_json::json;

use crate::args::FlushArgs;
use crate::error::Fallible;
use crate::tell;

/// Aborts the connections that hold memory of the binding, and tells how many that were and what came of it.
pub fn run(args: &FlushArgs) -> Fallible<()> {
    let mut netdev = Netdev::open()?;
    let flushed = netdev
        .flush(args.id)
        .map_err(|err| why_not(&err, args.id))?;
    if let Some(warning) = netdev.warning() {
        tell::say(warning);
    }

    let line = match args.json {
        true => json(args.id, &flushed).to_string(),
        false => text(&flushed),
    };
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}

fn why_not(err: &Error, id: u32) -> String {
    let errno = err.errno().map(Errno::from_raw);
    match errno {
        Some(Errno::ENOENT) => format!("there is no binding {id} here"),
        Some(Errno::EOPNOTSUPP) => {
            "this kernel flushes no bindings\nHint: it takes one with the patches of devmem_provider.".into()
        }
        _ => format!("binding {id}: {err}"),
    }
}

fn count(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

fn text(flushed: &Flushed) -> String {
    let mut text = format!("{} aborted", count(flushed.aborted, "connection"));
    if let Some(returned) = flushed.returned {
        text += &format!(", {} came back", count(returned, "buffer"));
    }
    if let Some(outstanding) = flushed.outstanding {
        text += &format!(", {outstanding} still out");
    }
    text
}

/// All there is, but what is not told.
fn json(id: u32, flushed: &Flushed) -> Value {
    let mut line = json!({ "id": id, "aborted": flushed.aborted });
    let told = [
        ("returned", flushed.returned),
        ("outstanding", flushed.outstanding),
    ];
    for (name, value) in told {
        if let Some(value) = value {
            line[name] = value.into();
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_and_many() {
        assert_eq!(count(0, "buffer"), "0 buffers");
        assert_eq!(count(1, "buffer"), "1 buffer");
        assert_eq!(count(2, "connection"), "2 connections");
    }

    #[test]
    fn the_reason_is_told() {
        let refused = |errno: Errno| Error::Refused {
            errno: errno as i32,
            ack: Box::default(),
        };
        assert_eq!(
            why_not(&refused(Errno::ENOENT), 7),
            "there is no binding 7 here"
        );
        assert!(why_not(&refused(Errno::EPERM), 7).starts_with("binding 7: "));
    }
}
