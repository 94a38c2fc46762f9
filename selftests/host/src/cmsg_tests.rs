// SPDX-License-Identifier: GPL-2.0

use std::{
    cell::{Cell, RefCell, RefMut},
    num::NonZero,
    rc::Rc,
};

use proptest::{collection::vec, prelude::*};

use crate::{
    cmsg::{self, Frag, FragInfo, Part, Place, Reader, Stop},
    sequences::{bound, each},
    slot_array::SlotArray,
    sys::run::{End, Run},
    sys::token::{take_back, Frags, Range, Take, Taken, Tokens, Told, BASE, BATCH},
    sys::window::{self, Window},
};

/// A frag in a buffer of its own.
#[derive(Clone, Debug)]
struct TestFrag {
    size: usize,
    /// None if it is in host memory after all.
    offset: Option<u64>,
    dmabuf_id: u32,
    /// Its memory was taken back.
    revoked: bool,
    /// The packet does not have a reference any more: others may have the buffer.
    gone: Rc<Cell<bool>>,
}

impl TestFrag {
    fn new(size: usize, offset: u64, dmabuf_id: u32) -> Self {
        Self {
            size,
            offset: Some(offset),
            dmabuf_id,
            revoked: false,
            gone: Rc::default(),
        }
    }

    /// What is in the array of tokens for it. A frag's offset is another one in its upper half.
    fn netmem(&self) -> usize {
        assert!(!self.gone.get(), "a frag that is not the packet's any more");
        netmem_at(self.offset.expect("a token for host memory"))
    }
}

fn netmem_at(offset: u64) -> usize {
    ((offset >> 32) as usize) << 2 | 1
}

impl Frag for TestFrag {
    fn size(&self) -> usize {
        assert!(!self.gone.get(), "a frag that is not the packet's any more");
        self.size
    }

    fn place(&self) -> Option<Place> {
        assert!(!self.gone.get(), "a frag that is not the packet's any more");
        self.offset.map(|offset| Place {
            dmabuf_id: self.dmabuf_id,
            offset,
        })
    }

    fn is_revoked(&self) -> bool {
        assert!(!self.gone.get(), "a frag that is not the packet's any more");
        self.revoked
    }

    fn end(&self, _part: window::Part) -> Option<End> {
        unreachable!("the reader takes no runs")
    }

    fn follows(&self, _part: window::Part, _end: &mut End) -> bool {
        unreachable!("the reader takes no runs")
    }
}

/// A part of a packet that owns what it has.
#[derive(Clone, Debug)]
struct Owned {
    readable: bool,
    linear: Vec<u8>,
    frags: Vec<TestFrag>,
}

/// The frags of a part of a packet, which is thrown away or not.
struct TestFrags<'a> {
    frags: &'a [TestFrag],
    eat: bool,
}

impl Frags for TestFrags<'_> {
    type Frag = TestFrag;

    fn as_slice(&self) -> &[TestFrag] {
        self.frags
    }
}

/// Where the reference of a token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum References {
    /// It is another one than the packet's.
    Taken,
    /// It was the packet's.
    Moved,
}

/// What was passed of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passed {
    bytes: usize,
    moved: bool,
}

impl Owned {
    fn borrow(&self, eat: bool) -> Part<'_, TestFrags<'_>> {
        Part {
            readable: self.readable,
            may_be_revoked: self.frags.iter().any(|frag| frag.revoked),
            linear: &self.linear,
            frags: TestFrags {
                frags: &self.frags,
                eat,
            },
        }
    }

