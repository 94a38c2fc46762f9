// SPDX-License-Identifier: GPL-2.0

//! Faults while what is sent from a local binding is copied for a reader that does not ask for device memory.

use devmem::DmaBuf;
use devmem::send::enable_zerocopy;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::faults;
use devmem_testlib::faults::Scarcity;
use devmem_testlib::fixture::Sending;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::wait_received;
use devmem_testlib::tx;
use devmem_testlib::tx::extent;
use nix::errno::Errno;

/// All calls of a function.
const EACH: u32 = 0;
/// What a function returns that says false, or gives nothing.
const NULL: i64 = 0;

/// Where sockets may have no more memory, one packet after the other can be read.
pub fn beyond_the_limits() -> Outcome {
    const PACKETS: usize = 3;
    const LEN: usize = 15_000;
    let bench = Sending::local(Joint::Lo)?;
    let rx = &bench.connection.rx;
    for n in 0..PACKETS {
        bench.sends(&bench.call(&[extent((n * LEN) as u64, LEN as u64)]));
        wait_received(rx, ((n + 1) * LEN) as u64);
    }
    let all = Call::ordinary(PACKETS * LEN).flags(libc::MSG_WAITALL);
    let limit = faults::Call::fails("__sk_mem_schedule", EACH, NULL)?;
    let got = Probe::new(rx, &[]).quiet().call(&all);
    let (calls, _) = limit.result()?;
    drop(limit);
    got.assert_plain(0, PACKETS * LEN);
    assert!(calls > 0, "there was memory");
    Ok(())
}

/// What came in packets that are larger than the frags of one have room for is read where memory is in pieces, too.
pub fn without_large_pages() -> Outcome {
    const ALL_OF_IT: usize = 900_000;
    let memory = DmaBuf::udmabuf(1 << 20)?;
    tx::fill(&memory)?;
    let pair = Pair::local(Joint::Lo)?;
    pair.rx.sysctl("ipv4/tcp_rmem", "4096 4194304 6291456")?;
    pair.tx.set_big_tcp(524_280)?;
    let binding = pair.tx.bind_tx(&memory)?;
    let connection = pair.connect(&pair.listen(Ip::V4, Sending::PORT)?)?;
    enable_zerocopy(&connection.tx)?;
    let call = tx::Call::new(binding.id(), &[extent(0, ALL_OF_IT as u64)]);
    assert_eq!(call.send(&connection.tx)?, ALL_OF_IT);
    wait_received(&connection.rx, ALL_OF_IT as u64);
    let map = memory.map()?;
    let mut probe = Probe::new(&connection.rx, &[(binding.id(), &map)]).quiet();
    let packets = probe.call(&Call::new(ALL_OF_IT).flags(libc::MSG_PEEK));
    let sizes = packets.sizes();
    assert!(sizes.iter().any(|&size| size > 1 << 16), "{sizes:?}");
    probe.give_back();

    let scarcity = Scarcity::of_large_pages()?;
    let got = probe.call(&Call::ordinary(ALL_OF_IT).flags(libc::MSG_WAITALL));
    drop(scarcity);
    got.assert_plain(0, ALL_OF_IT);
    Ok(())
}

/// That there is no place to map the memory at is for the reader as if there was no memory: it can try again.
pub fn without_address_space() -> Outcome {
    let bench = Sending::local(Joint::Lo)?;
    let rx = &bench.connection.rx;
    bench.sends(&bench.call(&[extent(0, 5000)]));
    wait_received(rx, 5000);
    let mut probe = Probe::new(rx, &[]).quiet();
    let fault = faults::Call::fails_for_all("vm_map_ram", EACH, NULL)?;
    probe
        .call(&Call::ordinary(5000))
        .assert_fails(Errno::ENOMEM as i32);
    drop(fault);
    probe.call(&Call::ordinary(5000)).assert_plain(0, 5000);
    Ok(())
}
