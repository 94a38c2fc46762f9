// SPDX-License-Identifier: GPL-2.0

//! The callbacks of the core.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    error::from_result,
    module::this_module,
    prelude::*, //
};

use super::{
    super::{
        bindings,
        genetlink::{
            RxBindRequest,
            TxBindRequest, //
        },
        iov_iter::OffsetRanges,
        memory::Memory,
        netmem::Loan,
        skbuff::{
            RxSkBuff,
            TxSkBuff, //
        },
        sock::{
            LockedSock,
            Message,
            Sock, //
        },
        token::Range, //
    },
    binding::{
        Kind,
        LocalBinding,
        RxBinding,
        TxBinding, //
    },
    bound::{
        RxBound,
        TxBound, //
    },
    memory_provider,
    provider::DevmemProvider, //
};

/// The table of provider `P`.
pub(super) const fn vtable<P: DevmemProvider>() -> &'static bindings::net_devmem_ops {
    &DevmemVTable::<P>::VTABLE
}

/// What the core asks of provider `P`.
struct DevmemVTable<P>(PhantomData<P>);

impl<P: DevmemProvider> DevmemVTable<P> {
    const VTABLE: bindings::net_devmem_ops = {
        assert!(P::HAS_BIND_TX == P::HAS_FILL, "who binds has to fill");

        bindings::net_devmem_ops {
            name: P::NAME.to_bytes_with_nul().as_ptr(),
            owner: this_module::<P::OwnerModule>().as_ptr(),
            runs: P::RUNS,
            mp_ops: memory_provider::vtable::<P>(),
            bind_rx: Some(Self::bind_rx),
            bind_tx: if P::HAS_BIND_TX {
                Some(Self::bind_tx)
            } else {
                None
            },
            recvmsg: if P::HAS_RECVMSG {
                Some(Self::recvmsg)
            } else {
                None
            },
            dontneed: if P::HAS_DONTNEED {
                Some(Self::dontneed)
            } else {
                None
            },
            fill_skb: if P::HAS_FILL {
                Some(Self::fill_skb)
            } else {
                None
            },
            stats: Some(Self::stats),
            unmap: Some(Self::unmap),
            free: Some(Self::free),
        }
    };

    /// # Safety
    ///
    /// Both pointers have to be valid, the lock of the netlink socket held, and the request checked
    /// against policy and for mandatory attributes.
    unsafe extern "C" fn bind_rx(
        owner: *mut bindings::netdev_nl_sock,
        info: *mut bindings::genl_info,
    ) -> *mut bindings::net_devmem_binding {
        let (Some(owner), Some(info)) = (NonNull::new(owner), NonNull::new(info)) else {
            return EINVAL.to_ptr();
        };
        // SAFETY: By the requirements of this function.
        let request = unsafe { RxBindRequest::from_raw(owner, info) };

        P::bind_rx(&request)
            .and_then(RxBound::into_base)
            .unwrap_or_else(|error| error.to_ptr())
    }

    /// # Safety
    ///
    /// As for `bind_rx`.
    unsafe extern "C" fn bind_tx(
        owner: *mut bindings::netdev_nl_sock,
        info: *mut bindings::genl_info,
    ) -> *mut bindings::net_devmem_binding {
        let (Some(owner), Some(info)) = (NonNull::new(owner), NonNull::new(info)) else {
            return EINVAL.to_ptr();
        };
        // SAFETY: By the requirements of this function.
        let request = unsafe { TxBindRequest::from_raw(owner, info) };

        P::bind_tx(&request).map_or_else(|error| error.to_ptr(), TxBound::into_base)
    }

