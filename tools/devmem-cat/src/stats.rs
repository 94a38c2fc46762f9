// SPDX-License-Identifier: GPL-2.0

//! What is transferred: how far it is, and what came of it.

use std::io;
use std::io::Write;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;
use sha2::Digest;
use sha2::Sha256;

use crate::args::CommonArgs;
use crate::connection::Connection;
use crate::error::Fallible;
use crate::tell;

const MIB: f64 = (1 << 20) as f64;
const EVERY: Duration = Duration::from_secs(1);
/// How long nothing may come before it is asked why.
const STALLED: Duration = Duration::from_secs(3);

/// How far all connections together are.
pub struct Progress {
    bytes: AtomicU64,
    /// Connections that are there.
    live: AtomicU32,
    /// What all of it will be, if that is known.
    total: Option<u64>,
    tells: bool,
    over: Mutex<bool>,
    changed: Condvar,
}

impl Progress {
    /// Nothing yet, of so many bytes.
    pub fn new(args: &CommonArgs, total: Option<u64>) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            live: AtomicU32::new(0),
            total,
            tells: args.progress,
            over: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// Runs `f`. Meanwhile how far it is is told every second, and `stalled` is called once if there are connections
    /// and nothing comes.
    pub fn during<T>(&self, stalled: impl FnOnce() + Send, f: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            scope.spawn(|| self.watch(stalled));
            let _over = Over(self);
            f()
        })
    }

    fn watch(&self, stalled: impl FnOnce()) {
        let mut stalled = Some(stalled);
        let (mut before, mut moved) = (0, Instant::now());
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        while !*over {
            let waited = self.changed.wait_timeout_while(over, EVERY, |over| !*over);
            over = waited.unwrap_or_else(PoisonError::into_inner).0;
            let bytes = self.bytes.load(Ordering::Relaxed);
            let live = self.live.load(Ordering::Relaxed) > 0;
            if self.tells && live && !*over {
                tell::progress(&how_far(bytes, self.total, bytes - before));
            }
            if bytes != before || !live {
                moved = Instant::now();
            } else if moved.elapsed() >= STALLED {
                if let Some(stalled) = stalled.take() {
                    stalled();
                }
            }
            before = bytes;
        }
        tell::end_progress();
    }
}

/// Has the thread that watches end, also if the others panic.
struct Over<'p>(&'p Progress);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        *self.0.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

/// `now` is what came in the last second.
fn how_far(bytes: u64, total: Option<u64>, now: u64) -> String {
    let (done, rate) = (bytes as f64 / MIB, now as f64 / MIB);
    match total.filter(|&total| total > 0) {
        Some(total) => format!(
            "{done:.1} of {:.1} MiB, {:.0} %, {rate:.1} MiB/s",
            total as f64 / MIB,
            // 100 is the end, and not before.
            (bytes as f64 * 100.0 / total as f64).min(100.0).floor()
        ),
        None => format!("{done:.1} MiB, {rate:.1} MiB/s"),
    }
}

/// Counts what is transferred over a connection, and tells what came of it.
pub struct Stats<'p> {
    start: Instant,
    progress: &'p Progress,
    hasher: Option<Sha256>,
    /// Bytes so far.
    bytes: u64,
}

impl<'p> Stats<'p> {
    /// Starts the clock.
    pub fn new(args: &CommonArgs, progress: &'p Progress) -> Self {
        progress.live.fetch_add(1, Ordering::Relaxed);
        Self {
            start: Instant::now(),
            progress,
            hasher: args.sha256.then(Sha256::new),
            bytes: 0,
        }
    }

    /// Whether [`data`](Self::data) wants to see the bytes.
    pub fn wants_data(&self) -> bool {
        self.hasher.is_some()
    }

    /// The next bytes of the stream.
    pub fn data(&mut self, bytes: &[u8]) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
    }

    /// So many more have been transferred.
    pub fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tells what came of it: a line for people, and one of JSON for programs, if they are wanted. An error is for
    /// the caller to tell. `details` are numbers of this direction, by what they are called.
    pub fn finish(
        mut self,
        args: &CommonArgs,
        connection: &Connection,
        result: &Fallible<()>,
        details: &[(&str, &str, u64)],
    ) {
        let seconds = self.start.elapsed().as_secs_f64();
        let digest = self.hasher.take().map(|hasher| {
            let digest = hasher.finalize();
            digest.iter().map(|byte| format!("{byte:02x}")).collect()
        });
        if args.json {
            let line = json_line(
                self.bytes,
                seconds,
                &connection.peer,
                result,
                &digest,
                details,
            );
            // A line by one call. Nobody is left to be told that nobody listens.
            let _ = io::stdout().write_all(format!("{line}\n").as_bytes());
        }
        if result.is_err() || args.quiet {
            return;
        }
        let rate = self.bytes as f64 / MIB / seconds;
        let mut line = format!("{} bytes in {seconds:.1} s, {rate:.1} MiB/s", self.bytes);
        for (_, words, number) in details {
            line.push_str(&format!(", {number} {words}"));
        }
        if let Some(digest) = digest {
            line.push_str(&format!("\nSHA-256 {digest}"));
        }
        tell::line(&line);
    }
}

impl Drop for Stats<'_> {
    fn drop(&mut self) {
        self.progress.live.fetch_sub(1, Ordering::Relaxed);
    }
}

fn json_line(
    bytes: u64,
    seconds: f64,
    peer: &str,
    result: &Fallible<()>,
    digest: &Option<String>,
    details: &[(&str, &str, u64)],
) -> Value {
    let mut line = json!({
        "peer": peer,
        "bytes": bytes,
        "seconds": seconds,
        "error": result.as_ref().err().map(ToString::to_string),
    });
    for &(name, _, number) in details {
        line[name] = number.into();
    }
    if let Some(digest) = digest {
        line["sha256"] = digest.as_str().into();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is() {
        const M: u64 = 1 << 20;
        for (bytes, total, now, expected) in [
            (0, None, 0, "0.0 MiB, 0.0 MiB/s"),
            (3 * M / 2, None, M, "1.5 MiB, 1.0 MiB/s"),
            (M, Some(4 * M), M, "1.0 of 4.0 MiB, 25 %, 1.0 MiB/s"),
            (4 * M - 1, Some(4 * M), 0, "4.0 of 4.0 MiB, 99 %, 0.0 MiB/s"),
            (5 * M, Some(4 * M), 0, "5.0 of 4.0 MiB, 100 %, 0.0 MiB/s"),
            (0, Some(0), 0, "0.0 MiB, 0.0 MiB/s"),
        ] {
            assert_eq!(how_far(bytes, total, now), expected);
        }
    }

    #[test]
    fn a_line_for_programs() {
        let details = [("frags", "frags in device memory", 3)];
        let line = json_line(5, 0.5, "[::1]:2", &Ok(()), &Some("ab".into()), &details);
        let expected = json!({
            "peer": "[::1]:2", "bytes": 5, "seconds": 0.5, "error": null, "frags": 3, "sha256": "ab"
        });
        assert_eq!(line, expected);
        let failed = json_line(5, 0.5, "", &Err("a \"cut\"\nstream".into()), &None, &[]);
        assert_eq!(failed["error"], "a \"cut\"\nstream");
        assert!(!failed.to_string().contains('\n'));
    }
}
