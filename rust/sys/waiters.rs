// SPDX-License-Identifier: GPL-2.0

//! Who waits for net_iovs of a binding that several queues share.
//!
//! A queue whose ring is empty gets no packet to be polled for. So it is remembered which of its page pools asked
//! in vain, and once there is something for the queue, it is polled.

#![deny(unsafe_code)]

use core::ops::DerefMut;

use super::{
    free_list::{
        Batch,
        FreeIov,
        FreeList, //
    },
    share::Account, //
};

/// A page pool that asks. Two are equal if they are the same page pool.
pub(crate) trait Asker: PartialEq {
    /// Has its queue polled, which is when drivers fill rings. Returns whether there is somebody to do that.
    fn poll(&self) -> bool;
}

/// The page pools of a queue that asked in vain when they asked last, and are still there: the latest one first.
///
/// There are no more than two that may ask again: that which the queue goes by, and while it is started anew that
/// which it is to go by then. Any others are there until all comes back that they gave out, and nobody polls them.
pub(crate) struct Waiters<P>([Option<P>; 2]);

impl<P> Waiters<P> {
    /// Nobody.
    pub(crate) const fn new() -> Self {
        Self([None, None])
    }
}

impl<P: Asker> Waiters<P> {
    #[cold]
    fn add(&mut self, pool: P) {
        if self.0.iter().flatten().any(|known| *known == pool) {
            return;
        }
        if self.0.iter().all(Option::is_some) {
            // Those that nobody polls make room.
            self.poll();
        }

        let [latest, before] = &mut self.0;
        if latest.is_some() {
            *before = latest.take();
        }
        *latest = Some(pool);
    }

    /// Returns whether others wait.
    #[inline]
    fn remove(&mut self, is_it: impl Fn(&P) -> bool) -> bool {
        for known in &mut self.0 {
            known.take_if(|known| is_it(known));
        }
        self.0.iter().any(Option::is_some)
    }

    /// Has all of them polled. Those whom nobody polls wait no more. Returns whether there is one left.
    fn poll(&mut self) -> bool {
        self.remove(|known| !known.poll())
    }
}

/// What is free of a binding, and who waits for it: of each queue that has an account its page pools.
pub(crate) struct Free<S, A, W> {
    list: FreeList<S, A>,
    waiters: W,
}

impl<S, A, W, P> Free<S, A, W>
where
    S: DerefMut<Target = [u32]>,
    A: DerefMut<Target = [Account]>,
    W: DerefMut<Target = [Waiters<P>]>,
    P: Asker,
{
    /// What `list` has, with `waiters` of nobody for each account.
    pub(crate) fn new(list: FreeList<S, A>, waiters: W) -> Self {
        Self { list, waiters }
    }

    /// What is free, and who is to have how much of it.
    pub(crate) fn list(&self) -> &FreeList<S, A> {
        &self.list
    }

    /// Moves net_iovs to `batch`, as [`FreeList::take`] does, for `pool`. If it gets none, it waits.
    ///
    /// Returns whether somebody may want to know of it.
    #[inline]
    #[must_use = "somebody may want to know"]
    pub(crate) fn take(
        &mut self,
        batch: &mut Batch,
        most: usize,
        queue: Option<usize>,
        pool: P,
        now: impl FnOnce() -> u64,
    ) -> bool {
        let changed = self.list.take(batch, most, queue, now);

        if let Some(waiters) = queue.and_then(|queue| self.waiters.get_mut(queue)) {
            if batch.is_empty() {
                waiters.add(pool);
            } else {
                waiters.remove(|known| *known == pool);
            }
        }
        changed
    }

    /// Takes net_iovs back, as [`FreeList::put`] does.
    #[inline]
    #[must_use = "somebody may want to know"]
    pub(crate) fn put(
        &mut self,
        ids: impl IntoIterator<Item = FreeIov>,
        queue: Option<usize>,
        now: impl FnOnce() -> u64,
    ) -> bool {
        self.list.put(ids, queue, now)
    }

    /// A page pool was made for a queue, which is about to be started.
    pub(crate) fn starts(&mut self, queue: Option<usize>) {
        self.list.starts(queue);
    }

    /// A page pool of a queue is gone. `is_it` tells it from others.
    ///
    /// Returns whether there are enough again, after there was none.
    #[must_use = "somebody may want to know"]
    pub(crate) fn stops(
        &mut self,
        queue: usize,
        is_it: impl Fn(&P) -> bool,
        now: impl FnOnce() -> u64,
    ) -> bool {
        let waiters = self.waiters.get_mut(queue);
        // It may be the one that the queue is to go by, which goes on with the other one then.
        let others_wait = waiters.is_some_and(|waiters| waiters.remove(is_it));

        self.list.stops(queue, others_wait, now)
    }

    /// Whether somebody waits who was not told that there are some.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.list.has_waiting()
    }

    /// Has those look who asked in vain, and would get something now. A queue that nobody polls is given up:
    /// `given_up` is told of it, and whether its page pools are to keep nothing of what comes back.
    ///
    /// Returns whether there are enough again, after there was none, as nothing is kept for such a queue.
    #[cold]
    #[must_use = "somebody may want to know"]
    pub(crate) fn wake(
        &mut self,
        now: impl Fn() -> u64,
        mut given_up: impl FnMut(usize, bool),
    ) -> bool {
        let mut changed = false;

        while let Some(queue) = self.list.wake() {
            let waiters = self.waiters.get_mut(queue);
            if !waiters.is_some_and(Waiters::poll) {
                changed |= self.list.gives_up(queue, &now);
                given_up(queue, self.list.gives_back(queue));
            }
        }
        changed
    }
}
