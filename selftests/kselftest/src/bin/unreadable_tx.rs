// SPDX-License-Identifier: GPL-2.0

//! Sending from a dma-buf where something on the way wants to read the payload: devices that have lost
//! features, or are others by now, signatures, IPsec, captures, timestamps, sockets in repair, and those that
//! are not quite of TCP.

use std::collections::BTreeSet;
use std::io;
use std::io::Read;
use std::io::Write;
use std::mem;
use std::net::Shutdown;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Extent;
use devmem::TxBinding;
use devmem::cmsg::Cmsgs;
use devmem::completion;
use devmem::send::enable_zerocopy;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::bpf::SockMap;
use devmem_testlib::child;
use devmem_testlib::child::Child;
use devmem_testlib::child::NOBODY;
use devmem_testlib::fixture::Sending;
use devmem_testlib::kcm;
use devmem_testlib::keys;
use devmem_testlib::keys::Signature;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Feature;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::address;
use devmem_testlib::pair::sender;
use devmem_testlib::peer::packet_socket;
use devmem_testlib::probe::errno;
use devmem_testlib::probe::received;
use devmem_testlib::probe::soon;
use devmem_testlib::provider;
use devmem_testlib::report::Stop;
use devmem_testlib::report::diag;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::sockopt;
use devmem_testlib::tests;
use devmem_testlib::tls;
use devmem_testlib::tls::Way;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::Call;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::Decoy;
use devmem_testlib::tx::extent;
use devmem_testlib::tx::outcome;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const PORT: u16 = Sending::PORT;
/// What most tests send.
const PART: Extent = Extent {
    offset: 1234,
    len: 1000,
};

/// A transfer of more than the buffers of both sockets hold.
struct Large {
    pair: Pair,
    binding: TxBinding,
    connection: Connection,
    parts: Vec<Extent>,
    _memory: DmaBuf,
}

impl Large {
    const MEMORY: u64 = 16;
    /// In pieces of 1 MiB.
    const TRANSFER: u64 = 24;
    /// Pieces that arrive before anything happens.
    const BEFORE: usize = 2;

    fn new() -> Result<Self, Stop> {
        let memory = DmaBuf::udmabuf((Self::MEMORY * MIB) as usize)?;
        tx::fill(&memory)?;
        let pair = Pair::new()?;
        let binding = pair.tx.bind_tx(&memory)?;
        let connection = pair.connect(&pair.listen(Ip::V4, PORT)?)?;
        enable_zerocopy(&connection.tx)?;
        let parts = (0..Self::TRANSFER)
            .map(|i| extent(i % Self::MEMORY * MIB, MIB))
            .collect();
        Ok(Self {
            pair,
            binding,
            connection,
            parts,
            _memory: memory,
        })
    }

    /// Sends all of it. Returns the number of calls that sent something, and the error that ended it early.
    fn send(&self) -> (u32, io::Result<()>) {
        let mut calls = 0;
        for part in &self.parts {
            let mut left = *part;
            while left.len > 0 {
                let call = Call::new(self.binding.id(), &[left]);
                let sent = match call.send(&self.connection.tx) {
                    Ok(sent) => sent as u64,
                    Err(err) => return (calls, Err(err)),
                };
                calls += 1;
                left = extent(left.offset + sent, left.len - sent);
            }
        }
        (calls, Ok(()))
    }

    fn set(&self, features: &[Feature], on: bool) -> io::Result<()> {
        features
            .iter()
            .try_for_each(|&feature| self.pair.tx.set_feature(feature, on))
    }

    /// Waits until the sending device has dropped more than this.
    fn drops(&self, before: u64) -> io::Result<bool> {
        const DROPPED: Duration = Duration::from_secs(10);
        let waited = wait::up_to(DROPPED, || Ok(self.pair.tx.tx_dropped()? > before))?;
        Ok(waited.came)
    }
}

