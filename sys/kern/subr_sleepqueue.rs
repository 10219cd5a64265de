//! Where threads wait for an event.
//!
//! FreeBSD: sys/kern/subr_sleepqueue.c
//! Differs from FreeBSD: a chain lists the sleeping threads themselves; there are few per chain, so that no queue per event
//! is needed.

use intrusive_collections::{LinkedList, LinkedListLink, intrusive_adapter};

use super::kern_mutex::RawSpin;
use super::kern_synch::{SleepError, WChan};
use super::kern_thread::{
    NOCPU, TDF_INTERRUPTED, TDF_SINTR, TDF_TIMEOUT, TDF_WAS_INTERRUPTED, Thread, ThreadRef,
    ThreadState, curthread,
};
use super::sched;
use super::subr_witness as witness;
use crate::machine::atomic::{Ordering, UnsafeCell};
use crate::machine::{self, CachePadded};
use crate::machine_local;
use crate::time::Sbintime;

intrusive_adapter!(SleepAdapter = ThreadRef: Thread { td_slpq => LinkedListLink });

/// FreeBSD has 256 (`SC_TABLESIZE`). A model has one for even addresses and one for odd ones: of others it is not the same in
/// all executions which belong together.
const CHAINS: usize = if cfg!(loom) { 2 } else { 256 };

struct Chain {
    lock: RawSpin,
    sleepers: UnsafeCell<LinkedList<SleepAdapter>>,
}

// SAFETY: the list is used only with the lock held.
unsafe impl Sync for Chain {}
// SAFETY: as above; threads live as long as the machine.
unsafe impl Send for Chain {}

machine_local! {
    static SLEEPQ_CHAIN: [CachePadded<Chain>; CHAINS] = [const {
        CachePadded(Chain {
            lock: RawSpin::new(),
            sleepers: UnsafeCell::new(LinkedList::new(SleepAdapter::NEW)),
        })
    }; CHAINS];
}

impl Chain {
    fn of(wchan: usize) -> &'static Chain {
        // FreeBSD: SC_HASH
        let hash = if cfg!(loom) {
            wchan
        } else {
            wchan >> 8 ^ wchan >> 3
        };
        &SLEEPQ_CHAIN.get()[hash % CHAINS].0
    }

    /// # Safety
    /// The lock is held, and the reference is the only one.
    #[expect(clippy::mut_from_ref, reason = "the cell stands under the lock")]
    unsafe fn sleepers(&self) -> &mut LinkedList<SleepAdapter> {
        // SAFETY: promised by the caller.
        unsafe { &mut *self.sleepers.get() }
    }

    /// Takes `thread` off and lets it run; the lock is held.
    #[doc(alias = "sleepq_resume_thread")]
    fn resume(&self, thread: ThreadRef) {
        // SAFETY: the lock is held, and `td_wchan` says that the thread is on this chain.
        unsafe { self.sleepers().cursor_mut_from_ptr(thread).remove() };
        thread.td_wchan.store(0, Ordering::Relaxed);
        // Otherwise it is still on its way to sleep, and finds out there.
        if thread.state() == ThreadState::Sleeping {
            sched::wakeup(thread);
        }
    }
}

/// What a sleep may be ended by, besides `wakeup`.
#[derive(Clone, Copy)]
pub(crate) struct SleepUntil {
    /// This time since boot.
    pub(crate) deadline: Option<Sbintime>,
    /// `Thread::interrupt`.
    pub(crate) catch: bool,
}

