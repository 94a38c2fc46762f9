// SPDX-License-Identifier: GPL-2.0

//! Memory of a PCI device, received into and sent from by NICs on PCI: what is seen of it, from the host, too, and
//! that nobody touches it any more when the device wants it back.

mod passes;
mod shown;
mod taken;

use std::process::ExitCode;

use devmem_testlib::runner;
use devmem_testlib::tests;

fn main() -> ExitCode {
    runner::run(tests![
        passes::opened_in_two_ways,
        passes::received,
        passes::received_into_buffers_of_64k,
        passes::sent,
        passes::from_device_to_device,
        passes::from_pages_to_device,
        passes::from_device_to_pages,
        passes::beside_pages,
        passes::bound_many_times,
        shown::by_the_demo,
        passes::for_the_host,
        taken::not_answering,
        taken::received_until_disabled,
        taken::received_until_reset,
        taken::received_until_closed,
        taken::received_until_killed,
        taken::sent_until_disabled,
        taken::sent_until_reset,
        taken::sent_until_closed,
        taken::sent_until_killed,
    ])
}
