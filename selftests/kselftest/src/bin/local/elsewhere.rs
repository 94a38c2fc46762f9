// SPDX-License-Identifier: GPL-2.0

//! Ways that what is local cannot go.

use std::io::Write;
use std::net::TcpStream;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::send::enable_zerocopy;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Sending;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::received;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::wait_received;
use devmem_testlib::pump::reset_on_close;
use devmem_testlib::tx;
use devmem_testlib::tx::extent;
use devmem_testlib::tx::fails;
use devmem_testlib::xdp;
use nix::errno::Errno;

use crate::PAGE;
use crate::told;

/// Nothing gets to a device that does DMA: it is dropped there, and counted.
pub fn forwarded_to_a_nic() -> Outcome {
    for joint in [Joint::Veth, Joint::Netkit] {
        let nic = Pair::new()?;
        let container = nic.tx.container(joint)?;
        nic.rx.ip("route add 198.51.100.0/24 via 192.0.2.2")?;
        let listener = nic.listen(Ip::V4, Sending::PORT)?;
        let to = listener.local_addr()?;
        let mut tx = container.ns.run(|| TcpStream::connect(to))?;
        let (rx, _) = listener.accept()?;
        // What is in host memory gets through.
        tx.write_all(&[1])?;
        wait_received(&rx, 1);

        let memory = DmaBuf::udmabuf(PAGE as usize)?;
        let binding = container.bind_tx(&memory)?;
        enable_zerocopy(&tx)?;
        let before = nic.tx.tx_dropped()?;
        let sent = tx::Call::new(binding.id(), &[extent(0, 100)]).send(&tx)?;
        assert_eq!(sent, 100);
        soon("a packet to be dropped", || {
            Ok(nic.tx.tx_dropped()? > before)
        });
        soon("it to be sent again", || Ok(tx::tries_again(&tx)? > 0));
        assert_eq!(received(&rx)?, 1, "{joint:?}");
        reset_on_close(&tx)?;
    }
    Ok(())
}

/// A program of XDP at the other end of a veth has packets copied for it: what cannot be is dropped.
pub fn before_xdp() -> Outcome {
    let bench = Sending::local(Joint::Veth)?;
    let (tx, there) = (&bench.connection.tx, &bench.pair.rx);
    let program = there.ns.run(|| xdp::attach_to_driver(there.ifindex))?;
    bench.sends(&bench.call(&[extent(0, 100)]));
    soon("it to be sent again", || Ok(tx::tries_again(tx)? > 0));
    assert_eq!(received(&bench.connection.rx)?, 0);
    drop(program);
    wait_received(&bench.connection.rx, 100);
    Ok(())
}

/// The binding of a NIC is not one by which to send to this machine, nor a local one by which to send by a NIC.
pub fn of_the_other_kind() -> Outcome {
    let nic = Sending::new()?;
    let here = &nic.pair.tx;
    here.ip("link set lo up")?;
    let (listener, connected) = here.ns.run(|| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let connected = TcpStream::connect(listener.local_addr()?)?;
        Ok((listener, connected))
    })?;
    enable_zerocopy(&connected)?;
    fails(nic.call(&[extent(0, 1)]).send(&connected), Errno::ENODEV);

    let lo = here.ns.ifindex("lo")?;
    let local = here
        .ns
        .run(|| Ok(BindTx::new(lo).local().bind(&nic.memory)))??;
    let call = tx::Call::new(local.id(), &[extent(0, 1)]);
    fails(call.send(&nic.connection.tx), Errno::ENODEV);
    assert_eq!(call.send(&connected)?, 1);
    let (socket, _) = listener.accept()?;
    let map = nic.memory.map()?;
    let mut probe = Probe::new(&socket, &[(local.id(), &map)]).quiet();
    let (parts, _) = told(local.id(), &mut probe, 1);
    assert_eq!(parts, [extent(0, 1)]);
    Ok(())
}
