// SPDX-License-Identifier: GPL-2.0 OR MIT

//! All that can happen between two ends that do a few things, in whatever order frames and bytes arrive.
//!
//! A world is two machines, what is on its way between them, and what they are still to do. From each one every step is
//! taken that somebody could take next. What has been seen is told by a hash of 128 bits.

#![expect(
    clippy::cast_possible_truncation,
    reason = "nothing in a world has more than a few bytes"
)]

use std::collections::HashSet;
use std::collections::VecDeque;
use std::hash::Hash;

use siphasher::sip128::Hasher128;
use siphasher::sip128::SipHasher13;

use super::keys::Grant;
use super::keys::Key;
use super::keys::Keys;
use super::keys::Rights;
use super::machine::End;
use super::machine::Event;
use super::machine::Failure;
use super::machine::Limits;
use super::machine::Machine;
use super::machine::Placement;
use super::machine::Refused;
use super::machine::Source;
use super::machine::Target;
use super::wire::Frame;
use super::wire::NOTE;
use super::wire::Status;

const WINDOW: u64 = 4;
const LEAST: u32 = 2;
const MEMORY: usize = 6;
const KEY: Key = Key([1; 16]);
const WRONG: Key = Key([2; 16]);

/// What an end does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Op {
    Put(Key, u64, u64),
    Get(Key, u64, u64),
    Note,
    /// Gives up its request of this number.
    Cancel(u64),
    /// Takes its own key back.
    Revoke,
    /// Its memory cannot be written any more.
    Break,
    /// Its memory cannot be read any more.
    Hide,
    Close,
    /// Its process is killed.
    Die,
}

/// A byte, by where it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Byte {
    /// Of a put.
    Own { id: u64, at: u64 },
    /// Of memory.
    Memory(u64),
}

/// What a request was, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Request {
    op: Op,
    result: Option<Result<(), Failure>>,
}

#[derive(Clone, Debug, Hash)]
struct Side {
    machine: Machine,
    keys: Keys<()>,
    broken: bool,
    hidden: bool,
    dead: bool,
    todo: VecDeque<Op>,
    requests: Vec<Request>,
    /// What came of its gets, byte by byte.
    got: Vec<Vec<Option<Byte>>>,
    memory: [Option<Byte>; MEMORY],
    notes: usize,
    /// Frames on their way to it.
    control: VecDeque<u8>,
    /// Bytes on their way to it, and those that have landed.
    coming: Vec<VecDeque<Byte>>,
    landed: Vec<VecDeque<Byte>>,
    /// What is being put in place.
    placing: Option<(u16, Vec<Byte>, Held)>,
}

/// A placement, which cannot be cloned but in a world that is.
#[derive(Debug, Hash)]
struct Held(Placement<()>);

impl Clone for Held {
    fn clone(&self) -> Self {
        Self(self.0.copied())
    }
}

#[derive(Clone, Debug, Hash)]
struct World([Side; 2]);

#[derive(Clone, Copy, Debug)]
enum Step {
    Do(usize),
    Hear(usize),
    Land(usize, u16),
    Send(usize),
    Assign(usize, u16),
    Place(usize),
}

impl Side {
    fn new(lanes: u16, requests: u32, todo: &[Op]) -> Self {
        let mut keys = Keys::new();
        let grant = Grant {
            memory: (),
            offset: 0,
            len: MEMORY as u64,
            rights: Rights::ReadWrite,
            expiry: None,
        };
        keys.add(KEY, grant).unwrap();
        Self {
            machine: Machine::with_least(
                Limits {
                    lanes,
                    window: WINDOW,
                    requests,
                    segment: LEAST,
                    host: [0; 16],
                },
                LEAST,
            ),
            keys,
            broken: false,
            hidden: false,
            dead: false,
            todo: todo.iter().copied().collect(),
            requests: Vec::new(),
            got: Vec::new(),
            memory: [None; MEMORY],
            notes: 0,
            control: VecDeque::new(),
            coming: vec![VecDeque::new(); lanes.into()],
            landed: vec![VecDeque::new(); lanes.into()],
            placing: None,
        }
    }

