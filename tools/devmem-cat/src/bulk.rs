// SPDX-License-Identifier: GPL-2.0

//! Memory that others put to, and get from, and those who do.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::BindRx;
use devmem::DmaBuf;
use devmem_bulk::Acceptor;
use devmem_bulk::End;
use devmem_bulk::Endpoint;
use devmem_bulk::Event;
use devmem_bulk::Key;
use devmem_bulk::Landing;
use devmem_bulk::Memory;
use devmem_bulk::Options;
use devmem_bulk::Refused;
use devmem_bulk::Registry;
use devmem_bulk::Rights;
use devmem_bulk::connect::connect;
use devmem_bulk::protocol::wire::MAX_LANES;
use nix::net::if_::if_nametoindex;

use crate::args::GetArgs;
use crate::args::PeerArgs;
use crate::args::PutArgs;
use crate::args::ServeArgs;
use crate::error::Fallible;
use crate::error::bind_error;
use crate::error::context;
use crate::memory;
use crate::tell;
use crate::undo;

/// How long a peer may take to connect, and do nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to hear that the peer has no requests of its own.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long to wait after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(200);
const MIB: u64 = 1 << 20;

/// Serves one peer after the other, as all of the landing is one's.
pub fn serve(args: &ServeArgs) -> Fallible<()> {
    let to = first_of(&args.listen)?;
    let lanes = next_port(to)?;
    let memory = bound(
        memory::udmabuf(u64::from(args.memory) * MIB),
        &args.interface,
    )?;
    let listen =
        |to: SocketAddr| TcpListener::bind(to).map_err(context(format!("listening on {to}")));
    let (control, data) = (listen(to)?, listen(lanes)?);
    let landing = match args.queue {
        None => None,
        Some(queue) => Some(land(args, queue, to, lanes)?),
    };
    let registry = Registry::new()?;
    let key = registry.register(&memory, 0, memory.size(), Rights::ReadWrite, None)?;
    let mut acceptor = Acceptor::new(control, data);
    println!("{}", key.to_hex());
    tell::say(format_args!("serving at {to}, and at {lanes} for data"));
    loop {
        let options = Options::new(registry.clone());
        let options = match &landing {
            Some(landing) => options.landing(Arc::clone(landing), MAX_LANES),
            None => options,
        };
        match acceptor.accept(options, PATIENCE) {
            Ok(endpoint) => serve_one(endpoint),
            Err(err) => {
                tell::say(format_args!(
                    "a connection was not taken: {err}{}",
                    hint(&err)
                ));
                thread::sleep(PAUSE);
            }
        }
    }
}

/// What to do about an end that could not be taken.
fn hint(err: &io::Error) -> &'static str {
    match err.raw_os_error() {
        Some(nix::libc::EFAULT) => {
            ". What it says has landed in the memory of a queue: keep its flow off that, by --steer or RSS"
        }
        _ => "",
    }
}

/// Serves a peer while it puts and gets something. It has to be one that has the key.
fn serve_one(mut endpoint: Endpoint) {
    let peer = endpoint.peer_addr();
    let peer = peer.map_or_else(|err| err.to_string(), |peer| peer.to_string());
    match until_idle(&mut endpoint) {
        Ok(Some(End::Orderly)) => (),
        Ok(Some(end)) => tell::say(format_args!("{peer}: the connection has ended: {end}")),
        Ok(None) => tell::say(format_args!(
            "{peer}: nothing was put or got for {} s: others have their turn",
            PATIENCE.as_secs()
        )),
        Err(err) => tell::say(format_args!("{peer}: {err}")),
    }
}

/// How the connection ended, if it did before there was nothing to do for so long.
fn until_idle(endpoint: &mut Endpoint) -> io::Result<Option<End>> {
    let mut moved = endpoint.moved();
    let mut since = Instant::now();
    loop {
        match endpoint.wait(Some(PATIENCE.saturating_sub(since.elapsed())))? {
            Some(Event::Closing) => endpoint.close(),
            Some(_) => (),
            None if endpoint.end().is_some() => return Ok(endpoint.end()),
            None => (),
        }
        if endpoint.moved() > moved {
            moved = endpoint.moved();
            since = Instant::now();
        } else if since.elapsed() >= PATIENCE {
            return Ok(None);
        }
    }
}

