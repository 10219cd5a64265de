//! Every kind of lock under readers, writers, upgrades, downgrades, interrupts and migration, on all CPUs.
//!
//! What a lock protects is a row of numbers that are equal whenever nobody changes them, changed one by one. That this notices a lock
//! that does not exclude is shown by one that does not.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use sys::kern::kern_mutex::{Mutex, RecursiveMutex, SpinMutex};
use sys::kern::kern_rmlock::{RmLock, RmSleepable};
use sys::kern::kern_rwlock::{RecursiveRwLock, RwLock, RwReadGuard, RwWriteGuard};
use sys::kern::kern_sx::{Sx, SxGuard, SxSharedGuard};
use sys::kern::kern_synch::{kern_yield, pause_sbt, sched_bind, sched_unbind};
use sys::kern::kern_thread::{Pri, kthread_add};
use sys::kern::lock_order::{App, Console, IntrQueue, Leaf};
use sys::machine::atomic::{AtomicBool, AtomicU64, Ordering};
use sys::machine::{self, CpuSet, smp_rendezvous};
use sys::machine_local;
use sys::time::Sbintime;

/// Numbers that are equal whenever nobody changes them.
#[derive(Default)]
struct Row([AtomicU64; 4]);

impl Row {
    /// Adds one to each, not at once, and not atomically.
    fn add(&self, random: u64) {
        for (at, number) in self.0.iter().enumerate() {
            let before = number.load(Ordering::Relaxed);
            linger(random >> (4 * at));
            number.store(before + 1, Ordering::Relaxed);
        }
    }

    /// The number that all are, for a while.
    fn look(&self, random: u64) -> Result<u64, String> {
        let first = self.0[0].load(Ordering::Relaxed);
        linger(random);
        for number in self.0.iter().rev() {
            let number = number.load(Ordering::Relaxed);
            if number != first {
                return Err(format!("{first} and {number} seen together"));
            }
        }
        Ok(first)
    }
}

/// Now and then gives others the time to come in between.
fn linger(random: u64) {
    if random & 15 == 0 {
        machine::cpu_spinwait();
    }
    if random & 0x3ff == 0 {
        kern_yield();
    }
}

/// As `linger`, where the thread may sleep.
fn sleep_sometimes(random: u64) {
    if random & 63 == 0 {
        pause_sbt("linger", Sbintime::from_us(50));
    }
}

/// A row under a lock.
trait Victim: Send + Sync {
    fn name(&self) -> &'static str;

    /// How often has been added.
    fn total(&self) -> Result<u64, String>;

    /// Reads or writes, as `random` says; returns how often it has added.
    fn turn(&self, random: u64) -> Result<u64, String>;
}

macro_rules! victim {
    ($lock:ty, $name:literal, $row:expr, |$self:ident, $random:ident| $turn:block) => {
        impl Victim for $lock {
            fn name(&self) -> &'static str {
                $name
            }

            fn total(&$self) -> Result<u64, String> {
                $row.look(u64::MAX)
            }

            fn turn(&$self, $random: u64) -> Result<u64, String> $turn
        }
    };
}

victim!(Mutex<Row, Leaf>, "mutex", self.lock(), |self, random| {
    let row = match random >> 60 {
        0 => self.try_lock(),
        _ => Some(self.lock()),
    };
    let Some(row) = row else { return Ok(0) };
    row.look(random)?;
    row.add(random);
    Ok(1)
});

victim!(RecursiveMutex<Row, Leaf>, "recursive mutex", self.lock(), |self, random| {
    let row = self.lock();
    row.look(random)?;
    let again = self.lock();
    row.add(random);
    drop(row);
    again.add(random >> 16);
    Ok(2)
});

/// The row under `SPIN`, to which interrupts of all CPUs add too.
struct Interrupted;

machine_local! {
    static SPIN: SpinMutex<Row, IntrQueue> = SpinMutex::new(Row([const { AtomicU64::new(0) }; 4]));
}

/// Nobody may be given the CPU, so there is no lingering.
const AT_ONCE: u64 = u64::MAX;