    fn len(&self) -> usize {
        self.linear.len() + self.frags.iter().map(|frag| frag.size).sum::<usize>()
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
                    TestFrag::new(size, frag << 32, 100 + frag as u32)
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

/// A control message. None if it was not made.
#[derive(Clone, Copy, Default)]
struct TestMessage(Option<FragInfo>);

impl From<FragInfo> for TestMessage {
    fn from(frag: FragInfo) -> Self {
        Self(Some(frag))
    }
}

impl Reader for TestReader {
    type Error = Error;
    type Message = TestMessage;

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

    fn put_frags(&mut self, messages: &[TestMessage]) -> Result<(), (usize, Error)> {
        for (told, message) in messages.iter().enumerate() {
            let frag = message.0.expect("a message");

            self.burn(Error::Put).map_err(|error| (told, error))?;
            self.events.push(Event::Frag {
                dmabuf_id: frag.dmabuf_id,
                offset: frag.offset,
                len: frag.len,
            });
            self.tokens.push(frag.token);
        }
        Ok(())
    }

    fn takes_runs(&self) -> bool {
        false
    }

    fn last_run(&self) -> Option<Run> {
        unreachable!("it takes no runs")
    }

    fn set_last_run(&mut self, _run: Option<Run>) {
        unreachable!("it takes no runs")
    }

    fn set_last_len(&mut self, _len: u32) -> Result<(), Error> {
        unreachable!("it takes no runs")
    }
}

/// The tokens of a socket, of which there are only so many.
struct TestTokens {
    array: SlotArray,
    /// Most tokens that are told at a time.
    most: usize,
    /// What was told last.
    peeked: Vec<u32>,
    /// Tokens, what they stand for, and where the reference comes from.
    committed: Vec<(u32, usize, References)>,
    sections: usize,
}

impl TestTokens {
    fn with_room_for(limit: usize) -> Self {
        Self {
            array: SlotArray::of_size(limit.max(1)),
            most: BATCH,
            peeked: Vec::new(),
            committed: Vec::new(),
            sections: 0,
        }
        .without(usize::from(limit == 0))
    }

    /// `count` of them are in use already.
    fn without(mut self, count: usize) -> Self {
        for token in (BASE..).take(count) {
            assert!(self.array.locked().commit(token, 1), "a free one");
        }
        self
    }

    /// Others are in use, in between.
    fn with_gaps(mut self, used: &[bool]) -> Self {
        for (token, _) in (BASE..).zip(used).filter(|(_, &used)| used) {
            self.array.locked().commit(token, 1);
        }
        self
    }

    fn free(&self) -> usize {
        self.array.slots.len() - self.array.used as usize
    }
}

impl TestTokens {
    fn commit_as(&mut self, tokens: &[u32], frags: &[TestFrag], references: References) {
        self.sections += 1;
        assert_eq!(tokens.len(), frags.len(), "one for each");
        assert!(self.peeked.starts_with(tokens), "not what was told");
        self.peeked.clear();
        for (&token, frag) in tokens.iter().zip(frags) {
            let netmem = frag.netmem();

            assert!(self.array.locked().commit(token, netmem));
            self.committed.push((token, netmem, references));
            frag.gone.set(references == References::Moved);
        }
    }
}

impl<'a> Tokens<TestFrags<'a>> for TestTokens {
    type Error = Error;

    fn peek(&mut self, tokens: &mut [u32]) -> Result<NonZero<usize>, Error> {
        let room = tokens.len().min(self.most);

        assert!(tokens.len() <= BATCH);
        self.sections += 1;
        let count = self.array.locked().peek(&mut tokens[..room]);
        self.peeked = tokens[..count].to_vec();
        NonZero::new(count).ok_or(Error::Tokens)
    }

    fn commit(&mut self, tokens: &[u32], frags: &[TestFrag]) {
        self.commit_as(tokens, frags, References::Taken);
    }

    fn commit_all(&mut self, tokens: &[u32], frags: TestFrags<'a>) {
        let references = match frags.eat {
            true => References::Moved,
            false => References::Taken,
        };
        self.commit_as(tokens, frags.frags, references);
    }

    fn peek_for_runs(&mut self, _tokens: &mut [u32]) -> Result<(NonZero<usize>, usize), Error> {
        unreachable!("the reader takes no runs")
    }

    fn room(&mut self, _run: &Run) -> usize {
        unreachable!("the reader takes no runs")
    }

    fn commit_runs(&mut self, _runs: &[Told], _frags: &[TestFrag]) {
        unreachable!("the reader takes no runs")
    }

    fn commit_all_runs(&mut self, _runs: &[Told], _frags: TestFrags<'a>) {
        unreachable!("the reader takes no runs")
    }
}

/// Reads from a packet that has all its references.
fn pass(
    packet: &[Owned],
    (offset, len): (usize, usize),
    reader: &mut TestReader,
    tokens: &mut TestTokens,
    eat: bool,
) -> Result<Passed, Error> {
    for frag in packet.iter().flat_map(|part| &part.frags) {
        frag.gone.set(false);
    }
    let parts = packet.iter().map(|part| part.borrow(eat));
    let bytes = cmsg::pass(parts, Window::new(offset, len), reader, tokens)?;

    let mut committed = tokens.committed.iter();
    Ok(Passed {
        bytes,
        moved: committed.any(|&(_, _, references)| references == References::Moved),
    })
}

/// The same, if nothing is moved: how many bytes.
fn pass_some(
    packet: &[Owned],
    window: (usize, usize),
    reader: &mut TestReader,
    tokens: &mut TestTokens,
) -> Result<usize, Error> {
    let passed = pass(packet, window, reader, tokens, false)?;

    assert!(!passed.moved);
    Ok(passed.bytes)
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
            if frag.revoked {
                return (events, Some(Error::Stop(Stop::Revoked)));
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

/// What a read has.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Operations of the reader.
    fuel: usize,
    /// Free tokens.
    tokens: usize,
    /// Tokens told at a time.
    at_a_time: usize,
}

const AMPLE: Limits = Limits {
    fuel: 1000,
    tokens: 1000,
    at_a_time: BATCH,
};

impl Limits {
    fn fuel(fuel: usize) -> Self {
        Self { fuel, ..AMPLE }
    }

    fn tokens(tokens: usize) -> Self {
        Self { tokens, ..AMPLE }
    }
}

/// Reads once, and checks what came of it. Returns how many bytes came.
fn check_once(packet: &[Owned], window: (usize, usize), limits: Limits) -> usize {
    let tokens = TestTokens::with_room_for(limits.tokens);
    check_with(packet, window, limits, tokens, false).map_or(0, |passed| passed.bytes)
}

/// Reads all from `offset` of a packet of one part that is thrown away, and checks what came of it.
fn check_eat(part: &Owned, offset: usize, limits: Limits) {
    let packet = std::slice::from_ref(part);
    let len = part.len() - offset;
    let tokens = TestTokens::with_room_for(limits.tokens);
    let passed = check_with(packet, (offset, len), limits, tokens, true);
    let moved = passed.is_ok_and(|passed| passed.moved);

    assert_eq!(moved, may_move(part, offset, limits), "{part:?} {limits:?}");
}

/// Whether all frags are told, and in one batch. Those from which nothing is read are not told.
fn may_move(part: &Owned, offset: usize, limits: Limits) -> bool {
    let frags = part.frags.len();
    let messages = frags + if offset < part.linear.len() { 2 } else { 0 };
    let first = part.frags.first().map_or(0, |frag| frag.size);

    !part.readable
        && frags != 0
        && frags <= BATCH.min(limits.at_a_time).min(limits.tokens)
        && messages <= limits.fuel
        && offset < part.linear.len() + first
        && part.frags.iter().all(|frag| frag.size != 0)
        && part
            .frags
            .iter()
            .all(|frag| frag.offset.is_some() && !frag.revoked)
}

fn check_with(
    packet: &[Owned],
    window: (usize, usize),
    limits: Limits,
    mut tokens: TestTokens,
    eat: bool,
) -> Result<Passed, Error> {
    let context = || format!("{packet:?} {window:?} {limits:?}");
    let (events, error) = cut(
        expected(packet, window.0, window.1),
        limits.fuel,
        limits.tokens,
    );
    let mut reader = TestReader::with_fuel(limits.fuel);
    tokens.most = limits.at_a_time;
    let result = pass(packet, window, &mut reader, &mut tokens, eat);

    assert_eq!(reader.events, events, "{}", context());
    let bytes = bytes_of(&events);
    let told = match (bytes, error) {
        // There has to be a token before a frag is looked at.
        (0, Some(Error::Stop(Stop::NotDeviceMemory))) if limits.tokens == 0 => {
            assert!(matches!(
                result,
                Err(Error::Tokens | Error::Stop(Stop::NotDeviceMemory))
            ));
            result.map(|passed| passed.bytes)
        }
        (0, Some(error)) => Err(error),
        _ => Ok(bytes),
    };
    assert_eq!(result.map(|passed| passed.bytes), told, "{}", context());

    let moved = result.is_ok_and(|passed| passed.moved);
    assert!(eat || !moved, "{}", context());
    check_committed(packet, &reader, &tokens, moved);
    result
}

/// Who was told of a token has it, with the frag that it was told; there are no others. Each has a
/// reference, either a new one or the packet's.
fn check_committed(packet: &[Owned], reader: &TestReader, tokens: &TestTokens, moved: bool) {
    let references = match moved {
        true => References::Moved,
        false => References::Taken,
    };
    let told: Vec<_> = reader
        .tokens
        .iter()
        .zip(frags_in(&reader.events))
        .map(|(&token, event)| match event {
            Event::Frag { offset, .. } => (token, netmem_at(*offset), references),
            Event::Linear(_) => unreachable!("filtered out"),
        })
        .collect();

    assert_eq!(tokens.committed, told, "{packet:?}");
    let mut frags = packet.iter().flat_map(|part| &part.frags);
    assert!(frags.all(|frag| frag.gone.get() == moved), "{packet:?}");
}

/// Reads until the end with a bit of memory at a time. Each byte comes once.
fn check_all(packet: &[Owned], step: usize, fuel: usize) {
    let total: usize = packet.iter().map(Owned::len).sum();
    let mut offset = 0;
    while offset < total {
        let passed = check_once(packet, (offset, step), Limits::fuel(fuel));
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

/// Calls `check` with each packet of one small part.
fn each_part(longest: usize, mut check: impl FnMut(&Owned)) {
    for part in small_parts(longest) {
        check(&packet(&[part])[0]);
    }
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
                check_once(packet, (offset, len), AMPLE);
            }
        }
    });
}

#[test]
fn out_of_room_at_each_place() {
    each_packet(|packet| {
        for fuel in (0..8).step_by(bound(1, 2)) {
            check_once(packet, (0, 100), Limits::fuel(fuel));
            check_once(packet, (1, 4), Limits::fuel(fuel));
        }
        for tokens in 0..4 {
            check_once(packet, (0, 100), Limits::tokens(tokens));
            let fuel = 2;
            check_once(
                packet,
                (1, 4),
                Limits {
                    fuel,
                    ..Limits::tokens(tokens)
                },
            );
        }
    });
}

/// Batches end where the tokens do that are told at a time.
#[test]
fn batches_of_any_size() {
    each_packet(|packet| {
        for at_a_time in 1..4 {
            for fuel in [2, 3, 4, 100] {
                let limits = Limits {
                    fuel,
                    at_a_time,
                    ..AMPLE
                };
                check_once(packet, (0, 100), limits);
                check_once(packet, (2, 4), limits);
            }
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
            check_once(&packet, (0, 3), AMPLE);
            check_once(&packet, (2, 100), AMPLE);
        }
    });
}

/// What is before them in the packet is not theirs.
#[test]
fn frags_in_memory_that_was_taken_back() {
    each_packet(|packet| {
        for part in 0..packet.len() {
            for frag in 0..packet[part].frags.len() {
                let mut packet = packet.to_vec();
                packet[part].frags[frag].revoked = true;
                for tokens in [0, 1, 2, 100] {
                    check_once(&packet, (0, 3), Limits::tokens(tokens));
                    check_once(&packet, (2, 100), Limits::tokens(tokens));
                }
            }
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
                for tokens in [0, 1, 2, 100] {
                    check_once(&packet, (0, 3), Limits::tokens(tokens));
                    check_once(&packet, (2, 100), Limits::tokens(tokens));
                }
                check_once(
                    &packet,
                    (0, 100),
                    Limits {
                        at_a_time: 1,
                        ..AMPLE
                    },
                );
            }
        }
    });
}

