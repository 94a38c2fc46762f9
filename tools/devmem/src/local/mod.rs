// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Ends that are on the same machine: which memory a peer means, and a channel that needs no more than that.
//!
//! A [`Receiver`](crate::Receiver) is told offsets in the dma-buf of the sender's local binding, and the number of that. A
//! [`Share`] brings the dma-buf, over an AF_UNIX socket:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::os::unix::net::UnixStream;
//!
//! use devmem::local::Share;
//! use devmem::netns::Netns;
//! use devmem::{BindTx, DmaBuf, Piece, Receiver};
//!
//! let (here, there) = UnixStream::pair()?;
//! // The sender, before it sends anything:
//! let memory = DmaBuf::udmabuf(4 << 20)?;
//! let binding = BindTx::new(Netns::current()?.ifindex("lo")?).local().bind(&memory)?;
//! Share::send(&here, &binding, &memory)?;
//!
//! // The receiver, in another process or container:
//! let share = Share::receive(&there)?;
//! let map = share.memory().map()?;
//! let stream = std::net::TcpStream::connect("127.0.0.1:5201")?;
//! for piece in Receiver::new(&stream).recv()? {
//!     if let Piece::Frag(frag) = piece {
//!         assert_eq!(frag.dmabuf_id, share.id());
//!         let mut bytes = vec![0; frag.size as usize];
//!         map.begin_read()?.copy_out(frag.offset, &mut bytes)?;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Two ends that know each other do without TCP, and without a binding: a [`Channel`] passes the dma-buf, and then offsets.
//!
//! # What a peer can do
//!
//! It has the memory. Whoever a dma-buf was passed to can read all of it, as long as it likes, and write to it as far as the
//! descriptor lets it: what was shared is not for secrets, and what a peer shared is to be copied before it is checked. What
//! a peer says is checked: descriptors that do not belong there are closed, and parts that are not in the memory, or that
//! were not lent, end the channel.

mod channel;
mod outbox;
mod share;
mod wire;

pub use channel::Channel;
pub use channel::WINDOW;
pub(crate) use outbox::Outbox;
pub use share::Memories;
pub use share::Share;
