// SPDX-License-Identifier: GPL-2.0

//! Sending: what the sender's system calls cost for a MiB, completions included.
//!
//! A queueing discipline holds the packets back until all calls are made. So the figures have TCP's way down to
//! the device in them, but neither the simulated DMA nor the receiver. Completions are read once all is
//! acknowledged.

use std::fs;
use std::io;
use std::io::Read;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use devmem::Extent;
use devmem::TxBinding;
use devmem::completion;
use devmem::dmabuf::HUGE_PAGE;
use devmem::send::enable_zerocopy;
use devmem::send::send_dmabuf;
use devmem_kselftest::pair::Connection;
use devmem_kselftest::probe::received;

use crate::Options;
use crate::calls::Cost;
use crate::clock::Clock;
use crate::link::Link;
use crate::link::PROVIDERS;
use crate::link::Segments;
use crate::link::select;
use crate::link::wait_received;
use crate::memory::Memory;
use crate::record::Case;
use crate::record::Samples;

const MIB: usize = 1 << 20;
const MEMORY: usize = HUGE_PAGE;
/// For so long packets are held back: longer than all calls take.
const HELD: Duration = Duration::from_millis(200);
/// The first rounds open the congestion window.
const WARM_UP: u32 = 3;

/// From where it is sent.
#[derive(Debug)]
enum Source {
    /// A dma-buf.
    Bound(TxBinding),
    /// Memory of the process, which the kernel copies.
    Copied,
    /// Memory of the process, which the kernel refers to.
    Zerocopy,
}

#[derive(Debug)]
struct Lane {
    subject: &'static str,
    source: Source,
    connection: Connection,
    data: Vec<u8>,
    send: Cost,
    completions: Cost,
}

/// Measures.
pub fn run(options: &Options, samples: &mut Samples) -> io::Result<()> {
    let sizes: &[usize] = if options.quick {
        &[65_536]
    } else {
        &[4096, 65_536, MIB]
    };
    for (layout, memory) in [
        ("pages", Memory::pages(MEMORY)?),
        ("contiguous", Memory::huge(MEMORY)?),
    ] {
        let link = Link::new(Segments {
            mss: 4096,
            offload: true,
        })?;
        let mut lanes = lanes(&link, &memory)?;
        for &size in sizes {
            let case = Case::new().with("layout", layout).with("call", size);
            for round in 0..options.rounds + WARM_UP {
                for lane in &mut lanes {
                    select(lane.subject)?;
                    lane.round(options.clock, size)?;
                    if round >= WARM_UP {
                        lane.hand_in(options.clock, &case, samples);
                    }
                }
            }
        }
    }
    Ok(())
}

/// A lane for each subject, behind a queueing discipline.
fn lanes(link: &Link, memory: &Memory) -> io::Result<Vec<Lane>> {
    let tx = &link.pair.tx;
    tx.tc(&format!(
        "qdisc add dev {} root netem delay {}ms limit 100000",
        tx.ifname,
        HELD.as_millis()
    ))?;
    tx.ns.run(|| {
        let set = |name: &str, value: &str| fs::write(format!("/proc/sys/net/{name}"), value);
        // Full segments and an open window, in spite of the round trips that this makes.
        set("ipv4/tcp_min_tso_segs", "16")?;
        set("ipv4/tcp_slow_start_after_idle", "0")?;
        set("ipv4/tcp_congestion_control", "reno")?;
        // Room for the notifications of all calls of a round.
        set("core/optmem_max", "4194304")
    })?;
    let mut sources = Vec::new();
    for by in PROVIDERS {
        sources.push((by.name(), Source::Bound(link.bind_tx(by, memory)?)));
    }
    sources.push(("send", Source::Copied));
    sources.push(("MSG_ZEROCOPY", Source::Zerocopy));
    sources
        .into_iter()
        .map(|(subject, source)| {
            let connection = link.connect(0)?;
            if !matches!(source, Source::Copied) {
                enable_zerocopy(&connection.tx)?;
            }
            Ok(Lane {
                subject,
                source,
                connection,
                data: vec![1; MIB],
                send: Cost::default(),
                completions: Cost::default(),
            })
        })
        .collect()
}

impl Lane {
    /// Sends a MiB, a call for each `size` bytes, and takes it off at the other end.
    fn round(&mut self, clock: Clock, size: usize) -> io::Result<()> {
        self.send = Cost::default();
        self.completions = Cost::default();
        let end = received(&self.connection.rx)? + MIB as u64;
        for at in (0..MIB).step_by(size) {
            let (sent, ticks) = clock.measure(|| self.send(at, size));
            self.send.add(ticks);
            if sent? != size {
                return Err(io::Error::other("the socket has no room"));
            }
        }
        wait_received(&self.connection.rx, end)?;
        sink(&self.connection.rx)?;
        // The last acknowledgement is held back, too.
        thread::sleep(2 * HELD);
        if matches!(self.source, Source::Copied) {
            return Ok(());
        }
        let mut completed = 0;
        while completed < (MIB / size) as u64 {
            let (read, ticks) = clock.measure(|| completion::read(&self.connection.tx));
            self.completions.add(ticks);
            let list = read?.ok_or_else(|| io::Error::other("completions are missing"))?;
            completed += list.iter().map(|completion| completion.count).sum::<u64>();
        }
        Ok(())
    }

    fn send(&self, at: usize, size: usize) -> io::Result<usize> {
        let flags = match &self.source {
            Source::Bound(binding) => {
                let extent = Extent {
                    offset: at as u64,
                    len: size as u64,
                };
                return send_dmabuf(&self.connection.tx, binding.id(), &[extent], 0);
            }
            Source::Copied => 0,
            Source::Zerocopy => libc::MSG_ZEROCOPY,
        };
        let part = &self.data[at..at + size];
        // SAFETY: `part` is readable for its length, and stays until the call is completed.
        let ret = unsafe {
            libc::send(
                self.connection.tx.as_raw_fd(),
                part.as_ptr().cast(),
                part.len(),
                flags,
            )
        };
        usize::try_from(ret).map_err(|_| io::Error::last_os_error())
    }

    fn hand_in(&self, clock: Clock, case: &Case, samples: &mut Samples) {
        let all = Cost {
            ticks: self.send.ticks + self.completions.ticks,
            calls: self.send.calls + self.completions.calls,
        };
        let unit = clock.unit().name();
        for (phase, cost) in [
            ("all", all),
            ("sendmsg", self.send),
            ("completions", self.completions),
        ] {
            if phase == "completions" && matches!(self.source, Source::Copied) {
                continue;
            }
            let case = case.clone().with("phase", phase);
            samples.add(&case, self.subject, unit, "MiB", cost.ticks as f64);
            samples.add(&case, self.subject, "calls", "MiB", cost.calls as f64);
        }
    }
}

/// Throws a MiB away.
fn sink(mut socket: &TcpStream) -> io::Result<()> {
    socket.read_exact(&mut vec![0; MIB])
}
