// SPDX-License-Identifier: GPL-2.0

//! dma-bufs, and their mapping for a device.
//!
//! A device is attached to a dma-buf ([`Attachment`]). Under the reservation lock ([`Locked`]) the memory is then
//! [pinned](Pinned) and [mapped](Table), each undone when dropped, under that lock, unless it is kept: as a
//! [`Mapping`], which takes the lock to undo it. The memory may go back to its exporter at any time, by a [`Claim`].
//! What is sent to readers on this machine is attached to nothing ([`Unmapped`]).
//!
//! C headers: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h),
//! [`include/linux/dma-resv.h`](srctree/include/linux/dma-resv.h)

use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    device::{
        Bound,
        Device, //
    },
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    scatterlist::SGTable,
    sync::aref::ARef,
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    types::NotThreadSafe, //
};

use super::{
    area::Segment,
    bindings,
    claim::Claim,
    locked_memory::LockedMemory,
    net_device::device_ptr,
    source::{
        Direction,
        Source, //
    }, //
};

/// How long the kernel may take to have the memory where it is to be, in milliseconds. GPUs are reset if they take as
/// long for a job.
const LONGEST_MOVE: Msecs = 10_000;

/// A reference to a `struct dma_buf`.
///
/// # Invariants
///
/// The pointer is to a dma-buf of which this owns a reference.
pub(crate) struct DmaBuf(NonNull<bindings::dma_buf>);

// SAFETY: References to a dma-buf may be dropped from any thread.
unsafe impl Send for DmaBuf {}

// SAFETY: Only immutable properties of the dma-buf can be reached through `&DmaBuf`.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// The dma-buf behind a file descriptor of the current process.
    ///
    /// `EBADF` if there is no such file descriptor, `EINVAL` if it is not of a dma-buf.
    pub(crate) fn get(fd: u32) -> Result<Self> {
        // SAFETY: Any number may be looked up. The C code takes it for an `int`, too.
        let ptr = from_err_ptr(unsafe { bindings::dma_buf_get(fd as i32) })?;

        // INVARIANT: `dma_buf_get()` returned a reference.
        NonNull::new(ptr).map(Self).ok_or(EINVAL)
    }

    /// Whether the file descriptors of the dma-buf allow what the device does: to write to it, or to
    /// read it.
    fn allows(&self, direction: Direction) -> bool {
        // SAFETY: By the type invariant the dma-buf is alive, and so is its file, whose mode does
        // not change.
        let mode = unsafe { (*(*self.0.as_ptr()).file).f_mode };

        let needed = match direction {
            Direction::FromDevice => bindings::FMODE_WRITE,
            Direction::ToDevice => bindings::FMODE_READ,
        };
        mode & needed != 0
    }

    /// How large it is, in bytes.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: By the type invariant the dma-buf is alive, and its size does not change.
        unsafe { (*self.0.as_ptr()).size as u64 }
    }

    fn resv(&self) -> *mut bindings::dma_resv {
        // SAFETY: By the type invariant the dma-buf is alive, and keeps its reservation object.
        unsafe { (*self.0.as_ptr()).resv }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to give up.
        unsafe { bindings::dma_buf_put(self.0.as_ptr()) }
    }
}

/// Where exporters are to have the memory.
#[derive(Clone, Copy)]
enum Where {
    /// Wherever it is: it may be without struct pages, as a peer's is. Nobody here looks for them.
    Anywhere,
    InHostMemory,
}

impl Where {
    fn ops(self) -> &'static bindings::dma_buf_attach_ops {
        match self {
            Self::Anywhere => &ANYWHERE,
            Self::InHostMemory => &IN_HOST_MEMORY,
        }
    }
}

/// What exporters are told of us, who import: they may take the memory back, pinned or not.
const fn importer(allow_peer2peer: bool) -> bindings::dma_buf_attach_ops {
    bindings::dma_buf_attach_ops {
        allow_peer2peer,
        invalidate_mappings: Some(invalidate_mappings),
    }
}

