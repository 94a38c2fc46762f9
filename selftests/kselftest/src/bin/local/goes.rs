// SPDX-License-Identifier: GPL-2.0

//! What becomes of what was sent when somebody goes, or an operator wants it back.

use devmem::netdev::Netdev;
use devmem::netns::Netns;
use devmem::status::State;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Sending;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Joint;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::tx;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::extent;
use devmem_testlib::tx::fails;
use nix::errno::Errno;

use crate::PAGE;
use crate::acknowledged;
use crate::assert_aborted;
use crate::assert_holds;
use crate::holders;
use crate::joined;
use crate::nothing_completes;
use crate::parts;
use crate::probe;
use crate::returns;
use crate::told;

/// What nobody reads is the sender's again when its reader is gone, and so is what he keeps.
pub fn the_reader_goes() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let map = bench.memory.map()?;
    bench.sends(&bench.call(&[extent(0, 3000)]));
    wait_received(&bench.connection.rx, 3000);
    bench.sends(&bench.call(&[extent(0, 4000)]));
    wait_received(&bench.connection.rx, 7000);
    let mut probe = probe(&bench, &map);
    let got = probe.call(&Call::new(3000));
    assert_eq!(got.len(), 3000);
    let mut completions = Completions::default();
    nothing_completes(&bench.connection.tx, &mut completions)?;
    drop(probe);
    let Sending {
        pair,
        memory: _memory,
        binding: _binding,
        connection,
        ..
    } = bench;
    drop(connection.rx);
    completions.wait(&connection.tx, 2)?;
    assert!(!completions.copied);
    drop(pair);
    Ok(())
}

/// What is sent is read although the owner is gone. The binding stays for as long as somebody has something of it,
/// unread or as tokens, and so who has can be found.
pub fn the_owner_goes() -> Outcome {
    let bench = Sending::local(Joint::Veth)?;
    let map = bench.memory.map()?;
    bench.sends(&bench.call(&[extent(0, 3000)]));
    wait_received(&bench.connection.rx, 3000);
    bench.sends(&bench.call(&[extent(9000, 10_000)]));
    wait_received(&bench.connection.rx, 13_000);
    let Sending {
        pair,
        binding,
        connection,
        memory,
        ..
    } = bench;
    let id = binding.id();
    let mut probe = Probe::new(&connection.rx, &[(id, &map)]).quiet();
    let got = probe.call(&Call::new(3000));
    let (parts, kept) = parts(&got);
    assert_eq!(joined(&parts), [extent(0, 3000)]);

    drop(binding);
    drop(memory);
    fails(
        tx::Call::new(id, &[extent(0, 1)]).send(&connection.tx),
        Errno::EINVAL,
    );
    assert_holds(&pair.rx.ns, id, kept.len() as u32, 10_000)?;
    let (parts, tokens) = told(id, &mut probe, 10_000);
    assert_eq!(parts, [extent(9000, 10_000)]);
    returns(&connection.rx, &tokens)?;
    let mut completions = Completions::default();
    soon("the second call to be completed", || {
        completions.read(&connection.tx)?;
        Ok(completions.done == [1])
    });

    assert_holds(&pair.rx.ns, id, kept.len() as u32, 0)?;
    let status = pair.tx.ns.run(|| Ok(Netdev::open()?.binding(id)?))?;
    assert_eq!(status.state, State::Unbound);
    returns(&connection.rx, &kept)?;
    completions.wait(&connection.tx, 2)?;
    provider::all_buffers_back(id);
    Ok(())
}

