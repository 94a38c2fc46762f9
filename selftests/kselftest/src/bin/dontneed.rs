// SPDX-License-Identifier: GPL-2.0

//! SO_DEVMEM_DONTNEED with good and bad input, and recvmsg() without MSG_SOCK_DEVMEM.

use std::io;
use std::io::Read;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::Piece;
use devmem::Receiver;
use devmem::token::MAX_RANGES;
use devmem::token::MAX_TOKENS;
use devmem::token::SO_DEVMEM_DONTNEED;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;

const PAGE: usize = 4096;
const MEMORY: usize = 2048 * PAGE;
const PORT: u16 = 5001;
const QUEUE: u32 = 1;

struct Bench {
    connection: Connection,
    binding: Binding,
    memory: DmaBuf,
    pair: Pair,
}

impl Bench {
    fn new() -> Result<Self, devmem_testlib::report::Stop> {
        let memory = DmaBuf::udmabuf(MEMORY)?;
        let pair = Pair::new()?;
        let binding = pair.bind(&[QUEUE], &memory)?;
        let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
        Ok(Self {
            connection,
            binding,
            memory,
            pair,
        })
    }

    /// Sends `count` times one byte, and takes the tokens that come of it.
    fn take(&self, count: usize) -> io::Result<Vec<u32>> {
        take(&self.connection, count)
    }

    fn return_tokens(&self, ranges: &[TokenRange]) -> io::Result<u32> {
        let answer = dontneed(&self.connection.rx, ranges);
        report::observe(match &answer {
            Ok(returned) => format!("{returned} returned"),
            Err(err) => format!("errno {:?}", err.raw_os_error()),
        });
        answer
    }

    /// Checks that these tokens were still held, by returning them.
    #[track_caller]
    fn assert_held(&self, tokens: &[u32]) {
        for &start in tokens {
            let returned = self
                .return_tokens(&[TokenRange { start, count: 1 }])
                .expect("DONTNEED");
            assert_eq!(returned, 1, "token {start} was not held any more");
        }
    }

    /// Closes everything and checks that all buffers come back.
    #[track_caller]
    fn finish(self) -> Outcome {
        let id = self.binding.id();
        drop((self.connection, self.binding));
        provider::all_buffers_back(id);
        drop((self.memory, self.pair));
        Ok(())
    }
}

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
    let bench = Bench::new()?;
    let tokens = bench.take(20)?;
    assert_eq!(bench.return_tokens(&ranges(&tokens[..5]))?, 5);
    // Already returned: passed over, and not counted.
    assert_eq!(bench.return_tokens(&ranges(&tokens[..5]))?, 0);
    assert_eq!(bench.return_tokens(&ranges(&tokens[3..8]))?, 3);
    // One token twice in one call.
    assert_eq!(bench.return_tokens(&ranges(&[tokens[8], tokens[8]]))?, 1);
    bench.assert_held(&tokens[9..]);
    bench.finish()
}

fn a_range_of_tokens() -> Outcome {
    let bench = Bench::new()?;
    let tokens = bench.take(50)?;
    let start = tokens[0];
    assert!(
        tokens.iter().zip(start..).all(|(&a, b)| a == b),
        "consecutive tokens: {tokens:?}"
    );
    assert_eq!(bench.return_tokens(&[TokenRange { start, count: 50 }])?, 50);
    bench.finish()
}

fn bad_length() -> Outcome {
    let bench = Bench::new()?;
    let tokens = bench.take(2)?;
    let list = ranges(&tokens);
    for len in [1, 4, 7, 9, 12, 15] {
        assert_errno(raw_dontneed(&bench.connection.rx, &list, len), libc::EINVAL);
    }
    bench.assert_held(&tokens);
    bench.finish()
}

fn bad_address() -> Outcome {
    let bench = Bench::new()?;
    let tokens = bench.take(1)?;
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
    bench.assert_held(&tokens);
    bench.finish()
}

fn more_than_128_ranges() -> Outcome {
    let bench = Bench::new()?;
    let tokens = bench.take(MAX_RANGES + 1)?;
    let list = ranges(&tokens);
    assert_errno(bench.return_tokens(&list), libc::EINVAL);
    assert_eq!(bench.return_tokens(&list[..MAX_RANGES])?, MAX_RANGES as u32);
    bench.assert_held(&tokens[MAX_RANGES..]);
    bench.finish()
}

