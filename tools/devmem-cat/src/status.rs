// SPDX-License-Identifier: GPL-2.0

//! The bindings there are, and what happens to them: a line for each, of no more than 80 columns, or of JSON; and who holds
//! their memory.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::io;
use std::io::Write;

use devmem::Error;
use devmem::diag;
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
use crate::holders;
use crate::tell;

/// Columns of a terminal.
const WIDTH: usize = 80;

/// Lists the bindings, and with `--follow` what happens to them until a signal ends it, or nobody reads it any more.
pub fn run(args: &StatusArgs) -> Fallible<()> {
    match show(args) {
        Err(err) if is_broken_pipe(&*err) => Ok(()),
        other => other,
    }
}

fn is_broken_pipe(err: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let err = err.downcast_ref::<io::Error>();
    err.is_some_and(|err| err.kind() == io::ErrorKind::BrokenPipe)
}

fn show(args: &StatusArgs) -> Fallible<()> {
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
    let bindings = bindings.map_err(|err| what_it_takes(&err))?;

    let mut out = io::stdout();
    let mut of_interface = OfInterface::new(ifindex, &bindings);
    if !args.json {
        put(&mut out, &row(HEADER))?;
    }
    for binding in &bindings {
        put(&mut out, &line(binding, None, args.json))?;
    }
    let ids = bindings.iter().map(|binding| binding.id).collect();
    put_holders(&mut out, &ids, args.json)?;
    for event in events.into_iter().flatten() {
        match event {
            Ok(event) if !of_interface.has(&event) => (),
            Ok(Event { kind, binding, .. }) => {
                put(&mut out, &line(&binding, Some(kind), args.json))?
            }
            Err(Error::Lost) => tell::say("some events were lost"),
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// Who holds the memory of these bindings, as far as it is told.
fn put_holders(out: &mut impl Write, ids: &BTreeSet<u32>, is_json: bool) -> Fallible<()> {
    let holders = match diag::holders() {
        Ok(holders) => holders::of_bindings(holders, ids),
        // There is no telling, in a kernel without CONFIG_INET_TCP_DIAG.
        Err(err) if err.errno() == Some(nix::errno::Errno::ENOENT as i32) => return Ok(()),
        // Nor here, and there is more to be told than that.
        Err(err) => {
            tell::say(format_args!("who holds the memory: {err}"));
            return Ok(());
        }
    };
    let processes = holders::processes(&holders);
    if !is_json && !holders.is_empty() {
        put(out, &format!("\n{}", holders::HEADER))?;
    }
    for holder in &holders {
        let process = processes.get(&holder.inode);
        match is_json {
            true => put(out, &holders::json(holder, process).to_string())?,
            false => put(out, &holders::text(holder, process).join("\n"))?,
        }
    }
    Ok(())
}

/// Whose events are asked for.
struct OfInterface {
    ifindex: Option<u32>,
    /// The bindings that the interface has, or had: one that has lost its device tells only its number.
    ids: HashSet<u32>,
}

impl OfInterface {
    fn new(ifindex: Option<u32>, bindings: &[BindingStatus]) -> Self {
        let ids = bindings.iter().map(|binding| binding.id).collect();
        Self { ifindex, ids }
    }

    fn has(&mut self, event: &Event) -> bool {
        let is_new = event.kind == EventKind::Added;
        self.has_one(event.binding.id, event.binding.ifindex, is_new)
    }

    fn has_one(&mut self, id: u32, ifindex: Option<u32>, is_new: bool) -> bool {
        if self.ifindex.is_none() {
            return true;
        }
        if ifindex == self.ifindex {
            self.ids.insert(id);
        } else if is_new {
            // Numbers come again.
            self.ids.remove(&id);
        }
        self.ids.contains(&id)
    }
}

fn what_it_takes(err: &Error) -> String {
    let is_missing = match err {
        Error::NoGroup(_) => true,
        err => err.errno() == Some(nix::errno::Errno::EOPNOTSUPP as i32),
    };
    match is_missing {
        true => "this kernel tells nothing of bindings\nHint: it takes one with the patches of devmem_provider.".into(),
        false => format!("bindings: {err}"),
    }
}

fn put(out: &mut impl Write, line: &str) -> io::Result<()> {
    writeln!(out, "{line}")?;
    out.flush()
}

const HEADER: [&str; 8] = [
    "ID",
    "INTERFACE",
    "",
    "QUEUES",
    "PAGE",
    "IN USE",
    "EMPTY",
    "PROVIDER",
];

fn line(binding: &BindingStatus, event: Option<EventKind>, is_json: bool) -> String {
    let interface = binding.ifindex.and_then(|ifindex| {
        let name = if_indextoname(ifindex).ok()?;
        Some(name.to_string_lossy().into_owned())
    });
    match is_json {
        true => json(binding, interface.as_deref(), event).to_string(),
        false => {
            let interface = interface.as_deref().map(holders::printable);
            text(binding, interface.as_deref(), event)
        }
    }
}

/// A row of the table, no longer than a line. Numbers need not fit into their columns: then the others move.
fn row(cells: [&str; 8]) -> String {
    let [
        id,
        interface,
        direction,
        queues,
        page,
        in_use,
        empty,
        provider,
    ] = cells;
    let row = format!(
        "{id:>6} {interface:<15.15} {direction:<2} {queues:<10} {page:>4} {in_use:>13} {empty:>5} {provider}"
    );
    row.chars().take(WIDTH).collect()
}

fn text(binding: &BindingStatus, interface: Option<&str>, event: Option<EventKind>) -> String {
    let queues = match (binding.state, event) {
        (_, Some(EventKind::Deleted)) => "gone".into(),
        (_, Some(EventKind::Exhausted)) => "exhausted".into(),
        (_, Some(EventKind::Available)) => "available".into(),
        (State::Bound, _) if binding.queues.is_empty() => match (binding.shared, binding.local) {
            (true, _) => "shared".into(),
            (false, true) => "local".into(),
            (false, false) => "-".into(),
        },
        (State::Bound, _) => cut(ranges(&binding.queues)),
        (state, _) => state_name(state).into(),
    };
    let in_use = match (binding.in_use, binding.buffers) {
        (Some(in_use), Some(buffers)) => format!("{in_use}/{buffers}"),
        _ => "-".into(),
    };
    let page = binding.rx_page_size.map(size);
    let empty = binding.counters.exhausted.map(|times| times.to_string());
    row([
        &binding.id.to_string(),
        interface.unwrap_or("-"),
        if binding.rx { "rx" } else { "tx" },
        &queues,
        page.as_deref().unwrap_or("-"),
        &in_use,
        empty.as_deref().unwrap_or("-"),
        &binding.provider,
    ])
}

/// Bytes of a buffer, which are a power of two.
fn size(bytes: u32) -> String {
    match bytes {
        0..0x10_0000 => format!("{}K", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{}M", bytes >> 20),
        0x4000_0000.. => format!("{}G", bytes >> 30),
    }
}

/// Queues as there is room for, with a mark where there are more.
fn cut(queues: String) -> String {
    const ROOM: usize = 10;
    match queues.len() {
        0..=ROOM => queues,
        _ => format!("{}+", &queues[..ROOM - 1]),
    }
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
        "local_binding": binding.local,
    });
    let told = [
        ("event", event.map(|event| event_name(event).into())),
        ("interface", interface.map(Value::from)),
        ("rx_page_size", binding.rx_page_size.map(Value::from)),
        ("max_tokens", binding.max_tokens.map(Value::from)),
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
    fn the_columns_are_below_their_headers() {
        let cells = [
            "3",
            "eth0",
            "rx",
            "4",
            "4K",
            "512/16384",
            "0",
            "devmem_provider",
        ];
        let rows = [
            "    ID INTERFACE          QUEUES     PAGE        IN USE EMPTY PROVIDER",
            "     3 eth0            rx 4            4K     512/16384     0 devmem_provider",
        ];
        assert_eq!([row(HEADER), row(cells)], rows);
    }

    #[test]
    fn a_row_is_no_longer_than_a_line() {
        let number = u32::MAX.to_string();
        let in_use = format!("{number}/{number}");
        let cells = [
            &number,
            "fifteen-letters-and-more",
            "rx",
            &cut(ranges(&[1, 3, 5, 7, 9, 11])),
            &size(1 << 19),
            &in_use,
            "12345",
            "devmem_provider",
        ];
        let row = row(cells);
        assert_eq!(row.len(), WIDTH);
        assert!(
            row.contains(" fifteen-letters rx 1,3,5,7,9+ 512K "),
            "{row}"
        );
        assert!(row.contains(&format!(" {in_use} 12345 devmem")), "{row}");
    }

    #[test]
    fn sizes_of_buffers() {
        assert_eq!([1 << 12, 1 << 20, 1 << 30].map(size), ["4K", "1M", "1G"]);
        assert_eq!(
            [1 << 19, 1 << 29, 1 << 31].map(size),
            ["512K", "512M", "2G"]
        );
    }

    #[test]
    fn events_of_an_interface() {
        let mut all = OfInterface::new(None, &[]);
        assert!(all.has_one(1, None, false));

        let mut of_two = OfInterface::new(Some(2), &[]);
        assert!(!of_two.has_one(7, Some(3), true));
        assert!(!of_two.has_one(7, None, false));
        assert!(of_two.has_one(8, Some(2), true));
        // It has lost its device, and is gone.
        assert!(of_two.has_one(8, None, false));
        assert!(!of_two.has_one(8, Some(3), true));
        assert!(!of_two.has_one(8, None, false));
    }
}
