// SPDX-License-Identifier: GPL-2.0

//! Talks with an end of a bulk connection as a malicious peer may, and looks whether it believes anything.
//!
//! What the peer says is what a peer would say that keeps to the protocol, with frames and numbers changed, left out, said
//! twice or too early, and with more or less payload than it says. Each round has a seed of its own, which is printed if
//! it finds something; SEED and DURATION (in seconds) are read from the environment.

mod victim;

use std::env;
use std::panic;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

fn number(name: &str, default: u64) -> u64 {
    env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn main() -> ExitCode {
    let first = number("SEED", 1);
    let duration = Duration::from_secs(number("DURATION", 60));
    let start = Instant::now();
    let mut totals = victim::Seen::default();
    let mut seed = first;
    while seed == first || start.elapsed() < duration {
        let Ok(seen) = panic::catch_unwind(|| {
            victim::flood(seed);
            victim::round(seed)
        }) else {
            println!("found: SEED={seed}");
            return ExitCode::FAILURE;
        };
        totals.add(&seen);
        seed += 1;
    }
    println!("{} rounds from SEED={first}: {totals:?}", seed - first);
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_asks_for_more_and_more_gets_no_further() {
        let heaviest = (1..40).map(victim::flood).max();
        assert!(heaviest < Some(80_000), "{heaviest:?}");
    }

    /// Enough of it to see everything that is looked for.
    #[test]
    fn a_malicious_peer_gets_nowhere() {
        let mut totals = victim::Seen::default();
        for seed in 1..400 {
            totals.add(&victim::round(seed));
        }
        let victim::Seen {
            frames,
            placed,
            read,
            done,
            broken,
            heaviest,
        } = totals;
        assert!(frames > 10_000, "{totals:?}");
        assert!(placed > 1_000_000 && read > 1_000_000, "{totals:?}");
        assert!(done > 1000 && broken > 100, "{totals:?}");
        assert!(heaviest > 100, "{totals:?}");
    }
}
