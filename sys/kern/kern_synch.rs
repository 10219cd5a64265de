//! Sleep and wakeup.
//!
//! FreeBSD: sys/kern/kern_synch.c
//! Differs from FreeBSD: there is no return to user mode, so that a sleep does not change the thread's priority.

use core::fmt;

use super::kern_mutex::{Mutex, MutexGuard};
use super::kern_rwlock::{RwLock, RwWriteGuard};
use super::kern_sx::{Sx, SxGuard};
use super::kern_thread::{Pri, curthread};
use super::lock_order::LockClass;
use super::subr_sleepqueue::{self as sleepq, SleepUntil};
use super::subr_witness as witness;
use crate::errno::Errno;
use crate::machine;
use crate::time::Sbintime;

pub use super::sched::{kern_yield, sched_bind, sched_pin, sched_prio, sched_unbind};

/// Priority of waiting for a socket.
pub const PSOCK: Pri = Pri::PSOCK;

/// What is waited for: the address of something that both sides know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WChan(pub(crate) usize);

impl WChan {
    /// The event named by the address of `thing`.
    pub fn of<T: ?Sized>(thing: &T) -> WChan {
        WChan((&raw const *thing).cast::<u8>() as usize)
    }
}

/// Why a sleep ended without a wakeup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SleepError {
    /// The time is over.
    TimedOut,
    /// `Thread::interrupt` was called.
    Interrupted,
}

impl From<SleepError> for Errno {
    fn from(error: SleepError) -> Errno {
        match error {
            SleepError::TimedOut => Errno::EWOULDBLOCK,
            SleepError::Interrupted => Errno::EINTR,
        }
    }
}

impl fmt::Display for SleepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Errno::from(*self).fmt(f)
    }
}

/// Wakes every thread that sleeps on `chan`.
pub fn wakeup(chan: WChan) {
    sleepq::broadcast(chan);
}

/// Wakes one thread that sleeps on `chan`: the most urgent, of equals the one that has slept longest.
pub fn wakeup_one(chan: WChan) {
    sleepq::signal(chan);
}

/// Wakes one thread that sleeps on `chan`: the one that fell asleep last, whose caches are warmest. Unfair: the others
/// may wait for ever, so that all must be equally able to do the work.
pub fn wakeup_any(chan: WChan) {
    sleepq::signal_any(chan);
}

/// Sleeps for `span`.
#[track_caller]
pub fn pause_sbt(wmesg: &'static str, span: Sbintime) {
    sleepq::pause(wmesg, span);
}

/// Sleeps for `ms` milliseconds.
#[track_caller]
pub fn pause(wmesg: &'static str, ms: u32) {
    sleepq::pause(wmesg, Sbintime::from_ms(i64::from(ms)));
}

fn until(timo: Option<Sbintime>, catch: bool) -> SleepUntil {
    SleepUntil {
        deadline: timo.map(|span| machine::sbinuptime().saturating_add(span)),
        catch,
    }
}

/// Queues the thread on `chan`, lets go of `guard`, and sleeps: a wakeup in between finds the thread queued.
#[track_caller]
fn sleep<G>(
    chan: WChan,
    wmesg: &'static str,
    until: SleepUntil,
    guard: G,
) -> Result<(), SleepError> {
    sleepq::add(chan, wmesg, until);
    drop(guard);
    witness::check_sleep(curthread(), wmesg);
    sleepq::wait(chan, until)
}

/// A held lock that a thread can let go of while it sleeps: a mutex, a rwlock held for writing, an sx held exclusively.
#[doc(alias = "lock_object")]
pub trait Interlock: Sized + sealed::Relock {
    /// Lets go of the lock and sleeps on `chan` in one step, and takes the lock again.
    ///
    /// `timo` is a span from now; with `catch` the sleep can be interrupted.
    #[doc(alias = "_sleep")]
    #[track_caller]
    fn sleep(
        held: Self,
        chan: WChan,
        wmesg: &'static str,
        timo: Option<Sbintime>,
        catch: bool,
    ) -> (Self, Result<(), SleepError>) {
        let lock = Self::lock_of(&held);
        let result = sleep(chan, wmesg, until(timo, catch), held);
        (Self::relock(lock), result)
    }

