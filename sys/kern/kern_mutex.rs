//! Mutexes: adaptive ones that block, and spin mutexes that keep interrupts off.
//!
//! FreeBSD: sys/kern/kern_mutex.c, sys/sys/mutex.h
//! Differs from FreeBSD: the data is inside the lock and the guard is the proof; a release wakes one waiter, the most urgent,
//! instead of all; only a `RecursiveMutex` recurses. A spin mutex keeps no owner: that of a run queue
//! passes from thread to thread in a switch.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::Location;

use super::kern_rmlock::sealed::RawLock;
use super::kern_thread::{Thread, ThreadRef, curthread};
use super::lock_order::{Held, LockClass, assert_under};
use super::subr_lock::{self as lock, LockDelay, Waited};
use super::subr_turnstile::{self as turnstile, TurnstileQueue};
use super::subr_witness::{self as witness, LockKind};
use crate::machine::atomic::{AtomicU32, AtomicUsize, Ordering, UnsafeCell};
use crate::machine::{self, IntrState};

/// The lock word of a mutex nobody owns.
#[doc(alias = "MTX_UNOWNED")]
const UNOWNED: usize = 0;
/// Threads wait on the turnstile.
#[doc(alias = "MTX_CONTESTED")]
const CONTESTED: usize = 2;

/// The owner has it more than once.
#[doc(alias = "MTX_RECURSED")]
const RECURSED: usize = 1;
const FLAGS: usize = RECURSED | CONTESTED;

/// A mutual-exclusion lock around `T`.
///
/// A thread that finds it taken spins while the owner runs on another CPU, and otherwise blocks, lending the owner
/// its priority. Not for interrupt filters: they use `SpinMutex`.
#[doc(alias = "mtx")]
#[doc(alias = "MTX_DEF")]
pub struct Mutex<T: ?Sized, C: LockClass> {
    word: AtomicUsize,
    class: PhantomData<fn() -> C>,
    data: UnsafeCell<T>,
}

// SAFETY: the data is reached only by the thread that owns the lock.
unsafe impl<T: ?Sized + Send, C: LockClass> Sync for Mutex<T, C> {}
// SAFETY: an unlocked mutex is only its data.
unsafe impl<T: ?Sized + Send, C: LockClass> Send for Mutex<T, C> {}

impl<T, C: LockClass> Mutex<T, C> {
    /// Makes an unlocked mutex.
    pub const fn new(data: T) -> Mutex<T, C> {
        Mutex {
            word: AtomicUsize::new(UNOWNED),
            class: PhantomData,
            data: UnsafeCell::new(data),
        }
    }

    /// Returns the data; nobody can hold the lock any more.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized, C: LockClass> Mutex<T, C> {
    /// Locks, waiting if another thread owns it.
    #[doc(alias = "mtx_lock")]
    #[track_caller]
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T, C> {
        let me = curthread();
        witness::check_order::<C>(me, self.address(), LockKind::Mutex, Location::caller());
        let waited = self.lock_word(me);
        self.locked(me, waited)
    }

