// SPDX-License-Identifier: GPL-2.0

//! How slow this machine is: its kernel, and at the moment, because it has other things to do.

use std::env;
use std::hint;
use std::sync::LazyLock;
use std::time::Duration;
use std::time::Instant;

use crate::config;

/// For how long to look.
const LOOK: Duration = Duration::from_millis(100);
/// Steps of a turn: some hundred microseconds, also where emulated.
const STEPS: u64 = 5_000;
/// More than that is not believed.
const MOST: f64 = 6.0;

/// Whether the kernel is one that looks for bugs, and takes its time: `GUEST` names it, or its configuration
/// tells.
pub fn is_slow() -> bool {
    static BY_OPTIONS: LazyLock<bool> = LazyLock::new(|| {
        ["KASAN", "KCSAN", "PROVE_LOCKING"]
            .iter()
            .any(|option| config::option(option) == Some(true))
    });
    match env::var("GUEST") {
        Ok(guest) => guest != "fast",
        Err(_) => *BY_OPTIONS,
    }
}

/// How many times longer things take at the moment than they would if nothing else ran on the CPUs, here and
/// on the host that emulates them. From 1 to 6.
///
/// Does the same work again and again for 100 ms. Of so many turns some have a CPU to themselves: how the mean
/// compares with the shortest tells what the others waited for.
pub fn slowness() -> f64 {
    let start = Instant::now();
    let mut turns = 0;
    let mut shortest = Duration::MAX;
    let mut last = start;
    while last - start < LOOK {
        turn();
        let now = Instant::now();
        shortest = shortest.min(now - last);
        last = now;
        turns += 1;
    }
    let mean = (last - start).as_secs_f64() / f64::from(turns);
    (mean / shortest.as_secs_f64()).clamp(1.0, MOST)
}

fn turn() {
    let mut state = hint::black_box(0x2545_f491_4f6c_dd1d_u64);
    for _ in 0..STEPS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    hint::black_box(state);
}
