// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Moves files between the memory of two machines.
//!
//! ```text
//! bulk serve ADDRESS CONTROL_PORT LANE_PORT BYTES INTERFACE [QUEUE]
//! bulk put   ADDRESS CONTROL_PORT LANE_PORT KEY INTERFACE <FILE
//! bulk get   ADDRESS CONTROL_PORT LANE_PORT KEY INTERFACE BYTES >FILE
//! ```
//!
//! The server tells the key. If it is told a queue, flows to the port of lanes have to be steered there, and header split
//! to be on.

use std::env;
use std::error::Error;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use devmem::BindRx;
use devmem::DmaBuf;
use devmem_bulk::Acceptor;
use devmem_bulk::Endpoint;
use devmem_bulk::Key;
use devmem_bulk::Landing;
use devmem_bulk::Memory;
use devmem_bulk::Options;
use devmem_bulk::Registry;
use devmem_bulk::Rights;
use devmem_bulk::connect::connect;
use nix::net::if_::if_nametoindex;

const PAGE: usize = 4096;
const LANES: u16 = 2;
const LANDING: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

type Any<T> = Result<T, Box<dyn Error>>;

fn main() -> Any<()> {
    let args: Vec<_> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", address, control, lanes, bytes, interface] => {
            serve(address, control, lanes, bytes, interface, None)
        }
        ["serve", address, control, lanes, bytes, interface, queue] => {
            serve(address, control, lanes, bytes, interface, Some(queue))
        }
        ["put", address, control, lanes, key, interface] => {
            let mut file = Vec::new();
            io::stdin().read_to_end(&mut file)?;
            let memory = memory(file.len(), interface)?;
            memory.write(0, &file)?;
            let mut endpoint = connected(address, control, lanes)?;
            let asked = endpoint.put(&memory, 0, file.len() as u64, parsed(key)?, 0);
            finish(endpoint, asked.map_err(|why| format!("{why:?}"))?)
        }
        ["get", address, control, lanes, key, interface, bytes] => {
            let mut file = vec![0; bytes.parse()?];
            let memory = memory(file.len(), interface)?;
            let mut endpoint = connected(address, control, lanes)?;
            let asked = endpoint.get(&memory, 0, file.len() as u64, parsed(key)?, 0);
            finish(endpoint, asked.map_err(|why| format!("{why:?}"))?)?;
            memory.read(0, &mut file)?;
            Ok(io::stdout().write_all(&file)?)
        }
        _ => Err("serve, put, or get: see the head of examples/bulk.rs".into()),
    }
}

fn memory(bytes: usize, interface: &str) -> Any<Arc<Memory>> {
    let dmabuf = DmaBuf::udmabuf(bytes.max(1).next_multiple_of(PAGE))?;
    Ok(Memory::bound(&dmabuf, if_nametoindex(interface)?)?)
}

fn serve(
    address: &str,
    control: &str,
    lanes: &str,
    bytes: &str,
    interface: &str,
    queue: Option<&str>,
) -> Any<()> {
    let address: IpAddr = address.parse()?;
    let memory = memory(bytes.parse()?, interface)?;
    let registry = Registry::new()?;
    let key = registry.register(&memory, 0, memory.size(), Rights::ReadWrite, None)?;
    let hex: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let landing = match queue {
        None => None,
        Some(queue) => {
            let dmabuf = DmaBuf::udmabuf(LANDING)?;
            let request = BindRx::new(if_nametoindex(interface)?).queue(queue.parse()?);
            Some(Landing::new(request.bind(&dmabuf)?, &dmabuf)?)
        }
    };
    let mut acceptor = Acceptor::new(
        TcpListener::bind((address, control.parse()?))?,
        TcpListener::bind((address, lanes.parse()?))?,
    );
    println!("{hex}");
    loop {
        let options = Options::new(registry.clone());
        let options = match &landing {
            Some(landing) => options.landing(Arc::clone(landing), LANES),
            None => options,
        };
        // One after the other, as all of the landing is one's.
        match acceptor.accept(options, PATIENCE) {
            Ok(mut endpoint) => eprintln!("{:?}", endpoint.serve(drop)?),
            Err(err) => eprintln!("somebody else: {err}"),
        }
    }
}

fn connected(address: &str, control: &str, lanes: &str) -> Any<Endpoint> {
    let address: IpAddr = address.parse()?;
    let (control, lanes) = (
        (address, control.parse()?).into(),
        (address, lanes.parse()?).into(),
    );
    let options = Options::new(Registry::new()?);
    Ok(connect(control, lanes, LANES, options, PATIENCE)?)
}

fn parsed(key: &str) -> Any<Key> {
    let number = u128::from_str_radix(key, 16)?;
    Ok(Key(number.to_be_bytes()))
}

/// Waits for the one request that there is, and says good-bye.
fn finish(mut endpoint: Endpoint, _request: u64) -> Any<()> {
    endpoint.flush(drop)?.map_err(|why| format!("{why:?}"))?;
    endpoint.close();
    while endpoint.wait(None)?.is_some() {}
    Ok(())
}