    /// Locks while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    #[inline]
    pub fn lock_under<H: Held>(&self, held: &H) -> MutexGuard<'_, T, C> {
        const { assert_under::<H, C>() };
        let _ = held;
        self.lock()
    }

    /// Locks unless another thread owns it.
    #[doc(alias = "mtx_trylock")]
    #[track_caller]
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T, C>> {
        let me = curthread();
        if !self.try_word(me) {
            return None;
        }
        Some(self.locked(me, Waited::NOT))
    }

    /// Locks `self` and `other`, which are of one class, in an order that all callers agree on.
    ///
    /// # Panics
    /// If they are the same lock.
    #[track_caller]
    pub fn lock_pair<'a>(
        &'a self,
        other: &'a Self,
    ) -> (MutexGuard<'a, T, C>, MutexGuard<'a, T, C>) {
        assert!(
            self.address() != other.address(),
            "a pair of locks is two locks"
        );
        let me = curthread();
        let (first, second) = if self.address() < other.address() {
            (self, other)
        } else {
            (other, self)
        };
        let first_guard = first.lock();
        let waited = second.lock_word(me);
        let second_guard = second.locked(me, waited);
        if self.address() < other.address() {
            (first_guard, second_guard)
        } else {
            (second_guard, first_guard)
        }
    }

    /// Returns the data without locking: `&mut` proves that nobody else has the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    /// Tells whether the running thread owns it, for assertions.
    #[doc(alias = "mtx_owned")]
    pub fn is_owned(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !FLAGS == curthread().as_word()
    }

    fn address(&self) -> usize {
        &raw const self.word as usize
    }

    #[inline]
    #[track_caller]
    fn locked(&self, me: ThreadRef, waited: Waited) -> MutexGuard<'_, T, C> {
        let site = Location::caller();
        lock::obtained::<C>(me, self.address(), LockKind::Mutex, site, waited);
        MutexGuard {
            mutex: self,
            not_send: PhantomData,
        }
    }

    #[inline]
    fn lock_word(&self, me: ThreadRef) -> Waited {
        machine::interleave();
        match self.word.compare_exchange(
            UNOWNED,
            me.as_word(),
            Ordering::Acquire,
            Ordering::Relaxed,
        ) {
            Ok(_) => Waited::NOT,
            Err(_) => lock_sleep(&self.word, me, C::NAME),
        }
    }

    #[inline]
    fn try_word(&self, me: ThreadRef) -> bool {
        machine::interleave();
        match self.word.compare_exchange(
            UNOWNED,
            me.as_word(),
            Ordering::Acquire,
            Ordering::Relaxed,
        ) {
            Ok(_) => true,
            Err(value) => value == CONTESTED && take_contested(&self.word, me),
        }
    }

    #[inline]
    fn unlock(&self) {
        let me = curthread();
        lock::released(me, self.address());
        self.unlock_word(me);
    }

    #[inline]
    fn unlock_word(&self, me: ThreadRef) {
        if self
            .word
            .compare_exchange(me.as_word(), UNOWNED, Ordering::Release, Ordering::Relaxed)
            .is_err()
        {
            unlock_sleep(&self.word, me);
        }
        machine::interleave();
    }
}

impl<C: LockClass> RawLock for Mutex<(), C> {
    fn acquire(&self) {
        self.lock_word(curthread());
    }

    fn try_acquire(&self) -> bool {
        self.try_word(curthread())
    }

    fn release(&self) {
        self.unlock_word(curthread());
    }
}

/// Spins while the owner runs, and blocks when it does not.
#[doc(alias = "_mtx_lock_sleep")]
#[cold]
#[inline(never)]
fn lock_sleep(word: &AtomicUsize, me: ThreadRef, name: &'static str) -> Waited {
    let mut waited = Waited::NOT;
    lock::obtain_failed(&mut waited, word_address(word));
    let mut delay = LockDelay::of_mtx();
    loop {
        let value = word.load(Ordering::Relaxed);
        let owner = value & !FLAGS;
        if owner == UNOWNED {
            let taken = if value == CONTESTED {
                take_contested(word, me)
            } else {
                word.compare_exchange_weak(
                    UNOWNED,
                    me.as_word(),
                    Ordering::Acquire,
                    Ordering::Relaxed,
                )
                .is_ok()
            };
            if taken {
                return waited;
            }
            continue;
        }
        assert!(owner != me.as_word(), "recursion on mutex {name}");
        // SAFETY: threads are never freed while the machine lives.
        let owner_thread = unsafe { Thread::from_word(owner) };
        if owner_thread.is_running() && delay.may_spin() {
            delay.wait();
            continue;
        }
        let chain = turnstile::trywait(word_address(word));
        // The owner may have let go, or run again, before the chain was locked.
        let value = word.load(Ordering::Relaxed);
        let worth_spinning = owner_thread.is_running() && delay.may_spin();
        if value & !FLAGS != owner || worth_spinning {
            chain.cancel();
            continue;
        }
        if value & CONTESTED == 0
            && word
                .compare_exchange(
                    value,
                    value | CONTESTED,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_err()
        {
            chain.cancel();
            continue;
        }
        chain.wait(me, Some(owner_thread), TurnstileQueue::Exclusive, name);
        delay.reset();
    }
}

/// Takes a mutex that is free, but that others wait for; false if somebody else was faster.
#[cold]
#[inline(never)]
fn take_contested(word: &AtomicUsize, me: ThreadRef) -> bool {
    let chain = turnstile::trywait(word_address(word));
    let mine = me.as_word() | CONTESTED;
    let taken = word
        .compare_exchange(CONTESTED, mine, Ordering::Acquire, Ordering::Relaxed)
        .is_ok();
    if taken {
        chain.claim(me);
    } else {
        chain.cancel();
    }
    taken
}

/// Hands the mutex back when threads wait for it, and wakes the most urgent.
#[doc(alias = "_mtx_unlock_sleep")]
#[cold]
#[inline(never)]
fn unlock_sleep(word: &AtomicUsize, me: ThreadRef) {
    let value = word.load(Ordering::Relaxed);
    assert!(
        value & !CONTESTED == me.as_word(),
        "unlock of a mutex of another thread"
    );
    let mut chain = turnstile::trywait(word_address(word));
    let more = chain.signal(TurnstileQueue::Exclusive);
    word.store(if more { CONTESTED } else { UNOWNED }, Ordering::Release);
    // From here on the memory of the mutex may be gone.
    chain.unpend(me);
}

fn word_address(word: &AtomicUsize) -> usize {
    word as *const AtomicUsize as usize
}

/// Ownership of a locked `Mutex`; unlocks when dropped.
pub struct MutexGuard<'a, T: ?Sized, C: LockClass> {
    mutex: &'a Mutex<T, C>,
    not_send: PhantomData<*const ()>,
}

