// SPDX-License-Identifier: GPL-2.0

//! The memory of a binding: a source, its net_iovs, and which of them are free.
//!
//! All of it is made of the source here, and belongs to the binding alone: no DMA address and no
//! index comes from anywhere else.

use core::{
    mem::size_of,
    ptr::NonNull, //
};

use kernel::{
    alloc::{
        flags::{
            __GFP_NOWARN,
            GFP_KERNEL_ACCOUNT, //
        },
        AllocError,
        Flags, //
    },
    device::{
        Bound,
        Device, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    static_assert,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_mutex,
        Mutex, //
    }, //
};

use super::{
    area::{
        Layout,
        LayoutError,
        Segment, //
    },
    bindings,
    claim::{
        Owner,
        TakenBack, //
    },
    dma_buf::Unmapped,
    extent::{
        self,
        ExtentMap,
        Place, //
    },
    free_list::{
        Batch,
        FreeIov,
        FreeList,
        Supply, //
    },
    net_device::{
        LocalDevice,
        LockedNetDevice,
        TxDevice, //
    },
    netmem::{
        netmem_to_net_iov,
        NetIovArea, //
    },
    page_pool::{
        self,
        refill,
        NewPagePool,
        Waiting, //
    },
    share::{
        probe,
        Account, //
    },
    source::{
        CpuSource,
        Direction,
        Source, //
    },
    spinlock_bh::{
        new_spinlock_bh,
        SpinLockBh, //
    },
    waiters::{
        self,
        Waiters, //
    }, //
};

/// For what grows with the memory: that there may be too much of it is no bug in here.
fn may_fail() -> Flags {
    GFP_KERNEL_ACCOUNT | __GFP_NOWARN
}

/// Why there is no memory for a binding.
pub(crate) enum MemoryError {
    /// Net_iovs cannot have that size.
    BufferSize,
    /// The source has less memory when it is asked for the second time.
    Changed,
    /// The source is mapped for the other direction.
    Direction,
    /// The segments of the source do not make net_iovs.
    Layout(LayoutError),
    /// There is no memory to describe it.
    NoMemory,
}

impl From<LayoutError> for MemoryError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error)
    }
}

impl From<AllocError> for MemoryError {
    fn from(_: AllocError) -> Self {
        Self::NoMemory
    }
}

impl From<MemoryError> for Error {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::NoMemory => ENOMEM,
            _ => EINVAL,
        }
    }
}

/// How many net_iovs a binding has, how many of them are not free, and what was done with them so far.
pub(crate) struct Stats {
    /// All of them.
    pub(crate) buffers: usize,
    /// Those that somebody has: page pools, devices, the stack, users.
    pub(crate) in_use: usize,
    /// What was handed out to be received into, if it is for that. Times are in nanoseconds.
    pub(crate) supply: Option<Supply>,
    /// How many bytes were appended to packets, if it is to be sent from.
    pub(crate) sent: Option<u64>,
}

/// What time it is, in nanoseconds, for what takes how long. Any context.
fn now() -> u64 {
    // SAFETY: May be called in any context. CAST: The time since boot is positive.
    unsafe { bindings::ktime_get() as u64 }
}

/// What a binding of either direction has.
pub(crate) trait Memory: Sized + Send + Sync + 'static {
    /// Where it comes from.
    type Source: Source;

    /// The locked device that a binding is made for.
    type Device<'a>;

    /// Which way the DMA goes.
    const DIRECTION: Direction;

    /// The net_iovs.
    fn area(&self) -> &NetIovArea;

    /// The source, as long as it is mapped.
    fn mapped(&self) -> &Mapped<Self::Source>;

    /// log2 of the size of a buffer, in bytes.
    fn niov_shift(&self) -> u32;

    /// Tells the state of the buffers.
    fn stats(&self) -> Stats;

    /// The dma-buf, if it is one that is mapped for no device. It is there until that of
    /// [`mapped`](Self::mapped) is unmapped.
    fn local(&self) -> Option<NonNull<bindings::dma_buf>> {
        None
    }
}

