// SPDX-License-Identifier: GPL-2.0

//! A stream of bytes that tells of each byte where it belongs, and how it is received.

use std::io;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::LazyLock;
use std::thread;
use std::thread::ScopedJoinHandle;

use devmem::Piece;
use devmem::Receiver;
use devmem::TokenBatch;
use devmem::dmabuf::Mapping;

/// After so many bytes the stream repeats itself. A prime, so that no power of two of bytes looks like the
/// next.
pub const PERIOD: usize = 65_521;

/// The stream from every one of its first positions on, for a megabyte.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let period: Vec<u8> = (0..PERIOD)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    period
        .iter()
        .copied()
        .cycle()
        .take(PERIOD + (1 << 20))
        .collect()
});

/// The stream's bytes from a position on: up to a megabyte.
pub fn bytes(position: u64, len: usize) -> &'static [u8] {
    let start = (position % PERIOD as u64) as usize;
    &BYTES[start..start + len]
}

/// Sends a part of the stream, at most `chunk` bytes with a call.
pub fn send(mut socket: &TcpStream, position: u64, len: u64, chunk: usize) -> io::Result<()> {
    let end = position + len;
    let mut at = position;
    while at < end {
        let now = (end - at).min(chunk as u64) as usize;
        socket.write_all(bytes(at, now))?;
        at += now as u64;
    }
    Ok(())
}

/// Sends a part of the stream from another thread.
pub fn send_in<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    socket: &'scope TcpStream,
    position: u64,
    len: u64,
    chunk: usize,
) -> ScopedJoinHandle<'scope, io::Result<()>> {
    scope.spawn(move || send(socket, position, len, chunk))
}

/// Bytes that were sent and are not acknowledged yet.
pub fn unacknowledged(socket: &TcpStream) -> io::Result<i32> {
    bytes_in(socket, libc::TIOCOUTQ)
}

/// Bytes that have not been sent yet.
pub fn unsent(socket: &TcpStream) -> io::Result<i32> {
    const SIOCOUTQNSD: libc::Ioctl = 0x894b;
    bytes_in(socket, SIOCOUTQNSD)
}

/// Bytes that are there to be read.
pub fn unread(socket: &TcpStream) -> io::Result<i32> {
    bytes_in(socket, libc::FIONREAD)
}

fn bytes_in(socket: &TcpStream, request: libc::Ioctl) -> io::Result<i32> {
    let mut bytes = 0;
    // SAFETY: `bytes` is the argument of these ioctls, which only write it.
    match unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut bytes) } {
        0 => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Receives the stream and compares every byte of it.
#[derive(Debug)]
pub struct Reader<'s> {
    receiver: Receiver<'s>,
    batch: TokenBatch<'s>,
    /// Bindings by their numbers, and the memory of each.
    bindings: Vec<(u32, &'s Mapping)>,
    scratch: Vec<u8>,
    /// Position in the stream.
    pub position: u64,
    /// Pieces so far that lay in device memory.
    pub frags: u64,
    /// Bytes so far that did not.
    pub copied: u64,
    /// The longest piece so far.
    pub longest: u32,
}

impl<'s> Reader<'s> {
    /// Receives from a socket whose flow a binding of this memory serves.
    pub fn new(socket: &'s TcpStream, mapping: &'s Mapping, binding: u32) -> Self {
        let mut reader = Self::of_nothing(socket);
        reader.add_binding(binding, mapping);
        reader
    }

    /// Receives from a socket whose flow no binding serves yet.
    pub fn of_nothing(socket: &'s TcpStream) -> Self {
        Self::with_receiver(Receiver::new(socket), socket)
    }

    /// Receives up to so many bytes with a call.
    pub fn with_limit(
        socket: &'s TcpStream,
        mapping: &'s Mapping,
        binding: u32,
        limit: usize,
    ) -> Self {
        let receiver = Receiver::with_capacity(socket, limit, 512);
        let mut reader = Self::with_receiver(receiver, socket);
        reader.add_binding(binding, mapping);
        reader
    }

    fn with_receiver(receiver: Receiver<'s>, socket: &'s TcpStream) -> Self {
        Self {
            receiver,
            batch: TokenBatch::new(socket),
            bindings: Vec::new(),
            scratch: vec![0; 1 << 20],
            position: 0,
            frags: 0,
            copied: 0,
            longest: 0,
        }
    }

    /// Expects pieces of this binding.
    pub fn add_binding(&mut self, binding: u32, mapping: &'s Mapping) {
        self.bindings.push((binding, mapping));
    }

    /// Receives once, compares, and returns the tokens; false at the end of the stream.
    #[track_caller]
    pub fn read_some(&mut self) -> io::Result<bool> {
        let received = self.receiver.recv()?;
        if received.is_eof() {
            return Ok(false);
        }
        let (start, total) = (self.position, received.total());
        let readable = self
            .bindings
            .iter()
            .map(|(id, mapping)| Ok((*id, mapping.begin_read()?)))
            .collect::<io::Result<Vec<_>>>()?;
        for piece in received {
            let at = self.position;
            match piece {
                Piece::Frag(frag) => {
                    let id = frag.dmabuf_id;
                    let Some((_, cpu)) = readable.iter().find(|(known, _)| *known == id) else {
                        panic!("byte {at} lies in binding {id}, not in {:?}", self.bindings);
                    };
                    let to = &mut self.scratch[..frag.size as usize];
                    cpu.copy_out(frag.offset, to)?;
                    compare(at, to);
                    self.position += u64::from(frag.size);
                    self.frags += 1;
                    self.longest = self.longest.max(frag.size);
                    self.batch.push(frag.token)?;
                }
                Piece::Linear(bytes) | Piece::Plain(bytes) => {
                    compare(at, bytes);
                    self.position += bytes.len() as u64;
                    self.copied += bytes.len() as u64;
                }
            }
        }
        assert_eq!(
            self.position - start,
            total as u64,
            "the pieces of one call"
        );
        self.batch.flush()?;
        Ok(true)
    }

    /// Receives up to a position.
    #[track_caller]
    pub fn read_until(&mut self, position: u64) -> io::Result<()> {
        while self.position < position {
            let more = self.read_some()?;
            assert!(more, "the stream ended at {} of {position}", self.position);
        }
        assert_eq!(self.position, position, "more than what was sent");
        Ok(())
    }

    /// Tokens returned so far.
    pub fn returned(&self) -> u64 {
        self.batch.returned()
    }

    /// Checks that everything so far was device memory, and all of it has been returned.
    #[track_caller]
    pub fn assert_all_device_memory(&self) {
        assert_eq!(self.copied, 0, "bytes in host memory");
        assert!(self.frags > 0, "no frags at all");
        assert_eq!(self.returned(), self.frags, "tokens returned");
    }
}

/// Fails the test where `got` is not the stream from `position` on.
#[track_caller]
pub fn compare(position: u64, got: &[u8]) {
    let expected = bytes(position, got.len());
    if got != expected {
        let at = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
        panic!(
            "byte {} of the stream: {:#04x} instead of {:#04x} ({} bytes from {position} compared)",
            position + at as u64,
            got[at],
            expected[at],
            got.len()
        );
    }
}
