//! Reader/writer locks of one word, adaptive, with writer preference.
//!
//! FreeBSD: sys/kern/kern_rwlock.c, sys/sys/rwlock.h, sys/sys/_rwlock.h
//! Differs from FreeBSD: the data is inside the lock and the guard is the proof; of writers only that of a `RecursiveRwLock` recurses.
//! The rules of the word are those of `Sx` too, which differs in how it waits.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::Location;

use super::kern_thread::{Thread, ThreadRef, curthread};
use super::lock_order::{Held, LockClass, assert_under};
use super::subr_lock::{self as lock, LockDelay, ReaderSpins, Waited};
use super::subr_turnstile::{self as turnstile, TurnstileQueue};
use super::subr_witness::{self as witness, LockKind};
use crate::machine;
use crate::machine::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Readers have it, or nobody.
#[doc(alias = "RW_LOCK_READ")]
pub(super) const READ: usize = 0x01;
#[doc(alias = "RW_LOCK_READ_WAITERS")]
pub(super) const READ_WAITERS: usize = 0x02;
#[doc(alias = "RW_LOCK_WRITE_WAITERS")]
pub(super) const WRITE_WAITERS: usize = 0x04;
/// A writer spins until the readers are gone; new ones wait.
#[doc(alias = "RW_LOCK_WRITE_SPINNER")]
const WRITE_SPINNER: usize = 0x08;
/// The writer has it more than once.
#[doc(alias = "RW_LOCK_WRITER_RECURSED")]
const WRITER_RECURSED: usize = 0x10;
pub(super) const FLAGS: usize = 0x1f;
pub(super) const READERS_SHIFT: u32 = 5;
#[doc(alias = "RW_ONE_READER")]
pub(super) const ONE_READER: usize = 1 << READERS_SHIFT;
#[doc(alias = "RW_UNLOCKED")]
pub(super) const UNLOCKED: usize = READ;

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
        let waited = match taken {
            Ok(_) => Waited::NOT,
            Err(seen) => rlock_hard::<Turnstiles>(&self.word, me, C::NAME, seen),
        };
        self.read_locked(me, waited)
    }

    /// Locks for reading while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    #[inline]
    pub fn read_under<H: Held>(&self, held: &H) -> RwReadGuard<'_, T, C> {
        const { assert_under::<H, C>() };
        let _ = held;
        self.read()
    }

    /// Locks for reading if that needs no waiting.
    #[doc(alias = "rw_try_rlock")]
    #[track_caller]
    #[inline]
    pub fn try_read(&self) -> Option<RwReadGuard<'_, T, C>> {
        machine::interleave();
        try_rlock(&self.word).then(|| self.read_locked(curthread(), Waited::NOT))
    }

    /// Locks for writing, alone.
    #[doc(alias = "rw_wlock")]
    #[track_caller]
    #[inline]
    pub fn write(&self) -> RwWriteGuard<'_, T, C> {
        let me = curthread();
        witness::check_order::<C>(me, self.address(), LockKind::RwWrite, Location::caller());
        self.write_unchecked(me)
    }

    /// Locks for writing while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    #[inline]
    pub fn write_under<H: Held>(&self, held: &H) -> RwWriteGuard<'_, T, C> {
        const { assert_under::<H, C>() };
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
        try_wlock::<Turnstiles>(&self.word, me).then(|| self.write_locked(me, Waited::NOT))
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
            (first, other.write_unchecked(curthread()))
        } else {
            let first = other.write();
            (self.write_unchecked(curthread()), first)
        }
    }

    /// Locks for writing without a check of the order.
    #[track_caller]
    #[inline]
    fn write_unchecked(&self, me: ThreadRef) -> RwWriteGuard<'_, T, C> {
        machine::interleave();
        let free = self.word.compare_exchange(
            UNLOCKED,
            me.as_word(),
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        let waited = match free {
            Ok(_) => Waited::NOT,
            Err(_) => wlock_hard::<Turnstiles>(&self.word, me, C::NAME),
        };
        self.write_locked(me, waited)
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
    fn read_locked(&self, me: ThreadRef, waited: Waited) -> RwReadGuard<'_, T, C> {
        add_rlocks(me, 1);
        let site = Location::caller();
        lock::obtained::<C>(me, self.address(), LockKind::RwRead, site, waited);
        RwReadGuard {
            lock: self,
            not_send: PhantomData,
        }
    }

    #[inline]
    #[track_caller]
    fn write_locked(&self, me: ThreadRef, waited: Waited) -> RwWriteGuard<'_, T, C> {
        let site = Location::caller();
        lock::obtained::<C>(me, self.address(), LockKind::RwWrite, site, waited);
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
        lock::released(me, self.address());
        add_rlocks(me, -1);
        runlock::<Turnstiles>(&self.word, me);
        machine::interleave();
    }

    #[inline]
    fn unlock_write(&self) {
        let me = curthread();
        lock::released(me, self.address());
        if self
            .word
            .compare_exchange(me.as_word(), UNLOCKED, Ordering::Release, Ordering::Relaxed)
            .is_err()
        {
            wunlock_hard::<Turnstiles>(&self.word, me);
        }
        machine::interleave();
    }
}

