// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The `netdev` generic netlink family: binding dma-bufs to queues, and asking what is bound.

use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use crate::netlink::Attrs;
use crate::netlink::Error;
use crate::netlink::GenericSocket;
use crate::netlink::attributes;
use crate::provider;
use crate::provider::BindingInfo;
use crate::status::BindingStatus;
use crate::status::Flushed;
use crate::watch::Watch;

/// What the family is called.
pub(crate) const FAMILY: &str = "netdev";

/// Commands of the family.
pub mod cmd {
    /// `NETDEV_CMD_PAGE_POOL_GET`.
    pub const PAGE_POOL_GET: u8 = 5;
    /// `NETDEV_CMD_QUEUE_GET`.
    pub const QUEUE_GET: u8 = 10;
    /// `NETDEV_CMD_BIND_RX`.
    pub const BIND_RX: u8 = 13;
    /// `NETDEV_CMD_BIND_TX`.
    pub const BIND_TX: u8 = 15;
    /// `NETDEV_CMD_DMABUF_GET`, of the series.
    pub const DMABUF_GET: u8 = 17;
    /// `NETDEV_CMD_DMABUF_ADD_NTF`.
    pub const DMABUF_ADD_NTF: u8 = 18;
    /// `NETDEV_CMD_DMABUF_DEL_NTF`.
    pub const DMABUF_DEL_NTF: u8 = 19;
    /// `NETDEV_CMD_DMABUF_UNBOUND_NTF`.
    pub const DMABUF_UNBOUND_NTF: u8 = 20;
    /// `NETDEV_CMD_DMABUF_REVOKED_NTF`.
    pub const DMABUF_REVOKED_NTF: u8 = 21;
    /// `NETDEV_CMD_DMABUF_EXHAUSTED_NTF`.
    pub const DMABUF_EXHAUSTED_NTF: u8 = 22;
    /// `NETDEV_CMD_DMABUF_AVAILABLE_NTF`.
    pub const DMABUF_AVAILABLE_NTF: u8 = 23;
    /// `NETDEV_CMD_DMABUF_FLUSH`.
    pub const DMABUF_FLUSH: u8 = 24;
}

/// Attributes of bind-rx and bind-tx, and of what is told of bindings.
pub mod dmabuf {
    /// The device.
    pub const IFINDEX: u16 = 1;
    /// A queue: a nest of [`queue`](super::queue) attributes.
    pub const QUEUES: u16 = 2;
    /// The dma-buf.
    pub const FD: u16 = 3;
    /// The binding's number.
    pub const ID: u16 = 4;
    /// Size of the buffers that the device is given.
    pub const RX_PAGE_SIZE: u16 = 5;
    /// Whether everybody may send from the binding.
    pub const SHARED: u16 = 6;
    /// [`TYPE_RX`](super::queue::TYPE_RX) or [`TYPE_TX`](super::queue::TYPE_TX).
    pub const DIRECTION: u16 = 7;
    /// The provider's name.
    pub const PROVIDER: u16 = 8;
    /// What became of the binding.
    pub const STATE: u16 = 9;
    /// Whether the device reaches the memory where it is.
    pub const PEER_TO_PEER: u16 = 10;
    /// How many buffers there are.
    pub const BUFFERS: u16 = 11;
    /// How many of them are in use.
    pub const IN_USE: u16 = 12;
    /// A nest of [`dmabuf_stats`](super::dmabuf_stats).
    pub const STATS: u16 = 13;
    /// How many tokens a socket may hold.
    pub const MAX_TOKENS: u16 = 14;
    /// How many connections were aborted.
    pub const ABORTED: u16 = 15;
    /// How many buffers came back.
    pub const RETURNED: u16 = 16;
    /// How many did not.
    pub const OUTSTANDING: u16 = 17;
    /// Whether what is sent from the binding stays on the machine.
    pub const LOCAL: u16 = 18;
}

/// Counters of a binding.
pub mod dmabuf_stats {
    /// Buffers handed out.
    pub const ALLOC: u16 = 1;
    /// Buffers given back.
    pub const RECYCLE: u16 = 2;
    /// How often there was none.
    pub const EXHAUSTED: u16 = 3;
    /// For how many nanoseconds.
    pub const EXHAUSTED_TIME: u16 = 4;
    /// Bytes appended to packets.
    pub const TX_BYTES: u16 = 5;
}

