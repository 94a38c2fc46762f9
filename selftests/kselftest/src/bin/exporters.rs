// SPDX-License-Identifier: GPL-2.0

//! What exporters of device memory ask of who attaches: that it does peer-to-peer, that the memory stays where it
//! is, that it waits for what the kernel has to do with the memory, and that nothing is written any more when it is
//! not mapped.

use std::io;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::Error;
use devmem::Receiver;
use devmem::netdev::Netdev;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::child;
use devmem_testlib::child::Child;
use devmem_testlib::odd::DmaBufState;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::odd::come_and_go_family;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::runner;
use devmem_testlib::state::State;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::sys::resource::setrlimit;

const PAGE: u64 = 4096;
/// A DMA address behind which there is nothing.
const NOWHERE: u64 = 1 << 40;
const QUEUE: u32 = 1;
/// A request that does not wait is answered much sooner.
const A_WHILE: Duration = Duration::from_millis(300);
const WHERE: &str = "dma-buf is not peer-to-peer: its exporter may have moved it to host memory";

/// As much as the ring of a queue has room for: with less there would be a warning.
fn shape() -> Shape {
    shape_of(256)
}

fn shape_of(pages: u64) -> Shape {
    Shape::new(&[Segment {
        addr: NOWHERE,
        len: pages * PAGE,
    }])
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Rx,
    Tx,
}

impl Way {
    const BOTH: [Self; 2] = [Self::Rx, Self::Tx];

    fn end(self, pair: &Pair) -> &End {
        match self {
            Self::Rx => &pair.rx,
            Self::Tx => &pair.tx,
        }
    }

    /// Binds in the namespace of the calling thread, for as long as there is the socket.
    fn bind_here(self, pair: &Pair, dmabuf: &OddDmaBuf) -> Result<Netdev, Error> {
        let mut netdev = Netdev::open()?;
        match self {
            Self::Rx => netdev.bind_rx(&pair.request(&[QUEUE]).attrs(dmabuf)),
            Self::Tx => netdev.bind_tx(&BindTx::new(pair.tx.ifindex).attrs(dmabuf)),
        }?;
        Ok(netdev)
    }

    fn bind(self, pair: &Pair, dmabuf: &OddDmaBuf) -> io::Result<Result<Netdev, Error>> {
        self.end(pair).ns.run(|| Ok(self.bind_here(pair, dmabuf)))
    }
}

/// What came of a request: with the warning, or errno and message.
fn answer(bound: &Result<Netdev, Error>) -> String {
    match bound {
        Ok(netdev) => format!("bound, {:?}", netdev.warning().unwrap_or("")),
        Err(Error::Refused { errno, ack }) => {
            let message = ack.message.as_deref().unwrap_or("");
            format!("{:?}, {message:?}", Errno::from_raw(*errno))
        }
        Err(err) => panic!("no answer: {err}"),
    }
}

fn is_module() -> bool {
    provider::under_test() == Provider::Module
}

/// Checks what comes of binding both ways, and that it leaves nothing.
fn check(shape: &Shape, module: &str, builtin: &str) -> Outcome {
    let pair = Pair::new()?;
    let expected = if is_module() { module } else { builtin };
    for way in Way::BOTH {
        let dmabuf = shape.of_nothing()?;
        let before = State::of(&pair)?;
        let bound = way.bind(&pair, &dmabuf)?;
        report::observe(format_args!("{way:?}: {}", answer(&bound)));
        assert_eq!(answer(&bound), expected, "{way:?}");
        drop(bound);
        before.wait_until_back(&pair);
        assert_eq!(dmabuf.state()?, DmaBufState::default(), "{way:?}");
    }
    Ok(())
}

const BOUND: &str = "bound, \"\"";
const NOT_ATTACHED: &str = "EOPNOTSUPP, \"Failed to bind dmabuf to device\"";
const NOT_MAPPED: &str = "EOPNOTSUPP, \"Failed to map dmabuf attachment\"";

fn ordinary() -> Outcome {
    check(&shape(), BOUND, BOUND)
}

/// As habanalabs, RDMA and VFIO.
fn demands_peer_to_peer() -> Outcome {
    check(&shape().demands_peer(), BOUND, BOUND)
}

/// As VFIO.
fn demands_a_revocable_importer() -> Outcome {
    let shape = shape().demands_peer().demands_revocable();
    check(&shape, BOUND, NOT_ATTACHED)
}

/// As amdgpu and xe, where the devices do not reach each other.
fn falls_back_to_host_memory() -> Outcome {
    let told = format!("bound, {WHERE:?}");
    check(&shape().in_host_memory(), &told, BOUND)
}

