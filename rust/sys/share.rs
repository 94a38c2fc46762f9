// SPDX-License-Identifier: GPL-2.0

//! Which of the queues of a binding may have how many of its net_iovs.
//!
//! NICs fill rings when a queue starts, and page pools keep what comes back. So a queue that is first would
//! have all of a small binding, and keep it. Each has a fair share instead:
//!
//! - It is kept for a queue that is yet to begin to fill its ring, or that got none when it asked. It is not for one whose
//!   page pools are gone: that may have left the binding. Drivers make all page pools before they fill rings.
//! - Half of it is always kept. What is left of it others may have meanwhile, and give back as soon as they can:
//!   their page pools keep nothing beyond their own share.
//!
//! A binding with one queue has no accounts, and its queue has all.

#![deny(unsafe_code)]

use core::ops::DerefMut;

/// A queue is always kept its share, divided by this.
const KEPT: usize = 2;

/// What a queue has, whichever of its page pools took it. By default a queue that is yet to come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    taken: usize,
    /// Its page pools, old ones, too.
    pools: usize,
    /// It has had something since it was started; or nobody polls it, so that it does not ask for something.
    is_filled: bool,
    /// It had less than its share, asked, and got none; or it got none, and there is not one each.
    is_starving: bool,
    /// It was told since that there are some.
    is_woken: bool,
    /// It had page pools, and has none now: nothing is kept for it until it has one again.
    is_gone: bool,
    /// What is kept for it, beyond what it has.
    need: usize,
    /// What is kept for it in any case, beyond what it has.
    least_need: usize,
}

impl Account {
    fn is_waiting(&self) -> bool {
        self.is_starving && !self.is_woken
    }
}

/// The accounts of all queues of a binding, over preallocated storage: none, or two and more.
///
/// # Invariants
///
/// `needed` and `least_needed` are the sums of `need` and `least_need` of the accounts, in which these are what
/// [`need`](Self::need) and [`least_need`](Self::least_need) say. `starving` and `waiting` count those which are.
pub(crate) struct Shares<A> {
    accounts: A,
    /// Of each queue.
    share: usize,
    /// What is always kept of it.
    least: usize,
    /// There are not enough net_iovs for one each.
    is_crowded: bool,
    needed: usize,
    least_needed: usize,
    starving: usize,
    waiting: usize,
    /// Who is woken next if he waits.
    next: usize,
}

impl<A: DerefMut<Target = [Account]>> Shares<A> {
    /// Shares of `capacity` net_iovs, of which nobody has any. What is in `accounts` does not matter.
    pub(crate) fn new(accounts: A, capacity: usize) -> Self {
        let queues = accounts.len().max(1);
        let share = (capacity / queues).max(1);
        let mut this = Self {
            accounts,
            share,
            least: share.div_ceil(KEPT),
            is_crowded: capacity < queues,
            needed: 0,
            least_needed: 0,
            starving: 0,
            waiting: 0,
            next: 0,
        };

        // INVARIANT: Nobody has any. The sums are over all.
        for account in this.accounts.iter_mut() {
            *account = Account {
                need: this.share,
                least_need: this.least,
                ..Account::default()
            };
        }
        this.needed = this.accounts.len() * this.share;
        this.least_needed = this.accounts.len() * this.least;
        this
    }

    /// What has to be kept for a queue, beyond what it has.
    fn need(&self, account: &Account) -> usize {
        let kept = if account.is_gone {
            0
        } else if account.is_starving || !account.is_filled {
            self.share
        } else {
            self.least
        };
        kept.saturating_sub(account.taken)
    }

    /// What has to be kept for a queue in any case, beyond what it has.
    fn least_need(&self, account: &Account) -> usize {
        let kept = if account.is_gone { 0 } else { self.least };
        kept.saturating_sub(account.taken)
    }

    fn change(&mut self, queue: Option<usize>, change: impl FnOnce(&mut Account)) {
        let Some(&before) = queue.and_then(|queue| self.accounts.get(queue)) else {
            return;
        };
        let mut after = before;
        change(&mut after);
        after.need = self.need(&after);
        after.least_need = self.least_need(&after);

        // INVARIANT: That of this account is exchanged.
        self.needed = self.needed - before.need + after.need;
        self.least_needed = self.least_needed - before.least_need + after.least_need;
        self.starving =
            self.starving - usize::from(before.is_starving) + usize::from(after.is_starving);
        self.waiting =
            self.waiting - usize::from(before.is_waiting()) + usize::from(after.is_waiting());
        if let Some(account) = queue.and_then(|queue| self.accounts.get_mut(queue)) {
            *account = after;
        }
    }

