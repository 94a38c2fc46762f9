// SPDX-License-Identifier: GPL-2.0

//! An end of a connection, and whoever looks at what it does.

use std::collections::BTreeMap;

use devmem_bulk::protocol::End;
use devmem_bulk::protocol::Event;
use devmem_bulk::protocol::Failure;
use devmem_bulk::protocol::Fault;
use devmem_bulk::protocol::Key;
use devmem_bulk::protocol::Keys;
use devmem_bulk::protocol::Limits;
use devmem_bulk::protocol::Machine;
use devmem_bulk::protocol::Placement;
use devmem_bulk::protocol::Rights;
use devmem_bulk::protocol::Source;
use devmem_bulk::protocol::Status;
use devmem_bulk::protocol::Target;
use devmem_bulk::protocol::keys::Grant;
use devmem_bulk::protocol::wire::Frame;
use devmem_bulk::protocol::wire::NOTE;
use fastrand::Rng;

const LANES: u16 = 2;
const WINDOW: u64 = 32 << 10;
const REQUESTS: u32 = 8;
/// Most that an end with these limits keeps: see `Machine::input()`, where output has its limit, and segments.
const HEAVIEST: usize = 200_000;
const STEPS: usize = 400;

/// What rounds have come to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Frames that were said to it.
    pub frames: u64,
    /// Bytes that it has put somewhere, and read for the peer.
    pub placed: u64,
    pub read: u64,
    /// Requests of its own that ended.
    pub done: u64,
    /// Connections that it ended for what the peer did.
    pub broken: u64,
    /// Most things that it kept.
    pub heaviest: usize,
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.placed += other.placed;
        self.read += other.read;
        self.done += other.done;
        self.broken += other.broken;
        self.heaviest = self.heaviest.max(other.heaviest);
    }
}

/// A key of the victim's, and what it may be used for.
#[derive(Clone, Debug)]
struct Granted {
    key: Key,
    grant: Grant<usize>,
    revoked: bool,
}

struct Victim {
    machine: Machine,
    keys: Keys<usize>,
    granted: Vec<Granted>,
    /// Its gets, and which of their bytes have come.
    gets: BTreeMap<u64, Vec<bool>>,
    /// Requests that have not ended.
    open: Vec<u64>,
    puts: BTreeMap<u64, u64>,
    landed: [u64; LANES as usize],
    released: [u64; LANES as usize],
    sent: [u64; LANES as usize],
    /// Of that, what the peer has.
    arrived: [u64; LANES as usize],
    /// Up to where the peer has let it send.
    credit: [u64; LANES as usize],
    placing: Vec<(u16, Placement<usize>)>,
    over: bool,
    seen: Seen,
}

impl Victim {
    fn new(rng: &mut Rng) -> Self {
        let mut keys = Keys::new();
        let mut granted = Vec::new();
        for (memory, rights) in [Rights::Read, Rights::Write, Rights::ReadWrite]
            .into_iter()
            .enumerate()
        {
            let mut bytes = [0; 16];
            rng.fill(&mut bytes);
            let key = Key(bytes);
            let grant = Grant {
                memory,
                offset: rng.u64(0..10_000),
                len: rng.u64(1..200_000),
                rights,
                expiry: None,
            };
            keys.add(key, grant.clone()).expect("a new key");
            granted.push(Granted {
                key,
                grant,
                revoked: false,
            });
        }
        Self {
            machine: Machine::new(limits()),
            keys,
            granted,
            gets: BTreeMap::new(),
            open: Vec::new(),
            puts: BTreeMap::new(),
            landed: [0; 2],
            released: [0; 2],
            sent: [0; 2],
            arrived: [0; 2],
            credit: [0; 2],
            placing: Vec::new(),
            over: false,
            seen: Seen::default(),
        }
    }

    /// That this may be done with a memory.
    fn assert_granted(&self, memory: usize, offset: u64, len: u64, not: Rights) {
        let Granted { grant, revoked, .. } = &self.granted[memory];
        assert!(!revoked, "by a key that was taken back");
        assert!(grant.rights != not, "by a key that is not for that");
        assert!(offset >= grant.offset && offset + len <= grant.offset + grant.len);
    }

