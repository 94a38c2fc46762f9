// SPDX-License-Identifier: GPL-2.0

//! New inputs from those that there are.

use fastrand::Rng;

use crate::input::Input;
use crate::input::MAX_BYTES;
use crate::input::MAX_OPS;

/// Bytes that many decisions turn on.
const MARKS: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];

/// An input that nothing else is the reason for.
pub fn random(rng: &mut Rng) -> Input {
    let ops = (0..rng.usize(1..=MAX_OPS / 2)).map(|_| random_op(rng));
    Input { ops: ops.collect() }
}

fn random_op(rng: &mut Rng) -> Vec<u8> {
    let len = rng.usize(..=MAX_BYTES / 4);
    (0..len).map(|_| rng.u8(..)).collect()
}

/// Changes an input a little; `other` is one to take parts of.
pub fn mutate(input: &Input, other: &Input, rng: &mut Rng) -> Input {
    let mut new = input.clone();
    for _ in 0..1 << rng.u32(..4) {
        step(&mut new, other, rng);
    }
    new.ops.truncate(MAX_OPS);
    for bytes in &mut new.ops {
        bytes.truncate(MAX_BYTES);
    }
    new
}

fn step(input: &mut Input, other: &Input, rng: &mut Rng) {
    let ops = &mut input.ops;
    if ops.is_empty() {
        ops.push(random_op(rng));
        return;
    }
    let at = rng.usize(..ops.len());
    match rng.u8(..16) {
        0 => {
            ops.remove(at);
        }
        1 => ops.insert(at, random_op(rng)),
        2 => ops.insert(at, ops[at].clone()),
        3 => {
            let with = rng.usize(..ops.len());
            ops.swap(at, with);
        }
        // The rear of another.
        4 if !other.ops.is_empty() => {
            let from = rng.usize(..other.ops.len());
            ops.truncate(at);
            ops.extend_from_slice(&other.ops[from..]);
        }
        // One of another's.
        5 if !other.ops.is_empty() => {
            ops.insert(at, other.ops[rng.usize(..other.ops.len())].clone());
        }
        _ => mutate_bytes(&mut ops[at], rng),
    }
}

fn mutate_bytes(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        *bytes = random_op(rng);
        return;
    }
    let at = rng.usize(..bytes.len());
    match rng.u8(..7) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes[at] = rng.u8(..),
        2 => bytes[at] = MARKS[rng.usize(..MARKS.len())],
        3 => bytes[at] = bytes[at].wrapping_add(rng.u8(..9)).wrapping_sub(4),
        4 => bytes.insert(at, rng.u8(..)),
        5 => {
            bytes.remove(at);
        }
        _ => bytes.extend(random_op(rng)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_stay_small() {
        let mut rng = Rng::with_seed(7);
        let mut input = random(&mut rng);
        for _ in 0..10_000 {
            let other = random(&mut rng);
            input = mutate(&input, &other, &mut rng);
            assert!(input.ops.len() <= MAX_OPS);
            assert!(input.ops.iter().all(|bytes| bytes.len() <= MAX_BYTES));
        }
    }

    #[test]
    fn a_seed_gives_the_same_inputs() {
        let run = || {
            let mut rng = Rng::with_seed(3);
            let (a, b) = (random(&mut rng), random(&mut rng));
            (0..100).fold(a, |input, _| mutate(&input, &b, &mut rng))
        };
        assert_eq!(run(), run());
    }
}
