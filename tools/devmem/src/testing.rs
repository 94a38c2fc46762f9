// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What several tests need.

use std::io;
use std::net::IpAddr;
use std::net::TcpListener;
use std::net::TcpStream;

/// Both ends of a connection on this machine.
pub(crate) fn connection(ip: IpAddr) -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((ip, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}
