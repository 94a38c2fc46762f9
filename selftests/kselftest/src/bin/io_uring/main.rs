// SPDX-License-Identifier: GPL-2.0

//! Device memory by io_uring, and io_uring's own zero-copy receive beside it.

mod raw;
mod zcrx;

use std::collections::BTreeSet;
use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::net::Shutdown;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Extent;
use devmem::Piece;
use devmem::Receive;
use devmem::TokenBatch;
use devmem::TxBinding;
use devmem::cmsg;
use devmem::cmsg::DevmemCmsg;
use devmem::cmsg::DevmemCmsgs;
use devmem::dmabuf::CpuRead;
use devmem::recv::MSG_SOCK_DEVMEM;
use devmem::recv::take_runs;
use devmem::send::enable_zerocopy;
use devmem::token::MAX_RANGES;
use devmem::uring;
use devmem::uring::Receiver;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::child::Child;
use devmem_testlib::child::enter;
use devmem_testlib::dmabufs;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Ip;
use devmem_testlib::peer::Peer;
use devmem_testlib::peer::Segment;
use devmem_testlib::peer::segment;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::storm;
use devmem_testlib::syscalls;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::wait;
use io_uring::cqueue;

use crate::raw::Message;
use crate::raw::Raw;

const MIB: usize = 1 << 20;
const MEMORY: usize = 4 * MIB;
const PORT: u16 = Receiving::PORT;
const QUEUE: u32 = Receiving::QUEUE;
/// Internal to the kernel, but told to user space: no room for a control message.
const ETOOSMALL: i32 = 525;
/// Too long for anything that works.
const LONG: Duration = Duration::from_secs(10);
/// How long the memory of somebody who was killed may take to be free, elsewhere.
const RELEASED: Duration = Duration::from_secs(1);
/// Long enough for a receive to be in flight.
const SHORT: Duration = Duration::from_millis(100);

type Make = fn(&TcpStream) -> io::Result<Receiver<'_>>;

const BOTH: [(&str, Make); 2] = [
    ("single shot", |socket| Receiver::new(socket)),
    ("multishot", |socket| Receiver::multishot(socket)),
];

/// Sends a part of the stream with one call.
fn send_at(bench: &Receiving, position: u64, len: usize) -> io::Result<()> {
    traffic::send(&bench.connection.tx, position, len as u64, len)
}

/// Compares the stream that arrives.
///
/// It reads all the time without `DMA_BUF_IOCTL_SYNC` in between, which would be a system call. On x86
/// that does nothing.
struct Stream<'m> {
    cpu: CpuRead<'m>,
    id: u32,
    scratch: Vec<u8>,
    position: u64,
    frags: u64,
}

impl<'m> Stream<'m> {
    /// What arrives in the memory of this bench.
    fn of(bench: &'m Receiving) -> io::Result<Self> {
        Ok(Self {
            cpu: bench.map.begin_read()?,
            id: bench.binding.id(),
            scratch: vec![0; MIB],
            position: 0,
            frags: 0,
        })
    }

    /// Receives once; returns how many pieces it was, all of them in device memory.
    fn read_some<'s>(&mut self, rx: &mut impl Receive<'s>) -> io::Result<usize> {
        let mut pieces = 0;
        for piece in rx.recv()? {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}");
            };
            assert_eq!(frag.dmabuf_id, self.id, "the binding");
            let to = &mut self.scratch[..frag.size as usize];
            self.cpu.copy_out(frag.offset, to)?;
            traffic::compare(self.position, to);
            self.position += u64::from(frag.size);
            self.frags += 1;
            pieces += 1;
        }
        Ok(pieces)
    }

    fn read_until<'s>(&mut self, rx: &mut impl Receive<'s>, position: u64) -> io::Result<()> {
        while self.position < position {
            let pieces = self.read_some(rx)?;
            assert!(pieces > 0, "the stream ended at {}", self.position);
        }
        assert_eq!(self.position, position, "more than what was sent");
        Ok(())
    }
}

/// A whole stream through little memory, and its end.
fn receive_loop(make: Make) -> Outcome {
    const LEN: u64 = 24 << 20;
    let bench = Receiving::new()?;
    let mut stream = Stream::of(&bench)?;
    let mut rx = make(&bench.connection.rx)?;
    thread::scope(|scope| {
        let sender = traffic::send_in(scope, &bench.connection.tx, 0, LEN, MIB);
        stream.read_until(&mut rx, LEN)?;
        sender.join().expect("the sender's thread")?;
        bench.connection.tx.shutdown(Shutdown::Write)?;
        for _ in 0..2 {
            assert!(rx.recv()?.is_eof(), "more than what was sent");
        }
        rx.finish()?;
        assert_eq!(rx.returned(), stream.frags, "tokens returned");
        Ok(())
    })
}

