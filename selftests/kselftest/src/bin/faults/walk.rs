// SPDX-License-Identifier: GPL-2.0

//! One system call, again and again, until each of its points has failed once.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;

use devmem_testlib::Outcome;
use devmem_testlib::faults::Kind;
use devmem_testlib::faults::Site;
use devmem_testlib::faults::Watch;
use devmem_testlib::report;
use devmem_testlib::state::State;
use nix::errno::Errno;

use crate::rig::Rig;

/// More points than any call has.
const ENDLESS: u32 = 1000;
/// Caches that are full or empty move the points of a call, so that a pass can miss some.
const PASSES: u32 = 4;
/// After so many points bytes are sent through what is left.
const TRANSFER_EVERY: u32 = 8;

/// What came of a call: nothing special, or an errno.
pub type Result = std::result::Result<(), i32>;

/// What came of a call of which a point was to fail, and where it did.
pub type Shot = (Result, Option<Site>);

/// The points of a call.
pub struct Walk {
    /// What it is called.
    pub name: &'static str,
    /// Functions that have to be among those in which a point failed.
    pub reach: &'static [&'static str],
    /// How far it is from one point to the next.
    pub stride: u32,
    /// Whether the call tells of failures.
    pub tells: bool,
}

impl Walk {
    /// Has `shoot` make the call with its nth point failing, for each n, and checks what came of it and
    /// that everything is as before.
    #[track_caller]
    pub fn run(
        &self,
        rig: &mut Rig,
        mut shoot: impl FnMut(&mut Rig, &Watch, u32) -> io::Result<Shot>,
    ) -> Outcome {
        let watch = Watch::new()?;
        let mut seen = Seen::default();
        let before = State::of(&rig.pair)?;
        for _ in 0..PASSES {
            self.pass(rig, &before, &watch, &mut seen, &mut shoot)?;
            rig.transfer()?;
            if seen.missing(self).is_none() {
                break;
            }
        }
        seen.tell(self);
        Ok(())
    }

    fn pass(
        &self,
        rig: &mut Rig,
        before: &State,
        watch: &Watch,
        seen: &mut Seen,
        shoot: &mut impl FnMut(&mut Rig, &Watch, u32) -> io::Result<Shot>,
    ) -> Outcome {
        for n in 0.. {
            let nth = 1 + n * self.stride;
            assert!(nth < ENDLESS, "{}: no end", self.name);
            let (result, site) = shoot(rig, watch, nth)?;
            let Some(site) = site else {
                assert_eq!(result, Ok(()), "{} without a fault", self.name);
                break;
            };
            seen.add(self, site, result);
            before.wait_until_back(&rig.pair);
            if n % TRANSFER_EVERY == 0 {
                rig.transfer()?;
            }
        }
        Ok(())
    }
}

/// The points that failed.
#[derive(Default)]
struct Seen {
    count: u32,
    unexpected: u32,
    lines: BTreeMap<String, u32>,
    sites: Vec<Site>,
    errnos: BTreeSet<String>,
}

impl Seen {
    fn add(&mut self, walk: &Walk, site: Site, result: Result) {
        let answer = answer(result);
        let line = format!("{answer}: {site}");
        let expected = match walk.tells {
            true => is_expected(&site, result),
            false => result.is_ok(),
        };
        if !expected {
            report::diag(format_args!(
                "{}: NOT EXPECTED: {line}: {site:?}",
                walk.name
            ));
            self.unexpected += 1;
        }
        self.count += 1;
        if result.is_err() {
            self.errnos.insert(answer);
        }
        *self.lines.entry(line).or_default() += 1;
        self.sites.push(site);
    }

    #[track_caller]
    fn tell(&self, walk: &Walk) {
        let name = walk.name;
        for (line, count) in &self.lines {
            report::diag(format_args!("{name}: {count} x {line}"));
        }
        report::diag(format_args!("{name}: {} points failed", self.count));
        report::observe(format_args!("{name}: {:?}", self.errnos));
        assert_eq!(self.unexpected, 0, "{name}: points with another result");
        if let Some(function) = self.missing(walk) {
            panic!("{name}: no point in {function} failed");
        }
    }

    /// A function that has to be reached, and was not.
    fn missing(&self, walk: &Walk) -> Option<&'static str> {
        let is_reached = |function: &&&str| {
            let mut names = function.split('|');
            names.any(|name| self.sites.iter().any(|site| site.is_in(name)))
        };
        walk.reach.iter().find(|f| !is_reached(f)).copied()
    }
}

fn answer(result: Result) -> String {
    match result {
        Ok(()) => "goes on".to_owned(),
        Err(errno) => format!("{:?}", Errno::from_raw(errno)),
    }
}

/// Allocations that have another way to go: a second attempt that may wait, memory of their own, or
/// none that anybody would miss.
const SPARE: [&str; 13] = [
    "kmemleak_scan_area",
    "xas_nomem",
    "xas_create",
    "ref_tracker_alloc",
    "stack_depot",
    "debug_object",
    "dma_debug",
    "obj_exts",
    "netlink_trim",
    "do_user_addr_fault",
    // What is not to be had in one piece comes in pages.
    "kvrealloc_node_align_noprof",
    "__kvmalloc_node_noprof",
    // A NAPI instance allocates its first skb before it needs it.
    "netif_napi_add_weight_locked",
];

/// Calls that go on: packets get lost, and are sent again; messages are not of the caller's interest.
const CAREFREE: [&str; 6] = [
    "netdev_nl_page_pool_event",
    "__tcp_transmit_skb",
    "tcp_send_ack",
    "tcp_stream_alloc_skb",
    "sk_stream_wait_memory",
    "__dev_queue_xmit",
];

/// What may come of a failure there.
fn is_expected(site: &Site, result: Result) -> bool {
    let is_in = |list: &[&str]| list.iter().any(|function| site.is_in(function));
    let errno = match site.kind() {
        Kind::Copy => libc::EFAULT,
        _ if site.is_in("netlink_alloc_large_skb") || site.is_in("netlink_ack") => libc::ENOBUFS,
        _ if site.is_in("msg_zerocopy_realloc") => libc::ENOBUFS,
        Kind::Slab | Kind::Pages | Kind::Call => libc::ENOMEM,
    };
    // Slabs do with fewer pages.
    let may_go_on = site.kind() == Kind::Pages || is_in(&SPARE) || is_in(&CAREFREE);
    result == Err(errno) || (result.is_ok() && may_go_on)
}
