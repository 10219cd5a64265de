//! Priority lending: an urgent thread that waits for a chain of owners does not wait for what is less urgent than itself.
//!
//! With `debug.turnstile.lending` set to 0 it does, and this says so.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_rmlock::RmLock;
use sys::kern::kern_rwlock::RwLock;
use sys::kern::kern_synch::{pause_sbt, sched_prio};
use sys::kern::kern_thread::{Pri, ThreadHandle, ThreadState, curthread, kthread_add};
use sys::kern::lock_order::{App, Console, Leaf};
use sys::machine;
use sys::machine::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use sys::time::Sbintime;

/// Who looks on; more urgent than all others.
const DIRECTOR: Pri = Pri(40);
const HIGH: Pri = Pri(60);
/// Takes the CPU from programs, and does not give it back.
const MEDIUM: Pri = Pri(110);
const LOW: Pri = Pri(150);

/// An urgent thread that has waited so long waits for the hogs.
const INVERSION: Sbintime = Sbintime::from_s(3);

#[derive(Default)]
struct Stage {
    owns: AtomicBool,
    go: AtomicBool,
    hogging: AtomicUsize,
    end: AtomicBool,
    /// What the urgent thread waited, in 2^-32 s; zero until it is through.
    waited: AtomicU64,
}

/// The chain: the reader of `first` waits for the writer of `second`, and that for the owner of `third`.
struct Locks {
    first: RmLock<(), App>,
    second: RwLock<(), Console>,
    third: Mutex<(), Leaf>,
}

pub(super) fn torture(_: Sbintime) -> Result<String, String> {
    let mine = curthread().priority();
    sched_prio(DIRECTOR);
    let result = play();
    sched_prio(mine);
    result
}

/// Waits until `reached`, for a while.
fn wait_for(what: &str, reached: impl Fn() -> bool) -> Result<(), String> {
    let end = machine::sbinuptime() + INVERSION;
    while !reached() {
        if machine::sbinuptime() > end {
            return Err(what.to_string());
        }
        // Not in step with the turns of the owners, which end every 10 ms.
        pause_sbt("stage", Sbintime::from_us(1_370));
    }
    Ok(())
}

fn spin_until(flag: &AtomicBool) {
    while !flag.load(Ordering::Relaxed) {
        machine::cpu_spinwait();
    }
}

fn play() -> Result<String, String> {
    let stage = Arc::new(Stage::default());
    let locks = Arc::new(Locks {
        first: RmLock::new(()),
        second: RwLock::new(()),
        third: Mutex::new(()),
    });
    let mut threads = Vec::new();
    let result = chain(&stage, &locks, &mut threads);
    stage.go.store(true, Ordering::Relaxed);
    stage.end.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join());
    result
}

fn chain(
    stage: &Arc<Stage>,
    locks: &Arc<Locks>,
    threads: &mut Vec<ThreadHandle>,
) -> Result<String, String> {
    let mut start = |name: &str, pri, cpu, body: fn(&Stage, &Locks)| {
        let (stage, locks) = (Arc::clone(stage), Arc::clone(locks));
        let handle = kthread_add(name, pri, cpu, move || body(&stage, &locks));
        let thread = handle.thread();
        threads.push(handle);
        thread
    };
    start("owner of mutex", LOW, None, |stage, locks| {
        let _third = locks.third.lock();
        stage.owns.store(true, Ordering::Relaxed);
        spin_until(&stage.go);
    });
    wait_for("nobody took the mutex", || {
        stage.owns.load(Ordering::Relaxed)
    })?;
    let writer = start("writer of rwlock", LOW, None, |_, locks| {
        let second = locks.second.write();
        let _third = locks.third.lock_under(&second);
    });
    wait_for("the writer does not wait", || {
        writer.state() == ThreadState::Blocked
    })?;
    let reader = start("reader of rmlock", LOW, None, |_, locks| {
        let first = locks.first.read();
        let _second = locks.second.read_under(&first);
    });
    wait_for("the reader does not wait", || {
        reader.state() == ThreadState::Blocked
    })?;
    let cpus = machine::ncpus();
    for cpu in 0..cpus {
        start("hog", MEDIUM, Some(cpu), |stage, _| {
            stage.hogging.fetch_add(1, Ordering::Relaxed);
            spin_until(&stage.end);
        });
    }
    wait_for("the hogs do not run", || {
        stage.hogging.load(Ordering::Relaxed) == cpus
    })?;
    // From here on only who is lent priority gets a CPU.
    stage.go.store(true, Ordering::Relaxed);
    start("urgent", HIGH, None, |stage, locks| {
        let before = machine::sbinuptime();
        let _first = locks.first.write();
        let waited = machine::sbinuptime() - before;
        stage
            .waited
            .store(waited.0.max(1) as u64, Ordering::Relaxed);
    });
    let inversion = "priority inversion: an urgent thread waits behind one of medium urgency";
    wait_for(inversion, || stage.waited.load(Ordering::Relaxed) != 0)?;
    let waited = Sbintime(stage.waited.load(Ordering::Relaxed) as i64);
    Ok(format!(
        "an urgent thread waited {} us for a chain of a mutex, an rwlock and an rmlock, past {cpus} hogs",
        waited.as_us()
    ))
}

#[cfg(test)]
mod tests {
    use sys::machine::hosted::Machine;
    use sys::sysctl::root;

    use super::*;

    #[test]
    fn without_lending_the_urgent_thread_waits_behind_the_hogs() {
        for cpus in [1, 2] {
            Machine::builder().cpus(cpus).run(|| {
                assert_eq!(torture(Sbintime::ZERO).err(), None);
                root().set("debug.turnstile.lending", "0").unwrap();
                let said = torture(Sbintime::ZERO).unwrap_err();
                assert!(said.starts_with("priority inversion"), "{said}");
                root().set("debug.turnstile.lending", "1").unwrap();
                assert_eq!(torture(Sbintime::ZERO).err(), None);
            });
        }
    }
}
