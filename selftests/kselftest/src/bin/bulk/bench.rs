// SPDX-License-Identifier: GPL-2.0

//! Two ends, one in each namespace of a pair.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use devmem::DmaBuf;
use devmem_bulk::End;
use devmem_bulk::Endpoint;
use devmem_bulk::Event;
use devmem_bulk::HostCopy;
use devmem_bulk::Key;
use devmem_bulk::Landing;
use devmem_bulk::Memory;
use devmem_bulk::Options;
use devmem_bulk::Place;
use devmem_bulk::Registry;
use devmem_bulk::Rights;
use devmem_bulk::place::Job;
use devmem_bulk::protocol::wire::NOTE;
use devmem_testlib::Pair;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::report::Stop;
use devmem_testlib::syscalls;
use devmem_testlib::syscalls::Section;
use devmem_testlib::wait;

use crate::Discard;
use crate::LONG;

/// Of either end.
pub const MEMORY: u64 = 4 << 20;
const LANDING: usize = 8 << 20;
const QUEUE: u32 = 1;
/// Ports of the control connection and of lanes.
pub const CONTROL: u16 = 5001;
pub const LANES: u16 = 5002;

/// Sockets of two ends.
pub struct Sockets {
    pub control: Connection,
    pub lanes: Vec<Connection>,
}

impl Sockets {
    /// So many lanes, which are steered to the bound queue at the receiving end.
    pub fn new(pair: &Pair, lanes: u16) -> io::Result<Self> {
        let control = pair.connect(&pair.listen(Ip::V4, CONTROL)?)?;
        // In the place of the rules that are there: a device has room for some.
        pair.steer_nth(0, LANES, QUEUE)?;
        let listener = pair.listen(Ip::V4, LANES)?;
        let lanes = (0..lanes)
            .map(|_| pair.connect(&listener))
            .collect::<io::Result<_>>()?;
        Ok(Self { control, lanes })
    }

    /// Those of the receiving end, and those of the other.
    pub fn split(self) -> (Vec<TcpStream>, Vec<TcpStream>) {
        std::iter::once(self.control)
            .chain(self.lanes)
            .map(|connection| (connection.rx, connection.tx))
            .unzip()
    }
}

/// An end of these sockets, the first of which is the control connection.
pub fn endpoint(mut sockets: Vec<TcpStream>, options: Options) -> io::Result<Endpoint> {
    let control = sockets.remove(0);
    Endpoint::new(control, sockets, options)
}

/// What the receiving end lands in.
pub fn landing(pair: &Pair) -> Result<Arc<Landing>, Stop> {
    let memory = DmaBuf::udmabuf(LANDING)?;
    Ok(Landing::new(pair.bind(&[QUEUE], &memory)?, &memory)?)
}

/// Memory at either end.
pub fn memories(pair: &Pair) -> io::Result<[Arc<Memory>; 2]> {
    let memory = || DmaBuf::udmabuf(MEMORY as usize);
    let (here, there) = (memory()?, memory()?);
    Ok([
        pair.tx.ns.run(|| Memory::bound(&here, pair.tx.ifindex))?,
        pair.rx.ns.run(|| Memory::bound(&there, pair.rx.ifindex))?,
    ])
}

/// Why a request was not made, as an error.
pub fn failed(why: impl std::fmt::Debug) -> io::Error {
    io::Error::other(format!("{why:?}"))
}

/// Waits until all that was asked for is done.
pub fn flush(client: &mut Endpoint) -> io::Result<io::Result<()>> {
    Ok(client.flush(drop)?.map_err(failed))
}

/// The CPU copies, and it is counted where it all landed.
struct Counted {
    copy: HostCopy,
    device: Arc<AtomicU64>,
    host: Arc<AtomicU64>,
}

impl Place for Counted {
    fn place(&mut self, jobs: &mut [Job]) {
        for landed in jobs.iter().filter_map(|job| job.landed.as_ref()) {
            let count = match landed.device() {
                Some(_) => &self.device,
                None => &self.host,
            };
            count.fetch_add(landed.len(), Ordering::Relaxed);
        }
        self.copy.place(jobs);
    }
}

/// A client, and a server that serves it in another thread. The client's lanes land in the server's device memory.
pub struct Bench {
    pub client: Endpoint,
    pub memory: Arc<Memory>,
    pub server_memory: Arc<Memory>,
    pub registry: Registry,
    pub key: Key,
    notes: mpsc::Receiver<([u8; NOTE], u8)>,
    server: Option<JoinHandle<io::Result<End>>>,
    device: Arc<AtomicU64>,
    host: Arc<AtomicU64>,
    /// The devices, unless another process has them.
    pair: Option<Pair>,
}

