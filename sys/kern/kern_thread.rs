//! Threads: their structure, their start and their end.
//!
//! FreeBSD: sys/sys/proc.h, sys/sys/priority.h, sys/kern/kern_thread.c, sys/kern/kern_kthread.c

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use intrusive_collections::{LinkedList, LinkedListLink};

use super::kern_mutex::{RawSpin, SpinMutex};
use super::kern_rmlock::{self, RmTrackers};
use super::kern_synch::WChan;
use super::kern_timeout::CalloutNode;
use super::lock_order::Allproc;
#[cfg(feature = "lock_profiling")]
use super::subr_lock;
use super::subr_sleepqueue as sleepq;
use super::subr_turnstile::{ContestedAdapter, Turnstile};
use super::subr_witness as witness;
use super::{kern_synch, sched};
use crate::machine::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Cell, Ordering, UnsafeCell,
};
use crate::machine::words::{from_word, to_word};
use crate::machine::{self, CpuSet, KStack, Pcb};
use crate::machine_local;

/// How urgent a thread is: lower numbers run first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pri(pub u8);

impl Pri {
    /// Interrupt threads that nothing may delay.
    pub const PI_REALTIME: Pri = Pri(0);
    /// Network interrupts.
    pub const PI_NET: Pri = Pri(8);
    /// Interrupts of slow terminals.
    pub const PI_TTY: Pri = Pri(16);
    /// Software interrupts.
    #[doc(alias = "PI_SWI")]
    pub const PI_SOFT: Pri = Pri(24);
    /// The software interrupt of the network, netisr.
    pub const PI_SWINET: Pri = Pri(28);
    /// Callouts.
    pub const PI_SOFTCLOCK: Pri = Pri(32);
    /// Least urgent kernel thread that preempts programs is `PRI_MAX_KERN`.
    pub const PVM: Pri = Pri(84);
    /// Sleeping on a full or empty socket.
    pub const PSOCK: Pri = Pri(104);
    /// Waiting for an event of another kind.
    pub const PWAIT: Pri = Pri(108);
    /// Just passing time.
    pub const PPAUSE: Pri = Pri(116);
    /// Last of the kernel's own.
    pub const PRI_MAX_KERN: Pri = Pri(119);
    /// Programs.
    pub const PUSER: Pri = Pri(120);
    /// Least urgent program.
    pub const PRI_MAX_TIMESHARE: Pri = Pri(223);
    /// Runs only when nothing else does.
    pub const IDLE: Pri = Pri(255);
    /// Less urgent than anything that was lent.
    pub(crate) const MIN_URGENCY: Pri = Pri(255);

    /// Tells whether `self` is more urgent than `other`.
    pub const fn is_before(self, other: Pri) -> bool {
        self.0 < other.0
    }

    /// Tells whether a thread that wakes with this priority interrupts one that runs with `running` on the same CPU.
    ///
    /// Programs share their CPU by time slices; the kernel's threads take it from them at once.
    pub(crate) const fn preempts(self, running: Pri) -> bool {
        self.0 < running.0
            && (self.0 <= Pri::PRI_MAX_KERN.0 || running.0 > Pri::PRI_MAX_TIMESHARE.0)
    }
}

impl fmt::Debug for Pri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a thread is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ThreadState {
    /// Not started, or ended.
    #[doc(alias = "TDS_INACTIVE")]
    Inactive = 0,
    /// On a CPU.
    #[doc(alias = "TDS_RUNNING")]
    Running = 1,
    /// On a run queue.
    #[doc(alias = "TDS_RUNQ")]
    RunQueue = 2,
    /// Asleep on a sleep queue.
    #[doc(alias = "TDI_SLEEPING")]
    Sleeping = 3,
    /// Waiting for a lock on a turnstile.
    #[doc(alias = "TDI_LOCK")]
    Blocked = 4,
}

/// `td_oncpu`, `td_rqcpu` and `td_bound` of a thread that is on no CPU.
pub(crate) const NOCPU: u32 = u32::MAX;

/// A reference to a thread; threads are recycled but never freed, so it is good for as long as the machine.
pub type ThreadRef = &'static Thread;

