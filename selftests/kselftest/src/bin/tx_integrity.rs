// SPDX-License-Identifier: GPL-2.0

//! What is sent from a dma-buf arrives, every byte of it; each send completes, once, and not too early.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::Filled;
use devmem::Frag;
use devmem::Piece;
use devmem::Receiver;
use devmem::Region;
use devmem::Sender;
use devmem::TxBinding;
use devmem::dmabuf::HUGE_PAGE;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;
use nix::fcntl::FcntlArg;
use nix::fcntl::OFlag;
use nix::fcntl::fcntl;
use nix::unistd::pipe2;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const MEMORY: u64 = 4 * MIB;
const PORT: u16 = 5001;
const QUEUE: u32 = 1;
/// Completions come when the peer has acknowledged, after a retransmission or two.
const COMPLETED: Duration = Duration::from_secs(30);

/// Numbers that look random, the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}

/// So many sends, each of up to `extents` parts anywhere in the memory.
fn anywhere(seed: u64, sends: usize, extents: u64, longest: u64) -> Vec<Vec<Extent>> {
    let mut numbers = Numbers(seed);
    (0..sends)
        .map(|_| {
            (0..=numbers.below(extents))
                .map(|_| {
                    // Short and long ones alike.
                    let longest = 1 + numbers.below(longest);
                    let len = 1 + numbers.below(longest);
                    extent(numbers.below(MEMORY - len + 1), len)
                })
                .collect()
        })
        .collect()
}

/// A pair, whose one end sends from memory.
struct Source {
    pair: Pair,
    memory: DmaBuf,
    binding: TxBinding,
}

impl Source {
    fn new() -> Result<Self, report::Stop> {
        Self::with(DmaBuf::udmabuf(MEMORY as usize)?)
    }

    fn with(memory: DmaBuf) -> Result<Self, report::Stop> {
        tx::fill(&memory)?;
        let pair = Pair::sending()?;
        let binding = pair.tx.bind_tx(&memory)?;
        Ok(Self {
            pair,
            memory,
            binding,
        })
    }

    fn connect(&self, ip: Ip) -> io::Result<Connection> {
        self.pair.connect(&self.pair.listen(ip, PORT)?)
    }

    /// Sends all of `sends` to a reader in ordinary memory.
    fn to_host(&self, ip: Ip, sends: &[Vec<Extent>]) -> Outcome {
        let connection = self.connect(ip)?;
        transfer(&connection, &[&self.binding], sends, |extents| {
            tx::expect(&connection.rx, extents)
        })
    }

    /// Sends all of `sends` to a reader in device memory.
    fn to_device(&self, ip: Ip, sends: &[Vec<Extent>]) -> Outcome {
        let memory = DmaBuf::udmabuf(MEMORY as usize)?;
        let map = memory.map()?;
        let binding = self.pair.bind(&[QUEUE], &memory)?;
        let connection = self.pair.connect_to_queue(ip, PORT, QUEUE)?;
        transfer(&connection, &[&self.binding], sends, |extents| {
            let mut receiver = Receiver::new(&connection.rx);
            let copied = tx::expect_in_device_memory(&mut receiver, &map, extents)?;
            assert_eq!(copied, 0, "bytes in host memory");
            Ok(())
        })?;
        drop(binding);
        Ok(())
    }

    /// Both.
    fn everywhere(&self, ip: Ip, sends: &[Vec<Extent>]) -> Outcome {
        self.to_host(ip, sends)?;
        self.to_device(ip, sends)
    }
}

/// Sends by the bindings in turn while `receive` reads; checks that each send completes as it should.
fn transfer(
    connection: &Connection,
    bindings: &[&TxBinding],
    sends: &[Vec<Extent>],
    receive: impl FnOnce(&[Extent]) -> io::Result<()>,
) -> Outcome {
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_all(connection, bindings, sends));
        receive(&sends.concat())?;
        sender.join().expect("the sender's thread")?;
        connection.tx.shutdown(std::net::Shutdown::Write)?;
        tx::expect_end(&connection.rx)?;
        Ok(())
    })
}