victim!(Interrupted, "spin mutex", SPIN.lock(), |self, random| {
    if random >> 56 == 0 {
        smp_rendezvous(CpuSet::all(), |_| SPIN.lock().add(AT_ONCE), 0);
        return Ok(machine::ncpus() as u64);
    }
    let row = SPIN.lock();
    row.look(AT_ONCE)?;
    row.add(AT_ONCE);
    Ok(1)
});

victim!(RwLock<Row, Leaf>, "rwlock", self.read(), |self, random| {
    match random >> 60 {
        0 => {
            let row = self.write();
            row.add(random);
            let row = RwWriteGuard::downgrade(row);
            row.look(random).map(|_| 1)
        }
        1 => {
            let row = self.read();
            row.look(random)?;
            let Ok(row) = RwReadGuard::try_upgrade(row) else {
                return Ok(0);
            };
            row.add(random);
            Ok(1)
        }
        2 => {
            let Some(row) = self.try_write() else { return Ok(0) };
            row.add(random);
            Ok(1)
        }
        3 | 4 => {
            self.write().add(random);
            Ok(1)
        }
        _ => self.read().look(random).map(|_| 0),
    }
});

victim!(RecursiveRwLock<Row, Leaf>, "recursive rwlock", self.read(), |self, random| {
    if random >> 62 != 0 {
        return self.read().look(random).map(|_| 0);
    }
    let row = self.write();
    let again = self.write();
    row.add(random);
    drop(row);
    again.look(random)?;
    Ok(1)
});

victim!(Sx<Row, App>, "sx", self.slock(), |self, random| {
    match random >> 60 {
        0 => {
            let row = self.xlock();
            row.add(random);
            sleep_sometimes(random >> 20);
            let row = SxGuard::downgrade(row);
            row.look(random).map(|_| 1)
        }
        1 => {
            let row = self.slock();
            row.look(random)?;
            let Ok(row) = SxSharedGuard::try_upgrade(row) else {
                return Ok(0);
            };
            row.add(random);
            Ok(1)
        }
        2 | 3 => {
            let row = self.xlock();
            row.add(random);
            sleep_sometimes(random >> 20);
            row.look(random).map(|_| 1)
        }
        _ => {
            let row = self.slock();
            let before = row.look(random)?;
            sleep_sometimes(random >> 20);
            unchanged(before, row.look(random)?)
        }
    }
});

victim!(RmLock<Row, Leaf>, "rmlock", self.read(), |self, random| {
    match random >> 59 {
        0 => {
            self.write().add(random);
            Ok(1)
        }
        1..=3 => {
            let first = self.read();
            let before = first.look(random)?;
            let again = self.read();
            drop(first);
            kern_yield();
            unchanged(before, again.look(random)?)
        }
        4 => match self.try_read() {
            Some(row) => row.look(random).map(|_| 0),
            None => Ok(0),
        },
        _ => {
            let row = self.read();
            unchanged(row.look(random)?, row.look(random >> 10)?)
        }
    }
});

victim!(RmSleepable<Row, App>, "sleepable rmlock", self.read(), |self, random| {
    if random >> 59 == 0 {
        let row = self.write();
        row.add(random);
        sleep_sometimes(random >> 20);
        return row.look(random).map(|_| 1);
    }
    let row = self.read();
    let before = row.look(random)?;
    sleep_sometimes(random >> 20);
    unchanged(before, row.look(random)?)
});

fn unchanged(before: u64, after: u64) -> Result<u64, String> {
    if before == after {
        Ok(0)
    } else {
        Err(format!("{before} became {after} under a reader"))
    }
}

/// A lock whose test and whose setting are two steps, so that two may get through.
#[derive(Default)]
struct Broken {
    taken: AtomicBool,
    row: Row,
}

victim!(Broken, "broken lock", self.row, |self, random| {
    while self.taken.load(Ordering::Acquire) {
        // Asleep: who has it may be less urgent.
        pause_sbt("broken", Sbintime::from_us(20));
    }
    linger(random >> 32);
    self.taken.store(true, Ordering::Relaxed);
    let seen = self.row.look(random);
    self.row.add(random);
    self.taken.store(false, Ordering::Release);
    seen.map(|_| 1)
});

