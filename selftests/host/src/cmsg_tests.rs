// SPDX-License-Identifier: GPL-2.0

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::BTreeMap,
};

use proptest::{collection::vec, prelude::*};

use crate::{
    cmsg::{self, Frag, Part, Place, Reader, Stop},
    sequences::{bound, each},
    token::{self, Range, Table, Take, BATCH},
    window::Window,
};

/// A buffer of its own for each frag, named by its address in the test.
type Iov = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TestFrag {
    size: usize,
    /// None if it is in host memory after all.
    offset: Option<u64>,
    dmabuf_id: u32,
}

impl Frag for TestFrag {
    type Iov<'a> = Iov;

    fn size(&self) -> usize {
        self.size
    }

    fn place(&self) -> Option<Place<Iov>> {
        self.offset.map(|offset| Place {
            iov: offset,
            dmabuf_id: self.dmabuf_id,
            offset,
        })
    }
}

/// A part of a packet that owns what it has.
#[derive(Clone, Debug)]
struct Owned {
    readable: bool,
    linear: Vec<u8>,
    frags: Vec<TestFrag>,
}

impl Owned {
    fn borrow(&self) -> Part<'_, TestFrag> {
        Part {
            readable: self.readable,
            linear: &self.linear,
            frags: &self.frags,
        }
    }
}

/// A packet of parts with so many linear bytes and frags of such sizes. Each byte is another one,
/// each frag at another place.
fn packet(parts: &[(usize, Vec<usize>)]) -> Vec<Owned> {
    let (mut byte, mut frag) = (0, 0);
    parts
        .iter()
        .map(|(linear, sizes)| Owned {
            readable: false,
            linear: (0..*linear)
                .map(|_| {
                    byte += 1;
                    byte
                })
                .collect(),
            frags: sizes
                .iter()
                .map(|&size| {
                    frag += 1;
                    TestFrag {
                        size,
                        offset: Some(frag << 32),
                        dmabuf_id: 100 + frag as u32,
                    }
                })
                .collect(),
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Error {
    Stop(Stop),
    /// The reader's memory is not there.
    Copy,
    /// No room for a control message.
    Put,
    /// No memory for a token.
    Tokens,
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    Linear(Vec<u8>),
    Frag {
        dmabuf_id: u32,
        offset: u64,
        len: usize,
    },
}

/// A reader whose memory ends after some operations.
#[derive(Default)]
struct TestReader {
    fuel: usize,
    copied: Vec<u8>,
    events: Vec<Event>,
    tokens: Vec<u32>,
}

impl TestReader {
    fn with_fuel(fuel: usize) -> Self {
        Self {
            fuel,
            ..Self::default()
        }
    }

    fn burn(&mut self, error: Error) -> Result<(), Error> {
        self.fuel = self.fuel.checked_sub(1).ok_or(error)?;
        Ok(())
    }
}

impl Reader for TestReader {
    type Error = Error;

    fn copy(&mut self, data: &[u8]) -> Result<(), Error> {
        self.burn(Error::Copy)?;
        assert!(self.copied.is_empty(), "bytes that no message told of");
        self.copied.extend(data);
        Ok(())
    }

    fn put_linear(&mut self, len: usize) -> Result<(), Error> {
        self.burn(Error::Put)?;
        assert_eq!(len, self.copied.len());
        self.events
            .push(Event::Linear(std::mem::take(&mut self.copied)));
        Ok(())
    }

    fn put_frag(
        &mut self,
        dmabuf_id: u32,
        offset: u64,
        len: usize,
        token: u32,
    ) -> Result<(), Error> {
        self.burn(Error::Put)?;
        self.events.push(Event::Frag {
            dmabuf_id,
            offset,
            len,
        });
        self.tokens.push(token);
        Ok(())
    }
}

/// The tokens of a socket, of which there are only so many.
#[derive(Default)]
struct Tokens {
    entries: RefCell<BTreeMap<u32, Option<Iov>>>,
    limit: usize,
    sections: Cell<usize>,
}

struct Locked<'a>(RefMut<'a, BTreeMap<u32, Option<Iov>>>, usize);

impl Tokens {
    fn with_room_for(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    fn lock(&self) -> Locked<'_> {
        self.sections.set(self.sections.get() + 1);
        Locked(self.entries.borrow_mut(), self.limit)
    }

    /// Tokens that stand for something; none may be merely reserved.
    fn committed(&self) -> Vec<(u32, Iov)> {
        self.entries
            .borrow()
            .iter()
            .map(|(&token, frag)| (token, frag.expect("settled")))
            .collect()
    }
}

impl Table<Iov> for Locked<'_> {
    type Error = Error;

    fn reserve(&mut self) -> Result<u32, Error> {
        if self.0.len() >= self.1 {
            return Err(Error::Tokens);
        }
        let token = (0..).find(|token| !self.0.contains_key(token)).unwrap();
        self.0.insert(token, None);
        Ok(token)
    }

    fn commit(&mut self, token: u32, iov: Iov) {
        let old = self.0.insert(token, Some(iov));
        assert_eq!(old, Some(None), "token {token} was not reserved");
    }

    fn cancel(&mut self, token: u32) {
        let old = self.0.remove(&token);
        assert_eq!(old, Some(None), "token {token} was not reserved");
    }
}

impl Take for Locked<'_> {
    type Counted = Iov;

    fn take(&mut self, token: u32) -> Option<Iov> {
        let iov = (*self.0.get(&token)?)?;
        self.0.remove(&token);
        Some(iov)
    }
}

