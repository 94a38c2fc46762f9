// SPDX-License-Identifier: GPL-2.0

//! The sample of a provider, `samples/host_provider/`: what it receives is the kernel's own memory, of which
//! readers get a copy.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::Error;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::child::Child;
use devmem_testlib::machine;
use devmem_testlib::modules;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::Area;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::ETOOSMALL;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::report::Stop;
use devmem_testlib::report::diag;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::delete_module;

const NAME: &str = "host_provider";
const MEMORY: usize = 1 << 20;
const PAGE: u64 = 4096;
const PORT: u16 = 5001;

/// Bytes to move: as many as are in 64 MiB, or less where each is watched.
fn plenty() -> u64 {
    if machine::is_slow() {
        8 << 20
    } else {
        64 << 20
    }
}

fn insmod(parameters: &CStr) -> io::Result<()> {
    modules::insert(modules::SAMPLE, parameters)
}

fn rmmod() -> nix::Result<()> {
    delete_module(c"host_provider", DeleteModuleFlags::O_NONBLOCK)
}

/// The sample, loaded until this is dropped. New bindings are its own.
struct Sample;

impl Sample {
    fn load(parameters: &CStr) -> io::Result<Self> {
        insmod(parameters)?;
        let sample = Self;
        assert_eq!(devmem::provider::serving()?, NAME);
        Ok(sample)
    }

    /// Unloads it as soon as nothing uses it, and sees that it is gone.
    #[track_caller]
    fn unload(self) -> io::Result<()> {
        unload_when_unused()?;
        assert_eq!(rmmod(), Err(Errno::ENOENT));
        assert_eq!(devmem::provider::serving()?, Provider::Module.name());
        Ok(())
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        if let Err(err) = unload_when_unused() {
            diag(format_args!("unloading the sample: {err}"));
        }
    }
}

/// Does nothing if it is not loaded.
fn unload_when_unused() -> io::Result<()> {
    let waited = wait::up_to(Duration::from_secs(5), || match rmmod() {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(err) => Err(err.into()),
    })?;
    match waited.came {
        true => Ok(()),
        false => Err(io::Error::other("the sample is still in use")),
    }
}

/// What a request has to name, and the sample does not look at.
fn anything() -> io::Result<File> {
    File::open("/dev/null")
}

/// Binds queues to memory of the provider that serves.
fn bind(pair: &Pair, queues: &[u32]) -> Result<Binding, Error> {
    let file = anything().map_err(Error::Io)?;
    pair.rx
        .ns
        .run(|| Ok(pair.request(queues).bind(&file)))
        .map_err(Error::Io)?
}

/// Checks whose binding it is, and of how many buffers.
#[track_caller]
fn is_of(binding: &Binding, name: &str, buffers: u64) -> io::Result<()> {
    let info = binding.stats()?;
    assert_eq!(
        (info.provider.as_str(), info.direction.as_str()),
        (name, "rx")
    );
    assert_eq!((info.buffer_size, info.buffers), (PAGE, buffers));
    Ok(())
}

/// Receives the stream up to a position while it is sent, all of it as copies.
#[track_caller]
fn receive(connection: &Connection, end: u64) -> io::Result<()> {
    thread::scope(|scope| {
        let sender = traffic::send_in(scope, &connection.tx, 0, end, 1 << 18);
        let mut reader = Reader::of_nothing(&connection.rx);
        reader.read_until(end)?;
        sender.join().expect("the sender")?;
        assert_eq!((reader.copied, reader.frags), (end, 0));
        Ok(())
    })
}

/// The payload is where nobody but the provider can read it.
#[track_caller]
fn is_unreadable(socket: &TcpStream) {
    Probe::new(socket, &[])
        .call(&Call::ordinary(1))
        .assert_fails(libc::EFAULT);
}

/// Bytes that wait to be read from a connection into the sample's memory.
struct Waiting {
    connection: Connection,
    binding: Binding,
    pair: Pair,
    // It can be unloaded when the others are gone.
    sample: Sample,
}

impl Waiting {
    /// So many, sent by one call.
    fn new(bytes: u64) -> Result<Self, Stop> {
        let sample = Sample::load(c"")?;
        let pair = Pair::new()?;
        let binding = bind(&pair, &[1])?;
        let connection = pair.connect_to_queue(Ip::V4, PORT, 1)?;
        traffic::send(&connection.tx, 0, bytes, bytes as usize)?;
        wait_received(&connection.rx, bytes);
        Ok(Self {
            connection,
            binding,
            pair,
            sample,
        })
    }
}

/// Unbinds. Then the memory comes back, and nothing uses the sample.
#[track_caller]
fn unbind_and_unload(binding: Binding, sample: Sample) -> Outcome {
    let id = binding.id();
    drop(binding);
    provider::all_buffers_back(id);
    Ok(sample.unload()?)
}

