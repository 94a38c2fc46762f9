// SPDX-License-Identifier: GPL-2.0

//! Runs tests and reports in KTAP, with the head and the exit statuses that the kernel's selftests have.

use std::collections::HashSet;
use std::env;
use std::io;
use std::panic;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::unistd::geteuid;

use crate::hardware;
use crate::keeper;
use crate::needs;
use crate::pair;
use crate::provider;
use crate::provider::Provider;
use crate::report::Outcome;
use crate::report::Stop;
use crate::report::diag;
use crate::report::is_reason_to_skip;
use crate::report::reason_to_skip;
use crate::storm;
use crate::wait;

/// How long a test may take. The guest is emulated, some thirty times slower than its host.
const TIMEOUT: Duration = Duration::from_secs(90);

/// By how many times that it may take longer on a busy machine: many that hang are not to take all the time
/// there is.
const LONGER: f64 = 3.0;

/// The exit status of a program that has skipped all there was, `KSFT_SKIP`.
const SKIPPED: u8 = 4;

/// A test.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub run: fn() -> Outcome,
}

/// The tests of a program, `&[Test]`: functions, each called as the last part of its path is.
///
/// ```ignore
/// fn main() -> ExitCode {
///     runner::run(tests![bind, stream::receive])
/// }
/// ```
#[macro_export]
macro_rules! tests {
    // The last part of a path.
    (@name $name:ident) => {
        stringify!($name)
    };
    (@name $module:ident $($rest:ident)+) => {
        $crate::tests!(@name $($rest)+)
    };
    ($($first:ident $(:: $rest:ident)*),* $(,)?) => {
        &[$($crate::runner::Test {
            name: $crate::tests!(@name $first $($rest)*),
            run: $first $(:: $rest)*,
        }),*]
    };
}

/// Runs the tests of a program, in order: all, or those that the command line names.
pub fn run(tests: &[Test]) -> ExitCode {
    run_within(TIMEOUT, tests)
}

/// The tests that the command line names, or all of them.
fn chosen(tests: &[Test]) -> Result<Vec<Test>, String> {
    let different: HashSet<_> = tests.iter().map(|test| test.name).collect();
    if different.len() != tests.len() {
        return Err("two tests have the same name".to_owned());
    }
    let names: Vec<_> = env::args().skip(1).collect();
    if names.is_empty() {
        return Ok(tests.to_vec());
    }
    names
        .iter()
        .map(|name| {
            let test = tests.iter().find(|test| test.name == name);
            test.copied().ok_or_else(|| format!("no test {name}"))
        })
        .collect()
}

/// Like [`run`], each of which may take so long, and some times longer on a slow kernel.
pub fn run_within(timeout: Duration, tests: &[Test]) -> ExitCode {
    let timeout = wait::patience(timeout);
    println!("TAP version 13");
    let tests = match chosen(tests) {
        Ok(tests) => tests,
        Err(what) => {
            println!("Bail out! {what}");
            return ExitCode::FAILURE;
        }
    };
    panic::set_hook(Box::new(|info| diag(info)));
    let program = program_name();
    let prepared = prepare(&program).and_then(|provider| {
        pair::keep()?;
        Ok(provider)
    });
    let provider = match prepared {
        Ok(provider) => provider,
        Err(err) if is_reason_to_skip(&err) => {
            println!("1..0 # SKIP {err}");
            return ExitCode::from(SKIPPED);
        }
        Err(err) => {
            println!("1..{}", tests.len());
            println!("Bail out! {err}");
            return ExitCode::FAILURE;
        }
    };
    println!("1..{}", tests.len());
    diag(format_args!("provider: {}", provider.name()));

    let (mut failed, mut skipped) = (0, 0);
    for (index, test) in tests.iter().enumerate() {
        let number = index + 1;
        let start = Instant::now();
        let verdict = match not_here(&program, test.name) {
            Some(lack) => Verdict::Skip(lack),
            None => run_one(test, timeout),
        };
        diag(format_args!("took {} ms", start.elapsed().as_millis()));
        match verdict {
            Verdict::Ok => println!("ok {number} {}", test.name),
            Verdict::Skip(reason) => {
                skipped += 1;
                println!("ok {number} {} # SKIP {reason}", test.name);
            }
            Verdict::Failed => {
                failed += 1;
                storm::tell();
                println!("not ok {number} {}", test.name);
            }
            Verdict::Hung => {
                storm::tell();
                println!("not ok {number} {}", test.name);
                println!("Bail out! {} did not end within {timeout:?}", test.name);
                pair::delete_all();
                keeper::leave();
                return ExitCode::FAILURE;
            }
        }
    }
    keeper::dismiss();
    diag(format_args!("{} of {} failed", failed, tests.len()));
    match failed {
        0 if skipped == tests.len() => ExitCode::from(SKIPPED),
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// The name by which this program is known.
fn program_name() -> String {
    env::current_exe()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .unwrap_or_default()
}

/// Why a test cannot run here.
fn not_here(program: &str, test: &str) -> Option<String> {
    hardware::refuses(program, test).or_else(|| needs::of_test(program, test))
}

/// Has all there that the tests of a program need, or tells why that cannot be had.
fn prepare(program: &str) -> io::Result<Provider> {
    if !geteuid().is_root() {
        return Err(reason_to_skip("this is for root to run"));
    }
    // Who names a NIC in a wrong way does not want netdevsim, nor to be told that it is missing.
    hardware::given()?;
    let mounted = provider::mount_debugfs();
    if let Some(lack) = needs::of_program(program) {
        return Err(reason_to_skip(lack));
    }
    mounted?;
    let provider = provider::prepare()?;
    if !pair::has_device_memory()? {
        return Err(reason_to_skip(match hardware::given()? {
            Some(nic) => format!("{} has no device memory", nic.ifname),
            None => "netdevsim of this kernel has no device memory: that takes the set netdevsim-devmem of the series".to_owned(),
        }));
    }
    Ok(provider)
}

enum Verdict {
    Ok,
    Skip(String),
    Failed,
    Hung,
}

/// Runs a test in a thread of its own, and then has a look whether everything came back.
fn run_one(test: &Test, timeout: Duration) -> Verdict {
    let test = *test;
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        let outcome = guarded(test.run);
        // Nobody listens any more after a timeout.
        let _ = sender.send(outcome);
    });
    let mut answer = receiver.recv_timeout(timeout);
    if answer.is_err() {
        // It may be the machine that is slow.
        answer = receiver.recv_timeout(timeout.mul_f64((wait::in_vain() - 1.0).min(LONGER)));
    }
    match answer {
        Ok(verdict) => {
            // The outcome is known; how the thread ended adds nothing to it.
            let _ = thread.join();
            verdict
        }
        Err(RecvTimeoutError::Timeout) => Verdict::Hung,
        // `guarded` catches every panic.
        Err(RecvTimeoutError::Disconnected) => Verdict::Failed,
    }
}

fn guarded(test: fn() -> Outcome) -> Verdict {
    let checked = move || -> Outcome {
        let before = provider::Census::take()?;
        test()?;
        before.wait_until_back();
        Ok(())
    };
    match panic::catch_unwind(checked) {
        Ok(Ok(())) => Verdict::Ok,
        Ok(Err(Stop::Skip(reason))) => Verdict::Skip(reason),
        Ok(Err(Stop::Fail(what, at))) => {
            diag(format_args!("{at}: {what}"));
            Verdict::Failed
        }
        // The hook has told already.
        Err(_) => Verdict::Failed,
    }
}
