// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The library of bulk transfer for programs in C. `include/devmem_bulk.h` is made of this.
//!
//! What C gets are pointers to boxes. All that can be wrong with them is for the caller to see to.

use std::io;
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use devmem::BindRx;
use devmem::DmaBuf;
use devmem_bulk as bulk;
use devmem_bulk::End;
use devmem_bulk::Event;
use devmem_bulk::Failure;
use devmem_bulk::Options;
use devmem_bulk::Refused;
use devmem_bulk::Rights;
use devmem_bulk::protocol::wire::NOTE;

/// The peer may read.
pub const DMB_READ: u32 = 1;
/// The peer may write.
pub const DMB_WRITE: u32 = 2;

/// Bytes of a note.
pub const DMB_NOTE: usize = 64;
const _: () = assert!(DMB_NOTE == NOTE);

/// A request has ended, with `reason`: 0 if it went well.
pub const DMB_EVENT_DONE: u32 = 1;
/// The peer has told something.
pub const DMB_EVENT_NOTE: u32 = 2;
/// The peer has no more requests, and waits for dmb_close().
pub const DMB_EVENT_CLOSING: u32 = 3;
/// The connection is over, with `reason`: 0 if it was closed by both.
pub const DMB_EVENT_OVER: u32 = 4;

/// Added to the reasons of requests that ended with the connection.
pub const DMB_OVER: u32 = 0x100;
/// The peer was gone.
pub const DMB_OVER_GONE: u32 = 0x101;
/// This end could not go on.
pub const DMB_OVER_LOCAL: u32 = 0x102;
/// The peer did not keep to the protocol. The fault of the protocol is added.
pub const DMB_OVER_BROKEN: u32 = 0x200;
/// The peer said so. The fault of the protocol is added.
pub const DMB_OVER_TOLD: u32 = 0x300;

/// Both.
const READ_WRITE: u32 = DMB_READ | DMB_WRITE;

/// A dma-buf that is transferred from and to.
pub struct Memory(Arc<bulk::Memory>);
/// A dma-buf that payload lands in.
pub struct Landing(Arc<bulk::Landing>);
/// Keys.
pub struct Registry(bulk::Registry);
/// An end of a connection.
pub struct Endpoint(bulk::Endpoint);

/// A key. Who knows it may do what it is for.
#[repr(C)]
pub struct Key {
    /// As the peer makes them, or as it is told.
    pub bytes: [u8; 16],
}

/// What happened.
#[repr(C)]
pub struct Happened {
    /// DMB_EVENT_...
    pub kind: u32,
    /// Why, if that is said: 0, a status of the protocol, or DMB_OVER_...
    pub reason: u32,
    /// Which request.
    pub id: u64,
    /// What the peer has told.
    pub note: [u8; DMB_NOTE],
}

fn errno(err: &io::Error) -> i32 {
    let by_kind = match err.kind() {
        io::ErrorKind::TimedOut => libc::ETIMEDOUT,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        io::ErrorKind::ResourceBusy => libc::EBUSY,
        io::ErrorKind::ConnectionAborted => libc::ECONNABORTED,
        _ => libc::EIO,
    };
    -devmem::errno_of(err).unwrap_or(by_kind)
}

fn refused(refused: Refused) -> i64 {
    let errno = match refused {
        Refused::Busy => libc::EAGAIN,
        Refused::Length => libc::EINVAL,
        Refused::Closing | Refused::Over(_) => libc::ESHUTDOWN,
    };
    (-errno).into()
}

fn id(asked: Result<u64, Refused>) -> i64 {
    asked.map_or_else(refused, |id| i64::try_from(id).unwrap_or(i64::MAX))
}

fn over(end: End) -> u32 {
    match end {
        End::Orderly => 0,
        End::Gone => DMB_OVER_GONE,
        End::Local => DMB_OVER_LOCAL,
        End::Broken(fault) => DMB_OVER_BROKEN + fault.code(),
        End::Told(fault) => DMB_OVER_TOLD + fault.code(),
    }
}

