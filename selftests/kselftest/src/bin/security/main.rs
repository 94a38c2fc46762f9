// SPDX-License-Identifier: GPL-2.0

//! Who may do what, and what a user can do to others: `Documentation/security.rst` in tests.

mod access;
mod foreign;
mod limits;
mod memory;

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::process::ExitCode;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::send::enable_zerocopy;
use devmem_testlib::Pair;
use devmem_testlib::child::enter;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::provider::Provider;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::tx;

const PAGE: usize = 4096;
const PORT: u16 = 5001;
/// How many transmit bindings a user may have, in the user namespace of who looks.
const BINDINGS_LIMIT: &str = "/proc/sys/user/max_devmem_tx_bindings";
/// What a test sends.
const PART: Extent = Extent {
    offset: PAGE as u64,
    len: 3 * PAGE as u64 + 1,
};

/// Whether the module is under test, which limits what the C code does not.
fn closed() -> bool {
    provider::under_test() == Provider::Module
}

/// A pair of devices, memory with something to read in it, and a listener.
struct Stage {
    pair: Pair,
    memory: DmaBuf,
    listener: TcpListener,
}

impl Stage {
    fn new() -> io::Result<Self> {
        let memory = DmaBuf::udmabuf(64 * PAGE)?;
        tx::fill(&memory)?;
        let pair = Pair::new()?;
        let listener = pair.listen(Ip::V4, PORT)?;
        Ok(Self {
            pair,
            memory,
            listener,
        })
    }

    fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Connects from a child, which is left in the sending end's namespace.
    fn connect_in_child(&self) -> io::Result<TcpStream> {
        enter(&self.pair.tx.ns)?;
        let socket = TcpStream::connect(self.address()?)?;
        enable_zerocopy(&socket)?;
        Ok(socket)
    }
}

fn main() -> ExitCode {
    runner::run(tests![
        access::bind_rx_needs_rights,
        access::bind_rx_in_a_container,
        access::bind_tx_is_open,
        access::netlink_sockets_passed_on,
        access::what_queries_tell,
        access::what_is_told_of_bindings,
        access::settings_are_roots,
        foreign::who_may_send,
        foreign::no_oracle,
        foreign::refusals_are_traced,
        foreign::shared_bindings,
        foreign::shared_with_a_container,
        foreign::shared_by_a_netkit_that_is_gone,
        foreign::bound_by_a_socket_passed_on,
        foreign::sockets_passed_on,
        foreign::by_io_uring,
        foreign::receive_binding_sent_from,
        foreign::another_users_memory_is_not_read,
        foreign::another_users_memory_is_not_pinned,
        limits::bindings_of_a_user,
        limits::bindings_made_at_once,
        limits::bindings_by_user_namespaces,
        limits::memory_of_a_user,
        limits::local_memory_of_a_user,
        limits::local_memory_in_a_container,
        limits::memory_of_a_container,
        limits::tokens_of_a_socket,
        limits::tokens_by_peeking,
        limits::another_users_flow_goes_on,
        memory::bindings_are_charged,
        memory::bindings_fail_at_the_limit,
        memory::tokens_are_charged,
    ])
}