/// A packet that is thrown away when all is passed, wherever that ends.
#[test]
fn references_are_moved_only_if_all_frags_are_told_in_one_batch() {
    each_part(bound(4, 2), |part| {
        for offset in 0..=part.len().min(5) {
            check_eat(part, offset, AMPLE);
            for less in 0..6 {
                check_eat(part, offset, Limits::fuel(less));
                check_eat(part, offset, Limits::tokens(less));
                check_eat(
                    part,
                    offset,
                    Limits {
                        at_a_time: less + 1,
                        ..AMPLE
                    },
                );
            }
        }
        for frag in 0..part.frags.len() {
            let mut part = part.clone();
            part.frags[frag].offset = None;
            check_eat(&part, 0, AMPLE);
            check_eat(&part, 2.min(part.len()), AMPLE);
        }
    });
}

#[test]
fn as_many_frags_as_a_batch_and_more() {
    for frags in [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 2 * BATCH + 1] {
        let part = &packet(&[(1, vec![2; frags])])[0];

        for fuel in (0..frags + 4).step_by(bound(1, 5)) {
            check_eat(part, 0, Limits::fuel(fuel));
            check_once(std::slice::from_ref(part), (0, 1000), Limits::fuel(fuel));
        }
        for tokens in (0..frags + 2).step_by(bound(1, 5)) {
            check_eat(part, 1, Limits::tokens(tokens));
            check_once(
                std::slice::from_ref(part),
                (2, 1000),
                Limits::tokens(tokens),
            );
        }
    }
}

