//! The lock profile: how long locks are held and waited for, by the place that takes them.
//!
//! FreeBSD: sys/kern/subr_lock.c (`#ifdef LOCK_PROFILING`)

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt::Write;

use super::*;
use crate::kern::kern_mutex::{Mutex, spinlock_enter, spinlock_exit};
use crate::kern::lock_order::Leaf;
use crate::machine::atomic::{AtomicBool, AtomicU64};
use crate::machine::{CachePadded, MAXCPU, PerCpu};
use crate::sysctl::ReadOnly;
use crate::time::Sbintime;

/// Locks that a thread, or for spin mutexes a CPU, holds at once and are profiled.
const MOST: usize = 16;
/// Places that a CPU can tell apart.
const RECORDS: usize = 512;
/// Counters of waiters, by hash of the lock.
const CONTESTS: usize = 1024;

/// A lock that is held.
#[doc(alias = "lock_profile_object")]
#[derive(Clone, Copy)]
struct Held {
    address: usize,
    class: &'static str,
    kind: LockKind,
    site: &'static Location<'static>,
    since: Sbintime,
    waited: Option<Sbintime>,
    contests: u32,
}

/// Since when a thread has waited for a lock; nothing if it was free or the profile is off.
///
/// On its stack: whoever waits for a spin mutex may go on on another CPU, and be interrupted by who waits for another.
#[derive(Clone, Copy)]
pub(in crate::kern) struct Waited(Option<Sbintime>);

impl Waited {
    pub(in crate::kern) const NOT: Waited = Waited(None);
}

/// What a thread, or for spin mutexes a CPU, holds.
pub(in crate::kern) struct ProfiledLocks(UnsafeCell<State>);

struct State {
    held: [Option<Held>; MOST],
    skipped: u32,
}

// SAFETY: only the thread uses its own; only the CPU, with interrupts off, uses its own.
unsafe impl Sync for ProfiledLocks {}
// SAFETY: as above.
unsafe impl Send for ProfiledLocks {}

impl ProfiledLocks {
    pub(in crate::kern) const fn new() -> ProfiledLocks {
        ProfiledLocks(UnsafeCell::new(State {
            held: [None; MOST],
            skipped: 0,
        }))
    }
}

/// What is known of one place.
#[doc(alias = "lock_prof")]
#[derive(Clone, Copy, Default)]
struct Record {
    max: Sbintime,
    wait_max: Sbintime,
    total: Sbintime,
    wait_total: Sbintime,
    count: u64,
    contested_holding: u64,
    contested_locking: u64,
}

impl Record {
    fn add(&mut self, other: &Record) {
        self.max = self.max.max(other.max);
        self.wait_max = self.wait_max.max(other.wait_max);
        self.total += other.total;
        self.wait_total += other.wait_total;
        self.count += other.count;
        self.contested_holding += other.contested_holding;
        self.contested_locking += other.contested_locking;
    }
}

/// A hash table with open addressing.
type Records = Box<[Option<(Key, Record)>]>;

type Key = (&'static Location<'static>, &'static str, LockKind);

/// The records of one CPU: used by it with interrupts off, or by who holds `CONTROL` while the profile is off.
struct Table(UnsafeCell<Option<Records>>);

// SAFETY: as said at the declaration; `settle` waits until no CPU is inside.
unsafe impl Sync for Table {}
// SAFETY: as above.
unsafe impl Send for Table {}

machine_local! {
    static ENABLE: AtomicBool = AtomicBool::new(false);
    /// Who reads the records or switches the profile on or off: one program at a time.
    static CONTROL: Mutex<(), Leaf> = Mutex::new(());
    static SKIPSPIN: AtomicBool = AtomicBool::new(false);
    /// Of so many acquisitions of a thread, or of spin mutexes of a CPU, one is recorded; zero, like one: each.
    static SKIPCOUNT: AtomicU32 = AtomicU32::new(0);
    /// Acquisitions for which there was no room.
    static REJECTED: AtomicU64 = AtomicU64::new(0);
    static SPIN: PerCpu<ProfiledLocks> =
        PerCpu::from_slots([const { CachePadded(ProfiledLocks::new()) }; MAXCPU]);
    static TABLES: PerCpu<Table> =
        PerCpu::from_slots([const { CachePadded(Table(UnsafeCell::new(None))) }; MAXCPU]);
    static CONTEST: [AtomicU32; CONTESTS] = [const { AtomicU32::new(0) }; CONTESTS];
}

#[inline(always)]
fn enabled() -> bool {
    ENABLE.load(Ordering::Relaxed)
}

fn contests(address: usize) -> &'static AtomicU32 {
    &CONTEST.get()[(address >> 4 ^ address >> 14) % CONTESTS]
}

