//! Buckets, and the CPU's own: where almost every allocation ends.
//!
//! FreeBSD: sys/vm/uma_core.c (cache_alloc, cache_free, bucket_*), sys/vm/uma_int.h

use super::uma_core::{Zone, ZoneFlags};
use crate::machine;
use crate::machine::atomic::{AtomicU64, Ordering};
use crate::machine_local;
use crate::param::MAXCPU;
use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::size_of;
use core::ptr::{self, NonNull};

/// Most items in a bucket: with its header it is 2 KiB.
pub(super) const BUCKET_MAX: usize = 254;

/// A stack of free items. The items follow the header.
#[repr(C)]
pub(super) struct Bucket {
    /// In a list of the zone.
    pub(super) next: *mut Bucket,
    pub(super) cnt: u32,
    pub(super) entries: u32,
}

impl Bucket {
    /// # Safety
    /// `bucket` is a live bucket and `i < entries`.
    #[inline(always)]
    pub(super) unsafe fn slot(bucket: *mut Bucket, i: usize) -> *mut NonNull<u8> {
        // SAFETY: the items follow the header, by the promise in bounds.
        unsafe { bucket.add(1).cast::<NonNull<u8>>().add(i) }
    }

    /// # Safety
    /// `bucket` is a live bucket that nobody else uses, and not empty.
    #[inline(always)]
    pub(super) unsafe fn pop(bucket: *mut Bucket) -> NonNull<u8> {
        // SAFETY: the promise.
        unsafe {
            (*bucket).cnt -= 1;
            Self::slot(bucket, (*bucket).cnt as usize).read()
        }
    }

    /// # Safety
    /// `bucket` is a live bucket that nobody else uses, and not full.
    #[inline(always)]
    pub(super) unsafe fn push(bucket: *mut Bucket, item: NonNull<u8>) {
        // SAFETY: the promise.
        unsafe {
            Self::slot(bucket, (*bucket).cnt as usize).write(item);
            (*bucket).cnt += 1;
        }
    }

    const fn size_of(entries: usize) -> usize {
        size_of::<Bucket>() + entries * size_of::<NonNull<u8>>()
    }
}

// SAFETY: a bucket is protected by whatever holds it: a zone's lock or a CPU's critical section.
unsafe impl Sync for Bucket {}

/// Stands in a cache where there is no bucket: both empty and full, so that the fast paths need not ask.
static NONE: Bucket = Bucket {
    next: ptr::null_mut(),
    cnt: 0,
    entries: 0,
};

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
        entries: 30,
        max_item: 512,
    },
    BucketKind {
        entries: 62,
        max_item: 256,
    },
    BucketKind {
        entries: 126,
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
        bucket_zone("32 Bucket", 30),
        bucket_zone("64 Bucket", 62),
        bucket_zone("128 Bucket", 126),
        bucket_zone("256 Bucket", BUCKET_MAX),
    ];
}

const fn bucket_zone(name: &'static str, entries: usize) -> Zone {
    Zone::new(name, Bucket::size_of(entries), 16).with_flags(ZoneFlags::NOBUCKET)
}

/// Makes the bucket zones.
pub(super) fn startup() {
    BUCKET_ZONES.get();
}

/// How many items a bucket of a zone with items of `size` bytes begins with.
#[doc(alias = "bucket_select")]
pub(super) const fn bucket_size_for(size: usize) -> usize {
    let mut i = KINDS.len();
    while i > 0 {
        i -= 1;
        if size <= KINDS[i].max_item {
            return KINDS[i].entries;
        }
    }
    1
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
            entries: KINDS[kind].entries as u32,
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
        let kind = kind_for((*bucket).entries as usize);
        let zone: &'static Zone = &BUCKET_ZONES.get()[kind];
        zone.free(NonNull::new_unchecked(bucket.cast()));
    }
}

/// Proof that we stay on this CPU and are not preempted: a critical section.
pub(crate) struct OnCpu {
    /// Below `MAXCPU`.
    cpu: usize,
    _here: PhantomData<*mut ()>,
}

impl OnCpu {
    #[inline(always)]
    pub(crate) fn enter() -> Self {
        machine::critical_enter();
        let cpu = machine::curcpu();
        debug_assert!(cpu < MAXCPU);
        Self {
            cpu,
            _here: PhantomData,
        }
    }

    /// This CPU's part of a zone.
    #[inline(always)]
    pub(super) fn cache<'c>(&self, caches: &'c [Cache; MAXCPU]) -> &'c Cache {
        // SAFETY: `curcpu` is below `MAXCPU` on every machine.
        unsafe { caches.get_unchecked(self.cpu) }
    }
}

