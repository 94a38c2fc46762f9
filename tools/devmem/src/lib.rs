// SPDX-License-Identifier: GPL-2.0

//! Device-memory TCP from user space.
//!
//! The kernel places the payload of a TCP flow straight into a dma-buf and tells the receiver where
//! each piece lies. This crate covers the receive path:
//!
//! 1. [`DmaBuf`]: memory that a NIC can write to, from a memfd or a dma-buf heap;
//! 2. [`BindRx`]: binds the dma-buf to RX queues of a device and gives a [`Binding`];
//! 3. [`Receiver`]: receives from a TCP socket and yields each [`Piece`] in stream order;
//! 4. [`Token`] and [`TokenBatch`]: hand the memory of a piece back to the NIC.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use devmem::{BindRx, DmaBuf, Piece, Receiver, TokenBatch};
//!
//! let ifindex = nix::net::if_::if_nametoindex("eth0")?;
//! let memory = DmaBuf::udmabuf(64 << 20)?;
//! let map = memory.map()?;
//! let binding = BindRx::new(ifindex).queue(4).bind(&memory)?;
//!
//! let (stream, _) = std::net::TcpListener::bind("192.0.2.1:5201")?.accept()?;
//! let mut rx = Receiver::new(&stream);
//! let mut done = TokenBatch::new(&stream);
//! let mut payload = vec![0; 1 << 20];
//! loop {
//!     let received = rx.recv()?;
//!     if received.is_eof() {
//!         break;
//!     }
//!     let cpu = map.begin_read()?;
//!     for piece in received {
//!         if let Piece::Frag(frag) = piece {
//!             cpu.copy_out(frag.offset, &mut payload[..frag.size as usize])?;
//!             done.push(frag.token)?;
//!         }
//!     }
//!     done.flush()?;
//! }
//! # drop(binding);
//! # Ok(())
//! # }
//! ```
//!
//! [`netlink`] builds any request by hand, malformed ones too; [`netdev`] and [`ethtool`] are the two
//! generic netlink families a receiver needs; [`provider`] tells which implementation serves
//! bindings; [`netns`] runs code in another network namespace.

pub mod cmsg;
pub mod dmabuf;
pub mod ethtool;
pub mod netdev;
pub mod netlink;
pub mod netns;
pub mod provider;
pub mod recv;
pub mod token;

pub use dmabuf::DmaBuf;
pub use netdev::BindRx;
pub use netdev::Binding;
pub use netlink::Error;
pub use recv::Frag;
pub use recv::Piece;
pub use recv::Receiver;
pub use token::Token;
pub use token::TokenBatch;
