//! Where threads wait for a lock, and lend its owner their priority.
//!
//! FreeBSD: sys/kern/subr_turnstile.c
//! Differs from FreeBSD: owners, lent priorities and the chain of who waits for whom stand under one spin lock
//! (`TD_CONTESTED`), taken only when a thread really blocks, rather than under a lock per turnstile.
//!
//! Each thread owns one turnstile. The first to block on a lock lends its own to the lock; later ones park theirs on
//! the free list of the one in use, and every thread that wakes takes one away.

use intrusive_collections::{LinkedList, LinkedListLink, intrusive_adapter};

use super::kern_mutex::RawSpin;
use super::kern_thread::{Pri, Thread, ThreadRef, ThreadState};
use super::sched;
use crate::machine::CachePadded;
use crate::machine::atomic::plain::AtomicU32;
use crate::machine::atomic::{Cell, Ordering, UnsafeCell};
use crate::machine_local;

intrusive_adapter!(ChainAdapter = &'static Turnstile: Turnstile { chain_link => LinkedListLink });
intrusive_adapter!(FreeAdapter = &'static Turnstile: Turnstile { free_link => LinkedListLink });
intrusive_adapter!(pub(crate) ContestedAdapter = &'static Turnstile: Turnstile { contested_link => LinkedListLink });
intrusive_adapter!(BlockedAdapter = ThreadRef: Thread { td_lockq => LinkedListLink });

/// Which waiters of a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TurnstileQueue {
    /// Mutex waiters and writers.
    Exclusive = 0,
    /// Readers.
    Shared = 1,
}

/// The waiters of one lock.
pub(crate) struct Turnstile {
    chain_link: LinkedListLink,
    free_link: LinkedListLink,
    contested_link: LinkedListLink,
    /// Address of the lock word. Under the chain's lock, as are the queues and the free list.
    lock: Cell<usize>,
    queues: UnsafeCell<[LinkedList<BlockedAdapter>; 2]>,
    free: UnsafeCell<LinkedList<FreeAdapter>>,
    /// Who is lent priority. Under `TD_CONTESTED`, as is `pri`.
    owner: Cell<Option<ThreadRef>>,
    /// The most urgent waiter's priority.
    pri: Cell<Pri>,
}

// SAFETY: every cell stands under the lock named at its declaration.
unsafe impl Sync for Turnstile {}
// SAFETY: as above.
unsafe impl Send for Turnstile {}

impl Turnstile {
    pub(super) fn new() -> Turnstile {
        Turnstile {
            chain_link: LinkedListLink::new(),
            free_link: LinkedListLink::new(),
            contested_link: LinkedListLink::new(),
            lock: Cell::new(0),
            queues: UnsafeCell::new([
                LinkedList::new(BlockedAdapter::NEW),
                LinkedList::new(BlockedAdapter::NEW),
            ]),
            free: UnsafeCell::new(LinkedList::new(FreeAdapter::NEW)),
            owner: Cell::new(None),
            pri: Cell::new(Pri::MIN_URGENCY),
        }
    }

    /// # Safety
    /// `turnstile` belongs to a thread of the machine, and so lives as long as that.
    unsafe fn lasting(turnstile: &Turnstile) -> &'static Turnstile {
        let pointer: *const Turnstile = turnstile;
        // SAFETY: promised by the caller.
        unsafe { &*pointer }
    }

    /// # Safety
    /// The caller holds the chain's lock and keeps only one of the references at a time.
    #[expect(
        clippy::mut_from_ref,
        reason = "the cell stands under the chain's lock"
    )]
    unsafe fn queues(&self) -> &mut [LinkedList<BlockedAdapter>; 2] {
        // SAFETY: promised by the caller.
        unsafe { &mut *self.queues.get() }
    }

    /// # Safety
    /// The caller holds the chain's lock and keeps only one of the references at a time.
    #[expect(
        clippy::mut_from_ref,
        reason = "the cell stands under the chain's lock"
    )]
    unsafe fn free(&self) -> &mut LinkedList<FreeAdapter> {
        // SAFETY: promised by the caller.
        unsafe { &mut *self.free.get() }
    }
}

/// In a model one: which chain an address belongs to is not the same in all executions.
const CHAINS: usize = if cfg!(loom) { 1 } else { 128 };

struct Chain {
    lock: RawSpin,
    turnstiles: UnsafeCell<LinkedList<ChainAdapter>>,
}

// SAFETY: the list is used only with the lock held.
unsafe impl Sync for Chain {}
// SAFETY: as above; the list holds references to things that live as long as the machine.
unsafe impl Send for Chain {}

impl Chain {
    const fn new() -> Chain {
        Chain {
            lock: RawSpin::new(),
            turnstiles: UnsafeCell::new(LinkedList::new(ChainAdapter::NEW)),
        }
    }
}

