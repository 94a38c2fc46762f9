// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The library of bulk transfer for programs in C. `include/devmem_bulk.h` is made of this.
//!
//! What C gets are pointers to boxes. All that can be wrong with them is for the caller to see to.

mod group;
#[cfg(test)]
mod group_tests;
mod pool;

use std::ffi::c_void;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::HostMemory;
use devmem_bulk as bulk;
use devmem_bulk::End;
use devmem_bulk::Event;
use devmem_bulk::Failure;
use devmem_bulk::Lane;
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

/// What is transferred from and to: a dma-buf, or ordinary memory.
pub struct Memory(Arc<bulk::Memory>);
/// A dma-buf that payload lands in.
pub struct Landing {
    landing: Arc<bulk::Landing>,
    /// How many endpoints it is for.
    endpoints: u32,
}
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

fn reason(result: Result<(), Failure>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(Failure::Status(status)) => status.code(),
        Err(Failure::Over(end)) => over(end).max(DMB_OVER),
    }
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

/// Makes a memory of `len` bytes of ordinary memory, from and to which the CPU
/// copies. They have to be there until dmb_memory_close() has returned.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_memory_host(
    address: *mut c_void,
    len: usize,
    out: *mut *mut Memory,
) -> i32 {
    let Some(address) = NonNull::new(address.cast()) else {
        return -libc::EINVAL;
    };
    // SAFETY: As the caller guarantees.
    let memory = unsafe { HostMemory::new(address, len) };
    // SAFETY: As the caller guarantees.
    unsafe { give(Ok(Memory(bulk::Memory::host(memory))), out) }
}

/// Whether a memory is bound to a device, which sends from it, 1 or 0. If not, the
/// CPU copies what is sent.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_memory_is_bound(memory: *const Memory) -> i32 {
    // SAFETY: As the caller guarantees.
    let memory = unsafe { &*memory };
    (memory.0.lane() == Lane::Nic).into()
}

/// Gives ordinary memory back: none of it is accessed any more once this
/// returns. A connection by which it was still to be sent fails. A dma-buf stays
/// as it is.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_memory_close(memory: *const Memory) {
    // SAFETY: As the caller guarantees.
    unsafe { (*memory).0.close() }
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

/// Binds a dma-buf to receive queues of a device, for payload of so many
/// endpoints to land in. Flows have to be steered there by other means.
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
    endpoints: u32,
    out: *mut *mut Landing,
) -> i32 {
    // SAFETY: As the caller guarantees.
    let queues = unsafe { array(queues, count) };
    // SAFETY: As the caller guarantees.
    let made = unsafe { dmabuf(fd) }
        .and_then(|dmabuf| Landing::bound(&dmabuf, ifindex, queues, endpoints));
    // SAFETY: As the caller guarantees.
    unsafe { give(made, out) }
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
/// is NULL if nothing lands in device memory; if it is for several endpoints this
/// one gets its part. -EINVAL if that is too small for so many lanes.
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
            options = options.landing(Arc::clone(&landing.landing), count);
            let part = |window| window / u64::from(landing.endpoints);
            options.window = options.window.map(part);
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

/// A descriptor to poll, which stays the endpoint's: there is something to read
/// when something has happened. What that is only dmb_wait() tells, until which
/// there stays something to read.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_fd(endpoint: *const Endpoint) -> i32 {
    // SAFETY: As the caller guarantees.
    unsafe { (*endpoint).0.as_raw_fd() }
}

