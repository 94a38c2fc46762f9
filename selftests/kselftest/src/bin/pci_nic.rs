// SPDX-License-Identifier: GPL-2.0

//! A NIC on PCI, whoever serves: every size of payload by memory of the host's, and whether memory of another device can be
//! bound to it.

use std::env;
use std::io;
use std::process::ExitCode;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Error;
use devmem::dmabuf::HUGE_PAGE;
use devmem::netdev::Netdev;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::bar::Bar;
use devmem_testlib::pair::End;
use devmem_testlib::passes;
use devmem_testlib::provider;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::tx::extent;
use nix::errno::Errno;

const MIB: usize = 1 << 20;

fn received() -> Outcome {
    passes::received(&DmaBuf::udmabuf(4 * MIB)?, None)
}

fn received_into_buffers_of_64k() -> Outcome {
    // More than a ring takes.
    const PAGES: usize = 12;
    provider::huge_pages(PAGES)?;
    let memory = DmaBuf::udmabuf_huge(PAGES * HUGE_PAGE)?;
    passes::received(&memory, Some(64 << 10))
}

fn sent() -> Outcome {
    passes::sent(&DmaBuf::udmabuf(MIB)?)
}

fn sent_and_received() -> Outcome {
    passes::sent_and_received(&DmaBuf::udmabuf(MIB)?, &DmaBuf::udmabuf(4 * MIB)?)
}

/// What is sent is in one piece for the host, too, which QEMU's igb asks for behind an IOMMU.
fn sent_from_a_huge_page() -> Outcome {
    provider::huge_pages(1)?;
    let memory = DmaBuf::udmabuf_huge(HUGE_PAGE)?;
    passes::sent(&memory)?;
    passes::sent_and_received(&memory, &DmaBuf::udmabuf(4 * MIB)?)
}

/// What the kernel says to a request at this end.
fn answer<B>(
    end: &End,
    bind: impl FnOnce() -> Result<B, Error> + Send,
    id: impl FnOnce(&B) -> u32 + Send,
) -> io::Result<String> {
    end.ns.run(|| match bind() {
        Ok(binding) => {
            let status = Netdev::open()?.binding(id(&binding))?;
            let to = match status.peer_to_peer {
                Some(true) => "to the device",
                _ => "to somewhere else",
            };
            Ok(format!("bound, {to}"))
        }
        Err(Error::Refused { errno, ack }) => {
            let message = ack.message.unwrap_or_default();
            Ok(format!("{:?}, {message:?}", Errno::from_raw(errno)))
        }
        Err(err) => Err(io::Error::other(err)),
    })
}

/// The NIC can have the memory of another device if it reaches that, and if somebody serves who can give it back.
fn reach() -> Outcome {
    let memory = Bar::open()?.part(extent(0, 4 * MIB as u64))?;
    let pair = Pair::new()?;
    let (rx, tx) = (&pair.rx, &pair.tx);
    let answers = [
        answer(rx, || pair.request(&[1]).bind(&memory), |bound| bound.id())?,
        answer(
            tx,
            || BindTx::new(tx.ifindex).bind(&memory),
            |bound| bound.id(),
        )?,
    ];
    // Where the guest has them, see scripts/guest.
    let reaches = env::var("PLACE").as_deref() != Ok("root");
    let expected = match (provider::under_test(), reaches) {
        (Provider::Builtin, _) => r#"EOPNOTSUPP, "Failed to bind dmabuf to device""#,
        (Provider::Module, false) => r#"EINVAL, "Failed to map dmabuf attachment""#,
        (Provider::Module, true) => "bound, to the device",
    };
    answers.iter().for_each(observe);
    assert_eq!(answers, [expected; 2]);
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        received,
        received_into_buffers_of_64k,
        sent,
        sent_and_received,
        sent_from_a_huge_page,
        reach,
    ])
}
