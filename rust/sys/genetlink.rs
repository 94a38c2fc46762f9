// SPDX-License-Identifier: GPL-2.0

//! Requests of the `netdev` generic netlink family, and how they are refused.
//!
//! C headers: [`include/net/genetlink.h`](srctree/include/net/genetlink.h),
//! [`include/linux/netlink.h`](srctree/include/linux/netlink.h)

use core::{
    fmt::Write,
    marker::PhantomData,
    mem::size_of,
    ops::Deref,
    ptr::NonNull, //
};

use kernel::{
    fmt,
    prelude::*,
    static_assert,
    str::Formatter, //
};

use super::bindings;

/// Attributes of the `dmabuf` set that any bind request can have once.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum DmabufAttr {
    /// Index of the interface, mandatory.
    Ifindex = bindings::NETDEV_A_DMABUF_IFINDEX,
    /// File descriptor of the dma-buf, mandatory.
    Fd = bindings::NETDEV_A_DMABUF_FD,
}

// The arrays of attributes of bind-rx and bind-tx end after the size of buffers. Both have a place for
// these.
static_assert!(bindings::NETDEV_A_DMABUF_IFINDEX <= bindings::NETDEV_A_DMABUF_RX_PAGE_SIZE);
static_assert!(bindings::NETDEV_A_DMABUF_FD <= bindings::NETDEV_A_DMABUF_RX_PAGE_SIZE);
static_assert!(bindings::NETDEV_A_DMABUF_RX_PAGE_SIZE <= bindings::NETDEV_A_DMABUF_SHARED);
static_assert!(bindings::NETDEV_A_DMABUF_RX_PAGE_SIZE <= bindings::NETDEV_A_DMABUF_MAX_TOKENS);

/// Attributes of the `queue-id` set, nested in `queues` attributes of the `dmabuf` set.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum QueueIdAttr {
    /// Index of the queue.
    Id = bindings::NETDEV_A_QUEUE_ID,
    /// Type of the queue, see `enum netdev_queue_type`.
    Type = bindings::NETDEV_A_QUEUE_TYPE,
}

/// The [`QueueIdAttr::Type`] of receive queues.
pub(crate) const QUEUE_TYPE_RX: u32 = bindings::netdev_queue_type_NETDEV_QUEUE_TYPE_RX;

/// An attribute of a request, with its payload.
///
/// # Invariants
///
/// The pointer is to an attribute that is valid for reads for `'a`, with all of its payload. The
/// payload conforms to the family's policy.
#[derive(Clone, Copy)]
pub(crate) struct Attr<'a>(NonNull<bindings::nlattr>, PhantomData<&'a ()>);

impl<'a> Attr<'a> {
    const HEADER: usize = size_of::<bindings::nlattr>();

    fn payload(&self) -> &'a [u8] {
        // SAFETY: By the type invariants header and payload are readable, the latter being what is
        // left of `nla_len`.
        unsafe {
            let len = usize::from((*self.0.as_ptr()).nla_len).saturating_sub(Self::HEADER);
            core::slice::from_raw_parts(self.0.as_ptr().cast::<u8>().add(Self::HEADER), len)
        }
    }

    fn kind(&self) -> u32 {
        // SAFETY: By the type invariants the header is readable.
        let kind = unsafe { (*self.0.as_ptr()).nla_type };

        u32::from(kind) & bindings::NLA_TYPE_MASK as u32
    }

    /// The value of a `u32` attribute.
    pub(crate) fn u32(&self) -> u32 {
        // The policy makes sure that there are four bytes.
        self.payload()
            .first_chunk()
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// An attribute of the `queue-id` set nested in this one. The last one counts, as everywhere in
    /// netlink.
    pub(crate) fn queue_id(&self, attr: QueueIdAttr) -> Option<Attr<'a>> {
        Attrs(self.payload())
            .filter(|nested| nested.kind() == attr as u32)
            .last()
    }
}