impl Drop for OnCpu {
    #[inline(always)]
    fn drop(&mut self) {
        machine::critical_exit();
    }
}

fn is_bucket(bucket: *mut Bucket) -> bool {
    !ptr::eq(bucket, &NONE)
}

/// A CPU's part of a zone. Only that CPU, in a critical section, touches the buckets, so that neither lock nor atomic
/// operation is needed; the counts may be read by anyone.
#[repr(align(64))]
pub(super) struct Cache {
    pub(super) alloc: Cell<*mut Bucket>,
    pub(super) free: Cell<*mut Bucket>,
    allocs: AtomicU64,
    frees: AtomicU64,
}

impl Cache {
    pub(super) const fn new() -> Self {
        Self {
            alloc: Cell::new((&raw const NONE).cast_mut()),
            free: Cell::new((&raw const NONE).cast_mut()),
            allocs: AtomicU64::new(0),
            frees: AtomicU64::new(0),
        }
    }

    /// Takes an item from the allocation bucket, else exchanges the buckets and takes one of those just freed.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU.
    #[inline(always)]
    pub(super) unsafe fn pop(&self) -> Option<NonNull<u8>> {
        let mut bucket = self.alloc.get();
        // SAFETY: buckets in a cache are live, and ours by the promise; `NONE` is empty and only read.
        unsafe {
            if (*bucket).cnt == 0 {
                let full = self.free.get();
                if (*full).cnt == 0 {
                    return None;
                }
                self.alloc.set(full);
                self.free.set(bucket);
                bucket = full;
            }
            Some(Bucket::pop(bucket))
        }
    }

    /// Puts an item into the allocation bucket, so that the next allocation finds it warm, else into the other. False if
    /// both are full.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU.
    #[inline(always)]
    pub(super) unsafe fn push(&self, item: NonNull<u8>) -> bool {
        let mut bucket = self.alloc.get();
        // SAFETY: as for `pop`; `NONE` is full and only read.
        unsafe {
            if (*bucket).cnt == (*bucket).entries {
                bucket = self.free.get();
                if (*bucket).cnt == (*bucket).entries {
                    return false;
                }
            }
            Bucket::push(bucket, item);
        }
        true
    }

    /// Installs a bucket with items to allocate from. Returns one that the cache has no place for.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU; the bucket is the caller's.
    pub(super) unsafe fn install_full(&self, bucket: *mut Bucket) -> Option<*mut Bucket> {
        let old = self.alloc.get();
        // SAFETY: as for `pop`.
        if unsafe { (*old).cnt } > 0 {
            // Meanwhile we moved to another CPU, or somebody freed.
            return Some(bucket);
        }
        self.alloc.set(bucket);
        if is_bucket(self.free.get()) {
            return Some(old).filter(|&old| is_bucket(old));
        }
        self.free.set(old);
        None
    }

    /// Installs a bucket with room to free to. Returns the one that was there.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU; the bucket is the caller's.
    pub(super) unsafe fn install_empty(&self, bucket: *mut Bucket) -> Option<*mut Bucket> {
        Some(self.free.replace(bucket)).filter(|&old| is_bucket(old))
    }

    /// Takes both buckets out.
    ///
    /// # Safety
    /// We hold the critical section of this cache's CPU.
    pub(super) unsafe fn take_buckets(&self) -> impl Iterator<Item = *mut Bucket> {
        let none = (&raw const NONE).cast_mut();
        let buckets = [self.alloc.replace(none), self.free.replace(none)];
        buckets.into_iter().filter(|&bucket| is_bucket(bucket))
    }

    /// # Safety
    /// We hold the critical section of this cache's CPU.
    #[inline(always)]
    pub(super) unsafe fn count_alloc(&self) {
        // Only this CPU writes: no read-modify-write is needed.
        let allocs = self.allocs.load(Ordering::Relaxed);
        self.allocs.store(allocs + 1, Ordering::Relaxed);
    }

    /// # Safety
    /// We hold the critical section of this cache's CPU.
    #[inline(always)]
    pub(super) unsafe fn count_free(&self) {
        let frees = self.frees.load(Ordering::Relaxed);
        self.frees.store(frees + 1, Ordering::Relaxed);
    }

    /// Allocations and frees so far. Frees are read first, so that their difference is never below zero while others go
    /// on.
    pub(super) fn counts(&self) -> (u64, u64) {
        let frees = self.frees.load(Ordering::Acquire);
        (self.allocs.load(Ordering::Acquire), frees)
    }
}
