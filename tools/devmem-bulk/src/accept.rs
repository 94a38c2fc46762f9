// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The end that is connected to: whose control connection that is, and which of the other connections are its lanes.

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::socket::Backlog;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::listen;
use nix::sys::socket::recv;

use crate::connect::MAGIC;
use crate::endpoint::Endpoint;
use crate::endpoint::Options;
use crate::protocol::wire::MAX_LANES;
use crate::stash::Stash;

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(1 << 31);
/// How often lanes are taken in while an endpoint waits for a hello, by its ring.
const OFTEN: Duration = Duration::from_millis(10);

/// Listens for ends that connect.
#[derive(Debug)]
pub struct Acceptor {
    control: TcpListener,
    data: TcpListener,
    stash: Stash,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Until when the end that is served has to be there.
    deadline: Instant,
    /// How old a connection may get that is nobody's.
    age: Duration,
}

impl Acceptor {
    /// Of two sockets that listen: one for control connections, which must not come by a bound queue, neither by
    /// steering nor by RSS, and one for lanes. From
    /// the first [`accept`](Self::accept) on neither waits in `accept()`, whoever else has it, and the queue of the one for
    /// lanes is as short as is said there.
    pub fn new(control: TcpListener, data: TcpListener) -> Self {
        Self {
            control,
            data,
            stash: Stash::default(),
        }
    }

