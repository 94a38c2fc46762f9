// SPDX-License-Identifier: GPL-2.0

//! What readers are told who take one message for a run of frags.

use std::{
    cell::{Cell, RefCell},
    num::NonZero,
};

use proptest::{collection::vec, prelude::*};

use crate::{
    cmsg::{self, Frag, FragInfo, Part, Place, Reader, Stop},
    sequences::{bound, each},
    slot_array::SlotArray,
    sys::{
        run::{End, Run},
        token::{self, Held, Tokens, Told, BASE, BATCH, RUN_MAX},
        window::{self, Window},
        wrapper,
    },
};

/// Size of a buffer.
const SIZE: usize = 4;
/// Where the second area begins, right after the first.
const SECOND: usize = 100;
/// How many buffers there are in both.
const BUFFERS: usize = 200;

/// How many references there are to each buffer, but for those of packets.
struct Buffers(Vec<Cell<usize>>);

impl Buffers {
    fn new() -> Self {
        Self(vec![Cell::new(0); BUFFERS])
    }

    fn get(&self, buffer: usize) {
        self.0[buffer].set(self.0[buffer].get() + 1);
    }

    fn put(&self, buffer: usize) {
        let old = self.0[buffer].get();
        self.0[buffer].set(old.checked_sub(1).expect("a reference that nobody has"));
    }

    fn counts(&self) -> Vec<usize> {
        self.0.iter().map(Cell::get).collect()
    }
}

/// Some bytes of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TestFrag {
    buffer: usize,
    offset: usize,
    len: usize,
}

impl TestFrag {
    /// The binding, where its buffers begin, and where they end.
    fn area(&self) -> (u32, usize, usize) {
        match self.buffer < SECOND {
            true => (1, 0, SECOND),
            false => (2, SECOND, BUFFERS),
        }
    }

    /// All of a buffer.
    fn full(buffer: usize) -> Self {
        Self {
            buffer,
            offset: 0,
            len: SIZE,
        }
    }

    /// Whether this one goes on where `before` ends.
    fn goes_on(&self, before: &Self) -> bool {
        self.buffer == before.buffer + 1
            && self.area() == before.area()
            && self.offset == 0
            && before.offset + before.len == SIZE
    }
}

impl Frag for TestFrag {
    fn size(&self) -> usize {
        self.len
    }

    fn place(&self) -> Option<Place> {
        let (dmabuf_id, start, _) = self.area();

        Some(Place {
            dmabuf_id,
            offset: ((self.buffer - start) * SIZE + self.offset) as u64,
        })
    }

    fn is_revoked(&self) -> bool {
        false
    }

    fn end(&self, part: window::Part) -> Option<End> {
        let end = (self.offset + part.offset + part.len) as u32;
        let (_, _, buffers) = self.area();

        Some(wrapper::end(self.buffer, end, SIZE as u32, buffers))
    }

    fn follows(&self, part: window::Part, end: &mut End) -> bool {
        let offset = (self.offset + part.offset) as u32;

        wrapper::follow(end, self.buffer, offset, part.len as u32)
    }
}

/// The frags of a packet, which may be thrown away.
struct Frags<'a> {
    frags: &'a [TestFrag],
    moved: Option<&'a Cell<bool>>,
}

