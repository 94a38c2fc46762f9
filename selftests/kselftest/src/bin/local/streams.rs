// SPDX-License-Identifier: GPL-2.0

//! What is read of what was sent: where it lies, and how much of it at once.

use std::io;
use std::thread;

use devmem::DmaBuf;
use devmem::Receiver;
use devmem::recv::take_runs;
use devmem::send::enable_zerocopy;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Sending;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::wait_received;
use devmem_testlib::report::observe;
use devmem_testlib::tx;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::extent;
use devmem_testlib::tx::fails;
use nix::errno::Errno;

use crate::ALL;
use crate::EDGE;
use crate::PAGE;
use crate::nothing_completes;
use crate::nothing_of;
use crate::parts;
use crate::probe;
use crate::returns;
use crate::told;
use crate::unseen;

/// A reader is told where it is, and the sender is told when the reader has given it back.
pub fn told_where_it_is() -> Outcome {
    for joint in Joint::ALL {
        let bench = Sending::local(joint)?;
        let map = bench.memory.map()?;
        let mut probe = probe(&bench, &map);
        let sent = [extent(7, 5000), extent(3 * PAGE, 40_000), extent(100, 1)];
        bench.sends(&bench.call(&sent));
        let (parts, tokens) = told(bench.binding.id(), &mut probe, tx::total(&sent));
        assert_eq!(parts, sent, "{joint:?}");

        let mut completions = Completions::default();
        nothing_completes(&bench.connection.tx, &mut completions)?;
        let (last, others) = tokens.split_last().expect("tokens");
        returns(&bench.connection.rx, others)?;
        nothing_completes(&bench.connection.tx, &mut completions)?;
        returns(&bench.connection.rx, &[*last])?;
        bench.completes()?;
    }
    Ok(())
}

/// Both families, and many calls: each byte is where the reader is told that it is.
pub fn a_stream() -> Outcome {
    let ways = Joint::ALL
        .into_iter()
        .flat_map(|joint| [(joint, Ip::V4), (joint, Ip::V6)]);
    for (joint, ip) in ways {
        let memory = DmaBuf::udmabuf(1 << 20)?;
        tx::fill(&memory)?;
        let pair = Pair::local(joint)?;
        let binding = pair.tx.bind_tx(&memory)?;
        let connection = pair.connect(&pair.listen(ip, Sending::PORT)?)?;
        enable_zerocopy(&connection.tx)?;
        let map = memory.map()?;
        let parts: Vec<_> = (0..64).map(|n| extent(n * 16_000, 9000 + n)).collect();

        thread::scope(|scope| -> Outcome {
            let sender = scope.spawn(|| -> io::Result<()> {
                for &part in &parts {
                    let call = tx::Call::new(binding.id(), &[part]);
                    assert_eq!(call.send(&connection.tx)? as u64, part.len);
                }
                Ok(())
            });
            let mut receiver = Receiver::new(&connection.rx);
            let copied = tx::expect_in_device_memory(&mut receiver, &map, &parts)?;
            assert_eq!(copied, 0, "bytes in host memory");
            drop(receiver);
            sender.join().expect("a thread that sends")?;
            let mut completions = Completions::default();
            completions.wait(&connection.tx, parts.len() as u32)?;
            assert!(!completions.copied);
            Ok(())
        })?;
    }
    Ok(())
}

/// A peek is told, too, and has to be given back.
pub fn peeked() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let map = bench.memory.map()?;
    let mut probe = probe(&bench, &map);
    bench.sends(&bench.call(&[extent(0, 100)]));
    wait_received(&bench.connection.rx, 100);
    let got = probe.call(&Call::new(ALL).flags(libc::MSG_PEEK));
    got.assert_frags(&[100]);
    let (_, peeked) = parts(&got);
    let (_, tokens) = told(bench.binding.id(), &mut probe, 100);
    assert_ne!(peeked, tokens);
    returns(&bench.connection.rx, &tokens)?;
    nothing_completes(&bench.connection.tx, &mut Completions::default())?;
    returns(&bench.connection.rx, &peeked)?;
    bench.completes()
}

/// Any exporter's memory can be sent: no device is attached, and the CPU does not have to get at it.
pub fn any_exporter() -> Outcome {
    let odd = Shape::new(&[Segment {
        addr: 0x123,
        len: 3 * PAGE + 5,
    }])
    .attach_error(libc::EPERM)
    .of_nothing()?;
    let bench = Sending::local_from(Joint::Netkit, odd.as_any()?)?;
    assert_eq!(odd.state()?.attached, 0);
    let sent = [extent(1, 2 * PAGE), extent(3 * PAGE + 4, 1)];
    bench.sends(&bench.call(&sent));
    bench.refused(&bench.call(&[extent(3 * PAGE + 5, 1)]), Errno::EFAULT);
    let unseen = unseen()?;
    let mut probe = probe(&bench, &unseen);
    let (got, tokens) = told(bench.binding.id(), &mut probe, tx::total(&sent));
    assert_eq!(got, sent);
    returns(&bench.connection.rx, &tokens)?;
    bench.completes()?;
    assert_eq!(odd.state()?.attached, 0);
    Ok(())
}

