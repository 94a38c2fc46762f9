// SPDX-License-Identifier: GPL-2.0

//! Counts the system calls of a piece of code, as strace does.

use std::collections::BTreeMap;
use std::io;
use std::panic;
use std::panic::AssertUnwindSafe;

use nix::sys::ptrace;
use nix::sys::ptrace::Options;
use nix::sys::signal::Signal;
use nix::sys::signal::raise;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use nix::unistd::Pid;
use nix::unistd::fork;

use crate::report;

/// What is counted is between [`begin`](Self::begin) and [`end`](Self::end).
#[derive(Debug)]
pub struct Section(());

/// Marks begin and end: a system call that nothing in between makes.
const MARK: libc::c_long = libc::SYS_getppid;

impl Section {
    /// From here on.
    pub fn begin(&self) {
        // Whatever is allocated from here on, the allocator has it already. No more than it keeps.
        drop((0..25).map(|_| vec![1_u8; 4000]).collect::<Vec<_>>());
        mark();
    }

    /// Up to here.
    pub fn end(&self) {
        mark();
    }
}

fn mark() {
    // SAFETY: This call has no arguments, and always succeeds.
    unsafe { libc::syscall(MARK) };
}

/// Runs `f` in a child process, and counts the system calls of its section by their numbers.
pub fn system_calls_of(
    f: impl FnOnce(&Section) -> io::Result<()>,
) -> io::Result<BTreeMap<u64, usize>> {
    // SAFETY: No other thread holds a lock that the child needs: the harness waits, and senders only
    // send. The allocator looks after itself.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => watch(child),
        ForkResult::Child => {
            let traced = || -> io::Result<()> {
                ptrace::traceme()?;
                raise(Signal::SIGSTOP)?;
                f(&Section(()))
            };
            let outcome = panic::catch_unwind(AssertUnwindSafe(traced));
            let code = match outcome {
                Ok(Ok(())) => 0,
                Ok(Err(err)) => {
                    report::diag(format_args!("the traced process: {err}"));
                    1
                }
                // The hook has told already.
                Err(_) => 1,
            };
            // SAFETY: Ends the process at once, without touching what belongs to its parent.
            unsafe { libc::_exit(code) }
        }
    }
}

fn watch(child: Pid) -> io::Result<BTreeMap<u64, usize>> {
    let mut calls = BTreeMap::new();
    let (mut marks, mut entering) = (0, false);
    let mut status = waitpid(child, None)?;
    ptrace::setoptions(
        child,
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL,
    )?;
    loop {
        let mut signal = None;
        match status {
            WaitStatus::Exited(_, 0) if marks == 2 => return Ok(calls),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                return Err(io::Error::other(format!(
                    "the traced process, after {marks} marks: {status:?}"
                )));
            }
            WaitStatus::PtraceSyscall(_) => {
                entering = !entering;
                if entering {
                    let number = ptrace::getregs(child)?.orig_rax;
                    if number == MARK as u64 {
                        marks += 1;
                    } else if marks == 1 {
                        *calls.entry(number).or_insert(0) += 1;
                    }
                }
            }
            WaitStatus::Stopped(_, Signal::SIGSTOP) => (),
            WaitStatus::Stopped(_, other) => signal = Some(other),
            _ => (),
        }
        ptrace::syscall(child, signal)?;
        status = waitpid(child, None)?;
    }
}
