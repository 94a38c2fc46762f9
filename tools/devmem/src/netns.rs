// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::panic;
use std::path::Path;
use std::thread;

use nix::net::if_::if_nametoindex;
use nix::sched::CloneFlags;
use nix::sched::setns;
use nix::sched::unshare;

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
}

impl Netns {
    /// The one that `ip netns add` made under this name.
    ///
    /// # Errors
    ///
    /// Those of `open()`: [`NotFound`](io::ErrorKind::NotFound) if there is none.
    pub fn named(name: &str) -> io::Result<Self> {
        Ok(Self {
            fd: File::open(Path::new("/run/netns").join(name))?.into(),
        })
    }

    /// That of the calling thread.
    ///
    /// # Errors
    ///
    /// Those of `open()`.
    pub fn current() -> io::Result<Self> {
        Ok(Self {
            fd: File::open("/proc/thread-self/ns/net")?.into(),
        })
    }

    /// That of another process.
    ///
    /// # Errors
    ///
    /// Those of `open()`: [`NotFound`](io::ErrorKind::NotFound) if there is no such process,
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied) if it is somebody else's.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        Ok(Self {
            fd: File::open(format!("/proc/{pid}/ns/net"))?.into(),
        })
    }

    /// A new one without a name.
    ///
    /// # Errors
    ///
    /// Those of `unshare()`: `EPERM` without CAP_SYS_ADMIN, `ENOSPC` beyond `user.max_net_namespaces`.
    pub fn new() -> io::Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// The number of an interface of this namespace.
    ///
    /// # Errors
    ///
    /// `ENODEV` if there is none of this name; those of [`run`](Self::run).
    pub fn ifindex(&self, name: &str) -> io::Result<u32> {
        self.run(|| Ok(if_nametoindex(name)?))
    }

    /// Runs `f` in this namespace: what it opens, and the programs it starts, belong there.
    ///
    /// It runs in a thread of its own, so that the caller's namespace never changes.
    ///
    /// # Errors
    ///
    /// Those of `f`, and of `setns()`: `EPERM` without CAP_SYS_ADMIN.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_thread(|| {
            setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
            f()
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn in_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| scope.spawn(f).join()).unwrap_or_else(|e| panic::resume_unwind(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn an_interface_has_a_number_or_is_none() {
        let netns = Netns::current().unwrap();
        match netns.ifindex("lo") {
            Ok(number) => assert_ne!(number, 0),
            // Not everybody may enter even the namespace he is in.
            Err(err) => return assert_eq!(err.raw_os_error(), Some(libc::EPERM)),
        }
        let err = netns.ifindex("no such one").unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ENODEV));
    }
}