fn pass(
    packet: &[Owned],
    (offset, len): (usize, usize),
    reader: &mut TestReader,
    tokens: &Tokens,
) -> Result<usize, Error> {
    cmsg::pass(
        packet.iter().map(Owned::borrow),
        Window::new(offset, len),
        reader,
        || tokens.lock(),
    )
}

/// What a reader of `len` bytes at `offset` gets that has memory for everything, and then the error
/// if that is not all of it: taken from the bytes one by one.
fn expected(packet: &[Owned], offset: usize, len: usize) -> (Vec<Event>, Option<Error>) {
    let mut events = Vec::new();
    let mut position = 0;
    let wanted = |position: usize| (offset..offset + len).contains(&position);

    for part in packet {
        if part.readable {
            return (events, Some(Error::Stop(Stop::NotDeviceMemory)));
        }
        let linear: Vec<u8> = part
            .linear
            .iter()
            .zip(position..)
            .filter_map(|(&byte, position)| wanted(position).then_some(byte))
            .collect();
        position += part.linear.len();
        if !linear.is_empty() {
            events.push(Event::Linear(linear));
        }

        for frag in &part.frags {
            let inside: Vec<u64> = (0..frag.size as u64)
                .filter(|&i| wanted(position + i as usize))
                .collect();
            position += frag.size;
            if inside.is_empty() {
                continue;
            }
            let Some(start) = frag.offset else {
                return (events, Some(Error::Stop(Stop::NotDeviceMemory)));
            };
            events.push(Event::Frag {
                dmabuf_id: frag.dmabuf_id,
                offset: start + inside[0],
                len: inside.len(),
            });
        }
        if len == 0 || position >= offset + len {
            return (events, None);
        }
    }
    (events, Some(Error::Stop(Stop::EndOfPacket)))
}

fn bytes_of(events: &[Event]) -> usize {
    events
        .iter()
        .map(|event| match event {
            Event::Linear(bytes) => bytes.len(),
            Event::Frag { len, .. } => *len,
        })
        .sum()
}

/// Operations of the reader that `event` takes.
fn fuel_for(event: &Event) -> usize {
    match event {
        Event::Linear(_) => 2,
        Event::Frag { .. } => 1,
    }
}

fn frags_in(events: &[Event]) -> impl Iterator<Item = &Event> {
    events
        .iter()
        .filter(|event| matches!(event, Event::Frag { .. }))
}

/// Where it ends if the reader has memory for `fuel` operations, and there are `limit` tokens.
fn cut(
    (events, error): (Vec<Event>, Option<Error>),
    mut fuel: usize,
    mut limit: usize,
) -> (Vec<Event>, Option<Error>) {
    let mut got = Vec::new();

    for event in events {
        let frag = matches!(event, Event::Frag { .. });
        if frag && limit == 0 {
            return (got, Some(Error::Tokens));
        }
        if fuel < fuel_for(&event) {
            let copies = matches!((&event, fuel), (Event::Linear(_), 0));
            return (got, Some(if copies { Error::Copy } else { Error::Put }));
        }
        fuel -= fuel_for(&event);
        limit -= usize::from(frag);
        got.push(event);
    }
    (got, error)
}

