//! The machine: its virtual CPUs, its clock, its memory, and the values that belong to it.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell, UnsafeCell};
use core::panic::AssertUnwindSafe;
use core::ptr;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::machine::atomic::{AtomicU32, Ordering};
use crate::machine::host::{Arena, KStack, Pcb, cpu_switch};
use crate::machine::words::{from_word, to_word};
use crate::machine::{Ipi, IrqSource, MAXCPU, Pcpu, PhysRange, msi_cpu, upcall};
use crate::time::Sbintime;

/// Builds a machine: `Machine::builder().seed(7).cpus(2).run(|| { … })`.
pub struct Builder {
    seed: u64,
    cpus: usize,
    memory: usize,
    realtime: bool,
    time_limit: Sbintime,
    quiet: bool,
    tunables: String,
}

impl Builder {
    /// Sets what decides the interleaving of the CPUs and `random_u64`; the same seed replays the same run.
    pub fn seed(mut self, seed: u64) -> Builder {
        self.seed = seed;
        self
    }

    /// Sets the number of virtual CPUs; otherwise 2.
    pub fn cpus(mut self, cpus: usize) -> Builder {
        assert!((1..=MAXCPU).contains(&cpus), "1 to {MAXCPU} CPUs");
        self.cpus = cpus;
        self
    }

    /// Sets the bytes of physical memory; otherwise 256 MiB. Pages that are not touched cost the host nothing.
    pub fn memory(mut self, bytes: usize) -> Builder {
        self.memory = bytes.next_multiple_of(2 << 20);
        self
    }

    /// Lets the clock be the host's, for benchmarks and real devices.
    pub fn realtime(mut self) -> Builder {
        self.realtime = true;
        self
    }

    /// Sets how far the virtual clock may go; otherwise 100 days. Catches tests in which only periodic timers still run.
    pub fn time_limit(mut self, limit: Sbintime) -> Builder {
        self.time_limit = limit;
        self
    }

    /// Keeps kernel messages from the host's standard output; `dmesg` still has them.
    pub fn quiet(mut self) -> Builder {
        self.quiet = true;
        self
    }

    /// Sets the kernel's command line: `name=value` tunables.
    pub fn tunables(mut self, line: &str) -> Builder {
        self.tunables = line.to_string();
        self
    }

    /// Runs `body` as the first thread of a new machine and returns what it returns.
    ///
    /// A panic in any thread of the machine, and a deadlock, end the machine and continue as a panic of the caller. When
    /// `body` returns the machine ends: its other threads are unwound, its values dropped, its memory unmapped.
    pub fn run<T>(self, body: impl FnOnce() -> T) -> T {
        let tunables = self.tunables.clone();
        let owned = Box::into_raw(Box::new(Machine::new(self)));
        let outer = CURRENT.replace(owned.cast_const());
        // SAFETY: just made, and freed by nobody but us.
        let machine = unsafe { &*owned };

        // The first thread borrows nothing of ours: after a panic elsewhere it stands in the middle of `body` for good.
        let result = Rc::new(Cell::new(None));
        let theirs = Rc::clone(&result);
        let mut boot = Some(move || {
            upcall::boot(&tunables);
            theirs.set(Some(body()));
        });
        machine.start(&mut boot);
        let outcome = machine.outcome.take();
        if let Some(payload) = outcome {
            CURRENT.set(outer);
            // Its threads stand in the middle of things; what they own is left alone, and with it what they refer to.
            resume_unwind(payload)
        }
        machine.free_leaked();
        CURRENT.set(outer);
        // SAFETY: nothing of the machine runs any more.
        unsafe { Machine::free(owned) };
        let result = result.take();
        result.expect("the first thread ends by returning or by a panic")
    }
}

