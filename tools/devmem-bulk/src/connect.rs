// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The end that connects: its control connection, and its lanes.

use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::endpoint::Options;

/// What a control connection begins with, before any frame, from the end that connected: this, how many lanes there are,
/// and the ports that they come from.
pub(crate) const MAGIC: [u8; 4] = *b"DMBL";

/// Connects to an [`Acceptor`](crate::Acceptor): to where it listens for control connections, and to where it listens for
/// lanes, which is steered to bound queues there.
///
/// Answers on the lanes are received on the ports that this end chose; to have these steered, it binds sockets itself, and
/// uses [`over`].
///
/// Each of the connections may take `timeout`, and so may the peer's hello.
///
/// # Errors
///
/// Those of `connect()`; those of [`Endpoint::new`] and [`Endpoint::wait_open`].
pub fn connect(
    control: SocketAddr,
    data: SocketAddr,
    lanes: u16,
    options: Options,
    timeout: Duration,
) -> io::Result<Endpoint> {
    let control = TcpStream::connect_timeout(&control, timeout)?;
    let lanes = (0..lanes)
        .map(|_| TcpStream::connect_timeout(&data, timeout))
        .collect::<io::Result<_>>()?;
    over(control, lanes, options, timeout)
}

/// The same, over connections that are made already.
///
/// # Errors
///
/// Those of [`Endpoint::new`] and [`Endpoint::wait_open`]; those of `write()`.
pub fn over(
    control: TcpStream,
    lanes: Vec<TcpStream>,
    options: Options,
    timeout: Duration,
) -> io::Result<Endpoint> {
    (&control).write_all(&preamble(&lanes)?)?;
    let mut endpoint = Endpoint::new(control, lanes, options)?;
    endpoint.wait_open(timeout)?;
    Ok(endpoint)
}

/// What the control connection of these lanes begins with.
pub(crate) fn preamble(lanes: &[TcpStream]) -> io::Result<Vec<u8>> {
    let count = u16::try_from(lanes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut preamble = MAGIC.to_vec();
    preamble.extend(count.to_le_bytes());
    for lane in lanes {
        preamble.extend(lane.local_addr()?.port().to_le_bytes());
    }
    Ok(preamble)
}
