//! One execution: its CPUs, its interrupts, and the values that belong to it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, OnceCell, RefCell};
use core::panic::Location;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use core::{mem, ptr};
use std::alloc::Layout;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::mutant::{self, Site, SiteKind};
use crate::machine::{Ipi, MAXCPU, Pcpu, PhysRange, upcall};
use crate::param::PAGE_SIZE;
use crate::time::Sbintime;

/// A model and how far it is explored: `Model::new(2).preemptions(3).check(|| …)`.
pub struct Model {
    cpus: usize,
    preemptions: usize,
    interrupts: bool,
    time_passes: bool,
    visits: bool,
    spare: usize,
    mutant: Option<Site>,
}

/// What an exploration met.
pub struct Report {
    /// Executions that were explored.
    pub executions: u64,
    /// Where something can be left out; empty for a mutant.
    pub sites: BTreeSet<Site>,
}

/// Steps of one execution; more of them are a thread that waits busily for something that does not come.
const MOST_STEPS: usize = 20_000;

/// Turns of busy waiting in one execution, of all threads together, after which the rest of it is run in one order alone.
///
/// loom takes a turn for no preemption: two threads that wait for a third could pass the turn to and fro for ever, and each length of
/// that would be another execution. Beyond this the turn goes to who has waited least, so that the third comes to run.
pub const MOST_TURNS: u32 = 8;

impl Model {
    /// Makes a model of so many CPUs, each with one thread; the first of them is the one that `check` runs.
    pub fn new(cpus: usize) -> Model {
        assert!((1..loom::MAX_THREADS).contains(&cpus) && cpus <= MAXCPU);
        Model {
            cpus,
            preemptions: 2,
            interrupts: false,
            time_passes: false,
            visits: false,
            spare: 96,
            mutant: None,
        }
    }

    /// Sets how often in an execution a thread that could go on is stopped in favour of another; otherwise 2.
    ///
    /// All executions with at most so many are explored, as far as the first [`MOST_TURNS`] turns of busy waiting. Waiting does not count.
    pub fn preemptions(mut self, bound: usize) -> Model {
        self.preemptions = bound;
        self
    }

    /// Lets CPUs interrupt each other. Each step of a CPU may then be preceded by an interrupt, which costs a step.
    pub fn interrupts(mut self) -> Model {
        self.interrupts = true;
        self
    }

    /// Ends sleeps that have a deadline when no other thread can go on.
    pub fn time_passes(mut self) -> Model {
        self.time_passes = true;
        self
    }

    /// Lets a thread go to the CPU of another (`sched_bind`), which it shares with that one's thread: a critical section is
    /// what only one of both is in. Each costs two steps. Not for a model with interrupts, which a visitor would have to take.
    pub fn visits(mut self) -> Model {
        self.visits = true;
        self
    }

    /// Leaves out what is asked for at `site`.
    pub fn mutant(mut self, site: Option<Site>) -> Model {
        self.mutant = site;
        self
    }

    /// Explores what `body` and the threads that it spawns can do. Panics at the first execution in which something is wrong.
    pub fn check(self, body: impl Fn() + Send + Sync + 'static) -> Report {
        mutant::choose(self.mutant.clone());
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(self.preemptions);
        builder.max_branches = MOST_STEPS;
        let executions = std::sync::Arc::new(AtomicU64::new(0));
        let count = std::sync::Arc::clone(&executions);
        let explored = std::sync::Arc::new((self, body));
        builder.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let explored = std::sync::Arc::clone(&explored);
            // loom's first thread has a small stack.
            let first = loom::thread::Builder::new().stack_size(STACK / size_of::<usize>());
            let first = first.spawn(move || Execution::run(&explored.0, &explored.1));
            let ended = first.map(|first| first.join());
            assert!(matches!(ended, Ok(Ok(()))), "the first thread ends");
        });
        Report {
            executions: executions.load(Ordering::Relaxed),
            sites: mutant::met(),
        }
    }
}

