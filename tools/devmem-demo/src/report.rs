// SPDX-License-Identifier: GPL-2.0

//! The table that the demo prints, and whether everything in it is as it should be.

use std::error::Error;
use std::fmt;

use crate::sender::FileDigest;
use crate::transfer::Outcome;

const MIB: f64 = (1 << 20) as f64;
const GIB: f64 = (1 << 30) as f64;

/// An error that names each of these which is so.
fn none_of<const N: usize>(defects: [(bool, &str); N]) -> Result<(), Box<dyn Error>> {
    let found: Vec<_> = defects
        .into_iter()
        .filter_map(|(is_so, what)| is_so.then_some(what))
        .collect();
    match found.is_empty() {
        true => Ok(()),
        false => Err(found.join("; ").into()),
    }
}

/// What the demo found.
#[derive(Debug)]
pub struct Report {
    /// Who served the binding.
    pub provider: String,
    /// What was sent, each time.
    pub sent: FileDigest,
    /// Into device memory, every byte read.
    pub checked: Outcome,
    /// Into device memory, left there.
    pub timed: Outcome,
    /// By plain recv().
    pub plain: Outcome,
    /// Buffers still in use at the end, unless the binding is gone.
    pub in_use: Option<u64>,
}

impl Report {
    /// An error that names everything which is not as it should be.
    pub fn verdict(&self) -> Result<(), Box<dyn Error>> {
        let device_memory = [&self.checked, &self.timed];
        none_of([
            (self.sent.bytes == 0, "the file is empty"),
            (
                device_memory.iter().any(|o| o.bytes != self.sent.bytes),
                "bytes received and sent differ",
            ),
            (
                self.plain.bytes != self.sent.bytes,
                "bytes of the plain recv() differ",
            ),
            (
                self.checked.sha256 != Some(self.sent.sha256),
                "the SHA-256 differs",
            ),
            (
                device_memory.iter().any(|o| o.copied != 0),
                "bytes came in host memory",
            ),
            (
                device_memory.iter().any(|o| o.frags == 0),
                "nothing came in device memory",
            ),
            (
                device_memory.iter().any(|o| o.returned != o.frags),
                "tokens are missing",
            ),
            (self.in_use.is_some(), "the binding was not freed"),
        ])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let same = match self.checked.sha256 == Some(self.sent.sha256) {
            true => "equal to the sender's",
            false => "NOT THE SENDER'S",
        };
        let received = self.checked.sha256.unwrap_or_default();
        writeln!(f, "{:26}{}", "provider", self.provider)?;
        writeln!(
            f,
            "{:26}{} of {}",
            "bytes received", self.checked.bytes, self.sent.bytes
        )?;
        writeln!(f, "{:26}{}, {same}", "SHA-256", hex(&received))?;
        writeln!(f, "{:26}{}", "frags", self.checked.frags)?;
        writeln!(f, "{:26}{}", "bytes in host memory", self.checked.copied)?;
        writeln!(f, "{:26}{}", "tokens returned", self.checked.returned)?;
        writeln!(
            f,
            "{:26}{}",
            "buffers in use at the end",
            self.in_use.unwrap_or(0)
        )?;
        writeln!(f)?;
        writeln!(f, "{:26}{:>14}{:>14}", "", "device memory", "plain recv()")?;
        writeln!(
            f,
            "{:26}{:>14.0}{:>14.0}",
            "rate, MiB/s",
            rate(&self.timed),
            rate(&self.plain)
        )?;
        write!(
            f,
            "{:26}{:>14.2}{:>14.2}",
            "receiver's CPU, s/GiB",
            cpu_per_gib(&self.timed),
            cpu_per_gib(&self.plain)
        )
    }
}

/// A transfer from one dma-buf into another.
#[derive(Debug)]
pub struct Copied {
    /// How it went.
    pub outcome: Outcome,
    /// Whether what arrived is what was sent.
    pub equal: bool,
}

/// What the demo found sending from one dma-buf into another.
#[derive(Debug)]
pub struct CopyReport {
    /// Length of what was sent, each time.
    pub bytes: u64,
    /// By the blocking backend, and by io_uring.
    pub copies: Vec<Copied>,
    /// Buffers still in use at the end, unless the binding is gone.
    pub in_use: Option<u64>,
}

impl CopyReport {
    /// An error that names everything which is not as it should be.
    pub fn verdict(&self) -> Result<(), Box<dyn Error>> {
        let any = |wrong: &dyn Fn(&Copied) -> bool| self.copies.iter().any(wrong);
        none_of([
            (self.bytes == 0, "the file is empty"),
            (
                any(&|copy| copy.outcome.bytes != self.bytes),
                "bytes received and sent differ",
            ),
            (any(&|copy| !copy.equal), "the content differs"),
            (
                any(&|copy| copy.outcome.copied != 0),
                "bytes came in host memory",
            ),
            (
                any(&|copy| copy.outcome.returned != copy.outcome.frags),
                "tokens are missing",
            ),
            (self.in_use.is_some(), "the binding was not freed"),
        ])
    }
}

