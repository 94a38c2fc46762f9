// SPDX-License-Identifier: GPL-2.0

//! Sockets: the tokens that their user holds, and the messages that it receives.
//!
//! C headers: [`include/net/sock.h`](srctree/include/net/sock.h),
//! [`include/linux/socket.h`](srctree/include/linux/socket.h)

use core::{
    iter::repeat_with,
    marker::PhantomData,
    mem::{
        offset_of,
        size_of, //
    },
    num::NonZero,
    ptr::NonNull,
    slice::from_raw_parts_mut, //
};

use kernel::{
    error::{
        code::ETOOSMALL,
        to_result, //
    },
    prelude::*,
    static_assert,
    types::NotThreadSafe, //
};

use super::{
    bindings,
    netmem::{
        CountedIovs,
        Loan, //
    },
    nospec::array_index,
    run::{
        End,
        Run, //
    },
    skbuff::{
        run_of,
        Frag,
        Frags,
        RxSkBuff, //
    },
    token::{
        self,
        Frags as _,
        Held,
        Slots,
        Taken,
        Told, //
    },
};

static_assert!(token::BASE == bindings::NET_DEVMEM_TOKEN_BASE);
static_assert!(token::RUN_MAX == bindings::NET_DEVMEM_RUN_MAX);
static_assert!(token::RUN == bindings::NET_DEVMEM_RUN);

/// Lets others have the CPU, if it is their turn. Process context, without spinlocks.
pub(crate) fn cond_resched() {
    // SAFETY: May be called by who may sleep. As with all that sleeps in the `kernel` crate, types do not see to that.
    unsafe { bindings::cond_resched() }
}

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
        // SAFETY: The socket is alive. Its array of tokens is protected by the lock.
        let array = NonNull::new(unsafe { bindings::sk_devmem_tokens(self.0.as_ptr()) });
        // SAFETY: As above.
        let array = array.filter(|array| unsafe { array.as_ref() }.next.is_null());
        // INVARIANT: Locked right above.
        Tokens {
            sk: self,
            xa,
            // SAFETY: As above; while the lock is held, nobody else has the array, and it stays.
            slots: array.map(|array| unsafe { slots(array) }),
            _not_send: NotThreadSafe,
        }
    }
}

/// A TCP socket that is locked in a system call on it.
///
/// # Invariants
///
/// The current thread holds the lock of the socket for `'a`.
pub(crate) struct LockedSock<'a>(Sock<'a>);

impl LockedSock<'_> {
    /// # Safety
    ///
    /// `ptr` has to be to a TCP socket that stays locked by the current thread for the lifetime of the
    /// result.
    pub(super) unsafe fn from_raw(ptr: NonNull<bindings::sock>) -> Self {
        // INVARIANT: By the requirements of this function.
        // SAFETY: By the requirements of this function; a socket that is locked stays alive.
        Self(unsafe { Sock::from_raw(ptr) })
    }

    /// The tokens of the socket, for the frags of `skb` in a `recvmsg()`: no more than `limit` in all.
    pub(crate) fn reader_tokens<'a>(&'a self, skb: &RxSkBuff<'a>, limit: u32) -> ReaderTokens<'a> {
        // INVARIANT: There is no other skb.
        ReaderTokens {
            sk: self,
            loan: skb.loan(),
            limit,
        }
    }
}

/// The tokens of a socket, locked until this is dropped.
///
/// They are the socket's `sk_devmem_tokens`, and those of the built-in provider its `sk_user_frags`: a
/// socket can have both. The kernel sees to them when the socket goes.
///
/// # Invariants
///
/// `xa` is the `sk_user_frags` of `sk`. The current thread holds its lock. Its
/// entries are `XA_ZERO_ENTRY`, for tokens that are reserved, or what tokens stand for: the `netmem_ref` of a
/// net_iov, or a loan, with a reference to it. So are those of `slots`, which may stand for several net_iovs, with a
/// reference to each: these follow each other in their area.
pub(crate) struct Tokens<'a> {
    sk: &'a Sock<'a>,
    xa: *mut bindings::xarray,
    /// None if there is no array, or if it is just being replaced by a larger one.
    slots: Option<Slots<'a>>,
    _not_send: NotThreadSafe,
}

