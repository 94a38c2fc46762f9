// SPDX-License-Identifier: GPL-2.0

//! Runs inputs against the world.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use devmem::cmsg;
use devmem::cmsg::DevmemCmsg;
use devmem::cmsg::DevmemCmsgs;
use devmem::recv::MSG_SOCK_DEVMEM;
use devmem::token::SO_DEVMEM_DONTNEED;

use crate::input::CmsgEdit;
use crate::input::Input;
use crate::input::Netlink;
use crate::input::Number;
use crate::input::Op;
use crate::input::Place;
use crate::input::Receive;
use crate::input::Request;
use crate::input::Return;
use crate::input::Send;
use crate::input::SendSocket;
use crate::input::Socket;
use crate::kcov::Kcov;
use crate::memory::Memory;
use crate::request;
use crate::world::World;

/// What a call is given, unless it is to have less.
const ROOM: usize = 32 * cmsg::SPACE;
const DATA: usize = 1 << 16;
const SEND: u64 = 4096;
/// Parts of a call, at most.
const PARTS: usize = 8;
/// Longer control messages the kernel refuses at once (`net.core.optmem_max`).
const MAX_CONTROL: usize = 16 << 10;
/// No call may block, nor end the program.
const NO_WAIT: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Memory that calls are pointed to.
#[derive(Debug)]
pub struct Executor {
    control: Memory,
    data: Memory,
    answer: Vec<u8>,
}

impl Executor {
    /// Makes it.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            control: Memory::new()?,
            data: Memory::new()?,
            answer: vec![0; 64 << 10],
        })
    }

    /// Runs an input, and takes back what it left. Returns the instructions that it has reached.
    pub fn run(
        &mut self,
        input: &Input,
        world: &mut World,
        kcov: &Kcov,
    ) -> io::Result<BTreeSet<u64>> {
        let mut reached = BTreeSet::new();
        let mut bound = Vec::new();
        for op in input.decode() {
            kcov.reset();
            self.operate(&op, world, &mut bound)?;
            reached.append(&mut kcov.trace());
        }
        kcov.reset();
        for netlink in bound {
            world.reopen(netlink)?;
        }
        world.settle()?;
        // What tokens come back by is of interest, too.
        reached.append(&mut kcov.trace());
        Ok(reached)
    }

    fn operate(&mut self, op: &Op, world: &mut World, bound: &mut Vec<Netlink>) -> io::Result<()> {
        match op {
            Op::Feed(len) => world.feed(*len),
            Op::Request(request) => {
                if self.request(request, world) {
                    bound.push(request.socket);
                }
            }
            Op::Receive(receive) => self.receive(receive, world),
            Op::Send(send) => self.send(send, world),
            Op::Return(what) => self.give_back(what, world),
            Op::Ask(place, socket) => self.ask(*place, *socket, world),
            Op::Reopen(netlink) => world.reopen(*netlink)?,
            Op::Shutdown(socket, how) => shutdown(*socket, *how, world),
        }
        Ok(())
    }

    /// Sends a request, and reads what is answered; tells whether something was bound.
    fn request(&mut self, request: &Request, world: &World) -> bool {
        let bytes = request::encode(request, world.family, |number| world.number(number));
        let fd = world.netlink(request.socket).as_raw_fd();
        // SAFETY: `bytes` is readable for its length.
        unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), NO_WAIT) };
        let mut bound = false;
        loop {
            // SAFETY: `answer` is writable for its length.
            let ret = unsafe {
                libc::recv(
                    fd,
                    self.answer.as_mut_ptr().cast(),
                    self.answer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let Ok(len) = usize::try_from(ret) else {
                return bound;
            };
            bound |= request::says_bound(&self.answer[..len], world.family);
        }
    }

    fn receive(&self, receive: &Receive, world: &mut World) {
        let first = (receive.first, DATA - usize::from(receive.less_data));
        let others = receive
            .data
            .iter()
            .map(|(place, len)| (*place, world.number(*len) as usize));
        let mut iov: Vec<_> = std::iter::once(first)
            .chain(others)
            .take(PARTS)
            .map(|(place, len)| libc::iovec {
                iov_base: self.data.address(place),
                iov_len: len,
            })
            .collect();
        // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
        let mut msg: libc::msghdr = unsafe { mem::zeroed() };
        msg.msg_iov = iov.as_mut_ptr();
        msg.msg_iovlen = iov.len();
        msg.msg_control = self.control.address(receive.control);
        msg.msg_controllen = ROOM.saturating_sub(receive.less_control.into());
        let flags = (MSG_SOCK_DEVMEM ^ receive.flags as i32) | NO_WAIT;
        // SAFETY: `msg` points to iovecs, and to memory that the kernel may write as far as it can: the
        // mappings of `self` are followed by memory that is not there, and no reference into them exists.
        let ret =
            unsafe { libc::recvmsg(world.socket(receive.socket).as_raw_fd(), &mut msg, flags) };
        if ret < 0 || receive.socket != Socket::Rx || !matches!(receive.control, Place::Good) {
            return;
        }
        let frags = DevmemCmsgs::new(self.control.bytes(msg.msg_controllen));
        world.held.extend(frags.filter_map(|piece| match piece {
            DevmemCmsg::Dmabuf(frag) => Some(frag.frag_token),
            DevmemCmsg::Linear(_) => None,
        }));
    }

    fn send(&mut self, send: &Send, world: &World) {
        let usual = (
            u64::from(world.number(send.offset)),
            SEND - u64::from(send.less),
        );
        let parts = send.parts.iter().map(|(offset, len)| {
            (
                u64::from(world.number(*offset)),
                u64::from(world.number(*len)),
            )
        });
        let mut iov: Vec<_> = std::iter::once(usual)
            .chain(parts)
            .take(PARTS)
            .map(|(offset, len)| libc::iovec {
                iov_base: std::ptr::with_exposed_provenance_mut(offset as usize),
                iov_len: len as usize,
            })
            .collect();
        let control = control_of(send, world);
        // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
        let mut msg: libc::msghdr = unsafe { mem::zeroed() };
        msg.msg_iov = iov.as_mut_ptr();
        msg.msg_iovlen = iov.len();
        msg.msg_control = self.control.filled(send.control, &control);
        msg.msg_controllen = control.len();
        let socket = match send.socket {
            SendSocket::Usual => Socket::Tx,
            SendSocket::Other(socket) => socket,
        };
        let flags = (libc::MSG_ZEROCOPY ^ send.flags as i32) | NO_WAIT;
        // SAFETY: `msg` points to iovecs and a control buffer. What the iovecs say are offsets; where the
        // kernel takes them for addresses it only reads, or refuses.
        unsafe { libc::sendmsg(world.socket(socket).as_raw_fd(), &msg, flags) };
    }

    fn give_back(&mut self, what: &Return, world: &World) {
        let one = [(Number::Token(0), Number::Small(1))];
        let ranges: &[_] = match what.ranges.as_slice() {
            [] => &one,
            ranges => ranges,
        };
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|&(start, count)| [world.number(start), world.number(count)])
            .flat_map(u32::to_ne_bytes)
            .collect();
        let len = what
            .length
            .map_or(bytes.len() as u32, |length| world.number(length));
        // SAFETY: The kernel only reads what it is pointed to, as far as it is there.
        unsafe {
            libc::setsockopt(
                world.socket(what.socket).as_raw_fd(),
                libc::SOL_SOCKET,
                SO_DEVMEM_DONTNEED,
                self.control.filled(what.place, &bytes),
                len,
            )
        };
    }

    fn ask(&self, place: Place, socket: Socket, world: &World) {
        let mut len = size_of::<i32>() as libc::socklen_t;
        // SAFETY: The kernel writes to the memory of `self` as far as it is there, and no reference into
        // it exists.
        unsafe {
            libc::getsockopt(
                world.socket(socket).as_raw_fd(),
                libc::SOL_SOCKET,
                SO_DEVMEM_DONTNEED,
                self.control.address(place),
                &mut len,
            )
        };
    }
}

