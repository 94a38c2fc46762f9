// SPDX-License-Identifier: GPL-2.0

//! From one dma-buf into another: both ends of the connection are device memory.

use std::error::Error;
use std::fs;
use std::io;
use std::mem;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::thread;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Filled;
use devmem::Receiver;
use devmem::Region;
use devmem::Sender;
use devmem::TokenBatch;
use devmem::Transmit;
use devmem::TxBinding;
use devmem::device::Device;
use devmem::uring;
use nix::net::if_::if_nametoindex;

use crate::args;
use crate::args::CopyArgs;
use crate::binding;
use crate::binding::in_use_at_the_end;
use crate::report::Copied;
use crate::report::CopyReport;
use crate::transfer;
use crate::transfer::Check;
use crate::transfer::Outcome;
use crate::transfer::TIMEOUT;

/// What is sent with one call.
const CHUNK: u32 = 256 << 10;

/// How system calls are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backend {
    Blocking,
    Uring,
}

/// Sends the file once by each backend.
pub fn run(args: &CopyArgs) -> Result<(), Box<dyn Error>> {
    let (rx, tx) = args.ends.namespaces()?;
    let to = SocketAddr::new(args.ends.addr, args.port);
    let file =
        fs::read(&args.ends.file).map_err(|err| format!("{}: {err}", args.ends.file.display()))?;

    let rx_memory = DmaBuf::udmabuf(args::mib(args.ends.memory)?)?;
    let mapping = rx_memory.map()?;
    let device = Device::prepare(&rx, &args.ends.rx_if)?;
    let _rule = device.steer(to, args.ends.queue)?;
    let rx_binding = binding::bind(&rx, &device, &args.ends, &rx_memory)?;

    let tx_memory = DmaBuf::udmabuf(args::mib(args.ends.memory)?)?;
    let tx_binding = tx
        .run(|| Ok(BindTx::new(if_nametoindex(args.tx_if.as_str())?).bind(&tx_memory)))?
        .map_err(|err| format!("sending by {}: {err}", args.tx_if))?;
    let mut regions = tx_memory.region()?.split(CHUNK.into());

    let listener = rx.run(|| TcpListener::bind(to))?;
    let mut copies = Vec::new();
    for backend in [Backend::Blocking, Backend::Uring] {
        let client = tx.run(|| TcpStream::connect(to))?;
        let (server, _) = listener.accept()?;
        server.set_read_timeout(Some(TIMEOUT))?;
        client.set_write_timeout(Some(TIMEOUT))?;
        let free = mem::take(&mut regions);
        let copied;
        (copied, regions) = thread::scope(|scope| -> io::Result<_> {
            let (binding, file) = (&tx_binding, &file);
            let sender = scope.spawn(move || send(backend, &client, binding, file, free));
            let mut at = 0;
            let mut equal = true;
            let mut compare = |bytes: &[u8]| {
                equal &= file.get(at..at + bytes.len()) == Some(bytes);
                at += bytes.len();
            };
            let check: Check<'_> = Some((&mapping, &mut compare));
            let outcome = match backend {
                Backend::Blocking => {
                    let mut batch = TokenBatch::new(&server);
                    let mut rx = Receiver::new(&server);
                    let outcome = transfer::receive(&mut rx, &mut batch, check)?;
                    Outcome {
                        returned: batch.returned(),
                        ..outcome
                    }
                }
                Backend::Uring => {
                    let mut batch = TokenBatch::new(&server);
                    let mut rx = uring::Receiver::multishot(&server)?;
                    let outcome = transfer::receive(&mut rx, &mut batch, check)?;
                    rx.finish()?;
                    Outcome {
                        returned: rx.returned(),
                        ..outcome
                    }
                }
            };
            let sent = sender
                .join()
                .map_err(|_| io::Error::other("the sender's thread panicked"))?;
            Ok((Copied { outcome, equal }, sent?))
        })?;
        copies.push(copied);
    }

    let id = rx_binding.id();
    drop((rx_binding, tx_binding));
    let report = CopyReport {
        bytes: file.len() as u64,
        copies,
        in_use: in_use_at_the_end(id)?,
    };
    println!("{report}");
    report.verdict()
}

fn send(
    backend: Backend,
    stream: &TcpStream,
    binding: &TxBinding,
    file: &[u8],
    regions: Vec<Region>,
) -> io::Result<Vec<Region>> {
    match backend {
        Backend::Blocking => send_file(&mut Sender::new(stream)?, stream, binding, file, regions),
        Backend::Uring => send_file(
            &mut uring::Sender::new(stream)?,
            stream,
            binding,
            file,
            regions,
        ),
    }
}

/// Puts a file into regions of a dma-buf, and sends these. Gives them back when the peer has all of it.
fn send_file(
    tx: &mut impl Transmit<Filled>,
    stream: &TcpStream,
    binding: &TxBinding,
    file: &[u8],
    mut free: Vec<Region>,
) -> io::Result<Vec<Region>> {
    for bytes in file.chunks(CHUNK as usize) {
        // A region that was not used yet, or the next that has been sent.
        let mut region = match free.pop() {
            Some(region) => region,
            None => {
                let sent = tx.wait()?.ok_or(io::ErrorKind::OutOfMemory)?;
                sent.source.region
            }
        };
        region.begin_write()?.copy_in(0, bytes)?;
        let len = bytes.len() as u64;
        tx.send(binding, Filled { region, len })?;
    }
    stream.shutdown(Shutdown::Write)?;
    while let Some(sent) = tx.wait()? {
        free.push(sent.source.region);
    }
    Ok(free)
}
