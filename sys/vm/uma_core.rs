//! Zones, kegs and slabs.
//!
//! FreeBSD: sys/vm/uma_core.c, sys/vm/uma_int.h
//! Differs from FreeBSD: slabs are naturally aligned powers of two, so that an item finds an embedded slab header by its
//! address, and off-page headers by a hash of the slab's; one memory domain.

use super::uma::{How, ZoneStats};
use super::uma_cache::{
    BUCKET_MAX, Bucket, Cache, OnCpu, bucket_alloc, bucket_free, bucket_size_for,
};
use super::uma_dbg;
use super::vm_page;
use crate::kern::kern_mutex::{Mutex, MutexGuard, SpinMutex, SpinMutexGuard};
use crate::kern::kern_synch::{self, WChan};
use crate::kern::kern_thread::Pri;
use crate::kern::lock_order::{Leaf, UmaKeg, UmaZone, UmaZones};
use crate::machine;
use crate::machine::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::machine_local;
use crate::param::{MAXCPU, PAGE_SIZE, round_up};
use crate::time::Sbintime;
use alloc::boxed::Box;
use bitflags::bitflags;
use core::mem::size_of;
use core::ptr::{self, NonNull};

bitflags! {
    /// How a zone behaves.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ZoneFlags: u32 {
        /// No buckets: every item comes from the keg.
        const NOBUCKET = 0x1;
    }
}

/// What a zone does to its items. A hook that returns false had no memory.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Called for each allocation.
    pub ctor: Option<fn(NonNull<u8>, How) -> bool>,
    /// Called for each free.
    pub dtor: Option<fn(NonNull<u8>)>,
    /// Called when an item enters the zone; its work stays done while the item is cached.
    pub init: Option<fn(NonNull<u8>, How) -> bool>,
    /// Called when an item leaves the zone.
    pub fini: Option<fn(NonNull<u8>)>,
}

impl Hooks {
    /// None.
    pub const NONE: Self = Self {
        ctor: None,
        dtor: None,
        init: None,
        fini: None,
    };
}

/// How much `reclaim` takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reclaim {
    /// What zones hold in full buckets.
    #[doc(alias = "UMA_RECLAIM_DRAIN")]
    Drain,
    /// Besides, what the CPUs hold: visits each in turn, so it must be called from a thread.
    #[doc(alias = "UMA_RECLAIM_DRAIN_CPU")]
    DrainCpu,
}

/// Most items in a slab.
const SLAB_ITEMS: usize = 512;
/// Most pages in a slab made for the sake of little waste.
const SLAB_PAGES: usize = 16;
/// Chains of the hash of off-page slabs.
const SLAB_HASH: usize = 32;
/// Empty buckets that a zone keeps at hand.
const SPARE_BUCKETS: usize = 8;
/// How long a sleeper waits before it looks again, in case what it needs is freed elsewhere.
const SLEEP_RETRY: Sbintime = Sbintime::from_ms(10);

/// A slab's header, at its end or elsewhere.
struct Slab {
    next: *mut Slab,
    prev: *mut Slab,
    hash_next: *mut Slab,
    mem: NonNull<u8>,
    free_count: u32,
    /// One bit for each free item.
    free: [u64; SLAB_ITEMS / 64],
    /// One bit for each item in a user's hands (debug builds).
    #[cfg(debug_assertions)]
    used: [AtomicU64; SLAB_ITEMS / 64],
}

/// How items lie in slabs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct KegLayout {
    /// Distance between items.
    rsize: usize,
    /// Pages per slab, a power of two.
    pages: usize,
    /// Items per slab.
    items: usize,
    /// Where the header is; `None` if it is not in the slab.
    header_at: Option<usize>,
}

impl KegLayout {
    /// The smallest slab that wastes at most a tenth, with the header inside if possible.
    #[doc(alias = "keg_layout")]
    const fn new(size: usize, align: usize) -> Self {
        let unit = if align < 8 { 8 } else { align };
        let rsize = round_up(size, unit);
        let header = round_up(size_of::<Slab>(), 16);
        let mut pages = 1;
        while pages <= SLAB_PAGES {
            let bytes = pages * PAGE_SIZE;
            if bytes > header {
                let items = min((bytes - header) / rsize, SLAB_ITEMS);
                // With as many items as the bitmap holds, the rest is no waste of layout.
                if items > 0 && (bytes - items * rsize <= bytes / 10 || items == SLAB_ITEMS) {
                    return Self {
                        rsize,
                        pages,
                        items,
                        header_at: Some(bytes - header),
                    };
                }
            }
            pages *= 2;
        }
        let mut pages = round_up(rsize, PAGE_SIZE).next_power_of_two() / PAGE_SIZE;
        if pages < SLAB_PAGES {
            pages = SLAB_PAGES;
        }
        Self {
            rsize,
            pages,
            items: min(pages * PAGE_SIZE / rsize, SLAB_ITEMS),
            header_at: None,
        }
    }

