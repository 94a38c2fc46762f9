// SPDX-License-Identifier: GPL-2.0

//! SO_DEVMEM_DONTNEED with good and bad input, and recvmsg() without MSG_SOCK_DEVMEM.

use std::io;
use std::io::Read;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;

use devmem::DmaBuf;
use devmem::Piece;
use devmem::Receiver;
use devmem::token::MAX_RANGES;
use devmem::token::MAX_TOKENS;
use devmem::token::SO_DEVMEM_DONTNEED;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::machine;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::report::Stop;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use fastrand::Rng;

const PAGE: usize = 4096;
const MEMORY: usize = 2048 * PAGE;
const PORT: u16 = Receiving::PORT;
const QUEUE: u32 = Receiving::QUEUE;

/// A connection into so much memory that no test runs out of it.
fn receiving() -> Result<Receiving, Stop> {
    Receiving::into_memory(DmaBuf::udmabuf(MEMORY)?)
}

fn return_tokens(bench: &Receiving, ranges: &[TokenRange]) -> io::Result<u32> {
    let answer = dontneed(&bench.connection.rx, ranges);
    report::observe(match &answer {
        Ok(returned) => format!("{returned} returned"),
        Err(err) => format!("errno {:?}", err.raw_os_error()),
    });
    answer
}

/// Checks that these tokens were still held, by returning them.
#[track_caller]
fn assert_held(bench: &Receiving, tokens: &[u32]) {
    for &start in tokens {
        let returned = return_tokens(bench, &[TokenRange { start, count: 1 }]).expect("DONTNEED");
        assert_eq!(returned, 1, "token {start} was not held any more");
    }
}

/// Closes everything and checks that all buffers come back.
#[track_caller]
fn finish(bench: Receiving) -> Outcome {
    let id = bench.binding.id();
    drop((bench.connection, bench.binding));
    provider::all_buffers_back(id);
    drop((bench.memory, bench.pair));
    Ok(())
}

/// Sends `count` times one byte, and takes the tokens that come of it.
fn take(connection: &Connection, count: usize) -> io::Result<Vec<u32>> {
    let mut receiver = Receiver::new(&connection.rx);
    let mut tokens = Vec::new();
    for _ in 0..count {
        traffic::send(&connection.tx, 0, 1, 1)?;
        for piece in receiver.recv()? {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}")
            };
            tokens.push(frag.token.into_id());
        }
    }
    assert_eq!(tokens.len(), count, "a token for each byte");
    Ok(tokens)
}

fn ranges(tokens: &[u32]) -> Vec<TokenRange> {
    tokens
        .iter()
        .map(|&start| TokenRange { start, count: 1 })
        .collect()
}

/// setsockopt() with any length.
fn raw_dontneed(socket: impl AsFd, ranges: &[TokenRange], len: usize) -> io::Result<()> {
    assert!(len <= size_of_val(ranges));
    // SAFETY: `ranges` is readable for at least `len` bytes.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_DEVMEM_DONTNEED,
            ranges.as_ptr().cast(),
            len as libc::socklen_t,
        )
    };
    match ret {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[track_caller]
fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: i32) {
    match result {
        Err(err) if err.raw_os_error() == Some(errno) => (),
        other => panic!("expected errno {errno}, got {other:?}"),
    }
}

fn returns_each_once() -> Outcome {
    let bench = receiving()?;
    let tokens = take(&bench.connection, 20)?;
    assert_eq!(return_tokens(&bench, &ranges(&tokens[..5]))?, 5);
    // Already returned: passed over, and not counted.
    assert_eq!(return_tokens(&bench, &ranges(&tokens[..5]))?, 0);
    assert_eq!(return_tokens(&bench, &ranges(&tokens[3..8]))?, 3);
    // One token twice in one call.
    assert_eq!(return_tokens(&bench, &ranges(&[tokens[8], tokens[8]]))?, 1);
    assert_held(&bench, &tokens[9..]);
    finish(bench)
}