/// A source, which is dropped as soon as no device uses it any more, and what is left of it then.
#[pin_data]
pub(crate) struct Mapped<S: Source> {
    backing: S::Backing,
    #[pin]
    source: Mutex<Option<S>>,
}

impl<S: Source> Mapped<S> {
    fn new(source: S) -> impl PinInit<Self> {
        pin_init!(Self {
            backing: source.backing(),
            source <- new_mutex!(Some(source), "devmem_mapping"),
        })
    }

    /// The device that the memory is mapped for, as long as it is.
    pub(super) fn device(&self) -> Option<ARef<Device>> {
        self.with(|source| source.device().map(ARef::from))
            .flatten()
    }

    /// Whether the memory is mapped for `dev`.
    pub(super) fn is_for(&self, dev: &Device<Bound>) -> bool {
        self.with(|source| source.is_for(dev)).unwrap_or(false)
    }

    /// What the memory is accounted as, see [`Source::take_account`].
    pub(super) fn take_account(&self) -> Option<bindings::ubuf_info_msgzc_mmpin> {
        Option::as_mut(&mut self.source.lock())?.take_account()
    }

    /// Whether the device reaches the memory where that is, if it is still mapped, and somebody knows.
    pub(super) fn is_peer_to_peer(&self) -> Option<bool> {
        self.with(S::is_peer_to_peer).flatten()
    }

    /// From now on `owner` is revoked if the memory is taken back, if there is somebody who may.
    pub(super) fn set_owner(&self, owner: Owner) -> Result<(), TakenBack> {
        let set = |source: &S| {
            source
                .claim()
                .map_or(Ok(()), |claim| claim.set_owner(owner))
        };

        self.with(set).unwrap_or(Ok(()))
    }

    /// Undoes the mapping, if that has not been done. Can sleep.
    pub(super) fn unmap(&self) {
        // A statement of its own: the lock is not to be held meanwhile.
        let source = self.source.lock().take();

        drop(source);
    }

    fn with<R>(&self, look: impl FnOnce(&S) -> R) -> Option<R> {
        self.source.lock().as_ref().map(look)
    }
}

/// What is free of a binding, and who waits for it.
type Free = waiters::Free<KVVec<u32>, KVec<Account>, KVec<Waiters<Waiting>>>;

/// A queue that shares buffers with others: its account has the same index. Written with the lock of the free list
/// held, and read for each buffer that comes back: the queues' neighbours are not to share a cache line with them.
#[repr(align(64))]
struct Sharer {
    /// Which queue of its device. Once it is known, it stays so: what page pools took they give back to the same
    /// account, however late.
    queue: Atomic<u32>,
    /// Whether its page pools are to keep nothing of what comes back. They look at it here.
    gives_back: Atomic<bool>,
}

impl Sharer {
    /// No device has as many queues.
    const NOBODY: u32 = u32::MAX;
}

/// Buffers that are received into: net_iovs of one size, and which of them are free.
#[pin_data]
pub(crate) struct RxBuffers {
    #[pin]
    free: SpinLockBh<Free>,
    /// None if there is one queue.
    sharers: KVec<Sharer>,
    area: NetIovArea,
    niov_shift: u32,
}

impl RxBuffers {
    /// The account of the queue that a page pool is for, if it has one: that of the sharer whose flag it looks at.
    ///
    /// # Safety
    ///
    /// `pool` has to be valid.
    #[inline]
    unsafe fn account(&self, pool: NonNull<bindings::page_pool>) -> Option<usize> {
        let first = self.sharers.first()?.gives_back.as_ptr();
        // SAFETY: By the requirements of this function.
        let flag = unsafe { page_pool::wants_back(pool) };
        // Without one it is far beyond the last.
        let account = flag.addr().wrapping_sub(first.addr()) / size_of::<Sharer>();

        (account < self.sharers.len()).then_some(account)
    }

