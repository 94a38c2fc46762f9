// SPDX-License-Identifier: GPL-2.0

//! The callbacks of the core.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    error::from_result,
    prelude::*, //
};

use super::{
    super::{
        bindings,
        genetlink::BindRequest,
        iov_iter::OffsetRanges,
        skbuff::{
            RxSkBuff,
            TxSkBuff, //
        },
        sock::{
            Message,
            Sock, //
        },
        token::Range,
    },
    binding::Binding,
    Bound,
    Data,
    Direction,
    MemoryProviderOps,
    Provider,
    Stats,
    Transmit, //
};

/// What the core asks of provider `P`. Has to be in a `static`.
#[repr(transparent)]
pub(crate) struct DevmemOps<P>(bindings::net_devmem_ops, PhantomData<fn(P)>);

// SAFETY: The table is not changed.
unsafe impl<P> Sync for DevmemOps<P> {}

impl<P: Provider> DevmemOps<P> {
    /// The table, for a provider called `name` in module `owner`.
    pub(crate) const fn new(
        name: &'static CStr,
        owner: &ThisModule,
        mp_ops: &'static MemoryProviderOps<P::Rx>,
    ) -> Self {
        Self(
            bindings::net_devmem_ops {
                name: name.to_bytes_with_nul().as_ptr(),
                owner: owner.as_ptr(),
                mp_ops: mp_ops.as_ptr(),
                bind_rx: Some(Self::bind_rx),
                bind_tx: Some(Self::bind_tx),
                recvmsg: Some(Self::recvmsg),
                dontneed: Some(Self::dontneed),
                fill_skb: Some(Self::fill_skb),
                stats: Some(Self::stats),
                unmap: Some(Self::unmap),
                free: Some(Self::free),
            },
            PhantomData,
        )
    }

    pub(super) fn as_ptr(&'static self) -> *const bindings::net_devmem_ops {
        &raw const self.0
    }

    /// # Safety
    ///
    /// Both pointers have to be valid, the lock of the netlink socket held, and the request checked
    /// against policy and for mandatory attributes.
    unsafe extern "C" fn bind_rx(
        owner: *mut bindings::netdev_nl_sock,
        info: *mut bindings::genl_info,
    ) -> *mut bindings::net_devmem_binding {
        // SAFETY: By the requirements of this function.
        unsafe { bind(owner, info, P::bind_rx) }
    }

    /// # Safety
    ///
    /// As for `bind_rx`.
    unsafe extern "C" fn bind_tx(
        owner: *mut bindings::netdev_nl_sock,
        info: *mut bindings::genl_info,
    ) -> *mut bindings::net_devmem_binding {
        // SAFETY: By the requirements of this function.
        unsafe { bind(owner, info, P::bind_tx) }
    }

    /// # Safety
    ///
    /// All pointers have to be valid, the socket locked and `skb` in its receive queue. With `eat`, `skb` is
    /// thrown away if all its bytes are passed, it has no frag list, and its frags have page pools.
    unsafe extern "C" fn recvmsg(
        sk: *mut bindings::sock,
        skb: *mut bindings::sk_buff,
        offset: c_uint,
        msg: *mut bindings::msghdr,
        len: c_int,
        eat: bool,
    ) -> c_int {
        let (Some(sk), Some(skb), Some(msg)) =
            (NonNull::new(sk), NonNull::new(skb), NonNull::new(msg))
        else {
            return EINVAL.to_errno();
        };
        // SAFETY: By the requirements of this function. While the socket is locked nobody changes
        // what is in its receive queue.
        let (sk, mut skb, mut msg) = unsafe {
            (
                Sock::from_raw(sk),
                RxSkBuff::from_raw(skb, eat),
                Message::from_raw(msg),
            )
        };

        from_result(|| {
            let len = usize::try_from(len)?;
            let passed = P::recvmsg(&sk, &mut skb, offset as usize, &mut msg, len)?;
            Ok(passed.try_into()?)
        })
    }

