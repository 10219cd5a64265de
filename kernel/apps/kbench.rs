//! What the kernel's own operations cost: one line `name value unit` for each figure.
//!
//! Figures of an emulated machine say how operations compare with each other, not what they cost on iron.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::counter::Counter;
use sys::kern::kern_mutex::{Mutex, MutexGuard, SpinMutex};
use sys::kern::kern_rmlock::{RmLock, rm_ipis};
use sys::kern::kern_rwlock::RwLock;
use sys::kern::kern_synch::{PSOCK, WChan, pause_sbt, sched_pin, wakeup};
use sys::kern::kern_thread::{Pri, kthread_add};
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::lock_order::{App, Leaf, LockClass};
use sys::kern::subr_epoch::NetEpoch;
use sys::machine::{self, CpuSet, Critical, smp_rendezvous};
use sys::time::Sbintime;

use crate::apps::Env;
use crate::apps::io::{self, Failure};
use crate::outln;
use crate::shell::getopt::Getopt;

/// One figure: name, value in tenths, unit.
struct Figure(String, u64, &'static str);

type Subject = (&'static str, fn(&mut Vec<Figure>));

const SUBJECTS: &[Subject] = &[
    ("basic", basic),
    ("switch", switch),
    ("callout", callout),
    ("ipi", ipi),
    ("rmlock", rmlock),
];

/// Runs `kbench`.
pub fn main(env: &Env) -> i32 {
    let names = SUBJECTS.iter().map(|(name, _)| format!(" [{name}]"));
    let usage = format!("usage: kbench{}\n", names.collect::<String>());
    io::finish(env, &usage, run(env))
}

fn run(env: &Env) -> Result<(), Failure> {
    let mut options = Getopt::new(&env.args, "");
    if let Some(Err(wrong)) = options.next() {
        return Err(Failure::Usage(wrong));
    }
    let wanted = options.operands();
    let known = |word: &String| SUBJECTS.iter().any(|(name, _)| name == word);
    if let Some(unknown) = wanted.iter().find(|word| !known(word)) {
        return Err(Failure::Usage(format!("no subject named {unknown}")));
    }
    for (name, measure) in SUBJECTS {
        if env.interrupted() {
            return Err(Failure::Interrupted);
        }
        if !wanted.is_empty() && !wanted.iter().any(|word| word == name) {
            continue;
        }
        let mut figures = Vec::new();
        measure(&mut figures);
        for Figure(name, tenths, unit) in figures {
            outln!(env, "{name} {}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    Ok(())
}

/// Parts in which calls are timed. In some the host takes the CPU away for as long as thousands of calls take.
const ROUNDS: u32 = 50;

/// What one of `times` calls of `f` takes: the median of the rounds.
fn each(name: &str, times: u32, mut f: impl FnMut()) -> Figure {
    let mut rounds = [Sbintime::ZERO; ROUNDS as usize];
    for took in &mut rounds {
        let before = machine::sbinuptime();
        for _ in 0..times / ROUNDS {
            f();
        }
        *took = machine::sbinuptime() - before;
    }
    rounds.sort_unstable();
    per(name, times / ROUNDS, rounds[rounds.len() / 2])
}

fn per(name: &str, times: u32, took: Sbintime) -> Figure {
    let tenths = took.as_ns().max(0) as u64 * 10 / u64::from(times);
    Figure(String::from(name), tenths, "ns")
}

struct Nothing;

impl CalloutTarget for Nothing {
    fn callout(self: Arc<Self>, _: Sbintime) {}
}

/// Fast paths of locks as functions of their own: `cargo xtask test` looks at their instructions.
mod probe {
    use super::{Leaf, Mutex, RmLock, RwLock};

    #[inline(never)]
    pub(super) fn mutex(lock: &Mutex<u64, Leaf>) {
        *lock.lock() += 1;
    }

    #[inline(never)]
    pub(super) fn rwlock_read(lock: &RwLock<u64, Leaf>) -> u64 {
        *lock.read()
    }

    #[inline(never)]
    pub(super) fn rmlock_read(lock: &RmLock<u64, Leaf>) -> u64 {
        *lock.read()
    }
}

/// Operations that wait for nobody.
fn basic(figures: &mut Vec<Figure>) {
    const TIMES: u32 = 100_000;
    let mutex = Mutex::<u64, Leaf>::new(0);
    let rwlock = RwLock::<u64, Leaf>::new(0);
    let rmlock = RmLock::<u64, Leaf>::new(0);
    let spin = SpinMutex::<u64, Leaf>::new(0);
    let counter = Counter::new();
    let (callout, nothing) = (Callout::new(), Arc::new(Nothing));
    figures.extend([
        each("critical_section", TIMES, || drop(Critical::enter())),
        each("counter_add", TIMES, || counter.inc()),
        each("epoch_section", TIMES, || drop(NetEpoch::enter())),
        each("mutex_alone", TIMES, || probe::mutex(&mutex)),
        each("spin_mutex_alone", TIMES, || *spin.lock() += 1),
        each("rwlock_read_alone", TIMES, || {
            probe::rwlock_read(&rwlock);
        }),
        each("rwlock_write_alone", TIMES, || *rwlock.write() += 1),
        each("rmlock_read_alone", TIMES, || {
            probe::rmlock_read(&rmlock);
        }),
        each("rmlock_write_again", TIMES, || *rmlock.write() += 1),
        each("sbinuptime", TIMES, || {
            machine::sbinuptime();
        }),
        each("wakeup_of_nobody", TIMES, || wakeup(WChan::of(&mutex))),
    ]);
    callout.reset(Sbintime::from_s(60), &nothing);
    figures.push(each("callout_set_back", TIMES, || {
        callout.reset(Sbintime::from_s(61), &nothing);
    }));
    figures.push(each("callout_arm_and_stop", TIMES / 2, || {
        callout.reset(Sbintime::from_s(60), &nothing);
        callout.stop();
    }));
}

/// Two threads that wake each other in turn, on one CPU and on two: what one turn and the answer to it take.
fn switch(figures: &mut Vec<Figure>) {
    figures.push(each("thread_start_and_join", 500, || {
        kthread_add("short", Pri::PUSER, None, || {}).join();
    }));
    let pinned = sched_pin();
    let here = machine::curcpu();
    figures.push(ping_pong("switch_same_cpu_round_trip", here));
    if machine::ncpus() > 1 {
        let other = (here + 1) % machine::ncpus();
        figures.push(ping_pong("wakeup_other_cpu_round_trip", other));
    }
    drop(pinned);
}

fn ping_pong(name: &str, cpu: usize) -> Figure {
    const TURNS: u32 = 2_000;
    let ball = Arc::new(Mutex::<u32, Leaf>::new(0));
    let theirs = Arc::clone(&ball);
    let other = kthread_add("pong", Pri::PUSER, Some(cpu), move || {
        hit(&theirs, 1, TURNS);
    });
    let before = machine::sbinuptime();
    hit(&ball, 0, TURNS);
    let took = machine::sbinuptime() - before;
    other.join();
    per(name, TURNS, took)
}

fn hit<C: LockClass>(ball: &Mutex<u32, C>, side: u32, turns: u32) {
    for _ in 0..turns {
        let mut guard = ball.lock();
        while *guard % 2 != side {
            guard = MutexGuard::msleep(guard, WChan::of(ball), PSOCK, "ball", None, false).0;
        }
        *guard += 1;
        drop(guard);
        wakeup(WChan::of(ball));
    }
}

/// Writes down how late it runs.
struct Late {
    due: Mutex<Sbintime, App>,
    late: Mutex<Vec<Sbintime>, Leaf>,
}

impl CalloutTarget for Late {
    fn callout(self: Arc<Self>, now: Sbintime) {
        let late = now - *self.due.lock();
        self.late.lock().push(late);
    }
}

/// How late callouts run: one at a time, after spans that have nothing to do with each other.
fn callout(figures: &mut Vec<Figure>) {
    const TIMES: usize = 400;
    let timer = Callout::new();
    let late = Arc::new(Late {
        due: Mutex::new(Sbintime::ZERO),
        late: Mutex::new(Vec::with_capacity(TIMES)),
    });
    for _ in 0..TIMES {
        let span = Sbintime::from_us(200 + (machine::random_u64() % 2_000) as i64);
        let mut due = late.due.lock();
        timer.reset(span, &late);
        *due = timer.deadline().unwrap_or_else(machine::sbinuptime);
        drop(due);
        while timer.pending() {
            pause_sbt("kbench", span);
        }
        timer.drain();
    }
    let mut all = late.late.lock();
    all.sort_unstable();
    for (name, part) in [
        ("callout_late_median", 50),
        ("callout_late_p90", 90),
        ("callout_late_p99", 99),
        ("callout_late_max", 100),
    ] {
        let at = (all.len() * part / 100).clamp(1, all.len()) - 1;
        figures.push(per(name, 1, all[at]));
    }
}

/// An interrupt of one other CPU, and of all, until they have answered.
fn ipi(figures: &mut Vec<Figure>) {
    const TIMES: u32 = 2_000;
    if machine::ncpus() == 1 {
        return;
    }
    let pinned = sched_pin();
    let other = CpuSet::single((machine::curcpu() + 1) % machine::ncpus());
    let ask = |cpus| smp_rendezvous(cpus, |_| {}, 0);
    figures.push(each("ipi_round_trip", TIMES, || ask(other)));
    figures.push(each("ipi_round_trip_all", TIMES, || ask(CpuSet::others())));
    drop(pinned);
}

/// What a write of a read-mostly lock sends to the CPUs that have read since the last one, and what it takes.
fn rmlock(figures: &mut Vec<Figure>) {
    const TIMES: u32 = 50;
    let lock = Arc::new(RmLock::<u64, Leaf>::new(0));
    let pinned = sched_pin();
    let here = machine::curcpu();
    // One without readers, then with one more at a time, then again without.
    *lock.write() += 1;
    for readers in 1..machine::ncpus() {
        let (mut sent, mut took) = (0, Sbintime::ZERO);
        for _ in 0..TIMES {
            let others = (0..machine::ncpus()).filter(|&cpu| cpu != here);
            for cpu in others.take(readers) {
                let lock = Arc::clone(&lock);
                kthread_add("reader", Pri::PUSER, Some(cpu), move || drop(lock.read())).join();
            }
            let (ipis, before) = (rm_ipis(), machine::sbinuptime());
            *lock.write() += 1;
            took += machine::sbinuptime() - before;
            sent += rm_ipis() - ipis;
        }
        let name = format!("rmlock_write_after_reads_on_{readers}");
        figures.push(per(&name, TIMES, took));
        figures.push(ipis(format!("{name}_ipis"), TIMES, sent));
    }
    let before = rm_ipis();
    (0..TIMES).for_each(|_| *lock.write() += 1);
    let sent = rm_ipis() - before;
    figures.push(ipis("rmlock_write_again_ipis".into(), TIMES, sent));
    drop(pinned);
}

fn ipis(name: String, times: u32, sent: u64) -> Figure {
    Figure(name, sent * 10 / u64::from(times), "IPIs")
}

#[cfg(test)]
mod tests {
    use sys::machine::hosted::Machine;

    use super::*;

    #[test]
    fn every_subject_yields_figures_with_different_names() {
        Machine::builder().cpus(2).run(|| {
            let mut figures = Vec::new();
            for (_, measure) in SUBJECTS {
                let before = figures.len();
                measure(&mut figures);
                assert!(figures.len() > before);
            }
            let mut names: Vec<_> = figures.iter().map(|figure| &figure.0).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), figures.len());
            assert!(names.iter().all(|name| !name.contains(' ')));
        });
    }
}