/// The attributes in a buffer that was validated against the family's policy.
struct Attrs<'a>(&'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let len = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        if len < Attr::HEADER || len > self.0.len() {
            return None;
        }

        // INVARIANT: The length was just checked, and whoever made this saw to the policy.
        let attr = Attr(NonNull::from(self.0).cast(), PhantomData);
        // NLA_ALIGN()
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(attr)
    }
}

/// A bind-tx or bind-rx request of the `netdev` family that a provider is asked to serve.
///
/// # Invariants
///
/// Both pointers are valid for the lifetime of the request. The lock of the netlink socket is held.
/// The message conforms to the family's policy and has all mandatory attributes. The array of attributes
/// has a place for each [`DmabufAttr`].
pub(crate) struct BindRequest<'a> {
    owner: NonNull<bindings::netdev_nl_sock>,
    info: NonNull<bindings::genl_info>,
    _lifetime: PhantomData<&'a ()>,
}

impl<'a> BindRequest<'a> {
    /// # Safety
    ///
    /// The pointers have to be valid for `'a` and from the core's call to a bind callback.
    pub(super) unsafe fn from_raw(
        owner: NonNull<bindings::netdev_nl_sock>,
        info: NonNull<bindings::genl_info>,
    ) -> Self {
        // INVARIANT: By the requirements of this function: the core takes the lock, and checks
        // policy and mandatory attributes, before it calls a provider.
        Self {
            owner,
            info,
            _lifetime: PhantomData,
        }
    }

    pub(super) fn owner(&self) -> *mut bindings::netdev_nl_sock {
        self.owner.as_ptr()
    }

    pub(super) fn info(&self) -> *mut bindings::genl_info {
        self.info.as_ptr()
    }

    pub(super) fn net(&self) -> *mut bindings::net {
        // SAFETY: By the type invariants `info` is valid.
        unsafe { bindings::genl_info_net(self.info.as_ptr()) }
    }

    pub(super) fn extack(&self) -> *mut bindings::netlink_ext_ack {
        // SAFETY: By the type invariants `info` is valid.
        unsafe { (*self.info.as_ptr()).extack }
    }

    /// An attribute of the request.
    pub(crate) fn attr(&self, attr: DmabufAttr) -> Option<Attr<'a>> {
        // SAFETY: By the type invariants the array has a place for it.
        unsafe { self.attr_at(attr as usize) }
    }

    /// # Safety
    ///
    /// The array of attributes has to have a place for this one.
    unsafe fn attr_at(&self, index: usize) -> Option<Attr<'a>> {
        // SAFETY: By the type invariants `info` is valid, and by the requirements of this function the
        // array is as long.
        let ptr = unsafe { *(*self.info.as_ptr()).attrs.add(index) };

        // INVARIANT: What is in the array is in the message.
        NonNull::new(ptr).map(|ptr| Attr(ptr, PhantomData))
    }

    /// Tells that the request is refused since `nest` lacks an attribute. Returns `EINVAL`.
    pub(crate) fn refuse_missing(&self, nest: Attr<'_>, attr: QueueIdAttr) -> Error {
        if let Some(extack) = NonNull::new(self.extack()) {
            // SAFETY: By the type invariants the extended ack is valid, and ours to write.
            let extack = unsafe { &mut *extack.as_ptr() };
            extack.miss_nest = nest.0.as_ptr();
            extack.miss_type = attr as u16;
        }
        EINVAL
    }

    /// Tells why the request is refused, and about which attribute that is. Returns `error`.
    pub(crate) fn refuse(
        &self,
        error: Error,
        attr: Option<Attr<'_>>,
        why: fmt::Arguments<'_>,
    ) -> Error {
        self.tell(attr, why);
        error
    }

    /// Tells what is to be known of a request that is served. Who asks for an acknowledgement gets it.
    pub(crate) fn warn(&self, what: fmt::Arguments<'_>) {
        self.tell(None, what);
    }

    fn tell(&self, attr: Option<Attr<'_>>, what: fmt::Arguments<'_>) {
        let Some(extack) = NonNull::new(self.extack()) else {
            return;
        };

        // What does not fit is cut off, one byte is left for the NUL. Whose `fmt()` this calls may refuse
        // the request, too: the extended ack is not borrowed yet.
        let mut text = [0; bindings::NETLINK_MAX_FMTMSG_LEN as usize];
        let room = text.len() - 1;
        let _ = Formatter::new(&mut text[..room]).write_fmt(what);

        // SAFETY: By the type invariants the extended ack is valid, and ours to write.
        let extack = unsafe { &mut *extack.as_ptr() };
        extack.bad_attr = attr.map_or(core::ptr::null(), |attr| attr.0.as_ptr());
        extack.policy = core::ptr::null();
        extack._msg_buf = text;
        extack._msg = extack._msg_buf.as_ptr();
    }
}