/// No more messages than there are segments, where the provider knows runs; one for each buffer elsewhere.
fn runs() -> Outcome {
    const SEGMENTS: usize = 6;
    const BUFFERS: usize = 8;
    const LEN: usize = BUFFERS * 4096;
    for (_, make) in BOTH {
        let bench = Receiving::in_full_buffers(DmaBuf::udmabuf(MEMORY)?)?;
        let takes_runs = take_runs(&bench.connection.rx)?;
        assert_eq!(takes_runs, provider::under_test() == Provider::Module);
        bench.send(&[LEN; SEGMENTS])?;
        let mut stream = Stream::of(&bench)?;
        let mut rx = make(&bench.connection.rx)?;
        stream.read_until(&mut rx, (SEGMENTS * LEN) as u64)?;
        match takes_runs {
            true => assert!(stream.frags <= SEGMENTS as u64, "{} messages", stream.frags),
            false => assert_eq!(stream.frags, (SEGMENTS * BUFFERS) as u64),
        }
        rx.finish()?;
    }
    Ok(())
}

fn single_shot() -> Outcome {
    receive_loop(|socket| Receiver::new(socket))
}

fn multishot() -> Outcome {
    receive_loop(|socket| Receiver::multishot(socket))
}

/// Buffers of 64 KiB: the kernel runs out of them again and again, and goes on.
fn multishot_small_buffers() -> Outcome {
    receive_loop(|socket| Receiver::multishot_with_capacity(socket, 64 << 10, 4))
}

/// A few messages, each by itself.
fn messages(make: Make) -> Outcome {
    let bench = Receiving::new()?;
    let mut stream = Stream::of(&bench)?;
    let mut rx = make(&bench.connection.rx)?;
    for len in [1, 1000, 5000] {
        let end = stream.position + len as u64;
        send_at(&bench, stream.position, len)?;
        stream.read_until(&mut rx, end)?;
    }
    rx.finish()?;
    assert_eq!(rx.returned(), stream.frags, "tokens returned");
    Ok(())
}

fn messages_single_shot() -> Outcome {
    messages(|socket| Receiver::new(socket))
}

fn messages_multishot() -> Outcome {
    messages(|socket| Receiver::multishot(socket))
}

/// A receive loop, with every system call that it makes looked at.
fn no_other_system_call() -> Outcome {
    const LEN: u64 = 8 << 20;
    for (name, make) in BOTH {
        let bench = Receiving::new()?;
        let calls = thread::scope(|scope| -> io::Result<_> {
            let sender = traffic::send_in(scope, &bench.connection.tx, 0, LEN, MIB);
            let calls = syscalls::system_calls_of(|section| {
                let mut stream = Stream::of(&bench)?;
                let mut rx = make(&bench.connection.rx)?;
                section.begin();
                while stream.position < LEN {
                    stream.read_some(&mut rx)?;
                }
                rx.finish()?;
                section.end();
                assert_eq!(rx.returned(), stream.frags, "tokens returned");
                Ok(())
            })?;
            sender.join().expect("the sender's thread")?;
            Ok(calls)
        })?;
        let numbers: BTreeSet<_> = calls.keys().copied().collect();
        assert_eq!(
            numbers,
            BTreeSet::from([libc::SYS_io_uring_enter as u64]),
            "{name}: system calls"
        );
        report::diag(format_args!("{name}: {calls:?} calls for {LEN} bytes"));
    }
    Ok(())
}

fn small_control_buffers() -> Outcome {
    const LEN: usize = 20_000;
    let bench = Receiving::new()?;
    let mut stream = Stream::of(&bench)?;
    for multishot in [false, true] {
        for frags in [1, 2, 3] {
            let mut rx = match multishot {
                false => Receiver::with_capacity(&bench.connection.rx, MIB, frags)?,
                true => Receiver::multishot_with_capacity(&bench.connection.rx, MIB, frags)?,
            };
            let start = stream.position;
            send_at(&bench, start, LEN)?;
            let mut pieces = 0;
            while stream.position < start + LEN as u64 {
                let now = stream.read_some(&mut rx)?;
                assert!(
                    (1..=frags).contains(&now),
                    "{now} pieces with room for {frags}"
                );
                pieces += now;
            }
            assert!(pieces >= LEN.div_ceil(4096), "{pieces} pieces");
        }

        // No room at all: the data stay for those who have some.
        let start = stream.position;
        send_at(&bench, start, LEN)?;
        let mut rx = match multishot {
            false => Receiver::with_capacity(&bench.connection.rx, MIB, 0)?,
            true => Receiver::multishot_with_capacity(&bench.connection.rx, MIB, 0)?,
        };
        for _ in 0..2 {
            let errno = rx.recv().map(|r| r.total()).map_err(|e| e.raw_os_error());
            observe(format_args!("multishot {multishot}, no room: {errno:?}"));
            assert_eq!(errno, Err(Some(ETOOSMALL)));
        }
        drop(rx);
        let mut rx = Receiver::new(&bench.connection.rx)?;
        stream.read_until(&mut rx, start + LEN as u64)?;
    }
    Ok(())
}