    /// Does the next thing; `None` if that has to wait.
    fn next(&mut self) -> Option<()> {
        let op = *self.todo.front()?;
        let asked = match op {
            Op::Put(key, offset, len) => self.machine.put(key, offset, len),
            Op::Get(key, offset, len) => self.machine.get(key, offset, len),
            // It says which one it is.
            Op::Note => {
                let number = u8::try_from(self.requests.len()).unwrap();
                self.machine.notify([number; NOTE])
            }
            other => {
                self.todo.pop_front();
                match other {
                    Op::Cancel(id) => self.machine.cancel(id),
                    Op::Revoke => drop(self.keys.revoke(KEY)),
                    Op::Break => self.broken = true,
                    Op::Hide => self.hidden = true,
                    Op::Close => self.machine.close(),
                    _ => self.dead = true,
                }
                return Some(());
            }
        };
        let result = match asked {
            Ok(id) => {
                assert_eq!(id, self.requests.len() as u64);
                None
            }
            Err(Refused::Busy) => return None,
            Err(Refused::Over(end)) => Some(Err(Failure::Over(end))),
            Err(other) => panic!("{op:?}: {other:?}"),
        };
        self.todo.pop_front();
        self.requests.push(Request { op, result });
        let len = match op {
            Op::Get(_, _, len) => len,
            _ => 0,
        };
        self.got.push(vec![None; len as usize]);
        Some(())
    }

    /// Puts what was assigned where it belongs.
    fn place(&mut self) -> Option<()> {
        let (lane, bytes, Held(placement)) = self.placing.take()?;
        let len = bytes.len() as u64;
        let mut well = true;
        match placement.target {
            Target::Memory { offset, .. } if !self.broken => {
                for (at, byte) in (offset..).zip(bytes) {
                    self.memory[at as usize] = Some(byte);
                }
            }
            Target::Own { id, at } if !self.broken => {
                for (at, byte) in (at..).zip(bytes) {
                    self.got[id as usize][at as usize] = Some(byte);
                }
            }
            Target::Nowhere => (),
            _ => well = false,
        }
        self.machine.placed(placement, well);
        self.machine.released(lane, len);
        Some(())
    }
}

impl World {
    /// Whether a step may change something. Looking costs less than to clone a world for it.
    fn may(&self, step: Step) -> bool {
        let (Step::Do(who)
        | Step::Hear(who)
        | Step::Land(who, _)
        | Step::Send(who)
        | Step::Assign(who, _)
        | Step::Place(who)) = step;
        let side = &self.0[who];
        !side.dead
            && match step {
                Step::Do(_) => !side.todo.is_empty(),
                Step::Hear(_) => !side.control.is_empty() || self.0[1 - who].dead,
                Step::Land(_, lane) => !side.coming[usize::from(lane)].is_empty(),
                Step::Send(_) => side.machine.has_turns(),
                Step::Assign(_, lane) => {
                    side.placing.is_none() && !side.landed[usize::from(lane)].is_empty()
                }
                Step::Place(_) => side.placing.is_some(),
            }
    }

