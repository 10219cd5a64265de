//! Zones: the way of an item between a user and its slab.
//!
//! FreeBSD: sys/vm/uma_core.c, sys/vm/uma_int.h
//! Differs from FreeBSD: one memory domain; a limit counts what left the keg, for all zones that share it, and who sleeps
//! at it first calls in what other CPUs hold.

use super::uma::How;
use super::uma_cache::{
    BUCKET_MAX, Bucket, Cache, OnCpu, bucket_alloc, bucket_free, bucket_select, cache_flags,
};
use super::uma_dbg;
use super::vm_page;
use crate::kern::kern_mutex::{Mutex, SpinMutex, SpinMutexGuard};
use crate::kern::lock_order::{UmaZone, UmaZones};
use crate::kern::subr_smr::{Smr, SmrSeq};
use crate::machine;
use crate::machine::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, Ordering};
use crate::machine_local;
use crate::param::MAXCPU;
use alloc::boxed::Box;
use alloc::string::String;
use bitflags::bitflags;
use core::ptr::{self, NonNull};

mod keg;
mod limit;
mod reclaim;
mod stats;

pub(super) use keg::Keg;
#[cfg(debug_assertions)]
pub(super) use keg::NotAnItem;
use keg::{Claim, Shortage};
pub(super) use reclaim::lowmem;
pub use reclaim::{Reclaim, reclaim, startup3};

bitflags! {
    /// How a zone behaves; FreeBSD's values.
    ///
    /// Not carried over, since they would change nothing here: CONTIG and VM (all slabs are), MALLOC and VTOSLAB (every page
    /// knows its slab), FIRSTTOUCH and ROUNDROBIN (one memory domain), NODUMP (no dumps), PCPU (counters stand below zones).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ZoneFlags: u32 {
        /// What is cached is not trimmed to the working set.
        #[doc(alias = "UMA_ZONE_UNMANAGED")]
        const UNMANAGED = 0x1;
        /// Items are zero when they come from their slab; what users write to them stays.
        #[doc(alias = "UMA_ZONE_ZINIT")]
        const ZINIT = 0x2;
        /// Slabs are kept for good.
        #[doc(alias = "UMA_ZONE_NOFREE")]
        const NOFREE = 0x20;
        /// Shares the keg of another zone.
        #[doc(alias = "UMA_ZONE_SECONDARY")]
        const SECONDARY = 0x200;
        /// No buckets: every item comes from the keg.
        #[doc(alias = "UMA_ZONE_NOBUCKET")]
        const NOBUCKET = 0x400;
        /// The largest buckets, at once.
        #[doc(alias = "UMA_ZONE_MAXBUCKET")]
        const MAXBUCKET = 0x800;
        /// The smallest buckets, always.
        #[doc(alias = "UMA_ZONE_MINBUCKET")]
        const MINBUCKET = 0x1000;
        /// Freed items may still be read, and are not given out before their readers have left.
        #[doc(alias = "UMA_ZONE_SMR")]
        const SMR = 0x4_0000;
        /// Slabs' headers are elsewhere. This and those below but `INTERNAL` follow from what the zone is: they are shown
        /// (`vm.uma`), and setting them does nothing.
        #[doc(alias = "UMA_ZFLAG_OFFPAGE")]
        const OFFPAGE = 0x20_0000;
        /// Has a constructor or a destructor; in debug builds, of the allocator's.
        #[doc(alias = "UMA_ZFLAG_CTORDTOR")]
        const CTORDTOR = 0x100_0000;
        /// Has a limit.
        #[doc(alias = "UMA_ZFLAG_LIMIT")]
        const LIMIT = 0x200_0000;
        /// Of the allocator's own.
        #[doc(alias = "UMA_ZFLAG_INTERNAL")]
        const INTERNAL = 0x2000_0000;
        /// Free items are filled with junk.
        #[doc(alias = "UMA_ZFLAG_TRASH")]
        const TRASH = 0x4000_0000;
    }
}

