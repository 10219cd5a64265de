//! Interrupt events, interrupt threads and software interrupts.
//!
//! FreeBSD: sys/kern/kern_intr.c, sys/sys/interrupt.h
//!
//! A filter runs in the interrupt itself: it silences the device and says whether the rest is for the interrupt thread, which may
//! take blocking locks.
//!
//! Differs from FreeBSD: every handler has a thread; where they run, an interrupt's threads are bound together.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::panic::RefUnwindSafe;

use super::kern_mutex::{Mutex, SpinMutex};
use super::kern_synch::{WChan, pause, wakeup};
use super::kern_thread::{NOCPU, Pri, ThreadHandle, curthread, kthread_add};
use super::lock_order::{IntrEvent as IntrEventClass, Newbus};
use super::sched::{sched_bind, sched_unbind};
use super::subr_sleepqueue as sleepq;
use crate::errno::Errno;
use crate::machine::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::machine::words::{from_word, to_word};
use crate::machine::{self, CpuSet, IrqLine, IrqSource, PerCpu, Vector};
use crate::machine_local;
use crate::sysctl::{self, Procedure};
use crate::time::Sbintime;

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
    /// Where the thread shall run from now on: a CPU, or `NOCPU` for any, or `BIND_DONE`.
    bind: AtomicU32,
}

/// Nothing new is asked of a thread's CPU.
const BIND_DONE: u32 = NOCPU - 1;

impl SoftInterrupt {
    pub(crate) const fn new() -> SoftInterrupt {
        SoftInterrupt {
            need: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            bind: AtomicU32::new(BIND_DONE),
        }
    }

    /// Asks the thread to run; may be called in an interrupt.
    #[doc(alias = "intr_event_schedule_thread")]
    pub(crate) fn schedule(&self) {
        if !self.need.swap(true, Ordering::SeqCst) {
            wakeup(WChan::of(self));
        }
    }

    /// Runs `f` for every request, until `kill`. It is told how often it has run since the thread last had nothing to do.
    #[doc(alias = "ithread_loop")]
    fn serve(&self, f: impl Fn(u32)) {
        while !self.dead.load(Ordering::SeqCst) {
            self.move_as_asked();
            let mut runs: u32 = 0;
            while self.need.swap(false, Ordering::SeqCst) {
                self.move_as_asked();
                f(runs);
                runs = runs.saturating_add(1);
            }
            let ready = || {
                self.need.load(Ordering::SeqCst)
                    || self.dead.load(Ordering::SeqCst)
                    || self.bind.load(Ordering::SeqCst) != BIND_DONE
            };
            sleepq::wait_unless(WChan::of(self), "-", None, ready);
        }
    }

    /// Binds the thread to `cpu`, or to none, before its next turn.
    #[doc(alias = "cpuset_setithread")]
    fn bind(&self, cpu: Option<usize>) {
        let cpu = cpu.map_or(NOCPU, |cpu| cpu as u32);
        self.bind.store(cpu, Ordering::SeqCst);
        wakeup(WChan::of(self));
    }

