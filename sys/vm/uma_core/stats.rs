//! What zones report of themselves: `vmstat -z`, `vm.zone_count`, `vm.uma`, `vm.uma_kmem_*`.
//!
//! FreeBSD: sys/vm/uma_core.c (zone_alloc_sysctl, sysctl_vm_zone_count)
//! Differs from FreeBSD: the soft limit is one on all memory, not on what zones hold alone.
//! Not carried over: the binary stream `vm.zone_stats`, which has no reader here.

use super::{Zone, ZoneFlags, zones};
use crate::kern::kern_sysctl::root;
use crate::machine::{self, atomic::Ordering};
use crate::param::PAGE_SIZE;
use crate::sysctl::{ReadOnly, SysctlBranch};
use crate::vm::uma::ZoneStats;
use crate::vm::uma_cache::Cache;
use crate::vm::vm_page;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Puts the figures into the sysctl tree.
pub(super) fn startup() {
    let count = ReadOnly::new("Number of UMA zones", || zones().count().to_string());
    root().register("vm.zone_count", Arc::new(count));
    root().register_branch("vm.uma", Arc::new(UmaBranch));
    let limit = ReadOnly::new("UMA kernel memory soft limit", || kmem_limit().to_string());
    root().register("vm.uma_kmem_limit", Arc::new(limit));
    let total = ReadOnly::new("UMA kernel memory usage", || kmem_total().to_string());
    root().register("vm.uma_kmem_total", Arc::new(total));
    super::limit::startup();
}

/// Bytes that may be taken before zones are asked to give some back.
#[doc(alias = "uma_kmem_limit")]
fn kmem_limit() -> usize {
    let stats = vm_page::stats();
    (stats.total - stats.low_water()) * PAGE_SIZE
}

/// Bytes in slabs.
#[doc(alias = "uma_kmem_total")]
fn kmem_total() -> usize {
    let own = zones().filter(|zone| !zone.is_secondary());
    own.map(|zone| zone.keg().counts().pages * PAGE_SIZE).sum()
}

impl Zone {
    /// Counts now. Exact while nobody allocates or frees.
    pub fn stats(&self) -> ZoneStats {
        let (allocs, frees) = self.counts();
        let used = allocs.saturating_sub(frees);
        let cached = self.held.load(Ordering::Relaxed).saturating_sub(used);
        let keg = self.keg().counts();
        let in_slabs = if self.is_secondary() {
            0
        } else {
            keg.free_items
        };
        ZoneStats {
            name: self.name,
            size: self.size,
            limit: keg.max as u64,
            used,
            free: cached + in_slabs as u64,
            requests: allocs,
            fails: self.fails.load(Ordering::Relaxed),
            sleeps: self.sleeps.load(Ordering::Relaxed),
            xdomain: 0,
        }
    }

    /// Allocations and frees so far. The frees of all CPUs are read before the first allocation, which is counted before
    /// its free: their difference is never below what is in use throughout, while others go on.
    fn counts(&self) -> (u64, u64) {
        let caches = || self.caches.iter().inspect(|_| machine::interleave());
        let frees: u64 = caches().map(Cache::frees).sum();
        let frees = frees + self.strays.load(Ordering::Acquire);
        (caches().map(Cache::allocs).sum(), frees)
    }

    /// Items in users' hands.
    pub(super) fn used(&self) -> u64 {
        let (allocs, frees) = self.counts();
        allocs.saturating_sub(frees)
    }

    /// The leaves of `vm.uma.<zone>`.
    #[doc(alias = "zone_alloc_sysctl")]
    fn leaves(&self) -> Vec<(&'static str, String)> {
        let (allocs, frees) = self.counts();
        let own = self.keg();
        let keg = own.counts();
        let layout = &own.layout;
        let efficiency = 100 * layout.items * layout.rsize / layout.bytes();
        let state = self.state.lock();
        let (nitems, imax, imin, wss) = (state.nitems, state.imax, state.imin, state.wss);
        let (bucket_size, bucket_size_max) = (state.bucket_size, state.bucket_size_max);
        drop(state);
        let counter = |value: &crate::machine::atomic::AtomicU64| value.load(Ordering::Relaxed);
        let mut leaves = Vec::new();
        let mut leaf = |name, value: &dyn core::fmt::Display| {
            leaves.push((name, value.to_string()));
        };
        leaf("size", &self.size);
        leaf("flags", &self.flags_text());
        leaf("bucket_size", &bucket_size);
        leaf("bucket_size_max", &bucket_size_max);
        leaf("keg.name", &own.name);
        leaf("keg.rsize", &layout.rsize);
        leaf("keg.ppera", &layout.pages);
        leaf("keg.ipers", &layout.items);
        leaf("keg.align", &(own.align - 1));
        leaf("keg.reserve", &keg.reserve);
        leaf("keg.efficiency", &efficiency);
        leaf("keg.domain.0.pages", &keg.pages);
        leaf("keg.domain.0.free_items", &keg.free_items);
        leaf("keg.domain.0.free_slabs", &keg.free_slabs);
        leaf("limit.items", &keg.out);
        leaf("limit.max_items", &keg.max);
        leaf("limit.sleepers", &keg.sleepers);
        leaf("limit.sleeps", &counter(&self.sleeps));
        leaf("domain.0.nitems", &nitems);
        leaf("domain.0.imax", &imax);
        leaf("domain.0.imin", &imin);
        leaf("domain.0.wss", &wss);
        leaf("stats.current", &allocs.saturating_sub(frees));
        leaf("stats.allocs", &allocs);
        leaf("stats.frees", &frees);
        leaf("stats.fails", &counter(&self.fails));
        leaf("stats.xdomain", &0);
        leaves
    }

    /// The flags as `%b` prints them, the highest first.
    #[doc(alias = "sysctl_handle_uma_zone_flags")]
    fn flags_text(&self) -> String {
        let mut flags = self.flags;
        let hooks = self.hooks.ctor.is_some() || self.hooks.dtor.is_some();
        flags.set(ZoneFlags::OFFPAGE, self.keg().layout.header_at.is_none());
        flags.set(ZoneFlags::CTORDTOR, hooks || self.trashes());
        flags.set(ZoneFlags::LIMIT, self.max() != 0);
        flags.set(ZoneFlags::TRASH, self.trashes());
        let mut text = format!("{:#x}", flags.bits());
        let mut names: Vec<&str> = flags.iter_names().map(|(name, _)| name).collect();
        names.reverse();
        if !names.is_empty() {
            text += &format!("<{}>", names.join(","));
        }
        text
    }
}

/// `vm.uma`: zones come at any time, so the tree asks when somebody looks.
struct UmaBranch;

impl SysctlBranch for UmaBranch {
    fn walk(&self) -> Vec<(String, String)> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut all = Vec::new();
        for zone in zones() {
            let mut name = ctlname(zone.name);
            // FreeBSD: `uz_namecnt`.
            let count = seen.entry(name.clone()).or_default();
            if *count > 0 {
                name = format!("{name}_{count}");
            }
            *count += 1;
            let leaves = zone.leaves().into_iter();
            all.extend(leaves.map(|(leaf, value)| (format!("{name}.{leaf}"), value)));
        }
        all
    }
}

/// A zone's name as one component of a sysctl name.
#[doc(alias = "uz_ctlname")]
fn ctlname(name: &str) -> String {
    name.replace(['.', '/', '\\', ' ', '-'], "_")
}
