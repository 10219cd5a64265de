//! Condition variables.
//!
//! FreeBSD: sys/kern/kern_condvar.c, condvar(9)
//! Not carried over: `cv_broadcastpri`, as a thread has no return to user mode at which a raised priority would end.

use crate::kern::kern_synch::{Interlock, SleepError, WChan, wakeup, wakeup_one};
use crate::machine::atomic::{AtomicU32, Ordering};
use crate::time::Sbintime;

/// An event that threads wait for under a lock, which they let go meanwhile.
///
/// Whoever changes what they wait for holds the lock, or has held it, before it signals.
#[doc(alias = "cv_init")]
pub struct Condvar {
    /// Why they wait, as `ps` shows.
    description: &'static str,
    /// Threads between letting go of their lock and having it back.
    waiters: AtomicU32,
}

impl Condvar {
    /// Makes one that nobody waits for.
    pub const fn new(description: &'static str) -> Condvar {
        Condvar {
            description,
            waiters: AtomicU32::new(0),
        }
    }

    /// Waits for a signal. The condition is to be looked at again afterwards.
    #[doc(alias = "cv_wait")]
    #[track_caller]
    pub fn wait<G: Interlock>(&self, held: G) -> G {
        self.sleep(held, None, false).0
    }

    /// Waits for a signal and does not take the lock again.
    #[doc(alias = "cv_wait_unlock")]
    #[track_caller]
    pub fn wait_unlock<G: Interlock>(&self, held: G) {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let _ = Interlock::sleep_unlocked(held, WChan::of(self), self.description, None, false);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits for a signal, or until `Thread::interrupt`.
    #[doc(alias = "cv_wait_sig")]
    #[track_caller]
    pub fn wait_sig<G: Interlock>(&self, held: G) -> (G, Result<(), SleepError>) {
        self.sleep(held, None, true)
    }

    /// Waits for a signal, at most for `span`.
    #[doc(alias = "cv_timedwait")]
    #[track_caller]
    pub fn timedwait<G: Interlock>(&self, held: G, span: Sbintime) -> (G, Result<(), SleepError>) {
        self.sleep(held, Some(span), false)
    }

    /// Waits for a signal, at most for `span`, or until `Thread::interrupt`.
    #[doc(alias = "cv_timedwait_sig")]
    #[track_caller]
    pub fn timedwait_sig<G: Interlock>(
        &self,
        held: G,
        span: Sbintime,
    ) -> (G, Result<(), SleepError>) {
        self.sleep(held, Some(span), true)
    }

    #[track_caller]
    fn sleep<G: Interlock>(
        &self,
        held: G,
        span: Option<Sbintime>,
        catch: bool,
    ) -> (G, Result<(), SleepError>) {
        // Under the lock: whoever signals after changing the condition under it sees this.
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let result = Interlock::sleep(held, WChan::of(self), self.description, span, catch);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Wakes the most urgent thread that waits, of equals the one that has waited longest.
    #[doc(alias = "cv_signal")]
    pub fn signal(&self) {
        if self.has_waiters() {
            wakeup_one(WChan::of(self));
        }
    }

    /// Wakes all threads that wait.
    #[doc(alias = "cv_broadcast")]
    pub fn broadcast(&self) {
        if self.has_waiters() {
            wakeup(WChan::of(self));
        }
    }

    /// Tells whether anybody waits.
    pub fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) != 0
    }

    /// Why threads wait here.
    #[doc(alias = "cv_wmesg")]
    pub fn description(&self) -> &'static str {
        self.description
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::*;
    use crate::kern::kern_mutex::Mutex;
    use crate::kern::kern_rwlock::RwLock;
    use crate::kern::kern_sx::Sx;
    use crate::kern::kern_synch::pause;
    use crate::kern::kern_thread::{Pri, curthread, kthread_add};
    use crate::kern::lock_order::{App, Leaf};
    use crate::machine;
    use crate::machine::hosted::{Machine, seeds};