/// Both is told.
fn falls_back_and_is_small() -> Outcome {
    let pair = Pair::new()?;
    let dmabuf = shape_of(4).in_host_memory().of_nothing()?;
    let bound = Way::Rx.bind(&pair, &dmabuf)?;
    let told = match is_module() {
        true => "dma-buf is not peer-to-peer, and has 4 buffers, the rings want 256",
        false => "dma-buf has 4 buffers, the rings want 256",
    };
    report::observe(answer(&bound));
    assert_eq!(answer(&bound), format!("bound, {told:?}"));
    Ok(())
}

/// As memory of mlx5 by RDMA.
fn cannot_be_pinned() -> Outcome {
    check(&shape().pin_error(libc::EOPNOTSUPP), NOT_MAPPED, NOT_MAPPED)
}

/// The exporter waits, and a signal comes: a request does not begin again by itself.
fn interrupted() -> Outcome {
    const AGAIN: &str = "EAGAIN, \"Failed to map dmabuf attachment\"";
    const ERESTARTSYS: i32 = 512;
    check(&shape().pin_error(ERESTARTSYS), AGAIN, AGAIN)?;
    check(&shape().pin_error(libc::EINTR), AGAIN, AGAIN)
}

/// As amdgpu, if too little of the memory of the GPU can be seen from outside.
fn no_room_for_peers() -> Outcome {
    let told = format!("bound, {WHERE:?}");
    check(&shape().no_room_for_peers(), &told, BOUND)
}

/// As amdgpu and xe. Who pins it need not be told that it moves.
fn moves_to_be_pinned() -> Outcome {
    check(&shape().moves_to_pin(), BOUND, BOUND)
}

/// Memory that is mapped stays where it is.
fn pinned_while_bound() -> Outcome {
    let pair = Pair::new()?;
    for way in Way::BOTH {
        let dmabuf = shape().moves().of_nothing()?;
        assert_eq!(dmabuf.relocate(), Ok(()));
        let bound = way.bind(&pair, &dmabuf)?.expect("to bind");
        let state = dmabuf.state()?;
        assert_eq!((state.pinned, state.mapped), (1, 1), "{way:?}: {state:?}");
        assert_eq!(dmabuf.relocate(), Err(Errno::EBUSY), "{way:?}");
        drop(bound);
        wait_unmapped(&dmabuf)?;
        assert_eq!(dmabuf.relocate(), Ok(()), "{way:?}");
        let state = dmabuf.state()?;
        report::observe(format_args!("{way:?}: moved {} times", state.moves));
        assert_eq!((state.pinned, state.moves), (0, 2), "{way:?}: {state:?}");
    }
    Ok(())
}

#[track_caller]
fn wait_mapped(dmabuf: &OddDmaBuf) {
    provider::wait_for("the mapping", || Ok(dmabuf.state()?.mapped == 1));
}

#[track_caller]
fn wait_unmapped(dmabuf: &OddDmaBuf) -> io::Result<()> {
    provider::wait_for("the last device to be detached", || {
        Ok(dmabuf.state()?.attached == 0)
    });
    let state = dmabuf.state()?;
    assert_eq!((state.mapped, state.pinned), (0, 0), "{state:?}");
    Ok(())
}

/// Binds what is to be waited for, and has `meanwhile` a look at the request that waits. Then lets it go on.
fn while_it_waits<T>(
    pair: &Pair,
    way: Way,
    meanwhile: impl FnOnce(&OddDmaBuf) -> io::Result<T>,
) -> io::Result<(Result<Netdev, Error>, T, OddDmaBuf)> {
    let dmabuf = shape().moves().with_fence().of_nothing()?;
    let (bound, seen) = thread::scope(|scope| {
        let request = scope.spawn(|| way.bind(pair, &dmabuf));
        wait_mapped(&dmabuf);
        thread::sleep(wait::stretched(A_WHILE));
        let waits = !request.is_finished();
        let seen = waits.then(|| meanwhile(&dmabuf));
        // Before anything fails: it would wait for ever.
        let signalled = dmabuf.signal();
        let bound = request.join().expect("a thread that binds");
        assert!(waits, "{way:?}: did not wait for the fence");
        signalled?;
        Ok::<_, io::Error>((bound?, seen.transpose()?))
    })?;
    Ok((bound, seen.expect("it waits"), dmabuf))
}

/// It is only then that the memory is where it is to be.
fn waits_for_the_kernel() -> Outcome {
    let pair = Pair::new()?;
    for way in Way::BOTH {
        let (bound, (), dmabuf) = while_it_waits(&pair, way, |_| Ok(()))?;
        report::observe(format_args!("{way:?}: {}", answer(&bound)));
        assert_eq!(answer(&bound), BOUND, "{way:?}");
        drop(bound);
        wait_unmapped(&dmabuf)?;
    }
    Ok(())
}

