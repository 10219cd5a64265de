//! Interrupt events, interrupt threads and software interrupts.
//!
//! FreeBSD: sys/kern/kern_intr.c, sys/sys/interrupt.h
//!
//! A filter runs in the interrupt itself: it silences the device and says whether the rest is for the interrupt thread, which may
//! take blocking locks.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::panic::RefUnwindSafe;

use super::kern_mutex::{Mutex, SpinMutex};
use super::kern_synch::{WChan, wakeup};
use super::kern_thread::{Pri, ThreadHandle, curthread, kthread_add};
use super::lock_order::{IntrEvent as IntrEventClass, Newbus};
use super::subr_sleepqueue as sleepq;
use crate::errno::Errno;
use crate::machine::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::machine::words::{from_word, to_word};
use crate::machine::{self, IrqSource, PerCpu, Vector};
use crate::machine_local;

/// What a filter found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilterStatus {
    /// The interrupt was not this device's.
    #[doc(alias = "FILTER_STRAY")]
    Stray,
    /// All is done.
    #[doc(alias = "FILTER_HANDLED")]
    Handled,
    /// The interrupt thread shall run.
    #[doc(alias = "FILTER_SCHEDULE_THREAD")]
    ScheduleThread,
}

/// Runs in the interrupt: must not block, and takes only spin mutexes.
///
/// What it captures must be `RefUnwindSafe`, an auto trait that no type with a cell in it has unless it says so: of the locks
/// only `SpinMutex` does, besides atomics. So a filter that could lock a mutex does not build:
///
/// ```compile_fail
/// use std::sync::Arc;
/// use sys::kern::kern_intr::{Filter, FilterStatus};
/// use sys::kern::{kern_mutex::Mutex, lock_order::IntrQueue};
///
/// let lock = Arc::new(Mutex::<u32, IntrQueue>::new(0));
/// let filter: Filter = Box::new(move || {
///     *lock.lock() += 1;
///     FilterStatus::Handled
/// });
/// ```
///
/// With `SpinMutex` it does:
///
/// ```
/// use std::sync::Arc;
/// use sys::kern::kern_intr::{Filter, FilterStatus};
/// use sys::kern::{kern_mutex::SpinMutex, lock_order::IntrQueue};
///
/// let lock = Arc::new(SpinMutex::<u32, IntrQueue>::new(0));
/// let filter: Filter = Box::new(move || {
///     *lock.lock() += 1;
///     FilterStatus::Handled
/// });
/// ```
pub type Filter = Box<dyn Fn() -> FilterStatus + Send + Sync + RefUnwindSafe>;

/// Something of which a filter uses only what it may: its author answers for that.
pub struct AssertFilterSafe<T>(pub T);

impl<T> RefUnwindSafe for AssertFilterSafe<T> {}
/// Runs on the interrupt thread.
pub type Ithread = Box<dyn Fn() + Send + Sync>;

/// A request to run that a thread waits for; asking again before it runs changes nothing.
#[doc(alias = "it_need")]
pub(crate) struct SoftInterrupt {
    need: AtomicBool,
    dead: AtomicBool,
}

impl SoftInterrupt {
    pub(crate) const fn new() -> SoftInterrupt {
        SoftInterrupt {
            need: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        }
    }

    /// Asks the thread to run; may be called in an interrupt.
    #[doc(alias = "intr_event_schedule_thread")]
    pub(crate) fn schedule(&self) {
        if !self.need.swap(true, Ordering::SeqCst) {
            wakeup(WChan::of(self));
        }
    }

    /// Runs `f` for every request, until `kill`.
    #[doc(alias = "ithread_loop")]
    fn serve(&self, f: impl Fn()) {
        while !self.dead.load(Ordering::SeqCst) {
            while self.need.swap(false, Ordering::SeqCst) {
                f();
            }
            let ready = || self.need.load(Ordering::SeqCst) || self.dead.load(Ordering::SeqCst);
            sleepq::wait_unless(WChan::of(self), "-", None, ready);
        }
    }

