// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What lands where it belongs: a target that is bound to a queue of its own, fresh, for one transfer.
//!
//! The NIC fills the buffers of a fresh binding in ascending order. So of a stream that fills each of them the bytes land in
//! their order, and no copy is needed: pieces tell where they are. Which gaps there are, and what came out of order, is
//! known when all has landed; what is not in place then is [put there](Target::finish) by the CPU. [`Order`] is what that
//! takes, without any I/O.
//!
//! ```no_run
//! # use std::net::TcpListener;
//! # fn land(ifindex: u32, control: TcpListener, lanes: TcpListener) -> Result<(), Box<dyn std::error::Error>> {
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
    order: Mutex<State<Landed>>,
}

#[derive(Debug)]
enum State<K> {
    Open(Order<K>),
    Finished,
}

/// What is done with something that has landed.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It is of the region.
    Kept,
    Copied,
    /// Other bytes may be there by now.
    Lost,
}

impl<K> State<K> {
    /// No more is kept; what was, unless that was so before.
    fn finish(&mut self) -> Option<Order<K>> {
        match std::mem::replace(self, Self::Finished) {
            Self::Open(order) => Some(order),
            Self::Finished => None,
        }
    }

    /// What becomes of bytes that belong into the target's memory, or into another one, and have landed in the target, or
    /// somewhere else.
    fn fate(&self, for_target: bool, in_target: bool) -> Fate {
        match self {
            Self::Open(_) if for_target => Fate::Kept,
            // They landed before it was unbound, in buffers over which the region was moved since.
            Self::Finished if in_target => Fate::Lost,
            _ => Fate::Copied,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State<Landed>> {
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
    /// Whatever else has landed in the target, and is not placed when this is called, is lost: that of a put by another
    /// key, say, or of a get of this end. The request fails, as if the memory could not be written. But this knows of the
    /// endpoint only that has the other half: of others, whose lanes land in the target, too, nothing may be under way.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it was finished before; those of [`Memory::read`] and
    /// [`Memory::write`], after which it is not known what is in the region.
    pub fn finish(&self) -> io::Result<Report> {
        let mut state = self.0.lock();
        let order = state.finish().ok_or(io::ErrorKind::InvalidInput)?;
        self.0.landing.unbind();
        order.repair(&mut &*self.0.memory)
    }
}

impl Place for InPlace {
    fn place(&mut self, jobs: &mut [Job]) {
        let shared = &self.shared;
        let mut state = shared.lock();
        for job in jobs.iter_mut() {
            let at = job.landed.as_ref().and_then(Landed::device);
            let at = at.filter(|(landing, _)| Arc::ptr_eq(landing, &shared.landing));
            let at = at.map(|(_, at)| at);
            let for_target = Arc::ptr_eq(&job.memory, &shared.memory);
            let fate = state.fate(for_target, at.is_some());
            if fate == Fate::Copied {
                continue;
            }
            let Some(landed) = job.landed.take() else {
                continue;
            };
            let State::Open(order) = &mut *state else {
                continue;
            };
            let len = landed.len();
            job.placed = match (at, landed.host()) {
                (Some(at), _) => order.landed(job.offset, len, at, landed),
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
        // What is for others, or was too late. Nobody finishes it meanwhile: it may be in the target.
        self.copy.place_rest(jobs);
        drop(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was put there by another key had landed when the region was moved over it.
    #[test]
    fn nothing_is_copied_out_of_a_target_that_is_finished() {
        let mut state = State::Open(Order::<()>::new(1 << 20, 1 << 19, 1));
        let fates = |state: &State<()>| {
            [(true, true), (true, false), (false, true), (false, false)]
                .map(|(for_target, in_target)| state.fate(for_target, in_target))
        };
        let open = [Fate::Kept, Fate::Kept, Fate::Copied, Fate::Copied];
        assert_eq!(fates(&state), open);
        assert!(state.finish().is_some());
        let finished = [Fate::Lost, Fate::Copied, Fate::Lost, Fate::Copied];
        assert_eq!(fates(&state), finished);
        assert!(state.finish().is_none());
    }
}