/// It may be that the memory never is. The device is locked on the C code, and a user has no rights to keep it so.
fn takes_too_long() -> Outcome {
    const TOO_LONG: &str = "ETIMEDOUT, \"Exporter of the dma-buf takes too long\"";
    let pair = Pair::new()?;
    let before = State::of(&pair)?;
    thread::scope(|scope| -> Outcome {
        let requests = Way::BOTH.map(|way| {
            let pair = &pair;
            scope.spawn(move || {
                let dmabuf = shape().moves().with_fence().of_nothing()?;
                Ok::<_, io::Error>((way.bind(pair, &dmabuf)?, dmabuf))
            })
        });
        for (way, request) in Way::BOTH.into_iter().zip(requests) {
            let (bound, dmabuf) = request.join().expect("a thread that binds")?;
            report::observe(format_args!("{way:?}: {}", answer(&bound)));
            assert_eq!(answer(&bound), TOO_LONG, "{way:?}");
            wait_unmapped(&dmabuf)?;
        }
        Ok(())
    })?;
    before.wait_until_back(&pair);
    Ok(())
}

/// A bind that fails leaves nothing that counts as locked by who asked for it.
fn failures_leave_nothing_locked() -> Outcome {
    /// What the memory takes, with the two pages more that sends without copying have. It does not fit in twice.
    const LOCKED: u64 = (256 + 2) * PAGE;
    let pair = Pair::new()?;
    let shapes = [
        shape().attach_error(libc::EINVAL),
        shape().map_error(libc::EINVAL),
        shape().pin_error(libc::EOPNOTSUPP),
    ];
    let failing: Vec<_> = shapes
        .iter()
        .map(Shape::of_nothing)
        .collect::<io::Result<_>>()?;
    let good = shape().of_nothing()?;
    let mut child = Child::start(|talk| {
        child::enter(&pair.tx.ns)?;
        setrlimit(Resource::RLIMIT_MEMLOCK, LOCKED, LOCKED)?;
        child::become_user(child::NOBODY)?;
        let bind = |dmabuf| Way::Tx.bind_here(&pair, dmabuf);
        for dmabuf in &failing {
            talk.tell(answer(&bind(dmabuf)))?;
        }
        let bound = bind(&good);
        talk.tell(answer(&bound))?;
        talk.tell(answer(&bind(&good)))?;
        talk.wait_for_the_end()
    })?;
    let [attached, mapped, pinned] = [(); 3].map(|()| child.talk().hear());
    for said in [attached?, mapped?, pinned?] {
        report::observe(&said);
        assert!(
            said.starts_with("EOPNOTSUPP") || said.starts_with("EINVAL"),
            "{said}"
        );
    }
    assert_eq!(child.talk().hear()?, BOUND);
    let said = child.talk().hear()?;
    assert!(said.starts_with("ENOBUFS"), "{said}");
    child.end()?;
    Ok(())
}

/// Who registers a family of generic netlink waits for requests that are being served, and all who come after him for
/// him.
fn families_come_and_go_meanwhile() -> Outcome {
    let pair = Pair::new()?;
    for way in Way::BOTH {
        let (bound, (), _) = while_it_waits(&pair, way, |_| come_and_go_family())?;
        report::observe(format_args!("{way:?}: {}", answer(&bound)));
        assert_eq!(answer(&bound), BOUND, "{way:?}");
    }
    Ok(())
}

/// Others configure the device meanwhile, and bind its other queues.
fn the_device_is_free_meanwhile() -> Outcome {
    if !is_module() {
        report::observe("not tried: the C code waits with the device locked");
        return Ok(());
    }
    let pair = Pair::new()?;
    for way in Way::BOTH {
        let (bound, others, _) = while_it_waits(&pair, way, |_| {
            let other = shape().of_nothing()?;
            let end = way.end(&pair);
            end.set_up(false)?;
            end.set_up(true)?;
            end.ns.run(|| {
                let mut netdev = Netdev::open()?;
                match way {
                    Way::Rx => netdev.bind_rx(&pair.request(&[QUEUE + 1]).attrs(&other)),
                    Way::Tx => netdev.bind_tx(&BindTx::new(end.ifindex).attrs(&other)),
                }?;
                Ok(netdev)
            })
        })?;
        assert_eq!(answer(&bound), BOUND, "{way:?}");
        drop(others);
    }
    report::observe("bound");
    Ok(())
}