/// Counts the read locks that `me`, the running thread, holds.
#[inline]
fn add_rlocks(me: ThreadRef, change: i32) {
    let locks = me.td_rw_rlocks.load(Ordering::Relaxed);
    let locks = locks.wrapping_add_signed(change);
    me.td_rw_rlocks.store(locks, Ordering::Relaxed);
}

/// Tells whether a reader may enter. Writers that wait or spin go first, but not before a thread that already reads
/// some lock: it could hold up the very reader that they wait for.
#[doc(alias = "RW_CAN_READ")]
#[inline]
fn may_read(value: usize, reads_already: bool) -> bool {
    value & READ != 0 && (reads_already || value & (WRITE_WAITERS | WRITE_SPINNER) == 0)
}

/// Tells whether nobody has the lock, though some may wait to be woken.
fn is_free(value: usize) -> bool {
    value & READ != 0 && value >> READERS_SHIFT == 0
}

fn owner_of(value: usize) -> Option<ThreadRef> {
    // SAFETY: a word without `READ` keeps the writer, and threads are never freed.
    (value & READ == 0).then(|| unsafe { Thread::from_word(value & !FLAGS) })
}

/// How threads wait for a word: on a turnstile, or asleep.
pub(super) trait WaitQueue {
    /// How spinning for a writer goes on.
    fn delay() -> LockDelay;

    /// What bounds spinning for readers.
    fn reader_spins() -> ReaderSpins;

    /// Whether `me` holds another lock of the kind for reading.
    fn reads_already(me: ThreadRef) -> bool;

    /// Blocks `me`, if `must_wait` says so: it is asked when no release can be missed any more, and names the owner.
    fn wait(
        word: &AtomicUsize,
        me: ThreadRef,
        queue: TurnstileQueue,
        name: &'static str,
        must_wait: impl Fn() -> Option<Option<ThreadRef>>,
    );

    /// Takes a word that others wait for by `take`, which says whether it did; from then on it is `me` that they wait for.
    fn claim(word: &AtomicUsize, me: ThreadRef, take: impl FnOnce() -> bool) -> bool;

    /// Lets go of the word by `release`, and wakes whom that says; `None` from it: nothing was changed. From the change on the memory
    /// of the word may be gone.
    fn release(
        word: &AtomicUsize,
        me: ThreadRef,
        release: impl FnOnce() -> Option<Option<TurnstileQueue>>,
    ) -> bool;
}

/// Waiting with priority lending.
struct Turnstiles;

impl WaitQueue for Turnstiles {
    fn delay() -> LockDelay {
        LockDelay::of_rwlock()
    }

    fn reader_spins() -> ReaderSpins {
        ReaderSpins::of_rwlock()
    }

