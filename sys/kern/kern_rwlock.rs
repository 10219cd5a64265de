//! Reader/writer locks of one word, adaptive, with writer preference.
//!
//! FreeBSD: sys/kern/kern_rwlock.c, sys/sys/rwlock.h, sys/sys/_rwlock.h
//! Differs from FreeBSD: no recursion; the data is inside the lock and the guard is the proof.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::Location;

use super::kern_mutex::{LockDelay, MOST_SPINS};
use super::kern_thread::{Thread, ThreadRef, curthread};
use super::lock_order::{Held, LockClass};
use super::subr_turnstile::{self as turnstile, TurnstileQueue};
use super::subr_witness::{self as witness, LockKind};
use crate::machine;
use crate::machine::atomic::{AtomicUsize, Ordering};

/// Readers have it, or nobody.
#[doc(alias = "RW_LOCK_READ")]
const READ: usize = 0x01;
#[doc(alias = "RW_LOCK_READ_WAITERS")]
const READ_WAITERS: usize = 0x02;
#[doc(alias = "RW_LOCK_WRITE_WAITERS")]
const WRITE_WAITERS: usize = 0x04;
/// A writer spins until the readers are gone; new ones wait.
#[doc(alias = "RW_LOCK_WRITE_SPINNER")]
const WRITE_SPINNER: usize = 0x08;
const FLAGS: usize = 0x1f;
const READERS_SHIFT: u32 = 5;
#[doc(alias = "RW_ONE_READER")]
const ONE_READER: usize = 1 << READERS_SHIFT;
#[doc(alias = "RW_UNLOCKED")]
const UNLOCKED: usize = READ;

/// How long a thread spins for readers, of whom nobody knows whether they run.
/// FreeBSD: debug.rwlock.retry, debug.rwlock.loops
/// Differs from FreeBSD: far less, as for a writer; the CPU that is waited for may be a virtual one that does not run.
const ROWNER_RETRIES: u32 = 2;
const ROWNER_LOOPS: u32 = MOST_SPINS;

/// A lock that many readers or one writer hold.
#[doc(alias = "rwlock")]
pub struct RwLock<T: ?Sized, C: LockClass> {
    word: AtomicUsize,
    class: PhantomData<fn() -> C>,
    data: UnsafeCell<T>,
}

// SAFETY: readers get only `&T`, a writer is alone.
unsafe impl<T: ?Sized + Send + Sync, C: LockClass> Sync for RwLock<T, C> {}
// SAFETY: an unlocked lock is only its data.
unsafe impl<T: ?Sized + Send, C: LockClass> Send for RwLock<T, C> {}

impl<T, C: LockClass> RwLock<T, C> {
    /// Makes an unlocked lock.
    pub const fn new(data: T) -> RwLock<T, C> {
        RwLock {
            word: AtomicUsize::new(UNLOCKED),
            class: PhantomData,
            data: UnsafeCell::new(data),
        }
    }

