// SPDX-License-Identifier: GPL-2.0

//! dma-bufs whose exporter fails, or maps them to a scatterlist that makes no sense, or is only unusual:
//! bound for receiving and for sending, and sent from.

use std::io;
use std::process::ExitCode;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Error;
use devmem::Extent;
use devmem::netdev::Netdev;
use devmem::provider::BindingInfo;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::state::State;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use nix::errno::Errno;

const PAGE: u64 = 4096;
/// A DMA address behind which there is nothing.
const NOWHERE: u64 = 1 << 40;
/// The longest entry of a scatterlist that is a multiple of the page size.
const LONGEST: u64 = (1 << 32) - PAGE;

const fn segment(addr: u64, len: u64) -> Segment {
    Segment { addr, len }
}

/// What comes of binding a dma-buf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It is bound, and has so many buffers (in pages if it is sent from).
    Buffers(u64),
    /// Errno, and a part of the message.
    Refused(i32, &'static str),
    /// The C code would do damage, in this way.
    NotTried(&'static str),
}

use Answer::Buffers;
use Answer::NotTried;
use Answer::Refused;

/// What comes of it on the module and on the C provider.
#[derive(Clone, Copy, Debug)]
struct Answers {
    module: Answer,
    builtin: Answer,
}

const fn both(answer: Answer) -> Answers {
    Answers {
        module: answer,
        builtin: answer,
    }
}

const fn either(module: Answer, builtin: Answer) -> Answers {
    Answers { module, builtin }
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Rx,
    Tx,
}

/// Devices, and memory that there is nothing odd about.
struct Binder {
    pair: Pair,
    memory: DmaBuf,
}

impl Binder {
    const QUEUE: u32 = 1;

    fn new() -> io::Result<Self> {
        Ok(Self {
            pair: Pair::new()?,
            memory: DmaBuf::udmabuf(64 * PAGE as usize)?,
        })
    }

    /// Binds, and tells how the binding is listed while it is there.
    fn bind(&self, way: Way, dmabuf: &OddDmaBuf) -> io::Result<Result<BindingInfo, Error>> {
        let end = match way {
            Way::Rx => &self.pair.rx,
            Way::Tx => &self.pair.tx,
        };
        end.ns.run(|| {
            let mut netdev = Netdev::open()?;
            let answer = match way {
                Way::Rx => netdev.bind_rx(&self.pair.request(&[Self::QUEUE]).attrs(dmabuf)),
                Way::Tx => netdev.bind_tx(&BindTx::new(end.ifindex).attrs(dmabuf)),
            };
            match answer {
                Ok(id) => Ok(Ok(devmem::provider::binding(id)?)),
                Err(err) => Ok(Err(err)),
            }
        })
    }

    /// Checks what comes of binding a dma-buf one way, and that it leaves nothing.
    #[track_caller]
    fn check(&self, way: Way, shape: &Shape, answers: Answers) -> Outcome {
        let expected = match provider::under_test() {
            Provider::Module => answers.module,
            Provider::Builtin => answers.builtin,
        };
        if let NotTried(why) = expected {
            report::observe(format_args!("{way:?}: not tried: {why}"));
            return Ok(());
        }
        let before = State::of(&self.pair)?;
        compare(way, self.bind(way, &shape.of_nothing()?)?, expected);
        before.wait_until_back(&self.pair);
        self.still_good()
    }

    /// Checks both ways.
    #[track_caller]
    fn check_both(&self, shape: &Shape, rx: Answers, tx: Answers) -> Outcome {
        self.check(Way::Rx, shape, rx)?;
        self.check(Way::Tx, shape, tx)
    }

    /// Checks that the devices are good for another dma-buf.
    fn still_good(&self) -> Outcome {
        let rx = self.pair.bind(&[Self::QUEUE], &self.memory)?;
        let tx = self.pair.tx.bind_tx(&self.memory)?;
        let ids = [rx.id(), tx.id()];
        drop((rx, tx));
        ids.into_iter().for_each(provider::all_buffers_back);
        Ok(())
    }
}

#[track_caller]
fn compare(way: Way, answer: Result<BindingInfo, Error>, expected: Answer) {
    match (answer, expected) {
        (Ok(info), Buffers(buffers)) => {
            report::observe(format_args!("{way:?}: {buffers} buffers"));
            assert_eq!(info.buffers, buffers, "{way:?}: {info:?}");
        }
        (Err(Error::Refused { errno, ack }), Refused(wanted, part)) => {
            let message = ack.message.as_deref().unwrap_or("");
            report::observe(format_args!(
                "{way:?}: {:?}, {message:?}",
                Errno::from_raw(errno)
            ));
            assert_eq!(errno, wanted, "{way:?}: {ack:?}");
            assert!(message.contains(part), "{way:?}: {message:?}, not {part:?}");
        }
        (answer, expected) => panic!("{way:?}: {answer:?}, not {expected:?}"),
    }
}

const EMPTY: Answer = Refused(libc::EINVAL, "dmabuf has no memory");
const WRAPS: Answer = Refused(libc::EINVAL, "wraps around");
const UNALIGNED: Answer = Refused(libc::EINVAL, "not aligned to niov size");
const TOO_MANY: Answer = Refused(libc::EINVAL, "too many buffers");
const OVERRUN: Answer = NotTried("the C code writes past the end of its array");
const UNDEFINED: Answer = NotTried("the C code leaves members of its array undefined");

fn attach_fails() -> Outcome {
    let bench = Binder::new()?;
    for errno in [libc::ENXIO, libc::ENOMEM] {
        let shape = Shape::new(&[segment(NOWHERE, PAGE)]).attach_error(errno);
        let answers = both(Refused(errno, "Failed to bind dmabuf to device"));
        bench.check_both(&shape, answers, answers)?;
    }
    Ok(())
}

fn map_fails() -> Outcome {
    let bench = Binder::new()?;
    for errno in [libc::EREMOTEIO, libc::ENOMEM] {
        let shape = Shape::new(&[segment(NOWHERE, PAGE)]).map_error(errno);
        let answers = both(Refused(errno, "Failed to map dmabuf attachment"));
        bench.check_both(&shape, answers, answers)?;
    }
    Ok(())
}

fn no_entries() -> Outcome {
    let shape = Shape::new(&[]).size(PAGE);
    let (rx, tx) = (either(EMPTY, Buffers(0)), either(EMPTY, UNDEFINED));
    Binder::new()?.check_both(&shape, rx, tx)
}

fn entries_without_length() -> Outcome {
    let shape = Shape::new(&[segment(NOWHERE, 0); 3]);
    let answers = either(EMPTY, Buffers(0));
    Binder::new()?.check_both(&shape, answers, answers)
}

/// The others count.
fn an_entry_without_length() -> Outcome {
    let shape = Shape::new(&[
        segment(NOWHERE, 0),
        segment(NOWHERE, PAGE),
        segment(NOWHERE + 4 * PAGE, 0),
        segment(NOWHERE + 8 * PAGE, 2 * PAGE),
        segment(NOWHERE, 0),
    ]);
    Binder::new()?.check_both(&shape, both(Buffers(3)), both(Buffers(3)))
}

/// The second entry begins at an offset that has more than 32 bits.
fn more_than_4_gib() -> Outcome {
    let shape = Shape::new(&[
        segment(NOWHERE, LONGEST),
        segment(NOWHERE + (8 << 30), 4 * PAGE),
    ]);
    let answers = both(Buffers(LONGEST / PAGE + 4));
    Binder::new()?.check_both(&shape, answers, answers)
}

fn unaligned_address() -> Outcome {
    let bench = Binder::new()?;
    for addr in [NOWHERE + 1, NOWHERE + PAGE / 2, NOWHERE + PAGE - 1] {
        let shape = Shape::new(&[segment(NOWHERE, PAGE), segment(addr, PAGE)]);
        bench.check_both(&shape, both(UNALIGNED), either(Buffers(2), UNALIGNED))?;
    }
    Ok(())
}

fn unaligned_length() -> Outcome {
    let bench = Binder::new()?;
    for len in [1, PAGE - 1, PAGE + 1] {
        let shape = Shape::new(&[segment(NOWHERE, len), segment(2 * NOWHERE, 2 * PAGE - len)]);
        bench.check_both(&shape, both(UNALIGNED), either(Buffers(2), UNALIGNED))?;
    }
    Ok(())
}

fn addresses_that_wrap() -> Outcome {
    const LAST: u64 = PAGE.wrapping_neg();
    const WHY: Answer = NotTried("the C code warns about buffers that come back");
    let bench = Binder::new()?;
    let wrong = [
        segment(LAST, 2 * PAGE),
        segment(LAST - 7 * PAGE, LONGEST),
        segment(LONGEST.wrapping_neg() + PAGE, LONGEST),
    ];
    for entry in wrong {
        let shape = Shape::new(&[segment(NOWHERE, PAGE), entry]);
        bench.check_both(&shape, either(WRAPS, WHY), either(WRAPS, WHY))?;
    }
    Ok(())
}

/// Just not too far.
fn the_last_page() -> Outcome {
    let shape = Shape::new(&[segment(PAGE.wrapping_neg(), PAGE)]);
    Binder::new()?.check_both(&shape, both(Buffers(1)), both(Buffers(1)))
}

fn address_zero() -> Outcome {
    const WHY: Answer = NotTried("the C code takes the first buffer for none at all, and loses it");
    let shape = Shape::new(&[segment(0, 2 * PAGE)]);
    Binder::new()?.check_both(&shape, either(Buffers(2), WHY), both(Buffers(2)))
}

fn the_same_page_twice() -> Outcome {
    const WHY: Answer = NotTried("the C code finds buffers by their address");
    let shape = Shape::new(&[segment(NOWHERE, PAGE); 2]);
    Binder::new()?.check_both(&shape, either(Buffers(2), WHY), both(Buffers(2)))
}

/// Receiving goes by the scatterlist, sending keeps to both.
fn longer_than_the_dmabuf() -> Outcome {
    let shape = Shape::new(&[segment(NOWHERE, 8 * PAGE)]).size(2 * PAGE);
    Binder::new()?.check_both(&shape, both(Buffers(8)), either(Buffers(2), OVERRUN))
}

fn shorter_than_the_dmabuf() -> Outcome {
    let shape = Shape::new(&[segment(NOWHERE, 2 * PAGE)]).size(8 * PAGE);
    Binder::new()?.check_both(&shape, both(Buffers(2)), either(Buffers(2), UNDEFINED))
}

/// No page of all that would be there.
fn a_dmabuf_without_size() -> Outcome {
    let shape = Shape::new(&[segment(NOWHERE, 2 * PAGE)]).size(0);
    Binder::new()?.check_both(&shape, both(Buffers(2)), either(Buffers(0), OVERRUN))
}

/// More than there are numbers for.
fn more_than_16_tib() -> Outcome {
    const WHY: Answer = NotTried("the C code fills the memory");
    let entries = |count| Shape::new(&vec![segment(NOWHERE, LONGEST); count]);
    let bench = Binder::new()?;
    bench.check(Way::Rx, &entries(4098), either(TOO_MANY, WHY))?;
    bench.check(Way::Tx, &entries((1 << 18) + 1), either(TOO_MANY, WHY))
}

/// Descriptors that would take more memory than one allocation can have.
fn more_than_128_gib() -> Outcome {
    const WHY: Answer = NotTried("the C code fills the memory");
    let shape = Shape::new(&[segment(NOWHERE, LONGEST); 34]);
    let answers = either(Refused(libc::ENOMEM, ""), WHY);
    Binder::new()?.check(Way::Rx, &shape, answers)
}

/// Segments of these places and lengths, in memory that holds the stream.
fn filled(segments: &[Segment], size: Option<u64>) -> io::Result<OddDmaBuf> {
    let shape = Shape::new(segments);
    let len: u64 = segments.iter().map(|segment| segment.len).sum();
    let shape = shape.size(size.unwrap_or(len));
    shape.of_memory(traffic::bytes(0, len as usize))
}

/// Sends these parts of a dma-buf, one with a call, and compares what arrives.
#[track_caller]
fn send_and_compare(pair: &Pair, dmabuf: &OddDmaBuf, parts: &[Extent]) -> Outcome {
    let (id, _netdev) = pair.tx.ns.run(|| {
        let mut netdev = Netdev::open()?;
        let id = netdev.bind_tx(&BindTx::new(pair.tx.ifindex).attrs(dmabuf))?;
        Ok((id, netdev))
    })?;
    let connection = pair.connect(&pair.listen(Ip::V4, 0)?)?;
    sockopt::set(&connection.tx, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1_i32)?;
    let mut completions = tx::Completions::default();
    for (calls, &part) in (1..).zip(parts) {
        let sent = tx::Call::new(id, &[part]).send(&connection.tx);
        assert_eq!(tx::outcome(&sent), part.len.to_string(), "{part:?}");
        tx::expect(&connection.rx, &[part])?;
        completions.wait(&connection.tx, calls)?;
    }
    let all: Vec<_> = parts.iter().map(|part| (part.offset, part.len)).collect();
    report::observe(format_args!("sent {all:?}"));
    Ok(())
}

/// Any size and any alignment, those of each segment different.
fn sending_unaligned() -> Outcome {
    let lengths = [1, 3, 511, 4095, 4096, 4097, 2, 12_289, 65_537, 7, 1, 1, 33];
    let segments: Vec<_> = lengths
        .iter()
        .zip(0_u64..)
        .map(|(&len, i)| segment((i * 709 + 5) % PAGE, len))
        .collect();
    let size: u64 = lengths.iter().sum();
    let dmabuf = filled(&segments, None)?;
    let pair = Pair::new()?;
    if provider::under_test() == Provider::Builtin {
        let answer = pair.tx.ns.run(|| {
            let attrs = BindTx::new(pair.tx.ifindex).attrs(&dmabuf);
            Ok(Netdev::open()?.bind_tx(&attrs).map(drop))
        })?;
        let errno = answer.err().and_then(|err| err.errno());
        assert_eq!(errno, Some(libc::EINVAL), "the C code takes no such sizes");
        report::observe("refused");
        return Ok(());
    }

    // All of it, each segment by itself, and around each border.
    let mut parts = vec![tx::extent(0, size)];
    let mut start = 0;
    for len in lengths {
        parts.push(tx::extent(start, len));
        start += len;
        let before = start.saturating_sub(2);
        parts.push(tx::extent(before, (size - before).min(5)));
    }
    send_and_compare(&pair, &dmabuf, &parts)
}

/// Pages in entries of different lengths, which both providers take.
fn sending_from_pages() -> Outcome {
    let segments = [1, 2, 1, 16, 3].map(|pages| segment(0, pages * PAGE));
    let dmabuf = filled(&segments, None)?;
    let size = 23 * PAGE;
    let parts = [
        tx::extent(0, size),
        tx::extent(1, size - 2),
        tx::extent(PAGE - 1, 2),
        tx::extent(3 * PAGE - 1, PAGE + 2),
        tx::extent(size - 1, 1),
    ];
    send_and_compare(&Pair::new()?, &dmabuf, &parts)
}

/// What is not in both, the scatterlist and the dma-buf, cannot be sent.
fn sending_past_the_end() -> Outcome {
    if provider::under_test() == Provider::Builtin {
        report::observe("not tried: the C code follows what is not there");
        return Ok(());
    }
    let pair = Pair::new()?;
    let pages = [segment(0, 3 * PAGE), segment(9, PAGE - 17)];
    let all: u64 = pages.iter().map(|segment| segment.len).sum();
    for (size, end) in [(2 * PAGE - 5, 2 * PAGE - 5), (64 * PAGE, all)] {
        let dmabuf = filled(&pages, Some(size))?;
        send_and_compare(
            &pair,
            &dmabuf,
            &[tx::extent(0, end), tx::extent(end - 1, 1)],
        )?;

        let connection = pair.connect(&pair.listen(Ip::V4, 0)?)?;
        sockopt::set(&connection.tx, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1_i32)?;
        let sent = pair.tx.ns.run(|| {
            let mut netdev = Netdev::open()?;
            let id = netdev.bind_tx(&BindTx::new(pair.tx.ifindex).attrs(&dmabuf))?;
            Ok([end, end + 1, 64 * PAGE - 1]
                .map(|offset| tx::Call::new(id, &[tx::extent(offset, 1)]).send(&connection.tx)))
        })?;
        for result in sent {
            tx::fails(result, Errno::EFAULT);
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        attach_fails,
        map_fails,
        no_entries,
        entries_without_length,
        an_entry_without_length,
        more_than_4_gib,
        unaligned_address,
        unaligned_length,
        addresses_that_wrap,
        the_last_page,
        address_zero,
        the_same_page_twice,
        longer_than_the_dmabuf,
        shorter_than_the_dmabuf,
        a_dmabuf_without_size,
        more_than_16_tib,
        more_than_128_gib,
        sending_unaligned,
        sending_from_pages,
        sending_past_the_end,
    ])
}
