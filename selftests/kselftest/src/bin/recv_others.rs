// SPDX-License-Identifier: GPL-2.0

//! Everything but recvmsg() that would read what a socket receives, and meets device memory.
//!
//! It has to be refused, or to pass by; nothing may be read, and what was refused is still to be had.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::ptr;
use std::time::Duration;

use devmem_testlib::Outcome;
use devmem_testlib::bpf::SockMap;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::pair::Ip;
use devmem_testlib::peer::Peer;
use devmem_testlib::peer::Segment;
use devmem_testlib::peer::packet_socket;
use devmem_testlib::peer::segment;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::errno;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::wait_received;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::tests;
use devmem_testlib::tls;
use devmem_testlib::tls::Way;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;

/// Room for everything that a test sends.
const ALL: usize = 1 << 16;

fn splice(from: &TcpStream, to: &OwnedFd, len: usize) -> io::Result<usize> {
    // SAFETY: Takes no pointers but null.
    let ret = unsafe {
        libc::splice(
            from.as_raw_fd(),
            ptr::null_mut(),
            to.as_raw_fd(),
            ptr::null_mut(),
            len,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    let result = usize::try_from(ret).map_err(|_| io::Error::last_os_error());
    observe(format_args!("splice: {result:?}"));
    result
}

fn splice_to_a_pipe() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    let (_out, pipe) = nix::unistd::pipe()?;
    bench.send(&[500])?;
    for _ in 0..3 {
        let result = splice(&bench.connection.rx, &pipe, ALL);
        assert_eq!(errno(result), Errno::EFAULT);
    }
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    // What is in host memory comes, up to where it ends.
    bench.steer(Receiving::PLAIN_QUEUE)?;
    bench.send(&[100])?;
    bench.steer(Receiving::QUEUE)?;
    bench.send(&[300])?;
    assert_eq!(splice(&bench.connection.rx, &pipe, ALL)?, 100);
    let result = splice(&bench.connection.rx, &pipe, ALL);
    assert_eq!(errno(result), Errno::EFAULT);
    probe.position = 600;
    probe.receive(&Call::new(ALL)).assert_frags(&[300]);
    probe.give_back();
    Ok(())
}

/// A file cannot be made of a socket that way, device memory or not.
fn sendfile_from_the_socket() -> Outcome {
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    bench.send(&[500])?;
    let file = memfd_create(c"received", MFdFlags::MFD_CLOEXEC)?;
    // SAFETY: Takes no pointers but null.
    let ret = unsafe {
        libc::sendfile(
            file.as_raw_fd(),
            bench.connection.rx.as_raw_fd(),
            ptr::null_mut(),
            100,
        )
    };
    assert_eq!((ret, Errno::last()), (-1, Errno::EINVAL));
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    probe.give_back();
    Ok(())
}

/// `struct tcp_zerocopy_receive`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct ZeroCopy {
    address: u64,
    length: u32,
    recv_skip_hint: u32,
    inq: u32,
    err: i32,
    copybuf_address: u64,
    copybuf_len: i32,
    flags: u32,
    msg_control: u64,
    msg_controllen: u64,
    msg_flags: u32,
    reserved: u32,
}

fn zero_copy(socket: &TcpStream, mut arg: ZeroCopy) -> io::Result<ZeroCopy> {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    let mut len = size_of_val(&arg) as libc::socklen_t;
    // SAFETY: `arg` is writable for `len` bytes, and so is what it points to.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_ZEROCOPY_RECEIVE,
            (&raw mut arg).cast(),
            &mut len,
        )
    };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    observe(format_args!(
        "length {} skip {} inq {} err {} copied {}",
        arg.length, arg.recv_skip_hint, arg.inq, arg.err, arg.copybuf_len
    ));
    Ok(arg)
}

