//! The terminal: bytes from the serial line on their way to the shell, and Ctrl-C on its way to a program.
//!
//! FreeBSD: sys/kern/tty.c, as far as a console needs it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_synch::{WChan, wakeup};
use sys::kern::kern_thread::{Pri, ThreadRef};
use sys::kern::lock_order::Console;

use crate::apps::Output;

/// Bytes typed ahead that are kept.
const TYPE_AHEAD: usize = 4096;

/// A terminal. The driver of the line calls [`Tty::rint`] for each byte received, from its interrupt thread.
pub struct Tty {
    write: fn(&[u8]),
    input: Mutex<Input, Console>,
}

struct Input {
    queue: VecDeque<u8>,
    waiting: bool,
    foreground: Option<Foreground>,
}

/// The program that Ctrl-C ends.
struct Foreground {
    interrupt: Arc<AtomicBool>,
    thread: ThreadRef,
}

impl Tty {
    /// A terminal whose output goes to `write`.
    pub fn new(write: fn(&[u8])) -> Tty {
        Tty {
            write,
            input: Mutex::new(Input {
                queue: VecDeque::new(),
                waiting: false,
                foreground: None,
            }),
        }
    }

    /// Takes a byte from the line. Ctrl-C ends the program in the foreground, if there is one; everything else
    /// waits until it is read.
    #[doc(alias = "ttydisc_rint")]
    pub fn rint(&self, byte: u8) {
        let mut input = self.input.lock();
        if byte == 0x03
            && let Some(foreground) = &input.foreground
        {
            foreground.interrupt.store(true, Ordering::Relaxed);
            let thread = foreground.thread;
            input.queue.clear();
            drop(input);
            (self.write)(b"^C\r\n");
            thread.interrupt();
            return;
        }
        if input.queue.len() == TYPE_AHEAD {
            drop(input);
            (self.write)(b"\x07");
            return;
        }
        input.queue.push_back(byte);
        if core::mem::take(&mut input.waiting) {
            drop(input);
            wakeup(WChan::of(&self.input));
        }
    }

    /// The next byte, waiting for it.
    pub fn read(&self) -> u8 {
        let mut input = self.input.lock();
        loop {
            if let Some(byte) = input.queue.pop_front() {
                return byte;
            }
            input.waiting = true;
            let (guard, _) = MutexGuard::msleep(
                input,
                WChan::of(&self.input),
                Pri::PWAIT,
                "ttyin",
                None,
                false,
            );
            input = guard;
        }
    }

    /// Whether nothing is typed ahead.
    pub fn is_quiet(&self) -> bool {
        self.input.lock().queue.is_empty()
    }

    /// Says whom Ctrl-C ends from now on; `None` makes it a byte like others.
    pub(super) fn set_foreground(&self, foreground: Option<(Arc<AtomicBool>, ThreadRef)>) {
        self.input.lock().foreground =
            foreground.map(|(interrupt, thread)| Foreground { interrupt, thread });
    }

    /// Writes bytes as they are.
    pub(super) fn write_raw(&self, bytes: &[u8]) {
        (self.write)(bytes);
    }
}

impl Output for Tty {
    /// Writes text; a newline becomes carriage return and newline (`ONLCR`).
    fn write(&self, text: &str) {
        let mut buffer = [0; 256];
        let mut len = 0;
        for &byte in text.as_bytes() {
            if len + 2 > buffer.len() {
                (self.write)(&buffer[..len]);
                len = 0;
            }
            if byte == b'\n' {
                buffer[len] = b'\r';
                len += 1;
            }
            buffer[len] = byte;
            len += 1;
        }
        (self.write)(&buffer[..len]);
    }
}
