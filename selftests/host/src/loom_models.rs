// SPDX-License-Identifier: GPL-2.0

//! Models of what the core does in C (`net/core/devmem_core.c`): not its code, but its order of
//! things. RCU is a lock that readers share, and a reference count an atomic number. What the module does in them is
//! its own code where that is plain logic.
//!
//! Each is gone through with one of its steps left out, too, and has to fail then.

use std::collections::BTreeSet;

use loom::{
    sync::{
        atomic::{
            AtomicBool, AtomicIsize, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
        Arc, Mutex, RwLock,
    },
    thread,
};

use crate::{
    loom_tests::explore,
    sys::{
        free_list::{Batch, FreeList},
        share::Account,
        waiters::{Asker, Free, Waiters},
        wrapper,
    },
};

/// What went wrong in any interleaving. Told at the end: loom does not survive panics of threads.
#[derive(Clone, Default)]
struct Faults(std::sync::Arc<std::sync::Mutex<BTreeSet<&'static str>>>);

impl Faults {
    fn unless(&self, sound: bool, fault: &'static str) {
        if !sound {
            self.0.lock().unwrap().insert(fault);
        }
    }
}

/// What goes wrong in `model`.
fn faults(model: impl Fn(&Faults) + Sync + Send + 'static) -> Vec<&'static str> {
    let faults = Faults::default();
    let found = faults.clone();

    explore(move || model(&found));
    let faults = faults.0.lock().unwrap();
    faults.iter().copied().collect()
}

/// `rcu_read_lock()` and `synchronize_rcu()`.
struct Rcu(RwLock<()>);

impl Rcu {
    fn new() -> Self {
        Self(RwLock::new(()))
    }

    fn read<T>(&self, section: impl FnOnce() -> T) -> T {
        let _guard = self.0.read().unwrap();
        section()
    }

    fn synchronize(&self) {
        drop(self.0.write().unwrap());
    }
}

/// `percpu_ref`, and the reference count of a module.
struct Ref(AtomicIsize);

impl Ref {
    fn new(count: isize) -> Self {
        Self(AtomicIsize::new(count))
    }

    fn tryget(&self) -> bool {
        self.0
            .fetch_update(AcqRel, Acquire, |count| (count != 0).then_some(count + 1))
            .is_ok()
    }

    /// True if it was the last one.
    fn put(&self) -> bool {
        self.0.fetch_sub(1, AcqRel) == 1
    }
}

/// A module. Its owner's reference is the one that unloading takes.
struct Module {
    faults: Faults,
    references: Ref,
    gone: AtomicBool,
}

impl Module {
    fn new(faults: &Faults) -> Self {
        Self {
            faults: faults.clone(),
            references: Ref::new(1),
            gone: AtomicBool::new(false),
        }
    }

    /// Whatever is in the module: code, or data as its ops.
    fn touch(&self) {
        self.faults
            .unless(!self.gone.load(Acquire), "the module is gone");
    }

    /// The first step of `rmmod`: fails if the module is in use.
    fn stop(&self) -> bool {
        self.references
            .0
            .compare_exchange(1, 0, AcqRel, Acquire)
            .is_ok()
    }

    fn go(&self) {
        self.gone.store(true, Release);
    }
}

/// Steps that can be left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LeftOut {
    Nothing,
    GracePeriod,
    ReferenceToModule,
    ReferenceOfPool,
    LockToLookWhoWants,
    SecondLook,
}

/// `net_devmem_provider_get()` and `net_devmem_unregister()`.
fn provider(left_out: LeftOut, faults: &Faults) {
    struct Core {
        rcu: Rcu,
        module_is_current: AtomicBool,
        module: Module,
    }

    let core = Arc::new(Core {
        rcu: Rcu::new(),
        module_is_current: AtomicBool::new(true),
        module: Module::new(faults),
    });
    let request = {
        let core = core.clone();
        thread::spawn(move || {
            let got = core.rcu.read(|| {
                core.module_is_current.load(Acquire) && {
                    core.module.touch();
                    left_out == LeftOut::ReferenceToModule || core.module.references.tryget()
                }
            });
            if got {
                // bind_rx() of the module.
                core.module.touch();
                if left_out != LeftOut::ReferenceToModule {
                    core.module.references.put();
                }
            }
        })
    };

    if core.module.stop() {
        core.module_is_current.store(false, Release);
        if left_out != LeftOut::GracePeriod {
            core.rcu.synchronize();
        }
        core.module.go();
    }
    request.join().unwrap();
}

#[test]
fn a_provider_is_there_while_it_serves() {
    let faults = |left_out| faults(move |faults| provider(left_out, faults));

    assert_eq!(faults(LeftOut::Nothing), [""; 0]);
    assert_eq!(faults(LeftOut::GracePeriod), ["the module is gone"]);
    assert_eq!(faults(LeftOut::ReferenceToModule), ["the module is gone"]);
}

/// A binding: references of its owner and of one page pool, which has one net_iov out.
struct Binding {
    faults: Faults,
    rcu: Rcu,
    published: AtomicBool,
    references: Ref,
    niovs_out: AtomicIsize,
    freed: AtomicUsize,
    module: Module,
}

impl Binding {
    fn touch(&self) {
        self.faults
            .unless(self.freed.load(Acquire) == 0, "the binding is freed");
    }

    /// `net_devmem_binding_put()`, and the work that the last one schedules: at the earliest time.
    fn put(&self) {
        if self.references.put() {
            self.module.touch();
            let unused = self.niovs_out.load(Relaxed) == 0;
            self.faults.unless(unused, "freed with net_iovs out");
            self.freed.fetch_add(1, AcqRel);
            self.module.references.put();
        }
    }

    /// `net_devmem_unbind()`.
    fn unbind(&self, left_out: LeftOut) {
        self.published.store(false, Release);
        if left_out != LeftOut::GracePeriod {
            self.rcu.synchronize();
        }
        self.put();
    }

    /// `net_devmem_lookup()` of `sendmsg()`, and what it does with the binding.
    fn sendmsg(&self) {
        let got = self.rcu.read(|| {
            self.published.load(Acquire) && {
                self.touch();
                self.references.tryget()
            }
        });
        if got {
            self.touch();
            self.module.touch();
            self.put();
        }
    }

    /// The last net_iov comes back to its page pool, which lets the binding go.
    fn release_netmem(&self, left_out: LeftOut) {
        self.touch();
        self.module.touch();
        self.niovs_out.fetch_sub(1, Relaxed);
        if left_out != LeftOut::ReferenceOfPool {
            self.put();
        }
    }
}

/// A process goes while another one sends, a page pool is still busy, and somebody tries `rmmod`.
fn binding(left_out: LeftOut, faults: &Faults) {
    let pools = isize::from(left_out != LeftOut::ReferenceOfPool);
    let binding = Arc::new(Binding {
        faults: faults.clone(),
        rcu: Rcu::new(),
        published: AtomicBool::new(true),
        references: Ref::new(1 + pools),
        niovs_out: AtomicIsize::new(1),
        freed: AtomicUsize::new(0),
        module: Module::new(faults),
    });
    if left_out != LeftOut::ReferenceToModule {
        assert!(binding.module.references.tryget());
    }

    let threads = [
        {
            let binding = binding.clone();
            thread::spawn(move || binding.sendmsg())
        },
        {
            let binding = binding.clone();
            thread::spawn(move || binding.release_netmem(left_out))
        },
    ];
    binding.unbind(left_out);
    if binding.module.stop() {
        binding.module.go();
    }
    for thread in threads {
        thread.join().unwrap();
    }
    let freed = binding.freed.load(Acquire);
    faults.unless(freed == 1, "not freed once");
}

#[test]
fn a_binding_is_freed_once_and_last() {
    let faults = |left_out| faults(move |faults| binding(left_out, faults));

    assert_eq!(faults(LeftOut::Nothing), [""; 0]);
    assert!(faults(LeftOut::GracePeriod).contains(&"the binding is freed"));
    assert!(faults(LeftOut::ReferenceOfPool).contains(&"freed with net_iovs out"));
    assert!(faults(LeftOut::ReferenceToModule).contains(&"the module is gone"));
}

/// A page pool whose queue has one buffer, which comes back while it asks its provider for one. Another queue has all
/// others. What the provider does is the module's own code.
struct Pool {
    /// `page_pool.mp_wants_back`.
    wants_back: AtomicBool,
    producer: Mutex<()>,
    /// The buffer, if it is in the ring. Written with the lock by who fills it, and by who empties it without.
    ring: AtomicUsize,
    free: Mutex<Provider>,
    /// Its NAPI.
    napi: Napi,
}

type Provider = Free<Vec<u32>, Vec<Account>, Vec<Waiters<Napi>>>;

/// How often one was scheduled. Nothing that loom has to know of.
#[derive(Clone, Default)]
struct Napi(std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl PartialEq for Napi {
    fn eq(&self, other: &Self) -> bool {
        std::sync::Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Asker for Napi {
    fn poll(&self) -> bool {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        true
    }
}

impl Pool {
    const EMPTY: usize = usize::MAX;

    /// What the queue has is all of its share, or half of it. Returns which buffer that is, too.
    fn new(has_its_share: bool) -> (Self, u32) {
        let buffers = if has_its_share { 2 } else { 4 };
        let list = FreeList::full(vec![0; buffers], vec![Account::default(); 2]);
        let this = Self {
            wants_back: AtomicBool::new(false),
            producer: Mutex::new(()),
            ring: AtomicUsize::new(Self::EMPTY),
            free: Mutex::new(Free::new(list, vec![Waiters::new(), Waiters::new()])),
            napi: Napi::default(),
        };
        let buffer = this.alloc_netmems(0).unwrap();

        while this.free.lock().unwrap().list().in_use() < buffers {
            this.alloc_netmems(1).unwrap();
        }
        (this, buffer)
    }

    /// `RxBuffers::with_free()`.
    fn with_free(&self, queue: usize, change: impl FnOnce(&mut Provider)) {
        let mut free = self.free.lock().unwrap();

        change(&mut free);
        if queue == 0 {
            self.wants_back.store(free.list().gives_back(0), Relaxed);
        }
        if free.has_waiting() {
            let _ = free.wake(|| 0, |_, _| ());
        }
    }

    /// The provider's `alloc_netmems()`.
    fn alloc_netmems(&self, queue: usize) -> Option<u32> {
        let mut batch = Batch::new();

        self.with_free(queue, |free| {
            let _ = free.take(&mut batch, 1, Some(queue), self.napi.clone(), || 0);
        });
        batch.take_raw().first().copied()
    }

    /// `page_pool_recycle_in_ring()`, and the provider's `release_netmem()`.
    fn put(&self, buffer: u32, left_out: LeftOut) {
        let before = self.wants_back.load(Relaxed);
        let producer = self.producer.lock().unwrap();
        let wants_back = match left_out {
            LeftOut::LockToLookWhoWants => before,
            _ => self.wants_back.load(Relaxed),
        };
        if !wants_back {
            self.ring.store(buffer as usize, Release);
        }
        drop(producer);

        if wants_back {
            self.with_free(0, |free| {
                let _ = free.put([wrapper::came_back(buffer)], Some(0), || 0);
            });
        }
    }

    /// `page_pool_refill_alloc_cache()`.
    fn take_from_ring(&self) -> bool {
        let is_there = self.ring.load(Acquire) != Self::EMPTY;
        if is_there {
            self.ring.store(Self::EMPTY, Relaxed);
        }
        is_there
    }

    /// `page_pool_alloc_netmems()`, and `page_pool_alloc_from_provider()`.
    fn take(&self, left_out: LeftOut) -> bool {
        if self.take_from_ring() || self.alloc_netmems(0).is_some() {
            return true;
        }
        self.wants_back.load(Relaxed) && left_out != LeftOut::SecondLook && {
            drop(self.producer.lock().unwrap());
            self.take_from_ring()
        }
    }
}

fn pool(left_out: LeftOut, has_its_share: bool, faults: &Faults) {
    let (pool, buffer) = Pool::new(has_its_share);
    let pool = Arc::new(pool);
    let reader = {
        let pool = pool.clone();
        thread::spawn(move || pool.put(buffer, left_out))
    };
    let got = pool.take(left_out);

    reader.join().unwrap();
    let polls = pool.napi.0.load(std::sync::atomic::Ordering::Relaxed);
    faults.unless(got || polls == 1, "left behind in the ring");
}

#[test]
fn who_asked_in_vain_is_told_or_looks_again() {
    let faults = |left_out| faults(move |faults| pool(left_out, false, faults));

    assert_eq!(faults(LeftOut::Nothing), [""; 0]);
    assert_eq!(
        faults(LeftOut::LockToLookWhoWants),
        ["left behind in the ring"]
    );
    assert_eq!(faults(LeftOut::SecondLook), ["left behind in the ring"]);
}

/// It is for its own readers to give something back, of which nobody tells it: see `rx-empty` of the driver guide.
#[test]
fn who_has_its_share_is_not_told() {
    let found = faults(|faults| pool(LeftOut::Nothing, true, faults));

    assert_eq!(found, ["left behind in the ring"]);
}