    /// The first account that is `of` somebody, where that of `queue` is looked for.
    fn account_of(&self, queue: u32, of: u32) -> Option<usize> {
        let is_of = |&index: &usize| {
            let sharer = self.sharers.get(index);
            sharer.is_some_and(|sharer| sharer.queue.load(Relaxed) == of)
        };

        probe(queue, self.sharers.len()).find(is_of)
    }

    /// A page pool is made of these buffers.
    ///
    /// # Safety
    ///
    /// The pool has to hold the binding, and [`Self::pool_goes`] has to be called before it is freed. These buffers
    /// have to be there until its `->destroy()`.
    pub(super) unsafe fn pool_comes(&self, pool: &mut NewPagePool) {
        if self.sharers.is_empty() {
            return;
        }
        let account = self.account_to_be(pool.queue());

        if let Some(sharer) = account.and_then(|account| self.sharers.get(account)) {
            // SAFETY: By the requirements of this function. The sharers stay where they are as long as the buffers
            // are there.
            unsafe { pool.set_wants_back(&sharer.gives_back) };
        }
        self.with_free(account, |free, account| {
            free.starts(account);
            false
        });
    }

    /// The account of a queue. The first time it gets one that nobody has.
    fn account_to_be(&self, queue: u32) -> Option<usize> {
        let _free = self.free.lock();

        self.account_of(queue, queue).or_else(|| {
            let account = self.account_of(queue, Sharer::NOBODY)?;
            self.sharers.get(account)?.queue.store(queue, Relaxed);
            Some(account)
        })
    }

    /// A page pool of these buffers is about to be freed. It has none of them.
    ///
    /// # Safety
    ///
    /// `pool` has to be valid, and to hold the binding still.
    pub(super) unsafe fn pool_goes(&self, pool: NonNull<bindings::page_pool>) {
        // SAFETY: By the requirements of this function.
        let Some(account) = (unsafe { self.account(pool) }) else {
            return;
        };

        self.with_free(Some(account), |free, _| {
            free.stops(account, |known| known.is(pool), now)
        });
    }

    /// Does something with the free list for the queue with `account`, under the lock. `change` returns whether
    /// somebody may want to know.
    ///
    /// Only on behalf of a page pool that is made of these buffers, by which it holds the binding.
    #[inline]
    fn with_free(
        &self,
        account: Option<usize>,
        change: impl FnOnce(&mut Free, Option<usize>) -> bool,
    ) {
        let mut free = self.free.lock();
        let mut changed = change(&mut free, account);

        if let Some(account) = account {
            self.tell_pools(account, free.list().gives_back(account));
        }
        if free.has_waiting() {
            changed |= free.wake(now, |account, gives_back| {
                self.tell_pools(account, gives_back)
            });
        }
        drop(free);
        if changed {
            self.supply_changed();
        }
    }

    /// Has the page pools of the queue with `account` keep what comes back, or not. The free list is locked.
    #[inline]
    fn tell_pools(&self, account: usize, gives_back: bool) {
        if let Some(sharer) = self.sharers.get(account) {
            // It seldom changes, and is often looked at elsewhere.
            if sharer.gives_back.load(Relaxed) != gives_back {
                sharer.gives_back.store(gives_back, Relaxed);
            }
        }
    }

    /// log2 of the size of a buffer, in bytes.
    pub(super) fn niov_shift(&self) -> u32 {
        self.niov_shift
    }

    /// Takes what `pool` may have, which has `account`.
    ///
    /// # Safety
    ///
    /// `pool` has to be valid until [`Self::pool_goes`].
    #[inline]
    unsafe fn take(
        &self,
        pool: NonNull<bindings::page_pool>,
        account: Option<usize>,
        batch: &mut Batch,
        most: usize,
    ) {
        // SAFETY: By the requirements of this function. It asks.
        let pool = unsafe { Waiting::new(pool) };

        self.with_free(account, |free, account| {
            free.take(batch, most, account, pool, now)
        });
    }