/// A thread of the kernel. Aligned so that locks can keep flags below its address.
#[repr(align(64))]
pub struct Thread {
    /// Registers while it does not run.
    pub(crate) td_pcb: Pcb,
    /// CPU that its registers are on; `NOCPU` when they are saved.
    pub(crate) td_oncpu: AtomicU32,
    /// CPU that it ran on last.
    pub(crate) td_lastcpu: AtomicU32,
    /// CPU on whose run queue it is.
    pub(crate) td_rqcpu: AtomicU32,
    /// CPU that it must run on.
    pub(crate) td_bound: AtomicU32,
    /// Depth of `sched_pin`.
    pub(crate) td_pinned: AtomicU32,
    /// Priority that it runs with.
    pub(crate) td_priority: AtomicU8,
    /// Priority of its own, without what was lent.
    pub(crate) td_base_pri: AtomicU8,
    td_state: AtomicU8,
    /// Index of the queue that it is on, with `td_runq`: under the lock of the run queue.
    pub(crate) td_rqindex: AtomicU8,
    pub(crate) td_runq: LinkedListLink,
    /// On a queue of a turnstile: under the chain's lock.
    pub(crate) td_lockq: LinkedListLink,
    /// Turnstile it waits on, and those whose locks it owns: under `TD_CONTESTED`.
    pub(crate) td_blocked: Cell<Option<&'static Turnstile>>,
    pub(crate) td_contested: UnsafeCell<LinkedList<ContestedAdapter>>,
    td_turnstile: Cell<Option<&'static Turnstile>>,
    /// On a sleep queue: under the chain's lock, with what it waits for.
    pub(crate) td_slpq: LinkedListLink,
    pub(crate) td_wchan: AtomicUsize,
    /// Address and length of the reason to wait, and their generation: odd while they change.
    td_wmesg: [AtomicUsize; 2],
    td_wmesg_gen: AtomicU32,
    pub(crate) td_flags: AtomicU32,
    pub(crate) td_slpcallout: CalloutNode,
    /// Read locks that it holds: such a thread passes waiting writers, so that it cannot deadlock with them.
    pub(crate) td_rw_rlocks: AtomicU32,
    /// The same of sx locks that it shares.
    pub(crate) td_sx_slocks: AtomicU32,
    /// Read-mostly locks that it reads, and its place among the pinned threads that its CPU does not run.
    pub(crate) td_rm: RmTrackers,
    pub(crate) td_rmlink: LinkedListLink,
    /// Times that it was given a CPU.
    pub(crate) td_switches: AtomicU64,
    td_tid: AtomicU32,
    td_name: UnsafeCell<ThreadName>,
    td_start: UnsafeCell<Option<Box<dyn FnOnce() + Send>>>,
    td_kstack: UnsafeCell<Option<KStack>>,
    #[cfg(any(debug_assertions, feature = "witness"))]
    td_witness: witness::HeldLocks,
    #[cfg(feature = "lock_profiling")]
    td_profile: subr_lock::ProfiledLocks,
}

// SAFETY: every cell stands under the lock named at its declaration, or belongs to the thread itself.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

/// The thread should leave an interruptible sleep with `EINTR`.
#[doc(alias = "TDF_NEEDSIGCHK")]
pub(crate) const TDF_INTERRUPTED: u32 = 1;
/// It sleeps interruptibly.
pub(crate) const TDF_SINTR: u32 = 2;
/// Its sleep timed out.
pub(crate) const TDF_TIMEOUT: u32 = 4;
/// It was interrupted in its sleep.
pub(crate) const TDF_WAS_INTERRUPTED: u32 = 8;
/// It is an idle thread.
pub(crate) const TDF_IDLETD: u32 = 16;
/// It has ended; the struct may be recycled once it is off its CPU.
pub(crate) const TDF_EXITED: u32 = 32;
/// Its turn is over: it goes behind others of its priority, whoever takes the CPU from it.
pub(crate) const TDF_SLICEEND: u32 = 64;
/// It leaves for the CPU that it is bound to: whoever comes next here puts it on that CPU's queue.
pub(crate) const TDF_MIGRATING: u32 = 128;

