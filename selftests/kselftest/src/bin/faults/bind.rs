// SPDX-License-Identifier: GPL-2.0

//! Faults while a dma-buf is bound, or let go.

use std::io;

use devmem::Error;
use devmem::netdev::Netdev;
use devmem::netlink::Attrs;
use devmem_testlib::Outcome;
use devmem_testlib::faults::Watch;

use crate::rig::Rig;
use crate::walk::Result;
use crate::walk::Shot;
use crate::walk::Walk;

/// The request that is made.
#[derive(Clone, Copy)]
pub enum Way {
    Rx,
    Tx,
}

impl Way {
    fn request(self, netdev: &mut Netdev, attrs: &Attrs) -> std::result::Result<u32, Error> {
        match self {
            Self::Rx => netdev.bind_rx(attrs),
            Self::Tx => netdev.bind_tx(attrs),
        }
    }

    /// Runs `f` where the request has to be made, with a socket that the family knows already, and the
    /// attributes of a good request.
    pub fn with_socket<T: Send>(
        self,
        rig: &Rig,
        f: impl FnOnce(&mut dyn FnMut() -> Result) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let (end, attrs) = match self {
            Self::Rx => (&rig.pair.rx, rig.rx_attrs()),
            Self::Tx => (&rig.pair.tx, rig.tx_attrs()),
        };
        end.ns.run(|| {
            let mut netdev = Netdev::open()?;
            let nothing = Attrs::new().u32(devmem::netdev::dmabuf::IFINDEX, u32::MAX >> 1);
            let refused = netdev.bind_rx(&nothing);
            assert!(refused.is_err(), "{refused:?}");
            f(&mut || answer(self.request(&mut netdev, &attrs)))
        })
    }
}

fn answer(result: std::result::Result<u32, Error>) -> Result {
    match result {
        Ok(_) => Ok(()),
        Err(err) => Err(err.errno().unwrap_or_else(|| panic!("{err}"))),
    }
}

fn shoot(way: Way, rig: &Rig, watch: &Watch, nth: u32) -> io::Result<Shot> {
    way.with_socket(rig, |request| watch.nth_fails(nth, request))
}

/// Two queues, so that the first is open when the second fails.
pub fn bind_rx() -> Outcome {
    let walk = Walk {
        name: "bind_rx",
        reach: &[
            "netlink_sendmsg",
            "netdev_nl_bind_rx_doit",
            "dma_buf_attach|dma_buf_dynamic_attach",
            "dma_buf_map_attachment",
            "net_devmem_binding_init",
            "netdev_rx_queue_reconfig",
            "nsim_queue_mem_alloc",
            "page_pool_create",
            "netlink_ack",
            "netlink_recvmsg",
        ],
        stride: 1,
        tells: true,
    };
    walk.run(&mut Rig::new()?, |rig, watch, nth| {
        shoot(Way::Rx, rig, watch, nth)
    })
}

pub fn bind_tx() -> Outcome {
    let walk = Walk {
        name: "bind_tx",
        reach: &[
            "netlink_sendmsg",
            "netdev_nl_bind_tx_doit",
            "dma_buf_attach|dma_buf_dynamic_attach",
            "dma_buf_map_attachment",
            "net_devmem_binding_init",
            "netlink_ack",
            "netlink_recvmsg",
        ],
        stride: 1,
        tells: true,
    };
    walk.run(&mut Rig::new()?, |rig, watch, nth| {
        shoot(Way::Tx, rig, watch, nth)
    })
}

/// The socket of a receive binding is closed.
pub fn unbind() -> Outcome {
    let walk = Walk {
        name: "unbind",
        reach: &[],
        stride: 1,
        tells: false,
    };
    walk.run(&mut Rig::new()?, |rig, watch, nth| {
        let site = rig.pair.rx.ns.run(|| {
            let mut netdev = Netdev::open()?;
            netdev.bind_rx(&rig.rx_attrs())?;
            Ok(watch.nth_fails(nth, || drop(netdev))?.1)
        })?;
        // A queue that could not be restarted keeps its pool until it is.
        rig.restart_queues()?;
        Ok((Ok(()), site))
    })
}