/// What a zone does to its items. A hook that returns false had no memory.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Called for each allocation.
    pub ctor: Option<fn(NonNull<u8>, How) -> bool>,
    /// Called for each free.
    pub dtor: Option<fn(NonNull<u8>)>,
    /// Called when an item's slab is made (in a secondary zone: when an item leaves the keg); its work stays done while
    /// the item is cached.
    pub init: Option<fn(NonNull<u8>, How) -> bool>,
    /// Called when an item's slab is given back (in a secondary zone: when an item returns to the keg).
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

/// Empty buckets that a zone keeps at hand.
const SPARE_BUCKETS: usize = 8;

/// What the zone's lock protects.
struct ZoneState {
    /// Buckets with items. Those whose items may have readers stand last.
    full: *mut Bucket,
    full_last: *mut Bucket,
    /// Items in them, and the most and the fewest of these since the working set was last estimated.
    nitems: usize,
    imax: usize,
    imin: usize,
    /// How many are likely to be wanted again.
    wss: usize,
    /// Empty buckets.
    spare: *mut Bucket,
    spares: usize,
    /// Items that a new bucket gets; grows when CPUs meet at the lock.
    bucket_size: usize,
    bucket_size_max: usize,
}

// SAFETY: the pointers lead to buckets that the zone owns.
unsafe impl Send for ZoneState {}

/// Where a zone's items are cut from pages.
enum KegOf {
    Own(Keg),
    /// The keg of another zone.
    Primary(fn() -> &'static Zone),
}

/// An allocator for items of one size.
#[doc(alias = "uma_zone")]
pub struct Zone {
    /// One for each CPU.
    caches: [Cache; MAXCPU],
    name: &'static str,
    size: usize,
    flags: ZoneFlags,
    hooks: Hooks,
    keg: KegOf,
    /// A zone of whose items this one's cached items hold some.
    holds: Option<fn() -> &'static Zone>,
    /// Who may read items that are freed.
    smr: Option<fn() -> &'static Smr>,
    warning: Option<&'static str>,
    maxaction: Option<fn()>,
    registered: AtomicBool,
    destroyed: AtomicBool,
    next: AtomicPtr<Zone>,
    state: SpinMutex<ZoneState, UmaZone>,
    /// Items that came from the keg and did not go back.
    held: AtomicU64,
    /// Frees that no CPU's cache has counted.
    strays: AtomicU64,
    fails: AtomicU64,
    sleeps: AtomicU64,
    /// When the limit was last complained of.
    warned: AtomicI64,
    action_due: AtomicBool,
}

// SAFETY: `caches` is touched only by the CPU each belongs to, in critical sections; the rest is `Sync`.
unsafe impl Sync for Zone {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Zone {}

machine_local! {
    /// All zones in use, linked by `next`.
    static ZONES: AtomicPtr<Zone> = AtomicPtr::new(ptr::null_mut());
    /// Makes `find_or_create` one at a time.
    static CREATE: Mutex<(), UmaZones> = Mutex::new(());
}

/// How a zone is made.
impl Zone {
    /// A zone for items of `size` bytes, aligned to `align`.
    #[doc(alias = "uma_zcreate")]
    pub const fn new(name: &'static str, size: usize, align: usize) -> Self {
        Self::of(name, size, KegOf::Own(Keg::new(name, size, align)))
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
        let mut zone = Self::of(name, size, KegOf::Primary(primary));
        zone.flags = ZoneFlags::SECONDARY;
        zone.with_hooks(hooks)
    }

    const fn of(name: &'static str, size: usize, keg: KegOf) -> Self {
        let debug = if cfg!(debug_assertions) {
            cache_flags::DEBUG
        } else {
            0
        };
        Self {
            caches: [const { Cache::new(0) }; MAXCPU],
            name,
            size,
            flags: ZoneFlags::empty(),
            hooks: Hooks::NONE,
            keg,
            holds: None,
            smr: None,
            warning: None,
            maxaction: None,
            registered: AtomicBool::new(false),
            destroyed: AtomicBool::new(false),
            next: AtomicPtr::new(ptr::null_mut()),
            state: SpinMutex::new(ZoneState::new(bucket_select(size), BUCKET_MAX)),
            held: AtomicU64::new(0),
            strays: AtomicU64::new(0),
            fails: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            warned: AtomicI64::new(i64::MIN),
            action_due: AtomicBool::new(false),
        }
        .with_cache_flags(debug)
    }