std::thread_local! {
    static EXECUTION: Cell<*const Execution> = const { Cell::new(ptr::null()) };
    /// The CPU on which the running code runs.
    static CPU: Cell<usize> = const { Cell::new(0) };
    static NUMBER: Cell<u32> = const { Cell::new(0) };
}

/// One run of a model's threads.
pub(super) struct Execution {
    number: u32,
    interrupts: bool,
    time_passes: bool,
    visits: bool,
    spare: usize,
    pub(super) narrow: Store<loom::sync::atomic::AtomicU32>,
    pub(super) wide: Store<loom::sync::atomic::AtomicU64>,
    pub(super) cells: Store<loom::cell::UnsafeCell<()>>,
    cpus: Vec<Vcpu>,
    /// CPUs that have a thread.
    started: Cell<usize>,
    threads: RefCell<Vec<Option<loom::thread::JoinHandle<()>>>>,
    clock: Cell<Sbintime>,
    random: Cell<u64>,
    /// Turns of busy waiting so far.
    turns: Cell<u32>,
    locals: RefCell<HashMap<usize, Rc<dyn Any>>>,
    leaked: RefCell<Vec<Box<dyn Owned>>>,
    memory: OnceCell<Memory>,
}

/// A CPU, which is a thread of loom's.
struct Vcpu {
    pcpu: Pcpu,
    intr_enabled: Cell<bool>,
    /// `IDLE`, `SERVED`, and the interrupts that have not been taken yet.
    line: loom::sync::atomic::AtomicU32,
    deadline: Cell<Sbintime>,
    /// Where the CPU's thread is: here, or on a visit. What is noted of the thread stays in this `pcpu`.
    at: Cell<usize>,
    /// A thread is in a critical section here.
    occupied: loom::sync::atomic::AtomicU32,
}

/// The CPU's thread waits: whoever interrupts it runs the handler in its place.
const IDLE: u32 = 1;
/// A handler runs on the idle CPU.
const SERVED: u32 = 2;
const TIMER: u32 = 4;
const PREEMPT: u32 = 8;
const RENDEZVOUS: u32 = 16;

/// loom's objects of one kind. They are made before the first thread is started, so that all threads know of them.
pub(super) struct Store<T: 'static> {
    items: RefCell<Vec<Box<T>>>,
    taken: Cell<usize>,
    make: fn() -> T,
    sealed: Cell<bool>,
}

impl<T> Store<T> {
    fn new(make: fn() -> T) -> Store<T> {
        Store {
            items: RefCell::default(),
            taken: Cell::new(0),
            make,
            sealed: Cell::new(false),
        }
    }

    pub(super) fn take(&self) -> usize {
        let index = self.taken.replace(self.taken.get() + 1);
        if index >= self.items.borrow().len() {
            assert!(!self.sealed.get(), "the model has too few spare atomics");
            self.items.borrow_mut().push(Box::new((self.make)()));
        }
        index
    }

    fn seal(&self, spare: usize) {
        if !self.sealed.replace(true) {
            let mut items = self.items.borrow_mut();
            let wanted = self.taken.get() + spare;
            items.resize_with(wanted, || Box::new((self.make)()));
        }
    }

    pub(super) fn get(&self, index: usize) -> &'static T {
        let item: *const T = &*self.items.borrow()[index];
        // SAFETY: the box lives as long as the execution, which outlives everything that runs in it.
        unsafe { &*item }
    }
}

/// Returns the execution that this code is part of.
pub(super) fn execution() -> &'static Execution {
    let execution = EXECUTION.get();
    assert!(!execution.is_null(), "kernel code runs only inside a model");
    // SAFETY: `run` keeps it alive while it is set.
    unsafe { &*execution }
}

/// Runs one of loom's operations, in which other threads, on other CPUs, may run.
pub(super) fn switching<R>(operation: impl FnOnce() -> R) -> R {
    let cpu = CPU.get();
    let result = operation();
    CPU.set(cpu);
    result
}

/// Lets others go on while this thread waits busily.
fn wait_a_turn() {
    let turns = &execution().turns;
    turns.set(turns.get() + 1);
    if turns.get() == MOST_TURNS {
        loom::stop_exploring();
    }
    switching(loom::thread::yield_now);
}

