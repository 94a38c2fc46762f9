// SPDX-License-Identifier: GPL-2.0

//! The bindings there are, and what happens to them: a line for each, of no more than 80 columns, or of JSON.

use std::io;
use std::io::Write;

use devmem::Error;
use devmem::netdev::Netdev;
use devmem::status::BindingStatus;
use devmem::status::Event;
use devmem::status::EventKind;
use devmem::status::Events;
use devmem::status::State;
use nix::net::if_::if_indextoname;
use nix::net::if_::if_nametoindex;
use serde_json::Value;
use serde_json::json;

use crate::args::StatusArgs;
use crate::error::Fallible;
use crate::error::context;
use crate::tell;

/// Lists the bindings, and with `--follow` what happens to them until a signal ends it.
pub fn run(args: &StatusArgs) -> Fallible<()> {
    let ifindex = match &args.interface {
        Some(name) => Some(if_nametoindex(name.as_str()).map_err(context(name))?),
        None => None,
    };
    // Before it is asked what there is, so that nothing is missed.
    let events = match args.follow {
        true => Some(Events::open().map_err(|err| what_it_takes(&err))?),
        false => None,
    };
    let mut netdev = Netdev::open()?;
    let bindings = match ifindex {
        Some(ifindex) => netdev.bindings_of(ifindex),
        None => netdev.bindings(),
    };

    let mut out = io::stdout();
    if !args.json {
        put(&mut out, HEADER)?;
    }
    for binding in bindings.map_err(|err| what_it_takes(&err))? {
        put(&mut out, &line(&binding, None, args.json))?;
    }
    for event in events.into_iter().flatten() {
        match event {
            // One that has lost its device tells only its number.
            Ok(Event { binding, .. }) if ifindex.is_some() && binding.ifindex != ifindex => (),
            Ok(Event { kind, binding, .. }) => {
                put(&mut out, &line(&binding, Some(kind), args.json))?
            }
            Err(Error::Lost) => tell::say("some events were lost"),
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

fn what_it_takes(err: &Error) -> String {
    match err {
        Error::NoGroup(_) => "this kernel tells nothing of bindings".into(),
        err if err.errno() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => {
            "this kernel tells nothing of bindings".into()
        }
        err => format!("bindings: {err}"),
    }
}

fn put(out: &mut impl Write, line: &str) -> io::Result<()> {
    writeln!(out, "{line}")?;
    out.flush()
}

const HEADER: &str = "    ID INTERFACE          QUEUES     PAGE        IN USE EMPTY PROVIDER";

fn line(binding: &BindingStatus, event: Option<EventKind>, is_json: bool) -> String {
    let interface = binding.ifindex.and_then(|ifindex| {
        let name = if_indextoname(ifindex).ok()?;
        Some(name.to_string_lossy().into_owned())
    });
    match is_json {
        true => json(binding, interface.as_deref(), event).to_string(),
        false => text(binding, interface.as_deref(), event),
    }
}

/// A row of the table. What does not fit is cut, but the last column.
fn text(binding: &BindingStatus, interface: Option<&str>, event: Option<EventKind>) -> String {
    let or_dash = |number: Option<u64>| number.map_or("-".into(), |number| number.to_string());
    let queues = match (binding.state, event) {
        (_, Some(EventKind::Deleted)) => "gone".into(),
        (_, Some(EventKind::Exhausted)) => "exhausted".into(),
        (_, Some(EventKind::Available)) => "available".into(),
        (State::Bound, _) if binding.queues.is_empty() => match binding.shared {
            true => "shared".into(),
            false => "-".into(),
        },
        (State::Bound, _) => ranges(&binding.queues),
        (state, _) => state_name(state).into(),
    };
    let in_use = match (binding.in_use, binding.buffers) {
        (Some(in_use), Some(buffers)) => format!("{in_use}/{buffers}"),
        _ => "-".into(),
    };
    let page = binding.rx_page_size.map(|size| format!("{}K", size >> 10));
    format!(
        "{:>6} {:<15.15} {:<2} {:<10.10} {:>4} {:>13} {:>5} {:.15}",
        binding.id,
        interface.unwrap_or("-"),
        if binding.rx { "rx" } else { "tx" },
        queues,
        page.as_deref().unwrap_or("-"),
        in_use,
        or_dash(binding.counters.exhausted),
        binding.provider,
    )
}

/// Numbers, with those that follow each other as one.
fn ranges(numbers: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text = ranges.iter().map(|&(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Bound => "bound",
        State::Unbound => "unbound",
        State::Revoked => "revoked",
        _ => "other",
    }
}

fn event_name(event: EventKind) -> &'static str {
    match event {
        EventKind::Added => "added",
        EventKind::Deleted => "deleted",
        EventKind::Unbound => "unbound",
        EventKind::Revoked => "revoked",
        EventKind::Exhausted => "exhausted",
        EventKind::Available => "available",
        _ => "other",
    }
}

/// All there is, but what is not told.
fn json(binding: &BindingStatus, interface: Option<&str>, event: Option<EventKind>) -> Value {
    let counters = &binding.counters;
    let seconds = counters.exhausted_time.map(|time| time.as_secs_f64());
    let mut line = json!({
        "id": binding.id,
        "direction": if binding.rx { "rx" } else { "tx" },
        "state": state_name(binding.state),
        "provider": binding.provider,
        "queues": binding.queues,
        "shared": binding.shared,
    });
    let told = [
        ("event", event.map(|event| event_name(event).into())),
        ("interface", interface.map(Value::from)),
        ("rx_page_size", binding.rx_page_size.map(Value::from)),
        ("peer_to_peer", binding.peer_to_peer.map(Value::from)),
        ("buffers", binding.buffers.map(Value::from)),
        ("in_use", binding.in_use.map(Value::from)),
        ("alloc", counters.alloc.map(Value::from)),
        ("recycle", counters.recycle.map(Value::from)),
        ("exhausted", counters.exhausted.map(Value::from)),
        ("exhausted_seconds", seconds.map(Value::from)),
        ("tx_bytes", counters.tx_bytes.map(Value::from)),
    ];
    for (name, value) in told {
        if let Some(value) = value {
            line[name] = value;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_in_a_row() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[u32::MAX, 0]), "4294967295,0");
    }

    #[test]
    fn the_header_is_above_its_columns() {
        assert_eq!(HEADER.find("INTERFACE"), Some(7));
        assert_eq!(HEADER.find("QUEUES"), Some(26));
        assert_eq!(HEADER.find("PROVIDER"), Some(62));
        assert_eq!(HEADER.find("IN USE").map(|at| at + 6), Some(55));
        assert!(HEADER.len() + "devmem_provider".len() - "PROVIDER".len() <= 80);
    }
}
