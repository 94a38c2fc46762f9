// SPDX-License-Identifier: GPL-2.0

//! Errors that tell what was being done, and what can be done about it.

use std::error::Error;
use std::io;

use devmem::netdev::dmabuf;
use devmem::netlink::ExtAck;

/// What may fail for any reason.
pub type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Adds what was being done to an error.
pub fn context<'a, E: Into<Box<dyn Error + Send + Sync>>>(
    what: impl Into<String> + 'a,
) -> impl FnOnce(E) -> Box<dyn Error + Send + Sync> + 'a {
    move |err| format!("{}: {}", what.into(), err.into()).into()
}

/// A refused bind request, and what an operator can do about it.
pub fn bind_error(what: &str, interface: &str, err: &devmem::Error) -> String {
    let hint = match (err, err.errno()) {
        (devmem::Error::NoFamily(_), _) => "the kernel needs CONFIG_NET_DEVMEM",
        (_, Some(errno)) => match nix::errno::Errno::from_raw(errno) {
            nix::errno::Errno::EPERM => "run it as root, or with CAP_NET_ADMIN",
            nix::errno::Errno::EEXIST => "another binding or an XDP program has it",
            nix::errno::Errno::EOPNOTSUPP if is_about(err, dmabuf::FD) => {
                "whoever exports that memory may want it back, which takes the module (sysctl net.core.devmem_provider)"
            }
            nix::errno::Errno::EOPNOTSUPP => "this NIC or its driver does not do that",
            // A kernel that has the attribute refuses none of its values.
            nix::errno::Errno::EINVAL if is_about(err, dmabuf::LOCAL) => {
                "it takes a kernel with the patches of devmem_provider (the set local)"
            }
            nix::errno::Errno::ENOMEM => "there is not enough memory",
            _ => "",
        },
        _ => "",
    };
    let said = match err {
        devmem::Error::Refused { errno, ack } => refusal(*errno, ack),
        err => err.to_string(),
    };
    match hint {
        "" => format!("{what} {interface}: {said}"),
        hint => format!("{what} {interface}: {said}\nHint: {hint}."),
    }
}

/// Whether it is this attribute that was refused.
fn is_about(err: &devmem::Error, attribute: u16) -> bool {
    let devmem::Error::Refused { ack, .. } = err else {
        return false;
    };
    ack.attribute
        .as_ref()
        .is_some_and(|path| path.types.first() == Some(&attribute))
}

/// Why the kernel refused, and which option that is about.
fn refusal(errno: i32, ack: &ExtAck) -> String {
    let mut said = io::Error::from_raw_os_error(errno).to_string();
    if let Some(message) = &ack.message {
        said = format!("{said}: {message}");
    }
    let path = ack.attribute.as_ref();
    match path.and_then(|path| option(&path.types, path.nth)) {
        Some(option) => format!("{said} ({option})"),
        None => said,
    }
}

/// The option that an attribute of bind-rx or bind-tx comes from, the `nth` of its kind.
fn option(types: &[u16], nth: usize) -> Option<String> {
    Some(match *types.first()? {
        dmabuf::IFINDEX => "--interface".into(),
        dmabuf::QUEUES => format!("--queue number {}", nth + 1),
        dmabuf::FD => "the dma-buf, of --memory and --kind or --vfio".into(),
        dmabuf::RX_PAGE_SIZE => "--rx-page-size".into(),
        dmabuf::LOCAL => "--local or --share".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use devmem::netdev::queue;
    use devmem::netlink::AttrPath;

    fn refused(errno: i32, attribute: u16) -> devmem::Error {
        let mut ack = ExtAck::default();
        ack.attribute = Some(AttrPath {
            types: vec![attribute],
            nth: 0,
        });
        devmem::Error::Refused {
            errno,
            ack: Box::new(ack),
        }
    }

    #[test]
    fn what_the_kernel_lacks() {
        let said = |attribute| bind_error("by", "lo", &refused(nix::libc::EINVAL, attribute));
        assert!(said(dmabuf::LOCAL).contains("the set local"));
        assert!(!said(dmabuf::IFINDEX).contains("Hint"));
    }

    #[test]
    fn what_an_attribute_is_called() {
        for (types, nth, expected) in [
            (&[dmabuf::IFINDEX][..], 0, Some("--interface")),
            (&[dmabuf::QUEUES, queue::ID], 1, Some("--queue number 2")),
            (&[dmabuf::RX_PAGE_SIZE], 0, Some("--rx-page-size")),
            (&[dmabuf::LOCAL], 0, Some("--local or --share")),
            (&[99], 0, None),
            (&[], 0, None),
        ] {
            assert_eq!(option(types, nth).as_deref(), expected);
        }
    }
}
