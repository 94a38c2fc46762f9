// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Receives one connection into a dma-buf, and writes what came to a file.
//!
//! `receive INTERFACE QUEUE ADDR:PORT FILE`, as root; any program may send:
//!
//! ```text
//! # receive eth0 4 192.0.2.1:5201 copy &
//! $ socat -u FILE:original TCP:192.0.2.1:5201
//! ```

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;

use devmem::BindRx;
use devmem::DmaBuf;
use devmem::Piece;
use devmem::Receiver;
use devmem::TokenBatch;
use devmem::device::Device;
use devmem::netns::Netns;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [interface, queue, to, file] = &args[..] else {
        return Err("usage: receive INTERFACE QUEUE ADDR:PORT FILE".into());
    };
    let (queue, to): (u32, SocketAddr) = (queue.parse()?, to.parse()?);
    let mut file = File::create(file)?;

    // Headers go to host memory from now on, and payload of the queue to the dma-buf. All of it is as it was
    // when these are dropped.
    let netns = Netns::current()?;
    let device = Device::prepare(&netns, interface)?;
    let memory = DmaBuf::udmabuf(64 << 20)?;
    let map = memory.map()?;
    let binding = BindRx::new(device.ifindex()).queue(queue).bind(&memory)?;

    // Before the connection is there, so that nothing of it goes another way.
    let listener = TcpListener::bind(to)?;
    let _rule = device.steer(to, queue)?;
    let (stream, _) = listener.accept()?;

    let mut rx = Receiver::new(&stream);
    let mut done = TokenBatch::new(&stream);
    let mut copy = Vec::new();
    let (mut device_memory, mut host_memory) = (0, 0);
    loop {
        let received = rx.recv()?;
        if received.is_eof() {
            break;
        }
        let cpu = map.begin_read()?;
        // In the order of the stream, of which any part may come in host memory.
        for piece in received {
            match piece {
                Piece::Frag(frag) => {
                    // Offsets are those of one dma-buf.
                    if frag.dmabuf_id != binding.id() {
                        return Err("the flow is on a queue of another program".into());
                    }
                    copy.resize(frag.size as usize, 0);
                    cpu.copy_out(frag.offset, &mut copy)?;
                    file.write_all(&copy)?;
                    device_memory += copy.len();
                    // The NIC may write there again, once this batch was flushed.
                    done.push(frag.token)?;
                }
                Piece::Linear(bytes) | Piece::Plain(bytes) => {
                    file.write_all(bytes)?;
                    host_memory += bytes.len();
                }
            }
        }
        done.flush()?;
    }
    println!("{device_memory} bytes came in device memory, {host_memory} in host memory");
    Ok(())
}