/// A device loses what it takes to send what the CPU cannot read, and gets it back: all of it is sent then.
fn features_lost(lost: &[Feature]) -> Outcome {
    /// There is time for something wrong to be sent.
    const WITHOUT: Duration = Duration::from_secs(1);
    let bench = Large::new()?;
    let socket = &bench.connection.rx;
    let (before, after) = bench.parts.split_at(Large::BEFORE);
    thread::scope(|scope| -> Outcome {
        let sender = scope.spawn(|| bench.send());
        tx::expect(socket, before)?;
        let dropped = bench.pair.tx.tx_dropped()?;
        bench.set(lost, false)?;
        let reader = scope.spawn(|| tx::expect(socket, after));
        let came = bench.drops(dropped);
        thread::sleep(wait::patience(WITHOUT));
        bench.set(lost, true)?;
        reader.join().expect("the reader's thread")?;
        let (calls, result) = sender.join().expect("the sender's thread");
        result?;
        assert!(came?, "nothing was dropped");
        Completions::default().wait(&bench.connection.tx, calls)?;
        Ok(())
    })
}

fn all_features_lost() -> Outcome {
    features_lost(&[Feature::Checksums, Feature::ScatterGather])
}

fn checksums_lost() -> Outcome {
    features_lost(&[Feature::Checksums])
}

fn scatter_gather_lost() -> Outcome {
    features_lost(&[Feature::ScatterGather])
}

/// Receives and compares until the stream ends. Returns how many bytes there were.
#[track_caller]
fn receive_all(mut socket: &TcpStream, parts: &[Extent]) -> io::Result<u64> {
    let mut buffer = vec![0; MIB as usize];
    let mut total = 0;
    for part in parts {
        let mut at = part.offset;
        while at < part.offset + part.len {
            let step = (part.offset + part.len - at) as usize;
            let len = socket.read(&mut buffer[..step])?;
            if len == 0 {
                return Ok(total);
            }
            traffic::compare(at, &buffer[..len]);
            at += len as u64;
            total += len as u64;
        }
    }
    Ok(total)
}

/// It does not get them back: that ends the connection, as any other loss does.
fn features_lost_for_good() -> Outcome {
    const TIMEOUT_MS: i32 = 2000;
    let bench = Large::new()?;
    let (rx, tx) = (&bench.connection.rx, &bench.connection.tx);
    let (before, after) = bench.parts.split_at(Large::BEFORE);
    let (calls, result, read) = thread::scope(|scope| -> Result<_, Stop> {
        let sender = scope.spawn(|| bench.send());
        tx::expect(rx, before)?;
        let dropped = bench.pair.tx.tx_dropped()?;
        bench.set(&[Feature::Checksums, Feature::ScatterGather], false)?;
        let reader = scope.spawn(|| receive_all(rx, after));
        let came = bench.drops(dropped);
        // It goes for windows without room, too: now there has been some.
        sockopt::set(tx, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, TIMEOUT_MS)?;
        let (calls, result) = sender.join().expect("the sender's thread");
        // What has come is read before that has an effect.
        rx.shutdown(Shutdown::Read)?;
        let read = reader.join().expect("the reader's thread")?;
        assert!(came?, "nothing was dropped");
        Ok((calls, result, read))
    })?;
    diag(format_args!("{read} bytes came in spite of that"));
    assert_eq!(errno(result), Errno::ETIMEDOUT);
    assert!(read < tx::total(after), "all of it came");
    // What is not sent any more is free.
    Completions::default().wait(tx, calls)?;
    Ok(())
}

