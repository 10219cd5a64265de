//! Sleeping and waking across CPUs, callouts, threads that move, rings without locks, memory behind readers.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::buf_ring::{BufRing, ManyConsumers};
use sys::kern::kern_condvar::Condvar;
use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_synch::{
    PSOCK, WChan, kern_yield, pause_sbt, sched_bind, sched_unbind, wakeup,
};
use sys::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use sys::kern::kern_timeout::{Callout, CalloutStop, CalloutTarget, LockedCallout, LockedTarget};
use sys::kern::lock_order::Leaf;
use sys::kern::subr_smr::{AppSmr, Retired, SmrGuard, SmrPtr};
use sys::machine;
use sys::machine::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use sys::time::Sbintime;

/// A sleep of a thread whose turn it is must end long before this.
const STUCK: Sbintime = Sbintime::from_s(5);

/// How long one waits for room or items in a ring.
const SHORT: Sbintime = Sbintime::from_us(10);

/// What the threads of one part share: when to end, and the first thing that went wrong.
struct Common {
    end: Sbintime,
    stop: AtomicBool,
    trouble: Mutex<Option<String>, Leaf>,
}

impl Common {
    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || machine::sbinuptime() >= self.end
    }

    fn report(&self, trouble: String) {
        self.trouble.lock().get_or_insert(trouble);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Sometimes sleeps, so that others come in between.
    fn breathe(random: u64) {
        if random.is_multiple_of(64) {
            pause_sbt("ktest", Sbintime::from_us(200));
        }
    }
}

/// The threads of one part.
struct Crew {
    common: Arc<Common>,
    threads: Vec<ThreadHandle>,
}

impl Crew {
    fn new(time: Sbintime) -> Crew {
        let common = Common {
            end: machine::sbinuptime() + time,
            stop: AtomicBool::new(false),
            trouble: Mutex::new(None),
        };
        Crew {
            common: Arc::new(common),
            threads: Vec::new(),
        }
    }

    fn add(&mut self, cpu: Option<usize>, work: impl FnOnce(&Common) + Send + 'static) {
        let common = Arc::clone(&self.common);
        let work = move || work(&common);
        self.threads
            .push(kthread_add("ktest", Pri::PUSER, cpu, work));
    }

    fn finish(self) -> Result<(), String> {
        self.threads.into_iter().for_each(|thread| thread.join());
        let trouble = self.common.trouble.lock().take();
        trouble.map_or(Ok(()), Err)
    }
}