// SAFETY: `&MutexGuard` gives only `&T`.
unsafe impl<T: ?Sized + Sync, C: LockClass> Sync for MutexGuard<'_, T, C> {}

impl<'a, T: ?Sized, C: LockClass> MutexGuard<'a, T, C> {
    /// Returns the mutex, to lock it again later.
    pub fn mutex(guard: &Self) -> &'a Mutex<T, C> {
        guard.mutex
    }
}

impl<T: ?Sized, C: LockClass> Held for MutexGuard<'_, T, C> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass> Deref for MutexGuard<'_, T, C> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this thread owns the lock.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> DerefMut for MutexGuard<'_, T, C> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread owns the lock, and this is the only guard.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> Drop for MutexGuard<'_, T, C> {
    #[inline]
    fn drop(&mut self) {
        self.mutex.unlock();
    }
}

/// A mutex that its owner may lock again; therefore its guards give only `&T`.
#[doc(alias = "MTX_RECURSE")]
pub struct RecursiveMutex<T: ?Sized, C: LockClass> {
    mutex: Mutex<(), C>,
    /// Further times that the owner has it. Belongs to the owner.
    mtx_recurse: AtomicU32,
    data: T,
}

impl<T, C: LockClass> RecursiveMutex<T, C> {
    /// Makes an unlocked mutex.
    pub const fn new(data: T) -> RecursiveMutex<T, C> {
        RecursiveMutex {
            mutex: Mutex::new(()),
            mtx_recurse: AtomicU32::new(0),
            data,
        }
    }
}

impl<T: ?Sized, C: LockClass> RecursiveMutex<T, C> {
    /// Locks, waiting if another thread owns it.
    #[track_caller]
    pub fn lock(&self) -> RecursiveMutexGuard<'_, T, C> {
        if self.mutex.is_owned() {
            let depth = self.mtx_recurse.load(Ordering::Relaxed);
            self.mtx_recurse.store(depth + 1, Ordering::Relaxed);
            self.mutex.word.fetch_or(RECURSED, Ordering::Relaxed);
        } else {
            core::mem::forget(self.mutex.lock());
        }
        RecursiveMutexGuard {
            mutex: self,
            not_send: PhantomData,
        }
    }
}

/// One of the locks of a `RecursiveMutex`; the last one dropped unlocks.
pub struct RecursiveMutexGuard<'a, T: ?Sized, C: LockClass> {
    mutex: &'a RecursiveMutex<T, C>,
    not_send: PhantomData<*const ()>,
}