    /// How many buffers a page pool may have now, besides those that it has, and keep for a while. Not in hard
    /// interrupts.
    ///
    /// # Safety
    ///
    /// `pool` has to be valid.
    pub(super) unsafe fn count_free(&self, pool: NonNull<bindings::page_pool>) -> usize {
        // SAFETY: By the requirements of this function.
        let account = unsafe { self.account(pool) };

        self.free.lock().list().lasting_room(account)
    }

    #[inline]
    fn put(&self, iovs: impl Iovs, account: Option<usize>) {
        self.with_free(account, |free, account| free.put(iovs, account, now));
    }

    /// Has those told who want to know that there is no buffer left, or that there are some again. As
    /// [`Self::with_free`] only on behalf of a page pool.
    #[cold]
    fn supply_changed(&self) {
        // SAFETY: Page pools are made for bindings that were published, and this one holds its binding.
        unsafe { bindings::net_devmem_supply_changed(self.area.binding()) }
    }
}

/// Memory that is received into.
#[pin_data]
pub(crate) struct RxMemory<S: Source> {
    #[pin]
    pub(super) buffers: RxBuffers,
    /// Until no device can write to it any more: that is when it is off its queues, if not before.
    #[pin]
    mapped: Mapped<S>,
}

impl<S: Source> RxMemory<S> {
    /// Cuts memory that a device writes to into net_iovs of `1 << niov_shift` bytes, all of them free.
    ///
    /// `BufferSize` if that is less than a page, or 4 GiB and more: a frag tells its place in a net_iov in 32
    /// bits. `NoMemory` if there is none for net_iovs and free list: 68 bytes for each net_iov, charged to
    /// the current task's memory cgroup.
    ///
    /// `queues` is how many queues are to share the net_iovs. Each has its share kept for it, but for those that
    /// are more than that.
    pub(crate) fn new(
        source: S,
        niov_shift: u32,
        queues: usize,
    ) -> Result<impl PinInit<Self, Error>, MemoryError> {
        if source.direction() != Self::DIRECTION {
            return Err(MemoryError::Direction);
        }
        if !(PAGE_SHIFT as u32..u32::BITS).contains(&niov_shift) {
            return Err(MemoryError::BufferSize);
        }
        let layout = Layout::of(source.segments(), niov_shift)?;
        let niovs = layout.niovs();
        let area = NetIovArea::new(niovs, layout.addresses(source.segments()))?;
        // The free list hands out indices, which have to be there.
        if area.len() != niovs {
            return Err(MemoryError::Changed);
        }
        let sharing = if queues < 2 { 0 } else { queues };
        let mut waiters = KVec::with_capacity(sharing, GFP_KERNEL_ACCOUNT)?;
        let mut sharers = KVec::with_capacity(sharing, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..sharing {
            let sharer = Sharer {
                queue: Atomic::new(Sharer::NOBODY),
                gives_back: Atomic::new(false),
            };
            waiters
                .push_within_capacity(Waiters::new())
                .map_err(|_| AllocError)?;
            sharers
                .push_within_capacity(sharer)
                .map_err(|_| AllocError)?;
        }
        let list = FreeList::full(
            KVVec::from_elem(0, niovs, may_fail())?,
            KVec::from_elem(Account::default(), sharing, GFP_KERNEL_ACCOUNT)?,
        );
        let free = Free::new(list, waiters);

        let buffers = pin_init!(RxBuffers {
            free <- new_spinlock_bh!(free, "devmem_free_list"),
            sharers,
            area,
            niov_shift,
        });
        Ok(try_pin_init!(Self {
            buffers <- buffers,
            mapped <- Mapped::new(source),
        }? Error))
    }
}

impl<S: CpuSource> RxMemory<S> {
    /// Has the CPU look at `len` bytes from `offset` on in the net_iov with index `index`. None if they
    /// are not in the memory.
    ///
    /// They are readable for `look`, and may change meanwhile. Process context, can sleep.
    pub(super) fn look_at<R>(
        &self,
        index: usize,
        offset: u64,
        len: u64,
        look: impl FnOnce(*const u8) -> R,
    ) -> Option<R> {
        if offset.checked_add(len)? > 1 << self.buffers.niov_shift {
            return None;
        }
        let address = self.buffers.area.address(index)?;
        let start = (index as u64) << self.buffers.niov_shift;
        let bytes = S::bytes(&self.mapped.backing, start + offset, len)?;
        let segment = Segment {
            addr: address + offset,
            len,
        };

        // The lock is not held while somebody looks, who may wait for user space as long as that likes. If
        // the mapping is undone, the bytes are the CPU's for good.
        // SAFETY: A net_iov is in one segment, and the bytes are in that net_iov.
        self.mapped
            .with(|source| unsafe { source.sync_for_cpu(segment) });
        let result = look(bytes);
        // SAFETY: As above.
        self.mapped
            .with(|source| unsafe { source.sync_for_device(segment) });
        Some(result)
    }
}

impl<S: Source> Memory for RxMemory<S> {
    type Source = S;
    type Device<'a> = LockedNetDevice<'a>;