impl fmt::Display for CopyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, cell: &dyn Fn(&Copied) -> String, end: &str| {
            write!(f, "{name:26}")?;
            for copy in &self.copies {
                write!(f, "{:>14}", cell(copy))?;
            }
            write!(f, "{end}")
        };
        row("bytes received", &|c| c.outcome.bytes.to_string(), "\n")?;
        let content = |c: &Copied| match c.equal {
            true => "equal".to_owned(),
            false => "DIFFERS".to_owned(),
        };
        row("content", &content, "\n")?;
        row("tokens returned", &|c| c.outcome.returned.to_string(), "\n")?;
        row("rate, MiB/s", &|c| format!("{:.0}", rate(&c.outcome)), "")
    }
}

fn rate(outcome: &Outcome) -> f64 {
    outcome.bytes as f64 / MIB / outcome.elapsed.as_secs_f64()
}

fn cpu_per_gib(outcome: &Outcome) -> f64 {
    outcome.cpu.as_secs_f64() / (outcome.bytes as f64 / GIB)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const BYTES: u64 = 3 << 30;

    fn good() -> Report {
        let device = |sha256| Outcome {
            bytes: BYTES,
            sha256,
            frags: 7,
            copied: 0,
            returned: 7,
            elapsed: Duration::from_secs(6),
            cpu: Duration::from_secs(3),
        };
        Report {
            provider: "rust".into(),
            sent: FileDigest {
                bytes: BYTES,
                sha256: [5; 32],
            },
            checked: device(Some([5; 32])),
            timed: device(None),
            plain: Outcome {
                frags: 0,
                returned: 0,
                copied: BYTES,
                ..device(None)
            },
            in_use: None,
        }
    }

    #[test]
    fn a_good_transfer_passes() {
        good().verdict().unwrap();
        let text = good().to_string();
        assert!(text.contains("equal to the sender's"), "{text}");
        assert!(text.contains("           512           512"), "{text}");
        assert!(text.contains("          1.00          1.00"), "{text}");
    }

    fn good_copy() -> CopyReport {
        let copied = |outcome| Copied {
            outcome,
            equal: true,
        };
        let report = good();
        CopyReport {
            bytes: BYTES,
            copies: vec![copied(report.checked), copied(report.timed)],
            in_use: None,
        }
    }

    #[test]
    fn a_good_copy_passes() {
        good_copy().verdict().unwrap();
        let text = good_copy().to_string();
        assert!(text.contains("         equal         equal"), "{text}");
        assert!(text.contains("           512           512"), "{text}");
    }

    #[test]
    fn every_defect_of_a_copy_is_named() {
        type Spoil = fn(&mut CopyReport);
        let cases: [(Spoil, &str); 6] = [
            (|r| r.bytes = 0, "empty"),
            (
                |r| r.copies[0].outcome.bytes -= 1,
                "received and sent differ",
            ),
            (|r| r.copies[1].equal = false, "content"),
            (|r| r.copies[1].outcome.copied = 1, "host memory"),
            (|r| r.copies[0].outcome.returned -= 1, "tokens"),
            (|r| r.in_use = Some(0), "not freed"),
        ];
        for (spoil, words) in cases {
            let mut report = good_copy();
            spoil(&mut report);
            let verdict = report.verdict().unwrap_err().to_string();
            assert!(verdict.contains(words), "{verdict}");
        }
    }

    #[test]
    fn every_defect_is_named() {
        type Spoil = fn(&mut Report);
        let cases: [(Spoil, &str); 9] = [
            (|r| r.checked.bytes -= 1, "bytes received and sent differ"),
            (|r| r.timed.bytes += 1, "bytes received and sent differ"),
            (|r| r.plain.bytes -= 1, "plain recv() differ"),
            (|r| r.checked.sha256 = Some([6; 32]), "SHA-256"),
            (|r| r.checked.sha256 = None, "SHA-256"),
            (|r| r.timed.copied = 1, "host memory"),
            (
                |r| (r.checked.frags, r.checked.returned) = (0, 0),
                "nothing came",
            ),
            (|r| r.timed.returned -= 1, "tokens"),
            (|r| r.in_use = Some(0), "not freed"),
        ];
        for (spoil, words) in cases {
            let mut report = good();
            spoil(&mut report);
            let verdict = report.verdict().unwrap_err().to_string();
            assert!(verdict.contains(words), "{verdict}");
        }
    }
}