impl Execution {
    fn run(model: &Model, body: &impl Fn()) {
        let number = NUMBER.get() + 1;
        NUMBER.set(number);
        mutant::forget_steps();
        CPU.set(0);
        let execution = Box::new(Execution {
            number,
            interrupts: model.interrupts,
            time_passes: model.time_passes,
            visits: model.visits,
            spare: model.spare,
            narrow: Store::new(|| loom::sync::atomic::AtomicU32::new(0)),
            wide: Store::new(|| loom::sync::atomic::AtomicU64::new(0)),
            cells: Store::new(|| loom::cell::UnsafeCell::new(())),
            cpus: (0..model.cpus).map(Vcpu::new).collect(),
            started: Cell::new(0),
            threads: RefCell::default(),
            clock: Cell::new(Sbintime::ZERO),
            random: Cell::new(1),
            turns: Cell::new(0),
            locals: RefCell::default(),
            leaked: RefCell::default(),
            memory: OnceCell::new(),
        });
        for vcpu in &execution.cpus {
            let address = (&raw const vcpu.pcpu).cast_mut();
            vcpu.pcpu.pc_self.store(address, Ordering::Relaxed);
        }
        EXECUTION.set(&raw const *execution);
        execution.start_cpu();
        body();
        let threads = execution.threads.borrow().len();
        (0..threads).for_each(|thread| execution.join(thread));
        let locals = execution.locals.take();
        drop(locals);
        drop(execution.leaked.take());
        EXECUTION.set(ptr::null());
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn ncpus(&self) -> usize {
        self.cpus.len()
    }

    fn vcpu(&'static self, cpu: usize) -> &'static Vcpu {
        &self.cpus[cpu]
    }

    pub(super) fn pcpu(&'static self, cpu: usize) -> &'static Pcpu {
        &self.cpus[cpu].pcpu
    }

    pub(super) fn now(&self) -> Sbintime {
        self.clock.get()
    }

    pub(super) fn random(&self) -> u64 {
        let next = self.random.get().wrapping_mul(0x5851_f42d_4c95_7f2d) | 1;
        self.random.set(next);
        next >> 16
    }

    /// Gives the next CPU its thread; returns its number.
    fn start_cpu(&self) -> usize {
        let cpu = self.started.replace(self.started.get() + 1);
        assert!(cpu < self.cpus.len(), "the model has too few CPUs");
        let caller = CPU.replace(cpu);
        upcall::adopt_threads();
        CPU.set(caller);
        cpu
    }

    fn join(&self, index: usize) {
        let handle = self.threads.borrow_mut()[index].take();
        if let Some(handle) = handle {
            let waits = Idle::enter();
            switching(|| handle.join()).expect("a panic ends the model");
            drop(waits);
        }
    }
}

impl Vcpu {
    fn new(cpu: usize) -> Vcpu {
        Vcpu {
            pcpu: Pcpu::new(cpu as u32),
            intr_enabled: Cell::new(true),
            line: loom::sync::atomic::AtomicU32::new(0),
            deadline: Cell::new(Sbintime::MAX),
            at: Cell::new(cpu),
            occupied: loom::sync::atomic::AtomicU32::new(0),
        }
    }
}

/// A thread of the model, which has the next CPU.
pub struct JoinHandle<R> {
    index: usize,
    result: Rc<Cell<Option<R>>>,
}

impl<R> JoinHandle<R> {
    /// Waits for its end, and returns what it returned. Otherwise the end of the model waits.
    pub fn join(self) -> R {
        execution().join(self.index);
        self.result.take().expect("it has ended")
    }
}

/// What is handed to another thread of the same execution.
struct OneHost<T>(T);

// SAFETY: the threads of an execution are coroutines of one host thread.
unsafe impl<T> Send for OneHost<T> {}

impl<T> OneHost<T> {
    fn into_inner(self) -> T {
        self.0
    }
}

/// Bytes of a thread's stack.
const STACK: usize = 1 << 20;

/// Starts a thread on the next CPU.
pub fn spawn<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
    let execution = execution();
    execution.narrow.seal(execution.spare);
    execution.wide.seal(execution.spare);
    execution.cells.seal(execution.spare);
    let cpu = execution.start_cpu();
    let result = Rc::new(Cell::new(None));
    let place = OneHost(Rc::clone(&result));
    let start = move || {
        CPU.set(cpu);
        place.into_inner().set(Some(body()));
        mem::forget(Idle::enter());
    };
    let thread = loom::thread::Builder::new().stack_size(STACK / size_of::<usize>());
    let handle = switching(|| thread.spawn(start)).expect("loom has no more threads");
    let mut threads = execution.threads.borrow_mut();
    threads.push(Some(handle));
    JoinHandle {
        index: threads.len() - 1,
        result,
    }
}

// Interrupts.

/// Takes the interrupts that have come, between two steps of this CPU.
pub(super) fn poll() {
    let execution = execution();
    if !execution.interrupts {
        return;
    }
    let vcpu = execution.vcpu(CPU.get());
    if vcpu.intr_enabled.get() && switching(|| vcpu.line.load(Ordering::Acquire)) != 0 {
        vcpu.take_interrupts(0);
    }
}

impl Vcpu {
    /// Runs the handlers of what has come, and leaves `state` on the line.
    fn take_interrupts(&'static self, state: u32) {
        let came = switching(|| self.line.swap(state, Ordering::AcqRel));
        self.run_handlers(came);
    }

    fn run_handlers(&'static self, came: u32) {
        let enabled = self.intr_enabled.replace(false);
        let critnest = &self.pcpu.critnest;
        critnest.fetch_add(1, Ordering::Relaxed);
        if came & TIMER != 0 {
            let execution = execution();
            let deadline = self.deadline.replace(Sbintime::MAX);
            if deadline != Sbintime::MAX {
                execution.clock.set(execution.now().max(deadline));
            }
            upcall::timer_interrupt();
        }
        if came & PREEMPT != 0 {
            upcall::ipi_interrupt(Ipi::Preempt);
        }
        if came & RENDEZVOUS != 0 {
            upcall::ipi_interrupt(Ipi::Rendezvous);
        }
        critnest.fetch_sub(1, Ordering::Relaxed);
        self.intr_enabled.set(enabled);
    }

    /// Interrupts this CPU from another, or runs the handlers in its place while it idles.
    fn interrupt(&'static self, cpu: usize, what: u32) {
        assert!(execution().interrupts, "the model has no interrupts");
        let mut line = 0;
        loop {
            let runs_here = line == IDLE;
            let new = if runs_here {
                IDLE | SERVED
            } else {
                line | what
            };
            let exchange = || {
                self.line
                    .compare_exchange(line, new, Ordering::AcqRel, Ordering::Acquire)
            };
            match switching(exchange) {
                Err(now) => line = now,
                Ok(_) if !runs_here => return,
                Ok(_) => break,
            }
        }
        let caller = CPU.replace(cpu);
        let mut came = what;
        while came != 0 {
            self.run_handlers(came);
            // What others have sent meanwhile is ours too.
            came = switching(|| self.line.fetch_and(IDLE | SERVED, Ordering::AcqRel));
            came &= !(IDLE | SERVED);
        }
        CPU.set(caller);
        assert!(
            self.line_changes(IDLE | SERVED, IDLE),
            "a third CPU interrupts one that is being served: not modelled"
        );
    }

    /// Changes the state of the line, if it is `from`. Without interrupts there is no line.
    fn line_changes(&'static self, from: u32, to: u32) -> bool {
        let exchange = || {
            self.line
                .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
        };
        !execution().interrupts || switching(exchange).is_ok()
    }
}

/// While this lives the CPU waits, and interrupts are handled by whoever sends them.
struct Idle {
    vcpu: &'static Vcpu,
    /// What the waiting thread had.
    spinlock_count: u32,
    thread: *mut (),
}

impl Idle {
    fn enter() -> Idle {
        let vcpu = execution().vcpu(CPU.get());
        // What has come before is handled first.
        while !vcpu.line_changes(0, IDLE) {
            vcpu.take_interrupts(0);
        }
        // From now on handlers find an idle CPU.
        let pcpu = &vcpu.pcpu;
        let idle = pcpu.idlethread.load(Ordering::Relaxed);
        Idle {
            vcpu,
            spinlock_count: pcpu.spinlock_count.swap(0, Ordering::Relaxed),
            thread: pcpu.curthread.swap(idle, Ordering::Relaxed),
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // A handler that runs meanwhile comes to its end first.
        while !self.vcpu.line_changes(IDLE, 0) {
            wait_a_turn();
        }
        let pcpu = &self.vcpu.pcpu;
        pcpu.spinlock_count
            .store(self.spinlock_count, Ordering::Relaxed);
        pcpu.curthread.store(self.thread, Ordering::Relaxed);
    }
}

/// Lets the event timer of `cpu` expire now, if it is set; the clock moves on to its time.
pub fn timer_interrupt(cpu: usize) {
    let vcpu = execution().vcpu(cpu);
    vcpu.interrupt(cpu, TIMER);
}

#[track_caller]
pub(super) fn send(cpu: usize, ipi: Ipi) {
    if mutant::is_taken(Location::caller(), SiteKind::Interrupt) {
        return;
    }
    let what = match ipi {
        Ipi::Preempt => PREEMPT,
        Ipi::Rendezvous => RENDEZVOUS,
        Ipi::Stop => panic!("a model is not stopped"),
    };
    execution().vcpu(cpu).interrupt(cpu, what);
}

pub(super) fn set_deadline(deadline: Sbintime) {
    execution().vcpu(CPU.get()).deadline.set(deadline);
}

pub(super) fn curcpu() -> usize {
    execution().vcpu(CPU.get()).at.get()
}

/// What is noted of the running thread, which it takes along when it visits another CPU.
pub(super) fn pcpu() -> &'static Pcpu {
    execution().pcpu(CPU.get())
}

/// Moves the running thread to `cpu`.
pub(crate) fn visit(cpu: usize) {
    let execution = execution();
    let at = &execution.vcpu(CPU.get()).at;
    assert!(
        execution.visits && !execution.interrupts || cpu == at.get(),
        "the model has no visits"
    );
    at.set(cpu);
}

/// Returns to the CPU that is the running thread's own.
pub(crate) fn end_visit() {
    execution().vcpu(CPU.get()).at.set(CPU.get());
}

/// Begins an outermost critical section: a visitor, or whom we visit, leaves its own first.
pub(super) fn occupy() {
    if execution().visits {
        let occupied = &execution().vcpu(curcpu()).occupied;
        let take = || occupied.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        while switching(take).is_err() {
            wait_a_turn();
        }
    }
}

/// Ends it.
pub(super) fn vacate() {
    if execution().visits {
        let occupied = &execution().vcpu(curcpu()).occupied;
        switching(|| occupied.store(0, Ordering::Release));
    }
}

pub(super) fn intr_enabled() -> &'static Cell<bool> {
    &execution().vcpu(CPU.get()).intr_enabled
}

/// A busy wait: others go on first.
pub(super) fn spin_wait() {
    poll();
    wait_a_turn();
}

// Threads.

/// What a thread is blocked with.
pub struct Pcb {
    state: AtomicU8,
    thread: RefCell<Option<loom::thread::Thread>>,
}

// SAFETY: all threads of an execution are coroutines of one host thread.
unsafe impl Sync for Pcb {}
// SAFETY: as above.
unsafe impl Send for Pcb {}

const RUNS: u8 = 0;
const BLOCKED: u8 = 1;
const WOKEN: u8 = 2;

impl Pcb {
    /// Makes the state of a thread that runs.
    pub const fn new() -> Pcb {
        Pcb {
            state: AtomicU8::new(RUNS),
            thread: RefCell::new(None),
        }
    }
}

impl Default for Pcb {
    fn default() -> Pcb {
        Pcb::new()
    }
}

/// Blocks the running thread, whose state `pcb` is, until `make_runnable`. Once `released` has run it can be woken.
pub(crate) fn blocked(pcb: &Pcb, released: impl FnOnce()) {
    pcb.state.store(BLOCKED, Ordering::Relaxed);
    *pcb.thread.borrow_mut() = Some(loom::thread::current());
    released();
    let execution = execution();
    let vcpu = execution.vcpu(CPU.get());
    let waits = Idle::enter();
    while pcb.state.load(Ordering::Relaxed) != WOKEN {
        if execution.time_passes && vcpu.deadline.get() != Sbintime::MAX {
            wait_a_turn();
            if pcb.state.load(Ordering::Relaxed) != WOKEN {
                vcpu.run_handlers(TIMER);
            }
        } else {
            switching(loom::thread::park);
        }
    }
    drop(waits);
    pcb.state.store(RUNS, Ordering::Relaxed);
}

/// Ends the wait of the thread whose state `pcb` is.
#[track_caller]
pub(crate) fn make_runnable(pcb: &Pcb) {
    if mutant::is_taken(Location::caller(), SiteKind::Wakeup) {
        return;
    }
    let before = pcb.state.swap(WOKEN, Ordering::Relaxed);
    assert!(
        before == BLOCKED,
        "a thread is woken that does not wait, or twice"
    );
    let thread = pcb.thread.borrow().clone();
    if let Some(thread) = thread {
        switching(|| thread.unpark());
    }
}

// Values of the execution.

/// Something that is only kept to be dropped.
trait Owned {}

impl<T> Owned for T {}

/// Hands `value` to the execution, which drops it as the last thing it does.
pub(crate) fn leak<T: 'static>(value: Box<T>) -> &'static T {
    let pointer: *const T = &*value;
    execution().leaked.borrow_mut().push(value);
    // SAFETY: the box is dropped when nothing of the execution runs any more.
    unsafe { &*pointer }
}

/// Pages of an execution: some slabs.
const PAGES: usize = 64;

/// The memory of an execution, zero at first.
struct Memory {
    start: *mut u8,
    range: [PhysRange; 1],
}

impl Memory {
    const LAYOUT: Layout = match Layout::from_size_align(PAGES * PAGE_SIZE, PAGES * PAGE_SIZE) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    };

