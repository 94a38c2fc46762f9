// SPDX-License-Identifier: GPL-2.0

//! Too little memory, and too few CPUs.

use std::fs;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use devmem::DmaBuf;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::aftermath;
use devmem_testlib::pair::Ip;
use devmem_testlib::pump;
use devmem_testlib::storm;
use devmem_testlib::storm::Storm;

use crate::flows::Flows;
use crate::flows::From;

const MEMORY: usize = 4 << 20;
const PORT: u16 = 5000;
const QUEUE: u32 = 1;

/// Binds both ways, has data flow both ways, does `disturb`, and has everything arrive.
fn flow_through(storm: &mut Storm, pair: &Pair, disturb: impl FnOnce() -> Outcome) -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let rx = pair.bind(&[QUEUE], &memory)?;
    let tx = pair.tx.bind_tx(&pump::memory()?)?;
    let memories = [(rx.id(), Arc::new(memory.map()?))];
    let mut flows = Flows::new();
    for (port, from) in [(PORT, From::Host), (PORT + 1, From::Device(tx.id()))] {
        let connection = pair.connect(&pair.listen(Ip::V4, port)?)?;
        flows.start(connection, from, &memories, storm.rng.u64(..))?;
    }
    disturb()?;
    storm.count("bytes", flows.finish()?);
    Ok(())
}

fn steer(pair: &Pair) -> io::Result<()> {
    (PORT..=PORT + 1).try_for_each(|port| pair.steer(port, QUEUE))
}

/// A setting of the kernel, which gets its value back.
struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    fn new(path: &'static str) -> io::Result<Self> {
        let before = fs::read_to_string(path)?.trim().to_owned();
        Ok(Self { path, before })
    }

    fn set(&self, value: &str) -> io::Result<()> {
        fs::write(self.path, value)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // It was the kernel's own.
        let _ = self.set(&self.before);
    }
}

/// Leaves the guest so many MiB of memory, for as long as the result lives: the rest becomes huge pages,
/// which nobody asks for.
fn all_but(left: u64) -> io::Result<Setting> {
    const HUGE_PAGE: u64 = 2 << 10;
    let text = fs::read_to_string("/proc/meminfo")?;
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .expect("MemAvailable of /proc/meminfo");
    let pool = Setting::new("/proc/sys/vm/nr_hugepages")?;
    let before: u64 = pool.before.parse().expect("a number of huge pages");
    let more = available.saturating_sub(left << 10) / HUGE_PAGE;
    pool.set(&(before + more).to_string())?;
    Ok(pool)
}

/// How little memory there is in a step.
#[derive(Debug)]
struct Shortage {
    /// Pages that all TCP sockets together may have: `net.ipv4.tcp_mem`.
    tcp: u32,
    /// Loss and reordering in percent, which make TCP keep segments for later, or drop them again.
    loss: u32,
    reordered: u32,
    /// MiB that the guest is left.
    left: u64,
    time: Duration,
}

impl Shortage {
    fn draw(storm: &mut Storm) -> Self {
        Self {
            tcp: storm.rng.u32(8..=512),
            loss: storm.rng.u32(0..=3),
            reordered: storm.rng.u32(0..=30),
            left: storm.rng.u64(96..=256),
            time: storm.instant(800),
        }
    }

    fn happen(&self, pair: &Pair, tcp_mem: &Setting) -> Outcome {
        let Self {
            tcp,
            loss,
            reordered,
            ..
        } = self;
        pair.tx.queueing(&format!(
            "netem delay 1ms loss {loss}% reorder {reordered}%"
        ))?;
        tcp_mem.set(&format!("{tcp} {} {}", tcp + tcp / 4, tcp + tcp / 2))?;
        let taken = all_but(self.left)?;
        thread::sleep(self.time);
        drop(taken);
        tcp_mem.set(&tcp_mem.before)?;
        Ok(pair.tx.mend()?)
    }
}

pub fn short_of_memory() -> Outcome {
    storm::run(|storm| {
        const STEPS: u32 = 4;
        let tcp_mem = Setting::new("/proc/sys/net/ipv4/tcp_mem")?;
        let pair = Pair::new()?;
        steer(&pair)?;
        for _ in 0..storm.steps(STEPS) {
            let shortage = Shortage::draw(storm);
            storm.step(&shortage);
            flow_through(storm, &pair, || shortage.happen(&pair, &tcp_mem))?;
        }
        aftermath::on(&pair, QUEUE)
    })
}

/// The second CPU goes and comes back; sometimes it only comes back when everything else is over.
pub fn cpu_unplugged() -> Outcome {
    storm::run(|storm| {
        const STEPS: u32 = 6;
        const TIME: u32 = 80;
        let online = Setting::new("/sys/devices/system/cpu/cpu1/online")?;
        let pair = Pair::new()?;
        steer(&pair)?;
        for _ in 0..storm.steps(STEPS) {
            let stays_off = storm.rng.bool();
            let times: Vec<_> = (0..3)
                .map(|_| (storm.instant(TIME), storm.instant(TIME)))
                .collect();
            storm.step((stays_off, &times));
            flow_through(storm, &pair, || {
                for (on, off) in &times {
                    thread::sleep(*on);
                    online.set("0")?;
                    thread::sleep(*off);
                    online.set("1")?;
                }
                if stays_off {
                    online.set("0")?;
                }
                Ok(())
            })?;
            aftermath::no_bindings()?;
            storm.count("times off", times.len() as u64 + u64::from(stays_off));
            if stays_off {
                online.set("1")?;
            }
        }
        aftermath::on(&pair, QUEUE)
    })
}
