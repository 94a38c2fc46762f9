// SPDX-License-Identifier: GPL-2.0

//! Faults: an allocation, a copy from or to user space, or a call inside the kernel that fails.
//!
//! The first two are the kernel's own fault injection, see
//! `Documentation/fault-injection/fault-injection.rst` there: [`Watch::nth_fails`] has one of them fail in
//! a system call, so that one after the other can be tried. [`Call`] has calls of a function fail. Both
//! tell by a [`Site`] where that was.

use std::fmt;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use crate::odd;

const FUNCTION_LEN: usize = 64;

/// `struct devmem_test_fault`.
#[repr(C)]
struct Request {
    function: [u8; FUNCTION_LEN],
    ret: i64,
    nth: u32,
    tid: u32,
}

mod ioctls {
    use super::Request;

    nix::ioctl_write_ptr!(fault, b'D', 0x41, Request);
    nix::ioctl_write_ptr!(watch, b'D', 0x42, u32);
    nix::ioctl_none!(forget, b'D', 0x43);
}

/// Where a fault struck: the functions on the stack, the innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site(Vec<String>);

impl Site {
    /// Whether a function whose name has this part is on the stack.
    pub fn is_in(&self, part: &str) -> bool {
        self.0.iter().any(|function| function.contains(part))
    }

    /// The kind of fault.
    pub fn kind(&self) -> Kind {
        match () {
            () if self.is_in("should_fail_usercopy") => Kind::Copy,
            () if self.is_in("should_failslab") => Kind::Slab,
            () if self.is_in("should_fail_alloc_page") => Kind::Pages,
            () => Kind::Call,
        }
    }

    /// The functions from the one on that wanted memory, without the allocator's.
    fn wanting(&self) -> &[String] {
        const INNER: [&str; 33] = [
            "should_fail",
            "kprobe",
            "int3",
            "trampoline",
            "rethook",
            "trace",
            "handler",
            "note_failure",
            "kmalloc",
            "kmem_cache_alloc",
            "kvmalloc",
            "realloc",
            "krealloc",
            "alloc_pages",
            "alloc_frozen",
            "prepare_alloc",
            "get_free_page",
            "vmalloc",
            "vm_area",
            "get_vm_area",
            "slab",
            "folio_alloc",
            "copy_from_user",
            "copy_to_user",
            "kmemdup",
            "memdup_user",
            "alloc::allocator",
            "alloc::kvec",
            "alloc::kbox",
            "Kmalloc",
            "Vmalloc",
            "___",
            "import_iovec",
        ];
        let outer = self
            .0
            .iter()
            .position(|function| !INNER.iter().any(|part| function.contains(part)))
            .unwrap_or(0);
        &self.0[outer..]
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let callers: Vec<_> = self.wanting().iter().take(4).map(String::as_str).collect();
        write!(f, "{} {}", self.kind(), callers.join(" < "))
    }
}

/// What it is that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An allocation of less than a page or so.
    Slab,
    /// An allocation of pages.
    Pages,
    /// A copy from or to user space.
    Copy,
    /// A call.
    Call,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slab => "slab",
            Self::Pages => "pages",
            Self::Copy => "copy",
            Self::Call => "call",
        })
    }
}

/// What the test module noted.
struct Notes {
    calls: u32,
    /// Calls that it could not follow.
    missed: u32,
    sites: Vec<Site>,
}

fn parse(text: &str) -> Notes {
    let (counts, stacks) = text.split_once('\n').unwrap_or_default();
    let count = |nth| counts.split(' ').nth(nth).and_then(|n| n.parse().ok());
    let sites = stacks
        .split("\n\n")
        .filter(|stack| !stack.trim().is_empty())
        .map(|stack| {
            let name = |line: &str| {
                let symbol = line.split(' ').next().unwrap_or_default();
                format!("{:#}", rustc_demangle::demangle(symbol))
            };
            Site(stack.lines().map(name).collect())
        })
        .collect();
    Notes {
        calls: count(0).unwrap_or(0),
        missed: count(2).unwrap_or(0),
        sites,
    }
}