type Part = (&'static str, fn(Sbintime) -> Result<u64, String>);

const PARTS: &[Part] = &[
    ("turns around the CPUs", ring),
    ("hand-overs by condition variables", hand_over),
    ("callouts", callouts),
    ("callouts under their lock", locked_callouts),
    ("moves to other CPUs", moves),
    ("items through a buf_ring", buf_ring),
    ("objects behind SMR readers", smr),
];

pub(super) fn torture(time: Sbintime) -> Result<String, String> {
    let share = Sbintime(time.0 / PARTS.len() as i64);
    let mut report = format!("{} CPUs", machine::ncpus());
    for (what, part) in PARTS {
        let count = part(share).map_err(|trouble| format!("{what}: {trouble}"))?;
        if count == 0 {
            return Err(format!("no {what}"));
        }
        report += &format!(", {count} {what}");
    }
    Ok(report)
}

/// A token goes around the CPUs; each waits asleep until it comes.
fn ring(time: Sbintime) -> Result<u64, String> {
    let cpus = machine::ncpus() as u64;
    let token = Arc::new(Mutex::<u64, Leaf>::new(0));
    let mut crew = Crew::new(time);
    for me in 0..cpus {
        let token = Arc::clone(&token);
        crew.add(Some(me as usize), move |common| {
            let chan = WChan::of(&*token);
            while !common.over() {
                let mut at = token.lock();
                while *at % cpus != me && !common.over() {
                    let (again, slept) =
                        MutexGuard::msleep(at, chan, PSOCK, "ring", Some(STUCK), false);
                    at = again;
                    if slept.is_err() && *at % cpus == me {
                        common.report(format!("CPU {me} was not woken for its turn"));
                    }
                }
                if *at % cpus == me {
                    *at += 1;
                }
                drop(at);
                wakeup(chan);
                Common::breathe(machine::random_u64());
            }
            wakeup(chan);
        });
    }
    crew.finish()?;
    Ok(*token.lock())
}

/// A buffer of one place between readers and writers that wait on condition variables.
struct Buffer {
    item: Mutex<Option<u64>, Leaf>,
    filled: Condvar,
    emptied: Condvar,
    taken: AtomicU64,
}

fn hand_over(time: Sbintime) -> Result<u64, String> {
    let buffer = Arc::new(Buffer {
        item: Mutex::new(None),
        filled: Condvar::new("filled"),
        emptied: Condvar::new("emptied"),
        taken: AtomicU64::new(0),
    });
    let mut crew = Crew::new(time);
    for _ in 0..machine::ncpus().max(2) {
        let theirs = Arc::clone(&buffer);
        crew.add(None, move |common| {
            while !common.over() {
                let mut item = theirs.item.lock();
                while item.is_some() && !common.over() {
                    item = theirs.emptied.timedwait(item, LOOK).0;
                }
                *item = Some(machine::random_u64());
                theirs.filled.signal();
                drop(item);
                Common::breathe(machine::random_u64());
            }
        });
        let theirs = Arc::clone(&buffer);
        crew.add(None, move |common| {
            while !common.over() {
                let mut item = theirs.item.lock();
                let mut waited = Ok(());
                while item.is_none() && !common.over() {
                    if waited.is_err() && theirs.emptied.has_waiters() {
                        common.report(String::from("both sides wait"));
                    }
                    (item, waited) = theirs.filled.timedwait(item, LOOK);
                }
                if item.take().is_some() {
                    theirs.taken.fetch_add(1, Ordering::Relaxed);
                }
                theirs.emptied.signal();
            }
        });
    }
    crew.finish()?;
    Ok(buffer.taken.load(Ordering::Relaxed))
}

/// How long one waits before it looks whether all is over.
const LOOK: Sbintime = Sbintime::from_ms(500);

/// Notices when it runs beside itself.
struct Alone {
    inside: AtomicU32,
    armed: AtomicU64,
    ran: AtomicU64,
    twice: AtomicBool,
}

impl CalloutTarget for Alone {
    fn callout(self: Arc<Self>, _: Sbintime) {
        if self.inside.fetch_add(1, Ordering::Relaxed) != 0 {
            self.twice.store(true, Ordering::Relaxed);
        }
        for _ in 0..machine::random_u64() % 200 {
            core::hint::spin_loop();
        }
        self.inside.fetch_sub(1, Ordering::Relaxed);
        self.ran.fetch_add(1, Ordering::Relaxed);
    }
}

/// All CPUs arm, stop, drain and drop the same callouts, on any CPU.
fn callouts(time: Sbintime) -> Result<u64, String> {
    let callouts: Arc<Vec<_>> = Arc::new(
        (0..4)
            .map(|_| {
                let alone = Alone {
                    inside: AtomicU32::new(0),
                    armed: AtomicU64::new(0),
                    ran: AtomicU64::new(0),
                    twice: AtomicBool::new(false),
                };
                (Callout::new(), Arc::new(alone))
            })
            .collect(),
    );
    let mut crew = Crew::new(time);
    for cpu in 0..machine::ncpus() {
        let theirs = Arc::clone(&callouts);
        crew.add(Some(cpu), move |common| {
            while !common.over() {
                let random = machine::random_u64();
                let (callout, alone) = &theirs[random as usize % theirs.len()];
                let span = Sbintime::from_us((random >> 8) as i64 & 0x7f);
                let there = (random >> 16) as usize % machine::ncpus();
                match random >> 32 & 15 {
                    0 => _ = callout.stop(),
                    1 => _ = callout.drain(),
                    2 => {
                        // One of its own, dropped at any moment.
                        let own = Callout::new();
                        alone.armed.fetch_add(1, Ordering::Relaxed);
                        let nothing = Arc::new(Nothing);
                        own.reset_on(span, there, &nothing);
                        pause_sbt("ktest", Sbintime::from_us((random >> 24) as i64 & 0x7f));
                    }
                    _ => {
                        alone.armed.fetch_add(1, Ordering::Relaxed);
                        callout.reset_on(span, there, alone);
                    }
                }
                Common::breathe(random >> 40);
            }
        });
    }
    crew.finish()?;
    let mut ran = 0;
    for (callout, alone) in callouts.iter() {
        callout.drain();
        if callout.pending() || callout.stop() != CalloutStop::Idle {
            return Err(String::from("armed after it was drained"));
        }
        if Arc::strong_count(alone) != 1 {
            return Err(String::from("a drained callout keeps its target"));
        }
        if alone.twice.load(Ordering::Relaxed) {
            return Err(String::from("ran beside itself"));
        }
        let (armed, fired) = (&alone.armed, alone.ran.load(Ordering::Relaxed));
        if fired > armed.load(Ordering::Relaxed) {
            return Err(String::from("ran more often than it was armed"));
        }
        ran += fired;
    }
    Ok(ran)
}

struct Nothing;

impl CalloutTarget for Nothing {
    fn callout(self: Arc<Self>, _: Sbintime) {}
}

/// Whether the callout may run, and how often it did.
struct Permit(Mutex<(bool, u64, bool), Leaf>);

impl LockedTarget for Permit {
    type Guard<'a> = MutexGuard<'a, (bool, u64, bool), Leaf>;

    fn lock(&self) -> Self::Guard<'_> {
        self.0.lock()
    }

    fn callout(self: &Arc<Self>, mut held: Self::Guard<'_>, _: Sbintime) {
        let (allowed, ran, wrong) = &mut *held;
        *ran += 1;
        *wrong |= !*allowed;
        *allowed = false;
    }
}

