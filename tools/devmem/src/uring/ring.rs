// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An io_uring instance, the requests in it, and whose they are.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use io_uring::Builder;
use io_uring::IoUring;
use io_uring::Submitter;
use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types::BufRingEntry;
use io_uring::types::CancelBuilder;
use io_uring::types::SubmitArgs;
use io_uring::types::Timespec;

/// `user_data` with this is that of receivers and senders; the rest is the program's.
const OURS: u64 = 1 << 63;
/// Where the number of a member begins in `user_data`. What is below is up to the member.
const MEMBER: u32 = 34;
/// So many members there may be of one ring, one after the other.
const MEMBERS: u32 = 1 << (63 - MEMBER);
/// The longest time to wait, 68 years: the kernel adds what time it is, and wraps.
const FOR_EVER: Duration = Duration::from_secs(1 << 31);
/// The members' `user_data` of a request to cancel others.
const CANCEL: u64 = 1 << 33;
/// After this long, whatever is left is cancelled once more.
const CANCEL_AGAIN: Duration = Duration::from_millis(100);

/// An io_uring instance for several receivers and senders, and for requests of the program's own: one system call
/// makes the requests of all, and waits for any.
///
/// [`Receiver::on`](super::Receiver::on), [`Receiver::multishot_on`](super::Receiver::multishot_on) and
/// [`Sender::on`](super::Sender::on) use one. What they give is the same, and so is what waits there. A program that
/// waits for many takes what does not, and waits here:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let streams: Vec<std::net::TcpStream> = Vec::new();
/// use devmem::uring::{Receiver, Ring};
///
/// let ring = Ring::new(64)?;
/// let mut receivers = Vec::new();
/// for stream in &streams {
///     receivers.push(Receiver::multishot_on(&ring, stream, 64 << 10, 64)?);
/// }
/// while !receivers.is_empty() {
///     let mut next = Vec::new();
///     for mut rx in receivers {
///         let mut open = true;
///         while let Some(received) = rx.try_recv()? {
///             open &= !received.is_eof();
///             if !open {
///                 break;
///             }
///             for piece in received {
///                 // As with any receiver. Tokens go back with what is waited for next.
///             }
///         }
///         if open {
///             next.push(rx);
///         }
///     }
///     receivers = next;
///     if !receivers.is_empty() {
///         ring.wait(None)?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Bringing one's own
///
/// [`build`](Self::build) makes one as a program wants it: with a kernel thread that polls, with workers of another
/// ring, of any size. [`from_uring`](Self::from_uring) takes one that is there. Either way the program's own requests go
/// in by [`push`](Self::push) and come out by [`completion`](Self::completion), so that nobody takes those of others.
/// A program that never enters the kernel but to wait wants `setup_taskrun_flag()` with `setup_coop_taskrun()` and
/// `setup_defer_taskrun()`: else what does not wait does not see what came.
///
/// # Who waits
///
/// A ring can go to other threads, together with what uses it. While one of them waits, by whatever call, all others
/// do that need the ring: so threads that wait want a ring each.
///
/// One with `setup_single_issuer()` only the thread may enter that made it, or that enabled it: in any other all that
/// makes a request or waits fails with `EEXIST`, and receivers and senders that are dropped there with requests leak what
/// those refer to, their sockets too.
///
/// # What the kernel has hold of
///
/// Requests refer to memory of the receivers and senders, which is theirs until the last completion, whoever took
/// that off the ring; dropping one cancels its requests and waits for them, and leaks the memory should that fail. So it
/// does not matter in which order a ring and what uses it are dropped. The same goes for their sockets, of which each has
/// a descriptor of its own: requests that were added and not made, by a receiver that was forgotten say, never meet another
/// file that got the number of the socket's.
#[derive(Clone)]
pub struct Ring(Arc<Mutex<Shared>>);

struct Shared {
    uring: IoUring,
    /// Receivers and senders by their numbers.
    members: BTreeMap<u32, Requests>,
    /// The number of the next one. None is used twice: completions may come late.
    next: u32,
    /// Completions of the program's own requests.
    own: VecDeque<cqueue::Entry>,
    /// How the next calls of `enter()` fail, without the requests being made or with.
    #[cfg(test)]
    failures: VecDeque<(i32, bool)>,
}

