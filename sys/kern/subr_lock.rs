//! What all locks share: back-off while spinning, and what is told of each acquisition to WITNESS and to the lock profile.
//!
//! FreeBSD: sys/kern/subr_lock.c, sys/sys/lock.h, sys/sys/lock_profile.h
//! Differs from FreeBSD: the profile is kept by place and class of lock.
//!
//! The profile is there only with the feature `lock_profiling` (`cargo xtask shell --lock-profiling`): switched off at run time it
//! would still cost each acquisition a load, a branch and the address of the caller's place.

use alloc::sync::Arc;
use core::panic::Location;

use super::kern_thread::ThreadRef;
use super::lock_order::LockClass;
use super::subr_witness::{self as witness, LockKind};
use crate::errno::Errno;
use crate::machine;
use crate::machine::atomic::Ordering;
use crate::machine::atomic::plain::AtomicU32;
use crate::machine_local;
use crate::sysctl::{Procedure, SysctlTree};

/// A default; a model checker, which explores each round, makes one.
const fn limit(rounds: u32) -> u32 {
    if cfg!(loom) { 1 } else { rounds }
}

/// How long a thread that spins for a kind of lock pauses before it looks again, in rounds.
struct LockDelayConfig {
    /// The first time; it doubles each time.
    base: AtomicU32,
    max: AtomicU32,
}

impl LockDelayConfig {
    const fn new() -> LockDelayConfig {
        LockDelayConfig {
            base: AtomicU32::new(1),
            max: AtomicU32::new(limit(32)),
        }
    }
}

machine_local! {
    static MTX_DELAY: LockDelayConfig = LockDelayConfig::new();
    static MTX_SPIN_DELAY: LockDelayConfig = LockDelayConfig::new();
    static RW_DELAY: LockDelayConfig = LockDelayConfig::new();
    static SX_DELAY: LockDelayConfig = LockDelayConfig::new();
    /// Rounds that a thread spins for an owner that runs before it blocks all the same: the CPU of a virtual machine may itself
    /// have been taken away.
    static SPIN_LIMIT: AtomicU32 = AtomicU32::new(limit(400));
    /// How often, and how long each time, a writer spins for readers, of whom nobody knows whether they run.
    ///
    /// Differs from FreeBSD (10 and 10000): far less, for the same reason.
    static RW_RETRY: AtomicU32 = AtomicU32::new(limit(2));
    static RW_LOOPS: AtomicU32 = AtomicU32::new(limit(200));
    static SX_RETRY: AtomicU32 = AtomicU32::new(limit(2));
    static SX_LOOPS: AtomicU32 = AtomicU32::new(limit(200));
}

/// Spinning with exponential back-off.
#[doc(alias = "lock_delay_arg")]
pub(super) struct LockDelay {
    config: &'static LockDelayConfig,
    delay: u32,
    spins: u32,
}

impl LockDelay {
    /// FreeBSD: debug.mtx.delay_base, debug.mtx.delay_max
    pub(super) fn of_mtx() -> LockDelay {
        LockDelay::new(MTX_DELAY.get())
    }

    /// FreeBSD: debug.mtx_spin.delay_base, debug.mtx_spin.delay_max
    pub(super) fn of_mtx_spin() -> LockDelay {
        LockDelay::new(MTX_SPIN_DELAY.get())
    }

    /// FreeBSD: debug.rwlock.delay_base, debug.rwlock.delay_max
    pub(super) fn of_rwlock() -> LockDelay {
        LockDelay::new(RW_DELAY.get())
    }

    /// FreeBSD: debug.sx.delay_base, debug.sx.delay_max
    pub(super) fn of_sx() -> LockDelay {
        LockDelay::new(SX_DELAY.get())
    }

    #[doc(alias = "lock_delay_arg_init")]
    fn new(config: &'static LockDelayConfig) -> LockDelay {
        LockDelay {
            config,
            delay: config.base.load(Ordering::Relaxed),
            spins: 0,
        }
    }

    /// Begins anew: the thread has waited in another way.
    pub(super) fn reset(&mut self) {
        *self = LockDelay::new(self.config);
    }

    /// Whether the thread may still spin for an owner that runs.
    pub(super) fn may_spin(&self) -> bool {
        self.spins < SPIN_LIMIT.load(Ordering::Relaxed)
    }

    /// Waits for a while, longer each time.
    #[doc(alias = "lock_delay")]
    pub(super) fn wait(&mut self) {
        for _ in 0..self.delay {
            machine::cpu_spinwait();
        }
        self.spins = self.spins.saturating_add(self.delay);
        let max = self.config.max.load(Ordering::Relaxed);
        self.delay = (self.delay * 2).clamp(1, max.max(1));
    }
}

/// How long a thread spins for readers.
#[derive(Clone, Copy)]
pub(super) struct ReaderSpins {
    pub(super) retries: u32,
    pub(super) loops: u32,
}

impl ReaderSpins {
    /// FreeBSD: debug.rwlock.retry, debug.rwlock.loops
    pub(super) fn of_rwlock() -> ReaderSpins {
        ReaderSpins {
            retries: RW_RETRY.load(Ordering::Relaxed),
            loops: RW_LOOPS.load(Ordering::Relaxed),
        }
    }

    /// FreeBSD: debug.sx.retries, debug.sx.loops
    pub(super) fn of_sx() -> ReaderSpins {
        ReaderSpins {
            retries: SX_RETRY.load(Ordering::Relaxed),
            loops: SX_LOOPS.load(Ordering::Relaxed),
        }
    }
}

