//! Shared/exclusive locks whose holders may sleep.
//!
//! FreeBSD: sys/kern/kern_sx.c, sys/sys/sx.h
//! Differs from FreeBSD: the state stands under a chain of the sleep queues' spin locks rather than in a word of its own: what
//! these locks guard (a program's system call, a driver's control path) is long against that.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::panic::Location;

use super::kern_rmlock::sealed::RawLock;
use super::kern_synch::{WChan, wakeup};
use super::kern_thread::curthread;
use super::lock_order::{Held, LockClass};
use super::subr_sleepqueue as sleepq;
use super::subr_witness::{self as witness, LockKind};
use crate::machine;
use crate::machine::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Held exclusively.
const EXCLUSIVE: usize = 1;
/// Threads sleep on it.
const WAITERS: usize = 2;
const ONE_SHARER: usize = 4;

/// A lock that many share or one holds alone, and under which a thread may sleep.
#[doc(alias = "sx")]
pub struct Sx<T: ?Sized, C: LockClass> {
    word: AtomicUsize,
    /// Threads that want it exclusively; while there are any, no new sharers come in.
    exclusive_waiters: AtomicU32,
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
            word: AtomicUsize::new(0),
            exclusive_waiters: AtomicU32::new(0),
            class: PhantomData,
            data: UnsafeCell::new(data),
        }
    }
}

impl<T: ?Sized, C: LockClass> Sx<T, C> {
    /// Locks exclusively, sleeping until that is possible.
    #[doc(alias = "sx_xlock")]
    #[track_caller]
    #[inline]
    pub fn xlock(&self) -> SxGuard<'_, T, C> {
        let me = curthread();
        witness::check_order::<C>(me, self.address(), LockKind::Sx, Location::caller());
        self.lock_exclusive();
        witness::acquired::<C>(me, self.address(), LockKind::Sx, Location::caller());
        SxGuard {
            sx: self,
            not_send: PhantomData,
        }
    }

    /// Locks exclusively while `held` is held; does not build if this class stands before that of `held`.
    #[track_caller]
    #[inline]
    pub fn xlock_under<H: Held>(&self, held: &H) -> SxGuard<'_, T, C> {
        const {
            assert!(
                H::Class::RANK < C::RANK,
                "lock order reversal: see sys/kern/lock_order.rs"
            )
        };
        let _ = held;
        self.xlock()
    }

    /// Locks exclusively if nobody has it.
    #[doc(alias = "sx_try_xlock")]
    #[track_caller]
    pub fn try_xlock(&self) -> Option<SxGuard<'_, T, C>> {
        machine::interleave();
        if !self.try_exclusive() {
            return None;
        }
        witness::acquired::<C>(
            curthread(),
            self.address(),
            LockKind::Sx,
            Location::caller(),
        );
        Some(SxGuard {
            sx: self,
            not_send: PhantomData,
        })
    }

    /// Locks beside other sharers, sleeping until that is possible.
    #[doc(alias = "sx_slock")]
    #[track_caller]
    #[inline]
    pub fn slock(&self) -> SxSharedGuard<'_, T, C> {
        let me = curthread();
        witness::check_order::<C>(me, self.address(), LockKind::Sx, Location::caller());
        machine::interleave();
        if self.exclusive_waiters.load(Ordering::Relaxed) != 0 || !self.try_shared() {
            self.wait_for(|| {
                self.exclusive_waiters.load(Ordering::SeqCst) == 0 && self.try_shared()
            });
        }
        witness::acquired::<C>(me, self.address(), LockKind::Sx, Location::caller());
        SxSharedGuard {
            sx: self,
            not_send: PhantomData,
        }
    }

    /// Returns the data without locking: `&mut` proves that nobody else has the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    fn address(&self) -> usize {
        &raw const self.word as usize
    }

    #[inline]
    #[track_caller]
    fn lock_exclusive(&self) {
        machine::interleave();
        if !self.try_exclusive() {
            self.exclusive_waiters.fetch_add(1, Ordering::SeqCst);
            self.wait_for(|| self.try_exclusive());
            self.exclusive_waiters.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[inline]
    fn try_exclusive(&self) -> bool {
        let value = self.word.load(Ordering::Relaxed);
        value & !WAITERS == 0
            && self
                .word
                .compare_exchange(
                    value,
                    value | EXCLUSIVE,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    #[inline]
    fn try_shared(&self) -> bool {
        let mut value = self.word.load(Ordering::Relaxed);
        while value & EXCLUSIVE == 0 {
            match self.word.compare_exchange_weak(
                value,
                value + ONE_SHARER,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => value = now,
            }
        }
        false
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn wait_for(&self, taken: impl Fn() -> bool) {
        let done = core::cell::Cell::new(false);
        while !done.get() {
            sleepq::wait_unless(WChan(self.address()), C::NAME, None, || {
                // Announced before the last try, so that whoever holds the lock then wakes us.
                self.word.fetch_or(WAITERS, Ordering::SeqCst);
                done.set(taken());
                done.get()
            });
        }
    }

    #[inline]
    fn unlock(&self, unit: usize) {
        witness::released(curthread(), self.address());
        self.unlock_unit(unit);
    }

    #[inline]
    fn unlock_unit(&self, unit: usize) {
        let before = self.word.fetch_sub(unit, Ordering::SeqCst);
        if before & WAITERS != 0 && (before - unit) & !WAITERS == 0 {
            self.word.fetch_and(!WAITERS, Ordering::SeqCst);
            wakeup(WChan(self.address()));
        }
        machine::interleave();
    }
}

impl<C: LockClass> RawLock for Sx<(), C> {
    fn acquire(&self) {
        self.lock_exclusive();
    }

    fn try_acquire(&self) -> bool {
        machine::interleave();
        self.try_exclusive()
    }

    fn release(&self) {
        self.unlock_unit(EXCLUSIVE);
    }
}

/// An exclusive lock; unlocks when dropped.
pub struct SxGuard<'a, T: ?Sized, C: LockClass> {
    sx: &'a Sx<T, C>,
    not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized, C: LockClass> SxGuard<'a, T, C> {
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
        self.sx.unlock(EXCLUSIVE);
    }
}

/// A shared lock; unlocks when dropped.
pub struct SxSharedGuard<'a, T: ?Sized, C: LockClass> {
    sx: &'a Sx<T, C>,
    not_send: PhantomData<*const ()>,
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
        self.sx.unlock(ONE_SHARER);
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_synch::pause;
    use crate::kern::kern_thread::{Pri, kthread_add};
    use crate::kern::lock_order::App;
    use crate::machine::hosted::Machine;

    #[test]
    fn a_holder_may_sleep_and_the_others_wait_their_turn() {
        for seed in 0..30 {
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
    fn sharers_hold_it_together() {
        Machine::builder().run(|| {
            let lock = Sx::<_, App>::new(());
            let shared = lock.slock();
            assert!(lock.try_shared());
            lock.word.fetch_sub(ONE_SHARER, Ordering::Relaxed);
            assert!(lock.try_xlock().is_none());
            drop(shared);
            assert!(lock.try_xlock().is_some());
        });
    }
}
