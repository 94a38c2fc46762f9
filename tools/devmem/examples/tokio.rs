// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Receives connections into one dma-buf, all of them in one thread, and ends each that is silent for a while.
//!
//! `tokio INTERFACE QUEUE ADDR:PORT`, as root.

use std::cell::RefCell;
use std::env;
use std::error::Error;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use devmem::BindRx;
use devmem::DmaBuf;
use devmem::Piece;
use devmem::TokenBatch;
use devmem::device::Device;
use devmem::dmabuf::Mapping;
use devmem::netns::Netns;
use devmem::tokio::Receiver;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::timeout;

/// Who sends nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [interface, queue, to] = &args[..] else {
        return Err("usage: tokio INTERFACE QUEUE ADDR:PORT".into());
    };
    let (queue, to): (u32, SocketAddr) = (queue.parse()?, to.parse()?);
    let netns = Netns::current()?;
    let device = Device::prepare(&netns, interface)?;
    let memory = DmaBuf::udmabuf(64 << 20)?;
    let map = Rc::new(memory.map()?);
    let _binding = BindRx::new(device.ifindex()).queue(queue).bind(&memory)?;
    let _rule = device.steer(to, queue)?;

    let runtime = Builder::new_current_thread().enable_all().build()?;
    let zeroes = Rc::new(RefCell::new(0));
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(to).await?;
        loop {
            let (stream, from) = listener.accept().await?;
            let (map, zeroes) = (Rc::clone(&map), Rc::clone(&zeroes));
            tokio::task::spawn_local(async move {
                match receive(stream, &map).await {
                    Ok(count) => *zeroes.borrow_mut() += count,
                    Err(err) => eprintln!("the connection of {from} ended: {err}"),
                }
                println!("{} bytes so far were zero", zeroes.borrow());
            });
        }
    })
}

/// Counts bytes that are zero.
async fn receive(stream: TcpStream, map: &Mapping) -> Result<usize, Box<dyn Error>> {
    // Both have their part of it; a reference would do as well.
    let stream = Arc::new(stream);
    let mut rx = Receiver::new(Arc::clone(&stream))?;
    let mut done = TokenBatch::new(stream);
    let (mut zeroes, mut copy) = (0, Vec::new());
    loop {
        // What comes after a timeout is still there.
        let received = timeout(PATIENCE, rx.recv()).await??;
        if received.is_eof() {
            return Ok(zeroes);
        }
        let cpu = map.begin_read()?;
        for piece in received {
            let bytes = match &piece {
                Piece::Frag(frag) => {
                    copy.resize(frag.size as usize, 0);
                    cpu.copy_out(frag.offset, &mut copy)?;
                    &copy[..]
                }
                Piece::Linear(bytes) | Piece::Plain(bytes) => bytes,
            };
            zeroes += bytes.iter().filter(|&&byte| byte == 0).count();
            if let Piece::Frag(frag) = piece {
                done.push(frag.token)?;
            }
        }
        drop(cpu);
        // A system call that does not wait.
        done.flush()?;
    }
}
