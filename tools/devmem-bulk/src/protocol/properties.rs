// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What holds of any frames, and of any requests of two ends that keep to the protocol.

use proptest::array::uniform16;
use proptest::collection::vec;
use proptest::prelude::*;

use super::keys::Grant;
use super::keys::Key;
use super::keys::Keys;
use super::keys::Rights;
use super::machine::End;
use super::machine::Event;
use super::machine::Limits;
use super::machine::Machine;
use super::machine::Source;
use super::machine::Target;
use super::wire::Fault;
use super::wire::Frame;
use super::wire::Hello;
use super::wire::LONGEST;
use super::wire::NOTE;
use super::wire::STATUS;
use super::wire::Status;

fn status() -> impl Strategy<Value = Status> {
    prop::sample::select(&STATUS[..])
}

fn frame() -> impl Strategy<Value = Frame> {
    let request = (
        any::<u64>(),
        uniform16(any::<u8>()),
        any::<u64>(),
        any::<u64>(),
    );
    let data = (any::<u64>(), any::<u16>(), any::<u32>());
    let hello = (
        any::<u16>(),
        any::<u16>(),
        any::<u16>(),
        any::<u32>(),
        uniform16(any::<u8>()),
    );
    prop_oneof![
        hello.prop_map(
            |(lowest, highest, lanes, requests, host)| Frame::Hello(Hello {
                lowest,
                highest,
                lanes,
                requests,
                host
            })
        ),
        (any::<u16>(), any::<u64>()).prop_map(|(lane, limit)| Frame::Credit { lane, limit }),
        request.prop_map(|(id, key, offset, len)| Frame::Put {
            id,
            key: Key(key),
            offset,
            len
        }),
        request.prop_map(|(id, key, offset, len)| Frame::Get {
            id,
            key: Key(key),
            offset,
            len
        }),
        data.prop_map(|(id, lane, len)| Frame::PutData { id, lane, len }),
        data.prop_map(|(id, lane, len)| Frame::GetData { id, lane, len }),
        (any::<u64>(), any::<u8>()).prop_map(|(id, byte)| Frame::Notify {
            id,
            note: [byte; NOTE]
        }),
        any::<u64>().prop_map(|id| Frame::Cancel { id }),
        (any::<u64>(), status()).prop_map(|(id, status)| Frame::Done { id, status }),
        Just(Frame::Bye),
        Just(Frame::Error(Fault::Overrun)),
    ]
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn a_frame_is_read_as_it_was_written(frame in frame(), rest in vec(any::<u8>(), 0..8)) {
        let bytes = encoded(&frame);
        for part in 0..bytes.len() {
            prop_assert_eq!(Frame::decode(&bytes[..part]), Ok(None));
        }
        let all = [&bytes[..], &rest].concat();
        prop_assert_eq!(Frame::decode(&all), Ok(Some((frame, bytes.len()))));
    }

    /// There are no two ways to write a frame.
    #[test]
    fn what_is_read_would_be_written_so(bytes in vec(any::<u8>(), LONGEST)) {
        for kind in 0..13_u8 {
            for len in [8, 16, 24, 40, 48, 80] {
                let mut bytes = bytes.clone();
                bytes[..4].copy_from_slice(&[kind, 0, len, 0]);
                if bytes[0] % 2 == 0 {
                    bytes[5..8].fill(0);
                }
                if let Ok(Some((frame, len))) = Frame::decode(&bytes) {
                    prop_assert_eq!(encoded(&frame), &bytes[..len]);
                }
            }
        }
    }

    /// However the bytes come, and whatever they are, an end makes the same of them.
    #[test]
    fn it_does_not_matter_how_bytes_come(
        frames in vec(frame(), 0..12),
        hello in any::<bool>(),
        cuts in vec(1..40_usize, 1..20),
    ) {
        let mut bytes = Vec::new();
        if hello {
            bytes = Machine::new(Limits::default()).output().to_vec();
        }
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        let keys = Keys::<()>::new();
        let mut whole = Machine::new(Limits::default());
        let mut parts = whole.clone();
        whole.input(&bytes, &keys);
        let mut left = &bytes[..];
        for cut in cuts.iter().cycle() {
            let (first, rest) = left.split_at((*cut).min(left.len()));
            parts.input(first, &keys);
            left = rest;
            if left.is_empty() {
                break;
            }
        }
        prop_assert_eq!(whole.end(), parts.end());
        prop_assert_eq!(whole.output(), parts.output());
    }

    /// Anything that two ends ask for comes to its end, and all of it is where it belongs.
    #[test]
    fn whatever_is_asked_for_is_done(
        requests in vec((any::<bool>(), 0..4_u8, 0..60_000_u64, 1..60_000_u64), 1..40),
        window in 8192..40_000_u64,
        lanes in 1..4_u16,
        takes in 1..5_u32,
        seed in any::<u64>(),
    ) {
        run(&requests, &Limits { lanes, window, requests: takes, segment: 5000, ..Limits::default() }, seed);
    }
}

const MEMORY: u64 = 120_000;
const KEY: Key = Key([1; 16]);

