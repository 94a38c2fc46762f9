// SPDX-License-Identifier: GPL-2.0

//! What is sent from: nothing is any more, and connections that still have to are aborted.

use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::Extent;
use devmem::netdev::Netdev;
use devmem::send::enable_zerocopy;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::storm;
use devmem_testlib::taken;
use devmem_testlib::taken::End;
use devmem_testlib::taken::assert_aborted;
use devmem_testlib::taken::read_until_reset;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::Call;
use devmem_testlib::tx::extent;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::memory::LEN;
use crate::memory::memory;
use crate::memory::revoke;
use crate::memory::shape;
use crate::memory::tell_times;
use crate::memory::wait_gone;

const PORT: u16 = 5001;
const PART: Extent = Extent {
    offset: 1234,
    len: 10_000,
};
const ROUNDS: u64 = 20;
/// Half the bytes that the peer has room for, which is less than the sender has.
const ROOM: usize = 4 << 10;
/// Who is blocked by then stays so.
const A_WHILE: Duration = Duration::from_millis(300);

/// Memory that is bound to be sent from.
struct Bound {
    memory: OddDmaBuf,
    id: u32,
    owner: Netdev,
}

impl Bound {
    fn new(pair: &Pair) -> io::Result<Self> {
        let memory = memory(&shape().demands_peer().demands_revocable())?;
        let (owner, id) = pair.tx.ns.run(|| {
            let mut netdev = Netdev::open()?;
            let id = netdev.bind_tx(&BindTx::new(pair.tx.ifindex).attrs(&memory))?;
            Ok((netdev, id))
        })?;
        Ok(Self { memory, id, owner })
    }

    fn call(&self, extents: &[Extent]) -> Call {
        Call::new(self.id, extents)
    }

    /// Sends all of it once more, from where the `sent` bytes before ended, if there is room.
    fn send_more(&self, socket: &TcpStream, sent: u64) -> io::Result<u64> {
        let offset = sent % (4 * LEN);
        let call = self.call(&[extent(offset, 4 * LEN - offset)]);
        let call = call.flags(libc::MSG_ZEROCOPY | libc::MSG_DONTWAIT);
        match call.send(socket) {
            Ok(now) => Ok(now as u64),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(err) => Err(err),
        }
    }

    /// Sends more than the peer has room for.
    fn fill(&self, socket: &TcpStream) -> io::Result<u64> {
        let mut sent = 0;
        provider::wait_for("room to send", || {
            sent += self.send_more(socket, sent)?;
            Ok(sent > 4 * ROOM as u64)
        });
        Ok(sent)
    }
}

/// Connections to it have little room at its end.
fn listen(pair: &Pair) -> io::Result<TcpListener> {
    let listener = pair.listen(Ip::V4, PORT)?;
    setsockopt(&listener, sockopt::RcvBuf, &ROOM)?;
    Ok(listener)
}

fn connect_to(pair: &Pair, listener: &TcpListener) -> io::Result<Connection> {
    let connection = pair.connect(listener)?;
    enable_zerocopy(&connection.tx)?;
    Ok(connection)
}

