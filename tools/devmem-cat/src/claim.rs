// SPDX-License-Identifier: GPL-2.0

//! What is changed on a device, and changed back: header split, and rules; by the last who needs it, or by the
//! next if that one was killed.
//!
//! Each device has a folder. In it are, besides a lock for who changes something,
//!
//! - `before`: what header split was before the first came;
//! - a file of each process, which it has locked for as long as it lives: the rules that it has made, with their places
//!   and as they are shown. What is there of a process that is gone is its rules, which are removed if they still
//!   look like that: their places may have been given to others. A rule is announced there before it is made, with the
//!   places of those that there are: one that was not noted after that is found by what has come since.
//!
//! Nobody else may open any of it: to lock a file takes no more than that, and would keep everybody from ending.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process;

use devmem::device::Flow;
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
/// Begins the line of a rule that is about to be made: the places that are taken follow, and what it will be.
const MAKING: &str = "making";
/// The line if it could not be made.
const NOT_MADE: &str = "not made\n";
/// Who may open what is here.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A device.
pub trait Nic {
    /// What header split is.
    fn rings(&self) -> Result<Rings, String>;
    /// Changes header split.
    fn set_rings(&self, rings: Rings) -> Result<(), String>;
    /// The rules that there are by their places, as they are shown.
    fn rules(&self) -> Result<BTreeMap<u32, String>, String>;
    /// Makes a rule, and returns its place.
    fn add_rule(&self, flow: Flow) -> Result<u32, String>;
    /// Removes a rule.
    fn remove_rule(&self, place: u32) -> Result<(), String>;
}

/// A device that is made ready, and is put back when this is [released](Self::release).
pub struct Claim<N: Nic> {
    nic: N,
    /// What header split was.
    before: Rings,
    rules: Vec<u32>,
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

    /// Has a flow received by its queue, by a rule that is removed in the end.
    pub fn steer(&mut self, flow: Flow) -> Result<(), String> {
        let Some(record) = &self.record else {
            self.rules.push(self.nic.add_rule(flow)?);
            return Ok(());
        };
        // Who looks for rules of processes that are gone sees no others that nobody has noted.
        let _locked = record.folder.lock().map_err(|err| record.failed(err))?;
        let taken: Vec<_> = self.nic.rules()?.keys().map(u32::to_string).collect();
        record
            .note(&format!("{MAKING} {} {flow}\n", taken.join(",")))
            .map_err(|err| record.failed(err))?;
        let place = match self.nic.add_rule(flow) {
            Ok(place) => place,
            Err(err) => {
                // If this fails as well, there is a rule that was announced, and is not to be found.
                let _ = record.note(NOT_MADE);
                return Err(err);
            }
        };
        self.rules.push(place);
        let noted = self.nic.rules().and_then(|rules| {
            let text = rules.get(&place).ok_or("it is not there")?;
            record
                .note(&format!("{place} {text}\n"))
                .map_err(|err| err.to_string())
        });
        if let Err(err) = noted {
            tell::say(format_args!("noting rule {place}: {err}"));
        }
        Ok(())
    }

    /// Puts the device back, or leaves that to the others who need it as it is.
    pub fn release(self) {
        let locked = self.record.as_ref().map(|record| record.folder.lock());
        let mut all = true;
        for &place in &self.rules {
            if let Err(err) = self.nic.remove_rule(place) {
                tell::say(format_args!("removing rule {place}: {err}"));
                all = false;
            }
        }
        match (self.record, locked) {
            (Some(record), Some(Ok(locked))) => {
                // What is left is for the next, as if this had been killed.
                if all {
                    let _ = fs::remove_file(&record.path);
                }
                // The lock on it ends with the file.
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

impl Record {
    /// Adds a line. By one call: whenever this is killed, all of it is there, or nothing.
    fn note(&self, line: &str) -> io::Result<()> {
        let mut file = &*self.file;
        file.write_all(line.as_bytes())
    }

    fn failed(&self, err: io::Error) -> String {
        format!("{}: {err}", self.path.display())
    }
}

/// What a process has noted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Noted {
    /// The rules that it has made.
    rules: BTreeMap<u32, String>,
    /// One that it may have made: what that is, and where it is not.
    announced: Option<(String, BTreeSet<u32>)>,
}

impl Noted {
    fn read(path: &Path) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(path)?))
    }