    /// Returns the data; nobody can hold the lock any more.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized, C: LockClass> RwLock<T, C> {
    /// Locks for reading, beside other readers.
    #[doc(alias = "rw_rlock")]
    #[track_caller]
    #[inline]
    pub fn read(&self) -> RwReadGuard<'_, T, C> {
        let me = curthread();
        witness::check_order::<C>(me, self.address(), LockKind::RwRead, Location::caller());
        machine::interleave();
        let seen = self.word.load(Ordering::Relaxed);
        let taken = match may_read(seen, false) {
            true => self.word.compare_exchange(
                seen,
                seen + ONE_READER,
                Ordering::Acquire,
                Ordering::Relaxed,
            ),
            false => Err(seen),
        };
        if let Err(seen) = taken {
            rlock_hard(&self.word, me, C::NAME, seen);
        }
        self.read_locked(me)
    }

    /// Locks for reading while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    #[inline]
    pub fn read_under<H: Held>(&self, held: &H) -> RwReadGuard<'_, T, C> {
        const {
            assert!(
                H::Class::RANK < C::RANK,
                "lock order reversal: see sys/kern/lock_order.rs"
            )
        };
        let _ = held;
        self.read()
    }

    /// Locks for reading if that needs no waiting.
    #[doc(alias = "rw_try_rlock")]
    #[track_caller]
    #[inline]
    pub fn try_read(&self) -> Option<RwReadGuard<'_, T, C>> {
        let me = curthread();
        machine::interleave();
        let mut value = self.word.load(Ordering::Relaxed);
        while value & READ != 0 {
            match self.word.compare_exchange_weak(
                value,
                value + ONE_READER,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(self.read_locked(me)),
                Err(now) => value = now,
            }
        }
        None
    }

    /// Locks for writing, alone.
    #[doc(alias = "rw_wlock")]
    #[track_caller]
    #[inline]
    pub fn write(&self) -> RwWriteGuard<'_, T, C> {
        let me = curthread();
        witness::check_order::<C>(me, self.address(), LockKind::RwWrite, Location::caller());
        machine::interleave();
        if self
            .word
            .compare_exchange(UNLOCKED, me.as_word(), Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            wlock_hard(&self.word, me, C::NAME);
        }
        self.write_locked(me)
    }

    /// Locks for writing while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    #[inline]
    pub fn write_under<H: Held>(&self, held: &H) -> RwWriteGuard<'_, T, C> {
        const {
            assert!(
                H::Class::RANK < C::RANK,
                "lock order reversal: see sys/kern/lock_order.rs"
            )
        };
        let _ = held;
        self.write()
    }

    /// Locks for writing if that needs no waiting. Also for a second lock of the class, as the order cannot matter then.
    #[doc(alias = "rw_try_wlock")]
    #[track_caller]
    #[inline]
    pub fn try_write(&self) -> Option<RwWriteGuard<'_, T, C>> {
        let me = curthread();
        machine::interleave();
        let value = self.word.load(Ordering::Relaxed);
        // Free, perhaps with waiters that were woken but have not come yet.
        let free = value & READ != 0 && value >> READERS_SHIFT == 0;
        let waiters = value & (READ_WAITERS | WRITE_WAITERS);
        if !free
            || self
                .word
                .compare_exchange(
                    value,
                    me.as_word() | waiters,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                )
                .is_err()
        {
            return None;
        }
        if waiters != 0 {
            turnstile::claim(self.address(), me);
        }
        Some(self.write_locked(me))
    }

    /// Locks `self` and `other`, which are of one class, for writing in an order that all callers agree on.
    ///
    /// # Panics
    /// If they are the same lock.
    #[track_caller]
    pub fn write_pair<'a>(
        &'a self,
        other: &'a Self,
    ) -> (RwWriteGuard<'a, T, C>, RwWriteGuard<'a, T, C>) {
        assert!(
            self.address() != other.address(),
            "a pair of locks is two locks"
        );
        if self.address() < other.address() {
            let first = self.write();
            (first, other.write_after_its_like())
        } else {
            let first = other.write();
            (self.write_after_its_like(), first)
        }
    }

    /// Locks for writing without a check of the order: a second lock of a class.
    #[track_caller]
    fn write_after_its_like(&self) -> RwWriteGuard<'_, T, C> {
        let me = curthread();
        machine::interleave();
        if self
            .word
            .compare_exchange(UNLOCKED, me.as_word(), Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            wlock_hard(&self.word, me, C::NAME);
        }
        self.write_locked(me)
    }

    /// Returns the data without locking: `&mut` proves that nobody else has the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    /// Tells whether the running thread holds it for writing, for assertions.
    #[doc(alias = "rw_wowned")]
    pub fn is_owned(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !FLAGS == curthread().as_word()
    }

    #[inline]
    #[track_caller]
    fn read_locked(&self, me: ThreadRef) -> RwReadGuard<'_, T, C> {
        me.td_rw_rlocks.store(
            me.td_rw_rlocks.load(Ordering::Relaxed) + 1,
            Ordering::Relaxed,
        );
        witness::acquired::<C>(me, self.address(), LockKind::RwRead, Location::caller());
        RwReadGuard {
            lock: self,
            not_send: PhantomData,
        }
    }

    #[inline]
    #[track_caller]
    fn write_locked(&self, me: ThreadRef) -> RwWriteGuard<'_, T, C> {
        witness::acquired::<C>(me, self.address(), LockKind::RwWrite, Location::caller());
        RwWriteGuard {
            lock: self,
            not_send: PhantomData,
        }
    }

    fn address(&self) -> usize {
        &raw const self.word as usize
    }

    #[inline]
    fn unlock_read(&self) {
        let me = curthread();
        witness::released(me, self.address());
        me.td_rw_rlocks.store(
            me.td_rw_rlocks.load(Ordering::Relaxed) - 1,
            Ordering::Relaxed,
        );
        runlock(&self.word, me);
        machine::interleave();
    }

    #[inline]
    fn unlock_write(&self) {
        let me = curthread();
        witness::released(me, self.address());
        if self
            .word
            .compare_exchange(me.as_word(), UNLOCKED, Ordering::Release, Ordering::Relaxed)
            .is_err()
        {
            wunlock_hard(&self.word, me);
        }
        machine::interleave();
    }
}

