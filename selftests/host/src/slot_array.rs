// SPDX-License-Identifier: GPL-2.0

//! `struct net_devmem_tokens`, and what the core does with it in C (`net/core/devmem_core.c`).

use crate::sys::token::{Held, Slots, BASE};

const BITS: usize = usize::BITS as usize;

/// `NET_DEVMEM_RUN`
const RUN: usize = 2;

/// Slots to begin with.
const MIN: usize = 40;

/// The array, without the lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotArray {
    pub(crate) used: u32,
    pub(crate) hint: u32,
    pub(crate) groups: Vec<usize>,
    pub(crate) free: Vec<usize>,
    pub(crate) slots: Vec<usize>,
    pub(crate) more: Vec<u8>,
}

/// An array that is about to be replaced by a larger one, without the lock.
pub(crate) struct Growing<'a> {
    old: &'a mut SlotArray,
    next: &'a mut SlotArray,
    copied: usize,
}

impl Growing<'_> {
    /// `net_devmem_take_token()`
    pub(crate) fn take_in_c(&mut self, token: u32) -> Option<Held> {
        let held = self.old.take_in_c(token);
        let slot = token.wrapping_sub(BASE) as usize;

        if held.is_some() && slot < self.copied {
            self.next.free_slot(slot);
        }
        held
    }
}

impl SlotArray {
    /// One with `size` free slots.
    pub(crate) fn of_size(size: usize) -> Self {
        Self::default().grown_to(size)
    }

    pub(crate) fn locked(&mut self) -> Slots<'_> {
        Slots {
            used: &mut self.used,
            hint: &mut self.hint,
            groups: &mut self.groups,
            free: &mut self.free,
            slots: &mut self.slots,
            more: &mut self.more,
        }
    }

    /// `net_devmem_free_slot()`
    fn free_slot(&mut self, slot: usize) {
        let word = slot / BITS;
        let group = word / BITS;

        self.slots[slot] = 0;
        self.free[word] |= 1 << (slot % BITS);
        self.groups[group] |= 1 << (word % BITS);
        self.hint = self.hint.min(group as u32);
    }

    /// `net_devmem_grow_tokens()`
    pub(crate) fn grow(&mut self) {
        *self = self.grown_to(MIN.max(2 * self.slots.len()));
    }

    /// The same, to any size.
    pub(crate) fn grown_to(&self, size: usize) -> Self {
        let mut new = self.larger(size);

        new.copy(self, 0, self.slots.len());
        new.used = self.used;
        new
    }

    /// An array of `size` slots, of which those are free that this one does not have.
    fn larger(&self, size: usize) -> Self {
        let words = size.div_ceil(BITS);
        let mut new = Self {
            used: 0,
            hint: 0,
            groups: vec![0; words.div_ceil(BITS)],
            free: vec![0; words],
            slots: vec![0; size],
            more: vec![0; size],
        };

        for slot in self.slots.len()..size {
            new.free_slot(slot);
        }
        new
    }

    /// `net_devmem_copy_tokens()`
    fn copy(&mut self, old: &Self, from: usize, to: usize) {
        for slot in from..to {
            self.slots[slot] = old.slots[slot];
            self.more[slot] = old.more[slot];
            if self.slots[slot] == 0 {
                self.free_slot(slot);
            }
        }
    }

    /// `net_devmem_grow_tokens()`, `batch` slots at a time, with what others do in between.
    pub(crate) fn grow_in_batches(
        &mut self,
        batch: usize,
        mut others: impl FnMut(&mut Growing<'_>),
    ) {
        let size = self.slots.len();
        let mut next = self.larger(MIN.max(2 * size));
        let mut growing = Growing {
            old: self,
            next: &mut next,
            copied: 0,
        };

        while growing.copied < size {
            let to = size.min(growing.copied + batch);
            growing.next.copy(growing.old, growing.copied, to);
            growing.copied = to;
            others(&mut growing);
        }
        next.used = self.used;
        *self = next;
    }

    /// `net_devmem_take_token()`
    pub(crate) fn take_in_c(&mut self, token: u32) -> Option<Held> {
        let slot = token.wrapping_sub(BASE) as usize;

        if token < BASE || slot >= self.slots.len() {
            return None;
        }
        let (netmem, count) = (self.slots[slot] & !RUN, self.count(slot));
        if netmem == 0 {
            return None;
        }
        self.free_slot(slot);
        self.used -= count;
        Some(Held { netmem, count })
    }

    /// `net_devmem_slot_count()`
    fn count(&self, slot: usize) -> u32 {
        match self.slots[slot] {
            0 => 0,
            netmem if netmem & RUN == 0 => 1,
            _ => u32::from(self.more[slot]) + 1,
        }
    }

    /// The invariants of [`Slots`].
    pub(crate) fn check(&self) {
        let mut zeroes: Vec<bool> = self.slots.iter().map(|&slot| slot == 0).collect();
        let used: u32 = (0..self.slots.len()).map(|slot| self.count(slot)).sum();

        assert_eq!(self.used, used);
        zeroes.resize(self.free.len() * BITS, false);
        assert_eq!(self.free, bits_of(zeroes), "slots that are 0");

        let mut words: Vec<bool> = self.free.iter().map(|&word| word != 0).collect();
        words.resize(self.groups.len() * BITS, false);
        assert_eq!(self.groups, bits_of(words), "words that are not 0");

        let passed = self.groups.iter().take(self.hint as usize);
        assert!(passed.copied().all(|group| group == 0), "the hint is past");
    }
}

/// Words of bits.
fn bits_of(bits: Vec<bool>) -> Vec<usize> {
    bits.chunks(BITS)
        .map(|chunk| {
            chunk
                .iter()
                .rev()
                .fold(0, |word, &bit| word << 1 | usize::from(bit))
        })
        .collect()
}
