// SPDX-License-Identifier: GPL-2.0

//! Sending: standard input or a file, by way of a dma-buf.

use std::error::Error;
use std::fs::File;
use std::io;
use std::io::Read;
use std::net::Shutdown;

use devmem::BindTx;
use devmem::Filled;
use devmem::Region;
use devmem::Sender;
use devmem::Transmit;
use devmem::TxBinding;
use devmem::uring;

use crate::args::Backend;
use crate::args::SendArgs;
use crate::connection;
use crate::connection::check_interrupted;
use crate::error::bind_error;
use crate::error::context;
use crate::stats::Stats;

/// Sends over one connection.
pub fn run(args: &SendArgs) -> Result<(), Box<dyn Error>> {
    let common = &args.common;
    let mut input: Box<dyn Read> = match &args.input {
        Some(path) => Box::new(File::open(path).map_err(context(path.display().to_string()))?),
        None => Box::new(io::stdin().lock()),
    };
    connection::end_by_signal()?;
    let chunk = args
        .chunk
        .checked_mul(1 << 10)
        .ok_or("--chunk is too large")?;
    let memory = common.dmabuf()?;
    let regions = memory.region()?.split(chunk);
    let binding = BindTx::new(common.ifindex()?)
        .bind(&memory)
        .map_err(|err| bind_error("sending by", &common.interface, &err))?;
    let listener = connection::listen(common)?;
    let stream = connection::connect(common, listener)?;

    let mut stats = Stats::new(common);
    let copied = match common.backend {
        Backend::Blocking => {
            let mut tx = Sender::new(&stream)?;
            transfer(&mut tx, &binding, regions, &mut input, &mut stats, || {
                stream.shutdown(Shutdown::Write)
            })?
        }
        Backend::Uring | Backend::UringMultishot => {
            let mut tx = uring::Sender::new(&stream)?;
            transfer(&mut tx, &binding, regions, &mut input, &mut stats, || {
                stream.shutdown(Shutdown::Write)
            })?
        }
    };
    match args.no_wait {
        true => connection::check_error(&stream),
        false => connection::wait_for_the_end(&stream, common.quiet),
    }
    .map_err(context("the peer did not take all of it"))?;
    connection::finish(&stream).map_err(context("ending the connection"))?;
    stats.finish(&format!("{copied} calls copied by the kernel after all"));
    Ok(())
}

/// Sends all there is, and waits until the peer has it. Returns how many of the calls were copied.
fn transfer(
    tx: &mut impl Transmit<Filled>,
    binding: &TxBinding,
    mut free: Vec<Region>,
    input: &mut impl Read,
    stats: &mut Stats,
    end: impl FnOnce() -> io::Result<()>,
) -> Result<u64, Box<dyn Error>> {
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
        stats.bytes += len as u64;
        stats.tick();
    }
    end().map_err(context("ending the connection"))?;
    while let Some(sent) = tx.wait().map_err(context("waiting for the peer"))? {
        copied += u64::from(sent.copied);
    }
    Ok(copied)
}