/// What was sent without a key is not sent again with one, since it cannot be signed: it waits.
fn key_set_later() -> Outcome {
    const ALL: Extent = Extent {
        offset: 777,
        len: 32 << 10,
    };
    let bench = Sending::new()?;
    let failed = || bench.pair.tx.snmp("TcpExt", "TCPRetransFail");
    bench.pair.tx.cut()?;
    bench.sends(&bench.call(&[ALL]));
    let before = failed()?;
    keys::begin_md5(&bench.connection, Ip::V4)?;
    bench.pair.tx.mend()?;
    soon("retransmissions to fail", || Ok(failed()? > before));
    assert_eq!(received(&bench.connection.rx)?, 0, "bytes received");
    let mut completions = Completions::default();
    completions.read(&bench.connection.tx)?;
    assert_eq!(completions.done, [], "not acknowledged, but completed");

    keys::end_md5(&bench.connection, Ip::V4)?;
    bench.expect(&[ALL])?;
    bench.completes()
}

/// What cannot be signed is not taken, and the connection is as good as before.
fn send_with_a_key(signature: Signature) -> Outcome {
    let bench = Sending::connected_by(|pair| keys::connect(pair, Ip::V4, PORT, signature))?;
    enable_zerocopy(&bench.connection.tx)?;
    let call = bench.call(&[PART]);
    for flags in [0, libc::MSG_MORE, libc::MSG_DONTWAIT] {
        let call = call.clone().flags(libc::MSG_ZEROCOPY | flags);
        bench.refused(&call, Errno::EOPNOTSUPP);
    }
    (&bench.connection.tx).write_all(traffic::bytes(0, 5000))?;
    bench.expect(&[extent(0, 5000)])?;
    assert_eq!(received(&bench.connection.rx)?, 5000, "bytes received");
    bench.completes()?;
    // AO cannot be left.
    if signature == Signature::Md5 {
        keys::end_md5(&bench.connection, Ip::V4)?;
        bench.sends(&call);
        bench.expect(&[PART])?;
        bench.completes()?;
    }
    Ok(())
}

fn send_with_an_md5_key() -> Outcome {
    send_with_a_key(Signature::Md5)
}

fn send_with_an_ao_key() -> Outcome {
    send_with_a_key(Signature::Ao)
}

/// It takes no rights to come that far: neither the binding, nor the key, nor sending does.
fn send_with_a_key_without_rights() -> Outcome {
    const OTHER: u16 = PORT + 1;
    let bench = Sending::new()?;
    for signature in [Signature::Md5, Signature::Ao] {
        let listener = bench.pair.listen(Ip::V4, OTHER)?;
        signature.begin(&listener, sender(Ip::V4))?;
        let mut child = Child::start(|talk| {
            child::enter(&bench.pair.tx.ns)?;
            child::become_user(NOBODY)?;
            let binding = BindTx::new(bench.pair.tx.ifindex).bind(&bench.memory)?;
            let socket = nix::sys::socket::socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            let to = address(Ip::V4, OTHER);
            signature.begin(&socket, to.ip())?;
            nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
            enable_zerocopy(&socket)?;
            let result = Call::new(binding.id(), &[PART]).send(&socket);
            TcpStream::from(socket).write_all(traffic::bytes(0, 100))?;
            talk.tell(outcome(&result))?;
            talk.wait_for_the_end()
        })?;
        let result = child.talk().hear()?;
        observe(format_args!("{signature:?}: {result}"));
        assert_eq!(result, "EOPNOTSUPP", "{signature:?}");
        let (socket, _) = listener.accept()?;
        socket.set_read_timeout(Some(wait::patience(Duration::from_secs(10))))?;
        tx::expect(&socket, &[extent(0, 100)])?;
        child.end()?;
        tx::expect_end(&socket)?;
    }
    Ok(())
}

