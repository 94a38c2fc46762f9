// SPDX-License-Identifier: GPL-2.0

//! Makes sequences from a seed.
//!
//! They keep a rough account of what there would be, so that most operations have something to do.
//! It need not be right.

use rand::Rng;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::op::BindingRef;
use crate::op::Buffer;
use crate::op::Choice;
use crate::op::Device;
use crate::op::End;
use crate::op::FLOWS;
use crate::op::Flag;
use crate::op::How;
use crate::op::Ip;
use crate::op::Memory;
use crate::op::OWNERS;
use crate::op::Op;
use crate::op::Range;
use crate::op::TokenRef;
use crate::world::PAGES;

/// Queues that may be bound, and more that are there.
const QUEUES: u32 = 8;
/// Operations of a sequence.
const LENGTH: std::ops::Range<usize> = 100..400;
/// The size of a control message.
const PIECE: u32 = devmem::cmsg::SPACE as u32;
/// The size of what can be sent from.
const SOURCE_SIZE: u64 = 1 << 20;

/// Where choices come from.
#[derive(Debug)]
pub struct Source(ChaCha8Rng);

impl Source {
    /// The choices of a seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number of a range.
    fn number(&mut self, range: std::ops::Range<u32>) -> u32 {
        self.0.random_range(range)
    }

    /// True once in so many times.
    fn once_in(&mut self, times: u32) -> bool {
        self.0.random_ratio(1, times)
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        *list.choose(&mut self.0).expect("something to choose from")
    }

    /// One of a list, by weight.
    fn weighted<T: Copy>(&mut self, list: &[(u32, T)]) -> T {
        list.choose_weighted(&mut self.0, |(weight, _)| *weight)
            .expect("weights")
            .1
    }

    /// A number of bytes up to `most`: small ones, those about page boundaries, and others.
    fn bytes(&mut self, most: u32) -> u32 {
        let bytes = match self.number(0..6) {
            0 => self.number(1..64),
            1 => self.number(1..9) * 4096 + self.number(0..3) - 1,
            2 => self.number(1..2000),
            _ => self.number(1..most + 1),
        };
        bytes.min(most)
    }
}

/// What there would be of a connection.
#[derive(Clone, Copy)]
struct Plan {
    unread: u32,
    held: u32,
    ended: bool,
}

/// What there would be.
struct Account {
    flows: [Option<Plan>; FLOWS as usize],
    owned: [bool; OWNERS as usize],
    /// Bindings that were made.
    made: u8,
    /// Memories that nobody has yet.
    fresh: Vec<Memory>,
    /// Queues that nobody has yet.
    free: Vec<u32>,
}

/// A kind of operation, before its details are chosen.
#[derive(Clone, Copy)]
enum Kind {
    BindRx,
    BindBadly,
    BindTx,
    Unbind,
    Connect,
    Steer,
    Send,
    SendMemory,
    Completions,
    Receive,
    Read,
    Return,
    Set,
    Shutdown,
    Close,
    Reset,
    Fork,
    Kill,
}

const KINDS: &[(u32, Kind)] = &[
    (4, Kind::BindRx),
    (4, Kind::BindBadly),
    (4, Kind::BindTx),
    (3, Kind::Unbind),
    (12, Kind::Connect),
    (8, Kind::Steer),
    (170, Kind::Send),
    (60, Kind::SendMemory),
    (15, Kind::Completions),
    (330, Kind::Receive),
    (20, Kind::Read),
    (220, Kind::Return),
    (40, Kind::Set),
    (5, Kind::Shutdown),
    (8, Kind::Close),
    (3, Kind::Reset),
    (2, Kind::Fork),
    (2, Kind::Kill),
];

