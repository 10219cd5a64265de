//! Shared/exclusive locks whose holders may sleep.
//!
//! FreeBSD: sys/kern/kern_sx.c, sys/sys/sx.h
//! Differs from FreeBSD: the data is inside the lock and the guard is the proof; an exclusive holder does not recurse. The word and its rules are those of an
//! rwlock, as they nearly are in FreeBSD; but threads wait on sleep queues, and lend no priority: the holder may be asleep for long.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::Location;

use super::kern_rmlock::sealed::RawLock;
use super::kern_rwlock::{
    ONE_READER, UNLOCKED, WaitQueue, downgrade, rlock_hard, runlock, try_rlock, try_upgrade,
    try_wlock, wlock_hard, word_address, wunlock_hard,
};
use super::kern_synch::{WChan, wakeup};
use super::kern_thread::{ThreadRef, curthread};
use super::lock_order::{Held, LockClass, assert_under};
use super::subr_lock::{self as lock, LockDelay, ReaderSpins, Waited};
use super::subr_sleepqueue as sleepq;
use super::subr_turnstile::TurnstileQueue;
use super::subr_witness::{self as witness, LockKind};
use crate::machine;
use crate::machine::atomic::{AtomicUsize, Ordering};

/// Waiting asleep.
struct SleepQueues;

/// What the waiters of a word sleep on: two bytes of it, which are on one chain. Not the first, which is the address of the lock:
/// its user may sleep on that.
#[doc(alias = "SQ_EXCLUSIVE_QUEUE")]
#[doc(alias = "SQ_SHARED_QUEUE")]
fn wchan(word: usize, queue: TurnstileQueue) -> WChan {
    WChan(word + 1 + queue as usize)
}

impl WaitQueue for SleepQueues {
    fn delay() -> LockDelay {
        LockDelay::of_sx()
    }

    fn reader_spins() -> ReaderSpins {
        ReaderSpins::of_sx()
    }

    fn reads_already(me: ThreadRef) -> bool {
        me.td_sx_slocks.load(Ordering::Relaxed) != 0
    }

    fn wait(
        word: &AtomicUsize,
        _: ThreadRef,
        queue: TurnstileQueue,
        name: &'static str,
        must_wait: impl Fn() -> Option<Option<ThreadRef>>,
    ) {
        // On the queue before the word says that somebody waits, so that whoever sees that finds the thread.
        let chan = wchan(word_address(word), queue);
        sleepq::wait_unless(chan, name, None, || must_wait().is_none());
    }

    fn claim(_: &AtomicUsize, _: ThreadRef, take: impl FnOnce() -> bool) -> bool {
        take()
    }

    fn release(
        word: &AtomicUsize,
        _: ThreadRef,
        release: impl FnOnce() -> Option<Option<TurnstileQueue>>,
    ) -> bool {
        let address = word_address(word);
        match release() {
            Some(queue) => {
                if let Some(queue) = queue {
                    wakeup(wchan(address, queue));
                }
                true
            }
            None => false,
        }
    }
}

/// A lock that many share or one holds alone, and under which a thread may sleep.
#[doc(alias = "sx")]
pub struct Sx<T: ?Sized, C: LockClass> {
    word: AtomicUsize,
    class: PhantomData<fn() -> C>,
    data: UnsafeCell<T>,
}

// SAFETY: sharers get only `&T`, an exclusive holder is alone.
unsafe impl<T: ?Sized + Send + Sync, C: LockClass> Sync for Sx<T, C> {}
// SAFETY: an unlocked lock is only its data.
unsafe impl<T: ?Sized + Send, C: LockClass> Send for Sx<T, C> {}