fn more_than_1024_tokens() -> Outcome {
    let bench = Bench::new()?;
    let count = MAX_TOKENS + 6;
    let tokens = bench.take(count as usize)?;
    // Those past the limit stay held, whether in one range or in several.
    let start = tokens[0];
    assert_eq!(
        bench.return_tokens(&[TokenRange { start, count }])?,
        MAX_TOKENS
    );
    bench.assert_held(&tokens[MAX_TOKENS as usize..]);

    let tokens = bench.take(count as usize)?;
    let start = tokens[0];
    let (a, b) = (
        TokenRange { start, count: 1000 },
        TokenRange {
            start: start + 1000,
            count: 30,
        },
    );
    assert_eq!(bench.return_tokens(&[a, b])?, MAX_TOKENS);
    bench.assert_held(&tokens[MAX_TOKENS as usize..]);
    bench.finish()
}

fn unknown_tokens() -> Outcome {
    let bench = Bench::new()?;
    let tokens = bench.take(3)?;
    for start in [
        tokens[2] + 1,
        tokens[0] ^ (1 << 31),
        1 << 20,
        i32::MAX as u32 - 4,
    ] {
        assert_eq!(bench.return_tokens(&[TokenRange { start, count: 4 }])?, 0);
    }
    assert_eq!(
        bench.return_tokens(&[TokenRange {
            start: tokens[0],
            count: 0
        }])?,
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
    assert_eq!(bench.return_tokens(&[unknown, known, unknown])?, 1);
    bench.assert_held(&[tokens[0], tokens[2]]);
    bench.finish()
}

/// Intended difference: the C code goes on from 0, and so returns tokens that were not meant.
fn a_range_that_wraps() -> Outcome {
    let bench = Bench::new()?;
    let tokens = bench.take(3)?;
    let wraps = [TokenRange {
        start: u32::MAX - 1,
        count: 5,
    }];
    match provider::under_test() {
        Provider::Module => {
            assert_errno(bench.return_tokens(&wraps), libc::EINVAL);
            // Nothing is returned, not even what comes before it in the list.
            let list = [
                TokenRange {
                    start: tokens[0],
                    count: 1,
                },
                wraps[0],
            ];
            assert_errno(bench.return_tokens(&list), libc::EINVAL);
            bench.assert_held(&tokens);
            // The last number there is does not wrap.
            assert_eq!(
                bench.return_tokens(&[TokenRange {
                    start: u32::MAX,
                    count: 1
                }])?,
                0
            );
        }
        Provider::Builtin => {
            assert_eq!(tokens, [1, 2, 3]);
            assert_eq!(bench.return_tokens(&wraps)?, 2);
            bench.assert_held(&[3]);
        }
    }
    bench.finish()
}

fn tokens_of_another_socket() -> Outcome {
    let bench = Bench::new()?;
    let other = bench.pair.connect_to_queue(Ip::V4, PORT + 1, QUEUE)?;
    let tokens = bench.take(8)?;
    let theirs = take(&other, 2)?;
    // Numbers are each socket's own: the other socket knows two, and they are its own.
    assert_eq!(dontneed(&other.rx, &ranges(&tokens))?, theirs.len() as u32);
    bench.assert_held(&tokens);
    drop(other);
    bench.finish()
}

fn on_sockets_without_device_memory() -> Outcome {
    let bench = Bench::new()?;
    let tokens = bench.take(1)?;
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    assert_errno(dontneed(&udp, &ranges(&tokens)), libc::EBADF);
    let plain = bench
        .pair
        .rx
        .ns
        .run(|| std::net::TcpListener::bind("192.0.2.1:5009"))?;
    assert_eq!(dontneed(&plain, &ranges(&tokens))?, 0);
    bench.assert_held(&tokens);
    bench.finish()
}

fn recv_without_the_flag() -> Outcome {
    const LEN: usize = 10_000;
    let bench = Bench::new()?;
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
    bench.finish()
}

fn main() -> ExitCode {
    runner::run(tests![
        returns_each_once,
        a_range_of_tokens,
        bad_length,
        bad_address,
        more_than_128_ranges,
        more_than_1024_tokens,
        unknown_tokens,
        a_range_that_wraps,
        tokens_of_another_socket,
        on_sockets_without_device_memory,
        recv_without_the_flag,
    ])
}