/// Puts the running thread on the queue of `wchan`; from now on a wakeup is not lost.
///
/// The caller lets go of what protects its condition and then calls `wait`.
#[doc(alias = "sleepq_add")]
#[track_caller]
pub(crate) fn add(wchan: WChan, wmesg: &'static str, until: SleepUntil) {
    let me = curthread();
    let chain = Chain::of(wchan.0);
    chain.lock.lock();
    me.set_wmesg(wmesg);
    me.td_wchan.store(wchan.0, Ordering::Relaxed);
    let ends = TDF_TIMEOUT | TDF_WAS_INTERRUPTED | TDF_SINTR;
    me.td_flags.fetch_and(!ends, Ordering::Relaxed);
    if until.catch {
        me.td_flags.fetch_or(TDF_SINTR, Ordering::SeqCst);
    }
    // SAFETY: the lock is held, and a running thread is on no queue.
    unsafe { chain.sleepers().push_back(me) };
    if let Some(deadline) = until.deadline {
        me.td_slpcallout.reset_here(deadline, me.as_word());
    }
    chain.lock.unlock();
}

/// Sleeps until the thread is off the queue that `add` put it on.
#[doc(alias = "sleepq_wait")]
#[doc(alias = "sleepq_timedwait_sig")]
pub(crate) fn wait(wchan: WChan, until: SleepUntil) -> Result<(), SleepError> {
    let me = curthread();
    let chain = Chain::of(wchan.0);
    chain.lock.lock();
    if me.td_wchan.load(Ordering::Relaxed) != 0 {
        if until.catch && me.td_flags.load(Ordering::SeqCst) & TDF_INTERRUPTED != 0 {
            me.td_flags.fetch_or(TDF_WAS_INTERRUPTED, Ordering::Relaxed);
            chain.resume(me);
            chain.lock.unlock();
        } else {
            me.set_state(ThreadState::Sleeping);
            sched::switch_releasing(&chain.lock);
        }
    } else {
        chain.lock.unlock();
    }
    if until.deadline.is_some() {
        // A timeout that is just now being handled finds another generation, or nobody, on the queue.
        me.td_slpcallout.stop();
    }
    let flags = me.td_flags.fetch_and(
        !(TDF_SINTR | TDF_TIMEOUT | TDF_WAS_INTERRUPTED),
        Ordering::Relaxed,
    );
    if flags & TDF_WAS_INTERRUPTED != 0 {
        me.take_interrupt();
        Err(SleepError::Interrupted)
    } else if flags & TDF_TIMEOUT != 0 {
        Err(SleepError::TimedOut)
    } else {
        Ok(())
    }
}

/// Sleeps until a wakeup of `wchan`, unless `ready` holds once a wakeup can no longer be lost.
///
/// For conditions kept in atomics: set the condition first, then call `wakeup`.
#[track_caller]
pub(crate) fn wait_unless(
    wchan: WChan,
    wmesg: &'static str,
    deadline: Option<Sbintime>,
    ready: impl Fn() -> bool,
) {
    witness::check_sleep(curthread(), wmesg);
    let until = SleepUntil {
        deadline,
        catch: false,
    };
    add(wchan, wmesg, until);
    if ready() {
        remove(wchan);
        if deadline.is_some() {
            curthread().td_slpcallout.stop();
        }
        return;
    }
    let _ = wait(wchan, until);
}

/// Takes the running thread off the queue of `wchan`, if nobody else has.
///
/// Always under the lock: whoever takes it off looks at its state until then, and would take its next sleep for this one.
#[doc(alias = "sleepq_remove")]
fn remove(wchan: WChan) {
    let me = curthread();
    let chain = Chain::of(wchan.0);
    chain.lock.lock();
    if me.td_wchan.load(Ordering::Relaxed) != 0 {
        chain.resume(me);
    }
    chain.lock.unlock();
}

/// Wakes every thread that waits for `wchan`.
#[doc(alias = "sleepq_broadcast")]
pub(crate) fn broadcast(wchan: WChan) {
    let chain = Chain::of(wchan.0);
    chain.lock.lock();
    while let Some(thread) = find(chain, wchan, false) {
        chain.resume(thread);
    }
    chain.lock.unlock();
}

/// Wakes the most urgent of the threads that wait for `wchan`, of equals the one that has waited longest.
#[doc(alias = "sleepq_signal")]
pub(crate) fn signal(wchan: WChan) {
    let chain = Chain::of(wchan.0);
    chain.lock.lock();
    if let Some(thread) = find(chain, wchan, true) {
        chain.resume(thread);
    }
    chain.lock.unlock();
}