    /// A step of its own.
    fn go_on(&mut self, rng: &mut Rng) {
        match rng.u8(0..12) {
            0 => {
                let (key, len) = (Key([rng.u8(..); 16]), rng.u64(1..100_000));
                if let Ok(id) = self.machine.put(key, rng.u64(0..1000), len) {
                    self.open.push(id);
                    self.puts.insert(id, len);
                }
            }
            1 => {
                let len = rng.u64(1..100_000);
                if let Ok(id) = self.machine.get(Key([0; 16]), 0, len) {
                    self.open.push(id);
                    self.gets.insert(id, vec![false; len as usize]);
                }
            }
            2 => self
                .open
                .extend(self.machine.notify([rng.u8(..); NOTE]).ok()),
            3 if rng.u8(..) < 40 => self.machine.cancel(rng.u64(0..20)),
            4 if rng.u8(..) < 10 => {
                let granted = &mut self.granted[rng.usize(0..3)];
                self.keys.revoke(granted.key);
                granted.revoked = true;
            }
            5 if rng.u8(..) < 3 => self.machine.close(),
            6 | 7 => self.assign(rng),
            8 => self.place(rng),
            _ => self.send(rng),
        }
    }

    fn assign(&mut self, rng: &mut Rng) {
        let lane = rng.u16(0..LANES);
        let most = rng.u64(1..20_000);
        let Some(placement) = self.machine.assign(lane, most, &self.keys) else {
            return;
        };
        assert!(!self.over && placement.len <= most);
        match &placement.target {
            &Target::Memory { memory, offset } => {
                self.assert_granted(memory, offset, placement.len, Rights::Read);
                self.seen.placed += placement.len;
            }
            &Target::Own { id, at } => {
                assert!(self.open.contains(&id), "for a request that is over");
                let get = self.gets.get_mut(&id).expect("a get");
                for byte in &mut get[at as usize..][..placement.len as usize] {
                    assert!(!std::mem::replace(byte, true), "a byte twice");
                }
            }
            Target::Nowhere => (),
        }
        self.placing.push((lane, placement));
    }

    /// Any of those that wait for that, well or not.
    fn place(&mut self, rng: &mut Rng) {
        if self.placing.is_empty() {
            return;
        }
        let (lane, placement) = self.placing.swap_remove(rng.usize(0..self.placing.len()));
        let len = placement.len;
        self.machine.placed(placement, rng.u8(..) > 3);
        self.machine.released(lane, len);
        self.released[usize::from(lane)] += len;
    }

    fn send(&mut self, rng: &mut Rng) {
        let Some(mut out) = self.machine.next_segment(|_| true, &self.keys) else {
            return;
        };
        assert!(!self.over);
        // Memory that cannot be read is not sent, and less than there may be is.
        if rng.u8(..) == 0 {
            self.machine.unreadable(out);
            return;
        }
        out.shorten(rng.u32(..));
        let len = u64::from(out.len);
        match out.source {
            Source::Memory { memory, offset } => {
                self.assert_granted(memory, offset, len, Rights::Write);
                self.seen.read += len;
            }
            Source::Own { id, at } => {
                assert!(self.open.contains(&id), "of a request that is over");
                assert!(at + len <= self.puts[&id]);
            }
        }
        let lane = usize::from(out.lane);
        self.sent[lane] += len;
        assert!(self.sent[lane] <= self.credit[lane], "more than it may");
        self.machine.announce(out);
    }

    /// What it has sent arrives.
    fn deliver(&mut self, peer: &mut Machine, keys: &Keys<()>) {
        for lane in 0..LANES {
            let at = usize::from(lane);
            peer.landed(lane, self.sent[at] - self.arrived[at]);
            self.arrived[at] = self.sent[at];
            while let Some(placement) = peer.assign(lane, u64::MAX, keys) {
                let len = placement.len;
                peer.placed(placement, true);
                peer.released(lane, len);
            }
        }
    }

    /// Has it hear this, and looks at what comes of it.
    fn hear(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Ok(Some((frame, len))) = Frame::decode(rest) {
            self.seen.frames += 1;
            if let Frame::Credit { lane, limit } = frame {
                if let Some(credit) = self.credit.get_mut(usize::from(lane)) {
                    *credit = limit.max(*credit);
                }
            }
            rest = &rest[len..];
        }
        self.machine.input(bytes, &self.keys);
    }

    fn land(&mut self, lane: u16, bytes: u64) {
        let at = usize::from(lane);
        let ended = self.machine.end();
        self.machine.landed(lane, bytes);
        let landed = self.landed[at].saturating_add(bytes);
        if landed > self.released[at] + WINDOW && ended.is_none() {
            let overrun = Some(End::Broken(Fault::Overrun));
            assert_eq!(self.machine.end(), overrun, "more than the window");
        }
        self.landed[at] = landed;
    }

