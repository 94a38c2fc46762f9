// SPDX-License-Identifier: GPL-2.0

//! Allocations that fail in softirqs, under traffic; and what is lost in all of this.

use std::fs;
use std::io::Read;

use devmem_testlib::Outcome;
use devmem_testlib::faults::Scarcity;
use devmem_testlib::faults::Site;
use devmem_testlib::faults::Watch;
use devmem_testlib::report;

use crate::rig::Rig;
use crate::stream::Stream;

/// Every so-manieth atomic allocation fails while bytes come in. Packets get lost and are sent again; a
/// reader for whom there is no token is told so, and asks again.
pub fn traffic() -> Outcome {
    /// Rounds at each interval: a few, and as many more as it takes for a fault to strike.
    const ROUNDS: std::ops::Range<u32> = 8..400;
    let mut rig = Rig::new()?;
    let mut stream = Stream::new(&rig)?;
    for interval in [101, 31, 13] {
        let watch = Watch::new()?;
        let scarcity = Scarcity::every(interval)?;
        let (mut refused, mut rounds) = (0, 0);
        let mut sites = Vec::new();
        let hits =
            |sites: &[Site], part: &str| sites.iter().filter(|site| site.is_in(part)).count();
        let on_path = |sites: &[Site]| hits(sites, "tcp_") + hits(sites, "nsim_");
        while rounds < ROUNDS.start || (on_path(&sites) == 0 && rounds < ROUNDS.end) {
            stream.fill()?;
            refused += stream.drain_with_patience()?;
            sites.append(&mut watch.take()?);
            rounds += 1;
        }
        drop(scarcity);
        report::diag(format_args!(
            "every {interval}th: {} failed in {rounds} rounds, {} in TCP, {} in the device, {refused} calls had no memory",
            sites.len(),
            hits(&sites, "tcp_"),
            hits(&sites, "nsim_")
        ));
        assert!(on_path(&sites) > 0, "nothing failed");
    }
    drop(stream);
    rig.transfer()
}

/// kmemleak finds nothing that the tests before left.
pub fn leaks() -> Outcome {
    const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";
    // What was freed a moment ago may still be found once.
    for _ in 0..2 {
        fs::write(KMEMLEAK, "scan")?;
    }
    let mut report = String::new();
    fs::File::open(KMEMLEAK)?.read_to_string(&mut report)?;
    assert!(report.is_empty(), "{report}");
    report::observe("nothing leaked");
    Ok(())
}
