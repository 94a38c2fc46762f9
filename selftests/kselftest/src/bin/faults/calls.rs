// SPDX-License-Identifier: GPL-2.0

//! Calls of functions that fail, one after the other.

use devmem_testlib::Outcome;
use devmem_testlib::Provider;
use devmem_testlib::faults::Call;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::sockopt;
use devmem_testlib::state::State;
use devmem_testlib::tx;

use crate::bind::Way;
use crate::rig::Rig;
use crate::stream::Stream;
use crate::walk;

/// A call that fails, and what comes of it.
struct Fault {
    function: &'static str,
    nth: u32,
    ret: i64,
    answer: walk::Result,
}

/// The first call of a function fails with an errno, which is what the user gets.
const fn passed_on(function: &'static str, errno: i32) -> Fault {
    fails(function, 1, -(errno as i64), errno)
}

const fn fails(function: &'static str, nth: u32, ret: i64, errno: i32) -> Fault {
    Fault {
        function,
        nth,
        ret,
        answer: Err(errno),
    }
}

/// It is no harm that a call fails.
const fn harmless(function: &'static str, nth: u32, ret: i64) -> Fault {
    Fault {
        function,
        nth,
        ret,
        answer: Ok(()),
    }
}

const NULL: i64 = 0;
const NO_MEMORY: i64 = -(libc::ENOMEM as i64);

/// What binding needs either way. Errnos that nobody else uses show that they are passed on.
const BIND: [Fault; 8] = [
    passed_on("genl_sk_priv_get", libc::ENOMEM),
    fails("genlmsg_put", 1, NULL, libc::EMSGSIZE),
    fails("netdev_get_by_index_lock", 1, NULL, libc::ENODEV),
    passed_on("dma_buf_get", libc::ENFILE),
    passed_on("net_devmem_binding_init", libc::ENOMEM),
    passed_on("percpu_ref_init", libc::ENOMEM),
    passed_on("net_devmem_binding_publish", libc::ENOSPC),
    passed_on("__xa_alloc_cyclic", libc::ENOMEM),
];

/// How the module gets at the memory. Meanwhile the device is not locked: it may go.
const IMPORT: [Fault; 5] = [
    passed_on("dma_buf_dynamic_attach", libc::EXDEV),
    passed_on("dma_buf_pin", libc::EOPNOTSUPP),
    passed_on("dma_buf_map_attachment", libc::EREMOTEIO),
    fails(
        "dma_resv_wait_timeout",
        1,
        -(libc::EINTR as i64),
        libc::EAGAIN,
    ),
    fails("netdev_get_by_index_lock", 2, NULL, libc::ENODEV),
];

/// How the C code does: what cannot be had peer-to-peer it asks for once more.
const IMPORT_OF_BUILTIN: [Fault; 3] = [
    harmless("dma_buf_dynamic_attach", 1, -(libc::EXDEV as i64)),
    harmless("dma_buf_pin", 1, -(libc::EOPNOTSUPP as i64)),
    harmless("dma_buf_map_attachment", 1, -(libc::EREMOTEIO as i64)),
];

/// What opening the two queues needs: each call for the first one, and for the second.
const OPEN: [Fault; 12] = [
    passed_on("net_devmem_binding_open_rxq", libc::EXFULL),
    fails(
        "net_devmem_binding_open_rxq",
        2,
        -(libc::EXFULL as i64),
        libc::EXFULL,
    ),
    passed_on("netif_mp_open_rxq", libc::EBUSY),
    fails("netif_mp_open_rxq", 2, -(libc::EBUSY as i64), libc::EBUSY),
    passed_on("netdev_queue_config_validate", libc::EDOM),
    fails(
        "netdev_queue_config_validate",
        2,
        -(libc::EDOM as i64),
        libc::EDOM,
    ),
    passed_on("page_pool_create", libc::ENOMEM),
    fails("page_pool_create", 2, NO_MEMORY, libc::ENOMEM),
    passed_on("page_pool_check_memory_provider", libc::ENODATA),
    fails(
        "page_pool_check_memory_provider",
        2,
        -(libc::ENODATA as i64),
        libc::ENODATA,
    ),
    passed_on("nsim_queue_start", libc::EREMOTEIO),
    fails(
        "nsim_queue_start",
        2,
        -(libc::EREMOTEIO as i64),
        libc::EREMOTEIO,
    ),
];