/// Who restores a receive queue writes to it, from memory of the process.
fn repair() -> Outcome {
    const TCP_REPAIR_OFF: i32 = -1;
    const RECV_QUEUE: i32 = 1;
    const ADDRESS: u64 = 32 * PAGE;
    const MARK: u8 = 0xe3;
    let bench = Sending::new()?;
    let socket = &bench.connection.tx;
    let set = |option, value: i32| sockopt::set(socket, libc::IPPROTO_TCP, option, value);
    let nothing_received = |flags| {
        let mut buffer = [0; 100];
        let flags = MsgFlags::MSG_DONTWAIT | flags;
        let result = nix::sys::socket::recv(socket.as_raw_fd(), &mut buffer, flags);
        assert_eq!(result, Err(Errno::EAGAIN), "received: {buffer:02x?}");
    };
    // Ordinary memory where the offset points to, if it were an address.
    let decoy = Decoy::filled(ADDRESS, PAGE, MARK)?;
    set(libc::TCP_REPAIR, 1)?;
    set(libc::TCP_REPAIR_QUEUE, RECV_QUEUE)?;
    let call = bench.call(&[extent(ADDRESS, 100)]);
    bench.refused(&call, Errno::EINVAL);
    // In repair one may only peek.
    nothing_received(MsgFlags::MSG_PEEK);
    set(libc::TCP_REPAIR, TCP_REPAIR_OFF)?;
    nothing_received(MsgFlags::empty());
    drop(decoy);
    bench.sends(&call);
    bench.expect(&[extent(ADDRESS, 100)])?;
    bench.completes()
}

/// An offset into a dma-buf, and address of ordinary memory of the process with these bytes.
const DECOY: u64 = 32 * PAGE;
const DECOY_BYTE: u8 = 0xe3;
const IPPROTO_MPTCP: i32 = 262;

/// Who does not know of dma-bufs takes no offset for an address.
fn sent_by_udp() -> Outcome {
    let bench = Sending::new()?;
    let _decoy = Decoy::filled(DECOY, PAGE, DECOY_BYTE)?;
    let socket = bench
        .pair
        .tx
        .ns
        .run(|| UdpSocket::bind((sender(Ip::V4), 0)))?;
    socket.connect(address(Ip::V4, PORT))?;
    let call = bench.call(&[extent(DECOY, 100)]).flags(0);
    let result = call.send(&socket);
    observe(format_args!("UDP: {}", outcome(&result)));
    assert_eq!(errno(result), Errno::EINVAL);
    Ok(())
}

/// Refuses a call, with and without zero-copy, and sends what comes after.
fn refuses_dma_bufs(bench: &Sending, control: Vec<u8>) -> Outcome {
    let _decoy = Decoy::filled(DECOY, PAGE, DECOY_BYTE)?;
    for flags in [0, libc::MSG_ZEROCOPY] {
        let call = bench.call(&[extent(DECOY, 100)]).control(control.clone());
        bench.refused(&call.flags(flags), Errno::EOPNOTSUPP);
    }
    assert_eq!(received(&bench.connection.rx)?, 0, "bytes received");
    Ok(())
}

fn sent_by_mptcp() -> Outcome {
    let bench = Sending::connected_by(|pair| {
        let socket = pair.tx.stream_socket(Ip::V4, IPPROTO_MPTCP)?;
        pair.connect_by(socket, &pair.listen(Ip::V4, PORT)?)
    })?;
    refuses_dma_bufs(&bench, bench.call(&[]).control)?;
    (&bench.connection.tx).write_all(traffic::bytes(0, 5000))?;
    bench.expect(&[extent(0, 5000)])?;
    Ok(())
}

fn sent_by_tls() -> Outcome {
    let bench = Sending::new()?;
    tls::start(&bench.connection.tx, Way::Tx)?;
    let control = [tls::record_type_control(), bench.call(&[]).control].concat();
    refuses_dma_bufs(&bench, control)
}

/// A socket does not know whose programs see what it sends.
fn sent_by_sockmap() -> Outcome {
    let bench = Sending::new()?;
    let map = SockMap::of_senders()?;
    map.add(&bench.connection.tx)?;
    refuses_dma_bufs(&bench, bench.call(&[]).control)?;
    (&bench.connection.tx).write_all(traffic::bytes(0, 5000))?;
    bench.expect(&[extent(0, 5000)])?;
    map.remove()?;
    bench.sends(&bench.call(&[PART]));
    bench.expect(&[PART])?;
    bench.completes()
}

