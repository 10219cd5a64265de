//! Everything at once, on all CPUs: locks, sleeps, callouts, epochs, rendezvous, pins, threads that come and go.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_rwlock::{RwLock, RwReadGuard, RwWriteGuard};
use sys::kern::kern_sx::Sx;
use sys::kern::kern_synch::{PSOCK, WChan, kern_yield, pause_sbt, sched_pin, wakeup, wakeup_one};
use sys::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use sys::kern::kern_timeout::{Callout, CalloutTarget};
use sys::kern::lock_order::{App, Console, Leaf};
use sys::kern::subr_epoch::{EpochCell, NetEpoch, epoch_drain_callbacks};
use sys::machine::atomic::{AtomicBool, AtomicU64, Ordering};
use sys::machine::{self, CpuSet, Critical, smp_rendezvous};
use sys::machine_local;
use sys::time::Sbintime;

/// Two numbers that are equal whenever nobody changes them.
#[derive(Default)]
struct Twins(u64, u64);

impl Twins {
    fn add(&mut self, stay: impl FnOnce()) {
        self.0 += 1;
        stay();
        self.1 += 1;
    }

    fn check(&self, what: &str) -> Result<(), String> {
        if self.0 == self.1 {
            Ok(())
        } else {
            Err(format!("{what}: {} and {} seen together", self.0, self.1))
        }
    }
}

/// What the torture works on.
struct Torture {
    end: Sbintime,
    stop: AtomicBool,
    trouble: Mutex<Option<String>, Console>,
    mutexes: [Mutex<Twins, Leaf>; 3],
    rwlocks: [RwLock<Twins, Leaf>; 2],
    sx: Sx<Twins, App>,
    queue: Mutex<Vec<u64>, Leaf>,
    cell: EpochCell<Twins>,
    cell_writer: Mutex<u64, App>,
    ticks: Vec<(Callout, Arc<Tick>)>,
    operations: AtomicU64,
    late: AtomicU64,
}

/// Counts how often it was armed and how often it ran.
struct Tick {
    state: Mutex<TickState, Leaf>,
}

#[derive(Default)]
struct TickState {
    armed: u64,
    ran: u64,
}

impl CalloutTarget for Tick {
    fn callout(self: Arc<Self>, _: Sbintime) {
        self.state.lock().ran += 1;
    }
}

machine_local! {
    /// CPUs that took part in a rendezvous.
    static SEEN: AtomicU64 = AtomicU64::new(0);
}

/// A sleep that ends this much too late is counted.
const LATE: Sbintime = Sbintime::from_ms(50);

/// Lets all CPUs use everything at once for `time`.
pub fn torture(time: Sbintime) -> Result<String, String> {
    let cpus = machine::ncpus();
    let torture = Arc::new(Torture {
        end: machine::sbinuptime() + time,
        stop: AtomicBool::new(false),
        trouble: Mutex::new(None),
        mutexes: [const { Mutex::new(Twins(0, 0)) }; 3],
        rwlocks: [const { RwLock::new(Twins(0, 0)) }; 2],
        sx: Sx::new(Twins(0, 0)),
        queue: Mutex::new(Vec::new()),
        cell: EpochCell::new(Twins(0, 0)),
        cell_writer: Mutex::new(0),
        ticks: (0..8)
            .map(|_| {
                let state = Mutex::new(TickState::default());
                (Callout::new(), Arc::new(Tick { state }))
            })
            .collect(),
        operations: AtomicU64::new(0),
        late: AtomicU64::new(0),
    });
    let mut threads: Vec<ThreadHandle> = Vec::new();
    for number in 0..3 * cpus {
        let torture = Arc::clone(&torture);
        // Programs, kernel threads, and some that stay where they are.
        let (pri, cpu) = match number % 3 {
            0 => (Pri::PUSER, None),
            1 => (Pri::PWAIT, None),
            _ => (Pri::PUSER, Some(number % cpus)),
        };
        threads.push(kthread_add(
            &format!("torture {number}"),
            pri,
            cpu,
            move || torture.work(),
        ));
    }
    for number in 0..2 {
        let torture = Arc::clone(&torture);
        threads.push(kthread_add(
            &format!("consumer {number}"),
            Pri::PUSER,
            None,
            move || torture.consume(),
        ));
    }
    pause_sbt("torture", time);
    torture.stop.store(true, Ordering::SeqCst);
    wakeup(WChan::of(&torture.queue));
    for thread in threads {
        thread.join();
    }
    torture.settle()
}

impl Torture {
    fn over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn report(&self, trouble: String) {
        self.trouble.lock().get_or_insert(trouble);
        self.stop.store(true, Ordering::SeqCst);
    }