    const fn with_cache_flags(mut self, flags: u32) -> Self {
        let mut cpu = 0;
        while cpu < MAXCPU {
            self.caches[cpu].begin_with(flags);
            cpu += 1;
        }
        self
    }

    /// The same zone with these flags besides.
    pub const fn with_flags(mut self, flags: ZoneFlags) -> Self {
        self.flags = self.flags.union(flags);
        if let KegOf::Own(keg) = &mut self.keg {
            keg.flags = self.flags;
        }
        let (begin, max) = self.bucket_sizes();
        self.state = SpinMutex::new(ZoneState::new(begin, max));
        self
    }

    /// How many items a new bucket gets at first, and at most, where there is no limit.
    const fn bucket_sizes(&self) -> (usize, usize) {
        if self.flags.contains(ZoneFlags::MINBUCKET) {
            (2, 2)
        } else if self.flags.contains(ZoneFlags::MAXBUCKET) {
            (BUCKET_MAX, BUCKET_MAX)
        } else {
            (bucket_select(self.size), BUCKET_MAX)
        }
    }

    /// The same zone with hooks.
    pub const fn with_hooks(mut self, hooks: Hooks) -> Self {
        self.hooks = hooks;
        if let KegOf::Own(keg) = &mut self.keg {
            // The slab's affair, not that of the way between it and the zone.
            keg.set_hooks(&hooks);
            self.hooks.init = None;
            self.hooks.fini = None;
        }
        let ctor = if hooks.ctor.is_some() {
            cache_flags::CTOR
        } else {
            0
        };
        let dtor = if hooks.dtor.is_some() {
            cache_flags::DTOR
        } else {
            0
        };
        self.with_cache_flags(ctor | dtor)
    }

    /// The same zone, whose `init` takes items of another: a thread that waits for one of those lets this one's be freed.
    pub const fn holding(mut self, of: fn() -> &'static Zone) -> Self {
        self.holds = Some(of);
        self
    }

    /// The same zone, whose items may still have readers in sections of `smr` when they are freed: these have left before an
    /// item's destructor is called and it is given out again.
    #[doc(alias = "uma_zone_set_smr")]
    pub const fn with_smr(self, smr: fn() -> &'static Smr) -> Self {
        let mut zone = self.with_flags(ZoneFlags::SMR);
        zone.smr = Some(smr);
        zone.with_cache_flags(cache_flags::SMR)
    }

    /// Whose sections protect readers of this zone's items.
    #[doc(alias = "uma_zone_get_smr")]
    pub fn smr(&self) -> Option<&'static Smr> {
        self.smr.map(|smr| smr())
    }

    /// The same zone, which says `warning` when its limit is reached (at most every five minutes), and then has
    /// `action` called by a thread of the kernel.
    #[doc(alias = "uma_zone_set_warning")]
    #[doc(alias = "uma_zone_set_maxaction")]
    pub const fn with_warning(mut self, warning: &'static str, action: Option<fn()>) -> Self {
        self.warning = Some(warning);
        self.maxaction = action;
        self
    }

    /// Makes items of the limit's number at most, before they are needed. False if memory ran out on the way.
    #[doc(alias = "uma_prealloc")]
    pub fn prealloc(&'static self, items: usize) -> bool {
        self.register();
        self.keg().prealloc(items)
    }

    /// Keeps the last `items` free items for `alloc_reserved`; they are made by `prealloc`.
    #[doc(alias = "uma_zone_reserve")]
    pub fn reserve(&self, items: usize) {
        self.keg().set_reserve(items);
    }
}

/// What a zone is.
impl Zone {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Bytes of an item.
    pub fn size(&self) -> usize {
        self.size
    }