/// A bind-rx request, which can have more attributes.
///
/// # Invariants
///
/// The message conforms to the policy of bind-rx. The array of attributes has a place for each that this
/// knows.
pub(crate) struct RxBindRequest<'a>(BindRequest<'a>);

impl<'a> RxBindRequest<'a> {
    /// # Safety
    ///
    /// The pointers have to be valid for `'a` and from the core's call to the bind-rx callback.
    pub(super) unsafe fn from_raw(
        owner: NonNull<bindings::netdev_nl_sock>,
        info: NonNull<bindings::genl_info>,
    ) -> Self {
        // INVARIANT: By the requirements of this function.
        // SAFETY: By the requirements of this function.
        Self(unsafe { BindRequest::from_raw(owner, info) })
    }

    /// Size of receive buffers in bytes, if it is in the request.
    pub(crate) fn rx_page_size(&self) -> Option<Attr<'a>> {
        // SAFETY: By the type invariants the array has a place for it.
        unsafe {
            self.0
                .attr_at(bindings::NETDEV_A_DMABUF_RX_PAGE_SIZE as usize)
        }
    }

    /// The `queues` attributes of the request, one for each queue.
    pub(crate) fn queues(&self) -> impl Iterator<Item = Attr<'a>> {
        // SAFETY: By the type invariants `info` is valid, and so is its message.
        let message = unsafe {
            let header = (*self.0.info.as_ptr()).genlhdr;
            let len = bindings::genlmsg_len(header).max(0) as usize;
            core::slice::from_raw_parts(bindings::genlmsg_data(header).cast::<u8>(), len)
        };

        Attrs(message).filter(|attr| attr.kind() == bindings::NETDEV_A_DMABUF_QUEUES)
    }
}

impl<'a> Deref for RxBindRequest<'a> {
    type Target = BindRequest<'a>;

    fn deref(&self) -> &BindRequest<'a> {
        &self.0
    }
}

/// A bind-tx request. It can have attributes that the core looks at when the binding is made.
///
/// # Invariants
///
/// The message conforms to the policy of bind-tx. The array of attributes has a place for each of those, and for each that
/// this type knows.
pub(crate) struct TxBindRequest<'a>(BindRequest<'a>);

impl<'a> TxBindRequest<'a> {
    /// # Safety
    ///
    /// The pointers have to be valid for `'a` and from the core's call to the bind-tx callback.
    pub(super) unsafe fn from_raw(
        owner: NonNull<bindings::netdev_nl_sock>,
        info: NonNull<bindings::genl_info>,
    ) -> Self {
        // INVARIANT: By the requirements of this function.
        // SAFETY: By the requirements of this function.
        Self(unsafe { BindRequest::from_raw(owner, info) })
    }

    /// Says that the binding is to be local, if the request does.
    pub(crate) fn local(&self) -> Option<Attr<'a>> {
        // SAFETY: By the type invariants the array has a place for it.
        unsafe { self.0.attr_at(bindings::NETDEV_A_DMABUF_LOCAL as usize) }
    }
}

impl<'a> Deref for TxBindRequest<'a> {
    type Target = BindRequest<'a>;

    fn deref(&self) -> &BindRequest<'a> {
        &self.0
    }
}