/// A callout that was stopped under its lock must not run.
fn locked_callouts(time: Sbintime) -> Result<u64, String> {
    let shared = Arc::new((
        LockedCallout::new(),
        Arc::new(Permit(Mutex::new((false, 0, false)))),
    ));
    let mut crew = Crew::new(time);
    for cpu in 0..machine::ncpus() {
        let theirs = Arc::clone(&shared);
        crew.add(Some(cpu), move |common| {
            let (callout, permit) = &*theirs;
            while !common.over() {
                let random = machine::random_u64();
                let mut held = permit.lock();
                if random & 3 == 0 {
                    callout.stop(&held);
                    held.0 = false;
                } else {
                    let span = Sbintime::from_us((random >> 8) as i64 & 0x3f);
                    let there = (random >> 16) as usize % machine::ncpus();
                    callout.reset_on(&held, span, there, permit);
                    held.0 = true;
                }
                drop(held);
                if random >> 32 & 3 == 0 {
                    let span = (random >> 40) as i64 & 0x7f;
                    pause_sbt("ktest", Sbintime::from_us(span));
                }
            }
        });
    }
    crew.finish()?;
    shared.0.drain();
    let (_, ran, wrong) = *shared.1.lock();
    match wrong {
        true => Err(String::from("ran after it was stopped")),
        false => Ok(ran),
    }
}

/// Threads that bind themselves to one CPU after the other, among some that are moved by the scheduler.
fn moves(time: Sbintime) -> Result<u64, String> {
    let moved = Arc::new(AtomicU64::new(0));
    let mut crew = Crew::new(time);
    for number in 0..2 * machine::ncpus() {
        let moved = Arc::clone(&moved);
        crew.add(None, move |common| {
            while !common.over() {
                let random = machine::random_u64();
                if number % 2 == 0 {
                    let cpu = random as usize % machine::ncpus();
                    sched_bind(cpu);
                    kern_yield();
                    if machine::curcpu() != cpu {
                        common.report(format!("bound to CPU {cpu} and elsewhere"));
                    }
                    sched_unbind();
                    moved.fetch_add(1, Ordering::Relaxed);
                } else {
                    kern_yield();
                }
                Common::breathe(random >> 8);
            }
        });
    }
    crew.finish()?;
    Ok(moved.load(Ordering::Relaxed))
}

