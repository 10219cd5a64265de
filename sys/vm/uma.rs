//! Zones: the allocator for things of one size.
//!
//! FreeBSD: sys/vm/uma.h

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
#[derive(Clone, Debug)]
pub struct ZoneStats {
    /// Name.
    pub name: alloc::string::String,
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
