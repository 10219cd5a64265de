//! Giving memory back: when it gets short, when it lay unused for long, and when a zone ends.
//!
//! FreeBSD: sys/vm/uma_core.c (uma_reclaim, zone_drain, zone_timeout, zone_domain_update_wss)
//! Differs from FreeBSD: one thread, "uma", does what there the page daemon, a callout and `taskqueue_thread` do; it only
//! wakes every 20 seconds while some zone has something to trim.

use super::keg::Keg;
use super::{Zone, ZoneFlags, ZoneState, zones};
use crate::kern::kern_synch::{self, WChan, wakeup};
use crate::kern::kern_thread::{NOCPU, Pri, curthread, kthread_add};
use crate::kern::kern_timeout::{Callout, CalloutTarget};
use crate::kern::subr_sleepqueue::wait_unless;
use crate::machine;
use crate::machine::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::machine_local;
use crate::time::Sbintime;
use crate::vm::uma_cache::{OnCpu, bucket_free};
use crate::vm::vm_page;
use alloc::sync::Arc;
use spin::Once;

/// How much `reclaim` takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reclaim {
    /// What zones hold in full buckets beyond their working set.
    #[doc(alias = "UMA_RECLAIM_TRIM")]
    Trim,
    /// What zones hold in full buckets and nobody reads any more: waits for no readers, since who asks may be one.
    #[doc(alias = "UMA_RECLAIM_DRAIN")]
    Drain,
    /// Besides, what the CPUs hold and what has readers: visits each CPU in turn, so it must be called from a thread.
    #[doc(alias = "UMA_RECLAIM_DRAIN_CPU")]
    DrainCpu,
}

/// What becomes of items that readers may have.
#[derive(Clone, Copy)]
enum Readers {
    LeaveAlone,
    Await,
}

/// How often working sets are estimated and what is beyond them is trimmed.
#[doc(alias = "UMA_TIMEOUT")]
const TIMEOUT: Sbintime = Sbintime::from_s(20);

/// How long the thread leaves zones alone after it has taken what it could.
const LOWMEM_PERIOD: Sbintime = Sbintime::from_s(1);

const DO_LOWMEM: u32 = 1;
const DO_MAXACTION: u32 = 2;
const DO_ARM: u32 = 4;

/// The thread "uma" and what it is to do.
struct Worker {
    started: AtomicBool,
    wanted: AtomicU32,
    /// Some zone may have something to trim.
    armed: AtomicBool,
    /// Memory was short a moment ago.
    was_short: AtomicBool,
}

machine_local! {
    static WORKER: Worker = Worker {
        started: AtomicBool::new(false),
        wanted: AtomicU32::new(0),
        armed: AtomicBool::new(false),
        was_short: AtomicBool::new(false),
    };
}

pub(super) fn startup() {
    WORKER.get();
}

machine_local! {
    /// Starts the thread when it is first needed, from where a thread can be made.
    static SPAWNER: Once<(Callout, Arc<Spawner>)> = Once::new();
}

struct Spawner;

impl CalloutTarget for Spawner {
    fn callout(self: Arc<Self>, _: Sbintime) {
        let worker = WORKER.get();
        if !worker.started.swap(true, Ordering::AcqRel) {
            kthread_add("uma", Pri::PVM, None, || worker.run());
        }
    }
}

/// From here on memory is given back by itself: callouts run, and threads can be made.
#[doc(alias = "uma_startup3")]
pub fn startup3() {
    let (callout, spawner) = SPAWNER
        .get()
        .call_once(|| (Callout::new(), Arc::new(Spawner)));
    // What was asked for until now waits for the thread.
    if WORKER.get().wanted.load(Ordering::Acquire) != 0 {
        callout.reset(Sbintime::ZERO, spawner);
    }
}

/// Asks for a zone's action as before `startup3`.
#[cfg(test)]
pub(super) fn ask_early() {
    WORKER
        .get()
        .wanted
        .fetch_or(DO_MAXACTION, Ordering::Release);
}

/// Few pages are left: zones are asked to give some back, soon. May be called from anywhere.
#[doc(alias = "uma_reclaim_wakeup")]
#[doc(alias = "vm_lowmem")]
pub(in crate::vm) fn lowmem() {
    let worker = WORKER.get();
    if !worker.was_short.swap(true, Ordering::Relaxed) {
        worker.request(DO_LOWMEM);
    }
}

/// A zone's action at its limit is due.
pub(super) fn maxaction_due() {
    WORKER.get().request(DO_MAXACTION);
}

/// A zone has something that may have to be trimmed one day.
#[inline]
pub(super) fn arm_trim() {
    let worker = WORKER.get();
    if !worker.armed.load(Ordering::Relaxed) && !worker.armed.swap(true, Ordering::Relaxed) {
        worker.request(DO_ARM);
    }
}

impl Worker {
    fn request(&self, what: u32) {
        self.wanted.fetch_or(what, Ordering::Release);
        if self.started.load(Ordering::Acquire) {
            wakeup(WChan::of(self));
        } else if let Some((callout, spawner)) = SPAWNER.get().get() {
            callout.reset(Sbintime::ZERO, spawner);
        }
    }