/// # Safety
///
/// `out` can be written.
unsafe fn give<T>(made: io::Result<T>, out: *mut *mut T) -> i32 {
    match made {
        Ok(made) => {
            // SAFETY: As the caller guarantees.
            unsafe { out.write(Box::into_raw(Box::new(made))) };
            0
        }
        Err(err) => errno(&err),
    }
}

/// # Safety
///
/// `made` is of [`give`], and used by nobody any more; or null.
unsafe fn take_back<T>(made: *mut T) {
    if !made.is_null() {
        // SAFETY: As the caller guarantees.
        drop(unsafe { Box::from_raw(made) });
    }
}

/// An array of C.
///
/// # Safety
///
/// There are `count` of them, which stay as they are.
unsafe fn array<'a, T>(from: *const T, count: usize) -> &'a [T] {
    match count {
        0 => &[],
        // SAFETY: As the caller guarantees.
        _ => unsafe { std::slice::from_raw_parts(from, count) },
    }
}

/// The dma-buf of a descriptor, which stays the caller's.
///
/// # Safety
///
/// The descriptor is open.
unsafe fn dmabuf(fd: RawFd) -> io::Result<DmaBuf> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: As the caller guarantees.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    DmaBuf::from_fd(fd.try_clone_to_owned()?)
}

/// Whether bytes of a memory are on their way to a peer, 1 or 0: then what is
/// written to it may be what is sent, although the peer has said that it has
/// all of a put, or the key was taken back.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_memory_is_being_read(memory: *const Memory) -> i32 {
    // SAFETY: As the caller guarantees.
    unsafe { (*memory).0.is_being_read() }.into()
}

/// Makes a memory of a dma-buf. It is bound to a device to be sent from, if the
/// number of one is given, and that can do it; if not, the CPU copies what is
/// sent. Make one memory of a dma-buf: two do not know of each other, and what
/// both write at once is neither's.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_memory_new(fd: i32, ifindex: u32, out: *mut *mut Memory) -> i32 {
    // SAFETY: As the caller guarantees.
    let made = unsafe { dmabuf(fd) }.and_then(|dmabuf| match ifindex {
        0 => bulk::Memory::new(&dmabuf),
        _ => bulk::Memory::bound(&dmabuf, ifindex),
    });
    // SAFETY: As the caller guarantees.
    unsafe { give(made.map(Memory), out) }
}

/// Lets go of a memory, which stays for as long as keys and requests have it.
///
/// # Safety
///
/// See the head of the header. May be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_memory_free(memory: *mut Memory) {
    // SAFETY: As the caller guarantees.
    unsafe { take_back(memory) }
}

/// Binds a dma-buf to receive queues of a device, for payload to land in. Flows
/// have to be steered there by other means.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_landing_new(
    fd: i32,
    ifindex: u32,
    queues: *const u32,
    count: usize,
    out: *mut *mut Landing,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let queues = unsafe { array(queues, count) };
    // SAFETY: As the caller guarantees.
    let made = unsafe { dmabuf(fd) }.and_then(|dmabuf| {
        let request = BindRx::new(ifindex);
        let request = queues.iter().fold(request, |all, &queue| all.queue(queue));
        bulk::Landing::new(request.bind(&dmabuf)?, &dmabuf)
    });
    // SAFETY: As the caller guarantees.
    unsafe { give(made.map(Landing), out) }
}

/// Lets go of a landing, which stays for as long as endpoints have it.
///
/// # Safety
///
/// See the head of the header. May be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_landing_free(landing: *mut Landing) {
    // SAFETY: As the caller guarantees.
    unsafe { take_back(landing) }
}

/// Makes a registry of keys, without any.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_registry_new(out: *mut *mut Registry) -> i32 {
    // SAFETY: As the caller guarantees.
    unsafe { give(bulk::Registry::new().map(Registry), out) }
}

/// Lets go of a registry, which stays for as long as endpoints have it.
///
/// # Safety
///
/// See the head of the header. May be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_registry_free(registry: *mut Registry) {
    // SAFETY: As the caller guarantees.
    unsafe { take_back(registry) }
}