fn peek() -> Outcome {
    const LEN: usize = 1000;
    let bench = Receiving::new()?;
    let mut stream = Stream::of(&bench)?;
    send_at(&bench, 0, LEN)?;
    let mut rx = Receiver::new(&bench.connection.rx)?;
    for _ in 0..2 {
        let mut sizes = Vec::new();
        for piece in rx.recv_flags(libc::MSG_PEEK)? {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}");
            };
            sizes.push(frag.size);
        }
        observe(format_args!("peeked {sizes:?}"));
        assert_eq!(sizes, [LEN as u32]);
    }
    stream.read_until(&mut rx, LEN as u64)?;
    rx.finish()?;
    assert_eq!(rx.returned(), 3, "tokens of two peeks and a receive");
    Ok(())
}

/// A receive that is waiting is cancelled, and what comes later is received by another.
fn cancelled() -> Outcome {
    const LEN: usize = 10_000;
    let bench = Receiving::new()?;
    let mut stream = Stream::of(&bench)?;
    for (_, make) in BOTH {
        let mut rx = make(&bench.connection.rx)?;
        for _ in 0..3 {
            let result = rx.recv_timeout(SHORT).map(|r| r.total());
            assert_eq!(
                result.map_err(|err| err.kind()),
                Err(ErrorKind::TimedOut),
                "nothing was sent"
            );
            let end = stream.position + LEN as u64;
            send_at(&bench, stream.position, LEN)?;
            stream.read_until(&mut rx, end)?;
        }
        // Left to itself the receive goes on waiting; dropping it ends that.
        drop(rx);
    }
    Ok(())
}

/// A ring that is gone with everything that was going on.
fn dropped_with_tokens_held() -> Outcome {
    const LEN: usize = 100_000;
    let bench = Receiving::new()?;
    for (_, make) in BOTH {
        let mut held = Vec::new();
        let mut rx = make(&bench.connection.rx)?;
        let mut got = 0;
        send_at(&bench, 0, LEN)?;
        while got < LEN / 2 {
            for piece in rx.recv()? {
                let Piece::Frag(frag) = piece else {
                    panic!("not in device memory: {piece:?}");
                };
                got += frag.size as usize;
                held.push(frag);
            }
        }
        // The rest has not been asked for, but a multishot receive may have taken it.
        drop(rx);
        let mut batch = TokenBatch::new(&bench.connection.rx);
        let count = held.len() as u64;
        for frag in held {
            batch.push(frag.token)?;
        }
        batch.flush()?;
        // Tokens of a ring that is gone return themselves.
        assert_eq!(batch.returned(), 0, "of {count} tokens");

        // Nobody receives any more: what is sent now is left for the next one, all of it.
        let mut rx = Receiver::new(&bench.connection.rx)?;
        send_at(&bench, 0, LEN)?;
        let mut left = 0;
        while left < LEN {
            left += rx.recv_timeout(wait::patience(LONG))?.total();
        }
        drop(rx);
    }
    let id = bench.binding.id();
    drop(bench);
    provider::all_buffers_back(id);
    Ok(())
}

/// The tokens that a message tells of, and what the pieces have together.
fn tokens(message: *const Message) -> (Vec<u32>, u64) {
    // SAFETY: The message is leaked, and its request has completed.
    let (control, used) = unsafe { (&(*message).control, (*message).header.msg_controllen) };
    let mut total = 0;
    let tokens = DevmemCmsgs::new(&control[..used])
        .filter_map(|cmsg| match cmsg {
            DevmemCmsg::Dmabuf(frag) => {
                total += u64::from(frag.frag_size);
                Some(frag.frag_token)
            }
            DevmemCmsg::Linear(_) => None,
        })
        .collect();
    (tokens, total)
}

