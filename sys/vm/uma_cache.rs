//! Buckets, and the CPU's own: where almost every allocation ends.
//!
//! FreeBSD: sys/vm/uma_core.c (cache_alloc, cache_free, bucket_*), sys/vm/uma_int.h

use super::uma_core::{Zone, ZoneFlags};
use crate::kern::subr_smr::SmrSeq;
use crate::machine::atomic::{AtomicU32, AtomicU64, Cell, Ordering, UnsafeCell};
use crate::machine::{self, CriticalBlock};
use crate::machine_local;
use crate::param::MAXCPU;
use core::mem::size_of;
use core::ptr::{self, NonNull};

/// Entries of a bucket that takes as much memory as `n` pointers.
#[doc(alias = "BUCKET_SIZE")]
const fn bucket_entries(n: usize) -> usize {
    n - size_of::<Bucket>() / size_of::<NonNull<u8>>()
}

/// Most items in a bucket: with its header it is 2 KiB.
pub(super) const BUCKET_MAX: usize = bucket_entries(256);

/// A stack of free items. The items follow the header.
#[doc(alias = "uma_bucket")]
#[repr(C)]
pub(super) struct Bucket {
    /// In a list of the zone.
    pub(super) next: *mut Bucket,
    /// Items in it; while a CPU holds the bucket, its `CacheBucket` knows better.
    pub(super) cnt: u16,
    /// Most items.
    pub(super) entries: u16,
    /// The goal that readers must reach before its items are used again; `INVALID` if they have none.
    pub(super) seq: SmrSeq,
    /// Nothing; a model checker sees by it who uses the items.
    items: UnsafeCell<()>,
}

impl Bucket {
    /// # Safety
    /// `bucket` is a live bucket and `i < entries`.
    #[inline(always)]
    pub(super) unsafe fn slot(bucket: *mut Bucket, i: usize) -> *mut NonNull<u8> {
        // SAFETY: the items follow the header, by the promise in bounds.
        unsafe {
            (*bucket).items.get();
            bucket.add(1).cast::<NonNull<u8>>().add(i)
        }
    }

    /// # Safety
    /// `bucket` is a live bucket that nobody else uses, and not empty.
    pub(super) unsafe fn pop(bucket: *mut Bucket) -> NonNull<u8> {
        // SAFETY: the promise.
        unsafe {
            (*bucket).cnt -= 1;
            Self::slot(bucket, usize::from((*bucket).cnt)).read()
        }
    }

    /// # Safety
    /// `bucket` is a live bucket that nobody else uses, and not full.
    pub(super) unsafe fn push(bucket: *mut Bucket, item: NonNull<u8>) {
        // SAFETY: the promise.
        unsafe {
            Self::slot(bucket, usize::from((*bucket).cnt)).write(item);
            (*bucket).cnt += 1;
        }
    }

    /// The items.
    ///
    /// # Safety
    /// `bucket` is a live bucket that nobody else uses while the iterator lives.
    pub(super) unsafe fn items(bucket: *mut Bucket) -> impl Iterator<Item = NonNull<u8>> + Clone {
        // SAFETY: the promise.
        unsafe { (0..usize::from((*bucket).cnt)).map(move |i| Self::slot(bucket, i).read()) }
    }

    const fn size_of(entries: usize) -> usize {
        size_of::<Bucket>() + entries * size_of::<NonNull<u8>>()
    }
}

/// Entries and largest item size of a kind of bucket.
struct BucketKind {
    entries: usize,
    max_item: usize,
}

const KINDS: [BucketKind; 8] = [
    BucketKind {
        entries: 2,
        max_item: 4096,
    },
    BucketKind {
        entries: 4,
        max_item: 3072,
    },
    BucketKind {
        entries: 8,
        max_item: 2048,
    },
    BucketKind {
        entries: 16,
        max_item: 1024,
    },
    BucketKind {
        entries: bucket_entries(32),
        max_item: 512,
    },
    BucketKind {
        entries: bucket_entries(64),
        max_item: 256,
    },
    BucketKind {
        entries: bucket_entries(128),
        max_item: 128,
    },
    BucketKind {
        entries: BUCKET_MAX,
        max_item: 64,
    },
];