static ANYWHERE: bindings::dma_buf_attach_ops = importer(true);

static IN_HOST_MEMORY: bindings::dma_buf_attach_ops = importer(false);

/// # Safety
///
/// The private data of `attachment` has to be a [`Claim`] that is there until it is detached. Its dma-buf has to be
/// locked.
unsafe extern "C" fn invalidate_mappings(attachment: *mut bindings::dma_buf_attachment) {
    // SAFETY: By the requirements of this function.
    let claim = unsafe { &*(*attachment).importer_priv.cast::<Claim>() };

    // Who unmaps it needs the lock.
    claim.take_back();
}

/// The attachment of a device to a dma-buf.
///
/// # Invariants
///
/// The pointer is to a dynamic attachment to `buf`, and nothing else will detach it. `claim` is its private data.
struct Attachment {
    ptr: NonNull<bindings::dma_buf_attachment>,
    buf: DmaBuf,
    claim: Pin<KBox<Claim>>,
}

impl Attachment {
    fn new(
        buf: DmaBuf,
        dev: &Device<Bound>,
        place: Where,
        claim: Pin<KBox<Claim>>,
    ) -> Result<Self> {
        let data = core::ptr::from_ref(&*claim).cast_mut().cast();
        // SAFETY: Both are alive, the dma-buf by its type invariant. The exporter looks at the ops until it is
        // detached, which is before the module goes; and so the claim is there as long as its callback wants it.
        let ptr = unsafe {
            bindings::dma_buf_dynamic_attach(buf.0.as_ptr(), device_ptr(dev), place.ops(), data)
        };

        // INVARIANT: It was just attached.
        Ok(Self {
            ptr: non_null(ptr)?,
            buf,
            claim,
        })
    }

    /// Ends it.
    fn detach(self) -> (DmaBuf, Pin<KBox<Claim>>) {
        let this = ManuallyDrop::new(self);

        // SAFETY: By the type invariants this is the attachment's one and only end: `this` is not dropped.
        unsafe { bindings::dma_buf_detach(this.buf.0.as_ptr(), this.ptr.as_ptr()) };
        // SAFETY: Fields of what is not dropped, nor used again.
        unsafe { (core::ptr::read(&this.buf), core::ptr::read(&this.claim)) }
    }

    /// Takes the reservation lock of the dma-buf. Can sleep.
    fn lock(&self) -> Locked<'_> {
        // SAFETY: By the type invariant the dma-buf is alive, and with it its reservation object. Without a
        // context to acquire several it is a mutex, and taking it does not fail.
        unsafe { bindings::dma_resv_lock(self.buf.resv(), core::ptr::null_mut()) };

        // INVARIANT: Taken right above.
        Locked(self, NotThreadSafe)
    }

    /// Waits until the kernel has done with the memory what it is about to: only then is in it what its users
    /// think there is. `EAGAIN` if a signal comes before, `ETIMEDOUT` if it takes too long. Who wants the lock has not
    /// to wait for us meanwhile.
    fn wait(&self) -> Result {
        // SAFETY: By the type invariant the dma-buf is alive, and with it its reservation object, which need not be
        // locked.
        let left = unsafe {
            bindings::dma_resv_wait_timeout(
                self.buf.resv(),
                bindings::dma_resv_usage_DMA_RESV_USAGE_KERNEL,
                true,
                msecs_to_jiffies(LONGEST_MOVE),
            )
        };

        match left {
            1.. => Ok(()),
            0 => Err(ETIMEDOUT),
            _ => Err(EAGAIN),
        }
    }

    /// Whether there is no room for the memory where the device would reach it as a peer, going by what came of
    /// pinning and mapping it. Memory that does not move is where it is.
    fn has_no_room<T>(&self, mapped: &Result<T>) -> bool {
        // SAFETY: By the type invariant the dma-buf is alive, and keeps its ops.
        let moves = unsafe { (*(*self.buf.0.as_ptr()).ops).pin }.is_some();

        let no_room = |&error: &Error| error == ENOMEM || error == ENOSPC;
        moves && self.is_peer_to_peer() && mapped.as_ref().err().is_some_and(no_room)
    }

    /// Whether the device reaches the memory where that is, as far as the exporter says.
    fn is_peer_to_peer(&self) -> bool {
        // SAFETY: By the type invariant it is attached. Exporters write to it while they attach or pin it only.
        unsafe { (*self.ptr.as_ptr()).peer2peer }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is the attachment's one and only end. Whoever has the lock of its
        // dma-buf borrows it.
        unsafe { bindings::dma_buf_detach(self.buf.0.as_ptr(), self.ptr.as_ptr()) }
    }
}

