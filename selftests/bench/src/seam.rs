// SPDX-License-Identifier: GPL-2.0

//! The seam: what the kernel's own provider, and who uses none, pay for that providers can be modules.
//!
//! A boot measures one kernel, which is the subject: `patched`, or `unpatched` if it knows no other
//! provider than its own. `scripts/bench-seam` boots both.

mod page_pool;

use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::TxBinding;
use devmem::dmabuf::HUGE_PAGE;
use devmem::netdev::Netdev;
use devmem::netlink::Attrs;
use devmem::provider;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::End;
use devmem_testlib::provider::huge_pages;
use devmem_testlib::sockopt;
use devmem_testlib::traffic;
use devmem_testlib::tx;

use crate::calls::Caller;
use crate::calls::Tokens;
use crate::link::Link;
use crate::link::Segments;
use crate::link::queue_up;
use crate::options::Options;
use crate::record::Case;
use crate::record::Samples;

const MIB: usize = 1 << 20;
const QUEUE: u32 = 1;
/// A queue that no provider serves.
const PLAIN_QUEUE: u32 = 0;
/// A queue to bind and unbind.
const SPARE_QUEUE: u32 = 2;
const MEMORY: usize = 16 * MIB;
/// Bytes of a call that sends.
const CALL: usize = 1 << 16;
/// After this no acknowledgement is due any more, which the next call would send.
const DELAYED_ACK: Duration = Duration::from_millis(250);
/// A segment of 64 KiB in buffers of 4 KiB, each of them full.
const PAGES: Segments = Segments {
    mss: 4096,
    offload: true,
};

/// Which kernel this is.
fn subject() -> io::Result<&'static str> {
    match provider::serving() {
        Ok(_) => Ok("patched"),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok("unpatched"),
        Err(err) => Err(err),
    }
}

/// Measures.
pub fn run(options: &Options, samples: &mut Samples) -> io::Result<()> {
    let lab = Lab::new(options)?;
    // The first round warms up.
    for round in 0..=options.rounds {
        let mut results = Results::default();
        lab.receive(&mut results)?;
        lab.receive_copying(&mut results)?;
        lab.send(&mut results)?;
        lab.send_copying(&mut results)?;
        lab.loopback(&mut results)?;
        lab.bind(&mut results)?;
        page_pool::run(options, &mut results)?;
        if round > 0 {
            for (op, per, value) in results.0 {
                let (case, unit) = (Case::new().with("op", op), options.clock.unit().name());
                samples.add(&case, lab.subject, unit, per, value);
            }
        }
    }
    Ok(())
}

/// What a round has given: the operation, what one is, and what it costs.
#[derive(Debug, Default)]
struct Results(Vec<(&'static str, &'static str, f64)>);

impl Results {
    fn add(&mut self, op: &'static str, per: &'static str, value: f64) {
        self.0.push((op, per, value));
    }
}

#[derive(Debug)]
struct Lab<'o> {
    options: &'o Options,
    subject: &'static str,
    /// Flow into device memory; it comes back to plain memory.
    devmem: Connection,
    plain: Connection,
    loopback: Connection,
    /// What is sent.
    bytes: Vec<u8>,
    memory: DmaBuf,
    tx_binding: TxBinding,
    _binding: Binding,
    link: Link,
}

impl<'o> Lab<'o> {
    fn new(options: &'o Options) -> io::Result<Self> {
        let link = Link::new(PAGES)?;
        let (rx, tx) = (&link.pair.rx, &link.pair.tx);
        // Single pages of a udmabuf share scatterlist entries as it happens, and this is to be the
        // same in two boots.
        huge_pages(2 * MEMORY / HUGE_PAGE)?;
        let memory = DmaBuf::udmabuf_huge(MEMORY)?;
        tx::fill(&memory)?;
        let request = link.pair.request(&[QUEUE]);
        let binding = rx
            .ns
            .run(|| Ok(request.bind(DmaBuf::udmabuf_huge(MEMORY)?)))??;
        let request = BindTx::new(tx.ifindex);
        let tx_binding = tx.ns.run(|| Ok(request.bind(&memory)))??;
        let plain = link.connect(PLAIN_QUEUE)?;
        sockopt::set(&plain.tx, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1_i32)?;
        Ok(Self {
            options,
            subject: subject()?,
            devmem: link.connect(QUEUE)?,
            plain,
            loopback: loopback(rx)?,
            bytes: traffic::bytes(0, CALL).to_vec(),
            memory,
            tx_binding,
            _binding: binding,
            link,
        })
    }

    /// Receives a MiB in device memory.
    fn receive(&self, results: &mut Results) -> io::Result<()> {
        let mut caller = Caller::new(self.options.clock, &self.devmem.rx, MIB, 1024);
        queue_up(&self.devmem, MIB as u64, MIB)?;
        thread::sleep(DELAYED_ACK);
        let mut left = MIB as u64;
        while left > 0 {
            left -= caller.recv_devmem(0)?;
        }
        caller.give_back(Tokens::Ranges, 0)?;
        results.add("recvmsg, device memory", "MiB", caller.recv.ticks as f64);
        results.add("dontneed", "MiB", caller.dontneed.ticks as f64);
        Ok(())
    }

