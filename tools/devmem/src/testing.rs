// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What several tests need.

use std::io;
use std::net::IpAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Mutex;

use log::LevelFilter;
use log::Log;
use log::Metadata;
use log::Record;

/// What was logged, by all tests of the process.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LOGGED.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// From now on what is logged is kept.
pub(crate) fn start_log() {
    // Another test may have done it.
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

/// Whether something was logged with this in it.
pub(crate) fn was_logged(part: &str) -> bool {
    LOGGED
        .lock()
        .unwrap()
        .iter()
        .any(|line| line.contains(part))
}

/// Both ends of a connection on this machine.
pub(crate) fn connection(ip: IpAddr) -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((ip, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}