impl<T: ?Sized, C: LockClass> Held for RecursiveMutexGuard<'_, T, C> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass> Deref for RecursiveMutexGuard<'_, T, C> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.mutex.data
    }
}

impl<T: ?Sized, C: LockClass> Drop for RecursiveMutexGuard<'_, T, C> {
    fn drop(&mut self) {
        let depth = self.mutex.mtx_recurse.load(Ordering::Relaxed);
        if depth == 0 {
            self.mutex.mutex.unlock();
            return;
        }
        self.mutex.mtx_recurse.store(depth - 1, Ordering::Relaxed);
        if depth == 1 {
            let word = &self.mutex.mutex.word;
            word.fetch_and(!RECURSED, Ordering::Relaxed);
        }
    }
}

/// Turns interrupts off on this CPU until the matching `spinlock_exit`.
#[inline]
pub(crate) fn spinlock_enter() {
    let state = machine::intr_disable();
    let pcpu = machine::pcpu();
    let depth = pcpu.spinlock_count.load(Ordering::Relaxed);
    if depth == 0 {
        pcpu.spinlock_saved.store(state.to_raw(), Ordering::Relaxed);
    }
    pcpu.spinlock_count.store(depth + 1, Ordering::Relaxed);
}

/// Ends the innermost `spinlock_enter`; switches if that became due meanwhile.
#[inline]
pub(crate) fn spinlock_exit() {
    let pcpu = machine::pcpu();
    let depth = pcpu.spinlock_count.load(Ordering::Relaxed) - 1;
    pcpu.spinlock_count.store(depth, Ordering::Relaxed);
    if depth != 0 {
        return;
    }
    let saved = IntrState::from_raw(pcpu.spinlock_saved.load(Ordering::Relaxed));
    if pcpu.ipi_owed.load(Ordering::Relaxed) != 0 {
        send_owed_ipis(pcpu);
    }
    let owed = pcpu.owepreempt.load(Ordering::Relaxed) != 0;
    machine::intr_restore(saved);
    if owed {
        machine::upcall::critical_exit_owed();
    }
}

/// Interrupts `cpu` as soon as this one holds no spin lock any more: the interrupt takes long to send on some machines,
/// and others may want the lock. Interrupts are off.
pub(crate) fn owe_ipi(cpu: usize) {
    let owed = &machine::pcpu().ipi_owed;
    owed.store(owed.load(Ordering::Relaxed) | 1 << cpu, Ordering::Relaxed);
}

#[cold]
fn send_owed_ipis(pcpu: &machine::Pcpu) {
    let owed = pcpu.ipi_owed.load(Ordering::Relaxed);
    pcpu.ipi_owed.store(0, Ordering::Relaxed);
    for cpu in machine::CpuSet(owed).iter() {
        machine::ipi_preempt(cpu);
    }
}

/// A spin lock without data; interrupts are off while it is held.
pub(crate) struct RawSpin(AtomicU32);

impl RawSpin {
    pub(crate) const fn new() -> RawSpin {
        RawSpin(AtomicU32::new(0))
    }

    #[inline]
    pub(crate) fn lock(&self) {
        spinlock_enter();
        self.acquire();
    }

    /// Waits for the lock; interrupts are off already.
    #[inline]
    fn acquire(&self) {
        if !self.try_acquire() {
            self.acquire_hard();
        }
    }