/// Makes a sequence.
pub fn sequence(source: &mut Source) -> Vec<Op> {
    let mut account = Account {
        flows: [None; FLOWS as usize],
        owned: [false; OWNERS as usize],
        made: 0,
        fresh: (0..PAGES)
            .map(Memory::Pages)
            .chain([Memory::Huge, Memory::Heap])
            .collect(),
        free: (0..QUEUES).collect(),
    };
    let mut ops = vec![account.bind_rx(source)];
    if source.once_in(2) {
        ops.push(account.bind_tx(source));
    }
    for _ in 0..source.number(1..4) {
        ops.push(account.connect(source));
    }
    let length = source.0.random_range(LENGTH);
    while ops.len() < length {
        let kind = source.weighted(KINDS);
        ops.extend(account.op(source, kind));
    }
    ops
}

impl Account {
    /// An operation of a kind, unless it would be about nothing.
    fn op(&mut self, source: &mut Source, kind: Kind) -> Option<Op> {
        match kind {
            Kind::BindRx => Some(self.bind_rx(source)),
            Kind::BindBadly => Some(bind_badly(source)),
            Kind::BindTx => Some(self.bind_tx(source)),
            Kind::Unbind => {
                let owner = source.number(0..OWNERS.into()) as u8;
                self.owned[usize::from(owner)].then_some(Op::Unbind { owner })
            }
            Kind::Connect => Some(self.connect(source)),
            Kind::Fork => Some(Op::Fork),
            Kind::Kill => Some(Op::Kill),
            _ => self.op_of_flow(source, kind),
        }
    }

    fn op_of_flow(&mut self, source: &mut Source, kind: Kind) -> Option<Op> {
        let open: Vec<_> = (0..FLOWS)
            .filter(|&flow| self.flows[usize::from(flow)].is_some())
            .collect();
        let flow = *open.choose(&mut source.0)?;
        let plan = self.flows[usize::from(flow)].as_mut()?;
        Some(match kind {
            Kind::Send if !plan.ended => {
                let bytes = match source.once_in(10) {
                    true => source.bytes(40_000),
                    false => source.bytes(10_000),
                };
                plan.unread += bytes;
                Op::Send { flow, bytes }
            }
            Kind::SendMemory if self.made > 0 => {
                plan.unread += 1;
                send_memory(source, flow, self.made)
            }
            Kind::Completions => Op::Completions { flow },
            Kind::Receive if plan.unread > 0 || source.once_in(8) => {
                plan.held += 1;
                receive(source, flow)
            }
            Kind::Read if plan.unread > 0 || source.once_in(8) => {
                let bytes = source.bytes(20_000);
                Op::Read { flow, bytes }
            }
            Kind::Return if plan.held > 0 || source.once_in(8) => give_back(source, flow),
            Kind::Set => set(source, flow),
            Kind::Steer => {
                let queue = source.number(0..QUEUES + 1);
                Op::Steer { flow, queue }
            }
            Kind::Shutdown => {
                plan.ended |= source.once_in(2);
                Op::Shutdown {
                    flow,
                    end: source.one_of(&[End::Receiver, End::Peer]),
                    how: source.one_of(&[How::Read, How::Write, How::Both]),
                }
            }
            Kind::Close => {
                let end = source.one_of(&[End::Receiver, End::Peer]);
                if end == End::Receiver {
                    self.flows[usize::from(flow)] = None;
                } else {
                    plan.ended = true;
                }
                Op::Close { flow, end }
            }
            Kind::Reset => {
                plan.ended = true;
                Op::Reset { flow }
            }
            _ => return None,
        })
    }

    fn bind_rx(&mut self, source: &mut Source) -> Op {
        let owner = source.number(0..OWNERS.into()) as u8;
        self.owned[usize::from(owner)] = true;
        self.made = self.made.saturating_add(1);
        let memory = match self.fresh.is_empty() || source.once_in(12) {
            true => Memory::Pages(source.number(0..PAGES.into()) as u8),
            false => {
                let at = source.0.random_range(0..self.fresh.len());
                self.fresh.swap_remove(at)
            }
        };
        let mut queues = Vec::new();
        for _ in 0..source.weighted(&[(5, 1), (3, 2), (2, 3)]) {
            if self.free.is_empty() || source.once_in(15) {
                let queue = source.number(0..QUEUES);
                if !queues.contains(&queue) {
                    queues.push(queue);
                }
            } else {
                let at = source.0.random_range(0..self.free.len());
                queues.push(self.free.swap_remove(at));
            }
        }
        let page_size = match memory {
            Memory::Huge => source.one_of(&[None, Some(4096), Some(8192), Some(16_384)]),
            _ => source.weighted(&[(6, None), (1, Some(4096))]),
        };
        Op::BindRx {
            owner,
            device: Device::Receiver,
            queues,
            memory,
            page_size,
        }
    }

