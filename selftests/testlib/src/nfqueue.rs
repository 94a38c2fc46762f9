// SPDX-License-Identifier: GPL-2.0

//! A program that netfilter asks about packets, by a rule `queue num 0`, and which accepts all of them.

use std::io;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

const NETLINK_NETFILTER: i32 = 12;
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

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// Bytes of a `struct nlmsghdr`, and of the `struct nfgenmsg` behind it.
const NETLINK: usize = 16;
const HEADERS: usize = NETLINK + 4;

/// Queue 0 of a namespace. It takes no GSO packets: the kernel cuts them up before.
#[derive(Debug)]
pub struct Nfqueue {
    socket: OwnedFd,
    /// Packets so far.
    pub packets: u64,
    /// The most bytes of a packet that it was shown.
    pub longest: usize,
}

impl Nfqueue {
    /// Opens the queue of the calling thread's namespace, to be shown up to so many bytes of each packet.
    pub fn new(range: u32) -> io::Result<Self> {
        // SAFETY: Takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                NETLINK_NETFILTER,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let queue = Self {
            // SAFETY: The kernel just made this file descriptor for us.
            socket: unsafe { OwnedFd::from_raw_fd(fd) },
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
        self.send(CONFIG, NLM_F_REQUEST | NLM_F_ACK, kind, value)?;
        let mut answer = [0; 256];
        let len = self.recv(&mut answer, 0)?;
        let bytes = answer[..len].get(NETLINK..NETLINK + 4);
        let number = bytes.and_then(|bytes| bytes.try_into().ok());
        match number.map(i32::from_ne_bytes) {
            Some(0) if kind_of(&answer) == NLMSG_ERROR => Ok(()),
            Some(errno @ ..0) => Err(io::Error::from_raw_os_error(-errno)),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }

    /// A message with one attribute.
    fn send(&self, message: u16, flags: u16, kind: u16, value: &[u8]) -> io::Result<()> {
        let len = 4 + value.len();
        let mut bytes = Vec::new();
        bytes.extend(((HEADERS + len.next_multiple_of(4)) as u32).to_ne_bytes());
        bytes.extend(message.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence number and port, then family, version and the number of the queue.
        bytes.extend([0; 8]);
        bytes.extend([0; 4]);
        bytes.extend((len as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(HEADERS + len.next_multiple_of(4), 0);
        // SAFETY: `bytes` is readable for its length.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        match sent {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn recv(&self, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
        // SAFETY: `buffer` is writable for its length.
        let len = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                flags,
            )
        };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Accepts all packets that wait.
    pub fn accept(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let len = match self.recv(&mut buffer, libc::MSG_DONTWAIT) {
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
            self.send(VERDICT, NLM_F_REQUEST, VERDICT_HEADER, &verdict)?;
        }
    }
}

/// The type of a netlink message.
fn kind_of(message: &[u8]) -> u16 {
    u16::from_ne_bytes([message[4], message[5]])
}
