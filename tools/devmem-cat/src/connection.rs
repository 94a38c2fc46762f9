// SPDX-License-Identifier: GPL-2.0

//! Making the connection; and ending it early, when a signal asks for that.

use std::error::Error;
use std::io;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use nix::sys::socket::Shutdown;
use nix::sys::socket::shutdown;

use crate::args::CommonArgs;
use crate::error::context;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The socket that the program waits for.
static SOCKET: Mutex<Option<OwnedFd>> = Mutex::new(None);

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

/// From now on signals shut the socket down, so that the program comes to its end by itself, and puts
/// the device back as it was.
pub fn end_by_signal() -> Result<(), Box<dyn Error>> {
    ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::Relaxed);
        let socket = SOCKET.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = &*socket {
            // It may not be connected any more.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    })
    .map_err(context("signals"))
}

fn watch(socket: &impl AsFd) -> Result<(), Box<dyn Error>> {
    let socket = socket.as_fd().try_clone_to_owned()?;
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
    watch(&listener)?;
    Ok(Some(listener))
}

/// Accepts a connection, or connects.
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
    watch(&stream)?;
    Ok(stream)
}