#[test]
fn a_frag_without_bytes_keeps_its_reference() {
    for empty in 0..3 {
        let mut sizes = vec![4; 3];
        sizes[empty] = 0;
        let packet = packet(&[(0, sizes)]);
        let (mut reader, mut tokens) = (TestReader::with_fuel(9), TestTokens::with_room_for(9));

        let passed = pass(&packet, (0, 8), &mut reader, &mut tokens, true);
        assert_eq!(
            passed,
            Ok(Passed {
                bytes: 8,
                moved: false
            })
        );
        assert_eq!(tokens.committed.len(), 2, "it has no token");
    }
}

#[test]
fn no_packet() {
    let mut reader = TestReader::with_fuel(1);
    let mut tokens = TestTokens::with_room_for(1);

    let result = pass(&[], (0, 1), &mut reader, &mut tokens, true);
    assert_eq!(result, Err(Error::Stop(Stop::EndOfPacket)));
    assert_eq!(tokens.sections, 0);
}

/// One critical section to know the tokens and one to commit them, for each batch of frags.
#[test]
fn tokens_come_in_batches() {
    for (frags, batches) in [(0, 0), (1, 1), (BATCH, 1), (BATCH + 1, 2), (5 * BATCH, 5)] {
        let packet = packet(&[(1, vec![10; frags])]);
        let mut tokens = TestTokens::with_room_for(1000);
        let mut reader = TestReader::with_fuel(1000);

        let passed = pass_some(&packet, (0, 1 + 10 * frags), &mut reader, &mut tokens);
        assert_eq!(passed, Ok(1 + 10 * frags));
        assert_eq!(tokens.sections, 2 * batches, "{frags} frags");
    }
}

