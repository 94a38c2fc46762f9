// SPDX-License-Identifier: GPL-2.0

//! What was transferred.

use std::time::Duration;
use std::time::Instant;

use sha2::Digest;
use sha2::Sha256;

use crate::args::CommonArgs;

const MIB: f64 = (1 << 20) as f64;
const EVERY: Duration = Duration::from_secs(1);

/// Counts what is transferred, and tells of it on standard error.
pub struct Stats {
    start: Instant,
    told: Instant,
    progress: bool,
    quiet: bool,
    hasher: Option<Sha256>,
    /// Bytes so far.
    pub bytes: u64,
}

impl Stats {
    /// Starts the clock.
    pub fn new(args: &CommonArgs) -> Self {
        let now = Instant::now();
        Self {
            start: now,
            told: now,
            progress: args.progress,
            quiet: args.quiet,
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

    /// Tells how far it is, if it is time.
    pub fn tick(&mut self) {
        if self.progress && self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            eprintln!("{}", self.rate());
        }
    }

    fn rate(&self) -> String {
        let seconds = self.start.elapsed().as_secs_f64();
        format!(
            "{} bytes in {seconds:.1} s, {:.1} MiB/s",
            self.bytes,
            self.bytes as f64 / MIB / seconds
        )
    }

    /// Tells how it ended.
    pub fn finish(self, details: &str) {
        if self.quiet {
            return;
        }
        eprintln!("{}, {details}", self.rate());
        if let Some(hasher) = self.hasher {
            let digest: String = hasher
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            eprintln!("SHA-256 {digest}");
        }
    }
}
