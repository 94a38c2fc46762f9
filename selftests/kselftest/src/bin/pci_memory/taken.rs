// SPDX-License-Identifier: GPL-2.0

//! The device takes its memory back, with data in motion: when that is over nobody writes there, and nothing is sent that was
//! not there.

use std::io;
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::Error;
use devmem::Extent;
use devmem::send::enable_zerocopy;
use devmem::status::EventKind;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::bar::Bar;
use devmem_testlib::child;
use devmem_testlib::child::Child;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::report::Stop;
use devmem_testlib::report::diag;
use devmem_testlib::taken;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use devmem_testlib::tx;
use devmem_testlib::tx::Call;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;
use nix::errno::Errno;

const MIB: u64 = 1 << 20;
const QUEUE: u32 = 1;
const PORT: u16 = 5001;
const ROUNDS: usize = 4;
const PART: Extent = Extent {
    offset: 0,
    len: 4 * MIB,
};
/// What happens has happened by then.
const SOON: Duration = Duration::from_secs(5);

/// How the device takes it back.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// It does not answer any more, for a moment.
    Disabled,
    /// It is reset.
    Reset,
    /// It is closed, and opened again.
    Closed,
}

impl Way {
    /// Has the device take back what is made of its memory, of which that is the last descriptor. Then it is there again.
    fn take(self, bar: Bar, memory: DmaBuf) -> io::Result<Bar> {
        match self {
            Self::Disabled => {
                bar.device.enable_memory(false)?;
                bar.device.enable_memory(true)?;
            }
            Self::Reset => bar.device.reset()?,
            Self::Closed => {
                drop((bar, memory));
                return Bar::open();
            }
        }
        Ok(bar)
    }
}

/// While it does not answer, its memory is not to be had, and then it is again.
pub fn not_answering() -> Outcome {
    let pair = Pair::new()?;
    let bar = Bar::open()?;
    let memory = bar.part(PART)?;
    let refused = |memory: &DmaBuf| -> io::Result<()> {
        let rx = pair.rx.ns.run(|| Ok(pair.request(&[QUEUE]).bind(memory)))?;
        let tx = pair.tx.bind_tx(memory);
        for refused in [rx.err(), tx.err()] {
            let Some(Error::Refused { errno, .. }) = refused else {
                panic!("not refused: {refused:?}");
            };
            assert_eq!(Errno::from_raw(errno), Errno::ENODEV);
        }
        Ok(())
    };
    bar.device.enable_memory(false)?;
    // What is made of it meanwhile is no better.
    let made_meanwhile = bar.part(PART)?;
    refused(&memory)?;
    refused(&made_meanwhile)?;
    bar.device.enable_memory(true)?;
    for memory in [&memory, &made_meanwhile] {
        drop((pair.bind(&[QUEUE], memory)?, pair.tx.bind_tx(memory)?));
    }
    Ok(())
}

/// The memory that was taken back, with nothing in it.
struct Cleared {
    bar: Bar,
    memory: DmaBuf,
}

impl Cleared {
    fn new(bar: Bar) -> io::Result<Self> {
        let memory = bar.part(PART)?;
        let mut region = memory.region()?;
        let mut write = region.begin_write()?;
        let nothing = vec![0; MIB as usize];
        for at in (0..PART.len).step_by(MIB as usize) {
            write.copy_in(at, &nothing)?;
        }
        Ok(Self { bar, memory })
    }

    /// Nobody has written there.
    #[track_caller]
    fn check(self) -> io::Result<Bar> {
        let map = self.memory.map()?;
        let cpu = map.begin_read()?;
        let mut seen = vec![0; MIB as usize];
        for at in (0..PART.len).step_by(MIB as usize) {
            cpu.copy_out(at, &mut seen)?;
            let first = seen.iter().position(|&byte| byte != 0);
            assert_eq!(first, None, "written to after it was taken, behind {at}");
        }
        Ok(self.bar)
    }
}

/// Has memory taken while it is received into, and looks whether it is left alone from then on.
fn receive_until(
    pair: &Pair,
    listener: &TcpListener,
    take: impl FnOnce() -> io::Result<Bar>,
) -> io::Result<Bar> {
    let mut cleared = None;
    let (time, end) = taken::while_received(&pair.connect(listener)?, || {
        cleared = Some(Cleared::new(take()?)?);
        Ok(())
    })?;
    // What was in it is lost, if it was not read.
    assert!(matches!(end, Ok(()) | Err(Errno::EIO)), "{end:?}");
    diag(format_args!(
        "taken and cleared in {time:?}, reader: {end:?}"
    ));

    // Another flow by the same queue, longer than what a ring may have had.
    let connection = pair.connect(listener)?;
    thread::scope(|scope| {
        let sender = traffic::send_in(scope, &connection.tx, 0, PART.len, 1 << 16);
        let mut reader = Reader::of_nothing(&connection.rx);
        reader.read_until(PART.len)?;
        sender.join().expect("the sender's thread")
    })?;
    cleared.expect("to be taken").check()
}