/// A socket of KCM sends messages by TCP, and copies them before.
fn sent_by_kcm() -> Outcome {
    const MESSAGE: usize = 100;
    let bench = Sending::new()?;
    let _decoy = Decoy::filled(DECOY, PAGE, DECOY_BYTE)?;
    let socket = kcm::over(&bench.connection.tx, MESSAGE as i32)?;
    for flags in [0, libc::MSG_ZEROCOPY] {
        let call = bench.call(&[extent(DECOY, MESSAGE as u64)]);
        let result = call.flags(flags | libc::MSG_EOR).send(&socket);
        observe(format_args!("KCM: {}", outcome(&result)));
        tx::fails(result, Errno::EOPNOTSUPP);
    }
    let bytes = traffic::bytes(0, MESSAGE);
    nix::sys::socket::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_EOR)?;
    bench.expect(&[extent(0, MESSAGE as u64)])?;
    assert_eq!(received(&bench.connection.rx)?, MESSAGE as u64, "bytes");
    Ok(())
}

/// What the CPU would have to encrypt is refused. Without the policy all is well again.
fn through_ipsec() -> Outcome {
    let bench = Sending::new()?;
    let tx = &bench.pair.tx;
    let (from, to) = (sender(Ip::V4), address(Ip::V4, PORT).ip());
    let key = "0123456789abcdef0123456789abcdef01234567";
    tx.ip(&format!(
        "xfrm state add src {from} dst {to} proto esp spi 1 mode transport \
         aead rfc4106(gcm(aes)) 0x{key} 128"
    ))?;
    let selector = format!("src {from}/32 dst {to}/32 proto tcp dir out");
    tx.ip(&format!(
        "xfrm policy add {selector} tmpl src {from} dst {to} proto esp mode transport"
    ))?;
    // The connection has sent nothing since: the route that it has is from before.
    bench.refused(&bench.call(&[PART]), Errno::EOPNOTSUPP);
    assert_eq!(received(&bench.connection.rx)?, 0, "bytes received");

    tx.ip(&format!("xfrm policy delete {selector}"))?;
    bench.sends(&bench.call(&[PART]));
    bench.expect(&[PART])?;
    bench.completes()
}

/// The end of the stream is sent by a device that cannot send what was before it, when that has arrived.
fn end_by_another_device() -> Outcome {
    const WAY: &str = "192.0.2.1/32 dev veth0 src 192.0.2.2";
    let bench = Sending::new()?;
    let (rx, tx) = (&bench.pair.rx, &bench.pair.tx);
    tx.add_veth("veth0", rx, "veth1")?;

    // A FIN by the devices of the pair becomes a segment without. The data are with it, and arrive.
    let device = &rx.ifname;
    rx.nft(&format!(
        "add table ip f ; \
         add chain ip f in {{ type filter hook prerouting priority 0 ; }} ; \
         add rule ip f in iifname {device} tcp flags & fin == fin counter @th,104,8 set 0x18"
    ))?;
    let call = bench
        .call(&[PART])
        .flags(libc::MSG_ZEROCOPY | libc::MSG_MORE);
    let mut parts = Vec::new();
    // They may be sent for having waited too long.
    while traffic::unsent(&bench.connection.tx)? == 0 {
        bench.sends(&call);
        parts.push(PART);
    }
    bench.connection.tx.shutdown(Shutdown::Write)?;
    bench.expect(&parts)?;
    soon("all but the end to be acknowledged", || {
        Ok(traffic::unacknowledged(&bench.connection.tx)? == 1)
    });
    let before = tx::tries_again(&bench.connection.tx)?;
    soon("the end to be sent again", || {
        Ok(tx::tries_again(&bench.connection.tx)? > before)
    });

    tx.ip(&format!("route add {WAY}"))?;
    tx::expect_end(&bench.connection.rx)?;
    // The other device says of what it hands on that it was copied, and of nothing, too.
    Completions::default().wait(&bench.connection.tx, parts.len() as u32)?;
    Ok(())
}

