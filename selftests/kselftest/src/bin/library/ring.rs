// SPDX-License-Identifier: GPL-2.0

//! Receivers, senders and requests of the program's own by one ring of io_uring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::Rest;
use devmem::TxBinding;
use devmem::uring::Receiver;
use devmem::uring::Ring;
use devmem::uring::Sender;
use devmem_testlib::Outcome;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::tx;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;
use io_uring::IoUring;
use io_uring::opcode;
use io_uring::types::Fd;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::LONG;
use crate::PORT;
use crate::QUEUE;
use crate::compared;

const LEN: u64 = 1 << 20;
const PART: u64 = 64 << 10;
/// Less than that, so that there is not always room.
const ROOM_FOR: usize = 128 << 10;
/// `user_data` of a request that does nothing, and of one that waits for room.
const NOP: u64 = 7;
const ROOM: u64 = 8;

/// What sends the memory, and never waits.
struct Transmitter<'c> {
    tx: Sender<'c, Extent>,
    binding: &'c TxBinding,
    /// What was not begun, in order.
    parts: VecDeque<Extent>,
    /// What is left of the part before these.
    rest: Option<Rest>,
    /// Bytes that have come back.
    back: u64,
}

impl Transmitter<'_> {
    /// Sends what there is room for; says whether that is all.
    fn send(&mut self) -> io::Result<bool> {
        const FLAGS: i32 = libc::MSG_DONTWAIT;
        loop {
            let result = match self.rest.take() {
                Some(rest) => self.tx.resume_flags(self.binding, rest, FLAGS),
                None => match self.parts.pop_front() {
                    Some(part) => self.tx.send_flags(self.binding, part, FLAGS),
                    None => return Ok(true),
                },
            };
            if let Err(err) = result {
                if err.error.kind() != io::ErrorKind::WouldBlock {
                    return Err(err.into());
                }
                self.rest = err.rest;
                if let Some(part) = err.source {
                    self.parts.push_front(part);
                }
                return Ok(false);
            }
        }
    }

    fn has_more(&self) -> bool {
        self.rest.is_some() || !self.parts.is_empty()
    }

    fn take_back(&mut self) -> io::Result<()> {
        while let Some(sent) = self.tx.completed()? {
            let Extent { offset, len } = sent.source;
            assert!(sent.bytes > 0 && !sent.copied, "{sent:?}");
            self.back += sent.bytes;
            // It came back before the rest of it had gone, which is a part of its own now.
            if sent.bytes < len {
                let rest = self.rest.take().expect("what is left");
                assert_eq!(rest.bytes(), len - sent.bytes);
                let part = extent(offset + sent.bytes, len - sent.bytes);
                self.parts.push_front(part);
            }
        }
        Ok(())
    }
}

/// From one dma-buf into another, without waiting for anything but the ring.
fn transfer(
    ring: &Ring,
    bench: &Receiving,
    connection: &Connection,
    binding: &TxBinding,
    rx: &mut Receiver<'_>,
) -> Outcome {
    let mut tx = Transmitter {
        tx: Sender::on(ring, &connection.tx)?,
        binding,
        parts: (0..LEN)
            .step_by(PART as usize)
            .map(|at| extent(at, PART))
            .collect(),
        rest: None,
        back: 0,
    };
    // SAFETY: It refers to no memory.
    unsafe { ring.push(&opcode::Nop::new().build().user_data(NOP)) }?;
    let (mut at, mut frags, mut nops) = (0, 0, 0);
    let mut waits_for_room = false;
    while at < LEN || tx.back < LEN || nops == 0 {
        if !waits_for_room && !tx.send()? {
            let fd = Fd(connection.tx.as_raw_fd());
            let room = opcode::PollAdd::new(fd, libc::POLLOUT as u32).build();
            // SAFETY: As above.
            unsafe { ring.push(&room.user_data(ROOM)) }?;
            waits_for_room = true;
        }
        while let Some(received) = rx.try_recv()? {
            assert!(!received.is_eof(), "the stream ended at {at}");
            for frag in compared(bench, received, at)? {
                at += u64::from(frag.size);
                frags += 1;
            }
        }
        tx.take_back()?;
        while let Some(entry) = ring.completion() {
            match entry.user_data() {
                NOP => nops += 1,
                ROOM => waits_for_room = false,
                other => panic!("nobody asked for {other}"),
            }
        }
        // There may be room by now, or a part that came back: nothing else would end the wait.
        let is_to_send = !waits_for_room && tx.has_more();
        if (at < LEN || tx.back < LEN || nops == 0) && !is_to_send {
            ring.wait(Some(wait::patience(LONG)))?;
        }
    }
    assert_eq!((at, tx.back, nops), (LEN, LEN, 1));
    rx.finish()?;
    assert_eq!(rx.returned(), frags, "tokens returned");
    Ok(())
}

/// Rings of several kinds: of the kernel's usual one, one that does nothing but when it is asked, one that a thread of
/// the kernel polls, with room for less than there is to do, and one that is there already.
pub fn everything_by_one_ring() -> Outcome {
    let bench = Receiving::new()?;
    let memory = DmaBuf::udmabuf(LEN as usize)?;
    tx::fill(&memory)?;
    let binding = bench.pair.tx.bind_tx(&memory)?;
    let deferred = Ring::build(
        IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag(),
        8,
    )?;
    let polled = Ring::build(IoUring::builder().setup_sqpoll(20), 1)?;
    // SAFETY: It is new.
    let theirs = unsafe { Ring::from_uring(IoUring::new(2)?) };
    let rings = [
        (Ring::new(8)?, true),
        (deferred, true),
        (polled, false),
        (theirs, true),
    ];
    for ((ring, multishot), port) in rings.iter().zip(PORT + 1..) {
        let connection = bench.pair.connect_to_queue(Ip::V4, port, QUEUE)?;
        setsockopt(&connection.tx, sockopt::SndBuf, &ROOM_FOR)?;
        let mut rx = match multishot {
            true => Receiver::multishot_on(ring, &connection.rx, 64 << 10, 64)?,
            false => Receiver::on(ring, &connection.rx, 64 << 10, 64)?,
        };
        transfer(ring, &bench, &connection, &binding, &mut rx)?;
    }
    Ok(())
}