/// Producers and consumers on all CPUs: nothing is lost or doubled, and each producer's items come in order.
fn buf_ring(time: Sbintime) -> Result<u64, String> {
    let producers = machine::ncpus().max(2);
    let ring = Arc::new(BufRing::<(usize, u64), ManyConsumers>::new(64));
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..producers).map(|_| AtomicU64::new(0)).collect());
    let got: Arc<Vec<AtomicU64>> = Arc::new((0..producers).map(|_| AtomicU64::new(0)).collect());
    let left = Arc::new(AtomicU32::new(producers as u32));
    let mut crew = Crew::new(time);
    for producer in 0..producers {
        let (ring, sent, left) = (Arc::clone(&ring), Arc::clone(&sent), Arc::clone(&left));
        crew.add(None, move |common| {
            let mut number = 0;
            while !common.over() {
                match ring.enqueue((producer, number + 1)) {
                    Ok(()) => number += 1,
                    Err(_) => pause_sbt("ktest", SHORT),
                }
                Common::breathe(machine::random_u64());
            }
            sent[producer].store(number * (number + 1) / 2, Ordering::Relaxed);
            left.fetch_sub(1, Ordering::Release);
        });
    }
    for _ in 0..2 {
        let (ring, got, left) = (Arc::clone(&ring), Arc::clone(&got), Arc::clone(&left));
        crew.add(None, move |common| {
            let mut last = alloc::vec![0; producers];
            loop {
                let ended = left.load(Ordering::Acquire) == 0;
                let Some((producer, number)) = ring.dequeue() else {
                    if ended {
                        break;
                    }
                    pause_sbt("ktest", SHORT);
                    continue;
                };
                if number <= last[producer] {
                    let before = last[producer];
                    common.report(format!("{number} of {producer} came after {before}"));
                }
                last[producer] = number;
                got[producer].fetch_add(number, Ordering::Relaxed);
            }
        });
    }
    crew.finish()?;
    let mut items = 0;
    for (producer, (sent, got)) in sent.iter().zip(got.iter()).enumerate() {
        let (sent, got) = (sent.load(Ordering::Relaxed), got.load(Ordering::Relaxed));
        if sent != got {
            return Err(format!(
                "the numbers of {producer} add up to {got}, not {sent}"
            ));
        }
        items += (2 * sent).isqrt();
    }
    Ok(items)
}

/// Poisoned when it goes.
struct Object {
    state: AtomicU64,
}

const ALIVE: u64 = 0xa11e;

impl Drop for Object {
    fn drop(&mut self) {
        self.state.store(0xdead, Ordering::Relaxed);
    }
}

/// Objects that come and go under readers that take no lock.
fn smr(time: Sbintime) -> Result<u64, String> {
    type Link = SmrPtr<Object, AppSmr>;
    let links: Arc<Box<[Link]>> = Arc::new((0..4).map(|_| Link::default()).collect());
    let renewed = Arc::new(AtomicU64::new(0));
    let mut crew = Crew::new(time);
    for cpu in 0..machine::ncpus() {
        let theirs = Arc::clone(&links);
        crew.add(Some(cpu), move |common| {
            while !common.over() {
                for _ in 0..20 {
                    let section = SmrGuard::enter();
                    let link = &theirs[machine::random_u64() as usize % theirs.len()];
                    let Some(object) = link.load(&section) else {
                        continue;
                    };
                    for _ in 0..10 {
                        let state = object.state.load(Ordering::Relaxed);
                        if state != ALIVE {
                            common.report(format!("a reader saw {state:#x}"));
                        }
                    }
                }
                Common::breathe(machine::random_u64());
            }
        });
    }
    for _ in 0..2 {
        let (theirs, renewed) = (Arc::clone(&links), Arc::clone(&renewed));
        crew.add(None, move |common| {
            let mut retired: Vec<Retired<Object, AppSmr>> = Vec::new();
            while !common.over() {
                let random = machine::random_u64();
                let state = AtomicU64::new(ALIVE);
                let new = (random & 7 != 0).then(|| Arc::new(Object { state }));
                retired.push(theirs[(random >> 8) as usize % theirs.len()].replace(new));
                // Mostly looks whether the readers have left; waits for them only when too many are kept.
                if retired.len() > 32 {
                    retired = retired
                        .into_iter()
                        .filter_map(|old| old.try_take().err())
                        .collect();
                }
                if retired.len() > 64 {
                    retired.clear();
                }
                renewed.fetch_add(1, Ordering::Relaxed);
                Common::breathe(random >> 16);
            }
        });
    }
    crew.finish()?;
    // The list ends where it began: nothing is left linked.
    for link in links.iter() {
        drop(link.replace(None));
    }
    Ok(renewed.load(Ordering::Relaxed))
}
