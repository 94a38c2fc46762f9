// SPDX-License-Identifier: GPL-2.0

//! A reader that keeps its tokens until no buffer is left.

use std::io;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::Piece;
use devmem::Receiver;
use devmem::Token;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::provider;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;

const PAGE: usize = 4096;
const BUFFERS: usize = 128;
const QUEUE: u32 = 1;
const PORT: u16 = 5001;
const LEN: u64 = 4 << 20;
/// Between two looks at whether the device has dropped something.
const LOOK: Duration = Duration::from_millis(100);

/// Receives and compares, but keeps every token, until nothing is left to read and the device has dropped
/// something since it has no buffer.
fn hoard<'s>(
    receiver: &mut Receiver<'s>,
    cpu: &devmem::dmabuf::Mapping,
    position: &mut u64,
    no_buffer: impl Fn() -> io::Result<u64>,
) -> io::Result<Vec<Token<'s>>> {
    let mut hoarded = Vec::new();
    let mut scratch = vec![0; 1 << 20];
    loop {
        let received = match receiver.recv() {
            Ok(received) => received,
            Err(err) if err.kind() == ErrorKind::WouldBlock && no_buffer()? > 0 => {
                return Ok(hoarded);
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => continue,
            Err(err) => return Err(err),
        };
        assert!(!received.is_eof(), "the stream ended at {position}");
        let cpu = cpu.begin_read()?;
        for piece in received {
            let Piece::Frag(frag) = piece else {
                panic!("not in device memory: {piece:?}")
            };
            let bytes = &mut scratch[..frag.size as usize];
            cpu.copy_out(frag.offset, bytes)?;
            traffic::compare(*position, bytes);
            *position += u64::from(frag.size);
            hoarded.push(frag.token);
        }
    }
}

fn drops_are_counted_and_the_flow_resumes() -> Outcome {
    let memory = DmaBuf::udmabuf(BUFFERS * PAGE)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let no_buffer = || pair.rx.counter(&format!("rx{QUEUE}_no_buffer"));
    assert_eq!(no_buffer()?, 0);

    thread::scope(|scope| -> Outcome {
        let sender = traffic::send_in(scope, &connection.tx, 0, LEN, 1 << 20);
        let timeout = connection.rx.read_timeout()?;
        connection.rx.set_read_timeout(Some(LOOK))?;
        let mut receiver = Receiver::new(&connection.rx);
        let mut position = 0;
        let hoarded = hoard(&mut receiver, &map, &mut position, no_buffer)?;
        assert!(
            position > 0 && position < LEN,
            "the flow went on to {position}"
        );
        if let Some(info) = provider::binding(binding.id())? {
            assert!(info.in_use > 0 && info.in_use <= info.buffers, "{info:?}");
        }

        drop(hoarded);
        connection.rx.set_read_timeout(timeout)?;
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        reader.position = position;
        reader.read_until(LEN)?;
        reader.assert_all_device_memory();
        sender.join().expect("the sender's thread")?;
        Ok(())
    })?;

    let id = binding.id();
    drop((connection, binding));
    provider::all_buffers_back(id);
    Ok(())
}

/// One page of memory: a buffer for one small packet at a time.
fn one_buffer() -> Outcome {
    const LEN: u64 = 20;
    let memory = DmaBuf::udmabuf(PAGE)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[QUEUE], &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, PORT, QUEUE)?;
    let mut reader = Reader::new(&connection.rx, &map, binding.id());
    for position in 0..LEN {
        traffic::send(&connection.tx, position, 1, 1)?;
        reader.read_until(position + 1)?;
    }
    reader.assert_all_device_memory();
    Ok(())
}

/// While one binding is dry, the queue of another goes on.
fn the_neighbour_goes_on() -> Outcome {
    let (dry, wet) = (DmaBuf::udmabuf(16 * PAGE)?, DmaBuf::udmabuf(4 << 20)?);
    let (dry_map, wet_map) = (dry.map()?, wet.map()?);
    let pair = Pair::new()?;
    let dry_binding = pair.bind(&[1], &dry)?;
    let wet_binding = pair.bind(&[2], &wet)?;
    let to_dry = pair.connect_to_queue(Ip::V4, PORT, 1)?;
    let to_wet = pair.connect_to_queue(Ip::V4, PORT + 1, 2)?;

    thread::scope(|scope| {
        let dry_sender = traffic::send_in(scope, &to_dry.tx, 0, 1 << 20, 1 << 20);
        let timeout = to_dry.rx.read_timeout()?;
        to_dry.rx.set_read_timeout(Some(LOOK))?;
        let mut receiver = Receiver::new(&to_dry.rx);
        let mut position = 0;
        let no_buffer = || pair.rx.counter("rx1_no_buffer");
        let hoarded = hoard(&mut receiver, &dry_map, &mut position, no_buffer)?;
        assert!(position < 1 << 20, "the flow went on");

        let wet_sender = traffic::send_in(scope, &to_wet.tx, 0, LEN, 1 << 20);
        let mut reader = Reader::new(&to_wet.rx, &wet_map, wet_binding.id());
        reader.read_until(LEN)?;
        wet_sender.join().expect("the sender's thread")?;

        drop(hoarded);
        to_dry.rx.set_read_timeout(timeout)?;
        let mut reader = Reader::new(&to_dry.rx, &dry_map, dry_binding.id());
        reader.position = position;
        assert!(reader.read_some()?, "the stream ended");
        to_dry.tx.shutdown(std::net::Shutdown::Both)?;
        // How much the sender got rid of does not matter.
        let _ = dry_sender.join().expect("the sender's thread");
        Ok(())
    })
}

/// Takes `count` buffers, a byte in each.
fn take(bench: &Receiving, probe: &mut Probe<'_>, count: usize) -> io::Result<()> {
    for _ in 0..count {
        bench.start_sending(1)?;
        probe.receive(&Call::new(1)).assert_frags(&[1]);
    }
    Ok(())
}

/// However a queue stops, and whenever buffers come back: none of them is lost.
fn restarts_lose_no_buffer() -> Outcome {
    /// More than page pools keep: the rest goes back to the provider as soon as the tokens do.
    const ALL: usize = 256 + 64;
    const SOME: usize = 40;
    let bench = Receiving::into_memory(DmaBuf::udmabuf(ALL * PAGE)?)?;
    let mut probe = bench.probe().quiet();
    let rx = &bench.pair.rx;
    let is_free = || Ok(provider::binding(bench.binding.id())?.is_none_or(|info| info.in_use == 0));

    take(&bench, &mut probe, ALL)?;
    probe.give_back();
    for mode in 0..=3 {
        take(&bench, &mut probe, SOME)?;
        rx.reset_queue(Receiving::QUEUE, mode)?;
        // Half of them to the page pool that is gone, and half to the next one that goes.
        take(&bench, &mut probe, SOME)?;
        probe.give_back();
    }
    rx.set_up(false)?;
    provider::wait_for("every buffer to be free", is_free);
    rx.set_up(true)?;
    take(&bench, &mut probe, ALL)?;
    probe.give_back();
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        drops_are_counted_and_the_flow_resumes,
        one_buffer,
        the_neighbour_goes_on,
        restarts_lose_no_buffer,
    ])
}