    /// The thread's part of `bind`: only a thread itself can say that it is nowhere in between.
    #[inline]
    fn move_as_asked(&self) {
        if self.bind.load(Ordering::Relaxed) == BIND_DONE {
            return;
        }
        match self.bind.swap(BIND_DONE, Ordering::SeqCst) {
            BIND_DONE => {}
            NOCPU => sched_unbind(),
            cpu => sched_bind(cpu as usize),
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
        kthread_add(name, pri, cpu, move || self.serve(|_| f()));
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

/// A device that interrupts by messages, as far as its bus must tell it where to write them.
pub trait MsiDevice: Send + Sync {
    /// Makes the device write its message as `vector` says, from now on: both when the message is set up and when it goes to
    /// another CPU. What happens meanwhile is told before or after, and not forgotten.
    #[doc(alias = "BUS_REMAP_INTR")]
    fn map(&self, vector: &Vector);

    /// Makes the device write no more messages.
    fn unmap(&self);
}

/// An interrupt that a driver can have.
#[doc(alias = "SYS_RES_IRQ")]
#[derive(Clone)]
pub enum IrqResource {
    /// A line, which several devices may share.
    Line(IrqLine),
    /// A message of this device.
    Message(Arc<dyn MsiDevice>),
}

impl From<IrqLine> for IrqResource {
    fn from(line: IrqLine) -> IrqResource {
        IrqResource::Line(line)
    }
}

impl IrqResource {
    fn source(&self) -> IrqSource {
        match self {
            IrqResource::Line(line) => IrqSource::Line(*line),
            IrqResource::Message(_) => IrqSource::Msi,
        }
    }

    /// Two drivers that ask for one line share its event.
    fn is_shared_with(&self, other: &IrqResource) -> bool {
        match (self, other) {
            (IrqResource::Line(line), IrqResource::Line(other)) => line == other,
            _ => false,
        }
    }

    fn map(&self, vector: &Vector) {
        if let IrqResource::Message(device) = self {
            device.map(vector);
        }
    }

    fn unmap(&self) {
        if let IrqResource::Message(device) = self {
            device.unmap();
        }
    }
}

/// One interrupt source and those who want it.
struct IntrEvent {
    irq: IrqResource,
    vector: Mutex<Option<Vector>, IntrEventClass>,
    handlers: SpinMutex<Vec<Arc<IntrHandler>>, IntrEventClass>,
    /// CPU that the interrupt and that its threads are bound to, or `NOCPU`: under the lock of `EVENTS`.
    #[doc(alias = "ie_cpu")]
    cpu: AtomicU32,
    ithread_cpu: AtomicU32,
    /// Written with `handlers` locked: while the interrupt is moved, two CPUs may handle it.
    count: AtomicU64,
    strays: AtomicU64,
}

/// What of an interrupt is bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IntrPart {
    /// The interrupt and its threads.
    #[doc(alias = "CPU_WHICH_IRQ")]
    #[doc(alias = "intr_event_bind")]
    Both,
    /// The interrupt, and with it the filters.
    #[doc(alias = "CPU_WHICH_INTRHANDLER")]
    #[doc(alias = "intr_event_bind_irqonly")]
    IrqOnly,
    /// The threads.
    #[doc(alias = "CPU_WHICH_ITHREAD")]
    #[doc(alias = "intr_event_bind_ithread")]
    Ithread,
}

impl IntrEvent {
    /// Binds parts of the interrupt to `cpu`; unbound threads run anywhere, an unbound interrupt stays where it is. The lock of
    /// `EVENTS` is held.
    #[doc(alias = "_intr_event_bind")]
    fn bind(&self, cpu: Option<usize>, part: IntrPart) -> Result<(), Errno> {
        if cpu.is_some_and(|cpu| cpu >= machine::ncpus()) {
            return Err(Errno::EINVAL);
        }
        let word = cpu.map_or(NOCPU, |cpu| cpu as u32);
        if part != IntrPart::Ithread {
            let mut slot = self.vector.lock();
            if let (Some(vector), Some(cpu)) = (*slot, cpu) {
                let moved = machine::intr_assign_cpu(vector, cpu)?;
                self.irq.map(&moved);
                *slot = Some(moved);
            }
            drop(slot);
            self.cpu.store(word, Ordering::Relaxed);
        }
        if part != IntrPart::IrqOnly {
            self.ithread_cpu.store(word, Ordering::Relaxed);
            let handlers = self.handlers.lock().clone();
            for handler in handlers {
                handler.ithread.bind(cpu);
            }
        }
        Ok(())
    }

    fn has_irq(&self, irq: u32) -> bool {
        self.vector.lock().is_some_and(|vector| vector.irq == irq)
    }
}

/// Binds parts of the interrupt `irq` to the one CPU of `cpus`, or to none if those are all CPUs.
///
/// # Errors
/// `EINVAL`: `cpus` is neither one CPU that exists nor all of them. `ESRCH`: there is no such interrupt.
pub fn intr_setaffinity(irq: u32, part: IntrPart, cpus: CpuSet) -> Result<(), Errno> {
    let cpu = match cpus.iter().next() {
        _ if cpus == CpuSet::all() => None,
        Some(cpu) if cpus.count() == 1 => Some(cpu),
        _ => return Err(Errno::EINVAL),
    };
    let events = EVENTS.get().lock();
    let event = events.iter().find(|event| event.has_irq(irq));
    event.ok_or(Errno::ESRCH)?.bind(cpu, part)
}

/// Returns the CPUs that the interrupt `irq` is bound to, or its threads if `part` is `Ithread`; all if to none.
///
/// # Errors
/// `ESRCH`: there is no such interrupt.
pub fn intr_getaffinity(irq: u32, part: IntrPart) -> Result<CpuSet, Errno> {
    let events = EVENTS.get().lock();
    let event = events.iter().find(|event| event.has_irq(irq));
    let event = event.ok_or(Errno::ESRCH)?;
    let cpu = match part {
        IntrPart::Both | IntrPart::IrqOnly => &event.cpu,
        IntrPart::Ithread => &event.ithread_cpu,
    };
    Ok(match cpu.load(Ordering::Relaxed) {
        NOCPU => CpuSet::all(),
        cpu => CpuSet::single(cpu as usize),
    })
}

machine_local! {
    static EVENTS: Mutex<Vec<Arc<IntrEvent>>, Newbus> = Mutex::new(Vec::new());
    /// Turns of an interrupt thread without a pause from which on it pauses after each; 0: it never does.
    static INTR_STORM_THRESHOLD: AtomicU32 = AtomicU32::new(0);
    static TIMERS: PerCpu<AtomicU64> = PerCpu::from_slots([const { machine::CachePadded(AtomicU64::new(0)) }; machine::MAXCPU]);
    static IPIS: PerCpu<AtomicU64> = PerCpu::from_slots([const { machine::CachePadded(AtomicU64::new(0)) }; machine::MAXCPU]);
}

/// What a driver keeps of its interrupt; the handler is removed when it is dropped.
pub struct IntrCookie {
    event: Arc<IntrEvent>,
    handler: Arc<IntrHandler>,
    thread: Option<ThreadHandle>,
    irq: u32,
}

impl IntrCookie {
    /// Returns the interrupt's number: `N` of `irqN`.
    pub fn irq(&self) -> u32 {
        self.irq
    }

    /// Binds the interrupt and its threads, those of other drivers on the same pin too, to `cpu`; `None`: to no CPU.
    ///
    /// # Errors
    /// `EINVAL`: there is no such CPU.
    #[doc(alias = "bus_bind_intr")]
    pub fn bind(&self, cpu: Option<usize>) -> Result<(), Errno> {
        let events = EVENTS.get().lock();
        let result = self.event.bind(cpu, IntrPart::Both);
        drop(events);
        result
    }

    /// Asks the interrupt thread to run although there was no interrupt.
    pub fn schedule(&self) {
        self.handler.ithread.schedule();
    }
}

/// Connects a filter and an interrupt thread to an interrupt, delivered to `cpu`. Several drivers may share a line, which is
/// then bound to the CPU of the first, or to where it was moved since.
///
/// # Errors
/// What `machine::intr_alloc` returns: no vector is left, or there is no such line or CPU.
pub fn bus_setup_intr(
    irq: impl Into<IrqResource>,
    name: &str,
    cpu: usize,
    filter: Filter,
    ithread: Ithread,
) -> Result<IntrCookie, Errno> {
    let irq = irq.into();
    let mut events = EVENTS.get().lock();
    let shared = events.iter().find(|event| event.irq.is_shared_with(&irq));
    let event = match shared {
        Some(event) => Arc::clone(event),
        None => {
            let event = Arc::new(IntrEvent {
                irq,
                vector: Mutex::new(None),
                handlers: SpinMutex::new(Vec::new()),
                cpu: AtomicU32::new(cpu as u32),
                ithread_cpu: AtomicU32::new(cpu as u32),
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
        None => {
            let source = event.irq.source();
            match machine::intr_alloc(source, cpu, handle, to_word(Arc::as_ptr(&event))) {
                Ok(vector) => {
                    event.irq.map(&vector);
                    *event.vector.lock().insert(vector)
                }
                Err(errno) => {
                    events.retain(|other| !Arc::ptr_eq(other, &event));
                    return Err(errno);
                }
            }
        }
    };
    let served = Arc::clone(&handler);
    let ithread_cpu = match event.ithread_cpu.load(Ordering::Relaxed) {
        NOCPU => None,
        cpu => Some(cpu as usize),
    };
    drop(events);
    // Bound anew in between, it learns of that when it starts.
    let name = format!("irq{}: {name}", vector.irq);
    let storm = Storm::new(name.clone());
    let thread = kthread_add(&name, Pri::PI_NET, ithread_cpu, move || {
        served.ithread.serve(|runs| {
            storm.throttle(runs);
            ithread();
        });
    });
    Ok(IntrCookie {
        event,
        handler,
        thread: Some(thread),
        irq: vector.irq,
    })
}

/// What keeps a device that interrupts without end from having a CPU for itself.
struct Storm {
    name: String,
    /// When it was last told of.
    told: Cell<Option<Sbintime>>,
}

impl Storm {
    /// At most so often a storm is told of.
    const WARNING_INTERVAL: Sbintime = Sbintime::from_s(1);

    fn new(name: String) -> Storm {
        let told = Cell::new(None);
        Storm { name, told }
    }

    /// Lets others have the CPU if the thread has already run so often without an end.
    #[doc(alias = "ithread_execute_handlers")]
    fn throttle(&self, runs: u32) {
        let threshold = INTR_STORM_THRESHOLD.get().load(Ordering::Relaxed);
        if threshold == 0 || runs < threshold {
            return;
        }
        let now = machine::sbinuptime();
        let due = |told| now - told >= Storm::WARNING_INTERVAL;
        if self.told.get().is_none_or(due) {
            self.told.set(Some(now));
            let name = &self.name;
            crate::kprintf!(
                "interrupt storm detected on \"{name}\"; throttling interrupt source\n"
            );
        }
        pause("istorm", 1);
    }
}

/// Puts the settings into the sysctl tree.
pub(super) fn sysctl_init() {
    let threshold = INTR_STORM_THRESHOLD.get();
    sysctl::root().register(
        "hw.intr_storm_threshold",
        Arc::new(Procedure::new(
            "Number of consecutive interrupts before storm protection is enabled",
            || threshold.load(Ordering::Relaxed).to_string(),
            |text| {
                let value = text.parse().map_err(|_| Errno::EINVAL)?;
                threshold.store(value, Ordering::Relaxed);
                Ok(())
            },
        )),
    );
}

/// An interrupt has come. Interrupts are disabled.
#[doc(alias = "intr_event_handle")]
fn handle(event: usize) {
    // SAFETY: `bus_setup_intr` passed it; the last cookie frees the vector before it lets the event go.
    let event: &IntrEvent = unsafe { &*from_word(event) };
    let handlers = event.handlers.lock();
    event
        .count
        .store(event.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    let mut wanted = false;
    for handler in handlers.iter() {
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
            self.event.irq.unmap();
            let vector = self.event.vector.lock().take();
            if let Some(vector) = vector {
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
        let thread = kthread_add(name, pri, cpu, move || served.serve(|_| work()));
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
    use crate::kern::kern_synch::pause_sbt;
    use crate::kern::subr_prf::dmesg;
    use crate::machine::atomic::AtomicUsize;
    use crate::machine::hosted::{self, Machine};

    const PIN: IrqLine = IrqLine {
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
            hosted::interrupt(cookie.irq());
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
                hosted::interrupt(cookie.irq());
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
            let irq = cookie.irq();
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

    /// Where a handler ran: interrupts and turns of the thread, a count per CPU.
    #[derive(Default)]
    struct Places {
        filtered: [AtomicUsize; 2],
        worked: [AtomicUsize; 2],
    }

    impl Places {
        fn of(counts: &[AtomicUsize; 2]) -> [usize; 2] {
            [0, 1].map(|cpu| counts[cpu].load(Ordering::Relaxed))
        }
    }

    /// A device with one message.
    #[derive(Default)]
    struct Messenger {
        addr: AtomicU64,
        data: AtomicU32,
    }

    impl MsiDevice for Messenger {
        fn map(&self, vector: &Vector) {
            self.data.store(vector.msi_data, Ordering::Relaxed);
            self.addr.store(vector.msi_addr, Ordering::Relaxed);
        }

        fn unmap(&self) {
            self.addr.store(0, Ordering::Relaxed);
        }
    }

    impl Messenger {
        fn interrupt(&self) {
            let addr = self.addr.load(Ordering::Relaxed);
            if addr != 0 {
                hosted::message(addr, self.data.load(Ordering::Relaxed));
            }
        }
    }

    /// Makes the device of a cookie interrupt.
    type Raise = Box<dyn Fn(&IntrCookie)>;

    /// Devices of both kinds: how they interrupt, and how they are made to.
    fn devices() -> [(IrqResource, Raise); 2] {
        let messenger = Arc::new(Messenger::default());
        let message = IrqResource::Message(Arc::clone(&messenger) as Arc<dyn MsiDevice>);
        [
            (
                PIN.into(),
                Box::new(|cookie: &IntrCookie| hosted::interrupt(cookie.irq())),
            ),
            (message, Box::new(move |_| messenger.interrupt())),
        ]
    }

    fn placed(places: &Arc<Places>, irq: IrqResource) -> IntrCookie {
        let (by_filter, by_thread) = (Arc::clone(places), Arc::clone(places));
        let filter = move || {
            by_filter.filtered[machine::curcpu()].fetch_add(1, Ordering::Relaxed);
            FilterStatus::ScheduleThread
        };
        let work = move || {
            by_thread.worked[machine::curcpu()].fetch_add(1, Ordering::Relaxed);
        };
        bus_setup_intr(irq, "em0", 0, Box::new(filter), Box::new(work)).expect("a vector is free")
    }

    #[test]
    fn a_bound_interrupt_and_its_thread_run_where_they_are_bound() {
        Machine::builder().cpus(2).run(|| {
            for (resource, raise) in devices() {
                check_places(resource, raise);
            }
        });
    }

    fn check_places(resource: IrqResource, raise: Raise) {
        let shared = matches!(resource, IrqResource::Line(_));
        let places = Arc::new(Places::default());
        let cookie = placed(&places, resource.clone());
        let irq = cookie.irq();
        let interrupts = |n| {
            for _ in 0..n {
                raise(&cookie);
                pause("wait", 2);
            }
        };
        let seen = || (Places::of(&places.filtered), Places::of(&places.worked));
        let masks =
            || [IntrPart::IrqOnly, IntrPart::Ithread].map(|part| intr_getaffinity(irq, part));
        let (first, second) = (CpuSet::single(0), CpuSet::single(1));
        interrupts(1);
        assert_eq!(seen(), ([1, 0], [1, 0]));
        cookie.bind(Some(1)).expect("CPU 1 exists");
        interrupts(2);
        assert_eq!(seen(), ([1, 2], [1, 2]));
        assert_eq!(masks(), [Ok(second); 2]);
        intr_setaffinity(irq, IntrPart::Ithread, first).expect("CPU 0 exists");
        interrupts(4);
        assert_eq!(seen(), ([1, 6], [5, 2]));
        assert_eq!(masks(), [Ok(second), Ok(first)]);
        intr_setaffinity(irq, IntrPart::IrqOnly, first).expect("CPU 0 exists");
        interrupts(8);
        assert_eq!(seen(), ([9, 6], [13, 2]));
        // Unbound, the interrupt stays, and its thread runs with it while nothing else does.
        cookie.bind(Some(1)).expect("CPU 1 exists");
        cookie.bind(None).expect("no CPU always exists");
        interrupts(16);
        assert_eq!(Places::of(&places.filtered), [9, 22]);
        assert_eq!(Places::of(&places.worked).iter().sum::<usize>(), 31);
        assert_eq!(masks(), [Ok(CpuSet::all()); 2]);
        if !shared {
            return;
        }
        // A driver that comes to the line later goes where the others are.
        intr_setaffinity(irq, IntrPart::Both, second).expect("CPU 1 exists");
        let later = placed(&places, resource);
        interrupts(1);
        assert_eq!(Places::of(&places.filtered), [9, 24]);
        assert_eq!(
            later
                .thread
                .as_ref()
                .map(|thread| thread.thread().affinity()),
            Some(second)
        );
    }

    #[test]
    fn what_cannot_be_bound_is_refused_and_stays() {
        Machine::builder().cpus(2).run(|| {
            let cookie = placed(&Arc::default(), PIN.into());
            let irq = cookie.irq();
            let bind = |irq, cpus| intr_setaffinity(irq, IntrPart::Both, CpuSet(cpus));
            assert_eq!(cookie.bind(Some(2)), Err(Errno::EINVAL));
            for cpus in [0, 0b100, 0b101, 0b111] {
                assert_eq!(bind(irq, cpus), Err(Errno::EINVAL), "{cpus:b}");
            }
            assert_eq!(bind(irq + 1, 0b10), Err(Errno::ESRCH));
            assert_eq!(intr_getaffinity(irq + 1, IntrPart::Both), Err(Errno::ESRCH));
            assert_eq!(intr_getaffinity(irq, IntrPart::Both), Ok(CpuSet::single(0)));
            drop(cookie);
            assert_eq!(bind(irq, 0b10), Err(Errno::ESRCH));
        });
    }

    #[test]
    fn no_interrupt_is_lost_while_it_is_moved_to_and_fro() {
        for seed in 0..10 {
            Machine::builder().seed(seed).cpus(2).run(|| {
                for (resource, raise) in devices() {
                    check_moves(seed, resource, raise);
                }
            });
        }
    }

    /// A device with a counter of work, which interrupts for every piece.
    fn check_moves(seed: u64, resource: IrqResource, raise: Raise) {
        const PIECES: usize = 400;
        let places = Arc::new(Places::default());
        let filtered = Arc::clone(&places);
        let (given, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (device, finished) = (Arc::clone(&given), Arc::clone(&done));
        let worked = Arc::clone(&places);
        let cookie = bus_setup_intr(
            resource,
            "em0",
            0,
            Box::new(move || {
                filtered.filtered[machine::curcpu()].fetch_add(1, Ordering::Relaxed);
                FilterStatus::ScheduleThread
            }),
            Box::new(move || {
                worked.worked[machine::curcpu()].fetch_add(1, Ordering::Relaxed);
                finished.store(device.load(Ordering::SeqCst), Ordering::SeqCst);
            }),
        )
        .expect("a vector is free");
        let irq = cookie.irq();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mover = kthread_add("mover", Pri::PUSER, None, move || {
            for place in [0b01, 0b10, 0b11].into_iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                intr_setaffinity(irq, IntrPart::Both, CpuSet(place)).expect("both exist");
                // At times together with an interrupt.
                pause_sbt("mover", Sbintime::from_us(35));
            }
        });
        for piece in 1..=PIECES {
            given.store(piece, Ordering::SeqCst);
            raise(&cookie);
            // Each must be answered by itself, and not by the next.
            let mut turns = 0;
            loop {
                pause_sbt("piece", Sbintime::from_us(70));
                if done.load(Ordering::SeqCst) == piece {
                    break;
                }
                turns += 1;
                assert!(turns < 100, "piece {piece} of seed {seed} is lost");
            }
        }
        stop.store(true, Ordering::Relaxed);
        mover.join();
        let name = format!("irq{irq}: em0");
        assert!(intr_counts().contains(&(name, PIECES as u64)));
        for counts in [&places.filtered, &places.worked] {
            assert!(!Places::of(counts).contains(&0), "it was on both CPUs");
        }
    }

    #[test]
    fn a_device_that_interrupts_without_end_leaves_others_some_time() {
        Machine::builder().cpus(1).run(|| {
            let set = sysctl::root().set("hw.intr_storm_threshold", "50");
            assert!(set.is_ok());
            let runs = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&runs);
            let messenger = Arc::new(Messenger::default());
            let again = Arc::clone(&messenger);
            let work = move || {
                count.fetch_add(1, Ordering::Relaxed);
                again.interrupt();
            };
            let filter = Box::new(|| FilterStatus::ScheduleThread);
            let irq = IrqResource::Message(Arc::clone(&messenger) as Arc<dyn MsiDevice>);
            let cookie = bus_setup_intr(irq, "storm0", 0, filter, Box::new(work));
            let cookie = cookie.expect("a vector is free");
            messenger.interrupt();
            pause("wait", 100);
            assert!((140..=160).contains(&runs.load(Ordering::Relaxed)));
            let name = format!("irq{}: storm0", cookie.irq());
            let told =
                format!("interrupt storm detected on \"{name}\"; throttling interrupt source\n");
            assert_eq!(dmesg().matches(&told).count(), 1);
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
            assert_eq!(first.irq(), second.irq());
            hosted::interrupt(first.irq());
            pause("wait", 1);
            assert_eq!(asked.load(Ordering::Relaxed), 0x0101);
            let irq = first.irq();
            assert!(intr_counts().contains(&(format!("irq{irq}: em0 em1"), 1)));
            assert!(intr_counts().contains(&(format!("stray irq{irq}"), 1)));
            drop(first);
            hosted::interrupt(second.irq());
            pause("wait", 1);
            assert_eq!(asked.load(Ordering::Relaxed), 0x0201);
        });
    }

    #[test]
    fn a_message_ends_with_its_handler() {
        Machine::builder().run(|| {
            let places = Arc::new(Places::default());
            let messenger = Arc::new(Messenger::default());
            let message = || IrqResource::Message(Arc::clone(&messenger) as Arc<dyn MsiDevice>);
            // Two messages of one device are two interrupts.
            let (first, second) = (placed(&places, message()), placed(&places, message()));
            assert_ne!(first.irq(), second.irq());
            messenger.interrupt();
            pause("wait", 1);
            assert_eq!(Places::of(&places.filtered), [1, 0]);
            drop(second);
            messenger.interrupt();
            pause("wait", 1);
            assert_eq!(Places::of(&places.filtered), [1, 0]);
            drop(first);
            assert!(!intr_counts().iter().any(|(name, _)| name.ends_with("em0")));
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