    pub(super) fn keg(&self) -> &Keg {
        match &self.keg {
            KegOf::Own(keg) => keg,
            KegOf::Primary(primary) => primary().keg(),
        }
    }

    fn is_secondary(&self) -> bool {
        matches!(self.keg, KegOf::Primary(_))
    }

    /// Whether it serves the allocator itself.
    pub(super) fn is_internal(&self) -> bool {
        self.flags.contains(ZoneFlags::INTERNAL)
    }

    /// Whether an item cached here, were it released, could become one of `keg`.
    fn draws_on(&self, keg: &Keg) -> bool {
        ptr::eq(self.keg(), keg) || self.holds.is_some_and(|zone| ptr::eq(zone().keg(), keg))
    }

    /// Whether free items are filled with junk: not if they stay initialised, or may be read.
    pub(super) fn trashes(&self) -> bool {
        cfg!(debug_assertions) && self.hooks.init.is_none() && self.keg().trashes()
    }
}

/// Allocation.
impl Zone {
    /// Allocates an item; its contents are unspecified, but initialised.
    #[doc(alias = "uma_zalloc")]
    #[inline(always)]
    pub fn alloc(&'static self, how: How) -> Option<NonNull<u8>> {
        let here = OnCpu::enter();
        // SAFETY: `here` is the proof.
        if let Some(item) = unsafe { here.cache(&self.caches).alloc_fast() } {
            return Some(item);
        }
        self.alloc_slow(here, how)
    }

    /// Allocates an item, if need be one of those kept by `reserve`.
    #[doc(alias = "M_USE_RESERVE")]
    pub fn alloc_reserved(&'static self) -> Option<NonNull<u8>> {
        self.alloc_claim(OnCpu::enter(), How::NoWait, Claim::Reserve)
    }

    #[cold]
    #[inline(never)]
    fn alloc_slow(&'static self, here: OnCpu, how: How) -> Option<NonNull<u8>> {
        self.alloc_claim(here, how, Claim::Ordinary)
    }

    /// Looks further than the fast path does.
    #[inline(always)]
    fn alloc_claim(&'static self, here: OnCpu, how: How, claim: Claim) -> Option<NonNull<u8>> {
        let cache = here.cache(&self.caches);
        // SAFETY: `here` is the proof, for both.
        let cached = unsafe {
            cache.pop().inspect(|_| {
                cache.count_alloc();
            })
        };
        drop(here);
        let item = match cached {
            Some(item) => item,
            None => {
                let item = self.alloc_retry(how, claim)?;
                // SAFETY: `count` calls it on the CPU of the cache.
                self.count(|cache| unsafe { cache.count_alloc() });
                item
            }
        };
        self.construct(item, how)
    }

    /// The rest of an allocation: the checks of debug builds and the constructor.
    #[doc(alias = "item_ctor")]
    fn construct(&'static self, item: NonNull<u8>, how: How) -> Option<NonNull<u8>> {
        #[cfg(debug_assertions)]
        uma_dbg::on_alloc(self, item);
        match self.hooks.ctor {
            Some(ctor) if !ctor(item, how) => {
                #[cfg(debug_assertions)]
                uma_dbg::check_free(self, item);
                self.trash(item);
                self.count(|cache| {
                    // SAFETY: `count` calls it on the CPU of the cache.
                    unsafe { cache.count_free() };
                });
                // Not into a bucket, of whose items the destructor may still be due, and who waits gets it.
                self.release(core::iter::once(item));
                self.fails.fetch_add(1, Ordering::Relaxed);
                None
            }
            _ => Some(item),
        }
    }