    fn work(&self) {
        while !self.over() {
            let random = machine::random_u64();
            if let Err(trouble) = self.step(random) {
                self.report(trouble);
            }
            self.operations.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn step(&self, random: u64) -> Result<(), String> {
        let stay = || {
            if random >> 60 == 0 {
                kern_yield();
            }
        };
        match random & 15 {
            0..=3 => {
                let mut twins = self.mutexes[(random >> 8) as usize % 3].lock();
                twins.check("mutex")?;
                twins.add(stay);
            }
            4 => {
                let lock = &self.rwlocks[(random >> 8) as usize % 2];
                let mut twins = lock.write();
                twins.check("rwlock, writing")?;
                twins.add(stay);
                if random >> 40 & 1 == 0 {
                    RwWriteGuard::downgrade(twins).check("rwlock, downgraded")?;
                }
            }
            5..=7 => {
                let twins = self.rwlocks[(random >> 8) as usize % 2].read();
                twins.check("rwlock, reading")?;
                stay();
                twins.check("rwlock, reading on")?;
                if random >> 40 & 3 == 0
                    && let Ok(mut twins) = RwReadGuard::try_upgrade(twins)
                {
                    twins.add(stay);
                }
            }
            8 if random >> 20 & 7 == 0 => {
                let mut twins = self.sx.xlock();
                twins.check("sx")?;
                twins.add(|| pause_sbt("torture", Sbintime::from_us(100)));
            }
            8 => self.sx.slock().check("sx, shared")?,
            9 => {
                self.queue.lock().push(random);
                wakeup_one(WChan::of(&self.queue));
            }
            10 => {
                let (callout, tick) = &self.ticks[(random >> 8) as usize % self.ticks.len()];
                let span = Sbintime::from_us((random >> 16) as i64 & 0xfff);
                if random >> 40 & 3 == 0 {
                    callout.stop();
                } else {
                    tick.state.lock().armed += 1;
                    if random >> 42 & 1 == 0 {
                        callout.reset(span, tick);
                    } else {
                        callout.reset_on(span, (random >> 48) as usize % machine::ncpus(), tick);
                    }
                }
            }
            11 => {
                let epoch = NetEpoch::enter();
                let twins = self.cell.load(&epoch);
                twins.check("epoch")?;
                stay();
                twins.check("epoch, later")?;
                drop(epoch);
                if random >> 20 & 63 == 0 {
                    let mut count = self.cell_writer.lock();
                    *count += 1;
                    self.cell
                        .replace(alloc::boxed::Box::new(Twins(*count, *count)));
                }
            }
            12 => {
                let pinned = sched_pin();
                let cpu = machine::curcpu();
                kern_yield();
                let moved = machine::curcpu() != cpu;
                drop(pinned);
                let critical = Critical::enter();
                let cpu = machine::curcpu();
                let moved = moved || (0..50).any(|_| machine::curcpu() != cpu);
                drop(critical);
                if moved {
                    return Err(String::from("a pinned thread moved to another CPU"));
                }
            }
            13 if random >> 20 & 31 == 0 => {
                let before = machine::sbinuptime();
                let span = Sbintime::from_us((random >> 30) as i64 & 0x3ff);
                pause_sbt("torture", span);
                let slept = machine::sbinuptime() - before;
                if slept < span {
                    return Err(format!("slept {slept:?} instead of {span:?}"));
                }
                if slept > span + LATE {
                    self.late.fetch_add(1, Ordering::Relaxed);
                }
            }
            14 if random >> 20 & 255 == 0 => {
                smp_rendezvous(
                    CpuSet::all(),
                    |_| {
                        SEEN.fetch_or(1 << machine::curcpu(), Ordering::SeqCst);
                    },
                    0,
                );
                if SEEN.load(Ordering::SeqCst) != u64::from(CpuSet::all().0) {
                    return Err(String::from("a CPU missed the rendezvous"));
                }
            }
            15 if random >> 20 & 127 == 0 => {
                let ran = Arc::new(AtomicBool::new(false));
                let theirs = Arc::clone(&ran);
                kthread_add("short", Pri::PUSER, None, move || {
                    theirs.store(true, Ordering::SeqCst)
                })
                .join();
                if !ran.load(Ordering::SeqCst) {
                    return Err(String::from("joined a thread that had not run"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn consume(&self) {
        let mut queue = self.queue.lock();
        while !self.over() {
            if queue.pop().is_none() {
                let timeout = Some(Sbintime::from_ms(20));
                queue = MutexGuard::msleep(
                    queue,
                    WChan::of(&self.queue),
                    PSOCK,
                    "consume",
                    timeout,
                    false,
                )
                .0;
            }
        }
    }

    /// Looks at what is left when all threads have ended.
    fn settle(&self) -> Result<String, String> {
        if let Some(trouble) = self.trouble.lock().take() {
            return Err(trouble);
        }
        for (callout, tick) in &self.ticks {
            callout.drain();
            let state = tick.state.lock();
            if state.ran > state.armed {
                return Err(format!(
                    "a callout armed {} times ran {} times",
                    state.armed, state.ran
                ));
            }
        }
        epoch_drain_callbacks();
        if machine::sbinuptime() < self.end {
            return Err(String::from("a pause ended early"));
        }
        Ok(format!(
            "{} operations on {} CPUs, {} sleeps late by more than {} ms",
            self.operations.load(Ordering::Relaxed),
            machine::ncpus(),
            self.late.load(Ordering::Relaxed),
            LATE.as_ms()
        ))
    }
}
