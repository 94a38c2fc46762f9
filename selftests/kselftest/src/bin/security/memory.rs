// SPDX-License-Identifier: GPL-2.0

//! Kernel memory of bindings, and which control group it is charged to.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::cgroup::Cgroup;
use devmem_testlib::child::Child;
use devmem_testlib::child::NOBODY;
use devmem_testlib::child::become_user;
use devmem_testlib::child::enter;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::probe::Call;
use devmem_testlib::provider;
use devmem_testlib::report::Stop;
use devmem_testlib::report::diag;
use devmem_testlib::report::observe;
use devmem_testlib::tx;
use nix::fcntl::FcntlArg;
use nix::fcntl::SealFlag;
use nix::fcntl::fcntl;
use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;
use nix::sys::resource::RLIM_INFINITY;
use nix::sys::resource::Resource;
use nix::sys::resource::setrlimit;

use crate::PAGE;

const MIB: u64 = 1 << 20;
/// What else is charged to a group: the process itself, and what is charged in advance.
const NOISE: u64 = MIB;

/// Buffers of a receive binding, and bytes that the module has for each. The C code has as many, but
/// for [`NOISE`].
const BUFFERS: u64 = 16384;
const PER_BUFFER: u64 = 68;

/// Entries of the scatterlist of [`scattered`], and bytes that a transmit binding has for each at least.
const ENTRIES: u64 = 1024;
const PER_ENTRY: u64 = 76;

/// `struct udmabuf_create_list`, with as many items as the kernel takes.
#[repr(C)]
struct CreateList {
    flags: u32,
    count: u32,
    items: [CreateItem; ENTRIES as usize],
}

/// `struct udmabuf_create_item`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct CreateItem {
    memfd: u32,
    reserved: u32,
    offset: u64,
    size: u64,
}

