// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What has landed of a region, and what it takes to have all of it in place.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::pieces::Bytes;
use super::pieces::LONG;
use super::pieces::Piece;
use super::pieces::Run;
use super::pieces::Spot;
use super::pieces::part;
use super::pieces::save;
use super::pieces::shift;
use crate::place::STEP;

/// What a NIC is given at once, at least.
const BUFFER: u64 = 4096;

/// What came of a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Where in the target the first byte of the region is.
    pub base: u64,
    /// Bytes that had landed where they belong.
    pub in_place: u64,
    /// Bytes that the CPU has moved there.
    pub moved: u64,
}

impl Report {
    /// Which part of all bytes had landed in place: 0 of none.
    #[expect(clippy::cast_precision_loss, reason = "it is about parts of a whole")]
    pub fn fraction(&self) -> f64 {
        self.in_place as f64 / (self.in_place + self.moved).max(1) as f64
    }
}

/// What has landed of a region, and how far from its place. `K` is what keeps it from being overwritten.
#[derive(Debug)]
pub struct Order<K> {
    /// The size of the target, and how much of it the region may take.
    size: u64,
    region: u64,
    /// What the region's first byte has to be aligned to.
    align: u64,
    /// By offset in the region. None overlaps another.
    pieces: BTreeMap<u64, Piece<K>>,
    /// Buffers in which there are pieces, and how many may be kept. More are if pieces were cut: whoever sends bytes again
    /// and again can have the NIC run dry, on a queue that is its own.
    buffers: u64,
    limit: u64,
    /// How many pieces there may be.
    crowd: usize,
}

impl<K> Order<K> {
    /// Of a target of this size, nothing of which has landed yet. The region begins at a multiple of `align`.
    pub fn new(size: u64, region: u64, align: u64) -> Self {
        Self {
            size,
            region: region.min(size),
            align: align.max(1),
            pieces: BTreeMap::new(),
            buffers: 0,
            limit: size / BUFFER / 2,
            crowd: many(size),
        }
    }

    /// Bytes of the region have landed in the target. Says whether they are of use: not if they are not all of the region,
    /// or one more of very many pieces.
    pub fn landed(&mut self, offset: u64, len: u64, at: u64, keep: K) -> bool {
        self.buffers += buffers(at, len);
        let keep = Arc::new(keep);
        self.insert(offset, len, Spot::Landed { at, keep })
    }

    /// Bytes of the region have landed elsewhere. Says whether they are of use.
    pub fn saved(&mut self, offset: u64, bytes: Vec<u8>) -> bool {
        let len = bytes.len() as u64;
        let bytes = Arc::new(bytes);
        self.insert(offset, len, Spot::Saved { bytes, from: 0 })
    }

    /// The later bytes are those that count.
    fn insert(&mut self, offset: u64, len: u64, spot: Spot<K>) -> bool {
        let end = offset.saturating_add(len);
        if len == 0 || end > self.region || self.pieces.len() >= many(self.size).saturating_mul(4) {
            return false;
        }
        let before = self.pieces.range(..offset).next_back().map(|(&at, _)| at);
        let over: Vec<u64> = before
            .into_iter()
            .chain(self.pieces.range(offset..end).map(|(&at, _)| at))
            .collect();
        for at in over {
            let Some(piece) = self.pieces.remove(&at) else {
                continue;
            };
            let piece_end = at + piece.len;
            if piece_end > end {
                let skipped = end.max(at) - at;
                let rest = Piece {
                    len: piece.len - skipped,
                    spot: piece.spot.skip(skipped),
                };
                self.pieces.insert(at + skipped, rest);
            }
            if at < offset {
                let len = piece.len.min(offset - at);
                let spot = piece.spot;
                self.pieces.insert(at, Piece { len, spot });
            }
        }
        self.pieces.insert(offset, Piece { len, spot });
        true
    }

    /// Where the region begins so that most of its bytes are in place.
    pub fn base(&self) -> u64 {
        let mut weights = BTreeMap::<u64, u64>::new();
        for (offset, piece) in &self.pieces {
            let Spot::Landed { at, .. } = piece.spot else {
                continue;
            };
            let base = at.checked_sub(*offset);
            let fits = |base: &u64| base % self.align == 0 && *base <= self.size - self.region;
            if let Some(base) = base.filter(fits) {
                *weights.entry(base).or_default() += piece.len;
            }
        }
        let best = weights
            .iter()
            .max_by_key(|&(base, weight)| (*weight, u64::MAX - base));
        best.map_or(0, |(&base, _)| base)
    }

    /// Whether the NIC may soon have no buffers any more, or there are many pieces, unless what is not in place is
    /// [saved](Self::save).
    pub fn is_full(&self) -> bool {
        self.buffers > self.limit || self.pieces.len() > self.crowd
    }

