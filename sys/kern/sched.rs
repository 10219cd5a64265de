//! The scheduler: a run queue per CPU, preemption, placement of threads that wake, and idle CPUs.
//!
//! FreeBSD: sys/kern/sched_ule.c, sys/kern/kern_switch.c, sys/kern/kern_synch.c (`mi_switch`)
//! Differs from FreeBSD: programs have fixed priorities and share a CPU in turns of 10 ms; there is no clock tick, the
//! turn is measured only while someone waits for the CPU.

use core::cell::UnsafeCell;

use intrusive_collections::{LinkedList, intrusive_adapter};

use super::kern_mutex::{RawSpin, owe_ipi, spinlock_enter, spinlock_exit};
use super::kern_rmlock;
use super::kern_thread::{self, NOCPU, Pri, TDF_EXITED, Thread, ThreadRef, ThreadState, curthread};
use super::kern_timeout::CalloutNode;
use crate::machine::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};
use crate::machine::{self, CachePadded, MAXCPU, PerCpu};
use crate::machine_local;
use crate::time::Sbintime;

intrusive_adapter!(RunqAdapter = ThreadRef: Thread { td_runq => intrusive_collections::LinkedListLink });

/// Number of queues of a CPU; each holds `RQ_PPQ` priorities.
const RQ_NQS: usize = 64;
const RQ_PPQ: u8 = 4;

/// How long a program runs while others of its priority wait.
const QUANTUM: Sbintime = Sbintime::from_ms(10);

/// The threads that wait for one CPU.
struct Runq {
    queues: [LinkedList<RunqAdapter>; RQ_NQS],
    /// Bit `n` is set while queue `n` is not empty.
    status: u64,
}

/// One CPU's part of the scheduler.
struct Tdq {
    lock: RawSpin,
    runq: UnsafeCell<Runq>,
    /// Threads on the run queue, read by other CPUs that seek work.
    load: AtomicU32,
    /// Priority of what runs; read by others that wonder whether to interrupt it.
    curpri: AtomicU8,
    /// An interrupt that asks for a look at the run queue is under way.
    ipi_pending: AtomicBool,
    /// The end of the running thread's turn is being waited for.
    ticking: AtomicBool,
    tick: CalloutNode,
}

// SAFETY: the run queue is used only with the lock held.
unsafe impl Sync for Tdq {}
// SAFETY: as above; threads live as long as the machine.
unsafe impl Send for Tdq {}

machine_local! {
    static TDQ: PerCpu<Tdq> = PerCpu::from_slots([const { CachePadded(Tdq::new()) }; MAXCPU]);
    /// CPUs that have nothing to do, and are halted or about to.
    static IDLE_CPUS: AtomicU32 = AtomicU32::new(0);
}

impl Tdq {
    const fn new() -> Tdq {
        Tdq {
            lock: RawSpin::new(),
            runq: UnsafeCell::new(Runq {
                queues: [const { LinkedList::new(RunqAdapter::NEW) }; RQ_NQS],
                status: 0,
            }),
            load: AtomicU32::new(0),
            curpri: AtomicU8::new(Pri::IDLE.0),
            ipi_pending: AtomicBool::new(false),
            ticking: AtomicBool::new(false),
            tick: CalloutNode::new_direct(sched_clock),
        }
    }

    fn curpri(&self) -> Pri {
        Pri(self.curpri.load(Ordering::Relaxed))
    }

    /// # Safety
    /// The lock is held, and the reference is the only one.
    #[expect(clippy::mut_from_ref, reason = "the cell stands under the lock")]
    unsafe fn runq(&self) -> &mut Runq {
        // SAFETY: promised by the caller.
        unsafe { &mut *self.runq.get() }
    }