/// Makes a key for a part of a memory, for DMB_READ, DMB_WRITE or both, and for
/// so many milliseconds: for ever if that is 0. It is written to `key`.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_register(
    registry: *const Registry,
    memory: *const Memory,
    offset: u64,
    len: u64,
    rights: u32,
    milliseconds: u64,
    key: *mut Key,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let (registry, memory) = unsafe { (&*registry, &*memory) };
    let rights = match rights {
        DMB_READ => Rights::Read,
        DMB_WRITE => Rights::Write,
        READ_WRITE => Rights::ReadWrite,
        _ => return -libc::EINVAL,
    };
    let lifetime = (milliseconds > 0).then(|| Duration::from_millis(milliseconds));
    match registry
        .0
        .register(&memory.0, offset, len, rights, lifetime)
    {
        Ok(made) => {
            // SAFETY: As the caller guarantees.
            unsafe { key.write(Key { bytes: made.0 }) };
            0
        }
        Err(err) => errno(&err),
    }
}

/// Takes a key back: nothing is written by it any more once this returns.
/// -ENOENT if there is none, or if it has expired, whose writing has ended then,
/// too.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_revoke(registry: *const Registry, key: *const Key) -> i32 {
    // SAFETY: As the caller guarantees.
    let (registry, key) = unsafe { (&*registry, bulk::Key((*key).bytes)) };
    match registry.0.revoke(key) {
        true => 0,
        false => -libc::ENOENT,
    }
}

/// Makes an end of connections of TCP that are made: the control connection,
/// and lanes. The descriptors stay the caller's, and may be closed. `landing`
/// is NULL if nothing lands in device memory; it is this endpoint's alone.
/// -EINVAL if it is too small for so many lanes.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_endpoint_new(
    control: i32,
    lanes: *const i32,
    count: usize,
    registry: *const Registry,
    landing: *const Landing,
    out: *mut *mut Endpoint,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let (lanes, registry) = unsafe { (array(lanes, count), &*registry) };
    // SAFETY: As the caller guarantees.
    let landing = unsafe { landing.as_ref() };
    let socket = |fd: i32| -> io::Result<TcpStream> {
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        // SAFETY: As the caller guarantees.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        Ok(fd.try_clone_to_owned()?.into())
    };
    let made = || {
        let lanes: Vec<_> = lanes
            .iter()
            .map(|&fd| socket(fd))
            .collect::<io::Result<_>>()?;
        let mut options = Options::new(registry.0.clone());
        if let Some(landing) = landing {
            let count = u16::try_from(lanes.len()).unwrap_or(u16::MAX);
            options = options.landing(Arc::clone(&landing.0), count);
        }
        bulk::Endpoint::new(socket(control)?, lanes, options)
    };
    // SAFETY: As the caller guarantees.
    unsafe { give(made().map(Endpoint), out) }
}

/// Ends the connection, if it has not ended, and lets go of it. That may take 5 s,
/// until the peer has what was being sent. Lanes whose descriptors the caller
/// still has stay open.
///
/// # Safety
///
/// See the head of the header. May be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_endpoint_free(endpoint: *mut Endpoint) {
    // SAFETY: As the caller guarantees.
    unsafe { take_back(endpoint) }
}

/// Waits until the peer is there, no longer than so many milliseconds.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_wait_open(endpoint: *mut Endpoint, milliseconds: u64) -> i32 {
    // SAFETY: As the caller guarantees.
    let endpoint = unsafe { &mut *endpoint };
    match endpoint.0.wait_open(Duration::from_millis(milliseconds)) {
        Ok(()) => 0,
        Err(err) => errno(&err),
    }
}

/// Puts `len` bytes from `from` of a memory on to `to` of what the key names.
/// Returns the number of the request, or -EAGAIN if there are too many.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_put(
    endpoint: *mut Endpoint,
    memory: *const Memory,
    from: u64,
    len: u64,
    key: *const Key,
    to: u64,
) -> i64 {
    // SAFETY: As the caller guarantees.
    let (endpoint, memory, key) = unsafe { (&mut *endpoint, &*memory, bulk::Key((*key).bytes)) };
    id(endpoint.0.put(&memory.0, from, len, key, to))
}