    fn look(&mut self) {
        let weight = self.machine.weight();
        assert!(weight < HEAVIEST, "it keeps {weight} things");
        self.seen.heaviest = self.seen.heaviest.max(weight);
        while let Some(event) = self.machine.event() {
            assert!(!self.over, "something after the end: {event:?}");
            match event {
                Event::Done { id, result } => {
                    let at = self.open.iter().position(|&open| open == id);
                    self.open
                        .swap_remove(at.expect("a request that has not ended"));
                    self.seen.done += 1;
                    if let (Ok(()), Some(get)) = (result, self.gets.get(&id)) {
                        assert!(get.iter().all(|&came| came), "not all of it came");
                    }
                    if let Err(Failure::Status(status)) = result {
                        assert!(status != Status::Placed);
                    }
                }
                Event::Over(end) => {
                    assert!(self.open.is_empty(), "{:?} have not ended", self.open);
                    self.over = true;
                    self.seen.broken += u64::from(matches!(end, End::Broken(_)));
                }
                Event::Note(_) | Event::Closing => (),
            }
        }
    }
}

fn limits() -> Limits {
    Limits {
        lanes: LANES,
        window: WINDOW,
        requests: REQUESTS,
        segment: 10_000,
        ..Limits::default()
    }
}

/// Any of these, a little off.
fn off(rng: &mut Rng, number: u64) -> u64 {
    match rng.u8(0..6) {
        0 => number.wrapping_add(1),
        1 => number.wrapping_sub(1),
        2 => rng.u64(0..20),
        3 => u64::MAX - rng.u64(0..4),
        4 => rng.u64(..),
        _ => number ^ 1 << rng.u32(0..64),
    }
}

/// A frame that is like another.
fn changed(rng: &mut Rng, frame: Frame) -> Frame {
    let what = rng.u8(0..4);
    match frame {
        Frame::Credit { lane, limit } => match what {
            0 => Frame::Credit {
                lane: rng.u16(0..4),
                limit,
            },
            _ => Frame::Credit {
                lane,
                limit: off(rng, limit),
            },
        },
        Frame::Put {
            mut id,
            mut key,
            mut offset,
            mut len,
        }
        | Frame::Get {
            mut id,
            mut key,
            mut offset,
            mut len,
        } => {
            match what {
                0 => id = off(rng, id),
                1 => key.0[rng.usize(0..16)] ^= 1 << rng.u8(0..8),
                2 => offset = off(rng, offset),
                _ => len = off(rng, len),
            }
            // The one may become the other.
            match rng.bool() {
                true => Frame::Put {
                    id,
                    key,
                    offset,
                    len,
                },
                false => Frame::Get {
                    id,
                    key,
                    offset,
                    len,
                },
            }
        }
        Frame::PutData {
            mut id,
            mut lane,
            mut len,
        }
        | Frame::GetData {
            mut id,
            mut lane,
            mut len,
        } => {
            match what {
                0 => id = off(rng, id),
                1 => lane = rng.u16(0..4),
                _ => len = off(rng, len.into()) as u32,
            }
            match rng.bool() {
                true => Frame::PutData { id, lane, len },
                false => Frame::GetData { id, lane, len },
            }
        }
        Frame::Notify { id, note } => Frame::Notify {
            id: off(rng, id),
            note,
        },
        Frame::Cancel { id } => Frame::Cancel { id: off(rng, id) },
        Frame::Done { id, status } => match what {
            0 => Frame::Done {
                id: off(rng, id),
                status,
            },
            1 => Frame::Done {
                id,
                status: Status::Placed,
            },
            _ => Frame::Done {
                id,
                status: Status::Memory,
            },
        },
        other => other,
    }
}

