//! WITNESS: checks the order of locks at run time, in debug builds.
//!
//! FreeBSD: sys/kern/subr_witness.c
//! Differs from FreeBSD: the order is the table of `lock_order.rs` rather than learned, so that a reversal is reported the
//! first time that one side of it happens.

use core::panic::Location;

use super::kern_thread::ThreadRef;
use super::lock_order::LockClass;

/// What kind of lock is held, for reports and for what may be done under it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// `SpinMutex`
    SpinMutex,
    /// `Mutex`
    Mutex,
    /// `RwLock`, locked for reading.
    RwRead,
    /// `RwLock`, locked for writing.
    RwWrite,
    /// `Sx`: the holder may sleep.
    Sx,
    /// `RmLock`, locked for reading.
    RmRead,
    /// `RmLock`, locked for writing.
    RmWrite,
    /// `RmSleepable`, locked for reading.
    RmSleepRead,
    /// `RmSleepable`, locked for writing.
    RmSleepWrite,
}

impl LockKind {
    /// Tells whether its holder may sleep.
    #[doc(alias = "LO_SLEEPABLE")]
    pub fn is_sleepable(self) -> bool {
        match self {
            LockKind::Sx | LockKind::RmSleepRead | LockKind::RmSleepWrite => true,
            LockKind::SpinMutex
            | LockKind::Mutex
            | LockKind::RwRead
            | LockKind::RwWrite
            | LockKind::RmRead
            | LockKind::RmWrite => false,
        }
    }

    /// Tells whether a thread that holds it may take it once more.
    #[doc(alias = "LO_RECURSABLE")]
    pub fn is_recursable(self) -> bool {
        matches!(self, LockKind::RmRead | LockKind::RmSleepRead)
    }
}

#[cfg(debug_assertions)]
pub(crate) use enabled::*;

#[cfg(debug_assertions)]
mod enabled {
    use core::cell::UnsafeCell;

    use super::*;
    use crate::machine::atomic::{AtomicBool, Ordering};
    use crate::machine::{self, CachePadded, MAXCPU, PerCpu};
    use crate::machine_local;

    const MOST: usize = 16;

    #[derive(Clone, Copy)]
    struct Lock {
        address: usize,
        rank: u32,
        class: &'static str,
        kind: LockKind,
        site: &'static Location<'static>,
    }

    /// The locks that a thread, or for spin mutexes a CPU, holds.
    pub(crate) struct HeldLocks(UnsafeCell<([Option<Lock>; MOST], usize)>);

    // SAFETY: only the thread uses its own list; only the CPU, with interrupts off, uses its own.
    unsafe impl Sync for HeldLocks {}
    // SAFETY: as above.
    unsafe impl Send for HeldLocks {}

    impl HeldLocks {
        pub(crate) const fn new() -> HeldLocks {
            HeldLocks(UnsafeCell::new(([None; MOST], 0)))
        }

        fn with<R>(&self, f: impl FnOnce(&mut [Option<Lock>; MOST], &mut usize) -> R) -> R {
            // SAFETY: the owner alone calls this, and `f` does not call back.
            let (locks, count) = unsafe { &mut *self.0.get() };
            f(locks, count)
        }

        fn push(&self, lock: Lock) {
            let full = self.with(|locks, count| {
                if *count == MOST {
                    return true;
                }
                locks[*count] = Some(lock);
                *count += 1;
                false
            });
            if full {
                report(format_args!("more than {MOST} locks held at {}", lock.site));
            }
        }

        fn remove(&self, address: usize) {
            let found = self.with(|locks, count| {
                let position = locks[..*count]
                    .iter()
                    .rposition(|lock| lock.as_ref().is_some_and(|lock| lock.address == address));
                if let Some(position) = position {
                    locks.copy_within(position + 1..*count, position);
                    *count -= 1;
                }
                position.is_some()
            });
            if !found {
                report(format_args!(
                    "release of a lock at {address:#x} that is not held"
                ));
            }
        }

        fn find(&self, test: impl Fn(&Lock) -> bool) -> Option<Lock> {
            self.with(|locks, count| locks[..*count].iter().flatten().copied().find(test))
        }
    }

    machine_local! {
        static SPIN: PerCpu<HeldLocks> =
            PerCpu::from_slots([const { CachePadded(HeldLocks::new()) }; MAXCPU]);
        /// Off once something was reported, and while the machine ends.
        static QUIET: AtomicBool = AtomicBool::new(false);
    }

    /// Stops all checks, because the kernel is ending or panics.
    pub(crate) fn disable() {
        QUIET.store(true, Ordering::Relaxed);
    }

    fn watching() -> bool {
        !QUIET.load(Ordering::Relaxed)
    }

    #[cold]
    #[track_caller]
    fn report(message: core::fmt::Arguments<'_>) {
        if watching() {
            disable();
            panic!("{message}");
        }
    }

