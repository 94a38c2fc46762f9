// SPDX-License-Identifier: GPL-2.0

//! Every allocation, every copy from and to user space, and every call that binding, receiving, sending
//! and the end of it all need, fails once.
//!
//! The kernel's fault injection goes through the points of a system call, one after the other
//! ([`walk`]), and calls that have more to go wrong than memory are made to fail by name ([`calls`]).
//! After each: the errno was the right one, everything is as before, and bytes arrive.

use std::process::ExitCode;

use devmem_testlib::odd;
use devmem_testlib::report;
use devmem_testlib::runner;
use devmem_testlib::tests;

mod bind;
mod calls;
mod copies;
mod ops;
mod rig;
mod softirq;
mod stream;
mod teardown;
mod walk;

fn main() -> ExitCode {
    let code = runner::run(tests![
        bind::bind_rx,
        bind::bind_tx,
        bind::unbind,
        stream::receive,
        stream::receive_first,
        stream::give_back,
        stream::send,
        stream::close,
        calls::calls_of_bind_rx,
        calls::calls_of_open_queues,
        calls::calls_of_bind_tx,
        calls::calls_of_receive,
        calls::calls_of_send,
        copies::beyond_the_limits,
        copies::without_large_pages,
        copies::without_address_space,
        teardown::delete_device,
        teardown::unbound_without_memory,
        teardown::closed_with_many_bindings,
        ops::writable_ops,
        softirq::traffic,
        softirq::leaks,
    ]);
    // Its probe would cost whatever is run afterwards some time.
    if let Err(err) = odd::unload() {
        report::diag(format_args!("unloading devmem_test: {err}"));
        return ExitCode::FAILURE;
    }
    code
}