    const fn bytes(&self) -> usize {
        self.pages * PAGE_SIZE
    }
}

const fn min(a: usize, b: usize) -> usize {
    if a < b { a } else { b }
}

/// A doubly linked list of slabs.
struct SlabList(*mut Slab);

impl SlabList {
    /// # Safety
    /// `slab` is live, in no list, and protected by the keg's lock like the list.
    unsafe fn insert(&mut self, slab: *mut Slab) {
        // SAFETY: the promise; what is in the list is live.
        unsafe {
            (*slab).prev = ptr::null_mut();
            (*slab).next = self.0;
            if !self.0.is_null() {
                (*self.0).prev = slab;
            }
        }
        self.0 = slab;
    }

    /// # Safety
    /// `slab` is in this list, protected by the keg's lock.
    unsafe fn remove(&mut self, slab: *mut Slab) {
        // SAFETY: the promise; its neighbours are live.
        unsafe {
            let (next, prev) = ((*slab).next, (*slab).prev);
            if prev.is_null() {
                self.0 = next;
            } else {
                (*prev).next = next;
            }
            if !next.is_null() {
                (*next).prev = prev;
            }
        }
    }
}

/// What the keg's lock protects.
struct KegState {
    /// Some items free.
    partial: SlabList,
    /// All items free.
    free: SlabList,
    /// Slabs with headers elsewhere, by address.
    hash: [*mut Slab; SLAB_HASH],
    slabs: usize,
    /// Items in the hands of zones.
    out: usize,
}

// SAFETY: the pointers lead to slabs that the keg owns.
unsafe impl Send for KegState {}

/// Cuts pages into items.
struct Keg {
    layout: KegLayout,
    state: SpinMutex<KegState, UmaKeg>,
    /// Most items that zones may hold; 0 for no limit.
    max: AtomicUsize,
}

impl Keg {
    const fn new(size: usize, align: usize) -> Self {
        Self {
            layout: KegLayout::new(size, align),
            state: SpinMutex::new(KegState {
                partial: SlabList(ptr::null_mut()),
                free: SlabList(ptr::null_mut()),
                hash: [ptr::null_mut(); SLAB_HASH],
                slabs: 0,
                out: 0,
            }),
            max: AtomicUsize::new(0),
        }
    }

    /// Puts up to `want` items into `bucket`; 0 if there is no memory or the limit is reached.
    #[doc(alias = "zone_import")]
    fn take(&self, want: usize, mut put: impl FnMut(NonNull<u8>)) -> usize {
        loop {
            let mut keg = self.state.lock();
            let want = match self.max.load(Ordering::Relaxed) {
                0 => want,
                max => want.min(max.saturating_sub(keg.out)),
            };
            if want == 0 {
                return 0;
            }
            let taken = self.take_from_slabs(&mut keg, want, &mut put);
            if taken > 0 {
                return taken;
            }
            drop(keg);
            let Some(slab) = self.slab_alloc() else {
                return 0;
            };
            let mut keg = self.state.lock();
            // SAFETY: fresh from `slab_alloc`, ours.
            unsafe { self.slab_insert(&mut keg, slab) };
        }
    }

    fn take_from_slabs(
        &self,
        keg: &mut KegState,
        want: usize,
        put: &mut impl FnMut(NonNull<u8>),
    ) -> usize {
        let mut taken = 0;
        while taken < want {
            let slab = if !keg.partial.0.is_null() {
                keg.partial.0
            } else if !keg.free.0.is_null() {
                let slab = keg.free.0;
                // SAFETY: it is the first of `free`; then it is in no list.
                unsafe {
                    keg.free.remove(slab);
                    keg.partial.insert(slab);
                }
                slab
            } else {
                break;
            };
            // SAFETY: slabs in lists are live and protected by the lock we hold.
            unsafe {
                while taken < want && (*slab).free_count > 0 {
                    put(self.slab_take(slab));
                    taken += 1;
                }
                if (*slab).free_count == 0 {
                    keg.partial.remove(slab);
                }
            }
        }
        keg.out += taken;
        taken
    }

    /// # Safety
    /// `slab` is live, ours by the lock, and has a free item.
    #[doc(alias = "slab_alloc_item")]
    unsafe fn slab_take(&self, slab: *mut Slab) -> NonNull<u8> {
        // SAFETY: the promise; the index of a bit is that of an item in the slab.
        unsafe {
            let word = (*slab)
                .free
                .iter()
                .position(|&bits| bits != 0)
                .unwrap_unchecked();
            let bit = (*slab).free[word].trailing_zeros() as usize;
            (*slab).free[word] &= !(1 << bit);
            (*slab).free_count -= 1;
            (*slab).mem.add((word * 64 + bit) * self.layout.rsize)
        }
    }