/// Puts what can be set about locks into the tree.
pub(super) fn register(tree: &SysctlTree) {
    let number = |name: &str, about, value: &'static AtomicU32, most: u32| {
        let read = move || alloc::string::ToString::to_string(&value.load(Ordering::Relaxed));
        let write = move |text: &str| {
            let new = text.parse().ok().filter(|&new| new <= most);
            value.store(new.ok_or(Errno::EINVAL)?, Ordering::Relaxed);
            Ok(())
        };
        tree.register(name, Arc::new(Procedure::new(about, read, write)));
    };
    let most = 1_000_000;
    let delays = [
        ("mtx", MTX_DELAY.get()),
        ("mtx_spin", MTX_SPIN_DELAY.get()),
        ("rwlock", RW_DELAY.get()),
        ("sx", SX_DELAY.get()),
    ];
    for (kind, config) in delays {
        number(
            &alloc::format!("debug.{kind}.delay_base"),
            "First pause of a spinning thread, rounds",
            &config.base,
            most,
        );
        number(
            &alloc::format!("debug.{kind}.delay_max"),
            "Longest pause of a spinning thread, rounds",
            &config.max,
            most,
        );
    }
    number(
        "debug.lock.spin_limit",
        "Rounds to spin for an owner that runs",
        SPIN_LIMIT.get(),
        most,
    );
    number(
        "debug.rwlock.retry",
        "Times to spin for readers of an rwlock",
        RW_RETRY.get(),
        most,
    );
    number(
        "debug.rwlock.loops",
        "Rounds each time",
        RW_LOOPS.get(),
        most,
    );
    number(
        "debug.sx.retries",
        "Times to spin for sharers of an sx lock",
        SX_RETRY.get(),
        most,
    );
    number("debug.sx.loops", "Rounds each time", SX_LOOPS.get(), most);
    let lending = super::subr_turnstile::lending();
    number(
        "debug.turnstile.lending",
        "Lend owners of locks the priority of who waits",
        lending,
        1,
    );
    tree.register(
        "debug.rmlock.ipis",
        Arc::new(crate::sysctl::ReadOnly::new(
            "Interrupts sent by writers of rmlocks",
            || alloc::string::ToString::to_string(&super::kern_rmlock::rm_ipis()),
        )),
    );
    witness::register(tree);
    profile::register(tree);
}

/// A lock is held now, for which the thread has `waited`.
#[doc(alias = "lock_profile_obtain_lock_success")]
#[doc(alias = "WITNESS_LOCK")]
#[inline(always)]
pub(super) fn obtained<C: LockClass>(
    me: ThreadRef,
    address: usize,
    kind: LockKind,
    site: &'static Location<'static>,
    waited: Waited,
) {
    witness::acquired::<C>(me, address, kind, site);
    profile::obtained(Some(me), address, C::NAME, kind, site, waited);
}

/// A lock is about to be released.
#[doc(alias = "lock_profile_release_lock")]
#[doc(alias = "WITNESS_UNLOCK")]
#[inline(always)]
pub(super) fn released(me: ThreadRef, address: usize) {
    witness::released(me, address);
    profile::released(Some(me), address);
}

/// A spin mutex is held now. Interrupts are off.
#[inline(always)]
pub(super) fn obtained_spin<C: LockClass>(
    address: usize,
    site: &'static Location<'static>,
    waited: Waited,
) {
    witness::acquired_spin::<C>(address, site);
    profile::obtained(None, address, C::NAME, LockKind::SpinMutex, site, waited);
}

/// A spin mutex is about to be released. Interrupts are off.
#[inline(always)]
pub(super) fn released_spin(address: usize) {
    witness::released_spin(address);
    profile::released(None, address);
}

/// The lock is taken, and the thread begins to wait for it, unless it does so already.
#[doc(alias = "lock_profile_obtain_lock_failed")]
#[inline(always)]
pub(super) fn obtain_failed(waited: &mut Waited, address: usize) {
    profile::failed(waited, address);
}

pub(super) use profile::Waited;

#[cfg(feature = "lock_profiling")]
pub(super) use profile::ProfiledLocks;

#[cfg(not(feature = "lock_profiling"))]
mod profile {
    use super::*;

    /// Since when a thread has waited for a lock: of interest to the profile alone.
    #[derive(Clone, Copy)]
    pub(in crate::kern) struct Waited;

    impl Waited {
        pub(in crate::kern) const NOT: Waited = Waited;
    }

    #[inline(always)]
    pub(super) fn register(_: &SysctlTree) {}
    #[inline(always)]
    pub(super) fn failed(_: &mut Waited, _: usize) {}
    #[inline(always)]
    pub(super) fn obtained(
        _: Option<ThreadRef>,
        _: usize,
        _: &'static str,
        _: LockKind,
        _: &'static Location<'static>,
        _: Waited,
    ) {
    }
    #[inline(always)]
    pub(super) fn released(_: Option<ThreadRef>, _: usize) {}
}

/// FreeBSD: options LOCK_PROFILING
#[cfg(feature = "lock_profiling")]
mod profile;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::hosted::Machine;
    use crate::sysctl::root;

    #[test]
    fn pauses_double_up_to_what_is_set_for_the_kind_of_lock() {
        Machine::builder().run(|| {
            for (name, value) in [("base", "3"), ("max", "10")] {
                let name = alloc::format!("debug.rwlock.delay_{name}");
                root().set(&name, value).unwrap();
            }
            assert_eq!(root().get("debug.sx.delay_base").as_deref(), Some("1"));
            let mut delay = LockDelay::of_rwlock();
            let pauses = [0; 4].map(|_| {
                let before = delay.spins;
                delay.wait();
                delay.spins - before
            });
            assert_eq!(pauses, [3, 6, 10, 10]);
            delay.reset();
            assert_eq!((delay.delay, delay.spins), (3, 0));
        });
    }
}