/// Tells whether a reader may enter. Writers that wait or spin go first, but not before a thread that already reads
/// some lock: it could hold up the very reader that they wait for.
#[doc(alias = "RW_CAN_READ")]
#[inline]
fn may_read(value: usize, reads_already: bool) -> bool {
    value & READ != 0 && (reads_already || value & (WRITE_WAITERS | WRITE_SPINNER) == 0)
}

fn owner_of(value: usize) -> Option<ThreadRef> {
    // SAFETY: a word without `READ` keeps the writer, and threads are never freed.
    (value & READ == 0).then(|| unsafe { Thread::from_word(value & !FLAGS) })
}

#[doc(alias = "__rw_rlock_hard")]
#[cold]
#[inline(never)]
fn rlock_hard(word: &AtomicUsize, me: ThreadRef, name: &'static str, seen: usize) {
    let reads = |value| {
        word.compare_exchange(
            value,
            value + ONE_READER,
            Ordering::Acquire,
            Ordering::Relaxed,
        )
        .is_ok()
    };
    if may_read(seen, false) && reads(seen) {
        return;
    }
    let reads_already = me.td_rw_rlocks.load(Ordering::Relaxed) != 0;
    let mut spins = 0;
    let mut delay = LockDelay::new();
    loop {
        let value = word.load(Ordering::Relaxed);
        // A writer that spins for long may have lost its CPU to this very thread.
        let passes_spinner = spins == ROWNER_LOOPS && value & WRITE_WAITERS == 0;
        if may_read(value, reads_already || passes_spinner) {
            if reads(value) {
                return;
            }
            continue;
        }
        match owner_of(value) {
            Some(owner) => {
                assert!(
                    owner.as_word() != me.as_word(),
                    "read lock of {name}, held for writing by the same thread"
                );
                if owner.is_running() && delay.goes_on() {
                    delay.wait();
                    continue;
                }
            }
            None if spins < ROWNER_LOOPS => {
                spins += 1;
                machine::cpu_spinwait();
                continue;
            }
            None => {}
        }
        let chain = turnstile::trywait(word_address(word));
        let value = word.load(Ordering::Relaxed);
        let owner = owner_of(value);
        let worth_spinning = delay.goes_on() && owner.is_some_and(Thread::is_running);
        let must_wait = !may_read(value, reads_already) && !worth_spinning;
        // A spinning writer is running; only waiting ones are worth a sleep.
        let must_wait = must_wait && (owner.is_some() || value & WRITE_WAITERS != 0);
        if !must_wait
            || (value & READ_WAITERS == 0
                && word
                    .compare_exchange(
                        value,
                        value | READ_WAITERS,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    )
                    .is_err())
        {
            chain.cancel();
            machine::cpu_spinwait();
            continue;
        }
        chain.wait(me, owner, TurnstileQueue::Shared, name);
        spins = 0;
        delay = LockDelay::new();
    }
}

