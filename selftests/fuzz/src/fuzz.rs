// SPDX-License-Identifier: GPL-2.0

//! Runs sequences on both providers, and follows up what it finds.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use devmem_testlib::Provider;
use devmem_testlib::report::diag;

use crate::arena::Arenas;
use crate::compare::Difference;
use crate::compare::Verdict;
use crate::compare::compare;
use crate::corpus;
use crate::corpus::Case;
use crate::generate::Source;
use crate::generate::sequence;
use crate::leftovers::Leftovers;
use crate::op::Op;
use crate::saw::Transcript;
use crate::session;
use crate::shrink::shrink;
use crate::stats::Stats;
use crate::world::World;

/// How long shrinking may take.
const SHRINKING: Duration = Duration::from_secs(60);

/// How long buffers and bindings may take to come back.
const BACK: Duration = Duration::from_secs(5);
/// The same while shrinking, where what is lost has to be waited for again and again.
const BACK_SMALL: Duration = Duration::from_millis(300);

/// How long a block is.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// So many operations on each provider.
    Ops(u64),
    /// So long.
    Time(Duration),
}

/// A fuzzer.
#[derive(Debug)]
pub struct Fuzzer {
    world: World,
    arenas: Arenas,
    leftovers: Leftovers,
    save: Option<PathBuf>,
    /// What it has done.
    pub stats: Stats,
}

impl Fuzzer {
    /// A fuzzer that saves in this directory what it finds.
    pub fn new(save: Option<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            world: World::new()?,
            arenas: Arenas::new()?,
            leftovers: Leftovers::new(BACK),
            save,
            stats: Stats::new(),
        })
    }

    /// Runs a sequence of the corpus; false if it fails.
    pub fn case(&mut self, case: &Case) -> io::Result<bool> {
        let good = match self.both(&case.ops)?.0 {
            Verdict::Different(difference) => {
                diag(format_args!(
                    "operation {}: {}",
                    difference.at, difference.what
                ));
                false
            }
            _ => true,
        };
        Ok(self.all_back()? && good)
    }

    /// Runs random sequences until the block is full, or one fails: false, then.
    pub fn block(&mut self, seed: u64, extent: Extent) -> io::Result<bool> {
        let (start, before) = (Instant::now(), self.stats.ops());
        let mut source = Source::new(seed);
        let mut good = true;
        while good
            && match extent {
                Extent::Ops(ops) => self.stats.ops() - before < ops,
                Extent::Time(time) => start.elapsed() < time,
            }
        {
            let ops = sequence(&mut source);
            if let Verdict::Different(difference) = self.both(&ops)?.0 {
                self.follow_up(seed, ops, difference)?;
                good = false;
            }
        }
        Ok(self.all_back()? && good)
    }

    /// Runs a sequence, and tells what it sees; false if it fails.
    pub fn tell(&mut self, ops: &[Op]) -> io::Result<bool> {
        let (verdict, c, rust) = self.both(ops)?;
        for (at, op) in ops.iter().enumerate() {
            println!("{at}: {}", corpus::line(op));
            println!("    builtin:         {:?}", c.steps[at]);
            println!("    devmem_provider: {:?}", rust.steps[at]);
        }
        println!("faults on builtin:         {:#?}", c.faults);
        println!("faults on devmem_provider: {:#?}", rust.faults);
        match verdict {
            Verdict::Same => println!("the same"),
            Verdict::Intended(rule) => println!("meant to differ, {}: {}", rule.name, rule.reason),
            Verdict::Different(difference) => {
                println!("operation {}: {}", difference.at, difference.what);
                return Ok(false);
            }
        }
        self.all_back()
    }

    fn both(&mut self, ops: &[Op]) -> io::Result<(Verdict, Transcript, Transcript)> {
        let [c, rust] = [Provider::Builtin, Provider::Module].map(|provider| {
            session::run(
                &self.world,
                &mut self.arenas,
                &mut self.leftovers,
                provider.name(),
                ops,
            )
        });
        let (c, rust) = (c?, rust?);
        let verdict = compare(ops, &c, &rust);
        self.stats.add(ops, &c, &verdict);
        Ok((verdict, c, rust))
    }

    /// Checks that every binding is gone.
    fn all_back(&mut self) -> io::Result<bool> {
        let left = self.leftovers.wait_no_bindings()?;
        if let Some(left) = &left {
            diag(left);
        }
        Ok(left.is_none())
    }

    /// Shrinks what was found, tells it, and saves it.
    fn follow_up(&mut self, seed: u64, ops: Vec<Op>, found: Difference) -> io::Result<()> {
        diag(format_args!(
            "seed {seed}: operation {} of {}: {}",
            found.at,
            ops.len(),
            found.what
        ));
        let start = Instant::now();
        self.leftovers.patience = BACK_SMALL;
        let mut last = None;
        let mut error = Ok(());
        let mut fails = |fuzzer: &mut Self, ops: &[Op]| {
            if start.elapsed() > SHRINKING {
                return None;
            }
            match fuzzer.both(ops) {
                Ok((Verdict::Different(difference), ..)) => {
                    last = Some(difference.what);
                    Some(true)
                }
                Ok(_) => Some(false),
                Err(err) => {
                    error = Err(err);
                    None
                }
            }
        };
        let short = ops[..(found.at + 1).min(ops.len())].to_vec();
        let begin = match fails(self, &short) {
            Some(true) => short,
            _ => ops,
        };
        let small = shrink(begin, |ops| fails(self, ops));
        self.leftovers.patience = BACK;
        error?;
        let what = last.unwrap_or_else(|| {
            diag("it does not fail again");
            found.what
        });
        let text = corpus::text(&format!("Seed {seed}.\n{what}"), &small);
        diag(&text);
        if let Some(dir) = &self.save {
            let path = dir.join(format!("seed-{seed}.ron"));
            fs::write(&path, text)?;
            diag(format_args!("saved as {}", path.display()));
        }
        diag(format_args!(
            "{} operations are left, shrunk in {:.0} s",
            small.len(),
            start.elapsed().as_secs_f64()
        ));
        Ok(())
    }
}
