// SPDX-License-Identifier: GPL-2.0

//! Requests for local bindings, and what is told of these.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::path::Path;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::netdev::Netdev;
use devmem::status::State;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::netkit::Netkit;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Joint;
use nix::errno::Errno;

use crate::PAGE;

#[track_caller]
fn assert_refused(end: &End, request: &BindTx, memory: BorrowedFd<'_>, errno: Errno, why: &str) {
    let answer = end.ns.run(|| Ok(request.bind(memory)));
    let err = answer
        .expect("the namespace")
        .expect_err("a request that is refused");
    assert_eq!(err.errno(), Some(errno as i32), "{err}");
    assert!(err.to_string().contains(why), "{err}");
}

/// Requests that are refused.
pub fn bindings() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    let memory = DmaBuf::udmabuf(PAGE as usize)?;
    let empty = Shape::new(&[]).of_nothing()?;
    let end = &pair.tx;
    let lo = BindTx::new(end.ifindex);
    assert_refused(
        end,
        &lo.clone().local(),
        empty.as_fd(),
        Errno::EINVAL,
        "dmabuf has no memory",
    );
    // Nobody gets a local binding who did not ask for it.
    let none = "Driver does not support netmem TX";
    assert_refused(end, &lo, memory.as_fd(), Errno::EOPNOTSUPP, none);

    let no_local = "Device takes no local bindings";
    end.ip("link add dummy0 type dummy")?;
    let dummy = BindTx::new(end.ns.ifindex("dummy0")?).local();
    assert_refused(end, &dummy, memory.as_fd(), Errno::EOPNOTSUPP, no_local);
    let nic = Pair::new()?;
    let dma = BindTx::new(nic.rx.ifindex).local();
    assert_refused(&nic.rx, &dma, memory.as_fd(), Errno::EOPNOTSUPP, no_local);
    Ok(())
}

/// An ifb takes them, as all that passes on what the CPU cannot read.
pub fn by_an_ifb() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    pair.tx.ip("link add ifb0 type ifb")?;
    let memory = DmaBuf::udmabuf(PAGE as usize)?;
    let ask = BindTx::new(pair.tx.ns.ifindex("ifb0")?).local();
    drop(pair.tx.ns.run(|| Ok(ask.bind(&memory)))??);
    Ok(())
}

/// A netkit that leads to a NIC takes both kinds.
pub fn by_a_leased_queue() -> Outcome {
    let nic = Pair::new()?;
    let netkit = Netkit::new(&nic.rx, 1)?;
    let memory = DmaBuf::udmabuf(PAGE as usize)?;
    let ask = BindTx::new(netkit.ifindex);
    for ask in [ask.clone(), ask.local()] {
        drop(nic.rx.ns.run(|| Ok(ask.bind(&memory)))??);
    }
    Ok(())
}

/// What is told of a binding.
pub fn told_of() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    let memory = DmaBuf::udmabuf(3 * PAGE as usize)?;
    let binding = pair.tx.bind_tx(&memory)?;
    let status = pair
        .tx
        .ns
        .run(|| Ok(Netdev::open()?.binding(binding.id())?))?;
    assert!(status.local && !status.rx && !status.shared);
    assert_eq!(status.state, State::Bound);
    assert_eq!(status.ifindex, Some(pair.tx.ifindex));
    assert_eq!(status.peer_to_peer, None);
    assert_eq!(status.buffers, Some(3));
    Ok(())
}

/// To send is to read.
pub fn write_only() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    let heap = Path::new("/dev/dma_heap/system");
    let memory = DmaBuf::heap(heap, PAGE as usize, libc::O_WRONLY)?;
    assert_refused(
        &pair.tx,
        &pair.tx.request_tx(),
        memory.as_fd(),
        Errno::EINVAL,
        "dma-buf is write-only",
    );
    Ok(())
}
