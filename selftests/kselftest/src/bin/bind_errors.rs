// SPDX-License-Identifier: GPL-2.0

//! bind-rx with bad input: the error that comes back, and that nothing has changed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;

use devmem::BindRx;
use devmem::DmaBuf;
use devmem::Error;
use devmem::ethtool::DataSplit;
use devmem::ethtool::Rings;
use devmem::netdev::Netdev;
use devmem::netdev::dmabuf;
use devmem::netdev::queue;
use devmem::netlink::AttrPath;
use devmem::netlink::Attrs;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::pair::QUEUES;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::runner;
use devmem_testlib::state::State;
use devmem_testlib::tests;
use devmem_testlib::xdp;

const PAGE: usize = 4096;
const MEMORY: usize = 64 * PAGE;
/// No device has it.
const NO_IFINDEX: u32 = 0x7fff_fff0;
/// No queue and no file has it.
const NO_NUMBER: u32 = 4000;

/// What a refusal points at.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Anything, nothing included.
    Any,
    /// The `nth` attribute (or what lies in it) of this way down.
    Attr(&'static [u16], usize),
    /// A missing attribute.
    Missing(u16),
    /// Nothing in the request.
    Nothing,
}

/// A refusal as it should be.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    errno: i32,
    message: &'static str,
    at: At,
}

const fn refusal(errno: i32, message: &'static str, at: At) -> Refusal {
    Refusal { errno, message, at }
}

/// A pair of devices and memory for it.
struct Requester {
    pair: Pair,
    memory: DmaBuf,
}

impl Requester {
    fn new() -> io::Result<Self> {
        Ok(Self {
            pair: Pair::new()?,
            memory: DmaBuf::udmabuf(MEMORY)?,
        })
    }

    fn ifindex(&self) -> Attrs<'_> {
        Attrs::new().u32(dmabuf::IFINDEX, self.pair.rx.ifindex)
    }

    fn ifindex_and_fd(&self) -> Attrs<'_> {
        self.ifindex()
            .u32(dmabuf::FD, self.memory.as_fd().as_raw_fd() as u32)
    }

    fn with_queue<'s>(&'s self, queue: &Attrs<'s>) -> Attrs<'s> {
        self.ifindex_and_fd().nested(dmabuf::QUEUES, queue)
    }

    fn good(&self, queue: u32) -> Attrs<'_> {
        self.pair.request(&[queue]).attrs(&self.memory)
    }

    fn with_page_size(&self, size: u32) -> Attrs<'_> {
        self.pair
            .request(&[1])
            .rx_page_size(size)
            .attrs(&self.memory)
    }

    fn send(&self, attrs: &Attrs) -> io::Result<Result<u32, Error>> {
        let answer = self.pair.rx.ns.run(|| Ok(Netdev::open()?.bind_rx(attrs)))?;
        match &answer {
            Ok(_) => report::observe("accepted"),
            Err(err) => report::observe(format_args!("errno {:?}", err.errno())),
        }
        Ok(answer)
    }

    /// Sends a bad request: it must be refused like this on both providers.
    #[track_caller]
    fn refused(&self, attrs: &Attrs, refusal: Refusal) -> Outcome {
        self.unchanged_by(|| check(self.send(attrs).expect("an answer"), refusal))?;
        self.still_good()
    }

    /// Checks that what was wrong was the request: the device and the memory are good for another.
    #[track_caller]
    fn still_good(&self) -> Outcome {
        let binding = self.pair.bind(&[1], &self.memory)?;
        let id = binding.id();
        drop(binding);
        provider::all_buffers_back(id);
        Ok(())
    }

    /// Sends a request that the C code accepts although it makes no sense. The module refuses it.
    #[track_caller]
    fn refused_by_module(&self, attrs: &Attrs, refusal: Refusal) -> Outcome {
        if provider::under_test() == Provider::Module {
            return self.refused(attrs, refusal);
        }
        self.send(attrs)?.expect("the C code accepts this");
        Ok(())
    }

    /// Checks that `f` neither binds a queue, nor leaves a binding or a device attached to the memory.
    #[track_caller]
    fn unchanged_by(&self, f: impl FnOnce()) -> Outcome {
        let before = State::of(&self.pair)?;
        f();
        before.wait_until_back(&self.pair);
        Ok(())
    }
}