    fn step(&mut self, step: Step) -> Option<()> {
        match step {
            Step::Do(who) => {
                self.0[who].next()?;
                if self.0[who].dead {
                    // What was under way gets there, and then the end of the connection does.
                    self.0[who].control.clear();
                }
            }
            Step::Hear(who) => {
                let [a, b] = &mut self.0;
                let (side, other) = if who == 0 { (a, b) } else { (b, a) };
                let bytes = side.control.make_contiguous();
                match Frame::decode(bytes).unwrap() {
                    Some((_, len)) => {
                        let frame: Vec<u8> = side.control.drain(..len).collect();
                        side.machine.input(&frame, &side.keys);
                    }
                    None if other.dead && side.machine.end().is_none() => side.machine.gone(),
                    None => return None,
                }
            }
            Step::Land(who, lane) => {
                let side = &mut self.0[who];
                let lane_at = usize::from(lane);
                let byte = side.coming[lane_at].pop_front()?;
                side.landed[lane_at].push_back(byte);
                side.machine.landed(lane, 1);
            }
            Step::Send(who) => {
                let side = &mut self.0[who];
                let Some(out) = side.machine.next_segment(|_| true, &side.keys) else {
                    // It may have found that there is nothing to be sent any more.
                    let told = !side.machine.output().is_empty();
                    self.talk();
                    return told.then_some(());
                };
                if side.hidden {
                    side.machine.unreadable(out);
                    self.talk();
                    return Some(());
                }
                let bytes = (0..u64::from(out.len)).map(|i| match out.source {
                    Source::Own { id, at } => Byte::Own { id, at: at + i },
                    Source::Memory { offset, .. } => Byte::Memory(offset + i),
                });
                if let Source::Memory { .. } = out.source {
                    assert!(!side.keys.is_empty(), "read by a key that was taken back");
                }
                self.0[1 - who].coming[usize::from(out.lane)].extend(bytes);
                self.0[who].machine.announce(out);
            }
            Step::Assign(who, lane) => {
                let side = &mut self.0[who];
                if side.placing.is_some() {
                    return None;
                }
                let placement = side.machine.assign(lane, u64::MAX, &side.keys)?;
                if let Target::Memory { .. } = placement.target {
                    assert!(
                        !side.keys.is_empty(),
                        "written by a key that was taken back"
                    );
                }
                let landed = &mut side.landed[usize::from(lane)];
                let bytes = landed.drain(..placement.len as usize).collect();
                side.placing = Some((lane, bytes, Held(placement)));
            }
            Step::Place(who) => self.0[who].place()?,
        }
        self.talk();
        Some(())
    }

    /// Frames set out, and programs hear of what happened.
    fn talk(&mut self) {
        for who in 0..2 {
            let output = self.0[who].machine.output().to_vec();
            self.0[who].machine.said(output.len());
            if !self.0[who].dead && !self.0[1 - who].dead {
                self.0[1 - who].control.extend(output);
            }
            while let Some(event) = self.0[who].machine.event() {
                self.happened(who, event);
            }
        }
        for who in 0..2 {
            let output = self.0[who].machine.output().to_vec();
            self.0[who].machine.said(output.len());
            if !self.0[who].dead && !self.0[1 - who].dead {
                self.0[1 - who].control.extend(output);
            }
        }
    }

    fn happened(&mut self, who: usize, event: Event) {
        match event {
            Event::Done { id, result } => {
                let request = &mut self.0[who].requests[id as usize];
                assert_eq!(request.result, None, "it ended twice");
                request.result = Some(result);
                let op = request.op;
                if result.is_ok() {
                    self.assert_placed(who, id, op);
                }
            }
            Event::Note([number, ..]) => {
                let before = self.0[1 - who].requests[..usize::from(number)].iter();
                for (id, request) in before.enumerate().rev() {
                    match request.op {
                        Op::Note => break,
                        Op::Put(..) => self.assert_placed(1 - who, id as u64, request.op),
                        _ => (),
                    }
                }
                self.0[who].notes += 1;
            }
            Event::Closing => (),
            Event::Over(end) => assert!(
                matches!(end, End::Orderly) || (end == End::Gone && self.0[1 - who].dead),
                "{end:?}"
            ),
        }
    }

    /// All bytes of a request are where they belong.
    fn assert_placed(&self, who: usize, id: u64, op: Op) {
        match op {
            Op::Put(_, offset, len) => {
                for at in 0..len {
                    let there = self.0[1 - who].memory[(offset + at) as usize];
                    assert_eq!(there, Some(Byte::Own { id, at }));
                }
            }
            Op::Get(_, offset, _) => {
                for (at, byte) in self.0[who].got[id as usize].iter().enumerate() {
                    assert_eq!(*byte, Some(Byte::Memory(offset + at as u64)));
                }
            }
            _ => (),
        }
    }