/// Who captures packets sees the headers of those that are sent, and keeps nobody waiting.
fn capture() -> Outcome {
    const ETHERTYPE: Range<usize> = 12..14;
    const IPV4: [u8; 2] = [8, 0];
    /// Where the header of IPv4 has the length of the packet.
    const LENGTH: usize = 16;
    const ETHERNET: usize = 14;
    /// IPv4, and TCP with timestamps.
    const HEADERS: usize = 20 + 32;
    /// The same with all options that there is room for.
    const MOST_HEADERS: usize = 20 + 60;
    let bench = Sending::new()?;
    let capture = packet_socket(&bench.pair.tx)?;
    bench.sends(&bench.call(&[PART]));
    bench.expect(&[PART])?;
    // Nobody has read what was captured.
    bench.completes()?;
    let mut buffer = [0; 4096];
    let mut seen = Vec::new();
    loop {
        buffer.fill(0);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let len = match nix::sys::socket::recv(capture.as_raw_fd(), &mut buffer, flags) {
            Ok(len) => len,
            Err(Errno::EAGAIN) => break,
            Err(err) => return Err(io::Error::from(err).into()),
        };
        if buffer[ETHERTYPE] == IPV4 {
            let of = u16::from_be_bytes([buffer[LENGTH], buffer[LENGTH + 1]]);
            seen.push((len, usize::from(of)));
        }
    }
    // How often, and what acknowledgements say besides, depends on what was sent again.
    diag(format_args!("captured, of packets of: {seen:?}"));
    let (mut data, others): (Vec<_>, Vec<_>) = seen.iter().partition(|(_, of)| *of > MOST_HEADERS);
    data.dedup();
    observe(format_args!("captured, of packets with data of: {data:?}"));
    assert_eq!(data, [(ETHERNET + HEADERS, HEADERS + PART.len as usize)]);
    for (len, of) in others {
        assert_eq!(len, ETHERNET + of, "of a packet without data");
    }
    Ok(())
}

/// A timestamp: of what, and of which bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stamp {
    key: u32,
    kind: u32,
}

/// What an error queue had to say.
#[derive(Debug, Default)]
struct Told {
    stamps: BTreeSet<Stamp>,
    completed: u64,
}

