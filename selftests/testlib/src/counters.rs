// SPDX-License-Identifier: GPL-2.0

//! What the stack counts: of a namespace, and of a device whatever its driver.

use std::fs;
use std::io;
use std::io::ErrorKind;

use crate::pair::End;

impl End {
    /// A counter of the namespace, by the names in `/proc/net/snmp` and `/proc/net/netstat`: `Tcp` has
    /// `InCsumErrors`, `TcpExt` has `TCPMD5Failure`.
    pub fn snmp(&self, group: &str, name: &str) -> io::Result<u64> {
        let text = self.ns.run(|| {
            let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
            Ok(snmp + &fs::read_to_string("/proc/thread-self/net/netstat")?)
        })?;
        let group = format!("{group}:");
        let mut lines = text
            .lines()
            .map(str::split_whitespace)
            .filter_map(|mut words| (words.next()? == group).then_some(words));
        let (names, values) = (lines.next(), lines.next());
        names
            .into_iter()
            .flatten()
            .zip(values.into_iter().flatten())
            .find(|(known, _)| *known == name)
            .and_then(|(_, value)| value.parse().ok())
            .ok_or_else(|| {
                let what = format!("the kernel does not count {name} of {group}");
                io::Error::new(ErrorKind::NotFound, what)
            })
    }

    /// Packets that the device was to send, and that were dropped by it or right before it.
    pub fn tx_dropped(&self) -> io::Result<u64> {
        /// Where a line has it, behind the name: 8 columns are about receiving, 3 more come before it.
        const COLUMN: usize = 11;
        let text = self
            .ns
            .run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
        text.lines()
            .filter_map(|line| line.trim_start().split_once(':'))
            .find(|(name, _)| *name == self.ifname)
            .and_then(|(_, counts)| counts.split_whitespace().nth(COLUMN)?.parse().ok())
            .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "the device has no counters"))
    }
}
