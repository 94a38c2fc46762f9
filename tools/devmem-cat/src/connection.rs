// SPDX-License-Identifier: GPL-2.0

//! Making connections; and ending them early, when a signal asks for that.

use std::error::Error;
use std::io;
use std::io::Read;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use devmem::tcp::abort;
use devmem::tcp::reset_on_close;
use nix::sys::socket::Shutdown;
use nix::sys::socket::shutdown;

use crate::args::CommonArgs;
use crate::error::Fallible;
use crate::error::context;
use crate::signal;
use crate::tell;

/// The sockets that the program waits for.
static SOCKETS: Mutex<Vec<Watched>> = Mutex::new(Vec::new());
/// How long the peer may take to end the connection before that is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// A socket that a signal ends.
struct Watched {
    /// The number that the process knows it by.
    name: i32,
    socket: OwnedFd,
    listens: bool,
}

/// What a transfer that was interrupted ends with.
pub fn check_interrupted() -> io::Result<()> {
    match signal::came() {
        true => Err(io::ErrorKind::Interrupted.into()),
        false => Ok(()),
    }
}

/// Ends all that the program waits for. Peers get a reset: this is not the end of the stream.
pub fn abort_all() {
    for watched in SOCKETS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        let socket = &watched.socket;
        // It may not be connected any more.
        let _ = match watched.listens {
            true => shut_down(socket),
            // Some kernels do not abort what a call waits for. What is shut down is reset when it is closed.
            false => abort(socket).or_else(|_| shut_down(socket)),
        };
    }
}

fn shut_down(socket: &OwnedFd) -> io::Result<()> {
    Ok(shutdown(socket.as_raw_fd(), Shutdown::Both)?)
}

/// Has a signal end a socket that the program waits for.
pub fn watch(socket: impl AsFd, listens: bool) -> io::Result<()> {
    let fd = socket.as_fd();
    let watched = Watched {
        name: fd.as_raw_fd(),
        socket: fd.try_clone_to_owned()?,
        listens,
    };
    SOCKETS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(watched);
    // The signal may have come before that.
    check_interrupted()
}

/// Closes what was kept of it.
pub fn unwatch(socket: impl AsFd) {
    let name = socket.as_fd().as_raw_fd();
    let mut sockets = SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    sockets.retain(|watched| watched.name != name);
}

/// A connection, which ends by a reset, however this process ends, unless it comes to [`finish()`](finish).
pub struct Connection {
    /// The socket.
    pub stream: TcpStream,
    /// Where the other end is.
    pub peer: String,
}

impl Connection {
    fn new(stream: TcpStream, args: &CommonArgs, how: &str) -> Fallible<Self> {
        // First of all: from here on the peer takes an end for that of the stream.
        reset_on_close(&stream, true).map_err(context("SO_LINGER"))?;
        watch(&stream, false)?;
        let peer = stream
            .peer_addr()
            .map_or_else(|_| "unknown".into(), |addr| addr.to_string());
        if !args.quiet {
            tell::say(format_args!("{how} {peer}"));
        }
        Ok(Self { stream, peer })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        unwatch(&self.stream);
    }
}

/// Where connections come from.
pub enum Source {
    /// They come here.
    Listener(TcpListener),
    /// They are made to this.
    To(String),
}

impl Source {
    /// Listens, if that is what the options say, and tells it after `prepare` for that address.
    pub fn new(
        args: &CommonArgs,
        prepare: impl FnOnce(SocketAddr) -> Fallible<()>,
    ) -> Fallible<Self> {
        let Some(to) = &args.listen else {
            let to = args.connect.clone();
            return Ok(Self::To(to.ok_or("neither --listen nor --connect")?));
        };
        let listener = TcpListener::bind(to).map_err(context(format!("listening on {to}")))?;
        let address = listener.local_addr()?;
        watch(&listener, true)?;
        let source = Self::Listener(listener);
        prepare(address)?;
        if !args.quiet {
            tell::say(format_args!("listening on {address}"));
        }
        Ok(source)
    }

    /// The next connection.
    pub fn next(&self, args: &CommonArgs) -> Fallible<Connection> {
        match self {
            Self::Listener(listener) => {
                let (stream, _) = listener.accept().map_err(context("accept"))?;
                Connection::new(stream, args, "connection from")
            }
            Self::To(to) => {
                let stream =
                    TcpStream::connect(to).map_err(context(format!("connecting to {to}")))?;
                Connection::new(stream, args, "connected to")
            }
        }
    }
}

/// From then on who connects is refused.
impl Drop for Source {
    fn drop(&mut self) {
        if let Self::Listener(listener) = self {
            unwatch(&*listener);
        }
    }
}

/// What came of connections. Of several each tells by itself why it failed, of one the caller does.
pub struct Outcomes {
    several: bool,
    failed: Mutex<(u32, Option<Box<dyn Error + Send + Sync>>)>,
}

impl Outcomes {
    /// Of several or one.
    pub fn new(several: bool) -> Self {
        Self {
            several,
            failed: Mutex::new((0, None)),
        }
    }