impl<T, C: LockClass> Sx<T, C> {
    /// Makes an unlocked lock.
    pub const fn new(data: T) -> Sx<T, C> {
        Sx {
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

impl<T: ?Sized, C: LockClass> Sx<T, C> {
    /// Locks exclusively, sleeping until that is possible.
    #[doc(alias = "sx_xlock")]
    #[track_caller]
    #[inline]
    pub fn xlock(&self) -> SxGuard<'_, T, C> {
        let me = curthread();
        witness::check_order::<C>(
            me,
            self.address(),
            LockKind::SxExclusive,
            Location::caller(),
        );
        let waited = self.xlock_word(me);
        self.xlocked(me, waited)
    }

    /// Locks exclusively while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    #[inline]
    pub fn xlock_under<H: Held>(&self, held: &H) -> SxGuard<'_, T, C> {
        const { assert_under::<H, C>() };
        let _ = held;
        self.xlock()
    }

    /// Locks exclusively if nobody has it.
    #[doc(alias = "sx_try_xlock")]
    #[track_caller]
    pub fn try_xlock(&self) -> Option<SxGuard<'_, T, C>> {
        let me = curthread();
        machine::interleave();
        try_wlock::<SleepQueues>(&self.word, me).then(|| self.xlocked(me, Waited::NOT))
    }

    /// Locks beside other sharers, sleeping until that is possible.
    #[doc(alias = "sx_slock")]
    #[track_caller]
    #[inline]
    pub fn slock(&self) -> SxSharedGuard<'_, T, C> {
        let me = curthread();
        witness::check_order::<C>(me, self.address(), LockKind::SxShared, Location::caller());
        machine::interleave();
        let waited = match self.word.compare_exchange(
            UNLOCKED,
            UNLOCKED + ONE_READER,
            Ordering::Acquire,
            Ordering::Relaxed,
        ) {
            Ok(_) => Waited::NOT,
            Err(value) => rlock_hard::<SleepQueues>(&self.word, me, C::NAME, value),
        };
        self.slocked(me, waited)
    }

    /// Locks beside other sharers if that needs no waiting.
    #[doc(alias = "sx_try_slock")]
    #[track_caller]
    pub fn try_slock(&self) -> Option<SxSharedGuard<'_, T, C>> {
        machine::interleave();
        try_rlock(&self.word).then(|| self.slocked(curthread(), Waited::NOT))
    }

    /// Returns the data without locking: `&mut` proves that nobody else has the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    fn address(&self) -> usize {
        word_address(&self.word)
    }

    #[inline]
    #[track_caller]
    fn xlocked(&self, me: ThreadRef, waited: Waited) -> SxGuard<'_, T, C> {
        let site = Location::caller();
        lock::obtained::<C>(me, self.address(), LockKind::SxExclusive, site, waited);
        SxGuard {
            sx: self,
            not_send: PhantomData,
        }
    }

    #[inline]
    #[track_caller]
    fn slocked(&self, me: ThreadRef, waited: Waited) -> SxSharedGuard<'_, T, C> {
        add_slocks(me, 1);
        let site = Location::caller();
        lock::obtained::<C>(me, self.address(), LockKind::SxShared, site, waited);
        SxSharedGuard {
            sx: self,
            not_send: PhantomData,
        }
    }

    #[inline]
    fn xlock_word(&self, me: ThreadRef) -> Waited {
        machine::interleave();
        let free = self.word.compare_exchange(
            UNLOCKED,
            me.as_word(),
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        match free {
            Ok(_) => Waited::NOT,
            Err(_) => wlock_hard::<SleepQueues>(&self.word, me, C::NAME),
        }
    }

    #[inline]
    fn xunlock_word(&self, me: ThreadRef) {
        if self
            .word
            .compare_exchange(me.as_word(), UNLOCKED, Ordering::Release, Ordering::Relaxed)
            .is_err()
        {
            wunlock_hard::<SleepQueues>(&self.word, me);
        }
        machine::interleave();
    }
}

/// Counts the locks that `me`, the running thread, shares.
#[inline]
fn add_slocks(me: ThreadRef, change: i32) {
    let locks = me.td_sx_slocks.load(Ordering::Relaxed);
    let locks = locks.wrapping_add_signed(change);
    me.td_sx_slocks.store(locks, Ordering::Relaxed);
}

impl<C: LockClass> RawLock for Sx<(), C> {
    fn acquire(&self) {
        self.xlock_word(curthread());
    }

