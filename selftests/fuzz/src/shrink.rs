// SPDX-License-Identifier: GPL-2.0

//! Makes a sequence that fails small: first whole operations go, then parts of what is left.

use crate::op::Buffer;
use crate::op::Ip;
use crate::op::Memory;
use crate::op::Op;
use crate::op::Range;

/// Room enough in a control buffer for whatever a call brings.
const CONTROL: Buffer = Buffer::new(4000);

/// Takes away from a sequence what it does not need to fail. `fails` tells of a sequence whether it
/// does, and `None` when there is no time to try more.
pub fn shrink(mut ops: Vec<Op>, mut fails: impl FnMut(&[Op]) -> Option<bool>) -> Vec<Op> {
    loop {
        let before = ops.clone();
        let go_on =
            fewer(&mut ops, &mut fails).is_some() && simpler(&mut ops, &mut fails).is_some();
        if !go_on || ops == before {
            return ops;
        }
    }
}

/// Takes operations away, in chunks that get smaller.
fn fewer(ops: &mut Vec<Op>, fails: &mut impl FnMut(&[Op]) -> Option<bool>) -> Option<()> {
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < ops.len() {
            let mut less = ops.clone();
            less.drain(at..(at + chunk).min(ops.len()));
            if !less.is_empty() && fails(&less)? {
                *ops = less;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    Some(())
}

/// Makes operations simpler, one at a time.
fn simpler(ops: &mut [Op], fails: &mut impl FnMut(&[Op]) -> Option<bool>) -> Option<()> {
    for at in 0..ops.len() {
        let mut candidates = candidates(&ops[at]);
        while let Some(op) = candidates.pop() {
            if op == ops[at] {
                continue;
            }
            let old = std::mem::replace(&mut ops[at], op);
            if fails(ops)? {
                candidates = self::candidates(&ops[at]);
            } else {
                ops[at] = old;
            }
        }
    }
    Some(())
}

/// Lists with one element less.
fn without_one<T: Clone>(list: &[T]) -> Vec<Vec<T>> {
    (0..list.len())
        .map(|at| [&list[..at], &list[at + 1..]].concat())
        .collect()
}

/// Operations that do a little less, or the same more plainly.
fn candidates(op: &Op) -> Vec<Op> {
    let with = |change: &dyn Fn(&mut Op)| {
        let mut op = op.clone();
        change(&mut op);
        op
    };
    match op {
        Op::BindRx { queues, .. } => {
            let mut list: Vec<_> = without_one(queues)
                .into_iter()
                .map(|less| {
                    with(&|op| {
                        if let Op::BindRx { queues, .. } = op {
                            queues.clone_from(&less);
                        }
                    })
                })
                .collect();
            list.push(with(&|op| {
                if let Op::BindRx { page_size, .. } = op {
                    *page_size = None;
                }
            }));
            list.push(with(&|op| {
                if let Op::BindRx { memory, .. } = op {
                    *memory = Memory::Pages(0);
                }
            }));
            list
        }
        Op::Connect { .. } => vec![with(&|op| {
            if let Op::Connect { ip, .. } = op {
                *ip = Ip::V4;
            }
        })],
        Op::Send { bytes, .. } => smaller(*bytes)
            .map(|less| {
                with(&|op| {
                    if let Op::Send { bytes, .. } = op {
                        *bytes = less;
                    }
                })
            })
            .collect(),
        Op::SendMemory { ranges, .. } => without_one(ranges)
            .into_iter()
            .chain(ranges.iter().map(|range| vec![(range.0, range.1 / 2)]))
            .chain(ranges.iter().map(|range| vec![(0, range.1)]))
            .map(|less| {
                with(&|op| {
                    if let Op::SendMemory { ranges, .. } = op {
                        ranges.clone_from(&less);
                    }
                })
            })
            .collect(),
        Op::Receive { flags, data, .. } => {
            let plain = data
                .iter()
                .flat_map(|buffer| smaller(buffer.good).map(|good| vec![Buffer::new(good)]));
            let mut list: Vec<_> = without_one(data)
                .into_iter()
                .chain(plain)
                .map(|less| {
                    with(&|op| {
                        if let Op::Receive { data, .. } = op {
                            data.clone_from(&less);
                        }
                    })
                })
                .collect();
            list.extend(without_one(flags).into_iter().map(|less| {
                with(&|op| {
                    if let Op::Receive { flags, .. } = op {
                        flags.clone_from(&less);
                    }
                })
            }));
            list.push(with(&|op| {
                if let Op::Receive { control, .. } = op {
                    *control = CONTROL;
                }
            }));
            list
        }
        Op::Return { ranges, .. } => without_one(ranges)
            .into_iter()
            .chain(ranges.iter().flat_map(|range| {
                let token = range.token;
                smaller(range.count).map(move |count| vec![Range { token, count }])
            }))
            .map(|less| {
                with(&|op| {
                    if let Op::Return { ranges, .. } = op {
                        ranges.clone_from(&less);
                    }
                })
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Smaller numbers, the smallest last.
fn smaller(number: u32) -> impl Iterator<Item = u32> {
    [number.saturating_sub(1), number / 2, 1]
        .into_iter()
        .filter(move |&less| less < number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Source;
    use crate::generate::sequence;

    #[test]
    fn what_is_needed_stays() {
        let (a, b) = (Op::Unbind { owner: 7 }, Op::Unbind { owner: 8 });
        let mut ops = sequence(&mut Source::new(1));
        ops.insert(ops.len() / 3, a.clone());
        ops.insert(ops.len() / 2, b.clone());
        let needs = |ops: &[Op]| Some(ops.contains(&a) && ops.contains(&b));
        assert_eq!(shrink(ops, needs), [a.clone(), b.clone()]);
    }

    #[test]
    fn arguments_get_small() {
        let ops = vec![
            Op::Send {
                flow: 0,
                bytes: 10_000,
            },
            Op::Receive {
                flow: 0,
                flags: vec![crate::op::Flag::Peek, crate::op::Flag::Devmem],
                data: vec![Buffer::new(77), Buffer::new(100)],
                control: Buffer::new(17),
            },
        ];
        let needs = |ops: &[Op]| {
            Some(ops.iter().any(|op| matches!(op, Op::Send { bytes: 4097.., .. }))
                && ops.iter().any(|op| matches!(op, Op::Receive { flags, .. } if flags.contains(&crate::op::Flag::Peek))))
        };
        let small = shrink(ops, needs);
        assert!(
            matches!(small[0], Op::Send { bytes: 4097, .. }),
            "{small:?}"
        );
        let Op::Receive { flags, data, .. } = &small[1] else {
            panic!("{small:?}");
        };
        assert_eq!(flags, &[crate::op::Flag::Peek]);
        assert_eq!(data, &[]);
    }

    #[test]
    fn it_ends_when_time_is_up() {
        let ops = sequence(&mut Source::new(2));
        let mut tries = 10;
        let small = shrink(ops.clone(), |_| {
            tries -= 1;
            (tries > 0).then_some(false)
        });
        assert_eq!(small, ops);
        assert_eq!(tries, 0);
    }
}