/// # Safety
///
/// `array` has to be that of a socket, and nobody else's for the lifetime of the result.
unsafe fn slots<'a>(array: NonNull<bindings::net_devmem_tokens>) -> Slots<'a> {
    let array = array.as_ptr();

    // SAFETY: By the requirements of this function. It has `size` slots, and a bit for each, and for
    // each word of these.
    // INVARIANT: The kernel keeps those of `Slots`.
    unsafe {
        let size = (*array).size as usize;
        let words = size.div_ceil(usize::BITS as usize);
        let groups = words.div_ceil(usize::BITS as usize);

        Slots {
            used: &mut (*array).used,
            hint: &mut (*array).hint,
            groups: from_raw_parts_mut((*array).groups.cast(), groups),
            free: from_raw_parts_mut((*array).free.cast(), words),
            slots: from_raw_parts_mut((&raw mut (*array).slots).cast(), size),
            more: from_raw_parts_mut((*array).more, size),
        }
    }
}

impl Tokens<'_> {
    /// Takes back a token of the array.
    #[inline]
    fn take_slot(&mut self, token: u32) -> Option<Held> {
        let Some(slots) = &mut self.slots else {
            return self.take_slot_of_two(token);
        };
        let slot = token.wrapping_sub(token::BASE) as usize;
        let size = slots.slots.len();
        if slot >= size {
            return None;
        }

        // CAST: There are less slots than tokens.
        slots.take(token::BASE | array_index(slot, size) as u32)
    }

    /// The same while a larger array is about to replace this one, and has a part of its tokens.
    #[cold]
    fn take_slot_of_two(&mut self, token: u32) -> Option<Held> {
        let mut count = 0;
        let sk = self.sk.0.as_ptr();
        // SAFETY: By the type invariant the socket is alive, and the lock is held.
        let netmem = unsafe { bindings::net_devmem_take_token(sk, token, &mut count) };

        (netmem != 0).then_some(Held { netmem, count })
    }

    /// Takes back a token of the built-in provider.
    fn take_user_frag(&mut self, token: u32) -> Option<Held> {
        // SAFETY: By the type invariants the xarray is valid, and its lock is held, so that nobody
        // erases the entry in between. Zero entries are shown as NULL, and stay.
        let netmem = unsafe {
            let entry = bindings::xa_load(self.xa, token as c_ulong);
            if entry.is_null() {
                return None;
            }
            bindings::__xa_erase(self.xa, token as c_ulong)
        };

        Some(Held {
            netmem: netmem as bindings::netmem_ref,
            count: 1,
        })
    }

    /// Lets a token stand for a run of frags, to each of which there is a reference that is the caller's.
    ///
    /// If that is not a run after all, or the token not what the caller takes it for, the references are lost.
    fn commit_run(&mut self, told: Told, run: Option<(Held, usize)>) {
        let (Some(slots), Some((run, before))) = (&mut self.slots, run) else {
            return;
        };

        let committed = match slots.held(told.token) {
            // Another thread has returned it already, or it is a new one.
            None => slots.commit_run(told.token, run),
            // INVARIANT: They follow in the same area: that has as many before these.
            Some(held) if told.goes_on && held.is_before(run.netmem, before) => {
                slots.add(told.token, run.count)
            }
            Some(_) => false,
        };
        debug_assert!(
            committed,
            "a token that was not free, or stands for something else"
        );
    }
}