    const DIRECTION: Direction = Direction::FromDevice;

    fn area(&self) -> &NetIovArea {
        &self.buffers.area
    }

    fn mapped(&self) -> &Mapped<S> {
        &self.mapped
    }

    fn niov_shift(&self) -> u32 {
        self.buffers.niov_shift
    }

    fn stats(&self) -> Stats {
        let free = self.buffers.free.lock();
        let free = free.list();

        Stats {
            buffers: free.capacity(),
            in_use: free.in_use(),
            supply: Some(free.supply(now)),
            sent: None,
        }
    }
}

/// What a page pool that has run dry gets.
///
/// # Invariants
///
/// `pool` is in its `->alloc_netmems()`, its provider is the binding of `buffers`, and `account` its account.
/// [`RxBuffers::pool_goes`] is called before it is freed.
#[must_use = "a page pool that gets nothing drops packets"]
pub(crate) struct Refill<'a> {
    buffers: &'a RxBuffers,
    pool: NonNull<bindings::page_pool>,
    account: Option<usize>,
    /// Empty.
    batch: &'a mut Batch,
}

impl Refill<'_> {
    /// Gives it free buffers: one at least if there is any that its queue may have, up to `most`, and not more than
    /// a fair share.
    #[inline]
    pub(crate) fn take_free(self, most: usize) {
        // SAFETY: By the type invariants: `pool_goes` is called before it is freed.
        unsafe { self.buffers.take(self.pool, self.account, self.batch, most) };
    }
}

impl RxBuffers {
    /// Gives a page pool the buffers that `take` takes. Returns what `->alloc_netmems()` has to return.
    ///
    /// # Safety
    ///
    /// `pool` has to be valid and in its `->alloc_netmems()`, and its provider the binding of the buffers.
    /// [`Self::pool_goes`] has to be called before it is freed.
    #[inline]
    pub(super) unsafe fn refill(
        &self,
        pool: NonNull<bindings::page_pool>,
        take: impl FnOnce(Refill<'_>),
    ) -> bindings::netmem_ref {
        let mut batch = Batch::new();

        // INVARIANT: By the requirements of this function.
        take(Refill {
            buffers: self,
            pool,
            // SAFETY: By the requirements of this function.
            account: unsafe { self.account(pool) },
            batch: &mut batch,
        });
        // SAFETY: By the requirements of this function. What is in the batch was on the free list: nobody but
        // a `Refill` has put something in.
        unsafe { refill(pool, &self.area, &mut batch) }
    }
}

/// Buffers on their way back, one after the other. Only the wrappers have some.
pub(crate) trait Iovs: Iterator<Item = FreeIov> {}

impl<I: Iterator<Item = FreeIov>> Iovs for I {}

/// Buffers that a page pool gave up.
///
/// # Invariants
///
/// `iovs` are of `buffers`, and were taken by the queue with `account`.
#[must_use = "dropping it loses the buffers until the binding is freed"]
pub(crate) struct Returned<'a, I> {
    buffers: &'a RxBuffers,
    account: Option<usize>,
    iovs: I,
}