    /// That of a connection.
    pub fn note(&self, peer: &str, result: Fallible<()>) {
        let Err(err) = result else {
            return;
        };
        if self.several {
            tell::say(format_args!("{peer}: {err}"));
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.0 += 1;
        failed.1 = Some(err);
    }

    /// That of all, so many.
    pub fn all(self, count: u32) -> Fallible<()> {
        match self
            .failed
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            (_, None) => Ok(()),
            (failed, _) if self.several => {
                Err(format!("{failed} of {count} connections failed").into())
            }
            (_, Some(err)) => Err(err),
        }
    }
}

/// All is well: ends the connection in good order.
pub fn finish(stream: &TcpStream) -> io::Result<()> {
    check_interrupted()?;
    reset_on_close(stream, false)?;
    match stream.shutdown(std::net::Shutdown::Both) {
        // The peer has ended it already, which is as good.
        Err(err) if err.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

/// Waits until the peer ends the connection, which it does when it has dealt with all that it was sent. Fails
/// if it does that by a reset.
///
/// That the kernel no longer needs what was sent does not say that the peer has it: a reset frees it as well.
pub fn wait_for_the_end(mut stream: &TcpStream, quiet: bool) -> io::Result<()> {
    let mut ignored = [0; 4096];
    let mut told = quiet;
    stream.set_read_timeout(Some(PATIENCE))?;
    loop {
        match stream.read(&mut ignored) {
            Ok(0) => break,
            Ok(_) => (),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => (),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                if !told {
                    tell::say("waiting for the peer to end the connection (see --no-wait)");
                }
                told = true;
            }
            Err(err) => return Err(err),
        }
        check_interrupted()?;
    }
    check_error(stream)
}

/// Fails if the connection was reset meanwhile.
pub fn check_error(stream: &TcpStream) -> io::Result<()> {
    check_interrupted()?;
    stream.take_error()?.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn what_came_of_connections() {
        for (several, expected) in [(false, "why"), (true, "1 of 2 connections failed")] {
            let outcomes = Outcomes::new(several);
            outcomes.note("one", Ok(()));
            outcomes.note("two", Err("why".into()));
            assert_eq!(outcomes.all(2).unwrap_err().to_string(), expected);
            Outcomes::new(several).all(2).unwrap();
        }
    }

    #[test]
    fn a_host_by_its_name() {
        use crate::args::Cli;
        use crate::args::Command;
        use clap::Parser;

        let send = |how: &str, to: &str| {
            let words = ["devmem-cat", "send", "--quiet", "-i", "lo", how, to];
            match Cli::parse_from(words).command {
                Command::Send(args) => args.common,
                _ => unreachable!("a sender"),
            }
        };
        let here = send("-l", "localhost:0");
        let source = Source::new(&here, |_| Ok(())).unwrap();
        let Source::Listener(listener) = &source else {
            panic!("it does not listen");
        };
        let addr = listener.local_addr().unwrap();
        let there = send("-c", &format!("localhost:{}", addr.port()));
        let to = Source::new(&there, |_| Ok(())).unwrap();
        assert_eq!(to.next(&there).unwrap().peer, addr.to_string());
        drop(source);
        assert!(to.next(&there).is_err(), "somebody still listens");
        let nowhere = send("-c", "no-such-host.invalid:1");
        assert!(
            Source::new(&nowhere, |_| Ok(()))
                .unwrap()
                .next(&nowhere)
                .is_err()
        );
    }

    #[test]
    fn an_end_in_good_order() {
        for answer in [&b""[..], b"something that nobody asked for"] {
            let (a, mut b) = connection();
            for socket in [&a, &b] {
                reset_on_close(socket, true).unwrap();
            }
            (&a).write_all(b"all").unwrap();
            a.shutdown(std::net::Shutdown::Write).unwrap();
            let mut read = Vec::new();
            b.read_to_end(&mut read).unwrap();
            assert_eq!(read, b"all");
            b.write_all(answer).unwrap();
            finish(&b).unwrap();
            drop(b);
            wait_for_the_end(&a, true).unwrap();
            finish(&a).unwrap();
        }
    }

    #[test]
    fn a_peer_that_gives_up() {
        // With all of it read, and with none.
        for reads in [true, false] {
            let (a, mut b) = connection();
            reset_on_close(&b, true).unwrap();
            (&a).write_all(b"all").unwrap();
            a.shutdown(std::net::Shutdown::Write).unwrap();
            if reads {
                b.read_to_end(&mut Vec::new()).unwrap();
            }
            drop(b);
            let err = wait_for_the_end(&a, true).unwrap_err();
            assert_eq!(err.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    /// A peer that does nothing about `SO_LINGER`, ended its side, and is gone before all has come.
    #[test]
    fn a_peer_that_leaves_in_between() {
        let (a, b) = connection();
        drop(b);
        let mut byte = [0];
        assert_eq!(a.peek(&mut byte).unwrap(), 0);
        (&a).write_all(b"more").unwrap();
        a.shutdown(std::net::Shutdown::Write)
            .or_else(|err| match err.kind() {
                io::ErrorKind::NotConnected => Ok(()),
                _ => Err(err),
            })
            .unwrap();
        // The answer to that is a reset, after which there is no peer.
        while a.peer_addr().is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        wait_for_the_end(&a, true).unwrap_err();
    }
}
