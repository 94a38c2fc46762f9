// SPDX-License-Identifier: GPL-2.0

//! Making the connection; and ending it early, when a signal asks for that.

use std::error::Error;
use std::io;
use std::io::Read;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use devmem::tcp::abort;
use devmem::tcp::reset_on_close;
use nix::sys::socket::Shutdown;
use nix::sys::socket::shutdown;

use crate::args::CommonArgs;
use crate::error::context;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The socket that the program waits for.
static SOCKET: Mutex<Option<Watched>> = Mutex::new(None);
/// How long the peer may take to end the connection before that is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// A socket that a signal ends.
enum Watched {
    Listener(OwnedFd),
    Connection(OwnedFd),
}

/// Whether a signal has ended the connection.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// What a transfer that was interrupted ends with.
pub fn check_interrupted() -> io::Result<()> {
    match interrupted() {
        true => Err(io::ErrorKind::Interrupted.into()),
        false => Ok(()),
    }
}

/// From now on signals end the connection, so that the program comes to its end by itself, and puts the device
/// back as it was. The peer gets a reset: this is not the end of the stream.
pub fn end_by_signal() -> Result<(), Box<dyn Error>> {
    ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::Relaxed);
        let socket = SOCKET.lock().unwrap_or_else(PoisonError::into_inner);
        // It may not be connected any more.
        let _ = match &*socket {
            Some(Watched::Listener(socket)) => shut_down(socket),
            // Some kernels do not abort what a call waits for. What is shut down is reset when it is closed.
            Some(Watched::Connection(socket)) => abort(socket).or_else(|_| shut_down(socket)),
            None => Ok(()),
        };
    })
    .map_err(context("signals"))
}

fn shut_down(socket: &OwnedFd) -> io::Result<()> {
    Ok(shutdown(socket.as_raw_fd(), Shutdown::Both)?)
}

fn watch(socket: Watched) -> Result<(), Box<dyn Error>> {
    *SOCKET.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    // The signal may have come before that.
    Ok(check_interrupted()?)
}

/// Listens, if that is what the options say.
pub fn listen(args: &CommonArgs) -> Result<Option<TcpListener>, Box<dyn Error>> {
    let Some(addr) = args.listen else {
        return Ok(None);
    };
    let listener = TcpListener::bind(addr).map_err(context(format!("listening on {addr}")))?;
    watch(Watched::Listener(listener.as_fd().try_clone_to_owned()?))?;
    Ok(Some(listener))
}

/// Accepts a connection, or connects. It ends by a reset, however this process ends, unless it comes to
/// [`finish`].
pub fn connect(
    args: &CommonArgs,
    listener: Option<TcpListener>,
) -> Result<TcpStream, Box<dyn Error>> {
    let stream = match (listener, args.connect) {
        (Some(listener), _) => listener.accept().map_err(context("accept"))?.0,
        (None, Some(addr)) => {
            TcpStream::connect(addr).map_err(context(format!("connecting to {addr}")))?
        }
        (None, None) => return Err("neither --listen nor --connect".into()),
    };
    // First of all: from here on the peer takes an end for that of the stream.
    reset_on_close(&stream, true).map_err(context("SO_LINGER"))?;
    watch(Watched::Connection(stream.as_fd().try_clone_to_owned()?))?;
    Ok(stream)
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
                    eprintln!(
                        "devmem-cat: waiting for the peer to end the connection (see --no-wait)"
                    );
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
        // The answer to that is a reset.
        std::thread::sleep(Duration::from_millis(100));
        wait_for_the_end(&a, true).unwrap_err();
    }
}
