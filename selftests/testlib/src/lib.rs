// SPDX-License-Identifier: GPL-2.0

//! What the tests of device-memory TCP in the guest share.
//!
//! A test program hands a list of its [`tests!`] to [`runner::run`]. They run on the provider that the
//! environment variable `DEVMEM_PROVIDER` names: `devmem_provider` (the default) or `builtin`, the
//! kernel's own. Each test makes what it needs, its [`Pair`] of devices too, and leaves nothing.
//!
//! Modules use each other in one direction only: [`report`] uses none, and [`runner`] is for programs.

pub mod aftermath;
pub mod bar;
pub mod bpf;
pub mod cgroup;
pub mod child;
pub mod compat;
mod config;
mod counters;
pub mod dmabufs;
pub mod events;
pub mod faults;
pub mod fixture;
pub mod frames;
pub mod grace;
pub mod hardware;
mod ifctl;
pub mod iptfs;
pub mod kcm;
mod keeper;
pub mod keys;
pub mod machine;
pub mod modules;
pub mod multicast;
pub mod needs;
pub mod netkit;
mod netkit_link;
mod netlink;
pub mod nfqueue;
pub mod nic;
pub mod odd;
pub mod ops;
pub mod pair;
pub mod passes;
pub mod peer;
pub mod probe;
pub mod provider;
pub mod pump;
pub mod rds;
pub mod report;
pub mod runner;
pub mod sockopt;
pub mod state;
pub mod storm;
pub mod syscalls;
pub mod taken;
pub mod taker;
pub mod tls;
pub mod trace;
pub mod traffic;
pub mod tx;
pub mod wait;
pub mod xdp;
pub mod xsk;
pub mod xtables;

pub use pair::Pair;
pub use provider::Provider;
pub use report::Outcome;
pub use report::skip;
pub use runner::Test;
