// SPDX-License-Identifier: GPL-2.0

//! A receiver that holds tokens for as long as it likes, and looks at the bytes again before it
//! returns them: nobody may have written there meanwhile.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use devmem::Piece;
use devmem::Receiver;
use devmem::dmabuf::Mapping;
use devmem::recv::take_runs;
use devmem::token;
use devmem::token::TokenRange;
use fastrand::Rng;

use crate::traffic;

/// Bytes and pieces of one call.
const BYTES: usize = 1 << 16;
const PIECES: usize = 64;

/// A piece of the stream that is not returned yet.
#[derive(Debug)]
struct Held {
    token: u32,
    position: u64,
    offset: u64,
    size: u32,
    memory: Arc<Mapping>,
}

impl Held {
    #[track_caller]
    fn check(&self) -> io::Result<()> {
        let mut bytes = vec![0; self.size as usize];
        self.memory
            .begin_read()?
            .copy_out(self.offset, &mut bytes)?;
        traffic::compare(self.position, &bytes);
        Ok(())
    }
}

/// Receives the stream of [`traffic`], in device memory or not, and compares every byte.
#[derive(Debug)]
pub struct Taker {
    /// The socket.
    pub socket: TcpStream,
    /// Position in the stream.
    pub position: u64,
    /// Pieces so far that lay in device memory.
    pub frags: u64,
    memories: Vec<(u32, Arc<Mapping>)>,
    held: Vec<Held>,
}

impl Taker {
    /// Receives from a socket, which none of these bindings need to serve.
    pub fn new(socket: TcpStream, memories: &[(u32, Arc<Mapping>)]) -> Self {
        // One of two takes one piece for what follows each other.
        if socket.as_raw_fd() % 2 == 0 {
            take_runs(&socket).expect("TCP_DEVMEM_RUNS");
        }
        Self {
            socket,
            position: 0,
            frags: 0,
            memories: memories.to_vec(),
            held: Vec::new(),
        }
    }

    /// Expects pieces of this binding, too.
    pub fn add(&mut self, binding: u32, memory: Arc<Mapping>) {
        self.memories.push((binding, memory));
    }

    /// How many tokens it holds.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Receives once, with these flags, and holds all tokens; false at the end of the stream.
    #[track_caller]
    pub fn take(&mut self, flags: i32) -> io::Result<bool> {
        let mut receiver = Receiver::with_capacity(&self.socket, BYTES, PIECES);
        let received = receiver.recv_flags(flags)?;
        if received.is_eof() {
            return Ok(false);
        }
        let mut at = self.position;
        let first = self.held.len();
        for piece in received {
            match piece {
                Piece::Frag(frag) => {
                    let id = frag.dmabuf_id;
                    let memory = self.memories.iter().find(|(known, _)| *known == id);
                    let (_, memory) = memory.expect("a piece of a binding of ours");
                    self.held.push(Held {
                        position: at,
                        offset: frag.offset,
                        size: frag.size,
                        memory: memory.clone(),
                        token: frag.token.into_id(),
                    });
                    at += u64::from(frag.size);
                    self.frags += 1;
                }
                Piece::Linear(bytes) | Piece::Plain(bytes) => {
                    traffic::compare(at, bytes);
                    at += bytes.len() as u64;
                }
            }
        }
        self.position = at;
        self.held[first..].iter().try_for_each(Held::check)?;
        Ok(true)
    }

    /// Receives until so many bytes have come.
    #[track_caller]
    pub fn take_until(&mut self, position: u64) -> io::Result<()> {
        while self.position < position {
            assert!(self.take(0)?, "the stream ended at {}", self.position);
        }
        Ok(())
    }

    /// Returns up to so many tokens, any of them.
    #[track_caller]
    pub fn give_back(&mut self, rng: &mut Rng, count: usize) -> io::Result<()> {
        let count = count.min(self.held.len()).min(token::MAX_RANGES);
        if count == 0 {
            return Ok(());
        }
        rng.shuffle(&mut self.held);
        let back = self.held.split_off(self.held.len() - count);
        back.iter().try_for_each(Held::check)?;
        let ranges: Vec<_> = back
            .iter()
            .map(|held| TokenRange {
                start: held.token,
                count: 1,
            })
            .collect();
        let returned = token::dontneed(&self.socket, &ranges)?;
        assert_eq!(returned as usize, count, "tokens returned");
        Ok(())
    }

    /// Checks once more what it holds.
    #[track_caller]
    pub fn check(&self) -> io::Result<()> {
        self.held.iter().try_for_each(Held::check)
    }
}
