// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Receives connections into one dma-buf, each in a thread of its own, and leaves what came to others.
//!
//! `threads INTERFACE QUEUE ADDR:PORT`, as root. A piece that went to another thread keeps its memory until that is done
//! with it; the connection may be over by then.

use std::env;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use devmem::BindRx;
use devmem::DmaBuf;
use devmem::Frag;
use devmem::Piece;
use devmem::Receiver;
use devmem::device::Device;
use devmem::dmabuf::Mapping;
use devmem::netns::Netns;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [interface, queue, to] = &args[..] else {
        return Err("usage: threads INTERFACE QUEUE ADDR:PORT".into());
    };
    let (queue, to): (u32, SocketAddr) = (queue.parse()?, to.parse()?);
    let netns = Netns::current()?;
    let device = Device::prepare(&netns, interface)?;
    let memory = DmaBuf::udmabuf(64 << 20)?;
    let map = memory.map()?;
    let _binding = BindRx::new(device.ifindex()).queue(queue).bind(&memory)?;
    let listener = TcpListener::bind(to)?;
    let _rule = device.steer(to, queue)?;

    let (jobs, todo) = mpsc::channel();
    let worker = thread::spawn(move || count(&map, todo));
    loop {
        // What is shared can go anywhere: a piece keeps the socket open until its memory has gone back.
        let stream = Arc::new(listener.accept()?.0);
        let jobs = jobs.clone();
        thread::spawn(move || {
            if let Err(err) = receive(stream, &jobs) {
                eprintln!("a connection ended: {err}");
            }
        });
        if worker.is_finished() {
            return Err("the worker is gone".into());
        }
    }
}

fn receive(stream: Arc<TcpStream>, jobs: &mpsc::Sender<Frag<'static>>) -> io::Result<()> {
    let mut rx = Receiver::new(stream);
    loop {
        let received = rx.recv()?;
        if received.is_eof() {
            return Ok(());
        }
        for piece in received {
            match piece {
                Piece::Frag(frag) => jobs.send(frag).map_err(io::Error::other)?,
                Piece::Linear(bytes) | Piece::Plain(bytes) => {
                    println!("{} bytes in host memory", bytes.len());
                }
            }
        }
    }
}

/// Counts bytes that are zero.
fn count(map: &Mapping, todo: mpsc::Receiver<Frag<'static>>) -> io::Result<()> {
    let mut copy = Vec::new();
    for frag in todo {
        copy.resize(frag.size as usize, 0);
        map.begin_read()?.copy_out(frag.offset, &mut copy)?;
        let zeroes = copy.iter().filter(|&&byte| byte == 0).count();
        println!("{zeroes} of {} bytes are zero", copy.len());
        // Here its memory goes back to the NIC.
        drop(frag);
    }
    Ok(())
}