    /// Waits for an end that connects, and for its lanes no longer than `timeout`.
    ///
    /// One end is served at a time: one that says nothing has all others wait for `timeout`.
    ///
    /// Connections to the port of lanes are taken in while this waits, for whatever. Those that belong to no end are closed
    /// after four times as long, those by which something has come at once, and next to nothing lands by the others. But
    /// before this is called they may be in the queue of the listening socket, and each lands as much as its receive buffer
    /// takes. There are no more than 65 of these: others are not answered, and try again.
    ///
    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) for one that says something else, or wants more lanes than
    /// [`Options::lanes`]; [`TimedOut`](io::ErrorKind::TimedOut) for one that does not go on; those of `accept()`, `recv()`
    /// and [`rcvbuf::shut`](devmem::rcvbuf::shut), and of [`Endpoint::new`] and [`Endpoint::wait_open`]. The next call waits
    /// for the next end.
    pub fn accept(&mut self, options: Options, timeout: Duration) -> io::Result<Endpoint> {
        self.listen()?;
        self.stash.serve(None);
        let age = timeout.saturating_mul(4);
        let (control, peer) = self.control(age)?;
        self.stash.serve(Some(peer.ip()));
        let deadline = deadline_in(timeout);
        let patience = Patience { deadline, age };
        let ports = self.ports_from(&control, options.lanes, patience)?;
        let lanes = ports
            .into_iter()
            .map(|port| self.lane(SocketAddr::new(peer.ip(), port), patience))
            .collect::<io::Result<Vec<_>>>()?;
        let mut endpoint = match Endpoint::new(control, lanes, options) {
            Err(err) if is_full(&err) => {
                // Nobody else could be served either, for as long as they get old.
                self.stash.clear();
                return Err(err);
            }
            other => other?,
        };
        self.open(&mut endpoint, patience)?;
        Ok(endpoint)
    }

    /// Nobody but this waits, and no more come at once than one end may have.
    fn listen(&self) -> io::Result<()> {
        self.control.set_nonblocking(true)?;
        self.data.set_nonblocking(true)?;
        Ok(listen(&self.data, Backlog::new(i32::from(MAX_LANES))?)?)
    }

    /// The next control connection.
    fn control(&mut self, age: Duration) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            let next = self.collect(age)?;
            if let Some(accepted) = make_room(&mut self.stash, || accept_one(&self.control))? {
                return Ok(accepted);
            }
            wait_for(&[&self.control, &self.data], next)?;
        }
    }

    /// The ports that the lanes come from.
    fn ports_from(
        &mut self,
        control: &TcpStream,
        most: u16,
        patience: Patience,
    ) -> io::Result<Vec<u16>> {
        let mut begin = [0; 6];
        self.read(control, &mut begin, patience)?;
        let [magic @ .., low, high] = begin;
        let count = u16::from_le_bytes([low, high]);
        if magic != MAGIC || count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "this is no end of a bulk connection",
            ));
        }
        if count > most.min(MAX_LANES) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{count} lanes are too many"),
            ));
        }
        let mut ports = vec![0; 2 * usize::from(count)];
        self.read(control, &mut ports, patience)?;
        let ports = ports.chunks_exact(2);
        Ok(ports
            .map(|port| u16::from_le_bytes([port[0], port[1]]))
            .collect())
    }

    /// Fills `to` from a control connection, and takes no longer, however little comes at once. The end there makes all of
    /// its lanes before it says a word, so these are taken in meanwhile.
    fn read(
        &mut self,
        control: &TcpStream,
        mut to: &mut [u8],
        patience: Patience,
    ) -> io::Result<()> {
        while !to.is_empty() {
            let next = self.collect(patience.age)?;
            if Instant::now() >= patience.deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // The endpoint's ring waits by itself only where the socket would.
            match recv(control.as_raw_fd(), to, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => to = &mut to[read..],
                Err(Errno::EINTR) => (),
                Err(Errno::EAGAIN) => {
                    wait_for(&[control, &self.data], patience.until(next))?;
                }
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }

    /// The lane that comes from there.
    fn lane(&mut self, from: SocketAddr, patience: Patience) -> io::Result<TcpStream> {
        loop {
            let next = self.collect(patience.age)?;
            if let Some(socket) = self.stash.take(from)? {
                return Ok(socket);
            }
            if Instant::now() >= patience.deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            wait_for(&[&self.data], patience.until(next))?;
        }
    }

    /// Waits for the hello of an end.
    fn open(&mut self, endpoint: &mut Endpoint, patience: Patience) -> io::Result<()> {
        loop {
            self.collect(patience.age)?;
            let left = patience.deadline.saturating_duration_since(Instant::now());
            if endpoint.opens_within(left.min(OFTEN))? {
                return Ok(());
            }
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Takes in the lanes that have come, and closes those that nobody has asked for. Tells when that is the case of the
    /// next one.
    fn collect(&mut self, age: Duration) -> io::Result<Option<Instant>> {
        // First, as these may be what keeps others from being accepted.
        self.stash.close_after(age);
        // However fast others come, somebody waits for this.
        for _ in 0..MAX_LANES {
            let accepted = make_room(&mut self.stash, || accept_one(&self.data))?;
            let Some((socket, from)) = accepted else {
                break;
            };
            self.stash.add(from, socket)?;
        }
        Ok(self.stash.close_after(age))
    }
}

impl Patience {
    /// When to look again, if something is to be done then.
    fn until(&self, next: Option<Instant>) -> Option<Instant> {
        next.into_iter().chain([self.deadline]).min()
    }
}

/// Accepts a connection, and closes connections of nobody's for as long as there are too many.
fn make_room<R>(
    stash: &mut Stash,
    mut accept: impl FnMut() -> io::Result<Option<R>>,
) -> io::Result<Option<R>> {
    loop {
        match accept() {
            Err(err) if is_full(&err) && stash.close_one() => (),
            other => return other,
        }
    }
}

/// Whether there are no descriptors left.
fn is_full(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// A connection, if there is one now.
pub(crate) fn accept_one(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    loop {
        match listener.accept() {
            Ok(accepted) => return Ok(Some(accepted)),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // Nor does one that is over before it is accepted matter.
            Err(err) if err.raw_os_error() == Some(libc::ECONNABORTED) => (),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => (),
            Err(err) => return Err(err),
        }
    }
}

/// Waits until one of these may have something, until then, or until a signal comes.
fn wait_for(sockets: &[&dyn AsFd], until: Option<Instant>) -> io::Result<()> {
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        // Rounded up: else the last millisecond was spent asking.
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    let mut fds: Vec<_> = sockets
        .iter()
        .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// That long from now on.
fn deadline_in(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now + FOR_EVER)
}
