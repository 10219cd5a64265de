//! Kernel messages: to the console, and kept for `dmesg`.
//!
//! FreeBSD: sys/kern/subr_prf.c, sys/kern/subr_msgbuf.c

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::kern::kern_mutex::SpinMutex;
use crate::kern::lock_order;
use crate::machine;
use crate::machine_local;

/// Bytes of messages that are kept.
const MSGBUF_SIZE: usize = 64 * 1024;

/// Prints a kernel message to the console and keeps it for `dmesg`. The text brings its own newline.
#[macro_export]
macro_rules! kprintf {
    ($($arg:tt)*) => { $crate::kern::subr_prf::kvprintf(format_args!($($arg)*)) };
}

/// The messages kept, as a ring.
struct Msgbuf {
    bytes: [u8; MSGBUF_SIZE],
    /// Where the next byte goes.
    next: usize,
    /// The ring has been filled once.
    wrapped: bool,
}

machine_local! {
    static MSGBUF: SpinMutex<Msgbuf, lock_order::Msgbuf> = SpinMutex::new(Msgbuf {
        bytes: [0; MSGBUF_SIZE],
        next: 0,
        wrapped: false,
    });
}

impl Msgbuf {
    fn add(&mut self, text: &[u8]) {
        for &byte in text {
            self.bytes[self.next] = byte;
            self.next = (self.next + 1) % MSGBUF_SIZE;
            self.wrapped |= self.next == 0;
        }
    }
}

/// One message, on its way: the lock is held for the whole of it, so that messages of several CPUs do not mix.
struct Sink<'a>(&'a mut Msgbuf);

impl Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.add(text.as_bytes());
        machine::console_write(text.as_bytes());
        Ok(())
    }
}

/// Prints a message; use [`kprintf!`](crate::kprintf).
#[doc(alias = "printf")]
pub fn kvprintf(message: fmt::Arguments<'_>) {
    let mut msgbuf = MSGBUF.lock();
    // The sink cannot fail; an error would come from a value's own formatting.
    let _ = Sink(&mut msgbuf).write_fmt(message);
}

/// The messages that are kept, oldest first.
pub fn dmesg() -> String {
    let mut bytes = Vec::with_capacity(MSGBUF_SIZE);
    {
        let msgbuf = MSGBUF.lock();
        if msgbuf.wrapped {
            bytes.extend_from_slice(&msgbuf.bytes[msgbuf.next..]);
        }
        bytes.extend_from_slice(&msgbuf.bytes[..msgbuf.next]);
    }
    let text = String::from_utf8_lossy(&bytes);
    if bytes.len() < MSGBUF_SIZE {
        return text.into_owned();
    }
    // What is left of an overwritten line is not shown.
    text.split_once('\n')
        .map_or(String::new(), |(_, rest)| rest.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::hosted::Machine;

    #[test]
    fn the_oldest_messages_are_forgotten_by_whole_lines() {
        Machine::builder().run(|| {
            kprintf!("first\n");
            assert!(dmesg().ends_with("first\n"));
            for i in 0..20_000 {
                MSGBUF.lock().add(alloc::format!("line {i}\n").as_bytes());
            }
            let kept = dmesg();
            assert!(kept.len() < MSGBUF_SIZE && kept.starts_with("line "));
            assert!(kept.ends_with("line 19999\n"));
        });
    }
}