/// The ring's file is closed, and nothing else, while a receive waits.
fn ring_closed_with_receive_in_flight() -> Outcome {
    const LEN: usize = 10_000;
    let bench = Receiving::new()?;
    let message = Message::leaked(MIB, 64 * cmsg::SPACE);
    let mut raw = Raw::new()?;
    raw.request(raw::receive(&bench.connection.rx, message, 0), 1)?;
    // The kernel cancels what a closed ring has in flight from a work item of its own: then nobody has this
    // end of a pair any more, and the other end reads that it was closed.
    let (in_ring, mut other) = UnixStream::pair()?;
    raw.request(raw::poll_in(&in_ring), 2)?;
    assert_eq!(raw.submit()?, [], "nothing was sent");
    drop(in_ring);
    drop(raw);
    assert_eq!(other.read(&mut [0])?, 0, "nobody writes to it");
    send_at(&bench, 0, LEN)?;
    let mut stream = Stream::of(&bench)?;
    let mut rx = Receiver::new(&bench.connection.rx)?;
    stream.read_until(&mut rx, LEN as u64)?;
    Ok(())
}

/// The ring is closed with tokens in user space: they belong to the socket.
fn ring_closed_with_tokens_held() -> Outcome {
    let bench = Receiving::new()?;
    let message = Message::leaked(MIB, 64 * cmsg::SPACE);
    bench.send(&[5000])?;
    let mut raw = Raw::new()?;
    raw.request(raw::receive(&bench.connection.rx, message, 0), 1)?;
    assert_eq!(raw.complete(1)?, [(1, 5000)]);
    drop(raw);
    let (held, total) = tokens(message);
    assert_eq!(total, 5000);

    let mut raw = Raw::new()?;
    for &token in &held {
        let entry = raw::dontneed(&bench.connection.rx, &[token, 1], 8);
        raw.request(entry, u64::from(token))?;
        assert_eq!(raw.complete(1)?, [(u64::from(token), 1)], "held until now");
    }
    Ok(())
}

/// Every way to return tokens wrong.
fn dontneed() -> Outcome {
    let bench = Receiving::new()?;
    let message = Message::leaked(MIB, 64 * cmsg::SPACE);
    bench.send(&[3000])?;
    let socket = &bench.connection.rx;
    let mut raw = Raw::new()?;
    raw.request(raw::receive(socket, message, 0), 1)?;
    assert_eq!(raw.complete(1)?, [(1, 3000)]);
    let (held, _) = tokens(message);
    let token = held[0];
    let other = held.iter().max().copied().unwrap_or_default() + 1;

    let udp = UdpSocket::bind("127.0.0.1:0")?;
    let many = vec![other; 2 * (MAX_RANGES + 1)];
    let count = held.len() as i32;
    let cases = [
        ("unknown", raw::dontneed(socket, &[other, 1], 8), 0),
        ("empty range", raw::dontneed(socket, &[token, 0], 8), 0),
        (
            "7 bytes",
            raw::dontneed(socket, &[token, 1], 7),
            -libc::EINVAL,
        ),
        (
            "9 bytes",
            raw::dontneed(socket, &[token, 1, 0], 9),
            -libc::EINVAL,
        ),
        (
            "129 ranges",
            raw::dontneed(socket, &many, 8 * (MAX_RANGES as u32 + 1)),
            -libc::EINVAL,
        ),
        (
            "null",
            raw::dontneed_at(socket, ptr::null(), 8),
            -libc::EFAULT,
        ),
        ("UDP", raw::dontneed(&udp, &[token, 1], 8), -libc::EBADF),
    ];
    for (name, entry, expected) in cases {
        raw.request(entry, 2)?;
        let done = raw.complete(1)?;
        observe(format_args!("{name}: {}", done[0].1));
        assert_eq!(done, [(2, expected)], "{name}");
    }
    for (again, expected) in [(false, count), (true, 0)] {
        let ranges: Vec<u32> = held.iter().flat_map(|&token| [token, 1]).collect();
        raw.request(raw::dontneed(socket, &ranges, 8 * held.len() as u32), 3)?;
        assert_eq!(raw.complete(1)?, [(3, expected)], "again: {again}");
    }
    Ok(())
}