#[doc(alias = "__rw_wlock_hard")]
#[cold]
#[inline(never)]
fn wlock_hard(word: &AtomicUsize, me: ThreadRef, name: &'static str) {
    let mut spins = 0;
    let mut retries = 0;
    let mut delay = LockDelay::new();
    loop {
        let value = word.load(Ordering::Relaxed);
        let free = value & READ != 0 && value >> READERS_SHIFT == 0;
        if free {
            let waiters = value & (READ_WAITERS | WRITE_WAITERS);
            if word
                .compare_exchange_weak(
                    value,
                    me.as_word() | waiters,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                )
                .is_ok()
            {
                if waiters != 0 {
                    turnstile::claim(word_address(word), me);
                }
                return;
            }
            continue;
        }
        match owner_of(value) {
            Some(owner) => {
                assert!(
                    owner.as_word() != me.as_word(),
                    "recursion on rwlock {name}"
                );
                if owner.is_running() && delay.goes_on() {
                    delay.wait();
                    continue;
                }
            }
            None if retries < ROWNER_RETRIES => {
                // Readers have it. Announced, so that no new ones come.
                if value & WRITE_SPINNER == 0 {
                    let _ = word.compare_exchange_weak(
                        value,
                        value | WRITE_SPINNER,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                }
                spins += 1;
                if spins == ROWNER_LOOPS {
                    spins = 0;
                    retries += 1;
                }
                machine::cpu_spinwait();
                continue;
            }
            None => {}
        }
        let chain = turnstile::trywait(word_address(word));
        let value = word.load(Ordering::Relaxed);
        let owner = owner_of(value);
        let free = owner.is_none() && value >> READERS_SHIFT == 0;
        let wanted = (value | WRITE_WAITERS) & !if owner.is_none() { WRITE_SPINNER } else { 0 };
        if free
            || (delay.goes_on() && owner.is_some_and(Thread::is_running))
            || (value != wanted
                && word
                    .compare_exchange(value, wanted, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err())
        {
            chain.cancel();
            continue;
        }
        chain.wait(me, owner, TurnstileQueue::Exclusive, name);
        retries = 0;
        delay = LockDelay::new();
    }
}

#[doc(alias = "_rw_runlock_cookie")]
#[inline]
fn runlock(word: &AtomicUsize, me: ThreadRef) {
    // Most often nobody else reads or waits.
    if let Err(value) = word.compare_exchange(
        UNLOCKED + ONE_READER,
        UNLOCKED,
        Ordering::Release,
        Ordering::Relaxed,
    ) {
        runlock_hard(word, me, value);
    }
}

#[doc(alias = "__rw_runlock_hard")]
#[cold]
#[inline(never)]
fn runlock_hard(word: &AtomicUsize, me: ThreadRef, mut value: usize) {
    loop {
        let last = value >> READERS_SHIFT == 1;
        if last && value & (READ_WAITERS | WRITE_WAITERS) != 0 {
            if last_reader_leaves(word, me) {
                return;
            }
            value = word.load(Ordering::Relaxed);
            continue;
        }
        match word.compare_exchange_weak(
            value,
            value - ONE_READER,
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            Ok(_) => return,
            Err(now) => value = now,
        }
    }
}

/// Wakes writers, or else readers, when the last reader leaves; tells whether it still was the last.
#[cold]
#[inline(never)]
fn last_reader_leaves(word: &AtomicUsize, me: ThreadRef) -> bool {
    let mut chain = turnstile::trywait(word_address(word));
    let value = word.load(Ordering::Relaxed);
    let (queue, left) = whom_to_wake(value);
    let left = left | (value & WRITE_SPINNER);
    if value >> READERS_SHIFT != 1
        || word
            .compare_exchange(value, UNLOCKED | left, Ordering::Release, Ordering::Relaxed)
            .is_err()
    {
        chain.cancel();
        return false;
    }
    if let Some(queue) = queue {
        chain.broadcast(queue);
    }
    chain.unpend(me);
    true
}

#[doc(alias = "__rw_wunlock_hard")]
#[cold]
#[inline(never)]
fn wunlock_hard(word: &AtomicUsize, me: ThreadRef) {
    let value = word.load(Ordering::Relaxed);
    assert!(
        value & !FLAGS == me.as_word(),
        "unlock of an rwlock of another thread"
    );
    let mut chain = turnstile::trywait(word_address(word));
    // While this thread owns it, waiter bits change only with the chain locked.
    let (queue, left) = whom_to_wake(word.load(Ordering::Relaxed));
    word.store(UNLOCKED | left, Ordering::Release);
    if let Some(queue) = queue {
        chain.broadcast(queue);
    }
    chain.unpend(me);
}

/// Which waiters are woken when the lock comes free, and which bits say who still waits.
fn whom_to_wake(value: usize) -> (Option<TurnstileQueue>, usize) {
    if value & WRITE_WAITERS != 0 {
        (Some(TurnstileQueue::Exclusive), value & READ_WAITERS)
    } else if value & READ_WAITERS != 0 {
        (Some(TurnstileQueue::Shared), 0)
    } else {
        (None, 0)
    }
}

fn word_address(word: &AtomicUsize) -> usize {
    word as *const AtomicUsize as usize
}

/// A read lock; unlocks when dropped.
pub struct RwReadGuard<'a, T: ?Sized, C: LockClass> {
    lock: &'a RwLock<T, C>,
    not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized, C: LockClass> RwReadGuard<'a, T, C> {
    /// Turns the only read lock into a write lock; gives the read lock back if others read.
    ///
    /// # Errors
    /// The guard itself.
    #[doc(alias = "rw_try_upgrade")]
    #[track_caller]
    pub fn try_upgrade(guard: Self) -> Result<RwWriteGuard<'a, T, C>, Self> {
        let lock = guard.lock;
        let me = curthread();
        let mut value = lock.word.load(Ordering::Relaxed);
        while value >> READERS_SHIFT == 1 {
            let waiters = value & (READ_WAITERS | WRITE_WAITERS);
            match lock.word.compare_exchange_weak(
                value,
                me.as_word() | waiters,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    if waiters != 0 {
                        turnstile::claim(lock.address(), me);
                    }
                    core::mem::forget(guard);
                    witness::released(me, lock.address());
                    me.td_rw_rlocks.store(
                        me.td_rw_rlocks.load(Ordering::Relaxed) - 1,
                        Ordering::Relaxed,
                    );
                    return Ok(lock.write_locked(me));
                }
                Err(now) => value = now,
            }
        }
        Err(guard)
    }
}

