// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What lands where it belongs: a target that is bound to a queue of its own, fresh, for one transfer.
//!
//! The NIC fills the buffers of a fresh binding in ascending order. So of a stream that fills each of them the bytes land in
//! their order, and no copy is needed: pieces tell where they are. Which gaps there are, and what came out of order, is
//! known when all has landed; what is not in place then is [put there](Target::finish) by the CPU. [`Order`] is what that
//! takes, without any I/O.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (ifindex, control, lanes): (_, std::net::TcpListener, std::net::TcpListener) = todo!();
//! use std::time::Duration;
//!
//! use devmem::{BindRx, DmaBuf};
//! use devmem_bulk::{Acceptor, Event, InPlace, Landing, Memory, Options, Registry, Rights};
//!
//! let dmabuf = DmaBuf::udmabuf(320 << 20)?;
//! let landing = Landing::new(BindRx::new(ifindex).queue(4).bind(&dmabuf)?, &dmabuf)?;
//! let memory = Memory::new(&dmabuf)?;
//! let (in_place, target) = InPlace::new(&landing, &memory, 1)?;
//! let registry = Registry::new()?;
//! let key = registry.register(&memory, 0, landing.whole(), Rights::Write, None)?;
//! // The peer, which gets to know the key, puts all of it by its one lane, and sends a note then.
//! let options = Options::new(registry.clone()).target(landing, 1);
//! let endpoint = Acceptor::new(control, lanes).accept(options, Duration::from_secs(10))?;
//! endpoint.place_by(in_place).serve(|event| {
//!     if let Event::Note(_) = event {
//!         registry.revoke(key);
//!         let report = target.finish().expect("bytes that are in place");
//!         println!("from {} on, {:.1} % in place", report.base, 100.0 * report.fraction());
//!     }
//! })?;
//! # Ok(())
//! # }
//! ```

mod order;
mod pieces;

pub use order::Order;
pub use order::Report;
pub use pieces::Bytes;

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use log::warn;

use crate::memory::Landing;
use crate::memory::Memory;
use crate::place::HostCopy;
use crate::place::Job;
use crate::place::Landed;
use crate::place::Place;

/// What both halves know.
#[derive(Debug)]
struct Shared {
    landing: Arc<Landing>,
    memory: Arc<Memory>,
    /// Until it is finished.
    order: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Open(Order<Landed>),
    Finished,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here leaves things half done but the bytes themselves.
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves what is for the target where it has landed, and has the CPU copy the rest.
#[derive(Debug)]
pub struct InPlace {
    shared: Arc<Shared>,
    copy: HostCopy,
}

/// A memory that is being landed in, for one transfer.
#[derive(Debug)]
pub struct Target(Arc<Shared>);

impl InPlace {
    /// One for the memory of this landing, to which nothing has landed yet, and its other half. What is put to the first
    /// [`Landing::whole`] bytes of `memory`, which is the same dma-buf's, is in the landing, [wherever](Report::base) that
    /// takes the fewest copies; no key for other bytes of it, or for reading, is of use before the transfer is finished.
    ///
    /// The region will begin at a multiple of `align`.
    ///
    /// Until it is finished the NIC writes to all of the target what the peers send by lanes that are steered there, within
    /// what their receive buffers take, whether a key is there for it or not: to take a key back does not end that. And
    /// another endpoint, whose keys name the memory, writes over what has landed.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the binding of the landing is somebody else's: nobody could end it.
    pub fn new(
        landing: &Arc<Landing>,
        memory: &Arc<Memory>,
        align: u64,
    ) -> io::Result<(Self, Target)> {
        if !landing.is_bound() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the landing has no binding of its own",
            ));
        }
        let order = Order::new(landing.size(), landing.whole(), align);
        let shared = Arc::new(Shared {
            landing: Arc::clone(landing),
            memory: Arc::clone(memory),
            order: Mutex::new(State::Open(order)),
        });
        let this = Self {
            shared: Arc::clone(&shared),
            copy: HostCopy::new(),
        };
        Ok((this, Target(shared)))
    }
}

impl Target {
    /// Ends the transfer: unbinds the landing, so that nothing lands there any more, and puts in place what is not.
    ///
    /// The peer's puts have to be done, which a note tells. What comes by a key after that is copied to where the key says,
    /// which is not where the [region](Report::base) is. So the target's key is to be
    /// [taken back](crate::Registry::revoke) before, and one for the region made then, if it is to be written, or read, by
    /// the peer.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it was finished before; those of [`Memory::read`] and
    /// [`Memory::write`], after which it is not known what is in the region.
    pub fn finish(&self) -> io::Result<Report> {
        let mut state = self.0.lock();
        let State::Open(order) = std::mem::replace(&mut *state, State::Finished) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.0.landing.unbind();
        order.repair(&mut &*self.0.memory)
    }
}

impl Place for InPlace {
    fn place(&mut self, jobs: &mut [Job]) {
        let mut state = self.shared.lock();
        for job in jobs.iter_mut() {
            if !Arc::ptr_eq(&job.memory, &self.shared.memory) {
                continue;
            }
            let State::Open(order) = &mut *state else {
                continue;
            };
            let Some(landed) = job.landed.take() else {
                continue;
            };
            let len = landed.len();
            job.placed = match (landed.device(), landed.host()) {
                (Some((landing, at)), _) if Arc::ptr_eq(landing, &self.shared.landing) => {
                    order.landed(job.offset, len, at, landed)
                }
                (_, Some(bytes)) => order.saved(job.offset, bytes.to_vec()),
                _ => false,
            };
        }
        if let State::Open(order) = &mut *state {
            if order.is_full() {
                if let Err(err) = order.save(&&*self.shared.memory) {
                    warn!("bytes that have landed cannot be saved: {err}");
                }
            }
        }
        drop(state);
        // What is for others, or was too late.
        self.copy.place_rest(jobs);
    }
}