/// Reads once, and checks what came of it. Returns how many bytes came.
fn check_once(packet: &[Owned], window: (usize, usize), fuel: usize, limit: usize) -> usize {
    let context = || format!("{packet:?} {window:?} fuel {fuel} limit {limit}");
    let (events, error) = cut(expected(packet, window.0, window.1), fuel, limit);
    let tokens = Tokens::with_room_for(limit);
    let mut reader = TestReader::with_fuel(fuel);
    let result = pass(packet, window, &mut reader, &tokens);

    assert_eq!(reader.events, events, "{}", context());
    let passed = bytes_of(&events);
    let told = match (passed, error) {
        (0, Some(error)) => Err(error),
        _ => Ok(passed),
    };
    assert_eq!(result, told, "{}", context());

    // Who was told of a token has it, with the frag that it was told; there are no others.
    let mut tokens_told: Vec<_> = reader
        .tokens
        .iter()
        .copied()
        .zip(frags_in(&events).map(|event| match event {
            Event::Frag { offset, .. } => offset >> 32 << 32,
            Event::Linear(_) => unreachable!("filtered out"),
        }))
        .collect();
    tokens_told.sort_unstable();
    assert_eq!(tokens.committed(), tokens_told, "{}", context());
    passed
}

/// Reads until the end with a bit of memory at a time. Each byte comes once.
fn check_all(packet: &[Owned], step: usize, fuel: usize) {
    let total: usize = packet
        .iter()
        .map(|part| part.linear.len() + part.frags.iter().map(|frag| frag.size).sum::<usize>())
        .sum();
    let mut offset = 0;
    while offset < total {
        let passed = check_once(packet, (offset, step), fuel, 100);
        assert_ne!(passed, 0, "{packet:?}");
        offset += passed;
    }
    assert_eq!(offset, total);
}

fn small_parts(longest: usize) -> Vec<(usize, Vec<usize>)> {
    let mut parts = Vec::new();
    for linear in 0..=bound(2, 1) {
        each(&[3, 0, 1][..bound(3, 2)], longest, |sizes| {
            parts.push((linear, sizes.to_vec()))
        });
    }
    parts
}

/// Calls `check` with each packet of up to two small parts.
fn each_packet(mut check: impl FnMut(&[Owned])) {
    let parts = small_parts(bound(2, 1));
    for first in small_parts(bound(3, 1)) {
        check(&packet(std::slice::from_ref(&first)));
        for second in &parts {
            check(&packet(&[first.clone(), second.clone()]));
        }
    }
}

#[test]
fn each_window_of_each_packet() {
    each_packet(|packet| {
        for offset in (0..8).step_by(bound(1, 3)) {
            for len in (0..8).step_by(bound(1, 3)) {
                check_once(packet, (offset, len), 100, 100);
            }
        }
    });
}

#[test]
fn out_of_room_at_each_place() {
    each_packet(|packet| {
        for fuel in (0..8).step_by(bound(1, 2)) {
            check_once(packet, (0, 100), fuel, 100);
            check_once(packet, (1, 4), fuel, 100);
        }
        for limit in 0..4 {
            check_once(packet, (0, 100), 100, limit);
            check_once(packet, (1, 4), 2, limit);
        }
    });
}

#[test]
fn each_byte_comes_once() {
    each_packet(|packet| {
        for step in (1..6).step_by(bound(1, 3)) {
            check_all(packet, step, 100);
            check_all(packet, step, 2);
        }
    });
}

#[test]
fn parts_in_host_memory() {
    each_packet(|packet| {
        for part in 0..packet.len() {
            let mut packet = packet.to_vec();
            packet[part].readable = true;
            check_once(&packet, (0, 3), 100, 100);
            check_once(&packet, (2, 100), 100, 100);
        }
    });
}

#[test]
fn frags_in_host_memory() {
    each_packet(|packet| {
        for part in 0..packet.len() {
            for frag in 0..packet[part].frags.len() {
                let mut packet = packet.to_vec();
                packet[part].frags[frag].offset = None;
                check_once(&packet, (0, 3), 100, 100);
                check_once(&packet, (2, 100), 100, 100);
            }
        }
    });
}

#[test]
fn no_packet() {
    let mut reader = TestReader::with_fuel(1);
    let tokens = Tokens::with_room_for(1);

    let result = pass(&[], (0, 1), &mut reader, &tokens);
    assert_eq!(result, Err(Error::Stop(Stop::EndOfPacket)));
    assert_eq!(tokens.sections.get(), 0);
}

/// One critical section to reserve and one to commit, however many frags; one more for each batch.
#[test]
fn tokens_come_in_batches() {
    for (frags, sections) in [(0, 0), (1, 2), (BATCH, 2), (BATCH + 1, 3), (5 * BATCH, 6)] {
        let packet = packet(&[(1, vec![10; frags])]);
        let tokens = Tokens::with_room_for(1000);
        let mut reader = TestReader::with_fuel(1000);

        let passed = pass(&packet, (0, 1 + 10 * frags), &mut reader, &tokens);
        assert_eq!(passed, Ok(1 + 10 * frags));
        assert_eq!(tokens.sections.get(), sections, "{frags} frags");
    }
}