/// The queue is somebody else's by the time that the memory is there.
fn the_queue_goes_meanwhile() -> Outcome {
    if !is_module() {
        report::observe("not tried: the C code waits with the device locked");
        return Ok(());
    }
    let pair = Pair::new()?;
    let (bound, other, dmabuf) = while_it_waits(&pair, Way::Rx, |_| {
        let other = shape().of_nothing()?;
        Way::Rx.bind(&pair, &other)
    })?;
    other.expect("the first to be there");
    report::observe(answer(&bound));
    assert!(answer(&bound).starts_with("EEXIST"), "{}", answer(&bound));
    wait_unmapped(&dmabuf)?;

    // Or the device has not so many queues any more.
    let (bound, (), dmabuf) = while_it_waits(&pair, Way::Rx, |_| pair.rx.set_channels(QUEUE))?;
    report::observe(answer(&bound));
    assert_eq!(
        answer(&bound),
        "EINVAL, \"queue 1 is out of range, device has 1\""
    );
    wait_unmapped(&dmabuf)?;
    Ok(())
}

/// The driver stays as long as there is a mapping to be undone, and there is no binding of a device that goes.
fn the_device_goes_meanwhile() -> Outcome {
    if !is_module() {
        report::observe("not tried: the C code waits with the device locked");
        return Ok(());
    }
    for way in Way::BOTH {
        let pair = Pair::new()?;
        let dmabuf = shape().moves().with_fence().of_nothing()?;
        let (bound, went) = thread::scope(|scope| {
            let request = scope.spawn(|| way.bind(&pair, &dmabuf));
            wait_mapped(&dmabuf);
            let deleted = scope.spawn(|| way.end(&pair).delete());
            thread::sleep(wait::stretched(A_WHILE));
            let went = deleted.is_finished();
            let signalled = dmabuf.signal();
            let bound = request.join().expect("a thread that binds")?;
            deleted.join().expect("a thread that deletes")?;
            signalled?;
            Ok::<_, io::Error>((bound, went))
        })?;
        assert!(!went, "{way:?}: the driver is gone, the mapping is there");
        assert!(answer(&bound).starts_with("ENODEV"), "{}", answer(&bound));
        report::observe(format_args!("{way:?}: refused"));
        wait_unmapped(&dmabuf)?;
    }
    Ok(())
}

/// Who is killed does not wait for what may never come.
fn killed_meanwhile() -> Outcome {
    let pair = Pair::new()?;
    for way in Way::BOTH {
        let dmabuf = shape().moves().with_fence().of_nothing()?;
        let child = Child::start(|_| {
            child::enter(&way.end(&pair).ns)?;
            way.bind_here(&pair, &dmabuf)?;
            Err(io::Error::other("bound"))
        })?;
        wait_mapped(&dmabuf);
        thread::sleep(wait::stretched(A_WHILE));
        assert_eq!(dmabuf.state()?.mapped, 1, "{way:?}: it does not wait");
        drop(child);
        wait_unmapped(&dmabuf)?;
        report::observe(format_args!("{way:?}: unmapped"));
    }
    Ok(())
}

/// The NIC has stopped writing by the time that the memory is not mapped any more, whatever arrives.
fn nothing_is_written_after_the_end() -> Outcome {
    const LEN: u64 = 256 << 10;
    let memory = Shape::new(&[Segment { addr: 0, len: LEN }; 4])
        .of_memory(traffic::bytes(0, 4 * LEN as usize))?;
    let pair = Pair::new()?;
    let connection = pair.connect_to_queue(Ip::V4, 5001, QUEUE)?;
    let mut receiver = Receiver::new(&connection.rx);
    let mut position = 0;
    let mut pass = |bytes: u64| -> io::Result<()> {
        let mut got = 0;
        thread::scope(|scope| {
            let sender = traffic::send_in(scope, &connection.tx, position, bytes, 1 << 16);
            while got < bytes {
                let received = receiver.recv()?;
                assert!(!received.is_eof(), "the stream ended");
                got += received.total() as u64;
            }
            sender.join().expect("a thread that sends")
        })?;
        position += bytes;
        Ok(())
    };

    for _ in 0..8 {
        let bound = Way::Rx.bind(&pair, &memory)?.expect("to bind");
        pass(2 * LEN)?;
        drop(bound);
        wait_unmapped(&memory)?;
        pass(2 * LEN)?;
        assert_eq!(memory.state()?.written, 0, "written to after the unmapping");
    }
    report::observe("nothing");
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        ordinary,
        demands_peer_to_peer,
        demands_a_revocable_importer,
        falls_back_to_host_memory,
        falls_back_and_is_small,
        cannot_be_pinned,
        interrupted,
        no_room_for_peers,
        moves_to_be_pinned,
        pinned_while_bound,
        waits_for_the_kernel,
        takes_too_long,
        failures_leave_nothing_locked,
        families_come_and_go_meanwhile,
        the_device_is_free_meanwhile,
        the_queue_goes_meanwhile,
        the_device_goes_meanwhile,
        killed_meanwhile,
        nothing_is_written_after_the_end,
    ])
}
