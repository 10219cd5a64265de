//! `subr_sleepqueue`, `kern_synch` and `kern_sx`: no wakeup is lost, and a sleep ends once, for one reason.

use crate::runner::{Mutant, Subject};
use std::sync::Arc;
use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_sx::Sx;
use sys::kern::kern_synch::{PSOCK, SleepError, WChan, sleep_unless, wakeup};
use sys::kern::kern_thread::curthread;
use sys::kern::lock_order::Leaf;
use sys::machine::atomic::{AtomicBool, Ordering};
use sys::machine::model::{Model, SiteKind, Watched, spawn, timer_interrupt};
use sys::time::Sbintime;

pub const MODELS: &[Subject] = &[
    Subject {
        name: "msleep",
        about: "a thread that sleeps until a flag is set finds it set",
        model: || Model::new(2),
        body: || sleep_and_wake(None),
        bounds: [3, 6],
        mutants: &[Mutant::of(
            "subr_sleepqueue.rs",
            "sched::wakeup(thread)",
            SiteKind::Wakeup,
        )],
    },
    Subject {
        name: "msleep-timeout",
        about: "a timeout against a wakeup: one of them ends the sleep, and the next sleep is not ended by what is left",
        model: || Model::new(3).interrupts(),
        body: time_out,
        bounds: [1, 3],
        mutants: &[Mutant::of(
            "subr_sleepqueue.rs",
            "sched::wakeup(thread)",
            SiteKind::Wakeup,
        )],
    },
    Subject {
        name: "msleep-interrupt",
        about: "an interruption of a thread that is about to sleep is not lost",
        model: || Model::new(2),
        body: interrupt,
        bounds: [3, 6],
        mutants: &[Mutant::of(
            "subr_sleepqueue.rs",
            "sched::wakeup(thread)",
            SiteKind::Wakeup,
        )],
    },
    Subject {
        name: "sx",
        about: "two threads lock exclusively and shared: alone or together, and none is left sleeping",
        model: || Model::new(2),
        body: exclusive_and_shared,
        bounds: [3, 6],
        mutants: &[Mutant::of(
            "kern_sx.rs",
            ".compare_exchange(me.as_word(), UNLOCKED",
            SiteKind::Release,
        )],
    },
    Subject {
        name: "sleep-unless",
        about: "a wakeup that comes when its reason to sleep is gone already does not end the next sleep",
        model: || Model::new(2),
        body: sleep_unless_set,
        bounds: [3, 5],
        mutants: &[Mutant::of(
            "subr_sleepqueue.rs",
            "sched::wakeup(thread)",
            SiteKind::Wakeup,
        )],
    },
    Subject {
        name: "sx-three",
        about: "an exclusive holder wakes those who sleep for it",
        model: || Model::new(3),
        body: three_lock,
        bounds: [2, 4],
        mutants: &[Mutant::of(
            "subr_sleepqueue.rs",
            "sched::wakeup(thread)",
            SiteKind::Wakeup,
        )],
    },
];

struct Flag(Mutex<Watched<bool>, Leaf>, Address);

/// Has an odd address in it, and so a sleep queue chain that is not that of a lock.
#[repr(align(2))]
struct Address([u8; 2]);

impl Flag {
    fn new() -> Arc<Flag> {
        Arc::new(Flag(Mutex::new(Watched::new(false)), Address([0; 2])))
    }

    fn chan(&self) -> WChan {
        WChan::of(&self.1.0[1])
    }

    fn set(&self) {
        self.0.lock().set(true);
        wakeup(self.chan());
    }

    /// Sleeps until the flag is set or the time is over.
    fn wait(&self, timo: Option<Sbintime>) -> Result<(), SleepError> {
        let mut guard = self.0.lock();
        while !guard.get() {
            let (again, end) = MutexGuard::msleep(guard, self.chan(), PSOCK, "flag", timo, false);
            guard = again;
            end?;
        }
        Ok(())
    }
}

fn sleep_and_wake(timo: Option<Sbintime>) {
    let flag = Flag::new();
    let theirs = Arc::clone(&flag);
    let other = spawn(move || theirs.set());
    assert_eq!(flag.wait(timo), Ok(()));
    other.join();
}

fn time_out() {
    let (first, second) = (Flag::new(), Flag::new());
    let theirs = (Arc::clone(&first), Arc::clone(&second));
    spawn(move || {
        theirs.0.set();
        theirs.1.set();
    });
    // The clock of the sleeper's CPU.
    spawn(|| timer_interrupt(0));
    let _ = first.wait(Some(Sbintime::from_ms(1)));
    let guard = second.0.lock();
    if !guard.get() {
        let (guard, end) = MutexGuard::msleep(guard, second.chan(), PSOCK, "second", None, false);
        assert_eq!((end, guard.get()), (Ok(()), true));
    }
}

fn interrupt() {
    let sleeper = curthread();
    let mutex = Mutex::<_, Leaf>::new(());
    let other = spawn(move || sleeper.interrupt());
    let chan = WChan::of(&mutex);
    let (guard, end) = MutexGuard::msleep(mutex.lock(), chan, PSOCK, "intr", None, true);
    assert_eq!(end, Err(SleepError::Interrupted));
    drop(guard);
    other.join();
    assert!(!curthread().take_interrupt());
}

struct Data(Sx<Watched<u32>, Leaf>);

impl Data {
    fn new() -> Arc<Data> {
        Arc::new(Data(Sx::new(Watched::new(0))))
    }

    fn add(&self) {
        let guard = self.0.xlock();
        guard.set(guard.get() + 1);
    }

    fn read(&self) -> u32 {
        self.0.slock().get()
    }
}

fn exclusive_and_shared() {
    let data = Data::new();
    let theirs = Arc::clone(&data);
    let other = spawn(move || {
        theirs.add();
        assert!(theirs.read() >= 1);
    });
    data.add();
    let _ = data.read();
    other.join();
    assert_eq!(data.read(), 2);
}

fn sleep_unless_set() {
    let ready = Arc::new(AtomicBool::new(false));
    let flag = Flag::new();
    let theirs = (Arc::clone(&ready), Arc::clone(&flag));
    let other = spawn(move || {
        theirs.0.store(true, Ordering::SeqCst);
        wakeup(WChan::of(&*theirs.0));
        theirs.1.set();
    });
    sleep_unless(WChan::of(&*ready), || ready.load(Ordering::SeqCst));
    let guard = flag.0.lock();
    if !guard.get() {
        let (guard, end) = MutexGuard::msleep(guard, flag.chan(), PSOCK, "flag", None, false);
        assert_eq!((end, guard.get()), (Ok(()), true));
    }
    other.join();
}

fn three_lock() {
    let data = Data::new();
    let theirs = Arc::clone(&data);
    let other = spawn(move || theirs.add());
    let theirs = Arc::clone(&data);
    let reader = spawn(move || assert!(theirs.read() <= 2));
    data.add();
    other.join();
    reader.join();
    assert_eq!(data.read(), 2);
}