    /// Saves what is not in place as far as is known now, so that the NIC has its buffers again. Says how many bytes that
    /// were.
    ///
    /// # Errors
    ///
    /// Those of [`Bytes::read`]. What was not saved is there.
    pub fn save(&mut self, memory: &impl Bytes) -> io::Result<u64> {
        let base = self.base();
        let (mut saved, mut result) = (0, Ok(()));
        let mut run = Run::default();
        self.buffers = 0;
        for (offset, piece) in std::mem::take(&mut self.pieces) {
            let at = match piece.spot {
                Spot::Landed { at, .. } => Some(at),
                Spot::Saved { .. } => None,
            };
            let stays = at == Some(base + offset) || (at.is_none() && piece.len >= LONG);
            if !stays && result.is_ok() {
                if !run.takes(offset, piece.len) {
                    self.keep(std::mem::take(&mut run));
                }
                result = run.add(offset, &piece, memory);
                if result.is_ok() {
                    saved += at.map_or(0, |_| piece.len);
                    continue;
                }
            }
            if let Some(at) = at {
                self.buffers += buffers(at, piece.len);
            }
            self.pieces.insert(offset, piece);
        }
        self.keep(run);
        // Not again for each that comes.
        let all = self.size / BUFFER;
        self.limit = self.limit.max(self.buffers + all / 16);
        self.crowd = self.crowd.max(self.pieces.len() + many(self.size) / 16);
        result.map(|()| saved)
    }

    fn keep(&mut self, run: Run) {
        let len = run.bytes.len() as u64;
        if len > 0 {
            let bytes = Arc::new(run.bytes);
            let spot = Spot::Saved { bytes, from: 0 };
            self.pieces.insert(run.offset, Piece { len, spot });
        }
    }

    /// Puts in place what is not. Nobody else may write to the target any more.
    ///
    /// # Errors
    ///
    /// Those of [`Bytes::read`] and [`Bytes::write`]. What is in the region then is not specified.
    pub fn repair(mut self, memory: &mut impl Bytes) -> io::Result<Report> {
        let mut report = Report {
            base: self.base(),
            ..Report::default()
        };
        // Those that have landed before their place could be overwritten before they are moved. There are few of them.
        for (offset, piece) in &mut self.pieces {
            match piece.spot {
                Spot::Landed { at, .. } if at < report.base + offset => {
                    piece.spot = save(memory, at, piece.len)?;
                }
                _ => (),
            }
        }
        // The others come after all places to which something is moved before them.
        let mut scratch = vec![0; STEP];
        for (offset, piece) in &self.pieces {
            let to = report.base + offset;
            match piece.spot {
                Spot::Landed { at, .. } if at == to => report.in_place += piece.len,
                Spot::Landed { at, .. } => {
                    report.moved += piece.len;
                    shift(memory, at, to, piece.len, &mut scratch)?;
                }
                Spot::Saved { .. } => (),
            }
        }
        for (offset, piece) in &self.pieces {
            if let Spot::Saved { bytes, from } = &piece.spot {
                report.moved += piece.len;
                let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
                memory.write(report.base + offset, part(bytes, *from, len))?;
            }
        }
        Ok(report)
    }
}

/// As many pieces as a target of this size has buffers.
fn many(size: u64) -> usize {
    usize::try_from(size / BUFFER).unwrap_or(usize::MAX)
}