impl Bench {
    pub fn new(lanes: u16) -> Result<Self, Stop> {
        let pair = Pair::new()?;
        let landing = landing(&pair)?;
        let (server, client) = Sockets::new(&pair, lanes)?.split();
        let [memory, server_memory] = memories(&pair)?;
        let registry = Registry::new()?;
        let key = registry.register(&server_memory, 0, MEMORY, Rights::ReadWrite, None)?;
        let options = Options::new(registry.clone()).landing(landing, lanes);
        let (device, host) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let mut server = endpoint(server, options)?.place_by(Counted {
            copy: HostCopy::new(),
            device: Arc::clone(&device),
            host: Arc::clone(&host),
        });
        let (to, notes) = mpsc::channel();
        let seen = Arc::clone(&server_memory);
        let server = thread::spawn(move || {
            server.serve(|event| {
                if let Event::Note(note) = event {
                    // The last byte of what was put before.
                    let mut last = [0];
                    let read = seen.read((1 << 20) - 1, &mut last);
                    read.expect("a byte of its own memory");
                    // Nobody may want to know.
                    let _ = to.send((note, last[0]));
                }
            })
        });
        let mut client = endpoint(client, Options::new(Registry::new()?))?;
        client.wait_open(wait::patience(LONG))?;
        Ok(Self {
            client,
            memory,
            server_memory,
            registry,
            key,
            notes,
            server: Some(server),
            device,
            host,
            pair: Some(pair),
        })
    }

    pub fn pair(&self) -> &Pair {
        self.pair.as_ref().expect("devices of this process")
    }

    pub fn put(&mut self, from: u64, len: u64, to: u64) -> io::Result<u64> {
        let (memory, key) = (&self.memory, self.key);
        self.client.put(memory, from, len, key, to).map_err(failed)
    }

    pub fn get(&mut self, to: u64, len: u64, from: u64) -> io::Result<u64> {
        let (memory, key) = (&self.memory, self.key);
        self.client.get(memory, to, len, key, from).map_err(failed)
    }

    /// The next note that the server has got, and the last byte of the first MiB of its memory then.
    pub fn next_note(&self) -> io::Result<([u8; NOTE], u8)> {
        let patience: Duration = wait::patience(LONG);
        self.notes.recv_timeout(patience).map_err(io::Error::other)
    }

    /// Ends it, which has to go well; tells how many bytes have landed in the server's device memory, and beside it.
    pub fn close(mut self) -> io::Result<(u64, u64)> {
        self.client.close();
        while self.client.wait(Some(wait::patience(LONG)))?.is_some() {}
        assert_eq!(self.client.end(), Some(End::Orderly));
        let server = self.server.take().expect("a server");
        assert_eq!(server.join().expect("the server's thread")?, End::Orderly);
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok((count(&self.device), count(&self.host)))
    }

    /// Runs `f` with a client in a process of its own, and counts the system calls of its section. With `land` it is the
    /// client that has device memory, which it does not copy.
    pub fn traced(
        land: bool,
        f: impl FnOnce(&mut Self, &Section) -> io::Result<()>,
    ) -> Result<BTreeMap<u64, usize>, Stop> {
        const TWO: u16 = 2;
        let pair = Pair::new()?;
        let landing = landing(&pair)?;
        let (landing_end, other_end) = Sockets::new(&pair, TWO)?.split();
        let [other_memory, landing_memory] = memories(&pair)?;
        let (mut client, mut server) = match land {
            true => (landing_end, other_end),
            false => (other_end, landing_end),
        };
        let (memory, server_memory) = match land {
            true => (landing_memory, other_memory),
            false => (other_memory, landing_memory),
        };
        let registry = Registry::new()?;
        let key = registry.register(&server_memory, 0, MEMORY, Rights::ReadWrite, None)?;
        let options = |with: bool, registry: Registry| match with {
            true => Options::new(registry).landing(Arc::clone(&landing), TWO),
            false => Options::new(registry),
        };
        let server_options = options(!land, registry.clone());
        let client_options = options(land, Registry::new()?);
        let mut server = endpoint(std::mem::take(&mut server), server_options)?;
        let server = thread::spawn(move || server.serve(drop));
        let calls = syscalls::system_calls_of(|section| {
            let client = endpoint(std::mem::take(&mut client), client_options)?;
            let mut bench = Self {
                client: client.place_by(Discard),
                memory,
                server_memory,
                registry,
                key,
                notes: mpsc::channel().1,
                server: None,
                device: Arc::default(),
                host: Arc::default(),
                pair: None,
            };
            bench.client.wait_open(wait::patience(LONG))?;
            f(&mut bench, section)?;
            bench.client.close();
            while bench.client.wait(Some(wait::patience(LONG)))?.is_some() {}
            Ok(())
        })?;
        drop(client);
        assert_eq!(server.join().expect("the server's thread")?, End::Orderly);
        Ok(calls)
    }
}