impl token::Take for Tokens<'_> {
    type Returned = CountedIovs;

    #[inline]
    fn take(&mut self, token: u32, returned: &mut CountedIovs) -> Taken {
        let held = match token < token::BASE {
            false => self.take_slot(token),
            true => self.take_user_frag(token),
        };

        match held {
            None => Taken::Nothing,
            Some(Held { netmem, count: 1 }) => {
                // SAFETY: The token had a reference, and is no longer there.
                unsafe { returned.push(netmem) };
                Taken::One
            }
            Some(run) => {
                // SAFETY: As above, to each, and by the type invariants they follow each other.
                unsafe { returned.push_run(run) };
                Taken::Run
            }
        }
    }
}

impl Drop for Tokens<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the current thread holds the lock.
        unsafe { bindings::xa_unlock_bh(self.xa) }
    }
}

/// The tokens of a socket that somebody reads from.
///
/// # Invariants
///
/// `loan` is that of the skb which is read: there is one in each call.
pub(crate) struct ReaderTokens<'a> {
    sk: &'a LockedSock<'a>,
    loan: Option<Loan<'a>>,
    limit: u32,
}

impl ReaderTokens<'_> {
    /// As many tokens as there are and may be, if there are any. And for how many net_iovs there may be some.
    #[inline]
    fn peek_free(&self, tokens: &mut [u32]) -> Result<Option<(NonZero<usize>, usize)>> {
        let table = self.sk.0.tokens();
        let Some(slots) = &table.slots else {
            return Ok(None);
        };
        let room = self.limit.saturating_sub(*slots.used) as usize;

        if room == 0 {
            return Err(ENOBUFS);
        }
        let most = tokens.len().min(room);
        let count = NonZero::new(slots.peek(&mut tokens[..most]));
        Ok(count.map(|count| (count, room)))
    }

    /// The same. `ENOBUFS` if the socket has as many as it may, `ENOMEM` if there is no memory. Can sleep.
    #[inline]
    fn peek_or_grow(&self, tokens: &mut [u32]) -> Result<(NonZero<usize>, usize)> {
        if let Some(found) = self.peek_free(tokens)? {
            return Ok(found);
        }

        // SAFETY: By the type invariant the socket is locked.
        to_result(unsafe { bindings::net_devmem_grow_tokens(self.sk.0 .0.as_ptr()) })?;
        self.peek_free(tokens)?.ok_or(ENOMEM)
    }

    /// Lets tokens stand for `netmems`, which come with references, and are asked for with the lock held.
    /// A reference without a token is lost.
    fn commit_netmems<I>(&mut self, tokens: impl Iterator<Item = u32>, netmems: impl FnOnce() -> I)
    where
        I: Iterator<Item = bindings::netmem_ref>,
    {
        let mut table = self.sk.0.tokens();
        let Some(slots) = &mut table.slots else {
            return;
        };

        // In this order: no reference is taken that there is no token for.
        for (token, netmem) in tokens.zip(netmems()) {
            let committed = slots.commit(token, netmem);
            debug_assert!(committed, "a token that was not free");
        }
    }

    /// Lets each of `tokens` stand for `loan`, of however many frags of the skb it was told.
    fn commit_loan(&mut self, tokens: impl Iterator<Item = u32>, loan: Loan<'_>) {
        self.commit_netmems(tokens, || repeat_with(|| loan.take_reference()));
    }
}

impl ReaderTokens<'_> {
    /// Lets tokens stand for runs of `frags`, of which there is a reference for each that is the caller's. One
    /// without a token is lost.
    fn commit_counted(&mut self, runs: &[Told], frags: &[Frag]) {
        let mut table = self.sk.0.tokens();
        let mut rest = frags;

        for &told in runs {
            let (run, after) = rest.split_at(told.frags.min(rest.len()));

            table.commit_run(told, run_of(run));
            rest = after;
        }
    }
}