#[track_caller]
fn check(fault: &Fault, call: &Call, got: walk::Result) -> Outcome {
    let Fault { function, nth, .. } = fault;
    let (calls, site) = call.result()?;
    assert!(site.is_some(), "{function}: {calls} calls, none failed");
    report::observe(format_args!("{function} {nth}: {got:?}"));
    assert_eq!(got, fault.answer, "{function} {nth}");
    report::diag(format_args!("{function}: {}", site.expect("a site")));
    Ok(())
}

#[track_caller]
fn bind(way: Way, faults: &[&[Fault]]) -> Outcome {
    let mut rig = Rig::new()?;
    let before = State::of(&rig.pair)?;
    rig.transfer()?;
    for fault in faults.iter().copied().flatten() {
        let (call, got) = way.with_socket(&rig, |request| {
            let call = Call::fails(fault.function, fault.nth, fault.ret)?;
            let got = request();
            Ok((call, got))
        })?;
        check(fault, &call, got)?;
        drop(call);
        before.wait_until_back(&rig.pair);
    }
    rig.transfer()
}

fn import() -> &'static [Fault] {
    match provider::under_test() {
        Provider::Module => &IMPORT,
        Provider::Builtin => &IMPORT_OF_BUILTIN,
    }
}

pub fn calls_of_bind_rx() -> Outcome {
    bind(Way::Rx, &[&BIND, import()])
}

pub fn calls_of_open_queues() -> Outcome {
    bind(Way::Rx, &[&OPEN])
}

pub fn calls_of_bind_tx() -> Outcome {
    bind(Way::Tx, &[&BIND, import()])
}

/// What the first call on a socket needs. The module's one copy to user space is no function of its own.
const RECEIVE: [Fault; 2] = [
    passed_on("net_devmem_grow_tokens", libc::ENOMEM),
    passed_on("net_devmem_grow_tokens", libc::ENOBUFS),
];

/// The same with the C code, which does it for each frag.
const RECEIVE_BUILTIN: [Fault; 6] = [
    passed_on("__xa_alloc", libc::ENOMEM),
    harmless("__xa_alloc", 2, NO_MEMORY),
    passed_on("put_cmsg_notrunc", libc::EFAULT),
    fails("put_cmsg_notrunc", 1, -525, 525),
    harmless("put_cmsg_notrunc", 2, -(libc::EFAULT as i64)),
    harmless("put_cmsg_notrunc", 3, -(libc::EFAULT as i64)),
];

pub fn calls_of_receive() -> Outcome {
    let faults: &[Fault] = match provider::under_test() {
        Provider::Module => &RECEIVE,
        Provider::Builtin => &RECEIVE_BUILTIN,
    };
    let mut rig = Rig::new()?;
    for fault in faults {
        let mut stream = Stream::new(&rig)?;
        stream.fill()?;
        let call = Call::fails(fault.function, fault.nth, fault.ret)?;
        let got = stream.receive();
        check(fault, &call, got.result.map(|_| ()))?;
        drop(call);
        stream.check(&got, None)?;
        stream.drain()?;
    }
    rig.transfer()
}

pub fn calls_of_send() -> Outcome {
    const LEN: u64 = 9000;
    let faults = [
        passed_on("net_devmem_get_binding", libc::ENODEV),
        fails("msg_zerocopy_realloc", 1, NULL, libc::ENOBUFS),
        passed_on("skb_zerocopy_iter_stream", libc::EFAULT),
        harmless("tcp_stream_alloc_skb", 1, NULL),
        harmless("nsim_start_xmit", 1, 0x10),
    ];
    let mut rig = Rig::new()?;
    let binding = rig.pair.tx.bind_tx(&rig.tx_memory)?;
    let connection = rig.pair.connect(&rig.pair.listen(Ip::V4, 0)?)?;
    sockopt::set(&connection.tx, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1_i32)?;
    let mut completions = tx::Completions::default();
    let mut calls = 0;
    for (fault, at) in faults.iter().zip((0..).step_by(LEN as usize)) {
        let part = tx::extent(at, LEN);
        let call = Call::fails(fault.function, fault.nth, fault.ret)?;
        let sent = tx::Call::new(binding.id(), &[part]).send(&connection.tx);
        let got = sent.as_ref().map(|_| ());
        check(
            fault,
            &call,
            got.map_err(|err| err.raw_os_error().unwrap_or(0)),
        )?;
        drop(call);
        if let Ok(len) = sent {
            tx::expect(&connection.rx, &[tx::extent(at, len as u64)])?;
            calls += 1;
        }
        completions.wait(&connection.tx, calls)?;
    }
    drop((connection, binding));
    rig.transfer()
}