/// Nothing is committed, nor locked, of which the reader was not told.
#[test]
fn no_commit_without_a_message() {
    let packet = packet(&[(0, vec![10; 3])]);
    let mut tokens = TestTokens::with_room_for(9);
    let mut reader = TestReader::with_fuel(0);

    let result = pass_some(&packet, (0, 30), &mut reader, &mut tokens);
    assert_eq!(result, Err(Error::Put));
    assert_eq!(tokens.sections, 1, "they were looked at");
    assert_eq!(tokens.array, SlotArray::of_size(9));
}

/// As many tokens as the window has frags will do, however many the packet has.
#[test]
fn tokens_are_not_hoarded() {
    let packet = packet(&[(0, vec![10; 10])]);
    let mut tokens = TestTokens::with_room_for(2);
    let mut reader = TestReader::with_fuel(1000);

    let passed = pass_some(&packet, (5, 10), &mut reader, &mut tokens);
    assert_eq!(passed, Ok(10));
    assert_eq!(tokens.committed.len(), 2);
}

#[test]
fn numbers_at_their_limits() {
    let packet = [Owned {
        readable: false,
        linear: vec![],
        frags: vec![
            TestFrag::new(usize::MAX, 0, u32::MAX),
            TestFrag::new(5, u64::MAX - 4, 1),
        ],
    }];
    let read = |window, fuel| {
        let mut reader = TestReader::with_fuel(fuel);
        let mut tokens = TestTokens::with_room_for(10);
        let result = pass_some(&packet, window, &mut reader, &mut tokens);
        (result, reader.events)
    };
    let event = |dmabuf_id, offset, len| Event::Frag {
        dmabuf_id,
        offset,
        len,
    };

    let (result, events) = read((usize::MAX - 1, 3), 10);
    assert_eq!(result, Ok(3));
    assert_eq!(
        events,
        [event(u32::MAX, u64::MAX - 1, 1), event(1, u64::MAX - 4, 2)]
    );
    assert_eq!(read((usize::MAX - 1, 3), 1).0, Ok(1));

    let (result, events) = read((0, usize::MAX), 10);
    assert_eq!(result, Ok(usize::MAX));
    assert_eq!(events, [event(u32::MAX, 0, usize::MAX)]);
    assert_eq!(read((usize::MAX, 1), 10).0, Ok(1));
}