machine_local! {
    /// The zones that buckets come from. They have no buckets themselves.
    static BUCKET_ZONES: [Zone; KINDS.len()] = [
        bucket_zone("2 Bucket", 2),
        bucket_zone("4 Bucket", 4),
        bucket_zone("8 Bucket", 8),
        bucket_zone("16 Bucket", 16),
        bucket_zone("32 Bucket", bucket_entries(32)),
        bucket_zone("64 Bucket", bucket_entries(64)),
        bucket_zone("128 Bucket", bucket_entries(128)),
        bucket_zone("256 Bucket", BUCKET_MAX),
    ];
}

const fn bucket_zone(name: &'static str, entries: usize) -> Zone {
    Zone::new(name, Bucket::size_of(entries), 16)
        .with_flags(ZoneFlags::NOBUCKET.union(ZoneFlags::INTERNAL))
}

/// Makes the bucket zones.
pub(super) fn startup() {
    BUCKET_ZONES.get();
}

/// How many items a bucket of a zone with items of `size` bytes begins with.
pub(super) const fn bucket_select(size: usize) -> usize {
    if size > KINDS[0].max_item {
        let share = KINDS[0].max_item * KINDS[0].entries / size;
        return if share == 0 { 1 } else { share };
    }
    let mut i = KINDS.len() - 1;
    while KINDS[i].max_item < size {
        i -= 1;
    }
    KINDS[i].entries
}

/// The kind of bucket that holds `entries`.
fn kind_for(entries: usize) -> usize {
    KINDS
        .iter()
        .position(|kind| entries <= kind.entries)
        .unwrap_or(KINDS.len() - 1)
}

/// An empty bucket for at least `entries` items (or as many as the largest holds).
pub(super) fn bucket_alloc(entries: usize) -> Option<*mut Bucket> {
    let kind = kind_for(entries);
    let zone: &'static Zone = &BUCKET_ZONES.get()[kind];
    let bucket: *mut Bucket = zone.alloc(super::uma::How::NoWait)?.as_ptr().cast();
    // SAFETY: the zone's items are large enough and aligned, and this one is ours.
    unsafe {
        bucket.write(Bucket {
            next: ptr::null_mut(),
            cnt: 0,
            entries: KINDS[kind].entries as u16,
            seq: SmrSeq::INVALID,
            items: UnsafeCell::new(()),
        });
    }
    Some(bucket)
}

/// # Safety
/// `bucket` came from `bucket_alloc`, is empty, and nobody uses it any more.
pub(super) unsafe fn bucket_free(bucket: *mut Bucket) {
    // SAFETY: the promise.
    unsafe {
        debug_assert_eq!((*bucket).cnt, 0);
        let kind = kind_for(usize::from((*bucket).entries));
        let zone: &'static Zone = &BUCKET_ZONES.get()[kind];
        zone.free(NonNull::new_unchecked(bucket.cast()));
    }
}

/// Proof that we stay on this CPU and are not preempted: a critical section.
pub(crate) struct OnCpu {
    /// Below `MAXCPU`.
    cpu: usize,
    _section: CriticalBlock,
}

impl OnCpu {
    #[inline(always)]
    pub(crate) fn enter() -> Self {
        let section = CriticalBlock::enter();
        let cpu = machine::curcpu();
        debug_assert!(cpu < MAXCPU);
        Self {
            cpu,
            _section: section,
        }
    }

    /// This CPU's part of a zone.
    #[inline(always)]
    pub(super) fn cache<'c>(&self, caches: &'c [Cache; MAXCPU]) -> &'c Cache {
        // SAFETY: `curcpu` is below `MAXCPU` on every machine.
        unsafe { caches.get_unchecked(self.cpu) }
    }
}

/// What the fast paths must leave to the slow ones, in one word beside the buckets.
pub(super) mod cache_flags {
    /// There is a constructor.
    pub(in super::super) const CTOR: u32 = 0x1;
    /// There is a destructor.
    pub(in super::super) const DTOR: u32 = 0x2;
    /// Somebody sleeps until an item is freed: nothing stays in a cache.
    pub(in super::super) const WAITERS: u32 = 0x4;
    /// Items are checked, each time.
    pub(in super::super) const DEBUG: u32 = 0x8;
    /// Items may have readers when they are freed: they are freed otherwise.
    pub(in super::super) const SMR: u32 = 0x10;