fn send_all(
    connection: &Connection,
    bindings: &[&TxBinding],
    sends: &[Vec<Extent>],
) -> io::Result<()> {
    let mut sender = Sender::new(&connection.tx)?;
    for (extents, binding) in sends.iter().zip(bindings.iter().cycle()) {
        sender.send(binding, extents.clone())?;
    }
    // The sender notices what completes twice, or without having been sent.
    let mut done = Vec::new();
    while let Some(sent) = sender.wait_timeout(wait::patience(COMPLETED))? {
        assert_eq!(sent.bytes, tx::total(&sent.source));
        assert!(!sent.copied, "the kernel copied device memory");
        done.push(sent.source);
    }
    assert_eq!(done.len(), sends.len(), "sends that completed");
    // They may complete out of order.
    let mut expected = sends.to_vec();
    for list in [&mut done, &mut expected] {
        list.sort_unstable_by_key(|extents| extents.iter().map(|e| (e.offset, e.len)).min());
    }
    assert_eq!(done, expected);
    Ok(())
}

fn single_pages() -> Outcome {
    Source::new()?.everywhere(Ip::V4, &anywhere(1, 60, 5, 60_000))
}

fn huge_pages() -> Outcome {
    provider::huge_pages(MEMORY as usize / HUGE_PAGE)?;
    let memory = DmaBuf::udmabuf_huge(MEMORY as usize)?;
    Source::with(memory)?.everywhere(Ip::V4, &anywhere(2, 60, 5, 60_000))
}

fn system_heap() -> Outcome {
    let memory = DmaBuf::system_heap(MEMORY as usize)?;
    Source::with(memory)?.everywhere(Ip::V4, &anywhere(3, 60, 5, 60_000))
}

fn one_page() -> Outcome {
    let memory = DmaBuf::udmabuf(PAGE as usize)?;
    let sends = [
        vec![extent(0, PAGE)],
        vec![extent(0, 1), extent(PAGE - 1, 1)],
        vec![extent(0, PAGE); 40],
    ];
    Source::with(memory)?.everywhere(Ip::V4, &sends)
}

fn sizes() -> Outcome {
    let bench = Source::new()?;
    let mut sends = Vec::new();
    for len in [
        1,
        2,
        63,
        64,
        1447,
        1448,
        1449,
        PAGE - 1,
        PAGE,
        PAGE + 1,
        65_535,
        65_536,
        65_537,
    ] {
        for offset in [0, 1, PAGE - 1] {
            sends.push(vec![extent(offset, len)]);
        }
    }
    sends.push(vec![extent(0, MEMORY)]);
    sends.push(vec![extent(1, MEMORY - 1), extent(0, 1), extent(0, MEMORY)]);
    bench.everywhere(Ip::V4, &sends)
}

fn many_iovecs() -> Outcome {
    let bench = Source::new()?;
    let mut sends = anywhere(4, 6, 1500, 3000);
    // More than the kernel takes with one call.
    sends.push((0..3000).map(|i| extent(i * 1001, 1 + i % 50)).collect());
    bench.everywhere(Ip::V4, &sends)
}

fn ipv6() -> Outcome {
    Source::new()?.everywhere(Ip::V6, &anywhere(5, 60, 5, 60_000))
}

/// Packets of three sizes, cut by the device and before it.
fn mtu_and_offload() -> Outcome {
    let bench = Source::new()?;
    for (mtu, offload) in [
        (1500, false),
        (4096, true),
        (4096, false),
        (9000, true),
        (9000, false),
    ] {
        bench.pair.set_mtu(mtu)?;
        bench.pair.tx.set_offload(offload)?;
        for ip in [Ip::V4, Ip::V6] {
            bench.everywhere(ip, &anywhere(mtu.into(), 20, 5, 30_000))?;
        }
    }
    Ok(())
}