proptest! {
    #[test]
    fn any_packet(
        parts in vec((0usize..20, vec(0usize..30, 0..40)), 0..4),
        (offset, len) in (0usize..300, 0usize..600),
        fuel in 0usize..80,
        tokens in 0usize..80,
        at_a_time in 1usize..=BATCH,
        used in vec(any::<bool>(), 0..80),
    ) {
        let table = TestTokens::with_room_for(tokens).with_gaps(&used);
        let tokens = table.free();
        let limits = Limits { fuel, tokens, at_a_time };
        let _ = check_with(&packet(&parts), (offset, len), limits, table, false);
    }

    #[test]
    fn any_packet_that_is_thrown_away(
        part in (0usize..20, vec(0usize..30, 0..20)),
        host in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
        offset in 0usize..40,
        fuel in 0usize..30,
        tokens in 0usize..30,
        at_a_time in 1usize..=BATCH,
    ) {
        let part = &mut packet(&[part])[0];
        let offset = offset.min(part.len());
        if let (Some(host), false) = (host, part.frags.is_empty()) {
            let frags = part.frags.len();
            part.frags[host.index(frags)].offset = None;
        }
        check_eat(part, offset, Limits { fuel, tokens, at_a_time });
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
        let mut tokens = TestTokens::with_room_for(100);
        if frags != 0 {
            let mut reader = TestReader::with_fuel(100);
            pass_some(&packet, (0, frags), &mut reader, &mut tokens).unwrap();
        }
        let mut named: Vec<u32> = ranges
            .iter()
            .flat_map(|&(start, count)| start..start + count)
            .filter(|&slot| (slot as usize) < frags)
            .collect();
        named.sort_unstable();
        named.dedup();

        let ranges = ranges.iter().map(|&(start, count)| Range { start: BASE + start, count });
        let array = RefCell::new(tokens.array);
        let returned = take_back(ranges, || Locked(array.borrow_mut()));
        prop_assert_eq!(returned, named.len());
        prop_assert_eq!(array.into_inner().used as usize, frags - returned);
    }
}

/// The array of a socket under its lock.
struct Locked<'a>(RefMut<'a, SlotArray>);

impl Take for Locked<'_> {
    type Returned = Vec<usize>;

    fn take(&mut self, token: u32, returned: &mut Vec<usize>) -> Taken {
        let held = self.0.locked().take(token);
        returned.extend(held.map(|held| held.netmem));
        match held {
            Some(_) => Taken::One,
            None => Taken::Nothing,
        }
    }
}