    fn try_acquire(&self) -> bool {
        machine::interleave();
        try_wlock::<SleepQueues>(&self.word, curthread())
    }

    fn release(&self) {
        self.xunlock_word(curthread());
    }
}

/// An exclusive lock; unlocks when dropped.
pub struct SxGuard<'a, T: ?Sized, C: LockClass> {
    sx: &'a Sx<T, C>,
    not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized, C: LockClass> SxGuard<'a, T, C> {
    /// Turns it into a shared lock without letting another exclusive holder in between; sharers that wait come in.
    #[doc(alias = "sx_downgrade")]
    #[track_caller]
    pub fn downgrade(guard: Self) -> SxSharedGuard<'a, T, C> {
        let sx = guard.sx;
        let me = curthread();
        core::mem::forget(guard);
        lock::released(me, sx.address());
        downgrade::<SleepQueues>(&sx.word, me);
        sx.slocked(me, Waited::NOT)
    }

    /// Returns the lock, to lock it again later.
    pub fn lock(guard: &Self) -> &'a Sx<T, C> {
        guard.sx
    }
}

impl<T: ?Sized, C: LockClass> Held for SxGuard<'_, T, C> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass> Deref for SxGuard<'_, T, C> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this thread holds the lock alone.
        unsafe { &*self.sx.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> DerefMut for SxGuard<'_, T, C> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this thread holds the lock alone, and this is the only guard.
        unsafe { &mut *self.sx.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> Drop for SxGuard<'_, T, C> {
    fn drop(&mut self) {
        let me = curthread();
        lock::released(me, self.sx.address());
        self.sx.xunlock_word(me);
    }
}

/// A shared lock; unlocks when dropped.
pub struct SxSharedGuard<'a, T: ?Sized, C: LockClass> {
    sx: &'a Sx<T, C>,
    not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized, C: LockClass> SxSharedGuard<'a, T, C> {
    /// Turns the only shared lock into an exclusive one; gives the shared lock back if others share.
    ///
    /// # Errors
    /// The guard itself.
    #[doc(alias = "sx_try_upgrade")]
    #[track_caller]
    pub fn try_upgrade(guard: Self) -> Result<SxGuard<'a, T, C>, Self> {
        let sx = guard.sx;
        let me = curthread();
        if !try_upgrade::<SleepQueues>(&sx.word, me) {
            return Err(guard);
        }
        core::mem::forget(guard);
        lock::released(me, sx.address());
        add_slocks(me, -1);
        Ok(sx.xlocked(me, Waited::NOT))
    }
}

impl<T: ?Sized, C: LockClass> Held for SxSharedGuard<'_, T, C> {
    type Class = C;
}

impl<T: ?Sized, C: LockClass> Deref for SxSharedGuard<'_, T, C> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: nobody holds the lock exclusively while this thread shares it.
        unsafe { &*self.sx.data.get() }
    }
}