    pub(super) const SLOW_ALLOC: u32 = CTOR | DEBUG;
    pub(super) const SLOW_FREE: u32 = DTOR | WAITERS | DEBUG | SMR;
}

/// A bucket as a CPU holds it: the counts stand here, so that the fast paths touch one line of the cache's and one of
/// the bucket. Without a bucket it is both empty and full, so that they need not ask.
#[doc(alias = "uma_cache_bucket")]
struct CacheBucket {
    bucket: Cell<*mut Bucket>,
    cnt: Cell<u32>,
    entries: Cell<u32>,
}

impl CacheBucket {
    const fn new() -> Self {
        Self {
            bucket: Cell::new(ptr::null_mut()),
            cnt: Cell::new(0),
            entries: Cell::new(0),
        }
    }

    fn swap(&self, other: &Self) {
        self.bucket.swap(&other.bucket);
        self.cnt.swap(&other.cnt);
        self.entries.swap(&other.entries);
    }

    #[inline(always)]
    fn pop(&self) -> Option<NonNull<u8>> {
        let cnt = self.cnt.get().checked_sub(1)?;
        self.cnt.set(cnt);
        // SAFETY: `cnt` counts the items of the bucket, which is live while it is here.
        Some(unsafe { Bucket::slot(self.bucket.get(), cnt as usize).read() })
    }

    #[inline(always)]
    fn push(&self, item: NonNull<u8>) -> bool {
        let cnt = self.cnt.get();
        if cnt == self.entries.get() {
            return false;
        }
        // SAFETY: below `entries`; the bucket is live while it is here.
        unsafe { Bucket::slot(self.bucket.get(), cnt as usize).write(item) };
        self.cnt.set(cnt + 1);
        true
    }

    /// # Safety
    /// The bucket is live, and the caller's to give.
    #[doc(alias = "cache_bucket_load")]
    unsafe fn load(&self, bucket: *mut Bucket) {
        // SAFETY: the promise.
        unsafe {
            self.cnt.set(u32::from((*bucket).cnt));
            self.entries.set(u32::from((*bucket).entries));
        }
        self.bucket.set(bucket);
    }

    /// Takes the bucket out, if there is one; it is the caller's then.
    #[doc(alias = "cache_bucket_unload")]
    fn unload(&self) -> Option<*mut Bucket> {
        let bucket = self.bucket.replace(ptr::null_mut());
        let cnt = self.cnt.take();
        self.entries.set(0);
        if bucket.is_null() {
            return None;
        }
        // SAFETY: a bucket in a cache is live.
        unsafe { (*bucket).cnt = cnt as u16 };
        Some(bucket)
    }
}

/// A CPU's part of a zone. Only that CPU, in a critical section, touches the buckets, so that neither lock nor atomic
/// operation is needed; the counts may be read by anyone.
///
/// Aligned to two lines, since processors fetch lines in pairs.
#[doc(alias = "uma_cache")]
#[repr(C, align(128))]
pub(super) struct Cache {
    alloc: CacheBucket,
    free: CacheBucket,
    allocs: AtomicU64,
    frees: AtomicU64,
    /// `cache_flags`; each CPU has a copy beside what it reads anyway.
    flags: AtomicU32,
    /// The flags that it was made with: what is in an atomic is not known to the compiler.
    begun: u32,
}

impl Cache {
    pub(super) const fn new(flags: u32) -> Self {
        Self {
            alloc: CacheBucket::new(),
            free: CacheBucket::new(),
            allocs: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            flags: AtomicU32::new(flags),
            begun: flags,
        }
    }

    /// Sets flags of a zone that is being made.
    pub(super) const fn begin_with(&mut self, flags: u32) {
        let flags = flags | self.begun;
        self.flags = AtomicU32::new(flags);
        self.begun = flags;
    }

    #[inline(always)]
    pub(super) fn has(&self, flags: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & flags != 0
    }

    /// Sets or clears a flag; who needs this CPU to have seen it must visit the CPU afterwards.
    pub(super) fn set_flag(&self, flag: u32, on: bool) {
        if on {
            self.flags.fetch_or(flag, Ordering::AcqRel);
        } else {
            self.flags.fetch_and(!flag, Ordering::AcqRel);
        }
    }