/// A computer inside this process.
pub struct Machine {
    cpus: Box<[Vcpu]>,
    /// The virtual CPU that holds the baton.
    current: Cell<usize>,
    interleaving: Cell<u64>,
    random: Cell<u64>,
    /// Points of possible interference until the baton is passed on.
    countdown: Cell<u32>,
    period: u32,
    /// CPUs that have only waited busily since the clock last moved.
    spinning: Cell<u32>,
    clock: Cell<Sbintime>,
    epoch: Option<Instant>,
    time_limit: Sbintime,
    quiet: bool,
    locals: UnsafeCell<Vec<Option<Owned>>>,
    /// Indices into `locals` in the order in which their values were complete.
    local_order: RefCell<Vec<usize>>,
    leaked: RefCell<Vec<Owned>>,
    arena: Arena,
    phys: [PhysRange; 1],
    /// The context of `run`'s caller.
    host: Pcb,
    outcome: Cell<Option<Box<dyn Any + Send>>>,
    teardown: Cell<bool>,
    /// All threads are unwound, and the machine's values are being dropped.
    dropping: Cell<bool>,
    vectors: RefCell<Vec<Option<Handler>>>,
    external: Arc<External>,
}

/// A virtual CPU.
pub(super) struct Vcpu {
    pub(super) pcpu: Pcpu,
    /// Where it goes on when it gets the baton back.
    context: Pcb,
    pub(super) intr_enabled: Cell<bool>,
    pending: Cell<u32>,
    pending_vectors: RefCell<Vec<usize>>,
    halted: Cell<bool>,
    deadline: Cell<Sbintime>,
}

/// Points of possible interference between two looks at the clock on a machine of one CPU.
const CLOCK_PERIOD: u32 = 64;
const PENDING_TIMER: u32 = 1;
const PENDING_PREEMPT: u32 = 2;
const PENDING_RENDEZVOUS: u32 = 4;
const PENDING_STOP: u32 = 8;
const PENDING_VECTOR: u32 = 16;

#[derive(Clone, Copy)]
struct Handler {
    function: fn(usize),
    arg: usize,
    /// Where a line is delivered; a message says that itself.
    cpu: usize,
    source: IrqSource,
}

/// Interrupts raised by other host threads.
#[derive(Default)]
struct External {
    raised: Mutex<Vec<usize>>,
    any: AtomicU32,
    wake: Condvar,
}

std::thread_local! {
    static CURRENT: Cell<*const Machine> = const { Cell::new(ptr::null()) };
}

/// Returns the machine that this code runs on.
#[inline]
pub(super) fn machine() -> &'static Machine {
    let current = CURRENT.get();
    assert!(
        !current.is_null(),
        "kernel code runs only inside `Machine::run`"
    );
    // SAFETY: `run` keeps the machine alive while it is current. The lifetime is longer than the truth: whatever keeps the
    // reference is itself a thread or a value of the machine.
    unsafe { &*current }
}

/// The machine that a thread of the host is to run.
#[cfg(miri)]
pub(in crate::machine) struct MachineRef(*const Machine);

// SAFETY: the machine's contexts run one at a time.
#[cfg(miri)]
unsafe impl Send for MachineRef {}

#[cfg(miri)]
impl MachineRef {
    pub(in crate::machine) fn of_current() -> MachineRef {
        MachineRef(CURRENT.get())
    }

    /// Makes it the one that this thread runs.
    pub(in crate::machine) fn enter(self) {
        CURRENT.set(self.0);
    }
}

/// Seeds for a test that tries `n` of them; Miri, which takes long, tries one.
#[cfg(test)]
pub(crate) fn seeds(n: u64) -> core::ops::Range<u64> {
    0..if cfg!(miri) { 1 } else { n }
}

/// Turns of a test in which threads meet again and again; under Miri a tenth.
#[cfg(test)]
pub(crate) const fn turns(n: usize) -> usize {
    if cfg!(miri) { n / 10 } else { n }
}

/// What a killed thread unwinds with.
struct Killed;

impl Machine {
    /// Begins to build a machine.
    pub fn builder() -> Builder {
        Builder {
            seed: 1,
            cpus: 2,
            memory: if cfg!(miri) { 8 << 20 } else { 256 << 20 },
            realtime: false,
            time_limit: Sbintime::from_s(100 * 24 * 3600),
            quiet: false,
            tunables: String::new(),
        }
    }

    /// Tells whether code of a machine is running on this host thread.
    pub fn is_running() -> bool {
        !CURRENT.get().is_null()
    }