    fn reads_already(me: ThreadRef) -> bool {
        me.td_rw_rlocks.load(Ordering::Relaxed) != 0
    }

    fn wait(
        word: &AtomicUsize,
        me: ThreadRef,
        queue: TurnstileQueue,
        name: &'static str,
        must_wait: impl Fn() -> Option<Option<ThreadRef>>,
    ) {
        let chain = turnstile::trywait(word_address(word));
        match must_wait() {
            Some(owner) => chain.wait(me, owner, queue, name),
            None => {
                chain.cancel();
                machine::cpu_spinwait();
            }
        }
    }

    fn claim(word: &AtomicUsize, me: ThreadRef, take: impl FnOnce() -> bool) -> bool {
        let chain = turnstile::trywait(word_address(word));
        let taken = take();
        if taken {
            chain.claim(me);
        } else {
            chain.cancel();
        }
        taken
    }

    fn release(
        word: &AtomicUsize,
        me: ThreadRef,
        release: impl FnOnce() -> Option<Option<TurnstileQueue>>,
    ) -> bool {
        let mut chain = turnstile::trywait(word_address(word));
        let Some(queue) = release() else {
            chain.cancel();
            return false;
        };
        if let Some(queue) = queue {
            chain.broadcast(queue);
        }
        chain.unpend(me);
        true
    }
}

#[doc(alias = "__rw_rlock_hard")]
#[cold]
#[inline(never)]
pub(super) fn rlock_hard<Q: WaitQueue>(
    word: &AtomicUsize,
    me: ThreadRef,
    name: &'static str,
    seen: usize,
) -> Waited {
    let reads = |value| {
        word.compare_exchange(
            value,
            value + ONE_READER,
            Ordering::Acquire,
            Ordering::Relaxed,
        )
        .is_ok()
    };
    let mut waited = Waited::NOT;
    if may_read(seen, false) && reads(seen) {
        return waited;
    }
    lock::obtain_failed(&mut waited, word_address(word));
    let reads_already = Q::reads_already(me);
    let limit = Q::reader_spins();
    let mut spins = 0;
    let mut delay = Q::delay();
    loop {
        let value = word.load(Ordering::Relaxed);
        // A writer that spins for long may have lost its CPU to this very thread.
        let passes_spinner = spins >= limit.loops && value & WRITE_WAITERS == 0;
        if may_read(value, reads_already || passes_spinner) {
            if reads(value) {
                return waited;
            }
            continue;
        }
        match owner_of(value) {
            Some(owner) => {
                assert!(
                    owner.as_word() != me.as_word(),
                    "read lock of {name}, held for writing by the same thread"
                );
                if owner.is_running() && delay.may_spin() {
                    delay.wait();
                    continue;
                }
            }
            None if spins < limit.loops => {
                spins += 1;
                machine::cpu_spinwait();
                continue;
            }
            None => {}
        }
        Q::wait(word, me, TurnstileQueue::Shared, name, || {
            let value = word.load(Ordering::Relaxed);
            let owner = owner_of(value);
            let worth_spinning = delay.may_spin() && owner.is_some_and(Thread::is_running);
            if may_read(value, reads_already) || worth_spinning {
                return None;
            }
            // A spinning writer is running; only waiting ones are worth a sleep.
            if owner.is_none() && value & WRITE_WAITERS == 0 {
                return None;
            }
            set_flags(word, value, value | READ_WAITERS).then_some(owner)
        });
        if word.load(Ordering::Relaxed) & READ != 0 {
            spins = 0;
            delay.reset();
        }
    }
}