/// Attributes of a queue.
pub mod queue {
    /// Its number.
    pub const ID: u16 = 1;
    /// Its device.
    pub const IFINDEX: u16 = 2;
    /// [`TYPE_RX`] or [`TYPE_TX`].
    pub const TYPE: u16 = 3;
    /// The binding that serves it.
    pub const DMABUF: u16 = 5;
    /// A receive queue.
    pub const TYPE_RX: u32 = 0;
    /// A transmit queue.
    pub const TYPE_TX: u32 = 1;
}

/// Attributes of a page pool.
pub mod page_pool {
    /// Its number.
    pub const ID: u16 = 1;
    /// Its device.
    pub const IFINDEX: u16 = 2;
    /// Buffers handed out.
    pub const INFLIGHT: u16 = 4;
    /// When it was detached from its device, if it was.
    pub const DETACH_TIME: u16 = 6;
    /// The binding that serves it.
    pub const DMABUF: u16 = 7;
}

/// A queue of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Queue {
    /// Its number.
    pub id: u32,
    /// Whether it receives.
    pub rx: bool,
    /// The binding that serves it.
    pub dmabuf: Option<u32>,
}

/// A page pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PagePool {
    /// Its number.
    pub id: u64,
    /// Its device, unless that is gone.
    pub ifindex: Option<u32>,
    /// Buffers handed out.
    pub inflight: u64,
    /// Whether its queue has let go of it.
    pub detached: bool,
    /// The binding that serves it.
    pub dmabuf: Option<u32>,
}

/// A socket of the `netdev` family, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netdev {
    socket: GenericSocket,
    family: u16,
}