    /// Receives a MiB in the same segments by plain `recv()`.
    fn receive_copying(&self, results: &mut Results) -> io::Result<()> {
        queue_up(&self.plain, MIB as u64, MIB)?;
        thread::sleep(DELAYED_ACK);
        results.add("recv", "MiB", self.drain(&self.plain.rx, MIB)? as f64);
        Ok(())
    }

    /// Reads `left` bytes, and tells what the calls cost.
    fn drain(&self, socket: &TcpStream, left: usize) -> io::Result<u64> {
        let mut caller = Caller::new(self.options.clock, socket, CALL, 0);
        let mut left = left as u64;
        while left > 0 {
            left -= caller.recv_copy()?;
        }
        Ok(caller.recv.ticks)
    }

    /// Sends a MiB of device memory.
    fn send(&self, results: &mut Results) -> io::Result<()> {
        let mut ticks = 0;
        for offset in (0..MIB).step_by(CALL) {
            let call = tx::Call::new(
                self.tx_binding.id(),
                &[tx::extent(offset as u64, CALL as u64)],
            );
            let (sent, cost) = self.options.clock.measure(|| call.send(&self.plain.tx));
            check_sent(sent?)?;
            ticks += cost;
            self.take(&self.plain.rx)?;
        }
        tx::Completions::default().read(&self.plain.tx)?;
        results.add("sendmsg, device memory", "MiB", ticks as f64);
        Ok(())
    }

    /// Sends a MiB by plain `send()`; the receiver's page pool has no provider.
    fn send_copying(&self, results: &mut Results) -> io::Result<()> {
        let ticks = self.pass(&self.plain)?;
        results.add("send", "MiB", ticks as f64);
        Ok(())
    }

    /// TCP without any device or page pool.
    fn loopback(&self, results: &mut Results) -> io::Result<()> {
        let clock = self.options.clock;
        let (mut sending, mut receiving) = (0, 0);
        for _ in (0..MIB).step_by(CALL) {
            let (sent, cost) = clock.measure(|| (&self.loopback.tx).write(&self.bytes));
            check_sent(sent?)?;
            sending += cost;
            receiving += self.drain(&self.loopback.rx, CALL)?;
        }
        results.add("send, loopback", "MiB", sending as f64);
        results.add("recv, loopback", "MiB", receiving as f64);
        Ok(())
    }

    fn pass(&self, connection: &Connection) -> io::Result<u64> {
        let mut ticks = 0;
        for _ in (0..MIB).step_by(CALL) {
            let (sent, cost) = self
                .options
                .clock
                .measure(|| (&connection.tx).write(&self.bytes));
            check_sent(sent?)?;
            ticks += cost;
            self.take(&connection.rx)?;
        }
        Ok(ticks)
    }

    /// Takes what one call sent, so that the window stays open.
    fn take(&self, mut socket: &TcpStream) -> io::Result<()> {
        socket.read_exact(&mut vec![0; CALL])
    }

    /// Binds memory for receiving, and for sending; unbinds it.
    fn bind(&self, results: &mut Results) -> io::Result<()> {
        let pair = &self.link.pair;
        let attrs = pair.request(&[SPARE_QUEUE]).attrs(&self.memory);
        self.bind_one(
            &pair.rx,
            Netdev::bind_rx,
            &attrs,
            ["bind-rx", "unbind-rx"],
            results,
        )?;
        let attrs = BindTx::new(pair.tx.ifindex).attrs(&self.memory);
        self.bind_one(
            &pair.tx,
            Netdev::bind_tx,
            &attrs,
            ["bind-tx", "unbind-tx"],
            results,
        )
    }

    fn bind_one(
        &self,
        end: &End,
        request: fn(&mut Netdev, &Attrs<'_>) -> Result<u32, devmem::Error>,
        attrs: &Attrs<'_>,
        [bind, unbind]: [&'static str; 2],
        results: &mut Results,
    ) -> io::Result<()> {
        let clock = self.options.clock;
        let mut netdev = end.ns.run(|| Ok(Netdev::open()?))?;
        let (id, cost) = clock.measure(|| request(&mut netdev, attrs));
        id?;
        results.add(bind, "binding", cost as f64);
        // The rest of it, behind the socket's back, is not in this.
        let ((), cost) = clock.measure(|| drop(netdev));
        results.add(unbind, "binding", cost as f64);
        thread::sleep(DELAYED_ACK);
        Ok(())
    }
}

fn check_sent(bytes: usize) -> io::Result<()> {
    match bytes {
        CALL => Ok(()),
        _ => Err(io::Error::other(format!("{bytes} of {CALL} bytes sent"))),
    }
}

/// A connection in the namespace of `end` that needs no device.
fn loopback(end: &End) -> io::Result<Connection> {
    end.ip("link set lo up")?;
    end.ns.run(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let tx = TcpStream::connect(listener.local_addr()?)?;
        let (rx, _) = listener.accept()?;
        tx.set_nodelay(true)?;
        Ok(Connection { rx, tx })
    })
}
