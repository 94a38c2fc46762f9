// SPDX-License-Identifier: GPL-2.0

//! Receivers, senders and requests of the program's own by one ring of io_uring.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::Piece;
use devmem::Rest;
use devmem::TxBinding;
use devmem::uring::Receiver;
use devmem::uring::Ring;
use devmem::uring::Sender;
use devmem_testlib::Outcome;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;
use io_uring::IoUring;
use io_uring::opcode;
use io_uring::types::Fd;

use crate::LONG;
use crate::PORT;
use crate::QUEUE;

const LEN: u64 = 4 << 20;
const PART: u64 = 256 << 10;
/// `user_data` of a request that does nothing, and of one that waits for room.
const NOP: u64 = 7;
const ROOM: u64 = 8;

/// What sends the memory, and never waits.
struct Transmitter<'c> {
    tx: Sender<'c, Extent>,
    binding: &'c TxBinding,
    /// What was sent of a part, or none of it.
    rest: Option<Rest>,
    /// Where what was not begun starts.
    at: u64,
    /// Bytes that have come back.
    back: u64,
}

impl Transmitter<'_> {
    /// Sends what there is room for; says whether that is all.
    fn send(&mut self) -> io::Result<bool> {
        loop {
            let result = match self.rest.take() {
                Some(rest) => self.tx.resume_flags(self.binding, rest, libc::MSG_DONTWAIT),
                None if self.at == LEN => return Ok(true),
                None => {
                    let part = extent(self.at, PART);
                    self.at += PART;
                    self.tx.send_flags(self.binding, part, libc::MSG_DONTWAIT)
                }
            };
            if let Err(err) = result {
                if err.error.kind() != io::ErrorKind::WouldBlock {
                    return Err(err.into());
                }
                self.rest = err.rest;
                if err.source.is_some() {
                    self.at -= PART;
                }
                return Ok(false);
            }
        }
    }

    fn take_back(&mut self) -> io::Result<()> {
        while let Some(sent) = self.tx.completed()? {
            assert_eq!((sent.bytes, sent.copied), (PART, false));
            self.back += sent.bytes;
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
        rest: None,
        at: 0,
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
            let cpu = bench.map.begin_read()?;
            for piece in received {
                let Piece::Frag(frag) = piece else {
                    panic!("not in device memory: {piece:?}")
                };
                let mut got = vec![0; frag.size as usize];
                cpu.copy_out(frag.offset, &mut got)?;
                traffic::compare(at, &got);
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
        if at < LEN || tx.back < LEN || nops == 0 {
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
    let polled = Ring::build(
        IoUring::builder().setup_sqpoll(Duration::from_millis(20).as_millis() as u32),
        1,
    )?;
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
        let mut rx = match multishot {
            true => Receiver::multishot_on(ring, &connection.rx, 64 << 10, 64)?,
            false => Receiver::on(ring, &connection.rx, 64 << 10, 64)?,
        };
        transfer(ring, &bench, &connection, &binding, &mut rx)?;
    }
    Ok(())
}
