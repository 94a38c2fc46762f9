// SPDX-License-Identifier: GPL-2.0

//! What faults are tried on, and whether it is as before afterwards.

use std::io;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Receiver;
use devmem::dmabuf::Mapping;
use devmem::netlink::Attrs;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::pair::Connection;
use devmem_testlib::pair::Ip;
use devmem_testlib::provider;
use devmem_testlib::sockopt;
use devmem_testlib::tx;
use devmem_testlib::tx::Completions;

/// Bytes that a transfer moves.
const TRANSFER: u64 = 32 << 10;
const MEMORY: usize = 1 << 18;

/// A pair of devices, a connection between them, and memory to receive to and to send from.
pub struct Rig {
    pub pair: Pair,
    pub connection: Connection,
    pub rx_memory: DmaBuf,
    pub rx_map: Mapping,
    pub tx_memory: DmaBuf,
    completions: Completions,
    calls: u32,
}

impl Rig {
    pub const QUEUE: u32 = 1;
    const PORT: u16 = 5001;

    pub fn new() -> io::Result<Self> {
        // What was bound before may still be on its way out.
        provider::wait_for("no device to be attached", || {
            Ok(provider::attachments()? == 0)
        });
        let pair = Pair::new()?;
        let connection = pair.connect_to_queue(Ip::V4, Self::PORT, Self::QUEUE)?;
        sockopt::set(&connection.tx, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1_i32)?;
        let rx_memory = DmaBuf::udmabuf(MEMORY)?;
        let tx_memory = DmaBuf::udmabuf(MEMORY)?;
        tx::fill(&tx_memory)?;
        Ok(Self {
            pair,
            connection,
            rx_map: rx_memory.map()?,
            rx_memory,
            tx_memory,
            completions: Completions::default(),
            calls: 0,
        })
    }

    /// The requests to bind the memory.
    pub fn rx_attrs(&self) -> Attrs<'_> {
        self.pair.request(&[Self::QUEUE, 2]).attrs(&self.rx_memory)
    }

    pub fn tx_attrs(&self) -> Attrs<'_> {
        BindTx::new(self.pair.tx.ifindex).attrs(&self.tx_memory)
    }

    /// Has the queues of [`rx_attrs`](Self::rx_attrs) start anew.
    pub fn restart_queues(&self) -> io::Result<()> {
        let memory = DmaBuf::udmabuf(16 << 12)?;
        drop(self.pair.bind(&[Self::QUEUE, 2], &memory)?);
        Ok(())
    }

    /// Binds both ends, sends from the one memory into the other, and compares every byte.
    #[track_caller]
    pub fn transfer(&mut self) -> Outcome {
        let rx = self.pair.bind(&[Self::QUEUE, 2], &self.rx_memory)?;
        let tx = self.pair.tx.bind_tx(&self.tx_memory)?;
        let part = tx::extent(u64::from(self.calls % 8) * TRANSFER, TRANSFER);
        let sent = tx::Call::new(tx.id(), &[part]).send(&self.connection.tx);
        assert_eq!(tx::outcome(&sent), TRANSFER.to_string());
        let mut receiver = Receiver::new(&self.connection.rx);
        let copied = tx::expect_in_device_memory(&mut receiver, &self.rx_map, &[part])?;
        assert_eq!(copied, 0, "bytes in host memory");
        self.calls += 1;
        self.completions.wait(&self.connection.tx, self.calls)?;
        let ids = [rx.id(), tx.id()];
        drop((rx, tx));
        ids.into_iter().for_each(provider::all_buffers_back);
        Ok(())
    }
}
