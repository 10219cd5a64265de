//! Zones: the allocator for things of one size.
//!
//! FreeBSD: sys/vm/uma.h
//! Differs from FreeBSD: a zone is a static or lives as long as its machine; a `TypedZone` hands out owned, typed items.
//!
//! From the item to the page: a CPU takes items from its own *buckets* (`uma_cache.rs`), buckets go to and from the
//! *zone*, which fills them from its *keg*, which cuts *slabs* of pages into items (`uma_core.rs`).

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

pub use super::uma_core::{
    Hooks, Reclaim, Zone, ZoneFlags, find_or_create, reclaim, startup, startup3, zcreate, zones,
};

/// What to do when there is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[doc(alias = "M_NOWAIT")]
#[doc(alias = "M_WAITOK")]
pub enum How {
    /// Fail at once; the only choice in interrupt threads and under locks.
    NoWait,
    /// Sleep until there is some.
    Wait,
}

/// One line of `vmstat -z`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneStats {
    /// Name.
    pub name: &'static str,
    /// Bytes per item.
    pub size: usize,
    /// Most items that may exist, 0 for no limit.
    pub limit: u64,
    /// Items in use.
    pub used: u64,
    /// Items cached or free in slabs.
    pub free: u64,
    /// Allocations asked for.
    pub requests: u64,
    /// Allocations that failed.
    pub fails: u64,
    /// Allocations that slept.
    pub sleeps: u64,
    /// Frees from another memory domain (always 0: there is one).
    pub xdomain: u64,
}

/// A zone of `T`.
pub struct TypedZone<T> {
    zone: &'static Zone,
    _items: PhantomData<fn() -> T>,
}

impl<T> Clone for TypedZone<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for TypedZone<T> {}

impl<T> TypedZone<T> {
    /// The zone called `name` of the current machine, made if there is none of this name and size.
    #[doc(alias = "uma_zcreate")]
    pub fn new(name: &'static str) -> Self {
        let layout = Layout::new::<T>();
        Self {
            zone: find_or_create(name, layout.size().max(1), layout.align()),
            _items: PhantomData,
        }
    }

    /// Moves `value` into an item; without memory it comes back.
    #[doc(alias = "uma_zalloc")]
    pub fn alloc(&self, value: T, how: How) -> Result<ZBox<T>, T> {
        let Some(item) = self.zone.alloc(how) else {
            return Err(value);
        };
        let item = item.cast::<T>();
        // SAFETY: the zone's items have the size and alignment of `T`, and this one is ours.
        unsafe { item.write(value) };
        Ok(ZBox {
            item,
            zone: self.zone,
        })
    }

    /// Limits the number of items; 0 for no limit.
    #[doc(alias = "uma_zone_set_max")]
    pub fn set_max(&self, max: usize) -> usize {
        self.zone.set_max(max)
    }

    /// Counts now.
    pub fn stats(&self) -> ZoneStats {
        self.zone.stats()
    }
}

/// An owned item of a `TypedZone`.
pub struct ZBox<T> {
    item: NonNull<T>,
    zone: &'static Zone,
}

// SAFETY: owns its `T` as a `Box` does; the zone is `Sync`.
unsafe impl<T: Send> Send for ZBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for ZBox<T> {}

impl<T> Deref for ZBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `alloc` wrote it, and it is ours until we are dropped.
        unsafe { self.item.as_ref() }
    }
}

impl<T> DerefMut for ZBox<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`.
        unsafe { self.item.as_mut() }
    }
}

impl<T> Drop for ZBox<T> {
    #[doc(alias = "uma_zfree")]
    fn drop(&mut self) {
        // SAFETY: `alloc` wrote it, and nobody uses it after us; the item is of this zone.
        unsafe {
            self.item.drop_in_place();
            self.zone.free(self.item.cast());
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for ZBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
