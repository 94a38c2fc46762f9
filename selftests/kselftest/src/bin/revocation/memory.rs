// SPDX-License-Identifier: GPL-2.0

//! Memory, and whether it is its exporter's again.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use devmem_testlib::Outcome;
use devmem_testlib::odd::DmaBufState;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::traffic;

/// Of each of the four segments of the memory.
pub const LEN: u64 = 256 << 10;

/// Memory that holds the stream, and so is not written to unseen.
pub fn shape() -> Shape {
    Shape::new(&[Segment { addr: 0, len: LEN }; 4])
}

pub fn memory(shape: &Shape) -> io::Result<OddDmaBuf> {
    shape.of_memory(traffic::bytes(0, 4 * LEN as usize))
}

/// Nobody has anything to do with it any more, or has written to it since.
pub fn assert_gone(memory: &OddDmaBuf) -> Outcome {
    let DmaBufState {
        attached,
        pinned,
        mapped,
        written,
        ..
    } = memory.state()?;
    assert_eq!((attached, pinned, mapped, written), (0, 0, 0, 0));
    Ok(())
}

/// Waits until who unmapped it has detached itself.
pub fn wait_gone(memory: &OddDmaBuf) -> Outcome {
    provider::wait_for("the last device to be detached", || {
        Ok(memory.state()?.attached == 0)
    });
    assert_gone(memory)
}

pub fn revoke(memory: &OddDmaBuf) -> Outcome {
    assert_eq!(memory.revoke(), Ok(()));
    wait_gone(memory)
}

/// Tells how long it took until the memory was unmapped, and what else there is to be told.
pub fn tell_times(mut times: Vec<Duration>, others: impl Display) {
    times.sort_unstable();
    let percentile = |percent: usize| times[(times.len() - 1) * percent / 100];
    report::diag(format_args!(
        "unmapped after {:?}, p99 {:?}, at most {:?}; {others}",
        percentile(50),
        percentile(99),
        percentile(100)
    ));
}