/// What data land in, by this queue.
fn land(
    args: &ServeArgs,
    queue: u32,
    control: SocketAddr,
    lanes: SocketAddr,
) -> Fallible<Arc<Landing>> {
    let memory = memory::udmabuf(u64::from(args.landing) * MIB).map_err(context("--landing"))?;
    let request = BindRx::new(undo::prepare(&args.interface)?).queue(queue);
    let id = undo::bind(|| {
        request
            .bind(&memory)
            .map_err(|err| bind_error("binding a queue of", &args.interface, &err).into())
    })?;
    if args.steer {
        undo::steer(lanes, queue)?;
        // Else RSS may bring it there as well, where nobody can read it.
        undo::steer(control, u32::from(queue == 0))?;
    }
    Ok(Landing::of(id, &memory)?)
}

/// Puts a file, all of which is read first.
pub fn put(args: &PutArgs) -> Fallible<()> {
    let mut file = Vec::new();
    match &args.input {
        Some(path) => File::open(path)
            .and_then(|mut input| input.read_to_end(&mut file))
            .map_err(context(path.display().to_string()))?,
        None => io::stdin().lock().read_to_end(&mut file)?,
    };
    let len = file.len() as u64;
    let memory = bound(memory::udmabuf(len), &args.peer.interface)?;
    memory.write(0, &file)?;
    transfer(&args.peer, |endpoint, key| {
        endpoint.put(&memory, 0, len, key, args.peer.offset)
    })
}

/// Gets a file, which is written when all of it is there.
pub fn get(args: &GetArgs) -> Fallible<()> {
    let memory = bound(memory::udmabuf(args.size), &args.peer.interface)?;
    transfer(&args.peer, |endpoint, key| {
        endpoint.get(&memory, 0, args.size, key, args.peer.offset)
    })?;
    let mut file = vec![0; usize::try_from(args.size)?];
    memory.read(0, &mut file)?;
    match &args.output {
        Some(path) => fs::write(path, &file).map_err(context(path.display().to_string())),
        None => Ok(io::stdout().lock().write_all(&file)?),
    }
}

/// A memory that is sent from by this interface.
fn bound(memory: Result<DmaBuf, String>, interface: &str) -> Fallible<Arc<Memory>> {
    let ifindex = if_nametoindex(interface).map_err(context(interface))?;
    Ok(Memory::bound(&memory?, ifindex)?)
}

/// Makes one request, and waits for it.
fn transfer(
    peer: &PeerArgs,
    ask: impl FnOnce(&mut Endpoint, Key) -> Result<u64, Refused>,
) -> Fallible<()> {
    let key = fs::read_to_string(&peer.key)
        .map_err(context(peer.key.display().to_string()))
        .and_then(|text| text.trim().parse().map_err(context("--key")))?;
    let control = first_of(&peer.connect)?;
    let options = Options::new(Registry::new()?);
    let lanes = next_port(control)?;
    let mut endpoint = connect(control, lanes, peer.connections, options, PATIENCE)
        .map_err(context(format!("connecting to {control}")))?;
    ask(&mut endpoint, key).map_err(|why| format!("the request was not made: {why}"))?;
    endpoint
        .flush(drop)?
        .map_err(|why| format!("the request has failed: {why}"))?;
    endpoint.close();
    // It is done, whatever the peer says.
    while endpoint.wait(Some(GOODBYE))?.is_some() {}
    Ok(())
}

fn first_of(name: &str) -> Fallible<SocketAddr> {
    let mut all = name.to_socket_addrs().map_err(context(name))?;
    all.next()
        .ok_or_else(|| format!("{name}: no address").into())
}

/// Where data go if control goes there.
fn next_port(control: SocketAddr) -> Fallible<SocketAddr> {
    let port = control.port().checked_add(1).ok_or("no port after that")?;
    let ip: IpAddr = control.ip();
    Ok(match control {
        SocketAddr::V4(_) => (ip, port).into(),
        SocketAddr::V6(mut scoped) => {
            scoped.set_port(port);
            scoped.into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_go_to_the_next_port() {
        let next = |text: &str| next_port(text.parse().unwrap()).map(|to| to.to_string());
        assert_eq!(next("192.0.2.1:5201").unwrap(), "192.0.2.1:5202");
        assert_eq!(next("[fe80::1%3]:5201").unwrap(), "[fe80::1%3]:5202");
        next("192.0.2.1:65535").unwrap_err();
    }
}