    /// Starts the thread, for good.
    pub(crate) fn start(
        &'static self,
        name: &str,
        pri: Pri,
        cpu: Option<usize>,
        f: impl Fn() + Send + 'static,
    ) {
        kthread_add(name, pri, cpu, move || self.serve(f));
    }

    /// Ends the thread when what it is doing is done.
    fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        wakeup(WChan::of(self));
    }
}

/// One driver's interest in an interrupt.
struct IntrHandler {
    name: String,
    filter: Filter,
    ithread: SoftInterrupt,
}

/// One interrupt source and those who want it.
struct IntrEvent {
    source: IrqSource,
    vector: Mutex<Option<Vector>, IntrEventClass>,
    handlers: SpinMutex<Vec<Arc<IntrHandler>>, IntrEventClass>,
    count: AtomicU64,
    strays: AtomicU64,
}

machine_local! {
    static EVENTS: Mutex<Vec<Arc<IntrEvent>>, Newbus> = Mutex::new(Vec::new());
    static TIMERS: PerCpu<AtomicU64> = PerCpu::from_slots([const { machine::CachePadded(AtomicU64::new(0)) }; machine::MAXCPU]);
    static IPIS: PerCpu<AtomicU64> = PerCpu::from_slots([const { machine::CachePadded(AtomicU64::new(0)) }; machine::MAXCPU]);
}

/// What a driver keeps of its interrupt; the handler is removed when it is dropped.
pub struct IntrCookie {
    event: Arc<IntrEvent>,
    handler: Arc<IntrHandler>,
    thread: Option<ThreadHandle>,
    vector: Vector,
}

impl IntrCookie {
    /// Returns the vector, with the address and data that a message-signalled device must be given.
    pub fn vector(&self) -> Vector {
        self.vector
    }

    /// Asks the interrupt thread to run although there was no interrupt.
    pub fn schedule(&self) {
        self.handler.ithread.schedule();
    }
}

/// Connects a filter and an interrupt thread to an interrupt, delivered to `cpu`. Several drivers may share a pin.
///
/// # Errors
/// What `machine::intr_alloc` returns: no vector is left, or the source does not exist.
pub fn bus_setup_intr(
    source: IrqSource,
    name: &str,
    cpu: usize,
    filter: Filter,
    ithread: Ithread,
) -> Result<IntrCookie, Errno> {
    let mut events = EVENTS.get().lock();
    let shared = events
        .iter()
        .find(|event| event.source == source && source != IrqSource::Msi);
    let event = match shared {
        Some(event) => Arc::clone(event),
        None => {
            let event = Arc::new(IntrEvent {
                source,
                vector: Mutex::new(None),
                handlers: SpinMutex::new(Vec::new()),
                count: AtomicU64::new(0),
                strays: AtomicU64::new(0),
            });
            events.push(Arc::clone(&event));
            event
        }
    };
    let handler = Arc::new(IntrHandler {
        name: name.to_string(),
        filter,
        ithread: SoftInterrupt::new(),
    });
    // Connected before the source is, so that the first interrupt is not lost.
    let mut handlers = event.handlers.lock().clone();
    handlers.push(Arc::clone(&handler));
    *event.handlers.lock() = handlers;
    let known = *event.vector.lock();
    let vector = match known {
        Some(vector) => vector,
        None => match machine::intr_alloc(source, cpu, handle, to_word(Arc::as_ptr(&event))) {
            Ok(vector) => *event.vector.lock().insert(vector),
            Err(errno) => {
                events.retain(|other| !Arc::ptr_eq(other, &event));
                return Err(errno);
            }
        },
    };
    drop(events);
    let served = Arc::clone(&handler);
    let thread = kthread_add(
        &format!("irq{}: {name}", vector.irq),
        Pri::PI_NET,
        Some(cpu),
        move || {
            served.ithread.serve(ithread);
        },
    );
    Ok(IntrCookie {
        event,
        handler,
        thread: Some(thread),
        vector,
    })
}

