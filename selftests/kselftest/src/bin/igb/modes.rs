// SPDX-License-Identifier: GPL-2.0

//! What the NIC does without device memory, with headers split and without.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use devmem::errno_of;
use devmem_testlib::Outcome;
use devmem_testlib::pair::End;
use devmem_testlib::pair::Ip;
use devmem_testlib::peer::packet_socket;
use devmem_testlib::sockopt;
use devmem_testlib::wait;
use devmem_testlib::xdp;
use devmem_testlib::xsk::Xsk;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recv;
use nix::sys::socket::send;

use crate::PATIENCE;
use crate::PORT;
use crate::frame;
use crate::pair;
use crate::plain_traffic;
use crate::read_to_the_end;
use crate::split;
use crate::under_traffic;

/// Of a NIC with so many queues that is told to do things which reset it.
const CHANGES: [fn(&End, u32) -> io::Result<()>; 8] = [
    |end, _| end.set_ring_sizes(512, 512),
    |end, _| end.set_channels(2),
    |end, _| split(end, true),
    |end, _| end.set_ring_sizes(128, 128),
    |end, all| end.set_channels(all),
    |end, _| split(end, false),
    |end, _| split(end, true),
    |end, _| end.set_ring_sizes(256, 256),
];

pub fn ordinary_traffic() -> Outcome {
    let pair = pair()?;
    for on in [false, true] {
        for mtu in [1500, 9000] {
            pair.set_mtu(mtu)?;
            split(&pair.rx, on)?;
            pair.wait_for_link()?;
            for ip in [Ip::V4, Ip::V6] {
                plain_traffic(&pair, ip, 2 << 20)?;
            }
        }
    }
    Ok(())
}

/// No byte is lost or comes twice, whatever the NIC is told meanwhile.
pub fn changed_under_traffic() -> Outcome {
    let pair = pair()?;
    let all = pair.queues()?.len() as u32;
    split(&pair.rx, false)?;
    pair.wait_for_link()?;
    let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
    let read = |received: &_| read_to_the_end(&connection.rx, received);
    under_traffic(&connection, read, |goes_on| {
        for change in CHANGES {
            change(&pair.rx, all)?;
            goes_on()?;
        }
        Ok(())
    })
}

/// That of the driver, which the stack runs for it otherwise.
pub fn xdp() -> Outcome {
    let pair = pair()?;
    let attach = || pair.rx.ns.run(|| xdp::attach_to_driver(pair.rx.ifindex));
    split(&pair.rx, true)?;
    let refused = attach().expect_err("XDP with split headers");
    assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));

    split(&pair.rx, false)?;
    let program = attach()?;
    pair.wait_for_link()?;
    plain_traffic(&pair, Ip::V4, 2 << 20)?;
    let refused = split(&pair.rx, true).expect_err("split headers with XDP");
    assert_eq!(errno_of(&refused), Some(libc::EBUSY));
    drop(program);
    split(&pair.rx, true)?;
    pair.wait_for_link()?;
    plain_traffic(&pair, Ip::V4, 1 << 20)
}

/// Frames go to the socket by the driver's own way, and back.
pub fn af_xdp() -> Outcome {
    const ROUNDS: u8 = 200;
    let pair = pair()?;
    let socket = || pair.rx.ns.run(|| Xsk::new(pair.rx.ifindex, 0));
    split(&pair.rx, true)?;
    let refused = socket().expect_err("AF_XDP without copies, with split headers");
    assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));

    split(&pair.rx, false)?;
    {
        let xsk = socket()?;
        let fd = xsk.as_fd();
        let program = pair.rx.ns.run(|| xdp::redirect(pair.rx.ifindex, &fd))?;
        pair.wait_for_link()?;
        let other = frames_at(&pair.tx)?;
        for round in 0..ROUNDS {
            echo(&xsk, &other, &frame(round))?;
        }
        // With the program it is the core that refuses.
        drop(program);
        let refused = split(&pair.rx, true).expect_err("split headers with AF_XDP");
        assert_eq!(errno_of(&refused), Some(libc::EBUSY));
    }
    // The kernel does the rest of closing the socket later.
    wait::until("AF_XDP to be over", PATIENCE, || {
        match split(&pair.rx, true) {
            Err(err) if errno_of(&err) == Some(libc::EBUSY) => Ok(false),
            done => done.map(|()| true),
        }
    })?;
    pair.wait_for_link()?;
    plain_traffic(&pair, Ip::V4, 1 << 20)
}

/// A socket that sees what others send.
fn frames_at(end: &End) -> io::Result<OwnedFd> {
    const PACKET_IGNORE_OUTGOING: i32 = 23;
    let socket = packet_socket(end)?;
    sockopt::set(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
    Ok(socket)
}

/// Has the socket receive a frame, and send it back.
fn echo(xsk: &Xsk, other: &OwnedFd, frame: &[u8]) -> io::Result<()> {
    send(other.as_raw_fd(), frame, MsgFlags::empty())?;
    let mut sent = false;
    wait::until("the frame to come back", PATIENCE, || {
        while let Some((got, at)) = xsk.receive() {
            // What else is on the wire is no business of the test.
            if got == frame {
                xsk.send(at, got.len())?;
                sent = true;
            } else {
                xsk.give_back(at);
            }
        }
        while xsk.reuse() {}
        let mut buffer = [0; 2048];
        match recv(other.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(len) => Ok(sent && buffer[..len] == *frame),
            Err(nix::errno::Errno::EAGAIN) => Ok(false),
            Err(err) => Err(err.into()),
        }
    })?;
    Ok(())
}

/// The loopback test has rings of its own.
pub fn tests_itself() -> Outcome {
    let pair = pair()?;
    for on in [false, true] {
        split(&pair.rx, on)?;
        pair.wait_for_link()?;
        assert!(pair.rx.test_itself()?, "the NIC is not well");
        pair.wait_for_link()?;
        plain_traffic(&pair, Ip::V4, 1 << 20)?;
    }
    Ok(())
}
