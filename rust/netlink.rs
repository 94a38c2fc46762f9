// SPDX-License-Identifier: GPL-2.0

//! bind-rx and bind-tx requests of the `netdev` family: what they ask for, and what is wrong with
//! them.
//!
//! The core has checked the message against the family's policy, and that the mandatory attributes
//! are there; and it sends the reply. See [`Documentation/netlink/specs/netdev.yaml`] for the
//! attributes, and `Documentation/uapi.rst` for all errors.
//!
//! [`Documentation/netlink/specs/netdev.yaml`]: srctree/Documentation/netlink/specs/netdev.yaml

#![deny(unsafe_code)]

use kernel::{
    bitmap::BitmapVec,
    device::{
        Bound,
        Device, //
    },
    fmt,
    page::PAGE_SHIFT,
    prelude::*, //
};

use crate::sys::{
    area::LayoutError,
    devmem::{
        DevmemProvider,
        Draft,
        PublishError,
        RxBound,
        TxBound, //
    },
    dma_buf::{
        DmaBuf,
        MapError,
        Mapping,
        Unmapped, //
    },
    genetlink::{
        Attr,
        BindRequest,
        DmabufAttr,
        QueueIdAttr,
        RxBindRequest,
        TxBindRequest,
        QUEUE_TYPE_RX, //
    },
    locked_memory::LockedMemory,
    memory::{
        LocalMemory,
        MemoryError,
        RxMemory,
        TxMemory, //
    },
    net_device::{
        DmaDevice,
        LockedNetDevice,
        TxDevice, //
    },
    source::Source, //
};

/// Binds a dma-buf to receive queues, for provider `P`.
///
/// Checks everything that can be checked before it touches the device. If a queue cannot be opened,
/// those that were are closed again.
///
/// Exporters take their time. The device is not locked meanwhile: its driver stays, and all else is looked at again.
pub(crate) fn bind_rx<'a, P>(request: &'a RxBindRequest<'_>) -> Result<RxBound<'a>>
where
    P: DevmemProvider<Source = Mapping>,
{
    let niov_shift = niov_shift(request)?;
    let (dma_dev, sharing) = {
        let dev = rx_device(request)?;
        let queues = Queues::of(request, &dev)?;
        (dma_device(request, &dev, &queues)?, queues.iter().count())
    };
    let mapping = Mapping::for_receive(dma_buf(request)?, &dma_dev)
        .map_err(|error| refuse_mapping(request, error))?;
    let is_peer_to_peer = mapping.is_peer_to_peer() != Some(false);
    let memory = RxMemory::new(mapping, niov_shift, sharing)
        .map_err(|error| refuse_memory(request, error, niov_shift))?;

    let dev = rx_device(request)?;
    let queues = Queues::of(request, &dev)?;
    let bound = Draft::receive::<P>(dev, memory, request)?
        .publish(request)
        .map_err(|error| refuse_owner(request, error))?;
    for rxq in queues.iter() {
        bound.open_rxq(rxq, request)?;
    }
    tell_where_memory_is(request, is_peer_to_peer);
    Ok(bound)
}

/// Binds a dma-buf to a device, to be sent from, for provider `P`.
pub(crate) fn bind_tx<'a, P>(request: &'a TxBindRequest<'_>) -> Result<TxBound<'a>>
where
    P: DevmemProvider<Source = Mapping>,
{
    if request.local().is_some() {
        return bind_local::<P>(request);
    }
    let dma_dev = tx_device(request)?
        .hold_dma_device()
        .ok_or_else(|| refuse_dma(request))?;
    let buf = dma_buf(request)?;
    let locked = LockedMemory::new(request, buf.size())?;
    let mapping = Mapping::for_transmit(buf, &dma_dev, locked)
        .map_err(|error| refuse_mapping(request, error))?;
    let is_peer_to_peer = mapping.is_peer_to_peer() != Some(false);
    let memory = TxMemory::new(mapping).map_err(|error| refuse_memory(request, error, 0))?;

    let dev = tx_device(request)?;
    let bound = Draft::transmit::<P>(dev, memory, request)?
        .publish(request)
        .map_err(|error| refuse_owner(request, error))?;
    tell_where_memory_is(request, is_peer_to_peer);
    Ok(TxBound::Mapped(bound))
}

