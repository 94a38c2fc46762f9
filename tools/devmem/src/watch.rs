// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Waiting for what happens to one binding.
//!
//! [`Binding::wait_event`](crate::Binding::wait_event) waits for what happens to the caller's own. A [`Watch`] is for those
//! who wait in another thread, for several things at once, or for a binding that another program has made.
//!
//! Nothing is missed that had happened before somebody asked. A watch begins with a binding of which nothing is known but
//! that it was made; it has itself told of events first, and asks then how the binding is. What has happened until then is in
//! the answer, and what happens later is an event. That is why the group is joined when somebody wants to know, and not
//! before the dma-buf is bound: who never asks has no socket that fills with what happens to others, and it works for
//! bindings that were there before.
//!
//! In the same way it goes on: an event is a reason to ask, and what is told is how the answer differs from the one before.
//! So it does not matter if the kernel had no room for some events ([`Error::Lost`]), which it tells as well.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (ifindex, memory) = (1, devmem::DmaBuf::udmabuf(64 << 20)?);
//! use std::time::Duration;
//!
//! use devmem::BindRx;
//! use devmem::status::EventKind;
//!
//! let mut binding = BindRx::new(ifindex).queue(4).bind(&memory)?;
//! while let Some(event) = binding.wait_event(Duration::MAX)? {
//!     match event.kind {
//!         // The queue goes on with host memory, and can be bound anew.
//!         EventKind::Revoked => break,
//!         // It has no device any more.
//!         EventKind::Unbound => break,
//!         // What comes is dropped: tokens that are held have to go back.
//!         EventKind::Exhausted => println!("no buffers"),
//!         _ => (),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::Binding;
use crate::netdev::Netdev;
use crate::netlink::Error;
use crate::poll;
use crate::status::BindingStatus;
use crate::status::Event;
use crate::status::EventKind;
use crate::status::Events;
use crate::status::State;

/// Tells what happens to one binding, and what has happened to it since it was made.
///
/// Needs no rights. The binding has to be seen from the network namespace of the thread that makes the watch. Of the kinds
/// of events it tells, each with how the binding was found then:
///
/// - [`Exhausted`](EventKind::Exhausted) and [`Available`](EventKind::Available), one after the other, if the provider
///   counts. Several exhaustions that were over before the watch was asked are one here; how many there were is in
///   [`Counters::exhausted`](crate::status::Counters::exhausted);
/// - [`Revoked`](EventKind::Revoked) or [`Unbound`](EventKind::Unbound), whichever came first, once. Nothing is told after it
///   but that it is deleted. To the owner of a binding that is unbound it says that the device is gone;
/// - [`Deleted`](EventKind::Deleted), at last, as it was found before. Then it is gone, or no longer seen from here, since
///   its device moved to another network namespace. Of such a move the kernel tells nothing: it is noticed with the next
///   event that was on its way.
///
/// To be waited for with others, it can be polled for being readable, by `poll()`, `epoll`, or a request of an io_uring:
/// [`try_next`](Self::try_next) until there is nothing, before the first time too, and then each time that it is, or has
/// an error (`POLLERR`, which is told unasked): that is how it is told that there was no room for an event.
///
/// A watch does not keep a binding, and outlives it.
#[derive(Debug)]
pub struct Watch {
    id: u32,
    events: Events,
    netdev: Netdev,
    told: Told,
    /// Something may have happened since the binding was looked at.
    is_stale: bool,
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Watch {
    /// Watches the binding of this number, for receiving or sending: that of [`Binding::id`] or
    /// [`TxBinding::id`](crate::TxBinding::id).
    ///
    /// # Errors
    ///
    /// Those of [`Events::open`]: [`Error::NoGroup`] on a kernel that tells of no bindings; those of
    /// [`Netdev::binding`]: `ENOENT` if there is none of this number in this network namespace.
    pub fn of(id: u32) -> Result<Self, Error> {
        // First, so that there is no time between that nobody tells of.
        let events = Events::open()?;
        let mut netdev = Netdev::open()?;
        let told = Told::nothing(netdev.binding(id)?);
        Ok(Self {
            id,
            events,
            netdev,
            told,
            is_stale: true,
        })
    }

    /// What happened, if something did. Does not wait.
    ///
    /// # Errors
    ///
    /// Those of [`Events::try_next`], but for [`Error::Lost`] and [`Error::Answer`], after which it asks, and of
    /// [`Netdev::binding`]; nothing is missed by them.
    /// [`Error::Io`] with `ENOENT` after [`Deleted`](EventKind::Deleted) was told.
    pub fn try_next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.told.news.pop_front() {
                return Ok(Some(event));
            }
            if self.told.is_deleted {
                return Err(io::Error::from_raw_os_error(libc::ENOENT).into());
            }
            self.take_events()?;
            if !self.is_stale {
                return Ok(None);
            }
            let (id, netdev) = (self.id, &mut self.netdev);
            self.told.look(|| match netdev.binding(id) {
                Err(err) if err.errno() == Some(libc::ENOENT) => Ok(None),
                status => status.map(Some),
            })?;
            self.is_stale = false;
        }
    }

    /// Takes all events there are, before anybody looks: as long as there is something to be read, the kernel does not
    /// tell again that there was no room for more.
    fn take_events(&mut self) -> Result<(), Error> {
        while let Some(is_of_it) = may_be_of(self.id, self.events.try_next())? {
            self.is_stale |= is_of_it;
        }
        Ok(())
    }

    /// What happens next, or `None` if nothing does in that time.
    ///
    /// # Errors
    ///
    /// As of [`try_next`](Self::try_next), and those of `poll()`.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Event>, Error> {
        poll::next(self, timeout, Self::try_next)
    }
}

