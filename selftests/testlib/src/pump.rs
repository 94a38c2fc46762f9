// SPDX-License-Identifier: GPL-2.0

//! A sender of the endless stream of [`traffic`] from a dma-buf.

use std::io;
use std::net::TcpStream;

use devmem::DmaBuf;
use devmem::completion;
use devmem::send::enable_zerocopy;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::traffic;
use crate::tx;
use crate::tx::Call;
use crate::tx::extent;

/// Most bytes of a call.
pub const MOST: u64 = 1 << 16;

/// Memory to send from: any piece of the stream, up to [`MOST`] bytes, is somewhere in it.
pub fn memory() -> io::Result<DmaBuf> {
    let memory = DmaBuf::udmabuf((traffic::PERIOD + MOST as usize).next_multiple_of(4096))?;
    tx::fill(&memory)?;
    Ok(memory)
}

/// Sends from a dma-buf that [`memory`] made.
#[derive(Debug)]
pub struct Pump {
    /// The socket.
    pub socket: TcpStream,
    /// Position in the stream.
    pub position: u64,
}

impl Pump {
    /// Sends on this socket.
    pub fn new(socket: TcpStream) -> io::Result<Self> {
        enable_zerocopy(&socket)?;
        Ok(Self {
            socket,
            position: 0,
        })
    }

    /// Sends up to so many bytes with one call, by this binding.
    pub fn send(&mut self, binding: u32, len: u64) -> io::Result<()> {
        let part = extent(self.position % traffic::PERIOD as u64, len);
        // Notifications that nobody takes would fill the socket's option memory.
        completion::read(&self.socket)?;
        self.position += Call::new(binding, &[part]).send(&self.socket)? as u64;
        Ok(())
    }
}

/// Has a socket throw away what is not delivered when it is closed.
pub fn reset_on_close(socket: &TcpStream) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(socket, sockopt::Linger, &linger)?)
}
