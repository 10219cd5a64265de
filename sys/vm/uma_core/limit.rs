//! Limits, and waiting for items.
//!
//! FreeBSD: sys/vm/uma_core.c (zone_alloc_limit, zone_log_warning, zone_maxaction)
//! Differs from FreeBSD: a sleeper calls in what CPUs hold of the keg's items, and from then on every item that is freed
//! anywhere goes to the keg and wakes it.

use super::keg::{Claim, Keg, Shortage};
use super::reclaim::{self, Reclaim};
use super::{Zone, zones};
use crate::kern::kern_mutex::SpinMutex;
use crate::kern::kern_synch::{WChan, wakeup_one};
use crate::kern::kern_sysctl::root;
use crate::kern::kern_thread::curthread;
use crate::kern::lock_order::UmaKeg;
use crate::kern::subr_sleepqueue::{self as sleepq, SleepUntil};
use crate::kern::subr_witness as witness;
use crate::machine;
use crate::machine::atomic::{AtomicBool, Ordering};
use crate::machine_local;
use crate::sysctl::Procedure;
use crate::time::Sbintime;
use crate::vm::uma::How;
use crate::vm::uma_cache::cache_flags;
use alloc::string::ToString;
use alloc::sync::Arc;
use core::ptr::NonNull;

/// A zone complains of its limit at most this often.
const WARNING_INTERVAL: Sbintime = Sbintime::from_s(300);

/// How long who wants memory sleeps before it looks for some again; nobody wakes it for pages.
const VM_WAIT: Sbintime = Sbintime::from_ms(10);

machine_local! {
    static ZONE_WARNINGS: AtomicBool = AtomicBool::new(true);
    /// Held while the number of a keg's sleepers changes, and with it the flags of zones, which may draw on two kegs. No
    /// keg's lock is taken under it.
    static WAITING: SpinMutex<(), UmaKeg> = SpinMutex::new(());
}

/// Puts `vm.zone_warnings` into the sysctl tree.
pub(super) fn startup() {
    WAITING.get();
    let read = || u32::from(ZONE_WARNINGS.get().load(Ordering::Relaxed)).to_string();
    let write = |value: &str| {
        let on: i64 = value.parse().map_err(|_| crate::errno::Errno::EINVAL)?;
        ZONE_WARNINGS.get().store(on != 0, Ordering::Relaxed);
        Ok(())
    };
    let leaf = Procedure::new("Warn when UMA zones becomes full", read, write);
    root().register("vm.zone_warnings", Arc::new(leaf));
}

impl Zone {
    /// Limits the number of items that may be in use or cached, for this zone and those that share its keg; 0 for no
    /// limit. Returns the limit.
    #[doc(alias = "uma_zone_set_max")]
    pub fn set_max(&self, max: usize) -> usize {
        let keg = self.keg();
        keg.set_max(max);
        // (This zone may not be in the list yet.)
        self.fit_buckets();
        zones()
            .filter(|zone| zone.draws_on(keg))
            .for_each(Zone::fit_buckets);
        max
    }

    /// Makes buckets as small as the limits demand to which the zone's items are subject: a few items must not get stuck on
    /// idle CPUs. Where a limit demands less than it did, buckets are as large again as at first.
    pub(super) fn fit_buckets(&self) {
        let share = |zone: &Zone| match zone.max() {
            0 => usize::MAX,
            max => (max / (4 * machine::ncpus())).max(1),
        };
        let held = self.holds.map_or(usize::MAX, |zone| share(zone()));
        let (begin, max) = self.bucket_sizes();
        let mut state = self.state.lock();
        state.bucket_size_max = max.min(share(self)).min(held);
        state.bucket_size = state.bucket_size.max(begin).min(state.bucket_size_max);
    }

    /// The limit, 0 for none.
    #[doc(alias = "uma_zone_get_max")]
    pub fn max(&self) -> usize {
        self.keg().state.lock().max()
    }

    /// Whether items must not be cached, because somebody sleeps for want of one.
    pub(super) fn is_waited_for(&self) -> bool {
        self.caches[0].has(cache_flags::WAITERS)
    }

