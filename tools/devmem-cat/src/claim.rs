// SPDX-License-Identifier: GPL-2.0

//! What is changed on a device, and changed back: header split, and rules; by the last who needs it, or by the
//! next if that one was killed.
//!
//! Each device has a folder. In it are, besides a lock for who changes something,
//!
//! - `before`: what header split was before the first came;
//! - a file of each process, which it has locked for as long as it lives: the rules that it has made, as
//!   `ethtool` shows them. What is there of a process that is gone is its rules, which are removed if they still
//!   look like that: their numbers may have been given to others.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::process;

use devmem::ethtool::DataSplit;
use devmem::ethtool::Rings;
use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::fcntl::FlockArg;

use crate::tell;

const LOCK: &str = "lock";
const BEFORE: &str = "before";
/// `before` while it is being written.
const NEW: &str = "before.new";

/// A device.
pub trait Nic {
    /// What header split is.
    fn rings(&self) -> Result<Rings, String>;
    /// Changes header split.
    fn set_rings(&self, rings: Rings) -> Result<(), String>;
    /// What is shown of a rule.
    fn rule(&self, id: &str) -> Result<String, String>;
    /// Removes a rule.
    fn remove_rule(&self, id: &str) -> Result<(), String>;
}

/// A device that is made ready, and is put back when this is [released](Self::release).
pub struct Claim<N: Nic> {
    nic: N,
    /// What header split was.
    before: Rings,
    rules: Vec<String>,
    /// Where the others look, unless that cannot be written.
    record: Option<Record>,
}

/// What is written down for others.
struct Record {
    folder: Folder,
    path: PathBuf,
    /// Locked, which the kernel ends whatever ends the process.
    file: Flock<File>,
}

/// The folder of a device.
struct Folder(PathBuf);

/// The lock of a folder, until this is dropped.
type Locked = Flock<File>;

impl<N: Nic> Claim<N> {
    /// Removes what processes that are gone have left, and switches header split on.
    pub fn new(nic: N, folder: &Path) -> Result<Self, String> {
        let folder = Folder(folder.to_owned());
        let (record, before) = match folder.lock() {
            Ok(locked) => folder.enter(&nic, &locked)?,
            Err(err) => {
                tell::say(format_args!(
                    "{}: {err}: if this is killed, nobody will know what it has left",
                    folder.0.display()
                ));
                (None, nic.rings()?)
            }
        };
        let claim = Self {
            nic,
            before,
            rules: Vec::new(),
            record,
        };
        let wanted = claim.before.for_devmem();
        match claim.nic.set_rings(wanted) {
            Ok(()) => Ok(claim),
            Err(err) => {
                claim.release();
                Err(format!("switching on header split: {err}"))
            }
        }
    }

    /// The device.
    pub fn nic(&self) -> &N {
        &self.nic
    }

    /// Takes a rule that was made: it is removed in the end.
    pub fn take_rule(&mut self, id: &str) {
        self.rules.push(id.to_owned());
        let Some(record) = &mut self.record else {
            return;
        };
        let noted = self
            .nic
            .rule(id)
            .and_then(|text| writeln!(&*record.file, "{id} {text}").map_err(|err| err.to_string()));
        if let Err(err) = noted {
            tell::say(format_args!("noting rule {id}: {err}"));
        }
    }

    /// Puts the device back, or leaves that to the others who need it as it is.
    pub fn release(self) {
        let locked = self.record.as_ref().map(|record| record.folder.lock());
        for id in &self.rules {
            if let Err(err) = self.nic.remove_rule(id) {
                tell::say(format_args!("removing rule {id}: {err}"));
            }
        }
        match (self.record, locked) {
            (Some(record), Some(Ok(locked))) => {
                // The lock on it ends with the file.
                let _ = fs::remove_file(&record.path);
                drop(record.file);
                if let Err(err) = record.folder.restore(&self.nic, &locked) {
                    tell::say(err);
                }
            }
            (Some(record), _) => tell::say(format_args!(
                "{}: cannot be locked, header split stays on",
                record.folder.0.display()
            )),
            (None, _) => {
                if let Err(err) = self.nic.set_rings(self.before) {
                    tell::say(format_args!("restoring header split: {err}"));
                }
            }
        }
    }
}

