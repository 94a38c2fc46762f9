// SPDX-License-Identifier: GPL-2.0

//! Where the providers are meant to differ, as `Documentation/uapi.rst` tells.
//!
//! What comes after such a difference depends on it. So it ends the comparison of the sequence, but
//! for what is left in the end: that is nothing, ever.

use devmem_testlib::probe::ETOOSMALL;

use crate::op::Buffer;
use crate::op::Flag;
use crate::op::Memory;
use crate::op::Op;
use crate::op::Range;
use crate::op::TokenRef;
use crate::saw::Failed;
use crate::saw::Piece;
use crate::saw::Saw;

/// A rule.
#[derive(Debug)]
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// Why the providers differ.
    pub reason: &'static str,
    /// Whether it is about what an operation saw on the built-in provider and on the module.
    applies: fn(&Op, &Saw, &Saw) -> bool,
}

/// All of them.
pub const RULES: &[Rule] = &[
    Rule {
        name: "fd_read_only",
        reason: "the C code lets the device write to a dma-buf that its file descriptor does not let write to",
        applies: fd_read_only,
    },
    Rule {
        name: "queue_twice",
        reason: "the C code binds the queue once",
        applies: queue_twice,
    },
    Rule {
        name: "a_range_that_wraps",
        reason: "a range goes on with token 0: the C code has tokens there, the module has none",
        applies: range_that_wraps,
    },
    Rule {
        name: "no_bytes",
        reason: "the C code gives a token for no bytes",
        applies: no_bytes,
    },
    Rule {
        name: "tx_range_of_no_bytes",
        reason: "the C code checks the offset of a range without bytes that comes first, and makes a frag of it",
        applies: tx_range_of_no_bytes,
    },
    Rule {
        name: "tx_range_outside",
        reason: "how much is sent before a range that is not in the dma-buf depends on the number of frags, which there are less of in the module",
        applies: tx_range_outside,
    },
];

/// The rule that allows what an operation saw.
pub fn rule(op: &Op, builtin: &Saw, module: &Saw) -> Option<&'static Rule> {
    RULES
        .iter()
        .find(|rule| (rule.applies)(op, builtin, module))
}

fn fails(saw: &Saw, errno: i32) -> bool {
    *saw == Saw::Call(Err(Failed(errno)))
}

fn fd_read_only(op: &Op, builtin: &Saw, module: &Saw) -> bool {
    let Op::BindRx { memory, .. } = op else {
        return false;
    };
    *memory == Memory::ReadOnly && fails(module, libc::EINVAL) && !fails(builtin, libc::EINVAL)
}

fn queue_twice(op: &Op, builtin: &Saw, module: &Saw) -> bool {
    let Op::BindRx { queues, .. } = op else {
        return false;
    };
    let twice = (1..queues.len()).any(|i| queues[..i].contains(&queues[i]));
    twice && fails(module, libc::EINVAL) && !fails(builtin, libc::EINVAL)
}

fn range_that_wraps(op: &Op, builtin: &Saw, module: &Saw) -> bool {
    let Op::Return { ranges, .. } = op else {
        return false;
    };
    let may_wrap = |range: &Range| match range.token {
        TokenRef::Number(first) => range.count != 0 && first.checked_add(range.count - 1).is_none(),
        _ => false,
    };
    ranges.iter().any(may_wrap)
        && matches!(builtin, Saw::Call(Ok(_)))
        && matches!(module, Saw::Call(Ok(_)))
}

fn no_bytes(op: &Op, builtin: &Saw, module: &Saw) -> bool {
    let (Op::Receive { data, .. }, Saw::Received(builtin), Saw::Received(module)) =
        (op, builtin, module)
    else {
        return false;
    };
    // The token, or why there is no room for its control message.
    let told = match builtin.result {
        Ok(0) => matches!(builtin.pieces[..], [Piece::Frag { size: 0, .. }]),
        Err(Failed(errno)) => [ETOOSMALL, libc::EFAULT].contains(&errno),
        Ok(_) => false,
    };
    data.iter().all(|&buffer| Buffer::len(buffer) == 0)
        && told
        && module.result == Ok(0)
        && module.pieces.is_empty()
        && module.left == builtin.left
}

fn tx_range_of_no_bytes(op: &Op, builtin: &Saw, module: &Saw) -> bool {
    let Op::SendMemory { ranges, .. } = op else {
        return false;
    };
    ranges.first().is_some_and(|range| range.1 == 0)
        && matches!(module, Saw::Call(Ok(_)))
        && fails(builtin, libc::EFAULT)
}

fn tx_range_outside(op: &Op, builtin: &Saw, module: &Saw) -> bool {
    let Op::SendMemory { ranges, flags, .. } = op else {
        return false;
    };
    let total: u64 = ranges.iter().map(|range| range.1).sum();
    let partial = |saw: &Saw| match saw {
        Saw::Call(Ok(sent)) => *sent < total,
        _ => fails(saw, libc::EFAULT),
    };
    flags.contains(&Flag::ZeroCopy) && partial(builtin) && partial(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(token: TokenRef, count: u32) -> Op {
        Op::Return {
            flow: 0,
            ranges: vec![Range { token, count }],
        }
    }

    #[test]
    fn a_rule_needs_its_cause() {
        let (one, none) = (Saw::Call(Ok(1)), Saw::Call(Ok(0)));
        let found = |op: &Op| rule(op, &one, &none).map(|rule| rule.name);
        let number = TokenRef::Number(u32::MAX);
        assert_eq!(found(&returned(number, 2)), Some("a_range_that_wraps"));
        assert_eq!(found(&returned(number, 1)), None);
        assert_eq!(found(&returned(TokenRef::Held(0), 1)), None);
    }

    #[test]
    fn a_rule_needs_its_outcome() {
        let op = returned(TokenRef::Number(u32::MAX), 2);
        let one = Saw::Call(Ok(1));
        let refused = Saw::Call(Err(Failed(libc::EINVAL)));
        assert!(rule(&op, &one, &refused).is_none());
        assert!(rule(&op, &refused, &one).is_none());
    }
}