impl Told {
    /// Takes all that is there, with so much room for payload; there has to be none. Any error but that the
    /// queue is empty is one.
    #[track_caller]
    fn read(&mut self, socket: &TcpStream, room: usize) -> io::Result<()> {
        const SO_EE_ORIGIN_TIMESTAMPING: u8 = 4;
        let mut payload = vec![0_u8; room];
        let mut control = [0_u8; 512];
        loop {
            let mut iov = libc::iovec {
                iov_base: payload.as_mut_ptr().cast(),
                iov_len: room,
            };
            // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
            let mut msg: libc::msghdr = unsafe { mem::zeroed() };
            if room > 0 {
                msg.msg_iov = &mut iov;
                msg.msg_iovlen = 1;
            }
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = control.len();
            let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
            // SAFETY: What `msg` points to is writable for the lengths given.
            let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut msg, flags) };
            match usize::try_from(len) {
                Ok(len) => assert_eq!(len, 0, "bytes of payload: {:02x?}", &payload[..len]),
                Err(_) if Errno::last() == Errno::EAGAIN => return Ok(()),
                Err(_) => return Err(io::Error::last_os_error()),
            }
            let told = &control[..msg.msg_controllen];
            self.completed += completion::parse(told)
                .map(|completion| completion.count)
                .sum::<u64>();
            for cmsg in Cmsgs::new(told) {
                // struct sock_extended_err: errno, origin, type, code, padding, information, data.
                let word = |at: usize| {
                    let bytes = cmsg.data.get(at..at + 4)?.try_into().ok()?;
                    Some(u32::from_ne_bytes(bytes))
                };
                let is_stamp = (cmsg.level, cmsg.kind) == (libc::SOL_IP, libc::IP_RECVERR)
                    && cmsg.data.get(4) == Some(&SO_EE_ORIGIN_TIMESTAMPING);
                let stamp = word(12).zip(word(8)).filter(|_| is_stamp);
                self.stamps
                    .extend(stamp.map(|(key, kind)| Stamp { key, kind }));
            }
        }
    }

    /// Reads until there are the three timestamps of each of so many calls of [`PART`], and the completions.
    #[track_caller]
    fn wait(&mut self, socket: &TcpStream, room: usize, calls: u32) -> io::Result<()> {
        /// Sent, given to the queueing discipline, acknowledged.
        const KINDS: [u32; 3] = [0, 1, 2];
        let expected: BTreeSet<_> = (1..=calls)
            .flat_map(|call| KINDS.map(|kind| (call * PART.len as u32 - 1, kind)))
            .map(|(key, kind)| Stamp { key, kind })
            .collect();
        let waited = wait::up_to(Duration::from_secs(10), || {
            self.read(socket, room)?;
            Ok(self.stamps.len() >= expected.len() && self.completed >= u64::from(calls))
        })?;
        assert!(waited.came, "waited {:?}, got {self:?}", waited.time);
        observe(format_args!("room for {room}: {:?}", self.stamps));
        assert_eq!(self.stamps, expected);
        assert_eq!(self.completed, u64::from(calls), "completed calls");
        Ok(())
    }
}

/// A connection that tells when what it sends leaves, from the queue and the device, and is acknowledged.
fn with_timestamps() -> Result<Sending, Stop> {
    const TX_SOFTWARE: u32 = 1 << 1;
    const SOFTWARE: u32 = 1 << 4;
    const OPT_ID: u32 = 1 << 7;
    const TX_SCHED: u32 = 1 << 8;
    const TX_ACK: u32 = 1 << 9;
    let bench = Sending::new()?;
    sockopt::set(
        &bench.connection.tx,
        libc::SOL_SOCKET,
        libc::SO_TIMESTAMPING,
        TX_SOFTWARE | SOFTWARE | OPT_ID | TX_SCHED | TX_ACK,
    )?;
    Ok(bench)
}

/// Sends once, and waits for the acknowledgement: the next call is another packet.
fn send_and_wait(bench: &Sending) -> Outcome {
    bench.sends(&bench.call(&[PART]));
    bench.expect(&[PART])?;
    soon("the acknowledgement", || {
        Ok(traffic::unacknowledged(&bench.connection.tx)? == 0)
    });
    Ok(())
}

/// Timestamps come without the payload, whether there is room for it or not.
fn timestamps() -> Outcome {
    const CALLS: u32 = 3;
    for room in [2048, 0] {
        let bench = with_timestamps()?;
        for _ in 0..CALLS {
            send_and_wait(&bench)?;
        }
        Told::default().wait(&bench.connection.tx, room, CALLS)?;
    }
    Ok(())
}

/// A timestamp that nobody reads keeps no memory.
fn timestamps_unread() -> Outcome {
    let bench = with_timestamps()?;
    send_and_wait(&bench)?;
    let id = bench.binding.id();
    drop(bench.binding);
    provider::all_buffers_back(id);
    Told::default().wait(&bench.connection.tx, 0, 1)?;
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        all_features_lost,
        checksums_lost,
        scatter_gather_lost,
        features_lost_for_good,
        key_set_later,
        send_with_an_md5_key,
        send_with_an_ao_key,
        send_with_a_key_without_rights,
        repair,
        sent_by_udp,
        sent_by_mptcp,
        sent_by_tls,
        sent_by_sockmap,
        sent_by_kcm,
        through_ipsec,
        end_by_another_device,
        capture,
        timestamps,
        timestamps_unread,
    ])
}
