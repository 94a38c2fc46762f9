// SPDX-License-Identifier: GPL-2.0

//! What is left when a storm is over: nothing, and that soon.

use std::io;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::DmaBuf;
use devmem::netdev::Netdev;
use devmem::netdev::PagePool;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::delete_module;
use nix::net::if_::if_nametoindex;

use crate::pair::End;
use crate::pair::Ip;
use crate::pair::Pair;
use crate::provider;
use crate::provider::Provider;
use crate::report::Outcome;
use crate::report::diag;
use crate::traffic;
use crate::traffic::Reader;
use crate::wait;

const MEMORY: usize = 4 << 20;
const TRANSFER: u64 = 1 << 20;
/// A port that no storm uses.
const PORT: u16 = 4999;

/// How long buffers may take to come back, on an idle machine, with no traffic to help.
///
/// The C code promises nothing: it waits for what the page pools do.
fn limit() -> Duration {
    match provider::under_test() {
        Provider::Module => Duration::from_secs(1),
        Provider::Builtin => Duration::from_secs(5),
    }
}

/// Waits for `condition`; fails the test if it takes longer than it may. Returns how long it took.
#[track_caller]
fn within_limit(what: &str, condition: impl Fn() -> io::Result<bool>) -> io::Result<Duration> {
    wait::until_or_tell(what, limit(), condition, provider::left)
}

/// Checks that no binding is left, no dma-buf attached, and that netdevsim can be unloaded at once.
///
/// To be called when all processes, sockets and devices of a test are gone. Loads netdevsim again.
#[track_caller]
pub fn nothing_left() -> Outcome {
    let back = no_bindings()?;
    let start = Instant::now();
    unload_netdevsim()?;
    let unloaded = start.elapsed();
    provider::load_netdevsim()?;
    diag(format_args!(
        "all back after {} ms, netdevsim unloaded in {} ms",
        back.as_millis(),
        unloaded.as_millis()
    ));
    assert!(
        wait::may_take(unloaded, limit()),
        "netdevsim took {unloaded:?} to unload"
    );
    Ok(())
}

/// Unloads netdevsim, and with it all its devices.
pub fn unload_netdevsim() -> io::Result<()> {
    Ok(delete_module(c"netdevsim", DeleteModuleFlags::O_NONBLOCK)?)
}

/// Waits until a device is gone.
#[track_caller]
pub fn gone(end: &End) -> Outcome {
    within_limit("the device to go", || {
        end.ns
            .run(|| Ok(if_nametoindex(end.ifname.as_str()).is_err()))
    })?;
    Ok(())
}

/// Waits until there are no bindings and no attachments at all.
#[track_caller]
pub fn no_bindings() -> io::Result<Duration> {
    within_limit("everything to come back", || {
        let bindings = provider::bindings()?.unwrap_or_default();
        Ok(bindings.is_empty() && provider::own_attachments()? == 0)
    })
}

/// The page pools of a provider that a device has let go of, but that still live.
fn orphans(end: &End) -> io::Result<Vec<PagePool>> {
    let pools = end.ns.run(|| Ok(Netdev::open()?.page_pools()?))?;
    Ok(pools
        .into_iter()
        .filter(|pool| pool.detached && pool.dmabuf.is_some())
        .collect())
}

/// Checks that a pair on which nothing is bound any more has got everything back, and still works.
#[track_caller]
pub fn on(pair: &Pair, queue: u32) -> Outcome {
    no_bindings()?;
    within_limit("page pools to go", || {
        Ok(orphans(&pair.rx)?.is_empty() && orphans(&pair.tx)?.is_empty())
    })?;
    transfer(pair, queue)
}

/// The next transfer: by content, all of it in device memory.
#[track_caller]
pub fn transfer(pair: &Pair, queue: u32) -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let binding = pair.bind(&[queue], &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, queue)?;
    thread::scope(|scope| -> Outcome {
        let sender = traffic::send_in(scope, &connection.tx, 0, TRANSFER, 1 << 16);
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        reader.read_until(TRANSFER)?;
        reader.assert_all_device_memory();
        sender.join().expect("the sender's thread")?;
        Ok(())
    })
}