machine_local! {
    static CHAIN: [CachePadded<Chain>; CHAINS] = [const { CachePadded(Chain::new()) }; CHAINS];
    static TD_CONTESTED: RawSpin = RawSpin::new();
    /// Zero only where a test shows what happens without. Read when a thread blocks, and not before.
    static LENDING: AtomicU32 = AtomicU32::new(1);
}

/// Whether priority is lent, for its sysctl.
pub(super) fn lending() -> &'static AtomicU32 {
    LENDING.get()
}

/// Gives `me`, the running thread, another priority of its own; it keeps what is lent to it.
#[doc(alias = "turnstile_adjust")]
pub(super) fn change_base_pri(me: ThreadRef, pri: Pri) {
    TD_CONTESTED.lock();
    me.td_base_pri.store(pri.0, Ordering::Relaxed);
    take_back_loans(me);
    TD_CONTESTED.unlock();
}

/// Leaves `thread` its own priority and what is still lent to it. Under `TD_CONTESTED`.
fn take_back_loans(thread: ThreadRef) {
    // SAFETY: `TD_CONTESTED` is held.
    let contested = unsafe { &*thread.td_contested.get() };
    let lent = contested.iter().map(|turnstile| turnstile.pri.get()).min();
    let lent = lent.filter(|_| LENDING.load(Ordering::Relaxed) != 0);
    sched::unlend_prio(thread, lent.unwrap_or(Pri::MIN_URGENCY));
}

/// A locked chain, with the turnstile of one lock if it has one.
pub(crate) struct LockedChain {
    chain: &'static Chain,
    lock: usize,
    turnstile: Option<&'static Turnstile>,
    /// Threads that `unpend` will wake.
    pending: LinkedList<BlockedAdapter>,
}

/// Locks the chain of the lock whose word is at `lock`.
#[doc(alias = "turnstile_trywait")]
#[doc(alias = "turnstile_chain_lock")]
pub(crate) fn trywait(lock: usize) -> LockedChain {
    let chain: &'static Chain = &CHAIN.get()[(lock >> 8) % CHAINS].0;
    chain.lock.lock();
    // SAFETY: the chain is locked.
    let turnstiles = unsafe { &*chain.turnstiles.get() };
    let turnstile = turnstiles
        .iter()
        .find(|turnstile| turnstile.lock.get() == lock);
    // SAFETY: turnstiles live as long as the machine; the list gives out shorter references.
    let turnstile = turnstile.map(|turnstile| unsafe { Turnstile::lasting(turnstile) });
    LockedChain {
        chain,
        lock,
        turnstile,
        pending: LinkedList::new(BlockedAdapter::NEW),
    }
}

/// Records who is lent priority through `turnstile`. Under `TD_CONTESTED`.
fn set_owner(turnstile: &'static Turnstile, owner: Option<ThreadRef>) {
    if let Some(old) = turnstile.owner.get() {
        // SAFETY: `TD_CONTESTED` is held, and the turnstile is on the list of its owner.
        unsafe {
            (*old.td_contested.get())
                .cursor_mut_from_ptr(turnstile)
                .remove();
        }
    }
    turnstile.owner.set(owner);
    if let Some(new) = owner {
        // SAFETY: `TD_CONTESTED` is held, and the turnstile is on no owner's list now.
        unsafe { (*new.td_contested.get()).push_back(turnstile) };
    }
}

/// Lends `pri` to the owner of `turnstile`, to the owner of the lock that it waits for, and so on. Under `TD_CONTESTED`.
fn propagate_priority(mut turnstile: &'static Turnstile, pri: Pri) {
    loop {
        if pri.is_before(turnstile.pri.get()) {
            turnstile.pri.set(pri);
        }
        let Some(owner) = turnstile.owner.get() else {
            return;
        };
        if LENDING.load(Ordering::Relaxed) == 0 {
            return;
        }
        if !pri.is_before(owner.priority()) {
            return;
        }
        sched::lend_prio(owner, pri);
        let Some(next) = owner.td_blocked.get() else {
            return;
        };
        turnstile = next;
    }
}

impl LockedChain {
    /// Unlocks the chain: there is no need to wait.
    #[doc(alias = "turnstile_cancel")]
    pub(crate) fn cancel(self) {
        self.chain.lock.unlock();
    }

    /// Makes `me`, which has just taken a lock that others wait for, the one that they lend their priority to; unlocks the chain.
    ///
    /// The chain has been locked since before: were the thread preempted in between, nothing would have been lent to it.
    #[doc(alias = "turnstile_claim")]
    pub(crate) fn claim(self, me: ThreadRef) {
        if let Some(turnstile) = self.turnstile {
            TD_CONTESTED.lock();
            set_owner(turnstile, Some(me));
            let pri = turnstile.pri.get();
            if pri.is_before(me.priority()) && LENDING.load(Ordering::Relaxed) != 0 {
                sched::lend_prio(me, pri);
            }
            TD_CONTESTED.unlock();
        }
        self.cancel();
    }