impl token::Frags for Frags<'_> {
    type Frag = TestFrag;

    fn as_slice(&self) -> &[TestFrag] {
        self.frags
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Error {
    Stop(Stop),
    Put,
    Tokens,
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    dmabuf_id: u32,
    offset: u64,
    len: usize,
}

#[derive(Clone, Copy, Default)]
struct Info(Option<FragInfo>);

impl From<FragInfo> for Info {
    fn from(info: FragInfo) -> Self {
        Self(Some(info))
    }
}

/// A reader with room for so many messages.
struct TestReader {
    room: usize,
    /// How often messages can be changed before their memory is gone.
    changes: usize,
    messages: Vec<Message>,
    tokens: Vec<u32>,
    last: Option<Run>,
}

impl TestReader {
    fn new(room: usize) -> Self {
        Self {
            room,
            changes: usize::MAX,
            messages: Vec::new(),
            tokens: Vec::new(),
            last: None,
        }
    }
}

impl Reader for TestReader {
    type Error = Error;
    type Message = Info;

    fn copy(&mut self, _data: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    fn put_linear(&mut self, len: usize) -> Result<(), Error> {
        self.room = self.room.checked_sub(1).ok_or(Error::Put)?;
        // There is no way any more to the message before.
        self.last = None;
        self.messages.push(Message {
            dmabuf_id: 0,
            offset: 0,
            len,
        });
        self.tokens.push(0);
        Ok(())
    }

    fn put_frags(&mut self, messages: &[Info]) -> Result<(), (usize, Error)> {
        for (told, message) in messages.iter().enumerate() {
            let info = message.0.expect("a message");

            self.room = self.room.checked_sub(1).ok_or((told, Error::Put))?;
            self.tokens.push(info.token);
            self.messages.push(Message {
                dmabuf_id: info.dmabuf_id,
                offset: info.offset,
                len: info.len,
            });
        }
        Ok(())
    }

    fn takes_runs(&self) -> bool {
        true
    }

    fn last_run(&self) -> Option<Run> {
        self.last
    }

    fn set_last_run(&mut self, run: Option<Run>) {
        self.last = run;
    }

    fn set_last_len(&mut self, len: u32) -> Result<(), Error> {
        let last = self.messages.last_mut().expect("there is one");

        self.changes = self.changes.checked_sub(1).ok_or(Error::Put)?;
        assert!(len as usize > last.len, "it becomes longer");
        last.len = len as usize;
        Ok(())
    }
}

/// The tokens of a socket, which may hold so many buffers.
struct Socket<'a> {
    buffers: &'a Buffers,
    array: RefCell<SlotArray>,
    limit: usize,
    /// Returned by another thread right before it is committed, if it is this one's turn.
    returned_early: Option<usize>,
    /// Whether all are returned right before there is a look at which are free.
    returned_before: bool,
    commits: usize,
}

impl<'a> Socket<'a> {
    fn new(buffers: &'a Buffers, limit: usize) -> Self {
        Self {
            buffers,
            array: RefCell::new(SlotArray::of_size(400)),
            limit,
            returned_early: None,
            returned_before: false,
            commits: 0,
        }
    }

    fn put(&self, held: Held) {
        for index in 0..held.count as usize {
            let netmem = held.netmem + index * 64;
            let buffer = (0..BUFFERS).find(|&buffer| wrapper::netmem(buffer) == netmem);
            self.buffers.put(buffer.expect("one of the buffers"));
        }
    }

    fn give_back(&self, token: u32) -> Option<u32> {
        let held = self.array.borrow_mut().locked().take(token)?;

        self.put(held);
        Some(held.count)
    }

    fn commit(&mut self, runs: &[Told], frags: &[TestFrag]) {
        let mut rest = frags;

        if self.returned_early == Some(self.commits) {
            for told in runs {
                self.give_back(told.token);
            }
        }
        self.commits += 1;
        for told in runs {
            let (run, after) = rest.split_at(told.frags);
            assert!(run
                .windows(2)
                .all(|pair| pair[1].buffer == pair[0].buffer + 1));

            let mut array = self.array.borrow_mut();
            let mut slots = array.locked();
            let netmem = wrapper::netmem(run[0].buffer);
            let count = run.len() as u32;
            let committed = match slots.held(told.token) {
                Some(held) => {
                    assert!(told.goes_on, "a token that is not free");
                    let (_, start, _) = run[0].area();
                    assert!(wrapper::is_before(held, run[0].buffer, start));
                    slots.add(told.token, count)
                }
                None => slots.commit_run(told.token, Held { netmem, count }),
            };
            assert!(committed);
            rest = after;
        }
        assert!(rest.is_empty(), "frags without a token");
    }
}

impl<'a> Tokens<Frags<'a>> for Socket<'_> {
    type Error = Error;

    fn peek(&mut self, _tokens: &mut [u32]) -> Result<NonZero<usize>, Error> {
        unreachable!("there are only runs")
    }

    fn peek_for_runs(&mut self, tokens: &mut [u32]) -> Result<(NonZero<usize>, usize), Error> {
        assert!(tokens.len() <= BATCH);
        if self.returned_before {
            for token in BASE..BASE + 400 {
                self.give_back(token);
            }
        }
        let used = self.array.borrow().used as usize;
        let room = self.limit.saturating_sub(used);
        let most = tokens.len().min(room);

        let count = self.array.borrow_mut().locked().peek(&mut tokens[..most]);
        Ok((NonZero::new(count).ok_or(Error::Tokens)?, room))
    }

    fn commit(&mut self, _tokens: &[u32], _frags: &[TestFrag]) {
        unreachable!("there are only runs")
    }

    fn commit_all(&mut self, _tokens: &[u32], _frags: Frags<'a>) {
        unreachable!("there are only runs")
    }

    fn room(&mut self, run: &Run) -> usize {
        let held = self.array.borrow_mut().locked().held(run.token);
        let used = self.array.borrow().used as usize;

        match held == Some(wrapper::held(run)) {
            true => self.limit.saturating_sub(used),
            false => 0,
        }
    }

    fn commit_runs(&mut self, runs: &[Told], frags: &[TestFrag]) {
        for frag in frags {
            self.buffers.get(frag.buffer);
        }
        self.commit(runs, frags);
    }

    fn commit_all_runs(&mut self, runs: &[Told], frags: Frags<'a>) {
        match frags.moved {
            // The packet's own become the tokens'.
            Some(moved) => {
                moved.set(true);
                frags
                    .frags
                    .iter()
                    .for_each(|frag| self.buffers.get(frag.buffer));
                self.commit(runs, frags.frags);
            }
            None => self.commit_runs(runs, frags.frags),
        }
    }
}