fn connect(pair: &Pair) -> io::Result<Connection> {
    connect_to(pair, &listen(pair)?)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// A connection that has nothing of the memory goes on.
pub fn sent_and_acknowledged() -> Outcome {
    let pair = Pair::new()?;
    let bound = Bound::new(&pair)?;
    let connection = connect(&pair)?;
    let (mut to, from) = (&connection.tx, &connection.rx);
    bound.call(&[PART]).send(to)?;
    tx::expect(from, &[PART])?;
    provider::wait_for("the acknowledgement", || {
        Ok(traffic::unacknowledged(to)? == 0)
    });

    revoke(&bound.memory)?;
    tx::fails(bound.call(&[PART]).send(to), Errno::ENODEV);
    to.write_all(traffic::bytes(PART.offset, PART.len as usize))?;
    tx::expect(from, &[PART])?;
    drop(bound.owner);
    tx::fails(Call::new(bound.id, &[PART]).send(to), Errno::EINVAL);
    Ok(())
}

/// There is more of it than its peer has room for.
pub fn not_acknowledged() -> Outcome {
    let pair = Pair::new()?;
    let bound = Bound::new(&pair)?;
    let connection = connect(&pair)?;
    let sent = bound.fill(&connection.tx)?;
    revoke(&bound.memory)?;
    assert_aborted(&connection)?;
    let got = read_until_reset(&connection.rx, 4 * LEN)?;
    assert!(got < sent, "{got} of {sent} bytes");
    drop(bound.owner);
    Ok(())
}

/// Neither end asks where the other is from now on: the kernel waits three seconds for an answer.
fn know_each_other(pair: &Pair, connection: &Connection) -> Outcome {
    for (end, other, socket) in [
        (&pair.tx, &pair.rx, &connection.tx),
        (&pair.rx, &pair.tx, &connection.rx),
    ] {
        let SocketAddr::V4(address) = socket.peer_addr()? else {
            panic!("not a connection of IPv4");
        };
        end.add_neighbour(*address.ip(), other.mac()?)?;
    }
    Ok(())
}

/// It has been given to the device's queue: that does not send it any more.
pub fn in_a_qdisc() -> Outcome {
    let pair = Pair::new()?;
    let bound = Bound::new(&pair)?;
    let connection = connect(&pair)?;
    know_each_other(&pair, &connection)?;
    // Longer than it takes to revoke; but the reset has to come through it, too. Twice: the first one makes the
    // peer ask whether it is meant.
    let delay = wait::stretched(Duration::from_secs(1)).as_millis();
    pair.tx.queueing(&format!("netem delay {delay}ms"))?;
    bound.call(&[PART]).send(&connection.tx)?;
    revoke(&bound.memory)?;
    assert_aborted(&connection)?;
    assert_eq!(read_until_reset(&connection.rx, 4 * LEN)?, 0);
    drop(bound.owner);
    Ok(())
}

/// Somebody waits for room to send more of it.
pub fn while_it_is_sent() -> Outcome {
    let pair = Pair::new()?;
    let bound = Bound::new(&pair)?;
    let connection = connect(&pair)?;
    bound.fill(&connection.tx)?;
    let result = thread::scope(|scope| {
        let sender = scope.spawn(|| bound.call(&[extent(0, 4 * LEN)]).send(&connection.tx));
        thread::sleep(wait::stretched(A_WHILE));
        assert!(!sender.is_finished(), "there was room");
        let revoked = bound.memory.revoke();
        let result = sender.join().expect("a thread that sends");
        assert_eq!(revoked, Ok(()));
        result
    });
    // It is told, unless it had sent a part.
    match result {
        Ok(_) => assert_aborted(&connection)?,
        Err(err) => assert_eq!(errno(&err), Errno::EIO),
    }
    wait_gone(&bound.memory)?;
    // To whoever sends from it that counts first; others learn that the connection is over.
    tx::fails(bound.call(&[PART]).send(&connection.tx), Errno::ENODEV);
    tx::fails((&connection.tx).write(b"other"), Errno::EPIPE);
    drop(bound.owner);
    Ok(())
}

/// Again and again, with everything in motion.
pub fn sent_under_traffic() -> Outcome {
    let pair = Pair::new()?;
    let listener = pair.listen(Ip::V4, PORT)?;
    let (mut times, mut aborted) = (Vec::new(), 0);
    let rounds = ROUNDS * u64::from(storm::scale("STORM_ROUNDS", 1));
    for _ in 0..rounds {
        let bound = Bound::new(&pair)?;
        let connection = connect_to(&pair, &listener)?;
        let revoke = || Ok(bound.memory.revoke()?);
        let (time, told, end) = taken::while_sent(&connection, bound.id, 4 * LEN, revoke)?;
        assert!(matches!(told, Errno::EIO | Errno::ENODEV), "{told}");
        assert_ne!(end, End::Lost, "netdevsim loses nothing");
        times.push(time);
        aborted += u64::from(end == End::Reset);
        wait_gone(&bound.memory)?;
        drop(bound.owner);
    }
    tell_times(
        times,
        format_args!("{aborted} of {rounds} connections were aborted"),
    );
    Ok(())
}

/// Who sends from something else, by the same device, does not notice.
pub fn beside_another_binding() -> Outcome {
    let pair = Pair::new()?;
    let (bound, other) = (Bound::new(&pair)?, Bound::new(&pair)?);
    let stuck = connect(&pair)?;
    let works = connect_to(&pair, &pair.listen(Ip::V4, PORT + 1)?)?;
    bound.fill(&stuck.tx)?;
    other.call(&[PART]).send(&works.tx)?;
    revoke(&bound.memory)?;
    assert_aborted(&stuck)?;
    other.call(&[PART]).send(&works.tx)?;
    tx::expect(&works.rx, &[PART, PART])?;
    assert!(works.tx.take_error()?.is_none());
    drop((bound.owner, other.owner));
    Ok(())
}

/// Whoever comes first, the owner or the exporter: both have what they want.
pub fn sent_while_it_is_unbound() -> Outcome {
    let pair = Pair::new()?;
    let listener = listen(&pair)?;
    for round in 0..ROUNDS {
        let connection = connect_to(&pair, &listener)?;
        let Bound { memory, owner, id } = Bound::new(&pair)?;
        Call::new(id, &[extent(0, 4 * LEN)])
            .flags(libc::MSG_ZEROCOPY | libc::MSG_DONTWAIT)
            .send(&connection.tx)?;
        thread::scope(|scope| {
            let revoked = scope.spawn(|| memory.revoke());
            // Sooner or later within what it takes.
            thread::sleep(Duration::from_millis(round));
            drop(owner);
            assert_eq!(revoked.join().expect("a thread that revokes"), Ok(()));
        });
        wait_gone(&memory)?;
        assert_aborted(&connection)?;
    }
    Ok(())
}

/// The same for the device.
pub fn sent_while_the_device_goes() -> Outcome {
    for round in 0..8 {
        let pair = Pair::new()?;
        let bound = Bound::new(&pair)?;
        let connection = connect(&pair)?;
        bound.fill(&connection.tx)?;
        thread::scope(|scope| -> Outcome {
            let revoked = scope.spawn(|| bound.memory.revoke());
            thread::sleep(Duration::from_millis(4 * round));
            pair.tx.delete()?;
            assert_eq!(revoked.join().expect("a thread that revokes"), Ok(()));
            Ok(())
        })?;
        wait_gone(&bound.memory)?;
        drop(bound.owner);
    }
    Ok(())
}