fn one_queue() -> Outcome {
    let sample = Sample::load(c"")?;
    let pair = Pair::new()?;
    let binding = bind(&pair, &[1])?;
    is_of(&binding, NAME, 4096)?;

    let connection = pair.connect_to_queue(Ip::V4, PORT, 1)?;
    receive(&connection, plenty())?;
    drop(connection);
    unbind_and_unload(binding, sample)
}

fn several_queues() -> Outcome {
    const QUEUES: [u32; 4] = [1, 2, 5, 7];
    let sample = Sample::load(c"")?;
    let pair = Pair::new()?;
    let binding = bind(&pair, &QUEUES)?;
    let connections = QUEUES
        .iter()
        .map(|&queue| pair.connect_to_queue(Ip::V6, PORT + queue as u16, queue))
        .collect::<io::Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let receivers: Vec<_> = connections
            .iter()
            .map(|connection| scope.spawn(|| receive(connection, plenty() / 4)))
            .collect();
        receivers
            .into_iter()
            .try_for_each(|receiver| receiver.join().expect("a receiver"))
    })?;
    drop(connections);
    unbind_and_unload(binding, sample)
}

/// In pieces of any size, from any offset into a packet, twice what is only peeked at.
fn in_pieces() -> Outcome {
    let waiting = Waiting::new(30_000)?;
    let socket = &waiting.connection.rx;
    is_unreadable(socket);
    let mut probe = Probe::new(socket, &[]);
    let peeked = probe.receive(&Call::new(5_000).flags(libc::MSG_PEEK));
    assert_eq!(peeked.frags().count(), 0);
    for len in [1, 100, 5_000, 4_095, 4_096, 4_097, 1_447] {
        let got = probe.receive(&Call::new(len));
        assert_eq!(got.frags().count(), 0, "{got:?}");
        assert!(!got.sizes().is_empty(), "{got:?}");
    }
    while probe.position < 30_000 {
        assert!(!probe.receive(&Call::new(65_536)).is_empty());
    }
    assert_eq!(probe.held(), []);
    Ok(())
}

/// What the reader has no room for it gets with the next call.
fn faults() -> Outcome {
    let waiting = Waiting::new(1_000)?;
    let mut probe = Probe::new(&waiting.connection.rx, &[]);
    let nowhere = Call::new(1_000).data(&[Area::faulty(0, 4_096)]);
    probe.call(&nowhere).assert_fails(libc::EFAULT);
    let untold = Call::new(1_000).control(Area::good(0));
    probe.call(&untold).assert_fails(ETOOSMALL);
    assert_eq!(probe.receive(&Call::new(1_000)).len(), 1_000);
    Ok(())
}

/// Unbound, the device is done with the memory, but those who have bytes in it are not.
fn unread_when_unbound() -> Outcome {
    const BYTES: u64 = 40_000;
    let Waiting {
        sample,
        pair: _pair,
        binding,
        connection,
    } = Waiting::new(BYTES)?;
    let id = binding.id();
    drop(binding);
    assert!(provider::binding(id)?.is_some(), "freed with bytes unread");
    assert_eq!(rmmod(), Err(Errno::EAGAIN), "rmmod with bytes unread");
    let mut reader = Reader::of_nothing(&connection.rx);
    reader.read_until(BYTES)?;
    drop(reader);
    drop(connection);
    provider::all_buffers_back(id);
    sample.unload()?;
    Ok(())
}

/// The same if the device goes.
fn unread_when_the_device_goes() -> Outcome {
    const BYTES: u64 = 40_000;
    let Waiting {
        sample,
        pair,
        binding,
        connection,
    } = Waiting::new(BYTES)?;
    let id = binding.id();
    // netdevsim waits for whoever has a buffer.
    thread::scope(|scope| {
        let deleted = scope.spawn(|| pair.rx.delete());
        wait::until("the device to go", Duration::from_secs(5), || {
            Ok(provider::binding(id)?.is_some_and(|info| info.ifname.is_none()))
        })?;
        let mut reader = Reader::of_nothing(&connection.rx);
        reader.read_until(BYTES)?;
        drop(reader);
        deleted.join().expect("the thread")
    })?;
    drop(connection);
    unbind_and_unload(binding, sample)
}

fn killed_reader() -> Outcome {
    let sample = Sample::load(c"")?;
    let pair = Pair::new()?;
    let mut child = Child::start(|talk| {
        let binding = bind(&pair, &[1]).map_err(io::Error::other)?;
        let connection = pair.connect_to_queue(Ip::V4, PORT, 1)?;
        traffic::send(&connection.tx, 0, 40_000, 20_000)?;
        wait_received(&connection.rx, 40_000);
        Probe::new(&connection.rx, &[]).receive(&Call::new(10_000));
        talk.tell(binding.id())?;
        talk.wait_for_the_end()
    })?;
    let id = child.talk().hear_number()?;
    assert!(provider::binding(id)?.is_some(), "the child's binding");
    drop(child);
    provider::all_buffers_back(id);
    sample.unload()?;
    Ok(())
}