    /// Nobody can do anything any more.
    fn assert_ended(&self) {
        for (side, other) in [(&self.0[0], &self.0[1]), (&self.0[1], &self.0[0])] {
            if side.dead {
                continue;
            }
            assert!(side.todo.is_empty(), "it waits for ever: {self:?}");
            for request in &side.requests {
                assert!(
                    request.result.is_some(),
                    "{request:?} does not end: {self:?}"
                );
            }
            let end = if other.dead { End::Gone } else { End::Orderly };
            let ended = side.machine.end();
            assert!(
                ended == Some(end) || (other.dead && ended == Some(End::Orderly)),
                "{ended:?}: {self:?}"
            );
        }
    }
}

/// Goes through all worlds; returns how many there are.
fn explore(lanes: u16, requests: u32, a: &[Op], b: &[Op]) -> usize {
    let mut steps = vec![];
    for who in 0..2 {
        steps.extend([
            Step::Do(who),
            Step::Hear(who),
            Step::Send(who),
            Step::Place(who),
        ]);
        for lane in 0..lanes {
            steps.extend([Step::Land(who, lane), Step::Assign(who, lane)]);
        }
    }
    let mut first = World([a, b].map(|todo| Side::new(lanes, requests, todo)));
    first.talk();
    let mut seen = HashSet::from([hash(&first)]);
    let mut left = vec![first];
    while let Some(world) = left.pop() {
        let mut last = true;
        for &step in steps.iter().filter(|&&step| world.may(step)) {
            let mut next = world.clone();
            if next.step(step).is_none() {
                continue;
            }
            last = false;
            if seen.insert(hash(&next)) {
                left.push(next);
            }
        }
        if last {
            world.assert_ended();
        }
    }
    seen.len()
}

fn hash(world: &World) -> u128 {
    let mut hasher = SipHasher13::new();
    world.hash(&mut hasher);
    hasher.finish128().as_u128()
}

use Op::*;

#[test]
fn a_put_that_takes_more_than_there_is_credit_for() {
    let worlds = explore(1, 1, &[Put(KEY, 0, 5), Close], &[Close]);
    assert!(worlds > 100, "{worlds}");
}

#[test]
fn puts_and_gets_both_ways() {
    explore(
        1,
        2,
        &[Put(KEY, 0, 3), Get(KEY, 3, 2), Close],
        &[Get(KEY, 3, 3), Close],
    );
}

#[test]
fn a_put_by_two_lanes() {
    explore(2, 1, &[Put(KEY, 1, 5), Close], &[Close]);
}

#[test]
fn a_get_by_two_lanes() {
    explore(2, 1, &[Get(KEY, 1, 5), Close], &[Close]);
}

#[test]
fn a_key_taken_back_while_it_is_used() {
    for op in [Put(KEY, 0, 5), Get(KEY, 0, 5)] {
        explore(1, 2, &[op, Close], &[Revoke, Close]);
    }
    explore(
        1,
        2,
        &[Put(KEY, 0, 3), Get(KEY, 3, 3), Close],
        &[Revoke, Close],
    );
    // Those that wait for their turn end, too.
    explore(
        1,
        2,
        &[Get(KEY, 0, 3), Get(KEY, 3, 3), Close],
        &[Revoke, Close],
    );
}

#[test]
fn memory_that_cannot_be_written() {
    explore(1, 2, &[Put(KEY, 0, 5), Close], &[Break, Close]);
    explore(1, 2, &[Get(KEY, 0, 5), Break, Close], &[Close]);
}

#[test]
fn memory_that_cannot_be_read() {
    explore(1, 2, &[Get(KEY, 0, 5), Close], &[Hide, Close]);
    explore(1, 2, &[Put(KEY, 0, 5), Hide, Close], &[Close]);
    explore(1, 2, &[Hide, Put(KEY, 0, 3), Note, Close], &[Close]);
    let both = [Put(KEY, 0, 3), Hide, Cancel(0), Close];
    explore(1, 2, &both, &[Close]);
}