/// A receive and, once it is through, a return: one after the other by a link.
fn linked() -> Outcome {
    let bench = Receiving::new()?;
    let socket = &bench.connection.rx;
    let (first, second) = (
        Message::leaked(MIB, 64 * cmsg::SPACE),
        Message::leaked(MIB, 64 * cmsg::SPACE),
    );
    send_at(&bench, 0, 1)?;
    let mut raw = Raw::new()?;
    raw.request(raw::receive(socket, first, 0), 1)?;
    assert_eq!(raw.complete(1)?, [(1, 1)]);
    let (held, _) = tokens(first);

    raw.request(raw::linked(raw::receive(socket, second, 0)), 2)?;
    raw.request(raw::dontneed(socket, &[held[0], 1], 8), 3)?;
    assert_eq!(raw.submit()?, [], "nothing was sent");
    send_at(&bench, 1, 1)?;
    assert_eq!(raw.complete(2)?, [(2, 1), (3, 1)]);

    // A receive that fails breaks the link: the token stays.
    let (held, _) = tokens(second);
    let small = Message::leaked(MIB, 0);
    send_at(&bench, 2, 1)?;
    raw.request(raw::linked(raw::receive(socket, small, 0)), 4)?;
    raw.request(raw::dontneed(socket, &[held[0], 1], 8), 5)?;
    assert_eq!(raw.complete(2)?, [(4, -ETOOSMALL), (5, -libc::ECANCELED)]);
    raw.request(raw::dontneed(socket, &[held[0], 1], 8), 6)?;
    assert_eq!(raw.complete(1)?, [(6, 1)]);
    Ok(())
}

/// MSG_WAITALL, MSG_DONTWAIT, no MSG_SOCK_DEVMEM, MSG_TRUNC: what the flags do.
fn flags() -> Outcome {
    let bench = Receiving::new()?;
    let socket = &bench.connection.rx;
    let mut raw = Raw::new()?;
    let message = || Message::leaked(3000, 64 * cmsg::SPACE);

    raw.request(raw::receive(socket, message(), libc::MSG_DONTWAIT), 1)?;
    assert_eq!(raw.complete(1)?, [(1, -libc::EAGAIN)], "MSG_DONTWAIT");

    send_at(&bench, 0, 1000)?;
    let plain = Message::leaked(3000, 0);
    raw.request(raw::receive_plain(socket, plain), 2)?;
    let done = raw.complete(1)?;
    observe(format_args!("without MSG_SOCK_DEVMEM: {}", done[0].1));
    assert_eq!(done, [(2, -libc::EFAULT)]);

    // No room for control messages, whatever the flags say.
    for (flags, expected) in [(MSG_SOCK_DEVMEM, -ETOOSMALL), (0, -libc::EFAULT)] {
        raw.request(raw::receive_data(socket, 3000, flags), 2)?;
        let done = raw.complete(1)?;
        observe(format_args!("RECV with flags {flags:#x}: {}", done[0].1));
        assert_eq!(done, [(2, expected)]);
    }

    // With control messages to be told, the kernel does not wait for the rest.
    let part = message();
    raw.request(raw::receive(socket, part, libc::MSG_WAITALL), 3)?;
    let done = raw.complete(1)?;
    observe(format_args!(
        "MSG_WAITALL with a third of it: {}",
        done[0].1
    ));
    assert_eq!(done, [(3, 1000)]);
    let (held, total) = tokens(part);
    assert_eq!(total, 1000);
    let ranges: Vec<u32> = held.iter().flat_map(|&token| [token, 1]).collect();
    raw.request(raw::dontneed(socket, &ranges, 8 * held.len() as u32), 4)?;
    assert_eq!(raw.complete(1)?, [(4, held.len() as i32)]);
    Ok(())
}

/// A dma-buf with the beginning of the stream, bound to the sending end.
fn bind_tx(pair: &Pair, memory: &DmaBuf) -> Result<TxBinding, report::Stop> {
    let mut region = memory.region()?;
    let mut cpu = region.begin_write()?;
    for at in (0..memory.size()).step_by(MIB) {
        let len = MIB.min(memory.size() - at);
        cpu.copy_in(at as u64, traffic::bytes(at as u64, len))?;
    }
    drop(cpu);
    let ifindex = pair.tx.ifindex;
    Ok(pair.tx.ns.run(|| Ok(BindTx::new(ifindex).bind(memory)))??)
}

/// The parts of a dma-buf, each to be sent by itself.
fn parts(memory: &DmaBuf, len: u64) -> impl Iterator<Item = Extent> {
    (0..memory.size() as u64)
        .step_by(len as usize)
        .map(move |offset| Extent { offset, len })
}

/// Receives the stream as any program does.
fn read_plainly(mut socket: &TcpStream, len: usize) -> io::Result<()> {
    let mut buffer = vec![0; MIB];
    let mut position = 0;
    while position < len {
        let now = match socket.read(&mut buffer) {
            // What is left of a ring that was closed interrupts the thread that had it.
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            now => now?,
        };
        assert!(now > 0, "the stream ended at {position}");
        traffic::compare(position as u64, &buffer[..now]);
        position += now;
    }
    Ok(())
}

