// SPDX-License-Identifier: GPL-2.0

//! Compares what a sequence saw on the two providers.

use crate::corpus;
use crate::intended;
use crate::intended::Rule;
use crate::op::Op;
use crate::saw::Transcript;

/// How they compare.
#[derive(Debug)]
pub enum Verdict {
    /// Both saw the same.
    Same,
    /// They saw the same up to a difference that is meant.
    Intended(&'static Rule),
    /// They differ, or something is wrong on one of them.
    Different(Difference),
}

/// A difference.
#[derive(Debug)]
pub struct Difference {
    /// The number of the operation.
    pub at: usize,
    /// What differs.
    pub what: String,
}

/// Compares.
pub fn compare(ops: &[Op], builtin: &Transcript, module: &Transcript) -> Verdict {
    let mut intended = None;
    for (at, op) in ops.iter().enumerate() {
        let (c, rust) = (&builtin.steps[at], &module.steps[at]);
        if c != rust {
            intended = intended::rule(op, c, rust);
            if intended.is_some() {
                break;
            }
            let what = format!(
                "{}\n  builtin:         {c:?}\n  devmem_provider: {rust:?}",
                corpus::line(op)
            );
            return Verdict::Different(Difference { at, what });
        }
        if let Some(what) = fault(at, builtin, module) {
            let what = format!("{}\n{what}", corpus::line(op));
            return Verdict::Different(Difference { at, what });
        }
    }
    // Nothing that came before excuses what is left.
    let at = ops.len();
    match (fault(at, builtin, module), intended) {
        (Some(what), _) => Verdict::Different(Difference { at, what }),
        (None, Some(rule)) => Verdict::Intended(rule),
        (None, None) => Verdict::Same,
    }
}

/// What must not be after an operation.
fn fault(at: usize, builtin: &Transcript, module: &Transcript) -> Option<String> {
    let of = |name: &str, transcript: &Transcript| {
        let fault = transcript.faults.iter().find(|fault| fault.0 == at)?;
        Some(format!("  on {name}: {}", fault.1))
    };
    match (of("builtin", builtin), of("devmem_provider", module)) {
        (Some(c), Some(rust)) => Some(format!("{c}\n{rust}")),
        (c, rust) => c.or(rust),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use crate::saw::Failed;
    use crate::saw::Saw;

    fn transcript(steps: &[Saw], faults: &[(usize, &str)]) -> Transcript {
        Transcript {
            steps: steps.to_vec(),
            faults: faults.iter().map(|f| (f.0, f.1.to_owned())).collect(),
            spent: Vec::new(),
        }
    }

    fn place(verdict: Verdict) -> Option<usize> {
        match verdict {
            Verdict::Different(difference) => Some(difference.at),
            _ => None,
        }
    }

    #[test]
    fn the_first_difference_is_told() {
        let ops = [Op::Fork, Op::Kill, Op::Fork];
        let (one, two) = (Saw::Call(Ok(1)), Saw::Call(Ok(2)));
        let failed = Saw::Call(Err(Failed(libc::EINVAL)));
        let c = transcript(&[one.clone(), one.clone(), one.clone()], &[]);
        let rust = transcript(&[one, failed, two], &[]);
        assert_eq!(place(compare(&ops, &c, &rust)), Some(1));
        assert!(matches!(compare(&ops, &c, &c), Verdict::Same));
    }

    #[test]
    fn faults_are_told_even_if_both_have_them() {
        let ops = [Op::Fork];
        let bad = transcript(&[Saw::Nothing], &[(0, "lost")]);
        let left = transcript(&[Saw::Nothing], &[(1, "left")]);
        let good = transcript(&[Saw::Nothing], &[]);
        assert_eq!(place(compare(&ops, &bad, &bad)), Some(0));
        assert_eq!(place(compare(&ops, &good, &left)), Some(1));
        assert_eq!(place(compare(&ops, &left, &good)), Some(1));
    }
}
