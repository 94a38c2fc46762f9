// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Groups of ends, for programs in C that have a loop of their own.

use std::collections::HashMap;
use std::ffi::c_void;
use std::io;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;
use std::ptr::null;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

use devmem_bulk as bulk;
use devmem_bulk::Refused;
use devmem_bulk::group::Address;
use devmem_bulk::group::Done;
use devmem_bulk::group::EndId;
use devmem_bulk::group::Parts;
use devmem_bulk::group::What;
use devmem_bulk::group::Why;

use crate::DMB_EVENT_DONE;
use crate::DMB_EVENT_OVER;
use crate::DMB_OVER_LOCAL;
use crate::Key;
use crate::Landing;
use crate::array;
use crate::errno;
use crate::give;
use crate::over;
use crate::pool::Part;
use crate::pool::Pool;
use crate::reason;
use crate::refused;
use crate::take_back;

/// Of a group: the peer of an end is there, and requests can be made.
pub const DMB_EVENT_OPEN: u32 = 5;
/// Of a group: what dmb_group_get_bytes() asked for has ended, as DMB_EVENT_DONE.
pub const DMB_EVENT_GOT: u32 = 6;

/// There is nobody to connect to.
pub const DMB_OVER_UNREACHABLE: u32 = 0x103;

/// Ends of connections, and whoever connects, with one descriptor.
pub struct Group {
    group: bulk::Group<Token>,
    /// What the program knows its ends by.
    ends: HashMap<EndId, *mut c_void>,
    /// What the last event was about.
    bytes: Vec<u8>,
}

/// What the program knows a request by.
#[derive(Debug)]
struct Token {
    cookie: *mut c_void,
    kind: u32,
}

/// Where a group listens.
#[repr(C)]
pub struct Place {
    /// The address: that of IPv4 in the first four bytes.
    pub ip: [u8; 16],
    /// 4 or 6.
    pub version: u8,
    /// Ports.
    pub control: u16,
    /// That of lanes, which may be steered.
    pub lanes: u16,
}

/// What happened to an end of a group, or to a request of it.
#[repr(C)]
pub struct Told {
    /// DMB_EVENT_OPEN, DMB_EVENT_DONE, DMB_EVENT_GOT or DMB_EVENT_OVER.
    pub kind: u32,
    /// As of dmb_event.
    pub reason: u32,
    /// What dmb_group_connect() was given.
    pub end: *mut c_void,
    /// What the request, or the flush, was.
    pub cookie: *mut c_void,
    /// What was got, until the next call: NULL if it failed.
    pub bytes: *const c_void,
}

/// Which part of the peer's memory: what a key names, from a byte on.
#[repr(C)]
pub struct Remote {
    /// The key.
    pub key: Key,
    /// The first byte.
    pub offset: u64,
}

impl Place {
    fn address(&self) -> io::Result<Address> {
        let [a, b, c, d, ..] = self.ip;
        let ip = match self.version {
            4 => IpAddr::from([a, b, c, d]),
            6 => IpAddr::V6(Ipv6Addr::from(self.ip)),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let (control, lanes) = (self.control, self.lanes);
        Ok(Address { ip, control, lanes })
    }
}

impl Remote {
    fn place(&self) -> (bulk::Key, u64) {
        (bulk::Key(self.key.bytes), self.offset)
    }
}

impl Group {
    fn done(&mut self, end: *mut c_void, done: Done<Token>) -> Told {
        let bytes = done.bytes.map(|bytes| {
            self.bytes = bytes;
            self.bytes.as_ptr().cast()
        });
        Told {
            kind: done.token.kind,
            reason: reason(done.result),
            end,
            cookie: done.token.cookie,
            bytes: bytes.unwrap_or(null()),
        }
    }
}

fn asked(result: Result<(), Refused>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(why) => i32::try_from(refused(why)).unwrap_or(-libc::EIO),
    }
}

/// Whether it is this end that has no room for a connection.
fn is_short(err: &io::Error) -> bool {
    matches!(
        err.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    )
}

fn token(cookie: *mut c_void) -> Token {
    let kind = DMB_EVENT_DONE;
    Token { cookie, kind }
}

