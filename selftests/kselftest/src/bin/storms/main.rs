// SPDX-License-Identifier: GPL-2.0

//! Storms on bindings, sockets, processes, devices and modules: after each of them nothing is left, and
//! the next transfer is right.

mod crowd;
mod devices;
mod flows;
mod modules;
mod pressure;
mod processes;
mod sockets;

use std::process::ExitCode;

use devmem_testlib::runner;
use devmem_testlib::storm;
use devmem_testlib::tests;

fn main() -> ExitCode {
    if processes::victim() {
        return ExitCode::FAILURE;
    }
    runner::run_within(
        storm::timeout(),
        tests![
            sockets::closed_in_any_order,
            sockets::bound_and_unbound,
            processes::receivers_killed,
            processes::senders_killed,
            devices::disturbed,
            devices::taken_away,
            modules::unloaded_and_loaded,
            modules::unloaded_under_a_reader,
            pressure::short_of_memory,
            pressure::cpu_unplugged,
            crowd::many_bindings,
            crowd::many_connections,
        ],
    )
}
