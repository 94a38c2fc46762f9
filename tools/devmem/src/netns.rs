// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::panic;
use std::path::Path;
use std::thread;

use nix::net::if_::if_nametoindex;
use nix::sched::CloneFlags;
use nix::sched::setns;
use nix::sched::unshare;
use nix::sys::stat::fstat;

use crate::tcp;

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

    /// Its number, which no other one has until the machine is started anew. The number of its file goes to another
    /// one as soon as it is gone.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run), of `socket()`, and of `getsockopt(SO_NETNS_COOKIE)`.
    pub fn cookie(&self) -> io::Result<u64> {
        self.run(|| {
            let socket = UnixDatagram::unbound()?;
            let mut value = [0; size_of::<u64>()];
            match tcp::option(
                socket.as_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                &mut value,
            )? {
                len if len == value.len() => Ok(u64::from_ne_bytes(value)),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
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
    /// Those of `f`; of `setns()`, `EPERM` without CAP_SYS_ADMIN, unless it is the caller's; and of making a thread:
    /// `EAGAIN`.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_thread(|| {
            // Not everybody may enter even the one that he is in.
            if !self.is_current().unwrap_or(false) {
                setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
            }
            f()
        })
    }

    /// Whether the calling thread is there.
    fn is_current(&self) -> io::Result<bool> {
        let (this, current) = (fstat(&self.fd)?, fstat(&Self::current()?.fd)?);
        Ok((this.st_dev, this.st_ino) == (current.st_dev, current.st_ino))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn in_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, f)?;
        thread.join().unwrap_or_else(|e| panic::resume_unwind(e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn an_interface_has_a_number_or_is_none() {
        let netns = Netns::current().unwrap();
        // Whoever asks may do so where he is.
        assert_ne!(netns.ifindex("lo").unwrap(), 0);
        let err = netns.ifindex("no such one").unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn each_has_a_number_of_its_own() {
        let netns = Netns::current().unwrap();
        let cookie = netns.cookie().unwrap();
        assert_eq!(netns.cookie().unwrap(), cookie);
        // One after the other, which may have the same file.
        let mut seen = vec![cookie];
        for _ in 0..3 {
            match Netns::new() {
                Ok(netns) => seen.push(netns.cookie().unwrap()),
                Err(err) => {
                    assert_eq!(err.raw_os_error(), Some(libc::EPERM));
                    return eprintln!("SKIP: no namespaces for this user: {err}");
                }
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 4);
    }
}