/// In how many buffers these bytes are.
fn buffers(at: u64, len: u64) -> u64 {
    let last = at.saturating_add(len.saturating_sub(1));
    last / BUFFER - at / BUFFER + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::collection::vec;
    use proptest::prelude::*;

    const MSS: u64 = BUFFER;

    impl Bytes for Vec<u8> {
        fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
            let offset = usize::try_from(offset).unwrap();
            to.copy_from_slice(&self[offset..][..to.len()]);
            Ok(())
        }

        fn write(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
            let offset = usize::try_from(offset).unwrap();
            self[offset..][..from.len()].copy_from_slice(from);
            Ok(())
        }
    }

    /// A NIC with a fresh target, of whose buffers the first is filled first.
    struct Nic {
        memory: Vec<u8>,
        next: u64,
        order: Order<()>,
        region: Vec<u8>,
    }

    impl Nic {
        fn new(buffers: u64) -> Self {
            let size = buffers * BUFFER;
            let region = size - size / 5;
            Self {
                memory: vec![0xee; usize::try_from(size).unwrap()],
                next: 0,
                order: Order::new(size, region, 1),
                region: vec![0xee; usize::try_from(region).unwrap()],
            }
        }

        /// A segment comes, of no more than a buffer.
        fn comes(&mut self, offset: u64, len: u64) {
            let at = self.next;
            self.next += BUFFER;
            let bytes: Vec<u8> = (offset..offset + len)
                .map(|i| (i * 7 + i / 251 + at).to_le_bytes()[0])
                .collect();
            self.memory.write(at, &bytes).unwrap();
            self.region.write(offset, &bytes).unwrap();
            self.order.landed(offset, len, at, ());
        }

        /// All of it is right, apart from what never came.
        fn finish(mut self) -> Report {
            let known: Vec<_> = self
                .order
                .pieces
                .iter()
                .map(|(&offset, piece)| (offset, piece.len))
                .collect();
            let report = self.order.repair(&mut self.memory).unwrap();
            for (offset, len) in known {
                let mut got = vec![0; usize::try_from(len).unwrap()];
                self.memory.read(report.base + offset, &mut got).unwrap();
                let mut expected = got.clone();
                self.region.read(offset, &mut expected).unwrap();
                assert!(got == expected, "{len} bytes at {offset}");
            }
            report
        }
    }

    fn report(base: u64, in_place: u64, moved: u64) -> Report {
        Report {
            base,
            in_place,
            moved,
        }
    }

    #[test]
    fn full_segments_are_all_in_place() {
        let mut nic = Nic::new(64);
        for i in 0..50 {
            nic.comes(i * MSS, MSS);
        }
        let all = nic.finish();
        assert_eq!(all, report(0, 50 * MSS, 0));
        assert!(all.fraction() == 1.0);
        assert!(Report::default().fraction() == 0.0);
    }

    /// A short one moves what follows, and most follows the last of them.
    #[test]
    fn short_segments_at_first_cost_what_came_before() {
        let mut nic = Nic::new(64);
        let mut offset = 0;
        for i in 0..48 {
            let len = if i == 3 || i == 6 { 1448 } else { MSS };
            nic.comes(offset, len);
            offset += len;
        }
        let gap = 2 * (MSS - 1448);
        assert_eq!(nic.finish(), report(gap, 41 * MSS, 5 * MSS + 2 * 1448));
    }

    /// As with an MTU of 1500, and buffers of 4096 bytes.
    #[test]
    fn segments_that_fill_no_buffer_are_not_in_place() {
        let mut nic = Nic::new(64);
        for i in 0..64 {
            nic.comes(i * 1448, 1448);
        }
        let report = nic.finish();
        assert_eq!(report.in_place, 1448);
        assert_eq!(report.moved, 63 * 1448);
    }

    #[test]
    fn what_comes_out_of_order_is_moved() {
        let mut nic = Nic::new(64);
        for i in [0, 1, 3, 4, 2, 5, 6, 9, 8, 7] {
            nic.comes(i * MSS, MSS);
        }
        // 0, 1, 5, 6 and 8.
        assert_eq!(nic.finish(), report(0, 5 * MSS, 5 * MSS));
    }

    #[test]
    fn of_two_flows_in_turn_little_is_in_place() {
        let mut nic = Nic::new(80);
        for i in 0..20 {
            nic.comes(i * MSS, MSS);
            nic.comes((20 + i) * MSS, MSS);
        }
        assert_eq!(nic.finish(), report(0, 2 * MSS, 38 * MSS));
    }

    #[test]
    fn a_base_is_aligned_and_leaves_room() {
        let mut order = Order::new(64 * BUFFER, 32 * BUFFER, BUFFER);
        for i in 0..4 {
            order.landed(i * 1000, 1000, 5 * BUFFER + 24 + i * 1000, ());
        }
        assert_eq!(order.base(), 0);
        order.landed(8192, 10, 4 * BUFFER, ());
        assert_eq!(order.base(), 2 * BUFFER);
        // The region would not end in the target.
        order.landed(BUFFER, BUFFER, 34 * BUFFER, ());
        assert_eq!(order.base(), 2 * BUFFER);
        // It would begin before it.
        order.landed(20 * BUFFER, BUFFER, 0, ());
        assert_eq!(order.base(), 2 * BUFFER);
        // Nor do bytes count that are not of the region.
        assert!(!order.landed(32 * BUFFER - 1, 2, 0, ()));
        assert!(!order.landed(u64::MAX, 2, 0, ()));
        assert_eq!(order.pieces.keys().last(), Some(&(20 * BUFFER)));
    }

    /// Whoever fills no buffers has them given back, and gets the bytes nevertheless.
    #[test]
    fn buffers_are_given_back_of_what_is_not_in_place() {
        let mut order = Order::new(64 * BUFFER, 32 * BUFFER, 1);
        let mut memory = vec![0_u8; 64 << 12];
        let kept = Arc::new(());
        for i in 0..40 {
            memory
                .write(i * BUFFER, &[i.to_le_bytes()[0]; 100])
                .unwrap();
            order.landed(i * 100, 100, i * BUFFER, Arc::clone(&kept));
        }
        assert!(order.is_full());
        assert_eq!(Arc::strong_count(&kept), 41);
        assert_eq!(order.save(&memory).unwrap(), 39 * 100);
        assert!(!order.is_full());
        assert_eq!(Arc::strong_count(&kept), 2);
        memory[4096..].fill(0xee);
        let report = order.repair(&mut memory).unwrap();
        assert_eq!((report.in_place, report.moved), (100, 3900));
        for (i, part) in memory[..4000].chunks(100).enumerate() {
            assert!(part.iter().all(|&byte| usize::from(byte) == i), "{i}");
        }
    }

    /// Few pieces are kept of bytes that come one by one, and no more of some that do not follow each other.
    #[test]
    fn single_bytes_become_few_pieces() {
        let mut memory = vec![7_u8; 64 << 12];
        let mut order = Order::new(64 * BUFFER, 51 * BUFFER, 1);
        let mut most = 0;
        for i in 0..51 * BUFFER {
            let known = match i % 2 {
                0 => order.landed(i, 1, 64 * BUFFER - 1, ()),
                _ => order.saved(i, vec![7]),
            };
            assert!(known);
            if order.is_full() {
                order.save(&memory).unwrap();
            }
            most = most.max(order.pieces.len());
        }
        assert!(most <= 70, "{most}");
        assert_eq!(order.repair(&mut memory).unwrap().moved, 51 * BUFFER);

        let mut order = Order::new(64 * BUFFER, 51 * BUFFER, 1);
        let mut taken = 0;
        for i in 0..20 * BUFFER {
            taken += u64::from(order.landed(2 * i, 1, 64 * BUFFER - 1, ()));
            if order.is_full() {
                order.save(&memory).unwrap();
            }
        }
        assert_eq!(taken, 4 * 64);
    }

    /// What cannot be read is kept where it is.
    #[test]
    fn what_cannot_be_saved_is_kept() {
        struct Unreadable;
        impl Bytes for Unreadable {
            fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
                Err(io::ErrorKind::PermissionDenied.into())
            }

            fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
                unreachable!()
            }
        }
        let mut order = Order::new(64 * BUFFER, 51 * BUFFER, 1);
        order.saved(0, vec![1; 10]);
        for i in 0..4 {
            order.landed(10 + 100 * i, 100, BUFFER * (4 - i), ());
        }
        order.save(&Unreadable).unwrap_err();
        let pieces = order.pieces.iter().map(|(at, piece)| (*at, piece.len));
        let expected = [(0, 10), (10, 100), (110, 100), (210, 100), (310, 100)];
        assert!(pieces.eq(expected));
    }

    /// Of what is in place none goes back, and nobody looks for some again each time.
    #[test]
    fn buffers_in_place_are_kept() {
        let mut order = Order::new(64 * BUFFER, 51 * BUFFER, 1);
        let memory = vec![0_u8; 64 << 12];
        let mut looked = 0;
        for i in 0..51 {
            order.landed(i * BUFFER, BUFFER, i * BUFFER, ());
            if order.is_full() {
                looked += 1;
                assert_eq!(order.save(&memory).unwrap(), 0);
            }
        }
        assert_eq!((order.buffers, looked), (51, 4));
        // The next one is the last but one that there is room for.
        order.landed(0, 1, 60 * BUFFER, ());
        assert!(order.buffers <= order.limit && order.limit < 60);
    }

    proptest! {
        /// Whatever comes, how often, and in which order: what counts is what came last.
        #[test]
        fn all_bytes_get_to_their_place(
            segments in vec((0..200_000_u64, 1..=BUFFER, 0..100_u8), 1..64),
            save in 0..80_usize,
        ) {
            let mut nic = Nic::new(64);
            let mut follows = 0;
            for (i, (offset, len, kind)) in segments.into_iter().enumerate() {
                if i == save {
                    let memory = nic.memory.clone();
                    nic.order.save(&memory).unwrap();
                }
                let (offset, len) = match kind {
                    0..70 => (follows, BUFFER),
                    70..80 => (follows, len),
                    _ => (offset, len),
                };
                if offset + len <= nic.region.len() as u64 {
                    nic.comes(offset, len);
                    follows = offset + len;
                }
            }
            let all: u64 = nic.order.pieces.values().map(|piece| piece.len).sum();
            let report = nic.finish();
            prop_assert_eq!(report.in_place + report.moved, all);
        }
    }
}