/// A dma-buf of pages no two of which are neighbours: all even ones of a file, and then the odd ones.
fn scattered() -> io::Result<OwnedFd> {
    let memfd = memfd_create(
        c"scattered",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    )?;
    // Allocates all pages, in the order of the file: udmabuf would, in its own order.
    let mut memfd = File::from(memfd);
    memfd.write_all(&vec![0; ENTRIES as usize * PAGE])?;
    fcntl(&memfd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    let mut list = CreateList {
        flags: 1,
        count: ENTRIES as u32,
        items: [CreateItem::default(); ENTRIES as usize],
    };
    let pages = (0..ENTRIES).step_by(2).chain((1..ENTRIES).step_by(2));
    for (item, page) in list.items.iter_mut().zip(pages) {
        *item = CreateItem {
            memfd: memfd.as_raw_fd() as u32,
            reserved: 0,
            offset: page * PAGE as u64,
            size: PAGE as u64,
        };
    }
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/udmabuf")?;
    // SAFETY: The ioctl only reads `list`, which has as many items as it says.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), UDMABUF_CREATE_LIST, &raw const list) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The kernel just made this file descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `_IOW('u', 0x43, struct udmabuf_create_list)`: without the items.
const UDMABUF_CREATE_LIST: libc::c_ulong = 0x4008_7543;

/// From now on this process is a user's, who may lock as much memory as there is: other limits are looked for.
fn become_user_of_locked_memory() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    become_user(NOBODY)
}

/// How much more is charged to `group` while a child in it holds what `bind` makes.
fn charged<T>(
    group: &Cgroup,
    pair: &Pair,
    bind: impl FnOnce() -> io::Result<T>,
) -> Result<u64, Stop> {
    let mut child = Child::start(|talk| {
        enter(&pair.rx.ns)?;
        talk.hear()?;
        let held = bind()?;
        talk.tell("bound")?;
        talk.wait_for_the_end()?;
        drop(held);
        Ok(())
    })?;
    group.add(child.pid())?;
    let before = group.usage()?;
    child.talk().tell("bind")?;
    child.talk().hear()?;
    let with = group.usage()?;
    child.end()?;
    provider::wait_for("the charge to go", || Ok(group.usage()? < before + NOISE));
    Ok(with.saturating_sub(before))
}

/// Bindings of either kind, to several queues or devices.
pub fn bindings_are_charged() -> Outcome {
    const RX: u64 = 4;
    const TX: u64 = 64;
    let memory = DmaBuf::udmabuf(BUFFERS as usize * PAGE)?;
    let scattered = scattered()?;
    let pair = Pair::new()?;
    let group = Cgroup::new("devmem_charged")?;

    let receive = charged(&group, &pair, || {
        (0..RX as u32)
            .map(|queue| Ok(pair.request(&[queue]).bind(&memory)?))
            .collect::<io::Result<Vec<_>>>()
    })?;
    let transmit = charged(&group, &pair, || {
        become_user_of_locked_memory()?;
        (0..TX)
            .map(|_| Ok(BindTx::new(pair.rx.ifindex).bind(&scattered)?))
            .collect::<io::Result<Vec<_>>>()
    })?;
    for (what, bytes, expected) in [
        ("receive", receive, RX * BUFFERS * PER_BUFFER),
        ("transmit", transmit, TX * ENTRIES * PER_ENTRY),
    ] {
        diag(format_args!("{what}: {bytes} bytes charged of {expected}"));
        let all = bytes + NOISE > expected;
        observe(format_args!("{what}: charged {all}"));
        assert!(all, "{what}: {bytes} bytes charged of {expected}");
    }
    Ok(())
}

/// Without memory in the group there are no more bindings, and nothing else happens.
pub fn bindings_fail_at_the_limit() -> Outcome {
    const TRIES: usize = 128;
    let scattered = scattered()?;
    let pair = Pair::new()?;
    let group = Cgroup::new("devmem_limited")?;
    let mut child = Child::start(|talk| {
        enter(&pair.rx.ns)?;
        // Not to be killed for want of memory, so that the request fails.
        fs::write("/proc/self/oom_score_adj", "-1000")?;
        become_user_of_locked_memory()?;
        let mut held = Vec::with_capacity(TRIES);
        talk.hear()?;
        let end = loop {
            match BindTx::new(pair.rx.ifindex).bind(&scattered) {
                Ok(binding) => held.push(binding),
                Err(err) => break err.errno().unwrap_or(0),
            }
            if held.len() == TRIES {
                break 0;
            }
        };
        // Room to go on with.
        let count = held.len();
        held.truncate(1);
        talk.tell(end)?;
        talk.tell(count)?;
        talk.wait_for_the_end()
    })?;
    group.add(child.pid())?;
    group.leave(4 * MIB)?;
    let before = group.usage()?;
    child.talk().tell("bind")?;
    let errno = child.talk().hear_number()? as i32;
    let count = child.talk().hear_number()?;
    let answer = tx::outcome(&match errno {
        0 => Ok(count as usize),
        errno => Err(io::Error::from_raw_os_error(errno)),
    });
    diag(format_args!("{count} bindings"));
    observe(&answer);
    assert_eq!(answer, "ENOMEM");
    let all = 4 * MIB / (ENTRIES * PER_ENTRY);
    assert!((1..=all).contains(&u64::from(count)), "{count} bindings");
    child.end()?;
    provider::wait_for("the charge to go", || Ok(group.usage()? < before + NOISE));
    Ok(())
}

/// Tokens are charged to who receives, on both providers.
pub fn tokens_are_charged() -> Outcome {
    const FRAGS: usize = 64;
    const PEEKS: usize = 4000;
    /// A node of the xarray has room for 64 tokens.
    const PER_TOKEN: u64 = 576 / 64;
    let bench = Receiving::new()?;
    bench.send(&[1000; FRAGS])?;
    let group = Cgroup::new("devmem_tokens")?;
    let mut child = Child::start(|talk| {
        talk.hear()?;
        let mut probe = bench.probe().quiet();
        let peek = Call::new(1 << 16).flags(libc::MSG_PEEK);
        let tokens: usize = (0..PEEKS)
            .map(|_| {
                probe.call(&peek);
                probe.take_held().len()
            })
            .sum();
        talk.tell(tokens)?;
        talk.wait_for_the_end()
    })?;
    group.add(child.pid())?;
    let before = group.usage()?;
    child.talk().tell("peek")?;
    let tokens = child.talk().hear_number()?;
    let bytes = group.usage()?.saturating_sub(before);
    child.end()?;

    let expected = (FRAGS * PEEKS) as u64 * PER_TOKEN;
    diag(format_args!("{bytes} bytes charged of {expected}"));
    assert_eq!(tokens as usize, FRAGS * PEEKS, "tokens");
    assert!(bytes + NOISE > expected, "{bytes} bytes of {expected}");
    drop(bench);
    provider::wait_for("the charge to go", || Ok(group.usage()? < before + NOISE));
    Ok(())
}