const MAXCOMLEN: usize = 31;

/// Names are short and kept by value, so that a debugger or a panic finds them without following a pointer.
struct ThreadName {
    len: u8,
    bytes: [u8; MAXCOMLEN],
}

impl ThreadName {
    fn new(name: &str) -> ThreadName {
        let mut len = name.len().min(MAXCOMLEN);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        let mut bytes = [0; MAXCOMLEN];
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        ThreadName {
            len: len as u8,
            bytes,
        }
    }
}

impl Thread {
    fn new() -> Thread {
        Thread {
            td_pcb: Pcb::new(),
            td_oncpu: AtomicU32::new(NOCPU),
            td_lastcpu: AtomicU32::new(0),
            td_rqcpu: AtomicU32::new(NOCPU),
            td_bound: AtomicU32::new(NOCPU),
            td_pinned: AtomicU32::new(0),
            td_priority: AtomicU8::new(Pri::PUSER.0),
            td_base_pri: AtomicU8::new(Pri::PUSER.0),
            td_state: AtomicU8::new(ThreadState::Inactive as u8),
            td_rqindex: AtomicU8::new(0),
            td_runq: LinkedListLink::new(),
            td_lockq: LinkedListLink::new(),
            td_blocked: Cell::new(None),
            td_contested: UnsafeCell::new(LinkedList::new(ContestedAdapter::NEW)),
            td_turnstile: Cell::new(None),
            td_slpq: LinkedListLink::new(),
            td_wchan: AtomicUsize::new(0),
            td_wmesg: [const { AtomicUsize::new(0) }; 2],
            td_wmesg_gen: AtomicU32::new(0),
            td_flags: AtomicU32::new(0),
            td_slpcallout: CalloutNode::new_direct(sleepq::timeout),
            td_rw_rlocks: AtomicU32::new(0),
            td_sx_slocks: AtomicU32::new(0),
            td_rm: RmTrackers::new(),
            td_rmlink: LinkedListLink::new(),
            td_switches: AtomicU64::new(0),
            td_tid: AtomicU32::new(0),
            td_name: UnsafeCell::new(ThreadName::new("")),
            td_start: UnsafeCell::new(None),
            td_kstack: UnsafeCell::new(None),
            #[cfg(any(debug_assertions, feature = "witness"))]
            td_witness: witness::HeldLocks::new(),
            #[cfg(feature = "lock_profiling")]
            td_profile: subr_lock::ProfiledLocks::new(),
        }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        // SAFETY: it changes only while the thread is being made.
        let name = unsafe { &*self.td_name.get() };
        core::str::from_utf8(&name.bytes[..usize::from(name.len)]).unwrap_or("?")
    }

    /// Returns the number.
    pub fn tid(&self) -> u32 {
        self.td_tid.load(Ordering::Relaxed)
    }

    /// Returns what it is doing.
    pub fn state(&self) -> ThreadState {
        match self.td_state.load(Ordering::Relaxed) {
            1 => ThreadState::Running,
            2 => ThreadState::RunQueue,
            3 => ThreadState::Sleeping,
            4 => ThreadState::Blocked,
            _ => ThreadState::Inactive,
        }
    }

    /// Returns the priority that it runs with.
    #[inline]
    pub fn priority(&self) -> Pri {
        Pri(self.td_priority.load(Ordering::SeqCst))
    }

    /// Returns the CPU that it runs on or ran on last.
    pub fn cpu(&self) -> usize {
        self.td_lastcpu.load(Ordering::Relaxed) as usize
    }

    /// Returns the CPUs that it may run on, as `sched_bind` left them.
    #[doc(alias = "cpuset_getaffinity")]
    pub fn affinity(&self) -> CpuSet {
        match self.td_bound.load(Ordering::Relaxed) {
            NOCPU => CpuSet::all(),
            cpu => CpuSet::single(cpu as usize),
        }
    }