/// A packet: linear bytes, and frags.
#[derive(Clone, Debug)]
struct Packet {
    linear: usize,
    frags: Vec<TestFrag>,
}

impl Packet {
    fn of(frags: &[TestFrag]) -> Self {
        Self {
            linear: 0,
            frags: frags.to_vec(),
        }
    }

    fn len(&self) -> usize {
        self.linear + self.frags.iter().map(|frag| frag.len).sum::<usize>()
    }
}

/// A call: packets one after the other, from a place in the first on. Returns how many bytes, as TCP does.
fn receive(
    packets: &[Packet],
    (offset, len): (usize, usize),
    reader: &mut TestReader,
    socket: &mut Socket<'_>,
    eat: bool,
) -> Result<usize, Error> {
    let (mut skip, mut left, mut copied) = (offset, len, 0);

    for packet in packets {
        while skip < packet.len() && left != 0 {
            let used = (packet.len() - skip).min(left);
            let moved = Cell::new(false);
            let whole = eat && skip == 0 && used == packet.len();
            let part = Part {
                readable: false,
                may_be_revoked: false,
                linear: &vec![0; packet.linear],
                frags: Frags {
                    frags: &packet.frags,
                    moved: whole.then_some(&moved),
                },
            };
            let window = Window::new(skip, used);
            match cmsg::pass([part].into_iter(), window, reader, socket) {
                Err(error) if copied == 0 => return Err(error),
                Err(_) => return Ok(copied),
                Ok(passed) => {
                    assert!(passed <= used && passed != 0);
                    assert!(!moved.get() || passed == used, "frags without references");
                    skip += passed;
                    left -= passed;
                    copied += passed;
                }
            }
        }
        skip = skip.saturating_sub(packet.len());
    }
    Ok(copied)
}

/// The messages of such a call, and what their tokens stand for: taken from the frags one by one.
fn expected(
    packets: &[Packet],
    (offset, len): (usize, usize),
    mut room: usize,
    limit: usize,
) -> Vec<(Message, Option<(usize, u32)>)> {
    let mut told: Vec<(Message, Option<(usize, u32)>)> = Vec::new();
    let mut last: Option<TestFrag> = None;
    let (mut position, mut buffers) = (0, 0);
    let cut = |position: usize, size: usize| {
        let start = offset.clamp(position, position + size);
        let end = (offset + len).clamp(start, position + size);
        (start - position, end - start)
    };

    for packet in packets {
        let (_, linear) = cut(position, packet.linear);
        position += packet.linear;
        if linear != 0 {
            if room == 0 {
                return told;
            }
            room -= 1;
            last = None;
            let message = Message {
                dmabuf_id: 0,
                offset: 0,
                len: linear,
            };
            told.push((message, None));
        }
        for frag in &packet.frags {
            let (skip, len) = cut(position, frag.len);
            position += frag.len;
            if len == 0 {
                continue;
            }
            let piece = TestFrag {
                buffer: frag.buffer,
                offset: frag.offset + skip,
                len,
            };
            if buffers == limit {
                return told;
            }
            match (told.last_mut(), last) {
                (Some((message, Some((_, count)))), Some(before))
                    if piece.goes_on(&before) && *count < RUN_MAX =>
                {
                    message.len += len;
                    *count += 1;
                }
                _ if room == 0 => return told,
                _ => {
                    let place = piece.place().expect("it is in device memory");
                    let message = Message {
                        dmabuf_id: place.dmabuf_id,
                        offset: place.offset,
                        len,
                    };
                    room -= 1;
                    told.push((message, Some((piece.buffer, 1))));
                }
            }
            buffers += 1;
            last = Some(piece);
        }
    }
    told
}

