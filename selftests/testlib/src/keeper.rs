// SPDX-License-Identifier: GPL-2.0

//! A process that puts things back if this program does not come to do that: it is killed, or ends over a test that
//! hangs. It learns what was changed, and outlives the program.

use std::io;
use std::io::ErrorKind;
use std::mem;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use nix::unistd::Pid;
use nix::unistd::getpid;
use nix::unistd::setsid;

use crate::child::Child;
use crate::child::Talk;
use crate::report::diag;
use crate::sockopt;
use crate::wait;

/// What it is told in the end.
const DISMISSED: &str = "dismissed";
/// How long a program that is killed may take to end.
const LONG: Duration = Duration::from_secs(60);

static KEEPER: Mutex<Option<Child>> = Mutex::new(None);

fn keeper() -> MutexGuard<'static, Option<Child>> {
    KEEPER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts it. `look` tells how things are, to which each change is then `noted`; they are put back when they are
/// dropped.
pub(crate) fn start<T>(
    look: impl FnOnce() -> io::Result<T>,
    noted: impl Fn(&T, &str) -> io::Result<()>,
) -> io::Result<()> {
    let program = pidfd_of(getpid())?;
    let mut child = Child::start(move |talk| {
        // Who ends the program, and all that it has started, does not end this.
        setsid()?;
        let things = look()?;
        talk.tell("")?;
        if hear_all(talk, |change| noted(&things, change))? {
            mem::forget(things);
            return Ok(());
        }
        diag("putting back what this program has left");
        // What it has bound keeps some of that from being done.
        wait::until("the end of the program", LONG, || {
            Ok(sockopt::poll(&program)? != 0)
        })?;
        drop(things);
        Ok(())
    })?;
    child.talk().hear()?;
    *keeper() = Some(child);
    Ok(())
}

/// Hears of all changes, until the program has put all back, or is gone. Tells which.
fn hear_all(talk: &mut Talk, noted: impl Fn(&str) -> io::Result<()>) -> io::Result<bool> {
    loop {
        match talk.hear() {
            Ok(line) if line == DISMISSED => return Ok(true),
            Ok(line) => noted(&line)?,
            // Tests may take long.
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => (),
            Err(_) => return Ok(false),
        }
    }
}

/// Tells it of a change.
pub(crate) fn note(change: String) -> io::Result<()> {
    match &mut *keeper() {
        Some(child) => child.talk().tell(change),
        None => Ok(()),
    }
}

/// It is not needed any more: all was put back.
pub(crate) fn dismiss() {
    let Some(mut child) = keeper().take() else {
        return;
    };
    if let Err(err) = child.talk().tell(DISMISSED).and_then(|()| child.end()) {
        diag(format_args!("who would put things back: {err}"));
    }
}

/// Leaves all to it. It waits for the end of this program.
pub(crate) fn leave() {
    mem::forget(keeper().take());
}

fn pidfd_of(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: Takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    match i32::try_from(fd) {
        // SAFETY: The kernel has just made it for us.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
