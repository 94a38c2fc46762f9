// SPDX-License-Identifier: GPL-2.0

//! A program that netfilter asks about packets, by a rule `queue num 0`, and which accepts all of them.

use std::io;
use std::io::ErrorKind;

use crate::netlink;
use crate::netlink::Socket;
use crate::netlink::attr;
use crate::netlink::kind_of;
use crate::netlink::message;
use crate::netlink::netfilter;

const SUBSYSTEM_QUEUE: u16 = 3;
const PACKET: u16 = SUBSYSTEM_QUEUE << 8;
const VERDICT: u16 = SUBSYSTEM_QUEUE << 8 | 1;
const CONFIG: u16 = SUBSYSTEM_QUEUE << 8 | 2;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_PARAMS: u16 = 2;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const PAYLOAD: u16 = 10;
const NF_ACCEPT: u32 = 1;
/// What comes before the attributes of a message.
const HEADERS: usize = netlink::HEADER + 4;

/// Queue 0 of a namespace. It takes no GSO packets: the kernel cuts them up before.
#[derive(Debug)]
pub struct Nfqueue {
    socket: Socket,
    /// Packets so far.
    pub packets: u64,
    /// The most bytes of a packet that it was shown.
    pub longest: usize,
}

impl Nfqueue {
    /// Opens the queue of the calling thread's namespace, to be shown up to so many bytes of each packet.
    pub fn new(range: u32) -> io::Result<Self> {
        let queue = Self {
            socket: Socket::open(netlink::NETFILTER)?,
            packets: 0,
            longest: 0,
        };
        let family = (libc::AF_INET as u16).to_be_bytes();
        queue.configure(CONFIG_COMMAND, &[COMMAND_BIND, 0, family[0], family[1]])?;
        let mut params = range.to_be_bytes().to_vec();
        params.push(COPY_PACKET);
        queue.configure(CONFIG_PARAMS, &params)?;
        Ok(queue)
    }

    fn configure(&self, kind: u16, value: &[u8]) -> io::Result<()> {
        let flags = netlink::REQUEST | netlink::ACK;
        let head = netfilter(libc::AF_UNSPEC, 0);
        self.socket
            .request(&message(CONFIG, flags, &head, &attr(kind, value)))
    }

    /// Accepts all packets that wait.
    pub fn accept(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let len = match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Too many at once: TCP sends the others again.
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(err) => return Err(err),
            };
            if kind_of(&buffer) != PACKET || len < HEADERS {
                return Err(ErrorKind::InvalidData.into());
            }
            let mut id = None;
            for (kind, value) in devmem::netlink::attributes(&buffer[HEADERS..len]) {
                match kind {
                    PACKET_HEADER => id = value.first_chunk::<4>().copied(),
                    PAYLOAD => self.longest = self.longest.max(value.len()),
                    _ => (),
                }
            }
            let id = id.ok_or(ErrorKind::InvalidData)?;
            self.packets += 1;
            let verdict = [NF_ACCEPT.to_be_bytes(), id].concat();
            let head = netfilter(libc::AF_UNSPEC, 0);
            let attrs = attr(VERDICT_HEADER, &verdict);
            self.socket
                .send(&message(VERDICT, netlink::REQUEST, &head, &attrs))?;
        }
    }
}