    /// Neither bucket of this CPU has an item.
    #[doc(alias = "cache_alloc_retry")]
    fn alloc_retry(&'static self, how: How, claim: Claim) -> Option<NonNull<u8>> {
        self.register();
        match self.refill(how) {
            Ok(item) => return Some(item),
            Err(Shortage::Limit) => self.complain(),
            Err(Shortage::Memory) => {}
        }
        if let Claim::Reserve = claim
            && let Ok(item) = self.import_one(how, claim)
        {
            return Some(item);
        }
        if how == How::Wait {
            return Some(self.alloc_wait());
        }
        self.fails.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Gives this CPU a bucket with items, and returns one.
    fn refill(&'static self, how: How) -> Result<NonNull<u8>, Shortage> {
        let bucket = if self.flags.contains(ZoneFlags::NOBUCKET) {
            None
        } else {
            self.bucket_fetch(how)?
        };
        let Some(bucket) = bucket else {
            return self.import_one(how, Claim::Ordinary);
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
            Ok(item)
        }
    }

    /// A bucket with at least one item: one of the zone's, or one filled from the keg. `None` if there is no memory for a
    /// bucket.
    #[doc(alias = "zone_alloc_bucket")]
    fn bucket_fetch(&'static self, how: How) -> Result<Option<*mut Bucket>, Shortage> {
        let mut state = self.lock_state();
        if let Some(bucket) = state.fetch(self.smr()) {
            drop(state);
            // SAFETY: ours, and its readers have left.
            unsafe { self.readers_left(bucket) };
            return Ok(Some(bucket));
        }
        let (spare, want) = (state.take_spare(), state.bucket_size);
        drop(state);
        let Some(bucket) = spare.or_else(|| bucket_alloc(want)) else {
            return Ok(None);
        };
        // SAFETY: ours and empty; `take` puts no more than asked for.
        unsafe {
            let want = want.min(usize::from((*bucket).entries));
            let taken = self.keg().take(want, how, Claim::Ordinary, |item| {
                Bucket::push(bucket, item)
            });
            let ready = taken.and_then(|()| self.init_imported(bucket, how));
            if let Err(shortage) = ready {
                self.bucket_return(bucket);
                return Err(shortage);
            }
        }
        Ok(Some(bucket))
    }

    /// Initialises the items of a bucket that just came from the keg; those that cannot be go back.
    ///
    /// # Safety
    /// The bucket is ours, its items are the keg's.
    unsafe fn init_imported(&'static self, bucket: *mut Bucket, how: How) -> Result<(), Shortage> {
        // SAFETY: the promise.
        unsafe {
            let imported = usize::from((*bucket).cnt);
            if let Some(init) = self.hooks.init {
                let mut good = 0;
                // One is needed; for more nobody waits.
                while good < imported
                    && init(
                        Bucket::slot(bucket, good).read(),
                        if good == 0 { how } else { How::NoWait },
                    )
                {
                    good += 1;
                }
                if good < imported {
                    let bad = (good..imported).map(|i| Bucket::slot(bucket, i).read());
                    self.keg().give(bad.inspect(|&item| self.trash(item)));
                    (*bucket).cnt = good as u16;
                }
                if good == 0 {
                    return Err(Shortage::Memory);
                }
            }
            self.held
                .fetch_add(u64::from((*bucket).cnt), Ordering::Relaxed);
        }
        Ok(())
    }

    /// An item straight from the keg.
    #[doc(alias = "zone_alloc_item")]
    fn import_one(&'static self, how: How, claim: Claim) -> Result<NonNull<u8>, Shortage> {
        let mut found = None;
        self.keg().take(1, how, claim, |item| found = Some(item))?;
        let item = found.ok_or(Shortage::Memory)?;
        if let Some(init) = self.hooks.init
            && !init(item, how)
        {
            self.trash(item);
            // SAFETY: just taken.
            unsafe { self.keg().give(core::iter::once(item)) };
            return Err(Shortage::Memory);
        }
        self.held.fetch_add(1, Ordering::Relaxed);
        Ok(item)
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
        // Somebody else is here: with larger buckets we meet less often. (Alone, who comes here for every second item loses
        // some 30 ns each time: little beside the copying of items so large that few are in a bucket.)
        let mut state = self.state.lock();
        if state.bucket_size < state.bucket_size_max {
            state.bucket_size += 1;
        }
        state
    }
}

/// Freeing.
impl Zone {
    /// Frees an item.
    ///
    /// # Safety
    /// It came from this zone's `alloc`, and nobody uses it any more.
    #[doc(alias = "uma_zfree")]
    #[inline(always)]
    pub unsafe fn free(&'static self, item: NonNull<u8>) {
        // SAFETY: the promise.
        drop(unsafe { self.free_here(OnCpu::enter(), item) });
    }

