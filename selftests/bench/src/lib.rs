// SPDX-License-Identifier: GPL-2.0

//! What devices, providers and system calls cost, measured side by side in one boot of the guest.
//!
//! Each module is a series of measurements. All subjects of a series take their turn in each round, so
//! that whatever disturbs one disturbs the others. The host makes medians, ratios, tables and plots of what this
//! prints (`scripts/bench.py`).

pub mod bind;
pub mod bulk;
pub mod calls;
pub mod clock;
pub mod flows;
pub mod layout;
pub mod link;
pub mod local;
pub mod memory;
pub mod message;
pub mod options;
pub mod provider;
pub mod receive;
pub mod record;
pub mod ring;
pub mod seam;
pub mod transmit;

use std::io;

use options::Options;
use record::Samples;

/// A series: measures its cases, in rounds, and hands in what came of it.
pub type Series = fn(&Options, &mut Samples) -> io::Result<()>;

/// All series, by name.
pub const SERIES: &[(&str, Series)] = &[
    ("provider", provider::run),
    ("bind", bind::run),
    ("receive", receive::run),
    ("transmit", transmit::run),
    ("flows", flows::run),
    ("local", local::run),
    ("bulk", bulk::run),
];