/// The netlink socket: what it has bound stays bound for as long as that is open.
impl AsFd for Netdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netdev {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::open`] and [`GenericSocket::family`].
    pub fn open() -> Result<Self, Error> {
        let mut socket = GenericSocket::open()?;
        let family = socket.family(FAMILY)?;
        Ok(Self { socket, family })
    }

    /// Sends any request of this family.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::request`].
    pub fn request(&mut self, command: u8, attrs: &Attrs) -> Result<Vec<Vec<u8>>, Error> {
        self.socket.request(self.family, command, attrs)
    }

    /// What the kernel said beside its success, if the last request had one: of a binding, that its memory may not
    /// be where the device would reach it, or that the rings of its queues have room for more; of a flush, that a queue
    /// could not be restarted.
    pub fn warning(&self) -> Option<&str> {
        self.socket.warning()
    }

    /// Binds by a request that was built by hand; returns the binding's number.
    ///
    /// The binding lives until this socket is dropped.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::request`]; [`Error::Answer`] if the kernel gives no number.
    pub fn bind_rx(&mut self, attrs: &Attrs) -> Result<u32, Error> {
        self.bind(cmd::BIND_RX, attrs)
    }

    /// Like [`bind_rx`](Self::bind_rx), to send from the dma-buf.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind_tx(&mut self, attrs: &Attrs) -> Result<u32, Error> {
        self.bind(cmd::BIND_TX, attrs)
    }

    fn bind(&mut self, command: u8, attrs: &Attrs) -> Result<u32, Error> {
        self.request(command, attrs)?
            .iter()
            .find_map(|reply| number(reply, dmabuf::ID))
            .and_then(|id| u32::try_from(id).ok())
            // There is none of this number, and in a call of sendmsg() it means that there are addresses.
            .filter(|&id| id != 0)
            .ok_or(Error::Answer("the answer to a bind request has no id"))
    }

    /// Logs what the kernel had to say of a binding.
    fn log_warning(&self) {
        if let Some(warning) = self.warning() {
            log::warn!("{warning}");
        }
    }

    /// All queues of a device.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::dump`], `ENODEV` if there is no such device; [`Error::Answer`] if something of a
    /// queue is missing.
    pub fn queues(&mut self, ifindex: u32) -> Result<Vec<Queue>, Error> {
        let attrs = Attrs::new().u32(queue::IFINDEX, ifindex);
        self.socket
            .dump(self.family, cmd::QUEUE_GET, &attrs)?
            .iter()
            .map(|reply| {
                let get = |kind| number(reply, kind).and_then(|n| u32::try_from(n).ok());
                Some(Queue {
                    id: get(queue::ID)?,
                    rx: get(queue::TYPE)? == queue::TYPE_RX,
                    dmabuf: get(queue::DMABUF),
                })
            })
            .collect::<Option<_>>()
            .ok_or(Error::Answer("a queue without id or type"))
    }

    /// All page pools of devices in this network namespace.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::dump`], `EOPNOTSUPP` on a kernel without `CONFIG_PAGE_POOL`; [`Error::Answer`] if
    /// something of a pool is missing.
    pub fn page_pools(&mut self) -> Result<Vec<PagePool>, Error> {
        self.socket
            .dump(self.family, cmd::PAGE_POOL_GET, &Attrs::new())?
            .iter()
            .map(|reply| {
                let get = |kind| number(reply, kind);
                Some(PagePool {
                    id: get(page_pool::ID)?,
                    ifindex: get(page_pool::IFINDEX).and_then(|n| u32::try_from(n).ok()),
                    inflight: get(page_pool::INFLIGHT).unwrap_or(0),
                    detached: get(page_pool::DETACH_TIME).is_some(),
                    dmabuf: get(page_pool::DMABUF).and_then(|n| u32::try_from(n).ok()),
                })
            })
            .collect::<Option<_>>()
            .ok_or(Error::Answer("a page pool without id"))
    }

    /// All bindings whose devices are in this network namespace, or were when they had one: in the order in which
    /// they were made, also those that are unbound, and wait for the last of their memory. Needs no rights.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::dump`], `EOPNOTSUPP` on a kernel without the series; [`Error::Answer`] if something of
    /// a binding is missing.
    pub fn bindings(&mut self) -> Result<Vec<BindingStatus>, Error> {
        self.dump_bindings(&Attrs::new())
    }

    /// Those of one device.
    ///
    /// # Errors
    ///
    /// Those of [`bindings`](Self::bindings), `ERANGE` for 0. If there is no such device, it has no bindings.
    pub fn bindings_of(&mut self, ifindex: u32) -> Result<Vec<BindingStatus>, Error> {
        self.dump_bindings(&Attrs::new().u32(dmabuf::IFINDEX, ifindex))
    }

    fn dump_bindings(&mut self, attrs: &Attrs) -> Result<Vec<BindingStatus>, Error> {
        self.socket
            .dump(self.family, cmd::DMABUF_GET, attrs)?
            .iter()
            .map(|reply| BindingStatus::parse(reply))
            .collect()
    }

    /// The binding of this number.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::request`], `ENOENT` if there is none in this network namespace, `ERANGE` for 0,
    /// `EOPNOTSUPP` on a kernel without the series; [`Error::Answer`] if something of it is missing.
    pub fn binding(&mut self, id: u32) -> Result<BindingStatus, Error> {
        let replies = self.request(cmd::DMABUF_GET, &Attrs::new().u32(dmabuf::ID, id))?;
        match replies.first() {
            Some(reply) => BindingStatus::parse(reply),
            None => Err(Error::Answer("no binding in the answer")),
        }
    }

    /// Gets the memory of a binding back that is stuck in connections, whoever made it: aborts those which hold
    /// buffers of it or have to send from it, whose users are told `ECONNABORTED`, and restarts its receive queues. The
    /// binding stays what it is. Takes about a tenth of a second if not all comes back, and up to a second if some
    /// sockets are locked for so long: these are left alone. One flush of a binding is served at a time: `EBUSY`.
    ///
    /// Needs CAP_NET_ADMIN in the network namespace that the binding's device is in, or was, and has to be asked from
    /// there. A [`warning`](Self::warning) tells of a queue that was not restarted.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::request`], then nothing was done: `EPERM` without the capability, or if it is by a
    /// virtual device only that the binding is seen from here; `ENOENT` if it is not, or there is none; `EOPNOTSUPP` on
    /// a kernel without the series. [`Error::Answer`] if something of the answer is missing.
    pub fn flush(&mut self, id: u32) -> Result<Flushed, Error> {
        let replies = self.request(cmd::DMABUF_FLUSH, &Attrs::new().u32(dmabuf::ID, id))?;
        match replies.first() {
            Some(reply) => Flushed::parse(reply),
            None => Err(Error::Answer("nothing in the answer to a flush")),
        }
    }
}

/// The number that an attribute of 4 or 8 bytes holds.
pub(crate) fn number(attrs: &[u8], kind: u16) -> Option<u64> {
    let (_, value) = attributes(attrs).find(|(k, _)| *k == kind)?;
    match value.len() {
        4 => value.try_into().map(u32::from_ne_bytes).map(u64::from).ok(),
        8 => value.try_into().map(u64::from_ne_bytes).ok(),
        _ => None,
    }
}

/// A request to bind a dma-buf to RX queues.
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is made"]
pub struct BindRx {
    ifindex: u32,
    queues: Vec<u32>,
    rx_page_size: Option<u32>,
    max_tokens: Option<NonZero<u32>>,
}

