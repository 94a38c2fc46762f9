// SPDX-License-Identifier: GPL-2.0

//! What the `netdev` family and debugfs tell of bindings.

use std::process::ExitCode;

use devmem::DmaBuf;
use devmem::Piece;
use devmem::Receiver;
use devmem::netdev::Netdev;
use devmem::netdev::PagePool;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::runner;
use devmem_testlib::skip;
use devmem_testlib::tests;
use devmem_testlib::traffic;

const PAGE: usize = 4096;
const MEMORY: usize = 512 * PAGE;

fn bound_queues(pair: &Pair) -> std::io::Result<Vec<(u32, u32)>> {
    let queues = pair.queues()?;
    Ok(queues
        .iter()
        .filter_map(|queue| Some((queue.id, queue.dmabuf?)))
        .collect())
}

fn page_pools(pair: &Pair) -> std::io::Result<Vec<PagePool>> {
    let pools = pair.rx.ns.run(|| Ok(Netdev::open()?.page_pools()?))?;
    Ok(pools
        .into_iter()
        .filter(|pool| pool.ifindex == Some(pair.rx.ifindex))
        .collect())
}

fn queue_get_shows_the_binding() -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    assert_eq!(bound_queues(&pair)?, []);
    let a = pair.bind(&[1, 3], &memory)?;
    let b = pair.bind(&[2], &memory)?;
    assert_ne!(a.id(), b.id());
    assert_eq!(
        bound_queues(&pair)?,
        [(1, a.id()), (2, b.id()), (3, a.id())]
    );
    drop(a);
    provider::wait_for("the queues to be unbound", || {
        Ok(bound_queues(&pair)?.len() == 1)
    });
    assert_eq!(bound_queues(&pair)?, [(2, b.id())]);
    drop(b);
    provider::wait_for("the queue to be unbound", || {
        Ok(bound_queues(&pair)?.is_empty())
    });
    Ok(())
}

fn page_pool_get_shows_the_binding() -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let before = page_pools(&pair)?;
    assert!(
        before.iter().all(|pool| pool.dmabuf.is_none()),
        "{before:?}"
    );
    let binding = pair.bind(&[1, 3], &memory)?;
    let pools = page_pools(&pair)?;
    let ours: Vec<_> = pools
        .iter()
        .filter(|pool| pool.dmabuf == Some(binding.id()))
        .collect();
    assert_eq!(ours.len(), 2, "a page pool for each queue: {pools:?}");
    assert!(
        ours.iter().all(|pool| pool.inflight > 0 && !pool.detached),
        "{ours:?}"
    );
    drop(binding);
    provider::wait_for("the page pools to be gone", || {
        Ok(page_pools(&pair)?.iter().all(|pool| pool.dmabuf.is_none()))
    });
    assert_eq!(page_pools(&pair)?.len(), before.len());
    Ok(())
}

fn debugfs_counts_buffers() -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    let Some(info) = provider::binding(binding.id())? else {
        assert!(
            devmem::provider::serving().is_err(),
            "the binding is not in the list"
        );
        return skip("this kernel has no list of bindings");
    };
    assert_eq!(info.ifname.as_deref(), Some(pair.rx.ifname.as_str()));
    assert_eq!(info.provider, provider::under_test().name());
    assert_eq!(info.direction, "rx");
    assert_eq!(
        (info.buffer_size, info.buffers),
        (PAGE as u64, (MEMORY / PAGE) as u64)
    );
    assert!(info.in_use > 0 && info.in_use <= info.buffers, "{info:?}");

    // Buffers that user space holds are in use, even once nothing else holds the binding.
    let connection = pair.connect_to_queue(Ip::V4, 5001, 1)?;
    traffic::send(&connection.tx, 0, 8 * PAGE as u64, 8 * PAGE)?;
    let mut held = Vec::new();
    let mut receiver = Receiver::new(&connection.rx);
    let mut bytes = 0;
    while bytes < 8 * PAGE {
        let received = receiver.recv()?;
        bytes += received.total();
        for piece in received {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}")
            };
            held.push(frag);
        }
    }
    let id = binding.id();
    drop(binding);
    let buffers = held.iter().map(|frag| frag.offset / PAGE as u64);
    let distinct = buffers.collect::<std::collections::BTreeSet<_>>().len() as u64;
    let in_use =
        || -> std::io::Result<_> { Ok(provider::binding(id)?.map_or(0, |info| info.in_use)) };
    provider::wait_for("only the held buffers to be in use", || {
        Ok(in_use()? == distinct)
    });
    drop(held);
    provider::all_buffers_back(id);
    Ok(())
}

fn a_provider_is_chosen_by_name() -> Outcome {
    let Ok(serving) = devmem::provider::serving() else {
        return skip("this kernel has only the builtin provider");
    };
    let available = devmem::provider::available()?;
    assert!(
        available.contains(&serving),
        "{serving} serves, of {available:?}"
    );
    assert!(
        available
            .iter()
            .any(|name| name == Provider::Builtin.name())
    );
    for name in ["\n", "no_such_provider", "builtin2", "buil"] {
        assert!(
            devmem::provider::select(name).is_err(),
            "{name:?} was accepted"
        );
        assert_eq!(devmem::provider::serving()?, serving);
    }
    for name in &available {
        devmem::provider::select(name)?;
        assert_eq!(&devmem::provider::serving()?, name);
    }
    devmem::provider::select(&serving)?;
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        a_provider_is_chosen_by_name,
        queue_get_shows_the_binding,
        page_pool_get_shows_the_binding,
        debugfs_counts_buffers,
    ])
}