/// Offsets beyond what 32 bits can say, and across the end of a net_iov.
pub fn far_into_the_memory() -> Outcome {
    let bench = Sending::local_from(Joint::Lo, nothing_of(5)?.as_any()?)?;
    let sent = [
        extent(EDGE - 10, 20),
        extent(3 * EDGE - 1, 50_000),
        extent(5 * EDGE - 1, 1),
    ];
    bench.sends(&bench.call(&sent));
    wait_received(&bench.connection.rx, tx::total(&sent));
    let unseen = unseen()?;
    let mut probe = probe(&bench, &unseen);
    let (got, tokens) = told(bench.binding.id(), &mut probe, tx::total(&sent));
    assert_eq!(got, sent);
    returns(&bench.connection.rx, &tokens)?;
    bench.refused(&bench.call(&[extent(5 * EDGE, 1)]), Errno::EFAULT);
    bench.completes()
}

/// A reader who takes runs gets no token for two packets, though what is in them follows: each is the sender's again by
/// itself. What is in one packet has one.
pub fn runs() -> Outcome {
    let bench = Sending::local_from(Joint::Lo, nothing_of(2)?.as_any()?)?;
    let (tx, rx) = (&bench.connection.tx, &bench.connection.rx);
    // Not all providers know of runs.
    let takes_runs = take_runs(rx)?;
    let unseen = unseen()?;
    let mut held = probe(&bench, &unseen);
    for (offset, received) in [(EDGE - 100, 100), (EDGE, 200)] {
        bench.sends(&bench.call(&[extent(offset, 100)]));
        wait_received(rx, received);
    }
    let (got, tokens) = told(bench.binding.id(), &mut held, 200);
    assert_eq!((got, tokens.len()), (vec![extent(EDGE - 100, 200)], 2));
    let mut completions = Completions::default();
    nothing_completes(tx, &mut completions)?;
    returns(rx, &tokens[1..])?;
    soon("the second call to be completed", || {
        completions.read(tx)?;
        Ok(completions.done == [1])
    });
    returns(rx, &tokens[..1])?;
    completions.wait(tx, 2)?;

    let mut held = probe(&bench, &unseen);
    bench.sends(&bench.call(&[extent(EDGE - 10, 20)]));
    let (got, tokens) = told(bench.binding.id(), &mut held, 20);
    assert_eq!(got, [extent(EDGE - 10, 20)]);
    assert_eq!(tokens.len(), if takes_runs { 1 } else { 2 });
    returns(rx, &tokens)?;
    completions.wait(tx, 3)?;
    assert!(!completions.copied);
    Ok(())
}

/// A packet, and so a frag and its token, is as large as the device lets TCP make it.
pub fn larger_packets() -> Outcome {
    const ALL_OF_IT: u64 = 900_000;
    let memory = DmaBuf::udmabuf(1 << 20)?;
    tx::fill(&memory)?;
    let pair = Pair::local(Joint::Lo)?;
    pair.rx.sysctl("ipv4/tcp_rmem", "4096 4194304 6291456")?;
    pair.tx.set_big_tcp(524_280)?;
    let binding = pair.tx.bind_tx(&memory)?;
    let connection = pair.connect(&pair.listen(Ip::V4, Sending::PORT)?)?;
    enable_zerocopy(&connection.tx)?;
    let call = tx::Call::new(binding.id(), &[extent(0, ALL_OF_IT)]);
    assert_eq!(call.send(&connection.tx)? as u64, ALL_OF_IT);
    wait_received(&connection.rx, ALL_OF_IT);
    let map = memory.map()?;
    let mut probe = Probe::new(&connection.rx, &[(binding.id(), &map)]).quiet();
    let mut sizes = Vec::new();
    while sizes.iter().sum::<u32>() < ALL_OF_IT as u32 {
        let got = probe.call(&Call::new(ALL));
        assert!(!got.is_empty(), "the stream ended");
        sizes.extend(got.sizes());
    }
    assert!(sizes.iter().any(|&size| size > 1 << 16), "{sizes:?}");
    probe.give_back();
    Completions::default().wait(&connection.tx, 1)?;
    Ok(())
}

/// A reader that gives nothing back stops the sender, and nobody else.
pub fn bounded() -> Outcome {
    const MOST: usize = 100_000;
    let bench = Sending::local(Joint::Lo)?;
    bench.connection.tx.set_nonblocking(true)?;
    let mut sent = 0;
    let refused = loop {
        match bench
            .call(&[extent(sent as u64, 1)])
            .send(&bench.connection.tx)
        {
            Ok(_) => sent += 1,
            Err(err) => break err,
        }
        // What is not sent yet shares a notification.
        wait_received(&bench.connection.rx, sent as u64);
        assert!(sent < MOST, "no end");
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENOBUFS));
    observe(format_args!("refused in the end"));
    let others = &bench.pair;
    let another = others.connect(&others.listen(Ip::V4, Sending::PORT + 1)?)?;
    enable_zerocopy(&another.tx)?;
    assert_eq!(bench.call(&[extent(0, 1)]).send(&another.tx)?, 1);
    let map = bench.memory.map()?;
    let mut probe = probe(&bench, &map);
    let (_, tokens) = told(bench.binding.id(), &mut probe, sent as u64);
    fails(
        bench.call(&[extent(0, 1)]).send(&bench.connection.tx),
        Errno::ENOBUFS,
    );
    returns(&bench.connection.rx, &tokens)?;
    let mut completions = Completions::default();
    completions.wait(&bench.connection.tx, sent as u32)?;
    assert_eq!(bench.call(&[extent(0, 1)]).send(&bench.connection.tx)?, 1);
    Ok(())
}