fn through_queueing(discipline: &str, sends: &[Vec<Extent>]) -> Outcome {
    let bench = Source::new()?;
    bench.pair.tx.queueing(discipline)?;
    bench.everywhere(Ip::V4, sends)
}

fn lost_packets() -> Outcome {
    through_queueing("netem loss 4%", &anywhere(6, 100, 3, 20_000))
}

/// Without offload each packet can get lost by itself, and is cut off what is sent again.
fn lost_small_packets() -> Outcome {
    let bench = Source::new()?;
    bench.pair.tx.set_offload(false)?;
    bench.pair.tx.queueing("netem delay 1ms loss 2%")?;
    bench.everywhere(Ip::V4, &anywhere(7, 60, 3, 20_000))
}

fn duplicated_and_reordered_packets() -> Outcome {
    through_queueing(
        "netem delay 2ms reorder 20% duplicate 10%",
        &anywhere(8, 100, 3, 20_000),
    )
}

fn delayed_packets() -> Outcome {
    through_queueing("netem delay 20ms", &anywhere(9, 60, 5, 60_000))
}

fn fair_queueing() -> Outcome {
    through_queueing("fq", &anywhere(10, 60, 5, 60_000))
}

/// Probes for a larger MTU put the data of several sends together.
fn mtu_probing() -> Outcome {
    let bench = Source::new()?;
    let tx = &bench.pair.tx;
    tx.sysctl("ipv4/tcp_mtu_probing", "2")?;
    tx.sysctl("ipv4/tcp_base_mss", "512")?;
    tx.queueing("netem delay 5ms limit 10000")?;

    // Host memory first, to see that there are any.
    let ordinary = bench.connect(Ip::V4)?;
    thread::scope(|scope| {
        let sender = traffic::send_in(scope, &ordinary.tx, 0, 1 << 20, 20_000);
        let mut received = vec![0; 1 << 20];
        (&ordinary.rx).read_exact(&mut received)?;
        traffic::compare(0, &received);
        sender.join().expect("the sender's thread")
    })?;
    let probes = tx.snmp("TcpExt", "TCPMTUPSuccess")?;
    assert!(probes > 0, "nobody probed for a larger MTU");

    bench.everywhere(Ip::V4, &anywhere(11, 400, 3, 2_000))
}

fn several_bindings_on_one_connection() -> Outcome {
    let bench = Source::new()?;
    let others = [bench.pair.tx.bind_tx(&bench.memory)?, {
        let memory = DmaBuf::system_heap(MEMORY as usize)?;
        tx::fill(&memory)?;
        bench.pair.tx.bind_tx(&memory)?
    }];
    let connection = bench.connect(Ip::V4)?;
    let bindings = [&bench.binding, &others[0], &others[1]];
    transfer(
        &connection,
        &bindings,
        &anywhere(11, 90, 3, 10_000),
        |extents| tx::expect(&connection.rx, extents),
    )
}

/// Fills much memory of the kernel's with net_iovs as those of a page pool, whose address is none, and frees it.
fn use_memory() -> io::Result<()> {
    const PIPES: usize = 128;
    /// `struct net_iov`: its second word tells a page pool's by this, and the third is its address.
    const WORDS: usize = 8;
    const PP_SIGNATURE: u64 = 0xdead_0000_0000_0040;
    const NO_ADDRESS: u64 = 0xdead_4ead_0000_0000;
    let mut net_iov = [0; WORDS];
    net_iov[1..3].copy_from_slice(&[PP_SIGNATURE, NO_ADDRESS]);
    let net_iov: Vec<u8> = net_iov.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let pipeful = net_iov.repeat(MIB as usize / net_iov.len());
    let pipes = (0..PIPES).map(|_| {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(MIB as i32))?;
        File::from(writer.try_clone()?).write_all(&pipeful)?;
        Ok((reader, writer))
    });
    // All are there before the first goes.
    pipes.collect::<io::Result<Vec<_>>>().map(drop)
}