/// Makes a group that listens at an address: for lanes at a port of it, or at any
/// if that is 0. The address then has both ports. Peers use the keys of the pool.
/// `landing` is NULL if nothing lands in device memory. -EADDRINUSE if somebody else
/// listens for lanes there.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_new(
    at: *mut Place,
    pool: *const Pool,
    landing: *const Landing,
    out: *mut *mut Group,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let (at, pool) = unsafe { (&mut *at, &*pool) };
    // SAFETY: As the caller guarantees.
    let landing = unsafe { landing.as_ref() };
    let parts = Parts {
        registry: pool.registry.clone(),
        landing: landing.map(|landing| (Arc::clone(&landing.landing), landing.endpoints)),
    };
    let made = at.address().and_then(|address| {
        let group = bulk::Group::new(address.ip, address.lanes, parts)?;
        at.control = group.address().control;
        at.lanes = group.address().lanes;
        Ok(Group {
            group,
            ends: HashMap::new(),
            bytes: Vec::new(),
        })
    });
    // SAFETY: As the caller guarantees.
    unsafe { give(made, out) }
}

/// Takes no peers any more, and ends all connections as they expect it: those that do
/// not say the same within so many milliseconds are left.
///
/// # Safety
///
/// See the head of the header. May be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_free(group: *mut Group, milliseconds: u64) {
    // SAFETY: As the caller guarantees.
    if let Some(group) = unsafe { group.as_mut() } {
        group.group.close(Duration::from_millis(milliseconds));
    }
    // SAFETY: As the caller guarantees.
    unsafe { take_back(group) }
}

/// A descriptor to poll, which stays the group's: there is something to read when
/// there is something for dmb_group_wait().
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_fd(group: *const Group) -> i32 {
    // SAFETY: As the caller guarantees.
    unsafe { (*group).group.as_raw_fd() }
}

/// Whether there is more to do, or to tell, that is not polled for, 1 or 0.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_is_busy(group: *const Group) -> i32 {
    // SAFETY: As the caller guarantees.
    unsafe { (*group).group.is_busy() }.into()
}

/// Whether any request is under way, or was not told of, 1 or 0.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_has_requests(group: *const Group) -> i32 {
    // SAFETY: As the caller guarantees.
    unsafe { (*group).group.has_requests() }.into()
}

/// Whether any peer that has connected is served, or is about to be, 1 or 0.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_is_serving(group: *const Group) -> i32 {
    // SAFETY: As the caller guarantees.
    unsafe { (*group).group.is_serving() }.into()
}

/// Begins to connect to another group, by so many lanes, 1 to 64. Returns the number
/// of the end. DMB_EVENT_OPEN tells that it is there, DMB_EVENT_OVER that it is not:
/// with DMB_OVER_LOCAL if this process has no descriptors, or memory, for it.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_connect(
    group: *mut Group,
    to: *const Place,
    lanes: u16,
    cookie: *mut c_void,
) -> i64 {
    // SAFETY: As the caller guarantees.
    let (group, to) = unsafe { (&mut *group, &*to) };
    let made = to
        .address()
        .and_then(|address| group.group.connect(address, lanes));
    match made {
        Ok(end) => {
            group.ends.insert(end, cookie);
            i64::try_from(end.0).unwrap_or(i64::MAX)
        }
        Err(err) => errno(&err).into(),
    }
}

/// Puts `len` bytes from an address of a part to what `to` names. -EAGAIN if there
/// is no room for it now.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_put(
    group: *mut Group,
    end: u64,
    part: *const Part,
    address: u64,
    len: u64,
    to: *const Remote,
    cookie: *mut c_void,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let (group, part, to) = unsafe { (&mut *group, &*part, &*to) };
    let from = (&part.region.memory, part.offset(address));
    asked(
        group
            .group
            .put(EndId(end), from, len, to.place(), token(cookie)),
    )
}

/// Gets `len` bytes of what `from` names to an address of a part. Returns as
/// dmb_group_put() does.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_get(
    group: *mut Group,
    end: u64,
    part: *const Part,
    address: u64,
    len: u64,
    from: *const Remote,
    cookie: *mut c_void,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let (group, part, from) = unsafe { (&mut *group, &*part, &*from) };
    let to = (&part.region.memory, part.offset(address));
    asked(
        group
            .group
            .get(EndId(end), to, len, from.place(), token(cookie)),
    )
}