/// An attachment under the reservation lock of its dma-buf, until this is dropped.
///
/// # Invariants
///
/// The current thread holds the lock.
struct Locked<'a>(&'a Attachment, NotThreadSafe);

impl Locked<'_> {
    /// Has the exporter leave the memory where it is. `EOPNOTSUPP` if it cannot.
    ///
    /// Who exports memory that never moves has nothing to do.
    fn pin(&self) -> Result<Pinned<'_>> {
        // SAFETY: The attachment is there by its type invariant, and a dynamic one. By that of this its dma-buf is
        // locked.
        to_result(unsafe { bindings::dma_buf_pin(self.0.ptr.as_ptr()) })?;

        // INVARIANT: It was just pinned.
        Ok(Pinned(self))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current thread holds the lock.
        unsafe { bindings::dma_resv_unlock(self.0.buf.resv()) }
    }
}

/// An attachment whose memory stays where it is, until this is dropped: under the lock, which it borrows.
///
/// # Invariants
///
/// The attachment is pinned, and nothing else will undo it.
struct Pinned<'a>(&'a Locked<'a>);

impl<'a> Pinned<'a> {
    /// Maps the memory for the device. Can sleep.
    fn map(self, direction: Direction) -> Result<Table<'a>> {
        // SAFETY: The attachment is there by its type invariant, and the dma-buf locked by that of `Locked`.
        let sgt =
            unsafe { bindings::dma_buf_map_attachment(self.0 .0.ptr.as_ptr(), direction.as_raw()) };

        // INVARIANT: It was just mapped.
        Ok(Table {
            sgt: non_null(sgt)?,
            direction,
            pinned: self,
        })
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is pinned, and this the end of that. By that of `Locked` its dma-buf is
        // locked.
        unsafe { bindings::dma_buf_unpin(self.0 .0.ptr.as_ptr()) }
    }
}

/// The table of an attachment that is mapped, until this is dropped: under the lock, which it borrows.
///
/// # Invariants
///
/// `sgt` is the mapping of the attachment for `direction`, and nothing else will undo it.
struct Table<'a> {
    sgt: NonNull<bindings::sg_table>,
    direction: Direction,
    // Dropped after the mapping was undone.
    pinned: Pinned<'a>,
}

impl<'a> Table<'a> {
    /// Leaves attachment and memory as they are, pinned and mapped.
    fn keep(self) -> NonNull<bindings::sg_table> {
        ManuallyDrop::new(self).sgt
    }

    /// What [`keep`](Self::keep) left, to be undone when dropped.
    ///
    /// # Safety
    ///
    /// `sgt` has to be kept from this attachment, mapped for that direction. This is called once for it.
    unsafe fn kept(
        locked: &'a Locked<'a>,
        sgt: NonNull<bindings::sg_table>,
        direction: Direction,
    ) -> Self {
        // INVARIANT: By the requirements of this function. What is mapped is pinned.
        Self {
            sgt,
            direction,
            pinned: Pinned(locked),
        }
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is the mapping's one and only end. The attachment is there, and its
        // dma-buf locked, by the type invariants of `Locked`.
        unsafe {
            bindings::dma_buf_unmap_attachment(
                self.pinned.0 .0.ptr.as_ptr(),
                self.sgt.as_ptr(),
                self.direction.as_raw(),
            )
        }
    }
}