fn zero_copy_receive() -> Outcome {
    const WINDOW: usize = 1 << 16;
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    let rx = &bench.connection.rx;
    // SAFETY: A new mapping, placed by the kernel, changes no memory of this program.
    let window = unsafe {
        libc::mmap(
            ptr::null_mut(),
            WINDOW,
            libc::PROT_READ,
            libc::MAP_SHARED,
            rx.as_raw_fd(),
            0,
        )
    };
    assert_ne!(window, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    let mut copy = vec![0_u8; 1 << 16];
    let arg = ZeroCopy {
        address: window as u64,
        length: WINDOW as u32,
        copybuf_address: copy.as_mut_ptr() as u64,
        ..Default::default()
    };
    bench.send(&[1400, 1400, 1400, 1400])?;
    // By mapping, and by copying.
    assert_eq!(zero_copy(rx, arg)?.length, 0);
    let copying = ZeroCopy {
        copybuf_len: copy.len() as i32,
        ..arg
    };
    match zero_copy(rx, copying) {
        Ok(answer) => assert!(answer.copybuf_len <= 0, "{answer:?}"),
        Err(err) => observe(format_args!("copying: {err}")),
    }
    assert!(copy.iter().all(|&byte| byte == 0), "bytes were copied");
    probe.receive(&Call::new(ALL)).assert_frags(&[1400; 4]);
    probe.give_back();
    // SAFETY: The mapping made above, to which nothing refers.
    unsafe { libc::munmap(window, WINDOW) };
    Ok(())
}

/// As tcpdump does: headers are there, payload is not.
fn packet_capture() -> Outcome {
    const LEN: usize = 500;
    /// Where a frame has its type, and that of the connection's.
    const ETHERTYPE: Range<usize> = 12..14;
    const IPV4: [u8; 2] = [8, 0];
    /// Where the header of IPv4 has the length of the packet.
    const LENGTH: usize = 16;
    let bench = Receiving::new()?;
    let mut probe = bench.probe();
    let capture = packet_socket(&bench.pair.rx)?;
    bench.send(&[LEN])?;
    let mut longest = 0;
    let mut buffer = [0_u8; 4096];
    soon("the frame", || {
        // SAFETY: `buffer` is writable for its length.
        let len = unsafe {
            libc::recv(
                capture.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        // Acknowledgments pass here, too.
        let Ok(len) = usize::try_from(len) else {
            return Ok(longest > 0);
        };
        // So does what the interface tells about itself.
        if buffer[..len].get(ETHERTYPE) == Some(&IPV4) {
            let of = u16::from_be_bytes([buffer[LENGTH], buffer[LENGTH + 1]]);
            if usize::from(of) > LEN {
                longest = longest.max(len);
            }
        }
        let payload = traffic::bytes(0, 16);
        let found = buffer[..len].windows(payload.len()).any(|w| w == payload);
        assert!(!found, "payload in a frame of {len} bytes");
        Ok(false)
    });
    observe(format_args!("the longest frame has {longest} bytes"));
    assert!(longest < 100, "{longest} bytes are more than headers");
    probe.receive(&Call::new(ALL)).assert_frags(&[LEN as u32]);
    probe.give_back();
    Ok(())
}

fn attach_filter(socket: &TcpStream, filter: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    sockopt::set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)
}

/// A filter sees headers. One that looks at the payload drops the segment, as filters do that look at
/// what is not there.
fn socket_filter() -> Outcome {
    const ACCEPT: libc::sock_filter = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: u32::MAX,
    };
    /// The payload is behind a header of 32 bytes.
    const LOOK: libc::sock_filter = libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: 40,
    };
    let bench = Receiving::new()?;
    let rx = &bench.connection.rx;
    let mut probe = bench.probe();
    attach_filter(rx, &mut [ACCEPT])?;
    bench.send(&[500])?;
    probe.receive(&Call::new(ALL)).assert_frags(&[500]);
    attach_filter(rx, &mut [LOOK, ACCEPT])?;
    bench.start_sending(700)?;
    soon("another try", || Ok(tx::tries_again(&bench.connection.tx)? > 0));
    probe
        .call(&Call::new(ALL).flags(libc::MSG_DONTWAIT))
        .assert_fails(libc::EAGAIN);
    sockopt::set(rx, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)?;
    // It is sent again.
    wait_received(rx, bench.sent());
    probe.receive(&Call::new(ALL)).assert_frags(&[700]);
    probe.give_back();
    Ok(())
}

fn expect_error(socket: &TcpStream, what: &str) {
    socket
        .set_read_timeout(Some(wait::stretched(Duration::from_millis(300))))
        .expect("SO_RCVTIMEO");
    let mut buffer = [0_u8; 4096];
    for flags in [0, devmem::recv::MSG_SOCK_DEVMEM] {
        // SAFETY: `buffer` is writable for its length.
        let ret = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                flags,
            )
        };
        let error = Errno::last();
        observe(format_args!("{what}, recv({flags:#x}): {ret} {error:?}"));
        assert!(ret <= 0, "{ret} bytes were received");
        assert!(buffer.iter().all(|&byte| byte == 0), "bytes were copied");
    }
}

fn tls_in_device_memory() -> Outcome {
    let bench = Receiving::new()?;
    tls::start(&bench.connection.rx, Way::Rx)?;
    io::Write::write_all(&mut &bench.connection.tx, &tls::record(200))?;
    bench.start_sending(192)?;
    wait_received(&bench.connection.rx, 205);
    expect_error(&bench.connection.rx, "all in device memory");
    Ok(())
}

/// The head of the record can be read, what it is about cannot.
fn tls_half_in_device_memory() -> Outcome {
    let bench = Receiving::new()?;
    tls::start(&bench.connection.rx, Way::Rx)?;
    bench.steer(Receiving::PLAIN_QUEUE)?;
    io::Write::write_all(&mut &bench.connection.tx, &tls::record(200))?;
    wait_received(&bench.connection.rx, 13);
    bench.steer(Receiving::QUEUE)?;
    bench.start_sending(192)?;
    wait_received(&bench.connection.rx, 205);
    expect_error(&bench.connection.rx, "half in device memory");
    Ok(())
}