impl<'a, I: Iovs> Returned<'a, I> {
    /// Puts them on the free list.
    #[inline]
    pub(crate) fn put(self) {
        self.buffers.put(self.iovs, self.account);
    }
}

impl RxBuffers {
    /// A buffer that a page pool gave up.
    ///
    /// # Safety
    ///
    /// `pool` has to be valid. `niov` has to be one of these buffers, which that had from a [`Refill`]. Whoever had
    /// it gives it up.
    #[inline]
    pub(super) unsafe fn returned(
        &self,
        pool: NonNull<bindings::page_pool>,
        niov: NonNull<bindings::net_iov>,
    ) -> Returned<'_, impl Iovs> {
        // INVARIANT: By the requirements of this function.
        Returned {
            buffers: self,
            // SAFETY: By the requirements of this function.
            account: unsafe { self.account(pool) },
            // SAFETY: By the requirements of this function.
            iovs: core::iter::once(unsafe { self.area.reclaim(niov) }),
        }
    }

    /// Buffers that a page pool gave up.
    ///
    /// # Safety
    ///
    /// As for [`Self::returned`], for all of them.
    #[inline]
    pub(super) unsafe fn all_returned<'a>(
        &'a self,
        pool: NonNull<bindings::page_pool>,
        netmems: &'a [bindings::netmem_ref],
    ) -> Returned<'a, impl Iovs + 'a> {
        let iovs = netmems.iter().filter_map(|&netmem| {
            let niov = netmem_to_net_iov(netmem)?;
            // SAFETY: By the requirements of this function. Nobody asks the iterator twice.
            Some(unsafe { self.area.reclaim(niov) })
        });

        // INVARIANT: By the requirements of this function.
        Returned {
            buffers: self,
            // SAFETY: By the requirements of this function.
            account: unsafe { self.account(pool) },
            iovs,
        }
    }
}

/// Extents that are sent from.
///
/// There is a net_iov for each [extent]. They are never handed out: each frag in flight holds the
/// binding.
///
/// # Invariants
///
/// `area` has a net_iov for each extent of `map`, in their order, which is as long as that.
pub(crate) struct TxExtents {
    map: ExtentMap<KVVec<u64>, KVVec<u32>>,
    area: NetIovArea,
    sent: Atomic<u64>,
}

impl TxExtents {
    /// The extents of a source, and net_iovs for them, whose addresses are what `address` makes of those of the
    /// extents.
    fn of(source: &impl Source, address: fn(u64) -> u64) -> Result<Self, MemoryError> {
        let count = extent::count(source.segments())?;
        let mut ends = KVVec::with_capacity(count, may_fail())?;
        let mut end = 0;
        for extent in extent::extents(source.segments()).take(count) {
            end += extent.len;
            ends.push_within_capacity(end).map_err(|_| AllocError)?;
        }

        let (_, slots) = extent::slots(&ends).ok_or(LayoutError::Empty)?;
        let firsts = KVVec::from_elem(0, slots, may_fail())?;

        let addresses = extent::extents(source.segments()).map(|extent| address(extent.addr));
        let area = NetIovArea::new(count, addresses)?;
        let map = ExtentMap::new(ends, firsts, source.size()).ok_or(LayoutError::TooMany)?;

        // INVARIANT: Both are of the same extents.
        Ok(Self {
            map,
            area,
            sent: Atomic::new(0),
        })
    }

    /// In pages, and none in use: nobody has to bring them back.
    fn stats(&self) -> Stats {
        Stats {
            buffers: self.map.size().div_ceil(PAGE_SIZE as u64) as usize,
            in_use: 0,
            supply: None,
            sent: Some(self.sent.load(Relaxed)),
        }
    }