/// An interrupt has come. Interrupts are disabled.
#[doc(alias = "intr_event_handle")]
fn handle(event: usize) {
    // SAFETY: `bus_setup_intr` passed it; the cookie frees the vector before it lets the event go.
    let event: &IntrEvent = unsafe { &*from_word(event) };
    event
        .count
        .store(event.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    let mut wanted = false;
    for handler in event.handlers.lock().iter() {
        match (handler.filter)() {
            FilterStatus::Stray => {}
            FilterStatus::Handled => wanted = true,
            FilterStatus::ScheduleThread => {
                wanted = true;
                handler.ithread.schedule();
            }
        }
    }
    if !wanted {
        event
            .strays
            .store(event.strays.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

impl Drop for IntrCookie {
    #[doc(alias = "bus_teardown_intr")]
    fn drop(&mut self) {
        let mut events = EVENTS.get().lock();
        let mut handlers = self.event.handlers.lock().clone();
        handlers.retain(|handler| !Arc::ptr_eq(handler, &self.handler));
        let last = handlers.is_empty();
        let old = core::mem::replace(&mut *self.event.handlers.lock(), handlers);
        drop(old);
        if last {
            if let Some(vector) = self.event.vector.lock().take() {
                machine::intr_free(vector);
            }
            events.retain(|event| !Arc::ptr_eq(event, &self.event));
        }
        drop(events);
        self.handler.ithread.kill();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

/// A software interrupt: a thread with the priority of one, which runs when it is asked to. Dropping it ends the thread.
pub struct Swi {
    soft: Arc<SoftInterrupt>,
    thread: Option<ThreadHandle>,
}

impl Swi {
    /// Starts a thread called `name` that does `work` whenever `sched` asks, on `cpu` only if one is given.
    #[doc(alias = "swi_add")]
    pub fn add(name: &str, pri: Pri, cpu: Option<usize>, work: impl Fn() + Send + 'static) -> Swi {
        let soft = Arc::new(SoftInterrupt::new());
        let served = Arc::clone(&soft);
        let thread = kthread_add(name, pri, cpu, move || served.serve(work));
        Swi {
            soft,
            thread: Some(thread),
        }
    }

    /// Asks it to run, once more if it is running; may be called anywhere.
    #[doc(alias = "swi_sched")]
    #[inline]
    pub fn sched(&self) {
        self.soft.schedule();
    }
}

impl Drop for Swi {
    #[doc(alias = "swi_remove")]
    fn drop(&mut self) {
        self.soft.kill();
        if let Some(thread) = self.thread.take()
            && thread.thread().as_word() != curthread().as_word()
        {
            thread.join();
        }
    }
}

/// Counts a timer interrupt of this CPU.
pub(crate) fn count_timer() {
    let count = TIMERS.get().get(machine::curcpu());
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Counts an interrupt from another CPU.
pub(crate) fn count_ipi() {
    let count = IPIS.get().get(machine::curcpu());
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Returns name and count of every interrupt source, as `vmstat -i` lists them.
#[doc(alias = "intrcnt")]
pub fn intr_counts() -> Vec<(String, u64)> {
    let mut counts = Vec::new();
    for event in EVENTS.get().lock().iter() {
        let names: Vec<String> = event
            .handlers
            .lock()
            .iter()
            .map(|handler| handler.name.clone())
            .collect();
        let irq = event.vector.lock().map_or(0, |vector| vector.irq);
        counts.push((
            format!("irq{irq}: {}", names.join(" ")),
            event.count.load(Ordering::Relaxed),
        ));
        let strays = event.strays.load(Ordering::Relaxed);
        if strays != 0 {
            counts.push((format!("stray irq{irq}"), strays));
        }
    }
    for (cpu, count) in TIMERS.get().iter().enumerate() {
        counts.push((format!("cpu{cpu}:timer"), count.load(Ordering::Relaxed)));
    }
    for (cpu, count) in IPIS.get().iter().enumerate() {
        counts.push((format!("cpu{cpu}:ipi"), count.load(Ordering::Relaxed)));
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kern::kern_synch::pause;
    use crate::machine::atomic::AtomicUsize;
    use crate::machine::hosted::{self, Machine};

    const PIN: IrqSource = IrqSource::IoApic {
        gsi: 11,
        level: true,
        active_low: true,
    };

    #[test]
    fn a_filter_runs_in_the_interrupt_and_its_thread_later_on_the_same_cpu() {
        Machine::builder().cpus(2).run(|| {
            let filtered = Arc::new(AtomicUsize::new(0));
            let worked = Arc::new(AtomicUsize::new(0));
            let (count_filtered, count_worked) = (Arc::clone(&filtered), Arc::clone(&worked));
            let cookie = bus_setup_intr(
                PIN,
                "em0",
                1,
                Box::new(move || {
                    assert!(!machine::intr_enabled());
                    count_filtered.fetch_add(1, Ordering::Relaxed);
                    FilterStatus::ScheduleThread
                }),
                Box::new(move || {
                    assert_eq!(machine::curcpu(), 1);
                    count_worked.fetch_add(1, Ordering::Relaxed);
                    pause("work", 10);
                }),
            )
            .expect("a vector is free");
            hosted::interrupt(cookie.vector().irq);
            pause("wait", 5);
            assert_eq!(
                (
                    filtered.load(Ordering::Relaxed),
                    worked.load(Ordering::Relaxed)
                ),
                (1, 1)
            );
            // While the thread works, any number of interrupts ask for one more turn.
            for _ in 0..3 {
                hosted::interrupt(cookie.vector().irq);
                pause("wait", 1);
            }
            pause("wait", 100);
            assert_eq!(
                (
                    filtered.load(Ordering::Relaxed),
                    worked.load(Ordering::Relaxed)
                ),
                (4, 2)
            );
            let irq = cookie.vector().irq;
            let counted = intr_counts()
                .into_iter()
                .find(|(name, _)| name.ends_with("em0"));
            assert_eq!(counted, Some((format!("irq{irq}: em0"), 4)));
            drop(cookie);
            hosted::interrupt(irq);
            pause("wait", 5);
            assert_eq!(filtered.load(Ordering::Relaxed), 4);
        });
    }

    #[test]
    fn drivers_that_share_a_pin_are_all_asked() {
        Machine::builder().run(|| {
            let asked = Arc::new(AtomicUsize::new(0));
            let driver = |unit: usize| {
                let asked = Arc::clone(&asked);
                let filter = move || {
                    asked.fetch_add(1 << (8 * unit), Ordering::Relaxed);
                    FilterStatus::Stray
                };
                bus_setup_intr(
                    PIN,
                    &format!("em{unit}"),
                    0,
                    Box::new(filter),
                    Box::new(|| {}),
                )
                .expect("pins are shared")
            };
            let (first, second) = (driver(0), driver(1));
            assert_eq!(first.vector(), second.vector());
            hosted::interrupt(first.vector().irq);
            pause("wait", 1);
            assert_eq!(asked.load(Ordering::Relaxed), 0x0101);
            let irq = first.vector().irq;
            assert!(intr_counts().contains(&(format!("irq{irq}: em0 em1"), 1)));
            assert!(intr_counts().contains(&(format!("stray irq{irq}"), 1)));
            drop(first);
            hosted::interrupt(second.vector().irq);
            pause("wait", 1);
            assert_eq!(asked.load(Ordering::Relaxed), 0x0201);
        });
    }

    #[test]
    fn a_software_interrupt_asked_for_while_it_runs_runs_again() {
        Machine::builder().run(|| {
            let runs = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&runs);
            let swi = Swi::add("swi1: test", Pri::PI_SOFT, None, move || {
                count.fetch_add(1, Ordering::Relaxed);
                pause("work", 10);
            });
            swi.sched();
            pause("test", 5);
            swi.sched();
            swi.sched();
            pause("test", 50);
            assert_eq!(runs.load(Ordering::Relaxed), 2);
        });
    }
}