    /// Lets go of the lock and sleeps on `chan` in one step, and leaves the lock.
    #[doc(alias = "PDROP")]
    #[track_caller]
    fn sleep_unlocked(
        held: Self,
        chan: WChan,
        wmesg: &'static str,
        timo: Option<Sbintime>,
        catch: bool,
    ) -> Result<(), SleepError> {
        sleep(chan, wmesg, until(timo, catch), held)
    }
}

mod sealed {
    /// How to take a lock again that was held.
    pub trait Relock {
        type Lock;
        fn lock_of(held: &Self) -> Self::Lock;
        fn relock(lock: Self::Lock) -> Self;
    }
}

impl<'a, T: ?Sized, C: LockClass> sealed::Relock for MutexGuard<'a, T, C> {
    type Lock = &'a Mutex<T, C>;
    fn lock_of(held: &Self) -> Self::Lock {
        MutexGuard::mutex(held)
    }
    #[track_caller]
    fn relock(lock: Self::Lock) -> Self {
        lock.lock()
    }
}

impl<'a, T: ?Sized, C: LockClass> sealed::Relock for RwWriteGuard<'a, T, C> {
    type Lock = &'a RwLock<T, C>;
    fn lock_of(held: &Self) -> Self::Lock {
        RwWriteGuard::lock(held)
    }
    #[track_caller]
    fn relock(lock: Self::Lock) -> Self {
        lock.write()
    }
}

impl<'a, T: ?Sized, C: LockClass> sealed::Relock for SxGuard<'a, T, C> {
    type Lock = &'a Sx<T, C>;
    fn lock_of(held: &Self) -> Self::Lock {
        SxGuard::lock(held)
    }
    #[track_caller]
    fn relock(lock: Self::Lock) -> Self {
        lock.xlock()
    }
}

impl<T: ?Sized, C: LockClass> Interlock for MutexGuard<'_, T, C> {}
impl<T: ?Sized, C: LockClass> Interlock for RwWriteGuard<'_, T, C> {}
impl<T: ?Sized, C: LockClass> Interlock for SxGuard<'_, T, C> {}

impl<T: ?Sized, C: LockClass> MutexGuard<'_, T, C> {
    /// Lets go of the mutex and sleeps on `chan` in one step, and locks the mutex again.
    ///
    /// `timo` is a span from now; with `catch` the sleep can be interrupted. `pri` is FreeBSD's, and has no effect.
    #[track_caller]
    pub fn msleep(
        guard: Self,
        chan: WChan,
        pri: Pri,
        wmesg: &'static str,
        timo: Option<Sbintime>,
        catch: bool,
    ) -> (Self, Result<(), SleepError>) {
        let _ = pri;
        Interlock::sleep(guard, chan, wmesg, timo, catch)
    }
}

impl<T: ?Sized, C: LockClass> RwWriteGuard<'_, T, C> {
    /// Lets go of the lock and sleeps on `chan` in one step, and locks it for writing again.
    #[track_caller]
    pub fn rw_sleep(
        guard: Self,
        chan: WChan,
        pri: Pri,
        wmesg: &'static str,
        timo: Option<Sbintime>,
        catch: bool,
    ) -> (Self, Result<(), SleepError>) {
        let _ = pri;
        Interlock::sleep(guard, chan, wmesg, timo, catch)
    }
}

impl<T: ?Sized, C: LockClass> SxGuard<'_, T, C> {
    /// Lets go of the lock and sleeps on `chan` in one step, and locks it exclusively again.
    #[track_caller]
    pub fn sx_sleep(
        guard: Self,
        chan: WChan,
        pri: Pri,
        wmesg: &'static str,
        timo: Option<Sbintime>,
        catch: bool,
    ) -> (Self, Result<(), SleepError>) {
        let _ = pri;
        Interlock::sleep(guard, chan, wmesg, timo, catch)
    }
}

