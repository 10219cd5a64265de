//! Interrupts: a filter that runs at once, and a thread that does the work.
//!
//! FreeBSD: sys/kern/kern_intr.c, bus_setup_intr(9), swi(9)
//!
//! The filter runs in interrupt context with interrupts disabled. It may only take spin mutexes, looks whether its
//! device wants something, quiets it, and asks for its thread. The thread runs with the priority of an interrupt,
//! may block on locks, and lets the device interrupt again when it has done all there was.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::counter::Counter;
use crate::errno::Errno;
use crate::kern::kern_mutex::Mutex;
use crate::kern::kern_synch::{iwait, iwakeup};
use crate::kern::kern_thread::{Pri, ThreadHandle, ThreadRef, kthread_add};
use crate::kern::lock_order;
use crate::machine::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::machine::{self, CachePadded, IrqSource, PerCpu, Vector};
use crate::machine_local;
use crate::param::MAXCPU;

/// The most handlers that share one interrupt line.
const MAX_SHARED: usize = 8;

/// What a filter found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilterStatus {
    /// The device did not interrupt (`FILTER_STRAY`).
    Stray,
    /// All is done (`FILTER_HANDLED`).
    Handled,
    /// The thread has something to do (`FILTER_SCHEDULE_THREAD`).
    ScheduleThread,
}

/// An interrupt source and who listens to it (`struct intr_event`).
struct IntrEvent {
    source: IrqSource,
    vector: spin::Once<Vector>,
    /// Read by the interrupt without a lock: filled from the front, never emptied, only switched off.
    handlers: [spin::Once<Arc<Handler>>; MAX_SHARED],
    stray: AtomicU64,
}

/// A filter and its thread (`struct intr_handler`).
struct Handler {
    name: String,
    filter: Box<dyn Fn() -> FilterStatus + Send + Sync>,
    worker: Arc<Worker>,
    count: Counter,
    enabled: AtomicBool,
}

/// A thread that works when it is asked to.
struct Worker {
    work: Box<dyn Fn() + Send + Sync>,
    need: AtomicBool,
    thread: spin::Once<ThreadRef>,
    dying: AtomicBool,
}

machine_local! {
    static EVENTS: Mutex<Vec<&'static IntrEvent>, lock_order::IntrEvent> = Mutex::new(Vec::new());
    /// Timer interrupts of each CPU.
    static TIMERS: PerCpu<AtomicU64> =
        PerCpu::from_slots([const { CachePadded(AtomicU64::new(0)) }; MAXCPU]);
}

impl Worker {
    fn start(name: &str, pri: Pri, cpu: Option<usize>, work: Box<dyn Fn() + Send + Sync>) -> (Arc<Worker>, ThreadHandle) {
        let worker = Arc::new(Worker {
            work,
            need: AtomicBool::new(false),
            thread: spin::Once::new(),
            dying: AtomicBool::new(false),
        });
        let own = worker.clone();
        let handle = kthread_add(name, pri, cpu, move || own.run());
        worker.thread.call_once(|| handle.thread());
        (worker, handle)
    }

    fn run(&self) {
        loop {
            iwait(&self.need, "-");
            if self.dying.load(Ordering::Acquire) {
                return;
            }
            (self.work)();
        }
    }

    fn schedule(&self) {
        match self.thread.get() {
            Some(thread) => iwakeup(*thread, &self.need),
            // The thread has not been entered yet; it finds the request when it first looks.
            None => self.need.store(true, Ordering::Release),
        }
    }

    fn end(&self) {
        self.dying.store(true, Ordering::Release);
        self.schedule();
    }
}

/// An established interrupt handler. Dropping it silences the handler and ends its thread.
#[must_use = "dropping the cookie tears the interrupt down"]
pub struct IntrCookie {
    event: &'static IntrEvent,
    handler: Arc<Handler>,
    thread: Option<ThreadHandle>,
}

/// Listens to `source`: `filter` runs in the interrupt, on `cpu`; when it says so, `ithread` runs on a thread of
/// that CPU.
///
/// `ENOSPC` if too many share the line, or the machine's error if it has no vector left.
pub fn bus_setup_intr(
    source: IrqSource,
    name: &str,
    cpu: usize,
    filter: Box<dyn Fn() -> FilterStatus + Send + Sync>,
    ithread: Box<dyn Fn() + Send + Sync>,
) -> Result<IntrCookie, Errno> {
    let cpu = cpu % machine::ncpus();
    let mut events = EVENTS.lock();
    let known = events
        .iter()
        .copied()
        .find(|event| event.source == source && matches!(source, IrqSource::IoApic { .. }));
    let event: &'static IntrEvent = match known {
        Some(event) => event,
        // An event is never freed: the interrupt finds it by address.
        None => Box::leak(Box::new(IntrEvent {
            source,
            vector: spin::Once::new(),
            handlers: [const { spin::Once::new() }; MAX_SHARED],
            stray: AtomicU64::new(0),
        })),
    };
    let slot = event
        .handlers
        .iter()
        .find(|slot| slot.get().is_none())
        .ok_or(Errno::ENOSPC)?;

    let (worker, thread) = Worker::start(&format!("intr: {name}"), Pri::PI_NET, Some(cpu), ithread);
    let handler = Arc::new(Handler {
        name: name.to_string(),
        filter,
        worker,
        count: Counter::new(),
        enabled: AtomicBool::new(true),
    });
    slot.call_once(|| handler.clone());
    if known.is_none() {
        match machine::intr_alloc(source, cpu, intr_event_handle, ptr_of(event)) {
            Ok(vector) => {
                event.vector.call_once(|| vector);
                events.push(event);
            }
            Err(errno) => {
                handler.enabled.store(false, Ordering::Release);
                handler.worker.end();
                thread.join();
                return Err(errno);
            }
        }
    }
    Ok(IntrCookie {
        event,
        handler,
        thread: Some(thread),
    })
}