/// Whether an event is one of this binding, or may be: what was lost, or cannot be read, is gone. `None` if there is none.
fn may_be_of(id: u32, event: Result<Option<Event>, Error>) -> Result<Option<bool>, Error> {
    match event {
        Ok(event) => Ok(event.map(|event| event.binding.id == id)),
        Err(Error::Lost | Error::Answer(_)) => Ok(Some(true)),
        Err(err) => Err(err),
    }
}

impl Binding {
    /// What happens to the binding next, or `None` if nothing does in that time: as a [`Watch`] tells it, with what has
    /// happened since it was bound, at first.
    ///
    /// The first call makes the watch, in the network namespace of the calling thread, from which the binding has to be
    /// seen. The kernel's socket for it is not the one that [`as_fd`](AsFd::as_fd) gives: who wants to poll, or to wait in
    /// another thread, has a [`Watch::of`] this binding's [`id`](Self::id).
    ///
    /// # Errors
    ///
    /// Those of [`Watch::of`] and [`Watch::next_timeout`].
    pub fn wait_event(&mut self, timeout: Duration) -> Result<Option<Event>, Error> {
        let id = self.id();
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => none.insert(Box::new(Watch::of(id)?)),
        };
        watch.next_timeout(timeout)
    }
}

/// What was told of a binding, and what is to be.
#[derive(Debug)]
struct Told {
    news: VecDeque<Event>,
    /// How it was last.
    last: BindingStatus,
    /// How many exhaustions.
    exhausted: u64,
    /// Of the last one, that it is over has not been told.
    is_exhausted: bool,
    /// It is off its queues.
    is_over: bool,
    is_deleted: bool,
}

impl Told {
    /// Nothing, of a binding that was found as this.
    fn nothing(last: BindingStatus) -> Self {
        Self {
            news: VecDeque::new(),
            last,
            exhausted: 0,
            is_exhausted: false,
            is_over: false,
            is_deleted: false,
        }
    }

    fn tell(&mut self, kind: EventKind, binding: &BindingStatus) {
        let binding = binding.clone();
        self.news.push_back(Event { kind, binding });
    }