/// Calls `f` with what the thread or CPU holds. For a CPU interrupts are off.
fn with_state(me: Option<ThreadRef>, f: impl FnOnce(&mut State)) {
    let locks = match me {
        Some(me) => me.profiled_locks(),
        None => SPIN.get().get(machine::curcpu()),
    };
    // SAFETY: the owner alone calls this, and `f` takes no lock.
    f(unsafe { &mut *locks.0.get() });
}

#[inline(always)]
pub(super) fn failed(waited: &mut Waited, address: usize) {
    if enabled() && waited.0.is_none() {
        contests(address).fetch_add(1, Ordering::Relaxed);
        waited.0 = Some(machine::sbinuptime());
    }
}

#[inline(always)]
pub(super) fn obtained(
    me: Option<ThreadRef>,
    address: usize,
    class: &'static str,
    kind: LockKind,
    site: &'static Location<'static>,
    waited: Waited,
) {
    if enabled() {
        obtained_hard(me, address, class, kind, site, waited);
    }
}

#[cold]
#[inline(never)]
fn obtained_hard(
    me: Option<ThreadRef>,
    address: usize,
    class: &'static str,
    kind: LockKind,
    site: &'static Location<'static>,
    waited: Waited,
) {
    if me.is_none() && SKIPSPIN.load(Ordering::Relaxed) {
        return;
    }
    let since = machine::sbinuptime();
    with_state(me, |state| {
        state.skipped += 1;
        if state.skipped < SKIPCOUNT.load(Ordering::Relaxed) {
            return;
        }
        state.skipped = 0;
        let Some(free) = state.held.iter_mut().find(|held| held.is_none()) else {
            REJECTED.fetch_add(1, Ordering::Relaxed);
            return;
        };
        *free = Some(Held {
            address,
            class,
            kind,
            site,
            since,
            waited: waited.0.map(|began| since - began),
            contests: contests(address).load(Ordering::Relaxed),
        });
    });
}

/// Also while the profile is off: what was held when it went off must not be taken for held when it is on again.
#[inline(always)]
pub(super) fn released(me: Option<ThreadRef>, address: usize) {
    with_state(me, |state| {
        let mut locks = state.held.iter_mut();
        let held = locks.find(|held| held.is_some_and(|held| held.address == address));
        if let Some(held) = held.and_then(Option::take) {
            record(&held);
        }
    });
}

#[cold]
#[inline(never)]
fn record(held: &Held) {
    let time = machine::sbinuptime() - held.since;
    let waited = held.waited.unwrap_or(Sbintime::ZERO);
    let contested = contests(held.address).load(Ordering::Relaxed) != held.contests;
    let new = Record {
        max: time,
        wait_max: waited,
        total: time,
        wait_total: waited,
        count: 1,
        contested_holding: u64::from(contested),
        contested_locking: u64::from(held.waited.is_some()),
    };
    spinlock_enter();
    if enabled() {
        let table = TABLES.get().get(machine::curcpu());
        // SAFETY: this CPU's own, and interrupts are off.
        let records = unsafe { (*table.0.get()).as_deref_mut() };
        let key = (held.site, held.class, held.kind);
        if !records.is_some_and(|records| add(records, key, &new)) {
            REJECTED.fetch_add(1, Ordering::Relaxed);
        }
    }
    spinlock_exit();
}

/// Adds to the record of `key`; false if there is no room for another.
fn add(records: &mut [Option<(Key, Record)>], key: Key, new: &Record) -> bool {
    let start = (&raw const *key.0 as usize >> 3 ^ key.1.as_ptr() as usize >> 2) % RECORDS;
    for step in 0..RECORDS {
        match &mut records[(start + step) % RECORDS] {
            Some((there, record)) if same(there, &key) => {
                record.add(new);
                return true;
            }
            Some(_) => {}
            free => {
                *free = Some((key, *new));
                return true;
            }
        }
    }
    false
}

fn same(a: &Key, b: &Key) -> bool {
    core::ptr::eq(a.0, b.0) && core::ptr::eq(a.1, b.1) && a.2 == b.2
}

/// Returns when no CPU is in the middle of a record any more. The profile is off.
fn settle() {
    machine::smp_rendezvous(machine::CpuSet::all(), |_| {}, 0);
}

/// Calls `f` with the records of each CPU, while the profile is off. Afterwards it is on if `on_again` says so of whether it was.
fn with_tables(mut f: impl FnMut(&mut Option<Records>), on_again: impl FnOnce(bool) -> bool) {
    let _alone = CONTROL.get().lock();
    let was = ENABLE.swap(false, Ordering::SeqCst);
    settle();
    for table in TABLES.get().iter() {
        // SAFETY: the profile is off, no CPU is inside, and who holds `CONTROL` is alone here.
        f(unsafe { &mut *table.0.get() });
    }
    ENABLE.store(on_again(was), Ordering::SeqCst);
}

