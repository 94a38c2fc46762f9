// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Device-memory TCP from user space.
//!
//! The kernel places the payload of a TCP flow straight into a dma-buf and tells the receiver where
//! each piece lies; and it sends straight from a dma-buf.
//!
//! It is on no registry: `cargo add devmem --path DIR/tools/devmem`, DIR being where the project was cloned to.
//!
//! # Receiving
//!
//! 1. [`Device`](device::Device): the NIC, which has to split headers from payload, and to give the connection to a queue for
//!    device memory, best one that gets nothing else; [`Netdev::queues`](netdev::Netdev::queues) lists them;
//! 2. [`DmaBuf`]: memory that a NIC can write to, from a memfd or a dma-buf heap;
//! 3. [`BindRx`]: binds the dma-buf to RX queues of a device and gives a [`Binding`];
//! 4. [`Receiver`]: receives from a TCP socket and yields each [`Piece`] in stream order;
//! 5. [`Token`] and [`TokenBatch`]: hand the memory of a piece back to the NIC.
//!
//! The first and the third take CAP_NET_ADMIN. All of it is undone as it is dropped: the binding before what the device was
//! made ready by, as in this order.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use devmem::device::Device;
//! use devmem::netns::Netns;
//! use devmem::{BindRx, DmaBuf, Piece, Receiver, TokenBatch};
//!
//! let address: std::net::SocketAddr = "192.0.2.1:5201".parse()?;
//! let here = Netns::current()?;
//! let device = Device::prepare(&here, "eth0")?;
//! let _rule = device.steer(address, 4)?;
//! let memory = DmaBuf::udmabuf(64 << 20)?;
//! let map = memory.map()?;
//! let binding = BindRx::new(device.ifindex()).queue(4).bind(&memory)?;
//!
//! let (stream, _) = std::net::TcpListener::bind(address)?.accept()?;
//! let mut rx = Receiver::new(&stream);
//! let mut done = TokenBatch::new(&stream);
//! // The stream, from its first byte on.
//! let mut payload = Vec::new();
//! loop {
//!     let received = rx.recv()?;
//!     if received.is_eof() {
//!         break;
//!     }
//!     let cpu = map.begin_read()?;
//!     // In the order of the stream, of which any part may come in host memory.
//!     for piece in received {
//!         match piece {
//!             Piece::Frag(frag) => {
//!                 // Offsets are those of one dma-buf.
//!                 assert_eq!(frag.dmabuf_id, binding.id());
//!                 let at = payload.len();
//!                 payload.resize(at + frag.size as usize, 0);
//!                 cpu.copy_out(frag.offset, &mut payload[at..])?;
//!                 done.push(frag.token)?;
//!             }
//!             Piece::Linear(bytes) | Piece::Plain(bytes) => payload.extend_from_slice(bytes),
//!         }
//!     }
//!     done.flush()?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Sending
//!
//! 1. [`Region`]: a part of a dma-buf, to be written by its owner only;
//! 2. [`BindTx`]: binds the dma-buf to the device that the connection goes through, for this user or
//!    [for everybody](BindTx::shared);
//! 3. [`Sender`]: takes regions (or other [`Source`]s), sends them over a TCP socket, and gives each
//!    back as [`Sent`] when the kernel no longer reads it.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::io::Read;
//!
//! use devmem::{BindTx, DmaBuf, Filled, Sender};
//!
//! let ifindex = devmem::netns::Netns::current()?.ifindex("eth0")?;
//! let memory = DmaBuf::udmabuf(4 << 20)?;
//! let binding = BindTx::new(ifindex).bind(&memory)?;
//!
//! let stream = std::net::TcpStream::connect("192.0.2.1:5201")?;
//! let mut tx = Sender::<Filled>::new(&stream)?;
//! let mut free = memory.region()?.split(256 << 10);
//! let mut file = std::fs::File::open("/etc/services")?;
//! let mut buffer = vec![0; 256 << 10];
//! loop {
//!     // A region to write to: one that was not used yet, or the next that has been sent.
//!     let mut region = match free.pop() {
//!         Some(region) => region,
//!         None => tx.wait()?.ok_or("no memory at all")?.source.region,
//!     };
//!     let len = file.read(&mut buffer)?;
//!     if len == 0 {
//!         break;
//!     }
//!     region.begin_write()?.copy_in(0, &buffer[..len])?;
//!     tx.send(&binding, Filled { region, len: len as u64 })?;
//! }
//! // What the kernel still reads must not be written by others either.
//! while tx.wait()?.is_some() {}
//! # Ok(())
//! # }
//! ```
//!
//! # Programs
//!
//! In `examples/`: `receive` and `send` are whole programs around the loops above, `uring` receives by io_uring,
//! `threads` several connections, the pieces of which go to another thread, `tokio` several in one thread, and `survivor`
//! one after the other into memory that may be taken back. `local` sends to a reader in another network namespace of the same
//! machine.
//!
//! Sockets are borrowed, or shared: see [`Socket`]. Everything that waits has a variant that does so for no longer than a
//! while, or not at all: [`Receiver::recv_timeout`], [`Sender::send_timeout`], [`Sender::wait_timeout`],
//! [`Sender::send_flags`]. What a send that stopped in between has left goes on by [`Sender::resume`], and
//! [`Sender::abort`] gives up a connection with what it has in flight.
//!
//! # Small buffers
//!
//! Each buffer that a NIC has filled is a piece, with a token to be returned. What follows each other in the dma-buf comes as
//! one piece, with one token, after [`recv::take_runs`], from this project's provider on a kernel with its series.
//!
//! # Memory that goes back
//!
//! The exporter of a dma-buf may want its memory back (VFIO does, when its device is reset). Then [`Binding::wait_event`]
//! tells that it is [revoked](status::EventKind::Revoked), and another dma-buf can be bound to the same queues, which go on
//! with host memory until then. Tokens can be returned as ever. A connection goes on, too, if all of it has been received
//! that was in the memory that is gone; if not, receiving fails with `EIO`, for ever: bytes are missing there, and no more of
//! it can be made sense of. `examples/survivor` does all of that.
//!
//! # Memory that is stuck
//!
//! Who keeps tokens, or does not read, keeps buffers that others may wait for. [`BindRx::max_tokens`] limits how many a
//! socket may have. [`diag::holders`] tells an operator which sockets have some, and
//! [`Netdev::flush`](netdev::Netdev::flush) aborts their connections.
//!
//! # What is logged
//!
//! A drop cannot fail. What went wrong in one, or never comes back after it, is a warning of the crate [`log`], by whose
//! means it also gets to `tracing`. [`Rule::remove`](device::Rule::remove),
//! [`Device::restore`](device::Device::restore), [`TokenBatch::flush`] and
//! [`uring::Receiver::finish`] do what these drops do, and tell.
//!
//! # The same machine
//!
//! A peer on the same machine gets what is sent from a [local](BindTx::local) binding without a copy, by the same calls;
//! [`local`] has what tells it which memory that is, and a channel that needs no binding.
//!
//! # Where it builds
//!
//! On Linux, with glibc or musl, on machines of 64 or 32 bits. The backend by io_uring is the feature `uring`, which is
//! on by default. The crate below it knows machines of 64 bits only; elsewhere it has to be off. Futures are the
//! feature `tokio`, which is off by default. Neither brings a crate that it does not need.
//!
//! # Below and beside
//!
//! [`uring`] has a receiver and a sender that do the same by io_uring, on rings of their own or on one for all of a
//! program; programs for either use the traits [`Receive`] and [`Transmit`]. The module `tokio` has them as futures.
//!
//! [`cmsg`], [`completion`] and [`TxSocket`] are what these are made of. [`netlink`] builds any
//! request by hand, malformed ones too; [`netdev`] and [`ethtool`] are the two generic netlink families
//! a receiver needs, and [`device`] makes a device ready; [`status`] tells of the bindings there are, and of what
//! happens to them, [`watch`] waits for what happens to one of them, and [`diag`] tells of the sockets that hold their
//! memory; [`provider`] tells which implementation serves bindings; [`netns`] runs code in another network namespace.

