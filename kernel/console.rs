//! The console: bytes that were typed wait here for who reads them, and who writes waits here for the line.
//!
//! FreeBSD: sys/kern/kern_cons.c, sys/kern/tty.c
//! Differs from FreeBSD: no line discipline; the shell edits lines itself. Ctrl-C ends the program in the foreground, and
//! is a byte like any other when there is none.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_synch::{SleepError, WChan, wakeup};
use sys::kern::kern_thread::{Pri, ThreadRef};
use sys::kern::lock_order;
use sys::machine::{self, sbinuptime};
use sys::machine_local;
use sys::time::Sbintime;

/// Bytes that wait at most; more are lost, as they are on any serial line.
const QUEUE_MAX: usize = 4096;

/// Ctrl-C (`VINTR`).
const INTERRUPT: u8 = 0x03;

/// What was typed, and whom Ctrl-C ends.
struct Input {
    queue: VecDeque<u8>,
    foreground: Option<Foreground>,
}

/// A program that Ctrl-C ends: the flag it looks at, and the thread whose sleep is interrupted.
pub struct Foreground {
    /// Set when the program should end.
    pub interrupt: Arc<AtomicBool>,
    /// The program's thread.
    pub thread: ThreadRef,
}

machine_local! {
    static INPUT: Mutex<Input, lock_order::Console> = Mutex::new(Input {
        queue: VecDeque::new(),
        foreground: None,
    });
    /// Held while room for output is looked for, and let go of to wait for some.
    static OUTPUT: Mutex<(), lock_order::Console> = Mutex::new(());
}

/// Takes what was typed. May block, so it is called from a thread.
#[doc(alias = "ttydisc_rint")]
pub fn cn_input(bytes: impl IntoIterator<Item = u8>) {
    let mut interrupted = false;
    let mut input = INPUT.lock();
    for byte in bytes {
        match &input.foreground {
            Some(foreground) if byte == INTERRUPT => {
                foreground.interrupt.store(true, Ordering::Relaxed);
                foreground.thread.interrupt();
                // What was typed ahead was not meant for what comes after.
                input.queue.clear();
                interrupted = true;
            }
            _ if input.queue.len() < QUEUE_MAX => input.queue.push_back(byte),
            _ => {}
        }
    }
    drop(input);
    if interrupted {
        cn_write(b"^C\n");
    }
    wakeup(chan());
}

/// Says whom Ctrl-C ends from now on.
#[doc(alias = "tcsetpgrp")]
pub fn set_foreground(foreground: Option<Foreground>) {
    INPUT.lock().foreground = foreground;
}

/// Waits for a byte, at most for `timo`. `None` if there was none, or the thread was interrupted.
#[doc(alias = "cngetc")]
pub fn cn_getc(timo: Option<Sbintime>) -> Option<u8> {
    let end = timo.map(|span| sbinuptime().saturating_add(span));
    let mut input = INPUT.lock();
    loop {
        if let Some(byte) = input.queue.pop_front() {
            return Some(byte);
        }
        let left = end.map(|end| end - sbinuptime());
        if left.is_some_and(|left| left <= Sbintime::ZERO) {
            return None;
        }
        let result;
        (input, result) = MutexGuard::msleep(input, chan(), Pri::PWAIT, "ttyin", left, true);
        if result == Err(SleepError::Interrupted) {
            return None;
        }
    }
}

/// Takes a byte if one waits.
#[doc(alias = "cncheckc")]
pub fn cn_checkc() -> Option<u8> {
    INPUT.lock().queue.pop_front()
}

/// Writes a program's output, waiting while the line takes no more. Ctrl-C ends the waiting and drops the rest.
#[doc(alias = "ttydisc_write")]
pub fn cn_write(bytes: &[u8]) {
    let mut output = OUTPUT.lock();
    let mut rest = bytes;
    loop {
        rest = &rest[machine::console_write_some(rest)..];
        if rest.is_empty() {
            return;
        }
        let result;
        (output, result) = MutexGuard::msleep(
            output,
            WChan::of(OUTPUT.get()),
            Pri::PWAIT,
            "ttyout",
            None,
            true,
        );
        if result.is_err() {
            return;
        }
    }
}

/// The line takes output again.
#[doc(alias = "ttydisc_getc")]
pub fn cn_writable() {
    // Under the lock, so that nobody is between finding no room and sleeping.
    let output = OUTPUT.lock();
    wakeup(WChan::of(OUTPUT.get()));
    drop(output);
}

fn chan() -> WChan {
    WChan::of(INPUT.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::kern::kern_synch::pause_sbt;
    use sys::kern::kern_thread::kthread_add;
    use sys::machine::hosted::Machine;

    #[test]
    fn a_reader_waits_for_what_is_typed_and_no_longer_than_it_wants() {
        Machine::builder().run(|| {
            assert_eq!(cn_checkc(), None);
            assert_eq!(cn_getc(Some(Sbintime::from_ms(20))), None);
            let typist = kthread_add("typist", Pri::PUSER, None, || {
                pause_sbt("type", Sbintime::from_ms(5));
                cn_input(*b"ab");
            });
            assert_eq!(cn_getc(None), Some(b'a'));
            assert_eq!(cn_getc(Some(Sbintime::from_ms(1))), Some(b'b'));
            typist.join();
        });
    }

    #[test]
    fn ctrl_c_ends_the_program_in_the_foreground() {
        Machine::builder().run(|| {
            let interrupt = Arc::new(AtomicBool::new(false));
            let seen = interrupt.clone();
            let program = kthread_add("program", Pri::PUSER, None, || {
                assert_eq!(cn_getc(None), Some(b'x'));
                // Interrupted in its sleep.
                assert_eq!(cn_getc(None), None);
            });
            set_foreground(Some(Foreground {
                interrupt,
                thread: program.thread(),
            }));
            cn_input(*b"x");
            pause_sbt("type", Sbintime::from_ms(5));
            cn_input([INTERRUPT]);
            program.join();
            assert!(seen.load(Ordering::Relaxed));
            set_foreground(None);
            cn_input([INTERRUPT]);
            assert_eq!(cn_checkc(), Some(INTERRUPT));
        });
    }

    #[test]
    fn input_that_nobody_reads_is_lost_in_the_end() {
        Machine::builder().run(|| {
            cn_input((0..QUEUE_MAX + 10).map(|i| i as u8));
            assert_eq!(INPUT.lock().queue.len(), QUEUE_MAX);
        });
    }
}