impl BindRx {
    /// A request for queues of this device.
    pub fn new(ifindex: u32) -> Self {
        Self {
            ifindex,
            queues: Vec::new(),
            rx_page_size: None,
            max_tokens: None,
        }
    }

    /// Adds a queue.
    pub fn queue(mut self, id: u32) -> Self {
        self.queues.push(id);
        self
    }

    /// Gives the device buffers of this size instead of one page.
    pub fn rx_page_size(mut self, size: u32) -> Self {
        self.rx_page_size = Some(size);
        self
    }

    /// Lets no socket hold more tokens of the binding than this, so that one reader cannot take all buffers of a queue
    /// that others share. With as many it receives nothing more of the binding, but `ENOBUFS`, until it has returned
    /// some; tokens of other bindings that it holds may count. What waits in a receive queue does not: for that there
    /// is `SO_RCVBUF`.
    ///
    /// A kernel that does not know this refuses the request.
    pub fn max_tokens(mut self, count: NonZero<u32>) -> Self {
        self.max_tokens = Some(count);
        self
    }

    /// The request, for changing it before it is sent with [`Netdev::bind_rx`].
    ///
    /// The dma-buf has to be open until then:
    ///
    /// ```compile_fail,E0597
    /// # fn main() -> std::io::Result<()> {
    /// use devmem::{BindRx, DmaBuf};
    ///
    /// let attrs = {
    ///     let memory = DmaBuf::udmabuf(1 << 20)?;
    ///     BindRx::new(1).queue(1).attrs(&memory)
    /// };
    /// drop(attrs);
    /// # Ok(())
    /// # }
    /// ```
    pub fn attrs<'fd>(&self, dmabuf: &'fd impl AsFd) -> Attrs<'fd> {
        let mut attrs = Attrs::new()
            .u32(dmabuf::IFINDEX, self.ifindex)
            .fd(dmabuf::FD, dmabuf.as_fd());
        for &id in &self.queues {
            let queue = Attrs::new()
                .u32(queue::TYPE, queue::TYPE_RX)
                .u32(queue::ID, id);
            attrs = attrs.nested(dmabuf::QUEUES, &queue);
        }
        if let Some(size) = self.rx_page_size {
            attrs = attrs.u32(dmabuf::RX_PAGE_SIZE, size);
        }
        if let Some(count) = self.max_tokens {
            attrs = attrs.u32(dmabuf::MAX_TOKENS, count.get());
        }
        attrs
    }

    /// Binds, in the network namespace of the calling thread.
    ///
    /// Needs CAP_NET_ADMIN there, and a device with header split on and hds-thresh 0. The binding keeps
    /// the dma-buf, not the descriptor, which may be given away here.
    ///
    /// # Errors
    ///
    /// Those of [`Netdev::open`] and [`Netdev::bind_rx`]. With [`Error::Refused`] the kernel says why, and which part
    /// of the request it is about: `EPERM` without the capability; `ENODEV` if there is no such device; `EINVAL` and
    /// `ERANGE` for what the request says of queues and sizes, and if header split is off; `EEXIST` if something else
    /// has a queue; `EOPNOTSUPP` if the device cannot do it; `EBADF` and `EINVAL` if it is no dma-buf; `ENOMEM`; and
    /// what the exporter or the driver say.
    pub fn bind(&self, dmabuf: impl AsFd) -> Result<Binding, Error> {
        let mut netdev = Netdev::open()?;
        let id = netdev.bind_rx(&self.attrs(&dmabuf))?;
        netdev.log_warning();
        Ok(Binding {
            id,
            netdev,
            watch: None,
        })
    }
}

/// A dma-buf bound to RX queues; dropping this unbinds it.
///
/// Tokens that are still held stay valid: their memory goes back when they are returned.
#[derive(Debug)]
#[must_use = "dropping a binding unbinds the dma-buf"]
pub struct Binding {
    id: u32,
    // The kernel unbinds when the socket that bound is closed.
    netdev: Netdev,
    /// What happens to it, for who has asked.
    pub(crate) watch: Option<Box<Watch>>,
}

/// The netlink socket that made it.
///
/// The kernel unbinds when the last descriptor of that socket is closed. Who duplicates this one, or passes it to
/// another process, keeps the dma-buf bound after the [`Binding`] was dropped.
impl AsFd for Binding {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netdev.as_fd()
    }
}