    #[inline]
    fn try_acquire(&self) -> bool {
        self.0
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    #[doc(alias = "_mtx_lock_spin_cookie")]
    #[cold]
    #[inline(never)]
    fn acquire_hard(&self) {
        let mut delay = LockDelay::of_mtx_spin();
        loop {
            // Interrupts get a chance meanwhile, unless another spin lock is held.
            spinlock_exit();
            while self.0.load(Ordering::Relaxed) != 0 {
                delay.wait();
            }
            spinlock_enter();
            if self.try_acquire() {
                return;
            }
        }
    }

    #[inline]
    pub(crate) fn try_lock(&self) -> bool {
        spinlock_enter();
        let taken = self.try_acquire();
        if !taken {
            spinlock_exit();
        }
        taken
    }

    #[inline]
    pub(crate) fn unlock(&self) {
        self.0.store(0, Ordering::Release);
        spinlock_exit();
    }

    /// Lets go of the lock but keeps interrupts off.
    #[inline]
    pub(crate) fn unlock_keep_interrupts_off(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// A lock around `T` that is waited for by spinning; interrupts are off while it is held, so that filters may use it.
#[doc(alias = "MTX_SPIN")]
pub struct SpinMutex<T: ?Sized, C: LockClass> {
    raw: RawSpin,
    class: PhantomData<fn() -> C>,
    data: UnsafeCell<T>,
}

// SAFETY: the data is reached only by the CPU that holds the lock.
unsafe impl<T: ?Sized + Send, C: LockClass> Sync for SpinMutex<T, C> {}
// SAFETY: an unlocked mutex is only its data.
unsafe impl<T: ?Sized + Send, C: LockClass> Send for SpinMutex<T, C> {}
/// A filter may have it: see `kern_intr::Filter`.
impl<T: ?Sized, C: LockClass> core::panic::RefUnwindSafe for SpinMutex<T, C> {}

impl<T, C: LockClass> SpinMutex<T, C> {
    /// Makes an unlocked mutex.
    pub const fn new(data: T) -> SpinMutex<T, C> {
        SpinMutex {
            raw: RawSpin::new(),
            class: PhantomData,
            data: UnsafeCell::new(data),
        }
    }
}

impl<T: ?Sized, C: LockClass> SpinMutex<T, C> {
    /// Turns interrupts off and locks.
    #[doc(alias = "mtx_lock_spin")]
    #[track_caller]
    #[inline]
    pub fn lock(&self) -> SpinMutexGuard<'_, T, C> {
        spinlock_enter();
        witness::check_order_spin::<C>(self.address(), Location::caller());
        let mut waited = Waited::NOT;
        if !self.raw.try_acquire() {
            lock::obtain_failed(&mut waited, self.address());
            self.raw.acquire_hard();
        }
        lock::obtained_spin::<C>(self.address(), Location::caller(), waited);
        SpinMutexGuard {
            mutex: self,
            not_send: PhantomData,
        }
    }

    /// Locks while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    #[inline]
    pub fn lock_under<H: Held>(&self, held: &H) -> SpinMutexGuard<'_, T, C> {
        const { assert_under::<H, C>() };
        let _ = held;
        self.lock()
    }

    /// Turns interrupts off and locks, unless another CPU holds it.
    #[doc(alias = "mtx_trylock_spin")]
    #[track_caller]
    #[inline]
    pub fn try_lock(&self) -> Option<SpinMutexGuard<'_, T, C>> {
        if !self.raw.try_lock() {
            return None;
        }
        lock::obtained_spin::<C>(self.address(), Location::caller(), Waited::NOT);
        Some(SpinMutexGuard {
            mutex: self,
            not_send: PhantomData,
        })
    }

    /// Returns the data without locking: `&mut` proves that nobody else has the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    fn address(&self) -> usize {
        &raw const self.raw as usize
    }
}

/// Ownership of a locked `SpinMutex`; unlocks when dropped.
pub struct SpinMutexGuard<'a, T: ?Sized, C: LockClass> {
    mutex: &'a SpinMutex<T, C>,
    not_send: PhantomData<*const ()>,
}

