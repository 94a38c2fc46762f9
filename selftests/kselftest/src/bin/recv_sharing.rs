// SPDX-License-Identifier: GPL-2.0

//! Sockets and tokens in more than one pair of hands.

use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::net::Shutdown;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::report;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use nix::sys::socket::ControlMessage;
use nix::sys::socket::ControlMessageOwned;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recvmsg;
use nix::sys::socket::sendmsg;

/// Room for everything that a test sends.
const ALL: usize = 1 << 16;

fn return_all(socket: &TcpStream, tokens: &[u32]) -> io::Result<u32> {
    let ranges: Vec<_> = tokens
        .iter()
        .map(|&start| TokenRange { start, count: 1 })
        .collect();
    let returned = dontneed(socket, &ranges)?;
    observe(format_args!(
        "{returned} of {} tokens returned",
        tokens.len()
    ));
    Ok(returned)
}

fn send_fd(through: &UnixStream, fd: RawFd) -> io::Result<()> {
    let fds = [fd];
    let control = [ControlMessage::ScmRights(&fds)];
    let data = [IoSlice::new(b"x")];
    sendmsg::<()>(
        through.as_raw_fd(),
        &data,
        &control,
        MsgFlags::empty(),
        None,
    )?;
    Ok(())
}

fn receive_fd(through: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        through.as_raw_fd(),
        &mut data,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let fd = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = fd.ok_or_else(|| io::Error::other("no file descriptor came"))?;
    // SAFETY: The kernel just made this file descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs `f` in a child process, which has to succeed.
fn in_child(f: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: The child has this one thread. The memory allocator, which glibc keeps usable across
    // fork(), is the only lock of another thread that it may take.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let sound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
            let status = match sound {
                Ok(Ok(())) => 0,
                Ok(Err(err)) => {
                    report::diag(format_args!("in the child: {err}"));
                    1
                }
                Err(_) => 2,
            };
            // SAFETY: Ends the child at once, without what exit() would do for the parent, too.
            unsafe { libc::_exit(status) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` is writable, and the child our own.
            if unsafe { libc::waitpid(child, &mut status, 0) } != child {
                return Err(io::Error::last_os_error());
            }
            match libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
                true => Ok(()),
                false => Err(io::Error::other(format!(
                    "the child ended with {status:#x}"
                ))),
            }
        }
    }
}

/// Another process gets the socket, receives from it and returns the tokens.
fn socket_passed_on() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    probe.receive(&Call::new(100)).assert_frags(&[100]);
    let (ours, theirs) = UnixStream::pair()?;
    send_fd(&ours, bench.connection.rx.as_raw_fd())?;
    let first = probe.held().to_vec();
    in_child(|| {
        let socket = TcpStream::from(receive_fd(&theirs)?);
        let mut probe = bench.probe_of(&socket);
        probe.position = 100;
        probe.receive(&Call::new(ALL)).assert_frags(&[400, 700]);
        probe.give_back();
        // Tokens are the socket's: this one was given to the other process.
        assert_eq!(return_all(&socket, &first)?, 1);
        Ok(())
    })?;
    assert_eq!(return_all(&bench.connection.rx, &first)?, 0);
    bench.send(&[300])?;
    probe.take_held();
    probe.position = 1200;
    probe.receive(&Call::new(ALL)).assert_frags(&[300]);
    probe.give_back();
    Ok(())
}

/// The child of a fork returns what its parent received, and the other way round.
fn tokens_across_fork() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    probe.receive(&Call::new(500)).assert_frags(&[500]);
    let ours = probe.take_held();
    in_child(|| {
        assert_eq!(return_all(&bench.connection.rx, &ours)?, 1);
        bench.probe().call(&Call::new(ALL)).assert_frags(&[700]);
        Ok(())
    })?;
    // The child's token was the lowest that was free.
    assert_eq!(return_all(&bench.connection.rx, &ours)?, 1);
    Ok(())
}

/// A child that ends with tokens in its hands leaves them to the socket.
fn child_ends_with_tokens() -> Outcome {
    let bench = Receiving::new()?;
    bench.send(&[500, 700])?;
    in_child(|| {
        let mut probe = bench.probe();
        probe.receive(&Call::new(ALL)).assert_frags(&[500, 700]);
        Ok(())
    })?;
    let id = bench.binding.id();
    let Receiving {
        connection,
        binding,
        ..
    } = bench;
    drop(binding);
    provider::wait_for("only the child's tokens to hold buffers", || {
        Ok(provider::binding(id)?.is_some_and(|info| info.in_use == 2))
    });
    drop(connection);
    provider::all_buffers_back(id);
    Ok(())
}

fn two_descriptors_of_a_socket() -> Outcome {
    let bench = Receiving::new()?;
    let other = bench.connection.rx.try_clone()?;
    let (mut one, mut two) = (bench.probe(), bench.probe_of(&other));
    bench.send(&[500, 700])?;
    one.receive(&Call::new(500)).assert_frags(&[500]);
    two.position = 500;
    two.receive(&Call::new(ALL)).assert_frags(&[700]);
    // Each returns what the other received.
    assert_eq!(return_all(&other, &one.take_held())?, 1);
    assert_eq!(return_all(&bench.connection.rx, &two.take_held())?, 1);
    Ok(())
}

/// Each accepted socket has tokens of its own, and the listener none.
fn accepted_children() -> Outcome {
    let bench = Receiving::new()?;
    bench.pair.steer(Receiving::PORT + 1, Receiving::QUEUE)?;
    let listener = bench.pair.listen(Ip::V4, Receiving::PORT + 1)?;
    let one = bench.pair.connect(&listener)?;
    let two = bench.pair.connect(&listener)?;
    let mut probes = [bench.probe_of(&one.rx), bench.probe_of(&two.rx)];
    for (connection, probe) in [&one, &two].into_iter().zip(&mut probes) {
        traffic::send(&connection.tx, 0, 500, 500)?;
        wait_received(&connection.rx, 500);
        probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    }
    assert_eq!(
        probes[0].held(),
        probes[1].held(),
        "numbers of the same socket"
    );
    let ranges = probes[0]
        .held()
        .iter()
        .map(|&start| TokenRange { start, count: 1 });
    assert_eq!(dontneed(&listener, &ranges.collect::<Vec<_>>())?, 0);
    // A listener that is closed takes nothing with it.
    drop(listener);
    for probe in &mut probes {
        probe.give_back();
    }
    Ok(())
}

/// Data that came before accept(), when there was no socket to receive them.
fn data_before_accept() -> Outcome {
    let bench = Receiving::new()?;
    bench.pair.steer(Receiving::PORT + 1, Receiving::QUEUE)?;
    let listener = bench.pair.listen(Ip::V4, Receiving::PORT + 1)?;
    let to = listener.local_addr()?;
    let tx = bench.pair.tx.ns.run(|| TcpStream::connect(to))?;
    traffic::send(&tx, 0, 500, 500)?;
    soon("the data to be acknowledged", || {
        Ok(traffic::unacknowledged(&tx)? == 0)
    });
    let (rx, _) = listener.accept()?;
    let mut probe = bench.probe_of(&rx);
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    probe.give_back();
    // And a connection that nobody ever accepts: its buffers come back with the listener.
    let tx = bench.pair.tx.ns.run(|| TcpStream::connect(to))?;
    traffic::send(&tx, 0, 500, 500)?;
    soon("the data to be acknowledged", || {
        Ok(traffic::unacknowledged(&tx)? == 0)
    });
    drop(listener);
    Ok(())
}

/// Calls of a shut down socket, and tokens that are returned afterwards.
fn after_shutdown() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    probe.receive(&Call::new(500)).assert_frags(&[500]);
    // The receiver will read no more; what is queued can still be had.
    bench.connection.rx.shutdown(Shutdown::Read)?;
    probe.receive(&Call::new(ALL)).assert_frags(&[700]);
    assert!(probe.receive(&Call::new(ALL)).is_empty());
    bench.connection.rx.shutdown(Shutdown::Both)?;
    assert!(probe.receive(&Call::new(ALL)).is_empty());
    probe.give_back();
    Ok(())
}

fn tokens_after_the_end() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500])?;
    bench.connection.tx.shutdown(Shutdown::Both)?;
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    assert!(probe.receive(&Call::new(ALL)).is_empty());
    probe.give_back();
    Ok(())
}

/// The peer resets the connection: what is queued stays, and so do tokens.
fn tokens_after_a_reset() -> Outcome {
    let bench = Receiving::new()?;
    let Receiving {
        connection,
        binding,
        map,
        pair: _pair,
        ..
    } = bench;
    let mut probe = Probe::new(&connection.rx, &[(binding.id(), &map)]);
    traffic::send(&connection.tx, 0, 500, 500)?;
    wait_received(&connection.rx, 500);
    probe.receive(&Call::new(100)).assert_frags(&[100]);
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    sockopt::set(&connection.tx, libc::SOL_SOCKET, libc::SO_LINGER, linger)?;
    drop(connection.tx);
    soon("the reset", || {
        Ok(sockopt::poll(&connection.rx)? & libc::POLLHUP != 0)
    });
    probe.receive(&Call::new(100)).assert_frags(&[100]);
    probe.receive(&Call::new(ALL)).assert_frags(&[300]);
    probe.call(&Call::new(ALL)).assert_fails(libc::ECONNRESET);
    assert!(probe.receive(&Call::new(ALL)).is_empty());
    probe.give_back();
    Ok(())
}

/// A socket that is disconnected drops what is queued, and keeps tokens until it is closed.
fn tokens_after_a_disconnect() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500, 700])?;
    probe.receive(&Call::new(500)).assert_frags(&[500]);
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: `unspecified` is a sockaddr of the length given.
    let ret = unsafe {
        libc::connect(
            bench.connection.rx.as_raw_fd(),
            &raw const unspecified,
            size_of_val(&unspecified) as libc::socklen_t,
        )
    };
    assert_eq!(ret, 0, "{}", io::Error::last_os_error());
    probe.call(&Call::new(ALL)).assert_fails(libc::ECONNRESET);
    probe.give_back();
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        socket_passed_on,
        tokens_across_fork,
        child_ends_with_tokens,
        two_descriptors_of_a_socket,
        accepted_children,
        data_before_accept,
        after_shutdown,
        tokens_after_the_end,
        tokens_after_a_reset,
        tokens_after_a_disconnect,
    ])
}