    /// Takes items back.
    ///
    /// # Safety
    /// They are this keg's, and nobody uses them any more.
    #[doc(alias = "zone_release")]
    unsafe fn give(&self, items: impl Iterator<Item = NonNull<u8>>) {
        let mut keg = self.state.lock();
        for item in items {
            // SAFETY: the slab of an item of ours is live; the lock protects it and the lists.
            unsafe {
                let (slab, index) = self.slab_of(&keg, item);
                (*slab).free[index / 64] |= 1 << (index % 64);
                (*slab).free_count += 1;
                let count = (*slab).free_count as usize;
                if count > 1 {
                    keg.partial.remove(slab);
                }
                if count == self.layout.items {
                    keg.free.insert(slab);
                } else {
                    keg.partial.insert(slab);
                }
            }
            keg.out -= 1;
        }
    }

    /// The slab that an item lies in, and the item's number there.
    ///
    /// # Safety
    /// `item` is this keg's.
    #[doc(alias = "vtoslab")]
    unsafe fn slab_of(&self, keg: &KegState, item: NonNull<u8>) -> (*mut Slab, usize) {
        let bytes = self.layout.bytes();
        let offset = item.addr().get() & (bytes - 1);
        let index = offset / self.layout.rsize;
        debug_assert_eq!(
            offset % self.layout.rsize,
            0,
            "uma: not the start of an item"
        );
        // SAFETY: slabs are aligned to their size, so that this is the slab's first byte, and the header, if inside, is
        // where the layout says.
        unsafe {
            let mem = item.sub(offset);
            let slab = match self.layout.header_at {
                Some(at) => mem.add(at).as_ptr().cast(),
                None => {
                    let mut slab = keg.hash[Self::hash(mem, bytes)];
                    while (*slab).mem != mem {
                        slab = (*slab).hash_next;
                    }
                    slab
                }
            };
            (slab, index)
        }
    }

    fn hash(mem: NonNull<u8>, slab_bytes: usize) -> usize {
        (mem.addr().get() / slab_bytes) % SLAB_HASH
    }

    /// A slab with all items free, in no list yet.
    #[doc(alias = "keg_alloc_slab")]
    fn slab_alloc(&self) -> Option<*mut Slab> {
        let pages = self.layout.pages;
        let mem = vm_page::alloc_contig(pages, pages).or_else(|| {
            reclaim(Reclaim::Drain);
            vm_page::alloc_contig(pages, pages)
        })?;
        let slab: *mut Slab = match self.layout.header_at {
            // SAFETY: the layout puts it inside, aligned.
            Some(at) => unsafe { mem.add(at).as_ptr().cast() },
            None => match SLAB_ZONE.get().alloc(How::NoWait) {
                Some(header) => header.as_ptr().cast(),
                None => {
                    // SAFETY: just taken, not used.
                    unsafe { vm_page::free_contig(mem, pages) };
                    return None;
                }
            },
        };
        let mut free = [0; SLAB_ITEMS / 64];
        for index in 0..self.layout.items {
            free[index / 64] |= 1 << (index % 64);
        }
        // SAFETY: memory for a header, ours; the items are ours as well.
        unsafe {
            slab.write(Slab {
                next: ptr::null_mut(),
                prev: ptr::null_mut(),
                hash_next: ptr::null_mut(),
                mem,
                free_count: self.layout.items as u32,
                free,
                #[cfg(debug_assertions)]
                used: [const { AtomicU64::new(0) }; SLAB_ITEMS / 64],
            });
            if cfg!(debug_assertions) {
                for index in 0..self.layout.items {
                    uma_dbg::trash(mem.add(index * self.layout.rsize), self.layout.rsize);
                }
            }
        }
        Some(slab)
    }

    /// # Safety
    /// `slab` came from `slab_alloc` of this keg and is in no list.
    unsafe fn slab_insert(&self, keg: &mut KegState, slab: *mut Slab) {
        // SAFETY: the promise, under the lock.
        unsafe {
            keg.free.insert(slab);
            if self.layout.header_at.is_none() {
                let chain = &mut keg.hash[Self::hash((*slab).mem, self.layout.bytes())];
                (*slab).hash_next = *chain;
                *chain = slab;
            }
        }
        keg.slabs += 1;
    }