    /// How many of `free` net_iovs a queue may have now. One without an account may have what nobody needs.
    #[inline]
    pub(crate) fn room(&self, queue: Option<usize>, free: usize) -> usize {
        let Some(account) = queue.and_then(|queue| self.accounts.get(queue)) else {
            return free.saturating_sub(self.needed);
        };
        let others = self.needed - account.need;
        let others_least = self.least_needed - account.least_need;
        // If there is not one each, they take turns.
        let first = match self.is_crowded && !account.is_starving {
            true => self.starving,
            false => 0,
        };
        let up_to = |limit: usize, kept: usize| {
            limit
                .saturating_sub(account.taken)
                .min(free.saturating_sub(kept))
        };

        up_to(self.least, first)
            .max(up_to(self.share, others_least))
            .max(free.saturating_sub(others))
    }

    /// How many of `free` net_iovs a queue may have now and keep for a while. What it would borrow counts as long as no
    /// other queue asks in vain.
    pub(crate) fn lasting_room(&self, queue: Option<usize>, free: usize) -> usize {
        let room = self.room(queue, free);
        let account = queue.and_then(|queue| self.accounts.get(queue));
        let starving = account.is_some_and(|account| account.is_starving);
        if self.starving == usize::from(starving) {
            return room;
        }
        let left = account.map_or(free, |account| self.share.saturating_sub(account.taken));

        room.min(left)
    }

    /// A queue took so many.
    #[inline]
    pub(crate) fn took(&mut self, queue: usize, count: usize) {
        self.change(Some(queue), |account| {
            account.taken += count;
            account.is_filled = true;
            account.is_starving = false;
        });
    }

    /// A queue got none. If there is not one each, it wants another one as soon as it has given its own back.
    pub(crate) fn refused(&mut self, queue: Option<usize>) {
        let (share, is_crowded) = (self.share, self.is_crowded);

        self.change(queue, |account| {
            account.is_starving = account.taken < share || is_crowded;
            account.is_woken = false;
        });
    }

    /// A queue gave so many back. If nothing is left, it was stopped, and has to be filled when it is started
    /// again.
    #[inline]
    pub(crate) fn gave_back(&mut self, queue: Option<usize>, count: usize) {
        if queue.is_none() {
            return;
        }
        self.change(queue, |account| {
            account.taken = account.taken.saturating_sub(count);
            account.is_filled &= account.taken != 0;
        });
    }

    /// A page pool was made for a queue, which is about to be started, and has to be filled then. If it cannot be, it
    /// goes on with the one that it has, which may wait, see [`stops`](Self::stops).
    pub(crate) fn starts(&mut self, queue: Option<usize>) {
        self.change(queue, |account| {
            account.pools += 1;
            account.is_filled = false;
            account.is_gone = false;
        });
    }

    /// A page pool of a queue is gone. Another one may wait, which asked in vain when it asked last, whatever the one
    /// that is gone had meanwhile: it is what the queue goes on with. If it was the last one, the queue may have left
    /// the binding.
    pub(crate) fn stops(&mut self, queue: usize, others_wait: bool) {
        let (share, is_crowded) = (self.share, self.is_crowded);

        self.change(Some(queue), |account| {
            let starves = account.taken < share || is_crowded;

            account.pools = account.pools.saturating_sub(1);
            account.is_gone = account.pools == 0;
            // Who was polled meanwhile may have been the one that is gone: they have a NAPI in common.
            account.is_woken = false;
            account.is_starving = others_wait && starves && !account.is_gone;
        });
    }

    /// Whether the page pools of a queue are to keep nothing of what comes back.
    pub(crate) fn gives_back(&self, queue: usize) -> bool {
        self.is_crowded
            || self
                .accounts
                .get(queue)
                .is_some_and(|account| account.is_starving || account.taken > self.share)
    }

    /// A queue was woken, but there is nobody to poll it. Only what always is is kept for it until it asks again.
    pub(crate) fn gives_up(&mut self, queue: usize) {
        self.change(Some(queue), |account| {
            account.is_filled = true;
            account.is_starving = false;
        });
    }

    /// How many net_iovs are kept for those who need them.
    pub(crate) fn needed(&self) -> usize {
        self.needed
    }

    /// Whether there are queues that had less than their share, asked, got none, and were not woken since.
    #[inline]
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting != 0
    }

    /// Next of the queues that asked in vain, and would get some of `free` net_iovs now. It is woken by the caller:
    /// that is once, until it asks again. They take turns, and no more are woken than there are net_iovs.
    pub(crate) fn wake(&mut self, free: usize) -> Option<usize> {
        if free <= self.starving - self.waiting {
            return None;
        }
        let queues = self.accounts.len();
        let queue = (self.next..queues).chain(0..self.next).find(|&queue| {
            let account = self.accounts.get(queue);
            account.is_some_and(Account::is_waiting) && self.room(Some(queue), free) != 0
        })?;

        self.next = queue + 1;
        self.change(Some(queue), |account| account.is_woken = true);
        Some(queue)
    }
}

/// Which accounts to look at for that of queue `queue` of the device, of `accounts`, one after the other.
pub(crate) fn probe(queue: u32, accounts: usize) -> impl Iterator<Item = usize> {
    let first = (queue as usize).checked_rem(accounts).unwrap_or(0);

    (first..accounts).chain(0..first)
}