impl<'a> token::Tokens<Frags<'a>> for ReaderTokens<'_> {
    type Error = Error;

    /// `ENOBUFS` if the socket has as many as it may, `ENOMEM` if there is no memory. Can sleep.
    fn peek(&mut self, tokens: &mut [u32]) -> Result<NonZero<usize>> {
        self.peek_or_grow(tokens).map(|(count, _)| count)
    }

    /// As above.
    fn peek_for_runs(&mut self, tokens: &mut [u32]) -> Result<(NonZero<usize>, usize)> {
        self.peek_or_grow(tokens)
    }

    fn commit(&mut self, tokens: &[u32], frags: &[Frag]) {
        let tokens = tokens.iter().copied();
        if let Some(loan) = self.loan {
            return self.commit_loan(tokens, loan);
        }
        let iovs = frags.iter().filter_map(Frag::devmem_iov);

        // SAFETY: Frags are handed out of an `RxSkBuff` only. By its type invariants, it having no loan, they have a
        // page pool.
        self.commit_netmems(tokens, || iovs.map(|iov| unsafe { iov.take_reference() }));
    }

    fn commit_all(&mut self, tokens: &[u32], frags: Frags<'_>) {
        // A loop for each of the two cases.
        if !frags.are_eaten() {
            return self.commit(tokens, frags.as_slice());
        }
        self.commit_netmems(tokens.iter().copied(), || frags.into_netmems());
    }

    fn room(&mut self, run: &Run) -> usize {
        let table = self.sk.0.tokens();
        let Some(slots) = &table.slots else { return 0 };

        match slots.held(run.token) == Some(run.held()) {
            true => self.limit.saturating_sub(*slots.used) as usize,
            false => 0,
        }
    }

    fn commit_runs(&mut self, runs: &[Told], frags: &[Frag]) {
        if let Some(loan) = self.loan {
            // None goes on: see `room()`, where no token stands for what was sent from a local binding.
            return self.commit_loan(runs.iter().map(|told| told.token), loan);
        }
        for iov in frags.iter().filter_map(Frag::devmem_iov) {
            // SAFETY: Frags are handed out of an `RxSkBuff` only. By its type invariants, it having no loan, they have
            // a page pool.
            unsafe { iov.take_reference() };
        }
        self.commit_counted(runs, frags);
    }

    fn commit_all_runs(&mut self, runs: &[Told], frags: Frags<'_>) {
        match frags.are_eaten() {
            true => self.commit_counted(runs, frags.leave_references()),
            false => self.commit_runs(runs, frags.as_slice()),
        }
    }
}

/// A control message about a frag, as user space gets it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct FragMessage {
    len: usize,
    level: c_int,
    kind: c_int,
    frag: bindings::dmabuf_cmsg,
}

static_assert!(size_of::<FragMessage>() == bindings::DMABUF_CMSG_LEN);
static_assert!(size_of::<FragMessage>() == bindings::DMABUF_CMSG_SPACE);

impl FragMessage {
    /// One about `len` bytes of device memory, at `offset` in the dma-buf of binding `dmabuf_id`,
    /// which the user gives back by `token`.
    pub(crate) fn new(dmabuf_id: u32, offset: u64, len: usize, token: u32) -> Self {
        Self {
            len: size_of::<Self>(),
            level: bindings::SOL_SOCKET as c_int,
            kind: bindings::SO_DEVMEM_DMABUF as c_int,
            frag: bindings::dmabuf_cmsg {
                frag_offset: offset,
                // CAST: A message has at most `MAX_RW_COUNT` bytes.
                frag_size: len as u32,
                frag_token: token,
                dmabuf_id,
                flags: 0,
            },
        }
    }
}

/// A message that is being received: where its data and its control messages go.
///
/// # Invariants
///
/// `msg` is a message of a `recvmsg()` in the current system call, and `run`, if that is something, what it was told of
/// last: all of it is initialised, if its `token` is not 0. Nobody else uses them for `'a`. Before `told` in user space,
/// if that is something, there is a control message about a frag.
pub(crate) struct Message<'a> {
    msg: NonNull<bindings::msghdr>,
    run: Option<NonNull<bindings::net_devmem_run>>,
    told: Option<*mut c_void>,
    _message: PhantomData<&'a mut ()>,
}