#[track_caller]
fn check(answer: Result<u32, Error>, expected: Refusal) {
    let (errno, ack) = match answer {
        Err(Error::Refused { errno, ack }) => (errno, ack),
        other => panic!("expected {expected:?}, got {other:?}"),
    };
    assert_eq!(
        errno, expected.errno,
        "errno: expected {expected:?}, got {ack:?}"
    );
    let message = ack.message.as_deref().unwrap_or("");
    assert!(
        message.contains(expected.message),
        "message: expected {expected:?}, got {ack:?}"
    );
    let there = match expected.at {
        At::Any => true,
        At::Attr(types, nth) => {
            ack.attribute
                == Some(AttrPath {
                    types: types.to_vec(),
                    nth,
                })
        }
        At::Missing(kind) => ack.missing == Some(kind.into()),
        At::Nothing => ack.attribute.is_none() && ack.missing.is_none(),
    };
    assert!(there, "place: expected {expected:?}, got {ack:?}");
    if provider::under_test() == Provider::Module {
        // The C code is silent about some; the module always tells the reason or the place.
        let told = ack.message.is_some() || ack.attribute.is_some() || ack.missing.is_some();
        assert!(told, "no reason given: {ack:?}");
    }
}

fn rx_queue(id: u32) -> Attrs<'static> {
    Attrs::new()
        .u32(queue::TYPE, queue::TYPE_RX)
        .u32(queue::ID, id)
}

fn missing_ifindex() -> Outcome {
    let bench = Requester::new()?;
    let fd = bench.memory.as_fd().as_raw_fd() as u32;
    let attrs = Attrs::new()
        .u32(dmabuf::FD, fd)
        .nested(dmabuf::QUEUES, &rx_queue(1));
    bench.refused(
        &attrs,
        refusal(libc::EINVAL, "", At::Missing(dmabuf::IFINDEX)),
    )
}

fn missing_fd() -> Outcome {
    let bench = Requester::new()?;
    let attrs = bench.ifindex().nested(dmabuf::QUEUES, &rx_queue(1));
    bench.refused(&attrs, refusal(libc::EINVAL, "", At::Missing(dmabuf::FD)))
}

fn no_queues() -> Outcome {
    let bench = Requester::new()?;
    let attrs = bench.ifindex_and_fd();
    bench.refused(
        &attrs,
        refusal(libc::EINVAL, "", At::Missing(dmabuf::QUEUES)),
    )
}

fn queue_without_id() -> Outcome {
    let bench = Requester::new()?;
    let attrs = bench.with_queue(&Attrs::new().u32(queue::TYPE, queue::TYPE_RX));
    bench.refused(&attrs, refusal(libc::EINVAL, "", At::Missing(queue::ID)))
}

fn queue_without_type() -> Outcome {
    let bench = Requester::new()?;
    let attrs = bench.with_queue(&Attrs::new().u32(queue::ID, 1));
    bench.refused(&attrs, refusal(libc::EINVAL, "", At::Missing(queue::TYPE)))
}

fn ifindex_zero() -> Outcome {
    let bench = Requester::new()?;
    let attrs = BindRx::new(0).queue(1).attrs(&bench.memory);
    bench.refused(
        &attrs,
        refusal(libc::ERANGE, "", At::Attr(&[dmabuf::IFINDEX], 0)),
    )
}

fn no_such_ifindex() -> Outcome {
    let bench = Requester::new()?;
    let attrs = BindRx::new(NO_IFINDEX).queue(1).attrs(&bench.memory);
    bench.refused(&attrs, refusal(libc::ENODEV, "", At::Any))
}

fn device_without_device_memory() -> Outcome {
    const LOOPBACK: u32 = 1;
    let bench = Requester::new()?;
    let attrs = BindRx::new(LOOPBACK).queue(0).attrs(&bench.memory);
    bench.refused(
        &attrs,
        refusal(libc::EOPNOTSUPP, "", At::Attr(&[dmabuf::IFINDEX], 0)),
    )
}

