// SPDX-License-Identifier: GPL-2.0

//! Receiving: into a dma-buf, and from there to standard output or a file.

use std::error::Error;
use std::io;

use devmem::BindRx;
use devmem::Piece;
use devmem::Receive;
use devmem::Receiver;
use devmem::TokenBatch;
use devmem::device::Device;
use devmem::dmabuf::Mapping;
use devmem::netns::Netns;
use devmem::uring;

use crate::args::Backend;
use crate::args::ReceiveArgs;
use crate::connection;
use crate::connection::check_interrupted;
use crate::error::bind_error;
use crate::error::context;
use crate::output::Output;
use crate::stats::Stats;

/// What a receiver has seen.
struct Tally {
    stats: Stats,
    output: Output,
    /// How many bytes are to come.
    size: Option<u64>,
    frags: u64,
    copied: u64,
}

/// Receives one connection.
pub fn run(args: &ReceiveArgs) -> Result<(), Box<dyn Error>> {
    let common = &args.common;
    let output = match (&args.output, args.discard) {
        (_, true) => Output::Discard,
        (Some(path), _) => Output::file(path).map_err(context(path.display().to_string()))?,
        (None, false) => Output::Stdout(io::stdout()),
    };
    connection::end_by_signal()?;
    let memory = common.dmabuf()?;
    let mapping = memory.map()?;

    let netns = Netns::current()?;
    let device = Device::prepare(&netns, &common.interface)?;
    let mut request = BindRx::new(device.ifindex());
    for &queue in &args.queues {
        request = request.queue(queue);
    }
    if let Some(size) = args.rx_page_size {
        request = request.rx_page_size(size);
    }
    let binding = request
        .bind(&memory)
        .map_err(|err| bind_error("binding queues of", &common.interface, &err))?;

    let steer = |addr| match args.queues.first() {
        Some(&queue) if args.steer => device.steer(addr, queue).map(Some),
        _ => Ok(None),
    };
    let listener = connection::listen(common)?;
    // Before the connection there is, if possible, so that none of it goes another way.
    let rule = match &listener {
        Some(listener) => steer(listener.local_addr()?)?,
        None => None,
    };
    let stream = connection::connect(common, listener)?;
    let _rule = match rule {
        None => steer(stream.local_addr()?)?,
        some => some,
    };

    let mut tally = Tally {
        stats: Stats::new(common),
        output,
        size: args.size,
        frags: 0,
        copied: 0,
    };
    let mut batch = TokenBatch::new(&stream);
    let returned = match common.backend {
        Backend::Blocking => {
            tally.receive(
                &mut Receiver::new(&stream),
                &mut batch,
                &mapping,
                binding.id(),
            )?;
            batch.returned()
        }
        Backend::Uring | Backend::UringMultishot => {
            let mut rx = match common.backend {
                Backend::UringMultishot => uring::Receiver::multishot(&stream)?,
                _ => uring::Receiver::new(&stream)?,
            };
            tally.receive(&mut rx, &mut batch, &mapping, binding.id())?;
            rx.finish()?;
            rx.returned()
        }
    };
    if let Some(size) = args.size.filter(|&size| size != tally.stats.bytes) {
        return Err(format!("{} of {size} bytes came", tally.stats.bytes).into());
    }
    tally.write_out()?;
    // Only now, so that the sender knows.
    connection::finish(&stream).map_err(context("ending the connection"))?;
    tally.tell(returned);
    Ok(())
}

impl Tally {
    /// Receives until the peer has sent everything.
    fn receive<'s>(
        &mut self,
        rx: &mut impl Receive<'s>,
        batch: &mut TokenBatch<'s>,
        mapping: &Mapping,
        id: u32,
    ) -> Result<(), Box<dyn Error>> {
        let mut gathered = Vec::new();
        loop {
            let received = rx.recv().map_err(|err| self.cut(&err))?;
            if received.is_eof() {
                // A signal ends the connection, too, and that is not all there was to come.
                return Ok(check_interrupted()?);
            }
            self.stats.bytes += received.total() as u64;
            if self.size.is_some_and(|size| self.stats.bytes > size) {
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
                        if frag.dmabuf_id != id {
                            return Err(format!(
                                "data came by binding {}, not by {id}: another program has the queue of this flow",
                                frag.dmabuf_id
                            )
                            .into());
                        }
                        if let Some(cpu) = &cpu {
                            gathered.resize(frag.size as usize, 0);
                            cpu.copy_out(frag.offset, &mut gathered)?;
                            self.put(&gathered)?;
                        }
                        batch.push(frag.token)?;
                    }
                    Piece::Linear(bytes) | Piece::Plain(bytes) => {
                        self.copied += bytes.len() as u64;
                        self.put(bytes)?;
                    }
                }
            }
            batch.flush()?;
            self.stats.tick();
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
        self.stats.data(bytes);
        self.output.put(bytes).map_err(context("writing"))
    }

    /// What a connection that did not come to its end is.
    fn cut(&self, err: &io::Error) -> String {
        let hint = match err.kind() {
            // It was not the sender then.
            _ if connection::interrupted() => "",
            io::ErrorKind::ConnectionReset if self.output.wants_data() => {
                "\nHint: the sender gave up. What was written is a part."
            }
            io::ErrorKind::ConnectionReset => "\nHint: the sender gave up.",
            _ => "",
        };
        format!("receiving: {err}, after {} bytes{hint}", self.stats.bytes)
    }

    fn write_out(&mut self) -> Result<(), Box<dyn Error>> {
        self.output.finish().map_err(context("writing"))
    }

    fn tell(self, returned: u64) {
        let all_copied = self.stats.bytes > 0 && self.frags == 0;
        self.stats.finish(&format!(
            "{} frags in device memory, {} bytes in host memory, {returned} tokens returned",
            self.frags, self.copied
        ));
        if all_copied {
            eprintln!(
                "devmem-cat: nothing came in device memory: the flow is on another queue. See --steer, and ethtool -S."
            );
        }
    }
}