/// What is asked for later is not what cannot be read now.
#[test]
fn what_is_unreadable_ends_and_others_do_not() {
    let status = Err(Failure::Status(Status::Memory));
    let mut world = World([&[Get(KEY, 0, 5), Get(KEY, 0, 2)][..], &[]].map(|t| Side::new(1, 2, t)));
    world.talk();
    world.step(Step::Hear(0));
    while world.step(Step::Hear(1)).is_some() {}
    while world.step(Step::Hear(0)).is_some() {}
    world.step(Step::Do(0));
    world.step(Step::Do(0));
    while world.step(Step::Hear(1)).is_some() {}
    world.0[1].hidden = true;
    world.step(Step::Send(1));
    world.0[1].hidden = false;
    world.step(Step::Send(1));
    while world.step(Step::Hear(0)).is_some() {}
    while world.step(Step::Land(0, 0)).is_some() {}
    while world.step(Step::Assign(0, 0)).is_some() {
        world.step(Step::Place(0));
    }
    let results: Vec<_> = world.0[0].requests.iter().map(|r| r.result).collect();
    assert_eq!(results, [Some(status), Some(Ok(()))]);
}

#[test]
fn requests_that_are_given_up() {
    for op in [Put(KEY, 0, 5), Get(KEY, 0, 5), Put(WRONG, 0, 5)] {
        explore(1, 1, &[op, Cancel(0), Close], &[Close]);
        explore(1, 1, &[op, Cancel(0), Put(KEY, 0, 2), Close], &[Close]);
    }
}

#[test]
fn keys_that_there_are_not() {
    explore(
        1,
        1,
        &[Put(WRONG, 0, 3), Get(WRONG, 0, 3), Put(KEY, 4, 3), Close],
        &[Close],
    );
}

#[test]
fn notes_come_after_what_was_put() {
    explore(
        2,
        3,
        &[Put(KEY, 0, 3), Note, Put(KEY, 3, 2), Close],
        &[Close],
    );
    explore(1, 3, &[Put(KEY, 0, 3), Note, Close], &[Revoke, Close]);
    explore(1, 3, &[Put(WRONG, 0, 3), Note, Note, Close], &[Close]);
    explore(
        1,
        3,
        &[Put(KEY, 0, 3), Note, Cancel(0), Cancel(1), Close],
        &[Close],
    );
}

#[test]
fn an_end_that_dies() {
    for op in [Put(KEY, 0, 5), Get(KEY, 0, 5), Note] {
        explore(1, 1, &[op, Close], &[Die]);
    }
}

/// What the checks above are worth: a note that overtakes is noticed.
#[test]
#[should_panic(expected = "assertion `left == right` failed")]
fn what_is_not_in_place_is_noticed() {
    let world = World([&[Put(KEY, 0, 3)][..], &[]].map(|todo| Side::new(1, 1, todo)));
    world.assert_placed(0, 0, Put(KEY, 0, 3));
}

/// A refused note, and the next one that is not.
#[test]
fn a_note_is_refused_for_its_own_puts() {
    let mut world =
        World([&[Put(WRONG, 0, 3), Note, Note][..], &[]].map(|todo| Side::new(1, 3, todo)));
    world.talk();
    for step in [
        Step::Hear(0),
        Step::Hear(1),
        Step::Do(0),
        Step::Do(0),
        Step::Do(0),
    ] {
        world.step(step);
    }
    while world.step(Step::Hear(1)).is_some() {}
    while world.step(Step::Hear(0)).is_some() {}
    let results: Vec<_> = world.0[0].requests.iter().map(|r| r.result).collect();
    let failed = |status| Some(Err(Failure::Status(status)));
    assert_eq!(
        results,
        [failed(Status::Key), failed(Status::Fenced), Some(Ok(()))]
    );
    assert_eq!(world.0[1].notes, 1);
}