    fn parse(text: &str) -> Self {
        let mut noted = Self::default();
        for line in text.lines() {
            noted.announced = None;
            let Some((first, rest)) = line.split_once(' ') else {
                continue;
            };
            match (first, first.parse(), rest.split_once(' ')) {
                (MAKING, _, Some((taken, rule))) => {
                    let taken = taken.split(',').filter_map(|place| place.parse().ok());
                    noted.announced = Some((rule.to_owned(), taken.collect()));
                }
                (_, Ok(place), _) => drop(noted.rules.insert(place, rest.to_owned())),
                _ => (),
            }
        }
        noted
    }

    /// Where rules are that are of this process alone, and those of the living are not.
    fn left(&self, now: &BTreeMap<u32, String>, living: &BTreeSet<u32>) -> Vec<u32> {
        let is_ours = |place: &u32, text: &String| {
            let announced = self
                .announced
                .as_ref()
                .is_some_and(|(rule, taken)| rule == text && !taken.contains(place));
            // Somebody may have removed it, and another may have got its place.
            self.rules.get(place) == Some(text) || announced
        };
        now.iter()
            .filter(|(place, text)| is_ours(place, text) && !living.contains(place))
            .map(|(&place, _)| place)
            .collect()
    }
}

impl Folder {
    /// Keeps all others out.
    fn lock(&self) -> io::Result<Locked> {
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(&self.0)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
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
            let mut options = File::options();
            options.append(true).create_new(true).mode(FILE_MODE);
            match options.open(&path) {
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
        let noted = |gone| -> Result<Vec<_>, String> {
            processes
                .iter()
                .filter(|(_, is_gone)| *is_gone == gone)
                .map(|(path, _)| Ok((path, Noted::read(path).map_err(|err| self.failed(err))?)))
                .collect()
        };
        let living = noted(false)?;
        let living = living.iter().flat_map(|(_, noted)| noted.rules.keys());
        let living = living.copied().collect();
        for (path, noted) in noted(true)? {
            if noted != Noted::default() {
                for place in noted.left(&nic.rules()?, &living) {
                    nic.remove_rule(place)?;
                    tell::say(format_args!(
                        "removed rule {place}, of a devmem-cat that was killed"
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
    use std::env;
    use std::os::unix::fs::PermissionsExt;

    use devmem::device::Version;

    const OFF: Rings = Rings {
        data_split: Some(DataSplit::Off),
        hds_thresh: Some(256),
    };

    /// The fake device has none of this number.
    const NO_QUEUE: u32 = 99;

    /// A device that is made up.
    struct Fake {
        rings: RefCell<Rings>,
        rules: RefCell<BTreeMap<u32, String>>,
        /// Whether something else has a queue bound.
        busy: RefCell<bool>,
        /// Whether nothing can be done about rules.
        broken: RefCell<bool>,
    }

    impl Fake {
        fn new() -> Self {
            Self {
                rings: RefCell::new(OFF),
                rules: RefCell::default(),
                busy: RefCell::new(false),
                broken: RefCell::new(false),
            }
        }

        fn add(&self, place: u32, text: &str) {
            self.rules.borrow_mut().insert(place, text.into());
        }

        fn places(&self) -> Vec<u32> {
            self.rules.borrow().keys().copied().collect()
        }

        fn shown(&self) -> Vec<String> {
            self.rules.borrow().values().cloned().collect()
        }

        fn check(&self) -> Result<(), String> {
            match *self.broken.borrow() {
                true => Err("not permitted".into()),
                false => Ok(()),
            }
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

        fn rules(&self) -> Result<BTreeMap<u32, String>, String> {
            self.check()?;
            Ok(self.rules.borrow().clone())
        }

        fn add_rule(&self, flow: Flow) -> Result<u32, String> {
            self.check()?;
            if flow.queue == NO_QUEUE {
                return Err("no such queue".into());
            }
            let mut rules = self.rules.borrow_mut();
            let place = (0..).find(|place| !rules.contains_key(place)).unwrap();
            rules.insert(place, flow.to_string());
            Ok(place)
        }

        fn remove_rule(&self, place: u32) -> Result<(), String> {
            self.check()?;
            let removed = self.rules.borrow_mut().remove(&place);
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

    fn flow(port: u16) -> Flow {
        Flow {
            version: Version::V4,
            port,
            queue: 1,
        }
    }

    /// One that has steered a port, by a rule at the next place.
    fn claim<'f>(fake: &'f Fake, temp: &Temp, port: u16) -> Claim<&'f Fake> {
        let mut claim = Claim::new(fake, &temp.0).unwrap();
        claim.steer(flow(port)).unwrap();
        claim
    }

    /// As if it were killed: what it has locked is no longer, and nothing else is done.
    fn kill(claim: Claim<&Fake>) {
        drop(claim.record);
    }

    #[test]
    fn what_was_changed_is_changed_back() {
        let (fake, temp) = (Fake::new(), Temp::new("back"));
        let claim = claim(&fake, &temp, 7);
        assert_eq!(*fake.rings.borrow(), Rings::DEVMEM);
        claim.release();
        assert_eq!(*fake.rings.borrow(), OFF);
        assert_eq!(fake.places(), [0; 0]);
        let left: Vec<_> = fs::read_dir(&temp.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [LOCK]);
    }

    #[test]
    fn nobody_else_may_lock_any_of_it() {
        let (fake, temp) = (Fake::new(), Temp::new("modes"));
        let claim = claim(&fake, &temp, 1);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&temp.0), FOLDER_MODE);
        let record = &claim.record.as_ref().unwrap().path;
        for path in [&temp.0.join(LOCK), record] {
            assert_eq!(mode(path), FILE_MODE);
        }
        claim.release();
    }

    #[test]
    fn the_last_of_several_changes_it_back() {
        let (fake, temp) = (Fake::new(), Temp::new("last"));
        let first = claim(&fake, &temp, 1);
        let second = claim(&fake, &temp, 2);
        let third = claim(&fake, &temp, 3);
        first.release();
        assert_eq!(*fake.rings.borrow(), Rings::DEVMEM);
        assert_eq!(fake.places(), [1, 2]);
        // What is left of this one does not keep the last from it.
        kill(third);
        second.release();
        assert_eq!(*fake.rings.borrow(), OFF);
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.places(), [0; 0]);
    }

    #[test]
    fn the_next_removes_what_one_that_was_killed_has_left() {
        let (fake, temp) = (Fake::new(), Temp::new("next"));
        kill(claim(&fake, &temp, 1));
        kill(claim(&fake, &temp, 2));
        assert_eq!(fake.shown(), [flow(2).to_string()]);
        let next = claim(&fake, &temp, 3);
        assert_eq!(fake.shown(), [flow(3).to_string()]);
        next.release();
        assert_eq!(*fake.rings.borrow(), OFF);
        assert_eq!(fake.places(), [0; 0]);
    }

    #[test]
    fn what_is_cleaned_up_is_not_what_is_in_use() {
        let (fake, temp) = (Fake::new(), Temp::new("clean"));
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(*fake.rings.borrow(), OFF);
        let live = claim(&fake, &temp, 1);
        kill(claim(&fake, &temp, 2));
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.shown(), [flow(1).to_string()]);
        assert_eq!(*fake.rings.borrow(), Rings::DEVMEM);
        kill(live);
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.places(), [0; 0]);
        assert_eq!(*fake.rings.borrow(), OFF);
    }

    #[test]
    fn a_place_that_another_rule_has_got() {
        let (fake, temp) = (Fake::new(), Temp::new("place"));
        kill(claim(&fake, &temp, 1));
        fake.add(0, "another");
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.shown(), ["another"]);
        // Nor does one that is gone keep anything from being done.
        kill(claim(&fake, &temp, 2));
        fake.rules.borrow_mut().clear();
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(*fake.rings.borrow(), OFF);
    }

    #[test]
    fn what_cannot_be_restored_now_is_by_the_next() {
        let (fake, temp) = (Fake::new(), Temp::new("later"));
        let first = claim(&fake, &temp, 1);
        *fake.busy.borrow_mut() = true;
        first.release();
        assert!(Claim::new(&fake, &temp.0).is_err());
        *fake.busy.borrow_mut() = false;
        claim(&fake, &temp, 2).release();
        assert_eq!(*fake.rings.borrow(), OFF);
    }

    #[test]
    fn a_rule_that_cannot_be_removed_now_is_by_the_next() {
        let (fake, temp) = (Fake::new(), Temp::new("broken"));
        let own = claim(&fake, &temp, 1);
        *fake.broken.borrow_mut() = true;
        own.release();
        assert_eq!(*fake.rings.borrow(), OFF);
        assert!(clean_up(&&fake, &temp.0).is_err());
        assert_eq!(fake.places(), [0]);
        *fake.broken.borrow_mut() = false;
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.places(), [0; 0]);
        // It is told once.
        let left = fs::read_dir(&temp.0).unwrap().count();
        assert_eq!(left, 1, "the lock");
    }

    /// A devmem-cat that was killed before it had noted the last rule that it made, or made none.
    fn kill_before_it_notes(claim: Claim<&Fake>) {
        let path = claim.record.as_ref().unwrap().path.clone();
        let text = fs::read_to_string(&path).unwrap();
        let (before, last) = text.trim_end().rsplit_once('\n').unwrap();
        assert!(!last.starts_with(MAKING), "{text}");
        fs::write(&path, format!("{before}\n")).unwrap();
        kill(claim);
    }

    #[test]
    fn a_rule_that_was_not_noted_is_found() {
        let (fake, temp) = (Fake::new(), Temp::new("noted"));
        // Somebody's own, which looks the same.
        fake.add(0, &flow(1).to_string());
        kill_before_it_notes(claim(&fake, &temp, 1));
        assert_eq!(fake.places(), [0, 1]);
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.places(), [0]);

        // The second one of several; and one that lives has got its place since, and looks the same.
        let mut live = Claim::new(&fake, &temp.0).unwrap();
        let mut dying = claim(&fake, &temp, 1);
        dying.steer(flow(2)).unwrap();
        kill_before_it_notes(dying);
        assert_eq!(fake.places(), [0, 1, 2]);
        (&fake).remove_rule(2).unwrap();
        (&fake).remove_rule(1).unwrap();
        fake.add(1, "another");
        live.steer(flow(2)).unwrap();
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.places(), [0, 1, 2]);
        live.release();
        assert_eq!(fake.places(), [0, 1]);
    }

    #[test]
    fn a_rule_that_was_not_made_is_nobodys() {
        let (fake, temp) = (Fake::new(), Temp::new("refused"));
        let mut one = claim(&fake, &temp, 1);
        let refused = Flow {
            queue: NO_QUEUE,
            ..flow(2)
        };
        assert_eq!(one.steer(refused).unwrap_err(), "no such queue");
        fake.add(1, &refused.to_string());
        kill(one);
        clean_up(&&fake, &temp.0).unwrap();
        assert_eq!(fake.places(), [1]);
    }

    #[test]
    fn where_nothing_can_be_written_down() {
        let fake = Fake::new();
        let mut claim = Claim::new(&fake, Path::new("/proc/no/such/folder")).unwrap();
        claim.steer(flow(1)).unwrap();
        assert_eq!(*fake.rings.borrow(), Rings::DEVMEM);
        claim.release();
        assert_eq!(*fake.rings.borrow(), OFF);
        assert_eq!(fake.places(), [0; 0]);
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
