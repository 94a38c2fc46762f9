// SPDX-License-Identifier: GPL-2.0

//! Received bytes for readers that get them copied.

use kernel::prelude::*;

use super::{
    super::{
        skbuff::{
            Frag,
            RxSkBuff, //
        },
        sock::Message,
        source::CpuSource,
        token::Frags as _,
        window::{
            Part,
            Window, //
        }, //
    },
    binding::received_by,
    provider::DevmemProvider, //
};

/// Copies up to `len` bytes of `skb`, starting at `offset`, to the reader of `msg`: those in host memory, and
/// those in memory of provider `P`, which the CPU can read.
///
/// Returns how many. Fails only if not a byte was copied:
///
/// - `EFAULT`: the reader's memory is not there, or the packet ends before.
/// - `ENODEV`: a frag is in memory of somebody else, or in a binding that is sent from. It is at the next try, too: a
///   socket whose reader gets that does not get on. Of a provider that is built in, and is not a module, all frags
///   are somebody else's: what it is known by is missing.
///
/// Process context, socket locked.
#[allow(dead_code, reason = "not every provider has memory that the CPU reads")]
pub(crate) fn copy<P>(
    skb: &mut RxSkBuff<'_>,
    offset: usize,
    msg: &mut Message<'_>,
    len: usize,
) -> Result<usize>
where
    P: DevmemProvider,
    P::Source: CpuSource,
{
    let mut window = Window::new(offset, len);
    let mut copied = 0;
    let result = copy_parts::<P>(skb, &mut window, msg, &mut copied);

    match copied {
        0 => result.map(|()| 0),
        copied => Ok(copied),
    }
}

fn copy_parts<P>(
    skb: &mut RxSkBuff<'_>,
    window: &mut Window,
    msg: &mut Message<'_>,
    copied: &mut usize,
) -> Result
where
    P: DevmemProvider,
    P::Source: CpuSource,
{
    for part in skb.parts() {
        if part.has_readable_frags() {
            return Err(ENODEV);
        }
        let linear = part.linear();
        if let Some(cut) = window.cut(linear.len()) {
            msg.copy(&linear[cut.offset..][..cut.len])?;
            *copied += cut.len;
        }
        for frag in part.take_frags().as_slice() {
            if let Some(cut) = window.cut(frag.size()) {
                copy_frag::<P>(frag, cut, msg)?;
                *copied += cut.len;
            }
        }
        if window.is_empty() {
            return Ok(());
        }
    }
    Err(EFAULT)
}

fn copy_frag<P>(frag: &Frag, cut: Part, msg: &mut Message<'_>) -> Result
where
    P: DevmemProvider,
    P::Source: CpuSource,
{
    let iov = frag.devmem_iov().ok_or(ENODEV)?;
    // SAFETY: The frag holds the net_iov for as long as it is borrowed, and that its binding, which was
    // published before anybody had the net_iov.
    let binding = unsafe { received_by::<P>(iov.binding()) }.ok_or(ENODEV)?;
    let offset = frag.offset() + cut.offset as u64;

    binding
        .memory
        .look_at(iov.index(), offset, cut.len as u64, |bytes| {
            // SAFETY: There are as many, and they stay readable meanwhile.
            unsafe { msg.copy_raw(bytes, cut.len) }
        })
        .ok_or(EFAULT)?
}