fn set_enabled(on: bool) {
    let make = |table: &mut Option<Records>| {
        if on {
            table.get_or_insert_with(|| alloc::vec![None; RECORDS].into_boxed_slice());
        }
    };
    with_tables(make, |_| on);
}

#[doc(alias = "dump_lock_prof_stats")]
fn stats() -> String {
    let mut all: BTreeMap<(&str, u32, &str, &str), Record> = BTreeMap::new();
    let collect = |table: &mut Option<Records>| {
        for ((site, class, kind), record) in table.iter().flatten().flatten() {
            let name = (site.file(), site.line(), kind.class(), *class);
            all.entry(name).or_default().add(record);
        }
    };
    with_tables(collect, |was| was);
    let mut lines: Vec<_> = all.into_iter().collect();
    lines.sort_by_key(|(_, record)| core::cmp::Reverse(record.wait_total));
    let mut text = String::new();
    let _ = write!(
        text,
        "\n{:>8} {:>9} {:>11} {:>11} {:>11} {:>6} {:>6} {:>2} {:>6} name",
        "max",
        "wait_max",
        "total",
        "wait_total",
        "count",
        "avg",
        "wait_avg",
        "cnt_hold",
        "cnt_lock"
    );
    for ((file, line, kind, class), record) in lines {
        let us = |time: Sbintime| time.as_us();
        let average = |time: Sbintime| time.as_us() / record.count.max(1) as i64;
        let _ = write!(
            text,
            "\n{:>8} {:>9} {:>11} {:>11} {:>11} {:>6} {:>6} {:>2} {:>6} {file}:{line} ({kind}:{class})",
            us(record.max),
            us(record.wait_max),
            us(record.total),
            us(record.wait_total),
            record.count,
            average(record.total),
            average(record.wait_total),
            record.contested_holding,
            record.contested_locking,
        );
    }
    text
}

#[doc(alias = "reset_lock_prof_stats")]
fn reset() {
    let empty = |table: &mut Option<Records>| {
        if let Some(records) = table {
            records.fill(None);
        }
        REJECTED.store(0, Ordering::Relaxed);
    };
    with_tables(empty, |was| was);
}

