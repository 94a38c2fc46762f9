// SPDX-License-Identifier: GPL-2.0

//! Memory that its exporter takes back, as VFIO does when its device is reset or closed: it goes at once, and nothing is
//! read or sent any more that was in it.

mod memory;
mod receive;
mod send;
mod storm;
mod survivor;

use std::process::ExitCode;

use devmem_testlib::runner;
use devmem_testlib::tests;

fn main() -> ExitCode {
    runner::run_within(
        devmem_testlib::storm::timeout(),
        tests![
            receive::between_packets,
            receive::under_traffic,
            receive::unread,
            receive::behind_what_is_still_there,
            receive::while_it_is_waited_for,
            receive::moves_to_be_pinned,
            receive::several_queues_by_several,
            receive::beside_another,
            receive::while_it_is_unbound,
            receive::while_the_device_goes,
            receive::of_a_device_that_is_down,
            receive::is_told,
            send::sent_and_acknowledged,
            send::not_acknowledged,
            send::in_a_qdisc,
            send::while_it_is_sent,
            send::sent_under_traffic,
            send::beside_another_binding,
            send::sent_while_it_is_unbound,
            send::sent_while_the_device_goes,
            survivor::what_happened_before_is_told,
            survivor::goes_on,
            storm::everything_at_once,
        ],
    )
}