/// Puts `wanted` in the place of `value`; false if the word is another meanwhile.
fn set_flags(word: &AtomicUsize, value: usize, wanted: usize) -> bool {
    value == wanted
        || word
            .compare_exchange(value, wanted, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
}

#[doc(alias = "__rw_wlock_hard")]
#[cold]
#[inline(never)]
pub(super) fn wlock_hard<Q: WaitQueue>(
    word: &AtomicUsize,
    me: ThreadRef,
    name: &'static str,
) -> Waited {
    let mut waited = Waited::NOT;
    lock::obtain_failed(&mut waited, word_address(word));
    let limit = Q::reader_spins();
    let mut spins = 0;
    let mut delay = Q::delay();
    loop {
        let value = word.load(Ordering::Relaxed);
        if is_free(value) {
            if take::<Q>(word, me, value) {
                return waited;
            }
            continue;
        }
        match owner_of(value) {
            Some(owner) => {
                assert!(owner.as_word() != me.as_word(), "recursion on {name}");
                if owner.is_running() && delay.may_spin() {
                    delay.wait();
                    continue;
                }
            }
            None if spins < limit.retries.saturating_mul(limit.loops) => {
                // Readers have it. Announced, so that no new ones come.
                if value & WRITE_SPINNER == 0 {
                    set_flags(word, value, value | WRITE_SPINNER);
                }
                spins += 1;
                machine::cpu_spinwait();
                continue;
            }
            None => {}
        }
        Q::wait(word, me, TurnstileQueue::Exclusive, name, || {
            let value = word.load(Ordering::Relaxed);
            let owner = owner_of(value);
            if is_free(value) || (delay.may_spin() && owner.is_some_and(Thread::is_running)) {
                return None;
            }
            let spinner = if owner.is_none() { WRITE_SPINNER } else { 0 };
            set_flags(word, value, (value | WRITE_WAITERS) & !spinner).then_some(owner)
        });
        spins = 0;
        delay.reset();
    }
}

#[doc(alias = "_rw_runlock_cookie")]
#[inline]
pub(super) fn runlock<Q: WaitQueue>(word: &AtomicUsize, me: ThreadRef) {
    // Most often nobody else reads or waits.
    if let Err(value) = word.compare_exchange(
        UNLOCKED + ONE_READER,
        UNLOCKED,
        Ordering::Release,
        Ordering::Relaxed,
    ) {
        runlock_hard::<Q>(word, me, value);
    }
}

#[doc(alias = "__rw_runlock_hard")]
#[cold]
#[inline(never)]
fn runlock_hard<Q: WaitQueue>(word: &AtomicUsize, me: ThreadRef, mut value: usize) {
    loop {
        let last = value >> READERS_SHIFT == 1;
        if last && value & (READ_WAITERS | WRITE_WAITERS) != 0 {
            if last_reader_leaves::<Q>(word, me) {
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
fn last_reader_leaves<Q: WaitQueue>(word: &AtomicUsize, me: ThreadRef) -> bool {
    Q::release(word, me, || {
        let value = word.load(Ordering::Relaxed);
        let (queue, left) = whom_to_wake(value);
        let left = UNLOCKED | left | (value & WRITE_SPINNER);
        let released = value >> READERS_SHIFT == 1
            && word
                .compare_exchange(value, left, Ordering::Release, Ordering::Relaxed)
                .is_ok();
        released.then_some(queue)
    })
}

#[doc(alias = "__rw_wunlock_hard")]
#[cold]
#[inline(never)]
pub(super) fn wunlock_hard<Q: WaitQueue>(word: &AtomicUsize, me: ThreadRef) {
    assert!(
        word.load(Ordering::Relaxed) & !FLAGS == me.as_word(),
        "unlock of a lock of another thread"
    );
    Q::release(word, me, || {
        let whom = |value| {
            let (queue, left) = whom_to_wake(value);
            (queue, UNLOCKED | left)
        };
        Some(exchange(word, whom))
    });
}

/// Replaces the word by what `new` makes of it, and returns what else that says.
fn exchange<R>(word: &AtomicUsize, new: impl Fn(usize) -> (R, usize)) -> R {
    let mut value = word.load(Ordering::Relaxed);
    loop {
        let (result, next) = new(value);
        match word.compare_exchange_weak(value, next, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return result,
            Err(now) => value = now,
        }
    }
}

/// Takes the word for writing if nobody holds it, perhaps with waiters that were woken but have not come yet.
pub(super) fn try_wlock<Q: WaitQueue>(word: &AtomicUsize, me: ThreadRef) -> bool {
    let value = word.load(Ordering::Relaxed);
    is_free(value) && take::<Q>(word, me, value)
}

/// Turns the only read lock into a write lock.
pub(super) fn try_upgrade<Q: WaitQueue>(word: &AtomicUsize, me: ThreadRef) -> bool {
    let mut value = word.load(Ordering::Relaxed);
    while value >> READERS_SHIFT == 1 {
        if take::<Q>(word, me, value) {
            return true;
        }
        value = word.load(Ordering::Relaxed);
    }
    false
}

/// Makes `me` the writer if the word still is `value`.
fn take<Q: WaitQueue>(word: &AtomicUsize, me: ThreadRef, value: usize) -> bool {
    let waiters = value & (READ_WAITERS | WRITE_WAITERS);
    let mine = me.as_word() | waiters;
    let take = || {
        word.compare_exchange(value, mine, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    };
    if waiters == 0 {
        take()
    } else {
        Q::claim(word, me, take)
    }
}

/// Turns the write lock into a read lock; readers come in unless a writer waits.
pub(super) fn downgrade<Q: WaitQueue>(word: &AtomicUsize, me: ThreadRef) {
    let one = UNLOCKED + ONE_READER;
    if word
        .compare_exchange(me.as_word(), one, Ordering::Release, Ordering::Relaxed)
        .is_ok()
    {
        return;
    }
    Q::release(word, me, || {
        Some(exchange(word, |value| {
            if value & WRITE_WAITERS == 0 {
                (Some(TurnstileQueue::Shared), one)
            } else {
                // Readers that wait behind a writer go on waiting.
                (None, one | (value & (READ_WAITERS | WRITE_WAITERS)))
            }
        }))
    });
}

/// Takes the word for reading if no writer has it.
pub(super) fn try_rlock(word: &AtomicUsize) -> bool {
    let mut value = word.load(Ordering::Relaxed);
    while value & READ != 0 {
        match word.compare_exchange_weak(
            value,
            value + ONE_READER,
            Ordering::Acquire,
            Ordering::Relaxed,
        ) {
            Ok(_) => return true,
            Err(now) => value = now,
        }
    }
    false
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

pub(super) fn word_address(word: &AtomicUsize) -> usize {
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
        let rwlock = guard.lock;
        let me = curthread();
        if !try_upgrade::<Turnstiles>(&rwlock.word, me) {
            return Err(guard);
        }
        core::mem::forget(guard);
        lock::released(me, rwlock.address());
        add_rlocks(me, -1);
        Ok(rwlock.write_locked(me, Waited::NOT))
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
        let rwlock = guard.lock;
        let me = curthread();
        core::mem::forget(guard);
        lock::released(me, rwlock.address());
        downgrade::<Turnstiles>(&rwlock.word, me);
        rwlock.read_locked(me, Waited::NOT)
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

/// A lock that its writer may take for writing again; therefore its guards give only `&T`.
#[doc(alias = "RW_RECURSE")]
pub struct RecursiveRwLock<T: ?Sized, C: LockClass> {
    lock: RwLock<(), C>,
    /// Further times that the writer has it. Belongs to the writer.
    rw_recurse: AtomicU32,
    data: T,
}

impl<T, C: LockClass> RecursiveRwLock<T, C> {
    /// Makes an unlocked lock.
    pub const fn new(data: T) -> RecursiveRwLock<T, C> {
        RecursiveRwLock {
            lock: RwLock::new(()),
            rw_recurse: AtomicU32::new(0),
            data,
        }
    }
}

impl<T: ?Sized, C: LockClass> RecursiveRwLock<T, C> {
    /// Locks for reading, beside other readers. Not by a thread that writes.
    #[track_caller]
    pub fn read(&self) -> RecursiveRwReadGuard<'_, T, C> {
        RecursiveRwReadGuard {
            _guard: self.lock.read(),
            data: &self.data,
        }
    }

    /// Locks for writing, also if the thread has done so already.
    #[track_caller]
    pub fn write(&self) -> RecursiveRwWriteGuard<'_, T, C> {
        if self.lock.is_owned() {
            let depth = self.rw_recurse.load(Ordering::Relaxed);
            self.rw_recurse.store(depth + 1, Ordering::Relaxed);
            self.lock.word.fetch_or(WRITER_RECURSED, Ordering::Relaxed);
        } else {
            core::mem::forget(self.lock.write());
        }
        RecursiveRwWriteGuard {
            lock: self,
            not_send: PhantomData,
        }
    }
}

/// A read lock of a `RecursiveRwLock`; unlocks when dropped.
pub struct RecursiveRwReadGuard<'a, T: ?Sized, C: LockClass> {
    _guard: RwReadGuard<'a, (), C>,
    data: &'a T,
}

impl<T: ?Sized, C: LockClass> Held for RecursiveRwReadGuard<'_, T, C> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass> Deref for RecursiveRwReadGuard<'_, T, C> {
    type Target = T;
    fn deref(&self) -> &T {
        self.data
    }
}

/// One of the write locks of a `RecursiveRwLock`; the last one dropped unlocks.
pub struct RecursiveRwWriteGuard<'a, T: ?Sized, C: LockClass> {
    lock: &'a RecursiveRwLock<T, C>,
    not_send: PhantomData<*const ()>,
}

impl<T: ?Sized, C: LockClass> Held for RecursiveRwWriteGuard<'_, T, C> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass> Deref for RecursiveRwWriteGuard<'_, T, C> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.lock.data
    }
}

impl<T: ?Sized, C: LockClass> Drop for RecursiveRwWriteGuard<'_, T, C> {
    fn drop(&mut self) {
        let depth = self.lock.rw_recurse.load(Ordering::Relaxed);
        if depth == 0 {
            self.lock.lock.unlock_write();
            return;
        }
        self.lock.rw_recurse.store(depth - 1, Ordering::Relaxed);
        if depth == 1 {
            let word = &self.lock.lock.word;
            word.fetch_and(!WRITER_RECURSED, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_synch::kern_yield;
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::kern::lock_order::Leaf;
    use crate::machine::hosted::{Machine, seeds, turns};

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
        for seed in seeds(60) {
            Machine::builder().seed(seed).cpus(4).run(|| {
                // Both halves are equal whenever nobody writes.
                let lock = Arc::new(RwLock::<(u64, u64), Leaf>::new((0, 0)));
                let threads: Vec<_> = (0..6)
                    .map(|number| {
                        let lock = Arc::clone(&lock);
                        kthread_add("user", Pri(120 + number), None, move || {
                            for turn in 0..turns(100) as u8 {
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
            let first = lock.read();
            let theirs = Arc::clone(&lock);
            let writer = kthread_add("writer", Pri(100), None, move || drop(theirs.write()));
            kern_yield();
            assert!(!may_read(lock.word.load(Ordering::Relaxed), false));
            let second = lock.read();
            drop(first);
            kern_yield();
            assert!(!writer.is_done());
            drop(second);
            writer.join();
            assert_eq!(lock.word.load(Ordering::Relaxed), UNLOCKED);
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

    #[test]
    fn only_the_last_write_lock_of_a_recursive_lock_unlocks() {
        Machine::builder().cpus(1).run(|| {
            let lock = Arc::new(RecursiveRwLock::<AtomicU32, Leaf>::new(AtomicU32::new(0)));
            let first = lock.write();
            let second = lock.write();
            let theirs = Arc::clone(&lock);
            let writer = kthread_add("writer", Pri(60), None, move || {
                theirs.write().store(1, Ordering::Relaxed);
            });
            kern_yield();
            drop(first);
            kern_yield();
            assert_eq!(second.load(Ordering::Relaxed), 0);
            drop(second);
            writer.join();
            assert_eq!(lock.read().load(Ordering::Relaxed), 1);
        });
    }
}