// Whatever a number is, it is not cut to fit: that would be another place, or another length.
#![warn(clippy::cast_possible_truncation)]
#![warn(clippy::cast_possible_wrap)]
#![warn(clippy::cast_sign_loss)]
// Who calls what can fail has to know how.
#![warn(clippy::missing_errors_doc)]

pub mod cmsg;
pub mod completion;
pub mod device;
pub mod diag;
pub mod dmabuf;
pub mod ethtool;
pub mod host;
pub mod local;
mod message;
pub mod netdev;
pub mod netlink;
pub mod netns;
mod poll;
pub mod provider;
pub mod rcvbuf;
pub mod recv;
mod rules;
pub mod send;
mod socket;
pub mod status;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod token;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(feature = "uring")]
pub mod uring;
pub mod vfio;
mod volatile;
pub mod watch;

pub use completion::Sent;
pub use dmabuf::DmaBuf;
pub use dmabuf::Extent;
pub use dmabuf::Filled;
pub use dmabuf::Region;
pub use host::HostMemory;
pub use netdev::BindRx;
pub use netdev::BindTx;
pub use netdev::Binding;
pub use netdev::TxBinding;
pub use netlink::Error;
pub use netlink::errno_of;
pub use recv::Frag;
pub use recv::Piece;
pub use recv::Receive;
pub use recv::Receiver;
pub use send::Rest;
pub use send::SendError;
pub use send::Sender;
pub use send::Source;
pub use send::Transmit;
pub use socket::Socket;
pub use tcp::TxSocket;
pub use token::Token;
pub use token::TokenBatch;
pub use watch::Watch;