fn header_split_off() -> Outcome {
    let bench = Requester::new()?;
    bench.pair.rx.set_rings(Rings {
        data_split: Some(DataSplit::Off),
        hds_thresh: None,
    })?;
    bench.unchanged_by(|| {
        let answer = bench.send(&bench.good(1)).expect("an answer");
        check(
            answer,
            refusal(libc::EINVAL, "tcp-data-split is disabled", At::Nothing),
        );
    })?;
    bench.pair.rx.set_rings(Rings::DEVMEM)?;
    bench.still_good()
}

fn hds_thresh_not_zero() -> Outcome {
    let bench = Requester::new()?;
    bench.pair.rx.set_rings(Rings {
        data_split: None,
        hds_thresh: Some(64),
    })?;
    bench.unchanged_by(|| {
        let answer = bench.send(&bench.good(1)).expect("an answer");
        check(
            answer,
            refusal(libc::EINVAL, "hds-thresh is not zero", At::Nothing),
        );
    })?;
    bench.pair.rx.set_rings(Rings::DEVMEM)?;
    bench.still_good()
}

fn xdp_attached() -> Outcome {
    let bench = Requester::new()?;
    let program = bench
        .pair
        .rx
        .ns
        .run(|| xdp::attach(bench.pair.rx.ifindex))?;
    bench.unchanged_by(|| {
        let answer = bench.send(&bench.good(1)).expect("an answer");
        check(
            answer,
            refusal(libc::EEXIST, "XDP program attached", At::Nothing),
        );
    })?;
    drop(program);
    bench.still_good()
}

fn queue_out_of_range() -> Outcome {
    let bench = Requester::new()?;
    let first_past_the_end = bench.pair.queues()?.len() as u32;
    for id in [first_past_the_end, NO_NUMBER, u32::MAX] {
        let attrs = bench.with_queue(&rx_queue(id));
        let place = At::Attr(&[dmabuf::QUEUES, queue::ID], 0);
        bench.refused(&attrs, refusal(libc::EINVAL, "", place))?;
    }
    Ok(())
}

fn second_queue_out_of_range() -> Outcome {
    let bench = Requester::new()?;
    let attrs = bench.good(1).nested(dmabuf::QUEUES, &rx_queue(NO_NUMBER));
    let place = At::Attr(&[dmabuf::QUEUES, queue::ID], 1);
    bench.refused(&attrs, refusal(libc::EINVAL, "", place))
}

/// Behind the last queue of a device there is none to be looked for.
fn last_queue() -> Outcome {
    let bench = Requester::new()?;
    for queues in [&[QUEUES - 1][..], &[QUEUES - 1, 0]] {
        drop(bench.pair.bind(queues, &bench.memory)?);
    }
    bench.still_good()
}

fn queue_twice() -> Outcome {
    let bench = Requester::new()?;
    let attrs = bench.pair.request(&[1, 2, 1]).attrs(&bench.memory);
    let place = At::Attr(&[dmabuf::QUEUES, queue::ID], 2);
    bench.refused_by_module(&attrs, refusal(libc::EINVAL, "twice", place))
}

fn queue_already_bound() -> Outcome {
    let bench = Requester::new()?;
    let first = bench.pair.bind(&[1], &bench.memory)?;
    let already = refusal(libc::EEXIST, "already memory provider bound", At::Nothing);
    // By another process's socket, and together with a queue that is free: that stays free.
    for queues in [&[1][..], &[0, 1, 2]] {
        let attrs = bench.pair.request(queues).attrs(&bench.memory);
        bench.unchanged_by(|| check(bench.send(&attrs).expect("an answer"), already))?;
    }
    let others = bench.pair.bind(&[0, 2], &bench.memory)?;
    drop((first, others));
    bench.still_good()
}