    /// # Safety
    ///
    /// `sk` has to be valid, and there have to be `num_tokens` ranges at `tokens`.
    unsafe extern "C" fn dontneed(
        sk: *mut bindings::sock,
        tokens: *const bindings::dmabuf_token,
        num_tokens: c_uint,
    ) -> c_int {
        let Some(sk) = NonNull::new(sk) else {
            return EINVAL.to_errno();
        };
        // SAFETY: By the requirements of this function.
        let (sk, tokens) = unsafe {
            (
                Sock::from_raw(sk),
                core::slice::from_raw_parts(tokens, num_tokens as usize),
            )
        };
        let ranges = tokens.iter().map(|token| Range {
            start: token.token_start,
            count: token.token_count,
        });

        from_result(|| Ok(P::dontneed(&sk, ranges).try_into()?))
    }

    /// # Safety
    ///
    /// All pointers have to be valid, `skb` nobody else's, and `base` a transmit binding of `P` to
    /// which there is a reference. All frags of `skb` are net_iovs of that binding.
    unsafe extern "C" fn fill_skb(
        skb: *mut bindings::sk_buff,
        from: *mut bindings::iov_iter,
        len: c_int,
        base: *mut bindings::net_devmem_binding,
    ) -> c_int {
        let (Some(skb), Some(from), Some(binding)) =
            (NonNull::new(skb), NonNull::new(from), NonNull::new(base))
        else {
            return EINVAL.to_errno();
        };
        // SAFETY: By the requirements of this function. Transmit bindings have data `P::Tx`.
        let data = unsafe { Binding::<P::Tx>::data(base) };

        from_result(|| {
            // SAFETY: By the requirements of this function.
            let mut skb = unsafe { TxSkBuff::from_raw(skb, binding) }.ok_or(EINVAL)?;
            // SAFETY: By the requirements of this function.
            let mut ranges = unsafe { OffsetRanges::from_raw(from) }.ok_or(EFAULT)?;

            data.fill(&mut skb, &mut ranges, usize::try_from(len)?)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `base` has to be a binding of `P` that is alive, and `stats` valid.
    unsafe extern "C" fn stats(
        base: *mut bindings::net_devmem_binding,
        stats: *mut bindings::net_devmem_stats,
    ) {
        // SAFETY: By the requirements of this function, and since the type of the data goes with
        // the direction.
        let Stats { buffers, in_use } = unsafe {
            match Direction::from_raw((*base).direction) {
                Direction::FromDevice => Binding::<P::Rx>::data(base).stats(),
                Direction::ToDevice => Binding::<P::Tx>::data(base).stats(),
            }
        };

        // SAFETY: By the requirements of this function.
        unsafe { *stats = bindings::net_devmem_stats { buffers, in_use } };
    }

    /// # Safety
    ///
    /// `base` has to be a binding of `P` that was published, and is not freed meanwhile.
    unsafe extern "C" fn unmap(base: *mut bindings::net_devmem_binding) {
        // SAFETY: By the requirements of this function, and since the type of the data goes with
        // the direction.
        unsafe {
            match Direction::from_raw((*base).direction) {
                Direction::FromDevice => Binding::<P::Rx>::data(base).unmap(),
                Direction::ToDevice => Binding::<P::Tx>::data(base).unmap(),
            }
        }
    }

    /// # Safety
    ///
    /// `base` has to be a binding of `P` that was published, and to which there are no references.
    unsafe extern "C" fn free(base: *mut bindings::net_devmem_binding) {
        // SAFETY: `Draft::publish` left the box to the core, which by the requirements of this
        // function is done with it. The type of the data goes with the direction.
        unsafe {
            match Direction::from_raw((*base).direction) {
                Direction::FromDevice => Binding::<P::Rx>::free(base),
                Direction::ToDevice => Binding::<P::Tx>::free(base),
            }
        }
    }
}

/// Has `serve` make a binding, and leaves it to the core.
///
/// # Safety
///
/// Both pointers have to be valid, the lock of the netlink socket held, and the request checked
/// against policy and for mandatory attributes.
unsafe fn bind<T: Data>(
    owner: *mut bindings::netdev_nl_sock,
    info: *mut bindings::genl_info,
    serve: impl FnOnce(&BindRequest<'_>) -> Result<Bound<T>>,
) -> *mut bindings::net_devmem_binding {
    let (Some(owner), Some(info)) = (NonNull::new(owner), NonNull::new(info)) else {
        return EINVAL.to_ptr();
    };
    // SAFETY: By the requirements of this function.
    let request = unsafe { BindRequest::from_raw(owner, info) };

    match serve(&request) {
        Ok(bound) => bound.into_base(),
        Err(error) => error.to_ptr(),
    }
}
