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
    /// `Sx`, shared: the holder may sleep.
    SxShared,
    /// `Sx`, locked exclusively: the holder may sleep.
    SxExclusive,
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
            LockKind::SxShared | LockKind::SxExclusive => "sx",
            LockKind::RmRead | LockKind::RmWrite => "rm",
            LockKind::RmSleepRead | LockKind::RmSleepWrite => "sleepable rm",
        }
    }

    /// Tells whether its holder may sleep.
    #[doc(alias = "LO_SLEEPABLE")]
    pub fn is_sleepable(self) -> bool {
        match self {
            LockKind::SxShared
            | LockKind::SxExclusive
            | LockKind::RmSleepRead
            | LockKind::RmSleepWrite => true,
            LockKind::SpinMutex
            | LockKind::Mutex
            | LockKind::RwRead
            | LockKind::RwWrite
            | LockKind::RmRead
            | LockKind::RmWrite => false,
        }
    }

    /// Tells whether others may hold it at the same time, and so the same thread once more.
    #[doc(alias = "LI_EXCLUSIVE")]
    pub fn is_shared(self) -> bool {
        match self {
            LockKind::RwRead | LockKind::SxShared | LockKind::RmRead | LockKind::RmSleepRead => {
                true
            }
            LockKind::SpinMutex
            | LockKind::Mutex
            | LockKind::RwWrite
            | LockKind::SxExclusive
            | LockKind::RmWrite
            | LockKind::RmSleepWrite => false,
        }
    }
}

#[cfg(any(debug_assertions, feature = "witness"))]
pub use enabled::*;

#[cfg(any(debug_assertions, feature = "witness"))]
mod enabled {
    use alloc::string::{String, ToString};
    use alloc::sync::Arc;
    use core::cell::{Cell, UnsafeCell};
    use core::fmt::{self, Write};

    use super::*;
    use crate::errno::Errno;
    use crate::kern::kern_mutex::RawSpin;
    use crate::kern::lock_order::ORDER;
    use crate::machine::atomic::{AtomicBool, AtomicI32, Ordering};
    use crate::machine::{self, CachePadded, Critical, MAXCPU, PerCpu};
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

    /// The locks that a thread, or for spin mutexes a CPU, holds; and how many sections of the network's epoch the thread is in.
    pub(crate) struct HeldLocks {
        locks: UnsafeCell<([Option<Lock>; MOST], usize)>,
        epochs: Cell<u32>,
    }

    // SAFETY: only the thread uses its own list; only the CPU, with interrupts off, uses its own.
    unsafe impl Sync for HeldLocks {}
    // SAFETY: as above.
    unsafe impl Send for HeldLocks {}

    impl HeldLocks {
        pub(crate) const fn new() -> HeldLocks {
            HeldLocks {
                locks: UnsafeCell::new(([None; MOST], 0)),
                epochs: Cell::new(0),
            }
        }

        fn with<R>(&self, f: impl FnOnce(&mut [Option<Lock>; MOST], &mut usize) -> R) -> R {
            // SAFETY: the owner alone calls this, and `f` does not call back.
            let (locks, count) = unsafe { &mut *self.locks.get() };
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
        static BADSTACKS: Badstacks = Badstacks {
            lock: RawSpin::new(),
            seen: UnsafeCell::new([None; BAD]),
        };
    }

    /// Different reversals that are remembered; later ones are reported again and again.
    const BAD: usize = 64;

    /// The reversals that were reported and survived, each pair of classes once.
    struct Badstacks {
        /// Of a kind that is not checked itself.
        lock: RawSpin,
        seen: UnsafeCell<[Option<(Lock, Lock)>; BAD]>,
    }

    // SAFETY: the cell stands under the lock.
    unsafe impl Sync for Badstacks {}
    // SAFETY: as above.
    unsafe impl Send for Badstacks {}

    impl Badstacks {
        fn with<R>(&self, f: impl FnOnce(&mut [Option<(Lock, Lock)>; BAD]) -> R) -> R {
            self.lock.lock();
            // SAFETY: the lock is held, and `f` does not call back.
            let result = f(unsafe { &mut *self.seen.get() });
            self.lock.unlock();
            result
        }