impl<T: ?Sized, C: LockClass> Held for RwReadGuard<'_, T, C> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass> Deref for RwReadGuard<'_, T, C> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: there is no writer while this thread reads.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> Drop for RwReadGuard<'_, T, C> {
    #[inline]
    fn drop(&mut self) {
        self.lock.unlock_read();
    }
}

/// A write lock; unlocks when dropped.
pub struct RwWriteGuard<'a, T: ?Sized, C: LockClass> {
    lock: &'a RwLock<T, C>,
    not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized, C: LockClass> RwWriteGuard<'a, T, C> {
    /// Turns it into a read lock without letting a writer in between; readers that wait come in.
    #[doc(alias = "rw_downgrade")]
    #[track_caller]
    pub fn downgrade(guard: Self) -> RwReadGuard<'a, T, C> {
        let lock = guard.lock;
        let me = curthread();
        core::mem::forget(guard);
        witness::released(me, lock.address());
        if lock
            .word
            .compare_exchange(
                me.as_word(),
                UNLOCKED + ONE_READER,
                Ordering::Release,
                Ordering::Relaxed,
            )
            .is_err()
        {
            let mut chain = turnstile::trywait(lock.address());
            let value = lock.word.load(Ordering::Relaxed);
            // Readers that wait behind a writer go on waiting.
            let wake = value & WRITE_WAITERS == 0;
            let left = if wake {
                0
            } else {
                value & (READ_WAITERS | WRITE_WAITERS)
            };
            lock.word
                .store((UNLOCKED + ONE_READER) | left, Ordering::Release);
            if wake {
                chain.broadcast(TurnstileQueue::Shared);
            }
            chain.unpend(me);
        }
        lock.read_locked(me)
    }

    /// Returns the lock, to lock it again later.
    pub fn lock(guard: &Self) -> &'a RwLock<T, C> {
        guard.lock
    }
}

impl<T: ?Sized, C: LockClass> Held for RwWriteGuard<'_, T, C> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass> Deref for RwWriteGuard<'_, T, C> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this thread holds the lock alone.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> DerefMut for RwWriteGuard<'_, T, C> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread holds the lock alone, and this is the only guard.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> Drop for RwWriteGuard<'_, T, C> {
    #[inline]
    fn drop(&mut self) {
        self.lock.unlock_write();
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_synch::kern_yield;
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::kern::lock_order::{App, Leaf};
    use crate::machine::hosted::Machine;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        Machine::builder().run(|| {
            let lock = RwLock::<_, Leaf>::new(5);
            let one = lock.read();
            assert_eq!(lock.try_read().map(|guard| *guard), Some(5));
            assert!(lock.try_write().is_none());
            drop(one);
            let mut writer = lock.try_write().expect("nobody reads");
            *writer = 6;
            assert!(lock.is_owned());
            assert!(lock.try_read().is_none());
            drop(writer);
            assert_eq!(lock.into_inner(), 6);
        });
    }