    fn new(builder: Builder) -> Machine {
        let arena = Arena::map(builder.memory);
        let start = arena.base().addr() as u64;
        let mut interleaving = builder.seed;
        let period = [4, 32, 256, 2048][(split_mix(&mut interleaving) % 4) as usize];
        Machine {
            cpus: (0..builder.cpus).map(Vcpu::new).collect(),
            current: Cell::new(0),
            interleaving: Cell::new(interleaving),
            random: Cell::new(builder.seed ^ 0x5bd1_e995_9d1b_58d3),
            countdown: Cell::new(period),
            period,
            spinning: Cell::new(0),
            clock: Cell::new(Sbintime::ZERO),
            epoch: builder.realtime.then(Instant::now),
            time_limit: builder.time_limit,
            quiet: builder.quiet,
            locals: UnsafeCell::new(Vec::new()),
            local_order: RefCell::new(Vec::new()),
            leaked: RefCell::new(Vec::new()),
            phys: [PhysRange {
                start,
                end: start + arena.len() as u64,
            }],
            arena,
            host: Pcb::new(),
            outcome: Cell::new(None),
            teardown: Cell::new(false),
            dropping: Cell::new(false),
            vectors: RefCell::new(Vec::new()),
            external: Arc::default(),
        }
    }

    /// Runs the machine until the first thread has ended.
    fn start<F: FnOnce()>(&self, boot: &mut Option<F>) {
        let mut stacks = Vec::new();
        for (cpu, vcpu) in self.cpus.iter().enumerate() {
            let me = &raw const vcpu.pcpu;
            vcpu.pcpu.pc_self.store(me.cast_mut(), Ordering::Relaxed);
            let size = if cpu == 0 { 8 << 20 } else { 0 };
            let stack = KStack::alloc(size).expect("address space for a stack");
            // SAFETY: the context is new, and the stack lives until the machine has stopped.
            unsafe {
                if cpu == 0 {
                    vcpu.context.prepare(
                        &stack,
                        start_boot_cpu::<F>,
                        to_word((&raw mut *boot).cast_const()),
                    );
                } else {
                    vcpu.context.prepare(&stack, start_application_cpu, cpu);
                    vcpu.halted.set(true);
                    // Nobody interrupts it before it has a thread.
                    vcpu.intr_enabled.set(false);
                }
            }
            stacks.push(stack);
        }
        // SAFETY: prepared above.
        unsafe { cpu_switch(&self.host, &self.cpus[0].context) };
    }