/// Binds a dma-buf to a device that does no DMA, to be sent from to readers on this machine. Nobody maps it: there is
/// nothing to be waited for.
fn bind_local<'a, P>(request: &'a TxBindRequest<'_>) -> Result<TxBound<'a>>
where
    P: DevmemProvider,
{
    let attr = request.attr(DmabufAttr::Ifindex);
    let dev = device(request)?
        .into_local_device()
        .ok_or_else(|| request.refuse(EOPNOTSUPP, attr, fmt!("Device takes no local bindings")))?;
    let buf = dma_buf(request)?;
    let locked = LockedMemory::new(request, buf.size())?;
    let buf = Unmapped::new(buf, locked).map_err(|error| refuse_mapping(request, error))?;
    let memory = LocalMemory::new(buf).map_err(|error| refuse_memory(request, error, 0))?;

    let bound = Draft::local::<P>(dev, memory, request)?
        .publish(request)
        .map_err(|error| refuse_owner(request, error))?;
    Ok(TxBound::Local(bound))
}

/// log2 of the size of a net_iov, in bytes. The policy sees to it that none is below the page size.
fn niov_shift(request: &RxBindRequest<'_>) -> Result<u32> {
    let Some(attr) = request.rx_page_size() else {
        return Ok(PAGE_SHIFT as u32);
    };

    let size = attr.u32();
    if !size.is_power_of_two() {
        let why = fmt!("rx-page-size must be a power of 2");
        return Err(request.refuse(EINVAL, Some(attr), why));
    }
    Ok(size.ilog2())
}

fn device<'a>(request: &'a BindRequest<'_>) -> Result<LockedNetDevice<'a>> {
    let attr = request.attr(DmabufAttr::Ifindex).ok_or(EINVAL)?;
    let ifindex = attr.u32();
    let refuse = |error, why: fmt::Arguments<'_>| Err(request.refuse(error, Some(attr), why));

    let Some(dev) = LockedNetDevice::lock(request, ifindex) else {
        return refuse(ENODEV, fmt!("no interface with index {ifindex}"));
    };
    if !dev.is_present() {
        return refuse(ENODEV, fmt!("device is not present"));
    }
    Ok(dev)
}

fn rx_device<'a>(request: &'a BindRequest<'_>) -> Result<LockedNetDevice<'a>> {
    let dev = device(request)?;
    if !dev.has_ops_lock() {
        let attr = request.attr(DmabufAttr::Ifindex);
        let why = fmt!("device does not support memory providers");
        return Err(request.refuse(EOPNOTSUPP, attr, why));
    }
    Ok(dev)
}

fn tx_device<'a>(request: &'a BindRequest<'_>) -> Result<TxDevice<'a>> {
    let dev = device(request)?;
    let attr = request.attr(DmabufAttr::Ifindex);
    let refuse = |why: fmt::Arguments<'_>| request.refuse(EOPNOTSUPP, attr, why);

    if !dev.transmits_netmem() {
        return Err(refuse(fmt!("Driver does not support netmem TX")));
    }
    dev.into_tx_device()
        .ok_or_else(|| refuse(fmt!("No DMA-capable device found for netmem TX")))
}

fn refuse_dma(request: &BindRequest<'_>) -> Error {
    request.refuse(EOPNOTSUPP, None, fmt!("Device doesn't support DMA"))
}

/// The receive queues that a request names, in ascending order. Never empty.
struct Queues(BitmapVec);

impl Queues {
    fn of(request: &RxBindRequest<'_>, dev: &LockedNetDevice<'_>) -> Result<Self> {
        let limit = dev.rx_queues();
        let mut queues = BitmapVec::new(limit as usize, GFP_KERNEL)?;

        for attr in request.queues() {
            let (id_attr, rxq) = Self::queue(request, attr)?;
            let refuse = |why: fmt::Arguments<'_>| Err(request.refuse(EINVAL, Some(id_attr), why));

            if rxq >= limit {
                return refuse(fmt!("queue {rxq} is out of range, device has {limit}"));
            }
            if queues.next_bit(rxq as usize) == Some(rxq as usize) {
                return refuse(fmt!("queue {rxq} is named twice"));
            }
            queues.set_bit(rxq as usize);
        }
        Ok(Self(queues))
    }

    fn queue<'a>(request: &BindRequest<'_>, attr: Attr<'a>) -> Result<(Attr<'a>, u32)> {
        let get = |kind| {
            attr.queue_id(kind)
                .ok_or_else(|| request.refuse_missing(attr, kind))
        };
        let id = get(QueueIdAttr::Id)?;
        let kind = get(QueueIdAttr::Type)?;

        if kind.u32() != QUEUE_TYPE_RX {
            let why = fmt!("only receive queues can be bound");
            return Err(request.refuse(EINVAL, Some(kind), why));
        }
        Ok((id, id.u32()))
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        // There is nothing to be found from the end on, where a bitmap does not like to be asked: with
        // CONFIG_RUST_BITMAP_HARDENED it panics.
        let next = |from| match from < self.0.len() {
            true => self.0.next_bit(from),
            false => None,
        };

        core::iter::successors(next(0), move |rxq| next(rxq + 1)).map(|rxq| rxq as u32)
    }
}

