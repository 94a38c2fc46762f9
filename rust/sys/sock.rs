// SPDX-License-Identifier: GPL-2.0

//! Sockets: the tokens that their user holds, and the messages that it receives.
//!
//! C headers: [`include/net/sock.h`](srctree/include/net/sock.h),
//! [`include/linux/socket.h`](srctree/include/linux/socket.h)

use core::{
    marker::PhantomData,
    mem::size_of,
    ptr::NonNull, //
};

use kernel::{
    error::to_result,
    prelude::*,
    types::NotThreadSafe, //
};

use super::netmem::{
    CountedIov,
    DevmemIov, //
};
use crate::{
    bindings,
    token::Table, //
};

/// The greatest token, as for the kernel's own provider.
const MAX_TOKEN: u32 = i32::MAX as u32;

/// A TCP socket in a system call on it.
///
/// # Invariants
///
/// The pointer is to a TCP socket that stays alive for `'a`.
pub(crate) struct Sock<'a>(NonNull<bindings::sock>, PhantomData<&'a ()>);

impl Sock<'_> {
    /// # Safety
    ///
    /// `ptr` has to be to a TCP socket that stays alive for the lifetime of the result.
    pub(super) unsafe fn from_raw(ptr: NonNull<bindings::sock>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(ptr, PhantomData)
    }

    /// Locks the tokens of the socket. Keeps softirqs out.
    pub(crate) fn tokens(&self) -> Tokens<'_> {
        // SAFETY: By the type invariant the socket is alive.
        let xa = unsafe { bindings::sk_user_frags(self.0.as_ptr()) };

        // SAFETY: TCP sockets initialise the xarray when they are made.
        unsafe { bindings::xa_lock_bh(xa) };
        // INVARIANT: Locked right above.
        Tokens {
            xa,
            last: MAX_TOKEN,
            _sock: PhantomData,
            _not_send: NotThreadSafe,
        }
    }
}

/// The tokens of a socket, locked until this is dropped.
///
/// They are in the socket's `sk_user_frags`, as those of the kernel's own provider, which sees to
/// them when the socket goes.
///
/// # Invariants
///
/// `xa` is the `sk_user_frags` of a socket that is alive. The current thread holds its lock. Its
/// entries are `XA_ZERO_ENTRY`, for tokens that are reserved, or the `netmem_ref` of a net_iov, with
/// a reference to it.
pub(crate) struct Tokens<'a> {
    xa: *mut bindings::xarray,
    /// The last one that may be reserved.
    last: u32,
    _sock: PhantomData<&'a ()>,
    _not_send: NotThreadSafe,
}

impl Tokens<'_> {
    /// Reserves tokens only as long as the socket has less than `limit`, which is not 0.
    ///
    /// Counts nothing: the lowest free token is reserved, and the lowest of all is 1.
    pub(crate) fn limit_to(&mut self, limit: u32) {
        self.last = limit.min(MAX_TOKEN);
    }

    /// Takes a token back, with the reference that it stands for. None if there is no such token,
    /// or if it is only reserved, which it stays.
    pub(crate) fn take(&mut self, token: u32) -> Option<CountedIov> {
        // SAFETY: By the type invariants the xarray is valid, and its lock is held, so that nobody
        // erases the entry in between. Zero entries are shown as NULL.
        let netmem = unsafe {
            let entry = bindings::xa_load(self.xa, token as c_ulong);
            if entry.is_null() {
                return None;
            }
            bindings::__xa_erase(self.xa, token as c_ulong)
        };

        // SAFETY: By the type invariants the entry had a reference, and is no longer there.
        unsafe { CountedIov::from_netmem(netmem as bindings::netmem_ref) }
    }
}

impl Table<DevmemIov<'_>> for Tokens<'_> {
    type Error = Error;