/// The net_iovs of a transmit binding are allocated where other memory was, of a process that may have made them
/// out for those of a page pool.
fn net_iovs_in_used_memory() -> Outcome {
    let bench = Source::new()?;
    let connection = bench.connect(Ip::V4)?;
    use_memory()?;
    let bindings = (0..16)
        .map(|_| bench.pair.tx.bind_tx(&bench.memory))
        .collect::<Result<Vec<_>, _>>()?;
    let bindings: Vec<_> = bindings.iter().collect();
    transfer(
        &connection,
        &bindings,
        &anywhere(13, 64, 3, 10_000),
        |extents| tx::expect(&connection.rx, extents),
    )
}

fn several_connections_on_one_binding() -> Outcome {
    let bench = Source::new()?;
    let listener = bench.pair.listen(Ip::V4, PORT)?;
    let connections: Vec<_> = (0..4)
        .map(|_| bench.pair.connect(&listener))
        .collect::<io::Result<_>>()?;
    thread::scope(|scope| {
        let threads: Vec<_> = (20..)
            .zip(&connections)
            .map(|(seed, connection)| {
                let binding = &bench.binding;
                scope.spawn(move || {
                    transfer(
                        connection,
                        &[binding],
                        &anywhere(seed, 40, 5, 30_000),
                        |extents| tx::expect(&connection.rx, extents),
                    )
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("a connection's thread"))
    })
}

/// A little memory, which is written again as soon as it is said to be free: if that is too early, what
/// arrives is not what was sent.
fn reuse(discipline: Option<&str>, total: u64) -> Outcome {
    const PART: u64 = 32 << 10;
    const PARTS: u64 = 8;
    let bench = Source::with(DmaBuf::udmabuf((PARTS * PART) as usize)?)?;
    if let Some(discipline) = discipline {
        bench.pair.tx.queueing(discipline)?;
    }
    let connection = bench.connect(Ip::V4)?;
    let receive = |rx: &std::net::TcpStream| -> io::Result<()> {
        let mut at = 0;
        let mut buffer = vec![0; 1 << 20];
        while at < total {
            let len = io::Read::read(&mut &*rx, &mut buffer)?;
            assert!(len > 0, "the stream ended at {at}");
            traffic::compare(at, &buffer[..len]);
            at += len as u64;
        }
        Ok(())
    };
    thread::scope(|scope| -> Outcome {
        let receiver = scope.spawn(|| receive(&connection.rx));
        let mut sender = Sender::<Filled>::new(&connection.tx)?;
        let mut free: Vec<Region> = bench.memory.region()?.split(PART);
        let mut waited = 0;
        let mut at = 0;
        while at < total {
            let mut region = match free.pop() {
                Some(region) => region,
                None => {
                    waited += 1;
                    let sent = sender
                        .wait_timeout(wait::patience(COMPLETED))?
                        .expect("all in flight");
                    sent.source.region
                }
            };
            // Odd lengths, so that segments do not end where regions do.
            let len = (PART - at % 977).min(total - at);
            let bytes = traffic::bytes(at, len as usize);
            region.begin_write()?.copy_in(0, bytes)?;
            sender.send(&bench.binding, Filled { region, len })?;
            at += len;
        }
        assert!(
            waited >= total / PART - PARTS,
            "the memory was not used again"
        );
        while sender.wait_timeout(wait::patience(COMPLETED))?.is_some() {}
        receiver.join().expect("the receiver's thread")?;
        Ok(())
    })
}

fn memory_used_again() -> Outcome {
    reuse(None, 8 * MIB)
}

fn memory_used_again_with_losses() -> Outcome {
    reuse(Some("netem delay 2ms loss 3%"), 2 * MIB)
}

fn memory_used_again_after_a_queue() -> Outcome {
    reuse(Some("fq maxrate 400mbit"), 4 * MIB)
}

/// What is received into device memory is sent on from there, to where it came from.
fn sent_on_from_where_it_was_received() -> Outcome {
    const LEN: u64 = 4 * MIB;
    let bench = Source::new()?;
    let memory = DmaBuf::udmabuf(MEMORY as usize)?;
    let receive = bench.pair.bind(&[QUEUE], &memory)?;
    let back = bench.pair.rx.bind_tx(&memory)?;
    let connection = bench.pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let parts: Vec<_> = (0..64).map(|i| extent(i * 61 * 1024, LEN / 64)).collect();
    thread::scope(|scope| -> Outcome {
        let sender = scope.spawn(|| {
            let mut sender = Sender::new(&connection.tx)?;
            for part in &parts {
                sender.send(&bench.binding, *part)?;
            }
            while sender.wait_timeout(wait::patience(COMPLETED))?.is_some() {}
            io::Result::Ok(())
        });
        let echo = scope.spawn(|| {
            let mut receiver = Receiver::new(&connection.rx);
            let mut sender = Sender::new(&connection.rx)?;
            let mut at = 0;
            while at < LEN {
                let mut frags: Vec<Frag<'_>> = Vec::new();
                let received = receiver.recv()?;
                assert!(!received.is_eof(), "the stream ended at {at}");
                at += received.total() as u64;
                for piece in received {
                    let Piece::Frag(frag) = piece else {
                        panic!("not in device memory: {piece:?}")
                    };
                    frags.push(frag);
                }
                sender.send(&back, frags)?;
                // Their tokens go back with them.
                while sender.completed()?.is_some() {}
            }
            while sender.wait_timeout(wait::patience(COMPLETED))?.is_some() {}
            io::Result::Ok(())
        });
        tx::expect(&connection.tx, &parts)?;
        sender.join().expect("the sender's thread")?;
        echo.join().expect("the echo's thread")?;
        Ok(())
    })?;
    let id = receive.id();
    drop((connection, receive, back));
    provider::all_buffers_back(id);
    Ok(())
}

/// Memory that does not start where its file does, and is not a power of two.
fn part_of_a_file() -> Outcome {
    let memory = tx::part_of_a_file(3 * PAGE, 1021 * PAGE)?;
    let last = memory.size() as u64 - 1;
    let sends = [
        vec![extent(0, last + 1)],
        vec![extent(last, 1), extent(0, 1), extent(500 * PAGE - 3, 7)],
    ];
    Source::with(memory)?.everywhere(Ip::V4, &sends)
}

/// What the driver has read by DMA is what was sent, and nothing else.
fn the_driver_counts() -> Outcome {
    let bench = Source::new()?;
    let sends = anywhere(12, 40, 5, 30_000);
    let count = || -> io::Result<u64> {
        (0..8)
            .map(|queue| bench.pair.tx.counter(&format!("tx{queue}_netmem_bytes")))
            .sum()
    };
    let before = count()?;
    bench.to_host(Ip::V4, &sends)?;
    let counted = count()? - before;
    let sent = tx::total(&sends.concat());
    observe(format_args!(
        "at least as much as was sent: {}",
        counted >= sent
    ));
    assert!(
        counted >= sent,
        "{counted} of {sent} bytes were read by DMA"
    );
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        single_pages,
        huge_pages,
        system_heap,
        one_page,
        part_of_a_file,
        sizes,
        many_iovecs,
        ipv6,
        mtu_and_offload,
        lost_packets,
        lost_small_packets,
        duplicated_and_reordered_packets,
        delayed_packets,
        fair_queueing,
        mtu_probing,
        several_bindings_on_one_connection,
        net_iovs_in_used_memory,
        several_connections_on_one_binding,
        memory_used_again,
        memory_used_again_with_losses,
        memory_used_again_after_a_queue,
        sent_on_from_where_it_was_received,
        the_driver_counts,
    ])
}