/// A round, by its seed. Panics if the victim does what it must not.
pub fn round(seed: u64) -> Seen {
    let mut rng = Rng::with_seed(seed);
    let mut victim = Victim::new(&mut rng);
    // One that would keep to the protocol; and how often what it says is changed, in 1000.
    let mut peer = Machine::new(limits());
    let mut peer_keys = Keys::new();
    let grant = Grant {
        memory: (),
        offset: 0,
        len: 1 << 20,
        rights: Rights::ReadWrite,
        expiry: None,
    };
    peer_keys.add(Key([0; 16]), grant).expect("the first key");
    let badness = [0, 2, 20, 200][rng.usize(0..4)];
    for _ in 0..STEPS {
        victim.go_on(&mut rng);
        let said = victim.machine.output().to_vec();
        // One that does not listen has the victim keep what it says.
        if rng.u32(0..1000) >= badness {
            victim.machine.said(said.len());
            peer.input(&said, &peer_keys);
        }
        ask(&mut rng, &mut peer, &victim.granted);
        if let Some(out) = peer.next_segment(|_| true, &peer_keys) {
            let len = match rng.u32(0..1000) < badness {
                true => off(&mut rng, out.len.into()),
                false => out.len.into(),
            };
            victim.land(out.lane, len);
            peer.announce(out);
        }
        let said = peer.output().to_vec();
        peer.said(said.len());
        say(&mut rng, &mut victim, &said, badness);
        while peer.event().is_some() {}
        victim.deliver(&mut peer, &peer_keys);
        victim.look();
    }
    victim.machine.gone();
    victim.look();
    victim.seen
}

/// The peer asks for something, by keys that it should know, most of the time.
fn ask(rng: &mut Rng, peer: &mut Machine, granted: &[Granted]) {
    let Granted { key, grant, .. } = &granted[rng.usize(0..granted.len())];
    let offset = rng.u64(0..grant.len);
    let len = match rng.u8(0..8) {
        0 => rng.u64(0..300_000),
        _ => rng.u64(1..=grant.len - offset),
    };
    // Why it is refused does not matter.
    let _ = match rng.u8(0..16) {
        0..3 => peer.put(*key, offset, len),
        3..6 => peer.get(*key, offset, len),
        6 => peer.notify([1; NOTE]),
        7 => {
            peer.cancel(rng.u64(0..40));
            return;
        }
        _ => return,
    };
}

/// Says these frames, or others.
fn say(rng: &mut Rng, victim: &mut Victim, frames: &[u8], badness: u32) {
    let mut rest = frames;
    let mut out = Vec::new();
    while let Ok(Some((frame, len))) = Frame::decode(rest) {
        rest = &rest[len..];
        if rng.u32(0..1000) >= badness {
            frame.encode(&mut out);
            continue;
        }
        match rng.u8(0..6) {
            0 => (),
            1 => {
                frame.encode(&mut out);
                frame.encode(&mut out);
            }
            2 => {
                frame.encode(&mut out);
                let at = out.len() - 1 - rng.usize(0..len);
                out[at] ^= 1 << rng.u8(0..8);
            }
            3 => Frame::Bye.encode(&mut out),
            _ => changed(rng, frame).encode(&mut out),
        }
    }
    victim.hear(&out);
}

/// A peer that asks for more and more. It gives `what` of these requests up, announces that much of them, and sends
/// nothing of that; and it may not listen to what the victim says. What that keeps has a limit.
pub fn flood(seed: u64) -> usize {
    let mut rng = Rng::with_seed(seed);
    let mut victim = Victim::new(&mut rng);
    let (listens, greedy) = (rng.bool(), rng.u8(0..4) == 0);
    let mut hello = Machine::new(limits());
    let greeting = hello.output().to_vec();
    hello.said(greeting.len());
    victim.hear(&greeting);
    let key = victim.granted[1].key;
    let mut announced = [0; LANES as usize];
    for id in 0..50_000 {
        let mut out = Vec::new();
        let key = match rng.bool() {
            true => key,
            false => Key([0; 16]),
        };
        let len = 1 + rng.u64(0..2);
        Frame::Put {
            id,
            key,
            offset: 0,
            len,
        }
        .encode(&mut out);
        let lane = rng.u16(0..LANES);
        let credit = &mut announced[usize::from(lane)];
        let over = *credit + len > WINDOW;
        if greedy || !over {
            *credit += len;
            let len = len as u32;
            Frame::PutData { id, lane, len }.encode(&mut out);
        }
        Frame::Cancel { id }.encode(&mut out);
        victim.hear(&out);
        if greedy && over {
            let overrun = Some(End::Broken(Fault::Overrun));
            assert_eq!(victim.machine.end(), overrun, "announced without credit");
        }
        if listens {
            let said = victim.machine.output().len();
            victim.machine.said(said);
        }
        victim.look();
        if victim.over {
            break;
        }
    }
    victim.seen.heaviest
}
