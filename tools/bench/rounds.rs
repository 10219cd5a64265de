//! Rounds: what is measured takes turns, each for half a millisecond, again and again.
//!
//! A turn in which the host gave a CPU to another program is made again, a few times, and left out if that does not help.

use std::arch::x86_64::_rdtsc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sys::kern::kern_thread::{Pri, kthread_add};
use sys::machine::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use sys::machine::native::hostcall;

/// How often everything takes its turn.
const ROUNDS: usize = 41;
/// How long one turn takes, about.
const TURN: Duration = Duration::from_micros(500);
/// Tries to make a turn undisturbed.
const TRIES: usize = 15;
/// How long all turns of a subject take before a disturbed one is no longer made again.
const PATIENCE: Duration = Duration::from_secs(15);
/// Operations between two looks at the clock.
const BATCH: u64 = 64;

/// Whose code is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The kernel's: interrupts on, as always.
    Ours,
    /// The host's: interrupts off, as kernel threads that are preempted there could disturb it; it costs the peer nothing.
    Peer,
}

impl Side {
    fn run<R>(self, f: impl FnOnce() -> R) -> R {
        let before = lost_cpus();
        let result = match self {
            Side::Ours => f(),
            Side::Peer => hostcall(f),
        };
        if lost_cpus() != before {
            DISTURBED.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// A CPU was taken away in this turn.
static DISTURBED: AtomicBool = AtomicBool::new(false);
/// Turns that were disturbed in every try.
static TURNS_DISTURBED: AtomicU64 = AtomicU64::new(0);

/// How often the host has taken the CPU from this thread of it.
fn lost_cpus() -> i64 {
    hostcall(|| {
        // SAFETY: all zero is a valid `rusage`, which is filled in.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
            usage.ru_nivcsw
        }
    })
}

/// Something measured.
pub struct Case {
    /// The row it belongs to.
    pub row: String,
    /// The column it belongs to.
    pub column: &'static str,
    turn: Box<dyn FnMut() -> f64>,
    /// Things that one operation does.
    things: f64,
    /// Of each round; `NaN` if all tries were disturbed.
    ns: Vec<f64>,
}

impl Case {
    /// Something whose `turn` returns nanoseconds per operation.
    pub fn new(row: &str, column: &'static str, turn: impl FnMut() -> f64 + 'static) -> Case {
        Case {
            row: row.into(),
            column,
            turn: Box::new(turn),
            things: 1.0,
            ns: Vec::new(),
        }
    }

    /// The same, when one operation does so many things.
    pub fn divided_by(mut self, things: f64) -> Case {
        self.things = things;
        self
    }

    /// `op`, on one thread.
    pub fn alone(
        row: &str,
        column: &'static str,
        side: Side,
        mut op: impl FnMut() + 'static,
    ) -> Case {
        Case::new(row, column, move || {
            let clock = Clock::get();
            side.run(|| {
                let begin = ticks();
                let end = begin + clock.ticks_of(TURN);
                let mut done = 0;
                loop {
                    for _ in 0..BATCH {
                        op();
                    }
                    done += BATCH;
                    let now = ticks();
                    if now >= end {
                        return clock.ns(now - begin) / done as f64;
                    }
                }
            })
        })
    }

    /// `op(side, n)`, on two threads, each on its CPU: time divided by the operations of both together.
    pub fn pair(
        row: &str,
        column: &'static str,
        side: Side,
        op: impl Fn(usize, u64) + Send + Sync + 'static,
    ) -> Case {
        Case::threads(row, column, side, 2, op)
    }

    /// As `pair`, on one or two threads in the same way, so that the two can be compared.
    pub fn threads(
        row: &str,
        column: &'static str,
        side: Side,
        threads: u32,
        op: impl Fn(usize, u64) + Send + Sync + 'static,
    ) -> Case {
        let op = Arc::new(op);
        Case::new(row, column, move || {
            run_threads(side, threads, Arc::clone(&op))
        })
    }

    fn undisturbed_turn(&mut self, patience: Instant) -> f64 {
        let mut tries = 0;
        loop {
            DISTURBED.store(false, Ordering::Relaxed);
            let ns = (self.turn)();
            if !DISTURBED.load(Ordering::Relaxed) {
                return ns;
            }
            tries += 1;
            if tries == TRIES || Instant::now() > patience {
                TURNS_DISTURBED.fetch_add(1, Ordering::Relaxed);
                return f64::NAN;
            }
        }
    }

    /// Nanoseconds per operation: the median of the rounds. `NaN` if no turn was undisturbed.
    pub fn median(&self) -> f64 {
        median(self.ns.clone())
    }

    /// How many times as long as `other` it takes: the median over the rounds.
    pub fn ratio(&self, other: &Case) -> f64 {
        median(self.ns.iter().zip(&other.ns).map(|(a, b)| a / b).collect())
    }
}

/// `op(side, gone)`, on two threads of which the second works on what the first makes, `things` at a time, until it is told that
/// the first is gone and nothing is left: nanoseconds per thing.
pub fn producer_and_consumer(
    side: Side,
    things: f64,
    op: impl Fn(usize, &AtomicBool) -> bool + Send + Sync + 'static,
) -> f64 {
    let clock = Clock::get();
    let op = Arc::new(op);
    let gone = Arc::new(AtomicBool::new(false));
    let (their_op, their_gone) = (Arc::clone(&op), Arc::clone(&gone));
    let other = kthread_add("bench", Pri::PUSER, Some(1), move || {
        side.run(|| while their_op(1, &their_gone) {});
    });
    let never = AtomicBool::new(false);
    let ns = side.run(|| {
        // The first waits here until the other has begun to take.
        for _ in 0..BATCH {
            op(0, &never);
        }
        let begin = ticks();
        let end = begin + clock.ticks_of(TURN);
        let mut done = 0;
        loop {
            op(0, &never);
            done += 1;
            let now = ticks();
            if now >= end {
                gone.store(true, Ordering::Release);
                return clock.ns(now - begin) / done as f64;
            }
        }
    });
    other.join();
    ns / things
}

fn run_threads<F: Fn(usize, u64) + Send + Sync + 'static>(
    side: Side,
    threads: u32,
    op: Arc<F>,
) -> f64 {
    let meeting = Arc::new(Meeting {
        threads,
        come: AtomicU32::new(0),
        stop: AtomicBool::new(false),
        theirs: AtomicU64::new(0),
    });
    let other = (threads == 2).then(|| {
        let (op, meeting) = (Arc::clone(&op), Arc::clone(&meeting));
        kthread_add("bench", Pri::PUSER, Some(1), move || {
            let (done, _) = side.run(|| meeting.turn(1, &*op));
            meeting.theirs.store(done, Ordering::Release);
        })
    });
    let (ours, took) = side.run(|| meeting.turn(0, &*op));
    if let Some(other) = other {
        other.join();
    }
    Clock::get().ns(took) / (ours + meeting.theirs.load(Ordering::Acquire)) as f64
}

/// Threads that take a turn at the same time.
struct Meeting {
    threads: u32,
    come: AtomicU32,
    stop: AtomicBool,
    theirs: AtomicU64,
}

impl Meeting {
    /// Waits for all, then does `op` until the first thread's time is over: how often, and in how many ticks. All threads execute
    /// the same instructions.
    #[inline(never)]
    fn turn(&self, me: usize, op: &impl Fn(usize, u64)) -> (u64, u64) {
        let turn = Clock::get().ticks_of(TURN);
        self.come.fetch_add(1, Ordering::AcqRel);
        while self.come.load(Ordering::Acquire) != self.threads {
            std::hint::spin_loop();
        }
        let begin = ticks();
        let mut done = 0;
        loop {
            for n in done..done + BATCH {
                op(me, n);
            }
            done += BATCH;
            let took = ticks() - begin;
            if me == 0 && took >= turn {
                self.stop.store(true, Ordering::Relaxed);
            }
            if self.stop.load(Ordering::Relaxed) {
                return (done, took);
            }
        }
    }
}

/// Lets all take turns.
pub fn run(cases: &mut [Case]) {
    // One round to warm up.
    for case in &mut *cases {
        (case.turn)();
    }
    let patience = Instant::now() + PATIENCE;
    for _ in 0..ROUNDS {
        for case in &mut *cases {
            let ns = case.undisturbed_turn(patience);
            case.ns.push(ns / case.things);
        }
    }
    let disturbed = TURNS_DISTURBED.swap(0, Ordering::Relaxed);
    if disturbed != 0 {
        println!(
            "\n(Other programs took a CPU away in {disturbed} of {} turns, which are left out.)",
            ROUNDS * cases.len()
        );
    }
}

/// The middle one of those that are numbers; `NaN` if none is.
fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|value| !value.is_nan());
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 has it.
    unsafe { _rdtsc() }
}

/// What a tick of the time stamp counter is.
#[derive(Clone, Copy)]
pub struct Clock {
    ns_per_tick: f64,
}

impl Clock {
    /// Measures it, the first time.
    pub fn get() -> Clock {
        static MEASURED: AtomicU64 = AtomicU64::new(0);
        if MEASURED.load(Ordering::Relaxed) == 0 {
            let (time, tick) = (Instant::now(), ticks());
            while time.elapsed() < Duration::from_millis(20) {}
            let ns = time.elapsed().as_nanos() as f64 / (ticks() - tick) as f64;
            MEASURED.store(ns.to_bits(), Ordering::Relaxed);
        }
        Clock {
            ns_per_tick: f64::from_bits(MEASURED.load(Ordering::Relaxed)),
        }
    }

    /// Ticks to nanoseconds.
    pub fn ns(self, ticks: u64) -> f64 {
        ticks as f64 * self.ns_per_tick
    }

    /// Time to ticks.
    pub fn ticks_of(self, time: Duration) -> u64 {
        (time.as_nanos() as f64 / self.ns_per_tick) as u64
    }
}