    fn run(&self) {
        let mut trim_at = None;
        let mut look_at = None;
        loop {
            let deadline = [trim_at, look_at].into_iter().flatten().min();
            let ready = || self.wanted.load(Ordering::Acquire) != 0;
            wait_unless(WChan::of(self), "umarcl", deadline, ready);
            let wanted = self.wanted.swap(0, Ordering::AcqRel);
            let now = machine::sbinuptime();
            if wanted & DO_MAXACTION != 0 {
                run_actions();
            }
            if wanted & DO_LOWMEM != 0 {
                make_room();
                look_at = Some(now + LOWMEM_PERIOD);
            }
            if look_at.is_some_and(|at| now >= at) {
                look_at = None;
                self.was_short.store(false, Ordering::Relaxed);
            }
            if wanted & DO_ARM != 0 {
                trim_at = trim_at.or(Some(now + TIMEOUT));
            }
            if trim_at.is_some_and(|at| now >= at) {
                self.armed.store(false, Ordering::Relaxed);
                reclaim(Reclaim::Trim);
                let more = zones().any(|zone| zone.state.lock().nitems > 0);
                let again = more || self.armed.load(Ordering::Relaxed);
                self.armed.store(again, Ordering::Relaxed);
                trim_at = again.then_some(now + TIMEOUT);
            }
        }
    }
}

fn run_actions() {
    for zone in zones() {
        if zone.action_due.swap(false, Ordering::AcqRel)
            && let Some(action) = zone.maxaction
        {
            action();
        }
    }
}

/// Takes more and more until enough pages are free.
#[doc(alias = "vm_pageout_lowmem")]
fn make_room() {
    for how in [Reclaim::Trim, Reclaim::Drain, Reclaim::DrainCpu] {
        let stats = vm_page::stats();
        if stats.free >= stats.low_water() {
            break;
        }
        reclaim(how);
    }
}

/// Gives memory that zones keep for later back to the page allocator.
#[doc(alias = "uma_reclaim")]
pub fn reclaim(how: Reclaim) {
    if how >= Reclaim::DrainCpu {
        on_each_cpu(|| zones().for_each(Zone::drain_this_cpu));
    }
    // Secondary zones, and those that hold items of others, before those whose items they hold.
    let holds = |zone: &&Zone| zone.is_secondary() || zone.holds.is_some();
    zones().filter(holds).for_each(|zone| zone.reclaim(how));
    zones()
        .filter(|zone| !holds(zone))
        .for_each(|zone| zone.reclaim(how));
}

/// Runs `f` on each CPU in turn, and comes back to where the thread was bound.
fn on_each_cpu(f: impl Fn()) {
    let bound = curthread().td_bound.load(Ordering::Relaxed);
    for cpu in 0..machine::ncpus() {
        kern_synch::sched_bind(cpu);
        f();
    }
    if bound == NOCPU {
        kern_synch::sched_unbind();
    } else {
        kern_synch::sched_bind(bound as usize);
    }
}

/// Brings home to `keg` what CPUs and zones hold of its items.
pub(super) fn call_in(keg: &Keg) {
    let concerned = || zones().filter(|zone| zone.draws_on(keg));
    on_each_cpu(|| concerned().for_each(Zone::drain_this_cpu));
    concerned().for_each(|zone| zone.drain_buckets(0, Readers::Await));
}

/// Takes all that `zone` holds.
pub(super) fn drain_everywhere(zone: &'static Zone) {
    on_each_cpu(|| zone.drain_this_cpu());
    zone.reclaim(Reclaim::DrainCpu);
}

impl Zone {
    #[doc(alias = "zone_reclaim")]
    fn reclaim(&'static self, how: Reclaim) {
        if how == Reclaim::Trim && self.flags.contains(ZoneFlags::UNMANAGED) {
            return;
        }
        let target = match how {
            Reclaim::Trim => self.state.lock().trim_target(),
            Reclaim::Drain | Reclaim::DrainCpu => 0,
        };
        let readers = match how {
            Reclaim::Trim | Reclaim::Drain => Readers::LeaveAlone,
            Reclaim::DrainCpu => Readers::Await,
        };
        self.drain_buckets(target, readers);
        self.state.lock().begin_interval();
        if how > Reclaim::Trim {
            while let Some(spare) = {
                let mut state = self.state.lock();
                state.take_spare()
            } {
                // SAFETY: ours, and empty.
                unsafe { bucket_free(spare) };
            }
        }
        if !self.is_secondary() {
            self.keg().drain();
        }
    }

    /// Releases items of full buckets until there are at most `target`.
    #[doc(alias = "bucket_cache_reclaim")]
    fn drain_buckets(&'static self, target: usize, readers: Readers) {
        let passing = match readers {
            Readers::LeaveAlone => self.smr(),
            Readers::Await => None,
        };
        loop {
            let mut state = self.state.lock();
            if state.nitems <= target {
                return;
            }
            let Some(bucket) = state.fetch(passing) else {
                return;
            };
            drop(state);
            // SAFETY: out of the list it is ours.
            unsafe { self.bucket_drain(bucket) };
        }
    }

    /// Moves what this CPU holds to the zone.
    #[doc(alias = "pcpu_cache_drain_safe")]
    fn drain_this_cpu(&'static self) {
        let here = OnCpu::enter();
        // SAFETY: `here` is the proof.
        let buckets = unsafe { here.cache(&self.caches).take_buckets() };
        drop(here);
        let [taken_from, freed_to] = buckets;
        // SAFETY: out of the cache they are ours.
        unsafe {
            if let Some(bucket) = freed_to {
                self.tag(bucket);
                self.bucket_return(bucket);
            }
            if let Some(bucket) = taken_from {
                self.bucket_return(bucket);
            }
        }
    }
}

impl ZoneState {
    /// Estimates the working set from what was used since the last time, and returns how many items are worth keeping:
    /// that many, or all that were in use meanwhile.
    #[doc(alias = "zone_domain_update_wss")]
    fn trim_target(&mut self) -> usize {
        let used = self.imax - self.imin;
        let target = self.nitems - self.imin;
        self.wss = (4 * used + self.wss) / 5;
        target.max(self.wss)
    }

    /// What was taken back was not used.
    fn begin_interval(&mut self) {
        self.imax = self.nitems;
        self.imin = self.nitems;
    }
}