fn tx_queue() -> Outcome {
    let bench = Requester::new()?;
    let attrs = bench.with_queue(
        &Attrs::new()
            .u32(queue::TYPE, queue::TYPE_TX)
            .u32(queue::ID, 1),
    );
    let place = At::Attr(&[dmabuf::QUEUES, queue::TYPE], 0);
    bench.refused(&attrs, refusal(libc::EINVAL, "", place))
}

fn queue_type_unknown() -> Outcome {
    let bench = Requester::new()?;
    let attrs = bench.with_queue(&Attrs::new().u32(queue::TYPE, 7).u32(queue::ID, 1));
    let place = At::Attr(&[dmabuf::QUEUES, queue::TYPE], 0);
    bench.refused(&attrs, refusal(libc::ERANGE, "", place))
}

fn malformed_attributes() -> Outcome {
    let bench = Requester::new()?;
    // Two bytes where a number of four is due.
    let short_fd = bench
        .ifindex()
        .bytes(dmabuf::FD, &[1, 2])
        .nested(dmabuf::QUEUES, &rx_queue(1));
    let place = At::Attr(&[dmabuf::FD], 0);
    bench.refused(
        &short_fd,
        refusal(libc::EINVAL, "invalid attribute length", place),
    )?;

    // A nest that claims to be longer than the message.
    let beyond = bench
        .ifindex_and_fd()
        .bytes_of_length(200, dmabuf::QUEUES, &[0; 16]);
    bench.refused(&beyond, refusal(libc::EINVAL, "", At::Any))?;

    // A nest of garbage.
    let garbage = bench
        .ifindex_and_fd()
        .bytes(dmabuf::QUEUES | NESTED, &[0xff; 16]);
    bench.refused(&garbage, refusal(libc::EINVAL, "", At::Any))?;

    // An attribute that the family does not know.
    let unknown = bench.good(1).u32(77, 1);
    bench.refused(&unknown, refusal(libc::EINVAL, "", At::Any))?;

    // One that is for bind-tx only.
    let shared = bench.good(1).flag(dmabuf::SHARED);
    bench.refused(&shared, refusal(libc::EINVAL, "", At::Any))
}

const NESTED: u16 = 0x8000;

fn fd_not_a_dmabuf() -> Outcome {
    let bench = Requester::new()?;
    let file = File::open("/dev/zero")?;
    let attrs = bench.pair.request(&[1]).attrs(&file);
    bench.refused(&attrs, refusal(libc::EINVAL, "", At::Any))
}

fn fd_closed() -> Outcome {
    let bench = Requester::new()?;
    for fd in [NO_NUMBER, u32::MAX] {
        let attrs = bench
            .ifindex()
            .u32(dmabuf::FD, fd)
            .nested(dmabuf::QUEUES, &rx_queue(1));
        bench.refused(&attrs, refusal(libc::EBADF, "", At::Any))?;
    }
    Ok(())
}

fn fd_read_only() -> Outcome {
    let bench = Requester::new()?;
    let heap = Path::new("/dev/dma_heap/system");
    let read_only = DmaBuf::heap(heap, MEMORY, libc::O_RDONLY)?;
    let attrs = bench.pair.request(&[1]).attrs(&read_only);
    bench.refused_by_module(&attrs, refusal(libc::EINVAL, "read-only", At::Any))
}

const PAGE_SIZE_ATTR: At = At::Attr(&[dmabuf::RX_PAGE_SIZE], 0);

fn rx_page_size_zero() -> Outcome {
    let bench = Requester::new()?;
    bench.refused(
        &bench.with_page_size(0),
        refusal(libc::ERANGE, "", PAGE_SIZE_ATTR),
    )
}

fn rx_page_size_below_the_page_size() -> Outcome {
    let bench = Requester::new()?;
    for size in [1, 2048, 4095] {
        bench.refused(
            &bench.with_page_size(size),
            refusal(libc::ERANGE, "", PAGE_SIZE_ATTR),
        )?;
    }
    Ok(())
}