/// Where the size is in a control message about a frag, from its end on. It has no padding there, in programs of 32
/// bits neither.
const SIZE_FROM_END: usize =
    size_of::<bindings::dmabuf_cmsg>() - offset_of!(bindings::dmabuf_cmsg, frag_size);

impl Message<'_> {
    /// # Safety
    ///
    /// `msg` has to be to a message that is being received, and nobody else's for the lifetime of
    /// the result. So has `run`, if there is one, to be to what the reader was told of last: its `token` has to be
    /// initialised, and all of it if that is not 0.
    pub(super) unsafe fn from_raw(
        msg: NonNull<bindings::msghdr>,
        run: Option<NonNull<bindings::net_devmem_run>>,
    ) -> Self {
        // INVARIANT: By the requirements of this function. Where the last message about a frag ends is in there.
        let mut this = Self {
            msg,
            run,
            told: None,
            _message: PhantomData,
        };
        this.told = this.last().map(|last| last.control);
        this
    }

    /// What the reader was told of last, if that can go on.
    fn last(&self) -> Option<&bindings::net_devmem_run> {
        let run = self.run?;

        // SAFETY: By the type invariants it is there, and this is initialised.
        if unsafe { (&raw const (*run.as_ptr()).token).read() } == 0 {
            return None;
        }
        // SAFETY: So all of it is, and nobody else uses it.
        Some(unsafe { run.as_ref() })
    }

    /// Whether the reader takes one message for a run of frags.
    #[inline]
    pub(crate) fn takes_runs(&self) -> bool {
        self.run.is_some()
    }

    /// The run that the last control message was about, if that can still be changed.
    pub(crate) fn last_run(&self) -> Option<Run> {
        let run = self.last()?;

        (self.after_frag()? == run.control).then_some(Run {
            token: run.token,
            count: run.count,
            len: run.size,
            end: End {
                last: run.last,
                offset: run.end,
                size: run.buffer,
                after: run.after,
            },
        })
    }

    /// From now on the last control message, if it is about a frag, is about `run`.
    pub(crate) fn set_last_run(&mut self, run: Option<Run>) {
        let control = self.after_frag();
        let Some(last) = self.run else { return };
        let value = match (run, control) {
            (Some(run), Some(control)) => bindings::net_devmem_run {
                token: run.token,
                count: run.count,
                size: run.len,
                end: run.end.offset,
                last: run.end.last,
                buffer: run.end.size,
                after: run.end.after,
                control,
            },
            _ => bindings::net_devmem_run::default(),
        };

        // SAFETY: By the type invariants it is there, and ours.
        unsafe { last.write(value) };
    }

    /// Has the last control message tell of `len` bytes. `EFAULT` if that is not about a frag, or not there any
    /// more. Can sleep.
    pub(crate) fn set_last_len(&mut self, len: u32) -> Result {
        let control = self.after_frag().ok_or(EFAULT)?;
        let size = control.wrapping_byte_sub(SIZE_FROM_END);
        // SAFETY: `len` is readable. By the type invariants what is overwritten is the size in a control message.
        let left =
            unsafe { bindings::copy_to_user(size, (&raw const len).cast(), size_of::<u32>()) };

        match left {
            0 => Ok(()),
            _ => Err(EFAULT),
        }
    }

    /// Where control messages go on in user space, if the last one is about a frag.
    fn after_frag(&self) -> Option<*mut c_void> {
        self.told.filter(|_| self.told == self.user_control())
    }

    /// Where control messages go on in user space, if they go there.
    fn user_control(&self) -> Option<*mut c_void> {
        // SAFETY: By the type invariant the message is valid.
        let msg = unsafe { self.msg.as_ref() };

        if !msg.msg_control_is_user() {
            return None;
        }
        // SAFETY: It has a pointer to user space then, and all values are valid for one.
        Some(unsafe { msg.__bindgen_anon_1.msg_control_user })
    }

    /// Copies bytes to the user's buffers. `EFAULT` if that is not possible for all of them: then what is copied
    /// next goes where these should have gone. Can sleep.
    pub(crate) fn copy(&mut self, data: &[u8]) -> Result {
        // SAFETY: A slice is readable.
        unsafe { self.copy_raw(data.as_ptr(), data.len()) }
    }

    /// The same for bytes that may change meanwhile.
    ///
    /// # Safety
    ///
    /// There have to be `len` bytes at `data`, and they have to stay readable.
    pub(super) unsafe fn copy_raw(&mut self, data: *const u8, len: usize) -> Result {
        // SAFETY: By the type invariant the message is valid, and ours. There are the bytes, by the
        // requirements of this function.
        let copied = unsafe {
            bindings::copy_to_iter_full(data.cast(), len, &raw mut (*self.msg.as_ptr()).msg_iter)
        };

        match copied {
            true => Ok(()),
            false => Err(EFAULT),
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

    /// Adds control messages about frags, in their order. If one cannot be added, tells how many were,
    /// and why that one was not; errors as of [`Self::put_linear`].
    pub(crate) fn put_frags(&mut self, messages: &[FragMessage]) -> Result<(), (usize, Error)> {
        let result = match self.has_plain_control() {
            true => self.copy_frags(messages),
            false => self.put_each(messages),
        };

        if result.map_or_else(|(told, _)| told, |()| messages.len()) != 0 {
            // INVARIANT: The last of them has just been put there.
            self.told = self.user_control();
        }
        result
    }

    /// [`Self::put_frags`] one by one.
    fn put_each(&mut self, messages: &[FragMessage]) -> Result<(), (usize, Error)> {
        for (told, message) in messages.iter().enumerate() {
            self.put(bindings::SO_DEVMEM_DMABUF, message.frag)
                .map_err(|error| (told, error))?;
        }
        Ok(())
    }

    /// Whether control messages go to user space as they are, and not in a 32-bit form.
    #[allow(
        clippy::bad_bit_mask,
        reason = "MSG_CMSG_COMPAT is 0 in kernels without CONFIG_COMPAT"
    )]
    fn has_plain_control(&self) -> bool {
        // SAFETY: By the type invariant the message is valid.
        let msg = unsafe { self.msg.as_ref() };

        msg.msg_control_is_user() && msg.msg_flags & bindings::MSG_CMSG_COMPAT == 0
    }

    /// [`Self::put_frags`] by one copy. The control messages are [plain](Self::has_plain_control).
    fn copy_frags(&mut self, messages: &[FragMessage]) -> Result<(), (usize, Error)> {
        const SIZE: usize = size_of::<FragMessage>();
        // SAFETY: By the type invariant the message is valid, and ours.
        let msg = unsafe { self.msg.as_mut() };
        // SAFETY: It has a pointer to user space, and all values are valid for one.
        let control = unsafe { &mut msg.__bindgen_anon_1.msg_control_user };
        let room = match control.is_null() {
            true => 0,
            false => msg.msg_controllen / SIZE,
        };
        let len = messages.len().min(room) * SIZE;

        // SAFETY: There are `len` bytes of messages, none of which is padding.
        let left = unsafe { bindings::copy_to_user(*control, messages.as_ptr().cast(), len) };
        let told = (len - left) / SIZE;

        *control = control.wrapping_byte_add(told * SIZE);
        msg.msg_controllen -= told * SIZE;
        match told {
            told if told == messages.len() => Ok(()),
            told if told == room => Err((told, ETOOSMALL)),
            told => Err((told, EFAULT)),
        }
    }

    fn put(&mut self, kind: u32, mut cmsg: bindings::dmabuf_cmsg) -> Result {
        // SAFETY: By the type invariant the message is valid, and ours.
        to_result(unsafe {
            bindings::put_cmsg_notrunc(
                self.msg.as_ptr(),
                bindings::SOL_SOCKET as c_int,
                kind as c_int,
                size_of::<bindings::dmabuf_cmsg>() as c_int,
                (&raw mut cmsg).cast(),
            )
        })
    }
}