    #[test]
    fn writers_and_readers_never_meet() {
        for seed in 0..60 {
            Machine::builder().seed(seed).cpus(4).run(|| {
                // Both halves are equal whenever nobody writes.
                let lock = Arc::new(RwLock::<(u64, u64), Leaf>::new((0, 0)));
                let threads: Vec<_> = (0..6)
                    .map(|number| {
                        let lock = Arc::clone(&lock);
                        kthread_add("user", Pri(120 + number), None, move || {
                            for turn in 0..100 {
                                if (turn + number) % 3 == 0 {
                                    let mut guard = lock.write();
                                    guard.0 += 1;
                                    machine::interleave();
                                    if turn % 10 == 0 {
                                        kern_yield();
                                    }
                                    guard.1 += 1;
                                    if turn % 7 == 0 {
                                        let guard = RwWriteGuard::downgrade(guard);
                                        assert_eq!(guard.0, guard.1);
                                    }
                                } else {
                                    let guard = lock.read();
                                    assert_eq!(guard.0, guard.1);
                                    if turn % 5 == 0 {
                                        kern_yield();
                                    }
                                    if let Ok(mut guard) = RwReadGuard::try_upgrade(guard) {
                                        guard.0 += 1;
                                        machine::interleave();
                                        guard.1 += 1;
                                    }
                                }
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                let guard = lock.read();
                assert_eq!(guard.0, guard.1);
                drop(guard);
                assert_eq!(lock.word.load(Ordering::Relaxed), UNLOCKED);
            });
        }
    }

    #[test]
    fn a_waiting_writer_goes_before_new_readers() {
        Machine::builder().cpus(1).run(|| {
            let lock = Arc::new(RwLock::<Vec<&str>, Leaf>::new(Vec::new()));
            let reader = lock.read();
            let theirs = Arc::clone(&lock);
            let writer = kthread_add("writer", Pri(100), None, move || {
                theirs.write().push("writer")
            });
            kern_yield();
            let theirs = Arc::clone(&lock);
            let late = kthread_add("late reader", Pri(100), None, move || drop(theirs.read()));
            kern_yield();
            assert!(lock.word.load(Ordering::Relaxed) & WRITE_WAITERS != 0);
            drop(reader);
            writer.join();
            late.join();
            assert_eq!(*lock.read(), ["writer"]);
        });
    }

    #[test]
    fn a_thread_that_reads_already_passes_waiting_writers() {
        Machine::builder().cpus(1).run(|| {
            let lock = Arc::new(RwLock::<_, Leaf>::new(()));
            let other = RwLock::<_, App>::new(());
            let first = lock.read();
            let theirs = Arc::clone(&lock);
            let writer = kthread_add("writer", Pri(100), None, move || drop(theirs.write()));
            kern_yield();
            assert!(!may_read(lock.word.load(Ordering::Relaxed), false));
            // `try_read` stands for a second reader whose first lock the writer cannot know of.
            assert!(lock.try_read().is_some());
            drop(first);
            let _other = other.read();
            writer.join();
        });
    }

    #[test]
    fn only_the_sole_reader_is_upgraded() {
        Machine::builder().run(|| {
            let lock = RwLock::<_, Leaf>::new(());
            let one = lock.read();
            let two = lock.try_read().expect("readers share");
            let one = match RwReadGuard::try_upgrade(one) {
                Ok(_) => panic!("another reads"),
                Err(guard) => guard,
            };
            drop(two);
            assert!(RwReadGuard::try_upgrade(one).is_ok());
        });
    }

    #[test]
    fn a_writer_lends_its_waiters_priority() {
        Machine::builder().cpus(1).run(|| {
            let lock = Arc::new(RwLock::<_, Leaf>::new(()));
            let guard = lock.write();
            let theirs = Arc::clone(&lock);
            let reader = kthread_add("reader", Pri(70), None, move || drop(theirs.read()));
            kern_yield();
            assert_eq!(curthread().priority(), Pri(70));
            drop(guard);
            assert_eq!(curthread().priority(), Pri::PUSER);
            reader.join();
        });
    }
}