fn read(mut file: &File) -> io::Result<Notes> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(parse(&text))
}

/// A function of the kernel of which one call fails, for as long as this lives.
#[derive(Debug)]
pub struct Call(File);

impl Call {
    /// The `nth` call (from 1, or each for 0) of a function by this thread does nothing, and returns `ret`: an errno as
    /// a negative number, or 0 where that is NULL.
    pub fn fails(function: &str, nth: u32, ret: i64) -> io::Result<Self> {
        Self::inject(function, nth, ret, nix::unistd::gettid().as_raw() as u32)
    }

    /// The `nth` call (from 1, or each for 0) by whichever thread, those of the kernel's own, too.
    pub fn fails_for_all(function: &str, nth: u32, ret: i64) -> io::Result<Self> {
        const ALL: u32 = 0;
        Self::inject(function, nth, ret, ALL)
    }

    fn inject(function: &str, nth: u32, ret: i64, tid: u32) -> io::Result<Self> {
        assert!(function.len() < FUNCTION_LEN, "{function}");
        let mut request = Request {
            function: [0; FUNCTION_LEN],
            ret,
            nth,
            tid,
        };
        request.function[..function.len()].copy_from_slice(function.as_bytes());
        let device = odd::device()?;
        // SAFETY: The argument of this ioctl, which only reads it.
        unsafe { ioctls::fault(device.as_raw_fd(), &request) }
            .map_err(|err| io::Error::other(format!("{function}: {err}")))?;
        Ok(Self(device))
    }

    /// How often it was called since, and where from if it failed.
    pub fn result(&self) -> io::Result<(u32, Option<Site>)> {
        let notes = read(&self.0)?;
        Ok((notes.calls, notes.sites.into_iter().next()))
    }
}

/// Notes where the kernel's own fault injection strikes.
#[derive(Debug)]
pub struct Watch(File);

impl Watch {
    /// Watches from now on.
    pub fn new() -> io::Result<Self> {
        const ALL: u32 = 0;
        setup()?;
        let device = odd::device()?;
        // SAFETY: The argument of this ioctl, which only reads it.
        unsafe { ioctls::watch(device.as_raw_fd(), &ALL) }?;
        Ok(Self(device))
    }

    /// Where it struck since it was asked last; 256 places at the most.
    pub fn take(&self) -> io::Result<Vec<Site>> {
        let notes = read(&self.0)?;
        self.forget()?;
        Ok(notes.sites)
    }

    fn forget(&self) -> io::Result<()> {
        // SAFETY: This ioctl has no argument.
        unsafe { ioctls::forget(self.0.as_raw_fd()) }?;
        Ok(())
    }

    /// Makes a system call (or several) of which the `nth` point that can fail does, counted from 1.
    ///
    /// Returns what came of it, and where it failed; `None` if there are not so many points. Only
    /// points in this thread count.
    pub fn nth_fails<T>(
        &self,
        nth: u32,
        call: impl FnOnce() -> T,
    ) -> io::Result<(T, Option<Site>)> {
        let control = File::options()
            .read(true)
            .write(true)
            .open("/proc/thread-self/fail-nth")?;
        self.forget()?;
        (&control).write_all(format!("{nth}").as_bytes())?;
        let result = call();
        let struck = struck(&control);
        if !struck? {
            return Ok((result, None));
        }
        let notes = read(&self.0)?;
        match notes.sites.into_iter().next() {
            Some(site) => Ok((result, Some(site))),
            None => Err(io::Error::other(format!(
                "point {nth} failed, and it is not known where: {} calls seen, {} missed",
                notes.calls, notes.missed
            ))),
        }
    }
}

