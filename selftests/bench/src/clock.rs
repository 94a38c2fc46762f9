// SPDX-License-Identifier: GPL-2.0

//! Counts instructions where they can be counted, and nanoseconds otherwise.
//!
//! Under QEMU's `-icount shift=0` the time stamp counter advances by one with each instruction, exactly and
//! the same in each run.

use std::arch::asm;
use std::arch::x86_64::_mm_lfence;
use std::arch::x86_64::_rdtsc;
use std::array;
use std::sync::LazyLock;
use std::time::Instant;

/// Turns of the loop that tells what the time stamp counter counts, of two instructions each.
const TURNS: u64 = 1000;
/// Most instructions around that loop.
const AROUND: u64 = 8;

/// What a [`Clock`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Instructions.
    Instructions,
    /// Nanoseconds.
    Nanoseconds,
}

impl Unit {
    /// What the records call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::Nanoseconds => "ns",
        }
    }
}

/// A clock, which leaves out what reading it costs.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    unit: Unit,
    overhead: u64,
}

impl Clock {
    /// Finds out what can be counted here.
    pub fn new() -> Self {
        let mut clock = Self {
            unit: Unit::Instructions,
            overhead: 0,
        };
        clock.overhead = clock.smallest(|| ());
        // A time stamp counter that counts time does not come to the same number each time.
        let loops: [u64; 5] = array::from_fn(|_| clock.smallest(spin));
        let exact = loops
            .iter()
            .all(|&count| count == loops[0] && (2 * TURNS..=2 * TURNS + AROUND).contains(&count));
        if !exact {
            clock.unit = Unit::Nanoseconds;
            clock.overhead = 0;
            clock.overhead = clock.smallest(|| ());
        }
        clock
    }

    /// What it counts.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// What it shows.
    #[inline(always)]
    pub fn now(&self) -> u64 {
        match self.unit {
            Unit::Instructions => instructions(),
            Unit::Nanoseconds => nanoseconds(),
        }
    }

    /// What has passed since it showed `start`, without what reading it cost.
    #[inline(always)]
    pub fn since(&self, start: u64) -> u64 {
        (self.now() - start).saturating_sub(self.overhead)
    }

    /// Does something, and tells what that took.
    #[inline(always)]
    pub fn measure<T>(&self, f: impl FnOnce() -> T) -> (T, u64) {
        let start = self.now();
        let result = f();
        (result, self.since(start))
    }

    /// What something takes if nothing gets in between.
    fn smallest(&self, f: fn()) -> u64 {
        (0..20).map(|_| self.measure(f).1).min().unwrap_or(0)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[inline(always)]
fn instructions() -> u64 {
    // SAFETY: Every x86-64 CPU has these instructions, and Linux lets user space use them.
    unsafe {
        _mm_lfence();
        let count = _rdtsc();
        _mm_lfence();
        count
    }
}

fn nanoseconds() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

/// Takes two instructions a turn, and the call.
#[inline(always)]
fn spin() {
    // SAFETY: The loop ends, and touches nothing but its counter.
    unsafe {
        asm!(
            "2: dec {turns}",
            "jnz 2b",
            turns = inout(reg) TURNS => _,
            options(nomem, nostack)
        );
    }
}