/// Not a token more is reserved than the window has frags: others could not get it meanwhile.
#[test]
fn tokens_are_not_hoarded() {
    let packet = packet(&[(0, vec![10; 10])]);
    let tokens = Tokens::with_room_for(2);
    let mut reader = TestReader::with_fuel(1000);

    assert_eq!(pass(&packet, (5, 10), &mut reader, &tokens), Ok(10));
    assert_eq!(tokens.committed().len(), 2);
}

#[test]
fn numbers_at_their_limits() {
    let huge = TestFrag {
        size: usize::MAX,
        offset: Some(0),
        dmabuf_id: u32::MAX,
    };
    let last = TestFrag {
        size: 5,
        offset: Some(u64::MAX - 4),
        dmabuf_id: 1,
    };
    let packet = [Owned {
        readable: false,
        linear: vec![],
        frags: vec![huge, last],
    }];
    let read = |window| {
        let mut reader = TestReader::with_fuel(10);
        let result = pass(&packet, window, &mut reader, &Tokens::with_room_for(10));
        (result, reader.events)
    };
    let event = |dmabuf_id, offset, len| Event::Frag {
        dmabuf_id,
        offset,
        len,
    };

    let (result, events) = read((usize::MAX - 1, 3));
    assert_eq!(result, Ok(3));
    assert_eq!(
        events,
        [event(u32::MAX, u64::MAX - 1, 1), event(1, u64::MAX - 4, 2)]
    );

    let (result, events) = read((0, usize::MAX));
    assert_eq!(result, Ok(usize::MAX));
    assert_eq!(events, [event(u32::MAX, 0, usize::MAX)]);
    assert_eq!(read((usize::MAX, 1)).0, Ok(1));
}

proptest! {
    #[test]
    fn any_packet(
        parts in vec((0usize..20, vec(0usize..30, 0..20)), 0..4),
        offset in 0usize..300,
        len in 0usize..300,
        fuel in 0usize..40,
        limit in 0usize..40,
    ) {
        check_once(&packet(&parts), (offset, len), fuel, limit);
    }

    #[test]
    fn any_steps(
        parts in vec((0usize..20, vec(0usize..30, 0..20)), 0..4),
        step in 1usize..100,
        fuel in 2usize..10,
    ) {
        check_all(&packet(&parts), step, fuel);
    }

    /// What a reader returns is what it has, once, whatever it claims.
    #[test]
    fn tokens_come_back_once(
        frags in 0usize..60,
        ranges in vec((0u32..80, 0u32..80), 0..6),
    ) {
        let packet = packet(&[(0, vec![1; frags])]);
        let tokens = Tokens::with_room_for(100);
        if frags != 0 {
            pass(&packet, (0, frags), &mut TestReader::with_fuel(100), &tokens).unwrap();
        }
        let ranges: Vec<_> = ranges
            .into_iter()
            .map(|(start, count)| Range { start, count })
            .collect();
        let mut named: Vec<u32> = Range::tokens(ranges.iter().copied())
            .filter(|&token| (token as usize) < frags)
            .collect();
        named.sort_unstable();
        named.dedup();

        let returned = token::take_back(Range::tokens(ranges.into_iter()), || tokens.lock());
        prop_assert_eq!(returned, named.len());
        prop_assert_eq!(tokens.committed().len(), frags - returned);
    }
}

/// A reference that has to be given up without the table's lock, which page pools must not meet.
struct Counted<'a>(&'a RefCell<usize>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        *self.0.try_borrow_mut().expect("not locked") -= 1;
    }
}

/// A table in which every token stands for a reference. It counts those that were taken.
struct Inexhaustible<'a>(RefMut<'a, usize>, &'a RefCell<usize>);

impl<'a> Take for Inexhaustible<'a> {
    type Counted = Counted<'a>;

    fn take(&mut self, _token: u32) -> Option<Counted<'a>> {
        *self.0 += 1;
        Some(Counted(self.1))
    }
}

#[test]
fn references_are_given_up_after_the_lock() {
    for count in [0, 1, 15, 16, 17, 32, 100] {
        let taken = RefCell::new(0);
        let sections = Cell::new(0);

        let returned = token::take_back(0..count, || {
            sections.set(sections.get() + 1);
            Inexhaustible(taken.borrow_mut(), &taken)
        });
        assert_eq!(returned, count as usize);
        assert_eq!(taken.into_inner(), 0, "all were given up");
        assert_eq!(sections.get(), count as usize / 16 + 1);
    }
}