    /// Returns why it sleeps or which lock it waits for; empty if it does neither.
    pub fn wmesg(&self) -> &'static str {
        let before = self.td_wmesg_gen.load(Ordering::Acquire);
        let address = self.td_wmesg[0].load(Ordering::Acquire);
        let len = self.td_wmesg[1].load(Ordering::Acquire);
        let waits = matches!(self.state(), ThreadState::Sleeping | ThreadState::Blocked);
        if !waits
            || address == 0
            || !before.is_multiple_of(2)
            || self.td_wmesg_gen.load(Ordering::Relaxed) != before
        {
            return "";
        }
        // SAFETY: the generation shows that both belong to one call of `set_wmesg`.
        unsafe {
            core::str::from_utf8_unchecked(core::slice::from_raw_parts(from_word(address), len))
        }
    }

    /// Says why the thread, which is the running one, is about to wait.
    pub(crate) fn set_wmesg(&self, wmesg: &'static str) {
        let generation = self.td_wmesg_gen.load(Ordering::Relaxed);
        self.td_wmesg_gen
            .store(generation.wrapping_add(1), Ordering::Release);
        self.td_wmesg[0].store(to_word(wmesg.as_ptr()), Ordering::Release);
        self.td_wmesg[1].store(wmesg.len(), Ordering::Release);
        self.td_wmesg_gen
            .store(generation.wrapping_add(2), Ordering::Release);
    }

    /// Returns how often it was given a CPU.
    pub fn switches(&self) -> u64 {
        self.td_switches.load(Ordering::Relaxed)
    }

    /// Interrupts the thread's present or next interruptible sleep, as a signal would.
    #[doc(alias = "sleepq_abort")]
    pub fn interrupt(&'static self) {
        self.td_flags.fetch_or(TDF_INTERRUPTED, Ordering::SeqCst);
        sleepq::abort(self);
    }

    /// Tells whether `interrupt` was called, and forgets it.
    pub fn take_interrupt(&self) -> bool {
        self.td_flags.fetch_and(!TDF_INTERRUPTED, Ordering::SeqCst) & TDF_INTERRUPTED != 0
    }

    /// Tells whether it is on a CPU, so that spinning for it makes sense.
    #[inline]
    pub(crate) fn is_running(&self) -> bool {
        self.td_oncpu.load(Ordering::Relaxed) != NOCPU
    }

    /// Its address, as lock words keep it.
    #[inline]
    pub(crate) fn as_word(&self) -> usize {
        to_word(self)
    }

    /// The thread whose address a lock word keeps.
    ///
    /// # Safety
    /// `word` came from `as_word` on this machine.
    #[inline]
    pub(crate) unsafe fn from_word(word: usize) -> ThreadRef {
        // SAFETY: threads are never freed while the machine lives.
        unsafe { &*from_word(word) }
    }

    pub(crate) fn set_state(&self, state: ThreadState) {
        self.td_state.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn take_turnstile(&self) -> &'static Turnstile {
        self.td_turnstile
            .take()
            .expect("a running thread owns a turnstile")
    }

    pub(crate) fn give_turnstile(&self, turnstile: &'static Turnstile) {
        self.td_turnstile.set(Some(turnstile));
    }

    #[cfg(any(debug_assertions, feature = "witness"))]
    pub(crate) fn witness(&self) -> &witness::HeldLocks {
        &self.td_witness
    }

    #[cfg(feature = "lock_profiling")]
    pub(super) fn profiled_locks(&self) -> &subr_lock::ProfiledLocks {
        &self.td_profile
    }

    pub(crate) fn is_idle_thread(&self) -> bool {
        self.td_flags.load(Ordering::Relaxed) & TDF_IDLETD != 0
    }
}

/// Returns the running thread.
#[inline]
pub fn curthread() -> ThreadRef {
    // SAFETY: the machine keeps what `set_curthread` was given.
    unsafe { &*machine::curthread_raw().cast::<Thread>() }
}

struct Threads {
    /// Every thread structure.
    all: Vec<ThreadRef>,
    /// Those that have ended.
    free: Vec<ThreadRef>,
    next_tid: u32,
}