impl<T: ?Sized, C: LockClass> Held for SpinMutexGuard<'_, T, C> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass> Deref for SpinMutexGuard<'_, T, C> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this CPU holds the lock.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> DerefMut for SpinMutexGuard<'_, T, C> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this CPU holds the lock, and this is the only guard.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> Drop for SpinMutexGuard<'_, T, C> {
    #[inline]
    fn drop(&mut self) {
        lock::released_spin(self.mutex.address());
        self.mutex.raw.unlock();
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_synch::{kern_yield, pause, sched_prio};
    use crate::kern::kern_thread::{Pri, ThreadState, kthread_add};
    use crate::kern::lock_order::{App, Leaf, RunQueue};
    use crate::machine::hosted::{Machine, seeds, turns};

    #[test]
    fn additions_under_a_mutex_are_not_lost_on_four_cpus() {
        const TURNS: usize = turns(200);
        for seed in seeds(50) {
            Machine::builder().seed(seed).cpus(4).run(|| {
                let sum = Arc::new(Mutex::<u64, Leaf>::new(0));
                let threads: Vec<_> = (0..6)
                    .map(|_| {
                        let sum = Arc::clone(&sum);
                        kthread_add("adder", Pri::PUSER, None, move || {
                            for turn in 0..TURNS {
                                let mut guard = sum.lock();
                                let before = *guard;
                                machine::interleave();
                                if turn % 64 == 0 {
                                    // Loses the CPU while it owns the lock.
                                    kern_yield();
                                }
                                *guard = before + 1;
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                assert_eq!(*sum.lock(), 6 * TURNS as u64);
            });
        }
    }

    #[test]
    fn a_mutex_that_is_owned_cannot_be_tried() {
        Machine::builder().run(|| {
            let mutex = Mutex::<_, Leaf>::new(1);
            let guard = mutex.lock();
            assert!(mutex.is_owned());
            assert!(mutex.try_lock().is_none());
            drop(guard);
            assert!(!mutex.is_owned());
            assert_eq!(mutex.try_lock().map(|guard| *guard), Some(1));
        });
    }

    #[test]
    fn an_owner_runs_with_the_priority_of_whoever_waits_for_it() {
        Machine::builder().cpus(1).run(|| {
            sched_prio(Pri(130));
            let outer = Arc::new(Mutex::<_, App>::new(()));
            let inner = Arc::new(Mutex::<_, Leaf>::new(()));
            let inner_guard = inner.lock();

            // Owns `outer` and waits for `inner`, which this thread owns.
            let (their_outer, their_inner) = (Arc::clone(&outer), Arc::clone(&inner));
            let middle = kthread_add("middle", Pri(60), None, move || {
                let _outer = their_outer.lock();
                let _inner = their_inner.lock();
            });
            kern_yield();
            assert_eq!(curthread().priority(), Pri(60));

            // Waits for `outer`: what it lends goes through the middle to this thread.
            let their_outer = Arc::clone(&outer);
            let urgent = kthread_add("urgent", Pri(20), None, move || {
                let _outer = their_outer.lock();
            });
            kern_yield();
            assert_eq!(middle.thread().priority(), Pri(20));
            assert_eq!(curthread().priority(), Pri(20));

            drop(inner_guard);
            assert_eq!(curthread().priority(), Pri(130));
            middle.join();
            urgent.join();
        });
    }

    #[test]
    fn the_most_urgent_waiter_comes_first() {
        Machine::builder().cpus(1).run(|| {
            let order = Arc::new(Mutex::<Vec<u8>, Leaf>::new(Vec::new()));
            let guard = order.lock();
            let threads: Vec<_> = [110, 90, 100]
                .into_iter()
                .map(|pri| {
                    let order = Arc::clone(&order);
                    kthread_add("waiter", Pri(pri), None, move || order.lock().push(pri))
                })
                .collect();
            pause_unlocked(guard);
            threads.into_iter().for_each(|thread| thread.join());
            assert_eq!(*order.lock(), [90, 100, 110]);
        });
    }

    /// Lets every other thread run up to where it waits for the lock, then gives it back.
    fn pause_unlocked<T>(guard: MutexGuard<'_, T, Leaf>) {
        for _ in 0..5 {
            kern_yield();
        }
        drop(guard);
    }

    #[test]
    fn a_pair_is_locked_in_one_order_from_both_sides() {
        const TURNS: usize = turns(100);
        for seed in seeds(20) {
            Machine::builder().seed(seed).cpus(2).run(|| {
                let pair = Arc::new((Mutex::<usize, Leaf>::new(0), Mutex::<usize, Leaf>::new(0)));
                let threads: Vec<_> = (0..2)
                    .map(|side| {
                        let pair = Arc::clone(&pair);
                        kthread_add("side", Pri::PUSER, None, move || {
                            for _ in 0..TURNS {
                                let (mut one, mut other) = if side == 0 {
                                    pair.0.lock_pair(&pair.1)
                                } else {
                                    pair.1.lock_pair(&pair.0)
                                };
                                *one += 1;
                                *other += 1;
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                assert_eq!(*pair.0.lock(), 2 * TURNS);
                assert_eq!(*pair.1.lock(), 2 * TURNS);
            });
        }
    }

    #[test]
    #[should_panic(expected = "lock order reversal")]
    fn witness_reports_a_reversal_that_the_compiler_cannot_see() {
        Machine::builder().run(|| {
            let first = Mutex::<_, App>::new(());
            let second = Mutex::<_, Leaf>::new(());
            let _second = second.lock();
            let _first = first.lock();
        });
    }

    #[test]
    #[should_panic(expected = "recursion")]
    fn witness_reports_recursion() {
        Machine::builder().run(|| {
            let mutex = Mutex::<_, App>::new(());
            let _once = mutex.lock();
            let _twice = mutex.lock();
        });
    }

    #[test]
    #[should_panic(expected = "sleeping on \"pause\" with a non-sleepable lock held")]
    fn witness_reports_a_sleep_with_a_mutex_held() {
        Machine::builder().run(|| {
            let mutex = Mutex::<_, App>::new(());
            let _guard = mutex.lock();
            pause("pause", 1);
        });
    }

    #[test]
    #[should_panic(expected = "spin mutex held")]
    fn witness_reports_a_mutex_under_a_spin_mutex() {
        Machine::builder().run(|| {
            let spin = SpinMutex::<_, RunQueue>::new(());
            let mutex = Mutex::<_, App>::new(());
            let _spin = spin.lock();
            let _mutex = mutex.lock();
        });
    }

    #[test]
    #[should_panic(expected = "a thread ended with a lock held")]
    fn witness_reports_a_thread_that_ends_with_a_lock() {
        Machine::builder().run(|| {
            let thread = kthread_add("loser", Pri::PUSER, None, || {
                let mutex =
                    alloc::boxed::Box::leak(alloc::boxed::Box::new(Mutex::<_, App>::new(())));
                core::mem::forget(mutex.lock());
            });
            thread.join();
            // Joined is not quite ended: it is looked at after that.
            pause("its end", 1);
        });
    }

    #[test]
    fn spin_mutexes_keep_interrupts_off_in_whatever_order_they_are_dropped() {
        Machine::builder().run(|| {
            let one = SpinMutex::<_, Leaf>::new(());
            let two = SpinMutex::<_, RunQueue>::new(());
            let first = one.lock();
            let second = two.lock();
            assert!(!machine::intr_enabled());
            drop(first);
            assert!(!machine::intr_enabled());
            drop(second);
            assert!(machine::intr_enabled());
        });
    }

    #[test]
    fn only_the_last_lock_of_a_recursive_mutex_unlocks() {
        Machine::builder().cpus(1).run(|| {
            let mutex = Arc::new(RecursiveMutex::<AtomicU32, Leaf>::new(AtomicU32::new(0)));
            let first = mutex.lock();
            let second = mutex.lock();
            let theirs = Arc::clone(&mutex);
            let other = kthread_add("other", Pri(60), None, move || {
                theirs.lock().store(1, Ordering::Relaxed);
            });
            kern_yield();
            drop(first);
            kern_yield();
            assert_eq!(second.load(Ordering::Relaxed), 0);
            drop(second);
            other.join();
            assert_eq!(mutex.lock().load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn a_thread_that_makes_itself_less_urgent_keeps_what_was_lent_to_it() {
        Machine::builder().cpus(2).run(|| {
            sched_prio(Pri(60));
            let mutex = Arc::new(Mutex::<_, Leaf>::new(()));
            let guard = mutex.lock();
            // Less urgent than the owner, so that nothing is lent at first.
            let theirs = Arc::clone(&mutex);
            let waiter = kthread_add("waiter", Pri(100), None, move || drop(theirs.lock()));
            while waiter.thread().state() != ThreadState::Blocked {
                machine::cpu_spinwait();
            }
            assert_eq!(curthread().priority(), Pri(60));
            sched_prio(Pri(130));
            assert_eq!(curthread().priority(), Pri(100));
            drop(guard);
            assert_eq!(curthread().priority(), Pri(130));
            waiter.join();
        });
    }
}