/// Gets `len` bytes from `from` on of what the key names to `to` of a memory.
/// Returns as dmb_put() does.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_get(
    endpoint: *mut Endpoint,
    memory: *const Memory,
    to: u64,
    len: u64,
    key: *const Key,
    from: u64,
) -> i64 {
    // SAFETY: As the caller guarantees.
    let (endpoint, memory, key) = unsafe { (&mut *endpoint, &*memory, bulk::Key((*key).bytes)) };
    id(endpoint.0.get(&memory.0, to, len, key, from))
}

/// Tells the peer's program something, DMB_NOTE bytes, once all that was put
/// before is in place. Returns as dmb_put() does.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_notify(endpoint: *mut Endpoint, note: *const u8) -> i64 {
    // SAFETY: As the caller guarantees.
    let (endpoint, note) = unsafe { (&mut *endpoint, *note.cast::<[u8; DMB_NOTE]>()) };
    id(endpoint.0.notify(note))
}

/// Gives up a request. It ends when the peer answers, one way or another.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_cancel(endpoint: *mut Endpoint, request: u64) {
    // SAFETY: As the caller guarantees.
    unsafe { (*endpoint).0.cancel(request) }
}

/// There will be no more requests of this end. The connection is over when the
/// peer says the same.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_close(endpoint: *mut Endpoint) {
    // SAFETY: As the caller guarantees.
    unsafe { (*endpoint).0.close() }
}

/// Waits for an event, no longer than so many milliseconds: for ever if that is
/// negative. Returns 1 with an event, and 0 if there was none, or will be none
/// any more. Who does not call it for 30 s may lose the connection. Nothing wakes
/// it up but events: a program that waits for something else, too, or has other
/// threads make requests, calls it for a few milliseconds at a time.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_wait(
    endpoint: *mut Endpoint,
    milliseconds: i64,
    out: *mut Happened,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let endpoint = unsafe { &mut *endpoint };
    let timeout = u64::try_from(milliseconds).ok().map(Duration::from_millis);
    let event = match endpoint.0.wait(timeout) {
        Ok(Some(event)) => event,
        Ok(None) => return 0,
        Err(err) => return errno(&err),
    };
    let mut told = Happened {
        kind: DMB_EVENT_CLOSING,
        reason: 0,
        id: 0,
        note: [0; NOTE],
    };
    match event {
        Event::Done { id, result } => {
            told.kind = DMB_EVENT_DONE;
            told.id = id;
            told.reason = match result {
                Ok(()) => 0,
                Err(Failure::Status(status)) => status.code(),
                Err(Failure::Over(end)) => over(end).max(DMB_OVER),
            };
        }
        Event::Note(note) => {
            told.kind = DMB_EVENT_NOTE;
            told.note = note;
        }
        Event::Closing => (),
        Event::Over(end) => {
            told.kind = DMB_EVENT_OVER;
            told.reason = over(end);
        }
    }
    // SAFETY: As the caller guarantees.
    unsafe { out.write(told) };
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::ptr::null;
    use std::ptr::null_mut;

    /// As arrays of C are that have nothing in them.
    #[test]
    fn an_array_of_nothing_may_be_null() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let control = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut registry = null_mut();
        // SAFETY: What is said to be valid is.
        unsafe {
            assert_eq!(dmb_registry_new(&raw mut registry), 0);
            let mut endpoint = null_mut();
            let (fd, out) = (control.as_raw_fd(), &raw mut endpoint);
            let made = dmb_endpoint_new(fd, null(), 0, registry, null(), out);
            assert_eq!(made, -libc::EINVAL);
            let mut landing = null_mut();
            let made = dmb_landing_new(-1, 1, null(), 0, &raw mut landing);
            assert_eq!(made, -libc::EBADF);
            dmb_registry_free(registry);
        }
    }
}