/// The control messages of a call.
fn control_of(send: &Send, world: &World) -> Vec<u8> {
    const LEVELS: [i32; 4] = [
        libc::SOL_SOCKET,
        libc::IPPROTO_IP,
        libc::IPPROTO_TCP,
        libc::IPPROTO_IPV6,
    ];
    let level = |index: u8| LEVELS[usize::from(index) % LEVELS.len()];
    let (mut own_level, mut kind) = (libc::SOL_SOCKET, cmsg::SCM_DEVMEM_DMABUF);
    let mut data = world.number(Number::TxBinding).to_ne_bytes().to_vec();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let (mut length, mut cut, mut none) = (None, 0, false);
    for edit in &send.edits {
        match edit {
            CmsgEdit::Level(index) => own_level = level(*index),
            CmsgEdit::Kind(other) => kind = (*other).into(),
            CmsgEdit::Binding(number) => data = world.number(*number).to_ne_bytes().to_vec(),
            CmsgEdit::Length(error) => {
                let right = (cmsg::encode(0, 0, &[]).len() + data.len()) as u64;
                length = Some(right.wrapping_add_signed((*error).into()));
            }
            CmsgEdit::LongLength(other) => length = Some(*other),
            CmsgEdit::Data(other) => data.clone_from(other),
            CmsgEdit::Before(index, kind, data) => {
                before.extend(cmsg::encode(level(*index), (*kind).into(), data));
            }
            CmsgEdit::After(index, kind, data) => {
                after.extend(cmsg::encode(level(*index), (*kind).into(), data));
            }
            CmsgEdit::Cut(bytes) => cut = usize::from(*bytes),
            CmsgEdit::None => none = true,
        }
    }
    if none {
        return Vec::new();
    }
    let mut own = cmsg::encode(own_level, kind, &data);
    if let Some(length) = length {
        own[..8].copy_from_slice(&length.to_ne_bytes());
    }
    let mut control = [before, own, after].concat();
    control.truncate(control.len().saturating_sub(cut).min(MAX_CONTROL));
    control
}

fn shutdown(socket: Socket, how: u8, world: &World) {
    // SAFETY: Takes no pointers.
    unsafe { libc::shutdown(world.socket(socket).as_raw_fd(), (how % 3).into()) };
}