    /// The fast path: takes an item from the allocation bucket, if there is one and nothing else is to be done.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU.
    #[inline(always)]
    pub(super) unsafe fn alloc_fast(&self) -> Option<NonNull<u8>> {
        if self.has(cache_flags::SLOW_ALLOC) {
            return None;
        }
        let item = self.alloc.pop()?;
        // SAFETY: the promise.
        unsafe { self.count_alloc() };
        Some(item)
    }

    /// The fast path: takes the item if there is room, and nothing else to be done.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU; the item is the caller's to give.
    #[inline(always)]
    pub(super) unsafe fn free_fast(&self, item: NonNull<u8>) -> bool {
        // SAFETY: the promise, for both.
        unsafe {
            if self.has(cache_flags::SLOW_FREE) || !self.push(item) {
                return false;
            }
            self.count_free();
        }
        true
    }

    /// Takes an item from the allocation bucket, else exchanges the buckets and takes one of those just freed.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU.
    pub(super) unsafe fn pop(&self) -> Option<NonNull<u8>> {
        // What was freed to a zone with readers waits in the zone until these have left.
        if self.alloc.cnt.get() == 0 && !self.has(cache_flags::SMR) {
            self.alloc.swap(&self.free);
        }
        self.alloc.pop()
    }

    /// Puts an item into the allocation bucket, so that the next allocation finds it warm, else into the other. False if
    /// both are full.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU; the item is the caller's to give.
    #[inline(always)]
    pub(super) unsafe fn push(&self, item: NonNull<u8>) -> bool {
        self.alloc.push(item) || self.free.push(item)
    }

    /// Puts an item that may have readers where it is not taken from.
    ///
    /// # Safety
    /// As for `push`.
    pub(super) unsafe fn push_smr(&self, item: NonNull<u8>) -> bool {
        self.free.push(item)
    }

    /// Installs a bucket with items to allocate from. Returns one that the cache has no place for.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU; the bucket is the caller's.
    pub(super) unsafe fn install_full(&self, bucket: *mut Bucket) -> Option<*mut Bucket> {
        if self.alloc.cnt.get() > 0 {
            // Meanwhile we moved to another CPU, or somebody freed.
            return Some(bucket);
        }
        if self.has(cache_flags::WAITERS) {
            return Some(bucket);
        }
        let old = self.alloc.unload();
        // SAFETY: the promise.
        unsafe { self.alloc.load(bucket) };
        let empty = old?;
        if !self.free.bucket.get().is_null() {
            return Some(empty);
        }
        // SAFETY: just taken out.
        unsafe { self.free.load(empty) };
        None
    }

    /// Installs a bucket with room to free to. Returns the one that was there, or the new one if none may stay.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU; the bucket is the caller's.
    pub(super) unsafe fn install_empty(&self, bucket: *mut Bucket) -> Option<*mut Bucket> {
        if self.has(cache_flags::WAITERS) {
            return Some(bucket);
        }
        let old = self.free.unload();
        // SAFETY: the promise.
        unsafe { self.free.load(bucket) };
        old
    }

    /// Takes both buckets out; the second is the one that was freed to.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU.
    pub(super) unsafe fn take_buckets(&self) -> [Option<*mut Bucket>; 2] {
        [self.alloc.unload(), self.free.unload()]
    }

    /// # Safety
    /// We hold the critical section of this cache's CPU.
    #[inline(always)]
    pub(super) unsafe fn count_alloc(&self) {
        // Only this CPU writes: no read-modify-write is needed.
        let allocs = self.allocs.load(Ordering::Relaxed);
        self.allocs.store(allocs.wrapping_add(1), Ordering::Relaxed);
    }

    /// # Safety
    /// We hold the critical section of this cache's CPU.
    #[inline(always)]
    pub(super) unsafe fn count_free(&self) {
        let frees = self.frees.load(Ordering::Relaxed);
        self.frees.store(frees.wrapping_add(1), Ordering::Relaxed);
    }

    /// Allocations so far.
    pub(super) fn allocs(&self) -> u64 {
        self.allocs.load(Ordering::Acquire)
    }

    /// Frees so far.
    pub(super) fn frees(&self) -> u64 {
        self.frees.load(Ordering::Acquire)
    }
}