    fn bind_tx(&mut self, source: &mut Source) -> Op {
        let owner = source.number(0..OWNERS.into()) as u8;
        self.owned[usize::from(owner)] = true;
        self.made = self.made.saturating_add(1);
        Op::BindTx {
            owner,
            device: source.weighted(&[
                (20, Device::Sender),
                (2, Device::Receiver),
                (1, Device::Missing),
            ]),
            memory: source.weighted(&[
                (20, Memory::Source(0)),
                (20, Memory::Source(1)),
                (1, Memory::File),
                (1, Memory::Nothing),
            ]),
        }
    }

    fn connect(&mut self, source: &mut Source) -> Op {
        let flow = source.number(0..FLOWS.into()) as u8;
        self.flows[usize::from(flow)].get_or_insert(Plan {
            unread: 0,
            held: 0,
            ended: false,
        });
        let bound: Vec<_> = (0..QUEUES)
            .filter(|queue| !self.free.contains(queue))
            .collect();
        let queue = match bound.is_empty() || source.once_in(6) {
            true => source.number(0..QUEUES),
            false => source.one_of(&bound),
        };
        Op::Connect {
            flow,
            ip: source.one_of(&[Ip::V4, Ip::V6]),
            queue,
        }
    }
}

/// A request that is refused, most of the time.
fn bind_badly(source: &mut Source) -> Op {
    let memory = source.weighted(&[
        (60, Memory::Pages(3)),
        (20, Memory::File),
        (20, Memory::Nothing),
        (3, Memory::ReadOnly),
    ]);
    let queues = source.number(0..3);
    let queues: Vec<_> = (0..queues).map(|_| source.number(0..QUEUES + 2)).collect();
    let page_size = match source.number(0..3) {
        0 => None,
        1 => Some(source.one_of(&[0, 1, 2048, 4096, 8192, 1 << 31, u32::MAX])),
        _ => Some(source.number(0..20_000)),
    };
    Op::BindRx {
        owner: source.number(0..OWNERS.into()) as u8,
        device: source.one_of(&[Device::Receiver, Device::Sender, Device::Missing]),
        queues,
        memory,
        page_size,
    }
}

fn send_memory(source: &mut Source, flow: u8, made: u8) -> Op {
    // No more than a segment takes, which is one frag for each page.
    let mut left = 12_000;
    let ranges = (0..source.number(1..5))
        .map(|_| {
            let len = source.bytes(8_000).min(left);
            left -= len;
            let end = SOURCE_SIZE - u64::from(len);
            let offset = match source.number(0..12) {
                0 => end,
                1 => end + u64::from(source.number(1..5000)),
                2 => source.one_of(&[SOURCE_SIZE, SOURCE_SIZE + 1, 1 << 40, u64::MAX / 2]),
                3..7 => u64::from(source.number(0..256)) * 4096,
                _ => source.0.random_range(0..end),
            };
            (offset, len.into())
        })
        .collect();
    let number = source.number(0..made.into()) as u8;
    Op::SendMemory {
        flow,
        binding: match source.number(0..30) {
            0 => BindingRef::Number(0),
            1 => BindingRef::Number(u32::MAX),
            _ => BindingRef::Made(number),
        },
        ranges,
        flags: match source.number(0..20) {
            0 => vec![],
            1 => vec![Flag::ZeroCopy, Flag::DontWait],
            _ => vec![Flag::ZeroCopy],
        },
    }
}

