// SPDX-License-Identifier: GPL-2.0

//! Memory that is passed to another process of the machine, for a connection or for a channel.

use std::io;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::Filled;
use devmem::Frag;
use devmem::Piece;
use devmem::Receive;
use devmem::Receiver;
use devmem::Sender;
use devmem::TokenBatch;
use devmem::dmabuf::Mapping;
use devmem::local::Channel;
use devmem::local::Share;
use devmem::recv::Received;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::child::Child;
use devmem_testlib::child::NOBODY;
use devmem_testlib::child::become_user;
use devmem_testlib::fixture::Sending;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::report::observe;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::extent;

use crate::joined;

const PAGE: u64 = 4096;
/// What does not come by then is kept from coming.
const A_WHILE: Duration = Duration::from_millis(300);
/// What takes longer does not come at all.
const LONG: Duration = Duration::from_secs(60);

/// All of them are in device memory.
#[track_caller]
fn frags_of<'s>(received: Received<'_, 's>) -> Vec<Frag<'s>> {
    received
        .map(|piece| match piece {
            Piece::Frag(frag) => frag,
            _ => panic!("bytes in host memory"),
        })
        .collect()
}

/// Reads parts of a memory that has the stream of [`traffic`] until the stream ends, compares them, and gives them back.
/// They have to be these, by offset and length, however they are cut.
fn read_all<'s>(
    rx: &mut impl Receive<'s>,
    mut batch: TokenBatch<'s>,
    memory: impl Fn(&[Frag<'s>]) -> io::Result<Mapping>,
    parts: &[Extent],
) -> io::Result<()> {
    let mut all = Vec::new();
    loop {
        let received = rx.recv_timeout(LONG)?;
        if received.is_eof() {
            assert_eq!(joined(&all), joined(parts));
            return Ok(());
        }
        let frags = frags_of(received);
        let map = memory(&frags)?;
        for frag in frags {
            let mut bytes = vec![0; frag.size as usize];
            map.begin_read()?.copy_out(frag.offset, &mut bytes)?;
            traffic::compare(frag.offset, &bytes);
            all.push(extent(frag.offset, frag.size.into()));
            batch.push(frag.token)?;
        }
        batch.flush()?;
    }
}

/// Reads what another process sends, in the memory that it passes.
fn read_shared(passed: &UnixStream, listener: &TcpListener, parts: &[Extent]) -> io::Result<()> {
    // Neither takes rights that nobody has.
    become_user(NOBODY)?;
    let share = Share::receive_timeout(passed, LONG)?;
    assert_eq!(share.memory().size() as u64, Sending::MEMORY);
    let (socket, _) = listener.accept()?;
    let memory = |frags: &[Frag<'_>]| {
        assert!(frags.iter().all(|frag| frag.dmabuf_id == share.id()));
        share.memory().map()
    };
    let batch = TokenBatch::new(&socket);
    read_all(&mut Receiver::new(&socket), batch, memory, parts)
}

/// Another process finds the sender's memory by the number of its binding, and reads there what was sent. Sender and receiver
/// are those of any other connection.
pub fn shared_with_another_process() -> Outcome {
    let parts: Vec<_> = (0..32).map(|n| extent(n * 7001, 4000 + n)).collect();
    for joint in Joint::ALL {
        let pair = Pair::local(joint)?;
        let listener = pair.listen(Ip::V4, Sending::PORT)?;
        let (here, there) = UnixStream::pair()?;
        // There is no memory yet that it could have otherwise.
        let reader = Child::start(|_| read_shared(&there, &listener, &parts))?;
        drop(there);

        let memory = DmaBuf::udmabuf(Sending::MEMORY as usize)?;
        tx::fill(&memory)?;
        let binding = pair.tx.bind_tx(&memory)?;
        Share::send(&here, &binding, &memory)?;
        let to = listener.local_addr()?;
        let socket = pair.tx.ns.run(|| TcpStream::connect(to))?;
        let mut sender = Sender::new(&socket)?;
        for &part in &parts {
            sender.send_timeout(&binding, part, LONG)?;
        }
        socket.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        while let Some(sent) = sender.wait_timeout(LONG)? {
            assert!(!sent.copied, "{joint:?}");
            back.push(sent.source);
        }
        assert_eq!(back.len(), parts.len());
        reader.end()?;
    }
    Ok(())
}

/// Memory that a program writes goes to another process by its offsets, and comes back to be written again.
pub fn a_channel() -> Outcome {
    const PART: u64 = 1 << 14;
    const ROUNDS: u64 = 20;
    let memory = DmaBuf::udmabuf(Sending::MEMORY as usize)?;
    let (here, there) = UnixStream::pair()?;
    let count = Sending::MEMORY / PART;
    let reader = Child::start(|_| {
        become_user(NOBODY)?;
        let mut rx = Channel::<Extent>::new(&there)?;
        let mut batch = TokenBatch::new(&there);
        let mut next = 0;
        loop {
            let received = rx.recv_timeout(LONG)?;
            if received.is_eof() {
                assert_eq!(next, ROUNDS * count);
                return Ok(());
            }
            for frag in frags_of(received) {
                assert_eq!(u64::from(frag.size), PART);
                let mut bytes = vec![0; frag.size as usize];
                let map = rx.memory(frag.dmabuf_id).expect("the memory").map()?;
                map.begin_read()?.copy_out(frag.offset, &mut bytes)?;
                // Of the whole stream, wherever it is in the memory.
                traffic::compare(next * PART, &bytes);
                next += 1;
                batch.push(frag.token)?;
            }
            batch.flush()?;
        }
    })?;
    drop(there);
    let mut tx = Channel::<Filled>::new(here)?;
    let binding = tx.share(&memory)?;
    let mut free = memory.region()?.split(PART);
    for n in 0..ROUNDS * count {
        let mut region = match free.pop() {
            Some(region) => region,
            None => {
                let sent = tx.wait_timeout(LONG)?.expect("what is in flight");
                sent.source.region
            }
        };
        region
            .begin_write()?
            .copy_in(0, traffic::bytes(n * PART, PART as usize))?;
        tx.send_timeout(&binding, Filled { region, len: PART }, LONG)?;
    }
    tx.finish()?;
    while tx.wait_timeout(LONG)?.is_some() {}
    // All of it is there again.
    memory.region()?;
    reader.end()?;
    Ok(())
}

/// Offsets can be passed in memory of any exporter, as far as 64 bits say.
pub fn a_channel_in_any_memory() -> Outcome {
    const EDGE: u64 = 1 << 31;
    let segments = [0, 1, 2, 3, 4].map(|n| Segment {
        addr: n * EDGE,
        len: EDGE,
    });
    let odd = Shape::new(&segments)
        .attach_error(libc::EPERM)
        .of_nothing()?;
    let memory = odd.as_any()?;
    let (here, there) = UnixStream::pair()?;
    let (mut tx, mut rx) = (
        Channel::<Extent>::new(here)?,
        Channel::<Extent>::new(there)?,
    );
    let binding = tx.share(&memory)?;
    // More than a piece can say.
    tx.send(&binding, extent(1, 5 * EDGE - 1))?;
    let beyond = tx.send(&binding, extent(5 * EDGE, 1));
    assert_eq!(
        beyond.expect_err("it is outside").errno(),
        Some(libc::EFAULT)
    );
    let frags = frags_of(rx.recv_timeout(LONG)?);
    let all: Vec<_> = frags
        .iter()
        .map(|frag| extent(frag.offset, frag.size.into()))
        .collect();
    assert_eq!(joined(&all), [extent(1, 5 * EDGE - 1)]);
    drop(frags);
    let sent = tx.wait_timeout(LONG)?.expect("what is in flight");
    assert_eq!(sent.bytes, 5 * EDGE - 1);
    assert_eq!(odd.state()?.attached, 0);
    Ok(())
}

/// What a process has that is killed comes back, and it is told that this is not how it should be.
pub fn a_channel_whose_reader_is_killed() -> Outcome {
    let memory = DmaBuf::udmabuf(PAGE as usize)?;
    let (here, there) = UnixStream::pair()?;
    let mut reader = Child::start(|talk| {
        let mut rx = Channel::<Extent>::new(&there)?;
        let held = frags_of(rx.recv_timeout(LONG)?);
        talk.tell(held.len())?;
        thread::sleep(LONG);
        drop(held);
        Ok(())
    })?;
    drop(there);
    let mut tx = Channel::<Vec<Extent>>::new(here)?;
    let binding = tx.share(&memory)?;
    let parts = vec![extent(0, 1), extent(5, 7)];
    tx.send(&binding, parts.clone())?;
    assert_eq!(reader.talk().hear_number()?, 2);
    let waited = tx.wait_timeout(A_WHILE).expect_err("it has all of it");
    assert_eq!(waited.kind(), io::ErrorKind::TimedOut);
    drop(reader);
    let told = tx.wait_timeout(LONG).expect_err("nobody returned it");
    observe(format_args!("told: {:?}", told.kind()));
    assert_ne!(told.kind(), io::ErrorKind::TimedOut);
    assert_eq!(tx.wait()?.expect("what was lent").source, parts);
    Ok(())
}
