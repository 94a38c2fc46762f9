// SPDX-License-Identifier: GPL-2.0

//! What the drop monitor reports of packets that the CPU cannot read. For kernels with tracepoints.

use std::process::ExitCode;

use devmem::netlink::Attrs;
use devmem::netlink::GenericSocket;
use devmem::netlink::attributes;
use devmem_testlib::Outcome;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::frames::ETHERNET;
use devmem_testlib::frames::Host;
use devmem_testlib::frames::IPV4;
use devmem_testlib::frames::TCP;
use devmem_testlib::multicast::Group;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::address;
use devmem_testlib::probe::soon;
use devmem_testlib::report::diag;
use devmem_testlib::report::observe;
use devmem_testlib::runner;
use devmem_testlib::tests;

const FAMILY: &str = "NET_DM";

/// The monitor, which is stopped when this is dropped.
struct Monitor {
    socket: GenericSocket,
    family: u16,
}

impl Monitor {
    const CONFIGURE: u8 = 2;
    const START: u8 = 3;
    const STOP: u8 = 4;
    const ALERT_MODE: u16 = 1;
    const SUMMARY: u8 = 0;
    const PACKETS: u8 = 1;

    /// Has each packet that is dropped reported.
    fn start() -> Result<Self, devmem::netlink::Error> {
        let mut socket = GenericSocket::open()?;
        let family = socket.family(FAMILY)?;
        let mut monitor = Self { socket, family };
        monitor.set_mode(Self::PACKETS)?;
        monitor.request(Self::START, &Attrs::new())?;
        Ok(monitor)
    }

    fn set_mode(&mut self, mode: u8) -> Result<(), devmem::netlink::Error> {
        self.request(Self::CONFIGURE, &Attrs::new().u8(Self::ALERT_MODE, mode))
    }

    fn request(&mut self, command: u8, attrs: &Attrs) -> Result<(), devmem::netlink::Error> {
        self.socket.request(self.family, command, attrs)?;
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let stopped = self
            .request(Self::STOP, &Attrs::new())
            .and_then(|()| self.set_mode(Self::SUMMARY));
        if let Err(err) = stopped {
            diag(format_args!("stopping the monitor: {err}"));
        }
    }
}

/// A report has the headers, and says how long the packet was.
fn reported() -> Outcome {
    const PORT: u16 = Receiving::PORT + 1;
    const PAYLOAD: [u8; 500] = [0xa7; 500];
    const HEADERS: usize = ETHERNET + IPV4 + TCP;
    const DATA: u16 = 7;
    const ORIGINAL_LEN: u16 = 10;
    let bench = Receiving::new()?;
    let host = Host::beside(&bench.pair, Ip::V4)?;
    let frame = host.segment(address(Ip::V4, PORT), false, &PAYLOAD)?;
    let reports = Group::join(FAMILY, "events")?;
    let _monitor = Monitor::start()?;
    for (queue, readable) in [
        (Receiving::PLAIN_QUEUE, frame.len()),
        (Receiving::QUEUE, HEADERS),
    ] {
        bench.pair.steer_nth(1, PORT, queue)?;
        // Nobody listens there.
        host.send(&frame)?;
        let mut report = Vec::new();
        soon(&format!("a report, queue {queue}"), || {
            while let Some(next) = reports.next()? {
                let ours = attributes(&next)
                    .any(|(kind, data)| kind == DATA && data.starts_with(&frame[..HEADERS]));
                if ours {
                    report = next;
                    return Ok(true);
                }
            }
            Ok(false)
        });
        let value = |wanted| {
            attributes(&report)
                .find(|&(kind, _)| kind == wanted)
                .map(|(_, value)| value)
        };
        let data = value(DATA).unwrap_or_default();
        observe(format_args!("queue {queue}: {} bytes", data.len()));
        assert_eq!(data, &frame[..readable], "queue {queue}");
        let len = (frame.len() as u32).to_ne_bytes();
        assert_eq!(value(ORIGINAL_LEN), Some(&len[..]), "the length");
    }
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![reported])
}
