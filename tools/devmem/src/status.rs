// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the kernel tells of bindings, and of what happens to them.
//!
//! [`Netdev::bindings`](crate::netdev::Netdev::bindings) and [`Netdev::binding`](crate::netdev::Netdev::binding) ask,
//! [`Events`] are told. Anybody may do either, and hears of the bindings in the network namespace. It takes a kernel with
//! the series of this project.
//!
//! Who wants to know all that happens opens [`Events`] first, and asks then:
//!
//! ```no_run
//! # fn main() -> Result<(), devmem::Error> {
//! use devmem::netdev::Netdev;
//! use devmem::status::Events;
//!
//! let events = Events::open()?;
//! for binding in Netdev::open()?.bindings()? {
//!     println!("{binding:?}");
//! }
//! for event in events {
//!     let event = event?;
//!     println!("{:?} {:?}", event.kind, event.binding);
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::netdev::FAMILY;
use crate::netdev::cmd;
use crate::netdev::dmabuf;
use crate::netdev::dmabuf_stats;
use crate::netdev::number;
use crate::netdev::queue;
use crate::netlink::Error;
use crate::netlink::GenericSocket;
use crate::netlink::attributes;
use crate::poll;

/// The multicast group of the family that tells of bindings.
const GROUP: &str = "dmabuf";

/// What became of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It has a device, and an owner.
    Bound,
    /// Its owner let go of it, or its device is gone. It waits for the last of its memory that is in use.
    Unbound,
    /// The exporter of its dma-buf took the memory back.
    Revoked,
    /// One that this library does not know, by its number.
    Other(u32),
}

impl State {
    fn of(number: u32) -> Self {
        match number {
            0 => Self::Bound,
            1 => Self::Unbound,
            2 => Self::Revoked,
            other => Self::Other(other),
        }
    }
}

/// What was counted since a binding was made, as far as its provider does, and as far as it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Buffers handed out to page pools.
    pub alloc: Option<u64>,
    /// Buffers that page pools gave back.
    pub recycle: Option<u64>,
    /// How often a page pool found no buffer, not counting those times before a quarter of all was free again.
    pub exhausted: Option<u64>,
    /// How long it was from there until a quarter was free again, in sum.
    pub exhausted_time: Option<Duration>,
    /// Bytes appended to packets.
    pub tx_bytes: Option<u64>,
}

impl Counters {
    fn parse(attrs: &[u8]) -> Self {
        let get = |kind| number(attrs, kind);
        Self {
            alloc: get(dmabuf_stats::ALLOC),
            recycle: get(dmabuf_stats::RECYCLE),
            exhausted: get(dmabuf_stats::EXHAUSTED),
            exhausted_time: get(dmabuf_stats::EXHAUSTED_TIME).map(Duration::from_nanos),
            tx_bytes: get(dmabuf_stats::TX_BYTES),
        }
    }
}

/// A binding, as the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BindingStatus {
    /// Its number.
    pub id: u32,
    /// Whether it is received into. If not, it is sent from.
    pub rx: bool,
    /// What became of it.
    pub state: State,
    /// The provider that serves it.
    pub provider: String,
    /// Its device, as it is called in the network namespace of who asks, unless it has none any more.
    pub ifindex: Option<u32>,
    /// Its receive queues.
    pub queues: Vec<u32>,
    /// Bytes of one buffer, if it is received into.
    pub rx_page_size: Option<u32>,
    /// How many tokens of it a socket may hold, if that is limited: see
    /// [`BindRx::max_tokens`](crate::BindRx::max_tokens).
    pub max_tokens: Option<u32>,
    /// Whether everybody may send from it, see [`BindTx::shared`](crate::BindTx::shared).
    pub shared: bool,
    /// Whether what is sent from it stays on the machine, see [`BindTx::local`](crate::BindTx::local).
    pub local: bool,
    /// Whether the device reaches the memory where it is, as far as the exporter of the dma-buf says. If not, it may be
    /// host memory, that it was moved to.
    ///
    /// Of what is sent from, this and all below is told only to its owner and to who has CAP_NET_ADMIN, and never in
    /// an event.
    pub peer_to_peer: Option<bool>,
    /// Buffers in all, or pages to send from.
    pub buffers: Option<u64>,
    /// Buffers that are not on the provider's free list.
    pub in_use: Option<u64>,
    /// What was counted.
    pub counters: Counters,
}