/// The array is as it has to be, and empty once its first tokens were returned.
fn assert_all_come_back(socket: &Socket<'_>, tokens: u32) {
    socket.array.borrow().check();
    for token in BASE..BASE + tokens {
        socket.give_back(token);
    }
    assert_eq!(socket.array.borrow().used, 0);
}

/// Makes a call, checks what came of it, and returns all tokens.
fn check(packets: &[Packet], window: (usize, usize), room: usize, limit: usize, eat: bool) {
    let context = || format!("{packets:?} {window:?} {room} {limit} {eat}");
    let buffers = Buffers::new();
    let mut socket = Socket::new(&buffers, limit);
    let mut reader = TestReader::new(room);
    let result = receive(packets, window, &mut reader, &mut socket, eat);
    let expected = expected(packets, window, room, limit);

    let messages: Vec<_> = expected.iter().map(|&(message, _)| message).collect();
    assert_eq!(reader.messages, messages, "{}", context());
    let bytes: usize = messages.iter().map(|message| message.len).sum();
    assert_eq!(result.unwrap_or(0), bytes, "{}", context());

    socket.array.borrow().check();
    for (&token, (_, stands_for)) in reader.tokens.iter().zip(&expected) {
        let held = stands_for.map(|(buffer, count)| Held {
            netmem: wrapper::netmem(buffer),
            count,
        });
        assert_eq!(
            socket.array.borrow_mut().locked().held(token),
            held,
            "{}",
            context()
        );
    }
    for &token in reader.tokens.iter().rev().filter(|&&token| token != 0) {
        assert!(socket.give_back(token).is_some());
    }
    assert_eq!(socket.array.borrow().used, 0, "{}", context());
    assert_eq!(buffers.counts(), [0; BUFFERS], "{}", context());
}

fn full(buffers: impl IntoIterator<Item = usize>) -> Packet {
    let frags: Vec<_> = buffers.into_iter().map(TestFrag::full).collect();
    Packet::of(&frags)
}

#[test]
fn one_message_for_a_run() {
    let buffers = Buffers::new();
    let mut socket = Socket::new(&buffers, 1000);
    let mut reader = TestReader::new(10);
    let packets = [full(3..10), full(10..20), full(30..31)];

    let bytes = receive(&packets, (0, 1000), &mut reader, &mut socket, true);
    assert_eq!(bytes, Ok(18 * SIZE));
    assert_eq!(reader.tokens, [BASE, BASE + 1]);
    assert_eq!(reader.messages[0].len, 17 * SIZE);
    assert_eq!(socket.give_back(BASE), Some(17));
    assert_eq!(socket.give_back(BASE), None);
    assert_eq!(socket.give_back(BASE + 1), Some(1));
}

#[test]
fn each_window_of_short_packets() {
    let frag = |buffer, offset, len| TestFrag {
        buffer,
        offset,
        len,
    };
    let frags = [
        frag(0, 0, 4),
        frag(1, 0, 4),
        frag(1, 0, 3),
        frag(2, 0, 2),
        frag(2, 1, 3),
        frag(3, 0, 0),
    ];
    each(&frags, bound(4, 2), |frags| {
        for split in 0..=frags.len() {
            let (first, second) = frags.split_at(split);
            let mut packets = [Packet::of(first), Packet::of(second)];
            for linear in [0, 2] {
                packets[1].linear = linear;
                for window in [(0, 100), (2, 9), (4, 4), (1, 3)] {
                    for (room, limit) in [(9, 9), (1, 9), (2, 2), (9, 3)] {
                        check(&packets, window, room, limit, window.0 == 0);
                    }
                }
            }
        }
    });
}

/// Buffers that follow each other as numbers, but are of two areas.
#[test]
fn no_run_across_areas() {
    check(&[full(SECOND - 3..SECOND + 3)], (0, 100), 9, 99, true);
    check(
        &[full(SECOND - 3..SECOND), full(SECOND..SECOND + 3)],
        (0, 100),
        9,
        99,
        true,
    );
}

#[test]
fn a_run_ends_where_it_is_long_enough() {
    for at_a_time in [1, 5, BATCH - 1, BATCH, BATCH + 1, 90] {
        let packets: Vec<_> = (0..90)
            .step_by(at_a_time)
            .map(|from| full(from..90.min(from + at_a_time)))
            .collect();
        for limit in [1, 63, 64, 65, 89, 1000] {
            for room in [1, 2, 9] {
                check(&packets, (0, 1000), room, limit, true);
                check(&packets, (2, 300), room, limit, false);
            }
        }
    }
}

