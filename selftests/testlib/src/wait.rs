// SPDX-License-Identifier: GPL-2.0

//! Waiting for what becomes so after a while, and how long that while may be.
//!
//! Limits are meant for a machine that has nothing else to do and a kernel that does not look for bugs.
//! [`patience`] stretches them for a kernel that does. Who has waited in vain asks how busy the machine
//! is, and waits for the square of that many times longer: [`machine::slowness`].

use std::fmt::Display;
use std::io;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::machine;

/// Between two looks at first: most things take no time at all.
const SHORTEST: Duration = Duration::from_millis(1);
/// Between two looks later on: looking keeps a CPU from what is waited for.
const LONGEST: Duration = Duration::from_millis(20);

/// How long something may take here that takes up to `base` on a machine with nothing else to do.
pub fn patience(base: Duration) -> Duration {
    base * if machine::is_slow() { 4 } else { 1 }
}

/// By how much longer to wait than was waited in vain. Where one thread takes twice as long, what takes several,
/// one after the other, takes longer still: hence the square.
pub(crate) fn in_vain() -> f64 {
    machine::slowness().powi(2)
}

/// The same on this machine as it is at the moment, for those who cannot wait for an event. Takes 100 ms to
/// find out.
pub fn stretched(base: Duration) -> Duration {
    patience(base).mul_f64(machine::slowness())
}

/// Whether something may have taken so long that takes up to `base` on a machine with nothing else to do. As
/// long as [`up_to`] waits.
pub fn may_take(time: Duration, base: Duration) -> bool {
    time <= patience(base) || time <= patience(base).mul_f64(1.0 + in_vain())
}

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Waited {
    /// Whether it became so.
    pub came: bool,
    /// How long it took, or how long was waited in vain.
    pub time: Duration,
}

/// Waits until `condition` holds; goes on if it does not within `limit`, which is stretched by
/// [`patience`].
pub fn up_to(limit: Duration, condition: impl FnMut() -> io::Result<bool>) -> io::Result<Waited> {
    up_to_from(SHORTEST, limit, condition)
}

/// Like [`up_to`]; looks again after `shortest` at first, for what happens many times and at once.
pub fn up_to_from(
    shortest: Duration,
    limit: Duration,
    mut condition: impl FnMut() -> io::Result<bool>,
) -> io::Result<Waited> {
    let start = Instant::now();
    let idle = patience(limit);
    let mut limit = idle;
    let mut second_chance = true;
    loop {
        let came = condition()?;
        let time = start.elapsed();
        if !came && time > limit && second_chance {
            // What kept the machine busy may be over by now, and what it held up is yet to come.
            limit = time + idle.mul_f64(in_vain());
            second_chance = false;
        }
        if came || time > limit {
            return Ok(Waited { came, time });
        }
        // Looks rarely enough to cost little, often enough to add little to what is measured.
        thread::sleep((time / 8).clamp(shortest, LONGEST));
    }
}

/// Waits until `condition` holds; fails the test if it does not within `limit`, which is stretched by
/// [`patience`]. Returns how long it took.
#[track_caller]
pub fn until(
    what: &str,
    limit: Duration,
    condition: impl FnMut() -> io::Result<bool>,
) -> io::Result<Duration> {
    let waited = up_to(limit, condition)?;
    assert!(waited.came, "waited {:?} for {what}", waited.time);
    Ok(waited.time)
}

/// Like [`until`]; if it fails, it shows `details`, too.
#[track_caller]
pub fn until_or_tell<D: Display>(
    what: &str,
    limit: Duration,
    condition: impl FnMut() -> io::Result<bool>,
    details: impl FnOnce() -> D,
) -> io::Result<Duration> {
    let waited = up_to(limit, condition)?;
    assert!(
        waited.came,
        "waited {:?} for {what}; {}",
        waited.time,
        details()
    );
    Ok(waited.time)
}