    /// # Safety
    ///
    /// All pointers have to be valid, but `run` and `loan` may be null, the socket locked and `skb` in its receive queue.
    /// With `eat`, `skb` is thrown away if all its bytes are passed, it has no frag list, its frags have page pools, and
    /// `loan` is null. If it is not, it has to be held; if it is, all frags of device memory have page pools.
    unsafe extern "C" fn recvmsg(
        sk: *mut bindings::sock,
        skb: *mut bindings::sk_buff,
        offset: c_uint,
        msg: *mut bindings::msghdr,
        len: c_int,
        eat: bool,
        run: *mut bindings::net_devmem_run,
        loan: *mut bindings::net_devmem_loan,
    ) -> c_int {
        let (Some(sk), Some(skb), Some(msg)) =
            (NonNull::new(sk), NonNull::new(skb), NonNull::new(msg))
        else {
            return EINVAL.to_errno();
        };
        // SAFETY: By the requirements of this function. While the socket is locked nobody changes what is in its receive
        // queue. What is there was received. If it was sent from a local binding, it has its frags in common with what the
        // sender may have to send again: who changes that takes a copy of these first (skb_unclone(), pskb_copy()).
        let (sk, mut skb, mut msg) = unsafe {
            (
                LockedSock::from_raw(sk),
                RxSkBuff::from_raw(skb, eat, Loan::from_raw(loan)),
                Message::from_raw(msg, NonNull::new(run).filter(|_| P::RUNS)),
            )
        };

        from_result(|| {
            let len = usize::try_from(len)?;
            let passed = P::recvmsg(&sk, &mut skb, offset as usize, &mut msg, len);

            // An skb without its frags has to go, as it does when all of it is passed.
            let passed = match skb.has_lost_frags() {
                true => len,
                false => passed?.min(len),
            };
            // TCP would try the same again, for ever.
            if passed == 0 && len != 0 {
                return Err(EFAULT);
            }
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
    /// All pointers have to be valid, `skb` nobody else's, and `base` a transmit binding of `P`, local or not, to
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
        // SAFETY: By the requirements of this function, and since the type of the memory goes with the kind.
        let extents = unsafe {
            match Kind::of(base) {
                Kind::Receive => return EINVAL.to_errno(),
                Kind::Transmit => &TxBinding::<P>::from_base(base).memory.extents,
                Kind::Local => &LocalBinding::from_base(base).memory.extents,
            }
        };

        from_result(|| {
            let room = usize::try_from(len)?;
            // SAFETY: By the requirements of this function; the extents are those of the binding.
            let skb = unsafe { TxSkBuff::from_raw(skb, binding, extents, room) };
            let mut skb = skb.ok_or(EINVAL)?;
            // SAFETY: By the requirements of this function.
            let mut ranges = unsafe { OffsetRanges::from_raw(from) }.ok_or(EFAULT)?;

            let result = P::fill(&mut skb, &mut ranges);
            // TCP takes back what was appended before.
            if !matches!(result, Err(EFAULT)) {
                extents.count_sent(room - skb.room());
            }
            // TCP would try for ever to append something, unless it is told one of these.
            if skb.room() == room && room != 0 {
                return match result {
                    Err(error) if error == EMSGSIZE && skb.is_full() => Err(error),
                    _ => Err(EFAULT),
                };
            }
            result.map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// `base` has to be a binding of `P` that is alive, and `stats` valid and the caller's.
    unsafe extern "C" fn stats(
        base: *mut bindings::net_devmem_binding,
        stats: *mut bindings::net_devmem_stats,
    ) {
        // SAFETY: By the requirements of this function, and since the type of the memory goes with
        // the kind.
        let found = unsafe {
            match Kind::of(base) {
                Kind::Receive => RxBinding::<P>::from_base(base).memory.stats(),
                Kind::Transmit => TxBinding::<P>::from_base(base).memory.stats(),
                Kind::Local => LocalBinding::from_base(base).memory.stats(),
            }
        };

        // SAFETY: By the requirements of this function nobody else has it.
        let stats = unsafe { &mut *stats };
        stats.buffers = found.buffers;
        stats.in_use = found.in_use;
        if let Some(supply) = found.supply {
            stats.is_exhausted = supply.is_exhausted;
            stats.alloc = supply.taken;
            stats.recycle = supply.returned;
            stats.exhausted = supply.exhausted;
            stats.exhausted_ns = supply.exhausted_for;
        }
        if let Some(sent) = found.sent {
            stats.tx_bytes = sent;
        }
    }

    /// # Safety
    ///
    /// `base` has to be a binding of `P` that was published, and is not freed meanwhile.
    unsafe extern "C" fn unmap(base: *mut bindings::net_devmem_binding) {
        // SAFETY: By the requirements of this function, and since the type of the memory goes with
        // the kind.
        unsafe {
            match Kind::of(base) {
                Kind::Receive => RxBinding::<P>::from_base(base).memory.mapped().unmap(),
                Kind::Transmit => TxBinding::<P>::from_base(base).memory.mapped().unmap(),
                Kind::Local => LocalBinding::from_base(base).memory.mapped().unmap(),
            }
        }
    }

    /// # Safety
    ///
    /// `base` has to be a binding of `P` that was published, and to which there are no references.
    unsafe extern "C" fn free(base: *mut bindings::net_devmem_binding) {
        // SAFETY: Who published it left the box to the core, which by the requirements of this
        // function is done with it. The type of the memory goes with the kind.
        unsafe {
            match Kind::of(base) {
                Kind::Receive => RxBinding::<P>::free(base),
                Kind::Transmit => TxBinding::<P>::free(base),
                Kind::Local => LocalBinding::free(base),
            }
        }
    }
}