fn loaded_while_bound() -> Outcome {
    let sample = Sample::load(c"")?;
    let pair = Pair::new()?;
    let binding = bind(&pair, &[1])?;
    let again = insmod(c"").expect_err("it is loaded");
    assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
    assert_eq!(rmmod(), Err(Errno::EAGAIN), "rmmod while bound");
    drop(binding);
    sample.unload()?;

    let sample = Sample::load(c"")?;
    drop(bind(&pair, &[1])?);
    sample.unload()?;
    Ok(())
}

/// Each of the two has bindings, and a connection packets of both. Tokens come back although the sample, which
/// was registered last, has nothing that takes them.
fn beside_the_module() -> Outcome {
    const SEGMENT: usize = 300;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let ours = pair.bind(&[1], &memory)?;
    let sample = Sample::load(c"")?;
    let theirs = bind(&pair, &[2])?;
    is_of(&ours, Provider::Module.name(), MEMORY as u64 / PAGE)?;
    is_of(&theirs, NAME, 4096)?;

    let connection = pair.connect_to_queue(Ip::V4, PORT, 1)?;
    let mut probe = Probe::new(&connection.rx, &[(ours.id(), &map)]);
    for (segment, queue) in [1, 2, 1, 2, 2, 1].into_iter().enumerate() {
        pair.steer_again(PORT, queue)?;
        let sent = segment * SEGMENT;
        traffic::send(&connection.tx, sent as u64, SEGMENT as u64, SEGMENT)?;
        wait_received(&connection.rx, (sent + SEGMENT) as u64);
        let got = probe.receive(&Call::new(SEGMENT));
        assert_eq!(got.frags().count(), usize::from(queue == 1), "{got:?}");
    }
    assert_eq!(probe.held().len(), 3);
    probe.give_back();

    // Both at once, and each keeps what is its own.
    let other = pair.connect_to_queue(Ip::V4, PORT + 1, 2)?;
    pair.steer_again(PORT, 1)?;
    let start = (6 * SEGMENT) as u64;
    thread::scope(|scope| {
        let copied = scope.spawn(|| receive(&other, plenty() / 4));
        let sender = traffic::send_in(scope, &connection.tx, start, 4 << 20, 1 << 16);
        let mut reader = Reader::new(&connection.rx, &map, ours.id());
        reader.position = start;
        reader.read_until(start + (4 << 20))?;
        reader.assert_all_device_memory();
        sender.join().expect("the sender")?;
        copied.join().expect("the receiver")
    })?;
    drop(other);
    drop(theirs);
    sample.unload()?;
    assert!(ours.stats()?.ifname.is_some(), "the module's binding");
    Ok(())
}

/// What it does not implement the kernel does.
fn nothing_to_send_from() -> Outcome {
    let _sample = Sample::load(c"")?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let request = BindTx::new(pair.tx.ifindex);
    let binding = pair.tx.ns.run(|| Ok(request.bind(&memory)))??;
    assert_eq!(binding.stats()?.provider, Provider::Builtin.name());
    Ok(())
}

fn bad_requests() -> Outcome {
    let sample = Sample::load(c"")?;
    let pair = Pair::new()?;
    let file = anything()?;
    let refused = |queues: &[u32], page_size: Option<u32>| {
        let request = pair.request(queues);
        let request = match page_size {
            Some(size) => request.rx_page_size(size),
            None => request,
        };
        let result = pair.rx.ns.run(|| Ok(request.bind(&file)));
        match result.expect("the namespace") {
            Err(Error::Refused { errno, .. }) => Errno::from_raw(errno),
            other => panic!("queues {queues:?}: {other:?}"),
        }
    };
    assert_eq!(refused(&[1], Some(8192)), Errno::EOPNOTSUPP);
    assert_eq!(refused(&[100], None), Errno::EOPNOTSUPP);
    assert_eq!(refused(&[1, 100], None), Errno::EINVAL);
    assert_eq!(refused(&[1, 1], None), Errno::EEXIST);
    drop(bind(&pair, &[1])?);
    sample.unload()?;

    for parameters in [c"size_mib=0", c"size_mib=2049"] {
        let sample = Sample::load(parameters)?;
        assert_eq!(refused(&[1], None), Errno::EINVAL, "{parameters:?}");
        sample.unload()?;
    }
    let _sample = Sample::load(c"size_mib=1")?;
    let binding = bind(&pair, &[1])?;
    is_of(&binding, NAME, 256)?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, 1)?;
    receive(&connection, 4 << 20)?;
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        one_queue,
        several_queues,
        in_pieces,
        faults,
        unread_when_unbound,
        unread_when_the_device_goes,
        killed_reader,
        loaded_while_bound,
        beside_the_module,
        nothing_to_send_from,
        bad_requests,
    ])
}