/// A message that cannot be changed any more: the call ends, and nothing of the packet was taken.
#[test]
fn memory_of_messages_that_goes() {
    for changes in 0..4 {
        let buffers = Buffers::new();
        let mut socket = Socket::new(&buffers, 1000);
        let mut reader = TestReader::new(9);
        reader.changes = changes;
        let packets: Vec<_> = (0..6).map(|i| full(2 * i..2 * i + 2)).collect();

        let bytes = receive(&packets, (0, 1000), &mut reader, &mut socket, true);
        assert_eq!(bytes, Ok(2 * SIZE * (1 + changes)));
        assert_eq!(reader.messages[0].len, 2 * SIZE * (1 + changes));
        assert_eq!(socket.give_back(BASE), Some(2 * (1 + changes as u32)));
        assert_eq!(buffers.counts(), [0; BUFFERS]);
    }
}

/// Another thread returns tokens that this call has told, or guesses those that it is about to tell.
#[test]
fn tokens_that_come_back_too_early() {
    for when in 0..4 {
        let buffers = Buffers::new();
        let mut socket = Socket::new(&buffers, 1000);
        let mut reader = TestReader::new(9);
        socket.returned_early = Some(when);
        let packets: Vec<_> = (0..4).map(|i| full(2 * i..2 * i + 2)).collect();

        let bytes = receive(&packets, (0, 1000), &mut reader, &mut socket, true);
        assert_eq!(bytes, Ok(8 * SIZE));
        assert_all_come_back(&socket, 9);
        assert_eq!(buffers.counts(), [0; BUFFERS], "{when}");
    }
}

/// A run goes on, and then there are others in the same packet: its token may be free by then, but is not theirs.
#[test]
fn tokens_that_come_back_before_others_are_looked_for() {
    for limit in [1, 2, 3, 1000] {
        let buffers = Buffers::new();
        let mut socket = Socket::new(&buffers, limit);
        let mut reader = TestReader::new(90);
        socket.returned_before = true;
        let packets = [full(0..2), full([2, 3, 9, 10, 20]), full([21, 40, 50])];

        let bytes = receive(&packets, (0, 1000), &mut reader, &mut socket, true);
        let passed = bytes.unwrap_or(0);
        assert!(passed == 10 * SIZE || limit < 3, "{passed} bytes, {limit}");
        assert_all_come_back(&socket, 400);
        assert_eq!(buffers.counts(), [0; BUFFERS], "{limit}");
    }
}

/// Between two packets of a call, the token comes back: what follows has a message of its own.
#[test]
fn a_run_whose_token_is_gone_does_not_go_on() {
    let buffers = Buffers::new();
    let mut socket = Socket::new(&buffers, 1000);
    let mut reader = TestReader::new(9);

    receive(&[full(0..2)], (0, 100), &mut reader, &mut socket, true).unwrap();
    socket.give_back(BASE);
    receive(&[full(2..4)], (0, 100), &mut reader, &mut socket, true).unwrap();
    assert_eq!(reader.messages.len(), 2);
    assert_eq!(socket.give_back(BASE), Some(2));
    assert_eq!(buffers.counts(), [0; BUFFERS]);
}

fn frag() -> impl Strategy<Value = TestFrag> {
    (0..BUFFERS, 0..SIZE, 0..=SIZE).prop_map(|(buffer, offset, len)| TestFrag {
        buffer,
        offset,
        len: len.min(SIZE - offset),
    })
}

/// Frags most of which follow each other.
fn frags() -> impl Strategy<Value = Vec<TestFrag>> {
    let run = prop_oneof![
        1 => vec(frag(), 0..3),
        3 => (0..BUFFERS - 40, 0..40usize)
            .prop_map(|(from, len)| (from..from + len).map(TestFrag::full).collect()),
    ];
    vec(run, 0..5).prop_map(|runs| runs.concat())
}

proptest! {
    #[test]
    fn any_packets(
        frags in frags(),
        splits in vec(0usize..24, 0..20),
        linear in vec(prop_oneof![4 => Just(0usize), 1 => 0..5usize], 21),
        window in (0usize..60, 0usize..900),
        room in 0usize..30,
        limit in 0usize..150,
        eat in any::<bool>(),
    ) {
        let mut rest = &frags[..];
        let mut packets = Vec::new();
        for split in splits {
            let (packet, after) = rest.split_at(split.min(rest.len()));
            packets.push(Packet::of(packet));
            rest = after;
        }
        packets.push(Packet::of(rest));
        for (packet, linear) in packets.iter_mut().zip(linear) {
            packet.linear = linear;
        }
        check(&packets, window, room, limit, eat);
    }
}
