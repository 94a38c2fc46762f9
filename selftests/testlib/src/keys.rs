// SPDX-License-Identifier: GPL-2.0

//! Connections whose ends sign what they send: TCP-MD5 and TCP-AO.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use crate::pair::Connection;
use crate::pair::Ip;
use crate::pair::Pair;
use crate::pair::address;
use crate::pair::sender;
use crate::sockopt;

const TCP_MD5SIG: i32 = 14;
const TCP_AO_ADD_KEY: i32 = 38;
/// What both ends know.
const KEY: &[u8] = b"a key of the tests";
/// Bytes of a `struct sockaddr_storage`.
const ADDRESS: usize = 128;

/// How segments are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// RFC 2385. Can begin and end at any time.
    Md5,
    /// RFC 5925, by HMAC-SHA1. Begins with the connection.
    Ao,
}

impl Signature {
    /// Gives a socket the key for what it sends to, and receives from, a peer.
    pub fn begin(self, socket: &impl AsFd, peer: IpAddr) -> io::Result<()> {
        match self {
            Self::Md5 => md5(socket, peer, KEY),
            Self::Ao => ao(socket, peer),
        }
    }

    /// What counts received segments with a wrong signature, in the group `TcpExt`.
    pub fn failures(self) -> &'static str {
        match self {
            Self::Md5 => "TCPMD5Failure",
            Self::Ao => "TCPAOBad",
        }
    }
}

/// Has both ends of a connection sign from now on.
pub fn begin_md5(connection: &Connection, ip: Ip) -> io::Result<()> {
    Signature::Md5.begin(&connection.rx, sender(ip))?;
    Signature::Md5.begin(&connection.tx, address(ip, 0).ip())
}

/// Takes the keys from both ends.
pub fn end_md5(connection: &Connection, ip: Ip) -> io::Result<()> {
    md5(&connection.rx, sender(ip), &[])?;
    md5(&connection.tx, address(ip, 0).ip(), &[])
}

/// A connection that is signed from its first segment on.
pub fn connect(pair: &Pair, ip: Ip, port: u16, signature: Signature) -> io::Result<Connection> {
    let listener = pair.listen(ip, port)?;
    signature.begin(&listener, sender(ip))?;
    let socket = pair.tx.stream_socket(ip, libc::IPPROTO_TCP)?;
    signature.begin(&socket, address(ip, port).ip())?;
    pair.connect_by(socket, &listener)
}

/// A `struct sockaddr_storage` with this address and no port.
fn storage(address: IpAddr) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    let (family, at, octets) = match address {
        IpAddr::V4(address) => (libc::AF_INET, 4, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, 8, address.octets().to_vec()),
    };
    bytes[..2].copy_from_slice(&(family as libc::sa_family_t).to_ne_bytes());
    bytes[at..at + octets.len()].copy_from_slice(&octets);
    bytes
}

/// Sets the key for a peer, or deletes it if it is empty.
fn md5(socket: &impl AsFd, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    // struct tcp_md5sig: address, flags, length of the prefix, length of the key, device, key.
    const LEN: usize = ADDRESS + 8 + 80;
    let mut option = [0; LEN];
    option[..ADDRESS].copy_from_slice(&storage(peer));
    option[ADDRESS + 2..ADDRESS + 4].copy_from_slice(&(key.len() as u16).to_ne_bytes());
    option[ADDRESS + 8..ADDRESS + 8 + key.len()].copy_from_slice(key);
    sockopt::set(socket, libc::IPPROTO_TCP, TCP_MD5SIG, option)
}

fn ao(socket: &impl AsFd, peer: IpAddr) -> io::Result<()> {
    const ALGORITHM: &[u8] = b"hmac(sha1)";
    const ALGORITHM_LEN: usize = 64;
    /// Our number for the key, and theirs: the same at both ends.
    const ID: u8 = 100;
    let prefix = match peer {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    // struct tcp_ao_add: address, algorithm, device, flags and what is reserved, lengths and numbers, key.
    const NUMBERS: usize = ADDRESS + ALGORITHM_LEN + 10;
    const LEN: usize = NUMBERS + 6 + 80;
    let mut option = [0; LEN];
    option[..ADDRESS].copy_from_slice(&storage(peer));
    option[ADDRESS..ADDRESS + ALGORITHM.len()].copy_from_slice(ALGORITHM);
    // The length of the signature and other flags are as they are by default.
    let numbers = [prefix, ID, ID, 0, 0, KEY.len() as u8];
    option[NUMBERS..NUMBERS + 6].copy_from_slice(&numbers);
    option[NUMBERS + 6..NUMBERS + 6 + KEY.len()].copy_from_slice(KEY);
    sockopt::set(socket, libc::IPPROTO_TCP, TCP_AO_ADD_KEY, option)
}
