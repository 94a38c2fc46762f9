// SPDX-License-Identifier: GPL-2.0

//! Child processes that become somebody else, and that their parent talks with.

use std::any::Any;
use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::process;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sched::setns;
use nix::sched::unshare;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use nix::unistd::Gid;
use nix::unistd::Pid;
use nix::unistd::Uid;
use nix::unistd::fork;
use nix::unistd::setgroups;
use nix::unistd::setresgid;
use nix::unistd::setresuid;

use crate::report::diag;
use crate::wait;

/// A user without any rights.
pub const NOBODY: u32 = 65534;
/// Another one.
pub const SOMEBODY: u32 = 1000;

/// How long one side waits for the other.
const ANSWER: Duration = Duration::from_secs(120);

/// One side of the talk between a child and its parent, line by line.
#[derive(Debug)]
pub struct Talk(BufReader<UnixStream>);

impl Talk {
    fn new(stream: UnixStream, answer: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(answer))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Says a line.
    pub fn tell(&self, line: impl ToString) -> io::Result<()> {
        let mut line = line.to_string().replace('\n', " ");
        line.push('\n');
        self.0.get_ref().write_all(line.as_bytes())
    }

    /// Waits for a line. `UnexpectedEof` if the other side is gone.
    pub fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Waits for a line that is a number.
    pub fn hear_number(&mut self) -> io::Result<u32> {
        let line = self.hear()?;
        line.parse().map_err(|_| io::Error::other(line))
    }

    /// Waits until the other side has nothing more to say.
    pub fn wait_for_the_end(&mut self) -> io::Result<()> {
        match self.hear() {
            Err(err) if err.kind() == ErrorKind::UnexpectedEof => Ok(()),
            Ok(line) => Err(io::Error::other(line)),
            Err(err) => Err(err),
        }
    }
}

/// A child process, killed when this is dropped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    talk: Option<Talk>,
}

impl Child {
    /// Runs `f` in a child process.
    ///
    /// The child has all file descriptors that are open now, so that what they keep lives for as long
    /// as the child does.
    pub fn start(f: impl FnOnce(&mut Talk) -> io::Result<()>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let answer = wait::patience(ANSWER);
        // SAFETY: The child has this one thread. The memory allocator, which glibc keeps usable across
        // fork(), is the only lock of another thread that it may take.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self {
                pid: child,
                talk: Some(Talk::new(ours, answer)?),
            }),
            ForkResult::Child => {
                drop(ours);
                let status =
                    panic::catch_unwind(AssertUnwindSafe(|| f(&mut Talk::new(theirs, answer)?)));
                // SAFETY: Ends the child at once, without what exit() would do for the parent, too.
                unsafe { libc::_exit(exit_status(&status)) }
            }
        }
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// The talk with it.
    pub fn talk(&mut self) -> &mut Talk {
        self.talk.as_mut().expect("a child that has not ended")
    }

    /// Waits for the child to end, which has to succeed. Says nothing more.
    pub fn end(mut self) -> io::Result<()> {
        if let Some(talk) = self.talk.take() {
            // Closing it would not do: other children have inherited it.
            talk.0.get_ref().shutdown(Shutdown::Write)?;
        }
        match wait(self.pid)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            status => Err(io::Error::other(format!("the child ended: {status:?}"))),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.talk.is_some() {
            // It may have ended already.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = wait(self.pid);
        }
    }
}

/// A program that was started, killed when this is dropped: if a test fails, it is not to stay.
#[derive(Debug)]
pub struct Reaper(pub process::Child);

impl Drop for Reaper {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(pid: Pid) -> nix::Result<WaitStatus> {
    loop {
        match waitpid(pid, None) {
            Err(Errno::EINTR) => (),
            other => return other,
        }
    }
}

fn exit_status(result: &Result<io::Result<()>, Box<dyn Any + Send>>) -> i32 {
    match result {
        Ok(Ok(())) => 0,
        Ok(Err(err)) => {
            diag(format_args!("in the child: {err}"));
            1
        }
        // The panic hook has told already.
        Err(_) => 2,
    }
}

/// Becomes another user for good, in a child.
pub fn become_user(uid: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    Ok(())
}

/// Moves into a namespace, in a child.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    Ok(setns(namespace.as_fd(), CloneFlags::empty())?)
}

/// Moves into a user namespace of its own, and whatever else `others` say, in a child. Has no uid there.
pub fn unshare_user(others: CloneFlags) -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWUSER | others)?)
}

/// The same, and has uids there: those that its parent [lets it in](let_in) with.
pub fn enter_user(talk: &mut Talk, others: CloneFlags) -> io::Result<()> {
    unshare_user(others)?;
    talk.tell("unshared")?;
    talk.hear()?;
    Ok(())
}

/// Gives a child that [enters](enter_user) a user namespace its uids and gids: `inside outside count`, one a line.
pub fn let_in(child: &mut Child, map: &str) -> io::Result<()> {
    child.talk().hear()?;
    let pid = child.pid();
    fs::write(format!("/proc/{pid}/uid_map"), map)?;
    fs::write(format!("/proc/{pid}/gid_map"), map)?;
    child.talk().tell("go on")
}

/// The same, for a child that is to be root there, and is this user outside.
pub fn let_root_in(child: &mut Child, outside: u32) -> io::Result<()> {
    let_in(child, &format!("0 {outside} 1\n"))
}