    pub(super) fn vcpu(&'static self) -> &'static Vcpu {
        &self.cpus[self.current.get()]
    }

    pub(super) fn current(&self) -> usize {
        self.current.get()
    }

    pub(super) fn ncpus(&self) -> usize {
        self.cpus.len()
    }

    pub(super) fn pcpu_find(&self, cpu: usize) -> &Pcpu {
        &self.cpus[cpu].pcpu
    }

    pub(super) fn phys(&self) -> &[PhysRange] {
        &self.phys
    }

    /// Where a physical address is mapped: physical and virtual addresses are the same.
    pub(super) fn phys_to_virt(&self, pa: u64) -> *mut u8 {
        self.arena.base().with_addr(pa as usize)
    }

    pub(super) fn random(&self) -> u64 {
        let mut state = self.random.get();
        let value = split_mix(&mut state);
        self.random.set(state);
        value
    }

    fn choose(&self, below: u32) -> u32 {
        let mut state = self.interleaving.get();
        let value = split_mix(&mut state);
        self.interleaving.set(state);
        (value % u64::from(below)) as u32
    }

    pub(super) fn now(&self) -> Sbintime {
        match self.epoch {
            None => self.clock.get(),
            Some(epoch) => Sbintime::from_ns(epoch.elapsed().as_nanos() as i64),
        }
    }

    pub(super) fn console_write(&self, bytes: &[u8]) {
        if !self.quiet {
            std::print!("{}", String::from_utf8_lossy(bytes));
        }
    }

    /// Starts the application CPUs; they wait in a halt until then.
    fn release_cpus(&self) {
        for vcpu in &self.cpus[1..] {
            vcpu.halted.set(false);
        }
    }

    // The baton.

    /// Passes the baton to another CPU that can run, if there is one; returns when it comes back.
    pub(super) fn relinquish(&'static self) -> bool {
        let me = self.current.get();
        let ready = self
            .cpus
            .iter()
            .enumerate()
            .filter(|&(cpu, vcpu)| cpu != me && !vcpu.halted.get());
        let count = ready.clone().count() as u32;
        if count == 0 || self.teardown.get() {
            return false;
        }
        let next = if count == 1 { 0 } else { self.choose(count) };
        let (next, _) = ready.clone().nth(next as usize).expect("counted above");
        self.current.set(next);
        // SAFETY: the other CPU gave the baton away, or was prepared and never ran.
        unsafe { cpu_switch(&self.cpus[me].context, &self.cpus[next].context) };
        debug_assert_eq!(self.current.get(), me);
        self.deliver_interrupts();
        true
    }

    /// A point where another CPU could interfere.
    pub(super) fn interleave(&'static self) {
        self.spinning
            .set(self.spinning.get() & !(1 << self.current.get()));
        let left = self.countdown.get();
        if left > 1 {
            self.countdown.set(left - 1);
            return;
        }
        if self.cpus.len() == 1 {
            // Nobody to pass the baton to: only now and then a look at the clock.
            self.countdown.set(CLOCK_PERIOD);
        } else if self.vcpu().intr_enabled.get() {
            self.countdown.set(1 + self.choose(self.period));
            self.relinquish();
        }
        self.poll_clock();
    }

    /// With real time, notices expired timers and the host's interrupts while CPUs are busy.
    fn poll_clock(&'static self) {
        if self.epoch.is_some() {
            self.take_external();
            self.expire_timers();
            self.deliver_interrupts();
        }
    }

    /// A busy wait for another CPU or for time to pass.
    pub(super) fn spin_wait(&'static self) {
        if self.teardown.get() {
            return;
        }
        let me = self.current.get();
        self.spinning.set(self.spinning.get() | 1 << me);
        let busy = |vcpu: &Vcpu| !vcpu.halted.get();
        let all_spin = (0..self.cpus.len())
            .all(|cpu| self.spinning.get() & 1 << cpu != 0 || !busy(&self.cpus[cpu]));
        if all_spin {
            // Nobody does anything that could end the waiting but time.
            self.spinning.set(0);
            if self.epoch.is_none() {
                self.advance_clock(self.clock.get() + Sbintime::MICROSECOND);
            }
            self.take_external();
            self.expire_timers();
            self.deliver_interrupts();
        }
        self.relinquish();
    }

    // Interrupts.

    pub(super) fn set_deadline(&'static self, deadline: Sbintime) {
        self.vcpu().deadline.set(deadline);
        if deadline <= self.now() {
            self.expire_timers();
            self.deliver_interrupts();
        }
    }

    pub(super) fn send(&'static self, cpu: usize, ipi: Ipi) {
        let bit = match ipi {
            Ipi::Preempt => PENDING_PREEMPT,
            Ipi::Rendezvous => PENDING_RENDEZVOUS,
            Ipi::Stop => PENDING_STOP,
        };
        self.cpus[cpu].post(bit);
        self.deliver_interrupts();
    }

    pub(super) fn add_handler(
        &self,
        source: IrqSource,
        function: fn(usize),
        arg: usize,
        cpu: usize,
    ) -> usize {
        let mut vectors = self.vectors.borrow_mut();
        vectors.push(Some(Handler {
            function,
            arg,
            cpu,
            source,
        }));
        vectors.len() - 1
    }

    pub(super) fn remove_handler(&self, irq: usize) {
        if let Some(slot) = self.vectors.borrow_mut().get_mut(irq) {
            *slot = None;
        }
    }

    pub(super) fn move_handler(&self, irq: usize, cpu: usize) {
        if let Some(Some(handler)) = self.vectors.borrow_mut().get_mut(irq)
            && handler.source != IrqSource::Msi
        {
            handler.cpu = cpu;
        }
    }

    fn raise(&'static self, irq: usize) {
        let handler = self.vectors.borrow().get(irq).copied().flatten();
        if let Some(handler) = handler {
            self.raise_on(handler.cpu, irq);
        }
    }

    fn raise_on(&'static self, cpu: usize, irq: usize) {
        let vcpu = &self.cpus[cpu];
        let mut raised = vcpu.pending_vectors.borrow_mut();
        if !raised.contains(&irq) {
            raised.push(irq);
        }
        vcpu.post(PENDING_VECTOR);
    }

    /// Runs the handlers of what is pending on this CPU, as far as interrupts are enabled.
    pub(super) fn deliver_interrupts(&'static self) {
        let vcpu = self.vcpu();
        if vcpu.pending.get() == 0 || !vcpu.intr_enabled.get() || self.teardown.get() {
            return;
        }
        vcpu.intr_enabled.set(false);
        let critnest = &vcpu.pcpu.critnest;
        critnest.store(critnest.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        while vcpu.pending.get() != 0 {
            let pending = vcpu.pending.take();
            if pending & PENDING_STOP != 0 {
                upcall::ipi_interrupt(Ipi::Stop);
            }
            if pending & PENDING_RENDEZVOUS != 0 {
                upcall::ipi_interrupt(Ipi::Rendezvous);
            }
            if pending & PENDING_VECTOR != 0 {
                for irq in vcpu.pending_vectors.take() {
                    let handler = self.vectors.borrow().get(irq).copied().flatten();
                    if let Some(handler) = handler {
                        (handler.function)(handler.arg);
                    }
                }
            }
            if pending & PENDING_TIMER != 0 {
                upcall::timer_interrupt();
            }
            if pending & PENDING_PREEMPT != 0 {
                upcall::ipi_interrupt(Ipi::Preempt);
            }
        }
        critnest.store(critnest.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        if critnest.load(Ordering::Relaxed) == 0
            && vcpu.pcpu.owepreempt.load(Ordering::Relaxed) != 0
        {
            upcall::preempt();
        }
        // The thread may have come back on another CPU.
        self.vcpu().intr_enabled.set(true);
    }

    // Time.

    fn advance_clock(&self, to: Sbintime) {
        assert!(
            to <= self.time_limit,
            "the virtual clock has passed its limit of {:?}; asleep: {}",
            self.time_limit,
            upcall::describe_sleepers()
        );
        if to > self.clock.get() {
            self.clock.set(to);
        }
    }

    fn expire_timers(&self) {
        let now = self.now();
        for vcpu in &self.cpus {
            if vcpu.deadline.get() <= now {
                vcpu.deadline.set(Sbintime::MAX);
                vcpu.post(PENDING_TIMER);
            }
        }
    }

    fn take_external(&'static self) {
        if self.external.any.load(Ordering::Relaxed) != 0 {
            let mut raised = self.external.raised.lock().expect("never poisoned");
            self.external.any.store(0, Ordering::Relaxed);
            let irqs = core::mem::take(&mut *raised);
            drop(raised);
            for irq in irqs {
                self.raise(irq);
            }
        }
    }

    /// Halts this CPU until an interrupt; time passes when all are halted.
    pub(super) fn idle(&'static self) {
        let vcpu = self.vcpu();
        let me = self.current.get();
        vcpu.intr_enabled.set(true);
        if self.epoch.is_some() {
            self.take_external();
            self.expire_timers();
        }
        vcpu.halted.set(vcpu.pending.get() == 0);
        while vcpu.halted.get() {
            if self.relinquish() {
                continue;
            }
            let deadline = self
                .cpus
                .iter()
                .map(|vcpu| vcpu.deadline.get())
                .min()
                .unwrap_or(Sbintime::MAX);
            if self.epoch.is_some() {
                self.wait_for_host(deadline);
            } else {
                assert!(
                    deadline != Sbintime::MAX,
                    "deadlock: every thread waits and no callout is armed; asleep: {}",
                    upcall::describe_sleepers()
                );
                self.advance_clock(deadline);
            }
            self.take_external();
            self.expire_timers();
        }
        debug_assert_eq!(me, self.current.get());
        self.deliver_interrupts();
    }

    /// Sleeps in real time until `deadline` or an interrupt from another host thread.
    fn wait_for_host(&self, deadline: Sbintime) {
        let left = if deadline == Sbintime::MAX {
            Duration::from_secs(1)
        } else {
            Duration::from_nanos((deadline - self.now()).as_ns().max(0) as u64)
        };
        let raised = self.external.raised.lock().expect("never poisoned");
        if raised.is_empty() {
            let _ = self.external.wake.wait_timeout(raised, left);
        }
    }

    // The end.

    /// Leaves the machine for good; the first panic is the one that is reported.
    fn leave(&self, payload: Option<Box<dyn Any + Send>>) -> ! {
        let first = self.outcome.take();
        self.outcome.set(first.or(payload));
        let unused = Pcb::new();
        // SAFETY: the host waits in `start`; this context is not continued.
        unsafe { cpu_switch(&unused, &self.host) };
        unreachable!("a machine that was left does not go on")
    }

    pub(super) fn power_off(&self, what: &str) -> ! {
        self.leave(Some(Box::new(what.to_string())))
    }

    /// Unwinds the threads and drops the values, as the first thread, with nothing else running.
    fn tear_down(&'static self) {
        self.teardown.set(true);
        upcall::end();
        self.dropping.set(true);
        loop {
            let Some(index) = self.local_order.borrow_mut().pop() else {
                break;
            };
            // SAFETY: no reference into the vector outlives a statement.
            let value = unsafe { (&mut *self.locals.get())[index].take() };
            if cfg!(miri) {
                // Contexts that are not unwound wait for good in functions that borrow such values.
                core::mem::forget(value);
                continue;
            }
            // A value that wants a lock of a thread that is gone is leaked.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
        }
    }

    /// # Safety
    /// `machine` came from a box, and nothing of it runs any more.
    unsafe fn free(machine: *mut Machine) {
        // SAFETY: promised by the caller. Under Miri contexts wait for good in the middle of functions that borrow the machine,
        // so that only what is large is freed.
        unsafe {
            if cfg!(miri) {
                drop(ptr::read(&raw const (*machine).arena));
            } else {
                drop(Box::from_raw(machine));
            }
        }
    }

    fn free_leaked(&self) {
        loop {
            let Some(value) = self.leaked.borrow_mut().pop() else {
                break;
            };
            if cfg!(miri) {
                core::mem::forget(value);
                continue;
            }
            drop(value);
        }
    }
}

impl Vcpu {
    fn new(cpu: usize) -> Vcpu {
        Vcpu {
            pcpu: Pcpu::new(cpu as u32),
            context: Pcb::new(),
            intr_enabled: Cell::new(true),
            pending: Cell::new(0),
            pending_vectors: RefCell::default(),
            halted: Cell::new(false),
            deadline: Cell::new(Sbintime::MAX),
        }
    }

    fn post(&self, bits: u32) {
        self.pending.set(self.pending.get() | bits);
        self.halted.set(false);
    }
}

extern "C" fn start_boot_cpu<F: FnOnce()>(boot: usize) -> ! {
    // SAFETY: `start` passes the address of its argument and waits for the machine to end.
    let boot = unsafe { &mut *from_word::<Option<F>>(boot).cast_mut() };
    let boot = boot.take().expect("started once");
    let outcome = catch_unwind(AssertUnwindSafe(boot));
    let outcome = outcome.and_then(|()| catch_unwind(|| machine().tear_down()));
    machine().leave(outcome.err())
}

extern "C" fn start_application_cpu(_: usize) -> ! {
    let outcome = catch_unwind(|| upcall::start_application_cpu());
    machine().leave(outcome.err())
}

/// Runs the body of a thread; a panic in it ends the machine.
pub fn call_thread_body(name: &str, body: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
        if payload.is::<Killed>() {
            return;
        }
        if !machine().quiet {
            std::eprintln!("the panic was in kernel thread '{name}'");
        }
        machine().leave(Some(payload));
    }
}

/// Starts the application CPUs.
pub(crate) fn release_cpus() {
    machine().release_cpus();
}

/// Tells whether the machine is ending, so that a thread that is switched to unwinds.
pub(crate) fn teardown_started() -> bool {
    machine().teardown.get()
}

/// Ends the thread by unwinding it.
pub(crate) fn unwind_thread() -> ! {
    resume_unwind(Box::new(Killed))
}

/// A point where another CPU could interfere.
#[inline]
pub(crate) fn interleave() {
    machine().interleave();
}

/// Raises the interrupt `irq` of a `Vector`, as a device would.
pub fn interrupt(irq: u32) {
    machine().raise(irq as usize);
    machine().deliver_interrupts();
}

/// Writes `data` to `addr`, as a device does that interrupts by messages. One that was never handed out is lost.
pub fn message(addr: u64, data: u32) {
    if let Some(cpu) = msi_cpu(addr) {
        machine().raise_on(cpu, data as usize);
        machine().deliver_interrupts();
    }
}

/// Raises interrupts of a machine from other host threads.
#[derive(Clone)]
pub struct InterruptLine(Arc<External>);

impl InterruptLine {
    /// Returns the line into the current machine.
    pub fn of_current() -> InterruptLine {
        InterruptLine(Arc::clone(&machine().external))
    }

    /// Raises the interrupt `irq` of a `Vector`.
    pub fn raise(&self, irq: u32) {
        let mut raised = self.0.raised.lock().expect("never poisoned");
        raised.push(irq as usize);
        self.0.any.store(1, Ordering::Relaxed);
        self.0.wake.notify_one();
    }
}

/// Runs the machine until the clock shows `until`, while this thread sleeps.
pub fn pump(until: Sbintime) {
    let now = machine().now();
    if until > now {
        crate::kern::kern_synch::pause_sbt("pump", until - now);
    }
}

/// Hands `value` to the machine, which drops it as the last thing it does.
pub(crate) fn leak<T>(value: Box<T>) -> &'static T {
    let owned = Owned::new(value);
    // SAFETY: the box is dropped when the machine's threads and values are gone.
    let reference = unsafe { &*owned.pointer.cast::<T>() };
    machine().leaked.borrow_mut().push(owned);
    reference
}

/// A box of a forgotten type.
struct Owned {
    pointer: *mut (),
    drop: unsafe fn(*mut ()),
}

impl Owned {
    fn new<T>(value: Box<T>) -> Owned {
        /// # Safety
        /// `pointer` came from a `Box<T>` and is not used again.
        unsafe fn drop_box<T>(pointer: *mut ()) {
            // SAFETY: promised by the caller.
            drop(unsafe { Box::from_raw(pointer.cast::<T>()) });
        }
        Owned {
            pointer: Box::into_raw(value).cast(),
            drop: drop_box::<T>,
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: `new` made the pair.
        unsafe { (self.drop)(self.pointer) };
    }
}

/// A static that stands for the current machine's value.
pub struct MachineLocal<T> {
    /// Index into `Machine::locals` plus one; zero until first used in this process.
    index: AtomicU32,
    init: fn() -> T,
}

static NEXT_LOCAL: AtomicU32 = AtomicU32::new(1);

impl<T: Send + Sync> MachineLocal<T> {
    #[doc(hidden)]
    pub const fn new(init: fn() -> T) -> MachineLocal<T> {
        MachineLocal {
            index: AtomicU32::new(0),
            init,
        }
    }