    /// `ENOBUFS` if the socket has as many as it may, `ENOMEM` if there is no memory.
    fn reserve(&mut self) -> Result<u32> {
        let mut token = 0;

        // SAFETY: By the type invariants the xarray is valid and its lock held. The allocation does
        // not sleep. NULL makes it a zero entry.
        let result = to_result(unsafe {
            bindings::__xa_alloc(
                self.xa,
                &mut token,
                core::ptr::null_mut(),
                bindings::xa_limit {
                    max: self.last,
                    min: 0,
                },
                bindings::GFP_ATOMIC,
            )
        });
        match result {
            Ok(()) => Ok(token),
            Err(EBUSY) => Err(ENOBUFS),
            Err(error) => Err(error),
        }
    }

    fn commit(&mut self, token: u32, iov: DevmemIov<'_>) {
        let netmem = iov.to_counted().into_netmem();

        // SAFETY: By the type invariants the xarray is valid and its lock held. The token is
        // reserved, so there is a slot for it and nothing is allocated.
        unsafe {
            bindings::__xa_store(
                self.xa,
                token as c_ulong,
                netmem as *mut c_void,
                bindings::GFP_ATOMIC,
            )
        };
    }

    fn cancel(&mut self, token: u32) {
        // SAFETY: By the type invariants the xarray is valid and its lock held.
        unsafe { bindings::__xa_erase(self.xa, token as c_ulong) };
    }
}

impl Drop for Tokens<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the current thread holds the lock.
        unsafe { bindings::xa_unlock_bh(self.xa) }
    }
}

/// A message that is being received: where its data and its control messages go.
///
/// # Invariants
///
/// The pointer is to a message of a `recvmsg()` in the current system call.
pub(crate) struct Message<'a>(NonNull<bindings::msghdr>, PhantomData<&'a mut ()>);

impl Message<'_> {
    /// # Safety
    ///
    /// `ptr` has to be to a message that is being received, and nobody else's for the lifetime of
    /// the result.
    pub(super) unsafe fn from_raw(ptr: NonNull<bindings::msghdr>) -> Self {
        // INVARIANT: By the requirements of this function.
        Self(ptr, PhantomData)
    }

    /// Copies bytes to the user's buffers. `EFAULT` if that is not possible. Can sleep.
    pub(crate) fn copy(&mut self, data: &[u8]) -> Result {
        // SAFETY: By the type invariant the message is valid, and ours.
        let copied = unsafe {
            bindings::copy_to_iter(
                data.as_ptr().cast(),
                data.len(),
                &raw mut (*self.0.as_ptr()).msg_iter,
            )
        };

        if copied == data.len() {
            Ok(())
        } else {
            Err(EFAULT)
        }
    }

    /// Adds a control message about bytes that were copied.
    ///
    /// `ETOOSMALL` if there is no room for it, `EFAULT` if the user's memory is not there. Can
    /// sleep.
    pub(crate) fn put_linear(&mut self, len: usize) -> Result {
        self.put(
            bindings::SO_DEVMEM_LINEAR,
            bindings::dmabuf_cmsg {
                // CAST: A message has at most `MAX_RW_COUNT` bytes.
                frag_size: len as u32,
                ..Default::default()
            },
        )
    }

    /// Adds a control message about `len` bytes of device memory, at `offset` in the dma-buf of
    /// binding `dmabuf_id`, which the user gives back by `token`. Errors as [`Self::put_linear`].
    pub(crate) fn put_frag(
        &mut self,
        dmabuf_id: u32,
        offset: u64,
        len: usize,
        token: u32,
    ) -> Result {
        self.put(
            bindings::SO_DEVMEM_DMABUF,
            bindings::dmabuf_cmsg {
                frag_offset: offset,
                // CAST: As above.
                frag_size: len as u32,
                frag_token: token,
                dmabuf_id,
                flags: 0,
            },
        )
    }

    fn put(&mut self, kind: u32, mut cmsg: bindings::dmabuf_cmsg) -> Result {
        // SAFETY: By the type invariant the message is valid, and ours.
        to_result(unsafe {
            bindings::put_cmsg_notrunc(
                self.0.as_ptr(),
                bindings::SOL_SOCKET as c_int,
                kind as c_int,
                size_of::<bindings::dmabuf_cmsg>() as c_int,
                (&raw mut cmsg).cast(),
            )
        })
    }
}