/// From a dma-buf to an ordinary receiver, with every system call of the sender looked at.
fn send() -> Outcome {
    const PART: u64 = 64 << 10;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let binding = bind_tx(&pair, &memory)?;
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    let calls = thread::scope(|scope| -> io::Result<_> {
        let reader = scope.spawn(|| read_plainly(&connection.rx, MEMORY));
        let calls = syscalls::system_calls_of(|section| {
            let mut tx = uring::Sender::new(&connection.tx)?;
            let mut back = Vec::with_capacity(MEMORY / PART as usize);
            section.begin();
            for part in parts(&memory, PART) {
                tx.send(&binding, part)?;
                while let Some(sent) = tx.completed()? {
                    back.push(sent);
                }
            }
            while let Some(sent) = tx.wait()? {
                back.push(sent);
            }
            section.end();
            assert_eq!(tx.in_flight(), 0);
            let expected: Vec<_> = parts(&memory, PART).collect();
            let sources: Vec<_> = back.iter().map(|sent| sent.source).collect();
            assert_eq!(sources, expected, "what came back");
            assert!(back.iter().all(|sent| sent.bytes == PART && !sent.copied));
            Ok(())
        })?;
        reader.join().expect("the receiver's thread")?;
        Ok(calls)
    })?;
    assert!(calls.contains_key(&(libc::SYS_io_uring_enter as u64)));
    let others: Vec<_> = calls
        .keys()
        .filter(|&&number| number != libc::SYS_io_uring_enter as u64)
        .collect();
    assert!(others.is_empty(), "other system calls: {others:?}");
    report::diag(format_args!("{calls:?} calls for {MEMORY} bytes"));
    Ok(())
}

/// From one dma-buf into another, by io_uring at both ends.
fn dmabuf_to_dmabuf() -> Outcome {
    let bench = Receiving::new()?;
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let binding = bind_tx(&bench.pair, &memory)?;
    thread::scope(|scope| {
        let (memory, binding, socket) = (&memory, &binding, &bench.connection.tx);
        let sender = scope.spawn(move || -> io::Result<u64> {
            let mut tx = uring::Sender::new(socket)?;
            for part in parts(memory, 256 << 10) {
                tx.send(binding, part)?;
            }
            let mut back = 0;
            while let Some(sent) = tx.wait()? {
                assert!(!sent.copied, "{sent:?}");
                back += sent.bytes;
            }
            Ok(back)
        });
        let mut stream = Stream::of(&bench)?;
        let mut rx = Receiver::multishot(&bench.connection.rx)?;
        stream.read_until(&mut rx, MEMORY as u64)?;
        assert_eq!(
            sender.join().expect("the sender's thread")?,
            MEMORY as u64,
            "bytes completed"
        );
        rx.finish()?;
        assert_eq!(rx.returned(), stream.frags, "tokens returned");
        Ok(())
    })
}

/// A peer that does not read: the sender waits in the kernel, and is dropped with data in flight.
fn sender_dropped_with_data_in_flight() -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let binding = bind_tx(&pair, &memory)?;
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    let mut tx = uring::Sender::new(&connection.tx)?;
    let mut sent = 0;
    for part in parts(&memory, 64 << 10) {
        match tx.send_flags(&binding, part, libc::MSG_DONTWAIT) {
            Ok(()) => sent += part.len,
            Err(err) => {
                assert_eq!(err.error.raw_os_error(), Some(libc::EAGAIN));
                sent += err.sent;
                break;
            }
        }
    }
    assert!(sent > 0, "nothing was sent");
    assert!(tx.in_flight() > 0, "everything has completed already");
    drop((tx, binding));
    read_plainly(&connection.rx, sent as usize)?;
    Ok(())
}

/// What the kernel makes of requests to send that it does not take.
fn send_errors() -> Outcome {
    let memory = DmaBuf::udmabuf(MIB)?;
    let pair = Pair::new()?;
    let binding = bind_tx(&pair, &memory)?;
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    let socket = &connection.tx;
    let mut raw = Raw::new()?;
    let mut errno = |what: &str, id: u32, flags: i32| -> io::Result<i32> {
        let entry = raw::send(socket, Message::to_send(id, 0, 1000), flags);
        raw.request(entry, 1)?;
        let result = raw.complete(1)?[0].1;
        observe(format_args!("{what}: {result}"));
        Ok(result)
    };
    let id = binding.id();
    let zerocopy = libc::MSG_ZEROCOPY;
    assert_eq!(errno("no SO_ZEROCOPY", id, zerocopy)?, -libc::EINVAL);
    enable_zerocopy(socket)?;
    assert_eq!(errno("no MSG_ZEROCOPY", id, 0)?, -libc::EINVAL);
    assert_eq!(
        errno("unknown binding", id + 1000, zerocopy)?,
        -libc::EINVAL
    );
    assert_eq!(errno("good", id, zerocopy)?, 1000);
    read_plainly(&connection.rx, 1000)?;
    Ok(())
}

