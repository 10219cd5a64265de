//! WITNESS: checks the order of locks at run time, in debug builds and with the feature `witness`.
//!
//! FreeBSD: sys/kern/subr_witness.c
//! Differs from FreeBSD: the order is the table of `lock_order.rs` rather than learned, so that a reversal is reported the
//! first time that one side of it happens; and a report ends in a panic unless `debug.witness.kdb` is 0, so that no test passes over it.

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
    /// Name of the class of lock, as FreeBSD's reports have it.
    #[doc(alias = "lc_name")]
    pub fn class(self) -> &'static str {
        match self {
            LockKind::SpinMutex => "spin mutex",
            LockKind::Mutex => "sleep mutex",
            LockKind::RwRead | LockKind::RwWrite => "rw",
            LockKind::Sx => "sx",
            LockKind::RmRead | LockKind::RmWrite => "rm",
            LockKind::RmSleepRead | LockKind::RmSleepWrite => "sleepable rm",
        }
    }

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

#[cfg(any(debug_assertions, feature = "witness"))]
pub use enabled::*;

#[cfg(any(debug_assertions, feature = "witness"))]
mod enabled {
    use alloc::string::{String, ToString};
    use alloc::sync::Arc;
    use core::cell::UnsafeCell;
    use core::fmt::{self, Write};

    use super::*;
    use crate::errno::Errno;
    use crate::kern::lock_order::ORDER;
    use crate::machine::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
    use crate::machine::{self, CachePadded, MAXCPU, PerCpu};
    use crate::machine_local;
    use crate::sysctl::{Procedure, ReadOnly, SysctlTree};

    const MOST: usize = 16;

    #[derive(Clone, Copy)]
    struct Lock {
        address: usize,
        rank: u32,
        class: &'static str,
        kind: LockKind,
        site: &'static Location<'static>,
    }

