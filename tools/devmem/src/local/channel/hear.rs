// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the peer says, and what is made of it.

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::poll::PollFlags;

use super::Channel;
use super::MEMORIES;
use super::WINDOW;
use super::is_within;
use crate::cmsg::DmabufCmsg;
use crate::completion::Completion;
use crate::dmabuf::DmaBuf;
use crate::local::share::Share;
use crate::local::wire;
use crate::local::wire::Record;
use crate::local::wire::wrong;
use crate::poll;
use crate::send::Source;

impl<T: Source> Channel<'_, T> {
    /// Writes what is to be written, and waits for something from the peer, which it takes in.
    pub(super) fn hear(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.check()?;
        match self.try_hear(deadline) {
            Err(err) if err.kind() != io::ErrorKind::TimedOut => {
                self.give_up(&err);
                Err(err)
            }
            result => result,
        }
    }

    fn try_hear(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            let socket = self.socket.as_fd();
            // A peer that is gone may have said something before that.
            let reads = self.outbox.flush(socket).is_ok();
            let waits = reads && deadline.is_none() && !self.outbox.is_waiting();
            match wire::receive(socket, &mut self.buffer[..], waits) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((len, descriptors)) => return self.take_in(len, descriptors),
                Err(err) if err.kind() != io::ErrorKind::WouldBlock => return Err(err),
                Err(_) if !reads => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_) => self.ready(deadline)?,
            }
        }
    }

    fn ready(&self, deadline: Option<Instant>) -> io::Result<()> {
        let mut what = PollFlags::POLLIN;
        what.set(PollFlags::POLLOUT, self.outbox.is_waiting());
        poll::ready(self.socket.as_fd(), what, deadline).map(drop)
    }

    /// Goes through bytes that came, and descriptors with them.
    fn take_in(&mut self, len: usize, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let mut input = mem::take(&mut self.input);
        input.extend(self.buffer.get(..len).unwrap_or_default());
        let mut rest = &input[..];
        let mut descriptors = descriptors.into_iter();
        while let Some((record, others)) = rest.split_first_chunk() {
            rest = others;
            match Record::decode(record)? {
                Record::Memory { id, size } => {
                    let came = descriptors.next().into_iter().collect();
                    self.add_memory(Share::new(id, size, came, self.open)?)?;
                }
                Record::Part {
                    number,
                    id,
                    offset,
                    len,
                } => self.add_part(number, id, offset, len)?,
                Record::Back { first, count } => self.came_back(first, count)?,
                Record::End if self.peer_finished => return Err(wrong("a second end")),
                Record::End => self.peer_finished = true,
            }
        }
        if descriptors.next().is_some() {
            return Err(wrong("a descriptor that nothing was said of"));
        }
        self.input = rest.to_vec();
        Ok(())
    }

    fn add_memory(&mut self, share: Share) -> io::Result<()> {
        if self.memories.len() == MEMORIES {
            return Err(wrong("too many memories"));
        }
        self.memories
            .add(share)
            .map_err(|err| wrong(err.to_string()))
    }

    fn add_part(&mut self, number: u32, id: u32, offset: u64, len: u32) -> io::Result<()> {
        let memory = self.memories.get(id).map(DmaBuf::size);
        let size = memory.ok_or_else(|| wrong(format!("a part of memory {id}, which is none")))?;
        if len == 0 || !is_within(offset, len.into(), size as u64) {
            return Err(wrong(format!(
                "a part of {len} bytes at {offset} of {size}"
            )));
        }
        if self.peer_finished || number != self.expected {
            return Err(wrong("a part that does not follow the last one"));
        }
        if self.outbox.borrow() > WINDOW {
            return Err(wrong("more parts than may be lent"));
        }
        self.expected = number.wrapping_add(1);
        self.inbox.push_back(DmabufCmsg {
            frag_offset: offset,
            frag_size: len,
            frag_token: number,
            dmabuf_id: id,
            flags: 0,
        });
        Ok(())
    }

    fn came_back(&mut self, first: u32, count: u32) -> io::Result<()> {
        let left = self.lent.checked_sub(count).filter(|_| count > 0);
        self.lent = left.ok_or_else(|| wrong("more came back than was lent"))?;
        let completion = Completion {
            first,
            count: count.into(),
            copied: false,
        };
        self.flight.try_complete(completion)
    }
}
