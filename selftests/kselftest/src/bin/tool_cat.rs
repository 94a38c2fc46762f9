// SPDX-License-Identifier: GPL-2.0

//! `devmem-cat`, as users run it: what it transfers, how it ends, and that nothing of it is left on the device.

use std::env;
use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::ethtool::DataSplit;
use devmem::ethtool::Ethtool;
use devmem::ethtool::Rings;
use devmem_bulk::Status;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::child::Reaper;
use devmem_testlib::events;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::pair::address;
use devmem_testlib::probe::Call;
use devmem_testlib::provider;
use devmem_testlib::report::Stop;
use devmem_testlib::report::diag;
use devmem_testlib::runner;
use devmem_testlib::skip;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::wait;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// What ends a process within a moment, or brings a file over, may take so long.
const LONG: Duration = Duration::from_secs(30);
/// The status after a signal.
const INTERRUPTED: Option<i32> = Some(130);
/// What header split is before: not what a receiver wants.
const BEFORE: Rings = Rings {
    data_split: Some(DataSplit::Off),
    hds_thresh: Some(0),
};

/// A devmem-cat, killed when this is dropped.
struct Cat {
    child: Reaper,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    lines: Receiver<String>,
    /// What it has said on standard error.
    said: Vec<String>,
}

impl Cat {
    /// The program.
    fn program() -> io::Result<PathBuf> {
        Ok(env::current_exe()?.with_file_name("devmem-cat"))
    }

    /// Starts one at an end, with that end's interface.
    fn start(end: &End, command: &str, options: &str) -> io::Result<Self> {
        Self::start_by(Command::new(Self::program()?), end, command, options)
    }

    /// The same, by a command line that begins like this.
    fn start_by(mut line: Command, end: &End, command: &str, options: &str) -> io::Result<Self> {
        line.args([command, "-i", &end.ifname]);
        Self::start_at(line, end, options)
    }