    fn new() -> Memory {
        // SAFETY: not of size 0.
        let start = unsafe { std::alloc::alloc_zeroed(Memory::LAYOUT) };
        assert!(!start.is_null(), "the host has no memory");
        let base = start.expose_provenance() as u64;
        let end = base + Memory::LAYOUT.size() as u64;
        Memory {
            start,
            range: [PhysRange { start: base, end }],
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the execution has ended.
        unsafe { std::alloc::dealloc(self.start, Memory::LAYOUT) }
    }
}

/// The memory of this execution.
pub(super) fn phys_avail() -> &'static [PhysRange] {
    &execution().memory.get_or_init(Memory::new).range
}

/// A static that stands for the current execution's value.
pub struct MachineLocal<T> {
    init: fn() -> T,
}

impl<T: Send + Sync + 'static> MachineLocal<T> {
    #[doc(hidden)]
    pub const fn new(init: fn() -> T) -> MachineLocal<T> {
        MachineLocal { init }
    }

    /// Returns the current execution's value, which is made on the first call.
    pub fn get(&'static self) -> &'static T {
        self.lookup()
    }

    pub(crate) fn lookup<'a>(&self) -> &'a T {
        let key = &raw const *self as usize;
        let known = execution().locals.borrow().get(&key).cloned();
        let value = known.unwrap_or_else(|| {
            let value: Rc<dyn Any> = Rc::new((self.init)());
            execution()
                .locals
                .borrow_mut()
                .insert(key, Rc::clone(&value));
            value
        });
        let value: *const T = value.downcast_ref::<T>().expect("one type for each static");
        // SAFETY: the execution keeps the value as long as it lasts.
        unsafe { &*value }
    }
}

/// Runs the body of a thread.
pub fn call_thread_body(_name: &str, body: impl FnOnce()) {
    body();
}

/// A point where another CPU could interfere: here each step is one.
pub(crate) fn interleave() {}

/// A model has no teardown: its threads end by themselves.
pub(crate) fn teardown_started() -> bool {
    false
}
