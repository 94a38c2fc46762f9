// SPDX-License-Identifier: GPL-2.0

//! Ending by a signal, in whatever state: the first one aborts the connections, so that who waits for these comes to
//! an end by himself. Who waits for something else, a pipe or a name server, has no more than a moment; and none
//! after the second signal. Then what is left to be undone is undone here. After a third one nothing is.

use std::fs;
use std::process;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;

use crate::connection;
use crate::error::Fallible;
use crate::error::context;
use crate::output;
use crate::tell;
use crate::undo;

/// The exit status.
pub const STATUS: u8 = 130;

/// How long who does not wait for a connection may take.
const MOMENT: Duration = Duration::from_millis(500);

static COUNT: AtomicU32 = AtomicU32::new(0);
/// Whether a second signal has come, which ends the moment.
static AT_ONCE: Mutex<bool> = Mutex::new(false);
static CHANGED: Condvar = Condvar::new();

/// Whether there was one.
pub fn came() -> bool {
    COUNT.load(Ordering::SeqCst) > 0
}

/// From now on signals end it in good order.
pub fn end_by_it() -> Fallible<()> {
    // Of all threads that are to come. Without /proc nobody can tell.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if is_ignored(&status, Signal::SIGHUP) {
        let mut ignored = SigSet::empty();
        ignored.add(Signal::SIGHUP);
        ignored.thread_block().map_err(context("signals"))?;
    }
    ctrlc::set_handler(|| match COUNT.fetch_add(1, Ordering::SeqCst) {
        0 => {
            connection::abort_all();
            // Who cannot have a thread does it here.
            if thread::Builder::new().spawn(end).is_err() {
                end();
            }
        }
        1 => {
            *AT_ONCE.lock().unwrap_or_else(PoisonError::into_inner) = true;
            CHANGED.notify_all();
        }
        _ => process::exit(STATUS.into()),
    })
    .map_err(context("signals"))
}

/// Whether whoever started this wants a signal ignored, as `nohup` does of SIGHUP: `status` is that of the process.
fn is_ignored(status: &str, signal: Signal) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & (1 << (signal as i32 - 1)) != 0)
}

fn end() {
    let at_once = AT_ONCE.lock().unwrap_or_else(PoisonError::into_inner);
    drop(CHANGED.wait_timeout_while(at_once, MOMENT, |at_once| !*at_once));
    output::remove_what_is_empty();
    undo::all();
    // Whoever is to be told may not listen.
    let (done, is_done) = mpsc::channel();
    let teller = thread::Builder::new().spawn(move || {
        tell::end_progress();
        tell::say("interrupted");
        done.send(())
    });
    if teller.is_ok() {
        let _ = is_done.recv_timeout(MOMENT);
    }
    process::exit(STATUS.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_whoever_starts_it_wants_ignored() {
        let status = "SigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, Signal::SIGHUP));
        assert!(is_ignored(status, Signal::SIGPIPE));
        assert!(!is_ignored(status, Signal::SIGINT));
        assert!(!is_ignored("Name:\tx\n", Signal::SIGHUP));
    }
}