        /// Remembers that `second` was taken under `first`; false if one of these classes has been already.
        fn add(&self, first: Lock, second: Lock) -> bool {
            self.with(|seen| {
                let there = |(a, b): &(Lock, Lock)| (a.rank, b.rank) == (first.rank, second.rank);
                if seen.iter().flatten().any(there) {
                    return false;
                }
                if let Some(free) = seen.iter_mut().find(|place| place.is_none()) {
                    *free = Some((first, second));
                }
                true
            })
        }
    }

    /// Stops all checks, because the kernel is ending or panics.
    pub fn disable() {
        WATCH.store(-1, Ordering::Relaxed);
    }

    fn watching() -> bool {
        WATCH.load(Ordering::Relaxed) > 0
    }

    #[cold]
    #[track_caller]
    pub(super) fn report(message: fmt::Arguments<'_>) {
        if !watching() {
            return;
        }
        if KDB.load(Ordering::Relaxed) {
            disable();
            panic!("{message}");
        }
        // Printing takes locks. Another report may be under way, and a panic may come, which is the end of all checks.
        let change = |from, to| {
            WATCH
                .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        };
        if change(1, 0) {
            crate::kprintf!("{message}\n");
            change(0, 1);
        }
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
            Arc::new(ReadOnly::new("Show locks relation graphs", fullgraph)),
        );
        tree.register(
            "debug.witness.badstacks",
            Arc::new(ReadOnly::new("Show bad witness stacks", badstacks)),
        );
    }

    /// The edges of the graph, for a program that draws it: what stands in one line follows from the others.
    #[doc(alias = "sysctl_debug_witness_fullgraph")]
    fn fullgraph() -> String {
        let edges = ORDER.iter().zip(&ORDER[1..]);
        edges.fold(String::new(), |text, (first, second)| {
            text + &alloc::format!("\n\"{first}\",\"{second}\"")
        })
    }

    #[doc(alias = "sysctl_debug_witness_badstacks")]
    fn badstacks() -> String {
        let seen = BADSTACKS.get().with(|seen| *seen);
        let mut text = String::new();
        for (first, second) in seen.iter().flatten() {
            let _ = write!(
                text,
                "\nLock order reversal between \"{}\"({}) and \"{}\"({})!\n 1st {first}\n 2nd {second}",
                first.class,
                first.kind.class(),
                second.class,
                second.kind.class(),
            );
        }
        text
    }