/// Removes what processes that are gone have left on a device.
pub fn clean_up(nic: &impl Nic, folder: &Path) -> Result<(), String> {
    let folder = Folder(folder.to_owned());
    let locked = folder
        .lock()
        .map_err(|err| format!("{}: {err}", folder.0.display()))?;
    folder.remove_stale(nic, &locked)?;
    folder.restore(nic, &locked)
}

impl Folder {
    /// Keeps all others out.
    fn lock(&self) -> io::Result<Locked> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.0)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.0.join(LOCK))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, err)| err.into())
    }

    /// What a new one finds, and the file by which others will find it.
    fn enter(&self, nic: &impl Nic, locked: &Locked) -> Result<(Option<Record>, Rings), String> {
        self.remove_stale(nic, locked)?;
        let before = match self.before() {
            Some(before) => before,
            None => {
                let now = nic.rings()?;
                self.set_before(now).map_err(|err| self.failed(err))?;
                now
            }
        };
        let record = self.add(locked).map_err(|err| self.failed(err))?;
        Ok((Some(record), before))
    }

    fn failed(&self, err: io::Error) -> String {
        format!("{}: {err}", self.0.display())
    }

    /// A new file of this process, locked.
    fn add(&self, _locked: &Locked) -> io::Result<Record> {
        let mut number = 0;
        loop {
            // Processes of other containers may have the same number.
            let path = self.0.join(format!("process-{}-{number}", process::id()));
            match File::options().append(true).create_new(true).open(&path) {
                Ok(file) => {
                    let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
                        .map_err(|(_, err)| io::Error::from(err))?;
                    let folder = Self(self.0.clone());
                    return Ok(Record { folder, path, file });
                }
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(err) => return Err(err),
            }
        }
    }

    /// Files of processes, and whether these are gone.
    fn processes(&self) -> io::Result<Vec<(PathBuf, bool)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with("process-") {
                continue;
            }
            let file = File::open(entry.path())?;
            let gone = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(_) => true,
                Err((_, Errno::EAGAIN)) => false,
                Err((_, err)) => return Err(err.into()),
            };
            found.push((entry.path(), gone));
        }
        Ok(found)
    }

    /// Removes the rules of processes that are gone.
    fn remove_stale(&self, nic: &impl Nic, _locked: &Locked) -> Result<(), String> {
        let processes = self.processes().map_err(|err| self.failed(err))?;
        for (path, _) in processes.iter().filter(|(_, gone)| *gone) {
            let noted = fs::read_to_string(path).map_err(|err| self.failed(err))?;
            for (id, text) in noted.lines().filter_map(|line| line.split_once(' ')) {
                // Somebody may have removed it, and another may have got its number.
                if nic.rule(id).is_ok_and(|now| now == text) {
                    nic.remove_rule(id)?;
                    tell::say(format_args!(
                        "removed rule {id}, of a devmem-cat that was killed"
                    ));
                }
            }
            fs::remove_file(path).map_err(|err| self.failed(err))?;
        }
        Ok(())
    }

    /// Puts header split back, unless somebody else needs it.
    fn restore(&self, nic: &impl Nic, _locked: &Locked) -> Result<(), String> {
        let processes = self.processes().map_err(|err| self.failed(err))?;
        let needed = processes.iter().any(|(_, gone)| !gone);
        match self.before() {
            Some(before) if !needed => {
                // If it cannot be done now, the next may.
                nic.set_rings(before)
                    .map_err(|err| format!("restoring header split: {err}"))?;
                fs::remove_file(self.0.join(BEFORE)).map_err(|err| self.failed(err))
            }
            _ => Ok(()),
        }
    }

    fn before(&self) -> Option<Rings> {
        parse(&fs::read_to_string(self.0.join(BEFORE)).ok()?)
    }

    fn set_before(&self, rings: Rings) -> io::Result<()> {
        // There all of it, or nothing, whenever this is killed.
        fs::write(self.0.join(NEW), print(rings))?;
        fs::rename(self.0.join(NEW), self.0.join(BEFORE))
    }
}

