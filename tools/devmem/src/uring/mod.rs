// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The second backend: the same loop by io_uring, with `io_uring_enter()` as its only system call.
//!
//! [`Receiver`] receives as [`crate::Receiver`] does. Its tokens are cheap to drop: they are collected,
//! and go back to the NIC with the same system call that receives the next data, both in flight at once. Only what
//! other threads drop while it waits for data goes back by itself.
//! [`Sender`] sends as [`crate::Sender`] does. [`Writer`] writes what programs say beside that.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (stream, _) = std::net::TcpListener::bind("192.0.2.1:5201")?.accept()?;
//! use devmem::uring::Receiver;
//!
//! let mut rx = Receiver::multishot(&stream)?;
//! loop {
//!     let received = rx.recv()?;
//!     if received.is_eof() {
//!         break;
//!     }
//!     for piece in received {
//!         // What is in `piece`, device memory or bytes that were copied, is next in the stream.
//!         // Each token goes back by itself.
//!     }
//! }
//! rx.finish()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What the kernel has hold of
//!
//! A request of io_uring outlives the call that made it. So everything that a request refers to, buffers,
//! headers, ranges of tokens, belongs to the object that made the request, and is neither lent nor
//! freed before the kernel has completed the request. Dropping the object cancels its requests and waits
//! for them. Should that fail the memory is leaked.
//!
//! # A ring for many
//!
//! Each of them makes a ring of its own. Programs that have one, or one thread for many connections, have them use
//! that: see [`Ring`].

mod memory;
mod recv;
mod ring;
mod send;
mod write;

pub use recv::Receiver;
pub use ring::Ring;
pub use send::Sender;
pub use write::Writer;

/// The crate that the types of requests are of.
pub use io_uring;