/// The device that does the DMA for all of `queues`.
fn dma_device(
    request: &BindRequest<'_>,
    dev: &LockedNetDevice<'_>,
    queues: &Queues,
) -> Result<DmaDevice> {
    let mut found: Option<(u32, Option<&Device<Bound>>)> = None;

    for rxq in queues.iter() {
        let dma_dev = dev.dma_device(rxq);
        match found {
            Some((other, other_dev)) if !same(other_dev, dma_dev) => {
                let why =
                    fmt!("DMA device mismatch between queue {rxq} and {other} (multi-PF device?)");
                return Err(request.refuse(EOPNOTSUPP, None, why));
            }
            _ => found = Some((rxq, dma_dev)),
        }
    }

    found
        .and_then(|(rxq, _)| dev.hold_dma_device(rxq))
        .ok_or_else(|| refuse_dma(request))
}

fn same(one: Option<&Device<Bound>>, other: Option<&Device<Bound>>) -> bool {
    one.map(core::ptr::from_ref) == other.map(core::ptr::from_ref)
}

fn dma_buf(request: &BindRequest<'_>) -> Result<DmaBuf> {
    let attr = request.attr(DmabufAttr::Fd).ok_or(EINVAL)?;
    let refuse = |error, why: fmt::Arguments<'_>| request.refuse(error, Some(attr), why);

    DmaBuf::get(attr.u32()).map_err(|error| match error {
        EBADF => refuse(error, fmt!("no such file descriptor")),
        _ => refuse(error, fmt!("file descriptor is not of a dma-buf")),
    })
}

fn refuse_mapping(request: &BindRequest<'_>, error: MapError) -> Error {
    let attr = request.attr(DmabufAttr::Fd);
    let refuse = |error, why: fmt::Arguments<'_>| request.refuse(error, attr, why);

    match error {
        MapError::ReadOnly => refuse(EINVAL, fmt!("dma-buf is read-only")),
        MapError::WriteOnly => refuse(EINVAL, fmt!("dma-buf is write-only")),
        MapError::Unaccounted => refuse(EINVAL, fmt!("dma-buf is larger than what is accounted")),
        MapError::Attach(error) => refuse(error, fmt!("Failed to bind dmabuf to device")),
        MapError::Map(error) => refuse(error, fmt!("Failed to map dmabuf attachment")),
        MapError::TooLong => refuse(ETIMEDOUT, fmt!("Exporter of the dma-buf takes too long")),
    }
}

fn refuse_owner(request: &BindRequest<'_>, error: PublishError) -> Error {
    let why = match error {
        PublishError::Core(error) => return error,
        PublishError::TakenBack => fmt!("dma-buf was taken back by its exporter"),
    };

    request.refuse(error.into(), request.attr(DmabufAttr::Fd), why)
}

/// The exporter may serve a device that does not reach its memory by a copy in host memory.
fn tell_where_memory_is(request: &BindRequest<'_>, is_peer_to_peer: bool) {
    if !is_peer_to_peer {
        request.warn(fmt!(
            "dma-buf is not peer-to-peer: its exporter may have moved it to host memory"
        ));
    }
}

fn refuse_memory(request: &BindRequest<'_>, error: MemoryError, niov_shift: u32) -> Error {
    let refuse = |why: fmt::Arguments<'_>| request.refuse(EINVAL, None, why);
    let error = match error {
        MemoryError::Layout(error) => error,
        other => return other.into(),
    };

    match error {
        LayoutError::Empty => refuse(fmt!("dmabuf has no memory")),
        LayoutError::Misaligned(segment) => refuse(fmt!(
            "dmabuf sg entry (addr={:#x}, len={}) not aligned to niov size {}",
            segment.addr,
            segment.len,
            1u64 << niov_shift
        )),
        LayoutError::Wraps(segment) => refuse(fmt!(
            "dmabuf sg entry (addr={:#x}, len={}) wraps around",
            segment.addr,
            segment.len
        )),
        LayoutError::TooMany => refuse(fmt!("dmabuf has too many buffers")),
    }
}