    /// Starts one at an end, whatever interface it has.
    fn start_at(mut line: Command, end: &End, options: &str) -> io::Result<Self> {
        line.args(options.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Reaper(end.ns.run(|| line.spawn())?);
        let (to, lines) = mpsc::channel();
        if let Some(stderr) = child.0.stderr.take() {
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    if to.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self {
            stdin: child.0.stdin.take(),
            stdout: child.0.stdout.take(),
            child,
            lines,
            said: Vec::new(),
        })
    }

    /// A receiver that listens, on queue 1.
    fn receiver(pair: &Pair, port: u16, options: &str) -> io::Result<Self> {
        let options = format!("-l 192.0.2.1:{port} -q 1 -m 4 {options}");
        let mut cat = Self::start(&pair.rx, "receive", &options)?;
        cat.says("listening on");
        Ok(cat)
    }

    /// A sender that connects.
    fn sender(pair: &Pair, port: u16, options: &str) -> io::Result<Self> {
        let options = format!("-c 192.0.2.1:{port} -m 4 {options}");
        Self::start(&pair.tx, "send", &options)
    }

    /// Waits until it says this.
    #[track_caller]
    fn says(&mut self, what: &str) {
        let limit = wait::stretched(LONG);
        let start = Instant::now();
        while !self.said.iter().any(|line| line.contains(what)) {
            let left = limit.saturating_sub(start.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.said.push(line),
                Err(err) => panic!("it has not said {what:?}: {err}, but {:?}", self.said),
            }
        }
    }

    /// Whether it has said this by now. It says no more.
    fn has_said(&self, what: &str) -> bool {
        self.said.iter().any(|line| line.contains(what))
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.0.id()).map_err(io::Error::other)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    /// Waits until it has ended; what it still had to say is there then.
    #[track_caller]
    fn status(&mut self) -> io::Result<Option<i32>> {
        let mut status = None;
        wait::until_or_tell(
            "devmem-cat to end",
            LONG,
            || {
                status = self.child.0.try_wait()?;
                Ok(status.is_some())
            },
            || format!("it has said {:?}", self.said),
        )?;
        self.said.extend(self.lines.iter());
        Ok(status.and_then(|status| status.code()))
    }

    /// Waits until it has ended, which has to be like this.
    #[track_caller]
    fn ends_with(&mut self, expected: Option<i32>) -> Outcome {
        let status = self.status()?;
        assert_eq!(status, expected, "it has said {:?}", self.said);
        Ok(())
    }

    /// What it has written to standard output. It has ended.
    fn written(&mut self) -> io::Result<String> {
        let mut text = String::new();
        if let Some(mut stdout) = self.stdout.take() {
            stdout.read_to_string(&mut text)?;
        }
        Ok(text)
    }

    /// What it has to send, and no more than that.
    fn give(&mut self, len: usize) -> io::Result<()> {
        match self.stdin.take() {
            Some(mut stdin) => stdin.write_all(traffic::bytes(0, len)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// A file of a test's own, until this is dropped.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str) -> Self {
        Self(env::temp_dir().join(format!("devmem-cat-{name}-{}", process::id())))
    }

    fn option(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A pair whose header split is off.
fn pair() -> io::Result<Pair> {
    let pair = Pair::new()?;
    pair.rx.set_rings(BEFORE)?;
    assert_eq!(rings(&pair)?, BEFORE);
    Ok(pair)
}

fn rings(pair: &Pair) -> io::Result<Rings> {
    pair.rx
        .ns
        .run(|| Ok(Ethtool::open()?.rings(pair.rx.ifindex)?))
}

/// How many rules there are.
fn rules(pair: &Pair) -> io::Result<usize> {
    Ok(ethtool(pair, "-n", &[])?.matches("Filter:").count())
}

/// What the program `ethtool` says to this.
fn ethtool(pair: &Pair, option: &str, words: &[&str]) -> io::Result<String> {
    let mut line = Command::new("ethtool");
    line.args([option, &pair.rx.ifname]).args(words);
    let output = pair.rx.ns.run(|| line.output())?;
    assert!(output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many queues are bound.
fn bound(pair: &Pair) -> io::Result<usize> {
    let queues = pair.queues()?;
    Ok(queues.iter().filter(|queue| queue.dmabuf.is_some()).count())
}

/// The device is as it was.
#[track_caller]
fn assert_nothing_left(pair: &Pair) -> Outcome {
    assert_eq!(rules(pair)?, 0, "rules");
    assert_eq!(bound(pair)?, 0, "bound queues");
    assert_eq!(rings(pair)?, BEFORE);
    Ok(())
}

/// Bytes of the stream, as a file has them.
fn assert_content(path: &Path, len: usize) -> Outcome {
    let content = fs::read(path)?;
    assert_eq!(content.len(), len, "{}", path.display());
    traffic::compare(0, &content);
    Ok(())
}

const LEN: usize = 1_000_000;

/// By each of the ways to make system calls, and told to programs.
fn a_file_arrives() -> Outcome {
    let pair = pair()?;
    for (i, backend) in ["blocking", "uring", "uring-multishot"].iter().enumerate() {
        let port = 5301 + i as u16;
        let (from, to) = (TempFile::new("from"), TempFile::new("to"));
        fs::write(&from.0, traffic::bytes(0, LEN))?;
        let options = format!("-s --json --sha256 -b {backend} -o {}", to.option());
        let mut rx = Cat::receiver(&pair, port, &options)?;
        let mut tx = Cat::sender(
            &pair,
            port,
            &format!("-b {backend} --json -f {}", from.option()),
        )?;
        tx.ends_with(Some(0))?;
        rx.ends_with(Some(0))?;
        assert_content(&to.0, LEN)?;
        for cat in [&mut rx, &mut tx] {
            let line = cat.written()?;
            assert!(
                line.contains("\"bytes\":1000000") && line.contains("\"error\":null"),
                "{line}"
            );
            assert_eq!(line.lines().count(), 1, "{line}");
        }
        assert!(rx.has_said("connection from 192.0.2.2:"), "{:?}", rx.said);
        assert!(
            !rx.has_said("nothing came in device memory"),
            "{:?}",
            rx.said
        );
        assert_nothing_left(&pair)?;
    }
    Ok(())
}

/// Into a region of another machine's memory, and from there into another one, by queues and without.
fn a_file_is_put_and_got() -> Outcome {
    let pair = pair()?;
    // The control connection has to be kept off the bound queue, too.
    pair.rx.receive_by_queue(1)?;
    for (i, options) in ["-q 1 -s --landing 4", ""].iter().enumerate() {
        let port = 5400 + 2 * i as u16;
        let (from, to, key) = (
            TempFile::new("from"),
            TempFile::new("to"),
            TempFile::new("key"),
        );
        fs::write(&from.0, traffic::bytes(0, LEN))?;
        let options = format!("-l 192.0.2.1:{port} -m 4 {options}");
        let mut server = Cat::start(&pair.rx, "serve", &options)?;
        server.says("serving at");
        let mut line = String::new();
        let stdout = server.stdout.take().expect("its standard output");
        BufReader::new(stdout).read_line(&mut line)?;
        fs::write(&key.0, &line)?;
        let peer = format!("-c 192.0.2.1:{port} -k {} --offset 5000", key.option());
        let options = format!("{peer} -n 2 -f {}", from.option());
        Cat::start(&pair.tx, "put", &options)?.ends_with(Some(0))?;
        let options = format!("{peer} --size {LEN} -o {}", to.option());
        Cat::start(&pair.tx, "get", &options)?.ends_with(Some(0))?;
        assert_content(&to.0, LEN)?;

        let options = format!("{peer} --size 5000000 -o {}", to.option());
        let mut get = Cat::start(&pair.tx, "get", &options)?;
        get.ends_with(Some(1))?;
        assert!(get.has_said(&Status::Range.to_string()), "{:?}", get.said);
        fs::write(&key.0, "0".repeat(32))?;
        let options = format!("{peer} -f {}", from.option());
        let mut put = Cat::start(&pair.tx, "put", &options)?;
        put.ends_with(Some(1))?;
        assert!(put.has_said(&Status::Key.to_string()), "{:?}", put.said);

        server.signal(Signal::SIGTERM)?;
        server.ends_with(INTERRUPTED)?;
        assert_nothing_left(&pair)?;
    }
    Ok(())
}

/// What a devmem-cat waits for.
#[derive(Clone, Copy, Debug)]
enum State {
    Listening,
    Reading,
    Writing,
    Receiving,
    Connecting,
}

/// A devmem-cat in that state, and what it needs for it.
fn wait_in(state: State, pair: &Pair, port: u16) -> Result<(Cat, Option<Cat>), Stop> {
    Ok(match state {
        State::Listening => (Cat::receiver(pair, port, "-s --discard")?, None),
        State::Receiving | State::Reading => {
            let mut rx = Cat::receiver(pair, port, "-s --discard")?;
            let tx = Cat::sender(pair, port, "")?;
            rx.says("connection from");
            match state {
                State::Reading => (tx, Some(rx)),
                _ => (rx, Some(tx)),
            }
        }
        State::Writing => {
            // Nobody reads what it writes, which is more than a pipe has room for.
            let mut rx = Cat::receiver(pair, port, "-s")?;
            let mut tx = Cat::sender(pair, port, "")?;
            rx.says("connection from");
            // What nobody takes any more fails when the sender ends.
            if let Some(mut stdin) = tx.stdin.take() {
                thread::spawn(move || stdin.write_all(traffic::bytes(0, LEN)));
            }
            let pid = rx.child.0.id();
            let in_write = format!("{} 0x1 ", libc::SYS_write);
            wait::until("a write to a pipe that is full", LONG, || {
                for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                    let call = fs::read_to_string(thread?.path().join("syscall"))?;
                    if call.starts_with(&in_write) {
                        return Ok(true);
                    }
                }
                Ok(false)
            })?;
            (rx, Some(tx))
        }
        State::Connecting => {
            pair.unplug()?;
            let tx = Cat::sender(pair, port, "")?;
            let pid = tx.child.0.id();
            wait::until("a connection that is tried", LONG, || {
                let path = format!("/proc/{pid}/net/tcp");
                // SYN_SENT
                let text = fs::read_to_string(path)?;
                Ok(text
                    .lines()
                    .any(|line| line.split_whitespace().nth(3) == Some("02")))
            })?;
            (tx, None)
        }
    })
}

/// One signal, or two, in each of the states.
fn ended_by(signals: &[Signal]) -> Outcome {
    for (i, state) in [
        State::Listening,
        State::Reading,
        State::Writing,
        State::Receiving,
        State::Connecting,
    ]
    .into_iter()
    .enumerate()
    {
        let pair = pair()?;
        let (mut cat, other) = wait_in(state, &pair, 5311 + i as u16)?;
        let start = Instant::now();
        for &signal in signals {
            cat.signal(signal)?;
        }
        let status = cat.status()?;
        assert_eq!(status, INTERRUPTED, "{state:?}: {:?}", cat.said);
        diag(format_args!(
            "{state:?}: {} ms",
            start.elapsed().as_millis()
        ));
        if let Some(mut other) = other {
            // A sender that waits for its input sees that when it goes on.
            drop(other.stdin.take());
            let status = other.status()?;
            assert_eq!(
                status,
                Some(1),
                "{state:?}, at the other end: {:?}",
                other.said
            );
        }
        assert_nothing_left(&pair)?;
    }
    Ok(())
}

fn a_signal_ends_it_in_any_state() -> Outcome {
    ended_by(&[Signal::SIGINT])?;
    ended_by(&[Signal::SIGTERM])
}

fn a_second_signal_leaves_nothing_either() -> Outcome {
    ended_by(&[Signal::SIGINT, Signal::SIGTERM])
}

/// The sender learns that, and the next receiver removes what is left. So does `cleanup`.
fn a_receiver_that_is_killed() -> Outcome {
    let pair = pair()?;
    for (port, next) in [(5321, "receive"), (5322, "cleanup")] {
        let mut rx = Cat::receiver(&pair, port, "-s --discard")?;
        let mut tx = Cat::sender(&pair, port, "")?;
        rx.says("connection from");
        rx.signal(Signal::SIGKILL)?;
        rx.ends_with(None)?;
        match tx.give(LEN) {
            // It has learned that before it has read all of it.
            Err(err) if err.kind() == ErrorKind::BrokenPipe => (),
            given => given?,
        }
        tx.ends_with(Some(1))?;
        assert_eq!(rules(&pair)?, 1, "of the one that was killed");
        assert_eq!(rings(&pair)?, Rings::DEVMEM);
        if next == "receive" {
            let mut rx = Cat::receiver(&pair, port, "-s --discard")?;
            assert!(rx.has_said("removed rule"), "{:?}", rx.said);
            assert_eq!(rules(&pair)?, 1, "of the one that is there");
            rx.signal(Signal::SIGINT)?;
            rx.ends_with(INTERRUPTED)?;
        } else {
            // One that can do nothing about it does not forget it.
            let mut line = Command::new("setpriv");
            line.arg("--bounding-set=-net_admin").arg(Cat::program()?);
            let mut cleanup = Cat::start_by(line, &pair.rx, "cleanup", "")?;
            cleanup.ends_with(Some(1))?;
            assert!(cleanup.has_said("removing rule"), "{:?}", cleanup.said);
            assert_eq!(rules(&pair)?, 1, "it was not allowed to");
            let mut cleanup = Cat::start(&pair.rx, "cleanup", "")?;
            cleanup.ends_with(Some(0))?;
            assert!(cleanup.has_said("removed rule"), "{:?}", cleanup.said);
        }
        assert_nothing_left(&pair)?;
    }
    Ok(())
}

/// The files in which those that live have noted their rules.
fn notes(pair: &Pair) -> io::Result<Vec<PathBuf>> {
    let folder = format!("net-{}-{}", pair.rx.ns.cookie()?, pair.rx.ifindex);
    let entries = fs::read_dir(Path::new("/run/devmem-cat").join(folder))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().contains("/process-") {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Its rule is there, and its file is as it was before that was noted. What looks the same is another's.
fn killed_before_it_has_noted_a_rule() -> Outcome {
    let pair = pair()?;
    pair.steer(5323, 1)?;
    let others = rules(&pair)?;
    let mut rx = Cat::receiver(&pair, 5323, "-s --discard")?;
    let [path] = &notes(&pair)?[..] else {
        panic!("one has noted its rules");
    };
    let noted = fs::read_to_string(path)?;
    let lines: Vec<_> = noted.lines().collect();
    assert!(
        matches!(lines[..], [making, made] if making.starts_with("making ")
            && made.ends_with(" tcp4 port 5323 to queue 1")),
        "{noted}"
    );
    rx.signal(Signal::SIGKILL)?;
    rx.ends_with(None)?;
    fs::write(path, format!("{}\n", lines[0]))?;
    assert_eq!(rules(&pair)?, others + 1, "of the one that was killed");
    let mut cleanup = Cat::start(&pair.rx, "cleanup", "")?;
    cleanup.ends_with(Some(0))?;
    assert!(cleanup.has_said("removed rule"), "{:?}", cleanup.said);
    assert_eq!(rules(&pair)?, others);
    assert_eq!(notes(&pair)?, [""; 0].map(PathBuf::from));
    assert_eq!(rings(&pair)?, BEFORE);
    Ok(())
}

/// The second of two rules is refused: there is no place for it, but for one. The first one goes.
fn a_rule_that_there_is_no_place_for() -> Outcome {
    let pair = pair()?;
    let mut port = 6000;
    let full = loop {
        match pair.steer(port, 1) {
            Ok(()) => port += 1,
            Err(err) => break err,
        }
    };
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
    ethtool(&pair, "-N", &["delete", "0"])?;
    let others = rules(&pair)?;
    let options = "-l [::]:5324 -q 1 -m 4 -s --discard";
    let mut rx = Cat::start(&pair.rx, "receive", options)?;
    rx.ends_with(Some(1))?;
    assert!(rx.has_said("steering tcp4 port 5324"), "{:?}", rx.said);
    assert_eq!(rules(&pair)?, others);
    assert_eq!(rings(&pair)?, BEFORE);
    Ok(())
}

/// What nohup does.
fn a_hangup_that_is_ignored() -> Outcome {
    let pair = pair()?;
    let mut line = Command::new("sh");
    line.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(Cat::program()?);
    let options = "-l 192.0.2.1:5327 -q 1 -m 4 -s --discard";
    let mut rx = Cat::start_by(line, &pair.rx, "receive", options)?;
    rx.says("listening on");
    rx.signal(Signal::SIGHUP)?;
    let mut tx = Cat::sender(&pair, 5327, "")?;
    tx.give(LEN)?;
    tx.ends_with(Some(0))?;
    rx.ends_with(Some(0))?;
    assert_nothing_left(&pair)
}

/// What is bound, and by which queue, whoever asks; and when it comes and goes.
fn what_is_bound() -> Outcome {
    let pair = pair()?;
    events::skip_without()?;
    let list = |options: &str| -> Result<String, Stop> {
        let mut status = Cat::start(&pair.rx, "status", options)?;
        let mut text = String::new();
        let stdout = status.stdout.take();
        let stdout = stdout.ok_or_else(|| io::Error::from(ErrorKind::BrokenPipe))?;
        BufReader::new(stdout).read_to_string(&mut text)?;
        status.ends_with(Some(0))?;
        Ok(text)
    };
    assert_eq!(list("--json")?, "");
    let mut follower = Cat::start(&pair.rx, "status", "--json --follow")?;
    let stdout = follower
        .stdout
        .take()
        .ok_or_else(|| io::Error::from(ErrorKind::BrokenPipe))?;
    let mut lines = BufReader::new(stdout).lines();
    // It listens before it asks what there is, and who is bound after that is told of either way.
    let mut rx = Cat::receiver(&pair, 5340, "-s --discard")?;
    let mut next = || lines.next().unwrap_or(Err(ErrorKind::UnexpectedEof.into()));
    let added = next()?;
    assert!(added.contains(r#""state":"bound""#), "{added}");
    assert!(added.contains(r#""queues":[1]"#), "{added}");

    let listed = list("--json")?;
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(
        listed.contains(&format!(r#""interface":"{}""#, pair.rx.ifname)),
        "{listed}"
    );
    let table = list("")?;
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.lines().all(|line| line.len() <= 80), "{table}");

    rx.signal(Signal::SIGINT)?;
    rx.ends_with(INTERRUPTED)?;
    for expected in ["unbound", "deleted"] {
        let mut line = next()?;
        // It may have been listed, too.
        while line.contains(r#""event":"added""#) {
            line = next()?;
        }
        assert!(line.contains(&format!(r#""event":"{expected}""#)), "{line}");
    }
    follower.signal(Signal::SIGINT)?;
    follower.ends_with(INTERRUPTED)?;
    Ok(())
}

/// An operator gets back what a reader keeps.
fn what_is_stuck() -> Outcome {
    if let Err(devmem::Error::NoGroup(_)) = devmem::status::Events::open() {
        return skip("this kernel flushes no bindings");
    }
    let bench = Receiving::new()?;
    bench.send(&[100])?;
    let id = bench.binding.id().to_string();
    let flush = |end: &End, options: &[&str]| {
        end.ns.run(|| {
            let mut line = Command::new(Cat::program()?);
            line.arg("flush").args(options).arg(&id).output()
        })
    };
    let flushed = flush(&bench.pair.rx, &["--json"])?;
    let text = String::from_utf8_lossy(&flushed.stdout).into_owned();
    assert!(flushed.status.success(), "{flushed:?}");
    for part in [
        &format!(r#""id":{id}"#),
        r#""aborted":1"#,
        r#""returned":1"#,
        r#""outstanding":0"#,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let flushed = flush(&bench.pair.rx, &[])?;
    let text = String::from_utf8_lossy(&flushed.stdout).into_owned();
    assert_eq!(
        text,
        "0 connections aborted, 0 buffers came back, 0 still out\n"
    );
    let refused = flush(&bench.pair.tx, &[])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(said.contains("there is no binding"), "{said}");
    Ok(())
}

/// What has come is there, and the receiver says that it is a part.
fn a_sender_that_is_killed() -> Outcome {
    let pair = pair()?;
    let to = TempFile::new("part");
    let options = format!("-s --json -o {}", to.option());
    let mut rx = Cat::receiver(&pair, 5325, &options)?;
    let mut tx = Cat::sender(&pair, 5325, "")?;
    let stdin = tx.stdin.take();
    if let Some(mut stdin) = stdin.as_ref() {
        stdin.write_all(traffic::bytes(0, LEN))?;
    }
    wait::until("all of it to be written", LONG, || {
        Ok(fs::metadata(&to.0)?.len() == LEN as u64)
    })?;
    tx.signal(Signal::SIGKILL)?;
    rx.ends_with(Some(1))?;
    assert!(rx.has_said("What was written is a part"), "{:?}", rx.said);
    let line = rx.written()?;
    assert!(line.contains("\"error\":\"receiving: "), "{line}");
    assert_content(&to.0, LEN)?;
    assert_nothing_left(&pair)
}

/// Whoever of two on one device ends first, the other one goes on, and the last puts the device back.
fn two_receivers_on_one_device() -> Outcome {
    let pair = pair()?;
    let mut one = Cat::receiver(&pair, 5331, "-s --discard")?;
    let mut other = Cat::start(
        &pair.rx,
        "receive",
        "-l 192.0.2.1:5332 -q 2 -m 4 -s --discard",
    )?;
    other.says("listening on");
    assert_eq!(rules(&pair)?, 2);
    one.signal(Signal::SIGINT)?;
    one.ends_with(INTERRUPTED)?;
    assert_eq!(rules(&pair)?, 1);
    assert_eq!(rings(&pair)?, Rings::DEVMEM);
    let mut tx = Cat::sender(&pair, 5332, "")?;
    tx.give(LEN)?;
    tx.ends_with(Some(0))?;
    other.ends_with(Some(0))?;
    assert!(
        !other.has_said("nothing came in device memory"),
        "{:?}",
        other.said
    );
    assert_nothing_left(&pair)
}

/// A socket of IPv6 that takes IPv4, too.
fn ipv4_to_a_listener_of_ipv6() -> Outcome {
    let pair = pair()?;
    let mut rx = Cat::start(&pair.rx, "receive", "-l [::]:5335 -q 1 -m 4 -s --discard")?;
    rx.says("listening on");
    let mut tx = Cat::sender(&pair, 5335, "")?;
    tx.give(LEN)?;
    tx.ends_with(Some(0))?;
    rx.ends_with(Some(0))?;
    assert!(
        !rx.has_said("nothing came in device memory"),
        "{:?}",
        rx.said
    );
    assert_nothing_left(&pair)
}

/// What did not come in device memory is told, and what can be done about it.
fn a_flow_on_another_queue() -> Outcome {
    let pair = pair()?;
    let mut rx = Cat::receiver(&pair, 5336, "--discard")?;
    let mut tx = Cat::sender(&pair, 5336, "")?;
    tx.give(LEN)?;
    tx.ends_with(Some(0))?;
    rx.ends_with(Some(0))?;
    assert!(
        rx.has_said("on another queue: see --steer"),
        "{:?}",
        rx.said
    );
    assert_nothing_left(&pair)
}

/// The ring of the first queue takes it all.
fn memory_that_is_too_small_for_its_queues() -> Outcome {
    if provider::bindings()?.is_none() {
        return skip("this kernel does not tell what is in use");
    }
    let pair = pair()?;
    let options = "-l 192.0.2.1:5337 -q 1 -q 2 -m 1 --discard";
    let mut rx = Cat::start(&pair.rx, "receive", options)?;
    rx.says("give more by --memory");
    rx.signal(Signal::SIGINT)?;
    rx.ends_with(INTERRUPTED)?;
    assert_nothing_left(&pair)
}

/// Several at once, and one after the other until a signal comes.
fn several_connections() -> Outcome {
    let pair = pair()?;
    let (from, to) = (TempFile::new("from"), TempFile::new("several"));
    fs::write(&from.0, traffic::bytes(0, LEN))?;
    let files: Vec<_> = (1..=4)
        .map(|i| TempFile(format!("{}.{i}", to.option()).into()))
        .collect();
    let options = format!("-s --json -n 3 -o {}", to.option());
    let mut rx = Cat::receiver(&pair, 5341, &options)?;
    let mut tx = Cat::sender(&pair, 5341, &format!("-n 3 -f {}", from.option()))?;
    tx.ends_with(Some(0))?;
    rx.ends_with(Some(0))?;
    assert_eq!(rx.written()?.lines().count(), 3);
    for file in &files[..3] {
        assert_content(&file.0, LEN)?;
        fs::remove_file(&file.0)?;
    }
    assert_nothing_left(&pair)?;

    let mut rx = Cat::receiver(&pair, 5342, &format!("-s -k -o {}", to.option()))?;
    for file in &files {
        let mut tx = Cat::sender(&pair, 5342, "")?;
        tx.give(LEN)?;
        tx.ends_with(Some(0))?;
        assert_content(&file.0, LEN)?;
    }
    rx.signal(Signal::SIGTERM)?;
    rx.ends_with(INTERRUPTED)?;
    assert_nothing_left(&pair)
}

/// What is left in the memory has a place of its own, to the last byte; or nothing is told of it.
fn what_stays_in_the_memory() -> Outcome {
    const PORT: u16 = 5371;
    /// More than is left for it to move on to, if buffers were used again.
    const LEN: usize = 3 << 20;
    let pair = pair()?;
    let (from, file) = (TempFile::new("from"), TempFile::new("pieces"));
    fs::write(&from.0, vec![7; LEN])?;
    let receive = |options: &str| {
        let file = file.option();
        let options = format!("-l 192.0.2.1:{PORT} -q 1 --pieces {file} {options}");
        let mut rx = Cat::start(&pair.rx, "receive", &options)?;
        rx.says("listening on");
        Ok::<_, io::Error>(rx)
    };
    let send = || Cat::sender(&pair, PORT, &format!("-f {}", from.option()));
    for backend in ["blocking", "uring", "uring-multishot"] {
        let mut rx = receive(&format!("-m 4 -s --json -b {backend}"))?;
        send()?.ends_with(Some(0))?;
        rx.ends_with(Some(0))?;
        let told = rx.written()?;
        assert!(told.contains("\"host_bytes\":0"), "{told}");
        let mut pieces = pieces_in(&fs::read_to_string(&file.0)?);
        pieces.sort_unstable();
        let mut free = 0;
        for &(offset, len) in &pieces {
            assert!(len > 0 && offset >= free, "{len} at {offset}: {pieces:?}");
            free = offset + len;
        }
        assert!(free <= 4 << 20, "{pieces:?}");
        let sum: usize = pieces.iter().map(|(_, len)| len).sum();
        assert_eq!(sum, LEN, "{pieces:?}");
        assert_nothing_left(&pair)?;
    }

    fs::write(&file.0, "what was there")?;
    // Another queue's: it comes in host memory.
    let mut rx = receive("-m 4")?;
    let mut tx = send()?;
    rx.ends_with(Some(1))?;
    assert!(rx.has_said("host memory"), "{:?}", rx.said);
    tx.ends_with(Some(1))?;
    assert_eq!(fs::read_to_string(&file.0)?, "what was there");
    assert_nothing_left(&pair)?;

    if provider::bindings()?.is_some() {
        let mut rx = receive("-s -m 1")?;
        let _tx = send()?;
        rx.says("all of the memory is in use");
        rx.signal(Signal::SIGINT)?;
        rx.ends_with(INTERRUPTED)?;
        assert_eq!(fs::read_to_string(&file.0)?, "what was there");
    }
    assert_nothing_left(&pair)
}

/// Offsets and lengths, a line each.
fn pieces_in(text: &str) -> Vec<(usize, usize)> {
    let piece = |line: &str| {
        let (offset, len) = line.split_once(' ')?;
        Some((offset.parse().ok()?, len.parse().ok()?))
    };
    text.lines()
        .map(|line| piece(line).unwrap_or_else(|| panic!("{line:?} is no piece")))
        .collect()
}

/// An ordinary program, and how far it is although nothing moves.
fn progress_of_what_stands_still() -> Outcome {
    let pair = pair()?;
    let mut rx = Cat::receiver(&pair, 5345, "-s --discard --progress --size 2097152")?;
    let to = address(Ip::V4, 5345);
    let mut tx = pair.tx.ns.run(|| TcpStream::connect(to))?;
    tx.write_all(traffic::bytes(0, 1 << 20))?;
    rx.says("1.0 of 2.0 MiB, 50 %, 0.0 MiB/s");
    drop(tx);
    rx.ends_with(Some(1))?;
    assert!(
        rx.has_said("1048576 of 2097152 bytes came"),
        "{:?}",
        rx.said
    );
    assert_nothing_left(&pair)
}

/// Each in a line that fits on a terminal, or of JSON.
fn status_tells_who_holds_memory() -> Outcome {
    events::skip_without()?;
    let bench = Receiving::new()?;
    bench.send(&[100])?;
    let mut probe = bench.probe();
    probe.receive(&Call::new(100)).assert_frags(&[100]);
    bench.send(&[50])?;
    let local = bench.connection.rx.local_addr()?.to_string();
    let remote = bench.connection.rx.peer_addr()?.to_string();
    let status = |options| -> Result<String, Stop> {
        let mut cat = Cat::start(&bench.pair.rx, "status", options)?;
        cat.ends_with(Some(0))?;
        Ok(cat.written()?)
    };

    let text = status("")?;
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    let holder = text.lines().find(|line| line.contains(&remote));
    let holder = holder.unwrap_or_else(|| panic!("not told: {text}"));
    let id = bench.binding.id().to_string();
    let pid = process::id().to_string();
    let words: Vec<_> = holder.split_whitespace().collect();
    assert_eq!(words[..5], [&id, "1", "4096", "50", &pid], "{text}");
    assert!(holder.ends_with(&format!(" {local} {remote}")), "{text}");

    let json = status("--json")?;
    let (holders, bindings): (Vec<_>, Vec<_>) =
        json.lines().partition(|line| line.contains("\"local\":"));
    assert_eq!((bindings.len(), holders.len()), (1, 1), "{json}");
    for told in [
        format!("\"local\":\"{local}\""),
        format!("\"remote\":\"{remote}\""),
        format!("\"pid\":{pid}"),
        "\"unread\":50".into(),
        format!("\"held\":[{{\"bytes\":4096,\"id\":{id},\"queued\":50,\"tokens\":1}}]"),
    ] {
        assert!(holders[0].contains(&told), "{told} is not in {json}");
    }
    Ok(())
}

/// Nothing is touched by what is refused: neither a file nor the device.
fn what_is_refused() -> Outcome {
    let pair = pair()?;
    let file = TempFile::new("kept");
    fs::write(&file.0, "what was there")?;
    let listen = "-l 192.0.2.1:5349";
    for (options, status, said) in [
        ("-l 192.0.2.1 -q 1", 2, "there is no port"),
        (listen, 2, "--queue"),
        ("-l 192.0.2.1:5349 -q 99", 1, "--queue number 1"),
        ("-l 192.0.2.1:5349 -q 1 -q 98", 1, "--queue number 2"),
        (
            "-l 192.0.2.1:5349 -q 1 --rx-page-size 5",
            1,
            "--rx-page-size",
        ),
        ("-l 192.0.2.1:5349 -q 1 -m 1000000000", 1, "are available"),
        ("-l 192.0.2.9:5349 -q 1", 1, "listening on 192.0.2.9:5349"),
    ] {
        let options = format!("{options} -o {}", file.option());
        let mut rx = Cat::start(&pair.rx, "receive", &options)?;
        rx.ends_with(Some(status))?;
        assert!(rx.has_said(said), "{options}: {:?}", rx.said);
        assert_eq!(fs::read_to_string(&file.0)?, "what was there");
        assert_nothing_left(&pair)?;
    }
    Ok(())
}

/// A receiver that takes the memory of a sender on this machine, and waits for it.
fn receiver_beside(pair: &Pair, place: &TempFile, options: &str) -> io::Result<Cat> {
    let mut line = Command::new(Cat::program()?);
    line.arg("receive");
    let options = format!("-l 192.0.2.1:5360 --share {} {options}", place.option());
    let mut rx = Cat::start_at(line, &pair.rx, &options)?;
    rx.says("listening on");
    Ok(rx)
}

/// Between two ends without a NIC: a receiver that is passed the memory reads it there.
fn on_the_same_machine() -> Outcome {
    for (joint, backend) in [
        (Joint::Lo, "blocking"),
        (Joint::Netkit, "blocking"),
        (Joint::Netkit, "uring"),
    ] {
        let pair = Pair::local(joint)?;
        let (from, to) = (TempFile::new("from"), TempFile::new("to"));
        let place = TempFile::new("place");
        fs::write(&from.0, traffic::bytes(0, LEN))?;
        let options = format!("--json -b {backend} -o {}", to.option());
        let mut rx = receiver_beside(&pair, &place, &options)?;
        let options = format!(
            "-c 192.0.2.1:5360 -m 4 -b {backend} --json --share {} -f {}",
            place.option(),
            from.option()
        );
        let mut tx = Cat::start(&pair.tx, "send", &options)?;
        tx.ends_with(Some(0))?;
        rx.ends_with(Some(0))?;
        assert_content(&to.0, LEN)?;
        for (cat, none) in [
            (&mut rx, "\"host_bytes\":0"),
            (&mut tx, "\"copied_calls\":0"),
        ] {
            let line = cat.written()?;
            assert!(line.contains(none), "{joint:?} {backend}: {line}");
        }
        assert!(!place.0.exists());
    }
    Ok(())
}

/// A receiver whose sender never comes leaves nothing.
fn nobody_passes_a_memory() -> Outcome {
    let pair = Pair::local(Joint::Lo)?;
    let place = TempFile::new("place");
    let mut rx = receiver_beside(&pair, &place, "--discard")?;
    assert!(place.0.exists());
    rx.signal(Signal::SIGTERM)?;
    rx.ends_with(INTERRUPTED)?;
    assert!(!place.0.exists());
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        a_file_arrives,
        a_file_is_put_and_got,
        a_signal_ends_it_in_any_state,
        a_second_signal_leaves_nothing_either,
        a_receiver_that_is_killed,
        killed_before_it_has_noted_a_rule,
        a_rule_that_there_is_no_place_for,
        a_hangup_that_is_ignored,
        what_is_bound,
        what_is_stuck,
        a_sender_that_is_killed,
        two_receivers_on_one_device,
        ipv4_to_a_listener_of_ipv6,
        a_flow_on_another_queue,
        memory_that_is_too_small_for_its_queues,
        several_connections,
        what_stays_in_the_memory,
        progress_of_what_stands_still,
        status_tells_who_holds_memory,
        what_is_refused,
        on_the_same_machine,
        nobody_passes_a_memory,
    ])
}
