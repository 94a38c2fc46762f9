// SPDX-License-Identifier: GPL-2.0

//! Faults while bytes are received, given back and sent.

use std::io;
use std::mem;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use devmem::Binding;
use devmem::DmaBuf;
use devmem::cmsg;
use devmem::cmsg::DevmemCmsg;
use devmem::cmsg::DevmemCmsgs;
use devmem::cmsg::DmabufCmsg;
use devmem::dmabuf::Mapping;
use devmem::recv::MSG_SOCK_DEVMEM;
use devmem::token::MAX_TOKENS;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::Provider;
use devmem_testlib::faults::Site;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use nix::errno::Errno;

use crate::rig::Rig;
use crate::walk::Walk;

/// Bytes that are in the receive queue when a call is made: some three frags.
const QUEUED: u64 = 10_000;
/// Room for control messages.
const PIECES: usize = 64;

/// What a call of `recvmsg()` gave.
pub struct Got {
    pub result: Result<usize, i32>,
    frags: Vec<DmabufCmsg>,
}

/// A connection into a queue that is bound, and where its reader is.
pub struct Stream {
    connection: Connection,
    binding: Binding,
    map: Mapping,
    sent: u64,
    position: u64,
    data: Vec<u8>,
    control: Vec<u8>,
}

impl Stream {
    const QUEUE: u32 = 3;
    const PORT: u16 = 5003;

    /// One beside that which the rig uses.
    pub fn new(rig: &Rig) -> Result<Self, devmem_testlib::report::Stop> {
        let memory = DmaBuf::udmabuf(1 << 18)?;
        let binding = rig.pair.bind(&[Self::QUEUE], &memory)?;
        let connection = rig.pair.connect_to_queue(Ip::V4, Self::PORT, Self::QUEUE)?;
        Ok(Self {
            connection,
            binding,
            map: memory.map()?,
            sent: 0,
            position: 0,
            data: vec![0; 1 << 16],
            control: vec![0; PIECES * cmsg::SPACE],
        })
    }

    /// Sends until the receive queue has what it should.
    pub fn fill(&mut self) -> io::Result<()> {
        let len = QUEUED - (self.sent - self.position);
        traffic::send(&self.connection.tx, self.sent, len, len as usize)?;
        self.sent += len;
        wait_received(&self.connection.rx, self.sent);
        Ok(())
    }