machine_local! {
    static THREADS: SpinMutex<Threads, Allproc> = SpinMutex::new(Threads { all: Vec::new(), free: Vec::new(), next_tid: 100_000 });
}

impl Thread {
    /// Takes a thread structure that is free, or makes one.
    fn alloc(name: &str, pri: Pri) -> ThreadRef {
        let mut threads = THREADS.get().lock();
        let tid = threads.next_tid;
        threads.next_tid += 1;
        let recycled = threads.free.pop();
        drop(threads);
        let thread = recycled.unwrap_or_else(|| {
            let thread = machine::leak(Box::new(Thread::new()));
            thread.give_turnstile(machine::leak(Box::new(Turnstile::new())));
            let mut threads = THREADS.get().lock();
            threads.all.push(thread);
            // Room for all, so that the end of a thread never allocates.
            let threads = &mut *threads;
            threads.free.reserve(threads.all.len() - threads.free.len());
            thread
        });
        // SAFETY: nobody runs the thread or reads its name yet.
        unsafe { *thread.td_name.get() = ThreadName::new(name) };
        thread.td_tid.store(tid, Ordering::Relaxed);
        thread.td_priority.store(pri.0, Ordering::Relaxed);
        thread.td_base_pri.store(pri.0, Ordering::Relaxed);
        thread.td_flags.store(0, Ordering::Relaxed);
        thread.td_bound.store(NOCPU, Ordering::Relaxed);
        thread.td_pinned.store(0, Ordering::Relaxed);
        thread.td_rw_rlocks.store(0, Ordering::Relaxed);
        thread.td_sx_slocks.store(0, Ordering::Relaxed);
        thread.td_switches.store(0, Ordering::Relaxed);
        thread
            .td_lastcpu
            .store(machine::curcpu() as u32, Ordering::Relaxed);
        thread
    }

    /// Takes a thread whose context is the one that is running: it is made current on this CPU.
    fn adopt(name: &str, pri: Pri) -> ThreadRef {
        let thread = Thread::alloc(name, pri);
        let cpu = machine::curcpu() as u32;
        thread.set_state(ThreadState::Running);
        thread.td_oncpu.store(cpu, Ordering::Relaxed);
        machine::pcpu().curthread.store(
            (thread as *const Thread).cast_mut().cast(),
            Ordering::Relaxed,
        );
        thread
    }
}

/// Makes what runs on the boot CPU the first thread. From here on locks may be used; needs the heap.
pub fn init0() -> ThreadRef {
    Thread::adopt("kernel", Pri::PUSER)
}

/// Makes what runs on this CPU its idle thread.
pub(crate) fn adopt_idle() -> ThreadRef {
    let cpu = machine::curcpu();
    let thread = Thread::adopt(&alloc::format!("idle: cpu{cpu}"), Pri::IDLE);
    thread.td_flags.store(TDF_IDLETD, Ordering::Relaxed);
    thread.td_bound.store(cpu as u32, Ordering::Relaxed);
    thread
}

/// Makes the idle thread of the boot CPU, which has something else to run.
pub(crate) fn create_idle(cpu: usize) -> ThreadRef {
    let thread = create(
        &alloc::format!("idle: cpu{cpu}"),
        Pri::IDLE,
        Some(cpu),
        Box::new(|| sched::idle_loop()),
    );
    thread.td_flags.store(TDF_IDLETD, Ordering::Relaxed);
    thread
}

/// Bytes of a thread's stack, but for what the machine adds.
const KSTACK_SIZE: usize = 32 * 1024;

fn create(name: &str, pri: Pri, cpu: Option<usize>, start: Box<dyn FnOnce() + Send>) -> ThreadRef {
    let thread = Thread::alloc(name, pri);
    if let Some(cpu) = cpu {
        assert!(
            cpu < machine::ncpus(),
            "thread {name} bound to CPU {cpu}, which does not exist"
        );
        thread.td_bound.store(cpu as u32, Ordering::Relaxed);
        thread.td_lastcpu.store(cpu as u32, Ordering::Relaxed);
    }
    // SAFETY: the thread is not known to the scheduler yet, so that all of it is ours; its stack stays with it.
    unsafe {
        *thread.td_start.get() = Some(start);
        let stack = &mut *thread.td_kstack.get();
        if stack.is_none() {
            *stack = KStack::alloc(KSTACK_SIZE);
        }
        let stack = stack.as_ref().expect("no memory for a kernel stack");
        thread.td_pcb.prepare(stack, fork_exit, thread.as_word());
    }
    thread
}

