// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A receiver that goes on when its memory is taken back.

use std::error::Error;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use devmem::BindRx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::Piece;
use devmem::Receiver;
use devmem::TokenBatch;
use devmem::Watch;
use devmem::dmabuf::Mapping;
use devmem::status::EventKind;
use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;

/// What ends a receiver, or one connection of it.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Who sends nothing for so many milliseconds is given up.
const PATIENCE: u16 = 30_000;

/// Memory that is bound, and what is to be known of it.
struct Bound {
    binding: Binding,
    map: Mapping,
    watch: Watch,
}

impl Bound {
    fn new(request: &BindRx, memory: &DmaBuf) -> Result<Self, Failure> {
        let map = memory.map()?;
        let binding = request.bind(memory)?;
        // What has happened to it by now, this tells too.
        let watch = Watch::of(binding.id())?;
        Ok(Self {
            binding,
            map,
            watch,
        })
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer has sent everything, and it came.
    Whole,
    /// Some of it was still to be read in memory that went back to its exporter. What is behind it cannot be read, even
    /// where it is in other memory: nobody could tell how much is missing between.
    Lost,
}

/// Receives by queues that are bound anew when their memory is taken back.
pub struct Survivor<M> {
    request: BindRx,
    more: M,
    bound: Bound,
    revoked: u64,
    in_device_memory: u64,
}

impl<M: FnMut() -> io::Result<DmaBuf>> Survivor<M> {
    /// Binds what `more` gives, which is asked for other memory each time that it has gone.
    pub fn new(request: BindRx, mut more: M) -> Result<Self, Failure> {
        Ok(Self {
            bound: Bound::new(&request, &more()?)?,
            request,
            more,
            revoked: 0,
            in_device_memory: 0,
        })
    }

    /// How often memory was taken back.
    pub fn revoked(&self) -> u64 {
        self.revoked
    }

    /// How many bytes came in device memory.
    pub fn in_device_memory(&self) -> u64 {
        self.in_device_memory
    }

    /// Receives a connection, and hands its bytes on in their order.
    pub fn receive(
        &mut self,
        stream: &TcpStream,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<End, Failure> {
        let mut rx = Receiver::new(stream);
        // Goes back when it is full, before anything is waited for, when there is no memory left, or at the end.
        let mut done = TokenBatch::new(stream);
        let mut copy = Vec::new();
        loop {
            self.hear(&mut done)?;
            let received = match rx.recv_timeout(Duration::ZERO) {
                Ok(received) if received.is_eof() => return Ok(End::Whole),
                Ok(received) => received,
                Err(err) if err.kind() == io::ErrorKind::TimedOut => {
                    // It may be that nothing comes without these, if the memory is small.
                    done.flush()?;
                    self.wait(stream)?;
                    continue;
                }
                Err(err) if err.raw_os_error() == Some(Errno::EIO as i32) => return Ok(End::Lost),
                Err(err) => return Err(err.into()),
            };
            let cpu = self.bound.map.begin_read()?;
            for piece in received {
                match piece {
                    Piece::Frag(frag) => {
                        // Of memory that is gone there are no pieces any more.
                        if frag.dmabuf_id != self.bound.binding.id() {
                            return Err("the flow is on a queue of another program".into());
                        }
                        // Whether it can be read when the memory goes in this moment, is up to the exporter.
                        copy.resize(frag.size as usize, 0);
                        cpu.copy_out(frag.offset, &mut copy)?;
                        done.push(frag.token)?;
                        self.in_device_memory += u64::from(frag.size);
                        take(&copy)?;
                    }
                    Piece::Linear(bytes) | Piece::Plain(bytes) => take(bytes)?,
                }
            }
        }
    }

    /// Does what has to be done about what happened to the memory.
    fn hear(&mut self, done: &mut TokenBatch<'_>) -> Result<(), Failure> {
        while let Some(event) = self.bound.watch.try_next()? {
            match event.kind {
                EventKind::Exhausted => done.flush()?,
                EventKind::Revoked => {
                    // What is left of the binding waits for these. The queue does not: it is free.
                    done.flush()?;
                    self.revoked += 1;
                    self.bound = Bound::new(&self.request, &(self.more)()?)?;
                }
                EventKind::Unbound | EventKind::Deleted => return Err("the device is gone".into()),
                _ => (),
            }
        }
        Ok(())
    }

    /// Waits until there is something to read, or something has happened to the memory.
    fn wait(&self, stream: &TcpStream) -> io::Result<()> {
        let watch = self.bound.watch.as_fd();
        let mut fds = [stream.as_fd(), watch].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::from(PATIENCE)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}
