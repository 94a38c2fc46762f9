// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Sends a file to a reader in another network namespace, as in another container, without a copy.
//!
//! `local NETNS INTERFACE READER ADDR:PORT FILE`: from the namespace NETNS, by INTERFACE, to ADDR in the namespace READER.
//! They may be joined by netkit, for example:
//!
//! ```sh
//! ip netns add one; ip netns add other
//! ip -n one link add eth0 type netkit peer name eth0 netns other
//! ip -n one addr add 192.0.2.1/24 dev eth0; ip -n one link set eth0 up
//! ip -n other addr add 192.0.2.2/24 dev eth0; ip -n other link set eth0 up
//! local one eth0 other 192.0.2.2:5201 /etc/services >copy
//! ```
//!
//! The ends are threads here. As processes they would have the AF_UNIX socket from each other by a path that both see.

use std::env;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Filled;
use devmem::Piece;
use devmem::Receiver;
use devmem::Sender;
use devmem::TokenBatch;
use devmem::local::Share;
use devmem::netns::Netns;

/// What is sent with one call.
const PART: u64 = 256 << 10;
/// A peer that takes or sends nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [netns, interface, reader, to, file] = &args[..] else {
        return Err(io::Error::other(
            "usage: local NETNS INTERFACE READER ADDR:PORT FILE",
        ));
    };
    let (netns, reader) = (Netns::named(netns)?, Netns::named(reader)?);
    let mut file = File::open(file)?;
    let (here, there) = UnixStream::pair()?;
    let listener = reader.run(|| TcpListener::bind(to.as_str()))?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || reader.run(|| read(&there, &listener)));
        let sent = netns.run(|| send(&here, interface, to, &mut file));
        let read = reader.join().expect("the reader's thread");
        sent.and(read)
    })
}

/// Passes the memory, and sends from it.
fn send(reader: &UnixStream, interface: &str, to: &str, file: &mut File) -> io::Result<()> {
    let memory = DmaBuf::udmabuf(4 << 20)?;
    let ifindex = Netns::current()?.ifindex(interface)?;
    let binding = BindTx::new(ifindex).local().bind(&memory)?;
    Share::send(reader, &binding, &memory)?;

    let stream = TcpStream::connect(to)?;
    let mut tx = Sender::<Filled>::new(&stream)?;
    let mut free = memory.region()?.split(PART);
    let mut buffer = vec![0; PART as usize];
    loop {
        // A region to write to: one that was not used yet, or the next that the reader has returned.
        let mut region = match free.pop() {
            Some(region) => region,
            None => {
                let sent = tx.wait_timeout(PATIENCE)?;
                sent.ok_or(io::ErrorKind::OutOfMemory)?.source.region
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
    while tx.wait_timeout(PATIENCE)?.is_some() {}
    Ok(())
}

/// Takes the memory, and writes what is sent there to standard output.
fn read(sender: &UnixStream, listener: &TcpListener) -> io::Result<()> {
    let share = Share::receive_timeout(sender, PATIENCE)?;
    let map = share.memory().map()?;
    let (stream, _) = listener.accept()?;
    let mut rx = Receiver::new(&stream);
    let mut done = TokenBatch::new(&stream);
    let mut payload = Vec::new();
    loop {
        let received = rx.recv_timeout(PATIENCE)?;
        if received.is_eof() {
            return Ok(());
        }
        let cpu = map.begin_read()?;
        for piece in received {
            match piece {
                Piece::Frag(frag) if frag.dmabuf_id == share.id() => {
                    payload.resize(frag.size as usize, 0);
                    // A copy: the sender can change the memory as long as it likes.
                    cpu.copy_out(frag.offset, &mut payload)?;
                    io::stdout().write_all(&payload)?;
                    done.push(frag.token)?;
                }
                Piece::Frag(_) => return Err(io::Error::other("in memory of another")),
                Piece::Linear(bytes) | Piece::Plain(bytes) => io::stdout().write_all(bytes)?,
            }
        }
        drop(cpu);
        done.flush()?;
    }
}