/// Requests of a receiver or a sender.
#[derive(Default)]
struct Requests {
    /// `user_data` of those that were made and are not completed.
    in_flight: Vec<u64>,
    /// Completions that it has not taken.
    completed: VecDeque<cqueue::Entry>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring with room for so many requests that have not been made yet. It is not that of processes that this one
    /// forks.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_setup()`, `EPERM` where `kernel.io_uring_disabled` says so, and of `mmap()`.
    pub fn new(entries: u32) -> io::Result<Self> {
        // A request that is malformed shall not hold up those behind it.
        Self::build(IoUring::builder().dontfork().setup_submit_all(), entries)
    }

    /// A ring made in a program's own way.
    ///
    /// Requests here are for sockets, which a ring with `setup_iopoll()` refuses, and are made when it is
    /// [entered](Self::submit), which one with `setup_r_disabled()` refuses until it is enabled.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new); `EINVAL` for a combination that the kernel does not know.
    pub fn build(builder: &Builder, entries: u32) -> io::Result<Self> {
        let uring = builder.build(entries)?;
        // SAFETY: It is new, and has no requests.
        Ok(unsafe { Self::from_uring(uring) })
    }

    /// A ring that is there already, with the requests that it has in flight.
    ///
    /// # Safety
    ///
    /// No request in it, or in flight, has `user_data` with the highest bit set.
    pub unsafe fn from_uring(uring: IoUring) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            uring,
            members: BTreeMap::new(),
            next: 0,
            own: VecDeque::new(),
            #[cfg(test)]
            failures: VecDeque::new(),
        })))
    }

    /// Adds a request of the program's own, which is made with the next [`submit`](Self::submit) or
    /// [`wait`](Self::wait), or by whoever else enters the ring.
    ///
    /// One with `IOSQE_IO_DRAIN` waits for all that came before, which receivers that wait do not end, and all that comes
    /// after waits for it.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if its `user_data` has the highest bit set; those of
    /// [`submit`](Self::submit) if there is no room, and `EBUSY` if there is still none after that. It was not added then.
    ///
    /// # Safety
    ///
    /// As for [`SubmissionQueue::push`](io_uring::squeue::SubmissionQueue::push): what it refers to has to be valid until
    /// its last completion. It takes buffers of none but groups that the program has registered, and posts nothing to a
    /// ring (`IORING_OP_MSG_RING`) whose `user_data` has the highest bit set. It is not linked to what comes after it
    /// (`IOSQE_IO_LINK`, `IOSQE_IO_HARDLINK`), which may be a request of a receiver or sender.
    pub unsafe fn push(&self, entry: &squeue::Entry) -> io::Result<()> {
        if entry.get_user_data() & OURS != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "user_data with the highest bit is for receivers and senders",
            ));
        }
        // SAFETY: As the caller guarantees.
        unsafe { self.lock().push(entry) }
    }

    /// The next completion of the program's own requests, if there is one by now.
    pub fn completion(&self) -> Option<cqueue::Entry> {
        let mut shared = self.lock();
        if shared.own.is_empty() {
            shared.collect();
        }
        shared.own.pop_front()
    }

    /// Makes the requests added, without waiting for any.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_enter()`.
    pub fn submit(&self) -> io::Result<()> {
        self.lock().enter(0, None)
    }

    /// Makes the requests added, and waits until there is a completion that nobody has taken, no longer than
    /// `timeout`.
    ///
    /// Whoever it is for: have a look at all. It may return when there is none, after a signal say.
    ///
    /// # Errors
    ///
    /// Those of `io_uring_enter()`, and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let mut shared = self.lock();
        let some = shared.has_completions();
        shared.enter(usize::from(!some), timeout.filter(|_| !some))
    }

    /// Whether there are completions that nobody has taken. By [its descriptor](Self::as_raw_fd) it can be polled for
    /// those that were not seen here: taking one sees all.
    pub fn has_completions(&self) -> bool {
        self.lock().has_completions()
    }

    /// Calls `with` with what registers files, buffers and such things with the ring. It must not use the ring in other
    /// ways, which would wait for ever.
    ///
    /// # Safety
    ///
    /// `with` unregisters no ring of buffers ([`unregister_buf_ring`](Submitter::unregister_buf_ring)) but those that the
    /// program has registered, and cancels no requests but its own: others may be those of receivers, which the kernel
    /// would take from them with what it was to write there.
    pub unsafe fn with_submitter<R>(&self, with: impl FnOnce(&Submitter<'_>) -> R) -> R {
        with(&self.lock().uring.submitter())
    }

    /// One more that uses it.
    pub(super) fn join(&self) -> io::Result<Member> {
        let mut shared = self.lock();
        let number = shared.next;
        if number == MEMBERS {
            return Err(io::Error::other("too many have used this ring"));
        }
        shared.next += 1;
        shared.members.insert(number, Requests::default());
        drop(shared);
        Ok(Member {
            ring: self.clone(),
            number,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing here leaves things half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For `poll()`, and for messages of other rings.
impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.lock().uring.as_raw_fd()
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: It is open for as long as there is a ring.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}

impl Shared {
    /// Adds a request.
    ///
    /// # Safety
    ///
    /// What the entry refers to has to stay where it is, and to be touched by nobody, until the last
    /// completion of the request.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.uring.submission().is_full() {
            self.enter(0, None)?;
            if self.uring.params().is_setup_sqpoll() {
                self.uring.submitter().squeue_wait()?;
            }
        }
        // SAFETY: As the caller guarantees.
        unsafe { self.uring.submission().push(entry) }
            .map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// Makes the requests added, and waits for `want` completions: no longer than `timeout`, after
    /// which it fails with [`TimedOut`](io::ErrorKind::TimedOut). Those that are there go to whom they are for.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        self.enter_only(want, timeout)?;
        self.collect();
        Ok(())
    }

    fn enter_only(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        #[cfg(test)]
        if let Some((errno, made)) = self.failures.pop_front() {
            if made {
                self.uring.submit_and_wait(want)?;
            }
            return Err(io::Error::from_raw_os_error(errno));
        }
        if want == 0 {
            let new = self.uring.submission();
            if new.is_empty() && !new.cq_overflow() && !new.taskrun() {
                return Ok(());
            }
        }
        let result = match timeout {
            None => self.uring.submit_and_wait(want),
            Some(timeout) => {
                let timespec = Timespec::from(timeout.min(FOR_EVER));
                let args = SubmitArgs::new().timespec(&timespec);
                self.uring.submitter().submit_with_args(want, &args)
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(err) => match err.raw_os_error() {
                // Completions have to be taken first, or a signal came: the caller tries again.
                Some(libc::EBUSY | libc::EAGAIN | libc::EINTR) => Ok(()),
                Some(libc::ETIME) => Err(io::ErrorKind::TimedOut.into()),
                _ => Err(err),
            },
        }
    }

    /// Whether there are completions that nobody has taken.
    fn has_completions(&mut self) -> bool {
        self.collect();
        !self.own.is_empty()
            || self
                .members
                .values()
                .any(|member| !member.completed.is_empty())
    }

    /// Gives completions to whom they are for.
    fn collect(&mut self) {
        while let Some(mut entry) = self.uring.completion().next() {
            let user_data = entry.user_data();
            if user_data & OURS == 0 {
                self.own.push_back(entry);
                continue;
            }
            // Who is gone has left its memory to the kernel, and completions to nobody.
            let Some(member) = self.members.get_mut(&member_of(user_data)) else {
                continue;
            };
            let user_data = user_data & ((1 << MEMBER) - 1);
            if !cqueue::more(entry.flags()) {
                let at = member.in_flight.iter().position(|&id| id == user_data);
                at.map(|at| member.in_flight.swap_remove(at));
            }
            if user_data != CANCEL {
                entry.set_user_data(user_data);
                member.completed.push_back(entry);
            }
        }
    }
}

/// Which member a request is of.
fn member_of(user_data: u64) -> u32 {
    // The bits above those of the member are gone.
    u32::try_from((user_data & !OURS) >> MEMBER).unwrap_or(u32::MAX)
}

/// A receiver or a sender, as its ring knows it.
#[derive(Debug)]
pub(super) struct Member {
    ring: Ring,
    number: u32,
}

impl Member {
    /// What it has in the ring. There is something for as long as it has not left.
    fn with<R>(&self, with: impl FnOnce(&mut Requests) -> R) -> R
    where
        R: Default,
    {
        let mut shared = self.ring.lock();
        shared
            .members
            .get_mut(&self.number)
            .map(with)
            .unwrap_or_default()
    }

    /// How many of its requests were made and are not completed.
    pub(super) fn in_flight(&self) -> usize {
        self.with(|requests| requests.in_flight.len())
    }

    /// Adds a request, which is made with the next [`enter`](Self::enter), or by another user of the ring. Its
    /// `user_data` has to be less than 2^33.
    ///
    /// # Safety
    ///
    /// What the entry refers to has to stay where it is, and to be touched by nobody, until the last
    /// completion of the request: for as long as it is [in flight](Self::in_flight).
    pub(super) unsafe fn push(&self, entry: squeue::Entry) -> io::Result<()> {
        let user_data = entry.get_user_data();
        let whose = OURS | u64::from(self.number) << MEMBER;
        let entry = entry.user_data(whose | user_data);
        let mut shared = self.ring.lock();
        // SAFETY: As the caller guarantees.
        unsafe { shared.push(&entry) }?;
        if let Some(requests) = shared.members.get_mut(&self.number) {
            requests.in_flight.push(user_data);
        }
        Ok(())
    }

    /// Makes the requests added, and waits for `want` completions, unless there are some to be taken: no longer than
    /// `timeout`, after which it fails with [`TimedOut`](io::ErrorKind::TimedOut). Completions may be those of others.
    pub(super) fn enter(&self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let mut shared = self.ring.lock();
        let members = &shared.members;
        let requests = members.get(&self.number);
        // Another user of the ring may have come by them.
        match requests.is_some_and(|requests| !requests.completed.is_empty()) {
            true => shared.enter(0, None),
            false => shared.enter(want, timeout),
        }
    }

    /// Whether there are requests that nobody has made yet.
    pub(super) fn has_new(&self) -> bool {
        !self.ring.lock().uring.submission().is_empty()
    }

    /// The next completion, if there is one.
    pub(super) fn next(&self) -> Option<cqueue::Entry> {
        let mut shared = self.ring.lock();
        shared.collect();
        let requests = shared.members.get_mut(&self.number)?;
        requests.completed.pop_front()
    }

    /// Cancels the requests with this `user_data`, without waiting for that.
    pub(super) fn cancel(&self, user_data: u64) -> io::Result<()> {
        let whose = OURS | u64::from(self.number) << MEMBER;
        let which = CancelBuilder::user_data(whose | user_data).all();
        let entry = opcode::AsyncCancel2::new(which).build().user_data(CANCEL);
        // SAFETY: The entry refers to no memory.
        unsafe { self.push(entry) }
    }

    /// Cancels everything that it has in flight and waits until that has completed. After it nothing that the ring
    /// was given is used any more.
    pub(super) fn cancel_all(&self, mut each: impl FnMut(cqueue::Entry)) -> io::Result<()> {
        loop {
            let in_flight = self.with(|requests| requests.in_flight.clone());
            if in_flight.is_empty() {
                break;
            }
            for &user_data in in_flight.iter().filter(|&&id| id != CANCEL) {
                self.cancel(user_data)?;
            }
            match self.enter(1, Some(CANCEL_AGAIN)) {
                Err(err) if err.kind() != io::ErrorKind::TimedOut => return Err(err),
                _ => (),
            }
            while let Some(entry) = self.next() {
                each(entry);
            }
        }
        // These came before the last one.
        while let Some(entry) = self.next() {
            each(entry);
        }
        Ok(())
    }

    /// Tells the kernel of a ring of `count` buffers at this address; returns the number of their group.
    ///
    /// # Safety
    ///
    /// The ring of buffers, and what it refers to, has to stay where it is, and to be written as the kernel expects it,
    /// until [`unregister_buffers`](Self::unregister_buffers) has gone well.
    pub(super) unsafe fn register_buffers(
        &self,
        at: *mut BufRingEntry,
        count: u16,
    ) -> io::Result<u16> {
        let shared = self.ring.lock();
        let submitter = shared.uring.submitter();
        // Programs begin at the other end.
        for group in (0..=u16::MAX).rev() {
            // SAFETY: As the caller guarantees.
            let registered =
                unsafe { submitter.register_buf_ring_with_flags(at as u64, count, group, 0) };
            match registered {
                Ok(()) => return Ok(group),
                Err(err) if err.raw_os_error() == Some(libc::EEXIST) => (),
                Err(err) => return Err(err),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EEXIST))
    }

    /// From now on the kernel knows nothing of these buffers.
    pub(super) fn unregister_buffers(&self, group: u16) -> io::Result<()> {
        self.ring
            .lock()
            .uring
            .submitter()
            .unregister_buf_ring(group)
    }

    /// Has a call that enters the ring fail.
    #[cfg(test)]
    pub(super) fn fail_next(&self, errno: i32, made: bool) {
        self.ring.lock().failures.push_back((errno, made));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.ring.lock().members.remove(&self.number);
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A ring, if this machine allows io_uring: not every one does.
    pub(in super::super) fn ring(entries: u32) -> Option<Ring> {
        match Ring::new(entries) {
            Ok(ring) => Some(ring),
            Err(err)
                if matches!(err.raw_os_error(), Some(libc::EPERM | libc::ENOSYS))
                    && std::env::var_os("DEVMEM_NO_SKIPS").is_none() =>
            {
                eprintln!("SKIP: no io_uring here: {err}");
                None
            }
            Err(err) => panic!("no ring: {err}"),
        }
    }
}

// Miri does not know these system calls.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::io::Write;
    use std::mem;
    use std::net::Ipv4Addr;
    use std::net::Shutdown;
    use std::net::TcpStream;
    use std::net::UdpSocket;
    use std::num::NonZero;
    use std::os::fd::AsFd;
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use nix::unistd::dup2;

    use crate::dmabuf::Extent;
    use crate::send::send_all;
    use crate::testing::connection;
    use crate::uring::Receiver;
    use crate::uring::Sender;

    const LONG: Duration = Duration::from_secs(60);

    fn ring() -> Option<Ring> {
        testing::ring(4)
    }

    fn pair() -> (TcpStream, TcpStream) {
        connection(Ipv4Addr::LOCALHOST.into()).unwrap()
    }

    /// Waits for the ring until this one has received; returns how many bytes.
    fn next(ring: &Ring, rx: &mut Receiver<'_>) -> usize {
        let start = Instant::now();
        loop {
            if let Some(received) = rx.try_recv().unwrap() {
                return received.total();
            }
            assert!(start.elapsed() < LONG);
            ring.wait(Some(LONG)).unwrap();
        }
    }

    fn receiver<'s>(ring: &Ring, multishot: bool, socket: &'s TcpStream) -> Receiver<'s> {
        match multishot {
            true => Receiver::multishot_on(ring, socket, 4096, 4),
            false => Receiver::on(ring, socket, 4096, 4),
        }
        .unwrap()
    }

    #[test]
    fn completions_come_to_whom_they_are_for() {
        let Some(ring) = ring() else { return };
        let pairs = [pair(), pair(), pair()];
        let mut receivers: Vec<_> = pairs
            .iter()
            .zip([false, true, true])
            .map(|((_, socket), multishot)| receiver(&ring, multishot, socket))
            .collect();
        for rx in &mut receivers {
            assert!(rx.try_recv().unwrap().is_none());
        }
        let nop = opcode::Nop::new().build();
        // SAFETY: It refers to no memory.
        unsafe { ring.push(&nop.user_data(7)) }.unwrap();
        for round in 1..4 {
            // The last first.
            for (i, (mut peer, _)) in pairs.iter().map(|(a, b)| (a, b)).enumerate().rev() {
                peer.write_all(&vec![0; 10 * round + i]).unwrap();
            }
            for (i, rx) in receivers.iter_mut().enumerate() {
                assert_eq!(next(&ring, rx), 10 * round + i);
            }
        }
        // It was not taken, and so there is nothing to wait for.
        ring.wait(None).unwrap();
        let own = ring.completion().unwrap();
        assert_eq!((own.user_data(), own.result()), (7, 0));
        assert!(ring.completion().is_none());
        let nothing = ring.wait(Some(Duration::from_millis(1))).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn requests_of_others_cannot_be_had() {
        let Some(ring) = ring() else { return };
        let (_peer, socket) = pair();
        let mut rx = receiver(&ring, false, &socket);
        assert!(rx.try_recv().unwrap().is_none());
        for user_data in [OURS, u64::MAX, OURS | 1 << MEMBER | CANCEL] {
            let nop = opcode::Nop::new().build().user_data(user_data);
            // SAFETY: It refers to no memory.
            let err = unsafe { ring.push(&nop) }.unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        }
        // What somebody has left there tells nobody anything.
        let member = ring.join().unwrap();
        let stray = opcode::Nop::new().build().user_data(3);
        // SAFETY: As above.
        unsafe { member.push(stray) }.unwrap();
        drop(member);
        ring.submit().unwrap();
        assert!(ring.completion().is_none());
        assert!(rx.try_recv().unwrap().is_none());
        assert_eq!(ring.lock().members.len(), 1);
    }

    #[test]
    fn who_goes_leaves_the_others_alone() {
        let Some(ring) = ring() else { return };
        let (pairs, multishot) = ([pair(), pair()], [true, false]);
        let [(mut peer, socket), (mut other_peer, other_socket)] = pairs;
        for (here, there) in multishot.iter().zip(multishot.iter().rev()) {
            let mut rx = receiver(&ring, *here, &socket);
            let mut other = receiver(&ring, *there, &other_socket);
            assert!(rx.try_recv().unwrap().is_none());
            assert!(other.try_recv().unwrap().is_none());
            ring.submit().unwrap();
            drop(rx);
            assert_eq!(ring.lock().members.len(), 1);
            other_peer.write_all(b"some").unwrap();
            assert_eq!(next(&ring, &mut other), 4);
            // Nobody has taken what comes for the one that is gone.
            peer.write_all(b"more").unwrap();
            let mut rx = receiver(&ring, *there, &socket);
            assert_eq!(next(&ring, &mut rx), 4);
            drop(other);
            drop(rx);
            assert!(ring.lock().members.is_empty());
        }
    }

    /// Whether there is memory at an address.
    fn is_mapped(address: usize) -> bool {
        fs::read_to_string("/proc/self/maps")
            .unwrap()
            .lines()
            .filter_map(|line| line.split(' ').next()?.split_once('-'))
            .map(|(start, end)| [start, end].map(|at| usize::from_str_radix(at, 16).unwrap()))
            .any(|[start, end]| (start..end).contains(&address))
    }

    /// A socket under the number that another one had, for which there are requests that nobody has made.
    fn renumber(old: TcpStream, new: impl AsFd) -> OwnedFd {
        let mut number = OwnedFd::from(old);
        dup2(new, &mut number).unwrap();
        number
    }

    #[test]
    fn requests_to_receive_are_for_one_socket() {
        let Some(ring) = ring() else { return };
        for multishot in [false, true] {
            let (_peer, socket) = pair();
            let mut rx = receiver(&ring, multishot, &socket);
            assert!(rx.try_recv().unwrap().is_none());
            mem::forget(rx);
            let (mut other_peer, mut other) = pair();
            other.set_read_timeout(Some(LONG)).unwrap();
            let number = renumber(socket, &other);
            other_peer.write_all(b"some").unwrap();
            ring.submit().unwrap();
            other_peer.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            other.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"some");
            drop(number);
        }
    }

    /// What is an offset there is an address elsewhere.
    #[test]
    fn requests_to_send_are_for_one_socket() {
        const BINDING: NonZero<u32> = NonZero::new(0x7fff_fff0).unwrap();
        let Some(ring) = ring() else { return };
        let (_peer, socket) = pair();
        let secret = [7; 4];
        let extent = Extent {
            offset: secret.as_ptr().addr() as u64,
            len: secret.len() as u64,
        };
        let mut tx = Sender::on(&ring, &socket).unwrap();
        ring.lock().failures.push_back((libc::ENOMEM, false));
        send_all(&mut tx, BINDING, extent, 0).unwrap_err();
        mem::forget(tx);
        let udp = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        udp[0].connect(udp[1].local_addr().unwrap()).unwrap();
        let number = renumber(socket, &udp[0]);
        ring.submit().unwrap();
        // Nothing came before this.
        udp[0].send(b"end").unwrap();
        let mut got = [0; 8];
        let len = udp[1].recv(&mut got).unwrap();
        assert_eq!(&got[..len], b"end");
        drop(number);
    }

    /// Whatever fails, and even if the ring is gone as well.
    #[test]
    fn memory_that_the_kernel_may_write_stays() {
        let Some(ring) = ring() else { return };
        let (mut peer, socket) = pair();
        let mut rx = receiver(&ring, false, &socket);
        let address = rx.address();
        assert!(rx.try_recv().unwrap().is_none());
        ring.submit().unwrap();
        ring.lock()
            .failures
            .extend(std::iter::repeat_n((libc::ENOMEM, false), 8));
        drop(rx);
        ring.lock().failures.clear();
        let mut woken = false;
        assert!(is_mapped(address));
        // What the kernel does with it now is nobody's concern.
        peer.write_all(b"some").unwrap();
        assert!(ring.completion().is_none());
        assert!(ring.lock().members.is_empty());
        let pause = Some(Duration::from_millis(1));
        let err = loop {
            match ring.wait(pause) {
                // The one that came for nobody.
                Ok(()) if !mem::replace(&mut woken, true) => (),
                other => break other.unwrap_err(),
            }
        };
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        let err = ring.wait(pause).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        drop(ring);
        assert!(is_mapped(address));
    }
}
