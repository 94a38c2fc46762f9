// SPDX-License-Identifier: GPL-2.0

//! Sending: standard input or a file, by way of a dma-buf.

use std::fs::File;
use std::io;
use std::io::Read;
use std::net::Shutdown;
use std::thread;

use devmem::BindTx;
use devmem::Filled;
use devmem::Region;
use devmem::Sender;
use devmem::Transmit;
use devmem::TxBinding;
use devmem::uring;
use nix::net::if_::if_nametoindex;

use crate::args::Backend;
use crate::args::SendArgs;
use crate::connection;
use crate::connection::Connection;
use crate::connection::Outcomes;
use crate::connection::Source;
use crate::connection::check_interrupted;
use crate::error::Fallible;
use crate::error::bind_error;
use crate::error::context;
use crate::memory;
use crate::share;
use crate::stats::Progress;
use crate::stats::Stats;

/// What is sent over a connection, and through which part of the memory.
struct Share {
    input: Box<dyn Read + Send>,
    regions: Vec<Region>,
}

/// Sends over as many connections as there are to be.
pub fn run(args: &SendArgs) -> Fallible<()> {
    let common = &args.common;
    let mut total = Some(0);
    let mut inputs = Vec::new();
    for _ in 0..common.connections {
        let (input, len) = open(args)?;
        inputs.push(input);
        total = total
            .zip(len)
            .and_then(|(total, len)| len.checked_add(total));
    }
    let chunk = args
        .chunk
        .checked_mul(1 << 10)
        .ok_or("--chunk is too large")?;
    let memory = memory::dmabuf(common)?;
    let mut shares: Vec<_> = inputs.into_iter().map(Share::new).collect();
    let regions = memory.region()?.split(chunk);
    if regions.len() < shares.len() {
        return Err("--memory is too small: each connection wants one --chunk at least".into());
    }
    let count = shares.len();
    for (i, region) in regions.into_iter().enumerate() {
        shares[i % count].regions.push(region);
    }
    let interface = common.interface();
    let ifindex =
        if_nametoindex(interface).map_err(|err| format!("interface {interface}: {err}"))?;
    let request = match args.local || args.share.is_some() {
        true => BindTx::new(ifindex).local(),
        false => BindTx::new(ifindex),
    };
    let binding = request
        .bind(&memory)
        .map_err(|err| bind_error("sending by", interface, &err))?;
    let source = Source::new(common, |_| Ok(()))?;
    if let Some(path) = &args.share {
        share::pass(path, &binding, &memory)?;
    }
    let progress = Progress::new(common, total);
    progress.during(|| (), || all(args, source, &binding, &progress, shares))
}

/// What is to be sent, and how much that is if it is a file.
fn open(args: &SendArgs) -> Fallible<(Box<dyn Read + Send>, Option<u64>)> {
    let Some(path) = &args.input else {
        return Ok((Box::new(io::stdin()), None));
    };
    let file = File::open(path).map_err(context(path.display().to_string()))?;
    let metadata = file.metadata()?;
    let len = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), len))
}

/// Sends over all connections, each by a thread of its own.
fn all(
    args: &SendArgs,
    source: Source,
    binding: &TxBinding,
    progress: &Progress,
    shares: Vec<Share>,
) -> Fallible<()> {
    let outcomes = Outcomes::new(shares.len() > 1);
    thread::scope(|scope| -> Fallible<()> {
        for share in shares {
            let connection = source.next(&args.common)?;
            let outcomes = &outcomes;
            thread::Builder::new()
                .spawn_scoped(scope, move || {
                    let result = one(args, &connection, binding, progress, share);
                    outcomes.note(&connection.peer, result);
                })
                .map_err(context("starting a thread"))?;
        }
        drop(source);
        Ok(())
    })?;
    outcomes.all(args.common.connections)
}

/// Sends over a connection, and tells what came of it.
fn one(
    args: &SendArgs,
    connection: &Connection,
    binding: &TxBinding,
    progress: &Progress,
    share: Share,
) -> Fallible<()> {
    let mut stats = Stats::new(&args.common, progress);
    let mut copied = 0;
    let result = share
        .send(args, connection, binding, &mut stats)
        .map(|calls| copied = calls);
    stats.finish(
        &args.common,
        connection,
        &result,
        &[(
            "copied_calls",
            "calls copied by the kernel after all",
            copied,
        )],
    );
    result
}

impl Share {
    fn new(input: Box<dyn Read + Send>) -> Self {
        Self {
            input,
            regions: Vec::new(),
        }
    }

    /// Sends to the end, and waits until the peer has dealt with it. Returns how many calls were copied.
    fn send(
        mut self,
        args: &SendArgs,
        connection: &Connection,
        binding: &TxBinding,
        stats: &mut Stats<'_>,
    ) -> Fallible<u64> {
        let stream = &connection.stream;
        let end = || stream.shutdown(Shutdown::Write);
        let input = &mut self.input;
        let copied = match args.common.backend {
            Backend::Blocking => {
                let mut tx = Sender::new(stream)?;
                transfer(&mut tx, binding, self.regions, input, stats, end)?
            }
            Backend::Uring | Backend::UringMultishot => {
                let mut tx = uring::Sender::new(stream)?;
                transfer(&mut tx, binding, self.regions, input, stats, end)?
            }
        };
        match args.no_wait {
            true => connection::check_error(stream),
            false => connection::wait_for_the_end(stream, args.common.quiet),
        }
        .map_err(context("the peer did not take all of it"))?;
        connection::finish(stream).map_err(context("ending the connection"))?;
        Ok(copied)
    }
}

/// Sends all there is, and waits until the peer has it. Returns how many of the calls were copied.
fn transfer(
    tx: &mut impl Transmit<Filled>,
    binding: &TxBinding,
    mut free: Vec<Region>,
    input: &mut impl Read,
    stats: &mut Stats<'_>,
    end: impl FnOnce() -> io::Result<()>,
) -> Fallible<u64> {
    let size = free.first().map_or(0, |region| region.extent().len);
    let mut buffer = vec![0; usize::try_from(size)?];
    let mut copied = 0;
    loop {
        let mut region = match free.pop() {
            Some(region) => region,
            None => {
                let sent = tx.wait().map_err(context("waiting for the kernel"))?;
                let sent = sent.ok_or("the dma-buf is too small for one --chunk")?;
                copied += u64::from(sent.copied);
                sent.source.region
            }
        };
        let room = usize::try_from(region.extent().len)?.min(buffer.len());
        let len = match input.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(len) => len,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {
                check_interrupted()?;
                free.push(region);
                continue;
            }
            Err(err) => return Err(format!("reading: {err}").into()),
        };
        stats.data(&buffer[..len]);
        region.begin_write()?.copy_in(0, &buffer[..len])?;
        let filled = Filled {
            region,
            len: len as u64,
        };
        tx.send(binding, filled).map_err(|err| {
            let hint = match err.error.raw_os_error() {
                Some(19) => "\nHint: the connection goes through another interface.",
                _ => "",
            };
            format!("sending: {err}{hint}")
        })?;
        stats.count(len as u64);
    }
    end().map_err(context("ending the connection"))?;
    while let Some(sent) = tx.wait().map_err(context("waiting for the peer"))? {
        copied += u64::from(sent.copied);
    }
    Ok(copied)
}