fn print(rings: Rings) -> String {
    let split = match rings.data_split {
        Some(DataSplit::Auto) => "auto",
        Some(DataSplit::Off) => "off",
        Some(DataSplit::On) => "on",
        _ => "-",
    };
    let thresh = rings.hds_thresh.map_or("-".into(), |n| n.to_string());
    format!("tcp-data-split {split} hds-thresh {thresh}\n")
}

fn parse(text: &str) -> Option<Rings> {
    let mut words = text.split_whitespace();
    let mut value = |name| (words.next() == Some(name)).then(|| words.next()).flatten();
    let data_split = match value("tcp-data-split")? {
        "auto" => Some(DataSplit::Auto),
        "off" => Some(DataSplit::Off),
        "on" => Some(DataSplit::On),
        "-" => None,
        _ => return None,
    };
    let hds_thresh = match value("hds-thresh")? {
        "-" => None,
        number => Some(number.parse().ok()?),
    };
    Some(Rings {
        data_split,
        hds_thresh,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::env;

    const OFF: Rings = Rings {
        data_split: Some(DataSplit::Off),
        hds_thresh: Some(256),
    };

    /// A device that is made up.
    struct Fake {
        rings: RefCell<Rings>,
        rules: RefCell<BTreeMap<String, String>>,
        /// Whether something else has a queue bound.
        busy: RefCell<bool>,
    }

    impl Fake {
        fn new() -> Self {
            Self {
                rings: RefCell::new(OFF),
                rules: RefCell::default(),
                busy: RefCell::new(false),
            }
        }

        fn add(&self, id: &str, text: &str) {
            self.rules.borrow_mut().insert(id.into(), text.into());
        }

        fn ids(&self) -> Vec<String> {
            self.rules.borrow().keys().cloned().collect()
        }
    }

    impl Nic for &Fake {
        fn rings(&self) -> Result<Rings, String> {
            Ok(*self.rings.borrow())
        }

        fn set_rings(&self, rings: Rings) -> Result<(), String> {
            if *self.busy.borrow() {
                return Err("busy".into());
            }
            *self.rings.borrow_mut() = rings;
            Ok(())
        }

        fn rule(&self, id: &str) -> Result<String, String> {
            let rules = self.rules.borrow();
            rules.get(id).cloned().ok_or("no such rule".into())
        }

        fn remove_rule(&self, id: &str) -> Result<(), String> {
            let removed = self.rules.borrow_mut().remove(id);
            removed.map(drop).ok_or("no such rule".into())
        }
    }

    /// A folder of a test's own, until this is dropped.
    struct Temp(PathBuf);

    impl Temp {
        fn new(name: &str) -> Self {
            Self(env::temp_dir().join(format!("devmem-cat-claim-{name}-{}", process::id())))
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn claim<'f>(fake: &'f Fake, temp: &Temp, rule: &str) -> Claim<&'f Fake> {
        let mut claim = Claim::new(fake, &temp.0).unwrap();
        fake.add(rule, &format!("text of {rule}"));
        claim.take_rule(rule);
        claim
    }

    /// As if it were killed: what it has locked is no longer, and nothing else is done.
    fn kill(claim: Claim<&Fake>) {
        drop(claim.record);
    }

    #[test]
    fn what_was_changed_is_changed_back() {
        let (fake, temp) = (Fake::new(), Temp::new("back"));
        let claim = claim(&fake, &temp, "7");
        assert_eq!(*fake.rings.borrow(), Rings::DEVMEM);
        claim.release();
        assert_eq!(*fake.rings.borrow(), OFF);
        assert_eq!(fake.ids(), [""; 0]);
        let left: Vec<_> = fs::read_dir(&temp.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [LOCK]);
    }

    #[test]
    fn the_last_of_several_changes_it_back() {
        let (fake, temp) = (Fake::new(), Temp::new("last"));
        let first = claim(&fake, &temp, "1");
        let second = claim(&fake, &temp, "2");
        let third = claim(&fake, &temp, "3");
        first.release();
        assert_eq!(*fake.rings.borrow(), Rings::DEVMEM);
        assert_eq!(fake.ids(), ["2", "3"]);
        // What is left of this one does not keep the last from it.
        kill(third);
        second.release();
        assert_eq!(*fake.rings.borrow(), OFF);
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.ids(), [""; 0]);
    }

    #[test]
    fn the_next_removes_what_one_that_was_killed_has_left() {
        let (fake, temp) = (Fake::new(), Temp::new("next"));
        kill(claim(&fake, &temp, "1"));
        kill(claim(&fake, &temp, "2"));
        assert_eq!(fake.ids(), ["2"]);
        let next = claim(&fake, &temp, "3");
        assert_eq!(fake.ids(), ["3"]);
        next.release();
        assert_eq!(*fake.rings.borrow(), OFF);
        assert_eq!(fake.ids(), [""; 0]);
    }

    #[test]
    fn what_is_cleaned_up_is_not_what_is_in_use() {
        let (fake, temp) = (Fake::new(), Temp::new("clean"));
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(*fake.rings.borrow(), OFF);
        let live = claim(&fake, &temp, "1");
        kill(claim(&fake, &temp, "2"));
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.ids(), ["1"]);
        assert_eq!(*fake.rings.borrow(), Rings::DEVMEM);
        kill(live);
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.ids(), [""; 0]);
        assert_eq!(*fake.rings.borrow(), OFF);
    }

    #[test]
    fn a_number_that_another_rule_has_got() {
        let (fake, temp) = (Fake::new(), Temp::new("number"));
        kill(claim(&fake, &temp, "1"));
        fake.add("1", "another");
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.ids(), ["1"]);
        // Nor does one that is gone keep anything from being done.
        kill(claim(&fake, &temp, "2"));
        fake.rules.borrow_mut().clear();
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(*fake.rings.borrow(), OFF);
    }

    #[test]
    fn what_cannot_be_restored_now_is_by_the_next() {
        let (fake, temp) = (Fake::new(), Temp::new("later"));
        let first = claim(&fake, &temp, "1");
        *fake.busy.borrow_mut() = true;
        first.release();
        assert!(Claim::new(&fake, &temp.0).is_err());
        *fake.busy.borrow_mut() = false;
        claim(&fake, &temp, "2").release();
        assert_eq!(*fake.rings.borrow(), OFF);
    }

    #[test]
    fn where_nothing_can_be_written_down() {
        let fake = Fake::new();
        let mut claim = Claim::new(&fake, Path::new("/proc/no/such/folder")).unwrap();
        fake.add("1", "text");
        claim.take_rule("1");
        assert_eq!(*fake.rings.borrow(), Rings::DEVMEM);
        claim.release();
        assert_eq!(*fake.rings.borrow(), OFF);
        assert_eq!(fake.ids(), [""; 0]);
    }

    #[test]
    fn what_header_split_was_is_read_as_it_was_written() {
        for data_split in [
            None,
            Some(DataSplit::Auto),
            Some(DataSplit::Off),
            Some(DataSplit::On),
        ] {
            for hds_thresh in [None, Some(0), Some(u32::MAX)] {
                let rings = Rings {
                    data_split,
                    hds_thresh,
                };
                assert_eq!(parse(&print(rings)), Some(rings));
            }
        }
        for text in [
            "",
            "tcp-data-split on",
            "tcp-data-split on hds-thresh x",
            "on 0",
        ] {
            assert_eq!(parse(text), None);
        }
    }
}