    /// Sets the flag of every CPU as it should be. A CPU has seen it when it was visited afterwards.
    #[doc(alias = "zone_update_caches")]
    fn update_waited_for(&self) {
        let waited_for = |keg: &Keg| keg.sleepers.load(Ordering::Relaxed) > 0;
        let on = waited_for(self.keg()) || self.holds.is_some_and(|zone| waited_for(zone().keg()));
        for cache in &self.caches {
            cache.set_flag(cache_flags::WAITERS, on);
        }
    }

    /// A zone that is new in the list learns that others wait for what it may cache.
    pub(super) fn join_waiters(&self) {
        let _one = WAITING.get().lock();
        self.update_waited_for();
    }

    /// Sleeps until there is an item, behind those who sleep already.
    #[doc(alias = "zone_alloc_limit_hard")]
    pub(super) fn alloc_wait(&'static self) -> NonNull<u8> {
        self.sleeps.fetch_add(1, Ordering::Relaxed);
        let keg = self.keg();
        keg.announce();
        // From here on no item of the keg comes to rest in a cache; this gets at those that did before.
        reclaim::call_in(keg);
        let mut claim = Claim::Ordinary;
        loop {
            match self.import_one(How::Wait, claim) {
                Ok(item) => {
                    keg.withdraw(claim);
                    return item;
                }
                Err(Shortage::Limit) => claim = keg.sleep(Shortage::Limit, claim),
                Err(Shortage::Memory) => {
                    reclaim::reclaim(Reclaim::DrainCpu);
                    claim = keg.sleep(Shortage::Memory, claim);
                }
            }
        }
    }

    /// Says that the limit is reached, now and then, and lets something be done about it.
    #[doc(alias = "zone_log_warning")]
    #[doc(alias = "zone_maxaction")]
    pub(super) fn complain(&self) {
        if let Some(warning) = self.warning
            && ZONE_WARNINGS.get().load(Ordering::Relaxed)
        {
            let now = machine::sbinuptime();
            let last = self.warned.load(Ordering::Relaxed);
            let due = last == i64::MIN || now - Sbintime(last) >= WARNING_INTERVAL;
            if due
                && self
                    .warned
                    .compare_exchange(last, now.0, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
            {
                crate::kprintf!("[zone: {}] {warning}\n", self.name);
            }
        }
        if self.maxaction.is_some() && !self.action_due.swap(true, Ordering::AcqRel) {
            reclaim::maxaction_due();
        }
    }
}

impl Keg {
    /// Lets everybody know that a thread waits for an item of this keg.
    fn announce(&self) {
        self.add_sleepers(1);
    }

    /// A thread has its item. Others may have gone to sleep though there was room for more than those that slept before:
    /// the first of them is woken, and sees to the next.
    fn withdraw(&self, claim: Claim) {
        let mut keg = self.state.lock();
        if let Claim::Slept = claim {
            keg.waiting -= 1;
        }
        let more = keg.waiting > 0 && keg.room(Claim::Slept) > 0;
        drop(keg);
        self.add_sleepers(u32::MAX);
        if more {
            wakeup_one(WChan::of(self));
        }
    }

    fn add_sleepers(&self, n: u32) {
        let _one = WAITING.get().lock();
        let before = self.sleepers.load(Ordering::Relaxed);
        let after = before.wrapping_add(n);
        self.sleepers.store(after, Ordering::Relaxed);
        if before == 0 || after == 0 {
            zones()
                .filter(|zone| zone.draws_on(self))
                .for_each(Zone::update_waited_for);
        }
    }

    /// Sleeps until an item comes back; not at all if one has since `why` was found. Returns what it then may take.
    fn sleep(&self, why: Shortage, claim: Claim) -> Claim {
        let until = SleepUntil {
            deadline: (why == Shortage::Memory)
                .then(|| machine::sbinuptime().saturating_add(VM_WAIT)),
            catch: false,
        };
        let mut keg = self.state.lock();
        if why == Shortage::Limit && keg.room(claim) > 0 {
            return claim;
        }
        if let Claim::Ordinary = claim {
            keg.waiting += 1;
        }
        let chan = WChan::of(self);
        sleepq::add(chan, "zonelimit", until);
        drop(keg);
        witness::check_sleep(curthread(), "zonelimit");
        let _ = sleepq::wait(chan, until);
        Claim::Slept
    }
}
