// SPDX-License-Identifier: GPL-2.0

//! Errors that tell what was being done, and what can be done about it.

use std::error::Error;

/// Adds what was being done to an error.
pub fn context<'a, E: Into<Box<dyn Error>>>(
    what: impl Into<String> + 'a,
) -> impl FnOnce(E) -> Box<dyn Error> + 'a {
    move |err| format!("{}: {}", what.into(), err.into()).into()
}

/// A refused bind request, and what an operator can do about it.
pub fn bind_error(what: &str, interface: &str, err: &devmem::Error) -> String {
    let hint = match (err, err.errno()) {
        (devmem::Error::NoFamily(_), _) => "the kernel needs CONFIG_NET_DEVMEM",
        (_, Some(errno)) => match nix::errno::Errno::from_raw(errno) {
            nix::errno::Errno::EPERM => "run it as root, or with CAP_NET_ADMIN",
            nix::errno::Errno::EEXIST => "another binding or an XDP program has it",
            nix::errno::Errno::EOPNOTSUPP => "this NIC or its driver does not do that",
            nix::errno::Errno::ENOMEM => "there is not enough memory",
            _ => "",
        },
        _ => "",
    };
    match hint {
        "" => format!("{what} {interface}: {err}"),
        hint => format!("{what} {interface}: {err}\nHint: {hint}."),
    }
}