/// Wakes the thread that began to wait for `wchan` last, if possible one that is off its CPU already.
#[doc(alias = "SLEEPQ_UNFAIR")]
pub(crate) fn signal_any(wchan: WChan) {
    let chain = Chain::of(wchan.0);
    chain.lock.lock();
    // SAFETY: the lock is held.
    let sleepers = unsafe { chain.sleepers() };
    let mut last = None;
    for thread in sleepers.iter() {
        if thread.td_wchan.load(Ordering::Relaxed) == wchan.0
            && (last.is_none() || thread.td_oncpu.load(Ordering::Relaxed) == NOCPU)
        {
            // SAFETY: threads live as long as the machine; the list gives out shorter references.
            last = Some(unsafe { Thread::from_word(thread.as_word()) });
        }
    }
    if let Some(thread) = last {
        chain.resume(thread);
    }
    chain.lock.unlock();
}

fn find(chain: &'static Chain, wchan: WChan, most_urgent: bool) -> Option<ThreadRef> {
    // SAFETY: the lock is held.
    let sleepers = unsafe { chain.sleepers() };
    let mut waiting = sleepers
        .iter()
        .filter(|thread| thread.td_wchan.load(Ordering::Relaxed) == wchan.0);
    let found = if most_urgent {
        waiting.min_by_key(|thread| thread.priority())
    } else {
        waiting.next()
    };
    // SAFETY: threads live as long as the machine; the list gives out shorter references.
    found.map(|thread| unsafe { Thread::from_word(thread.as_word()) })
}

/// The timeout of a sleep. Runs in the timer interrupt.
#[doc(alias = "sleepq_timeout")]
pub(crate) fn timeout(thread: usize, now: Sbintime) {
    // SAFETY: `add` passed it.
    let thread = unsafe { Thread::from_word(thread) };
    loop {
        let wchan = thread.td_wchan.load(Ordering::Relaxed);
        if wchan == 0 {
            return;
        }
        let chain = Chain::of(wchan);
        chain.lock.lock();
        if thread.td_wchan.load(Ordering::Relaxed) != wchan {
            chain.lock.unlock();
            continue;
        }
        // The callout may belong to an earlier sleep, and this one to a later deadline.
        if thread.td_slpcallout.deadline() <= now {
            thread.td_flags.fetch_or(TDF_TIMEOUT, Ordering::Relaxed);
            chain.resume(thread);
        }
        chain.lock.unlock();
        return;
    }
}

/// Ends an interruptible sleep of `thread`.
#[doc(alias = "sleepq_abort")]
pub(crate) fn abort(thread: ThreadRef) {
    loop {
        let wchan = thread.td_wchan.load(Ordering::SeqCst);
        if wchan == 0 || thread.td_flags.load(Ordering::SeqCst) & TDF_SINTR == 0 {
            return;
        }
        let chain = Chain::of(wchan);
        chain.lock.lock();
        if thread.td_wchan.load(Ordering::Relaxed) != wchan {
            chain.lock.unlock();
            continue;
        }
        if thread.td_flags.load(Ordering::Relaxed) & TDF_SINTR != 0 {
            thread
                .td_flags
                .fetch_or(TDF_WAS_INTERRUPTED, Ordering::Relaxed);
            chain.resume(thread);
        }
        chain.lock.unlock();
        return;
    }
}

/// Sleeps for `span`, whatever happens.
#[track_caller]
pub(crate) fn pause(wmesg: &'static str, span: Sbintime) {
    let me = curthread();
    witness::check_sleep(me, wmesg);
    // Nobody wakes a thread's own address.
    let wchan = WChan(me.as_word() + 1);
    let until = SleepUntil {
        deadline: Some(machine::sbinuptime().saturating_add(span)),
        catch: false,
    };
    add(wchan, wmesg, until);
    let _ = wait(wchan, until);
}