    /// So many bytes of the memory were appended to a packet.
    pub(super) fn count_sent(&self, bytes: usize) {
        self.sent.add(bytes as u64, Relaxed);
    }

    /// The memory at `offset` bytes into the source, if it is there, and its net_iov.
    #[inline]
    pub(super) fn locate(&self, offset: u64) -> Option<(bindings::netmem_ref, Place)> {
        self.with_netmem(self.map.locate(offset)?)
    }

    /// The memory that follows an extent, if there is more.
    pub(super) fn after(&self, extent: u32) -> Option<(bindings::netmem_ref, Place)> {
        self.with_netmem(self.map.after(extent)?)
    }

    fn with_netmem(&self, place: Place) -> Option<(bindings::netmem_ref, Place)> {
        Some((self.area.netmem(place.extent)?, place))
    }
}

/// Memory that is sent from.
#[pin_data]
pub(crate) struct TxMemory<S: Source> {
    pub(super) extents: TxExtents,
    /// Until no device can read it any more: no frag is left, or the device is gone.
    #[pin]
    mapped: Mapped<S>,
}

impl<S: Source> TxMemory<S> {
    /// Cuts memory that a device reads into extents.
    ///
    /// `NoMemory` if there is none for 76 bytes for each extent, charged to the current task's memory
    /// cgroup.
    pub(crate) fn new(source: S) -> Result<impl PinInit<Self, Error>, MemoryError> {
        if source.direction() != Self::DIRECTION {
            return Err(MemoryError::Direction);
        }
        let extents = TxExtents::of(&source, |address| address)?;

        Ok(try_pin_init!(Self {
            extents,
            mapped <- Mapped::new(source),
        }? Error))
    }
}

impl<S: Source> Memory for TxMemory<S> {
    type Source = S;
    type Device<'a> = TxDevice<'a>;

    const DIRECTION: Direction = Direction::ToDevice;

    fn area(&self) -> &NetIovArea {
        &self.extents.area
    }

    fn mapped(&self) -> &Mapped<S> {
        &self.mapped
    }

    fn niov_shift(&self) -> u32 {
        PAGE_SHIFT as u32
    }

    fn stats(&self) -> Stats {
        self.extents.stats()
    }
}

// Where in the memory a net_iov is goes by its index.
static_assert!(extent::MAX_LEN == 1 << bindings::NET_DEVMEM_LOCAL_SHIFT);

/// Memory that is sent from to readers on this machine, who are told where in the dma-buf it is.
#[pin_data]
pub(crate) struct LocalMemory {
    pub(super) extents: TxExtents,
    /// Until nobody has anything of it any more, or a token for it.
    #[pin]
    buf: Mapped<Unmapped>,
}

impl LocalMemory {
    /// Makes net_iovs for a dma-buf. `NoMemory` if there is none for 76 bytes for each 2 GiB of it, charged to the
    /// current task's memory cgroup.
    pub(crate) fn new(buf: Unmapped) -> Result<impl PinInit<Self, Error>, MemoryError> {
        // No device is told where it is: there is no address that one could be given by mistake.
        let extents = TxExtents::of(&buf, |_| 0)?;

        Ok(try_pin_init!(Self {
            extents,
            buf <- Mapped::new(buf),
        }? Error))
    }
}

impl Memory for LocalMemory {
    type Source = Unmapped;
    type Device<'a> = LocalDevice<'a>;

    const DIRECTION: Direction = Direction::ToDevice;

    fn area(&self) -> &NetIovArea {
        &self.extents.area
    }

    fn mapped(&self) -> &Mapped<Unmapped> {
        &self.buf
    }

    fn niov_shift(&self) -> u32 {
        bindings::NET_DEVMEM_LOCAL_SHIFT
    }

    fn stats(&self) -> Stats {
        self.extents.stats()
    }

    fn local(&self) -> Option<NonNull<bindings::dma_buf>> {
        self.buf.with(Unmapped::as_ptr)
    }
}