impl Binding {
    /// Its number, which [`Frag::dmabuf_id`](crate::Frag::dmabuf_id) refers to.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its provider, and how many of its buffers are in use.
    ///
    /// # Errors
    ///
    /// Those of [`binding`](crate::provider::binding).
    pub fn stats(&self) -> io::Result<BindingInfo> {
        provider::binding(self.id)
    }
}

/// A request to send from a dma-buf through a device.
#[derive(Clone, Debug)]
#[must_use = "a request does nothing before it is made"]
pub struct BindTx {
    ifindex: u32,
    shared: bool,
    local: bool,
}

impl BindTx {
    /// A request for this device.
    pub fn new(ifindex: u32) -> Self {
        Self {
            ifindex,
            shared: false,
            local: false,
        }
    }

    /// Lets everybody send from the binding whose connection leaves by this device, see
    /// [`TxBinding::of_another`]. Without it only this process may, and those of its effective user.
    ///
    /// What the memory holds is then for all processes in the device's network namespace to send where they
    /// like. A kernel that does not know this refuses the request: either it lets everybody send from every
    /// binding, or nobody else from any.
    pub fn shared(mut self) -> Self {
        self.shared = true;
        self
    }

    /// Sends to readers on this machine, by a device that does no DMA: lo, veth or netkit. They are told where in
    /// the dma-buf it is, as from a NIC, or get a copy.
    ///
    /// The dma-buf is mapped for no device. What would leave the machine is dropped. A kernel that does not know
    /// this refuses the request.
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// The request, for changing it before it is sent with [`Netdev::bind_tx`]; until then the dma-buf has
    /// to be open, as for [`BindRx::attrs`].
    pub fn attrs<'fd>(&self, dmabuf: &'fd impl AsFd) -> Attrs<'fd> {
        let attrs = Attrs::new()
            .u32(dmabuf::IFINDEX, self.ifindex)
            .fd(dmabuf::FD, dmabuf.as_fd());
        [(self.shared, dmabuf::SHARED), (self.local, dmabuf::LOCAL)]
            .into_iter()
            .filter(|(is_set, _)| *is_set)
            .fold(attrs, |attrs, (_, flag)| attrs.flag(flag))
    }

    /// Binds, in the network namespace of the calling thread. Needs no capability, but how many bindings a
    /// user has is limited, see `user.max_devmem_tx_bindings`, and how much memory, by `RLIMIT_MEMLOCK`, but for
    /// who has CAP_IPC_LOCK, or CAP_NET_ADMIN in the network namespace. As with [`BindRx::bind`], the descriptor
    /// may be given away.
    ///
    /// # Errors
    ///
    /// As of [`BindRx::bind`], but for what is about queues; `ENOSPC` if the user has too many,
    /// and `ENOBUFS` if they are too large.
    pub fn bind(&self, dmabuf: impl AsFd) -> Result<TxBinding, Error> {
        let mut netdev = Netdev::open()?;
        let id = netdev.bind_tx(&self.attrs(&dmabuf))?;
        let id = NonZero::new(id).ok_or(Error::Answer("a binding without a number"))?;
        netdev.log_warning();
        Ok(TxBinding {
            id,
            netdev: Some(netdev),
        })
    }
}

/// A dma-buf bound for sending; dropping this unbinds it, unless it is that [of
/// another](Self::of_another).
///
/// What has been sent by then is still delivered, and completes.
#[derive(Debug)]
#[must_use = "dropping a binding unbinds the dma-buf"]
pub struct TxBinding {
    id: NonZero<u32>,
    // The kernel unbinds when the socket that bound is closed.
    netdev: Option<Netdev>,
}

impl TxBinding {
    /// A binding that another process made, which told its number: one of the same effective user, or one
    /// that [shares](BindTx::shared) it. Lives as long as that one likes.
    pub fn of_another(id: NonZero<u32>) -> Self {
        Self { id, netdev: None }
    }

    /// The netlink socket that made it, unless it is that [of another](Self::of_another). As with a [`Binding`],
    /// a duplicate keeps the dma-buf bound.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.netdev.as_ref().map(AsFd::as_fd)
    }

    /// Its number, which `sendmsg()` is told.
    pub fn id(&self) -> u32 {
        self.id.get()
    }

    /// Its number, which is not 0.
    pub(crate) fn number(&self) -> NonZero<u32> {
        self.id
    }

    /// Its provider and its size.
    ///
    /// # Errors
    ///
    /// Those of [`binding`](crate::provider::binding).
    pub fn stats(&self) -> io::Result<BindingInfo> {
        provider::binding(self.id())
    }
}