fn receive(source: &mut Source, flow: u8) -> Op {
    let mut flags = vec![];
    for (flag, most, of) in [
        (Flag::Devmem, 19, 20),
        (Flag::Peek, 1, 5),
        (Flag::Trunc, 1, 25),
        (Flag::DontWait, 39, 40),
        (Flag::WaitAll, 1, 25),
        (Flag::CloExec, 1, 60),
        (Flag::Oob, 1, 100),
        (Flag::ErrQueue, 1, 100),
    ] {
        if source.0.random_ratio(most, of) {
            flags.push(flag);
        }
    }
    let count = source.weighted(&[(12, 1), (2, 2), (1, 3)]);
    let data = (0..count)
        .map(|_| Buffer {
            good: match source.once_in(500) {
                true => 0,
                false => source.bytes(20_000),
            },
            missing: match source.once_in(25) {
                true => source.bytes(20_000),
                false => 0,
            },
        })
        .collect();
    let control = match source.number(0..12) {
        0 => Buffer::new(source.number(0..PIECE)),
        1 => Buffer::new(source.number(1..4) * PIECE),
        2 => Buffer::new(source.number(0..4 * PIECE)),
        3 => Buffer {
            good: source.number(0..4) * PIECE,
            missing: source.number(1..100),
        },
        _ => Buffer::new(64 * PIECE),
    };
    Op::Receive {
        flow,
        flags,
        data,
        control,
    }
}

fn give_back(source: &mut Source, flow: u8) -> Op {
    let count = match source.number(0..300) {
        0 => 129,
        1 => 128,
        2 => 0,
        _ => source.number(1..6),
    };
    let ranges = (0..count)
        .map(|_| {
            let number = source.number(0..256) as u8;
            let token = match source.number(0..16) {
                0 => TokenRef::Returned(number),
                1 => TokenRef::Foreign(number),
                2 => TokenRef::Number(number.into()),
                3 => TokenRef::Number(source.one_of(&[
                    1 << 20,
                    i32::MAX as u32 - 2000,
                    u32::MAX - 2000,
                ])),
                _ => TokenRef::Held(number),
            };
            let count = match source.number(0..30) {
                0 => 0,
                1 => source.number(2..2000),
                2..8 => source.number(2..8),
                _ => 1,
            };
            Range { token, count }
        })
        .collect::<Vec<_>>();
    let everything = Range {
        token: TokenRef::Number(0),
        count: 1024,
    };
    let wrapping = Range {
        token: TokenRef::Number(u32::MAX),
        count: 2,
    };
    let ranges = match source.number(0..400) {
        0 => vec![wrapping],
        1..60 => vec![everything],
        _ => ranges,
    };
    Op::Return { flow, ranges }
}

fn set(source: &mut Source, flow: u8) -> Op {
    let (option, value) = match source.number(0..7) {
        0 => (Choice::RcvLowat, source.number(0..5000) as i32),
        1 => (Choice::RcvBuf, source.number(100_000..1 << 20) as i32),
        2 => (Choice::PeekOff, source.number(0..10_000) as i32),
        3 => (Choice::PeekOff, -1),
        4 => (Choice::Inq, source.number(0..2) as i32),
        5 => (Choice::Timestamps, source.number(0..2) as i32),
        _ => (Choice::ZeroCopy, source.weighted(&[(9, 1), (1, 0)])),
    };
    Op::Set {
        flow,
        option,
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::IOVECS;
    use crate::arena::ROOM;

    #[test]
    fn a_seed_makes_one_sequence() {
        for seed in 0..20 {
            let first = sequence(&mut Source::new(seed));
            assert_eq!(first, sequence(&mut Source::new(seed)));
            assert_ne!(first, sequence(&mut Source::new(seed + 1)));
        }
    }

    #[test]
    fn no_buffer_is_too_long() {
        for seed in 0..200 {
            for op in sequence(&mut Source::new(seed)) {
                if let Op::Receive { data, control, .. } = op {
                    assert!(data.len() <= IOVECS);
                    for buffer in data.iter().chain([&control]) {
                        assert!(buffer.len() <= ROOM, "{buffer:?}");
                    }
                }
            }
        }
    }
}