    /// Gives the pages of free slabs back.
    #[doc(alias = "keg_drain")]
    fn drain(&self) {
        loop {
            let mut keg = self.state.lock();
            let slab = keg.free.0;
            if slab.is_null() {
                return;
            }
            // SAFETY: the first of `free`, so that nobody uses its items; out of list and hash it is ours.
            unsafe {
                keg.free.remove(slab);
                keg.slabs -= 1;
                if self.layout.header_at.is_none() {
                    let mut link: *mut *mut Slab =
                        &mut keg.hash[Self::hash((*slab).mem, self.layout.bytes())];
                    while *link != slab {
                        link = &mut (**link).hash_next;
                    }
                    *link = (*slab).hash_next;
                }
                drop(keg);
                let mem = (*slab).mem;
                if self.layout.header_at.is_none() {
                    SLAB_ZONE.get().free(NonNull::new_unchecked(slab.cast()));
                }
                vm_page::free_contig(mem, self.layout.pages);
            }
        }
    }

    /// Items that lie free in slabs.
    fn free_items(&self) -> usize {
        let keg = self.state.lock();
        keg.slabs * self.layout.items - keg.out
    }
}

/// What the zone's lock protects.
struct ZoneState {
    /// Buckets with items.
    full: *mut Bucket,
    /// Empty buckets.
    spare: *mut Bucket,
    spares: usize,
    /// Items that a new bucket gets; grows when CPUs meet at the lock.
    bucket_size: usize,
    bucket_size_max: usize,
}

// SAFETY: the pointers lead to buckets that the zone owns.
unsafe impl Send for ZoneState {}

/// An allocator for items of one size.
pub struct Zone {
    // Read at every call, hardly ever written.
    name: &'static str,
    size: usize,
    flags: ZoneFlags,
    hooks: Hooks,
    /// For a secondary zone, the zone whose keg it uses.
    primary: Option<fn() -> &'static Zone>,
    /// Threads that wait for an item.
    sleepers: AtomicU32,
    registered: AtomicBool,
    next: AtomicPtr<Zone>,
    /// One for each CPU.
    caches: [Cache; MAXCPU],
    state: SpinMutex<ZoneState, UmaZone>,
    sleep: Mutex<(), Leaf>,
    keg: Keg,
    /// Items that came from the keg and did not go back.
    held: AtomicU64,
    /// Frees that no CPU's cache has counted.
    strays: AtomicU64,
    fails: AtomicU64,
    sleeps: AtomicU64,
}

// SAFETY: `caches` is touched only by the CPU each belongs to, in critical sections; the rest is `Sync`.
unsafe impl Sync for Zone {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Zone {}

machine_local! {
    /// All zones in use, linked by `next`.
    static ZONES: AtomicPtr<Zone> = AtomicPtr::new(ptr::null_mut());
}

machine_local! {
    /// Headers of slabs that have no room for them.
    static SLAB_ZONE: Zone = Zone::new("UMA Slabs", size_of::<Slab>(), 16);
}

machine_local! {
    /// Set while `reclaim` runs: freeing may need memory itself.
    static RECLAIMING: AtomicBool = AtomicBool::new(false);
}

impl Zone {
    /// A zone for items of `size` bytes, aligned to `align`.
    #[doc(alias = "uma_zcreate")]
    pub const fn new(name: &'static str, size: usize, align: usize) -> Self {
        Self {
            name,
            size,
            flags: ZoneFlags::empty(),
            hooks: Hooks::NONE,
            primary: None,
            sleepers: AtomicU32::new(0),
            registered: AtomicBool::new(false),
            next: AtomicPtr::new(ptr::null_mut()),
            caches: [const { Cache::new() }; MAXCPU],
            state: SpinMutex::new(ZoneState {
                full: ptr::null_mut(),
                spare: ptr::null_mut(),
                spares: 0,
                bucket_size: bucket_size_for(size),
                bucket_size_max: BUCKET_MAX,
            }),
            sleep: Mutex::new(()),
            keg: Keg::new(size, align),
            held: AtomicU64::new(0),
            strays: AtomicU64::new(0),
            fails: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
        }
    }

    /// A zone that takes its items from the keg of `primary`, and keeps what `hooks.init` did to them while it caches
    /// them.
    #[doc(alias = "uma_zsecond_create")]
    pub const fn new_secondary(
        name: &'static str,
        size: usize,
        primary: fn() -> &'static Zone,
        hooks: Hooks,
    ) -> Self {
        let mut zone = Self::new(name, size, 8);
        zone.primary = Some(primary);
        zone.hooks = hooks;
        zone
    }

    /// The same zone with other flags.
    pub const fn with_flags(mut self, flags: ZoneFlags) -> Self {
        self.flags = flags;
        self
    }

