// SPDX-License-Identifier: GPL-2.0

//! What the library has to tell that is no error of a call, on standard error.

use log::Level;
use log::LevelFilter;
use log::Log;
use log::Metadata;
use log::Record;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("devmem-demo: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// From now on it goes there.
pub fn to_stderr() {
    // It can only fail for a second one.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