/// Sleeps on `chan` without a lock: only for events that come again, as one that came before is lost.
#[track_caller]
pub fn tsleep(
    chan: WChan,
    pri: Pri,
    wmesg: &'static str,
    timo: Option<Sbintime>,
    catch: bool,
) -> Result<(), SleepError> {
    let _ = pri;
    sleep(chan, wmesg, until(timo, catch), ())
}

/// What locks and `join` sleep by, for a model of it: until a wakeup of `chan`, unless `ready` holds.
#[cfg(loom)]
pub fn sleep_unless(chan: WChan, ready: impl Fn() -> bool) {
    sleepq::wait_unless(chan, "model", None, ready);
}

#[cfg(test)]
mod tests {
    use alloc::collections::VecDeque;
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_thread::kthread_add;
    use crate::kern::lock_order::Leaf;
    use crate::machine::hosted::{Machine, seeds};
    use crate::machine::sbinuptime;

    #[test]
    fn a_pause_takes_its_time_and_no_longer() {
        Machine::builder().run(|| {
            for span in [1, 7, 250, 100_000] {
                let span = Sbintime::from_us(span);
                let before = sbinuptime();
                pause_sbt("test", span);
                assert_eq!(sbinuptime() - before, span);
            }
        });
    }

    #[test]
    fn no_wakeup_is_lost_between_producers_and_consumers() {
        for seed in 0..60 {
            Machine::builder().seed(seed).cpus(3).run(|| {
                let queue = Arc::new(Mutex::<VecDeque<u32>, Leaf>::new(VecDeque::new()));
                let taken = Arc::new(Mutex::<u32, Leaf>::new(0));
                let consumers: Vec<_> = (0..3)
                    .map(|_| {
                        let (queue, taken) = (Arc::clone(&queue), Arc::clone(&taken));
                        kthread_add("consumer", Pri::PUSER, None, move || {
                            for _ in 0..100 {
                                let mut guard = queue.lock();
                                while guard.is_empty() {
                                    let chan = WChan::of(&*queue);
                                    let (again, woken) = MutexGuard::msleep(
                                        guard, chan, PSOCK, "empty", None, false,
                                    );
                                    assert_eq!(woken, Ok(()));
                                    guard = again;
                                }
                                guard.pop_front();
                                drop(guard);
                                *taken.lock() += 1;
                            }
                        })
                    })
                    .collect();
                let producers: Vec<_> = (0..2)
                    .map(|_| {
                        let queue = Arc::clone(&queue);
                        kthread_add("producer", Pri::PUSER, None, move || {
                            for item in 0..150 {
                                queue.lock().push_back(item);
                                wakeup_one(WChan::of(&*queue));
                            }
                        })
                    })
                    .collect();
                for thread in producers.into_iter().chain(consumers) {
                    thread.join();
                }
                assert_eq!(*taken.lock(), 300);
            });
        }
    }

    #[test]
    fn a_sleep_ends_by_wakeup_by_time_or_by_interruption() {
        Machine::builder().run(|| {
            let mutex = Arc::new(Mutex::<u32, Leaf>::new(0));
            let chan = WChan::of(&*mutex);

            let before = sbinuptime();
            let span = Sbintime::from_ms(30);
            let (guard, slept) =
                MutexGuard::msleep(mutex.lock(), chan, PSOCK, "time", Some(span), true);
            drop(guard);
            assert_eq!(slept, Err(SleepError::TimedOut));
            assert_eq!(sbinuptime() - before, span);

            let me = curthread();
            kthread_add("interrupter", Pri::PUSER, None, move || {
                pause("wait", 5);
                me.interrupt();
            });
            let (guard, slept) = MutexGuard::msleep(mutex.lock(), chan, PSOCK, "intr", None, true);
            drop(guard);
            assert_eq!(slept, Err(SleepError::Interrupted));

            // An interruption waits for the next sleep that can be interrupted.
            me.interrupt();
            pause("uninterruptible", 5);
            let (guard, slept) = MutexGuard::msleep(mutex.lock(), chan, PSOCK, "intr", None, true);
            drop(guard);
            assert_eq!(slept, Err(SleepError::Interrupted));

            kthread_add("waker", Pri::PUSER, None, move || {
                pause("wait", 5);
                wakeup(chan);
            });
            let slept = MutexGuard::msleep(mutex.lock(), chan, PSOCK, "wake", Some(span), true).1;
            assert_eq!(slept, Ok(()));
        });
    }