    /// The same zone with hooks.
    pub const fn with_hooks(mut self, hooks: Hooks) -> Self {
        self.hooks = hooks;
        self
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn keg(&self) -> &Keg {
        match self.primary {
            None => &self.keg,
            Some(primary) => &primary().keg,
        }
    }

    /// Allocates an item; its contents are unspecified, but initialised.
    #[doc(alias = "uma_zalloc")]
    #[inline]
    pub fn alloc(&'static self, how: How) -> Option<NonNull<u8>> {
        let item = self.alloc_plain(how)?;
        match self.hooks.ctor {
            Some(ctor) if !ctor(item, how) => {
                // SAFETY: ours, and it was not handed out.
                drop(unsafe { self.free_here(OnCpu::enter(), item) });
                self.fails.fetch_add(1, Ordering::Relaxed);
                None
            }
            _ => Some(item),
        }
    }

    /// Allocates an item without calling the constructor.
    #[inline(always)]
    pub(crate) fn alloc_plain(&'static self, how: How) -> Option<NonNull<u8>> {
        let item = match self.alloc_cached() {
            Some(item) => item,
            None => self.alloc_slow(how)?,
        };
        self.note_alloc(item);
        Some(item)
    }

    #[inline(always)]
    fn alloc_cached(&self) -> Option<NonNull<u8>> {
        let here = OnCpu::enter();
        let cache = here.cache(&self.caches);
        // SAFETY: `here` is the proof, for both.
        unsafe {
            let item = cache.pop()?;
            cache.count_alloc();
            Some(item)
        }
    }

    /// Frees an item.
    ///
    /// # Safety
    /// It came from this zone's `alloc`, and nobody uses it any more.
    #[doc(alias = "uma_zfree")]
    #[inline]
    pub unsafe fn free(&'static self, item: NonNull<u8>) {
        if let Some(dtor) = self.hooks.dtor {
            dtor(item);
        }
        // SAFETY: the promise.
        drop(unsafe { self.free_here(OnCpu::enter(), item) });
    }

    /// Frees an item, without destructor, inside a critical section that may go on for more of them. (It is left and
    /// entered again where that takes longer.)
    ///
    /// # Safety
    /// As for `free`.
    #[inline(always)]
    pub(crate) unsafe fn free_here(&'static self, here: OnCpu, item: NonNull<u8>) -> OnCpu {
        self.note_free(item);
        if self.sleepers.load(Ordering::Relaxed) == 0 {
            let cache = here.cache(&self.caches);
            // SAFETY: `here` is the proof, for both; the item is ours to give.
            unsafe {
                if cache.push(item) {
                    cache.count_free();
                    return here;
                }
            }
        }
        self.free_past_buckets(here, item)
    }

    /// Frees an item of a zone without destructor from where this CPU's buckets may be in use: an interrupt handler.
    ///
    /// # Safety
    /// As for `free`.
    #[cold]
    pub(crate) unsafe fn free_to_keg(&'static self, item: NonNull<u8>) {
        self.note_free(item);
        self.strays.fetch_add(1, Ordering::Relaxed);
        self.release(core::iter::once(item));
    }

    #[cold]
    #[inline(never)]
    fn free_past_buckets(&'static self, here: OnCpu, item: NonNull<u8>) -> OnCpu {
        drop(here);
        self.free_slow(item);
        OnCpu::enter()
    }

    /// Counts an allocation or a free that went past the buckets.
    fn count(&self, f: impl FnOnce(&Cache)) {
        let here = OnCpu::enter();
        f(here.cache(&self.caches));
    }

    fn lock_state(&self) -> SpinMutexGuard<'_, ZoneState, UmaZone> {
        if let Some(state) = self.state.try_lock() {
            return state;
        }
        // Somebody else is here: with larger buckets we meet less often.
        let mut state = self.state.lock();
        if state.bucket_size < state.bucket_size_max {
            state.bucket_size += 1;
        }
        state
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow(&'static self, how: How) -> Option<NonNull<u8>> {
        self.register();
        let item = match self.refill(how) {
            Some(item) => item,
            None if how == How::Wait => self.alloc_sleep(),
            None => {
                self.fails.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        };
        // SAFETY: `count` calls it on the CPU of the cache.
        self.count(|cache| unsafe { cache.count_alloc() });
        Some(item)
    }

    /// Tries again whenever something was freed.
    fn alloc_sleep(&'static self) -> NonNull<u8> {
        self.sleeps.fetch_add(1, Ordering::Relaxed);
        let zones = [Some(self), self.primary.map(|primary| primary())];
        for zone in zones.iter().flatten() {
            zone.sleepers.fetch_add(1, Ordering::Relaxed);
        }
        let item = loop {
            if let Some(item) = self.refill(How::NoWait) {
                break item;
            }
            let sleep = self.sleep.lock();
            let chan = WChan::of(&self.sleep);
            let retry = Some(SLEEP_RETRY);
            let (sleep, _) = MutexGuard::msleep(sleep, chan, Pri::PVM, "zonelimit", retry, false);
            drop(sleep);
        };
        for zone in zones.iter().flatten() {
            zone.sleepers.fetch_sub(1, Ordering::Relaxed);
        }
        item
    }

    /// Gives this CPU a bucket with items, and returns one.
    #[doc(alias = "cache_alloc_retry")]
    fn refill(&'static self, how: How) -> Option<NonNull<u8>> {
        if self.flags.contains(ZoneFlags::NOBUCKET) {
            return self.import_one(how);
        }
        let Some(bucket) = self.bucket_fetch(how) else {
            // No bucket, or nothing to fill it with.
            return self.import_one(how);
        };
        // SAFETY: the bucket is ours until it is in the cache, and not empty; `here` protects the cache.
        unsafe {
            let item = Bucket::pop(bucket);
            let here = OnCpu::enter();
            let left = here.cache(&self.caches).install_full(bucket);
            drop(here);
            if let Some(left) = left {
                self.bucket_return(left);
            }
            Some(item)
        }
    }

    /// A bucket with at least one item: one of the zone's, or one filled from the keg.
    #[doc(alias = "zone_alloc_bucket")]
    fn bucket_fetch(&'static self, how: How) -> Option<*mut Bucket> {
        let mut state = self.lock_state();
        if !state.full.is_null() {
            let bucket = state.full;
            // SAFETY: buckets in the list are live, and this one is ours now.
            unsafe { state.full = (*bucket).next };
            return Some(bucket);
        }
        let (spare, want) = (state.take_spare(), state.bucket_size);
        drop(state);
        let bucket = match spare {
            Some(bucket) => bucket,
            None => bucket_alloc(want)?,
        };
        // SAFETY: ours and empty; `take` puts no more than asked for.
        unsafe {
            let want = want.min((*bucket).entries as usize);
            self.keg().take(want, |item| Bucket::push(bucket, item));
            self.init_imported(bucket, how);
            if (*bucket).cnt == 0 {
                self.bucket_return(bucket);
                return None;
            }
        }
        Some(bucket)
    }

    /// Initialises the items of a bucket that just came from the keg; those that cannot be go back.
    ///
    /// # Safety
    /// The bucket is ours, its items are the keg's.
    unsafe fn init_imported(&'static self, bucket: *mut Bucket, how: How) {
        // SAFETY: the promise.
        unsafe {
            if let Some(init) = self.hooks.init {
                let imported = (*bucket).cnt as usize;
                let mut good = 0;
                while good < imported && init(Bucket::slot(bucket, good).read(), how) {
                    good += 1;
                }
                let bad = (good..imported).map(|i| Bucket::slot(bucket, i).read());
                self.keg().give(bad);
                (*bucket).cnt = good as u32;
            }
            self.held
                .fetch_add(u64::from((*bucket).cnt), Ordering::Relaxed);
        }
    }

    /// An item straight from the keg.
    #[doc(alias = "zone_alloc_item")]
    fn import_one(&'static self, how: How) -> Option<NonNull<u8>> {
        let mut found = None;
        self.keg().take(1, |item| found = Some(item));
        let item = found?;
        if let Some(init) = self.hooks.init
            && !init(item, how)
        {
            // SAFETY: just taken.
            unsafe { self.keg().give(core::iter::once(item)) };
            return None;
        }
        self.held.fetch_add(1, Ordering::Relaxed);
        Some(item)
    }

    /// Both buckets of this CPU are full, or there are none, or somebody waits for the item.
    #[cold]
    fn free_slow(&'static self, item: NonNull<u8>) {
        // SAFETY: `count` calls it on the CPU of the cache.
        self.count(|cache| unsafe { cache.count_free() });
        let waiting = self.sleepers.load(Ordering::Relaxed) != 0;
        let empty = if self.flags.contains(ZoneFlags::NOBUCKET) {
            None
        } else {
            let mut state = self.lock_state();
            let (spare, want) = (state.take_spare(), state.bucket_size);
            drop(state);
            spare.or_else(|| bucket_alloc(want))
        };
        let Some(empty) = empty else {
            self.release(core::iter::once(item));
            self.wake_sleeper(waiting);
            return;
        };
        // SAFETY: `empty` is ours and has room; `here` protects the cache.
        unsafe {
            let left = if waiting {
                // To the zone, where the sleeper looks.
                Bucket::push(empty, item);
                Some(empty)
            } else {
                let here = OnCpu::enter();
                let cache = here.cache(&self.caches);
                if cache.push(item) {
                    Some(empty)
                } else {
                    Bucket::push(empty, item);
                    cache.install_empty(empty)
                }
            };
            if let Some(left) = left {
                self.bucket_return(left);
            }
        }
        self.wake_sleeper(waiting);
    }

    fn wake_sleeper(&self, waiting: bool) {
        if waiting {
            // Who looked just before and is not asleep yet misses this; it looks again after `SLEEP_RETRY`. A lock against that
            // would be taken under whatever locks the caller holds.
            kern_synch::wakeup_one(WChan::of(&self.sleep));
        }
    }

    /// Hands a bucket to the zone: with items for the next who needs some, without as a spare.
    ///
    /// # Safety
    /// The bucket is the caller's, and its items are free.
    #[doc(alias = "zone_put_bucket")]
    unsafe fn bucket_return(&'static self, bucket: *mut Bucket) {
        // SAFETY: the promise; the list is protected by the lock.
        unsafe {
            let mut state = self.lock_state();
            if (*bucket).cnt > 0 {
                (*bucket).next = state.full;
                state.full = bucket;
            } else if state.spares < SPARE_BUCKETS
                && (*bucket).entries as usize >= state.bucket_size
            {
                (*bucket).next = state.spare;
                state.spare = bucket;
                state.spares += 1;
            } else {
                drop(state);
                bucket_free(bucket);
            }
        }
    }

    /// Gives items back to the keg.
    #[doc(alias = "zone_release")]
    fn release(&self, items: impl Iterator<Item = NonNull<u8>>) {
        let mut count = 0;
        // One by one, so that `fini` runs without the keg's lock.
        for item in items {
            if let Some(fini) = self.hooks.fini {
                fini(item);
            }
            self.note_release(item);
            // SAFETY: the zone's, thus the keg's; free by the callers' promise.
            unsafe { self.keg().give(core::iter::once(item)) };
            count += 1;
        }
        self.held.fetch_sub(count, Ordering::Relaxed);
    }

    /// Releases the items of the zone's full buckets.
    #[doc(alias = "zone_drain")]
    fn drain(&'static self) {
        loop {
            let mut state = self.state.lock();
            let bucket = state.full;
            if bucket.is_null() {
                break;
            }
            // SAFETY: buckets in the list are live; then it is ours.
            unsafe {
                state.full = (*bucket).next;
                drop(state);
                self.bucket_empty(bucket);
            }
        }
        while let Some(spare) = {
            let mut state = self.state.lock();
            state.take_spare()
        } {
            // SAFETY: ours, and empty.
            unsafe { bucket_free(spare) };
        }
        if self.primary.is_none() {
            self.keg.drain();
        }
    }

    /// # Safety
    /// The bucket is the caller's, and its items are free.
    unsafe fn bucket_empty(&'static self, bucket: *mut Bucket) {
        // SAFETY: the promise.
        unsafe {
            let items = (0..(*bucket).cnt as usize).map(|i| Bucket::slot(bucket, i).read());
            self.release(items);
            (*bucket).cnt = 0;
            bucket_free(bucket);
        }
    }

    /// Moves what this CPU holds to the zone.
    fn drain_this_cpu(&'static self) {
        let here = OnCpu::enter();
        // SAFETY: `here` is the proof.
        let buckets = unsafe { here.cache(&self.caches).take_buckets() };
        drop(here);
        for bucket in buckets {
            // SAFETY: out of the cache it is ours.
            unsafe { self.bucket_return(bucket) };
        }
    }

    /// Limits the number of items that may be in use or cached, for this zone and those that share its keg; 0 for no
    /// limit. Returns the limit.
    #[doc(alias = "uma_zone_set_max")]
    pub fn set_max(&self, max: usize) -> usize {
        self.keg().max.store(max, Ordering::Relaxed);
        // A few items must not get stuck in the buckets of idle CPUs.
        let share = match max {
            0 => BUCKET_MAX,
            max => (max / (4 * machine::ncpus())).clamp(1, BUCKET_MAX),
        };
        let mut state = self.state.lock();
        state.bucket_size_max = share;
        state.bucket_size = state.bucket_size.min(share);
        max
    }

    /// The limit, 0 for none.
    #[doc(alias = "uma_zone_get_max")]
    pub fn max(&self) -> usize {
        self.keg().max.load(Ordering::Relaxed)
    }

    /// Counts now. Exact while nobody allocates or frees.
    pub fn stats(&self) -> ZoneStats {
        let (mut allocs, mut frees) = (0, self.strays.load(Ordering::Acquire));
        for cache in &self.caches {
            let (a, f) = cache.counts();
            allocs += a;
            frees += f;
        }
        let used = allocs.saturating_sub(frees);
        let cached = self.held.load(Ordering::Relaxed).saturating_sub(used);
        let in_slabs = if self.primary.is_none() {
            self.keg.free_items()
        } else {
            0
        };
        ZoneStats {
            name: self.name,
            size: self.size,
            limit: self.max() as u64,
            used,
            free: cached + in_slabs as u64,
            requests: allocs,
            fails: self.fails.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
            xdomain: 0,
        }
    }

    /// Puts the zone into the list of zones, at its end.
    fn register(&'static self) {
        if self.registered.load(Ordering::Relaxed) || self.registered.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let this = ptr::from_ref(self).cast_mut();
        let mut link: &AtomicPtr<Zone> = ZONES.get();
        while let Err(next) =
            link.compare_exchange(ptr::null_mut(), this, Ordering::AcqRel, Ordering::Acquire)
        {
            // SAFETY: zones in the list live as long as the machine.
            link = unsafe { &(*next).next };
        }
    }
}

/// Checks of debug builds.
impl Zone {
    /// Whether free items are filled with junk: not if they stay initialised.
    const fn trashes(&self) -> bool {
        self.hooks.init.is_none()
    }

    #[inline(always)]
    fn note_alloc(&self, item: NonNull<u8>) {
        #[cfg(debug_assertions)]
        {
            assert!(
                !self.mark(item, true),
                "uma: {} gives out {item:p} twice",
                self.name
            );
            if self.trashes() {
                // SAFETY: ours, and of this size.
                unsafe { uma_dbg::check_trash(self, item, self.size) };
            }
        }
        let _ = item;
    }

    #[inline(always)]
    fn note_free(&self, item: NonNull<u8>) {
        #[cfg(debug_assertions)]
        {
            assert!(
                self.mark(item, false),
                "uma: {} gets {item:p} twice",
                self.name
            );
            if self.trashes() {
                // SAFETY: ours, and of this size.
                unsafe { uma_dbg::trash(item, self.size) };
            }
        }
        let _ = item;
    }

    #[inline(always)]
    fn note_release(&self, item: NonNull<u8>) {
        if cfg!(debug_assertions) && !self.trashes() {
            // SAFETY: ours until it is released, and of this size.
            unsafe { uma_dbg::trash(item, self.size) };
        }
    }

    /// Notes whether an item is in use, and returns whether it was.
    #[cfg(debug_assertions)]
    fn mark(&self, item: NonNull<u8>, used: bool) -> bool {
        let keg = self.keg();
        let state = keg.state.lock();
        // SAFETY: the keg's item, whose slab is live.
        unsafe {
            let (slab, index) = keg.slab_of(&state, item);
            let (word, bit) = (&(*slab).used[index / 64], 1 << (index % 64));
            let was = if used {
                word.fetch_or(bit, Ordering::Relaxed)
            } else {
                word.fetch_and(!bit, Ordering::Relaxed)
            };
            was & bit != 0
        }
    }
}

impl ZoneState {
    fn take_spare(&mut self) -> Option<*mut Bucket> {
        let bucket = self.spare;
        if bucket.is_null() {
            return None;
        }
        // SAFETY: buckets in the list are live; then it is the caller's.
        unsafe { self.spare = (*bucket).next };
        self.spares -= 1;
        Some(bucket)
    }
}

/// Makes what all zones share, so that on a machine that ends it outlives all that may free an item.
#[doc(alias = "uma_startup1")]
pub fn startup() {
    vm_page::stats();
    ZONES.get();
    RECLAIMING.get();
    SLAB_ZONE.get();
    super::uma_cache::startup();
}

/// The zones of this machine that were used.
pub fn zones() -> impl Iterator<Item = &'static Zone> {
    // SAFETY: zones in the list live as long as the machine.
    let at = |link: &AtomicPtr<Zone>| unsafe { link.load(Ordering::Acquire).as_ref() };
    core::iter::successors(at(ZONES.get()), move |zone: &&'static Zone| at(&zone.next))
}

machine_local! {
    /// Makes `find_or_create` one at a time.
    static CREATE: Mutex<(), UmaZones> = Mutex::new(());
}

/// The zone of this name and size, made if there is none; it stays as long as the machine.
pub fn find_or_create(name: &'static str, size: usize, align: usize) -> &'static Zone {
    let _one = CREATE.get().lock();
    let same = |zone: &&'static Zone| {
        zone.name == name && zone.size == size && zone.keg.layout == KegLayout::new(size, align)
    };
    zones().find(same).unwrap_or_else(|| {
        let zone: &'static Zone = machine::leak(Box::new(Zone::new(name, size, align)));
        zone.register();
        zone
    })
}

/// Gives memory that zones keep for later back to the page allocator.
#[doc(alias = "uma_reclaim")]
pub fn reclaim(how: Reclaim) {
    if RECLAIMING.get().swap(true, Ordering::Acquire) {
        return;
    }
    if how >= Reclaim::DrainCpu {
        for cpu in 0..machine::ncpus() {
            kern_synch::sched_bind(cpu);
            zones().for_each(Zone::drain_this_cpu);
        }
        kern_synch::sched_unbind();
    }
    // Secondary zones before those whose items they hold.
    zones()
        .filter(|zone| zone.primary.is_some())
        .for_each(Zone::drain);
    zones()
        .filter(|zone| zone.primary.is_none())
        .for_each(Zone::drain);
    RECLAIMING.get().store(false, Ordering::Release);
}

#[cfg(test)]
mod tests;