/// The error as a request may tell it, which is no system call that is begun again by itself.
fn interrupted(error: Error) -> Error {
    if error == ERESTARTSYS || error == EINTR {
        EAGAIN
    } else {
        error
    }
}

/// Why a dma-buf could not be mapped.
pub(crate) enum MapError {
    /// The file descriptors of the dma-buf do not allow that the device writes to it.
    ReadOnly,
    /// They do not allow that the device reads it.
    WriteOnly,
    /// Less is accounted than it has.
    Unaccounted,
    /// The exporter does not let the device attach.
    Attach(Error),
    /// The exporter does not leave the memory where it is, or does not map it for the device; or a signal came
    /// while it was waited for.
    Map(Error),
    /// The memory is not there by the time that it was waited for.
    TooLong,
}

/// A dma-buf that is mapped for a device.
///
/// # Invariants
///
/// `sgt` was kept from `attachment`, which is one of `dev`, mapped for `direction`, and nothing else will undo
/// it.
pub(crate) struct Mapping {
    sgt: NonNull<bindings::sg_table>,
    direction: Direction,
    attachment: Attachment,
    // Dropped after what is attached to it.
    dev: ARef<Device>,
    /// To whom it is accounted, if it is, and not left to a binding. Dropped last: it is pinned until then.
    locked: Option<LockedMemory>,
}

// SAFETY: A mapping may be undone by any thread, and what is accounted given back.
unsafe impl Send for Mapping {}

// SAFETY: `&Mapping` gives read access to the scatterlist, which nobody changes while the mapping is there, and to the
// claim, which may be shared.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `buf` for `dev` to write to it.
    pub(crate) fn for_receive(buf: DmaBuf, dev: &Device<Bound>) -> Result<Self, MapError> {
        Self::new(buf, dev, Direction::FromDevice)
    }

    /// Maps `buf` for `dev` to read it. It is accounted from before it is pinned until it is not any more.
    pub(crate) fn for_transmit(
        buf: DmaBuf,
        dev: &Device<Bound>,
        locked: LockedMemory,
    ) -> Result<Self, MapError> {
        if buf.size() > locked.size() {
            return Err(MapError::Unaccounted);
        }
        let mut mapping = Self::new(buf, dev, Direction::ToDevice)?;

        mapping.locked = Some(locked);
        Ok(mapping)
    }

    /// Maps `buf` for `dev` to do DMA in one direction: peer-to-peer if the exporter can, and pinned, so that it
    /// does not move.
    ///
    /// Where there is no room for it that the device reaches, it is asked for in host memory.
    ///
    /// Keeps `dev` alive. Can sleep, as long as it takes the exporter to move the memory to where it is to be:
    /// no lock should be held that others wait for.
    fn new(buf: DmaBuf, dev: &Device<Bound>, direction: Direction) -> Result<Self, MapError> {
        if !buf.allows(direction) {
            return Err(match direction {
                Direction::FromDevice => MapError::ReadOnly,
                Direction::ToDevice => MapError::WriteOnly,
            });
        }
        let claim = KBox::pin_init(Claim::new(), GFP_KERNEL_ACCOUNT).map_err(MapError::Attach)?;
        let attach =
            |buf, place, claim| Attachment::new(buf, dev, place, claim).map_err(MapError::Attach);
        let mut attachment = attach(buf, Where::Anywhere, claim)?;
        let mut mapped = Self::map(&attachment.lock(), direction);
        if attachment.has_no_room(&mapped) {
            let (buf, claim) = attachment.detach();
            attachment = attach(buf, Where::InHostMemory, claim)?;
            mapped = Self::map(&attachment.lock(), direction);
        }
        let sgt = mapped.map_err(MapError::Map)?;
        // INVARIANT: It was just kept.
        let mapping = Self {
            sgt,
            direction,
            attachment,
            dev: dev.into(),
            locked: None,
        };

        // It may be the mapping that has the memory moved.
        match mapping.attachment.wait() {
            Ok(()) => Ok(mapping),
            Err(ETIMEDOUT) => Err(MapError::TooLong),
            Err(error) => Err(MapError::Map(error)),
        }
    }

    fn map(locked: &Locked<'_>, direction: Direction) -> Result<NonNull<bindings::sg_table>> {
        let pinned = locked.pin().map_err(interrupted)?;
        let table = pinned.map(direction).map_err(interrupted)?;

        // Still under the lock: what the exporter says from now on is meant for us.
        locked.0.claim.mapped();
        Ok(table.keep())
    }
}