    #[test]
    fn one_wakeup_wakes_the_most_urgent_sleeper() {
        Machine::builder().cpus(1).run(|| {
            let mutex = Arc::new(Mutex::<Vec<u8>, Leaf>::new(Vec::new()));
            let threads: Vec<_> = [130, 121, 125]
                .into_iter()
                .map(|pri| {
                    let mutex = Arc::clone(&mutex);
                    kthread_add("sleeper", Pri(pri), None, move || {
                        let chan = WChan::of(&*mutex);
                        let mut guard =
                            MutexGuard::msleep(mutex.lock(), chan, PSOCK, "turn", None, false).0;
                        guard.push(pri);
                    })
                })
                .collect();
            pause("settle", 1);
            for _ in 0..3 {
                wakeup_one(WChan::of(&*mutex));
                pause("settle", 1);
            }
            threads.into_iter().for_each(|thread| thread.join());
            assert_eq!(*mutex.lock(), [121, 125, 130]);
        });
    }

    #[test]
    fn waking_any_takes_the_one_that_fell_asleep_last() {
        Machine::builder().cpus(1).run(|| {
            let order = Arc::new(Mutex::<Vec<u32>, Leaf>::new(Vec::new()));
            let threads: Vec<_> = (0..3)
                .map(|number| {
                    let order = Arc::clone(&order);
                    kthread_add("sleeper", Pri::PUSER, None, move || {
                        let chan = WChan::of(&*order);
                        let slept =
                            MutexGuard::msleep(order.lock(), chan, PSOCK, "any", None, false);
                        let mut order = slept.0;
                        order.push(number);
                    })
                })
                .collect();
            pause("settle", 1);
            for _ in 0..3 {
                wakeup_any(WChan::of(&*order));
                pause("settle", 1);
            }
            threads.into_iter().for_each(|thread| thread.join());
            assert_eq!(*order.lock(), [2, 1, 0]);
        });
    }

    #[test]
    fn a_sleep_without_a_lock_ends_by_wakeup_or_time() {
        Machine::builder().run(|| {
            let thing = Arc::new(0u8);
            let chan = WChan::of(&*thing);
            let span = Some(Sbintime::from_ms(3));
            assert_eq!(
                tsleep(chan, PSOCK, "t", span, false),
                Err(SleepError::TimedOut)
            );
            kthread_add("waker", Pri::PUSER, None, move || {
                pause("wait", 1);
                wakeup(chan);
            });
            assert_eq!(tsleep(chan, PSOCK, "t", span, false), Ok(()));
        });
    }

    #[test]
    #[should_panic(expected = "deadlock: every thread waits")]
    fn a_machine_in_which_nothing_can_happen_any_more_says_so() {
        Machine::builder().quiet().run(|| {
            let mutex = Mutex::<_, Leaf>::new(());
            let chan = WChan::of(&mutex);
            let _ = MutexGuard::msleep(mutex.lock(), chan, PSOCK, "forever", None, false);
        });
    }

    #[test]
    #[should_panic(expected = "the clock stood still")]
    fn a_panic_in_any_thread_reaches_whoever_runs_the_machine() {
        Machine::builder().quiet().run(|| {
            let thread = kthread_add("faulty", Pri::PUSER, None, || {
                panic!("the clock stood still")
            });
            thread.join();
        });
    }

    #[test]
    fn a_thread_that_panics_is_not_joined_as_if_it_had_ended() {
        for seed in seeds(40) {
            let machine = Machine::builder().quiet().seed(seed).cpus(2);
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                machine.run(|| {
                    let thread = kthread_add("faulty", Pri::PUSER, None, || panic!("a fault"));
                    thread.join();
                });
            }));
            assert!(caught.is_err(), "seed {seed}");
        }
    }
}