/// `SENDMSG_ZC` brings completions of its own, which the kernel does not do for dma-bufs.
fn sendmsg_zc() -> Outcome {
    let memory = DmaBuf::udmabuf(MIB)?;
    let pair = Pair::new()?;
    let binding = bind_tx(&pair, &memory)?;
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    enable_zerocopy(&connection.tx)?;
    let mut raw = Raw::new()?;
    let message = Message::to_send(binding.id(), 0, 1000);
    raw.request(raw::send_zc(&connection.tx, message), 1)?;
    let done = raw.complete_all(2)?;
    let seen: Vec<_> = done
        .iter()
        .map(|entry| {
            let flags = entry.flags();
            (entry.result(), cqueue::more(flags), cqueue::notif(flags))
        })
        .collect();
    observe(format_args!("result, more, notification: {seen:?}"));
    assert_eq!(seen, [(-libc::EINVAL, true, false), (0, false, true)]);

    // Nothing of it was sent.
    raw.request(
        raw::send(
            &connection.tx,
            Message::to_send(binding.id(), 0, 1000),
            libc::MSG_ZEROCOPY,
        ),
        2,
    )?;
    assert_eq!(raw.complete(1)?, [(2, 1000)]);
    read_plainly(&connection.rx, 1000)?;
    Ok(())
}

/// io_uring's own zero-copy receive on one queue, device memory on the next, both at once.
fn zcrx_on_the_neighbour() -> Outcome {
    const LEN: u64 = 16 << 20;
    const ZC_QUEUE: u32 = 2;
    const START: u64 = 777;
    let bench = Receiving::new()?;
    let pair = &bench.pair;
    pair.steer(PORT + 1, ZC_QUEUE)?;
    let listener = pair.listen(Ip::V4, PORT + 1)?;
    let (said, ready) = mpsc::channel();
    thread::scope(|scope| -> Outcome {
        let ifindex = pair.rx.ifindex;
        let zc = scope.spawn(move || {
            pair.rx.ns.run(move || {
                let mut zcrx = zcrx::Zcrx::new(ifindex, ZC_QUEUE, MEMORY)?;
                said.send(()).map_err(io::Error::other)?;
                let (socket, _) = listener.accept()?;
                let mut position = START;
                zcrx.receive(&socket, |bytes| {
                    traffic::compare(position, bytes);
                    position += bytes.len() as u64;
                })?;
                Ok(position - START)
            })
        });
        // If it fails instead, the join below tells.
        if ready.recv().is_ok() {
            let to = devmem_testlib::pair::address(Ip::V4, PORT + 1);
            let tx = pair.tx.ns.run(|| std::net::TcpStream::connect(to))?;
            let zc_sender = scope.spawn(move || {
                traffic::send(&tx, START, LEN, MIB)?;
                tx.shutdown(Shutdown::Write)
            });
            let sender = traffic::send_in(scope, &bench.connection.tx, 0, LEN, MIB);
            let mut stream = Stream::of(&bench)?;
            let mut rx = Receiver::multishot(&bench.connection.rx)?;
            stream.read_until(&mut rx, LEN)?;
            sender.join().expect("the sender's thread")?;
            zc_sender.join().expect("the zero-copy sender's thread")?;
        }
        let received = zc.join().expect("the zero-copy receiver's thread")?;
        assert_eq!(received, LEN, "bytes by io_uring's zero-copy receive");
        Ok(())
    })?;
    for queue in [QUEUE, ZC_QUEUE] {
        let split = pair.rx.counter(&format!("rx{queue}_hds_bytes"))?;
        assert!(split >= LEN, "only {split} bytes came by queue {queue}");
    }
    Ok(())
}