/// Where a new thread begins.
extern "C" fn fork_exit(_: usize) -> ! {
    sched::first_switch_done();
    let me = curthread();
    // SAFETY: only the thread itself looks at it once it runs.
    let start = unsafe { (*me.td_start.get()).take() };
    if let Some(start) = start {
        machine::call_thread_body(me.name(), || {
            if machine::teardown_started() {
                drop(start);
            } else {
                start();
                witness::check_nothing_held(me, "a thread ended");
            }
        });
    }
    kthread_exit()
}

/// Ends the running thread.
fn kthread_exit() -> ! {
    if machine::teardown_started() {
        back_to_reaper();
    }
    let me = curthread();
    kern_rmlock::check_thread_end(me);
    me.td_pinned.store(0, Ordering::Relaxed);
    sched::throw()
}

/// Puts a thread that has ended on the free list, after it is off its CPU.
pub(crate) fn reap(thread: ThreadRef) {
    debug_assert!(
        !thread.td_runq.is_linked(),
        "a thread that has ended waits for a CPU"
    );
    THREADS.get().lock().free.push(thread);
}

/// Starts a thread that runs `f` with priority `pri`, on `cpu` only if one is given.
#[doc(alias = "kproc_create")]
pub fn kthread_add(
    name: &str,
    pri: Pri,
    cpu: Option<usize>,
    f: impl FnOnce() + Send + 'static,
) -> ThreadHandle {
    let done = Arc::new(Done {
        lock: RawSpin::new(),
        done: AtomicBool::new(false),
    });
    let theirs = Arc::clone(&done);
    let start = move || {
        let mut signal = SignalDone {
            done: theirs,
            returned: false,
        };
        f();
        signal.returned = true;
    };
    let thread = create(name, pri, cpu, Box::new(start));
    sched::add(thread);
    ThreadHandle { thread, done }
}

struct Done {
    /// Held by whoever does something to the thread because it has not ended.
    lock: RawSpin,
    /// Written under the lock.
    done: AtomicBool,
}

/// Tells who joins a thread that it has returned, or that it never will, as the machine is ending.
///
/// Not while it panics: whoever joins could end the machine before the panic has come to light.
struct SignalDone {
    done: Arc<Done>,
    returned: bool,
}

impl Drop for SignalDone {
    fn drop(&mut self) {
        if self.returned || machine::teardown_started() {
            self.done.lock.lock();
            self.done.done.store(true, Ordering::Release);
            self.done.lock.unlock();
            kern_synch::wakeup(WChan::of(&*self.done));
        }
    }
}

/// A thread that was started; it goes on when this is dropped.
pub struct ThreadHandle {
    thread: ThreadRef,
    done: Arc<Done>,
}

impl ThreadHandle {
    /// Waits until the thread has ended.
    pub fn join(self) {
        let chan = WChan::of(&*self.done);
        while !self.is_done() {
            sleepq::wait_unless(chan, "join", None, || self.is_done());
        }
    }

    /// Tells whether the thread has ended.
    pub fn is_done(&self) -> bool {
        self.done.done.load(Ordering::Acquire)
    }

    /// Returns the thread, which after its end may be another's.
    pub fn thread(&self) -> ThreadRef {
        self.thread
    }

    /// Interrupts the thread's sleep, unless it has ended: then it may be another's by now.
    pub fn interrupt(&self) {
        self.done.lock.lock();
        let ended = self.is_done();
        machine::interleave();
        if !ended {
            self.thread.interrupt();
        }
        self.done.lock.unlock();
    }
}

