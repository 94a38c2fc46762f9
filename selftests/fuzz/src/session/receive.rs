// SPDX-License-Identifier: GPL-2.0

//! `recvmsg()` and `read()`: the call, what it brought, and whether that is the stream.

use std::ffi::c_void;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use devmem::cmsg::Cmsgs;
use devmem::cmsg::DevmemCmsg;
use devmem::cmsg::DevmemCmsgs;
use devmem::cmsg::DmabufCmsg;
use devmem::cmsg::SCM_DEVMEM_DMABUF;
use devmem::cmsg::SCM_DEVMEM_LINEAR;
use devmem_testlib::sockopt;

use super::Session;
use crate::arena::IOVECS;
use crate::arena::UNTOUCHED;
use crate::flow::Flow;
use crate::flow::Held;
use crate::op::Buffer;
use crate::saw::Failed;
use crate::saw::Piece;
use crate::saw::Received;
use crate::saw::Saw;

/// What the kernel answered.
struct Answer {
    result: Result<u64, Failed>,
    flags: i32,
    control: Vec<u8>,
    data: Vec<u8>,
    /// Whether a data buffer is not all there.
    missing: bool,
}

impl Session<'_> {
    /// Calls `read()`.
    pub(super) fn read(&mut self, flow: &mut Flow, bytes: u32) -> io::Result<Saw> {
        let buffer = Buffer::new(bytes);
        let to: *mut c_void = self.arenas.data[0].prepare(buffer);
        // SAFETY: `to` is writable for so many bytes.
        let ret = unsafe { libc::read(flow.rx.as_raw_fd(), to, bytes as usize) };
        let answer = Answer {
            result: count(ret),
            flags: 0,
            control: Vec::new(),
            data: self.arenas.data(&[buffer]),
            missing: false,
        };
        // Neither has a read a number of connection to tell, nor does it give tokens.
        self.look(0, flow, 0, None, answer)
    }

    /// Calls `recvmsg()`.
    pub(super) fn receive(
        &mut self,
        number: u8,
        flow: &mut Flow,
        flags: i32,
        data: &[Buffer],
        control: Buffer,
    ) -> io::Result<Saw> {
        let data = &data[..data.len().min(IOVECS)];
        let peek_offset = match flags & libc::MSG_PEEK {
            0 => None,
            _ => u64::try_from(sockopt::get(&flow.rx, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?).ok(),
        };
        let mut iovecs = self.arenas.iovecs(data);
        // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
        let mut msg: libc::msghdr = unsafe { mem::zeroed() };
        msg.msg_iov = iovecs.as_mut_ptr();
        msg.msg_iovlen = iovecs.len();
        msg.msg_control = self.arenas.control.prepare(control);
        msg.msg_controllen = control.len();
        // SAFETY: `msg` points to buffers that are writable, or known to the kernel as not mapped, and
        // nothing else refers to them during the call.
        let ret = unsafe { libc::recvmsg(flow.rx.as_raw_fd(), &mut msg, flags) };

        let result = count(ret);
        let told = match result {
            Ok(_) => msg.msg_controllen.min(control.good as usize),
            Err(_) => 0,
        };
        let answer = Answer {
            result,
            flags: if result.is_ok() { msg.msg_flags } else { 0 },
            control: self.arenas.control.good(control)[..told].to_vec(),
            data: self.arenas.data(data),
            missing: data.iter().any(|buffer| buffer.missing != 0),
        };
        self.look(number, flow, flags, peek_offset, answer)
    }

    /// Takes what came, and checks that it is the stream.
    fn look(
        &mut self,
        number: u8,
        flow: &mut Flow,
        flags: i32,
        peek_offset: Option<u64>,
        answer: Answer,
    ) -> io::Result<Saw> {
        let mut position = flow.read + peek_offset.unwrap_or(0);
        let told: Vec<_> = DevmemCmsgs::new(&answer.control).collect();
        let mut copied = 0;
        let mut pieces = Vec::new();
        for cmsg in &told {
            pieces.push(match cmsg {
                DevmemCmsg::Linear(size) => {
                    let end = copied + *size as usize;
                    self.check_copied(flow, position, answer.data.get(copied..end));
                    copied = end;
                    position += u64::from(*size);
                    Piece::Linear(*size)
                }
                DevmemCmsg::Dmabuf(frag) => {
                    let piece = self.take(number, flow, position, frag)?;
                    position += u64::from(frag.frag_size);
                    piece
                }
            });
        }
        if let Ok(bytes) = answer.result {
            let skipped = flags & libc::MSG_TRUNC != 0;
            if told.is_empty() && !skipped {
                copied = bytes as usize;
                self.check_copied(flow, position, answer.data.get(..copied));
                position += bytes;
            }
            // A piece that does not fit in what is there is not received, but its first bytes were copied.
            let torn = |at: usize, byte: u8| {
                answer.missing && flow.matches(position + (at - copied) as u64, &[byte])
            };
            let mut behind = answer.data.iter().enumerate().skip(copied);
            if behind.any(|(at, &byte)| byte != UNTOUCHED && !torn(at, byte)) {
                self.fault("bytes were written behind those that were received");
            }
            let sum: u64 = told.iter().map(size).sum();
            if !told.is_empty() && sum != bytes {
                self.fault(format!("{bytes} bytes received, {sum} in the pieces"));
            }
            if flags & libc::MSG_PEEK == 0 {
                flow.read += bytes;
            }
        }
        let left = inq(flow);
        if left == Ok(0) {
            flow.queued = 0;
        }
        Ok(Saw::Received(Received {
            result: answer.result,
            flags: answer.flags,
            pieces,
            others: others(&answer.control),
            left,
        }))
    }

    fn check_copied(&mut self, flow: &Flow, position: u64, bytes: Option<&[u8]>) {
        if !bytes.is_some_and(|bytes| flow.matches(position, bytes)) {
            self.fault(format!("other bytes than those from {position} on"));
        }
    }

    /// Takes a piece in device memory, and its token.
    fn take(
        &mut self,
        number: u8,
        flow: &mut Flow,
        position: u64,
        frag: &DmabufCmsg,
    ) -> io::Result<Piece> {
        let binding = self.bound.iter().rposition(|b| b.id == frag.dmabuf_id);
        let mut piece = Piece::Frag {
            binding,
            same_as: None,
            at: frag.frag_offset,
            size: frag.frag_size,
            token: self.number(frag.frag_token),
        };
        if frag.flags != 0 || flow.held.contains_key(&frag.frag_token) {
            self.fault(format!("not a good control message: {frag:?}"));
        }
        let Some(binding) = binding else {
            self.fault(format!("an unknown binding: {frag:?}"));
            return Ok(piece);
        };
        let held = Held {
            binding,
            offset: frag.frag_offset,
            size: frag.frag_size,
            position,
        };
        self.check_held(flow, frag.frag_token, held)?;
        if let Piece::Frag { same_as, at, .. } = &mut piece {
            *same_as = self.holder(number, flow, &held);
            *at %= self.bound[binding].buffer_size;
        }
        flow.held.insert(frag.frag_token, held);
        Ok(piece)
    }

    /// The first token that is held of a buffer.
    fn holder(&self, number: u8, flow: &Flow, wanted: &Held) -> Option<(u8, u32)> {
        let size = self.bound[wanted.binding].buffer_size;
        let buffer = |held: &Held| (held.binding, held.offset / size);
        let of = |number: u8, flow: &Flow| {
            flow.held
                .iter()
                .find(|(_, held)| buffer(held) == buffer(wanted))
                .map(|(&token, _)| (number, self.number(token)))
        };
        of(number, flow).or_else(|| {
            self.flows
                .iter()
                .enumerate()
                .find_map(|(other, flow)| of(other as u8, flow.as_ref()?))
        })
    }

    /// Checks the bytes that a token stands for.
    pub(super) fn check_held(&mut self, flow: &Flow, token: u32, held: Held) -> io::Result<()> {
        let mut bytes = mem::take(&mut self.arenas.scratch);
        let size = held.size as usize;
        let good = match self.view(held.binding) {
            Some(view) if size <= bytes.len() => view
                .copy_out(held.offset, &mut bytes[..size])
                .is_ok_and(|()| flow.matches(held.position, &bytes[..size])),
            Some(_) => false,
            None => true,
        };
        self.arenas.scratch = bytes;
        if !good {
            self.fault(format!(
                "token {token}: other bytes than those from {} on: {held:?}",
                held.position
            ));
        }
        Ok(())
    }
}

