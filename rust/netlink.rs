// SPDX-License-Identifier: GPL-2.0

//! bind-rx requests of the `netdev` family: what they ask for, and what is wrong with them.
//!
//! The core has checked the message against the family's policy, and that the mandatory attributes
//! are there; and it sends the reply. See [`Documentation/netlink/specs/netdev.yaml`] for the
//! attributes, and `Documentation/uapi.rst` for all errors.
//!
//! [`Documentation/netlink/specs/netdev.yaml`]: srctree/Documentation/netlink/specs/netdev.yaml

#![deny(unsafe_code)]

use kernel::{
    bitmap::BitmapVec,
    fmt,
    page::PAGE_SHIFT,
    prelude::*, //
};

use crate::{
    area::{
        Layout,
        LayoutError, //
    },
    binding::DmaBufBinding,
    sys::{
        devmem::{
            Bound,
            Draft, //
        },
        dma_buf::{
            DmaBuf,
            MapError,
            Mapping, //
        },
        genetlink::{
            Attr,
            BindRequest,
            DmabufAttr,
            QueueIdAttr,
            QUEUE_TYPE_RX, //
        },
        net_device::{
            DmaDevice,
            LockedNetDevice, //
        },
    },
};

/// Binds a dma-buf to receive queues.
///
/// Checks everything that can be checked before it touches the device. If a queue cannot be opened,
/// those that were are closed again.
pub(crate) fn bind_rx(request: &BindRequest<'_>) -> Result<Bound<DmaBufBinding>> {
    let niov_shift = niov_shift(request)?;
    let dev = device(request)?;
    let queues = Queues::of(request, &dev)?;
    let dma_dev = dma_device(request, &dev, &queues)?;
    let mapping = mapping(request, dma_dev)?;
    let layout = layout(request, &mapping, niov_shift)?;

    let data = DmaBufBinding::new(mapping, layout, niov_shift)?;
    let bound = Draft::new(&dev, dma_dev, niov_shift, data)?.publish(request)?;
    for rxq in queues.iter() {
        bound.open_rxq(&dev, rxq, request)?;
    }
    Ok(bound)
}

/// log2 of the size of a net_iov, in bytes. The policy sees to it that none is below the page size.
fn niov_shift(request: &BindRequest<'_>) -> Result<u32> {
    let Some(attr) = request.attr(DmabufAttr::RxPageSize) else {
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
    if !dev.has_ops_lock() {
        return refuse(EOPNOTSUPP, fmt!("device does not support memory providers"));
    }
    Ok(dev)
}

/// The receive queues that a request names, in ascending order. Never empty.
struct Queues(BitmapVec);

impl Queues {
    fn of(request: &BindRequest<'_>, dev: &LockedNetDevice<'_>) -> Result<Self> {
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
        let next = |from| self.0.next_bit(from);

        core::iter::successors(next(0), move |rxq| next(rxq + 1)).map(|rxq| rxq as u32)
    }
}

/// The device that does the DMA for all of `queues`.
fn dma_device<'a>(
    request: &BindRequest<'_>,
    dev: &'a LockedNetDevice<'_>,
    queues: &Queues,
) -> Result<DmaDevice<'a>> {
    let refuse = |why: fmt::Arguments<'_>| Err(request.refuse(EOPNOTSUPP, None, why));
    let mut found: Option<(u32, Option<DmaDevice<'a>>)> = None;

    for rxq in queues.iter() {
        let dma_dev = dev.dma_device(rxq);
        match found {
            Some((other, other_dev)) if other_dev != dma_dev => {
                return refuse(fmt!(
                    "DMA device mismatch between queue {rxq} and {other} (multi-PF device?)"
                ));
            }
            _ => found = Some((rxq, dma_dev)),
        }
    }

    match found {
        Some((_, Some(dma_dev))) => Ok(dma_dev),
        _ => refuse(fmt!("Device doesn't support DMA")),
    }
}

fn mapping(request: &BindRequest<'_>, dma_dev: DmaDevice<'_>) -> Result<Mapping> {
    let attr = request.attr(DmabufAttr::Fd).ok_or(EINVAL)?;
    let refuse = |error, why: fmt::Arguments<'_>| request.refuse(error, Some(attr), why);

    let buf = DmaBuf::get(attr.u32())
        .map_err(|error| refuse(error, fmt!("file descriptor is not of a dma-buf")))?;
    if !buf.is_writable() {
        return Err(refuse(EINVAL, fmt!("dma-buf is read-only")));
    }
    Mapping::new(buf, dma_dev).map_err(|error| match error {
        MapError::Attach(error) => refuse(error, fmt!("Failed to bind dmabuf to device")),
        MapError::Map(error) => refuse(error, fmt!("Failed to map dmabuf attachment")),
    })
}

fn layout(request: &BindRequest<'_>, mapping: &Mapping, niov_shift: u32) -> Result<Layout> {
    let refuse = |why: fmt::Arguments<'_>| request.refuse(EINVAL, None, why);

    Layout::of(mapping.segments(), niov_shift).map_err(|error| match error {
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
    })
}
