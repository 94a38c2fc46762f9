// SPDX-License-Identifier: GPL-2.0

//! Receiving: into a dma-buf, and from there to standard output or a file.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use devmem::BindRx;
use devmem::Piece;
use devmem::Receive;
use devmem::Receiver;
use devmem::TokenBatch;
use devmem::dmabuf::Mapping;
use devmem::provider;
use devmem::recv::take_runs;
use devmem::uring;

use crate::args::Backend;
use crate::args::ReceiveArgs;
use crate::connection;
use crate::connection::Connection;
use crate::connection::Outcomes;
use crate::connection::Source;
use crate::connection::check_interrupted;
use crate::error::Fallible;
use crate::error::bind_error;
use crate::error::context;
use crate::memory;
use crate::output::Output;
use crate::share::Place;
use crate::signal;
use crate::stats::Progress;
use crate::stats::Stats;
use crate::tell;
use crate::undo;

/// How long to wait after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(200);

/// What all connections are received by.
struct Bound<'a> {
    args: &'a ReceiveArgs,
    mapping: Mapping,
    /// The binding's number.
    id: u32,
    progress: Progress,
}

/// What the receiver of a connection has seen.
struct Tally<'b> {
    bound: &'b Bound<'b>,
    stats: Stats<'b>,
    output: Output,
    frags: u64,
    copied: u64,
    returned: u64,
}

/// Receives as many connections as there are to be.
pub fn run(args: &ReceiveArgs) -> Fallible<()> {
    let common = &args.common;
    // Before there is anything else that it could be too late for.
    let only = match args.is_several() {
        true => None,
        false => Some(open(args, None)?),
    };
    match &args.share {
        Some(path) => {
            let place = Place::new(path)?;
            let source = Source::new(common, |_| Ok(()))?;
            let share = place.receive()?;
            let mapping = share.memory().map()?;
            Bound::new(args, mapping, share.id()).run(source, only)
        }
        None => {
            let bound = bind(args)?;
            // Steered before anybody is told to connect, so that none of it goes another way.
            let source = Source::new(common, |to| bound.steer(to))?;
            bound.run(source, only)
        }
    }
}

/// Binds a new dma-buf to the queues.
fn bind(args: &ReceiveArgs) -> Fallible<Bound<'_>> {
    let common = &args.common;
    let memory = memory::dmabuf(common)?;
    let mapping = memory.map()?;
    let mut request = BindRx::new(undo::prepare(common.interface())?);
    for &queue in &args.queues {
        request = request.queue(queue);
    }
    if let Some(size) = args.rx_page_size {
        request = request.rx_page_size(size);
    }
    let id = undo::bind(|| {
        request
            .bind(&memory)
            .map_err(|err| bind_error("binding queues of", common.interface(), &err).into())
    })?;
    if args.queues.len() > 1 && nothing_left(id) {
        tell::say(
            "the first queues took all of the memory, so the last have none or too little: \
             give more by --memory",
        );
    }
    Ok(Bound::new(args, mapping, id))
}