    /// Returns the current machine's value, which is made on the first call.
    #[inline]
    pub fn get(&'static self) -> &'static T {
        self.lookup()
    }

    #[inline]
    pub(crate) fn lookup<'a>(&self) -> &'a T {
        let index = self.index.load(Ordering::Acquire) as usize;
        // SAFETY: one host thread runs the machine, and no reference into the vector outlives this function.
        let locals = unsafe { &*machine().locals.get() };
        match locals.get(index.wrapping_sub(1)) {
            // SAFETY: only `make` fills slot `index`, with a `T`; the box lives as long as the machine.
            Some(Some(value)) => unsafe { &*value.pointer.cast::<T>() },
            _ => self.make(),
        }
    }

    #[cold]
    fn make<'a>(&self) -> &'a T {
        let mut index = self.index.load(Ordering::Acquire);
        if index == 0 {
            let fresh = NEXT_LOCAL.fetch_add(1, Ordering::Relaxed);
            index = match self
                .index
                .compare_exchange(0, fresh, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => fresh,
                Err(theirs) => theirs,
            };
        }
        let index = index as usize - 1;
        let machine = machine();
        assert!(
            !machine.dropping.get(),
            "a value of the machine was asked for after it was dropped"
        );
        let value = Owned::new(Box::new((self.init)()));
        // SAFETY: the value is in a box of its own, which lives as long as the machine.
        let reference = unsafe { &*value.pointer.cast::<T>() };
        // SAFETY: no reference into the vector outlives a statement.
        let locals = unsafe { &mut *machine.locals.get() };
        if locals.len() <= index {
            locals.resize_with(index + 1, || None);
        }
        assert!(
            locals[index].is_none(),
            "the value of a machine asked for itself while it was made"
        );
        locals[index] = Some(value);
        machine.local_order.borrow_mut().push(index);
        reference
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