/// Returns the threads that have not ended, as `ps -H` and panic reports list them.
pub fn threads() -> Vec<ThreadRef> {
    let threads = THREADS.get().lock();
    threads
        .all
        .iter()
        .copied()
        .filter(|thread| thread.state() != ThreadState::Inactive)
        .collect()
}

/// Says of each sleeping thread what it waits for, for the report of a deadlock.
pub fn describe_sleepers() -> String {
    let mut text = String::new();
    for thread in threads() {
        if matches!(thread.state(), ThreadState::Sleeping | ThreadState::Blocked) {
            let separator = if text.is_empty() { "" } else { ", " };
            text.push_str(&alloc::format!(
                "{separator}'{}' on \"{}\"",
                thread.name(),
                thread.wmesg()
            ));
        }
    }
    text
}

// The end of a hosted machine.

machine_local! {
    /// The thread that unwinds the others.
    static REAPER: AtomicUsize = AtomicUsize::new(0);
}

/// Unwinds every other thread, so that what their stacks own is dropped. Only when nothing else runs any more.
#[cfg(not(any(target_os = "none", native, loom)))]
pub(crate) fn unwind_all() {
    witness::disable();
    let me = curthread();
    REAPER.get().store(me.as_word(), Ordering::Relaxed);
    // Nothing preempts from here on.
    machine::critical_enter();
    let all = THREADS.get().lock().all.clone();
    for thread in all {
        let unwinds = thread.state() != ThreadState::Inactive
            && !thread.is_running()
            && !thread.is_idle_thread();
        if unwinds {
            let pcpu = machine::pcpu();
            pcpu.curthread.store(
                (thread as *const Thread).cast_mut().cast(),
                Ordering::Relaxed,
            );
            // SAFETY: its state is saved, and it returns to this thread when it has unwound.
            unsafe { machine::cpu_switch(&me.td_pcb, &thread.td_pcb) };
            pcpu.curthread
                .store((me as *const Thread).cast_mut().cast(), Ordering::Relaxed);
            thread.set_state(ThreadState::Inactive);
        }
        pcpu_after_unwinding();
    }
}

#[cfg(not(any(target_os = "none", native, loom)))]
fn pcpu_after_unwinding() {
    let pcpu = machine::pcpu();
    pcpu.critnest.store(1, Ordering::Relaxed);
    pcpu.spinlock_count.store(0, Ordering::Relaxed);
}

/// What a thread does that would wait while the machine ends.
#[cold]
pub(crate) fn waits_in_teardown() {
    if curthread().as_word() == REAPER.get().load(Ordering::Relaxed) {
        panic!("would wait while the machine ends");
    }
    back_to_reaper()
}

fn back_to_reaper() -> ! {
    // SAFETY: the reaper waits in `unwind_all`; this context is not continued.
    unsafe {
        let reaper = Thread::from_word(REAPER.get().load(Ordering::Relaxed));
        machine::cpu_switch(&curthread().td_pcb, &reaper.td_pcb);
    }
    unreachable!("a thread that was unwound does not go on")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kern::kern_synch::{SleepError, tsleep};
    use crate::machine::hosted::Machine;
    use crate::time::Sbintime;

    #[test]
    fn an_interruption_of_a_thread_that_ends_does_not_reach_the_next_one() {
        for seed in 0..200 {
            Machine::builder().seed(seed).cpus(2).run(|| {
                for _ in 0..20 {
                    let short = kthread_add("short", Pri::PUSER, Some(1), || {});
                    // Takes over the structure of the first, if that has ended.
                    let maker = kthread_add("maker", Pri::PUSER, Some(1), || {
                        let sleeper = kthread_add("sleeper", Pri::PUSER, Some(1), || {
                            let event = WChan::of(curthread());
                            let span = Some(Sbintime::from_us(3));
                            let slept = tsleep(event, Pri::PWAIT, "t", span, true);
                            assert_eq!(slept, Err(SleepError::TimedOut));
                        });
                        sleeper.join();
                    });
                    for _ in 0..machine::random_u64() % 16 {
                        machine::interleave();
                    }
                    short.interrupt();
                    short.join();
                    maker.join();
                }
            });
        }
    }
}