    fn mine() -> &'static HeldLocks {
        SPIN.get().get(machine::curcpu())
    }

    #[track_caller]
    fn check<C: LockClass>(
        held: &HeldLocks,
        address: usize,
        kind: LockKind,
        site: &'static Location<'static>,
    ) {
        let again = |lock: &Lock| lock.address == address && lock.kind == kind;
        if kind.is_recursable() && held.find(again).is_some() {
            return;
        }
        if let Some(first) = held.find(|lock| lock.rank >= C::RANK) {
            let what = if first.address == address {
                "recursion"
            } else if first.rank == C::RANK {
                "two locks of one class (see lock_pair)"
            } else {
                "lock order reversal"
            };
            report(format_args!(
                "{what}:\n 1st {:#x} {} ({:?}) @ {}\n 2nd {address:#x} {} ({kind:?}) @ {site}",
                first.address,
                first.class,
                first.kind,
                first.site,
                C::NAME,
            ));
        }
    }

    /// Reports if a blocking lock of class `C` must not be taken now.
    #[track_caller]
    pub(crate) fn check_order<C: LockClass>(
        me: ThreadRef,
        address: usize,
        kind: LockKind,
        site: &'static Location<'static>,
    ) {
        if !watching() {
            return;
        }
        check::<C>(me.witness(), address, kind, site);
        if machine::pcpu().spinlock_count.load(Ordering::Relaxed) != 0
            || machine::pcpu().critnest.load(Ordering::Relaxed) != 0
        {
            report(format_args!(
                "blocking lock {} ({kind:?}) @ {site} taken in a critical section or with a spin mutex held",
                C::NAME
            ));
        }
    }

    /// Records a blocking lock.
    pub(crate) fn acquired<C: LockClass>(
        me: ThreadRef,
        address: usize,
        kind: LockKind,
        site: &'static Location<'static>,
    ) {
        me.witness().push(Lock {
            address,
            rank: C::RANK,
            class: C::NAME,
            kind,
            site,
        });
    }

    /// Forgets a blocking lock.
    pub(crate) fn released(me: ThreadRef, address: usize) {
        me.witness().remove(address);
    }

    /// Reports if a spin mutex of class `C` must not be taken now. Interrupts are off.
    #[track_caller]
    pub(crate) fn check_order_spin<C: LockClass>(address: usize, site: &'static Location<'static>) {
        if watching() {
            check::<C>(mine(), address, LockKind::SpinMutex, site);
        }
    }

    /// Records a spin mutex. Interrupts are off.
    pub(crate) fn acquired_spin<C: LockClass>(address: usize, site: &'static Location<'static>) {
        mine().push(Lock {
            address,
            rank: C::RANK,
            class: C::NAME,
            kind: LockKind::SpinMutex,
            site,
        });
    }

    /// Forgets a spin mutex. Interrupts are off.
    pub(crate) fn released_spin(address: usize) {
        mine().remove(address);
    }

    /// Reports if the thread must not sleep now.
    #[track_caller]
    pub(crate) fn check_sleep(me: ThreadRef, wmesg: &str) {
        if !watching() {
            return;
        }
        if let Some(lock) = me.witness().find(|lock| !lock.kind.is_sleepable()) {
            report(format_args!(
                "sleeping on \"{wmesg}\" with a non-sleepable lock held:\n {:#x} {} ({:?}) @ {}",
                lock.address, lock.class, lock.kind, lock.site
            ));
        }
        let pcpu = machine::pcpu();
        if pcpu.critnest.load(Ordering::Relaxed) != 0
            || pcpu.spinlock_count.load(Ordering::Relaxed) != 0
        {
            report(format_args!(
                "sleeping on \"{wmesg}\" in a critical section or with a spin mutex held"
            ));
        }
    }

    /// Reports if the thread ends, or an entry into the kernel returns, with a lock held.
    #[track_caller]
    pub(crate) fn check_nothing_held(me: ThreadRef, what: &str) {
        if !watching() {
            return;
        }
        if let Some(lock) = me.witness().find(|_| true) {
            report(format_args!(
                "{what} with a lock held:\n {:#x} {} ({:?}) @ {}",
                lock.address, lock.class, lock.kind, lock.site
            ));
        }
    }
}

#[cfg(not(debug_assertions))]
pub(crate) use disabled::*;

#[cfg(not(debug_assertions))]
mod disabled {
    use super::*;

    #[cfg(not(any(target_os = "none", native)))]
    #[inline(always)]
    pub(crate) fn disable() {}
    #[inline(always)]
    pub(crate) fn check_order<C: LockClass>(
        _: ThreadRef,
        _: usize,
        _: LockKind,
        _: &'static Location<'static>,
    ) {
    }
    #[inline(always)]
    pub(crate) fn acquired<C: LockClass>(
        _: ThreadRef,
        _: usize,
        _: LockKind,
        _: &'static Location<'static>,
    ) {
    }
    #[inline(always)]
    pub(crate) fn released(_: ThreadRef, _: usize) {}
    #[inline(always)]
    pub(crate) fn check_order_spin<C: LockClass>(_: usize, _: &'static Location<'static>) {}
    #[inline(always)]
    pub(crate) fn acquired_spin<C: LockClass>(_: usize, _: &'static Location<'static>) {}
    #[inline(always)]
    pub(crate) fn released_spin(_: usize) {}
    #[inline(always)]
    pub(crate) fn check_sleep(_: ThreadRef, _: &str) {}
    #[inline(always)]
    pub(crate) fn check_nothing_held(_: ThreadRef, _: &str) {}
}