    /// Asks how the binding is, once or twice, and tells the difference. `None` is a binding that is gone.
    fn look(
        &mut self,
        mut ask: impl FnMut() -> Result<Option<BindingStatus>, Error>,
    ) -> Result<(), Error> {
        let Some(status) = ask()? else {
            self.delete();
            return Ok(());
        };
        match status.state {
            // With queues, it is about to be taken off them, which is an event.
            State::Revoked if status.queues.is_empty() => self.end(EventKind::Revoked, &status),
            State::Revoked => (),
            State::Unbound => self.end(EventKind::Unbound, &status),
            State::Bound | State::Other(_) => return self.look_at_supply(status, ask),
        }
        self.last = status;
        Ok(())
    }

    fn delete(&mut self) {
        self.is_deleted = true;
        let last = self.last.clone();
        self.tell(EventKind::Deleted, &last);
    }

    fn end(&mut self, kind: EventKind, status: &BindingStatus) {
        if !mem::replace(&mut self.is_over, true) {
            self.tell(kind, status);
        }
    }

    fn look_at_supply(
        &mut self,
        status: BindingStatus,
        mut ask: impl FnMut() -> Result<Option<BindingStatus>, Error>,
    ) -> Result<(), Error> {
        let counters = status.counters;
        let exhausted = counters.exhausted.unwrap_or(0);
        let is_more = exhausted > self.exhausted;
        if !is_more && !self.is_exhausted {
            self.last = status;
            return Ok(());
        }

        // As long as there are none, the time grows for which there were none.
        let Some(later) = ask()? else {
            self.delete();
            return Ok(());
        };
        let is_over = later.counters.exhausted == counters.exhausted
            && later.counters.exhausted_time == counters.exhausted_time;
        if self.is_exhausted && (is_more || is_over) {
            self.tell(EventKind::Available, &later);
        }
        if is_more {
            self.tell(EventKind::Exhausted, &status);
            if is_over {
                self.tell(EventKind::Available, &later);
            }
        }
        self.exhausted = self.exhausted.max(exhausted);
        self.is_exhausted = !is_over;
        self.last = later;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netdev::dmabuf;
    use crate::netdev::dmabuf_stats;
    use crate::netdev::queue;
    use crate::netlink::Attrs;
    use EventKind::Available;
    use EventKind::Deleted;
    use EventKind::Exhausted;
    use EventKind::Revoked;
    use EventKind::Unbound;
    use proptest::prelude::*;

    const BOUND: u32 = 0;
    const UNBOUND: u32 = 1;
    const REVOKED: u32 = 2;

    /// What the kernel answers of a binding on these queues.
    fn answer(state: u32, queues: &[u32], exhausted: u32, nanoseconds: u64) -> BindingStatus {
        let stats = Attrs::new()
            .u32(dmabuf_stats::EXHAUSTED, exhausted)
            .bytes(dmabuf_stats::EXHAUSTED_TIME, &nanoseconds.to_ne_bytes());
        let attrs = Attrs::new()
            .u32(dmabuf::ID, 7)
            .u32(dmabuf::DIRECTION, queue::TYPE_RX)
            .string(dmabuf::PROVIDER, "builtin")
            .u32(dmabuf::STATE, state)
            .nested(dmabuf::STATS, &stats);
        let attrs = queues.iter().fold(attrs, |attrs, &id| {
            attrs.nested(dmabuf::QUEUES, &Attrs::new().u32(queue::ID, id))
        });
        BindingStatus::parse(attrs.as_bytes()).unwrap()
    }

    fn bound(exhausted: u32, nanoseconds: u64) -> BindingStatus {
        answer(BOUND, &[1], exhausted, nanoseconds)
    }

    fn nothing() -> Told {
        Told::nothing(bound(0, 0))
    }

    /// What a look tells that is answered by these, all of which it has to ask for.
    #[track_caller]
    fn look(told: &mut Told, answers: &[Option<BindingStatus>]) -> Vec<EventKind> {
        let mut answers = answers.iter();
        told.look(|| Ok(answers.next().expect("asked too often").clone()))
            .unwrap();
        assert_eq!(answers.len(), 0, "not asked for");
        told.news.drain(..).map(|event| event.kind).collect()
    }

    #[test]
    fn what_happened_before_is_told_first() {
        assert_eq!(look(&mut nothing(), &[Some(bound(0, 0))]), []);
        for (answers, kinds) in [
            (vec![Some(bound(1, 5)), Some(bound(1, 6))], vec![Exhausted]),
            (
                vec![Some(bound(3, 5)), Some(bound(3, 5))],
                vec![Exhausted, Available],
            ),
            (vec![Some(answer(REVOKED, &[], 3, 5))], vec![Revoked]),
            (vec![Some(answer(UNBOUND, &[], 0, 0))], vec![Unbound]),
            (vec![None], vec![Deleted]),
        ] {
            assert_eq!(look(&mut nothing(), &answers), kinds);
        }
    }

    #[test]
    fn each_is_told_once() {
        let mut told = nothing();
        let is = [Some(bound(1, 5)), Some(bound(1, 6))];
        assert_eq!(look(&mut told, &is), [Exhausted]);
        assert_eq!(look(&mut told, &is), []);
        let is_not = [Some(bound(1, 9)), Some(bound(1, 9))];
        assert_eq!(look(&mut told, &is_not), [Available]);
        assert_eq!(look(&mut told, &is_not[..1]), []);
        let revoked = [Some(answer(REVOKED, &[], 1, 9))];
        assert_eq!(look(&mut told, &revoked), [Revoked]);
        assert_eq!(look(&mut told, &revoked), []);
        assert_eq!(look(&mut told, &[None]), [Deleted]);
    }

    /// The exporter comes when the device is gone already, and the other way round.
    #[test]
    fn who_comes_second_is_not_told() {
        for (first, second, kind) in [(UNBOUND, REVOKED, Unbound), (REVOKED, UNBOUND, Revoked)] {
            let mut told = nothing();
            assert_eq!(look(&mut told, &[Some(answer(first, &[], 0, 0))]), [kind]);
            assert_eq!(look(&mut told, &[Some(answer(second, &[], 0, 0))]), []);
        }
    }

    /// To bind their queues anew would fail.
    #[test]
    fn what_is_on_its_queues_still_is_not_revoked_yet() {
        let mut told = nothing();
        let one = Some(answer(REVOKED, &[1], 1, 5));
        assert_eq!(look(&mut told, &[one]), []);
        let none = Some(answer(REVOKED, &[], 1, 5));
        assert_eq!(look(&mut told, &[none]), [Revoked]);
    }

    #[test]
    fn one_that_comes_while_the_last_one_is_not_over() {
        let mut told = nothing();
        let answers = [1, 2].map(|count| Some(bound(count, 5)));
        assert_eq!(look(&mut told, &answers), [Exhausted]);
        let answers = [5, 6].map(|time| Some(bound(2, time)));
        assert_eq!(look(&mut told, &answers), [Available, Exhausted]);
        let answers = [9, 9].map(|time| Some(bound(3, time)));
        assert_eq!(look(&mut told, &answers), [Available, Exhausted, Available]);
    }

    #[test]
    fn what_is_not_counted_is_not_told() {
        let mut status = bound(0, 0);
        status.counters = crate::status::Counters::default();
        assert_eq!(look(&mut nothing(), &[Some(status)]), []);
    }

    #[test]
    fn one_that_goes_between_two_questions() {
        let mut told = nothing();
        assert_eq!(look(&mut told, &[Some(bound(1, 5)), None]), [Deleted]);
        assert!(told.is_deleted);
    }

    #[test]
    fn a_question_that_fails_changes_nothing() {
        let mut told = nothing();
        for good in [0, 1] {
            let mut left = good;
            let failed = told.look(|| {
                if left == 0 {
                    return Err(Error::Lost);
                }
                left -= 1;
                Ok(Some(bound(1, 5)))
            });
            assert!(failed.is_err());
            assert!(told.news.is_empty());
        }
        let answers = [5, 6].map(|time| Some(bound(1, time)));
        assert_eq!(look(&mut told, &answers), [Exhausted]);
    }

    #[test]
    fn an_event_has_the_binding_as_it_was_found() {
        let mut told = nothing();
        look(&mut told, &[Some(bound(0, 0))]);
        told.look(|| Ok(Some(answer(REVOKED, &[], 4, 9)))).unwrap();
        let event = told.news.pop_front().unwrap();
        assert_eq!(event.binding, answer(REVOKED, &[], 4, 9));
        told.look(|| Ok(None)).unwrap();
        let event = told.news.pop_front().unwrap();
        assert_eq!(event.binding, answer(REVOKED, &[], 4, 9));
    }

    #[test]
    fn events_that_are_a_reason_to_ask() {
        let event = |id| {
            let mut binding = bound(0, 0);
            binding.id = id;
            let kind = Available;
            Ok(Some(Event { kind, binding }))
        };
        let of_seven = |event| may_be_of(7, event).ok();
        assert_eq!(of_seven(event(7)), Some(Some(true)));
        assert_eq!(of_seven(event(8)), Some(Some(false)));
        assert_eq!(of_seven(Ok(None)), Some(None));
        assert_eq!(of_seven(Err(Error::Lost)), Some(Some(true)));
        let malformed = Err(Error::Answer("of a later kernel"));
        assert_eq!(of_seven(malformed), Some(Some(true)));
        let failed = io::Error::from_raw_os_error(libc::ENOMEM);
        assert_eq!(of_seven(Err(failed.into())), None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn a_kernel_that_tells_nothing() {
        match Watch::of(u32::MAX) {
            Err(Error::NoGroup(group)) => assert_eq!(group, "dmabuf"),
            Err(Error::NoFamily(family)) => assert_eq!(family, "netdev"),
            // One with the series.
            Err(err) if err.errno() == Some(libc::ENOENT) => (),
            Err(err) => eprintln!("SKIP: no generic netlink here: {err}"),
            Ok(watch) => panic!("there is none: {watch:?}"),
        }
    }

    /// A binding, in which something happens between two answers.
    #[derive(Debug, Default)]
    struct Model {
        count: u32,
        is_exhausted: bool,
        time: u64,
    }

    impl Model {
        fn answer(&mut self, changes: usize) -> BindingStatus {
            for _ in 0..changes {
                self.is_exhausted ^= true;
                self.count += u32::from(self.is_exhausted);
                self.time += 1;
            }
            self.time += u64::from(self.is_exhausted);
            bound(self.count, self.time)
        }
    }

    proptest! {
        /// Whenever somebody looks, what was told in the end is how it is.
        #[test]
        fn what_was_told_is_so(changes in proptest::collection::vec(0..4usize, 0..40)) {
            let (mut model, mut told) = (Model::default(), nothing());
            let mut changes = changes.into_iter();
            while changes.len() > 0 {
                told.look(|| Ok(Some(model.answer(changes.next().unwrap_or(0))))).unwrap();
            }
            // What happened in the last one is an event, after which it is looked at again.
            told.look(|| Ok(Some(model.answer(0)))).unwrap();

            let kinds: Vec<_> = told.news.iter().map(|event| event.kind).collect();
            let first = kinds.iter().step_by(2).all(|&kind| kind == Exhausted);
            let second = kinds.iter().skip(1).step_by(2).all(|&kind| kind == Available);
            prop_assert!(first && second, "{:?}", kinds);
            prop_assert_eq!(kinds.last() == Some(&Exhausted), model.is_exhausted);
            let exhausted = kinds.len().div_ceil(2);
            prop_assert!(exhausted <= model.count as usize);
            prop_assert_eq!(exhausted > 0, model.count > 0);
        }
    }
}
