// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Receives by io_uring, with one request for a whole connection, and writes what came to standard output.
//!
//! `uring INTERFACE QUEUE ADDR:PORT`, as root, with the flow steered to the queue by other means: see `receive`, which
//! does that by itself.

use std::env;
use std::error::Error;
use std::io;
use std::io::Write;
use std::net::TcpListener;

use devmem::BindRx;
use devmem::DmaBuf;
use devmem::Piece;
use devmem::device::Device;
use devmem::netns::Netns;
use devmem::uring::Receiver;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [interface, queue, to] = &args[..] else {
        return Err("usage: uring INTERFACE QUEUE ADDR:PORT".into());
    };
    let netns = Netns::current()?;
    let device = Device::prepare(&netns, interface)?;
    let memory = DmaBuf::udmabuf(64 << 20)?;
    let map = memory.map()?;
    let request = BindRx::new(device.ifindex()).queue(queue.parse()?);
    let _binding = request.bind(&memory)?;
    let (stream, _) = TcpListener::bind(to.as_str())?.accept()?;

    let mut rx = Receiver::multishot(&stream)?;
    let mut copy = Vec::new();
    let mut stdout = io::stdout().lock();
    loop {
        let received = rx.recv()?;
        if received.is_eof() {
            break;
        }
        let cpu = map.begin_read()?;
        for piece in received {
            match piece {
                Piece::Frag(frag) => {
                    copy.resize(frag.size as usize, 0);
                    cpu.copy_out(frag.offset, &mut copy)?;
                    stdout.write_all(&copy)?;
                    // The token is dropped, and goes back with the next recv().
                }
                Piece::Linear(bytes) | Piece::Plain(bytes) => stdout.write_all(bytes)?,
            }
        }
    }
    rx.finish()?;
    Ok(())
}