pub(super) fn register(tree: &SysctlTree) {
    fn flag(text: &str) -> Result<bool, Errno> {
        text.parse::<i64>()
            .map(|n| n != 0)
            .map_err(|_| Errno::EINVAL)
    }
    let show = |on: bool| u8::from(on).to_string();
    tree.register(
        "debug.lock.prof.enable",
        Arc::new(Procedure::new(
            "Enable lock profiling",
            move || show(enabled()),
            |text: &str| flag(text).map(set_enabled),
        )),
    );
    tree.register(
        "debug.lock.prof.reset",
        Arc::new(Procedure::new(
            "Reset lock profiling statistics",
            move || show(false),
            |text: &str| {
                if flag(text)? {
                    reset();
                }
                Ok(())
            },
        )),
    );
    tree.register(
        "debug.lock.prof.stats",
        Arc::new(ReadOnly::new(
            "Lock profiling statistics, microseconds",
            stats,
        )),
    );
    tree.register(
        "debug.lock.prof.skipspin",
        Arc::new(Procedure::new(
            "Skip profiling on spinlocks.",
            move || show(SKIPSPIN.load(Ordering::Relaxed)),
            |text: &str| flag(text).map(|on| SKIPSPIN.store(on, Ordering::Relaxed)),
        )),
    );
    tree.register(
        "debug.lock.prof.skipcount",
        Arc::new(Procedure::new(
            "Sample approximately every N lock acquisitions.",
            || SKIPCOUNT.load(Ordering::Relaxed).to_string(),
            |text: &str| {
                let count = text.parse().map_err(|_| Errno::EINVAL)?;
                SKIPCOUNT.store(count, Ordering::Relaxed);
                Ok(())
            },
        )),
    );
    tree.register(
        "debug.lock.prof.rejected",
        Arc::new(ReadOnly::new(
            "Number of rejected profiling records",
            || REJECTED.load(Ordering::Relaxed).to_string(),
        )),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kern::kern_rmlock::RmLock;
    use crate::kern::kern_synch::kern_yield;
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::machine::hosted::{Machine, seeds};
    use crate::sysctl::root;

    #[test]
    fn the_profile_says_who_held_a_lock_and_who_waited_for_it() {
        Machine::builder().cpus(1).run(|| {
            let tree = root();
            tree.set("debug.lock.prof.enable", "1").unwrap();
            let lock = Arc::new(Mutex::<u32, Leaf>::new(0));
            let theirs = Arc::clone(&lock);
            let owners_line = line!() + 1;
            let guard = lock.lock();
            let waiters_line = line!() + 1;
            let waiter = kthread_add("waiter", Pri(60), None, move || *theirs.lock() += 1);
            let end = machine::sbinuptime() + Sbintime::from_us(300);
            while machine::sbinuptime() < end {
                machine::cpu_spinwait();
                kern_yield();
            }
            drop(guard);
            waiter.join();
            tree.set("debug.lock.prof.enable", "0").unwrap();
            let stats = tree.get("debug.lock.prof.stats").unwrap();
            let columns = |line: u32| {
                let name = alloc::format!("profile.rs:{line} (sleep mutex:leaf)");
                columns(&stats, &name).unwrap_or_else(|| panic!("no {name} in\n{stats}"))
            };
            let owner = columns(owners_line);
            let waiter = columns(waiters_line);
            // max, wait_max, total, wait_total, count, avg, wait_avg, cnt_hold, cnt_lock
            assert!((300..2_000).contains(&owner[0]), "{stats}");
            assert_eq!(
                (owner[1], owner[4], owner[7], owner[8]),
                (0, 1, 1, 0),
                "{stats}"
            );
            assert!((250..2_000).contains(&waiter[1]), "{stats}");
            assert_eq!((waiter[4], waiter[7], waiter[8]), (1, 0, 1), "{stats}");
            assert_eq!(tree.get("debug.lock.prof.rejected").as_deref(), Some("0"));
            tree.set("debug.lock.prof.reset", "1").unwrap();
            assert!(!tree.get("debug.lock.prof.stats").unwrap().contains("leaf"));
        });
    }

    /// The numbers of the line of the profile that ends in `name`; nothing if there is none.
    fn columns(stats: &str, name: &str) -> Option<Vec<u64>> {
        let line = stats.lines().find(|line| line.ends_with(name))?;
        let columns = line.split_whitespace().take(9);
        Some(columns.map(|c| c.parse().unwrap()).collect())
    }

    #[test]
    fn a_writer_that_waits_for_readers_of_an_rmlock_or_for_another_writer_has_waited() {
        Machine::builder().cpus(1).run(|| {
            let tree = root();
            tree.set("debug.lock.prof.enable", "1").unwrap();
            let lock = Arc::new(RmLock::<u32, Leaf>::new(0));
            let reader = lock.read();
            let writers_line = line!() + 3;
            let writers = [0, 1].map(|_| {
                let theirs = Arc::clone(&lock);
                kthread_add("writer", Pri(60), None, move || *theirs.write() += 1)
            });
            let end = machine::sbinuptime() + Sbintime::from_us(300);
            while machine::sbinuptime() < end {
                machine::cpu_spinwait();
                kern_yield();
            }
            drop(reader);
            writers.into_iter().for_each(|writer| writer.join());
            let stats = tree.get("debug.lock.prof.stats").unwrap();
            let name = alloc::format!("profile.rs:{writers_line} (rm:leaf)");
            let writer = columns(&stats, &name).unwrap_or_else(|| panic!("{stats}"));
            assert!(writer[3] >= 2 * 250, "{stats}");
            assert_eq!((writer[4], writer[8]), (2, 2), "{stats}");
        });
    }

    #[test]
    fn two_programs_that_read_the_profile_at_once_leave_it_on() {
        for seed in seeds(20) {
            Machine::builder().seed(seed).cpus(2).run(|| {
                root().set("debug.lock.prof.enable", "1").unwrap();
                let readers = [0, 1].map(|_| {
                    kthread_add("reader", Pri::PUSER, None, || {
                        for _ in 0..5 {
                            assert!(root().get("debug.lock.prof.stats").is_some());
                        }
                    })
                });
                readers.into_iter().for_each(|reader| reader.join());
                let enabled = root().get("debug.lock.prof.enable");
                assert_eq!(enabled.as_deref(), Some("1"), "seed {seed}");
            });
        }
    }

    #[test]
    fn one_of_skipcount_acquisitions_is_recorded() {
        Machine::builder().cpus(1).run(|| {
            let tree = root();
            let lock = Mutex::<u32, Leaf>::new(0);
            for (skipcount, recorded) in [(0, 60), (1, 60), (2, 30), (3, 20)] {
                tree.set("debug.lock.prof.skipcount", &skipcount.to_string())
                    .unwrap();
                tree.set("debug.lock.prof.reset", "1").unwrap();
                tree.set("debug.lock.prof.enable", "1").unwrap();
                let line = line!() + 2;
                for _ in 0..60 {
                    *lock.lock() += 1;
                }
                tree.set("debug.lock.prof.enable", "0").unwrap();
                let stats = tree.get("debug.lock.prof.stats").unwrap();
                let name = alloc::format!("profile.rs:{line} (sleep mutex:leaf)");
                let seen = columns(&stats, &name).map(|columns| columns[4]);
                assert_eq!(seen, Some(recorded), "{stats}");
            }
        });
    }
}
