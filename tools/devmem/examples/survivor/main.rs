// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Receives connections, one after the other, into memory that its exporter may take back, and writes what came to files.
//!
//! `survivor INTERFACE QUEUE ADDR:PORT DIR`, as root. Nobody takes the memory of a udmabuf back; put in its place what has
//! the dma-bufs of a device that is reset now and then.

mod receiver;

use std::env;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;

use devmem::BindRx;
use devmem::DmaBuf;
use devmem::device::Device;
use devmem::netns::Netns;

use receiver::End;
use receiver::Failure;
use receiver::Survivor;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [interface, queue, to, dir] = &args[..] else {
        return Err("usage: survivor INTERFACE QUEUE ADDR:PORT DIR".into());
    };
    let (queue, to): (u32, SocketAddr) = (queue.parse()?, to.parse()?);
    let netns = Netns::current()?;
    let device = Device::prepare(&netns, interface)?;
    let request = BindRx::new(device.ifindex()).queue(queue);
    // Another one each time: DmaBuf::from_fd() of what the exporter has given.
    let mut survivor = Survivor::new(request, || DmaBuf::udmabuf(64 << 20))?;
    let listener = TcpListener::bind(to)?;
    let _rule = device.steer(to, queue)?;

    for number in 0.. {
        let (stream, from) = listener.accept()?;
        let mut file = File::create(Path::new(dir).join(number.to_string()))?;
        match survivor.receive(&stream, |bytes| file.write_all(bytes)) {
            Ok(End::Whole) => println!("{number}: all of it, from {from}"),
            Ok(End::Lost) => println!("{number}: a part of it, the memory of the rest is gone"),
            // That of one connection, or of everything: then the next one has it as well.
            Err(err) => println!("{number}: {err}"),
        }
        let (times, bytes) = (survivor.revoked(), survivor.in_device_memory());
        println!("{bytes} bytes so far in device memory, which was taken back {times} times");
    }
    Ok(())
}