impl BindingStatus {
    /// Reads a message of the kernel's.
    pub(crate) fn parse(attrs: &[u8]) -> Result<Self, Error> {
        let get = |kind| number(attrs, kind).and_then(|n| u32::try_from(n).ok());
        let find = |kind| attributes(attrs).find_map(|(k, value)| (k == kind).then_some(value));
        let text = |value: &[u8]| {
            let text = value.split(|&byte| byte == 0).next().unwrap_or(value);
            String::from_utf8_lossy(text).into_owned()
        };
        let queues = attributes(attrs)
            .filter(|(kind, _)| *kind == dmabuf::QUEUES)
            .filter_map(|(_, nest)| number(nest, queue::ID)?.try_into().ok());

        let status = || {
            Some(Self {
                id: get(dmabuf::ID)?,
                rx: get(dmabuf::DIRECTION)? == queue::TYPE_RX,
                state: State::of(get(dmabuf::STATE)?),
                provider: find(dmabuf::PROVIDER).map(text)?,
                ifindex: get(dmabuf::IFINDEX),
                queues: queues.collect(),
                rx_page_size: get(dmabuf::RX_PAGE_SIZE),
                max_tokens: get(dmabuf::MAX_TOKENS),
                shared: find(dmabuf::SHARED).is_some(),
                local: find(dmabuf::LOCAL).is_some(),
                peer_to_peer: get(dmabuf::PEER_TO_PEER).map(|is| is != 0),
                buffers: number(attrs, dmabuf::BUFFERS),
                in_use: number(attrs, dmabuf::IN_USE),
                counters: find(dmabuf::STATS).map_or_else(Counters::default, Counters::parse),
            })
        };
        status().ok_or(Error::Answer(
            "a binding without id, direction, state or provider",
        ))
    }
}

/// What came of a [flush](crate::netdev::Netdev::flush).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flushed {
    /// How many connections were aborted.
    pub aborted: u64,
    /// How many buffers came back to the provider, of those that packets and users had when the queues had been
    /// restarted. Of what is sent from it is not known.
    pub returned: Option<u64>,
    /// How many of those did not, yet. They are in the hands of others than connections, or of sockets whose connection
    /// is over, and which have tokens still. Of what is sent from it is not known.
    pub outstanding: Option<u64>,
}

impl Flushed {
    /// Reads a message of the kernel's.
    pub(crate) fn parse(attrs: &[u8]) -> Result<Self, Error> {
        let aborted = number(attrs, dmabuf::ABORTED);
        Ok(Self {
            aborted: aborted.ok_or(Error::Answer("a flush without what was aborted"))?,
            returned: number(attrs, dmabuf::RETURNED),
            outstanding: number(attrs, dmabuf::OUTSTANDING),
        })
    }
}

/// What happened to a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// It was made.
    Added,
    /// It is gone: the last of its memory came back.
    Deleted,
    /// Its owner lets go of it, or its device goes.
    Unbound,
    /// Its memory goes back to the exporter. It is off its queues, which can be bound anew.
    Revoked,
    /// A page pool found no buffer: what comes for its queue is dropped. Told once, until a quarter of the buffers was
    /// free again.
    Exhausted,
    /// A quarter of the buffers is free again.
    Available,
}

impl EventKind {
    fn of(command: u8) -> Option<Self> {
        Some(match command {
            cmd::DMABUF_ADD_NTF => Self::Added,
            cmd::DMABUF_DEL_NTF => Self::Deleted,
            cmd::DMABUF_UNBOUND_NTF => Self::Unbound,
            cmd::DMABUF_REVOKED_NTF => Self::Revoked,
            cmd::DMABUF_EXHAUSTED_NTF => Self::Exhausted,
            cmd::DMABUF_AVAILABLE_NTF => Self::Available,
            _ => return None,
        })
    }
}

/// Something that happened to a binding, and how it was right afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The binding.
    pub binding: BindingStatus,
}

/// A socket that is told what happens to the bindings of a network namespace: that of the thread which opened it.
///
/// To be waited for with others, it can be polled for being readable: then, or if it has an error,
/// [`try_next`](Self::try_next) until there is nothing. As an iterator it waits, and has no end.
#[derive(Debug)]
pub struct Events {
    socket: GenericSocket,
    family: u16,
    /// A datagram may have several.
    read: VecDeque<Event>,
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Events {
    /// Opens a socket. What happens from its return on is told. Needs no rights.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::open`], [`GenericSocket::family`] and [`GenericSocket::join`]; [`Error::NoGroup`] if the
    /// kernel tells of no bindings.
    pub fn open() -> Result<Self, Error> {
        let mut socket = GenericSocket::open()?;
        let family = socket.family(FAMILY)?;
        let group = socket.group(FAMILY, GROUP)?;
        socket.join(group)?;
        Ok(Self {
            socket,
            family,
            read: VecDeque::new(),
        })
    }

    /// The next event, if it is there. Does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if there were events that the kernel had no room for: how things are tells
    /// [`Netdev::bindings`](crate::netdev::Netdev::bindings), and the next call goes on; [`Error::Io`]: those of
    /// `recv()`; [`Error::Answer`] if an event is malformed.
    pub fn try_next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.read.pop_front() {
                return Ok(Some(event));
            }
            let Some(messages) = self.socket.try_notifications(self.family)? else {
                return Ok(None);
            };
            for (command, attrs) in messages {
                // Later kernels may have more to tell.
                if let Some(kind) = EventKind::of(command) {
                    let binding = BindingStatus::parse(&attrs)?;
                    self.read.push_back(Event { kind, binding });
                }
            }
        }
    }

    /// The next event, or `None` if there is none in that time.
    ///
    /// # Errors
    ///
    /// As of [`try_next`](Self::try_next), and those of `poll()`.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Event>, Error> {
        poll::next(self, timeout, Self::try_next)
    }
}