fn rx_page_size_not_a_power_of_two() -> Outcome {
    let bench = Requester::new()?;
    for size in [4097, 12288, u32::MAX] {
        let expected = refusal(libc::EINVAL, "power of 2", PAGE_SIZE_ATTR);
        bench.refused(&bench.with_page_size(size), expected)?;
    }
    Ok(())
}

/// Larger than any buffer that the device takes, and than the memory: which of the two is noticed first is
/// the provider's affair.
fn rx_page_size_unsupported() -> Outcome {
    const SIZE: u32 = 4 << 20;
    let bench = Requester::new()?;
    let attrs = bench.with_page_size(SIZE);
    bench.unchanged_by(|| {
        let answer = bench.send(&attrs).expect("an answer");
        let errno = answer.as_ref().err().and_then(Error::errno);
        assert!(
            matches!(errno, Some(libc::EINVAL | libc::ERANGE | libc::EOPNOTSUPP)),
            "{answer:?}"
        );
    })?;
    bench.still_good()
}

fn rx_page_size_above_the_alignment() -> Outcome {
    let bench = Requester::new()?;
    // Three pages: however they lie, they are no multiple of four pages.
    let odd = DmaBuf::udmabuf(3 * PAGE)?;
    let attrs = bench
        .pair
        .request(&[1])
        .rx_page_size(4 * PAGE as u32)
        .attrs(&odd);
    bench.refused(&attrs, refusal(libc::EINVAL, "not aligned", At::Any))
}

/// A thread of its own gives up its rights, the others keep theirs.
fn without_cap_net_admin() -> Outcome {
    const NOBODY: libc::uid_t = 65534;
    let bench = Requester::new()?;
    let attrs = bench.good(1);
    bench.unchanged_by(|| {
        let answer = bench.pair.rx.ns.run(|| {
            // SAFETY: The raw system call changes the credentials of this thread alone, and takes no
            // pointers.
            let ret = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            if ret != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Netdev::open()?.bind_rx(&attrs))
        });
        let answer = answer.expect("an answer");
        // The family's core refuses it, before any provider sees it and without a reason.
        assert_eq!(
            answer.as_ref().err().and_then(Error::errno),
            Some(libc::EPERM),
            "{answer:?}"
        );
    })?;
    bench.still_good()
}

fn several_bindings_on_one_socket() -> Outcome {
    let bench = Requester::new()?;
    let (a, b) = (bench.good(1), bench.good(2));
    bench.pair.rx.ns.run(|| {
        let mut netdev = Netdev::open()?;
        let (a, b) = (netdev.bind_rx(&a)?, netdev.bind_rx(&b)?);
        assert_ne!(a, b, "two bindings of one number");
        // A request that fails takes nothing from the socket that made it.
        let again = netdev.bind_rx(&bench.good(1));
        assert_eq!(again.err().and_then(|err| err.errno()), Some(libc::EEXIST));
        let bound: Vec<_> = netdev.queues(bench.pair.rx.ifindex)?;
        let bound: Vec<_> = bound.iter().filter_map(|queue| queue.dmabuf).collect();
        assert_eq!(bound, [a, b]);
        Ok(())
    })?;
    let still_bound = bench
        .pair
        .queues()?
        .iter()
        .any(|queue| queue.dmabuf.is_some());
    assert!(
        !still_bound,
        "a queue is bound although the socket is closed"
    );
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        missing_ifindex,
        missing_fd,
        no_queues,
        queue_without_id,
        queue_without_type,
        ifindex_zero,
        no_such_ifindex,
        device_without_device_memory,
        header_split_off,
        hds_thresh_not_zero,
        xdp_attached,
        queue_out_of_range,
        second_queue_out_of_range,
        last_queue,
        queue_twice,
        queue_already_bound,
        tx_queue,
        queue_type_unknown,
        malformed_attributes,
        fd_not_a_dmabuf,
        fd_closed,
        fd_read_only,
        rx_page_size_zero,
        rx_page_size_below_the_page_size,
        rx_page_size_not_a_power_of_two,
        rx_page_size_unsupported,
        rx_page_size_above_the_alignment,
        without_cap_net_admin,
        several_bindings_on_one_socket,
    ])
}