    /// Blocks until woken; whether the lock is free then is for the caller to find out.
    #[doc(alias = "turnstile_wait")]
    pub(crate) fn wait(
        self,
        me: ThreadRef,
        owner: Option<ThreadRef>,
        queue: TurnstileQueue,
        name: &'static str,
    ) {
        let own = me.take_turnstile();
        let turnstile = match self.turnstile {
            Some(turnstile) => {
                // SAFETY: the chain is locked.
                unsafe { turnstile.free().push_back(own) };
                turnstile
            }
            None => {
                own.lock.set(self.lock);
                own.pri.set(Pri::MIN_URGENCY);
                // SAFETY: the chain is locked.
                unsafe { (*self.chain.turnstiles.get()).push_back(own) };
                own
            }
        };
        // SAFETY: the chain is locked, and a running thread waits nowhere.
        unsafe { turnstile.queues()[queue as usize].push_back(me) };
        me.set_wmesg(name);
        me.set_state(ThreadState::Blocked);
        TD_CONTESTED.lock();
        if turnstile.owner.get().map(Thread::as_word) != owner.map(Thread::as_word) {
            set_owner(turnstile, owner);
        }
        me.td_blocked.set(Some(turnstile));
        propagate_priority(turnstile, me.priority());
        TD_CONTESTED.unlock();
        sched::switch_releasing(&self.chain.lock);
    }

    /// Takes the most urgent thread of `queue` off, for `unpend` to wake; tells whether the lock has other waiters.
    #[doc(alias = "turnstile_signal")]
    pub(crate) fn signal(&mut self, queue: TurnstileQueue) -> bool {
        let Some(turnstile) = self.turnstile else {
            return false;
        };
        // SAFETY: the chain is locked.
        let waiters = unsafe { &mut turnstile.queues()[queue as usize] };
        let first = waiters.iter().map(|td| (td.priority(), &raw const *td));
        // The earliest of equals: `min_by_key` keeps the first.
        if let Some((_, first)) = first.min_by_key(|&(pri, _)| pri) {
            // SAFETY: it is on this list.
            let thread = unsafe { waiters.cursor_mut_from_ptr(first) }.remove();
            self.take_off(turnstile, thread);
        }
        self.turnstile.is_some()
    }

    /// Takes all threads of `queue` off, for `unpend` to wake.
    #[doc(alias = "turnstile_broadcast")]
    pub(crate) fn broadcast(&mut self, queue: TurnstileQueue) {
        while let Some(turnstile) = self.turnstile {
            // SAFETY: the chain is locked.
            let thread = unsafe { turnstile.queues()[queue as usize].pop_front() };
            if thread.is_none() {
                return;
            }
            self.take_off(turnstile, thread);
        }
    }

    /// Gives a thread that leaves the queue a turnstile, the lock's own if it is the last.
    fn take_off(&mut self, turnstile: &'static Turnstile, thread: Option<ThreadRef>) {
        let Some(thread) = thread else {
            return;
        };
        TD_CONTESTED.lock();
        thread.td_blocked.set(None);
        // SAFETY: the chain is locked.
        let spare = unsafe { turnstile.free().pop_front() };
        match spare {
            Some(spare) => {
                // SAFETY: the chain is locked.
                let waiters = unsafe { turnstile.queues() };
                let urgent = waiters
                    .iter()
                    .flat_map(LinkedList::iter)
                    .map(|td| td.priority())
                    .min();
                turnstile.pri.set(urgent.unwrap_or(Pri::MIN_URGENCY));
                thread.give_turnstile(spare);
            }
            None => {
                set_owner(turnstile, None);
                // SAFETY: the chain is locked, and the turnstile is on it.
                unsafe {
                    (*self.chain.turnstiles.get())
                        .cursor_mut_from_ptr(turnstile)
                        .remove();
                }
                self.turnstile = None;
                thread.give_turnstile(turnstile);
            }
        }
        TD_CONTESTED.unlock();
        self.pending.push_back(thread);
    }

    /// Returns what was lent to `me`, which has let go of the lock, unlocks the chain and wakes who was taken off.
    #[doc(alias = "turnstile_unpend")]
    pub(crate) fn unpend(mut self, me: ThreadRef) {
        TD_CONTESTED.lock();
        if let Some(turnstile) = self.turnstile
            && turnstile
                .owner
                .get()
                .is_some_and(|owner| owner.as_word() == me.as_word())
        {
            set_owner(turnstile, None);
        }
        take_back_loans(me);
        TD_CONTESTED.unlock();
        while let Some(thread) = self.pending.pop_front() {
            sched::wakeup(thread);
        }
        self.chain.lock.unlock();
    }
}