    /// Frees an item inside a critical section that may go on for more of them. (It is left and entered again where that
    /// takes longer.)
    ///
    /// # Safety
    /// As for `free`.
    #[inline(always)]
    pub(crate) unsafe fn free_here(&'static self, here: OnCpu, item: NonNull<u8>) -> OnCpu {
        // SAFETY: `here` is the proof; the item is ours to give.
        if unsafe { here.cache(&self.caches).free_fast(item) } {
            return here;
        }
        self.free_slow(here, item)
    }

    /// Frees an item of a zone without destructor from where this CPU's buckets may be in use: an interrupt handler.
    ///
    /// # Safety
    /// As for `free`.
    #[cold]
    pub(crate) unsafe fn free_to_keg(&'static self, item: NonNull<u8>) {
        #[cfg(debug_assertions)]
        uma_dbg::check_free(self, item);
        self.trash(item);
        self.strays.fetch_add(1, Ordering::Relaxed);
        self.release(core::iter::once(item));
    }

    #[cold]
    #[inline(never)]
    fn free_slow(&'static self, here: OnCpu, item: NonNull<u8>) -> OnCpu {
        drop(here);
        self.destruct(item);
        let here = OnCpu::enter();
        let cache = here.cache(&self.caches);
        // SAFETY: `here` is the proof, for all; the item is ours to give.
        unsafe {
            cache.count_free();
            let stays = !cache.has(cache_flags::WAITERS)
                && if self.smr.is_some() {
                    cache.push_smr(item)
                } else {
                    cache.push(item)
                };
            if stays {
                return here;
            }
        }
        drop(here);
        self.free_past_buckets(item);
        OnCpu::enter()
    }

    /// The first part of a free: the checks of debug builds and the destructor.
    #[doc(alias = "item_dtor")]
    fn destruct(&self, item: NonNull<u8>) {
        #[cfg(debug_assertions)]
        uma_dbg::check_free(self, item);
        if let Some(dtor) = self.hooks.dtor
            && self.smr.is_none()
        {
            dtor(item);
        }
        self.trash(item);
    }

    /// The readers of a bucket's items have left: what a free puts off until then is done.
    ///
    /// # Safety
    /// The bucket is the caller's, and its items are free.
    unsafe fn readers_left(&self, bucket: *mut Bucket) {
        // SAFETY: the promise.
        unsafe {
            if (*bucket).seq != SmrSeq::INVALID {
                (*bucket).seq = SmrSeq::INVALID;
                if let Some(dtor) = self.hooks.dtor {
                    Bucket::items(bucket).for_each(dtor);
                }
            }
        }
    }

    /// Notes on a bucket of items that were just freed which readers may have them.
    ///
    /// # Safety
    /// The bucket is the caller's.
    unsafe fn tag(&self, bucket: *mut Bucket) {
        let Some(smr) = self.smr() else { return };
        // SAFETY: the promise.
        unsafe {
            if (*bucket).cnt > 0 {
                (*bucket).seq = smr.advance();
            }
        }
    }

    /// Fills an item that nobody uses, in debug builds.
    fn trash(&self, item: NonNull<u8>) {
        #[cfg(debug_assertions)]
        if self.trashes() {
            // SAFETY: of this zone, and free.
            unsafe { uma_dbg::trash(self.keg(), item) };
        }
        let _ = item;
    }