    /// A buffer with room for two, its reader and its writer.
    struct Buffer {
        items: Mutex<Vec<u32>, Leaf>,
        filled: Condvar,
        emptied: Condvar,
    }

    #[test]
    fn no_signal_is_lost_between_readers_and_writers() {
        for seed in seeds(80) {
            Machine::builder().seed(seed).cpus(3).run(|| {
                let buffer = Arc::new(Buffer {
                    items: Mutex::new(Vec::new()),
                    filled: Condvar::new("filled"),
                    emptied: Condvar::new("emptied"),
                });
                let mut threads = Vec::new();
                for _ in 0..2 {
                    let theirs = Arc::clone(&buffer);
                    threads.push(kthread_add("writer", Pri::PUSER, None, move || {
                        for item in 0..60 {
                            let mut items = theirs.items.lock();
                            while items.len() == 2 {
                                items = theirs.emptied.wait(items);
                            }
                            items.push(item);
                            drop(items);
                            theirs.filled.signal();
                        }
                    }));
                    let theirs = Arc::clone(&buffer);
                    threads.push(kthread_add("reader", Pri::PUSER, None, move || {
                        for _ in 0..60 {
                            let mut items = theirs.items.lock();
                            while items.is_empty() {
                                items = theirs.filled.wait(items);
                            }
                            items.pop();
                            theirs.emptied.signal();
                        }
                    }));
                }
                threads.into_iter().for_each(|thread| thread.join());
                assert!(buffer.items.lock().is_empty());
                assert!(!buffer.filled.has_waiters() && !buffer.emptied.has_waiters());
            });
        }
    }

    #[test]
    fn a_wait_ends_by_signal_by_time_or_by_interruption_and_has_its_lock_back() {
        Machine::builder().run(|| {
            let cv = Arc::new(Condvar::new("test"));
            let mutex = Mutex::<u32, Leaf>::new(0);
            let rwlock = RwLock::<u32, Leaf>::new(0);
            let sx = Sx::<u32, App>::new(0);
            let span = Sbintime::from_ms(7);

            let before = machine::sbinuptime();
            let (mut held, waited) = cv.timedwait(mutex.lock(), span);
            *held += 1;
            drop(held);
            assert_eq!(waited, Err(SleepError::TimedOut));
            assert_eq!(machine::sbinuptime() - before, span);

            let me = curthread();
            kthread_add("interrupter", Pri::PUSER, None, move || {
                pause("wait", 5);
                me.interrupt();
            });
            let (mut held, waited) = cv.wait_sig(rwlock.write());
            *held += 1;
            drop(held);
            assert_eq!(waited, Err(SleepError::Interrupted));

            let theirs = Arc::clone(&cv);
            kthread_add("signaller", Pri::PUSER, None, move || {
                pause("wait", 5);
                theirs.broadcast();
            });
            let (mut held, waited) = cv.timedwait_sig(sx.xlock(), Sbintime::from_s(1));
            *held += 1;
            assert_eq!(waited, Ok(()));
            assert!(!cv.has_waiters());
        });
    }

    #[test]
    fn a_signal_wakes_the_most_urgent_and_a_broadcast_wakes_all() {
        Machine::builder().cpus(1).run(|| {
            let shared = Arc::new((
                Mutex::<Vec<u8>, Leaf>::new(Vec::new()),
                Condvar::new("turn"),
            ));
            let threads: Vec<_> = [130, 125, 121, 122]
                .into_iter()
                .map(|pri| {
                    let shared = Arc::clone(&shared);
                    kthread_add("waiter", Pri(pri), None, move || {
                        let mut order = shared.1.wait(shared.0.lock());
                        order.push(pri);
                    })
                })
                .collect();
            pause("settle", 1);
            shared.1.signal();
            pause("settle", 1);
            assert_eq!(*shared.0.lock(), [121]);
            shared.1.broadcast();
            threads.into_iter().for_each(|thread| thread.join());
            assert_eq!(shared.0.lock().len(), 4);
        });
    }
}