    /// Puts `thread` on the queue; the lock is held.
    #[doc(alias = "runq_add")]
    fn enqueue(&self, thread: ThreadRef, cpu: usize, first: bool) {
        // In this order, so that whoever changes the priority meanwhile either is seen or sees the queue.
        thread.td_rqcpu.store(cpu as u32, Ordering::SeqCst);
        let index = thread.priority().0 / RQ_PPQ;
        thread.td_rqindex.store(index, Ordering::Relaxed);
        thread.set_state(ThreadState::RunQueue);
        // SAFETY: the lock is held.
        let runq = unsafe { self.runq() };
        runq.status |= 1 << index;
        if first {
            runq.queues[usize::from(index)].push_front(thread);
        } else {
            runq.queues[usize::from(index)].push_back(thread);
        }
        self.load
            .store(self.load.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Takes `thread` off the queue; the lock is held.
    #[doc(alias = "runq_remove")]
    fn dequeue(&self, thread: ThreadRef) {
        let index = thread.td_rqindex.load(Ordering::Relaxed);
        // SAFETY: the lock is held.
        let runq = unsafe { self.runq() };
        let queue = &mut runq.queues[usize::from(index)];
        // SAFETY: `td_rqcpu` and `td_rqindex` say that it is on this list.
        unsafe { queue.cursor_mut_from_ptr(thread).remove() };
        if queue.is_empty() {
            runq.status &= !(1 << index);
        }
        thread.td_rqcpu.store(NOCPU, Ordering::SeqCst);
        self.load
            .store(self.load.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// Returns the most urgent thread that waits; the lock is held.
    #[doc(alias = "runq_choose")]
    fn first(&self) -> Option<ThreadRef> {
        // SAFETY: the lock is held.
        let runq = unsafe { self.runq() };
        if runq.status == 0 {
            return None;
        }
        let first = runq.queues[runq.status.trailing_zeros() as usize].front();
        first.clone_pointer()
    }
}

/// Returns this CPU's part; the caller cannot migrate.
fn mine() -> &'static Tdq {
    TDQ.get().get(machine::curcpu())
}

// Threads become runnable.

/// Makes a new thread runnable.
#[doc(alias = "sched_add")]
pub(crate) fn add(thread: ThreadRef) {
    wakeup(thread);
}

/// Makes a thread runnable that its sleep queue or turnstile has let go.
#[doc(alias = "sched_wakeup")]
#[doc(alias = "setrunnable")]
pub(crate) fn wakeup(thread: ThreadRef) {
    spinlock_enter();
    let cpu = pick_cpu(thread);
    let tdq = TDQ.get().get(cpu);
    tdq.lock.lock();
    tdq.enqueue(thread, cpu, false);
    let preempts = thread.priority().preempts(tdq.curpri());
    if cpu == machine::curcpu() {
        if preempts {
            machine::pcpu().owepreempt.store(1, Ordering::Relaxed);
        } else {
            start_turn(tdq);
        }
        tdq.lock.unlock();
    } else {
        // A CPU that goes on with something else at least begins to measure its turn.
        let ask = preempts || !tdq.ticking.load(Ordering::Relaxed);
        let ask = ask && !tdq.ipi_pending.swap(true, Ordering::Relaxed);
        if ask {
            owe_ipi(cpu);
        }
        tdq.lock.unlock();
    }
    spinlock_exit();
}

/// Chooses where a thread that wakes runs: with an interrupt that wakes it, else where it was if that CPU is idle, else on
/// an idle one, else where it was.
#[doc(alias = "sched_pickcpu")]
fn pick_cpu(thread: ThreadRef) -> usize {
    // Its registers are not saved yet: that CPU will have saved them before it looks at its queue again.
    let running_on = thread.td_oncpu.load(Ordering::Acquire);
    if running_on != NOCPU {
        return running_on as usize;
    }
    let bound = thread.td_bound.load(Ordering::Relaxed);
    if bound != NOCPU {
        return bound as usize;
    }
    let last = thread.td_lastcpu.load(Ordering::Relaxed);
    if thread.td_pinned.load(Ordering::Relaxed) != 0 {
        return last as usize;
    }
    // What an interrupt wakes runs next on the CPU that took the interrupt, if that has nothing else to do: its caches
    // are warm, and no other CPU needs to be interrupted.
    let waker = curthread();
    let by_interrupt = waker.priority() <= Pri::PI_SOFTCLOCK || waker.is_idle_thread();
    if by_interrupt && mine().load.load(Ordering::Relaxed) == 0 {
        return machine::curcpu();
    }
    let idle = IDLE_CPUS.get().load(Ordering::Relaxed);
    if idle & (1 << last) != 0 || idle == 0 {
        return last as usize;
    }
    idle.trailing_zeros() as usize
}

/// Begins to measure the turn of what runs, because another thread waits for this CPU. The lock is held.
fn start_turn(tdq: &'static Tdq) {
    if !tdq.ticking.load(Ordering::Relaxed) {
        tdq.ticking.store(true, Ordering::Relaxed);
        tdq.tick
            .reset_here(machine::sbinuptime() + QUANTUM, tdq as *const Tdq as usize);
    }
}

/// The turn of the running thread may be over. Runs in the timer interrupt of its CPU.
fn sched_clock(tdq: usize, now: Sbintime) {
    // SAFETY: `start_turn` passed it, and it lives as long as the machine.
    let tdq = unsafe { &*(tdq as *const Tdq) };
    tdq.lock.lock();
    match tdq.first() {
        None => tdq.ticking.store(false, Ordering::Relaxed),
        Some(next) => {
            if next.priority() <= tdq.curpri() {
                machine::pcpu().owepreempt.store(1, Ordering::Relaxed);
            }
            if let Some(idle) = idle_helper(next) {
                owe_ipi(idle);
            }
            tdq.tick
                .reset_here(now + QUANTUM, tdq as *const Tdq as usize);
        }
    }
    tdq.lock.unlock();
}

/// Another CPU has put something on our run queue, or has something for an idle CPU to take.
pub(crate) fn ipi_preempt() {
    let tdq = mine();
    tdq.ipi_pending.store(false, Ordering::Relaxed);
    tdq.lock.lock();
    if let Some(next) = tdq.first() {
        if next.priority().preempts(tdq.curpri()) {
            machine::pcpu().owepreempt.store(1, Ordering::Relaxed);
        } else {
            start_turn(tdq);
        }
    }
    tdq.lock.unlock();
}

// Priorities.

/// Lends `pri` to a thread that owns a lock.
#[doc(alias = "sched_lend_prio")]
pub(crate) fn lend_prio(thread: ThreadRef, pri: Pri) {
    set_prio(thread, pri);
}

/// Takes back what was lent but for `pri`, which other locks still lend.
#[doc(alias = "sched_unlend_prio")]
pub(crate) fn unlend_prio(thread: ThreadRef, pri: Pri) {
    let base = Pri(thread.td_base_pri.load(Ordering::Relaxed));
    let new = base.min(pri);
    if new != thread.priority() {
        set_prio(thread, new);
    }
}

/// Changes a thread's own priority.
pub fn sched_prio(pri: Pri) {
    let me = curthread();
    let lent = me.priority().0 < me.td_base_pri.load(Ordering::Relaxed);
    me.td_base_pri.store(pri.0, Ordering::Relaxed);
    if !lent || pri.is_before(me.priority()) {
        set_prio(me, pri);
    }
}

fn set_prio(thread: ThreadRef, pri: Pri) {
    thread.td_priority.store(pri.0, Ordering::SeqCst);
    loop {
        let cpu = thread.td_rqcpu.load(Ordering::SeqCst);
        if cpu == NOCPU {
            break;
        }
        let tdq = TDQ.get().get(cpu as usize);
        tdq.lock.lock();
        if thread.td_rqcpu.load(Ordering::Relaxed) != cpu {
            tdq.lock.unlock();
            continue;
        }
        tdq.dequeue(thread);
        tdq.enqueue(thread, cpu as usize, false);
        let interrupts = pri.preempts(tdq.curpri());
        let here = cpu as usize == machine::curcpu();
        if interrupts && here {
            machine::pcpu().owepreempt.store(1, Ordering::Relaxed);
        }
        if interrupts && !here && !tdq.ipi_pending.swap(true, Ordering::Relaxed) {
            owe_ipi(cpu as usize);
        }
        tdq.lock.unlock();
        return;
    }
    let running_on = thread.td_oncpu.load(Ordering::Relaxed);
    if running_on != NOCPU {
        let tdq = TDQ.get().get(running_on as usize);
        tdq.curpri.store(pri.0, Ordering::Relaxed);
        spinlock_enter();
        if running_on as usize == machine::curcpu() {
            tdq.lock.lock();
            if tdq
                .first()
                .is_some_and(|next| next.priority().preempts(pri))
            {
                machine::pcpu().owepreempt.store(1, Ordering::Relaxed);
            }
            tdq.lock.unlock();
        }
        spinlock_exit();
    }
}

// The switch.

/// Switches away from the running thread, whose state says why, and lets go of `lock` as soon as nobody can run it twice.
///
/// Returns when the thread was woken. `lock` is the only spin lock held.
pub(crate) fn switch_releasing(lock: &RawSpin) {
    if machine::teardown_started() {
        kern_thread::waits_in_teardown();
    }
    let tdq = mine();
    tdq.lock.lock();
    lock.unlock();
    mi_switch(tdq);
}

/// Ends the running thread.
#[doc(alias = "sched_throw")]
pub(crate) fn throw() -> ! {
    spinlock_enter();
    let tdq = mine();
    tdq.lock.lock();
    spinlock_exit();
    curthread().set_state(ThreadState::Inactive);
    mi_switch(tdq);
    unreachable!("a thread that has ended does not run")
}

/// Lets others of the same priority run.
#[doc(alias = "sched_relinquish")]
pub fn kern_yield() {
    if machine::teardown_started() {
        kern_thread::waits_in_teardown();
    }
    if !yield_to(false) {
        // Nobody else wants this CPU; whoever yields in a loop waits for another one, or for time.
        machine::cpu_spinwait();
    }
}

/// Switches if a more urgent thread waits. Interrupts may be disabled and come back as they were.
pub(crate) fn preempt_owed() {
    yield_to(true);
}

/// Gives up the CPU but stays runnable; `preempted` threads keep their place in the queue.
fn yield_to(preempted: bool) -> bool {
    spinlock_enter();
    let pcpu = machine::pcpu();
    let tdq = mine();
    tdq.lock.lock();
    spinlock_exit();
    pcpu.owepreempt.store(0, Ordering::Relaxed);
    let me = curthread();
    let next = tdq.first();
    let wanted = next.is_some_and(|next| next.priority() <= me.priority());
    if !wanted || machine::teardown_started() {
        tdq.lock.unlock();
        return false;
    }
    if !me.is_idle_thread() {
        let keeps_place =
            preempted && next.is_some_and(|next| next.priority().is_before(me.priority()));
        tdq.enqueue(me, machine::curcpu(), keeps_place);
        // What came in between is mostly short; an idle CPU is called when it takes longer than a turn.
        start_turn(tdq);
    }
    mi_switch(tdq);
    true
}

/// An idle CPU that could take a thread that must wait for this one.
fn idle_helper(thread: ThreadRef) -> Option<usize> {
    let free_to_move = thread.td_bound.load(Ordering::Relaxed) == NOCPU
        && thread.td_pinned.load(Ordering::Relaxed) == 0;
    let idle = IDLE_CPUS.get().load(Ordering::Relaxed) & !(1 << machine::curcpu());
    (free_to_move && idle != 0).then(|| idle.trailing_zeros() as usize)
}

/// Continues the most urgent thread. This CPU's run queue is locked, as the only spin lock, and unlocked on return.
fn mi_switch(tdq: &'static Tdq) {
    let pcpu = machine::pcpu();
    debug_assert_eq!(
        pcpu.critnest.load(Ordering::Relaxed),
        0,
        "switch in a critical section"
    );
    debug_assert_eq!(
        pcpu.spinlock_count.load(Ordering::Relaxed),
        1,
        "switch with a spin lock held"
    );
    let me = curthread();
    let cpu = machine::curcpu();
    pcpu.owepreempt.store(0, Ordering::Relaxed);
    let next = match tdq.first() {
        Some(next) => {
            tdq.dequeue(next);
            next
        }
        // SAFETY: the idle thread was set before the scheduler started, and lives as long as the machine.
        None => unsafe { &*pcpu.idlethread.load(Ordering::Relaxed).cast::<Thread>() },
    };
    tdq.curpri.store(next.priority().0, Ordering::Relaxed);
    next.set_state(ThreadState::Running);
    if next.as_word() == me.as_word() {
        tdq.lock.unlock();
        return;
    }
    next.td_oncpu.store(cpu as u32, Ordering::Relaxed);
    next.td_lastcpu.store(cpu as u32, Ordering::Relaxed);
    next.td_switches.store(
        next.td_switches.load(Ordering::Relaxed) + 1,
        Ordering::Relaxed,
    );
    if me.is_idle_thread() {
        IDLE_CPUS.get().fetch_and(!(1 << cpu), Ordering::Relaxed);
    }
    if me.td_pinned.load(Ordering::Relaxed) != 0 {
        kern_rmlock::switched_out(me);
    }
    if next.td_pinned.load(Ordering::Relaxed) != 0 {
        kern_rmlock::switched_in(next);
    }
    let saved = pcpu.spinlock_saved.load(Ordering::Relaxed);
    pcpu.prevthread
        .store((me as *const Thread).cast_mut().cast(), Ordering::Relaxed);
    pcpu.curthread
        .store((next as *const Thread).cast_mut().cast(), Ordering::Relaxed);
    // SAFETY: `next` came from the queue or is idle, so that its registers are saved and nobody else runs it.
    unsafe { machine::cpu_switch(&me.td_pcb, &next.td_pcb) };
    if machine::teardown_started() {
        unwind();
    }
    switch_done(saved);
}

/// After a switch, on the stack of the thread that was switched to, perhaps on another CPU than it left.
fn switch_done(saved: usize) {
    let pcpu = machine::pcpu();
    let tdq = mine();
    // SAFETY: `mi_switch` on this CPU set it.
    let prev = unsafe { &*pcpu.prevthread.load(Ordering::Relaxed).cast::<Thread>() };
    let ended = prev.td_flags.load(Ordering::Relaxed) & TDF_EXITED != 0;
    prev.td_oncpu.store(NOCPU, Ordering::Release);
    pcpu.spinlock_saved.store(saved, Ordering::Relaxed);
    if ended {
        // Its structure and stack may be used again.
        tdq.lock.unlock_keep_interrupts_off();
        kern_thread::reap(prev);
        spinlock_exit();
    } else {
        tdq.lock.unlock();
    }
}

/// The first thing that a new thread does.
pub(crate) fn first_switch_done() {
    if machine::teardown_started() {
        machine::pcpu().spinlock_count.store(0, Ordering::Relaxed);
        return;
    }
    switch_done(machine::INTR_ENABLED.to_raw());
}

/// The machine ends: leaves the thread by unwinding it.
#[cold]
fn unwind() -> ! {
    machine::pcpu().spinlock_count.store(0, Ordering::Relaxed);
    machine::unwind_thread()
}

// Idle CPUs.

/// Becomes the idle thread of an application processor, for good.
#[doc(alias = "sched_ap_entry")]
pub fn idle_ap() -> ! {
    let idle = kern_thread::adopt_idle();
    machine::pcpu()
        .idlethread
        .store((idle as *const Thread).cast_mut().cast(), Ordering::Relaxed);
    // What was asked of this CPU before it could be interrupted is on its queues; the interrupts themselves are lost.
    mine().ipi_pending.store(false, Ordering::SeqCst);
    super::kern_timeout::timer_check();
    idle_loop()
}

/// Starts the scheduler on the boot CPU: makes its idle thread.
pub(crate) fn start_bsp() {
    let idle = kern_thread::create_idle(machine::curcpu());
    machine::pcpu()
        .idlethread
        .store((idle as *const Thread).cast_mut().cast(), Ordering::Relaxed);
    mine()
        .curpri
        .store(curthread().priority().0, Ordering::Relaxed);
}

/// Runs threads while there are any, steals some from busy CPUs, and else halts.
#[doc(alias = "sched_idletd")]
pub(crate) fn idle_loop() -> ! {
    let cpu = machine::curcpu();
    let tdq = mine();
    let me = 1 << cpu;
    loop {
        if tdq.load.load(Ordering::Relaxed) != 0 || steal(cpu) {
            yield_to(false);
            continue;
        }
        let _ = machine::intr_disable();
        IDLE_CPUS.get().fetch_or(me, Ordering::SeqCst);
        // Whoever puts a thread on a queue from here on sees this CPU idle or has sent an interrupt, which ends the halt.
        fence(Ordering::SeqCst);
        if tdq.load.load(Ordering::Relaxed) == 0 {
            machine::cpu_idle();
        } else {
            machine::intr_restore(machine::INTR_ENABLED);
        }
        IDLE_CPUS.get().fetch_and(!me, Ordering::Relaxed);
    }
}

/// Takes a thread that waits for another CPU.
#[doc(alias = "tdq_idled")]
fn steal(me: usize) -> bool {
    let busiest = (0..machine::ncpus())
        .filter(|&cpu| cpu != me)
        .map(|cpu| (TDQ.get().get(cpu).load.load(Ordering::Relaxed), cpu))
        .max();
    let Some((load, victim)) = busiest else {
        return false;
    };
    if load == 0 {
        return false;
    }
    let tdq = TDQ.get().get(victim);
    tdq.lock.lock();
    // SAFETY: the lock is held.
    let queues = unsafe { &tdq.runq().queues };
    let thread = queues.iter().flat_map(LinkedList::iter).find(|thread| {
        thread.td_bound.load(Ordering::Relaxed) == NOCPU
            && thread.td_pinned.load(Ordering::Relaxed) == 0
            && thread.td_oncpu.load(Ordering::Acquire) == NOCPU
    });
    // SAFETY: threads live as long as the machine; the list gives out shorter references.
    let thread = thread.map(|thread| unsafe { Thread::from_word(thread.as_word()) });
    if let Some(thread) = thread {
        tdq.dequeue(thread);
    }
    tdq.lock.unlock();
    if let Some(thread) = thread {
        let tdq = TDQ.get().get(me);
        tdq.lock.lock();
        tdq.enqueue(thread, me, false);
        tdq.lock.unlock();
    }
    thread.is_some()
}

// Affinity.

/// Keeps the running thread on its CPU while it lives; the thread may still be preempted and sleep.
#[doc(alias = "sched_unpin")]
#[must_use = "the thread is pinned only until this is dropped"]
pub struct Pinned(core::marker::PhantomData<*const ()>);

/// Keeps the running thread on its CPU until what it returns is dropped.
///
/// Differs from FreeBSD: read-mostly locks rely on it, so that nobody may end what another has begun.
pub fn sched_pin() -> Pinned {
    pin(curthread());
    Pinned(core::marker::PhantomData)
}

impl Drop for Pinned {
    fn drop(&mut self) {
        unpin(curthread());
    }
}

/// Keeps `me`, the running thread, where it is until the matching `unpin`.
#[inline]
pub(super) fn pin(me: ThreadRef) {
    me.td_pinned
        .store(me.td_pinned.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Ends one `pin` of `me`, the running thread.
#[inline]
pub(super) fn unpin(me: ThreadRef) {
    me.td_pinned
        .store(me.td_pinned.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
}

/// Moves the running thread to `cpu`, to stay.
pub fn sched_bind(cpu: usize) {
    assert!(cpu < machine::ncpus(), "no CPU {cpu}");
    let me = curthread();
    assert!(
        me.td_pinned.load(Ordering::Relaxed) == 0,
        "sched_bind of a pinned thread"
    );
    me.td_bound.store(cpu as u32, Ordering::Relaxed);
    while machine::curcpu() != cpu {
        // A short sleep: the wakeup puts the thread where it is bound, unless it comes before the thread is quite asleep.
        super::kern_synch::pause_sbt("sched_bind", Sbintime::MICROSECOND);
    }
}

/// Lets the running thread run anywhere again.
pub fn sched_unbind() {
    curthread().td_bound.store(NOCPU, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_mutex::Mutex;
    use crate::kern::kern_synch::pause;
    use crate::kern::kern_thread::kthread_add;
    use crate::kern::lock_order::Leaf;
    use crate::machine::hosted::Machine;

    #[test]
    fn a_more_urgent_kernel_thread_runs_at_once() {
        Machine::builder().cpus(1).run(|| {
            let ran = Arc::new(AtomicBool::new(false));
            let theirs = Arc::clone(&ran);
            kthread_add("urgent", Pri::PI_NET, None, move || {
                theirs.store(true, Ordering::Relaxed)
            });
            assert!(ran.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn a_critical_section_puts_preemption_off_to_its_end() {
        Machine::builder().cpus(1).run(|| {
            let ran = Arc::new(AtomicBool::new(false));
            let theirs = Arc::clone(&ran);
            let outer = machine::Critical::enter();
            let inner = machine::Critical::enter();
            kthread_add("urgent", Pri::PI_NET, None, move || {
                theirs.store(true, Ordering::Relaxed)
            });
            drop(inner);
            assert!(!ran.load(Ordering::Relaxed));
            drop(outer);
            assert!(ran.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn programs_do_not_preempt_each_other_but_take_turns() {
        Machine::builder().cpus(1).run(|| {
            let order = Arc::new(Mutex::<Vec<u32>, Leaf>::new(Vec::new()));
            let busy = |number: u32| {
                let order = Arc::clone(&order);
                kthread_add("program", Pri::PUSER, None, move || {
                    for _ in 0..3 {
                        order.lock().push(number);
                        // Works, in virtual time, for a little more than a turn.
                        let end = machine::sbinuptime() + QUANTUM + Sbintime::from_ms(1);
                        while machine::sbinuptime() < end {
                            machine::cpu_spinwait();
                        }
                    }
                })
            };
            let programs = [busy(1), busy(2)];
            assert!(order.lock().is_empty());
            for program in programs {
                program.join();
            }
            assert_eq!(*order.lock(), [1, 2, 1, 2, 1, 2]);
        });
    }

    #[test]
    fn work_spreads_over_idle_cpus() {
        Machine::builder().cpus(4).run(|| {
            let cpus = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let cpus = Arc::clone(&cpus);
                    kthread_add("worker", Pri::PUSER, None, move || {
                        let end = machine::sbinuptime() + Sbintime::from_ms(100);
                        while machine::sbinuptime() < end {
                            machine::cpu_spinwait();
                        }
                        cpus.fetch_or(1 << machine::curcpu(), Ordering::Relaxed);
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join());
            assert_eq!(cpus.load(Ordering::Relaxed), 0b1111);
        });
    }

    #[test]
    fn a_bound_thread_runs_where_it_is_bound() {
        Machine::builder().cpus(3).run(|| {
            for cpu in [2, 0, 1] {
                kthread_add("bound", Pri::PUSER, Some(cpu), move || {
                    for _ in 0..10 {
                        assert_eq!(machine::curcpu(), cpu);
                        pause("bound", 1);
                    }
                })
                .join();
                sched_bind(cpu);
                assert_eq!(machine::curcpu(), cpu);
            }
            sched_unbind();
        });
    }

    #[test]
    fn the_same_seed_replays_the_same_run() {
        let run = |seed| {
            Machine::builder().seed(seed).cpus(4).run(|| {
                let order = Arc::new(Mutex::<Vec<u32>, Leaf>::new(Vec::new()));
                let threads: Vec<_> = (0..4)
                    .map(|number| {
                        let order = Arc::clone(&order);
                        kthread_add("racer", Pri::PUSER, None, move || {
                            for _ in 0..50 {
                                order.lock().push(number);
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                Vec::clone(&order.lock())
            })
        };
        assert_eq!(run(1), run(1));
        assert!((2..20).any(|seed| run(seed) != run(1)));
    }

    #[test]
    fn threads_that_come_and_go_are_recycled() {
        Machine::builder().cpus(2).run(|| {
            // Until the other CPU has its idle thread.
            pause("settle", 1);
            let first = kthread_add("first", Pri::PUSER, None, || {});
            let structure = first.thread().as_word();
            first.join();
            pause("settle", 1);
            let mut reused = false;
            for _ in 0..200 {
                let thread = kthread_add("next", Pri::PUSER, None, || pause("work", 1));
                reused |= thread.thread().as_word() == structure;
                thread.join();
            }
            assert!(reused);
        });
    }
}