    impl fmt::Display for Lock {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Lock {
                address,
                class,
                kind,
                site,
                ..
            } = self;
            let (file, line) = (site.file(), site.line());
            write!(
                f,
                "{address:#x} {class} ({class}, {}) @ {file}:{line}",
                kind.class()
            )
        }
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
        /// 1 checks, 0 only keeps record, -1 is off for good.
        static WATCH: AtomicI32 = AtomicI32::new(1);
        /// Whether a report ends in a panic.
        static KDB: AtomicBool = AtomicBool::new(true);
        static SKIPSPIN: AtomicBool = AtomicBool::new(false);
        /// What was reported and survived: pairs of ranks, each reported once.
        static BADSTACKS: [AtomicU64; BAD] = [const { AtomicU64::new(0) }; BAD];
    }

    /// Different reports that are remembered; later ones come again and again.
    const BAD: usize = 64;

    /// Stops all checks, because the kernel is ending or panics.
    pub fn disable() {
        WATCH.store(-1, Ordering::Relaxed);
    }

    fn watching() -> bool {
        WATCH.load(Ordering::Relaxed) > 0
    }

    /// Whether the pair has not been reported yet.
    fn is_new(first: u32, second: u32) -> bool {
        // Never zero.
        let pair = u64::from(first + 1) << 32 | u64::from(second + 1);
        for bad in BADSTACKS.get() {
            match bad.compare_exchange(0, pair, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(there) if there == pair => return false,
                Err(_) => {}
            }
        }
        true
    }

    #[cold]
    #[track_caller]
    fn report(message: fmt::Arguments<'_>) {
        if !watching() {
            return;
        }
        if KDB.load(Ordering::Relaxed) {
            disable();
            panic!("{message}");
        }
        // Printing takes locks.
        WATCH.store(0, Ordering::Relaxed);
        crate::kprintf!("{message}\n");
        WATCH.store(1, Ordering::Relaxed);
    }

    pub(crate) fn register(tree: &SysctlTree) {
        fn number(text: &str) -> Result<i32, Errno> {
            text.parse().map_err(|_| Errno::EINVAL)
        }
        let flag = |name, about, flag: &'static AtomicBool| {
            let read = || u8::from(flag.load(Ordering::Relaxed)).to_string();
            let write = |text: &str| {
                flag.store(number(text)? != 0, Ordering::Relaxed);
                Ok(())
            };
            tree.register(name, Arc::new(Procedure::new(about, read, write)));
        };
        flag("debug.witness.kdb", "Panic when witness reports", KDB.get());
        flag(
            "debug.witness.skipspin",
            "Do not check spin mutexes",
            SKIPSPIN.get(),
        );
        tree.register(
            "debug.witness.watch",
            Arc::new(Procedure::new(
                "witness is watching lock operations",
                || WATCH.load(Ordering::Relaxed).to_string(),
                |text: &str| {
                    let watch = number(text)?;
                    if !(-1..=1).contains(&watch) || WATCH.load(Ordering::Relaxed) < 0 {
                        return Err(Errno::EINVAL);
                    }
                    WATCH.store(watch, Ordering::Relaxed);
                    Ok(())
                },
            )),
        );
        tree.register(
            "debug.witness.fullgraph",
            Arc::new(ReadOnly::new("Show locks relation graphs", || {
                ORDER.join(" > ")
            })),
        );
        tree.register(
            "debug.witness.badstacks",
            Arc::new(ReadOnly::new("Show bad witness stacks", badstacks)),
        );
    }

    fn badstacks() -> String {
        let mut text = String::new();
        for bad in BADSTACKS.get() {
            let pair = bad.load(Ordering::Relaxed);
            let name = |rank: u64| ORDER.get(rank as usize - 1).copied().unwrap_or("?");
            if pair != 0 {
                let (first, second) = (name(pair >> 32), name(pair & 0xffff_ffff));
                let _ = write!(
                    text,
                    "\nLock order reversal between \"{first}\" and \"{second}\"!"
                );
            }
        }
        text
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
            let second = Lock {
                address,
                rank: C::RANK,
                class: C::NAME,
                kind,
                site,
            };
            if is_new(first.rank, second.rank) {
                report(format_args!("{what}:\n 1st {first}\n 2nd {second}"));
            }
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
        if kind.is_sleepable()
            && let Some(lock) = me.witness().find(|lock| !lock.kind.is_sleepable())
        {
            report(format_args!(
                "acquiring sleepable lock {} ({}) @ {site} with a non-sleepable lock held:\n {lock}",
                C::NAME,
                kind.class(),
            ));
        }
        if machine::pcpu().spinlock_count.load(Ordering::Relaxed) != 0
            || machine::pcpu().critnest.load(Ordering::Relaxed) != 0
        {
            report(format_args!(
                "blocking lock {} ({}) @ {site} taken in a critical section or with a spin mutex held",
                C::NAME,
                kind.class(),
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
        if watching() && !SKIPSPIN.load(Ordering::Relaxed) {
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
                "sleeping on \"{wmesg}\" with a non-sleepable lock held:\n {lock}"
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
            report(format_args!("{what} with a lock held:\n {lock}"));
        }
    }
}

#[cfg(not(any(debug_assertions, feature = "witness")))]
pub use disabled::*;

#[cfg(not(any(debug_assertions, feature = "witness")))]
mod disabled {
    use super::*;

    /// Stops all checks, of which this build has none.
    #[inline(always)]
    pub fn disable() {}
    #[inline(always)]
    pub(crate) fn register(_: &crate::sysctl::SysctlTree) {}
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

#[cfg(test)]
mod tests {
    use crate::kern::kern_mutex::Mutex;
    use crate::kern::kern_sx::Sx;
    use crate::kern::lock_order::{App, Leaf};
    use crate::machine::hosted::Machine;
    use crate::sysctl::root;

    fn message_of(run: impl FnOnce()) -> alloc::string::String {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        *caught.unwrap_err().downcast().expect("a message")
    }

    #[test]
    fn a_reversal_is_reported_with_both_places_as_freebsd_prints_them() {
        let message = message_of(|| {
            Machine::builder().quiet().run(|| {
                let first = Mutex::<_, App>::new(());
                let second = Mutex::<_, Leaf>::new(());
                let _second = second.lock();
                let _first = first.lock();
            });
        });
        let lines: alloc::vec::Vec<&str> = message.lines().collect();
        assert_eq!(lines[0], "lock order reversal:");
        let file = file!().rsplit('/').next().unwrap();
        for (line, order, name) in [(lines[1], " 1st 0x", "leaf"), (lines[2], " 2nd 0x", "app")] {
            let named = alloc::format!(" {name} ({name}, sleep mutex) @ ");
            assert!(line.starts_with(order) && line.contains(&named), "{line}");
            let (path, number) = line.rsplit_once(':').unwrap();
            assert!(
                path.ends_with(file) && number.parse::<u32>().is_ok(),
                "{line}"
            );
        }
    }

    #[test]
    fn without_kdb_a_reversal_is_reported_once_and_the_kernel_goes_on() {
        Machine::builder().quiet().run(|| {
            root().set("debug.witness.kdb", "0").unwrap();
            let first = Mutex::<_, App>::new(());
            let second = Mutex::<_, Leaf>::new(());
            for _ in 0..3 {
                let _second = second.lock();
                let _first = first.lock();
            }
            let bad = root().get("debug.witness.badstacks").unwrap();
            assert_eq!(
                bad.trim(),
                "Lock order reversal between \"leaf\" and \"app\"!"
            );
            let printed = crate::kern::subr_prf::dmesg();
            assert_eq!(printed.matches("lock order reversal:").count(), 1);
        });
    }

    #[test]
    fn nothing_is_reported_while_witness_does_not_watch() {
        Machine::builder().run(|| {
            root().set("debug.witness.watch", "0").unwrap();
            let first = Mutex::<_, App>::new(());
            let second = Mutex::<_, Leaf>::new(());
            let _second = second.lock();
            let _first = first.lock();
            assert_eq!(root().get("debug.witness.badstacks").as_deref(), Some(""));
        });
    }

    #[test]
    #[should_panic(expected = "acquiring sleepable lock leaf (sx)")]
    fn a_lock_that_may_sleep_is_not_taken_under_one_that_must_not() {
        Machine::builder().quiet().run(|| {
            let mutex = Mutex::<_, App>::new(());
            let sx = Sx::<_, Leaf>::new(());
            let _mutex = mutex.lock();
            let _sx = sx.xlock();
        });
    }
}
