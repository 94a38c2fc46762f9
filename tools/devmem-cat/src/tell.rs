// SPDX-License-Identifier: GPL-2.0

//! What is told, on standard error: whole lines, each by one call, so that they stay whole where several
//! programs share a terminal; and there, below them, a line that is rewritten.

use std::fmt::Display;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::sync::Mutex;
use std::sync::PoisonError;

use log::Level;
use log::LevelFilter;
use log::Log;
use log::Metadata;
use log::Record;

/// Begins a line anew.
const CLEAR: &str = "\r\x1b[K";

/// Whether the line that is rewritten stands there.
static STANDS: Mutex<bool> = Mutex::new(false);

/// Tells a line, by the program's name.
pub fn say(text: impl Display) {
    line(&format!("devmem-cat: {text}"));
}

/// Tells a line.
pub fn line(text: &str) {
    put(text, false);
}

/// How far it is: on a terminal in the place of what this told before, elsewhere by a line.
pub fn progress(text: &str) {
    put(text, io::stderr().is_terminal());
}

/// Takes away how far it was.
pub fn end_progress() {
    let mut stands = STANDS.lock().unwrap_or_else(PoisonError::into_inner);
    if std::mem::take(&mut *stands) {
        // Nobody is left to be told of it.
        let _ = io::stderr().write_all(CLEAR.as_bytes());
    }
}

fn put(text: &str, stays_open: bool) {
    let mut stands = STANDS.lock().unwrap_or_else(PoisonError::into_inner);
    // Another program may have put a line there.
    let clear = if *stands || stays_open { CLEAR } else { "" };
    let end = if stays_open { "" } else { "\n" };
    *stands = stays_open;
    let _ = io::stderr().write_all(format!("{clear}{text}{end}").as_bytes());
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say(record.args());
        }
    }

    fn flush(&self) {}
}

/// What the library has to tell that is no error of a call is told like that, too.
pub fn also_for_the_library() {
    // It can only fail for a second one.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