/// Whether the fault struck; it does no more then.
fn struck(control: &File) -> io::Result<bool> {
    let mut text = [0; 16];
    // This may itself be the point that fails, as may be writing below.
    let struck = match control.read_at(&mut text, 0) {
        Ok(len) => text[..len].starts_with(b"0"),
        Err(err) if err.raw_os_error() == Some(libc::EFAULT) => false,
        Err(err) => return Err(err),
    };
    while let Err(err) = control.write_at(b"0", 0) {
        if err.raw_os_error() != Some(libc::EFAULT) {
            return Err(err);
        }
    }
    Ok(struck)
}

/// Has all allocations be among those that may fail, and none of that be logged with a stack.
fn setup() -> io::Result<()> {
    let knobs = [
        ("failslab", "ignore-gfp-wait", "N"),
        ("failslab", "verbose", "0"),
        ("fail_page_alloc", "ignore-gfp-wait", "N"),
        ("fail_page_alloc", "ignore-gfp-highmem", "N"),
        ("fail_page_alloc", "min-order", "0"),
        ("fail_page_alloc", "verbose", "0"),
        ("fail_usercopy", "verbose", "0"),
    ];
    for (fault, knob, value) in knobs {
        write_knob(fault, knob, value)?;
    }
    spare_kmemleak()
}

/// Has nothing fail that kmemleak allocates for itself: it would note that, and go on.
fn spare_kmemleak() -> io::Result<()> {
    static RANGE: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    let range = *RANGE.get_or_init(|| range_of("__alloc_object").ok().flatten());
    let (start, end) = range.ok_or_else(|| io::Error::other("no kmemleak in this kernel"))?;
    for fault in ["failslab", "fail_page_alloc"] {
        write_knob(fault, "stacktrace-depth", "32")?;
        write_knob(fault, "reject-end", &format!("{end:#x}"))?;
        write_knob(fault, "reject-start", &format!("{start:#x}"))?;
    }
    Ok(())
}

/// Where a function of the kernel begins, and the next one.
fn range_of(function: &str) -> io::Result<Option<(u64, u64)>> {
    let text = fs::read_to_string("/proc/kallsyms")?;
    let symbols = || {
        text.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            Some((address, words.nth(1)?))
        })
    };
    let Some((start, _)) = symbols().find(|&(_, name)| name == function) else {
        return Ok(None);
    };
    let end = symbols()
        .map(|(address, _)| address)
        .filter(|&address| address > start)
        .min();
    Ok(end.map(|end| (start, end)))
}

fn write_knob(fault: &str, knob: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/sys/kernel/debug").join(fault).join(knob);
    fs::write(&path, value)
        .map_err(|err| io::Error::new(err.kind(), format!("{}: {err}", path.display())))
}

/// Atomic allocations on the system fail, for as long as this lives.
#[derive(Debug)]
pub struct Scarcity(());

impl Scarcity {
    /// Has every `interval`th fail, of those that may not wait: softirqs make these.
    pub fn every(interval: u32) -> io::Result<Self> {
        setup()?;
        let scarcity = Self(());
        for fault in ["failslab", "fail_page_alloc"] {
            scarcity.begin(fault, interval)?;
        }
        Ok(scarcity)
    }

    /// Has each fail of more than one page: memory is in pieces, and nobody waits for it to be compacted.
    pub fn of_large_pages() -> io::Result<Self> {
        setup()?;
        let scarcity = Self(());
        write_knob("fail_page_alloc", "min-order", "1")?;
        scarcity.begin("fail_page_alloc", 1)?;
        Ok(scarcity)
    }

    fn begin(&self, fault: &str, interval: u32) -> io::Result<()> {
        write_knob(fault, "ignore-gfp-wait", "Y")?;
        write_knob(fault, "interval", &interval.to_string())?;
        write_knob(fault, "times", "-1")?;
        write_knob(fault, "probability", "100")
    }
}

impl Drop for Scarcity {
    fn drop(&mut self) {
        for fault in ["failslab", "fail_page_alloc"] {
            // Nothing else would be there to be done.
            let _ = write_knob(fault, "probability", "0");
        }
    }
}
