//! Sleep and wakeup.
//!
//! FreeBSD: sys/kern/kern_synch.c
//! Differs from FreeBSD: there is no return to user mode, so that a sleep does not change the thread's priority.

use core::fmt;

use super::kern_mutex::MutexGuard;
use super::kern_rwlock::RwWriteGuard;
use super::kern_sx::SxGuard;
use super::kern_thread::{Pri, curthread};
use super::lock_order::LockClass;
use super::subr_sleepqueue::{self as sleepq, SleepUntil};
use super::subr_witness as witness;
use crate::errno::Errno;
use crate::machine;
use crate::time::Sbintime;

pub use super::sched::{kern_yield, sched_bind, sched_pin, sched_prio, sched_unbind, sched_unpin};

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

impl<'a, T: ?Sized, C: LockClass> MutexGuard<'a, T, C> {
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
        let mutex = MutexGuard::mutex(&guard);
        let until = until(timo, catch);
        sleepq::add(chan, wmesg, until);
        drop(guard);
        witness::check_sleep(curthread(), wmesg);
        let result = sleepq::wait(chan, until);
        (mutex.lock(), result)
    }
}

impl<'a, T: ?Sized, C: LockClass> RwWriteGuard<'a, T, C> {
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
        let lock = RwWriteGuard::lock(&guard);
        let until = until(timo, catch);
        sleepq::add(chan, wmesg, until);
        drop(guard);
        witness::check_sleep(curthread(), wmesg);
        let result = sleepq::wait(chan, until);
        (lock.write(), result)
    }
}

impl<'a, T: ?Sized, C: LockClass> SxGuard<'a, T, C> {
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
        let lock = SxGuard::lock(&guard);
        let until = until(timo, catch);
        sleepq::add(chan, wmesg, until);
        drop(guard);
        witness::check_sleep(curthread(), wmesg);
        let result = sleepq::wait(chan, until);
        (lock.xlock(), result)
    }
}
