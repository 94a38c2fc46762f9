// SPDX-License-Identifier: GPL-2.0

//! Memory that is taken back when there is no other for the queues that have it: never is unmapped what a device writes
//! to, and never does the exporter wait for somebody to help.

use std::io;
use std::process::ExitCode;

use devmem::Receiver;
use devmem::netdev::Netdev;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::faults::Call;
use devmem_testlib::odd;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;

const QUEUES: [u32; 2] = [1, 2];
const PORT: u16 = 5001;
const LEN: u64 = 256 << 10;
const NO_MEMORY: i64 = -(libc::ENOMEM as i64);

/// Memory that is not written to unseen.
fn memory() -> io::Result<OddDmaBuf> {
    Shape::new(&[Segment { addr: 0, len: LEN }; 4])
        .demands_revocable()
        .of_memory(traffic::bytes(0, 4 * LEN as usize))
}

fn bind(pair: &Pair, memory: &OddDmaBuf) -> io::Result<Netdev> {
    pair.rx.ns.run(|| {
        let mut netdev = Netdev::open()?;
        netdev.bind_rx(&pair.request(&QUEUES).attrs(memory))?;
        Ok(netdev)
    })
}

/// The device works, and not with memory that is gone.
fn assert_works_without(pair: &Pair, memory: &OddDmaBuf) -> Outcome {
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUES[0])?;
    traffic::send(&connection.tx, 0, LEN, LEN as usize)?;
    let mut receiver = Receiver::new(&connection.rx);
    let mut got = 0;
    while got < LEN {
        got += receiver.recv()?.total() as u64;
    }
    let state = memory.state()?;
    assert_eq!((state.attached, state.mapped, state.written), (0, 0, 0));
    Ok(())
}

/// There was no memory for a moment.
fn tried_again() -> Outcome {
    let pair = Pair::new()?;
    let memory = memory()?;
    let bound = bind(&pair, &memory)?;
    let fault = Call::fails_for_all("page_pool_create", 1, NO_MEMORY)?;
    assert_eq!(memory.revoke(), Ok(()));
    assert!(fault.result()?.1.is_some(), "the queue had memory");
    drop(fault);
    assert!(pair.rx.is_up()?, "closed");
    assert_works_without(&pair, &memory)?;
    drop(bound);
    Ok(())
}

/// There is none for as long as one can wait.
fn closed_at_last() -> Outcome {
    let pair = Pair::new()?;
    let memory = memory()?;
    let bound = bind(&pair, &memory)?;
    let fault = Call::fails_for_all("page_pool_create", 0, NO_MEMORY)?;
    assert_eq!(memory.revoke(), Ok(()));
    let (calls, _) = fault.result()?;
    report::diag(format_args!("{calls} page pools were asked for"));
    assert!(calls > QUEUES.len() as u32, "not tried again");
    drop(fault);
    assert!(
        !pair.rx.is_up()?,
        "there is nothing that it could receive to"
    );
    pair.rx.set_up(true)?;
    assert_works_without(&pair, &memory)?;
    drop(bound);
    Ok(())
}

/// The owner has gone, and left the queues with it.
fn taken_back_from_nobody() -> Outcome {
    for for_good in [false, true] {
        let pair = Pair::new()?;
        let memory = memory()?;
        let bound = bind(&pair, &memory)?;
        let fault = Call::fails_for_all("page_pool_create", 0, NO_MEMORY)?;
        drop(bound);
        assert_eq!(memory.state()?.mapped, 1, "a device writes to it");
        let fault = for_good.then_some(fault);
        assert_eq!(memory.revoke(), Ok(()));
        drop(fault);
        assert_eq!(pair.rx.is_up()?, !for_good);
        pair.rx.set_up(true)?;
        assert_works_without(&pair, &memory)?;
        provider::wait_for("the binding to be freed", || {
            Ok(provider::bindings()?.is_none_or(|list| list.is_empty()))
        });
    }
    Ok(())
}

fn main() -> ExitCode {
    let code = runner::run(tests![tried_again, closed_at_last, taken_back_from_nobody]);
    // Its probe would cost whatever is run afterwards some time.
    if let Err(err) = odd::unload() {
        report::diag(format_args!("unloading devmem_test: {err}"));
        return ExitCode::FAILURE;
    }
    code
}
