// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The same as futures, for programs on tokio: the feature `tokio`.
//!
//! [`Receiver`] receives as [`crate::Receiver`] does, and [`Sender`] sends as [`crate::Sender`] does, both by the same
//! system calls. What would wait there is a future here, which the runtime wakes by
//! [`AsyncFd`]: a receiver when there is something to read, a sender when there is room, or
//! something on the socket's error queue, where completions come. [`Watch`] tells what happens to a binding, as
//! [`crate::Watch`] does.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
//! # runtime.block_on(async {
//! use std::sync::Arc;
//!
//! use devmem::TokenBatch;
//! use devmem::tokio::Receiver;
//!
//! let (stream, _) = tokio::net::TcpListener::bind("192.0.2.1:5201").await?.accept().await?;
//! let stream = Arc::new(stream);
//! let mut rx = Receiver::new(Arc::clone(&stream))?;
//! // Returning tokens never waits, so there is no other batch for it.
//! let mut done = TokenBatch::new(stream);
//! loop {
//!     let received = rx.recv().await?;
//!     if received.is_eof() {
//!         break;
//!     }
//!     for piece in received {
//!         // As with the other receivers. Pieces borrow nothing of an `Arc`, and can go to other tasks.
//!         if let devmem::Piece::Frag(frag) = piece {
//!             done.push(frag.token)?;
//!         }
//!     }
//!     done.flush()?;
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # })
//! # }
//! ```
//!
//! Sockets are tokio's own, those of the standard library, or any others, and it does not matter whether calls wait on
//! them (`O_NONBLOCK`). A runtime takes a descriptor once only. So each receiver and each sender duplicates that of its
//! socket, and a socket may have both of them, and be in use by other means.
//!
//! # Cancel safety
//!
//! A future may be dropped at any time, by a timeout or by a `select!` whose other branch came first, and nothing is lost
//! of the stream, of tokens, or of what is sent:
//!
//! - [`Receiver::recv`]: nothing has been received. The next call goes on where this one would have;
//! - [`Sender::send`], [`Sender::resume`]: whatever was sent is in the stream, whatever was not is [left](Sender::rest), to
//!   go on with, and the source comes back as it would have. That holds for a future that was never polled, too;
//! - [`Sender::wait`]: nothing was given back. The next call gives what this one would have;
//! - [`Watch::next`]: nothing was told. The next call tells it.
//!
//! # Where a runtime has to be
//!
//! Receivers, senders and watches are made within one that has I/O enabled, and panic elsewhere, as all that is made of
//! `AsyncFd`.

mod recv;
mod send;
mod watch;

pub use recv::Receiver;
pub use send::Sender;
pub use watch::Watch;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;

/// Has the runtime tell of a socket's readiness, by a descriptor of our own.
fn register(socket: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    let duplicate = socket.try_clone_to_owned()?;
    // SAFETY: It is open, and nobody else's: the `AsyncFd` has it until that is dropped, and gives it to nobody.
    Ok(unsafe { AsyncFd::register_with_interest(duplicate, interest) }?)
}
