//! The place of the scheduler when a model checker chooses who runs.
//!
//! Each thread has a CPU of its own and runs until it blocks. Who blocks and who is woken is decided above, by the
//! shipped turnstiles and sleep queues.

use super::kern_mutex::{RawSpin, spinlock_enter, spinlock_exit};
use super::kern_rmlock;
use super::kern_thread::{NOCPU, Pri, ThreadRef, ThreadState, curthread};
use crate::machine;
use crate::machine::atomic::Ordering;

/// Threads are started by `machine::model::spawn`.
pub(crate) fn add(_thread: ThreadRef) {
    unreachable!("the threads of a model are started by `spawn`")
}

/// Makes a thread runnable that its sleep queue or turnstile has let go.
#[track_caller]
pub(crate) fn wakeup(thread: ThreadRef) {
    machine::model::make_runnable(&thread.td_pcb);
}

/// Blocks the running thread, whose state says why, and lets go of `lock`. Returns when the thread was woken.
pub(crate) fn switch_releasing(lock: &RawSpin) {
    let me = curthread();
    // Off until the thread is blocked, as while a scheduler switches.
    spinlock_enter();
    let pinned = me.td_pinned.load(Ordering::Relaxed) != 0;
    if pinned {
        kern_rmlock::switched_out(me);
    }
    machine::model::blocked(&me.td_pcb, || {
        lock.unlock();
        me.td_oncpu.store(NOCPU, Ordering::Release);
    });
    me.set_state(ThreadState::Running);
    me.td_oncpu
        .store(machine::curcpu() as u32, Ordering::Relaxed);
    if pinned {
        kern_rmlock::switched_in(me);
    }
    spinlock_exit();
}

/// Lends `pri` to a thread that owns a lock.
pub(crate) fn lend_prio(thread: ThreadRef, pri: Pri) {
    thread.td_priority.store(pri.0, Ordering::Relaxed);
}

/// Takes back what was lent but for `pri`, which other locks still lend.
pub(crate) fn unlend_prio(thread: ThreadRef, pri: Pri) {
    let base = Pri(thread.td_base_pri.load(Ordering::Relaxed));
    thread.td_priority.store(base.min(pri).0, Ordering::Relaxed);
}

/// Changes a thread's own priority.
pub fn sched_prio(pri: Pri) {
    super::subr_turnstile::change_base_pri(curthread(), pri);
}

/// Lets the other CPUs go on.
pub fn kern_yield() {
    machine::cpu_spinwait();
}

/// No other thread wants this CPU.
pub(crate) fn preempt_owed() {}

/// As above.
pub(crate) fn ipi_preempt() {}

/// The threads of a model do not end by themselves.
pub(crate) fn throw() -> ! {
    unreachable!("the threads of a model end by returning")
}

/// The threads of a model are not switched here.
pub(crate) fn first_switch_done() {}

/// A model has no services of its own.
pub(crate) fn start_bsp() {}

/// A model has no idle threads.
pub fn idle_ap() -> ! {
    unreachable!("a model has no idle threads")
}

/// A model has no idle threads.
pub(crate) fn idle_loop() -> ! {
    unreachable!("a model has no idle threads")
}

/// A thread never leaves its CPU.
pub fn sched_pin() {
    pin(curthread());
}

/// As above.
pub fn sched_unpin() {
    unpin(curthread());
}

/// As above; those who look for pinned threads are told.
pub(super) fn pin(me: ThreadRef) {
    let pinned = me.td_pinned.load(Ordering::Relaxed);
    me.td_pinned.store(pinned + 1, Ordering::Relaxed);
}

/// As above.
pub(super) fn unpin(me: ThreadRef) {
    let pinned = me.td_pinned.load(Ordering::Relaxed);
    me.td_pinned.store(pinned - 1, Ordering::Relaxed);
}

/// Visits `cpu`.
pub fn sched_bind(cpu: usize) {
    machine::model::visit(cpu);
}

/// Returns to the thread's own CPU.
pub fn sched_unbind() {
    machine::model::end_visit();
}

/// A model's scheduler has nothing to set.
pub(crate) fn sysctl_init() {}