/// Where a connection is written to; they are numbered if there are several.
fn open(args: &ReceiveArgs, number: Option<u32>) -> Fallible<Output> {
    if let Some(path) = &args.pieces {
        return Output::pieces(path).map_err(context(path.display().to_string()));
    }
    Ok(match (&args.output, args.discard) {
        (_, true) => Output::Discard,
        (Some(path), _) => {
            let path = number.map_or(path.clone(), |number| numbered(path, number));
            Output::file(&path).map_err(context(path.display().to_string()))?
        }
        (None, false) => Output::Stdout(io::stdout()),
    })
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Whether the NIC has no buffer that it could still get. Only some can know, and not of every kernel.
fn nothing_left(id: u32) -> bool {
    provider::binding(id).is_ok_and(|info| info.in_use == info.buffers)
}

impl<'a> Bound<'a> {
    fn new(args: &'a ReceiveArgs, mapping: Mapping, id: u32) -> Self {
        let connections = args.common.connections.into();
        let total = args.size.filter(|_| !args.keep_open);
        Self {
            args,
            mapping,
            id,
            progress: Progress::new(
                &args.common,
                total.and_then(|size| size.checked_mul(connections)),
            ),
        }
    }

    /// Receives all connections.
    fn run(&self, source: Source, only: Option<Output>) -> Fallible<()> {
        self.progress
            .during(|| self.why_nothing_comes(), || self.all(source, only))
    }

    /// Whether the sender is on this machine, and the memory is its own.
    fn is_shared(&self) -> bool {
        self.args.share.is_some()
    }

    fn steer(&self, to: SocketAddr) -> Fallible<()> {
        match self.args.queues.first() {
            Some(&queue) if self.args.steer => undo::steer(to, queue),
            _ => Ok(()),
        }
    }

    fn why_nothing_comes(&self) {
        if !self.is_shared() && nothing_left(self.id) {
            tell::say(
                "nothing comes, and all of the memory is in use: more by --memory may help, \
                 see rxN_no_buffer or the like in ethtool -S",
            );
        }
    }

    /// Receives all connections, each by a thread of its own.
    fn all(&self, source: Source, mut only: Option<Output>) -> Fallible<()> {
        let outcomes = Outcomes::new(self.args.is_several());
        let mut count = 0;
        thread::scope(|scope| -> Fallible<()> {
            let mut begin = |number| -> Fallible<()> {
                let connection = source.next(&self.args.common)?;
                if matches!(&source, Source::To(_)) {
                    self.steer(connection.stream.local_addr()?)?;
                }
                let output = match only.take() {
                    Some(output) => output,
                    None => open(self.args, Some(number))?,
                };
                let outcomes = &outcomes;
                thread::Builder::new()
                    .spawn_scoped(scope, move || {
                        outcomes.note(&connection.peer, self.one(&connection, output));
                    })
                    .map_err(context("starting a thread"))?;
                Ok(())
            };
            while self.args.keep_open || count < self.args.common.connections {
                match begin(count + 1) {
                    Ok(()) => count += 1,
                    // One that was gone too soon, or one too many: others come later.
                    Err(err) if self.args.keep_open && !signal::came() => {
                        tell::say(err);
                        thread::sleep(PAUSE);
                    }
                    Err(err) => return Err(err),
                }
            }
            drop(source);
            Ok(())
        })?;
        outcomes.all(count)
    }

    /// Receives a connection, and tells what came of it.
    fn one(&self, connection: &Connection, output: Output) -> Fallible<()> {
        let mut tally = Tally {
            bound: self,
            stats: Stats::new(&self.args.common, &self.progress),
            output,
            frags: 0,
            copied: 0,
            returned: 0,
        };
        let result = tally.run(connection);
        tally.tell(connection, &result);
        result
    }
}

impl Tally<'_> {
    /// Receives to the end, and lets the peer know.
    fn run(&mut self, connection: &Connection) -> Fallible<()> {
        let stream = &connection.stream;
        take_runs(stream)?;
        let mut batch = TokenBatch::new(stream);
        match self.bound.args.common.backend {
            Backend::Blocking => {
                let received = self.receive(&mut Receiver::new(stream), &mut batch);
                self.returned = batch.returned();
                received?;
            }
            Backend::Uring | Backend::UringMultishot => {
                let mut rx = match self.bound.args.common.backend {
                    Backend::UringMultishot => uring::Receiver::multishot(stream)?,
                    _ => uring::Receiver::new(stream)?,
                };
                let received = self.receive(&mut rx, &mut batch);
                let finished = rx.finish();
                self.returned = rx.returned();
                received?;
                finished?;
            }
        }
        let bytes = self.stats.bytes();
        if let Some(size) = self.bound.args.size.filter(|&size| size != bytes) {
            return Err(format!("{bytes} of {size} bytes came").into());
        }
        self.output.finish().map_err(context("writing"))?;
        // Only now, so that the sender knows.
        connection::finish(stream).map_err(context("ending the connection"))
    }

    /// Receives until the peer has sent everything.
    fn receive<'s>(
        &mut self,
        rx: &mut impl Receive<'s>,
        batch: &mut TokenBatch<'s>,
    ) -> Fallible<()> {
        let Bound {
            args, mapping, id, ..
        } = self.bound;
        let mut gathered = Vec::new();
        // Of what stays where it is.
        let mut held = Vec::new();
        loop {
            let received = rx.recv().map_err(|err| self.cut(&err))?;
            if received.is_eof() {
                // A signal ends the connection, too, and that is not all there was to come.
                check_interrupted()?;
                for token in held {
                    batch.push(token)?;
                }
                return Ok(batch.flush()?);
            }
            self.stats.count(received.total() as u64);
            if args.size.is_some_and(|size| self.stats.bytes() > size) {
                return Err("more bytes came than --size says".into());
            }
            let wanted = self.output.wants_data() || self.stats.wants_data();
            let cpu = match wanted {
                true => Some(mapping.begin_read()?),
                false => None,
            };
            for piece in received {
                match piece {
                    Piece::Frag(frag) => {
                        self.frags += 1;
                        if frag.dmabuf_id != *id {
                            let why = match self.bound.is_shared() {
                                true => "the sender has passed another memory",
                                false => "another program has the queue of this flow",
                            };
                            return Err(format!(
                                "data came by binding {}, not by {id}: {why}",
                                frag.dmabuf_id
                            )
                            .into());
                        }
                        if let Some(cpu) = &cpu {
                            gathered.resize(frag.size as usize, 0);
                            cpu.copy_out(frag.offset, &mut gathered)?;
                            self.put(&gathered)?;
                        }
                        match self.output.keeps() {
                            true => held.push(frag.token),
                            false => batch.push(frag.token)?,
                        }
                        self.output.found(frag.offset, frag.size);
                    }
                    Piece::Linear(bytes) | Piece::Plain(bytes) => {
                        self.copied += bytes.len() as u64;
                        if self.output.keeps() {
                            return Err(
                                "bytes came in host memory, which --pieces cannot tell of".into()
                            );
                        }
                        self.put(bytes)?;
                    }
                }
            }
            batch.flush()?;
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Fallible<()> {
        self.stats.data(bytes);
        self.output.put(bytes).map_err(context("writing"))
    }

    /// What a connection that did not come to its end is.
    fn cut(&self, err: &io::Error) -> String {
        let hint = match err.kind() {
            // It was not the sender then.
            _ if signal::came() => "",
            io::ErrorKind::ConnectionReset if self.output.wants_data() => {
                "\nHint: the sender gave up. What was written is a part."
            }
            io::ErrorKind::ConnectionReset => "\nHint: the sender gave up.",
            _ => "",
        };
        format!("receiving: {err}, after {} bytes{hint}", self.stats.bytes())
    }

    fn tell(self, connection: &Connection, result: &Fallible<()>) {
        let ReceiveArgs { common, steer, .. } = self.bound.args;
        let is_shared = self.bound.is_shared();
        let all_copied = self.stats.bytes() > 0 && self.frags == 0;
        self.stats.finish(
            common,
            connection,
            result,
            &[
                ("frags", "frags in device memory", self.frags),
                ("host_bytes", "bytes in host memory", self.copied),
                ("tokens_returned", "tokens returned", self.returned),
            ],
        );
        if all_copied {
            let why = match (is_shared, steer) {
                (true, _) => "the sender has not sent from the dma-buf that it passed",
                (false, false) => "the flow is on another queue: see --steer, and ethtool -S",
                (false, true) => {
                    "the flow is on another queue in spite of --steer: see what other rules ethtool -n shows, \
                     and ethtool -S"
                }
            };
            tell::say(format_args!("nothing came in device memory: {why}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_several_connections() {
        assert_eq!(
            numbered(Path::new("a/file.bin"), 12),
            Path::new("a/file.bin.12")
        );
    }
}
