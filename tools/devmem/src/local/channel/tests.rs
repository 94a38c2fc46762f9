// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Two ends of a channel, and peers that say what they like.

use super::*;
use proptest::prelude::*;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::os::unix::net::UnixStream;
use std::thread;

use nix::sys::memfd::MFdFlags;

use crate::dmabuf::memfd;
use crate::recv::Frag;
use crate::recv::Piece;
use crate::recv::Receive;
use crate::send::Transmit;
use crate::token::TokenBatch;

const SIZE: u64 = 1 << 16;
const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(60);

fn memory() -> DmaBuf {
    DmaBuf::of_memfd(memfd(1 << 16, MFdFlags::empty()).unwrap()).unwrap()
}

fn end(socket: UnixStream) -> Channel<'static> {
    Channel::opening(socket.into(), DmaBuf::of_memfd).unwrap()
}

fn channel() -> (Channel<'static>, Channel<'static>) {
    let (a, b) = UnixStream::pair().unwrap();
    (end(a), end(b))
}

fn extent(offset: u64, len: u64) -> Extent {
    Extent { offset, len }
}

fn frags<'s>(rx: &mut impl Receive<'s>) -> Vec<Frag<'s>> {
    let pieces = rx.recv_timeout(LONG).unwrap();
    pieces
        .map(|piece| match piece {
            Piece::Frag(frag) => frag,
            _ => panic!("bytes in host memory"),
        })
        .collect()
}

