// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Bulk transfer between dma-bufs over device-memory TCP: put, get, notify.
//!
//! An [`Endpoint`] has a control connection and lanes, which are steered to queues that are bound to a [`Landing`].
//! [`Memory`] is what is transferred; a [`Registry`] names parts of it by keys, for the peer. Puts and gets end when
//! all bytes are in place.
//!
//! It is on no registry: `cargo add devmem-bulk --path DIR/tools/devmem-bulk`, and the same for `devmem`, DIR being where
//! the project was cloned to.
//!
//! An end that serves, and does nothing else:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::net::TcpListener;
//! use std::time::Duration;
//!
//! use devmem::device::Device;
//! use devmem::netns::Netns;
//! use devmem::{BindRx, DmaBuf};
//! use devmem_bulk::{Acceptor, Landing, Memory, Options, Registry, Rights};
//!
//! // Header split is on, and the port of lanes steered to queue 4, as long as there are these. The other port is to stay
//! // off that queue, whatever RSS does: nobody could read what comes there.
//! let here = Netns::current()?;
//! let device = Device::prepare(&here, "eth0")?;
//! let _rules = (
//!     device.steer("192.0.2.1:5202".parse()?, 4)?,
//!     device.steer("192.0.2.1:5201".parse()?, 0)?,
//! );
//! let ifindex = device.ifindex();
//! let landing = DmaBuf::udmabuf(64 << 20)?;
//! let landing = Landing::new(BindRx::new(ifindex).queue(4).bind(&landing)?, &landing)?;
//! let memory = Memory::bound(&DmaBuf::udmabuf(256 << 20)?, ifindex)?;
//! let registry = Registry::new()?;
//! let key = registry.register(&memory, 0, memory.size(), Rights::ReadWrite, None)?;
//! // The peer gets to know it by other means.
//! println!("{}", key.to_hex());
//!
//! let control = TcpListener::bind("192.0.2.1:5201")?;
//! let lanes = TcpListener::bind("192.0.2.1:5202")?;
//! let options = Options::new(registry).landing(landing, 1);
//! let mut endpoint = Acceptor::new(control, lanes).accept(options, Duration::from_secs(10))?;
//! println!("{}", endpoint.serve(|event| println!("{event:?}"))?);
//! # Ok(())
//! # }
//! ```
//!
//! And one that puts 1 MiB there, and gets it back:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (ifindex, key) = (1, devmem_bulk::Key([0; 16]));
//! use std::time::Duration;
//!
//! use devmem::DmaBuf;
//! use devmem_bulk::{Memory, Options, Registry, connect};
//!
//! let memory = Memory::bound(&DmaBuf::udmabuf(2 << 20)?, ifindex)?;
//! let (control, lanes) = ("192.0.2.1:5201".parse()?, "192.0.2.1:5202".parse()?);
//! let options = Options::new(Registry::new()?);
//! let mut endpoint = connect::connect(control, lanes, 1, options, Duration::from_secs(10))?;
//! endpoint.put(&memory, 0, 1 << 20, key, 0)?;
//! endpoint.flush(drop)??;
//! endpoint.get(&memory, 1 << 20, 1 << 20, key, 0)?;
//! endpoint.flush(drop)??;
//! endpoint.close();
//! while endpoint.wait(None)?.is_some() {}
//! # Ok(())
//! # }
//! ```
//!
//! A NIC for device memory is needed for neither. Without a [`Landing`] what comes lands in host memory, and
//! [`Memory::new`] is memory that the CPU sends from: with these all of it runs over any device, lo too, and by no rights but
//! those to `/dev/udmabuf`.
//!
//! An end does nothing by itself. While it has requests under way, or serves some, somebody waits for it, in a thread if
//! there is something else to do.
//!
//! [`protocol`] is what both ends say, and what they make of it, without any I/O: `Documentation/bulk.rst` describes
//! it. How what has landed gets to its place is a [`Place`]: the CPU copies ([`HostCopy`]), or the program is handed
//! out the pieces ([`HandOut`]); or they stay where they are, if they have landed in order ([`InPlace`]). A device's engine
//! would be another one.

#![forbid(unsafe_code)]
// Whatever a number is, it is not cut to fit: that would be another place, or another length.
#![warn(clippy::cast_possible_truncation)]
#![warn(clippy::cast_possible_wrap)]
#![warn(clippy::cast_sign_loss)]
// Who calls what can fail has to know how.
#![warn(clippy::missing_errors_doc)]

mod accept;
pub mod connect;
pub mod endpoint;
pub mod group;
pub mod in_place;
pub mod memory;
pub mod place;
pub mod protocol;
pub mod registry;
mod stash;

pub use accept::Acceptor;
pub use endpoint::Endpoint;
pub use endpoint::Options;
pub use group::Group;
pub use in_place::InPlace;
pub use memory::Landing;
pub use memory::Lane;
pub use memory::Memory;
pub use place::HandOut;
pub use place::HostCopy;
pub use place::Place;
pub use protocol::End;
pub use protocol::Event;
pub use protocol::Failure;
pub use protocol::Key;
pub use protocol::Limits;
pub use protocol::NoKey;
pub use protocol::Refused;
pub use protocol::Rights;
pub use protocol::Status;
pub use registry::Registry;
