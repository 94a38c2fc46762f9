// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Connections that are being made, while other things happen.

use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::bind;
use nix::sys::socket::connect;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;

use super::Address;
use super::family;
use super::server::Made;
use crate::connect::preamble;

/// An end whose connections are not all made.
#[derive(Debug)]
pub(super) struct Connecting {
    /// The control connection comes first.
    sockets: Vec<Socket>,
    from: IpAddr,
    token: u64,
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    to: SocketAddr,
    is_made: bool,
}

impl Connecting {
    /// Begins to connect: lanes from that port, if it is not 0.
    pub(super) fn new(
        epoll: &Epoll,
        token: u64,
        from: SocketAddr,
        to: Address,
        lanes: u16,
    ) -> io::Result<Self> {
        let mut connecting = Self {
            sockets: Vec::new(),
            from: from.ip(),
            token,
        };
        let control = SocketAddr::new(to.ip, to.control);
        connecting.begin(epoll, 0, control)?;
        for _ in 0..lanes {
            connecting.begin(epoll, from.port(), SocketAddr::new(to.ip, to.lanes))?;
        }
        Ok(connecting)
    }

    fn begin(&mut self, epoll: &Epoll, port: u16, to: SocketAddr) -> io::Result<()> {
        let stream = begun(SocketAddr::new(self.from, port), to)?;
        let stream = match (attempt(&stream, to), port) {
            // There is one of that port already: what this one gets is not steered.
            (Err(nix::Error::EADDRNOTAVAIL), 1..) => {
                let stream = begun(SocketAddr::new(self.from, 0), to)?;
                attempt(&stream, to)?;
                stream
            }
            (result, _) => {
                result?;
                stream
            }
        };
        let flags = EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&stream, EpollEvent::new(flags, self.token))?;
        self.sockets.push(Socket {
            stream,
            to,
            is_made: false,
        });
        Ok(())
    }

    /// Whether all connections are made by now.
    pub(super) fn is_made(&mut self) -> io::Result<bool> {
        for socket in self.sockets.iter_mut().filter(|socket| !socket.is_made) {
            socket.is_made = attempt(&socket.stream, socket.to)?;
        }
        Ok(self.sockets.iter().all(|socket| socket.is_made))
    }

    /// What was made, once all of it is.
    pub(super) fn take(self, epoll: &Epoll) -> io::Result<Made> {
        let mut streams = Vec::new();
        for socket in self.sockets {
            epoll.delete(&socket.stream)?;
            socket.stream.set_nonblocking(false)?;
            streams.push(socket.stream);
        }
        let mut control = streams.remove(0);
        // There is room for that in any socket.
        control.write_all(&preamble(&streams)?)?;
        Ok((control, streams))
    }
}

fn begun(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(family(to.ip()), SockType::Stream, flags, None)?;
    if from.port() > 0 {
        setsockopt(&made, sockopt::ReuseAddr, &true)?;
        setsockopt(&made, sockopt::ReusePort, &true)?;
    }
    bind(made.as_raw_fd(), &SockaddrStorage::from(from))?;
    Ok(made.into())
}

/// Whether a connection is made, which is begun if it is not.
fn attempt(stream: &TcpStream, to: SocketAddr) -> nix::Result<bool> {
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::Error::EISCONN) => Ok(true),
        Err(nix::Error::EINPROGRESS | nix::Error::EALREADY | nix::Error::EINTR) => Ok(false),
        Err(err) => Err(err),
    }
}
