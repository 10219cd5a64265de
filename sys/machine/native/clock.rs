//! Time is the host's monotonic clock; the event timer is one of its timers.

use core::ptr;

use super::intr_machdep::sig_timer;
use crate::machine::atomic::{AtomicI64, Ordering};
use crate::machine::curcpu;
use crate::machine::pcpu_gs::area_of;
use crate::time::Sbintime;

/// The host's time at boot.
static BOOT_NS: AtomicI64 = AtomicI64::new(0);

fn monotonic_ns() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills in `time`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Lets time begin.
pub(super) fn start() {
    BOOT_NS.store(monotonic_ns(), Ordering::Relaxed);
}

/// Returns the time since boot.
pub fn sbinuptime() -> Sbintime {
    Sbintime::from_ns(monotonic_ns() - BOOT_NS.load(Ordering::Relaxed))
}

/// Makes the event timer of this CPU, `tid`.
pub(super) fn timer_init(tid: libc::pid_t) {
    let mut timer: libc::timer_t = ptr::null_mut();
    // SAFETY: all zero is a valid `sigevent`; `timer` is filled in.
    let result = unsafe {
        let mut event: libc::sigevent = core::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = sig_timer();
        event.sigev_notify_thread_id = tid;
        libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer)
    };
    assert_eq!(result, 0, "timer_create");
    area_of(curcpu()).md.timer.store(timer, Ordering::Relaxed);
}

/// Sets this CPU's timer to `deadline`, unless it fires earlier anyway. Interrupts are off.
pub fn set_event_timer(deadline: Sbintime) {
    let md = &area_of(curcpu()).md;
    if md.armed.load(Ordering::Relaxed) <= deadline.0 {
        return;
    }
    md.armed.store(deadline.0, Ordering::Relaxed);
    // Not too early by rounding; 0 would disarm, and the past fires at once.
    let ns = (BOOT_NS.load(Ordering::Relaxed) + deadline.as_ns() + 1).max(1);
    let time = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: libc::timespec {
            tv_sec: ns / 1_000_000_000,
            tv_nsec: ns % 1_000_000_000,
        },
    };
    let timer = md.timer.load(Ordering::Relaxed);
    // SAFETY: `timer_init` made the timer.
    unsafe { libc::timer_settime(timer, libc::TIMER_ABSTIME, &time, ptr::null_mut()) };
}