/// A byte of the memory at one end.
fn byte(who: usize, at: u64) -> u8 {
    (at.wrapping_mul(31) >> 3).to_le_bytes()[0] ^ [0, 0x55][who]
}

struct Driven {
    machine: Machine,
    keys: Keys<()>,
    asked: Vec<(u64, u8, u64, u64)>,
    done: usize,
    notes: usize,
    /// Bytes on their way to it.
    control: Vec<u8>,
    lanes: Vec<Vec<u8>>,
}

fn run(requests: &[(bool, u8, u64, u64)], limits: &Limits, mut seed: u64) {
    let mut ends = [(); 2].map(|()| {
        let mut keys = Keys::new();
        let grant = Grant {
            memory: (),
            offset: 0,
            len: MEMORY,
            rights: Rights::ReadWrite,
            expiry: None,
        };
        keys.add(KEY, grant).unwrap();
        Driven {
            machine: Machine::new(limits.clone()),
            keys,
            asked: Vec::new(),
            done: 0,
            notes: 0,
            control: Vec::new(),
            lanes: vec![Vec::new(); limits.lanes.into()],
        }
    });
    let mut todo = requests.to_vec();
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed = seed.max(1);
        usize::try_from(seed >> 33).unwrap() % below.max(1)
    };
    let mut idle = 0;
    while ends.iter().any(|end| end.machine.end().is_none()) {
        idle += 1;
        assert!(idle < 200_000, "it does not end");
        let who = random(2);
        if let Some(&(first, what, offset, len)) = todo.last() {
            if usize::from(first) == who {
                let machine = &mut ends[who].machine;
                let asked = match what {
                    0 => machine.notify([7; NOTE]),
                    1 => machine.get(KEY, offset, len),
                    _ => machine.put(KEY, offset, len),
                };
                if let Ok(id) = asked {
                    ends[who].asked.push((id, what, offset, len));
                    todo.pop();
                }
            }
        } else {
            ends[who].machine.close();
        }
        let [a, b] = &mut ends;
        let (here, there) = if who == 0 { (a, b) } else { (b, a) };
        let said = random(here.machine.output().len() + 1);
        there.control.extend(&here.machine.output()[..said]);
        here.machine.said(said);
        if let Some(mut out) = here.machine.next_segment(|_| true, &here.keys) {
            out.shorten(u32::try_from(random(8000)).unwrap());
            let (at, of) = match out.source {
                // Bytes of a put are those at the same place here.
                Source::Own { id, at } => {
                    let asked = here.asked.iter().find(|asked| asked.0 == id).unwrap();
                    (asked.2 + at, who)
                }
                Source::Memory { offset, .. } => (offset, who),
            };
            let bytes = (at..at + u64::from(out.len)).map(|at| byte(of, at));
            there.lanes[usize::from(out.lane)].extend(bytes);
            here.machine.announce(out);
        }
        let heard: Vec<u8> = here
            .control
            .drain(..random(here.control.len() + 1))
            .collect();
        here.machine.input(&heard, &here.keys);
        for lane in 0..limits.lanes {
            let coming = &mut here.lanes[usize::from(lane)];
            // What was announced before it landed, and what landed before it was announced.
            let new = random(coming.len() + 1);
            let Some(mut held) = here.machine.landed_and_held(lane, new) else {
                continue;
            };
            while let Some(placement) = here.machine.assign(lane, held, &here.keys) {
                held -= placement.len;
                let bytes = coming.drain(..usize::try_from(placement.len).unwrap());
                let from = match placement.target {
                    Target::Own { id, at } => {
                        here.asked.iter().find(|asked| asked.0 == id).unwrap().2 + at
                    }
                    Target::Memory { offset, .. } => offset,
                    Target::Nowhere => panic!("all of it is wanted"),
                };
                assert!(bytes.eq((from..from + placement.len).map(|at| byte(1 - who, at))));
                let len = placement.len;
                here.machine.placed(placement, true);
                here.machine.released(lane, len);
                if held == 0 {
                    break;
                }
            }
        }
        while let Some(event) = here.machine.event() {
            match event {
                Event::Done { result, .. } => {
                    assert_eq!(result, Ok(()));
                    here.done += 1;
                }
                Event::Note(_) => here.notes += 1,
                Event::Closing => (),
                Event::Over(end) => assert_eq!(end, End::Orderly),
            }
        }
    }
    for (who, end) in ends.iter().enumerate() {
        assert_eq!(end.done, end.asked.len());
        let notes = ends[1 - who].asked.iter().filter(|asked| asked.1 == 0);
        assert_eq!(end.notes, notes.count());
    }
}

impl Machine {
    /// Has up to `new` more bytes land than are held, and tells how many are held then, if any.
    fn landed_and_held(&mut self, lane: u16, new: usize) -> Option<u64> {
        let held = self.held(lane);
        let new = u64::try_from(new).unwrap();
        if new > held {
            self.landed(lane, new - held);
        }
        let held = self.held(lane);
        (held > 0).then_some(held)
    }
}