fn extents(frags: &[Frag<'_>]) -> Vec<Extent> {
    let extent = |frag: &Frag<'_>| extent(frag.offset, frag.size.into());
    frags.iter().map(extent).collect()
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn only_streams_of_af_unix() {
    let (datagrams, _other) = UnixDatagram::pair().unwrap();
    let (tcp, _other) = crate::testing::connection([127, 0, 0, 1].into()).unwrap();
    let datagrams = Channel::<Extent>::new(&datagrams);
    for result in [datagrams, Channel::new(&tcp)] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

/// Sends by the trait, and receives by the trait.
fn pass<'s>(tx: &mut impl Transmit<Vec<Extent>>, rx: &mut impl Receive<'s>, binding: &TxBinding) {
    let parts = vec![extent(7, 5), extent(0, SIZE), extent(SIZE - 1, 1)];
    tx.send(binding, parts.clone()).unwrap();
    let got = frags(rx);
    assert_eq!(extents(&got), parts);
    assert!(got.iter().all(|frag| frag.dmabuf_id == binding.id()));
    let err = tx.wait_timeout(SHORT).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::TimedOut);
    drop(got);
    let sent = tx.wait_timeout(LONG).unwrap().unwrap();
    assert_eq!((sent.source, sent.bytes), (parts, SIZE + 6));
    assert!(tx.wait().unwrap().is_none());
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn parts_arrive_and_come_back_both_ways() {
    let (a, b) = UnixStream::pair().unwrap();
    let open = |socket: UnixStream| {
        Channel::<Vec<Extent>>::opening(socket.into(), DmaBuf::of_memfd).unwrap()
    };
    let (mut a, mut b) = (open(a), open(b));
    let (one, other) = (memory(), memory());
    let first = a.share(&one).unwrap();
    let second = a.share(&other).unwrap();
    pass(&mut a, &mut b, &first);
    pass(&mut a, &mut b, &second);
    let back = b.share(&other).unwrap();
    pass(&mut b, &mut a, &back);
    rustix::io::pwrite(&other, b"seen", 0).unwrap();
    let map = b.memory(second.id()).unwrap().map().unwrap();
    drop((one, other));
    let mut bytes = [0; 4];
    rustix::io::pread(map.as_fd(), &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"seen");
    assert!(b.memory(3).is_none());
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn what_is_not_shared_is_not_sent() {
    let (mut a, _b) = channel();
    let memory = memory();
    let binding = a.share(&memory).unwrap();
    let nobody = TxBinding::of_another(NonZero::new(2).unwrap());
    for (binding, part, errno) in [
        (&binding, extent(SIZE, 1), libc::EFAULT),
        (&binding, extent(1, u64::MAX), libc::EFAULT),
        (&nobody, extent(0, 1), libc::EINVAL),
    ] {
        let err = a.send(binding, part).unwrap_err();
        assert_eq!((err.errno(), err.source), (Some(errno), Some(part)));
    }
    for _ in 1..MEMORIES {
        let _ = a.share(&memory).unwrap();
    }
    let err = a.share(&memory).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn who_reads_nothing_is_not_waited_for_for_ever() {
    let (mut a, _b) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    while a.write(&[0; 4096]).is_ok() {}
    let err = end(a).share_timeout(&memory(), SHORT).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::TimedOut);
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn who_holds_parts_makes_the_other_end_wait() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut a: Channel<'_, Vec<Extent>> = Channel::opening(a.into(), DmaBuf::of_memfd).unwrap();
    let mut b = end(b);
    let memory = memory();
    let binding = a.share(&memory).unwrap();
    let parts: Vec<_> = (0..u64::from(WINDOW) + 3).map(|n| extent(n, 1)).collect();
    let err = a.send_timeout(&binding, parts.clone(), SHORT).unwrap_err();
    assert_eq!(err.error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(err.sent, WINDOW.into());
    let mut held = frags(&mut b);
    assert_eq!(held.len(), WINDOW as usize);
    // Any of them.
    held.drain(10..12);
    let err = a
        .resume_timeout(&binding, err.rest.unwrap(), SHORT)
        .unwrap_err();
    assert_eq!(err.sent, 2);
    held.pop();
    a.resume_timeout(&binding, err.rest.unwrap(), LONG).unwrap();
    held.extend(frags(&mut b));
    let mut batch = TokenBatch::new(&b);
    drop(held.drain(..5));
    let count = held.len() as u64;
    for frag in held {
        batch.push(frag.token).unwrap();
    }
    batch.flush().unwrap();
    assert_eq!((batch.returned(), batch.held()), (count, 0));
    assert_eq!(a.wait().unwrap().unwrap().source, parts);
}

/// Which two threads are needed for: none of it has a system call of its own.
#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn a_stream_with_batches() {
    const COUNT: u64 = 10_000;
    let (a, b) = UnixStream::pair().unwrap();
    let mut a = end(a);
    let memory = memory();
    let binding = a.share(&memory).unwrap();
    let reader = thread::spawn(move || {
        let mut rx = Channel::<Extent>::opening((&b).into(), DmaBuf::of_memfd).unwrap();
        let mut batch = TokenBatch::new(&b);
        let mut next = 0;
        loop {
            let received = rx.recv_timeout(LONG).unwrap();
            if received.is_eof() {
                return (next, batch.returned());
            }
            for piece in received {
                let Piece::Frag(frag) = piece else {
                    panic!("bytes in host memory");
                };
                assert_eq!((frag.offset, frag.size), (next % SIZE, 1));
                next += 1;
                batch.push(frag.token).unwrap();
            }
            batch.flush().unwrap();
        }
    });
    for n in 0..COUNT {
        a.send_timeout(&binding, extent(n % SIZE, 1), LONG).unwrap();
    }
    a.finish().unwrap();
    let mut back = 0;
    while let Some(sent) = a.wait_timeout(LONG).unwrap() {
        assert_eq!(sent.source, extent(back % SIZE, 1));
        back += 1;
    }
    assert_eq!(back, COUNT);
    assert_eq!(reader.join().unwrap(), (COUNT, COUNT));
    let err = a.send(&binding, extent(0, 1)).unwrap_err();
    assert_eq!(err.error.kind(), io::ErrorKind::NotConnected);
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn a_reader_that_goes_returns_everything() {
    let (mut a, mut b) = channel();
    let binding = a.share(&memory()).unwrap();
    for n in 0..3 {
        a.send(&binding, extent(n, 1)).unwrap();
    }
    let held = frags(&mut b);
    drop(b);
    // Its tokens have the socket, too.
    let err = a.wait_timeout(SHORT).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::TimedOut);
    for frag in held {
        frag.token.into_id();
    }
    a.wait_timeout(LONG).unwrap_err();
    for n in 0..3 {
        assert_eq!(a.wait().unwrap().unwrap().source, extent(n, 1));
    }
    assert!(a.wait().unwrap().is_none());
    let err = a.send(&binding, extent(0, 1)).unwrap_err();
    assert_eq!(err.source, Some(extent(0, 1)));
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn an_end_that_goes_is_told_from_one_that_is_finished() {
    for finished in [false, true] {
        let (mut a, mut b) = channel();
        let binding = a.share(&memory()).unwrap();
        a.send(&binding, extent(1, 2)).unwrap();
        if finished {
            a.finish().unwrap();
        }
        drop(a);
        // It was heard of its end before anybody asked for parts.
        let answer = b.share(&memory()).map(drop);
        assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let got = frags(&mut b);
        assert_eq!(extents(&got), [extent(1, 2)]);
        assert!(b.memory(1).is_some());
        drop(got);
        for _ in 0..2 {
            match b.recv() {
                Ok(received) => assert!(finished && received.is_eof()),
                Err(err) => {
                    assert!(!finished);
                    assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
                }
            }
        }
    }
}

/// Something that is to be kept.
#[derive(Debug)]
struct Kept(Arc<()>);

impl Source for Kept {
    fn extents(&self) -> impl Iterator<Item = Extent> {
        [extent(0, 1)].into_iter()
    }
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn what_is_lent_is_kept_when_the_channel_is_dropped() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut a = Channel::<Kept>::opening(a.into(), DmaBuf::of_memfd).unwrap();
    let mut b = end(b);
    let binding = a.share(&memory()).unwrap();
    let kept = Arc::new(());
    a.send(&binding, Kept(Arc::clone(&kept))).unwrap();
    frags(&mut b);
    assert!(Arc::ptr_eq(&a.wait().unwrap().unwrap().source.0, &kept));
    a.send(&binding, Kept(Arc::clone(&kept))).unwrap();
    let held = frags(&mut b);
    drop(a);
    assert_eq!(Arc::strong_count(&kept), 2, "it may still be read");
    drop(held);
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn aborted() {
    let (mut a, mut b) = channel();
    let binding = a.share(&memory()).unwrap();
    a.send(&binding, extent(1, 2)).unwrap();
    a.abort().unwrap();
    assert_eq!(a.wait().unwrap().unwrap().source, extent(1, 2));
    for kind in [
        a.send(&binding, extent(1, 2)).unwrap_err().error.kind(),
        a.recv().unwrap_err().kind(),
    ] {
        assert_eq!(kind, io::ErrorKind::NotConnected);
    }
    frags(&mut b);
    assert_eq!(b.recv().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

/// What a receiver says of these records, after a memory and a part of it.
fn heard(records: &[Record]) -> io::Error {
    let (mut a, b) = UnixStream::pair().unwrap();
    let mut b = end(b);
    let mut honest = end(a.try_clone().unwrap());
    let binding = honest.share(&memory()).unwrap();
    honest.send(&binding, extent(0, 1)).unwrap();
    let bytes: Vec<_> = records.iter().flat_map(|record| record.encode()).collect();
    a.write_all(&bytes).unwrap();
    let held = frags(&mut b);
    let err = loop {
        match b.recv_timeout(SHORT) {
            Ok(received) if received.is_eof() => panic!("an end"),
            Ok(received) => drop(received),
            Err(err) => break err,
        }
    };
    drop(held);
    err
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn parts_that_cannot_be() {
    let part = |number, id, offset, len| Record::Part {
        number,
        id,
        offset,
        len,
    };
    assert_eq!(
        heard(&[part(1, 1, SIZE - 1, 1)]).kind(),
        io::ErrorKind::TimedOut
    );
    let id = NonZero::new(2).unwrap();
    for record in [
        part(1, 1, SIZE, 1),
        part(1, 1, 0, u32::MAX),
        part(1, 1, u64::MAX, 1),
        part(1, 1, 5, 0),
        part(1, 2, 0, 1),
        part(1, 0, 0, 1),
        part(0, 1, 0, 1),
        part(2, 1, 0, 1),
        // Without a descriptor.
        Record::Memory { id, size: 0 },
        // Nothing was lent to it.
        Record::Back { first: 0, count: 1 },
        Record::Back {
            first: 0,
            count: u32::MAX,
        },
        Record::Back { first: 0, count: 0 },
    ] {
        assert_eq!(
            heard(&[record]).kind(),
            io::ErrorKind::InvalidData,
            "{record:?}"
        );
    }
    let after_the_end = [Record::End, Record::End];
    let (mut a, b) = UnixStream::pair().unwrap();
    a.write_all(&after_the_end.map(Record::encode).concat())
        .unwrap();
    assert_eq!(
        end(b).recv().unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    let (mut a, b) = UnixStream::pair().unwrap();
    a.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        .unwrap();
    assert_eq!(
        end(b).recv().unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
}

/// A peer that says what it likes, and has passed a memory.
fn with_a_memory() -> (UnixStream, Channel<'static>) {
    let (a, b) = UnixStream::pair().unwrap();
    let b = end(b);
    let _ = end(a.try_clone().unwrap()).share(&memory()).unwrap();
    (a, b)
}

/// The record of the first byte of that, as the part of this number.
fn byte(number: u32) -> Vec<u8> {
    let part = Record::Part {
        number,
        id: 1,
        offset: 0,
        len: 1,
    };
    part.encode().to_vec()
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn more_parts_than_may_be_lent() {
    let (mut a, mut b) = with_a_memory();
    let mut held = Vec::new();
    for number in 0..=WINDOW {
        a.write_all(&byte(number)).unwrap();
        match b.recv() {
            Ok(received) => held.extend(received.map(|piece| match piece {
                Piece::Frag(frag) => frag,
                _ => panic!("bytes in host memory"),
            })),
            Err(err) => {
                assert_eq!((err.kind(), number), (io::ErrorKind::InvalidData, WINDOW));
            }
        }
    }
    assert_eq!(held.len(), WINDOW as usize);
}

/// Who does not read that it has parts again may not lend others: what it is to be told would pile up here.
#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn who_reads_nothing_lends_no_more() {
    /// More than there is room for in two sockets of this kind.
    const MANY: u32 = 1 << 16;
    let (mut a, mut b) = with_a_memory();
    let ended = (0..MANY).find_map(|number| {
        a.write_all(&byte(number)).unwrap();
        // Each part is given back at once.
        b.recv().err()
    });
    assert_eq!(ended.unwrap().kind(), io::ErrorKind::InvalidData);
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn what_was_not_lent_does_not_come_back() {
    for lies in [
        &[(2, 1)][..],
        &[(0, 3)],
        &[(0, 1), (0, 1)],
        &[(u32::MAX, 1)],
        &[(0, u32::MAX)],
        &[(1, 1), (0, 2)],
    ] {
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut a = end(a);
        let binding = a.share(&memory()).unwrap();
        for n in 0..2 {
            a.send(&binding, extent(n, 1)).unwrap();
        }
        let mut left = vec![extent(0, 1), extent(1, 1)];
        for &(first, count) in lies {
            b.write_all(&Record::Back { first, count }.encode())
                .unwrap();
        }
        let mut told = 0;
        while !left.is_empty() {
            match a.wait_timeout(LONG) {
                Ok(sent) => left.retain(|part| *part != sent.as_ref().unwrap().source),
                Err(err) => {
                    assert_eq!(err.kind(), io::ErrorKind::InvalidData, "{lies:?}");
                    told += 1;
                }
            }
        }
        assert_eq!(told, 1, "{lies:?}");
        assert!(a.wait().unwrap().is_none());
        let err = a.send(&binding, extent(0, 1)).unwrap_err();
        assert_eq!(err.error.kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
#[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
fn records_may_come_in_bits() {
    let (mut a, mut b) = with_a_memory();
    let record = Record::Part {
        number: 0,
        id: 1,
        offset: 3,
        len: 4,
    };
    for byte in record.encode() {
        let err = b.recv_timeout(Duration::ZERO).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        a.write_all(&[byte]).unwrap();
    }
    assert_eq!(extents(&frags(&mut b)), [extent(3, 4)]);
}

#[test]
fn what_is_in_a_memory() {
    for (offset, len, size, is) in [
        (0, 1, 1, true),
        (1, 0, 1, true),
        (1, 1, 1, false),
        (u64::MAX, 1, u64::MAX, false),
        (u64::MAX - 1, 1, u64::MAX, true),
    ] {
        assert_eq!(is_within(offset, len, size), is, "{offset} {len} {size}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// In whatever order parts are returned, sources come back once all of theirs are.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn sources_come_back_with_their_last_part(
        sources in proptest::collection::vec(1..6_usize, 1..12),
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 66)
    ) {
        let (a, b) = UnixStream::pair().unwrap();
        let mut a = Channel::<Vec<Extent>>::opening(a.into(), DmaBuf::of_memfd).unwrap();
        let mut b = end(b);
        let binding = a.share(&memory()).unwrap();
        let mut left = sources.clone();
        let mut held = Vec::new();
        for (which, &count) in sources.iter().enumerate() {
            let source = vec![extent(which as u64, 1); count];
            a.send(&binding, source).unwrap();
            held.extend(frags(&mut b));
        }
        for index in order {
            if held.is_empty() {
                break;
            }
            let frag = held.swap_remove(index.index(held.len()));
            let which = usize::try_from(frag.offset).unwrap();
            drop(frag);
            left[which] -= 1;
            match a.wait_timeout(Duration::ZERO) {
                Ok(Some(sent)) => {
                    prop_assert_eq!(left[which], 0);
                    prop_assert_eq!(sent.source, vec![extent(which as u64, 1); sources[which]]);
                }
                Ok(None) => prop_assert!(false, "nothing was in flight"),
                Err(err) => {
                    prop_assert_eq!(err.kind(), io::ErrorKind::TimedOut);
                    prop_assert!(left[which] > 0);
                }
            }
        }
        prop_assert!(held.is_empty() && a.wait().unwrap().is_none());
    }
}