    /// Bytes in the receive queue.
    fn queued(&self) -> io::Result<u64> {
        let mut bytes = 0;
        let socket = self.connection.rx.as_raw_fd();
        // SAFETY: `bytes` is the argument of this ioctl, which only writes it.
        match unsafe { libc::ioctl(socket, libc::FIONREAD, &raw mut bytes) } {
            0 => Ok(bytes as u64),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Calls `recvmsg()` once, with all memory there.
    pub fn receive(&mut self) -> Got {
        let mut iovec = libc::iovec {
            iov_base: self.data.as_mut_ptr().cast(),
            iov_len: self.data.len(),
        };
        // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
        let mut msg: libc::msghdr = unsafe { mem::zeroed() };
        msg.msg_iov = &raw mut iovec;
        msg.msg_iovlen = 1;
        msg.msg_control = self.control.as_mut_ptr().cast();
        msg.msg_controllen = self.control.len();
        let socket = self.connection.rx.as_raw_fd();
        // SAFETY: `msg` points to buffers that are writable for the lengths given.
        let ret = unsafe { libc::recvmsg(socket, &mut msg, MSG_SOCK_DEVMEM) };
        let Ok(len) = usize::try_from(ret) else {
            return Got {
                result: Err(Errno::last_raw()),
                frags: Vec::new(),
            };
        };
        let frags = DevmemCmsgs::new(&self.control[..msg.msg_controllen])
            .map(|piece| match piece {
                DevmemCmsg::Dmabuf(frag) => frag,
                DevmemCmsg::Linear(_) => panic!("bytes in host memory"),
            })
            .collect();
        Got {
            result: Ok(len),
            frags,
        }
    }

    /// Checks that what a call gave are the next bytes, and returns their tokens; and that the socket
    /// has lost nothing, unless the call failed when it was over, at `site`.
    #[track_caller]
    pub fn check(&mut self, got: &Got, site: Option<&Site>) -> io::Result<()> {
        let consumed = self.sent - self.position - self.queued()?;
        let over = site.is_some_and(|site| !site.is_in("tcp_recvmsg"));
        match got.result {
            Ok(len) => assert_eq!(len as u64, consumed, "bytes that left the queue"),
            Err(_) => assert!(consumed == 0 || over, "{consumed} bytes are lost: {site:?}"),
        }
        let mut position = self.position;
        let cpu = self.map.begin_read()?;
        for frag in &got.frags {
            assert_eq!(frag.dmabuf_id, self.binding.id(), "{frag:?}");
            let mut bytes = vec![0; frag.frag_size as usize];
            cpu.copy_out(frag.frag_offset, &mut bytes)?;
            traffic::compare(position, &bytes);
            position += bytes.len() as u64;
            assert_eq!(self.give_back(frag.frag_token, 1)?, 1, "{frag:?}");
        }
        drop(cpu);
        if got.result.is_ok() {
            assert_eq!(position - self.position, consumed, "the pieces of the call");
        }
        let untold = self.give_back_all()?;
        assert!(
            untold == 0 || (over && got.result.is_err() && consumed > 0),
            "{untold} tokens that nobody was told of: {site:?}"
        );
        self.position += consumed;
        Ok(())
    }

    fn give_back(&self, start: u32, count: u32) -> io::Result<u32> {
        dontneed(&self.connection.rx, &[TokenRange { start, count }])
    }

    fn give_back_all(&self) -> io::Result<u32> {
        self.give_back(provider::under_test().first_token(), MAX_TOKENS)
    }

    /// Receives what is queued, and asks again when there is no memory; tells how often that was.
    #[track_caller]
    pub fn drain_with_patience(&mut self) -> io::Result<u32> {
        const PATIENCE: u32 = 1000;
        let mut refused = 0;
        while self.position < self.sent {
            let got = self.receive();
            self.check(&got, None)?;
            if got.result == Err(libc::ENOMEM) {
                refused += 1;
            } else {
                assert!(got.result.is_ok_and(|len| len > 0), "{:?}", got.result);
            }
            assert!(refused < PATIENCE, "no memory for good");
        }
        Ok(refused)
    }

    /// Receives what is queued.
    #[track_caller]
    pub fn drain(&mut self) -> io::Result<()> {
        while self.position < self.sent {
            let got = self.receive();
            assert!(got.result.is_ok_and(|len| len > 0), "{:?}", got.result);
            self.check(&got, None)?;
        }
        Ok(())
    }
}

pub fn receive() -> Outcome {
    let walk = Walk {
        name: "recvmsg",
        reach: &["tcp_recvmsg", "copy_msghdr_from_user|__x64_sys_recvmsg"],
        stride: 1,
        tells: true,
    };
    let mut rig = Rig::new()?;
    let mut stream = Stream::new(&rig)?;
    walk.run(&mut rig, |_, watch, nth| {
        stream.fill()?;
        let (got, site) = watch.nth_fails(nth, || stream.receive())?;
        stream.check(&got, site.as_ref())?;
        stream.drain()?;
        Ok((got.result.map(|_| ()), site))
    })
}

/// The first call on a socket, which makes room for its tokens.
pub fn receive_first() -> Outcome {
    let walk = Walk {
        name: "first recvmsg",
        reach: match provider::under_test() {
            Provider::Module => &["net_devmem_grow_tokens"],
            Provider::Builtin => &["tcp_recvmsg"],
        },
        stride: 1,
        tells: true,
    };
    let mut rig = Rig::new()?;
    walk.run(&mut rig, |rig, watch, nth| {
        let mut stream = Stream::new(rig).map_err(|err| io::Error::other(format!("{err:?}")))?;
        stream.fill()?;
        let (got, site) = watch.nth_fails(nth, || stream.receive())?;
        stream.check(&got, site.as_ref())?;
        stream.drain()?;
        Ok((got.result.map(|_| ()), site))
    })
}

pub fn give_back() -> Outcome {
    let walk = Walk {
        name: "DONTNEED",
        reach: &["sk_setsockopt"],
        stride: 1,
        tells: true,
    };
    let mut rig = Rig::new()?;
    let mut stream = Stream::new(&rig)?;
    walk.run(&mut rig, |_, watch, nth| {
        stream.fill()?;
        let got = stream.receive();
        let all = u32::try_from(got.frags.len()).expect("few frags");
        let ranges: Vec<_> = got
            .frags
            .iter()
            .map(|frag| TokenRange {
                start: frag.frag_token,
                count: 1,
            })
            .collect();
        let socket = &stream.connection.rx;
        let (returned, site) = watch.nth_fails(nth, || dontneed(socket, &ranges))?;
        // All or none.
        let left = stream.give_back_all()?;
        let result = match returned {
            Ok(returned) => {
                assert_eq!((returned, left), (all, 0), "returned, left");
                Ok(())
            }
            Err(err) => {
                assert_eq!(left, all, "tokens left after {err}");
                Err(err.raw_os_error().unwrap_or(0))
            }
        };
        stream.position += got.result.unwrap_or(0) as u64;
        stream.drain()?;
        Ok((result, site))
    })
}

/// What is sent by a call, or a part of it, arrives; and nothing else does.
pub fn send() -> Outcome {
    const LEN: u64 = 9000;
    let walk = Walk {
        name: "sendmsg",
        reach: &[
            "copy_msghdr_from_user|__x64_sys_sendmsg",
            "sock_cmsg_send|____sys_sendmsg",
            "msg_zerocopy_realloc",
            "tcp_stream_alloc_skb",
            "nsim_start_xmit",
        ],
        stride: 1,
        tells: true,
    };
    let mut rig = Rig::new()?;
    let binding = rig.pair.tx.bind_tx(&rig.tx_memory)?;
    let connection = rig.pair.connect(&rig.pair.listen(Ip::V4, 0)?)?;
    devmem_testlib::sockopt::set(&connection.tx, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1_i32)?;
    let mut completions = tx::Completions::default();
    let (mut calls, mut at) = (0, 0);
    walk.run(&mut rig, |_, watch, nth| {
        // Different bytes each time, so that those of one call are not taken for another's.
        at = (at + LEN + 13) % (1 << 17);
        let call = tx::Call::new(binding.id(), &[tx::extent(at, LEN)]);
        let (sent, site) = watch.nth_fails(nth, || call.send(&connection.tx))?;
        let result = match sent {
            Ok(len) => {
                tx::expect(&connection.rx, &[tx::extent(at, len as u64)])?;
                calls += 1;
                Ok(())
            }
            Err(err) => Err(err.raw_os_error().unwrap_or(0)),
        };
        completions.wait(&connection.tx, calls)?;
        Ok((result, site))
    })
}

/// The socket is closed with tokens outstanding.
pub fn close() -> Outcome {
    let walk = Walk {
        name: "close",
        reach: &[],
        stride: 1,
        tells: false,
    };
    let mut rig = Rig::new()?;
    walk.run(&mut rig, |rig, watch, nth| {
        let mut stream = Stream::new(rig).map_err(|err| io::Error::other(format!("{err:?}")))?;
        stream.fill()?;
        let got = stream.receive();
        assert!(!got.frags.is_empty(), "no tokens");
        let Stream {
            connection,
            binding,
            ..
        } = stream;
        let Connection { rx, tx } = connection;
        let (_, site) = watch.nth_fails(nth, || drop::<TcpStream>(rx))?;
        drop((tx, binding));
        Ok((Ok(()), site))
    })
}