impl IntrCookie {
    /// The vector, with the address and data that a message-signalled device must be given.
    pub fn vector(&self) -> Option<Vector> {
        self.event.vector.get().copied()
    }

    /// Asks for the thread as the filter would.
    pub fn schedule(&self) {
        self.handler.worker.schedule();
    }
}

impl Drop for IntrCookie {
    #[doc(alias = "bus_teardown_intr")]
    fn drop(&mut self) {
        self.handler.enabled.store(false, Ordering::Release);
        self.handler.worker.end();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

/// The event as the word that the machine hands back.
fn ptr_of(event: &'static IntrEvent) -> usize {
    core::ptr::from_ref(event).expose_provenance()
}

/// Runs the filters of an event: the machine's interrupt handler for every device.
fn intr_event_handle(arg: usize) {
    // SAFETY: `arg` is the address that `ptr_of` exposed of an event that lives for ever.
    let event: &'static IntrEvent = unsafe { &*core::ptr::with_exposed_provenance(arg) };
    let mut claimed = false;
    for slot in &event.handlers {
        let Some(handler) = slot.get() else { break };
        if !handler.enabled.load(Ordering::Acquire) {
            continue;
        }
        match (handler.filter)() {
            FilterStatus::Stray => continue,
            FilterStatus::Handled => {}
            FilterStatus::ScheduleThread => handler.worker.schedule(),
        }
        handler.count.inc();
        claimed = true;
    }
    if !claimed {
        event.stray.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts a timer interrupt of this CPU.
pub fn intr_count_timer() {
    TIMERS.get().get(machine::curcpu()).fetch_add(1, Ordering::Relaxed);
}

/// Name and count of each interrupt source, as `vmstat -i` shows them.
pub fn intr_counts() -> Vec<(String, u64)> {
    let mut counts = Vec::new();
    for event in EVENTS.lock().iter() {
        let Some(vector) = event.vector.get() else { continue };
        let handlers: Vec<&Arc<Handler>> = event
            .handlers
            .iter()
            .filter_map(|slot| slot.get())
            .filter(|handler| handler.enabled.load(Ordering::Acquire))
            .collect();
        let names: Vec<&str> = handlers.iter().map(|handler| handler.name.as_str()).collect();
        let total = handlers.iter().map(|handler| handler.count.fetch()).sum();
        counts.push((format!("irq{}: {}", vector.irq, names.join(" ")), total));
        let stray = event.stray.load(Ordering::Relaxed);
        if stray > 0 {
            counts.push((format!("stray irq{}", vector.irq), stray));
        }
    }
    for cpu in 0..machine::ncpus() {
        counts.push((format!("cpu{cpu}:timer"), TIMERS.get().get(cpu).load(Ordering::Relaxed)));
    }
    counts
}

/// A software interrupt: a thread with the priority of one, that runs when it is asked to.
pub struct Swi {
    worker: Arc<Worker>,
    thread: Option<ThreadHandle>,
}

impl Swi {
    /// Starts the thread, bound to `cpu` if one is named.
    #[doc(alias = "swi_add")]
    pub fn add(name: &str, pri: Pri, cpu: Option<usize>, work: impl Fn() + Send + Sync + 'static) -> Swi {
        let (worker, thread) = Worker::start(name, pri, cpu, Box::new(work));
        Swi {
            worker,
            thread: Some(thread),
        }
    }

    /// Makes the thread run, once more if it is running.
    #[inline]
    #[doc(alias = "swi_sched")]
    pub fn sched(&self) {
        self.worker.schedule();
    }
}

impl Drop for Swi {
    #[doc(alias = "swi_remove")]
    fn drop(&mut self) {
        self.worker.end();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kern::kern_synch::pause_sbt;
    use crate::machine::atomic::AtomicUsize;
    use crate::machine::hosted::Machine;
    use crate::time::Sbintime;

    #[test]
    fn a_software_interrupt_asked_for_while_it_runs_runs_again() {
        Machine::builder().run(|| {
            let runs = Arc::new(AtomicUsize::new(0));
            let count = runs.clone();
            let swi = Swi::add("swi1: test", Pri::PI_SWI, None, move || {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = pause_sbt("work", Sbintime::from_ms(10));
            });
            swi.sched();
            let _ = pause_sbt("test", Sbintime::from_ms(5));
            swi.sched();
            swi.sched();
            let _ = pause_sbt("test", Sbintime::from_ms(50));
            assert_eq!(runs.load(Ordering::Relaxed), 2);
        });
    }
}
