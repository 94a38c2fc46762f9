// SPDX-License-Identifier: GPL-2.0

//! Ending by a signal, in whatever state: the first one aborts the connections, so that who waits for these comes to
//! an end by himself. Who waits for something else, a pipe or a name server, has no more than a moment; and none
//! after the second signal. Then what is left to be undone is undone here. After a third one nothing is.

use std::process;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

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
    ctrlc::set_handler(|| match COUNT.fetch_add(1, Ordering::SeqCst) {
        0 => {
            connection::abort_all();
            thread::spawn(end);
        }
        1 => {
            *AT_ONCE.lock().unwrap_or_else(PoisonError::into_inner) = true;
            CHANGED.notify_all();
        }
        _ => process::exit(STATUS.into()),
    })
    .map_err(context("signals"))
}

fn end() {
    let at_once = AT_ONCE.lock().unwrap_or_else(PoisonError::into_inner);
    drop(CHANGED.wait_timeout_while(at_once, MOMENT, |at_once| !*at_once));
    output::remove_what_is_empty();
    undo::all();
    tell::end_progress();
    tell::say("interrupted");
    process::exit(STATUS.into());
}