/// Whether there is more to do, or to tell, without anything that can be polled
/// for, 1 or 0: then whoever polls calls dmb_wait() first. So he does after he
/// has made requests, whatever this says.
///
/// # Safety
///
/// See the head of the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmb_is_busy(endpoint: *const Endpoint) -> i32 {
    // SAFETY: As the caller guarantees.
    unsafe { (*endpoint).0.is_busy() }.into()
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
            told.reason = reason(result);
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

    /// Both ends of a connection with one lane; `None` on a machine that does not allow io_uring.
    fn pair(registry: *const Registry) -> Option<[*mut Endpoint; 2]> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let connection = || {
            let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (here, listener.accept().unwrap().0)
        };
        let (control, lane) = (connection(), connection());
        let end = |control: &TcpStream, lane: &TcpStream| {
            let (lane, mut endpoint) = (lane.as_raw_fd(), null_mut());
            let out = &raw mut endpoint;
            // SAFETY: What is said to be valid is.
            let made = unsafe {
                dmb_endpoint_new(
                    control.as_raw_fd(),
                    &raw const lane,
                    1,
                    registry,
                    null(),
                    out,
                )
            };
            let allowed = ![-libc::EPERM, -libc::ENOSYS].contains(&made)
                || std::env::var_os("DEVMEM_NO_SKIPS").is_some();
            if !allowed {
                eprintln!("SKIP: no io_uring here");
                return None;
            }
            assert_eq!(made, 0);
            Some(endpoint)
        };
        Some([end(&control.0, &lane.0)?, end(&control.1, &lane.1)?])
    }

    /// Has both ends go on, each when it can be read from, or is busy, until the first is told that a request has ended.
    ///
    /// # Safety
    ///
    /// They are valid.
    unsafe fn ended(ends: [*mut Endpoint; 2], id: i64) -> u32 {
        let mut told = Happened {
            kind: 0,
            reason: 0,
            id: 0,
            note: [0; NOTE],
        };
        // SAFETY: As the caller guarantees.
        unsafe {
            // Requests were made.
            let mut go_on = [true, true];
            for _ in 0..100_000 {
                for (at, &end) in ends.iter().enumerate() {
                    while go_on[at] && dmb_wait(end, 0, &raw mut told) == 1 {
                        if at == 0 && told.kind == DMB_EVENT_DONE {
                            assert_eq!(i64::try_from(told.id), Ok(id));
                            return told.reason;
                        }
                    }
                }
                let mut fds = ends.map(|end| libc::pollfd {
                    fd: dmb_fd(end),
                    events: libc::POLLIN,
                    revents: 0,
                });
                let busy = ends.map(|end| dmb_is_busy(end) == 1);
                let timeout = if busy.contains(&true) { 0 } else { 10_000 };
                let ready = libc::poll(fds.as_mut_ptr(), 2, timeout);
                let interrupted = ready < 0;
                assert!(interrupted || ready > 0 || timeout == 0, "nothing happens");
                go_on = [0, 1].map(|at| busy[at] || interrupted || fds[at].revents != 0);
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn ordinary_memory_is_put_and_got() {
        let len = 300_000;
        let mut bytes: Vec<u8> = (0..2 * len).map(|i| (i % 251) as u8).collect();
        let mut there = vec![0_u8; len];
        let (mut registry, mut here, mut remote) = (null_mut(), null_mut(), null_mut());
        // SAFETY: What is said to be valid is.
        unsafe {
            assert_eq!(dmb_registry_new(&raw mut registry), 0);
            let Some(ends) = pair(registry) else {
                return;
            };
            let at = bytes.as_mut_ptr();
            assert_eq!(dmb_memory_host(null_mut(), 1, &raw mut here), -libc::EINVAL);
            assert_eq!(dmb_memory_host(at.cast(), 2 * len, &raw mut here), 0);
            let at = there.as_mut_ptr();
            assert_eq!(dmb_memory_host(at.cast(), len, &raw mut remote), 0);
            assert_eq!(dmb_memory_is_bound(here), 0);
            let mut key = Key { bytes: [0; 16] };
            let len = len as u64;
            let made = dmb_register(registry, remote, 0, len, READ_WRITE, 0, &raw mut key);
            assert_eq!(made, 0);
            assert_eq!(dmb_wait_open(ends[0], 0), -libc::ETIMEDOUT);
            let mut told = std::mem::MaybeUninit::uninit();
            while dmb_wait_open(ends[0], 0) != 0 {
                assert_eq!(dmb_wait(ends[1], 0, told.as_mut_ptr()), 0);
            }
            let (put, get) = (
                |key: &Key, to| dmb_put(ends[0], here, 1, len - 1, key, to),
                |key: &Key| dmb_get(ends[0], here, len, len, key, 0),
            );
            assert_eq!(ended(ends, put(&key, 1)), 0);
            assert_eq!(ended(ends, put(&key, 2)), bulk::Status::Range.code());
            assert_eq!(ended(ends, get(&key)), 0);
            // What is given back is not written any more, key or not.
            dmb_memory_close(remote);
            assert_eq!(ended(ends, put(&key, 1)), bulk::Status::Memory.code());
            for end in ends {
                dmb_endpoint_free(end);
            }
            dmb_memory_free(here);
            dmb_memory_free(remote);
            dmb_registry_free(registry);
        }
        assert_eq!(there[0], 0);
        assert!(there[1..] == bytes[1..len]);
        assert!(there == bytes[len..]);
    }

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
            let made = dmb_landing_new(-1, 1, null(), 0, 1, &raw mut landing);
            assert_eq!(made, -libc::EBADF);
            dmb_registry_free(registry);
        }
    }
}