impl<T: ?Sized, C: LockClass> Drop for SxSharedGuard<'_, T, C> {
    fn drop(&mut self) {
        let me = curthread();
        lock::released(me, self.sx.address());
        add_slocks(me, -1);
        runlock::<SleepQueues>(&self.sx.word, me);
        machine::interleave();
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_synch::{PSOCK, SleepError, pause, tsleep};
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::kern::lock_order::App;
    use crate::machine::hosted::{Machine, seeds, turns};
    use crate::time::Sbintime;

    #[test]
    fn a_holder_may_sleep_and_the_others_wait_their_turn() {
        for seed in seeds(30) {
            Machine::builder().seed(seed).cpus(3).run(|| {
                let sum = Arc::new(Sx::<u64, App>::new(0));
                let threads: Vec<_> = (0..5)
                    .map(|number| {
                        let sum = Arc::clone(&sum);
                        kthread_add("holder", Pri::PUSER, None, move || {
                            for turn in 0..20 {
                                if (turn + number) % 4 == 0 {
                                    let before = *sum.slock();
                                    assert!(before <= *sum.slock());
                                }
                                let mut guard = sum.xlock();
                                let before = *guard;
                                pause("held", 1);
                                *guard = before + 1;
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                assert_eq!(*sum.slock(), 100);
                assert!(sum.try_xlock().is_some());
            });
        }
    }

    #[test]
    fn sharers_hold_it_together_and_only_a_sole_one_is_upgraded() {
        Machine::builder().run(|| {
            let lock = Sx::<_, App>::new(());
            let shared = lock.slock();
            let second = lock.try_slock().expect("sharers share");
            assert!(lock.try_xlock().is_none());
            let shared = match SxSharedGuard::try_upgrade(shared) {
                Ok(_) => panic!("another shares"),
                Err(guard) => guard,
            };
            drop(second);
            let Ok(exclusive) = SxSharedGuard::try_upgrade(shared) else {
                panic!("nobody else shares");
            };
            assert!(lock.try_slock().is_none());
            let shared = SxGuard::downgrade(exclusive);
            assert!(lock.try_slock().is_some());
            drop(shared);
            assert!(lock.try_xlock().is_some());
        });
    }

    #[test]
    fn who_sleeps_on_the_address_of_the_lock_does_not_wait_for_the_lock() {
        Machine::builder().run(|| {
            let lock = Arc::new(Sx::<(), App>::new(()));
            let span = Sbintime::from_ms(10);
            let theirs = Arc::clone(&lock);
            let sleeper = kthread_add("sleeper", Pri::PUSER, None, move || {
                let slept = tsleep(WChan::of(&*theirs), PSOCK, "event", Some(span), false);
                assert_eq!(slept, Err(SleepError::TimedOut));
            });
            pause("asleep", 1);
            let guard = lock.xlock();
            let theirs = Arc::clone(&lock);
            let waiter = kthread_add("waiter", Pri::PUSER, None, move || drop(theirs.xlock()));
            pause("waited for", 1);
            drop(guard);
            waiter.join();
            sleeper.join();
        });
    }

    #[test]
    fn a_sharer_shares_once_more_while_another_waits_to_be_alone() {
        Machine::builder().cpus(1).run(|| {
            let lock = Arc::new(Sx::<_, App>::new(()));
            let first = lock.slock();
            let theirs = Arc::clone(&lock);
            let waiter = kthread_add("waiter", Pri(60), None, move || drop(theirs.xlock()));
            pause("waited for", 1);
            let second = lock.slock();
            drop(first);
            pause("still waited for", 1);
            assert!(!waiter.is_done());
            drop(second);
            waiter.join();
        });
    }

    #[test]
    fn upgrades_and_downgrades_lose_nothing_under_contention() {
        for seed in seeds(40) {
            Machine::builder().seed(seed).cpus(4).run(|| {
                let lock = Arc::new(Sx::<(u64, u64), App>::new((0, 0)));
                let threads: Vec<_> = (0..6)
                    .map(|number| {
                        let lock = Arc::clone(&lock);
                        kthread_add("user", Pri(120 + number), None, move || {
                            for turn in 0..turns(60) as u8 {
                                let guard = if (turn + number) % 3 == 0 {
                                    let mut guard = lock.xlock();
                                    guard.0 += 1;
                                    if turn % 10 == 0 {
                                        pause("held", 1);
                                    }
                                    guard.1 += 1;
                                    SxGuard::downgrade(guard)
                                } else {
                                    lock.slock()
                                };
                                assert_eq!(guard.0, guard.1);
                                if let Ok(mut guard) = SxSharedGuard::try_upgrade(guard) {
                                    guard.0 += 1;
                                    machine::interleave();
                                    guard.1 += 1;
                                }
                            }
                        })
                    })
                    .collect();
                threads.into_iter().for_each(|thread| thread.join());
                let guard = lock.slock();
                assert_eq!(guard.0, guard.1);
                drop(guard);
                assert_eq!(lock.word.load(Ordering::Relaxed), UNLOCKED);
            });
        }
    }
}