// SAFETY: By the type invariants the dma-buf is mapped for the device in that direction, and exporters
// may not change the table while it is. What is accounted is so by the type invariants of `LockedMemory`.
unsafe impl Source for Mapping {
    type Backing = ();

    fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        // SAFETY: By the type invariants the table is valid for as long as `self`, and exporters
        // may not change it while it is mapped.
        let table = unsafe { SGTable::from_raw(self.sgt.as_ptr()) };

        table.iter().map(|entry| Segment {
            addr: entry.dma_address(),
            len: entry.dma_len(),
        })
    }

    fn size(&self) -> u64 {
        self.attachment.buf.size()
    }

    fn device(&self) -> Option<&Device> {
        Some(&self.dev)
    }

    fn direction(&self) -> Direction {
        self.direction
    }

    /// Who wants to read the memory has the dma-buf.
    fn backing(&self) {}

    fn claim(&self) -> Option<&Claim> {
        Some(&self.attachment.claim)
    }

    fn take_account(&mut self) -> Option<bindings::ubuf_info_msgzc_mmpin> {
        self.locked.take().map(LockedMemory::into_raw)
    }

    /// Exporters that know nothing of peers do not say that it does not.
    fn is_peer_to_peer(&self) -> Option<bool> {
        Some(self.attachment.is_peer_to_peer())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let locked = self.attachment.lock();

        // SAFETY: By the type invariants it was kept from this attachment, and this is its one and only end. The
        // attachment is still there: fields are dropped after this.
        drop(unsafe { Table::kept(&locked, self.sgt, self.direction) });
        self.attachment.claim.unmapped();
    }
}

/// A dma-buf that is mapped for no device: its memory is read on this machine, or not at all.
///
/// So it can be any exporter's, and nobody takes it back.
pub(crate) struct Unmapped {
    buf: DmaBuf,
    /// To whom it is accounted, if that is not left to a binding. Dropped last.
    locked: Option<LockedMemory>,
}

impl Unmapped {
    /// Keeps `buf`, which is accounted as what is mapped to be sent from.
    pub(crate) fn new(buf: DmaBuf, locked: LockedMemory) -> Result<Self, MapError> {
        if buf.size() > locked.size() {
            return Err(MapError::Unaccounted);
        }
        if !buf.allows(Direction::ToDevice) {
            return Err(MapError::WriteOnly);
        }
        Ok(Self {
            buf,
            locked: Some(locked),
        })
    }

    /// The dma-buf, which this keeps.
    pub(super) fn as_ptr(&self) -> NonNull<bindings::dma_buf> {
        self.buf.0
    }
}

// SAFETY: It is not mapped, and no device is named. What is accounted is so by the type invariants of `LockedMemory`.
unsafe impl Source for Unmapped {
    type Backing = ();

    /// Offsets: there are no addresses.
    fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        core::iter::once(Segment {
            addr: 0,
            len: self.size(),
        })
    }

    fn size(&self) -> u64 {
        self.buf.size()
    }

    fn device(&self) -> Option<&Device> {
        None
    }

    fn direction(&self) -> Direction {
        Direction::ToDevice
    }

    fn backing(&self) {}

    fn take_account(&mut self) -> Option<bindings::ubuf_info_msgzc_mmpin> {
        self.locked.take().map(LockedMemory::into_raw)
    }
}

fn non_null<T>(ptr: *mut T) -> Result<NonNull<T>> {
    NonNull::new(from_err_ptr(ptr)?).ok_or(ENOMEM)
}