fn a_range_of_tokens() -> Outcome {
    let bench = receiving()?;
    let tokens = take(&bench.connection, 50)?;
    let start = tokens[0];
    assert!(
        tokens.iter().zip(start..).all(|(&a, b)| a == b),
        "consecutive tokens: {tokens:?}"
    );
    assert_eq!(
        return_tokens(&bench, &[TokenRange { start, count: 50 }])?,
        50
    );
    finish(bench)
}

/// A reader that peeks makes many tokens, whose array grows while some of them come back: none of these gets
/// lost, or comes back twice.
fn returned_while_the_array_grows() -> Outcome {
    const FRAGS: usize = 256;
    const LEN: usize = 100;
    /// Of the tokens that a call makes, so many come back at once.
    const BACK: u32 = 64;
    let many: u32 = if machine::is_slow() { 1 << 17 } else { 1 << 20 };
    let first = provider::under_test().first_token();
    let bench = receiving()?;
    let socket = &bench.connection.rx;
    sockopt::set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16_i32 << 20)?;
    bench.send(&[LEN; FRAGS])?;

    let made = AtomicU32::new(0);
    let peek = || -> io::Result<()> {
        let mut receiver = Receiver::with_capacity(socket, FRAGS * LEN, FRAGS);
        while made.load(Ordering::Relaxed) < many {
            let received = receiver.recv_flags(libc::MSG_PEEK)?;
            let mut frags = 0;
            for piece in received {
                let Piece::Frag(frag) = piece else {
                    panic!("not in device memory: {piece:?}")
                };
                frag.token.into_id();
                frags += 1;
            }
            assert_eq!(frags, FRAGS as u32, "frags of a call");
            made.fetch_add(frags, Ordering::Relaxed);
        }
        Ok(())
    };
    let mut returned = thread::scope(|scope| -> io::Result<u32> {
        let reader = scope.spawn(peek);
        let mut rng = Rng::with_seed(1);
        let (mut seen, mut returned) = (0, 0);
        while !reader.is_finished() {
            let now = made.load(Ordering::Relaxed);
            if now == seen {
                thread::yield_now();
                continue;
            }
            seen = now;
            let start = first + rng.u32(0..now);
            returned += dontneed(socket, &[TokenRange { start, count: BACK }])?;
        }
        reader.join().expect("the thread that peeks")?;
        Ok(returned)
    })?;
    assert!(returned > 0, "nothing came back meanwhile");

    let made = made.into_inner();
    for start in (first..first + made).step_by(MAX_TOKENS as usize) {
        let count = MAX_TOKENS;
        returned += dontneed(socket, &[TokenRange { start, count }])?;
    }
    assert_eq!(returned, made, "tokens returned");
    finish(bench)
}

fn bad_length() -> Outcome {
    let bench = receiving()?;
    let tokens = take(&bench.connection, 2)?;
    let list = ranges(&tokens);
    for len in [1, 4, 7, 9, 12, 15] {
        assert_errno(raw_dontneed(&bench.connection.rx, &list, len), libc::EINVAL);
    }
    assert_held(&bench, &tokens);
    finish(bench)
}

fn bad_address() -> Outcome {
    let bench = receiving()?;
    let tokens = take(&bench.connection, 1)?;
    // SAFETY: The kernel finds that it cannot read from this address; nobody else reads from it.
    let ret = unsafe {
        libc::setsockopt(
            bench.connection.rx.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_DEVMEM_DONTNEED,
            std::ptr::without_provenance(8),
            8,
        )
    };
    assert_eq!((ret, nix::Error::last()), (-1, nix::Error::EFAULT));
    assert_held(&bench, &tokens);
    finish(bench)
}

