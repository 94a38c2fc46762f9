// SPDX-License-Identifier: GPL-2.0

//! Ops of memory providers that somebody could write to.

use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::faults::Call;
use devmem_testlib::ops;
use devmem_testlib::ops::Ops;

/// Page pools take only those that lie in the read-only data of the module that they name, and warn of others.
pub fn writable_ops() -> Outcome {
    const QUEUE: u32 = 1;
    const BUG_TRAP_TYPE_WARN: i64 = 1;
    let pair = Pair::new()?;
    let ifindex = pair.rx.ifindex;
    for (kind, errno) in [
        (Ops::Good, None),
        (Ops::OfNobody, Some(libc::EFAULT)),
        (Ops::Writable, Some(libc::EFAULT)),
        (Ops::Forged, Some(libc::EFAULT)),
    ] {
        let (created, warnings) = pair.rx.ns.run(|| {
            // What the kernel would say is what the test is about, and no defect.
            let warning = Call::fails("report_bug", 1, BUG_TRAP_TYPE_WARN)?;
            let created = ops::create_pool(ifindex, QUEUE, kind);
            Ok((created, warning.result()?.0))
        })?;
        let refused = created.err().map(|err| err.raw_os_error());
        assert_eq!(refused, errno.map(Some), "{kind:?}");
        assert_eq!(warnings, u32::from(errno.is_some()), "{kind:?}: warnings");
    }
    Ok(())
}
