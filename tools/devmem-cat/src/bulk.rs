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

use devmem::BindRx;
use devmem::DmaBuf;
use devmem_bulk::Acceptor;
use devmem_bulk::End;
use devmem_bulk::Endpoint;
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
use crate::tell;
use crate::undo;

/// How long a peer may take to connect.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(200);
const PAGE: u64 = 4096;
const MIB: usize = 1 << 20;

/// Serves one peer after the other, as all of the landing is one's.
pub fn serve(args: &ServeArgs) -> Fallible<()> {
    let to = first_of(&args.listen)?;
    let lanes = next_port(to)?;
    let memory = DmaBuf::udmabuf(args.memory as usize * MIB).map_err(context("--memory"))?;
    let memory = Memory::bound(&memory, if_nametoindex(args.interface.as_str())?)?;
    let listen =
        |to: SocketAddr| TcpListener::bind(to).map_err(context(format!("listening on {to}")));
    let (control, data) = (listen(to)?, listen(lanes)?);
    let landing = match args.queue {
        None => None,
        Some(queue) => Some(land(args, queue, lanes)?),
    };
    let registry = Registry::new()?;
    let key = registry.register(&memory, 0, memory.size(), Rights::ReadWrite, None)?;
    let mut acceptor = Acceptor::new(control, data);
    println!("{}", hex(key));
    tell::say(format_args!("serving at {to}, and at {lanes} for data"));
    loop {
        let options = Options::new(registry.clone());
        let options = match &landing {
            Some(landing) => options.landing(Arc::clone(landing), MAX_LANES),
            None => options,
        };
        let served = acceptor.accept(options, PATIENCE);
        match served.and_then(|mut endpoint| endpoint.serve(drop)) {
            Ok(End::Orderly) => (),
            Ok(end) => tell::say(format_args!("a connection has ended: {end:?}")),
            Err(err) => {
                tell::say(err);
                thread::sleep(PAUSE);
            }
        }
    }
}

/// What data land in, by this queue.
fn land(args: &ServeArgs, queue: u32, lanes: SocketAddr) -> Fallible<Arc<Landing>> {
    let memory = DmaBuf::udmabuf(args.landing as usize * MIB).map_err(context("--landing"))?;
    let request = BindRx::new(undo::prepare(&args.interface)?).queue(queue);
    let id = undo::bind(|| {
        request
            .bind(&memory)
            .map_err(|err| bind_error("binding a queue of", &args.interface, &err).into())
    })?;
    if args.steer {
        undo::steer(lanes, queue)?;
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
    let memory = memory_of(&args.peer, len)?;
    memory.write(0, &file)?;
    transfer(&args.peer, |endpoint, key| {
        endpoint.put(&memory, 0, len, key, args.peer.offset)
    })
}

/// Gets a file, which is written when all of it is there.
pub fn get(args: &GetArgs) -> Fallible<()> {
    let memory = memory_of(&args.peer, args.size)?;
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

/// A dma-buf for so many bytes.
fn memory_of(peer: &PeerArgs, bytes: u64) -> Fallible<Arc<Memory>> {
    let size = bytes
        .max(1)
        .checked_next_multiple_of(PAGE)
        .ok_or("--size: too much")?;
    let memory = DmaBuf::udmabuf(usize::try_from(size)?)
        .map_err(context(format!("a dma-buf of {size} bytes")))?;
    Ok(Memory::bound(
        &memory,
        if_nametoindex(peer.interface.as_str())?,
    )?)
}

/// Makes one request, and waits for it.
fn transfer(
    peer: &PeerArgs,
    ask: impl FnOnce(&mut Endpoint, Key) -> Result<u64, Refused>,
) -> Fallible<()> {
    let key = fs::read_to_string(&peer.key)
        .map_err(context(peer.key.display().to_string()))
        .and_then(|text| parse(&text).ok_or_else(|| "--key: 32 digits in hex".into()))?;
    let control = first_of(&peer.connect)?;
    let options = Options::new(Registry::new()?);
    let lanes = next_port(control)?;
    let mut endpoint = connect(control, lanes, peer.connections, options, PATIENCE)
        .map_err(context(format!("connecting to {control}")))?;
    ask(&mut endpoint, key).map_err(|why| format!("the request was not made: {why:?}"))?;
    endpoint
        .flush(drop)?
        .map_err(|why| format!("the request has failed: {why:?}"))?;
    endpoint.close();
    while endpoint.wait(None)?.is_some() {}
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

fn hex(key: Key) -> String {
    key.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(text: &str) -> Option<Key> {
    let text = text.trim();
    let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = u128::from_str_radix(text, 16).ok().filter(|_| digits)?;
    Some(Key(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_told() {
        let key = Key([
            0, 17, 34, 51, 68, 85, 102, 119, 136, 153, 170, 187, 204, 221, 238, 255,
        ]);
        let text = hex(key);
        assert_eq!(text, "00112233445566778899aabbccddeeff");
        assert_eq!(parse(&format!("{text}\n")), Some(key));
        for bad in [
            "",
            "0",
            &text[1..],
            &format!("{text}0"),
            &format!("+{}", &text[1..]),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn data_go_to_the_next_port() {
        let next = |text: &str| next_port(text.parse().unwrap()).map(|to| to.to_string());
        assert_eq!(next("192.0.2.1:5201").unwrap(), "192.0.2.1:5202");
        assert_eq!(next("[fe80::1%3]:5201").unwrap(), "[fe80::1%3]:5202");
        next("192.0.2.1:65535").unwrap_err();
    }
}