fn more_than_128_ranges() -> Outcome {
    let bench = receiving()?;
    let tokens = take(&bench.connection, MAX_RANGES + 1)?;
    let list = ranges(&tokens);
    assert_errno(return_tokens(&bench, &list), libc::EINVAL);
    assert_eq!(
        return_tokens(&bench, &list[..MAX_RANGES])?,
        MAX_RANGES as u32
    );
    assert_held(&bench, &tokens[MAX_RANGES..]);
    finish(bench)
}

fn more_than_1024_tokens() -> Outcome {
    let bench = receiving()?;
    let count = MAX_TOKENS + 6;
    let tokens = take(&bench.connection, count as usize)?;
    // Those past the limit stay held, whether in one range or in several.
    let start = tokens[0];
    assert_eq!(
        return_tokens(&bench, &[TokenRange { start, count }])?,
        MAX_TOKENS
    );
    assert_held(&bench, &tokens[MAX_TOKENS as usize..]);

    let tokens = take(&bench.connection, count as usize)?;
    let start = tokens[0];
    let (a, b) = (
        TokenRange { start, count: 1000 },
        TokenRange {
            start: start + 1000,
            count: 30,
        },
    );
    assert_eq!(return_tokens(&bench, &[a, b])?, MAX_TOKENS);
    assert_held(&bench, &tokens[MAX_TOKENS as usize..]);
    finish(bench)
}

fn unknown_tokens() -> Outcome {
    let bench = receiving()?;
    let tokens = take(&bench.connection, 3)?;
    for start in [
        tokens[2] + 1,
        tokens[0] ^ (1 << 31),
        1 << 20,
        i32::MAX as u32 - 4,
    ] {
        assert_eq!(return_tokens(&bench, &[TokenRange { start, count: 4 }])?, 0);
    }
    assert_eq!(
        return_tokens(
            &bench,
            &[TokenRange {
                start: tokens[0],
                count: 0
            }]
        )?,
        0
    );
    // Known ones among unknown ones.
    let known = TokenRange {
        start: tokens[1],
        count: 1,
    };
    let unknown = TokenRange {
        start: 1 << 20,
        count: 7,
    };
    assert_eq!(return_tokens(&bench, &[unknown, known, unknown])?, 1);
    assert_held(&bench, &[tokens[0], tokens[2]]);
    finish(bench)
}

/// It goes on with 0. Intended difference: the C code has tokens there, the module has none.
fn a_range_that_wraps() -> Outcome {
    let bench = receiving()?;
    let tokens = take(&bench.connection, 3)?;
    let start = u32::MAX - 1;
    let range = TokenRange { start, count: 5 };
    let meant: Vec<u32> = (0..range.count).map(|i| start.wrapping_add(i)).collect();
    let (named, others): (Vec<u32>, Vec<u32>) =
        tokens.iter().partition(|&token| meant.contains(token));

    assert_eq!(return_tokens(&bench, &[range])? as usize, named.len());
    // Nor does it touch what comes before it in the list.
    let first = TokenRange {
        start: others[0],
        count: 1,
    };
    assert_eq!(return_tokens(&bench, &[first, range])?, 1);
    assert_held(&bench, &others[1..]);
    finish(bench)
}

/// Clients keep them in an int, too.
fn tokens_are_no_negative_numbers() -> Outcome {
    let bench = receiving()?;
    let tokens = take(&bench.connection, 3)?;

    assert!(tokens.iter().all(|&token| i32::try_from(token).is_ok()));
    assert_eq!(tokens[0], provider::under_test().first_token());
    finish(bench)
}

fn tokens_of_another_socket() -> Outcome {
    let bench = receiving()?;
    let other = bench.pair.connect_to_queue(Ip::V4, PORT + 1, QUEUE)?;
    let tokens = take(&bench.connection, 8)?;
    let theirs = take(&other, 2)?;
    // Numbers are each socket's own: the other socket knows two, and they are its own.
    assert_eq!(dontneed(&other.rx, &ranges(&tokens))?, theirs.len() as u32);
    assert_held(&bench, &tokens);
    drop(other);
    finish(bench)
}

