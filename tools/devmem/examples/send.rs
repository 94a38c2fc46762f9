// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Sends a file from a dma-buf.
//!
//! `send INTERFACE ADDR:PORT FILE`; the interface is the one that the connection goes through. Any program may
//! receive.

use std::env;
use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::net::TcpStream;
use std::time::Duration;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Filled;
use devmem::Sender;
use devmem::netns::Netns;

/// What is sent with one call.
const PART: u64 = 256 << 10;
/// A peer that takes nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [interface, to, file] = &args[..] else {
        return Err("usage: send INTERFACE ADDR:PORT FILE".into());
    };
    let mut file = File::open(file)?;

    let memory = DmaBuf::udmabuf(4 << 20)?;
    let ifindex = Netns::current()?.ifindex(interface)?;
    let binding = BindTx::new(ifindex).bind(&memory)?;
    let stream = TcpStream::connect(to.as_str())?;
    let mut tx = Sender::<Filled>::new(&stream)?;

    let mut free = memory.region()?.split(PART);
    let mut buffer = vec![0; PART as usize];
    loop {
        // A region to write to: one that was not used yet, or the next that has been sent.
        let mut region = match free.pop() {
            Some(region) => region,
            None => {
                let sent = tx.wait_timeout(PATIENCE)?.ok_or("no memory at all")?;
                sent.source.region
            }
        };
        let len = file.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        region.begin_write()?.copy_in(0, &buffer[..len])?;
        let filled = Filled {
            region,
            len: len as u64,
        };
        tx.send_timeout(&binding, filled, PATIENCE)?;
    }
    stream.shutdown(Shutdown::Write)?;
    // The kernel may have to send all that once more until the peer has it.
    while tx.wait_timeout(PATIENCE)?.is_some() {}
    Ok(())
}