    /// Both buckets of this CPU are full, or there are none, or somebody waits for the item.
    #[doc(alias = "zone_free_item")]
    fn free_past_buckets(&'static self, item: NonNull<u8>) {
        let empty = if self.flags.contains(ZoneFlags::NOBUCKET) || self.is_waited_for() {
            None
        } else {
            let mut state = self.lock_state();
            let (spare, want) = (state.take_spare(), state.bucket_size);
            drop(state);
            spare.or_else(|| bucket_alloc(want))
        };
        let Some(empty) = empty else {
            if let Some(smr) = self.smr() {
                smr.synchronize();
                if let Some(dtor) = self.hooks.dtor {
                    dtor(item);
                }
            }
            self.release(core::iter::once(item));
            return;
        };
        // SAFETY: `empty` is ours and has room; `here` protects the cache.
        unsafe {
            let here = OnCpu::enter();
            let cache = here.cache(&self.caches);
            let pushed = if self.smr.is_some() {
                cache.push_smr(item)
            } else {
                cache.push(item)
            };
            let left = if pushed {
                Some(empty)
            } else {
                Bucket::push(empty, item);
                cache.install_empty(empty)
            };
            drop(here);
            if let Some(left) = left {
                self.tag(left);
                self.bucket_return(left);
            }
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
            let mut state = self.state.lock();
            if (*bucket).cnt > 0 {
                // Who waits has said so before it empties the list, under the lock.
                if self.is_waited_for() {
                    drop(state);
                    self.bucket_drain(bucket);
                } else {
                    state.put(bucket);
                    drop(state);
                    reclaim::arm_trim();
                }
            } else if state.spares < SPARE_BUCKETS
                && usize::from((*bucket).entries) >= state.bucket_size
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

    /// Releases the items of a bucket, and frees it.
    ///
    /// # Safety
    /// The bucket is the caller's, and its items are free.
    unsafe fn bucket_drain(&'static self, bucket: *mut Bucket) {
        // SAFETY: the promise.
        unsafe {
            if let Some(smr) = self.smr()
                && (*bucket).seq != SmrSeq::INVALID
            {
                if !smr.poll((*bucket).seq) {
                    smr.wait((*bucket).seq);
                }
                self.readers_left(bucket);
            }
            self.release(Bucket::items(bucket));
            (*bucket).cnt = 0;
            bucket_free(bucket);
        }
    }

    /// Gives free items back to the keg.
    #[doc(alias = "zone_release")]
    fn release(&self, items: impl Iterator<Item = NonNull<u8>> + Clone) {
        if let Some(fini) = self.hooks.fini {
            // Not under the keg's lock.
            for item in items.clone() {
                fini(item);
                #[cfg(debug_assertions)]
                if self.keg().trashes() {
                    // SAFETY: of this keg, and free.
                    unsafe { uma_dbg::trash(self.keg(), item) };
                }
            }
        }
        let count = items.clone().count() as u64;
        self.held.fetch_sub(count, Ordering::Relaxed);
        // SAFETY: the zone's, thus the keg's; free by the callers' promise.
        unsafe { self.keg().give(items) };
    }
}

impl ZoneState {
    const fn new(bucket_size: usize, bucket_size_max: usize) -> Self {
        Self {
            full: ptr::null_mut(),
            full_last: ptr::null_mut(),
            nitems: 0,
            imax: 0,
            imin: 0,
            wss: 0,
            spare: ptr::null_mut(),
            spares: 0,
            bucket_size,
            bucket_size_max,
        }
    }

    /// Takes a bucket with items that have no readers as far as `smr` knows, if the first is one.
    #[doc(alias = "zone_fetch_bucket")]
    fn fetch(&mut self, smr: Option<&Smr>) -> Option<*mut Bucket> {
        let bucket = self.full;
        if bucket.is_null() {
            return None;
        }
        // SAFETY: buckets in the list are live; then it is the caller's.
        unsafe {
            let seq = (*bucket).seq;
            if let Some(smr) = smr
                && seq != SmrSeq::INVALID
                && !smr.poll(seq)
            {
                return None;
            }
            self.full = (*bucket).next;
            self.nitems -= usize::from((*bucket).cnt);
        }
        if self.full.is_null() {
            self.full_last = ptr::null_mut();
        }
        self.imin = self.imin.min(self.nitems);
        Some(bucket)
    }

    /// Takes in a bucket with items: first, since they are the warmest, but last if they may have readers.
    ///
    /// # Safety
    /// The bucket is live, and the caller's to give.
    unsafe fn put(&mut self, bucket: *mut Bucket) {
        // SAFETY: the promise; what is in the list is live.
        unsafe {
            if (*bucket).seq == SmrSeq::INVALID || self.full.is_null() {
                (*bucket).next = self.full;
                self.full = bucket;
                if (*bucket).next.is_null() {
                    self.full_last = bucket;
                }
            } else {
                (*bucket).next = ptr::null_mut();
                (*self.full_last).next = bucket;
                self.full_last = bucket;
            }
            self.nitems += usize::from((*bucket).cnt);
        }
        self.imax = self.imax.max(self.nitems);
    }

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

/// The list of zones.
impl Zone {
    /// Puts the zone into the list of zones, at its end.
    fn register(&'static self) {
        if self.registered.load(Ordering::Relaxed) || self.registered.swap(true, Ordering::AcqRel) {
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
        self.join_waiters();
        self.fit_buckets();
    }

    /// Ends a zone that `zcreate` made: what it holds goes back to the page allocator, and it is listed no more. Says so
    /// if items were not freed. Must be called from a thread, which visits all CPUs.
    ///
    /// # Safety
    /// Nobody uses the zone, or a zone that shares its keg, any more.
    #[doc(alias = "uma_zdestroy")]
    pub unsafe fn destroy(&'static self) {
        if self.destroyed.swap(true, Ordering::AcqRel) {
            return;
        }
        if !self.is_secondary() {
            self.keg().set_reserve(0);
        }
        reclaim::drain_everywhere(self);
        if let Some(report) = self.leak_report() {
            crate::kprintf!("{report}\n");
        }
        let pages = self.keg().counts().pages;
        if !self.is_secondary() && pages > 0 {
            crate::kprintf!(
                "Freed UMA keg ({}) was not empty ({} items).  Lost {pages} pages of memory.\n",
                self.name,
                self.keg().counts().out
            );
        }
    }

    /// What there is to say if items were not freed.
    fn leak_report(&self) -> Option<String> {
        let leaked = self.used();
        (leaked > 0 && !self.is_internal())
            .then(|| alloc::format!("zone {} leaked {leaked} items", self.name))
    }
}

impl Drop for Zone {
    /// The machine ends. (On bare metal a zone is a static, or leaked: it is never dropped.)
    fn drop(&mut self) {
        if let Some(report) = self.leak_report() {
            // The message buffer may be gone already.
            machine::console_write(report.as_bytes());
            machine::console_write(b"\n");
        }
    }
}

/// Makes what all zones share, so that on a machine that ends it outlives all that may free an item.
#[doc(alias = "uma_startup1")]
pub fn startup() {
    vm_page::stats();
    ZONES.get();
    reclaim::startup();
    uma_dbg::startup();
    keg::startup();
    super::uma_cache::startup();
    stats::startup();
}

/// The zones of this machine that were used.
pub fn zones() -> impl Iterator<Item = &'static Zone> {
    // SAFETY: zones in the list live as long as the machine.
    let at = |link: &AtomicPtr<Zone>| unsafe { link.load(Ordering::Acquire).as_ref() };
    core::iter::successors(at(ZONES.get()), move |zone: &&'static Zone| at(&zone.next))
        .filter(|zone| !zone.destroyed.load(Ordering::Acquire))
}

/// Makes a zone at run time; it is there until `destroy` or the end of the machine.
#[doc(alias = "uma_zcreate")]
pub fn zcreate(zone: Zone) -> &'static Zone {
    let zone: &'static Zone = machine::leak(Box::new(zone));
    zone.register();
    zone
}

/// The zone of this name and size, made if there is none.
pub fn find_or_create(name: &'static str, size: usize, align: usize) -> &'static Zone {
    let _one = CREATE.get().lock();
    let same = |zone: &&'static Zone| {
        zone.name == name
            && zone.size == size
            && zone.keg().layout == keg::KegLayout::new(size, align)
    };
    zones()
        .find(same)
        .unwrap_or_else(|| zcreate(Zone::new(name, size, align)))
}

#[cfg(test)]
mod tests;