fn sockmap() -> Outcome {
    let bench = Receiving::new()?;
    let map = SockMap::new()?;
    map.add(&bench.connection.rx)?;
    bench.start_sending(500)?;
    soon("the data to be acknowledged", || {
        Ok(traffic::unacknowledged(&bench.connection.tx)? == 0)
    });
    expect_error(&bench.connection.rx, "sockmap");
    drop(map);
    Ok(())
}

/// Signals of urgent data on a socket, for this thread, which holds them until they are asked for.
struct Urgent(SigSet);

impl Urgent {
    fn of(socket: &TcpStream) -> io::Result<Self> {
        /// `struct f_owner_ex`.
        #[repr(C)]
        struct Owner {
            kind: i32,
            id: libc::pid_t,
        }
        const F_SETOWN_EX: i32 = 15;
        const F_OWNER_TID: i32 = 0;
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGURG);
        signals.thread_block()?;
        let owner = Owner {
            kind: F_OWNER_TID,
            id: nix::unistd::gettid().as_raw(),
        };
        // SAFETY: `owner` is what F_SETOWN_EX reads.
        let ret = unsafe { libc::fcntl(socket.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
        match ret {
            0 => Ok(Self(signals)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes a signal, if there is one.
    fn take(&self) -> bool {
        const AT_ONCE: libc::timespec = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: Takes pointers to what lives longer, and one that may be null.
        let ret = unsafe { libc::sigtimedwait(self.0.as_ref(), ptr::null_mut(), &AT_ONCE) };
        ret == libc::SIGURG
    }
}

/// An urgent byte in device memory cannot be taken out of the stream: it stays there. Its reader is told of it.
fn urgent_byte() -> Outcome {
    const PORT: u16 = Receiving::PORT + 1;
    let bench = Receiving::new()?;
    bench.pair.steer(PORT, Receiving::QUEUE)?;
    let (peer, socket) = Peer::connect(&bench.pair, &bench.pair.listen(Ip::V4, PORT)?)?;
    let mut probe = bench.probe_of(&socket);
    let oob = Call::new(ALL).flags(libc::MSG_OOB | libc::MSG_DONTWAIT);
    let signals = Urgent::of(&socket)?;
    peer.send(Segment {
        urgent: Some(50),
        ..segment(0, 100)
    })?;
    wait_received(&socket, 100);
    soon("SIGURG", || Ok(signals.take()));
    observe(format_args!("poll: {:#x}", sockopt::poll(&socket)?));
    probe.call(&oob).assert_fails(libc::EINVAL);
    probe.receive(&Call::new(ALL)).assert_frags(&[100]);
    // Announced by a segment before the one that it is in.
    peer.send(Segment {
        urgent: Some(150),
        ..segment(100, 100)
    })?;
    wait_received(&socket, 200);
    probe.call(&oob).assert_fails(libc::EAGAIN);
    peer.send(segment(200, 100))?;
    wait_received(&socket, 300);
    probe.call(&oob).assert_fails(libc::EINVAL);
    while probe.position < 300 {
        probe.receive(&Call::new(ALL));
    }
    probe.give_back();
    Ok(())
}

/// A device does not read what is mapped for it to write, when a packet leaves as it came.
fn forwarded() -> Outcome {
    const PORT: u16 = Receiving::PORT + 2;
    const LEN: usize = 500;
    let bench = Receiving::new()?;
    let rx = &bench.pair.rx;
    rx.sysctl("ipv4/ip_forward", "1")?;
    let (peer, _socket) = Peer::connect(
        &bench.pair,
        &bench.pair.listen(Ip::V4, Receiving::PORT + 1)?,
    )?;
    // Packets that were forwarded, or nearly.
    let seen = || rx.snmp("Ip", "ForwDatagrams");

    bench.pair.steer(PORT, Receiving::PLAIN_QUEUE)?;
    peer.send_through(PORT, LEN)?;
    soon("the packet to come through", || {
        Ok(peer
            .came_through(PORT)
            .is_some_and(|b| b == traffic::bytes(0, LEN)))
    });

    bench.pair.steer_again(PORT, Receiving::QUEUE)?;
    let before = seen()?;
    peer.send_through(PORT, LEN)?;
    soon("the packet to be forwarded", || Ok(seen()? > before));
    // What is behind it on the same way has come: it does not come any more.
    bench.pair.steer_again(PORT, Receiving::PLAIN_QUEUE)?;
    peer.send_through(PORT, LEN + 1)?;
    let mut came = Vec::new();
    soon("the next packet to come through", || {
        came.extend(peer.came_through(PORT));
        Ok(came.iter().any(|bytes| bytes.len() == LEN + 1))
    });
    assert_eq!(came.len(), 1, "packets that came through");
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        splice_to_a_pipe,
        sendfile_from_the_socket,
        zero_copy_receive,
        packet_capture,
        forwarded,
        socket_filter,
        tls_in_device_memory,
        tls_half_in_device_memory,
        sockmap,
        urgent_byte,
    ])
}
