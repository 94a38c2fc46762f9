// SPDX-License-Identifier: GPL-2.0

//! Faults while devices go away that are bound, with buffers out.

use std::io;

use devmem::netdev::Netdev;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::faults::Call;
use devmem_testlib::faults::Watch;
use devmem_testlib::provider;
use devmem_testlib::xdp;

use crate::rig::Rig;
use crate::walk::Walk;

/// The device is deleted with both kinds of binding, and its owners learn it later.
pub fn delete_device() -> Outcome {
    let walk = Walk {
        name: "del_device",
        reach: &["unregister_netdevice", "nsim_"],
        // There are many points, of which few have to do with device memory.
        stride: 11,
        tells: false,
    };
    let mut rig = Rig::new()?;
    walk.run(&mut rig, |rig, watch, nth| {
        let pair = Pair::new()?;
        let site = delete(rig, &pair, watch, nth)?;
        Ok((Ok(()), site))
    })
}

fn delete(
    rig: &Rig,
    pair: &Pair,
    watch: &Watch,
    nth: u32,
) -> io::Result<Option<devmem_testlib::faults::Site>> {
    let (rx, tx) = pair.rx.ns.run(|| {
        let mut netdev = Netdev::open()?;
        let rx = netdev.bind_rx(&pair.request(&[1, 2]).attrs(&rig.rx_memory))?;
        let attrs = devmem::BindTx::new(pair.rx.ifindex).attrs(&rig.tx_memory);
        let tx = netdev.bind_tx(&attrs)?;
        Ok(((netdev, rx), tx))
    })?;
    let (deleted, site) = watch.nth_fails(nth, || pair.rx.delete())?;
    if let Err(err) = deleted {
        // Its writer was not understood: it is still there.
        assert!(site.is_some(), "{err}");
        pair.rx.delete_again()?;
    }
    let (owner, id) = rx;
    drop(owner);
    [id, tx].into_iter().for_each(provider::all_buffers_back);
    Ok(site)
}

/// A queue that cannot be restarted goes on with memory that no XDP program can read, until it is.
pub fn unbound_without_memory() -> Outcome {
    let rig = Rig::new()?;
    let binding = rig.pair.bind(&[Rig::QUEUE], &rig.rx_memory)?;
    let id = binding.id();
    let fault = Call::fails("page_pool_create", 1, -i64::from(libc::ENOMEM))?;
    drop(binding);
    assert!(fault.result()?.1.is_some(), "the queue was restarted");
    drop(fault);

    let rx = &rig.pair.rx;
    let attach = || rx.ns.run(|| xdp::attach(rx.ifindex));
    let refused = attach().map_err(|err| err.raw_os_error());
    assert_eq!(refused.err(), Some(Some(libc::EBUSY)));
    rx.reset_queue(Rig::QUEUE, 0)?;
    provider::all_buffers_back(id);
    drop(attach()?);
    Ok(())
}

/// Who closes a socket waits once for those who may be sending from its bindings, however many these are.
pub fn closed_with_many_bindings() -> Outcome {
    const MANY: usize = 8;
    const NEVER: u32 = u32::MAX;
    let rig = Rig::new()?;
    let tx = &rig.pair.tx;
    let waits = |bindings: usize| -> io::Result<u32> {
        let (netdev, ids) = tx.ns.run(|| {
            let mut netdev = Netdev::open()?;
            let attrs = devmem::BindTx::new(tx.ifindex).attrs(&rig.tx_memory);
            let bind = |_| netdev.bind_tx(&attrs);
            let ids = (0..bindings).map(bind).collect::<Result<Vec<_>, _>>()?;
            Ok((netdev, ids))
        })?;
        let calls = Call::fails("synchronize_net", NEVER, 0)?;
        drop(netdev);
        let (waits, _) = calls.result()?;
        ids.into_iter().for_each(provider::all_buffers_back);
        Ok(waits)
    };
    assert_eq!(waits(1)?, 1);
    assert_eq!(waits(MANY)?, 1);
    Ok(())
}