fn size(cmsg: &DevmemCmsg) -> u64 {
    match cmsg {
        DevmemCmsg::Linear(size) => u64::from(*size),
        DevmemCmsg::Dmabuf(frag) => u64::from(frag.frag_size),
    }
}

/// Control messages that are not about device memory.
fn others(control: &[u8]) -> Vec<(i32, i32, Vec<u8>)> {
    Cmsgs::new(control)
        .filter(|cmsg| {
            cmsg.level != libc::SOL_SOCKET
                || ![SCM_DEVMEM_DMABUF, SCM_DEVMEM_LINEAR].contains(&cmsg.kind)
        })
        .map(|cmsg| {
            let time = (libc::SOL_SOCKET, libc::SCM_TIMESTAMPING);
            let data = match (cmsg.level, cmsg.kind) == time {
                true => Vec::new(),
                false => cmsg.data.to_vec(),
            };
            (cmsg.level, cmsg.kind, data)
        })
        .collect()
}

/// Bytes in the receive queue.
fn inq(flow: &Flow) -> Result<u64, Failed> {
    let mut bytes = 0;
    // SAFETY: `bytes` is the argument of this ioctl, which only writes it.
    let ret = unsafe { libc::ioctl(flow.rx.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    count(ret as isize).map(|_| bytes as u64)
}

fn count(ret: isize) -> Result<u64, Failed> {
    u64::try_from(ret).map_err(|_| Failed(io::Error::last_os_error().raw_os_error().unwrap_or(0)))
}