/// By its tokens a reader holds what an owner who is gone has left, and that its network namespace. Both go when the
/// reader is made to give them back: by the binding, from that namespace, or where the reader is.
pub fn the_namespace_goes() -> Outcome {
    for by_the_binding in [true, false] {
        let bench = Sending::local(Joint::Veth)?;
        let map = bench.memory.map()?;
        bench.sends(&bench.call(&[extent(0, 100)]));
        wait_received(&bench.connection.rx, 100);
        let Sending {
            pair: Pair { rx, tx },
            memory,
            binding,
            connection:
                Connection {
                    rx: reader,
                    tx: sender,
                },
            ..
        } = bench;
        let id = binding.id();
        let mut probe = Probe::new(&reader, &[(id, &map)]).quiet();
        let (_, tokens) = told(id, &mut probe, 100);
        acknowledged(&sender)?;
        let left = tx.ns.run(Netns::current)?;
        drop((binding, memory, sender, tx));

        assert_holds(&rx.ns, id, 1, 0)?;
        if by_the_binding {
            let flushed = left.run(|| Ok(Netdev::open()?.flush(id)?))?;
            assert_eq!(flushed.aborted, 1, "{flushed:?}");
        }
        drop(left);
        if !by_the_binding {
            rx.abort_connections(Sending::PORT)?;
        }
        assert_aborted(&reader)?;
        let range = TokenRange {
            start: tokens[0],
            count: 1,
        };
        assert_eq!(dontneed(&reader, &[range])?, 0);
        provider::all_buffers_back(id);
        provider::wait_for("the other end of the pair to go", || {
            let here = rx.ns.ifindex(&rx.ifname);
            Ok(here.is_err_and(|err| err.raw_os_error() == Some(libc::ENODEV)))
        });
    }
    Ok(())
}

/// The same if it is the device that goes.
pub fn the_device_goes() -> Outcome {
    let bench = Sending::local(Joint::Netkit)?;
    let map = bench.memory.map()?;
    bench.sends(&bench.call(&[extent(5, 6000)]));
    wait_received(&bench.connection.rx, 6000);
    bench.pair.tx.ip("link del there")?;
    fails(
        bench.call(&[extent(0, 1)]).send(&bench.connection.tx),
        Errno::EHOSTUNREACH,
    );
    let status = bench
        .pair
        .tx
        .ns
        .run(|| Ok(Netdev::open()?.binding(bench.binding.id())?))?;
    assert_eq!(status.state, State::Unbound);
    let mut probe = probe(&bench, &map);
    let (parts, tokens) = told(bench.binding.id(), &mut probe, 6000);
    assert_eq!(parts, [extent(5, 6000)]);
    returns(&bench.connection.rx, &tokens)?;
    Ok(())
}

/// An operator gets the memory back from both ends: from who has not read it, who has tokens, and who has to send it.
pub fn flushed() -> Outcome {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Where {
        Unread,
        Tokens,
        Lost,
    }
    for place in [Where::Unread, Where::Tokens, Where::Lost] {
        let bench = Sending::local(Joint::Veth)?;
        let map = bench.memory.map()?;
        let Connection { rx, tx } = &bench.connection;
        if place == Where::Lost {
            bench.pair.tx.cut()?;
        }
        bench.sends(&bench.call(&[extent(0, 9000)]));
        let mut probe = probe(&bench, &map);
        if place != Where::Lost {
            wait_received(rx, 9000);
            acknowledged(tx)?;
        }
        if place == Where::Tokens {
            told(bench.binding.id(), &mut probe, 9000);
        }
        let ns = &bench.pair.tx.ns;
        let flushed = ns.run(|| Ok(Netdev::open()?.flush(bench.binding.id())?))?;
        assert_eq!(flushed.aborted, 1, "{place:?}");
        assert_eq!((flushed.returned, flushed.outstanding), (None, None));
        assert_aborted(if place == Where::Lost { tx } else { rx })?;
        for start in probe.take_held() {
            assert_eq!(dontneed(rx, &[TokenRange { start, count: 1 }])?, 0);
        }
        Completions::default().wait(tx, 1)?;
    }
    Ok(())
}

/// What a reader holds is told, by the id of the sender's binding.
pub fn what_a_reader_holds() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let map = bench.memory.map()?;
    let (ns, id) = (&bench.pair.rx.ns, bench.binding.id());
    bench.sends(&bench.call(&[extent(0, 100), extent(PAGE, 100)]));
    wait_received(&bench.connection.rx, 200);
    assert_holds(ns, id, 0, 200)?;
    assert_eq!(holders(ns)?[0].unread, 200);
    let mut probe = probe(&bench, &map);
    told(id, &mut probe, 200);
    assert_holds(ns, id, 2, 0)?;
    probe.give_back();
    assert_eq!(holders(ns)?, []);
    Ok(())
}