/// Puts bytes that are copied before this returns. Returns as dmb_group_put() does.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_put_bytes(
    group: *mut Group,
    end: u64,
    bytes: *const c_void,
    len: usize,
    to: *const Remote,
    cookie: *mut c_void,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let (group, to) = unsafe { (&mut *group, &*to) };
    // SAFETY: As the caller guarantees.
    let bytes = unsafe { array(bytes.cast::<u8>(), len) };
    asked(
        group
            .group
            .put_bytes(EndId(end), bytes, to.place(), token(cookie)),
    )
}

/// Gets bytes, which DMB_EVENT_GOT has. Returns as dmb_group_put() does.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_get_bytes(
    group: *mut Group,
    end: u64,
    len: usize,
    from: *const Remote,
    cookie: *mut c_void,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let (group, from) = unsafe { (&mut *group, &*from) };
    let kind = DMB_EVENT_GOT;
    let token = Token { cookie, kind };
    asked(group.group.get_bytes(EndId(end), len, from.place(), token))
}

/// Whether there is room for a request now, 1 or 0.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_has_room(group: *const Group, end: u64) -> i32 {
    // SAFETY: As the caller guarantees.
    unsafe { (*group).group.has_room(EndId(end)) }.into()
}

/// Whether requests of an end are under way, or not all was told of them, 1 or 0. If
/// so, and if there is a cookie, DMB_EVENT_DONE has that after all of them, with what
/// the first one failed for that did.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_flush(group: *mut Group, end: u64, cookie: *mut c_void) -> i32 {
    // SAFETY: As the caller guarantees.
    let group = unsafe { &mut *group };
    let end = EndId(end);
    match cookie.is_null() {
        true => group.group.is_asking(end),
        false => group.group.flush(end, token(cookie)).is_ok(),
    }
    .into()
}

/// Requests of an end wait, for room, until those that are under way are over.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_fence(group: *mut Group, end: u64) {
    // SAFETY: As the caller guarantees.
    unsafe { (*group).group.fence(EndId(end)) }
}

/// Ends a connection: at once if something is under way. Returns 1 with that, or with
/// what was not told of, one by one, and 0 when nothing is left, also not of the end.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_cancel(group: *mut Group, end: u64, out: *mut Told) -> i32 {
    // SAFETY: As the caller guarantees.
    let group = unsafe { &mut *group };
    let end = EndId(end);
    let Some(done) = group.group.cancel(end) else {
        group.ends.remove(&end);
        return 0;
    };
    let cookie = group.ends.get(&end).copied().unwrap_or(null_mut());
    let told = group.done(cookie, done);
    // SAFETY: As the caller guarantees.
    unsafe { out.write(told) };
    1
}

/// Waits for an event of an end that was connected here, no longer than so many
/// milliseconds. Returns 1 with an event, and 0 if there was none. Peers that have
/// connected are served meanwhile.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_group_wait(
    group: *mut Group,
    milliseconds: u64,
    out: *mut Told,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let group = unsafe { &mut *group };
    let timeout = Duration::from_millis(milliseconds);
    loop {
        let event = match group.group.wait(Some(timeout)) {
            Ok(Some(event)) => event,
            Ok(None) => return 0,
            Err(err) => return errno(&err),
        };
        // The others have been let go of.
        let Some(&end) = group.ends.get(&event.end) else {
            continue;
        };
        let mut told = Told {
            kind: DMB_EVENT_OPEN,
            reason: 0,
            end,
            cookie: null_mut(),
            bytes: null(),
        };
        match event.what {
            What::Open => (),
            What::Done(done) => told = group.done(end, done),
            What::Over(why) => {
                group.ends.remove(&event.end);
                told.kind = DMB_EVENT_OVER;
                told.reason = match why {
                    Why::Ended(end) => over(end),
                    Why::Unreachable(err) if is_short(&err) => DMB_OVER_LOCAL,
                    Why::Unreachable(_) => DMB_OVER_UNREACHABLE,
                };
            }
        }
        // SAFETY: As the caller guarantees.
        unsafe { out.write(told) };
        return 1;
    }
}