/// Takes so many bytes, and leaves the tokens of them to whoever returns them. Tells how many there were.
fn leave_tokens(socket: &TcpStream, len: u64) -> io::Result<u64> {
    let mut receiver = Receiver::new(socket);
    let (mut bytes, mut tokens) = (0, 0);
    while bytes < len {
        let received = receiver.recv()?;
        if received.is_eof() {
            return Err(io::Error::other("the stream ended"));
        }
        for piece in received {
            let Piece::Frag(frag) = piece else {
                return Err(io::Error::other("not in device memory"));
            };
            bytes += u64::from(frag.size);
            tokens += 1;
            frag.token.into_id();
        }
    }
    Ok(tokens)
}

/// Somebody returns tokens while they are being handed out. Their frags come back all the same.
fn returned_by_another_thread() -> Outcome {
    const LEN: u64 = 4 << 20;
    let bench = receiving()?;
    let socket = &bench.connection.rx;
    // The lowest free ones are used.
    let guess = TokenRange {
        start: provider::under_test().first_token(),
        count: MAX_TOKENS,
    };
    let received = AtomicBool::new(false);
    thread::scope(|scope| -> Outcome {
        let other = scope.spawn(|| -> io::Result<u64> {
            let mut returned = 0;
            loop {
                let last = received.load(Ordering::Acquire);
                let now = dontneed(socket, &[guess])?;
                returned += u64::from(now);
                if last && now == 0 {
                    return Ok(returned);
                }
            }
        });
        let sender = traffic::send_in(scope, &bench.connection.tx, 0, LEN, 1 << 20);
        let tokens = leave_tokens(socket, LEN);
        received.store(true, Ordering::Release);
        let (tokens, returned) = (tokens?, other.join().expect("the other thread")?);
        sender.join().expect("the sender's thread")?;
        report::diag(format_args!("{tokens} tokens, {returned} returned"));
        assert!(0 < returned && returned <= tokens);
        Ok(())
    })?;
    finish(bench)
}

fn on_sockets_without_device_memory() -> Outcome {
    let bench = receiving()?;
    let tokens = take(&bench.connection, 1)?;
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    assert_errno(dontneed(&udp, &ranges(&tokens)), libc::EBADF);
    let plain = bench
        .pair
        .rx
        .ns
        .run(|| std::net::TcpListener::bind("192.0.2.1:5009"))?;
    assert_eq!(dontneed(&plain, &ranges(&tokens))?, 0);
    assert_held(&bench, &tokens);
    finish(bench)
}

fn recv_without_the_flag() -> Outcome {
    const LEN: usize = 10_000;
    let bench = receiving()?;
    let map = bench.memory.map()?;
    traffic::send(&bench.connection.tx, 0, LEN as u64, LEN)?;
    let mut rx: &TcpStream = &bench.connection.rx;
    let mut buffer = vec![0; LEN];
    for _ in 0..3 {
        assert_errno(rx.read(&mut buffer), libc::EFAULT);
        assert_errno(rx.peek(&mut buffer), libc::EFAULT);
    }
    assert!(buffer.iter().all(|&byte| byte == 0), "bytes were copied");
    let mut reader = Reader::new(rx, &map, bench.binding.id());
    reader.read_until(LEN as u64)?;
    reader.assert_all_device_memory();
    drop(reader);
    finish(bench)
}

fn main() -> ExitCode {
    runner::run(tests![
        returns_each_once,
        a_range_of_tokens,
        returned_while_the_array_grows,
        bad_length,
        bad_address,
        more_than_128_ranges,
        more_than_1024_tokens,
        unknown_tokens,
        a_range_that_wraps,
        tokens_are_no_negative_numbers,
        tokens_of_another_socket,
        returned_by_another_thread,
        on_sockets_without_device_memory,
        recv_without_the_flag,
    ])
}