/// Segments wait for the first one, which is lost. They must not have all buffers, or there is none for that one:
/// `recv_order/more_out_of_order_than_there_are_buffers` for zero-copy receive.
fn zcrx_more_out_of_order_than_there_are_buffers() -> Outcome {
    const BUFFERS: usize = 1024;
    const SEGMENTS: u64 = 1200;
    const LEN: usize = 16;
    let pair = Pair::new()?;
    pair.steer(PORT, QUEUE)?;
    let listener = pair.listen(Ip::V4, PORT)?;
    sockopt::set(&listener, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
    let received = AtomicU64::new(0);
    let at = |i: u64| segment(i * LEN as u64, LEN);
    let (said, ready) = mpsc::channel();
    let (begin, begun) = mpsc::channel();
    thread::scope(|scope| -> Outcome {
        let (pair, received) = (&pair, &received);
        let zc = scope.spawn(move || {
            pair.rx.ns.run(move || {
                let mut zcrx = zcrx::Zcrx::new(pair.rx.ifindex, QUEUE, BUFFERS * 4096)?;
                said.send(()).map_err(io::Error::other)?;
                let socket: TcpStream = begun.recv().map_err(io::Error::other)?;
                zcrx.receive(&socket, |bytes| {
                    let before = received.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    traffic::compare(before, bytes);
                })
            })
        });
        // If it fails instead, the join below tells.
        if ready.recv().is_ok() {
            let (peer, socket) = Peer::connect(pair, &listener)?;
            for i in 1..SEGMENTS {
                peer.send(at(i))?;
            }
            begin.send(socket).map_err(io::Error::other)?;
            wait::until("all segments to get through", LONG, || {
                let next = received.load(Ordering::Relaxed) / LEN as u64;
                for i in next..SEGMENTS.min(next + 16) {
                    peer.send(Segment {
                        fin: i == SEGMENTS - 1,
                        ..at(i)
                    })?;
                }
                Ok(next == SEGMENTS)
            })?;
        }
        zc.join().expect("the zero-copy receiver's thread")?;
        Ok(())
    })
}

/// Memory of a killed owner of a queue for zero-copy receive, to be compared with `lifetime/kill_to_release`. If another
/// process has not read what came into it, it is kept until that one is gone: this is told.
fn zcrx_owner_killed() -> Outcome {
    const MEMORY: usize = 32 * MIB;
    const LEN: u64 = 20_000;
    dmabufs::skip_without()?;
    let rounds = storm::scale("STORM_ROUNDS", 1);
    let gone = || Ok(!dmabufs::has(MEMORY)?);
    let (mut unused, mut unread, mut kept) = (Vec::new(), Vec::new(), 0);
    for round in 0..2 * rounds {
        let pair = Pair::new()?;
        let mut owner = Child::start(|talk| {
            enter(&pair.rx.ns)?;
            let memory = DmaBuf::udmabuf(MEMORY)?;
            let _queue = zcrx::Queue::into_dmabuf(pair.rx.ifindex, QUEUE, &memory)?;
            talk.tell("taken")?;
            loop {
                thread::park();
            }
        })?;
        owner.talk().hear()?;
        let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
        let in_use = round >= rounds;
        if in_use {
            traffic::send(&connection.tx, 0, LEN, LEN as usize)?;
            wait_received(&connection.rx, LEN);
            let split = pair.rx.counter(&format!("rx{QUEUE}_hds_bytes"))?;
            assert!(split >= LEN, "only {split} bytes came into the memory");
        }
        assert!(!gone()?, "the memory is there");

        let mut since = Instant::now();
        drop(owner);
        if in_use && !wait::up_to(RELEASED, gone)?.came {
            kept += 1;
            since = Instant::now();
            drop(connection);
        }
        let released = wait::up_to(LONG, gone)?;
        assert!(released.came, "it is there after {:?}", released.time);
        let times = if in_use { &mut unread } else { &mut unused };
        times.push(since.elapsed());
    }
    dmabufs::tell_times("zcrx_owner_killed: unused", unused);
    dmabufs::tell_times("zcrx_owner_killed: unread, from when it is not", unread);
    report::diag(format_args!("{kept} of {rounds} were kept until then"));
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        messages_single_shot,
        messages_multishot,
        single_shot,
        multishot,
        runs,
        multishot_small_buffers,
        no_other_system_call,
        small_control_buffers,
        peek,
        flags,
        cancelled,
        dropped_with_tokens_held,
        ring_closed_with_receive_in_flight,
        ring_closed_with_tokens_held,
        dontneed,
        linked,
        send,
        dmabuf_to_dmabuf,
        sender_dropped_with_data_in_flight,
        send_errors,
        sendmsg_zc,
        zcrx_on_the_neighbour,
        zcrx_more_out_of_order_than_there_are_buffers,
        zcrx_owner_killed,
    ])
}