    /// Tells whether the thread is in a critical section or holds a spin mutex.
    fn must_not_block() -> bool {
        let nested = |more_than| {
            let pcpu = machine::pcpu();
            pcpu.critnest.load(Ordering::Relaxed) > more_than
                || pcpu.spinlock_count.load(Ordering::Relaxed) != 0
        };
        // A thread that may be preempted may have looked at a CPU that it has left; in a section of its own it stays.
        nested(0) && {
            let _stays = Critical::enter();
            nested(1)
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
        let second = Lock {
            address,
            rank: C::RANK,
            class: C::NAME,
            kind,
            site,
        };
        if let Some(first) = held.find(|lock| lock.address == address) {
            return check_again(first, second);
        }
        if let Some(first) = held.find(|lock| lock.rank >= C::RANK) {
            let what = if first.rank == C::RANK {
                "two locks of one class (see lock_pair)"
            } else {
                "lock order reversal"
            };
            if BADSTACKS.get().add(first, second) {
                report(format_args!("{what}:\n 1st {first}\n 2nd {second}"));
            }
        }
    }

    /// Reports if the lock `first` must not be taken once more as `second`. Sharers may share it once more, whatever else they hold: they
    /// do not wait for it.
    #[track_caller]
    fn check_again(first: Lock, second: Lock) {
        let (class, name) = (second.kind.class(), second.class);
        let (here, there) = (second.site, first.site);
        match (first.kind.is_shared(), second.kind.is_shared()) {
            (true, true) => {}
            (false, true) => report(format_args!(
                "shared lock of ({class}) {name} @ {}:{}\nwhile exclusively locked from {}:{}",
                here.file(),
                here.line(),
                there.file(),
                there.line(),
            )),
            (true, false) => report(format_args!(
                "exclusive lock of ({class}) {name} @ {}:{}\nwhile share locked from {}:{}",
                here.file(),
                here.line(),
                there.file(),
                there.line(),
            )),
            (false, false) => {
                report(format_args!("recursion:\n 1st {first}\n 2nd {second}"));
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
        if must_not_block() {
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
        if me.witness().epochs.get() != 0 {
            report(format_args!("sleeping on \"{wmesg}\" in a network epoch"));
        }
        if must_not_block() {
            report(format_args!(
                "sleeping on \"{wmesg}\" in a critical section or with a spin mutex held"
            ));
        }
    }

    /// The thread enters a section of the network's epoch.
    pub(crate) fn epoch_entered(me: ThreadRef) {
        let sections = &me.witness().epochs;
        sections.set(sections.get() + 1);
    }

    /// The thread leaves a section of the network's epoch.
    pub(crate) fn epoch_left(me: ThreadRef) {
        let sections = &me.witness().epochs;
        sections.set(sections.get().wrapping_sub(1));
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
    pub(crate) fn epoch_entered(_: ThreadRef) {}
    #[inline(always)]
    pub(crate) fn epoch_left(_: ThreadRef) {}
    #[inline(always)]
    pub(crate) fn check_nothing_held(_: ThreadRef, _: &str) {}
}

#[cfg(test)]
mod tests {
    use crate::kern::kern_mutex::Mutex;
    use crate::kern::kern_rwlock::RwLock;
    use crate::kern::kern_sx::Sx;
    use crate::kern::lock_order::{App, Leaf, ORDER};
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
            let lines: alloc::vec::Vec<&str> = bad.trim().lines().collect();
            let first =
                "Lock order reversal between \"leaf\"(sleep mutex) and \"app\"(sleep mutex)!";
            assert_eq!((lines.len(), lines[0]), (3, first), "{bad}");
            assert!(
                lines[1].starts_with(" 1st 0x") && lines[2].contains(file!()),
                "{bad}"
            );
            let printed = crate::kern::subr_prf::dmesg();
            assert_eq!(printed.matches("lock order reversal:").count(), 1);
        });
    }

    #[test]
    fn a_report_during_which_the_kernel_panics_does_not_turn_witness_on_again() {
        struct Panics;
        impl core::fmt::Display for Panics {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                super::disable();
                f.write_str("a report")
            }
        }
        Machine::builder().quiet().run(|| {
            root().set("debug.witness.kdb", "0").unwrap();
            super::enabled::report(format_args!("{Panics}"));
            assert_eq!(root().get("debug.witness.watch").as_deref(), Some("-1"));
        });
    }

    #[test]
    fn the_full_graph_has_an_edge_from_each_class_to_the_next() {
        Machine::builder().run(|| {
            let graph = root().get("debug.witness.fullgraph").unwrap();
            let edges: alloc::vec::Vec<&str> = graph.trim().lines().collect();
            assert_eq!(edges.len(), ORDER.len() - 1);
            assert_eq!(edges[0], "\"app\",\"console\"");
        });
    }

    #[test]
    fn who_shares_a_lock_may_share_it_once_more_but_not_take_it_alone() {
        let message = message_of(|| {
            Machine::builder().quiet().run(|| {
                let lock = RwLock::<_, App>::new(());
                let (_once, _again) = (lock.read(), lock.read());
                let _other = lock.write();
            });
        });
        assert!(
            message.starts_with("exclusive lock of (rw) app @ "),
            "{message}"
        );
        assert!(message.contains("\nwhile share locked from "), "{message}");
        let message = message_of(|| {
            Machine::builder().quiet().run(|| {
                let lock = Sx::<_, App>::new(());
                drop((lock.slock(), lock.slock()));
                let _alone = lock.xlock();
                let _shared = lock.slock();
            });
        });
        assert!(
            message.starts_with("shared lock of (sx) app @ "),
            "{message}"
        );
        assert!(
            message.contains("\nwhile exclusively locked from "),
            "{message}"
        );
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