/// Waits until the owner of a binding is told.
fn wait_revoked(binding: &mut Binding) -> Result<(), Error> {
    loop {
        let event = binding.wait_event(wait::patience(SOON))?;
        if event.expect("to be revoked").kind == EventKind::Revoked {
            return Ok(());
        }
    }
}

fn received_until(way: Way) -> Outcome {
    let pair = Pair::new()?;
    pair.steer(PORT, QUEUE)?;
    let listener = pair.listen(Ip::V4, PORT)?;
    let mut bar = Bar::open()?;
    for _ in 0..ROUNDS {
        let memory = bar.part(PART)?;
        let mut binding = pair.bind(&[QUEUE], &memory)?;
        bar = receive_until(&pair, &listener, || way.take(bar, memory))?;
        pair.rx.ns.run(|| Ok(wait_revoked(&mut binding)?))?;
    }
    Ok(())
}

pub fn received_until_disabled() -> Outcome {
    received_until(Way::Disabled)
}

pub fn received_until_reset() -> Outcome {
    received_until(Way::Reset)
}

pub fn received_until_closed() -> Outcome {
    received_until(Way::Closed)
}

/// Who has the device and the binding is killed.
pub fn received_until_killed() -> Outcome {
    let pair = Pair::new()?;
    pair.steer(PORT, QUEUE)?;
    let listener = pair.listen(Ip::V4, PORT)?;
    for _ in 0..ROUNDS {
        let mut owner = Child::start(|talk| {
            child::enter(&pair.rx.ns)?;
            let memory = Bar::open()?.part(PART)?;
            let binding = pair.request(&[QUEUE]).bind(&memory)?;
            talk.tell(binding.id())?;
            talk.wait_for_the_end()
        })?;
        owner.talk().hear_number()?;
        receive_until(&pair, &listener, || {
            drop(owner);
            Bar::open()
        })?;
    }
    Ok(())
}

/// Sends from the memory until it is taken back. What has arrived by then is what was there.
fn send_until<T>(
    connection: &Connection,
    id: u32,
    known: &[Errno],
    take: impl FnOnce() -> io::Result<T>,
) -> Result<T, Stop> {
    enable_zerocopy(&connection.tx)?;
    let mut back = None;
    let (time, told, end) = taken::while_sent(connection, id, PART.len, || {
        back = Some(take()?);
        Ok(())
    })?;
    assert!(known.contains(&told), "the sender was told {told}");
    diag(format_args!(
        "taken in {time:?}, sender: {told}, stream: {end:?}"
    ));
    Ok(back.expect("to be taken"))
}

fn sent_until(way: Way) -> Outcome {
    let pair = Pair::sending()?;
    let listener = pair.listen(Ip::V4, PORT)?;
    let mut bar = Bar::open()?;
    for _ in 0..ROUNDS {
        let memory = bar.part(PART)?;
        tx::fill(&memory)?;
        let binding = pair.tx.bind_tx(&memory)?;
        let connection = pair.connect(&listener)?;
        let known = [Errno::EIO, Errno::ENODEV];
        // Whoever reads it from now on sends zeros.
        let cleared = send_until(&connection, binding.id(), &known, || {
            Cleared::new(way.take(bar, memory)?)
        })?;
        bar = cleared.bar;
        let more = Call::new(binding.id(), &[extent(0, 1)]);
        tx::fails(more.send(&connection.tx), Errno::ENODEV);
    }
    Ok(())
}

pub fn sent_until_disabled() -> Outcome {
    sent_until(Way::Disabled)
}

pub fn sent_until_reset() -> Outcome {
    sent_until(Way::Reset)
}

pub fn sent_until_closed() -> Outcome {
    sent_until(Way::Closed)
}

/// Who has the device and the binding is killed; this one sends as the same user.
pub fn sent_until_killed() -> Outcome {
    let pair = Pair::sending()?;
    let listener = pair.listen(Ip::V4, PORT)?;
    for _ in 0..ROUNDS {
        let mut owner = Child::start(|talk| {
            child::enter(&pair.tx.ns)?;
            let memory = Bar::open()?.part(PART)?;
            tx::fill(&memory)?;
            let binding = BindTx::new(pair.tx.ifindex).shared().bind(&memory)?;
            talk.tell(binding.id())?;
            talk.wait_for_the_end()
        })?;
        let id = owner.talk().hear_number()?;
        let connection = pair.connect(&listener)?;
        // The last one if the binding went, too.
        let known = [Errno::EIO, Errno::ENODEV, Errno::EINVAL];
        send_until(&connection, id, &known, || {
            drop(owner);
            Cleared::new(Bar::open()?)
        })?;
    }
    Ok(())
}