/// Waits for each. The errors are those of [`next_timeout`](Events::next_timeout).
impl Iterator for Events {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_timeout(Duration::MAX).and_then(|event| {
            // There is no such time.
            event.ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut).into())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Attrs;
    use proptest::prelude::*;

    fn mandatory() -> Attrs<'static> {
        Attrs::new()
            .u32(dmabuf::ID, 7)
            .u32(dmabuf::DIRECTION, queue::TYPE_RX)
            .string(dmabuf::PROVIDER, "builtin")
            .u32(dmabuf::STATE, 2)
    }

    #[test]
    fn all_of_a_binding() {
        let queue = |id| Attrs::new().u32(queue::ID, id).u32(queue::TYPE, 0);
        let stats = Attrs::new()
            .u32(dmabuf_stats::ALLOC, 100)
            .u32(dmabuf_stats::RECYCLE, 90)
            .u32(dmabuf_stats::EXHAUSTED, 2)
            .bytes(
                dmabuf_stats::EXHAUSTED_TIME,
                &5_000_000_000u64.to_ne_bytes(),
            );
        let attrs = mandatory()
            .u32(dmabuf::IFINDEX, 3)
            .nested(dmabuf::QUEUES, &queue(1))
            .nested(dmabuf::QUEUES, &queue(4))
            .u32(dmabuf::RX_PAGE_SIZE, 16384)
            .u32(dmabuf::PEER_TO_PEER, 0)
            .u32(dmabuf::BUFFERS, 256)
            .u32(dmabuf::IN_USE, 10)
            .u32(dmabuf::MAX_TOKENS, 20)
            .nested(dmabuf::STATS, &stats);
        let status = BindingStatus::parse(attrs.as_bytes()).unwrap();
        assert_eq!(
            status,
            BindingStatus {
                id: 7,
                rx: true,
                state: State::Revoked,
                provider: "builtin".to_owned(),
                ifindex: Some(3),
                queues: vec![1, 4],
                rx_page_size: Some(16384),
                max_tokens: Some(20),
                shared: false,
                local: false,
                peer_to_peer: Some(false),
                buffers: Some(256),
                in_use: Some(10),
                counters: Counters {
                    alloc: Some(100),
                    recycle: Some(90),
                    exhausted: Some(2),
                    exhausted_time: Some(Duration::from_secs(5)),
                    tx_bytes: None,
                },
            }
        );
    }

    #[test]
    fn what_is_not_told_is_none() {
        let attrs = mandatory().flag(dmabuf::SHARED).flag(dmabuf::LOCAL);
        let status = BindingStatus::parse(attrs.as_bytes()).unwrap();
        assert!(status.shared && status.local);
        assert_eq!(
            (status.ifindex, status.buffers, status.in_use),
            (None, None, None)
        );
        assert_eq!((status.peer_to_peer, status.max_tokens), (None, None));
        assert_eq!(status.counters, Counters::default());
        assert!(status.queues.is_empty());
    }

    #[test]
    fn what_has_to_be_there() {
        for without in [
            dmabuf::ID,
            dmabuf::DIRECTION,
            dmabuf::PROVIDER,
            dmabuf::STATE,
        ] {
            let all = mandatory();
            let attrs = attributes(all.as_bytes())
                .filter(|(kind, _)| *kind != without)
                .fold(Attrs::new(), |attrs, (kind, value)| {
                    attrs.bytes(kind, value)
                });
            let err = BindingStatus::parse(attrs.as_bytes()).unwrap_err();
            assert!(matches!(err, Error::Answer(_)), "{err}");
        }
    }

    #[test]
    fn what_came_of_a_flush() {
        let sent = Attrs::new().u32(dmabuf::ID, 7).u32(dmabuf::ABORTED, 3);
        assert_eq!(
            Flushed::parse(sent.as_bytes()).unwrap(),
            Flushed {
                aborted: 3,
                returned: None,
                outstanding: None,
            }
        );
        let received = sent
            .bytes(dmabuf::RETURNED, &(1u64 << 32).to_ne_bytes())
            .u32(dmabuf::OUTSTANDING, 0);
        assert_eq!(
            Flushed::parse(received.as_bytes()).unwrap(),
            Flushed {
                aborted: 3,
                returned: Some(1 << 32),
                outstanding: Some(0),
            }
        );
        let nothing = Attrs::new().u32(dmabuf::ID, 7);
        let err = Flushed::parse(nothing.as_bytes()).unwrap_err();
        assert!(matches!(err, Error::Answer(_)), "{err}");
    }

    #[test]
    fn states_of_later_kernels() {
        assert_eq!(State::of(1), State::Unbound);
        assert_eq!(State::of(77), State::Other(77));
        assert_eq!(EventKind::of(cmd::DMABUF_GET), None);
    }

    proptest! {
        #[test]
        fn any_message_is_survived(bytes: Vec<u8>) {
            let _ = BindingStatus::parse(&bytes);
            let _ = Flushed::parse(&bytes);
        }
    }
}