fn victims() -> Vec<Box<dyn Victim>> {
    vec![
        Box::new(Mutex::<_, Leaf>::new(Row::default())),
        Box::new(RecursiveMutex::<_, Leaf>::new(Row::default())),
        Box::new(Interrupted),
        Box::new(RwLock::<_, Leaf>::new(Row::default())),
        Box::new(RecursiveRwLock::<_, Leaf>::new(Row::default())),
        Box::new(Sx::<_, App>::new(Row::default())),
        Box::new(RmLock::<_, Leaf>::new(Row::default())),
        Box::new(RmSleepable::<_, App>::new_sleepable(Row::default())),
    ]
}

/// What all threads of a torture share.
struct Torture {
    victims: Vec<Box<dyn Victim>>,
    /// What the threads say they have added, for each victim.
    said: Vec<AtomicU64>,
    stop: AtomicBool,
    turns: AtomicU64,
    trouble: Mutex<Option<String>, Console>,
}

pub(super) fn torture(time: Sbintime) -> Result<String, String> {
    let turns = run(victims(), time)?;
    let Err(caught) = run(
        vec![Box::new(Broken::default())],
        time.max(Sbintime::from_s(1)),
    ) else {
        return Err(String::from("the broken lock was not noticed"));
    };
    Ok(format!(
        "{turns} turns with {} kinds of lock; caught: {caught}",
        victims().len()
    ))
}

/// Lets threads on all CPUs take turns with `victims` for `time`, or until something is wrong.
fn run(victims: Vec<Box<dyn Victim>>, time: Sbintime) -> Result<u64, String> {
    let mut before = Vec::new();
    for victim in &victims {
        before.push(victim.total()?);
    }
    let torture = Arc::new(Torture {
        said: victims.iter().map(|_| AtomicU64::new(0)).collect(),
        victims,
        stop: AtomicBool::new(false),
        turns: AtomicU64::new(0),
        trouble: Mutex::new(None),
    });
    let threads: Vec<_> = (0..3 * machine::ncpus())
        .map(|number| {
            let torture = Arc::clone(&torture);
            // Programs, threads of the kernel, and some that wander from CPU to CPU.
            let pri = if number % 3 == 1 {
                Pri::PWAIT
            } else {
                Pri::PUSER
            };
            let name = format!("locks {number}");
            kthread_add(&name, pri, None, move || torture.work(number % 3 == 2))
        })
        .collect();
    let end = machine::sbinuptime() + time;
    while machine::sbinuptime() < end && !torture.stop.load(Ordering::Relaxed) {
        pause_sbt("torture", Sbintime::from_ms(5));
    }
    torture.stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join());
    if let Some(trouble) = torture.trouble.lock().take() {
        return Err(trouble);
    }
    for (at, victim) in torture.victims.iter().enumerate() {
        let said = before[at] + torture.said[at].load(Ordering::Relaxed);
        let there = victim
            .total()
            .map_err(|trouble| format!("{}: {trouble}", victim.name()))?;
        if there != said {
            return Err(format!("{}: {said} additions made {there}", victim.name()));
        }
    }
    Ok(torture.turns.load(Ordering::Relaxed))
}

impl Torture {
    fn work(&self, wanders: bool) {
        let mut turns = 0u64;
        while !self.stop.load(Ordering::Relaxed) {
            let random = machine::random_u64();
            let at = (random >> 32) as usize % self.victims.len();
            match self.victims[at].turn(random) {
                Ok(added) => self.said[at].fetch_add(added, Ordering::Relaxed),
                Err(trouble) => {
                    let trouble = format!("{}: {trouble}", self.victims[at].name());
                    self.trouble.lock().get_or_insert(trouble);
                    self.stop.store(true, Ordering::Relaxed);
                    break;
                }
            };
            turns += 1;
            if wanders && turns.is_multiple_of(256) {
                sched_bind((random >> 40) as usize % machine::ncpus());
            }
            if turns.is_multiple_of(1024) {
                pause_sbt("rest", Sbintime::from_us(20));
            }
        }
        sched_unbind();
        self.turns.fetch_add(turns, Ordering::Relaxed);
    }
}
